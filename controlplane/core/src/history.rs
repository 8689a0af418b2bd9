//! The load of volumes as it was: second by second for those that do something, and by five minutes for all (F14.a).

use std::collections::{BTreeMap, VecDeque};

use contract::{VolumeId, VolumeReport};
use verdict::Samples;

/// What a report looks back on.
const FINE_MS: u64 = 1_000;
/// Seconds remembered of a busy volume.
const FINE_LEN: usize = 600;
/// Five minutes each: a week.
const COARSE_LEN: usize = 2_016;
const COARSE_MS: u64 = 300_000;
/// Samples that are shown of a longer time, each a mean of several then: so many a policy looks at.
const SHOWN_MAX: usize = 512;
/// Fewer of five minutes show nothing.
const COARSE_MIN: usize = 8;

/// Longest period that is looked for among seconds; longer ones show in five minutes.
pub const FINE_PERIOD_MAX_MS: u64 = FINE_LEN as u64 * FINE_MS;
/// Longest period that can be looked for at all: half of what is remembered, so that it is seen twice.
pub const PERIOD_MAX_MS: u64 = COARSE_LEN as u64 * COARSE_MS / 2;

/// Load in the interval that began at `at_ms`. Rates of bytes are kept in KiB, so that a sample is small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    at_ms: u64,
    iops: u32,
    kib_per_s: u32,
    dirty_kib_per_s: u32,
}

#[derive(Clone, Debug, Default)]
struct Sum {
    began_ms: u64,
    count: u64,
    iops: u64,
    kib: u64,
    dirty_kib: u64,
}

#[derive(Clone, Debug, Default)]
struct History {
    last_ms: u64,
    idle: usize,
    fine: Option<VecDeque<Sample>>,
    sum: Sum,
    coarse: VecDeque<Sample>,
}

/// Of all volumes.
#[derive(Clone, Debug, Default)]
pub struct Histories {
    volumes: BTreeMap<VolumeId, History>,
    fine: usize,
}

impl Histories {
    /// A report of a volume; more often than once a second nothing is kept. Says whether it was.
    pub fn sample(&mut self, report: &VolumeReport, now_ms: u64, fine_max: usize) -> bool {
        let kib = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        let sample = Sample {
            at_ms: now_ms.saturating_sub(FINE_MS),
            iops: report.iops,
            kib_per_s: kib(report.bytes_per_s),
            dirty_kib_per_s: kib(report.dirty_bytes_per_s),
        };
        let idle = sample.iops == 0 && sample.kib_per_s == 0;
        if idle && !self.volumes.contains_key(&report.volume) {
            return false;
        }
        let history = self.volumes.entry(report.volume).or_default();
        if history.last_ms > 0 && now_ms.saturating_sub(history.last_ms) < 900 {
            return false;
        }
        history.last_ms = now_ms.max(1);
        history.idle = if idle { history.idle + 1 } else { 0 };
        history.add_coarse(sample);
        match &mut history.fine {
            Some(_) if history.idle > FINE_LEN => {
                history.fine = None;
                self.fine -= 1;
            }
            Some(fine) => {
                if fine.len() == FINE_LEN {
                    fine.pop_front();
                }
                fine.push_back(sample);
            }
            None if !idle && self.fine < fine_max => {
                history.fine = Some(VecDeque::from([sample]));
                self.fine += 1;
            }
            None => {}
        }
        true
    }

    /// Forgets a volume.
    pub fn remove(&mut self, volume: VolumeId) {
        if self.volumes.remove(&volume).is_some_and(|history| history.fine.is_some()) {
            self.fine -= 1;
        }
    }

    /// What a policy sees: seconds if there is at least a minute of them, else five minutes.
    pub fn samples(&self, volume: VolumeId) -> Samples {
        let Some(history) = self.volumes.get(&volume) else { return Samples::default() };
        shown(history.seconds().unwrap_or(&history.coarse), 1)
    }

    /// Whether [`Histories::samples`] are seconds.
    pub fn shows_seconds(&self, volume: VolumeId) -> bool {
        self.volumes.get(&volume).is_some_and(|history| history.seconds().is_some())
    }

    /// What a policy sees when seconds show no pattern: five minutes, or means of several once there are more than it
    /// looks at. With the shortest period that these can show; none if there are too few.
    pub fn coarse(&self, volume: VolumeId) -> Option<(Samples, u64)> {
        let history = self.volumes.get(&volume)?;
        let of_each = history.coarse.len().div_ceil(SHOWN_MAX).max(1);
        let enough = history.coarse.len() >= COARSE_MIN;
        enough.then(|| (shown(&history.coarse, of_each), 2 * COARSE_MS * of_each as u64))
    }
}

/// As a policy is told it: the mean of each `of_each` that follow each other.
fn shown(all: &VecDeque<Sample>, of_each: usize) -> Samples {
    let mut samples = Samples::default();
    let mut all = all.iter().peekable();
    while let Some(first) = all.peek() {
        samples.at_ms.push(first.at_ms);
        let (mut count, mut iops, mut kib, mut dirty) = (0, 0, 0, 0);
        for sample in all.by_ref().take(of_each) {
            count += 1;
            iops += u64::from(sample.iops);
            kib += u64::from(sample.kib_per_s);
            dirty += u64::from(sample.dirty_kib_per_s);
        }
        samples.iops.push(iops / count);
        samples.bytes_per_s.push((kib / count) << 10);
        samples.dirty_bytes_per_s.push((dirty / count) << 10);
    }
    samples
}

