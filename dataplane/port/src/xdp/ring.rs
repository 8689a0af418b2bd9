//! One of the four rings that a socket shares with the kernel: power-of-two, single producer, single
//! consumer, free-running 32-bit indices (`Documentation/networking/af_xdp.rst`).
//!
//! The producer writes entries, then stores its index with release; the consumer loads that index with
//! acquire, reads entries, then stores its own index with release. Both keep the other side's index
//! cached, so that the shared line is touched once per burst. Invariant: an entry outside the range that
//! the indices give to this side is neither read nor written.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A ring that this side fills: fill ring and transmit ring.
pub(super) struct Producer<T> {
    ring: Ring<T>,
    next: u32,
    consumer_cached: u32,
}

/// A ring that this side empties: receive ring and completion ring.
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    next: u32,
    producer_cached: u32,
}

impl<T: Copy> Producer<T> {
    /// Over a ring that is still empty.
    pub fn new(ring: Ring<T>) -> Producer<T> {
        Producer { ring, next: 0, consumer_cached: 0 }
    }

    /// Entries that can be pushed now, looking at the kernel's index only if fewer than `want` are known.
    #[inline]
    pub fn room(&mut self, want: u32) -> u32 {
        let room = self.ring.entries.wrapping_sub(self.next.wrapping_sub(self.consumer_cached));
        if room >= want {
            return room;
        }
        self.consumer_cached = self.ring.consumer().load(Ordering::Acquire);
        self.ring.entries.wrapping_sub(self.next.wrapping_sub(self.consumer_cached))
    }

    /// Writes one entry; the kernel sees it after [`Producer::submit`]. False when the ring is full.
    #[inline]
    pub fn push(&mut self, entry: T) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        // SAFETY: the entry lies between the indices on this side's part, checked by `room`.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Publishes what was pushed.
    #[inline]
    pub fn submit(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// How far the kernel has come, counted in entries since the ring was made (modulo 2^32).
    pub fn consumed(&self) -> u32 {
        self.ring.consumer().load(Ordering::Acquire)
    }

    /// True when everything published was taken by the kernel.
    pub fn is_drained(&self) -> bool {
        self.consumed() == self.next
    }

    /// True when the kernel asks for a system call before it looks at the ring again.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

impl<T: Copy> Consumer<T> {
    /// Over a ring that is still empty.
    pub fn new(ring: Ring<T>) -> Consumer<T> {
        Consumer { ring, next: 0, producer_cached: 0 }
    }

    /// Takes one entry; the kernel may reuse its place after [`Consumer::release`].
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.next == self.producer_cached {
            self.producer_cached = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.producer_cached {
                return None;
            }
        }
        // SAFETY: the entry lies between the indices on this side's part, and the kernel wrote it before
        // it published its index.
        let entry = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Gives the places of popped entries back to the kernel.
    #[inline]
    pub fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }

    /// True when nothing is left to pop.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.next == self.ring.producer().load(Ordering::Acquire)
    }
}

/// The mapping itself.
pub(super) struct Ring<T> {
    base: NonNull<u8>,
    bytes: usize,
    offsets: libc::xdp_ring_offset,
    entries: u32,
    entry: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone on this side; the other side is the kernel.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    /// Maps a ring of `entries` (a power of two) whose layout the kernel told in `offsets`.
    pub fn map(
        fd: BorrowedFd<'_>,
        page_offset: libc::off_t,
        offsets: libc::xdp_ring_offset,
        entries: u32,
    ) -> io::Result<Ring<T>> {
        let bytes = offsets.desc as usize + entries as usize * size_of::<T>();
        // SAFETY: a fresh shared mapping of the socket's ring touches no memory that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                page_offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ring { base, bytes, offsets, entries, entry: PhantomData })
    }

    #[inline(always)]
    fn word(&self, offset: u64) -> &AtomicU32 {
        let word = self.base.as_ptr().wrapping_byte_add(offset as usize).cast::<AtomicU32>();
        // SAFETY: the kernel's offsets lie in the mapping's header and are aligned for 32 bits; the mapping
        // lives as long as `self`, and both sides use these words atomically only.
        unsafe { &*word }
    }

    #[inline(always)]
    fn producer(&self) -> &AtomicU32 {
        self.word(self.offsets.producer)
    }

    #[inline(always)]
    fn consumer(&self) -> &AtomicU32 {
        self.word(self.offsets.consumer)
    }

    #[inline(always)]
    fn flags(&self) -> &AtomicU32 {
        self.word(self.offsets.flags)
    }

    /// Address of the entry that a free-running index stands for: inside the mapping, since the masked
    /// index is below `entries` and the mapping holds that many behind `desc`.
    #[inline(always)]
    fn entry(&self, index: u32) -> *mut T {
        let place = (index & (self.entries - 1)) as usize;
        self.base.as_ptr().wrapping_byte_add(self.offsets.desc as usize).cast::<T>().wrapping_add(place)
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests;
