//! Times, counted in buckets that grow with them: sixteen to each doubling, so that a bucket is 6 % wide.
//!
//! Of the same form as an HDR histogram, but of fixed size (1.8 KiB, allocated once): there is one for each stage of each
//! volume, and of volumes there may be thousands.

/// Times below are one bucket, ns.
const LOW_SHIFT: u32 = 8;
/// Times from here on are one bucket: 137 s.
const HIGH_SHIFT: u32 = 37;
/// Buckets of a doubling.
const SUB_SHIFT: u32 = 4;
const BUCKETS: usize = ((HIGH_SHIFT - LOW_SHIFT) << SUB_SHIFT) as usize + 2;

/// A histogram of times in ns.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u32]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

impl Histogram {
    /// Empty.
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS].into(), total: 0 }
    }

    /// Counts one time.
    pub fn record(&mut self, ns: u64) {
        let count = &mut self.counts[bucket(ns)];
        *count = count.saturating_add(1);
        self.total += 1;
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Counts nothing any more.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.total += other.total;
    }

    /// The time that this share of all does not exceed; at most 6 % too long. 0 when nothing was counted.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut sum = 0;
        for (at, count) in self.counts.iter().enumerate() {
            sum += u64::from(*count);
            if sum >= wanted {
                return end_ns(at);
            }
        }
        0
    }

    /// Those above `ns`, as far as buckets tell.
    pub fn above(&self, ns: u64) -> u64 {
        self.counts[bucket(ns) + 1..].iter().map(|&count| u64::from(count)).sum()
    }

    /// The median distance from `center_ns` (MAD when that is the median).
    pub fn deviation(&self, center_ns: u64) -> u64 {
        let mut distances: Vec<(u64, u32)> = (0..BUCKETS)
            .zip(&self.counts)
            .filter(|(_, count)| **count > 0)
            .map(|(at, &count)| (end_ns(at).abs_diff(center_ns), count))
            .collect();
        distances.sort_unstable();
        let mut sum = 0;
        for (distance_ns, count) in distances {
            sum += u64::from(count);
            if sum * 2 >= self.total {
                return distance_ns;
            }
        }
        0
    }
}

fn bucket(ns: u64) -> usize {
    let doubling = ns.max(1).ilog2();
    if doubling < LOW_SHIFT {
        return 0;
    }
    if doubling >= HIGH_SHIFT {
        return BUCKETS - 1;
    }
    let sub = ns >> (doubling - SUB_SHIFT) & ((1 << SUB_SHIFT) - 1);
    1 + ((doubling - LOW_SHIFT) << SUB_SHIFT) as usize + sub as usize
}

/// The longest time in a bucket.
fn end_ns(bucket: usize) -> u64 {
    if bucket == 0 {
        return (1 << LOW_SHIFT) - 1;
    }
    let (doubling, sub) = ((bucket - 1) as u32 >> SUB_SHIFT, (bucket - 1) as u64 & ((1 << SUB_SHIFT) - 1));
    let width = 1_u64 << (doubling + LOW_SHIFT - SUB_SHIFT);
    ((1 << SUB_SHIFT) + sub + 1) * width - 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_is_told_within_a_sixteenth(ns in 256_u64..1 << HIGH_SHIFT) {
            let told = end_ns(bucket(ns));
            prop_assert!(told >= ns && told - ns <= ns / 16, "{ns} is told as {told}");
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_times(mut times in prop::collection::vec(256_u64..1 << 30, 1..300), share in 0.0_f64..1.0) {
            let mut histogram = Histogram::new();
            times.iter().for_each(|&ns| histogram.record(ns));
            times.sort_unstable();
            let exact = times[((times.len() as f64 * share).ceil() as usize).max(1) - 1];
            let told = histogram.quantile(share);
            prop_assert!(told >= exact && told - exact <= exact / 16, "{exact} is told as {told}");
        }
    }

    #[test]
    fn whatever_time_has_a_bucket_and_nothing_has_none() {
        let mut histogram = Histogram::new();
        assert_eq!((histogram.quantile(0.5), histogram.deviation(7), histogram.above(0)), (0, 0, 0));
        [0, 1, 255, 256, u64::MAX].into_iter().for_each(|ns| histogram.record(ns));
        assert_eq!((histogram.total(), histogram.quantile(0.5), histogram.above(300)), (5, 255, 1));
        let mut both = histogram.clone();
        both.add(&histogram);
        assert_eq!(both.total(), 10);
        both.clear();
        assert_eq!((both.total(), both.quantile(1.0)), (0, 0));
    }

    #[test]
    fn the_deviation_is_the_median_of_the_distances() {
        let mut histogram = Histogram::new();
        // Around 10000: distances of about 0, 1000, 2000, 3000, 90000.
        [10_000, 11_000, 8_000, 13_000, 100_000].into_iter().for_each(|ns| histogram.record(ns));
        let deviation = histogram.deviation(10_000);
        assert!((1_500..=2_700).contains(&deviation), "{deviation}");
    }
}
