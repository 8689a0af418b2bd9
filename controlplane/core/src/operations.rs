//! Operations: where they may run, what they use, and how they go from step to step, back, and to their end.
//!
//! Nothing here waits in place: an operation is looked at ([`Core::drive_operation`]) whenever something that it may
//! have waited for happened, and does what can be done. So a lost message, a restart or a second look change nothing.
//!
//! Invariants: an operation counts in the ledger exactly while its phase says so. `tries` only grows, so an
//! instruction has its name for itself.

use std::collections::BTreeSet;

use contract::{
    Blocked, Dim, Done, InstructionKey, NodeId, NodeState, NodeStep, OperationId, OperationKind, Phase,
    Progress, Scope, Step, Usage, Version, VolumeId, VolumeState, Work,
};

use crate::registry::member;
use crate::{Core, Timer};

/// What bulk work reads or writes at once at a node; its I/O operations are declared by it.
const WORK_IO_BYTES: u64 = 1 << 20;

/// What is only known while the control plane runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flight {
    /// When the node was told, or last showed that it knows.
    pub sent_ms: Option<u64>,
    /// When it was told to stop.
    pub cancel_ms: Option<u64>,
    /// Snapshots above this one have what was changed.
    pub after: Option<Version>,
    /// How the instruction ended.
    pub outcome: Option<Done>,
}

/// What a look at a step led to.
pub(crate) enum Flow {
    /// The step is done.
    Next,
    /// It will be looked at again.
    Wait,
    /// The operation went elsewhere: it is over, waits anew, or goes back.
    Over,
}

impl Core {
    /// Goes on with an operation as far as it goes.
    pub(crate) fn drive_operation(&mut self, id: OperationId) {
        loop {
            let Some(operation) = self.operations.get(id) else { return };
            match operation.phase {
                Phase::Scheduled if operation.not_before_ms > self.now() => {
                    let due = operation.not_before_ms;
                    self.at(due, Timer::Operation(id));
                    return;
                }
                Phase::Scheduled => {
                    if let Some(operation) = self.operations.change(id) {
                        operation.phase = Phase::Running;
                    }
                    self.begin_step(id);
                }
                Phase::Running | Phase::Undoing => {
                    let Some(&step) = operation.steps.get(usize::from(operation.at)) else {
                        let undone = operation.phase == Phase::Undoing;
                        let phase = if undone { Phase::Failed } else { Phase::Done };
                        return self.finish(id, phase, None);
                    };
                    match self.run_step(id, step) {
                        Flow::Next => {
                            if let Some(operation) = self.operations.change(id) {
                                operation.at += 1;
                                operation.blocked_on = None;
                            }
                            self.begin_step(id);
                        }
                        Flow::Wait => return self.waits(id, step),
                        Flow::Over => return,
                    }
                }
                Phase::Waiting | Phase::Done | Phase::Failed | Phase::Cancelled => return,
            }
        }
    }

    /// A step waits; if it did not say for what, then for a node.
    fn waits(&mut self, id: OperationId, step: Step) {
        let Some(operation) = self.operations.get(id) else { return };
        let source = matches!(step, Step::Source(_) | Step::Refresh | Step::Withdraw);
        let node = if source { operation.source } else { operation.target };
        if let Some(node) = node.filter(|_| operation.blocked_on.is_none()) {
            let state = self.liveness.state(node);
            if let Some(operation) = self.operations.touch(id) {
                operation.blocked_on = Some(Blocked::Node { node, state });
            }
        }
    }

    /// Something of an operation fell due.
    pub(crate) fn operation_is_due(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        if operation.phase == Phase::Waiting {
            if self.is_planned_by(id, self.now()) {
                self.make_due(id);
            }
            self.say_if_late(id);
            return;
        }
        self.drive.insert(id);
    }

