//! A worker's own free list, and the only way to a frame's bytes.

use std::sync::Arc;

use crate::slab::{STACK, Stack};
use crate::{BATCH, Batch, Flags, Frame, HEADROOM_BYTES, INDEX_MASK, Meta, Slab};

/// A pool keeps at most this many handles; above it gives a stack back to the depot.
const KEEP: usize = 8 * STACK;

/// The free frames of one worker, last in, first out.
#[derive(Debug)]
pub struct Pool {
    slab: Arc<Slab>,
    free: Vec<u32>,
    free_jumbo: Vec<u32>,
}

impl Pool {
    /// An empty pool over `slab`; it fills itself from the depot when asked for frames.
    pub fn new(slab: &Arc<Slab>) -> Pool {
        Pool {
            slab: Arc::clone(slab),
            free: Vec::with_capacity(KEEP + STACK),
            free_jumbo: Vec::with_capacity(KEEP + STACK),
        }
    }

    /// The slab that the frames live in.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// A small frame of length 0, or `None` when the slab is exhausted.
    ///
    /// Its first byte lies at [`HEADROOM_BYTES`] plus 0..384 bytes of colour: chunks are 4 KiB apart, and
    /// without the colour the headers of a batch would all compete for one set of the first-level cache.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        let raw = match self.free.pop() {
            Some(raw) => raw,
            None => self.refill()?,
        };
        Some(self.fresh(raw, false))
    }

    /// Appends up to `count` small frames to `batch`, as many as there are and fit.
    #[inline]
    pub fn alloc_batch(&mut self, batch: &mut Batch, count: usize) -> usize {
        let want = count.min(batch.remaining_capacity());
        for done in 0..want {
            match self.alloc() {
                Some(frame) => batch.push(frame),
                None => return done,
            }
        }
        want
    }

    /// A jumbo frame of length 0, or `None` when there is none left.
    pub fn alloc_jumbo(&mut self) -> Option<Frame> {
        if self.free_jumbo.is_empty() {
            self.free_jumbo.extend(self.slab.jumbo_depot.pop()?);
        }
        let raw = self.free_jumbo.pop()?;
        Some(self.fresh(raw, true))
    }

    #[inline(always)]
    fn fresh(&self, raw: u32, jumbo: bool) -> Frame {
        let index = raw & INDEX_MASK;
        let colour = if jumbo { 0 } else { (index as u16 & 3) * 128 };
        let meta = Meta::fresh(HEADROOM_BYTES as u16 + colour, jumbo);
        // SAFETY: the handle came from a free list of this slab, so its index is in range and nobody else
        // refers to its metadata.
        unsafe { self.slab.meta(index).write(meta) };
        Frame(raw)
    }

    #[cold]
    fn refill(&mut self) -> Option<u32> {
        self.free.extend(self.slab.depot.pop()?);
        self.free.pop()
    }

    /// Gives a frame back.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        self.check(&frame);
        let jumbo = self.slab.is_jumbo(frame.index());
        let raw = frame.into_raw();
        let list = if jumbo { &mut self.free_jumbo } else { &mut self.free };
        list.push(raw);
        if list.len() >= KEEP + STACK {
            self.spill(jumbo);
        }
    }

    /// Gives every frame of a batch back.
    #[inline]
    pub fn free_batch(&mut self, batch: &mut Batch) {
        for frame in batch.drain(..) {
            self.free(frame);
        }
    }

    /// Hands the oldest stack to the depot; the newest stay, they are in the cache.
    #[cold]
    fn spill(&mut self, jumbo: bool) {
        let (list, depot) = if jumbo {
            (&mut self.free_jumbo, &self.slab.jumbo_depot)
        } else {
            (&mut self.free, &self.slab.depot)
        };
        let stack: Stack = list.drain(..STACK).collect();
        if let Err(stack) = depot.push(stack) {
            list.extend(stack);
        }
    }

    /// Free small frames within reach: those of this pool and those in the depot.
    pub fn available(&self) -> usize {
        self.free.len() + self.slab.depot.len() * STACK
    }

    /// Turns a number from [`Frame::into_raw`] back into the frame.
    ///
    /// # Safety
    /// `raw` came from `into_raw` of a frame of this slab and was not adopted since.
    pub unsafe fn adopt(&self, raw: u32) -> Frame {
        let frame = Frame(raw);
        self.check(&frame);
        frame
    }

    /// Turns an offset into [`Slab::chunk_region`] back into the frame that owns that chunk and sets where
    /// its bytes lie.
    ///
    /// # Safety
    /// The frame of that chunk was given up with [`Frame::into_raw`] and not adopted since; the bytes
    /// `offset..offset + len` lie inside the chunk.
    pub unsafe fn adopt_at(&self, offset: usize, len: usize) -> Frame {
        let index = (offset / crate::CHUNK_BYTES) as u32;
        let within = offset % crate::CHUNK_BYTES;
        assert!(index < self.slab.frames() && within + len <= crate::CHUNK_BYTES, "offset outside the slab");
        let frame = Frame(index | (self.slab.tag() << crate::TAG_SHIFT));
        let mut meta = Meta::fresh(within as u16, false);
        meta.len = len as u32;
        // SAFETY: the index is in range and, by the contract, nobody else holds the frame.
        unsafe { self.slab.meta(index).write(meta) };
        frame
    }

    /// A frame from another slab is a bug that must not become a wild pointer.
    #[inline(always)]
    fn check(&self, frame: &Frame) {
        assert!(frame.tag() == self.slab.tag(), "frame of another slab");
    }

    /// Where a frame's bytes lie in its chunk. Checked at each use, since a whole `Meta` can be swapped with
    /// that of a larger chunk in safe code.
    #[inline(always)]
    fn window(&self, index: u32, meta: &Meta) -> (usize, usize) {
        let (data, len) = (meta.data as usize, meta.len as usize);
        assert!(data + len <= self.slab.chunk_bytes(index), "metadata of another chunk");
        (data, len)
    }

    /// The metadata of a frame.
    #[inline(always)]
    pub fn meta<'a>(&'a self, frame: &'a Frame) -> &'a Meta {
        self.check(frame);
        // SAFETY: the tag matches, so the index is in range; `&Frame` excludes a `&mut Meta`.
        unsafe { &*self.slab.meta(frame.index()) }
    }

    /// The metadata of a frame, to change.
    #[inline(always)]
    pub fn meta_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut Meta {
        self.check(frame);
        // SAFETY: the tag matches; `&mut Frame` is exclusive, and a frame exists once.
        unsafe { &mut *self.slab.meta(frame.index()) }
    }

    /// The bytes of a frame.
    #[inline(always)]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let meta = self.meta(frame);
        let (data, len) = self.window(frame.index(), meta);
        // SAFETY: `window` checked that the range lies in the chunk; `&Frame` excludes a `&mut [u8]`.
        unsafe { std::slice::from_raw_parts(self.slab.chunk(frame.index()).add(data), len) }
    }

    /// The bytes of a frame, to change.
    #[inline(always)]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.parts_mut(frame).1
    }

    /// Metadata and bytes of a frame, both to change.
    #[inline(always)]
    pub fn parts_mut<'a>(&'a self, frame: &'a mut Frame) -> (&'a mut Meta, &'a mut [u8]) {
        let index = frame.index();
        let meta = self.meta_mut(frame);
        let (data, len) = self.window(index, meta);
        // SAFETY: `window` checked that the range lies in the chunk; metadata lies apart from all chunks;
        // `&mut Frame` is exclusive for both.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.slab.chunk(index).add(data), len) };
        (meta, bytes)
    }

    /// Sets the length; bytes that come into view are whatever the chunk held. False, and no change, when
    /// the chunk is too small.
    #[inline(always)]
    pub fn set_len(&self, frame: &mut Frame, len: usize) -> bool {
        let room = self.slab.chunk_bytes(frame.index());
        let meta = self.meta_mut(frame);
        if meta.data as usize + len > room {
            return false;
        }
        meta.len = len as u32;
        true
    }

    /// Bytes that fit behind the first one.
    #[inline(always)]
    pub fn capacity(&self, frame: &Frame) -> usize {
        self.slab.chunk_bytes(frame.index()) - self.meta(frame).data as usize
    }

    /// Moves the first byte `count` to the front and shows the frame's bytes; `None`, and no change, when
    /// the headroom is too small.
    #[inline(always)]
    pub fn prepend<'a>(&'a self, frame: &'a mut Frame, count: usize) -> Option<&'a mut [u8]> {
        let meta = self.meta_mut(frame);
        if count > meta.data as usize {
            return None;
        }
        meta.data -= count as u16;
        meta.len += count as u32;
        Some(self.bytes_mut(frame))
    }

    /// Removes `count` bytes from the front. False, and no change, when the frame is shorter.
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
    pub fn is_jumbo(&self, frame: &Frame) -> bool {
        self.meta(frame).flags.has(Flags::JUMBO)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (list, depot) in [
            (std::mem::take(&mut self.free), &self.slab.depot),
            (std::mem::take(&mut self.free_jumbo), &self.slab.jumbo_depot),
        ] {
            for stack in list.chunks(STACK) {
                // A full depot loses the handles for good; the slab then keeps its tag (see `Slab::drop`).
                let _ = depot.push(stack.iter().copied().collect());
            }
        }
    }
}

const _: () = assert!(KEEP >= BATCH);
