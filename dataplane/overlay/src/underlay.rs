//! From the underlay: is it a tunnelled frame for us, whose, and from the right peer; and whom is it for?
//!
//! Two passes over a batch. The first checks the outer headers, the peer that may send for the network
//! identifier, and ECN, strips, parses the inner frame and asks for the cache lines that decide; the second
//! checks that the inner source is behind that very peer and finds the inner destination, which must be
//! attached here. Peer and tenant are looked up once for a run of frames.
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

use crate::classify::{
    Flow, Pending, Side, Source, begin, decide, deliver, deliver_plain, describe, dst_mac, is_link_local,
    link_local_of, reason, shift_checksum,
};
use crate::ecn;
use crate::tables::key::{Kind, peer_key};
use crate::tables::{Endpoint, Key, Local, Peer, Place, Route, RouteKind, Tables, TenantView};
use crate::{Outcomes, PortId, Verdict};

/// Judges up to 32 frames that came in by one port of the underlay; fills `outcomes` for the first
/// `batch.len()` entries. Frames judged [`Verdict::Deliver`] or [`Verdict::Trap`] have lost their outer
/// headers.
#[inline(never)]
pub fn process_underlay(
    tables: &Tables,
    pool: &Pool,
    port: PortId,
    batch: &mut [Frame],
    outcomes: &mut Outcomes,
) {
    begin(outcomes);
    let Some(local) = tables.local(port.0) else {
        let unknown = Verdict::Drop(DropReason::UnknownAttachment);
        return outcomes.verdicts.iter_mut().take(batch.len()).for_each(|verdict| *verdict = unknown);
    };
    let mut lanes = Lanes::new();
    let mut pass = Pass { tables, pool, local, lanes: &mut lanes, pending: &mut outcomes.pending };
    let len = batch.len().min(BATCH);
    for (index, frame) in batch[..len].iter_mut().enumerate() {
        let option = &mut outcomes.options[index];
        // The commonest shape has code of its own, so that it never meets the others in memory.
        let (meta, bytes) = pool.parts_mut(frame);
        meta.ingress_port = port.0;
        let result = match wire::parse_plain(bytes) {
            Some(outer) => match pass.arrive(meta, bytes, &outer, index, option) {
                Ok(Arrived::Plain(span)) => strip(pool, frame, span),
                Ok(Arrived::Other(span, ecn)) => pass.admit_any(frame, span, index, ecn),
                Err(verdict) => Err(verdict),
            },
            None => pass.arrive_any(frame, index, option),
        };
        if let Err(verdict) = result {
            pass.pending.skip(index);
            outcomes.verdicts[index] = verdict;
        }
    }
    decide(tables, pool, &lanes, batch, outcomes);
}

/// The verdict on a frame that stops in the first pass.
fn refuse<T>(why: DropReason) -> Result<T, Verdict> {
    Err(Verdict::Drop(why))
}

/// A peer and its tenant, looked up once for a run of frames that it sent.
struct Lane<'a> {
    key: Key,
    next_hop: u16,
    view: TenantView<'a>,
}

impl crate::classify::Lane for Lane<'_> {
    const NO_ROUTE: DropReason = DropReason::UnknownDestination;

    #[inline(always)]
    fn view(&self) -> &TenantView<'_> {
        &self.view
    }

    /// A listed address must be behind the very peer that sent the frame.
    #[inline(always)]
    fn lists(&self, endpoint: &Endpoint, mac: Mac) -> bool {
        lives_at(endpoint, self.next_hop, mac)
    }

    /// Sources that no remote lists: link-local and unspecified addresses of a known station, and addresses
    /// to which a rule would send the answer by the same next hop.
    #[cold]
    fn admits(&self, tables: &Tables, source: &Source, flow: &Flow) -> bool {
        let station = || tables.mac_place(self.view.id, source.mac()) == Some(Place::Remote(self.next_hop));
        if is_link_local(source.v6(), source.ip) {
            return source.ip == link_local_of(source.mac()) && station();
        }
        if source.v6() && source.ip == 0 {
            return flow.is_multicast() && station();
        }
        source.mac().is_unicast() && flow.reverse_next_hop(tables, &self.view, source) == Some(self.next_hop)
    }

    #[cold]
    fn process_special(
        &self,
        tables: &Tables,
        pool: &Pool,
        frame: &mut Frame,
        _source: &Source,
        flow: &Flow,
    ) -> Option<Verdict> {
        if flow.is_multicast() {
            return Some(process_multicast(tables, pool, frame, self, flow));
        }
        (flow.is_fragment() && self.view.info.needs_ports).then_some(Verdict::Trap)
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
        let mut volume = Meta::NO_VOLUME;
        if self.view.info.has_volumes() {
            volume = flow.volume(tables, &self.view, source, Side::Ingress);
        }
        pool.meta_mut(frame).volume = volume;
        deliver_plain(pool, frame, route)
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
        pool.meta_mut(frame).volume = flow.volume(tables, &self.view, source, Side::Ingress);
        arrive_at(pool, frame, route, dst_mac(pool, frame))
    }
}

