//! What a configuration may not say, and what stays the same from one to the next.

mod common;

use common::*;
use overlay::*;
use wire::{Mac, VlanId, Vni};

/// Why a changed configuration of node 1 is refused.
fn refused(change: impl FnOnce(&mut Config)) -> TableError {
    let mut config = config(1, Link::VXLAN);
    change(&mut config);
    Tables::build(&config, None).expect_err("must be refused")
}

fn rule(action: Action) -> Rule {
    Rule {
        tenant: TenantId(1),
        destination: Destination::Ip(prefix("10.1.0.0/16")),
        transport: None,
        destination_port: None,
        source_port: None,
        action,
    }
}

fn forward(ip: &str) -> Action {
    Action::Forward { volume: None, vtep: Vtep { ip: ip.parse().unwrap(), port: None } }
}

#[test]
fn limits_are_refused_beyond() {
    let over = |what| move |error| matches!(error, TableError::Limit { what: which, .. } if which == what);
    let tenants = refused(|config| config.tenants = vec![config.tenants[0].clone(); TENANTS_MAX + 1]);
    assert!(over("tenants")(tenants));
    let rules = refused(|config| config.rules = vec![rule(Action::Drop); RULES_MAX + 1]);
    assert!(over("rules")(rules.clone()));
    assert!(rules.to_string().contains("at most 100000"), "{rules}");
    let volume = Volume { id: VolumeId(0), tenant: TenantId(1), server: v4(2), port: 1 };
    assert!(over("volumes")(refused(|config| config.volumes = vec![volume; VOLUMES_MAX + 1])));
    let attachments = refused(|config| {
        let one = Attachment { sources: vec![], ..config.tenants[0].attachments[0].clone() };
        config.tenants[0].attachments = vec![one; ATTACHMENTS_MAX + 1];
    });
    assert!(over("attachments")(attachments));
    let endpoints = refused(|config| {
        config.tenants[0].remotes = vec![config.tenants[0].remotes[0]; ENDPOINTS_MAX + 1];
    });
    assert!(over("endpoints")(endpoints));
    let hops = refused(|config| {
        config.underlays[0].ipv4.as_mut().unwrap().bits = 0;
        config.rules = (0..=NEXT_HOPS_MAX as u32)
            .map(|n| Rule {
                destination: Destination::Ip(Prefix::host(std::net::Ipv4Addr::from_bits(n + 1).into())),
                action: Action::Forward {
                    volume: None,
                    vtep: Vtep { ip: std::net::Ipv4Addr::from_bits(0x0c00_0000 + n).into(), port: None },
                },
                ..rule(Action::Drop)
            })
            .collect();
    });
    assert!(over("next hops")(hops));
}

#[test]
fn tenants_are_told_apart() {
    assert!(matches!(refused(|c| c.tenants[0].id.0 = 16_384), TableError::TenantNumber { .. }));
    assert!(matches!(refused(|c| c.tenants[1].id = TenantId(1)), TableError::DuplicateTenant { .. }));
    let vni = refused(|c| c.tenants[1].vni = Vni::new(100).unwrap());
    assert_eq!(vni.to_string(), "vni 100 belongs to tenants 1 and 2: give one of them another vni");
    let underlay = refused(|c| c.tenants[1].underlay = PortId(8));
    assert!(matches!(underlay, TableError::UnknownUnderlay { .. }));
    let named = refused(|c| c.rules = vec![Rule { tenant: TenantId(7), ..rule(Action::Drop) }]);
    assert!(matches!(named, TableError::UnknownTenant { what: "rule", position: 0, .. }));
}

