//! From a tenant's port: who sends, may it, and where does the frame go.
//!
//! Two passes over a batch. The first parses each frame, finds its attachment, computes hashes and asks for
//! the cache lines that decide; the second finds them in the cache and decides. What is no ordinary unicast
//! IP packet leaves the fast path in the first pass:
//!
//! - ARP requests and neighbour solicitations: [`Verdict::Local`], for [`crate::responder`];
//! - ARP replies and neighbour advertisements: checked for the addresses that they claim, then forwarded;
//! - other broadcast and multicast: [`Verdict::Trap`] (capability F9);
//! - fragments of a tenant that has rules or volumes with ports: [`Verdict::Trap`], since the ports that
//!   decide are in the first fragment only; without such rules, by address;
//! - two VLAN tags (QinQ) and everything that is neither IP nor ARP: dropped as unsupported.

use arrayvec::ArrayVec;
use frame::{BATCH, DropReason, Frame, Meta, Pool};
use wire::icmp6::Neighbour;
use wire::{EtherType, IpKind, Mac, Parsed, arp, ipv6, protocol};

use crate::classify::{Flow, Side, deliver, describe, forward, is_link_local, judge, link_local_of, note};
use crate::classify::{reason, strip_vlan};
use crate::tables::{Endpoint, Place, Route, RouteKind, Tables};
use crate::{Outcomes, Verdict};

/// A frame between the two passes.
struct Pending {
    index: usize,
    attachment: u32,
    flow: Flow,
}

/// Judges up to 32 frames that came in by tenants' ports (`Meta::ingress_port`); fills `outcomes` for the
/// first `batch.len()` entries.
pub fn process_tenant(tables: &Tables, pool: &Pool, batch: &mut [Frame], outcomes: &mut Outcomes) {
    let mut pending = ArrayVec::<Pending, BATCH>::new();
    for (index, frame) in batch.iter_mut().enumerate().take(BATCH) {
        note(outcomes, index, Outcomes::NO_RULE);
        match admit(tables, pool, frame) {
            Ok(Step::Lookup(attachment, flow)) => pending.push(Pending { index, attachment, flow }),
            Ok(Step::Arp(attachment, parsed)) => {
                let verdict = process_arp(tables, pool, frame, attachment, &parsed);
                judge(outcomes, index, verdict.unwrap_or_else(Verdict::Drop));
            }
            Err(why) => judge(outcomes, index, Verdict::Drop(why)),
        }
    }
    for Pending { index, attachment, flow } in &pending {
        let verdict = match batch.get_mut(*index) {
            Some(frame) => decide(tables, pool, frame, *attachment, flow, *index, outcomes),
            None => continue,
        };
        judge(outcomes, *index, verdict);
    }
}

enum Step {
    Lookup(u32, Flow),
    Arp(u32, Parsed),
}

/// First pass: parse, attachment, metadata, prefetch.
#[inline(always)]
fn admit(tables: &Tables, pool: &Pool, frame: &mut Frame) -> Result<Step, DropReason> {
    let mut parsed = wire::parse(pool.bytes(frame)).map_err(reason)?;
    let port = pool.meta(frame).ingress_port;
    let (attachment, info) = tables.attached(port, parsed.vlan).ok_or(DropReason::UnknownAttachment)?;
    if parsed.tags != 0 && (parsed.tags > 1 || !strip_vlan(pool, frame, &mut parsed)) {
        return Err(DropReason::UnsupportedType);
    }
    let meta = pool.meta_mut(frame);
    describe(meta, &parsed);
    meta.attachment = attachment;
    if parsed.ip == IpKind::None {
        return match parsed.ethertype {
            EtherType::ARP => Ok(Step::Arp(attachment, parsed)),
            _ => Err(DropReason::UnsupportedType),
        };
    }
    Ok(Step::Lookup(attachment, Flow::new(tables, info.tenant, &parsed)))
}

/// Second pass: anti-spoof, route, volume.
#[inline(always)]
fn decide(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    attachment: u32,
    flow: &Flow,
    index: usize,
    outcomes: &mut Outcomes,
) -> Verdict {
    let known = tables.endpoint(flow.tenant, flow.v6, flow.src);
    if !known.is_some_and(|endpoint| owns(endpoint, attachment, flow.src_mac))
        && !link_source(tables, attachment, flow)
    {
        return Verdict::Drop(DropReason::Spoofed);
    }
    if flow.proto == protocol::ICMPV6 && flow.v6 {
        match process_icmp6(tables, pool, frame, attachment, flow) {
            Ok(None) => {}
            Ok(Some(verdict)) => return verdict,
            Err(why) => return Verdict::Drop(why),
        }
    }
    let info = tables.tenant(flow.tenant);
    if flow.dst_mac.is_multicast() || (flow.fragment && info.needs_ports) {
        return Verdict::Trap;
    }
    let Some(route) = flow.route(tables) else { return Verdict::Drop(DropReason::NoRule) };
    note(outcomes, index, route.rule);
    let side = if route.kind == RouteKind::Deliver { Side::Hairpin } else { Side::Egress };
    let volume = match route.volume {
        Meta::NO_VOLUME => flow.volume(tables, info, side),
        volume => volume,
    };
    pool.meta_mut(frame).volume = volume;
    follow(tables, pool, frame, attachment, route, flow.dst_mac)
}

