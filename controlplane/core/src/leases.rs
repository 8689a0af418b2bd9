//! Leases: granted, renewed, revoked, ended; and the weights by which producers are chosen (F6, F7).
//!
//! The lease of a volume or an operation is renewed by its node being heard; that of a consumer by itself. A lease that
//! expires makes its holder replaceable and no more (decision D11).

use std::collections::BTreeMap;

use contract::{
    Answer, Blocked, Class, Epoch, Grounds, Holder, Lease, LeaseId, LeaseState, Name, NodeId, NodeState,
    NodeStep, Observed, OperationId, OperationKind, PolicyRef, Refused, Resources, Revision, Step,
    ToNodeBody, Trigger, VolumeId, Work,
};
use verdict::{Leases, PPM, PickVictims, Question, UpdateWeights, Victims, Weights};

use crate::asks::Purpose;
use crate::registry::{member, next};
use crate::{Alarm, Core, Timer};

/// Background work is not begun with less than this part of what it would like.
const WORK_MIN_PPM: u64 = 250_000;

impl Core {
    fn grant(&mut self, mut lease: Lease) -> LeaseId {
        lease.id = LeaseId(next(&mut self.meta.last.lease));
        self.meta_is_dirty = true;
        let id = lease.id;
        self.counters.leases += 1;
        self.accounts.add(&lease);
        self.index_lease(&lease, true);
        if let Holder::Consumer(name) = &lease.holder {
            self.producers.count(lease.producer, name, true);
            self.renewals.insert(id, self.clock.now_ms);
            self.at(self.now().saturating_add(lease.ttl_ms), Timer::Lease(id));
        }
        self.leases.insert(id, lease);
        id
    }

    pub(crate) fn index_lease(&mut self, lease: &Lease, is: bool) {
        member(&mut self.index.leases_of, &lease.holder, lease.id, is);
        member(&mut self.index.leases_at, &lease.producer, lease.id, is);
        if lease.class == Class::Revocable {
            member(&mut self.index.revocable_at, &lease.producer, lease.id, is);
        }
    }

    fn ttl_of(&self, producer: NodeId) -> u64 {
        self.producers.get(producer).map_or(30_000, |producer| producer.ttl_ms)
    }

    /// The weight by which a producer is drawn, in words, and who decided on it.
    pub(crate) fn weight_of(&self, id: NodeId) -> (String, Option<PolicyRef>) {
        let Some(producer) = self.producers.get(id) else { return ("no weight".into(), None) };
        let weight = format!("a weight of {} ppm", producer.weight_ppm);
        match producer.grounds.as_deref() {
            None => (format!("{weight}, the mean for its capacity until one is decided on"), None),
            Some(Grounds { why, by }) if why.is_empty() => (weight, Some(by.clone())),
            Some(Grounds { why, by }) => (format!("{weight}: {why}"), Some(by.clone())),
        }
    }

    /// Reserves what a volume's head needs at a node.
    pub(crate) fn grant_head(&mut self, volume: VolumeId, producer: NodeId) -> Option<LeaseId> {
        let object = self.volumes.get(volume)?;
        let (class, resources, epoch) = (object.class, object.limits.sustained(), object.epoch.next());
        let (why, policy) = self.weight_of(producer);
        Some(self.grant(Lease {
            id: LeaseId(0),
            holder: Holder::Volume(volume),
            producer,
            resources,
            class,
            state: LeaseState::Active,
            epoch,
            ttl_ms: self.ttl_of(producer),
            granted_ms: self.now(),
            why: format!("{producer} has room and {why}"),
            policy,
        }))
    }

    /// A clone takes a place where one is free. Would it revoke others' work for it, two clones at one node took turns in
    /// revoking each other's copy, for ever.
    pub(crate) fn clone_has_room(&self, id: OperationId, node: NodeId) -> Result<(), Blocked> {
        let operation = self.operations.get(id).filter(|one| matches!(one.work, Work::Clone { .. }));
        let volume = operation.and_then(|operation| self.volumes.get(operation.volume));
        let Some(volume) = volume else { return Ok(()) };
        let (need, room) = (volume.limits.sustained(), self.accounts.node(node).free());
        if need.fits(room) { Ok(()) } else { Err(Blocked::Capacity { need, room }) }
    }

