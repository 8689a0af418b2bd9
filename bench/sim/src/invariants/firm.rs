//! Firm leases within capacity less contingency, of the fleet and of each node, by what the nodes really have.

use contract::{Class, Resources};
use control_core::Core;

use super::First;
use crate::plane::place_of;

/// Sums of firm leases.
#[derive(Clone, Debug, Default)]
pub struct Firm {
    /// The first violation.
    pub first: First,
}

impl Firm {
    /// After each step of the core.
    pub fn after_step(&mut self, core: &Core, capacities: &[Resources]) {
        let has = |id| {
            let place = core.node(id).and_then(|node| place_of(&node.info.name));
            place.and_then(|place| capacities.get(place)).copied().unwrap_or(Resources::NONE)
        };
        let (mut sum, mut largest, mut firm, mut count) = (0, 0, 0, 0);
        for (id, account) in core.accounts().iter() {
            let capacity = has(id).iops;
            (sum, largest, count) = (sum + capacity, largest.max(capacity), count + 1);
            firm += account.firm.iops;
            self.first.check(account.firm.iops <= capacity, || {
                format!("{id} promised {} firm and has {capacity}", account.firm)
            });
        }
        let contingency = if count < 2 { 0 } else { largest };
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
        self.first.check(firm <= (sum - contingency).saturating_add(moving), || {
            format!("{firm} is firm, {moving} of it twice, of {sum} less {contingency}")
        });
    }
}
