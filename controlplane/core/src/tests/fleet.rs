//! A fleet of obedient nodes around a core: what is said is heard at once.

use std::collections::{BTreeMap, BTreeSet};

use contract::{
    Answer, Class, Command, Credits, Done, Epoch, FromNode, Instruction, InstructionKey, Name, NodeId,
    NodeInfo, NodeReport, NodeSnapshot, NodeStep, OperationId, Phase, Pool, Refused, Request, Resources,
    Role, Serving, StepReport, TenantId, ToNode, ToNodeBody, Version, VolumeId, VolumeLimits, VolumeReport,
};

use crate::{Alarm, Ask, Config, Core, Effects, Input, Key, Record};

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub fn iops(iops: u64) -> VolumeLimits {
    let mut limits = VolumeLimits::default();
    limits.operations.rate = iops;
    limits
}

#[derive(Default)]
pub struct Node {
    pub id: NodeId,
    pub session: u64,
    pub incarnation: u64,
    pub up: bool,
    pub snapshot: NodeSnapshot,
    pub steps: BTreeMap<InstructionKey, (Instruction, Done, u64)>,
    pub ran: Vec<InstructionKey>,
    /// How long an instruction takes.
    pub busy_ms: u64,
    /// Load of each volume: operations in the last second.
    pub load: Option<fn(u64) -> u32>,
    pub released: Vec<contract::LeaseId>,
    pub notices: Vec<(contract::LeaseId, u64)>,
    /// Ignores what would have it end its work, unless by force.
    pub stubborn: bool,
    pub capacity: u64,
    /// Why it was not taken in.
    pub refused: Option<String>,
    seq: u64,
    forgot: u64,
    frozen: BTreeSet<VolumeId>,
}

pub struct Fleet {
    pub core: Core,
    pub now: u64,
    pub nodes: Vec<Node>,
    pub store: BTreeMap<Key, Record>,
    pub alarms: Vec<Alarm>,
    pub asks: Vec<Ask>,
    pub served: BTreeMap<VolumeId, (NodeId, Epoch)>,
    /// A limit was lowered below what is used.
    pub drains: bool,
    answers: BTreeMap<u64, Result<Answer, Refused>>,
    token: u64,
    sessions: u64,
}

impl Fleet {
    pub fn new(count: u64, config: Config) -> Fleet {
        Fleet::with_capacities(&vec![1_000; count as usize], config)
    }

    pub fn with_capacities(capacities: &[u64], config: Config) -> Fleet {
        let mut fleet = Fleet {
            core: Core::recover(config, []),
            now: 1_000,
            nodes: Vec::new(),
            store: BTreeMap::new(),
            alarms: Vec::new(),
            asks: Vec::new(),
            served: BTreeMap::new(),
            drains: false,
            answers: BTreeMap::new(),
            token: 0,
            sessions: 0,
        };
        for capacity in capacities {
            fleet.nodes.push(Node { capacity: *capacity, up: true, ..Node::default() });
            fleet.connect(fleet.nodes.len() - 1);
        }
        fleet.run(1_000);
        fleet
    }

    fn connect(&mut self, at: usize) {
        let info = self.introduction(at);
        let session = self.nodes[at].session;
        self.step(Input::Node { session, message: FromNode::Hello(info) });
    }

    /// How a node introduces itself on a new connection.
    pub fn introduction(&mut self, at: usize) -> NodeInfo {
        self.sessions += 1;
        let node = &mut self.nodes[at];
        (node.session, node.up) = (self.sessions, true);
        node.incarnation += 1;
        node.seq = 0;
        let pool = |text: &str, shared| Pool { name: name(text), shared, capacity_bytes: 1 << 40 };
        NodeInfo {
            name: name(&format!("n{}", at + 1)),
            incarnation: node.incarnation,
            workers: 2,
            capacity: Resources { iops: node.capacity, bytes_per_s: 1 << 30, copy_slots: 4 },
            pools: vec![pool("shared", true), pool("own", false)],
            addresses: vec![],
            networks: vec![],
        }
    }

    pub fn kill(&mut self, at: usize) {
        self.nodes[at].up = false;
        let session = self.nodes[at].session;
        self.step(Input::Closed { session });
    }

    /// A node that nobody knew.
    pub fn join(&mut self, capacity: u64) {
        self.nodes.push(Node { capacity, up: true, ..Node::default() });
        self.connect(self.nodes.len() - 1);
    }

    pub fn revive(&mut self, at: usize) {
        self.connect(at);
    }

