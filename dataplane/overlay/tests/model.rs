//! The lookup against a naive scan of the same rules.

mod common;

use std::net::IpAddr;

use common::*;
use overlay::*;
use proptest::prelude::*;
use wire::protocol;

/// Prefix lengths that the generated rules use: few enough to stay below the limit on mask tuples most of
/// the time.
const BITS: [u8; 4] = [8, 24, 30, 32];

fn destination() -> impl Strategy<Value = Prefix<IpAddr>> {
    (0_usize..4, 0_u32..16).prop_map(|(bits, host)| {
        let bits = BITS[bits];
        let address = 0x0a00_0000 | host;
        let mask = u32::MAX << (32 - u32::from(bits));
        Prefix { address: std::net::Ipv4Addr::from_bits(address & mask).into(), bits }
    })
}

fn action() -> impl Strategy<Value = Action> {
    let node = 2_u8..5;
    prop_oneof![
        Just(Action::Trap),
        Just(Action::Drop),
        (node, proptest::option::of(0_u32..9)).prop_map(|(node, volume)| Action::Forward {
            volume: volume.map(VolumeId),
            vtep: Vtep { ip: vtep(node, false), port: None },
        }),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let transport = proptest::option::weighted(0.2, prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)]);
    let port = || proptest::option::weighted(0.3, 1_u16..4);
    (destination(), transport, port(), port(), action()).prop_map(
        |(prefix, transport, destination_port, source_port, action)| Rule {
            tenant: TenantId(1),
            destination: Destination::Ip(prefix),
            transport,
            destination_port,
            source_port,
            action,
        },
    )
}

fn packet() -> impl Strategy<Value = Packet> {
    let proto = prop_oneof![Just(protocol::UDP), Just(protocol::TCP), Just(protocol::ICMP)];
    (0_u8..16, proto, 0_u16..5, 0_u16..5).prop_map(|(host, proto, src_port, dst_port)| Packet {
        dst: v4(host),
        proto,
        src_port,
        dst_port,
        ..Packet::new(1, 1, 2, false)
    })
}

fn matches(rule: &Rule, packet: &Packet) -> bool {
    let Destination::Ip(prefix) = rule.destination else { return false };
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(_) => unreachable!("IPv4 only"),
    };
    let inside =
        prefix.bits == 0 || (bits(prefix.address) ^ bits(packet.dst)) >> (32 - u32::from(prefix.bits)) == 0;
    let transport = match packet.proto {
        protocol::TCP => Some(Transport::Tcp),
        protocol::UDP => Some(Transport::Udp),
        _ => None,
    };
    let ports = transport.is_some();
    inside
        && rule.transport.is_none_or(|wanted| transport == Some(wanted))
        && rule.destination_port.is_none_or(|wanted| ports && packet.dst_port == wanted)
        && rule.source_port.is_none_or(|wanted| ports && packet.src_port == wanted)
}

/// The longer prefix, then destination port, source port, protocol.
fn specificity(rule: &Rule) -> (u8, bool, bool, bool) {
    let Destination::Ip(prefix) = rule.destination else { return (0, false, false, false) };
    let (to, from) = (rule.destination_port.is_some(), rule.source_port.is_some());
    (prefix.bits, to, from, rule.transport.is_some())
}

/// The rule that decides, by looking at every one.
fn scan<'a>(rules: &'a [Rule], packet: &Packet) -> Option<(usize, &'a Rule)> {
    let matching = rules.iter().enumerate().filter(|(_, rule)| matches(rule, packet));
    matching.max_by_key(|(_, rule)| specificity(rule))
}

/// Without duplicates, and with no more mask tuples than are allowed.
fn admissible(rules: Vec<Rule>) -> Vec<Rule> {
    let mut kept = Vec::<Rule>::new();
    let mut tuples = std::collections::HashSet::new();
    for rule in rules {
        let same = |other: &Rule| {
            (other.destination, other.transport, other.source_port, other.destination_port)
                == (rule.destination, rule.transport, rule.source_port, rule.destination_port)
        };
        let tuple = specificity(&rule);
        let single = tuple == (32, false, false, false);
        if kept.iter().any(same) || (!single && tuples.len() == 8 && !tuples.contains(&tuple)) {
            continue;
        }
        if !single {
            tuples.insert(tuple);
        }
        kept.push(rule);
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_tables_decide_as_a_scan_does(
        rules in proptest::collection::vec(rule(), 0..60).prop_map(admissible),
        packets in proptest::collection::vec(packet(), 32),
    ) {
        let mut config = config(1, Link::VXLAN);
        // Only the sender stays, so that nothing but rules decides.
        config.tenants.truncate(1);
        config.tenants[0].remotes.clear();
        config.tenants[0].attachments[0].sources.truncate(1);
        config.rules = rules;
        let mut node = Node::new(&config);
        for packet in packets.iter().filter(|packet| packet.dst != v4(1)) {
            let (verdict, meta, _) = node.tenant(1, &packet.bytes(b"x"));
            let found = scan(&config.rules, packet);
            let expected = match found.map(|(_, rule)| rule.action) {
                None => Verdict::Drop(frame::DropReason::NoRule),
                Some(Action::Trap) => Verdict::Trap,
                Some(Action::Drop) => Verdict::Drop(frame::DropReason::RuleDrop),
                Some(Action::Forward { .. }) => Verdict::Forward,
            };
            prop_assert_eq!(verdict, expected, "{:?}", packet);
            let number = found.map_or(Outcomes::NO_RULE, |(at, _)| at as u32);
            prop_assert_eq!(node.outcomes.rules[0], number);
            if let Some((_, Rule { action: Action::Forward { volume, vtep }, .. })) = found {
                let (_, peer) = node.tables.next_hop(NextHopId(meta.next_hop)).unwrap();
                prop_assert_eq!(peer.ip(), vtep.ip);
                prop_assert_eq!(meta.volume, volume.map_or(frame::Meta::NO_VOLUME, |volume| volume.0));
                prop_assert_eq!(meta.vni, 100);
            }
        }
    }
}

#[test]
fn a_hundred_thousand_rules_are_all_found() {
    let mut config = config(1, Link::VXLAN);
    config.rules = (0..RULES_MAX as u32)
        .map(|n| Rule {
            tenant: TenantId(1),
            destination: Destination::Ip(Prefix::host(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into())),
            transport: None,
            destination_port: None,
            source_port: None,
            action: Action::Drop,
        })
        .collect();
    let mut node = Node::new(&config);
    for n in 0..RULES_MAX as u32 {
        let dst = std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into();
        let packet = Packet { dst, ..Packet::new(1, 1, 2, false) };
        assert_eq!(node.tenant(1, &packet.bytes(b"")).0, Verdict::Drop(frame::DropReason::RuleDrop));
        assert_eq!(node.outcomes.rules[0], n);
    }
}
