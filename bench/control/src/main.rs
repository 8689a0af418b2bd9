//! `bench control`: what a fleet of 1,000 nodes with 100,000 volumes costs the control plane.
//!
//! The core and its store (redb, in a temporary folder, every transaction synced) are the real ones, driven as
//! the server drives them: steps, then a transaction, then everything else. Nodes are values that do at once what
//! they are told ([`fleet`]). Time is a number that goes on by 10 ms from turn to turn; what is measured is the time
//! that the core and the store take, on one thread.

#![forbid(unsafe_code)]

mod fleet;
mod plane;

use std::process::ExitCode;
use std::time::Instant;

use bench::Outcome;
use bench::peers::Args;
use bench::report::{self, Bar};
use clap::Parser;
use contract::{Class, Command, EventKind, Name, TenantId, Trigger, VolumeId, VolumeLimits};
use serde::Serialize;

use fleet::Fleet;

#[derive(Parser)]
#[command(name = "bench control", about = "Measure the control plane with a fleet", max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    nodes: usize,
    volumes: u64,
    /// What was measured.
    what: &'static str,
    value: f64,
    unit: &'static str,
    /// Of how many.
    count: u64,
    /// Requests refused, operations failed, nodes that did not take over what they were told.
    failed: u64,
}

/// Tenants. The first has half of the volumes, so some on every node.
const TENANTS: u64 = 100;
/// Requests that are handed in together while the fleet is built.
const WAVE: u64 = 500;
/// Turns after which something that should end did not.
const TURNS_MAX: u64 = 100_000;

fn main() -> ExitCode {
    bench::exit(run(&Cli::parse().args))
}

fn run(args: &Args) -> Outcome {
    let (nodes, volumes, events) = if args.quick { (100, 5_000, 1_000) } else { (1_000, 100_000, 5_000) };
    let folder = bench::rate::tempfolder("control")?;
    let mut bench = Bench { fleet: Fleet::new(&folder.0, nodes)?, rows: Vec::new(), nodes, volumes };
    bench.build()?;
    bench.heartbeats()?;
    bench.fan_out()?;
    bench.storm(events)?;
    bench.storage(&folder.0)?;
    print(&bench.rows);
    if let Some(path) = &args.json {
        report::write_json(path, &bench.rows)?;
    }
    let times = bench.rows.iter().filter(|row| row.unit == "us" || row.unit == "ms");
    let ms = |row: &Row| if row.unit == "us" { row.value / 1e3 } else { row.value };
    let bars: Vec<Bar> =
        times.map(|row| Bar { label: row.what.to_owned(), group: 0, value: ms(row) }).collect();
    let title = format!("Control plane with {nodes} nodes and {volumes} volumes");
    let path = report::plot_bars("control", &title, "ms", &bars)?;
    eprintln!("{}", path.display());
    let failed: u64 = bench.rows.iter().map(|row| row.failed).sum();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} things failed; the table says which")) }
}

struct Bench {
    fleet: Fleet,
    rows: Vec<Row>,
    nodes: usize,
    volumes: u64,
}

