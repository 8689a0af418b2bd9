//! Weighs producers by their capacity, corrected by how busy they are beside the others and by what fails. The
//! correction is smoothed, so that new leases do not all run to whoever was idle a moment ago and back.
//!
//! How busy a producer is it says itself, and it may lie. Where consumers are heard about it, what they see counts,
//! and its word moves that a little: one that is busier than usual is slower than usual too, and the other way round.
//!
//! For a need it revokes the largest leases: the fewest holders are disturbed.

use std::collections::BTreeMap;

use sdk::{
    Config, Leases, Leasing, PPM, Policy, Producers, Resources, Tick, Victims, Weights, normalised,
    without_superfluous, words,
};

/// Producers remembered.
const PRODUCERS_MAX: usize = 65_536;

/// The correction that leaves a producer its capacity's weight.
const EVEN: u64 = PPM as u64;

/// Where consumers are heard, a producer's word moves its correction by one part in so many at most.
const WORD_PART: u64 = 50;

/// The policy.
#[derive(Debug)]
pub struct CapacityWeighted {
    half_life_ms: u64,
    stale_ms: u64,
    ttl_ms: u32,
    /// Smoothed correction per producer, in millionths.
    correction: BTreeMap<u64, u64>,
    updated_ms: u64,
}

impl Policy for CapacityWeighted {
    const SUMMARY: &'static str = "weights by capacity, use and errors, smoothed";
    const SCHEMA: u32 = 300;

    fn new(config: &mut Config) -> Result<CapacityWeighted, String> {
        Ok(CapacityWeighted {
            half_life_ms: config.take("half-life-ms", 2_000_u64)?.max(1),
            stale_ms: config.take("stale-ms", 15_000)?,
            ttl_ms: config.take("ttl-ms", 30_000)?,
            correction: BTreeMap::new(),
            updated_ms: 0,
        })
    }

    fn save(&self) -> Vec<u8> {
        let pairs = self.correction.iter().map(|(&producer, &correction)| (producer, correction));
        words::pack([(0, self.updated_ms)].into_iter().chain(pairs).flat_map(|(a, b)| [a, b]))
    }

    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String> {
        match schema {
            CapacityWeighted::SCHEMA => {
                let pairs = words::unpack_pairs(bytes)?;
                let (&(_, updated_ms), corrections) = pairs.split_first().ok_or("the state is empty")?;
                self.updated_ms = updated_ms;
                self.correction = corrections.iter().copied().take(PRODUCERS_MAX).collect();
                Ok(())
            }
            // pack-tight remembers whom it uses; here all are used.
            400 => Ok(()),
            other => Err(format!("schema {other} is not one that capacity-weighted reads")),
        }
    }
}

impl Leasing for CapacityWeighted {
    fn update_weights(&mut self, now: Tick, producers: &Producers) -> Weights {
        let elapsed_ms = now.now_ms.saturating_sub(self.updated_ms);
        let usual = Usual::of(producers);
        let mut corrections = BTreeMap::new();
        let mut raw = Vec::with_capacity(producers.len());
        let mut ttl_ms = Vec::with_capacity(producers.len());
        for (row, &producer) in producers.producer.iter().enumerate().take(PRODUCERS_MAX) {
            let stale = producers.report_age_ms[row] > self.stale_ms;
            let target = if stale { EVEN / 2 } else { target(producers, row, usual) };
            let before = self.correction.get(&producer).copied().unwrap_or(EVEN);
            let correction = self.towards(before, target, elapsed_ms);
            corrections.insert(producer, correction);
            raw.push(u128::from(producers.capacity[row]) * u128::from(correction));
            // Whoever fails or is silent is asked about again soon.
            let doubtful = stale || producers.error_ppm[row] > PPM / 100;
            ttl_ms.push(if doubtful { self.ttl_ms / 3 } else { self.ttl_ms });
        }
        self.correction = corrections;
        self.updated_ms = now.now_ms;
        if raw.len() < producers.len() {
            return Weights {
                abstain: true,
                why: "more producers than this policy remembers".into(),
                ..Default::default()
            };
        }
        let why = format!("by capacity, corrected towards the usual use of {} %", usual.use_ppm / 10_000);
        Weights { abstain: false, weight_ppm: normalised(&raw), ttl_ms, why }
    }

    fn pick_victims(&mut self, _: Tick, need: Resources, leases: &Leases, grace_max_ms: u32) -> Victims {
        let mut order: Vec<usize> = (0..leases.len()).collect();
        order.sort_by_cached_key(|&row| std::cmp::Reverse((share_of(leases.resources(row), need), row)));
        let lease = without_superfluous(need, leases, &order);
        Victims {
            abstain: false,
            lease,
            grace_ms: grace_max_ms,
            why: "the largest leases: the fewest holders".into(),
        }
    }
}

