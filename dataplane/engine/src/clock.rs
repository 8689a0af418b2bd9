//! Time for one worker: one read of the time-stamp counter per turn.
//!
//! Everything a worker does in one turn happens at the same instant, which [`Clock::turn`] reads once.
//! Nanoseconds are `base + ((tsc - tsc_base) * mult >> 32)`: a read, a subtraction, a multiplication.
//! About once per second the same call takes a cold branch that compares with `CLOCK_MONOTONIC` and
//! chooses `mult` so that the error found is gone a second later; time is bent, not stepped, and drift
//! stays below a microsecond. Because all workers follow `CLOCK_MONOTONIC`, their times agree.
//!
//! Invariants: time never goes backwards. A counter that does (resume from suspend, a virtual machine
//! that moved) is counted and re-based on `CLOCK_MONOTONIC`. After a gap (suspend, a stopped thread)
//! time jumps forward to `CLOCK_MONOTONIC`; if the counter ran ahead, time stands still until
//! `CLOCK_MONOTONIC` has caught up, for at most the second between two comparisons.
//! Where the counter is not constant, each turn reads `CLOCK_MONOTONIC` instead (the same invariants).

use rustix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;

/// A worker's clock. Not shared: each worker has its own.
#[derive(Debug)]
pub struct Clock {
    source: ClockSource,
    timeline: Timeline,
    /// The counter at the last turn.
    turn_tsc: u64,
}

/// Where a [`Clock`] takes time from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// The time-stamp counter, corrected by `CLOCK_MONOTONIC` once per second.
    Tsc,
    /// `CLOCK_MONOTONIC` at every turn: the processor lacks `constant_tsc` or `nonstop_tsc`.
    Monotonic,
}

/// Tells the time within a turn, for the few things that must be told apart there: steps of I/Os that are followed. A
/// reading costs about 19 ns.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    hand: Hand,
    turn_ns: u64,
}

#[derive(Clone, Copy, Debug)]
enum Hand {
    /// The counter at the turn's beginning, and its rate.
    Tsc {
        start: u64,
        mult: u64,
    },
    Monotonic,
    /// Virtual time: all of a turn is one instant.
    Still,
}

impl Stopwatch {
    /// One that shows the turn's beginning whenever it is read.
    pub fn still(turn_ns: u64) -> Stopwatch {
        Stopwatch { hand: Hand::Still, turn_ns }
    }

    /// When the turn began, ns.
    #[inline]
    pub fn turn_ns(&self) -> u64 {
        self.turn_ns
    }

    /// Now, ns; never before the turn's beginning.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        match self.hand {
            Hand::Tsc { start, mult } => {
                let counts = frame::tsc().saturating_sub(start);
                let ns = (u128::from(counts) * u128::from(mult)) >> SHIFT;
                self.turn_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
            }
            Hand::Monotonic => monotonic_ns().max(self.turn_ns),
            Hand::Still => self.turn_ns,
        }
    }
}

/// What a clock had to put right since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockCounters {
    /// Comparisons with `CLOCK_MONOTONIC`.
    pub recalibrations: u64,
    /// The counter was found behind its own past.
    pub backwards: u64,
    /// Turns in which time stood still so as not to go backwards.
    pub held: u64,
    /// Errors too large to bend away: time jumped forward or stood still.
    pub jumps: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock on the best source that this machine has. The first one in a process measures the counter
    /// for some milliseconds.
    pub fn new() -> Self {
        let source = if tsc_is_constant() { ClockSource::Tsc } else { ClockSource::Monotonic };
        Self::with_source(source)
    }

    /// A clock on a given source.
    pub fn with_source(source: ClockSource) -> Self {
        let mult = match source {
            ClockSource::Tsc => initial_mult(),
            ClockSource::Monotonic => 1 << SHIFT,
        };
        let start = sample();
        Self { source, timeline: Timeline::new(start, mult), turn_tsc: start.tsc }
    }

    /// The time of this turn in nanoseconds of `CLOCK_MONOTONIC`. Call once per turn.
    #[inline]
    pub fn turn(&mut self) -> u64 {
        match self.source {
            ClockSource::Tsc => {
                self.turn_tsc = frame::tsc();
                self.timeline.at(self.turn_tsc, sample)
            }
            ClockSource::Monotonic => self.timeline.at_ns(monotonic_ns()),
        }
    }

    /// The time of the last [`Clock::turn`].
    #[inline]
    pub fn last_ns(&self) -> u64 {
        self.timeline.last_ns
    }

    /// For measurements inside the turn that [`Clock::turn`] began.
    #[inline]
    pub fn stopwatch(&self) -> Stopwatch {
        let hand = match self.source {
            ClockSource::Tsc => Hand::Tsc { start: self.turn_tsc, mult: self.timeline.mult },
            ClockSource::Monotonic => Hand::Monotonic,
        };
        Stopwatch { hand, turn_ns: self.timeline.last_ns }
    }

    /// Where time comes from.
    pub fn source(&self) -> ClockSource {
        self.source
    }

    /// What had to be put right.
    pub fn counters(&self) -> ClockCounters {
        self.timeline.counters
    }
}

