//! Every way in which bytes are refused: cut off at each byte, and each error by name.

mod common;

use common::*;
use wire::ParseError::{BadChecksum, Malformed, TooManyHeaders, Truncated, UnsupportedType};
use wire::{
    EmitError, EtherType, Mac, ParseError, VlanId, Vni, arp, checksum, ethernet, geneve, icmp4, icmp6, ipv4,
    ipv6, parse, protocol, tcp, udp, vxlan,
};

/// `read` must say [`Truncated`] for every prefix of `bytes` below `enough`, and be content from there.
fn cut<T>(bytes: &[u8], enough: usize, read: impl Fn(&[u8]) -> Result<T, ParseError>) {
    for len in 0..enough {
        assert_eq!(read(&bytes[..len]).err(), Some(Truncated), "{len} of {enough} bytes");
    }
    for len in enough..=bytes.len() {
        assert_eq!(read(&bytes[..len]).err(), None, "{len} bytes");
    }
}

#[test]
fn every_header_cut_at_every_byte() {
    cut(&ether(None, EtherType::IPV4, &[0; 20]), 14, |b| ethernet::View::parse(b).map(drop));
    cut(&ether(vlan(7), EtherType::IPV4, &[0; 20]), 18, |b| ethernet::View::parse(b).map(drop));
    cut(&[&v4(17, &[1; 8], &[0; 4])[..], &[0; 9]].concat(), 32, |b| ipv4::View::parse(b).map(drop));
    cut(&[&v6(17, &[0; 4])[..], &[0; 9]].concat(), 44, |b| ipv6::View::parse(b).map(drop));
    cut(&[&udp(&[0; 4])[..], &[0; 9]].concat(), 12, |b| udp::View::parse(b).map(drop));
    cut(&tcp_v4(&[1; 12], &[0; 4]), 32, |b| tcp::View::parse(b).map(drop));
    cut(&[0; 12], 8, |b| icmp4::View::parse(b).map(drop));
    cut(&[0; 12], 8, |b| icmp6::View::parse(b).map(drop));
    let mut packet = [0; 34];
    some_arp().emit(&mut packet).unwrap();
    cut(&packet, 28, arp::Packet::parse);
    cut(&[8, 0, 0, 0, 0, 0, 1, 0, 0, 0], 8, |b| vxlan::View::parse(b).map(drop));
    let mut tunnel = [0; 30];
    some_geneve().emit(&mut tunnel).unwrap();
    cut(&tunnel, 28, |b| geneve::View::parse(b).map(drop));
}

/// Each prefix of each shape of frame: never a panic, and never an offset outside.
#[test]
fn every_frame_cut_at_every_byte() {
    for (shape, frame) in shapes().into_iter().enumerate() {
        assert!(parse(&frame).is_ok(), "shape {shape}");
        for len in 0..frame.len() {
            match parse(&frame[..len]) {
                // Only what is not IP has no length of its own.
                Ok(parsed) => assert_eq!((parsed.ip, parsed.l3_end), (wire::IpKind::None, len as u32)),
                Err(error) => assert_eq!(error, Truncated, "shape {shape} cut to {len}"),
            }
        }
    }
}

fn some_arp() -> arp::Packet {
    arp::Packet {
        operation: arp::Operation::Reply,
        sender_mac: MAC_A,
        sender_ip: V4_A,
        target_mac: MAC_B,
        target_ip: V4_B,
    }
}

fn some_geneve() -> geneve::Header {
    geneve::Header {
        ethertype: EtherType::TRANSPARENT_ETHERNET,
        vni: Vni::MAX,
        tidegate: Some(geneve::Tidegate::default()),
    }
}

#[test]
fn ethernet_refusals() {
    let reserved = [&[0; 12][..], &[0x81, 0x00, 0x0f, 0xff, 0x08, 0x00]].concat();
    assert_eq!(ethernet::View::parse(&reserved).err(), Some(Malformed));
    let three = [&[0; 12][..], &[0x81, 0, 0, 1], &[0x81, 0, 0, 2], &[0x81, 0, 0, 3, 8, 0]].concat();
    assert_eq!(ethernet::View::parse(&three).err(), Some(TooManyHeaders));
    assert_eq!(parse(&three).err(), Some(TooManyHeaders));
}

