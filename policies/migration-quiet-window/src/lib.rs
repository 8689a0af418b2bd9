//! Learns the period of a volume's load and moves it when it is quiet.
//!
//! `build-profile` folds the history at each period that the rules allow and takes the shortest one that explains
//! nearly as much of the variation as the best one does. `choose-time` takes the quiet candidate with the
//! shortest blackout, a little apart from the times that it chose before, so that volumes of one rhythm do not
//! all move together. Without a quiet candidate the shortest blackout wins, unless it is too long: then it refuses.

use std::collections::VecDeque;

use sdk::{
    Choice, Config, Forecast, Migration, PPM, Policy, Profile, Rules, Samples, Tick, Timing, Transfer,
    estimate_blackout_us, words,
};

/// Samples that are folded; older ones are left out.
const SAMPLES_MAX: usize = 512;

/// Chosen times remembered.
const CHOSEN_MAX: usize = 64;

/// A period explains the load when it explains this much of its variation.
const CONFIDENCE_PPM_MIN: u64 = 500_000;

/// The policy.
#[derive(Debug)]
pub struct QuietWindow {
    spacing_ms: u64,
    chosen_ms: VecDeque<u64>,
}

impl Policy for QuietWindow {
    const SUMMARY: &'static str = "moves when the learnt pattern is quiet";
    const SCHEMA: u32 = 500;

    fn new(config: &mut Config) -> Result<QuietWindow, String> {
        Ok(QuietWindow { spacing_ms: config.take("spacing-ms", 1_000)?, chosen_ms: VecDeque::new() })
    }

    fn save(&self) -> Vec<u8> {
        words::pack(self.chosen_ms.iter().copied())
    }

    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String> {
        match schema {
            // deadline-first remembers the same.
            QuietWindow::SCHEMA | 600 => {
                self.chosen_ms = words::unpack(bytes)?.into_iter().take(CHOSEN_MAX).collect();
                Ok(())
            }
            other => Err(format!("schema {other} is not one that quiet-window reads")),
        }
    }
}

impl Migration for QuietWindow {
    fn build_profile(&mut self, now: Tick, samples: &Samples, rules: Rules) -> Profile {
        let Some(history) = History::of(samples) else {
            return Profile {
                abstain: true,
                why: "too little history for a pattern".into(),
                ..Default::default()
            };
        };
        let folds: Vec<(usize, u64)> =
            history.periods(rules).map(|slots| (slots, history.explained_ppm(slots))).collect();
        let best = folds.iter().map(|&(_, explained)| explained).max().unwrap_or(0);
        // A multiple of the period explains as much; the shortest is the period.
        let found = folds.iter().find(|&&(_, explained)| explained >= best - best / 20);
        match found {
            Some(&(slots, explained)) if explained >= CONFIDENCE_PPM_MIN => {
                history.profile(now, slots, explained)
            }
            _ => Profile {
                abstain: true,
                why: format!("no period explains more than {} % of the load", best / 10_000),
                ..Default::default()
            },
        }
    }

    fn choose_time(
        &mut self,
        now: Tick,
        profile: &Profile,
        transfer: Transfer,
        link: &Forecast,
        candidates_ms: &[u64],
    ) -> Timing {
        let estimate = |at_ms| estimate_blackout_us(profile, transfer, link, at_ms);
        let estimate_us: Vec<u64> = candidates_ms.iter().map(|&at_ms| estimate(at_ms)).collect();
        let now_estimate_us = estimate(now.now_ms);
        // Now is a candidate like the others, and the first of equals.
        let times = std::iter::once((now.now_ms, now_estimate_us, Choice::Now)).chain(
            candidates_ms
                .iter()
                .zip(&estimate_us)
                .enumerate()
                .map(|(row, (&at_ms, &estimate))| (at_ms, estimate, Choice::At(row as u32))),
        );
        let best = times
            .filter(|(at_ms, ..)| *at_ms <= transfer.deadline_ms)
            .map(|(at_ms, estimate, choice)| {
                let busy = !is_quiet(profile, transfer, at_ms);
                let near = self.chosen_ms.iter().any(|chosen| chosen.abs_diff(at_ms) < self.spacing_ms);
                ((busy, estimate > transfer.blackout_max_us, near, estimate, at_ms), choice)
            })
            .min_by_key(|&(cost, _)| cost);
        let Some(((busy, too_long, _, estimate, at_ms), choice)) = best else {
            return Timing {
                estimate_us,
                now_estimate_us,
                why: "the deadline has passed".into(),
                ..Default::default()
            };
        };
        let why = match (busy, too_long) {
            (_, true) => format!(
                "every time costs a blackout of {estimate} us or more, and {} are allowed: allow more, or set a later deadline",
                transfer.blackout_max_us
            ),
            (true, false) => "no time until the deadline is quiet; the shortest blackout".into(),
            (false, false) => "quiet by the learnt pattern".into(),
        };
        if too_long {
            return Timing {
                choice: Choice::Refuse,
                estimate_us,
                now_estimate_us,
                why,
                ..Default::default()
            };
        }
        self.remember(at_ms);
        Timing { abstain: false, choice, estimate_us, now_estimate_us, why }
    }
}

