//! The ledger within its limits: what runs and is scheduled, sources and targets alike, never grows above a limit,
//! and the ledger's own count is the sum over the operations.

use std::collections::BTreeMap;

use contract::{Dim, NodeId, Resources, Scope, Work};
use control_core::Core;

use super::First;
use crate::plane::place_of;

/// Copies that were counted at each node before.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The first violation.
    pub first: First,
    before: BTreeMap<NodeId, u64>,
}

impl Ledger {
    /// After each step of the core; `whole`: also against the naive sum.
    pub fn after_step(&mut self, core: &Core, capacities: &[Resources], whole: bool) {
        let mut now = BTreeMap::new();
        for (dim, scope, used) in core.ledger().uses() {
            let (Dim::CopySlots, Scope::Node(id)) = (dim, scope) else { continue };
            now.insert(id, used);
            let set =
                core.limits().find(|limit| limit.dim == dim && limit.scope == scope).map(|limit| limit.max);
            let place = core.node(id).and_then(|node| place_of(&node.info.name));
            let has = place.and_then(|place| capacities.get(place)).map_or(0, |has| has.copy_slots);
            let max = set.unwrap_or(has);
            let before = self.before.get(&id).copied().unwrap_or(0);
            self.first.check(used <= max || used <= before, || {
                format!("{scope} has {used} copies running or scheduled, {before} before, of {max}")
            });
        }
        if whole {
            for (id, sum) in naive(core) {
                let used = now.get(&id).copied().unwrap_or(0);
                self.first.check(used == sum, || {
                    format!("the ledger counts {used} copies at {id}, which has {sum}")
                });
            }
        }
        self.before = now;
    }
}

fn naive(core: &Core) -> BTreeMap<NodeId, u64> {
    let mut sums = BTreeMap::new();
    for operation in core.operations().filter(|operation| operation.phase.counts()) {
        let shared = core.volume(operation.volume).is_some_and(|volume| volume.pool.as_str() == "shared");
        let copies = match operation.work {
            Work::Scrub | Work::Clone { .. } | Work::Delete { wipe: true } => true,
            Work::MoveNode { .. } => !shared,
            _ => false,
        };
        if !copies {
            continue;
        }
        let mut nodes: Vec<NodeId> = operation.source.into_iter().chain(operation.target).collect();
        nodes.dedup();
        nodes.into_iter().for_each(|node| *sums.entry(node).or_default() += 1);
    }
    sums
}
