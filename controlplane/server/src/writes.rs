//! What the steps of a turn wrote, made durable: in as few transactions as the store allows.
//!
//! The writer's record is in every transaction: it must be as this control plane left it, and says then which
//! transaction was the last one. So one that was replaced writes nothing, and a transaction that a store elsewhere did
//! not answer is tried again without being done twice, however late the first attempt arrives (decision 065).
//!
//! Invariants: the writes of one step lie in one transaction, in the order of the steps; what could not be written
//! stays, and is written first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use control_core::{Record, Write};
use store::{
    OPERATIONS_MAX, Operation, Outcome, Revision, Store, StoreError, TRANSACTION_BYTES_MAX, Transaction,
};

use crate::driver::{Ended, key};

/// Where the store has the writer's record.
const WRITER: &str = "writer";
/// What the writer's record adds to a transaction, bytes, at most.
const WRITER_BYTES: usize = 512;

// A step always has room in a transaction of its own, beside the writer's record.
const _: () = assert!(control_core::WRITES_MAX < OPERATIONS_MAX);

/// See the module's documentation.
pub struct Writes {
    store: Arc<dyn Store>,
    /// Revision of the writer's record.
    writer: Revision,
    /// Who we are there, and how often we wrote.
    name: u64,
    count: u64,
    /// Not durable yet, in order; only the last one takes more.
    pending: VecDeque<Pending>,
}

/// A transaction to be: of several steps the last write of a key counts.
#[derive(Default)]
struct Pending {
    operations: BTreeMap<String, Operation>,
    bytes: usize,
    /// The store was asked to do it, and may have done so: it takes nothing more.
    tried: bool,
}

impl Pending {
    fn take(&mut self, operation: Operation) {
        self.bytes += operation.bytes();
        if let Some(before) = self.operations.insert(operation.key().to_owned(), operation) {
            self.bytes -= before.bytes();
        }
    }

    fn takes(&self, step: &[Operation]) -> bool {
        let new = step.iter().filter(|one| !self.operations.contains_key(one.key())).count();
        let bytes: usize = step.iter().map(Operation::bytes).sum();
        !self.tried
            && self.operations.len() + new < OPERATIONS_MAX
            && self.bytes + bytes + WRITER_BYTES <= TRANSACTION_BYTES_MAX
    }
}

impl Writes {
    /// Takes the store over, with nothing to write yet: from here on whoever had it before writes nothing. `name`
    /// tells this start from others.
    pub fn begin(store: Arc<dyn Store>, name: u64) -> Result<Writes, StoreError> {
        let took = store.transact(&Transaction::new().put(WRITER, format!("{name:016x}")))?;
        let writer = match took {
            Outcome::Done { revision } => revision,
            // INVARIANT: nothing is compared.
            Outcome::Conflict { .. } => unreachable!("a transaction without compares conflicts with nothing"),
        };
        Ok(Writes { store, writer, name, count: 0, pending: VecDeque::new() })
    }

    /// Takes those of one step.
    pub fn add(&mut self, step: Vec<Write>) -> Result<(), StoreError> {
        if step.is_empty() {
            return Ok(());
        }
        let step = step.into_iter().map(operation).collect::<Result<Vec<_>, _>>()?;
        if self.pending.back().is_none_or(|last| !last.takes(&step)) {
            self.pending.push_back(Pending::default());
        }
        if let Some(last) = self.pending.back_mut() {
            step.into_iter().for_each(|operation| last.take(operation));
        }
        Ok(())
    }

    /// Makes everything that was taken durable. After an error it can be tried again.
    pub fn commit(&mut self) -> Result<(), Ended> {
        while let Some(next) = self.pending.front_mut() {
            next.tried = true;
            let says = format!("{:016x} {}", self.name, self.count);
            let mut transaction = Transaction::new().expect(WRITER, self.writer).put(WRITER, says.as_str());
            transaction.operations.extend(next.operations.values().cloned());
            self.writer = match self.store.transact(&transaction)? {
                Outcome::Done { revision } => revision,
                // An attempt that nobody answered was done.
                Outcome::Conflict { found } => match found.into_iter().flatten().next() {
                    Some(entry) if entry.value == says.as_bytes() => entry.modified,
                    _ => return Err(Ended::Overtaken),
                },
            };
            self.count += 1;
            self.pending.pop_front();
        }
        Ok(())
    }
}

