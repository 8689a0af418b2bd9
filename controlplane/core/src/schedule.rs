//! What runs next (F1): the scheduling policy chooses among what could run, and every choice is checked again.
//!
//! An operation that waits is in one of three places. *Ready*: it may fit. *Parked* under the limit that was in its
//! way, until something is given back there. *Due*: a move whose time has come, or one that the policy passed over
//! for too long; it is started without being asked about, as soon as it fits. So a round costs what could run, not
//! what waits.
//!
//! Failovers are not here: they ask nobody.

use std::collections::{BTreeMap, BTreeSet};

use contract::{
    Blocked, Dim, NodeId, OperationId, OperationKind, Phase, PolicyKind, PolicyRef, Scope, Trigger, Usage,
    VolumeState, Work,
};
use verdict::scheduling::Candidate;
use verdict::{Accounts, Assignments, Question, Schedule, Tenants};

use crate::asks::Purpose;
use crate::ledger::Priority;
use crate::registry::member;
use crate::{Alarm, Core, Timer};

/// Ways of doing an operation that are offered.
const HANDLERS_MAX: usize = 3;
/// Operations looked at in a round for each one that may be offered.
const SCAN_FACTOR: usize = 4;
/// A policy that chose nothing is asked again after this long.
const CHOSE_NOTHING_MS: u64 = 100;
/// How often what waits for a node or for room is looked at again.
const RECHECK_MS: u64 = 1_000;

/// Where an operation comes from and where it goes, as far as it does.
type Way = (Option<NodeId>, Option<NodeId>);

/// What waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    ready: BTreeSet<OperationId>,
    due: BTreeSet<OperationId>,
    parked: BTreeMap<(Dim, Scope), BTreeSet<OperationId>>,
    parked_under: BTreeMap<OperationId, (Dim, Scope)>,
    /// When it first was offered and not chosen.
    passed_over_ms: BTreeMap<OperationId, u64>,
    asked: bool,
    next_round_ms: u64,
    rechecking: bool,
}

/// Where an operation that no limit holds waits to be looked at again.
const ELSEWHERE: (Dim, Scope) = (Dim::Operations, Scope::Fleet);

impl Queue {
    /// Removes an operation from wherever it waits.
    pub fn remove(&mut self, id: OperationId) {
        self.ready.remove(&id);
        self.due.remove(&id);
        self.passed_over_ms.remove(&id);
        if let Some(under) = self.parked_under.remove(&id) {
            member(&mut self.parked, &under, id, false);
        }
    }

    fn park(&mut self, id: OperationId, under: (Dim, Scope)) {
        self.ready.remove(&id);
        self.passed_over_ms.remove(&id);
        self.parked_under.insert(id, under);
        member(&mut self.parked, &under, id, true);
    }

    /// Something was given back there.
    pub fn unpark(&mut self, dim: Dim, scope: Scope) {
        for id in self.parked.remove(&(dim, scope)).unwrap_or_default() {
            self.parked_under.remove(&id);
            self.ready.insert(id);
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.ready.len() + self.parked_under.len() + self.due.len()
    }
}

impl Core {
    /// A new operation, or one that must begin anew, goes where it waits.
    pub(crate) fn admit(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        let state = self.volumes.get(operation.volume).map(|volume| volume.state);
        let goes = matches!(state, None | Some(VolumeState::Deleting));
        if goes && !matches!(operation.work, Work::Delete { .. }) {
            return self.finish(id, Phase::Cancelled, Some("the volume is being deleted"));
        }
        match operation.work {
            Work::Failover => self.failovers.add(id),
            Work::MoveNode { at_once: false } => self.plan(id),
            _ => {
                self.keep_deadline(id);
                // Until it is asked about, and for as long as nobody answers, that is what holds it.
                if let Some(operation) = self.operations.touch(id) {
                    let policy = PolicyKind::Scheduling;
                    operation.blocked_on = Some(Blocked::Policy { policy, why: String::new() });
                }
                self.queue.ready.insert(id);
            }
        }
    }

    /// A move whose time has come.
    pub(crate) fn make_due(&mut self, id: OperationId) {
        self.queue.remove(id);
        self.queue.due.insert(id);
    }

