//! Capture files: replay as input, record as output.

use std::path::PathBuf;

/// Which files to replay and to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcapSpec {
    /// File whose packets arrive. None: nothing arrives.
    pub replay: Option<PathBuf>,
    /// Times to replay it; 0 = without end.
    pub loops: u64,
    /// Keep the distances in time of the file; otherwise as fast as they are asked for.
    pub paced: bool,
    /// File that sent frames are written to. None: they are counted and freed.
    pub record: Option<PathBuf>,
    /// Stop recording before the file grows beyond this, bytes.
    pub record_bytes_max: u64,
}

/// Which byte of a capture file is wrong.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}
