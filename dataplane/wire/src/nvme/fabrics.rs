//! Fabrics commands (clause 6): connect a queue, read and write the controller's properties, disconnect.

use super::{AdminOpcode, Command, Completion, Sgl, StatusCode};
use crate::EmitError;
use crate::codes::{codes, flags};
use crate::field::{array, le16, put};

/// Length of the data of a connect command.
pub const CONNECT_DATA_BYTES: usize = 1024;
/// "NVMe Qualified Names": 223 bytes and a NUL at most.
pub const NQN_BYTES_MAX: usize = 223;
/// The name of every discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Clause 6.3: a host asks for any controller that is free (dynamic controller model).
pub const CONTROLLER_ANY: u16 = 0xffff;

const NQN_FIELD_BYTES: usize = 256;

codes! {
    /// "Fabrics Command Type".
    FabricsType(u8) {
        /// Write a property.
        PROPERTY_SET = 0x00, "Property Set";
        /// Make this connection a queue.
        CONNECT = 0x01, "Connect";
        /// Read a property.
        PROPERTY_GET = 0x04, "Property Get";
        /// Authenticate.
        AUTHENTICATION_SEND = 0x05, "Authentication Send";
        /// Authenticate.
        AUTHENTICATION_RECEIVE = 0x06, "Authentication Receive";
        /// End an I/O queue.
        DISCONNECT = 0x08, "Disconnect";
    }
}

codes! {
    /// Properties by offset ("Property Definition").
    Property(u32) {
        /// Controller capabilities, 8 bytes.
        CAP = 0x00, "CAP";
        /// Version, 4 bytes.
        VS = 0x08, "VS";
        /// Configuration, 4 bytes.
        CC = 0x14, "CC";
        /// Status, 4 bytes.
        CSTS = 0x1c, "CSTS";
        /// Subsystem reset, 4 bytes.
        NSSR = 0x20, "NSSR";
        /// How long until it is ready, 4 bytes.
        CRTO = 0x68, "CRTO";
    }
}

flags! {
    /// CATTR of a connect command. Bits 1:0 are the queue's priority.
    ConnectFlags(u8) {
        /// Neither side counts places in the queue.
        DISABLE_FLOW_CONTROL = 2, "DISSQFC";
        /// The host can end this queue alone.
        INDIVIDUAL_DELETION = 3, "INDIVIOQDELS";
    }
}

/// A Fabrics command, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabrics {
    /// Clause 6.3; [`ConnectData`] follows.
    Connect(Connect),
    /// Clause 6.5; [`Completion::result`] is the answer.
    PropertyGet {
        /// Which.
        property: Property,
        /// It has 8 bytes, not 4.
        is_long: bool,
    },
    /// Clause 6.6.
    PropertySet {
        /// Which.
        property: Property,
        /// It has 8 bytes, not 4.
        is_long: bool,
        /// What to write.
        value: u64,
    },
    /// Clause 6.4.
    Disconnect,
    /// Another type; authentication, or one of a vendor.
    Other(FabricsType),
}

/// "Connect Command – Submission Queue Entry".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// QID: 0 for the admin queue.
    pub queue: u16,
    /// SQSIZE: places in the queue; one less on the wire, where 0 is not allowed.
    pub entries: u32,
    /// CATTR.
    pub flags: ConnectFlags,
    /// KATO: how long the host may be silent, in milliseconds; 0 for ever. Of the admin queue only.
    pub keep_alive_ms: u32,
}

impl Fabrics {
    /// Reads a command whose opcode is [`AdminOpcode::FABRICS`].
    pub fn parse(command: &Command) -> Result<Self, StatusCode> {
        let [dword10, dword11, dword12, dword13, ..] = command.dwords_10_15;
        // "ATTRIB: bits 2:0, 000b 4 bytes, 001b 8 bytes, others reserved."
        let (property, attributes) = (Property(dword11), dword10 & 0b111);
        let is_long = attributes == 1;
        // "Record Format: [...] shall be 0h. If the NVM subsystem does not support the value specified, then
        // a status code of Incompatible Format shall be returned."
        let format = dword10 as u16;
        Ok(match FabricsType(command.namespace as u8) {
            FabricsType::CONNECT | FabricsType::DISCONNECT if format != 0 => {
                return Err(StatusCode::INCOMPATIBLE_FORMAT);
            }
            FabricsType::CONNECT => Self::Connect(Connect {
                queue: (dword10 >> 16) as u16,
                entries: (dword11 & 0xffff) + 1,
                flags: ConnectFlags((dword11 >> 16) as u8),
                keep_alive_ms: dword12,
            }),
            FabricsType::DISCONNECT => Self::Disconnect,
            FabricsType::PROPERTY_GET | FabricsType::PROPERTY_SET if attributes > 1 => {
                return Err(StatusCode::INVALID_FIELD);
            }
            FabricsType::PROPERTY_GET => Self::PropertyGet { property, is_long },
            FabricsType::PROPERTY_SET => {
                let value = u64::from(dword13) << 32 | u64::from(dword12);
                Self::PropertySet { property, is_long, value }
            }
            other => Self::Other(other),
        })
    }

