//! The buckets of one volume, in three cache lines, and D1's order of asking and paying.
//!
//! The first line carries what every request needs, the second work and peak of both dimensions, the third
//! the banks; a bucket that does not exist is never touched, so most volumes cost two lines and an unlimited
//! one costs one. Which buckets exist is a bit set.
//!
//! A bucket is kept as what it lacks to be full: it fills by a subtraction that stops at zero and pays by an
//! addition, and neither needs its cap. Most requests meet buckets that are more than half full, for which a
//! shift decides ([`Volume::take`]); all others are decided by exact comparison. Both ways leave the same
//! balances.
//!
//! Invariants: a bucket that does not exist lacks nothing and has rate 0; [`Volume::pay`] is called only with [`Charge`]s that [`Volume::ask`] returned for the same balances.

use crate::api::Balance;
use crate::bucket::{NANO, PEAK_CAP_NS, WORK_CAP_NS, ns_until, units};
use crate::limits::{DIMS, DimLimits, Limits};

/// Bits of [`Volume::flags`]; the first three are shifted by 4 times the dimension.
const BURST: u32 = 1;
const WORK: u32 = 2;
const PEAK: u32 = 4;
const ANY: u32 = BURST | WORK | PEAK;
const DIM_SHIFT: u32 = 4;
/// The volume has limits of its own.
const LIMITED: u32 = ANY | ANY << DIM_SHIFT;
/// The volume draws from a group.
pub(crate) const GROUP: u32 = 1 << 8;
/// Requests of the volume are parked.
pub(crate) const PARKED: u32 = 1 << 9;
/// The volume has a `Tariff`: prices other than one, streams, or a bound on debt.
pub(crate) const TARIFF: u32 = 1 << 10;

/// The line that every request reads, and behind it the other two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Volume {
    pub(crate) last_ns: u64,
    pub(crate) admitted: [u64; DIMS],
    pub(crate) flags: u32,
    pub(crate) group: u32,
    work_rate: [u64; DIMS],
    peak_rate: [u64; DIMS],
    paced: Paced,
    bank: Bank,
}

/// What the buckets lack that follow a rate, in nano-tokens.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Paced {
    work: [u128; DIMS],
    peak: [u128; DIMS],
}

/// What the banks lack, in nano-tokens, what they earn and what they can hold, in units.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Bank {
    burst: [u128; DIMS],
    rate: [u64; DIMS],
    cap: [u64; DIMS],
}

/// How a dimension pays, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charge {
    /// Only what peak asks.
    Free,
    /// Burst pays in full.
    Burst,
    /// Work pays, reduced if the node has slack.
    Work,
    /// Nothing can pay now.
    Wait,
}

impl Volume {
    pub(crate) fn unlimited(now_ns: u64) -> Volume {
        Volume {
            last_ns: now_ns,
            admitted: [0; DIMS],
            flags: 0,
            group: 0,
            work_rate: [0; DIMS],
            peak_rate: [0; DIMS],
            paced: Paced::default(),
            bank: Bank::default(),
        }
    }

    /// True if the volume has buckets of its own.
    #[inline(always)]
    pub(crate) fn is_limited(&self) -> bool {
        self.flags & LIMITED != 0
    }

