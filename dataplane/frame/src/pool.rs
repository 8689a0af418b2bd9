//! A worker's own free list, and the only way to a frame's bytes.
//!
//! Allocating and freeing a batch is a copy of handles between two arrays and, for fresh frames, one write of
//! a metadata line each: bounds and tags are checked once per batch.
//!
//! Invariants: every handle in a free list is owned by the list alone and belongs to this pool's slab; a
//! pool never keeps more than its share, so that a slab shared by workers is not hoarded by one.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::slab::{Layout, STACK, Stack};
use crate::{BATCH, Batch, CHUNK_BYTES, FRAME_BYTES_MAX, Frame, HEADROOM_BYTES, JUMBO_BYTES, Meta, Slab};

/// A pool keeps at most this many handles; above it gives a stack back to the depot.
const KEEP_MAX: usize = 8 * STACK;
/// Jumbo chunks that a pool keeps, to use one again while it is still in the cache.
const KEEP_JUMBO: usize = 4;
/// Chunks are 4 KiB apart: without some colour, the headers of a batch would all compete for one set of the
/// first-level cache. So the first byte of a frame lies 0, 1, 2 or 3 of these steps behind the headroom.
const COLOUR_BYTES: u16 = 128;

const _: () = assert!(STACK >= BATCH);
const _: () = assert!(HEADROOM_BYTES + 3 * COLOUR_BYTES as usize + FRAME_BYTES_MAX <= CHUNK_BYTES);

/// The free frames of one worker, last in, first out.
#[derive(Debug)]
pub struct Pool {
    slab: Arc<Slab>,
    /// The slab's, beside us: every look at a frame begins with it.
    layout: Layout,
    /// Above `keep + STACK` handles a stack goes to the depot.
    keep: usize,
    free: Vec<u32>,
    free_jumbo: ArrayVec<u32, KEEP_JUMBO>,
}

impl Pool {
    /// An empty pool over `slab`; it fills itself from the depot when asked for frames.
    pub fn new(slab: &Arc<Slab>) -> Pool {
        let keep = (slab.frames() as usize / 8).min(KEEP_MAX);
        Pool {
            slab: Arc::clone(slab),
            layout: slab.layout(),
            keep,
            free: Vec::with_capacity(keep + STACK + BATCH),
            free_jumbo: ArrayVec::new(),
        }
    }

