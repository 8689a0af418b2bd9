//! NVMe/TCP: the units (PDUs) that carry commands and data over a TCP connection.
//!
//! Clauses and figures are those of the NVM Express TCP Transport Specification, revision 1.0. A unit is a
//! common header of 8 bytes, a specific header, a digest of both, padding, data, and a digest of the data;
//! what of it is there is agreed once in each direction ([`Agreed`]). All numbers are little-endian (clause
//! 2).
//!
//! Reading a unit takes two steps, since its length stands in its first 8 bytes: [`Common::parse`] and
//! [`Common::layout`] say where everything lies and refuse what cannot be; [`Pdu::parse`] reads the specific
//! header. A refusal is a [`Fatal`], which is what the peer must be told ([`Termination`]): the reason and,
//! where there is one, the offset of the field that is wrong.
//!
//! Invariants: as for the crate. A [`Layout`] that exists fits the unit's length, its digests and its
//! alignment to what was agreed, and its data to the limit given.

mod pdu;

pub use pdu::{Data, IcReq, IcResp, Pdu, Termination, Transfer};

use thiserror::Error;

use crate::EmitError;
use crate::codes::{codes, flags};
use crate::field::{le32, put};

/// Length of a digest.
pub const DIGEST_BYTES: usize = 4;
/// Clause 3.5: "The maximum C2HTermReq PDU data size shall not exceed 128 bytes".
pub const TERMINATION_DATA_BYTES_MAX: usize = 128;
/// Clause 3.5: "152 bytes (24-byte PDU Header plus 128-byte PDU data)".
pub const TERMINATION_BYTES_MAX: usize = 24 + TERMINATION_DATA_BYTES_MAX;
/// Longest header, digest and padding that is written: a command's 76 bytes where data is aligned to 72.
pub const HEAD_BYTES_MAX: usize = 144;

