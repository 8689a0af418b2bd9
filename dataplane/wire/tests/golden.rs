//! Byte arrays beside the clause that they come from: what is read from them, and that exactly they are
//! written.

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::{EtherType, Mac, Vni, arp, geneve, icmp4, icmp6, ipv4, ipv6, tcp, udp, vxlan};

/// RFC 7348 clause 5, figure 1: flags R R R R I R R R with I set, 24 reserved bits, the VNI, 8 reserved bits.
#[rustfmt::skip]
const VXLAN: [u8; 8 + 14] = [
    0x08, 0x00, 0x00, 0x00,
    0x12, 0x34, 0x56, 0x00,
    // Inner Ethernet header.
    0x02, 0, 0, 0, 0, 0x0b, 0x02, 0, 0, 0, 0, 0x0a, 0x08, 0x00,
];

#[test]
fn vxlan_as_figure_1_draws_it() {
    let view = vxlan::View::parse(&VXLAN).unwrap();
    assert_eq!(view.vni(), Vni::new(0x12_3456).unwrap());
    assert_eq!(view.payload(), &VXLAN[8..]);
    let mut out = [0xff; 8];
    let header = vxlan::Header { vni: view.vni() };
    assert_eq!(header.emit(&mut out), Ok(8));
    assert_eq!(out, VXLAN[..8]);
}

/// RFC 7348 clause 5: reserved bits are "ignored on receipt".
#[test]
fn vxlan_reserved_bits_are_ignored() {
    let header = [0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x2a, 0xff];
    assert_eq!(vxlan::View::parse(&header).unwrap().vni(), Vni::new(42).unwrap());
}

/// RFC 8926 clause 3.4: version 0, no options, neither O nor C, Transparent Ethernet Bridging, VNI.
const GENEVE_BARE: [u8; 8] = [0x00, 0x00, 0x65, 0x58, 0xab, 0xcd, 0xef, 0x00];

/// RFC 8926 clauses 3.4 and 3.5: five words of options. Class 0xff54 (experimental), type 0x01 (not
/// critical), four words of data.
#[rustfmt::skip]
const GENEVE_TIDEGATE: [u8; 28] = [
    0x05, 0x00, 0x65, 0x58, 0x00, 0x00, 0x2a, 0x00,
    0xff, 0x54, 0x01, 0x04,
    0x00, 0x00, 0x00, 0x07,
    0xde, 0xad, 0xbe, 0xef,
    0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
];

#[test]
fn geneve_without_options() {
    let view = geneve::View::parse(&GENEVE_BARE).unwrap();
    assert_eq!(view.vni(), Vni::new(0xab_cdef).unwrap());
    assert_eq!(view.ethertype(), EtherType::TRANSPARENT_ETHERNET);
    assert_eq!((view.header_bytes(), view.payload()), (8, &[][..]));
    assert!(!view.is_control() && !view.says_critical() && !view.has_unknown_critical());
    assert_eq!(view.tidegate(), None);
    let header = geneve::Header { ethertype: view.ethertype(), vni: view.vni(), tidegate: None };
    let mut out = [0xff; 8];
    assert_eq!(header.emit(&mut out), Ok(8));
    assert_eq!(out, GENEVE_BARE);
}

#[test]
fn geneve_with_the_tidegate_option() {
    let view = geneve::View::parse(&GENEVE_TIDEGATE).unwrap();
    let option = geneve::Tidegate { epoch: 7, flow: 0xdead_beef, trace: 0x0123_4567_89ab_cdef };
    assert_eq!(view.tidegate(), Some(option));
    assert!(!view.has_unknown_critical());
    let header = geneve::Header { ethertype: view.ethertype(), vni: view.vni(), tidegate: Some(option) };
    let mut out = [0xff; 28];
    assert_eq!(header.emit(&mut out), Ok(28));
    assert_eq!(out, GENEVE_TIDEGATE);
    assert_eq!(out[geneve::Tidegate::DATA_AT..], option.octets());
}

