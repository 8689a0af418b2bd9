//! `bench block`: volumes served over NVMe/TCP and NBD, the latter beside nbdkit and qemu-nbd.
//!
//! Server and client are pinned to processors of their own and speak TCP over loopback; the client is
//! [`crate::load`], one polling thread, or fio, where that is what is compared. The servers of a cell take turns; a
//! figure is the median of its runs. What the server spends per request is read from /proc: user time, which for a
//! server that polls also holds its polling, and the kernel's share.
//!
//! Another NVMe/TCP target takes its turns where its address and NQN are given (`--peer`); it serves whatever it
//! serves, so give the name of the rows that it can be compared in (`--only`).
//!
//! Where many connections or volumes are in use, each connection has the same requests under way as the one that
//! they are compared with.
//!
//! An idle row has each of the volumes attached by a client that only keeps itself alive.
//!
//! What one side does more than the other: on files, ours writes past the page cache, with checksums and a log,
//! nbdkit leaves the writing to the page cache, and qemu-nbd writes past it, without either. nbdkit's null
//! device and ours answer reads from zeroed memory; ours is thin everywhere.

mod fio;
mod goals;
mod idle;
pub mod servers;

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;

use crate::Outcome;
use crate::cpu::settle;
use crate::load::{self, Spec};
use crate::peers::{self, QUIET_PATIENCE};
use crate::rate::tempfolder;
use crate::report::{self, Bar, median, spread};
use servers::{Kind, Medium, Protocol, Server};

/// What `bench block` takes.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "block")]
pub struct Args {
    #[command(flatten)]
    common: peers::Args,
    /// Another NVMe/TCP target to measure beside: HOST:PORT and NQN
    #[arg(long, num_args = 2, value_names = ["ADDR", "NQN"])]
    peer: Option<Vec<String>>,
}

/// One row: ours, and one peer if there is any for the cell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BlockRow {
    /// `nvme-tcp` or `nbd`.
    pub protocol: &'static str,
    /// `tidegate-load` or `fio`.
    pub client: &'static str,
    /// `null`, `memory` or `file`.
    pub media: &'static str,
    /// `read` or `write`, at random; `idle` if there are no requests.
    pub rw: &'static str,
    /// Length of each request.
    pub block_bytes: u32,
    /// Requests under way per connection.
    pub depth: u32,
    /// Connections.
    pub connections: u32,
    /// Volumes that the daemon serves, each of them attached.
    pub volumes: u32,
    /// Those of them that requests go to.
    pub volumes_used: u32,
    /// Requests per second, median.
    pub iops: f64,
    /// Latency, median over the runs of the median.
    pub p50_us: f64,
    /// The same of the 99th percentile.
    pub p99_us: f64,
    /// User time of the server per request, ns.
    pub user_ns: f64,
    /// The kernel's share of the server's time.
    pub kernel_share: f64,
    /// Time of the server by time of one processor.
    pub cpu_share: f64,
    /// The other server.
    pub peer: Option<&'static str>,
    /// Its requests per second, median.
    pub peer_iops: Option<f64>,
    /// Its median latency.
    pub peer_p50_us: Option<f64>,
    /// Ours divided by the peer's requests per second: median of the pairs.
    pub ratio: Option<f64>,
    /// Runs of each side.
    pub runs: usize,
    /// (largest - smallest) / median: of the ratios if there is a peer, else of our requests per second.
    pub spread: f64,
}

/// Volumes where there are many.
const VOLUMES_MANY: u32 = 1000;
/// Requests that fill a file.
const FILL_BYTES: u32 = 1 << 20;

/// What asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Load,
    Fio,
}

