//! `bench idle`: what falling asleep saves and costs.
//!
//! A client on the first processor stamps each packet with the time-stamp counter and sends it over a veth
//! to a real worker on the last one, which swaps the addresses and sends it back. The client spins, so the
//! round trip differs between rows by what the worker does. With bursts, the first packet of each (which may
//! have to wake the worker) is counted apart from the others (which must not).
//!
//! What else the machine does is kept out as far as it can be:
//! - The three modes take turns, in short runs, each after a quiet second; a figure is the median of its runs.
//! - A worker's processor has something to do while the worker sleeps, at the lowest priority that there is
//!   (`SCHED_IDLE`). Else a virtual processor halts, and when it comes back is its host's decision:
//!   milliseconds later, on a busy one.
//! - A run during which the host took a processor away for more than a hundredth of the time is done again, a
//!   few times at most, and left out if there are others; the rule is the same for all modes.
//! - What was on its way while the client's own processor was taken away from it is discarded.

mod client;
mod goals;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::PortRole;
use engine::frame::{DropReason, Slab, SlabConfig};
use engine::idle::IdleParams;
use hdrhistogram::Histogram;

use self::client::{Client, Trips};
use crate::Outcome;
use crate::cell::{Cell, Running, worker_cpu};
use crate::cpu::{Ticks, settle};
use crate::peers::veth::Kind;
use crate::report::{self, Bar, Idle, Row};
use crate::space::{Busy, Space};

/// What `bench idle` takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Shorter measurements
    #[arg(long)]
    pub quick: bool,
    /// Write one JSON object per row to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What the client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    /// Bursts per second; 0 = nothing is sent.
    bursts_per_s: u64,
    /// Packets of a burst, sent back to back.
    burst: usize,
}

const LOADS: [Load; 5] = [
    Load { bursts_per_s: 0, burst: 1 },
    Load { bursts_per_s: 1_000, burst: 1 },
    Load { bursts_per_s: 20_000, burst: 1 },
    Load { bursts_per_s: 200_000, burst: 1 },
    Load { bursts_per_s: 1_000, burst: 64 },
];

const MODES: [&str; 3] = ["adaptive", "pure spin", "block in poll"];

fn params(mode: &str) -> IdleParams {
    match mode {
        "pure spin" => IdleParams::pure_spin(),
        "block in poll" => IdleParams::block_at_once(),
        _ => IdleParams::default(),
    }
}

/// Measures all loads with all modes, prints the tables, writes what was asked for.
pub fn run(args: &Args) -> Outcome {
    let space = Space::enter()?;
    let length = Duration::from_millis(1000);
    let ticks_per_us = client::ticks_per_us();
    let mut rows = Vec::new();
    for load in LOADS {
        // Bursts are what promises are made about.
        let runs = if load.burst == 1 { 3 } else { 9 } / if args.quick { 3 } else { 1 };
        let mut seen: [Vec<Seen>; MODES.len()] = Default::default();
        for run in 0..runs {
            eprintln!("{} bursts/s of {}, run {} of {runs}", load.bursts_per_s, load.burst, run + 1);
            settle(QUIET_PATIENCE)?;
            // The order turns, so that nobody always comes first.
            for turn in 0..MODES.len() {
                let mode = (turn + run) % MODES.len();
                seen[mode].push(measure(&space, load, MODES[mode], length, ticks_per_us)?);
            }
        }
        for (mode, seen) in MODES.iter().zip(&seen) {
            rows.extend(rows_of(load, mode, seen));
        }
    }
    print(&rows);
    println!("\n{}", report::goals(&goals::goals(&rows).unwrap_or_default()).0);
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let plot = report::plot_bars("idle", "Share of its processor that a worker uses", "per cent", &bars)?;
    println!("\nplot: {}", plot.display());
    match &args.json {
        Some(path) => report::write_json(path, &rows),
        None => Ok(()),
    }
}

/// Longest wait for a quiet second.
const QUIET_PATIENCE: Duration = Duration::from_secs(20);
const HEADS: &str = "burst heads";
const OTHERS: &str = "packets 2..64";

/// What one run showed.
struct Seen {
    /// The host took a processor away for too long.
    disturbed: bool,
    cpu_share: f64,
    trips: Trips,
}

/// The rows of a load in a mode: medians over its runs, of those that were not disturbed if there are any.
fn rows_of(load: Load, mode: &str, seen: &[Seen]) -> Vec<Row> {
    let calm: Vec<&Seen> = seen.iter().filter(|seen| !seen.disturbed).collect();
    let seen = if calm.is_empty() { seen.iter().collect() } else { calm };
    let row = |pipeline: &str, trips: fn(&Trips) -> &Histogram<u64>| {
        let each = |quantile: f64| -> Vec<f64> {
            let trips = seen.iter().map(|seen| trips(&seen.trips)).filter(|trips| !trips.is_empty());
            trips.map(|trips| trips.value_at_quantile(quantile) as f64 / 1e3).collect()
        };
        let at =
            |quantile| Some(each(quantile)).filter(|all| !all.is_empty()).map(|all| report::median(&all));
        let shares: Vec<f64> = seen.iter().map(|seen| seen.cpu_share).collect();
        Row {
            bench: "idle",
            pipeline: pipeline.to_owned(),
            port: "af_packet over veth".to_owned(),
            frame_bytes: 64,
            flows: 1,
            runs: seen.len(),
            spread: report::spread(&each(0.99)),
            idle: Some(Idle {
                rate_pps: load.bursts_per_s * load.burst as u64,
                mode: mode.to_owned(),
                cpu_share: report::median(&shares),
                p50_us: at(0.5),
                p99_us: at(0.99),
                p999_us: at(0.999),
                discarded: discarded(&seen),
            }),
            ..Row::default()
        }
    };
    if load.burst == 1 {
        return vec![row("macswap", |trips| &trips.heads)];
    }
    let name = |which: &str| format!("macswap, {which}");
    vec![row(&name(HEADS), |trips| &trips.heads), row(&name(OTHERS), |trips| &trips.others)]
}

