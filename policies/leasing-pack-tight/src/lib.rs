//! Keeps leases on as few producers as will do, so that the others fall idle and may save power.
//!
//! It uses the largest sound producers until they have room for what is in use and some to spare. One more is woken
//! when the spare room is gone, one is let go only when twice as much would be left without it: the set does
//! not flap. For a need it revokes leases where the fewest are, which empties producers.

use std::collections::{BTreeMap, BTreeSet};

use sdk::{
    Config, Leases, Leasing, PPM, Policy, Producers, Resources, Tick, Victims, Weights, normalised,
    without_superfluous, words,
};

/// Producers remembered.
const PRODUCERS_MAX: usize = 65_536;

/// Whoever fails more is not packed onto.
const ERROR_PPM_MAX: u32 = PPM / 20;

/// The policy.
#[derive(Debug)]
pub struct PackTight {
    fill_to_ppm: u32,
    spare_ppm: u32,
    ttl_ms: u32,
    awake: BTreeSet<u64>,
}

impl Policy for PackTight {
    const SUMMARY: &'static str = "as few producers as will do";
    const SCHEMA: u32 = 400;

    fn new(config: &mut Config) -> Result<PackTight, String> {
        let policy = PackTight {
            fill_to_ppm: config.take("fill-to-ppm", 800_000)?,
            spare_ppm: config.take("spare-ppm", 150_000)?,
            // Short: leases must come back soon to those that shall stay.
            ttl_ms: config.take("ttl-ms", 10_000)?,
            awake: BTreeSet::new(),
        };
        if policy.fill_to_ppm == 0 || policy.fill_to_ppm > PPM || policy.spare_ppm > PPM {
            return Err("fill-to-ppm and spare-ppm are shares of a million".into());
        }
        Ok(policy)
    }

    fn save(&self) -> Vec<u8> {
        words::pack(self.awake.iter().copied())
    }

    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String> {
        match schema {
            PackTight::SCHEMA => {
                self.awake = words::unpack(bytes)?.into_iter().take(PRODUCERS_MAX).collect();
                Ok(())
            }
            // capacity-weighted uses all; those that are used now are seen in the question.
            300 => Ok(()),
            other => Err(format!("schema {other} is not one that pack-tight reads")),
        }
    }
}

impl Leasing for PackTight {
    fn update_weights(&mut self, _: Tick, producers: &Producers) -> Weights {
        if producers.len() > PRODUCERS_MAX {
            return Weights {
                abstain: true,
                why: "more producers than this policy remembers".into(),
                ..Default::default()
            };
        }
        let usable = self.usable(producers);
        let in_use: u128 = (0..producers.len()).map(|row| in_use(producers, row)).sum();
        let spare = usable.iter().map(|&row| self.room(producers, row)).sum::<u128>()
            * u128::from(self.spare_ppm)
            / u128::from(PPM);
        let awake = self.choose(producers, &usable, in_use, spare);
        self.awake = awake.iter().map(|&row| producers.producer[row]).collect();
        let mut raw = vec![0_u128; producers.len()];
        for &row in &awake {
            // New leases go where room is left; one that is full keeps a little, for what it has already.
            let full = self.room(producers, row);
            raw[row] = full.saturating_sub(in_use_at_most(producers, row, full)).max(full / 100).max(1);
        }
        let why = format!("{} of {} producers have room enough", awake.len(), producers.len());
        Weights { abstain: false, weight_ppm: normalised(&raw), ttl_ms: vec![self.ttl_ms; raw.len()], why }
    }

    fn pick_victims(&mut self, _: Tick, need: Resources, leases: &Leases, grace_max_ms: u32) -> Victims {
        let mut leases_of: BTreeMap<u64, usize> = BTreeMap::new();
        for &producer in &leases.producer {
            *leases_of.entry(producer).or_default() += 1;
        }
        let mut order: Vec<usize> = (0..leases.len()).collect();
        order.sort_by_cached_key(|&row| {
            let producer = leases.producer.get(row).copied().unwrap_or(0);
            (leases_of.get(&producer).copied(), producer, row)
        });
        let lease = without_superfluous(need, leases, &order);
        Victims {
            abstain: false,
            lease,
            grace_ms: grace_max_ms,
            why: "leases of the emptiest producers".into(),
        }
    }
}

