//! What volumes share: the pool of a tenant group, or of the node. Kept by this shaper alone, or drawn from
//! a [`SharedBucket`] a quantum at a time.
//!
//! Invariants: a dimension without limit never blocks; while the ring has members, whoever is not being
//! served by it and needs a dimension that members wait for is blocked, so that nobody overtakes.

use std::sync::Arc;

use crate::SharedBucket;
use crate::bucket::{NANO, filled, ns_until, units};
use crate::drr::{Ring, WORTH_MAX};
use crate::limits::{DIMS, PoolLimits, PoolRate};
use crate::shared::QUANTUM_NS;

#[derive(Clone, Debug)]
struct Bucket {
    level: i128,
    rate: u64,
    cap: i128,
    /// What a nano-token is worth, in 2^-60 ns of this bucket.
    worth: u64,
    shared: Option<Arc<SharedBucket>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    last_ns: u64,
    limited: bool,
    dims: [Option<Bucket>; DIMS],
    pub(crate) ring: Ring,
}

impl Pool {
    pub(crate) fn unlimited(now_ns: u64) -> Pool {
        Pool { last_ns: now_ns, limited: false, dims: [None, None], ring: Ring::new() }
    }

    #[inline(always)]
    pub(crate) fn is_limited(&self) -> bool {
        self.limited
    }

    /// Takes new limits and keeps the balances, cut to the new caps; what is new starts full.
    pub(crate) fn configure(&mut self, now_ns: u64, limits: &PoolLimits) {
        self.refill(now_ns);
        for (bucket, rate) in self.dims.iter_mut().zip(limits.dims()) {
            *bucket = rate.map(|rate| Bucket::of(rate, bucket.take()));
        }
        self.limited = self.dims.iter().any(Option::is_some);
    }

    #[inline(always)]
    pub(crate) fn refill(&mut self, now_ns: u64) {
        if now_ns <= self.last_ns {
            return;
        }
        let dt = now_ns - self.last_ns;
        self.last_ns = now_ns;
        for bucket in self.dims.iter_mut().flatten() {
            // A shared bucket earns by itself; its borrower does not.
            if bucket.shared.is_none() {
                bucket.level = filled(bucket.level, dt, bucket.rate, bucket.cap);
            }
        }
    }

    /// Which dimensions keep a request of `n` nano-tokens out, if any. `served`: it is its turn in the ring.
    #[inline(always)]
    pub(crate) fn blocks(&mut self, n: &[i128; DIMS], served: bool) -> Option<[bool; DIMS]> {
        let now_ns = self.last_ns;
        let mut short = [false; DIMS];
        for d in 0..DIMS {
            if n[d] != 0
                && let Some(bucket) = &mut self.dims[d]
            {
                short[d] = (!served && self.ring.waiting[d]) || !bucket.is_positive(now_ns);
            }
        }
        (short != [false; DIMS]).then_some(short)
    }

    #[inline(always)]
    pub(crate) fn pay(&mut self, n: &[i128; DIMS]) {
        for (bucket, n) in self.dims.iter_mut().zip(n) {
            if let Some(bucket) = bucket {
                bucket.level -= n;
            }
        }
    }

    /// True if dimension `d` stands above `permille` thousandths of its cap; no limit counts as full.
    pub(crate) fn is_above(&self, d: usize, permille: u16) -> bool {
        let Some(bucket) = &self.dims[d] else { return true };
        let (level, cap) = match &bucket.shared {
            Some(shared) => {
                let central = i128::from(shared.available_ns(self.last_ns)) * i128::from(bucket.rate);
                (central + bucket.level, i128::from(shared.cap_units()) * NANO)
            }
            None => (bucket.level, bucket.cap),
        };
        level * 1000 > cap * i128::from(permille)
    }

    /// True if members wait for a dimension that holds nothing.
    pub(crate) fn is_short(&mut self) -> bool {
        let now_ns = self.last_ns;
        let waiting = self.ring.waiting;
        let mut buckets = self.dims.iter_mut().zip(waiting);
        buckets.any(|(bucket, waiting)| waiting && bucket.as_mut().is_some_and(|b| !b.is_positive(now_ns)))
    }

