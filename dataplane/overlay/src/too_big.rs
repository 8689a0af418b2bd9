//! "Too big" messages: a tenant learns how long a packet may be to fit the tunnel.
//!
//! The outer headers take room that the tenant does not know of. A packet that no longer fits is dropped,
//! and its sender is told the length that does: ICMP "fragmentation needed and DF set" (RFC 792, RFC 1191)
//! or ICMPv6 "packet too big" (RFC 4443, clause 3.2). Path MTU discovery does the rest.
//!
//! A gateway that bridges has no address of its own in the tenant's network, so the message comes from the
//! packet's destination and from its Ethernet address, as Linux's bridged tunnels have it
//! (`iptunnel_pmtud_build_icmp`): the tenant's anti-spoof and reverse path checks expect nobody else there.
//!
//! An IPv4 packet without DF is dropped without a message. The gateway does not fragment: RFC 7348, clause
//! 4.3, forbids it to VTEPs for what they encapsulate, and inner fragments would cost every volume its
//! classification. Nor may it report: code 4 says "DF set" (RFC 792), and RFC 1812, clause 5.2.7.1, knows no
//! other. The drop is counted like any other under [`frame::DropReason::TooBig`].
//!
//! Invariants: never a message about a message, a fragment whose kind cannot be known, or anything sent to
//! or from more than one host (RFC 1122, clause 3.2.2; RFC 4443, clause 2.4 e); no message is longer than
//! the standards' minimum packet; a flood of long packets costs a few comparisons each, not a frame.

use std::net::{Ipv4Addr, Ipv6Addr};

use frame::{Flags, Frame, Meta, Pool};
use wire::{icmp4, icmp6, ipv4, ipv6, protocol};

/// Limits messages per attachment and builds them.
#[derive(Debug)]
pub struct TooBig {
    /// Per bucket: when the next message would be due if they came evenly, ns (the generic cell rate
    /// algorithm: a token bucket in one word). Attachments share buckets, so a tenant can at worst silence
    /// its share of 1 in [`BUCKETS`].
    due_ns: Box<[u64; BUCKETS]>,
}

/// Why nobody is told. The packet is dropped all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// Not IP, or nobody looked.
    #[error("not a parsed IP packet")]
    NotIp,
    /// IPv4 without DF.
    #[error("the sender allowed fragmentation, which the tunnel does not offer; set DF or lower the MTU")]
    MayFragment,
    /// A fragment that must not be answered.
    #[error("a fragment")]
    Fragment,
    /// An ICMP error must not cause another.
    #[error("an ICMP error or redirect")]
    IcmpError,
    /// Sent to many, or from an address that is not one host's.
    #[error("not from one host to one host")]
    NotUnicast,
    /// Below what every link must carry (RFC 791: 68 bytes; RFC 8200, clause 5: 1280 bytes).
    #[error(
        "the tunnel carries {mtu_bytes} bytes, less than the standard's minimum; raise the underlay's MTU"
    )]
    BelowMinimum {
        /// Longest IP packet that fits.
        mtu_bytes: u16,
    },
    /// Enough messages for this attachment at this time (RFC 1812, clause 4.3.2.8; RFC 4443, clause 2.4 f).
    #[error("rate limited")]
    RateLimited,
    /// The pool is dry.
    #[error("no free frame")]
    NoFrame,
}

impl Default for TooBig {
    fn default() -> TooBig {
        TooBig { due_ns: Box::new([0; BUCKETS]) }
    }
}

impl TooBig {
    /// Everybody may be told at once.
    pub fn new() -> TooBig {
        TooBig::default()
    }

