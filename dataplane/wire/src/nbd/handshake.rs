//! What is said until an export is chosen: greeting, options and their replies.
//!
//! Only the newstyle handshake; "Oldstyle negotiation" is "no longer developed", and a server "SHOULD refuse
//! to allow oldstyle negotiations on the newstyle port".

use super::{ParseError, TransmissionFlags, text};
use crate::EmitError;
use crate::codes::{codes, flags};
use crate::field::{be16, be32, be64, put16, put32, put64};

/// "Newstyle negotiation": `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "Newstyle negotiation": `IHAVEOPT`, in the greeting and before each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// "Fixed newstyle negotiation": before each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// "Newstyle negotiation": zeroes after the answer to `NBD_OPT_EXPORT_NAME`, unless both sides leave them
/// out.
pub const EXPORT_NAME_ZEROES: usize = 124;

flags! {
    /// "Handshake flags": what the server offers.
    HandshakeFlags(u16) {
        /// Options other than the export name are understood.
        FIXED_NEWSTYLE = 0, "NBD_FLAG_FIXED_NEWSTYLE";
        /// The zeroes after the answer to the export name can be left out.
        NO_ZEROES = 1, "NBD_FLAG_NO_ZEROES";
    }
}

flags! {
    /// "Client flags": what the client takes of it.
    ClientFlags(u32) {
        /// Options other than the export name may follow.
        FIXED_NEWSTYLE = 0, "NBD_FLAG_C_FIXED_NEWSTYLE";
        /// The zeroes after the answer to the export name are left out.
        NO_ZEROES = 1, "NBD_FLAG_C_NO_ZEROES";
    }
}

codes! {
    /// "Option types".
    OptionCode(u32) {
        /// Choose an export and begin; cannot be refused but by closing.
        EXPORT_NAME = 1, "NBD_OPT_EXPORT_NAME";
        /// Give up.
        ABORT = 2, "NBD_OPT_ABORT";
        /// Name the exports.
        LIST = 3, "NBD_OPT_LIST";
        /// Withdrawn.
        PEEK_EXPORT = 4, "NBD_OPT_PEEK_EXPORT";
        /// Go on over TLS.
        STARTTLS = 5, "NBD_OPT_STARTTLS";
        /// Describe an export.
        INFO = 6, "NBD_OPT_INFO";
        /// Describe an export and begin.
        GO = 7, "NBD_OPT_GO";
        /// Answer reads in chunks.
        STRUCTURED_REPLY = 8, "NBD_OPT_STRUCTURED_REPLY";
        /// Name the metadata contexts of an export.
        LIST_META_CONTEXT = 9, "NBD_OPT_LIST_META_CONTEXT";
        /// Select metadata contexts of an export.
        SET_META_CONTEXT = 10, "NBD_OPT_SET_META_CONTEXT";
        /// Experimental.
        EXTENDED_HEADERS = 11, "NBD_OPT_EXTENDED_HEADERS";
    }
}

codes! {
    /// "Option reply types". Errors have bit 31 set and may carry text.
    ReplyCode(u32) {
        /// Done.
        ACK = 1, "NBD_REP_ACK";
        /// One export.
        SERVER = 2, "NBD_REP_SERVER";
        /// One fact about an export.
        INFO = 3, "NBD_REP_INFO";
        /// One metadata context.
        META_CONTEXT = 4, "NBD_REP_META_CONTEXT";
        /// Unknown option.
        ERR_UNSUP = 1 << 31 | 1, "NBD_REP_ERR_UNSUP";
        /// Forbidden by configuration.
        ERR_POLICY = 1 << 31 | 2, "NBD_REP_ERR_POLICY";
        /// Contradicts the protocol.
        ERR_INVALID = 1 << 31 | 3, "NBD_REP_ERR_INVALID";
        /// Not on this platform.
        ERR_PLATFORM = 1 << 31 | 4, "NBD_REP_ERR_PLATFORM";
        /// TLS first.
        ERR_TLS_REQD = 1 << 31 | 5, "NBD_REP_ERR_TLS_REQD";
        /// No such export.
        ERR_UNKNOWN = 1 << 31 | 6, "NBD_REP_ERR_UNKNOWN";
        /// Going down.
        ERR_SHUTDOWN = 1 << 31 | 7, "NBD_REP_ERR_SHUTDOWN";
        /// Block sizes must be asked for first.
        ERR_BLOCK_SIZE_REQD = 1 << 31 | 8, "NBD_REP_ERR_BLOCK_SIZE_REQD";
        /// Too long.
        ERR_TOO_BIG = 1 << 31 | 9, "NBD_REP_ERR_TOO_BIG";
        /// Experimental.
        ERR_EXT_HEADER_REQD = 1 << 31 | 10, "NBD_REP_ERR_EXT_HEADER_REQD";
    }
}

