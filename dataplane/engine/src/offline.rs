//! A volume in files that no worker serves, written by one ordinary thread: for copies that arrive from elsewhere.
//!
//! The same machine over the same medium that a worker drives; here the caller's thread drives it, and sleeps while
//! the medium works. What is written counts only after [`Offline::close`].
//!
//! Invariants: memory is bounded, payload to a third of it; the first failure ends it.

use std::time::Instant;

use block::{Finished, IO_BYTES_MAX, Io, Lba, Op, Status, Tag, TraceId, VolumeId};
use frame::{IoBuffer, IoPool, IoSlab, IoSlabConfig, SlabError};
use media::{FileConfig, FileError, FileMedia, Media};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use volume::{Config, Health, HostDirectory, OpenError, Volume};

/// Memory: payload under way, and what the volume's log and map need.
const REGIONS: u32 = 24;
/// Payload under way, at most.
const UNDER_WAY_BYTES_MAX: usize = 8 << 20;
/// Longest sleep before the medium is looked at again.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// It has its medium for itself, so its number means nothing.
const ID: VolumeId = VolumeId(0);

/// Why a volume cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] SlabError),
    /// Its files cannot be reached.
    #[error(transparent)]
    Files(#[from] FileError),
    /// It refused something.
    #[error("the volume failed: {0}")]
    Failed(Status),
}

/// See the module's documentation. Dropping it waits for the medium, and the memory goes as a whole.
pub struct Offline {
    volume: Volume,
    media: FileMedia,
    pool: IoPool,
    finished: Vec<Finished<IoBuffer>>,
    under_way: u32,
    under_way_bytes: usize,
    failed: Option<Status>,
    began: Instant,
}

impl Offline {
    /// Opens the volume in `directory` under a grant (docs/decisions/044).
    pub fn open(directory: &HostDirectory, grant: Option<u64>) -> Result<Offline, OfflineError> {
        let slab = IoSlab::new(IoSlabConfig { regions: REGIONS, hugepages: false })?;
        let config = Config { grant, leaf_cache_leaves: 128, ..Config::default() };
        let (volume, _) = volume::open(directory, ID, config)?;
        let mut media = FileMedia::new(&slab, FileConfig::default())?;
        media.attach(ID, directory.path())?;
        Ok(Offline {
            volume,
            media,
            pool: IoPool::new(&slab, slab.regions()),
            finished: Vec::new(),
            under_way: 0,
            under_way_bytes: 0,
            failed: None,
            began: Instant::now(),
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.volume.blocks() << self.volume.block_size().shift()
    }

    /// Writes `bytes`, whole blocks, from `offset_bytes` on. Returns when all of it is begun.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), OfflineError> {
        let mut at = offset_bytes;
        for part in bytes.chunks(IO_BYTES_MAX) {
            let buffer = loop {
                let room = self.volume.room() > 0 && self.under_way_bytes < UNDER_WAY_BYTES_MAX;
                match if room { self.pool.alloc(part.len()) } else { None } {
                    Some(mut buffer) => {
                        self.pool.bytes_mut(&mut buffer).copy_from_slice(part);
                        break buffer;
                    }
                    None => self.turn()?,
                }
            };
            self.under_way_bytes += part.len();
            self.begin(Op::Write { fua: false }, at, part.len() as u64, Some(buffer));
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Has `bytes` from `offset_bytes` on, whole blocks, read as zeros.
    pub fn zero(&mut self, offset_bytes: u64, bytes: u64) -> Result<(), OfflineError> {
        while self.volume.room() == 0 {
            self.turn()?;
        }
        self.begin(Op::WriteZeroes { fua: false, deallocate: true }, offset_bytes, bytes, None);
        Ok(())
    }

    /// Returns when all that was written is durable.
    pub fn flush(&mut self) -> Result<(), OfflineError> {
        self.rest()?;
        self.begin(Op::Flush, 0, 0, None);
        self.rest()
    }

    /// Makes all of it durable and leaves the volume as one that was closed in order.
    pub fn close(mut self) -> Result<(), OfflineError> {
        self.flush()?;
        self.volume.checkpoint();
        while !self.volume.is_settled() {
            self.turn()?;
        }
        let Offline { volume, mut pool, .. } = self;
        volume.close(&mut pool);
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn begin(&mut self, op: Op, offset_bytes: u64, bytes: u64, buffer: Option<IoBuffer>) {
        let shift = self.volume.block_size().shift();
        let tag = Tag(buffer.as_ref().map_or(0, |buffer| buffer.len() as u64));
        let (lba, blocks) = (Lba(offset_bytes >> shift), (bytes >> shift) as u32);
        self.under_way += 1;
        let now_ns = self.now_ns();
        self.volume.process(
            Io { volume: ID, op, lba, blocks, tag, trace: TraceId(0), buffer },
            &mut self.pool,
            now_ns,
        );
    }

    /// Waits until everything is answered.
    fn rest(&mut self) -> Result<(), OfflineError> {
        while self.under_way > 0 {
            self.turn()?;
        }
        Ok(())
    }

    /// Does what can be done; sleeps if that was nothing.
    fn turn(&mut self) -> Result<(), OfflineError> {
        let now_ns = self.now_ns();
        self.volume.step(&mut self.pool, now_ns);
        let mut moved = false;
        while self.media.room() > 0
            && let Some(request) = self.volume.dispatch()
        {
            moved = true;
            if let Err(request) = self.media.submit(request, &self.pool) {
                self.volume.put_back(request);
                break;
            }
        }
        self.media.poll(&mut self.finished);
        for finished in self.finished.drain(..) {
            moved = true;
            self.volume.complete(finished, &mut self.pool, now_ns);
        }
        while let Some(done) = self.volume.finished() {
            moved = true;
            self.under_way -= 1;
            self.under_way_bytes -= done.tag.0 as usize;
            done.buffer.into_iter().for_each(|buffer| self.pool.free(buffer));
            if !done.status.is_ok() {
                self.failed.get_or_insert(done.status);
            }
        }
        if self.volume.health() != Health::Sound {
            self.failed.get_or_insert(Status::Broken);
        }
        if let Some(status) = self.failed {
            return Err(OfflineError::Failed(status));
        }
        if !moved && !self.volume.wants_step() {
            self.sleep();
        }
        Ok(())
    }

    fn sleep(&mut self) {
        if let Some(fd) = self.media.wait_fd() {
            // However it ends, the medium is looked at.
            let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&LOOK));
        }
        self.media.clear_wait();
    }
}