    /// The message for the sender of `frame`, a tenant's Ethernet frame that is too long for the tunnel: a
    /// frame for the port that it came in by. `mtu_bytes` is the longest IP packet that fits. The caller
    /// drops `frame` in any case, and counts the message as generated.
    ///
    /// For a super-segment, say it when even its pieces do not fit ([`crate::segment::piece_bytes_max`]).
    pub fn process(
        &mut self,
        now_ns: u64,
        pool: &mut Pool,
        frame: &Frame,
        mtu_bytes: u16,
    ) -> Result<Frame, Silence> {
        let (meta, bytes) = (pool.meta(frame), pool.bytes(frame));
        if !meta.flags.has(Flags::PARSED) {
            return Err(Silence::NotIp);
        }
        let answer = if meta.flags.has(Flags::IPV6) {
            Answer::v6(meta, bytes, mtu_bytes)?
        } else {
            Answer::v4(meta, bytes, mtu_bytes)?
        };
        self.admit(now_ns, meta.attachment)?;
        let (port, attachment) = (meta.ingress_port, meta.attachment);
        let mut message = pool.alloc().ok_or(Silence::NoFrame)?;
        answer.fill(pool, frame, &mut message);
        let meta = pool.meta_mut(&mut message);
        (meta.egress_port, meta.attachment) = (port, attachment);
        Ok(message)
    }

    fn admit(&mut self, now_ns: u64, attachment: u32) -> Result<(), Silence> {
        let due_ns = &mut self.due_ns[attachment as usize % BUCKETS];
        if *due_ns > now_ns.saturating_add((BURST - 1) * INTERVAL_NS) {
            return Err(Silence::RateLimited);
        }
        *due_ns = now_ns.max(*due_ns).saturating_add(INTERVAL_NS);
        Ok(())
    }
}

/// Buckets that attachments share.
const BUCKETS: usize = 256;
/// Messages at once.
const BURST: u64 = 16;
/// Between messages in the long run: 100 per second and bucket.
const INTERVAL_NS: u64 = 10_000_000;
/// RFC 1812, clause 4.3.2.3: as much of the packet as fits 576 bytes.
const MESSAGE_V4_BYTES_MAX: usize = 576;
/// RFC 4443, clause 3.2: as much as fits the minimum MTU.
const MESSAGE_V6_BYTES_MAX: usize = 1280;
const MTU_V4_BYTES_MIN: u16 = 68;
const MTU_V6_BYTES_MIN: u16 = 1280;
/// RFC 1700's default; Linux copies the packet's own, which a tenant could have set to 1.
const HOPS: u8 = 64;
const REDIRECT_V6: u8 = 137;

/// A message whose sender and receiver are known to be fit for one.
enum Answer {
    V4 { src: Ipv4Addr, dst: Ipv4Addr, mtu_bytes: u16 },
    V6 { src: Ipv6Addr, dst: Ipv6Addr, mtu_bytes: u16 },
}

impl Answer {
    fn v4(meta: &Meta, bytes: &[u8], mtu_bytes: u16) -> Result<Answer, Silence> {
        let packet = bytes.get(meta.l3.into()..).ok_or(Silence::NotIp)?;
        let ip = ipv4::View::parse(packet).map_err(|_| Silence::NotIp)?;
        let (src, dst) = (ip.src(), ip.dst());
        if mtu_bytes < MTU_V4_BYTES_MIN {
            return Err(Silence::BelowMinimum { mtu_bytes });
        }
        if !ip.dont_fragment() {
            return Err(Silence::MayFragment);
        }
        if ip.is_fragment() {
            return Err(Silence::Fragment);
        }
        if is_group(bytes) || !is_host_v4(src) || !is_host_v4(dst) {
            return Err(Silence::NotUnicast);
        }
        // RFC 1122, clause 3.2.2: the error types; the others are queries and may be answered.
        let error = matches!(ip.payload().first(), None | Some(3 | 4 | 5 | 11 | 12));
        if ip.protocol() == protocol::ICMP && error {
            return Err(Silence::IcmpError);
        }
        Ok(Answer::V4 { src: dst, dst: src, mtu_bytes })
    }

    fn v6(meta: &Meta, bytes: &[u8], mtu_bytes: u16) -> Result<Answer, Silence> {
        let packet = bytes.get(meta.l3.into()..).ok_or(Silence::NotIp)?;
        let ip = ipv6::View::parse(packet).map_err(|_| Silence::NotIp)?;
        let (src, dst) = (ip.src(), ip.dst());
        if mtu_bytes < MTU_V6_BYTES_MIN {
            return Err(Silence::BelowMinimum { mtu_bytes });
        }
        // RFC 4443, clause 2.4 e.3, would allow a message about a multicast packet, but there is no address
        // that it could come from.
        if is_group(bytes) || !is_host_v6(src) || !is_host_v6(dst) {
            return Err(Silence::NotUnicast);
        }
        if ip.protocol() == protocol::ICMPV6 {
            if ip.transport().fragment {
                return Err(Silence::Fragment);
            }
            // Types below 128 are errors (RFC 4443, clause 2.1).
            if ip.payload().first().is_none_or(|&kind| kind < 128 || kind == REDIRECT_V6) {
                return Err(Silence::IcmpError);
            }
        }
        Ok(Answer::V6 { src: dst, dst: src, mtu_bytes })
    }

