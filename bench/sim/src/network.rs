//! The network: messages are lost, doubled, late, out of order; links are cut in one direction.

use std::collections::BTreeSet;

use rand::Rng;

use crate::world::Faults;

/// How bad it is.
#[derive(Clone, Debug)]
pub struct Network {
    /// Probabilities of each message.
    pub loss: f64,
    /// Of a copy.
    pub duplicate: f64,
    /// Of being much later than others.
    pub delay: f64,
    /// Nodes that are not heard.
    pub cut_from: BTreeSet<usize>,
    /// Nodes that hear nothing.
    pub cut_to: BTreeSet<usize>,
}

/// Time on the way, ms.
const USUAL_MS: std::ops::Range<u64> = 1..20;
const LATE_MS: std::ops::Range<u64> = 20..4_000;

impl Network {
    /// When each copy of a message arrives; none = it does not.
    pub fn arrivals(
        &self,
        node: usize,
        to_node: bool,
        random: &mut impl Rng,
        faults: &mut Faults,
    ) -> Vec<u64> {
        let cut = if to_node { &self.cut_to } else { &self.cut_from };
        if cut.contains(&node) {
            faults.cut += 1;
            return vec![];
        }
        if random.random_bool(self.loss) {
            faults.lost += 1;
            return vec![];
        }
        let mut copies = 1;
        if random.random_bool(self.duplicate) {
            faults.doubled += 1;
            copies += 1;
        }
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            if random.random_bool(self.delay) {
                faults.late += 1;
                arrivals.push(random.random_range(LATE_MS));
            } else {
                arrivals.push(random.random_range(USUAL_MS));
            }
        }
        arrivals
    }

    /// Everything works from now on.
    pub fn heal(&mut self) {
        (self.loss, self.duplicate, self.delay) = (0.0, 0.0, 0.0);
        self.cut_from.clear();
        self.cut_to.clear();
    }
}
