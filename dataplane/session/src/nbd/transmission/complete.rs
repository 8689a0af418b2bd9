//! Answers of the volume, turned into replies.

use block::{Done, Extent, Status};
use frame::{IoBuffer, IoPool};
use wire::nbd::transmission::{AllocationFlags, Chunk, Descriptor, ErrorCode, SimpleReply};

use super::{Lane, Transmission, UnknownTag};
use crate::nbd::handshake::{ALLOCATION_CONTEXT, CHANGED_CONTEXT};
use crate::nbd::output::Body;
use crate::nbd::request::{Kind, Refusal, SlotId};

impl Transmission {
    /// Takes the answer to an I/O.
    pub fn complete(&mut self, done: Done<IoBuffer>, pool: &mut IoPool) -> Result<(), UnknownTag> {
        let Done { tag, status, zeroes, buffer, .. } = done;
        let (id, part) = SlotId::from_tag(tag);
        let slot = self.slots.find(id).filter(|slot| slot.parts_out > 0);
        let (Some(slot), false) = (slot, self.is_aborted) else {
            self.give_back(buffer, pool);
            self.outstanding -= u32::from(self.is_aborted && self.outstanding > 0);
            return if self.is_aborted { Ok(()) } else { Err(UnknownTag { tag }) };
        };
        slot.parts_out -= 1;
        self.outstanding -= 1;
        self.fills -= u32::from(matches!(slot.kind, Kind::Fill { .. }));
        self.has_moved = true;
        let refusal = refusal_of(status, slot.kind);
        if let Some(Refusal { error, .. }) = refusal
            && slot.error == ErrorCode::OK
        {
            slot.error = error;
        }
        match slot.kind {
            Kind::Read => self.complete_read(id, part, status, zeroes, buffer, pool),
            Kind::Status { one } => self.complete_status(id, one, refusal, buffer, pool),
            kind => {
                if matches!(kind, Kind::Fill { .. }) && refusal.is_some() {
                    // The rest is not begun.
                    slot.parts_left = 0;
                }
                self.give_back(buffer, pool);
                self.settle(id, refusal);
            }
        }
        Ok(())
    }

    /// "`NBD_CMD_READ`".
    fn complete_read(
        &mut self,
        id: SlotId,
        part: u16,
        status: Status,
        zeroes: bool,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        let shift = self.attach.export.block_size().shift();
        let structured = self.attach.structured;
        let Some(slot) = self.slots.find(id) else { return self.give_back(buffer, pool) };
        let (offset_bytes, bytes) = slot.part(part);
        let cookie = slot.cookie;
        let is_whole = buffer.as_ref().is_some_and(|buffer| buffer.len() == bytes as usize);
        if status.is_ok() && !is_whole && slot.error == ErrorCode::OK {
            slot.error = ErrorCode::IO;
        }
        let failed = !status.is_ok() || !is_whole;
        if failed {
            // What was not handed out need not be read any more.
            slot.parts_left = 0;
        }
        let error = slot.error;
        let ends = slot.is_settled().then_some(id);
        if !structured && slot.is_cut() {
            return self.complete_gathered(id, part, buffer, pool);
        }
        match (structured, failed) {
            (true, true) => {
                // "An offset, which MUST lie within the original offset and length of the request".
                let at = match status {
                    Status::MediaError { lba, .. } | Status::Corrupt { lba, .. } => lba.0 << shift,
                    _ => 0,
                };
                let last = offset_bytes + u64::from(bytes) - 1;
                let offset_bytes = at.clamp(offset_bytes, last);
                self.give_back(buffer, pool);
                self.output.push_chunk(
                    Chunk::ErrorOffset { error, offset_bytes },
                    cookie,
                    Body::Nothing,
                    ends,
                );
            }
            (true, false) if zeroes => {
                self.give_back(buffer, pool);
                let hole = Chunk::OffsetHole { offset_bytes, hole_bytes: bytes };
                self.output.push_chunk(hole, cookie, Body::Nothing, ends);
            }
            (true, false) => {
                let body = buffer.map_or(Body::Nothing, Body::Payload);
                self.output.push_chunk(Chunk::OffsetData { offset_bytes }, cookie, body, ends);
            }
            (false, true) => {
                self.give_back(buffer, pool);
                self.output.push_simple(SimpleReply { error, cookie }, Body::Nothing, ends);
            }
            (false, false) => {
                let body = buffer.map_or(Body::Nothing, Body::Payload);
                self.output.push_simple(SimpleReply { error, cookie }, body, ends);
            }
        }
    }

    /// "Simple replies": "If an error occurs, [...] it MUST NOT send any payload for this request", so the
    /// reply waits for all parts.
    fn complete_gathered(&mut self, id: SlotId, part: u16, buffer: Option<IoBuffer>, pool: &mut IoPool) {
        if let Some(buffer) = buffer
            && let Err(buffer) = self.gather.put(id, part, buffer)
        {
            self.give_back(Some(buffer), pool);
        }
        let Some(slot) = self.slots.find(id).filter(|slot| slot.is_settled()) else { return };
        let (error, cookie) = (slot.error, slot.cookie);
        let reply = SimpleReply { error, cookie };
        if error != ErrorCode::OK {
            self.held_bytes -= self.gather.held_bytes();
            self.gather.finish().for_each(|buffer| pool.free(buffer));
            return self.output.push_simple(reply, Body::Nothing, Some(id));
        }
        self.output.push_simple(reply, Body::Nothing, None);
        let mut parts = self.gather.finish().peekable();
        while let Some(buffer) = parts.next() {
            self.output.push_payload(buffer, parts.peek().is_none().then_some(id));
        }
    }

