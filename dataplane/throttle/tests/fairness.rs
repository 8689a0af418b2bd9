//! Taking turns: ten volumes on a short node or group, weights, and a neighbour who keeps within its share.

use throttle::{
    Admission, Cost, DimLimits, Lane, Limits, ParkLimits, PoolLimits, PoolRate, Released, Shaper,
    ShaperConfig, Work,
};

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

fn shaper() -> Shaper<u64> {
    Shaper::new(ShaperConfig { volumes_max: 16, groups_max: 2, parked_items_max: 4096 }, 0)
}

fn bytes(rate: u64, cap_units: u64) -> PoolLimits {
    PoolLimits { bytes: Some(PoolRate::Own { rate, cap_units }), packets: None }
}

fn weighing(weight: u64) -> Limits {
    Limits { weight: Some(weight), ..Limits::default() }
}

fn cost(bytes: u32) -> Cost {
    Cost { bytes, packets: 1, offset: None }
}

/// All volumes always have requests of their own size waiting, in turns of 50 us; bytes of each in the time
/// given, after what the pools began with is spent.
fn saturate(s: &mut Shaper<u64>, sizes: &[u32], time_ns: u64) -> Vec<u64> {
    let passed = |s: &Shaper<u64>| -> Vec<u64> {
        (0..sizes.len() as u32).map(|v| s.counters(v).unwrap().admitted_bytes).collect()
    };
    let (mut now, mut early) = (0, Vec::new());
    while now < time_ns + S / 10 {
        if now == S / 10 {
            early = passed(s);
        }
        s.release(now, 64, &mut |_: Released<u64>| {});
        for (volume, &size) in sizes.iter().enumerate() {
            while s.counters(volume as u32).unwrap().parked.items < 40 {
                let _ = s.admit(now, volume as u32, Lane::Forward, cost(size), now);
            }
        }
        now += 50_000;
    }
    passed(s).iter().zip(early).map(|(late, early)| late - early).collect()
}

fn assert_shares(got: &[u64], weights: &[u64], percent: f64) {
    let (sum, weighed) = (got.iter().sum::<u64>() as f64, weights.iter().sum::<u64>() as f64);
    for (volume, (&got, &weight)) in got.iter().zip(weights).enumerate() {
        let ratio = got as f64 / sum * weighed / weight as f64;
        assert!((ratio - 1.0).abs() * 100.0 <= percent, "volume {volume}: {ratio:.3} of its share");
    }
}

#[test]
fn ten_volumes_share_a_short_node_within_5_percent() {
    let mut s = shaper();
    for volume in 0..10 {
        s.set_volume(0, volume, &weighing(5)).unwrap();
    }
    s.set_node(0, &bytes(100_000_000, 1_000_000)).unwrap();
    let sizes = [64, 100, 200, 400, 512, 800, 1_000, 1_200, 1_400, 1_500];
    let got = saturate(&mut s, &sizes, S);
    assert_shares(&got, &[5; 10], 5.0);
    let sum: u64 = got.iter().sum();
    assert!(sum.abs_diff(100_000_000) < 200_000, "the node is used in full: {sum}");
}

#[test]
fn shares_follow_weights_and_base_rates() {
    let mut s = shaper();
    s.set_node(0, &bytes(50_000_000, 100_000)).unwrap();
    // Two by weight, two by base rate: work, which is far above what the node has.
    s.set_volume(0, 0, &weighing(100_000_000)).unwrap();
    s.set_volume(0, 1, &weighing(200_000_000)).unwrap();
    for (volume, rate) in [(2, 300_000_000), (3, 400_000_000)] {
        let dim = DimLimits { work: Some(Work::at(rate)), ..DimLimits::default() };
        s.set_volume(0, volume, &Limits { bytes: dim, ..Limits::default() }).unwrap();
    }
    assert_shares(&saturate(&mut s, &[1_500, 1_500, 700, 1_500], S), &[1, 2, 3, 4], 5.0);
}

#[test]
fn a_group_is_held_to_its_pool_and_shares_it() {
    let mut s = shaper();
    s.set_group(0, 1, &bytes(10_000_000, 100_000)).unwrap();
    s.set_node(0, &bytes(60_000_000, 100_000)).unwrap();
    for volume in 0..8 {
        let group = (volume < 4).then_some(1);
        s.set_volume(0, volume, &Limits { group, ..weighing(9) }).unwrap();
    }
    let got = saturate(&mut s, &[1_000; 8], 2 * S);
    let (inside, outside) = got.split_at(4);
    let sum: u64 = inside.iter().sum();
    assert!(sum.abs_diff(20_000_000) < 200_000, "{sum} in the group");
    assert_shares(inside, &[1; 4], 5.0);
    assert_shares(outside, &[1; 4], 5.0);
    let sum: u64 = got.iter().sum();
    assert!(sum.abs_diff(120_000_000) < 200_000, "{sum} on the node");
}

