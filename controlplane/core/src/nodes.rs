//! What nodes say: who they are, that they are there, and how their volumes and instructions stand.

use std::collections::{BTreeMap, BTreeSet};

use contract::{
    Dim, Done, Epoch, FromNode, Name, Node, NodeId, NodeInfo, NodeReport, NodeState, OperationId, Refused,
    RefusedRules, Revision, Scope, Serving, StepReport, ToNode, ToNodeBody, Trigger, Version, VolumeId,
    VolumeReport, VolumeState,
};

use crate::record::cut;
use crate::registry::{member, next};
use crate::{Alarm, Core, Timer};

/// The connections to nodes, and what was last heard of them. Nothing of it is stored: reports bring it back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    nodes: BTreeMap<NodeId, Link>,
    sessions: BTreeMap<u64, NodeId>,
    /// Connections of nodes that are not taken in.
    refused: BTreeSet<u64>,
    seen: BTreeMap<VolumeId, Seen>,
    /// The last [`ToNode::seq`].
    pub seq: u64,
}

/// One node's connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub session: Option<u64>,
    incarnation: u64,
    seq: u64,
    /// The snapshot that it runs.
    pub running: Version,
    /// The snapshot that it was sent last.
    pub sent: Version,
    pub sent_ms: u64,
    /// Rules that it cannot carry out.
    pub refused: Vec<RefusedRules>,
}

/// How a volume was last reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub node: NodeId,
    pub epoch: Epoch,
    pub worker: u16,
    pub serving: Serving,
    pub at_ms: u64,
}

impl Links {
    pub fn closed(&mut self, session: u64) {
        self.refused.remove(&session);
        let node = self.sessions.remove(&session);
        if let Some(link) = node.and_then(|node| self.nodes.get_mut(&node))
            && link.session == Some(session)
        {
            link.session = None;
        }
    }

    pub fn get(&self, id: NodeId) -> Option<&Link> {
        self.nodes.get(&id)
    }

    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Link> {
        self.nodes.get_mut(&id)
    }

    pub fn seen(&self, volume: VolumeId) -> Option<&Seen> {
        self.seen.get(&volume)
    }

    pub fn forget_volume(&mut self, volume: VolumeId) {
        self.seen.remove(&volume);
    }

    pub fn forget_node(&mut self, id: NodeId) {
        if let Some(session) = self.nodes.remove(&id).and_then(|link| link.session) {
            self.sessions.remove(&session);
        }
    }

    /// A volume as its node says; reports of a lower grant do not hide those of a higher one.
    fn see(&mut self, node: NodeId, report: &VolumeReport, now_ms: u64) {
        if self.seen.get(&report.volume).is_some_and(|seen| seen.epoch > report.epoch) {
            return;
        }
        let VolumeReport { epoch, worker, serving, .. } = *report;
        self.seen.insert(report.volume, Seen { node, epoch, worker, serving, at_ms: now_ms });
    }
}

impl Core {
    pub(crate) fn node_said(&mut self, session: u64, message: FromNode) {
        match message {
            FromNode::Hello(info) => self.hello(session, info),
            FromNode::Report(report) => {
                let Some(&id) = self.links.sessions.get(&session) else {
                    self.counters.reports_dropped += 1;
                    self.say(session, ToNodeBody::Introduce);
                    return;
                };
                self.report(id, report);
            }
        }
    }

    /// Says something on a connection.
    pub(crate) fn say(&mut self, session: u64, body: ToNodeBody) -> u64 {
        let seq = next(&mut self.links.seq);
        self.out.sends.push((session, ToNode { seq, body }));
        seq
    }

    /// Says something to a node, if it is connected.
    pub(crate) fn tell(&mut self, id: NodeId, body: ToNodeBody) {
        if let Some(session) = self.links.get(id).and_then(|link| link.session) {
            self.say(session, body);
        }
    }

    fn hello(&mut self, session: u64, info: NodeInfo) {
        let id = match self.enrol(&info) {
            Ok(id) => id,
            Err(why) => return self.refuse(session, info.name, why.to_string()),
        };
        self.links.refused.remove(&session);
        let link = self.links.nodes.entry(id).or_default();
        if link.session.is_some() && link.incarnation > info.incarnation {
            // Said by an earlier start of the daemon and late.
            return;
        }
        if link.incarnation != info.incarnation {
            (link.seq, link.incarnation) = (0, info.incarnation);
            link.running = Version(0);
        }
        if let Some(old) = link.session.replace(session) {
            self.links.sessions.remove(&old);
        }
        self.links.sessions.insert(session, id);
        self.say(session, ToNodeBody::Welcome { node: id });
        self.heard(id);
        self.mark(id);
    }