    /// The control plane is killed and started again.
    pub fn restart(&mut self) {
        self.restart_with(self.core.config().clone());
    }

    /// Likewise, and configured otherwise.
    pub fn restart_with(&mut self, config: Config) {
        self.core = Core::recover(config, self.store.values().cloned());
        for at in 0..self.nodes.len() {
            if self.nodes[at].up {
                self.nodes[at].incarnation -= 1;
                let seq = self.nodes[at].seq;
                self.connect(at);
                self.nodes[at].seq = seq;
            }
        }
    }

    pub fn step(&mut self, input: Input) {
        let Effects { writes, sends, replies, asks, alarms, wake_ms } = self.core.step(self.now, input);
        assert!(wake_ms > self.now, "it must not spin");
        assert!(writes.len() <= crate::WRITES_MAX, "{} writes", writes.len());
        for write in writes {
            match write.record {
                Some(record) => self.store.insert(write.key, record),
                None => self.store.remove(&write.key),
            };
        }
        self.alarms.extend(alarms);
        self.asks.extend(asks);
        self.answers.extend(replies.into_iter().map(|reply| (reply.token, reply.result)));
        for (session, message) in sends {
            let now = self.now;
            if let Some(node) = self.nodes.iter_mut().find(|node| node.session == session && node.up) {
                node.hear(message, now);
            }
        }
        self.check();
    }

    /// What must hold after each step.
    fn check(&mut self) {
        for (dim, scope, used) in self.core.ledger().uses() {
            if dim == contract::Dim::CopySlots && !self.drains {
                assert!(
                    used <= self.core.ledger().max(dim, scope).unwrap_or(u64::MAX),
                    "{dim} of {scope}: {used}"
                );
            }
        }
        let mut ends = BTreeMap::new();
        for (link, from, until, id) in self.core.reservations() {
            let before = ends.insert(link, until).unwrap_or(0);
            assert!(before <= from && from < until, "{id} reserves {link:?} at {from} to {until}: {before}");
        }
        for (_, account) in self.core.accounts().iter() {
            assert!(account.firm.fits(account.capacity), "{account:?}");
        }
    }

    pub fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.now += 50;
            if self.now.is_multiple_of(250) {
                self.report_all();
            }
            self.step(Input::Tick);
        }
    }

    fn report_all(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].up {
                let (session, report) = (self.nodes[at].session, self.nodes[at].report(self.now));
                for volume in &report.volumes {
                    self.served.insert(volume.volume, (self.nodes[at].id, volume.epoch));
                }
                self.step(Input::Node { session, message: FromNode::Report(report) });
            }
        }
    }

    pub fn request(&mut self, command: Command) -> Result<Answer, Refused> {
        self.keyed("", command)
    }

    pub fn keyed(&mut self, key: &str, command: Command) -> Result<Answer, Refused> {
        self.token += 1;
        let token = self.token;
        let request = Request { idempotency_key: key.into(), expected_revision: None, command };
        self.step(Input::Request { token, request });
        self.answers.remove(&token).expect("every request is answered in its step")
    }

    pub fn tenant(&mut self) -> TenantId {
        let put = Command::TenantPut { name: name("t"), vni: None, weight: 1, rules: vec![] };
        self.request(put).expect("fine").tenant.expect("made")
    }

    pub fn create(&mut self, text: &str, pool: &str, class: Class, limits: VolumeLimits) -> Answer {
        let tenant = self.tenant();
        let create = Command::VolumeCreate {
            name: name(text),
            tenant,
            size_bytes: 1 << 30,
            pool: name(pool),
            class,
            limits,
            on: None,
        };
        self.request(create).expect("can be made")
    }

    /// A volume that is served.
    pub fn volume(&mut self, text: &str, pool: &str, limits: VolumeLimits) -> VolumeId {
        let answer = self.create(text, pool, Class::Firm, limits);
        self.finish(answer.operation.expect("work"));
        answer.volume.expect("made")
    }

    /// Runs until an operation is done.
    pub fn finish(&mut self, id: OperationId) {
        for _ in 0..400 {
            if self.phase(id) == Phase::Done {
                return;
            }
            self.run(50);
        }
        panic!("{:#?}", self.core.explain(crate::explain::About::Operation(id)));
    }

    pub fn phase(&self, id: OperationId) -> Phase {
        self.core.operation(id).expect("remembered").phase
    }

    pub fn head(&self, id: VolumeId) -> (usize, Epoch) {
        let head = self.core.volume(id).expect("there").head.expect("served");
        (head.node.0 as usize - 1, head.epoch)
    }

    pub fn why(&self, id: OperationId) -> String {
        let explanation = self.core.explain(crate::explain::About::Operation(id)).expect("there");
        explanation.reasons.into_iter().map(|reason| reason.text).collect::<Vec<_>>().join("; ")
    }
}

