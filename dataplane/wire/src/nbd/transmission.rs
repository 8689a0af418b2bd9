//! What is said once an export is chosen: requests, simple replies, and chunks of structured replies.

use super::{ParseError, TEXT_BYTES_MAX, text};
use crate::EmitError;
use crate::codes::{codes, flags};
use crate::field::{array, be16, be32, be64, put, put16, put32, put64};

/// "Request message".
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// "Simple reply message".
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// "Structured reply chunk message".
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

codes! {
    /// "Request types".
    Command(u16) {
        /// Read.
        READ = 0, "NBD_CMD_READ";
        /// Write; the payload follows.
        WRITE = 1, "NBD_CMD_WRITE";
        /// Disconnect; no reply.
        DISC = 2, "NBD_CMD_DISC";
        /// Make what was answered durable.
        FLUSH = 3, "NBD_CMD_FLUSH";
        /// Not needed any more.
        TRIM = 4, "NBD_CMD_TRIM";
        /// Needed soon.
        CACHE = 5, "NBD_CMD_CACHE";
        /// Write zeroes.
        WRITE_ZEROES = 6, "NBD_CMD_WRITE_ZEROES";
        /// What is allocated.
        BLOCK_STATUS = 7, "NBD_CMD_BLOCK_STATUS";
        /// Experimental.
        RESIZE = 8, "NBD_CMD_RESIZE";
    }
}

flags! {
    /// "Command flags".
    CommandFlags(u16) {
        /// Answer when durable.
        FUA = 0, "NBD_CMD_FLAG_FUA";
        /// Keep the zeroed range allocated.
        NO_HOLE = 1, "NBD_CMD_FLAG_NO_HOLE";
        /// Answer a read in one piece.
        DF = 2, "NBD_CMD_FLAG_DF";
        /// One descriptor is enough.
        REQ_ONE = 3, "NBD_CMD_FLAG_REQ_ONE";
        /// Fail if not faster than writing.
        FAST_ZERO = 4, "NBD_CMD_FLAG_FAST_ZERO";
    }
}

codes! {
    /// "Error values".
    ErrorCode(u32) {
        /// No error.
        OK = 0, "NBD_OK";
        /// Not permitted.
        PERM = 1, "NBD_EPERM";
        /// The medium failed.
        IO = 5, "NBD_EIO";
        /// No memory.
        NOMEM = 12, "NBD_ENOMEM";
        /// Contradicts the protocol or the export.
        INVAL = 22, "NBD_EINVAL";
        /// Full, or beyond the end.
        NOSPC = 28, "NBD_ENOSPC";
        /// Too long for what was asked.
        OVERFLOW = 75, "NBD_EOVERFLOW";
        /// Not fast.
        NOTSUP = 95, "NBD_ENOTSUP";
        /// Going down.
        SHUTDOWN = 108, "NBD_ESHUTDOWN";
    }
}

flags! {
    /// "Structured reply flags".
    ChunkFlags(u16) {
        /// The last chunk of its reply.
        DONE = 0, "NBD_REPLY_FLAG_DONE";
    }
}

codes! {
    /// "Structured reply types". Errors have bit 15 set.
    ChunkCode(u16) {
        /// The reply is complete.
        NONE = 0, "NBD_REPLY_TYPE_NONE";
        /// Data.
        OFFSET_DATA = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        /// Zeroes that are not sent.
        OFFSET_HOLE = 2, "NBD_REPLY_TYPE_OFFSET_HOLE";
        /// What is allocated.
        BLOCK_STATUS = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        /// Error of the whole request.
        ERROR = 1 << 15 | 1, "NBD_REPLY_TYPE_ERROR";
        /// Error at an offset.
        ERROR_OFFSET = 1 << 15 | 2, "NBD_REPLY_TYPE_ERROR_OFFSET";
    }
}

impl ChunkCode {
    /// "All error chunk types have bit 15 set".
    pub const fn is_error(self) -> bool {
        self.0 >> 15 != 0
    }
}

