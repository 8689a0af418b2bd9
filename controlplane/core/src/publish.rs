//! Snapshots: all that a node should do, whole and with a version, sent whenever any of it changed.
//!
//! A change marks its nodes; at the end of the step each gets one snapshot, however much changed. A node that was
//! sent one just before gets the next a little later, so that a storm costs it few of them.

use std::collections::{BTreeMap, BTreeSet};

use contract::{
    NodeId, NodeSnapshot, Placed, Role, TenantId, TenantRules, ToNodeBody, Version, Volume, VolumeId,
};

use crate::{Core, Timer};

/// Least time between two snapshots to one node.
const APART_MS: u64 = 20;

/// Nodes whose snapshot is not what it should be.
pub(crate) type Marked = BTreeSet<NodeId>;

impl Core {
    /// Something of this node's snapshot changed.
    pub(crate) fn mark(&mut self, id: NodeId) {
        self.marked.insert(id);
    }

    /// Something of this volume changed.
    pub(crate) fn mark_volume(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get(id) else { return };
        let nodes = volume.head.map(|head| head.node).into_iter().chain(volume.standby);
        self.marked.extend(nodes);
    }

    /// Sends what is marked.
    pub(crate) fn publish(&mut self) {
        let mut later = Marked::new();
        for id in std::mem::take(&mut self.marked) {
            let Some(link) = self.links.get(id) else { continue };
            // Whoever is not connected gets one when it is.
            let Some(session) = link.session else { continue };
            let due = link.sent_ms.saturating_add(APART_MS);
            if link.sent > Version(0) && due > self.now() {
                later.insert(id);
                self.timers.insert((due, Timer::Publish));
                continue;
            }
            let version = Version(self.links.seq + 1);
            let snapshot = self.snapshot(id, version);
            self.say(session, ToNodeBody::Snapshot(Box::new(snapshot)));
            self.counters.snapshots += 1;
            let now = self.now();
            if let Some(link) = self.links.get_mut(id) {
                (link.sent, link.sent_ms) = (version, now);
            }
        }
        self.marked = later;
    }

    /// A version that only snapshots made after this moment have reached.
    pub(crate) fn version_now(&self) -> Version {
        Version(self.links.seq)
    }

    /// What a node should do now.
    pub fn snapshot(&self, id: NodeId, version: Version) -> NodeSnapshot {
        let mut tenants: BTreeMap<TenantId, TenantRules> = BTreeMap::new();
        let mut volumes = Vec::new();
        for volume in self.index.volumes_at.get(&id).into_iter().flatten() {
            let Some(volume) = self.volumes.get(*volume) else { continue };
            let Some(placed) = placed(volume, id) else { continue };
            volumes.push(placed);
            if let Some(tenant) = self.tenants.get(volume.tenant) {
                tenants.entry(tenant.id).or_insert_with(|| TenantRules {
                    tenant: tenant.id,
                    name: tenant.name.clone(),
                    vni: tenant.vni,
                    rules: tenant.rules.clone(),
                });
            }
        }
        NodeSnapshot { version, volumes, tenants: tenants.into_values().collect() }
    }
}

fn placed(volume: &Volume, id: NodeId) -> Option<Placed> {
    let head = volume.head?;
    let role = if head.node == id {
        Role::Active
    } else if volume.standby == Some(id) {
        Role::Standby
    } else {
        return None;
    };
    Some(Placed {
        volume: volume.id,
        name: volume.name.clone(),
        tenant: volume.tenant,
        pool: volume.pool.clone(),
        size_bytes: volume.size_bytes,
        role,
        epoch: head.epoch,
        worker: head.worker,
        limits: volume.limits,
        credits: volume.credits,
    })
}
