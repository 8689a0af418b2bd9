//! From the underlay: is it a tunnelled frame for us, whose, and from the right peer; and whom is it for?
//!
//! Three passes over a batch, each asking for the cache lines of the next: the outer headers down to the
//! network identifier; the peer that may send for that network, then ECN, strip and inner parse; the inner
//! source, which must be behind that very peer, and the inner destination, which must be attached here.
//!
//! Broadcast is not flooded. An ARP request or a neighbour solicitation goes to the one attachment that
//! holds the address asked for; other broadcast and multicast is [`Verdict::Trap`] (capability F9).
//! Fragments, outer or inner, are treated as in [`crate::process_tenant`], except that an outer fragment is
//! dropped: tunnel endpoints must not fragment (RFC 7348, clause 4.3).

use std::net::{Ipv4Addr, Ipv6Addr};

use arrayvec::ArrayVec;
use frame::{BATCH, DropReason, Flags, Frame, Meta, Pool};
use wire::geneve::{self, Tidegate};
use wire::icmp6::Neighbour;
use wire::{EtherType, IpKind, Mac, Parsed, arp, ethernet, ipv4, ipv6, protocol, udp, vxlan};

use crate::classify::shift_checksum;
use crate::classify::{Flow, Side, deliver, describe, is_link_local, judge, link_local_of, note, reason};
use crate::ecn;
use crate::tables::key::{Kind, peer_key};
use crate::tables::{Endpoint, Key, Local, Peer, Place, Route, RouteKind, Tables, TenantView};
use crate::{Outcomes, Verdict};

/// Judges up to 32 frames that came in by underlay ports (`Meta::ingress_port`); fills `outcomes` for the
/// first `batch.len()` entries. Frames judged [`Verdict::Deliver`] or [`Verdict::Trap`] have lost their
/// outer headers.
pub fn process_underlay(tables: &Tables, pool: &Pool, batch: &mut [Frame], outcomes: &mut Outcomes) {
    let mut arrived = ArrayVec::<Arrived, BATCH>::new();
    for (index, frame) in batch.iter_mut().enumerate().take(BATCH) {
        note(outcomes, index, Outcomes::NO_RULE);
        let (meta, bytes) = (pool.meta(frame), pool.bytes(frame));
        let option = &mut outcomes.options[index % BATCH];
        // The commonest shape has code of its own, so that it never meets the others in memory.
        let result = match wire::parse_plain(bytes) {
            Some(parsed) => arrive(tables, meta, bytes, &parsed, option),
            None => arrive_any(tables, meta, bytes, option),
        };
        match result {
            Ok(Some(found)) => {
                tables.peers.prefetch(found.hash);
                arrived.push(Arrived { index: index as u8, ..found });
            }
            Ok(None) => judge(outcomes, index, Verdict::Local),
            Err(why) => judge(outcomes, index, Verdict::Drop(why)),
        }
    }
    let mut pass = Pass { tables, pool, lanes: ArrayVec::new(), stripped: ArrayVec::new() };
    for found in &arrived {
        let Some(frame) = batch.get_mut(usize::from(found.index)) else { continue };
        if let Err(verdict) = pass.strip(frame, found) {
            judge(outcomes, usize::from(found.index), verdict);
        }
    }
    let mut listed = None;
    for Stripped { index, lane, flow } in &pass.stripped {
        let index = usize::from(*index);
        let (Some(frame), Some(lane)) = (batch.get_mut(index), pass.lanes.get(usize::from(*lane))) else {
            continue;
        };
        if !flow.same_source {
            let endpoint = tables.endpoint(&lane.view, flow.v6, flow.src);
            listed = endpoint.map(|endpoint| lives_at(endpoint, lane.next_hop, flow.src_mac));
        }
        let honest = listed.unwrap_or_else(|| other_source(tables, lane, flow));
        let verdict = if honest { decide(tables, pool, frame, lane, flow, index, outcomes) } else { SPOOFED };
        judge(outcomes, index, verdict);
    }
}

const SPOOFED: Verdict = Verdict::Drop(DropReason::Spoofed);

/// A frame after the first pass.
struct Arrived {
    index: u8,
    ecn: u8,
    /// Bytes of outer headers.
    strip: u16,
    /// Where the inner frame ends; Ethernet padding follows.
    end: u32,
    vni: u32,
    hash: u32,
    key: Key,
}

/// A peer and its tenant, looked up once for a run of frames that it sent.
struct Lane<'a> {
    key: Key,
    next_hop: u16,
    view: TenantView<'a>,
}

/// A frame after the second pass.
struct Stripped {
    index: u8,
    lane: u8,
    flow: Flow,
}

