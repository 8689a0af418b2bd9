//! What both directions share: reasons, offsets into `Meta`, VLAN tags, and the route lookup with its
//! consequences.

use arrayvec::ArrayVec;
use frame::{BATCH, DropReason, Flags, Frame, Meta, Pool};
use wire::{IpKind, Mac, ParseError, Parsed, VlanId, ethernet, protocol};

use crate::tables::key::{self, Tuple};
use crate::tables::{AttachmentInfo, Key, Route, RouteKind, Tables, TenantView};
use crate::{Outcomes, Verdict};

/// The verdict on a frame whose source may not send it.
pub(crate) const SPOOFED: Verdict = Verdict::Drop(DropReason::Spoofed);

/// The reason under which a frame that does not parse is counted.
pub(crate) fn reason(error: ParseError) -> DropReason {
    match error {
        ParseError::Truncated => DropReason::Truncated,
        ParseError::Malformed => DropReason::Malformed,
        ParseError::BadChecksum => DropReason::BadChecksum,
        ParseError::UnsupportedType | ParseError::TooManyHeaders => DropReason::UnsupportedType,
    }
}

/// Writes what the parser found into the metadata.
#[inline(always)]
pub(crate) fn describe(meta: &mut Meta, parsed: &Parsed) {
    (meta.l3, meta.l4, meta.payload, meta.proto) = (parsed.l3, parsed.l4, parsed.payload, parsed.proto);
    meta.flow_hash = parsed.flow_hash;
    meta.cost_bytes = parsed.payload_bytes();
    let mut flags = meta.flags;
    flags.clear(Flags::IPV6);
    flags.clear(Flags::FRAGMENT);
    flags.clear(Flags::EGRESS);
    flags.set(Flags::PARSED);
    if parsed.ip == IpKind::V6 {
        flags.set(Flags::IPV6);
    }
    if parsed.fragment {
        flags.set(Flags::FRAGMENT);
    }
    meta.flags = flags;
}

/// Who sent a run of frames. What is found out about the address holds for all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) ip: u128,
    pub(crate) mac: Mac,
    pub(crate) v6: bool,
    pub(crate) lane: u8,
    /// Whether the address is where it belongs; `None` when no endpoint lists it.
    pub(crate) listed: Option<bool>,
}

impl Source {
    /// The source is the one of the frame before, by the same way.
    #[inline(always)]
    fn is(&self, lane: u8, parsed: &Parsed) -> bool {
        self.ip == parsed.src
            && self.mac == parsed.src_mac
            && self.lane == lane
            && self.v6 == (parsed.ip == IpKind::V6)
    }
}

/// The frames of a batch between the two passes, and who sent them.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) sources: ArrayVec<Source, BATCH>,
    pub(crate) flows: ArrayVec<Flow, BATCH>,
}

/// The destination and ports of a packet, ready for every lookup of its tenant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// Destination address, both ports, tenant.
    packet: Key,
    pub(crate) dst_mac: Mac,
    pub(crate) proto: u8,
    pub(crate) v6: bool,
    /// Where the first route probe begins.
    hash: u32,
    pub(crate) fragment: bool,
    /// TCP or UDP with its header: rules that name transport fields apply.
    ports: bool,
    /// Position in the batch.
    pub(crate) index: u8,
    /// Position in [`Pending::sources`].
    pub(crate) source: u8,
}

impl Pending {
    /// Gathers the keys of an IP packet and asks for the cache lines that its lookups will touch.
    #[inline(always)]
    pub(crate) fn push(
        &mut self,
        tables: &Tables,
        view: &TenantView<'_>,
        lane: usize,
        parsed: &Parsed,
        index: usize,
    ) {
        let v6 = parsed.ip == IpKind::V6;
        let lane = lane as u8;
        if self.sources.last().is_none_or(|last| !last.is(lane, parsed)) {
            if tables.endpoints.is_large() {
                tables.prefetch_endpoint(view, v6, parsed.src);
            }
            self.sources.push(Source { ip: parsed.src, mac: parsed.src_mac, v6, lane, listed: None });
        }
        let packet = key::packet_key(view.id, parsed.dst, parsed.proto, parsed.src_port, parsed.dst_port);
        let mut hash = 0;
        if let [first, rest @ ..] = view.routes(v6) {
            hash = tables.routes.hash(&first.key(&packet));
            tables.routes.prefetch(hash);
            if !rest.is_empty() && tables.routes.is_large() {
                for tuple in rest {
                    tables.routes.prefetch(tables.routes.hash(&tuple.key(&packet)));
                }
            }
        }
        self.flows.push(Flow {
            packet,
            dst_mac: parsed.dst_mac,
            proto: parsed.proto,
            v6,
            hash,
            fragment: parsed.fragment,
            ports: !parsed.fragment && matches!(parsed.proto, protocol::TCP | protocol::UDP),
            index: index as u8,
            source: self.sources.len() as u8 - 1,
        });
    }
}

