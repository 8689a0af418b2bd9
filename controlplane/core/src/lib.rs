//! The control plane as a machine: events in, effects out.
//!
//! [`Core::step`] takes the time and one [`Input`], and gives [`Effects`]: writes for the store, messages for nodes,
//! answers for people, questions for policies. It has no clock, thread or socket, and draws all randomness from
//! its seed, so the same inputs give the same effects: it can be simulated, and replayed from a log.
//!
//! The way of an operation, forward through the files:
//!
//! 1. [`commands`] (somebody asks; of limits, [`limits`]) or [`nodes`] (a node says what it sees) registers an event in [`registry`]: durable,
//!    duplicates folded. Each event leads to one operation, which waits.
//! 2. [`schedule`] offers those that could run to the scheduling policy through [`asks`], and checks every assignment
//!    again against the [`ledger`], which counts what runs and what is scheduled. Moves wait for the time that
//!    [`migrate`] found with the migration policy. Failovers wait for nobody ([`failover`]).
//! 3. [`operations`] walks it through its steps ([`steps`]): leases from [`leases`] over the accounts in [`lease`] and the
//!    weights in [`producers`]; instructions to nodes; grants by epoch; snapshots from [`publish`].
//! 4. [`record`] has each changed object written whole. [`recover`] reads them all and goes on where it was.
//!
//! [`liveness`] says which nodes are there, [`explain`] why anything waits.
//!
//! Invariants: a grant (volume, epoch) is given once; what the ledger counts stays within the limits; firm leases
//! stay within capacity less contingency; whatever a policy answers, these hold, and it is asked again or done
//! without. Cost of a step: what it is about, never all volumes.

#![forbid(unsafe_code)]

pub mod asks;
mod commands;
pub mod config;
pub mod explain;
mod failover;
mod history;
pub mod io;
pub mod lease;
mod leases;
pub mod ledger;
mod limits;
pub mod liveness;
mod migrate;
mod nodes;
mod operations;
pub mod producers;
mod publish;
pub mod random;
pub mod record;
mod recover;
mod registry;
mod schedule;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use contract::{
    Event, EventId, Lease, LeaseId, Limit, Node, NodeId, Operation, OperationId, Tenant, TenantId, Volume,
    VolumeId,
};

pub use config::{Config, Limits};
pub use history::PERIOD_MAX_MS;
pub use io::{Alarm, Ask, Counters, Effects, Input, Reply};
pub use record::{Key, Meta, Record, Write};

use asks::Asks;
use failover::Failovers;
use history::Histories;
use lease::Accounts;
use ledger::Ledger;
use liveness::Liveness;
use migrate::Plans;
use nodes::Links;
use operations::Flight;
use producers::Producers;
use publish::Marked;
use random::Random;
use record::Table;
use registry::{Answers, Index};
use schedule::Queue;

/// Writes of one step, at most: what etcd takes in one transaction, less the shell's record of who writes.
pub const WRITES_MAX: usize = 127;

/// Changed objects after which a step leaves the rest of its work to the next one. What one piece of work changes
/// beyond that stays well below [`WRITES_MAX`].
const WRITES_ENOUGH: usize = 64;

/// The control plane.
#[derive(Debug)]
pub struct Core {
    config: Config,
    clock: Clock,
    random: Random,
    meta: Meta,
    meta_is_dirty: bool,

    tenants: Table<TenantId, Tenant>,
    nodes: Table<NodeId, Node>,
    volumes: Table<VolumeId, Volume>,
    events: Table<EventId, Event>,
    operations: Table<OperationId, Operation>,
    leases: Table<LeaseId, Lease>,
    limits: BTreeMap<String, Limit>,
    answers: Answers,

