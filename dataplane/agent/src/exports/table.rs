//! What is served at one instant, as clients are told of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use engine::block::{BlockSize, VolumeId};
use engine::session::nbd;
use engine::session::nvme_tcp::Listed;

use super::{ExportsError, open};
use crate::config::exports::Wanted;

/// A volume that is served.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// As it was asked for.
    pub wanted: Wanted,
    pub volume: VolumeId,
    pub size: BlockSize,
    pub blocks: u64,
    /// What NBD clients are told.
    pub offer: nbd::Export,
    /// What NVMe hosts are told.
    pub listed: Listed,
    /// The place of its subsystem, where that has a name of its own.
    pub home: Option<VolumeId>,
}

impl Served {
    pub fn bytes(&self) -> u64 {
        self.blocks << self.size.shift()
    }

    /// The same with `blocks` blocks.
    pub fn grown(wanted: Wanted, old: &Served, blocks: u64) -> Result<Arc<Served>, ExportsError> {
        let offer = open::offer(&wanted, old.volume, old.size, blocks, old.offer.identity)
            .map_err(|source| ExportsError::Serve { name: wanted.name.clone(), source })?;
        Ok(Arc::new(Served { wanted, blocks, offer, ..old.clone() }))
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Grows with each change.
    pub generation: u64,
    /// In the order in which they were asked for.
    pub served: Vec<Arc<Served>>,
    /// What NBD clients can attach: what is a standby here they cannot.
    pub offers: Vec<nbd::Export>,
    /// Places of subsystems.
    by_nqn: HashMap<String, VolumeId>,
    workers: HashMap<VolumeId, usize>,
}

impl Table {
    pub fn new(generation: u64, served: Vec<Arc<Served>>) -> Table {
        let active = served.iter().filter(|one| !one.wanted.is_standby());
        let offers = active.map(|one| one.offer.clone()).collect();
        let place = |one: &Served| one.home.unwrap_or(one.volume);
        let by_nqn = served.iter().map(|one| (one.listed.nqn.clone(), place(one))).collect();
        let places = served.iter().flat_map(|one| [one.volume, place(one)].map(|at| (at, one.wanted.worker)));
        let workers = places.collect();
        Table { generation, served, offers, by_nqn, workers }
    }

    /// The place of the subsystem of this name.
    pub fn by_nqn(&self, nqn: &str) -> Option<VolumeId> {
        self.by_nqn.get(nqn).copied()
    }

    /// The worker that owns a volume, or the place of a subsystem.
    pub fn worker(&self, volume: VolumeId) -> Option<usize> {
        self.workers.get(&volume).copied()
    }

    /// What NVMe hosts are told of.
    pub fn listed(&self) -> Vec<Listed> {
        let mut known = HashSet::new();
        let subsystems = self.served.iter().map(|one| &one.listed);
        subsystems.filter(|listed| known.insert(&listed.nqn)).cloned().collect()
    }
}
