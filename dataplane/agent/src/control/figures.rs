//! How the volumes of a node are doing, as its reports say it: rates between two looks.

use std::collections::BTreeMap;
use std::time::Instant;

use contract::node::Serving as Stands;
use contract::{Condition, Credits, Resources, Role, VolumeId, VolumeReport};

use super::conditions::{Conditions, Seen};
use super::moves::{Frozen, is_frozen};
use super::placed::Serving;
use crate::daemon::Daemon;
use crate::report::{self, Export};

/// Everything that is exported, at one instant.
pub struct Read {
    at: Instant,
    exports: Vec<Export>,
    /// For how long each worker has worked, ns.
    worked_ns: Vec<u64>,
}

/// Asks the workers; blocks as long as they take.
pub fn read(daemon: &Daemon) -> Read {
    let worked_ns = daemon.node().counters().iter().map(|record| record.time.working_ns).collect();
    Read { at: Instant::now(), exports: report::exports(daemon, "", usize::MAX), worked_ns }
}

/// The look before.
#[derive(Default)]
pub struct Figures {
    last: Option<(Instant, BTreeMap<String, Counted>)>,
    worked_ns: Vec<u64>,
    /// What all volumes together did in the last second.
    used: Resources,
    conditions: Conditions,
}

#[derive(Clone, Copy, Default)]
struct Counted {
    operations: u64,
    bytes: u64,
    written_bytes: u64,
    errors: u64,
    pages_corrupt: u64,
    expansions_refused: u64,
}

impl Counted {
    fn of(export: &Export) -> Counted {
        let get = |key: &str| export.counters.get(key).copied().unwrap_or(0);
        Counted {
            operations: get("reads") + get("writes") + get("flushes") + get("discards"),
            bytes: get("read_bytes") + get("written_bytes"),
            written_bytes: get("written_bytes"),
            errors: get("errors"),
            pages_corrupt: get("pages_corrupt"),
            expansions_refused: get("expansions_refused"),
        }
    }
}

impl Figures {
    /// How each volume of `serving` is.
    pub fn volumes(
        &mut self,
        read: Read,
        serving: &Serving,
        frozen: &BTreeMap<VolumeId, Frozen>,
        capacity: Resources,
    ) -> Vec<VolumeReport> {
        let now: BTreeMap<String, Counted> =
            read.exports.iter().map(|export| (export.name.clone(), Counted::of(export))).collect();
        let seconds = self.last.as_ref().map_or(0.0, |(at, _)| (read.at - *at).as_secs_f64());
        let rate = |name: &str, of: fn(&Counted) -> u64| {
            let before = self.last.as_ref().and_then(|(_, all)| all.get(name));
            let (Some(now), Some(before)) = (now.get(name), before) else { return 0 };
            // A volume that was opened anew counts from 0.
            (of(now).saturating_sub(of(before)) as f64 / seconds.max(0.001)) as u64
        };
        let mut used = Resources::NONE;
        let mut seen = Vec::new();
        let mut reports = Vec::new();
        for (volume, placed) in serving.volumes.iter().filter(|(_, placed)| placed.role == Role::Active) {
            let name = placed.name.as_str();
            let Some(export) = read.exports.iter().find(|export| export.name == name) else { continue };
            let does = Resources {
                iops: rate(name, |counted| counted.operations),
                bytes_per_s: rate(name, |counted| counted.bytes),
                copy_slots: 0,
            };
            used = used.plus(does);
            let counted = now.get(name).copied().unwrap_or_default();
            seen.push(Seen {
                volume: *volume,
                worker: export.worker,
                used_ppm: share_ppm(does, capacity),
                pages_corrupt: counted.pages_corrupt,
                expansions_refused: counted.expansions_refused,
            });
            reports.push(VolumeReport {
                volume: *volume,
                epoch: serving.epoch(*volume),
                worker: u16::try_from(export.worker).unwrap_or(u16::MAX),
                serving: match export.fenced {
                    true => Stands::Fenced,
                    false if is_frozen(frozen, *volume, placed.epoch) => Stands::Frozen,
                    false => Stands::Active,
                },
                nqn: export.nqn.clone(),
                size_bytes: export.bytes_total,
                iops: u32::try_from(does.iops).unwrap_or(u32::MAX),
                bytes_per_s: does.bytes_per_s,
                dirty_bytes_per_s: rate(name, |counted| counted.written_bytes),
                p99_us: p99_us(export),
                errors: counted.errors,
                credits: Credits {
                    operations: export.operations.burst_level.or(export.operations.work_level).unwrap_or(0),
                    bytes: export.bytes.burst_level.or(export.bytes.work_level).unwrap_or(0),
                },
            });
        }
        reports.extend(serving.failed.keys().map(|volume| failed(*volume)));
        let worked = read.worked_ns.iter().zip(self.worked_ns.iter().chain(std::iter::repeat(&u64::MAX)));
        let share = |(now, before): (&u64, &u64)| {
            (now.saturating_sub(*before) as f64 / (seconds.max(0.001) * 1e3)) as u32
        };
        let workers_ppm: Vec<u32> = worked.map(share).collect();
        self.conditions.look(read.at, &seen, &workers_ppm, share_ppm(used, capacity));
        self.used = used;
        self.worked_ns = read.worked_ns;
        self.last = Some((read.at, now));
        reports
    }

    /// Share of `capacity` that was used in the last second, in the dimension that is used most.
    pub fn utilisation_ppm(&self, capacity: Resources) -> u32 {
        share_ppm(self.used, capacity)
    }

    /// What somebody should do something about.
    pub fn conditions(&self) -> Vec<Condition> {
        self.conditions.said(Instant::now())
    }
}

/// Share of `capacity`, in the dimension that is used most.
fn share_ppm(used: Resources, capacity: Resources) -> u32 {
    let share = |used: u64, of: u64| u128::from(used) * 1_000_000 / u128::from(of.max(1));
    let most = share(used.iops, capacity.iops).max(share(used.bytes_per_s, capacity.bytes_per_s));
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// Of all I/Os that were traced: the largest of the kinds.
fn p99_us(export: &Export) -> u32 {
    let kinds = export.latency.iter().flat_map(|latency| latency.kinds.values());
    let all = kinds.map(|kind| kind.p99_ns / 1_000);
    all.max().map_or(0, |us| u32::try_from(us).unwrap_or(u32::MAX))
}

fn failed(volume: VolumeId) -> VolumeReport {
    VolumeReport {
        volume,
        epoch: contract::Epoch(0),
        worker: 0,
        serving: Stands::Failed,
        nqn: String::new(),
        size_bytes: 0,
        iops: 0,
        bytes_per_s: 0,
        dirty_bytes_per_s: 0,
        p99_us: 0,
        errors: 0,
        credits: Credits::default(),
    }
}