    pub(crate) fn recheck(&mut self) {
        self.queue.rechecking = false;
        self.queue.unpark(ELSEWHERE.0, ELSEWHERE.1);
        self.failovers.retry();
        self.plan_again();
        let waits: Vec<OperationId> = std::mem::take(&mut self.waiting_for_room).into_iter().collect();
        self.drive.extend(waits);
    }

    pub(crate) fn recheck_later(&mut self) {
        if !std::mem::replace(&mut self.queue.rechecking, true) {
            self.at(self.now().saturating_add(RECHECK_MS), Timer::Recheck);
        }
    }

    pub(crate) fn recheck_soon(&mut self) {
        self.at(self.now() + 1, Timer::Recheck);
    }

    /// Holds a round if one may be held and there is anything to decide. Says whether it led to work.
    pub(crate) fn round(&mut self) -> bool {
        for id in self.queue.due.clone() {
            // One that began may have had others plan anew.
            if !self.is_enough() && self.queue.due.contains(&id) {
                self.start_due(id);
            }
        }
        self.hold_round();
        !self.drive.is_empty()
    }

    fn hold_round(&mut self) {
        if self.queue.asked || self.queue.ready.is_empty() {
            return;
        }
        if self.now() < self.queue.next_round_ms {
            self.timers.insert((self.queue.next_round_ms, Timer::Round));
            return;
        }
        self.queue.next_round_ms = self.now().saturating_add(self.config.round_ms);
        self.take_starving();
        let (rows, question) = self.candidates();
        if rows.is_empty() {
            if !self.queue.ready.is_empty() {
                self.timers.insert((self.queue.next_round_ms, Timer::Round));
            }
            return;
        }
        self.queue.asked = true;
        self.ask(Purpose::Round(rows), Question::Schedule(question));
    }

    /// Starts what needs no decision any more; what does not fit stays due.
    fn start_due(&mut self, id: OperationId) {
        let mut ways = match self.ways(id) {
            Ok(ways) => ways,
            Err(blocked) => return self.blocked(id, blocked),
        };
        let Some((source, target)) = (!ways.is_empty()).then(|| ways.swap_remove(0)) else { return };
        let (why, by) = match self.operations.get(id) {
            Some(operation) if operation.plan.is_some() => (operation.why.clone(), operation.policy.clone()),
            _ => ("the policy passed it over for too long".to_owned(), PolicyRef::default()),
        };
        let why = match self.late_ms(id) {
            Some(late_ms) => format!("{why}; it began {late_ms} ms after its deadline"),
            None => why,
        };
        if let Err(blocked) = self.begin(id, source, target, self.now(), &why, &by) {
            self.blocked(id, blocked);
        }
    }

    fn take_starving(&mut self) {
        let now = self.now();
        let long = |since: &u64| now.saturating_sub(*since) >= self.config.starving_after_ms;
        let starving: Vec<OperationId> =
            self.queue.passed_over_ms.iter().filter(|(_, since)| long(since)).map(|(id, _)| *id).collect();
        for id in starving {
            if self.is_enough() {
                break;
            }
            self.alarm(Alarm::Starving(id));
            self.make_due(id);
            self.start_due(id);
        }
    }