impl ReplyCode {
    /// "There are a number of error reply types, all of which are denoted by having bit 31 set."
    pub const fn is_error(self) -> bool {
        self.0 >> 31 != 0
    }
}

codes! {
    /// "`NBD_REP_INFO`": information types.
    InfoCode(u16) {
        /// Size and flags.
        EXPORT = 0, "NBD_INFO_EXPORT";
        /// Canonical name.
        NAME = 1, "NBD_INFO_NAME";
        /// Text for people.
        DESCRIPTION = 2, "NBD_INFO_DESCRIPTION";
        /// Block sizes.
        BLOCK_SIZE = 3, "NBD_INFO_BLOCK_SIZE";
    }
}

/// "Newstyle negotiation": the first bytes of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the server offers.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// Length in bytes.
    pub const BYTES: usize = 18;

    /// Reads it from the front of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let octets: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        expect_magic(be64(octets, 0), INIT_MAGIC)?;
        expect_magic(be64(octets, 8), OPTION_MAGIC)?;
        Ok(Self { flags: HandshakeFlags(be16(octets, 16)) })
    }

    /// The bytes.
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put64(&mut octets, 0, INIT_MAGIC);
        put64(&mut octets, 8, OPTION_MAGIC);
        put16(&mut octets, 16, self.flags.0);
        octets
    }
}

impl ClientFlags {
    /// Length in bytes.
    pub const BYTES: usize = 4;

    /// Reads them from the front of `bytes`, known or not.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        bytes.first_chunk().map(|octets| Self(u32::from_be_bytes(*octets))).ok_or(ParseError::Truncated)
    }

    /// The bytes.
    pub fn octets(&self) -> [u8; Self::BYTES] {
        self.0.to_be_bytes()
    }
}

/// "Newstyle negotiation": what stands before the data of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: OptionCode,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl OptionHeader {
    /// Length in bytes.
    pub const BYTES: usize = 16;

    /// Reads it from the front of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let octets: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        expect_magic(be64(octets, 0), OPTION_MAGIC)?;
        Ok(Self { option: OptionCode(be32(octets, 8)), data_bytes: be32(octets, 12) })
    }

    /// The bytes.
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put64(&mut octets, 0, OPTION_MAGIC);
        put32(&mut octets, 8, self.option.0);
        put32(&mut octets, 12, self.data_bytes);
        octets
    }
}

/// "Fixed newstyle negotiation": what stands before the data of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionCode,
    /// What the answer is.
    pub code: ReplyCode,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl OptionReplyHeader {
    /// Length in bytes.
    pub const BYTES: usize = 20;

    /// Reads it from the front of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let octets: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        expect_magic(be64(octets, 0), OPTION_REPLY_MAGIC)?;
        Ok(Self {
            option: OptionCode(be32(octets, 8)),
            code: ReplyCode(be32(octets, 12)),
            data_bytes: be32(octets, 16),
        })
    }

    /// The bytes.
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put64(&mut octets, 0, OPTION_REPLY_MAGIC);
        put32(&mut octets, 8, self.option.0);
        put32(&mut octets, 12, self.code.0);
        put32(&mut octets, 16, self.data_bytes);
        octets
    }
}

