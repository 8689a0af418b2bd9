//! The slab: one mapping that holds all chunks and their metadata, and the depot where pools trade.
//!
//! Layout of the mapping: small chunks, jumbo chunks, one [`Meta`] per chunk. A chunk's index counts small
//! chunks first; its handle is the index and, in the upper 8 bits, the slab's tag, so that a handle can
//! never be used with another slab while both live.
//!
//! Invariants: the depot holds full stacks only, so it has room for every one of them and no handle is ever
//! lost in a trade; a tag is given to another slab only when all handles of the old one had come home.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_queue::ArrayQueue;

use crate::{CHUNK_BYTES, INDEX_MASK, JUMBO_BYTES, Meta, TAG_SHIFT};

/// Handles that move between a pool and the depot at once.
pub(crate) const STACK: usize = 64;
pub(crate) type Stack = arrayvec::ArrayVec<u32, STACK>;

/// How much memory to map, and of which kind.
#[derive(Clone, Copy, Debug)]
pub struct SlabConfig {
    /// Small chunks of [`CHUNK_BYTES`]. Each pool keeps up to an eighth of them and 64 more,
    /// at most 576, for itself.
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
    /// No regions to map, or more than 16 bits of index.
    #[error("{regions} regions of payload memory: must be between 1 and {}", crate::IO_REGIONS_MAX)]
    Regions {
        /// Regions of 1 MiB asked for.
        regions: u32,
    },
    /// The kernel gave no memory.
    #[error("cannot map {bytes} bytes: {source}; configure fewer frames or regions, or free memory")]
    Map {
        /// Size of the mapping.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// 256 slabs live in this process, or frames of that many were leaked.
    #[error("256 slabs are in use in this process; drop one, with all its frames freed")]
    Tags,
}

/// All packet memory of a process. Shared by the pools of its workers.
#[derive(Debug)]
pub struct Slab {
    mapping: Mapping,
    layout: Layout,
    /// Full stacks of free small chunks.
    depot: ArrayQueue<Stack>,
    /// Free small chunks that do not make a stack. Locked when a pool goes away or counts, and as the last
    /// resort of a pool that finds the depot empty; never while there are stacks.
    rest: Mutex<Stack>,
    /// Free jumbo chunks: a handful, each as long as twenty frames, so they are traded one by one.
    jumbo_depot: ArrayQueue<u32>,
}

/// Where chunks and metadata lie. Pools keep a copy, so that a look at a frame needs no look at the slab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    chunks: NonNull<u8>,
    /// The metadata of chunk 0.
    meta: NonNull<Meta>,
    /// Where the jumbo chunks begin, from `chunks`.
    jumbo_base: usize,
    /// Small chunks.
    pub(crate) frames: u32,
    /// Small and jumbo chunks.
    total: u32,
    /// Handle of chunk 0: the tag alone.
    pub(crate) first_handle: u32,
}

// SAFETY: addresses and numbers; whoever follows them must own a frame of the slab.
unsafe impl Send for Layout {}
// SAFETY: as above.
unsafe impl Sync for Layout {}

impl Layout {
    /// The index of the chunk that a handle names; `None` for that of another slab.
    #[inline(always)]
    pub(crate) fn index(&self, handle: u32) -> Option<usize> {
        // One comparison for both parts: another tag is farther away than any index.
        let index = handle.wrapping_sub(self.first_handle);
        (index < self.total).then_some(index as usize)
    }

    #[inline(always)]
    pub(crate) fn is_jumbo(&self, index: usize) -> bool {
        index >= self.frames as usize
    }

    #[inline(always)]
    pub(crate) fn chunk_bytes(&self, index: usize) -> usize {
        if self.is_jumbo(index) { JUMBO_BYTES } else { CHUNK_BYTES }
    }

    /// Start of a chunk: inside the mapping when `index` came from [`Layout::index`].
    #[inline(always)]
    pub(crate) fn chunk(&self, index: usize) -> *mut u8 {
        let offset = if self.is_jumbo(index) {
            self.jumbo_base + (index - self.frames as usize) * JUMBO_BYTES
        } else {
            index * CHUNK_BYTES
        };
        self.chunks.as_ptr().wrapping_add(offset)
    }

