//! `tidegate-controlplane`: decides for data planes.
//!
//! - [`driver`] is the one thread that owns the core: events in, a step, its writes made durable, then the rest.
//! - [`nodes`] holds the links to data planes, [`api`] and [`objects`] answer people and programs; they
//!   only talk to the driver. [`openapi`] has their routes and the document that is made of them, [`said`] reads what
//!   clients say.
//! - [`doors`] listens: Unix sockets, loopback, TLS; [`access`] says who may do what.
//! - [`policies`] runs what decides, each kind on a thread of its own.
//! - [`alarms`] has what somebody should look at.
//! - [`audit`] writes down who asked for what.
//!
//! Everything else of the control plane is a machine in `controlplane/core`, without clock, thread or socket.

#![forbid(unsafe_code)]

mod access;
mod alarms;
mod api;
mod audit;
mod config;
mod doors;
mod driver;
mod nodes;
mod objects;
mod openapi;
mod policies;
mod run;
mod said;
mod writes;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "tidegate-controlplane",
    version,
    about = "The Tidegate control plane",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGINT or SIGTERM
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/tidegate/controlplane.toml")]
        config: PathBuf,
    },
    /// Print the OpenAPI document of the API
    Openapi,
    /// Validate a configuration file without touching anything
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/tidegate/controlplane.toml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let say = |line: &str| {
        // It runs whether or not anybody reads that it does.
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    let outcome = match Cli::parse().command {
        Command::Run { config } => run::run(&config, say).map_err(|error| error.to_string()),
        Command::Openapi => {
            say(openapi::text(&openapi::document(&api::routes())).trim_end());
            Ok(())
        }
        Command::Check { config } => config::read(&config)
            .map(|_| say(&format!("{} is right", config.display())))
            .map_err(|error| error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-controlplane: {error}");
            ExitCode::FAILURE
        }
    }
}