    /// A node that is not taken in hears why. It says again and again who it is, so that it comes in when it can be;
    /// somebody is alarmed once for each connection.
    fn refuse(&mut self, session: u64, name: Name, why: String) {
        self.counters.nodes_refused += 1;
        if self.links.refused.insert(session) {
            self.alarm(Alarm::NodeRefused { name, why: why.clone() });
        }
        self.say(session, ToNodeBody::Refused { why });
    }

    /// Makes a node known, or takes over what changed about it.
    fn enrol(&mut self, info: &NodeInfo) -> Result<NodeId, Refused> {
        info.check().map_err(Refused::Invalid)?;
        let max = self.config.limits.pools;
        let new = info.pools.iter().filter(|pool| !self.index.pools.contains_key(&pool.name)).count();
        if new > 0 && self.index.pools.len() + new > max {
            return Err(Refused::TooMany { what: "names of pools".into(), max: max as u64 });
        }
        let max = self.config.limits.nodes;
        let known = self.index.nodes.get(&info.name).copied();
        let id = match known {
            Some(id) => id,
            None if self.nodes.len() >= max => {
                return Err(Refused::TooMany { what: "nodes".into(), max: max as u64 });
            }
            None => {
                self.meta_is_dirty = true;
                NodeId(next(&mut self.meta.last.node))
            }
        };
        let before = self.nodes.get(id).map(|node| node.info.clone());
        if before.as_ref() == Some(info) {
            return Ok(id);
        }
        if known.is_none() {
            let (info, state) = (info.clone(), NodeState::Alive);
            self.nodes.insert(id, Node { id, info, state, cordoned: false, revision: Revision(0) });
            self.liveness.add(id, state, self.now());
        } else if let Some(node) = self.nodes.change(id) {
            node.info = info.clone();
        }
        self.index_node(id);
        self.node_can_serve();
        Ok(id)
    }

    /// Puts a node into the tables that are made of nodes.
    pub(crate) fn index_node(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let info = node.info.clone();
        self.index.nodes.insert(info.name.clone(), id);
        self.accounts.set_node(id, info.capacity);
        self.accounts.set_lost(id, is_missed(node.state));
        let pools: Vec<Name> = info.pools.iter().map(|pool| pool.name.clone()).collect();
        for pool in &info.pools {
            // A pool that one node calls its own is not shared, whatever others say.
            let shared = self.index.pools.entry(pool.name.clone()).or_insert(pool.shared);
            *shared &= pool.shared;
        }
        self.producers.set(id, info.capacity.iops, &pools);
        if info.capacity.copy_slots > 0 {
            let (dim, scope) = (Dim::CopySlots, Scope::Node(id));
            self.ledger.set_default(dim, scope, info.capacity.copy_slots);
        }
    }

    /// Any word of a node shows that it is there.
    fn heard(&mut self, id: NodeId) {
        let changed = self.liveness.heard(id, self.now(), &self.config);
        if let Some(state) = changed {
            self.node_is(id, state);
        }
        self.judge_later();
    }

    fn node_is(&mut self, id: NodeId, state: NodeState) {
        // A suspicion is not worth a write.
        let before = self.nodes.get(id).map(|node| node.state);
        let suspicion = state == NodeState::Suspect || before == Some(NodeState::Suspect);
        let node =
            if suspicion && state != NodeState::Lost { self.nodes.touch(id) } else { self.nodes.change(id) };
        if let Some(node) = node {
            node.state = state;
        }
        if is_missed(state) || before.is_some_and(is_missed) {
            self.accounts.set_lost(id, is_missed(state));
        }
        match state {
            NodeState::Lost => {
                self.counters.lost += 1;
                self.alarm(Alarm::NodeLost(id));
                self.node_lost(id);
            }
            NodeState::Returning => self.node_returned(id),
            NodeState::Alive => self.node_can_serve(),
            NodeState::Suspect => {}
        }
    }

    /// There is a node that may be given something: what waited for one is looked at again.
    pub(crate) fn node_can_serve(&mut self) {
        self.timers.insert((self.now(), Timer::Recheck));
        self.unsettled.append(&mut self.unguarded);
    }

