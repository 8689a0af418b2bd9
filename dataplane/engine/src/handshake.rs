//! How a worker goes to sleep without missing what is sent to it in that very moment.
//!
//! The sleeper publishes "sleeping", issues a fence, looks at all its queues once more, and only then
//! blocks. The producer publishes an item, issues a fence, and looks whether the other side sleeps. The
//! two sequentially consistent fences are ordered one way or the other: either the sleeper's second look
//! sees the item, or the producer sees "sleeping" and wakes. Without either fence, or without the second
//! look, both may look before both have published, and the wake-up is lost;
//! `tests/loom_handshake.rs` checks all interleavings, and checks that it finds those faults.
//!
//! The flag is taken with a swap: of several producers exactly one pays the system call. The sleeper swaps
//! too, which costs nothing beside the system call to come and gives the flag one history that the model
//! can follow: loom leaves plain stores unordered with the swaps of other threads.

use crate::sync::{AtomicU32, Ordering, fence};

/// The flag that sleeper and producers share.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Handshake {
    sleeping: AtomicU32,
}

impl Handshake {
    /// A sleeper that is awake.
    pub fn new() -> Self {
        Self { sleeping: AtomicU32::new(AWAKE) }
    }

    /// Sleeper: announces sleep. Look at every queue after this and before blocking.
    #[inline]
    pub fn arm(&self) {
        self.sleeping.swap(SLEEPING, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeper: awake again, by whatever cause. A producer that saw "sleeping" before this may still wake
    /// once in vain.
    #[inline]
    pub fn disarm(&self) {
        self.sleeping.swap(AWAKE, Ordering::Relaxed);
    }

    /// Producer, after publishing an item: true if the caller has to wake the sleeper.
    #[inline]
    #[must_use = "true means that the sleeper must be woken"]
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed) == SLEEPING
            && self.sleeping.swap(AWAKE, Ordering::Relaxed) == SLEEPING
    }
}

const AWAKE: u32 = 0;
const SLEEPING: u32 = 1;
