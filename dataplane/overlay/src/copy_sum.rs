//! Copying and checksumming in one pass over the bytes.
//!
//! Segmentation and coalescing move every payload byte once and need its Internet checksum (RFC 1071).
//! A copy followed by a sum reads the payload twice; here each 32-byte block is loaded once, stored, and
//! added to independent lanes, which the compiler turns into vector code without any `unsafe`.

/// Copies `from` to `to` and returns the one's complement sum of its big-endian words, folded and not
/// complemented (as `wire::checksum::sum` does: an odd last byte is the high half of a word).
///
/// Both slices must have one length; what is longer in either is left alone.
#[inline]
pub(crate) fn copy_sum(to: &mut [u8], from: &[u8]) -> u16 {
    debug_assert_eq!(to.len(), from.len());
    let (to_blocks, to_rest) = to.as_chunks_mut::<BLOCK_BYTES>();
    let (from_blocks, from_rest) = from.as_chunks::<BLOCK_BYTES>();
    let mut lanes = [0u64; BLOCK_BYTES / 4];
    for (to, from) in to_blocks.iter_mut().zip(from_blocks) {
        *to = *from;
        let (words, _) = from.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    for (to, from) in to_rest.iter_mut().zip(from_rest) {
        *to = *from;
    }
    // A lane overflows after 2^32 blocks; a frame has some 2^11.
    let total = lanes.iter().sum::<u64>() + sum_short(from_rest);
    u16::from_be(fold(total))
}

const BLOCK_BYTES: usize = 32;

/// Native-order sum of less than a block.
#[inline(always)]
fn sum_short(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// Folds to 16 bits with end-around carry; byte order does not matter (RFC 1071, clause 2, item B).
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::copy_sum;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copies_and_sums_as_two_passes_would(bytes in prop::collection::vec(any::<u8>(), 0..3000), skip in 0usize..9) {
            let from = bytes.get(skip..).unwrap_or_default();
            let mut to = vec![0xaa; from.len()];
            prop_assert_eq!(copy_sum(&mut to, from), wire::checksum::sum(from));
            prop_assert_eq!(&to[..], from);
        }
    }
}
