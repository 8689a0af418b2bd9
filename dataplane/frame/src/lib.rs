//! Frames: where every packet lives between the port it came from and the port it leaves by.
//!
//! One [`Slab`] of hugepages holds all packet memory of a process: small chunks of 4 KiB, a few jumbo
//! chunks for super-segments, and one 64-byte [`Meta`] per chunk, kept apart so that the headers of 32
//! frames and their metadata fit in the first-level cache together. A [`Frame`] is a `u32` that owns its
//! chunk: it cannot be copied, and dropping one instead of handing it back is counted and, in debug
//! builds, a panic. Each worker has its own [`Pool`], a last-in-first-out free list (the chunk freed last
//! is the one still in the cache); pools trade whole stacks of handles through the slab's depot.
//! Frames move in a [`Batch`] of at most 32, and between workers through [`ring`]s.
//!
//! Payload of block I/O lives apart, in page-aligned [`IoBuffer`]s of an [`IoSlab`].
//!
//! This crate also owns the hints and the clock that the data plane needs and safe Rust lacks: [`prefetch`],
//! [`prefer_huge_pages`], [`trim_heap`] and [`tsc`].
//!
//! Invariants: a handle exists at most once; it reaches only the slab whose tag it carries; the bytes of
//! a frame always lie inside its own chunk.

mod drop_reason;
mod io;
mod memory;
mod meta;
mod pool;
mod ring;
mod slab;
mod time;

pub use drop_reason::DropReason;
pub use io::{
    IO_CLASS_BYTES, IO_PAGE_BYTES, IO_REGION_BYTES, IO_REGIONS_MAX, IoBuffer, IoPool, IoShare, IoSlab,
    IoSlabConfig,
};
pub use memory::HugeBytes;
pub use meta::{Flags, GsoKind, Meta};
pub use pool::Pool;
pub use ring::{Consumer, Producer, ring};
pub use slab::{Backing, Slab, SlabConfig, SlabError};
pub use time::{prefer_huge_pages, prefetch, trim_heap, tsc};

use std::sync::atomic::{AtomicU64, Ordering};

/// Frames handled together by every stage.
pub const BATCH: usize = 32;
/// Size of a small chunk; also the AF_XDP chunk size (decision D4).
pub const CHUNK_BYTES: usize = 4096;
/// Free room before the first byte of a fresh frame; outer headers are written there.
pub const HEADROOM_BYTES: usize = 256;
/// Size of a jumbo chunk: a 64 KiB super-segment with headroom, in whole pages.
pub const JUMBO_BYTES: usize = 18 * 4096;
/// Longest frame that fits any small chunk, whatever its colour (see [`Pool::alloc`]).
pub const FRAME_BYTES_MAX: usize = 3400;

/// Up to 32 frames in the order they arrived.
pub type Batch = arrayvec::ArrayVec<Frame, BATCH>;

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Frames and payload buffers dropped instead of freed since the process began. Anything but 0 is a bug; it is exported as a
/// counter so that the balance of decision D18 shows it.
pub fn leaked() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// The owner of one chunk: 8 bits of slab tag, 24 bits of index.
///
/// Give it back with [`Pool::free`]. It is deliberately neither `Copy` nor `Clone`.
#[derive(Debug)]
#[must_use = "a frame must be sent on or given back to a pool"]
pub struct Frame(u32);

impl Frame {
    /// The handle as a number, for rings shared with a kernel. The caller now owes the frame: turn it back
    /// with [`Pool::adopt`] exactly once.
    #[allow(clippy::mem_forget)] // ownership continues in the number
    pub fn into_raw(self) -> u32 {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }

    /// Index of the chunk in its slab.
    #[inline(always)]
    pub fn index(&self) -> u32 {
        self.0 & INDEX_MASK
    }
}

pub(crate) const TAG_SHIFT: u32 = 24;
pub(crate) const INDEX_MASK: u32 = (1 << TAG_SHIFT) - 1;

impl Drop for Frame {
    fn drop(&mut self) {
        LEAKED.fetch_add(1, Ordering::Relaxed);
        debug_assert!(std::thread::panicking(), "frame {} dropped instead of freed", self.index());
    }
}
