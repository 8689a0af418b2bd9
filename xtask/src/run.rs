//! The main job: builds the daemons and the command line with optimisation, and runs `tidegate up`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::tools::{self, Outcome, cargo, root, show};

/// Options of `cargo xtask run`.
#[derive(clap::Args)]
pub struct Args {
    /// Options of `tidegate up`, for example --load 30; --help shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    words: Vec<String>,
}

/// Runs the main job until Ctrl-C.
pub fn run(args: &Args) -> Outcome {
    if tools::is_root() {
        let missing = tools::ensure(tools::RUN_TOOLS)?;
        if !missing.is_empty() {
            return Err(format!("{} could not be installed", missing.join(", ")));
        }
    }
    let programs = programs()?;
    // From here on it is that program: Ctrl-C and the exit code are its own.
    let failed = Command::new(programs.join("tidegate")).arg("up").args(&args.words).exec();
    Err(format!("{}: {failed}", programs.join("tidegate").display()))
}

/// Builds what a user runs, with optimisation; returns the folder.
pub fn programs() -> Outcome<PathBuf> {
    show(
        cargo()
            .args(["build", "--release", "--quiet"])
            .args(PROGRAMS.iter().flat_map(|name| ["--package", name])),
    )?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release"))
}

/// Packages with the programs that a user runs.
pub const PROGRAMS: [&str; 3] = ["tidegate-dataplane", "server", "ctl"];
