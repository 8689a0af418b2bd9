//! Requests in, I/Os out; answers in, replies out.
//!
//! A request's way: `process_bytes` finds it sound, gives it a slot, copies its payload into buffers and
//! puts it into a lane; `step` hands its parts to the volume as credits and memory allow; `complete` turns
//! the answers into replies; `dispatch_bytes` shows them, and `sent` frees buffers and, at the last byte,
//! the slot.
//!
//! "Ordering of messages and writes": replies leave as the answers come. A flush covers what was answered
//! before; it needs nothing that is still here, so it passes whatever waits for credits.
//!
//! Why nothing waits for ever: reads wait for memory while holding none; writes that hold memory are in
//! another lane and go on meanwhile; a client that does not read or goes away is ended by `expire`.
//!
//! Invariants: as many requests as slots, as much payload as `bytes_max`; beyond that no input is taken.
//! Every I/O handed out is answered once before [`Transmission::is_finished`], whatever the client does.

mod complete;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use block::{Io, Lba, Op, Tag, TraceId};
use frame::{IoBuffer, IoPool};
use thiserror::Error;
use wire::nbd::transmission::{Command, Request};
use wire::nbd::{PAYLOAD_BYTES_MAX, ParseError};

use super::gather::Gather;
use super::output::{Output, Slices};
use super::request::{Kind, Refusal, Rules, SlotId, Slots};
use super::{Attach, Limits};
use crate::{Follow, Sink};

/// Room for the extents of one answer: 512 records.
const EXTENTS_BYTES: usize = 4096;

/// Why a session ended without the client's leave. The connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TransmissionError {
    /// Something else than a request stands where one must.
    #[error("no request where one must stand: {0}")]
    Request(#[from] ParseError),
    /// "either the server or the client MAY initiate a hard disconnect if a payload length of either a
    /// request or a reply would be large enough to be deemed a denial of service attack".
    #[error("a write of {length_bytes} bytes; at most {PAYLOAD_BYTES_MAX} are taken")]
    PayloadBytes {
        /// What the client announced.
        length_bytes: u32,
    },
    /// A message half sent or half read for too long.
    #[error("the client left a message half sent or half read for {stalled_ns} ns")]
    Stalled {
        /// For how long.
        stalled_ns: u64,
    },
}

/// An answer to an I/O that is not under way. Its buffer was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no I/O with tag {tag:#x} is under way; the volume answered twice or mixed sessions up", tag = .tag.0)]
pub struct UnknownTag {
    /// What the answer carried.
    pub tag: Tag,
}

/// What the requests that were not handed out wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing, or the session's own answers.
    Nothing,
    /// [`Sink::admit`] refused.
    Credits,
    /// The pool is exhausted.
    Memory,
}

/// Where in the client's bytes we are.
#[derive(Debug)]
enum Input {
    Header { octets: [u8; Request::BYTES], have: usize },
    Payload { id: SlotId, part: u16, buffer: Option<IoBuffer>, filled: usize },
    Skip { id: SlotId, left_bytes: u32, refusal: Refusal },
    Ended,
}

const HEADER: Input = Input::Header { octets: [0; Request::BYTES], have: 0 };

/// Queues of what is ready to be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Needs neither credits nor memory.
    Flush,
    /// Needs memory.
    Status,
    /// Needs memory and credits.
    Read,
    /// Needs credits. Holds memory.
    Write,
    /// Zeroes that are written out: needs memory and credits.
    Fill,
}

const LANES: [Lane; 5] = [Lane::Flush, Lane::Status, Lane::Read, Lane::Write, Lane::Fill];
/// Parts with zeroes that are under way at once, of all requests together, and so what one step fills: that takes the
/// time of the worker's other sessions.
const FILLS_MAX: u32 = 2;

impl Lane {
    /// What is in it needs credits.
    fn is_paid(self) -> bool {
        matches!(self, Lane::Read | Lane::Write | Lane::Fill)
    }
}

/// A request, or the part of a write, that is ready.
#[derive(Debug)]
struct Ready {
    id: SlotId,
    /// The next part.
    part: u16,
    /// Place among all lanes.
    order: u64,
    buffer: Option<IoBuffer>,
}

/// What became of the first of a lane.
enum Handed {
    Out,
    NoCredits,
    NoMemory,
    /// The connection holds as much as it may.
    NoRoom,
}

