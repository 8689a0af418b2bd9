//! What both directions share: reasons, offsets into `Meta`, VLAN tags, and the second pass, which looks up
//! sources and routes.

use frame::{BATCH, DropReason, Flags, Frame, Meta, Pool};
use wire::{IpKind, Mac, ParseError, Parsed, VlanId, ethernet, protocol};

use crate::tables::key::{self, Tuple};
use crate::tables::{AttachmentInfo, Endpoint, Key, Route, RouteKind, Tables, TenantView};
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
    meta.traffic_class = parsed.dscp << 2 | parsed.ecn;
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
    /// MAC address, lane and family in one word: what is compared is this and the address.
    link: u64,
    /// The first frame of the run, which ends where the next one begins.
    first: u8,
}

impl Source {
    const NOBODY: Source = Source { ip: 0, link: 0, first: 0 };
    const LANE_SHIFT: u32 = 48;
    const V6: u64 = 1 << 63;

    #[inline(always)]
    fn new(parsed: &Parsed, lane: usize, index: usize) -> Source {
        let [a, b, c, d, e, f] = parsed.src_mac.0;
        let mac = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let v6 = if parsed.ip == IpKind::V6 { Source::V6 } else { 0 };
        Source { ip: parsed.src, link: mac | (lane as u64) << Source::LANE_SHIFT | v6, first: index as u8 }
    }

    /// The same sender, by the same way.
    #[inline(always)]
    fn is(&self, other: &Source) -> bool {
        self.ip == other.ip && self.link == other.link
    }

    #[inline(always)]
    pub(crate) fn mac(&self) -> Mac {
        let [a, b, c, d, e, f, ..] = self.link.to_le_bytes();
        Mac([a, b, c, d, e, f])
    }

    #[inline(always)]
    pub(crate) fn v6(&self) -> bool {
        self.link & Source::V6 != 0
    }

    #[inline(always)]
    fn lane(&self) -> usize {
        usize::from((self.link >> Source::LANE_SHIFT) as u8)
    }
}

/// The destination and ports of a packet, ready for every lookup of its tenant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// Destination address, both ports, tenant.
    packet: Key,
    /// Where the next route probe begins.
    hash: u32,
    facts: u8,
    /// Position in [`Pending::sources`].
    source: u8,
}

/// Bits of [`Flow::facts`].
const V6: u8 = 1;
/// TCP or UDP with its header: rules that name transport fields apply.
const PORTS: u8 = 2;
const FRAGMENT: u8 = 4;
const ICMP6: u8 = 8;
const MULTICAST: u8 = 16;
/// The first pass has judged it.
const DONE: u8 = 32;
/// About these not the route alone decides.
const SPECIAL: u8 = FRAGMENT | ICMP6 | MULTICAST | DONE;

#[inline(always)]
fn fact(holds: bool, bit: u8) -> u8 {
    u8::from(holds) * bit
}

/// The frames of a batch between the two passes, and who sent them. Kept from batch to batch: to clear it, or
/// to move it, would cost more than it saves.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    sources: [Source; BATCH],
    sources_len: usize,
    flows: [Flow; BATCH],
}

const _: () = assert!(BATCH == u32::BITS as usize);

impl Pending {
    pub(crate) const EMPTY: Pending = Pending {
        sources: [Source::NOBODY; BATCH],
        sources_len: 0,
        flows: [Flow { packet: Key { hi: 0, lo: 0, tag: 0 }, hash: 0, facts: DONE, source: 0 }; BATCH],
    };

    /// Nothing waits.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        self.sources_len = 0;
    }

    /// The first pass has judged a frame.
    #[inline(always)]
    pub(crate) fn skip(&mut self, index: usize) {
        self.flows[index % BATCH].facts = DONE;
    }

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
        let source = Source::new(parsed, lane, index);
        if self.sources_len == 0 || !self.sources[(self.sources_len - 1) % BATCH].is(&source) {
            if tables.endpoints.is_large() {
                tables.prefetch_endpoint(view, v6, parsed.src);
            }
            self.sources[self.sources_len % BATCH] = source;
            self.sources_len += 1;
        }
        let packet = key::packet_key(view.id, parsed.dst, parsed.proto, parsed.src_port, parsed.dst_port);
        let mut hash = 0;
        if let Some(first) = view.routes(v6).first() {
            hash = tables.routes.hash(&first.key(&packet));
            tables.routes.prefetch(hash);
        }
        self.flows[index % BATCH] = Flow {
            packet,
            hash,
            facts: fact(v6, V6)
                | fact(parsed.has_ports, PORTS)
                | fact(parsed.fragment, FRAGMENT)
                | fact(v6 && parsed.proto == protocol::ICMPV6, ICMP6)
                | fact(parsed.dst_mac.is_multicast(), MULTICAST),
            source: self.sources_len as u8 - 1,
        };
    }
}

