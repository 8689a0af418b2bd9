//! A queue: commands in, I/Os out; answers in, completions out.
//!
//! A command's way: `process_bytes` gives it a slot and copies the payload that came with it; `step` looks at
//! it and puts it into a lane, and hands it to the volume as credits and memory allow; where the host has the
//! payload, that is when the host is asked for it. `complete` turns the answer into what is sent, and `sent`
//! frees buffers and, at the last byte, the slot.
//!
//! Completions leave as the answers come. A flush covers what was answered before (NVM clause 3.2.1); it needs
//! nothing that is still here, so it passes whatever waits for credits, and so does all of the admin queue. Commands
//! to one namespace that wait for credits hold up none to another one.
//!
//! Why nothing waits for ever: what waits for memory holds none, but for payload that came with its command,
//! and that waits for credits alone; a host that does not read, does not send what it was asked for or goes
//! away is ended by `expire`.
//!
//! Invariants: as many commands as places, as much payload as `BYTES_MAX`; beyond that no input is taken.
//! Every I/O handed out is answered once before [`Queue::is_finished`], whatever the host does.

mod command;
mod complete;
mod receive;

use std::collections::VecDeque;
use std::net::SocketAddr;

use block::{Io, Lba, Op, TraceId, VolumeId};
use frame::{IoBuffer, IoPool};
use thiserror::Error;
use wire::nvme::data::ErrorEntry;
use wire::nvme::{Command, Completion, StatusCode};
use wire::nvme_tcp::{Fatal, Transfer};

use self::command::{Ask, Place, Plan, RANGE_BYTES};
use super::abort::ABORTS_MAX;
use super::admin::{Refusal, Reply};
use super::controller::Usage;
use super::link::Link;
use super::output::Output;
use super::setup::Attach;
use super::slots::{Slot, SlotId, Slots, Work};
use super::subsystem::{Seat, Subsystem};
use super::{EVENT_REQUESTS_MAX, Slices, Wait};
use crate::{Follow, Sink};

/// Payload that is held for the host of one queue, in both directions.
const BYTES_MAX: usize = 64 << 20;
/// How long a host may leave a unit half sent or half read, or a transfer unanswered.
const STALL_NS: u64 = 30_000_000_000;

/// Why a queue ended without its host's leave. The connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueueError {
    /// The host violated the transport, and was told.
    #[error(transparent)]
    Fatal(Fatal),
    /// The host found fault with us.
    #[error("the host ended the connection: {0}")]
    Terminated(Fatal),
    /// Connect was refused, and the host told.
    #[error("the host was refused: {0}")]
    Refused(StatusCode),
    /// Its controller is gone: reset, without its admin queue, or its host was silent for too long.
    #[error("its controller is gone: reset, disconnected, or not kept alive by its host")]
    Gone,
    /// Half sent or half read for too long.
    #[error("the host left a unit half sent or half read for {stalled_ns} ns")]
    Stalled {
        /// For how long.
        stalled_ns: u64,
    },
}

/// Where in the host's bytes we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// Between units.
    Unit,
    /// A command that has no place or no memory yet.
    Command { command: Command, data_bytes: u32 },
    /// Its payload.
    Capsule { id: SlotId, filled: usize },
    /// Payload that was asked for.
    Transfer { id: SlotId },
    /// What arrives is dropped.
    Ended,
}

/// Queues of what is ready to be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Needs neither credits nor memory.
    Prompt,
    /// Of the admin queue: needs memory where the answer has data.
    Admin,
    /// Needs memory and credits: reads, and payload that the host has.
    Pull,
    /// Needs credits.
    Push,
}

const LANES: [Lane; 4] = [Lane::Prompt, Lane::Admin, Lane::Pull, Lane::Push];

/// A command in a lane.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Its place among all lanes.
    order: u64,
    id: SlotId,
    /// Whose credits it needs, in the lanes of payload.
    volume: VolumeId,
}

