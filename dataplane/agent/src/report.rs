//! What `stats` shows: one report, as JSON for programs; [`crate::table`] makes it readable.

use engine::counters::CountersSnapshot;
use engine::frame::DropReason;
use engine::{PortState, VolumeFigures};
use serde::{Deserialize, Serialize};

use crate::daemon::Daemon;

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
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worker {
    /// Processor it is pinned to.
    pub cpu: Option<usize>,
    /// Where frames went (rx, generated, split, tx, delivered, parked, dropped, merged, in_flight).
    pub frames: std::collections::BTreeMap<String, u64>,
    /// Whether they add up.
    pub balanced: bool,
    /// Where time went, and how sleeps ended.
    pub time: std::collections::BTreeMap<String, u64>,
    /// Drops by reason; reasons that never happened are left out.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// Frames by stage.
    pub stages: std::collections::BTreeMap<String, u64>,
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
    pub counters: std::collections::BTreeMap<String, u64>,
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
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
    let (name, ports, chosen, volumes_total) = daemon.with_config(|file, names| {
        let ports: Vec<String> = file.port.iter().map(|port| port.name.clone()).collect();
        let chosen: Vec<(String, u32)> = names
            .volumes
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .take(limit)
            .map(|(name, number)| (name.to_owned(), number))
            .collect();
        (file.node.name.clone(), ports, chosen, file.volume.len())
    });
    let counters = node.counters();
    let sum = counters.iter().cloned().reduce(|mut sum, more| {
        sum.add(&more);
        sum
    });
    let states = node.port_states();
    let ports = ports
        .into_iter()
        .zip(states)
        .enumerate()
        .map(|(number, (name, state))| port(name, state, sum.as_ref(), number))
        .collect();
    let numbers: Vec<u32> = chosen.iter().map(|(_, number)| *number).collect();
    let figures = node.volumes(&numbers);
    let volumes = chosen
        .into_iter()
        .filter_map(|(name, number)| Some(volume(name, figures.iter().find(|f| f.volume == number)?)))
        .collect();
    let plan = node.plan();
    let workers = counters.iter().zip(&plan.workers).map(|(record, plan)| worker(record, plan.cpu)).collect();
    let (version, at_ns) = (node.running(), engine::clock::monotonic_ns());
    Report { node: name, version, at_ns, workers, ports, volumes, volumes_total }
}

fn named(names: &[&str], values: &[u64]) -> std::collections::BTreeMap<String, u64> {
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

fn port(name: String, state: PortState, sum: Option<&CountersSnapshot>, number: usize) -> Port {
    use engine::counters::PortRecord;
    let record = sum.and_then(|sum| sum.ports.get(number)).copied().unwrap_or_default();
    let (state, why, mtu_bytes) = match state {
        PortState::Up { caps } => ("up", None, Some(caps.mtu_bytes)),
        PortState::Down { why } => ("down", Some(why), None),
    };
    Port { name, state: state.to_owned(), why, mtu_bytes, counters: named(PortRecord::NAMES, &record.values()) }
}

fn volume(name: String, figures: &VolumeFigures) -> Volume {
    let (counters, balance) = (&figures.counters, &figures.balance);
    let credits = |balance: &engine::throttle::Balance| Credits {
        burst_level: balance.burst_units.map(|(level, _)| level),
        burst_cap: balance.burst_units.map(|(_, cap)| cap),
        work_level: balance.work_units,
        permitted_rate: balance.permitted_rate,
    };
    Volume {
        name,
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
