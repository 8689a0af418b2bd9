//! All interleavings of the seqlock: a reader gets whole records or none.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p engine --release --target-dir target/loom --test loom_seqlock`
#![cfg(loom)]

use engine::seqlock::Seqlock;

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use std::sync::Arc;

#[test]
fn a_reader_gets_whole_records() {
    loom::model(|| {
        let lock = Arc::new(Seqlock::new(2));
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || {
                for record in 1..=2 {
                    lock.publish(|words| {
                        words.word(record);
                        words.word(record * 10);
                    });
                }
            })
        };
        let mut words = [9, 9];
        if lock.read(&mut words) {
            assert_eq!(words[0] * 10, words[1]);
        }
        writer.join().unwrap();
        assert!(lock.read(&mut words), "nothing is in the way any more");
        assert_eq!(words, [2, 20]);
    });
}

/// The same algorithm with either fence left out.
fn torn(writer_fence: bool, reader_fence: bool) {
    loom::model(move || {
        let shared = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
        let writer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let [sequence, a, b] = &*shared;
                sequence.store(1, Ordering::Relaxed);
                if writer_fence {
                    fence(Ordering::Release);
                }
                a.store(1, Ordering::Relaxed);
                b.store(1, Ordering::Relaxed);
                sequence.store(2, Ordering::Release);
            })
        };
        let [sequence, a, b] = &*shared;
        let before = sequence.load(Ordering::Acquire);
        let words = (a.load(Ordering::Relaxed), b.load(Ordering::Relaxed));
        if reader_fence {
            fence(Ordering::Acquire);
        }
        if before % 2 == 0 && sequence.load(Ordering::Relaxed) == before {
            assert_eq!(words.0, words.1, "torn");
        }
        writer.join().unwrap();
    });
}

#[test]
fn the_copy_with_both_fences_is_sound() {
    torn(true, true);
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
