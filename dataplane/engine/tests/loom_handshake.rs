//! All interleavings of the sleep handshake (capability F8, acceptance A4): no wake-up is lost.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p engine --release --target-dir target/loom --test loom_handshake`
//!
//! The model uses the engine's own [`Handshake`]; only the eventfd is replaced, by a bell that blocks
//! without time-out, so that a lost wake-up is a deadlock, which loom reports. The last tests plant the
//! classic faults and check that loom finds each of them.
#![cfg(loom)]

use engine::handshake::Handshake;
use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::sync::Arc; // loom's own aborts when it is dropped by the panic that reports a deadlock

/// The three steps of the protocol, so that faulty ones can take the real one's place.
trait Protocol: Default + Send + Sync + 'static {
    const LOOKS_TWICE: bool = true;
    fn arm(&self);
    fn disarm(&self);
    fn must_wake(&self) -> bool;
}

impl Protocol for Handshake {
    fn arm(&self) {
        Handshake::arm(self);
    }
    fn disarm(&self) {
        Handshake::disarm(self);
    }
    fn must_wake(&self) -> bool {
        Handshake::must_wake(self)
    }
}

/// A queue of which only the length matters, a handshake, and an eventfd.
#[derive(Default)]
struct Worker<P> {
    published: AtomicUsize,
    protocol: P,
    bell: Mutex<bool>,
    rung: Condvar,
    rings: AtomicUsize,
}

impl<P: Protocol> Worker<P> {
    fn produce(&self) {
        self.published.fetch_add(1, Ordering::Release);
        if self.protocol.must_wake() {
            self.rings.fetch_add(1, Ordering::Relaxed);
            *self.bell.lock().unwrap() = true;
            self.rung.notify_one();
        }
    }

    fn consume(&self, items: usize) {
        let mut consumed = 0;
        while consumed < items {
            let published = self.published.load(Ordering::Acquire);
            if published > consumed {
                consumed = published;
                continue;
            }
            self.protocol.arm();
            if !P::LOOKS_TWICE || self.published.load(Ordering::Acquire) == consumed {
                let mut bell = self.bell.lock().unwrap();
                while !*bell {
                    bell = self.rung.wait(bell).unwrap();
                }
                *bell = false;
            }
            self.protocol.disarm();
        }
    }
}

fn model<P: Protocol>(producers: usize, items_each: usize) {
    let mut model = loom::model::Builder::new();
    // Two threads are explored whole; with three this bound keeps the run to seconds.
    model.preemption_bound = (producers > 1).then_some(3);
    model.check(move || {
        let worker = Arc::new(Worker::<P>::default());
        let threads: Vec<_> = (0..producers)
            .map(|_| {
                let worker = Arc::clone(&worker);
                thread::spawn(move || (0..items_each).for_each(|_| worker.produce()))
            })
            .collect();
        worker.consume(producers * items_each);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(worker.rings.load(Ordering::Relaxed) <= producers * items_each);
    });
}

#[test]
fn no_wake_up_is_lost() {
    model::<Handshake>(1, 1);
}

#[test]
fn no_wake_up_is_lost_over_two_sleeps() {
    model::<Handshake>(1, 2);
}

#[test]
fn no_wake_up_is_lost_with_two_producers() {
    model::<Handshake>(2, 1);
}

/// Of producers that find the worker asleep, one pays for the system call.
#[test]
fn one_sleep_is_rung_once() {
    loom::model(|| {
        let handshake = Arc::new(Handshake::new());
        handshake.arm();
        let rings: usize = {
            let producer = |handshake: Arc<Handshake>| move || usize::from(handshake.must_wake());
            let other = thread::spawn(producer(Arc::clone(&handshake)));
            producer(Arc::clone(&handshake))() + other.join().unwrap()
        };
        assert_eq!(rings, 1);
    });
}

/// A handshake in which each fence can be left out.
#[derive(Default)]
struct Fenceless<const SLEEPER: bool, const PRODUCER: bool>(AtomicU32);

impl<const SLEEPER: bool, const PRODUCER: bool> Protocol for Fenceless<SLEEPER, PRODUCER> {
    fn arm(&self) {
        self.0.swap(1, Ordering::Relaxed);
        if SLEEPER {
            fence(Ordering::SeqCst);
        }
    }
    fn disarm(&self) {
        self.0.swap(0, Ordering::Relaxed);
    }
    fn must_wake(&self) -> bool {
        if PRODUCER {
            fence(Ordering::SeqCst);
        }
        self.0.load(Ordering::Relaxed) == 1 && self.0.swap(0, Ordering::Relaxed) == 1
    }
}

/// A handshake without the second look at the queue.
#[derive(Default)]
struct LooksOnce(Handshake);

impl Protocol for LooksOnce {
    const LOOKS_TWICE: bool = false;
    fn arm(&self) {
        self.0.arm();
    }
    fn disarm(&self) {
        self.0.disarm();
    }
    fn must_wake(&self) -> bool {
        self.0.must_wake()
    }
}

#[test]
fn the_fenceless_copy_with_both_fences_is_sound() {
    model::<Fenceless<true, true>>(1, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_the_missing_fence_of_the_sleeper() {
    model::<Fenceless<false, true>>(1, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_the_missing_fence_of_the_producer() {
    model::<Fenceless<true, false>>(1, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_the_missing_second_look() {
    model::<LooksOnce>(1, 1);
}
