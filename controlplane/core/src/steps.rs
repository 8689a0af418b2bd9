//! The steps of operations: what each does, and when it is done.

use contract::{
    Blocked, Done, Head, Instruction, NodeId, NodeState, NodeStep, OperationId, OperationKind, Phase,
    Serving, Step, ToNodeBody, VolumeId, VolumeState, Work,
};

use crate::operations::Flow;
use crate::{Alarm, Core};

/// Longest wait before a step is tried again.
const BACKOFF_MAX_MS: u64 = 10_000;

impl Core {
    pub(crate) fn run_step(&mut self, id: OperationId, step: Step) -> Flow {
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let (source, target) = (operation.source, operation.target);
        match step {
            Step::Reserve => self.step_reserve(id),
            Step::Source(step) => self.step_node(id, step, source),
            Step::Target(step) => self.step_node(id, step, target),
            Step::Serve => self.step_serve(id),
            Step::Refresh => self.step_refresh(id),
            Step::Withdraw => self.step_withdraw(id),
        }
    }

    /// Takes a firm lease for the next head and makes room for it, or says why it must wait.
    fn step_reserve(&mut self, id: OperationId) -> Flow {
        if self.is_pointless(id) {
            self.finish(id, Phase::Cancelled, Some("the volume is being deleted"));
            return Flow::Over;
        }
        if self.came_back(id) {
            self.finish(id, Phase::Cancelled, Some("its node came back before anybody took over"));
            return Flow::Over;
        }
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let (source, mut target, volume) = (operation.source, operation.target, operation.volume);
        let fails_over = operation.work == Work::Failover;
        let possible = target.map(|node| self.can_be_target(id, source, node));
        if !matches!(possible, Some(Ok(()))) {
            if !fails_over {
                self.requeue(id, "the node that was chosen cannot take it any more", true);
                return Flow::Over;
            }
            self.end_reserved_lease(id);
            let Some(other) = self.choose_target(id, source) else {
                let blocked = self.no_target(id);
                self.alarm(Alarm::NoRoom(volume));
                self.blocked(id, blocked);
                self.waiting_for_room.insert(id);
                return Flow::Wait;
            };
            self.index_nodes_of(id, false);
            if let Some(operation) = self.operations.change(id) {
                operation.target = Some(other);
            }
            self.index_nodes_of(id, true);
            let usages = self.usages(id, source, Some(other));
            self.ledger.load(id, usages);
            target = Some(other);
        }
        let Some(target) = target else { return Flow::Over };
        if self.lease_at(volume, target).is_none() {
            if let Err(blocked) = self.clone_has_room(id, target) {
                self.blocked(id, blocked);
                self.waiting_for_room.insert(id);
                return Flow::Wait;
            }
            self.grant_head(volume, target);
        }
        self.make_room(target);
        if self.accounts.node(target).settled() {
            if let Some(operation) = self.operations.change(id)
                && matches!(operation.blocked_on, Some(Blocked::Grace { .. }))
            {
                operation.why.push_str("; revocable leases there were revoked for it");
            }
            return Flow::Next;
        }
        let remaining_ms = self.grace_left_ms(target);
        self.blocked(id, Blocked::Grace { node: target, remaining_ms });
        Flow::Wait
    }

    /// A node does something once.
    fn step_node(&mut self, id: OperationId, step: NodeStep, node: Option<NodeId>) -> Flow {
        let Some(node) = node else { return Flow::Next };
        if let Some(outcome) = self.flights.get_mut(&id).and_then(|flight| flight.outcome.take()) {
            return self.step_ended(id, step, node, outcome);
        }
        let state = self.liveness.state(node);
        if state == NodeState::Lost {
            return self.executor_lost(id, step, node);
        }
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let late = self.now() >= operation.step_ends_ms;
        let sent = self.flights.get(&id).and_then(|flight| flight.sent_ms);
        let mut unleased = false;
        if self.needs_work_lease(id, step) && !self.has_work_lease(id) {
            if sent.is_none() && operation.lease.is_none() {
                match self.work_share(node) {
                    Ok(share) => self.grant_work(id, node, share),
                    Err(blocked) => {
                        self.blocked(id, blocked);
                        self.waiting_for_room.insert(id);
                        return Flow::Wait;
                    }
                }
            } else {
                unleased = true;
            }
        }
        if late || unleased {
            self.cancel(id, node);
        } else if sent.is_none_or(|sent| self.now().saturating_sub(sent) >= self.config.resend_ms) {
            self.instruct(id, step, node);
        }
        if let Some(operation) = self.operations.touch(id) {
            operation.blocked_on = Some(Blocked::Node { node, state });
        }
        Flow::Wait
    }

