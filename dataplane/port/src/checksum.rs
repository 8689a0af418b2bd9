//! Finishing a checksum that a sender left to its device (`CSUM_PARTIAL`).
//!
//! A local TCP stack that believes in checksum offload stores only the folded pseudo-header sum in the
//! transport header and says where the rest begins. AF_PACKET can pass that request on; a port that cannot
//! must finish the sum before the frame leaves the host.

use frame::{Flags, GsoKind, Meta};

/// Finishes the checksum of `bytes` if `meta` asks for it, and clears the request. The sum runs from
/// `csum_start` to the end of the frame (virtio 1.2, clause 5.1.6.2).
///
/// False when the request points outside the frame, or when the frame is a super-segment, whose segments
/// do not exist yet: such a frame must not be sent.
#[inline]
pub fn complete_partial_checksum(bytes: &mut [u8], meta: &mut Meta) -> bool {
    if !meta.flags.has(Flags::CSUM_PARTIAL) {
        return meta.gso == GsoKind::None;
    }
    finish(bytes, meta)
}

fn finish(bytes: &mut [u8], meta: &mut Meta) -> bool {
    let start = usize::from(meta.csum_start);
    let field = start + usize::from(meta.csum_offset);
    if meta.gso != GsoKind::None || field + 2 > bytes.len() {
        return false;
    }
    let sum = wire::checksum::Checksum::new().bytes(&bytes[start..]);
    let checksum = wire::checksum::offloaded(sum, usize::from(meta.csum_offset));
    bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    meta.flags.clear(Flags::CSUM_PARTIAL);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(start: u16, offset: u16) -> Meta {
        let mut meta = Meta::default();
        meta.csum_start = start;
        meta.csum_offset = offset;
        meta.flags.set(Flags::CSUM_PARTIAL);
        meta
    }

    /// The words of RFC 1071, clause 3: their sum is ddf2.
    #[test]
    fn sums_the_example_of_rfc_1071() {
        let mut bytes = [0xaa, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0x00, 0x00];
        let mut meta = partial(1, 8);
        assert!(complete_partial_checksum(&mut bytes, &mut meta));
        assert_eq!(bytes[9..], (!0xddf2u16).to_be_bytes());
        assert!(!meta.flags.has(Flags::CSUM_PARTIAL));
    }

    #[test]
    fn a_sum_of_zero_is_stored_as_ones_in_udp_alone() {
        let mut bytes = [0xff, 0xff, 0, 0, 0, 0, 0, 0];
        assert!(complete_partial_checksum(&mut bytes, &mut partial(0, 6)));
        assert_eq!(bytes, [0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]);
        let mut bytes = [0xff, 0xff, 0, 0];
        assert!(complete_partial_checksum(&mut bytes, &mut partial(0, 2)));
        assert_eq!(bytes, [0xff, 0xff, 0, 0]);
    }

    #[test]
    fn leaves_other_frames_alone() {
        let mut bytes = [1, 2, 3];
        assert!(complete_partial_checksum(&mut bytes, &mut Meta::default()));
        assert_eq!(bytes, [1, 2, 3]);
    }

    #[test]
    fn refuses_what_cannot_be_finished() {
        let mut bytes = [0; 8];
        assert!(!complete_partial_checksum(&mut bytes, &mut partial(4, 3)));
        assert!(!complete_partial_checksum(&mut bytes, &mut partial(u16::MAX, u16::MAX)));
        let mut super_segment = partial(0, 2);
        super_segment.gso = GsoKind::TcpV4;
        assert!(!complete_partial_checksum(&mut bytes, &mut super_segment));
    }
}
