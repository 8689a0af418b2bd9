//! The suite itself; `make` gives an empty store each time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use store::{
    Compare, KEY_BYTES_MAX, KeyRange, OPERATIONS_MAX, Operation, Outcome, Refusal, Revision, Store,
    StoreError, TRANSACTION_BYTES_MAX, Transaction, VALUE_BYTES_MAX, WatchError,
};

/// A folder that goes away.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tidegate-store-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

pub fn all<S: Store>(make: &dyn Fn() -> S) {
    a_compare_that_fails_changes_nothing(&make());
    a_transaction_is_one_revision(&make());
    ranges_come_in_pages(&make());
    limits_are_told(&make());
    a_watch_misses_nothing(&make());
    keys_go_with_their_lease(&make());
    random_transactions_do_what_a_plain_map_does(make);
}

const NOW: Duration = Duration::ZERO;

fn done(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Done { revision } => revision,
        conflict => panic!("{conflict:?}"),
    }
}

fn a_compare_that_fails_changes_nothing(store: &dyn Store) {
    let made = done(store.transact(&Transaction::new().expect("a", 0).put("a", "1")).unwrap());
    let again = Transaction::new().expect("b", 0).expect("a", 0).put("a", "2").put("b", "2");
    let Outcome::Conflict { found } = store.transact(&again).unwrap() else { panic!("a is there") };
    assert_eq!(found[0], None);
    assert_eq!(found[1].as_ref().unwrap().value, b"1");
    assert_eq!(store.revision().unwrap(), made);
    assert!(store.get("b").unwrap().is_none());
    let changed = done(store.transact(&Transaction::new().expect("a", made).put("a", "2")).unwrap());
    let entry = store.get("a").unwrap().unwrap();
    assert_eq!((entry.created, entry.modified, entry.value.as_slice()), (made, changed, &b"2"[..]));
}

fn a_transaction_is_one_revision(store: &dyn Store) {
    let before = store.revision().unwrap();
    let both = done(store.transact(&Transaction::new().put("a", "1").put("b", "1")).unwrap());
    assert_eq!(both, before + 1);
    let nothing = done(store.transact(&Transaction::new().delete("c")).unwrap());
    assert_eq!(nothing, both, "what changes nothing takes no revision");
    let gone = done(store.transact(&Transaction::new().delete("a").put("b", "2")).unwrap());
    assert_eq!(gone, both + 1);
    assert!(store.get("a").unwrap().is_none());
    let anew = done(store.transact(&Transaction::new().put("a", "3")).unwrap());
    assert_eq!(store.get("a").unwrap().unwrap().created, anew, "a key that was gone is made anew");
}

fn ranges_come_in_pages(store: &dyn Store) {
    for number in 0..5 {
        done(store.transact(&Transaction::new().put(format!("n/{number}"), "x")).unwrap());
    }
    done(store.transact(&Transaction::new().put("m", "x").put("o", "x")).unwrap());
    let mut range = KeyRange::prefix("n/");
    let mut found = Vec::new();
    loop {
        let page = store.range(&range, 2).unwrap();
        found.extend(page.entries.iter().map(|(key, _)| key.clone()));
        if !page.more {
            break;
        }
        range = range.after(found.last().unwrap());
    }
    assert_eq!(found, ["n/0", "n/1", "n/2", "n/3", "n/4"]);
    let backwards = KeyRange { start: "z".into(), end: Some("a".into()) };
    assert!(store.range(&backwards, 9).unwrap().entries.is_empty());
    assert_eq!(store.range(&KeyRange::prefix(""), 99).unwrap().entries.len(), 7);
}

