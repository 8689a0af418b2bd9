//! One pass over a whole frame: everything that classification needs, in one flat record.
//!
//! This is the first thing done to every packet, so the common shapes (TCP or UDP over IPv4 without options
//! or IPv6 without extension headers, with at most one tag) are read at fixed offsets whose bounds are
//! checked once; all other shapes, and everything that is wrong, go through the views, out of line. Both
//! ways give the same result (tested against each other).
//!
//! A frame may be longer than its IP packet: short frames are padded to 60 bytes, and super-segments carry
//! whatever their port appended. `l3_end` is where the packet ends. Header checksums are not verified here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::field::{array, be16, be32, be128};
use crate::{EtherType, Mac, ParseError, VlanId, ethernet, ipv4, ipv6, protocol, udp};

/// Which IP a frame carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpKind {
    /// None: ARP, for instance.
    #[default]
    None,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The headers of a frame. Offsets count from the first byte of the frame.
///
/// Without IP, `l4`, `payload` and `l3_end` all mean what follows the Ethernet header: `l4` and `payload`
/// equal `l3`, and `l3_end` is the length of the frame. Fragments, and protocols other than TCP and UDP,
/// have no ports, and their `payload` equals `l4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Source address as a number; IPv4 in the low 32 bits. See [`Parsed::src_ip`].
    pub src: u128,
    /// Destination address as a number; IPv4 in the low 32 bits. See [`Parsed::dst_ip`].
    pub dst: u128,
    /// Where the IP packet ends; bytes beyond are padding. May exceed 16 bits.
    pub l3_end: u32,
    /// Mixed from addresses, protocol and ports; see [`flow_hash`].
    pub flow_hash: u32,
    /// Start of the IP header, or of whatever follows Ethernet and its tags.
    pub l3: u16,
    /// Start of the transport header, behind IPv4 options and IPv6 extension headers.
    pub l4: u16,
    /// Start of the data after a TCP or UDP header.
    pub payload: u16,
    /// Source port of TCP or UDP, else 0.
    pub src_port: u16,
    /// Destination port of TCP or UDP, else 0.
    pub dst_port: u16,
    /// Type after all tags.
    pub ethertype: EtherType,
    /// VLAN of the outermost tag, if that names one.
    pub vlan: Option<VlanId>,
    /// Destination Ethernet address.
    pub dst_mac: Mac,
    /// Source Ethernet address.
    pub src_mac: Mac,
    /// VLAN tags, 0 to 2.
    pub tags: u8,
    /// Which IP.
    pub ip: IpKind,
    /// Protocol after IPv6 extension headers (see [`protocol`]).
    pub proto: u8,
    /// Differentiated services code point.
    pub dscp: u8,
    /// Explicit congestion notification bits.
    pub ecn: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Part of a packet, the first part included.
    pub fragment: bool,
    /// TCP or UDP with its header: the ports are the packet's.
    pub has_ports: bool,
}

impl Parsed {
    /// Source address; `None` without IP.
    pub fn src_ip(&self) -> Option<IpAddr> {
        self.address(self.src)
    }

    /// Destination address; `None` without IP.
    pub fn dst_ip(&self) -> Option<IpAddr> {
        self.address(self.dst)
    }

    /// Bytes of the IP packet, header included (without IP: bytes after the Ethernet header).
    #[inline(always)]
    pub fn l3_bytes(&self) -> u32 {
        self.l3_end - u32::from(self.l3)
    }

    /// Bytes of data after the transport header.
    #[inline(always)]
    pub fn payload_bytes(&self) -> u32 {
        self.l3_end - u32::from(self.payload)
    }

    fn address(&self, bits: u128) -> Option<IpAddr> {
        match self.ip {
            IpKind::None => None,
            IpKind::V4 => Some(Ipv4Addr::from_bits(bits as u32).into()),
            IpKind::V6 => Some(Ipv6Addr::from_bits(bits).into()),
        }
    }
}

