//! A copy of all that passes a port, in a capture file.

use std::path::PathBuf;

/// Where to record to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSpec {
    /// The capture file; an existing one is overwritten.
    pub file: PathBuf,
    /// Stop recording before the file grows beyond this, bytes.
    pub bytes_max: u64,
}
