//! Requests and completions.

use crate::{BlockSize, IO_BYTES_MAX, Lba, Status, Tag, TraceId, VolumeId};

/// What to do with a range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer, which is as long as the range.
    Read,
    /// Take the buffer's bytes, as many as the range.
    Write {
        /// Answer only when the data is on stable media (force unit access).
        fua: bool,
    },
    /// Answer when everything acknowledged so far is on stable media. Has no range and no buffer.
    Flush,
    /// The range is not needed any more and reads as zeros from now on. No buffer.
    Discard,
    /// The range reads as zeros from now on. No buffer. Pages may be given back: who wants them to stay writes zeros.
    WriteZeroes {
        /// Answer only when this is on stable media.
        fua: bool,
    },
    /// Compare the range with the buffer's bytes.
    Compare,
    /// Fill the buffer with the [`Extent`]s of the range, from its first block on: as many as fit, fewer if
    /// finding more would take long, at least one. A record of no blocks ends them where the buffer does not.
    Extents,
}

impl Op {
    /// True when the request carries a buffer: as long as its range, but for [`Op::Extents`].
    pub fn has_buffer(self) -> bool {
        matches!(self, Op::Read | Op::Write { .. } | Op::Compare | Op::Extents)
    }

    /// True when the request changes the volume.
    pub fn is_write(self) -> bool {
        matches!(self, Op::Write { .. } | Op::Discard | Op::WriteZeroes { .. })
    }
}

/// One request.
#[derive(Debug)]
pub struct Io<B> {
    /// The volume asked.
    pub volume: VolumeId,
    /// What to do.
    pub op: Op,
    /// First block; ignored by [`Op::Flush`].
    pub lba: Lba,
    /// How many blocks. With a payload at most [`IO_BYTES_MAX`] bytes, otherwise as many as the volume has.
    pub blocks: u32,
    /// Comes back in [`Done`].
    pub tag: Tag,
    /// Follows the request.
    pub trace: TraceId,
    /// Payload, or room for it: exactly as long as the range, or whole records for [`Op::Extents`].
    pub buffer: Option<B>,
}

impl<B> Io<B> {
    /// Checks the request against a volume of `volume_blocks`, with a buffer of `buffer_bytes` (0 for none).
    /// What passes needs no further check.
    pub fn admit(&self, size: BlockSize, volume_blocks: u64, buffer_bytes: usize) -> Result<(), Status> {
        if self.op == Op::Flush {
            return if self.buffer.is_none() { Ok(()) } else { Err(Status::Invalid) };
        }
        let bytes = u64::from(self.blocks) << size.shift();
        let records =
            buffer_bytes.min(IO_BYTES_MAX).next_multiple_of(Extent::BYTES).max(Extent::BYTES) as u64;
        let wanted = match self.op {
            Op::Extents => records,
            op if op.has_buffer() => bytes,
            _ => 0,
        };
        if self.blocks == 0
            || wanted > IO_BYTES_MAX as u64
            || wanted != buffer_bytes as u64
            || self.buffer.is_some() != self.op.has_buffer()
        {
            return Err(Status::Invalid);
        }
        match self.lba.0.checked_add(u64::from(self.blocks)) {
            Some(end) if end <= volume_blocks => Ok(()),
            _ => Err(Status::OutOfRange),
        }
    }

    /// The completion of this request.
    pub fn done(self, status: Status) -> Done<B> {
        Done { volume: self.volume, tag: self.tag, status, zeroes: false, buffer: self.buffer }
    }
}

/// The one answer to an [`Io`].
#[derive(Debug)]
#[must_use = "the session waits for it, and it may carry a buffer"]
pub struct Done<B> {
    /// The volume asked.
    pub volume: VolumeId,
    /// The session's tag of the request.
    pub tag: Tag,
    /// How it ended.
    pub status: Status,
    /// The whole range of a successful read reads as zeroes, which the buffer holds as well: a session may
    /// tell its host so instead of sending them. False says nothing.
    pub zeroes: bool,
    /// The request's buffer; filled when it was a successful read or [`Op::Extents`].
    pub buffer: Option<B>,
}

/// What a followed request has just left behind in its volume (capability F3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It waits for an earlier request on the same blocks; 0 if that one is not followed.
    Behind(TraceId),
    /// It has waited for earlier requests on the same blocks.
    Queued,
    /// Its place is known: the medium is asked for its data.
    Mapped,
    /// The medium has read or written its data.
    Moved,
    /// Its record is in the volume's log.
    Logged,
    /// No higher epoch owns the volume.
    Looked,
    /// What it has waited for is on stable media.
    Synced,
}