    /// What could run now; what could not is parked under what is in its way.
    fn candidates(&mut self) -> (Vec<(OperationId, Option<NodeId>)>, Schedule) {
        let (mut rows, mut schedule) = (Vec::new(), Schedule::default());
        let mut accounts: BTreeMap<(Dim, Scope), u32> = BTreeMap::new();
        let mut tenants = BTreeSet::new();
        let max = self.config.candidates_max;
        let looked_at: Vec<OperationId> =
            self.queue.ready.iter().copied().take(max.saturating_mul(SCAN_FACTOR)).collect();
        for id in looked_at {
            if rows.len() >= max {
                break;
            }
            let ways = match self.ways(id) {
                Ok(ways) => ways,
                Err(blocked) => {
                    self.park(id, blocked);
                    continue;
                }
            };
            let mut held = None;
            let before = rows.len();
            for (source, target) in ways {
                let usages = self.usages(id, source, target);
                let works_at = self.begins_with_work_at(id, source, target);
                let fits = self.ledger.fits(&usages, Priority::Bulk);
                if let Err(blocked) =
                    fits.and_then(|()| works_at.map_or(Ok(()), |node| self.work_share(node).map(drop)))
                {
                    held = Some(blocked);
                    continue;
                }
                let needs = self.needs(&usages, &mut accounts, &mut schedule.accounts);
                let Some(operation) = self.operations.get(id) else { continue };
                let trigger = self.events.get(operation.event).map(|event| event.trigger);
                schedule.candidates.push(Candidate {
                    event: id.0,
                    op: kind_number(operation.work.kind()),
                    handler: target.or(source).map_or(0, |node| node.0),
                    tenant: operation.tenant.0,
                    trigger: trigger.map_or(u32::MAX, urgency),
                    registered_ms: operation.created_ms,
                    needs: &needs,
                });
                tenants.insert(operation.tenant);
                rows.push((id, target));
            }
            if let Some(blocked) = held.filter(|_| rows.len() == before) {
                self.park(id, blocked);
            }
        }
        schedule.tenants = self.shares(tenants.into_iter());
        (rows, schedule)
    }

    fn needs(
        &self,
        usages: &[Usage],
        rows: &mut BTreeMap<(Dim, Scope), u32>,
        accounts: &mut Accounts,
    ) -> Vec<(u32, u64)> {
        let limited = usages.iter().filter_map(|usage| {
            let limit = self.ledger.max(usage.dim, usage.scope)?;
            let row = *rows.entry((usage.dim, usage.scope)).or_insert_with(|| {
                accounts.in_use.push(self.ledger.used(usage.dim, usage.scope));
                accounts.limit.push(limit);
                accounts.limit.len() as u32 - 1
            });
            Some((row, usage.amount))
        });
        limited.collect()
    }

    fn shares(&self, tenants: impl Iterator<Item = contract::TenantId>) -> Tenants {
        let mut shares = Tenants::default();
        for id in tenants {
            let weight = self.tenants.get(id).map_or(1, |tenant| tenant.weight.max(1));
            shares.tenant.push(id.0);
            shares.weight.push(weight);
        }
        shares
    }

    /// The policy chose.
    pub(crate) fn assign(
        &mut self,
        rows: &[(OperationId, Option<NodeId>)],
        answer: &Assignments,
        by: &PolicyRef,
    ) {
        self.queue.asked = false;
        let mut chosen = 0;
        for (at, row) in answer.candidate.iter().enumerate() {
            // What is left is asked about again.
            if self.is_enough() {
                self.queue.next_round_ms = self.now() + 1;
                break;
            }
            let not_before = answer.not_before_ms.get(at).copied().unwrap_or(0);
            let row = rows.get(*row as usize).filter(|(id, _)| self.queue.ready.contains(id));
            let Some((id, target)) = row.copied() else {
                self.counters.refused += 1;
                continue;
            };
            match self.start_chosen(id, target, not_before, answer.reason(at), by) {
                Ok(true) => chosen += 1,
                // Leases are not in what the policy sees: those before it took what was left.
                Err(blocked @ Blocked::Capacity { .. }) => self.park(id, blocked),
                Ok(false) | Err(_) => self.counters.refused += 1,
            }
        }
        let now = self.now();
        for (id, _) in rows {
            if !self.queue.ready.contains(id) {
                continue;
            }
            self.queue.passed_over_ms.entry(*id).or_insert(now);
            if let Some(operation) = self.operations.touch(*id) {
                let (policy, why) = (PolicyKind::Scheduling, answer.why.clone());
                operation.blocked_on = Some(Blocked::Policy { policy, why });
            }
        }
        if chosen == 0 {
            self.queue.next_round_ms = now.saturating_add(CHOSE_NOTHING_MS);
        }
        self.timers.insert((self.queue.next_round_ms.max(now + 1), Timer::Round));
    }

    /// Starts an operation as the policy chose, or says that that is no way or what holds it: it must still fit.
    fn start_chosen(
        &mut self,
        id: OperationId,
        target: Option<NodeId>,
        not_before_ms: u64,
        why: &str,
        by: &PolicyRef,
    ) -> Result<bool, Blocked> {
        let Some((source, target)) = self.ways_to(id, target)? else { return Ok(false) };
        self.begin(id, source, target, not_before_ms, why, by).map(|()| true)
    }

