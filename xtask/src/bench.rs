//! Measuring: hands over to the `bench` binary, built with optimisation.

use crate::policies;
use crate::tools::{self, Outcome, cargo, show};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// rate, peers, block, trace, idle, policy or control, and their options; `cargo xtask bench rate --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<String>,
}

impl Args {
    /// As if these words had been typed.
    pub fn of(words: &[&str]) -> Args {
        Args { words: words.iter().map(|word| (*word).to_owned()).collect() }
    }
}

/// Whether policies are swapped beside a data plane.
fn is_under_load(args: &Args) -> bool {
    args.words.iter().any(|word| word == "--under-load")
}

/// Runs a bench.
pub fn run(args: &Args) -> Outcome {
    if args.words.first().is_some_and(|what| what == "peers") {
        let missing = tools::ensure(tools::PEER_TOOLS)?;
        if !missing.is_empty() {
            return Err(format!("{} cannot be compared with: not installed", missing.join(", ")));
        }
    }
    if args.words.first().is_some_and(|what| what == "trace") {
        show(cargo().args([
            "build",
            "--release",
            "--quiet",
            "--package",
            "bench",
            "--bin",
            "tidegate-load",
        ]))?;
    }
    let serves = |what: &String| what == "block" || what == "trace" || is_under_load(args);
    if args.words.first().is_some_and(serves) {
        // It is measured as a user runs it.
        show(cargo().args(["build", "--release", "--quiet", "--package", "tidegate-dataplane"]))?;
    }
    if args.words.first().is_some_and(|what| what == "policy") {
        policies::target()?;
        if is_under_load(args) {
            tools::ensure(tools::TEST_TOOLS)?;
        }
        let bench = ["run", "--release", "--quiet", "--package", "policy-bench", "--"];
        return show(cargo().args(bench).args(&args.words[1..]));
    }
    if args.words.first().is_some_and(|what| what == "control") {
        let bench = ["run", "--release", "--quiet", "--package", "control-bench", "--"];
        return show(cargo().args(bench).args(&args.words[1..]));
    }
    show(
        cargo()
            .args(["run", "--release", "--quiet", "--package", "bench", "--bin", "bench", "--"])
            .args(&args.words),
    )
}