/// "Newstyle negotiation": the answer to `NBD_OPT_EXPORT_NAME`, which has no reply header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportNameReply {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Length in bytes, without the zeroes.
    pub const BYTES: usize = 10;

    /// Reads it from the front of `bytes`; the zeroes, if there are any, are the caller's to skip.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let octets: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        Ok(Self { size_bytes: be64(octets, 0), flags: TransmissionFlags(be16(octets, 8)) })
    }

    /// The bytes, without the zeroes.
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put64(&mut octets, 0, self.size_bytes);
        put16(&mut octets, 8, self.flags.0);
        octets
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export; empty for the default one.
    pub name: &'a str,
    /// Information types, two bytes each.
    wanted: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    /// Reads all of `data`.
    ///
    /// "32 bits, length of name (unsigned); MUST be no larger than the option data length - 6; String: name
    /// of the export; 16 bits, number of information requests; 16 bits x n".
    pub fn parse(data: &'a [u8]) -> Result<Self, ParseError> {
        let (name, rest) = split_text(data)?;
        let (count, wanted) = rest.split_first_chunk().ok_or(ParseError::Length)?;
        if wanted.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
            return Err(ParseError::Length);
        }
        Ok(Self { name, wanted })
    }

    /// The information types asked for, as often as they stand there.
    pub fn wanted(&self) -> impl Iterator<Item = InfoCode> + 'a {
        self.wanted.chunks_exact(2).map(|pair| InfoCode(u16::from_be_bytes([pair[0], pair[1]])))
    }

    /// Writes the data of an option that asks for `wanted` of export `name`; returns its length.
    pub fn emit(name: &str, wanted: &[InfoCode], out: &mut [u8]) -> Result<usize, EmitError> {
        let count = u16::try_from(wanted.len()).map_err(|_| EmitError::OutOfRange)?;
        let mut writer = Writer::new(out, 4 + name.len() + 2 + 2 * wanted.len())?;
        writer.sized_text(name)?;
        writer.bytes(&count.to_be_bytes());
        wanted.iter().for_each(|code| writer.bytes(&code.0.to_be_bytes()));
        Ok(writer.at)
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// The export; empty for the default one.
    pub name: &'a str,
    /// How many queries.
    pub queries: u32,
    rest: &'a [u8],
}

impl<'a> MetaContextRequest<'a> {
    /// Reads all of `data`, the queries included.
    ///
    /// "32 bits, length of export name; String; 32 bits, number of queries; Zero or more queries, each being:
    /// 32 bits, length of query; String". "If the option request is syntactically invalid (such as a query
    /// length that would require reading beyond the original length given in the option header), the server
    /// MUST fail the request".
    pub fn parse(data: &'a [u8]) -> Result<Self, ParseError> {
        let (name, rest) = split_text(data)?;
        let (count, rest) = rest.split_first_chunk().ok_or(ParseError::Length)?;
        let queries = u32::from_be_bytes(*count);
        let mut left = rest;
        for _ in 0..queries {
            (_, left) = split_text(left)?;
        }
        if left.is_empty() { Ok(Self { name, queries, rest }) } else { Err(ParseError::Length) }
    }

    /// The queries.
    pub fn queries(&self) -> impl Iterator<Item = &'a str> + 'a {
        let mut left = self.rest;
        std::iter::from_fn(move || {
            let (query, rest) = split_text(left).ok()?;
            left = rest;
            Some(query)
        })
    }

    /// Writes the data of an option about export `name`; returns its length.
    pub fn emit(name: &str, queries: &[&str], out: &mut [u8]) -> Result<usize, EmitError> {
        let count = u32::try_from(queries.len()).map_err(|_| EmitError::OutOfRange)?;
        let texts: usize = queries.iter().map(|query| 4 + query.len()).sum();
        let mut writer = Writer::new(out, 4 + name.len() + 4 + texts)?;
        writer.sized_text(name)?;
        writer.bytes(&count.to_be_bytes());
        for query in queries {
            writer.sized_text(query)?;
        }
        Ok(writer.at)
    }
}

/// The data of a reply, by its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `NBD_REP_ACK`: no data.
    Ack,
    /// `NBD_REP_SERVER`: an export and, behind its name, text for people.
    Server {
        /// Name of the export.
        name: &'a str,
        /// What it is.
        description: &'a str,
    },
    /// `NBD_REP_INFO`.
    Info(Info<'a>),
    /// `NBD_REP_META_CONTEXT`.
    MetaContext {
        /// Stands before the answers of this context during transmission.
        id: u32,
        /// Name of the context.
        name: &'a str,
    },
    /// Any code with bit 31 set: text for people, often none.
    Error {
        /// Which error.
        code: ReplyCode,
        /// Why.
        message: &'a str,
    },
}

