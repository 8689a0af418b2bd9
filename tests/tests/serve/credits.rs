//! Limits as their hosts feel them, over both protocols: the curve of docs/throttle.md window by window, how long one
//! request at a time takes under a limit, limits that change while they hold, and a neighbour beside who bursts.
//!
//! The short form holds what is true on any machine: nobody gets more than the limit allows, whatever else runs.
//! The full form wants a quiet one, and tells its figures.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bench::load::{self, Figures, SEEN_MAX, Spec};
use engine::clock::monotonic_ns;
use tests::gateway::full;
use tests::random::Random;

use crate::place::{Place, alone, memory};

const NS: f64 = 1e9;
const NQN: &str = "nqn.2026-11.com.example:limited";
const PROTOCOLS: [&str; 2] = ["NBD", "NVMe/TCP"];
const DEPTHS: [u32; 2] = [1, 32];

fn spec(place: &Place, protocol: &str) -> Spec {
    let uri = match protocol {
        "NBD" => place.unix("limited"),
        _ => format!("nvme+tcp://127.0.0.1:{}/{NQN}", place.nvme),
    };
    Spec { seen_max: SEEN_MAX, ..Spec::new(uri.parse().expect("a URI")) }
}

fn run(spec: &Spec) -> Figures {
    let figures = load::run(spec, &mut |_| ControlFlow::Continue(())).expect("the load goes to its end");
    assert!(figures.errors.is_empty(), "{:?}", figures.errors);
    assert_eq!(figures.mismatch_count, 0, "{:?}", figures.mismatches);
    figures
}

/// A limit and what it allows.
struct Limit {
    name: &'static str,
    /// Keys of the export.
    keys: &'static str,
    /// The limit is the least of these: so many at once, and so many per second, in requests.
    lines: &'static [(f64, f64)],
    block_bytes: u32,
    read_percent: u8,
    /// How long, and in how long parts it is compared: in short, and in full, s.
    seconds: [f64; 2],
    window: f64,
}

const LIMITS: &[Limit] = &[
    Limit {
        name: "100/s with a bank, peak 3,000/s",
        keys: "operations = { burst = { bank = 5400, fill = 100 }, peak = 3000 }",
        lines: &[(30.0, 3000.0), (5400.0, 100.0)],
        block_bytes: 4096,
        read_percent: 100,
        seconds: [2.0, 8.0],
        window: 1.0,
    },
    Limit {
        name: "300/s",
        keys: "operations = { rate = 300 }",
        lines: &[(300.0, 300.0)],
        block_bytes: 4096,
        read_percent: 50,
        seconds: [0.3, 8.0],
        window: 1.0,
    },
    Limit {
        name: "10/s",
        keys: "operations = { rate = 10 }",
        lines: &[(10.0, 10.0)],
        block_bytes: 4096,
        read_percent: 50,
        seconds: [0.5, 20.0],
        window: 2.0,
    },
    Limit {
        name: "1/s",
        keys: "operations = { rate = 1 }",
        lines: &[(1.0, 1.0)],
        block_bytes: 4096,
        read_percent: 0,
        seconds: [1.0, 20.0],
        window: 5.0,
    },
    Limit {
        name: "5 MB/s with a bank of 20 MB, peak 20 MB/s, 64 KiB each",
        keys: "bytes = { burst = { bank = \"20MB\", fill = \"5MB/s\" }, peak = \"20MB/s\" }",
        lines: &[(0.2e6 / 65536.0, 20e6 / 65536.0), (20e6 / 65536.0, 5e6 / 65536.0)],
        block_bytes: 65536,
        read_percent: 50,
        seconds: [1.6, 6.0],
        window: 1.0,
    },
];

impl Limit {
    /// Requests that may have passed this long after the first was asked.
    fn allows(&self, seconds: f64) -> f64 {
        self.lines.iter().map(|(at_once, per_second)| at_once + per_second * seconds).fold(f64::MAX, f64::min)
    }

    /// What the volume gets in the end.
    fn rate(&self) -> f64 {
        self.lines.iter().map(|(_, per_second)| *per_second).fold(f64::MAX, f64::min)
    }

    /// When what was saved up is spent, s.
    fn spent(&self) -> f64 {
        let (at_once, per_second) = *self.lines.last().expect("a limit has one");
        let first = self.lines[0];
        if first.1 > per_second { (at_once - first.0) / (first.1 - per_second) } else { 0.0 }
    }
}

