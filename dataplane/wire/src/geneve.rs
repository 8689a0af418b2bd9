//! Geneve (RFC 8926): a tunnel header with a network identifier and typed options, and the one option that
//! Tidegate itself sends (decision D4).
//!
//! The Tidegate option, 4 bytes of option header and 16 of data, all big-endian:
//!
//! ```text
//!  0                   1                   2                   3
//! +-------------------------------+---------------+-----+---------+
//! |     option class 0xff54       |   type 0x01   |  0  |    4    |
//! +-------------------------------+---------------+-----+---------+
//! |                             epoch                             |
//! |                             flow                              |
//! |                             trace                             |
//! |                                                               |
//! +---------------------------------------------------------------+
//! ```
//!
//! The class is one of those that RFC 8926 clause 7 leaves to experimental use (0xFF00 to 0xFFFF), so both
//! ends of a tunnel must agree on it by configuration. The type has no critical bit: an end that does not
//! know the option skips it and loses nothing but the trace.

use crate::field::{array, be16, be32, put, put16, put32};
use crate::{EmitError, EtherType, ParseError, Vni};

/// The fixed header.
pub const HEADER_BYTES: usize = 8;
/// RFC 8926 clause 3.3: "IANA has assigned port 6081 as the fixed well-known destination port for Geneve."
pub const UDP_PORT: u16 = 6081;
/// The longest options: 63 words.
pub const OPTIONS_BYTES_MAX: usize = 252;

const OPTION_HEADER_BYTES: usize = 4;
const CONTROL: u8 = 0x80;
const CRITICAL: u8 = 0x40;

/// A checked header with its inner packet.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks `bytes`, the payload of UDP, the lengths of all options included.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(ParseError::Truncated)?;
        // RFC 8926 clause 3.4: "The current version number is 0. Packets received by a tunnel endpoint with
        // an unknown version MUST be dropped."
        if header[0] >> 6 != 0 {
            return Err(ParseError::UnsupportedType);
        }
        let options_bytes = usize::from(header[0] & 0x3f) * 4;
        let (options, payload) = rest.split_at_checked(options_bytes).ok_or(ParseError::Truncated)?;
        let mut left = options;
        while !left.is_empty() {
            // RFC 8926 clause 3.5: "Packets in which the total length of all options is not equal to the
            // 'Opt Len' in the base header are invalid and MUST be silently dropped".
            let (_, rest) = split_option(left).ok_or(ParseError::Malformed)?;
            left = rest;
        }
        Ok(Self { header, options, payload })
    }

    /// The payload is a control message and must not be forwarded.
    #[inline]
    pub fn is_control(&self) -> bool {
        self.header[1] & CONTROL != 0
    }

    /// The sender says that some option is critical. Transit may look at this; an endpoint looks at the
    /// options themselves (see [`View::has_unknown_critical`]).
    #[inline]
    pub fn says_critical(&self) -> bool {
        self.header[1] & CRITICAL != 0
    }

    /// Type of the payload; [`EtherType::TRANSPARENT_ETHERNET`] for a whole frame.
    #[inline]
    pub fn ethertype(&self) -> EtherType {
        EtherType(be16(self.header, 2))
    }

    /// The network identifier.
    #[inline]
    pub fn vni(&self) -> Vni {
        Vni::from_octets(array(self.header, 4))
    }

    /// Length of the fixed header and the options.
    #[inline]
    pub fn header_bytes(&self) -> usize {
        HEADER_BYTES + self.options.len()
    }

    /// The options, in order.
    #[inline]
    pub fn options(&self) -> Options<'a> {
        Options { left: self.options }
    }

    /// An option must be understood and is not, so the packet must be dropped.
    ///
    /// RFC 8926 clause 3.5: "If the receiving tunnel endpoint does not recognize the option and this bit is
    /// set, then the packet MUST be dropped." No option known here has a critical type, so any is unknown.
    #[inline]
    pub fn has_unknown_critical(&self) -> bool {
        self.options().any(|option| option.is_critical())
    }

    /// The first well-formed Tidegate option.
    #[inline]
    pub fn tidegate(&self) -> Option<Tidegate> {
        self.options().find_map(|option| Tidegate::parse(&option))
    }

    /// The inner packet.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneveOption<'a> {
    /// Who defines the type.
    pub class: u16,
    /// What the data mean; the top bit says critical.
    pub kind: u8,
    /// A multiple of 4 bytes, at most 124.
    pub data: &'a [u8],
}