/// First pass: a plain UDP packet over IPv4, or after [`arrive_any`] whatever else. `None` is a frame for
/// this node itself.
#[inline(always)]
fn arrive(
    tables: &Tables,
    meta: &Meta,
    bytes: &[u8],
    parsed: &Parsed,
    option: &mut Tidegate,
) -> Result<Option<Arrived>, DropReason> {
    let local = tables.local(meta.ingress_port).ok_or(DropReason::UnknownAttachment)?;
    let outer = if local.datagram {
        Outer::from_socket(tables, meta, bytes.len())?
    } else {
        match Outer::check(local, meta, bytes, parsed)? {
            Some(outer) => outer,
            None => return Ok(None),
        }
    };
    open(tables, local, bytes, &outer, option).map(Some)
}

/// First pass for all other shapes.
#[inline(never)]
fn arrive_any(
    tables: &Tables,
    meta: &Meta,
    bytes: &[u8],
    option: &mut Tidegate,
) -> Result<Option<Arrived>, DropReason> {
    // A datagram starts with the tunnel header, which is no frame.
    let local = tables.local(meta.ingress_port).ok_or(DropReason::UnknownAttachment)?;
    let parsed = if local.datagram { Ok(Parsed::default()) } else { wire::parse(bytes) };
    let parsed = parsed.map_err(reason)?;
    if parsed.tags != 0 {
        return Err(DropReason::UnsupportedType);
    }
    arrive(tables, meta, bytes, &parsed, option)
}

/// Reads the tunnel header.
#[inline(always)]
fn open(
    tables: &Tables,
    local: &Local,
    bytes: &[u8],
    outer: &Outer,
    option: &mut Tidegate,
) -> Result<Arrived, DropReason> {
    let tunnel = bytes.get(outer.at..outer.end).ok_or(DropReason::Truncated)?;
    let (vni, tunnel_bytes) = if outer.geneve {
        process_geneve(tunnel, option)?
    } else {
        *option = Tidegate::default();
        let view = vxlan::View::parse(tunnel).map_err(reason)?;
        (view.vni().value(), vxlan::HEADER_BYTES)
    };
    let key = peer_key(outer.kind, outer.peer, local.port, outer.geneve, vni);
    Ok(Arrived {
        index: 0,
        ecn: outer.ecn,
        strip: (outer.at + tunnel_bytes) as u16,
        end: outer.end as u32,
        vni,
        hash: tables.peers.hash(&key),
        key,
    })
}

/// What stands before the tunnel header.
struct Outer {
    at: usize,
    end: usize,
    geneve: bool,
    ecn: u8,
    kind: Kind,
    /// Outer source address, or the number of the next hop with [`Kind::Mac`].
    peer: u128,
}

impl Outer {
    /// A socket has checked and removed the outer headers; the sender is a number.
    fn from_socket(tables: &Tables, meta: &Meta, end: usize) -> Result<Outer, DropReason> {
        let hop = tables.hop(meta.next_hop).filter(|hop| hop.port == meta.ingress_port);
        let geneve = hop.ok_or(DropReason::WrongPort)?.geneve;
        let (ecn, peer) = (meta.flags.outer_ecn(), u128::from(meta.next_hop));
        Ok(Outer { at: 0, end, geneve, ecn, kind: Kind::Mac, peer })
    }

    /// Checks Ethernet, IP and UDP. `None` is ARP or neighbour discovery.
    #[inline(always)]
    fn check(local: &Local, meta: &Meta, bytes: &[u8], parsed: &Parsed) -> Result<Option<Outer>, DropReason> {
        let (kind, ours) = match parsed.ip {
            IpKind::V4 => {
                (Kind::V4, local.ipv4.is_some_and(|own| own.address.to_bits() == parsed.dst as u32))
            }
            IpKind::V6 => (Kind::V6, local.ipv6.is_some_and(|own| own.address.to_bits() == parsed.dst)),
            IpKind::None => return not_ip(parsed),
        };
        if !ours || parsed.dst_mac != local.mac || parsed.proto != protocol::UDP {
            return not_tunnel(local, parsed, bytes);
        }
        if parsed.fragment {
            return Err(DropReason::UnsupportedType);
        }
        let geneve = parsed.dst_port == local.geneve_port;
        if !geneve && parsed.dst_port != local.vxlan_port {
            return Err(DropReason::NotForUs);
        }
        let end = check_sums(meta, bytes, parsed)?;
        let (at, ecn, peer) = (usize::from(parsed.payload), parsed.ecn, parsed.src);
        Ok(Some(Outer { at, end, geneve, ecn, kind, peer }))
    }
}

