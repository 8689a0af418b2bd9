//! Snapshots: all that a node should do, whole and with a version, sent whenever any of it changed.
//!
//! A change marks its nodes; at the end of the step each gets one snapshot, however much changed. A node that was
//! sent one just before gets the next a little later, so that a storm costs it few of them.

use std::collections::BTreeSet;

use contract::{
    Head, Name, NodeId, NodeSnapshot, NodeStep, OperationId, Phase, Placed, Role, Step, TenantRules,
    ToNodeBody, Version, Volume, VolumeId, Work,
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
        let volumes = volumes.filter_map(|volume| placed(self.volumes.get(*volume)?, id));
        let mut volumes: Vec<Placed> = volumes.chain(self.on_the_way(id)).collect();
        volumes.sort_unstable_by_key(|placed| placed.volume);
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

    /// Volumes that a move brings to a node or takes from it: from when there are files, and until the other one serves
    /// them, it shows them to hosts as one that stands by, if it is not that anyway. So these have a way to the target
    /// when it serves, and the source refuses them as a path and not as a volume that is gone (decision D12).
    fn on_the_way(&self, id: NodeId) -> impl Iterator<Item = Placed> {
        let operations = self.index.operations_at.get(&id).into_iter().flatten();
        operations.filter_map(move |operation| {
            let operation = self.operations.get(*operation)?;
            let (steps, at) = (&operation.steps, usize::from(operation.at));
            let copy = Step::Target(NodeStep::CopyBulk);
            // Its size is told when it has files.
            let copies = steps.get(at) == Some(&copy) && operation.progress.total_bytes > 0;
            let copied = steps.iter().take(at).any(|step| *step == copy);
            let arrives = operation.target == Some(id) && operation.granted.is_none() && (copies || copied);
            let leaves = operation.source == Some(id) && steps.get(at) == Some(&Step::Serve);
            let moves = operation.phase == Phase::Running && matches!(operation.work, Work::MoveNode { .. });
            let volume = self.volumes.get(operation.volume).filter(|_| moves && (arrives || leaves))?;
            let head = volume.head.filter(|head| head.node != id && volume.standby != Some(id))?;
            Some(as_placed(volume, head, Role::Standby))
        })
    }

    /// What a move shows to hosts at its ends changed.
    pub(crate) fn mark_move(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        if matches!(operation.work, Work::MoveNode { .. }) {
            let ends = operation.source.into_iter().chain(operation.target);
            self.marked.extend(ends);
        }
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
    Some(as_placed(volume, head, role))
}

fn as_placed(volume: &Volume, head: Head, role: Role) -> Placed {
    Placed {
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
    }
}
