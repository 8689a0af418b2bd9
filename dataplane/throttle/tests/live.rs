//! A running shaper: limits that change under load, volumes that go, clocks that misbehave, ten years, and
//! workers that share a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use throttle::{
    Admission, Burst, Cost, DimLimits, Dimension, Lane, Limits, LimitsError, Parked, PoolError, PoolLimits,
    PoolRate, RATE_MAX, Ratio, Released, Shaper, ShaperConfig, SharedBucket, Work,
};

const S: u64 = 1_000_000_000;
const YEAR: u64 = 366 * 24 * 3600 * S;

fn config(volumes_max: u32) -> ShaperConfig {
    ShaperConfig { volumes_max, groups_max: 2, parked_items_max: 4096 }
}

fn packets(n: u32) -> Cost {
    Cost { packets: n, ..Cost::default() }
}

fn work(rate: u64) -> Limits {
    let packets = DimLimits { work: Some(Work::at(rate)), ..DimLimits::default() };
    Limits { packets, ..Limits::default() }
}

fn bank(cap_units: u64, fill_rate: u64) -> Limits {
    let packets = DimLimits { burst: Some(Burst { cap_units, fill_rate }), ..DimLimits::default() };
    Limits { packets, ..Limits::default() }
}

fn credits(s: &Shaper<u64>, now_ns: u64) -> Option<i64> {
    s.balances(now_ns, 0).unwrap().packets.burst_units.map(|(level, _)| level)
}

#[test]
fn a_bank_resized_during_a_burst_keeps_its_balance() {
    let mut s = Shaper::new(config(1), 0);
    s.set_volume(0, 0, &bank(1_000, 10)).unwrap();
    assert!(matches!(s.admit(0, 0, Lane::Forward, packets(400), 0), Admission::Pass(_)));
    s.set_volume(10 * S, 0, &bank(2_000, 20)).unwrap();
    assert_eq!(credits(&s, 10 * S), Some(700), "10 s at the old rate");
    s.set_volume(20 * S, 0, &bank(500, 20)).unwrap();
    assert_eq!(credits(&s, 20 * S), Some(500), "cut to the new cap");
    s.set_volume(20 * S, 0, &work(5)).unwrap();
    assert_eq!(credits(&s, 20 * S), None);
    s.set_volume(20 * S, 0, &bank(70, 1)).unwrap();
    assert_eq!(credits(&s, 20 * S), Some(70), "a bank that was not there starts full");
}

#[test]
fn what_is_cancelled_is_not_paid_for_and_those_behind_move_up() {
    let mut s = Shaper::new(config(1), 0);
    s.set_volume(0, 0, &work(1)).unwrap();
    assert!(matches!(s.admit(0, 0, Lane::Forward, packets(101), 0), Admission::Pass(_)));
    for (item, count) in [(1, 1_000), (2, 1), (3, 1)] {
        assert!(matches!(s.admit(0, 0, Lane::Forward, packets(count), item), Admission::Parked { .. }));
    }
    assert!(s.cancel(0, 0, |&item| item == 9).is_none() && s.cancel(0, 7, |_| true).is_none());
    assert_eq!(s.cancel(S / 2, 0, |&item| item == 1).map(|r| (r.item, r.waited_ns)), Some((1, S / 2)));
    let mut out = Vec::new();
    assert_eq!(s.release(S / 2, 9, &mut |released| out.push(released.item)), 0);
    assert_eq!(s.next_deadline_ns(), Some(100 * S + 1));
    assert_eq!(s.release(100 * S + 1, 9, &mut |released| out.push(released.item)), 1);
    assert_eq!(s.release(101 * S + 1, 9, &mut |released| out.push(released.item)), 1);
    assert_eq!((out, s.next_deadline_ns()), (vec![2, 3], None), "1 s apart, and 1,000 s are not charged");
    assert!(matches!(s.admit(101 * S + 1, 0, Lane::Forward, packets(5), 4), Admission::Parked { .. }));
    assert_eq!(s.cancel(101 * S + 2, 0, |_| true).map(|r| r.item), Some(4));
    assert_eq!(s.release(200 * S, 9, &mut |_| panic!("nobody is left")), 0);
    assert_eq!((s.next_deadline_ns(), s.parked()), (None, Parked::default()));
}

#[test]
fn what_waits_is_timed_anew() {
    let mut s = Shaper::new(config(1), 0);
    s.set_volume(0, 0, &work(1)).unwrap();
    assert!(matches!(s.admit(0, 0, Lane::Forward, packets(101), 0), Admission::Pass(_)));
    assert!(matches!(s.admit(0, 0, Lane::Forward, packets(1), 1), Admission::Parked { .. }));
    assert_eq!(s.next_deadline_ns(), Some(100 * S + 1));
    s.set_volume(0, 0, &work(1_000)).unwrap();
    assert_eq!(s.next_deadline_ns(), Some(S / 10 + 1));
    s.set_volume(0, 0, &Limits::unlimited()).unwrap();
    let mut got = Vec::new();
    assert_eq!(s.release(0, 9, &mut |r: Released<u64>| got.push(r.item)), 1);
    assert_eq!((got, s.next_deadline_ns(), s.parked()), (vec![1], None, Parked::default()));
}