    pub(crate) fn begin_step(&mut self, id: OperationId) {
        let now = self.now();
        let within = self.step_within_ms(id);
        self.flights.insert(id, Flight::default());
        if let Some(operation) = self.operations.change(id) {
            operation.progress = Progress::default();
            operation.step_began_ms = now;
            operation.step_ends_ms = now.saturating_add(within);
        }
        self.at(now.saturating_add(within), Timer::Operation(id));
    }

    /// How long a step may take: a base, and four times what its bytes need at the rate that it is given.
    pub(crate) fn step_within_ms(&self, id: OperationId) -> u64 {
        let Some(operation) = self.operations.get(id) else { return self.config.step_base_ms };
        let size = self.volumes.get(operation.volume).map_or(0, |volume| volume.size_bytes);
        let node = operation.source.or(operation.target);
        let rate = node.map_or_else(|| self.rate_of(None), |node| self.work_rate(id, node));
        let bytes_ms = size.saturating_mul(4_000) / rate.max(1);
        self.config.step_base_ms.saturating_add(bytes_ms)
    }

    /// Most that one bulk step may read or write at a node.
    pub(crate) fn rate_of(&self, node: Option<NodeId>) -> u64 {
        let capacity = node.map_or(0, |node| self.accounts.node(node).capacity.bytes_per_s);
        let rate = self.config.copy_bytes_per_s;
        if capacity == 0 { rate } else { rate.min((capacity / 8).max(1)) }
    }

    /// The instruction that an operation waits for now, and of whom.
    pub(crate) fn current_instruction(&self, id: OperationId) -> Option<(NodeId, InstructionKey)> {
        let operation = self.operations.get(id)?;
        if !matches!(operation.phase, Phase::Running | Phase::Undoing) {
            return None;
        }
        let node = match operation.steps.get(usize::from(operation.at))? {
            Step::Source(_) => operation.source,
            Step::Target(_) => operation.target,
            _ => None,
        }?;
        Some((node, InstructionKey { operation: id, step: operation.at, tries: operation.tries }))
    }

    /// The steps of a kind of work.
    pub(crate) fn steps_of(
        &self,
        id: OperationId,
        source: Option<NodeId>,
        target: Option<NodeId>,
    ) -> Vec<Step> {
        let Some(operation) = self.operations.get(id) else { return Vec::new() };
        let shared = self.is_shared(operation.volume);
        match operation.work {
            Work::Create => vec![Step::Reserve, Step::Target(NodeStep::Prepare), Step::Serve],
            Work::Resize { .. } => vec![Step::Source(NodeStep::Resize), Step::Refresh],
            Work::Delete { wipe: true } => {
                vec![Step::Withdraw, Step::Target(NodeStep::Wipe), Step::Target(NodeStep::Remove)]
            }
            Work::Delete { wipe: false } => vec![Step::Withdraw, Step::Target(NodeStep::Remove)],
            Work::Scrub => vec![Step::Source(NodeStep::Scrub)],
            Work::Clone { .. } => vec![Step::Reserve, Step::Source(NodeStep::CopyBulk), Step::Serve],
            Work::Expand => vec![Step::Source(NodeStep::Expand)],
            Work::MoveWorker { .. } => vec![Step::Refresh],
            Work::MoveNode { .. } if shared || source == target => {
                vec![Step::Reserve, Step::Source(NodeStep::Freeze), Step::Serve]
            }
            Work::MoveNode { .. } => vec![
                Step::Reserve,
                Step::Target(NodeStep::CopyBulk),
                Step::Source(NodeStep::Freeze),
                Step::Target(NodeStep::CopyDelta),
                Step::Serve,
                Step::Source(NodeStep::Remove),
            ],
            Work::Failover => vec![Step::Reserve, Step::Serve],
        }
    }

    /// Whether all nodes of a volume's pool see its files.
    pub(crate) fn is_shared(&self, id: contract::VolumeId) -> bool {
        let pool = self.volumes.get(id).map(|volume| &volume.pool);
        pool.and_then(|pool| self.index.pools.get(pool)).copied().unwrap_or(false)
    }