/// `CLOCK_MONOTONIC` now, for threads that have no [`Clock`].
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // CLOCK_MONOTONIC counts up from boot: neither part is ever negative.
    (now.tv_sec as u64).wrapping_mul(NS_PER_S).wrapping_add(now.tv_nsec as u64)
}

/// The counter and `CLOCK_MONOTONIC` at the same instant.
#[derive(Clone, Copy, Debug)]
struct Sample {
    tsc: u64,
    ns: u64,
}

/// The pure part: turns counter readings into nanoseconds.
#[derive(Debug)]
struct Timeline {
    tsc_base: u64,
    ns_base: u64,
    /// Nanoseconds per count, times 2^32, with the correction of the last comparison.
    mult: u64,
    /// Counts after which to compare again; keeps `delta * mult` below 2^64.
    period: u64,
    last_ns: u64,
    /// The last comparison, from which the counter's rate is measured.
    anchor: Sample,
    counters: ClockCounters,
}

impl Timeline {
    fn new(start: Sample, mult: u64) -> Self {
        let mult = mult.clamp(MULT_MIN, MULT_MAX);
        Self {
            tsc_base: start.tsc,
            ns_base: start.ns,
            mult,
            period: period(mult),
            last_ns: start.ns,
            anchor: start,
            counters: ClockCounters::default(),
        }
    }

    #[inline]
    fn at(&mut self, tsc: u64, sample: impl FnOnce() -> Sample) -> u64 {
        // A counter that went backwards wraps to a huge delta and takes the same branch.
        let delta = tsc.wrapping_sub(self.tsc_base);
        if delta >= self.period {
            return self.recalibrate(sample());
        }
        self.at_ns(self.ns_base.saturating_add((delta * self.mult) >> SHIFT))
    }

    #[inline]
    fn at_ns(&mut self, ns: u64) -> u64 {
        if ns < self.last_ns {
            self.counters.held += 1;
        } else {
            self.last_ns = ns;
        }
        self.last_ns
    }

    #[inline]
    fn span_ns(&self, delta: u64) -> u64 {
        u64::try_from((u128::from(delta) * u128::from(self.mult)) >> SHIFT).unwrap_or(u64::MAX)
    }

    #[cold]
    #[inline(never)]
    fn recalibrate(&mut self, truth: Sample) -> u64 {
        self.counters.recalibrations += 1;
        let backwards = truth.tsc < self.tsc_base;
        if backwards {
            self.counters.backwards += 1;
        }
        let ours = if backwards {
            truth.ns
        } else {
            self.ns_base.saturating_add(self.span_ns(truth.tsc - self.tsc_base))
        };
        let error_ns = i128::from(truth.ns) - i128::from(ours);
        let rate = self.rate_since_anchor(truth).unwrap_or(self.mult);
        if backwards || error_ns.unsigned_abs() > JUMP_NS {
            self.counters.jumps += u64::from(!backwards);
            self.ns_base = truth.ns;
            self.mult = rate;
        } else {
            self.ns_base = ours;
            self.mult = bend(rate, error_ns);
        }
        self.tsc_base = truth.tsc;
        self.period = period(self.mult);
        self.anchor = truth;
        self.at_ns(self.ns_base)
    }

