//! Nodes that do at once what they are told, and the turns in which they and the control plane talk.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use contract::{
    Command, Credits, Done, FromNode, InstructionKey, NodeInfo, NodeReport, NodeSnapshot, NodeState, Pool,
    Request, Resources, Role, Serving, StepReport, ToNode, ToNodeBody, VolumeReport,
};
use control_core::{Config, Effects, Input};

use bench::Outcome;

use crate::name;
use crate::plane::Plane;

/// Time between two turns.
const TURN_MS: u64 = 10;
/// Time between two reports of a node, and between two whole ones.
const REPORT_MS: u64 = 250;
const WHOLE_MS: u64 = 1_000;
/// Steps before what they write is made durable, as in the server.
const STEPS_MAX: usize = 256;

/// A data plane.
pub struct Node {
    session: u64,
    snapshot: NodeSnapshot,
    steps: BTreeMap<InstructionKey, Done>,
    forgot: u64,
    seq: u64,
    /// It has something to say before its time.
    stirred: bool,
}

impl Node {
    /// Of the snapshot that it has.
    pub fn version(&self) -> u64 {
        self.snapshot.version.0
    }

    fn hear(&mut self, message: ToNode) {
        self.stirred = true;
        match message.body {
            ToNodeBody::Welcome { .. } | ToNodeBody::Introduce | ToNodeBody::Refused { .. } => {}
            ToNodeBody::Snapshot(snapshot) if snapshot.version > self.snapshot.version => {
                self.snapshot = *snapshot
            }
            ToNodeBody::Snapshot(_) => {}
            ToNodeBody::Instruct(instruction) if message.seq > self.forgot => {
                self.steps.insert(instruction.key, Done::Done { credits: None });
            }
            ToNodeBody::Instruct(_) => {}
            ToNodeBody::Cancel(key) => {
                self.steps.insert(key, Done::Failed { why: "cancelled".to_owned(), again: true });
            }
            ToNodeBody::Forget(keys) => {
                self.forgot = message.seq;
                for key in keys {
                    self.steps.remove(&key);
                }
            }
            ToNodeBody::Revoke { .. } => {}
        }
    }

    fn report(&mut self, whole: bool) -> NodeReport {
        self.seq += 1;
        let volumes = self.snapshot.volumes.iter().filter(|placed| placed.role == Role::Active);
        let volumes = volumes.map(|placed| VolumeReport {
            volume: placed.volume,
            epoch: placed.epoch,
            worker: placed.worker.unwrap_or(0),
            serving: Serving::Active,
            nqn: String::new(),
            size_bytes: placed.size_bytes,
            iops: 100 + (self.seq % 7) as u32,
            bytes_per_s: 400_000,
            dirty_bytes_per_s: 200_000,
            p99_us: 500,
            errors: 0,
            credits: Credits::default(),
        });
        NodeReport {
            incarnation: 1,
            seq: self.seq,
            running: self.snapshot.version,
            utilisation_ppm: 300_000,
            whole,
            volumes: if whole { volumes.collect() } else { Vec::new() },
            steps: self
                .steps
                .iter()
                .map(|(key, done)| StepReport { key: *key, done: done.clone() })
                .collect(),
            conditions: Vec::new(),
            released: Vec::new(),
            refused: Vec::new(),
        }
    }
}

/// Nodes, their control plane, and who asks it for things.
pub struct Fleet {
    pub plane: Plane,
    pub nodes: Vec<Node>,
    /// Of the fleet's clock.
    pub now_ms: u64,
    /// How long each answer took, by token.
    pub answers: BTreeMap<u64, Duration>,
    /// Requests that were refused.
    pub refused: u64,
    asked: Vec<(u64, Command)>,
    since: BTreeMap<u64, Instant>,
    last_token: u64,
}

impl Fleet {
    /// So many nodes with a directory that all see, and their control plane with its store in `folder`.
    pub fn new(folder: &Path, nodes: usize) -> Outcome<Fleet> {
        let plane = Plane::new(folder, Config { seed: 1, ..Config::default() })?;
        let node = |number: usize| Node {
            session: 1 + number as u64,
            snapshot: NodeSnapshot::default(),
            steps: BTreeMap::new(),
            forgot: 0,
            seq: 0,
            stirred: false,
        };
        let mut fleet = Fleet {
            plane,
            nodes: (0..nodes).map(node).collect(),
            now_ms: 1,
            answers: BTreeMap::new(),
            refused: 0,
            asked: Vec::new(),
            since: BTreeMap::new(),
            last_token: 0,
        };
        for number in 0..nodes {
            let info = NodeInfo {
                name: name(format!("node-{number}")),
                incarnation: 1,
                workers: 8,
                capacity: Resources { iops: 2_000_000, bytes_per_s: 80_000_000_000, copy_slots: 4 },
                pools: vec![Pool { name: name("default".to_owned()), shared: true, capacity_bytes: 1 << 50 }],
                addresses: vec![format!("nvme-tcp://10.0.{}.{}:4420", number / 250, number % 250)],
                networks: vec![name("tenant-1".to_owned())],
            };
            fleet.say(number, FromNode::Hello(info))?;
        }
        fleet.plane.commit()?;
        Ok(fleet)
    }

