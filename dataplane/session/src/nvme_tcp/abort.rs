//! Abort of I/O commands (base clause 5.1): asked for on the admin queue, carried out by the queue that has the
//! command, which is another connection, and answered on the admin queue then.
//!
//! Invariants: each Abort is answered once, after the command that it took back; no more wait than ACL allows.

use arrayvec::ArrayVec;
use wire::nvme::StatusCode;

/// ACL: Aborts of one controller that are not answered, at most.
pub(super) const ABORTS_MAX: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Identifier of the Abort.
    by: u16,
    queue: u16,
    command: u16,
    /// Whether the command was taken back, once that is known.
    outcome: Option<bool>,
}

/// The Aborts of a controller that are not answered.
#[derive(Debug, Default)]
pub(super) struct Aborts {
    asked: ArrayVec<Asked, ABORTS_MAX>,
}

impl Aborts {
    /// `command` of an I/O queue is to be taken back.
    pub fn ask(&mut self, by: u16, queue: u16, command: u16) -> Result<(), StatusCode> {
        let asked = Asked { by, queue, command, outcome: None };
        self.asked.try_push(asked).map_err(|_| StatusCode::ABORT_LIMIT_EXCEEDED)
    }

    /// An Abort of this identifier waits.
    pub fn holds(&self, by: u16) -> bool {
        self.asked.iter().any(|asked| asked.by == by)
    }

    /// Something is asked of this queue.
    pub fn concern(&self, queue: u16) -> bool {
        self.asked.iter().any(|asked| asked.queue == queue && asked.outcome.is_none())
    }

    /// Has a queue take its commands back, or say that it cannot.
    pub fn carry_out(&mut self, queue: u16, mut take_back: impl FnMut(u16) -> bool) {
        for asked in self.asked.iter_mut().filter(|asked| asked.queue == queue) {
            asked.outcome = asked.outcome.or_else(|| Some(take_back(asked.command)));
        }
    }

    /// The next answer: to which Abort, and dword 0, whose bit 0 says that the command was not taken back.
    pub fn answer(&mut self) -> Option<(u16, u64)> {
        let at = self.asked.iter().position(|asked| asked.outcome.is_some())?;
        let Asked { by, outcome, .. } = self.asked.pop_at(at)?;
        Some((by, u64::from(outcome != Some(true))))
    }
}