#[test]
fn weights_hold_inside_a_group_whether_the_group_or_the_node_is_short() {
    for (group_rate, expected) in [(None, [1, 3, 4]), (Some(10_000_000), [5, 15, 60])] {
        let mut s = shaper();
        if let Some(rate) = group_rate {
            s.set_group(0, 0, &bytes(rate, 50_000)).unwrap();
        }
        s.set_node(0, &bytes(40_000_000, 50_000)).unwrap();
        for (volume, weight) in [(0, 10), (1, 30)] {
            s.set_volume(0, volume, &Limits { group: Some(0), ..weighing(weight) }).unwrap();
        }
        s.set_volume(0, 2, &weighing(40)).unwrap();
        assert_shares(&saturate(&mut s, &[1_000, 700, 1_500], S), &expected, 5.0);
    }
}

/// Nine volumes want all the node has; the tenth sends one frame per millisecond, an eighth of its share.
#[test]
fn a_neighbour_within_its_share_waits_for_one_round_at_most() {
    let mut s = shaper();
    for volume in 0..10 {
        s.set_volume(0, volume, &weighing(7)).unwrap();
    }
    let rate = 120_000_000;
    s.set_node(0, &bytes(rate, 120_000)).unwrap();
    let (mut waits, mut now) = (Vec::new(), 0);
    while now < S {
        s.release(now, 256, &mut |r: Released<u64>| {
            if r.volume == 9 && r.item > 100 * MS {
                waits.push(r.waited_ns);
            }
        });
        for volume in 0..9 {
            while s.counters(volume).unwrap().parked.items < 40 {
                let _ = s.admit(now, volume, Lane::Forward, cost(1_500), now);
            }
        }
        if now % MS == 0
            && let Admission::Pass(sent) = s.admit(now, 9, Lane::Forward, cost(1_500), now)
            && sent > 100 * MS
        {
            waits.push(0);
        }
        now += 10_000;
    }
    waits.sort_unstable();
    let (p99, most) = (waits[waits.len() * 99 / 100], waits[waits.len() - 1]);
    // A round is one frame of each, and those who are served twice in it; turns come every 10 us.
    let round = 10 * 1_500 * S / rate;
    assert!(p99 <= 2 * round + 10_000 && most <= 3 * round, "p99 {p99}, most {most}, round {round}");
    assert!(waits.len() >= 890, "{}", waits.len());
}

#[test]
fn lanes_alternate_and_an_acknowledgement_passes_what_waits_for_bytes() {
    let mut s = shaper();
    let dim = DimLimits { work: Some(Work::at(1_500)), peak_rate: Some(1_500), ..DimLimits::default() };
    s.set_volume(0, 0, &Limits { bytes: dim, ..Limits::default() }).unwrap();
    let ask = |s: &mut Shaper<u64>, lane, bytes, item| s.admit(0, 0, lane, cost(bytes), item);
    assert!(matches!(ask(&mut s, Lane::Forward, 1_500, 0), Admission::Pass(0)));
    for item in 1..4 {
        assert!(matches!(ask(&mut s, Lane::Forward, 1_500, item), Admission::Parked { .. }));
    }
    assert!(matches!(ask(&mut s, Lane::Forward, 0, 4), Admission::Parked { .. }), "order within a lane");
    assert!(matches!(ask(&mut s, Lane::Reverse, 0, 100), Admission::Pass(100)), "0 bytes, other lane");
    assert!(matches!(ask(&mut s, Lane::Reverse, 1_500, 101), Admission::Parked { .. }), "needs bytes too");
    assert!(matches!(ask(&mut s, Lane::Reverse, 0, 102), Admission::Parked { .. }), "order within a lane");
    let mut order = Vec::new();
    while let Some(at) = s.next_deadline_ns() {
        s.release(at, 9, &mut |r: Released<u64>| order.push(r.item));
    }
    assert_eq!(order, [1, 101, 102, 2, 3, 4], "by turns, but 102 costs nothing");
}

#[test]
fn beyond_half_of_the_bound_is_marked_and_beyond_it_refused() {
    let mut s = shaper();
    let dim = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    let park = ParkLimits { items_max: 8, bytes_max: 1 << 20 };
    s.set_volume(0, 0, &Limits { bytes: dim, park, ..Limits::default() }).unwrap();
    let mut marks = Vec::new();
    for item in 0..12 {
        match s.admit(0, 0, Lane::Forward, cost(10), item) {
            Admission::Parked { mark } => marks.push(mark),
            Admission::Pass(item) => assert_eq!(item, 0),
            Admission::Full(item) => assert!(item >= 9),
        }
    }
    assert_eq!(marks, [false, false, false, false, true, true, true, true]);
    let c = s.counters(0).unwrap();
    assert_eq!((c.parked.items, c.parked.bytes, c.parked_total), (8, 80, 8));
    assert_eq!((c.marked, c.dropped, c.admitted_packets), (4, 3, 1));
    let mut marked = Vec::new();
    while let Some(at) = s.next_deadline_ns() {
        s.release(at, 9, &mut |r: Released<u64>| marked.push(r.mark));
    }
    assert_eq!(marked, marks, "the mark comes out with its request");
    assert!(s.counters(0).unwrap().parked_ns > 0);
}
