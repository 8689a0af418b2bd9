//! One writer per epoch: a grant is opened by one node only, and no write below the highest opened grant is taken.

use std::collections::BTreeMap;

use contract::{Epoch, VolumeId};

use super::First;

/// Who opened what.
#[derive(Clone, Debug, Default)]
pub struct OneWriter {
    /// The first violation.
    pub first: First,
    openers: BTreeMap<(VolumeId, Epoch), usize>,
    highest: BTreeMap<VolumeId, Epoch>,
}

impl OneWriter {
    /// A node opened a volume.
    pub fn opened(&mut self, node: usize, volume: VolumeId, epoch: Epoch) {
        let opener = *self.openers.entry((volume, epoch)).or_insert(node);
        self.first
            .check(opener == node, || format!("{volume} under {epoch} was opened by n{opener} and n{node}"));
        let highest = self.highest.entry(volume).or_default();
        *highest = epoch.max(*highest);
    }

    /// The shared directory took a write.
    pub fn wrote(&mut self, node: usize, volume: VolumeId, epoch: Epoch) {
        let highest = self.highest.get(&volume).copied().unwrap_or_default();
        self.first.check(epoch >= highest, || {
            format!("n{node} wrote {volume} under {epoch} after it was opened under {highest}")
        });
    }
}
