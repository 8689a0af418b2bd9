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
/// Looks that one which is dropped has to come to rest; a medium that never answers keeps it for 100 s.
const REST_ROUNDS: usize = 10_000;
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

/// See the module's documentation. Dropped before it is closed, it comes to rest and leaves what a crash would leave.
pub struct Offline(Option<Machine>);

struct Machine {
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
        Ok(Offline(Some(Machine {
            volume,
            media,
            pool: IoPool::new(&slab, slab.regions()),
            finished: Vec::new(),
            under_way: 0,
            under_way_bytes: 0,
            failed: None,
            began: Instant::now(),
        })))
    }

    /// Writes `bytes`, whole blocks, from `offset_bytes` on. Returns when all of it is begun.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), OfflineError> {
        self.machine()?.write(offset_bytes, bytes)
    }

    /// Has `bytes` from `offset_bytes` on, whole blocks, read as zeros.
    pub fn zero(&mut self, offset_bytes: u64, bytes: u64) -> Result<(), OfflineError> {
        self.machine()?.zero(offset_bytes, bytes)
    }

    /// Returns when all that was written is durable.
    pub fn flush(&mut self) -> Result<(), OfflineError> {
        self.machine()?.flush()
    }

    /// Makes all of it durable and leaves the volume as one that was closed in order.
    pub fn close(mut self) -> Result<(), OfflineError> {
        let machine = self.machine()?;
        machine.flush()?;
        machine.volume.checkpoint();
        while !machine.volume.is_settled() {
            machine.turn()?;
        }
        match machine.volume.health() {
            Health::Sound => Ok(()),
            Health::Broken => Err(OfflineError::Failed(Status::Broken)),
            Health::Fenced => Err(OfflineError::Failed(Status::Fenced)),
        }
    }

    fn machine(&mut self) -> Result<&mut Machine, OfflineError> {
        // INVARIANT: it is there until this is dropped.
        self.0.as_mut().ok_or(OfflineError::Failed(Status::Aborted))
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        let Some(mut machine) = self.0.take() else { return };
        for _ in 0..REST_ROUNDS {
            if machine.volume.is_settled() {
                break;
            }
            machine.work();
        }
        let at_rest = machine.volume.is_settled();
        let Machine { volume, mut pool, .. } = machine;
        if at_rest {
            volume.close(&mut pool);
        } else {
            // Its buffers are the medium's, for ever as it seems.
            Box::leak(Box::new(volume));
        }
    }
}

impl Machine {
    fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), OfflineError> {
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

    fn zero(&mut self, offset_bytes: u64, bytes: u64) -> Result<(), OfflineError> {
        while self.volume.room() == 0 {
            self.turn()?;
        }
        self.begin(Op::WriteZeroes { fua: false }, offset_bytes, bytes, None);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), OfflineError> {
        self.rest()?;
        self.begin(Op::Flush, 0, 0, None);
        self.rest()
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

    /// The same; says if anything failed.
    fn turn(&mut self) -> Result<(), OfflineError> {
        self.work();
        self.failed.map_or(Ok(()), |status| Err(OfflineError::Failed(status)))
    }

    /// Does what can be done; sleeps if that was nothing.
    fn work(&mut self) {
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
        if !moved && !self.volume.wants_step() {
            self.sleep();
        }
    }

    fn sleep(&mut self) {
        if let Some(fd) = self.media.wait_fd() {
            // However it ends, the medium is looked at.
            let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&LOOK));
        }
        self.media.clear_wait();
    }
}