#[test]
fn ports_and_addresses_have_one_place() {
    let port = refused(|c| c.tenants[0].attachments[0].port = UNDERLAY);
    assert!(matches!(port, TableError::DuplicatePort { .. }));
    let port = refused(|c| c.underlays.push(c.underlays[0].clone()));
    assert!(matches!(port, TableError::DuplicatePort { .. }));
    let twice = refused(|c| c.tenants[1].attachments[0].port = PortId(1));
    assert!(matches!(twice, TableError::DuplicateAttachment { vlan: None, .. }));
    let twice = refused(|c| {
        for tenant in &mut c.tenants {
            tenant.attachments[0].port = PortId(1);
            tenant.attachments[0].vlan = VlanId::new(30);
        }
    });
    assert!(matches!(twice, TableError::DuplicateAttachment { vlan: Some(30), .. }));
    let address = refused(|c| c.tenants[0].remotes[0].ip = Prefix::host(v4(1)));
    assert!(matches!(address, TableError::DuplicateAddress { bits: 32, .. }));
    let station = refused(|c| c.tenants[0].remotes[0].mac = Some(mac(1, 1)));
    assert!(matches!(station, TableError::DuplicateMac { .. }));
    let group = refused(|c| c.tenants[0].remotes[0].mac = Some(Mac::BROADCAST));
    assert!(matches!(group, TableError::NotUnicast { .. }));
    for wrong in ["10.0.0.1/24", "fd00::1/64", "10.0.0.0/33"] {
        let error = refused(|c| c.tenants[0].remotes[0].ip = prefix(wrong));
        assert!(matches!(error, TableError::Prefix { .. }), "{wrong}");
    }
}

#[test]
fn underlays_must_work() {
    let changes: [fn(&mut Underlay); 7] = [
        |u| u.dscp = Dscp::Fixed(64),
        |u| u.mtu_bytes = 1279,
        |u| u.mac = Mac::ZERO,
        |u| (u.ipv4, u.ipv6) = (None, None),
        |u| u.ipv4.as_mut().unwrap().bits = 33,
        |u| u.ttl = 0,
        |u| u.geneve_port = 4789,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let error = refused(|c| change(&mut c.underlays[0]));
        assert!(matches!(error, TableError::Underlay { .. }), "change {n}: {error}");
    }
}

#[test]
fn endpoints_must_be_reachable_and_distinct() {
    let to = |ip: &str| {
        let action = forward(ip);
        refused(move |c| c.rules = vec![rule(action)])
    };
    assert!(matches!(to("198.51.100.1"), TableError::NoRoute { .. }));
    assert!(matches!(to("192.0.2.1"), TableError::VtepIsLocal { .. }));
    let family = refused(|c| {
        c.underlays[0].ipv6 = None;
        c.rules = vec![rule(forward("2001:db8::2"))];
    });
    assert!(matches!(family, TableError::NoLocalAddress { .. }));
    let ambiguous = refused(|c| c.tenants[0].remotes[0].vtep.port = Some(4790));
    assert!(matches!(ambiguous, TableError::VtepAmbiguous { .. }));
    let formats = refused(|c| {
        c.underlays[0].kind = UnderlayKind::Datagram;
        c.tenants[1].encapsulation = Encapsulation::Geneve;
        for tenant in &mut c.tenants {
            tenant.remotes.iter_mut().for_each(|remote| remote.vtep.port = Some(5000));
        }
    });
    assert!(matches!(formats, TableError::VtepAmbiguous { .. }));
}

