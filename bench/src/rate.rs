//! `bench rate`: time per packet of each pipeline by frame size and number of rules.

use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::PortRole;
use engine::port::PortSpec;
use engine::port::memory::MemorySpec;
use engine::port::null::NullSpec;
use engine::throttle::Limits;

use crate::Outcome;
use crate::cell::{Cell, Running, once, sink, source, underlay};
use crate::peers::veth::{self, Kind};
use crate::report::{self, Bar, Row, median, spread};
use crate::space::Space;
use crate::traffic::{self, SERVERS, Side, TENANT, UNDERLAY};

/// What `bench rate` takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Fewer cells, and shorter ones
    #[arg(long)]
    pub quick: bool,
    /// Write one JSON object per row to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only pipelines whose name contains this
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Also AF_XDP and AF_PACKET over veth, in a network namespace of their own (root)
    #[arg(long)]
    pub ports: bool,
}

/// What is done with each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipeline {
    /// MAC addresses swapped, back out of the same port.
    MacSwap,
    /// From one port of a tenant to another of the same node.
    Forward,
    /// Anti-spoof, lookup, into a VXLAN tunnel.
    Encap,
    /// Out of a VXLAN tunnel, to the tenant.
    Decap,
    /// Like `Encap`; each rule has a volume with limits in bytes and in packets.
    EncapCredits,
}

impl Pipeline {
    /// All, in the order of the table.
    pub const ALL: [Pipeline; 5] =
        [Pipeline::MacSwap, Pipeline::Forward, Pipeline::Encap, Pipeline::Decap, Pipeline::EncapCredits];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Pipeline::MacSwap => "macswap",
            Pipeline::Forward => "forward",
            Pipeline::Encap => "encap",
            Pipeline::Decap => "decap",
            Pipeline::EncapCredits => "encap+credits",
        }
    }

    /// A cell of this pipeline on null ports. Files that it needs are written to `folder`.
    pub fn cell(self, flows: u32, rules: u32, frame_bytes: usize, folder: &Path) -> Outcome<Cell> {
        let (tenant, servers, out) = (TENANT.0, SERVERS.0, UNDERLAY.0);
        let metered = self == Pipeline::EncapCredits;
        let trace = || traffic::trace(flows, rules, frame_bytes);
        let (side, ports) = match self {
            Pipeline::MacSwap => {
                let spec = NullSpec { templates: vec![vec![0; frame_bytes]], copy_bytes: 0 };
                (None, vec![(tenant, PortRole::MacSwap, PortSpec::Null(spec))])
            }
            Pipeline::Forward => {
                let ports =
                    vec![(tenant, PortRole::Tenant, source(trace()?)), (servers, PortRole::Tenant, sink())];
                (Some(Side::Both), ports)
            }
            Pipeline::Encap | Pipeline::EncapCredits => {
                let ports = vec![
                    (tenant, PortRole::Tenant, source(trace()?)),
                    (out, PortRole::Underlay, underlay(folder)?),
                ];
                (Some(Side::Client), ports)
            }
            Pipeline::Decap => {
                let frames = traffic::encapsulated(&trace()?)?;
                let ports =
                    vec![(tenant, PortRole::Tenant, sink()), (out, PortRole::Underlay, source(frames))];
                (Some(Side::Server), ports)
            }
        };
        Ok(Cell {
            ports,
            config: side.map(|side| traffic::config(side, rules, metered)).unwrap_or_default(),
            limits: metered.then(|| (rules, never_reached())),
            idle: None,
        })
    }
}

/// Limits in both dimensions with burst and work, so high that nothing waits: only metering is measured.
fn never_reached() -> Limits {
    let mut limits = Limits::gp3_like(1_000_000_000, 1_000_000_000_000);
    limits.packets.peak_rate = None;
    limits.bytes.peak_rate = None;
    limits
}

/// Flows that are sent over a veth pair.
const FLOWS: u32 = 64;

