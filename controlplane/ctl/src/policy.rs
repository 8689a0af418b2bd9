//! Policies on the command line. `new`, `check`, `bench` and `replay` need no control plane: they are the host's own
//! author kit, with the engine settings of production.

pub mod list;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use host::author::{self, Timed};
use host::replay::{ReplayDifference, Replayed};
use host::{Config, Engine, Limits};
use serde_json::{Value, json};
use verdict::Kind;

use crate::ask::{Asker, Failure, encoded, print};
use crate::table::Table;

/// `tidegate policy`
#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Write a new policy that builds and answers like the native default
    New {
        /// What it decides
        #[arg(long)]
        kind: KindArg,
        /// Its name
        name: String,
        /// Where its folder goes
        #[arg(long, default_value = ".")]
        into: PathBuf,
    },
    /// Say what admission would say, without a control plane
    Check {
        /// The component, or the core module that `cargo build` made
        file: PathBuf,
        /// What it is configured with, as KEY=VALUE
        #[arg(long, value_parser = pair)]
        config: Vec<(String, String)>,
    },
    /// Time it beside the native default
    Bench {
        /// The component, or the core module that `cargo build` made
        file: PathBuf,
        /// What it is configured with, as KEY=VALUE
        #[arg(long, value_parser = pair)]
        config: Vec<(String, String)>,
        /// Decisions of each size
        #[arg(long, default_value_t = 200)]
        decisions: usize,
    },
    /// Decide again what a log has, and print what differs
    Replay {
        /// The decision log: a folder, or one file
        log: PathBuf,
        /// The component that decides again
        #[arg(long)]
        with: PathBuf,
        /// What it is configured with, as KEY=VALUE; otherwise as the log has it
        #[arg(long, value_parser = pair)]
        config: Vec<(String, String)>,
    },
    /// Have it admitted and kept ready
    Push {
        /// The component, or the core module that `cargo build` made
        file: PathBuf,
        /// What it is configured with, as KEY=VALUE
        #[arg(long, value_parser = pair)]
        config: Vec<(String, String)>,
        /// Its Ed25519 signature, as it is or in hexadecimal digits or base64; where keys are configured
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
    },
    /// Have it asked beside the active one, and compare
    Shadow {
        /// Name, digest or DIGEST-CONFIGURATION as `list` shows it
        #[arg(required_unless_present = "stop")]
        policy: Option<String>,
        /// End the shadow of this kind
        #[arg(long, value_name = "KIND", conflicts_with = "policy")]
        stop: Option<KindArg>,
    },
    /// Have it decide, from the next decision on
    Activate {
        /// Name, digest or DIGEST-CONFIGURATION as `list` shows it
        policy: String,
        /// Without the state of the version before
        #[arg(long)]
        fresh: bool,
    },
    /// Go back to the version before, in the end to the native default
    Rollback {
        /// Of which kind
        kind: KindArg,
    },
    /// Remove one that was pushed and is not in use, with its files
    Remove {
        /// Name, digest or DIGEST-CONFIGURATION as `list` shows it; of several the one that was pushed last
        policy: String,
    },
    /// Show what decides, what is ready, and what happened
    List,
    /// Show the newest decisions
    Log {
        /// Of which kind; otherwise all
        #[arg(long)]
        kind: Option<KindArg>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

/// What a policy decides.
#[derive(Clone, Copy, ValueEnum)]
pub enum KindArg {
    /// Which waiting operations start
    Scheduling,
    /// Who lends how much, and which leases end
    Leasing,
    /// When volumes move
    Migration,
}

impl KindArg {
    fn kind(self) -> Kind {
        match self {
            KindArg::Scheduling => Kind::Scheduling,
            KindArg::Leasing => Kind::Leasing,
            KindArg::Migration => Kind::Migration,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn other(error: impl std::fmt::Display) -> Failure {
    Failure::Other(error.to_string())
}

/// Runs `tidegate policy`.
pub async fn run(asker: &Asker, command: PolicyCommand) -> Result<(), Failure> {
    let engine = || Engine::new(Limits::default()).map_err(other);
    match command {
        PolicyCommand::New { kind, name, into } => {
            let folder = author::new(kind.kind(), &name, &into).map_err(other)?;
            if asker.json {
                return asker.json(&json!({ "folder": folder }));
            }
            let file = folder.join("src/lib.rs");
            print(&format!(
                "{} is the policy; how it is built and checked stands at its top\n",
                file.display()
            ))
        }
        PolicyCommand::Check { file, config } => {
            let policy = author::check(&engine()?, &file, config).map_err(other)?;
            asker.show_one(&json!({
                "policy": policy.id().to_string(),
                "kind": policy.kind().name(),
                "summary": policy.summary(),
            }))
        }
        PolicyCommand::Bench { file, config, decisions } => {
            let policy = author::check(&engine()?, &file, config).map_err(other)?;
            let timed = author::bench(&policy, &author::BENCH_ROWS, decisions).map_err(other)?;
            asker.show(&timed, bench_table)
        }
        PolicyCommand::Replay { log, with, config } => {
            let config: Option<Config> = (!config.is_empty()).then_some(config);
            let replayed = author::replay_file(&engine()?, &log, &with, config).map_err(other)?;
            show_replay(asker, &replayed)
        }
        PolicyCommand::Push { file, config, signature } => {
            push(asker, &file, config, signature.as_deref()).await
        }
        PolicyCommand::Shadow { policy, stop } => {
            let asked = json!({ "policy": policy, "kind": stop.map(|kind| kind.kind().name()) });
            asker.show_one(&asker.client.post::<Value>("/v1/policies/shadow", &asked).await?)
        }
        PolicyCommand::Activate { policy, fresh } => {
            let asked = json!({ "policy": policy, "fresh": fresh });
            asker.show_one(&asker.client.post::<Value>("/v1/policies/activate", &asked).await?)
        }
        PolicyCommand::Rollback { kind } => {
            let asked = json!({ "kind": kind.kind().name() });
            asker.show_one(&asker.client.post::<Value>("/v1/policies/rollback", &asked).await?)
        }
        PolicyCommand::Remove { policy } => {
            let asked = json!({ "policy": policy });
            asker.show_one(&asker.client.post::<Value>("/v1/policies/remove", &asked).await?)
        }
        PolicyCommand::List => list(asker).await,
        PolicyCommand::Log { kind, limit } => {
            let kind = kind.map_or(String::new(), |kind| format!("&kind={}", kind.kind().name()));
            let found: Value = asker.client.get(&format!("/v1/policies/log?limit={limit}{kind}")).await?;
            let items = found["items"].as_array().cloned().unwrap_or_default();
            asker.show(&items, |items| {
                let mut table = Table::new(&["NUMBER", "FUNCTION", "POLICY", "us", "WHY"]);
                for one in items {
                    let us = one["duration_ns"].as_u64().unwrap_or(0) as f64 / 1e3;
                    let instead = one["instead"].as_str().map(|why| format!("natively instead: {why}; "));
                    let why = one["why"].as_str().unwrap_or_default();
                    table.row(vec![
                        one["number"].to_string(),
                        text(&one["function"]),
                        text(&one["policy"]),
                        format!("{us:.1}"),
                        format!("{}{why}", instead.unwrap_or_default()),
                    ]);
                }
                table
            })
        }
    }
}

fn bench_table(timed: &[Timed]) -> Table {
    let mut table =
        Table::new(&["FUNCTION", "ROWS", "P50 us", "P99 us", "NATIVE P50 us", "NATIVE P99 us", "FUEL"]);
    for one in timed {
        let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
        table.row(vec![
            one.function.to_owned(),
            one.rows.to_string(),
            us(one.p50_ns),
            us(one.p99_ns),
            us(one.native_p50_ns),
            us(one.native_p99_ns),
            one.fuel_max.to_string(),
        ]);
    }
    table
}

/// Shows what a replay found; differences are what a program asks for by the exit code.
fn show_replay(asker: &Asker, replayed: &Replayed) -> Result<(), Failure> {
    if asker.json {
        asker.json(replayed)?;
    } else {
        for one in &replayed.differences {
            let ReplayDifference { decision, function, logged, replayed } = one;
            print(&format!("{decision} {function}: logged {logged}, now {replayed}\n"))?;
        }
        print(&format!(
            "{} decisions, {} identical, {} different, {} skipped\n",
            replayed.decisions, replayed.identical, replayed.different, replayed.skipped
        ))?;
    }
    if replayed.different == 0 { Ok(()) } else { Err(Failure::Different(replayed.different)) }
}

async fn push(asker: &Asker, file: &Path, config: Config, signature: Option<&Path>) -> Result<(), Failure> {
    let component = author::component_of(file).map_err(other)?;
    let config: BTreeMap<String, String> = config.into_iter().collect();
    let config = serde_json::to_string(&config).map_err(other)?;
    let mut path = format!("/v1/policies?config={}", encoded(&config));
    if let Some(signature) = signature {
        let read =
            |path: &Path| std::fs::read(path).map_err(|error| other(format!("{}: {error}", path.display())));
        // What was signed would not be what is pushed.
        if read(file)? != component {
            return Err(other(format!(
                "{} is a core module, and what is signed is a component; make it with `wasm-tools component new`, \
                 sign that, and push it",
                file.display()
            )));
        }
        path += &format!(
            "&signature={}",
            encoded(&signature_of(&read(signature)?).ok_or_else(|| {
                other(format!(
                    "{} is no Ed25519 signature: 64 bytes, or these in hexadecimal digits or base64",
                    signature.display()
                ))
            })?)
        );
    }
    asker.show_one(&asker.client.put::<Value>(&path, component).await?)
}

/// What a file with a signature has, in hexadecimal digits.
fn signature_of(file: &[u8]) -> Option<String> {
    let written = || host::bytes_of::<64>(std::str::from_utf8(file).ok()?);
    let signature: [u8; 64] = file.try_into().ok().or_else(written)?;
    Some(signature.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

async fn list(asker: &Asker) -> Result<(), Failure> {
    let status: Value = asker.client.get("/v1/policies").await?;
    if asker.json {
        return asker.json(&status);
    }
    print(&list::shown(&status, host::wall_ms()).map_err(Failure::Other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_read_as_it_is_and_as_it_is_written() {
        let bytes: [u8; 64] = std::array::from_fn(|at| at as u8 | 0x80);
        let hex = signature_of(&bytes).expect("it is one");
        assert_eq!((hex.len(), signature_of(format!("{hex}\n").as_bytes())), (128, Some(hex.clone())));
        assert_eq!(signature_of(&bytes[1..]), None);
        assert_eq!(signature_of(b"a signature"), None);
    }
}