    /// The lease of a volume at a node.
    pub(crate) fn lease_at(&self, volume: VolumeId, node: NodeId) -> Option<LeaseId> {
        let leases = self.index.leases_of.get(&Holder::Volume(volume))?;
        let at = |id: &&LeaseId| {
            self.leases
                .get(**id)
                .is_some_and(|lease| lease.producer == node && lease.state == LeaseState::Active)
        };
        leases.iter().find(at).copied()
    }

    /// Gives back what was reserved for a next head that there will not be.
    pub(crate) fn end_reserved_lease(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        let takes_lease = operation.work.kind().takes_lease();
        let Some(target) = operation.target.filter(|_| takes_lease) else { return };
        let head = self.volumes.get(operation.volume).and_then(|volume| volume.head);
        if let Some(lease) = self.lease_at(operation.volume, target)
            && head.is_none_or(|head| head.lease != lease)
        {
            self.end_lease(lease);
        }
    }

    /// Whether a step works under a revocable lease.
    pub(crate) fn needs_work_lease(&self, id: OperationId, step: NodeStep) -> bool {
        match step {
            NodeStep::Scrub | NodeStep::Wipe => true,
            NodeStep::CopyBulk => {
                let kind = self.operations.get(id).map(|operation| operation.work.kind());
                kind == Some(OperationKind::Clone)
            }
            _ => false,
        }
    }

    pub(crate) fn has_work_lease(&self, id: OperationId) -> bool {
        let lease = self.operations.get(id).and_then(|operation| operation.lease);
        let lease = lease.and_then(|lease| self.leases.get(lease));
        lease.is_some_and(|lease| lease.state == LeaseState::Active)
    }

    /// What one piece of background work gets of a node: as much as its rate needs, and the same share of its
    /// operations. What is left of a node may be less; it is used slowly then, but not for next to nothing.
    pub(crate) fn work_share(&self, producer: NodeId) -> Result<Resources, Blocked> {
        let account = self.accounts.node(producer);
        let (capacity, free) = (account.capacity, account.free());
        let rate = self.rate_of(Some(producer));
        let bytes_per_s = rate.min(capacity.bytes_per_s);
        let iops = part(
            capacity.iops,
            rate,
            if capacity.bytes_per_s == 0 { 8 * rate } else { capacity.bytes_per_s },
        );
        let copy_slots = capacity.copy_slots.min(1);
        let whole = Resources { iops, bytes_per_s, copy_slots };
        let all = u64::from(PPM);
        let left = |free: u64, whole: u64| if whole == 0 { all } else { part(all, free.min(whole), whole) };
        let ppm = left(free.iops, iops).min(left(free.bytes_per_s, bytes_per_s));
        let share = |of: u64| part(of, ppm, all);
        let need = Resources { iops: share(iops), bytes_per_s: share(bytes_per_s), copy_slots };
        if ppm < WORK_MIN_PPM || !self.accounts.fits(producer, Class::Revocable, need, false) {
            return Err(Blocked::Capacity { need: whole, room: free });
        }
        Ok(need)
    }

    /// The node at which an operation's first step works under a revocable lease, if it does. A clone reserves first:
    /// making room for its head could cost it the lease that it copies under.
    pub(crate) fn begins_with_work_at(
        &self,
        id: OperationId,
        source: Option<NodeId>,
        target: Option<NodeId>,
    ) -> Option<NodeId> {
        let operation = self.operations.get(id)?;
        let left = operation.steps.get(usize::from(operation.at)..).unwrap_or_default();
        match operation.work {
            Work::Scrub => source,
            Work::Delete { wipe: true } => {
                let wipes = operation.steps.is_empty() || left.contains(&Step::Target(NodeStep::Wipe));
                target.filter(|_| wipes)
            }
            _ => None,
        }
    }

    /// The rate of a step: what its lease has, if it works under one.
    pub(crate) fn work_rate(&self, id: OperationId, node: NodeId) -> u64 {
        let lease = self.operations.get(id).and_then(|operation| operation.lease);
        let leased =
            lease.and_then(|lease| self.leases.get(lease)).map_or(0, |lease| lease.resources.bytes_per_s);
        if leased > 0 { leased } else { self.rate_of(Some(node)) }
    }

