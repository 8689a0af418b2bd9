//! Records: balance, sums, wrapping, and readers beside a worker that counts.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

const STAGES: &[&str] = &["process_tenant", "admit", "encapsulate"];

#[test]
fn a_record_comes_back_as_it_was_written() {
    let mut counters = Counters::new(STAGES, 2);
    let reader = counters.reader();
    assert_eq!(reader.snapshot().unwrap().turn, TurnRecord::default());
    counters.turn.rx = 10;
    counters.turn.tx = 7;
    counters.dropped(DropReason::Spoofed, 2);
    counters.dropped(DropReason::Shutdown, 1);
    counters.stage(1, 10, true);
    counters.stage(1, 5, false);
    counters.stage(2, 0, true);
    counters.stage(99, 5, true);
    counters.ports[1].rx_bytes = 640;
    let times = IdleTimes { working_ns: 5, stay_awake_hits: 9, ..IdleTimes::default() };
    counters.publish(1, &times);

    let got = reader.snapshot().unwrap();
    assert_eq!(got.turn, counters.turn);
    assert!(got.turn.balanced());
    assert_eq!(got.drops[DropReason::Spoofed as usize], 2);
    assert_eq!(got.drops[DropReason::Shutdown as usize], 1);
    assert_eq!(counters.drops(DropReason::Spoofed), 2);
    assert_eq!(got.drops.iter().sum::<u64>(), got.turn.dropped);
    assert_eq!(got.stages[1], ("admit", StageRecord { frames: 15, batches: 2, turns: 1 }));
    assert_eq!(got.stages[2].1, StageRecord::default());
    assert_eq!(got.ports[1].rx_bytes, 640);
    assert_eq!((got.time.working_ns, got.time.stay_awake_hits), (5, 9));
    assert_eq!(TimeRecord::NAMES.last(), Some(&"stay_awake_hits"));
}

#[test]
fn the_balance_tells_each_side() {
    let balanced = TurnRecord {
        rx: 100,
        generated: 3,
        split: 7,
        tx: 50,
        delivered: 10,
        parked: 20,
        dropped: 15,
        merged: 5,
        in_flight: 10,
        ..TurnRecord::default()
    };
    assert!(balanced.balanced());
    assert!(!TurnRecord { rx: 101, ..balanced }.balanced());
    assert!(!TurnRecord { in_flight: 9, ..balanced }.balanced());
    // Counters that wrapped still balance.
    let wrapped = TurnRecord { rx: 5, tx: u64::MAX - 4, parked: 10, ..TurnRecord::default() };
    assert!(wrapped.balanced());
}

#[test]
fn turns_are_published_at_most_every_20_us() {
    let mut counters = Counters::new(STAGES, 0);
    let reader = counters.reader();
    let times = IdleTimes::default();
    let turns = || reader.snapshot().unwrap().turn.turns;
    counters.end_turn(1_000_000, true, &times);
    assert_eq!(turns(), 1);
    counters.end_turn(1_000_000 + PUBLISH_NS - 1, true, &times);
    assert_eq!(turns(), 1);
    counters.end_turn(1_000_000 + PUBLISH_NS, false, &times);
    assert_eq!(turns(), 3);
    assert_eq!(reader.snapshot().unwrap().turn.turns_with_work, 2);
    // A clock that went back publishes rather than waits.
    counters.end_turn(5, false, &times);
    assert_eq!(turns(), 4);
}

#[test]
fn sums_wrap_and_different_shapes_add_up() {
    let mut first = Counters::new(&["a", "b"], 1);
    let mut second = Counters::new(&["b", "c"], 3);
    first.turn.rx = u64::MAX;
    second.turn.rx = 2;
    first.dropped(DropReason::NoRule, u64::MAX);
    first.dropped(DropReason::NoRule, 3);
    first.stage(1, 4, true);
    second.stage(0, 5, true);
    second.ports[2].tx_frames = 8;
    let times = IdleTimes { sleeps: 1, ..IdleTimes::default() };
    first.publish(0, &times);
    second.publish(0, &times);
    let mut sum = first.reader().snapshot().unwrap();
    sum.add(&second.reader().snapshot().unwrap());
    assert_eq!(sum.turn.rx, 1);
    assert_eq!(sum.drops[DropReason::NoRule as usize], 2);
    assert_eq!(sum.time.sleeps, 2);
    assert_eq!(
        sum.stages.iter().map(|(name, s)| (*name, s.frames)).collect::<Vec<_>>(),
        [("a", 0), ("b", 9), ("c", 0)]
    );
    assert_eq!(sum.ports.len(), 3);
    assert_eq!(sum.ports[2].tx_frames, 8);
}

#[test]
fn every_record_read_while_the_worker_counts_balances() {
    let mut counters = Counters::new(STAGES, 4);
    let reader = counters.reader();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut read, mut last) = (0, 0);
            while read < 2_000 {
                if let Some(record) = reader.snapshot() {
                    assert!(record.turn.balanced(), "{:?}", record.turn);
                    assert_eq!(record.drops.iter().sum::<u64>(), record.turn.dropped);
                    assert!(record.turn.rx >= last);
                    last = record.turn.rx;
                    read += 1;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let times = IdleTimes::default();
        let mut now = 0;
        while !stop.load(Ordering::Relaxed) {
            now += 7_000;
            counters.turn.rx += 32;
            counters.turn.tx += 20;
            counters.dropped(DropReason::ALL[(now % 5) as usize], 8);
            counters.turn.parked += 3;
            counters.turn.in_flight -= counters.turn.in_flight.min(1);
            counters.turn.merged = counters.turn.rx
                - counters.turn.tx
                - counters.turn.dropped
                - counters.turn.parked
                - counters.turn.in_flight;
            counters.end_turn(now, true, &times);
        }
    });
}