codes! {
    /// Figure 10: what a unit is. Bit 0 says who sends it.
    Kind(u8) {
        /// Host: connect.
        IC_REQ = 0, "ICReq";
        /// Controller: connected.
        IC_RESP = 1, "ICResp";
        /// Host: the controller erred.
        H2C_TERM_REQ = 2, "H2CTermReq";
        /// Controller: the host erred.
        C2H_TERM_REQ = 3, "C2HTermReq";
        /// Host: a command.
        CAPSULE_CMD = 4, "CapsuleCmd";
        /// Controller: a completion.
        CAPSULE_RESP = 5, "CapsuleResp";
        /// Host: data that was asked for.
        H2C_DATA = 6, "H2CData";
        /// Controller: data.
        C2H_DATA = 7, "C2HData";
        /// Controller: send data.
        R2T = 9, "R2T";
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The host, to the controller.
    HostToController,
    /// The controller, to the host.
    ControllerToHost,
}

impl Kind {
    /// Figure 10, note 1: "0b = Host to Controller (H2C); and 1b = Controller to Host (C2H)."
    pub const fn direction(self) -> Direction {
        if self.0 & 1 == 0 { Direction::HostToController } else { Direction::ControllerToHost }
    }

    /// Length of the header without digest (HLEN in figures 20 to 28); `None` of a kind that is not known.
    pub const fn header_bytes(self) -> Option<usize> {
        Some(match self {
            Self::IC_REQ | Self::IC_RESP => 128,
            Self::CAPSULE_CMD => 72,
            Self::H2C_TERM_REQ | Self::C2H_TERM_REQ | Self::CAPSULE_RESP => 24,
            Self::H2C_DATA | Self::C2H_DATA | Self::R2T => 24,
            _ => return None,
        })
    }

    /// May carry data behind a data digest.
    const fn has_data(self) -> bool {
        matches!(self, Self::CAPSULE_CMD | Self::H2C_DATA | Self::C2H_DATA)
    }

    /// Clause 3.3.1.1: all units "except H2CTermReq and C2HTermReq PDUs" have the header digest, once
    /// enabled; those that enable it come before.
    const fn has_header_digest(self) -> bool {
        !matches!(self, Self::IC_REQ | Self::IC_RESP | Self::H2C_TERM_REQ | Self::C2H_TERM_REQ)
    }
}

flags! {
    /// FLAGS of figures 24 to 28.
    Flags(u8) {
        /// A header digest follows the header.
        HDGSTF = 0, "HDGSTF";
        /// A data digest follows the data.
        DDGSTF = 1, "DDGSTF";
        /// The last unit with data of its transfer.
        LAST_PDU = 2, "LAST_PDU";
        /// The command has succeeded and no completion follows.
        SUCCESS = 3, "SUCCESS";
    }
}

flags! {
    /// DGST of figures 20 and 21.
    DigestFlags(u8) {
        /// Header digests.
        HDGST_ENABLE = 0, "HDGST_ENABLE";
        /// Data digests.
        DDGST_ENABLE = 1, "DDGST_ENABLE";
    }
}

codes! {
    /// FES of figures 22 and 23: why the connection must end.
    FatalStatus(u16) {
        /// A field of a header is wrong; its offset follows.
        INVALID_HEADER_FIELD = 1, "Invalid PDU Header Field";
        /// Not its turn.
        SEQUENCE = 2, "PDU Sequence Error";
        /// The header digest is wrong; the one received follows.
        HEADER_DIGEST = 3, "Header Digest Error";
        /// Data outside what was asked for.
        DATA_OUT_OF_RANGE = 4, "Data Transfer Out of Range";
        /// Said by the controller, more data than MAXH2CDATA in one unit; said by the host, more than MAXR2T.
        LIMIT_EXCEEDED = 5, "Data Transfer Limit Exceeded";
        /// A parameter is not supported; its offset follows.
        UNSUPPORTED_PARAMETER = 6, "Unsupported Parameter";
    }
}

/// Why the connection must end, as the peer is told: figures 22 and 23.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{status} (information {information:#x}); the peer violates NVMe/TCP, close the connection")]
pub struct Fatal {
    /// FES.
    pub status: FatalStatus,
    /// FEI: offset of the wrong field, or the digest received, or 0.
    pub information: u32,
}

impl Fatal {
    /// The field at `offset_bytes` of the header is wrong.
    pub const fn field(offset_bytes: u32) -> Self {
        Self { status: FatalStatus::INVALID_HEADER_FIELD, information: offset_bytes }
    }

    /// The parameter at `offset_bytes` of the header is not supported.
    pub const fn parameter(offset_bytes: u32) -> Self {
        Self { status: FatalStatus::UNSUPPORTED_PARAMETER, information: offset_bytes }
    }

    /// A reason without further information.
    pub const fn bare(status: FatalStatus) -> Self {
        Self { status, information: 0 }
    }
}

/// What holds for one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Header digests are there.
    pub header_digest: bool,
    /// Data digests are there.
    pub data_digest: bool,
    /// Data begins at a multiple of this, counted from the start of the unit.
    pub alignment: Alignment,
}

impl Agreed {
    /// Before anything is agreed.
    pub const NOTHING: Self = Self { header_digest: false, data_digest: false, alignment: Alignment::WORD };
}

/// Alignment of data in a unit: 4 to 128 bytes in steps of 4 (HPDA in figure 20, CPDA in figure 21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment(u8);

impl Alignment {
    /// 4 bytes: no padding is ever needed.
    pub const WORD: Self = Self(0);

    /// From the wire: "This value is 0's based value in units of dwords in the range 0 to 31".
    pub const fn new(dwords_less_one: u8) -> Option<Self> {
        if dwords_less_one <= 31 { Some(Self(dwords_less_one)) } else { None }
    }

    /// As on the wire.
    pub const fn dwords_less_one(self) -> u8 {
        self.0
    }

    /// In bytes.
    pub const fn bytes(self) -> u8 {
        (self.0 + 1) * 4
    }
}

/// Figure 19: the first 8 bytes of every unit, as they stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// PDU-Type.
    pub kind: Kind,
    /// FLAGS.
    pub flags: Flags,
    /// HLEN: length of the header without digest.
    pub header_bytes: u8,
    /// PDO: where data begins.
    pub data_at: u8,
    /// PLEN: length of the unit.
    pub pdu_bytes: u32,
}

/// Offsets of the fields of figure 19, to name them in a [`Fatal`].
mod at {
    pub const KIND: u32 = 0;
    pub const FLAGS: u32 = 1;
    pub const HEADER_BYTES: u32 = 2;
    pub const DATA: u32 = 3;
    pub const PDU_BYTES: u32 = 4;
}

