//! IPv4 (RFC 791), with options walked over and fragments recognised.

use std::net::Ipv4Addr;

use crate::checksum;
use crate::field::{be16, be32, put16, put32};
use crate::{EmitError, ParseError};

/// The header without options.
pub const HEADER_BYTES: usize = 20;
/// The longest options.
pub const OPTIONS_BYTES_MAX: usize = 40;
/// "More fragments" in the flags and offset word.
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;
pub(crate) const OFFSET_MASK: u16 = 0x1fff;

/// A checked packet.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks `bytes`, the payload of Ethernet. It may be longer than the packet (padding).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, _) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(ParseError::Truncated)?;
        // RFC 1122 clause 3.2.1.1: "A datagram whose version number is not 4 MUST be silently discarded."
        if header[0] >> 4 != 4 {
            return Err(ParseError::Malformed);
        }
        // RFC 791 clause 3.1: "Note that the minimum value for a correct header is 5."
        let header_bytes = usize::from(header[0] & 0x0f) * 4;
        let total_bytes = usize::from(be16(header, 2));
        // A total length of 0 (a segment above 64 KiB that a kernel handed over) ends here too.
        if header_bytes < HEADER_BYTES || total_bytes < header_bytes {
            return Err(ParseError::Malformed);
        }
        let packet = bytes.get(..total_bytes).ok_or(ParseError::Truncated)?;
        let (head, payload) = packet.split_at_checked(header_bytes).ok_or(ParseError::Truncated)?;
        let options = head.get(HEADER_BYTES..).ok_or(ParseError::Truncated)?;
        Ok(Self { header, options, payload })
    }

    /// Length of header and options.
    pub fn header_bytes(&self) -> usize {
        HEADER_BYTES + self.options.len()
    }

    /// Differentiated services code point (RFC 2474).
    pub fn dscp(&self) -> u8 {
        self.header[1] >> 2
    }

    /// Explicit congestion notification (RFC 3168).
    pub fn ecn(&self) -> u8 {
        self.header[1] & 3
    }

    /// Length of header, options and payload.
    pub fn total_bytes(&self) -> u16 {
        be16(self.header, 2)
    }

    /// Identification.
    pub fn ident(&self) -> u16 {
        be16(self.header, 4)
    }

    /// "Don't fragment".
    pub fn dont_fragment(&self) -> bool {
        be16(self.header, 6) & DONT_FRAGMENT != 0
    }

    /// "More fragments".
    pub fn more_fragments(&self) -> bool {
        be16(self.header, 6) & MORE_FRAGMENTS != 0
    }

    /// Where the payload stands in the whole packet.
    pub fn fragment_offset_bytes(&self) -> u32 {
        u32::from(be16(self.header, 6) & OFFSET_MASK) * 8
    }

    /// The packet is part of one, the first part included.
    pub fn is_fragment(&self) -> bool {
        be16(self.header, 6) & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Time to live, in hops.
    pub fn ttl(&self) -> u8 {
        self.header[8]
    }

    /// Protocol of the payload (see [`protocol`](crate::protocol)).
    pub fn protocol(&self) -> u8 {
        self.header[9]
    }

    /// The header checksum field.
    pub fn checksum(&self) -> u16 {
        be16(self.header, 10)
    }

    /// The header checksum is right.
    pub fn checksum_ok(&self) -> bool {
        checksum::Checksum::new().bytes(self.header).bytes(self.options).folded() == 0xffff
    }

    /// Source address.
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.header, 12))
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.header, 16))
    }

    /// The options as they stand, with their padding.
    pub fn options(&self) -> &'a [u8] {
        self.options
    }

    /// The data, as long as the header says: Ethernet padding is cut off.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// What [`Header::emit`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Differentiated services code point, 6 bits.
    pub dscp: u8,
    /// Explicit congestion notification, 2 bits.
    pub ecn: u8,
    /// Identification; 0 is right for packets that must not be fragmented (RFC 6864 clause 4.1).
    pub ident: u16,
    /// Forbid fragmentation on the way.
    pub dont_fragment: bool,
    /// Time to live, in hops.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Options; a multiple of 4 bytes, at most [`OPTIONS_BYTES_MAX`].
    pub options: &'a [u8],
    /// Length of the data after the header.
    pub payload_bytes: usize,
}

