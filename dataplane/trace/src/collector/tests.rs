//! I/Os of made-up times, through tracer, ring and collector.

use block::{Op, Status};

use super::*;
use crate::ring::{Writer, ring};
use crate::tracer::{Start, Tracer};

const RECORDS: usize = 1 << 12;

struct Bench {
    tracer: Tracer,
    collector: Collector,
    now_ns: u64,
    random: u64,
}

impl Bench {
    fn new(config: CollectorConfig) -> Bench {
        Bench::over(ring(RECORDS), config)
    }

    fn over((writer, reader): (Writer, Reader), config: CollectorConfig) -> Bench {
        let collector = Collector::new(vec![reader], config);
        Bench { tracer: Tracer::new(0, writer), collector, now_ns: 1_000_000_000, random: 7 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// One I/O: parked, then at the medium for so long.
    fn io(&mut self, volume: u32, op: Op, parked_ns: u64, media_ns: u64) -> TraceId {
        let (medium, volume) = (Medium::Memory, VolumeId(volume));
        let received_ns = self.now_ns;
        let start = Start { volume, medium, op, lba: Lba(1), bytes: 4096, client: 0, received_ns };
        let trace = self.tracer.begin(start);
        let mut at_ns = received_ns + 1_000;
        self.tracer.step(trace, Stage::Receive, at_ns);
        at_ns += parked_ns;
        self.tracer.step(trace, Stage::Park, at_ns);
        at_ns += media_ns;
        self.tracer.step(trace, Stage::Media, at_ns);
        self.tracer.answered(trace, Status::Ok);
        self.tracer.end(trace, at_ns + 2_000);
        self.tracer.publish();
        self.now_ns += 50_000;
        trace
    }

    /// One that takes 80 to 120 us at the medium, and `more_ns`.
    fn usual(&mut self, volume: u32, more_ns: u64) -> TraceId {
        let media_ns = 80_000 + self.random(40_000) + more_ns;
        let trace = self.io(volume, Op::Read, 0, media_ns);
        self.collector.collect(usize::MAX);
        trace
    }

    fn outliers(&self) -> Vec<(Trace, Option<(Usual, Stage)>)> {
        self.collector.find(&Query { outliers: true, limit: usize::MAX, ..Query::default() })
    }
}

fn keeping_all() -> CollectorConfig {
    let outlier = OutlierConfig { per_second_max: u32::MAX, ..OutlierConfig::default() };
    CollectorConfig { outliers_max: 1 << 20, outlier, ..CollectorConfig::default() }
}

#[test]
fn one_in_a_hundred_that_the_medium_delays_is_found_with_its_stage() {
    let mut bench = Bench::new(keeping_all());
    let mut delayed = Vec::new();
    for number in 0..100_000 {
        let slow = bench.random(100) == 0;
        let trace = bench.usual(number % 3, if slow { 5_000_000 } else { 0 });
        if slow {
            delayed.push(trace);
        }
    }
    let outliers = bench.outliers();
    let right = outliers.iter().filter(|(trace, _)| delayed.contains(&trace.id)).count();
    let (precision, recall) = (right as f64 / outliers.len() as f64, right as f64 / delayed.len() as f64);
    assert!(precision >= 0.99 && recall >= 0.99, "precision {precision}, recall {recall}");
    assert!(outliers.iter().all(|(_, found)| found.is_some_and(|(_, culprit)| culprit == Stage::Media)));
}

#[test]
fn when_all_become_slower_the_threshold_follows_within_a_window() {
    let mut bench = Bench::new(keeping_all());
    (0..20_000).for_each(|_| {
        bench.usual(0, 0);
    });
    assert_eq!(bench.outliers().len(), 0, "nothing is flagged among equals");
    // The windows of 10 s in which it changes, at 20,000 I/Os per second.
    (0..400_000).for_each(|_| {
        bench.usual(0, 2_000_000);
    });
    let during = bench.outliers().len();
    (0..100_000).for_each(|_| {
        bench.usual(0, 2_000_000);
    });
    assert!(bench.outliers().len() - during < 100, "{during}, then {}", bench.outliers().len());
}

#[test]
fn equal_times_few_samples_and_other_volumes_limits_make_no_outliers() {
    let mut bench = Bench::new(keeping_all());
    // Not enough to know what is usual.
    for _ in 0..crate::class::SAMPLES_MIN - 1 {
        bench.io(0, Op::Flush, 0, 100_000);
    }
    bench.io(0, Op::Flush, 0, 90_000_000);
    (0..10_000).for_each(|_| {
        bench.io(0, Op::Discard, 0, 7_000_000);
    });
    bench.collector.collect(usize::MAX);
    // A volume that waits for its credits, among others that do not.
    (0..10_000).for_each(|number| {
        let parked_ns = if number % 50 == 0 { 500_000_000 } else { 0 };
        bench.io(number % 7, Op::Read, parked_ns, 100_000);
        bench.collector.collect(usize::MAX);
    });
    assert_eq!(bench.outliers(), vec![]);
}

#[test]
fn a_flood_is_bounded_and_what_is_not_kept_is_counted() {
    let outlier = OutlierConfig { per_second_max: 10, ..OutlierConfig::default() };
    let mut bench = Bench::new(CollectorConfig { outliers_max: 64, outlier, ..CollectorConfig::default() });
    (0..100_000).for_each(|number| {
        bench.usual(0, if number % 25 == 0 { 5_000_000 } else { 0 });
    });
    let counts = bench.collector.counts();
    // In 5 s.
    assert!(counts.outliers > 3_900 && counts.outliers - counts.suppressed <= 60, "{counts:?}");
    assert_eq!(bench.outliers().len() as u64, counts.outliers - counts.suppressed);
    bench.collector.set_config(CollectorConfig { outliers_max: 5, ..bench.collector.config });
    assert_eq!(bench.outliers().len(), 5);
}

#[test]
fn a_third_of_a_class_is_a_mode_of_it() {
    let mut bench = Bench::new(keeping_all());
    (0..100_000).for_each(|number| {
        bench.usual(0, if number % 10 < 3 { 5_000_000 } else { 0 });
    });
    assert_eq!(bench.outliers(), vec![]);
    // What is slower than both is an outlier still.
    bench.usual(0, 9_000_000);
    assert_eq!(bench.outliers().len(), 1);
}

#[test]
fn one_volume_does_not_make_the_threshold_for_another_kind_of_medium_or_request() {
    let mut bench = Bench::new(keeping_all());
    for _ in 0..10_000 {
        bench.usual(0, 0);
        bench.io(1, Op::Write { fua: true }, 0, 20_000_000);
        bench.collector.collect(usize::MAX);
    }
    assert_eq!(bench.outliers(), vec![]);
    let classes = bench.collector.classes();
    assert_eq!(classes.len(), 2);
    assert!(classes[1].1.median_ns > 100 * classes[0].1.median_ns, "{classes:?}");
}

#[test]
fn latencies_are_those_of_the_last_windows() {
    let mut bench = Bench::new(CollectorConfig { volumes_max: 2, ..CollectorConfig::default() });
    (0..1000).for_each(|_| {
        bench.usual(0, 0);
    });
    let latency = bench.collector.latency(VolumeId(0)).unwrap();
    let [(name, reads)] = &latency.kinds[..] else { panic!("only reads") };
    assert_eq!((*name, reads.total()), ("read", 1000));
    assert!((80_000..140_000).contains(&reads.quantile(0.5)), "{}", reads.quantile(0.5));
    let stages: Vec<_> = latency.stages.iter().map(|(stage, _)| *stage).collect();
    assert_eq!(stages, [Stage::Receive, Stage::Media, Stage::Send]);
    // Volumes beyond the bound are counted; one that is not seen any more makes room.
    bench.usual(1, 0);
    bench.usual(2, 0);
    assert!(bench.collector.latency(VolumeId(2)).is_none() && bench.collector.counts().uncounted == 1);
    bench.now_ns += 60_000_000_000;
    bench.usual(2, 0);
    let latency = bench.collector.latency(VolumeId(2)).unwrap();
    assert_eq!(latency.kinds[0].1.total(), 1);
    bench.now_ns += 60_000_000_000;
    bench.usual(2, 0);
    assert_eq!(bench.collector.latency(VolumeId(2)).unwrap().kinds[0].1.total(), 1, "the rest is too old");
}

#[test]
fn what_a_full_ring_lost_is_counted_and_the_rest_is_told_apart() {
    let mut bench = Bench::over(ring(8), CollectorConfig::default());
    (0..100).for_each(|_| {
        bench.io(0, Op::Read, 0, 100_000);
    });
    bench.collector.collect(usize::MAX);
    // Two records each, one of them of three spans: the last four I/Os.
    let counts = bench.collector.counts();
    assert_eq!((counts.traces, counts.lost, counts.incomplete), (4, 192, 0));
    // Five spans are two records, and the first of three is lost.
    let mut bench = Bench::over(ring(2), CollectorConfig::default());
    let (volume, medium, op, received_ns) = (VolumeId(0), Medium::File, Op::Read, 1);
    let start = Start { volume, medium, op, lba: Lba(1), bytes: 4096, client: 0, received_ns };
    let trace = bench.tracer.begin(start);
    for (stage, at_ns) in [(Stage::Receive, 2), (Stage::Map, 3), (Stage::Media, 4), (Stage::Fence, 5)] {
        bench.tracer.step(trace, stage, at_ns);
    }
    bench.tracer.end(trace, 6);
    bench.tracer.publish();
    bench.collector.collect(usize::MAX);
    let counts = bench.collector.counts();
    assert_eq!((counts.traces, counts.lost, counts.incomplete, counts.orphans), (1, 1, 1, 0));
    let all = Query { limit: 9, ..Query::default() };
    assert_eq!(bench.collector.find(&all)[0].0.missing, 4, "shown, not dropped");
}

#[test]
fn queries_choose_by_volume_number_and_time() {
    let mut bench = Bench::new(CollectorConfig { recent_max: 10, ..CollectorConfig::default() });
    (0..30).for_each(|number| {
        bench.io(number % 2, Op::Read, 0, 1000 * u64::from(number % 7 + 1));
    });
    bench.collector.collect(usize::MAX);
    let of = |query: Query| -> Vec<u64> {
        bench.collector.find(&query).iter().map(|(trace, _)| trace.number).collect()
    };
    let all = Query { limit: 100, ..Query::default() };
    assert_eq!(of(all), (21..=30).collect::<Vec<_>>());
    assert_eq!(of(Query { volume: Some(VolumeId(1)), ..all }), [22, 24, 26, 28, 30]);
    assert_eq!(of(Query { after: 28, ..all }), [29, 30]);
    assert_eq!(of(Query { limit: 2, ..all }), [29, 30]);
    assert_eq!(of(Query { slowest: true, limit: 1, ..all }), [21]);
    bench.collector.set_config(CollectorConfig { recent_max: 0, ..CollectorConfig::default() });
    assert_eq!(bench.collector.find(&all), vec![]);
}
