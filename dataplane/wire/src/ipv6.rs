//! IPv6 (RFC 8200), with its extension headers walked to the transport.

use std::net::Ipv6Addr;

use crate::field::{array, be16, be32, be128, put, put16, put32};
use crate::protocol::{AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, NO_NEXT_HEADER, ROUTING};
use crate::{EmitError, ParseError};

/// The fixed header.
pub const HEADER_BYTES: usize = 40;
/// Extension headers that are followed. RFC 8200 clause 4.1 names seven, one of them twice at most.
pub const EXTENSIONS_MAX: usize = 8;

/// A checked packet.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    transport: Transport,
    payload: &'a [u8],
}

/// Where the extension headers end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The first next-header value that is not a followed extension header.
    pub protocol: u8,
    /// Length of all extension headers.
    pub extension_bytes: usize,
    /// The packet is part of one, the first part included; what follows is no transport header.
    pub fragment: bool,
}

impl<'a> View<'a> {
    /// Checks `bytes`, the payload of Ethernet. It may be longer than the packet (padding).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(ParseError::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(ParseError::Malformed);
        }
        let payload_bytes = usize::from(be16(header, 4));
        // RFC 2675 clause 3: "The Payload Length field in the IPv6 header must be set to zero in every
        // packet that carries the Jumbo Payload option." Such packets are refused, and so is a zero that
        // leaves out a promised header.
        if payload_bytes == 0 && header[6] != NO_NEXT_HEADER {
            return Err(ParseError::Malformed);
        }
        let payload = rest.get(..payload_bytes).ok_or(ParseError::Truncated)?;
        let transport = walk_extensions(header[6], payload)?;
        let payload = payload.get(transport.extension_bytes..).ok_or(ParseError::Truncated)?;
        Ok(Self { header, transport, payload })
    }

    /// Length of the fixed and the extension headers.
    pub fn header_bytes(&self) -> usize {
        HEADER_BYTES + self.transport.extension_bytes
    }

    /// Differentiated services code point (RFC 2474).
    pub fn dscp(&self) -> u8 {
        traffic_class(self.header) >> 2
    }

    /// Explicit congestion notification (RFC 3168).
    pub fn ecn(&self) -> u8 {
        traffic_class(self.header) & 3
    }

    /// Flow label, 20 bits.
    pub fn flow_label(&self) -> u32 {
        be32(self.header, 0) & 0x000f_ffff
    }

    /// Length of everything after the fixed header.
    pub fn payload_bytes(&self) -> u16 {
        be16(self.header, 4)
    }

    /// Hop limit.
    pub fn hop_limit(&self) -> u8 {
        self.header[7]
    }

    /// What the extension headers lead to.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Protocol after the extension headers (see [`protocol`](crate::protocol)).
    pub fn protocol(&self) -> u8 {
        self.transport.protocol
    }

    /// Source address.
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(be128(self.header, 8))
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(be128(self.header, 24))
    }

    /// The data after the extension headers; Ethernet padding is cut off.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

#[inline(always)]
pub(crate) fn traffic_class<const N: usize>(header: &[u8; N]) -> u8 {
    (be16(header, 0) >> 4) as u8
}

/// Walks `payload`, everything after the fixed header, from its first next-header value.
pub(crate) fn walk_extensions(first: u8, payload: &[u8]) -> Result<Transport, ParseError> {
    let mut at = Transport { protocol: first, extension_bytes: 0, fragment: false };
    for count in 0..=EXTENSIONS_MAX {
        if !is_extension(at.protocol) || at.fragment {
            return Ok(at);
        }
        if count == EXTENSIONS_MAX {
            break;
        }
        // RFC 8200 clause 4.1: "... except for the Hop-by-Hop Options header, which is restricted to appear
        // immediately after an IPv6 header only."
        if at.protocol == HOP_BY_HOP && count != 0 {
            return Err(ParseError::Malformed);
        }
        let rest = payload.get(at.extension_bytes..).ok_or(ParseError::Truncated)?;
        let head: &[u8; 8] = rest.first_chunk().ok_or(ParseError::Truncated)?;
        let len_bytes = match at.protocol {
            FRAGMENT => {
                // RFC 6946 clause 4: a fragment header with offset 0 and M 0 is an "atomic fragment" and
                // is processed as a whole packet.
                at.fragment = be16(head, 2) & 0xfff9 != 0;
                8
            }
            // RFC 4302 clause 2.2: the length "in 32-bit words (4-byte units), minus "2"".
            AUTHENTICATION => (usize::from(head[1]) + 2) * 4,
            // RFC 8200 clause 4.3: "Length ... in 8-octet units, not including the first 8 octets."
            _ => (usize::from(head[1]) + 1) * 8,
        };
        if len_bytes > rest.len() {
            return Err(ParseError::Truncated);
        }
        at.protocol = head[0];
        at.extension_bytes += len_bytes;
    }
    Err(ParseError::TooManyHeaders)
}

#[inline(always)]
pub(crate) const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// What [`Header::emit`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Differentiated services code point, 6 bits.
    pub dscp: u8,
    /// Explicit congestion notification, 2 bits.
    pub ecn: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Protocol of the payload, or the first extension header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// Length of everything after the fixed header.
    pub payload_bytes: usize,
}

impl Header {
    /// Writes the fixed header to the front of `out`; returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let payload_bytes = u16::try_from(self.payload_bytes).map_err(|_| EmitError::OutOfRange)?;
        let header: &mut [u8; HEADER_BYTES] =
            out.first_chunk_mut().ok_or(EmitError::NoRoom { needed_bytes: HEADER_BYTES })?;
        let class = u32::from(self.dscp << 2 | self.ecn & 3);
        put32(header, 0, 6 << 28 | class << 20 | self.flow_label & 0x000f_ffff);
        put16(header, 4, payload_bytes);
        header[6] = self.next_header;
        header[7] = self.hop_limit;
        put(header, 8, self.src.octets());
        put(header, 24, self.dst.octets());
        Ok(HEADER_BYTES)
    }
}

/// A fixed header to patch in place.
#[derive(Debug)]
pub struct HeaderMut<'a>(pub &'a mut [u8; HEADER_BYTES]);

impl HeaderMut<'_> {
    /// Sets code point and congestion bits (the traffic class).
    #[inline(always)]
    pub fn set_dscp_ecn(&mut self, dscp: u8, ecn: u8) {
        let class = dscp << 2 | ecn & 3;
        let [first, second] = array::<_, 2>(self.0, 0);
        put(self.0, 0, [first & 0xf0 | class >> 4, class << 4 | second & 0x0f]);
    }

    /// Sets only the congestion bits.
    #[inline(always)]
    pub fn set_ecn(&mut self, ecn: u8) {
        self.set_dscp_ecn(traffic_class(self.0) >> 2, ecn);
    }

    /// Sets the flow label, 20 bits.
    #[inline(always)]
    pub fn set_flow_label(&mut self, label: u32) {
        let word = be32(self.0, 0) & !0x000f_ffff | label & 0x000f_ffff;
        put32(self.0, 0, word);
    }

    /// Sets the length of everything after the fixed header.
    #[inline(always)]
    pub fn set_payload_bytes(&mut self, payload_bytes: u16) {
        put16(self.0, 4, payload_bytes);
    }

    /// Sets the hop limit.
    #[inline(always)]
    pub fn set_hop_limit(&mut self, hops: u8) {
        self.0[7] = hops;
    }
}