    /// Lets an operation use what is kept for contingencies.
    pub(crate) fn grant_work(&mut self, id: OperationId, producer: NodeId, share: Resources) {
        let lease = self.grant(Lease {
            id: LeaseId(0),
            holder: Holder::Operation(id),
            producer,
            resources: share,
            class: Class::Revocable,
            state: LeaseState::Active,
            epoch: Epoch(0),
            ttl_ms: self.ttl_of(producer),
            granted_ms: self.now(),
            why: "what is kept for contingencies is free".into(),
            policy: None,
        });
        if let Some(operation) = self.operations.change(id) {
            operation.lease = Some(lease);
        }
    }

    pub(crate) fn end_work_lease(&mut self, id: OperationId) {
        let lease = self.operations.get(id).and_then(|operation| operation.lease);
        if let Some(lease) = lease {
            if let Some(operation) = self.operations.change(id) {
                operation.lease = None;
            }
            self.end_lease(lease);
        }
    }

    /// A lease is over; who waits for room there is looked at again.
    pub(crate) fn end_lease(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.remove(id) else { return };
        self.accounts.remove(&lease);
        self.index_lease(&lease, false);
        self.renewals.remove(&id);
        if let Holder::Consumer(name) = &lease.holder {
            self.producers.count(lease.producer, name, false);
        }
        let there = self.index.operations_at.get(&lease.producer);
        self.drive.extend(there.into_iter().flatten().copied());
        self.failovers.retry();
    }

    /// Revokes what firm leases need at a node; the leasing policy picks whom it costs least.
    pub(crate) fn make_room(&mut self, node: NodeId) {
        let need = self.accounts.node(node).deficit();
        if need.is_none() || !self.making_room.insert(node) {
            return;
        }
        let mut rows = Vec::new();
        let mut leases = Leases::default();
        for id in self.index.revocable_at.get(&node).into_iter().flatten() {
            let Some(lease) = self.leases.get(*id) else { continue };
            if lease.state != LeaseState::Active {
                continue;
            }
            rows.push(*id);
            leases.lease.push(id.0);
            leases.producer.push(node.0);
            leases.holder.push(match &lease.holder {
                Holder::Volume(id) => id.0,
                Holder::Operation(id) => id.0,
                Holder::Consumer(_) => 0,
            });
            leases.granted_ms.push(lease.granted_ms);
            leases.iops.push(lease.resources.iops);
            leases.bytes_per_s.push(lease.resources.bytes_per_s);
            leases.copy_slots.push(lease.resources.copy_slots);
        }
        let need = verdict::Resources {
            iops: need.iops,
            bytes_per_s: need.bytes_per_s,
            copy_slots: need.copy_slots,
        };
        let question = PickVictims { need, leases, grace_max_ms: self.config.grace_max_ms };
        self.ask(Purpose::Victims(node, rows), Question::PickVictims(question));
    }

    pub(crate) fn take_victims(&mut self, node: NodeId, rows: &[LeaseId], answer: &Victims, by: &PolicyRef) {
        self.making_room.remove(&node);
        let grace = answer.grace_ms.min(self.config.grace_max_ms).into();
        for row in &answer.lease {
            let victim = rows.get(*row as usize).copied();
            // Room that came meanwhile saves who is next.
            if self.accounts.node(node).deficit().is_none() || self.is_enough() {
                break;
            }
            match victim {
                Some(victim) => self.revoke(victim, grace, &answer.why, by),
                None => self.counters.refused += 1,
            }
        }
        // Those who were picked may be gone, or others came since.
        if !self.accounts.node(node).deficit().is_none() {
            self.recheck_soon();
        }
        let there = self.index.operations_at.get(&node);
        self.drive.extend(there.into_iter().flatten().copied());
    }

    fn revoke(&mut self, id: LeaseId, grace_ms: u64, why: &str, by: &PolicyRef) {
        let ends_ms = self.now().saturating_add(grace_ms);
        let Some(lease) = self.leases.get(id) else { return };
        if lease.class != Class::Revocable || lease.state != LeaseState::Active {
            self.counters.refused += 1;
            return;
        }
        let before = lease.clone();
        self.accounts.remove(&before);
        let Some(lease) = self.leases.change(id) else { return };
        lease.state = LeaseState::Revoked { ends_ms };
        lease.why = format!("revoked by {by}: {why}");
        lease.policy = Some(by.clone());
        let after = lease.clone();
        self.accounts.add(&after);
        self.counters.revoked += 1;
        if let Holder::Operation(operation) = before.holder
            && let Some(operation) = self.operations.change(operation)
        {
            let node = before.producer;
            operation.why = format!("{id} was revoked by {by}, firm leases need the room at {node}: {why}");
            operation.policy = by.clone();
        }
        self.at(ends_ms, Timer::Lease(id));
        self.tell(after.producer, ToNodeBody::Revoke { lease: id, grace_ms });
        match after.holder {
            Holder::Volume(volume) => self.lose_best_effort(volume, id),
            Holder::Operation(operation) => {
                self.drive.insert(operation);
            }
            Holder::Consumer(_) => {}
        }
    }