/// Neither IP nor, therefore, a tunnel.
#[cold]
fn not_ip(parsed: &Parsed) -> Result<Option<Outer>, DropReason> {
    if parsed.ethertype == EtherType::ARP { Ok(None) } else { Err(DropReason::UnsupportedType) }
}

/// IP, but not UDP to our address: neighbour discovery is for us, all else is not.
#[cold]
fn not_tunnel(local: &Local, parsed: &Parsed, bytes: &[u8]) -> Result<Option<Outer>, DropReason> {
    let kind = bytes.get(usize::from(parsed.l4)).copied();
    let discovery = parsed.ip == IpKind::V6
        && parsed.proto == protocol::ICMPV6
        && !parsed.fragment
        && kind.is_some_and(|kind| NEIGHBOUR_TYPES.contains(&kind))
        && local.ipv6.is_some();
    if discovery { Ok(None) } else { Err(DropReason::NotForUs) }
}

/// Neighbour solicitation and advertisement (RFC 4861, clauses 4.3 and 4.4).
const NEIGHBOUR_TYPES: std::ops::RangeInclusive<u8> = 135..=136;

/// Verifies the IPv4 header's and UDP's checksums, if there is one, and returns where the datagram ends. A
/// port that says it has verified, or that handed over a frame whose checksum is yet to be finished (it
/// never left this machine), is believed for UDP.
#[inline(always)]
fn check_sums(meta: &Meta, bytes: &[u8], parsed: &Parsed) -> Result<usize, DropReason> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let header = bytes.get(l3..l4).ok_or(DropReason::Truncated)?;
    if parsed.ip == IpKind::V4 && !header_sum_ok(header) {
        return Err(DropReason::BadChecksum);
    }
    let datagram = bytes.get(l4..).ok_or(DropReason::Truncated)?;
    let head: &[u8; udp::HEADER_BYTES] = datagram.first_chunk().ok_or(DropReason::Truncated)?;
    let trusted = meta.flags.has(Flags::CSUM_VALID) || meta.flags.has(Flags::CSUM_PARTIAL);
    if !trusted && [head[6], head[7]] != [0, 0] {
        check_datagram(datagram, parsed)?;
    }
    // INVARIANT: the parser has checked the length against the packet's.
    Ok(l4 + usize::from(u16::from_be_bytes([head[4], head[5]])))
}

/// The checksum of an IPv4 header is right.
#[inline(always)]
fn header_sum_ok(header: &[u8]) -> bool {
    let Some(head) = header.first_chunk::<{ ipv4::HEADER_BYTES }>() else { return false };
    if header.len() != head.len() {
        return wire::checksum::sum(header) == 0xffff;
    }
    // Byte order does not matter to a one's complement sum (RFC 1071, clause 2).
    let (words, _) = head.as_chunks::<4>();
    let sum = words.iter().fold(0_u64, |sum, word| sum + u64::from(u32::from_ne_bytes(*word)));
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    (sum >> 16) + (sum & 0xffff) == 0xffff
}

#[inline(never)]
fn check_datagram(datagram: &[u8], parsed: &Parsed) -> Result<(), DropReason> {
    let view = udp::View::parse(datagram).map_err(reason)?;
    let right = if parsed.ip == IpKind::V6 {
        // RFC 6935, clause 5, lets tunnels send zero; that case does not come here.
        view.checksum_ok_v6(Ipv6Addr::from_bits(parsed.src), Ipv6Addr::from_bits(parsed.dst), false)
    } else {
        let (src, dst) = (parsed.src as u32, parsed.dst as u32);
        view.checksum_ok_v4(Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst))
    };
    if right { Ok(()) } else { Err(DropReason::BadChecksum) }
}

#[inline]
fn process_geneve(tunnel: &[u8], option: &mut Tidegate) -> Result<(u32, usize), DropReason> {
    let view = geneve::View::parse(tunnel).map_err(reason)?;
    // RFC 8926, clause 3.4: control packets are not forwarded; we speak no protocol that uses them.
    if view.is_control() || view.ethertype() != EtherType::TRANSPARENT_ETHERNET {
        return Err(DropReason::UnsupportedType);
    }
    if view.has_unknown_critical() {
        return Err(DropReason::UnknownOption);
    }
    *option = view.tidegate().unwrap_or_default();
    Ok((view.vni().value(), view.header_bytes()))
}

/// The second pass: peer, strip, inner parse, ECN, prefetch.
struct Pass<'a> {
    tables: &'a Tables,
    pool: &'a Pool,
    lanes: ArrayVec<Lane<'a>, BATCH>,
    stripped: ArrayVec<Stripped, BATCH>,
}