    fn instruct(&mut self, id: OperationId, step: NodeStep, node: NodeId) {
        let Some((_, key)) = self.current_instruction(id) else { return };
        let Some(operation) = self.operations.get(id) else { return };
        let Some(volume) = self.volumes.get(operation.volume) else { return };
        let size_bytes = match operation.work {
            Work::Resize { size_bytes } => size_bytes,
            _ => volume.size_bytes,
        };
        let (from_volume, from_node) = match operation.work {
            Work::Clone { from } => (Some(from), operation.source),
            Work::MoveNode { .. } => (Some(volume.id), operation.source),
            _ => (None, None),
        };
        let read = from_volume.and_then(|id| self.volumes.get(id));
        let reads = from_node.and_then(|id| self.nodes.get(id));
        let instruction = Instruction {
            key,
            step,
            volume: volume.id,
            pool: volume.pool.clone(),
            size_bytes,
            from_volume,
            from_node,
            from_name: read.map(|volume| volume.name.clone()),
            from_addresses: reads.map_or_else(Vec::new, |node| node.info.addresses.clone()),
            epoch: volume.epoch,
            rate_bytes_per_s: self.work_rate(id, node),
            lease: operation.lease,
        };
        self.counters.instructions += 1;
        self.tell(node, ToNodeBody::Instruct(instruction));
        let now = self.now();
        self.flights.entry(id).or_default().sent_ms = Some(now);
    }

    /// Tells a node to stop, now and then.
    fn cancel(&mut self, id: OperationId, node: NodeId) {
        let Some((_, key)) = self.current_instruction(id) else { return };
        let (now, resend) = (self.now(), self.config.resend_ms);
        let flight = self.flights.entry(id).or_default();
        if flight.cancel_ms.is_none_or(|at| now.saturating_sub(at) >= resend) {
            flight.cancel_ms = Some(now);
            self.tell(node, ToNodeBody::Cancel(key));
        }
    }

    /// A node says how an instruction stands.
    pub(crate) fn step_stands(&mut self, id: OperationId, done: Done) {
        let now = self.now();
        let flight = self.flights.entry(id).or_default();
        if let Done::Running { done_bytes, total_bytes } = done {
            flight.sent_ms = Some(now);
            let mut begins = false;
            if let Some(operation) = self.operations.touch(id) {
                begins = operation.progress.total_bytes == 0 && total_bytes > 0;
                operation.progress = contract::Progress { done_bytes, total_bytes };
            }
            if begins {
                self.mark_move(id);
            }
        } else {
            flight.outcome = Some(done);
        }
        self.drive.insert(id);
    }

    fn step_ended(&mut self, id: OperationId, step: NodeStep, node: NodeId, outcome: Done) -> Flow {
        let Some((_, key)) = self.current_instruction(id) else { return Flow::Over };
        self.tell(node, ToNodeBody::Forget(vec![key]));
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let (volume, undoing) = (operation.volume, operation.phase == Phase::Undoing);
        let (why, again) = match outcome {
            Done::Failed { why, again } => (why, again),
            Done::Done { credits } => {
                self.step_done(id, step, volume, credits);
                return Flow::Next;
            }
            Done::Running { .. } => return Flow::Wait,
        };
        if self.needs_work_lease(id, step) && !self.has_work_lease(id) {
            // Whoever revoked it said why. What a clone copied goes with the place that was reserved for it.
            let (why, is_copy) = (operation.why.clone(), step == NodeStep::CopyBulk);
            self.requeue(id, &why, is_copy);
            return Flow::Over;
        }
        let failures = operation.failures.saturating_add(1);
        let enough = failures > self.config.tries_max;
        // What is frozen must go on, however often that fails.
        if undoing && (enough || !again) && step != NodeStep::Thaw {
            return Flow::Next;
        }
        if !undoing && (enough || !(again || self.now() >= operation.step_ends_ms)) {
            self.fail(id, &format!("{node}: {step}: {why}"));
            return Flow::Over;
        }
        let backoff = (100_u64 << failures.min(10)).min(BACKOFF_MAX_MS);
        let not_before = self.now().saturating_add(backoff);
        self.mark_move(id);
        self.begin_step(id);
        if let Some(operation) = self.operations.change(id) {
            (operation.failures, operation.why) = (failures, format!("{node}: {step}: {why}"));
            operation.tries = operation.tries.saturating_add(1);
            // What is taken back is not waited with: its phase says what it is.
            if !undoing {
                (operation.phase, operation.not_before_ms) = (Phase::Scheduled, not_before);
            }
        }
        self.drive.insert(id);
        Flow::Over
    }

