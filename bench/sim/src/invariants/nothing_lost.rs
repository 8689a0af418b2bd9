//! What was acknowledged is there: a node that writes to a copy of its own has all that was acknowledged before.

use contract::VolumeId;

use super::First;

/// Writes to copies.
#[derive(Clone, Debug, Default)]
pub struct NothingLost {
    /// The first violation.
    pub first: First,
}

impl NothingLost {
    /// A node acknowledged a write; `whole`: its copy had all that was acknowledged before.
    pub fn wrote(&mut self, node: usize, volume: VolumeId, whole: bool) {
        self.first
            .check(whole, || format!("n{node} serves a copy of {volume} that lacks acknowledged writes"));
    }
}
