//! A bucket that the shapers of several workers draw from without a lock.
//!
//! A bucket fills linearly in time, so it is kept as *time*: `spent_ns` is the moment up to which what the
//! rate earns has been given out, and what is available is `now + cap - spent`, at most `cap`, all in
//! nanoseconds of the rate. One word is the whole state; a borrow is one compare-and-swap; nobody has to
//! refill. A worker turns the nanoseconds it got into nano-tokens by multiplying with the rate, exactly.
//!
//! Error bound: what workers have borrowed and not yet spent, at most [`QUANTUM_NS`] worth each, plus the
//! debt of at most one request each; see `docs/throttle.md`.
//!
//! Invariant: `spent_ns` never passes `now + cap` of the borrower, so nothing is given out twice. Relaxed
//! ordering suffices: the word carries no promise about any other memory.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::limits::{Dimension, PoolError, check_pool};

/// What a worker borrows at a time, in nanoseconds of the bucket's rate.
pub const QUANTUM_NS: u64 = 1_000_000;

/// A pool's dimension shared between workers. Rate and cap are fixed; a change makes a new bucket from the
/// old one's balance ([`SharedBucket::resized`]).
#[derive(Debug)]
pub struct SharedBucket {
    rate: u64,
    cap_units: u64,
    cap_ns: u64,
    spent_ns: AtomicU64,
}

impl SharedBucket {
    /// A full bucket, `rate` units per second and at most `cap_units` units. A cap below one quantum per
    /// worker still works, with the workers taking what there is.
    pub fn new(now_ns: u64, rate: u64, cap_units: u64) -> Result<SharedBucket, PoolError> {
        check_pool(Dimension::Bytes, rate, cap_units)?;
        let cap_ns = (u128::from(cap_units) * 1_000_000_000).div_ceil(u128::from(rate));
        let cap_ns = u64::try_from(cap_ns).unwrap_or(u64::MAX);
        Ok(SharedBucket { rate, cap_units, cap_ns, spent_ns: AtomicU64::new(now_ns) })
    }
    /// Units per second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Most units held.
    pub fn cap_units(&self) -> u64 {
        self.cap_units
    }
}
