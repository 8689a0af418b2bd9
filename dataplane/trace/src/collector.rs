//! The reader of all rings: whole I/Os again, latencies by volume and stage, outliers with their evidence.
//!
//! It runs away from the workers. What it keeps is bounded: the newest I/Os, the newest outliers, two windows of
//! histograms for each volume that was seen in them.

use std::collections::{HashMap, VecDeque};

use arrayvec::ArrayVec;
use block::{Lba, TraceId, VolumeId};

use crate::class::{Class, Observed, OutlierConfig, Usual};
use crate::histogram::Histogram;
use crate::record::{Kind, Medium, Record, Stage};
use crate::ring::Reader;
use crate::tracer::{DEPENDENCIES_MAX, SPANS_MAX};

/// What a collector keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectorConfig {
    /// I/Os kept, the newest.
    pub recent_max: usize,
    /// Outliers kept, the newest.
    pub outliers_max: usize,
    /// Volumes whose latencies are kept.
    pub volumes_max: usize,
    /// How outliers are told; its window is also that of the latencies.
    pub outlier: OutlierConfig,
}

impl Default for CollectorConfig {
    fn default() -> CollectorConfig {
        let outlier = OutlierConfig::default();
        CollectorConfig { recent_max: 1024, outliers_max: 1024, volumes_max: 8192, outlier }
    }
}

/// What a collector has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// I/Os put together.
    pub traces: u64,
    /// Of these, I/Os of which a span was lost.
    pub incomplete: u64,
    /// Spans whose I/O was lost.
    pub orphans: u64,
    /// Records that were overwritten before they were read.
    pub lost: u64,
    /// Outliers.
    pub outliers: u64,
    /// Of these, those of which nothing was kept because there were too many.
    pub suppressed: u64,
    /// I/Os whose latency was not counted because there were too many volumes.
    pub uncounted: u64,
}

/// A span of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What its time was spent on.
    pub stage: Stage,
    /// Beginning, ns.
    pub t0_ns: u64,
    /// End, ns.
    pub t1_ns: u64,
}

/// One I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Place in the order in which they were collected, from 1.
    pub number: u64,
    /// Its id.
    pub id: TraceId,
    /// The volume asked.
    pub volume: VolumeId,
    /// What lies below that.
    pub medium: Medium,
    /// What was asked for.
    pub kind: Kind,
    /// How it ended, see [`crate::status_name`].
    pub status: u8,
    /// First block.
    pub lba: Lba,
    /// Length in bytes.
    pub len: u32,
    /// When it was received, ns.
    pub t0_ns: u64,
    /// When its answer was sent, ns.
    pub t1_ns: u64,
    /// Its spans, end to end.
    pub spans: ArrayVec<Span, SPANS_MAX>,
    /// I/Os that it depends on, as far as they were followed and named.
    pub depends: ArrayVec<TraceId, DEPENDENCIES_MAX>,
    /// How many it depends on.
    pub depends_total: u32,
    /// Spans that were lost.
    pub missing: u32,
}

impl Trace {
    /// All of its time, ns.
    pub fn total_ns(&self) -> u64 {
        self.t1_ns.saturating_sub(self.t0_ns)
    }

    /// Its time in each stage, ns.
    pub fn stages_ns(&self) -> [u64; Stage::COUNT] {
        let mut stages_ns = [0; Stage::COUNT];
        for span in &self.spans {
            stages_ns[span.stage as usize] += span.t1_ns.saturating_sub(span.t0_ns);
        }
        stages_ns
    }
}

/// An I/O that took much longer than others of its class, with all of its spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// The I/O.
    pub trace: Trace,
    /// What was usual in its class then.
    pub usual: Usual,
    /// The stage that took most more than it usually does.
    pub culprit: Stage,
}

/// What to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Of this volume alone.
    pub volume: Option<VolumeId>,
    /// Only those collected later than this number.
    pub after: u64,
    /// Only outliers.
    pub outliers: bool,
    /// The slowest first, instead of the newest last.
    pub slowest: bool,
    /// So many at most.
    pub limit: usize,
}

/// Kinds whose latencies are told apart.
const GROUPS: [&[Kind]; 4] = [
    &[Kind::Read, Kind::Compare],
    &[Kind::Write, Kind::WriteFua],
    &[Kind::Flush],
    &[Kind::Discard, Kind::WriteZeroes, Kind::Extents],
];

/// Latencies of a volume: two windows.
#[derive(Debug)]
struct Latencies {
    windows: [HashMap<Slot, Histogram>; 2],
    began_ns: u64,
    seen_ns: u64,
}

/// What a histogram of a volume is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slot {
    Group(u8),
    Stage(Stage),
}

