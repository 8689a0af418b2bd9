//! TCP (RFC 9293): the header, its options, and what segmentation patches.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, Checksum};
use crate::field::{be16, be32, put16, put32};
use crate::{EmitError, ParseError, protocol};

/// The header without options.
pub const HEADER_BYTES: usize = 20;
/// The longest options.
pub const OPTIONS_BYTES_MAX: usize = 40;

/// Control bits (RFC 9293 clause 3.1, RFC 3168 clause 6.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// The sender is done.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// Echo of experienced congestion.
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced.
    pub const CWR: Self = Self(0x80);

    /// All bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits that `other` has not.
    #[inline(always)]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set = names.iter().enumerate().filter(|(bit, _)| self.0 >> bit & 1 != 0).map(|(_, name)| name);
        f.debug_set().entries(set).finish()
    }
}

/// A checked segment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    options: &'a [u8],
    payload: &'a [u8],
    segment: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks `segment`, the payload of IP.
    pub fn parse(segment: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; HEADER_BYTES] = segment.first_chunk().ok_or(ParseError::Truncated)?;
        // RFC 9293 clause 3.1: "Data Offset (DOffset): 4 bits: The number of 32-bit words in the TCP header.
        // This indicates where the data begins."
        let header_bytes = usize::from(header[12] >> 4) * 4;
        if header_bytes < HEADER_BYTES {
            return Err(ParseError::Malformed);
        }
        let (head, payload) = segment.split_at_checked(header_bytes).ok_or(ParseError::Truncated)?;
        let options = head.get(HEADER_BYTES..).ok_or(ParseError::Truncated)?;
        Ok(Self { header, options, payload, segment })
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        be16(self.header, 0)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        be16(self.header, 2)
    }

    /// Sequence number of the first byte of data (or of SYN).
    pub fn sequence(&self) -> u32 {
        be32(self.header, 4)
    }

    /// The next sequence number that the sender expects, with [`Flags::ACK`].
    pub fn acknowledgement(&self) -> u32 {
        be32(self.header, 8)
    }

    /// Length of header and options.
    pub fn header_bytes(&self) -> usize {
        HEADER_BYTES + self.options.len()
    }

    /// Control bits.
    pub fn flags(&self) -> Flags {
        Flags(self.header[13])
    }

    /// Receive window, unscaled.
    pub fn window(&self) -> u16 {
        be16(self.header, 14)
    }

    /// The checksum field.
    pub fn checksum(&self) -> u16 {
        be16(self.header, 16)
    }

    /// Urgent pointer, with [`Flags::URG`].
    pub fn urgent(&self) -> u16 {
        be16(self.header, 18)
    }

    /// The options as they stand, with their padding.
    pub fn options_bytes(&self) -> &'a [u8] {
        self.options
    }

    /// Walks the options.
    pub fn options(&self) -> Options<'a> {
        Options { left: self.options }
    }

    /// The largest segment that the sender takes, if a well-formed option says.
    pub fn mss_bytes(&self) -> Option<u16> {
        self.options().find_map(|option| match option {
            Ok(TcpOption::MaximumSegment { bytes }) => Some(bytes),
            _ => None,
        })
    }

    /// The data.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The checksum is right.
    pub fn checksum_ok_v4(&self, src: Ipv4Addr, dst: Ipv4Addr) -> bool {
        self.checksum_ok(checksum::pseudo_v4(src, dst, protocol::TCP, self.len_bytes()))
    }

    /// The checksum is right.
    pub fn checksum_ok_v6(&self, src: Ipv6Addr, dst: Ipv6Addr) -> bool {
        self.checksum_ok(checksum::pseudo_v6(src, dst, protocol::TCP, self.len_bytes()))
    }

    fn checksum_ok(&self, pseudo: Checksum) -> bool {
        pseudo.bytes(self.segment).folded() == 0xffff
    }

    fn len_bytes(&self) -> u32 {
        u32::try_from(self.segment.len()).unwrap_or(u32::MAX)
    }
}

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpOption<'a> {
    /// The largest segment that the sender takes (RFC 9293 clause 3.7.1).
    MaximumSegment {
        /// Without IP and TCP headers.
        bytes: u16,
    },
    /// The window counts in units of 2^`shift` (RFC 7323 clause 2.2).
    WindowScale {
        /// Binary logarithm of the unit.
        shift: u8,
    },
    /// Clocks of both ends (RFC 7323 clause 3.2).
    Timestamps {
        /// The sender's clock.
        value: u32,
        /// What the sender last saw of the other.
        echo: u32,
    },
    /// Anything else.
    Other {
        /// Kind.
        kind: u8,
        /// After kind and length.
        data: &'a [u8],
    },
}