/// What became of the first of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handed {
    Out,
    NoCredits,
    NoMemory,
    /// The connection holds as much as it may.
    NoRoom,
}

/// When something last moved between us and the host.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    moved_bytes: u64,
    since_ns: u64,
}

/// The worker's side of a connection.
#[derive(Debug)]
pub struct Queue {
    /// `None` when Connect was refused.
    seat: Option<Seat>,
    /// Where the host has reached us.
    local: SocketAddr,
    link: Link,
    input: Input,
    slots: Slots,
    /// Commands that were not looked at.
    fresh: VecDeque<SlotId>,
    lanes: [VecDeque<Waiting>; LANES.len()],
    order: u64,
    /// Volumes that had no credits in this step.
    short: Vec<VolumeId>,
    output: Output,
    /// SQHD, where both sides count places.
    head: Option<u16>,
    entries: u16,
    /// Payload memory that is held for this host.
    held_bytes: usize,
    /// Transfers that the host was asked for and did not end.
    transfers: u32,
    /// I/Os handed out and not answered.
    outstanding: u32,
    usage: Usage,
    /// Commands that ended in an error, for the controller's log: at most all that the queue has between two steps.
    errors: Vec<ErrorEntry>,
    moved_bytes: u64,
    mark: Mark,
    /// Why it is over; the last words may still be under way.
    over: Option<QueueError>,
    /// All is answered and then the connection is closed.
    is_leaving: bool,
    is_aborted: bool,
    /// Since the last step answers came, or something was sent.
    has_moved: bool,
    /// Followed commands whose answer was sent.
    ended: Vec<TraceId>,
}

impl Queue {
    /// Gives the connection its place in `subsystem` and answers the Connect command, or refuses it. `local`
    /// is the address at which the host has reached us.
    pub fn new(attach: Attach, local: SocketAddr, subsystem: &mut Subsystem, now_ns: u64) -> Queue {
        let seat = subsystem.seat(&attach, now_ns);
        let has_flow_control = attach.has_flow_control();
        let entries = attach.connect.entries.min(subsystem.limits.entries_max.into()) as u16;
        let items = usize::from(entries) + EVENT_REQUESTS_MAX + ABORTS_MAX + 1;
        let mut queue = Queue {
            seat: seat.ok(),
            local,
            link: attach.link,
            input: Input::Unit,
            slots: Slots::new(entries),
            fresh: VecDeque::with_capacity(entries.into()),
            lanes: std::array::from_fn(|_| VecDeque::with_capacity(entries.into())),
            order: 0,
            short: Vec::new(),
            output: Output::new(attach.agreed, items),
            head: None,
            entries,
            held_bytes: 0,
            transfers: 0,
            outstanding: 0,
            usage: Usage::default(),
            errors: Vec::new(),
            moved_bytes: 0,
            mark: Mark::default(),
            over: None,
            is_leaving: false,
            is_aborted: false,
            has_moved: false,
            ended: Vec::with_capacity(entries.into()),
        };
        match seat {
            Ok(seat) => {
                queue.head = has_flow_control.then_some(1 % entries);
                // "SQHD set to FFFFh": the controller agrees that places are not counted.
                let queue_head = queue.head.unwrap_or(u16::MAX);
                let (command, result) = (attach.command, u64::from(seat.controller));
                let completion = Completion { result, queue_head, command, ..Completion::default() };
                queue.output.push_completion(completion, None);
            }
            Err(refusal) => {
                queue.output.push_completion(refusal, None);
                (queue.input, queue.is_leaving) = (Input::Ended, true);
                queue.over = Some(QueueError::Refused(refusal.status));
            }
        }
        queue
    }

    /// I/Os handed out and not answered. With none, the session can move to another worker.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Payload memory held for the host.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The host was asked for payload that is still to come, perhaps behind commands that need memory as
    /// well: without that, what is held for the payload does not come free.
    pub fn awaits_payload(&self) -> bool {
        self.transfers > 0
    }