#[test]
fn rules_and_volumes_must_not_contradict() {
    let twice = refused(|c| c.rules = vec![rule(Action::Drop), rule(Action::Trap)]);
    assert_eq!(twice, TableError::DuplicateRule { first: 0, second: 1 });
    let station = Destination::Mac(mac(1, 5));
    let ports = refused(|c| {
        c.rules = vec![Rule { destination: station, destination_port: Some(1), ..rule(Action::Drop) }];
    });
    assert!(matches!(ports, TableError::MacWithTransport { position: 0 }));
    let group = Destination::Mac(Mac::BROADCAST);
    let group = refused(|c| c.rules = vec![Rule { destination: group, ..rule(Action::Drop) }]);
    assert!(matches!(group, TableError::NotUnicast { .. }));
    let tuples = |count: u8| {
        let mut config = config(1, Link::VXLAN);
        let rules = (8..8 + count).map(|bits| Rule {
            destination: Destination::Ip(Prefix { address: "0.0.0.0".parse().unwrap(), bits }),
            ..rule(Action::Drop)
        });
        config.rules = rules.collect();
        Tables::build(&config, None)
    };
    assert!(tuples(8).is_ok());
    assert!(matches!(tuples(9), Err(TableError::Tuples { count: 9, .. })));

    let volume = Volume { id: VolumeId(4), tenant: TenantId(1), server: v4(2), port: 3260 };
    let again = refused(|c| c.volumes = vec![volume, Volume { id: VolumeId(5), ..volume }]);
    assert_eq!(again, TableError::DuplicateVolume { position: 1 });
    let shared = refused(|c| c.volumes = vec![volume, Volume { tenant: TenantId(2), ..volume }]);
    assert_eq!(shared, TableError::DuplicateVolume { position: 1 });
    let none = refused(|c| c.volumes = vec![Volume { id: VolumeId(u32::MAX), ..volume }]);
    assert!(matches!(none, TableError::VolumeNumber { .. }));
    let foreign = refused(|c| {
        c.volumes = vec![volume];
        let vtep = Vtep { ip: vtep(2, false), port: None };
        let action = Action::Forward { volume: Some(VolumeId(4)), vtep };
        c.rules = vec![Rule { tenant: TenantId(2), ..rule(action) }];
    });
    assert!(matches!(foreign, TableError::ForeignVolume { .. }));
}

#[test]
fn both_directions_of_a_service_are_charged_to_its_volume() {
    let volume = |host, port, id| Volume { id: VolumeId(id), tenant: TenantId(1), server: v4(host), port };
    let with_volumes = |node| {
        let mut config = config(node, Link::VXLAN);
        config.volumes = vec![volume(2, 3260, 4), volume(1, 3260, 5)];
        Node::resolved(&config, 3 - node)
    };
    let (mut one, mut two) = (with_volumes(1), with_volumes(2));
    let mut charged = |packet: Packet| {
        let bytes = packet.bytes(b"0123456789");
        let (_, egress, _) = one.tenant(1, &bytes);
        let outer = one.send(1, &bytes);
        let (verdict, ingress, _) = two.underlay(&outer);
        assert_eq!(verdict, Verdict::Deliver);
        assert_eq!((egress.volume, egress.cost_bytes), (ingress.volume, ingress.cost_bytes));
        egress.volume
    };
    let packet = Packet::new(1, 1, 2, false);
    assert_eq!(charged(Packet { dst_port: 3260, ..packet }), 4, "to the server behind the tunnel");
    assert_eq!(charged(Packet { src_port: 3260, ..packet }), 5, "from the server on this side");
    assert_eq!(charged(packet), frame::Meta::NO_VOLUME);
    // Tenant 2 has the same addresses and no volumes.
    let other = Packet { dst_port: 3260, ..Packet::new(2, 1, 2, false) };
    assert_eq!(one.tenant(2, &other.bytes(b"x")).1.volume, frame::Meta::NO_VOLUME);
}

#[test]
fn a_rule_overrides_the_endpoint_that_it_names() {
    let mut config = config(1, Link::VXLAN);
    let exact = Destination::Ip(Prefix::host(v4(2)));
    config.rules = vec![Rule { destination: exact, ..rule(Action::Drop) }];
    let mut node = Node::new(&config);
    let verdict = node.tenant(1, &Packet::new(1, 1, 2, false).bytes(b"x")).0;
    assert_eq!(verdict, Verdict::Drop(frame::DropReason::RuleDrop));
    assert_eq!(node.outcomes.rules[0], 0);
}

