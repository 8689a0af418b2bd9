//! The worked trace of `docs/throttle.md`, and every point of capability F2's checklist by its letter.

use throttle::{
    Admission, Band, Burst, Cost, DimLimits, Dimension, Lane, Limits, PoolLimits, PoolRate, Ratio, Released,
    Shaper, ShaperConfig, Work,
};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
const HALF: Ratio = Ratio { num: 1, den: 2 };

fn shaper() -> Shaper<u32> {
    Shaper::new(ShaperConfig { volumes_max: 8, groups_max: 2, parked_items_max: 1000 }, 0)
}

fn packets(dim: DimLimits) -> Limits {
    Limits { packets: dim, ..Limits::default() }
}

fn node(rate: u64, cap_units: u64) -> PoolLimits {
    PoolLimits { packets: Some(PoolRate::Own { rate, cap_units }), bytes: None }
}

fn cost(packets: u32) -> Cost {
    Cost { packets, ..Cost::default() }
}

fn ask(s: &mut Shaper<u32>, now_ns: u64, volume: u32, packets: u32) -> bool {
    ask_for(s, now_ns, volume, cost(packets))
}

fn ask_for(s: &mut Shaper<u32>, now_ns: u64, volume: u32, cost: Cost) -> bool {
    match s.admit(now_ns, volume, Lane::Forward, cost, 0) {
        Admission::Pass(_) => true,
        Admission::Parked { .. } => false,
        Admission::Full(_) => panic!("full at {now_ns}"),
    }
}

fn released(s: &mut Shaper<u32>, now_ns: u64) -> usize {
    s.release(now_ns, usize::MAX, &mut |_: Released<u32>| {})
}

/// Whole credits and work balance.
fn balances(s: &Shaper<u32>, now_ns: u64) -> (Option<i64>, Option<i64>) {
    let b = s.balances(now_ns, 0).unwrap().packets;
    (b.burst_units.map(|(level, _)| level), b.work_units)
}

#[test]
fn worked_trace() {
    let mut s = shaper();
    let band = Band { above_permille: 500, charge: HALF };
    let limits = packets(DimLimits {
        burst: Some(Burst { cap_units: 4, fill_rate: 1 }),
        work: Some(Work { bands: [Some(band), None, None, None], ..Work::at(2) }),
        peak_rate: Some(100),
        sequential: Ratio::ONE,
    });
    s.set_volume(0, 0, &limits).unwrap();
    s.set_node(0, &node(4, 8)).unwrap();
    let node = |s: &Shaper<u32>| s.node_units(Dimension::Packets);

    assert!(ask(&mut s, 0, 0, 3), "r1");
    assert_eq!((balances(&s, 0), node(&s)), ((Some(1), Some(2)), Some(5)));
    assert!(!ask(&mut s, 0, 0, 3), "r2 waits for peak");
    assert_eq!(s.next_deadline_ns(), Some(20_000_001));
    assert_eq!(released(&mut s, 20_000_000), 0);
    assert_eq!(released(&mut s, 20_000_001), 1);
    assert_eq!((balances(&s, 20_000_001), node(&s)), ((Some(1), Some(0)), Some(2)), "half of 3 from work");
    assert!(ask(&mut s, 100 * MS, 0, 3), "r3");
    assert_eq!((balances(&s, 100 * MS), node(&s)), ((Some(1), Some(-3)), Some(-1)), "in full: no slack");
    assert!(!ask(&mut s, 100 * MS, 0, 3), "r4 waits for work");
    assert_eq!(s.next_deadline_ns(), Some(1_270_000_002));
    assert_eq!(released(&mut s, 1_270_000_001), 0);
    assert_eq!(released(&mut s, 1_270_000_002), 1);
    assert_eq!((balances(&s, 1_270_000_002), node(&s)), ((Some(2), Some(-2)), Some(1)));
    assert!(ask(&mut s, 3_100 * MS, 0, 3), "r5");
    assert_eq!((balances(&s, 3_100 * MS), node(&s)), ((Some(1), Some(2)), Some(5)), "burst pays again");
    assert_eq!(s.next_deadline_ns(), None);
}

#[test]
fn f2_a_the_cost_is_that_of_the_request() {
    let mut s = shaper();
    let limits = Limits {
        bytes: DimLimits { work: Some(Work::at(10_000)), ..DimLimits::default() },
        packets: DimLimits { work: Some(Work::at(10)), ..DimLimits::default() },
        ..Limits::default()
    };
    s.set_volume(0, 0, &limits).unwrap();
    assert!(ask_for(&mut s, 0, 0, Cost { bytes: 1_500, packets: 1, offset: None }));
    assert!(ask_for(&mut s, 0, 0, Cost { bytes: 0, packets: 2, offset: None }));
    let b = s.balances(0, 0).unwrap();
    assert_eq!((b.bytes.work_units, b.packets.work_units), (Some(8_500), Some(7)));
    let c = s.counters(0).unwrap();
    assert_eq!((c.admitted_bytes, c.admitted_packets), (1_500, 3));
}

