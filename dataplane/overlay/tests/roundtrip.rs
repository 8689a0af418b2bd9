//! What one gateway puts into a tunnel, its peer takes out unchanged, in every combination of formats.

mod common;

use common::*;
use frame::{Flags, GsoKind};
use overlay::*;
use wire::protocol;

/// Both ends of a link, resolved.
fn pair(link: Link) -> (Node, Node) {
    (Node::resolved(&config(1, link), 2), Node::resolved(&config(2, link), 1))
}

#[test]
fn frames_come_out_as_they_went_in() {
    for link in Link::all() {
        for (tenant, six) in [(1, false), (2, false), (1, true), (2, true)] {
            let (mut one, mut two) = pair(link);
            let inner = Packet::new(tenant, 1, 2, six).bytes(b"storage");
            let outer = one.send(tenant.into(), &inner);
            let (verdict, meta, bytes) = two.receive(&outer, link);
            assert_eq!(verdict, Verdict::Deliver, "{link:?}");
            assert_eq!(bytes, inner, "{link:?}");
            assert_eq!(meta.egress_port, u16::from(tenant));
            assert_eq!(meta.cost_bytes, 7);
        }
    }
}

impl Node {
    /// A frame from the peer, as the kind of port would hand it over.
    fn receive(&mut self, outer: &[u8], link: Link) -> (Verdict, frame::Meta, Vec<u8>) {
        let mut frame = self.frame(outer, UNDERLAY.0);
        if link.kind == UnderlayKind::Datagram {
            // The port knows the sender by its place in the peer table.
            let peer =
                vtep(if self.tables.peers(UNDERLAY)[0].ip() == vtep(1, link.six) { 1 } else { 2 }, link.six);
            assert_eq!(self.tables.peers(UNDERLAY)[0].ip(), peer);
            self.pool.meta_mut(&mut frame).next_hop = 0;
        }
        let verdict = self.judge_underlay(&mut frame);
        let (meta, bytes) = (self.pool.meta(&frame).clone(), self.pool.bytes(&frame).to_vec());
        self.pool.free(frame);
        (verdict, meta, bytes)
    }
}

#[test]
fn the_geneve_option_arrives() {
    let link = Link { encapsulation: Encapsulation::Geneve, ..Link::VXLAN };
    let (mut one, mut two) = pair(link);
    let mut frame = one.frame(&Packet::new(1, 1, 2, false).bytes(b"x"), 1);
    assert_eq!(one.judge_tenant(&mut frame), Verdict::Forward);
    let flow = one.pool.meta(&frame).flow_hash;
    let (_, sent) = one.encapsulate(frame, 0x0123_4567_89ab_cdef);
    assert_eq!(two.underlay(&sent[0]).0, Verdict::Deliver);
    assert_eq!(two.outcomes.options[0], Tidegate { epoch: 7, flow, trace: 0x0123_4567_89ab_cdef });
}

#[test]
fn dscp_and_ecn_travel_outside_and_congestion_comes_back_inside() {
    for six in [false, true] {
        let (mut one, mut two) = pair(Link { six, ..Link::VXLAN });
        let inner = Packet { ecn: 0b10, dscp: 46, ..Packet::new(1, 1, 2, six) }.bytes(b"x");
        let mut outer = one.send(1, &inner);
        let parsed = wire::parse(&outer).unwrap();
        assert_eq!((parsed.ecn, parsed.dscp), (0b10, 46));
        // A router on the way marks congestion.
        if six {
            wire::ipv6::HeaderMut((&mut outer[14..54]).try_into().unwrap()).set_ecn(0b11);
        } else {
            wire::ipv4::HeaderMut((&mut outer[14..34]).try_into().unwrap()).set_ecn(0b11);
        }
        let (verdict, _, bytes) = two.underlay(&outer);
        assert_eq!(verdict, Verdict::Deliver);
        assert_eq!(wire::parse(&bytes).unwrap().ecn, 0b11);
        let expected = Packet { ecn: 0b11, dscp: 46, ..Packet::new(1, 1, 2, six) }.bytes(b"x");
        assert_eq!(bytes, expected, "the header checksum follows the mark");
    }
}

