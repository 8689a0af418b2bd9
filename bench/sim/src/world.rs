//! The world: one queue of what will happen, in the order of time, and of when it was decided where times are equal.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::hash::{Hash, Hasher};

use contract::{Command, FromNode, NodeId, Request, Resources, ToNode};
use control_core::{Config, Counters, Effects, Input};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use verdict::{Decided, Verdict};

use crate::bug::Bug;
use crate::invariants::converges::Converges;
use crate::invariants::{Invariants, Violation};
use crate::media::Media;
use crate::network::Network;
use crate::node::{Around, Node};
use crate::people::People;
use crate::plane::{Cut, Plane, place_of};
use crate::policy::{self, Mood};

/// A node's own quarter of a second.
const NODE_TICK_MS: u64 = 250;
/// The control plane is woken at least this often.
const PLANE_TICK_MS: u64 = 200;
/// Time to converge after everything healed.
const CONVERGE_MS: u64 = 240_000;
/// How often it is looked whether it did.
const LOOK_MS: u64 = 5_000;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Decides everything.
    pub seed: u64,
    /// Events before the world heals.
    pub events: u64,
    /// A planted mistake.
    pub bug: Option<Bug>,
}

/// How often each kind of fault fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the kinds")]
pub struct Faults {
    pub lost: u64,
    pub doubled: u64,
    pub late: u64,
    pub cut: u64,
    pub node_crashes: u64,
    pub node_pauses: u64,
    pub plane_crashes: u64,
    pub plane_cut_before_commit: u64,
    pub plane_cut_after_commit: u64,
    pub plane_pauses: u64,
    pub clock_jumps: u64,
    pub drifting_ticks: u64,
    pub trapped: u64,
    pub lied: u64,
    pub silent: u64,
    pub slow: u64,
    pub abstained: u64,
}