    /// The slab that the frames live in.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// A small frame of length 0 with fresh metadata, or `None` when the slab is exhausted. At least
    /// [`FRAME_BYTES_MAX`] bytes fit.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.refill(1);
        }
        let handle = self.free.pop()?;
        let frame = Frame(handle);
        // SAFETY: the handle came from the free list.
        unsafe { reset(self.layout.meta(self.index(&frame)), small_data(handle), 0) };
        Some(frame)
    }

    /// Appends up to `count` small frames of length 0 to `batch`, as many as there are and fit, and returns
    /// how many.
    #[inline]
    pub fn alloc_batch(&mut self, batch: &mut Batch, count: usize) -> usize {
        self.alloc_batch_of(batch, count, 0)
    }

    /// Like [`Pool::alloc_batch`], with frames of `len` bytes, at most [`FRAME_BYTES_MAX`]; they hold
    /// whatever the chunks held.
    #[inline]
    pub fn alloc_batch_of(&mut self, batch: &mut Batch, count: usize, len: usize) -> usize {
        let want = count.min(batch.remaining_capacity());
        if self.free.len() < want {
            self.refill(want);
        }
        let keep = self.free.len().saturating_sub(want);
        let taken = &self.free[keep..];
        let (meta, first_handle) = (self.layout.meta(0), self.layout.first_handle);
        let len = len.min(FRAME_BYTES_MAX) as u32;
        let held = batch.len();
        let room = batch.as_mut_ptr().wrapping_add(held);
        for (at, &handle) in taken.iter().enumerate() {
            let meta = meta.wrapping_add(handle.wrapping_sub(first_handle) as usize);
            // SAFETY: the handle came from the free list.
            unsafe { reset(meta, small_data(handle), len) };
            // SAFETY: `taken` is no longer than the remaining capacity of the batch.
            unsafe { room.wrapping_add(at).write(Frame(handle)) };
        }
        let taken = taken.len();
        // SAFETY: as many frames were just written behind those that it held.
        unsafe { batch.set_len(held + taken) };
        self.free.truncate(keep);
        taken
    }

    /// A jumbo frame of length 0 with fresh metadata, or `None` when there is none left.
    pub fn alloc_jumbo(&mut self) -> Option<Frame> {
        let handle = self.free_jumbo.pop().or_else(|| self.slab.take_jumbo())?;
        let frame = Frame(handle);
        // SAFETY: the handle came from a free list.
        unsafe { reset(self.layout.meta(self.index(&frame)), HEADROOM_BYTES as u16, 0) };
        Some(frame)
    }

    /// Takes stacks from the depot until `want` frames are free or there are no more.
    #[cold]
    fn refill(&mut self, want: usize) {
        while self.free.len() < want {
            match self.slab.take() {
                Some(stack) => self.free.extend(stack),
                None => return,
            }
        }
    }

    /// Gives a frame back.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        let jumbo = self.is_jumbo(&frame);
        let handle = frame.into_raw();
        if jumbo {
            if let Err(full) = self.free_jumbo.try_push(handle) {
                self.slab.give_jumbo(full.element());
            }
            return;
        }
        self.free.push(handle);
        self.spill();
    }

    /// Gives every frame of a batch back.
    #[inline]
    pub fn free_batch(&mut self, batch: &mut Batch) {
        let (first, frames) = (self.layout.first_handle, self.layout.frames);
        let farthest = batch.iter().map(|frame| frame.0.wrapping_sub(first)).max().unwrap_or(0);
        if farthest >= frames {
            return self.free_mixed(batch);
        }
        self.free.extend(batch.iter().map(|frame| frame.0));
        // SAFETY: ownership of every handle went to the free list just now.
        unsafe { batch.set_len(0) };
        self.spill();
    }

    /// A batch with jumbo frames in it.
    #[cold]
    fn free_mixed(&mut self, batch: &mut Batch) {
        for frame in batch.drain(..) {
            self.free(frame);
        }
    }

    /// Hands the oldest stack to the depot when there are too many; the newest stay, they are in the cache.
    #[inline(always)]
    fn spill(&mut self) {
        if self.free.len() >= self.keep + STACK {
            self.spill_stack();
        }
    }

    #[cold]
    fn spill_stack(&mut self) {
        let stack: Stack = self.free.drain(..STACK).collect();
        self.slab.give_stack(stack);
    }

    /// Free small frames within reach: those of this pool and those that no pool keeps.
    pub fn available(&self) -> usize {
        self.free.len() + self.slab.free_count()
    }

    /// Turns a number from [`Frame::into_raw`] back into the frame.
    ///
    /// # Safety
    /// `raw` came from `into_raw` of a frame of this slab and was not adopted since.
    pub unsafe fn adopt(&self, raw: u32) -> Frame {
        let frame = Frame(raw);
        self.index(&frame);
        frame
    }

    /// Turns an offset into [`Slab::chunk_region`] back into the frame that owns that chunk and sets where
    /// its bytes lie.
    ///
    /// # Safety
    /// The frame of that chunk was given up with [`Frame::into_raw`] and not adopted since; the bytes
    /// `offset..offset + len` lie inside the chunk.
    pub unsafe fn adopt_at(&self, offset: usize, len: usize) -> Frame {
        let index = offset / CHUNK_BYTES;
        let within = offset % CHUNK_BYTES;
        assert!(!self.layout.is_jumbo(index) && within + len <= CHUNK_BYTES, "offset outside the slab");
        // SAFETY: the index is in range and, by the contract, nobody else holds the frame.
        unsafe { reset(self.layout.meta(index), within as u16, len as u32) };
        Frame(index as u32 | self.layout.first_handle)
    }

    /// A frame from another slab is a bug that must not become a wild pointer.
    #[inline(always)]
    fn index(&self, frame: &Frame) -> usize {
        // INVARIANT: frames are not carried from slab to slab.
        self.layout.index(frame.0).expect("frame of another slab")
    }

    /// Where a frame's bytes lie in its chunk. Checked at each use, since a whole `Meta` can be swapped with
    /// that of a larger chunk in safe code.
    #[inline(always)]
    fn window(&self, index: usize, meta: &Meta) -> (*mut u8, usize) {
        let (data, len) = (meta.data as usize, meta.len as usize);
        if self.layout.is_jumbo(index) {
            return self.jumbo_window(index, data, len);
        }
        assert!(data + len <= CHUNK_BYTES, "metadata of another chunk");
        (self.layout.chunk(index).wrapping_add(data), len)
    }

    /// [`Pool::window`] of a super-segment: out of line, to keep that of every frame short.
    #[inline(never)]
    fn jumbo_window(&self, index: usize, data: usize, len: usize) -> (*mut u8, usize) {
        assert!(data + len <= JUMBO_BYTES, "metadata of another chunk");
        (self.layout.chunk(index).wrapping_add(data), len)
    }

    /// The metadata of a frame.
    #[inline(always)]
    pub fn meta<'a>(&'a self, frame: &'a Frame) -> &'a Meta {
        let meta = self.layout.meta(self.index(frame));
        // SAFETY: the index is in range; `&Frame` excludes a `&mut Meta`.
        unsafe { &*meta }
    }

    /// The metadata of a frame, to change.
    #[inline(always)]
    pub fn meta_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut Meta {
        let meta = self.layout.meta(self.index(frame));
        // SAFETY: the index is in range; `&mut Frame` is exclusive, and a frame exists once.
        unsafe { &mut *meta }
    }

    /// The bytes of a frame.
    #[inline(always)]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let (first, len) = self.window(self.index(frame), self.meta(frame));
        // SAFETY: `window` checked that the range lies in the chunk, which is initialised (mapped zeroed);
        // `&Frame` excludes a `&mut [u8]`.
        unsafe { std::slice::from_raw_parts(first, len) }
    }

    /// The bytes of a frame, to change.
    #[inline(always)]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.parts_mut(frame).1
    }

    /// Metadata and bytes of a frame, both to change.
    #[inline(always)]
    pub fn parts_mut<'a>(&'a self, frame: &'a mut Frame) -> (&'a mut Meta, &'a mut [u8]) {
        let index = self.index(frame);
        let meta = self.meta_mut(frame);
        let (first, len) = self.window(index, meta);
        // SAFETY: `window` checked that the range lies in the chunk; metadata lies apart from all chunks;
        // `&mut Frame` is exclusive for both.
        let bytes = unsafe { std::slice::from_raw_parts_mut(first, len) };
        (meta, bytes)
    }

    /// Sets the length; bytes that come into view are whatever the chunk held. False, and no change, when
    /// the chunk is too small.
    #[inline(always)]
    pub fn set_len(&self, frame: &mut Frame, len: usize) -> bool {
        let room = self.layout.chunk_bytes(self.index(frame));
        let meta = self.meta_mut(frame);
        if len > room.saturating_sub(meta.data as usize) {
            return false;
        }
        meta.len = len as u32;
        true
    }

    /// Bytes that fit behind the first one.
    #[inline(always)]
    pub fn capacity(&self, frame: &Frame) -> usize {
        self.layout.chunk_bytes(self.index(frame)).saturating_sub(self.meta(frame).data as usize)
    }

    /// Bytes of all these frames together.
    #[inline]
    pub fn bytes_in(&self, frames: &[Frame]) -> u64 {
        frames.iter().map(|frame| self.meta(frame).len() as u64).sum()
    }

    /// Moves the first byte `count` to the front and shows the frame's bytes; `None`, and no change, when
    /// the headroom is too small.
    #[inline(always)]
    pub fn prepend<'a>(&'a self, frame: &'a mut Frame, count: usize) -> Option<&'a mut [u8]> {
        self.prepend_parts(frame, count).map(|(_, bytes)| bytes)
    }

    /// As [`Pool::prepend`], with the metadata beside the bytes.
    #[inline(always)]
    pub fn prepend_parts<'a>(
        &'a self,
        frame: &'a mut Frame,
        count: usize,
    ) -> Option<(&'a mut Meta, &'a mut [u8])> {
        let index = self.index(frame);
        let meta = self.meta_mut(frame);
        if count > meta.data as usize {
            return None;
        }
        meta.data -= count as u16;
        meta.len += count as u32;
        let (first, len) = self.window(index, meta);
        // SAFETY: as in `parts_mut`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(first, len) };
        Some((meta, bytes))
    }

    /// Removes `count` bytes from the front. False, and no change, when the frame is shorter (or would begin
    /// behind the first 64 KiB of a jumbo chunk).
    #[inline(always)]
    pub fn trim_front(&self, frame: &mut Frame, count: usize) -> bool {
        let meta = self.meta_mut(frame);
        if count > meta.len as usize || meta.data as usize + count > u16::MAX as usize {
            return false;
        }
        meta.data += count as u16;
        meta.len -= count as u32;
        true
    }

    /// Keeps the bytes from `start` to `end` and drops those around them. False, and no change, when the
    /// frame is shorter (or would begin behind the first 64 KiB of a jumbo chunk).
    #[inline(always)]
    pub fn crop(&self, frame: &mut Frame, start: usize, end: usize) -> bool {
        let meta = self.meta_mut(frame);
        if start > end || end > meta.len as usize || meta.data as usize + start > u16::MAX as usize {
            return false;
        }
        meta.data += start as u16;
        meta.len = (end - start) as u32;
        true
    }

    /// Fills a frame with `bytes`. False, and no change, when they do not fit.
    #[inline]
    pub fn fill(&self, frame: &mut Frame, bytes: &[u8]) -> bool {
        if !self.set_len(frame, bytes.len()) {
            return false;
        }
        self.bytes_mut(frame).copy_from_slice(bytes);
        true
    }

    /// True for a frame that lives in a jumbo chunk.
    #[inline(always)]
    pub fn is_jumbo(&self, frame: &Frame) -> bool {
        self.layout.is_jumbo(self.index(frame))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.slab.give(self.free.drain(..));
        for handle in self.free_jumbo.drain(..) {
            self.slab.give_jumbo(handle);
        }
    }
}

/// Where the first byte of a fresh small frame lies in its chunk.
#[inline(always)]
fn small_data(handle: u32) -> u16 {
    HEADROOM_BYTES as u16 + (handle as u16 & 3) * COLOUR_BYTES
}

/// Writes fresh metadata.
///
/// # Safety
/// `meta` is the metadata of a chunk that the caller owns.
#[inline(always)]
unsafe fn reset(meta: *mut Meta, data: u16, len: u32) {
    // SAFETY: by the contract nobody else refers to it.
    unsafe { meta.write(Meta::fresh(data, len)) };
}