#[test]
fn f2_b_burst_pays_first_and_in_full() {
    let mut s = shaper();
    let burst = Some(Burst { cap_units: 10, fill_rate: 1 });
    s.set_volume(0, 0, &packets(DimLimits { burst, work: Some(Work::at(5)), ..DimLimits::default() }))
        .unwrap();
    assert!(ask(&mut s, 0, 0, 7));
    assert_eq!(balances(&s, 0), (Some(3), Some(5)));
    assert!(ask(&mut s, 0, 0, 4), "burst holds 3: work pays, burst keeps its 3");
    assert_eq!(balances(&s, 0), (Some(3), Some(1)));
    assert!(ask(&mut s, 0, 0, 3));
    assert_eq!(balances(&s, 0), (Some(0), Some(1)));
}

/// Requests that each volume passes from the first to the eleventh second, while all of them always have
/// some waiting. The first second spends what the buckets began with.
fn passed_in_10_s(s: &mut Shaper<u32>, volumes: u32) -> Vec<u64> {
    let passed = |s: &Shaper<u32>| -> Vec<u64> {
        (0..volumes).map(|v| s.counters(v).unwrap().admitted_packets).collect()
    };
    let (mut now, mut early) = (0, Vec::new());
    while now < 11 * S {
        for volume in 0..volumes {
            while s.counters(volume).unwrap().parked.items < 20 {
                let _ = s.admit(now, volume, Lane::Forward, cost(1), 0);
            }
        }
        now = s.next_deadline_ns().unwrap();
        if early.is_empty() && now >= S {
            early = passed(s);
        }
        released(s, now);
    }
    passed(s).iter().zip(early).map(|(late, early)| late - early).collect()
}

fn half_from_slack(rate: u64) -> Limits {
    let band = Band { above_permille: 0, charge: HALF };
    packets(DimLimits {
        work: Some(Work { bands: [Some(band), None, None, None], ..Work::at(rate) }),
        ..DimLimits::default()
    })
}

#[test]
fn f2_c_from_slack_work_pays_less_and_the_volume_exceeds_its_rate() {
    let mut s = shaper();
    s.set_volume(0, 0, &half_from_slack(300)).unwrap();
    s.set_node(0, &node(4_000, 400)).unwrap();
    let passed = passed_in_10_s(&mut s, 1)[0];
    assert!(passed.abs_diff(6_000) <= 60, "{passed} of 300/s at half price");
}

#[test]
fn f2_d_the_node_always_pays_in_full() {
    let mut s = shaper();
    let mut limits = half_from_slack(300);
    limits.packets.burst = Some(Burst { cap_units: 4, fill_rate: 1 });
    s.set_volume(0, 0, &limits).unwrap();
    s.set_node(0, &node(10, 100)).unwrap();
    assert!(ask(&mut s, 0, 0, 4) && ask(&mut s, 0, 0, 6));
    assert_eq!(balances(&s, 0), (Some(0), Some(297)), "burst 4, work 3 of 6");
    assert_eq!(s.node_units(Dimension::Packets), Some(90));
}

#[test]
fn f2_e_an_empty_node_means_the_full_charge_and_the_work_rate() {
    // The node never rises above the band's threshold, so there is no slack to pay from.
    let mut s = shaper();
    let mut limits = half_from_slack(300);
    limits.packets.work.as_mut().unwrap().bands[0].as_mut().unwrap().above_permille = 999;
    s.set_volume(0, 0, &limits).unwrap();
    s.set_volume(0, 1, &packets(DimLimits::default())).unwrap();
    s.set_node(0, &node(600, 600)).unwrap();
    for _ in 0..600 {
        assert!(ask(&mut s, 0, 1, 1));
    }
    let passed = passed_in_10_s(&mut s, 2);
    assert!(passed[0].abs_diff(3_000) <= 30, "{passed:?}");
}

#[test]
fn f2_f_the_fill_rate_follows_the_size() {
    let of = |gib| Limits::gp2_like(gib).packets;
    assert_eq!(of(8).burst, Some(Burst { cap_units: 5_400_000, fill_rate: 100 }));
    assert_eq!(of(100).burst.unwrap().fill_rate, 300);
    assert_eq!((of(2_000).burst.unwrap().fill_rate, of(2_000).peak_rate), (6_000, Some(6_000)));
    assert_eq!(of(100_000).burst.unwrap().fill_rate, 16_000);
    let gp3 = Limits::gp3_like(3_000, 125 << 20);
    assert_eq!((gp3.packets.work.unwrap().rate, gp3.packets.peak_rate), (3_000, Some(3_000)));
}

