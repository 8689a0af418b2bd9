//! The shaper beside the model over random traces of limits, costs, times and changes while it runs.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::{Answer, Model, Q, q};
use crate::bucket::NANO;
use crate::limits::DIMS;
use crate::{
    Admission, Band, Burst, Cost, DimLimits, Lane, Limits, ParkLimits, PoolLimits, PoolRate, Ratio, Shaper,
    ShaperConfig, Work,
};

const VOLUMES: u32 = 3;
const SLOTS: u32 = 14;

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    /// To one nanosecond before the next release, then to it.
    Exactly,
    Admit(u32, Lane, Cost),
    Volume(u32, Box<Limits>),
    Remove(u32),
    Group(PoolLimits),
    Node(PoolLimits),
}

fn ratio() -> impl Strategy<Value = Ratio> {
    (1u32..8, 0u32..8).prop_map(|(den, num)| Ratio { num: num.min(den), den })
}

fn bands() -> impl Strategy<Value = [Option<Band>; 4]> {
    let bands = prop::collection::vec((0u16..1000, ratio()), 0..4);
    bands.prop_map(|mut bands| {
        bands.sort_by_key(|(above, _)| std::cmp::Reverse(*above));
        bands.dedup_by_key(|(above, _)| *above);
        let mut bands = bands.into_iter().map(|(above_permille, charge)| Band { above_permille, charge });
        std::array::from_fn(|_| bands.next())
    })
}