#[test]
fn ipv4_refusals() {
    let patched = |at: usize, value: u8| {
        let mut packet = v4(17, &[], &udp(&[0; 20]));
        packet[at] = value;
        (ipv4::View::parse(&packet).err(), parse(&ether(None, EtherType::IPV4, &packet)).err())
    };
    // Version 5; headers of 4 and of 15 words; total lengths of 19 and of 0.
    for (at, value) in [(0, 0x55), (0, 0x44), (0, 0x4f), (3, 19), (3, 0)] {
        assert_eq!(patched(at, value), (Some(Malformed), Some(Malformed)), "byte {at} = {value:#x}");
    }
    assert_eq!(patched(3, 49), (Some(Truncated), Some(Truncated)), "longer than the frame");
}

#[test]
fn ipv6_refusals() {
    let read = |packet: &[u8]| {
        let frame = parse(&ether(None, EtherType::IPV6, packet)).err();
        let view = ipv6::View::parse(packet).err();
        assert_eq!(frame, view);
        view
    };
    let mut version = v6(17, &udp(&[]));
    version[0] = 0x40;
    assert_eq!(read(&version), Some(Malformed));
    assert_eq!(read(&v6(6, &[])), Some(Malformed), "no length but a promised header");
    assert_eq!(read(&v6(59, &[])), None);
    let jumbogram = [vec![6, 0, 0xc2, 4, 0, 1, 0, 0], tcp_v6(&[], &[])].concat();
    let mut packet = v6(0, &jumbogram);
    packet[4..6].copy_from_slice(&[0, 0]);
    assert_eq!(read(&packet), Some(Malformed), "RFC 2675");
    let hop_by_hop_second = [extension(0, 8), extension(17, 8), udp(&[])].concat();
    assert_eq!(read(&v6(60, &hop_by_hop_second)), Some(Malformed));
    let extensions = |count: usize| {
        let mut chain: Vec<u8> = (1..count).flat_map(|_| extension(60, 8)).collect();
        chain.extend(extension(17, 8));
        chain.extend(udp(&[]));
        read(&v6(60, &chain))
    };
    assert_eq!(extensions(ipv6::EXTENSIONS_MAX), None);
    assert_eq!(extensions(ipv6::EXTENSIONS_MAX + 1), Some(TooManyHeaders));
    let mut beyond = extension(17, 16);
    beyond[1] = 2;
    assert_eq!(read(&v6(60, &beyond)), Some(Truncated), "an extension beyond the packet");
}

#[test]
fn transport_refusals() {
    let mut datagram = udp(&[0; 4]);
    for (len, expected) in [(7, Malformed), (13, Truncated)] {
        datagram[5] = len;
        assert_eq!(udp::View::parse(&datagram).err(), Some(expected));
        assert_eq!(parse(&ether(None, EtherType::IPV4, &v4(17, &[], &datagram))).err(), Some(expected));
        assert_eq!(parse(&ether(None, EtherType::IPV6, &v6(17, &datagram))).err(), Some(expected));
    }
    let mut segment = tcp_v4(&[], &[0; 4]);
    for (offset, expected) in [(0x40, Malformed), (0x70, Truncated)] {
        segment[12] = offset;
        assert_eq!(tcp::View::parse(&segment).err(), Some(expected));
        assert_eq!(parse(&ether(None, EtherType::IPV4, &v4(6, &[], &segment))).err(), Some(expected));
        assert_eq!(parse(&ether(None, EtherType::IPV6, &v6(6, &segment))).err(), Some(expected));
    }
    assert_eq!(parse(&ether(None, EtherType::IPV4, &v4(6, &[], &[0; 19]))).err(), Some(Truncated));
}

