//! The vocabulary of block I/O: what a session asks of a volume, and what it gets back.
//!
//! A session turns protocol bytes into an [`Io`]; a volume answers every `Io` with exactly one [`Done`] that
//! carries the same [`Tag`] and gives the payload buffer back. The buffer type is a parameter, so that this
//! crate depends on nothing and sessions, volumes and tests agree on one set of words.
//!
//! Below a volume lies a medium: it is asked with [`Request`] and answers with [`Finished`].
//!
//! Invariants: a payload is at most [`IO_BYTES_MAX`]; [`Io::admit`] is the one place where the shape of a
//! request is checked, so that a volume never sees a range outside itself or a buffer of the wrong length.

#![forbid(unsafe_code)]

mod file;
mod io;
mod status;

pub use file::{Act, Fault, FileId, FileName, Finished, NotOurs, Piece, Request};
pub use io::{Done, Extent, Io, Mark, Op, Step};
pub use status::Status;

use std::fmt;

/// Longest payload of one [`Io`] in bytes; a session splits longer requests.
pub const IO_BYTES_MAX: usize = 1 << 20;

/// Largest volume in bytes: 64 TiB (decision D8).
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A volume, numbered by its node.
    VolumeId(u32)
}
number! {
    /// Logical block address: counts blocks of the volume's own [`BlockSize`].
    Lba(u64)
}
number! {
    /// Generation of a volume's owner; a higher one fences all lower ones (decision D10).
    Epoch(u64)
}
number! {
    /// Follows one request through every step (capability F3); 0 when it is not sampled.
    TraceId(u64)
}
number! {
    /// Chosen by the session, opaque to everyone else, comes back in [`Done`].
    Tag(u64)
}
number! {
    /// One extent file of a volume; unique in the volume for ever, over all epochs.
    ExtentId(u32)
}

/// Size of a logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum BlockSize {
    /// 512 bytes.
    B512 = 512,
    /// 4096 bytes: the size of a page, without read-modify-write.
    B4096 = 4096,
}

impl BlockSize {
    /// The size of that many bytes, if there is one.
    pub fn from_bytes(bytes: u32) -> Option<BlockSize> {
        match bytes {
            512 => Some(BlockSize::B512),
            4096 => Some(BlockSize::B4096),
            _ => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        self as u32
    }

    /// Binary logarithm of the size in bytes.
    pub const fn shift(self) -> u32 {
        (self as u32).trailing_zeros()
    }
}