type Lanes<'a> = ArrayVec<Lane<'a>, BATCH>;

/// The first pass.
struct Pass<'a, 'p> {
    tables: &'a Tables,
    pool: &'a Pool,
    local: &'a Local,
    lanes: &'p mut Lanes<'a>,
    pending: &'p mut Pending,
}

/// Where the inner frame lies in the outer one; Ethernet padding may follow.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

/// A frame from a peer that may send it.
enum Arrived {
    /// Its inner packet is on its way to the second pass.
    Plain(Span),
    /// Its inner frame, with the outer ECN field, is yet to be looked at.
    Other(Span, u8),
}

impl Pass<'_, '_> {
    /// Checks the outer headers, which are `parsed` if there are any, and takes a plain inner packet as far
    /// as the second pass. `Err` is the verdict on a frame that ends here.
    #[inline(always)]
    fn arrive(
        &mut self,
        meta: &mut Meta,
        bytes: &mut [u8],
        parsed: &Parsed,
        index: usize,
        option: &mut Tidegate,
    ) -> Result<Arrived, Verdict> {
        let local = self.local;
        let outer = if local.datagram {
            Outer::from_socket(self.tables, meta, bytes.len())?
        } else {
            Outer::check(local, meta, bytes, parsed)?
        };
        let (vni, tunnel_bytes) = read_tunnel(bytes, &outer, option)?;
        let key = peer_key(outer.kind, outer.peer, local.port, outer.geneve, vni);
        if self.lanes.last().is_none_or(|lane| lane.key != key) {
            self.lanes.push(find_lane(self.tables, &key, vni)?);
        }
        let span = Span { start: outer.at + tunnel_bytes, end: outer.end };
        let Some(inner) = bytes.get_mut(span.start..span.end) else { return refuse(DropReason::Truncated) };
        // What was verified was the outer checksum, which need not cover the inner packet.
        meta.flags.clear(Flags::CSUM_VALID);
        shift_checksum(meta, -(span.start as i32));
        match wire::parse_plain(inner) {
            Some(parsed) => self.admit(meta, inner, &parsed, index, outer.ecn).map(|()| Arrived::Plain(span)),
            None => Ok(Arrived::Other(span, outer.ecn)),
        }
    }

    /// Outer headers of any other shape, or none.
    #[inline(never)]
    fn arrive_any(&mut self, frame: &mut Frame, index: usize, option: &mut Tidegate) -> Result<(), Verdict> {
        let (meta, bytes) = self.pool.parts_mut(frame);
        // A datagram starts with the tunnel header, which is no frame.
        let parsed = if self.local.datagram { Ok(Parsed::default()) } else { wire::parse(bytes) };
        let parsed = parsed.map_err(|error| Verdict::Drop(reason(error)))?;
        if parsed.tags != 0 {
            return refuse(DropReason::UnsupportedType);
        }
        match self.arrive(meta, bytes, &parsed, index, option)? {
            Arrived::Plain(span) => strip(self.pool, frame, span),
            Arrived::Other(span, ecn) => self.admit_any(frame, span, index, ecn),
        }
    }

    /// An inner IP packet: ECN, metadata, prefetch.
    #[inline(always)]
    fn admit(
        &mut self,
        meta: &mut Meta,
        inner: &mut [u8],
        parsed: &Parsed,
        index: usize,
        ecn: u8,
    ) -> Result<(), Verdict> {
        describe(meta, parsed);
        if ecn != 0 {
            combine_ecn(inner, usize::from(parsed.l3), parsed.ip, parsed.ecn, ecn)?;
        }
        let at = self.lanes.len() - 1;
        self.pending.push(self.tables, &self.lanes[at].view, at, parsed, index);
        Ok(())
    }

