//! The quick way against the views, and both against anything.

use proptest::prelude::*;

use super::*;

#[path = "../../tests/common/mod.rs"]
mod common;

use common::*;

/// Which quick way takes a shape of [`shapes`], in their order; all others go through the views.
const QUICK: [usize; 7] = [0, 1, 2, 6, 7, 9, 10];

fn plain(frame: &[u8]) -> Option<Parsed> {
    plain_ipv4(frame, UNTAGGED)
        .or_else(|| plain_ipv6(frame, UNTAGGED))
        .or_else(|| plain_ipv4(frame, TAGGED))
        .or_else(|| plain_ipv6(frame, TAGGED))
}

fn check(frame: &[u8]) {
    let slow = parse_any(frame);
    if let Some(quick) = plain(frame) {
        assert_eq!(Ok(quick), slow);
    }
    assert_eq!(parse(frame), slow);
    if let Ok(parsed) = slow {
        let Parsed { l3, l4, payload, l3_end, .. } = parsed;
        assert!(l3 >= 14 && l3 <= l4 && l4 <= payload && u32::from(payload) <= l3_end);
        assert!(l3_end as usize <= frame.len());
        assert_eq!(parsed.l3_bytes(), l3_end - u32::from(l3));
        assert_eq!(parsed.payload_bytes(), l3_end - u32::from(payload));
    }
}

#[test]
fn common_shapes_take_the_quick_way() {
    for (shape, frame) in shapes().iter().enumerate() {
        assert!(parse(frame).is_ok(), "shape {shape}");
        assert_eq!(plain(frame).is_some(), QUICK.contains(&shape), "shape {shape}");
        check(frame);
    }
}

#[test]
fn offsets_and_fields() {
    let parsed: Vec<Parsed> = shapes().iter().map(|frame| parse(frame).unwrap()).collect();
    let offsets =
        |shape: usize| (parsed[shape].l3, parsed[shape].l4, parsed[shape].payload, parsed[shape].l3_end);
    assert_eq!(offsets(0), (14, 34, 66, 106), "timestamps");
    assert_eq!(offsets(1), (14, 34, 54, 54), "pure acknowledgement");
    assert_eq!(parsed[1].payload_bytes(), 0);
    assert_eq!(offsets(3), (14, 74, 94, 134), "IPv4 options");
    assert_eq!(offsets(4), (14, 34, 34, 74), "ICMP");
    assert_eq!(offsets(5), (14, 34, 34, 82), "fragment");
    assert!(parsed[5].fragment && parsed[13].fragment);
    assert_eq!((parsed[5].src_port, parsed[5].dst_port, parsed[13].dst_port), (0, 0, 0));
    assert_eq!(offsets(6), (18, 38, 58, 98), "one tag");
    assert_eq!((parsed[6].vlan, parsed[6].tags), (VlanId::new(7), 1));
    assert_eq!(offsets(8), (22, 42, 62, 102), "two tags");
    assert_eq!((parsed[8].vlan, parsed[8].tags), (VlanId::new(9), 2));
    assert_eq!(offsets(9), (14, 54, 86, 126), "IPv6");
    assert_eq!(offsets(11), (14, 94, 114, 154), "three extension headers");
    assert_eq!(offsets(12), (14, 78, 86, 126), "authenticated");
    assert_eq!(offsets(15), (14, 14, 14, 42), "ARP");
    let tcp = parsed[0];
    assert_eq!((tcp.src_mac, tcp.dst_mac, tcp.ethertype), (MAC_A, MAC_B, EtherType::IPV4));
    assert_eq!((tcp.src_ip(), tcp.dst_ip()), (Some(V4_A.into()), Some(V4_B.into())));
    assert_eq!((tcp.src_port, tcp.dst_port, tcp.proto), (40_000, 4420, protocol::TCP));
    assert_eq!((tcp.dscp, tcp.ecn, tcp.ttl), (10, 1, 63));
    assert_eq!((parsed[9].src_ip(), parsed[9].dst_ip()), (Some(V6_A.into()), Some(V6_B.into())));
    assert_eq!((parsed[15].ip, parsed[15].src_ip()), (IpKind::None, None));
}

/// IEEE 802.3 clause 3.2.8: a short frame is padded to 60 bytes; the IP length says what is meant.
#[test]
fn padding_is_not_payload() {
    let mut frame = shapes()[1].clone();
    frame.resize(ethernet::FRAME_BYTES_MIN, 0);
    let parsed = parse(&frame).unwrap();
    assert_eq!((parsed.l3_end, parsed.payload_bytes(), parsed.l3_bytes()), (54, 0, 40));
}

/// A super-segment as long as an IPv4 packet can be ends beyond 16 bits.
#[test]
fn the_longest_super_segment() {
    let segment = tcp_v4(&[], &vec![0; 65_495]);
    for tag in [None, vlan(7)] {
        let frame = ether(tag, EtherType::IPV4, &v4(protocol::TCP, &[], &segment));
        let parsed = parse(&frame).unwrap();
        assert_eq!((parsed.l3_end as usize, parsed.payload_bytes()), (frame.len(), 65_495));
    }
    let frame = ether(None, EtherType::IPV6, &v6(protocol::TCP, &tcp_v6(&[], &vec![0; 65_515])));
    assert_eq!(parse(&frame).unwrap().payload_bytes(), 65_515);
}

/// A tag that names no VLAN is a tag all the same.
#[test]
fn priority_tags() {
    let tag = ethernet::Tag { vlan: None, ..vlan(1).unwrap() };
    let frame = ether(Some(tag), EtherType::IPV4, &v4(protocol::TCP, &[], &tcp_v4(&[], &[])));
    let parsed = parse(&frame).unwrap();
    assert_eq!((parsed.vlan, parsed.tags, parsed.l3), (None, 1, 18));
}

/// RFC 6946: a fragment header that fragments nothing.
#[test]
fn atomic_fragments_are_whole() {
    let packet = v6(protocol::FRAGMENT, &[&[17, 0, 0, 0, 0, 0, 0, 9], &udp(b"abc")[..]].concat());
    let parsed = parse(&ether(None, EtherType::IPV6, &packet)).unwrap();
    assert!(!parsed.fragment);
    assert_eq!((parsed.proto, parsed.l4, parsed.dst_port), (protocol::UDP, 62, 4789));
}

#[test]
fn flow_hash_tells_flows_apart_and_directions_too() {
    let hashes: std::collections::HashSet<u32> = (0..10_000u32)
        .map(|i| flow_hash(IpKind::V4, u128::from(i >> 8), 1, protocol::TCP, (i & 0xff) as u16, 4420))
        .collect();
    assert!(hashes.len() > 9_990, "{} of 10,000", hashes.len());
    let ports: std::collections::HashSet<u16> = hashes.iter().map(|hash| udp::entropy_port(*hash)).collect();
    assert!(ports.len() > 7_000, "10,000 flows over 16,384 ports: {}", ports.len());
    let one_way = flow_hash(IpKind::V6, 1, 2, protocol::UDP, 3, 4);
    assert_ne!(one_way, flow_hash(IpKind::V6, 2, 1, protocol::UDP, 4, 3));
    assert_ne!(one_way, flow_hash(IpKind::V6, 1 << 64, 2, protocol::UDP, 3, 4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn anything_parses_the_same_both_ways(frame in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&frame);
    }

    #[test]
    fn damaged_frames_parse_the_same_both_ways(
        shape in any::<prop::sample::Index>(),
        damage in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        padding in 0usize..20,
    ) {
        let mut frame = shape.get(&shapes()).clone();
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.resize(frame.len() + padding, 0);
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        check(&frame);
    }
}
