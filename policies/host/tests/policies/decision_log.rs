//! What is logged can be read and decided again, whole, cut short, and in bounded space.

use std::fs;

use host::log::{LogOptions, Record, newest, read};
use host::replay::{config_in, decided_by, replay, replay_all, told};
use host::{Options, Start};
use verdict::Kind;

use crate::{Folder, Rig};

/// Decisions of the replay test in each kind: a short form, and the whole one where `TIDEGATE_FULL` is set.
fn decisions() -> u64 {
    if std::env::var_os("TIDEGATE_FULL").is_some() { 100_000 } else { 1_500 }
}

fn rig(folder: &Folder) -> Rig {
    Rig::with(Options { log: Some(folder.log()), checkpoint_every: 50, ..Options::default() })
}

#[test]
fn a_replay_is_bit_identical_for_the_same_version_and_lists_what_differs_for_another() {
    let folder = Folder::new("replay");
    let mut rig = rig(&folder);
    let count = decisions();
    for kind in Kind::ALL {
        let names: Vec<&str> =
            shipped::all().map(|(name, _)| name).filter(|name| name.starts_with(kind.name())).collect();
        let policy = rig.push(names[0], &[]);
        rig.policies.activate(&policy, Start::Fresh).expect("it starts");
        (0..count).for_each(|number| drop(rig.decide(kind, number)));
        let began = std::time::Instant::now();
        let same = replay(&folder.log().folder, &policy).expect("the log can be read");
        let same_took = began.elapsed();
        assert!(same.same_version && same.is_identical(), "{kind}: {:?}", same.differences.first());
        assert_eq!((same.decisions, same.skipped), (count, 0), "{kind}");
        assert!(same.states >= count / 50 - 1, "{kind}: {} states compared", same.states);

        let other = rig.push(names[1], &[]);
        let began = std::time::Instant::now();
        let differs = replay(&folder.log().folder, &other).expect("the log can be read");
        let (different, took) = (differs.different, began.elapsed());
        println!("{kind}: {count} again in {same_took:?}; by another in {took:?}, {different} differ");
        assert!(!differs.same_version && differs.different > 0, "{kind}: two policies that decide alike");
        assert_eq!(differs.identical + differs.different, count, "{kind}");
        let difference = differs.differences.first().expect("in words");
        assert!(difference.decision > 0 && difference.logged != difference.replayed, "{difference:?}");
    }
    let counts = decided_by(&folder.log().folder).expect("the log can be read");
    assert_eq!(counts.values().sum::<u64>(), count * 3, "{counts:?}");
}

#[test]
fn a_replay_is_identical_however_often_a_policy_said_what_it_has_come_to() {
    let folder = Folder::new("replay-said");
    let mut rig = Rig::with(Options { log: Some(folder.log()), ..Options::default() });
    let policy = rig.push("leasing-capacity-weighted", &[]);
    let other = rig.push("leasing-pack-tight", &[]);
    rig.policies.activate(&policy, Start::Fresh).expect("it starts");
    for number in 0..60 {
        rig.decide(Kind::Leasing, number);
        // As a control plane keeps it from time to time, a shadow begins with it, and an activation that fails asks for it.
        match number % 4 {
            1 => drop(rig.seat.state(Kind::Leasing)),
            2 => rig.policies.shadow(&other).expect("it reads the state"),
            _ => {}
        }
    }
    let same = replay(&folder.log().folder, &policy).expect("the log can be read");
    assert!(same.is_identical() && same.decisions == 60, "{:?}", same.differences.first());
    // Nobody was asked since, so there is nothing new to say.
    let states = same.states;
    (0..9).for_each(|_| drop(rig.seat.state(Kind::Leasing)));
    let again = replay(&folder.log().folder, &policy).expect("the log can be read");
    assert!(again.is_identical() && again.states <= states + 1);
}

