//! Putting the outer headers on.
//!
//! The next hop's template is the whole header; it is copied in front of the frame as one block of a size
//! known at compile time, and then patched: lengths, DSCP and ECN (RFC 6040), source port with the inner
//! flow's entropy (RFC 7348, clause 5; RFC 8926, clause 3.3), network identifier, option data, checksums and
//! the neighbour's MAC address.

use frame::{DropReason, Flags, Frame, GsoKind, Meta, Pool};
use wire::checksum::{self, Checksum};
use wire::{Mac, ethernet, geneve, udp};

use crate::classify::return_to_sender;
use crate::segment;
use crate::tables::next_hop::{GENEVE_BYTES, OUTER_V4_BYTES, OUTER_V6_BYTES, Outer, VXLAN_BYTES};
use crate::tables::{NextHop, Tables};
use crate::too_big::TooBig;
use crate::{Neighbours, PortId};

/// What a frame carries through the tunnel beside itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Trace identifier for the Geneve option; 0 = not traced.
    pub trace: u64,
    /// The turn's clock, ns.
    pub now_ns: u64,
}

/// What became of a frame given to [`encapsulate`].
#[derive(Debug)]
#[must_use]
pub enum Encapsulated {
    /// One frame, the same one, was handed to `out`.
    Sent,
    /// The frame waits for its neighbour; [`Neighbours::dispatch`] will release or drop it.
    Held,
    /// The super-segment was cut; the original frame was freed.
    Segmented(Segmented),
    /// Too large for the path. The original was freed: count it under [`DropReason::TooBig`]. With a frame
    /// here, count that as generated and transmit it on its `egress_port`: it tells the tenant so.
    TooBig(Option<Frame>),
    /// Freed; count it.
    Dropped(DropReason),
}

/// The pieces of one super-segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segmented {
    /// Pieces handed to `out`.
    pub sent: u32,
    /// Pieces that wait for their neighbour.
    pub held: u32,
    /// Pieces dropped: the neighbour's waiting room is full ([`DropReason::Unresolved`]).
    pub unresolved: u32,
    /// Pieces dropped: no room for the outer headers ([`DropReason::NoFrame`]).
    pub no_frame: u32,
}

/// A next hop and the MAC address that frames to it get: looked up once for frames in a row.
#[derive(Clone, Debug)]
pub struct Way<'a> {
    hop: &'a NextHop,
    next_hop: u16,
    mac: Mac,
}

impl<'a> Way<'a> {
    /// `None` where [`encapsulate`] must decide: the next hop is gone, or its neighbour is not known.
    #[inline(always)]
    pub fn find(
        tables: &'a Tables,
        neighbours: &mut Neighbours,
        next_hop: u16,
        now_ns: u64,
    ) -> Option<Way<'a>> {
        let hop = tables.hop(next_hop)?;
        let mac = resolve(hop, neighbours, next_hop, now_ns)?;
        Some(Way { hop, next_hop, mac })
    }

    /// Where frames leave that go this way.
    pub fn port(&self) -> PortId {
        PortId(self.hop.port)
    }

    /// Puts the outer headers on the frames from the first on, as long as they go this way and need nothing
    /// else, and returns how many. [`encapsulate`] knows what to do with the next one.
    #[inline(always)]
    pub fn wrap(&self, neighbours: &mut Neighbours, pool: &Pool, frames: &mut [Frame]) -> usize {
        match (self.hop.outer, self.hop.geneve) {
            (Outer::V4, false) => self.wrap_run::<V4_VXLAN, OUTER_V4_BYTES>(neighbours, pool, frames),
            (Outer::V4, true) => self.wrap_run::<V4_GENEVE, OUTER_V4_BYTES>(neighbours, pool, frames),
            (Outer::V6, false) => self.wrap_run::<V6_VXLAN, OUTER_V6_BYTES>(neighbours, pool, frames),
            (Outer::V6, true) => self.wrap_run::<V6_GENEVE, OUTER_V6_BYTES>(neighbours, pool, frames),
            (Outer::Datagram, false) => self.wrap_run::<VXLAN_BYTES, 0>(neighbours, pool, frames),
            (Outer::Datagram, true) => self.wrap_run::<GENEVE_BYTES, 0>(neighbours, pool, frames),
        }
    }

    #[inline(never)]
    fn wrap_run<const N: usize, const TUNNEL: usize>(
        &self,
        neighbours: &mut Neighbours,
        pool: &Pool,
        frames: &mut [Frame],
    ) -> usize {
        let longest = usize::from(self.hop.inner_bytes_max);
        for (at, frame) in frames.iter_mut().enumerate() {
            let meta = pool.meta(frame);
            let here = meta.flags.has(Flags::EGRESS) && meta.next_hop == self.next_hop;
            let bare = meta.gso == GsoKind::None && !meta.flags.has(Flags::CSUM_PARTIAL);
            if !here || !bare || meta.len() > longest {
                return at;
            }
            if !self.write::<N, TUNNEL>(pool, frame, 0, ident(self.hop, neighbours)) {
                return at;
            }
        }
        frames.len()
    }

    /// Puts the headers in front of one frame. False, and no change, without headroom.
    fn wrap_one(&self, pool: &Pool, frame: &mut Frame, trace: u64, ident: u16) -> bool {
        match (self.hop.outer, self.hop.geneve) {
            (Outer::V4, false) => self.write::<V4_VXLAN, OUTER_V4_BYTES>(pool, frame, trace, ident),
            (Outer::V4, true) => self.write::<V4_GENEVE, OUTER_V4_BYTES>(pool, frame, trace, ident),
            (Outer::V6, false) => self.write::<V6_VXLAN, OUTER_V6_BYTES>(pool, frame, trace, ident),
            (Outer::V6, true) => self.write::<V6_GENEVE, OUTER_V6_BYTES>(pool, frame, trace, ident),
            (Outer::Datagram, false) => self.write::<VXLAN_BYTES, 0>(pool, frame, trace, ident),
            (Outer::Datagram, true) => self.write::<GENEVE_BYTES, 0>(pool, frame, trace, ident),
        }
    }
}

