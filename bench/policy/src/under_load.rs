//! `bench policy --under-load`: policies of all kinds are swapped while they decide and a data plane serves fio.
//!
//! A daemon with one worker, pinned to the second processor, serves a volume in files to fio, which verifies what it
//! wrote. Everything else, fio too, has the first processor: no policy runs where a worker does. Like in a control
//! plane, each kind has a thread with a place of its own and all decisions are logged; each is asked 5,000 times a second.
//!
//! Windows come in sets of three, in an order that turns: nobody decides; all decide; all decide while each kind goes
//! through four versions, one each 60 ms: a shipped policy, another build of it, the other shipped policy of the kind,
//! another build of that. State goes along each time. Without swaps each version decides in a quarter of the window, so
//! that the same policies have decided as often in both.
//!
//! - **Decisions** fail when the native default answers in place of a policy, for whatever reason.
//! - **State** is checked afterwards by replaying the log of each window: every decision must come out as it was, to the
//!   unit of fuel, and every version must have begun with all that the one before had come to.
//! - The **time** of a decision begins when it is due, also while an earlier one is under way, but for the time in which
//!   the asking thread overslept.
//! - **Interrupts** are those that others sent to the worker's processor during a window. Most of them wake the worker for
//!   a request of fio; one that never sleeps got 2 a minute of each sort while nobody decided, and 6 to 7 while versions were swapped.

mod fio;
mod load;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bench::block::servers::{self, Medium, Protocol, SERVER_CPU, Server};
use bench::cpu::Interrupts;
use bench::peers::Args;
use bench::rate::tempfolder;
use bench::report::{self, Bound, Goal, median};
use bench::{Outcome, cpu};
use host::author::percentile;
use host::log::LogOptions;
use host::{Engine, Limits, Options, Policies, Policy, replay};
use serde::Serialize;
use verdict::Kind;

use crate::microseconds;
use load::{Asked, Load};

/// The processor of everybody but the server.
const CPU: usize = 0;
/// Sets of windows.
const SETS: usize = 5;
/// Longest wait for a quiet machine.
const QUIET_PATIENCE: Duration = Duration::from_secs(20);
/// How long fio runs before a window begins, and longer than it.
const LEAD: Duration = Duration::from_secs(1);

const KINDS: usize = Kind::ALL.len();

/// A line of the JSON file.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Row {
    Decisions(DecisionsRow),
    Interrupts(InterruptsRow),
    Load(LoadRow),
}

/// Decisions of a kind.
#[derive(Clone, Debug, Default, Serialize)]
struct DecisionsRow {
    /// Which.
    kind: &'static str,
    /// Per second, of the slowest window.
    per_s: f64,
    /// All that were asked for, in windows of either sort.
    decisions: u64,
    /// Not decided by a policy, decided otherwise when they were replayed, or not in the log.
    failed: u64,
    /// Versions that became active while it decided.
    swaps: u64,
    /// Activations that failed, and states that did not go along.
    failed_swaps: u64,
    /// Without swaps: medians of the windows' percentiles.
    p50_us: f64,
    p99_us: f64,
    /// The same with swaps.
    swapping_p50_us: f64,
    swapping_p99_us: f64,
    /// Median of the sets' quotients of the 99th percentiles.
    p99_ratio: f64,
    /// Smallest and largest of them.
    p99_ratio_min: f64,
    p99_ratio_max: f64,
    /// How long decisions had to wait for an activation: median and 99th percentile.
    held_p50_us: f64,
    held_p99_us: f64,
}

/// Interrupts that the worker's processor got from others in a window.
#[derive(Clone, Debug, Default, Serialize)]
struct InterruptsRow {
    /// Of each window.
    seconds: f64,
    /// While nobody decided: medians.
    idle_tlb: f64,
    idle_call: f64,
    /// While versions were swapped.
    swapping_tlb: f64,
    swapping_call: f64,
    /// Median of the sets' quotients of both kinds together.
    ratio: f64,
    /// Smallest and largest of them.
    ratio_min: f64,
    ratio_max: f64,
    /// Nothing can fail.
    failed: u64,
}

/// What fio did.
#[derive(Clone, Debug, Default, Serialize)]
struct LoadRow {
    /// Reads and writes.
    requests: u64,
    /// Runs that ended with an error, or with data that was not what was written.
    failed: u64,
}

/// Which window of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    Idle,
    Steady,
    Swapping,
}

