//! Frames for tests, built layer by layer with the emitters.
#![allow(dead_code)] // each test binary uses a part of it

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::{EtherType, Mac, VlanId, checksum, ethernet, ipv4, ipv6, protocol, tcp, udp};

pub const MAC_A: Mac = Mac([0x02, 0, 0, 0, 0, 0x0a]);
pub const MAC_B: Mac = Mac([0x02, 0, 0, 0, 0, 0x0b]);
pub const V4_A: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
pub const V4_B: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 4);
pub const V6_A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xa);
pub const V6_B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xb);

/// Puts an Ethernet header before `payload`.
pub fn ether(tag: Option<ethernet::Tag>, ethertype: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = ethernet::Header { dst: MAC_B, src: MAC_A, tag, ethertype };
    let mut frame = vec![0; header.header_bytes()];
    header.emit(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

pub fn vlan(id: u16) -> Option<ethernet::Tag> {
    Some(ethernet::Tag {
        kind: EtherType::VLAN,
        priority: 5,
        drop_eligible: false,
        vlan: Some(VlanId::new(id).unwrap()),
    })
}

pub fn v4_header(protocol: u8, options: &[u8], payload_bytes: usize) -> ipv4::Header<'_> {
    ipv4::Header {
        dscp: 10,
        ecn: 1,
        ident: 0x1234,
        dont_fragment: true,
        ttl: 63,
        protocol,
        src: V4_A,
        dst: V4_B,
        options,
        payload_bytes,
    }
}

pub fn v4(protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ipv4::HEADER_BYTES + options.len()];
    v4_header(protocol, options, payload.len()).emit(&mut packet).unwrap();
    packet.extend_from_slice(payload);
    packet
}

pub fn v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let header = ipv6::Header {
        dscp: 10,
        ecn: 1,
        flow_label: 0xabcde,
        next_header,
        hop_limit: 63,
        src: V6_A,
        dst: V6_B,
        payload_bytes: payload.len(),
    };
    let mut packet = vec![0; ipv6::HEADER_BYTES];
    header.emit(&mut packet).unwrap();
    packet.extend_from_slice(payload);
    packet
}

/// A segment with a right checksum over IPv4.
pub fn tcp_v4(options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = tcp_bare(options, payload);
    let len_bytes = segment.len() as u32;
    tcp::fill_checksum(&mut segment, checksum::pseudo_v4(V4_A, V4_B, protocol::TCP, len_bytes));
    segment
}

/// A segment with a right checksum over IPv6.
pub fn tcp_v6(options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = tcp_bare(options, payload);
    let len_bytes = segment.len() as u32;
    tcp::fill_checksum(&mut segment, checksum::pseudo_v6(V6_A, V6_B, protocol::TCP, len_bytes));
    segment
}

fn tcp_bare(options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = tcp::Header {
        src_port: 40_000,
        dst_port: 4420,
        sequence: 0x0102_0304,
        acknowledgement: 0x0506_0708,
        flags: tcp::Flags::ACK.with(tcp::Flags::PSH),
        window: 512,
        options,
    };
    let mut segment = vec![0; tcp::HEADER_BYTES + options.len()];
    header.emit(&mut segment).unwrap();
    segment.extend_from_slice(payload);
    segment
}

/// A datagram without checksum.
pub fn udp(payload: &[u8]) -> Vec<u8> {
    let header = udp::Header { src_port: 50_000, dst_port: 4789, payload_bytes: payload.len() };
    let mut datagram = vec![0; udp::HEADER_BYTES];
    header.emit(&mut datagram).unwrap();
    datagram.extend_from_slice(payload);
    datagram
}

/// An IPv6 extension header of `len_bytes` (8 to 2048, a multiple of 8).
pub fn extension(next_header: u8, len_bytes: usize) -> Vec<u8> {
    let mut header = vec![0; len_bytes];
    header[0] = next_header;
    header[1] = (len_bytes / 8 - 1) as u8;
    header
}

/// One valid frame of each shape that `parse` tells apart.
pub fn shapes() -> Vec<Vec<u8>> {
    let data = [0x5a; 40];
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let chain = [extension(60, 8), extension(43, 24), extension(6, 8), tcp_v6(&[], &data)].concat();
    let mut fragment = v4(protocol::UDP, &[], &udp(&data));
    fragment[6] = 0x20;
    let authenticated = [vec![17, 4], vec![0; 22], udp(&data)].concat();
    let double = [&[0x00, 0x2a, 0x08, 0x00][..], &v4(6, &[], &tcp_v4(&[], &data))].concat();
    let mut arp = [0; wire::arp::PACKET_BYTES];
    let request = wire::arp::Packet {
        operation: wire::arp::Operation::Request,
        sender_mac: MAC_A,
        sender_ip: V4_A,
        target_mac: Mac::ZERO,
        target_ip: V4_B,
    };
    request.emit(&mut arp).unwrap();
    vec![
        ether(None, EtherType::IPV4, &v4(protocol::TCP, &[], &tcp_v4(&timestamps, &data))),
        ether(None, EtherType::IPV4, &v4(protocol::TCP, &[], &tcp_v4(&[], &[]))),
        ether(None, EtherType::IPV4, &v4(protocol::UDP, &[], &udp(&data))),
        ether(None, EtherType::IPV4, &v4(protocol::TCP, &[1; 40], &tcp_v4(&[], &data))),
        ether(None, EtherType::IPV4, &v4(protocol::ICMP, &[], &data)),
        ether(None, EtherType::IPV4, &fragment),
        ether(vlan(7), EtherType::IPV4, &v4(protocol::TCP, &[], &tcp_v4(&[], &data))),
        ether(vlan(7), EtherType::IPV6, &v6(protocol::UDP, &udp(&data))),
        ether(
            Some(ethernet::Tag { kind: EtherType::SERVICE_VLAN, ..vlan(9).unwrap() }),
            EtherType::VLAN,
            &double,
        ),
        ether(None, EtherType::IPV6, &v6(protocol::TCP, &tcp_v6(&timestamps, &data))),
        ether(None, EtherType::IPV6, &v6(protocol::UDP, &udp(&data))),
        ether(None, EtherType::IPV6, &v6(protocol::HOP_BY_HOP, &chain)),
        ether(None, EtherType::IPV6, &v6(protocol::AUTHENTICATION, &authenticated)),
        ether(
            None,
            EtherType::IPV6,
            &v6(protocol::FRAGMENT, &[&[17, 0, 0, 1, 0, 0, 0, 9], &udp(&data)[..]].concat()),
        ),
        ether(None, EtherType::IPV6, &v6(protocol::NO_NEXT_HEADER, &[])),
        ether(None, EtherType::ARP, &arp),
        ether(None, EtherType(0x88cc), &data),
    ]
}