/// Does what the route says.
#[inline(always)]
fn follow(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    attachment: u32,
    route: &Route,
    dst_mac: Mac,
) -> Verdict {
    match route.kind {
        RouteKind::Forward => forward(tables, pool.meta_mut(frame), route),
        // Back to where it came from: the tenant's own segment has carried it already.
        RouteKind::Deliver if route.attachment == attachment => Verdict::Drop(DropReason::NoRule),
        RouteKind::Deliver => deliver(pool, frame, route, dst_mac),
        RouteKind::Trap => Verdict::Trap,
        RouteKind::Drop => Verdict::Drop(DropReason::RuleDrop),
    }
}

/// The endpoint is behind this attachment, and the frame comes from its MAC address.
#[inline(always)]
fn owns(endpoint: &Endpoint, attachment: u32, mac: Mac) -> bool {
    let mac_fits = endpoint.mac == mac || (endpoint.mac == Mac::ZERO && mac.is_unicast());
    endpoint.place == Place::Local(attachment) && mac_fits
}

/// The MAC address is one of those behind this attachment.
fn owns_mac(tables: &Tables, tenant: u16, attachment: u32, mac: Mac) -> bool {
    let any = tables.attachment_info(attachment).is_some_and(|info| info.any_mac);
    // Asked of the endpoints and not of the routes, where a rule may stand in for one.
    mac.is_unicast() && (any || tables.mac_place(tenant, mac) == Some(Place::Local(attachment)))
}

/// Source addresses that no configuration lists: the link-local address that belongs to the MAC, and the
/// unspecified one of IPv6 hosts that do not have an address yet (for multicast only).
#[cold]
fn link_source(tables: &Tables, attachment: u32, flow: &Flow) -> bool {
    let link_local = is_link_local(flow.v6, flow.src) && flow.src == link_local_of(flow.src_mac);
    let unspecified = flow.v6 && flow.src == 0 && flow.dst_mac.is_multicast();
    (link_local || unspecified) && owns_mac(tables, flow.tenant, attachment, flow.src_mac)
}

/// Neighbour discovery claims addresses in its body: they must be the sender's. Solicitations are for the
/// responder; everything else goes on as an ordinary packet.
#[cold]
fn process_icmp6(
    tables: &Tables,
    pool: &Pool,
    frame: &Frame,
    attachment: u32,
    flow: &Flow,
) -> Result<Option<Verdict>, DropReason> {
    let (meta, bytes) = (pool.meta(frame), pool.bytes(frame));
    let ip = ipv6::View::parse(bytes.get(usize::from(meta.l3)..).unwrap_or(&[])).map_err(reason)?;
    let own = |target: std::net::Ipv6Addr, mac: Option<Mac>| {
        let known = tables.endpoint(flow.tenant, true, target.to_bits());
        let owner = known.is_some_and(|endpoint| owns(endpoint, attachment, flow.src_mac))
            || target.to_bits() == link_local_of(flow.src_mac);
        owner && mac.is_none_or(|mac| mac == flow.src_mac)
    };
    match Neighbour::parse(&ip) {
        Ok(Neighbour::Solicitation { source_mac, .. }) => {
            let honest = source_mac.is_none_or(|mac| mac == flow.src_mac);
            if honest { Ok(Some(Verdict::Local)) } else { Err(DropReason::Spoofed) }
        }
        Ok(Neighbour::Advertisement { target, target_mac, .. }) => {
            if own(target, target_mac) {
                Ok(None)
            } else {
                Err(DropReason::Spoofed)
            }
        }
        Err(wire::ParseError::UnsupportedType) => Ok(None),
        Err(error) => Err(reason(error)),
    }
}

/// ARP from a tenant: the sender's addresses must be its own. Requests are for the responder, a reply to
/// one station is forwarded to it.
#[cold]
fn process_arp(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    attachment: u32,
    parsed: &Parsed,
) -> Result<Verdict, DropReason> {
    let bytes = pool.bytes(frame).get(usize::from(parsed.l3)..).unwrap_or(&[]);
    let packet = arp::Packet::parse(bytes).map_err(reason)?;
    let tenant = tables.attachment_info(attachment).ok_or(DropReason::UnknownAttachment)?.tenant;
    let probe = packet.sender_ip.is_unspecified() && packet.operation == arp::Operation::Request;
    let sender = u128::from(packet.sender_ip.to_bits());
    let honest = packet.sender_mac == parsed.src_mac
        && match tables.endpoint(tenant, false, sender) {
            _ if probe => owns_mac(tables, tenant, attachment, parsed.src_mac),
            Some(endpoint) => owns(endpoint, attachment, parsed.src_mac),
            None => false,
        };
    if !honest {
        return Err(DropReason::Spoofed);
    }
    if packet.operation == arp::Operation::Request {
        return Ok(Verdict::Local);
    }
    if parsed.dst_mac.is_multicast() {
        return Ok(Verdict::Trap);
    }
    let target = u128::from(packet.target_ip.to_bits());
    let route = tables.address_route(tenant, false, target);
    let route = route.or_else(|| tables.mac_route(tenant, parsed.dst_mac)).ok_or(DropReason::NoRule)?;
    Ok(follow(tables, pool, frame, attachment, route, parsed.dst_mac))
}
