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
use wire::{EtherType, IpKind, Mac, Parsed, VlanId, arp, ipv6};

use crate::classify::{
    Flow, Pending, Side, Source, begin, decide, deliver, deliver_plain, describe, dst_mac, forward,
    is_link_local, link_local_of, reason, strip_vlan,
};
use crate::tables::{Endpoint, Place, Route, RouteKind, Tables, TenantView};
use crate::{Outcomes, PortId, Verdict};

/// Judges up to 32 frames that came in by one port of tenants; fills `outcomes` for the first `batch.len()`
/// entries.
#[inline(never)]
pub fn process_tenant(
    tables: &Tables,
    pool: &Pool,
    port: PortId,
    batch: &mut [Frame],
    outcomes: &mut Outcomes,
) {
    begin(outcomes);
    let mut lanes = Lanes::new();
    lanes.extend(find_lane(tables, port, None));
    let untagged = lanes.first().copied();
    let mut pass = Pass { tables, pool, port, lanes: &mut lanes, pending: &mut outcomes.pending };
    let len = batch.len().min(BATCH);
    for (index, frame) in batch[..len].iter_mut().enumerate() {
        // The commonest shape has code of its own, so that it never meets the others in memory.
        let (meta, bytes) = pool.parts_mut(frame);
        meta.ingress_port = port.0;
        let verdict = match (&untagged, wire::parse_plain(bytes)) {
            (Some(lane), Some(parsed)) => {
                pass.admit(meta, &parsed, lane, 0, index);
                None
            }
            _ => pass.admit_any(frame, index),
        };
        if let Some(verdict) = verdict {
            pass.pending.skip(index);
            outcomes.verdicts[index] = verdict;
        }
    }
    decide(tables, pool, &lanes, batch, outcomes);
}

/// One without a tag, and one for each VLAN that came.
type Lanes<'a> = ArrayVec<Lane<'a>, { BATCH + 1 }>;

/// An attachment and its tenant, looked up once for the frames of a batch that came in there.
#[derive(Clone, Copy)]
struct Lane<'a> {
    vlan: Option<VlanId>,
    attachment: u32,
    view: TenantView<'a>,
}

impl crate::classify::Lane for Lane<'_> {
    const NO_ROUTE: DropReason = DropReason::NoRule;

    #[inline(always)]
    fn view(&self) -> &TenantView<'_> {
        &self.view
    }

    /// Anti-spoof: a listed address must be behind this attachment and come from its MAC address.
    #[inline(always)]
    fn lists(&self, endpoint: &Endpoint, mac: Mac) -> bool {
        owns(endpoint, self.attachment, mac)
    }

    /// Source addresses that no configuration lists: the link-local address that belongs to the MAC, and the
    /// unspecified one of IPv6 hosts that do not have an address yet (for multicast only).
    #[cold]
    fn admits(&self, tables: &Tables, source: &Source, flow: &Flow) -> bool {
        let link_local = is_link_local(source.v6(), source.ip) && source.ip == link_local_of(source.mac());
        let unspecified = source.v6() && source.ip == 0 && flow.is_multicast();
        (link_local || unspecified) && owns_mac(tables, self, source.mac())
    }

    #[cold]
    fn process_special(
        &self,
        tables: &Tables,
        pool: &Pool,
        frame: &mut Frame,
        source: &Source,
        flow: &Flow,
    ) -> Option<Verdict> {
        if flow.is_icmp6() {
            match process_icmp6(tables, pool, frame, self, source) {
                Ok(None) => {}
                Ok(Some(verdict)) => return Some(verdict),
                Err(why) => return Some(Verdict::Drop(why)),
            }
        }
        let hidden = flow.is_fragment() && self.view.info.needs_ports;
        (flow.is_multicast() || hidden).then_some(Verdict::Trap)
    }

    #[inline(always)]
    fn follow_plain(
        &self,
        tables: &Tables,
        pool: &Pool,
        frame: &mut Frame,
        source: &Source,
        flow: &Flow,
        route: &Route,
    ) -> Option<Verdict> {
        let side = if route.kind == RouteKind::Forward { Side::Egress } else { Side::Hairpin };
        let mut volume = route.volume;
        if volume == Meta::NO_VOLUME && self.view.info.has_volumes() {
            volume = flow.volume(tables, &self.view, source, side);
        }
        let meta = pool.meta_mut(frame);
        meta.volume = volume;
        match route.kind {
            RouteKind::Forward => Some(forward(tables, meta, route)),
            _ if route.attachment != self.attachment => deliver_plain(pool, frame, route),
            _ => None,
        }
    }

    fn follow(
        &self,
        tables: &Tables,
        pool: &Pool,
        frame: &mut Frame,
        source: &Source,
        flow: &Flow,
        route: &Route,
    ) -> Verdict {
        let side = if route.kind == RouteKind::Deliver { Side::Hairpin } else { Side::Egress };
        let volume = match route.volume {
            Meta::NO_VOLUME => flow.volume(tables, &self.view, source, side),
            volume => volume,
        };
        pool.meta_mut(frame).volume = volume;
        follow(tables, pool, frame, self.attachment, route, dst_mac(pool, frame))
    }
}