#[test]
fn a_removed_volume_gives_its_requests_back_in_order() {
    let mut s = Shaper::new(config(2), 0);
    s.set_volume(0, 1, &work(1)).unwrap();
    for item in 0..5 {
        let _ = s.admit(0, 1, Lane::Forward, packets(1), item);
        let _ = s.admit(0, 1, Lane::Reverse, packets(1), 10 + item);
    }
    let mut got = Vec::new();
    let last = s.remove_volume(1, &mut |r: Released<u64>| got.push(r.item)).unwrap();
    assert_eq!(got, [1, 2, 3, 4, 10, 11, 12, 13, 14]);
    assert_eq!((last.parked.items, last.admitted_packets), (0, 1));
    assert_eq!((s.parked(), s.next_deadline_ns()), (Parked::default(), None));
    assert!(matches!(s.admit(0, 1, Lane::Forward, packets(9), 0), Admission::Pass(_)), "as new");
    assert_eq!(s.remove_volume(2, &mut |_: Released<u64>| ()), None);
}

/// A thousand changes of everything under load: nothing is lost, doubled or reordered, and all of it gets
/// out in the end.
#[test]
fn a_thousand_changes_under_load_lose_and_reorder_nothing() {
    let mut s: Shaper<u64> = Shaper::new(config(20), 0);
    let mut seed = 7u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let (mut now, mut next_item, mut refused, mut passed) = (0u64, 0u64, 0u64, 0u64);
    let mut last = [[None::<u64>; 2]; 20];
    let mut seen = |volume: u32, lane: Lane, item: u64| {
        let last = &mut last[volume as usize][lane as usize];
        assert!(last.is_none_or(|last| last < item), "{item} after {last:?}");
        *last = Some(item);
    };
    for change in 0..1_000 {
        let rate = 1 + random(20_000_000);
        let dim = DimLimits {
            burst: (random(2) == 0).then_some(Burst { cap_units: rate, fill_rate: 1 + rate / 10 }),
            work: (random(2) == 0).then_some(Work::at(rate)),
            peak_rate: (random(2) == 0).then_some(rate * 2),
            sequential: Ratio { num: 1, den: 1 + random(3) as u32 },
        };
        let group = (random(3) == 0).then_some(random(2) as u32);
        let limits = Limits { bytes: dim, group, ..Limits::default() };
        let pool = |rate| PoolLimits {
            bytes: Some(PoolRate::Own { rate, cap_units: 1 + rate / 50 }),
            packets: None,
        };
        match change % 5 {
            0 => s.set_node(now, &pool(rate * 20)).unwrap(),
            1 => s.set_group(now, random(2) as u32, &pool(rate)).unwrap(),
            _ => s.set_volume(now, random(20) as u32, &limits).unwrap(),
        }
        for _ in 0..20 {
            now += random(50_000);
            passed += s.release(now, 16, &mut |r: Released<u64>| seen(r.volume, r.lane, r.item)) as u64;
            for _ in 0..random(32) {
                let volume = random(20) as u32;
                let lane = if random(3) == 0 { Lane::Reverse } else { Lane::Forward };
                let bytes = if random(4) == 0 { 0 } else { 1 + random(1_500) as u32 };
                let cost = Cost { bytes, packets: 1, offset: Some(random(64) * 512) };
                match s.admit(now, volume, lane, cost, next_item) {
                    Admission::Pass(item) => {
                        seen(volume, lane, item);
                        passed += 1;
                    }
                    Admission::Parked { .. } => {}
                    Admission::Full(_) => refused += 1,
                }
                next_item += 1;
            }
        }
        assert_eq!(next_item, passed + refused + u64::from(s.parked().items));
    }
    while let Some(at) = s.next_deadline_ns() {
        now = now.max(at);
        passed += s.release(now, 64, &mut |r: Released<u64>| seen(r.volume, r.lane, r.item)) as u64;
    }
    assert_eq!((next_item, s.parked()), (passed + refused, Parked::default()));
    let dropped: u64 = (0..20).map(|v| s.counters(v).unwrap().dropped).sum();
    assert_eq!(dropped, refused);
}

