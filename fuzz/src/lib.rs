//! What must hold for any bytes, one function per parser.
//!
//! Each target under `targets/` hands its input to the function of the same name. Panics, overflows and
//! failed assertions are findings. The invariants: whatever a view hands out lies inside its input, pieces
//! do not overlap and come in order, and what is read and written again reads the same.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::LazyLock;

use wire::{IpKind, Parsed};

pub mod nbd;
pub mod nvme;
pub mod pipeline;

#[path = "../../dataplane/wire/tests/common/mod.rs"]
mod common;

/// Where `part` lies in `whole`.
fn place(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize).expect("begins inside");
    assert!(start + part.len() <= whole.len(), "ends inside");
    start..start + part.len()
}

/// `payload` follows a header of `header_bytes` in `whole`.
fn follows(whole: &[u8], header_bytes: usize, payload: &[u8]) {
    assert_eq!(place(whole, payload).start, header_bytes);
}

/// Ethernet and its tags.
pub fn ethernet(bytes: &[u8]) {
    let Ok(view) = wire::ethernet::View::parse(bytes) else { return };
    follows(bytes, view.header_bytes(), view.payload());
    assert_eq!(view.header_bytes() + view.payload().len(), bytes.len());
    assert!(!view.ethertype().is_vlan_tag());
    assert!(view.tag().is_some() || view.inner_tag().is_none());
    if view.inner_tag().is_none() {
        let header = wire::ethernet::Header {
            dst: view.dst(),
            src: view.src(),
            tag: view.tag(),
            ethertype: view.ethertype(),
        };
        let mut out = [0; wire::ethernet::HEADER_BYTES + wire::ethernet::TAG_BYTES];
        let len = header.emit(&mut out).expect("there is room");
        assert_eq!(out[..len], bytes[..view.header_bytes()]);
    }
}

/// ARP.
pub fn arp(bytes: &[u8]) {
    let Ok(packet) = wire::arp::Packet::parse(bytes) else { return };
    let mut out = [0; wire::arp::PACKET_BYTES];
    packet.emit(&mut out).expect("there is room");
    assert_eq!(out, bytes[..out.len()]);
}

/// IPv4.
pub fn ipv4(bytes: &[u8]) {
    let Ok(view) = wire::ipv4::View::parse(bytes) else { return };
    follows(bytes, wire::ipv4::HEADER_BYTES, view.options());
    follows(bytes, view.header_bytes(), view.payload());
    assert_eq!(view.header_bytes() + view.payload().len(), usize::from(view.total_bytes()));
    assert_eq!(view.is_fragment(), view.more_fragments() || view.fragment_offset_bytes() != 0);
    let header = wire::ipv4::Header {
        dscp: view.dscp(),
        ecn: view.ecn(),
        ident: view.ident(),
        dont_fragment: view.dont_fragment(),
        ttl: view.ttl(),
        protocol: view.protocol(),
        src: view.src(),
        dst: view.dst(),
        options: view.options(),
        payload_bytes: view.payload().len(),
    };
    let mut out = [view.payload(); 1].concat();
    out.splice(..0, [0; 60][..view.header_bytes()].iter().copied());
    header.emit(&mut out).expect("there is room");
    let again = wire::ipv4::View::parse(&out).expect("written by ourselves");
    assert!(again.checksum_ok());
    assert_eq!((again.options(), again.payload()), (view.options(), view.payload()));
    if !view.is_fragment() && bytes[6] & 0x80 == 0 && view.checksum_ok() && view.checksum() != 0xffff {
        assert_eq!(out, bytes[..out.len()]);
    }
}

/// IPv6 and its extension headers.
pub fn ipv6(bytes: &[u8]) {
    let Ok(view) = wire::ipv6::View::parse(bytes) else { return };
    let transport = view.transport();
    follows(bytes, view.header_bytes(), view.payload());
    assert_eq!(view.header_bytes(), wire::ipv6::HEADER_BYTES + transport.extension_bytes);
    assert_eq!(transport.extension_bytes + view.payload().len(), usize::from(view.payload_bytes()));
    let header = wire::ipv6::Header {
        dscp: view.dscp(),
        ecn: view.ecn(),
        flow_label: view.flow_label(),
        next_header: bytes[6],
        hop_limit: view.hop_limit(),
        src: view.src(),
        dst: view.dst(),
        payload_bytes: usize::from(view.payload_bytes()),
    };
    let mut out = [0; wire::ipv6::HEADER_BYTES];
    header.emit(&mut out).expect("there is room");
    assert_eq!(out, bytes[..out.len()]);
    black_box(wire::icmp6::Neighbour::parse(&view)).ok();
}