impl Flow {
    #[inline(always)]
    fn dst(&self) -> u128 {
        u128::from(self.packet.hi) << 64 | u128::from(self.packet.lo)
    }

    #[inline(always)]
    fn dst_port(&self) -> u16 {
        self.packet.tag as u16
    }

    #[inline(always)]
    fn src_port(&self) -> u16 {
        (self.packet.tag >> 16) as u16
    }

    /// The most specific route that matches: address and ports first, then the MAC address.
    #[inline(always)]
    pub(crate) fn route<'a>(&self, tables: &'a Tables, view: &TenantView<'_>) -> Option<&'a Route> {
        if let [first, rest @ ..] = view.routes(self.v6) {
            if let Some(route) = self.probe(tables, first, self.hash) {
                return Some(route);
            }
            for tuple in rest {
                let hash = tables.routes.hash(&tuple.key(&self.packet));
                if let Some(route) = self.probe(tables, tuple, hash) {
                    return Some(route);
                }
            }
        }
        self.mac_route(tables, view)
    }

    #[inline(always)]
    fn probe<'a>(&self, tables: &'a Tables, tuple: &Tuple, hash: u32) -> Option<&'a Route> {
        if tuple.fields() != 0 && !self.ports {
            return None;
        }
        tables.routes.find_at(&tuple.key(&self.packet), hash)
    }

    #[cold]
    #[inline(never)]
    fn mac_route<'a>(&self, tables: &'a Tables, view: &TenantView<'_>) -> Option<&'a Route> {
        let route = tables.mac_route(view.id, self.dst_mac)?;
        if route.link_only && !is_link_local(self.v6, self.dst()) { None } else { Some(route) }
    }

    /// The next hop to which an answer to this packet would be forwarded, by rules alone.
    #[cold]
    pub(crate) fn reverse_next_hop(
        &self,
        tables: &Tables,
        view: &TenantView<'_>,
        source: &Source,
    ) -> Option<u16> {
        let (from, to) = (self.dst_port(), self.src_port());
        let packet = key::packet_key(view.id, source.ip, self.proto, from, to);
        let reverse = Flow { packet, dst_mac: source.mac, ..*self };
        let found = view.routes(self.v6).iter().find_map(|tuple| {
            let hash = tables.routes.hash(&tuple.key(&reverse.packet));
            reverse.probe(tables, tuple, hash)
        });
        let route = found.or_else(|| reverse.mac_route(tables, view))?;
        (route.kind == RouteKind::Forward).then_some(route.next_hop)
    }

    /// The volume that pays where the route names none: that of the server at either end. Only ends where
    /// the tenant has servers are looked at.
    #[inline(always)]
    pub(crate) fn volume(&self, tables: &Tables, view: &TenantView<'_>, source: &Source, side: Side) -> u32 {
        let info = view.info;
        if !(info.volumes_local || info.volumes_remote) || !self.ports {
            return Meta::NO_VOLUME;
        }
        let (at_dst, at_src) = match side {
            Side::Egress => (info.volumes_remote, info.volumes_local),
            Side::Ingress => (info.volumes_local, info.volumes_remote),
            Side::Hairpin => (info.volumes_local, info.volumes_local),
        };
        let to = at_dst.then(|| tables.volume(view.id, self.v6, self.dst(), self.dst_port()));
        if let Some(volume) = to.flatten() {
            return volume;
        }
        let from = at_src.then(|| tables.volume(view.id, self.v6, source.ip, self.src_port()));
        from.flatten().unwrap_or(Meta::NO_VOLUME)
    }
}

/// Which ends of a packet are on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The source.
    Egress,
    /// The destination.
    Ingress,
    /// Both.
    Hairpin,
}

/// Does what a route says with a frame that may go there.
#[inline(always)]
pub(crate) fn forward(tables: &Tables, meta: &mut Meta, route: &Route) -> Verdict {
    meta.next_hop = route.next_hop;
    meta.egress_port = route.port;
    meta.vni = route.vni;
    meta.flags.set(Flags::EGRESS);
    tables.prefetch_hop(route.next_hop);
    Verdict::Forward
}