/// Parses a frame in one pass. Frames that are not IP parse as far as Ethernet.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Parsed, ParseError> {
    match parse_plain(frame) {
        Some(parsed) => Ok(parsed),
        None => parse_uncommon(frame),
    }
}

/// The commonest shape alone: untagged, IPv4 without options, not a fragment, TCP or UDP, nothing wrong. For
/// a caller that gives it code of its own and calls [`parse`](parse()) on `None`; the result then need not
/// meet that of the other shapes in memory.
#[inline(always)]
pub fn parse_plain(frame: &[u8]) -> Option<Parsed> {
    plain_ipv4(frame, UNTAGGED)
}

/// IPv6, and one 802.1Q tag, are worth a quick way too, but not in every caller's code.
#[inline(never)]
fn parse_uncommon(frame: &[u8]) -> Result<Parsed, ParseError> {
    let plain = plain_ipv6(frame, UNTAGGED)
        .or_else(|| plain_ipv4(frame, TAGGED))
        .or_else(|| plain_ipv6(frame, TAGGED));
    match plain {
        Some(parsed) => Ok(parsed),
        None => parse_any(frame),
    }
}

const UNTAGGED: usize = ethernet::HEADER_BYTES;
const TAGGED: usize = ethernet::HEADER_BYTES + ethernet::TAG_BYTES;
const TCP_HEADER_BYTES: usize = 20;

/// IPv4 at `l3` without options, not a fragment, TCP or UDP, nothing wrong; else `None`.
#[inline(always)]
fn plain_ipv4(frame: &[u8], l3: usize) -> Option<Parsed> {
    let (link, vlan, head) =
        plain_ethernet::<{ ipv4::HEADER_BYTES + udp::HEADER_BYTES }>(frame, l3, EtherType::IPV4)?;
    let whole = be16(head, 6) & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) == 0;
    if head[0] != 0x45 || !whole {
        return None;
    }
    let l3_end = l3 + usize::from(be16(head, 2));
    let proto = head[9];
    let (src, dst) = (be32(head, 12), be32(head, 16));
    let (payload, ports) = plain_transport(frame, l3 + ipv4::HEADER_BYTES, l3_end, proto)?;
    Some(Parsed {
        src: u128::from(src),
        dst: u128::from(dst),
        l3_end: l3_end as u32,
        flow_hash: hash_v4(src, dst, ports, proto),
        l4: (l3 + ipv4::HEADER_BYTES) as u16,
        payload: payload as u16,
        src_port: (ports >> 16) as u16,
        dst_port: ports as u16,
        l3: l3 as u16,
        ethertype: EtherType::IPV4,
        vlan,
        dst_mac: Mac(array(link, 0)),
        src_mac: Mac(array(link, 6)),
        tags: u8::from(l3 == TAGGED),
        ip: IpKind::V4,
        proto,
        dscp: head[1] >> 2,
        ecn: head[1] & 3,
        ttl: head[8],
        fragment: false,
        has_ports: true,
    })
}

/// IPv6 at `l3` without extension headers, TCP or UDP, nothing wrong; else `None`.
#[inline(always)]
fn plain_ipv6(frame: &[u8], l3: usize) -> Option<Parsed> {
    let (link, vlan, head) =
        plain_ethernet::<{ ipv6::HEADER_BYTES + udp::HEADER_BYTES }>(frame, l3, EtherType::IPV6)?;
    if head[0] >> 4 != 6 {
        return None;
    }
    let l3_end = l3 + ipv6::HEADER_BYTES + usize::from(be16(head, 4));
    let proto = head[6];
    let (src, dst) = (be128(head, 8), be128(head, 24));
    let (payload, ports) = plain_transport(frame, l3 + ipv6::HEADER_BYTES, l3_end, proto)?;
    Some(Parsed {
        src,
        dst,
        l3_end: l3_end as u32,
        flow_hash: hash_v6(src, dst, ports, proto),
        l4: (l3 + ipv6::HEADER_BYTES) as u16,
        payload: payload as u16,
        src_port: (ports >> 16) as u16,
        dst_port: ports as u16,
        l3: l3 as u16,
        ethertype: EtherType::IPV6,
        vlan,
        dst_mac: Mac(array(link, 0)),
        src_mac: Mac(array(link, 6)),
        tags: u8::from(l3 == TAGGED),
        ip: IpKind::V6,
        proto,
        dscp: ipv6::traffic_class(head) >> 2,
        ecn: ipv6::traffic_class(head) & 3,
        ttl: head[7],
        fragment: false,
        has_ports: true,
    })
}

