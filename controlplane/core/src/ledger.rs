//! The one account of what operations use: running **and** scheduled, at sources and targets alike (F1.c, F1.d).
//!
//! An operation takes all that its steps declare when it is scheduled and gives it back when it is over. A limit
//! may be lowered below what is used: nothing is aborted, nothing new fits until enough was given back.
//!
//! Invariant: what is used is the sum of what is taken, and `take` never brings it above a limit.

use std::collections::BTreeMap;

use contract::{Blocked, Dim, Limit, OperationId, OperationKind, Scope, Usage};

use crate::config::Config;

/// The account.
#[derive(Clone, Debug)]
pub struct Ledger {
    used: BTreeMap<(Dim, Scope), u64>,
    limits: BTreeMap<(Dim, Scope), u64>,
    /// What nodes said that they can do.
    said: BTreeMap<(Dim, Scope), u64>,
    taken: BTreeMap<OperationId, Vec<Usage>>,
    defaults: Defaults,
}

#[derive(Clone, Copy, Debug)]
struct Defaults {
    copy_slots_per_node: u64,
    copies_per_link: u64,
    operations_per_node: u64,
    operations_per_tenant: u64,
    operations_in_fleet: u64,
    reserved: u64,
}

/// Whether work may use the room that is kept for fencing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Ordinary work.
    Bulk,
    /// Failover: it is never held up by ordinary work.
    Fencing,
}

impl Priority {
    /// Of a kind of operation.
    pub fn of(kind: OperationKind) -> Priority {
        if kind == OperationKind::Failover { Priority::Fencing } else { Priority::Bulk }
    }
}

impl Ledger {
    /// Nothing is used.
    pub fn new(config: &Config) -> Ledger {
        Ledger {
            used: BTreeMap::new(),
            limits: BTreeMap::new(),
            said: BTreeMap::new(),
            taken: BTreeMap::new(),
            defaults: Defaults {
                copy_slots_per_node: config.copy_slots_per_node,
                copies_per_link: config.copies_per_link,
                operations_per_node: config.operations_per_node,
                operations_per_tenant: config.operations_per_tenant,
                operations_in_fleet: config.operations_in_fleet,
                reserved: config.operations_reserved,
            },
        }
    }

    /// What is used.
    pub fn used(&self, dim: Dim, scope: Scope) -> u64 {
        self.used.get(&(dim, scope)).copied().unwrap_or(0)
    }

    /// The most for ordinary work; none = without limit.
    pub fn max(&self, dim: Dim, scope: Scope) -> Option<u64> {
        let default = match (dim, scope) {
            (Dim::Operations, Scope::Fleet) => Some(self.defaults.operations_in_fleet),
            (Dim::Operations, Scope::Node(_)) => Some(self.defaults.operations_per_node),
            (Dim::Operations, Scope::Tenant(_)) => Some(self.defaults.operations_per_tenant),
            // One in flight per object.
            (Dim::Operations, Scope::Volume(_)) => Some(1),
            (Dim::CopySlots, Scope::Node(_)) => Some(self.defaults.copy_slots_per_node),
            (Dim::CopySlots, Scope::Link(..)) => Some(self.defaults.copies_per_link),
            _ => None,
        };
        let key = (dim, scope);
        self.limits.get(&key).or_else(|| self.said.get(&key)).copied().or(default)
    }

    fn max_for(&self, usage: &Usage, priority: Priority) -> Option<u64> {
        let max = self.max(usage.dim, usage.scope)?;
        let beyond = match (priority, usage.dim, usage.scope) {
            // Whatever holds the volume of a lost head waits for that head; its recovery does not wait for it.
            (Priority::Fencing, Dim::Operations, Scope::Volume(_)) => 1,
            (Priority::Fencing, Dim::Operations, _) => self.defaults.reserved,
            _ => 0,
        };
        Some(max.saturating_add(beyond))
    }

    /// Sets a limit. What is used above it drains.
    pub fn set_limit(&mut self, limit: Limit) {
        self.limits.insert((limit.dim, limit.scope), limit.max);
    }

    /// Removes a limit; what holds where nobody set one holds again.
    pub fn remove_limit(&mut self, dim: Dim, scope: Scope) {
        self.limits.remove(&(dim, scope));
    }

    /// Sets what holds where nobody set a limit.
    pub fn set_default(&mut self, dim: Dim, scope: Scope, max: u64) {
        self.said.insert((dim, scope), max);
    }

    /// Whether all of it fits; otherwise the first limit that is in the way.
    pub fn fits(&self, usages: &[Usage], priority: Priority) -> Result<(), Blocked> {
        for usage in usages {
            let used = self.used(usage.dim, usage.scope);
            let Some(max) = self.max_for(usage, priority) else { continue };
            if used.checked_add(usage.amount).is_none_or(|sum| sum > max) {
                let (dim, scope, need) = (usage.dim, usage.scope, usage.amount);
                return Err(Blocked::Limit { dim, scope, used, need, max });
            }
        }
        Ok(())
    }

    /// Takes all of it or nothing. Each scope stands in `usages` once in each dimension.
    pub fn take(&mut self, id: OperationId, usages: Vec<Usage>, priority: Priority) -> Result<(), Blocked> {
        self.fits(&usages, priority)?;
        self.load(id, usages);
        Ok(())
    }

    /// Counts what was taken before the control plane restarted, whatever the limits are now.
    pub fn load(&mut self, id: OperationId, usages: Vec<Usage>) {
        self.give(id);
        for usage in &usages {
            let used = self.used.entry((usage.dim, usage.scope)).or_default();
            *used = used.saturating_add(usage.amount);
        }
        self.taken.insert(id, usages);
    }

    /// Gives back what an operation took; says where.
    pub fn give(&mut self, id: OperationId) -> Vec<Usage> {
        let usages = self.taken.remove(&id).unwrap_or_default();
        for usage in &usages {
            let key = (usage.dim, usage.scope);
            let left = self.used(usage.dim, usage.scope).saturating_sub(usage.amount);
            if left == 0 {
                self.used.remove(&key);
            } else {
                self.used.insert(key, left);
            }
        }
        usages
    }

    /// Everything that is used, for invariants and for people.
    pub fn uses(&self) -> impl Iterator<Item = (Dim, Scope, u64)> {
        self.used.iter().map(|(&(dim, scope), &used)| (dim, scope, used))
    }

    /// What each operation took.
    pub fn takers(&self) -> impl Iterator<Item = (OperationId, &[Usage])> {
        self.taken.iter().map(|(id, usages)| (*id, usages.as_slice()))
    }
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