    pub(crate) fn judge(&mut self) {
        let verdicts = self.liveness.judge(self.now(), &self.config);
        if let Some((silent, of)) = verdicts.shut {
            self.counters.valve_shut += 1;
            self.alarm(Alarm::ValveShut { silent, of });
        }
        for (id, state) in verdicts.changes {
            self.node_is(id, state);
        }
        self.judge_later();
    }

    /// One timer for judging is enough: the earliest.
    pub(crate) fn judge_later(&mut self) {
        let Some(due) = self.liveness.due_ms(&self.config) else { return };
        // While the valve is shut, somebody is due all the time.
        let soonest = self.now() + if self.liveness.is_shut() { self.config.heartbeat_ms } else { 1 };
        let due = due.max(soonest);
        if self.judging_ms.is_some_and(|set| set > self.now() && set <= due) {
            return;
        }
        self.judging_ms = Some(due);
        self.timers.insert((due, Timer::Judge));
    }

    fn report(&mut self, id: NodeId, report: NodeReport) {
        let Some(link) = self.links.nodes.get_mut(&id) else { return };
        if report.incarnation != link.incarnation || report.seq <= link.seq {
            self.counters.reports_dropped += 1;
            return;
        }
        link.seq = report.seq;
        link.running = report.running;
        let max = self.config.limits.report;
        link.refused = report.refused;
        link.refused.truncate(max);
        link.refused.iter_mut().for_each(|refused| cut(&mut refused.why));
        let behind = link.running < link.sent
            && self.clock.now_ms.saturating_sub(link.sent_ms) >= self.config.resend_ms;
        self.counters.reports += 1;
        self.heard(id);
        self.producers.reported(id, report.utilisation_ppm, self.now());
        if behind {
            self.mark(id);
        }
        for volume in report.volumes.iter().take(max) {
            self.volume_reported(id, volume);
        }
        for step in report.steps.into_iter().take(max) {
            self.step_reported(id, step);
        }
        for condition in report.conditions.iter().take(max) {
            let known = self.volumes.get(condition.volume).and_then(|volume| volume.head);
            // What is left is said again.
            if known.is_some_and(|head| head.node == id) && !self.is_enough() {
                self.condition(condition.kind, condition.volume, condition.trigger);
            }
        }
        for lease in report.released.into_iter().take(max) {
            if self.is_enough() {
                break;
            }
            self.released(id, lease);
        }
        let under_way: Vec<OperationId> =
            self.index.operations_at.get(&id).into_iter().flatten().copied().collect();
        self.drive.extend(under_way);
    }

    fn volume_reported(&mut self, id: NodeId, report: &VolumeReport) {
        let Some(volume) = self.volumes.get(report.volume) else { return };
        let (state, head, now) = (volume.state, volume.head, self.now());
        self.links.see(id, report, now);
        if let Some(operations) = self.index.operations_of.get(&report.volume) {
            self.drive.extend(operations.iter().copied());
        }
        let ours = head.is_some_and(|head| head.node == id && head.epoch == report.epoch);
        if !ours {
            return;
        }
        if self.histories.sample(report, now, self.config.fine_histories_max) {
            self.compare_with_plan(report, now);
        }
        let gone = matches!(report.serving, Serving::Failed | Serving::Fenced);
        if gone && state == VolumeState::Serving {
            self.head_lost(report.volume, Trigger::Failure);
        }
    }

    /// How an instruction stands. What nobody waits for any more is to be forgotten.
    fn step_reported(&mut self, id: NodeId, mut report: StepReport) {
        let key = report.key;
        if let Done::Failed { why, .. } = &mut report.done {
            cut(why);
        }
        let current = self.current_instruction(key.operation);
        if current == Some((id, key)) {
            self.step_stands(key.operation, report.done);
        } else {
            self.tell(id, ToNodeBody::Forget(vec![key]));
        }
    }
}

impl Core {
    /// A volume is served by nobody else, or that is another one now.
    pub(crate) fn index_volume(&mut self, id: VolumeId, is: bool) {
        let Some(volume) = self.volumes.get(id) else { return };
        let nodes = volume.head.map(|head| head.node).into_iter().chain(volume.standby);
        for node in nodes.collect::<Vec<_>>() {
            member(&mut self.index.volumes_at, &node, id, is);
        }
    }
}

/// What such a node has cannot be promised: it is given nothing.
fn is_missed(state: NodeState) -> bool {
    matches!(state, NodeState::Lost | NodeState::Returning)
}