/// Where the parts of a unit lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What it is.
    pub kind: Kind,
    /// FLAGS.
    pub flags: Flags,
    /// Header without digest.
    pub header_bytes: usize,
    /// A digest follows the header.
    pub header_digest: bool,
    /// Where data begins; the end of header and digest if there is none.
    pub data_at: usize,
    /// How much data.
    pub data_bytes: u32,
    /// A digest follows the data.
    pub data_digest: bool,
}

impl Layout {
    /// The whole unit.
    pub const fn pdu_bytes(&self) -> u64 {
        self.data_at as u64 + self.data_bytes as u64 + if self.data_digest { DIGEST_BYTES as u64 } else { 0 }
    }

    /// Checks the header digest of `head`, which holds at least header and digest.
    ///
    /// Clause 3.5.1: "When a PDU Header digest error is detected, the PDU Header fields including the PDU
    /// length are not reliable", so this is fatal.
    pub fn check_header_digest(&self, head: &[u8]) -> Result<(), Fatal> {
        if !self.header_digest {
            return Ok(());
        }
        let short = Fatal::bare(FatalStatus::HEADER_DIGEST);
        let (header, rest) = head.split_at_checked(self.header_bytes).ok_or(short)?;
        let received = u32::from_le_bytes(*rest.first_chunk().ok_or(short)?);
        if digest(header) == received { Ok(()) } else { Err(Fatal { information: received, ..short }) }
    }
}

impl Common {
    /// Length in bytes.
    pub const BYTES: usize = 8;

    /// Reads it. Nothing is checked yet: that is for [`Common::layout`].
    pub fn parse(octets: &[u8; Self::BYTES]) -> Self {
        Self {
            kind: Kind(octets[0]),
            flags: Flags(octets[1]),
            header_bytes: octets[2],
            data_at: octets[3],
            pdu_bytes: le32(octets, 4),
        }
    }

    /// The bytes.
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [self.kind.0, self.flags.0, self.header_bytes, self.data_at, 0, 0, 0, 0];
        put(&mut octets, 4, self.pdu_bytes.to_le_bytes());
        octets
    }

    /// Checks the header against its kind, the `direction` it came from, what was agreed, and the longest
    /// data that is taken.
    pub fn layout(&self, direction: Direction, agreed: Agreed, data_bytes_max: u32) -> Result<Layout, Fatal> {
        // Clause 3.3: a unit "that is transferred in a direction opposite from that with which it is
        // associated is treated as a fatal transport error".
        let known = self.kind.header_bytes().filter(|_| self.kind.direction() == direction);
        let header_bytes = known.ok_or(Fatal::field(at::KIND))?;
        if usize::from(self.header_bytes) != header_bytes {
            return Err(Fatal::field(at::HEADER_BYTES));
        }
        let header_digest = self.kind.has_header_digest() && agreed.header_digest;
        if self.kind.has_header_digest() && self.flags.has(Flags::HDGSTF) != header_digest {
            return Err(Fatal::field(at::FLAGS));
        }
        let head_bytes = header_bytes + if header_digest { DIGEST_BYTES } else { 0 };
        let rest_bytes = u64::from(self.pdu_bytes).checked_sub(head_bytes as u64);
        let rest_bytes = rest_bytes.ok_or(Fatal::field(at::PDU_BYTES))?;
        let bare = Layout {
            kind: self.kind,
            flags: self.flags,
            header_bytes,
            header_digest,
            data_at: head_bytes,
            data_bytes: 0,
            data_digest: false,
        };
        match self.kind {
            Kind::H2C_TERM_REQ | Kind::C2H_TERM_REQ => {
                // Clause 3.5: a peer "shall ignore a C2HTermReq PDU with a PDU length (PLEN) that exceeds
                // 152 bytes".
                if rest_bytes > TERMINATION_DATA_BYTES_MAX as u64 {
                    return Err(Fatal::field(at::PDU_BYTES));
                }
                Ok(Layout { data_bytes: rest_bytes as u32, ..bare })
            }
            kind if kind.has_data() && rest_bytes > 0 => self.data_layout(bare, agreed, data_bytes_max),
            // Without data there is nothing to digest; a unit that must have data has none.
            Kind::CAPSULE_CMD if !self.flags.has(Flags::DDGSTF) => Ok(bare),
            Kind::CAPSULE_CMD => Err(Fatal::field(at::FLAGS)),
            kind if kind.has_data() || rest_bytes > 0 => Err(Fatal::field(at::PDU_BYTES)),
            _ => Ok(bare),
        }
    }

    fn data_layout(&self, bare: Layout, agreed: Agreed, data_bytes_max: u32) -> Result<Layout, Fatal> {
        if self.flags.has(Flags::DDGSTF) != agreed.data_digest {
            return Err(Fatal::field(at::FLAGS));
        }
        // Figures 24, 26 and 27: PDO "shall be a multiple of the data alignment".
        let aligned = self.data_at.is_multiple_of(agreed.alignment.bytes());
        let data_at = usize::from(self.data_at);
        if !aligned || data_at < bare.data_at {
            return Err(Fatal::field(at::DATA));
        }
        let digest_bytes = if agreed.data_digest { DIGEST_BYTES as u32 } else { 0 };
        let data_bytes = self.pdu_bytes.checked_sub(u32::from(self.data_at) + digest_bytes);
        match data_bytes {
            Some(data_bytes) if data_bytes > data_bytes_max => Err(match self.kind {
                // Clause 3.3.2.2: "a data length which exceeds MAXH2CDATA is treated as a fatal transport
                // error with the Fatal Error Status field in the C2HTermReq PDU set to 'Data Transfer Limit
                // Exceeded'".
                Kind::H2C_DATA => Fatal::bare(FatalStatus::LIMIT_EXCEEDED),
                _ => Fatal::field(at::PDU_BYTES),
            }),
            None | Some(0) => Err(Fatal::field(at::PDU_BYTES)),
            Some(data_bytes) => Ok(Layout { data_at, data_bytes, data_digest: agreed.data_digest, ..bare }),
        }
    }
}

