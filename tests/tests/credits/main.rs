//! Credits, end to end: what fio gets over NBD through a pair of gateways is what the volume's limits say.
//!
//! Every figure is taken from the gateway's own counters together with the instant at which it took them,
//! and compared with the curve that docs/throttle.md defines, computed from the configuration. The limits
//! are a fraction of what any machine can do, so that the throttle is what limits. In full
//! (`cargo xtask verify 4`) the runs are long, and latencies are compared; the figures are printed.

mod curve;
mod lab;

use std::sync::{Mutex, PoisonError};

use tests::gateway::{full, full_or_skip, median};
use tests::netns::{isolated, skip};

use curve::{Curve, Window};
use lab::{Job, Lab, Sample, has_programs, processor_ticks, uri, volume};

/// One test at a time: each measures.
static TURN: Mutex<()> = Mutex::new(());

fn alone(test: &str, body: impl FnOnce()) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if has_programs(test) {
        isolated(test, body);
    }
}

const NS: u64 = 1_000_000_000;
const MB: f64 = 1e6;

/// Asks of volume 0 for `seconds`, always and for more than may pass, but for no more than may wait at the
/// gateway: the throttle, and not how TCP recovers from loss, is what is looked at. Returns what was admitted
/// in each second, beside the curve.
fn follow(lab: &mut Lab, curve: &mut Curve, seconds: u64) -> Vec<Window> {
    let before = lab.sample(0);
    let (runtime, place) = (format!("--runtime={}", seconds + 1), uri(0));
    let load = lab.load(&["--name=v0", "--bs=64k", "--iodepth=16", &*place, &*runtime]);
    let (mut full, mut first) = (before, before);
    lab.near.until("fio asks for more than may pass", || {
        first = lab.sample(0);
        if first.bank_bytes == Some(BANK as i64) {
            full = first;
        }
        first.bytes_since(&before) > 0.5 * MB && first.parked_bytes > 100_000
    });
    curve.begin(&before, &full, &first);
    let (mut windows, mut last) = (Vec::new(), first);
    for second in 1..=seconds {
        let now = lab.sample_at(0, first.at_ns + second * NS);
        let beyond = curve.beyond(&now);
        assert!(beyond <= 0.02 || curve.disturbed, "{beyond} more than the limits allow, by {now:?}");
        windows.push(curve.window(&last, &now));
        last = now;
    }
    let jobs = load.finish();
    assert!(jobs.iter().all(|job| job.bytes > 0), "fio read something: {jobs:?}");
    windows
}

/// Asks until the bank is empty and longer, rests, asks again. All windows, and whether the bank was as it
/// should be after the rest.
fn drain_rest_drain(lab: &mut Lab, curve: &mut Curve) -> (Vec<Window>, bool) {
    lab.near.until("the bank is full", || lab.sample(0).bank_bytes == Some(BANK as i64));
    let (drain, rest, again) = if full() { (12, 1, 6) } else { (3, 1, 2) };
    let mut windows = follow(lab, curve, drain);
    // What was outstanding still arrives; then the bank fills while nobody asks.
    let mut quiet = lab.sample(0);
    lab.near.until("nothing is admitted any more", || {
        let now = lab.sample_at(0, quiet.at_ns + NS / 10);
        let still = now.admitted_bytes == quiet.admitted_bytes;
        quiet = now;
        still
    });
    let rested = lab.sample_at(0, quiet.at_ns + rest * NS);
    let bank_follows = curve.bank_follows(&rested);
    windows.extend(follow(lab, curve, again));
    (windows, bank_follows)
}

const BANK: f64 = 20.0 * MB;

#[test]
fn admitted_bytes_follow_the_curve() {
    alone("admitted_bytes_follow_the_curve", || {
        let limits = "bytes = { burst = { bank = \"20MB\", fill = \"10MB/s\" }, peak = \"20MB/s\" }";
        let mut lab = Lab::start("curve", 1, &volume(0, limits));
        // More than the curve is never allowed. Less may be because somebody else held the processors for
        // longer than the peak's bucket holds, 10 ms; then it is tried again.
        let follows = (0..ATTEMPTS).any(|_| {
            let mut curve = Curve::new(BANK, 10.0 * MB, 20.0 * MB);
            let (windows, bank_follows) = drain_rest_drain(&mut lab, &mut curve);
            println!("\n| window | admitted | curve | off by |\n|---|---|---|---|");
            windows.iter().for_each(|window| println!("{window}"));
            bank_follows && !curve.disturbed && windows.iter().all(|window| window.error().abs() <= 0.02)
        });
        if !follows && !full() {
            eprintln!("below the curve in some window of each run: the machine was too busy to tell");
        }
        assert!(follows || !full(), "no run within 2 % of the curve in every window");
        lab.stop();
    });
}

