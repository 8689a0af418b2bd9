//! Finishing a checksum that a sender left to its device (`CSUM_PARTIAL`).
//!
//! A local TCP stack that believes in checksum offload stores only the folded pseudo-header sum in the
//! transport header and says where the rest begins. AF_PACKET can pass that request on; a port that cannot
//! must finish the sum before the frame leaves the host.

use frame::{Flags, GsoKind, Meta};

/// Finishes the checksum of `bytes` if `meta` asks for it, and clears the request.
///
/// False, and no change, when the request points outside the frame, or when the frame is a super-segment,
/// whose segments do not exist yet: such a frame must not be sent.
#[inline]
pub fn complete_partial_checksum(bytes: &mut [u8], meta: &mut Meta) -> bool {
    if meta.gso != GsoKind::None {
        return false;
    }
    if !meta.flags.has(Flags::CSUM_PARTIAL) {
        return true;
    }
    let finished = wire::checksum::complete(bytes, meta.csum_start, meta.csum_offset);
    if finished {
        meta.flags.clear(Flags::CSUM_PARTIAL);
    }
    finished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_done_once_and_no_other_frame_is_touched() {
        let mut bytes = [0xff, 0xff, 0, 0];
        let mut meta = Meta::default();
        assert!(complete_partial_checksum(&mut bytes, &mut meta));
        assert_eq!(bytes, [0xff, 0xff, 0, 0]);
        meta.csum_offset = 2;
        meta.flags.set(Flags::CSUM_PARTIAL);
        bytes[0] = 0;
        for _ in 0..2 {
            assert!(complete_partial_checksum(&mut bytes, &mut meta));
            assert_eq!(bytes, [0, 0xff, 0xff, 0]);
        }
    }

    #[test]
    fn what_cannot_be_finished_must_not_be_sent() {
        let mut meta = Meta::default();
        meta.csum_start = 4;
        meta.flags.set(Flags::CSUM_PARTIAL);
        assert!(!complete_partial_checksum(&mut [0; 5], &mut meta));
        assert!(meta.flags.has(Flags::CSUM_PARTIAL));
        let mut super_segment = Meta::default();
        super_segment.gso = GsoKind::TcpV4;
        assert!(!complete_partial_checksum(&mut [0; 60], &mut super_segment));
    }
}