    fn step_done(
        &mut self,
        id: OperationId,
        step: NodeStep,
        volume: VolumeId,
        credits: Option<contract::Credits>,
    ) {
        let operation = self.operations.get(id);
        let at = operation.and_then(|operation| match step {
            NodeStep::Prepare => operation.target,
            _ => operation.source,
        });
        let work = operation.map(|operation| operation.work.clone());
        let shared = self.is_shared(volume);
        match (step, work) {
            (NodeStep::Prepare, _) | (NodeStep::CopyBulk, Some(Work::Clone { .. })) if !shared => {
                if let Some(volume) = self.volumes.change(volume) {
                    volume.home = at;
                }
            }
            (NodeStep::Resize, Some(Work::Resize { size_bytes })) => {
                if let Some(volume) = self.volumes.change(volume) {
                    volume.size_bytes = size_bytes;
                }
                self.mark_volume(volume);
            }
            (NodeStep::CopyBulk, Some(Work::MoveNode { .. })) => self.mark_move(id),
            (NodeStep::Freeze, _) => {
                if let Some(volume) = self.volumes.change(volume) {
                    volume.credits = credits;
                }
                self.mark_volume(volume);
            }
            _ => {}
        }
    }

    /// The node that should do a step is lost.
    fn executor_lost(&mut self, id: OperationId, step: NodeStep, node: NodeId) -> Flow {
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let (began, pinned, volume) = (operation.step_began_ms, operation.pinned, operation.volume);
        if operation.phase == Phase::Undoing {
            // What is frozen must be told to go on, whenever its node is back, unless it is served elsewhere or
            // goes. Without a head it may come back there.
            let volume = self.volumes.get(volume).filter(|volume| volume.state != VolumeState::Deleting);
            let here = volume.is_some_and(|volume| volume.head.is_none_or(|head| head.node == node));
            let frozen = step == NodeStep::Thaw && here;
            if !frozen && self.now().saturating_sub(began) >= self.config.patience_ms {
                return Flow::Next;
            }
            self.blocked(id, Blocked::Node { node, state: NodeState::Lost });
            self.waiting_for_room.insert(id);
            return Flow::Wait;
        }
        let shared = self.is_shared(volume);
        let why = format!("{node} was lost");
        match operation.work.kind() {
            // The volume is served elsewhere; only the copy that was left stays behind.
            OperationKind::MoveNode if operation.granted.is_some() => return Flow::Next,
            OperationKind::MoveNode => {
                self.fail(id, &why);
                return Flow::Over;
            }
            OperationKind::Create if pinned => {}
            OperationKind::Delete if !shared => {
                if self.now().saturating_sub(began) >= self.config.patience_ms {
                    let why = format!("the files stay on {node}, which is lost");
                    self.finish(id, Phase::Done, Some(&why));
                    return Flow::Over;
                }
            }
            kind => {
                self.requeue(id, &why, kind != OperationKind::Delete);
                return Flow::Over;
            }
        }
        if self.now().saturating_sub(began) >= self.config.patience_ms {
            self.fail(id, &why);
            return Flow::Over;
        }
        self.blocked(id, Blocked::Node { node, state: NodeState::Lost });
        self.waiting_for_room.insert(id);
        Flow::Wait
    }