#[test]
fn a_fixed_dscp_replaces_the_inner_one() {
    let mut config = config(1, Link::VXLAN);
    config.underlays[0].dscp = Dscp::Fixed(10);
    let mut one = Node::resolved(&config, 2);
    let outer = one.send(1, &Packet { dscp: 46, ecn: 1, ..Packet::new(1, 1, 2, false) }.bytes(b"x"));
    let parsed = wire::parse(&outer).unwrap();
    assert_eq!((parsed.dscp, parsed.ecn), (10, 1));
}

#[test]
fn vlan_tags_are_taken_off_and_put_on() {
    let mut config_one = config(1, Link::VXLAN);
    let mut config_two = config(2, Link::VXLAN);
    config_one.tenants[0].attachments[0].vlan = wire::VlanId::new(30);
    config_two.tenants[0].attachments[0].vlan = wire::VlanId::new(40);
    let mut one = Node::resolved(&config_one, 2);
    let mut two = Node::resolved(&config_two, 1);
    let plain = Packet::new(1, 1, 2, false).bytes(b"tagged");
    let outer = one.send(1, &tagged(&plain, &[30]));
    let (verdict, meta, bytes) = two.underlay(&outer);
    assert_eq!(verdict, Verdict::Deliver);
    assert_eq!(bytes, tagged(&plain, &[40]));
    assert_eq!((meta.l3, meta.l4, meta.payload), (18, 38, 46));
    // Untagged, the frame is nobody's.
    assert_eq!(one.tenant(1, &plain).0, Verdict::Drop(frame::DropReason::UnknownAttachment));
}

#[test]
fn an_unfinished_checksum_is_finished_before_the_tunnel() {
    for link in Link::all().filter(|link| link.kind == UnderlayKind::Ethernet) {
        let mut one = Node::resolved(&config(1, link), 2);
        let inner = Packet { proto: protocol::TCP, ..Packet::new(1, 1, 2, false) }.bytes(b"abcd");
        let mut frame = one.frame(&inner, 1);
        let meta = one.pool.meta_mut(&mut frame);
        meta.flags.set(Flags::CSUM_PARTIAL);
        (meta.csum_start, meta.csum_offset) = (34, 16);
        assert_eq!(one.judge_tenant(&mut frame), Verdict::Forward);
        let (result, sent) = one.encapsulate(frame, 0);
        assert!(matches!(result, Encapsulated::Sent));
        let segment = &sent[0][sent[0].len() - inner.len() + 34..];
        assert_eq!(wire::checksum::sum(segment), 0xffff, "the sender had left a pseudo-header sum of zero");
    }
}

#[test]
fn an_unfinished_checksum_outside_the_frame_is_malformed() {
    let mut one = Node::resolved(&config(1, Link::VXLAN), 2);
    let mut frame = one.frame(&Packet::new(1, 1, 2, false).bytes(b"x"), 1);
    let meta = one.pool.meta_mut(&mut frame);
    meta.flags.set(Flags::CSUM_PARTIAL);
    (meta.csum_start, meta.csum_offset) = (900, 6);
    assert_eq!(one.judge_tenant(&mut frame), Verdict::Forward);
    let (result, _) = one.encapsulate(frame, 0);
    assert!(matches!(result, Encapsulated::Dropped(frame::DropReason::Malformed)));
}

#[test]
fn an_unfinished_inner_checksum_keeps_its_place_when_the_tunnel_is_taken_off() {
    for link in Link::all().filter(|link| link.kind == UnderlayKind::Ethernet) {
        let (mut one, mut two) = pair(link);
        let inner = Packet { proto: protocol::TCP, ..Packet::new(1, 1, 2, false) }.bytes(b"abcd");
        let outer = one.send(1, &inner);
        // As a kernel hands over what never left the machine: the place counts from the outer frame.
        let stripped = (outer.len() - inner.len()) as u16;
        for (start, kept) in [(stripped + 34, Some(34)), (34, None)] {
            let mut frame = two.frame(&outer, UNDERLAY.0);
            let meta = two.pool.meta_mut(&mut frame);
            meta.flags.set(Flags::CSUM_PARTIAL);
            (meta.csum_start, meta.csum_offset) = (start, 16);
            assert_eq!(two.judge_underlay(&mut frame), Verdict::Deliver);
            let meta = two.pool.meta(&frame);
            let place = meta.flags.has(Flags::CSUM_PARTIAL).then_some(meta.csum_start);
            assert_eq!(place, kept, "{link:?}: one that ended before the inner frame was the outer one");
            two.pool.free(frame);
        }
    }
}

