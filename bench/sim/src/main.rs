//! `sim`: worlds from seeds; see the library's documentation.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use clap::Parser;
use sim::{Bug, Faults, Outcome, Setup, run};

/// In so many worlds and more ...
const WORLDS_MANY: u64 = 10_000;
/// ... every kind of fault must have come so often, or they showed less than they seem to.
const FAULTS_LEAST: u64 = 1_000;

#[derive(Parser)]
#[command(
    name = "sim",
    about = "Simulate the control plane's core in worlds where everything fails",
    max_term_width = 100
)]
struct Cli {
    /// Worlds
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed; alone: only this one, twice, and the digests compared
    #[arg(long)]
    seed: Option<u64>,
    /// Events in each world before it heals
    #[arg(long, default_value_t = 20_000)]
    events: u64,
    /// Plant a mistake, or `all` of them one after the other, and see that it is found
    #[arg(long)]
    bug: Option<String>,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let bugs = match cli.bug.as_deref() {
        None => return worlds(&cli),
        Some("all") => Bug::ALL.to_vec(),
        Some(name) => match name.parse() {
            Ok(bug) => vec![bug],
            Err(why) => {
                eprintln!("sim: {why}");
                return ExitCode::FAILURE;
            }
        },
    };
    let mut found_all = true;
    for bug in bugs {
        let first = cli.seed.unwrap_or(1);
        let (seen, _) = many(first, cli.seeds, cli.events, Some(bug), cli.threads);
        match seen.iter().find(|outcome| outcome.violation.is_some()) {
            Some(outcome) => {
                let violation = outcome.violation.as_ref().map_or("", |violation| violation.invariant);
                let tried = outcome.seed - first + 1;
                println!("{bug:?}: found by {violation} with seed {} ({tried} tried)", outcome.seed);
            }
            None => {
                found_all = false;
                println!("{bug:?}: NOT found in {} seeds", cli.seeds);
            }
        }
    }
    if found_all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn worlds(cli: &Cli) -> ExitCode {
    let began = Instant::now();
    if let (Some(seed), 200) = (cli.seed, cli.seeds) {
        let setup = Setup { seed, events: cli.events, bug: None };
        let (one, again) = (run(setup), run(setup));
        print(&one);
        if one != again {
            eprintln!("sim: the same seed gave the digests {:016x} and {:016x}", one.digest, again.digest);
            return ExitCode::FAILURE;
        }
        return if one.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let (outcomes, faults) = many(cli.seed.unwrap_or(1), cli.seeds, cli.events, None, cli.threads);
    let bad: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.violation.is_some()).collect();
    let events: u64 = outcomes.iter().map(|outcome| outcome.events).sum();
    let digest = outcomes.iter().fold(0_u64, |sum, one| sum.rotate_left(1) ^ one.digest);
    println!(
        "{} worlds, {events} events, {} violations, digest {digest:016x}, {:.0} s",
        outcomes.len(),
        bad.len(),
        began.elapsed().as_secs_f64()
    );
    faults.all().iter().for_each(|(kind, count)| println!("  {count:>12} {kind}"));
    bad.iter().take(5).for_each(|outcome| print(outcome));
    if bad.len() > 5 {
        let seeds: Vec<String> = bad.iter().map(|outcome| outcome.seed.to_string()).collect();
        println!("all seeds with one: {}", seeds.join(" "));
    }
    let mut enough = true;
    for (kind, count) in faults.all().iter().filter(|(_, count)| *count < FAULTS_LEAST) {
        enough &= cli.seeds < WORLDS_MANY;
        if !enough {
            eprintln!("sim: {kind} came {count} times, {FAULTS_LEAST} are needed");
        }
    }
    if bad.is_empty() && enough { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(outcome: &Outcome) {
    println!(
        "seed {}: digest {:016x}, {} events in {} s of its time",
        outcome.seed,
        outcome.digest,
        outcome.events,
        outcome.ms / 1_000
    );
    println!("  {:?}", outcome.counters);
    if let Some(violation) = &outcome.violation {
        println!("  {} does not hold: {}", violation.invariant, violation.what);
        println!("  again: cargo xtask sim --seed {}", outcome.seed);
    }
}

/// Runs many; with a mistake, until it is found. In the order of seeds.
fn many(first: u64, count: u64, events: u64, bug: Option<Bug>, threads: u64) -> (Vec<Outcome>, Faults) {
    let next = AtomicU64::new(first);
    let (sender, receiver) = mpsc::channel();
    let mut outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.saturating_add(count) {
                        return;
                    }
                    let outcome = run(Setup { seed, events, bug });
                    if bug.is_some() && outcome.violation.is_some() {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                    if sender.send(outcome).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        receiver.into_iter().collect()
    });
    outcomes.sort_by_key(|outcome| outcome.seed);
    let mut faults = Faults::default();
    outcomes.iter().for_each(|outcome| faults.add(&outcome.faults));
    (outcomes, faults)
}
