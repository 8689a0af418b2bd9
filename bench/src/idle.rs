//! `bench idle`: what falling asleep saves and costs.
//!
//! A client on the first processor stamps each packet with the time-stamp counter and sends it over a veth
//! to a real worker on the last one, which swaps the addresses and sends it back. The client spins, so the
//! round trip differs between rows by what the worker does. With bursts, the first packet of each (which may
//! have to wake the worker) is counted apart from the others (which must not).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::PortRole;
use engine::frame::{BATCH, Batch, DropReason, Pool, Slab, SlabConfig, tsc};
use engine::idle::IdleParams;
use engine::port::Port;
use hdrhistogram::Histogram;

use crate::Outcome;
use crate::cell::{Cell, Running};
use crate::peers::veth::Kind;
use crate::report::{self, Bar, Idle, Row};
use crate::space::Space;
use crate::traffic;

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

/// A kind of frame that nobody else sends: IEEE 802 local experimental.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Where the time stamp and the place in the burst are.
const STAMP_AT: usize = 16;
const PLACE_AT: usize = 24;

/// Measures all loads with all modes, prints the table, writes what was asked for.
pub fn run(args: &Args) -> Outcome {
    let space = Space::enter()?;
    let seconds = if args.quick { 1 } else { 5 };
    let ticks_per_us = ticks_per_us();
    let modes = [
        ("adaptive", IdleParams::default()),
        ("pure spin", IdleParams::pure_spin()),
        ("block in poll", IdleParams::block_at_once()),
    ];
    let mut rows = Vec::new();
    for load in LOADS {
        for (mode, params) in modes {
            eprintln!("{mode}, {} bursts/s of {}", load.bursts_per_s, load.burst);
            space.veth("idle0", "idle1")?;
            let seen = measure(load, params, Duration::from_secs(seconds), ticks_per_us);
            space.remove("idle0")?;
            rows.extend(seen?.rows(load, mode));
        }
    }
    print(&rows);
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let plot = report::plot_bars("idle", "Share of its processor that a worker uses", "per cent", &bars)?;
    println!("\nplot: {}", plot.display());
    match &args.json {
        Some(path) => report::write_json(path, &rows),
        None => Ok(()),
    }
}

/// What one measurement showed.
struct Seen {
    cpu_share: f64,
    sent: u64,
    /// Round trips of first packets of bursts, and of the others, in nanoseconds.
    heads: Histogram<u64>,
    others: Histogram<u64>,
}

impl Seen {
    fn rows(&self, load: Load, mode: &str) -> Vec<Row> {
        let row = |pipeline: &str, trips: &Histogram<u64>| {
            let at = |quantile| (!trips.is_empty()).then(|| trips.value_at_quantile(quantile) as f64 / 1e3);
            Row {
                bench: "idle",
                pipeline: pipeline.to_owned(),
                port: "af_packet over veth".to_owned(),
                frame_bytes: 64,
                flows: 1,
                runs: 1,
                idle: Some(Idle {
                    rate_pps: load.bursts_per_s * load.burst as u64,
                    mode: mode.to_owned(),
                    cpu_share: self.cpu_share,
                    p50_us: at(0.5),
                    p99_us: at(0.99),
                    p999_us: at(0.999),
                }),
                ..Row::default()
            }
        };
        if load.burst == 1 {
            return vec![row("macswap", &self.heads)];
        }
        vec![row("macswap, burst heads", &self.heads), row("macswap, packets 2..64", &self.others)]
    }
}

fn measure(load: Load, params: IdleParams, length: Duration, ticks_per_us: f64) -> Outcome<Seen> {
    let ports = vec![(1, PortRole::MacSwap, Kind::Packet.spec("idle1"))];
    let running = Cell { ports, idle: Some(params), ..Cell::default() }.start()?;
    // A thread of its own: pinning this one would leave the next worker no other processor.
    let client = || {
        core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
        offer(&running, load, length, ticks_per_us)
    };
    let seen = std::thread::scope(|scope| scope.spawn(client).join());
    let seen = seen.map_err(|_| "the client panicked".to_owned())??;
    running.stop(&[DropReason::TxFull])?;
    if load.bursts_per_s > 0 && seen.heads.is_empty() {
        return Err(format!("none of {} packets came back", seen.sent));
    }
    Ok(seen)
}

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
    let (heads, others, sent) = client.close();
    Ok(Seen { cpu_share: cpu.as_secs_f64() / elapsed.as_secs_f64(), sent, heads, others })
}

