//! Simulating: hands over to the `sim` binary, built with optimisation and every check on.

use crate::tools::{Outcome, cargo, show};

/// Options of `cargo xtask sim`.
#[derive(clap::Args)]
pub struct Args {
    /// --seeds N, --seed S, --events N, --bug NAME|all; `cargo xtask sim --help` says more
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs worlds.
pub fn run(args: &Args) -> Outcome {
    show(
        cargo()
            .args(["run", "--profile", "sim", "--quiet", "--package", "sim", "--bin", "sim", "--"])
            .args(&args.words),
    )
}