/// The first pass: parse, attachment, metadata, prefetch.
struct Pass<'a, 'p> {
    tables: &'a Tables,
    pool: &'a Pool,
    port: PortId,
    lanes: &'p mut Lanes<'a>,
    pending: &'p mut Pending,
}

impl<'a> Pass<'a, '_> {
    /// A plain packet goes on to the second pass.
    #[inline(always)]
    fn admit(&mut self, meta: &mut Meta, parsed: &Parsed, lane: &Lane<'a>, at: usize, index: usize) {
        describe(meta, parsed);
        meta.attachment = lane.attachment;
        self.pending.push(self.tables, &lane.view, at, parsed, index);
    }

    /// A frame of any other shape: the verdict, or `None` if it goes on to the second pass.
    #[inline(never)]
    fn admit_any(&mut self, frame: &mut Frame, index: usize) -> Option<Verdict> {
        let mut parsed = match wire::parse(self.pool.bytes(frame)) {
            Ok(parsed) => parsed,
            Err(error) => return Some(Verdict::Drop(reason(error))),
        };
        let Some((at, lane)) = self.lane(parsed.vlan) else {
            return Some(Verdict::Drop(DropReason::UnknownAttachment));
        };
        if parsed.tags != 0 && (parsed.tags > 1 || !strip_vlan(self.pool, frame, &mut parsed)) {
            return Some(Verdict::Drop(DropReason::UnsupportedType));
        }
        if parsed.ip != IpKind::None {
            self.admit(self.pool.meta_mut(frame), &parsed, &lane, at, index);
            return None;
        }
        let meta = self.pool.meta_mut(frame);
        describe(meta, &parsed);
        meta.attachment = lane.attachment;
        Some(match parsed.ethertype {
            EtherType::ARP => {
                let verdict = process_arp(self.tables, self.pool, frame, &lane, &parsed);
                verdict.unwrap_or_else(Verdict::Drop)
            }
            _ => Verdict::Drop(DropReason::UnsupportedType),
        })
    }

    fn lane(&mut self, vlan: Option<VlanId>) -> Option<(usize, Lane<'a>)> {
        let known = self.lanes.iter().rposition(|lane| lane.vlan == vlan);
        let at = match known {
            Some(at) => at,
            None => {
                self.lanes.push(find_lane(self.tables, self.port, vlan)?);
                self.lanes.len() - 1
            }
        };
        Some((at, self.lanes[at]))
    }
}

#[inline(never)]
fn find_lane(tables: &Tables, port: PortId, vlan: Option<VlanId>) -> Option<Lane<'_>> {
    let (attachment, info) = tables.attached(port.0, vlan)?;
    Some(Lane { vlan, attachment, view: tables.view(info.tenant) })
}

/// Does what the route says.
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
fn owns_mac(tables: &Tables, lane: &Lane<'_>, mac: Mac) -> bool {
    let any = tables.attachment_info(lane.attachment).is_some_and(|info| info.any_mac);
    // Asked of the endpoints and not of the routes, where a rule may stand in for one.
    mac.is_unicast() && (any || tables.mac_place(lane.view.id, mac) == Some(Place::Local(lane.attachment)))
}

/// Neighbour discovery claims addresses in its body: they must be the sender's. Solicitations are for the
/// responder; everything else goes on as an ordinary packet.
#[cold]
fn process_icmp6(
    tables: &Tables,
    pool: &Pool,
    frame: &Frame,
    lane: &Lane<'_>,
    source: &Source,
) -> Result<Option<Verdict>, DropReason> {
    let (meta, bytes) = (pool.meta(frame), pool.bytes(frame));
    let ip = ipv6::View::parse(bytes.get(usize::from(meta.l3)..).unwrap_or(&[])).map_err(reason)?;
    let own = |target: std::net::Ipv6Addr, mac: Option<Mac>| {
        let known = tables.endpoint(&lane.view, true, target.to_bits());
        let owner = known.is_some_and(|endpoint| owns(endpoint, lane.attachment, source.mac()))
            || target.to_bits() == link_local_of(source.mac());
        owner && mac.is_none_or(|mac| mac == source.mac())
    };
    match Neighbour::parse(&ip) {
        Ok(Neighbour::Solicitation { source_mac, .. }) => {
            let honest = source_mac.is_none_or(|mac| mac == source.mac());
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
    lane: &Lane<'_>,
    parsed: &Parsed,
) -> Result<Verdict, DropReason> {
    let bytes = pool.bytes(frame).get(usize::from(parsed.l3)..).unwrap_or(&[]);
    let packet = arp::Packet::parse(bytes).map_err(reason)?;
    let view = &lane.view;
    let probe = packet.sender_ip.is_unspecified() && packet.operation == arp::Operation::Request;
    let sender = u128::from(packet.sender_ip.to_bits());
    let honest = packet.sender_mac == parsed.src_mac
        && match tables.endpoint(view, false, sender) {
            _ if probe => owns_mac(tables, lane, parsed.src_mac),
            Some(endpoint) => owns(endpoint, lane.attachment, parsed.src_mac),
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
    let route = tables.address_route(view, false, target);
    let route = route.or_else(|| tables.mac_route(view.id, parsed.dst_mac)).ok_or(DropReason::NoRule)?;
    Ok(follow(tables, pool, frame, lane.attachment, route, parsed.dst_mac))
}