    /// A best-effort volume must go; it comes back where there is room.
    fn lose_best_effort(&mut self, id: VolumeId, lease: LeaseId) {
        let head = self.volumes.get(id).and_then(|volume| volume.head);
        if head.is_none_or(|head| head.lease != lease) {
            return;
        }
        self.mark_volume(id);
        self.index_volume(id, false);
        if let Some(volume) = self.volumes.change(id) {
            (volume.head, volume.standby) = (None, None);
        }
        self.take_back_moves(id, "the volume lost its lease meanwhile");
        self.head_lost(id, Trigger::Routine);
    }

    /// A node says that nobody works under a lease any more.
    pub(crate) fn released(&mut self, node: NodeId, id: LeaseId) {
        let revoked = self
            .leases
            .get(id)
            .is_some_and(|lease| lease.producer == node && matches!(lease.state, LeaseState::Revoked { .. }));
        if revoked {
            self.end_lease(id);
        }
    }

    /// How long the holders of revoked leases at a node still have.
    pub(crate) fn grace_left_ms(&self, node: NodeId) -> u64 {
        let leases = self.index.revocable_at.get(&node).into_iter().flatten();
        let ends = leases.filter_map(|id| match self.leases.get(*id)?.state {
            LeaseState::Revoked { ends_ms } => Some(ends_ms.saturating_sub(self.now())),
            LeaseState::Active => None,
        });
        ends.max().unwrap_or(0)
    }

    /// When a lease was last renewed.
    pub(crate) fn renewed_ms(&self, lease: &Lease) -> u64 {
        match lease.holder {
            Holder::Consumer(_) => self.renewals.get(&lease.id).copied().unwrap_or(lease.granted_ms),
            _ => self.now().saturating_sub(self.liveness.silent_ms(lease.producer, self.now())),
        }
    }

    /// A lease expires, or the grace of a revoked one is over: by force then.
    pub(crate) fn lease_is_due(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get(id) else { return };
        match lease.state {
            LeaseState::Revoked { ends_ms } if ends_ms <= self.now() => {
                let (producer, holder) = (lease.producer, lease.holder.clone());
                self.tell(producer, ToNodeBody::Revoke { lease: id, grace_ms: 0 });
                self.end_lease(id);
                if let Holder::Operation(operation) = holder {
                    if let Some(operation) = self.operations.change(operation) {
                        operation.lease = None;
                    }
                    self.drive.insert(operation);
                }
            }
            LeaseState::Revoked { ends_ms } => self.at(ends_ms, Timer::Lease(id)),
            LeaseState::Active if matches!(lease.holder, Holder::Consumer(_)) => {
                let ends = self.renewed_ms(lease).saturating_add(lease.ttl_ms);
                if ends <= self.now() {
                    self.counters.expired += 1;
                    self.end_lease(id);
                } else {
                    self.at(ends, Timer::Lease(id));
                }
            }
            LeaseState::Active => {}
        }
    }

    fn can_lend(&self, node: NodeId, need: Resources) -> bool {
        self.liveness.state(node) == NodeState::Alive
            && self.nodes.get(node).is_some_and(|node| !node.cordoned)
            && self.accounts.fits(node, Class::Revocable, need, false)
    }

    /// What a consumer saw counts if it has a lease of that producer.
    fn hear_consumer(&mut self, consumer: &Name, observed: &[Observed]) {
        let holder = Holder::Consumer(consumer.clone());
        let now = self.now();
        for seen in observed {
            let mut leases = self.index.leases_of.get(&holder).into_iter().flatten();
            let uses =
                |id: &LeaseId| self.leases.get(*id).is_some_and(|lease| lease.producer == seen.producer);
            if leases.any(uses) {
                self.producers.observed(consumer, seen, now);
            } else {
                self.counters.votes_dropped += 1;
            }
        }
    }

