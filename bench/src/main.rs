//! `bench`: measures the data plane; see the library's documentation.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Measure Tidegate's data plane", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time per packet of each pipeline by frame size and number of rules
    Rate(bench::rate::Args),
    /// testpmd and OVS-DPDK beside ours, interleaved, on the same packets (root)
    Peers(bench::peers::Args),
    /// Served volumes over NVMe/TCP and NBD, beside nbdkit, qemu-nbd and any other target, interleaved
    Block(bench::block::Args),
    /// What following none, one in 64 and each of the requests costs, in turns
    Trace(bench::peers::Args),
    /// CPU share and latency of a worker that falls asleep, beside spinning and blocking (root)
    Idle(bench::idle::Args),
}

fn main() -> ExitCode {
    bench::exit(match Cli::parse().command {
        Command::Rate(args) => bench::rate::run(&args),
        Command::Peers(args) => bench::peers::run(&args),
        Command::Block(args) => bench::block::run(&args),
        Command::Trace(args) => bench::trace::run(&args),
        Command::Idle(args) => bench::idle::run(&args),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