const ORDER: [Window; 3] = [Window::Idle, Window::Steady, Window::Swapping];

/// What was seen of all windows so far.
#[derive(Default)]
struct Seen {
    kinds: [KindSeen; KINDS],
    interrupts: [Vec<Interrupts>; ORDER.len()],
    fio: LoadRow,
}

#[derive(Default)]
struct KindSeen {
    per_s: Vec<f64>,
    decisions: u64,
    failed: u64,
    swaps: u64,
    failed_swaps: u64,
    held_ns: Vec<u64>,
    /// Median and 99th percentile of each window, without and with swaps.
    percentiles: [Vec<(f64, f64)>; 2],
}

/// Measures, prints the tables, writes what was asked for.
pub fn run(args: &Args, window: Option<u64>) -> Outcome {
    if !servers::is_installed("fio", "there is no load") {
        return Err("fio (package fio) is the load".to_owned());
    }
    let length = Duration::from_secs(window.unwrap_or(if args.quick { 4 } else { 60 }).max(1));
    stay_on(CPU)?;
    let folder = tempfolder("policy-load")?;
    let server = Server::start(&servers::Kind::Ours, Protocol::Nbd, Medium::File, 1, &folder.0)?;
    let uri = server.uri(0)?.to_string();
    let engine = Engine::new(Limits::default()).map_err(|error| error.to_string())?;
    let versions = load::versions(&engine)?;
    if !args.no_wait {
        cpu::settle(QUIET_PATIENCE)?;
    }
    let mut seen = Seen::default();
    for set in 0..SETS {
        for turn in 0..ORDER.len() {
            let which = ORDER[(turn + set) % ORDER.len()];
            eprintln!("set {} of {SETS}: {which:?}", set + 1);
            // Percentiles need no more.
            let length = if which == Window::Steady { length.min(Duration::from_secs(15)) } else { length };
            let log = folder.0.join("decisions");
            let fio = fio::Fio::start(&uri, length + 2 * LEAD)?;
            std::thread::sleep(LEAD);
            let before = Interrupts::of(SERVER_CPU)?;
            let asked = watch(which, length, &engine, &versions, &log)?;
            seen.interrupts[which as usize].push(Interrupts::of(SERVER_CPU)?.since(before));
            let (requests, failed) = fio.end()?;
            seen.fio.requests += requests;
            seen.fio.failed += u64::from(failed);
            check(asked, which, length, &versions, &log, &mut seen.kinds)?;
        }
    }
    report(args, length, seen)
}

/// One window; what was asked in each of its parts, of each kind. Each part has a log of its own.
fn watch(
    which: Window,
    length: Duration,
    engine: &Engine,
    versions: &load::Versions,
    log: &Path,
) -> Outcome<Vec<[Asked; KINDS]>> {
    let parts = match which {
        Window::Idle => {
            std::thread::sleep(length);
            return Ok(Vec::new());
        }
        Window::Steady => load::VERSIONS,
        Window::Swapping => 1,
    };
    let part = |first: usize| {
        // All of it is kept, and removed after it.
        let options = LogOptions { files: 10_000, ..LogOptions::in_folder(&part_log(log, first)) };
        let options = Options { log: Some(options), ..Options::default() };
        let policies = Policies::new(engine.clone(), host::Gate::default(), options);
        let policies = policies.map_err(|error| error.to_string())?;
        let (length, swaps) = (length / parts as u32, which == Window::Swapping);
        Load { policies, versions, first, length, swaps }.run()
    };
    (0..parts).map(part).collect()
}

/// Where the decisions of a window's part are logged.
fn part_log(log: &Path, part: usize) -> PathBuf {
    log.join(part.to_string())
}

/// Counts what was asked, replays it from the logs and removes them.
fn check(
    parts: Vec<[Asked; KINDS]>,
    which: Window,
    length: Duration,
    versions: &load::Versions,
    log: &Path,
    kinds: &mut [KindSeen; KINDS],
) -> Outcome {
    if parts.is_empty() {
        return Ok(());
    }
    let mut times_ns: [Vec<u64>; KINDS] = Default::default();
    for (part, asked) in parts.into_iter().enumerate() {
        let log = part_log(log, part);
        for (((asked, versions), seen), times_ns) in
            asked.into_iter().zip(versions).zip(&mut *kinds).zip(&mut times_ns)
        {
            seen.add(&asked, &log, versions)?;
            times_ns.extend(asked.times_ns);
        }
    }
    for (seen, mut times_ns) in kinds.iter_mut().zip(times_ns) {
        seen.per_s.push(times_ns.len() as f64 / length.as_secs_f64());
        let p50_us = microseconds(percentile(&mut times_ns, 50));
        let p99_us = microseconds(percentile(&mut times_ns, 99));
        seen.percentiles[usize::from(which == Window::Swapping)].push((p50_us, p99_us));
    }
    std::fs::remove_dir_all(log).map_err(|error| format!("{}: {error}", log.display()))
}