    /// Why it ended, once it has.
    pub fn over(&self) -> Option<QueueError> {
        self.over
    }

    /// The connection is to be closed and the session can be dropped: everything was answered and sent, or
    /// the session was aborted, and no buffer is out.
    pub fn is_finished(&self) -> bool {
        let left = self.is_leaving && self.slots.live() == 0 && self.output.is_empty();
        self.outstanding == 0 && (self.is_aborted || left)
    }

    /// Reading from the socket makes sense: more input could be taken, if the pool has room for it.
    pub fn wants_input(&self) -> bool {
        match self.input {
            Input::Command { data_bytes, .. } => {
                !self.slots.is_full() && self.held_bytes + data_bytes as usize <= BYTES_MAX
            }
            _ => !self.is_aborted,
        }
    }

    /// Hands out what credits and memory allow, in the order in which it came, carries out what belongs to
    /// the controller, and tells the host what it waits for. Call it after every other call that could have
    /// changed that, and when credits or memory came back.
    pub fn step(
        &mut self,
        subsystem: &mut Subsystem,
        pool: &mut IoPool,
        sink: &mut impl Sink,
        now_ns: u64,
    ) -> Wait {
        self.has_moved = false;
        self.begin(pool, now_ns);
        self.accept(subsystem, pool);
        let mut open = [true; LANES.len()];
        // The first that found no memory.
        let mut lacks = None;
        self.short.clear();
        while let Some((lane, Waiting { id, volume, .. })) = self.next_lane(&open) {
            let handed = match lane {
                Lane::Prompt => self.submit(id, subsystem, pool, sink),
                Lane::Admin => self.carry_out(id, subsystem, pool, now_ns),
                Lane::Pull => self.pull(id, subsystem, pool, sink),
                Lane::Push => self.push(id, subsystem, pool, sink),
            };
            match handed {
                Handed::Out => {}
                Handed::NoCredits => {
                    self.short.push(volume);
                    if subsystem.namespaces().len() == 1 {
                        // Nobody else's commands are behind it.
                        (open[Lane::Pull as usize], open[Lane::Push as usize]) = (false, false);
                    }
                }
                Handed::NoMemory => {
                    open[lane as usize] = false;
                    lacks = lacks.or(Some(volume));
                }
                Handed::NoRoom => open[lane as usize] = false,
            }
        }
        self.tell(subsystem, pool, sink);
        match lacks {
            // Credits that come have both tried again.
            Some(volume) if !self.short.contains(&volume) => Wait::Memory,
            _ if !self.short.is_empty() => Wait::Credits,
            Some(_) => Wait::Memory,
            None => Wait::Nothing,
        }
    }

    /// A step may hand something out that waited for answers, or for what was sent, or has an error to tell its
    /// controller: nothing else announces that.
    pub fn wants_step(&self) -> bool {
        self.has_moved && (!self.errors.is_empty() || self.lanes.iter().any(|lane| !lane.is_empty()))
    }

