//! Every reason under which this crate drops a frame, reached; and every truncation.

mod common;

use common::*;
use frame::DropReason;
use overlay::*;
use wire::geneve::{self, Tidegate};
use wire::icmp6::Neighbour;
use wire::{EtherType, Mac, arp, protocol};

fn one() -> Node {
    Node::resolved(&config(1, Link::VXLAN), 2)
}

fn two() -> Node {
    Node::resolved(&config(2, Link::VXLAN), 1)
}

fn plain() -> Packet {
    Packet::new(1, 1, 2, false)
}

fn dropped(why: DropReason) -> Verdict {
    Verdict::Drop(why)
}

/// The verdict on a tenant's frame at node 1, port 1.
fn from_tenant(bytes: &[u8]) -> Verdict {
    one().tenant(1, bytes).0
}

/// The verdict at node 2 on a frame that node 1 made and `damage` changed.
fn from_peer(link: Link, damage: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    let mut outer = Node::resolved(&config(1, link), 2).send(1, &plain().bytes(b"x"));
    damage(&mut outer);
    Node::resolved(&config(2, link), 1).underlay(&outer).0
}

#[test]
fn spoofed_sources_are_dropped() {
    let wrong = [
        Packet { src: v4(3), ..plain() },
        Packet { src_mac: mac(1, 3), ..plain() },
        Packet { src_mac: mac(2, 1), ..plain() },
        Packet { src: v4(2), ..plain() },
        Packet { src: "0.0.0.0".parse().unwrap(), dst_mac: Mac::BROADCAST, ..plain() },
        // A link-local address formed from somebody else's MAC.
        Packet { src: "fe80::ff:fe00:103".parse().unwrap(), ..Packet::new(1, 1, 2, true) },
        // No address yet, but not multicast either.
        Packet { src: "::".parse().unwrap(), ..Packet::new(1, 1, 2, true) },
    ];
    for packet in wrong {
        assert_eq!(from_tenant(&packet.bytes(b"x")), dropped(DropReason::Spoofed), "{packet:?}");
    }
}

#[test]
fn spoofed_arp_and_discovery_are_dropped() {
    let arp = |sender, src: Mac| {
        let mut frame = arp_frame(arp::Operation::Request, Mac::BROADCAST, sender, (Mac::ZERO, v4(2)));
        frame[6..12].copy_from_slice(&src.0);
        from_tenant(&frame)
    };
    assert_eq!(arp((mac(1, 1), v4(1)), mac(1, 1)), Verdict::Local);
    assert_eq!(arp((mac(1, 1), v4(3)), mac(1, 1)), dropped(DropReason::Spoofed));
    assert_eq!(arp((mac(1, 3), v4(1)), mac(1, 1)), dropped(DropReason::Spoofed));
    assert_eq!(arp((mac(1, 1), v4(1)), mac(1, 3)), dropped(DropReason::Spoofed));
    // A probe for duplicates shows no address; the MAC must still be right.
    let nobody = "0.0.0.0".parse().unwrap();
    assert_eq!(arp((mac(1, 1), nobody), mac(1, 1)), Verdict::Local);
    assert_eq!(arp((mac(1, 3), nobody), mac(1, 3)), dropped(DropReason::Spoofed));

    let advertise = |target, target_mac| {
        let message = Neighbour::Advertisement {
            target: six(target),
            target_mac: Some(target_mac),
            router: false,
            solicited: true,
            overrides: true,
        };
        from_tenant(&discovery((mac(1, 1), six(v6(1))), (mac(1, 2), six(v6(2))), message))
    };
    assert_eq!(advertise(v6(1), mac(1, 1)), Verdict::Forward);
    assert_eq!(advertise(v6(3), mac(1, 1)), dropped(DropReason::Spoofed));
    assert_eq!(advertise(v6(1), mac(1, 3)), dropped(DropReason::Spoofed));
    let lie = Neighbour::Solicitation { target: six(v6(2)), source_mac: Some(mac(1, 3)) };
    let frame = discovery((mac(1, 1), six(v6(1))), solicited(six(v6(2))), lie);
    assert_eq!(from_tenant(&frame), dropped(DropReason::Spoofed));
}

