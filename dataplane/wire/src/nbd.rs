//! NBD: every constant, header, option, option reply and chunk of the protocol, from bytes to values and
//! back.
//!
//! The text is `doc/proto.md` of the NetworkBlockDevice project; section names stand above the code that
//! obeys them. [`handshake`] holds what is said until an export is chosen, [`transmission`] what is said
//! afterwards. Both directions are here, since the same words serve the target and the load generator.
//!
//! Numbers whose set grows (options, replies, commands, errors) are newtypes over the wire's integer with
//! the known values as constants: an unknown one is a value like any other, and who receives it decides. All
//! numbers are big-endian ("Conventions").
//!
//! Invariants: as for the crate. What has a fixed length becomes an array (`octets`), which cannot fail;
//! what carries text is written into a slice (`emit`), which refuses instead of writing half.

pub mod handshake;
pub mod transmission;

use thiserror::Error;

use crate::codes::flags;

/// "Conventions": a string "MUST be no longer than 4096 bytes".
pub const TEXT_BYTES_MAX: usize = 4096;
/// "Size constraints": "any payload not exceeding 2^25 (33,554,432) bytes SHOULD NOT be considered a denial
/// of service attack".
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 25;
/// "Size constraints": a minimum block size "MUST NOT be larger than 2^16".
pub const MINIMUM_BLOCK_BYTES_MAX: u32 = 1 << 16;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The bytes end before the header or before the length that it states.
    #[error("the message ends before its header says it does; read more bytes")]
    Truncated,
    /// A magic number is another one: the stream is not NBD, or its place in it is lost.
    #[error("{found:#x} stands where an NBD magic number must; close the connection")]
    Magic {
        /// What stands there.
        found: u64,
    },
    /// A length contradicts another one or the type of the message.
    #[error("a length field contradicts the message; the peer does not follow the protocol")]
    Length,
    /// Text that is not UTF-8, holds NUL, or is longer than [`TEXT_BYTES_MAX`].
    #[error("a string is not UTF-8, holds NUL or is longer than {TEXT_BYTES_MAX} bytes")]
    Text,
    /// A field has a value that the protocol forbids.
    #[error("a field has a value that the protocol forbids")]
    Value,
}

/// Checks a string ("Conventions"): UTF-8, no NUL, at most 4096 bytes.
pub fn text(bytes: &[u8]) -> Result<&str, ParseError> {
    if bytes.len() > TEXT_BYTES_MAX || bytes.contains(&0) {
        return Err(ParseError::Text);
    }
    std::str::from_utf8(bytes).map_err(|_| ParseError::Text)
}

flags! {
    /// What an export can do; "Transmission flags".
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0, "NBD_FLAG_HAS_FLAGS";
        /// Writes are refused.
        READ_ONLY = 1, "NBD_FLAG_READ_ONLY";
        /// Flush is understood.
        SEND_FLUSH = 2, "NBD_FLAG_SEND_FLUSH";
        /// Force unit access is understood.
        SEND_FUA = 3, "NBD_FLAG_SEND_FUA";
        /// The medium rotates.
        ROTATIONAL = 4, "NBD_FLAG_ROTATIONAL";
        /// Trim is understood.
        SEND_TRIM = 5, "NBD_FLAG_SEND_TRIM";
        /// Write-zeroes is understood.
        SEND_WRITE_ZEROES = 6, "NBD_FLAG_SEND_WRITE_ZEROES";
        /// Reads in one piece are understood; only with structured replies.
        SEND_DF = 7, "NBD_FLAG_SEND_DF";
        /// A flush on one connection covers what was answered on all.
        CAN_MULTI_CONN = 8, "NBD_FLAG_CAN_MULTI_CONN";
        /// Cache is understood.
        SEND_CACHE = 10, "NBD_FLAG_SEND_CACHE";
        /// Write-zeroes says at once when it would not be fast.
        SEND_FAST_ZERO = 11, "NBD_FLAG_SEND_FAST_ZERO";
    }
}