/// The Ethernet header and VLAN of a frame that carries `ethertype` at `l3`, [`UNTAGGED`] or [`TAGGED`], and
/// the `N` bytes there, which hold all that is read at fixed places: one check of the length for all of it.
#[inline(always)]
fn plain_ethernet<const N: usize>(
    frame: &[u8],
    l3: usize,
    ethertype: EtherType,
) -> Option<(&[u8; ethernet::HEADER_BYTES], Option<VlanId>, &[u8; N])> {
    let head: &[u8; N] = frame.get(l3..)?.first_chunk()?;
    let link: &[u8; ethernet::HEADER_BYTES] = frame.first_chunk()?;
    let mut vlan = None;
    let mut found = be16(link, 12);
    if l3 == TAGGED {
        let tag: &[u8; ethernet::TAG_BYTES] = frame.get(UNTAGGED..)?.first_chunk()?;
        vlan = VlanId::new(be16(tag, 0) & 0x0fff);
        if found != EtherType::VLAN.0 || vlan.is_none() {
            return None;
        }
        found = be16(tag, 2);
    }
    (found == ethertype.0).then_some((link, vlan, head))
}

/// Start of the data, and both ports as they stand, of TCP or UDP between `l4` and `l3_end`.
#[inline(always)]
fn plain_transport(frame: &[u8], l4: usize, l3_end: usize, proto: u8) -> Option<(usize, u32)> {
    let bytes = frame.get(l4..)?;
    let head: &[u8; udp::HEADER_BYTES] = bytes.first_chunk()?;
    let (payload, end) = if proto == protocol::TCP {
        let payload = l4 + usize::from(*bytes.get(12)? >> 4) * 4;
        (payload, payload)
    } else {
        (l4 + udp::HEADER_BYTES, l4 + usize::from(be16(head, 4)))
    };
    let header_bytes_min = match proto {
        protocol::TCP => TCP_HEADER_BYTES,
        protocol::UDP => udp::HEADER_BYTES,
        _ => return None,
    };
    let sound = end >= l4 + header_bytes_min && end <= l3_end && l3_end <= frame.len();
    sound.then_some((payload, be32(head, 0)))
}

/// Every shape, through the views.
#[cold]
#[inline(never)]
fn parse_any(frame: &[u8]) -> Result<Parsed, ParseError> {
    let ether = ethernet::View::parse(frame)?;
    let l3 = ether.header_bytes() as u16;
    let mut parsed = Parsed {
        l3,
        l4: l3,
        payload: l3,
        l3_end: u32::try_from(frame.len()).unwrap_or(u32::MAX),
        ethertype: ether.ethertype(),
        vlan: ether.tag().and_then(|tag| tag.vlan),
        tags: u8::from(ether.tag().is_some()) + u8::from(ether.inner_tag().is_some()),
        dst_mac: ether.dst(),
        src_mac: ether.src(),
        ..Parsed::default()
    };
    let payload = match ether.ethertype() {
        EtherType::IPV4 => parsed.ipv4(&ipv4::View::parse(ether.payload())?),
        EtherType::IPV6 => parsed.ipv6(&ipv6::View::parse(ether.payload())?),
        _ => return Ok(parsed),
    };
    if !parsed.fragment {
        parsed.transport(payload)?;
    }
    parsed.flow_hash =
        flow_hash(parsed.ip, parsed.src, parsed.dst, parsed.proto, parsed.src_port, parsed.dst_port);
    Ok(parsed)
}