    /// A chunk's metadata: inside the mapping when `index` came from [`Layout::index`].
    #[inline(always)]
    pub(crate) fn meta(&self, index: usize) -> *mut Meta {
        self.meta.as_ptr().wrapping_add(index)
    }
}

// SAFETY: the memory is reached only through frames, and a frame exists at most once.
unsafe impl Send for Slab {}
// SAFETY: as above; `&Slab` alone gives no access to chunk memory, and the depots are concurrent queues.
unsafe impl Sync for Slab {}

impl Slab {
    /// Maps the slab and puts every chunk into the depot.
    pub fn new(config: SlabConfig) -> Result<Arc<Slab>, SlabError> {
        let SlabConfig { frames, jumbo_frames, hugepages } = config;
        let total = u64::from(frames) + u64::from(jumbo_frames);
        if total == 0 || total > u64::from(INDEX_MASK) {
            return Err(SlabError::Count { frames, jumbo_frames });
        }
        let jumbo_base = frames as usize * CHUNK_BYTES;
        let meta_base = jumbo_base + jumbo_frames as usize * JUMBO_BYTES;
        let bytes = meta_base + total as usize * size_of::<Meta>();
        let mapping = Mapping::new(bytes, hugepages).map_err(|source| SlabError::Map { bytes, source })?;
        // SAFETY: the metadata lies inside the mapping, behind the chunks.
        let meta = unsafe { mapping.base.add(meta_base) }.cast();
        let layout = Layout {
            chunks: mapping.base,
            meta,
            jumbo_base,
            frames,
            total: total as u32,
            first_handle: u32::from(take_tag().ok_or(SlabError::Tags)?) << TAG_SHIFT,
        };
        let slab = Slab {
            mapping,
            layout,
            depot: ArrayQueue::new(frames as usize / STACK + 1),
            rest: Mutex::new(Stack::new()),
            jumbo_depot: ArrayQueue::new(jumbo_frames.max(1) as usize),
        };
        slab.give((0..frames).map(|index| index | layout.first_handle));
        for index in frames..layout.total {
            slab.give_jumbo(index | layout.first_handle);
        }
        Ok(Arc::new(slab))
    }

    /// What the slab was mapped from.
    pub fn backing(&self) -> &Backing {
        &self.mapping.backing
    }

    /// Small chunks in the slab.
    pub fn frames(&self) -> u32 {
        self.layout.frames
    }

    /// Jumbo chunks in the slab.
    pub fn jumbo_frames(&self) -> u32 {
        self.layout.total - self.layout.frames
    }

    /// The small chunks as one region, to register with a kernel (AF_XDP): address and length in bytes.
    pub fn chunk_region(&self) -> (*mut u8, usize) {
        (self.mapping.base.as_ptr(), self.layout.jumbo_base)
    }

    /// Where everything lies.
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Takes back free small chunks, however many: those of a new slab or of a pool that goes away.
    pub(crate) fn give(&self, handles: impl IntoIterator<Item = u32>) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        for handle in handles {
            rest.push(handle);
            if rest.is_full() {
                self.give_stack(std::mem::take(&mut rest));
            }
        }
    }

    /// Takes back a full stack of free small chunks.
    pub(crate) fn give_stack(&self, stack: Stack) {
        debug_assert!(stack.is_full());
        let refused = self.depot.push(stack).is_err();
        // INVARIANT: a handle exists once, so there are at most `frames / STACK` full stacks.
        debug_assert!(!refused, "the depot has room for every full stack");
    }

    /// A stack of free small chunks: a full one, else what there is.
    pub(crate) fn take(&self) -> Option<Stack> {
        self.depot.pop().or_else(|| {
            let mut rest = self.rest.try_lock().ok()?;
            (!rest.is_empty()).then(|| std::mem::take(&mut *rest))
        })
    }

    /// Free small chunks that no pool keeps.
    pub(crate) fn free_count(&self) -> usize {
        self.depot.len() * STACK + self.rest.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes back a free jumbo chunk.
    pub(crate) fn give_jumbo(&self, handle: u32) {
        let refused = self.jumbo_depot.push(handle).is_err();
        // INVARIANT: a handle exists once, and the depot has room for every one.
        debug_assert!(!refused, "the depot has room for every jumbo chunk");
    }

    /// A free jumbo chunk.
    pub(crate) fn take_jumbo(&self) -> Option<u32> {
        self.jumbo_depot.pop()
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let home = self.free_count() + self.jumbo_depot.len();
        // A frame that is still out there keeps the tag, so that it can never reach another slab.
        if home == self.layout.total as usize {
            free_tag((self.layout.first_handle >> TAG_SHIFT) as u8);
        }
    }
}