/// RFC 8926 clause 3.5: foreign options are skipped, whatever their length, the reserved bits over the length
/// are ignored, and a critical type must be recognised.
#[test]
fn geneve_with_foreign_options() {
    #[rustfmt::skip]
    let mut packet = vec![
        0x08, 0xc0, 0x65, 0x58, 0x00, 0x00, 0x2a, 0x00,
        0x01, 0x02, 0x00, 0xe0,                         // no data; reserved bits set
        0x01, 0x02, 0x83, 0x01, 0x11, 0x22, 0x33, 0x44, // critical
    ];
    packet.extend_from_slice(&GENEVE_TIDEGATE[8..]);
    packet.extend_from_slice(b"inner");
    let view = geneve::View::parse(&packet).unwrap();
    assert!(view.is_control() && view.says_critical() && view.has_unknown_critical());
    assert_eq!(view.options().count(), 3);
    let second = view.options().nth(1).unwrap();
    assert_eq!((second.class, second.kind, second.data), (0x0102, 0x83, &[0x11, 0x22, 0x33, 0x44][..]));
    assert!(second.is_critical());
    assert_eq!(view.tidegate().unwrap().epoch, 7);
    assert_eq!(view.payload(), b"inner");
}

/// A Tidegate option of another length is no Tidegate option.
#[test]
fn geneve_tidegate_option_of_a_wrong_length() {
    let option = geneve::GeneveOption { class: 0xff54, kind: 1, data: &[0; 12] };
    assert_eq!(geneve::Tidegate::parse(&option), None);
}

/// RFC 826, packet format: hardware 1, protocol 0x0800, lengths 6 and 4, request, sender, target.
#[rustfmt::skip]
const ARP: [u8; 28] = [
    0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01,
    0x02, 0x00, 0x00, 0x00, 0x00, 0x0a, 10, 0, 0, 1,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 10, 0, 0, 2,
];

#[test]
fn arp_request_and_reply() {
    let request = arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: Mac([2, 0, 0, 0, 0, 10]),
        sender_ip: Ipv4Addr::new(10, 0, 0, 1),
        target_mac: Mac::ZERO,
        target_ip: Ipv4Addr::new(10, 0, 0, 2),
    };
    assert_eq!(arp::Packet::parse(&ARP), Ok(request));
    let mut out = [0xff; 28];
    assert_eq!(request.emit(&mut out), Ok(28));
    assert_eq!(out, ARP);
    let reply = arp::Packet { operation: arp::Operation::Reply, ..request };
    reply.emit(&mut out).unwrap();
    assert_eq!(out[6..8], [0, 2]);
    assert_eq!(arp::Packet::parse(&out), Ok(reply));
}

/// A header whose checksum is worked out by hand in many textbooks: 0xb861.
#[rustfmt::skip]
const IPV4: [u8; 20] = [
    0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11,
    0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
];

#[test]
fn ipv4_header_with_its_checksum() {
    let packet = [&IPV4[..], &[0; 0x73 - 20]].concat();
    let view = ipv4::View::parse(&packet).unwrap();
    assert!(view.checksum_ok());
    assert_eq!(view.checksum(), 0xb861);
    let header = ipv4::Header {
        dscp: 0,
        ecn: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol: 17,
        src: Ipv4Addr::new(192, 168, 0, 1),
        dst: Ipv4Addr::new(192, 168, 0, 199),
        options: &[],
        payload_bytes: 0x73 - 20,
    };
    let mut out = [0; 20];
    assert_eq!(header.emit(&mut out), Ok(20));
    assert_eq!(out, IPV4);
}

/// RFC 8200 clause 3: version, traffic class, flow label; payload length, next header, hop limit; addresses.
#[test]
fn ipv6_fixed_header() {
    let mut golden = vec![0x6b, 0x91, 0x23, 0x45, 0x00, 0x08, 0x11, 0xff];
    golden.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
    golden.extend_from_slice(&"ff02::1".parse::<Ipv6Addr>().unwrap().octets());
    golden.extend_from_slice(&[0xc0, 0x00, 0x12, 0xb5, 0x00, 0x08, 0x00, 0x00]);
    let view = ipv6::View::parse(&golden).unwrap();
    assert_eq!((view.dscp(), view.ecn(), view.flow_label()), (0x2e, 1, 0x12345));
    assert_eq!((view.payload_bytes(), view.protocol(), view.hop_limit()), (8, 17, 255));
    assert_eq!(udp::View::parse(view.payload()).unwrap().dst_port(), vxlan::UDP_PORT);
    let header = ipv6::Header {
        dscp: 0x2e,
        ecn: 1,
        flow_label: 0x12345,
        next_header: 17,
        hop_limit: 255,
        src: view.src(),
        dst: view.dst(),
        payload_bytes: 8,
    };
    let mut out = [0; 40];
    assert_eq!(header.emit(&mut out), Ok(40));
    assert_eq!(out, golden[..40]);
}