    /// The command with identifier `id`, with `sgl` for its data. Refuses a queue of 0 or more than 65,536
    /// places.
    pub fn command(&self, id: u16, sgl: Sgl) -> Result<Command, EmitError> {
        let mut dwords = [0; 6];
        let kind = match *self {
            Self::Connect(Connect { queue, entries, flags, keep_alive_ms }) => {
                let last = entries.checked_sub(1).filter(|&last| last <= u32::from(u16::MAX));
                dwords[0] = u32::from(queue) << 16;
                dwords[1] = last.ok_or(EmitError::OutOfRange)? | u32::from(flags.0) << 16;
                dwords[2] = keep_alive_ms;
                FabricsType::CONNECT
            }
            Self::PropertyGet { property, is_long } => {
                (dwords[0], dwords[1]) = (u32::from(is_long), property.0);
                FabricsType::PROPERTY_GET
            }
            Self::PropertySet { property, is_long, value } => {
                (dwords[0], dwords[1]) = (u32::from(is_long), property.0);
                (dwords[2], dwords[3]) = (value as u32, (value >> 32) as u32);
                FabricsType::PROPERTY_SET
            }
            Self::Disconnect => FabricsType::DISCONNECT,
            Self::Other(other) => other,
        };
        Ok(Command {
            opcode: AdminOpcode::FABRICS.0,
            flags: 0b01 << 6,
            id,
            namespace: u32::from(kind.0),
            sgl: sgl.octets(),
            dwords_10_15: dwords,
            ..Command::default()
        })
    }
}

/// "Connect Command – Data".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectData<'a> {
    /// HOSTID.
    pub host_id: [u8; 16],
    /// CNTLID: which controller; [`CONTROLLER_ANY`] for any.
    pub controller: u16,
    /// SUBNQN: the subsystem.
    pub subsystem: &'a str,
    /// HOSTNQN: the host.
    pub host: &'a str,
}

/// What "Connect Invalid Parameters" points at: "Connect Response – Dword 0 Value Based on Status Code".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidParameter {
    /// IATTR: it stands in the data, not in the command.
    pub in_data: bool,
    /// IPO: its first byte.
    pub offset_bytes: u16,
}

impl InvalidParameter {
    /// HOSTID in the data.
    pub const HOST_ID: Self = Self { in_data: true, offset_bytes: 0 };
    /// CNTLID in the data.
    pub const CONTROLLER: Self = Self { in_data: true, offset_bytes: 16 };
    /// SUBNQN in the data.
    pub const SUBSYSTEM: Self = Self { in_data: true, offset_bytes: 256 };
    /// HOSTNQN in the data.
    pub const HOST: Self = Self { in_data: true, offset_bytes: 512 };
    /// QID in the command.
    pub const QUEUE: Self = Self { in_data: false, offset_bytes: 42 };
    /// SQSIZE in the command.
    pub const ENTRIES: Self = Self { in_data: false, offset_bytes: 44 };

    /// The completion that says so.
    pub fn completion(self, command: u16) -> Completion {
        Completion {
            result: u64::from(self.offset_bytes) | u64::from(self.in_data) << 16,
            command,
            status: StatusCode::CONNECT_INVALID_PARAMETERS,
            do_not_retry: true,
            ..Completion::default()
        }
    }
}

impl<'a> ConnectData<'a> {
    /// Reads it; refuses a name that is none.
    pub fn parse(octets: &'a [u8; CONNECT_DATA_BYTES]) -> Result<Self, InvalidParameter> {
        let (names, _) = octets[256..768].as_chunks::<NQN_FIELD_BYTES>();
        let [subsystem, host] = names else { return Err(InvalidParameter::SUBSYSTEM) };
        Ok(Self {
            host_id: array(octets, 0),
            controller: le16(octets, 16),
            subsystem: nqn(subsystem).ok_or(InvalidParameter::SUBSYSTEM)?,
            host: nqn(host).ok_or(InvalidParameter::HOST)?,
        })
    }

    /// The bytes. Refuses names that are too long or hold NUL.
    pub fn octets(&self) -> Result<[u8; CONNECT_DATA_BYTES], EmitError> {
        let mut octets = [0; CONNECT_DATA_BYTES];
        put(&mut octets, 0, self.host_id);
        put(&mut octets, 16, self.controller.to_le_bytes());
        for (at, name) in [(256, self.subsystem), (512, self.host)] {
            if name.is_empty() || name.len() > NQN_BYTES_MAX || name.contains('\0') {
                return Err(EmitError::OutOfRange);
            }
            octets[at..at + name.len()].copy_from_slice(name.as_bytes());
        }
        Ok(octets)
    }
}

/// "NVMe Qualified Names": UTF-8, at most 223 bytes, ended by NUL.
fn nqn(field: &[u8; NQN_FIELD_BYTES]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0).filter(|end| (1..=NQN_BYTES_MAX).contains(end))?;
    std::str::from_utf8(&field[..end]).ok()
}