    /// When the dimensions that members wait for will hold something; now, if they do.
    pub(crate) fn positive_at_ns(&self) -> u64 {
        let buckets = self.dims.iter().zip(self.ring.waiting).filter(|(_, waiting)| *waiting);
        let wait = buckets.filter_map(|(bucket, _)| Some(bucket.as_ref()?.wait_ns(self.last_ns))).max();
        self.last_ns.saturating_add(wait.unwrap_or(0))
    }

    /// What a request is worth to the pool: the time in which the pool earns it, by its scarcest dimension,
    /// in 2^-20 ns.
    pub(crate) fn worth(&self, n: &[i128; DIMS]) -> i64 {
        let worth = |(bucket, &n): (&Option<Bucket>, &i128)| {
            Some((n as u128 * u128::from(bucket.as_ref()?.worth)) >> 40)
        };
        let most = self.dims.iter().zip(n).filter_map(worth).max().unwrap_or(0);
        i64::try_from(most).unwrap_or(WORTH_MAX).clamp(1, WORTH_MAX)
    }

    /// True if it draws from a shared bucket.
    pub(crate) fn borrows(&self) -> bool {
        self.dims.iter().flatten().any(|bucket| bucket.shared.is_some())
    }

    /// Gives what was borrowed and not spent back to the shared buckets.
    pub(crate) fn return_quanta(&mut self) {
        for bucket in self.dims.iter_mut().flatten() {
            bucket.return_quantum();
        }
    }

    /// The balance of dimension `d`, for the model to compare.
    #[cfg(test)]
    pub(crate) fn level(&self, d: usize) -> Option<i128> {
        self.dims[d].as_ref().map(|b| b.level)
    }

    /// Whole units at hand in dimension `d`: held here, and in the shared bucket if there is one.
    pub(crate) fn units(&self, d: usize) -> Option<i64> {
        let bucket = self.dims[d].as_ref()?;
        let central = bucket.shared.as_ref().map_or(0, |s| s.available_ns(self.last_ns));
        Some(units(bucket.level + i128::from(central) * i128::from(bucket.rate)))
    }
}

impl Bucket {
    fn of(limits: &PoolRate, before: Option<Bucket>) -> Bucket {
        let worth = |rate: u64| ((1u64 << 60) / rate).max(1);
        let bucket = match limits {
            PoolRate::Own { rate, cap_units } => {
                let cap = i128::from(*cap_units) * NANO;
                Bucket { level: cap, rate: *rate, cap, worth: worth(*rate), shared: None }
            }
            PoolRate::Shared(shared) => {
                let rate = shared.rate();
                let cap = i128::from(rate) * i128::from(QUANTUM_NS);
                Bucket { level: 0, rate, cap, worth: worth(rate), shared: Some(shared.clone()) }
            }
        };
        match before {
            None => bucket,
            Some(mut old) => {
                old.settle_loan(&bucket);
                Bucket { level: old.level.min(bucket.cap), ..bucket }
            }
        }
    }

    /// Before this bucket becomes `next`: unless both are the same purse, the loan goes back to its lender
    /// and only a debt is carried over.
    fn settle_loan(&mut self, next: &Bucket) {
        let same = match (&self.shared, &next.shared) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        if !same {
            self.return_quantum();
            self.level = self.level.min(0);
        }
    }

    /// True if something is held, after borrowing if that is needed and possible.
    #[inline(always)]
    fn is_positive(&mut self, now_ns: u64) -> bool {
        self.level > 0 || (self.shared.is_some() && self.borrow(now_ns))
    }

    #[cold]
    fn borrow(&mut self, now_ns: u64) -> bool {
        let Some(shared) = &self.shared else { return false };
        let want_ns = ns_until(self.level, self.cap, self.rate);
        self.level += i128::from(shared.borrow(now_ns, want_ns)) * i128::from(self.rate);
        self.level > 0
    }

    /// Whole nanoseconds of the rate go back; less than one stays.
    fn return_quantum(&mut self) {
        let Some(shared) = &self.shared else { return };
        let Ok(level) = u128::try_from(self.level) else { return };
        let ns = u64::try_from(level / u128::from(self.rate)).unwrap_or(0);
        shared.give_back(ns);
        self.level -= i128::from(ns) * i128::from(self.rate);
    }