/// Runs for what the rest of the machine can disturb.
const ATTEMPTS: usize = 3;

/// The claim in the full form; in the short one, which runs beside whatever else runs, a bound that only a
/// broken throttle misses.
fn bound(claim: f64, short: f64) -> f64 {
    if full() { claim } else { short }
}

/// Asks for more than may even wait. Returns goodput, bytes per second, and the share of the server's
/// segments that were sent again.
fn goodput(lab: &mut Lab, seconds: u64) -> (f64, f64) {
    let (runtime, place) = (format!("--runtime={seconds}"), uri(0));
    let (before, mut sent_before) = (lab.sample(0), lab.segments());
    // In its first second fio spends what the balance held when it began.
    let load = lab.load(&["--name=v0", "--bs=64k", "--iodepth=32", "--ramp_time=1", &*place, &*runtime]);
    if !full() {
        // In a short run, what is lost when TCP first meets the limit would weigh too much.
        lab.near.until("the balance is spent", || lab.sample(0).bytes_since(&before) > 15.0 * MB);
        sent_before = lab.segments();
    }
    let load = load.finish();
    let (after, sent_after) = (lab.sample(0), lab.segments());
    let Job { bytes, seconds, .. } = load[0];
    let (goodput, again) = (bytes as f64 / seconds, sent_after.share_again_since(&sent_before));
    let (marked, dropped) = (after.marked - before.marked, after.dropped - before.dropped);
    println!("{seconds:.1} s | {:.3} MB/s | {:.3} % | {marked} | {dropped} |", goodput / MB, again * 100.0);
    (goodput, again)
}

#[test]
fn goodput_is_what_the_limit_allows() {
    alone("goodput_is_what_the_limit_allows", || {
        let mut lab = Lab::start("goodput", 1, &volume(0, "bytes = { rate = \"10MB/s\" }"));
        let all = [("cubic", false), ("cubic", true), ("reno", false), ("reno", true), ("bbr", false)];
        let (seconds, ways) = if full() { (30, &all[..]) } else { (2, &all[..2]) };
        println!(
            "\n| TCP | ECN | time | goodput | sent again | marked | dropped |\n|---|---|---|---|---|---|---|"
        );
        for &(algorithm, ecn) in ways {
            if !lab.congestion_control(algorithm) {
                println!("this kernel has no {algorithm}");
                continue;
            }
            lab.ecn(ecn);
            print!("| {algorithm} | {ecn} | ");
            let (goodput, again) = goodput(&mut lab, seconds);
            assert!(goodput >= bound(0.95, 0.5) * 10.0 * MB, "goodput is {goodput}");
            assert!(again <= bound(0.01, 0.1), "{again} of the segments were sent again");
        }
        lab.stop();
    });
}

#[test]
fn ten_volumes_share_a_short_node() {
    alone("ten_volumes_share_a_short_node", || {
        let volumes: String = (0..10).map(|v| volume(v, "bytes = { rate = \"5MB/s\" }")).collect();
        let mut lab = Lab::start("short", 10, &(volumes + "[throttle]\nbytes = \"10MB/s\"\n"));
        let (seconds, depth) = if full() { (20, "--iodepth=32") } else { (2, "--iodepth=8") };
        let runtime = format!("--runtime={}", seconds + 30);
        let names: Vec<String> = (0..10).flat_map(|v| [format!("--name=v{v}"), uri(v)]).collect();
        let mut words = vec!["--bs=32k", depth, &*runtime];
        words.extend(names.iter().map(String::as_str));
        let load = lab.load(&words);
        // The second's worth that each balance holds is spent only as fast as the node lets it.
        lab.near.until("all volumes ask", || lab.volumes().iter().all(|volume| volume.parked_bytes > 0));
        let before: Vec<Sample> = lab.volumes().iter().map(Sample::of).collect();
        lab.sample_at(0, before[0].at_ns + seconds * NS);
        let after: Vec<Sample> = lab.volumes().iter().map(Sample::of).collect();
        assert!(load.runs(), "fio still asks");
        drop(load);
        let shares: Vec<f64> = before
            .iter()
            .zip(&after)
            .map(|(from, to)| to.bytes_since(from) / to.seconds_since(from))
            .collect();
        let sum: f64 = shares.iter().sum();
        println!("\n| admitted | off by |\n|---|---|");
        for share in &shares {
            println!("| {:.4} MB/s | {:+.2} % |", share / MB, (share / (sum / 10.0) - 1.0) * 100.0);
        }
        let part = sum / (10.0 * MB);
        assert!(part <= 1.02 && part >= bound(0.98, 0.5), "together they get what the node may: {sum}");
        for share in &shares {
            let off = (share / (sum / 10.0) - 1.0).abs();
            assert!(off <= bound(0.05, 0.25), "each gets its part: {shares:?}");
        }
        lab.stop();
    });
}

