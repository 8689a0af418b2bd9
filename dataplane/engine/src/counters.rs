//! What a worker counts, and how others read it.
//!
//! The worker counts in plain fields of its own [`Counters`]: no atomics, no sharing. At the end of a turn
//! [`Counters::end_turn`] copies them into a seqlock ([`crate::seqlock`]), at most every 20 us and
//! always before sleep, so every record that a reader sees is from the end of a turn and balances
//! (decision D18):
//!
//! `rx + generated + split = tx + delivered + parked + dropped + merged + in_flight`
//!
//! Readers ([`CountersReader`]) live on other threads, get one whole record per worker and add them up.
//! Counters wrap and sums wrap; nothing here panics. Counts per volume are not here: there may be 100,000
//! of them, their owner keeps them beside the volume's credits ([`throttle::VolumeCounters`]) and tells
//! them when asked.

use crate::idle::IdleTimes;
use crate::seqlock::{Seqlock, Writer};
use frame::DropReason;
use std::sync::Arc;

/// Declares a record of plain `u64` counters that can be published, read back and summed.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: u64,)* }

        impl $name {
            /// Names of the counters, in order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($field),)*];
            const WORDS: usize = Self::NAMES.len();

            /// Values of the counters, in the order of [`Self::NAMES`].
            pub fn values(&self) -> [u64; Self::WORDS] {
                [$(self.$field,)*]
            }

            fn from_words(words: &mut impl Iterator<Item = u64>) -> Self {
                Self { $($field: words.next().unwrap_or(0),)* }
            }

            /// Adds another worker's record.
            pub fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.wrapping_add(other.$field);)*
            }
        }
    };
}

record! {
    /// Where every frame went (decision D18). `parked` and `in_flight` say how many are there now; the
    /// others only grow.
    TurnRecord {
        /// Turns so far.
        turns,
        /// Turns with work.
        turns_with_work,
        /// Taken from ports, and from rings of other workers.
        rx,
        /// Made here: ARP, ICMP, answers, tests.
        generated,
        /// Extra frames made by segmentation (segments less the super-segment).
        split,
        /// Taken by a port or by another worker's ring.
        tx,
        /// Consumed here as their destination.
        delivered,
        /// Waiting for credits now.
        parked,
        /// Dropped, under exactly one reason each.
        dropped,
        /// Gone by being merged into another frame.
        merged,
        /// In the worker's own queues now: egress batches, unresolved neighbours.
        in_flight,
    }
}

record! {
    /// One stage of the pipeline.
    StageRecord {
        /// Frames handled.
        frames,
        /// Calls with at least one frame.
        batches,
        /// Turns in which the stage had work.
        turns,
    }
}

record! {
    /// One port as this worker sees it. `held` says how many are there now; the others only grow, from zero
    /// whenever the port is opened.
    PortRecord {
        /// Frames received.
        rx_frames,
        /// Bytes received.
        rx_bytes,
        /// Frames sent.
        tx_frames,
        /// Bytes sent.
        tx_bytes,
        /// Frames that the kernel dropped before us.
        rx_kernel_drops,
        /// Frames that the port could not send.
        tx_errors,
        /// Frames that arrived cut off.
        rx_truncated,
        /// Times that a frame could not be received because none was free.
        rx_no_frame,
        /// Lost on purpose (fault injection).
        faults_lost,
        /// Copies made on purpose.
        faults_doubled,
        /// Frames damaged on purpose.
        faults_corrupted,
        /// Frames held back on purpose.
        faults_delayed,
        /// Frames that the port holds back now.
        held,
    }
}

record! {
    /// Where the worker's time went and how its sleeps ended; see [`IdleTimes`].
    TimeRecord {
        /// Turns with work.
        working_ns,
        /// Idle turns on the spin rung.
        spinning_ns,
        /// Idle turns on the pause rung.
        pausing_ns,
        /// Blocked.
        sleeping_ns,
        /// Times blocked.
        sleeps,
        /// Sleeps ended by input or by another thread.
        wakeups,
        /// Sleeps that ended more than 100 us and 1 % after their deadline.
        late_wakeups,
        /// Sleeps put off by the awake rules.
        stay_awake_hits,
    }
}

impl TurnRecord {
    /// Decision D18: every frame that came in is somewhere.
    pub fn balanced(&self) -> bool {
        let came = self.rx.wrapping_add(self.generated).wrapping_add(self.split);
        let went = self.tx.wrapping_add(self.delivered).wrapping_add(self.dropped);
        came == went.wrapping_add(self.parked).wrapping_add(self.merged).wrapping_add(self.in_flight)
    }
}

impl From<&IdleTimes> for TimeRecord {
    fn from(times: &IdleTimes) -> Self {
        Self {
            working_ns: times.working_ns,
            spinning_ns: times.spinning_ns,
            pausing_ns: times.pausing_ns,
            sleeping_ns: times.sleeping_ns,
            sleeps: times.sleeps,
            wakeups: times.wakeups,
            late_wakeups: times.late_wakeups,
            stay_awake_hits: times.stay_awake_hits,
        }
    }
}

