//! UDP (RFC 768).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, Checksum};
use crate::field::{be16, put16};
use crate::{EmitError, ParseError, protocol};

/// Ports, length, checksum.
pub const HEADER_BYTES: usize = 8;

/// A checked datagram.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    payload: &'a [u8],
    datagram: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks `bytes`, the payload of IP. It may be longer than the datagram.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        // RFC 768: "Length is the length in octets of this user datagram including this header and the
        // data. (This means the minimum value of the length is eight.)"
        let len_bytes = usize::from(be16(header, 4));
        if len_bytes < HEADER_BYTES {
            return Err(ParseError::Malformed);
        }
        let datagram = bytes.get(..len_bytes).ok_or(ParseError::Truncated)?;
        let payload = datagram.get(HEADER_BYTES..).ok_or(ParseError::Truncated)?;
        Ok(Self { header, payload, datagram })
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        be16(self.header, 0)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        be16(self.header, 2)
    }

    /// Length of header and payload.
    pub fn len_bytes(&self) -> u16 {
        be16(self.header, 4)
    }

    /// The checksum field; 0 means that the sender computed none.
    pub fn checksum(&self) -> u16 {
        be16(self.header, 6)
    }

    /// The data, as long as the header says.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The checksum is absent or right.
    ///
    /// RFC 768: "An all zero transmitted checksum value means that the transmitter generated no checksum".
    pub fn checksum_ok_v4(&self, src: Ipv4Addr, dst: Ipv4Addr) -> bool {
        let pseudo = checksum::pseudo_v4(src, dst, protocol::UDP, u32::from(self.len_bytes()));
        self.checksum() == 0 || pseudo.bytes(self.datagram).folded() == 0xffff
    }

    /// The checksum is right, or absent where `zero_allowed`.
    ///
    /// RFC 8200 clause 8.1: "Unlike IPv4, the default behavior when UDP packets are originated by an IPv6
    /// node is that the UDP checksum is not optional", with the exception of RFC 6935 clause 5 for
    /// protocols that use UDP as a tunnel encapsulation; so only the tunnel's port sets `zero_allowed`.
    pub fn checksum_ok_v6(&self, src: Ipv6Addr, dst: Ipv6Addr, zero_allowed: bool) -> bool {
        if self.checksum() == 0 {
            return zero_allowed;
        }
        let pseudo = checksum::pseudo_v6(src, dst, protocol::UDP, u32::from(self.len_bytes()));
        pseudo.bytes(self.datagram).folded() == 0xffff
    }
}

/// What [`Header::emit`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Length of the data after the header.
    pub payload_bytes: usize,
}

impl Header {
    /// Writes the header with checksum 0 (none); see [`fill_checksum`]. Returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let len_bytes = u16::try_from(self.payload_bytes.saturating_add(HEADER_BYTES))
            .map_err(|_| EmitError::OutOfRange)?;
        let header: &mut [u8; HEADER_BYTES] =
            out.first_chunk_mut().ok_or(EmitError::NoRoom { needed_bytes: HEADER_BYTES })?;
        put16(header, 0, self.src_port);
        put16(header, 2, self.dst_port);
        put16(header, 4, len_bytes);
        put16(header, 6, 0);
        Ok(HEADER_BYTES)
    }
}

/// Computes the checksum of `datagram` (header and data, exactly) and writes it. `pseudo` comes from
/// [`checksum::pseudo_v4`] or [`checksum::pseudo_v6`]. Does nothing if not even the header is there.
pub fn fill_checksum(datagram: &mut [u8], pseudo: Checksum) {
    if let Some(header) = datagram.first_chunk_mut::<HEADER_BYTES>() {
        put16(header, 6, 0);
    }
    let value = checksum::udp(pseudo.bytes(datagram));
    if let Some(header) = datagram.first_chunk_mut::<HEADER_BYTES>() {
        put16(header, 6, value);
    }
}

/// Source port of a tunnel packet for the flow inside: paths spread over ports, and one flow keeps to one
/// path.
///
/// RFC 7348 clause 5: "it is RECOMMENDED that the value be in the dynamic/private port range 49152-65535".
/// RFC 8926 clause 3.3 asks for the same use of the port and leaves the range open.
#[inline(always)]
pub const fn entropy_port(flow_hash: u32) -> u16 {
    0xc000 | (flow_hash & 0x3fff) as u16
}

/// A header to patch in place. The setters leave the checksum alone: set it last.
#[derive(Debug)]
pub struct HeaderMut<'a>(pub &'a mut [u8; HEADER_BYTES]);

impl HeaderMut<'_> {
    /// Sets the source port.
    #[inline(always)]
    pub fn set_src_port(&mut self, port: u16) {
        put16(self.0, 0, port);
    }

    /// Sets the destination port.
    #[inline(always)]
    pub fn set_dst_port(&mut self, port: u16) {
        put16(self.0, 2, port);
    }

    /// Sets the length of header and payload.
    #[inline(always)]
    pub fn set_len_bytes(&mut self, len_bytes: u16) {
        put16(self.0, 4, len_bytes);
    }

    /// Sets the checksum field as it is to stand on the wire; 0 means none.
    #[inline(always)]
    pub fn set_checksum(&mut self, value: u16) {
        put16(self.0, 6, value);
    }
}
