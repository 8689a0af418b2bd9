//! How a request ended.

use crate::{ExtentId, Lba};

/// How a request ended. Sessions translate it into their protocol's status; the text is for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Status {
    /// Done as asked.
    #[error("ok")]
    Ok,
    /// The range does not lie in the volume.
    #[error("the range does not lie in the volume")]
    OutOfRange,
    /// There is no page for new data. Overwrites by another path, reads, flushes and discards go on.
    #[error("no free page; discard data, free space on the file system, or raise the limit")]
    NoSpace,
    /// The volume takes no writes.
    #[error("the volume is read-only")]
    ReadOnly,
    /// A higher epoch owns the volume (decision D10). Nothing that this owner says counts any more.
    #[error("another owner took the volume over")]
    Fenced,
    /// The medium failed at the page that holds this block.
    #[error("the medium failed at block {lba}, extent {extent}, byte {offset}")]
    MediaError {
        /// First block of the page.
        lba: Lba,
        /// The extent file that holds it.
        extent: ExtentId,
        /// Byte in the extent file.
        offset: u64,
    },
    /// What the medium returned is not what was written: the checksum differs. Never returned as data.
    #[error("checksum mismatch at block {lba}, extent {extent}, byte {offset}")]
    Corrupt {
        /// First block of the page.
        lba: Lba,
        /// The extent file that holds it.
        extent: ExtentId,
        /// Byte in the extent file.
        offset: u64,
    },
    /// The medium failed in the volume's log or map: nothing can be promised until it is opened anew.
    #[error("the log or the map of the volume failed; open it anew and run a check")]
    Broken,
    /// [`crate::Op::Compare`] found a difference.
    #[error("first difference at byte {offset}")]
    CompareFailed {
        /// Bytes from the start of the request.
        offset: u32,
    },
    /// Taken back before it was carried out.
    #[error("aborted")]
    Aborted,
    /// Too much under way; ask again.
    #[error("too many requests under way")]
    Busy,
    /// The request contradicts itself: no blocks, or a buffer that does not fit.
    #[error("invalid request")]
    Invalid,
}

impl Status {
    /// True for [`Status::Ok`].
    pub fn is_ok(self) -> bool {
        self == Status::Ok
    }
}