impl Client {
    fn name(self) -> &'static str {
        match self {
            Client::Load => "tidegate-load",
            Client::Fio => "fio",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Cell {
    protocol: Protocol,
    client: Client,
    medium: Medium,
    /// `None` for no requests at all.
    write: Option<bool>,
    block_bytes: u32,
    depth: u32,
    /// To each volume in use.
    connections: u32,
    volumes: u32,
    /// Those that requests go to.
    used: u32,
}

impl Cell {
    fn rw(&self) -> &'static str {
        match self.write {
            None => "idle",
            Some(false) => "read",
            Some(true) => "write",
        }
    }

    fn name(&self) -> String {
        let Cell { depth, connections, volumes, used, .. } = self;
        let (protocol, medium, rw) = (self.protocol.name(), self.medium.name(), self.rw());
        let kib = self.block_bytes >> 10;
        let client = self.client.name();
        format!(
            "{protocol} {medium} {rw} {kib}KiB depth {depth} connections {connections} volumes {volumes} used {used} \
             {client}"
        )
    }

    /// Others are asked for the plain cells; the rest compares us with ourselves.
    fn has_peers(&self) -> bool {
        self.connections == 1 && self.volumes == 1
    }
}

fn cells(quick: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for protocol in [Protocol::NvmeTcp, Protocol::Nbd] {
        let one = Cell {
            protocol,
            client: Client::Load,
            medium: Medium::Null,
            write: Some(false),
            block_bytes: 4096,
            depth: 32,
            connections: 1,
            volumes: 1,
            used: 1,
        };
        for medium in Medium::ALL {
            for (write, block_bytes) in [(false, 4096), (true, 4096), (false, 128 << 10), (true, 128 << 10)] {
                for depth in [1, 32, 128] {
                    let is_short = block_bytes == 4096 && depth != 128;
                    if !quick || (is_short && (medium != Medium::File || depth == 32)) {
                        cells.push(Cell { medium, write: Some(write), block_bytes, depth, ..one });
                    }
                }
            }
        }
        let scales: &[u32] = if quick { &[64] } else { &[4, 16, 64] };
        cells.extend(scales.iter().map(|&connections| Cell { connections, ..one }));
        cells.push(Cell { volumes: VOLUMES_MANY, ..one });
        cells.push(Cell { volumes: VOLUMES_MANY, used: VOLUMES_MANY, ..one });
        cells.push(Cell { volumes: VOLUMES_MANY, used: 0, write: None, depth: 1, ..one });
        if protocol == Protocol::Nbd {
            // As the others' clients see it: fio has one connection.
            let fio = Cell { client: Client::Fio, medium: Medium::Memory, ..one };
            for write in [Some(false), Some(true)] {
                cells.extend([1, 32].map(|depth| Cell { write, depth, ..fio }));
            }
        }
    }
    cells
}

/// One run of one server.
#[derive(Clone, Copy, Debug)]
struct Sample {
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    user_ns: f64,
    kernel_share: f64,
    cpu_share: f64,
}

/// Measures all cells, prints the table, writes what was asked for.
pub fn run(args: &Args) -> Outcome {
    let folder = tempfolder("block")?;
    let common = &args.common;
    let (runs, seconds) = if common.quick { (3, 1) } else { (5, 3) };
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
    let there = servers::peers();
    let mut rows = Vec::new();
    for cell in cells(common.quick) {
        let name = cell.name();
        if !common.wants(&name) || (cell.client == Client::Fio && !fio::is_installed()) {
            continue;
        }
        eprintln!("{name}");
        let mut kinds = vec![Kind::Ours];
        match cell.protocol {
            _ if !cell.has_peers() => {}
            Protocol::Nbd => kinds.extend(there.iter().cloned()),
            Protocol::NvmeTcp => kinds.extend(args.peer.as_deref().and_then(Kind::other)),
        }
        let mut samples = vec![Vec::new(); kinds.len()];
        for _ in 0..runs {
            if !common.no_wait {
                settle(QUIET_PATIENCE)?;
            }
            for (kind, samples) in kinds.iter().zip(&mut samples) {
                samples.push(measure(kind, &cell, &folder.0, Duration::from_secs(seconds))?);
            }
        }
        rows.extend(rows_of(&cell, &kinds, &samples));
    }
    print(&rows);
    let bars: Vec<Bar> = rows.iter().filter(|row| row.rw != "idle").map(bar).collect();
    let title = "4 KiB and 128 KiB requests over NVMe/TCP and NBD";
    let plot = report::plot_bars("block", title, "requests per second", &bars)?;
    println!("\nplot: {}", plot.display());
    if let Some(path) = &common.json {
        report::write_json(path, &rows)?;
    }
    let mut goals = goals::goals(&rows);
    if common.only.is_some() {
        goals.retain(|goal| goal.measured.is_some());
    }
    let (table, are_kept) = report::goals(&goals);
    println!("\n{table}");
    // Short runs show that everything works; their figures decide nothing.
    if are_kept || common.quick { Ok(()) } else { Err("a goal is not kept; the table says which".to_owned()) }
}

fn measure(kind: &Kind, cell: &Cell, folder: &std::path::Path, duration: Duration) -> Outcome<Sample> {
    let server = Server::start(kind, cell.protocol, cell.medium, cell.volumes, folder)?;
    let mut spec = Spec {
        connections: cell.connections,
        depth: cell.depth,
        read_percent: if cell.write == Some(true) { 0 } else { 100 },
        block_bytes: cell.block_bytes,
        duration: duration / 4,
        ..Spec::new(server.uri(0)?)
    };
    if cell.medium == Medium::File {
        // Every block, so that no read is of a hole.
        let requests_max = Some(servers::SIZE_BYTES / u64::from(FILL_BYTES));
        let fill = Spec {
            sequential: true,
            read_percent: 0,
            connections: 1,
            depth: 32,
            block_bytes: FILL_BYTES,
            requests_max,
            duration: Duration::from_secs(60),
            ..spec.clone()
        };
        load::run(&fill, &mut |_| ControlFlow::Continue(()))?;
    }
    // Those who are not used, and have no time to say anything, must not be missed.
    let keep_alive_ms = if cell.write.is_none() { load::nvme::Options::default().keep_alive_ms } else { 0 };
    let mut others = idle::attach(&server, cell.used..cell.volumes, keep_alive_ms)?;
    if cell.write.is_none() {
        return idle::measure(&server, &mut others);
    }
    let on_all = |spec: &Spec| {
        let specs = (0..cell.used).map(|number| Ok(Spec { uri: server.uri(number)?, ..spec.clone() }));
        specs.collect::<Outcome<Vec<Spec>>>()
    };
    // Threads start, sockets find their windows, pages are touched.
    load::run_all(&on_all(&spec)?)?;
    spec.duration = duration;
    let specs = on_all(&spec)?;
    let before = server.spent()?;
    let (ios, iops, p50_us, p99_us) = match cell.client {
        Client::Load => {
            let figures = load::run_all(&specs)?;
            if !figures.errors.is_empty() {
                return Err(format!("{}: errors {:?}", kind.name(), figures.errors));
            }
            (figures.ios(), figures.iops(), figures.latency_us(50.0), figures.latency_us(99.0))
        }
        Client::Fio => fio::run(&spec)?,
    };
    let after = server.spent()?;
    let (user_ns, kernel_ns) = (after.user_ns - before.user_ns, after.kernel_ns - before.kernel_ns);
    Ok(Sample {
        iops,
        p50_us,
        p99_us,
        user_ns: user_ns as f64 / ios.max(1) as f64,
        kernel_share: kernel_ns as f64 / (user_ns + kernel_ns).max(1) as f64,
        cpu_share: (user_ns + kernel_ns) as f64 / duration.as_nanos() as f64,
    })
}

/// A row for each peer, or one without.
fn rows_of(cell: &Cell, kinds: &[Kind], samples: &[Vec<Sample>]) -> Vec<BlockRow> {
    let of = |samples: &[Sample], figure: fn(&Sample) -> f64| {
        median(&samples.iter().map(figure).collect::<Vec<_>>())
    };
    let Some((ours, theirs)) = samples.split_first() else { return Vec::new() };
    let rates: Vec<f64> = ours.iter().map(|sample| sample.iops).collect();
    let row = BlockRow {
        protocol: cell.protocol.name(),
        client: cell.client.name(),
        media: cell.medium.name(),
        rw: cell.rw(),
        block_bytes: cell.block_bytes,
        depth: cell.depth,
        connections: cell.connections,
        volumes: cell.volumes,
        volumes_used: cell.used,
        iops: median(&rates),
        p50_us: of(ours, |sample| sample.p50_us),
        p99_us: of(ours, |sample| sample.p99_us),
        user_ns: of(ours, |sample| sample.user_ns),
        kernel_share: of(ours, |sample| sample.kernel_share),
        cpu_share: of(ours, |sample| sample.cpu_share),
        runs: ours.len(),
        spread: spread(&rates),
        ..BlockRow::default()
    };
    if theirs.is_empty() {
        return vec![row];
    }
    let beside = |(kind, peer): (&Kind, &Vec<Sample>)| {
        let ratios: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| ours.iops / peer.iops).collect();
        BlockRow {
            peer: Some(kind.name()),
            peer_iops: Some(of(peer, |sample| sample.iops)),
            peer_p50_us: Some(of(peer, |sample| sample.p50_us)),
            ratio: Some(median(&ratios)),
            spread: spread(&ratios),
            ..row.clone()
        }
    };
    kinds[1..].iter().zip(theirs).map(beside).collect()
}

