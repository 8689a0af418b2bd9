//! A worker's regions of payload memory, and the only way to a buffer's bytes.
//!
//! Invariants: `partial[class]` names exactly the regions of that class that have a free buffer; a region with all
//! buffers free is in none of them but in `whole`, of which the pool keeps a few and gives the rest back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{IO_CLASS_BYTES, IO_PAGE_BYTES, IO_REGION_BYTES, IoBuffer, IoSlab, PAGE_MASK, Shared, TAG_SHIFT};

/// Regions without a buffer in use that a pool keeps.
const KEEP_WHOLE: usize = 4;

/// A region that is cut into buffers of one class.
#[derive(Debug)]
pub(super) struct Region {
    index: u32,
    class: u8,
    in_use: u16,
    /// One bit per buffer, 1 = free, lowest first.
    free: [u64; 4],
}

impl Region {
    fn cut(index: u32, class: usize) -> Region {
        let count = IO_REGION_BYTES / IO_CLASS_BYTES[class];
        let mut free = [0; 4];
        for (word, bits) in free.iter_mut().enumerate() {
            let left = count.saturating_sub(word * 64).min(64);
            *bits = if left == 64 { u64::MAX } else { (1 << left) - 1 };
        }
        Region { index, class: class as u8, in_use: 0, free }
    }

    /// Pages from one buffer to the next.
    fn stride(&self) -> u32 {
        (IO_CLASS_BYTES[self.class as usize] / IO_PAGE_BYTES) as u32
    }

    /// First page of the lowest free buffer.
    fn take(&mut self) -> Option<u32> {
        let word = self.free.iter().position(|&bits| bits != 0)?;
        let bit = self.free[word].trailing_zeros();
        self.free[word] &= self.free[word] - 1;
        self.in_use += 1;
        Some((word as u32 * 64 + bit) * self.stride())
    }

    fn put(&mut self, page: u32) {
        let slot = page / self.stride();
        let bit = 1 << (slot % 64);
        debug_assert_eq!(self.free[slot as usize / 64] & bit, 0, "freed twice");
        self.free[slot as usize / 64] |= bit;
        self.in_use -= 1;
    }

    fn is_full(&self) -> bool {
        self.free == [0; 4]
    }
}

/// What somebody may take of the slab: regions, as long as more than what they hold, and `reserve` besides, is
/// left free. So the first who comes cannot take all, and who begins work leaves room for those who end it.
#[derive(Clone, Copy, Debug)]
pub struct IoShare {
    /// Regions that are left in any case.
    pub reserve: u32,
    /// Regions' worth of buffers that they hold.
    pub held: u32,
    /// What each region more counts as held.
    pub weight: u32,
}

/// The payload memory of one worker.
#[derive(Debug)]
pub struct IoPool {
    slab: Arc<IoSlab>,
    id: u32,
    /// Most regions that this pool takes from the slab.
    regions_max: u32,
    held: u32,
    /// Bounds what is taken from now on.
    share: Option<IoShare>,
    /// The regions of this pool, by index in the slab; `None` for those of others.
    regions: Vec<Option<Box<Region>>>,
    partial: [Vec<u32>; 5],
    whole: Vec<u32>,
}

impl IoPool {
    /// An empty pool over `slab` that takes up to `regions_max` regions when asked for buffers.
    pub fn new(slab: &Arc<IoSlab>, regions_max: u32) -> IoPool {
        IoPool {
            slab: Arc::clone(slab),
            id: slab.next_pool.fetch_add(1, Ordering::Relaxed),
            regions_max,
            held: 0,
            share: None,
            regions: (0..slab.regions).map(|_| None).collect(),
            partial: Default::default(),
            whole: Vec::with_capacity(KEEP_WHOLE + 1),
        }
    }

    /// The slab that the buffers live in.
    pub fn slab(&self) -> &Arc<IoSlab> {
        &self.slab
    }

    /// Bounds what is taken from now on, or no more.
    pub fn set_share(&mut self, share: Option<IoShare>) {
        self.share = share;
    }

    /// A buffer of `bytes` with whatever content, or `None` when the pool is exhausted or `bytes` is more
    /// than [`IO_REGION_BYTES`]. 0 bytes get a page.
    #[inline]
    pub fn alloc(&mut self, bytes: usize) -> Option<IoBuffer> {
        let class = IO_CLASS_BYTES.iter().position(|&room| bytes <= room)?;
        let index = match self.partial[class].last() {
            Some(&index) => index,
            None => self.cut(class)?,
        };
        let region = self.regions[index as usize].as_mut()?;
        let page = region.take()?;
        if region.is_full() {
            self.partial[class].pop();
        }
        let handle = u32::from(self.slab.tag) << TAG_SHIFT | index << 8 | page;
        Some(IoBuffer { handle, len: bytes as u32, capacity: IO_CLASS_BYTES[class] as u32 })
    }

    /// Makes a region of `class` with free buffers the last of its list.
    #[cold]
    fn cut(&mut self, class: usize) -> Option<u32> {
        if self.slab.strays.load(Ordering::Acquire) > 0 {
            self.collect_strays();
            if let Some(&index) = self.partial[class].last() {
                return Some(index);
            }
        }
        let left = self.whole.len() + self.slab.shared().free.len();
        if self.share.is_some_and(|share| left <= (share.reserve + share.held) as usize) {
            return None;
        }
        let index = self.whole.pop().or_else(|| self.take_region())?;
        if let Some(share) = &mut self.share {
            share.held += share.weight;
        }
        match &mut self.regions[index as usize] {
            Some(region) => **region = Region::cut(index, class),
            empty => *empty = Some(Box::new(Region::cut(index, class))),
        }
        self.partial[class].push(index);
        Some(index)
    }