    index: Index,
    ledger: Ledger,
    accounts: Accounts,
    producers: Producers,
    liveness: Liveness,
    histories: Histories,
    links: Links,
    queue: Queue,
    failovers: Failovers,
    plans: Plans,
    asks: Asks,
    flights: BTreeMap<OperationId, Flight>,
    /// Operations to look at before the step ends.
    drive: BTreeSet<OperationId>,
    /// Volumes whose node was lost or came back.
    unsettled: BTreeSet<VolumeId>,
    /// Volumes for which nobody could stand by.
    unguarded: BTreeSet<VolumeId>,
    /// Leases of consumers whose producer was lost.
    orphaned: BTreeSet<LeaseId>,
    /// Operations whose step waits for room or for a node.
    waiting_for_room: BTreeSet<OperationId>,
    /// Nodes whose snapshot is to be sent.
    marked: Marked,
    timers: BTreeSet<(u64, Timer)>,
    /// When [`Timer::Judge`] falls due next.
    judging_ms: Option<u64>,
    /// Nodes for which victims are being picked.
    making_room: BTreeSet<NodeId>,
    /// When leases of consumers were renewed.
    renewals: BTreeMap<LeaseId, u64>,

    out: Effects,
    counters: Counters,
}

/// What falls due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// An operation may go on, or has taken too long.
    Operation(OperationId),
    /// A lease expires, or its grace is over.
    Lease(LeaseId),
    /// An answer is late.
    Ask(u64),
    /// Somebody may be lost.
    Judge,
    /// Weights are decided on.
    Weights,
    /// A round of scheduling may be held.
    Round,
    /// What waits for room or for a node is looked at again.
    Recheck,
    /// A snapshot that was held back may go.
    Publish,
}

/// Milliseconds that only go forward, and that stand still while the control plane is down.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    now_ms: u64,
    /// What the caller's clock showed at the latest step.
    caller_ms: Option<u64>,
}

impl Clock {
    /// Returns how long it was since the last step.
    fn advance(&mut self, caller_ms: u64) -> u64 {
        let passed = self.caller_ms.map_or(0, |last| caller_ms.saturating_sub(last));
        self.caller_ms = Some(caller_ms.max(self.caller_ms.unwrap_or(0)));
        self.now_ms = self.now_ms.saturating_add(passed);
        passed
    }
}