/// One worker's counters, owned by that worker. Count by adding to the fields.
#[derive(Debug)]
pub struct Counters {
    /// Where frames went.
    pub turn: TurnRecord,
    /// Stages, in the order of the names given to [`Counters::new`].
    pub stages: Box<[StageRecord]>,
    /// Ports by number.
    pub ports: Box<[PortRecord]>,
    drops: [u64; DropReason::COUNT],
    shared: Arc<Shared>,
    published_ns: u64,
}

/// Reads one worker's counters from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CountersReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stages: &'static [&'static str],
    ports: usize,
    words: Seqlock,
}

/// One whole record of one worker, or the sum of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Where frames went.
    pub turn: TurnRecord,
    /// Where time went.
    pub time: TimeRecord,
    /// Drops by number of the reason.
    pub drops: [u64; DropReason::COUNT],
    /// Stages by name.
    pub stages: Vec<(&'static str, StageRecord)>,
    /// Ports by number.
    pub ports: Vec<PortRecord>,
}

impl Counters {
    /// Counters for these stages and for up to `ports` ports, all 0.
    pub fn new(stages: &'static [&'static str], ports: usize) -> Self {
        let words = TurnRecord::WORDS
            + TimeRecord::WORDS
            + DropReason::COUNT
            + stages.len() * StageRecord::WORDS
            + ports * PortRecord::WORDS;
        Self {
            turn: TurnRecord::default(),
            stages: vec![StageRecord::default(); stages.len()].into(),
            ports: vec![PortRecord::default(); ports].into(),
            drops: [0; DropReason::COUNT],
            shared: Arc::new(Shared { stages, ports, words: Seqlock::new(words) }),
            published_ns: 0,
        }
    }

    /// A handle for other threads.
    pub fn reader(&self) -> CountersReader {
        CountersReader { shared: Arc::clone(&self.shared) }
    }

    /// Counts `frames` dropped under `reason`.
    #[inline]
    pub fn dropped(&mut self, reason: DropReason, frames: u64) {
        self.turn.dropped = self.turn.dropped.wrapping_add(frames);
        let count = &mut self.drops[reason as usize];
        *count = count.wrapping_add(frames);
    }

    /// Drops so far under `reason`.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Counts one call of a stage with `frames` frames. `first` = the stage's first call in this turn.
    #[inline]
    pub fn stage(&mut self, stage: usize, frames: usize, first: bool) {
        if frames > 0
            && let Some(record) = self.stages.get_mut(stage)
        {
            record.frames = record.frames.wrapping_add(frames as u64);
            record.batches = record.batches.wrapping_add(1);
            record.turns = record.turns.wrapping_add(u64::from(first));
        }
    }

    /// End of a turn at `now_ns`: counts it and publishes if the last record is 20 us old.
    #[inline]
    pub fn end_turn(&mut self, now_ns: u64, worked: bool, times: &IdleTimes) {
        self.turn.turns = self.turn.turns.wrapping_add(1);
        self.turn.turns_with_work = self.turn.turns_with_work.wrapping_add(u64::from(worked));
        if now_ns.wrapping_sub(self.published_ns) >= PUBLISH_NS {
            self.publish(now_ns, times);
        }
    }

    /// Publishes now: before sleep and when the worker ends.
    pub fn publish(&mut self, now_ns: u64, times: &IdleTimes) {
        self.published_ns = now_ns;
        self.shared.words.publish(|words| self.write(words, times));
    }

    fn write(&self, words: &mut Writer<'_>, times: &IdleTimes) {
        words.words(&self.turn.values());
        words.words(&TimeRecord::from(times).values());
        words.words(&self.drops);
        for stage in &self.stages {
            words.words(&stage.values());
        }
        for port in &self.ports {
            words.words(&port.values());
        }
    }
}

impl CountersReader {
    /// The newest record, from the end of one turn. `None` if the worker published during each of many
    /// tries: ask again later.
    pub fn snapshot(&self) -> Option<CountersSnapshot> {
        let mut words = vec![0; self.shared.words.len()];
        if !self.shared.words.read(&mut words) {
            return None;
        }
        let mut words = words.into_iter();
        Some(CountersSnapshot {
            turn: TurnRecord::from_words(&mut words),
            time: TimeRecord::from_words(&mut words),
            drops: std::array::from_fn(|_| words.next().unwrap_or(0)),
            stages: self.shared.stages.iter().map(|&s| (s, StageRecord::from_words(&mut words))).collect(),
            ports: (0..self.shared.ports).map(|_| PortRecord::from_words(&mut words)).collect(),
        })
    }
}

impl CountersSnapshot {
    /// Adds another worker's record: stages by name, ports by number.
    pub fn add(&mut self, other: &Self) {
        self.turn.add(&other.turn);
        self.time.add(&other.time);
        for (count, more) in self.drops.iter_mut().zip(other.drops) {
            *count = count.wrapping_add(more);
        }
        for (name, more) in &other.stages {
            match self.stages.iter_mut().find(|(ours, _)| ours == name) {
                Some((_, stage)) => stage.add(more),
                None => self.stages.push((name, *more)),
            }
        }
        self.ports.resize(self.ports.len().max(other.ports.len()), PortRecord::default());
        for (port, more) in self.ports.iter_mut().zip(&other.ports) {
            port.add(more);
        }
    }
}

/// Age from which on a record is replaced at the end of a turn.
const PUBLISH_NS: u64 = 20_000;

#[cfg(test)]
mod tests;
