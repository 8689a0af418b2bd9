//! The specific headers, figures 20 to 28.

use super::{
    Agreed, Alignment, DigestFlags, Direction, Fatal, FatalStatus, Flags, HEAD_BYTES_MAX, Head, Kind, Layout,
    TERMINATION_BYTES_MAX, TERMINATION_DATA_BYTES_MAX,
};
use crate::EmitError;
use crate::field::{array, le16, le32, put};
use crate::nvme::{Command, Completion};

/// Figure 20: what the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcReq {
    /// HPDA: alignment of data that the controller sends.
    pub alignment: Alignment,
    /// DGST.
    pub digests: DigestFlags,
    /// MAXR2T: how many requests for data of one command may be open; at least 1. One less on the wire.
    pub r2t_max: u64,
}

/// Figure 21: what the controller grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcResp {
    /// CPDA: alignment of data that the host sends.
    pub alignment: Alignment,
    /// DGST.
    pub digests: DigestFlags,
    /// MAXH2CDATA: longest data of one unit from the host.
    pub data_bytes_max: u32,
}

/// Figures 26 and 27: where the data of a unit belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// CCCID: the command.
    pub command: u16,
    /// TTAG: from the request for data; 0 in what the controller sends, where it is reserved.
    pub tag: u16,
    /// DATAO: first byte in the command's buffer.
    pub offset_bytes: u32,
    /// DATAL: how many bytes.
    pub length_bytes: u32,
    /// The last unit of its transfer.
    pub is_last: bool,
    /// No completion follows; only with `is_last`, only from the controller.
    pub is_success: bool,
}

/// Figure 28: a request for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// CCCID: the command.
    pub command: u16,
    /// TTAG: comes back with the data.
    pub tag: u16,
    /// R2TO: first byte in the command's buffer.
    pub offset_bytes: u32,
    /// R2TL: how many bytes.
    pub length_bytes: u32,
}

/// A unit's specific header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// Figure 20.
    IcReq(IcReq),
    /// Figure 21.
    IcResp(IcResp),
    /// Figures 22 and 23; the header that was refused follows as data.
    Termination(Direction, Fatal),
    /// Figure 24; in-capsule data may follow.
    Command(Command),
    /// Figure 25.
    Completion(Completion),
    /// Figures 26 and 27; the data follows.
    Data(Direction, Data),
    /// Figure 28.
    Transfer(Transfer),
}

/// Offsets of specific fields, to name them in a [`Fatal`].
mod at {
    pub const FLAGS: u32 = 1;
    pub const PDU_BYTES: u32 = 4;
    pub const FORMAT: u32 = 8;
    pub const ALIGNMENT: u32 = 10;
    pub const DATA_BYTES_MAX: u32 = 12;
    pub const DATA_OFFSET: u32 = 12;
    pub const DATA_LENGTH: u32 = 16;
}

impl Pdu {
    /// Reads the header of the unit that `layout` describes; `header` begins with its first byte.
    pub fn parse(layout: &Layout, header: &[u8]) -> Result<Self, Fatal> {
        let short = Fatal::field(at::PDU_BYTES);
        let direction = layout.kind.direction();
        match layout.kind {
            Kind::IC_REQ | Kind::IC_RESP => {
                Self::parse_connection(layout.kind, header.first_chunk().ok_or(short)?)
            }
            Kind::CAPSULE_CMD => {
                let header: &[u8; 72] = header.first_chunk().ok_or(short)?;
                Ok(Self::Command(Command::parse(&array(header, 8))))
            }
            _ => {
                let header: &[u8; 24] = header.first_chunk().ok_or(short)?;
                match layout.kind {
                    Kind::H2C_TERM_REQ | Kind::C2H_TERM_REQ => {
                        let status = FatalStatus(le16(header, 8));
                        Ok(Self::Termination(direction, Fatal { status, information: le32(header, 10) }))
                    }
                    Kind::CAPSULE_RESP => Ok(Self::Completion(Completion::parse(&array(header, 8)))),
                    Kind::H2C_DATA | Kind::C2H_DATA => {
                        Data::parse(layout, direction, header).map(|data| Self::Data(direction, data))
                    }
                    _ => Transfer::parse(header).map(Self::Transfer),
                }
            }
        }
    }