/// Flows of a trace over `rules` rules: each at least once.
pub fn flows_for(rules: u32) -> u32 {
    rules.max(64)
}

/// Runs the cells, prints the table, writes what was asked for.
pub fn run(args: &Args) -> Outcome {
    let folder = tempfolder("rate")?;
    let cells = cells(args, &folder.0)?;
    print(&cells);
    let rows: Vec<Row> = cells.into_iter().map(|(row, _)| row).collect();
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let plot = report::plot_bars("rate", "Time per packet, one core", "ns per packet", &bars)?;
    println!("\nplot: {}", plot.display());
    match &args.json {
        Some(path) => report::write_json(path, &rows),
        None => Ok(()),
    }
}

/// A row, and the time per packet when nothing disturbs.
type Cells = Vec<(Row, f64)>;

fn cells(args: &Args, folder: &Path) -> Outcome<Cells> {
    let (sizes, counts, runs, interval): (&[usize], &[u32], _, _) = if args.quick {
        (&[64], &[1, 10_000], 3, Duration::from_millis(120))
    } else {
        (&[64, 512, 1400], &[1, 1_000, 10_000, 100_000], 5, Duration::from_millis(300))
    };
    let wanted = |pipeline: &Pipeline| match &args.only {
        Some(only) => pipeline.name().contains(only.as_str()),
        None => true,
    };
    let mut rows = Vec::new();
    for pipeline in Pipeline::ALL.into_iter().filter(wanted) {
        // Nothing is looked up to swap addresses.
        let counts = if pipeline == Pipeline::MacSwap { &[0][..] } else { counts };
        for &frame_bytes in sizes {
            for &rules in counts {
                eprintln!("{} {frame_bytes} B, {rules} rules", pipeline.name());
                let flows = if pipeline == Pipeline::MacSwap { 1 } else { flows_for(rules) };
                let running = pipeline.cell(flows, rules, frame_bytes, folder)?.start()?;
                let row = Row {
                    bench: "rate",
                    pipeline: pipeline.name().to_owned(),
                    port: "null".to_owned(),
                    frame_bytes,
                    rules,
                    flows,
                    ..Row::default()
                };
                rows.push(measure(running, row, runs, interval)?);
            }
        }
    }
    if args.only.as_ref().is_none_or(|only| "memory".contains(only.as_str())) {
        for &frame_bytes in sizes {
            eprintln!("memory {frame_bytes} B");
            let (pipeline, port) = (Pipeline::MacSwap.name().to_owned(), "memory".to_owned());
            let row = Row { bench: "rate", pipeline, port, frame_bytes, flows: 64, ..Row::default() };
            rows.push(measure(memory_cell(frame_bytes, folder)?.start()?, row, runs, interval)?);
        }
    }
    if args.ports {
        let space = Space::enter()?;
        for kind in Kind::ALL {
            for pipeline in [Pipeline::MacSwap, Pipeline::Encap].into_iter().filter(wanted) {
                for &frame_bytes in sizes {
                    eprintln!("{} {frame_bytes} B on {}", pipeline.name(), kind.name());
                    space.veth("bench0", "bench1")?;
                    let row = over_veth(pipeline, kind, frame_bytes, runs, interval, folder);
                    space.remove("bench0")?;
                    rows.push(row?);
                }
            }
        }
    }
    Ok(rows)
}

