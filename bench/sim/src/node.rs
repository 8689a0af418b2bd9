//! A node: what it keeps on disk, what it forgets when it crashes, how it serves and works.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use contract::{
    Condition, Credits, Done, Epoch, EventKind, Instruction, InstructionKey, LeaseId, Name, NodeId, NodeInfo,
    NodeReport, NodeSnapshot, NodeStep, Placed, Pool, Resources, Role, Serving, StepReport, ToNode,
    ToNodeBody, Trigger, VolumeId, VolumeReport,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::bug::Bug;
use crate::invariants::Invariants;
use crate::media::Media;

/// Instructions that a node remembers having done, for the reports until it is told to forget them.
type Steps = BTreeMap<InstructionKey, (Option<Instruction>, Done, u64)>;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its place in the world.
    pub at: usize,
    /// Running.
    pub up: bool,
    /// Stopped, and it does not know it.
    pub paused: bool,
    /// What arrived while it was stopped.
    pub inbox: VecDeque<ToNode>,
    /// Its connection.
    pub session: u64,
    /// It was told that nobody knows it.
    pub introduce: bool,
    /// How fast its clock is, parts per thousand.
    pub drift: u64,
    /// What it has.
    pub capacity: Resources,
    incarnation: u64,
    seq: u64,
    ticks: u64,
    // On disk.
    snapshot: NodeSnapshot,
    steps: Steps,
    forgot: u64,
    taken: BTreeMap<VolumeId, u64>,
    frozen: BTreeMap<VolumeId, Epoch>,
    // In memory.
    open: BTreeMap<VolumeId, Open>,
    released: BTreeSet<LeaseId>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    epoch: Epoch,
    serving: Serving,
    ready_ms: u64,
    shared: bool,
}

/// What a node touches while it works.
pub struct Around<'a> {
    /// Time.
    pub now_ms: u64,
    /// The media.
    pub media: &'a mut Media,
    /// Who watches.
    pub invariants: &'a mut Invariants,
    /// Randomness.
    pub random: &'a mut ChaCha8Rng,
    /// The planted mistake.
    pub bug: Option<Bug>,
    /// Which nodes are up, for copies.
    pub up: &'a [bool],
    /// Where in the world a node is that the control plane names.
    pub places: &'a BTreeMap<NodeId, usize>,
    /// Whether things may go wrong.
    pub faulty: bool,
}

/// A freeze holds for the grant that it met, and those before.
fn is_frozen(frozen: &BTreeMap<VolumeId, Epoch>, volume: VolumeId, epoch: Epoch) -> bool {
    frozen.get(&volume).is_some_and(|met| *met >= epoch)
}

fn is_shared(pool: &Name) -> bool {
    pool.as_str() == "shared"
}

impl Node {
    /// A node that never ran.
    pub fn new(at: usize, capacity: Resources, drift: u64) -> Node {
        Node {
            at,
            up: true,
            paused: false,
            inbox: VecDeque::new(),
            session: 0,
            introduce: true,
            drift,
            capacity,
            incarnation: 1,
            seq: 0,
            ticks: 0,
            snapshot: NodeSnapshot::default(),
            steps: Steps::new(),
            forgot: 0,
            taken: BTreeMap::new(),
            frozen: BTreeMap::new(),
            open: BTreeMap::new(),
            released: BTreeSet::new(),
        }
    }

    /// It is killed: memory is gone.
    pub fn crash(&mut self, bug: Option<Bug>) {
        (self.up, self.paused) = (false, false);
        self.inbox.clear();
        self.open.clear();
        self.released.clear();
        if bug == Some(Bug::ForgetfulNode) {
            self.steps.clear();
        }
        if bug == Some(Bug::ForgottenFreeze) {
            self.frozen.clear();
        }
    }

    /// It is started again.
    pub fn start(&mut self) {
        self.up = true;
        self.introduce = true;
        self.incarnation += 1;
        self.seq = 0;
    }

    /// How it introduces itself.
    pub fn info(&self, bug: Option<Bug>) -> NodeInfo {
        let pool = |text: &str, shared| Pool {
            // INVARIANT: both are names.
            name: Name::new(text).unwrap_or_else(|error| unreachable!("{error}")),
            shared,
            capacity_bytes: 1 << 40,
        };
        let mut capacity = self.capacity;
        match bug {
            Some(Bug::LostLimit) => capacity.copy_slots *= 3,
            Some(Bug::DoubleCapacity) => capacity.iops *= 2,
            _ => {}
        }
        NodeInfo {
            name: Name::new(format!("n{}", self.at)).unwrap_or_else(|error| unreachable!("{error}")),
            incarnation: self.incarnation,
            workers: 2,
            capacity,
            pools: vec![pool("shared", true), pool("own", false)],
            addresses: vec![],
            networks: vec![],
        }
    }

