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
//! Invariant: `spent_ns` never passes `now + cap` of the borrower that moved it, so nothing is given out
//! twice. Relaxed ordering suffices: the word carries no promise about any other memory, and a
//! read-modify-write always sees the latest value of its own word.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::bucket::NANO;
use crate::limits::{Dimension, PoolError, check_pool};

/// What a worker borrows at a time, in nanoseconds of the bucket's rate.
pub(crate) const QUANTUM_NS: u64 = 1_000_000;

/// One dimension of a pool, shared between workers. Rate and cap are fixed; to change them, make a new
/// bucket from this one's balance ([`SharedBucket::resized`]) and set it with every shaper.
#[derive(Debug)]
pub struct SharedBucket {
    rate: u64,
    cap_units: u64,
    cap_ns: u64,
    spent_ns: AtomicU64,
}

impl SharedBucket {
    /// A full bucket, `rate` units per second and at most `cap_units` units. The cap should be at least
    /// 1 ms worth per worker, so that all of them can hold a quantum.
    pub fn new(now_ns: u64, rate: u64, cap_units: u64) -> Result<SharedBucket, PoolError> {
        // The error names a dimension; the bucket does not know which one it will serve.
        check_pool(Dimension::Bytes, rate, cap_units)?;
        let cap_ns = (u128::from(cap_units) * NANO as u128).div_ceil(u128::from(rate));
        // Half of `u64`, so that `now + cap` does not overflow for 292 years.
        let cap_ns = u64::try_from(cap_ns).unwrap_or(u64::MAX).min(u64::MAX / 2);
        Ok(SharedBucket { rate, cap_units, cap_ns, spent_ns: AtomicU64::new(now_ns) })
    }

    /// A bucket with a new rate and cap that takes over what this one holds, cut to the new cap, and leaves
    /// this one empty: workers that still draw from it get only what it earns from now on.
    pub fn resized(&self, now_ns: u64, rate: u64, cap_units: u64) -> Result<SharedBucket, PoolError> {
        let heir = SharedBucket::new(now_ns, rate, cap_units)?;
        let held_ns = u128::from(self.borrow(now_ns, u64::MAX)) * u128::from(self.rate) / u128::from(rate);
        let missing_ns = u128::from(heir.cap_ns).saturating_sub(held_ns);
        heir.spent_ns.fetch_add(missing_ns as u64, Relaxed);
        Ok(heir)
    }

    /// Units per second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Most units held.
    pub fn cap_units(&self) -> u64 {
        self.cap_units
    }

    /// Units available at `now_ns`, rounded down; what workers have borrowed is not in it.
    pub fn available_units(&self, now_ns: u64) -> u64 {
        let nanos = u128::from(self.available_ns(now_ns)) * u128::from(self.rate);
        u64::try_from(nanos / NANO as u128).unwrap_or(u64::MAX)
    }

    pub(crate) fn cap_ns(&self) -> u64 {
        self.cap_ns
    }

    pub(crate) fn available_ns(&self, now_ns: u64) -> u64 {
        self.left(now_ns, self.spent_ns.load(Relaxed))
    }

    fn left(&self, now_ns: u64, spent_ns: u64) -> u64 {
        self.cap_ns.saturating_sub(spent_ns.saturating_sub(now_ns))
    }

    /// Takes up to `want_ns` worth; returns what was got.
    pub(crate) fn borrow(&self, now_ns: u64, want_ns: u64) -> u64 {
        let mut spent = self.spent_ns.load(Relaxed);
        loop {
            let got = self.left(now_ns, spent).min(want_ns);
            if got == 0 {
                return 0;
            }
            // What was earned while the bucket was full is gone: the new mark starts from `now`.
            let new = spent.max(now_ns).saturating_add(got);
            match self.spent_ns.compare_exchange_weak(spent, new, Relaxed, Relaxed) {
                Ok(_) => return got,
                Err(now_spent) => spent = now_spent,
            }
        }
    }

    /// Gives back `ns` worth that was borrowed and not spent.
    pub(crate) fn give_back(&self, ns: u64) {
        let mut spent = self.spent_ns.load(Relaxed);
        while let Err(now_spent) =
            self.spent_ns.compare_exchange_weak(spent, spent.saturating_sub(ns), Relaxed, Relaxed)
        {
            spent = now_spent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn holds_its_cap_and_earns_its_rate() {
        let bucket = SharedBucket::new(500, 1000, 10).unwrap();
        assert_eq!(bucket.available_units(500), 10);
        assert_eq!(bucket.borrow(500, 4_000_000), 4_000_000);
        assert_eq!(bucket.available_units(500), 6);
        assert_eq!(bucket.available_units(1_000_500), 7);
        assert_eq!(bucket.borrow(500, u64::MAX), 6_000_000);
        assert_eq!(bucket.borrow(500, 1), 0);
        assert_eq!(bucket.borrow(0, 1), 0, "time running backwards gives nothing");
        assert_eq!(bucket.available_units(u64::MAX), 10);
    }

    #[test]
    fn what_is_given_back_is_there_again_and_never_more_than_the_cap() {
        let bucket = SharedBucket::new(0, 1000, 10).unwrap();
        let got = bucket.borrow(0, 2_000_000);
        bucket.give_back(got);
        assert_eq!(bucket.available_units(0), 10);
        bucket.give_back(5_000_000);
        assert_eq!(bucket.available_units(7), 10);
    }

    #[test]
    fn resizing_moves_the_balance() {
        let old = SharedBucket::new(0, 1000, 10).unwrap();
        old.borrow(0, 4_000_000);
        let new = old.resized(0, 3000, 100).unwrap();
        assert_eq!((old.available_units(0), new.available_units(0)), (0, 6));
        let small = new.resized(0, 1, 2).unwrap();
        assert_eq!(small.available_units(0), 2);
    }

    #[test]
    fn refuses_nothing_and_too_much() {
        assert!(matches!(SharedBucket::new(0, 0, 1), Err(PoolError::Rate { .. })));
        assert!(matches!(SharedBucket::new(0, 1, 0), Err(PoolError::Cap { .. })));
        assert!(matches!(SharedBucket::new(0, u64::MAX, 1), Err(PoolError::Rate { .. })));
    }

    /// Threads that race for it never get more together than it held and earned, and never less while they
    /// keep asking.
    #[test]
    fn threads_together_get_exactly_what_there_is() {
        let bucket = Arc::new(SharedBucket::new(0, 1_000_000, 1_000).unwrap());
        let clock = Arc::new(AtomicU64::new(0));
        let until_ns = 200_000_000;
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (bucket, clock) = (bucket.clone(), clock.clone());
                std::thread::spawn(move || {
                    let mut got = 0u64;
                    loop {
                        let now = clock.fetch_add(50, Relaxed);
                        if now >= until_ns {
                            return got;
                        }
                        let borrowed = bucket.borrow(now, 1_000 + worker);
                        let back = if now % 7 == 0 { borrowed / 2 } else { 0 };
                        bucket.give_back(back);
                        got += borrowed - back;
                    }
                })
            })
            .collect();
        let got: u64 = workers.into_iter().map(|w| w.join().unwrap()).sum();
        let cap_ns = bucket.cap_ns;
        assert!(got <= until_ns + cap_ns, "{got}");
        // Only what it earned before the first borrow emptied it a little is lost: it stood full.
        let lost = until_ns + cap_ns - got - bucket.available_ns(until_ns);
        assert!(lost < 100_000, "{lost}");
    }
}
