//! Firm leases within capacity less contingency, of the fleet and of each node, by what the nodes really have; and
//! what is promised besides, within that of the nodes that are there.

use contract::{Class, NodeState, Resources};
use control_core::Core;

use super::First;
use crate::plane::place_of;

/// Sums of firm leases.
#[derive(Clone, Debug, Default)]
pub struct Firm {
    /// The first violation.
    pub first: First,
    /// Firm requests per second, those of a head that moves once.
    promised: u64,
    /// What could be of the nodes that were there.
    could: u64,
}

/// Capacities of some nodes.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    all: u64,
    largest: u64,
    count: u64,
}

impl Sum {
    fn add(&mut self, capacity: u64) {
        self.all += capacity;
        self.largest = self.largest.max(capacity);
        self.count += 1;
    }

    fn less_contingency(self) -> u64 {
        if self.count < 2 { self.all } else { self.all - self.largest }
    }
}

impl Firm {
    /// After each step of the core.
    pub fn after_step(&mut self, core: &Core, capacities: &[Resources]) {
        let has = |id| {
            let place = core.node(id).and_then(|node| place_of(&node.info.name));
            place.and_then(|place| capacities.get(place)).copied().unwrap_or(Resources::NONE)
        };
        let (mut all, mut there, mut firm) = (Sum::default(), Sum::default(), 0);
        for (id, account) in core.accounts().iter() {
            let capacity = has(id).iops;
            all.add(capacity);
            let state = core.node(id).map(|node| node.state);
            if matches!(state, Some(NodeState::Alive | NodeState::Suspect)) {
                there.add(capacity);
            }
            firm += account.firm.iops;
            self.first.check(account.firm.iops <= capacity, || {
                format!("{id} promised {} firm and has {capacity}", account.firm)
            });
        }
        // While a head moves, it has a lease at both ends.
        let moving: u64 = core
            .leases()
            .filter(|lease| lease.class == Class::Firm)
            .filter(|lease| match lease.holder {
                contract::Holder::Volume(id) => {
                    let head = core.volume(id).and_then(|volume| volume.head);
                    head.is_some_and(|head| head.lease != lease.id)
                }
                _ => false,
            })
            .map(|lease| lease.resources.iops)
            .sum();
        let (promise, could) = (all.less_contingency(), there.less_contingency());
        self.first.check(firm <= promise.saturating_add(moving), || {
            format!("{firm} is firm, {moving} of it twice, of {promise}")
        });
        let promised = firm.saturating_sub(moving);
        // A node may be lost in the same step, after something was promised.
        let most = could.max(self.could);
        self.first.check(promised <= self.promised || promised <= most, || {
            format!(
                "{promised} is promised, and was {} before, with {most} of the nodes that are there",
                self.promised
            )
        });
        (self.promised, self.could) = (promised, could);
    }
}
