//! Payload memory of block I/O: page-aligned buffers that a kernel reads and writes directly.
//!
//! One [`IoSlab`] maps all payload memory of a process in regions of 1 MiB, so that a driver can register it
//! once (io_uring fixed buffers). Each worker has its own [`IoPool`]: a region belongs to one pool and is cut
//! into buffers of one size class; a region whose buffers are all free can be cut into another class, so
//! that small requests never take the room of large ones for good. Within a region the lowest free buffer
//! goes out first: what was used last is used again, while it is in the cache.
//!
//! An [`IoBuffer`] is a handle that owns its bytes: neither `Copy` nor silently leaked, like a frame. It may be
//! freed into any pool of its slab; a foreign one passes it to the owner through the slab, which is the only
//! step with a lock.
//!
//! Invariants: a handle exists at most once; its bytes lie inside its region; a region is in exactly one of
//! the slab's free list, a pool, or the slab's list of orphans (regions whose pool went away while buffers
//! were out).

mod pool;

pub use pool::{IoPool, IoShare};

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::slab::{Mapping, free_tag, take_tag};
use crate::{Backing, LEAKED, SlabError};
use pool::Region;

/// Bytes of a region and of the largest buffer.
pub const IO_REGION_BYTES: usize = 1 << 20;
/// Bytes of a page: the smallest buffer and the alignment of every one.
pub const IO_PAGE_BYTES: usize = 4096;
/// Size classes, in bytes.
pub const IO_CLASS_BYTES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
/// Most regions of a slab: 64 GiB.
pub const IO_REGIONS_MAX: u32 = 1 << 16;

const PAGE_MASK: u32 = 0xff;
const TAG_SHIFT: u32 = 24;

/// How much payload memory to map, and of which kind.
#[derive(Clone, Copy, Debug)]
pub struct IoSlabConfig {
    /// Regions of [`IO_REGION_BYTES`].
    pub regions: u32,
    /// Try 2 MiB pages first. Without it, or when there are none, ordinary pages.
    pub hugepages: bool,
}

/// All payload memory of a process. Shared by the pools of its workers.
#[derive(Debug)]
pub struct IoSlab {
    mapping: Mapping,
    regions: u32,
    tag: u8,
    /// The pool that owns each region.
    owners: Box<[AtomicU32]>,
    next_pool: AtomicU32,
    shared: Mutex<Shared>,
    /// How many buffers wait in `Shared::strays`, so that nobody locks to find none.
    strays: AtomicUsize,
}

/// What pools trade. Locked when a pool needs or gives back a region, or frees another's buffer.
#[derive(Debug, Default)]
struct Shared {
    free: Vec<u32>,
    orphans: Vec<Region>,
    /// Handles freed by a pool that does not own them.
    strays: Vec<u32>,
}

// SAFETY: the memory is reached only through buffers, and a buffer exists at most once.
unsafe impl Send for IoSlab {}
// SAFETY: as above; `&IoSlab` alone gives no access to buffer memory, and what pools trade is behind a lock.
unsafe impl Sync for IoSlab {}

impl IoSlab {
    /// Maps the slab.
    pub fn new(config: IoSlabConfig) -> Result<Arc<IoSlab>, SlabError> {
        let IoSlabConfig { regions, hugepages } = config;
        if regions == 0 || regions > IO_REGIONS_MAX {
            return Err(SlabError::Regions { regions });
        }
        let bytes = regions as usize * IO_REGION_BYTES;
        let mapping = Mapping::new(bytes, hugepages).map_err(|source| SlabError::Map { bytes, source })?;
        Ok(Arc::new(IoSlab {
            mapping,
            regions,
            tag: take_tag().ok_or(SlabError::Tags)?,
            owners: (0..regions).map(|_| AtomicU32::new(0)).collect(),
            next_pool: AtomicU32::new(1),
            shared: Mutex::new(Shared { free: (0..regions).rev().collect(), ..Shared::default() }),
            strays: AtomicUsize::new(0),
        }))
    }

    /// What the slab was mapped from.
    pub fn backing(&self) -> &Backing {
        &self.mapping.backing
    }

    /// Regions of [`IO_REGION_BYTES`] in the slab.
    pub fn regions(&self) -> u32 {
        self.regions
    }

    /// All payload memory, to register with a kernel: address and length in bytes. What
    /// [`IoBuffer::offset`] says counts from here.
    pub fn memory(&self) -> (NonNull<u8>, usize) {
        (self.mapping.base, self.regions as usize * IO_REGION_BYTES)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self, region: u32) -> u32 {
        self.owners[region as usize].load(Ordering::Acquire)
    }
}

impl Drop for IoSlab {
    fn drop(&mut self) {
        let shared = self.shared();
        // A buffer that is still out there keeps the tag, so that it can never reach another slab.
        let home = shared.free.len() == self.regions as usize;
        drop(shared);
        if home {
            free_tag(self.tag);
        }
    }
}

/// The owner of a run of payload bytes: 8 bits of slab tag, 16 of region, 8 of page in the region.
///
/// Give it back with [`IoPool::free`]. It is deliberately neither `Copy` nor `Clone`.
#[derive(Debug)]
#[must_use = "a buffer must be sent on or given back to a pool"]
pub struct IoBuffer {
    handle: u32,
    len: u32,
    capacity: u32,
}

impl IoBuffer {
    /// Bytes in use.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True when no byte is in use.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that there is room for: those of the size class.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Sets how many bytes are in use; those that come into view hold whatever the buffer held. False, and
    /// no change, when there is no room for them.
    #[inline]
    pub fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.capacity();
        if fits {
            self.len = len as u32;
        }
        fits
    }

    /// Where the first byte lies in [`IoSlab::memory`]. A multiple of [`IO_PAGE_BYTES`].
    #[inline(always)]
    pub fn offset(&self) -> usize {
        self.region() as usize * IO_REGION_BYTES + self.page() as usize * IO_PAGE_BYTES
    }

    #[inline(always)]
    fn region(&self) -> u32 {
        (self.handle & ((1 << TAG_SHIFT) - 1)) >> 8
    }

    #[inline(always)]
    fn page(&self) -> u32 {
        self.handle & PAGE_MASK
    }

    #[inline(always)]
    fn tag(&self) -> u8 {
        (self.handle >> TAG_SHIFT) as u8
    }

    #[allow(clippy::mem_forget)] // ownership continues in the number
    fn into_handle(self) -> u32 {
        let handle = self.handle;
        std::mem::forget(self);
        handle
    }
}

impl Drop for IoBuffer {
    fn drop(&mut self) {
        LEAKED.fetch_add(1, Ordering::Relaxed);
        debug_assert!(std::thread::panicking(), "buffer {:#x} dropped instead of freed", self.handle);
    }
}

#[cfg(test)]
mod tests;
