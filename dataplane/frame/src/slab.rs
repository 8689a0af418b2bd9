//! The slab: one mapping that holds all chunks and their metadata, and the depot where pools trade.

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_queue::ArrayQueue;

use crate::{CHUNK_BYTES, INDEX_MASK, JUMBO_BYTES, Meta, TAG_SHIFT};

/// Handles that move between a pool and the depot at once.
pub(crate) const STACK: usize = 64;
pub(crate) type Stack = arrayvec::ArrayVec<u32, STACK>;

/// How much memory to map, and of which kind.
#[derive(Clone, Copy, Debug)]
pub struct SlabConfig {
    /// Small chunks of [`CHUNK_BYTES`].
    pub frames: u32,
    /// Jumbo chunks of [`JUMBO_BYTES`], for super-segments.
    pub jumbo_frames: u32,
    /// Try 2 MiB pages first. Without it, or when there are none, ordinary pages.
    pub hugepages: bool,
}

/// What the slab was mapped from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// 2 MiB pages, gone with the process.
    Huge2M,
    /// Ordinary pages, and why: to be said aloud.
    Normal {
        /// What to do to get hugepages.
        why: String,
    },
}

/// Why a slab cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SlabError {
    /// Nothing to map, or more than 24 bits of index.
    #[error("{frames} frames and {jumbo_frames} jumbo frames: the sum must be between 1 and {}", INDEX_MASK)]
    Count {
        /// Small chunks asked for.
        frames: u32,
        /// Jumbo chunks asked for.
        jumbo_frames: u32,
    },
    /// The kernel gave no memory.
    #[error("cannot map {bytes} bytes for frames: {source}; lower [frames] count or free memory")]
    Map {
        /// Size of the mapping.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// 256 slabs live in this process.
    #[error("256 slabs are in use in this process")]
    Tags,
}

/// All packet memory of a process. Shared by the pools of its workers.
#[derive(Debug)]
pub struct Slab {
    base: NonNull<u8>,
    map_bytes: usize,
    jumbo_base: usize,
    meta_base: usize,
    frames: u32,
    jumbo_frames: u32,
    tag: u8,
    backing: Backing,
    pub(crate) depot: ArrayQueue<Stack>,
    pub(crate) jumbo_depot: ArrayQueue<Stack>,
    /// Handles that are neither in a pool nor in the depot, while the slab is dropped: see `Drop`.
    home: AtomicU64,
}

// SAFETY: the memory is reached only through frames, and a frame exists at most once; the depot is a
// concurrent queue.
unsafe impl Send for Slab {}
// SAFETY: as above; `&Slab` alone gives no access to chunk memory.
unsafe impl Sync for Slab {}

/// Which of the 256 tags are free. Locked when a slab is made or dropped, never per frame.
static TAGS: Mutex<[bool; 256]> = Mutex::new([false; 256]);

fn take_tag() -> Option<u8> {
    let mut tags = TAGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let free = tags.iter().position(|used| !used)?;
    tags[free] = true;
    Some(free as u8)
}

fn give_tag(tag: u8) {
    TAGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[tag as usize] = false;
}

impl Slab {
    /// Maps the slab and puts every chunk into the depot.
    pub fn new(config: SlabConfig) -> Result<Arc<Slab>, SlabError> {
        let total = config.frames as u64 + config.jumbo_frames as u64;
        let count_error = SlabError::Count { frames: config.frames, jumbo_frames: config.jumbo_frames };
        if total == 0 || total > u64::from(INDEX_MASK) {
            return Err(count_error);
        }
        let jumbo_base = config.frames as usize * CHUNK_BYTES;
        let meta_base = jumbo_base + config.jumbo_frames as usize * JUMBO_BYTES;
        let bytes = meta_base + total as usize * size_of::<Meta>();
        let tag = take_tag().ok_or(SlabError::Tags)?;
        let (base, map_bytes, backing) = match map(bytes, config.hugepages) {
            Ok(mapped) => mapped,
            Err(source) => {
                give_tag(tag);
                return Err(SlabError::Map { bytes, source });
            }
        };
        let slab = Slab {
            base,
            map_bytes,
            jumbo_base,
            meta_base,
            frames: config.frames,
            jumbo_frames: config.jumbo_frames,
            tag,
            backing,
            // Pools may hand back partly filled stacks, so the depots have room for twice the handles.
            depot: ArrayQueue::new(2 * (config.frames as usize / STACK + 1) + 64),
            jumbo_depot: ArrayQueue::new(2 * (config.jumbo_frames as usize / STACK + 1) + 64),
            home: AtomicU64::new(0),
        };
        slab.fill_depot(&slab.depot, 0..config.frames);
        slab.fill_depot(&slab.jumbo_depot, config.frames..total as u32);
        Ok(Arc::new(slab))
    }