/// Hands a frame to an attachment: pushes its VLAN tag. The destination's MAC address must fit.
#[inline(always)]
pub(crate) fn deliver(pool: &Pool, frame: &mut Frame, route: &Route, dst_mac: Mac) -> Verdict {
    if route.mac != dst_mac && route.mac != Mac::ZERO {
        return Verdict::Drop(DropReason::UnknownDestination);
    }
    let meta = pool.meta_mut(frame);
    meta.attachment = route.attachment;
    meta.egress_port = route.port;
    meta.vni = route.vni;
    match VlanId::new(route.vlan) {
        None => Verdict::Deliver,
        Some(vlan) => push_vlan(pool, frame, vlan),
    }
}

/// No rule has decided about any of the first `count` frames yet.
#[inline(always)]
pub(crate) fn forget_rules(outcomes: &mut Outcomes, count: usize) {
    outcomes.rules[..count.min(BATCH)].fill(Outcomes::NO_RULE);
}

/// Notes which rule decided.
#[inline(always)]
pub(crate) fn note(outcomes: &mut Outcomes, index: usize, rule: u32) {
    outcomes.rules[index % BATCH] = rule;
}

/// Notes what is to be done.
#[inline(always)]
pub(crate) fn judge(outcomes: &mut Outcomes, index: usize, verdict: Verdict) {
    outcomes.verdicts[index % BATCH] = verdict;
}

const ADDRESSES_BYTES: usize = 12;

/// Removes the one VLAN tag of a frame. Offsets in the metadata move with it.
#[cold]
pub(crate) fn strip_vlan(pool: &Pool, frame: &mut Frame, parsed: &mut Parsed) -> bool {
    let (meta, bytes) = pool.parts_mut(frame);
    if bytes.len() < ethernet::HEADER_BYTES + ethernet::TAG_BYTES {
        return false;
    }
    bytes.copy_within(..ADDRESSES_BYTES, ethernet::TAG_BYTES);
    shift_checksum(meta, -(ethernet::TAG_BYTES as i32));
    let tag = ethernet::TAG_BYTES as u16;
    (parsed.l3, parsed.l4, parsed.payload) = (parsed.l3 - tag, parsed.l4 - tag, parsed.payload - tag);
    parsed.l3_end -= u32::from(tag);
    pool.trim_front(frame, ethernet::TAG_BYTES)
}

/// Addresses a frame made in answer to a tenant back to the attachment that it came from.
pub(crate) fn return_to_sender(
    pool: &Pool,
    frame: &mut Frame,
    info: &AttachmentInfo,
) -> Result<bool, DropReason> {
    pool.meta_mut(frame).egress_port = info.port;
    let Some(vlan) = VlanId::new(info.vlan) else { return Ok(true) };
    match push_vlan(pool, frame, vlan) {
        Verdict::Drop(why) => Err(why),
        _ => Ok(true),
    }
}

/// Inserts a VLAN tag of priority 0.
#[cold]
fn push_vlan(pool: &Pool, frame: &mut Frame, vlan: VlanId) -> Verdict {
    let Some(bytes) = pool.prepend(frame, ethernet::TAG_BYTES) else {
        return Verdict::Drop(DropReason::NoFrame);
    };
    // INVARIANT: the frame was parsed, so it has an Ethernet header.
    bytes.copy_within(ethernet::TAG_BYTES..ethernet::TAG_BYTES + ADDRESSES_BYTES, 0);
    let [high, low] = vlan.value().to_be_bytes();
    bytes[ADDRESSES_BYTES..ADDRESSES_BYTES + ethernet::TAG_BYTES].copy_from_slice(&[0x81, 0x00, high, low]);
    let meta = pool.meta_mut(frame);
    shift_checksum(meta, ethernet::TAG_BYTES as i32);
    let tag = ethernet::TAG_BYTES as u16;
    (meta.l3, meta.l4, meta.payload) = (meta.l3 + tag, meta.l4 + tag, meta.payload + tag);
    Verdict::Deliver
}

/// Moves the place of an unfinished checksum by `bytes`. One that would move outside the frame was not an
/// inner one; the request is forgotten.
pub(crate) fn shift_checksum(meta: &mut Meta, bytes: i32) {
    if !meta.flags.has(Flags::CSUM_PARTIAL) {
        return;
    }
    match u16::try_from(i32::from(meta.csum_start) + bytes) {
        Ok(start) => meta.csum_start = start,
        Err(_) => meta.flags.clear(Flags::CSUM_PARTIAL),
    }
}

/// fe80::/10 (RFC 4291, clause 2.5.6).
pub(crate) fn is_link_local(v6: bool, address: u128) -> bool {
    v6 && address >> 118 == 0xfe80 >> 6
}

/// The link-local address that a station forms from its MAC address (RFC 4291, appendix A).
pub(crate) fn link_local_of(mac: Mac) -> u128 {
    let [a, b, c, d, e, f] = mac.0;
    let identifier = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    0xfe80_u128 << 112 | u128::from(identifier)
}
