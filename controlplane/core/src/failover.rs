//! A head is lost (F6.d, decisions D10, D13): revoke, reserve, grant the next epoch, publish; the old one is fenced.
//!
//! A failover asks no scheduling policy and has room of its own in the ledger, so ordinary work never holds it up. It
//! goes to the node that stands by, if that has the room once revocable leases are gone; else to another one. If
//! nobody has it, no lease is revoked, somebody is alarmed, and it waits. Its operation is written before each effect,
//! so it goes on after a restart wherever it was.

use std::collections::BTreeSet;

use contract::{
    EventKind, Holder, LeaseId, NodeId, NodeState, OperationId, PolicyRef, Serving, Trigger, VolumeId,
    VolumeState, Work,
};

use crate::registry::Registration;
use crate::{Alarm, Core};

/// Failovers that do not run yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failovers {
    waiting: BTreeSet<OperationId>,
    /// Those for which there was no room or node.
    held: BTreeSet<OperationId>,
}

impl Failovers {
    pub fn add(&mut self, id: OperationId) {
        self.waiting.insert(id);
    }

    pub fn remove(&mut self, id: OperationId) {
        self.waiting.remove(&id);
        self.held.remove(&id);
    }

    /// Something changed that they may have waited for.
    pub fn retry(&mut self) {
        self.waiting.append(&mut self.held);
    }
}

impl Core {
    /// Starts whatever failover can run.
    pub(crate) fn start_failovers(&mut self) {
        while let Some(id) = self.failovers.waiting.pop_first() {
            self.start_failover(id);
        }
    }

    fn start_failover(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        let volume = operation.volume;
        if self.came_back(id) {
            self.finish(id, contract::Phase::Cancelled, Some("its node came back before anybody took over"));
            if let Some(volume) = self.volumes.change(volume) {
                volume.state = VolumeState::Serving;
            }
            return;
        }
        let Ok((source, _)) = self.source_of(id) else {
            self.finish(id, contract::Phase::Cancelled, Some("the volume is gone"));
            return;
        };
        let Some(target) = self.choose_target(id, source) else {
            let blocked = self.no_target(id);
            let held = self.operations.get(id).and_then(|operation| operation.blocked_on.as_ref());
            if held.is_none() {
                self.alarm(Alarm::NoRoom(volume));
            }
            self.blocked(id, blocked);
            self.failovers.held.insert(id);
            return;
        };
        let why = if self.volumes.get(volume).is_some_and(|volume| volume.standby == Some(target)) {
            format!("{target} stands by for it")
        } else {
            format!("{target} has room for it")
        };
        if let Err(blocked) = self.begin(id, source, Some(target), 0, &why, &PolicyRef::default()) {
            self.blocked(id, blocked);
            self.failovers.held.insert(id);
        }
    }

    /// Whether the head that a failover is for serves after all: heard since, under the same grant.
    pub(crate) fn came_back(&self, id: OperationId) -> bool {
        let Some(operation) = self.operations.get(id) else { return false };
        let head = self.volumes.get(operation.volume).and_then(|volume| volume.head);
        let (Some(head), Work::Failover) = (head, &operation.work) else { return false };
        let seen = self.links.seen(operation.volume).filter(|seen| {
            seen.node == head.node && seen.epoch == head.epoch && seen.at_ms > operation.created_ms
        });
        let serves = seen.is_some_and(|seen| !matches!(seen.serving, Serving::Failed | Serving::Fenced));
        serves && operation.granted.is_none() && self.liveness.state(head.node) != NodeState::Lost
    }

    /// Nobody serves this volume: its node is lost, or cannot.
    pub(crate) fn head_lost(&mut self, id: VolumeId, trigger: Trigger) {
        let Some(volume) = self.volumes.get(id) else { return };
        if matches!(volume.state, VolumeState::Deleting | VolumeState::Failed) {
            return;
        }
        let creating = volume.state == VolumeState::Creating && volume.head.is_none();
        if creating {
            return;
        }
        let recovering = volume.state == VolumeState::Recovering;
        if !recovering && let Some(volume) = self.volumes.change(id) {
            volume.state = VolumeState::Recovering;
        }
        // What has no head was revoked; its files are where they were.
        let served = self.volumes.get(id).is_some_and(|volume| volume.head.is_some());
        if served && !self.is_shared(id) {
            if !recovering {
                self.alarm(Alarm::OutOfReach(id));
            }
            return;
        }
        let (kind, work) = (EventKind::HeadLost, Work::Failover);
        let what = Registration { kind, volume: id, trigger, work, target: None, deadline_ms: None };
        // INVARIANT: a failover is not refused: it is not bounded, and folds into one that is open.
        let _ = self.register(what);
    }

    /// A node is lost: what it held is given to others, what it did is begun anew.
    pub(crate) fn node_lost(&mut self, id: NodeId) {
        let under_way: Vec<OperationId> =
            self.index.operations_at.get(&id).into_iter().flatten().copied().collect();
        self.drive.extend(under_way);
        let volumes: Vec<VolumeId> = self.index.volumes_at.get(&id).into_iter().flatten().copied().collect();
        for volume in volumes {
            let Some(object) = self.volumes.get(volume) else { continue };
            if object.head.is_some_and(|head| head.node == id) {
                self.head_lost(volume, Trigger::Failure);
            } else {
                self.find_standby(volume);
            }
        }
        let leases: Vec<LeaseId> = self.index.leases_at.get(&id).into_iter().flatten().copied().collect();
        for lease in leases {
            let holder = self.leases.get(lease).map(|lease| lease.holder.clone());
            if matches!(holder, Some(Holder::Consumer(_))) {
                self.end_lease(lease);
            }
        }
        self.recheck_later();
    }

    /// A lost node is heard again: what nobody took over is its own still.
    pub(crate) fn node_returned(&mut self, id: NodeId) {
        self.mark(id);
        let volumes: Vec<VolumeId> = self.index.volumes_at.get(&id).into_iter().flatten().copied().collect();
        for volume in volumes {
            let Some(object) = self.volumes.get(volume) else { continue };
            let ours = object.head.is_some_and(|head| head.node == id);
            if ours
                && object.state == VolumeState::Recovering
                && !self.is_shared(volume)
                && let Some(object) = self.volumes.change(volume)
            {
                object.state = VolumeState::Serving;
            }
        }
        self.recheck_later();
    }

    /// Chooses who stands by for a volume on a shared pool.
    pub(crate) fn find_standby(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get(id) else { return };
        let (head, shared) = (volume.head, self.is_shared(id));
        let able = |node: NodeId| {
            self.liveness.state(node) == NodeState::Alive
                && head.is_some_and(|head| head.node != node)
                && self.nodes.get(node).is_some_and(|node| !node.cordoned)
        };
        if volume.standby.is_some_and(able) || !shared || head.is_none() {
            return;
        }
        let pool = volume.pool.clone();
        let mut random = self.random.clone();
        let load = |node: NodeId| self.index.volumes_at.get(&node).map_or(0, |volumes| volumes.len() as u64);
        let standby = self.producers.choose(Some(&pool), &mut random, able, load);
        self.random = random;
        self.mark_volume(id);
        self.index_volume(id, false);
        if let Some(volume) = self.volumes.change(id) {
            volume.standby = standby;
        }
        self.index_volume(id, true);
        self.mark_volume(id);
    }
}