/// Said by a volume of a request whose [`TraceId`] is not 0. It has no clock: whoever takes the mark knows when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The request.
    pub trace: TraceId,
    /// What it has done.
    pub step: Step,
}

/// A run of blocks that are all written, or all not: one record in the answer to [`Op::Extents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many, from the end of the record before. 0 ends the records.
    pub blocks: u32,
    /// They have their place on the medium, so that overwriting them needs no room. Otherwise they read as
    /// zeroes.
    pub allocated: bool,
}

impl Extent {
    /// Length of a record in bytes.
    pub const BYTES: usize = 8;

    /// Reads a record: two little-endian words, blocks and 1 for allocated.
    pub fn from_octets(octets: [u8; Self::BYTES]) -> Extent {
        let word = u64::from_le_bytes(octets);
        Extent { blocks: word as u32, allocated: word >> 32 & 1 != 0 }
    }

    /// Writes a record.
    pub fn octets(self) -> [u8; Self::BYTES] {
        (u64::from(self.blocks) | u64::from(self.allocated) << 32).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    //! What a volume may rely on after `admit`.

    use super::*;

    fn io(op: Op, lba: u64, blocks: u32, buffer: bool) -> Io<()> {
        Io {
            volume: VolumeId(1),
            op,
            lba: Lba(lba),
            blocks,
            tag: Tag(7),
            trace: TraceId(0),
            buffer: buffer.then_some(()),
        }
    }

    #[test]
    fn a_range_must_lie_in_the_volume() {
        let size = BlockSize::B512;
        assert_eq!(io(Op::Read, 0, 8, true).admit(size, 8, 4096), Ok(()));
        assert_eq!(io(Op::Read, 1, 8, true).admit(size, 8, 4096), Err(Status::OutOfRange));
        assert_eq!(io(Op::Discard, u64::MAX, 1, false).admit(size, 8, 0), Err(Status::OutOfRange));
        assert_eq!(io(Op::Discard, 0, 8, false).admit(size, 8, 0), Ok(()));
    }

    #[test]
    fn a_buffer_must_fit_the_range() {
        let size = BlockSize::B4096;
        assert_eq!(io(Op::Write { fua: false }, 0, 1, true).admit(size, 8, 512), Err(Status::Invalid));
        assert_eq!(io(Op::Write { fua: false }, 0, 1, false).admit(size, 8, 4096), Err(Status::Invalid));
        assert_eq!(io(Op::Discard, 0, 1, true).admit(size, 8, 0), Err(Status::Invalid));
        assert_eq!(io(Op::Compare, 0, 0, true).admit(size, 8, 0), Err(Status::Invalid));
        let long = io(Op::Read, 0, 257, true);
        assert_eq!(long.admit(size, 1 << 20, 257 * 4096), Err(Status::Invalid));
    }

    #[test]
    fn extents_need_room_for_whole_records_and_no_more_than_a_payload() {
        let size = BlockSize::B4096;
        assert_eq!(io(Op::Extents, 0, 8, true).admit(size, 8, 4096), Ok(()));
        for bytes in [0, 7, 12, (1 << 20) + 8] {
            assert_eq!(io(Op::Extents, 0, 8, true).admit(size, 8, bytes), Err(Status::Invalid), "{bytes}");
        }
        assert_eq!(io(Op::Extents, 1, 8, true).admit(size, 8, 4096), Err(Status::OutOfRange));
        assert_eq!(io(Op::Extents, 0, 8, false).admit(size, 8, 0), Err(Status::Invalid));
    }

    #[test]
    fn records_read_as_they_were_written() {
        for extent in [Extent { blocks: u32::MAX, allocated: false }, Extent { blocks: 7, allocated: true }] {
            assert_eq!(Extent::from_octets(extent.octets()), extent);
        }
        assert_eq!(Extent { blocks: 2, allocated: true }.octets(), [2, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_flush_has_no_range() {
        assert_eq!(io(Op::Flush, 99, 0, false).admit(BlockSize::B4096, 8, 0), Ok(()));
        assert_eq!(io(Op::Flush, 0, 0, true).admit(BlockSize::B4096, 8, 0), Err(Status::Invalid));
    }

    #[test]
    fn a_completion_returns_tag_and_buffer() {
        let done = io(Op::Read, 0, 1, true).done(Status::Aborted);
        assert_eq!((done.volume, done.tag, done.status), (VolumeId(1), Tag(7), Status::Aborted));
        assert!(done.buffer.is_some());
    }
}
