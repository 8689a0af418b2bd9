//! The idle ladder: spin, pause, sleep. A pure state machine over the turns of one worker.
//!
//! After a turn without work the worker polls again at once for `spin_ns` (about what a wake-up costs:
//! spinning that long is never more than twice the best possible, whatever the traffic). Then, if that has
//! paid lately, it goes on for `pause_ns` with processor pauses between the polls; then it sleeps in the
//! one wait point ([`crate::wait`]).
//!
//! *Has paid* is a running share: of the gaps that were longer than `spin_ns`, how many ended before the
//! pause rung did? At 20,000 packets per second most do and the worker stays up; at 1,000 per second, or
//! between bursts, none does and the worker sleeps after `spin_ns`. Inside a burst the gaps are shorter
//! than either.
//!
//! A worker that would sleep asks the awake rules ([`crate::awake`]) first, and stays on the pause rung if
//! they say so. A timer that is due sooner than a wake-up takes is waited for on the pause rung too.
//!
//! There is no WAITPKG rung (`umwait`) between pause and sleep: it needs a processor that has it.
//!
//! Invariants: parameters are held to the host's limits; work ends every rung; the ladder never asks for a
//! sleep beyond the next deadline, nor beyond `max_sleep_ns` if an input has to be polled.

use crate::awake::{AwakeHint, AwakeParams, STAY_AWAKE_NS_MAX};

/// Parameters of one worker's ladder. [`IdleParams::clamped`] holds them to the host's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleParams {
    /// Time without work during which the worker polls flat out.
    pub spin_ns: u64,
    /// Time after that during which it pauses between polls, while that pays.
    pub pause_ns: u64,
    /// Longest time kept awake by the awake rules for one cause; 0..=1 ms.
    pub stay_awake_ns: u64,
    /// Frames in an upstream queue above which the worker stays awake.
    pub upstream_threshold: usize,
    /// Longest sleep of a worker with an input that cannot wake it (a null port); 1 us..=1 ms. Workers all
    /// of whose inputs can wake them sleep until something happens, but for a look each 100 ms.
    pub max_sleep_ns: u64,
}

/// What a turn did, as far as idling is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnOutcome {
    /// Frames, commands and timers handled. 0 = an idle turn.
    pub work: usize,
    /// When the earliest timer of the worker is due.
    pub deadline_ns: Option<u64>,
    /// An input of this worker has no descriptor and no waker.
    pub must_poll: bool,
}

/// What to do before the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// Nothing: begin the next turn.
    Spin,
    /// [`pause`], then the next turn.
    Pause,
    /// Block in the wait point, at most this long, then [`Ladder::woke`].
    Sleep {
        /// Time-out for [`crate::wait::WaitPoint::block`].
        timeout_ns: u64,
    },
}

/// Where a worker's time went, and how its sleeps ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdleTimes {
    /// Turns with work.
    pub working_ns: u64,
    /// Idle turns after which the worker went on at once.
    pub spinning_ns: u64,
    /// Idle turns after which it paused, and the pauses.
    pub pausing_ns: u64,
    /// Blocked.
    pub sleeping_ns: u64,
    /// Times blocked.
    pub sleeps: u64,
    /// Sleeps ended by input or by another thread.
    pub wakeups: u64,
    /// Sleeps that ended more than 100 us and 1 % after their deadline.
    pub late_wakeups: u64,
    /// Sleeps put off by the awake rules.
    pub stay_awake_hits: u64,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Ladder {
    params: IdleParams,
    /// Time without work began here.
    idle_since_ns: u64,
    last_ns: u64,
    last: Last,
    kept_awake: bool,
    /// Share of long gaps that the pause rung caught lately, in 1/65536.
    caught: u32,
    times: IdleTimes,
}

/// What the turn before was and what followed it: that is where the time since then went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Work,
    Spin,
    Pause,
    Sleep { deadline_ns: u64 },
}

impl Default for IdleParams {
    fn default() -> Self {
        Self {
            spin_ns: 10_000,
            pause_ns: 50_000,
            stay_awake_ns: 50_000,
            upstream_threshold: 0,
            max_sleep_ns: MAX_SLEEP_NS_MAX,
        }
    }
}

