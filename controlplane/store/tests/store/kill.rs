//! A control plane is killed again and again: what its store answered is there, and nothing is there in part.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::suite;
use store::{
    HISTORY_REVISIONS, KeyRange, LeaseId, Local, OpenError, Operation, Store, Transaction, WatchError,
};

/// Set for the child that is killed: the file that it writes.
const FILE: &str = "TIDEGATE_STORE_TEST_FILE";

/// Writes pairs of keys for ever, and says each number that was answered.
#[test]
#[ignore = "the child of what_was_answered_survives_kill"]
fn writer() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let store = Local::open(Path::new(&file)).unwrap();
    let mut number = store.revision().unwrap();
    loop {
        number += 1;
        let value = number.to_string();
        let both = Transaction::new().put("left", value.as_str()).put("right", value.as_str());
        store
            .transact(&both.delete(format!("gone/{}", number % 7)).put(format!("n/{}", number % 50), value))
            .unwrap();
        println!("answered {number}");
    }
}

#[test]
fn what_was_answered_survives_kill() {
    let folder = suite::Folder::new("kill");
    let file = folder.0.join("store.redb");
    let mut answered = 0;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "kill::writer", "--nocapture"])
            .env(FILE, &file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < 5 + round * 3 {
            let line = lines.next().unwrap().unwrap();
            if let Some(number) = line.strip_prefix("answered ") {
                answered = number.parse().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            answered =
                line.strip_prefix("answered ").and_then(|number| number.parse().ok()).unwrap_or(answered);
        }
        let store = Local::open(&file).unwrap();
        let revision = store.revision().unwrap();
        assert!(
            (answered..=answered + 1).contains(&revision),
            "{answered} was answered, {revision} is there"
        );
        let value = |key: &str| store.get(key).unwrap().unwrap().value;
        assert_eq!(value("left"), revision.to_string().into_bytes());
        assert_eq!(value("right"), value("left"));
        let mut watch = store.watch(KeyRange::prefix("left"), 1).unwrap();
        assert_eq!(watch.next(Duration::ZERO).unwrap().len() as u64, revision, "history survives too");
    }
}

#[test]
fn leases_and_history_survive_a_restart_and_history_ends() {
    let folder = suite::Folder::new("restart");
    let file = folder.0.join("store.redb");
    let store = Local::open(&file).unwrap();
    assert!(matches!(Local::open(&file), Err(OpenError::Database { .. })), "one process at a time");
    let lease = store.lease_grant(Duration::from_secs(5)).unwrap();
    let bound = Operation::Put { key: "bound".into(), value: vec![], lease: Some(lease) };
    store.transact(&Transaction { compares: vec![], operations: vec![bound] }).unwrap();
    drop(store);
    let store = Local::open(&file).unwrap();
    store.pass(Duration::from_secs(4)).unwrap();
    assert!(store.get("bound").unwrap().is_some(), "it has its whole time again");
    store.pass(Duration::from_secs(1)).unwrap();
    assert!(store.get("bound").unwrap().is_none());
    drop(store);
    let store = Local::open(&file).unwrap();
    assert_eq!(store.lease_grant(Duration::from_secs(5)).unwrap(), LeaseId(lease.0 + 1), "never twice");
    assert_eq!(store.revision().unwrap(), 2);
    let memory = Local::in_memory();
    for number in 0..=HISTORY_REVISIONS {
        memory.transact(&Transaction::new().put("k", number.to_string())).unwrap();
    }
    let first = memory.watch(KeyRange::prefix(""), 1).err().unwrap();
    assert!(matches!(first, WatchError::Compacted { first: 2 }), "{first}");
}
