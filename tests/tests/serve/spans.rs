//! What `tidegate-load` saw of each of its requests beside what the data plane tells of it.
//!
//! The two are joined by what both know: the export, what was asked for, the block, and that the data plane received it
//! while the client waited. That is one I/O, for no block is asked for twice at a time.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent::traces::{OneTrace, TraceQuery, TraceReport};
use bench::load::{self, Figures, Op, SEEN_MAX, Seen, Spec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Signal, kill_process};
use tests::gateway::{daemon, folder, full};
use tests::netns::Held;

use crate::place::{Place, alone, file, memory};

const BLOCK: u64 = 4096;
const NQN: &str = "nqn.2026-11.com.example:";
/// Everything is followed and kept.
const KEEP: &str = "[trace]\nsample = 1\nrecords = 262144\nrecent = 65536\noutliers = 65536\n\
                    outliers_per_second = 1000000\noutlier_floor = \"2ms\"\n";
/// What the clocks of two threads may differ.
const CLOCKS_NS: u64 = 20_000;

fn asked(place: &Place, query: &TraceQuery) -> TraceReport {
    agent::client::trace(&place.daemon().socket, query).expect("the data plane answers")
}

fn uri(place: &Place, protocol: &str, export: &str) -> String {
    match protocol {
        "NBD" => place.tcp(export),
        _ => format!("nvme+tcp://127.0.0.1:{}/{NQN}{export}", place.nvme),
    }
}

/// Keys of an export that NVMe hosts find.
fn named(export: &str) -> String {
    format!("nqn = \"{NQN}{export}\"\n")
}

fn sequential(uri: &str, depth: u32, requests: u64) -> Spec {
    Spec {
        depth,
        read_percent: 0,
        sequential: true,
        requests_max: Some(requests),
        duration: Duration::from_secs(600),
        seen_max: SEEN_MAX,
        ..Spec::new(uri.parse().expect("a URI"))
    }
}

fn run(spec: &Spec) -> Figures {
    let figures = load::run(spec, &mut |_| ControlFlow::Continue(())).expect("the load goes to its end");
    assert!(figures.errors.is_empty(), "{:?}", figures.errors);
    figures
}

/// Collected I/Os later than `after`, once there are `count`.
fn collected(place: &Place, after: u64, count: usize) -> Vec<OneTrace> {
    let query = TraceQuery { after, limit: usize::MAX, ..TraceQuery::default() };
    let mut told = Vec::new();
    place.daemon().until("all are collected", || {
        let report = asked(place, &query);
        assert_eq!((report.collected.lost, report.collected.incomplete), (0, 0));
        told = report.traces;
        told.len() >= count
    });
    told
}

/// What was told of each request, by what both sides know of it.
fn join<'a>(seen: &'a [Seen], told: &'a [OneTrace]) -> Vec<(&'a Seen, &'a OneTrace)> {
    let mut by_block: HashMap<u64, Vec<&OneTrace>> = HashMap::new();
    for trace in told {
        by_block.entry(trace.lba * BLOCK).or_default().push(trace);
    }
    let pair = |one: &'a Seen| {
        assert_eq!(one.op, Op::Write);
        let during = |trace: &&&OneTrace| {
            one.asked_ns <= trace.started_ns + CLOCKS_NS && trace.started_ns <= one.answered_ns + CLOCKS_NS
        };
        let mut found = by_block.get(&one.offset_bytes).into_iter().flatten().filter(during);
        let trace = found.next().unwrap_or_else(|| panic!("nothing is told of {one:?}"));
        assert!(found.next().is_none(), "two are told of {one:?}");
        (one, *trace)
    };
    seen.iter().map(pair).collect()
}

/// Rounds that are as long as what is kept.
const AT_ONCE: u64 = 20_000;

/// A way to ask for a write, and what is behind it.
struct Way {
    export: &'static str,
    depth: u32,
    fua: bool,
    says: &'static str,
}

/// The longer the medium takes, the smaller is the part that the sockets of the kernel and the client take. The first
/// way is that of storage behind a network.
const WAYS: &[Way] = &[
    Way { export: "far", depth: 8, fua: false, says: "the medium takes 5 ms" },
    Way { export: "files", depth: 1, fua: true, says: "files, durable" },
    Way { export: "files", depth: 8, fua: true, says: "files, durable" },
    Way { export: "files", depth: 1, fua: false, says: "files" },
    Way { export: "files", depth: 8, fua: false, says: "files" },
];

