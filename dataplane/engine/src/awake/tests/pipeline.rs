//! A receiving core and a worker behind it, simulated in virtual time from a seed (acceptance A3, A5).
//!
//! The simulation knows what is really under way for every source. Each decision of the worker at the end
//! of an idle turn is recorded with the time and checked: inside a stay-awake window it never sleeps while
//! a later packet of that source is under way; and it does sleep when nothing is.

use super::*;

const US: u64 = 1_000;
const TABLE: usize = 24;
/// Some sources lie beyond the table.
const SOURCES: usize = 30;
const RING: usize = 256;

/// What the simulation does to the packets.
#[derive(Clone, Copy)]
struct Traffic {
    seed: u64,
    /// Up to [`SOURCES`].
    sources: u64,
    first_id: u32,
    drop_percent: u64,
    /// Drop the last packet of every burst: the case in which an id that is not retired looks pending.
    drop_burst_ends: bool,
    /// Window of the rules under test; the checks always use [`PARAMS`].
    stay_awake_ns: u64,
}

/// Truth about one source.
#[derive(Clone, Copy, Default)]
struct Truth {
    under_way: u64,
    completed_ns: Option<u64>,
}

struct Packet {
    source: u32,
    id: u32,
}

struct World {
    traffic: Traffic,
    random: u64,
    stage1: Stage1,
    truth: [Truth; SOURCES],
    next_arrival_ns: u64,
    burst_left: u64,
    /// Numbered, not handed on: when it is, and whether it is dropped then.
    inside: VecDeque<(u64, Packet, bool)>,
    ring: VecDeque<Packet>,
}

/// What was recorded.
#[derive(Clone, Copy, Debug, Default)]
struct Recorded {
    decisions: u64,
    sleeps: u64,
    stayed: u64,
    asleep_ns: u64,
    end_ns: u64,
    completed: u64,
    /// Sleeps inside a window: none but in the control.
    violations: u64,
    /// Idle decisions against sleep that the awake rules took although nothing was under way.
    needless: u64,
}