    pub(crate) fn acquire(
        &mut self,
        consumer: Name,
        resources: Resources,
        observed: &[Observed],
    ) -> Result<Answer, Refused> {
        self.hear_consumer(&consumer, observed);
        if self.leases.len() >= self.config.limits.leases {
            let max = self.config.limits.leases as u64;
            return Err(Refused::TooMany { what: "leases".into(), max });
        }
        let mut random = self.random.clone();
        let able = |node| self.can_lend(node, resources);
        let load = |node| self.producers.get(node).map_or(0, |producer| producer.consumers.into());
        let producer = self.producers.choose(None, &mut random, able, load);
        self.random = random;
        let Some(producer) = producer else {
            return Err(Refused::NoRoom { need: resources, retry_after_ms: self.config.weights_ms });
        };
        let (why, policy) = self.weight_of(producer);
        let id = self.grant(Lease {
            id: LeaseId(0),
            holder: Holder::Consumer(consumer),
            producer,
            resources,
            class: Class::Revocable,
            state: LeaseState::Active,
            epoch: Epoch(0),
            ttl_ms: self.ttl_of(producer),
            granted_ms: self.now(),
            why: format!("drawn by {why}"),
            policy,
        });
        Ok(self.lease_answer(id))
    }

    fn lease_answer(&self, id: LeaseId) -> Answer {
        let lease = self.leases.get(id).cloned();
        Answer {
            remaining_ms: self.lease_remaining_ms(id),
            revision: Revision(1),
            lease,
            ..Answer::default()
        }
    }

    fn held_by(&self, id: LeaseId, consumer: &Name) -> Result<&Lease, Refused> {
        let lease = self.leases.get(id).ok_or_else(|| Refused::NotFound(id.to_string()))?;
        match &lease.holder {
            Holder::Consumer(name) if name == consumer => Ok(lease),
            holder => Err(Refused::Conflict(format!(
                "{id} is held by {holder}; `tidegate lease list` shows whose others are"
            ))),
        }
    }

    pub(crate) fn renew(
        &mut self,
        id: LeaseId,
        consumer: &Name,
        observed: &[Observed],
    ) -> Result<Answer, Refused> {
        self.hear_consumer(consumer, observed);
        let lease = self.held_by(id, consumer)?;
        if let LeaseState::Revoked { .. } = lease.state {
            return Err(Refused::Conflict(format!("{id} was revoked; take another one: {}", lease.why)));
        }
        let (producer, resources) = (lease.producer, lease.resources);
        let mut random = self.random.clone();
        let moves = !self.can_keep(producer) || self.producers.overfull(producer, &mut random);
        self.random = random;
        if moves && let Ok(answer) = self.acquire(consumer.clone(), resources, &[]) {
            self.end_lease(id);
            return Ok(answer);
        }
        self.renewals.insert(id, self.clock.now_ms);
        Ok(self.lease_answer(id))
    }

    fn can_keep(&self, node: NodeId) -> bool {
        self.liveness.state(node) != NodeState::Lost
            && self.nodes.get(node).is_some_and(|node| !node.cordoned)
    }

    pub(crate) fn release(&mut self, id: LeaseId, consumer: &Name) -> Result<Answer, Refused> {
        self.held_by(id, consumer)?;
        self.end_lease(id);
        Ok(Answer::default())
    }

    pub(crate) fn update_weights(&mut self) {
        self.at(self.now().saturating_add(self.config.weights_ms), Timer::Weights);
        let now = self.now();
        let states: BTreeMap<NodeId, bool> = self
            .nodes
            .iter()
            .map(|(id, node)| (id, self.liveness.state(id) == NodeState::Alive && !node.cordoned))
            .collect();
        let views = self.producers.views(now, |id| states.get(&id).copied().unwrap_or(false));
        if views.is_empty() {
            return;
        }
        let ids: Vec<NodeId> = views.producer.iter().map(|id| NodeId(*id)).collect();
        let question = UpdateWeights { producers: views };
        self.ask(Purpose::Weights(ids), Question::UpdateWeights(question));
    }

    pub(crate) fn take_weights(&mut self, ids: &[NodeId], answer: &Weights, by: PolicyRef) {
        if !self.producers.take(ids, answer, by, self.config.ttl_max_ms) {
            self.alarm(Alarm::NoWeights);
        }
    }
}

/// The part `of * share / whole`.
fn part(of: u64, share: u64, whole: u64) -> u64 {
    (u128::from(of) * u128::from(share) / u128::from(whole.max(1))) as u64
}