    /// Grants the next epoch to the target and waits until it serves under it.
    fn step_serve(&mut self, id: OperationId) -> Flow {
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let (granted, volume, kind) = (operation.granted, operation.volume, operation.work.kind());
        let late = self.now() >= operation.step_ends_ms;
        let Some(target) = operation.target else { return Flow::Over };
        let Some(epoch) = granted else {
            if self.is_pointless(id) {
                self.finish(id, Phase::Cancelled, Some("the volume is being deleted"));
                return Flow::Over;
            }
            if kind == OperationKind::Failover && self.came_back(id) {
                self.finish(id, Phase::Cancelled, Some("its node came back before anybody took over"));
                return Flow::Over;
            }
            return self.grant_epoch(id, volume, target);
        };
        let head = self.volumes.get(volume).and_then(|volume| volume.head);
        if head.is_none_or(|head| head.epoch != epoch) {
            if kind == OperationKind::Failover {
                return self.fail_over_again(id, "the lease that it was to serve under was revoked");
            }
            let why = "a failover took the volume over meanwhile";
            let served = matches!(kind, OperationKind::Create | OperationKind::Clone);
            self.finish(id, if served { Phase::Done } else { Phase::Failed }, Some(why));
            return Flow::Over;
        }
        let seen = self.links.seen(volume).filter(|seen| seen.node == target && seen.epoch == epoch);
        let serving = seen.map(|seen| seen.serving);
        if matches!(serving, Some(Serving::Active)) {
            self.serves(volume, target);
            self.mark_move(id);
            return Flow::Next;
        }
        let state = self.liveness.state(target);
        let refused = matches!(serving, Some(Serving::Failed | Serving::Fenced));
        if !(late || refused || state == NodeState::Lost) {
            if let Some(operation) = self.operations.touch(id) {
                operation.blocked_on = Some(Blocked::Node { node: target, state });
            }
            return Flow::Wait;
        }
        if self.volumes.get(volume).is_some_and(|volume| volume.state == VolumeState::Deleting) {
            self.finish(id, Phase::Cancelled, Some("the volume is being deleted"));
            return Flow::Over;
        }
        self.does_not_serve(id, volume, target, kind)
    }

    /// The node that was granted a volume does not serve it.
    fn does_not_serve(
        &mut self,
        id: OperationId,
        volume: VolumeId,
        target: NodeId,
        kind: OperationKind,
    ) -> Flow {
        if !self.is_shared(volume) {
            // Its files are there and nowhere else.
            let state = self.liveness.state(target);
            self.blocked(id, Blocked::Node { node: target, state });
            self.waiting_for_room.insert(id);
            return Flow::Wait;
        }
        if kind == OperationKind::Failover {
            return self.fail_over_again(id, &format!("{target} did not serve it"));
        }
        self.head_lost(volume, contract::Trigger::Failure);
        self.waiting_for_room.insert(id);
        Flow::Wait
    }

    /// The next node; a grant that nobody serves under stays the head until it is replaced.
    fn fail_over_again(&mut self, id: OperationId, why: &str) -> Flow {
        self.end_reserved_lease(id);
        self.give_back(id);
        if let Some(operation) = self.operations.change(id) {
            (operation.source, operation.target) = (None, None);
            (operation.granted, operation.at) = (None, 0);
            operation.phase = Phase::Waiting;
            operation.tries = operation.tries.saturating_add(1);
            why.clone_into(&mut operation.why);
        }
        self.failovers.add(id);
        Flow::Over
    }

    fn grant_epoch(&mut self, id: OperationId, volume_id: VolumeId, target: NodeId) -> Flow {
        let Some(lease) = self.lease_at(volume_id, target) else {
            // A move has frozen its source: that goes on now, and not when there is room again.
            if matches!(self.operations.get(id).map(|one| &one.work), Some(Work::MoveNode { .. })) {
                self.fail(id, "the lease that it was to serve under was revoked");
                return Flow::Over;
            }
            // It was ended meanwhile: take another one.
            if let Some(operation) = self.operations.change(id) {
                operation.at = 0;
                operation.tries = operation.tries.saturating_add(1);
            }
            self.begin_step(id);
            self.drive.insert(id);
            return Flow::Over;
        };
        self.mark_volume(volume_id);
        self.index_volume(volume_id, false);
        let Some(volume) = self.volumes.change(volume_id) else { return Flow::Over };
        volume.epoch = volume.epoch.next();
        let (epoch, old) = (volume.epoch, volume.head);
        volume.head = Some(Head { node: target, worker: None, epoch, lease });
        if volume.standby == Some(target) {
            volume.standby = None;
        }
        let private_home = volume.home.is_some();
        if private_home {
            volume.home = Some(target);
        }
        self.index_volume(volume_id, true);
        self.mark_volume(volume_id);
        if let Some(old) = old.filter(|old| old.lease != lease) {
            self.end_lease(old.lease);
        }
        if let Some(lease) = self.leases.change(lease) {
            lease.epoch = epoch;
        }
        if let Some(operation) = self.operations.change(id) {
            operation.granted = Some(epoch);
        }
        let state = self.liveness.state(target);
        if let Some(operation) = self.operations.touch(id) {
            operation.blocked_on = Some(Blocked::Node { node: target, state });
        }
        Flow::Wait
    }