impl History {
    fn seconds(&self) -> Option<&VecDeque<Sample>> {
        self.fine.as_ref().filter(|fine| fine.len() >= 60 || self.coarse.is_empty())
    }

    fn add_coarse(&mut self, sample: Sample) {
        let sum = &mut self.sum;
        if sum.count == 0 {
            sum.began_ms = sample.at_ms;
        }
        sum.count += 1;
        sum.iops += u64::from(sample.iops);
        sum.kib += u64::from(sample.kib_per_s);
        sum.dirty_kib += u64::from(sample.dirty_kib_per_s);
        if sample.at_ms.saturating_sub(sum.began_ms) >= COARSE_MS {
            let mean = |of: u64| (of / sum.count) as u32;
            let (iops, kib_per_s, dirty_kib_per_s) = (mean(sum.iops), mean(sum.kib), mean(sum.dirty_kib));
            if self.coarse.len() == COARSE_LEN {
                self.coarse.pop_front();
            }
            self.coarse.push_back(Sample { at_ms: sum.began_ms, iops, kib_per_s, dirty_kib_per_s });
            *sum = Sum::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::{Credits, Epoch, Serving};

    use super::*;

    fn report(volume: u64, iops: u32) -> VolumeReport {
        VolumeReport {
            volume: VolumeId(volume),
            epoch: Epoch(1),
            worker: 0,
            serving: Serving::Active,
            nqn: String::new(),
            size_bytes: 0,
            iops,
            bytes_per_s: u64::from(iops) * 4_096,
            dirty_bytes_per_s: 1_024,
            p99_us: 0,
            errors: 0,
            credits: Credits::default(),
        }
    }

    #[test]
    fn a_second_is_kept_once_and_ten_minutes_of_them() {
        let mut all = Histories::default();
        assert!(all.sample(&report(1, 5), 1_000, 10));
        assert!(!all.sample(&report(1, 6), 1_250, 10));
        (2..=1_000).for_each(|second| {
            all.sample(&report(1, second as u32), second * 1_000, 10);
        });
        let samples = all.samples(VolumeId(1));
        assert_eq!(samples.iops.len(), FINE_LEN);
        assert_eq!((samples.at_ms[0], samples.iops[0]), (400_000, 401));
        assert_eq!(samples.bytes_per_s[0], 401 * 4_096);
        assert_eq!(all.volumes[&VolumeId(1)].coarse.len(), 3);
    }

    #[test]
    fn idle_volumes_take_no_memory_and_what_falls_idle_gives_it_back() {
        let mut all = Histories::default();
        assert!(!all.sample(&report(1, 0), 1_000, 1));
        assert!(all.volumes.is_empty());
        all.sample(&report(1, 1), 1_000, 1);
        all.sample(&report(2, 1), 1_000, 1);
        assert_eq!(all.fine, 1, "one only was allowed");
        (2..700).for_each(|second| {
            let mut idle = report(1, 0);
            idle.dirty_bytes_per_s = 0;
            all.sample(&idle, second * 1_000, 1);
            all.sample(&report(2, 1), second * 1_000, 1);
        });
        assert_eq!(all.fine, 1);
        assert!(all.volumes[&VolumeId(1)].fine.is_none() && all.volumes[&VolumeId(2)].fine.is_some());
        all.remove(VolumeId(2));
        assert_eq!(all.fine, 0);
    }

    #[test]
    fn a_week_is_shown_in_as_many_samples_as_a_policy_looks_at() {
        let mut all = Histories::default();
        let mut at = |seconds: std::ops::RangeInclusive<u64>, step: u64| {
            for second in seconds.step_by(step as usize) {
                // Busy in every second hour.
                let iops = if second / 3_600 % 2 == 0 { 100 } else { 10 };
                all.sample(&report(1, iops), second * 1_000, 1);
            }
            all.coarse(VolumeId(1))
        };
        assert_eq!(at(1..=1_000, 1), None, "too little");
        let (samples, shortest) = at(1_001..=20_000, 1).expect("five hours");
        assert_eq!((samples.iops[0], samples.iops[20], shortest), (100, 10, 600_000));
        // Once a minute is enough to count as a mean.
        let (samples, shortest) = at(20_001..=700_000, 60).expect("a week");
        assert!(
            samples.iops.len() <= SHOWN_MAX && shortest >= 1_200_000,
            "{} {shortest}",
            samples.iops.len()
        );
        let span = samples.at_ms.last().expect("many") - samples.at_ms[0];
        assert!(span > 2 * 86_400_000 && samples.iops.contains(&100) && samples.iops.contains(&10), "{span}");
        assert_eq!(all.coarse(VolumeId(2)), None);
    }

    #[test]
    fn without_a_minute_of_seconds_the_coarse_ones_are_shown() {
        let mut all = Histories::default();
        (1..1_000).for_each(|second| {
            all.sample(&report(2, 7), second * 1_000, 0);
        });
        let samples = all.samples(VolumeId(2));
        assert_eq!(samples.iops, [7, 7, 7]);
        assert_eq!(samples.at_ms, [0, 301_000, 602_000]);
    }
}