    /// An inner frame of any other shape.
    #[inline(never)]
    fn admit_any(&mut self, frame: &mut Frame, span: Span, index: usize, ecn: u8) -> Result<(), Verdict> {
        strip(self.pool, frame, span)?;
        let (meta, inner) = self.pool.parts_mut(frame);
        let parsed = wire::parse(inner).map_err(|error| Verdict::Drop(reason(error)))?;
        // RFC 7348, clause 6.1: "a decapsulating VTEP SHOULD discard VXLAN frames with an inner VLAN tag
        // unless configured otherwise".
        if parsed.tags != 0 {
            return refuse(DropReason::UnsupportedType);
        }
        if parsed.ip != IpKind::None {
            return self.admit(meta, inner, &parsed, index, ecn);
        }
        describe(meta, &parsed);
        if parsed.ethertype != EtherType::ARP {
            return refuse(DropReason::UnsupportedType);
        }
        let lane = &self.lanes[self.lanes.len() - 1];
        Err(process_arp(self.tables, self.pool, frame, lane, &parsed).unwrap_or_else(Verdict::Drop))
    }
}

/// Takes the outer headers and the padding off.
#[inline(always)]
fn strip(pool: &Pool, frame: &mut Frame, span: Span) -> Result<(), Verdict> {
    if pool.crop(frame, span.start, span.end) { Ok(()) } else { refuse(DropReason::Truncated) }
}

#[inline(never)]
fn find_lane<'a>(tables: &'a Tables, key: &Key, vni: u32) -> Result<Lane<'a>, Verdict> {
    match tables.peers.find(key) {
        Some(Peer { key, tenant, next_hop }) => {
            Ok(Lane { key: *key, next_hop: *next_hop, view: tables.view(*tenant) })
        }
        None if tables.tenant_of_vni(vni).is_some() => refuse(DropReason::WrongPort),
        None => refuse(DropReason::UnknownVni),
    }
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
    #[inline(never)]
    fn from_socket(tables: &Tables, meta: &Meta, end: usize) -> Result<Outer, Verdict> {
        let hop = tables.hop(meta.next_hop).filter(|hop| hop.port == meta.ingress_port);
        let Some(hop) = hop else { return refuse(DropReason::WrongPort) };
        let (ecn, peer) = (meta.flags.outer_ecn(), u128::from(meta.next_hop));
        Ok(Outer { at: 0, end, geneve: hop.geneve, ecn, kind: Kind::Mac, peer })
    }

    /// Checks Ethernet, IP and UDP.
    #[inline(always)]
    fn check(local: &Local, meta: &Meta, bytes: &[u8], parsed: &Parsed) -> Result<Outer, Verdict> {
        let (kind, ours) = match parsed.ip {
            IpKind::V4 => {
                (Kind::V4, local.ipv4.is_some_and(|own| own.address.to_bits() == parsed.dst as u32))
            }
            IpKind::V6 => (Kind::V6, local.ipv6.is_some_and(|own| own.address.to_bits() == parsed.dst)),
            IpKind::None => return Err(not_ip(parsed.ethertype)),
        };
        if !ours || parsed.dst_mac != local.mac || parsed.proto != protocol::UDP {
            let discovery = parsed.ip == IpKind::V6 && parsed.proto == protocol::ICMPV6 && !parsed.fragment;
            return Err(not_tunnel(local, discovery, bytes.get(usize::from(parsed.l4))));
        }
        if parsed.fragment {
            return refuse(DropReason::UnsupportedType);
        }
        let geneve = parsed.dst_port == local.geneve_port;
        if !geneve && parsed.dst_port != local.vxlan_port {
            return refuse(DropReason::NotForUs);
        }
        let end = check_sums(meta, bytes, parsed)?;
        Ok(Outer { at: usize::from(parsed.payload), end, geneve, ecn: parsed.ecn, kind, peer: parsed.src })
    }
}

/// Neither IP nor, therefore, a tunnel.
#[cold]
fn not_ip(ethertype: EtherType) -> Verdict {
    if ethertype == EtherType::ARP { Verdict::Local } else { Verdict::Drop(DropReason::UnsupportedType) }
}

/// IP, but not UDP to our address: neighbour discovery is for us, all else is not.
#[cold]
fn not_tunnel(local: &Local, icmp6: bool, kind: Option<&u8>) -> Verdict {
    let discovery = icmp6 && kind.is_some_and(|kind| NEIGHBOUR_TYPES.contains(kind)) && local.ipv6.is_some();
    if discovery { Verdict::Local } else { Verdict::Drop(DropReason::NotForUs) }
}

