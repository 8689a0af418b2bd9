//! Answers of the volume and of the controller, turned into what is sent.

use block::{Done, Op};
use frame::{IoBuffer, IoPool};
use wire::nvme::data::ErrorEntry;
use wire::nvme::{AdminOpcode, Completion, StatusCode};

use super::{Queue, command};
use crate::Sink;
use crate::nvme_tcp::UnknownTag;
use crate::nvme_tcp::admin::Refusal;
use crate::nvme_tcp::slots::{SlotId, Work};
use crate::nvme_tcp::subsystem::Subsystem;
use std::collections::VecDeque;

impl Queue {
    /// Takes the answer to an I/O.
    pub fn complete(&mut self, done: Done<IoBuffer>, pool: &mut IoPool) -> Result<(), UnknownTag> {
        let Done { tag, status, buffer, .. } = done;
        let id = SlotId::from_tag(tag);
        let is_over = self.is_over();
        let slot = self.slots.find(id).filter(|slot| slot.parts_out > 0);
        let (Some(slot), false) = (slot, is_over) else {
            self.outstanding -= u32::from(is_over && self.outstanding > 0);
            buffer.into_iter().for_each(|buffer| pool.free(buffer));
            return if is_over { Ok(()) } else { Err(UnknownTag { tag }) };
        };
        slot.parts_out -= 1;
        self.outstanding -= 1;
        self.has_moved = true;
        let is_write = matches!(slot.work, Work::Io(Op::Write { .. } | Op::WriteZeroes { .. }));
        let refusal = command::refusal_of(status, is_write);
        let (bytes, work) = (slot.bytes as usize, slot.work);
        match (work, refusal, buffer) {
            (Work::Ranges { .. }, refusal, buffer) => {
                if let Some(Refusal { status, .. }) = refusal
                    && slot.status == StatusCode::SUCCESS
                {
                    // The rest is not begun.
                    (slot.status, slot.part) = (status, slot.parts);
                }
                self.give_back(buffer, pool);
                self.settle(id, pool);
            }
            (_, Some(refusal), buffer) => {
                self.give_back(buffer, pool);
                self.refuse(id, refusal, pool);
            }
            (Work::Io(Op::Read), None, Some(buffer)) if buffer.len() == bytes => {
                self.answer_data(id, 0, buffer, pool);
            }
            // A read without all of its data is our fault.
            (Work::Io(Op::Read), None, buffer) => {
                self.give_back(buffer, pool);
                self.refuse(id, StatusCode::INTERNAL_ERROR.into(), pool);
            }
            (_, None, buffer) => {
                self.give_back(buffer, pool);
                self.answer(id, 0, pool);
            }
        }
        Ok(())
    }

    /// Answers a command of several ranges, once all of it is done.
    pub(super) fn settle(&mut self, id: SlotId, pool: &mut IoPool) {
        let Some(slot) = self.slots.find(id) else { return };
        let in_lane = self.lanes[super::Lane::Push as usize].iter().any(|waiting| waiting.id == id);
        if slot.parts_out > 0 || in_lane {
            return;
        }
        match slot.status {
            StatusCode::SUCCESS => self.answer(id, 0, pool),
            // A path error is the only one after which another try makes sense. What is wrong stands in the payload.
            status => {
                let (do_not_retry, field) = (!status.is_path_related(), ErrorEntry::NO_FIELD);
                self.refuse(id, Refusal { do_not_retry, field, ..status.into() }, pool);
            }
        }
    }

    /// The command succeeded.
    pub(super) fn answer(&mut self, id: SlotId, result: u64, pool: &mut IoPool) {
        let completion = Completion { result, ..Completion::default() };
        self.finish(id, completion, pool);
    }

