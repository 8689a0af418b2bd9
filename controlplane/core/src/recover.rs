//! Beginning, with what the store has.
//!
//! All that is stored is read, all else is made of it: indexes, accounts, the ledger, what waits. The clock goes on
//! from the latest time that is written anywhere, so the time that the control plane was down did not pass. Nobody is
//! judged before every node had the time to be heard (decision D11), and whatever was under way is looked at in
//! the first step.

use std::collections::{BTreeMap, BTreeSet};

use contract::{Holder, LeaseState, Phase};

use crate::asks::Asks;
use crate::failover::Failovers;
use crate::history::Histories;
use crate::io::{Counters, Effects};
use crate::lease::Accounts;
use crate::ledger::Ledger;
use crate::limits::words;
use crate::liveness::Liveness;
use crate::migrate::Plans;
use crate::nodes::Links;
use crate::producers::Producers;
use crate::random::Random;
use crate::record::{Meta, Record, Table};
use crate::registry::{Answers, Index};
use crate::schedule::Queue;
use crate::{Clock, Config, Core, Timer};

impl Core {
    /// A control plane with what the store has; with nothing if it is new. The first step's writes make its start
    /// durable, before anything else of it may have an effect.
    pub fn recover(config: Config, records: impl IntoIterator<Item = Record>) -> Core {
        let mut core = Core::empty(config);
        records.into_iter().for_each(|record| core.load(record));
        core.meta.start += 1;
        core.meta_is_dirty = true;
        core.random = Random::new(core.config.seed, core.meta.start);
        // Above all that an earlier start said.
        core.links.seq = core.meta.start << 32;
        core.index_all();
        let now = core.now();
        core.liveness.was_away(now, &core.config);
        core.timers.insert((now, Timer::Weights));
        core.timers.insert((now, Timer::Recheck));
        core.judge_later();
        core
    }

    fn empty(config: Config) -> Core {
        Core {
            clock: Clock::default(),
            random: Random::new(config.seed, 0),
            meta: Meta::default(),
            meta_is_dirty: false,
            tenants: Table::default(),
            nodes: Table::default(),
            volumes: Table::default(),
            events: Table::default(),
            operations: Table::default(),
            leases: Table::default(),
            limits: BTreeMap::new(),
            answers: Answers::default(),
            index: Index::default(),
            ledger: Ledger::new(&config),
            accounts: Accounts::default(),
            producers: Producers::default(),
            liveness: Liveness::default(),
            histories: Histories::default(),
            links: Links::default(),
            queue: Queue::default(),
            failovers: Failovers::default(),
            plans: Plans::default(),
            asks: Asks::default(),
            flights: BTreeMap::new(),
            drive: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            unguarded: BTreeSet::new(),
            orphaned: BTreeSet::new(),
            waiting_for_room: BTreeSet::new(),
            marked: BTreeSet::new(),
            timers: BTreeSet::new(),
            judging_ms: None,
            making_room: BTreeSet::new(),
            renewals: BTreeMap::new(),
            out: Effects::default(),
            counters: Counters::default(),
            config,
        }
    }

    fn load(&mut self, record: Record) {
        let mut written_ms = 0;
        match record {
            Record::Meta(meta) => self.meta = meta,
            Record::Tenant(tenant) => self.tenants.load(tenant.id, tenant),
            Record::Node(node) => self.nodes.load(node.id, *node),
            Record::Volume(volume) => self.volumes.load(volume.id, *volume),
            Record::Event(event) => {
                written_ms = event.registered_ms;
                self.events.load(event.id, event);
            }
            Record::Operation(operation) => {
                written_ms = operation.created_ms.max(operation.step_began_ms);
                self.operations.load(operation.id, *operation);
            }
            Record::Lease(lease) => {
                // One that was revoked began its grace before it was written.
                let grace_ms = u64::from(self.config.grace_max_ms);
                written_ms = match lease.state {
                    LeaseState::Revoked { ends_ms } => lease.granted_ms.max(ends_ms.saturating_sub(grace_ms)),
                    _ => lease.granted_ms,
                };
                self.leases.load(lease.id, *lease);
            }
            Record::Limit(limit) => {
                self.limits.insert(words(limit.dim, limit.scope), limit);
                self.ledger.set_limit(limit);
            }
            Record::Answer(remembered) => self.answers.load(*remembered),
        }
        self.clock.now_ms = self.clock.now_ms.max(written_ms);
    }

