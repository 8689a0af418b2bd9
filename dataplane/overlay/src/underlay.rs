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
use crate::tables::{Endpoint, Key, Local, Peer, Place, Route, RouteKind, Tables};
use crate::{Outcomes, Verdict};

/// A frame after the first pass.
struct Arrived {
    index: usize,
    /// Bytes of outer headers.
    strip: u16,
    /// Where the inner frame ends; Ethernet padding follows.
    end: u32,
    ecn: u8,
    vni: u32,
    key: Key,
    hash: u32,
}

/// A frame after the second pass.
struct Stripped {
    index: usize,
    next_hop: u16,
    flow: Flow,
}

/// Judges up to 32 frames that came in by underlay ports (`Meta::ingress_port`); fills `outcomes` for the
/// first `batch.len()` entries. Frames judged [`Verdict::Deliver`] or [`Verdict::Trap`] have lost their
/// outer headers.
pub fn process_underlay(tables: &Tables, pool: &Pool, batch: &mut [Frame], outcomes: &mut Outcomes) {
    let mut arrived = ArrayVec::<Arrived, BATCH>::new();
    for (index, frame) in batch.iter_mut().enumerate().take(BATCH) {
        note(outcomes, index, Outcomes::NO_RULE);
        match arrive(tables, pool, frame, index, outcomes) {
            Ok(Some(next)) => arrived.push(next),
            Ok(None) => judge(outcomes, index, Verdict::Local),
            Err(why) => judge(outcomes, index, Verdict::Drop(why)),
        }
    }
    let mut stripped = ArrayVec::<Stripped, BATCH>::new();
    for next in &arrived {
        let Some(frame) = batch.get_mut(next.index) else { continue };
        match strip(tables, pool, frame, next) {
            Ok(Inner::Ip(flow, next_hop)) => stripped.push(Stripped { index: next.index, next_hop, flow }),
            Ok(Inner::Arp(parsed, peer)) => {
                let verdict = process_arp(tables, pool, frame, &peer, &parsed);
                judge(outcomes, next.index, verdict.unwrap_or_else(Verdict::Drop));
            }
            Err(why) => judge(outcomes, next.index, Verdict::Drop(why)),
        }
    }
    for Stripped { index, next_hop, flow } in &stripped {
        let Some(frame) = batch.get_mut(*index) else { continue };
        let verdict = decide(tables, pool, frame, *next_hop, flow, *index, outcomes);
        judge(outcomes, *index, verdict);
    }
}

