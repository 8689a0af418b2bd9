//! Which chunks the kernel holds at this moment: one bit per chunk of the slab.
//!
//! Rings alone cannot tell: chunks also sit in the kernel's own lists, and all of them must come back when
//! the port closes or the interface vanishes. Invariant: a set bit stands for exactly one frame that was
//! given up with `Frame::into_raw` and has not been adopted since, so that adopting is sound whatever
//! address the kernel writes.

use frame::{CHUNK_BYTES, Frame, Pool};

pub(super) struct Loans {
    words: Vec<u64>,
    chunks: u32,
    count: u32,
}

impl Loans {
    /// For a slab of `chunks` small chunks, none lent.
    pub fn new(chunks: u32) -> Loans {
        Loans { words: vec![0; chunks.div_ceil(64) as usize], chunks, count: 0 }
    }

    /// Gives the frame up to the kernel; returns the offset of its chunk in the region. A jumbo frame,
    /// which lies outside the region, comes back.
    #[inline]
    pub fn lend(&mut self, frame: Frame) -> Result<u64, Frame> {
        let index = frame.index();
        if index >= self.chunks {
            return Err(frame);
        }
        frame.into_raw();
        self.words[index as usize / 64] |= 1 << (index % 64);
        self.count += 1;
        Ok(u64::from(index) * CHUNK_BYTES as u64)
    }

    /// Takes the frame back whose chunk contains `address`, with `len` bytes from there. `None` when the
    /// chunk is not lent or the bytes leave it: the kernel never does that, and a frame lost is better than
    /// a frame owned twice.
    #[inline]
    pub fn take_back(&mut self, pool: &Pool, address: u64, len: usize) -> Option<Frame> {
        let index = usize::try_from(address).ok()? / CHUNK_BYTES;
        let word = self.words.get_mut(index / 64)?;
        let bit = 1_u64 << (index % 64);
        let within = address as usize % CHUNK_BYTES;
        if *word & bit == 0 || within + len > CHUNK_BYTES {
            return None;
        }
        *word &= !bit;
        self.count -= 1;
        // SAFETY: the bit says that this chunk's frame was given up and not adopted since; it is cleared
        // now; the bytes lie inside the chunk.
        Some(unsafe { pool.adopt_at(address as usize, len) })
    }

    /// Chunks that the kernel holds.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Takes everything back into the pool. The kernel must have let go of the region.
    pub fn take_back_all(&mut self, pool: &mut Pool) {
        for index in 0..self.words.len() {
            while self.words[index] != 0 {
                let chunk = index * 64 + self.words[index].trailing_zeros() as usize;
                // INVARIANT: the bit is set, and no bytes always fit, so there is a frame.
                if let Some(frame) = self.take_back(pool, (chunk * CHUNK_BYTES) as u64, 0) {
                    pool.free(frame);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frame::{Slab, SlabConfig};

    fn setup() -> (Pool, Loans) {
        let slab = Slab::new(SlabConfig { frames: 100, jumbo_frames: 1, hugepages: false }).unwrap();
        (Pool::new(&slab), Loans::new(slab.frames()))
    }

    #[test]
    fn a_chunk_comes_back_once_and_with_the_bytes_that_the_kernel_names() {
        let (mut pool, mut loans) = setup();
        let frame = pool.alloc().unwrap();
        let index = frame.index();
        let chunk = loans.lend(frame).unwrap();
        assert_eq!((chunk, loans.count()), (u64::from(index) * 4096, 1));
        let frame = loans.take_back(&pool, chunk + 256, 60).unwrap();
        assert_eq!((frame.index(), pool.meta(&frame).headroom(), pool.bytes(&frame).len()), (index, 256, 60));
        assert!(loans.take_back(&pool, chunk + 256, 60).is_none(), "not lent any more");
        pool.free(frame);
    }

    #[test]
    fn addresses_that_make_no_sense_are_refused() {
        let (mut pool, mut loans) = setup();
        let chunk = loans.lend(pool.alloc().unwrap()).unwrap();
        assert!(loans.take_back(&pool, chunk + 4000, 97).is_none(), "leaves the chunk");
        assert!(loans.take_back(&pool, 100 * 4096, 0).is_none(), "behind the last chunk");
        assert!(loans.take_back(&pool, u64::MAX, 0).is_none());
        loans.take_back_all(&mut pool);
        assert_eq!(loans.count(), 0);
    }

    #[test]
    fn a_jumbo_frame_is_not_lent() {
        let (mut pool, mut loans) = setup();
        let frame = loans.lend(pool.alloc_jumbo().unwrap()).unwrap_err();
        pool.free(frame);
        assert_eq!(loans.count(), 0);
    }

    #[test]
    fn everything_comes_back_at_once() {
        let (mut pool, mut loans) = setup();
        let before = pool.available();
        while let Some(frame) = pool.alloc() {
            loans.lend(frame).unwrap();
        }
        assert_eq!(loans.count(), 100);
        loans.take_back_all(&mut pool);
        assert_eq!(loans.count(), 0);
        assert!(pool.available() >= 100, "of {before} before");
    }
}