    /// Writes the message: the packet's own Ethernet header turned round, IP, ICMP, and the packet's head.
    fn fill(&self, pool: &Pool, about: &Frame, message: &mut Frame) {
        let l3 = usize::from(pool.meta(about).l3);
        let bytes = pool.bytes(about);
        let (ip_bytes, proto, bytes_max) = match self {
            Answer::V4 { .. } => (ipv4::HEADER_BYTES, protocol::ICMP, MESSAGE_V4_BYTES_MAX),
            Answer::V6 { .. } => (ipv6::HEADER_BYTES, protocol::ICMPV6, MESSAGE_V6_BYTES_MAX),
        };
        let head_bytes = ip_bytes + icmp4::HEADER_BYTES;
        let quote = &bytes[l3..bytes.len().min(l3 + bytes_max - head_bytes)];
        let fits = pool.set_len(message, l3 + head_bytes + quote.len());
        debug_assert!(fits, "at most 1280 bytes and an Ethernet header");
        let (meta, out) = pool.parts_mut(message);
        (meta.l3, meta.l4) = (l3 as u16, (l3 + ip_bytes) as u16);
        meta.payload = meta.l4;
        meta.proto = proto;
        meta.flags.set(Flags::PARSED);
        meta.flags.set(Flags::CSUM_VALID);
        let (link, packet) = out.split_at_mut(l3);
        link.copy_from_slice(&bytes[..l3]);
        link[..6].copy_from_slice(&bytes[6..12]);
        link[6..12].copy_from_slice(&bytes[..6]);
        packet[head_bytes..].copy_from_slice(quote);
        let (ip, icmp) = packet.split_at_mut(ip_bytes);
        match *self {
            Answer::V4 { src, dst, mtu_bytes } => {
                emit_v4(ip, src, dst, icmp.len());
                let written = icmp4::Message::FragmentationNeeded { mtu_bytes }.emit(icmp);
                debug_assert!(written.is_ok(), "an ICMP header fits its 8 bytes");
            }
            Answer::V6 { src, dst, mtu_bytes } => {
                meta.flags.set(Flags::IPV6);
                emit_v6(ip, src, dst, icmp.len());
                let message = icmp6::Message::PacketTooBig { mtu_bytes: mtu_bytes.into() };
                let written = message.emit(icmp, src, dst);
                debug_assert!(written.is_ok(), "an ICMPv6 header fits its 8 bytes");
            }
        }
    }
}

fn emit_v4(out: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr, payload_bytes: usize) {
    let header = ipv4::Header {
        dscp: 0,
        ecn: 0,
        ident: 0,
        dont_fragment: true,
        ttl: HOPS,
        protocol: protocol::ICMP,
        src,
        dst,
        options: &[],
        payload_bytes,
    };
    let written = header.emit(out);
    debug_assert!(written.is_ok(), "a header fits its 20 bytes");
}

fn emit_v6(out: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr, payload_bytes: usize) {
    let header = ipv6::Header {
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        next_header: protocol::ICMPV6,
        hop_limit: HOPS,
        src,
        dst,
        payload_bytes,
    };
    let written = header.emit(out);
    debug_assert!(written.is_ok(), "a header fits its 40 bytes");
}

/// The Ethernet destination is a group, broadcast included.
fn is_group(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| first & 1 != 0)
}

/// RFC 1122, clause 3.2.2: "does not define a single host -- e.g., a zero address, a loopback address, a
/// broadcast address, a multicast address, or a Class E address".
fn is_host_v4(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

fn is_host_v6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

#[cfg(test)]
mod tests;