const V4_VXLAN: usize = OUTER_V4_BYTES + VXLAN_BYTES;
const V4_GENEVE: usize = OUTER_V4_BYTES + GENEVE_BYTES;
const V6_VXLAN: usize = OUTER_V6_BYTES + VXLAN_BYTES;
const V6_GENEVE: usize = OUTER_V6_BYTES + GENEVE_BYTES;

/// The identification of an outer IPv4 header: only what may be fragmented needs one (RFC 6864).
#[inline(always)]
fn ident(hop: &NextHop, neighbours: &mut Neighbours) -> u16 {
    if hop.df { 0 } else { neighbours.ident() }
}

/// The MAC address that frames to a next hop get; zero where a socket writes the headers.
#[inline(always)]
fn resolve(hop: &NextHop, neighbours: &mut Neighbours, next_hop: u16, now_ns: u64) -> Option<Mac> {
    match hop.outer {
        Outer::Datagram => Some(Mac::ZERO),
        _ => neighbours.resolve(next_hop, now_ns),
    }
}

/// Encapsulates one frame whose verdict was [`crate::Verdict::Forward`] and hands what leaves to `out`, with
/// `egress_port` set to the underlay's port. Frees what does not leave.
#[inline]
pub fn encapsulate(
    tables: &Tables,
    neighbours: &mut Neighbours,
    too_big: &mut TooBig,
    pool: &mut Pool,
    mut frame: Frame,
    tunnel: &Tunnel,
    out: &mut impl FnMut(&mut Pool, Frame),
) -> Encapsulated {
    let meta = pool.meta(&frame);
    let Some(hop) = tables.hop(meta.next_hop) else {
        // The tables changed while the frame was parked, and its endpoint is gone.
        pool.free(frame);
        return Encapsulated::Dropped(DropReason::RuleGone);
    };
    if segment::piece_bytes_max(meta) > usize::from(hop.inner_bytes_max) {
        return refuse(tables, too_big, hop, pool, frame, tunnel.now_ns);
    }
    if meta.gso != GsoKind::None {
        return cut(hop, neighbours, pool, frame, tunnel, out);
    }
    if meta.flags.has(Flags::CSUM_PARTIAL) && !complete_checksum(pool, &mut frame) {
        pool.free(frame);
        return Encapsulated::Dropped(DropReason::Malformed);
    }
    match dispatch(hop, neighbours, pool, frame, tunnel, out) {
        Dispatched::Sent => Encapsulated::Sent,
        Dispatched::Held => Encapsulated::Held,
        Dispatched::Dropped(why) => Encapsulated::Dropped(why),
    }
}