    /// A volume is served.
    fn serves(&mut self, id: VolumeId, target: NodeId) {
        let shared = self.is_shared(id);
        if let Some(volume) = self.volumes.change(id) {
            if volume.state != VolumeState::Deleting {
                volume.state = VolumeState::Serving;
            }
            volume.home = if shared { None } else { Some(target) };
        }
        self.find_standby(id);
    }

    /// The head takes a changed volume over.
    fn step_refresh(&mut self, id: OperationId) -> Flow {
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let (work, source, volume) = (operation.work.clone(), operation.source, operation.volume);
        let late = self.now() >= operation.step_ends_ms;
        let Some(node) = source else { return Flow::Next };
        let state = self.liveness.state(node);
        let head = self.volumes.get(volume).and_then(|volume| volume.head);
        if state == NodeState::Lost || late || head.is_none_or(|head| head.node != node) {
            // A head that is found later has the change from the beginning.
            let moved = matches!(work, Work::MoveWorker { .. });
            let why = format!("{node} does not serve it any more, or does not answer");
            self.finish(id, if moved { Phase::Failed } else { Phase::Done }, Some(&why));
            return Flow::Over;
        }
        let Some(after) = self.flights.get(&id).and_then(|flight| flight.after) else {
            if let Work::MoveWorker { worker } = work {
                let head = self.volumes.change(volume).and_then(|volume| volume.head.as_mut());
                if let Some(head) = head {
                    head.worker = Some(worker);
                }
            }
            self.mark_volume(volume);
            let after = self.version_now();
            self.flights.entry(id).or_default().after = Some(after);
            return Flow::Wait;
        };
        let runs = self.links.get(node).is_some_and(|link| link.running > after);
        let seen = self.links.seen(volume).filter(|seen| seen.node == node);
        let there = match work {
            Work::MoveWorker { worker } => seen.is_some_and(|seen| seen.worker == worker),
            _ => true,
        };
        if runs && there {
            return Flow::Next;
        }
        if let Some(operation) = self.operations.touch(id) {
            operation.blocked_on = Some(Blocked::Node { node, state });
        }
        Flow::Wait
    }

    /// Nobody serves the volume any more.
    fn step_withdraw(&mut self, id: OperationId) -> Flow {
        let Some(operation) = self.operations.get(id) else { return Flow::Over };
        let (source, volume_id) = (operation.source, operation.volume);
        let head = self.volumes.get(volume_id).and_then(|volume| volume.head);
        if let Some(head) = head {
            self.mark_volume(volume_id);
            self.index_volume(volume_id, false);
            if let Some(volume) = self.volumes.change(volume_id) {
                (volume.head, volume.standby) = (None, None);
            }
            self.end_lease(head.lease);
        }
        let Some(node) = source.or(head.map(|head| head.node)) else { return Flow::Next };
        let state = self.liveness.state(node);
        if state == NodeState::Lost {
            return Flow::Next;
        }
        let Some(after) = self.flights.get(&id).and_then(|flight| flight.after) else {
            self.mark(node);
            let after = self.version_now();
            self.flights.entry(id).or_default().after = Some(after);
            return Flow::Wait;
        };
        if self.links.get(node).is_some_and(|link| link.running > after) {
            return Flow::Next;
        }
        if let Some(operation) = self.operations.touch(id) {
            operation.blocked_on = Some(Blocked::Node { node, state });
        }
        Flow::Wait
    }
}
