//! What `stats` shows: one report, as JSON for programs; [`crate::table`] makes it readable.

use std::collections::{BTreeMap, HashMap};

use engine::counters::CountersSnapshot;
use engine::frame::DropReason;
use engine::{PortState, ServedFigures, VolumeFigures};
use serde::{Deserialize, Serialize};

use crate::daemon::Daemon;
use crate::exports::Served;
use crate::traces::{self, Collected, Latency};

/// Everything that a data plane says about itself at one instant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub node: String,
    /// Snapshot version that all workers run.
    pub version: u64,
    /// When, ns of the monotonic clock.
    pub at_ns: u64,
    /// Its workers.
    pub workers: Vec<Worker>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its volumes, as many as were asked for.
    pub volumes: Vec<Volume>,
    /// Volumes that it has in all.
    pub volumes_total: usize,
    /// What it exports, as much as was asked for.
    pub exports: Vec<Export>,
    /// What it should export and cannot open.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// What is known of the I/Os that are followed.
    pub traces: Collected,
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worker {
    /// Processor it is pinned to.
    pub cpu: Option<usize>,
    /// Where frames went (rx, generated, split, tx, delivered, parked, dropped, merged, in_flight).
    pub frames: BTreeMap<String, u64>,
    /// Whether they add up.
    pub balanced: bool,
    /// Where time went, and how sleeps ended.
    pub time: BTreeMap<String, u64>,
    /// Drops by reason; reasons that never happened are left out.
    pub drops: BTreeMap<String, u64>,
    /// Frames by stage.
    pub stages: BTreeMap<String, u64>,
}

/// One port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// "up" or "down".
    pub state: String,
    /// Why it is down and what to do.
    pub why: Option<String>,
    /// Largest packet.
    pub mtu_bytes: Option<u32>,
    /// Frames and bytes.
    pub counters: BTreeMap<String, u64>,
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When its worker looked, ns of the monotonic clock: the figures below are of that instant.
    pub at_ns: u64,
    /// Bytes admitted.
    pub admitted_bytes: u64,
    /// Packets admitted.
    pub admitted_packets: u64,
    /// Frames waiting now.
    pub parked_frames: u32,
    /// Bytes waiting now.
    pub parked_bytes: u64,
    /// Frames that had to wait.
    pub parked_total: u64,
    /// Sum of their waits.
    pub parked_ns: u64,
    /// Frames marked for congestion.
    pub marked: u64,
    /// Frames dropped at the bound.
    pub dropped: u64,
    /// Credits in bytes.
    pub bytes: Credits,
    /// Credits in packets.
    pub packets: Credits,
}

/// What a move from worker to worker took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// For so long no command was taken from the volume's clients, ns.
    pub pause_ns: u64,
    /// As much of it as what was under way took, ns.
    pub drain_ns: u64,
    /// Clients that went along.
    pub connections: u32,
}

/// One exported volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// What hosts call it.
    pub name: String,
    /// When its worker looked, ns of the monotonic clock.
    pub at_ns: u64,
    /// Worker that serves it.
    #[serde(default)]
    pub worker: usize,
    /// Size in bytes.
    #[serde(default)]
    pub bytes_total: u64,
    /// The subsystem that NVMe hosts connect to.
    #[serde(default)]
    pub nqn: String,
    /// Its namespace there (NSID).
    #[serde(default)]
    pub namespace: u32,
    /// Another owner has it, so everything is refused here.
    #[serde(default)]
    pub fenced: bool,
    /// Connections now.
    pub connections: u32,
    /// What was begun (reads, read_bytes, writes, written_bytes, flushes, discards), what copies of it read
    /// (copied_bytes), what was answered with errors, and connections closed at once because there were too many.
    pub counters: BTreeMap<String, u64>,
    /// Commands waiting for credits now.
    pub waiting: u32,
    /// Commands that had to wait.
    pub waited_total: u64,
    /// Sum of their waits.
    pub waited_ns: u64,
    /// Credits in bytes.
    pub bytes: Credits,
    /// Credits in operations.
    pub operations: Credits,
    /// Latencies over the last windows, if any of its I/Os was followed.
    pub latency: Option<Latency>,
}

/// An export that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What hosts would call it.
    pub name: String,
    /// What is wrong, and what to do.
    pub why: String,
}

/// Balance in one dimension.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Credits {
    /// Credits in the bank, if there is one.
    pub burst_level: Option<i64>,
    /// Its size.
    pub burst_cap: Option<u64>,
    /// Balance of the provisioned rate.
    pub work_level: Option<i64>,
    /// Units per second that the volume may sustain now.
    pub permitted_rate: Option<u64>,
}