/// Finishes the transport checksum of a frame that leaves it to a device: nobody beyond the tunnel does, for
/// the underlay sees only the outer packet. False, and no change, when its place lies outside the frame.
#[inline]
fn complete_checksum(pool: &Pool, frame: &mut Frame) -> bool {
    let (meta, bytes) = pool.parts_mut(frame);
    if !checksum::complete(bytes, meta.csum_start, meta.csum_offset) {
        return false;
    }
    meta.flags.clear(Flags::CSUM_PARTIAL);
    meta.flags.set(Flags::CSUM_VALID);
    (meta.csum_start, meta.csum_offset) = (0, 0);
    true
}

/// Tells the sender how long a packet may be that fits the underlay.
#[cold]
fn refuse(
    tables: &Tables,
    too_big: &mut TooBig,
    hop: &NextHop,
    pool: &mut Pool,
    frame: Frame,
    now_ns: u64,
) -> Encapsulated {
    let mtu_bytes = hop.inner_bytes_max.saturating_sub(ethernet::HEADER_BYTES as u16);
    let attachment = tables.attachment_info(pool.meta(&frame).attachment).copied();
    let message = too_big.process(now_ns, pool, &frame, mtu_bytes);
    pool.free(frame);
    let (Ok(mut message), Some(attachment)) = (message, attachment) else {
        return Encapsulated::TooBig(None);
    };
    match return_to_sender(pool, &mut message, &attachment) {
        Ok(_) => Encapsulated::TooBig(Some(message)),
        Err(_) => {
            pool.free(message);
            Encapsulated::TooBig(None)
        }
    }
}

/// Cuts a super-segment and encapsulates each piece.
fn cut(
    hop: &NextHop,
    neighbours: &mut Neighbours,
    pool: &mut Pool,
    frame: Frame,
    tunnel: &Tunnel,
    out: &mut impl FnMut(&mut Pool, Frame),
) -> Encapsulated {
    let mut count = Segmented::default();
    let mut piece_out =
        |pool: &mut Pool, piece: Frame| match dispatch(hop, neighbours, pool, piece, tunnel, out) {
            Dispatched::Sent => count.sent += 1,
            Dispatched::Held => count.held += 1,
            Dispatched::Dropped(DropReason::Unresolved) => count.unresolved += 1,
            Dispatched::Dropped(_) => count.no_frame += 1,
        };
    let result = segment::segment(pool, &frame, &mut piece_out);
    pool.free(frame);
    match result {
        Ok(_) => Encapsulated::Segmented(count),
        Err(error) => Encapsulated::Dropped(error.reason()),
    }
}

enum Dispatched {
    Sent,
    Held,
    Dropped(DropReason),
}

/// Puts the headers on one frame and sends it, or lets it wait for its neighbour.
fn dispatch(
    hop: &NextHop,
    neighbours: &mut Neighbours,
    pool: &mut Pool,
    mut frame: Frame,
    tunnel: &Tunnel,
    out: &mut impl FnMut(&mut Pool, Frame),
) -> Dispatched {
    let next_hop = pool.meta(&frame).next_hop;
    let resolved = resolve(hop, neighbours, next_hop, tunnel.now_ns);
    let way = Way { hop, next_hop, mac: resolved.unwrap_or(Mac::ZERO) };
    if !way.wrap_one(pool, &mut frame, tunnel.trace, ident(hop, neighbours)) {
        pool.free(frame);
        return Dispatched::Dropped(DropReason::NoFrame);
    }
    if resolved.is_none() {
        return hold(neighbours, pool, frame, next_hop, tunnel.now_ns);
    }
    out(pool, frame);
    Dispatched::Sent
}

#[cold]
fn hold(
    neighbours: &mut Neighbours,
    pool: &mut Pool,
    frame: Frame,
    next_hop: u16,
    now_ns: u64,
) -> Dispatched {
    match neighbours.hold(next_hop, frame, now_ns) {
        Ok(()) => Dispatched::Held,
        Err(frame) => {
            pool.free(frame);
            Dispatched::Dropped(DropReason::Unresolved)
        }
    }
}

/// Writes the neighbour's address into an encapsulated frame.
#[inline(always)]
pub(crate) fn set_destination(pool: &Pool, frame: &mut Frame, mac: Mac) {
    if let Some(destination) = pool.bytes_mut(frame).first_chunk_mut() {
        *destination = mac.0;
    }
}

const IP: usize = ethernet::HEADER_BYTES;

