//! The Internet checksum (RFC 1071): full, over pseudo-headers, and incremental (RFC 1624).
//!
//! The sum is taken over native 32-bit words in independent lanes and swapped once at the end, since
//! one's complement addition does not care for byte order (RFC 1071 clause 2, item B).

use std::net::{Ipv4Addr, Ipv6Addr};

/// A running one's complement sum of 16-bit big-endian words.
///
/// Pieces may have any length; a piece after an odd one is added with its bytes swapped, as if all
/// pieces lay in one buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Checksum {
    /// Cannot overflow: each addition is below 2^33 and there are far fewer than 2^31 of them.
    sum: u64,
    odd: bool,
}

impl Checksum {
    /// The sum of nothing.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { sum: 0, odd: false }
    }

    /// Adds bytes.
    #[inline]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let sum = sum(bytes);
        self.sum += u64::from(if self.odd { sum.swap_bytes() } else { sum });
        self.odd ^= !bytes.len().is_multiple_of(2);
        self
    }

    /// Adds one word, at an even position.
    #[inline(always)]
    pub const fn u16(mut self, word: u16) -> Self {
        self.sum += word as u64;
        self
    }

    /// Adds two words, at an even position.
    #[inline(always)]
    pub const fn u32(mut self, words: u32) -> Self {
        self.sum += (words >> 16) as u64 + (words & 0xffff) as u64;
        self
    }

    /// The sum folded to 16 bits, not complemented. A correct packet, its checksum field included, sums
    /// to 0xffff.
    #[inline(always)]
    pub const fn folded(self) -> u16 {
        fold(self.sum)
    }

    /// The value for the checksum field (for UDP see [`udp`]).
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.folded()
    }
}

/// One's complement sum of `bytes` as big-endian words, folded and not complemented. A last odd byte is
/// the high half of a word whose low half is zero.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut lanes = [0u64; 8];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    // Lanes hold sums of 32-bit words: 2^32 blocks would be needed to overflow one.
    let mut total: u64 = lanes.iter().sum();
    let (words, tail) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    total += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(total))
}

/// RFC 1071 clause 4.1: "Fold 32-bit sum to 16 bits", here from 64.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// RFC 9293 clause 3.1 and RFC 768: the pseudo-header over IPv4. `len_bytes` is the length of the
/// transport header and payload.
#[inline(always)]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len_bytes: u32) -> Checksum {
    Checksum::new().u32(src.to_bits()).u32(dst.to_bits()).u16(u16::from(protocol)).u32(len_bytes)
}

/// RFC 8200 clause 8.1: the pseudo-header over IPv6. `len_bytes` is the length of the upper-layer header
/// and payload.
#[inline(always)]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len_bytes: u32) -> Checksum {
    Checksum::new().bytes(&src.octets()).bytes(&dst.octets()).u32(len_bytes).u16(u16::from(protocol))
}

/// The field of a UDP header for a sum.
///
/// RFC 768: "If the computed checksum is zero, it is transmitted as all ones (the equivalent in one's
/// complement arithmetic). An all zero transmitted checksum value means that the transmitter generated
/// no checksum".
#[inline(always)]
pub const fn udp(sum: Checksum) -> u16 {
    match sum.finish() {
        0 => 0xffff,
        value => value,
    }
}

/// Finishes a checksum that a sender left to its device: the sum runs from `start` to the end of `bytes`,
/// over the pseudo-header sum that the sender left in the field, `offset` bytes behind `start` (virtio 1.2,
/// clause 5.1.6.2). False, and no change, when the field lies outside `bytes`.
///
/// Only UDP knows a value that means "none" (RFC 768); its field lies at offset 6 and no other protocol's
/// does. TCP (RFC 9293, clause 3.1) and ICMPv6 send a computed zero as it is.
#[must_use]
pub fn complete(bytes: &mut [u8], start: u16, offset: u16) -> bool {
    const UDP_OFFSET: u16 = 6;
    let Some(covered) = bytes.get_mut(usize::from(start)..) else { return false };
    let sum = Checksum::new().bytes(covered);
    let at = usize::from(offset);
    let Some(field) = covered.get_mut(at..at + 2) else { return false };
    let value = if offset == UDP_OFFSET { udp(sum) } else { sum.finish() };
    field.copy_from_slice(&value.to_be_bytes());
    true
}

/// The checksum after one word of the covered bytes went from `old` to `new`.
///
/// RFC 1624 clause 3, equation 3: "HC' = ~(~HC + ~m + m')".
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

/// [`update`] for two adjacent words.
#[inline(always)]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

/// [`update`] for UDP: no checksum stays no checksum, and a computed zero is sent as all ones.
#[inline(always)]
pub const fn update_udp(checksum: u16, old: u16, new: u16) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match update(checksum, old, new) {
        0 => 0xffff,
        value => value,
    }
}