/// RFC 1191 clause 4: type 3, code 4, the MTU in the low half of the second word.
#[test]
fn icmp4_fragmentation_needed() {
    let mut message = vec![0; 8];
    message.extend_from_slice(&IPV4);
    let says = icmp4::Message::FragmentationNeeded { mtu_bytes: 1450 };
    assert_eq!(says.emit(&mut message), Ok(8));
    assert_eq!(message[..2], [3, 4]);
    assert_eq!(message[4..8], [0, 0, 0x05, 0xaa]);
    let view = icmp4::View::parse(&message).unwrap();
    assert!(view.checksum_ok());
    assert_eq!((view.message(), view.payload()), (says, &IPV4[..]));
}

/// RFC 4443 clause 3.2: type 2, code 0, the MTU in the second word.
#[test]
fn icmp6_packet_too_big() {
    let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let mut message = vec![0; 8 + 48];
    let says = icmp6::Message::PacketTooBig { mtu_bytes: 1430 };
    assert_eq!(says.emit(&mut message, src, dst), Ok(8));
    assert_eq!(message[..2], [2, 0]);
    assert_eq!(message[4..8], [0, 0, 0x05, 0x96]);
    let view = icmp6::View::parse(&message).unwrap();
    assert!(view.checksum_ok(src, dst) && !view.is_neighbour());
    assert!(!view.checksum_ok(src, Ipv6Addr::UNSPECIFIED));
    assert_eq!(view.message(), says);
}

/// RFC 4861 clauses 4.3, 4.4 and 4.6.1: target at byte 8, flags R S O in the top bits, a link-layer option of
/// type 1 or 2 and length 1.
#[test]
fn neighbour_solicitation_and_advertisement() {
    let target: Ipv6Addr = "fd00::1:2:3".parse().unwrap();
    let src: Ipv6Addr = "fe80::a".parse().unwrap();
    let dst = icmp6::solicited_node(target);
    assert_eq!(dst, "ff02::1:ff02:3".parse::<Ipv6Addr>().unwrap());
    assert_eq!(Mac::from_ipv6_multicast(dst), Mac([0x33, 0x33, 0xff, 0x02, 0x00, 0x03]));
    let mac = Mac([2, 0, 0, 0, 0, 10]);
    let ask = icmp6::Neighbour::Solicitation { target, source_mac: Some(mac) };
    let mut out = [0xff; 32];
    assert_eq!(ask.emit(&mut out, src, dst), Ok(32));
    assert_eq!((out[0], &out[4..8], &out[24..]), (135, &[0; 4][..], &[1, 1, 2, 0, 0, 0, 0, 10][..]));
    assert_eq!(out[8..24], target.octets());
    let say = icmp6::Neighbour::Advertisement {
        target,
        target_mac: Some(mac),
        router: false,
        solicited: true,
        overrides: true,
    };
    assert_eq!(say.emit(&mut out, target, src), Ok(32));
    assert_eq!((out[0], out[4], &out[24..]), (136, 0x60, &[2, 1, 2, 0, 0, 0, 0, 10][..]));
}

/// RFC 9293 clause 3.2 and RFC 7323: maximum segment size, padding, window scale, timestamps, end of list.
#[test]
fn tcp_options_in_order() {
    #[rustfmt::skip]
    let options = [
        2, 4, 0x05, 0xb4, 1, 3, 3, 7, 1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8, 4, 2, 0, 0xff,
    ];
    let header = tcp::Header {
        src_port: 1,
        dst_port: 2,
        sequence: 3,
        acknowledgement: 4,
        flags: tcp::Flags::SYN,
        window: 5,
        options: &options,
    };
    let mut segment = [0; 44];
    assert_eq!(header.emit(&mut segment), Ok(44));
    assert_eq!(segment[12..14], [0xb0, 0x02]);
    let view = tcp::View::parse(&segment).unwrap();
    assert_eq!(view.mss_bytes(), Some(1460));
    assert_eq!(format!("{:?}", view.flags()), r#"{"SYN"}"#);
    let found: Result<Vec<_>, _> = view.options().collect();
    use tcp::TcpOption::{MaximumSegment, Other, Timestamps, WindowScale};
    assert_eq!(
        found.unwrap(),
        [
            MaximumSegment { bytes: 1460 },
            WindowScale { shift: 7 },
            Timestamps { value: 9, echo: 8 },
            Other { kind: 4, data: &[] },
        ]
    );
}
