//! Throttle: nanoseconds per request admitted, by kind of limit and number of volumes, and per request
//! parked and released.
//!
//! One element is one request of 1,500 bytes. Turns of 32 requests share one clock, as in a worker, and the
//! limits are so high that nothing waits where admission is measured. `random` draws volumes uniformly and
//! prefetches a turn's volumes first, as the gateway does.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use throttle::{
    Burst, Cost, DimLimits, Lane, Limits, ParkLimits, PoolLimits, PoolRate, Ratio, Released, Shaper,
    ShaperConfig, Work,
};

const TURN: usize = 32;
const TURN_NS: u64 = 3_000;
const COST: Cost = Cost { bytes: 1_500, packets: 1, offset: None };
/// Far above what one core can send.
const PLENTY: u64 = 1 << 42;

fn shaper(volumes: u32, limits: &Limits) -> Shaper<u32> {
    let config = ShaperConfig { volumes_max: volumes, groups_max: 1, parked_items_max: 1 << 14 };
    let mut shaper = Shaper::new(config, 0);
    for volume in 0..volumes {
        shaper.set_volume(0, volume, limits).expect("limits in range");
    }
    shaper
}

fn dim() -> DimLimits {
    DimLimits {
        burst: Some(Burst { cap_units: PLENTY, fill_rate: PLENTY }),
        work: Some(Work::at(PLENTY)),
        peak_rate: Some(PLENTY),
        sequential: Ratio::ONE,
    }
}

fn pool() -> PoolLimits {
    PoolLimits { bytes: Some(PoolRate::Own { rate: PLENTY, cap_units: PLENTY }), packets: None }
}

fn turn(shaper: &mut Shaper<u32>, now_ns: u64, volumes: &[u32]) {
    for &volume in volumes {
        let _ = black_box(shaper.admit(now_ns, volume, Lane::Forward, COST, volume));
    }
}

/// One volume, by what it is limited in.
fn admit(c: &mut Criterion) {
    let bytes = Limits { bytes: dim(), ..Limits::default() };
    let both = Limits { packets: dim(), ..bytes };
    let cases = [
        ("unlimited", Limits::default(), PoolLimits::default()),
        ("bytes", bytes, PoolLimits::default()),
        ("bytes and packets", both, PoolLimits::default()),
        ("bytes and packets, group, node", Limits { group: Some(0), ..both }, pool()),
    ];
    let mut group = c.benchmark_group("throttle/admit");
    group.throughput(Throughput::Elements(TURN as u64));
    for (name, limits, node) in cases {
        let mut shaper = shaper(1, &limits);
        shaper.set_group(0, 0, &node).expect("limits in range");
        shaper.set_node(0, &node).expect("limits in range");
        let mut now_ns = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                now_ns += TURN_NS;
                turn(&mut shaper, now_ns, &[0; TURN]);
            });
        });
    }
    group.finish();
}

/// Many volumes limited in bytes and packets, drawn at random.
fn random(c: &mut Criterion) {
    let mut group = c.benchmark_group("throttle/random");
    group.throughput(Throughput::Elements(TURN as u64));
    for volumes in [1, 1_000, 10_000, 100_000] {
        let mut shaper = shaper(volumes, &Limits { bytes: dim(), packets: dim(), ..Limits::default() });
        let (mut now_ns, mut seed) = (0, 1u64);
        group.bench_function(BenchmarkId::from_parameter(volumes), |b| {
            b.iter(|| {
                now_ns += TURN_NS;
                let mut next = || {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (((seed >> 32) * u64::from(volumes)) >> 32) as u32
                };
                let drawn: [u32; TURN] = std::array::from_fn(|_| next());
                for volume in drawn {
                    if let Some((volume, paced, bank)) = shaper.prefetch_hints(volume) {
                        frame::prefetch(volume);
                        frame::prefetch(paced);
                        bank.into_iter().for_each(frame::prefetch);
                    }
                }
                turn(&mut shaper, now_ns, &drawn);
            });
        });
    }
    group.finish();
}

/// Requests that wait: parked with 1 or 32 volumes, timed or seated at a short node, and released.
fn park(c: &mut Criterion) {
    let mut group = c.benchmark_group("throttle/park and release");
    group.throughput(Throughput::Elements(TURN as u64));
    // 32 requests of 1,500 bytes every 48 us.
    let rate = 1_000_000_000;
    let own = DimLimits { work: Some(Work::at(rate)), ..DimLimits::default() };
    let park = ParkLimits { items_max: 1_024, bytes_max: 4 << 20 };
    let node = PoolLimits { bytes: Some(PoolRate::Own { rate, cap_units: 100_000 }), packets: None };
    let cases = [
        ("one volume", 1, Limits { bytes: own, park, ..Limits::default() }, PoolLimits::default()),
        ("short node, 1 volume", 1, Limits { park, ..Limits::default() }, node.clone()),
        ("short node, 32 volumes", 32, Limits { park, ..Limits::default() }, node.clone()),
        ("short node, 10,000 volumes", 10_000, Limits { park, ..Limits::default() }, node),
    ];
    for (name, volumes, limits, node) in cases {
        let mut shaper = shaper(volumes, &limits);
        shaper.set_node(0, &node).expect("limits in range");
        let (mut now_ns, mut next) = (0, 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                now_ns += 48_000;
                shaper.release(now_ns, 2 * TURN, &mut |r: Released<u32>| {
                    black_box(r);
                });
                while shaper.parked().items < 2 * volumes.max(TURN as u32).min(4_096) {
                    next = (next + 1) % volumes;
                    let _ = black_box(shaper.admit(now_ns, next, Lane::Forward, COST, next));
                }
            });
        });
    }
    group.finish();
}

/// What a turn costs in which nothing is due, with 100,000 volumes set up and a thousand of them waiting.
fn idle(c: &mut Criterion) {
    let own = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    let mut shaper = shaper(100_000, &Limits { packets: own, ..Limits::default() });
    for volume in 0..2_000 {
        let _ = shaper.admit(0, volume / 2, Lane::Forward, Cost { packets: 1_000, ..COST }, volume);
    }
    let mut now_ns = 0;
    c.bench_function("throttle/turn with nothing due, 100,000 volumes", |b| {
        b.iter(|| {
            now_ns += 1;
            shaper.release(now_ns, TURN, &mut |r: Released<u32>| {
                black_box(r);
            });
            black_box(shaper.next_deadline_ns())
        });
    });
}

criterion_group!(benches, admit, random, park, idle);
criterion_main!(benches);
