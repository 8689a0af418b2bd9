//! Simulating: hands over to the `sim` binary, built with optimisation and every check on.

use crate::tools::{Outcome, cargo, show};

/// Options of `cargo xtask sim`.
#[derive(clap::Args)]
pub struct Args {
    /// --seeds N, --seed S, --events N, --bug NAME|all; `cargo xtask sim --help` says more
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Worlds of the short run: what two processors do in less than a minute.
const SHORT_SEEDS: &str = "200";

/// Runs worlds.
pub fn run(args: &Args) -> Outcome {
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    simulate(&words)
}

/// The short run of CI.
pub fn short() -> Outcome {
    simulate(&["--seeds", SHORT_SEEDS])?;
    // Each is found soon: a few seconds.
    simulate(&["--bug", "all", "--seeds", "500"])
}

/// Hands these words over.
pub fn simulate(words: &[&str]) -> Outcome {
    show(
        cargo()
            .args(["run", "--profile", "sim", "--quiet", "--package", "sim", "--bin", "sim", "--"])
            .args(words),
    )
}
