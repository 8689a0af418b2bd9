//! What a turn costs beside its packets: clock, ladder, counters, awake rules.

use criterion::{Criterion, criterion_group, criterion_main};
use engine::awake::{AwakeHint, SourceTable};
use engine::clock::{Clock, monotonic_ns};
use engine::counters::Counters;
use engine::handshake::Handshake;
use engine::idle::{IdleParams, IdleTimes, Ladder, TurnOutcome};
use std::hint::black_box;

const STAGES: &[&str] = &["classify", "decapsulate", "admit", "encapsulate", "deliver", "release"];
const PORTS: usize = 4;

fn clock(bench: &mut Criterion) {
    let mut clock = Clock::new();
    let mut group = bench.benchmark_group("turn/clock");
    group.bench_function("tsc", |bench| bench.iter(frame::tsc));
    group.bench_function("turn", |bench| bench.iter(|| clock.turn()));
    group.bench_function("clock_gettime", |bench| bench.iter(monotonic_ns));
    group.finish();
}

fn parts(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("turn");
    let times = IdleTimes::default();
    let turn = |work| TurnOutcome { work, deadline_ns: Some(u64::MAX), must_poll: false };

    let mut ladder = Ladder::new(IdleParams::default(), 0);
    let mut now = 0;
    group.bench_function("ladder, work", |bench| {
        bench.iter(|| {
            now += 1_000;
            ladder.step(now, turn(black_box(32)), || AwakeHint::MayIdle)
        });
    });
    group.bench_function("ladder, idle", |bench| {
        bench.iter(|| {
            now += 1;
            ladder.step(now, turn(black_box(0)), || AwakeHint::MayIdle)
        });
    });
    let mut counters = Counters::new(STAGES, PORTS);
    group.bench_function("counters, not due", |bench| {
        bench.iter(|| counters.end_turn(black_box(0), true, &times));
    });
    group.bench_function("counters, published", |bench| {
        bench.iter(|| counters.publish(black_box(7), &times));
    });
    group.bench_function("whole", |bench| {
        let mut clock = Clock::new();
        bench.iter(|| {
            let now = clock.turn();
            counters.end_turn(now, true, ladder.times());
            ladder.step(now, turn(black_box(32)), || AwakeHint::MayIdle)
        });
    });
    group.finish();
}

fn awake(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("turn/awake");
    let (mut stage1, mut downstream) = SourceTable::new(4096, IdleParams::default().awake());
    let mut source = 0;
    group.bench_function("number", |bench| {
        bench.iter(|| {
            source = (source + 1) % 64;
            stage1.number(black_box(source))
        });
    });
    group.bench_function("completed", |bench| {
        bench.iter(|| {
            source = (source + 1) % 64;
            downstream.completed(black_box(0), source, 1);
        });
    });
    for id_of in 0..64 {
        let id = stage1.number(id_of);
        downstream.completed(0, id_of, id);
    }
    group.bench_function("hint, 64 sources", |bench| bench.iter(|| downstream.hint(black_box(1), 0)));
    let handshake = Handshake::new();
    group.bench_function("wake of one who is awake", |bench| bench.iter(|| handshake.must_wake()));
    group.finish();
}

criterion_group!(benches, clock, parts, awake);
criterion_main!(benches);
