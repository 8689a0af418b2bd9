//! VXLAN (RFC 7348): an Ethernet frame in UDP, with a 24-bit network identifier.

use crate::field::{array, put, put32};
use crate::{EmitError, ParseError, Vni};

/// The header between UDP and the inner frame.
pub const HEADER_BYTES: usize = 8;
/// RFC 7348 clause 5: "IANA has assigned the value 4789 for the VXLAN UDP port".
pub const UDP_PORT: u16 = 4789;
/// The one flag that is defined: the network identifier is valid.
const FLAG_VNI: u8 = 0x08;

/// A checked header with its inner frame.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks `bytes`, the payload of UDP.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, payload) = bytes.split_first_chunk().ok_or(ParseError::Truncated)?;
        // RFC 7348 clause 5: "Flags (8 bits): where the I flag MUST be set to 1 for a valid VXLAN Network
        // ID (VNI). The other 7 bits (designated "R") are reserved fields and MUST be set to zero on
        // transmission and ignored on receipt."
        if header[0] & FLAG_VNI == 0 {
            return Err(ParseError::Malformed);
        }
        Ok(Self { header, payload })
    }

    /// The network identifier.
    #[inline]
    pub fn vni(&self) -> Vni {
        Vni::from_octets(array(self.header, 4))
    }

    /// The inner Ethernet frame.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// What [`Header::emit`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The network identifier.
    pub vni: Vni,
}

impl Header {
    /// Writes the header to the front of `out`; returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let header: &mut [u8; HEADER_BYTES] =
            out.first_chunk_mut().ok_or(EmitError::NoRoom { needed_bytes: HEADER_BYTES })?;
        // RFC 7348 clause 5: "Reserved fields (24 bits and 8 bits): MUST be set to zero on transmission and
        // ignored on receipt."
        put32(header, 0, u32::from(FLAG_VNI) << 24);
        put32(header, 4, 0);
        put(header, 4, self.vni.octets());
        Ok(HEADER_BYTES)
    }
}
