//! Everything that CI runs, in the order in which it fails fastest. Ends in the test runner's own summary.

use std::time::Instant;

use crate::tools::{self, Outcome, cargo, show};
use crate::{etcd, fuzz, guest, policies, run, sim};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave out formatting, lints and the short fuzz, model and simulation runs: the tests alone
    #[arg(long)]
    only_tests: bool,
    /// Passed on to `cargo test`, for example the name of a test
    #[arg(trailing_var_arg = true)]
    filter: Vec<String>,
}

/// Runs the tiers T0 to T8 in their short form.
pub fn run(args: &Args) -> Outcome {
    let started = Instant::now();
    let missing = tools::ensure(tools::TEST_TOOLS)?;
    if !missing.is_empty() {
        eprintln!("tests that need {} will say that they are skipped", missing.join(", "));
    }
    if let Err(why) = guest::fetch() {
        eprintln!("tests that need a Linux guest will say that they are skipped: {why}");
    }
    policies::target()?;
    if !args.only_tests {
        show(cargo().args(["fmt", "--all", "--", "--check"]))?;
        show(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
        deny()?;
        policies::test()?;
        fuzz::loom()?;
        fuzz::short()?;
        sim::short()?;
        etcd::suite(None)?;
    }
    // The end-to-end tests start the daemons as a user would, so they are built first.
    let programs = run::PROGRAMS.iter().flat_map(|name| ["--package", name]);
    show(cargo().args(["build", "--quiet"]).args(programs))?;
    eprintln!("tiers before the tests took {} s", started.elapsed().as_secs());
    // xtask has no tests and the crates no documentation tests; left out, the runner ends on tests that ran.
    show(
        cargo()
            .args(["test", "--workspace", "--exclude", "xtask", "--no-fail-fast"])
            .args(["--lib", "--bins", "--tests"])
            .args(&args.filter),
    )
}

/// Licences, advisories and duplicate sources, with cargo-deny where it is installed.
fn deny() -> Outcome {
    if tools::find("cargo-deny").is_none() && !cargo_home_has("cargo-deny") {
        eprintln!("skipped: cargo deny (install it with `cargo install cargo-deny --locked`)");
        return Ok(());
    }
    let checks = ["check", "licenses", "bans", "sources"];
    show(cargo().args(["deny", "--offline"]).args(checks))?;
    let policies = ["--manifest-path", "policies/Cargo.toml", "--config", "deny.toml"];
    show(cargo().args(["deny", "--offline"]).args(policies).args(checks))
}

fn cargo_home_has(program: &str) -> bool {
    std::env::var_os("HOME")
        .is_some_and(|home| std::path::Path::new(&home).join(".cargo/bin").join(program).is_file())
}
