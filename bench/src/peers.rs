//! `bench peers`: testpmd and OVS-DPDK beside ours, interleaved A B A B, fed the same packets.
//!
//! Without a kernel in between, the figure is time of the processor per packet: that of the thread that
//! forwards. Over veth the kernel does most of the work on both processors, so the figure there is elapsed
//! time per packet that came back, with the share of soft interrupts shown beside it.
//!
//! What one side does more than the other: DPDK's pcap driver copies whole packets where our generator
//! copies 128 bytes of headers; ours checks the sender's addresses, looks up 10,000 rules and charges a
//! volume, which OVS is not asked to do.

mod ovs;
mod testpmd;
pub mod veth;

use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::PortRole;
use engine::port::PortSpec;
use engine::port::null::NullSpec;

use crate::Outcome;
use crate::cell::Cell;
use crate::cpu::settle;
use crate::rate::{Pipeline, tempfolder};
use crate::report::{self, Bar, Row, median, spread};
use crate::space::Space;
use crate::traffic;

use ovs::{Ovs, Way};
use testpmd::Testpmd;

/// Longest wait for a quiet second.
pub(crate) const QUIET_PATIENCE: Duration = Duration::from_secs(60);

/// What a bench beside peers takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Fewer rows and runs, and shorter ones
    #[arg(long)]
    pub quick: bool,
    /// Write one JSON object per row to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Do not wait until the machine is quiet
    #[arg(long)]
    pub no_wait: bool,
    /// Only rows whose name contains this
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
}

impl Args {
    /// Whether a row of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

/// One measurement of either side.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Packets received by the side measured.
    pub frames: u64,
    /// Time of its thread.
    pub cpu: Duration,
    /// Length of the measurement.
    pub elapsed: Duration,
}

impl Sample {
    fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.frames.max(1) as f64
    }

    /// Elapsed time per packet.
    pub fn elapsed_ns(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.frames.max(1) as f64
    }
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
struct Pace {
    pairs: usize,
    interval: Duration,
    wait: bool,
}

impl Pace {
    /// Times of ours and of the peer's, pair by pair.
    fn interleave(
        self,
        mut ours: impl FnMut(Duration) -> Outcome<f64>,
        mut theirs: impl FnMut(Duration) -> Outcome<f64>,
    ) -> Outcome<Vec<(f64, f64)>> {
        let mut pairs = Vec::with_capacity(self.pairs);
        for _ in 0..self.pairs {
            if self.wait {
                settle(QUIET_PATIENCE)?;
            }
            pairs.push((ours(self.interval)?, theirs(self.interval)?));
        }
        Ok(pairs)
    }
}

/// Measures all rows, prints the table, writes what was asked for.
pub fn run(args: &Args) -> Outcome {
    // Everything below happens in a namespace of its own: veths and OVS's interfaces.
    let space = Space::enter()?;
    let _hugepages = Hugepages::at_least(768)?;
    let folder = tempfolder("peers")?;
    let (pairs, interval) = if args.quick { (3, 700) } else { (9, 2_000) };
    let pace = Pace { pairs, interval: Duration::from_millis(interval), wait: !args.no_wait };
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    let mut add = |name: &str, row: &mut dyn FnMut() -> Outcome<(Row, String)>| {
        if !args.wants(name) {
            return;
        }
        eprintln!("{name}");
        // One peer that does not start must not cost the other rows.
        match row() {
            Ok((row, note)) => {
                rows.push(row);
                notes.push(note);
            }
            Err(error) => notes.push(format!("{name}: {error}")),
        }
    };
    add("macswap", &mut || macswap(pace));
    for flows in [64, 10_000] {
        add("encap", &mut || tunnel(pace, &folder.0, Way::Into, flows));
        add("decap", &mut || tunnel(pace, &folder.0, Way::OutOf, flows));
    }
    for kind in veth::Kind::ALL {
        add(kind.name(), &mut || veth::row(&space, pace, kind));
    }
    print(&rows);
    notes.iter().filter(|note| !note.is_empty()).for_each(|note| println!("- {note}"));
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let title = "Our time per packet by that of others, in one run";
    let plot = report::plot_bars("peers", title, "ours / peer; below 1 we are faster", &bars)?;
    println!("\nplot: {}", plot.display());
    match &args.json {
        Some(path) => report::write_json(path, &rows),
        None => Ok(()),
    }
}

