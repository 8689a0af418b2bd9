//! Following I/Os: what a worker tells its tracer, and when it reads the time for that.
//!
//! The turn's one clock reading stays the rule. Where something happens to I/Os that are followed, time is read once for all of
//! them that it happens to together, and not at all when there are none.

use block::{Mark, Step};
use trace::{Stage, Tracer};

use crate::clock::Stopwatch;

/// A reading of the time that is made when it is first asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp<'a> {
    watch: &'a Stopwatch,
    read_ns: Option<u64>,
}

impl<'a> Stamp<'a> {
    pub fn new(watch: &'a Stopwatch) -> Stamp<'a> {
        Stamp { watch, read_ns: None }
    }

    pub fn ns(&mut self) -> u64 {
        *self.read_ns.get_or_insert_with(|| self.watch.now_ns())
    }
}

/// Takes the marks of volumes.
pub(super) struct Follower<'a> {
    pub tracer: &'a mut Tracer,
    pub watch: &'a Stopwatch,
}

impl Follower<'_> {
    /// Books what has just been done.
    pub fn book(&mut self, marks: impl Iterator<Item = Mark>) {
        let mut stamp = Stamp::new(self.watch);
        for Mark { trace, step } in marks {
            let stage = match step {
                Step::Behind(other) => {
                    self.tracer.depends(trace, [other], 1);
                    continue;
                }
                Step::Queued => Stage::Queue,
                Step::Mapped => Stage::Map,
                Step::Moved => Stage::Media,
                Step::Logged => Stage::Log,
                Step::Looked => Stage::Fence,
                Step::Synced => Stage::Sync,
            };
            self.tracer.step(trace, stage, stamp.ns());
        }
    }
}
