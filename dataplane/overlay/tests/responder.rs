//! ARP and neighbour discovery of tenants: answered here, delivered to the one who is asked, or trapped.

mod common;

use common::*;
use frame::DropReason;
use overlay::responder::{self, Answer};
use overlay::*;
use wire::icmp6::Neighbour;
use wire::{Mac, arp, ipv6};

/// What becomes of a request at a port of node 1: the answer and where it goes.
fn ask(node: &mut Node, port: u16, bytes: &[u8]) -> Result<(Vec<u8>, u16), Option<DropReason>> {
    let mut frame = node.frame(bytes, port);
    assert_eq!(node.judge_tenant(&mut frame), Verdict::Local);
    match responder::process(&node.tables, &mut node.pool, frame) {
        Answer::Reply(frame) => {
            let answer = (node.pool.bytes(&frame).to_vec(), node.pool.meta(&frame).egress_port);
            node.pool.free(frame);
            Ok(answer)
        }
        Answer::Dropped(why) => Err(Some(why)),
        Answer::Trap(frame) => {
            node.pool.free(frame);
            Err(None)
        }
    }
}

#[test]
fn requests_for_remote_addresses_are_answered_in_their_name() {
    let mut node = Node::new(&config(1, Link::VXLAN));
    for tenant in [1, 2] {
        let (answer, port) = ask(&mut node, tenant, &request(mac(tenant as u8, 1), v4(1), v4(2))).unwrap();
        assert_eq!(port, tenant);
        assert_eq!(answer.len(), 60, "padded");
        let packet = arp::Packet::parse(&answer[14..]).unwrap();
        assert_eq!(packet.operation, arp::Operation::Reply);
        let (asker, target) = (mac(tenant as u8, 1), mac(tenant as u8, 2));
        assert_eq!((packet.sender_mac, packet.sender_ip.into()), (target, v4(2)));
        assert_eq!((packet.target_mac, packet.target_ip.into()), (asker, v4(1)));
        assert_eq!((&answer[..6], &answer[6..12]), (&asker.0[..], &target.0[..]));

        let (answer, _) = ask(&mut node, tenant, &request(asker, v6(1), v6(2))).unwrap();
        let ip = ipv6::View::parse(&answer[14..]).unwrap();
        assert_eq!((ip.src(), ip.dst(), ip.hop_limit()), (six(v6(2)), six(v6(1)), 255));
        let expected = Neighbour::Advertisement {
            target: six(v6(2)),
            target_mac: Some(target),
            router: false,
            solicited: true,
            overrides: true,
        };
        assert_eq!(Neighbour::parse(&ip), Ok(expected));
    }
}

#[test]
fn a_vlan_gets_its_answer_tagged() {
    let mut config = config(1, Link::VXLAN);
    config.tenants[0].attachments[0].vlan = wire::VlanId::new(30);
    let mut node = Node::new(&config);
    let (answer, _) = ask(&mut node, 1, &tagged(&request(mac(1, 1), v4(1), v4(2)), &[30])).unwrap();
    assert_eq!(answer[12..16], [0x81, 0, 0, 30]);
    assert_eq!(wire::parse(&answer).unwrap().ethertype, wire::EtherType::ARP);
}

#[test]
fn announcements_and_probes_of_ones_own_address_end_here() {
    let mut node = Node::new(&config(1, Link::VXLAN));
    let answered = Err(Some(DropReason::Answered));
    assert_eq!(ask(&mut node, 1, &request(mac(1, 1), v4(1), v4(1))), answered);
    assert_eq!(ask(&mut node, 1, &request(mac(1, 1), "0.0.0.0".parse().unwrap(), v4(1))), answered);
    assert_eq!(ask(&mut node, 1, &request(mac(1, 1), "::".parse().unwrap(), v6(1))), answered);
    // A probe for somebody else's is a conflict, and is told so.
    let (answer, _) = ask(&mut node, 1, &request(mac(1, 1), "::".parse().unwrap(), v6(2))).unwrap();
    assert_eq!(wire::parse(&answer).unwrap().dst_ip(), Some("ff02::1".parse().unwrap()));
}

#[test]
fn unknown_addresses_are_trapped() {
    let mut config = config(1, Link::VXLAN);
    config.tenants[1].remotes.iter_mut().for_each(|remote| remote.mac = None);
    let mut node = Node::new(&config);
    assert_eq!(ask(&mut node, 1, &request(mac(1, 1), v4(1), v4(9))), Err(None));
    assert_eq!(ask(&mut node, 1, &request(mac(1, 1), v6(1), v6(9))), Err(None));
    assert_eq!(ask(&mut node, 2, &request(mac(2, 1), v4(1), v4(2))), Err(None), "no MAC configured");
}

