//! The steps of moves and clones on this node: freeze and thaw where a volume is served, copies where it will be.
//!
//! Invariants: a freeze is written down before it holds and a thaw before it ends one; nothing is opened or closed
//! meanwhile; a volume has one copy at most, and whatever else is done with its files ends that.

use std::collections::BTreeMap;
use std::path::Path;

use contract::{Credits, Epoch, Instruction, VolumeId};
use engine::throttle::Saved;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::Follower;
use super::copy::Copy;
use super::steps::{Failure, Job};

/// A volume that holds its I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The grant that the freeze met: it holds for that one and those before.
    pub epoch: Epoch,
    /// What its throttle had saved then, once it was still.
    pub credits: Option<Credits>,
}

/// Whether a volume is frozen under a grant.
pub fn is_frozen(frozen: &BTreeMap<VolumeId, Frozen>, volume: VolumeId, epoch: Epoch) -> bool {
    frozen.get(&volume).is_some_and(|frozen| frozen.epoch >= epoch)
}

impl Follower {
    /// Holds the I/O of a volume that is served here.
    pub(super) fn freeze(&self, instruction: &Instruction) -> Result<Option<Credits>, Failure> {
        let volume = instruction.volume;
        let _alone = self.alone();
        let (name, epoch) = {
            let mut state = self.state();
            let Some(placed) = state.serving.placed(volume) else {
                return Err(Failure::again("it is not open here".to_owned()));
            };
            let (name, epoch) = (placed.name.to_string(), placed.epoch);
            let known = state.shelf.book.frozen.get(&volume).filter(|frozen| frozen.epoch == epoch);
            if let Some(Frozen { credits: Some(credits), .. }) = known {
                return Ok(Some(*credits));
            }
            state.shelf.freeze(volume, Frozen { epoch, credits: None }).map_err(Failure::book)?;
            (name, epoch)
        };
        let daemon = self.daemon()?;
        // Another node opens the same files next, or a copy of them.
        let shared = self.settings.pools.iter().any(|(pool, _)| pool.name == instruction.pool && pool.shared);
        match daemon.freeze(&name, shared) {
            Ok(Saved { bytes, packets }) => {
                let credits = Credits { operations: packets, bytes };
                let frozen = Frozen { epoch, credits: Some(credits) };
                self.state().shelf.freeze(volume, frozen).map_err(Failure::book)?;
                info!(%volume, %epoch, "frozen");
                Ok(Some(credits))
            }
            Err(why) => {
                self.state().shelf.thaw(volume).map_err(Failure::book)?;
                // It may be gone; if it is there, it goes on.
                let thawed = daemon.thaw(&name);
                let also = thawed.err().map_or(String::new(), |also| format!("; and to go on: {also}"));
                Err(Failure::again(format!("{why}{also}")))
            }
        }
    }

    /// Has a volume go on, if it is here.
    pub(super) fn thaw(&self, instruction: &Instruction) -> Result<(), Failure> {
        let volume = instruction.volume;
        let _alone = self.alone();
        let name = {
            let mut state = self.state();
            state.shelf.thaw(volume).map_err(Failure::book)?;
            state.serving.placed(volume).map(|placed| placed.name.to_string())
        };
        let (Some(name), Some(daemon)) = (name, self.daemon.upgrade()) else { return Ok(()) };
        daemon.thaw(&name).map_err(|why| Failure::again(why.to_string()))?;
        info!(%volume, "thawed");
        Ok(())
    }

    /// Copies a volume while it is served; of a move, the copy stays to be completed.
    pub(super) fn copy_bulk(
        &self,
        instruction: &Instruction,
        directory: &Path,
        job: &Job,
    ) -> Result<(), Failure> {
        let volume = instruction.volume;
        self.drop_copy(volume);
        let is_clone = instruction.from_volume != Some(volume);
        if !is_clone && instruction.from_node == self.state().shelf.book.node {
            return Err(Failure::for_good("a volume cannot be copied over itself"));
        }
        let copy = Copy::begin(instruction, directory, job)?;
        if !is_clone {
            self.copies().insert(volume, copy);
            return Ok(());
        }
        self.cut(instruction, copy, job)
    }

    /// Ends a clone: it is as its source was at one moment, at which that holds its I/O for as long as the rest takes.
    fn cut(&self, instruction: &Instruction, mut copy: Copy, job: &Job) -> Result<(), Failure> {
        let name = instruction.from_name.as_ref().map_or(String::new(), ToString::to_string);
        let daemon = self.daemon()?;
        let frozen = daemon.freeze(&name, false).map_err(|why| Failure::again(why.to_string()));
        let copied = frozen.and_then(|_saved| copy.rest(job));
        // Also what is not still in time was told to be: it goes on, whatever came of the copy.
        let thawed = daemon.thaw(&name).map_err(|why| Failure::again(why.to_string()));
        copied.and(thawed)?;
        // Nobody waits for the disk any more.
        copy.end()
    }

    /// Copies what changed since then, of a volume that is frozen by now.
    pub(super) fn copy_delta(&self, instruction: &Instruction, job: &Job) -> Result<(), Failure> {
        let copy = self.copies().remove(&instruction.volume);
        let copy = copy.filter(|copy| copy.operation == instruction.key.operation);
        let mut copy = copy.ok_or_else(|| Failure::for_good("the copy that this would complete is gone"))?;
        let ended = copy.rest(job).and_then(|()| copy.end());
        ended.map_err(|failure| Failure { again: false, ..failure })
    }

    /// What was copied of a volume is not completed any more.
    pub(super) fn drop_copy(&self, volume: VolumeId) {
        let copy = self.copies().remove(&volume);
        drop(copy);
    }
}
