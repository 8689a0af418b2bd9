//! The virtio-net header that AF_PACKET puts before a frame (`PACKET_VNET_HDR`; virtio 1.2, clause 5.1.6),
//! and its translation to and from a frame's metadata.

use frame::{Flags, GsoKind, Meta};

/// Length of `struct virtio_net_hdr` without its later extensions.
pub(super) const VNET_BYTES: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Offset of the flags in a TCP header, and the flag CWR (RFC 3168, clause 6.1).
const TCP_FLAGS: usize = 13;
const TCP_CWR: u8 = 0x80;
/// Offset of the data offset in a TCP header, in the high half of the byte, in words of 4 bytes.
const TCP_DATA_OFFSET: usize = 12;
const UDP_HEADER_BYTES: usize = 8;

/// Writes what the header says into `meta`. `shift` is how many bytes were inserted before the network
/// header since the kernel wrote it (a VLAN tag). False for a kind of super-segment that nobody here can
/// cut.
#[inline(always)]
pub(super) fn decode(header: &[u8; VNET_BYTES], shift: u16, meta: &mut Meta) -> bool {
    // One comparison for the common frame: no offload at all.
    if header[..2] == [0, GSO_NONE] {
        return true;
    }
    if header[0] & F_DATA_VALID != 0 {
        meta.flags.set(Flags::CSUM_VALID);
    }
    if header[0] & F_NEEDS_CSUM != 0 {
        meta.flags.set(Flags::CSUM_PARTIAL);
        meta.csum_start = word(header, 6).saturating_add(shift);
        meta.csum_offset = word(header, 8);
    }
    meta.gso = match header[1] & !GSO_ECN {
        GSO_NONE => return true,
        GSO_TCPV4 => GsoKind::TcpV4,
        GSO_TCPV6 => GsoKind::TcpV6,
        GSO_UDP_L4 => GsoKind::UdpL4,
        _ => return false,
    };
    meta.gso_bytes = word(header, 4);
    true
}

/// The header for a frame. `linear_bytes` is how much of the frame the kernel is to copy into the socket
/// buffer's first part; it is raised to the length of the headers where the kernel needs them there.
#[inline(always)]
pub(super) fn encode(meta: &Meta, bytes: &[u8], linear_bytes: usize) -> [u8; VNET_BYTES] {
    let mut header = [0; VNET_BYTES];
    if meta.flags.has(Flags::CSUM_PARTIAL) {
        header[0] = F_NEEDS_CSUM;
        header[6..8].copy_from_slice(&meta.csum_start.to_le_bytes());
        header[8..10].copy_from_slice(&meta.csum_offset.to_le_bytes());
    }
    let mut linear_bytes = linear_bytes;
    if meta.gso != GsoKind::None {
        let l4 = usize::from(meta.csum_start);
        let byte = |offset: usize| bytes.get(l4 + offset).copied().unwrap_or(0);
        let (kind, l4_bytes) = match meta.gso {
            GsoKind::UdpL4 => (GSO_UDP_L4, UDP_HEADER_BYTES),
            tcp => {
                let kind = if tcp == GsoKind::TcpV4 { GSO_TCPV4 } else { GSO_TCPV6 };
                let ecn = if byte(TCP_FLAGS) & TCP_CWR != 0 { GSO_ECN } else { 0 };
                (kind | ecn, usize::from(byte(TCP_DATA_OFFSET) >> 4) * 4)
            }
        };
        header[1] = kind;
        header[4..6].copy_from_slice(&meta.gso_bytes.to_le_bytes());
        linear_bytes = linear_bytes.max(l4 + l4_bytes).min(bytes.len());
    }
    header[2..4].copy_from_slice(&u16::try_from(linear_bytes).unwrap_or(u16::MAX).to_le_bytes());
    header
}

/// A 16-bit field. The kernel uses the host's own order here, which is little-endian wherever we run.
#[inline(always)]
fn word(header: &[u8; VNET_BYTES], offset: usize) -> u16 {
    u16::from_le_bytes([header[offset], header[offset + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_frame_has_no_offload() {
        let mut meta = Meta::default();
        assert!(decode(&[0; VNET_BYTES], 4, &mut meta));
        assert_eq!((meta.flags, meta.gso), (Flags::default(), GsoKind::None));
        assert_eq!(encode(&meta, &[0; 60], 60), [0, 0, 60, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_super_segment_survives_the_round_trip() {
        for (kind, number) in
            [(GsoKind::TcpV4, GSO_TCPV4), (GsoKind::TcpV6, GSO_TCPV6), (GsoKind::UdpL4, GSO_UDP_L4)]
        {
            let mut bytes = [0u8; 200];
            bytes[34 + TCP_DATA_OFFSET] = 0x80;
            let header = [F_NEEDS_CSUM, number, 66, 0, 0xa8, 5, 34, 0, 16, 0];
            let mut meta = Meta::default();
            assert!(decode(&header, 0, &mut meta));
            assert_eq!((meta.gso, meta.gso_bytes, meta.csum_start, meta.csum_offset), (kind, 1448, 34, 16));
            let mut expected = header;
            expected[2] = if kind == GsoKind::UdpL4 { 42 } else { 66 };
            assert_eq!(encode(&meta, &bytes, 0), expected);
        }
    }

    #[test]
    fn congestion_window_reduced_is_told_to_the_kernel() {
        let mut bytes = [0u8; 100];
        bytes[34 + TCP_FLAGS] = TCP_CWR;
        bytes[34 + TCP_DATA_OFFSET] = 0x50;
        let mut meta = Meta::default();
        assert!(decode(&[F_NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 54, 0, 0xa8, 5, 34, 0, 16, 0], 0, &mut meta));
        assert_eq!(encode(&meta, &bytes, 0)[1], GSO_TCPV4 | GSO_ECN);
    }

    #[test]
    fn a_vlan_tag_moves_the_checksum_and_odd_kinds_are_refused() {
        let mut meta = Meta::default();
        assert!(decode(&[F_NEEDS_CSUM | F_DATA_VALID, 0, 0, 0, 0, 0, 34, 0, 6, 0], 4, &mut meta));
        assert_eq!(meta.csum_start, 38);
        assert!(meta.flags.has(Flags::CSUM_VALID));
        assert!(!decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0], 0, &mut meta));
    }

    #[test]
    fn a_request_that_points_outside_the_frame_does_not_panic() {
        let mut meta = Meta::default();
        meta.gso = GsoKind::TcpV4;
        meta.csum_start = u16::MAX;
        let header = encode(&meta, &[0; 20], 0);
        assert_eq!(u16::from_le_bytes([header[2], header[3]]), 20);
    }
}