    /// The counter's rate over the last period, if that period tells one.
    fn rate_since_anchor(&self, truth: Sample) -> Option<u64> {
        let counts = truth.tsc.checked_sub(self.anchor.tsc)?;
        let ns = truth.ns.checked_sub(self.anchor.ns)?;
        if counts == 0 || ns < RATE_SPAN_NS_MIN {
            return None;
        }
        let rate = u64::try_from((u128::from(ns) << SHIFT) / u128::from(counts)).ok()?;
        // A rate far from the known one is a suspend or a jump, not a rate.
        (rate.abs_diff(self.mult) < self.mult / 256).then_some(rate)
    }
}

/// The rate at which `error` is gone after one period.
fn bend(rate: u64, error_ns: i128) -> u64 {
    let correction = i128::from(rate) * error_ns / i128::from(PERIOD_NS);
    // |error| <= JUMP_NS, so the correction is at most a thousandth of the rate.
    (i128::from(rate) + correction) as u64
}

/// Counts in [`PERIOD_NS`].
fn period(mult: u64) -> u64 {
    ((u128::from(PERIOD_NS) << SHIFT) / u128::from(mult)) as u64
}

/// Reads counter and `CLOCK_MONOTONIC` together: the tightest of a few pairs, so that an interrupt in
/// between does not become an error.
fn sample() -> Sample {
    let mut best = Sample { tsc: 0, ns: 0 };
    let mut best_width = u64::MAX;
    for _ in 0..SAMPLE_TRIES {
        let before = frame::tsc();
        let ns = monotonic_ns();
        let width = frame::tsc().wrapping_sub(before);
        if width < best_width {
            best_width = width;
            best = Sample { tsc: before.wrapping_add(width / 2), ns };
        }
    }
    best
}

/// Nanoseconds per count times 2^32, measured once per process.
fn initial_mult() -> u64 {
    static MULT: OnceLock<u64> = OnceLock::new();
    *MULT.get_or_init(|| {
        let start = sample();
        while monotonic_ns() < start.ns + FIRST_SPAN_NS {
            std::hint::spin_loop();
        }
        let end = sample();
        let counts = end.tsc.wrapping_sub(start.tsc).max(1);
        let ns = end.ns.saturating_sub(start.ns);
        u64::try_from((u128::from(ns) << SHIFT) / u128::from(counts)).unwrap_or(MULT_MAX)
    })
}

/// Whether the counter runs at one rate whatever the processor does.
fn tsc_is_constant() -> bool {
    static CONSTANT: OnceLock<bool> = OnceLock::new();
    *CONSTANT.get_or_init(|| {
        cfg!(target_arch = "x86_64")
            && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| flags_tell_constant(&text))
    })
}

/// Every processor of `/proc/cpuinfo` has both `constant_tsc` and `nonstop_tsc`.
fn flags_tell_constant(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags")).peekable();
    flags.peek().is_some()
        && flags.all(|line| {
            let has = |flag| line.split_ascii_whitespace().any(|word| word == flag);
            has("constant_tsc") && has("nonstop_tsc")
        })
}

const NS_PER_S: u64 = 1_000_000_000;
const SHIFT: u32 = 32;
/// Time between two comparisons with `CLOCK_MONOTONIC`.
const PERIOD_NS: u64 = NS_PER_S;
/// Errors up to this are bent away; larger ones are jumps.
const JUMP_NS: u128 = 1_000_000;
/// Shortest span from which a rate is taken.
const RATE_SPAN_NS_MIN: u64 = NS_PER_S / 2;
/// Span of the first measurement.
const FIRST_SPAN_NS: u64 = 4_000_000;
const SAMPLE_TRIES: usize = 5;
/// 16 GHz and 64 MHz: rates beyond are not processors, and within them no multiplication overflows.
const MULT_MIN: u64 = (1 << SHIFT) / 16;
const MULT_MAX: u64 = (1 << SHIFT) * 16;

#[cfg(test)]
mod tests;
