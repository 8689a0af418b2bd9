//! The Internet checksum against the definition in RFC 1071, in every length, alignment and split.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use wire::checksum::{self, Checksum};
use wire::{ipv4, protocol, tcp, udp};

/// RFC 1071 clause 1: "Adjacent octets to be checksummed are paired to form 16-bit integers, and the 1's
/// complement sum of these 16-bit integers is formed."
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC 1071 clause 3: the worked example.
#[test]
fn the_example_of_rfc_1071() {
    assert_eq!(checksum::sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
}

#[test]
fn every_short_length() {
    let bytes: Vec<u8> = (0..200u32).map(|i| (i * 37) as u8).collect();
    for start in 0..9 {
        for end in start..bytes.len() {
            assert_eq!(checksum::sum(&bytes[start..end]), naive(&bytes[start..end]), "{start}..{end}");
        }
    }
}

#[test]
fn all_ones_and_all_zeros() {
    assert_eq!(checksum::sum(&[0xff; 65_535]), naive(&[0xff; 65_535]));
    assert_eq!(checksum::sum(&[0; 1500]), 0);
    assert_eq!(Checksum::new().finish(), 0xffff);
}

/// RFC 1624 clause 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives HC' = 0x0000, where equation 2 of RFC 1141
/// wrongly gave 0xFFFF.
#[test]
fn the_corner_of_rfc_1624() {
    assert_eq!(checksum::update(0xdd2f, 0x5555, 0x3285), 0x0000);
}

/// The same words, with the field behind them.
#[test]
fn a_checksum_left_to_a_device_is_finished() {
    let mut bytes = [0xaa, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0x00, 0x00];
    assert!(checksum::complete(&mut bytes, 1, 8));
    assert_eq!(bytes[9..], (!0xddf2_u16).to_be_bytes());
    assert_eq!(checksum::sum(&bytes[1..]), 0xffff);
}

#[test]
fn a_finished_sum_of_zero_is_all_ones_in_udp_alone() {
    let mut bytes = [0xff, 0xff, 0, 0, 0, 0, 0, 0];
    assert!(checksum::complete(&mut bytes, 0, 6));
    assert_eq!(bytes, [0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]);
    let mut bytes = [0xff, 0xff, 0, 0];
    assert!(checksum::complete(&mut bytes, 0, 2));
    assert_eq!(bytes, [0xff, 0xff, 0, 0]);
}

#[test]
fn a_checksum_outside_the_bytes_is_refused() {
    let mut bytes = [1; 8];
    for (start, offset) in
        [(9, 0), (8, 0), (4, 3), (0, 7), (4, u16::MAX), (u16::MAX, 16), (u16::MAX, u16::MAX)]
    {
        assert!(!checksum::complete(&mut bytes, start, offset), "{start} {offset}");
        assert_eq!(bytes, [1; 8]);
    }
}

#[test]
fn udp_writes_zero_as_all_ones() {
    assert_eq!(checksum::udp(Checksum::new().u16(0xffff)), 0xffff);
    assert_eq!(checksum::udp(Checksum::new().u16(0x1234)), !0x1234);
    assert_eq!(checksum::update_udp(0, 1, 2), 0, "none stays none");
    assert_eq!(checksum::update_udp(0xdd2f, 0x5555, 0x3285), 0xffff);
    assert_eq!(checksum::update_udp(0xdd2f, 0x5555, 0x3286), checksum::update(0xdd2f, 0x5555, 0x3286));
}

#[test]
fn udp_without_checksum() {
    let datagram = common::udp(b"abc");
    let view = udp::View::parse(&datagram).unwrap();
    assert_eq!(view.checksum(), 0);
    assert!(view.checksum_ok_v4(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST));
    assert!(view.checksum_ok_v6(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, true));
    assert!(!view.checksum_ok_v6(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, false));
}

#[test]
fn filling_too_little_does_nothing() {
    let mut short = [1, 2, 3];
    udp::fill_checksum(&mut short, Checksum::new());
    tcp::fill_checksum(&mut short, Checksum::new());
    assert_eq!(short, [1, 2, 3]);
}

proptest! {
    #[test]
    fn sum_is_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert_eq!(checksum::sum(&bytes), naive(&bytes));
    }

    #[test]
    fn pieces_sum_like_the_whole(
        bytes in prop::collection::vec(any::<u8>(), 0..300), a in 0usize..300, b in 0usize..300,
    ) {
        let (a, b) = (a.min(bytes.len()), b.min(bytes.len()));
        let (a, b) = (a.min(b), a.max(b));
        let pieces = Checksum::new().bytes(&bytes[..a]).bytes(&bytes[a..b]).bytes(&bytes[b..]);
        prop_assert_eq!(pieces.folded(), naive(&bytes));
    }

    #[test]
    fn words_sum_like_bytes(a in any::<u16>(), b in any::<u32>()) {
        let bytes = [&a.to_be_bytes()[..], &b.to_be_bytes()].concat();
        prop_assert_eq!(Checksum::new().u16(a).u32(b).folded(), naive(&bytes));
    }

    #[test]
    fn incremental_is_full(
        mut bytes in prop::collection::vec(any::<u8>(), 8..200), at in any::<prop::sample::Index>(),
        new in any::<u32>(), nonzero in 1u8..,
    ) {
        bytes[0] = nonzero; // of all-zero data, 0 and 0xffff are both the sum
        let before = Checksum::new().bytes(&bytes).finish();
        let at = 2 + at.index(bytes.len() - 5) / 2 * 2;
        let old = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        bytes[at..at + 4].copy_from_slice(&new.to_be_bytes());
        let after = Checksum::new().bytes(&bytes).finish();
        prop_assert_eq!(checksum::update_u32(before, old, new), after);
        let halves = checksum::update(before, (old >> 16) as u16, (new >> 16) as u16);
        prop_assert_eq!(checksum::update(halves, old as u16, new as u16), after);
    }

    #[test]
    fn filled_checksums_verify(data in prop::collection::vec(any::<u8>(), 0..100)) {
        let (a4, b4, a6, b6) = (common::V4_A, common::V4_B, common::V6_A, common::V6_B);
        let segment = common::tcp_v4(&[], &data);
        prop_assert!(tcp::View::parse(&segment).unwrap().checksum_ok_v4(a4, b4));
        prop_assert!(!tcp::View::parse(&segment).unwrap().checksum_ok_v4(a4, Ipv4Addr::BROADCAST));
        let segment = common::tcp_v6(&[], &data);
        prop_assert!(tcp::View::parse(&segment).unwrap().checksum_ok_v6(a6, b6));
        let mut datagram = common::udp(&data);
        let len_bytes = datagram.len() as u32;
        udp::fill_checksum(&mut datagram, checksum::pseudo_v4(a4, b4, protocol::UDP, len_bytes));
        prop_assert!(udp::View::parse(&datagram).unwrap().checksum_ok_v4(a4, b4));
        udp::fill_checksum(&mut datagram, checksum::pseudo_v6(a6, b6, protocol::UDP, len_bytes));
        prop_assert!(udp::View::parse(&datagram).unwrap().checksum_ok_v6(a6, b6, false));
        datagram[6] ^= 0x10;
        prop_assert!(!udp::View::parse(&datagram).unwrap().checksum_ok_v6(a6, b6, true));
    }

    #[test]
    fn a_device_finishes_what_the_sender_began(data in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut left = common::udp(&data);
        let mut filled = left.clone();
        let pseudo = checksum::pseudo_v4(common::V4_A, common::V4_B, protocol::UDP, left.len() as u32);
        udp::fill_checksum(&mut filled, pseudo);
        left[6..8].copy_from_slice(&pseudo.folded().to_be_bytes());
        prop_assert!(checksum::complete(&mut left, 0, 6));
        prop_assert_eq!(left, filled);
    }

    #[test]
    fn ipv4_patches_keep_the_checksum(
        dscp in 0u8..64, ecn in 0u8..4, ident in any::<u16>(), ttl in any::<u8>(), total in 20u16..60,
        src in any::<u32>(), dst in any::<u32>(),
    ) {
        let mut packet = common::v4(protocol::UDP, &[], &[0; 40]);
        let mut header = ipv4::HeaderMut(packet.first_chunk_mut().unwrap());
        header.set_dscp_ecn(dscp, 0);
        header.set_ecn(ecn);
        header.set_ident(ident);
        header.set_ttl(ttl);
        header.set_total_bytes(total);
        header.set_src(src.into());
        header.set_dst(dst.into());
        let view = ipv4::View::parse(&packet).unwrap();
        prop_assert!(view.checksum_ok());
        prop_assert_eq!((view.dscp(), view.ecn(), view.ident(), view.ttl()), (dscp, ecn, ident, ttl));
        prop_assert_eq!((view.total_bytes(), view.protocol()), (total, protocol::UDP));
        prop_assert_eq!((view.src().to_bits(), view.dst().to_bits()), (src, dst));
    }
}