    /// A region from the slab, of which no buffer is in use.
    fn take_region(&mut self) -> Option<u32> {
        if self.held >= self.regions_max {
            return None;
        }
        let slab = Arc::clone(&self.slab);
        let mut shared = slab.shared();
        self.adopt_orphans(&mut shared);
        let index = self.whole.pop().or_else(|| {
            let index = shared.free.pop()?;
            self.own(index);
            Some(index)
        })?;
        Some(index)
    }

    fn own(&mut self, index: u32) {
        self.slab.owners[index as usize].store(self.id, Ordering::Release);
        self.held += 1;
    }

    /// Takes over regions whose pool went away, as many as fit.
    fn adopt_orphans(&mut self, shared: &mut Shared) {
        while self.held < self.regions_max {
            let Some(region) = shared.orphans.pop() else { return };
            let index = region.index;
            self.own(index);
            if !region.is_full() {
                self.partial[region.class as usize].push(index);
            }
            self.regions[index as usize] = Some(Box::new(region));
        }
    }

    /// Takes home what other pools freed for this one.
    #[cold]
    fn collect_strays(&mut self) {
        let slab = Arc::clone(&self.slab);
        let mut shared = slab.shared();
        if !shared.orphans.is_empty() {
            self.adopt_orphans(&mut shared);
        }
        let mut kept = Vec::new();
        for handle in std::mem::take(&mut shared.strays) {
            let region = (handle & ((1 << TAG_SHIFT) - 1)) >> 8;
            if slab.owner(region) == self.id {
                self.put(region, handle & PAGE_MASK);
            } else {
                kept.push(handle);
            }
        }
        slab.strays.store(kept.len(), Ordering::Release);
        shared.strays = kept;
        drop(shared);
        self.spill();
    }

    /// Gives a buffer back.
    #[inline]
    pub fn free(&mut self, buffer: IoBuffer) {
        self.check(&buffer);
        let (region, page) = (buffer.region(), buffer.page());
        if self.slab.owner(region) != self.id {
            return self.free_foreign(buffer);
        }
        let _ = buffer.into_handle();
        self.put(region, page);
        self.spill();
    }

    #[cold]
    fn free_foreign(&mut self, buffer: IoBuffer) {
        let mut shared = self.slab.shared();
        shared.strays.push(buffer.into_handle());
        self.slab.strays.store(shared.strays.len(), Ordering::Release);
    }

    fn put(&mut self, index: u32, page: u32) {
        // INVARIANT: the owner's table says that this pool holds the region.
        let Some(region) = self.regions[index as usize].as_mut() else { return };
        let class = region.class as usize;
        if region.is_full() {
            self.partial[class].push(index);
        }
        region.put(page);
        if region.in_use == 0 {
            // The list is short: at most one entry per region of the class.
            if let Some(at) = self.partial[class].iter().rposition(|&held| held == index) {
                self.partial[class].swap_remove(at);
                self.whole.push(index);
            }
        }
    }

    /// Gives regions without a buffer in use back to the slab, but for a few.
    #[inline(always)]
    fn spill(&mut self) {
        if self.whole.len() > KEEP_WHOLE {
            self.spill_regions();
        }
    }

    #[cold]
    fn spill_regions(&mut self) {
        let slab = Arc::clone(&self.slab);
        let mut shared = slab.shared();
        for index in self.whole.drain(KEEP_WHOLE..) {
            slab.owners[index as usize].store(0, Ordering::Release);
            self.regions[index as usize] = None;
            self.held -= 1;
            shared.free.push(index);
        }
    }

    /// A buffer from another slab is a bug that must not become a wild pointer.
    #[inline(always)]
    fn check(&self, buffer: &IoBuffer) {
        assert!(buffer.tag() == self.slab.tag, "buffer of another slab");
    }

    #[inline(always)]
    fn first(&self, buffer: &IoBuffer) -> *mut u8 {
        self.check(buffer);
        self.slab.mapping.base.as_ptr().wrapping_add(buffer.offset())
    }

    /// The bytes of a buffer.
    #[inline(always)]
    pub fn bytes<'a>(&'a self, buffer: &'a IoBuffer) -> &'a [u8] {
        // SAFETY: the handle came from `alloc` of this slab, so `capacity` bytes from there lie in the region,
        // which is initialised (mapped zeroed); `len <= capacity`; `&IoBuffer` excludes a `&mut [u8]`.
        unsafe { std::slice::from_raw_parts(self.first(buffer), buffer.len()) }
    }

    /// The bytes of a buffer, to change.
    #[inline(always)]
    pub fn bytes_mut<'a>(&'a self, buffer: &'a mut IoBuffer) -> &'a mut [u8] {
        // SAFETY: as in `bytes`; `&mut IoBuffer` is exclusive, and a handle exists once.
        unsafe { std::slice::from_raw_parts_mut(self.first(buffer), buffer.len()) }
    }
}

impl Drop for IoPool {
    fn drop(&mut self) {
        let slab = Arc::clone(&self.slab);
        let mut shared = slab.shared();
        for region in self.regions.iter_mut().filter_map(Option::take) {
            slab.owners[region.index as usize].store(0, Ordering::Release);
            if region.in_use == 0 {
                shared.free.push(region.index);
            } else {
                shared.orphans.push(*region);
            }
        }
    }
}