/// Sends at a pace, receives all the time.
struct Client {
    port: Box<dyn Port>,
    pool: Pool,
    template: [u8; 64],
    ticks_per_us: f64,
    sent: u64,
    heads: Histogram<u64>,
    others: Histogram<u64>,
}

impl Client {
    fn new(port: Box<dyn Port>, slab: &Arc<Slab>, ticks_per_us: f64) -> Outcome<Client> {
        // Up to ten seconds with three digits.
        let histogram =
            || Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(|error| error.to_string());
        let mut template = [0; 64];
        template[..6].copy_from_slice(&traffic::vtep_mac(2).0);
        template[6..12].copy_from_slice(&traffic::vtep_mac(1).0);
        template[12..14].copy_from_slice(&ETHERTYPE);
        let (heads, others) = (histogram()?, histogram()?);
        Ok(Client { port, pool: Pool::new(slab), template, ticks_per_us, sent: 0, heads, others })
    }

    fn offer(&mut self, load: Load, length: Duration) -> Outcome {
        let end = Instant::now() + length;
        if load.bursts_per_s == 0 {
            std::thread::sleep(length);
            return Ok(());
        }
        let gap = (1e6 * self.ticks_per_us / load.bursts_per_s as f64) as u64;
        let mut next = tsc();
        let mut looks = 0_u32;
        loop {
            let now = tsc();
            if now >= next {
                self.send(load.burst)?;
                // What could not be sent in time is not made up for.
                next = (next + gap).max(now);
            }
            self.receive()?;
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(256) && Instant::now() > end {
                return Ok(());
            }
        }
    }

    fn send(&mut self, burst: usize) -> Outcome {
        let mut place = 0_u64;
        while (place as usize) < burst {
            let mut batch = Batch::new();
            while batch.len() < BATCH && (place as usize) < burst {
                let Some(mut frame) = self.pool.alloc() else { break };
                self.template[STAMP_AT..PLACE_AT].copy_from_slice(&tsc().to_le_bytes());
                self.template[PLACE_AT..PLACE_AT + 8].copy_from_slice(&place.to_le_bytes());
                self.pool.fill(&mut frame, &self.template);
                batch.push(frame);
                place += 1;
            }
            let offered = batch.len();
            let sent = self.port.tx_burst(&mut self.pool, &mut batch).map_err(|error| error.to_string())?;
            self.sent += sent as u64;
            self.pool.free_batch(&mut batch);
            if offered == 0 || sent < offered {
                break;
            }
        }
        self.port.flush(&mut self.pool).map_err(|error| error.to_string())
    }

    fn receive(&mut self) -> Outcome {
        let mut batch = Batch::new();
        self.port.rx_burst(&mut self.pool, &mut batch).map_err(|error| error.to_string())?;
        if batch.is_empty() {
            return Ok(());
        }
        let now = tsc();
        for frame in &batch {
            let bytes = self.pool.bytes(frame);
            let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
            if bytes.get(12..14) != Some(&ETHERTYPE) {
                continue;
            }
            if let (Some(stamp), Some(place)) = (word(STAMP_AT), word(PLACE_AT)) {
                let ns = now.saturating_sub(stamp) as f64 * 1e3 / self.ticks_per_us;
                let trips = if place == 0 { &mut self.heads } else { &mut self.others };
                trips.saturating_record(ns as u64);
            }
        }
        self.pool.free_batch(&mut batch);
        Ok(())
    }

    fn forget(&mut self) {
        self.heads.clear();
        self.others.clear();
        self.sent = 0;
    }

    fn close(mut self) -> (Histogram<u64>, Histogram<u64>, u64) {
        self.port.close(&mut self.pool);
        (self.heads, self.others, self.sent)
    }
}

/// Ticks of the time-stamp counter per microsecond.
fn ticks_per_us() -> f64 {
    let (began, first) = (Instant::now(), tsc());
    std::thread::sleep(Duration::from_millis(100));
    (tsc() - first) as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn print(rows: &[Row]) {
    let head = ["mode", "packets/s", "which", "CPU", "p50 us", "p99 us", "p99.9 us"];
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