impl<'a> Pass<'a> {
    /// A plain inner packet goes on to the third pass; `Err` is the verdict on all others.
    #[inline(always)]
    fn strip(&mut self, frame: &mut Frame, arrived: &Arrived) -> Result<(), Verdict> {
        if self.lanes.last().is_none_or(|lane| lane.key != arrived.key) {
            let lane = find_lane(self.tables, arrived).map_err(Verdict::Drop)?;
            self.lanes.push(lane);
        }
        let pool = self.pool;
        if !pool.set_len(frame, arrived.end as usize) || !pool.trim_front(frame, usize::from(arrived.strip)) {
            return Err(Verdict::Drop(DropReason::Truncated));
        }
        let (meta, bytes) = pool.parts_mut(frame);
        shift_checksum(meta, -i32::from(arrived.strip));
        match wire::parse_plain(bytes) {
            Some(parsed) => self.admit(meta, bytes, &parsed, arrived),
            None => self.strip_any(frame, arrived),
        }
    }

    #[inline(always)]
    fn admit(
        &mut self,
        meta: &mut Meta,
        bytes: &mut [u8],
        parsed: &Parsed,
        arrived: &Arrived,
    ) -> Result<(), Verdict> {
        describe(meta, parsed);
        if arrived.ecn != 0 {
            combine_ecn(bytes, parsed, arrived.ecn).map_err(Verdict::Drop)?;
        }
        let at = self.lanes.len() - 1;
        let same_source = self.stripped.last().is_some_and(|last| {
            let flow = &last.flow;
            usize::from(last.lane) == at
                && (flow.src, flow.src_mac, flow.v6) == (parsed.src, parsed.src_mac, parsed.ip == IpKind::V6)
        });
        let flow = Flow::new(self.tables, &self.lanes[at].view, parsed, same_source);
        self.stripped.push(Stripped { index: arrived.index, lane: at as u8, flow });
        Ok(())
    }

    /// Second pass for all other shapes.
    #[inline(never)]
    fn strip_any(&mut self, frame: &mut Frame, arrived: &Arrived) -> Result<(), Verdict> {
        let (meta, bytes) = self.pool.parts_mut(frame);
        let parsed = wire::parse(bytes).map_err(|error| Verdict::Drop(reason(error)))?;
        // RFC 7348, clause 6.1: "a decapsulating VTEP SHOULD discard VXLAN frames with an inner VLAN tag
        // unless configured otherwise".
        if parsed.tags != 0 {
            return Err(Verdict::Drop(DropReason::UnsupportedType));
        }
        if parsed.ip != IpKind::None {
            return self.admit(meta, bytes, &parsed, arrived);
        }
        describe(meta, &parsed);
        if parsed.ethertype != EtherType::ARP {
            return Err(Verdict::Drop(DropReason::UnsupportedType));
        }
        let lane = &self.lanes[self.lanes.len() - 1];
        let verdict = process_arp(self.tables, self.pool, frame, lane, &parsed);
        Err(verdict.unwrap_or_else(Verdict::Drop))
    }
}

#[inline(never)]
fn find_lane<'a>(tables: &'a Tables, arrived: &Arrived) -> Result<Lane<'a>, DropReason> {
    match tables.peer(&arrived.key, arrived.hash) {
        Some(Peer { key, tenant, next_hop }) => {
            Ok(Lane { key: *key, next_hop: *next_hop, view: tables.view(*tenant) })
        }
        None if tables.tenant_of_vni(arrived.vni).is_some() => Err(DropReason::WrongPort),
        None => Err(DropReason::UnknownVni),
    }
}

/// RFC 6040, clause 4.2: the inner packet learns of congestion on the way.
#[cold]
fn combine_ecn(bytes: &mut [u8], parsed: &Parsed, outer: u8) -> Result<(), DropReason> {
    let combined = ecn::decapsulate(parsed.ecn, outer).ok_or(DropReason::EcnForbidden)?;
    if combined == parsed.ecn {
        return Ok(());
    }
    let ip = bytes.get_mut(usize::from(parsed.l3)..).unwrap_or_default();
    match parsed.ip {
        IpKind::V4 => ipv4::HeaderMut(ip.first_chunk_mut().ok_or(DropReason::Truncated)?).set_ecn(combined),
        _ => ipv6::HeaderMut(ip.first_chunk_mut().ok_or(DropReason::Truncated)?).set_ecn(combined),
    }
    Ok(())
}

