//! What an author of a policy does without a server: `tidegate policy new`, `check`, `bench` and `replay`.
//!
//! All of it runs on the production host with its settings: what `check` says is what admission says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use serde::Serialize;
use thiserror::Error;
use verdict::Kind;

use crate::digest::Digest;
use crate::engine::Engine;
use crate::fault::Fault;
use crate::policy::{AdmitError, Candidate, Config, Gate, Policy};
use crate::replay::{self, ReplayError, Replayed};
use crate::workload;

/// Why an author's command fails.
#[derive(Debug, Error)]
pub enum AuthorError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name that is no crate's name.
    #[error("`{0}` is not a name for a policy: use small letters, digits and `-`, and begin with a letter")]
    Name(String),
    /// It is there.
    #[error("{0} exists already; choose another name, or remove it")]
    Exists(PathBuf),
    /// A module without a world.
    #[error(
        "{path} cannot be made a component: {why}; build it with sdk::export! for wasm32-unknown-unknown"
    )]
    Wrap {
        /// Which one.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Not admitted.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// It fails while it is measured.
    #[error("{0}")]
    Fault(Fault),
    /// A log.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> AuthorError {
    let path = path.to_owned();
    |source| AuthorError::File { path, source }
}

/// The kit, as it is in this version: a new policy stands alone.
const KIT: &[(&str, &str)] = &[
    ("wit/types.wit", include_str!("../../../wit/types.wit")),
    ("wit/state.wit", include_str!("../../../wit/state.wit")),
    ("wit/worlds.wit", include_str!("../../../wit/worlds.wit")),
    ("sdk/src/lib.rs", include_str!("../../sdk/src/lib.rs")),
    ("sdk/src/config.rs", include_str!("../../sdk/src/config.rs")),
    ("sdk/src/export.rs", include_str!("../../sdk/src/export.rs")),
    ("sdk/src/words.rs", include_str!("../../sdk/src/words.rs")),
    ("sdk/Cargo.toml", include_str!("templates/sdk.toml")),
    ("verdict/src/lib.rs", include_str!("../../verdict/src/lib.rs")),
    ("verdict/src/invalid.rs", include_str!("../../verdict/src/invalid.rs")),
    ("verdict/src/scheduling.rs", include_str!("../../verdict/src/scheduling.rs")),
    ("verdict/src/leasing.rs", include_str!("../../verdict/src/leasing.rs")),
    ("verdict/src/migration.rs", include_str!("../../verdict/src/migration.rs")),
    ("verdict/Cargo.toml", include_str!("templates/verdict.toml")),
    (".cargo/config.toml", include_str!("templates/cargo.toml")),
    (".gitignore", "/target\n"),
];

/// Writes a new policy that builds, passes `check`, and answers like the native default.
pub fn new(kind: Kind, name: &str, into: &Path) -> Result<PathBuf, AuthorError> {
    let letters = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    if !name.starts_with(|letter: char| letter.is_ascii_lowercase()) || !name.chars().all(letters) {
        return Err(AuthorError::Name(name.to_owned()));
    }
    let folder = into.join(name);
    if folder.exists() {
        return Err(AuthorError::Exists(folder));
    }
    let code = match kind {
        Kind::Scheduling => include_str!("templates/scheduling.rs"),
        Kind::Leasing => include_str!("templates/leasing.rs"),
        Kind::Migration => include_str!("templates/migration.rs"),
    };
    let write = |file: &str, text: &str| {
        let path = folder.join(file);
        let parent = path.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, text)).map_err(file_error(&path))
    };
    write("Cargo.toml", &include_str!("templates/policy.toml").replace("NAME", name))?;
    write("src/lib.rs", &code.replace("NAME", name))?;
    for (file, text) in KIT {
        write(file, text)?;
    }
    Ok(folder)
}

