//! How much of the past etcd still has, as far as this store wrote it, so that it is not more than any store keeps.
//!
//! Marks are set among the revisions, each with what was written since the one before. The oldest is forgotten, with
//! all that is before it, when the rest is as much as is to be kept.

use std::collections::VecDeque;

use crate::{HISTORY_BYTES_MAX, HISTORY_REVISIONS, Revision};

/// Revisions from one mark to the next, at most about.
const MARK_REVISIONS: u64 = HISTORY_REVISIONS / 10;
/// What is written from one mark to the next, at most about.
const MARK_BYTES: usize = HISTORY_BYTES_MAX / 16;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct History {
    /// A revision, and the bytes that were written from the mark before up to it.
    marks: VecDeque<(Revision, usize)>,
    /// Of all marks.
    bytes: usize,
    /// Written since the last mark.
    since: usize,
    last: Revision,
}

impl History {
    /// Begins where a cluster is; what was before it goes with the first mark.
    pub fn begin(&mut self, revision: Revision) {
        self.last = revision;
        self.marks.push_back((revision, 0));
    }

    /// A transaction was done.
    pub fn add(&mut self, revision: Revision, bytes: usize) {
        self.since += bytes;
        let marked = self.marks.back().map_or(0, |(revision, _)| *revision);
        self.last = self.last.max(revision);
        if self.last >= marked + MARK_REVISIONS || self.since >= MARK_BYTES && self.last > marked {
            self.marks.push_back((self.last, self.since));
            self.bytes += self.since;
            self.since = 0;
        }
    }

    /// The revision up to which all is to be forgotten, if that is due.
    pub fn due(&self) -> Option<Revision> {
        let (oldest, bytes) = *self.marks.front()?;
        let rest = self.bytes - bytes + self.since;
        (self.last >= oldest + HISTORY_REVISIONS || rest > HISTORY_BYTES_MAX).then_some(oldest)
    }

    /// All up to a revision was forgotten.
    pub fn forgotten(&mut self, until: Revision) {
        while let Some((_, bytes)) = self.marks.pop_front_if(|(revision, _)| *revision <= until) {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_leaves_as_much_as_is_to_be_kept() {
        let mut history = History::default();
        history.begin(500);
        for revision in 501..100_000 {
            if let Some(until) = history.due() {
                let left = revision - 1 - until;
                assert!((HISTORY_REVISIONS..=HISTORY_REVISIONS + MARK_REVISIONS).contains(&left), "{left}");
                history.forgotten(until);
            }
            history.add(revision, 100);
        }
        assert!(history.marks.len() <= 12 && history.due().is_none_or(|until| until > 80_000));
    }

    #[test]
    fn long_transactions_are_forgotten_earlier() {
        let mut history = History::default();
        history.begin(1);
        let mut kept = VecDeque::new();
        for revision in 2..1_000 {
            while let Some(until) = history.due() {
                history.forgotten(until);
                kept.retain(|kept| *kept > until);
            }
            assert!(kept.len() << 20 <= HISTORY_BYTES_MAX + 2 * MARK_BYTES, "{}", kept.len());
            assert!(
                revision < 80 || kept.len() << 20 >= HISTORY_BYTES_MAX - 2 * MARK_BYTES,
                "{}",
                kept.len()
            );
            history.add(revision, 1 << 20);
            kept.push_back(revision);
        }
    }
}
