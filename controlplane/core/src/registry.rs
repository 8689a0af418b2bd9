//! What happened, durably, and the indexes over all that is kept (F1.a, F1.b).
//!
//! An event that is registered again while its work is not over is folded into the first one. A condition that was
//! just dealt with is not acted on again before the node can know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use contract::{
    Command, Event, EventId, EventKind, EventStatus, Holder, LeaseId, Name, NodeId, Operation, OperationId,
    Phase, PolicyRef, Progress, Refused, Revision, Subject, TenantId, Trigger, VolumeId, Work,
};

use crate::record::{Key, Record, Remembered, Write};
use contract::Answer;

use crate::{Alarm, Core};

/// Where things are found without looking at all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub tenants: BTreeMap<Name, TenantId>,
    pub nodes: BTreeMap<Name, NodeId>,
    pub volumes: BTreeMap<Name, VolumeId>,
    /// Whether a pool is shared.
    pub pools: BTreeMap<Name, bool>,
    /// Volumes that a node serves or stands by for.
    pub volumes_at: BTreeMap<NodeId, BTreeSet<VolumeId>>,
    pub volumes_of: BTreeMap<TenantId, u64>,
    /// Operations that count, by the nodes that they use.
    pub operations_at: BTreeMap<NodeId, BTreeSet<OperationId>>,
    /// Operations that are not over, by volume.
    pub operations_of: BTreeMap<VolumeId, BTreeSet<OperationId>>,
    pub leases_of: BTreeMap<Holder, BTreeSet<LeaseId>>,
    pub leases_at: BTreeMap<NodeId, BTreeSet<LeaseId>>,
    pub revocable_at: BTreeMap<NodeId, BTreeSet<LeaseId>>,
    pub open_events: BTreeMap<(EventKind, Subject), EventId>,
    /// What was dealt with, and when.
    pub cooling: BTreeMap<(EventKind, Subject), u64>,
    /// What is over, the oldest first.
    pub over: VecDeque<(EventId, OperationId)>,
    pub operations_open: usize,
}

