//! Coalescing: consecutive TCP segments towards a tenant become one super-segment.
//!
//! What [`crate::segment`] undoes for frames that leave, this does for frames that arrive: a tenant whose
//! port takes super-segments is spared the cost per frame of its own kernel. The rules are those of Linux's
//! receive offload (`tcp_gro_receive`), made stricter where that costs nothing: only segments that say
//! nothing but ACK and perhaps PSH, of one flow, without a gap, with equal headers and options (timestamps
//! included), equal TTL and ECN field, as long as the first or, at the end, shorter. So cutting the result
//! again gives the very frames that came in.
//!
//! It adds no delay: what is open is flushed at the end of the turn. A segment that stays alone leaves as it
//! came, uncopied. Merging verifies each segment's checksum, unless somebody did, and copies its payload
//! once, into a jumbo frame; a wrong checksum is left to the receiver to find, in a frame of its own.
//!
//! Invariants: frames of one flow leave in the order they came; nothing is held after
//! [`Coalescer::flush`]; at most [`FLOWS_MAX`] flows are open, each of at most 64 KiB.

use arrayvec::ArrayVec;
use frame::{Flags, Frame, GsoKind, Meta, Pool};
use wire::checksum::Checksum;
use wire::protocol;

/// Flows that are merged at a time; one more pushes the oldest out. A batch holds 32 frames, so more flows
/// than this leave little to merge in each.
pub const FLOWS_MAX: usize = 8;

/// An IP packet's length has 16 bits.
const L3_BYTES_MAX: usize = 65_535;

/// Merges the segments of one turn. Flush it before it is dropped: it may hold frames.
#[derive(Debug, Default)]
pub struct Coalescer {
    open: ArrayVec<Open, FLOWS_MAX>,
    merged: u64,
}

/// A flow whose next segment may be merged.
#[derive(Debug)]
struct Open {
    /// The first segment, or the jumbo frame that replaced it. Its IP and TCP headers are those of the
    /// first segment until the flow is closed.
    frame: Frame,
    flow_hash: u32,
    /// Where the next segment must begin.
    next_seq: u32,
    /// Payload of the first segment, and so of every one but the last.
    gso_bytes: u16,
    segments: u16,
    /// The last segment had PSH.
    push: bool,
}

impl Coalescer {
    /// Nothing open.
    pub fn new() -> Coalescer {
        Coalescer::default()
    }

    /// Frames absorbed into another one since the beginning: decision D18's `merged`.
    pub fn merged(&self) -> u64 {
        self.merged
    }

    /// Takes one parsed frame and hands on, in order within each flow, what can no longer grow.
    #[inline]
    pub fn process(&mut self, pool: &mut Pool, frame: Frame, out: &mut impl FnMut(&mut Pool, Frame)) {
        let (meta, bytes) = (pool.meta(&frame), pool.bytes(&frame));
        if meta.proto != protocol::TCP {
            return out(pool, frame);
        }
        let flow_hash = meta.flow_hash;
        let segment = Segment::of(meta, bytes);
        if let Some(at) = self.open.iter().position(|open| open.flow_hash == flow_hash) {
            if let Some(segment) = segment
                && self.open[at].absorb(pool, &frame, segment)
            {
                pool.free(frame);
                self.merged += 1;
                if self.open[at].is_complete(segment) {
                    self.close(at, pool, out);
                }
                return;
            }
            self.close(at, pool, out);
        }
        match segment {
            Some(segment) if !segment.push => {
                if self.open.is_full() {
                    self.close(0, pool, out);
                }
                self.open.push(Open::new(frame, flow_hash, segment));
            }
            _ => out(pool, frame),
        }
    }

    /// Hands on whatever is open, oldest first. Call at the end of every turn.
    pub fn flush(&mut self, pool: &mut Pool, out: &mut impl FnMut(&mut Pool, Frame)) {
        for open in self.open.drain(..) {
            let frame = open.finish(pool);
            out(pool, frame);
        }
    }

    fn close(&mut self, at: usize, pool: &mut Pool, out: &mut impl FnMut(&mut Pool, Frame)) {
        let frame = self.open.remove(at).finish(pool);
        out(pool, frame);
    }
}

/// A frame that may be merged, were there a neighbour.
#[derive(Clone, Copy)]
struct Segment {
    seq: u32,
    payload_bytes: u16,
    push: bool,
}

