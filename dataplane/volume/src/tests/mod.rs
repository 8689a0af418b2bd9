//! Volumes over a disk that forgets: the bed that the tests share, and first of all that it works.

mod basics;
mod crashes;
mod discards;
mod faults;
mod files;
mod model;
mod storms;

use block::{BlockSize, Done, Epoch, Io, Lba, Op, Request, Status, Tag, TraceId, VolumeId};
use frame::{IoBuffer, IoPool, IoSlab, IoSlabConfig};

use crate::crash::{CrashDisk, CrashMedia};
use crate::{Config, OpenError, Recovery, Volume, open, store};

/// Small enough that everything happens soon: segments, extents, splits, checkpoints.
pub fn small() -> Config {
    Config {
        in_flight_max: 16,
        leaf_cache_leaves: 4,
        delta_entries_max: 1 << 20,
        log_segment_bytes: 32 << 10,
        log_segments_max: 4,
        extent_bytes: 512 << 10,
        expand_bytes: 64 << 10,
        free_threshold_bytes: 16 << 10,
        reserve_bytes: 16 << 10,
        reuse_pages_max: 64,
        unsynced_bytes_max: 1 << 30,
        grant: None,
    }
}

/// An owner of a volume: the machine, its medium, its memory.
pub struct Bed {
    pub volume: Option<Volume>,
    pub media: CrashMedia,
    pub pool: IoPool,
    pub now_ns: u64,
    next_tag: u64,
    pub recovery: Recovery,
}

/// An answer with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub tag: u64,
    pub status: Status,
    pub zeroes: bool,
    pub bytes: Vec<u8>,
}

/// Memory for one volume.
pub fn pool() -> IoPool {
    let slab = IoSlab::new(IoSlabConfig { regions: 8, hugepages: false }).expect("maps");
    IoPool::new(&slab, 8)
}

/// A fresh disk with a volume of `bytes`.
pub fn disk(bytes: u64, size: BlockSize) -> CrashDisk {
    let disk = CrashDisk::new();
    store::create_in(&disk, [7; 16], bytes, size).expect("a disk without limits");
    disk
}

impl Bed {
    pub fn open(disk: &CrashDisk, config: Config) -> Result<Bed, OpenError> {
        Bed::with_pool(disk, config, pool())
    }

    /// As [`Bed::open`], with memory that was used before.
    pub fn with_pool(disk: &CrashDisk, config: Config, pool: IoPool) -> Result<Bed, OpenError> {
        let (volume, recovery) = open(disk, VolumeId(1), config)?;
        let media = CrashMedia::new(disk);
        Ok(Bed { volume: Some(volume), media, pool, now_ns: 1, next_tag: 0, recovery })
    }

    pub fn new(disk: &CrashDisk) -> Bed {
        Bed::open(disk, small()).expect("the volume opens")
    }

    pub fn volume(&mut self) -> &mut Volume {
        self.volume.as_mut().expect("open")
    }

    /// Hands a request in; `bytes` is payload, or the length of a read as zeros.
    pub fn submit(&mut self, op: Op, lba: u64, blocks: u32, bytes: Option<&[u8]>) -> u64 {
        let buffer = bytes.map(|bytes| {
            let mut buffer = self.pool.alloc(bytes.len()).expect("there is memory");
            self.pool.bytes_mut(&mut buffer).copy_from_slice(bytes);
            buffer
        });
        self.next_tag += 1;
        let tag = Tag(self.next_tag);
        let io = Io { volume: VolumeId(1), op, lba: Lba(lba), blocks, tag, trace: TraceId(0), buffer };
        let (pool, now_ns) = (&mut self.pool, self.now_ns);
        self.volume.as_mut().expect("open").process(io, pool, now_ns);
        tag.0
    }

    pub fn step(&mut self) {
        self.volume.as_mut().expect("open").step(&mut self.pool, self.now_ns);
    }

    pub fn next_request(&mut self) -> Option<Request<IoBuffer>> {
        self.volume().dispatch()
    }

