//! Where volumes are written: a directory that all nodes share, and one of each node's own.
//!
//! The shared one fences by epoch, as decisions D10 and 044 say: a grant can be opened if none above it was, and
//! again only by the node that did; a write under a grant that is not the highest is refused.

use std::collections::BTreeMap;

use contract::{Epoch, VolumeId};

/// Files of one volume on the shared directory.
#[derive(Clone, Copy, Debug, Default)]
struct Files {
    grant: Epoch,
    owner: usize,
}

/// Copies of one volume on the nodes' own directories. A write that was acknowledged makes one version of it.
#[derive(Clone, Debug, Default)]
struct Copies {
    acknowledged: u64,
    at: BTreeMap<usize, u64>,
}

/// All media.
#[derive(Clone, Debug, Default)]
pub struct Media {
    shared: BTreeMap<VolumeId, Files>,
    own: BTreeMap<VolumeId, Copies>,
    /// [`crate::Bug::SkipFence`].
    pub takes_anything: bool,
}

/// A write that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced;

impl Media {
    /// Opens a volume under a grant.
    pub fn open(&mut self, volume: VolumeId, grant: Epoch, node: usize) -> Result<(), Fenced> {
        let Some(files) = self.shared.get_mut(&volume) else { return Err(Fenced) };
        let others = files.grant == grant && files.grant > Epoch(0) && files.owner != node;
        if (files.grant > grant || others) && !self.takes_anything {
            return Err(Fenced);
        }
        (files.grant, files.owner) = (files.grant.max(grant), node);
        Ok(())
    }

    /// Writes under a grant.
    pub fn write(&mut self, volume: VolumeId, grant: Epoch) -> Result<(), Fenced> {
        let Some(files) = self.shared.get(&volume) else { return Err(Fenced) };
        if files.grant > grant && !self.takes_anything { Err(Fenced) } else { Ok(()) }
    }

    /// Makes the files of a volume: in the shared directory, or in a node's own.
    pub fn prepare(&mut self, volume: VolumeId, node: usize, shared: bool) {
        if shared {
            self.shared.entry(volume).or_default();
        } else {
            self.own.entry(volume).or_default().at.insert(node, 0);
        }
    }

    /// Copies what a node has to another one.
    pub fn copy(&mut self, from: VolumeId, source: usize, to: VolumeId, target: usize) -> bool {
        let Some(version) = self.own.get(&from).and_then(|copies| copies.at.get(&source)).copied() else {
            return false;
        };
        let copies = self.own.entry(to).or_default();
        copies.at.insert(target, version);
        if from != to {
            copies.acknowledged = version;
        }
        true
    }

    /// Whether a node has files of a volume in its own directory.
    pub fn has(&self, volume: VolumeId, node: usize) -> bool {
        self.own.get(&volume).is_some_and(|copies| copies.at.contains_key(&node))
    }

    /// Writes to a node's own directory and acknowledges it. Says whether all that was acknowledged before is there.
    pub fn write_own(&mut self, volume: VolumeId, node: usize) -> bool {
        let Some(copies) = self.own.get_mut(&volume) else { return true };
        let Some(version) = copies.at.get_mut(&node) else { return true };
        let whole = *version == copies.acknowledged;
        copies.acknowledged += 1;
        *version = copies.acknowledged;
        whole
    }

    /// Removes the files of a volume: from the shared directory, or from a node's own.
    pub fn remove(&mut self, volume: VolumeId, node: usize, shared: bool) {
        if shared {
            self.shared.remove(&volume);
        } else if let Some(copies) = self.own.get_mut(&volume) {
            copies.at.remove(&node);
        }
    }
}
