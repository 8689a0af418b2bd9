//! `cargo xtask`: the commands of this repository.
//!
//! `run` is the main job, `test` is everything CI runs, `bench` measures, `verify` shows one numbered claim
//! of the product on this machine, `fuzz` and `loom` are the long tiers. Each does one thing, prints what it
//! is about to do, and leaves nothing behind.

#![forbid(unsafe_code)]

mod bench;
mod etcd;
mod fuzz;
mod guest;
mod policies;
mod run;
mod sim;
mod test;
mod tools;
mod verify;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, try, test and measure Tidegate", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The main job: `tidegate up`, all of it on this machine; Ctrl-C leaves nothing
    Run(run::Args),
    /// Everything that CI runs
    Test(test::Args),
    /// Measure: rate, peers, block, idle or policy
    Bench(bench::Args),
    /// Show one numbered claim of the product (see README) on this machine
    Verify(verify::Args),
    /// A stock Linux kernel, in QEMU, attaches to served volumes
    Guest(guest::Args),
    /// Simulate the control plane in worlds where everything fails
    Sim(sim::Args),
    /// Fuzz every parser and the whole pipeline
    Fuzz(fuzz::Args),
    /// Model-check rings, wake-ups and counters for every interleaving
    Loom,
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Guest(args) => guest::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Loom => fuzz::loom(),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
