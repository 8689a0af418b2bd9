//! `bench policy`: how long decisions take, natively, by a policy, and while its versions change.
//!
//! One thread decides in a closed loop with questions made beforehand; while swapping, another thread activates two
//! versions of the same policy in turn, as fast as it can, with their state handed over. The ways of one row take
//! turns; a figure is the median of its runs. Then decisions are logged and replayed. A decision counts as failed
//! when the native default had to answer in place of the policy because of a fault, or when its replay differs.
//!
//! With `--under-load` all of that happens at once, at a pace, beside a data plane that serves: [`under_load`].
//!
//! It is a crate beside `bench`, so that who measures packets does not compile WebAssembly's compiler.

#![forbid(unsafe_code)]

mod under_load;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bench::Outcome;
use bench::peers::Args;
use bench::rate::tempfolder;
use bench::report::{self, Bar, median};
use clap::Parser;
use host::author::percentile;
use host::log::LogOptions;
use host::{Candidate, Engine, Gate, Limits, Options, Policies, Policy, Start, workload};
use serde::Serialize;
use verdict::{Decide, Kind, Native, Question, Tick};

#[derive(Parser)]
#[command(name = "bench policy", about = "Measure decisions of policies", max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Swap policies of all kinds while they decide and a data plane serves fio; needs two processors
    #[arg(long)]
    under_load: bool,
    /// Length of a window under load; by default 60, or 4 if it is to be quick
    #[arg(long, value_name = "SECONDS", requires = "under_load")]
    window: Option<u64>,
}

/// One row.
#[derive(Clone, Debug, Default, Serialize)]
struct PolicyRow {
    /// Which policy.
    policy: &'static str,
    /// What was asked.
    function: &'static str,
    /// Candidates, producers, leases, samples or times in each question.
    rows: usize,
    /// `native`, `wasm`, `swapping` or `replay`.
    how: &'static str,
    /// Decisions of all runs.
    decisions: u64,
    /// Those that failed; see above.
    failed: u64,
    /// Median of the runs' medians.
    p50_us: f64,
    /// Median of the runs' 99th percentiles.
    p99_us: f64,
    /// Versions that were activated meanwhile.
    swaps: u64,
    /// Activations that failed.
    failed_swaps: u64,
    /// How long decisions had to wait for an activation, median.
    swap_p50_us: Option<f64>,
    /// The same, 99th percentile.
    swap_p99_us: Option<f64>,
    /// Runs.
    runs: usize,
}

/// A policy, a key of its configuration that makes a second version, and the functions that it is asked.
const POLICIES: [(&str, (&str, &str), &[u64]); 3] = [
    ("scheduling-urgent-first", ("age-step-ms", "59999"), &[0]),
    ("leasing-capacity-weighted", ("ttl-ms", "29999"), &[0, 1]),
    ("migration-quiet-window", ("spacing-ms", "999"), &[0, 1]),
];

const ROWS: [usize; 3] = [10, 1_000, 10_000];

/// Questions of a row, asked over and over.
const QUESTIONS: u64 = 32;

/// The first of the two orders of questions: each kind has at most two functions that take turns.
const FUNCTIONS_MAX: u64 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    bench::exit(if cli.under_load { under_load::run(&cli.args, cli.window) } else { run(&cli.args) })
}

/// Measures all rows, prints the table, writes what was asked for.
fn run(args: &Args) -> Outcome {
    let engine = Engine::new(Limits::default()).map_err(|error| error.to_string())?;
    let (runs, time) = if args.quick { (3, Duration::from_millis(300)) } else { (5, Duration::from_secs(2)) };
    let mut rows = Vec::new();
    for (name, second, functions) in POLICIES {
        let stage = Stage::new(&engine, name, second)?;
        for &first in functions {
            for size in ROWS {
                let questions = questions(stage.kind(), size, first);
                let function = questions[0].1.function();
                if args.wants(&format!("{name} {function} {size}")) {
                    eprintln!("{name} {function} {size}");
                    rows.extend(stage.measure(&questions, size, runs, time));
                }
            }
        }
        if args.wants(&format!("{name} replay")) {
            rows.push(replayed(&engine, name, if args.quick { 5_000 } else { 100_000 })?);
        }
    }
    print(&rows);
    if let Some(path) = &args.json {
        report::write_json(path, &rows)?;
    }
    let bars: Vec<Bar> = rows.iter().filter(|row| row.how != "replay").map(bar).collect();
    let path = report::plot_bars("policy", "Decisions, 99th percentile", "us", &bars)?;
    eprintln!("{}", path.display());
    let failed: u64 = rows.iter().map(|row| row.failed + row.failed_swaps).sum();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} decisions, activations or replays failed")) }
}

