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

/// "Newstyle negotiation": the port that IANA assigned.
pub const TCP_PORT: u16 = 10809;
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

/// A newtype over an integer of the wire with its known values.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($inner:ty) {
        $($(#[$value_doc:meta])* $value:ident = $number:expr, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            $($(#[$value_doc])* #[doc = concat!("`", $text, "`")] pub const $value: Self = Self($number);)*

            /// The name in the protocol's text, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some($text),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}

/// A set of flags over an integer of the wire with its known bits.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($inner:ty) {
        $($(#[$value_doc:meta])* $value:ident = $bit:literal, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$value_doc])* #[doc = concat!("`", $text, "`")] pub const $value: Self = Self(1 << $bit);)*
            /// Every known flag.
            pub const ALL: Self = Self(0 $(| 1 << $bit)*);

            /// All flags of `other` are set.
            #[inline(always)]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// These and those of `other`.
            #[inline(always)]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// These, and those of `other` if `wanted`.
            #[inline(always)]
            pub const fn with_if(self, wanted: bool, other: Self) -> Self {
                if wanted { self.with(other) } else { self }
            }

            /// These without those of `other`.
            #[inline(always)]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut left = *self;
                $(if left.has(Self::$value) {
                    write!(f, "{} ", $text)?;
                    left = left.without(Self::$value);
                })*
                write!(f, "{:#x}", left.0)
            }
        }
    };
}

pub(crate) use {codes, flags};

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