    /// Nanoseconds until it holds something, if nobody else takes it.
    fn wait_ns(&self, now_ns: u64) -> u64 {
        let missing = ns_until(self.level, 1, self.rate);
        match &self.shared {
            Some(shared) => {
                // Not after it stands full: what it would earn then is lost to this borrower's debt.
                let available = shared.available_ns(now_ns);
                let full = shared.cap_ns().saturating_sub(available);
                missing.saturating_sub(available).min(full).max(u64::from(missing > 0))
            }
            None => missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(rate: u64, cap_units: u64) -> PoolLimits {
        PoolLimits { bytes: Some(PoolRate::Own { rate, cap_units }), packets: None }
    }

    fn shared(bucket: &Arc<SharedBucket>) -> PoolLimits {
        PoolLimits { bytes: Some(PoolRate::Shared(bucket.clone())), packets: None }
    }

    #[test]
    fn pays_into_debt_and_says_when_it_is_over() {
        let mut pool = Pool::unlimited(0);
        assert_eq!(pool.blocks(&[NANO, NANO], false), None);
        pool.configure(0, &own(1000, 10));
        assert_eq!(pool.blocks(&[NANO, NANO], false), None);
        pool.pay(&[12 * NANO, NANO]);
        assert_eq!(pool.blocks(&[NANO, NANO], false), Some([true, false]));
        assert_eq!(pool.blocks(&[0, NANO], false), None, "what costs nothing is not held");
        pool.ring.waiting = [true, false];
        assert_eq!(pool.positive_at_ns(), 2_000_001);
        pool.refill(2_000_001);
        assert!(!pool.is_short());
        assert_eq!(pool.blocks(&[NANO, 0], false), Some([true, false]), "nobody overtakes");
        assert_eq!(pool.blocks(&[NANO, 0], true), None);
    }

    #[test]
    fn slack_is_measured_in_thousandths_of_the_cap() {
        let mut pool = Pool::unlimited(0);
        assert!(pool.is_above(0, 999));
        pool.configure(0, &own(1000, 10));
        pool.pay(&[5 * NANO, 0]);
        assert!(pool.is_above(0, 499) && !pool.is_above(0, 500) && pool.is_above(1, 999));
    }

    #[test]
    fn borrows_a_quantum_and_returns_it() {
        let central = Arc::new(SharedBucket::new(0, 1_000_000, 10_000).unwrap());
        let mut pool = Pool::unlimited(0);
        pool.configure(0, &shared(&central));
        assert_eq!(pool.blocks(&[NANO, 0], false), None);
        assert_eq!(central.available_units(0), 9_000, "1 ms worth is with the worker");
        pool.pay(&[400 * NANO, 0]);
        assert_eq!(pool.units(0), Some(9_600));
        pool.return_quanta();
        assert_eq!(central.available_units(0), 9_600);
        pool.pay(&[20_000 * NANO, 0]);
        assert_eq!(pool.blocks(&[NANO, 0], false), Some([true, false]));
        pool.ring.waiting = [true, false];
        let at = pool.positive_at_ns();
        assert_eq!(at, 10_000_000, "its lender would be full, and the rest of the debt unpaid");
        pool.refill(at);
        assert!(pool.is_short());
        let at = pool.positive_at_ns();
        assert_eq!(at, 10_400_001);
        pool.refill(at - 1);
        assert!(pool.is_short());
        pool.refill(at);
        assert!(!pool.is_short());
    }

    #[test]
    fn changing_the_lender_returns_the_loan_and_keeps_the_debt() {
        let old = Arc::new(SharedBucket::new(0, 1_000_000, 10_000).unwrap());
        let new = Arc::new(old.resized(0, 1_000_000, 20_000).unwrap());
        assert_eq!((old.available_units(0), new.available_units(0)), (0, 10_000));
        let mut pool = Pool::unlimited(0);
        pool.configure(0, &shared(&new));
        assert_eq!(pool.blocks(&[NANO, 0], false), None);
        pool.configure(0, &shared(&new));
        assert_eq!(new.available_units(0), 9_000, "the same lender: nothing moves");
        pool.configure(0, &shared(&old));
        assert_eq!(new.available_units(0), 10_000);
        pool.pay(&[50 * NANO, 0]);
        pool.configure(0, &own(10, 10));
        assert_eq!(pool.units(0), Some(-50));
        pool.configure(0, &own(10, 5));
        assert_eq!(pool.units(0), Some(-50));
        pool.configure(0, &PoolLimits::default());
        assert_eq!(pool.units(0), None);
        assert!(!pool.is_limited());
    }
}
