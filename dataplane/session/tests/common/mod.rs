//! A volume in memory and a sink that records, for tests and fuzzing.
#![allow(dead_code)] // each user takes a part of it

use block::{BlockSize, Done, Extent, Io, Lba, Op, Status, VolumeId};
use frame::{IoBuffer, IoPool, IoSlab, IoSlabConfig};
use session::Sink;

/// Bytes of a page: what is allocated or not.
pub const PAGE: usize = 4096;

/// A pool of `regions` MiB.
pub fn pool(regions: u32) -> IoPool {
    let slab = IoSlab::new(IoSlabConfig { regions, hugepages: false }).expect("maps");
    IoPool::new(&slab, regions)
}

/// A volume in memory: reads of what was never written are zeroes.
pub struct Image {
    pub bytes: Vec<u8>,
    pub allocated: Vec<bool>,
    pub block_size: BlockSize,
    pub flushes: u64,
    /// Answers I/Os that touch this block with this status.
    pub fault: Option<(Lba, Status)>,
}

impl Image {
    pub fn new(bytes: usize, block_size: BlockSize) -> Image {
        let allocated = vec![false; bytes.div_ceil(PAGE)];
        Image { bytes: vec![0; bytes], allocated, block_size, flushes: 0, fault: None }
    }

    pub fn blocks(&self) -> u64 {
        self.bytes.len() as u64 >> self.block_size.shift()
    }

    /// Carries out `io` at once.
    pub fn execute(&mut self, mut io: Io<IoBuffer>, pool: &mut IoPool) -> Done<IoBuffer> {
        let buffer_bytes = io.buffer.as_ref().map_or(0, IoBuffer::len);
        if let Err(status) = io.admit(self.block_size, self.blocks(), buffer_bytes) {
            return io.done(status);
        }
        let range = io.lba.0..io.lba.0 + u64::from(io.blocks);
        if let Some((lba, status)) = self.fault
            && (range.contains(&lba.0) || (io.op == Op::Flush && lba.0 == u64::MAX))
        {
            return io.done(status);
        }
        let shift = self.block_size.shift();
        let at = (range.start << shift) as usize..(range.end << shift) as usize;
        let pages = at.start / PAGE..at.end.div_ceil(PAGE);
        let mut zeroes = false;
        match (io.op, &mut io.buffer) {
            (Op::Read, Some(buffer)) => {
                pool.bytes_mut(buffer).copy_from_slice(&self.bytes[at]);
                zeroes = !self.allocated[pages].contains(&true);
            }
            (Op::Write { .. }, Some(buffer)) => {
                self.bytes[at].copy_from_slice(pool.bytes(buffer));
                self.allocated[pages].fill(true);
            }
            (Op::Extents, Some(buffer)) => self.extents(at.start, at.end, pool.bytes_mut(buffer)),
            (Op::WriteZeroes { deallocate: false, .. }, None) => {
                self.bytes[at].fill(0);
                self.allocated[pages].fill(true);
            }
            (Op::WriteZeroes { .. } | Op::Discard, None) => {
                self.bytes[at.clone()].fill(0);
                let whole = at.start.div_ceil(PAGE)..at.end / PAGE;
                self.allocated[whole.start.min(whole.end)..whole.end].fill(false);
            }
            (Op::Flush, None) => self.flushes += 1,
            (op, _) => unreachable!("a session never sends {op:?} like this"),
        }
        let mut done = io.done(Status::Ok);
        done.zeroes = zeroes;
        done
    }

    fn extents(&self, start: usize, end: usize, out: &mut [u8]) {
        out.fill(0);
        let mut at = start;
        for record in out.as_chunks_mut::<{ Extent::BYTES }>().0 {
            if at == end {
                break;
            }
            let allocated = self.allocated[at / PAGE];
            let mut to = at;
            while to < end && self.allocated[to / PAGE] == allocated {
                to = (to / PAGE * PAGE + PAGE).min(end);
            }
            let blocks = ((to - at) >> self.block_size.shift()) as u32;
            *record = Extent { blocks, allocated }.octets();
            at = to;
        }
    }
}

/// Takes I/Os, with credits for `credits` of them.
pub struct Recorder {
    pub credits: usize,
    pub ios: Vec<Io<IoBuffer>>,
    /// Every admission asked for: operation, block, bytes.
    pub asked: Vec<(Op, Lba, u32)>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { credits: usize::MAX, ios: Vec::new(), asked: Vec::new() }
    }
}

impl Sink for Recorder {
    fn admit(&mut self, _: VolumeId, op: Op, lba: Lba, bytes: u32) -> bool {
        self.asked.push((op, lba, bytes));
        let admitted = self.credits > 0;
        self.credits = self.credits.saturating_sub(1);
        admitted
    }

    fn submit(&mut self, io: Io<IoBuffer>, _received_ns: u64) {
        self.ios.push(io);
    }
}
