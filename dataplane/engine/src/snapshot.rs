//! What may change while traffic flows: tables, limits, idle parameters (decision D14).
//!
//! A [`Snapshot`] is immutable and whole. [`crate::Node::publish`] compares it with the one before and sends
//! each worker an [`Update`]: the pointer, and only the limits that differ. Workers apply an update in
//! slices between turns, confirm its version, and send what is old back to be freed elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use overlay::Tables;
use throttle::{Limits, PoolError, PoolLimits, PoolRate, Shaper, SharedBucket};
use tracing::warn;

use crate::idle::IdleParams;

/// Everything that the workers run on, as of one version.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows with each publication; workers report the one that they run.
    pub version: u64,
    /// Who is who, and what goes where.
    pub tables: Arc<Tables>,
    /// Who may send how much.
    pub throttle: Throttle,
    /// What the volumes that are served here share, apart from those whose packets pass: an I/O that crosses the
    /// gateway and is served on the same node would else pay twice. In it, packets are operations. The volumes'
    /// own limits are not in it: each comes with its volume.
    pub served: Throttle,
    /// When workers spin, pause and sleep.
    pub idle: IdleParams,
}

/// Limits of volumes, groups and the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Throttle {
    /// What all volumes of the node share.
    pub node: Pools,
    /// What the volumes of each group share, by group number.
    pub groups: Vec<Pools>,
    /// Limits by volume number.
    pub volumes: BTreeMap<u32, Limits>,
}

/// A pool in both dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// Bytes.
    pub bytes: Option<PoolSize>,
    /// Packets.
    pub packets: Option<PoolSize>,
}

/// A pool in one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// Units per second.
    pub rate: u64,
    /// Most units held.
    pub cap_units: u64,
}

/// What one worker has to change.
#[derive(Debug)]
pub(crate) struct Update {
    pub snapshot: Arc<Snapshot>,
    pub pools: ChangedPools,
    pub served: ChangedPools,
    pub volumes: Vec<(u32, Limits)>,
    pub removed: Vec<u32>,
}

/// The pools of the node and its groups as the workers share them.
#[derive(Debug, Default)]
pub(crate) struct SharedPools {
    node: Shared,
    groups: Vec<Shared>,
}

/// The pools that changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChangedPools {
    pub node: Option<PoolLimits>,
    pub groups: Vec<(u32, PoolLimits)>,
}

impl ChangedPools {
    /// Sets them in a worker's shaper.
    pub fn apply<T>(&self, now_ns: u64, shaper: &mut Shaper<T>) {
        if let Some(node) = &self.node
            && let Err(refused) = shaper.set_node(now_ns, node)
        {
            warn!("node limits: {refused}");
        }
        for (group, limits) in &self.groups {
            if let Err(refused) = shaper.set_group(now_ns, *group, limits) {
                warn!("group limits: {refused}");
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    bytes: Option<Arc<SharedBucket>>,
    packets: Option<Arc<SharedBucket>>,
}

impl SharedPools {
    /// The pools of `new` that differ from `old`, for `workers` that draw from them: kept by the one
    /// worker itself, or drawn from a shared bucket by several.
    pub fn update(
        &mut self,
        now_ns: u64,
        workers: usize,
        old: &Throttle,
        new: &Throttle,
    ) -> Result<ChangedPools, PoolError> {
        let node =
            if old.node == new.node { None } else { Some(self.node.limits(now_ns, workers, new.node)?) };
        let mut groups = Vec::new();
        let count = old.groups.len().max(new.groups.len());
        self.groups.resize_with(count, Shared::default);
        for number in 0..count {
            let of = |throttle: &Throttle| throttle.groups.get(number).copied().unwrap_or_default();
            if of(old) != of(new) {
                groups.push((number as u32, self.groups[number].limits(now_ns, workers, of(new))?));
            }
        }
        Ok(ChangedPools { node, groups })
    }
}

impl Shared {
    fn limits(&mut self, now_ns: u64, workers: usize, pools: Pools) -> Result<PoolLimits, PoolError> {
        Ok(PoolLimits {
            bytes: rate(&mut self.bytes, now_ns, workers, pools.bytes)?,
            packets: rate(&mut self.packets, now_ns, workers, pools.packets)?,
        })
    }
}

fn rate(
    shared: &mut Option<Arc<SharedBucket>>,
    now_ns: u64,
    workers: usize,
    size: Option<PoolSize>,
) -> Result<Option<PoolRate>, PoolError> {
    let Some(PoolSize { rate, cap_units }) = size else {
        *shared = None;
        return Ok(None);
    };
    if workers == 1 {
        return Ok(Some(PoolRate::Own { rate, cap_units }));
    }
    let bucket = match shared.take() {
        Some(old) => old.resized(now_ns, rate, cap_units)?,
        None => SharedBucket::new(now_ns, rate, cap_units)?,
    };
    let bucket = Arc::new(bucket);
    *shared = Some(Arc::clone(&bucket));
    Ok(Some(PoolRate::Shared(bucket)))
}

impl Throttle {
    /// The volumes whose limits differ from those in `old` or are new, and those that are gone; only what
    /// `owned` says.
    pub(crate) fn changed_volumes(
        &self,
        old: &Throttle,
        owned: impl Fn(u32) -> bool,
    ) -> (Vec<(u32, Limits)>, Vec<u32>) {
        let changed = self
            .volumes
            .iter()
            .filter(|(volume, limits)| owned(**volume) && old.volumes.get(volume) != Some(limits))
            .map(|(volume, limits)| (*volume, *limits))
            .collect();
        let removed =
            old.volumes.keys().copied().filter(|v| owned(*v) && !self.volumes.contains_key(v)).collect();
        (changed, removed)
    }
}