/// Makes a report. `prefix` and `limit` choose the volumes.
pub fn report(daemon: &Daemon, prefix: &str, limit: usize) -> Report {
    let node = daemon.node();
    let running = daemon.running();
    let all = running.names.volumes.iter();
    let chosen: Vec<(&str, u32)> = all.filter(|(name, _)| name.starts_with(prefix)).take(limit).collect();
    let counters = node.counters();
    let sum = counters.iter().cloned().reduce(|mut sum, more| {
        sum.add(&more);
        sum
    });
    let states = daemon.port_states();
    let ports = running
        .file
        .port
        .iter()
        .zip(states)
        .enumerate()
        .map(|(number, (keys, states))| port(keys.name.clone(), &states, sum.as_ref(), number))
        .collect();
    let numbers: Vec<u32> = chosen.iter().map(|(_, number)| *number).collect();
    let figures: HashMap<u32, VolumeFigures> =
        node.volumes(&numbers).into_iter().map(|figures| (figures.volume, figures)).collect();
    let volumes = chosen
        .into_iter()
        .filter_map(|(name, number)| Some(volume(name.to_owned(), figures.get(&number)?)))
        .collect();
    let plan = node.plan();
    let workers = counters.iter().zip(&plan.workers).map(|(record, plan)| worker(record, plan.cpu)).collect();
    let (version, at_ns) = (node.running(), engine::clock::monotonic_ns());
    let exports = exports(daemon, prefix, limit);
    let left_out = daemon.left_out();
    let left_out = left_out.iter().filter(|one| one.wanted.name.starts_with(prefix)).take(limit);
    let left_out =
        left_out.map(|one| LeftOut { name: one.wanted.name.clone(), why: one.why.to_string() }).collect();
    let traces = Collected::of(daemon.traces().collected().counts());
    let (node, volumes_total) = (running.file.node.name.clone(), running.file.volume.len());
    Report { node, version, at_ns, workers, ports, volumes, volumes_total, exports, left_out, traces }
}

pub(crate) fn exports(daemon: &Daemon, prefix: &str, limit: usize) -> Vec<Export> {
    let table = daemon.table();
    if table.served.is_empty() {
        return Vec::new();
    }
    let figures: HashMap<u32, ServedFigures> =
        daemon.node().served().into_iter().map(|figures| (figures.volume, figures)).collect();
    let chosen = table.served.iter().filter(|one| one.wanted.name.starts_with(prefix)).take(limit);
    let collector = daemon.traces().collected();
    let one = |one: &std::sync::Arc<Served>| {
        let latency = traces::latency(&collector, one.volume);
        Some(Export { latency, ..export(one, figures.get(&one.volume.0)?) })
    };
    chosen.filter_map(one).collect()
}

fn export(one: &Served, figures: &ServedFigures) -> Export {
    let target = &figures.target;
    let counters = [
        ("reads", target.reads),
        ("read_bytes", target.read_bytes),
        ("copied_bytes", target.copied_bytes),
        ("writes", target.writes),
        ("written_bytes", target.written_bytes),
        ("flushes", target.flushes),
        ("discards", target.discards),
        ("errors", target.errors),
        ("faults_delayed", target.faults_delayed),
        ("faults_failed", target.faults_failed),
        ("pages_corrupt", target.pages_corrupt),
        ("expansions_refused", target.expansions_refused),
        ("connections_refused", figures.refused),
    ];
    Export {
        name: one.wanted.name.clone(),
        at_ns: figures.at_ns,
        worker: figures.worker,
        bytes_total: one.bytes(),
        nqn: one.listed.nqn.clone(),
        namespace: one.wanted.namespace,
        fenced: figures.fenced,
        connections: figures.connections,
        counters: counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        waiting: figures.credits.parked.items,
        waited_total: figures.credits.parked_total,
        waited_ns: figures.credits.parked_ns,
        bytes: credits(&figures.balance.bytes),
        operations: credits(&figures.balance.packets),
        latency: None,
    }
}

fn credits(balance: &engine::throttle::Balance) -> Credits {
    Credits {
        burst_level: balance.burst_units.map(|(level, _)| level),
        burst_cap: balance.burst_units.map(|(_, cap)| cap),
        work_level: balance.work_units,
        permitted_rate: balance.permitted_rate,
    }
}

fn named(names: &[&str], values: &[u64]) -> BTreeMap<String, u64> {
    names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

fn worker(record: &CountersSnapshot, cpu: Option<usize>) -> Worker {
    use engine::counters::{TimeRecord, TurnRecord};
    let drops = DropReason::ALL
        .iter()
        .zip(record.drops)
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.name().to_owned(), count))
        .collect();
    let stages = record.stages.iter().map(|(name, stage)| ((*name).to_owned(), stage.frames)).collect();
    Worker {
        cpu,
        frames: named(TurnRecord::NAMES, &record.turn.values()),
        balanced: record.turn.balanced(),
        time: named(TimeRecord::NAMES, &record.time.values()),
        drops,
        stages,
    }
}

/// One port; `states` are those of its shares, one for each worker that polls it. It is up when all are.
fn port(name: String, states: &[PortState], sum: Option<&CountersSnapshot>, number: usize) -> Port {
    use engine::counters::PortRecord;
    let record = sum.and_then(|sum| sum.ports.get(number)).copied().unwrap_or_default();
    let down = states.iter().find_map(|state| match state {
        PortState::Down { why } => Some(why.clone()),
        PortState::Up { .. } => None,
    });
    let mtu_bytes = states.iter().find_map(|state| match state {
        PortState::Up { caps } => Some(caps.mtu_bytes),
        PortState::Down { .. } => None,
    });
    let (state, why) = if down.is_some() { ("down", down) } else { ("up", None) };
    Port {
        name,
        state: state.to_owned(),
        why,
        mtu_bytes,
        counters: named(PortRecord::NAMES, &record.values()),
    }
}

fn volume(name: String, figures: &VolumeFigures) -> Volume {
    let (counters, balance) = (&figures.counters, &figures.balance);
    Volume {
        name,
        at_ns: figures.at_ns,
        admitted_bytes: counters.admitted_bytes,
        admitted_packets: counters.admitted_packets,
        parked_frames: counters.parked.items,
        parked_bytes: counters.parked.bytes,
        parked_total: counters.parked_total,
        parked_ns: counters.parked_ns,
        marked: counters.marked,
        dropped: counters.dropped,
        bytes: credits(&balance.bytes),
        packets: credits(&balance.packets),
    }
}