#[test]
fn numbers_of_decisions_go_on_after_a_restart() {
    let folder = Folder::new("log-numbers");
    let mut numbers = Vec::new();
    for start in 0..3 {
        let mut rig = rig(&folder);
        numbers.extend((0..5).map(|number| rig.decide(Kind::Leasing, number).2.by.decision));
        drop(rig);
        if start == 0 {
            // A crash between making a file and writing its first bytes.
            fs::write(folder.log().folder.join("decisions-00000009.log"), b"TGD").expect("ours");
        }
    }
    assert_eq!(numbers, (1..=15).collect::<Vec<u64>>());
    let logged = newest(&folder.log().folder, 100, |_| true).expect("the log can be read");
    assert_eq!(logged.iter().map(|one| one.number).collect::<Vec<u64>>(), numbers);
}

#[test]
fn a_log_of_many_swaps_replays_whole_and_shows_that_all_state_went_along() {
    const SWAPS: u64 = 12;
    let folder = Folder::new("replay-swaps");
    let mut rig = rig(&folder);
    let versions = [rig.push("misbehaving", &[]), rig.push("misbehaving", &[("after", "1")])];
    rig.policies.activate(&versions[0], Start::Fresh).expect("it starts");
    for swap in 1..=SWAPS {
        (0..60).for_each(|number| drop(rig.decide(Kind::Leasing, number)));
        rig.policies.activate(&versions[swap as usize % 2], Start::Carry).expect("it takes over");
    }
    let whole = replay_all(&folder.log().folder, &versions).expect("the log can be read");
    assert!(whole.is_identical() && whole.skipped == 0, "{:?}", whole.differences.first());
    assert_eq!((whole.decisions, whole.carried), (60 * SWAPS, SWAPS));
    // A version that begins anew is seen.
    rig.policies.activate(&versions[1], Start::Fresh).expect("it starts");
    let broken = replay_all(&folder.log().folder, &versions).expect("the log can be read");
    assert_eq!((broken.carried, broken.different), (SWAPS, 1));
    assert_eq!(broken.differences[0].logged, "no state");
}

#[test]
fn faults_abstentions_and_rollbacks_are_replayed_too() {
    let folder = Folder::new("replay-faults");
    let mut rig = rig(&folder);
    for fault in ["panic", "endless-loop", "memory-bomb", "lie-sum", "abstain"] {
        let policy = rig.push("misbehaving", &[("fault", fault), ("after", "12")]);
        rig.policies.activate(&policy, Start::Fresh).expect("it starts well");
        (0..80).for_each(|number| drop(rig.decide(Kind::Leasing, number)));
        let same = replay(&folder.log().folder, &policy).expect("the log can be read");
        assert!(same.same_version && same.is_identical(), "{fault}: {:?}", same.differences.first());
        assert!(same.decisions >= 17 && same.skipped == 0, "{fault}: {same:?}");
        let known = config_in(&folder.log().folder, policy.id().digest, "misbehaving").expect("readable");
        assert!(known.expect("it is in the log").iter().any(|(key, _)| key == "fault"));
    }
}

#[test]
fn a_decision_is_logged_with_all_that_it_hung_on() {
    let folder = Folder::new("log-record");
    let mut rig = rig(&folder);
    let policy = rig.push("leasing-capacity-weighted", &[("ttl-ms", "9000")]);
    rig.policies.activate(&policy, Start::Fresh).expect("it starts");
    let (tick, question, decided) = rig.decide(Kind::Leasing, 0);
    let records: Vec<Record> =
        read(&folder.log().folder).expect("the log can be read").collect::<Result<_, _>>().expect("whole");
    let Some(Record::Decision(record)) = records.last() else { panic!("{records:?}") };
    assert_eq!(record.policy.as_ref(), Some(policy.id()));
    assert_eq!((record.number, record.tick, &record.question), (decided.by.decision, tick, &question));
    assert_eq!((&record.verdict, &record.instead), (&decided.verdict, &None));
    assert!(record.fuel > 0 && record.duration_ns > 0);
    assert!(told(&record.verdict).contains("by capacity"));
    let started = records.iter().any(|record| matches!(record, Record::State(state) if state.started));
    let event = |record: &Record| matches!(record, Record::Event { what, .. } if what.contains("is active"));
    assert!(started && records.iter().any(event));
}

