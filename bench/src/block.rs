//! `bench block`: volumes served over NBD, beside nbdkit and qemu-nbd.
//!
//! Server and client are pinned to processors of their own and speak TCP over loopback; the client is
//! [`crate::load`], one polling thread. The servers of a cell take turns; a figure is the median of its runs.
//! What the server spends per request is read from /proc: user time, which for a server that polls also holds
//! its polling, and the kernel's share.
//!
//! What one side does more than the other: on files, ours writes past the page cache, with checksums and a log,
//! nbdkit leaves the writing to the page cache, and qemu-nbd writes past it, without either. nbdkit's null
//! device and ours answer reads from zeroed memory; ours is thin everywhere.

mod servers;

use std::time::Duration;

use serde::Serialize;

use crate::Outcome;
use crate::cpu::settle;
use crate::load::{self, Spec};
use crate::peers::{Args, QUIET_PATIENCE};
use crate::rate::tempfolder;
use crate::report::{self, Bar, median, spread};
use servers::{Kind, Medium, Server};

/// One row: ours, and one peer if there is any for the cell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BlockRow {
    /// `nbd`.
    pub protocol: &'static str,
    /// `null`, `memory` or `file`.
    pub media: &'static str,
    /// `read` or `write`, at random.
    pub rw: &'static str,
    /// Length of each request.
    pub block_bytes: u32,
    /// Requests under way per connection.
    pub depth: u32,
    /// Connections.
    pub connections: u32,
    /// Volumes that the daemon serves; one is used.
    pub volumes: u32,
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

/// Requests that fill a file.
const FILL_BYTES: u32 = 1 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Cell {
    medium: Medium,
    write: bool,
    block_bytes: u32,
    depth: u32,
    connections: u32,
    volumes: u32,
}

impl Cell {
    fn name(&self) -> String {
        let rw = if self.write { "write" } else { "read" };
        let Cell { depth, connections, volumes, .. } = self;
        let kib = self.block_bytes >> 10;
        format!(
            "{} {rw} {kib}KiB depth {depth} connections {connections} volumes {volumes}",
            self.medium.name()
        )
    }
}

fn cells(quick: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    let one =
        Cell { medium: Medium::Null, write: false, block_bytes: 4096, depth: 32, connections: 1, volumes: 1 };
    for medium in Medium::ALL {
        for (write, block_bytes) in [(false, 4096), (true, 4096), (false, 128 << 10), (true, 128 << 10)] {
            for depth in [1, 32, 128] {
                if !quick || (block_bytes == 4096 && depth != 128 && (medium != Medium::File || depth == 32))
                {
                    cells.push(Cell { medium, write, block_bytes, depth, ..one });
                }
            }
        }
    }
    let scales: &[u32] = if quick { &[64] } else { &[4, 16, 64] };
    cells.extend(scales.iter().map(|&connections| Cell { connections, depth: 4, ..one }));
    cells.push(Cell { volumes: 1000, ..one });
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
}

/// Measures all cells, prints the table, writes what was asked for.
pub fn run(args: &Args) -> Outcome {
    let folder = tempfolder("block")?;
    let (runs, seconds) = if args.quick { (3, 1) } else { (5, 3) };
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
    let mut rows = Vec::new();
    for cell in cells(args.quick) {
        let name = cell.name();
        if !args.wants(&name) {
            continue;
        }
        eprintln!("{name}");
        let kinds: Vec<Kind> = [Kind::Ours].into_iter().chain(servers::peers(cell.medium)).collect();
        // Peers are asked for the plain cells; the others compare us with ourselves.
        let kinds = if cell.connections == 1 && cell.volumes == 1 { &kinds[..] } else { &kinds[..1] };
        let mut samples = vec![Vec::new(); kinds.len()];
        for _ in 0..runs {
            if !args.no_wait {
                settle(QUIET_PATIENCE)?;
            }
            for (kind, samples) in kinds.iter().zip(&mut samples) {
                samples.push(measure(*kind, &cell, &folder.0, Duration::from_secs(seconds))?);
            }
        }
        rows.extend(rows_of(&cell, kinds, &samples));
    }
    print(&rows);
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let plot =
        report::plot_bars("block", "4 KiB and 128 KiB requests over NBD", "requests per second", &bars)?;
    println!("\nplot: {}", plot.display());
    match &args.json {
        Some(path) => report::write_json(path, &rows),
        None => Ok(()),
    }
}

fn measure(kind: Kind, cell: &Cell, folder: &std::path::Path, duration: Duration) -> Outcome<Sample> {
    let server = Server::start(kind, cell.medium, cell.volumes, folder)?;
    let mut spec = Spec {
        uri: server.uri()?,
        connections: cell.connections,
        depth: cell.depth,
        read_percent: if cell.write { 0 } else { 100 },
        block_bytes: cell.block_bytes,
        sequential: false,
        rate_iops: None,
        verify: false,
        duration: duration / 4,
        requests_max: None,
        seed: 1,
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
        load::run(&fill, &mut |_| {})?;
    }
    // Threads start, sockets find their windows, pages are touched.
    load::run(&spec, &mut |_| {})?;
    spec.duration = duration;
    let before = server.spent()?;
    let figures = load::run(&spec, &mut |_| {})?;
    let after = server.spent()?;
    if !figures.errors.is_empty() {
        return Err(format!("{}: errors {:?}", kind.name(), figures.errors));
    }
    let (user_ns, kernel_ns) = (after.user_ns - before.user_ns, after.kernel_ns - before.kernel_ns);
    Ok(Sample {
        iops: figures.iops(),
        p50_us: figures.latency_us(50.0),
        p99_us: figures.latency_us(99.0),
        user_ns: user_ns as f64 / figures.ios().max(1) as f64,
        kernel_share: kernel_ns as f64 / (user_ns + kernel_ns).max(1) as f64,
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
        protocol: "nbd",
        media: cell.medium.name(),
        rw: if cell.write { "write" } else { "read" },
        block_bytes: cell.block_bytes,
        depth: cell.depth,
        connections: cell.connections,
        volumes: cell.volumes,
        iops: median(&rates),
        p50_us: of(ours, |sample| sample.p50_us),
        p99_us: of(ours, |sample| sample.p99_us),
        user_ns: of(ours, |sample| sample.user_ns),
        kernel_share: of(ours, |sample| sample.kernel_share),
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
        "medium, request",
        "depth",
        "conn.",
        "volumes",
        "IOPS",
        "p50 us",
        "p99 us",
        "user ns",
        "kernel",
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
                format!("{} {} {} KiB", row.media, row.rw, row.block_bytes >> 10),
                row.depth.to_string(),
                row.connections.to_string(),
                row.volumes.to_string(),
                format!("{:.0}", row.iops),
                format!("{:.1}", row.p50_us),
                format!("{:.1}", row.p99_us),
                format!("{:.0}", row.user_ns),
                format!("{:.0} %", row.kernel_share * 100.0),
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

fn bar(row: &BlockRow) -> Bar {
    let beside = row
        .ratio
        .map_or_else(String::new, |ratio| format!(" ({ratio:.1}x {})", row.peer.unwrap_or_default()));
    let label = format!(
        "{} {} {}K depth {} x {}{beside}",
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
        assert_eq!(all.len(), 3 * 3 * 2 * 2 + 3 + 1);
        assert!(all.iter().any(|cell| cell.volumes == 1000) && all.iter().any(|cell| cell.connections == 64));
        assert!(cells(true).len() < all.len());
    }
}