/// The component of a file: as it is, or made of a core module that the kit has built.
pub fn component_of(path: &Path) -> Result<Vec<u8>, AuthorError> {
    let bytes = fs::read(path).map_err(file_error(path))?;
    // The eight bytes that begin a core module of version 1.
    if !bytes.starts_with(b"\0asm\x01\0\0\0") {
        return Ok(bytes);
    }
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| AuthorError::Wrap { path: path.to_owned(), why: format!("{error:#}") })
}

/// What admission would say, without a server.
pub fn check(engine: &Engine, path: &Path, config: Config) -> Result<Arc<Policy>, AuthorError> {
    let component = component_of(path)?;
    Ok(Gate::default().admit(engine, &Candidate { component: &component, signature: None, config })?)
}

/// Time of decisions of one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timed {
    /// What was asked.
    pub function: &'static str,
    /// Its rows.
    pub rows: usize,
    /// Decisions that were timed.
    pub decisions: usize,
    /// The policy's median, in nanoseconds.
    pub p50_ns: u64,
    /// Its 99th percentile.
    pub p99_ns: u64,
    /// The most fuel of one decision.
    pub fuel_max: u64,
    /// The native default's median.
    pub native_p50_ns: u64,
    /// Its 99th percentile.
    pub native_p99_ns: u64,
}

/// Rows of the questions that `tidegate policy bench` asks.
pub const BENCH_ROWS: [usize; 3] = [10, 1_000, 10_000];

/// Times a policy beside the native default on questions of several sizes.
pub fn bench(policy: &Policy, rows: &[usize], decisions: usize) -> Result<Vec<Timed>, AuthorError> {
    let mut results: Vec<Timed> = Vec::new();
    for &rows in rows {
        let mut times: Vec<(&'static str, Vec<u64>, Vec<u64>, u64)> = Vec::new();
        let mut guest = policy.start(None).map_err(AuthorError::Fault)?;
        for number in 0..decisions as u64 {
            let (tick, question) = workload::question(policy.kind(), rows, number);
            let started = Instant::now();
            // The answer is only timed.
            std::hint::black_box(question.native(tick));
            let native_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let answer = guest.ask(tick, &question).map_err(|(fault, _)| AuthorError::Fault(fault))?;
            let function = question.function();
            let at = times.iter().position(|(known, ..)| *known == function).unwrap_or_else(|| {
                times.push((function, Vec::new(), Vec::new(), 0));
                times.len() - 1
            });
            let (_, guest_ns, natives_ns, fuel_max) = &mut times[at];
            guest_ns.push(answer.spent.ns);
            natives_ns.push(native_ns);
            *fuel_max = answer.spent.fuel.max(*fuel_max);
        }
        results.extend(times.into_iter().map(|(function, mut guest, mut native, fuel_max)| Timed {
            function,
            rows,
            decisions: guest.len(),
            p50_ns: percentile(&mut guest, 50),
            p99_ns: percentile(&mut guest, 99),
            fuel_max,
            native_p50_ns: percentile(&mut native, 50),
            native_p99_ns: percentile(&mut native, 99),
        }));
    }
    Ok(results)
}

/// The value below which so many of a hundred lie; 0 of nothing.
pub fn percentile(values: &mut [u64], percent: usize) -> u64 {
    values.sort_unstable();
    let at = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(0)
}

/// Replays a log with the component of a file. Without a configuration it gets the one that the log has for it.
pub fn replay_file(
    engine: &Engine,
    log: &Path,
    component: &Path,
    config: Option<Config>,
) -> Result<Replayed, AuthorError> {
    let bytes = component_of(component)?;
    let admit = |config: Config| {
        Gate::default().admit(engine, &Candidate { component: &bytes, signature: None, config })
    };
    let policy = match config {
        Some(config) => admit(config)?,
        None => {
            let plain = admit(Config::new())?;
            let known =
                replay::config_in(log, Digest::of(&bytes), &plain.id().name).map_err(ReplayError::Log)?;
            match known {
                Some(config) if config != *plain.config() => admit(config)?,
                _ => plain,
            }
        }
    };
    Ok(replay::replay(log, &policy)?)
}