/// Writes, and returns the part of them whose spans add up to what the client saw within 5 %.
fn add_up(place: &Place, protocol: &str, way: &Way, count: u64) -> f64 {
    let (mut within, mut gaps, mut hosts) = (0, Vec::new(), Vec::new());
    let mut last = asked(place, &TraceQuery::default()).collected.traces;
    let mut left = count;
    while left > 0 {
        let now = left.min(AT_ONCE);
        left -= now;
        let uri = uri(place, protocol, way.export);
        let figures = run(&Spec { fua: way.fua, ..sequential(&uri, way.depth, now) });
        let told = collected(place, last, now as usize);
        last = told.last().map_or(last, |trace| trace.number);
        for (seen, trace) in join(&figures.seen, &told) {
            let spans_ns: u64 = trace.spans.iter().map(|span| span.ns).sum();
            assert_eq!(spans_ns, trace.total_ns, "{trace:?}");
            assert_eq!(trace.kind, if way.fua { "write-fua" } else { "write" }, "{trace:?}");
            let host_ns = seen.answered_ns - seen.asked_ns;
            let gap_ns = host_ns.abs_diff(spans_ns);
            within += u64::from(gap_ns * 20 <= host_ns);
            gaps.push(gap_ns);
            hosts.push(host_ns);
        }
    }
    gaps.sort_unstable();
    hosts.sort_unstable();
    let share = within as f64 / count as f64;
    let at = |all: &[u64], part: usize| all[all.len() * part / 100] as f64 / 1e3;
    println!(
        "{protocol}, {}, depth {}: {:.2} % of {count} add up within 5 %; the host waits {:.0} us, of which {:.0} are not seen, \
         of 99 % at most {:.0}",
        way.says,
        way.depth,
        share * 100.0,
        at(&hosts, 50),
        at(&gaps, 50),
        at(&gaps, 99)
    );
    share
}

#[test]
fn spans_of_each_request_add_up_to_what_its_host_saw_over_both_protocols() {
    let _alone = alone();
    let count = if full() { 100_000 } else { 2_000 };
    let at = folder("serve-spans").join("files");
    let files = file("files", &at, "1GiB", 4096) + &named("files");
    let faults = "faults = { seed = 1, write_delay = 1.0, delay_by = \"5ms\" }\n";
    let far = memory("far", "256MiB", &(named("far") + faults));
    let place = Place::new("serve-spans", &[KEEP, &files, &far]);
    for protocol in ["NBD", "NVMe/TCP"] {
        for (number, way) in WAYS.iter().enumerate() {
            let share = add_up(&place, protocol, way, if number == 0 { count } else { count / 10 });
            // A machine that does other things lets a client wait before it sees its answer.
            assert!(share >= 0.99 || number > 0 || !full(), "{share}");
        }
    }
    place.stop();
}

/// The drill's own dice: what it delays is known for each write before it is asked.
fn delayed(seed: u64, chance: f64, writes: u64) -> HashSet<u64> {
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    let late = |dice: &mut ChaCha8Rng| {
        let late = dice.random_bool(chance);
        // Whether it fails is asked next.
        let _ = dice.random_bool(0.0);
        late
    };
    (0..writes).filter(|_| late(&mut dice)).collect()
}

/// Writes over NVMe/TCP, one after the other through the volume, of which the medium answers one in a hundred 5 ms late.
#[test]
fn outliers_are_those_that_the_drill_has_delayed_and_name_the_medium() {
    const DELAY_NS: u64 = 5_000_000;
    let _alone = alone();
    let count: u64 = if full() { 100_000 } else { 10_000 };
    // Long enough for each write to have a block of its own.
    let faults = "faults = { seed = 9, write_delay = 0.01, delay_by = \"5ms\" }";
    let export = memory("drill", "512MiB", &(named("drill") + faults));
    let place = Place::new("serve-drill", &[KEEP, &export]);
    let delayed = delayed(9, 0.01, count);
    let figures = run(&sequential(&uri(&place, "NVMe/TCP", "drill"), 1, count));
    place
        .daemon()
        .until("all are collected", || asked(&place, &TraceQuery::default()).collected.traces >= count);
    let counters = &place.daemon().stats().exports[0].counters;
    assert_eq!(counters["faults_delayed"], delayed.len() as u64, "the drill casts the dice that we cast");
    // What is usual must be known first.
    const LEARNT: u64 = 1_000;
    let query = TraceQuery { outliers: true, after: LEARNT, limit: usize::MAX, ..TraceQuery::default() };
    let report = asked(&place, &query);
    let due: HashSet<u64> = delayed.iter().copied().filter(|lba| *lba >= LEARNT).collect();
    let told: HashMap<u64, &OneTrace> = report.traces.iter().map(|trace| (trace.lba, trace)).collect();
    assert_eq!(told.len(), report.traces.len(), "each block is written once");
    let by_block: HashMap<u64, &Seen> =
        figures.seen.iter().map(|one| (one.offset_bytes / BLOCK, one)).collect();
    let names = |trace: &OneTrace| trace.outlier.as_ref().is_some_and(|outlier| outlier.culprit == "media");
    let found = due.iter().filter(|lba| told.get(lba).is_some_and(|trace| names(trace))).count();
    let (precision, recall) = (found as f64 / told.len().max(1) as f64, found as f64 / due.len() as f64);
    println!(
        "of {count} writes the drill delayed {}, {} of them after the first {LEARNT}; {} outliers, {found} of them \
         delayed and blamed on the medium: precision {precision:.4}, recall {recall:.4}; suppressed {}, lost {}",
        delayed.len(),
        due.len(),
        told.len(),
        report.collected.suppressed,
        report.collected.lost
    );
    // Its host has waited for each one that was delayed, also on a busy machine.
    for lba in &due {
        let waited_ns = by_block[lba].answered_ns - by_block[lba].asked_ns;
        assert!(waited_ns >= DELAY_NS, "block {lba}: {waited_ns} ns");
    }
    // What a busy machine holds up is an outlier too, or even usual.
    assert!((precision >= 0.99 && recall >= 0.99) || !full());
    place.stop();
}

