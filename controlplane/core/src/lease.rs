//! What of each node is reserved: firm, revocable, and on its way out (F6, F7; decision D11).
//!
//! - Firm reservations of the fleet stay within its capacity less the contingency, and the contingency is the
//!   largest node. A failover draws on it: it moves a firm reservation, so the sum does not grow. A lost node gives
//!   nobody anything: until it is back, the fleet promises by what the others have, and keeps a contingency of that.
//! - Revocable ones fill what firm ones leave of a node. When firm ones need it, they are revoked: told, given
//!   grace, then ended. Room that is on its way out is not free before it is out.
//!
//! Invariants: the account of a node is the sum over its leases; the firm sum of a node never exceeds its capacity
//! as it was when the last one was granted. Capacity that shrinks drains.

use std::collections::{BTreeMap, BTreeSet};

use contract::{Class, Lease, LeaseState, NodeId, Resources};

/// Of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// What it has.
    pub capacity: Resources,
    /// Firm.
    pub firm: Resources,
    /// Revocable and in force.
    pub revocable: Resources,
    /// Revoked and not yet gone.
    pub leaving: Resources,
}

impl Account {
    fn of(&mut self, lease: &Lease) -> &mut Resources {
        match (lease.class, lease.state) {
            (Class::Firm, _) => &mut self.firm,
            (Class::Revocable, LeaseState::Active) => &mut self.revocable,
            (Class::Revocable, LeaseState::Revoked { .. }) => &mut self.leaving,
        }
    }

    /// All that is reserved.
    pub fn reserved(&self) -> Resources {
        self.firm.plus(self.revocable).plus(self.leaving)
    }

    /// What must be revoked so that the firm ones fit.
    pub fn deficit(&self) -> Resources {
        self.firm.plus(self.revocable).minus(self.capacity)
    }

    /// What a firm one may take here, if revocable ones go.
    pub fn firm_room(&self) -> Resources {
        self.capacity.minus(self.firm)
    }

    /// What is free now.
    pub fn free(&self) -> Resources {
        self.capacity.minus(self.reserved())
    }

    /// Whether all that is reserved fits.
    pub fn settled(&self) -> bool {
        self.reserved().fits(self.capacity)
    }
}

/// Of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    nodes: BTreeMap<NodeId, Account>,
    lost: BTreeSet<NodeId>,
    /// What can be firm of all nodes together.
    promise: Resources,
    contingency: Resources,
    firm: Resources,
}

impl Accounts {
    /// Sets what a node has; it may be new.
    pub fn set_node(&mut self, id: NodeId, capacity: Resources) {
        self.nodes.entry(id).or_default().capacity = capacity;
        self.sum_up();
    }

    /// A node is lost, or back.
    pub fn set_lost(&mut self, id: NodeId, lost: bool) {
        if lost {
            self.lost.insert(id)
        } else {
            self.lost.remove(&id)
        };
        self.sum_up();
    }

    /// Forgets a node.
    pub fn remove_node(&mut self, id: NodeId) {
        self.lost.remove(&id);
        if let Some(gone) = self.nodes.remove(&id) {
            self.firm = self.firm.minus(gone.firm);
        }
        self.sum_up();
    }

    fn sum_up(&mut self) {
        let (all, _) = promise(self.nodes.values());
        let there = self.nodes.iter().filter(|(id, _)| !self.lost.contains(id));
        let (there, contingency) = promise(there.map(|(_, account)| account));
        // Not more than holds again when all are back, however few are there now.
        self.promise = all.minus(all.minus(there));
        self.contingency = contingency;
    }

    /// The account of a node.
    pub fn node(&self, id: NodeId) -> Account {
        self.nodes.get(&id).copied().unwrap_or_default()
    }

    /// All accounts.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Account)> {
        self.nodes.iter().map(|(id, account)| (*id, account))
    }

    /// What is kept for the loss of the largest node that is there.
    pub fn contingency(&self) -> Resources {
        self.contingency
    }

    /// All that is firm.
    pub fn firm(&self) -> Resources {
        self.firm
    }

    /// What the fleet may still promise.
    pub fn fleet_room(&self) -> Resources {
        self.promise.minus(self.firm)
    }

    /// Whether a node can take a lease. `moved`: a firm one that is already counted elsewhere and will end there,
    /// so the sum of the fleet does not grow for long.
    pub fn fits(&self, id: NodeId, class: Class, need: Resources, moved: bool) -> bool {
        let node = self.node(id);
        match class {
            Class::Firm => need.fits(node.firm_room()) && (moved || need.fits(self.fleet_room())),
            Class::Revocable => need.fits(node.free()),
        }
    }

    /// Counts a lease.
    pub fn add(&mut self, lease: &Lease) {
        let reserved = self.nodes.entry(lease.producer).or_default().of(lease);
        *reserved = reserved.plus(lease.resources);
        if lease.class == Class::Firm {
            self.firm = self.firm.plus(lease.resources);
        }
    }

    /// Counts a lease no more; as it was when it was added or revoked.
    pub fn remove(&mut self, lease: &Lease) {
        let Some(node) = self.nodes.get_mut(&lease.producer) else { return };
        let reserved = node.of(lease);
        *reserved = reserved.minus(lease.resources);
        if lease.class == Class::Firm {
            self.firm = self.firm.minus(lease.resources);
        }
    }
}

/// What of some nodes can be firm, and what is kept for the loss of the largest. A single node has nobody to keep it for.
fn promise<'a>(accounts: impl Iterator<Item = &'a Account>) -> (Resources, Resources) {
    let (mut sum, mut largest, mut count) = (Resources::NONE, Resources::NONE, 0);
    for account in accounts {
        (sum, largest, count) = (sum.plus(account.capacity), largest.max(account.capacity), count + 1);
    }
    let contingency = if count < 2 { Resources::NONE } else { largest };
    (sum.minus(contingency), contingency)
}

#[cfg(test)]
#[path = "lease/tests.rs"]
mod tests;