#[test]
fn numbers_keep_their_meaning_across_builds() {
    let first = config(1, Link::VXLAN);
    let tables = Tables::build(&first, None).unwrap();
    assert_eq!(tables.next_hop_count(), 1, "both tenants reach the same endpoint the same way");
    let (port, peer) = tables.next_hop(NextHopId(0)).unwrap();
    assert_eq!((port, peer.to_string().as_str()), (UNDERLAY, "192.0.2.2:4789"));
    assert_eq!(tables.attachment(AttachmentId(1)), Some((PortId(2), None)));

    // Another endpoint comes first now, and tenant 1's port is gone.
    let mut second = config(1, Link::VXLAN);
    second.tenants[0].attachments[0].port = PortId(3);
    second.tenants[0].remotes.iter_mut().for_each(|remote| remote.vtep.ip = vtep(5, false));
    let tables = Tables::build(&second, Some(&tables)).unwrap();
    assert_eq!(tables.next_hop(NextHopId(0)).unwrap().1, peer);
    assert_eq!(tables.next_hop(NextHopId(1)).unwrap().1.ip(), vtep(5, false));
    assert_eq!(tables.attachment(AttachmentId(0)), None);
    assert_eq!(tables.attachment(AttachmentId(1)), Some((PortId(2), None)));
    assert_eq!(tables.attachment(AttachmentId(2)), Some((PortId(3), None)));

    // And back: the old numbers again, the new one unused.
    let tables = Tables::build(&first, Some(&tables)).unwrap();
    assert_eq!(tables.next_hop(NextHopId(0)).unwrap().1, peer);
    assert_eq!(tables.next_hop(NextHopId(1)), None);
    assert_eq!(tables.attachment(AttachmentId(0)), Some((PortId(1), None)));
    assert_eq!((tables.attachment_count(), tables.next_hop_count()), (3, 2));
    assert_eq!(tables.attachment(AttachmentId(99)), None);
    assert!(tables.is_underlay(UNDERLAY) && !tables.is_underlay(PortId(1)));
}

#[test]
fn vlans_of_one_port_belong_to_different_tenants() {
    let mut config = config(1, Link::VXLAN);
    config.tenants[0].attachments[0].port = PortId(5);
    config.tenants[1].attachments[0].port = PortId(5);
    config.tenants[1].attachments[0].vlan = VlanId::new(4094);
    let mut node = Node::new(&config);
    let untagged = node.tenant(5, &Packet::new(1, 1, 2, false).bytes(b"x"));
    assert_eq!((untagged.0, untagged.1.vni), (Verdict::Forward, 100));
    let vlan = node.tenant(5, &tagged(&Packet::new(2, 1, 2, false).bytes(b"x"), &[4094]));
    assert_eq!((vlan.0, vlan.1.vni), (Verdict::Forward, 200));
    // A tag that carries only a priority is no VLAN.
    let priority = node.tenant(5, &tagged(&Packet::new(1, 1, 2, false).bytes(b"x"), &[0xe000]));
    assert_eq!((priority.0, priority.1.vni), (Verdict::Forward, 100));
}

#[test]
fn prefixes_of_addresses_live_behind_one_station() {
    let mut config_one = config(1, Link::VXLAN);
    config_one.tenants[0].attachments[0].sources.push(Source { ip: prefix("10.5.0.0/16"), mac: None });
    let mut config_two = config(2, Link::VXLAN);
    config_two.tenants[0].remotes.push(Remote {
        ip: prefix("10.5.0.0/16"),
        mac: None,
        vtep: Vtep { ip: vtep(1, false), port: None },
    });
    let (mut one, mut two) = (Node::resolved(&config_one, 2), Node::resolved(&config_two, 1));
    let from = |host: &str| Packet {
        src: host.parse().unwrap(),
        src_mac: mac(1, 77),
        ..Packet::new(1, 1, 2, false)
    };
    let outer = one.send(1, &from("10.5.6.7").bytes(b"x"));
    assert_eq!(two.underlay(&outer).0, Verdict::Deliver);
    let spoofed = Verdict::Drop(frame::DropReason::Spoofed);
    assert_eq!(one.tenant(1, &from("10.6.6.7").bytes(b"x")).0, spoofed);
    assert_eq!(one.tenant(1, &from("10.0.0.1").bytes(b"x")).0, spoofed, "that one has its own MAC");
    // And back, to any of them.
    let packet =
        Packet { dst: "10.5.9.9".parse().unwrap(), dst_mac: mac(1, 66), ..Packet::new(1, 2, 1, false) };
    let outer = two.send(1, &packet.bytes(b"x"));
    assert_eq!(one.underlay(&outer).0, Verdict::Deliver);
}