flags! {
    /// "`base:allocation` metadata context".
    AllocationFlags(u32) {
        /// Not allocated: writing may need room.
        HOLE = 0, "NBD_STATE_HOLE";
        /// Reads as zeroes.
        ZERO = 1, "NBD_STATE_ZERO";
    }
}

/// "Request message".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub flags: CommandFlags,
    /// What.
    pub command: Command,
    /// Chosen by the client, comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset_bytes: u64,
    /// How many bytes; of a write also the length of the payload.
    pub length_bytes: u32,
}

impl Request {
    /// Length in bytes, without payload.
    pub const BYTES: usize = 28;

    /// Reads it from the front of `bytes`.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let octets: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        expect_magic(be32(octets, 0), REQUEST_MAGIC)?;
        Ok(Self {
            flags: CommandFlags(be16(octets, 4)),
            command: Command(be16(octets, 6)),
            cookie: be64(octets, 8),
            offset_bytes: be64(octets, 16),
            length_bytes: be32(octets, 24),
        })
    }

    /// The bytes.
    #[inline]
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put32(&mut octets, 0, REQUEST_MAGIC);
        put16(&mut octets, 4, self.flags.0);
        put16(&mut octets, 6, self.command.0);
        put64(&mut octets, 8, self.cookie);
        put64(&mut octets, 16, self.offset_bytes);
        put32(&mut octets, 24, self.length_bytes);
        octets
    }
}

/// "Simple reply message".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// How it ended.
    pub error: ErrorCode,
    /// Which request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Length in bytes, without payload.
    pub const BYTES: usize = 16;

    /// Reads it from the front of `bytes`.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let octets: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        expect_magic(be32(octets, 0), SIMPLE_REPLY_MAGIC)?;
        Ok(Self { error: ErrorCode(be32(octets, 4)), cookie: be64(octets, 8) })
    }

    /// The bytes.
    #[inline]
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put32(&mut octets, 0, SIMPLE_REPLY_MAGIC);
        put32(&mut octets, 4, self.error.0);
        put64(&mut octets, 8, self.cookie);
        octets
    }
}

/// "Structured reply chunk message": what stands before each chunk's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether it is the last.
    pub flags: ChunkFlags,
    /// What the payload is.
    pub code: ChunkCode,
    /// Which request.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub payload_bytes: u32,
}

impl ChunkHeader {
    /// Length in bytes, without payload.
    pub const BYTES: usize = 20;

    /// Reads it from the front of `bytes`.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let octets: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        expect_magic(be32(octets, 0), CHUNK_MAGIC)?;
        Ok(Self {
            flags: ChunkFlags(be16(octets, 4)),
            code: ChunkCode(be16(octets, 6)),
            cookie: be64(octets, 8),
            payload_bytes: be32(octets, 16),
        })
    }

    /// The bytes.
    #[inline]
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put32(&mut octets, 0, CHUNK_MAGIC);
        put16(&mut octets, 4, self.flags.0);
        put16(&mut octets, 6, self.code.0);
        put64(&mut octets, 8, self.cookie);
        put32(&mut octets, 16, self.payload_bytes);
        octets
    }
}