/// Runs a load over a fresh volume with this limit for as many requests as it allows in the time, and compares.
fn follow(limit: &Limit, protocol: &str, depth: u32) {
    let export = memory("limited", "64MiB", &format!("nqn = \"{NQN}\"\n{}", limit.keys));
    // In full each of the two that poll has a processor.
    let worker = if full() { "[[worker]]\ncpu = 1\n" } else { "" };
    let place = Place::new("serve-curve", &[worker, &export]);
    let seconds = limit.seconds[usize::from(full())];
    let spec = Spec {
        depth,
        block_bytes: limit.block_bytes,
        read_percent: limit.read_percent,
        // Every request that the limit allows by then, and all that wait behind it; in short only some of them.
        requests_max: Some(limit.allows(seconds) as u64 + if full() { u64::from(depth) } else { 1 }),
        duration: Duration::from_secs(600),
        ..spec(&place, protocol)
    };
    let figures = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let pins = full() && core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
            assert!(pins || !full(), "processors 0 and 1 are needed");
            run(&spec)
        });
        load.join().expect("the load does not panic")
    });
    place.stop();
    let began_ns = figures.seen.iter().map(|seen| seen.asked_ns).min().expect("requests");
    let mut answered: Vec<f64> =
        figures.seen.iter().map(|seen| (seen.answered_ns - began_ns) as f64 / NS).collect();
    answered.sort_unstable_by(f64::total_cmp);
    // Nothing passes before it may: the request that takes a balance below zero is the one beyond.
    for (count, at) in (1..).zip(&answered) {
        let most = limit.allows(*at) + 1.0;
        assert!(f64::from(count) <= most, "{count} answers after {at} s, {most} allowed");
    }
    let passed = |until: f64| answered.partition_point(|at| *at <= until) as f64;
    let mut worst: f64 = 0.0;
    for window in 0..(seconds / limit.window) as u32 {
        let (from, to) = (f64::from(window) * limit.window, f64::from(window + 1) * limit.window);
        // The curve begins at once; a client cannot.
        let before = if window == 0 { 0.0 } else { limit.allows(from) };
        let (got, due) = (passed(to) - passed(from), limit.allows(to) - before);
        let beyond = ((got - due).abs() - 1.0).max(0.0) / due;
        worst = worst.max(beyond);
        let held = beyond <= 0.02;
        println!("| {} | {protocol} | {depth} | {from:.0}-{to:.0} s | {got:.0} | {due:.1} |", limit.name);
        assert!(held || !full(), "{got} answers between {from} s and {to} s, {due} are due");
    }
    println!(
        "{} over {protocol} at depth {depth}: off by {:.2} % beyond one request",
        limit.name,
        worst * 100.0
    );
    if depth == 1 {
        tell_latency(limit, &figures, began_ns);
    }
}

/// One request at a time waits for its turn and for nothing else.
fn tell_latency(limit: &Limit, figures: &Figures, began_ns: u64) {
    let spent_ns = began_ns + (limit.spent() * NS) as u64;
    let mut waits: Vec<f64> = Vec::new();
    // The first ones take what was saved; the last ones of them may be about to find nothing left.
    let (mut taken, at_once) = (0.0, limit.lines[0].0.max(limit.lines.last().map_or(0.0, |line| line.0)));
    for seen in &figures.seen {
        taken += 1.0;
        if seen.asked_ns > spent_ns && (taken > at_once || limit.lines.len() > 1) {
            waits.push((seen.answered_ns - seen.asked_ns) as f64 / NS);
        }
    }
    if waits.is_empty() {
        return;
    }
    waits.sort_unstable_by(f64::total_cmp);
    let p99 = waits[(waits.len() * 99).div_ceil(100) - 1];
    let share = p99 * limit.rate();
    println!("p99 of {} waits at {}: {:.3} ms, {share:.4} / rate", waits.len(), limit.name, p99 * 1e3);
    assert!(share <= 1.2 || !full(), "p99 is {p99} s, {share} / rate");
}

fn follow_all(protocol: &str) {
    let _alone = alone();
    for limit in LIMITS {
        DEPTHS.into_iter().for_each(|depth| follow(limit, protocol, depth));
    }
}

#[test]
fn credits_follow_the_curve_over_nbd() {
    follow_all("NBD");
}

#[test]
fn credits_follow_the_curve_over_nvme_tcp() {
    follow_all("NVMe/TCP");
}

/// Requests per second that a volume is changed to, from a seed.
const RATES: std::ops::Range<u64> = 500..3000;

fn changing(rate: u64) -> String {
    let keys = format!("nqn = \"{NQN}\"\noperations = {{ rate = {rate}, peak = {rate} }}");
    memory("limited", "64MiB", &keys)
}