impl IdleParams {
    /// Never sleeps: for comparison, and for machines with cores to spare.
    pub fn pure_spin() -> Self {
        Self { spin_ns: u64::MAX, ..Self::default() }
    }

    /// Sleeps at once when there is nothing to do: for comparison, and when workers share processors.
    pub fn block_at_once() -> Self {
        Self { spin_ns: 0, pause_ns: 0, stay_awake_ns: 0, ..Self::default() }
    }

    /// With the host's limits applied.
    pub fn clamped(self) -> Self {
        Self {
            stay_awake_ns: self.stay_awake_ns.min(STAY_AWAKE_NS_MAX),
            max_sleep_ns: self.max_sleep_ns.clamp(MAX_SLEEP_NS_MIN, MAX_SLEEP_NS_MAX),
            ..self
        }
    }

    /// The part that the awake rules need.
    pub fn awake(&self) -> AwakeParams {
        AwakeParams { stay_awake_ns: self.stay_awake_ns, upstream_threshold: self.upstream_threshold }
            .clamped()
    }

    /// The parameters for `workers` on `cpus` processors. More workers than processors must not spin: each
    /// would keep the one it waits for from running. The message says so, for the log.
    pub fn for_machine(self, workers: usize, cpus: usize) -> (Self, Option<String>) {
        let params = self.clamped();
        if workers <= cpus || (params.spin_ns == 0 && params.pause_ns == 0 && params.stay_awake_ns == 0) {
            return (params, None);
        }
        let message = format!(
            "{workers} workers share {cpus} processors: none of them spins, each sleeps as soon as it has \
             nothing to do; latency will be worse than with at most {cpus} workers"
        );
        (Self { spin_ns: 0, pause_ns: 0, stay_awake_ns: 0, ..params }, Some(message))
    }
}

impl Ladder {
    /// A ladder that begins at `now_ns` with the parameters held to their limits.
    pub fn new(params: IdleParams, now_ns: u64) -> Self {
        Self {
            params: params.clamped(),
            idle_since_ns: now_ns,
            last_ns: now_ns,
            last: Last::Spin,
            kept_awake: false,
            caught: CAUGHT_ONE,
            times: IdleTimes::default(),
        }
    }

    /// What to do after a turn that took place at `now_ns`, the turn's one clock reading.
    ///
    /// `awake` is asked only if the worker would sleep otherwise.
    #[inline]
    pub fn step(&mut self, now_ns: u64, turn: TurnOutcome, awake: impl FnOnce() -> AwakeHint) -> Rung {
        if turn.work > 0 {
            self.account(now_ns);
            self.end_gap(now_ns);
            return Rung::Spin;
        }
        if self.last == Last::Work {
            self.idle_since_ns = now_ns;
        }
        self.account(now_ns);
        let rung = self.idle_rung(now_ns, turn, awake);
        self.last = match rung {
            Rung::Spin => Last::Spin,
            Rung::Pause => Last::Pause,
            Rung::Sleep { timeout_ns } => Last::Sleep { deadline_ns: now_ns.saturating_add(timeout_ns) },
        };
        rung
    }

    /// After [`Rung::Sleep`]: the wait ended at `now_ns`; `slept` if it blocked at all, `by_event` if
    /// something other than the time-out ended it.
    pub fn woke(&mut self, now_ns: u64, slept: bool, by_event: bool) {
        let Last::Sleep { deadline_ns } = self.last else { return };
        self.last = Last::Spin;
        if slept {
            self.times.sleeping_ns += now_ns.saturating_sub(self.last_ns);
            self.times.sleeps += 1;
            self.times.wakeups += u64::from(by_event);
            // The kernel itself lets long waits end up to 0.1 % late (0.5 % for nice threads).
            let grace_ns = LATE_NS + deadline_ns.saturating_sub(self.last_ns) / 100;
            let late = !by_event && now_ns.saturating_sub(deadline_ns) > grace_ns;
            self.times.late_wakeups += u64::from(late);
            self.last_ns = self.last_ns.max(now_ns);
        }
    }