#[test]
fn a_log_that_was_cut_or_damaged_is_read_up_to_there_and_goes_on_in_a_new_file() {
    let folder = Folder::new("log-cut");
    let decisions = |folder: &Folder| {
        let records = read(&folder.log().folder).expect("the log can be read");
        records.filter(|record| matches!(record, Ok(Record::Decision(_)))).count()
    };
    let mut first = rig(&folder);
    (0..10).for_each(|number| drop(first.decide(Kind::Scheduling, number)));
    drop(first);
    let file = folder.log().folder.join("decisions-00000001.log");
    let whole = fs::read(&file).expect("it was written");
    assert_eq!(decisions(&folder), 10);
    fs::write(&file, &whole[..whole.len() - 3]).expect("ours");
    assert_eq!(decisions(&folder), 9);
    let mut damaged = whole.clone();
    let middle = whole.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&file, &damaged).expect("ours");
    assert!(decisions(&folder) < 9);
    let before = decisions(&folder);
    let mut second = rig(&folder);
    (0..5).for_each(|number| drop(second.decide(Kind::Scheduling, number)));
    assert_eq!(decisions(&folder), before + 5);
    fs::write(&file, b"not a log, but of some length").expect("ours");
    assert!(read(&file).expect("opened when read").next().expect("one item").is_err());
}

#[test]
fn a_log_takes_no_more_room_than_it_was_given() {
    let folder = Folder::new("log-bounded");
    let log = LogOptions { file_bytes: 20_000, files: 3, ..folder.log() };
    let mut rig = Rig::with(Options { log: Some(log.clone()), ..Options::default() });
    (0..400).for_each(|number| drop(rig.decide(Kind::Scheduling, number)));
    let sizes: Vec<u64> = fs::read_dir(&log.folder)
        .expect("it is there")
        .map(|entry| entry.expect("readable").metadata().expect("readable").len())
        .collect();
    assert_eq!(sizes.len(), 3);
    assert!(sizes.iter().all(|&bytes| bytes < 25_000), "{sizes:?}");
    let newest = read(&log.folder).expect("the log can be read").last().expect("records").expect("whole");
    assert!(matches!(newest, Record::Decision(decision) if decision.number == 400));
    assert_eq!(rig.policies.status().log_errors, 0);
}

#[test]
fn a_log_that_cannot_be_written_is_counted_and_stops_no_decision() {
    let folder = Folder::new("log-gone");
    let log = LogOptions { file_bytes: 10, ..folder.log() };
    let mut rig = Rig::with(Options { log: Some(log.clone()), ..Options::default() });
    fs::remove_dir_all(&log.folder).expect("ours");
    (0..3).for_each(|number| drop(rig.decide(Kind::Scheduling, number)));
    let status = rig.policies.status();
    assert!(status.log_errors > 0, "the next file cannot be begun");
    assert!(status.log_last_error.expect("it says why").contains("decision log"));
}

#[test]
fn the_newest_decisions_are_read_without_the_files_before_them() {
    let folder = Folder::new("newest");
    let small = LogOptions { file_bytes: 2_000, files: 100, ..folder.log() };
    let mut rig = Rig::with(Options { log: Some(small), ..Options::default() });
    (0..60).for_each(|number| drop(rig.decide(Kind::Leasing, number)));
    let numbers = |limit| {
        let found = newest(&folder.log().folder, limit, |one| one.number % 2 == 0).expect("they can be read");
        found.iter().map(|one| one.number).collect::<Vec<u64>>()
    };
    assert_eq!(numbers(1_000), (1..=30).map(|half| 2 * half).collect::<Vec<u64>>());
    assert_eq!((numbers(3), numbers(0)), (vec![56, 58, 60], vec![]));
    // What is not read cannot be in the way.
    let mut files: Vec<_> = fs::read_dir(&folder.log().folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() > 4, "{files:?}");
    fs::write(&files[0], b"no log at all").expect("a file");
    assert_eq!(numbers(3), [56, 58, 60]);
    newest(&folder.log().folder, 1_000, |_| true).expect_err("all of them are wanted");
}
