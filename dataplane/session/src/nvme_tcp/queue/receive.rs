//! What the host sends: commands, and the payload that it was asked for.

use frame::IoPool;
use wire::nvme::{Command, StatusCode};
use wire::nvme_tcp::{Data, Fatal, FatalStatus, Pdu};

use super::{BYTES_MAX, Input, Lane, Queue, QueueError};
use crate::nvme_tcp::admin::Refusal;
use crate::nvme_tcp::link::Event;

/// Offsets of fields of H2CData (TCP figure 26).
mod at {
    pub const FLAGS: u32 = 1;
    pub const COMMAND: u32 = 8;
    pub const TAG: u32 = 10;
}

impl Queue {
    /// Takes what arrived; returns how many bytes of it were consumed. Keep the rest: it comes first next
    /// time, after answers were sent or memory was freed. Call [`Queue::step`] afterwards.
    ///
    /// A host that violates the transport is told so with the bytes that [`Queue::dispatch_bytes`] shows, and
    /// nothing else happens any more: [`Queue::over`] says why.
    pub fn process_bytes(&mut self, bytes: &[u8], pool: &mut IoPool, now_ns: u64) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.input == Input::Ended {
                at = bytes.len();
                break;
            }
            if !self.begin(pool, now_ns) {
                break;
            }
            let step = self.link.take(&bytes[at..]).and_then(|(took, event)| {
                at += took;
                self.process_event(event, pool, now_ns)
            });
            if let Err(fatal) = step {
                self.terminate(fatal, pool);
            } else if self.link.take_end() {
                self.process_end(true, pool);
            }
        }
        self.moved_bytes += at as u64;
        at
    }

    fn process_event(&mut self, event: Event<'_>, pool: &mut IoPool, now_ns: u64) -> Result<(), Fatal> {
        match (self.input, event) {
            (_, Event::More) => {}
            (Input::Unit, Event::Unit(Pdu::Command(command), data_bytes)) => {
                self.input = Input::Command { command, data_bytes };
                self.begin(pool, now_ns);
            }
            (Input::Unit, Event::Unit(Pdu::Data(_, data), _)) => self.process_transfer(&data)?,
            (Input::Unit, Event::Unit(Pdu::Termination(_, fatal), _)) => {
                self.drop_payload(pool);
                (self.over, self.input) = (Some(QueueError::Terminated(fatal)), Input::Ended);
            }
            (Input::Capsule { id, filled }, Event::Data(piece)) => {
                if let Some(buffer) = self.slots.find(id).and_then(|slot| slot.buffer.as_mut()) {
                    pool.bytes_mut(buffer)[filled..filled + piece.len()].copy_from_slice(piece);
                }
                self.input = Input::Capsule { id, filled: filled + piece.len() };
            }
            (Input::Transfer { id }, Event::Data(piece)) => {
                if let Some(slot) = self.slots.find(id)
                    && let (Some(filled), Some(buffer)) = (&mut slot.receiving, &mut slot.buffer)
                {
                    let from = *filled as usize;
                    pool.bytes_mut(buffer)[from..from + piece.len()].copy_from_slice(piece);
                    *filled += piece.len() as u32;
                }
            }
            (_, Event::End(sound)) => self.process_end(sound, pool),
            // TCP clause 3.1: ICReq comes once, and before everything else.
            (_, Event::Unit(..) | Event::Data(_)) => return Err(Fatal::bare(FatalStatus::SEQUENCE)),
        }
        Ok(())
    }

    /// Gives the command that was received a place, and memory for the payload that follows. False when there
    /// is none yet.
    pub(super) fn begin(&mut self, pool: &mut IoPool, now_ns: u64) -> bool {
        let Input::Command { command, data_bytes } = self.input else { return true };
        let bytes = data_bytes as usize;
        if self.slots.is_full() || self.held_bytes + bytes > BYTES_MAX {
            return false;
        }
        let mut buffer = None;
        if bytes > 0 {
            let Some(empty) = pool.alloc(bytes) else { return false };
            self.held_bytes += empty.capacity();
            buffer = Some(empty);
        }
        self.place(command, data_bytes, buffer, now_ns);
        true
    }

    fn place(&mut self, command: Command, data_bytes: u32, buffer: Option<frame::IoBuffer>, now_ns: u64) {
        let conflict = self.slots.has(command.id);
        let Some(id) = self.slots.take(command, now_ns) else { return };
        let Some(slot) = self.slots.find(id) else { return };
        (slot.bytes, slot.buffer) = (data_bytes, buffer);
        if conflict {
            slot.status = StatusCode::COMMAND_ID_CONFLICT;
        }
        self.head = self.head.map(|head| (head + 1) % self.entries);
        if data_bytes == 0 {
            self.fresh.push_back(id);
            self.input = Input::Unit;
        } else {
            self.input = Input::Capsule { id, filled: 0 };
        }
    }

    /// TCP clause 3.3.2.2: data that was asked for, in order and within what was asked for.
    fn process_transfer(&mut self, data: &Data) -> Result<(), Fatal> {
        let (id, slot) = self.slots.receiving(data.tag).ok_or(Fatal::field(at::TAG))?;
        if slot.command.id != data.command {
            return Err(Fatal::field(at::COMMAND));
        }
        // INVARIANT: `Pdu::parse` has refused a sum beyond 32 bits.
        let end_bytes = data.offset_bytes.saturating_add(data.length_bytes);
        if Some(data.offset_bytes) != slot.receiving || end_bytes > slot.bytes {
            return Err(Fatal::bare(FatalStatus::DATA_OUT_OF_RANGE));
        }
        // LAST_PDU: "the last H2CData PDU in response to the R2T".
        if data.is_last != (end_bytes == slot.bytes) {
            return Err(Fatal::field(at::FLAGS));
        }
        self.input = Input::Transfer { id };
        Ok(())
    }

    /// All data of a unit was received. TCP clause 3.3.1.1: if its digest is wrong, the command fails and the
    /// connection goes on.
    fn process_end(&mut self, sound: bool, pool: &mut IoPool) {
        let (Input::Capsule { id, .. } | Input::Transfer { id }) = self.input else { return };
        let is_capsule = matches!(self.input, Input::Capsule { .. });
        self.input = Input::Unit;
        let Some(slot) = self.slots.find(id) else { return };
        if !sound && slot.status == StatusCode::SUCCESS {
            slot.status = StatusCode::TRANSIENT_TRANSPORT_ERROR;
        }
        if is_capsule {
            return self.fresh.push_back(id);
        }
        if slot.receiving != Some(slot.bytes) {
            return;
        }
        slot.receiving = None;
        let (status, volume) = (slot.status, slot.volume);
        self.transfers -= 1;
        if status == StatusCode::SUCCESS {
            self.enqueue(Lane::Prompt, id, volume);
        } else {
            self.refuse(id, Refusal::passing(status), pool);
        }
    }

    /// TCP clause 3.5: the host is told what it did, and nothing else any more.
    fn terminate(&mut self, fatal: Fatal, pool: &mut IoPool) {
        self.drop_payload(pool);
        let header = self.link.header();
        self.output.terminate(fatal, header).for_each(|buffer| pool.free(buffer));
        (self.over, self.input) = (Some(QueueError::Fatal(fatal)), Input::Ended);
    }
}