impl QuietWindow {
    fn remember(&mut self, at_ms: u64) {
        self.chosen_ms.push_back(at_ms);
        if self.chosen_ms.len() > CHOSEN_MAX {
            self.chosen_ms.pop_front();
        }
    }
}

/// Quiet at a time: its slot has little load beside the mean. Without a pattern no time is.
fn is_quiet(profile: &Profile, transfer: Transfer, at_ms: u64) -> bool {
    profile.slots() > 1 && profile.load_ppm(profile.slot_at(at_ms)) <= u64::from(transfer.quiet_below_ppm)
}

/// Samples at even distance.
struct History<'a> {
    samples: &'a Samples,
    first: usize,
    step_ms: u64,
}

impl<'a> History<'a> {
    fn of(samples: &'a Samples) -> Option<History<'a>> {
        let rows = samples.at_ms.len();
        let first = rows.saturating_sub(SAMPLES_MAX);
        let span_ms = samples.at_ms.last()?.checked_sub(*samples.at_ms.get(first)?)?;
        let step_ms = span_ms / (rows - first).saturating_sub(1).max(1) as u64;
        (rows - first >= 8 && step_ms > 0).then_some(History { samples, first, step_ms })
    }

    /// Periods, in samples, that the rules allow and the history shows twice.
    fn periods(&self, rules: Rules) -> std::ops::RangeInclusive<usize> {
        let rows = (self.samples.at_ms.len() - self.first) as u64;
        let shortest = rules.period_min_ms.div_ceil(self.step_ms).max(2);
        let longest = (rules.period_max_ms / self.step_ms).min(rows / 2);
        shortest as usize..=longest as usize
    }

    /// Share of the variation of the load that is gone when each sample is told by its place in the period.
    fn explained_ppm(&self, slots: usize) -> u64 {
        let load: Vec<i128> = self.samples.iops[self.first..].iter().map(|&iops| i128::from(iops)).collect();
        let mut sums = vec![(0_i128, 0_i128); slots];
        for (row, &iops) in load.iter().enumerate() {
            let (sum, count) = &mut sums[row % slots];
            *sum += iops;
            *count += 1;
        }
        let mean = load.iter().sum::<i128>() / load.len() as i128;
        let total: i128 = load.iter().map(|iops| (iops - mean).pow(2)).sum();
        let within: i128 = load
            .iter()
            .enumerate()
            .map(|(row, iops)| {
                let (sum, count) = sums[row % slots];
                (iops - sum / count.max(1)).pow(2)
            })
            .sum();
        // Many slots with few samples each explain noise as well: that is taken back.
        let rows = load.len() as i128;
        let unexplained = within * (rows - 1) / (rows - slots as i128).max(1);
        if total == 0 { 0 } else { ((total - unexplained).max(0) * i128::from(PPM) / total) as u64 }
    }

    fn profile(&self, now: Tick, slots: usize, explained: u64) -> Profile {
        let folded = |column: &[u64]| -> Vec<u64> {
            let column = &column[self.first..];
            let of = |slot| column.iter().skip(slot).step_by(slots);
            (0..slots).map(|slot| of(slot).sum::<u64>() / of(slot).count().max(1) as u64).collect()
        };
        let period_ms = self.step_ms * slots as u64;
        Profile {
            abstain: false,
            origin_ms: self.samples.at_ms[self.first].min(now.now_ms),
            slot_ms: self.step_ms,
            iops: folded(&self.samples.iops),
            dirty_bytes_per_s: folded(&self.samples.dirty_bytes_per_s),
            confidence_ppm: explained.min(PPM.into()) as u32,
            why: format!(
                "the load repeats each {period_ms} ms, which explains {} % of it",
                explained / 10_000
            ),
        }
    }
}

sdk::export!(migration: QuietWindow, wit: "../../wit");

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        quiet_below_ppm: 300_000,
        blackout_max_us: 500_000,
        period_min_ms: 10_000,
        period_max_ms: 300_000,
    };

    fn policy() -> QuietWindow {
        QuietWindow::new(&mut Config::default()).unwrap()
    }

    /// 45 s hot, 15 s quiet, five times, with some noise.
    fn samples(noise: u64) -> Samples {
        let mut samples = Samples::default();
        for second in 0..300_u64 {
            let hot = second % 60 < 45;
            let load = if hot { 1_000 } else { 20 } + second * 7_919 % (noise + 1);
            samples.at_ms.push(1_000_000 + second * 1_000);
            samples.iops.push(load);
            samples.bytes_per_s.push(load * 4_096);
            samples.dirty_bytes_per_s.push(load * 40_960);
        }
        samples
    }

    fn learnt() -> Profile {
        policy().build_profile(at(1_300_000), &samples(100), RULES)
    }

    fn at(now_ms: u64) -> Tick {
        Tick { now_ms, ..Default::default() }
    }

    fn transfer(deadline_ms: u64) -> Transfer {
        Transfer {
            size_bytes: 100 << 20,
            hand_over_us: 2_000,
            deadline_ms,
            blackout_max_us: RULES.blackout_max_us,
            quiet_below_ppm: RULES.quiet_below_ppm,
        }
    }

    fn link() -> Forecast {
        Forecast { from_ms: vec![0], free_bytes_per_s: vec![100 << 20] }
    }

    #[test]
    fn the_period_is_found_in_noise_and_none_where_there_is_none() {
        let profile = learnt();
        assert_eq!((profile.slots(), profile.slot_ms), (60, 1_000), "{}", profile.why);
        assert!(profile.confidence_ppm > 900_000);
        let constant = Samples { iops: vec![500; 300], ..samples(0) };
        assert!(policy().build_profile(at(1_300_000), &constant, RULES).abstain);
        assert!(policy().build_profile(at(1_300_000), &Samples::default(), RULES).abstain);
        let mut seed = 1_u64;
        let noise = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 54
        });
        let aperiodic = Samples { iops: noise.take(300).collect(), ..samples(0) };
        assert!(policy().build_profile(at(1_300_000), &aperiodic, RULES).abstain);
    }

    #[test]
    fn nearly_all_requests_start_in_the_quiet_part() {
        let profile = learnt();
        let mut policy = policy();
        let mut quiet = 0;
        for request in 0..100_u64 {
            let now = 1_300_000 + request * 9_973;
            let candidates: Vec<u64> = (1..=120).map(|second| now + second * 1_000).collect();
            let timing = policy.choose_time(at(now), &profile, transfer(now + 120_000), &link(), &candidates);
            let start = match timing.choice {
                Choice::At(row) => candidates[row as usize],
                Choice::Now => now,
                Choice::Refuse => panic!("{}", timing.why),
            };
            quiet += u64::from((start - 1_000_000) % 60_000 >= 45_000);
        }
        assert!(quiet >= 95, "{quiet}");
    }

    #[test]
    fn a_close_deadline_is_obeyed_and_a_hopeless_one_refused() {
        let profile = learnt();
        let now = 1_300_000;
        let candidates: Vec<u64> = (1..=120).map(|second| now + second * 1_000).collect();
        let soon = policy().choose_time(at(now), &profile, transfer(now + 5_000), &link(), &candidates);
        assert!(matches!(soon.choice, Choice::Now | Choice::At(0..5)), "{soon:?}");
        assert!(soon.why.contains("no time until the deadline is quiet"), "{}", soon.why);
        let strict = Transfer { blackout_max_us: 1_000, ..transfer(now + 5_000) };
        let refused = policy().choose_time(at(now), &profile, strict, &link(), &candidates);
        assert_eq!(refused.choice, Choice::Refuse);
        assert!(refused.why.contains("allow more"), "{}", refused.why);
    }

    #[test]
    fn volumes_of_one_rhythm_move_apart_also_after_a_hand_over() {
        let profile = learnt();
        let now = 1_300_000;
        let candidates: Vec<u64> = (1..=60).map(|second| now + second * 1_000).collect();
        let mut starts = std::collections::BTreeSet::new();
        let mut policy = policy();
        for _ in 0..8 {
            let mut next = self::policy();
            next.load(QuietWindow::SCHEMA, &policy.save()).unwrap();
            policy = next;
            let timing = policy.choose_time(at(now), &profile, transfer(now + 60_000), &link(), &candidates);
            let Choice::At(row) = timing.choice else { panic!("{timing:?}") };
            assert!(starts.insert(row), "{row} twice");
        }
    }
}