/// When something last moved between us and the client.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    moved_bytes: u64,
    since_ns: u64,
}

/// The worker's side of a connection.
#[derive(Debug)]
pub struct Transmission {
    attach: Attach,
    limits: Limits,
    rules: Rules,
    input: Input,
    slots: Slots,
    lanes: [VecDeque<Ready>; LANES.len()],
    order: u64,
    gather: Gather,
    output: Output,
    /// Payload memory that is held for this client.
    held_bytes: usize,
    /// I/Os handed out and not answered.
    outstanding: u32,
    /// Of these, the parts that carry zeroes.
    fills: u32,
    moved_bytes: u64,
    mark: Mark,
    is_aborted: bool,
    /// Since the last step answers came, or something was sent.
    has_moved: bool,
    /// Followed requests whose answer was sent.
    ended: Vec<TraceId>,
}

impl Transmission {
    /// Goes on where the handshake ended. Everything that is needed per request is allocated here.
    pub fn new(attach: Attach, limits: Limits) -> Self {
        let requests = usize::from(limits.requests_max.max(1));
        let limits = Limits { bytes_max: limits.bytes_max.max(PAYLOAD_BYTES_MAX), ..limits };
        let parts = requests + super::request::PARTS_MAX;
        Self {
            rules: Rules::new(&attach),
            attach,
            input: HEADER,
            slots: Slots::new(limits.requests_max),
            lanes: std::array::from_fn(|_| VecDeque::with_capacity(parts)),
            order: 0,
            gather: Gather::default(),
            output: Output::new(parts),
            held_bytes: 0,
            outstanding: 0,
            fills: 0,
            moved_bytes: 0,
            mark: Mark::default(),
            is_aborted: false,
            has_moved: false,
            ended: Vec::with_capacity(requests),
            limits,
        }
    }

    /// What was chosen in the handshake.
    pub fn attach(&self) -> &Attach {
        &self.attach
    }

    /// I/Os handed out and not answered. With none, the session can move to another worker.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Payload memory held for the client.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The connection is to be closed and the session can be dropped: the client disconnected and all its
    /// requests were answered, or the session was aborted, and no buffer is out.
    pub fn is_finished(&self) -> bool {
        let drained = matches!(self.input, Input::Ended) && self.slots.live() == 0;
        self.outstanding == 0 && (self.is_aborted || drained)
    }

    /// Reading from the socket makes sense: more input could be taken, if the pool has room for it.
    pub fn wants_input(&self) -> bool {
        match &self.input {
            Input::Header { .. } => !self.slots.is_full(),
            Input::Payload { buffer: None, .. } => self.has_room(block::IO_BYTES_MAX),
            Input::Payload { .. } | Input::Skip { .. } => true,
            Input::Ended => false,
        }
    }