/// First pass. `None` is a frame for this node itself.
#[inline(always)]
fn arrive(
    tables: &Tables,
    pool: &Pool,
    frame: &Frame,
    index: usize,
    outcomes: &mut Outcomes,
) -> Result<Option<Arrived>, DropReason> {
    let (meta, bytes) = (pool.meta(frame), pool.bytes(frame));
    let local = tables.local(meta.ingress_port).ok_or(DropReason::UnknownAttachment)?;
    let outer = if local.datagram {
        Outer::from_socket(tables, meta, bytes.len())?
    } else {
        match Outer::parse(local, meta, bytes)? {
            Some(outer) => outer,
            None => return Ok(None),
        }
    };
    let tunnel = bytes.get(outer.at..outer.end).ok_or(DropReason::Truncated)?;
    let (vni, tunnel_bytes, option) =
        if outer.geneve { process_geneve(tunnel)? } else { process_vxlan(tunnel)? };
    if let Some(place) = outcomes.options.get_mut(index) {
        *place = option;
    }
    let key = peer_key(outer.kind, outer.peer, local.port, outer.geneve, vni);
    let hash = tables.peers.hash(&key);
    tables.peers.prefetch(hash);
    let strip = (outer.at + tunnel_bytes) as u16;
    Ok(Some(Arrived { index, strip, end: outer.end as u32, ecn: outer.ecn, vni, key, hash }))
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
    fn parse(local: &Local, meta: &Meta, bytes: &[u8]) -> Result<Option<Outer>, DropReason> {
        let parsed = wire::parse(bytes).map_err(reason)?;
        if parsed.tags != 0 {
            return Err(DropReason::UnsupportedType);
        }
        let (kind, ours) = match parsed.ip {
            IpKind::V4 => {
                (Kind::V4, local.ipv4.is_some_and(|own| own.address.to_bits() == parsed.dst as u32))
            }
            IpKind::V6 => (Kind::V6, local.ipv6.is_some_and(|own| own.address.to_bits() == parsed.dst)),
            IpKind::None => return not_ip(&parsed),
        };
        if !ours || parsed.dst_mac != local.mac || parsed.proto != protocol::UDP {
            return not_tunnel(local, &parsed, bytes);
        }
        if parsed.fragment {
            return Err(DropReason::UnsupportedType);
        }
        let geneve = parsed.dst_port == local.geneve_port;
        if !geneve && parsed.dst_port != local.vxlan_port {
            return Err(DropReason::NotForUs);
        }
        let end = check_sums(meta, bytes, &parsed)?;
        Ok(Some(Outer {
            at: usize::from(parsed.payload),
            end,
            geneve,
            ecn: parsed.ecn,
            kind,
            peer: parsed.src,
        }))
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
    let ip = bytes.get(usize::from(parsed.l3)..parsed.l3_end as usize).ok_or(DropReason::Truncated)?;
    if parsed.ip == IpKind::V4 && !ipv4::View::parse(ip).map_err(reason)?.checksum_ok() {
        return Err(DropReason::BadChecksum);
    }
    let l4 = usize::from(parsed.l4);
    let datagram = bytes.get(l4..parsed.l3_end as usize).ok_or(DropReason::Truncated)?;
    let view = udp::View::parse(datagram).map_err(reason)?;
    let trusted = meta.flags.has(Flags::CSUM_VALID) || meta.flags.has(Flags::CSUM_PARTIAL);
    if !trusted && view.checksum() != 0 {
        let right = match parsed.ip {
            IpKind::V6 => {
                let (src, dst) = (Ipv6Addr::from_bits(parsed.src), Ipv6Addr::from_bits(parsed.dst));
                // RFC 6935, clause 5, lets tunnels send zero; that case is above.
                view.checksum_ok_v6(src, dst, true)
            }
            _ => view.checksum_ok_v4(
                Ipv4Addr::from_bits(parsed.src as u32),
                Ipv4Addr::from_bits(parsed.dst as u32),
            ),
        };
        if !right {
            return Err(DropReason::BadChecksum);
        }
    }
    Ok(l4 + usize::from(view.len_bytes()))
}

#[inline(always)]
fn process_vxlan(tunnel: &[u8]) -> Result<(u32, usize, Tidegate), DropReason> {
    let view = vxlan::View::parse(tunnel).map_err(reason)?;
    Ok((view.vni().value(), vxlan::HEADER_BYTES, Tidegate::default()))
}

#[inline]
fn process_geneve(tunnel: &[u8]) -> Result<(u32, usize, Tidegate), DropReason> {
    let view = geneve::View::parse(tunnel).map_err(reason)?;
    // RFC 8926, clause 3.4: control packets are not forwarded; we speak no protocol that uses them.
    if view.is_control() || view.ethertype() != EtherType::TRANSPARENT_ETHERNET {
        return Err(DropReason::UnsupportedType);
    }
    if view.has_unknown_critical() {
        return Err(DropReason::UnknownOption);
    }
    Ok((view.vni().value(), view.header_bytes(), view.tidegate().unwrap_or_default()))
}

/// A frame without its outer headers.
enum Inner {
    Ip(Flow, u16),
    Arp(Parsed, Peer),
}

/// Second pass: peer, strip, inner parse, ECN, prefetch.
#[inline(always)]
fn strip(tables: &Tables, pool: &Pool, frame: &mut Frame, arrived: &Arrived) -> Result<Inner, DropReason> {
    let Some(peer) = tables.peer(&arrived.key, arrived.hash) else {
        let known = tables.tenant_of_vni(arrived.vni).is_some();
        return Err(if known { DropReason::WrongPort } else { DropReason::UnknownVni });
    };
    if !pool.set_len(frame, arrived.end as usize) || !pool.trim_front(frame, usize::from(arrived.strip)) {
        return Err(DropReason::Truncated);
    }
    let (meta, bytes) = pool.parts_mut(frame);
    shift_checksum(meta, -i32::from(arrived.strip));
    let parsed = wire::parse(bytes).map_err(reason)?;
    // RFC 7348, clause 6.1: "a decapsulating VTEP SHOULD discard VXLAN frames with an inner VLAN tag unless
    // configured otherwise".
    if parsed.tags != 0 {
        return Err(DropReason::UnsupportedType);
    }
    describe(meta, &parsed);
    if parsed.ip == IpKind::None {
        return match parsed.ethertype {
            EtherType::ARP => Ok(Inner::Arp(parsed, *peer)),
            _ => Err(DropReason::UnsupportedType),
        };
    }
    if arrived.ecn != 0 {
        combine_ecn(bytes, &parsed, arrived.ecn)?;
    }
    Ok(Inner::Ip(Flow::new(tables, peer.tenant, &parsed), peer.next_hop))
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

/// Third pass: the inner source is behind that peer, the inner destination is here.
#[inline(always)]
fn decide(
    tables: &Tables,
    pool: &Pool,
    frame: &mut Frame,
    next_hop: u16,
    flow: &Flow,
    index: usize,
    outcomes: &mut Outcomes,
) -> Verdict {
    let known = tables.endpoint(flow.tenant, flow.v6, flow.src);
    let honest = match known {
        Some(endpoint) => lives_at(endpoint, next_hop, flow.src_mac),
        None => other_source(tables, next_hop, flow),
    };
    if !honest {
        return Verdict::Drop(DropReason::Spoofed);
    }
    if flow.dst_mac.is_multicast() {
        return process_multicast(tables, pool, frame, flow);
    }
    let info = tables.tenant(flow.tenant);
    if flow.fragment && info.needs_ports {
        return Verdict::Trap;
    }
    let Some(route) = flow.route(tables) else { return Verdict::Drop(DropReason::UnknownDestination) };
    note(outcomes, index, route.rule);
    pool.meta_mut(frame).volume = flow.volume(tables, info, Side::Ingress);
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
fn other_source(tables: &Tables, next_hop: u16, flow: &Flow) -> bool {
    let station = || tables.mac_place(flow.tenant, flow.src_mac) == Some(Place::Remote(next_hop));
    if is_link_local(flow.v6, flow.src) {
        return flow.src == link_local_of(flow.src_mac) && station();
    }
    if flow.v6 && flow.src == 0 {
        return flow.dst_mac.is_multicast() && station();
    }
    flow.src_mac.is_unicast() && flow.reverse_next_hop(tables) == Some(next_hop)
}

/// A neighbour solicitation goes to the attachment that has the target; other multicast is trapped.
#[cold]
fn process_multicast(tables: &Tables, pool: &Pool, frame: &mut Frame, flow: &Flow) -> Verdict {
    if flow.proto != protocol::ICMPV6 || flow.fragment {
        return Verdict::Trap;
    }
    let l3 = usize::from(pool.meta(frame).l3);
    let ip = pool.bytes(frame).get(l3..).map(ipv6::View::parse);
    let Some(Ok(ip)) = ip else { return Verdict::Drop(DropReason::Malformed) };
    match Neighbour::parse(&ip) {
        Ok(Neighbour::Solicitation { target, .. }) => {
            let Some(route) = tables.address_route(flow.tenant, true, target.to_bits()) else {
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
    peer: &Peer,
    parsed: &Parsed,
) -> Result<Verdict, DropReason> {
    let bytes = pool.bytes(frame).get(ethernet::HEADER_BYTES..).unwrap_or(&[]);
    let packet = arp::Packet::parse(bytes).map_err(reason)?;
    let sender = packet.sender_ip;
    let honest = packet.sender_mac == parsed.src_mac
        && match tables.endpoint(peer.tenant, false, sender.to_bits().into()) {
            Some(endpoint) => lives_at(endpoint, peer.next_hop, parsed.src_mac),
            None if sender.is_unspecified() => {
                tables.mac_place(peer.tenant, parsed.src_mac) == Some(Place::Remote(peer.next_hop))
            }
            None => false,
        };
    if !honest {
        return Err(DropReason::Spoofed);
    }
    let route = tables.address_route(peer.tenant, false, packet.target_ip.to_bits().into());
    let route = route.ok_or(DropReason::UnknownDestination)?;
    let dst_mac = if parsed.dst_mac.is_multicast() { route.mac } else { parsed.dst_mac };
    Ok(arrive_at(pool, frame, route, dst_mac))
}
