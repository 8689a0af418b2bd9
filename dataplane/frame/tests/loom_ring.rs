//! Every interleaving of a producer and a consumer of a small ring, within loom's memory model. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p frame --release --test loom_ring`.
#![cfg(loom)]
#![allow(missing_docs)]

use arrayvec::ArrayVec;
use frame::{Consumer, ring};
use loom::thread;

/// Waits for the other thread: loom needs to see that we do not insist.
fn pop(consumer: &mut Consumer<Box<u32>>) -> u32 {
    loop {
        if let Some(item) = consumer.pop() {
            return *item;
        }
        thread::yield_now();
    }
}

#[test]
fn single_items_pass_in_order_through_a_full_ring() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring(2);
        let writer = thread::spawn(move || {
            for value in 0..3 {
                let mut item = Box::new(value);
                while let Err(back) = producer.push(item) {
                    item = back;
                    thread::yield_now();
                }
            }
        });
        for value in 0..3 {
            assert_eq!(pop(&mut consumer), value);
        }
        writer.join().unwrap();
        assert!(consumer.is_empty());
    });
}

#[test]
fn batches_pass_in_order_and_slots_are_used_again() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring(2);
        let writer = thread::spawn(move || {
            let mut batch: ArrayVec<Box<u32>, 4> = (0..3).map(Box::new).collect();
            while !batch.is_empty() {
                if producer.push_batch(&mut batch) == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut out: ArrayVec<Box<u32>, 4> = ArrayVec::new();
        while out.len() < 3 {
            if consumer.pop_batch(&mut out) == 0 {
                thread::yield_now();
            }
        }
        assert!(out.iter().map(|item| **item).eq(0..3));
        writer.join().unwrap();
    });
}

#[test]
fn items_left_behind_are_dropped_once_whichever_end_goes_last() {
    // Loom reports what is leaked, and what is freed twice.
    loom::model(|| {
        let (mut producer, mut consumer) = ring(2);
        let tracked = loom::sync::Arc::new(());
        let copy = tracked.clone();
        let writer = thread::spawn(move || {
            let _ = producer.push(copy.clone());
            let _ = producer.push(copy);
        });
        drop(consumer.pop());
        drop(consumer);
        writer.join().unwrap();
        assert_eq!(loom::sync::Arc::strong_count(&tracked), 1);
    });
}

#[test]
fn an_abandoned_ring_shows_all_that_was_pushed() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring(2);
        let writer = thread::spawn(move || {
            let _ = producer.push(Box::new(7));
        });
        if consumer.is_abandoned() {
            assert_eq!(consumer.pop().map(|item| *item), Some(7));
        }
        writer.join().unwrap();
    });
}