/// A run of frames that came in the same way, of one tenant: what the directions do differently in the
/// second pass.
pub(crate) trait Lane {
    /// Why a frame is dropped whose destination nobody knows.
    const NO_ROUTE: DropReason;

    fn view(&self) -> &TenantView<'_>;

    /// The endpoint that holds the source address is where the frame came from.
    fn lists(&self, endpoint: &Endpoint, mac: Mac) -> bool;

    /// A source that no endpoint lists may send this all the same.
    fn admits(&self, tables: &Tables, source: &Source, flow: &Flow) -> bool;

    /// The verdict on a fragment, multicast, or ICMPv6 whose body decides; `None` if it goes the way of all.
    fn process_special(
        &self,
        tables: &Tables,
        pool: &Pool,
        frame: &mut Frame,
        source: &Source,
        flow: &Flow,
    ) -> Option<Verdict>;

    /// Does what the route says if it sends the frame on as it is; else `None`, and [`Lane::follow`] must.
    fn follow_plain(
        &self,
        tables: &Tables,
        pool: &Pool,
        frame: &mut Frame,
        source: &Source,
        flow: &Flow,
        route: &Route,
    ) -> Option<Verdict>;

    /// Does what the route says.
    fn follow(
        &self,
        tables: &Tables,
        pool: &Pool,
        frame: &mut Frame,
        source: &Source,
        flow: &Flow,
        route: &Route,
    ) -> Verdict;
}

/// The second pass: judges the frames that wait. A round looks in one mask tuple for all that are left, whose
/// lines the round before has asked for; most frames are found in the first.
#[inline(always)]
pub(crate) fn decide<L: Lane>(
    tables: &Tables,
    pool: &Pool,
    lanes: &[L],
    batch: &mut [Frame],
    outcomes: &mut Outcomes,
) {
    let Outcomes { verdicts, rules, pending: Pending { sources, sources_len, flows }, .. } = outcomes;
    let sources = &sources[..(*sources_len).min(BATCH)];
    let len = batch.len().min(BATCH);
    let mut left = 0;
    for (at, source) in sources.iter().enumerate() {
        let run = usize::from(source.first)..sources.get(at + 1).map_or(len, |next| next.first.into());
        let (Some(lane), Some(frames)) = (lanes.get(source.lane()), batch.get_mut(run.clone())) else {
            continue;
        };
        let (flows, verdicts) = (&mut flows[run.clone()], &mut verdicts[run.clone()]);
        let first = run.start;
        let run = Run { tables, pool, lane, source, listed: listed(tables, lane, source) };
        left |= run.decide(frames, flows, verdicts, &mut rules[first..]) << first;
    }
    if left != 0 {
        decide_later(tables, pool, lanes, batch, outcomes, left);
    }
}

/// Whether the source's address is where it belongs; `None` when no endpoint lists it.
#[inline(always)]
fn listed<L: Lane>(tables: &Tables, lane: &L, source: &Source) -> Option<bool> {
    let endpoint = tables.endpoint(lane.view(), source.v6(), source.ip)?;
    Some(lane.lists(endpoint, source.mac()))
}

/// Frames in a row from one sender, in the second pass.
struct Run<'a, L> {
    tables: &'a Tables,
    pool: &'a Pool,
    lane: &'a L,
    source: &'a Source,
    listed: Option<bool>,
}

