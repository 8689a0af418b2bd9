//! The arithmetic that every bucket shares: nano-tokens in `i128`.
//!
//! A rate of `r` units per second earns exactly `r` nano-tokens per nanosecond, and a unit is 10^9 of them.
//! Rates are at most 2^50, caps 2^60 units, times 2^64 ns: every sum and product here stays below 2^115.

/// Nano-tokens of one unit; also nanoseconds of a second.
pub(crate) const NANO: i128 = 1_000_000_000;

/// Cap of a `work` bucket, in nanoseconds of its rate.
pub(crate) const WORK_CAP_NS: i128 = 1_000_000_000;
/// Cap of a `peak` bucket, in nanoseconds of its rate.
pub(crate) const PEAK_CAP_NS: i128 = 10_000_000;

/// `level` after `dt_ns` at `rate`, at most `cap`.
#[inline(always)]
pub(crate) fn filled(level: i128, dt_ns: u64, rate: u64, cap: i128) -> i128 {
    let earned = (u128::from(dt_ns) * u128::from(rate)) as i128;
    (level + earned).min(cap)
}

/// Nanoseconds until `level` has grown to `target` at `rate`, rounded up. `rate` is at least 1.
pub(crate) fn ns_until(level: i128, target: i128, rate: u64) -> u64 {
    if level >= target {
        return 0;
    }
    let missing = (target - level) as u128;
    u64::try_from(missing.div_ceil(u128::from(rate.max(1)))).unwrap_or(u64::MAX)
}

/// Whole units in a balance, rounded down.
pub(crate) fn units(level: i128) -> i64 {
    i64::try_from(level.div_euclid(NANO)).unwrap_or(i64::MAX)
}

/// Price of one unit at the factor `num / den`, in nano-tokens, rounded up. `num <= den`, so it fits.
pub(crate) fn price_nano(num: u32, den: u32) -> u32 {
    (u64::from(num) * NANO as u64).div_ceil(u64::from(den.max(1))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_round_up_and_arrive() {
        assert_eq!(ns_until(-2 * NANO, 1, 100), 20_000_001);
        assert_eq!(ns_until(5, 5, 1), 0);
        assert_eq!(ns_until(0, i128::from(u64::MAX) * 2, 1), u64::MAX);
        for (level, rate) in [(-7, 3), (-1, 1 << 50), (-NANO * 5, 7)] {
            let dt = ns_until(level, 1, rate);
            assert!(filled(level, dt, rate, NANO) > 0);
            assert!(dt == 0 || filled(level, dt - 1, rate, NANO) <= 0);
        }
    }

    #[test]
    fn prices_round_up_to_a_whole_nano_token() {
        assert_eq!(price_nano(1, 2), 500_000_000);
        assert_eq!(price_nano(1, 3), 333_333_334);
        assert_eq!((price_nano(0, 7), price_nano(7, 7)), (0, 1_000_000_000));
        assert_eq!((units(-1), units(NANO), units(NANO - 1)), (-1, 1, 0));
    }

    #[test]
    fn the_largest_numbers_fit() {
        let full = filled(0, u64::MAX, crate::RATE_MAX, i128::from(crate::BURST_UNITS_MAX) * NANO);
        assert_eq!(full, i128::from(crate::BURST_UNITS_MAX) * NANO);
    }
}
