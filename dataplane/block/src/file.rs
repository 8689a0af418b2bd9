//! What a volume asks of its medium: bytes at offsets of files, and the few acts on files themselves.
//!
//! A volume emits [`Request`]s and is driven by [`Finished`]; a medium carries requests out in whatever order it
//! likes. A volume numbers its own files ([`FileId`]); names exist so that one directory can be read by people
//! and by a later owner.
//!
//! Invariants: a finished act happened after it was requested, so an order exists only where the volume waits;
//! only [`Act::Sync`] makes bytes durable, and it covers what was finished before it was requested; creating
//! and removing a file is durable when it is finished.

use std::fmt;
use std::str::FromStr;

use crate::{Epoch, ExtentId, VolumeId};

/// A file of a volume, numbered by the volume while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// The name of a file in a volume's directory (docs/format.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileName {
    /// The volume's identity.
    Superblock,
    /// The claim of one owner.
    Epoch(Epoch),
    /// Says to an owner that another one has claimed the volume.
    Fence(Epoch),
    /// One of two checkpoints of an owner.
    Checkpoint {
        /// Who writes it.
        epoch: Epoch,
        /// 0 or 1, alternating.
        side: u8,
    },
    /// One segment of an owner's log.
    Log {
        /// Who writes it.
        epoch: Epoch,
        /// Counts from 0.
        segment: u32,
    },
    /// Pages of data or of the map.
    Extent {
        /// Who writes it.
        epoch: Epoch,
        /// Unique in the volume.
        id: ExtentId,
    },
}

impl FileName {
    /// The owner that may write the file; `None` for the superblock and for fences.
    pub fn epoch(self) -> Option<Epoch> {
        match self {
            FileName::Superblock | FileName::Fence(_) => None,
            FileName::Epoch(epoch)
            | FileName::Checkpoint { epoch, .. }
            | FileName::Log { epoch, .. }
            | FileName::Extent { epoch, .. } => Some(epoch),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileName::Superblock => write!(f, "superblock"),
            FileName::Epoch(epoch) => write!(f, "epoch.{:016x}", epoch.0),
            FileName::Fence(epoch) => write!(f, "fence.{:016x}", epoch.0),
            FileName::Checkpoint { epoch, side } => write!(f, "checkpoint.{:016x}.{side}", epoch.0),
            FileName::Log { epoch, segment } => write!(f, "log.{:016x}.{segment:08x}", epoch.0),
            FileName::Extent { epoch, id } => write!(f, "extent.{:016x}.{:08x}", epoch.0, id.0),
        }
    }
}

/// The text is not the name of a file of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a file of a volume; leave it alone or move it away")]
pub struct NotOurs;

impl FromStr for FileName {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<FileName, NotOurs> {
        let mut parts = text.split('.');
        let kind = parts.next().ok_or(NotOurs)?;
        let mut number = || parts.next().and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or(NotOurs);
        let name = match kind {
            "superblock" => FileName::Superblock,
            "epoch" => FileName::Epoch(Epoch(number()?)),
            "fence" => FileName::Fence(Epoch(number()?)),
            "checkpoint" => FileName::Checkpoint {
                epoch: Epoch(number()?),
                side: number()?.try_into().map_err(|_| NotOurs)?,
            },
            "log" => {
                FileName::Log { epoch: Epoch(number()?), segment: number()?.try_into().map_err(|_| NotOurs)? }
            }
            "extent" => {
                let epoch = Epoch(number()?);
                FileName::Extent { epoch, id: ExtentId(number()?.try_into().map_err(|_| NotOurs)?) }
            }
            _ => return Err(NotOurs),
        };
        // Only the one spelling: `epoch.1` is not ours.
        if name.to_string() == text { Ok(name) } else { Err(NotOurs) }
    }
}