    /// The command failed. All that fail come here: the log of errors says more of each (M).
    pub(super) fn refuse(&mut self, id: SlotId, refusal: Refusal, pool: &mut IoPool) {
        let Refusal { status, do_not_retry, field, lba } = refusal;
        let mut completion = Completion { status, do_not_retry, more: true, ..Completion::default() };
        if let (Some(seat), Some(slot)) = (self.seat, self.slots.find(id)) {
            let command = &slot.command;
            completion.command = command.id;
            // A block of the command: the place that failed may begin before it.
            let first = if seat.queue == 0 { 0 } else { command::first_block(command) };
            let lba = lba.map_or(first, |lba| lba.0.max(first));
            let namespace = if command.opcode == AdminOpcode::FABRICS.0 { 0 } else { command.namespace };
            let queue = seat.queue;
            self.errors.push(ErrorEntry { count: 0, queue, completion, field, lba, namespace });
        }
        self.finish(id, completion, pool);
    }

    /// The command succeeded, with data. TCP clause 3.3.2.1: where no places are counted and there is nothing
    /// else to say, the data says that the command succeeded.
    pub(super) fn answer_data(&mut self, id: SlotId, result: u64, buffer: IoBuffer, pool: &mut IoPool) {
        let Some(slot) = self.slots.find(id) else { return self.give_back(Some(buffer), pool) };
        let (command, unsent) = (slot.command.id, slot.buffer.take());
        let completion =
            Completion { result, command, queue_head: self.head.unwrap_or(0), ..Completion::default() };
        let completion = (self.head.is_some() || result != 0).then_some(completion);
        self.output.push_data(command, buffer, completion, id, pool);
        self.give_back(unsent, pool);
    }

    /// Takes back a request for an event.
    pub(super) fn tell_aborted(&mut self, command: u16) {
        let (status, queue_head) = (StatusCode::ABORT_REQUESTED, self.head.unwrap_or(0));
        let completion = Completion { status, command, queue_head, ..Completion::default() };
        self.output.push_completion(completion, None);
    }

    /// Counts what was done for the controller, takes back what it is asked to, and answers its requests for events
    /// and its Aborts.
    pub(super) fn tell(&mut self, subsystem: &mut Subsystem, pool: &mut IoPool, sink: &mut impl Sink) {
        let Some(seat) = self.seat else { return };
        let errors = self.errors.drain(..);
        let Some(controller) = subsystem.controller_mut(seat) else { return };
        errors.for_each(|entry| controller.errors.record(entry));
        controller.usage.add(std::mem::take(&mut self.usage));
        if seat.queue != 0 {
            if controller.aborts.concern(seat.queue) {
                controller.aborts.carry_out(seat.queue, |command| self.take_back(command, pool, sink));
                subsystem.has_call = true;
            }
            return;
        }
        while let Some((command, result)) = controller.aborts.answer() {
            let queue_head = self.head.unwrap_or(0);
            let completion = Completion { result, queue_head, command, ..Completion::default() };
            self.output.push_completion(completion, None);
        }
        let queue_head = self.head.unwrap_or(0);
        while let Some((command, result)) = controller.news() {
            let completion = Completion { result, queue_head, command, ..Completion::default() };
            self.output.push_completion(completion, None);
        }
    }

    /// Takes a command back that waits, and answers it; false if it does not wait here.
    fn take_back(&mut self, command: u16, pool: &mut IoPool, sink: &mut impl Sink) -> bool {
        let Some((id, slot)) = self.slots.named(command) else { return false };
        let volume = slot.volume;
        if slot.parts_out > 0 || slot.receiving.is_some() {
            return false;
        }
        let before = self.waiting();
        self.fresh.retain(|&waiting| waiting != id);
        self.lanes.iter_mut().for_each(|lane| lane.retain(|waiting| waiting.id != id));
        // Its payload may be coming in, or its answer be on its way.
        if self.waiting() == before {
            return false;
        }
        sink.withdraw(volume);
        self.refuse(id, Refusal::passing(StatusCode::ABORT_REQUESTED), pool);
        true
    }

    /// Commands that wait.
    fn waiting(&self) -> usize {
        self.fresh.len() + self.lanes.iter().map(VecDeque::len).sum::<usize>()
    }

    fn finish(&mut self, id: SlotId, completion: Completion, pool: &mut IoPool) {
        let Some(slot) = self.slots.find(id) else { return };
        let (command, unused) = (slot.command.id, slot.buffer.take());
        let completion = Completion { command, queue_head: self.head.unwrap_or(0), ..completion };
        self.output.push_completion(completion, Some(id));
        self.give_back(unused, pool);
    }
}