/// Walks options up to the end of the list. The first malformed one is the last item.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    left: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<TcpOption<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        // RFC 9293 clause 3.2: kind 0 ends the list and kind 1 is padding, "one octet"; all others have a
        // length that counts kind and length themselves.
        while let [1, rest @ ..] = self.left {
            self.left = rest;
        }
        let item = match *self.left {
            [] | [0, ..] => None,
            [kind, len, ..] if len >= 2 => match self.left.split_at_checked(usize::from(len)) {
                Some((option, rest)) => {
                    self.left = rest;
                    return Some(Ok(decode_option(kind, &option[2..])));
                }
                None => Some(Err(ParseError::Malformed)),
            },
            _ => Some(Err(ParseError::Malformed)),
        };
        self.left = &[];
        item
    }
}

fn decode_option(kind: u8, data: &[u8]) -> TcpOption<'_> {
    match (kind, data) {
        (2, &[a, b]) => TcpOption::MaximumSegment { bytes: u16::from_be_bytes([a, b]) },
        (3, &[shift]) => TcpOption::WindowScale { shift },
        (8, &[a, b, c, d, e, f, g, h]) => TcpOption::Timestamps {
            value: u32::from_be_bytes([a, b, c, d]),
            echo: u32::from_be_bytes([e, f, g, h]),
        },
        _ => TcpOption::Other { kind, data },
    }
}

/// What [`Header::emit`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: Flags,
    /// Receive window, unscaled.
    pub window: u16,
    /// Options; a multiple of 4 bytes, at most [`OPTIONS_BYTES_MAX`].
    pub options: &'a [u8],
}

impl Header<'_> {
    /// Writes the header with checksum and urgent pointer 0; see [`fill_checksum`]. Returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        if self.options.len() > OPTIONS_BYTES_MAX || !self.options.len().is_multiple_of(4) {
            return Err(EmitError::OutOfRange);
        }
        let header_bytes = HEADER_BYTES + self.options.len();
        let no_room = EmitError::NoRoom { needed_bytes: header_bytes };
        let out = out.get_mut(..header_bytes).ok_or(no_room)?;
        let (header, options) = out.split_first_chunk_mut::<HEADER_BYTES>().ok_or(no_room)?;
        put16(header, 0, self.src_port);
        put16(header, 2, self.dst_port);
        put32(header, 4, self.sequence);
        put32(header, 8, self.acknowledgement);
        header[12] = ((header_bytes / 4) << 4) as u8;
        header[13] = self.flags.0;
        put16(header, 14, self.window);
        put32(header, 16, 0);
        options.copy_from_slice(self.options);
        Ok(header_bytes)
    }
}

/// Computes the checksum of `segment` (header and data, exactly) and writes it. `pseudo` comes from
/// [`checksum::pseudo_v4`] or [`checksum::pseudo_v6`]. Does nothing if not even the header is there.
pub fn fill_checksum(segment: &mut [u8], pseudo: Checksum) {
    if let Some(header) = segment.first_chunk_mut::<HEADER_BYTES>() {
        put16(header, 16, 0);
    }
    let value = pseudo.bytes(segment).finish();
    if let Some(header) = segment.first_chunk_mut::<HEADER_BYTES>() {
        put16(header, 16, value);
    }
}

/// A header to patch in place. The setters leave the checksum alone: set it last.
#[derive(Debug)]
pub struct HeaderMut<'a>(pub &'a mut [u8; HEADER_BYTES]);

impl HeaderMut<'_> {
    /// Sets the sequence number.
    #[inline(always)]
    pub fn set_sequence(&mut self, sequence: u32) {
        put32(self.0, 4, sequence);
    }

    /// Sets the acknowledgement number.
    #[inline(always)]
    pub fn set_acknowledgement(&mut self, acknowledgement: u32) {
        put32(self.0, 8, acknowledgement);
    }

    /// Sets the control bits.
    #[inline(always)]
    pub fn set_flags(&mut self, flags: Flags) {
        self.0[13] = flags.0;
    }

    /// Sets the receive window, unscaled.
    #[inline(always)]
    pub fn set_window(&mut self, window: u16) {
        put16(self.0, 14, window);
    }

    /// Sets the checksum field.
    #[inline(always)]
    pub fn set_checksum(&mut self, value: u16) {
        put16(self.0, 16, value);
    }
}