    /// "`NBD_CMD_BLOCK_STATUS`".
    fn complete_status(
        &mut self,
        id: SlotId,
        one: bool,
        refusal: Option<Refusal>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        let mut records = match (buffer, refusal) {
            (Some(records), None) => records,
            (buffer, refusal) => {
                self.give_back(buffer, pool);
                let lost = Refusal { error: ErrorCode::IO, why: "the volume gave no extents" };
                return self.refuse(id, refusal.unwrap_or(lost));
            }
        };
        let Some(slot) = self.slots.find(id) else { return self.give_back(Some(records), pool) };
        let (cookie, length_bytes) = (slot.cookie, slot.length_bytes);
        let shift = self.attach.export.block_size().shift();
        let changed = self.attach.changed;
        let flags = if changed { CHANGE_FLAGS } else { ALLOCATION_FLAGS };
        let used_bytes = describe(pool.bytes_mut(&mut records), length_bytes, shift, one, flags);
        records.set_len(used_bytes);
        let chunk =
            Chunk::BlockStatus { context: if changed { CHANGED_CONTEXT } else { ALLOCATION_CONTEXT } };
        self.output.push_chunk(chunk, cookie, Body::Payload(records), Some(id));
    }

    /// Answers what has no payload, once all of it is done.
    fn settle(&mut self, id: SlotId, refusal: Option<Refusal>) {
        let Some(slot) = self.slots.find(id).filter(|slot| slot.is_settled()) else { return };
        let reply = SimpleReply { error: ErrorCode::OK, cookie: slot.cookie };
        if slot.error != ErrorCode::OK {
            let why = refusal.map_or("a part of the request failed", |refusal| refusal.why);
            let refusal = Refusal { error: slot.error, why };
            return self.refuse(id, refusal);
        }
        if std::mem::take(&mut slot.flush_after) {
            slot.parts_left = 1;
            return self.enqueue(Lane::Flush, id, 0, None);
        }
        // "MAY use either a simple reply or a structured reply to all other requests"; this one is shorter.
        self.output.push_simple(reply, Body::Nothing, Some(id));
    }
}

/// What is said of a record that is not allocated, and of one that is.
const ALLOCATION_FLAGS: [AllocationFlags; 2] = [AllocationFlags::ALL, AllocationFlags::NONE];
/// Of one that did not change, and of one that did.
const CHANGE_FLAGS: [AllocationFlags; 2] = [AllocationFlags::NONE, AllocationFlags::HOLE];

/// Turns the records of a volume into descriptors, in place; returns how many bytes of them there are.
///
/// "If the client used the NBD_CMD_FLAG_REQ_ONE flag, each chunk contains exactly one descriptor where the
/// length of the descriptor MUST NOT be greater than the length of the request". Here no answer is longer
/// than what was asked.
fn describe(
    records: &mut [u8],
    length_bytes: u32,
    shift: u32,
    one: bool,
    flags: [AllocationFlags; 2],
) -> usize {
    let mut left_bytes = length_bytes;
    let mut used = 0;
    let (records, _) = records.as_chunks_mut::<{ Extent::BYTES }>();
    for record in records.iter_mut() {
        let Extent { blocks, allocated } = Extent::from_octets(*record);
        let length_bytes = (u64::from(blocks) << shift).min(u64::from(left_bytes)) as u32;
        if length_bytes == 0 || (one && used == 1) {
            break;
        }
        *record = Descriptor { length_bytes, flags: flags[usize::from(allocated)] }.octets();
        left_bytes -= length_bytes;
        used += 1;
    }
    // "a server MAY always safely report a status of 0 for any block".
    if let (0, Some(first)) = (used, records.first_mut()) {
        *first = Descriptor { length_bytes, flags: flags[1] }.octets();
        used = 1;
    }
    used * Descriptor::BYTES
}

/// "Error values".
fn refusal_of(status: Status, kind: Kind) -> Option<Refusal> {
    let writes = kind.is_write();
    let (error, why) = match status {
        Status::Ok => return None,
        Status::OutOfRange if writes => (ErrorCode::NOSPC, "the range ends beyond the volume"),
        Status::OutOfRange => (ErrorCode::INVAL, "the range ends beyond the volume"),
        Status::NoSpace => (ErrorCode::NOSPC, "the volume has no free page"),
        Status::ReadOnly => (ErrorCode::PERM, "the volume is read-only"),
        // "If the client receives an NBD_ESHUTDOWN error it MUST initiate a soft disconnect": it finds the
        // new owner.
        Status::Fenced => (ErrorCode::SHUTDOWN, "another owner took the volume over"),
        Status::Aborted => (ErrorCode::SHUTDOWN, "the request was taken back"),
        Status::MediaError { .. } => (ErrorCode::IO, "the medium failed"),
        Status::Corrupt { .. } => (ErrorCode::IO, "the data on the medium is damaged"),
        Status::Broken => (ErrorCode::IO, "the volume's log or map failed"),
        Status::CompareFailed { .. } => (ErrorCode::IO, "the data differs"),
        Status::Busy => (ErrorCode::IO, "too many requests are under way"),
        Status::Invalid => (ErrorCode::INVAL, "the volume refused the request"),
    };
    Some(Refusal { error, why })
}