/// UDP.
pub fn udp(bytes: &[u8]) {
    let Ok(view) = wire::udp::View::parse(bytes) else { return };
    follows(bytes, wire::udp::HEADER_BYTES, view.payload());
    assert_eq!(wire::udp::HEADER_BYTES + view.payload().len(), usize::from(view.len_bytes()));
    let (src, dst) = (Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST);
    let mut datagram = bytes[..usize::from(view.len_bytes())].to_vec();
    let pseudo = wire::checksum::pseudo_v4(src, dst, wire::protocol::UDP, u32::from(view.len_bytes()));
    wire::udp::fill_checksum(&mut datagram, pseudo);
    let filled = wire::udp::View::parse(&datagram).expect("only the checksum changed");
    assert!(filled.checksum_ok_v4(src, dst));
    assert_ne!(filled.checksum(), 0);
    if view.checksum() != 0 && view.checksum_ok_v4(src, dst) {
        assert_eq!(view.checksum(), filled.checksum());
    }
}

/// TCP and its options.
pub fn tcp(bytes: &[u8]) {
    let Ok(view) = wire::tcp::View::parse(bytes) else { return };
    follows(bytes, wire::tcp::HEADER_BYTES, view.options_bytes());
    follows(bytes, view.header_bytes(), view.payload());
    assert_eq!(view.header_bytes() + view.payload().len(), bytes.len());
    let mut refused = false;
    for option in view.options() {
        assert!(!refused, "nothing follows a malformed option");
        refused = option.is_err();
        if let Ok(wire::tcp::TcpOption::Other { data, .. }) = option {
            place(view.options_bytes(), data);
        }
    }
    black_box(view.mss_bytes());
    let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
    let mut segment = bytes.to_vec();
    let len_bytes = segment.len() as u32;
    let pseudo = wire::checksum::pseudo_v6(src, dst, wire::protocol::TCP, len_bytes);
    wire::tcp::fill_checksum(&mut segment, pseudo);
    let filled = wire::tcp::View::parse(&segment).expect("only the checksum changed");
    assert!(filled.checksum_ok_v6(src, dst));
}

/// ICMP for IPv4.
pub fn icmp4(bytes: &[u8]) {
    let Ok(view) = wire::icmp4::View::parse(bytes) else { return };
    follows(bytes, wire::icmp4::HEADER_BYTES, view.payload());
    let mut out = bytes.to_vec();
    view.message().emit(&mut out).expect("there is room");
    let again = wire::icmp4::View::parse(&out).expect("written by ourselves");
    assert!(again.checksum_ok());
    assert_eq!((again.message(), again.payload()), (view.message(), view.payload()));
}

/// ICMP for IPv6; neighbour discovery in an IPv6 packet with a right checksum.
pub fn icmp6(bytes: &[u8]) {
    let Ok(view) = wire::icmp6::View::parse(bytes) else { return };
    follows(bytes, wire::icmp6::HEADER_BYTES, view.payload());
    let (src, dst) = (Ipv6Addr::LOCALHOST, wire::icmp6::solicited_node(Ipv6Addr::LOCALHOST));
    let mut out = bytes.to_vec();
    view.message().emit(&mut out, src, dst).expect("there is room");
    let again = wire::icmp6::View::parse(&out).expect("written by ourselves");
    assert!(again.checksum_ok(src, dst));
    assert_eq!((again.message(), again.payload()), (view.message(), view.payload()));
    let mut packet = vec![0; wire::ipv6::HEADER_BYTES];
    let header = wire::ipv6::Header {
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        next_header: wire::protocol::ICMPV6,
        hop_limit: wire::icmp6::NEIGHBOUR_HOP_LIMIT,
        src,
        dst,
        payload_bytes: out.len(),
    };
    if header.emit(&mut packet).is_err() {
        return;
    }
    packet.extend_from_slice(&out);
    let Ok(ip) = wire::ipv6::View::parse(&packet) else { return };
    let Ok(neighbour) = wire::icmp6::Neighbour::parse(&ip) else { return };
    let mut message = [0; wire::icmp6::NEIGHBOUR_BYTES + wire::icmp6::LINK_OPTION_BYTES];
    let len = neighbour.emit(&mut message, src, dst).expect("there is room");
    packet.truncate(wire::ipv6::HEADER_BYTES);
    packet.extend_from_slice(&message[..len]);
    packet[5] = len as u8;
    packet[4] = 0;
    let ip = wire::ipv6::View::parse(&packet).expect("written by ourselves");
    assert_eq!(wire::icmp6::Neighbour::parse(&ip), Ok(neighbour));
}

/// VXLAN.
pub fn vxlan(bytes: &[u8]) {
    let Ok(view) = wire::vxlan::View::parse(bytes) else { return };
    follows(bytes, wire::vxlan::HEADER_BYTES, view.payload());
    let mut out = [0; wire::vxlan::HEADER_BYTES];
    wire::vxlan::Header { vni: view.vni() }.emit(&mut out).expect("there is room");
    assert_eq!(wire::vxlan::View::parse(&out).map(|again| again.vni()), Ok(view.vni()));
}