fn limits_are_told(store: &dyn Store) {
    let refused = |transaction: &Transaction| match store.transact(transaction) {
        Err(StoreError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&Transaction::new().put("", "x")), Refusal::Key);
    assert_eq!(refused(&Transaction::new().put("k".repeat(KEY_BYTES_MAX + 1), "x")), Refusal::Key);
    assert_eq!(refused(&Transaction::new().put("a", vec![0; VALUE_BYTES_MAX + 1])), Refusal::Value);
    assert_eq!(refused(&Transaction::new().put("a", "1").delete("a")), Refusal::Twice);
    let many = (0..=OPERATIONS_MAX).fold(Transaction::new(), |all, number| all.delete(number.to_string()));
    assert_eq!(refused(&many), Refusal::Operations);
    // As much as fits is taken, one byte more is not.
    let half = Transaction::new().put("a", vec![1; TRANSACTION_BYTES_MAX / 2]);
    let rest = TRANSACTION_BYTES_MAX - half.bytes() - Transaction::new().put("b", "").bytes();
    assert_eq!(refused(&half.clone().put("b", vec![2; rest + 1])), Refusal::Bytes);
    done(store.transact(&half.put("b", vec![2; rest])).unwrap());
    let all = (0..OPERATIONS_MAX).fold(Transaction::new(), |all, number| {
        all.expect(format!("e{number}"), 0).put(format!("e{number}"), vec![3; 8 << 10])
    });
    done(store.transact(&all).unwrap());
    let gone = store.lease_grant(Duration::from_secs(60)).unwrap();
    store.lease_revoke(gone).unwrap();
    let put = Operation::Put { key: "a".into(), value: vec![], lease: Some(gone) };
    assert_eq!(refused(&Transaction { compares: vec![], operations: vec![put] }), Refusal::Lease);
    assert!(matches!(store.lease_revoke(gone), Err(StoreError::Refused(Refusal::Lease))));
    assert!(matches!(store.lease_keep_alive(gone), Err(StoreError::Refused(Refusal::Lease))));
    done(store.transact(&Transaction::new().put("a", vec![7; VALUE_BYTES_MAX])).unwrap());
}

fn a_watch_misses_nothing(store: &dyn Store) {
    let first = done(store.transact(&Transaction::new().put("w/a", "1").put("x", "1")).unwrap());
    let second = done(store.transact(&Transaction::new().put("y", "2")).unwrap());
    let third = done(store.transact(&Transaction::new().delete("w/a")).unwrap());
    let mut watch = store.watch(KeyRange::prefix("w/"), first).unwrap();
    let patience = Duration::from_secs(20);
    let mut batches = watch.next(patience).unwrap();
    while batches.len() < 2 {
        batches.extend(watch.next(patience).unwrap());
    }
    assert_eq!(batches[0].revision, first);
    assert_eq!(batches[0].changes.len(), 1, "x is not in the range");
    assert_eq!(batches[0].changes[0].entry.as_ref().unwrap().value, b"1");
    assert_eq!((batches[1].revision, &batches[1].changes[0].entry), (third, &None));
    assert_eq!(watch.next(NOW).unwrap(), vec![]);
    let mut late = store.watch(KeyRange::prefix(""), second).unwrap();
    assert_eq!(late.next(patience).unwrap()[0].revision, second);
    // One that waits is woken.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || watch.next(patience).unwrap());
        let fourth = done(store.transact(&Transaction::new().put("w/b", "4")).unwrap());
        assert_eq!(waiting.join().unwrap()[0].revision, fourth);
    });
    assert!(matches!(store.watch(KeyRange::prefix(""), 0), Err(WatchError::Compacted { first: 1 })));
}