/// p99 of a neighbour that stays far inside its own rate; `None` if the host took more than a hundredth of the
/// processors' time away meanwhile: then it is the host's latency.
fn neighbour(lab: &mut Lab) -> Option<f64> {
    let place = uri(1);
    let words = ["--name=v1", "--bs=4k", "--iodepth=1", "--rate_iops=500", "--runtime=3", &*place];
    let (time, stolen) = processor_ticks();
    let p99_us = lab.load(&words).finish()[0].p99_us;
    let (time_now, stolen_now) = processor_ticks();
    let disturbed = (stolen_now - stolen) * 100 > time_now - time;
    print!("{p99_us:.1}{} | ", if disturbed { " (disturbed)" } else { "" });
    (!disturbed).then_some(p99_us)
}

/// A neighbour beside a noisy volume that spends its bank, and beside the same when the bank is empty.
///
/// In full only: latencies are the machine's as much as ours, so the three ways are measured in turn, many
/// times, on a quiet machine.
#[test]
fn a_neighbour_keeps_its_latency() {
    if !full_or_skip("a_neighbour_keeps_its_latency") {
        return;
    }
    alone("a_neighbour_keeps_its_latency", || {
        let noisy = "bytes = { burst = { bank = \"100MB\", fill = \"10MB/s\" }, peak = \"30MB/s\" }";
        let limits = volume(0, noisy) + &volume(1, "bytes = { rate = \"20MB/s\" }");
        let mut lab = Lab::start("neighbour", 2, &limits);
        assert!(lab.congestion_control("cubic"), "this kernel has no cubic");
        let _awake = lab.keep_processors_awake();
        let place = uri(0);
        let (mut bursting, mut held) = (Vec::new(), Vec::new());
        println!("\n| alone p99 us | bursting p99 us | held p99 us |\n|---|---|---|");
        for _ in 0..ROUNDS_MAX {
            if bursting.len().min(held.len()) == REPETITIONS {
                break;
            }
            print!("| ");
            neighbour(&mut lab);
            lab.near.until("the bank is full", || lab.sample(0).bank_bytes == Some(100_000_000));
            let noise = lab.load(&["--name=v0", "--bs=64k", "--iodepth=32", "--runtime=10", &*place]);
            lab.near.until("the noisy one bursts", || lab.sample(0).bank_bytes < Some(95_000_000));
            let beside_burst = neighbour(&mut lab);
            assert!(lab.sample(0).bank_bytes > Some(1_000_000), "it burst all the time");
            lab.near.until("the bank is empty", || lab.sample(0).bank_bytes < Some(1_000_000));
            let beside_held = neighbour(&mut lab);
            assert!(lab.sample(0).bank_bytes < Some(1_000_000), "it was held all the time");
            println!();
            noise.finish();
            bursting.extend(beside_burst);
            held.extend(beside_held);
        }
        let rounds = bursting.len().min(held.len());
        if rounds < REPETITIONS {
            let why = format!(
                "the host of this virtual machine was too busy: {rounds} of {ROUNDS_MAX} rounds undisturbed, \
                 {REPETITIONS} are needed"
            );
            skip("a_neighbour_keeps_its_latency", &why);
        } else {
            let (bursting, held) = (median(&bursting), median(&held));
            println!("medians: bursting {bursting:.1} us, held {held:.1} us, ratio {:.3}", bursting / held);
            assert!(
                bursting <= 1.2 * held,
                "{bursting} us beside a burst, {held} us beside one that is held"
            );
        }
        lab.stop();
    });
}

/// Undisturbed rounds that tell, and rounds in which they must be had.
const REPETITIONS: usize = 5;
const ROUNDS_MAX: usize = 20;