/// Latencies of a volume, as asked.
#[derive(Clone, Debug, Default)]
pub struct VolumeLatency {
    /// Reads, writes, flushes, and the rest: only those that there were.
    pub kinds: Vec<(&'static str, Histogram)>,
    /// Stages that there were.
    pub stages: Vec<(Stage, Histogram)>,
}

#[derive(Debug)]
struct Source {
    reader: Reader,
    /// Records of an I/O whose end was not read yet.
    parts: ArrayVec<Record, { SPANS_MAX + DEPENDENCIES_MAX }>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Collector {
    config: CollectorConfig,
    sources: Vec<Source>,
    volumes: HashMap<VolumeId, Latencies>,
    classes: HashMap<Class, Observed>,
    recent: VecDeque<Trace>,
    outliers: VecDeque<Outlier>,
    counts: Counts,
    second_ns: u64,
    kept: u32,
}

impl Collector {
    /// A collector of these rings.
    pub fn new(readers: Vec<Reader>, config: CollectorConfig) -> Collector {
        let source = |reader| Source { reader, parts: ArrayVec::new() };
        Collector {
            config,
            sources: readers.into_iter().map(source).collect(),
            volumes: HashMap::new(),
            classes: HashMap::new(),
            recent: VecDeque::new(),
            outliers: VecDeque::new(),
            counts: Counts::default(),
            second_ns: 0,
            kept: 0,
        }
    }

    /// Changes what is kept.
    pub fn set_config(&mut self, config: CollectorConfig) {
        self.config = config;
        self.recent.truncate(config.recent_max);
        self.outliers.truncate(config.outliers_max);
    }

    /// Reads at most `records_max` records. Returns how many there were.
    pub fn collect(&mut self, records_max: usize) -> usize {
        let mut count = 0;
        for at in 0..self.sources.len() {
            while count < records_max {
                let Some(record) = self.sources[at].reader.read() else { break };
                count += 1;
                if let Some(trace) = self.put(at, record) {
                    self.take(trace);
                }
            }
        }
        self.counts.lost = self.sources.iter().map(|source| source.reader.lost()).sum();
        count
    }

    /// The part of the fullest ring that waits to be read, in per cent.
    pub fn backlog_percent(&self) -> u64 {
        let percent = |source: &Source| {
            let (waiting, all) = source.reader.backlog();
            waiting * 100 / all
        };
        self.sources.iter().map(percent).max().unwrap_or(0)
    }

    /// What it has seen.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is usual in each class.
    pub fn classes(&self) -> Vec<(Class, Usual)> {
        let mut all: Vec<_> =
            self.classes.iter().filter_map(|(class, observed)| Some((*class, observed.usual()?))).collect();
        all.sort_unstable_by_key(|(class, _)| *class);
        all
    }

    /// I/Os that are kept, with what is known of them if they are outliers.
    pub fn find(&self, query: &Query) -> Vec<(Trace, Option<(Usual, Stage)>)> {
        let wanted = |trace: &Trace| {
            query.volume.is_none_or(|volume| volume == trace.volume) && trace.number > query.after
        };
        let outliers = self.outliers.iter().filter(|outlier| wanted(&outlier.trace));
        let mut found: Vec<_> =
            outliers.map(|outlier| (outlier.trace.clone(), Some((outlier.usual, outlier.culprit)))).collect();
        if !query.outliers {
            let known: std::collections::HashSet<u64> = found.iter().map(|(trace, _)| trace.number).collect();
            let others = self.recent.iter().filter(|trace| wanted(trace) && !known.contains(&trace.number));
            found.extend(others.map(|trace| (trace.clone(), None)));
        }
        if query.slowest {
            found.sort_by_key(|(trace, _)| std::cmp::Reverse(trace.total_ns()));
            found.truncate(query.limit);
        } else {
            found.sort_by_key(|(trace, _)| trace.number);
            found.drain(..found.len().saturating_sub(query.limit));
        }
        found
    }

    /// Latencies of a volume, over the last one to two windows; `None` when it was not seen in them.
    pub fn latency(&self, volume: VolumeId) -> Option<VolumeLatency> {
        let latencies = self.volumes.get(&volume)?;
        let mut sums: HashMap<Slot, Histogram> = HashMap::new();
        for (slot, histogram) in latencies.windows.iter().flatten() {
            sums.entry(*slot).or_default().add(histogram);
        }
        let mut latency = VolumeLatency::default();
        for (number, name) in (0..).zip(["read", "write", "flush", "other"]) {
            latency.kinds.extend(sums.remove(&Slot::Group(number)).map(|histogram| (name, histogram)));
        }
        for &stage in Stage::ALL {
            latency.stages.extend(sums.remove(&Slot::Stage(stage)).map(|histogram| (stage, histogram)));
        }
        Some(latency)
    }

