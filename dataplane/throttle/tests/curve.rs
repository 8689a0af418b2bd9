//! What a volume that always asks is let through, against the curve of `docs/throttle.md`: never further
//! from it than one request and 1 % of what the rate earns in 100 ms.

use throttle::{
    Admission, Burst, Cost, DimLimits, Lane, Limits, ParkLimits, Released, Shaper, ShaperConfig, Work,
};

const S: u64 = 1_000_000_000;

/// A dimension's two lines: what may pass at once, and per second after.
#[derive(Clone, Copy)]
struct Line {
    /// In thousandths of a unit, for a peak bucket holds 10 ms of its rate.
    begin_milli: u64,
    rate: u64,
}

/// A(t) in nano-units.
fn curve(lines: &[Line], now_ns: u64) -> i128 {
    let at = |l: &Line| i128::from(l.begin_milli) * 1_000_000 + i128::from(l.rate) * i128::from(now_ns);
    lines.iter().map(at).min().unwrap()
}

fn lines(dim: &DimLimits) -> Vec<Line> {
    let peak = dim.peak_rate.map(|rate| Line { begin_milli: rate * 10, rate });
    let work = dim.work.map(|w| Line { begin_milli: w.rate * 1_000, rate: w.rate });
    let burst = dim.burst.map(|b| Line { begin_milli: b.cap_units * 1_000, rate: b.fill_rate });
    [peak, work, burst].into_iter().flatten().collect()
}

fn shaper(limits: &Limits) -> Shaper<()> {
    let mut s = Shaper::new(ShaperConfig { volumes_max: 1, groups_max: 0, parked_items_max: 64 }, 0);
    s.set_volume(0, 0, limits).unwrap();
    s
}

/// Keeps the volume asking for `units` at a time until `until_ns` and holds what passes to the curve, at
/// every release and just before the next.
fn follow(dim: DimLimits, in_bytes: bool, units: u32, until_ns: u64) {
    let (bytes, packets) = if in_bytes { (dim, DimLimits::default()) } else { (DimLimits::default(), dim) };
    let mut s = shaper(&Limits { bytes, packets, ..Limits::default() });
    let cost = if in_bytes {
        Cost { bytes: units, ..Cost::default() }
    } else {
        Cost { packets: units, ..Cost::default() }
    };
    let lines = lines(&dim);
    let rate_max = lines.iter().map(|l| l.rate).max().unwrap();
    // One request, and a hundredth of 100 ms: in nano-units, rate * 10^9 / 1000.
    let tolerance = i128::from(units) * 1_000_000_000 + i128::from(rate_max) * 1_000_000;
    let mut now = 0;
    while now < until_ns {
        while s.parked().items < 4 {
            let _ = s.admit(now, 0, Lane::Forward, cost, ());
        }
        let check = |s: &Shaper<()>, at: u64| {
            let c = s.counters(0).unwrap();
            let passed = i128::from(c.admitted_bytes + c.admitted_packets) * 1_000_000_000;
            let off = passed - curve(&lines, at);
            assert!(off.abs() <= tolerance, "{} units off at {at} ns", off / 1_000_000_000);
        };
        check(&s, now);
        let next = s.next_deadline_ns().unwrap();
        check(&s, next - 1);
        now = next;
        s.release(now, 8, &mut |_: Released<()>| {});
    }
}

fn work(rate: u64, peak: u64) -> DimLimits {
    DimLimits { work: Some(Work::at(rate)), peak_rate: Some(peak), ..DimLimits::default() }
}

#[test]
fn curve_of_credits_drains_and_bends() {
    let burst = Some(Burst { cap_units: 5_400, fill_rate: 100 });
    follow(DimLimits { burst, peak_rate: Some(3_000), ..DimLimits::default() }, false, 1, 10 * S);
    let burst = Some(Burst { cap_units: 5_400, fill_rate: 300 });
    follow(DimLimits { burst, peak_rate: Some(3_000), ..DimLimits::default() }, false, 1, 10 * S);
}

#[test]
fn curve_of_small_rates() {
    follow(work(300, 300), false, 1, 60 * S);
    follow(work(10, 10), false, 1, 1_000 * S);
    follow(work(1, 1), false, 1, 10_000 * S);
    follow(work(7, 1_000), false, 3, 1_000 * S);
}