impl<L: Lane> Run<'_, L> {
    /// The first round. Bit n of the result: the n-th frame's route is not in the first tuple.
    #[inline(never)]
    fn decide(
        &self,
        frames: &mut [Frame],
        flows: &mut [Flow],
        verdicts: &mut [Verdict],
        rules: &mut [u32],
    ) -> u32 {
        let first = self.lane.view().routes(self.source.v6()).first();
        let plain = first.filter(|_| self.listed == Some(true));
        let (mut at, mut left) = (0, 0);
        while at < frames.len() {
            if let Some(tuple) = plain {
                let rest = (&mut frames[at..], &flows[at..], &mut verdicts[at..], &mut rules[at..]);
                at += self.decide_plain(tuple, rest.0, rest.1, rest.2, rest.3);
            }
            if let Some(frame) = frames.get_mut(at) {
                match self.decide_any(frame, &mut flows[at], verdicts[at], &mut rules[at]) {
                    Some(verdict) => verdicts[at] = verdict,
                    None => left |= 1 << at,
                }
                at += 1;
            }
        }
        left
    }

    /// Judges frames of honest senders from the first on, and returns how many before the first that is more
    /// than an ordinary packet with an ordinary route in the first tuple. Has no code for that one, and so all
    /// it needs in registers.
    #[inline(never)]
    fn decide_plain(
        &self,
        tuple: &Tuple,
        frames: &mut [Frame],
        flows: &[Flow],
        verdicts: &mut [Verdict],
        rules: &mut [u32],
    ) -> usize {
        let (tables, pool, lane) = (self.tables, self.pool, self.lane);
        let wanted = if tuple.fields() != 0 { PORTS } else { 0 };
        let len = frames.len();
        let each = frames.iter_mut().zip(flows).zip(verdicts).zip(rules);
        for (at, (((frame, flow), verdict), rule)) in each.enumerate() {
            if flow.facts & (SPECIAL | wanted) != wanted {
                return at;
            }
            let route = tables.routes.find_at(&tuple.key(&flow.packet), flow.hash);
            let Some(route) = route else { return at };
            match lane.follow_plain(tables, pool, frame, self.source, flow, route) {
                Some(found) => (*verdict, *rule) = (found, route.rule),
                None => return at,
            }
        }
        len
    }

    /// Judges any frame; `None` if its route is not in the first tuple.
    #[inline(never)]
    fn decide_any(
        &self,
        frame: &mut Frame,
        flow: &mut Flow,
        before: Verdict,
        rule: &mut u32,
    ) -> Option<Verdict> {
        if self.listed != Some(true) || flow.facts & SPECIAL != 0 {
            let special = self.judge(frame, flow, before);
            if special.is_some() {
                return special;
            }
        }
        self.follow(frame, flow, 0, rule)
    }

    /// What is decided without a route: what the first pass has said, whose source is not honest, and what is
    /// no ordinary packet.
    fn judge(&self, frame: &mut Frame, flow: &Flow, before: Verdict) -> Option<Verdict> {
        if flow.facts & DONE != 0 {
            return Some(before);
        }
        let honest = self.listed.unwrap_or_else(|| self.lane.admits(self.tables, self.source, flow));
        if !honest {
            return Some(SPOOFED);
        }
        if flow.facts & SPECIAL != 0 {
            return self.lane.process_special(self.tables, self.pool, frame, self.source, flow);
        }
        None
    }

    /// Looks for the route in tuple number `round` and does what it says; `None` when it is not there.
    #[inline(always)]
    fn follow(&self, frame: &mut Frame, flow: &mut Flow, round: usize, rule: &mut u32) -> Option<Verdict> {
        let (tables, pool) = (self.tables, self.pool);
        let tuples = self.lane.view().routes(self.source.v6());
        let route = match tuples.get(round) {
            Some(tuple) => match flow.find(tables, tuple, flow.hash) {
                Some(route) => route,
                None => return flow.prepare(tables, tuples.get(round + 1)),
            },
            None => match flow.mac_route(tables, self.lane.view(), dst_mac(pool, frame)) {
                Some(route) => route,
                None => return Some(Verdict::Drop(L::NO_ROUTE)),
            },
        };
        *rule = route.rule;
        Some(self.lane.follow(tables, pool, frame, self.source, flow, route))
    }
}

/// The rounds behind the first, for the frames of `left`.
#[inline(never)]
fn decide_later<L: Lane>(
    tables: &Tables,
    pool: &Pool,
    lanes: &[L],
    batch: &mut [Frame],
    outcomes: &mut Outcomes,
    mut left: u32,
) {
    let Outcomes { verdicts, rules, pending: Pending { sources, flows, .. }, .. } = outcomes;
    let mut round = 1;
    while left != 0 {
        let mut rest = left;
        while rest != 0 {
            let index = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let flow = &mut flows[index % BATCH];
            let source = &sources[usize::from(flow.source) % BATCH];
            let verdict = match (lanes.get(source.lane()), batch.get_mut(index)) {
                (Some(lane), Some(frame)) => {
                    let run = Run { tables, pool, lane, source, listed: Some(true) };
                    run.follow(frame, flow, round, &mut rules[index % BATCH])
                }
                // INVARIANT: every frame that is left is in the batch, and its lane is known.
                _ => Some(Verdict::Drop(L::NO_ROUTE)),
            };
            if let Some(verdict) = verdict {
                verdicts[index % BATCH] = verdict;
                left &= !(1 << index);
            }
        }
        round += 1;
    }
}