    /// What an operation declares to use, all its steps together: the same wherever it is counted, at sources and
    /// targets alike, so that no limit is of something that nothing counts.
    pub(crate) fn usages(
        &self,
        id: OperationId,
        source: Option<NodeId>,
        target: Option<NodeId>,
    ) -> Vec<Usage> {
        let Some(operation) = self.operations.get(id) else { return Vec::new() };
        let kind = operation.work.kind();
        let mut scopes = BTreeSet::from([
            Scope::Fleet,
            Scope::Tenant(operation.tenant),
            Scope::Kind(kind),
            Scope::Volume(operation.volume),
        ]);
        if let Work::Clone { from } = operation.work {
            scopes.insert(Scope::Volume(from));
        }
        scopes.extend(source.into_iter().chain(target).map(Scope::Node));
        let copies = kind == OperationKind::MoveNode && !self.is_shared(operation.volume);
        if let (true, Some(source), Some(target)) = (copies, source, target) {
            scopes.insert(Scope::link(source, target));
        }
        let mut amounts = vec![(Dim::Operations, 1)];
        if copies || matches!(operation.work, Work::Scrub | Work::Clone { .. } | Work::Delete { wipe: true })
        {
            let rate = self.rate_of(source.or(target));
            amounts.extend([
                (Dim::CopySlots, 1),
                (Dim::Iops, rate.div_ceil(WORK_IO_BYTES)),
                (Dim::BytesPerS, rate),
            ]);
        }
        let all = amounts
            .into_iter()
            .flat_map(|(dim, amount)| scopes.iter().map(move |scope| Usage { dim, scope: *scope, amount }));
        all.collect()
    }

    /// Where an operation comes from now, and where it must go, if that is not open.
    pub(crate) fn source_of(&self, id: OperationId) -> Result<(Option<NodeId>, Option<NodeId>), Blocked> {
        let none = |why: &str| Blocked::NoNode { why: why.into() };
        let Some(operation) = self.operations.get(id) else { return Ok((None, None)) };
        let Some(volume) = self.volumes.get(operation.volume) else { return Err(none("the volume is gone")) };
        let chosen = operation.target.filter(|_| operation.pinned || operation.plan.is_some());
        let read = match operation.work {
            Work::Create => return Ok((None, chosen)),
            Work::Delete { .. } => return Ok((volume.head.map(|head| head.node), volume.home)),
            Work::Failover => return Ok((volume.head.map(|head| head.node), volume.home)),
            Work::Clone { from } => self.volumes.get(from).ok_or_else(|| none("the source is gone"))?,
            _ => volume,
        };
        let Some(head) = read.head else { return Err(none("nobody serves the volume")) };
        let state = self.liveness.state(head.node);
        if read.state != VolumeState::Serving || matches!(state, NodeState::Lost | NodeState::Returning) {
            return Err(Blocked::Node { node: head.node, state });
        }
        let copies_here = matches!(operation.work, Work::Clone { .. }) && !self.is_shared(operation.volume);
        Ok((Some(head.node), if copies_here { Some(head.node) } else { chosen }))
    }

    /// Whether a node may be where an operation goes.
    pub(crate) fn can_be_target(
        &self,
        id: OperationId,
        source: Option<NodeId>,
        node: NodeId,
    ) -> Result<(), Blocked> {
        let Some(operation) = self.operations.get(id) else { return Ok(()) };
        let Some(volume) = self.volumes.get(operation.volume) else { return Ok(()) };
        let state = self.liveness.state(node);
        let Some(info) = self.nodes.get(node) else {
            return Err(Blocked::NoNode { why: format!("{node} is not known") });
        };
        if state != NodeState::Alive {
            return Err(Blocked::Node { node, state });
        }
        if !info.info.pools.iter().any(|pool| pool.name == volume.pool) {
            return Err(Blocked::NoNode { why: format!("{node} has no pool {}", volume.pool) });
        }
        let kind = operation.work.kind();
        if kind == OperationKind::Delete {
            return Ok(());
        }
        if info.cordoned && kind != OperationKind::Clone {
            return Err(Blocked::NoNode { why: format!("{node} is cordoned") });
        }
        let moves = matches!(kind, OperationKind::MoveNode | OperationKind::Failover);
        if moves && source == Some(node) {
            return Err(Blocked::NoNode { why: format!("it is on {node} already") });
        }
        let (need, account) = (volume.limits.sustained(), self.accounts.node(node));
        if self.lease_at(operation.volume, node).is_some()
            || self.accounts.fits(node, volume.class, need, moves)
        {
            return Ok(());
        }
        Err(Blocked::Capacity { need, room: account.firm_room() })
    }