    fn index_all(&mut self) {
        let now = self.now();
        let nodes: Vec<_> = self.nodes.iter().map(|(id, node)| (id, node.state)).collect();
        for (id, state) in nodes {
            self.liveness.add(id, state, now);
            self.index_node(id);
        }
        let tenants: Vec<_> = self.tenants.iter().map(|(id, tenant)| (tenant.name.clone(), id)).collect();
        self.index.tenants.extend(tenants);
        let volumes: Vec<_> =
            self.volumes.iter().map(|(id, volume)| (id, volume.name.clone(), volume.tenant)).collect();
        for (id, name, tenant) in volumes {
            self.index.volumes.insert(name, id);
            *self.index.volumes_of.entry(tenant).or_default() += 1;
            self.index_volume(id, true);
        }
        let alone = self.volumes.iter().filter(|(_, volume)| volume.standby.is_none());
        self.unguarded = alone.map(|(id, _)| id).collect();
        self.index_leases();
        self.index_operations();
        // Whatever a lost node had and was not given to others before.
        let lost = self.nodes.iter().filter(|(_, node)| node.state == contract::NodeState::Lost);
        let lost: Vec<_> = lost.map(|(id, _)| id).collect();
        lost.into_iter().for_each(|id| self.node_lost(id));
    }

    fn index_leases(&mut self) {
        let now = self.now();
        let leases: Vec<_> = self.leases.iter().map(|(_, lease)| lease.clone()).collect();
        for lease in leases {
            self.accounts.add(&lease);
            self.index_lease(&lease, true);
            match (&lease.holder, lease.state) {
                (_, LeaseState::Revoked { ends_ms }) => self.at(ends_ms, Timer::Lease(lease.id)),
                (Holder::Consumer(_), _) => self.at(now.saturating_add(lease.ttl_ms), Timer::Lease(lease.id)),
                _ => {}
            }
            if let Holder::Consumer(name) = &lease.holder {
                self.producers.count(lease.producer, name, true);
                self.renewals.insert(lease.id, now);
            }
        }
    }

    fn index_operations(&mut self) {
        let operations: Vec<_> =
            self.operations.iter().map(|(id, operation)| (id, operation.event, operation.phase)).collect();
        for (id, event, phase) in operations {
            if phase.is_over() {
                self.index.over.push_back((event, id));
                continue;
            }
            if let Some(event) = self.events.get(event) {
                self.index.open_events.insert((event.kind, event.subject), event.id);
            }
            self.index_open(id, true);
            if !phase.counts() {
                self.wait_again(id);
                continue;
            }
            let Some(operation) = self.operations.get(id) else { continue };
            let usages = self.usages(id, operation.source, operation.target);
            self.ledger.load(id, usages);
            self.index_nodes_of(id, true);
            self.take_link(id);
            let within = self.step_within_ms(id);
            let ends_ms = self.now().saturating_add(within);
            if let Some(operation) = self.operations.touch(id) {
                operation.step_ends_ms = ends_ms;
            }
            self.at(ends_ms, Timer::Operation(id));
            self.drive.insert(id);
        }
    }

    /// What waited, waits where it did.
    fn wait_again(&mut self, id: contract::OperationId) {
        let planned = self
            .operations
            .get(id)
            .is_some_and(|operation| operation.phase == Phase::Waiting && operation.plan.is_some());
        if planned { self.restore_plan(id) } else { self.admit(id) }
    }
}
