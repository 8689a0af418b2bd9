//! Whatever is emitted is read back the same, and an independent implementation agrees.

mod common;

use common::*;
use pnet_packet::{
    Packet, arp as parp, ethernet as peth, icmp, ipv4 as p4, ipv6 as p6, tcp as pt, udp as pu,
};
use proptest::prelude::*;
use wire::{
    EtherType, Mac, VlanId, Vni, arp, ethernet, geneve, icmp4, icmp6, ipv4, ipv6, protocol, tcp, udp,
};

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

fn tag() -> impl Strategy<Value = ethernet::Tag> {
    (any::<bool>(), 0u8..8, any::<bool>(), 0u16..4095).prop_map(|(service, priority, drop_eligible, id)| {
        let kind = if service { EtherType::SERVICE_VLAN } else { EtherType::VLAN };
        ethernet::Tag { kind, priority, drop_eligible, vlan: VlanId::new(id) }
    })
}

/// Options of IPv4 or TCP: any bytes in whole words.
fn options() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<[u8; 4]>(), 0..=10).prop_map(|words| words.concat())
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

proptest! {
    #[test]
    fn ethernet(dst in mac(), src in mac(), tag in prop::option::of(tag()), kind in 0u16.., data in data()) {
        let ethertype = EtherType(kind);
        prop_assume!(!ethertype.is_vlan_tag());
        let header = ethernet::Header { dst, src, tag, ethertype };
        let mut frame = vec![0; header.header_bytes()];
        prop_assert_eq!(header.emit(&mut frame), Ok(frame.len()));
        frame.extend_from_slice(&data);
        let view = ethernet::View::parse(&frame).unwrap();
        let read = ethernet::Header {
            dst: view.dst(), src: view.src(), tag: view.tag(), ethertype: view.ethertype(),
        };
        prop_assert_eq!(read, header);
        prop_assert_eq!((view.inner_tag(), view.payload()), (None, &data[..]));
        let theirs = peth::EthernetPacket::new(&frame).unwrap();
        prop_assert_eq!(theirs.get_destination().octets(), dst.0);
        prop_assert_eq!(theirs.get_source().octets(), src.0);
        prop_assert_eq!(theirs.get_ethertype().0, tag.map_or(ethertype, |tag| tag.kind).0);
    }

    #[test]
    fn ipv4(
        words in any::<(u16, u8, u8, bool)>(), src in any::<u32>(), dst in any::<u32>(),
        tos in any::<u8>(), options in options(), data in data(),
    ) {
        let (ident, ttl, protocol, dont_fragment) = words;
        let header = ipv4::Header {
            dscp: tos >> 2, ecn: tos & 3, ident, dont_fragment, ttl, protocol,
            src: src.into(), dst: dst.into(), options: &options, payload_bytes: data.len(),
        };
        let mut packet = vec![0; ipv4::HEADER_BYTES + options.len()];
        prop_assert_eq!(header.emit(&mut packet), Ok(packet.len()));
        packet.extend_from_slice(&data);
        let view = ipv4::View::parse(&packet).unwrap();
        let read = ipv4::Header {
            dscp: view.dscp(), ecn: view.ecn(), ident: view.ident(), dont_fragment: view.dont_fragment(),
            ttl: view.ttl(), protocol: view.protocol(), src: view.src(), dst: view.dst(),
            options: view.options(), payload_bytes: view.payload().len(),
        };
        prop_assert_eq!(read, header);
        prop_assert!(view.checksum_ok() && !view.is_fragment() && !view.more_fragments());
        prop_assert_eq!(view.fragment_offset_bytes(), 0);
        prop_assert_eq!((view.header_bytes(), view.payload()), (20 + options.len(), &data[..]));
        let theirs = p4::Ipv4Packet::new(&packet).unwrap();
        prop_assert_eq!(p4::checksum(&theirs), view.checksum());
        let their_header_bytes = usize::from(theirs.get_header_length()) * 4;
        prop_assert_eq!((theirs.get_version(), their_header_bytes), (4, view.header_bytes()));
        prop_assert_eq!((theirs.get_dscp(), theirs.get_ecn()), (view.dscp(), view.ecn()));
        prop_assert_eq!(theirs.get_total_length(), view.total_bytes());
        prop_assert_eq!(theirs.get_identification(), ident);
        prop_assert_eq!(theirs.get_flags() & 2 != 0, dont_fragment);
        prop_assert_eq!((theirs.get_ttl(), theirs.get_next_level_protocol().0), (ttl, protocol));
        prop_assert_eq!((theirs.get_source(), theirs.get_destination()), (view.src(), view.dst()));
        prop_assert_eq!(theirs.payload(), view.payload());
    }

    #[test]
    fn ipv6(
        class in any::<u8>(), label in 0u32..1 << 20, hops in any::<u8>(), src in any::<u128>(),
        dst in any::<u128>(), data in data(),
    ) {
        let header = ipv6::Header {
            dscp: class >> 2, ecn: class & 3, flow_label: label, next_header: protocol::NO_NEXT_HEADER,
            hop_limit: hops, src: src.into(), dst: dst.into(), payload_bytes: data.len(),
        };
        let mut packet = vec![0; ipv6::HEADER_BYTES];
        prop_assert_eq!(header.emit(&mut packet), Ok(40));
        packet.extend_from_slice(&data);
        let view = ipv6::View::parse(&packet).unwrap();
        let read = ipv6::Header {
            dscp: view.dscp(), ecn: view.ecn(), flow_label: view.flow_label(), next_header: view.protocol(),
            hop_limit: view.hop_limit(), src: view.src(), dst: view.dst(),
            payload_bytes: usize::from(view.payload_bytes()),
        };
        prop_assert_eq!(read, header);
        prop_assert_eq!(view.payload(), &data[..]);
        let theirs = p6::Ipv6Packet::new(&packet).unwrap();
        prop_assert_eq!((theirs.get_version(), theirs.get_traffic_class()), (6, class));
        prop_assert_eq!((theirs.get_flow_label(), theirs.get_hop_limit()), (label, hops));
        prop_assert_eq!((theirs.get_source(), theirs.get_destination()), (view.src(), view.dst()));
        prop_assert_eq!(theirs.payload(), view.payload());
    }

    #[test]
    fn ipv6_patches(class in any::<u8>(), label in 0u32..1 << 20, hops in any::<u8>(), extra in 0u16..9) {
        let mut packet = v6(protocol::NO_NEXT_HEADER, &[0; 8]);
        let mut header = ipv6::HeaderMut(packet.first_chunk_mut().unwrap());
        header.set_dscp_ecn(class >> 2, 3);
        header.set_ecn(class & 3);
        header.set_flow_label(label);
        header.set_hop_limit(hops);
        header.set_payload_bytes(extra);
        let view = ipv6::View::parse(&packet).unwrap();
        prop_assert_eq!((view.dscp() << 2 | view.ecn(), view.flow_label()), (class, label));
        prop_assert_eq!((view.hop_limit(), view.payload_bytes()), (hops, extra));
        prop_assert_eq!((view.src(), view.dst()), (V6_A, V6_B));
    }

    #[test]
    fn udp(src_port in any::<u16>(), dst_port in any::<u16>(), data in data()) {
        let mut datagram = vec![0; 8];
        let header = udp::Header { src_port, dst_port, payload_bytes: data.len() };
        prop_assert_eq!(header.emit(&mut datagram), Ok(8));
        datagram.extend_from_slice(&data);
        let (bare, len_bytes) = (datagram.clone(), datagram.len() as u32);
        let bare = pu::UdpPacket::new(&bare).unwrap();
        for v6 in [false, true] {
            let (pseudo, theirs) = if v6 {
                (wire::checksum::pseudo_v6(V6_A, V6_B, 17, len_bytes), pu::ipv6_checksum(&bare, &V6_A, &V6_B))
            } else {
                (wire::checksum::pseudo_v4(V4_A, V4_B, 17, len_bytes), pu::ipv4_checksum(&bare, &V4_A, &V4_B))
            };
            udp::fill_checksum(&mut datagram, pseudo);
            let view = udp::View::parse(&datagram).unwrap();
            // RFC 768: what computes to 0 is sent as all ones.
            prop_assert_eq!(view.checksum(), if theirs == 0 { 0xffff } else { theirs });
            prop_assert_eq!((view.src_port(), view.dst_port()), (src_port, dst_port));
            prop_assert_eq!((u32::from(view.len_bytes()), view.payload()), (len_bytes, &data[..]));
        }
        let mut patched = udp::HeaderMut(datagram.first_chunk_mut().unwrap());
        patched.set_src_port(dst_port);
        patched.set_dst_port(src_port);
        patched.set_len_bytes(8);
        patched.set_checksum(7);
        let view = udp::View::parse(&datagram).unwrap();
        prop_assert_eq!((view.src_port(), view.dst_port(), view.len_bytes()), (dst_port, src_port, 8));
        prop_assert_eq!((view.checksum(), view.payload()), (7, &[][..]));
    }

    #[test]
    fn tcp(
        ports in any::<(u16, u16)>(), sequence in any::<u32>(), acknowledgement in any::<u32>(),
        flags in any::<u8>(), window in any::<u16>(), options in options(), data in data(),
    ) {
        let header = tcp::Header {
            src_port: ports.0, dst_port: ports.1, sequence, acknowledgement, flags: tcp::Flags(flags), window,
            options: &options,
        };
        let mut segment = vec![0; tcp::HEADER_BYTES + options.len()];
        prop_assert_eq!(header.emit(&mut segment), Ok(segment.len()));
        segment.extend_from_slice(&data);
        let len_bytes = segment.len() as u32;
        tcp::fill_checksum(&mut segment, wire::checksum::pseudo_v6(V6_A, V6_B, 6, len_bytes));
        let theirs = pt::TcpPacket::new(&segment).unwrap();
        prop_assert_eq!(pt::ipv6_checksum(&theirs, &V6_A, &V6_B), theirs.get_checksum());
        tcp::fill_checksum(&mut segment, wire::checksum::pseudo_v4(V4_A, V4_B, 6, len_bytes));
        let view = tcp::View::parse(&segment).unwrap();
        let read = tcp::Header {
            src_port: view.src_port(), dst_port: view.dst_port(), sequence: view.sequence(),
            acknowledgement: view.acknowledgement(), flags: view.flags(), window: view.window(),
            options: view.options_bytes(),
        };
        prop_assert_eq!(read, header);
        prop_assert!(view.options().count() <= 40);
        prop_assert_eq!((view.header_bytes(), view.urgent()), (20 + options.len(), 0));
        prop_assert_eq!(view.payload(), &data[..]);
        let theirs = pt::TcpPacket::new(&segment).unwrap();
        prop_assert_eq!(pt::ipv4_checksum(&theirs, &V4_A, &V4_B), view.checksum());
        prop_assert_eq!((theirs.get_source(), theirs.get_destination()), ports);
        prop_assert_eq!((theirs.get_sequence(), theirs.get_acknowledgement()), (sequence, acknowledgement));
        prop_assert_eq!((theirs.get_flags(), theirs.get_window()), (flags, window));
        prop_assert_eq!(usize::from(theirs.get_data_offset()) * 4, view.header_bytes());
        prop_assert_eq!(theirs.payload(), view.payload());
        let mut patched = tcp::HeaderMut(segment.first_chunk_mut().unwrap());
        patched.set_sequence(!sequence);
        patched.set_acknowledgement(!acknowledgement);
        patched.set_flags(tcp::Flags(!flags));
        patched.set_window(!window);
        patched.set_checksum(7);
        let view = tcp::View::parse(&segment).unwrap();
        prop_assert_eq!((view.sequence(), view.acknowledgement()), (!sequence, !acknowledgement));
        prop_assert_eq!((view.flags().0, view.window(), view.checksum()), (!flags, !window, 7));
        prop_assert_eq!((view.options_bytes(), view.payload()), (&options[..], &data[..]));
    }

    #[test]
    fn arp(sender_mac in mac(), target_mac in mac(), ips in any::<(u32, u32)>(), asks in any::<bool>()) {
        let operation = if asks { arp::Operation::Request } else { arp::Operation::Reply };
        let packet = arp::Packet {
            operation, sender_mac, sender_ip: ips.0.into(), target_mac, target_ip: ips.1.into(),
        };
        let mut bytes = [0; arp::PACKET_BYTES];
        prop_assert_eq!(packet.emit(&mut bytes), Ok(28));
        prop_assert_eq!(arp::Packet::parse(&bytes), Ok(packet));
        let theirs = parp::ArpPacket::new(&bytes).unwrap();
        prop_assert_eq!(theirs.get_operation().0, if asks { 1 } else { 2 });
        prop_assert_eq!(theirs.get_sender_hw_addr().octets(), sender_mac.0);
        prop_assert_eq!(theirs.get_target_hw_addr().octets(), target_mac.0);
        prop_assert_eq!(theirs.get_sender_proto_addr(), packet.sender_ip);
        prop_assert_eq!(theirs.get_target_proto_addr(), packet.target_ip);
    }

    #[test]
    fn icmp4(kind in any::<u8>(), code in any::<u8>(), rest in any::<[u8; 4]>(), data in data()) {
        let mut bytes = [&[0; 8], &data[..]].concat();
        icmp4::Message::Other { kind, code, rest }.emit(&mut bytes).unwrap();
        let theirs = icmp::IcmpPacket::new(&bytes).unwrap();
        prop_assert_eq!(icmp::checksum(&theirs), theirs.get_checksum());
        let view = icmp4::View::parse(&bytes).unwrap();
        prop_assert!(view.checksum_ok());
        prop_assert_eq!(view.payload(), &data[..]);
        // Whatever it reads as is written as the same bytes, but for the word that RFC 1191 leaves unused.
        let mut again = [&[0; 8], &data[..]].concat();
        let message = view.message();
        message.emit(&mut again).unwrap();
        if !matches!(message, icmp4::Message::FragmentationNeeded { .. }) {
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn icmp_echo(ident in any::<u16>(), sequence in any::<u16>(), data in data()) {
        let mut bytes = [&[0; 8], &data[..]].concat();
        for message in
            [icmp4::Message::EchoRequest { ident, sequence }, icmp4::Message::EchoReply { ident, sequence }]
        {
            message.emit(&mut bytes).unwrap();
            prop_assert_eq!(icmp4::View::parse(&bytes).unwrap().message(), message);
        }
        for message in
            [icmp6::Message::EchoRequest { ident, sequence }, icmp6::Message::EchoReply { ident, sequence }]
        {
            message.emit(&mut bytes, V6_A, V6_B).unwrap();
            let view = icmp6::View::parse(&bytes).unwrap();
            prop_assert!(view.checksum_ok(V6_A, V6_B));
            prop_assert_eq!((view.message(), view.payload()), (message, &data[..]));
        }
    }

    #[test]
    fn icmp6_other(kind in 140u8.., code in any::<u8>(), rest in any::<[u8; 4]>()) {
        let mut bytes = [0; 8];
        let message = icmp6::Message::Other { kind, code, rest };
        message.emit(&mut bytes, V6_A, V6_B).unwrap();
        prop_assert_eq!(icmp6::View::parse(&bytes).unwrap().message(), message);
    }

    #[test]
    fn neighbours(
        target in any::<u128>(), link in prop::option::of(mac()), flags in any::<(bool, bool, bool)>(),
    ) {
        let target = std::net::Ipv6Addr::from_bits(target >> 8);
        let (router, solicited, overrides) = flags;
        for message in [
            icmp6::Neighbour::Solicitation { target, source_mac: link },
            icmp6::Neighbour::Advertisement { target, target_mac: link, router, solicited, overrides },
        ] {
            let mut bytes = vec![0; message.message_bytes()];
            prop_assert_eq!(message.emit(&mut bytes, V6_A, V6_B), Ok(bytes.len()));
            let mut packet = v6(protocol::ICMPV6, &bytes);
            packet[7] = icmp6::NEIGHBOUR_HOP_LIMIT;
            prop_assert_eq!(icmp6::Neighbour::parse(&ipv6::View::parse(&packet).unwrap()), Ok(message));
        }
    }

    #[test]
    fn tunnels(
        vni in 0u32..1 << 24, epoch in any::<u32>(), flow in any::<u32>(), trace in any::<u64>(),
        data in data(),
    ) {
        let vni = Vni::new(vni).unwrap();
        let tidegate = Some(geneve::Tidegate { epoch, flow, trace });
        for tidegate in [None, tidegate] {
            let header = geneve::Header { ethertype: EtherType::TRANSPARENT_ETHERNET, vni, tidegate };
            let mut bytes = vec![0; header.header_bytes()];
            prop_assert_eq!(header.emit(&mut bytes), Ok(bytes.len()));
            bytes.extend_from_slice(&data);
            let view = geneve::View::parse(&bytes).unwrap();
            let (ethertype, vni, tidegate) = (view.ethertype(), view.vni(), view.tidegate());
            let read = geneve::Header { ethertype, vni, tidegate };
            prop_assert_eq!(read, header);
            prop_assert_eq!((view.header_bytes(), view.payload()), (header.header_bytes(), &data[..]));
        }
    }

    #[test]
    fn entropy_ports_are_dynamic(hash in any::<u32>()) {
        prop_assert!(udp::entropy_port(hash) >= 49_152);
    }
}