#[test]
fn a_budget_is_kept_and_the_rest_is_due_at_once() {
    let mut s = Shaper::new(config(4), 0);
    s.set_node(0, &PoolLimits { packets: Some(PoolRate::Own { rate: 1_000, cap_units: 10 }), bytes: None })
        .unwrap();
    let _ = s.admit(0, 0, Lane::Forward, packets(10), 0);
    for item in 0..40 {
        let _ = s.admit(0, item as u32 % 4, Lane::Forward, packets(1), item);
    }
    s.set_node(0, &PoolLimits::default()).unwrap();
    let mut total = 0;
    for _ in 0..10 {
        assert_eq!(s.next_deadline_ns(), Some(0));
        let got = s.release(0, 4, &mut |_: Released<u64>| total += 1);
        assert_eq!(got, 4);
    }
    assert_eq!((total, s.next_deadline_ns(), s.release(0, 0, &mut |_| ())), (40, None, 0));
}

#[test]
fn a_clock_that_stands_or_runs_back_earns_nothing_and_loses_nothing() {
    let mut s = Shaper::new(config(1), 5 * S);
    s.set_volume(5 * S, 0, &work(10)).unwrap();
    assert!(matches!(s.admit(5 * S, 0, Lane::Forward, packets(9), 0), Admission::Pass(_)));
    let level = |s: &Shaper<u64>, now| s.balances(now, 0).unwrap().packets.work_units;
    assert_eq!((level(&s, 0), level(&s, 5 * S)), (Some(1), Some(1)));
    assert!(matches!(s.admit(0, 0, Lane::Forward, packets(2), 0), Admission::Pass(_)));
    assert!(matches!(s.admit(S, 0, Lane::Forward, packets(2), 0), Admission::Parked { .. }));
    assert_eq!(s.release(2 * S, 9, &mut |_| ()), 0);
    assert_eq!(s.next_deadline_ns(), Some(5 * S + S / 10 + 1));
    assert_eq!(level(&s, 20 * 24 * 3600 * S), Some(10), "suspended for 20 days: the cap holds");
    assert_eq!(s.release(u64::MAX, 9, &mut |_| ()), 1);
    assert_eq!(s.release(u64::MAX, 9, &mut |_| ()), 0);
}

#[test]
fn ten_years_and_the_largest_numbers_do_not_overflow() {
    let most = DimLimits {
        burst: Some(Burst { cap_units: throttle::BURST_UNITS_MAX, fill_rate: RATE_MAX }),
        work: Some(Work { debt_units_max: Some(u32::MAX), ..Work::at(RATE_MAX) }),
        peak_rate: Some(RATE_MAX),
        sequential: Ratio { num: u32::MAX - 1, den: u32::MAX },
    };
    let pool = |rate, cap_units| PoolLimits {
        bytes: Some(PoolRate::Own { rate, cap_units }),
        packets: Some(PoolRate::Own { rate, cap_units }),
    };
    let cost = Cost { bytes: u32::MAX, packets: u32::MAX, offset: Some(u64::MAX - 7) };
    for (limits, node) in [
        (Limits { bytes: most, packets: most, group: Some(0), ..Limits::default() }, pool(RATE_MAX, 1 << 60)),
        (Limits { group: Some(0), ..work(1) }, pool(1, 1)),
    ] {
        let mut s: Shaper<u64> = Shaper::new(config(2), 0);
        s.set_volume(0, 0, &limits).unwrap();
        s.set_group(0, 0, &node).unwrap();
        s.set_node(0, &node).unwrap();
        for month in 0..120 {
            let now = month * (YEAR / 12);
            for volume in 0..2 {
                let _ = s.admit(now, volume, Lane::Forward, cost, month);
                let _ = s.admit(now + 1, volume, Lane::Reverse, cost, month);
            }
            s.release(now + 2, 1_000, &mut |_| ());
            assert!(s.balances(now + 2, 0).is_some());
        }
        // 2^32 units at 1 per second take 136 years each: the end of time comes first, and is survived.
        s.release(u64::MAX, 1_000, &mut |_| ());
        assert!(s.node_units(Dimension::Bytes).is_some() && s.group_units(0, Dimension::Packets).is_some());
        assert_eq!(s.group_units(2, Dimension::Bytes), None);
    }
}