    /// Clause 3.1: a wrong field is told apart from an unsupported parameter.
    fn parse_connection(kind: Kind, header: &[u8; 128]) -> Result<Self, Fatal> {
        // "The format of the record specified in this definition shall be cleared to 0h."
        if le16(header, 8) != 0 {
            return Err(Fatal::parameter(at::FORMAT));
        }
        let alignment = Alignment::new(header[10]).ok_or(Fatal::field(at::ALIGNMENT))?;
        let digests = DigestFlags(header[11] & DigestFlags::ALL.0);
        let last = le32(header, 12);
        if kind == Kind::IC_REQ {
            return Ok(Self::IcReq(IcReq { alignment, digests, r2t_max: u64::from(last) + 1 }));
        }
        // "This value is a multiple of dwords".
        if last == 0 || !last.is_multiple_of(4) {
            return Err(Fatal::field(at::DATA_BYTES_MAX));
        }
        Ok(Self::IcResp(IcResp { alignment, digests, data_bytes_max: last }))
    }

    /// The bytes before `data_bytes` of data.
    ///
    /// Refuses what the clauses forbid: data where none may be, none where some must be, lengths that
    /// contradict each other or are no multiple of 4.
    pub fn head(&self, data_bytes: u32, agreed: Agreed) -> Result<Head, EmitError> {
        let mut octets = [0; HEAD_BYTES_MAX];
        let (kind, flags, fits) = match self {
            Self::IcReq(request) => {
                let r2t = request.r2t_max.checked_sub(1).and_then(|less| u32::try_from(less).ok());
                let r2t = r2t.ok_or(EmitError::OutOfRange)?;
                put_connection(&mut octets, request.alignment, request.digests, r2t);
                (Kind::IC_REQ, Flags::NONE, data_bytes == 0)
            }
            Self::IcResp(response) => {
                let most = response.data_bytes_max;
                put_connection(&mut octets, response.alignment, response.digests, most);
                (Kind::IC_RESP, Flags::NONE, data_bytes == 0 && most > 0 && most.is_multiple_of(4))
            }
            Self::Termination(direction, fatal) => {
                put(&mut octets, 8, fatal.status.0.to_le_bytes());
                put(&mut octets, 10, fatal.information.to_le_bytes());
                let kind = by_direction(*direction, Kind::H2C_TERM_REQ, Kind::C2H_TERM_REQ);
                (kind, Flags::NONE, data_bytes as usize <= TERMINATION_DATA_BYTES_MAX)
            }
            Self::Command(command) => {
                put(&mut octets, 8, command.octets());
                (Kind::CAPSULE_CMD, Flags::NONE, true)
            }
            Self::Completion(completion) => {
                put(&mut octets, 8, completion.octets());
                (Kind::CAPSULE_RESP, Flags::NONE, data_bytes == 0)
            }
            Self::Data(direction, data) => {
                let fits = data.put(*direction, &mut octets) && data.length_bytes == data_bytes;
                (by_direction(*direction, Kind::H2C_DATA, Kind::C2H_DATA), data.flags(), fits)
            }
            Self::Transfer(transfer) => {
                (Kind::R2T, Flags::NONE, transfer.put(&mut octets) && data_bytes == 0)
            }
        };
        if fits { Head::seal(octets, kind, flags, data_bytes, agreed) } else { Err(EmitError::OutOfRange) }
    }
}

impl Data {
    fn parse(layout: &Layout, direction: Direction, header: &[u8; 24]) -> Result<Self, Fatal> {
        // What one direction has no use for is reserved there, and not looked at.
        let from_host = direction == Direction::HostToController;
        let is_success = layout.flags.has(Flags::SUCCESS) && !from_host;
        let data = Self {
            command: le16(header, 8),
            tag: if from_host { le16(header, 10) } else { 0 },
            offset_bytes: le32(header, 12),
            length_bytes: le32(header, 16),
            is_last: layout.flags.has(Flags::LAST_PDU),
            is_success,
        };
        if !data.offset_bytes.is_multiple_of(4) {
            return Err(Fatal::field(at::DATA_OFFSET));
        }
        // "PDU DATA field length in bytes": the header says the same twice.
        if !data.length_bytes.is_multiple_of(4) || data.length_bytes != layout.data_bytes {
            return Err(Fatal::field(at::DATA_LENGTH));
        }
        if data.offset_bytes.checked_add(data.length_bytes).is_none() {
            return Err(Fatal::bare(FatalStatus::DATA_OUT_OF_RANGE));
        }
        // Clause 3.3.2.1: "Reception of a C2HData PDU with the SUCCESS flag set to '1' and the LAST_PDU flag
        // cleared to '0' is treated as a fatal transport error".
        if data.is_success && !data.is_last {
            return Err(Fatal::field(at::FLAGS));
        }
        Ok(data)
    }

