//! `tidegate-load`: load on a volume that is served over NBD, by Tidegate or by anybody.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use bench::load::{self, Figures, Spec, Uri};
use clap::{Parser, ValueEnum};

/// Sends requests from one polling thread and tells how long they took. Ends with 0 if all were answered as
/// they should be, 1 if it could not go on, 2 if there were errors or wrong bytes.
#[derive(Parser)]
#[command(name = "tidegate-load", version, max_term_width = 100)]
struct Cli {
    /// nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH
    uri: Uri,
    /// Connections
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
    /// Requests per second; latency counts from when each was due. Default: as many as are answered
    #[arg(long, value_name = "IOPS")]
    rate: Option<u64>,
    /// Write blocks that name themselves, and compare what is read
    #[arg(long)]
    verify: bool,
    /// How long
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests at most
    #[arg(long, value_name = "COUNT")]
    requests: Option<u64>,
    /// Chooses the blocks
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
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
        uri: cli.uri,
        connections: cli.connections,
        depth: cli.depth,
        read_percent: cli.reads,
        block_bytes: cli.block_bytes,
        sequential: cli.sequential,
        rate_iops: cli.rate,
        verify: cli.verify,
        duration: Duration::from_secs(cli.seconds),
        requests_max: cli.requests,
        seed: cli.seed,
    };
    let shows = std::io::stderr().is_terminal();
    let mut progress = |figures: &Figures| {
        if shows {
            eprint!("\r\x1b[K{}", line(figures));
        }
    };
    let outcome = load::run(&spec, &mut progress);
    if shows {
        eprint!("\r\x1b[K");
    }
    match outcome {
        Ok(figures) => {
            match cli.output {
                Format::Table => table(&figures),
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

fn table(figures: &Figures) {
    println!("{}", line(figures));
    println!(
        "reads {}, writes {}, p99.9 {:.0} us, longest {:.0} us",
        figures.reads,
        figures.writes,
        figures.latency_us(99.9),
        figures.latency.max() as f64 / 1e3
    );
    for (error, count) in &figures.errors {
        println!("error {error}: {count} times");
    }
    if figures.mismatch_count > 0 {
        println!("wrong bytes: {} times", figures.mismatch_count);
        figures.mismatches.iter().for_each(|what| println!("  {what}"));
    }
}

fn json(figures: &Figures) -> serde_json::Value {
    serde_json::json!({
        "reads": figures.reads,
        "writes": figures.writes,
        "bytes": figures.bytes,
        "seconds": figures.elapsed.as_secs_f64(),
        "iops": figures.iops(),
        "p50_us": figures.latency_us(50.0),
        "p99_us": figures.latency_us(99.0),
        "p999_us": figures.latency_us(99.9),
        "errors": figures.errors,
        "mismatches": figures.mismatch_count,
    })
}
