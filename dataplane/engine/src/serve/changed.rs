//! Which parts of a volume changed, for a session that copies it while hosts write (docs/decisions/050).
//!
//! Invariants: a part that changed since it was told last is told again; what is told belongs to one session and is
//! gone with it, so that the next one copies everything. Memory: one bit for each granule, 128 KiB for a volume that
//! did not grow since.

use block::{BlockSize, Extent, Lba};

/// Smallest granule: a page of the volume.
const GRANULE_BYTES_MIN: u64 = 4 << 10;
/// Granules that a volume has at most, when it begins to be copied.
const GRANULES_MAX: u64 = 1 << 20;

/// See the module's documentation.
pub(super) struct Tracker {
    /// Whose it is.
    pub copy: u64,
    /// Blocks of a granule, as a power of two.
    shift: u32,
    /// Set: it changed.
    bits: Vec<u64>,
}

impl Tracker {
    /// Everything has changed.
    pub fn new(copy: u64, size: BlockSize, blocks: u64) -> Tracker {
        let bytes = (blocks << size.shift()).div_ceil(GRANULES_MAX).max(GRANULE_BYTES_MIN);
        let shift = bytes.next_power_of_two().trailing_zeros() - size.shift();
        let granules = blocks.div_ceil(1 << shift);
        Tracker { copy, shift, bits: vec![u64::MAX; granules.div_ceil(64) as usize] }
    }

    /// These blocks may have changed.
    pub fn mark(&mut self, lba: Lba, blocks: u32) {
        if blocks == 0 {
            return;
        }
        let (first, last) = (lba.0 >> self.shift, (lba.0 + u64::from(blocks) - 1) >> self.shift);
        let words = (last / 64 + 1) as usize;
        if self.bits.len() < words {
            // It has grown.
            self.bits.resize(words, u64::MAX);
        }
        for granule in first..=last {
            self.bits[(granule / 64) as usize] |= 1 << (granule % 64);
        }
    }

    /// Fills `records` with [`Extent`]s of the range, `allocated` for changed, as many as fit; granules that were told
    /// whole have not changed from now on.
    pub fn tell(&mut self, lba: Lba, blocks: u32, records: &mut [u8]) {
        let (mut at, end) = (lba.0, lba.0 + u64::from(blocks));
        let (records, _) = records.as_chunks_mut::<{ Extent::BYTES }>();
        for record in records {
            let from = at;
            let changed = self.is_changed(at);
            while at < end && self.is_changed(at) == changed {
                let next = ((at >> self.shift) + 1) << self.shift;
                let whole = at.trailing_zeros() >= self.shift && next <= end;
                if changed && whole {
                    self.clear(at >> self.shift);
                }
                at = next.min(end);
            }
            // Behind the last one this is the record of no blocks that ends them.
            *record = Extent { blocks: (at - from) as u32, allocated: changed }.octets();
            if at == from {
                return;
            }
        }
    }

    fn is_changed(&self, lba: u64) -> bool {
        let granule = lba >> self.shift;
        self.bits.get((granule / 64) as usize).is_none_or(|word| word >> (granule % 64) & 1 != 0)
    }

    fn clear(&mut self, granule: u64) {
        let word = (granule / 64) as usize;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, u64::MAX);
        }
        self.bits[word] &= !(1 << (granule % 64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a range, as blocks and whether they changed.
    fn told(tracker: &mut Tracker, lba: u64, blocks: u32, records: usize) -> Vec<(u32, bool)> {
        let mut bytes = vec![0xff; records * Extent::BYTES];
        tracker.tell(Lba(lba), blocks, &mut bytes);
        let all = bytes.as_chunks::<{ Extent::BYTES }>().0.iter().map(|octets| Extent::from_octets(*octets));
        all.take_while(|extent| extent.blocks > 0).map(|extent| (extent.blocks, extent.allocated)).collect()
    }

    #[test]
    fn what_changed_is_told_once_until_it_changes_again() {
        // Granules of 16 blocks: 64 KiB of 64 GiB.
        let mut tracker = Tracker::new(1, BlockSize::B4096, (1 << 24) - 8);
        let all = (1 << 24) - 8;
        assert_eq!(told(&mut tracker, 0, all, 8), [(all, true)]);
        // The last granule is not whole, so it may be told again.
        assert_eq!(told(&mut tracker, 0, all, 8), [(all - 8, false), (8, true)]);
        tracker.mark(Lba(31), 2);
        tracker.mark(Lba(100), 1);
        assert_eq!(
            told(&mut tracker, 0, 992, 8),
            [(16, false), (32, true), (48, false), (16, true), (880, false)]
        );
        assert_eq!(told(&mut tracker, 0, 992, 8), [(992, false)]);
    }

    #[test]
    fn nothing_is_cleared_that_was_not_told_whole() {
        // Granules of 8 blocks.
        let mut tracker = Tracker::new(1, BlockSize::B512, 1 << 20);
        assert_eq!(told(&mut tracker, 0, 1 << 20, 8), [(1 << 20, true)]);
        for granule in [1, 3, 5] {
            tracker.mark(Lba(granule * 8), 1);
        }
        assert_eq!(told(&mut tracker, 9, 4, 8), [(4, true)], "a part of a granule");
        assert_eq!(told(&mut tracker, 0, 64, 2), [(8, false), (8, true)], "as many as there is room for");
        assert_eq!(told(&mut tracker, 0, 32, 8), [(24, false), (8, true)]);
        tracker.mark(Lba((1 << 20) + 4), 8);
        assert_eq!(told(&mut tracker, 1 << 20, 16, 8), [(16, true)], "it has grown");
        assert_eq!(told(&mut tracker, 1 << 20, 16, 8), [(16, false)]);
    }

    #[test]
    fn a_large_volume_has_larger_granules() {
        let tracker = Tracker::new(1, BlockSize::B4096, 1 << 34);
        assert_eq!((tracker.bits.len(), tracker.shift), ((1 << 20) / 64, 14));
        let tracker = Tracker::new(1, BlockSize::B4096, 1 << 16);
        assert_eq!((tracker.bits.len(), tracker.shift), (1 << 10, 0));
    }
}
