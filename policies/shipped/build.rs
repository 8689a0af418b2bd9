//! Builds the policies of the workspace above from source and wraps each into a component.
//!
//! Cargo is called anew for wasm32-unknown-unknown, with a target folder of its own, so that neither waits for the
//! other. Nothing of the calling build's flags is passed on: a policy's bytes, and with them its digest, depend
//! on its source and the toolchain alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-unknown-unknown";

/// A guest's stack lies below its data. With the megabyte that is usual, nothing that it uses lies in the part of its memory
/// that the host keeps for the next instance.
const STACK_BYTES: u32 = 128 << 10;

fn main() {
    if let Err(error) = build() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let policies = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(variable("OUT_DIR")?);
    // target/<profile>/build/<crate>/out: one folder for all profiles, and for checks and builds.
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is not where cargo puts it")?.join("policies");
    watch(&policies)?;
    target_is_installed()?;
    compile(&policies, &target)?;
    let mut list = String::from("[\n");
    for name in guests(&policies)? {
        let module = target.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
        let component = out.join(format!("{name}.wasm"));
        fs::write(&component, wrap(&module)?).map_err(|error| format!("{}: {error}", component.display()))?;
        list += &format!("    ({name:?}, include_bytes!({component:?})),\n");
    }
    fs::write(out.join("components.rs"), list + "]").map_err(|error| format!("components.rs: {error}"))
}

/// The crates of policies: those with a name of two parts, and the one for tests.
fn guests(policies: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(policies).map_err(|error| format!("{}: {error}", policies.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| {
            let kind = ["scheduling-", "leasing-", "migration-"].iter().any(|kind| name.starts_with(kind));
            kind || name == "misbehaving"
        })
        .collect();
    names.sort();
    Ok(names)
}

fn compile(policies: &Path, target: &Path) -> Result<(), String> {
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--release", "--locked", "--quiet", "--target", TARGET])
        .arg("--manifest-path")
        .arg(policies.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target);
    // Flags and wrappers of the calling build (clippy, sanitizers, coverage) are not for policies.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let of_the_caller = ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CLIPPY_ARGS", "RUSTC"];
        if of_the_caller.contains(&name.as_str())
            || name.starts_with("CARGO_ENCODED")
            || name.starts_with("CARGO_PROFILE")
            || name.starts_with("CARGO_BUILD")
            || name.starts_with("CARGO_TARGET")
        {
            cargo.env_remove(name);
        }
    }
    // What the compiler writes of paths into panic messages must not depend on where the source lies.
    let root = policies.canonicalize().map_err(|error| format!("{}: {error}", policies.display()))?;
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let mut flags =
        format!("-Clink-arg=-zstack-size={STACK_BYTES}\x1f--remap-path-prefix={}=/policies", root.display());
    if let Some(home) = home {
        flags += &format!("\x1f--remap-path-prefix={}=/cargo", home.display());
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags);
    let status = cargo.status().map_err(|error| format!("cannot run cargo for the policies: {error}"))?;
    if status.success() { Ok(()) } else { Err("the policies do not build; see above".into()) }
}

/// Says in one sentence what to do, where the compiler would say that it cannot find `core`.
fn target_is_installed() -> Result<(), String> {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| format!("cannot run {rustc}: {error}"))?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && Path::new(&folder).is_dir() {
        return Ok(());
    }
    Err(format!("policies are built for {TARGET}, which is not installed; run: rustup target add {TARGET}"))
}

fn wrap(module: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", module.display());
    let bytes = fs::read(module).map_err(|error| failed(&error))?;
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| failed(&format!("{error:#}")))
}

/// Only what guests are made of; a change of the host does not build them anew.
fn watch(policies: &Path) -> Result<(), String> {
    let mut watched =
        vec!["Cargo.toml".into(), "Cargo.lock".into(), "sdk".into(), "verdict/src".into(), "../wit".into()];
    watched.extend(guests(policies)?);
    for path in watched {
        println!("cargo::rerun-if-changed={}", policies.join(path).display());
    }
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