    /// Hands a request in; it is answered in the next turn.
    pub fn ask(&mut self, command: Command) -> u64 {
        self.last_token += 1;
        self.asked.push((self.last_token, command));
        self.since.insert(self.last_token, Instant::now());
        self.last_token
    }

    /// One turn: requests, due reports, timers.
    pub fn turn(&mut self) -> Outcome {
        self.now_ms += TURN_MS;
        let mut heard = Effects::default();
        let asked = std::mem::take(&mut self.asked);
        for wave in asked.chunks(STEPS_MAX) {
            for (token, command) in wave {
                let request = Request {
                    idempotency_key: String::new(),
                    expected_revision: None,
                    command: command.clone(),
                };
                let effects = self.plane.step(self.now_ms, Input::Request { token: *token, request })?;
                merge(&mut heard, effects);
            }
            self.plane.commit()?;
            self.perform(std::mem::take(&mut heard));
        }
        for number in 0..self.nodes.len() {
            let phase = self.now_ms + number as u64 * 7;
            let due = |period: u64| phase % period < TURN_MS;
            let node = &mut self.nodes[number];
            if !(node.stirred || due(REPORT_MS)) {
                continue;
            }
            // A node whose volumes changed says all of them.
            let whole = node.stirred || due(WHOLE_MS);
            node.stirred = false;
            let report = node.report(whole);
            self.say(number, FromNode::Report(report))?;
        }
        let effects = self.plane.step(self.now_ms, Input::Tick)?;
        self.plane.commit()?;
        self.perform(effects);
        Ok(())
    }

    fn say(&mut self, number: usize, message: FromNode) -> Outcome {
        let session = self.nodes[number].session;
        let effects = self.plane.step(self.now_ms, Input::Node { session, message })?;
        self.perform(effects);
        Ok(())
    }

    fn perform(&mut self, effects: Effects) {
        for (session, message) in effects.sends {
            let number = session as usize - 1;
            self.nodes[number].hear(message);
        }
        for reply in effects.replies {
            self.refused += u64::from(reply.result.is_err());
            if let Some(since) = self.since.remove(&reply.token) {
                self.answers.insert(reply.token, since.elapsed());
            }
        }
    }

    /// Turns until something holds.
    pub fn until(&mut self, what: &str, turns: u64, holds: impl Fn(&Fleet) -> bool) -> Outcome {
        for _ in 0..turns {
            if holds(self) {
                return Ok(());
            }
            self.turn()?;
        }
        Err(format!("not within {turns} turns: {what}"))
    }

    /// Nodes that are trusted.
    pub fn alive(&self) -> usize {
        self.plane.core.nodes().filter(|node| node.state == NodeState::Alive).count()
    }

    /// Operations that are not over.
    pub fn open(&self) -> usize {
        self.plane.core.operations().filter(|one| !one.phase.is_over()).count()
    }

    /// A node's report as the server takes it: microseconds to read it from JSON, and of its step.
    pub fn heartbeat(&mut self, number: usize, whole: bool) -> Outcome<(f64, f64)> {
        let report = FromNode::Report(self.nodes[number].report(whole));
        let text = serde_json::to_vec(&report).map_err(|error| error.to_string())?;
        let began = Instant::now();
        let message: FromNode = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let read = began.elapsed();
        let session = self.nodes[number].session;
        let busy = self.plane.busy;
        let effects = self.plane.step(self.now_ms, Input::Node { session, message })?;
        let took = self.plane.busy - busy;
        self.perform(effects);
        Ok((read.as_secs_f64() * 1e6, took.as_secs_f64() * 1e6))
    }

    /// Writes the snapshot of every node in JSON; how many bytes.
    pub fn encode_snapshots(&self) -> Outcome<usize> {
        let mut bytes = 0;
        for node in &self.nodes {
            let message = ToNode { seq: 1, body: ToNodeBody::Snapshot(Box::new(node.snapshot.clone())) };
            let text = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
            bytes += text.len();
        }
        Ok(bytes)
    }
}

fn merge(all: &mut Effects, effects: Effects) {
    all.sends.extend(effects.sends);
    all.replies.extend(effects.replies);
}