/// Share of the packets sent that were discarded.
fn discarded(seen: &[&Seen]) -> f64 {
    let sum = |count: fn(&Trips) -> u64| seen.iter().map(|seen| count(&seen.trips)).sum::<u64>() as f64;
    sum(|trips| trips.discarded) / sum(|trips| trips.sent).max(1.0)
}

/// One run, or another in its place if the host disturbed it too much.
fn measure(space: &Space, load: Load, mode: &str, length: Duration, ticks_per_us: f64) -> Outcome<Seen> {
    let mut attempt = 1;
    loop {
        let before = Ticks::each()?;
        space.veth("idle0", "idle1")?;
        let seen = measure_once(space, load, params(mode), length, ticks_per_us);
        space.remove("idle0")?;
        let mut seen = seen?;
        let stolen =
            |now: &Ticks, before: &Ticks| (now.steal - before.steal) * 100 > now.total - before.total;
        seen.disturbed = Ticks::each()?.iter().zip(&before).any(|(now, before)| stolen(now, before));
        let p99_us = |trips: &Histogram<u64>| trips.value_at_quantile(0.99) / 1000;
        eprintln!(
            "  {mode}: p99 {} and {} us{}",
            p99_us(&seen.trips.heads),
            p99_us(&seen.trips.others),
            if seen.disturbed { ", disturbed" } else { "" }
        );
        if !seen.disturbed || attempt == ATTEMPTS {
            return Ok(seen);
        }
        attempt += 1;
    }
}

/// Times that a run is done at most.
const ATTEMPTS: usize = 3;

fn measure_once(
    space: &Space,
    load: Load,
    params: IdleParams,
    length: Duration,
    ticks_per_us: f64,
) -> Outcome<Seen> {
    let ports = vec![(1, PortRole::MacSwap, Kind::Packet.spec("idle1"))];
    let running = Cell { ports, idle: Some(params), ..Cell::default() }.start()?;
    // Who spins for ever needs nothing to keep its processor busy, and would have to share it for a moment now
    // and then, even with somebody at the lowest priority.
    let _busy = (params != IdleParams::pure_spin()).then(|| Busy::start(space, worker_cpu())).transpose()?;
    // A thread of its own: pinning this one would leave the next worker no other processor.
    let client = || {
        core_affinity::set_for_current(core_affinity::CoreId { id: CLIENT_CPU });
        offer(&running, load, length, ticks_per_us)
    };
    let seen = std::thread::scope(|scope| scope.spawn(client).join());
    let seen = seen.map_err(|_| "the client panicked".to_owned())??;
    running.stop(&[DropReason::TxFull])?;
    if load.bursts_per_s > 0 && seen.trips.heads.is_empty() {
        return Err(format!("none of {} packets came back", seen.trips.sent));
    }
    Ok(seen)
}

const CLIENT_CPU: usize = 0;

fn offer(running: &Running, load: Load, length: Duration, ticks_per_us: f64) -> Outcome<Seen> {
    let slab = Slab::new(SlabConfig { frames: 1024, jumbo_frames: 0, hugepages: false })
        .map_err(|error| error.to_string())?;
    let port = engine::port::open(&Kind::Packet.spec("idle0"), &slab).map_err(|error| error.to_string())?;
    let mut client = Client::new(port, &slab, ticks_per_us)?;
    // A tenth to warm up.
    client.offer(load, length / 10)?;
    client.forget();
    let (cpu, began) = (running.cpu()?, Instant::now());
    client.offer(load, length)?;
    let (cpu, elapsed) = (running.cpu()? - cpu, began.elapsed());
    Ok(Seen { disturbed: false, cpu_share: cpu.as_secs_f64() / elapsed.as_secs_f64(), trips: client.close() })
}

fn print(rows: &[Row]) {
    let head = ["mode", "packets/s", "which", "CPU", "p50 us", "p99 us", "p99.9 us", "runs", "p99 spread"];
    let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}"));
    let rows = rows.iter().filter_map(|row| {
        let idle = row.idle.as_ref()?;
        Some(vec![
            idle.mode.clone(),
            idle.rate_pps.to_string(),
            row.pipeline.trim_start_matches("macswap, ").to_owned(),
            format!("{:.1} %", idle.cpu_share * 100.0),
            us(idle.p50_us),
            us(idle.p99_us),
            us(idle.p999_us),
            row.runs.to_string(),
            format!("{:.0} %", row.spread * 100.0),
        ])
    });
    println!("{}", report::markdown(&head, &rows.collect::<Vec<_>>()));
}

fn bar(row: &Row) -> Bar {
    let idle = row.idle.clone().unwrap_or_default();
    let group = match idle.mode.as_str() {
        "adaptive" => 0,
        "pure spin" => 1,
        _ => 2,
    };
    let label = format!("{} {} pps ({})", idle.mode, idle.rate_pps, row.pipeline);
    Bar { label, group, value: idle.cpu_share * 100.0 }
}