impl PackTight {
    /// Rows in the order of packing: those awake first, then the largest; without those that fail.
    fn usable(&self, producers: &Producers) -> Vec<usize> {
        let sound = |&row: &usize| producers.error_ppm[row] <= ERROR_PPM_MAX && producers.capacity[row] > 0;
        let mut rows: Vec<usize> = (0..producers.len()).filter(sound).collect();
        // Cached: to look who is awake for each comparison costs more fuel than all the rest.
        rows.sort_by_cached_key(|&row| {
            let asleep = !self.awake.contains(&producers.producer[row]);
            (asleep, std::cmp::Reverse(producers.capacity[row]), producers.producer[row])
        });
        rows
    }

    /// The first rows that have room for what is in use and to spare; those awake already stay until
    /// twice as much would be left without them.
    fn choose(&self, producers: &Producers, usable: &[usize], in_use: u128, spare: u128) -> Vec<usize> {
        let mut awake = Vec::new();
        let mut room = 0;
        for &row in usable {
            let was_awake = self.awake.contains(&producers.producer[row]);
            let wanted = in_use + if was_awake { 2 * spare } else { spare };
            if room >= wanted && room > 0 {
                break;
            }
            room += self.room(producers, row);
            awake.push(row);
        }
        awake
    }

    /// How far a producer may be filled.
    fn room(&self, producers: &Producers, row: usize) -> u128 {
        u128::from(producers.capacity[row]) * u128::from(self.fill_to_ppm)
    }
}

fn in_use(producers: &Producers, row: usize) -> u128 {
    u128::from(producers.capacity[row]) * u128::from(producers.utilisation_ppm[row].min(PPM))
}

fn in_use_at_most(producers: &Producers, row: usize, most: u128) -> u128 {
    in_use(producers, row).min(most)
}

sdk::export!(leasing: PackTight, wit: "../../wit");

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tick = Tick { now_ms: 1, seed: 0, epoch: 1 };

    fn policy() -> PackTight {
        PackTight::new(&mut Config::default()).unwrap()
    }

    fn producers(utilisation_ppm: [u32; 4]) -> Producers {
        Producers {
            producer: vec![1, 2, 3, 4],
            capacity: vec![100; 4],
            utilisation_ppm: utilisation_ppm.to_vec(),
            error_ppm: vec![0; 4],
            response_us: vec![100; 4],
            consumers: vec![1; 4],
            report_age_ms: vec![0; 4],
            weight_ppm: vec![250_000; 4],
        }
    }

    fn used(weights: &Weights) -> usize {
        weights.weight_ppm.iter().filter(|&&weight| weight > 0).count()
    }

    #[test]
    fn little_load_needs_few_and_more_load_wakes_more() {
        let mut policy = policy();
        // Room is 80 each and 15 % of all of it, 48, is spare.
        assert_eq!(used(&policy.update_weights(NOW, &producers([25_000; 4]))), 1);
        assert_eq!(used(&policy.update_weights(NOW, &producers([100_000; 4]))), 2);
        assert_eq!(used(&policy.update_weights(NOW, &producers([750_000; 4]))), 4);
    }

    #[test]
    fn a_load_at_the_border_does_not_flap_through_a_hand_over() {
        let mut policy = policy();
        policy.update_weights(NOW, &producers([100_000; 4]));
        for load in [78_000, 82_000, 78_000, 82_000] {
            let mut next = self::policy();
            next.load(PackTight::SCHEMA, &policy.save()).unwrap();
            policy = next;
            assert_eq!(used(&policy.update_weights(NOW, &producers([load; 4]))), 2, "{load}");
        }
        assert!(policy.load(PackTight::SCHEMA, &[1]).is_err() && policy.load(1, &[]).is_err());
    }

    #[test]
    fn whoever_fails_is_not_packed_onto() {
        let mut view = producers([25_000; 4]);
        view.error_ppm[0] = 200_000;
        assert_eq!(policy().update_weights(NOW, &view).weight_ppm, [0, PPM, 0, 0]);
    }

    #[test]
    fn the_emptiest_producer_is_emptied() {
        let leases =
            Leases { lease: vec![1, 2, 3], producer: vec![7, 7, 8], iops: vec![10; 3], ..Default::default() };
        let need = Resources { iops: 10, ..Default::default() };
        assert_eq!(policy().pick_victims(NOW, need, &leases, 500).lease, [2]);
    }
}