impl Core {
    /// One step: `now_ms` is any clock of the caller that does not go back while the process lives.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Effects {
        self.counters.steps += 1;
        let passed = self.clock.advance(now_ms);
        if passed > self.config.watcher_gap_ms {
            self.counters.late_watches += 1;
            self.liveness.was_away(self.now(), &self.config);
        }
        match input {
            Input::Tick => {}
            Input::Node { session, message } => self.node_said(session, message),
            Input::Closed { session } => self.links.closed(session),
            Input::Request { token, request } => {
                let result = self.request(request);
                self.out.replies.push(Reply { token, result });
            }
            Input::Decided { ask, decided } => self.answered(ask, decided),
        }
        self.work();
        self.publish();
        self.flush();
        let mut out = std::mem::take(&mut self.out);
        // The watcher is never away for long without knowing it.
        let idle_ms = (self.config.watcher_gap_ms / 2).max(1);
        let next = if self.has_more() { 0 } else { self.timers.first().map_or(u64::MAX, |(due, _)| *due) };
        out.wake_ms = now_ms.saturating_add(next.saturating_sub(self.now()).clamp(1, idle_ms));
        out
    }

    /// Whatever is due, until nothing is or enough was changed.
    fn work(&mut self) {
        while !self.is_enough() {
            if let Some(&(due, timer)) = self.timers.first().filter(|(due, _)| *due <= self.clock.now_ms) {
                self.timers.remove(&(due, timer));
                self.fire(timer);
            } else if let Some(id) = self.unsettled.pop_first() {
                self.settle(id);
            } else if let Some(id) = self.failovers.next() {
                self.start_failover(id);
            } else if let Some(id) = self.orphaned.pop_first() {
                self.end_lease(id);
            } else if let Some(id) = self.drive.pop_first() {
                self.drive_operation(id);
            } else if !self.round() {
                break;
            }
        }
    }

    /// Whether this step changed as much as it should.
    fn is_enough(&self) -> bool {
        let dirty = self.volumes.dirty_len() + self.operations.dirty_len() + self.events.dirty_len();
        let others = self.leases.dirty_len() + self.nodes.dirty_len() + self.tenants.dirty_len();
        dirty + others + self.out.writes.len() >= WRITES_ENOUGH
    }

    /// Whether a step left work to the next one.
    fn has_more(&self) -> bool {
        let is_empty = self.unsettled.is_empty() && self.orphaned.is_empty() && self.drive.is_empty();
        !is_empty || self.failovers.has_waiting()
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Operation(id) => {
                self.operation_is_due(id);
            }
            Timer::Lease(id) => self.lease_is_due(id),
            Timer::Ask(id) => self.answer_is_late(id),
            Timer::Judge => self.judge(),
            Timer::Weights => self.update_weights(),
            // `work` holds the round, `step` publishes.
            Timer::Round | Timer::Publish => {}
            Timer::Recheck => self.recheck(),
        }
    }

    fn now(&self) -> u64 {
        self.clock.now_ms
    }

    fn at(&mut self, due_ms: u64, timer: Timer) {
        // Never now: what is due at once is done at once, and a timer that sets itself again cannot spin.
        self.timers.insert((due_ms.max(self.now() + 1), timer));
    }

    fn alarm(&mut self, alarm: Alarm) {
        self.out.alarms.push(alarm);
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Milliseconds of the control plane's own clock.
    pub fn now_ms(&self) -> u64 {
        self.now()
    }

    /// How often this control plane started.
    pub fn start(&self) -> u64 {
        self.meta.start
    }

    /// How often things happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// All tenants.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.iter().map(|(_, tenant)| tenant)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().map(|(_, node)| node)
    }

    /// All volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().map(|(_, volume)| volume)
    }

    /// All events that are remembered.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().map(|(_, event)| event)
    }

    /// All operations that are remembered.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().map(|(_, operation)| operation)
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter().map(|(_, lease)| lease)
    }

    /// All limits that were set.
    pub fn limits(&self) -> impl Iterator<Item = &Limit> {
        self.limits.values()
    }

    /// One tenant.
    pub fn tenant(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.get(id)
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// One volume.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(id)
    }

    /// One event.
    pub fn event(&self, id: EventId) -> Option<&Event> {
        self.events.get(id)
    }

    /// One operation.
    pub fn operation(&self, id: OperationId) -> Option<&Operation> {
        self.operations.get(id)
    }

    /// One lease.
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// How long a lease lasts if it is not renewed. Of a volume or an operation: as long as its node is heard.
    pub fn lease_remaining_ms(&self, id: LeaseId) -> Option<u64> {
        let lease = self.leases.get(id)?;
        let since = self.renewed_ms(lease);
        Some(lease.ttl_ms.saturating_sub(self.now().saturating_sub(since)))
    }

    /// How many operations wait to be scheduled.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// What the ledger counts.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What is reserved of each node.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The producers and their weights.
    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    /// Which nodes are there.
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Every changed object, to the store.
    fn flush(&mut self) {
        let writes = &mut self.out.writes;
        if std::mem::take(&mut self.meta_is_dirty) {
            writes.push(Write { key: Key::Meta, record: Some(Record::Meta(self.meta)) });
        }
        self.tenants.flush(writes, Key::Tenant, |tenant| {
            tenant.revision.0 += 1;
            Record::Tenant(tenant.clone())
        });
        self.nodes.flush(writes, Key::Node, |node| {
            node.revision.0 += 1;
            Record::Node(Box::new(node.clone()))
        });
        self.volumes.flush(writes, Key::Volume, |volume| {
            volume.revision.0 += 1;
            Record::Volume(Box::new(volume.clone()))
        });
        self.events.flush(writes, Key::Event, |event| Record::Event(event.clone()));
        self.operations.flush(writes, Key::Operation, |operation| {
            operation.revision.0 += 1;
            Record::Operation(Box::new(operation.clone()))
        });
        self.leases.flush(writes, Key::Lease, |lease| Record::Lease(Box::new(lease.clone())));
    }
}

#[cfg(test)]
mod tests;
