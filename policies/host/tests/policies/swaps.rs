//! Versions change while several threads decide: no decision fails, and no state is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use host::{Gate, Options, Policies, Policy, Start};
use verdict::{Decide, Kind};

use crate::{Folder, Rig, engine};

const THREADS: usize = 3;
const SWAPS: usize = 1_002;

/// Two versions of one policy which count their decisions in their state.
fn versions(rig: &Rig) -> [Arc<Policy>; 2] {
    [rig.push("misbehaving", &[]), rig.push("misbehaving", &[("after", "1")])]
}

#[test]
fn a_thousand_swaps_under_load_fail_no_decision_and_lose_no_state() {
    let rig = Rig::new();
    let [one, other] = versions(&rig);
    let policies = rig.policies.clone();
    // The rig's own seat does nothing: an idle thread is swapped like a busy one.
    policies.activate(&one, Start::Fresh).expect("it starts");
    let done = AtomicBool::new(false);
    let decided = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            let mut seat = policies.seat();
            let (done, decided) = (&done, &decided);
            scope.spawn(move || {
                let mut number = 0;
                while !done.load(Ordering::Acquire) {
                    let (tick, question) = host::workload::question(Kind::Leasing, 10, number * 2 + thread);
                    let answer = seat.decide(tick, &question);
                    assert_eq!(answer.by.instead, None, "no decision fails");
                    assert_eq!(question.check(tick, &answer.verdict), Ok(()));
                    number += 1;
                    decided.fetch_add(1, Ordering::Relaxed);
                }
                // The state is a count of decisions: through all swaps it has counted each one.
                assert_eq!(counted(&seat), number, "thread {thread}");
            });
        }
        for swap in 0..SWAPS {
            let next = if swap % 2 == 0 { &other } else { &one };
            let activation = policies.activate(next, Start::Carry).expect("it takes over");
            assert_eq!(activation.seats, THREADS + 1);
        }
        done.store(true, Ordering::Release);
    });
    let counters = &policies.status().kinds[Kind::Leasing as usize].counters;
    assert_eq!(counters.activations, SWAPS as u64 + 1);
    assert_eq!(counters.by_policy, decided.load(Ordering::Relaxed));
    assert!(counters.faults.is_empty(), "{:?}", counters.faults);
}

/// How many decisions the policy of a seat has counted.
fn counted(seat: &host::Seat) -> u64 {
    let state = seat.state(Kind::Leasing).expect("it has a state");
    u64::from_le_bytes(state.bytes.try_into().expect("one number"))
}

#[test]
fn the_shipped_policies_of_each_kind_take_over_from_each_other_under_load() {
    let folder = Folder::new("swaps");
    let options = Options { log: Some(folder.log()), ..Options::default() };
    let policies = Policies::new(engine(), Gate::default(), options).expect("a log in a new folder");
    for kind in Kind::ALL {
        let rig = Rig { policies: policies.clone(), seat: policies.seat() };
        let shipped: Vec<Arc<Policy>> = shipped::all()
            .filter(|(name, _)| name.starts_with(kind.name()))
            .map(|(name, _)| rig.push(name, &[]))
            .collect();
        policies.activate(&shipped[0], Start::Fresh).expect("it starts");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut seat = rig.seat;
            let done = &done;
            let thread = scope.spawn(move || {
                let mut number = 0;
                while !done.load(Ordering::Acquire) || number < 20 {
                    let (tick, question) = host::workload::question(kind, 10, number);
                    let answer = seat.decide(tick, &question);
                    let why = answer.by.instead.unwrap_or_default();
                    assert!(why.is_empty() || why.starts_with("the policy abstains"), "{kind}: {why}");
                    number += 1;
                }
            });
            for swap in 0..40 {
                policies.activate(&shipped[(swap + 1) % 2], Start::Carry).expect("it takes over");
            }
            done.store(true, Ordering::Release);
            thread.join().expect("no decision failed");
        });
        assert_eq!(policies.status().kinds[kind as usize].counters.activations, 41);
    }
    assert_eq!(policies.status().log_errors, 0);
}