impl Faults {
    /// Names and counts.
    pub fn all(&self) -> [(&'static str, u64); 17] {
        [
            ("messages lost", self.lost),
            ("messages doubled", self.doubled),
            ("messages late", self.late),
            ("messages cut off one way", self.cut),
            ("nodes crashed", self.node_crashes),
            ("nodes paused", self.node_pauses),
            ("control planes crashed", self.plane_crashes),
            ("of these before a commit", self.plane_cut_before_commit),
            ("of these after a commit", self.plane_cut_after_commit),
            ("control planes paused", self.plane_pauses),
            ("clocks jumped", self.clock_jumps),
            ("ticks of drifting clocks", self.drifting_ticks),
            ("policies trapped", self.trapped),
            ("policies lied", self.lied),
            ("policies silent", self.silent),
            ("policies slow", self.slow),
            ("policies abstained", self.abstained),
        ]
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Faults) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.late += other.late;
        self.cut += other.cut;
        self.node_crashes += other.node_crashes;
        self.node_pauses += other.node_pauses;
        self.plane_crashes += other.plane_crashes;
        self.plane_cut_before_commit += other.plane_cut_before_commit;
        self.plane_cut_after_commit += other.plane_cut_after_commit;
        self.plane_pauses += other.plane_pauses;
        self.clock_jumps += other.clock_jumps;
        self.drifting_ticks += other.drifting_ticks;
        self.trapped += other.trapped;
        self.lied += other.lied;
        self.silent += other.silent;
        self.slow += other.slow;
        self.abstained += other.abstained;
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Over everything that happened.
    pub digest: u64,
    /// Things that happened.
    pub events: u64,
    /// Time that went by in the world.
    pub ms: u64,
    /// Faults.
    pub faults: Faults,
    /// What the last control plane counted.
    pub counters: Counters,
    /// What did not hold.
    pub violation: Option<Violation>,
}

#[derive(Clone, Debug)]
enum What {
    ToPlane { session: u64, message: FromNode },
    ToNode { session: u64, message: ToNode },
    PlaneTick,
    NodeTick { place: usize },
    People,
    Answer { start: u64, ask: u64, decided: Decided<Verdict> },
    Fault,
    StartNode { place: usize },
    ResumeNode { place: usize },
    StartPlane,
    ResumePlane,
    Mend { place: usize },
    Look,
}

struct World {
    now_ms: u64,
    count: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// What will happen, by the place in the queue.
    slots: Vec<Option<What>>,
    free: Vec<usize>,
    order: u64,
    random: ChaCha8Rng,
    digest: DefaultHasher,
    setup: Setup,
    plane: Plane,
    inbox: VecDeque<Input>,
    plane_tick_ms: u64,
    cut: Option<Cut>,
    nodes: Vec<Node>,
    capacities: Vec<Resources>,
    places: BTreeMap<NodeId, usize>,
    sessions: BTreeMap<u64, usize>,
    last_session: u64,
    media: Media,
    network: Network,
    people: People,
    mood: Mood,
    invariants: Invariants,
    faults: Faults,
    counters: Counters,
    faulty: bool,
    heals_ms: u64,
    done: bool,
}

/// Runs a world to its end.
pub fn run(setup: Setup) -> Outcome {
    let mut world = World::new(setup);
    while !world.done {
        world.next();
        if world.invariants.violation().is_some() {
            break;
        }
    }
    if let Some(core) = &world.plane.core {
        world.counters = core.counters();
        core.volumes().for_each(|volume| format!("{volume:?}").hash(&mut world.digest));
        core.operations().for_each(|operation| format!("{operation:?}").hash(&mut world.digest));
    }
    Outcome {
        seed: setup.seed,
        digest: world.digest.finish(),
        events: world.count,
        ms: world.now_ms,
        faults: world.faults,
        counters: world.counters,
        violation: world.invariants.violation(),
    }
}

fn config(seed: u64, bug: Option<Bug>) -> Config {
    let mut config = Config {
        seed,
        ask: true,
        step_base_ms: 5_000,
        patience_ms: 20_000,
        starving_after_ms: 5_000,
        cooldown_ms: 2_000,
        move_deadline_ms: 60_000,
        period_ms: (2_000, 60_000),
        copy_bytes_per_s: 10_000_000,
        ..Config::default()
    };
    config.limits.history = 200;
    match bug {
        Some(Bug::HastyJudge) => config.lost_after_ms /= 4,
        Some(Bug::LateWatcher) => config.watcher_gap_ms = u64::MAX / 4,
        Some(Bug::PatientWithPolicies) => config.answer_within_ms = 3_600_000,
        _ => {}
    }
    if config.lost_after_ms < config.suspect_after_ms {
        config.suspect_after_ms = config.lost_after_ms / 2;
    }
    config
}

impl World {
    fn new(setup: Setup) -> World {
        let mut random = ChaCha8Rng::seed_from_u64(setup.seed);
        let count = random.random_range(3..7);
        let mut nodes = Vec::new();
        for place in 0..count {
            let iops = [400, 1_000, 1_000, 2_000][random.random_range(0..4)];
            let capacity = Resources { iops, bytes_per_s: 100_000_000, copy_slots: 4 };
            let drift = if random.random_bool(0.5) { 1_000 } else { random.random_range(950..1_050) };
            nodes.push(Node::new(place, capacity, drift));
        }
        let network = Network {
            loss: random.random_range(0.0..0.15),
            duplicate: random.random_range(0.0..0.1),
            delay: random.random_range(0.0..0.1),
            cut_from: Default::default(),
            cut_to: Default::default(),
        };
        let mut media = Media::default();
        media.takes_anything = setup.bug == Some(Bug::SkipFence);
        let mut plane = Plane::new(config(setup.seed, setup.bug));
        plane.start();
        let mut world = World {
            now_ms: 0,
            count: 0,
            queue: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            order: 0,
            digest: DefaultHasher::new(),
            setup,
            plane,
            inbox: VecDeque::new(),
            plane_tick_ms: 0,
            cut: None,
            capacities: nodes.iter().map(|node| node.capacity).collect(),
            nodes,
            places: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            media,
            network,
            people: People::default(),
            mood: Mood::Honest,
            invariants: Invariants::default(),
            faults: Faults::default(),
            counters: Counters::default(),
            faulty: true,
            heals_ms: u64::MAX,
            done: false,
            random,
        };
        world.invariants.liveness.started(0);
        (0..count).for_each(|place| world.at(1 + place as u64, What::NodeTick { place }));
        world.at(1, What::PlaneTick);
        world.plane_tick_ms = 1;
        world.at(2_000, What::People);
        world.at(3_000, What::Fault);
        world
    }