impl CapacityWeighted {
    /// Half of the way per half-life, linear within one.
    fn towards(&self, before: u64, target: u64, elapsed_ms: u64) -> u64 {
        let halvings = (elapsed_ms / self.half_life_ms).min(20);
        let within = elapsed_ms % self.half_life_ms;
        let gap = (i128::from(target) - i128::from(before)) >> halvings;
        let left = gap - gap * i128::from(within) / (2 * i128::from(self.half_life_ms));
        u64::try_from(i128::from(target) - left).unwrap_or(0)
    }
}

/// What is usual among producers: the middle, which one of them that lies cannot move far.
#[derive(Clone, Copy)]
struct Usual {
    use_ppm: u64,
    /// As consumers see it; 0 if none was heard.
    response_us: u64,
}

impl Usual {
    fn of(producers: &Producers) -> Usual {
        let response_us = producers.response_us.iter().copied().filter(|&us| us > 0).collect();
        Usual {
            use_ppm: middle(producers.utilisation_ppm.iter().map(|&ppm| ppm.min(PPM).into()).collect()),
            response_us: middle(response_us),
        }
    }

    /// The correction that consumers ask for, if any were heard: as much less as a producer is slower than usual.
    fn seen(self, response_us: u64) -> Option<u64> {
        if response_us == 0 || self.response_us == 0 {
            return None;
        }
        let response_us = response_us.min(2 * self.response_us);
        let share = u128::from(response_us) * u128::from(EVEN) / u128::from(self.response_us);
        Some((2 * EVEN - share as u64).clamp(EVEN / 2, EVEN * 3 / 2))
    }
}

/// The middle one; of two, what is between them. 0 of nothing.
fn middle(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    let at = |row: usize| values.get(row).copied().unwrap_or(0);
    at(values.len().saturating_sub(1) / 2).midpoint(at(values.len() / 2))
}

/// The correction that a producer's report asks for: up to a half more or less by its use beside what is usual, as
/// far as consumers bear it out, and to nothing as errors reach one in ten.
fn target(producers: &Producers, row: usize, usual: Usual) -> u64 {
    let utilisation = u64::from(producers.utilisation_ppm[row].min(PPM));
    let its_word = (EVEN + usual.use_ppm).saturating_sub(utilisation).clamp(EVEN / 2, EVEN * 3 / 2);
    let by_use = usual.seen(producers.response_us[row]).map_or(its_word, |seen| {
        let part = seen / WORD_PART;
        its_word.clamp(seen - part, seen + part)
    });
    let sound = EVEN.saturating_sub(u64::from(producers.error_ppm[row]) * 10);
    by_use * sound / EVEN
}

/// The largest share that a lease has of any resource that is needed, in millionths.
fn share_of(lease: Resources, need: Resources) -> u128 {
    let share = |has: u64, needed: u64| {
        if needed == 0 { 0 } else { u128::from(has.min(needed)) * u128::from(PPM) / u128::from(needed) }
    };
    share(lease.iops, need.iops)
        .max(share(lease.bytes_per_s, need.bytes_per_s))
        .max(share(lease.copy_slots, need.copy_slots))
}