impl Bench {
    fn tell(&mut self, what: &'static str, (value, unit): (f64, &'static str), count: u64, failed: u64) {
        eprintln!("{what}: {value:.1} {unit}");
        let (nodes, volumes) = (self.nodes, self.volumes);
        self.rows.push(Row { bench: "control", nodes, volumes, what, value, unit, count, failed });
    }

    /// Registers the nodes and makes all volumes.
    fn build(&mut self) -> Outcome {
        for tenant in 1..=TENANTS {
            self.fleet.ask(tenant_put(tenant, 1));
        }
        self.fleet.until("the nodes are there", TURNS_MAX, |fleet| fleet.alive() == fleet.nodes.len())?;
        let (busy, decisions) = (self.fleet.plane.busy, self.fleet.plane.core.counters().decisions);
        for first in (1..=self.volumes).step_by(WAVE as usize) {
            for volume in first..(first + WAVE).min(self.volumes + 1) {
                let tenant = if volume % 2 == 0 { 1 } else { 1 + volume % TENANTS };
                self.fleet.ask(volume_create(volume, tenant));
            }
            self.fleet.turn()?;
            let open = |fleet: &Fleet| fleet.open() < 4 * WAVE as usize;
            self.fleet.until("operations end", TURNS_MAX, open)?;
        }
        self.fleet.until("all volumes are served", TURNS_MAX, |fleet| fleet.open() == 0)?;
        let core = &self.fleet.plane.core;
        let served = core.volumes().filter(|volume| volume.head.is_some()).count() as u64;
        let decided = core.counters().decisions - decisions;
        let seconds = (self.fleet.plane.busy - busy).as_secs_f64();
        let missing = self.volumes - served;
        self.tell("volumes made and served", (self.volumes as f64 / seconds, "per s"), self.volumes, missing);
        self.tell("decisions while they are", (decided as f64 / seconds, "per s"), decided, 0);
        Ok(())
    }

    /// Reports of all nodes, several times: whole ones, and short ones in which nothing changed.
    fn heartbeats(&mut self) -> Outcome {
        const ROUNDS: u64 = 5;
        let count = ROUNDS * self.nodes as u64;
        for (whole, read, taken) in [
            (true, "whole report, read from JSON, p50", "whole report, taken, p50"),
            (false, "short report, read from JSON, p50", "short report, taken, p50"),
        ] {
            let (mut reads, mut takes) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                for node in 0..self.nodes {
                    let (parsed, took) = self.fleet.heartbeat(node, whole)?;
                    reads.push(parsed);
                    takes.push(took);
                }
                self.fleet.turn()?;
            }
            self.tell(read, (percentile(&mut reads, 50), "us"), count, 0);
            self.tell(taken, (percentile(&mut takes, 50), "us"), count, 0);
            if whole {
                self.tell("whole report, taken, p99", (percentile(&mut takes, 99), "us"), count, 0);
            }
        }
        Ok(())
    }

    /// A change of something that every node has.
    fn fan_out(&mut self) -> Outcome {
        let before: Vec<u64> = self.fleet.nodes.iter().map(|node| node.version()).collect();
        let busy = self.fleet.plane.busy;
        self.fleet.ask(tenant_put(1, 2));
        let newer = |fleet: &Fleet| {
            let all = fleet.nodes.iter().zip(&before);
            all.filter(|(node, before)| node.version() > **before).count() == before.len()
        };
        let reached = self.fleet.until("every node has the change", 1_000, newer).is_ok();
        let ms = (self.fleet.plane.busy - busy).as_secs_f64() * 1e3;
        self.tell("change that all nodes hear, made", (ms, "ms"), self.nodes as u64, u64::from(!reached));
        let began = Instant::now();
        let bytes = self.fleet.encode_snapshots()?;
        let ms = began.elapsed().as_secs_f64() * 1e3;
        self.tell("the snapshots of it, written as JSON", (ms, "ms"), self.nodes as u64, 0);
        let each = bytes as f64 / self.nodes as f64 / 1024.0;
        self.tell("snapshot of a node", (each, "KiB"), self.nodes as u64, 0);
        Ok(())
    }

    /// Many events at once, and somebody who makes a volume now and then meanwhile.
    fn storm(&mut self, events: u64) -> Outcome {
        const PROBE_EACH_TURNS: u64 = 4;
        let (busy, failed) = (self.fleet.plane.busy, self.fleet.plane.core.counters().failed);
        let (refused, began) = (self.fleet.refused, self.fleet.now_ms);
        self.fleet.answers.clear();
        for event in 0..events {
            let volume = VolumeId(1 + event * self.volumes / events);
            let (kind, trigger) = (EventKind::SpaceLow, Trigger::Threshold);
            self.fleet.ask(Command::EventRegister { kind, volume, trigger });
        }
        let mut probes = Vec::new();
        let mut turns = 0;
        while turns == 0 || self.fleet.open() > 0 {
            if turns % PROBE_EACH_TURNS == 0 {
                probes.push(self.fleet.ask(volume_create(self.volumes + 1 + turns, 1)));
            }
            self.fleet.turn()?;
            turns += 1;
            if turns > TURNS_MAX {
                return Err("the storm does not end".to_owned());
            }
            // The last ones are volumes of people, which would go on for ever.
            if self
                .fleet
                .plane
                .core
                .operations()
                .all(|one| one.phase.is_over() || one.volume.0 > self.volumes)
            {
                break;
            }
        }
        let seconds = (self.fleet.plane.busy - busy).as_secs_f64();
        let virtual_s = (self.fleet.now_ms - began) as f64 / 1e3;
        let failed = self.fleet.plane.core.counters().failed - failed + self.fleet.refused - refused;
        let of = |wanted: bool, fleet: &Fleet| -> Vec<f64> {
            let mine = fleet.answers.iter().filter(|(token, _)| probes.contains(token) == wanted);
            mine.map(|(_, waited)| waited.as_secs_f64() * 1e3).collect()
        };
        let (mut answers, mut probed) = (of(false, &self.fleet), of(true, &self.fleet));
        let count = probed.len() as u64;
        self.tell("storm of events, core and store", (seconds * 1e3, "ms"), events, failed);
        self.tell("storm of events, on the fleet's clock", (virtual_s, "s"), events, 0);
        self.tell("event in the storm answered, p99", (percentile(&mut answers, 99), "ms"), events, 0);
        self.tell("volume asked for in it answered, p99", (percentile(&mut probed, 99), "ms"), count, 0);
        Ok(())
    }

    /// What the store takes.
    fn storage(&mut self, folder: &std::path::Path) -> Outcome {
        let file = std::fs::metadata(folder.join("store.redb")).map_err(|error| error.to_string())?;
        let (records, bytes) = self.fleet.plane.records()?;
        self.tell("records in the store", (bytes as f64 / f64::from(1 << 20), "MiB"), records, 0);
        self.tell("file of the store", (file.len() as f64 / f64::from(1 << 20), "MiB"), records, 0);
        Ok(())
    }
}

