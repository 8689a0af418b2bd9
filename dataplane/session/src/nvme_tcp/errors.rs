//! The log of errors (base clause 5.16.1.2): the newest commands of a controller that ended in one.
//!
//! Invariants: as many entries as ELPE says, the newest first; counts begin with 1 and are never used twice.

use std::collections::VecDeque;

use wire::nvme::StatusCode;
use wire::nvme::data::{ERROR_ENTRY_BYTES, ErrorEntry};

/// Entries that are kept: the whole log is one page.
pub(super) const ERRORS_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Errors {
    entries: VecDeque<ErrorEntry>,
    count: u64,
    media: u64,
}

impl Errors {
    /// Adds one, under the next count.
    pub fn record(&mut self, entry: ErrorEntry) {
        self.count += 1;
        self.media += u64::from(entry.completion.status == StatusCode::UNRECOVERED_READ_ERROR);
        self.entries.truncate(ERRORS_MAX - 1);
        self.entries.push_front(ErrorEntry { count: self.count, ..entry });
    }

    /// "The controller should clear this log page by removing all entries on [...] Controller Level Reset"; the count
    /// goes on.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Entries that there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Those of them that say that data was lost or damaged.
    pub fn media(&self) -> u64 {
        self.media
    }

    /// The log; what has no entry is zeroes, which are none.
    pub fn octets(&self) -> [u8; ERRORS_MAX * ERROR_ENTRY_BYTES] {
        let mut octets = [0; ERRORS_MAX * ERROR_ENTRY_BYTES];
        let (places, _) = octets.as_chunks_mut::<ERROR_ENTRY_BYTES>();
        for (place, entry) in places.iter_mut().zip(&self.entries) {
            *place = entry.octets();
        }
        octets
    }
}