#[test]
fn link_local_addresses_of_a_known_mac_pass() {
    let local = |node: u8| format!("fe80::ff:fe00:10{node}").parse().unwrap();
    let packet = Packet { src: local(1), dst: local(2), ..Packet::new(1, 1, 2, true) };
    let outer = one().send(1, &packet.bytes(b"x"));
    assert_eq!(two().underlay(&outer).0, Verdict::Deliver);
    // To an unknown address behind a known MAC it does not.
    let packet = Packet { dst: v6(9), ..Packet::new(1, 1, 2, true) };
    assert_eq!(from_tenant(&packet.bytes(b"x")), dropped(DropReason::NoRule));
}

#[test]
fn multicast_is_trapped() {
    let groups = [
        Packet { dst: "224.0.0.251".parse().unwrap(), dst_mac: Mac([1, 0, 0x5e, 0, 0, 0xfb]), ..plain() },
        Packet { dst: "255.255.255.255".parse().unwrap(), dst_mac: Mac::BROADCAST, ..plain() },
        Packet {
            dst: "ff02::fb".parse().unwrap(),
            dst_mac: Mac([0x33, 0x33, 0, 0, 0, 0xfb]),
            ..Packet::new(1, 1, 2, true)
        },
    ];
    for packet in groups {
        assert_eq!(from_tenant(&packet.bytes(b"x")), Verdict::Trap, "{packet:?}");
    }
    // The peer does not send such; a kernel does.
    let mut inner = plain().bytes(b"x");
    inner[..6].copy_from_slice(&Mac::BROADCAST.0);
    let outer = [&one().send(1, &plain().bytes(b"x"))[..50], &inner].concat();
    assert_eq!(two().underlay(&outer).0, Verdict::Trap);
}

#[test]
fn rules_trap_and_drop() {
    let mut config = config(1, Link::VXLAN);
    let rule = |port, action| Rule {
        tenant: TenantId(1),
        destination: Destination::Ip(prefix("10.0.0.0/24")),
        transport: Some(Transport::Udp),
        destination_port: Some(port),
        source_port: None,
        action,
    };
    let host = Rule { destination: Destination::Ip(prefix("10.0.0.2/32")), ..rule(81, Action::Drop) };
    config.rules = vec![rule(80, Action::Trap), host];
    let mut node = Node::resolved(&config, 2);
    let mut to = |packet: Packet| (node.tenant(1, &packet.bytes(b"x")).0, node.outcomes.rules[0]);
    // 10.0.0.2 is a remote, and a single address is more specific than the prefix.
    assert_eq!(to(Packet { dst_port: 80, ..plain() }), (Verdict::Forward, Outcomes::NO_RULE));
    assert_eq!(to(Packet { dst_port: 81, ..plain() }), (dropped(DropReason::RuleDrop), 1));
    assert_eq!(to(Packet { dst: v4(9), dst_port: 80, ..plain() }), (Verdict::Trap, 0));
    assert_eq!(to(Packet { dst: v4(9), dst_port: 82, ..plain() }).0, dropped(DropReason::NoRule));
    // Fragments hide the ports that decide.
    let mut fragment = Packet { dst_port: 81, ..plain() }.bytes(&[0; 64]);
    fragment[20] = 0x20;
    assert_eq!(node.tenant(1, &fragment).0, Verdict::Trap);
    assert_eq!(one().tenant(1, &fragment).0, Verdict::Forward, "without port rules, by address");
}