impl Flow {
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        self.facts & FRAGMENT != 0
    }

    #[inline(always)]
    pub(crate) fn is_icmp6(&self) -> bool {
        self.facts & ICMP6 != 0
    }

    #[inline(always)]
    pub(crate) fn is_multicast(&self) -> bool {
        self.facts & MULTICAST != 0
    }

    #[inline(always)]
    fn v6(&self) -> bool {
        self.facts & V6 != 0
    }

    #[inline(always)]
    fn has_ports(&self) -> bool {
        self.facts & PORTS != 0
    }

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

    /// Nothing was found; the next tuple's line is asked for.
    #[inline(never)]
    fn prepare(&mut self, tables: &Tables, next: Option<&Tuple>) -> Option<Verdict> {
        if let Some(tuple) = next {
            self.hash = tables.routes.hash(&tuple.key(&self.packet));
            tables.routes.prefetch(self.hash);
        }
        None
    }

    #[inline(always)]
    fn find<'a>(&self, tables: &'a Tables, tuple: &Tuple, hash: u32) -> Option<&'a Route> {
        if tuple.fields() != 0 && !self.has_ports() {
            return None;
        }
        tables.routes.find_at(&tuple.key(&self.packet), hash)
    }

    #[inline(never)]
    fn mac_route<'a>(&self, tables: &'a Tables, view: &TenantView<'_>, dst_mac: Mac) -> Option<&'a Route> {
        let route = tables.mac_route(view.id, dst_mac)?;
        if route.link_only && !is_link_local(self.v6(), self.dst()) { None } else { Some(route) }
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
        // The transport stays; address and ports change places.
        let ports = u64::from(from) << 16 | u64::from(to);
        let packet = Key::new(source.ip, self.packet.tag & !0xffff_ffff | ports);
        let reverse = Flow { packet, ..*self };
        let found = view.routes(self.v6()).iter().find_map(|tuple| {
            let hash = tables.routes.hash(&tuple.key(&reverse.packet));
            reverse.find(tables, tuple, hash)
        });
        let route = found.or_else(|| reverse.mac_route(tables, view, source.mac()))?;
        (route.kind == RouteKind::Forward).then_some(route.next_hop)
    }

    /// The volume that pays where the route names none: that of the server at either end. Only ends where
    /// the tenant has servers are looked at.
    #[inline(never)]
    pub(crate) fn volume(&self, tables: &Tables, view: &TenantView<'_>, source: &Source, side: Side) -> u32 {
        let info = view.info;
        if !info.has_volumes() || !self.has_ports() {
            return Meta::NO_VOLUME;
        }
        let (at_dst, at_src) = match side {
            Side::Egress => (info.volumes_remote, info.volumes_local),
            Side::Ingress => (info.volumes_local, info.volumes_remote),
            Side::Hairpin => (info.volumes_local, info.volumes_local),
        };
        let to = at_dst.then(|| tables.volume(view.id, self.v6(), self.dst(), self.dst_port()));
        if let Some(volume) = to.flatten() {
            return volume;
        }
        let from = at_src.then(|| tables.volume(view.id, self.v6(), source.ip, self.src_port()));
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

/// Whom an Ethernet frame is addressed to.
#[inline(always)]
pub(crate) fn dst_mac(pool: &Pool, frame: &Frame) -> Mac {
    pool.bytes(frame).first_chunk().map_or(Mac::ZERO, |mac| Mac(*mac))
}

/// [`deliver`] where nothing is to be pushed and nothing is wrong; else `None`.
#[inline(always)]
pub(crate) fn deliver_plain(pool: &Pool, frame: &mut Frame, route: &Route) -> Option<Verdict> {
    if route.kind != RouteKind::Deliver || route.vlan != 0 {
        return None;
    }
    let verdict = deliver(pool, frame, route, dst_mac(pool, frame));
    (verdict == Verdict::Deliver).then_some(verdict)
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

/// A new batch: no rule has decided about any frame yet.
#[inline(always)]
pub(crate) fn begin(outcomes: &mut Outcomes) {
    outcomes.rules = [Outcomes::NO_RULE; BATCH];
    outcomes.pending.begin();
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