impl Segment {
    /// `None` for anything but data of an ordinary TCP segment whose headers are in order.
    #[inline]
    fn of(meta: &Meta, bytes: &[u8]) -> Option<Segment> {
        let request = meta.flags.has(Flags::CSUM_PARTIAL) || meta.gso != GsoKind::None;
        if request || !meta.flags.has(Flags::PARSED) || meta.flags.has(Flags::FRAGMENT) {
            return None;
        }
        let (l3, l4, payload) = (usize::from(meta.l3), usize::from(meta.l4), usize::from(meta.payload));
        let ip = bytes.get(l3..l4)?;
        let tcp = bytes.get(l4..payload)?;
        // Padding behind the packet would become data.
        let plain = if meta.flags.has(Flags::IPV6) {
            ip.len() == 40 && be16(ip, 4) + 40 == bytes.len() - l3
        } else {
            ip.len() == 20 && be16(ip, 2) == bytes.len() - l3 && wire::checksum::sum(ip) == 0xffff
        };
        let payload_bytes = bytes.len() - payload;
        let data = (1..=usize::from(u16::MAX)).contains(&payload_bytes);
        if !plain || !data || tcp.len() < TCP_HEADER_BYTES {
            return None;
        }
        // The low half of the data offset byte holds reserved and accurate-ECN bits.
        let flags = tcp[TCP_FLAGS];
        if tcp[TCP_DATA_OFFSET] & 15 != 0 || flags & !PSH != ACK {
            return None;
        }
        let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        Some(Segment { seq, payload_bytes: payload_bytes as u16, push: flags & PSH != 0 })
    }
}

impl Open {
    fn new(frame: Frame, flow_hash: u32, segment: Segment) -> Open {
        let next_seq = segment.seq.wrapping_add(segment.payload_bytes.into());
        Open { frame, flow_hash, next_seq, gso_bytes: segment.payload_bytes, segments: 1, push: false }
    }

    /// Appends a segment's payload. False, and nothing changed, when it may not be appended, its checksum or
    /// that of the first segment is wrong, or no jumbo frame is left.
    fn absorb(&mut self, pool: &mut Pool, frame: &Frame, segment: Segment) -> bool {
        let (meta, bytes) = (pool.meta(&self.frame), pool.bytes(&self.frame));
        let l3_bytes = bytes.len() - usize::from(meta.l3) + usize::from(segment.payload_bytes);
        let fits = segment.payload_bytes <= self.gso_bytes && l3_bytes <= L3_BYTES_MAX;
        let next = segment.seq == self.next_seq;
        if !fits || !next || !self.is_same_flow(meta, bytes, pool.meta(frame), pool.bytes(frame)) {
            return false;
        }
        let done =
            if self.segments == 1 { self.begin(pool, frame) } else { append(pool, &mut self.frame, frame) };
        if done {
            self.next_seq = self.next_seq.wrapping_add(segment.payload_bytes.into());
            self.segments += 1;
            self.push = segment.push;
        }
        done
    }

    /// Replaces the first segment by a jumbo frame with both segments in it.
    fn begin(&mut self, pool: &mut Pool, second: &Frame) -> bool {
        let Some(mut jumbo) = pool.alloc_jumbo() else { return false };
        let head_bytes = usize::from(pool.meta(&self.frame).payload);
        let fits = pool.fill(&mut jumbo, &pool.bytes(&self.frame)[..head_bytes]);
        pool.meta_mut(&mut jumbo).inherit(pool.meta(&self.frame));
        pool.meta_mut(&mut jumbo).cost_bytes = 0;
        if fits && append(pool, &mut jumbo, &self.frame) && append(pool, &mut jumbo, second) {
            pool.free(std::mem::replace(&mut self.frame, jumbo));
            return true;
        }
        pool.free(jumbo);
        false
    }