fn print(rows: &[BlockRow]) {
    let head = [
        "protocol, medium, request",
        "depth",
        "conn.",
        "volumes",
        "used",
        "IOPS",
        "p50 us",
        "p99 us",
        "user ns",
        "kernel",
        "cpu",
        "peer",
        "its IOPS",
        "its p50",
        "ratio",
        "spread",
    ];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                format!("{}{} {} {} {} KiB", row.protocol, by(row), row.media, row.rw, row.block_bytes >> 10),
                row.depth.to_string(),
                row.connections.to_string(),
                row.volumes.to_string(),
                row.volumes_used.to_string(),
                format!("{:.0}", row.iops),
                format!("{:.1}", row.p50_us),
                format!("{:.1}", row.p99_us),
                format!("{:.0}", row.user_ns),
                format!("{:.0} %", row.kernel_share * 100.0),
                format!("{:.1} %", row.cpu_share * 100.0),
                or_dash(row.peer.map(str::to_owned)),
                or_dash(row.peer_iops.map(|iops| format!("{iops:.0}"))),
                or_dash(row.peer_p50_us.map(|p50| format!("{p50:.1}"))),
                or_dash(row.ratio.map(|ratio| format!("{ratio:.2}"))),
                format!("{:.0} %", row.spread * 100.0),
            ]
        })
        .collect();
    println!("{}", report::markdown(&head, &cells));
    println!("ratio: our requests per second by the peer's, median of pairs; above 1 we are faster");
}