    fn fill_depot(&self, depot: &ArrayQueue<Stack>, indices: std::ops::Range<u32>) {
        let mut stack = Stack::new();
        for index in indices {
            stack.push(index | (u32::from(self.tag) << TAG_SHIFT));
            if stack.is_full() {
                // INVARIANT: the depot has room for every handle.
                depot.push(std::mem::take(&mut stack)).expect("depot holds every handle");
            }
        }
        if !stack.is_empty() {
            depot.push(stack).expect("depot holds every handle");
        }
    }

    /// What the slab was mapped from.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Small chunks in the slab.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Jumbo chunks in the slab.
    pub fn jumbo_frames(&self) -> u32 {
        self.jumbo_frames
    }

    /// The small chunks as one region, to register with a kernel (AF_XDP): address and length in bytes.
    pub fn chunk_region(&self) -> (*mut u8, usize) {
        (self.base.as_ptr(), self.jumbo_base)
    }

    #[inline(always)]
    pub(crate) fn tag(&self) -> u32 {
        u32::from(self.tag)
    }

    #[inline(always)]
    pub(crate) fn is_jumbo(&self, index: u32) -> bool {
        index >= self.frames
    }

    #[inline(always)]
    pub(crate) fn chunk_bytes(&self, index: u32) -> usize {
        if self.is_jumbo(index) { JUMBO_BYTES } else { CHUNK_BYTES }
    }

    /// Start of a chunk. `index` must be below `frames + jumbo_frames`.
    #[inline(always)]
    pub(crate) fn chunk(&self, index: u32) -> *mut u8 {
        let offset = if self.is_jumbo(index) {
            self.jumbo_base + (index - self.frames) as usize * JUMBO_BYTES
        } else {
            index as usize * CHUNK_BYTES
        };
        // SAFETY: the caller's index is in range, so the offset lies inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    #[inline(always)]
    pub(crate) fn meta(&self, index: u32) -> *mut Meta {
        let offset = self.meta_base + index as usize * size_of::<Meta>();
        // SAFETY: the caller's index is in range; `meta_base` and the mapping are 64-byte aligned.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// A pool that goes away reports how many handles it gave home.
    pub(crate) fn total(&self) -> u32 {
        self.frames + self.jumbo_frames
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let count = |depot: &ArrayQueue<Stack>| {
            std::iter::from_fn(|| depot.pop()).map(|stack| stack.len() as u64).sum::<u64>()
        };
        let home = count(&self.depot) + count(&self.jumbo_depot);
        self.home.store(home, Ordering::Relaxed);
        // SAFETY: base and length are those of the mapping, and nothing refers to it: pools hold an Arc,
        // and a frame without a pool cannot be dereferenced.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.map_bytes) };
        // A frame that is still out there keeps the tag, so that it can never reach another slab.
        if home == u64::from(self.total()) {
            give_tag(self.tag);
        }
    }
}

const HUGE_2M: usize = 2 << 20;

fn map(bytes: usize, hugepages: bool) -> std::io::Result<(NonNull<u8>, usize, Backing)> {
    let huge_bytes = bytes.next_multiple_of(HUGE_2M);
    let why = if hugepages {
        match map_anonymous(huge_bytes, libc::MAP_HUGETLB | libc::MAP_POPULATE) {
            Ok(base) => return Ok((base, huge_bytes, Backing::Huge2M)),
            Err(error) => format!(
                "no {} free hugepages of 2 MiB ({error}); `sysctl vm.nr_hugepages={}` as root gives them",
                huge_bytes / HUGE_2M,
                huge_bytes / HUGE_2M
            ),
        }
    } else {
        "hugepages are off in the configuration".to_owned()
    };
    let base = map_anonymous(huge_bytes, 0)?;
    // SAFETY: the range is the mapping just made; transparent hugepages are only a hint.
    unsafe { libc::madvise(base.as_ptr().cast(), huge_bytes, libc::MADV_HUGEPAGE) };
    Ok((base, huge_bytes, Backing::Normal { why }))
}

fn map_anonymous(bytes: usize, extra: libc::c_int) -> std::io::Result<NonNull<u8>> {
    let bytes = NonZeroUsize::new(bytes).ok_or(std::io::ErrorKind::InvalidInput)?;
    // SAFETY: a fresh anonymous private mapping touches no memory that exists.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes.get(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | extra,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}