fn keys_go_with_their_lease(store: &dyn Store) {
    let ttl = Duration::from_secs(2);
    let (short, kept) = (store.lease_grant(ttl).unwrap(), store.lease_grant(ttl).unwrap());
    assert_ne!(short, kept);
    let put = |key: &str, lease| Operation::Put { key: key.into(), value: b"x".to_vec(), lease };
    let operations = vec![put("a", Some(short)), put("b", Some(short)), put("c", Some(kept)), put("d", None)];
    let made = done(store.transact(&Transaction { compares: vec![], operations }).unwrap());
    assert_eq!(store.get("a").unwrap().unwrap().lease, Some(short));
    // b is bound no more.
    done(store.transact(&Transaction::new().put("b", "y")).unwrap());
    let mut watch = store.watch(KeyRange::prefix(""), made + 2).unwrap();
    let began = Instant::now();
    let expired = loop {
        store.lease_keep_alive(kept).unwrap();
        let told = watch.next(Duration::from_millis(20)).unwrap();
        if !told.is_empty() {
            break told;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it does not expire");
        store.pass(ttl / 4).unwrap();
    };
    assert_eq!(expired.len(), 1, "the other one is kept alive");
    assert_eq!((expired[0].changes[0].key.as_str(), &expired[0].changes[0].entry), ("a", &None));
    assert!(store.get("a").unwrap().is_none());
    assert!(store.get("b").unwrap().is_some() && store.get("d").unwrap().is_some());
    store.lease_revoke(kept).unwrap();
    assert!(store.get("c").unwrap().is_none());
}

/// A step of the model, over a few keys so that they meet: whether each compare is to hold, and the changes.
type Step = (Vec<(u8, bool)>, Vec<(u8, Option<u8>)>);

fn step() -> impl Strategy<Value = Step> {
    let compare = prop::collection::vec((0..6u8, any::<bool>()), 0..3);
    let change = prop::collection::btree_map(0..6u8, any::<Option<u8>>(), 0..4);
    (compare, change.prop_map(|map| map.into_iter().collect()))
}

fn random_transactions_do_what_a_plain_map_does<S: Store>(make: &dyn Fn() -> S) {
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
        let store = make();
        let first = store.revision().unwrap() + 1;
        let mut model: BTreeMap<String, (Revision, Vec<u8>)> = BTreeMap::new();
        let mut told = BTreeMap::new();
        for (compares, changes) in steps {
            let key = |number: u8| format!("k{number}");
            let modified = |key: &String| model.get(key).map_or(0, |(revision, _)| *revision);
            let compares: Vec<Compare> = compares
                .into_iter()
                .map(|(number, right)| {
                    let modified = modified(&key(number));
                    let modified = if right { modified } else { modified + 1 };
                    Compare { key: key(number), modified }
                })
                .collect();
            let holds = compares.iter().all(|compare| modified(&compare.key) == compare.modified);
            let operations = changes.iter().map(|(number, value)| match value {
                Some(value) => Operation::Put { key: key(*number), value: vec![*value], lease: None },
                None => Operation::Delete { key: key(*number) },
            });
            let before = store.revision().unwrap();
            let transaction = Transaction { compares, operations: operations.collect() };
            match store.transact(&transaction).unwrap() {
                Outcome::Conflict { .. } => prop_assert!(!holds),
                Outcome::Done { revision } => {
                    prop_assert!(holds && revision <= before + 1);
                    for (number, value) in changes {
                        match value {
                            Some(value) => drop(model.insert(key(number), (revision, vec![value]))),
                            None => drop(model.remove(&key(number))),
                        }
                    }
                }
            }
        }
        let found = store.range(&KeyRange::prefix("k"), 99).unwrap().entries;
        let found: BTreeMap<_, _> =
            found.into_iter().map(|(key, entry)| (key, (entry.modified, entry.value))).collect();
        prop_assert_eq!(&found, &model);
        // Whoever follows from the beginning ends with the same.
        let mut watch = store.watch(KeyRange::prefix("k"), first).unwrap();
        let last = store.revision().unwrap();
        let mut seen = first - 1;
        while seen < last {
            for batch in watch.next(Duration::from_secs(20)).unwrap() {
                seen = batch.revision;
                for change in batch.changes {
                    match change.entry {
                        Some(entry) => drop(told.insert(change.key, (entry.modified, entry.value))),
                        None => drop(told.remove(&change.key)),
                    }
                }
            }
        }
        prop_assert_eq!(told, found);
        Ok(())
    });
    outcome.unwrap();
}