/// Neighbour solicitation and advertisement (RFC 4861, clauses 4.3 and 4.4).
const NEIGHBOUR_TYPES: std::ops::RangeInclusive<u8> = 135..=136;

/// Verifies the IPv4 header's and UDP's checksums, if there is one, and returns where the datagram ends. A
/// port that says it has verified, or that handed over a frame whose checksum is yet to be finished (it
/// never left this machine), is believed for UDP.
#[inline(always)]
fn check_sums(meta: &Meta, bytes: &[u8], parsed: &Parsed) -> Result<usize, Verdict> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let Some(header) = bytes.get(l3..l4) else { return refuse(DropReason::Truncated) };
    if parsed.ip == IpKind::V4 && !header_sum_ok(header) {
        return refuse(DropReason::BadChecksum);
    }
    let datagram = bytes.get(l4..).unwrap_or(&[]);
    let Some(head) = datagram.first_chunk::<{ udp::HEADER_BYTES }>() else {
        return refuse(DropReason::Truncated);
    };
    let trusted = meta.flags.has(Flags::CSUM_VALID) || meta.flags.has(Flags::CSUM_PARTIAL);
    if !trusted && [head[6], head[7]] != [0, 0] {
        check_datagram(datagram, parsed.ip, parsed.src, parsed.dst)?;
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

// By value, here and where else a rare case is called from the fast path: a reference would put the whole of
// `Parsed` into memory.
#[inline(never)]
fn check_datagram(datagram: &[u8], ip: IpKind, src: u128, dst: u128) -> Result<(), Verdict> {
    let view = udp::View::parse(datagram).map_err(|error| Verdict::Drop(reason(error)))?;
    let right = if ip == IpKind::V6 {
        // RFC 6935, clause 5, lets tunnels send zero; that case does not come here.
        view.checksum_ok_v6(Ipv6Addr::from_bits(src), Ipv6Addr::from_bits(dst), false)
    } else {
        view.checksum_ok_v4(Ipv4Addr::from_bits(src as u32), Ipv4Addr::from_bits(dst as u32))
    };
    if right { Ok(()) } else { refuse(DropReason::BadChecksum) }
}

/// The network identifier and the length of the tunnel header.
#[inline(always)]
fn read_tunnel(bytes: &[u8], outer: &Outer, option: &mut Tidegate) -> Result<(u32, usize), Verdict> {
    let Some(tunnel) = bytes.get(outer.at..outer.end) else { return refuse(DropReason::Truncated) };
    if outer.geneve {
        return read_geneve(tunnel, option);
    }
    *option = Tidegate::default();
    let view = vxlan::View::parse(tunnel).map_err(|error| Verdict::Drop(reason(error)))?;
    Ok((view.vni().value(), vxlan::HEADER_BYTES))
}

#[inline(never)]
fn read_geneve(tunnel: &[u8], option: &mut Tidegate) -> Result<(u32, usize), Verdict> {
    let view = geneve::View::parse(tunnel).map_err(|error| Verdict::Drop(reason(error)))?;
    // RFC 8926, clause 3.4: control packets are not forwarded; we speak no protocol that uses them.
    if view.is_control() || view.ethertype() != EtherType::TRANSPARENT_ETHERNET {
        return refuse(DropReason::UnsupportedType);
    }
    if view.has_unknown_critical() {
        return refuse(DropReason::UnknownOption);
    }
    *option = view.tidegate().unwrap_or_default();
    Ok((view.vni().value(), view.header_bytes()))
}

/// RFC 6040, clause 4.2: the inner packet learns of congestion on the way.
#[cold]
fn combine_ecn(frame: &mut [u8], l3: usize, ip: IpKind, inner: u8, outer: u8) -> Result<(), Verdict> {
    let Some(combined) = ecn::decapsulate(inner, outer) else { return refuse(DropReason::EcnForbidden) };
    if combined == inner {
        return Ok(());
    }
    let packet = frame.get_mut(l3..).unwrap_or_default();
    // INVARIANT: the parser has seen a whole header there.
    match ip {
        IpKind::V4 => packet.first_chunk_mut().map(|head| ipv4::HeaderMut(head).set_ecn(combined)),
        _ => packet.first_chunk_mut().map(|head| ipv6::HeaderMut(head).set_ecn(combined)),
    };
    Ok(())
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

/// A neighbour solicitation goes to the attachment that has the target; other multicast is trapped.
#[cold]
fn process_multicast(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    lane: &Lane<'_>,
    flow: &Flow,
) -> Verdict {
    if !flow.is_icmp6() || flow.is_fragment() {
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