impl Way<'_> {
    /// Copies the first `N` bytes of the template in front of the frame and patches them. The tunnel header
    /// starts at `TUNNEL`.
    #[inline(always)]
    fn write<const N: usize, const TUNNEL: usize>(
        &self,
        pool: &Pool,
        frame: &mut Frame,
        trace: u64,
        ident: u16,
    ) -> bool {
        let Some((meta, bytes)) = pool.prepend_parts(frame, N) else { return false };
        let Some((head, inner)) = bytes.split_first_chunk_mut::<N>() else { return false };
        let Some(template) = self.hop.template.first_chunk::<N>() else { return false };
        *head = *template;
        let class = self.hop.traffic_class(meta.traffic_class);
        match TUNNEL {
            OUTER_V4_BYTES => self.patch_ipv4(head, class, inner.len(), ident),
            OUTER_V6_BYTES => self.patch_ipv6(head, class, inner.len(), meta.flow_hash),
            _ => {}
        }
        if TUNNEL > 0 {
            let udp_at = TUNNEL - udp::HEADER_BYTES;
            head[..6].copy_from_slice(&self.mac.0);
            put16(head, udp_at, source_port(meta.flow_hash));
            put16(head, udp_at + 4, (N - udp_at + inner.len()) as u16);
        }
        self.patch_tunnel(head, TUNNEL, meta, trace);
        meta.egress_port = self.hop.port;
        meta.flags.clear(Flags::PARSED);
        if TUNNEL > 0 && self.hop.outer_checksum {
            self.write_checksum(bytes, TUNNEL - udp::HEADER_BYTES);
        }
        true
    }

    #[inline(always)]
    fn patch_ipv4<const N: usize>(&self, head: &mut [u8; N], class: u8, inner_bytes: usize, ident: u16) {
        let total_bytes = (N - IP + inner_bytes) as u16;
        // As RFC 1624 has it: the template's sum is known, only what differs is added.
        let sum = Checksum::new().u16(self.hop.ip_sum).u16(class.into()).u16(total_bytes).u16(ident);
        head[IP + 1] = class;
        put16(head, IP + 2, total_bytes);
        put16(head, IP + 4, ident);
        put16(head, IP + 10, sum.finish());
    }

    #[inline(always)]
    fn patch_ipv6<const N: usize>(&self, head: &mut [u8; N], class: u8, inner_bytes: usize, flow_hash: u32) {
        const UDP: usize = OUTER_V6_BYTES - udp::HEADER_BYTES;
        // RFC 6438: the flow label carries the inner flow's entropy, as the source port does.
        put32(head, IP, 6 << 28 | u32::from(class) << 20 | flow_hash & 0x000f_ffff);
        put16(head, IP + 4, (N - UDP + inner_bytes) as u16);
    }

    #[inline(always)]
    fn patch_tunnel<const N: usize>(&self, head: &mut [u8; N], tunnel: usize, meta: &Meta, trace: u64) {
        // VXLAN and Geneve hold the network identifier at the same place, with a reserved byte behind it.
        put32(head, tunnel + 4, meta.vni << 8);
        if self.hop.geneve {
            // The epoch is in the template.
            let flow_at = tunnel + geneve::Tidegate::DATA_AT + 4;
            put32(head, flow_at, meta.flow_hash);
            put32(head, flow_at + 4, (trace >> 32) as u32);
            put32(head, flow_at + 8, trace as u32);
        }
    }

    #[inline(never)]
    fn write_checksum(&self, bytes: &mut [u8], udp_at: usize) {
        let Some(datagram) = bytes.get_mut(udp_at..) else { return };
        let pseudo = Checksum::new().u16(self.hop.pseudo_sum).u32(datagram.len() as u32);
        let value = checksum::udp(pseudo.bytes(datagram));
        if let Some(place) = datagram.get_mut(6..8) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }
}

/// RFC 7348, clause 5: "It is recommended that the UDP source port number be calculated using a hash of
/// fields from the inner packet [...] in the dynamic/private port range 49152-65535 [RFC6335]."
#[inline(always)]
fn source_port(flow_hash: u32) -> u16 {
    0xc000 | (flow_hash ^ flow_hash >> 16) as u16 & 0x3fff
}

#[inline(always)]
fn put16<const N: usize>(head: &mut [u8; N], at: usize, value: u16) {
    head[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline(always)]
fn put32<const N: usize>(head: &mut [u8; N], at: usize, value: u32) {
    head[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
