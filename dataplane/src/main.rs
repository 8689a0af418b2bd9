//! `tidegate-dataplane`: runs a data plane, checks its configuration, and shows what it does.

#![forbid(unsafe_code)]

mod trace;
mod volume;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent::{client, daemon, server, table};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(name = "tidegate-dataplane", version, about = "The Tidegate data plane", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGINT or SIGTERM; SIGHUP reloads the configuration
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/tidegate/dataplane.toml")]
        config: PathBuf,
    },
    /// Validate a configuration file without touching anything
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/tidegate/dataplane.toml")]
        config: PathBuf,
    },
    /// Have a running data plane go over to its changed configuration file
    Reload {
        #[command(flatten)]
        socket: Socket,
    },
    /// Hand a served volume over to another worker while its clients use it, until the next start
    Move {
        #[command(flatten)]
        socket: Socket,
        /// The volume, by the name of its export
        #[arg(long, value_name = "NAME")]
        volume: String,
        /// The worker that is to serve it, from 0
        #[arg(long, value_name = "N")]
        worker: usize,
    },
    /// Show what a running data plane does
    Stats {
        #[command(flatten)]
        socket: Socket,
        /// Show it again every second until Ctrl-C
        #[arg(long)]
        watch: bool,
        /// Only volumes whose name begins with this
        #[arg(long, value_name = "PREFIX", default_value = "")]
        volumes: String,
        /// At most this many volumes
        #[arg(long, value_name = "N", default_value_t = 40)]
        limit: usize,
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Show where the time of I/Os went, one below the other
    Trace(trace::Args),
    /// Make, check and change thin volumes, which `medium = "file"` serves
    #[command(subcommand)]
    Volume(volume::Command),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
struct Socket {
    /// Control socket of the data plane; without it the only one in /run/tidegate
    #[arg(long = "socket", value_name = "PATH")]
    path: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let outcome = match Cli::parse().command {
        Command::Run { config } => run(&config),
        Command::Check { config } => check(&config),
        Command::Reload { socket } => reload(&socket),
        Command::Move { socket, volume, worker } => move_export(&socket, &volume, worker),
        Command::Stats { socket, watch, volumes, limit, output } => {
            stats(&socket, watch, &volumes, limit, output)
        }
        Command::Trace(args) => trace::run(&args),
        Command::Volume(command) => volume::run(command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidegate-dataplane", &mut script);
            print(&script)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-dataplane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Path) -> Outcome {
    server::run(config, |line| {
        // It runs whether or not anybody reads that it does.
        let _ = writeln!(std::io::stdout(), "{line}");
    })?;
    Ok(())
}

fn check(config: &Path) -> Outcome {
    let checked = daemon::check(config)?;
    let counts: Vec<String> =
        checked.counts.iter().map(|(what, count)| server::counted(*count, what)).collect();
    print(format!("{} is right: {}\n", config.display(), counts.join(", ")).as_bytes())
}

impl Socket {
    fn resolve(&self) -> Result<PathBuf, client::AskError> {
        self.path.clone().map_or_else(client::default_socket, Ok)
    }
}

fn reload(socket: &Socket) -> Outcome {
    print(format!("{}\n", client::reload(&socket.resolve()?)?).as_bytes())
}

fn move_export(socket: &Socket, volume: &str, worker: usize) -> Outcome {
    let moved = client::move_export(&socket.resolve()?, volume, worker)?;
    let clients = server::counted(moved.connections as usize, "connection");
    let (pause_us, drain_us) = (moved.pause_ns / 1000, moved.drain_ns / 1000);
    let waited = format!("{clients} waited for {pause_us} us, {drain_us} us of them for what was under way");
    print(format!("{volume} is served by worker {worker}; {waited}\n").as_bytes())
}

fn stats(socket: &Socket, watch: bool, volumes: &str, limit: usize, output: Output) -> Outcome {
    let socket = socket.resolve()?;
    let mut before = None;
    loop {
        let now = client::stats(&socket, volumes, limit)?;
        let text = match output {
            Output::Json => Some(serde_json::to_string(&now)? + "\n"),
            // Rates need two reports.
            Output::Table => before.as_ref().map(|before| table::draw(&now, before)),
        };
        if let Some(text) = text {
            match show(&text, watch && output == Output::Table) {
                Ok(()) => {}
                Err(error) => return enough(error),
            }
            if !watch {
                return Ok(());
            }
        }
        std::thread::sleep(Duration::from_secs(1));
        before = Some(now);
    }
}

/// A reader that goes away has had enough: that is no error.
fn enough(error: std::io::Error) -> Outcome {
    if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error.into()) }
}

/// Writes to standard output.
fn print(bytes: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).or_else(enough)
}

/// Writes to standard output; `in_place` over what stood there, on a terminal.
fn show(text: &str, in_place: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if in_place && out.is_terminal() {
        // Home, and clear what is below: no flicker.
        out.write_all(b"\x1b[H\x1b[J")?;
    }
    out.write_all(text.as_bytes())?;
    out.flush()
}