#[test]
fn a_super_segment_becomes_frames_that_the_peer_delivers() {
    let link = Link { encapsulation: Encapsulation::Geneve, six: true, checksum: true, ..Link::VXLAN };
    let (mut one, mut two) = pair(link);
    let payload: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
    let inner = Packet { proto: protocol::TCP, ..Packet::new(1, 1, 2, false) }.bytes(&payload);
    let mut frame = one.frame(&inner, 1);
    let meta = one.pool.meta_mut(&mut frame);
    (meta.gso, meta.gso_bytes) = (GsoKind::TcpV4, 1300);
    meta.flags.set(Flags::CSUM_PARTIAL);
    (meta.csum_start, meta.csum_offset) = (34, 16);
    assert_eq!(one.judge_tenant(&mut frame), Verdict::Forward);
    let (result, sent) = one.encapsulate(frame, 0);
    let pieces = payload.len().div_ceil(1300);
    assert!(matches!(result, Encapsulated::Segmented(Segmented { sent, .. }) if sent as usize == pieces));
    let mut joined = Vec::new();
    for outer in sent {
        assert!(outer.len() <= 1514);
        let (verdict, meta, bytes) = two.underlay(&outer);
        assert_eq!(verdict, Verdict::Deliver);
        joined.extend_from_slice(&bytes[usize::from(meta.payload)..]);
    }
    assert_eq!(joined, payload);
}

#[test]
fn what_does_not_fit_is_reported_to_its_sender() {
    let mut config = config(1, Link::VXLAN);
    config.tenants[0].attachments[0].vlan = wire::VlanId::new(30);
    let mut one = Node::resolved(&config, 2);
    // 1500 - 50 leaves 1450 for the inner frame's IP packet and its 14 bytes of Ethernet.
    let fits = Packet::new(1, 1, 2, false).bytes(&vec![0; 1450 - 28]);
    assert_eq!(one.send(1, &tagged(&fits, &[30])).len(), 1514);
    let mut frame = one.frame(&tagged(&Packet::new(1, 1, 2, false).bytes(&vec![0; 1451 - 28]), &[30]), 1);
    assert_eq!(one.judge_tenant(&mut frame), Verdict::Forward);
    let (result, sent) = one.encapsulate(frame, 0);
    let Encapsulated::TooBig(Some(message)) = result else { panic!("{result:?}") };
    assert!(sent.is_empty());
    assert_eq!(one.pool.meta(&message).egress_port, 1);
    let parsed = wire::parse(one.pool.bytes(&message)).unwrap();
    assert_eq!(parsed.vlan, wire::VlanId::new(30));
    assert_eq!((parsed.proto, parsed.dst_ip()), (protocol::ICMP, Some(v4(1))));
    let icmp = &one.pool.bytes(&message)[usize::from(parsed.l4)..];
    assert_eq!((icmp[0], icmp[1], u16::from_be_bytes([icmp[6], icmp[7]])), (3, 4, 1450));
    one.pool.free(message);
}

#[test]
fn two_ports_of_one_tenant_reach_each_other_without_a_tunnel() {
    let mut config = config(1, Link::VXLAN);
    config.tenants[0].attachments.push(Attachment {
        port: PortId(5),
        vlan: wire::VlanId::new(50),
        sources: vec![Source { ip: Prefix::host(v4(77)), mac: Some(mac(1, 77)) }],
    });
    let mut one = Node::new(&config);
    let inner = Packet::new(1, 1, 77, false).bytes(b"x");
    let (verdict, meta, bytes) = one.tenant(1, &inner);
    assert_eq!((verdict, meta.egress_port), (Verdict::Deliver, 5));
    assert_eq!(bytes, tagged(&inner, &[50]));
}

#[test]
fn a_verified_outer_checksum_says_nothing_about_the_inner_one() {
    let (mut one, mut two) = pair(Link { checksum: true, ..Link::VXLAN });
    let outer = one.send(1, &Packet::new(1, 1, 2, false).bytes(b"x"));
    let mut frame = two.frame(&outer, UNDERLAY.0);
    two.pool.meta_mut(&mut frame).flags.set(Flags::CSUM_VALID);
    assert_eq!(two.judge_underlay(&mut frame), Verdict::Deliver);
    assert!(!two.pool.meta(&frame).flags.has(Flags::CSUM_VALID));
    two.pool.free(frame);
}