    /// True if only its own plain limits, and the node's pool, can hold the volume back.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.flags & (GROUP | PARKED | TARIFF) == 0
    }

    /// Counts a request that passes.
    #[inline(always)]
    pub(crate) fn count(&mut self, units: &[u32; DIMS]) {
        for (admitted, &units) in self.admitted.iter_mut().zip(units) {
            *admitted = admitted.wrapping_add(u64::from(units));
        }
    }

    #[inline(always)]
    fn has(&self, d: usize, bucket: u32) -> bool {
        self.flags >> (DIM_SHIFT * d as u32) & bucket != 0
    }

    /// What burst holds.
    #[inline(always)]
    fn burst(&self, d: usize) -> i128 {
        self.burst_cap(d) - self.bank.burst[d] as i128
    }

    /// What work holds; negative is debt.
    #[inline(always)]
    fn work(&self, d: usize) -> i128 {
        self.work_cap(d) - self.paced.work[d] as i128
    }

    /// What peak holds; negative is debt.
    #[inline(always)]
    fn peak(&self, d: usize) -> i128 {
        self.peak_cap(d) - self.paced.peak[d] as i128
    }

    #[inline(always)]
    fn burst_cap(&self, d: usize) -> i128 {
        i128::from(self.bank.cap[d]) * NANO
    }

    #[inline(always)]
    fn work_cap(&self, d: usize) -> i128 {
        i128::from(self.work_rate[d]) * WORK_CAP_NS
    }

    #[inline(always)]
    fn peak_cap(&self, d: usize) -> i128 {
        i128::from(self.peak_rate[d]) * PEAK_CAP_NS
    }

    /// Brings the balances up to `now_ns`. Time that runs backwards earns nothing and costs nothing.
    #[inline(always)]
    pub(crate) fn refill(&mut self, now_ns: u64) {
        if now_ns <= self.last_ns || !self.is_limited() {
            return;
        }
        let dt = now_ns - self.last_ns;
        self.last_ns = now_ns;
        for d in 0..DIMS {
            if self.has(d, ANY) {
                self.earn(d, dt);
            }
        }
    }

    #[inline(always)]
    fn earn(&mut self, d: usize, dt: u64) {
        let fill = |lacking: &mut u128, rate: u64| *lacking = lacking.saturating_sub(earned(dt, rate));
        if self.has(d, WORK | PEAK) {
            fill(&mut self.paced.work[d], self.work_rate[d]);
            fill(&mut self.paced.peak[d], self.peak_rate[d]);
        }
        if self.has(d, BURST) {
            fill(&mut self.bank.burst[d], self.bank.rate[d]);
        }
    }

    /// How a request of `n` nano-tokens would be paid in dimension `d`. `work_floor` is what work must hold:
    /// 1, or more where debt is bounded (see [`Volume::work_floor`]).
    #[inline(always)]
    pub(crate) fn ask(&self, d: usize, n: i128, work_floor: i128) -> Charge {
        if n == 0 || !self.has(d, ANY) {
            return Charge::Free;
        }
        if self.has(d, PEAK) && self.peak(d) <= 0 {
            return Charge::Wait;
        }
        if self.has(d, BURST) && (self.burst(d) >= n || self.bank_is_all(d) && self.bank.burst[d] == 0) {
            return Charge::Burst;
        }
        match self.has(d, WORK) {
            true if self.work(d) >= work_floor => Charge::Work,
            false if !self.has(d, BURST) => Charge::Free,
            _ => Charge::Wait,
        }
    }

    /// True if only the bank can pay, so that it must pay even more than it can hold.
    #[inline(always)]
    fn bank_is_all(&self, d: usize) -> bool {
        !self.has(d, WORK)
    }

    /// What work must hold so that paying `n` leaves no more than `debt_units_max` owed: at least one
    /// nano-token, at most all it can hold.
    pub(crate) fn work_floor(&self, d: usize, n: i128, debt_units_max: u32) -> i128 {
        (n - i128::from(debt_units_max) * NANO).min(self.work_cap(d)).max(1)
    }

    /// Takes the payment: `n` from peak, and from burst or `work_n` from work as `charge` says.
    #[inline(always)]
    pub(crate) fn pay(&mut self, d: usize, charge: Charge, n: i128, work_n: i128) {
        if n == 0 || !self.has(d, ANY) {
            return;
        }
        let pay = |lacking: &mut u128, n: i128| *lacking = lacking.wrapping_add_signed(n);
        if self.has(d, PEAK) {
            pay(&mut self.paced.peak[d], n);
        }
        match charge {
            Charge::Burst => pay(&mut self.bank.burst[d], n),
            Charge::Work => pay(&mut self.paced.work[d], work_n),
            Charge::Free | Charge::Wait => {}
        }
    }

    /// Admission in the commonest case: true if buckets that are more than about half full have paid for the
    /// request. False says nothing, and only time has passed. For a volume that [`Volume::is_plain`].
    #[inline(always)]
    pub(crate) fn take(&mut self, now_ns: u64, units: [u32; DIMS]) -> bool {
        if self.is_limited() {
            let dt = now_ns.saturating_sub(self.last_ns);
            self.last_ns += dt;
            let paid = [self.take_one(0, dt, units[0]), self.take_one(1, dt, units[1])];
            if paid != [true; DIMS] {
                self.give_back(paid, units);
                return false;
            }
        }
        self.count(&units);
        true
    }

    /// Lets dimension `d` earn for `dt` ns and then, if it holds plenty, pay. False if it has not paid.
    #[inline(always)]
    fn take_one(&mut self, d: usize, dt: u64, units: u32) -> bool {
        match self.flags >> (DIM_SHIFT * d as u32) & ANY {
            0 => true,
            WORK => {
                let (lacking, rate) = (&mut self.paced.work[d], self.work_rate[d]);
                *lacking = lacking.saturating_sub(earned(dt, rate));
                let plenty = is_below(*lacking, HALF_SHIFT, rate);
                *lacking += if plenty { nanos(units) } else { 0 };
                plenty
            }
            _ => self.take_any(d, dt, units),
        }
    }

    /// [`Volume::take_one`] with more than one kind of bucket, or a bank.
    #[inline(never)]
    fn take_any(&mut self, d: usize, dt: u64, units: u32) -> bool {
        self.earn(d, dt);
        let n = nanos(units);
        let plenty = match self.has(d, BURST) {
            true => is_below(self.bank.burst[d] + n, HALF_SHIFT, self.bank.cap[d]),
            false => !self.has(d, WORK) || is_below(self.paced.work[d], HALF_SHIFT, self.work_rate[d]),
        };
        let peak = &self.paced.peak[d];
        let pays = plenty && (!self.has(d, PEAK) || is_below(*peak, HALF_PEAK_SHIFT, self.peak_rate[d]));
        if pays {
            self.pay(d, self.payer(d), n as i128, n as i128);
        }
        pays
    }

    /// Undoes the payments of a request that may not pass like this.
    #[cold]
    fn give_back(&mut self, paid: [bool; DIMS], units: [u32; DIMS]) {
        for d in (0..DIMS).filter(|&d| paid[d]) {
            let n = nanos(units[d]) as i128;
            self.pay(d, self.payer(d), -n, -n);
        }
    }

    /// How dimension `d` pays when it holds plenty.
    fn payer(&self, d: usize) -> Charge {
        match (self.has(d, BURST), self.has(d, WORK)) {
            (true, _) => Charge::Burst,
            (false, true) => Charge::Work,
            (false, false) => Charge::Free,
        }
    }

    /// Nanoseconds from the last refill until dimension `d` could pay `n`, if nothing else is paid.
    pub(crate) fn wait_ns(&self, d: usize, n: i128, work_floor: i128) -> u64 {
        if n == 0 || !self.has(d, ANY) {
            return 0;
        }
        let peak = if self.has(d, PEAK) { ns_until(self.peak(d), 1, self.peak_rate[d]) } else { 0 };
        let burst = self.has(d, BURST).then(|| {
            let cap = self.burst_cap(d);
            match n > cap && !self.bank_is_all(d) {
                true => u64::MAX,
                false => ns_until(self.burst(d), n.min(cap), self.bank.rate[d]),
            }
        });
        let work = self.has(d, WORK).then(|| ns_until(self.work(d), work_floor, self.work_rate[d]));
        let pays = burst.into_iter().chain(work).min().unwrap_or(0);
        peak.max(pays)
    }

    /// Takes new limits and keeps the balances: cut to the new caps, full where there was no bucket.
    pub(crate) fn configure(&mut self, now_ns: u64, limits: &Limits, tariff: bool) {
        self.refill(now_ns);
        self.last_ns = self.last_ns.max(now_ns);
        let before = *self;
        self.flags &= PARKED;
        self.group = limits.group.unwrap_or(0);
        if limits.group.is_some() {
            self.flags |= GROUP;
        }
        if tariff {
            self.flags |= TARIFF;
        }
        for (d, limits) in limits.dims().into_iter().enumerate() {
            self.configure_dim(d, limits, &before);
        }
    }

    fn configure_dim(&mut self, d: usize, limits: &DimLimits, before: &Volume) {
        let mut flags = 0;
        self.bank.cap[d] = limits.burst.map_or(0, |b| b.cap_units);
        self.peak_rate[d] = limits.peak_rate.unwrap_or(0);
        self.bank.rate[d] = limits.burst.map_or(0, |b| b.fill_rate);
        self.work_rate[d] = limits.work.map_or(0, |w| w.rate);
        let mut keep = |bucket: u32, exists: bool, level: i128, cap: i128| {
            if !exists {
                return 0;
            }
            flags |= bucket << (DIM_SHIFT * d as u32);
            let level = if before.has(d, bucket) { level.min(cap) } else { cap };
            (cap - level) as u128
        };
        self.bank.burst[d] = keep(BURST, limits.burst.is_some(), before.burst(d), self.burst_cap(d));
        self.paced.work[d] = keep(WORK, limits.work.is_some(), before.work(d), self.work_cap(d));
        self.paced.peak[d] = keep(PEAK, limits.peak_rate.is_some(), before.peak(d), self.peak_cap(d));
        self.flags |= flags;
    }

    /// Begins with `saved` whole units, negative for a debt, and no more than it holds: in the bank, with nothing saved
    /// up beside it; without a bank, in the provisioned rate.
    pub(crate) fn begin_with(&mut self, d: usize, saved: i64) {
        let lacks = |cap: i128, level: i128| (cap - level.clamp(-cap, cap)) as u128;
        let saved = i128::from(saved) * NANO;
        let has_bank = self.has(d, BURST);
        if has_bank {
            self.bank.burst[d] = lacks(self.burst_cap(d), saved);
        }
        if self.has(d, WORK) {
            self.paced.work[d] = lacks(self.work_cap(d), if has_bank { 0 } else { saved });
        }
    }

    /// What a person sees of dimension `d`.
    pub(crate) fn balance(&self, d: usize) -> Balance {
        let has = |bucket| self.has(d, bucket);
        let peak = has(PEAK).then_some(self.peak_rate[d]);
        let base = has(WORK).then_some(self.work_rate[d]).or(has(BURST).then_some(self.bank.rate[d]));
        let bursting = has(BURST) && self.burst(d) >= NANO;
        let permitted_rate =
            if bursting || base.is_none() { peak } else { base.into_iter().chain(peak).min() };
        Balance {
            burst_units: has(BURST).then(|| (units(self.burst(d)), self.bank.cap[d])),
            work_units: has(WORK).then(|| units(self.work(d))),
            permitted_rate,
        }
    }

    /// All balances of dimension `d`, for the model to compare.
    #[cfg(test)]
    pub(crate) fn levels(&self, d: usize) -> [i128; 3] {
        [self.burst(d), self.work(d), self.peak(d)]
    }

    /// The second and the third line, to be prefetched.
    #[inline(always)]
    pub(crate) fn lines(&self) -> (&Paced, &Bank) {
        (&self.paced, &self.bank)
    }
}