impl Parsed {
    fn ipv4<'a>(&mut self, ip: &ipv4::View<'a>) -> &'a [u8] {
        self.ip = IpKind::V4;
        self.src = u128::from(ip.src().to_bits());
        self.dst = u128::from(ip.dst().to_bits());
        (self.dscp, self.ecn, self.ttl) = (ip.dscp(), ip.ecn(), ip.ttl());
        (self.proto, self.fragment) = (ip.protocol(), ip.is_fragment());
        self.end_l3(ip.header_bytes(), ip.payload())
    }

    fn ipv6<'a>(&mut self, ip: &ipv6::View<'a>) -> &'a [u8] {
        self.ip = IpKind::V6;
        self.src = ip.src().to_bits();
        self.dst = ip.dst().to_bits();
        (self.dscp, self.ecn, self.ttl) = (ip.dscp(), ip.ecn(), ip.hop_limit());
        (self.proto, self.fragment) = (ip.protocol(), ip.transport().fragment);
        self.end_l3(ip.header_bytes(), ip.payload())
    }

    /// `header_bytes` is at most 40 + 8 * 2048, so the offsets fit 16 bits.
    fn end_l3<'a>(&mut self, header_bytes: usize, payload: &'a [u8]) -> &'a [u8] {
        self.l4 = self.l3 + header_bytes as u16;
        self.payload = self.l4;
        self.l3_end = u32::from(self.l4) + payload.len() as u32;
        payload
    }

    fn transport(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        let header_bytes = match self.proto {
            protocol::TCP => {
                let head: &[u8; TCP_HEADER_BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
                let header_bytes = usize::from(head[12] >> 4) * 4;
                if header_bytes < TCP_HEADER_BYTES {
                    return Err(ParseError::Malformed);
                }
                if header_bytes > bytes.len() {
                    return Err(ParseError::Truncated);
                }
                (self.src_port, self.dst_port) = (be16(head, 0), be16(head, 2));
                header_bytes
            }
            protocol::UDP => {
                let datagram = udp::View::parse(bytes)?;
                (self.src_port, self.dst_port) = (datagram.src_port(), datagram.dst_port());
                udp::HEADER_BYTES
            }
            _ => 0,
        };
        self.payload = self.l4 + header_bytes as u16;
        self.has_ports = header_bytes > 0;
        Ok(())
    }
}

/// Hash of a flow for spreading it over paths and workers: one or three wide multiplications, whose halves
/// are mixed. Not keyed: whoever chooses the headers can choose the hash, so it must not index a table
/// that degrades with collisions.
#[inline]
pub fn flow_hash(ip: IpKind, src: u128, dst: u128, proto: u8, src_port: u16, dst_port: u16) -> u32 {
    let ports = u32::from(src_port) << 16 | u32::from(dst_port);
    match ip {
        IpKind::V6 => hash_v6(src, dst, ports, proto),
        _ => hash_v4(src as u32, dst as u32, ports, proto),
    }
}

#[inline(always)]
fn hash_v4(src: u32, dst: u32, ports: u32, proto: u8) -> u32 {
    hash_words(u64::from(src) << 32 | u64::from(dst), ports, proto)
}

#[inline(always)]
fn hash_v6(src: u128, dst: u128, ports: u32, proto: u8) -> u32 {
    let src = mix(src as u64 ^ KEYS[2], (src >> 64) as u64 ^ KEYS[1]);
    let dst = mix(dst as u64 ^ KEYS[1], (dst >> 64) as u64 ^ KEYS[0]);
    hash_words(src.rotate_left(32) ^ dst, ports, proto)
}

#[inline(always)]
fn hash_words(addresses: u64, ports: u32, proto: u8) -> u32 {
    let mixed = mix(addresses ^ KEYS[0], (u64::from(ports) << 8 | u64::from(proto)) ^ KEYS[1]);
    (mixed ^ mixed >> 32) as u32
}

/// Odd constants with as many ones as zeros.
const KEYS: [u64; 3] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3];

/// Both halves of the product of two words.
#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests;