    /// Puts a record to those of its I/O; returns the I/O when it is the last one.
    fn put(&mut self, source: usize, record: Record) -> Option<Trace> {
        let parts = &mut self.sources[source].parts;
        // Those of an I/O lie in a row and end with itself: what is of another one has lost its end.
        if parts.first().is_some_and(|first| first.trace != record.trace) || parts.is_full() {
            self.counts.orphans += parts.len() as u64;
            parts.clear();
        }
        if record.stage != Stage::Io {
            parts.push(record);
            return None;
        }
        self.counts.traces += 1;
        let mut trace = Trace {
            number: self.counts.traces,
            id: record.trace,
            volume: record.volume,
            medium: record.medium,
            kind: record.kind,
            status: record.status,
            lba: Lba(record.link),
            len: record.len,
            t0_ns: record.t0_ns,
            t1_ns: record.t1_ns,
            spans: ArrayVec::new(),
            depends: ArrayVec::new(),
            depends_total: (record.detail >> 32) as u32,
            missing: 0,
        };
        for Record { stage, link, t0_ns, t1_ns, .. } in parts.drain(..) {
            // INVARIANT: a tracer writes no more of either; what is beyond comes from nowhere.
            let _full = match stage {
                Stage::Depends => trace.depends.try_push(TraceId(link)).is_err(),
                _ => trace.spans.try_push(Span { stage, t0_ns, t1_ns }).is_err(),
            };
        }
        trace.missing = (record.detail as u32).saturating_sub(trace.spans.len() as u32);
        self.counts.incomplete += u64::from(trace.missing > 0);
        Some(trace)
    }

    fn take(&mut self, trace: Trace) {
        let stages_ns = trace.stages_ns();
        self.count(&trace, &stages_ns);
        let config = self.config.outlier;
        let class = Class::of(trace.medium, trace.kind, trace.len);
        let observed = self.classes.entry(class).or_insert_with(|| Observed::new(trace.t1_ns));
        let own_ns = trace.total_ns().saturating_sub(stages_ns[Stage::Park as usize]);
        if let Some(usual) = observed.take(trace.t1_ns, &config, own_ns, &stages_ns) {
            let culprit = observed.culprit(&stages_ns);
            self.keep(Outlier { trace: trace.clone(), usual, culprit });
        }
        if self.recent.len() >= self.config.recent_max {
            self.recent.pop_front();
        }
        if self.config.recent_max > 0 {
            self.recent.push_back(trace);
        }
    }

    fn keep(&mut self, outlier: Outlier) {
        const SECOND_NS: u64 = 1_000_000_000;
        self.counts.outliers += 1;
        let at_ns = outlier.trace.t1_ns;
        if at_ns.saturating_sub(self.second_ns) >= SECOND_NS {
            (self.second_ns, self.kept) = (at_ns, 0);
        }
        if self.kept >= self.config.outlier.per_second_max || self.config.outliers_max == 0 {
            self.counts.suppressed += 1;
            return;
        }
        self.kept += 1;
        if self.outliers.len() >= self.config.outliers_max {
            self.outliers.pop_front();
        }
        self.outliers.push_back(outlier);
    }

    /// Counts the latency of an I/O for its volume.
    fn count(&mut self, trace: &Trace, stages_ns: &[u64; Stage::COUNT]) {
        let (now_ns, window_ns) = (trace.t1_ns, self.config.outlier.window_ns);
        if !self.volumes.contains_key(&trace.volume) && self.volumes.len() >= self.config.volumes_max {
            // Those that were not seen for two windows make room.
            self.volumes.retain(|_, volume| now_ns.saturating_sub(volume.seen_ns) < 2 * window_ns);
            if self.volumes.len() >= self.config.volumes_max {
                self.counts.uncounted += 1;
                return;
            }
        }
        let volume = self.volumes.entry(trace.volume).or_insert_with(|| Latencies {
            windows: [HashMap::new(), HashMap::new()],
            began_ns: now_ns,
            seen_ns: now_ns,
        });
        volume.seen_ns = now_ns;
        let age_ns = now_ns.saturating_sub(volume.began_ns);
        if age_ns >= window_ns {
            volume.windows.swap(0, 1);
            volume.windows[0].values_mut().for_each(Histogram::clear);
            if age_ns >= 2 * window_ns {
                volume.windows[1].values_mut().for_each(Histogram::clear);
            }
            volume.began_ns = now_ns;
        }
        let group = GROUPS.iter().position(|kinds| kinds.contains(&trace.kind)).unwrap_or(GROUPS.len() - 1);
        let window = &mut volume.windows[0];
        window.entry(Slot::Group(group as u8)).or_default().record(trace.total_ns());
        for (&stage, &ns) in Stage::ALL.iter().zip(stages_ns).filter(|(_, ns)| **ns > 0) {
            window.entry(Slot::Stage(stage)).or_default().record(ns);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