/// A pipeline that is fed by the kernel: elapsed time per packet, since the kernel's part is on both
/// processors.
fn over_veth(
    pipeline: Pipeline,
    kind: Kind,
    frame_bytes: usize,
    runs: usize,
    interval: Duration,
    folder: &Path,
) -> Outcome<(Row, f64)> {
    let rules = if pipeline == Pipeline::MacSwap { 0 } else { FLOWS };
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let mut cell = pipeline.cell(FLOWS, rules, frame_bytes, folder)?;
        if let Some((_, _, spec)) = cell.ports.first_mut() {
            *spec = kind.spec("bench1");
        }
        let (sample, _) = veth::measure(cell, frame_bytes, interval)?;
        times.push(sample.elapsed_ns());
    }
    let ns_per_packet = median(&times);
    let row = Row {
        bench: "rate",
        pipeline: pipeline.name().to_owned(),
        port: format!("{} over veth", kind.name()),
        frame_bytes,
        rules,
        flows: FLOWS,
        ns_per_packet,
        mpps: 1e3 / ns_per_packet,
        runs,
        spread: spread(&times),
        ..Row::default()
    };
    Ok((row, times.iter().copied().fold(f64::MAX, f64::min)))
}

/// Swaps addresses on both ends of a memory port: a batch of frames goes back and forth on one worker for
/// ever. Each frame received is one hop through a ring.
fn memory_cell(frame_bytes: usize, folder: &Path) -> Outcome<Cell> {
    const OTHER_END: u16 = 4;
    let spec = MemorySpec { capacity_frames: 256, mtu_bytes: 1500, offloads: true };
    let (near, far) = engine::port::memory::pair(spec).map_err(|error| error.to_string())?;
    let seeds = traffic::write_pcap(&folder.join("seeds.pcap"), &traffic::trace(64, 1, frame_bytes)?)?;
    Ok(Cell {
        ports: vec![
            (SERVERS.0, PortRole::MacSwap, PortSpec::Memory(near.into())),
            (OTHER_END, PortRole::MacSwap, PortSpec::Memory(far.into())),
            // Opened last: what it hands out finds the others open.
            (TENANT.0, PortRole::Tenant, once(seeds)),
        ],
        config: traffic::config(Side::Both, 1, false),
        ..Cell::default()
    })
}

fn measure(running: Running, row: Row, runs: usize, interval: Duration) -> Outcome<(Row, f64)> {
    let mut times = Vec::with_capacity(runs);
    let mut undisturbed_ns = f64::MAX;
    for _ in 0..runs {
        let measured = running.measure(interval)?;
        if measured.frames == 0 {
            return Err(format!("{}: no frames came through", row.pipeline));
        }
        times.push(measured.ns_per_packet());
        undisturbed_ns = undisturbed_ns.min(measured.undisturbed_ns);
    }
    running.stop(&[])?;
    let ns_per_packet = median(&times);
    let row = Row { ns_per_packet, mpps: 1e3 / ns_per_packet, runs, spread: spread(&times), ..row };
    Ok((row, undisturbed_ns))
}

fn print(cells: &[(Row, f64)]) {
    let head =
        ["pipeline", "port", "frame B", "rules", "flows", "ns/packet", "Mpps", "spread", "undisturbed"];
    let rows = cells.iter().map(|(row, undisturbed_ns)| {
        vec![
            row.pipeline.clone(),
            row.port.clone(),
            row.frame_bytes.to_string(),
            row.rules.to_string(),
            row.flows.to_string(),
            format!("{:.1}", row.ns_per_packet),
            format!("{:.2}", row.mpps),
            format!("{:.0} %", row.spread * 100.0),
            format!("{undisturbed_ns:.1}"),
        ]
    });
    println!("{}", report::markdown(&head, &rows.collect::<Vec<_>>()));
}

fn bar(row: &Row) -> Bar {
    let group = Pipeline::ALL.iter().position(|p| p.name() == row.pipeline).unwrap_or(0);
    let label = format!("{} {} B, {} rules ({})", row.pipeline, row.frame_bytes, row.rules, row.port);
    Bar { label, group, value: row.ns_per_packet }
}

/// A folder that is removed when it is dropped.
#[derive(Debug)]
pub struct TempFolder(pub PathBuf);

/// Makes a folder for the files of one run.
pub fn tempfolder(name: &str) -> Outcome<TempFolder> {
    let path = std::env::temp_dir().join(format!("tidegate-bench-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(TempFolder(path))
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What is left is in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