/// Geneve and its options.
pub fn geneve(bytes: &[u8]) {
    let Ok(view) = wire::geneve::View::parse(bytes) else { return };
    follows(bytes, view.header_bytes(), view.payload());
    let mut at = wire::geneve::HEADER_BYTES;
    for option in view.options() {
        follows(bytes, at + 4, option.data);
        at += 4 + option.data.len();
    }
    assert_eq!(at, view.header_bytes(), "the options fill their room");
    black_box(view.has_unknown_critical());
    let header =
        wire::geneve::Header { ethertype: view.ethertype(), vni: view.vni(), tidegate: view.tidegate() };
    let mut out = [0; wire::geneve::HEADER_BYTES + wire::geneve::Tidegate::OPTION_BYTES];
    let len = header.emit(&mut out).expect("there is room");
    let again = wire::geneve::View::parse(&out[..len]).expect("written by ourselves");
    assert_eq!(
        (again.ethertype(), again.vni(), again.tidegate()),
        (view.ethertype(), view.vni(), view.tidegate())
    );
}

/// The one-pass parse against the views, one by one: of the input, and of a valid frame that it damages.
///
/// Chance alone seldom makes whole frames. So the first byte also picks one of the shapes that the tests of
/// `wire` use, and pairs of bytes after it say where to write what.
pub fn parse(bytes: &[u8]) {
    static SHAPES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(common::shapes);
    parse_frame(bytes);
    let [shape, damage @ ..] = bytes else { return };
    let mut frame = SHAPES[usize::from(*shape) % SHAPES.len()].clone();
    for pair in damage.chunks_exact(2) {
        if let Some(byte) = frame.get_mut(usize::from(pair[0])) {
            *byte = pair[1];
        }
    }
    parse_frame(&frame);
}

fn parse_frame(bytes: &[u8]) {
    let result = wire::parse(bytes);
    assert_eq!(result, wire::parse(bytes), "the same bytes, the same result");
    assert_eq!(result, by_views(bytes), "one pass and the views agree");
    let Ok(parsed) = result else { return };
    let Parsed { l3, l4, payload, l3_end, .. } = parsed;
    assert!(l3 <= l4 && l4 <= payload && u32::from(payload) <= l3_end);
    assert!(l3_end as usize <= bytes.len(), "the offsets lie inside the frame");
    // Padding changes nothing but, without IP, the end.
    let padded = wire::parse(&[bytes, &[0; 7]].concat());
    let pad = if parsed.ip == IpKind::None { 7 } else { 0 };
    assert_eq!(padded, Ok(Parsed { l3_end: l3_end + pad, ..parsed }));
}

fn by_views(bytes: &[u8]) -> Result<Parsed, wire::ParseError> {
    let frame = wire::ethernet::View::parse(bytes)?;
    let mut parsed = Parsed {
        l3: frame.header_bytes() as u16,
        dst_mac: frame.dst(),
        src_mac: frame.src(),
        vlan: frame.tag().and_then(|tag| tag.vlan),
        tags: ((frame.header_bytes() - wire::ethernet::HEADER_BYTES) / wire::ethernet::TAG_BYTES) as u8,
        ethertype: frame.ethertype(),
        ..Parsed::default()
    };
    let l4 = match frame.ethertype() {
        wire::EtherType::IPV4 => {
            let ip = wire::ipv4::View::parse(frame.payload())?;
            (parsed.ip, parsed.proto, parsed.fragment) = (IpKind::V4, ip.protocol(), ip.is_fragment());
            (parsed.src, parsed.dst) = (u128::from(ip.src().to_bits()), u128::from(ip.dst().to_bits()));
            (parsed.dscp, parsed.ecn, parsed.ttl) = (ip.dscp(), ip.ecn(), ip.ttl());
            ip.payload()
        }
        wire::EtherType::IPV6 => {
            let ip = wire::ipv6::View::parse(frame.payload())?;
            (parsed.ip, parsed.proto, parsed.fragment) = (IpKind::V6, ip.protocol(), ip.transport().fragment);
            (parsed.src, parsed.dst) = (ip.src().to_bits(), ip.dst().to_bits());
            (parsed.dscp, parsed.ecn, parsed.ttl) = (ip.dscp(), ip.ecn(), ip.hop_limit());
            ip.payload()
        }
        _ => frame.payload(),
    };
    let range = place(bytes, l4);
    (parsed.l4, parsed.payload, parsed.l3_end) = (range.start as u16, range.start as u16, range.end as u32);
    let data = match parsed.proto {
        _ if parsed.fragment || parsed.ip == IpKind::None => l4,
        wire::protocol::TCP => {
            let segment = wire::tcp::View::parse(l4)?;
            (parsed.src_port, parsed.dst_port, parsed.has_ports) =
                (segment.src_port(), segment.dst_port(), true);
            segment.payload()
        }
        wire::protocol::UDP => {
            let datagram = wire::udp::View::parse(l4)?;
            (parsed.src_port, parsed.dst_port, parsed.has_ports) =
                (datagram.src_port(), datagram.dst_port(), true);
            datagram.payload()
        }
        _ => l4,
    };
    parsed.payload = place(bytes, data).start as u16;
    if parsed.ip != IpKind::None {
        let Parsed { ip, src, dst, proto, src_port, dst_port, .. } = parsed;
        parsed.flow_hash = wire::flow_hash(ip, src, dst, proto, src_port, dst_port);
    }
    Ok(parsed)
}