#[test]
fn mac_rules_decide_for_what_no_address_rule_matches() {
    let mut config = config(1, Link::VXLAN);
    let rule = |mac, action| Rule {
        tenant: TenantId(1),
        destination: Destination::Mac(mac),
        transport: None,
        destination_port: None,
        source_port: None,
        action,
    };
    config.rules = vec![rule(mac(1, 2), Action::Trap), rule(mac(1, 9), Action::Drop)];
    let mut node = Node::resolved(&config, 2);
    let mut to = |packet: Packet| node.tenant(1, &packet.bytes(b"x")).0;
    assert_eq!(to(plain()), Verdict::Forward);
    assert_eq!(to(Packet { dst: v4(9), ..plain() }), Verdict::Trap);
    assert_eq!(to(Packet { dst: v4(9), dst_mac: mac(1, 9), ..plain() }), dropped(DropReason::RuleDrop));
}

#[test]
fn what_the_overlay_does_not_carry_is_unsupported() {
    let unsupported = dropped(DropReason::UnsupportedType);
    assert_eq!(from_tenant(&ethernet_frame(mac(1, 2), mac(1, 1), EtherType(0x88cc), &[0; 46])), unsupported);
    let mut config = config(1, Link::VXLAN);
    config.tenants[0].attachments[0].vlan = wire::VlanId::new(30);
    let qinq = tagged(&plain().bytes(b"x"), &[30, 40]);
    assert_eq!(Node::new(&config).tenant(1, &qinq).0, unsupported);
    assert_eq!(from_peer(Link::VXLAN, |outer| *outer = tagged(outer, &[30])), unsupported);
    assert_eq!(
        from_peer(Link::VXLAN, |outer| {
            let inner = tagged(&outer[50..], &[30]);
            outer.truncate(50);
            outer.extend_from_slice(&inner);
            lengthen(outer, 4);
        }),
        unsupported
    );
    let fragment = |outer: &mut Vec<u8>| {
        outer[20] |= 0x20;
        outer[24..26].fill(0);
        let sum = !wire::checksum::sum(&outer[14..34]);
        outer[24..26].copy_from_slice(&sum.to_be_bytes());
    };
    assert_eq!(from_peer(Link::VXLAN, fragment), unsupported);
    let geneve = Link { encapsulation: Encapsulation::Geneve, ..Link::VXLAN };
    for (at, value) in [(0, 0x45), (1, 0x80), (2, 0x08)] {
        assert_eq!(from_peer(geneve, |outer| outer[42 + at] = value), unsupported);
    }
}

