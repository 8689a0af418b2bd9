//! `tidegate-load`: load on a volume that is served over NBD or NVMe/TCP, by Tidegate or by anybody.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bench::load::{self, Figures, Place, Quiet, Seen, Spec, Uri, nvme};
use clap::{Parser, ValueEnum};

/// Sends requests from one polling thread and tells how long they took. Ends with 0 if all were answered as
/// they should be, 1 if it could not go on, 2 if there were errors or wrong bytes.
#[derive(Parser)]
#[command(name = "tidegate-load", version, max_term_width = 100)]
struct Cli {
    /// nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or nvme+tcp://HOST:PORT/NQN
    uri: Uri,
    /// Connections; over NVMe, I/O queues
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Requests under way per connection
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Share of reads in per cent; writes are the rest and destroy what is there
    #[arg(long, default_value_t = 100, value_name = "PER CENT")]
    reads: u8,
    /// Length of each request
    #[arg(long, default_value_t = 4096)]
    block_bytes: u32,
    /// One block after the other instead of at random
    #[arg(long)]
    sequential: bool,
    /// Writes that are answered when they are durable (force unit access)
    #[arg(long)]
    fua: bool,
    /// A flush after so many writes of a connection
    #[arg(long, value_name = "WRITES")]
    flush_every: Option<u32>,
    /// Requests per second; latency counts from when each was due. Default: as many as are answered
    #[arg(long, value_name = "IOPS")]
    rate: Option<u64>,
    /// Become quiet after so many seconds, again and again
    #[arg(long, value_name = "SECONDS", requires_all = ["rate", "quiet_seconds"])]
    quiet_after: Option<u64>,
    /// For so long
    #[arg(long, value_name = "SECONDS", requires = "quiet_after")]
    quiet_seconds: Option<u64>,
    /// With so many requests per second
    #[arg(long, value_name = "IOPS", default_value_t = 0)]
    quiet_rate: u64,
    /// Sleep so long when nothing has come and nothing is due, instead of polling: costs latency, saves a core
    #[arg(long, value_name = "US", default_value_t = 0)]
    rest_us: u64,
    /// Write blocks that name themselves, and compare what is read
    #[arg(long)]
    verify: bool,
    /// At the end, read back all that was written
    #[arg(long, requires = "verify")]
    read_back: bool,
    /// How long
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests at most
    #[arg(long, value_name = "COUNT")]
    requests: Option<u64>,
    /// Chooses the blocks
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write a line per request to this file: what, where, when it was asked and answered (ns of the monotonic
    /// clock), error; the first million
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    nvme: Nvme,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What only NVMe/TCP has.
#[derive(clap::Args)]
#[command(next_help_heading = "NVMe/TCP")]
struct Nvme {
    /// Another address of the same volume; may be repeated. Requests go the best way (ANA), and again another
    /// way when theirs fails
    #[arg(long, value_name = "HOST:PORT")]
    path: Vec<String>,
    /// How long to go on while no path is there
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    loss_seconds: u64,
    /// NQN of this host
    #[arg(long, value_name = "NQN", default_value_t = nvme::Options::default().host_nqn)]
    host_nqn: String,
    /// Number of the namespace
    #[arg(long, value_name = "NSID", default_value_t = 1)]
    namespace: u32,
    /// CRC32C of headers
    #[arg(long)]
    header_digest: bool,
    /// CRC32C of data
    #[arg(long)]
    data_digest: bool,
    /// Count places of queues, as Linux does unless told otherwise; each read then has a completion of its own
    #[arg(long)]
    flow_control: bool,
    /// A controller that does not answer for so long is lost; 0 for never
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    keep_alive_ms: u32,
}

impl Nvme {
    fn options(&self) -> nvme::Options {
        nvme::Options {
            host_nqn: self.host_nqn.clone(),
            namespace: self.namespace,
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            flow_control: self.flow_control,
            keep_alive_ms: self.keep_alive_ms,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One JSON object
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let spec = Spec {
        nvme: cli.nvme.options(),
        paths: cli.nvme.path,
        loss: Duration::from_secs(cli.nvme.loss_seconds),
        uri: cli.uri,
        connections: cli.connections,
        depth: cli.depth,
        read_percent: cli.reads,
        block_bytes: cli.block_bytes,
        sequential: cli.sequential,
        fua: cli.fua,
        flush_every: cli.flush_every,
        rate_iops: cli.rate,
        quiet: cli.quiet_after.zip(cli.quiet_seconds).map(|(after, lasts)| Quiet {
            after: Duration::from_secs(after),
            lasts: Duration::from_secs(lasts),
            rate_iops: cli.quiet_rate,
        }),
        rest: Duration::from_micros(cli.rest_us),
        verify: cli.verify,
        read_back: cli.read_back,
        duration: Duration::from_secs(cli.seconds),
        requests_max: cli.requests,
        seed: cli.seed,
        seen_max: if cli.log.is_some() { load::SEEN_MAX } else { 0 },
    };
    let shows = std::io::stderr().is_terminal();
    let mut progress = |figures: &Figures| {
        if shows {
            eprint!("\r\x1b[K{}", line(figures));
        }
        ControlFlow::Continue(())
    };
    let outcome = load::run(&spec, &mut progress);
    if shows {
        eprint!("\r\x1b[K");
    }
    let logged = outcome.and_then(|figures| {
        cli.log.as_ref().map_or(Ok(()), |file| log(file, &figures.seen))?;
        Ok(figures)
    });
    match logged {
        Ok(figures) => {
            match cli.output {
                Format::Table => table(&spec.uri, &figures),
                Format::Json => println!("{}", json(&figures)),
            }
            if figures.errors.is_empty() && figures.mismatch_count == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            }
        }
        Err(error) => {
            eprintln!("tidegate-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn line(figures: &Figures) -> String {
    format!(
        "{:.0} s  {:.0} IOPS  {:.1} MB/s  p50 {:.0} us  p99 {:.0} us",
        figures.elapsed.as_secs_f64(),
        figures.iops(),
        figures.bytes as f64 / 1e6 / figures.elapsed.as_secs_f64().max(1e-9),
        figures.latency_us(50.0),
        figures.latency_us(99.0),
    )
}

/// An error as its protocol writes it.
fn named(uri: &Uri, error: u32) -> String {
    match uri.place {
        Place::NvmeTcp(_) => format!("{error:#x} ({})", wire::nvme::StatusCode(error as u16)),
        _ => format!("{error} ({})", wire::nbd::transmission::ErrorCode(error)),
    }
}

fn table(uri: &Uri, figures: &Figures) {
    println!("{}", line(figures));
    println!(
        "reads {}, writes {}, p99.9 {:.0} us, longest {:.0} us",
        figures.reads,
        figures.writes,
        figures.latency_us(99.9),
        figures.latency.max() as f64 / 1e3
    );
    println!(
        "flushes {}, asked again {}, longest time without an answer {:.1} ms",
        figures.flushes,
        figures.retries,
        figures.longest_gap.as_secs_f64() * 1e3
    );
    for (at, what) in &figures.events {
        println!("at {:.3} s: {what}", at.as_secs_f64());
    }
    for (error, count) in &figures.errors {
        println!("error {}: {count} times", named(uri, *error));
    }
    if figures.mismatch_count > 0 {
        println!("wrong bytes: {} times", figures.mismatch_count);
        figures.mismatches.iter().for_each(|what| println!("  {what}"));
    }
}

/// Requests one by one, for programs.
fn log(file: &Path, seen: &[Seen]) -> Result<(), String> {
    let mut text = String::from("kind,offset_bytes,asked_ns,answered_ns,error\n");
    for Seen { op, offset_bytes, asked_ns, answered_ns, error } in seen {
        let error = error.map_or_else(String::new, |number| number.to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{},{offset_bytes},{asked_ns},{answered_ns},{error}", op.name());
    }
    std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

fn json(figures: &Figures) -> serde_json::Value {
    let events: Vec<_> =
        figures.events.iter().map(|(at, what)| serde_json::json!([at.as_secs_f64(), what])).collect();
    serde_json::json!({
        "reads": figures.reads,
        "writes": figures.writes,
        "flushes": figures.flushes,
        "bytes": figures.bytes,
        "seconds": figures.elapsed.as_secs_f64(),
        "iops": figures.iops(),
        "p50_us": figures.latency_us(50.0),
        "p99_us": figures.latency_us(99.0),
        "p999_us": figures.latency_us(99.9),
        "longest_gap_ms": figures.longest_gap.as_secs_f64() * 1e3,
        "retries": figures.retries,
        "path_events": events,
        "errors": figures.errors,
        "mismatches": figures.mismatch_count,
    })
}