fn questions(kind: Kind, size: usize, first: u64) -> Vec<(Tick, Question)> {
    (0..QUESTIONS).map(|number| workload::question(kind, size, number * FUNCTIONS_MAX + first)).collect()
}

/// A policy in two versions.
struct Stage {
    name: &'static str,
    policies: Policies,
    versions: [Arc<Policy>; 2],
}

impl Stage {
    fn new(engine: &Engine, name: &'static str, second: (&str, &str)) -> Outcome<Stage> {
        let policies = Policies::new(engine.clone(), Gate::default(), Options::default());
        let policies = policies.map_err(|error| error.to_string())?;
        let one = push(&policies, name, &[])?;
        let other = push(&policies, name, &[second])?;
        policies.activate(&one, Start::Fresh).map_err(|error| error.to_string())?;
        Ok(Stage { name, policies, versions: [one, other] })
    }

    fn kind(&self) -> Kind {
        self.versions[0].kind()
    }

    fn measure(
        &self,
        questions: &[(Tick, Question)],
        size: usize,
        runs: usize,
        time: Duration,
    ) -> Vec<PolicyRow> {
        let mut of = [Vec::new(), Vec::new(), Vec::new()];
        let mut swaps = Vec::new();
        let mut failed_swaps = 0;
        for _ in 0..runs {
            of[0].push(decide(&mut Native::default(), questions, time));
            of[1].push(decide(&mut self.policies.seat(), questions, time));
            of[2].push(self.swapping(questions, time, &mut swaps, &mut failed_swaps));
        }
        let mut rows: Vec<PolicyRow> = of
            .iter()
            .zip(["native", "wasm", "swapping"])
            .map(|(samples, how)| PolicyRow {
                policy: self.name,
                function: questions[0].1.function(),
                rows: size,
                how,
                decisions: samples.iter().map(|sample| sample.decisions).sum(),
                failed: samples.iter().map(|sample| sample.failed).sum(),
                p50_us: median(&samples.iter().map(|sample| sample.p50_us).collect::<Vec<_>>()),
                p99_us: median(&samples.iter().map(|sample| sample.p99_us).collect::<Vec<_>>()),
                runs,
                ..PolicyRow::default()
            })
            .collect();
        let last = &mut rows[2];
        (last.swaps, last.failed_swaps) = (swaps.len() as u64, failed_swaps);
        last.swap_p50_us = Some(microseconds(percentile(&mut swaps, 50)));
        last.swap_p99_us = Some(microseconds(percentile(&mut swaps, 99)));
        rows
    }

    /// Decides on a thread of its own while this one activates.
    fn swapping(
        &self,
        questions: &[(Tick, Question)],
        time: Duration,
        held_ns: &mut Vec<u64>,
        failed: &mut u64,
    ) -> Sample {
        let done = AtomicBool::new(false);
        let mut seat = self.policies.seat();
        std::thread::scope(|scope| {
            let deciding = scope.spawn(|| {
                let sample = decide(&mut seat, questions, time);
                done.store(true, Ordering::Release);
                sample
            });
            for version in self.versions.iter().rev().cycle() {
                match self.policies.activate(version, Start::Carry) {
                    Ok(activation) => held_ns.push(activation.held_ns),
                    Err(_) => *failed += 1,
                }
                // The rate of one who tries one version after the other, not of one who does nothing else.
                std::thread::sleep(Duration::from_millis(5));
                if done.load(Ordering::Acquire) {
                    break;
                }
            }
            // INVARIANT: deciding does not panic; a decider that does has found a bug, which belongs on the screen.
            deciding.join().expect("deciding ends in order")
        })
    }
}

struct Sample {
    decisions: u64,
    failed: u64,
    p50_us: f64,
    p99_us: f64,
}