    /// True when all that both headers say is equal, but for what must differ from one segment to the next.
    fn is_same_flow(&self, meta: &Meta, bytes: &[u8], other_meta: &Meta, other: &[u8]) -> bool {
        let place = |meta: &Meta| (meta.l3, meta.l4, meta.payload, meta.flags.has(Flags::IPV6));
        let way = |meta: &Meta| (meta.egress_port, meta.attachment, meta.vni, meta.volume);
        if place(meta) != place(other_meta) || way(meta) != way(other_meta) {
            return false;
        }
        let (l3, l4, payload) = (usize::from(meta.l3), usize::from(meta.l4), usize::from(meta.payload));
        let ranges = [
            0..l3 + 2,        // Ethernet, tags, version, header length or traffic class, TOS
            l3 + 6..l3 + 10,  // IPv4 flags, TTL, protocol; IPv6 next header, hop limit
            l3 + 12..l4 + 4,  // addresses, ports
            l4 + 8..l4 + 13,  // acknowledgement, data offset
            l4 + 14..l4 + 16, // window
            l4 + 18..payload, // urgent pointer, options
        ];
        let equal = |range: std::ops::Range<usize>| bytes.get(range.clone()) == other.get(range);
        if !ranges.into_iter().all(equal) {
            return false;
        }
        let (ip, other_ip) = (&bytes[l3..l4], &other[l3..l4]);
        if meta.flags.has(Flags::IPV6) {
            return ip[2..4] == other_ip[2..4] && ip[8..12] == other_ip[8..12];
        }
        // RFC 6864, clause 4.1: with DF set (and no fragment) the identification means nothing.
        let atomic = ip[6] & DONT_FRAGMENT != 0;
        atomic || be16(other_ip, 4) as u16 == (be16(ip, 4) as u16).wrapping_add(self.segments)
    }

    fn is_complete(&self, last: Segment) -> bool {
        last.push || last.payload_bytes < self.gso_bytes
    }

    /// The frame to hand on. Of more than one segment: a super-segment as a kernel would make it, with its
    /// pseudo-header summed and the rest of the checksum left to do.
    fn finish(self, pool: &Pool) -> Frame {
        let mut frame = self.frame;
        if self.segments == 1 {
            return frame;
        }
        let (meta, bytes) = pool.parts_mut(&mut frame);
        let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
        let l4_bytes = (bytes.len() - l4) as u32;
        let ipv6 = meta.flags.has(Flags::IPV6);
        let pseudo = Checksum::new().u16(protocol::TCP.into()).u32(l4_bytes);
        let pseudo = if ipv6 {
            put16(bytes, l3 + 4, l4_bytes as u16);
            pseudo.bytes(&bytes[l3 + 8..l3 + 40])
        } else {
            put16(bytes, l3 + 2, (l4 - l3) as u16 + l4_bytes as u16);
            put16(bytes, l3 + 10, 0);
            let check = Checksum::new().bytes(&bytes[l3..l4]).finish();
            put16(bytes, l3 + 10, check);
            pseudo.bytes(&bytes[l3 + 12..l3 + 20])
        };
        put16(bytes, l4 + TCP_CHECKSUM, pseudo.folded());
        if self.push {
            bytes[l4 + TCP_FLAGS] |= PSH;
        }
        meta.flags.clear(Flags::CSUM_VALID);
        meta.flags.set(Flags::CSUM_PARTIAL);
        (meta.csum_start, meta.csum_offset) = (meta.l4, TCP_CHECKSUM as u16);
        meta.gso = if ipv6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        meta.gso_bytes = self.gso_bytes;
        frame
    }
}

/// Copies a segment's payload behind `jumbo`, and its identity in the pipeline. False, and no change, when
/// the segment's checksum is wrong or there is no room.
fn append(pool: &Pool, jumbo: &mut Frame, segment: &Frame) -> bool {
    let (from_meta, from) = (pool.meta(segment), pool.bytes(segment));
    let payload = &from[from_meta.payload.into()..];
    let len = pool.meta(jumbo).len();
    if !is_sound(from_meta, from) || !pool.set_len(jumbo, len + payload.len()) {
        return false;
    }
    pool.bytes_mut(jumbo)[len..].copy_from_slice(payload);
    let meta = pool.meta_mut(jumbo);
    meta.cost_bytes = meta.cost_bytes.wrapping_add(from_meta.cost_bytes);
    // The last number: capability F8 asks whether the last frame of a source has been through.
    (meta.source, meta.id) = (from_meta.source, from_meta.id);
    true
}

/// The TCP checksum is right. Taken before the copy, which then finds the payload in the cache.
fn is_sound(meta: &Meta, bytes: &[u8]) -> bool {
    if meta.flags.has(Flags::CSUM_VALID) {
        return true;
    }
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let addresses = if meta.flags.has(Flags::IPV6) { l3 + 8..l3 + 40 } else { l3 + 12..l3 + 20 };
    let l4_bytes = (bytes.len() - l4) as u32;
    let pseudo = Checksum::new().bytes(&bytes[addresses]).u16(protocol::TCP.into()).u32(l4_bytes);
    pseudo.bytes(&bytes[l4..]).folded() == 0xffff
}

#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

#[inline(always)]
fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DONT_FRAGMENT: u8 = 0x40;
const TCP_HEADER_BYTES: usize = 20;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;

#[cfg(test)]
mod tests;
