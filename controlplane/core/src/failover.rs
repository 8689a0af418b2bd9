//! A head is lost (F6.d, decisions D10, D13): revoke, reserve, grant the next epoch, publish; the old one is fenced.
//!
//! A failover asks no scheduling policy and has room of its own in the ledger, so ordinary work never holds it up. It
//! goes to the node that stands by, if that has the room once revocable leases are gone; else to another one. If
//! nobody has it, no lease is revoked, somebody is alarmed, and it waits. Its operation is written before each effect,
//! so it goes on after a restart wherever it was.

use std::collections::BTreeSet;

use contract::{
    EventKind, Holder, NodeId, NodeState, OperationId, PolicyRef, Serving, Trigger, VolumeId, VolumeState,
    Work,
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

    /// The next one that may start.
    pub fn next(&mut self) -> Option<OperationId> {
        self.waiting.pop_first()
    }

    /// Whether any may start.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Something changed that they may have waited for.
    pub fn retry(&mut self) {
        self.waiting.append(&mut self.held);
    }
}

impl Core {
    /// Starts a failover, or says what holds it.
    pub(crate) fn start_failover(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        let volume = operation.volume;
        if self.came_back(id) {
            let why = "its node came back before anybody took over";
            return self.finish(id, contract::Phase::Cancelled, Some(why));
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

    /// Whether a failover has no volume left to serve.
    pub(crate) fn is_pointless(&self, id: OperationId) -> bool {
        let Some(operation) = self.operations.get(id) else { return true };
        let state = self.volumes.get(operation.volume).map(|volume| volume.state);
        operation.work == Work::Failover && matches!(state, None | Some(VolumeState::Deleting))
    }

    /// Nobody serves this volume: its node is lost, or cannot.
    pub(crate) fn head_lost(&mut self, id: VolumeId, trigger: Trigger) {
        let Some(volume) = self.volumes.get(id) else { return };
        if matches!(volume.state, VolumeState::Deleting | VolumeState::Failed) {
            return;
        }
        // Until a head was granted, whoever makes it looks after it.
        if volume.epoch == contract::Epoch(0) {
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
        self.unsettled.extend(self.index.volumes_at.get(&id).into_iter().flatten());
        for lease in self.index.leases_at.get(&id).into_iter().flatten() {
            let holder = self.leases.get(*lease).map(|lease| &lease.holder);
            if matches!(holder, Some(Holder::Consumer(_))) {
                self.orphaned.insert(*lease);
            }
        }
        self.recheck_later();
    }

    /// A lost node is heard again: what nobody took over is its own still.
    pub(crate) fn node_returned(&mut self, id: NodeId) {
        self.mark(id);
        self.unsettled.extend(self.index.volumes_at.get(&id).into_iter().flatten());
        self.recheck_later();
    }

    /// Looks at a volume whose node was lost or came back.
    pub(crate) fn settle(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get(id) else { return };
        let Some(head) = volume.head else { return };
        if self.liveness.state(head.node) == NodeState::Lost {
            self.head_lost(id, Trigger::Failure);
            return;
        }
        if volume.state == VolumeState::Recovering
            && !self.is_shared(id)
            && let Some(volume) = self.volumes.change(id)
        {
            volume.state = VolumeState::Serving;
        }
        self.find_standby(id);
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
        if standby.is_none() {
            self.unguarded.insert(id);
        }
        if standby == volume.standby {
            return;
        }
        self.mark_volume(id);
        self.index_volume(id, false);
        if let Some(volume) = self.volumes.change(id) {
            volume.standby = standby;
        }
        self.index_volume(id, true);
        self.mark_volume(id);
    }
}
