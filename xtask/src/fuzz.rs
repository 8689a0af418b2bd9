//! Long tiers in short and long form: fuzzing of every parser and of the pipeline, and model checking.

use std::process::Command;

use crate::tools::{self, Outcome, cargo, root, show};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Only targets whose name contains this
    target: Option<String>,
}

impl Args {
    /// Every target, for as long as the product promises.
    pub fn full() -> Args {
        Args { seconds: 600, target: None }
    }
}

/// What `cargo fuzz` passes, without the address sanitizer: that one needs nightly.
const FLAGS: &str = "--cfg fuzzing -Clink-dead-code -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Fuzzes every target for the given time each.
pub fn run(args: &Args) -> Outcome {
    fuzz(args.seconds, args.target.as_deref().unwrap_or(""))
}

/// A few seconds for each target: what CI does.
pub fn short() -> Outcome {
    if tools::find("c++").is_none() && tools::ensure(&[("c++", "g++")])?.contains(&"c++") {
        eprintln!("skipped: fuzz targets, libFuzzer needs a C++ compiler (apt-get install g++)");
        return Ok(());
    }
    if std::env::consts::ARCH != "x86_64" {
        eprintln!("skipped: fuzz targets, their flags are known for x86_64 only");
        return Ok(());
    }
    fuzz(3, "")
}

fn fuzz(seconds: u64, filter: &str) -> Outcome {
    let folder = root().join("fuzz");
    show(
        cargo()
            .current_dir(&folder)
            .args(["build", "--quiet", "--release", "--target", TARGET])
            .env("RUSTFLAGS", FLAGS)
            .env("CARGO_TARGET_DIR", folder.join("target")),
    )?;
    for target in targets()?.iter().filter(|target| target.contains(filter)) {
        let [corpus, artifacts] = ["corpus", "artifacts"].map(|kind| folder.join(kind).join(target));
        for place in [&corpus, &artifacts] {
            std::fs::create_dir_all(place).map_err(|error| format!("{}: {error}", place.display()))?;
        }
        let binary = folder.join("target").join(TARGET).join("release").join(target);
        show(
            Command::new(binary)
                .arg(format!("-max_total_time={seconds}"))
                .args(["-max_len=2048", "-use_value_profile=1", "-verbosity=0", "-print_final_stats=0"])
                .arg(format!("-artifact_prefix={}/", artifacts.display()))
                .arg(&corpus),
        )
        .map_err(|error| format!("{error}; the input that fails lies in {}", artifacts.display()))?;
    }
    Ok(())
}

/// The names of the fuzz targets, from their source files.
fn targets() -> Outcome<Vec<String>> {
    let folder = root().join("fuzz/targets");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Every interleaving of the rings, the sleep handshake and the seqlock, within loom's bounds.
pub fn loom() -> Outcome {
    for (package, tests) in [
        ("frame", &["loom_ring"][..]),
        ("trace", &["loom_ring"][..]),
        ("engine", &["loom_handshake", "loom_seqlock"][..]),
    ] {
        let mut command = cargo();
        command.args(["test", "--quiet", "--release", "--package", package]);
        for test in tests {
            command.args(["--test", test]);
        }
        // A folder of its own: the flag changes every dependency.
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", root().join("target/loom"));
        command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
        show(&mut command)?;
    }
    Ok(())
}