impl World {
    fn next(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Lets the first stage run until `now_ns`.
    fn advance(&mut self, now_ns: u64) {
        loop {
            let hand_on_ns = self.inside.front().map_or(u64::MAX, |(at, ..)| *at);
            if self.next_arrival_ns.min(hand_on_ns) > now_ns {
                return;
            }
            if hand_on_ns <= self.next_arrival_ns { self.hand_on() } else { self.arrive() }
        }
    }

    fn arrive(&mut self) {
        let source = self.next(self.traffic.sources) as u32;
        let id = self.stage1.number(source);
        self.truth[source as usize].under_way += 1;
        let last_ns = self.inside.back().map_or(0, |(at, ..)| *at);
        let hand_on_ns = self.next_arrival_ns.max(last_ns) + self.next(8 * US);
        if self.burst_left == 0 {
            self.burst_left = self.next(64);
        }
        self.burst_left = self.burst_left.saturating_sub(1);
        let burst_ends = self.burst_left == 0;
        let dropped = self.next(100) < self.traffic.drop_percent
            || (burst_ends && self.traffic.drop_burst_ends)
            || self.inside.len() + self.ring.len() >= RING;
        self.inside.push_back((hand_on_ns, Packet { source, id }, dropped));
        self.next_arrival_ns += match (burst_ends, self.next(10)) {
            (false, 0) => self.next(20 * US),
            (false, _) => self.next(2 * US),
            (true, 0) => self.next(4_000 * US),
            (true, _) => self.next(400 * US),
        };
    }

    fn hand_on(&mut self) {
        let Some((_, packet, dropped)) = self.inside.pop_front() else { return };
        if dropped {
            self.truth[packet.source as usize].under_way -= 1;
            self.stage1.retire(packet.source, packet.id);
        } else {
            self.ring.push_back(packet);
        }
    }

    /// When the next packet comes into the ring, which wakes a sleeper.
    fn run_until_push(&mut self, limit_ns: u64) -> u64 {
        let mut now = 0;
        while self.ring.is_empty() && now < limit_ns {
            now = self.next_arrival_ns.min(self.inside.front().map_or(u64::MAX, |(at, ..)| *at));
            self.advance(now.min(limit_ns));
        }
        now.min(limit_ns)
    }

    /// A later packet is really under way for a source whose window is open.
    fn must_stay(&self, now_ns: u64) -> bool {
        self.truth.iter().any(|truth| {
            truth.under_way > 0 && truth.completed_ns.is_some_and(|at| now_ns < at + PARAMS.stay_awake_ns)
        })
    }
}

/// Runs until `decisions` were recorded.
fn run(traffic: Traffic, decisions: u64) -> Recorded {
    let params = AwakeParams { stay_awake_ns: traffic.stay_awake_ns, ..PARAMS };
    let (stage1, mut downstream) = SourceTable::starting_at(TABLE, params, traffic.first_id);
    let mut world = World {
        traffic,
        random: traffic.seed,
        stage1,
        truth: [Truth::default(); SOURCES],
        next_arrival_ns: 0,
        burst_left: 0,
        inside: VecDeque::new(),
        ring: VecDeque::new(),
    };
    let mut ladder = Ladder::new(IdleParams { pause_ns: 5 * US, ..IdleParams::default() }, 0);
    let mut recorded = Recorded::default();
    let mut now = 0;
    while recorded.decisions < decisions {
        world.advance(now);
        let batch = world.ring.len().min(32);
        for packet in world.ring.drain(..batch) {
            let truth = &mut world.truth[packet.source as usize];
            truth.under_way -= 1;
            truth.completed_ns = Some(now);
            downstream.completed(now, packet.source, packet.id);
            recorded.completed += 1;
        }
        let turn = TurnOutcome { work: batch, ..TurnOutcome::default() };
        let mut asked = None;
        let rung = ladder.step(now, turn, || {
            let hint = downstream.hint(now, world.ring.len());
            asked = Some(hint);
            hint
        });
        if batch > 0 {
            now += 200 + 100 * batch as u64;
            continue;
        }
        recorded.decisions += 1;
        let must_stay = world.must_stay(now);
        if let Rung::Sleep { timeout_ns } = rung {
            recorded.violations += u64::from(must_stay);
            let woken_ns = world.run_until_push(now + timeout_ns) + 5 * US;
            recorded.sleeps += 1;
            recorded.asleep_ns += woken_ns - now;
            now = woken_ns;
            ladder.woke(now, true, true);
        } else {
            let stayed = matches!(asked, Some(AwakeHint::StayAwake { .. }));
            recorded.stayed += u64::from(stayed);
            recorded.needless += u64::from(stayed && !must_stay);
            now += 400;
        }
    }
    recorded.end_ns = now;
    recorded
}

/// Decisions per run: 10^6 in CI; `TIDEGATE_DECISIONS=10000000` for the full acceptance run.
fn decisions() -> u64 {
    std::env::var("TIDEGATE_DECISIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

const TRAFFIC: Traffic = Traffic {
    seed: 42,
    sources: SOURCES as u64,
    first_id: 0,
    drop_percent: 0,
    drop_burst_ends: false,
    stay_awake_ns: PARAMS.stay_awake_ns,
};

#[test]
fn recorded_decisions_never_sleep_inside_the_stay_awake_window() {
    let traffic = Traffic { drop_percent: 10, first_id: u32::MAX - 9, ..TRAFFIC };
    let recorded = run(traffic, decisions());
    println!("{recorded:?}");
    assert_eq!((recorded.decisions, recorded.violations), (decisions(), 0));
    assert!(recorded.sleeps > recorded.decisions / 1_000, "{recorded:?}");
    assert!(recorded.stayed > recorded.decisions / 1_000, "the rules had nothing to do: {recorded:?}");
}

/// The check above has teeth: without the rules the same worker does sleep inside windows.
#[test]
fn without_the_rules_the_simulation_catches_sleep_inside_windows() {
    let recorded = run(Traffic { stay_awake_ns: 0, ..TRAFFIC }, decisions() / 4);
    assert!(recorded.violations > recorded.sleeps / 100, "{recorded:?}");
}

/// A5. Without `retire` the worker would stay awake for the window after each such burst.
#[test]
fn dropping_upstream_still_idles() {
    let share = |traffic| {
        let recorded = run(traffic, decisions() / 4);
        recorded.asleep_ns as f64 / recorded.end_ns as f64
    };
    let without = share(TRAFFIC);
    let tenth = share(Traffic { drop_percent: 10, ..TRAFFIC });
    let ends = share(Traffic { drop_burst_ends: true, ..TRAFFIC });
    println!("asleep: {without:.3} without drops, {tenth:.3} at 10 %, {ends:.3} with every burst's end");
    assert!(without > 0.3 && tenth > without - 0.03 && ends > without - 0.03);
}

#[test]
fn the_rules_keep_awake_for_nothing_only_for_sources_beyond_the_table() {
    let recorded = run(Traffic { drop_percent: 10, sources: TABLE as u64, ..TRAFFIC }, decisions() / 4);
    assert_eq!((recorded.needless, recorded.violations), (0, 0), "{recorded:?}");
    assert!(recorded.stayed > 0);
}
