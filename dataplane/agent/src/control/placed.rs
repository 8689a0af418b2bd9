//! From a snapshot of the control plane to what is served and carried.
//!
//! One volume that cannot be opened keeps no other from being served: it is left out, and told. So are the rules of one
//! tenant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use contract::{Bucket, Epoch, NodeSnapshot, Placed, Pool, Role, Version, VolumeId, VolumeLimits};
use engine::block::BlockSize;
use engine::session::nvme_tcp::Hosts;
use engine::throttle::{Burst, DimLimits, Limits, Saved, Work};
use engine::volume::{HostDirectory, store};

use super::moves::{Frozen, is_frozen};
use crate::config::exports::{Place, Wanted};
use crate::daemon::Daemon;
use crate::exports::ExportsError;

/// What came of a snapshot.
#[derive(Debug, Default)]
pub struct Serving {
    /// Its version.
    pub version: Version,
    /// What is served, by volume.
    pub volumes: BTreeMap<VolumeId, Placed>,
    /// What is not, and why.
    pub failed: BTreeMap<VolumeId, String>,
}

impl Serving {
    /// A volume of the snapshot that is open here.
    pub fn placed(&self, volume: VolumeId) -> Option<&Placed> {
        self.volumes.get(&volume).filter(|placed| placed.role == Role::Active)
    }

    /// The epoch under which a volume was opened.
    pub fn epoch(&self, volume: VolumeId) -> Epoch {
        self.volumes.get(&volume).map_or(Epoch(0), |placed| placed.epoch)
    }
}

/// Where a volume's files are in a pool: by its id, since names are used again.
pub fn directory(pool: &Path, volume: VolumeId) -> PathBuf {
    pool.join(format!("volume-{}", volume.0))
}

/// Serves what `snapshot` says, and nothing else of the control plane's.
pub fn apply(
    daemon: &Daemon,
    pools: &[(Pool, PathBuf)],
    snapshot: &NodeSnapshot,
    frozen: &BTreeMap<VolumeId, Frozen>,
) -> Serving {
    let workers = daemon.node().plan().workers.len();
    let sample = daemon.running().file.trace.sample;
    daemon.carry(&snapshot.tenants);
    let mut serving = Serving { version: snapshot.version, ..Serving::default() };
    let mut wanted = Vec::with_capacity(snapshot.volumes.len());
    for placed in &snapshot.volumes {
        match want(pools, placed, workers) {
            Ok(one) => {
                let frozen = is_frozen(frozen, placed.volume, placed.epoch);
                wanted.push((placed, Wanted { sample, frozen, ..one }));
            }
            Err(why) => drop(serving.failed.insert(placed.volume, why)),
        }
    }
    loop {
        let set = wanted.iter().map(|(_, one)| one.clone()).collect();
        let Err(why) = daemon.serve(set) else { break };
        let culprit = match &why {
            ExportsError::Serve { name, .. } | ExportsError::Change { name, .. } => {
                wanted.iter().position(|(_, one)| one.name == *name)
            }
            _ => None,
        };
        // What is nobody's fault is everybody's: nothing of this snapshot is served anew.
        let Some(culprit) = culprit else {
            for (placed, _) in wanted.drain(..) {
                serving.failed.insert(placed.volume, why.to_string());
            }
            break;
        };
        let (placed, _) = wanted.remove(culprit);
        serving.failed.insert(placed.volume, why.to_string());
    }
    serving.volumes = wanted.into_iter().map(|(placed, _)| (placed.volume, placed.clone())).collect();
    serving
}

fn want(pools: &[(Pool, PathBuf)], placed: &Placed, workers: usize) -> Result<Wanted, String> {
    let pool = pools.iter().find(|(pool, _)| pool.name == placed.pool);
    let (_, folder) = pool.ok_or_else(|| format!("there is no pool {} here", placed.pool))?;
    let directory = directory(folder, placed.volume);
    let place = match placed.role {
        Role::Active => Place::Files {
            directory,
            create: false,
            bytes: Some(placed.size_bytes),
            block: BlockSize::B4096,
            identity: None,
            grant: Some(placed.epoch.0),
        },
        Role::Standby => standby(directory)?,
    };
    // The node chooses by id, so that a volume keeps its worker across restarts.
    let chosen = (placed.volume.0 % workers.max(1) as u64) as usize;
    Ok(Wanted {
        name: placed.name.to_string(),
        description: placed.volume.to_string(),
        worker: placed.worker.map_or(chosen, usize::from).min(workers.saturating_sub(1)),
        read_only: false,
        place,
        limits: limits(&placed.limits),
        group: None,
        nqn: None,
        namespace: 1,
        hosts: Hosts::Any,
        sample: 0,
        faults: None,
        frozen: false,
        saved: placed.credits.map(|saved| Saved { bytes: saved.bytes, packets: saved.operations }),
    })
}

/// What hosts of a standby are told stands in the files, which are read and not opened (decision D13).
fn standby(directory: PathBuf) -> Result<Place, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", directory.display());
    let there = HostDirectory::open(&directory).map_err(|error| failed(&error))?;
    let summary = store::summary(&there).map_err(|error| failed(&error))?;
    Ok(Place::Standby { size: summary.size, blocks: summary.blocks, identity: summary.identity, directory })
}

fn limits(limits: &VolumeLimits) -> Limits {
    let mut lowered = Limits::unlimited();
    lowered.bytes = dim(&limits.bytes);
    lowered.packets = dim(&limits.operations);
    lowered.weight = (limits.weight > 0).then_some(limits.weight);
    lowered
}

fn dim(bucket: &Bucket) -> DimLimits {
    let burst = Burst { cap_units: bucket.burst_bank, fill_rate: bucket.burst_fill };
    DimLimits {
        burst: (bucket.burst_bank > 0).then_some(burst),
        work: (bucket.rate > 0).then(|| Work::at(bucket.rate)),
        peak_rate: (bucket.peak > 0).then_some(bucket.peak),
        ..DimLimits::default()
    }
}