/// The data of `NBD_REP_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info<'a> {
    /// `NBD_INFO_EXPORT`.
    Export {
        /// Size of the export in bytes.
        size_bytes: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// `NBD_INFO_NAME`.
    Name(&'a str),
    /// `NBD_INFO_DESCRIPTION`.
    Description(&'a str),
    /// `NBD_INFO_BLOCK_SIZE`.
    BlockSize(BlockSizes),
    /// Another type, which "the client MUST ignore".
    Other(InfoCode),
}

/// "Size constraints", checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    minimum_bytes: u32,
    preferred_bytes: u32,
    payload_bytes_max: u32,
}

impl BlockSizes {
    /// `None` unless: the minimum "MUST be a power of 2, MUST NOT be larger than 2^16"; the preferred size
    /// "MUST be a power of 2 at least as large as the maximum of the minimum block size and 2^9"; the
    /// payload "MUST be at least as large as the preferred block size".
    pub const fn new(minimum_bytes: u32, preferred_bytes: u32, payload_bytes_max: u32) -> Option<Self> {
        let fits = minimum_bytes.is_power_of_two()
            && minimum_bytes <= super::MINIMUM_BLOCK_BYTES_MAX
            && preferred_bytes.is_power_of_two()
            && preferred_bytes >= minimum_bytes
            && preferred_bytes >= 512
            && payload_bytes_max >= preferred_bytes;
        if fits { Some(Self { minimum_bytes, preferred_bytes, payload_bytes_max }) } else { None }
    }

    /// Alignment of every offset and length, in bytes.
    pub const fn minimum_bytes(self) -> u32 {
        self.minimum_bytes
    }

    /// Smallest size of an efficient request, in bytes.
    pub const fn preferred_bytes(self) -> u32 {
        self.preferred_bytes
    }

    /// Longest payload, in bytes.
    pub const fn payload_bytes_max(self) -> u32 {
        self.payload_bytes_max
    }
}

impl<'a> Reply<'a> {
    /// Reads the data of a reply with `code`: all of `data`.
    pub fn parse(code: ReplyCode, data: &'a [u8]) -> Result<Self, ParseError> {
        match code {
            ReplyCode::ACK if data.is_empty() => Ok(Self::Ack),
            ReplyCode::ACK => Err(ParseError::Length),
            ReplyCode::SERVER => {
                let (name, rest) = split_text(data)?;
                Ok(Self::Server { name, description: text(rest)? })
            }
            ReplyCode::INFO => Info::parse(data).map(Self::Info),
            ReplyCode::META_CONTEXT => {
                let (id, name) = data.split_first_chunk().ok_or(ParseError::Length)?;
                Ok(Self::MetaContext { id: u32::from_be_bytes(*id), name: text(name)? })
            }
            code if code.is_error() => Ok(Self::Error { code, message: text(data)? }),
            _ => Err(ParseError::Value),
        }
    }

    /// The code that says what the data is.
    pub const fn code(&self) -> ReplyCode {
        match self {
            Self::Ack => ReplyCode::ACK,
            Self::Server { .. } => ReplyCode::SERVER,
            Self::Info(_) => ReplyCode::INFO,
            Self::MetaContext { .. } => ReplyCode::META_CONTEXT,
            Self::Error { code, .. } => *code,
        }
    }

    /// Length of the data when written.
    pub const fn data_bytes(&self) -> usize {
        match self {
            Self::Ack => 0,
            Self::Server { name, description } => 4 + name.len() + description.len(),
            Self::Info(info) => info.data_bytes(),
            Self::MetaContext { name, .. } => 4 + name.len(),
            Self::Error { message, .. } => message.len(),
        }
    }

    /// Writes the reply to `option`, header and data, to the front of `out`; returns its length.
    pub fn emit(&self, option: OptionCode, out: &mut [u8]) -> Result<usize, EmitError> {
        let data_bytes = self.data_bytes();
        let mut writer = Writer::new(out, OptionReplyHeader::BYTES + data_bytes)?;
        let header = OptionReplyHeader { option, code: self.code(), data_bytes: data_bytes as u32 };
        writer.bytes(&header.octets());
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                writer.sized_text(name)?;
                writer.text(description)?;
            }
            Self::Info(info) => info.write(&mut writer)?,
            Self::MetaContext { id, name } => {
                writer.bytes(&id.to_be_bytes());
                writer.text(name)?;
            }
            Self::Error { message, .. } => writer.text(message)?,
        }
        Ok(writer.at)
    }
}

