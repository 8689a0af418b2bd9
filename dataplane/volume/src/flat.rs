//! A volume that is one file of plain bytes: for media without a past (memory, null), where a map and a log would cost and
//! give nothing.
//!
//! Each request becomes one request to the medium, at the same offset. Requests that overlap keep their order because such
//! media carry out what they are given at once, in its order.

use std::collections::VecDeque;

use block::{
    Act, BlockSize, Done, Extent, Fault, FileId, Finished, IO_BYTES_MAX, Io, Op, Piece, Request, Status,
    VolumeId,
};
use frame::{IoBuffer, IoPool};

const FILE: FileId = FileId(0);

/// A flat volume. It is driven like [`crate::Volume`], without steps.
#[derive(Debug)]
pub struct FlatVolume {
    id: VolumeId,
    size: BlockSize,
    blocks: u64,
    slots: Vec<Option<Io<IoBuffer>>>,
    free: Vec<u32>,
    /// The host's bytes of a compare.
    expected: Vec<Option<IoBuffer>>,
    requests: VecDeque<Request<IoBuffer>>,
    dones: VecDeque<Done<IoBuffer>>,
    spare_pieces: Vec<Vec<Piece>>,
}

impl FlatVolume {
    /// A volume of `blocks`, with at most `in_flight_max` requests under way.
    pub fn new(id: VolumeId, size: BlockSize, blocks: u64, in_flight_max: u32) -> FlatVolume {
        FlatVolume {
            id,
            size,
            blocks,
            slots: (0..in_flight_max).map(|_| None).collect(),
            free: (0..in_flight_max).rev().collect(),
            expected: (0..in_flight_max).map(|_| None).collect(),
            requests: VecDeque::new(),
            dones: VecDeque::new(),
            spare_pieces: Vec::new(),
        }
    }

    /// Size of a block.
    pub fn block_size(&self) -> BlockSize {
        self.size
    }

    /// Size in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How many more requests fit.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Takes a request. Its answer comes out of [`FlatVolume::finished`], perhaps at once.
    pub fn process(&mut self, mut io: Io<IoBuffer>, pool: &mut IoPool) {
        let bytes = io.buffer.as_ref().map_or(0, IoBuffer::len);
        let status = match io.admit(self.size, self.blocks, bytes) {
            Err(status) => status,
            Ok(()) if self.free.is_empty() => Status::Busy,
            Ok(()) => Status::Ok,
        };
        if !status.is_ok() {
            return self.dones.push_back(io.done(status));
        }
        let offset = io.lba.0 << self.size.shift();
        let length = u64::from(io.blocks) << self.size.shift();
        let act = match io.op {
            Op::Read => Act::Read,
            Op::Write { .. } => Act::Write,
            Op::Compare => return self.compare(io, offset, pool),
            Op::Flush => Act::Sync(FILE),
            Op::Discard | Op::WriteZeroes { .. } => Act::Punch { file: FILE, offset, bytes: length },
            Op::Extents => return self.extents(io, pool),
        };
        let buffer = if matches!(act, Act::Read | Act::Write) { io.buffer.take() } else { None };
        self.ask(io, act, buffer, offset);
    }

    fn ask(&mut self, io: Io<IoBuffer>, act: Act, buffer: Option<IoBuffer>, offset: u64) {
        let mut pieces = self.spare_pieces.pop().unwrap_or_default();
        if let Some(buffer) = &buffer {
            pieces.push(Piece { file: FILE, offset, at: 0, bytes: buffer.len().min(IO_BYTES_MAX) as u32 });
        }
        let Some(slot) = self.free.pop() else { return self.dones.push_back(io.done(Status::Busy)) };
        self.slots[slot as usize] = Some(io);
        self.requests.push_back(Request { volume: self.id, token: u64::from(slot), act, buffer, pieces });
    }

    fn compare(&mut self, mut io: Io<IoBuffer>, offset: u64, pool: &mut IoPool) {
        let expected = io.buffer.take();
        let scratch = expected.as_ref().and_then(|buffer| pool.alloc(buffer.len()));
        let Some(&slot) = self.free.last() else { return };
        if scratch.is_none() {
            io.buffer = expected;
            return self.dones.push_back(io.done(Status::Busy));
        }
        self.expected[slot as usize] = expected;
        self.ask(io, Act::Read, scratch, offset);
    }

    /// All blocks have their place.
    fn extents(&mut self, mut io: Io<IoBuffer>, pool: &mut IoPool) {
        if let Some(buffer) = io.buffer.as_mut() {
            let bytes = pool.bytes_mut(buffer);
            bytes.fill(0);
            let all = Extent { blocks: io.blocks, allocated: true };
            bytes[..Extent::BYTES].copy_from_slice(&all.octets());
        }
        self.dones.push_back(io.done(Status::Ok));
    }

    /// The next request for the medium.
    pub fn dispatch(&mut self) -> Option<Request<IoBuffer>> {
        self.requests.pop_front()
    }

    /// Puts a request back that the medium had no room for.
    pub fn put_back(&mut self, request: Request<IoBuffer>) {
        self.requests.push_front(request);
    }

    /// The next answer.
    pub fn finished(&mut self) -> Option<Done<IoBuffer>> {
        self.dones.pop_front()
    }

    /// Takes an answer of the medium.
    pub fn complete(&mut self, mut finished: Finished<IoBuffer>, pool: &mut IoPool) {
        let slot = finished.token as usize;
        finished.pieces.clear();
        self.spare_pieces.push(finished.pieces);
        let Some(mut io) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.free.push(slot as u32);
        let mut status = match finished.result {
            Ok(()) => Status::Ok,
            Err(Fault::NoSpace) => Status::NoSpace,
            Err(_) => Status::MediaError {
                lba: io.lba,
                extent: block::ExtentId(0),
                offset: io.lba.0 << self.size.shift(),
            },
        };
        io.buffer = finished.buffer.or(io.buffer);
        if let Some(expected) = self.expected[slot].take()
            && let Some(there) = io.buffer.take()
        {
            let pairs = pool.bytes(&there).iter().zip(pool.bytes(&expected));
            let differs = pairs.enumerate().find(|(_, (there, wanted))| there != wanted);
            if let (Some((offset, _)), Status::Ok) = (differs, status) {
                status = Status::CompareFailed { offset: offset as u32 };
            }
            pool.free(there);
            io.buffer = Some(expected);
        }
        self.dones.push_back(io.done(status));
    }
}

#[cfg(test)]
mod tests;