/// Clause 3.3.1.1: "The HDGST and DDGST are calculated using the CRC32C algorithm".
#[inline]
pub fn digest(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The digest of what `so_far` is the digest of, followed by `bytes`.
#[inline]
pub fn digest_append(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

/// Header, digest and padding of a unit, ready to be sent before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    octets: [u8; HEAD_BYTES_MAX],
    bytes: u8,
}

impl Head {
    /// The bytes.
    #[inline]
    pub fn octets(&self) -> &[u8] {
        &self.octets[..usize::from(self.bytes)]
    }

    /// Finishes a unit of `kind` whose specific header stands in `octets` from byte 8 on.
    fn seal(
        mut octets: [u8; HEAD_BYTES_MAX],
        kind: Kind,
        flags: Flags,
        data_bytes: u32,
        agreed: Agreed,
    ) -> Result<Self, EmitError> {
        let header_bytes = kind.header_bytes().ok_or(EmitError::OutOfRange)?;
        let header_digest = kind.has_header_digest() && agreed.header_digest;
        let mut head_bytes = header_bytes + if header_digest { DIGEST_BYTES } else { 0 };
        let has_data = data_bytes > 0;
        let data_digest = has_data && kind.has_data() && agreed.data_digest;
        if has_data && kind.has_data() {
            head_bytes = head_bytes.next_multiple_of(usize::from(agreed.alignment.bytes()));
        }
        let data_at = u8::try_from(head_bytes).map_err(|_| EmitError::OutOfRange)?;
        let common = Common {
            kind,
            flags: flags.with_if(header_digest, Flags::HDGSTF).with_if(data_digest, Flags::DDGSTF),
            header_bytes: header_bytes as u8,
            data_at: if has_data && kind.has_data() { data_at } else { 0 },
            pdu_bytes: data_bytes
                .checked_add(head_bytes as u32 + if data_digest { DIGEST_BYTES as u32 } else { 0 })
                .ok_or(EmitError::OutOfRange)?,
        };
        put(&mut octets, 0, common.octets());
        if header_digest {
            let digest = digest(&octets[..header_bytes]);
            octets[header_bytes..header_bytes + DIGEST_BYTES].copy_from_slice(&digest.to_le_bytes());
        }
        Ok(Self { octets, bytes: data_at })
    }
}