fn decide(by: &mut impl Decide, questions: &[(Tick, Question)], time: Duration) -> Sample {
    let mut times = Vec::new();
    let mut failed = 0;
    let started = Instant::now();
    for (tick, question) in questions.iter().cycle() {
        let before = Instant::now();
        let decided = by.decide(*tick, question);
        times.push(u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX));
        failed += u64::from(decided.by.instead.is_some_and(|why| !why.starts_with("the policy abstains")));
        if started.elapsed() >= time {
            break;
        }
    }
    let decisions = times.len() as u64;
    let p50_us = microseconds(percentile(&mut times, 50));
    Sample { decisions, failed, p50_us, p99_us: microseconds(percentile(&mut times, 99)) }
}

fn push(policies: &Policies, name: &str, config: &[(&str, &str)]) -> Outcome<Arc<Policy>> {
    let component = shipped::component(name).ok_or_else(|| format!("{name} is not shipped"))?;
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let candidate = Candidate { component, signature: None, config };
    policies.push(&candidate).map_err(|error| format!("{name}: {error}"))
}

/// Logs decisions and takes them again.
fn replayed(engine: &Engine, name: &'static str, decisions: u64) -> Outcome<PolicyRow> {
    eprintln!("{name} replay of {decisions}");
    let folder = tempfolder("policy")?;
    let log = LogOptions { files: 1_000, ..LogOptions::in_folder(&folder.0.join(name)) };
    let options = Options { log: Some(log.clone()), ..Options::default() };
    let failed = |error: &dyn std::fmt::Display| format!("{name}: {error}");
    let policies = Policies::new(engine.clone(), Gate::default(), options).map_err(|error| failed(&error))?;
    let policy = push(&policies, name, &[])?;
    let mut seat = policies.seat();
    policies.activate(&policy, Start::Fresh).map_err(|error| failed(&error))?;
    for number in 0..decisions {
        let (tick, question) = workload::question(policy.kind(), 10, number);
        seat.decide(tick, &question);
    }
    let replayed = host::replay::replay(&log.folder, &policy).map_err(|error| failed(&error))?;
    Ok(PolicyRow {
        policy: name,
        function: "all",
        rows: 10,
        how: "replay",
        decisions: replayed.decisions,
        failed: replayed.different + replayed.skipped + decisions.abs_diff(replayed.decisions),
        runs: 1,
        ..PolicyRow::default()
    })
}

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1_000.0
}

fn bar(row: &PolicyRow) -> Bar {
    let group = ["native", "wasm", "swapping"].iter().position(|how| *how == row.how).unwrap_or(0);
    let policy = row.policy.split_once('-').map_or(row.policy, |(_, name)| name);
    Bar { label: format!("{policy} {} {}, {}", row.function, row.rows, row.how), group, value: row.p99_us }
}

fn print(rows: &[PolicyRow]) {
    let head = [
        "policy",
        "function",
        "rows",
        "how",
        "decisions",
        "failed",
        "p50, us",
        "p99, us",
        "swaps",
        "swap p50, us",
        "swap p99, us",
    ];
    let optional = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.0}"));
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.policy.to_owned(),
                row.function.to_owned(),
                row.rows.to_string(),
                row.how.to_owned(),
                row.decisions.to_string(),
                row.failed.to_string(),
                format!("{:.1}", row.p50_us),
                format!("{:.1}", row.p99_us),
                row.swaps.to_string(),
                optional(row.swap_p50_us),
                optional(row.swap_p99_us),
            ]
        })
        .collect();
    println!("{}", report::markdown(&head, &lines));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_exactly_the_published_fields() {
        let value = serde_json::to_value(PolicyRow::default()).expect("plain values");
        let mut names: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        names.sort_unstable();
        let published = "decisions failed failed_swaps function how p50_us p99_us policy rows runs swap_p50_us \
                         swap_p99_us swaps";
        assert_eq!(names, published.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn each_row_asks_one_function() {
        for (name, _, functions) in POLICIES {
            let kind = Kind::ALL.into_iter().find(|kind| name.starts_with(kind.name())).expect("of a kind");
            for &first in functions {
                let questions = questions(kind, 10, first);
                assert!(
                    questions.iter().all(|(_, question)| question.function() == questions[0].1.function())
                );
            }
        }
    }
}
