//! Snapshots: all that a node should do, whole and with a version, sent whenever any of it changed.
//!
//! A change marks its nodes; at the end of the step each gets one snapshot, however much changed. A node that was
//! sent one just before gets the next a little later, so that a storm costs it few of them.

use std::collections::BTreeSet;

use contract::{
    Name, NodeId, NodeSnapshot, Placed, Role, TenantRules, ToNodeBody, Version, Volume, VolumeId,
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
        let volumes = self.index.volumes_at.get(&id).into_iter().flatten();
        let volumes = volumes.filter_map(|volume| placed(self.volumes.get(*volume)?, id)).collect();
        let networks = self.nodes.get(id).map_or(&[][..], |node| &node.info.networks);
        let tenants = networks.iter().filter_map(|name| self.tenants.get(*self.index.tenants.get(name)?));
        let mut tenants: Vec<TenantRules> = tenants
            .map(|tenant| TenantRules {
                tenant: tenant.id,
                name: tenant.name.clone(),
                vni: tenant.vni,
                rules: tenant.rules.clone(),
            })
            .collect();
        tenants.sort_unstable_by_key(|tenant| tenant.tenant);
        NodeSnapshot { version, volumes, tenants }
    }

    /// The network of a tenant changed.
    pub(crate) fn mark_network(&mut self, name: &Name) {
        // Networks change seldom; an index for it would cost every node.
        let carry = self.nodes.iter().filter(|(_, node)| node.info.networks.contains(name));
        let carry: Vec<NodeId> = carry.map(|(id, _)| id).collect();
        self.marked.extend(carry);
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