/// Third pass: where a frame from an honest source is delivered.
#[inline(always)]
fn decide(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    lane: &Lane<'_>,
    flow: &Flow,
    index: usize,
    outcomes: &mut Outcomes,
) -> Verdict {
    if flow.dst_mac.is_multicast() {
        return process_multicast(tables, pool, frame, lane, flow);
    }
    if flow.fragment && lane.view.info.needs_ports {
        return Verdict::Trap;
    }
    let Some(route) = flow.route(tables, &lane.view) else {
        return Verdict::Drop(DropReason::UnknownDestination);
    };
    note(outcomes, index, route.rule);
    pool.meta_mut(frame).volume = flow.volume(tables, &lane.view, Side::Ingress);
    arrive_at(pool, frame, route, flow.dst_mac)
}

/// Does what the route says with a frame that came out of a tunnel; it never goes into another one.
#[inline(always)]
fn arrive_at(pool: &Pool, frame: &mut Frame, route: &Route, dst_mac: Mac) -> Verdict {
    match route.kind {
        RouteKind::Deliver => deliver(pool, frame, route, dst_mac),
        RouteKind::Trap => Verdict::Trap,
        RouteKind::Drop => Verdict::Drop(DropReason::RuleDrop),
        RouteKind::Forward => Verdict::Drop(DropReason::UnknownDestination),
    }
}

/// The endpoint is behind this next hop, and the frame comes from its MAC address.
#[inline(always)]
fn lives_at(endpoint: &Endpoint, next_hop: u16, mac: Mac) -> bool {
    endpoint.place == Place::Remote(next_hop) && (endpoint.mac == mac || endpoint.mac == Mac::ZERO)
}

/// Sources that no remote lists: link-local and unspecified addresses of a known station, and addresses to
/// which a rule would send the answer by the same next hop.
#[cold]
fn other_source(tables: &Tables, lane: &Lane<'_>, flow: &Flow) -> bool {
    let station = || tables.mac_place(lane.view.id, flow.src_mac) == Some(Place::Remote(lane.next_hop));
    if is_link_local(flow.v6, flow.src) {
        return flow.src == link_local_of(flow.src_mac) && station();
    }
    if flow.v6 && flow.src == 0 {
        return flow.dst_mac.is_multicast() && station();
    }
    flow.src_mac.is_unicast() && flow.reverse_next_hop(tables, &lane.view) == Some(lane.next_hop)
}

/// A neighbour solicitation goes to the attachment that has the target; other multicast is trapped.
#[cold]
fn process_multicast(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    lane: &Lane<'_>,
    flow: &Flow,
) -> Verdict {
    if flow.proto != protocol::ICMPV6 || flow.fragment {
        return Verdict::Trap;
    }
    let l3 = usize::from(pool.meta(frame).l3);
    let ip = pool.bytes(frame).get(l3..).map(ipv6::View::parse);
    let Some(Ok(ip)) = ip else { return Verdict::Drop(DropReason::Malformed) };
    match Neighbour::parse(&ip) {
        Ok(Neighbour::Solicitation { target, .. }) => {
            let Some(route) = tables.address_route(&lane.view, true, target.to_bits()) else {
                return Verdict::Drop(DropReason::UnknownDestination);
            };
            arrive_at(pool, frame, route, route.mac)
        }
        Ok(Neighbour::Advertisement { .. }) | Err(wire::ParseError::UnsupportedType) => Verdict::Trap,
        Err(error) => Verdict::Drop(reason(error)),
    }
}

/// ARP out of a tunnel: to the attachment that has the target.
#[cold]
fn process_arp(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    lane: &Lane<'_>,
    parsed: &Parsed,
) -> Result<Verdict, DropReason> {
    let bytes = pool.bytes(frame).get(ethernet::HEADER_BYTES..).unwrap_or(&[]);
    let packet = arp::Packet::parse(bytes).map_err(reason)?;
    let sender = packet.sender_ip;
    let honest = packet.sender_mac == parsed.src_mac
        && match tables.endpoint(&lane.view, false, sender.to_bits().into()) {
            Some(endpoint) => lives_at(endpoint, lane.next_hop, parsed.src_mac),
            None if sender.is_unspecified() => {
                tables.mac_place(lane.view.id, parsed.src_mac) == Some(Place::Remote(lane.next_hop))
            }
            None => false,
        };
    if !honest {
        return Err(DropReason::Spoofed);
    }
    let route = tables.address_route(&lane.view, false, packet.target_ip.to_bits().into());
    let route = route.ok_or(DropReason::UnknownDestination)?;
    let dst_mac = if parsed.dst_mac.is_multicast() { route.mac } else { parsed.dst_mac };
    Ok(arrive_at(pool, frame, route, dst_mac))
}