#[test]
fn f2_g_sequential_requests_cost_less_and_17_streams_do_not() {
    let sequential = Ratio { num: 1, den: 4 };
    let limits = packets(DimLimits { work: Some(Work::at(1_000)), sequential, ..DimLimits::default() });
    let paid_by_100_rounds = |streams: u64| {
        let mut s = shaper();
        s.set_volume(0, 0, &limits).unwrap();
        for round in 0..100 / streams {
            for stream in 0..streams {
                let offset = Some((stream << 32) + round * 4_096);
                assert!(ask_for(&mut s, 0, 0, Cost { bytes: 4_096, packets: 4, offset }));
            }
        }
        1_000 - balances(&s, 0).1.unwrap()
    };
    assert_eq!(paid_by_100_rounds(1), 4 + 99);
    assert_eq!(paid_by_100_rounds(10), 10 * 4 + 90);
    assert_eq!(paid_by_100_rounds(17), 5 * 17 * 4);
}

#[test]
fn f2_h_the_charge_depends_on_what_burst_still_holds() {
    let mut s = shaper();
    let mut limits = half_from_slack(300);
    limits.packets.burst = Some(Burst { cap_units: 10, fill_rate: 1 });
    s.set_volume(0, 0, &limits).unwrap();
    assert!(ask(&mut s, 0, 0, 8));
    assert_eq!(balances(&s, 0), (Some(2), Some(300)), "8 credits");
    assert!(ask(&mut s, 0, 0, 8));
    assert_eq!(balances(&s, 0), (Some(2), Some(296)), "the same request: 4 of work");
}

#[test]
fn f2_i_what_nothing_can_pay_is_delayed_not_refused() {
    let mut s = shaper();
    s.set_volume(0, 0, &packets(DimLimits { work: Some(Work::at(1)), ..DimLimits::default() })).unwrap();
    assert!(ask(&mut s, 0, 0, 1));
    assert!(!ask(&mut s, 0, 0, 1));
    assert_eq!(s.next_deadline_ns(), Some(1));
    assert_eq!(released(&mut s, 1), 1);
    assert!(!ask(&mut s, 1, 0, 1));
    assert_eq!(s.next_deadline_ns(), Some(S + 1), "one per second");
    assert_eq!(released(&mut s, S + 1), 1);
    assert_eq!(s.counters(0).unwrap().parked_ns, S + 1);
}

#[test]
fn a2_ten_volumes_share_a_short_node_and_keep_their_own_rate() {
    let mut s: Shaper<u32> =
        Shaper::new(ShaperConfig { volumes_max: 10, groups_max: 0, parked_items_max: 1000 }, 0);
    for volume in 0..10 {
        s.set_volume(0, volume, &half_from_slack(300)).unwrap();
    }
    s.set_node(0, &node(4_000, 400)).unwrap();
    let passed = passed_in_10_s(&mut s, 10);
    let sum: u64 = passed.iter().sum();
    assert!(sum.abs_diff(40_000) <= 400, "{sum}");
    assert!(passed.iter().all(|p| p.abs_diff(4_000) <= 40), "{passed:?}");
}

#[test]
fn a3_a_large_request_passes_on_credit_and_the_next_one_waits() {
    let mut s = shaper();
    s.set_volume(0, 0, &packets(DimLimits { work: Some(Work::at(100)), ..DimLimits::default() })).unwrap();
    assert!(ask(&mut s, 0, 0, 99));
    assert!(ask(&mut s, 0, 0, 64), "at a balance of 1");
    assert!(!ask(&mut s, 0, 0, 1));
    assert_eq!(s.next_deadline_ns(), Some(630 * MS + 1), "63 / 100 s");
}

#[test]
fn debt_is_held_where_it_is_bounded() {
    let mut s = shaper();
    let work = Work { debt_units_max: Some(10), ..Work::at(100) };
    s.set_volume(0, 0, &packets(DimLimits { work: Some(work), ..DimLimits::default() })).unwrap();
    assert!(ask(&mut s, 0, 0, 90));
    assert!(!ask(&mut s, 0, 0, 64), "it would owe 54");
    assert_eq!(s.next_deadline_ns(), Some(440 * MS), "when it holds 54");
    assert_eq!(released(&mut s, 440 * MS - 1), 0);
    assert_eq!(released(&mut s, 440 * MS), 1);
    assert_eq!(balances(&s, 440 * MS).1, Some(-10));
}