    /// Where the time went so far.
    pub fn times(&self) -> &IdleTimes {
        &self.times
    }

    /// The parameters in force.
    pub fn params(&self) -> &IdleParams {
        &self.params
    }

    /// New parameters from the next turn on; held to their limits.
    pub fn set_params(&mut self, params: IdleParams) {
        self.params = params.clamped();
        self.caught = CAUGHT_ONE;
    }

    fn idle_rung(&mut self, now_ns: u64, turn: TurnOutcome, awake: impl FnOnce() -> AwakeHint) -> Rung {
        let idle_ns = now_ns.saturating_sub(self.idle_since_ns);
        if idle_ns < self.params.spin_ns {
            return Rung::Spin;
        }
        let until_deadline_ns = turn.deadline_ns.map_or(u64::MAX, |due| due.saturating_sub(now_ns));
        let pause_pays = self.caught >= CAUGHT_MIN && self.params.pause_ns > 0;
        if (pause_pays && idle_ns - self.params.spin_ns < self.params.pause_ns)
            || until_deadline_ns < self.params.spin_ns.min(WAKE_NS)
        {
            return Rung::Pause;
        }
        if let AwakeHint::StayAwake { until_ns } = awake()
            && now_ns < until_ns
        {
            self.times.stay_awake_hits += u64::from(!self.kept_awake);
            self.kept_awake = true;
            return Rung::Pause;
        }
        self.kept_awake = false;
        let limit_ns = if turn.must_poll { self.params.max_sleep_ns } else { HEARTBEAT_NS };
        Rung::Sleep { timeout_ns: until_deadline_ns.min(limit_ns) }
    }

    /// Work arrived: learn from the gap before it, if there was one.
    #[inline]
    fn end_gap(&mut self, now_ns: u64) {
        let gap_ns = now_ns.saturating_sub(self.idle_since_ns);
        if self.last != Last::Work && gap_ns > self.params.spin_ns {
            let caught = gap_ns - self.params.spin_ns <= self.params.pause_ns;
            let sample = if caught { CAUGHT_ONE } else { 0 };
            self.caught = self.caught - self.caught / CAUGHT_WEIGHT + sample / CAUGHT_WEIGHT;
        }
        self.kept_awake = false;
        self.last = Last::Work;
    }

    #[inline]
    fn account(&mut self, now_ns: u64) {
        let spent_ns = now_ns.saturating_sub(self.last_ns);
        self.last_ns = self.last_ns.max(now_ns);
        let times = &mut self.times;
        let place = match self.last {
            Last::Work => &mut times.working_ns,
            Last::Pause => &mut times.pausing_ns,
            // A sleep that was not blocked in: work was found at the second look.
            Last::Spin | Last::Sleep { .. } => &mut times.spinning_ns,
        };
        *place += spent_ns;
    }
}

/// The pause rung's wait: a fraction of a microsecond in which the processor's other thread, memory and
/// power budget are left alone.
#[inline]
pub fn pause() {
    for _ in 0..PAUSES {
        std::hint::spin_loop();
    }
}

/// The host's limits for `max_sleep_ns`.
pub const MAX_SLEEP_NS_MAX: u64 = 1_000_000;
const MAX_SLEEP_NS_MIN: u64 = 1_000;
/// Longest sleep of a worker whose inputs all wake it. Nothing depends on it; it bounds the harm of a
/// driver that misses an event, at ten wake-ups per second.
const HEARTBEAT_NS: u64 = 100_000_000;
/// About what falling asleep and waking up takes: sleeps shorter than this are not worth it.
const WAKE_NS: u64 = 10_000;
/// A sleep that ends later than this and 1 % after its deadline is counted.
const LATE_NS: u64 = 100_000;
const PAUSES: usize = 8;
const CAUGHT_ONE: u32 = 1 << 16;
/// The pause rung is used while it catches at least one long gap in eight.
const CAUGHT_MIN: u32 = CAUGHT_ONE / 8;
/// The running share forgets 1/8 with each long gap.
const CAUGHT_WEIGHT: u32 = 8;

#[cfg(test)]
mod tests;