    /// A node where an operation may go, by weight; for a failover the one that stands by, if it can.
    pub(crate) fn choose_target(&mut self, id: OperationId, source: Option<NodeId>) -> Option<NodeId> {
        let operation = self.operations.get(id)?;
        let volume = self.volumes.get(operation.volume)?;
        let fails_over = operation.work == Work::Failover;
        if let Some(home) = volume.home.filter(|_| fails_over) {
            return self.can_be_target(id, source, home).is_ok().then_some(home);
        }
        if let Some(standby) = volume.standby.filter(|_| fails_over)
            && self.can_be_target(id, source, standby).is_ok()
        {
            return Some(standby);
        }
        let pool = volume.pool.clone();
        let mut random = self.random.clone();
        let possible = |node| self.can_be_target(id, source, node).is_ok();
        let works = |node| {
            let at = self.begins_with_work_at(id, source, Some(node));
            possible(node) && at.is_none_or(|node| self.work_share(node).is_ok())
        };
        let load = |node| self.accounts.node(node).firm.iops;
        let chosen = self
            .producers
            .choose(Some(&pool), &mut random, works, load)
            .or_else(|| self.producers.choose(Some(&pool), &mut random, possible, load));
        self.random = random;
        chosen
    }

    /// Why there is no node where it may go: the reason that is nearest to going away.
    pub(crate) fn no_target(&self, id: OperationId) -> Blocked {
        let source = self.source_of(id).ok().and_then(|(source, _)| source);
        let why = |blocked: &Blocked| matches!(blocked, Blocked::Capacity { .. });
        let mut reasons =
            self.nodes.iter().filter_map(|(node, _)| self.can_be_target(id, source, node).err());
        let none = Blocked::NoNode { why: "there is no other node".into() };
        let first = reasons.next().unwrap_or(none);
        if why(&first) { first } else { reasons.find(why).unwrap_or(first) }
    }

    /// Counts an operation at its nodes, or no more.
    pub(crate) fn index_nodes_of(&mut self, id: OperationId, is: bool) {
        let Some(operation) = self.operations.get(id) else { return };
        for node in operation.source.into_iter().chain(operation.target).collect::<Vec<_>>() {
            member(&mut self.index.operations_at, &node, id, is);
        }
    }

    /// Gives back what an operation counts for; what waits for that is looked at again.
    pub(crate) fn give_back(&mut self, id: OperationId) {
        self.index_nodes_of(id, false);
        self.leave_link(id);
        for usage in self.ledger.give(id) {
            self.queue.unpark(usage.dim, usage.scope);
        }
        self.failovers.retry();
    }

    /// An operation waits anew: from where it is, or from the beginning.
    pub(crate) fn requeue(&mut self, id: OperationId, why: &str, from_the_beginning: bool) {
        self.mark_move(id);
        self.end_work_lease(id);
        self.give_back(id);
        if from_the_beginning {
            self.end_reserved_lease(id);
        }
        self.flights.remove(&id);
        if let Some(operation) = self.operations.change(id) {
            operation.phase = Phase::Waiting;
            operation.tries = operation.tries.saturating_add(1);
            why.clone_into(&mut operation.why);
            operation.source = None;
            if !operation.pinned {
                operation.target = None;
            }
            if from_the_beginning {
                operation.at = 0;
                operation.granted = None;
                operation.steps.clear();
            }
        }
        self.admit(id);
    }

