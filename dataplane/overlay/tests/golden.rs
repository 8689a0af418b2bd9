//! Encapsulated bytes, written out. The checksums were worked out by hand from the RFCs' definitions and are
//! verified here once more by an independent sum.

mod common;

use common::*;
use overlay::*;

/// The inner frame of all vectors: 10.0.0.1 to 10.0.0.2, UDP 1000 to 2000, "hi".
fn inner() -> Vec<u8> {
    Packet::new(1, 1, 2, false).bytes(b"hi")
}

fn encapsulated(link: Link) -> Vec<u8> {
    let mut node = Node::resolved(&config(1, link), 2);
    let mut frame = node.frame(&inner(), 1);
    assert_eq!(node.judge_tenant(&mut frame), Verdict::Forward);
    node.pool.meta_mut(&mut frame).flow_hash = 0x0001_2345;
    let (result, mut sent) = node.encapsulate(frame, 0x1122_3344_5566_7788);
    assert!(matches!(result, Encapsulated::Sent));
    let outer = sent.remove(0);
    assert_eq!(outer[outer.len() - inner().len()..], inner());
    outer
}

/// Hexadecimal text to bytes.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The sum of RFC 1071 in its plainest form.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let total: u32 = words.sum();
    let total = (total >> 16) + (total & 0xffff);
    ((total >> 16) + (total & 0xffff)) as u16
}

const ETHERNET: &str = "02ff00000002 02ff00000001";
// Source port: 0xc000 | (0x00012345 ^ 0x1) & 0x3fff = 0xe344.
const UDP_VXLAN: &str = "e344 12b5";
const UDP_GENEVE: &str = "e344 17c1";
const VXLAN: &str = "08000000 00006400";
const GENEVE: &str = "05006558 00006400  ff540104 00000007 00012345 1122334455667788";
const INNER_BYTES: usize = 44;

#[test]
fn vxlan_over_ipv4() {
    let outer = encapsulated(Link::VXLAN);
    assert_eq!(inner().len(), INNER_BYTES);
    let head = format!(
        "{ETHERNET} 0800 4500 0050 0000 4000 4011 b699 c0000201 c0000202 {UDP_VXLAN} 003c 0000 {VXLAN}"
    );
    assert_eq!(outer[..50], hex(&head));
    assert_eq!(sum(&outer[14..34]), 0xffff);
}

#[test]
fn vxlan_over_ipv6() {
    let outer = encapsulated(Link { six: true, ..Link::VXLAN });
    let addresses = "20010db8000000000000000000000001 20010db8000000000000000000000002";
    let head = format!("{ETHERNET} 86dd 60012345 003c 11 40 {addresses} {UDP_VXLAN} 003c 0000 {VXLAN}");
    assert_eq!(outer[..70], hex(&head));
}

#[test]
fn geneve_over_ipv4_with_checksum() {
    let link = Link { encapsulation: Encapsulation::Geneve, checksum: true, ..Link::VXLAN };
    let outer = encapsulated(link);
    let head = format!("{ETHERNET} 0800 4500 0064 0000 4000 4011 b685 c0000201 c0000202 {UDP_GENEVE} 0050");
    assert_eq!(outer[..40], hex(&head));
    assert_eq!(outer[42..70], hex(GENEVE));
    assert_eq!(sum(&outer[14..34]), 0xffff);
    let pseudo = [&outer[26..34], &[0, 17], &outer[38..40]].concat();
    assert_eq!(sum(&[&pseudo, &outer[34..]].concat()), 0xffff);
    assert_ne!(outer[40..42], [0, 0]);
}

#[test]
fn geneve_over_ipv6_with_checksum() {
    let link = Link { encapsulation: Encapsulation::Geneve, six: true, checksum: true, ..Link::VXLAN };
    let outer = encapsulated(link);
    let addresses = "20010db8000000000000000000000001 20010db8000000000000000000000002";
    let head = format!("{ETHERNET} 86dd 60012345 0050 11 40 {addresses} {UDP_GENEVE} 0050");
    assert_eq!(outer[..60], hex(&head));
    assert_eq!(outer[62..90], hex(GENEVE));
    let pseudo = [&outer[22..54], &[0, 0], &outer[58..60], &[0, 0, 0, 17]].concat();
    assert_eq!(sum(&[&pseudo, &outer[54..]].concat()), 0xffff);
}

#[test]
fn datagrams_carry_the_tunnel_header_alone() {
    let kind = UnderlayKind::Datagram;
    assert_eq!(encapsulated(Link { kind, ..Link::VXLAN })[..8], hex(VXLAN));
    let link = Link { kind, encapsulation: Encapsulation::Geneve, ..Link::VXLAN };
    assert_eq!(encapsulated(link)[..28], hex(GENEVE));
}

#[test]
fn without_df_identifications_count() {
    let mut config = config(1, Link::VXLAN);
    config.underlays[0].df = false;
    let mut node = Node::resolved(&config, 2);
    let idents: Vec<_> = (0..3)
        .map(|_| {
            let outer = node.send(1, &inner());
            assert_eq!(sum(&outer[14..34]), 0xffff);
            assert_eq!(outer[20..22], [0, 0]);
            u16::from_be_bytes([outer[18], outer[19]])
        })
        .collect();
    assert_eq!(idents, [1, 2, 3]);
}

#[test]
fn source_ports_follow_the_flow_and_stay_in_their_range() {
    let mut node = Node::resolved(&config(1, Link::VXLAN), 2);
    let mut seen = std::collections::HashSet::new();
    for src_port in 0..2000 {
        let packet = Packet { src_port, ..Packet::new(1, 1, 2, false) };
        let port = |outer: Vec<u8>| u16::from_be_bytes([outer[34], outer[35]]);
        let first = port(node.send(1, &packet.bytes(b"a")));
        assert_eq!(first, port(node.send(1, &packet.bytes(b"bb"))), "one flow, one port");
        assert!(first >= 49152);
        seen.insert(first);
    }
    assert!(seen.len() > 1700, "{} different ports of 2000 flows", seen.len());
}