impl<'a> Info<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, ParseError> {
        let (code, rest) = data.split_first_chunk().ok_or(ParseError::Length)?;
        match InfoCode(u16::from_be_bytes(*code)) {
            InfoCode::EXPORT => {
                let octets: &[u8; 10] = rest.try_into().map_err(|_| ParseError::Length)?;
                Ok(Self::Export { size_bytes: be64(octets, 0), flags: TransmissionFlags(be16(octets, 8)) })
            }
            InfoCode::NAME => text(rest).map(Self::Name),
            InfoCode::DESCRIPTION => text(rest).map(Self::Description),
            InfoCode::BLOCK_SIZE => {
                let octets: &[u8; 12] = rest.try_into().map_err(|_| ParseError::Length)?;
                BlockSizes::new(be32(octets, 0), be32(octets, 4), be32(octets, 8))
                    .map(Self::BlockSize)
                    .ok_or(ParseError::Value)
            }
            other => Ok(Self::Other(other)),
        }
    }

    const fn data_bytes(&self) -> usize {
        2 + match self {
            Self::Export { .. } => 10,
            Self::Name(text) | Self::Description(text) => text.len(),
            Self::BlockSize(_) => 12,
            Self::Other(_) => 0,
        }
    }

    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EmitError> {
        let code = match self {
            Self::Export { .. } => InfoCode::EXPORT,
            Self::Name(_) => InfoCode::NAME,
            Self::Description(_) => InfoCode::DESCRIPTION,
            Self::BlockSize(_) => InfoCode::BLOCK_SIZE,
            Self::Other(code) => *code,
        };
        writer.bytes(&code.0.to_be_bytes());
        match self {
            Self::Export { size_bytes, flags } => {
                writer.bytes(&size_bytes.to_be_bytes());
                writer.bytes(&flags.0.to_be_bytes());
            }
            Self::Name(text) | Self::Description(text) => writer.text(text)?,
            Self::BlockSize(sizes) => {
                writer.bytes(&sizes.minimum_bytes.to_be_bytes());
                writer.bytes(&sizes.preferred_bytes.to_be_bytes());
                writer.bytes(&sizes.payload_bytes_max.to_be_bytes());
            }
            Self::Other(_) => {}
        }
        Ok(())
    }
}

/// A string with its length before it, and what follows.
fn split_text(data: &[u8]) -> Result<(&str, &[u8]), ParseError> {
    let (bytes, rest) = data.split_first_chunk().ok_or(ParseError::Length)?;
    let (string, rest) =
        rest.split_at_checked(u32::from_be_bytes(*bytes) as usize).ok_or(ParseError::Length)?;
    Ok((text(string)?, rest))
}

fn expect_magic(found: u64, wanted: u64) -> Result<(), ParseError> {
    if found == wanted { Ok(()) } else { Err(ParseError::Magic { found }) }
}

/// Writes pieces behind each other into a slice that was found long enough.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut [u8], needed_bytes: usize) -> Result<Self, EmitError> {
        let out = out.get_mut(..needed_bytes).ok_or(EmitError::NoRoom { needed_bytes })?;
        Ok(Self { out, at: 0 })
    }

    /// Room was counted in `new`; were the count wrong, nothing would be written.
    fn bytes(&mut self, bytes: &[u8]) {
        let room = self.out.get_mut(self.at..self.at + bytes.len());
        debug_assert!(room.is_some(), "the length was counted before");
        if let Some(room) = room {
            room.copy_from_slice(bytes);
            self.at += bytes.len();
        }
    }

    fn text(&mut self, string: &str) -> Result<(), EmitError> {
        text(string.as_bytes()).map_err(|_| EmitError::OutOfRange)?;
        self.bytes(string.as_bytes());
        Ok(())
    }

    fn sized_text(&mut self, string: &str) -> Result<(), EmitError> {
        self.bytes(&(string.len() as u32).to_be_bytes());
        self.text(string)
    }
}