fn dim(scale: u64) -> impl Strategy<Value = DimLimits> {
    let burst =
        (1..20 * scale, 1..10 * scale).prop_map(|(cap_units, fill_rate)| Burst { cap_units, fill_rate });
    let work = (1..20 * scale, prop::option::weighted(0.2, 0..2 * scale as u32), bands())
        .prop_map(|(rate, debt_units_max, bands)| Work { rate, debt_units_max, bands });
    let rates = (prop::option::of(burst), prop::option::of(work), prop::option::of(1..400 * scale));
    let sequential = prop_oneof![2 => Just(Ratio::ONE), 1 => ratio()];
    (rates, sequential).prop_map(|((burst, work, peak_rate), sequential)| DimLimits {
        burst,
        work,
        peak_rate,
        sequential,
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let park = (1u32..6, 1u64..6_000).prop_map(|(items_max, bytes_max)| ParkLimits { items_max, bytes_max });
    let group = prop_oneof![Just(None), Just(Some(0))];
    (dim(1_000), dim(5), group, prop::option::of(1u64..1_000), park)
        .prop_map(|(bytes, packets, group, weight, park)| Limits { bytes, packets, group, weight, park })
}

fn own(scale: u64) -> impl Strategy<Value = Option<PoolRate>> {
    prop::option::of(
        (1..40 * scale, 1..20 * scale).prop_map(|(rate, cap_units)| PoolRate::Own { rate, cap_units }),
    )
}

/// Pools limited in bytes only, in packets only, or in any.
fn pool(dims: [bool; 2]) -> impl Strategy<Value = PoolLimits> {
    (own(1_000), own(5)).prop_map(move |(bytes, packets)| PoolLimits {
        bytes: bytes.filter(|_| dims[0]),
        packets: packets.filter(|_| dims[1]),
    })
}

fn cost() -> impl Strategy<Value = Cost> {
    let offset = prop::option::of((0u64..20).prop_map(|block| block * 500));
    let bytes = prop_oneof![1 => Just(0u32), 2 => Just(500), 2 => 1u32..3_000];
    (bytes, 0u32..6, offset).prop_map(|(bytes, packets, offset)| Cost { bytes, packets, offset })
}

fn step(pools: [bool; 2]) -> impl Strategy<Value = Step> {
    let volume = 0..VOLUMES;
    let lane = prop_oneof![Just(Lane::Forward), Just(Lane::Reverse)];
    let span = (0u32..34, any::<u64>()).prop_map(|(bits, x)| x & ((1 << bits) - 1));
    prop_oneof![
        8 => span.prop_map(Step::Advance),
        8 => Just(Step::Exactly),
        30 => (volume.clone(), lane, cost()).prop_map(|(v, l, c)| Step::Admit(v, l, c)),
        4 => (volume.clone(), limits()).prop_map(|(v, l)| Step::Volume(v, Box::new(l))),
        1 => volume.prop_map(Step::Remove),
        1 => pool(pools).prop_map(Step::Group),
        1 => pool(pools).prop_map(Step::Node),
    ]
}

/// The shaper and the model side by side.
struct Pair {
    shaper: Shaper<u32>,
    model: Model,
    items: u32,
}

impl Pair {
    fn new(strict: bool) -> Pair {
        let config = ShaperConfig { volumes_max: VOLUMES, groups_max: 1, parked_items_max: SLOTS };
        let start = 77_777;
        Pair { shaper: Shaper::new(config, start), model: Model::new(strict, 3, start), items: 0 }
    }

    /// One turn at `now_ns`; returns how many were released.
    fn turn(&mut self, now_ns: u64) -> Result<usize, TestCaseError> {
        self.model.advance(now_ns);
        let mut got = Vec::new();
        self.shaper.release(now_ns, usize::MAX, &mut |r| got.push((r.volume, r.lane as usize, r.item)));
        for &(volume, lane, item) in &got {
            let expected = self.model.release(volume as usize, lane).map_err(TestCaseError::fail)?;
            prop_assert_eq!(item, expected, "out of order");
        }
        for volume in 0..VOLUMES as usize {
            let ready = self.model.ready(volume);
            prop_assert!(!self.model.strict || ready.is_none(), "volume {} forgotten at {}", volume, now_ns);
        }
        if self.model.strict {
            let exact = self.model.next_ns();
            let hint = self.shaper.next_deadline_ns();
            prop_assert!(exact.is_none() || hint.is_some());
            prop_assert!(exact.is_none() || hint <= exact, "late: {:?} for {:?}", hint, exact);
        }
        Ok(got.len())
    }

    fn step(&mut self, step: Step) -> TestCaseResult {
        let now = self.model.now_ns;
        match step {
            Step::Advance(dt) => drop(self.turn(now + dt)?),
            Step::Exactly => self.exactly()?,
            Step::Admit(volume, lane, cost) => self.admit(volume, lane, cost)?,
            Step::Volume(volume, limits) => {
                self.shaper.set_volume(now, volume, &limits).unwrap();
                self.model.set_volume(volume as usize, &limits);
                self.turn(now)?;
            }
            Step::Remove(volume) => {
                let mut got = Vec::new();
                self.shaper.remove_volume(volume, &mut |r| got.push(r.item)).unwrap();
                let gone = std::mem::take(&mut self.model.volumes[volume as usize]);
                let expected: Vec<u32> = gone.lanes.iter().flatten().map(|r| r.item).collect();
                prop_assert_eq!(got, expected);
                self.turn(now)?;
            }
            Step::Group(limits) => {
                self.shaper.set_group(now, 0, &limits).unwrap();
                Model::set_pool(&mut self.model.group, &limits);
                self.turn(now)?;
            }
            Step::Node(limits) => {
                self.shaper.set_node(now, &limits).unwrap();
                Model::set_pool(&mut self.model.node, &limits);
                self.turn(now)?;
            }
        }
        self.compare()
    }

    fn exactly(&mut self) -> TestCaseResult {
        let Some(at) = self.model.next_ns() else { return Ok(()) };
        let now = self.model.now_ns;
        if at > now + 1 && at < u64::MAX / 2 {
            // Over the wheel's hints, as a worker would come.
            let mut hint = self.shaper.next_deadline_ns().unwrap_or(at);
            while self.model.strict && hint < at {
                prop_assert_eq!(self.turn(hint)?, 0, "early at {}", hint);
                let next = self.shaper.next_deadline_ns().unwrap_or(at);
                prop_assert!(next > hint, "the hint stands still at {}", hint);
                hint = next;
            }
            let early = self.turn(at - 1)?;
            prop_assert!(!self.model.strict || early == 0, "early");
            let now_due = self.turn(at)?;
            prop_assert!(!self.model.strict || now_due > 0, "late");
        }
        Ok(())
    }

    fn admit(&mut self, volume: u32, lane: Lane, cost: Cost) -> TestCaseResult {
        let item = self.items;
        self.items += 1;
        let now = self.model.now_ns;
        let answer = match self.shaper.admit(now, volume, lane, cost, item) {
            Admission::Pass(back) => {
                prop_assert_eq!(back, item);
                Answer::Pass
            }
            Admission::Parked { mark } => Answer::Parked { mark },
            Admission::Full(_) => Answer::Full,
        };
        let before = self.model.clone();
        let expected = self.model.admit(volume as usize, lane, cost, item, SLOTS as usize);
        if !self.model.strict && expected == Answer::Pass && answer != Answer::Pass {
            // It took a place behind others in a ring: let the model do the same.
            self.model = before;
            if answer != Answer::Full {
                self.park_in_model(volume as usize, lane, cost, item);
            }
            return Ok(());
        }
        prop_assert_eq!(answer, expected, "volume {} {:?} at {}", volume, cost, now);
        Ok(())
    }

    fn park_in_model(&mut self, volume: usize, lane: Lane, cost: Cost, item: u32) {
        // A volume with a full price list of nothing admits nothing: park by force, keeping streams right.
        let sequential = self.shaper.last_parked_is_sequential(volume as u32, lane as usize);
        let v = &mut self.model.volumes[volume];
        if let Some(offset) = cost.offset {
            if sequential {
                v.streams.retain(|&end| end != offset);
            }
            v.streams.truncate(15);
            v.streams.insert(0, offset + u64::from(cost.bytes));
        }
        let units = [cost.bytes, cost.packets];
        v.lanes[lane as usize].push_back(super::Request { item, units, sequential });
    }

    /// Every balance, to the nano-token.
    fn compare(&self) -> TestCaseResult {
        let nanos = |level: &Q| level * q(NANO);
        for (volume, model) in self.model.volumes.iter().enumerate() {
            let mut v = self.shaper.volume(volume as u32).expect("the model has as many as the shaper");
            v.refill(self.model.now_ns);
            for d in 0..DIMS {
                let dim = &model.dims[d];
                for (level, bucket) in v.levels(d).into_iter().zip([&dim.burst, &dim.work, &dim.peak]) {
                    let expected = bucket.as_ref().map_or(q(0), |b| nanos(&b.level));
                    prop_assert_eq!(q(level), expected, "volume {} dimension {}", volume, d);
                }
            }
        }
        for (id, model) in [&self.model.group, &self.model.node].into_iter().enumerate() {
            let mut pool = self.shaper.pools[id].clone();
            pool.refill(self.model.now_ns);
            for d in 0..DIMS {
                let expected = model.0[d].as_ref().map(|b| nanos(&b.level));
                prop_assert_eq!(pool.level(d).map(q), expected, "pool {} dimension {}", id, d);
            }
        }
        let parked: usize = self.model.volumes.iter().flat_map(|v| &v.lanes).map(|lane| lane.len()).sum();
        prop_assert_eq!(self.shaper.parked().items as usize, parked);
        Ok(())
    }

    /// Everything that waits gets out in the end.
    fn drain(&mut self) -> TestCaseResult {
        for _ in 0..10_000 {
            match self.shaper.next_deadline_ns() {
                Some(at) => drop(self.turn(at.max(self.model.now_ns))?),
                None => break,
            }
        }
        prop_assert_eq!(self.shaper.parked(), crate::Parked::default(), "something waits for ever");
        self.compare()
    }
}

fn run(strict: bool, steps: Vec<Step>) -> TestCaseResult {
    let mut pair = Pair::new(strict);
    for step in steps {
        pair.step(step)?;
    }
    pair.drain()
}

proptest! {
    #[test]
    fn the_shaper_equals_exact_rational_arithmetic_in_bytes(
        steps in prop::collection::vec(step([true, false]), 1..120),
    ) {
        run(true, steps)?;
    }

    #[test]
    fn the_shaper_equals_exact_rational_arithmetic_in_packets(
        steps in prop::collection::vec(step([false, true]), 1..120),
    ) {
        run(true, steps)?;
    }

    #[test]
    fn with_pools_short_in_two_dimensions_nothing_is_let_through_or_lost(
        steps in prop::collection::vec(step([true, true]), 1..120),
    ) {
        run(false, steps)?;
    }
}