    /// A message arrived.
    pub fn hear(&mut self, message: ToNode, around: &mut Around<'_>) {
        match message.body {
            ToNodeBody::Welcome { .. } | ToNodeBody::Refused { .. } => {}
            ToNodeBody::Introduce => self.introduce = true,
            ToNodeBody::Snapshot(snapshot) => {
                if snapshot.version > self.snapshot.version {
                    self.snapshot = *snapshot;
                    self.obey(around);
                }
            }
            ToNodeBody::Instruct(instruction) => self.take(message.seq, instruction, around),
            ToNodeBody::Cancel(key) => {
                self.stop(&|step| step.key == key, "it was cancelled");
                let never =
                    Done::Failed { why: "it was cancelled before it was heard of".into(), again: true };
                self.steps.entry(key).or_insert((None, never, 0));
            }
            ToNodeBody::Forget(keys) => {
                self.forgot = self.forgot.max(message.seq);
                keys.iter().for_each(|key| {
                    self.steps.remove(key);
                });
            }
            ToNodeBody::Revoke { lease, .. } => {
                self.stop(&|step| step.lease == Some(lease), "its lease was revoked");
                self.released.insert(lease);
            }
        }
    }

    fn take(&mut self, seq: u64, instruction: Instruction, around: &mut Around<'_>) {
        let key = instruction.key;
        let stale = seq <= self.forgot && around.bug != Some(Bug::StaleInstruction);
        let taken = self.taken.entry(instruction.volume).or_default();
        if stale || self.steps.contains_key(&key) || seq < *taken {
            return;
        }
        *taken = seq;
        let left = |step: &Instruction| step.volume == instruction.volume && step.key != key;
        self.stop(&left, "something else is done with the volume now");
        around.invariants.once.began(self.at, key);
        let ends = around.now_ms + around.random.random_range(1..3_000);
        let running = Done::Running { done_bytes: 0, total_bytes: instruction.size_bytes };
        self.steps.insert(key, (Some(instruction), running, ends));
    }

    fn stop(&mut self, which: &dyn Fn(&Instruction) -> bool, why: &str) {
        for (instruction, done, _) in self.steps.values_mut() {
            let matches = instruction.as_ref().is_some_and(which);
            if matches && matches!(done, Done::Running { .. }) {
                *done = Done::Failed { why: why.into(), again: true };
            }
        }
    }

    /// Opens and closes what the snapshot says.
    fn obey(&mut self, around: &mut Around<'_>) {
        let active: BTreeMap<VolumeId, &Placed> = self
            .snapshot
            .volumes
            .iter()
            .filter(|placed| placed.role == Role::Active)
            .map(|placed| (placed.volume, placed))
            .collect();
        self.open.retain(|volume, open| active.get(volume).is_some_and(|placed| placed.epoch >= open.epoch));
        let node = self.at;
        for (volume, placed) in active {
            let opened = self
                .open
                .get(&volume)
                .is_some_and(|open| open.epoch == placed.epoch && open.serving != Serving::Failed);
            let frozen = is_frozen(&self.frozen, volume, placed.epoch);
            if opened || frozen {
                continue;
            }
            let shared = is_shared(&placed.pool);
            let opens = if shared {
                around.media.open(volume, placed.epoch, node).is_ok()
            } else {
                around.media.has(volume, node)
            };
            let serving = match opens {
                true => Serving::Opening,
                false if shared => Serving::Fenced,
                false => Serving::Failed,
            };
            if opens {
                around.invariants.one_writer.opened(node, volume, placed.epoch);
            }
            let ready_ms = around.now_ms + around.random.random_range(1..300);
            self.open.insert(volume, Open { epoch: placed.epoch, serving, ready_ms, shared });
        }
    }

    /// A quarter of a second of its own clock went by: it writes, works, and reports.
    pub fn tick(&mut self, around: &mut Around<'_>) -> NodeReport {
        self.obey(around);
        self.serve(around);
        self.work(around);
        self.report(around)
    }

    fn serve(&mut self, around: &mut Around<'_>) {
        let node = self.at;
        for (&volume, open) in &mut self.open {
            if open.serving == Serving::Opening && open.ready_ms <= around.now_ms {
                open.serving = Serving::Active;
            }
            if open.serving != Serving::Active || is_frozen(&self.frozen, volume, open.epoch) {
                continue;
            }
            if !open.shared {
                let whole = around.media.write_own(volume, node);
                around.invariants.nothing_lost.wrote(node, volume, whole);
            } else if around.media.write(volume, open.epoch).is_ok() {
                around.invariants.one_writer.wrote(node, volume, open.epoch);
            } else {
                open.serving = Serving::Fenced;
            }
        }
    }