/// Both with frames whose bytes nobody writes.
fn macswap(pace: Pace) -> Outcome<(Row, String)> {
    let devices = ["net_null0,size=64,copy=0".to_owned(), "net_null1,size=64,copy=0".to_owned()];
    let mut peer = Testpmd::start(&devices, "paired", "macswap")?;
    let ours = |interval| {
        let spec = PortSpec::Null(NullSpec { templates: vec![vec![0; 64]], copy_bytes: 0 });
        let ports = vec![(1, PortRole::MacSwap, spec)];
        measure(Cell { ports, ..Cell::default() }, interval)
    };
    let pairs = pace.interleave(ours, |interval| Ok(peer.measure(interval)?.cpu_ns()))?;
    Ok((row("macswap", "null", 0, 1, "testpmd macswap, copy=0", &pairs), String::new()))
}

fn tunnel(pace: Pace, folder: &Path, way: Way, flows: u32) -> Outcome<(Row, String)> {
    const RULES: u32 = 10_000;
    let trace = traffic::trace(flows, RULES, 64)?;
    let (pipeline, frames) = match way {
        Way::Into => (Pipeline::EncapCredits, trace),
        Way::OutOf => (Pipeline::Decap, traffic::encapsulated(&trace)?),
    };
    let path = traffic::write_pcap(&folder.join("trace.pcap"), &frames)?;
    let peer = Ovs::start(folder, way, &path)?;
    let ours = |interval| measure(pipeline.cell(flows, RULES, 64, folder)?, interval);
    let pairs = pace.interleave(ours, |interval| Ok(peer.measure(interval)?.cpu_ns()))?;
    let (name, other) = match way {
        Way::Into => ("encap+credits", "OVS-DPDK VXLAN encap"),
        Way::OutOf => ("decap", "OVS-DPDK VXLAN decap"),
    };
    let note = format!("OVS's caches, {name}, {flows} flows: {}", peer.cache_state()?);
    Ok((row(name, "null", RULES, flows, other, &pairs), note))
}

/// Starts a cell, measures it and stops it.
fn measure(cell: Cell, interval: Duration) -> Outcome<f64> {
    let running = cell.start()?;
    let measured = running.measure(interval)?;
    running.stop(&[])?;
    Ok(measured.ns_per_packet())
}

fn row(pipeline: &str, port: &str, rules: u32, flows: u32, peer: &str, pairs: &[(f64, f64)]) -> Row {
    let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let ratios: Vec<f64> = pairs.iter().map(|(ours, theirs)| ours / theirs).collect();
    let ns_per_packet = median(&ours);
    Row {
        bench: "peers",
        pipeline: pipeline.to_owned(),
        port: port.to_owned(),
        frame_bytes: 64,
        rules,
        flows,
        ns_per_packet,
        mpps: 1e3 / ns_per_packet,
        peer: Some(peer.to_owned()),
        peer_ns_per_packet: Some(median(&theirs)),
        ratio: Some(median(&ratios)),
        runs: pairs.len(),
        spread: spread(&ratios),
        idle: None,
    }
}

fn print(rows: &[Row]) {
    let head = ["ours", "port", "flows", "ns/packet", "Mpps", "peer", "its ns/packet", "ratio", "spread"];
    let rows = rows.iter().map(|row| {
        vec![
            row.pipeline.clone(),
            row.port.clone(),
            row.flows.to_string(),
            format!("{:.1}", row.ns_per_packet),
            format!("{:.2}", row.mpps),
            row.peer.clone().unwrap_or_default(),
            format!("{:.1}", row.peer_ns_per_packet.unwrap_or_default()),
            format!("{:.2}", row.ratio.unwrap_or_default()),
            format!("{:.0} %", row.spread * 100.0),
        ]
    });
    println!("{}", report::markdown(&head, &rows.collect::<Vec<_>>()));
}

/// Ratios, because times with and without a kernel in between are far apart.
fn bar(row: &Row) -> Bar {
    let peer = row.peer.as_deref().unwrap_or_default();
    let label = format!("{} flows, {}: {peer}", row.flows, row.port);
    Bar { label, group: 0, value: row.ratio.unwrap_or_default() }
}

/// The kernel's pool of 2 MiB pages, set back when this is dropped.
struct Hugepages {
    before: Option<u64>,
}

const HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl Hugepages {
    fn at_least(pages: u64) -> Outcome<Hugepages> {
        let failed = |error: std::io::Error| format!("{HUGEPAGES}: {error}");
        let text = std::fs::read_to_string(HUGEPAGES).map_err(failed)?;
        let now: u64 = text.trim().parse().map_err(|_| format!("{HUGEPAGES} holds no number"))?;
        if now >= pages {
            return Ok(Hugepages { before: None });
        }
        std::fs::write(HUGEPAGES, pages.to_string()).map_err(failed)?;
        Ok(Hugepages { before: Some(now) })
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = std::fs::write(HUGEPAGES, before.to_string())
        {
            eprintln!("{HUGEPAGES} could not be set back to {before}: {error}");
        }
    }
}
