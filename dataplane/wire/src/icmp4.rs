//! ICMP for IPv4 (RFC 792): echo, and "fragmentation needed" with the next hop's MTU (RFC 1191).

use crate::checksum::Checksum;
use crate::field::{array, be16, put, put16};
use crate::{EmitError, ParseError};

/// Type, code, checksum and the four bytes whose meaning depends on the type.
pub const HEADER_BYTES: usize = 8;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const FRAGMENTATION_NEEDED: u8 = 4;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for an echo of the data.
    EchoRequest {
        /// Chosen by the sender.
        ident: u16,
        /// Counted by the sender.
        sequence: u16,
    },
    /// Echoes the data.
    EchoReply {
        /// From the request.
        ident: u16,
        /// From the request.
        sequence: u16,
    },
    /// A packet that must not be fragmented is too long; its head is the data.
    FragmentationNeeded {
        /// Longest packet that the next hop takes, IP header included; 0 from routers older than RFC 1191.
        mtu_bytes: u16,
    },
    /// Anything else, as it stands.
    Other {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: [u8; 4],
    },
}

/// A checked message.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    payload: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks `bytes`, the payload of IPv4. The checksum is left to [`View::checksum_ok`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, payload) = bytes.split_first_chunk().ok_or(ParseError::Truncated)?;
        Ok(Self { header, payload, bytes })
    }

    /// The checksum over the whole message is right.
    pub fn checksum_ok(&self) -> bool {
        Checksum::new().bytes(self.bytes).folded() == 0xffff
    }

    /// What the header says.
    pub fn message(&self) -> Message {
        let (first, second) = (be16(self.header, 4), be16(self.header, 6));
        match (self.header[0], self.header[1]) {
            (ECHO_REQUEST, 0) => Message::EchoRequest { ident: first, sequence: second },
            (ECHO_REPLY, 0) => Message::EchoReply { ident: first, sequence: second },
            // RFC 1191 clause 4: the MTU of the next hop is "in the low-order 16 bits of the ICMP header
            // field that is labelled "unused"".
            (UNREACHABLE, FRAGMENTATION_NEEDED) => Message::FragmentationNeeded { mtu_bytes: second },
            (kind, code) => Message::Other { kind, code, rest: array(self.header, 4) },
        }
    }

    /// The data after the header.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

impl Message {
    /// Writes the header to the front of `message`, which holds the data after it and ends with them, and
    /// computes the checksum. Returns the length of the header.
    pub fn emit(&self, message: &mut [u8]) -> Result<usize, EmitError> {
        let no_room = EmitError::NoRoom { needed_bytes: HEADER_BYTES };
        let header: &mut [u8; HEADER_BYTES] = message.first_chunk_mut().ok_or(no_room)?;
        let (kind, code, rest) = match *self {
            Self::EchoRequest { ident, sequence } => (ECHO_REQUEST, 0, words(ident, sequence)),
            Self::EchoReply { ident, sequence } => (ECHO_REPLY, 0, words(ident, sequence)),
            Self::FragmentationNeeded { mtu_bytes } => {
                (UNREACHABLE, FRAGMENTATION_NEEDED, words(0, mtu_bytes))
            }
            Self::Other { kind, code, rest } => (kind, code, rest),
        };
        put(header, 0, [kind, code, 0, 0]);
        put(header, 4, rest);
        let value = Checksum::new().bytes(message).finish();
        let header: &mut [u8; HEADER_BYTES] = message.first_chunk_mut().ok_or(no_room)?;
        put16(header, 2, value);
        Ok(HEADER_BYTES)
    }
}

pub(crate) fn words(first: u16, second: u16) -> [u8; 4] {
    (u32::from(first) << 16 | u32::from(second)).to_be_bytes()
}