/// A chunk without its bulk: header and what stands before data, descriptors or a message.
///
/// [`Chunk::head`] writes this much; whoever sends it lets `bulk_bytes` bytes follow from where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// `NBD_REPLY_TYPE_NONE`.
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`; the data follows.
    OffsetData {
        /// First byte.
        offset_bytes: u64,
    },
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`.
    OffsetHole {
        /// First byte.
        offset_bytes: u64,
        /// How many bytes read as zeroes.
        hole_bytes: u32,
    },
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`; the [`Descriptor`]s follow.
    BlockStatus {
        /// The metadata context.
        context: u32,
    },
    /// `NBD_REPLY_TYPE_ERROR`; the message follows.
    Error {
        /// Which error; not 0.
        error: ErrorCode,
    },
    /// `NBD_REPLY_TYPE_ERROR_OFFSET`, written without a message, since that stands before the offset.
    ErrorOffset {
        /// Which error; not 0.
        error: ErrorCode,
        /// Where.
        offset_bytes: u64,
    },
}

impl Chunk {
    /// Longest head: of `NBD_REPLY_TYPE_ERROR_OFFSET`.
    pub const HEAD_BYTES_MAX: usize = ChunkHeader::BYTES + 14;

    /// What the payload is.
    pub const fn code(&self) -> ChunkCode {
        match self {
            Self::None => ChunkCode::NONE,
            Self::OffsetData { .. } => ChunkCode::OFFSET_DATA,
            Self::OffsetHole { .. } => ChunkCode::OFFSET_HOLE,
            Self::BlockStatus { .. } => ChunkCode::BLOCK_STATUS,
            Self::Error { .. } => ChunkCode::ERROR,
            Self::ErrorOffset { .. } => ChunkCode::ERROR_OFFSET,
        }
    }

    /// The bytes before the bulk, and how many they are.
    ///
    /// Refuses what the protocol forbids: a bulk where none may be, none where one must be, an error 0.
    #[inline]
    pub fn head(
        &self,
        flags: ChunkFlags,
        cookie: u64,
        bulk_bytes: u32,
    ) -> Result<([u8; Self::HEAD_BYTES_MAX], usize), EmitError> {
        let mut head = [0; Self::HEAD_BYTES_MAX];
        const AT: usize = ChunkHeader::BYTES;
        let (fixed_bytes, fits) = match *self {
            // "This chunk type MUST always be used with the NBD_REPLY_FLAG_DONE bit set".
            Self::None => (0, bulk_bytes == 0 && flags.has(ChunkFlags::DONE)),
            Self::OffsetData { offset_bytes } => {
                put64(&mut head, AT, offset_bytes);
                (8, bulk_bytes > 0)
            }
            Self::OffsetHole { offset_bytes, hole_bytes } => {
                put64(&mut head, AT, offset_bytes);
                put32(&mut head, AT + 8, hole_bytes);
                (12, bulk_bytes == 0 && hole_bytes > 0)
            }
            Self::BlockStatus { context } => {
                put32(&mut head, AT, context);
                (4, bulk_bytes > 0 && bulk_bytes.is_multiple_of(Descriptor::BYTES as u32))
            }
            Self::Error { error } => {
                put32(&mut head, AT, error.0);
                put16(&mut head, AT + 4, bulk_bytes as u16);
                (6, error != ErrorCode::OK && bulk_bytes as usize <= TEXT_BYTES_MAX)
            }
            Self::ErrorOffset { error, offset_bytes } => {
                put32(&mut head, AT, error.0);
                put64(&mut head, AT + 6, offset_bytes);
                (14, error != ErrorCode::OK && bulk_bytes == 0)
            }
        };
        let payload_bytes = bulk_bytes.checked_add(fixed_bytes).filter(|_| fits);
        let payload_bytes = payload_bytes.ok_or(EmitError::OutOfRange)?;
        let header = ChunkHeader { flags, code: self.code(), cookie, payload_bytes };
        put(&mut head, 0, header.octets());
        Ok((head, AT + fixed_bytes as usize))
    }
}

/// The payload of a chunk, by its code: all of it, as the client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkPayload<'a> {
    /// `NBD_REPLY_TYPE_NONE`.
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`.
    OffsetData {
        /// First byte.
        offset_bytes: u64,
        /// At least one byte.
        data: &'a [u8],
    },
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`.
    OffsetHole {
        /// First byte.
        offset_bytes: u64,
        /// How many, at least one.
        hole_bytes: u32,
    },
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`.
    BlockStatus {
        /// The metadata context.
        context: u32,
        /// At least one; none of length 0.
        descriptors: Descriptors<'a>,
    },
    /// Any code with bit 15 set.
    Error {
        /// Which error; not 0.
        error: ErrorCode,
        /// Why.
        message: &'a str,
        /// Where, of `NBD_REPLY_TYPE_ERROR_OFFSET`.
        offset_bytes: Option<u64>,
    },
}