impl KindSeen {
    /// Counts what was asked in a part of a window, and replays it from its log.
    fn add(&mut self, asked: &Asked, log: &Path, versions: &[Arc<Policy>]) -> Outcome {
        let replayed = replay::replay_all(log, versions).map_err(|error| error.to_string())?;
        let decisions = asked.times_ns.len() as u64;
        let odd = replayed.different + replayed.skipped + decisions.abs_diff(replayed.decisions);
        if let Some(difference) = replayed.differences.first() {
            eprintln!("{difference:?}");
        }
        self.decisions += decisions;
        self.failed += asked.failed + odd;
        let swaps = asked.held_ns.len() as u64;
        self.swaps += swaps;
        // Every thread has a place for every kind.
        self.failed_swaps += asked.failed_swaps + (swaps * KINDS as u64).abs_diff(replayed.carried);
        self.held_ns.extend(&asked.held_ns);
        Ok(())
    }
}

fn report(args: &Args, length: Duration, seen: Seen) -> Outcome {
    let decisions = Kind::ALL.into_iter().zip(seen.kinds).map(|(kind, seen)| decisions_row(kind, seen));
    let decisions: Vec<DecisionsRow> = decisions.collect();
    let interrupts = interrupts_row(length, &seen.interrupts);
    let kept = print(&decisions, &interrupts, &seen.fio);
    let failed: u64 = decisions.iter().map(|row| row.failed + row.failed_swaps).sum();
    let failed_load = seen.fio.failed;
    let mut rows: Vec<Row> = decisions.into_iter().map(Row::Decisions).collect();
    rows.extend([Row::Interrupts(interrupts), Row::Load(seen.fio)]);
    if let Some(path) = &args.json {
        report::write_json(path, &rows)?;
    }
    match (failed, failed_load) {
        (0, 0) if kept || args.quick => Ok(()),
        (0, 0) => Err("a goal is not kept; the table says which".to_owned()),
        _ => Err(format!("{failed} decisions or swaps and {failed_load} runs of fio failed")),
    }
}

fn decisions_row(kind: Kind, mut seen: KindSeen) -> DecisionsRow {
    let [steady, swapping] = &seen.percentiles;
    let of =
        |all: &[(f64, f64)], one: fn(&(f64, f64)) -> f64| median(&all.iter().map(one).collect::<Vec<_>>());
    let ratios: Vec<f64> =
        steady.iter().zip(swapping).map(|((_, steady), (_, swapping))| swapping / steady).collect();
    let (p99_ratio_min, p99_ratio_max) = ends(&ratios);
    DecisionsRow {
        kind: kind.name(),
        per_s: ends(&seen.per_s).0,
        decisions: seen.decisions,
        failed: seen.failed,
        swaps: seen.swaps,
        failed_swaps: seen.failed_swaps,
        p50_us: of(steady, |(p50, _)| *p50),
        p99_us: of(steady, |(_, p99)| *p99),
        swapping_p50_us: of(swapping, |(p50, _)| *p50),
        swapping_p99_us: of(swapping, |(_, p99)| *p99),
        p99_ratio: median(&ratios),
        p99_ratio_min,
        p99_ratio_max,
        held_p50_us: microseconds(percentile(&mut seen.held_ns, 50)),
        held_p99_us: microseconds(percentile(&mut seen.held_ns, 99)),
    }
}