#[test]
fn curve_of_bytes_from_10_megabytes_to_10_gigabytes() {
    for rate in [10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000] {
        // Enough for the bend of the curve at 1.01 s / (2 - 1) where that is affordable, and 20 ms at least.
        follow(work(rate, rate * 2), true, 1_500, (30_000 * S / rate * 1_500).clamp(S / 50, 3 * S));
        follow(work(rate, rate), true, 64_000, (30_000 * S / rate * 64_000).clamp(S / 50, 3 * S));
    }
}

/// A1, scaled: the rates of the phases, and the bank full again after 18 s of rest.
#[test]
fn a1_scaled_gp2_bursts_sustains_and_recovers() {
    let burst = Some(Burst { cap_units: 5_400, fill_rate: 300 });
    let packets = DimLimits { burst, peak_rate: Some(3_000), ..DimLimits::default() };
    let mut s = shaper(&Limits { packets, ..Limits::default() });
    let mut now = 0;
    let mut ask_until = |s: &mut Shaper<()>, mut from: u64, until: u64| {
        let before = s.counters(0).unwrap().admitted_packets;
        while from < until {
            while s.parked().items < 32 {
                let _ = s.admit(from, 0, Lane::Forward, Cost { packets: 1, ..Cost::default() }, ());
            }
            from = s.next_deadline_ns().unwrap();
            s.release(from, 32, &mut |_: Released<()>| {});
        }
        now = from;
        s.counters(0).unwrap().admitted_packets - before
    };
    for round in 0..2 {
        let begin = round * 30 * S;
        let bursting = ask_until(&mut s, begin, begin + 2 * S - S / 50);
        assert!(bursting.abs_diff(3_000 * 99 / 50) <= 5 * 30, "{bursting} in the first 1.98 s");
        ask_until(&mut s, begin + 2 * S - S / 50, begin + 2 * S + S / 50);
        let sustained = ask_until(&mut s, begin + 2 * S + S / 50, begin + 10 * S);
        assert!(sustained.abs_diff(300 * 798 / 100) <= 15, "{sustained} in the next 7.98 s");
        // What waits goes out; then 18 s of rest.
        let mut rest = begin + 10 * S;
        while let Some(at) = s.next_deadline_ns() {
            rest = at;
            s.release(at, 32, &mut |_: Released<()>| {});
        }
        assert!(rest < begin + 11 * S);
        let level = s.balances(rest + 18 * S, 0).unwrap().packets.burst_units;
        assert_eq!(level, Some((5_400, 5_400)));
    }
}

/// A single outstanding request under a limit waits no longer than 1.2 / rate (shared goal of the peers).
#[test]
fn one_request_at_a_time_waits_at_most_one_interval() {
    let mut s = shaper(&Limits { packets: work(3_000, 3_000), ..Limits::default() });
    let (mut now, mut longest) = (0, 0);
    for _ in 0..20_000 {
        let asked = now;
        if let Admission::Parked { .. } =
            s.admit(now, 0, Lane::Forward, Cost { packets: 1, ..Cost::default() }, ())
        {
            while s.parked().items > 0 {
                now = s.next_deadline_ns().unwrap();
                s.release(now, 1, &mut |_: Released<()>| {});
            }
        }
        longest = longest.max(now - asked);
    }
    assert!(longest <= S / 3_000 + 1, "{longest}");
    assert!(now.abs_diff(20_000 * S / 3_000) <= S + S / 100, "{now}");
}

/// A5: over every interval, no more than the cap, the rate and one request.
#[test]
fn no_interval_exceeds_cap_and_rate_and_one_request() {
    let limits = Limits {
        packets: work(1_000, 1_000),
        park: ParkLimits { items_max: 50, bytes_max: 1 << 20 },
        ..Limits::default()
    };
    let mut s = shaper(&limits);
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let (mut now, mut passed) = (0u64, 0i128);
    // The lowest that `passed - rate * t` has been: an interval begins there.
    let mut lowest = 0i128;
    for _ in 0..200_000 {
        now += random(3_000_000);
        let before = s.counters(0).unwrap().admitted_packets;
        s.release(now, 64, &mut |_: Released<()>| {});
        for _ in 0..random(5) {
            let cost = Cost { packets: random(4) as u32, ..Cost::default() };
            let _ = s.admit(now, 0, Lane::Forward, cost, ());
        }
        lowest = lowest.min(passed - 1_000 * i128::from(now));
        passed += i128::from(s.counters(0).unwrap().admitted_packets - before) * 1_000_000_000;
        // The peak's bucket holds 10.
        let most = lowest + 1_000 * i128::from(now) + (10 + 4) * 1_000_000_000;
        assert!(passed <= most, "{} too many at {now}", passed - most);
    }
}