    /// A step cannot be done: what was done before is taken back.
    pub(crate) fn fail(&mut self, id: OperationId, why: &str) {
        let undo = self.undo_steps(id);
        self.end_work_lease(id);
        self.end_reserved_lease(id);
        if let Some(operation) = self.operations.change(id) {
            why.clone_into(&mut operation.why);
            operation.steps.truncate(usize::from(operation.at) + 1);
            operation.at = operation.steps.len() as u16;
            operation.steps.extend(undo);
            operation.phase = Phase::Undoing;
        }
        self.mark_move(id);
        self.begin_step(id);
        self.drive.insert(id);
    }

    /// A volume's head goes, and comes back under another grant: what a move copied of it before is old then.
    pub(crate) fn take_back_moves(&mut self, volume: VolumeId, why: &str) {
        for id in self.index.operations_of.get(&volume).cloned().unwrap_or_default() {
            let goes_on = |one: &&contract::Operation| {
                matches!(one.work, Work::MoveNode { .. })
                    && one.granted.is_none()
                    && matches!(one.phase, Phase::Scheduled | Phase::Running)
            };
            if self.operations.get(id).as_ref().is_some_and(goes_on) {
                self.fail(id, why);
            }
        }
    }

    fn undo_steps(&self, id: OperationId) -> Vec<Step> {
        let Some(operation) = self.operations.get(id) else { return Vec::new() };
        let begun = &operation.steps[..operation.steps.len().min(usize::from(operation.at) + 1)];
        let mut undo = Vec::new();
        if operation.granted.is_none() && matches!(operation.work, Work::MoveNode { .. }) {
            if begun.contains(&Step::Source(NodeStep::Freeze)) {
                undo.push(Step::Source(NodeStep::Thaw));
            }
            if begun.contains(&Step::Target(NodeStep::CopyBulk)) {
                undo.push(Step::Target(NodeStep::Remove));
            }
        }
        undo
    }

    /// An operation is over.
    pub(crate) fn finish(&mut self, id: OperationId, phase: Phase, why: Option<&str>) {
        self.mark_move(id);
        self.end_work_lease(id);
        if phase != Phase::Done {
            self.end_reserved_lease(id);
        }
        self.give_back(id);
        self.queue.remove(id);
        self.failovers.remove(id);
        self.waiting_for_room.remove(&id);
        self.forget_plan(id);
        self.flights.remove(&id);
        self.index_open(id, false);
        let Some(operation) = self.operations.change(id) else { return };
        operation.phase = phase;
        operation.blocked_on = None;
        if let Some(why) = why {
            why.clone_into(&mut operation.why);
        }
        let (volume, kind, why) = (operation.volume, operation.work.kind(), operation.why.clone());
        if phase == Phase::Done {
            self.counters.done += 1;
        } else {
            self.counters.failed += 1;
        }
        if phase == Phase::Failed {
            self.alarm(crate::Alarm::GaveUp { operation: id, why });
        }
        self.close_event(id, phase);
        if kind == OperationKind::Failover
            && phase == Phase::Cancelled
            && let Some(volume) = self.volumes.change(volume)
            // One that was asked to be deleted meanwhile goes.
            && volume.head.is_some()
            && volume.state != VolumeState::Deleting
        {
            volume.state = VolumeState::Serving;
        }
        let made = matches!(kind, OperationKind::Create | OperationKind::Clone);
        match (kind, phase) {
            (OperationKind::Delete, Phase::Done) => self.remove_volume(volume),
            (_, Phase::Failed | Phase::Cancelled) if made => {
                if let Some(volume) = self.volumes.change(volume).filter(|volume| volume.head.is_none()) {
                    volume.state = VolumeState::Failed;
                }
            }
            _ => {}
        }
    }
}