impl<'a> ChunkPayload<'a> {
    /// Reads the payload of a chunk with `header`: all of `payload`.
    pub fn parse(header: &ChunkHeader, payload: &'a [u8]) -> Result<Self, ParseError> {
        if payload.len() != header.payload_bytes as usize {
            return Err(ParseError::Truncated);
        }
        match header.code {
            ChunkCode::NONE if !header.flags.has(ChunkFlags::DONE) => Err(ParseError::Value),
            ChunkCode::NONE if payload.is_empty() => Ok(Self::None),
            ChunkCode::OFFSET_DATA => match payload.split_first_chunk() {
                Some((offset, data)) if !data.is_empty() => {
                    Ok(Self::OffsetData { offset_bytes: u64::from_be_bytes(*offset), data })
                }
                _ => Err(ParseError::Length),
            },
            ChunkCode::OFFSET_HOLE => {
                let octets: &[u8; 12] = payload.try_into().map_err(|_| ParseError::Length)?;
                match be32(octets, 8) {
                    0 => Err(ParseError::Value),
                    hole_bytes => Ok(Self::OffsetHole { offset_bytes: be64(octets, 0), hole_bytes }),
                }
            }
            ChunkCode::BLOCK_STATUS => {
                let (context, rest) = payload.split_first_chunk().ok_or(ParseError::Length)?;
                let descriptors = Descriptors::parse(rest)?;
                Ok(Self::BlockStatus { context: u32::from_be_bytes(*context), descriptors })
            }
            code if code.is_error() => Self::parse_error(code, payload),
            ChunkCode::NONE => Err(ParseError::Length),
            _ => Err(ParseError::Value),
        }
    }

    /// "All error chunk types have bit 15 set, and begin with the same error, message length, and optional
    /// message fields".
    fn parse_error(code: ChunkCode, payload: &'a [u8]) -> Result<Self, ParseError> {
        let (fixed, rest) = payload.split_first_chunk::<6>().ok_or(ParseError::Length)?;
        let message_bytes = usize::from(be16(fixed, 4));
        let (message, rest) = rest.split_at_checked(message_bytes).ok_or(ParseError::Length)?;
        let offset_bytes = match code {
            ChunkCode::ERROR if !rest.is_empty() => return Err(ParseError::Length),
            ChunkCode::ERROR_OFFSET => {
                let octets: &[u8; 8] = rest.try_into().map_err(|_| ParseError::Length)?;
                Some(u64::from_be_bytes(*octets))
            }
            _ => None,
        };
        match ErrorCode(be32(fixed, 0)) {
            ErrorCode::OK => Err(ParseError::Value),
            error => Ok(Self::Error { error, message: text(message)?, offset_bytes }),
        }
    }
}

/// "`NBD_REPLY_TYPE_BLOCK_STATUS`": the state of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// How many bytes, from the end of the one before; not 0.
    pub length_bytes: u32,
    /// Their state, of context `base:allocation`.
    pub flags: AllocationFlags,
}

impl Descriptor {
    /// Length in bytes.
    pub const BYTES: usize = 8;

    /// Reads the bytes.
    #[inline]
    pub fn from_octets(octets: &[u8; Self::BYTES]) -> Self {
        Self { length_bytes: be32(octets, 0), flags: AllocationFlags(be32(octets, 4)) }
    }

    /// The bytes.
    #[inline]
    pub fn octets(&self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        put32(&mut octets, 0, self.length_bytes);
        put32(&mut octets, 4, self.flags.0);
        octets
    }
}

/// Descriptors one behind the other; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors<'a>(&'a [u8]);

impl<'a> Descriptors<'a> {
    /// "MUST be 4 + (a positive integer multiple of 8)"; lengths "MUST be nonzero".
    fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(Descriptor::BYTES) {
            return Err(ParseError::Length);
        }
        let descriptors = Self(bytes);
        if descriptors.iter().any(|descriptor| descriptor.length_bytes == 0) {
            return Err(ParseError::Value);
        }
        Ok(descriptors)
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = Descriptor> + 'a {
        let (whole, _) = self.0.as_chunks::<{ Descriptor::BYTES }>();
        whole.iter().map(|octets| Descriptor::from_octets(&array(octets, 0)))
    }
}

fn expect_magic(found: u32, wanted: u32) -> Result<(), ParseError> {
    if found == wanted { Ok(()) } else { Err(ParseError::Magic { found: u64::from(found) }) }
}