    fn at(&mut self, after_ms: u64, what: What) {
        self.order += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(what);
        self.queue.push(Reverse((self.now_ms + after_ms, self.order, slot)));
    }

    fn next(&mut self) {
        // INVARIANT: nodes tick for ever.
        let Some(Reverse((at, _, slot))) = self.queue.pop() else { return };
        let Some(what) = self.slots[slot].take() else { return };
        self.free.push(slot);
        self.now_ms = at;
        if matches!(what, What::PlaneTick) && at != self.plane_tick_ms {
            return;
        }
        self.count += 1;
        if self.faulty && self.count >= self.setup.events {
            self.heal();
        }
        (at, std::mem::discriminant(&what)).hash(&mut self.digest);
        match what {
            What::ToPlane { session, message } => self.input(Input::Node { session, message }),
            What::ToNode { session, message } => self.reach_node(session, message),
            What::PlaneTick => {
                self.input(Input::Tick);
                if self.plane.core.is_none() || self.plane.paused {
                    self.tick_plane_in(PLANE_TICK_MS);
                }
            }
            What::NodeTick { place } => self.tick_node(place),
            What::People => self.ask_something(),
            What::Answer { start, ask, decided } => {
                if self.plane.core.as_ref().is_some_and(|core| core.start() == start) {
                    self.input(Input::Decided { ask, decided });
                }
            }
            What::Fault => self.fault(),
            What::StartNode { place } => self.start_node(place),
            What::ResumeNode { place } => self.resume_node(place),
            What::StartPlane => self.start_plane(),
            What::ResumePlane => self.resume_plane(),
            What::Mend { place } => {
                self.network.cut_from.remove(&place);
                self.network.cut_to.remove(&place);
            }
            What::Look => self.look(),
        }
    }

    // The control plane.

    fn tick_plane_in(&mut self, after_ms: u64) {
        self.plane_tick_ms = self.now_ms + after_ms;
        self.at(after_ms, What::PlaneTick);
    }

    fn input(&mut self, input: Input) {
        if self.plane.core.is_none() {
            return;
        }
        if self.plane.paused {
            self.inbox.push_back(input);
            return;
        }
        let cut = self.cut.take();
        let effects = self.plane.step(self.now_ms, input, cut, self.setup.bug, &mut self.random);
        match cut {
            Some(Cut::BeforeCommit) => self.faults.plane_cut_before_commit += 1,
            Some(Cut::AfterCommit) => self.faults.plane_cut_after_commit += 1,
            None => {}
        }
        let Some(effects) = effects else { return };
        (effects.writes.len(), effects.sends.len(), effects.replies.len()).hash(&mut self.digest);
        if let Some(core) = &self.plane.core {
            let plane_ms = self.now_ms + self.plane.ahead_ms;
            self.invariants.after_step(plane_ms, core, &effects, &self.capacities);
            self.counters = core.counters();
        }
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Effects) {
        for (session, message) in effects.sends {
            let Some(&place) = self.sessions.get(&session) else { continue };
            let message = self.tamper(message);
            let arrivals = self.network.arrivals(place, true, &mut self.random, &mut self.faults);
            for after in arrivals {
                self.at(after, What::ToNode { session, message: message.clone() });
            }
        }
        for reply in effects.replies {
            let is_heard = !self.faulty || self.random.random_bool(0.8);
            if is_heard {
                self.people.hear(reply.token, reply.result, &mut self.random, &mut self.invariants);
            }
        }
        let start = self.plane.core.as_ref().map_or(0, |core| core.start());
        for ask in effects.asks {
            let answered = policy::answer(&ask, self.mood, &mut self.random, &mut self.faults);
            if let Some((after, decided)) = answered {
                self.at(after, What::Answer { start, ask: ask.id, decided });
            }
        }
        if self.plane.core.is_some() {
            let wake = effects.wake_ms.saturating_sub(self.now_ms + self.plane.ahead_ms);
            self.tick_plane_in(wake.clamp(1, PLANE_TICK_MS));
        }
    }