#[test]
fn tcp_option_refusals() {
    for options in [[2, 1, 0, 0], [2, 0, 0, 0], [2, 5, 0, 0], [1, 1, 1, 8]] {
        let segment = tcp_v4(&options, &[]);
        let view = tcp::View::parse(&segment).unwrap();
        let items: Vec<_> = view.options().collect();
        assert_eq!(items, [Err(Malformed)]);
        assert_eq!(view.mss_bytes(), None);
    }
}

#[test]
fn arp_refusals() {
    let mut packet = [0; 28];
    for (at, value, expected) in [
        (1, 6, UnsupportedType),
        (2, 0x86, UnsupportedType),
        (4, 8, Malformed),
        (5, 16, Malformed),
        (7, 3, UnsupportedType),
    ] {
        some_arp().emit(&mut packet).unwrap();
        packet[at] = value;
        assert_eq!(arp::Packet::parse(&packet), Err(expected), "byte {at}");
    }
}

#[test]
fn tunnel_refusals() {
    assert_eq!(vxlan::View::parse(&[0xf7; 8]).err(), Some(Malformed), "I not set");
    let mut tunnel = [0; 28];
    some_geneve().emit(&mut tunnel).unwrap();
    tunnel[0] = 0x45;
    assert_eq!(geneve::View::parse(&tunnel).err(), Some(UnsupportedType), "version 1");
    tunnel[0] = 0x04;
    assert_eq!(geneve::View::parse(&tunnel).err(), Some(Malformed), "an option beyond the options");
    tunnel[0] = 0x05;
    tunnel[11] = 0x03;
    assert_eq!(geneve::View::parse(&tunnel).err(), None, "the last word reads as an empty option");
    tunnel[27] = 0x01;
    assert_eq!(geneve::View::parse(&tunnel).err(), Some(Malformed));
}

/// A valid neighbour message between the two IPv6 addresses, which `change` damages before its checksum is
/// computed.
fn neighbour(kind: u8, link: &[u8], change: impl Fn(&mut Vec<u8>)) -> Result<icmp6::Neighbour, ParseError> {
    let mut message = [&[kind, 0, 0, 0, 0, 0, 0, 0], &V6_B.octets()[..], link].concat();
    let mut packet = v6(protocol::ICMPV6, &message);
    packet[7] = 255;
    message.clear();
    change(&mut packet);
    packet[42..44].copy_from_slice(&[0, 0]);
    let view = ipv6::View::parse(&packet).unwrap();
    let len_bytes = view.payload().len() as u32;
    let sum = checksum::pseudo_v6(view.src(), view.dst(), protocol::ICMPV6, len_bytes);
    let value = sum.bytes(view.payload()).finish().to_be_bytes();
    packet[42..44].copy_from_slice(&value);
    icmp6::Neighbour::parse(&ipv6::View::parse(&packet).unwrap())
}