/// Who asks, if it is not ours.
fn by(row: &BlockRow) -> &'static str {
    if row.client == Client::Fio.name() { " (fio)" } else { "" }
}

fn bar(row: &BlockRow) -> Bar {
    let beside = row
        .ratio
        .map_or_else(String::new, |ratio| format!(" ({ratio:.1}x {})", row.peer.unwrap_or_default()));
    let label = format!(
        "{}{} {} {} {}K depth {} x {}{beside}",
        row.protocol,
        by(row),
        row.media,
        row.rw,
        row.block_bytes >> 10,
        row.depth,
        row.connections
    );
    let group = Medium::ALL.iter().position(|medium| medium.name() == row.media).unwrap_or(0);
    Bar { label, group, value: row.iops }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_published_fields() {
        let value = serde_json::to_value(BlockRow::default()).expect("plain values");
        let names: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        let published =
            "protocol media rw block_bytes depth iops p50_us p99_us peer peer_iops ratio runs spread";
        published.split(' ').for_each(|name| assert!(names.contains(&name), "{name}"));
    }

    #[test]
    fn cells_cover_what_is_promised() {
        let all = cells(false);
        // Media, depths, directions and lengths; connections; many volumes, busy and idle; and fio.
        assert_eq!(all.len(), 2 * (3 * 3 * 2 * 2 + 3 + 3) + 4);
        assert!(all.iter().any(|cell| cell.volumes == 1000) && all.iter().any(|cell| cell.connections == 64));
        assert!(cells(true).len() < all.len());
    }
}