#[test]
fn link_local_addresses_show_their_mac() {
    let mut node = Node::new(&config(1, Link::VXLAN));
    let local = |n: u8| format!("fe80::ff:fe00:10{n}").parse().unwrap();
    let (answer, _) = ask(&mut node, 1, &request(mac(1, 1), local(1), local(2))).unwrap();
    assert_eq!(answer[6..12], mac(1, 2).0);
    assert_eq!(ask(&mut node, 1, &request(mac(1, 1), local(1), local(3))), Err(None));
}

/// A frame of tenant 1 as node 1 would tunnel it, which it does not with broadcast.
fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let mut outer =
        Node::resolved(&config(1, Link::VXLAN), 2).send(1, &Packet::new(1, 1, 2, false).bytes(b""));
    outer.truncate(50);
    outer.extend_from_slice(inner);
    let udp_bytes = (outer.len() - 34) as u16;
    outer[38..40].copy_from_slice(&udp_bytes.to_be_bytes());
    outer[16..18].copy_from_slice(&(udp_bytes + 20).to_be_bytes());
    outer[24..26].fill(0);
    let sum = !wire::checksum::sum(&outer[14..34]);
    outer[24..26].copy_from_slice(&sum.to_be_bytes());
    outer
}

#[test]
fn requests_from_a_tunnel_reach_only_the_one_who_is_asked() {
    let mut config = config(2, Link::VXLAN);
    config.tenants[0].attachments.push(Attachment {
        port: PortId(5),
        vlan: None,
        sources: [v4(77), v6(77)].map(|ip| Source { ip: Prefix::host(ip), mac: None }).to_vec(),
    });
    let mut node = Node::new(&config);
    let mut deliver = |inner: &[u8]| {
        let (verdict, meta, bytes) = node.underlay(&tunnelled(inner));
        (verdict, meta.egress_port, bytes)
    };
    for (host, port) in [(2, 1), (77, 5)] {
        for (source, target) in [(v4(1), v4(host)), (v6(1), v6(host))] {
            let inner = request(mac(1, 1), source, target);
            assert_eq!(deliver(&inner), (Verdict::Deliver, port, inner));
        }
    }
    let why = |inner: &[u8]| Node::new(&config).underlay(&tunnelled(inner)).0;
    for (source, target) in [(v4(1), v4(9)), (v6(1), v6(9)), (v4(1), v4(1))] {
        let unknown = Verdict::Drop(DropReason::UnknownDestination);
        assert_eq!(why(&request(mac(1, 1), source, target)), unknown);
    }
    // Nobody behind that peer has these.
    for source in [v4(9), v4(2), v6(9)] {
        let target = if source.is_ipv4() { v4(2) } else { v6(2) };
        assert_eq!(why(&request(mac(1, 1), source, target)), Verdict::Drop(DropReason::Spoofed));
    }
    assert_eq!(why(&request(mac(1, 9), v4(1), v4(2))), Verdict::Drop(DropReason::Spoofed));
    // Duplicate address detection of a known station passes.
    assert_eq!(why(&request(mac(1, 1), "0.0.0.0".parse().unwrap(), v4(2))), Verdict::Deliver);
    assert_eq!(why(&request(mac(1, 1), "::".parse().unwrap(), v6(2))), Verdict::Deliver);
}

#[test]
fn replies_are_forwarded_to_whom_they_answer() {
    let mut one = Node::resolved(&config(1, Link::VXLAN), 2);
    let reply = |dst| arp_frame(arp::Operation::Reply, dst, (mac(1, 1), v4(1)), (mac(1, 2), v4(2)));
    let outer = one.send(1, &reply(mac(1, 2)));
    assert_eq!(outer[15], 0, "no DSCP, no ECN");
    let mut two = Node::resolved(&config(2, Link::VXLAN), 1);
    assert_eq!(two.underlay(&outer).0, Verdict::Deliver);
    assert_eq!(one.tenant(1, &reply(Mac::BROADCAST)).0, Verdict::Trap);
    let stranger = arp_frame(arp::Operation::Reply, mac(1, 9), (mac(1, 1), v4(1)), (mac(1, 9), v4(9)));
    assert_eq!(one.tenant(1, &stranger).0, Verdict::Drop(DropReason::NoRule));
}