#[test]
fn neighbour_refusals() {
    let source = [1, 1, 2, 0, 0, 0, 0, 10];
    let target = [2, 1, 2, 0, 0, 0, 0, 10];
    let unknown = [14, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let same = |_: &mut Vec<u8>| {};
    let ask = icmp6::Neighbour::Solicitation { target: V6_B, source_mac: Some(MAC_A) };
    assert_eq!(neighbour(135, &[&unknown[..], &source].concat(), same), Ok(ask));
    let says = neighbour(136, &target, |packet| packet[44] = 0xe0);
    let say = icmp6::Neighbour::Advertisement {
        target: V6_B,
        target_mac: Some(MAC_A),
        router: true,
        solicited: true,
        overrides: true,
    };
    assert_eq!(says, Ok(say));
    assert_eq!(neighbour(135, &source, |packet| packet[7] = 254), Err(Malformed), "forwarded");
    assert_eq!(neighbour(135, &source, |packet| packet[41] = 1), Err(Malformed), "code");
    assert_eq!(neighbour(135, &source, |packet| packet[48] = 0xff), Err(Malformed), "multicast target");
    for option in [[1, 0, 0, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0], [9, 2, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(neighbour(135, &option, same), Err(Malformed), "option {option:?}");
    }
    assert_eq!(neighbour(135, &[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], same), Err(Malformed));
    assert_eq!(neighbour(135, &[1, 1, 2], same), Err(Malformed), "half an option");
    let to_all = |packet: &mut Vec<u8>| {
        packet[24] = 0xff;
        packet[44] = 0x40;
    };
    assert_eq!(neighbour(136, &target, to_all), Err(Malformed), "solicited, yet to a group");
    assert_eq!(neighbour(133, &source, same), Err(UnsupportedType), "router solicitation");
    let short = |packet: &mut Vec<u8>| {
        packet.truncate(40 + 20);
        packet[5] = 20;
    };
    assert_eq!(neighbour(135, &source, short), Err(Truncated));
}

/// RFC 4861 clause 7.1.1, duplicate address detection: from the unspecified address, to the solicited-node
/// group, without link-layer address.
#[test]
fn neighbour_probes() {
    let probe = |packet: &mut Vec<u8>| {
        packet[8..24].fill(0);
        packet[24..40].copy_from_slice(&icmp6::solicited_node(V6_B).octets());
    };
    let ask = icmp6::Neighbour::Solicitation { target: V6_B, source_mac: None };
    assert_eq!(neighbour(135, &[], probe), Ok(ask));
    assert_eq!(neighbour(135, &[1, 1, 2, 0, 0, 0, 0, 10], probe), Err(Malformed));
    assert_eq!(neighbour(135, &[], |packet| packet[8..24].fill(0)), Err(Malformed));
}

#[test]
fn neighbour_checksum_and_protocol() {
    let mut message = vec![0; 32];
    let ask = icmp6::Neighbour::Solicitation { target: V6_B, source_mac: Some(MAC_A) };
    assert_eq!(ask.emit(&mut message, V6_A, V6_B), Ok(32));
    let read = |next_header, message: &[u8]| {
        let mut packet = v6(next_header, message);
        packet[7] = icmp6::NEIGHBOUR_HOP_LIMIT;
        icmp6::Neighbour::parse(&ipv6::View::parse(&packet).unwrap())
    };
    assert_eq!(read(protocol::ICMPV6, &message), Ok(ask));
    message[30] ^= 1;
    assert_eq!(read(protocol::ICMPV6, &message), Err(BadChecksum));
    assert_eq!(read(protocol::UDP, &message), Err(UnsupportedType));
    let fragment = [&[58, 0, 0, 1, 0, 0, 0, 1], &message[..]].concat();
    assert_eq!(read(protocol::FRAGMENT, &fragment), Err(UnsupportedType));
}

#[test]
fn emitters_refuse_short_buffers_and_write_nothing() {
    let mut room = [0xee; 64];
    let ethernet = ethernet::Header { dst: MAC_A, src: MAC_B, tag: vlan(1), ethertype: EtherType::ARP };
    let neighbour = icmp6::Neighbour::Solicitation { target: V6_B, source_mac: Some(MAC_A) };
    let tcp = tcp::Header {
        src_port: 1,
        dst_port: 1,
        sequence: 0,
        acknowledgement: 0,
        flags: tcp::Flags::SYN.without(tcp::Flags::SYN),
        window: 0,
        options: &[0; 4],
    };
    let echo4 = icmp4::Message::EchoRequest { ident: 1, sequence: 1 };
    let echo6 = icmp6::Message::EchoRequest { ident: 1, sequence: 1 };
    let v6_header = ipv6::Header {
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        next_header: 17,
        hop_limit: 1,
        src: V6_A,
        dst: V6_B,
        payload_bytes: 0,
    };
    type Emit<'a> = &'a dyn Fn(&mut [u8]) -> Result<usize, EmitError>;
    let emitters: [(usize, Emit<'_>); 11] = [
        (18, &|out| ethernet.emit(out)),
        (24, &|out| v4_header(17, &[0; 4], 0).emit(out)),
        (40, &|out| v6_header.emit(out)),
        (8, &|out| udp::Header { src_port: 1, dst_port: 1, payload_bytes: 0 }.emit(out)),
        (24, &|out| tcp.emit(out)),
        (28, &|out| some_arp().emit(out)),
        (8, &|out| echo4.emit(out)),
        (8, &|out| echo6.emit(out, V6_A, V6_B)),
        (32, &|out| neighbour.emit(out, V6_A, V6_B)),
        (8, &|out| vxlan::Header { vni: Vni::MAX }.emit(out)),
        (28, &|out| some_geneve().emit(out)),
    ];
    for (needed_bytes, emit) in emitters {
        for len in 0..needed_bytes {
            assert_eq!(emit(&mut room[..len]), Err(EmitError::NoRoom { needed_bytes }));
            assert_eq!(room, [0xee; 64]);
        }
        assert!(emit(&mut room[..needed_bytes]).is_ok());
        assert_eq!(room[needed_bytes..], vec![0xee; 64 - needed_bytes]);
        room.fill(0xee);
    }
}

#[test]
fn emitters_refuse_what_does_not_fit_its_field() {
    let mut out = [0; 128];
    let refused = Err(EmitError::OutOfRange);
    assert_eq!(v4_header(17, &[], 65_516).emit(&mut out), refused);
    assert_eq!(v4_header(17, &[], usize::MAX).emit(&mut out), refused);
    assert_eq!(v4_header(17, &[0; 3], 0).emit(&mut out), refused);
    assert_eq!(v4_header(17, &[0; 44], 0).emit(&mut out), refused);
    for payload_bytes in [65_528, usize::MAX] {
        assert_eq!(udp::Header { src_port: 1, dst_port: 1, payload_bytes }.emit(&mut out), refused);
    }
    let v6_header = ipv6::Header {
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        next_header: 17,
        hop_limit: 1,
        src: V6_A,
        dst: V6_B,
        payload_bytes: 65_536,
    };
    assert_eq!(v6_header.emit(&mut out), refused);
    for options in [&[0; 3][..], &[0; 44]] {
        let header = tcp::Header {
            src_port: 1,
            dst_port: 1,
            sequence: 0,
            acknowledgement: 0,
            flags: tcp::Flags::default(),
            window: 0,
            options,
        };
        assert_eq!(header.emit(&mut out), refused);
    }
}

#[test]
fn identifiers_have_ranges() {
    assert_eq!(Vni::new(0x0100_0000), None);
    assert_eq!(Vni::new(0x00ff_ffff), Some(Vni::MAX));
    assert_eq!(VlanId::new(0), None);
    assert_eq!(VlanId::new(4095), None);
    assert_eq!(VlanId::new(4094).unwrap().to_string(), "4094");
    assert_eq!("02:00:00:00:00:0a".parse(), Ok(MAC_A));
    assert_eq!(MAC_A.to_string(), "02:00:00:00:00:0a");
    for text in ["", "02:00:00:00:00", "02:00:00:00:00:0a:01", "2:0:0:0:0:a", "02:00:00:00:00:+a"] {
        assert_eq!(text.parse::<Mac>(), Err(wire::MacError), "{text:?}");
    }
    assert!(MAC_A.is_unicast() && !Mac::ZERO.is_unicast() && !Mac::BROADCAST.is_unicast());
    assert!(EtherType(0x05ff).is_length() && !EtherType(0x0600).is_length());
    assert_eq!(format!("{} {}", EtherType::IPV6, EtherType(0x1234)), "IPv6 0x1234");
}

/// Errors tell what to look at next; nobody has to read this source to understand one.
#[test]
fn errors_speak() {
    for error in [Truncated, Malformed, UnsupportedType, TooManyHeaders, BadChecksum] {
        assert!(error.to_string().len() > 30, "{error}");
    }
    assert!(EmitError::NoRoom { needed_bytes: 28 }.to_string().contains("28 bytes"));
    assert!(EmitError::OutOfRange.to_string().contains("shorten"));
}
