//! Learns the period of a volume's load and moves it when it is quiet.
//!
//! `build-profile` folds the history at each period that the rules allow and takes the shortest one that explains
//! nearly as much of the variation as the best one does. `choose-time` takes the first quiet candidate whose blackout is
//! about as short as any, a little apart from the times that it chose before, so that volumes of one rhythm do not
//! all move together. Without a quiet candidate a short blackout wins, unless even that is too long: then it refuses.

use std::collections::VecDeque;

use sdk::{
    Choice, Config, Forecast, Migration, PPM, Policy, Profile, Rules, Samples, Tick, Timing, Transfer,
    estimate_blackout_us, words,
};

/// Samples that are folded; older ones are left out.
const SAMPLES_MAX: usize = 512;

/// Fewer samples show no pattern.
const SAMPLES_MIN: usize = 8;

/// What the most load counts as while periods are compared, so that sums of squares stay small.
const SCALE: u128 = 1 << 20;

/// Periods that are looked at more closely, and steps to either side of each.
const REFINED_MAX: usize = 16;
const REFINEMENTS: usize = 8;

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
        match history.period(rules) {
            Some((period, explained)) if explained >= CONFIDENCE_PPM_MIN => {
                history.profile(now, period, explained)
            }
            found => Profile {
                abstain: true,
                why: format!(
                    "no period explains more than {} % of the load",
                    found.map_or(0, |(_, explained)| explained) / 10_000
                ),
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
        let times: Vec<(u64, u64, Choice)> =
            times.filter(|(at_ms, ..)| *at_ms <= transfer.deadline_ms).collect();
        let is_bad = |at_ms: u64, estimate: u64| {
            (!is_quiet(profile, transfer, at_ms), estimate > transfer.blackout_max_us)
        };
        let shortest = times.iter().map(|&(at_ms, estimate, _)| (is_bad(at_ms, estimate), estimate)).min();
        // Periods are not waited for because one quiet second looks a little quieter than another.
        let enough = shortest.map_or(0, |(_, estimate)| estimate.saturating_add(estimate / 4));
        let best = times
            .into_iter()
            .map(|(at_ms, estimate, choice)| {
                let near = self.chosen_ms.iter().any(|chosen| chosen.abs_diff(at_ms) < self.spacing_ms);
                let (busy, too_long) = is_bad(at_ms, estimate);
                ((busy, too_long, estimate > enough, near, at_ms), estimate, choice)
            })
            .min_by_key(|&(cost, ..)| cost);
        let Some(((busy, too_long, .., at_ms), estimate, choice)) = best else {
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

/// What the newest samples say, each of the interval that began at its time.
struct History<'a> {
    samples: &'a Samples,
    first: usize,
    /// Usual time from one sample to the next.
    step_ms: u64,
    /// Requests per second of each.
    load: Scaled,
}

/// A column so that its largest value is [`SCALE`].
struct Scaled {
    values: Vec<i64>,
    most: u64,
}

impl Scaled {
    fn of(column: &[u64]) -> Scaled {
        let most = column.iter().copied().max().unwrap_or(0).max(1);
        let scaled = |value: &u64| (u128::from(*value) * SCALE / u128::from(most)) as i64;
        Scaled { values: column.iter().map(scaled).collect(), most }
    }

    fn unscaled(&self, value: i64) -> u64 {
        (value as u128 * u128::from(self.most)).div_ceil(SCALE) as u64
    }
}

/// A period: so many slots of equal length.
#[derive(Clone, Copy)]
struct Period {
    slots: usize,
    slot_ms: u64,
}

impl Period {
    fn ms(self) -> u64 {
        self.slot_ms * self.slots as u64
    }
}

impl<'a> History<'a> {
    fn of(samples: &'a Samples) -> Option<History<'a>> {
        let first = samples.at_ms.len().saturating_sub(SAMPLES_MAX);
        let at_ms = &samples.at_ms[first..];
        if at_ms.len() < SAMPLES_MIN {
            return None;
        }
        // Some samples may be missing, so that the mean says nothing.
        let mut steps: Vec<u64> = at_ms.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        steps.sort_unstable();
        let step_ms = steps[steps.len() / 2];
        let load = Scaled::of(&samples.iops[first..]);
        (step_ms > 0).then_some(History { samples, first, step_ms, load })
    }

    fn at_ms(&self) -> &[u64] {
        &self.samples.at_ms[self.first..]
    }

    /// The shortest period that explains nearly as much as the best one, and how much that is in millionths.
    fn period(&self, rules: Rules) -> Option<(Period, u64)> {
        let judged = |period: Period| (period, self.explained_ppm(period));
        let coarse: Vec<(Period, u64)> = self.periods(rules).map(judged).collect();
        let most = |all: &[(Period, u64)]| all.iter().map(|&(_, explained)| explained).max();
        let promising = most(&coarse)? / 4 * 3;
        let promising = coarse.into_iter().filter(|&(_, explained)| explained >= promising);
        let fine: Vec<(Period, u64)> =
            promising.take(REFINED_MAX).map(|found| self.refined(found, rules)).collect();
        // A multiple of the period explains as much; the shortest is the period.
        let best = most(&fine)?;
        fine.into_iter().find(|&(_, explained)| explained >= best - best / 20)
    }

    /// Periods of whole steps that the rules allow and the history shows twice.
    fn periods(&self, rules: Rules) -> impl Iterator<Item = Period> + use<> {
        let (slot_ms, at_ms) = (self.step_ms, self.at_ms());
        let span_ms = at_ms[at_ms.len() - 1].saturating_sub(at_ms[0]) + slot_ms;
        let shortest = rules.period_min_ms.div_ceil(slot_ms).max(2) as usize;
        let longest = (rules.period_max_ms.min(span_ms / 2) / slot_ms) as usize;
        (shortest..=longest).map(move |slots| Period { slots, slot_ms })
    }

    /// The same number of slots, each a little longer or shorter: periods are not whole steps.
    fn refined(&self, found: (Period, u64), rules: Rules) -> (Period, u64) {
        let Period { slots, slot_ms } = found.0;
        // Half a slot of the whole period, to either side.
        let reach = (slot_ms / (2 * slots as u64)).max(1);
        let near = (slot_ms.saturating_sub(reach).max(1)..=slot_ms + reach)
            .step_by((reach as usize).div_ceil(REFINEMENTS))
            .map(|slot_ms| Period { slots, slot_ms })
            .filter(|period| (rules.period_min_ms..=rules.period_max_ms).contains(&period.ms()));
        near.map(|period| (period, self.explained_ppm(period)))
            .fold(found, |best, one| if one.1 > best.1 { one } else { best })
    }

    /// Where in a period a sample lies: a slot, and the share of it, of its length, that is the next slot's. Its time
    /// counts, and not how many came before it: a sample that is missing moves no other.
    fn place(&self, at_ms: u64, period: Period) -> (usize, i64) {
        let offset_ms = at_ms.saturating_sub(self.at_ms()[0]) % period.ms();
        ((offset_ms / period.slot_ms) as usize, (offset_ms % period.slot_ms) as i64)
    }

    /// The mean of each slot of what samples say.
    fn fold(&self, column: &Scaled, period: Period) -> Vec<i64> {
        let length = period.slot_ms as i64;
        let mut sums = vec![(0_i64, 0_i64); period.slots];
        for (&at_ms, &value) in self.at_ms().iter().zip(&column.values) {
            let (slot, over) = self.place(at_ms, period);
            for (slot, part) in [(slot, length - over), ((slot + 1) % period.slots, over)] {
                sums[slot].0 += value * part;
                sums[slot].1 += part;
            }
        }
        let mean = |(sum, parts): (i64, i64)| (parts > 0).then(|| sum / parts);
        let means: Vec<Option<i64>> = sums.into_iter().map(mean).collect();
        // Of a slot that no sample was in, as much is expected as of the busier one beside it. The period is gone through
        // twice, so that what lies beside the first slot is known too.
        let nearest = |slots: &mut dyn Iterator<Item = usize>| {
            let (mut nearest, mut all) = (None, vec![None; period.slots]);
            for slot in slots {
                nearest = means[slot % period.slots].or(nearest);
                all[slot % period.slots] = nearest;
            }
            all
        };
        let before = nearest(&mut (0..2 * period.slots));
        let after = nearest(&mut (0..2 * period.slots).rev());
        let beside = before.into_iter().zip(after).map(|(before, after)| before.max(after).unwrap_or(0));
        means.iter().zip(beside).map(|(mean, beside)| mean.unwrap_or(beside)).collect()
    }

    /// Share of the variation of the load that is gone when each sample is told by its place in the period.
    fn explained_ppm(&self, period: Period) -> u64 {
        let (load, length) = (&self.load.values, period.slot_ms as i64);
        let folded = self.fold(&self.load, period);
        let rows = load.len() as i64;
        let mean = load.iter().sum::<i64>() / rows;
        let total: i64 = load.iter().map(|load| (load - mean).pow(2)).sum();
        let within: i64 = self
            .at_ms()
            .iter()
            .zip(load)
            .map(|(&at_ms, load)| {
                let (slot, over) = self.place(at_ms, period);
                let next = (slot + 1) % period.slots;
                (load - (folded[slot] * (length - over) + folded[next] * over) / length).pow(2)
            })
            .sum();
        // Many slots with few samples each explain noise as well: that is taken back.
        let unexplained =
            i128::from(within) * i128::from(rows - 1) / i128::from((rows - period.slots as i64).max(1));
        let total = i128::from(total);
        if total == 0 { 0 } else { ((total - unexplained).max(0) * i128::from(PPM) / total) as u64 }
    }

    fn profile(&self, now: Tick, period: Period, explained: u64) -> Profile {
        let folded = |column: &[u64]| -> Vec<u64> {
            let column = Scaled::of(&column[self.first..]);
            self.fold(&column, period).into_iter().map(|value| column.unscaled(value)).collect()
        };
        Profile {
            abstain: false,
            origin_ms: self.at_ms()[0].min(now.now_ms),
            slot_ms: period.slot_ms,
            iops: folded(&self.samples.iops),
            dirty_bytes_per_s: folded(&self.samples.dirty_bytes_per_s),
            confidence_ppm: explained.min(PPM.into()) as u32,
            why: format!(
                "the load repeats each {} ms, which explains {} % of it",
                period.ms(),
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
    fn a_long_time_without_samples_is_no_part_of_the_pattern() {
        let mut all = samples(100);
        // Ten periods in which nobody was there to hear how much there was to do.
        for (at_ms, second) in all.at_ms.iter_mut().zip(0..) {
            *at_ms += if second >= 150 { 600_000 } else { 0 };
        }
        let profile = policy().build_profile(at(1_900_000), &all, RULES);
        assert_eq!((profile.abstain, profile.slots()), (false, 60), "{}", profile.why);
        assert_eq!(profile.iops, learnt().iops);
    }

    #[test]
    fn samples_that_are_missing_or_late_move_no_others() {
        let mut all = samples(100);
        // Each is a little late, and a tenth of them is missing, among them whole seconds of a hand-over.
        let lost = |second: usize| second % 11 == 3 || (100..104).contains(&second);
        for column in [&mut all.at_ms, &mut all.iops, &mut all.bytes_per_s, &mut all.dirty_bytes_per_s] {
            let mut second = 0;
            column.retain(|_| {
                second += 1;
                !lost(second - 1)
            });
        }
        all.at_ms.iter_mut().for_each(|at_ms| *at_ms += *at_ms / 1_000 * 7_919 % 120);
        let profile = policy().build_profile(at(1_300_000), &all, RULES);
        let period_ms = profile.slot_ms * profile.slots() as u64;
        assert!(period_ms.abs_diff(60_000) <= 500, "{period_ms}: {}", profile.why);
        assert!(profile.confidence_ppm > 850_000, "{}", profile.confidence_ppm);
        // Five periods later it is still where it was.
        for second in 0..60 {
            let at_ms = 1_600_000 + second * 1_000 + 500;
            let quiet = is_quiet(&profile, transfer(u64::MAX), at_ms);
            let edge = [44, 45, 59, 0].contains(&((at_ms - 1_000_000) / 1_000 % 60));
            assert!(edge || quiet == ((at_ms - 1_000_000) % 60_000 >= 45_000), "second {second}: {quiet}");
        }
    }

    #[test]
    fn a_period_that_is_no_multiple_of_the_step_is_found() {
        let mut all = Samples::default();
        for second in 0..400_u64 {
            // 12.34 s, of which 9 s are hot; each sample is of the second from its time on.
            let hot = (0..100).filter(|part| (second * 1_000 + part * 10) % 12_340 < 9_000).count() as u64;
            all.at_ms.push(5_000 + second * 1_000);
            all.iops.push(20 + hot * 5);
            all.bytes_per_s.push(0);
            all.dirty_bytes_per_s.push(hot << 20);
        }
        let profile = policy().build_profile(at(405_000), &all, RULES);
        let period_ms = profile.slot_ms * profile.slots() as u64;
        let periods = (period_ms + 6_170) / 12_340;
        assert!(period_ms.abs_diff(periods * 12_340) <= 40 * periods, "{period_ms}: {}", profile.why);
        assert!(profile.confidence_ppm > 850_000, "{}", profile.confidence_ppm);
    }

    #[test]
    fn a_period_is_not_waited_for_because_it_looks_a_little_quieter() {
        let profile = learnt();
        let now = 1_300_000;
        let candidates: Vec<u64> = (1..=240).map(|second| now + second * 1_000).collect();
        let timing = policy().choose_time(at(now), &profile, transfer(now + 240_000), &link(), &candidates);
        let Choice::At(row) = timing.choice else { panic!("{timing:?}") };
        assert!(row < 60, "row {row}");
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