fn interrupts_row(length: Duration, seen: &[Vec<Interrupts>; ORDER.len()]) -> InterruptsRow {
    let (idle, swapping) = (&seen[Window::Idle as usize], &seen[Window::Swapping as usize]);
    let of = |all: &[Interrupts], one: fn(&Interrupts) -> u64| {
        median(&all.iter().map(|each| one(each) as f64).collect::<Vec<_>>())
    };
    let sum = |each: &Interrupts| (each.tlb + each.call).max(1) as f64;
    let ratios: Vec<f64> =
        idle.iter().zip(swapping).map(|(idle, swapping)| sum(swapping) / sum(idle)).collect();
    let (ratio_min, ratio_max) = ends(&ratios);
    InterruptsRow {
        seconds: length.as_secs_f64(),
        idle_tlb: of(idle, |each| each.tlb),
        idle_call: of(idle, |each| each.call),
        swapping_tlb: of(swapping, |each| each.tlb),
        swapping_call: of(swapping, |each| each.call),
        ratio: median(&ratios),
        ratio_min,
        ratio_max,
        failed: 0,
    }
}

fn ends(values: &[f64]) -> (f64, f64) {
    (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(f64::MIN, f64::max))
}

/// Prints the tables; whether all goals are kept.
fn print(decisions: &[DecisionsRow], interrupts: &InterruptsRow, fio: &LoadRow) -> bool {
    let head = [
        "kind",
        "decisions/s",
        "decisions",
        "failed",
        "swaps",
        "failed",
        "p50, p99, us",
        "swapping",
        "p99 ratio",
        "held p50, p99, us",
    ];
    let lines = decisions.iter().map(|row| {
        vec![
            row.kind.to_owned(),
            format!("{:.0}", row.per_s),
            row.decisions.to_string(),
            row.failed.to_string(),
            row.swaps.to_string(),
            row.failed_swaps.to_string(),
            format!("{:.1}, {:.1}", row.p50_us, row.p99_us),
            format!("{:.1}, {:.1}", row.swapping_p50_us, row.swapping_p99_us),
            format!("{:.2} ({:.2} to {:.2})", row.p99_ratio, row.p99_ratio_min, row.p99_ratio_max),
            format!("{:.0}, {:.0}", row.held_p50_us, row.held_p99_us),
        ]
    });
    println!("{}", report::markdown(&head, &lines.collect::<Vec<_>>()));
    let per_s = |count: f64| format!("{:.1}", count / interrupts.seconds);
    let line = |name: &str, tlb: f64, call: f64| vec![name.to_owned(), per_s(tlb), per_s(call)];
    let lines = [
        line("nobody decides", interrupts.idle_tlb, interrupts.idle_call),
        line("versions are swapped", interrupts.swapping_tlb, interrupts.swapping_call),
    ];
    println!("{}", report::markdown(&["interrupts of the worker's processor", "TLB/s", "CAL/s"], &lines));
    let worst = decisions.iter().map(|row| row.p99_ratio).fold(0.0, f64::max);
    let goal = |says: &str, measured: f64, most: f64| Goal {
        says: says.to_owned(),
        measured: Some(measured),
        bound: Bound::AtMost(most),
        unit: "x",
    };
    let (table, all_kept) = report::goals(&[
        goal("p99 of decisions, swapping by not swapping, of the worst kind", worst, 1.2),
        goal("TLB and call interrupts, swapping by idle, median of the sets", interrupts.ratio, 1.01),
    ]);
    println!("{table}");
    println!(
        "interrupts, smallest and largest quotient: {:.3}, {:.3}; fio: {} requests, {} failed runs",
        interrupts.ratio_min, interrupts.ratio_max, fio.requests, fio.failed
    );
    all_kept
}

/// Keeps this thread, and all threads and programs that it starts from now on, on a processor.
fn stay_on(cpu: usize) -> Outcome {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| format!("processor {cpu}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_of_the_windows_of_one_set() {
        let window = |tlb, call| Interrupts { tlb, call };
        let idle = vec![window(100, 0), window(50, 50), window(10, 0)];
        let swapping = vec![window(101, 0), window(50, 60), window(0, 9)];
        let row = interrupts_row(Duration::from_secs(4), &[idle, vec![], swapping]);
        assert_eq!((row.ratio, row.ratio_min, row.ratio_max), (1.01, 0.9, 1.1));
        assert_eq!((row.idle_tlb, row.swapping_call), (50.0, 9.0));
    }

    #[test]
    fn rows_have_what_is_published_and_say_what_failed() {
        for row in [
            Row::Decisions(DecisionsRow::default()),
            Row::Interrupts(InterruptsRow::default()),
            Row::Load(LoadRow::default()),
        ] {
            let value = serde_json::to_value(row).expect("plain values");
            assert!(value["what"].is_string() && value["failed"].is_u64(), "{value}");
        }
    }
}