    /// Carries one request out and passes the answer back.
    pub fn carry_out(&mut self, request: Request<IoBuffer>) {
        let finished = self.media.carry_out(request, &mut self.pool);
        self.volume.as_mut().expect("open").complete(finished, &mut self.pool, self.now_ns);
    }

    pub fn answers(&mut self) -> Vec<Answer> {
        let mut out = Vec::new();
        while let Some(Done { tag, status, zeroes, buffer, .. }) = self.volume().finished() {
            let bytes = buffer.as_ref().map(|buffer| self.pool.bytes(buffer).to_vec()).unwrap_or_default();
            if let Some(buffer) = buffer {
                self.pool.free(buffer);
            }
            out.push(Answer { tag: tag.0, status, zeroes, bytes });
        }
        out
    }

    /// Goes on until nothing moves, as its worker does: a step after each answer, and without one only where the
    /// volume says that it wants it. The clock stands still.
    pub fn settle(&mut self) -> Vec<Answer> {
        let mut out = Vec::new();
        loop {
            self.step();
            match self.next_request() {
                Some(request) => self.carry_out(request),
                None if self.volume().wants_step() => {}
                None => break,
            }
            out.extend(self.answers());
        }
        out.extend(self.answers());
        out
    }

    /// One request from beginning to end.
    pub fn run(&mut self, op: Op, lba: u64, blocks: u32, bytes: Option<&[u8]>) -> Answer {
        let tag = self.submit(op, lba, blocks, bytes);
        let answers = self.settle();
        answers.into_iter().find(|answer| answer.tag == tag).unwrap_or_else(|| panic!("no answer to {op:?}"))
    }

    /// One request until it is answered; what else the volume wants to do is left.
    pub fn run_only(&mut self, op: Op, lba: u64, blocks: u32, bytes: Option<&[u8]>) -> Answer {
        let tag = self.submit(op, lba, blocks, bytes);
        for _ in 0..10_000 {
            if let Some(answer) = self.answers().into_iter().find(|answer| answer.tag == tag) {
                return answer;
            }
            match self.next_request() {
                Some(request) => self.carry_out(request),
                None => self.step(),
            }
        }
        panic!("no answer to {op:?}");
    }

    pub fn write(&mut self, lba: u64, bytes: &[u8]) -> Status {
        let blocks = bytes.len() as u32 / self.volume().block_size().bytes();
        self.run(Op::Write { fua: false }, lba, blocks, Some(bytes)).status
    }

    pub fn read(&mut self, lba: u64, blocks: u32) -> Answer {
        let bytes = vec![0xee; (blocks * self.volume().block_size().bytes()) as usize];
        self.run(Op::Read, lba, blocks, Some(&bytes))
    }

    pub fn flush(&mut self) -> Status {
        self.run(Op::Flush, 0, 0, None).status
    }

    /// Asks for a checkpoint and waits for it. What was discarded may have brought one about already.
    pub fn checkpoint(&mut self) {
        let before = self.volume().stats();
        self.volume().checkpoint();
        let answers = self.settle();
        assert!(answers.is_empty());
        let after = self.volume().stats();
        let written = u64::from(before.delta_entries > 0);
        assert!(after.checkpoints >= before.checkpoints + written, "it was written");
        assert_eq!(after.delta_entries, 0, "and has all that was changed");
    }

    /// The owner dies: memory comes back, nothing is written.
    pub fn kill(mut self) -> IoPool {
        let mut volume = self.volume.take().expect("open");
        while let Some(request) = volume.dispatch() {
            if let Some(buffer) = request.buffer {
                self.pool.free(buffer);
            }
        }
        volume.abandon(&mut self.pool);
        self.pool
    }
}

/// A page, or several, of one value.
pub fn filled(bytes: usize, value: u8) -> Vec<u8> {
    vec![value; bytes]
}

#[test]
fn a_volume_can_be_made_opened_and_killed() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let bed = Bed::new(&disk);
    assert_eq!((bed.recovery.epoch, bed.recovery.sealed_epoch), (Epoch(2), Epoch(1)));
    bed.kill();
}
