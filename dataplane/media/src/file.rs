//! Files through io_uring: direct I/O where the file system has it, payload memory registered once, one
//! `io_uring_enter` per turn for everything that was submitted.
//!
//! A request becomes one entry per piece; it is answered when all have completed. Where a file system answers from memory,
//! opening a file and probing for a name are done at once, with a system call of about a microsecond: the probe is part
//! of the fence (decision D10) and must see what the file system says at that moment. Where it may ask somebody else
//! (NFS, FUSE) the ring does them too. Creating and removing files are rare and slow, so the ring does them, followed
//! by a sync of the directory; closing a file that is removed gives its room back, and may take as long.
//!
//! Volumes on different file systems share the ring (`device.rs`), so that one whose device does not answer keeps no other
//! from its own. What blocks in the kernel (fdatasync, fallocate, a device without room in its queue) takes a
//! thread of the ring's; there may be as many of them as entries.
//!
//! Invariants: an entry refers to memory that the slot owns until the entry has completed, also when the medium is
//! dropped; the kernel never has more entries than the completion queue holds.
//!
//! With one thread per worker the ring's own threads are the kernel's to place.

mod acts;
mod device;
mod open;

use std::collections::HashMap;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use block::{Act, Fault, FileId, Finished, Request, VolumeId};
use frame::{IoBuffer, IoPool, IoSlab};
use io_uring::IoUring;
use rustix::event::{EventfdFlags, eventfd};

use crate::Media;

use device::Devices;
pub use open::Notice;

/// Largest part of the slab that is registered as one buffer; the kernel takes at most 1 GiB.
const REGISTERED_BYTES: usize = 1 << 30;

/// Limits of a file medium.
#[derive(Clone, Copy, Debug)]
pub struct FileConfig {
    /// Entries under way at once, a power of two between 8 and 16384. More requests are handed back.
    pub in_flight_max: u32,
    /// Open files past the page cache where the file system can. Off only to compare.
    pub direct: bool,
}

impl Default for FileConfig {
    fn default() -> FileConfig {
        FileConfig { in_flight_max: 1024, direct: true }
    }
}