    /// What to send next, as pieces of memory for one vectored send; none when there is nothing.
    pub fn dispatch_bytes<'a>(&'a self, pool: &'a IoPool, slices: &mut Slices<'a>) {
        self.output.dispatch(pool, slices);
    }

    /// There is something to send.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Says that the first `bytes` of what [`Self::dispatch_bytes`] shows were sent.
    pub fn sent(&mut self, bytes: usize, pool: &mut IoPool) {
        self.moved_bytes += bytes as u64;
        self.has_moved |= bytes > 0;
        let mut sent = bytes;
        while let Some((buffer, ends)) = self.output.sent(std::mem::take(&mut sent)) {
            self.give_back(buffer, pool);
            if let Some(id) = ends {
                self.ended.extend(self.slots.put(id));
            }
        }
    }

    /// Followed commands whose answer was sent since this was asked last.
    pub fn ended(&mut self) -> impl Iterator<Item = TraceId> {
        self.ended.drain(..)
    }

    /// Ends the session when its controller is gone, when it is over and all was said, and when the host left
    /// something half sent or half read for too long. Call it now and then: the clock begins with the first
    /// call that finds it so.
    pub fn expire(&mut self, subsystem: &Subsystem, now_ns: u64) -> Result<(), QueueError> {
        if let Some(over) = self.over.filter(|_| self.output.is_empty()) {
            return Err(over);
        }
        let is_seated = self.seat.is_some_and(|seat| {
            subsystem.controller(seat).is_some_and(|controller| controller.has_queue(seat.queue))
        });
        if !is_seated && self.over.is_none() {
            return Err(QueueError::Gone);
        }
        let half_sent = match self.input {
            Input::Unit | Input::Capsule { .. } | Input::Transfer { .. } => self.link.is_within(),
            Input::Command { .. } | Input::Ended => false,
        };
        let half_read = !self.output.is_empty();
        let waits = half_sent || half_read || self.transfers > 0;
        if !waits || self.mark.moved_bytes != self.moved_bytes || self.mark.since_ns == 0 {
            self.mark = Mark { moved_bytes: self.moved_bytes, since_ns: now_ns };
            return Ok(());
        }
        let stalled_ns = now_ns.saturating_sub(self.mark.since_ns);
        if stalled_ns <= STALL_NS { Ok(()) } else { Err(QueueError::Stalled { stalled_ns }) }
    }

    /// Says that it is us who do not read: [`Self::expire`] begins to count anew.
    pub fn excuse(&mut self, now_ns: u64) {
        self.mark = Mark { moved_bytes: self.moved_bytes, since_ns: now_ns };
    }

    /// Gives its place in the subsystem back; a queue that is finished is to leave before it is dropped.
    pub fn leave(&mut self, subsystem: &mut Subsystem) {
        if let Some(seat) = self.seat.take() {
            subsystem.leave(seat);
        }
    }

    /// Gives up: nothing more is taken, handed out or said, and all payload that is here is freed. What was
    /// handed out still comes back through [`Self::complete`].
    pub fn abort(&mut self, pool: &mut IoPool) {
        (self.is_aborted, self.input) = (true, Input::Ended);
        self.drop_payload(pool);
        self.output.clear().for_each(|buffer| pool.free(buffer));
    }

    /// Frees what is not under way and forgets the commands.
    fn drop_payload(&mut self, pool: &mut IoPool) {
        self.slots.buffers().for_each(|buffer| pool.free(buffer));
        (self.held_bytes, self.transfers) = (0, 0);
        self.fresh.clear();
        self.lanes.iter_mut().for_each(VecDeque::clear);
    }

    /// Looks at new commands and puts each where it waits for what it needs.
    fn accept(&mut self, subsystem: &Subsystem, pool: &mut IoPool) {
        if self.fresh.is_empty() {
            return;
        }
        let seat = self.seat.filter(|_| !self.is_over());
        let controller = seat.and_then(|seat| subsystem.controller(seat));
        let is_ready = controller.is_some_and(|one| one.is_ready());
        let write_cache = controller.is_some_and(|one| one.features.write_cache());
        let is_admin = seat.is_some_and(|seat| seat.queue == 0);
        while let Some(id) = self.fresh.pop_front() {
            let Some(slot) = self.slots.find(id) else { continue };
            let (command, capsule_bytes, status) = (slot.command, slot.bytes, slot.status);
            if status != StatusCode::SUCCESS {
                // What the transport spoilt may be sent again.
                let do_not_retry = status != StatusCode::TRANSIENT_TRANSPORT_ERROR;
                self.refuse(id, Refusal { do_not_retry, ..status.into() }, pool);
            } else if is_admin && controller.is_some_and(|one| one.holds(command.id)) {
                self.refuse(id, StatusCode::COMMAND_ID_CONFLICT.into(), pool);
            } else if is_admin {
                self.enqueue(Lane::Admin, id, VolumeId(0));
            } else if !is_ready {
                self.refuse(id, StatusCode::COMMAND_SEQUENCE_ERROR.into(), pool);
            } else {
                match command::plan(&command, capsule_bytes, write_cache, subsystem) {
                    Ok(Ask::Io(plan)) => self.admit(id, &plan),
                    Ok(Ask::Nothing) => self.answer(id, 0, pool),
                    Ok(Ask::Disconnect) => {
                        self.answer(id, 0, pool);
                        (self.input, self.is_leaving) = (Input::Ended, true);
                    }
                    Err(refusal) => self.refuse(id, refusal, pool),
                }
            }
        }
    }

    fn admit(&mut self, id: SlotId, plan: &Plan) {
        let Some(slot) = self.slots.find(id) else { return };
        (slot.work, slot.lba, slot.blocks, slot.bytes) = (plan.work, plan.lba, plan.blocks, plan.bytes);
        slot.volume = plan.volume;
        slot.parts = if let Work::Ranges { count } = plan.work { count } else { 1 };
        let lane = match (plan.work, plan.place) {
            (Work::Io(Op::Flush), _) => Lane::Prompt,
            (_, Place::Host | Place::ToHost) => Lane::Pull,
            (_, Place::Here | Place::Nowhere) => Lane::Push,
        };
        self.enqueue(lane, id, plan.volume);
    }

    fn enqueue(&mut self, lane: Lane, id: SlotId, volume: VolumeId) {
        self.order += 1;
        self.lanes[lane as usize].push_back(Waiting { order: self.order, id, volume });
    }

    /// The first command that came, of the open lanes and of volumes that are not short of credits.
    fn next_lane(&self, open: &[bool; LANES.len()]) -> Option<(Lane, Waiting)> {
        let may = |lane: Lane, waiting: &Waiting| match lane {
            Lane::Prompt | Lane::Admin => true,
            Lane::Pull | Lane::Push => self.short.is_empty() || !self.short.contains(&waiting.volume),
        };
        let first = |lane: Lane| {
            let mut waiting = self.lanes[lane as usize].iter();
            waiting.find(|waiting| may(lane, waiting)).map(|waiting| (lane, *waiting))
        };
        let firsts = LANES.into_iter().filter(|&lane| open[lane as usize]).filter_map(first);
        firsts.min_by_key(|(_, waiting)| waiting.order)
    }

    /// It is the first of its lane, but for those that wait for credits.
    fn pop(&mut self, lane: Lane, id: SlotId) {
        let waiting = &mut self.lanes[lane as usize];
        if let Some(at) = waiting.iter().position(|waiting| waiting.id == id) {
            waiting.remove(at);
        }
    }

    /// Carries out a command of the admin queue.
    fn carry_out(&mut self, id: SlotId, subsystem: &mut Subsystem, pool: &mut IoPool, now_ns: u64) -> Handed {
        let (Some(slot), Some(seat)) = (self.slots.find(id), self.seat) else {
            self.pop(Lane::Admin, id);
            return Handed::Out;
        };
        let command = slot.command;
        let bytes = match subsystem.answer_bytes(seat, &command) {
            Ok(bytes) => bytes,
            Err(refusal) => {
                self.pop(Lane::Admin, id);
                self.refuse(id, refusal, pool);
                return Handed::Out;
            }
        };
        let mut buffer = None;
        if bytes > 0 {
            match self.alloc(bytes, pool) {
                Ok(empty) => buffer = Some(empty),
                Err(why) => return why,
            }
        }
        self.pop(Lane::Admin, id);
        let out = buffer.as_mut().map_or(&mut [][..], |buffer| pool.bytes_mut(buffer));
        let reply = subsystem.execute(seat, &command, self.local, now_ns, out);
        match (reply, buffer) {
            (Ok(Reply::Done(result)), Some(buffer)) => self.answer_data(id, result, buffer, pool),
            (reply, buffer) => {
                self.give_back(buffer, pool);
                match reply {
                    Ok(Reply::Done(result)) => self.answer(id, result, pool),
                    Ok(Reply::Held) => drop(self.slots.put(id)),
                    Ok(Reply::Aborted(other)) => {
                        self.tell_aborted(other);
                        self.answer(id, 0, pool);
                    }
                    Err(refusal) => self.refuse(id, refusal, pool),
                }
            }
        }
        Handed::Out
    }

    /// A read, or payload that the host has: finds memory and credits, then reads, or asks the host.
    fn pull(&mut self, id: SlotId, subsystem: &Subsystem, pool: &mut IoPool, sink: &mut impl Sink) -> Handed {
        let Some(slot) = self.slots.find(id) else {
            self.pop(Lane::Pull, id);
            return Handed::Out;
        };
        if let Err(refusal) = subsystem.reach_still(slot.command.namespace, slot.volume) {
            sink.withdraw(slot.volume);
            self.pop(Lane::Pull, id);
            self.refuse(id, refusal, pool);
            return Handed::Out;
        }
        let (volume, work, lba, bytes) = (slot.volume, slot.work, slot.lba, slot.bytes);
        let trace = follow(slot, sink);
        let buffer = match self.alloc(bytes as usize, pool) {
            Ok(buffer) => buffer,
            Err(why) => return why,
        };
        // Ranges are paid for one by one, once they are known.
        if let Work::Io(op) = work
            && !sink.admit(volume, op, lba, bytes)
        {
            self.give_back(Some(buffer), pool);
            return Handed::NoCredits;
        }
        self.pop(Lane::Pull, id);
        let Some(slot) = self.slots.find(id) else { return Handed::Out };
        slot.buffer = Some(buffer);
        if work == Work::Io(Op::Read) {
            return self.hand_out(id, Op::Read, sink);
        }
        slot.receiving = Some(0);
        sink.asked(trace);
        let (command, tag) = (slot.command.id, id.transfer_tag());
        self.transfers += 1;
        self.output.push_transfer(Transfer { command, tag, offset_bytes: 0, length_bytes: bytes });
        Handed::Out
    }

    /// What needs only credits: an I/O, or the next range of a command.
    fn push(&mut self, id: SlotId, subsystem: &Subsystem, pool: &mut IoPool, sink: &mut impl Sink) -> Handed {
        let Some(slot) = self.slots.find(id) else {
            self.pop(Lane::Push, id);
            return Handed::Out;
        };
        let reached = subsystem.reach_still(slot.command.namespace, slot.volume);
        if let Err(refusal) = reached
            && slot.parts_out == 0
        {
            sink.withdraw(slot.volume);
            self.pop(Lane::Push, id);
            self.refuse(id, refusal, pool);
            return Handed::Out;
        }
        follow(slot, sink);
        let Work::Ranges { .. } = slot.work else {
            let Work::Io(op) = slot.work else { return Handed::NoRoom };
            let (volume, lba, bytes) = (slot.volume, slot.lba, slot.bytes);
            if !sink.admit(volume, op, lba, bytes) {
                return Handed::NoCredits;
            }
            self.pop(Lane::Push, id);
            return self.hand_out(id, op, sink);
        };
        if slot.part == slot.parts {
            self.pop(Lane::Push, id);
            self.settle(id, pool);
            return Handed::Out;
        }
        let at = usize::from(slot.part) * RANGE_BYTES as usize;
        let range = slot.buffer.as_ref().and_then(|buffer| pool.bytes(buffer).get(at..)?.first_chunk::<16>());
        let [_, _, _, _, b0, b1, b2, b3, lba @ ..] = *range.unwrap_or(&[0; 16]);
        let (lba, blocks) = (u64::from_le_bytes(lba), u32::from_le_bytes([b0, b1, b2, b3]));
        let fits = reached.and_then(|namespace| {
            let fits = lba.checked_add(blocks.into()).is_some_and(|end| end <= namespace.blocks);
            if fits { Ok(()) } else { Err(StatusCode::LBA_OUT_OF_RANGE.into()) }
        });
        if let Err(refusal) = fits {
            // What was handed out goes on; the rest is not begun.
            (slot.part, slot.status) = (slot.parts, refusal.status);
            return Handed::Out;
        }
        if blocks == 0 {
            slot.part += 1;
            return Handed::Out;
        }
        (slot.lba, slot.blocks) = (Lba(lba), blocks);
        if !sink.admit(slot.volume, Op::Discard, Lba(lba), 0) {
            return Handed::NoCredits;
        }
        slot.part += 1;
        self.hand_out(id, Op::Discard, sink)
    }

    /// Hands out what has all that it needs.
    fn submit(
        &mut self,
        id: SlotId,
        subsystem: &Subsystem,
        pool: &mut IoPool,
        sink: &mut impl Sink,
    ) -> Handed {
        self.pop(Lane::Prompt, id);
        let asked = self.slots.find(id).map(|slot| (slot.command.namespace, slot.volume));
        if let Some(Err(refusal)) = asked.map(|(number, volume)| subsystem.reach_still(number, volume)) {
            self.refuse(id, refusal, pool);
            return Handed::Out;
        }
        match self.slots.find(id).map(|slot| (slot.work, slot.volume)) {
            Some((Work::Io(op), _)) => self.hand_out(id, op, sink),
            Some((Work::Ranges { .. }, volume)) => {
                self.enqueue(Lane::Push, id, volume);
                Handed::Out
            }
            Some((Work::Admin, _)) | None => Handed::Out,
        }
    }

    fn hand_out(&mut self, id: SlotId, op: Op, sink: &mut impl Sink) -> Handed {
        let Some(slot) = self.slots.find(id) else { return Handed::Out };
        let trace = follow(slot, sink);
        let buffer = if op.has_buffer() { slot.buffer.take() } else { None };
        slot.parts_out += 1;
        self.outstanding += 1;
        let (volume, lba, blocks) = (slot.volume, slot.lba, slot.blocks);
        let received_ns = slot.received_ns;
        match op {
            Op::Read => {
                self.usage.reads += 1;
                self.usage.read_bytes += u64::from(slot.bytes);
            }
            Op::Write { .. } => {
                self.usage.writes += 1;
                self.usage.written_bytes += u64::from(slot.bytes);
            }
            _ => {}
        }
        sink.submit(Io { volume, op, lba, blocks, tag: id.tag(), trace, buffer }, received_ns);
        Handed::Out
    }

    /// Memory for the payload of one command.
    fn alloc(&mut self, bytes: usize, pool: &mut IoPool) -> Result<IoBuffer, Handed> {
        if self.held_bytes + bytes > BYTES_MAX {
            return Err(Handed::NoRoom);
        }
        let buffer = pool.alloc(bytes).ok_or(Handed::NoMemory)?;
        self.held_bytes += buffer.capacity();
        Ok(buffer)
    }

    fn give_back(&mut self, buffer: Option<IoBuffer>, pool: &mut IoPool) {
        if let Some(buffer) = buffer {
            self.held_bytes = self.held_bytes.saturating_sub(buffer.capacity());
            pool.free(buffer);
        }
    }

    /// Nothing is handed out or said any more, but for the last words.
    fn is_over(&self) -> bool {
        self.is_aborted || matches!(self.over, Some(QueueError::Fatal(_) | QueueError::Terminated(_)))
    }
}

/// Has it decided whether a command is followed, once.
fn follow(slot: &mut Slot, sink: &mut impl Sink) -> TraceId {
    if let Some(trace) = slot.trace {
        return trace;
    }
    let op = match slot.work {
        Work::Io(op) => op,
        Work::Ranges { .. } => Op::Discard,
        Work::Admin => return TraceId(0),
    };
    let Slot { volume, lba, bytes, received_ns, .. } = *slot;
    let trace = sink.follow(&Follow { volume, op, lba, bytes, received_ns });
    slot.trace = Some(trace);
    trace
}