/// Adds to the outer IPv4 and UDP lengths.
fn lengthen(outer: &mut [u8], bytes: i16) {
    for at in [16, 38] {
        let length = i16::from_be_bytes([outer[at], outer[at + 1]]) + bytes;
        outer[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    outer[24..26].fill(0);
    let sum = !wire::checksum::sum(&outer[14..34]);
    outer[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn foreign_tunnels_are_refused() {
    let vxlan = Link::VXLAN;
    assert_eq!(from_peer(vxlan, |_| {}), Verdict::Deliver);
    assert_eq!(from_peer(vxlan, |outer| outer[5] = 9), dropped(DropReason::NotForUs));
    assert_eq!(from_peer(vxlan, |outer| outer[37] = 1), dropped(DropReason::NotForUs));
    assert_eq!(from_peer(vxlan, |outer| outer[48] = 99), dropped(DropReason::UnknownVni));
    assert_eq!(from_peer(vxlan, |outer| outer[42] = 0), dropped(DropReason::Malformed));
    assert_eq!(from_peer(vxlan, |outer| outer[25] ^= 1), dropped(DropReason::BadChecksum));
    // Tenant 2's network, but tenant 1's addresses.
    assert_eq!(from_peer(vxlan, |outer| outer[48] = 200), dropped(DropReason::Spoofed));
    for six in [false, true] {
        let link = Link { checksum: true, six, ..vxlan };
        assert_eq!(from_peer(link, |_| {}), Verdict::Deliver);
        let last = |outer: &mut Vec<u8>| *outer.last_mut().unwrap() ^= 1;
        assert_eq!(from_peer(link, last), dropped(DropReason::BadChecksum));
    }
    let stranger = |outer: &mut Vec<u8>| {
        outer[29] = 77;
        lengthen(outer, 0);
    };
    assert_eq!(from_peer(vxlan, stranger), dropped(DropReason::WrongPort));
    // A router with VRRP or a host that pings us.
    let mut ping = Packet { proto: protocol::ICMP, dst: vtep(2, false), ..plain() };
    (ping.src, ping.dst_mac) = (vtep(1, false), underlay_mac(2));
    assert_eq!(two().underlay(&ping.bytes(&[8; 16])).0, dropped(DropReason::NotForUs));
    let unknown = one().tenant(7, &plain().bytes(b"x")).0;
    assert_eq!(unknown, dropped(DropReason::UnknownAttachment));
    assert_eq!(one().tenant(UNDERLAY.0, &plain().bytes(b"x")).0, unknown);
}

#[test]
fn critical_options_are_refused_and_others_skipped() {
    let geneve = Link { encapsulation: Encapsulation::Geneve, ..Link::VXLAN };
    let kind_at = 42 + geneve::HEADER_BYTES + 2;
    assert_eq!(from_peer(geneve, |outer| outer[kind_at] = 0x7f), Verdict::Deliver);
    assert_eq!(from_peer(geneve, |outer| outer[kind_at] = 0x81), dropped(DropReason::UnknownOption));
    let longer = |outer: &mut Vec<u8>| outer[kind_at + 1] = 5;
    assert_eq!(from_peer(geneve, longer), dropped(DropReason::Malformed));
    assert_eq!(Tidegate::OPTION_BYTES, 20);
}

#[test]
fn inner_frames_must_be_from_there_and_for_here() {
    let inner = |packet: Packet| {
        let head = one().send(1, &plain().bytes(b"x"))[..50].to_vec();
        two().underlay(&[&head[..], &packet.bytes(b"x")].concat()).0
    };
    assert_eq!(inner(plain()), Verdict::Deliver);
    // One of our own addresses, an unknown one, the right one from the wrong station.
    for src in [v4(2), v4(9)] {
        assert_eq!(inner(Packet { src, ..plain() }), dropped(DropReason::Spoofed));
    }
    assert_eq!(inner(Packet { src_mac: mac(1, 9), ..plain() }), dropped(DropReason::Spoofed));
    assert_eq!(inner(Packet { dst: v4(9), ..plain() }), dropped(DropReason::UnknownDestination));
    assert_eq!(inner(Packet { dst: v4(1), ..plain() }), dropped(DropReason::UnknownDestination));
    assert_eq!(inner(Packet { dst_mac: mac(1, 9), ..plain() }), dropped(DropReason::UnknownDestination));
}

#[test]
fn congestion_on_packets_that_cannot_know_it_is_loss() {
    let mark = |outer: &mut Vec<u8>| {
        wire::ipv4::HeaderMut((&mut outer[14..34]).try_into().unwrap()).set_ecn(0b11);
    };
    assert_eq!(from_peer(Link::VXLAN, mark), dropped(DropReason::EcnForbidden));
}

#[test]
fn sources_behind_a_rule_are_those_that_it_leads_to() {
    let mut config = config(2, Link::VXLAN);
    config.rules.push(Rule {
        tenant: TenantId(1),
        destination: Destination::Ip(prefix("10.9.0.0/16")),
        transport: Some(Transport::Tcp),
        destination_port: Some(3260),
        source_port: None,
        action: Action::Forward { volume: None, vtep: Vtep { ip: vtep(1, false), port: None } },
    });
    let mut node = Node::new(&config);
    let head = one().send(1, &plain().bytes(b"x"))[..50].to_vec();
    let mut answer = |src_port| {
        let packet = Packet { src: prefix("10.9.1.1/32").address, proto: protocol::TCP, src_port, ..plain() };
        let mut outer = [&head[..], &packet.bytes(b"x")].concat();
        lengthen(&mut outer, 12);
        node.underlay(&outer).0
    };
    assert_eq!(answer(3260), Verdict::Deliver);
    assert_eq!(answer(22), dropped(DropReason::Spoofed));
}

#[test]
fn a_removed_next_hop_is_a_rule_gone() {
    let mut node = one();
    let mut frame = node.frame(&plain().bytes(b"x"), 1);
    assert_eq!(node.judge_tenant(&mut frame), Verdict::Forward);
    let mut less = config(1, Link::VXLAN);
    less.tenants.iter_mut().for_each(|tenant| tenant.remotes.clear());
    node.tables = Tables::build(&less, Some(&node.tables)).unwrap();
    node.neighbours.rebase(&node.tables);
    let (result, sent) = node.encapsulate(frame, 0);
    assert!(matches!(result, Encapsulated::Dropped(DropReason::RuleGone)));
    assert!(sent.is_empty());
}

#[test]
fn without_headroom_there_is_no_frame() {
    let mut node = one();
    let mut frame = node.frame(&plain().bytes(b"x"), 1);
    assert_eq!(node.judge_tenant(&mut frame), Verdict::Forward);
    let headroom = node.pool.meta(&frame).headroom() - 40;
    assert!(node.pool.prepend(&mut frame, headroom).is_some());
    let (result, _) = node.encapsulate(frame, 0);
    assert!(matches!(result, Encapsulated::Dropped(DropReason::NoFrame)), "{result:?}");
}

#[test]
fn every_truncation_of_a_tenants_frame_is_dropped_as_such() {
    let frames = [
        plain().bytes(b"payload"),
        Packet { proto: protocol::TCP, ..plain() }.bytes(b"payload"),
        Packet::new(1, 1, 2, true).bytes(b"payload"),
        request(mac(1, 1), v4(1), v4(2)),
        request(mac(1, 1), v6(1), v6(2)),
    ];
    for frame in frames {
        let mut node = one();
        for len in 0..frame.len() {
            let verdict = node.tenant(1, &frame[..len]).0;
            assert_eq!(verdict, dropped(DropReason::Truncated), "{len} of {} bytes", frame.len());
        }
    }
}

#[test]
fn every_truncation_of_a_tunnelled_frame_is_dropped_as_such() {
    for link in Link::all().filter(|link| link.kind == UnderlayKind::Ethernet) {
        let outer = Node::resolved(&config(1, link), 2).send(1, &plain().bytes(b"payload"));
        let mut node = Node::resolved(&config(2, link), 1);
        for len in 0..outer.len() {
            let verdict = node.underlay(&outer[..len]).0;
            assert_eq!(verdict, dropped(DropReason::Truncated), "{link:?}: {len} of {} bytes", outer.len());
        }
    }
    // Outer lengths that agree with the truncation: the inner frame ends early.
    let outer = one().send(1, &plain().bytes(b"payload"));
    for len in 42..outer.len() {
        let mut cut = outer[..len].to_vec();
        lengthen(&mut cut, -((outer.len() - len) as i16));
        assert_eq!(two().underlay(&cut).0, dropped(DropReason::Truncated), "{len}");
    }
}

#[test]
fn damaged_frames_never_panic() {
    let mut node = two();
    let vxlan = one().send(1, &plain().bytes(b"payload"));
    let geneve = Link { encapsulation: Encapsulation::Geneve, six: true, ..Link::VXLAN };
    let geneve = Node::resolved(&config(1, geneve), 2).send(1, &plain().bytes(b"payload"));
    for outer in [vxlan, geneve] {
        for at in 0..outer.len() {
            for value in [0, 1, 0x45, 0x80, 0xff] {
                let mut damaged = outer.clone();
                damaged[at] = value;
                let _ = node.underlay(&damaged);
                let _ = node.tenant(1, &damaged);
            }
        }
    }
}