impl Node {
    pub fn is_frozen(&self, volume: VolumeId) -> bool {
        self.frozen.contains(&volume)
    }

    fn hear(&mut self, message: ToNode, now: u64) {
        match message.body {
            ToNodeBody::Welcome { node } => self.id = node,
            ToNodeBody::Introduce => {}
            ToNodeBody::Refused { why } => self.refused = Some(why),
            ToNodeBody::Snapshot(snapshot) => {
                if snapshot.version > self.snapshot.version {
                    self.frozen.retain(|id| self.snapshot.volumes.iter().any(|placed| placed.volume == *id));
                    self.snapshot = *snapshot;
                }
            }
            ToNodeBody::Instruct(instruction) => {
                let key = instruction.key;
                if message.seq > self.forgot && !self.steps.contains_key(&key) {
                    assert!(!self.ran.contains(&key), "{key} runs twice");
                    self.ran.push(key);
                    let running = Done::Running { done_bytes: 0, total_bytes: 1 };
                    self.steps.insert(key, (instruction, running, now + self.busy_ms));
                }
            }
            ToNodeBody::Cancel(key) if !self.stubborn => self.end(key, "cancelled"),
            ToNodeBody::Cancel(_) => {}
            ToNodeBody::Forget(keys) => {
                self.forgot = message.seq;
                keys.iter().for_each(|key| {
                    self.steps.remove(key);
                });
            }
            ToNodeBody::Revoke { lease, grace_ms } => {
                self.notices.push((lease, grace_ms));
                if !self.stubborn || grace_ms == 0 {
                    let under = |step: &Instruction| step.lease == Some(lease);
                    let keys: Vec<_> =
                        self.steps.iter().filter(|(_, step)| under(&step.0)).map(|(key, _)| *key).collect();
                    keys.into_iter().for_each(|key| self.end(key, "its lease was revoked"));
                    self.released.push(lease);
                }
            }
        }
    }

    fn end(&mut self, key: InstructionKey, why: &str) {
        if let Some((_, done, _)) = self.steps.get_mut(&key)
            && matches!(done, Done::Running { .. })
        {
            *done = Done::Failed { why: why.into(), again: true };
        }
    }

    fn report(&mut self, now: u64) -> NodeReport {
        self.seq += 1;
        for (instruction, done, ends) in self.steps.values_mut() {
            if matches!(done, Done::Running { .. }) && *ends <= now {
                let froze = instruction.step == NodeStep::Freeze;
                if froze {
                    self.frozen.insert(instruction.volume);
                }
                if instruction.step == NodeStep::Thaw {
                    self.frozen.remove(&instruction.volume);
                }
                *done = Done::Done { credits: froze.then_some(Credits { operations: 77, bytes: -5 }) };
            }
        }
        // What is told is the mean of the second before.
        let mean = |load: fn(u64) -> u32| {
            (1..=10).map(|part| load(now.saturating_sub(part * 100))).sum::<u32>() / 10
        };
        let load = self.load.map_or(0, mean);
        let volumes = self.snapshot.volumes.iter().filter(|placed| placed.role == Role::Active);
        let volumes = volumes.map(|placed| VolumeReport {
            volume: placed.volume,
            epoch: placed.epoch,
            worker: placed.worker.unwrap_or(0),
            serving: if self.frozen.contains(&placed.volume) { Serving::Frozen } else { Serving::Active },
            nqn: String::new(),
            size_bytes: placed.size_bytes,
            iops: load,
            bytes_per_s: u64::from(load) * 4_096,
            dirty_bytes_per_s: u64::from(load) * 2_048,
            p99_us: 100,
            errors: 0,
            credits: Credits::default(),
        });
        NodeReport {
            incarnation: self.incarnation,
            seq: self.seq,
            running: Version(self.snapshot.version.0),
            utilisation_ppm: 0,
            whole: true,
            volumes: volumes.collect(),
            steps: self
                .steps
                .iter()
                .map(|(key, step)| StepReport { key: *key, done: step.1.clone() })
                .collect(),
            conditions: vec![],
            released: std::mem::take(&mut self.released),
            refused: vec![],
        }
    }
}
