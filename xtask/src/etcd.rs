//! What is held over etcd: the store's own suite, which CI runs, and a control plane that has its store there.
//!
//! Both need a build with the feature `etcd`. That of the store alone is small; that of the daemon is one more of the
//! control plane, so it is made where the claim is shown only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::PROGRAMS;
use crate::tools::{self, Outcome, Tool, cargo, root, show};

/// What a build with etcd, and a test over it, need.
const TOOLS: [Tool; 2] = [("protoc", "protobuf-compiler"), ("etcd", "etcd-server")];

/// The store's suite, and lints of what only this build has; `skips` is told of tests that are skipped.
pub fn suite(skips: Option<&Path>) -> Outcome {
    if tools::ensure(&TOOLS)?.contains(&"protoc") {
        let line = "skipped: the store in etcd: building it needs protoc\n";
        eprint!("{line}");
        return skips.map_or(Ok(()), |skips| fs::write(skips, line).map_err(|error| error.to_string()));
    }
    let with = |word: &str| {
        let mut command = cargo();
        command.args([word, "--package", "store", "--features", "etcd"]);
        command
    };
    show(with("clippy").args(["--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    show(telling(with("test").args(["--lib", "--test", "store", "--", "etcd::"]), skips))
}

/// A control plane in etcd, and either of them killed.
pub fn daemon(skips: &Path) -> Outcome {
    tools::ensure(&TOOLS)?;
    show(cargo().args(["build", "--quiet", "--package", "server", "--features", "etcd"]))?;
    // It goes aside before the programs of all other tests are built, without etcd, in its place.
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let aside = target.join("etcd/tidegate-controlplane");
    let failed = |error: std::io::Error| format!("{}: {error}", aside.display());
    fs::create_dir_all(target.join("etcd")).map_err(failed)?;
    fs::copy(target.join("debug/tidegate-controlplane"), &aside).map_err(failed)?;
    show(cargo().args(["build", "--quiet"]).args(PROGRAMS.iter().flat_map(|name| ["--package", name])))?;
    let mut command = cargo();
    command.args(["test", "--package", "tests", "--test", "control"]).env("TIDEGATE_CONTROLPLANE", &aside);
    show(telling(command.args(["--", "--nocapture", "etcd::"]), Some(skips)))
}

fn telling<'a>(command: &'a mut Command, skips: Option<&Path>) -> &'a mut Command {
    match skips {
        Some(skips) => command.env("TIDEGATE_TEST_SKIPS", skips),
        None => command,
    }
}