impl GeneveOption<'_> {
    /// An endpoint that does not know the option must drop the packet.
    #[inline]
    pub const fn is_critical(&self) -> bool {
        self.kind & 0x80 != 0
    }
}

/// Walks the options of a [`View`].
#[derive(Clone, Debug)]
pub struct Options<'a> {
    left: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = GeneveOption<'a>;

    #[inline]
    fn next(&mut self) -> Option<GeneveOption<'a>> {
        let (option, left) = split_option(self.left)?;
        self.left = left;
        Some(option)
    }
}

/// The first option and what follows it; `None` if there is no whole option.
#[inline]
fn split_option(bytes: &[u8]) -> Option<(GeneveOption<'_>, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<OPTION_HEADER_BYTES>()?;
    // RFC 8926 clause 3.5: "Length of the option, expressed in 4-byte multiples, excluding the option
    // header." The three bits above it are reserved and ignored on receipt.
    let (data, rest) = rest.split_at_checked(usize::from(header[3] & 0x1f) * 4)?;
    Some((GeneveOption { class: be16(header, 0), kind: header[2], data }, rest))
}

/// The Tidegate option: which configuration sent the packet, its flow, and its trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidegate {
    /// Epoch of the sender's configuration.
    pub epoch: u32,
    /// Flow hash of the inner packet.
    pub flow: u32,
    /// Trace identifier; 0 means not traced.
    pub trace: u64,
}

impl Tidegate {
    /// Option class, out of the experimental range.
    pub const CLASS: u16 = 0xff54;
    /// Option type; not critical.
    pub const KIND: u8 = 0x01;
    /// Length of the data.
    pub const DATA_BYTES: usize = 16;
    /// Length of the option with its header.
    pub const OPTION_BYTES: usize = OPTION_HEADER_BYTES + Self::DATA_BYTES;
    /// Where the data stand in a header that [`Header::emit`] wrote.
    pub const DATA_AT: usize = HEADER_BYTES + OPTION_HEADER_BYTES;

    /// `None` if it is another option, or not of this length.
    #[inline]
    pub fn parse(option: &GeneveOption<'_>) -> Option<Self> {
        if option.class != Self::CLASS || option.kind != Self::KIND {
            return None;
        }
        let data: &[u8; Self::DATA_BYTES] = option.data.try_into().ok()?;
        Some(Self { epoch: be32(data, 0), flow: be32(data, 4), trace: u64::from_be_bytes(array(data, 8)) })
    }

    /// The data of the option.
    #[inline]
    pub fn octets(&self) -> [u8; Self::DATA_BYTES] {
        let mut data = [0; Self::DATA_BYTES];
        put32(&mut data, 0, self.epoch);
        put32(&mut data, 4, self.flow);
        put(&mut data, 8, self.trace.to_be_bytes());
        data
    }
}

/// What [`Header::emit`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type of the payload; [`EtherType::TRANSPARENT_ETHERNET`] for a whole frame.
    pub ethertype: EtherType,
    /// The network identifier.
    pub vni: Vni,
    /// The Tidegate option, if it is to be sent.
    pub tidegate: Option<Tidegate>,
}

impl Header {
    /// Length when written.
    pub const fn header_bytes(&self) -> usize {
        if self.tidegate.is_some() { HEADER_BYTES + Tidegate::OPTION_BYTES } else { HEADER_BYTES }
    }

    /// Writes the header to the front of `out`; returns its length. The control and critical bits are zero.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let needed_bytes = self.header_bytes();
        let no_room = EmitError::NoRoom { needed_bytes };
        let out = out.get_mut(..needed_bytes).ok_or(no_room)?;
        let (header, option) = out.split_first_chunk_mut::<HEADER_BYTES>().ok_or(no_room)?;
        put16(header, 0, ((needed_bytes - HEADER_BYTES) as u16 / 4) << 8);
        put16(header, 2, self.ethertype.0);
        put32(header, 4, 0);
        put(header, 4, self.vni.octets());
        if let Some(tidegate) = self.tidegate {
            let (head, data) = option.split_first_chunk_mut::<OPTION_HEADER_BYTES>().ok_or(no_room)?;
            put16(head, 0, Tidegate::CLASS);
            head[2] = Tidegate::KIND;
            head[3] = (Tidegate::DATA_BYTES / 4) as u8;
            data.copy_from_slice(&tidegate.octets());
        }
        Ok(needed_bytes)
    }
}