impl Header<'_> {
    /// Writes the header with its checksum to the front of `out`; returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let header_bytes = HEADER_BYTES + self.options.len();
        let total = u16::try_from(self.payload_bytes.saturating_add(header_bytes))
            .map_err(|_| EmitError::OutOfRange)?;
        if self.options.len() > OPTIONS_BYTES_MAX || !self.options.len().is_multiple_of(4) {
            return Err(EmitError::OutOfRange);
        }
        let no_room = EmitError::NoRoom { needed_bytes: header_bytes };
        let out = out.get_mut(..header_bytes).ok_or(no_room)?;
        let (header, options) = out.split_first_chunk_mut::<HEADER_BYTES>().ok_or(no_room)?;
        header[0] = 0x40 | (header_bytes / 4) as u8;
        header[1] = self.dscp << 2 | self.ecn & 3;
        put16(header, 2, total);
        put16(header, 4, self.ident);
        put16(header, 6, if self.dont_fragment { DONT_FRAGMENT } else { 0 });
        header[8] = self.ttl;
        header[9] = self.protocol;
        put16(header, 10, 0);
        put32(header, 12, self.src.to_bits());
        put32(header, 16, self.dst.to_bits());
        options.copy_from_slice(self.options);
        let value = checksum::Checksum::new().bytes(header).bytes(options).finish();
        put16(header, 10, value);
        Ok(header_bytes)
    }
}

/// A header to patch in place. Each setter keeps the checksum right with it (RFC 1624).
#[derive(Debug)]
pub struct HeaderMut<'a>(pub &'a mut [u8; HEADER_BYTES]);

impl HeaderMut<'_> {
    /// Sets code point and congestion bits (the former type of service).
    #[inline(always)]
    pub fn set_dscp_ecn(&mut self, dscp: u8, ecn: u8) {
        self.set_word(0, u16::from_be_bytes([self.0[0], dscp << 2 | ecn & 3]));
    }

    /// Sets only the congestion bits.
    #[inline(always)]
    pub fn set_ecn(&mut self, ecn: u8) {
        self.set_word(0, u16::from_be_bytes([self.0[0], self.0[1] & !3 | ecn & 3]));
    }

    /// Sets the length of header, options and payload.
    #[inline(always)]
    pub fn set_total_bytes(&mut self, total_bytes: u16) {
        self.set_word(2, total_bytes);
    }

    /// Sets the identification.
    #[inline(always)]
    pub fn set_ident(&mut self, ident: u16) {
        self.set_word(4, ident);
    }

    /// Sets the time to live, in hops.
    #[inline(always)]
    pub fn set_ttl(&mut self, ttl: u8) {
        self.set_word(8, u16::from_be_bytes([ttl, self.0[9]]));
    }

    /// Sets the source address.
    #[inline(always)]
    pub fn set_src(&mut self, src: Ipv4Addr) {
        self.set_words(12, src.to_bits());
    }

    /// Sets the destination address.
    #[inline(always)]
    pub fn set_dst(&mut self, dst: Ipv4Addr) {
        self.set_words(16, dst.to_bits());
    }

    #[inline(always)]
    fn set_word(&mut self, at: usize, new: u16) {
        let value = checksum::update(be16(self.0, 10), be16(self.0, at), new);
        put16(self.0, at, new);
        put16(self.0, 10, value);
    }

    #[inline(always)]
    fn set_words(&mut self, at: usize, new: u32) {
        let value = checksum::update_u32(be16(self.0, 10), be32(self.0, at), new);
        put32(self.0, at, new);
        put16(self.0, 10, value);
    }
}
