//! All interleavings of the ring: a reader gets whole records in order, and counts those that it does not get.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p trace --release --target-dir target/loom --test loom_ring`
#![cfg(loom)]

use block::TraceId;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use std::sync::Arc;
use trace::{Record, ring};

fn record(number: u64) -> Record {
    Record { trace: TraceId(number), detail: number * 10, ..Record::default() }
}

#[test]
fn a_reader_gets_whole_records_or_counts_them() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        const RECORDS: u64 = 3;
        let (mut writer, mut reader) = ring(2);
        let writing = thread::spawn(move || {
            for number in 1..=RECORDS {
                writer.write(&record(number));
                writer.publish();
            }
        });
        let (mut read, mut last) = (0, 0);
        for round in 0..2 {
            while let Some(found) = reader.read() {
                assert_eq!(found, record(found.trace.0), "torn");
                assert!(found.trace.0 > last, "out of order");
                (read, last) = (read + 1, found.trace.0);
            }
            if round == 0 {
                thread::yield_now();
            }
        }
        writing.join().unwrap();
        while let Some(found) = reader.read() {
            (read, last) = (read + 1, found.trace.0);
        }
        assert_eq!((read + reader.lost(), last), (RECORDS, RECORDS), "the newest is kept");
    });
}

/// The same algorithm with either fence left out, or with a sequence that does not say which record it is.
fn torn(writer_fence: bool, reader_fence: bool) {
    loom::model(move || {
        let place = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
        let writing = {
            let place = Arc::clone(&place);
            thread::spawn(move || {
                let [sequence, a, b] = &*place;
                sequence.store(1, Ordering::Relaxed);
                if writer_fence {
                    fence(Ordering::Release);
                }
                a.store(1, Ordering::Relaxed);
                b.store(1, Ordering::Relaxed);
                sequence.store(2, Ordering::Release);
            })
        };
        let [sequence, a, b] = &*place;
        let before = sequence.load(Ordering::Acquire);
        let words = (a.load(Ordering::Relaxed), b.load(Ordering::Relaxed));
        if reader_fence {
            fence(Ordering::Acquire);
        }
        if before % 2 == 0 && sequence.load(Ordering::Relaxed) == before {
            assert_eq!(words.0, words.1, "torn");
        }
        writing.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "torn")]
fn loom_finds_the_missing_fence_of_the_writer() {
    torn(false, true);
}

#[test]
#[should_panic(expected = "torn")]
fn loom_finds_the_missing_fence_of_the_reader() {
    torn(true, false);
}