#[test]
fn what_can_never_work_is_refused_and_changes_nothing() {
    let mut s: Shaper<u64> = Shaper::new(config(1), 0);
    let dim = DimLimits::default();
    let ratio = Ratio { num: 3, den: 2 };
    let bands = |above: [u16; 2]| {
        above.map(|above_permille| Some(throttle::Band { above_permille, charge: Ratio::ONE }))
    };
    let [first, second] = bands([500, 500]);
    let wrong = [
        DimLimits { work: Some(Work::at(0)), ..dim },
        DimLimits { work: Some(Work::at(RATE_MAX + 1)), ..dim },
        DimLimits { burst: Some(Burst { cap_units: 0, fill_rate: 1 }), ..dim },
        DimLimits { sequential: ratio, ..dim },
        DimLimits { work: Some(Work { bands: [first, second, None, None], ..Work::at(1) }), ..dim },
    ];
    let errors = wrong.map(|bytes| s.set_volume(0, 0, &Limits { bytes, ..Limits::default() }).unwrap_err());
    assert!(matches!(
        errors,
        [
            LimitsError::ZeroRate { .. },
            LimitsError::RateTooHigh { .. },
            LimitsError::BurstCap { .. },
            LimitsError::Ratio { .. },
            LimitsError::BandOrder { .. },
        ]
    ));
    let mut set = |limits: &Limits, volume| s.set_volume(0, volume, limits).unwrap_err();
    let limits = Limits::default();
    assert_eq!(set(&Limits { weight: Some(0), ..limits }, 0), LimitsError::Weight);
    let park = throttle::ParkLimits { items_max: 0, bytes_max: 1 };
    assert_eq!(set(&Limits { park, ..limits }, 0), LimitsError::ParkBound);
    assert!(matches!(set(&limits, 1), LimitsError::VolumeOutOfRange { .. }));
    assert!(matches!(set(&Limits { group: Some(2), ..limits }, 0), LimitsError::GroupOutOfRange { .. }));
    let pool = |rate, cap_units| PoolLimits {
        bytes: Some(PoolRate::Own { rate, cap_units }),
        ..PoolLimits::default()
    };
    assert!(matches!(s.set_node(0, &pool(0, 1)), Err(PoolError::Rate { .. })));
    assert!(matches!(s.set_node(0, &pool(1, 0)), Err(PoolError::Cap { .. })));
    assert!(matches!(s.set_group(0, 2, &pool(1, 1)), Err(PoolError::GroupOutOfRange { .. })));
    assert!(matches!(s.admit(0, 0, Lane::Forward, packets(u32::MAX), 1), Admission::Pass(1)));
    assert!(matches!(s.admit(0, 1, Lane::Forward, packets(1), 2), Admission::Full(2)), "no such volume");
    assert!(s.prefetch_hints(0).is_some() && s.prefetch_hints(1).is_none());
    assert!(s.counters(1).is_none() && s.balances(0, 1).is_none());
}

/// Four workers in their own threads draw on one node as fast as they can, from one clock.
#[test]
fn workers_share_a_node_within_their_quanta() {
    const WORKERS: u64 = 4;
    let (rate, cap_units, until) = (2_000_000, 20_000, S / 2);
    let bucket = Arc::new(SharedBucket::new(0, rate, cap_units).unwrap());
    let clock = Arc::new(AtomicU64::new(0));
    let worker = |_| {
        let (bucket, clock) = (bucket.clone(), clock.clone());
        std::thread::spawn(move || {
            let mut s: Shaper<u64> = Shaper::new(config(4), 0);
            s.set_node(0, &PoolLimits { packets: Some(PoolRate::Shared(bucket)), bytes: None }).unwrap();
            loop {
                let now = clock.fetch_add(2_000, Relaxed);
                if now >= until {
                    s.return_quanta(now);
                    return (0..4).map(|v| s.counters(v).unwrap().admitted_packets).sum::<u64>();
                }
                s.release(now, 64, &mut |_| ());
                for volume in 0..4 {
                    while s.counters(volume).unwrap().parked.items < 4 {
                        let _ = s.admit(now, volume, Lane::Forward, packets(3), now);
                    }
                }
            }
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(worker).collect();
    let passed: u64 = workers.into_iter().map(|w| w.join().unwrap()).sum();
    let earned = cap_units + rate * until / S;
    assert!(passed <= earned + WORKERS * 3, "{passed} of {earned}");
    let left = bucket.available_units(until);
    let quanta = WORKERS * (rate / 1_000 + 3);
    assert!(passed + left + quanta >= earned, "{passed} passed and {left} left of {earned}");
}

#[test]
fn two_workers_that_take_turns_get_about_the_same() {
    let bucket = Arc::new(SharedBucket::new(0, 1_000_000, 10_000).unwrap());
    let node = PoolLimits { packets: Some(PoolRate::Shared(bucket)), bytes: None };
    let mut workers: Vec<Shaper<u64>> = (0..2).map(|_| Shaper::new(config(1), 0)).collect();
    let mut now = 0;
    for s in &mut workers {
        s.set_node(0, &node).unwrap();
    }
    while now < S {
        for s in &mut workers {
            now += 3_000;
            s.release(now, 64, &mut |_| ());
            while s.parked().items < 32 {
                let _ = s.admit(now, 0, Lane::Forward, packets(1), 0);
            }
        }
    }
    let got: Vec<u64> = workers.iter().map(|s| s.counters(0).unwrap().admitted_packets).collect();
    assert!(got[0].abs_diff(got[1]) * 10 < got[0], "{got:?}");
    assert!((got[0] + got[1]).abs_diff(1_010_000) < 3_000, "{got:?}");
}
