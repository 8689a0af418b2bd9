//! Moves a volume as soon as the blackout is short enough; when no time until the deadline is, at the one with the
//! shortest blackout. It never refuses: what has a deadline is moved by then.
//!
//! Its profile is the mean of the newest samples: what the volume did lately is what it does next.

use std::collections::VecDeque;

use sdk::{
    Choice, Config, Forecast, Migration, Policy, Profile, Rules, Samples, Tick, Timing, Transfer,
    estimate_blackout_us, words,
};

/// Chosen times remembered.
const CHOSEN_MAX: usize = 64;

/// The policy.
#[derive(Debug)]
pub struct DeadlineFirst {
    recent: usize,
    spacing_ms: u64,
    chosen_ms: VecDeque<u64>,
}

impl Policy for DeadlineFirst {
    const SUMMARY: &'static str = "as soon as the blackout is short enough";
    const SCHEMA: u32 = 600;

    fn new(config: &mut Config) -> Result<DeadlineFirst, String> {
        let recent = config.take("recent-samples", 60)?;
        if recent == 0 {
            return Err("recent-samples must be at least 1".into());
        }
        Ok(DeadlineFirst {
            recent,
            spacing_ms: config.take("spacing-ms", 1_000)?,
            chosen_ms: VecDeque::new(),
        })
    }

    fn save(&self) -> Vec<u8> {
        words::pack(self.chosen_ms.iter().copied())
    }

    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String> {
        match schema {
            // quiet-window remembers the same.
            DeadlineFirst::SCHEMA | 500 => {
                self.chosen_ms = words::unpack(bytes)?.into_iter().take(CHOSEN_MAX).collect();
                Ok(())
            }
            other => Err(format!("schema {other} is not one that deadline-first reads")),
        }
    }
}

impl Migration for DeadlineFirst {
    fn build_profile(&mut self, now: Tick, samples: &Samples, _: Rules) -> Profile {
        if samples.at_ms.is_empty() {
            return Profile { abstain: true, why: "no history".into(), ..Default::default() };
        }
        let newest = |column: &[u64]| {
            let newest = &column[column.len().saturating_sub(self.recent)..];
            vec![newest.iter().sum::<u64>() / newest.len().max(1) as u64]
        };
        Profile {
            abstain: false,
            origin_ms: samples.at_ms[0].min(now.now_ms),
            slot_ms: 1_000,
            iops: newest(&samples.iops),
            dirty_bytes_per_s: newest(&samples.dirty_bytes_per_s),
            confidence_ppm: 0,
            why: format!("the mean of the newest {} samples", self.recent.min(samples.at_ms.len())),
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
        let later = candidates_ms.iter().zip(&estimate_us).enumerate();
        let later = later
            .filter(|(_, (at_ms, _))| **at_ms <= transfer.deadline_ms)
            .map(|(row, (&at_ms, &estimate))| (at_ms, estimate, Choice::At(row as u32)));
        let first = std::iter::once((now.now_ms, now_estimate_us, Choice::Now));
        // Long blackouts by their length, short ones by their time; those chosen before share the link.
        let best = first.chain(later).min_by_key(|&(at_ms, estimate, _)| {
            let excess = if estimate > transfer.blackout_max_us { estimate } else { 0 };
            (excess, self.chosen_ms.iter().any(|chosen| chosen.abs_diff(at_ms) < self.spacing_ms), at_ms)
        });
        let (at_ms, estimate, choice) = best.unwrap_or((now.now_ms, now_estimate_us, Choice::Now));
        let why = if estimate > transfer.blackout_max_us {
            "the deadline comes before any short blackout; the shortest there is".into()
        } else {
            "the first time with a short blackout".into()
        };
        self.chosen_ms.push_back(at_ms);
        if self.chosen_ms.len() > CHOSEN_MAX {
            self.chosen_ms.pop_front();
        }
        Timing { abstain: false, choice, estimate_us, now_estimate_us, why }
    }
}

sdk::export!(migration: DeadlineFirst, wit: "../../wit");

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tick = Tick { now_ms: 10_000, seed: 0, epoch: 1 };

    fn policy() -> DeadlineFirst {
        DeadlineFirst::new(&mut Config::default()).unwrap()
    }

    fn choose(policy: &mut DeadlineFirst, free: [u64; 2], deadline_ms: u64) -> Timing {
        let profile =
            Profile { slot_ms: 1_000, iops: vec![10], dirty_bytes_per_s: vec![50], ..Default::default() };
        let transfer =
            Transfer { size_bytes: 1_000, deadline_ms, blackout_max_us: 1_000_000, ..Default::default() };
        let link = Forecast { from_ms: vec![0, 13_000], free_bytes_per_s: free.to_vec() };
        policy.choose_time(NOW, &profile, transfer, &link, &[11_000, 12_000, 13_000, 14_000])
    }

    #[test]
    fn the_first_short_blackout_wins_and_the_next_volume_goes_elsewhere() {
        let mut policy = policy();
        assert_eq!(choose(&mut policy, [10, 10_000], 20_000).choice, Choice::At(2));
        let mut next = self::policy();
        next.load(500, &policy.save()).unwrap();
        assert_eq!(choose(&mut next, [10, 10_000], 20_000).choice, Choice::At(3));
        assert!(next.load(1, &[]).is_err());
    }

    #[test]
    fn a_deadline_is_kept_at_any_price() {
        let timing = choose(&mut policy(), [10, 10_000], 11_500);
        assert_ne!(timing.choice, Choice::Refuse);
        assert!(timing.why.contains("before any short blackout"), "{}", timing.why);
    }

    #[test]
    fn only_the_newest_samples_count() {
        let mut samples = Samples { at_ms: (0..100).collect(), iops: vec![0; 40], ..Default::default() };
        samples.iops.extend([6; 60]);
        samples.dirty_bytes_per_s = samples.iops.clone();
        assert_eq!(policy().build_profile(NOW, &samples, Rules::default()).iops, [6]);
    }
}
