//! Followed I/Os: the thread that collects them, and what is told of them.
//!
//! The collector reads the workers' rings a few hundred times per second while there is much, and a few times while there is
//! nothing. The workers do not notice it; what it comes too late for is counted as lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use engine::Node;
use engine::block::VolumeId;
use engine::trace::{Collector, CollectorConfig, Counts, Histogram, Query, Stage, Trace, status_name};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::daemon::Daemon;

/// Records that are read before others may look at what was collected.
const RECORDS_AT_ONCE: usize = 4096;
/// Longest and shortest pause between two looks at the rings.
const PAUSE_MAX: Duration = Duration::from_millis(50);
const PAUSE_MIN: Duration = Duration::from_micros(500);
/// Per cent of a ring beyond which it is looked at twice as often, and below which half as often.
const FULL_PERCENT: u64 = 25;
const EMPTY_PERCENT: u64 = 6;
/// I/Os in one answer.
pub(crate) const TRACES_MAX: usize = 65_536;

/// What was collected, and the thread that does it. It ends with this.
pub(crate) struct Traces {
    collector: Arc<Mutex<Collector>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Traces {
    /// Begins to collect what the workers of `node` follow.
    pub fn start(node: &Node, config: CollectorConfig) -> std::io::Result<Traces> {
        let collector = Arc::new(Mutex::new(Collector::new(node.take_traces(), config)));
        let (stop, stopped) = mpsc::channel();
        let shared = Arc::clone(&collector);
        let thread = std::thread::Builder::new()
            .name("tidegate-trace".to_owned())
            .spawn(move || collect(&shared, &stopped))?;
        Ok(Traces { collector, stop: Some(stop), thread: Some(thread) })
    }

    /// What was collected so far.
    pub fn collected(&self) -> MutexGuard<'_, Collector> {
        self.collector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the collector of traces panicked");
        }
    }
}

fn collect(collector: &Mutex<Collector>, stopped: &mpsc::Receiver<()>) {
    let mut pause = PAUSE_MAX;
    while stopped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
        let guard = || collector.lock().unwrap_or_else(PoisonError::into_inner);
        match guard().backlog_percent() {
            FULL_PERCENT.. => pause = (pause / 2).max(PAUSE_MIN),
            0..EMPTY_PERCENT => pause = (pause * 2).min(PAUSE_MAX),
            _ => {}
        }
        while guard().collect(RECORDS_AT_ONCE) == RECORDS_AT_ONCE {}
    }
}

/// What a data plane tells of the I/Os that it follows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TraceReport {
    /// Its name.
    pub node: String,
    /// What its collector has seen.
    pub collected: Collected,
    /// What is usual in each class of I/Os.
    pub classes: Vec<ClassReport>,
    /// The I/Os that were asked for.
    pub traces: Vec<OneTrace>,
}

/// What the collector has seen.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Collected {
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

/// What is usual in a class.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClassReport {
    /// file, memory or null.
    pub medium: String,
    /// read, write, write-fua, flush, discard, write-zeroes, compare or extents.
    pub kind: String,
    /// 0 up to 16 KiB, 1 up to 128 KiB, 2 beyond.
    pub length: u8,
    /// Median of the whole time without that in which credits were waited for.
    pub median_ns: u64,
    /// Above it an I/O is an outlier.
    pub threshold_ns: u64,
    /// I/Os that this was told from.
    pub samples: u64,
}

/// One I/O.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OneTrace {
    /// Place in the order in which they were collected.
    pub number: u64,
    /// Its id.
    pub id: String,
    /// What hosts call its volume.
    pub export: String,
    /// file, memory or null.
    pub medium: String,
    /// What was asked for.
    pub kind: String,
    /// "ok", or how it failed.
    pub status: String,
    /// First block.
    pub lba: u64,
    /// Length.
    pub bytes: u32,
    /// When it was received, ns of the monotonic clock.
    pub started_ns: u64,
    /// Until its answer was sent.
    pub total_ns: u64,
    /// Where that time went, end to end.
    pub spans: Vec<OneSpan>,
    /// Ids of the I/Os that it depends on, as far as they were followed.
    pub depends: Vec<String>,
    /// How many it depends on.
    pub depends_total: u32,
    /// Spans that were lost.
    pub missing: u32,
    /// Why it is an outlier, if it is one.
    pub outlier: Option<OutlierReport>,
}

/// One span.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OneSpan {
    /// receive, parked, memory, transfer, queued, mapped, media, log, fence, sync or sent.
    pub stage: String,
    /// Beginning, from that of the I/O.
    pub at_ns: u64,
    /// Length.
    pub ns: u64,
}

/// Why an I/O is an outlier.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutlierReport {
    /// The stage that took most more than it usually does.
    pub culprit: String,
    /// Median of its class then.
    pub median_ns: u64,
    /// What it has exceeded.
    pub threshold_ns: u64,
}

