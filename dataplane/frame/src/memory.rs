//! Plain memory from hugepages: what a volume in memory keeps its bytes in.

use crate::slab::Mapping;
use crate::{Backing, SlabError};

/// Zeroed bytes, from hugepages when there are some.
#[derive(Debug)]
pub struct HugeBytes {
    mapping: Mapping,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone; access follows the borrow of it.
unsafe impl Send for HugeBytes {}
// SAFETY: as above; `&HugeBytes` only reads.
unsafe impl Sync for HugeBytes {}

impl HugeBytes {
    /// Maps `len` bytes, at least one.
    pub fn new(len: usize, hugepages: bool) -> Result<HugeBytes, SlabError> {
        let bytes = len.max(1);
        let mapping = Mapping::new(bytes, hugepages).map_err(|source| SlabError::Map { bytes, source })?;
        Ok(HugeBytes { mapping, len })
    }

    /// What they were mapped from.
    pub fn backing(&self) -> &Backing {
        &self.mapping.backing
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.mapping.bytes()[..self.len]
    }

    /// The bytes, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.mapping.bytes_mut()[..self.len]
    }
}

#[cfg(test)]
mod tests {
    //! As long as asked, zeroed, kept.

    use super::*;

    #[test]
    fn bytes_are_zero_until_written() {
        let mut memory = HugeBytes::new(5000, false).expect("maps");
        assert!(matches!(memory.backing(), Backing::Normal { .. }));
        assert_eq!(memory.bytes(), [0; 5000]);
        memory.bytes_mut()[4999] = 7;
        assert_eq!(memory.bytes()[4999], 7);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let error = HugeBytes::new(1 << 55, false).unwrap_err();
        assert!(matches!(error, SlabError::Map { .. }), "{error}");
    }
}