const _: () = assert!(size_of::<Volume>() == 192);

#[inline(always)]
fn earned(dt: u64, rate: u64) -> u128 {
    u128::from(dt) * u128::from(rate)
}

/// What so many units cost at the full price.
#[inline(always)]
fn nanos(units: u32) -> u128 {
    u128::from(u64::from(units) * NANO as u64)
}

/// A cap is 10^9 ns of work's rate or 10^9 nano-tokens for each unit of a bank, and 10^7 ns of peak's rate. A
/// bucket that lacks less than 2^29, or 2^23, times that number is about half full or fuller.
const HALF_SHIFT: u32 = 29;
const HALF_PEAK_SHIFT: u32 = 23;

/// Less than `limit << shift`.
#[inline(always)]
fn is_below(lacking: u128, shift: u32, limit: u64) -> bool {
    lacking >> shift < u128::from(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Burst, Work};

    fn volume(packets: DimLimits) -> Volume {
        let mut v = Volume::unlimited(0);
        v.configure(0, &Limits { packets, ..Limits::default() }, false);
        v
    }

    #[test]
    fn an_absent_bucket_asks_nothing() {
        let v = volume(DimLimits::default());
        assert!(!v.is_limited());
        assert_eq!(v.ask(1, NANO, 1), Charge::Free);
        let v = volume(DimLimits { peak_rate: Some(100), ..DimLimits::default() });
        assert_eq!(v.ask(0, NANO, 1), Charge::Free);
        assert_eq!(v.ask(1, NANO, 1), Charge::Free);
    }

    #[test]
    fn a_request_above_the_bank_passes_a_full_bank_only_without_work() {
        let bank = DimLimits { burst: Some(Burst { cap_units: 2, fill_rate: 1 }), ..DimLimits::default() };
        let mut v = volume(bank);
        assert_eq!(v.ask(1, 5 * NANO, 1), Charge::Burst);
        v.pay(1, Charge::Burst, 5 * NANO, 0);
        assert_eq!(v.ask(1, NANO, 1), Charge::Wait);
        assert_eq!(v.wait_ns(1, 5 * NANO, 1), 5_000_000_000);
        let v = volume(DimLimits { work: Some(Work::at(1)), ..bank });
        assert_eq!(v.ask(1, 5 * NANO, 1), Charge::Work);
    }

    #[test]
    fn debt_is_bounded_where_asked_and_never_blocks_for_ever() {
        let mut v = volume(DimLimits { work: Some(Work::at(10)), ..DimLimits::default() });
        assert_eq!(v.work_floor(1, 5 * NANO, 3), 2 * NANO);
        assert_eq!(v.work_floor(1, 2 * NANO, 3), 1);
        assert_eq!(v.work_floor(1, 500 * NANO, 3), 10 * NANO);
        v.pay(1, Charge::Work, 9 * NANO, 9 * NANO);
        assert_eq!(v.ask(1, 5 * NANO, v.work_floor(1, 5 * NANO, 3)), Charge::Wait);
        assert_eq!(v.wait_ns(1, 5 * NANO, 2 * NANO), 100_000_000);
    }

    #[test]
    fn the_balance_reads_as_percent_and_permitted_rate() {
        let mut v = volume(Limits::gp2_like(100).packets);
        assert_eq!(v.balance(1).burst_units, Some((5_400_000, 5_400_000)));
        assert_eq!(v.balance(1).permitted_rate, Some(3_000));
        v.pay(1, Charge::Burst, 5_400_000 * NANO, 0);
        assert_eq!(v.balance(1).permitted_rate, Some(300));
        assert_eq!(v.balance(0), Balance::default());
    }
}