/// Which of the 256 tags are in use. Locked when a slab is made or dropped, never per frame.
static TAGS: Mutex<[bool; 256]> = Mutex::new([false; 256]);

pub(crate) fn take_tag() -> Option<u8> {
    let mut tags = TAGS.lock().unwrap_or_else(PoisonError::into_inner);
    let free = tags.iter().position(|used| !used)?;
    tags[free] = true;
    Some(free as u8)
}

/// To be called when every handle with this tag has come home.
pub(crate) fn free_tag(tag: u8) {
    TAGS.lock().unwrap_or_else(PoisonError::into_inner)[tag as usize] = false;
}

const HUGE_BYTES: usize = 2 << 20;

/// Zeroed memory, aligned to pages; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) base: NonNull<u8>,
    bytes: usize,
    pub(crate) backing: Backing,
}

impl Mapping {
    /// All mapped bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: base and length are those of the mapping, which is zeroed; `&self` excludes `bytes_mut`. A slab
        // never calls this.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }

    /// All mapped bytes, to change.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }
}

#[cfg(not(miri))]
impl Mapping {
    /// Maps at least `bytes`, which must not be 0.
    pub(crate) fn new(bytes: usize, hugepages: bool) -> std::io::Result<Mapping> {
        let bytes = bytes.next_multiple_of(HUGE_BYTES);
        let why = if hugepages {
            match map_anonymous(bytes, libc::MAP_HUGETLB | libc::MAP_POPULATE) {
                Ok(base) => return Ok(Mapping { base, bytes, backing: Backing::Huge2M }),
                Err(error) => format!(
                    "no {count} free hugepages of 2 MiB ({error}); as root, `sysctl vm.nr_hugepages={count}` \
                     makes them",
                    count = bytes / HUGE_BYTES
                ),
            }
        } else {
            "hugepages are off in the configuration".to_owned()
        };
        let base = map_anonymous(bytes, 0)?;
        // SAFETY: the range is the mapping just made; transparent hugepages are only a hint.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Mapping { base, bytes, backing: Backing::Normal { why } })
    }
}

#[cfg(not(miri))]
fn map_anonymous(bytes: usize, extra: libc::c_int) -> std::io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | extra;
    // SAFETY: a fresh anonymous private mapping touches no memory that exists.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}

#[cfg(not(miri))]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping, and nothing refers to it: pools hold an `Arc` of
        // the slab, and a frame without a pool cannot be dereferenced.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Under Miri, which knows no hugepages: the same from the allocator.
#[cfg(miri)]
impl Mapping {
    pub(crate) fn new(bytes: usize, _hugepages: bool) -> std::io::Result<Mapping> {
        let backing = Backing::Normal { why: "running under Miri".to_owned() };
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(Mapping::layout(bytes)) };
        let base = NonNull::new(base).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, bytes, backing })
    }

    fn layout(bytes: usize) -> std::alloc::Layout {
        // INVARIANT: 4096 is a power of two, and 24 bits of jumbo chunks do not overflow.
        std::alloc::Layout::from_size_align(bytes, 4096).expect("a valid layout")
    }
}

#[cfg(miri)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), Mapping::layout(self.bytes)) };
    }
}