/// Latencies of an export over the last one to two windows, from the I/Os that were followed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// read, write, flush, other: those that there were.
    pub kinds: HashMap<String, Quantiles>,
    /// Stages that there were.
    pub stages: HashMap<String, Quantiles>,
}

/// What a histogram says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Quantiles {
    /// I/Os counted.
    pub samples: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
}

impl Quantiles {
    fn of(histogram: &Histogram) -> Quantiles {
        let at = |share| histogram.quantile(share);
        Quantiles { samples: histogram.total(), p50_ns: at(0.5), p99_ns: at(0.99) }
    }
}

impl Collected {
    pub(crate) fn of(counts: Counts) -> Collected {
        let Counts { traces, incomplete, orphans, lost, outliers, suppressed, uncounted } = counts;
        Collected { traces, incomplete, orphans, lost, outliers, suppressed, uncounted }
    }
}

/// What is known of a volume's latencies.
pub(crate) fn latency(collector: &Collector, volume: VolumeId) -> Option<Latency> {
    let latency = collector.latency(volume)?;
    let seen = |histogram: &Histogram| histogram.total() > 0;
    let kinds = latency.kinds.iter().filter(|(_, histogram)| seen(histogram));
    let stages = latency.stages.iter().filter(|(_, histogram)| seen(histogram));
    Some(Latency {
        kinds: kinds.map(|(name, histogram)| ((*name).to_owned(), Quantiles::of(histogram))).collect(),
        stages: stages
            .map(|(stage, histogram)| (stage.name().to_owned(), Quantiles::of(histogram)))
            .collect(),
    })
}

/// What is asked of a data plane.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceQuery {
    /// Only I/Os of this export; all if empty.
    pub volume: String,
    /// Only those collected later than this number.
    pub after: u64,
    /// Only outliers.
    pub outliers: bool,
    /// The slowest first, instead of the newest last.
    pub slowest: bool,
    /// So many at most.
    pub limit: usize,
}

/// There is no such export.
#[derive(Clone, Debug, thiserror::Error)]
#[error("nothing is exported as \"{0}\"; `tidegate-dataplane stats` shows what is")]
pub struct UnknownExport(pub String);

/// Answers a question.
pub(crate) fn report(daemon: &Daemon, asked: &TraceQuery) -> Result<TraceReport, UnknownExport> {
    let table = daemon.table();
    let names: HashMap<VolumeId, &str> =
        table.served.iter().map(|one| (one.volume, one.wanted.name.as_str())).collect();
    let named = |name: &str| table.served.iter().find(|one| one.wanted.name == name);
    let volume = match asked.volume.as_str() {
        "" => None,
        name => Some(named(name).ok_or_else(|| UnknownExport(name.to_owned()))?.volume),
    };
    let TraceQuery { after, outliers, slowest, limit, .. } = *asked;
    let query = Query { volume, after, outliers, slowest, limit: limit.min(TRACES_MAX) };
    let collector = daemon.traces().collected();
    let (found, counts, classes) = (collector.find(&query), collector.counts(), collector.classes());
    drop(collector);
    let class = |(class, usual): (engine::trace::Class, engine::trace::Usual)| ClassReport {
        medium: class.medium.name().to_owned(),
        kind: class.kind.name().to_owned(),
        length: class.length,
        median_ns: usual.median_ns,
        threshold_ns: usual.threshold_ns,
        samples: usual.samples,
    };
    let one = |(trace, outlier): &(Trace, Option<(engine::trace::Usual, Stage)>)| OneTrace {
        outlier: outlier.map(|(usual, culprit)| OutlierReport {
            culprit: culprit.name().to_owned(),
            median_ns: usual.median_ns,
            threshold_ns: usual.threshold_ns,
        }),
        ..one_trace(trace, names.get(&trace.volume).copied().unwrap_or("?"))
    };
    Ok(TraceReport {
        node: daemon.running().file.node.name.clone(),
        collected: Collected::of(counts),
        classes: classes.into_iter().map(class).collect(),
        traces: found.iter().map(one).collect(),
    })
}

fn one_trace(trace: &Trace, export: &str) -> OneTrace {
    let id = |id: u64| format!("{id:016x}");
    let span = |span: &engine::trace::Span| OneSpan {
        stage: span.stage.name().to_owned(),
        at_ns: span.t0_ns.saturating_sub(trace.t0_ns),
        ns: span.t1_ns.saturating_sub(span.t0_ns),
    };
    OneTrace {
        number: trace.number,
        id: id(trace.id.0),
        export: export.to_owned(),
        medium: trace.medium.name().to_owned(),
        kind: trace.kind.name().to_owned(),
        status: status_name(trace.status).to_owned(),
        lba: trace.lba.0,
        bytes: trace.len,
        started_ns: trace.t0_ns,
        total_ns: trace.total_ns(),
        spans: trace.spans.iter().map(span).collect(),
        depends: trace.depends.iter().map(|on| id(on.0)).collect(),
        depends_total: trace.depends_total,
        missing: trace.missing,
        outlier: None,
    }
}