fn name(text: String) -> Name {
    // INVARIANT: letters, digits and '-'.
    Name::new(text).unwrap_or_else(|error| unreachable!("{error}"))
}

fn tenant_put(tenant: u64, weight: u32) -> Command {
    Command::TenantPut {
        name: name(format!("tenant-{tenant}")),
        vni: u32::try_from(tenant).ok(),
        weight,
        rules: Vec::new(),
    }
}

fn volume_create(volume: u64, tenant: u64) -> Command {
    let mut limits = VolumeLimits::default();
    (limits.operations.rate, limits.bytes.rate) = (3_000, 125_000_000);
    Command::VolumeCreate {
        name: name(format!("volume-{volume}")),
        tenant: TenantId(tenant),
        size_bytes: 10 << 30,
        pool: name("default".to_owned()),
        class: Class::Firm,
        limits,
        on: None,
    }
}

/// The value below which so many of a hundred lie; 0 of nothing.
fn percentile(values: &mut [f64], of_hundred: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len() * of_hundred).div_ceil(100).max(1) - 1;
    values.get(at).copied().unwrap_or(0.0)
}

fn print(rows: &[Row]) {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let value =
                if row.value >= 100.0 { format!("{:.0}", row.value) } else { format!("{:.2}", row.value) };
            vec![
                row.what.to_owned(),
                value,
                row.unit.to_owned(),
                row.count.to_string(),
                row.failed.to_string(),
            ]
        })
        .collect();
    println!("{}", report::markdown(&["what", "value", "unit", "of", "failed"], &cells));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_is_built_changes_and_weathers_a_storm() {
        let folder = bench::rate::tempfolder("control-test").expect("a folder");
        let (nodes, volumes) = (10, 200);
        let fleet = Fleet::new(&folder.0, nodes).expect("a fleet");
        let mut bench = Bench { fleet, rows: Vec::new(), nodes, volumes };
        bench.build().expect("it is built");
        bench.heartbeats().expect("it reports");
        bench.fan_out().expect("it hears of changes");
        bench.storm(100).expect("the storm ends");
        bench.storage(&folder.0).expect("it is stored");
        let failed: Vec<&Row> = bench.rows.iter().filter(|row| row.failed > 0 || row.value <= 0.0).collect();
        assert!(failed.is_empty(), "{failed:?}");
        let expanded = bench.fleet.plane.core.operations().filter(|one| one.volume.0 <= volumes);
        let expanded =
            expanded.filter(|one| one.work == contract::Work::Expand && one.phase == contract::Phase::Done);
        assert_eq!(expanded.count(), 100);
    }

    #[test]
    fn percentiles_are_of_the_values() {
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 50), 2.0);
        assert_eq!(percentile(&mut [1.0, 2.0], 99), 2.0);
        assert_eq!(percentile(&mut [], 99), 0.0);
    }
}
