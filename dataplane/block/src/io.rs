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
    /// The range reads as zeros from now on. No buffer.
    WriteZeroes {
        /// Answer only when this is on stable media.
        fua: bool,
        /// Pages may be given back. Without it, pages stay allocated, so that later writes of the range find
        /// room.
        deallocate: bool,
    },
    /// Compare the range with the buffer's bytes.
    Compare,
}

impl Op {
    /// True when the request carries a buffer as long as its range.
    pub fn has_buffer(self) -> bool {
        matches!(self, Op::Read | Op::Write { .. } | Op::Compare)
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
    /// How many blocks. Without a buffer as many as the volume has; with one at most [`IO_BYTES_MAX`] bytes.
    pub blocks: u32,
    /// Comes back in [`Done`].
    pub tag: Tag,
    /// Follows the request.
    pub trace: TraceId,
    /// Payload, or room for it: exactly as long as the range when [`Op::has_buffer`].
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
        let wanted = if self.op.has_buffer() { bytes } else { 0 };
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
        Done { volume: self.volume, tag: self.tag, status, buffer: self.buffer }
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
    /// The request's buffer; filled when it was a successful read.
    pub buffer: Option<B>,
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