/// Adds to or removes from a set in a map; empty sets are not kept.
pub(crate) fn member<K: Ord + Clone, V: Ord>(
    map: &mut BTreeMap<K, BTreeSet<V>>,
    key: &K,
    value: V,
    is: bool,
) {
    if is {
        map.entry(key.clone()).or_default().insert(value);
    } else if let Some(set) = map.get_mut(key) {
        set.remove(&value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

/// Answers under idempotency keys; the oldest are forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    by_number: BTreeMap<u64, Remembered>,
    by_key: BTreeMap<String, u64>,
}

impl Answers {
    pub fn load(&mut self, remembered: Remembered) {
        self.by_key.insert(remembered.key.clone(), remembered.number);
        self.by_number.insert(remembered.number, remembered);
    }

    /// What was answered under a key, or that it was for something else.
    pub fn find(&self, key: &str, command: &Command) -> Option<Result<Answer, Refused>> {
        let remembered = self.by_number.get(self.by_key.get(key)?)?;
        Some(if remembered.command == *command { remembered.result.clone() } else { Err(Refused::KeyReused) })
    }

    /// Remembers; says what to write.
    pub fn remember(&mut self, remembered: Remembered, max: usize, writes: &mut Vec<Write>) {
        let record = Record::Answer(Box::new(remembered.clone()));
        writes.push(Write { key: Key::Answer(remembered.number), record: Some(record) });
        self.load(remembered);
        while self.by_number.len() > max {
            let Some((number, oldest)) = self.by_number.pop_first() else { break };
            self.by_key.remove(&oldest.key);
            writes.push(Write { key: Key::Answer(number), record: None });
        }
    }
}

/// An event to register, with the work that it leads to.
pub(crate) struct Registration {
    pub kind: EventKind,
    pub volume: VolumeId,
    pub trigger: Trigger,
    pub work: Work,
    pub target: Option<NodeId>,
    pub deadline_ms: Option<u64>,
}

impl Core {
    /// Registers an event, or folds it into one that is open and leads to the same work.
    pub(crate) fn register(&mut self, what: Registration) -> Result<(EventId, OperationId), Refused> {
        let subject = Subject::Volume(what.volume);
        if let Some(found) = self.fold(&what, subject)? {
            return Ok(found);
        }
        let max = self.config.limits.operations;
        if self.index.operations_open >= max && what.work != Work::Failover {
            return Err(Refused::TooMany { what: "operations under way".into(), max: max as u64 });
        }
        let tenant = self.volumes.get(what.volume).map_or(TenantId(0), |volume| volume.tenant);
        let now = self.now();
        let event_id = EventId(next(&mut self.meta.last.event));
        let id = OperationId(next(&mut self.meta.last.operation));
        self.meta_is_dirty = true;
        self.counters.events += 1;
        self.events.insert(
            event_id,
            Event {
                id: event_id,
                kind: what.kind,
                subject,
                trigger: what.trigger,
                registered_ms: now,
                folded: 0,
                status: EventStatus::Open,
                operation: Some(id),
            },
        );
        self.operations.insert(
            id,
            Operation {
                id,
                event: event_id,
                work: what.work,
                volume: what.volume,
                tenant,
                source: None,
                target: what.target,
                pinned: what.target.is_some(),
                steps: Vec::new(),
                at: 0,
                tries: 0,
                failures: 0,
                phase: Phase::Waiting,
                progress: Progress::default(),
                blocked_on: None,
                created_ms: now,
                step_began_ms: now,
                step_ends_ms: now,
                not_before_ms: now,
                deadline_ms: what.deadline_ms.map(|within| now.saturating_add(within)),
                plan: None,
                profile: None,
                granted: None,
                lease: None,
                why: String::new(),
                policy: PolicyRef::default(),
                revision: Revision(0),
            },
        );
        self.index.open_events.insert((what.kind, subject), event_id);
        self.index_open(id, true);
        self.admit(id);
        Ok((event_id, id))
    }

    fn fold(
        &mut self,
        what: &Registration,
        subject: Subject,
    ) -> Result<Option<(EventId, OperationId)>, Refused> {
        let Some(&open) = self.index.open_events.get(&(what.kind, subject)) else { return Ok(None) };
        let Some((id, work)) = self
            .events
            .get(open)
            .and_then(|event| event.operation)
            .and_then(|id| Some((id, self.operations.get(id)?.work.clone())))
        else {
            return Ok(None);
        };
        if work != what.work {
            let kind = work.kind();
            return Err(Refused::Conflict(format!(
                "{id} ({kind}) is under way there; wait until it is over"
            )));
        }
        // Not worth a write for each: conditions are said in every report.
        if let Some(event) = self.events.touch(open) {
            event.folded = event.folded.saturating_add(1);
        }
        self.counters.folded += 1;
        Ok(Some((open, id)))
    }

    /// Counts an operation as open, or no more.
    pub(crate) fn index_open(&mut self, id: OperationId, is: bool) {
        let Some(operation) = self.operations.get(id) else { return };
        member(&mut self.index.operations_of, &operation.volume, id, is);
        if let Work::Clone { from } = operation.work {
            member(&mut self.index.operations_of, &from, id, is);
        }
        let open = self.index.operations_open;
        self.index.operations_open = if is { open + 1 } else { open.saturating_sub(1) };
    }

    /// Closes the event of an operation that is over, and forgets the oldest ones that are.
    pub(crate) fn close_event(&mut self, id: OperationId, phase: Phase) {
        let Some(event_id) = self.operations.get(id).map(|operation| operation.event) else { return };
        let now = self.now();
        if let Some(event) = self.events.change(event_id) {
            event.status = if phase == Phase::Done { EventStatus::Resolved } else { EventStatus::Failed };
            let key = (event.kind, event.subject);
            self.index.open_events.remove(&key);
            self.index.cooling.insert(key, now);
        }
        if self.index.cooling.len() > 4 * self.config.limits.history {
            let cooldown = self.config.cooldown_ms;
            self.index.cooling.retain(|_, at| now.saturating_sub(*at) < cooldown);
        }
        self.index.over.push_back((event_id, id));
        while self.index.over.len() > self.config.limits.history {
            let Some((event, operation)) = self.index.over.pop_front() else { break };
            self.events.remove(event);
            self.operations.remove(operation);
        }
    }

    /// A node sees something that should be dealt with.
    pub(crate) fn condition(&mut self, kind: EventKind, volume: VolumeId, trigger: Trigger) {
        let key = (kind, Subject::Volume(volume));
        let cooldown = self.config.cooldown_ms;
        if self.index.cooling.get(&key).is_some_and(|at| self.now().saturating_sub(*at) < cooldown) {
            return;
        }
        let Some(work) = self.work_for(kind, volume) else { return };
        let what = Registration { kind, volume, trigger, work, target: None, deadline_ms: None };
        if let Err(why) = self.register(what) {
            let operation = self.index.operations_of.get(&volume).and_then(|set| set.first().copied());
            if let Some(operation) = operation.filter(|_| !matches!(why, Refused::Conflict(_))) {
                self.alarm(Alarm::GaveUp { operation, why: why.to_string() });
            }
        }
    }

    /// The work that an event leads to; none if there is nothing to be done.
    fn work_for(&self, kind: EventKind, volume: VolumeId) -> Option<Work> {
        self.volumes.get(volume)?;
        match kind {
            EventKind::HeadLost => Some(Work::Failover),
            EventKind::SpaceLow => Some(Work::Expand),
            EventKind::Damaged => Some(Work::Scrub),
            EventKind::NodeHot => Some(Work::MoveNode { at_once: false }),
            EventKind::WorkerHot => self.other_worker(volume).map(|worker| Work::MoveWorker { worker }),
            EventKind::Requested(_) => None,
        }
    }

    /// The worker of the head's node with the fewest of its volumes.
    fn other_worker(&self, volume: VolumeId) -> Option<u16> {
        let head = self.volumes.get(volume)?.head?;
        let workers = self.nodes.get(head.node)?.info.workers;
        let mut load = vec![0_u32; usize::from(workers)];
        for other in self.index.volumes_at.get(&head.node)? {
            let worker = self.links.seen(*other).filter(|seen| seen.node == head.node);
            if let Some(count) = worker.and_then(|seen| load.get_mut(usize::from(seen.worker))) {
                *count += 1;
            }
        }
        let is = self.links.seen(volume).map(|seen| seen.worker);
        let others = (0..workers).filter(|worker| Some(*worker) != is);
        others.min_by_key(|worker| load[usize::from(*worker)])
    }
}

/// The next id of a sort.
pub(crate) fn next(last: &mut u64) -> u64 {
    *last += 1;
    *last
}