/// A reader of traces, as a person starts it.
fn reader(place: &Place, into: File) -> Held {
    let mut command = Command::new(daemon());
    command.args(["trace", "--follow", "-o", "json", "--socket"]).arg(&place.daemon().socket);
    Held(command.stdin(Stdio::null()).stdout(into).spawn().expect("it is built"))
}

fn resident_bytes(place: &Place) -> u64 {
    let pid = place.daemon().process.0.id();
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("Linux has it");
    let pages: u64 = text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number");
    pages * 4096
}

/// Requests per second between two instants of a run: the median of its seconds.
fn rate(marks: &[(Duration, u64)], from: Duration, to: Duration) -> f64 {
    let within: Vec<_> = marks.iter().filter(|(at, _)| (from..=to).contains(at)).collect();
    let one =
        |pair: &[&(Duration, u64)]| (pair[1].1 - pair[0].1) as f64 / (pair[1].0 - pair[0].0).as_secs_f64();
    let mut rates: Vec<f64> = within.windows(2).map(one).collect();
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}

/// A reader that is stopped, and one that has asked for everything and does not read it.
#[test]
fn readers_that_stand_still_cost_the_data_path_nothing() {
    const ALL: &str =
        "GET /trace?volume=&after=0&outliers=false&slowest=false&limit=65536 HTTP/1.1\r\nhost: x\r\n\r\n";
    let _alone = alone();
    let stopped_for = Duration::from_secs(if full() { 60 } else { 2 });
    let place = Place::new("serve-stopped", &[KEEP, &memory("quick", "64MiB", &named("quick"))]);
    let at = place.folder.join("reader.json");
    let reader = reader(&place, File::create(&at).expect("a file"));
    let written = || std::fs::metadata(&at).expect("it is there").len();
    let pid = Pid::from_child(&reader.0);
    let mut silent = UnixStream::connect(&place.daemon().socket).expect("it listens");
    let uri = uri(&place, "NVMe/TCP", "quick").parse().expect("a URI");
    let spec = Spec { read_percent: 50, duration: Duration::from_secs(600), ..Spec::new(uri) };
    // Beside one who reads, beside the same when it is stopped, and again.
    let phase = (stopped_for / 2).max(Duration::from_secs(2));
    let (mut marks, mut stopped, mut went_on): (Vec<(Duration, u64)>, _, _) = (Vec::new(), None, None);
    let outcome = load::run(&spec, &mut |figures| {
        let now = figures.elapsed;
        marks.push((now, figures.ios()));
        match (stopped, went_on) {
            (None, _) if now >= phase && written() > 0 => {
                kill_process(pid, Signal::STOP).expect("it is our child");
                silent.write_all(ALL.as_bytes()).expect("the daemon takes it");
                stopped = Some((now, resident_bytes(&place)));
            }
            (Some((since, _)), None) if now >= since + stopped_for => {
                went_on = Some((now, resident_bytes(&place), written()));
                kill_process(pid, Signal::CONT).expect("it is our child");
            }
            (_, Some((since, _, before))) if now >= since + phase && written() > before => {
                return ControlFlow::Break(());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    let figures = outcome.expect("the load goes to its end");
    assert!(figures.errors.is_empty(), "{:?}", figures.errors);
    let (since, little) = stopped.expect("it was stopped");
    let (until, much, _) = went_on.expect("it went on");
    let [before, during, after] = [(Duration::ZERO, since), (since, until), (until, Duration::MAX)]
        .map(|(from, to)| rate(&marks, from, to));
    let report = asked(&place, &TraceQuery { limit: 1, ..TraceQuery::default() });
    println!(
        "I/Os per second (median of seconds): {before:.0} while it reads, {during:.0} while it is stopped for {} s, \
         {after:.0} afterwards: ratio {:.3}; memory {} KiB more; the collector has seen {} and lost {} records",
        stopped_for.as_secs(),
        during / ((before + after) / 2.0),
        much.saturating_sub(little) >> 10,
        report.collected.traces,
        report.collected.lost
    );
    assert!(during >= 0.97 * before.min(after) || !full());
    // One answer that is not read, and what the collector keeps in any case.
    assert!(much < little + (256 << 20), "{little} and {much} bytes");
    place.stop();
}