sdk::export!(leasing: CapacityWeighted, wit: "../../wit");

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> CapacityWeighted {
        CapacityWeighted::new(&mut Config::default()).unwrap()
    }

    fn producers(utilisation_ppm: [u32; 4]) -> Producers {
        Producers {
            producer: vec![1, 2, 3, 4],
            capacity: vec![4, 4, 4, 1],
            utilisation_ppm: utilisation_ppm.to_vec(),
            error_ppm: vec![0; 4],
            response_us: vec![100; 4],
            consumers: vec![1; 4],
            report_age_ms: vec![0; 4],
            weight_ppm: vec![250_000; 4],
        }
    }

    fn at(now_ms: u64) -> Tick {
        Tick { now_ms, ..Default::default() }
    }

    #[test]
    fn shares_follow_capacity_in_the_closed_loop_and_do_not_swing() {
        let mut policy = policy();
        let mut shares = [250_000_f64; 4];
        let mut seen = Vec::new();
        for second in 0..300 {
            // What is leased follows the weights with a lag; half of all capacity is asked for.
            let used =
                [0, 1, 2, 3].map(|row| (shares[row] * 6.5 / f64::from([4, 4, 4, 1][row])).min(1e6) as u32);
            let weights = policy.update_weights(at(second * 1_000), &producers(used)).weight_ppm;
            for row in 0..4 {
                shares[row] += (f64::from(weights[row]) - shares[row]) * 0.3;
            }
            seen.push(shares);
        }
        for (row, capacity) in [4.0, 4.0, 4.0, 1.0].into_iter().enumerate() {
            let wanted = capacity / 13.0 * 1e6;
            assert!((seen[10][row] / wanted - 1.0).abs() < 0.1, "row {row} after 10 s: {}", seen[10][row]);
            let late: Vec<f64> = seen[30..].iter().map(|shares| shares[row]).collect();
            let mean = late.iter().sum::<f64>() / late.len() as f64;
            let variance = late.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / late.len() as f64;
            assert!(variance.sqrt() / mean < 0.1, "row {row} swings: {}", variance.sqrt() / mean);
        }
    }

    #[test]
    fn a_producer_that_lies_about_its_use_moves_its_weight_by_less_than_a_twentieth() {
        let settled = |view: &Producers| {
            let mut policy = policy();
            policy.update_weights(at(0), view);
            policy.update_weights(at(60_000), view).weight_ppm
        };
        // Whatever its consumers see, and whatever the others say.
        for response_us in [30, 80, 100, 125, 140, 170, 400] {
            for others in [[300_000; 3], [0, 400_000, PPM], [800_000, 900_000, 850_000]] {
                let said = |use_ppm: u32| {
                    let mut view = producers([use_ppm, others[0], others[1], others[2]]);
                    view.response_us[0] = response_us;
                    f64::from(settled(&view)[0])
                };
                let all = [0, 300_000, 600_000, 900_000, PPM].map(said);
                let (least, most) = all.iter().fold((f64::MAX, 0.0_f64), |(least, most), &weight| {
                    (least.min(weight), most.max(weight))
                });
                assert!(most < least * 1.05, "{response_us} {others:?}: {all:?}");
            }
        }
        for honest in [0, 300_000, 800_000, PPM] {
            let before = settled(&producers([honest; 4]));
            for (row, lie) in [(0, 0), (0, PPM), (3, 0), (3, PPM)] {
                let mut view = producers([honest; 4]);
                view.utilisation_ppm[row] = lie;
                let (was, is) = (f64::from(before[row]), f64::from(settled(&view)[row]));
                assert!((is - was).abs() < was * 0.05, "{honest} and {lie}: {was} became {is}");
                // Of its consumers too few were heard to say anything else.
                view.response_us[row] = 0;
                let alone = f64::from(settled(&view)[row]);
                assert!((alone - was).abs() >= (is - was).abs(), "{alone} {is} {was}");
            }
        }
    }

    #[test]
    fn what_consumers_see_too_counts_in_full() {
        let mut policy = policy();
        let mut view = producers([900_000, 300_000, 300_000, 300_000]);
        view.response_us[0] = 170;
        policy.update_weights(at(0), &view);
        let weights = policy.update_weights(at(60_000), &view).weight_ppm;
        assert!(weights[0] * 2 < weights[1] + 1_000, "{weights:?}");
    }

    #[test]
    fn errors_and_silence_cost_weight_and_time() {
        let mut policy = policy();
        let mut view = producers([500_000; 4]);
        view.error_ppm[0] = 50_000;
        view.report_age_ms[1] = 60_000;
        policy.update_weights(at(0), &view);
        let weights = policy.update_weights(at(60_000), &view);
        assert!(weights.weight_ppm[0] < weights.weight_ppm[2] * 6 / 10, "{weights:?}");
        assert!(weights.weight_ppm[1] < weights.weight_ppm[2] * 6 / 10, "{weights:?}");
        assert_eq!(weights.ttl_ms, [10_000, 10_000, 30_000, 30_000]);
    }

    #[test]
    fn a_hand_over_goes_on_where_it_was() {
        let (mut one, mut other) = (policy(), policy());
        for second in 1..5 {
            one.update_weights(at(second * 700), &producers([900_000, 100_000, 500_000, 0]));
        }
        other.load(CapacityWeighted::SCHEMA, &one.save()).unwrap();
        let next = producers([0; 4]);
        assert_eq!(one.update_weights(at(4_000), &next), other.update_weights(at(4_000), &next));
        assert!(other.load(CapacityWeighted::SCHEMA, &[1]).is_err() && other.load(1, &[]).is_err());
    }

    #[test]
    fn the_fewest_holders_lose_a_lease() {
        let leases = Leases { lease: vec![1, 2, 3], iops: vec![10, 50, 20], ..Default::default() };
        let need = Resources { iops: 60, ..Default::default() };
        assert_eq!(policy().pick_victims(at(0), need, &leases, 500).lease, [1, 2]);
    }
}