    /// Counts an operation and lets it go, or says which limit is in the way.
    pub(crate) fn begin(
        &mut self,
        id: OperationId,
        source: Option<NodeId>,
        target: Option<NodeId>,
        not_before_ms: u64,
        why: &str,
        by: &PolicyRef,
    ) -> Result<(), Blocked> {
        let usages = self.usages(id, source, target);
        let Some(operation) = self.operations.get(id) else { return Ok(()) };
        let priority = Priority::of(operation.work.kind());
        let now = self.now();
        // The lease first: what waits for one holds nothing else meanwhile.
        let works_at = self.begins_with_work_at(id, source, target).filter(|_| not_before_ms <= now);
        self.ledger.fits(&usages, priority)?;
        let share = works_at.map(|node| self.work_share(node).map(|share| (node, share))).transpose()?;
        self.ledger.take(id, usages, priority)?;
        if let Some((node, share)) = share {
            self.grant_work(id, node, share);
        }
        self.queue.remove(id);
        let steps = self.steps_of(id, source, target);
        if let Some(operation) = self.operations.change(id) {
            operation.phase = Phase::Scheduled;
            (operation.source, operation.target) = (source, target);
            operation.not_before_ms = not_before_ms.max(now);
            operation.blocked_on = None;
            why.clone_into(&mut operation.why);
            operation.policy = by.clone();
            if operation.steps.is_empty() {
                operation.steps = steps;
            }
        }
        self.index_nodes_of(id, true);
        self.take_link(id);
        self.counters.scheduled += 1;
        self.drive.insert(id);
        Ok(())
    }

    /// Remembers what holds an operation up; not worth a write.
    pub(crate) fn blocked(&mut self, id: OperationId, blocked: Blocked) {
        if let Some(operation) = self.operations.touch(id) {
            operation.blocked_on = Some(blocked);
        }
        self.recheck_later();
    }

    fn park(&mut self, id: OperationId, blocked: Blocked) {
        let under = match blocked {
            Blocked::Limit { dim, scope, .. } => (dim, scope),
            _ => ELSEWHERE,
        };
        self.queue.park(id, under);
        self.blocked(id, blocked);
    }

    /// Ways of doing an operation now: (source, target). At most [`HANDLERS_MAX`].
    fn ways(&mut self, id: OperationId) -> Result<Vec<Way>, Blocked> {
        let (source, pinned) = self.source_of(id)?;
        let Some(operation) = self.operations.get(id) else { return Ok(Vec::new()) };
        let needs_target = matches!(
            operation.work.kind(),
            OperationKind::Create | OperationKind::Delete | OperationKind::Clone | OperationKind::MoveNode
        );
        if !needs_target {
            return Ok(vec![(source, None)]);
        }
        if let Some(target) = pinned {
            return self.can_be_target(id, source, target).map(|()| vec![(source, Some(target))]);
        }
        let mut targets = BTreeSet::new();
        for _ in 0..HANDLERS_MAX {
            targets.extend(self.choose_target(id, source));
        }
        if targets.is_empty() {
            return Err(self.no_target(id));
        }
        Ok(targets.into_iter().map(|target| (source, Some(target))).collect())
    }

    /// The one way that ends there, if it is still one.
    fn ways_to(&mut self, id: OperationId, target: Option<NodeId>) -> Result<Option<Way>, Blocked> {
        let (source, pinned) = self.source_of(id)?;
        let Some(node) = target else { return Ok(Some((source, None))) };
        if pinned.is_some_and(|pinned| pinned != node) {
            return Ok(None);
        }
        self.can_be_target(id, source, node).map(|()| Some((source, Some(node))))
    }
}

/// The number of a kind in [`verdict::Candidates`].
pub fn kind_number(kind: OperationKind) -> u32 {
    // INVARIANT: ALL has every kind.
    OperationKind::ALL.iter().position(|other| *other == kind).unwrap_or(0) as u32
}

fn urgency(trigger: Trigger) -> u32 {
    match trigger {
        Trigger::Failure => 0,
        Trigger::Threshold => 1,
        Trigger::Request => 2,
        Trigger::Routine => 3,
    }
}