    /// Takes what arrived; returns how many bytes of it were consumed. Keep the rest: it comes first next
    /// time, after answers were sent or memory was freed. Call [`Self::step`] afterwards.
    pub fn process_bytes(
        &mut self,
        bytes: &[u8],
        pool: &mut IoPool,
        now_ns: u64,
    ) -> Result<usize, TransmissionError> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let took = match self.input {
                Input::Header { .. } => match self.process_header(rest, now_ns) {
                    Ok(took) => took,
                    Err(error) => {
                        self.input = Input::Ended;
                        return Err(error);
                    }
                },
                Input::Payload { .. } => self.process_payload(rest, pool),
                Input::Skip { .. } => self.process_skip(rest),
                // "A client MUST NOT send anything to the server after sending an NBD_CMD_DISC command."
                Input::Ended => rest.len(),
            };
            if took == 0 {
                break;
            }
            at += took;
        }
        self.moved_bytes += at as u64;
        Ok(at)
    }

    /// Hands out what credits and memory allow, in the order in which it came. Call it after every other call
    /// that could have changed that, and when credits or memory came back.
    pub fn step(&mut self, pool: &mut IoPool, sink: &mut impl Sink) -> Wait {
        self.has_moved = false;
        let mut open = [true; LANES.len()];
        let mut wait = Wait::Nothing;
        while let Some(lane) = self.next_lane(&open) {
            match self.hand_out(lane, pool, sink) {
                Handed::Out => {}
                Handed::NoCredits => {
                    LANES
                        .into_iter()
                        .filter(|lane| lane.is_paid())
                        .for_each(|lane| open[lane as usize] = false);
                    wait = Wait::Credits;
                }
                Handed::NoMemory => {
                    open[lane as usize] = false;
                    wait = if wait == Wait::Nothing { Wait::Memory } else { wait };
                }
                Handed::NoRoom => open[lane as usize] = false,
            }
        }
        wait
    }

    /// A step may hand something out that waited for answers, or for what was sent: nothing else announces that.
    pub fn wants_step(&self) -> bool {
        self.has_moved && self.lanes.iter().any(|lane| !lane.is_empty())
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

    /// Followed requests whose answer was sent since this was asked last.
    pub fn ended(&mut self) -> impl Iterator<Item = TraceId> {
        self.ended.drain(..)
    }

    /// Ends the session when the client left a message half sent or half read for longer than
    /// [`Limits::stall_ns`]. Call it now and then: the clock begins with the first call that finds it so.
    pub fn expire(&mut self, now_ns: u64) -> Result<(), TransmissionError> {
        let half_sent = match &self.input {
            Input::Header { have, .. } => *have > 0 && !self.slots.is_full(),
            Input::Payload { buffer, .. } => buffer.is_some(),
            Input::Skip { .. } => true,
            Input::Ended => false,
        };
        let half_read = !self.output.is_empty();
        if !(half_sent || half_read) || self.mark.moved_bytes != self.moved_bytes || self.mark.since_ns == 0 {
            self.mark = Mark { moved_bytes: self.moved_bytes, since_ns: now_ns };
            return Ok(());
        }
        let stalled_ns = now_ns.saturating_sub(self.mark.since_ns);
        if stalled_ns <= self.limits.stall_ns {
            Ok(())
        } else {
            Err(TransmissionError::Stalled { stalled_ns })
        }
    }

    /// Says that it is us who do not read: [`Self::expire`] begins to count anew.
    pub fn excuse(&mut self, now_ns: u64) {
        self.mark = Mark { moved_bytes: self.moved_bytes, since_ns: now_ns };
    }

    /// Gives up: nothing more is taken, handed out or said, and all payload that is here is freed. What was
    /// handed out still comes back through [`Self::complete`].
    pub fn abort(&mut self, pool: &mut IoPool) {
        self.is_aborted = true;
        if let Input::Payload { buffer, .. } = std::mem::replace(&mut self.input, Input::Ended) {
            self.give_back(buffer, pool);
        }
        for lane in LANES {
            while let Some(ready) = self.lanes[lane as usize].pop_front() {
                self.give_back(ready.buffer, pool);
            }
        }
        self.held_bytes -= self.gather.held_bytes();
        self.gather.finish().for_each(|buffer| pool.free(buffer));
        while let Some((buffer, _)) = self.output.pop() {
            self.give_back(buffer, pool);
        }
    }

    fn process_header(&mut self, bytes: &[u8], now_ns: u64) -> Result<usize, TransmissionError> {
        let Input::Header { octets, have } = &mut self.input else { return Ok(0) };
        if self.slots.is_full() {
            return Ok(0);
        }
        let take = (Request::BYTES - *have).min(bytes.len());
        octets[*have..*have + take].copy_from_slice(&bytes[..take]);
        *have += take;
        if *have == Request::BYTES {
            let request = Request::parse(octets)?;
            self.input = HEADER;
            self.process_request(&request, now_ns)?;
        }
        Ok(take)
    }

    fn process_request(&mut self, request: &Request, now_ns: u64) -> Result<(), TransmissionError> {
        let Request { command, length_bytes, .. } = *request;
        if command == Command::DISC {
            // "The server MUST handle all outstanding requests": they go on; nothing is read any more.
            self.input = Input::Ended;
            return Ok(());
        }
        if command == Command::WRITE && length_bytes > PAYLOAD_BYTES_MAX {
            return Err(TransmissionError::PayloadBytes { length_bytes });
        }
        let checked = self.rules.check(request);
        let kind = checked.unwrap_or(Kind::Flush);
        // There is a slot: `process_header` takes nothing while there is none.
        let Some(id) = self.slots.take(request, kind, now_ns) else { return Ok(()) };
        match (checked, kind) {
            (Err(refusal), _) if command == Command::WRITE && length_bytes > 0 => {
                self.input = Input::Skip { id, left_bytes: length_bytes, refusal };
            }
            (Err(refusal), _) => {
                self.output.push_error(self.attach.structured, request.cookie, refusal, id);
            }
            (Ok(_), Kind::Write { .. }) => {
                self.input = Input::Payload { id, part: 0, buffer: None, filled: 0 };
            }
            (Ok(_), Kind::Flush) => self.enqueue(Lane::Flush, id, 0, None),
            (Ok(_), Kind::Status { .. }) => self.enqueue(Lane::Status, id, 0, None),
            (Ok(_), Kind::Read) => self.enqueue(Lane::Read, id, 0, None),
            (Ok(_), Kind::Fill { .. }) => self.enqueue(Lane::Fill, id, 0, None),
            (Ok(_), Kind::Trim { .. } | Kind::WriteZeroes { .. }) => self.enqueue(Lane::Write, id, 0, None),
        }
        Ok(())
    }

    fn process_payload(&mut self, bytes: &[u8], pool: &mut IoPool) -> usize {
        let Input::Payload { id, part, buffer, filled } = &mut self.input else { return 0 };
        let (id, this) = (*id, *part);
        let Some(slot) = self.slots.find(id) else { return 0 };
        let (part_bytes, last) = (slot.part(this).1 as usize, slot.part(this + 1).1 == 0);
        if buffer.is_none() {
            if self.held_bytes + part_bytes > self.limits.bytes_max as usize {
                return 0;
            }
            let Some(empty) = pool.alloc(part_bytes) else { return 0 };
            self.held_bytes += empty.capacity();
            *buffer = Some(empty);
        }
        let take = (part_bytes - *filled).min(bytes.len());
        if let Some(buffer) = buffer {
            pool.bytes_mut(buffer)[*filled..*filled + take].copy_from_slice(&bytes[..take]);
        }
        *filled += take;
        if *filled == part_bytes {
            let full = buffer.take();
            (*part, *filled) = (this + 1, 0);
            if last {
                self.input = HEADER;
            }
            self.enqueue(Lane::Write, id, this, full);
        }
        take
    }

    fn process_skip(&mut self, bytes: &[u8]) -> usize {
        let Input::Skip { id, left_bytes, refusal } = &mut self.input else { return 0 };
        let take = (*left_bytes as usize).min(bytes.len());
        *left_bytes -= take as u32;
        let (id, refusal) = (*id, *refusal);
        if *left_bytes == 0 {
            self.input = HEADER;
            self.refuse(id, refusal);
        }
        take
    }

    fn enqueue(&mut self, lane: Lane, id: SlotId, part: u16, buffer: Option<IoBuffer>) {
        self.order += 1;
        self.lanes[lane as usize].push_back(Ready { id, part, order: self.order, buffer });
    }

    /// The open lane whose first came first.
    fn next_lane(&self, open: &[bool; LANES.len()]) -> Option<Lane> {
        let first = |lane: Lane| self.lanes[lane as usize].front().map(|ready| (ready.order, lane));
        let firsts = LANES.into_iter().filter(|&lane| open[lane as usize]).filter_map(first);
        firsts.min_by_key(|(order, _)| *order).map(|(_, lane)| lane)
    }

    fn hand_out(&mut self, lane: Lane, pool: &mut IoPool, sink: &mut impl Sink) -> Handed {
        let Some(ready) = self.lanes[lane as usize].front_mut() else { return Handed::NoRoom };
        let (id, part) = (ready.id, ready.part);
        let Some(slot) = self.slots.find(id).filter(|slot| slot.parts_left > 0) else {
            // Of a read, or of zeroes, a part has failed: the rest of it is not needed.
            let ready = self.lanes[lane as usize].pop_front();
            self.give_back(ready.and_then(|ready| ready.buffer), pool);
            return Handed::Out;
        };
        if lane == Lane::Fill && self.fills >= FILLS_MAX {
            return Handed::NoRoom;
        }
        let (offset_bytes, bytes) = slot.part(part);
        let op = if lane == Lane::Flush { Op::Flush } else { slot.op() };
        let (received_ns, shift) = (slot.received_ns, self.attach.export.block_size().shift());
        let (volume, lba) = (self.attach.export.volume(), Lba(offset_bytes >> shift));
        let trace = *slot.trace.get_or_insert_with(|| {
            sink.follow(&Follow { volume, op, lba, bytes: slot.length_bytes, received_ns })
        });
        let mut buffer = match lane {
            Lane::Flush => None,
            Lane::Write => ready.buffer.take(),
            Lane::Read | Lane::Status | Lane::Fill => match self.room_for(lane, id, part, pool) {
                Ok(buffer) => Some(buffer),
                Err(why) => return why,
            },
        };
        if lane.is_paid() && !sink.admit(volume, op, lba, bytes) {
            self.put_back(lane, id, part, buffer, pool);
            return Handed::NoCredits;
        }
        if let (Lane::Fill, Some(buffer)) = (lane, &mut buffer) {
            pool.bytes_mut(buffer).fill(0);
        }
        let Some(slot) = self.slots.find(id) else { return Handed::NoRoom };
        slot.parts_left -= 1;
        slot.parts_out += 1;
        self.outstanding += 1;
        self.fills += u32::from(lane == Lane::Fill);
        match self.lanes[lane as usize].front_mut() {
            Some(ready) if matches!(lane, Lane::Read | Lane::Fill) && slot.parts_left > 0 => ready.part += 1,
            _ => drop(self.lanes[lane as usize].pop_front()),
        }
        let (lba, blocks) = if op == Op::Flush { (Lba(0), 0) } else { (lba, bytes >> shift) };
        sink.submit(Io { volume, op, lba, blocks, tag: id.tag(part), trace, buffer }, received_ns);
        Handed::Out
    }

    /// A buffer for what the volume is to fill, or for zeroes.
    fn room_for(&mut self, lane: Lane, id: SlotId, part: u16, pool: &mut IoPool) -> Result<IoBuffer, Handed> {
        let Some(slot) = self.slots.find(id) else { return Err(Handed::NoRoom) };
        if lane == Lane::Read && slot.is_cut() && !self.attach.structured {
            let length_bytes = slot.length_bytes as usize;
            if part == 0 && self.held_bytes + length_bytes > self.limits.bytes_max as usize {
                return Err(Handed::NoRoom);
            }
            let is_new = self.gather.is_empty();
            if !self.gather.reserve(id, slot, pool) {
                return Err(if is_new { Handed::NoMemory } else { Handed::NoRoom });
            }
            if is_new {
                self.held_bytes += self.gather.held_bytes();
            }
            return self.gather.take(part).ok_or(Handed::NoRoom);
        }
        let bytes = if lane == Lane::Status { EXTENTS_BYTES } else { slot.part(part).1 as usize };
        if self.held_bytes + bytes > self.limits.bytes_max as usize {
            return Err(Handed::NoRoom);
        }
        let buffer = pool.alloc(bytes).ok_or(Handed::NoMemory)?;
        self.held_bytes += buffer.capacity();
        Ok(buffer)
    }

    /// There were no credits: writes keep their payload, reads hold nothing while they wait.
    fn put_back(&mut self, lane: Lane, id: SlotId, part: u16, buffer: Option<IoBuffer>, pool: &mut IoPool) {
        if lane == Lane::Write {
            if let Some(ready) = self.lanes[lane as usize].front_mut() {
                ready.buffer = buffer;
            }
            return;
        }
        let Some(buffer) = buffer else { return };
        match self.gather.put(id, part, buffer) {
            Err(buffer) => self.give_back(Some(buffer), pool),
            Ok(()) if part == 0 => {
                self.held_bytes -= self.gather.held_bytes();
                self.gather.finish().for_each(|buffer| pool.free(buffer));
            }
            Ok(()) => {}
        }
    }

    fn refuse(&mut self, id: SlotId, refusal: Refusal) {
        let Some(slot) = self.slots.find(id) else { return };
        self.output.push_error(self.attach.structured, slot.cookie, refusal, id);
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.held_bytes + bytes <= self.limits.bytes_max as usize
    }

    fn give_back(&mut self, buffer: Option<IoBuffer>, pool: &mut IoPool) {
        if let Some(buffer) = buffer {
            self.held_bytes = self.held_bytes.saturating_sub(buffer.capacity());
            pool.free(buffer);
        }
    }
}
