//! Questions as a control plane asks them, made from a seed: golden vectors for admission, and loads for benches.

use verdict::scheduling::Candidate;
use verdict::{
    Accounts, BuildProfile, Candidates, ChooseTime, Forecast, Kind, Leases, PickVictims, Producers, Profile,
    Question, Resources, Rules, Samples, Schedule, Tenants, Tick, Transfer, UpdateWeights,
};

/// Numbers from a seed; enough for variety, not for secrets.
struct Numbers(u64);

impl Numbers {
    /// Below a bound (splitmix64).
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

/// The `number`-th question of a sequence: one of each function of the kind in turn, with about `rows` rows.
pub fn question(kind: Kind, rows: usize, number: u64) -> (Tick, Question) {
    let tick = Tick { now_ms: 1_700_000_000_000 + number * 1_000, seed: number, epoch: 1 };
    let mut numbers = Numbers(number);
    let first = number.is_multiple_of(2);
    let question = match kind {
        Kind::Scheduling => Question::Schedule(schedule(&mut numbers, tick, rows)),
        Kind::Leasing if first => Question::UpdateWeights(update_weights(&mut numbers, rows)),
        Kind::Leasing => Question::PickVictims(pick_victims(&mut numbers, tick, rows)),
        Kind::Migration if first => Question::BuildProfile(build_profile(tick, rows)),
        Kind::Migration => Question::ChooseTime(choose_time(&mut numbers, tick, rows)),
    };
    (tick, question)
}

/// What admission asks: nothing, one row, a few, and more.
pub(crate) fn golden(kind: Kind) -> Vec<(Tick, Question)> {
    let sizes = [0, 0, 1, 1, 7, 7, 64, 64, 65, 65];
    sizes.iter().zip(0..).map(|(&rows, number)| question(kind, rows, number)).collect()
}

fn schedule(numbers: &mut Numbers, tick: Tick, rows: usize) -> Schedule {
    let nodes = (rows as u64 / 8).clamp(1, 64);
    let mut candidates = Candidates::default();
    for row in 0..rows as u64 {
        // The node's copy slots, its bytes per second, and the fleet's slots.
        let node = numbers.below(nodes);
        let account = (node * 2) as u32;
        candidates.push(Candidate {
            event: row / 2,
            op: numbers.below(5) as u32,
            handler: node,
            tenant: numbers.below(16),
            trigger: numbers.below(4) as u32,
            registered_ms: tick.now_ms - numbers.below(120_000),
            needs: &[(account, 1), (account + 1, 1 + numbers.below(1 << 20)), ((nodes * 2) as u32, 1)],
        });
    }
    let mut accounts = Accounts::default();
    for _ in 0..nodes {
        accounts.in_use.extend([numbers.below(3), numbers.below(8 << 20)]);
        accounts.limit.extend([4, 16 << 20]);
    }
    accounts.in_use.push(0);
    accounts.limit.push(nodes * 3);
    let tenants =
        Tenants { tenant: (0..16).collect(), weight: (0..16).map(|tenant| 1 + tenant % 4).collect() };
    Schedule { candidates, accounts, tenants }
}

fn update_weights(numbers: &mut Numbers, rows: usize) -> UpdateWeights {
    let mut producers = Producers::default();
    for producer in 0..rows as u64 {
        producers.producer.push(producer);
        producers.capacity.push(10_000 * (1 + producer % 4));
        producers.utilisation_ppm.push(numbers.below(1_000_000) as u32);
        producers.error_ppm.push(if numbers.below(20) == 0 { numbers.below(200_000) as u32 } else { 0 });
        producers.response_us.push(100 + numbers.below(2_000));
        producers.consumers.push(numbers.below(50) as u32);
        producers.report_age_ms.push(numbers.below(20_000));
        producers.weight_ppm.push(1_000_000 / rows as u32);
    }
    UpdateWeights { producers }
}

fn pick_victims(numbers: &mut Numbers, tick: Tick, rows: usize) -> PickVictims {
    let mut leases = Leases::default();
    for lease in 0..rows as u64 {
        leases.lease.push(lease);
        leases.producer.push(numbers.below(16));
        leases.holder.push(numbers.below(100));
        leases.granted_ms.push(tick.now_ms - numbers.below(600_000));
        leases.iops.push(100 + numbers.below(900));
        leases.bytes_per_s.push((1 + numbers.below(100)) << 20);
        leases.copy_slots.push(numbers.below(2));
    }
    let need = Resources { iops: rows as u64 * 200, bytes_per_s: 50 << 20, copy_slots: 0 };
    PickVictims { need, leases, grace_max_ms: 500 }
}

const RULES: Rules = Rules {
    quiet_below_ppm: 300_000,
    blackout_max_us: 500_000,
    period_min_ms: 10_000,
    period_max_ms: 150_000,
};

/// 45 s of load and 15 s of little.
fn load_at(second: u64) -> u64 {
    if second % 60 < 45 { 1_000 + second * 7_919 % 101 } else { 20 }
}

fn build_profile(tick: Tick, rows: usize) -> BuildProfile {
    let mut samples = Samples::default();
    for row in 0..rows as u64 {
        samples.at_ms.push(tick.now_ms - (rows as u64 - row) * 1_000);
        samples.iops.push(load_at(row));
        samples.bytes_per_s.push(load_at(row) * 4_096);
        samples.dirty_bytes_per_s.push(load_at(row) * 20_480);
    }
    BuildProfile { samples, rules: RULES }
}

fn choose_time(numbers: &mut Numbers, tick: Tick, rows: usize) -> ChooseTime {
    let profile = Profile {
        origin_ms: tick.now_ms - numbers.below(60_000),
        slot_ms: 1_000,
        iops: (0..60).map(load_at).collect(),
        dirty_bytes_per_s: (0..60).map(|second| load_at(second) * 20_480).collect(),
        confidence_ppm: 950_000,
        ..Default::default()
    };
    let transfer = Transfer {
        size_bytes: (64 + numbers.below(1_024)) << 20,
        hand_over_us: 2_000,
        deadline_ms: tick.now_ms + 600_000,
        blackout_max_us: RULES.blackout_max_us,
        quiet_below_ppm: RULES.quiet_below_ppm,
    };
    let step = 600_000 / (rows as u64 + 1);
    let candidates_ms = (1..=rows as u64).map(|row| tick.now_ms + row * step.max(1)).collect::<Vec<_>>();
    let candidates_ms = candidates_ms.into_iter().filter(|&at| at <= transfer.deadline_ms).collect();
    let link = Forecast {
        from_ms: (0..10).map(|minute| tick.now_ms + minute * 60_000).collect(),
        free_bytes_per_s: (0..10).map(|_| (50 + numbers.below(950)) << 20).collect(),
    };
    ChooseTime { profile, transfer, link, candidates_ms }
}