fn operation(write: Write) -> Result<Operation, StoreError> {
    let key = key(&write.key);
    let value =
        |record: &Record| serde_json::to_vec(record).map_err(|error| StoreError::Failed(Box::new(error)));
    Ok(match &write.record {
        Some(record) => Operation::Put { key, value: value(record)?, lease: None },
        None => Operation::Delete { key },
    })
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
        let name = store.revision().expect("a store") + 1;
        let mut writes = Writes::begin(Arc::clone(store), name).expect("a store");
        let mut core = recover(&**store, Config::default()).expect("a core");
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
        let again = recover(&*store, Config::default()).expect("a core");
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
        // Before it has written anything of its own.
        let (_core, _new_writes) = started(&store);
        old_writes.add(old.step(2, put(0)).writes).expect("room");
        assert!(matches!(old_writes.commit(), Err(Ended::Overtaken)));
        let core = recover(&*store, Config::default()).expect("a core");
        assert_eq!(core.tenants().count(), 0);
    }

    /// A store that does what it is asked and sometimes says nothing.
    struct Silent {
        store: Local,
        silent: std::sync::atomic::AtomicBool,
    }

    impl Silent {
        fn answer<T>(&self, answer: T) -> Result<T, StoreError> {
            let silent = self.silent.load(std::sync::atomic::Ordering::Relaxed);
            if silent { Err(StoreError::Away("silent".to_owned())) } else { Ok(answer) }
        }
    }

    impl Store for Silent {
        fn revision(&self) -> Result<Revision, StoreError> {
            self.store.revision()
        }

        fn get(&self, key: &str) -> Result<Option<store::Entry>, StoreError> {
            self.store.get(key)
        }

        fn range(&self, range: &store::KeyRange, limit: usize) -> Result<store::Page, StoreError> {
            self.store.range(range, limit)
        }

        fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
            self.answer(self.store.transact(transaction)?)
        }

        fn watch(
            &self,
            range: store::KeyRange,
            from: Revision,
        ) -> Result<Box<dyn store::Watch>, store::WatchError> {
            self.store.watch(range, from)
        }

        fn lease_grant(&self, ttl: std::time::Duration) -> Result<store::LeaseId, StoreError> {
            self.store.lease_grant(ttl)
        }

        fn lease_keep_alive(&self, lease: store::LeaseId) -> Result<(), StoreError> {
            self.store.lease_keep_alive(lease)
        }

        fn lease_revoke(&self, lease: store::LeaseId) -> Result<(), StoreError> {
            self.store.lease_revoke(lease)
        }

        fn pass(&self, time: std::time::Duration) -> Result<(), StoreError> {
            self.store.pass(time)
        }
    }

    #[test]
    fn what_was_done_without_an_answer_is_not_done_again() {
        let silent = Arc::new(Silent { store: Local::in_memory(), silent: false.into() });
        let store: Arc<dyn Store> = Arc::<Silent>::clone(&silent);
        let (mut core, mut writes) = started(&store);
        writes.commit().expect("durable");
        writes.add(core.step(2, put(0)).writes).expect("plain values");
        let before = store.revision().expect("a store");
        silent.silent.store(true, std::sync::atomic::Ordering::Relaxed);
        for _ in 0..3 {
            assert!(matches!(writes.commit(), Err(Ended::Store(StoreError::Away(_)))));
        }
        assert_eq!(
            store.revision().expect("a store"),
            before + 1,
            "the first attempt was done, and no other"
        );
        // What comes meanwhile is not part of what may have been done.
        writes.add(core.step(3, put(1)).writes).expect("plain values");
        silent.silent.store(false, std::sync::atomic::Ordering::Relaxed);
        writes.commit().expect("durable");
        assert_eq!(store.revision().expect("a store"), before + 2);
        let again = recover(&*store, Config::default()).expect("a core");
        assert!(again.tenants().eq(core.tenants()) && again.tenants().count() == 2);
    }

    #[test]
    fn long_records_are_spread_over_transactions() {
        let store: Arc<dyn Store> = Arc::new(Local::in_memory());
        let (mut core, mut writes) = started(&store);
        let address = ["ffff"; 8].join(":");
        let longest = |port| contract::Rule {
            to: format!("{address}/128"),
            protocol: Some(contract::rule::Protocol::Tcp),
            port: Some(port),
            action: contract::rule::Action::Forward,
            vtep: Some(format!("[{address}]:65535")),
        };
        for number in 0..5 {
            let Input::Request { token, mut request } = put(number) else { unreachable!("it is one") };
            let Command::TenantPut { rules, .. } = &mut request.command else { unreachable!("it is one") };
            rules.extend((0..4_096).map(|number| longest(u16::MAX - number)));
            let said = serde_json::to_vec(&request).expect("plain values").len();
            assert!(
                said <= crate::api::REQUEST_BYTES_MAX,
                "{said}: the most and the longest rules are taken"
            );
            let step = core.step(2, Input::Request { token, request });
            writes.add(step.writes).expect("plain values");
        }
        writes.commit().expect("durable");
        let again = recover(&*store, Config::default()).expect("a core");
        assert!(again.tenants().eq(core.tenants()) && again.tenants().count() == 5);
    }
}