/// A run of bytes that lies together in a file and in a request's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file.
    pub file: FileId,
    /// First byte in the file.
    pub offset: u64,
    /// First byte in the buffer.
    pub at: u32,
    /// How many.
    pub bytes: u32,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Fill the pieces of the buffer from the file.
    Read,
    /// Write the pieces of the buffer to the file.
    Write,
    /// Make what was written to the file durable (fdatasync).
    Sync(FileId),
    /// Take room for a range, so that writing it cannot fail for lack of it. It reads as zeros until then.
    Allocate {
        /// The file.
        file: FileId,
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Give the room of a range back; it reads as zeros from then on.
    Punch {
        /// The file.
        file: FileId,
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Let `file` stand for a file that exists.
    Open {
        /// Its number from now on.
        file: FileId,
        /// Its name.
        name: FileName,
    },
    /// Make a file that must not exist, durably, and let `file` stand for it.
    Create {
        /// Its number from now on.
        file: FileId,
        /// Its name.
        name: FileName,
    },
    /// Remove a file; `file` stands for nothing from then on.
    Remove {
        /// Its number until now.
        file: FileId,
        /// Its name.
        name: FileName,
    },
    /// Succeeds while no file has this name, and is [`Fault::Exists`] when one does (decision D10).
    Probe(FileName),
}

/// One request to a medium.
#[derive(Debug)]
pub struct Request<B> {
    /// Who asks.
    pub volume: VolumeId,
    /// Chosen by the volume, comes back in [`Finished`].
    pub token: u64,
    /// What to do.
    pub act: Act,
    /// For [`Act::Read`] and [`Act::Write`]. The medium owns it meanwhile.
    pub buffer: Option<B>,
    /// For [`Act::Read`] and [`Act::Write`]: pieces that do not overlap. Comes back, for its memory.
    pub pieces: Vec<Piece>,
}

/// Why a medium could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No room.
    #[error("no room on the file system; free some or add a device")]
    NoSpace,
    /// A file of that name exists.
    #[error("the file exists")]
    Exists,
    /// No file of that name, or the number stands for none.
    #[error("no such file")]
    Missing,
    /// The file ends before the range.
    #[error("the file is shorter than what was written to it")]
    Short,
    /// What the kernel said.
    #[error("input/output error {0} (errno)")]
    Io(i32),
}

/// The one answer to a [`Request`].
#[derive(Debug)]
#[must_use = "the volume waits for it, and it may carry a buffer"]
pub struct Finished<B> {
    /// Who asked.
    pub volume: VolumeId,
    /// The volume's token of the request.
    pub token: u64,
    /// How it ended: of several pieces, the first failure.
    pub result: Result<(), Fault>,
    /// The request's buffer.
    pub buffer: Option<B>,
    /// The request's pieces; their content is spent.
    pub pieces: Vec<Piece>,
}

impl<B> Request<B> {
    /// The answer to this request.
    pub fn finished(self, result: Result<(), Fault>) -> Finished<B> {
        Finished { volume: self.volume, token: self.token, result, buffer: self.buffer, pieces: self.pieces }
    }
}

#[cfg(test)]
mod tests {
    //! Names are read as they are written, and nothing else is taken for one.

    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let epoch = Epoch(0x1f);
        for name in [
            FileName::Superblock,
            FileName::Epoch(epoch),
            FileName::Fence(epoch),
            FileName::Checkpoint { epoch, side: 1 },
            FileName::Log { epoch, segment: 7 },
            FileName::Extent { epoch, id: ExtentId(u32::MAX) },
        ] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!(FileName::Superblock.epoch(), None);
        assert_eq!(FileName::Log { epoch, segment: 7 }.epoch(), Some(epoch));
    }

    #[test]
    fn other_names_are_not_ours() {
        for text in ["", "epoch", "epoch.1", "epoch.000000000000001F", "log.0000000000000001", "lost+found"] {
            assert_eq!(text.parse::<FileName>(), Err(NotOurs), "{text}");
        }
    }
}