    fn flags(&self) -> Flags {
        Flags::NONE.with_if(self.is_last, Flags::LAST_PDU).with_if(self.is_success, Flags::SUCCESS)
    }

    /// Writes it; false if it contradicts itself.
    fn put(&self, direction: Direction, octets: &mut [u8; HEAD_BYTES_MAX]) -> bool {
        let from_host = direction == Direction::HostToController;
        put(octets, 8, self.command.to_le_bytes());
        put(octets, 10, if from_host { self.tag } else { 0 }.to_le_bytes());
        put(octets, 12, self.offset_bytes.to_le_bytes());
        put(octets, 16, self.length_bytes.to_le_bytes());
        let success_fits = !self.is_success || (self.is_last && !from_host);
        success_fits && self.length_bytes > 0 && is_range(self.offset_bytes, self.length_bytes)
    }
}

impl Transfer {
    fn parse(header: &[u8; 24]) -> Result<Self, Fatal> {
        let transfer = Self {
            command: le16(header, 8),
            tag: le16(header, 10),
            offset_bytes: le32(header, 12),
            length_bytes: le32(header, 16),
        };
        if !transfer.offset_bytes.is_multiple_of(4) {
            return Err(Fatal::field(at::DATA_OFFSET));
        }
        if transfer.length_bytes == 0 || !transfer.length_bytes.is_multiple_of(4) {
            return Err(Fatal::field(at::DATA_LENGTH));
        }
        if transfer.offset_bytes.checked_add(transfer.length_bytes).is_none() {
            return Err(Fatal::bare(FatalStatus::DATA_OUT_OF_RANGE));
        }
        Ok(transfer)
    }

    fn put(&self, octets: &mut [u8; HEAD_BYTES_MAX]) -> bool {
        put(octets, 8, self.command.to_le_bytes());
        put(octets, 10, self.tag.to_le_bytes());
        put(octets, 12, self.offset_bytes.to_le_bytes());
        put(octets, 16, self.length_bytes.to_le_bytes());
        self.length_bytes > 0 && is_range(self.offset_bytes, self.length_bytes)
    }
}

/// Clause 3.5: the last words of a connection, with "the PDU Header that was being processed when the fatal
/// error was detected".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termination<'a> {
    /// Why.
    pub fatal: Fatal,
    /// The header at fault, as far as it was received and as much of it as fits.
    pub header: &'a [u8],
}

impl Termination<'_> {
    /// The unit, sent by the side that `direction` says, and its length.
    pub fn octets(&self, direction: Direction) -> Result<([u8; TERMINATION_BYTES_MAX], usize), EmitError> {
        let data = &self.header[..self.header.len().min(TERMINATION_DATA_BYTES_MAX)];
        let head = Pdu::Termination(direction, self.fatal).head(data.len() as u32, Agreed::NOTHING)?;
        let mut octets = [0; TERMINATION_BYTES_MAX];
        let head = head.octets();
        octets[..head.len()].copy_from_slice(head);
        octets[head.len()..head.len() + data.len()].copy_from_slice(data);
        Ok((octets, head.len() + data.len()))
    }
}

fn put_connection(octets: &mut [u8; HEAD_BYTES_MAX], alignment: Alignment, digests: DigestFlags, last: u32) {
    put(octets, 10, [alignment.dwords_less_one(), digests.0]);
    put(octets, 12, last.to_le_bytes());
}

fn by_direction(direction: Direction, from_host: Kind, from_controller: Kind) -> Kind {
    match direction {
        Direction::HostToController => from_host,
        Direction::ControllerToHost => from_controller,
    }
}

/// Multiples of 4 that end within 32 bits.
fn is_range(offset_bytes: u32, length_bytes: u32) -> bool {
    (offset_bytes | length_bytes).is_multiple_of(4) && offset_bytes.checked_add(length_bytes).is_some()
}