/// What holds between two instants, ns: one of two rates while a change is on its way.
struct Held {
    from_ns: u64,
    rates: [u64; 2],
}

/// Requests that the limits have allowed until an instant: at least, and at most.
fn allowed(held: &[Held], until_ns: u64) -> [f64; 2] {
    let ends = held.iter().skip(1).map(|next| next.from_ns).chain([u64::MAX]);
    let each = held.iter().zip(ends).map(|(one, end_ns)| {
        let seconds = end_ns.min(until_ns).saturating_sub(one.from_ns) as f64 / NS;
        let [a, b] = one.rates;
        [a.min(b) as f64 * seconds, a.max(b) as f64 * seconds]
    });
    each.fold([0.0; 2], |sum, one| [sum[0] + one[0], sum[1] + one[1]])
}

/// Hosts of both protocols ask for all that they may have while the limit changes again and again.
#[test]
fn a_thousand_live_changes_are_followed_without_an_error() {
    let _alone = alone();
    let (changes, answers_each) = if full() { (1_000, 40) } else { (40, 10) };
    let mut rate = RATES.end;
    let mut place = Place::new("serve-changes", &[&changing(rate)]);
    // What was saved up is the same for all that follows.
    let saved = rate as f64;
    let specs = PROTOCOLS.map(|protocol| Spec {
        depth: 32,
        // One of them writes, for what it reads is to be what it wrote.
        read_percent: if protocol == "NBD" { 100 } else { 50 },
        verify: protocol != "NBD",
        duration: Duration::from_secs(600),
        ..spec(&place, protocol)
    });
    let over = AtomicBool::new(false);
    let began_ns = monotonic_ns();
    let mut held = vec![Held { from_ns: began_ns, rates: [rate; 2] }];
    let mut random = Random::new(11);
    let figures = std::thread::scope(|scope| {
        let one = |spec: &Spec| {
            let going = |_: &Figures| match over.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            load::run(spec, &mut { going }).expect("the load goes to its end")
        };
        let loads = specs.each_ref().map(|spec| scope.spawn(move || one(spec)));
        let answered = |place: &Place| {
            let counters = &place.daemon().stats().exports[0].counters;
            counters["reads"] + counters["writes"]
        };
        for _ in 0..changes {
            let goal = answered(&place) + answers_each;
            place.daemon().until("it is served on", || answered(&place) >= goal);
            let next = RATES.start + random.below(RATES.end - RATES.start);
            held.push(Held { from_ns: monotonic_ns(), rates: [rate, next] });
            place.change(&[&changing(next)]);
            held.push(Held { from_ns: monotonic_ns(), rates: [next; 2] });
            rate = next;
        }
        over.store(true, Ordering::Relaxed);
        loads.map(|load| load.join().expect("no load panics"))
    });
    tell_changes(&figures, &held, saved);
    place.stop();
}

fn tell_changes(figures: &[Figures], held: &[Held], saved: f64) {
    for figures in figures {
        assert_eq!(
            (&figures.errors, figures.mismatch_count),
            (&Default::default(), 0),
            "{:?}",
            figures.mismatches
        );
    }
    let mut answered: Vec<u64> =
        figures.iter().flat_map(|one| &one.seen).map(|seen| seen.answered_ns).collect();
    answered.sort_unstable();
    for (count, &at_ns) in (1..).zip(&answered) {
        let [_, most] = allowed(held, at_ns);
        assert!(f64::from(count) <= saved + most + 1.0, "{count} answers, {saved} + {most} allowed");
    }
    // From where all that was saved is spent until the last change, in parts.
    let until = |at_ns: u64| answered.partition_point(|&answered_ns| answered_ns <= at_ns) as f64;
    let (mut worst, mut sums): (f64, [f64; 3]) = (0.0, [0.0; 3]);
    let parts: Vec<u64> = held.iter().map(|one| one.from_ns).collect();
    for part in parts.chunks_exact(100).skip(1) {
        let (from_ns, to_ns) = (part[0], part[99]);
        let (got, [a, b], [c, d]) =
            (until(to_ns) - until(from_ns), allowed(held, from_ns), allowed(held, to_ns));
        let (least, most) = (c - a, d - b);
        sums = [sums[0] + got, sums[1] + least, sums[2] + most];
        worst = worst.max((least - got).max(got - most).max(0.0) / got.max(1.0));
    }
    let [got, least, most] = sums;
    println!(
        "{} changes, {} answers; in parts of 50 changes {got} where {least:.0} to {most:.0} are due; worst part off by {:.2} %",
        held.len() / 2,
        answered.len(),
        worst * 100.0
    );
    assert!(worst <= 0.02 || !full(), "{worst}");
}
