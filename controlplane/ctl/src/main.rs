//! `tidegate`: the command line of a control plane, and `tidegate up`, which starts all of it on one machine.
//!
//! - [`client`] asks the API, [`ask`] is what the commands share: names become ids, answers become tables or JSON,
//!   long work is waited for.
//! - [`objects`] has nodes, tenants, volumes, leases, operations, events; [`limit`] limits of work; [`policy`] has policies; [`explain`] says why.
//! - [`top`] shows all of it on one screen, again and again.
//! - [`up`] starts a control plane and two data planes on this machine.

#![forbid(unsafe_code)]

mod ask;
mod attach;
mod client;
mod explain;
mod limit;
mod objects;
mod policy;
mod table;
mod top;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::ask::{Asker, Failure};
use crate::client::{Address, Client};

/// What the exit codes mean; part of the help.
const EXIT_CODES: &str = "Exit codes:
  0  done
  1  it failed
  2  the command line is wrong
  3  there is no such thing
  4  refused: it conflicts with how things are, or the token is wrong
  5  no control plane answers
  6  the operation that was waited for failed or was cancelled
  7  differences were found";

#[derive(Parser)]
#[command(name = "tidegate", version, about = "Tidegate's control plane", after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(clap::Args)]
struct Common {
    /// Control plane: unix:/PATH, http://127.0.0.1:PORT or https://HOST:PORT
    #[arg(long, global = true, env = "TIDEGATE_SERVER", value_name = "ADDRESS")]
    server: Option<Address>,
    /// File with the bearer token
    #[arg(long, global = true, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    token: Option<PathBuf>,
    /// Certificate of whom to trust, for https
    #[arg(long, global = true, env = "TIDEGATE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Start a control plane and two data planes on this machine; Ctrl-C leaves nothing behind
    Up(up::Args),
    /// Data planes
    #[command(subcommand)]
    Node(objects::NodeCommand),
    /// Whose volumes and networks are kept apart
    #[command(subcommand)]
    Tenant(objects::TenantCommand),
    /// Volumes
    #[command(subcommand)]
    Volume(objects::VolumeCommand),
    /// Reservations of what nodes have
    #[command(subcommand)]
    Lease(objects::LeaseCommand),
    /// How much work is done at once, and where
    #[command(subcommand)]
    Limit(limit::LimitCommand),
    /// Work in steps
    #[command(subcommand)]
    Operation(objects::OperationCommand),
    /// What happened and was asked for
    #[command(subcommand)]
    Event(objects::EventCommand),
    /// What decides, and its versions
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Why something waits, or was decided so
    Explain {
        /// Like operation/7, volume/disk, lease/3, node/one or event/4
        id: String,
    },
    /// How the control plane is
    Status,
    /// Watch nodes, volumes, operations and policies on one screen; q or Ctrl-C ends it
    Top(top::Args),
    /// Show changes as they happen, until Ctrl-C
    Watch {
        /// Only objects under this, like volume/
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print shell completions
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut script);
            ask::print(&String::from_utf8_lossy(&script))
        }
        Command::Up(args) => up::run(&args, cli.common.server).map_err(Failure::Other),
        command => run(cli.common, command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tidegate: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn run(common: Common, command: Command) -> Result<(), Failure> {
    let address = common.server.unwrap_or_else(client::default_address);
    let client =
        Client::new(address, common.token.as_deref(), common.ca.as_deref()).map_err(Failure::Other)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(error.to_string()))?;
    let asker = Asker { client, json: common.output == Output::Json };
    runtime.block_on(async {
        match command {
            Command::Node(command) => objects::node(&asker, command).await,
            Command::Tenant(command) => objects::tenant(&asker, command).await,
            Command::Volume(command) => objects::volume(&asker, command).await,
            Command::Lease(command) => objects::lease(&asker, command).await,
            Command::Operation(command) => objects::operation(&asker, command).await,
            Command::Event(command) => objects::event(&asker, command).await,
            Command::Policy(command) => policy::run(&asker, command).await,
            Command::Explain { id } => explain::run(&asker, &id).await,
            Command::Status => status(&asker).await,
            Command::Limit(command) => limit::run(&asker, command).await,
            Command::Top(args) => top::run(&asker, &args).await,
            Command::Watch { prefix } => asker.watch(&prefix).await,
            Command::Up(_) | Command::Completion { .. } => Ok(()),
        }
    })
}

/// How the control plane is, and what somebody should look at.
async fn status(asker: &Asker) -> Result<(), Failure> {
    let mut status: contract::Status = asker.client.get("/v1/status").await?;
    if asker.json {
        return asker.json(&status);
    }
    let alarms = std::mem::take(&mut status.alarms);
    asker.show_one(&status)?;
    let now_ms = host::wall_ms();
    ask::print(&alarms.iter().map(|alarm| top::told(alarm, now_ms)).collect::<String>())
}