    fn work(&mut self, around: &mut Around<'_>) {
        let keys: Vec<InstructionKey> = self.steps.keys().copied().collect();
        for key in keys {
            let Some((Some(instruction), Done::Running { .. }, ends)) = self.steps.get(&key) else {
                continue;
            };
            if *ends > around.now_ms {
                continue;
            }
            let instruction = instruction.clone();
            let fails = around.faulty && around.random.random_bool(0.03);
            let done = if fails {
                let again = around.random.random_bool(0.8);
                Done::Failed { why: "the disk said no".into(), again }
            } else {
                self.carry_out(&instruction, around)
            };
            if let Some(step) = self.steps.get_mut(&key) {
                step.1 = done;
            }
        }
    }

    fn carry_out(&mut self, instruction: &Instruction, around: &mut Around<'_>) -> Done {
        let (volume, node, shared) = (instruction.volume, self.at, is_shared(&instruction.pool));
        let mut credits = None;
        match instruction.step {
            NodeStep::Prepare => around.media.prepare(volume, node, shared),
            NodeStep::CopyBulk if shared => around.media.prepare(volume, node, true),
            NodeStep::Remove => {
                around.media.remove(volume, node, shared);
                self.frozen.remove(&volume);
            }
            NodeStep::CopyBulk | NodeStep::CopyDelta if !shared => {
                let from = instruction.from_volume.unwrap_or(volume);
                let named = instruction.from_node.and_then(|id| around.places.get(&id));
                let source = named.copied().unwrap_or(node);
                let reads = around.up.get(source).copied().unwrap_or(false);
                if !reads || !around.media.copy(from, source, volume, node) {
                    return Done::Failed { why: "the source does not answer".into(), again: true };
                }
            }
            NodeStep::Freeze => {
                let epoch = self.open.get(&volume).map(|open| open.epoch);
                let Some(epoch) = epoch else {
                    return Done::Failed { why: "it is not open here".into(), again: true };
                };
                self.frozen.insert(volume, epoch);
                credits = Some(Credits { operations: 1, bytes: -1 });
            }
            NodeStep::Thaw => {
                self.frozen.remove(&volume);
            }
            _ => {}
        }
        Done::Done { credits }
    }

    fn report(&mut self, around: &mut Around<'_>) -> NodeReport {
        self.seq += 1;
        self.ticks += 1;
        let volumes = self.open.iter().map(|(&volume, open)| {
            let frozen = is_frozen(&self.frozen, volume, open.epoch) && open.serving == Serving::Active;
            let placed = self.snapshot.volumes.iter().find(|placed| placed.volume == volume);
            VolumeReport {
                volume,
                epoch: open.epoch,
                worker: placed.and_then(|placed| placed.worker).unwrap_or(0),
                serving: if frozen { Serving::Frozen } else { open.serving },
                nqn: String::new(),
                size_bytes: placed.map_or(0, |placed| placed.size_bytes),
                iops: 100 + (self.ticks % 7) as u32,
                bytes_per_s: 400_000,
                dirty_bytes_per_s: 200_000,
                p99_us: 500,
                errors: 0,
                credits: Credits::default(),
            }
        });
        let volumes: Vec<VolumeReport> = volumes.collect();
        let mut conditions = Vec::new();
        if around.faulty && !volumes.is_empty() && around.random.random_bool(0.02) {
            let volume = volumes[around.random.random_range(0..volumes.len())].volume;
            let kinds = [EventKind::SpaceLow, EventKind::Damaged, EventKind::WorkerHot, EventKind::NodeHot];
            let kind = kinds[around.random.random_range(0..kinds.len())];
            conditions.push(Condition { kind, volume, trigger: Trigger::Threshold });
        }
        NodeReport {
            incarnation: self.incarnation,
            seq: self.seq,
            running: self.snapshot.version,
            utilisation_ppm: around.random.random_range(0..1_000_000),
            whole: true,
            volumes,
            steps: self
                .steps
                .iter()
                .map(|(key, (_, done, _))| StepReport { key: *key, done: done.clone() })
                .collect(),
            conditions,
            // Said a few times, since a report may be lost.
            released: if self.ticks.is_multiple_of(8) {
                std::mem::take(&mut self.released).into_iter().collect()
            } else {
                self.released.iter().copied().collect()
            },
            refused: vec![],
        }
    }
}

impl Node {
    /// How it serves a volume.
    pub fn serves(&self, volume: VolumeId) -> Option<(Epoch, Serving)> {
        self.open.get(&volume).map(|open| (open.epoch, open.serving))
    }

    /// Why it may not serve a volume.
    pub fn describe(&self, volume: VolumeId) -> String {
        let placed = self.snapshot.volumes.iter().find(|placed| placed.volume == volume);
        let placed = placed.map(|placed| (placed.role, placed.epoch));
        let steps: Vec<_> = self.steps.iter().map(|(key, (_, done, _))| (key, done)).collect();
        format!(
            "n{}: open {:?}, frozen {:?}, placed {placed:?}, steps {steps:?}",
            self.at,
            self.open.get(&volume),
            self.frozen.get(&volume)
        )
    }

    /// What it was told last.
    pub fn snapshot(&self) -> &NodeSnapshot {
        &self.snapshot
    }
}