    /// [`Bug::SameEpoch`]: what leaves is not what was meant.
    fn tamper(&self, mut message: ToNode) -> ToNode {
        if self.setup.bug == Some(Bug::SameEpoch)
            && let contract::ToNodeBody::Snapshot(snapshot) = &mut message.body
        {
            for placed in &mut snapshot.volumes {
                placed.epoch.0 = placed.epoch.0.div_ceil(2);
            }
        }
        message
    }

    fn start_plane(&mut self) {
        if self.plane.core.is_some() {
            return;
        }
        self.plane.start();
        self.plane.paused = false;
        self.inbox.clear();
        self.invariants.liveness.started(self.now_ms + self.plane.ahead_ms);
        self.tick_plane_in(1);
    }

    fn resume_plane(&mut self) {
        self.plane.paused = false;
        while let Some(input) = self.inbox.pop_front() {
            self.input(input);
        }
        self.tick_plane_in(1);
    }

    // Nodes.

    fn around<T>(&mut self, place: usize, act: impl FnOnce(&mut Node, &mut Around<'_>) -> T) -> T {
        let up: Vec<bool> = self.nodes.iter().map(|node| node.up && !node.paused).collect();
        let mut around = Around {
            now_ms: self.now_ms,
            media: &mut self.media,
            invariants: &mut self.invariants,
            random: &mut self.random,
            bug: self.setup.bug,
            up: &up,
            places: &self.places,
            faulty: self.faulty,
        };
        act(&mut self.nodes[place], &mut around)
    }

    fn reach_node(&mut self, session: u64, message: ToNode) {
        let Some(&place) = self.sessions.get(&session) else { return };
        let node = &mut self.nodes[place];
        if !node.up || node.session != session {
            return;
        }
        if node.paused {
            node.inbox.push_back(message);
            return;
        }
        self.around(place, |node, around| node.hear(message, around));
    }

    fn tick_node(&mut self, place: usize) {
        let drift = self.nodes[place].drift;
        self.faults.drifting_ticks += u64::from(drift != 1_000);
        self.at(NODE_TICK_MS * drift / 1_000, What::NodeTick { place });
        let node = &mut self.nodes[place];
        if !node.up || node.paused {
            return;
        }
        let report = self.around(place, |node, around| node.tick(around));
        if self.nodes[place].introduce {
            self.nodes[place].introduce = false;
            self.last_session += 1;
            let session = self.last_session;
            self.nodes[place].session = session;
            self.sessions.insert(session, place);
            let info = self.nodes[place].info(self.setup.bug);
            self.reach_plane(place, FromNode::Hello(info));
        }
        self.reach_plane(place, FromNode::Report(report));
    }

    fn reach_plane(&mut self, place: usize, message: FromNode) {
        let session = self.nodes[place].session;
        let arrivals = self.network.arrivals(place, false, &mut self.random, &mut self.faults);
        for after in arrivals {
            self.at(after, What::ToPlane { session, message: message.clone() });
        }
        if let Some(core) = &self.plane.core
            && self.places.len() < self.nodes.len()
        {
            let known = core.nodes().filter_map(|node| Some((node.id, place_of(&node.info.name)?)));
            self.places = known.collect();
        }
    }

    fn start_node(&mut self, place: usize) {
        if !self.nodes[place].up {
            self.nodes[place].start();
        }
    }

    fn resume_node(&mut self, place: usize) {
        self.nodes[place].paused = false;
        while let Some(message) = self.nodes[place].inbox.pop_front() {
            self.around(place, |node, around| node.hear(message, around));
        }
    }

    // People.

    fn ask_something(&mut self) {
        if !self.faulty {
            return;
        }
        let after = self.random.random_range(50..800);
        self.at(after, What::People);
        let Some(core) = &self.plane.core else { return };
        let (token, request) = self.people.ask(core, &mut self.random, self.setup.bug);
        self.input(Input::Request { token, request });
    }

    // Faults.

    fn fault(&mut self) {
        if !self.faulty {
            return;
        }
        let after = self.random.random_range(200..3_000);
        self.at(after, What::Fault);
        let place = self.random.random_range(0..self.nodes.len());
        let long = self.random.random_range(100..12_000);
        match self.random.random_range(0..14) {
            0..2 if self.nodes[place].up => {
                self.faults.node_crashes += 1;
                self.nodes[place].crash(self.setup.bug);
                self.at(long, What::StartNode { place });
            }
            2..4 if self.nodes[place].up && !self.nodes[place].paused => {
                self.faults.node_pauses += 1;
                self.nodes[place].paused = true;
                self.at(long, What::ResumeNode { place });
            }
            4..6 if self.plane.core.is_some() && !self.plane.paused => {
                self.faults.plane_crashes += 1;
                match self.random.random_range(0..3) {
                    0 => self.cut = Some(Cut::BeforeCommit),
                    1 => self.cut = Some(Cut::AfterCommit),
                    _ => self.plane.core = None,
                }
                self.at(long.min(5_000), What::StartPlane);
            }
            6 if self.plane.core.is_some() && !self.plane.paused => {
                self.faults.plane_pauses += 1;
                self.plane.paused = true;
                self.at(long.min(5_000), What::ResumePlane);
            }
            7..9 => {
                self.network.cut_from.insert(place);
                self.at(long, What::Mend { place });
            }
            9..11 => {
                self.network.cut_to.insert(place);
                self.at(long, What::Mend { place });
            }
            11 => {
                self.faults.clock_jumps += 1;
                self.plane.ahead_ms += long;
            }
            _ => self.mood = Mood::ALL[self.random.random_range(0..Mood::ALL.len())],
        }
    }

    /// Nothing goes wrong any more, and an operator takes back what was forbidden.
    fn heal(&mut self) {
        self.faulty = false;
        self.heals_ms = self.now_ms;
        self.network.heal();
        self.mood = Mood::Honest;
        self.people.rest();
        self.cut = None;
        for place in 0..self.nodes.len() {
            self.start_node(place);
            self.resume_node(place);
        }
        self.start_plane();
        self.resume_plane();
        self.at(LOOK_MS, What::Look);
    }

    fn look(&mut self) {
        let Some(core) = &self.plane.core else { return };
        let cordoned: Vec<NodeId> = core.nodes().filter(|node| node.cordoned).map(|node| node.id).collect();
        for node in cordoned {
            let command = Command::NodeCordon { node, cordoned: false };
            let request = Request { idempotency_key: String::new(), expected_revision: None, command };
            self.input(Input::Request { token: 0, request });
        }
        let Some(core) = &self.plane.core else { return };
        let missing = Converges::missing(core, &self.nodes);
        if missing.is_none() {
            self.done = true;
            return;
        }
        let late = self.now_ms - self.heals_ms >= CONVERGE_MS;
        if late {
            let what = missing.unwrap_or_default();
            self.invariants.converges.first.check(false, || what);
            self.done = true;
        } else {
            self.at(LOOK_MS, What::Look);
        }
    }
}