/// Why a file medium cannot be made or cannot take a volume.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Outside what the kernel takes.
    #[error("in_flight_max is {0}; it must be a power of two between 8 and 16384")]
    InFlight(u32),
    /// The kernel gives no ring.
    #[error(
        "cannot set up io_uring: {0}; check the sysctl kernel.io_uring_disabled and the locked-memory limit"
    )]
    Ring(std::io::Error),
    /// The directory cannot be opened.
    #[error("cannot open the volume's directory {path}: {source}")]
    Directory {
        /// The directory.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// One open file of a volume.
#[derive(Debug)]
struct Open {
    fd: OwnedFd,
}

/// One attached volume: its files as they are open, on their way from one medium to another or there.
#[derive(Debug)]
pub struct Attached {
    directory: OwnedFd,
    /// Number of the file system (`st_dev`).
    device: u64,
    /// Its file system answers from memory whether a name is there.
    answers_at_once: bool,
    /// By [`FileId`].
    files: Vec<Option<Open>>,
}

/// A request under way.
#[derive(Debug)]
struct Slot {
    request: Request<IoBuffer>,
    /// Place of its device.
    device: usize,
    /// Entries that the kernel has, or that wait for it.
    pending: u32,
    result: Result<(), Fault>,
    /// A path that an entry refers to, and where the kernel writes what it is.
    path: Option<CString>,
    statx: Option<Box<MaybeUninit<libc::statx>>>,
    /// A file just created, until its directory is synced.
    created: Option<OwnedFd>,
    /// A file that an entry closes.
    closing: Option<RawFd>,
}

/// Files through io_uring.
pub struct FileMedia {
    ring: IoUring,
    event: OwnedFd,
    slab: Arc<IoSlab>,
    registered: bool,
    config: FileConfig,
    volumes: HashMap<VolumeId, Attached>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    devices: Devices,
    ready: Vec<Finished<IoBuffer>>,
    notices: Vec<Notice>,
}

impl FileMedia {
    /// Sets up a ring whose reads and writes go to the buffers of `slab`.
    pub fn new(slab: &Arc<IoSlab>, config: FileConfig) -> Result<FileMedia, FileError> {
        let count = config.in_flight_max;
        if !count.is_power_of_two() || !(8..=16384).contains(&count) {
            return Err(FileError::InFlight(count));
        }
        let ring = IoUring::builder().build(count).map_err(FileError::Ring)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| FileError::Ring(errno.into()))?;
        ring.submitter().register_eventfd(event.as_raw_fd()).map_err(FileError::Ring)?;
        let mut media = FileMedia {
            ring,
            event,
            slab: Arc::clone(slab),
            registered: false,
            config,
            volumes: HashMap::new(),
            slots: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            devices: Devices::new(count),
            ready: Vec::with_capacity(count as usize),
            notices: Vec::new(),
        };
        media.register();
        // What the kernel allows otherwise (4 for each processor) is used up by one device that does not answer. Before
        // Linux 5.15 that cannot be changed.
        if let Err(error) = media.ring.submitter().register_iowq_max_workers(&mut [count, 0]) {
            media.notices.push(Notice::FewThreads(error.to_string()));
        }
        Ok(media)
    }

    /// Registers the slab's memory, or says why not: reads and writes then map their pages each time.
    fn register(&mut self) {
        let (base, bytes) = self.slab.memory();
        let parts: Vec<libc::iovec> = (0..bytes)
            .step_by(REGISTERED_BYTES)
            .map(|start| libc::iovec {
                iov_base: base.as_ptr().wrapping_add(start).cast(),
                iov_len: REGISTERED_BYTES.min(bytes - start),
            })
            .collect();
        // SAFETY: the memory is the slab's mapping, which lives as long as `self.slab`; the ring goes first.
        match unsafe { self.ring.submitter().register_buffers(&parts) } {
            Ok(()) => self.registered = true,
            Err(error) => self.notices.push(Notice::NotRegistered(error.to_string())),
        }
    }

    /// Takes the files of a directory in for a volume; no file is open yet.
    pub fn attach(&mut self, volume: VolumeId, path: &Path) -> Result<(), FileError> {
        self.take_over(volume, Attached::open(path)?);
        Ok(())
    }

    /// Closes the files of a volume that has nothing under way. False, and no change, when it has.
    pub fn detach(&mut self, volume: VolumeId) -> bool {
        let idle = self.is_idle(volume);
        if idle {
            self.remove(volume);
        }
        idle
    }

    fn remove(&mut self, volume: VolumeId) -> Option<Attached> {
        let attached = self.volumes.remove(&volume)?;
        self.devices.leave(attached.device);
        Some(attached)
    }

    /// Nothing of a volume is under way, and no answer waits to be taken.
    pub fn is_idle(&self, volume: VolumeId) -> bool {
        let slots = self.slots.iter().flatten();
        !slots.map(|slot| slot.request.volume).chain(self.ready.iter().map(|f| f.volume)).any(|v| v == volume)
    }

    /// Lets the files of an idle volume go, open as they are; `None` when it is not idle, or not here.
    pub fn hand_over(&mut self, volume: VolumeId) -> Option<Attached> {
        if self.is_idle(volume) { self.remove(volume) } else { None }
    }

    /// Takes what another medium let go, or what was opened for this one.
    pub fn take_over(&mut self, volume: VolumeId, files: Attached) {
        self.devices.join(files.device);
        self.volumes.insert(volume, files);
    }

    /// What an operator should know and has not been told yet.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn fd(&self, volume: VolumeId, file: FileId) -> Option<BorrowedFd<'_>> {
        Some(self.volumes.get(&volume)?.files.get(file.0 as usize)?.as_ref()?.fd.as_fd())
    }

    /// Ends an entry of a slot; the last one answers the request.
    fn end_entry(&mut self, index: u32) {
        let Some(slot) = self.slots[index as usize].as_mut() else { return };
        slot.pending -= 1;
        if slot.pending > 0 {
            return;
        }
        if let Some(slot) = self.slots[index as usize].take() {
            self.free.push(index);
            self.devices.slot_ended(slot.device);
            self.ready.push(slot.request.finished(slot.result));
        }
    }

    /// Waits for everything under way and hands the answers out: to be called before dropping the medium.
    pub fn drain(&mut self, out: &mut Vec<Finished<IoBuffer>>) {
        while self.in_flight() > self.ready.len() {
            self.push_backlog();
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // INVARIANT: entries are under way, and the ring is the only one to say when they end.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(_) => std::thread::yield_now(),
            }
            self.reap();
        }
        out.append(&mut self.ready);
    }
}

impl Media for FileMedia {
    fn submit(&mut self, request: Request<IoBuffer>, _pool: &IoPool) -> Result<(), Request<IoBuffer>> {
        if self.room() == 0 {
            return Err(request);
        }
        let Some(attached) = self.volumes.get(&request.volume) else {
            self.ready.push(request.finished(Err(Fault::Missing)));
            return Ok(());
        };
        let device = attached.device;
        let at_once = match request.act {
            Act::Open { file, name } if attached.answers_at_once => {
                Some(self.open(request.volume, file, name))
            }
            Act::Probe(name) if attached.answers_at_once => Some(attached.probe(name)),
            _ => None,
        };
        if let Some(result) = at_once {
            self.ready.push(request.finished(result));
            return Ok(());
        }
        match self.devices.take_slot(device) {
            Some(device) => self.begin(request, device),
            None => return Err(request),
        }
        Ok(())
    }

    fn room(&self) -> usize {
        self.free.len().saturating_sub(self.ready.len())
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.ready.len()
    }

    fn poll(&mut self, out: &mut Vec<Finished<IoBuffer>>) {
        if !self.devices.are_idle() {
            self.reap();
            self.push_backlog();
            if !self.ring.submission().is_empty() {
                // A failure here (EBUSY, EAGAIN, EINTR) leaves the entries in the ring for the next turn.
                let _again = self.ring.submit();
                self.reap();
            }
        }
        out.append(&mut self.ready);
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn clear_wait(&mut self) {
        // Empty is what it should be.
        let _empty = rustix::io::read(&self.event, &mut [0; 8]);
    }
}

impl Drop for FileMedia {
    fn drop(&mut self) {
        // The kernel may still write into buffers of the slab. What comes back has no pool to go to: dropping a
        // busy medium is the bug that the leak counter shows.
        let mut late = Vec::new();
        self.drain(&mut late);
    }
}

#[cfg(test)]
mod tests;
