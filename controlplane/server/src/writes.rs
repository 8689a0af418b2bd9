//! What the core's steps write, gathered into as few transactions as the store allows.
//!
//! Invariants: the writes of one step lie in one transaction, in the order of the steps; every transaction demands
//! that the core's meta record is as this control plane knows it, so one that was replaced writes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_core::{Key, Record, Write};
use store::{OPERATIONS_MAX, Outcome, Revision, Store, StoreError, Transaction};

use crate::driver::{Ended, key};

// A step always has room in a transaction of its own.
const _: () = assert!(control_core::WRITES_MAX <= OPERATIONS_MAX);

/// See the module's documentation.
pub struct Writes {
    store: Arc<dyn Store>,
    /// Revision of the meta record.
    meta: Revision,
    /// Not durable yet; of several steps the last write of a key counts.
    pending: BTreeMap<String, Option<Record>>,
}

impl Writes {
    /// With nothing to write; `meta` is the revision of the core's meta record.
    pub fn new(store: Arc<dyn Store>, meta: Revision) -> Writes {
        Writes { store, meta, pending: BTreeMap::new() }
    }

    /// Takes those of one step. What was taken before is made durable now if both have no room in one transaction.
    pub fn add(&mut self, step: Vec<Write>) -> Result<(), Ended> {
        let step: Vec<_> = step.into_iter().map(|write| (key(&write.key), write.record)).collect();
        let new = step.iter().filter(|(key, _)| !self.pending.contains_key(key)).count();
        if self.pending.len() + new > OPERATIONS_MAX {
            self.commit()?;
        }
        self.pending.extend(step);
        Ok(())
    }

    /// Makes everything that was taken durable.
    pub fn commit(&mut self) -> Result<(), Ended> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let meta = key(&Key::Meta);
        let changes_meta = self.pending.contains_key(&meta);
        let mut transaction = Transaction::new().expect(meta, self.meta);
        for (key, record) in std::mem::take(&mut self.pending) {
            transaction = match record {
                Some(record) => {
                    let value =
                        serde_json::to_vec(&record).map_err(|error| StoreError::Failed(Box::new(error)))?;
                    transaction.put(key, value)
                }
                None => transaction.delete(key),
            };
        }
        match self.store.transact(&transaction)? {
            Outcome::Done { revision } if changes_meta => self.meta = revision,
            Outcome::Done { .. } => {}
            Outcome::Conflict { .. } => return Err(Ended::Overtaken),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use contract::{Command, Request};
    use control_core::{Config, Core, Input};
    use store::Local;

    use super::*;
    use crate::driver::recover;

    const TENANTS: u64 = 3 * OPERATIONS_MAX as u64;

    fn put(number: u64) -> Input {
        let name = format!("tenant-{number}").parse().expect("a name");
        let command = Command::TenantPut { name, vni: None, weight: 1, rules: Vec::new() };
        let request = Request { idempotency_key: format!("key-{number}"), expected_revision: None, command };
        Input::Request { token: number, request }
    }

    fn started(store: &Arc<dyn Store>) -> (Core, Writes) {
        let (mut core, meta) = recover(&**store, Config::default()).expect("a core");
        let mut writes = Writes::new(Arc::clone(store), meta);
        writes.add(core.step(1, Input::Tick).writes).expect("room");
        (core, writes)
    }

    #[test]
    fn a_burst_that_writes_more_than_a_transaction_holds_is_written_wholly() {
        let store: Arc<dyn Store> = Arc::new(Local::in_memory());
        let (mut core, mut writes) = started(&store);
        for number in 0..TENANTS {
            writes.add(core.step(2, put(number)).writes).expect("room");
        }
        writes.commit().expect("durable");
        let tenants = core.tenants().count() as u64;
        assert_eq!(tenants, TENANTS);
        let (again, _) = recover(&*store, Config::default()).expect("a core");
        assert!(again.tenants().eq(core.tenants()));
        // Each tenant and the answer under its key, many to a transaction.
        let least = 2 * TENANTS / OPERATIONS_MAX as u64;
        let revision = store.revision().expect("a store");
        assert!((least..=2 * least).contains(&revision), "{revision} transactions");
    }

    #[test]
    fn one_that_was_replaced_writes_nothing_any_more() {
        let store: Arc<dyn Store> = Arc::new(Local::in_memory());
        let (mut old, mut old_writes) = started(&store);
        old_writes.commit().expect("durable");
        let (_, mut new_writes) = started(&store);
        new_writes.commit().expect("durable");
        old_writes.add(old.step(2, put(0)).writes).expect("room");
        assert!(matches!(old_writes.commit(), Err(Ended::Overtaken)));
        let (core, _) = recover(&*store, Config::default()).expect("a core");
        assert_eq!(core.tenants().count(), 0);
    }
}
