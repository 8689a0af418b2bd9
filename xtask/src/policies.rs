//! The shipped policies: their target, and the tests of their own workspace.

use std::path::Path;
use std::process::Command;

use crate::tools::{Outcome, cargo, output, root, show};

const TARGET: &str = "wasm32-unknown-unknown";

/// Installs the target that policies are built for, where it is missing.
pub fn target() -> Outcome {
    let rustc = || {
        let mut rustc = Command::new("rustc");
        rustc.current_dir(root());
        rustc
    };
    let folder = output(rustc().args(["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    show(Command::new("rustup").current_dir(root()).args(["target", "add", TARGET]))
        .map_err(|error| format!("policies are built for {TARGET}: {error}"))
}

/// Formatting, lints and native tests of the policies. They share the folder of what is built for WebAssembly.
pub fn test() -> Outcome {
    let policies = |words: &[&str]| {
        let mut cargo = cargo();
        cargo.args(words).args(["--manifest-path", "policies/Cargo.toml"]);
        cargo.env("CARGO_TARGET_DIR", root().join("target/policies"));
        cargo
    };
    show(policies(&["fmt", "--all"]).args(["--", "--check"]))?;
    show(policies(&["clippy", "--all-targets", "--release", "--quiet"]).args(["--", "-D", "warnings"]))?;
    show(&mut policies(&["test", "--release", "--quiet", "--lib"]))
}
