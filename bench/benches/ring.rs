//! Cost of handing an item to another worker: the instructions alone, on one core, and a hop between two
//! cores, which also moves the cache lines.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use frame::{Consumer, Producer, ring};

const CAPACITY: usize = 1024;

fn same_core(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring_same_core");
    single(&mut group);
    batched::<32>(&mut group);
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn single(group: &mut Group<'_>) {
    let (mut producer, mut consumer) = ring::<u32>(CAPACITY);
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new("batch", 1), |b| {
        b.iter(|| {
            let _ = producer.push(7);
            consumer.pop()
        });
    });
}

fn batched<const N: usize>(group: &mut Group<'_>) {
    let (mut producer, mut consumer) = ring::<u32>(CAPACITY);
    let mut batch: ArrayVec<u32, N> = (0..N as u32).collect();
    group.throughput(Throughput::Elements(N as u64));
    group.bench_function(BenchmarkId::new("batch", N), |b| {
        b.iter(|| {
            producer.push_batch(&mut batch);
            consumer.pop_batch(&mut batch)
        });
    });
}

fn across_cores(c: &mut Criterion) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let [first, second, ..] = cores[..] else {
        println!("ring_across_cores skipped: it needs two cores");
        return;
    };
    let mut group = c.benchmark_group("ring_across_cores");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1));
    core_affinity::set_for_current(first);
    group.bench_function(BenchmarkId::new("batch", 1), |b| b.iter_custom(|items| hop::<1>(items, second)));
    group.bench_function(BenchmarkId::new("batch", 32), |b| b.iter_custom(|items| hop::<32>(items, second)));
    group.finish();
}

/// Time to hand `items` to a thread on another core, in bursts of at most `N`.
fn hop<const N: usize>(items: u64, core: core_affinity::CoreId) -> Duration {
    let (producer, consumer) = ring::<u32>(CAPACITY);
    let receiver = std::thread::spawn(move || {
        core_affinity::set_for_current(core);
        receive::<N>(consumer, items);
    });
    let start = Instant::now();
    send::<N>(producer, items);
    let joined = receiver.join();
    let elapsed = start.elapsed();
    joined.expect("the receiver counts only");
    elapsed
}

fn send<const N: usize>(mut producer: Producer<u32>, items: u64) {
    let mut batch: ArrayVec<u32, N> = ArrayVec::new();
    let mut left = items;
    while left > 0 || !batch.is_empty() {
        while left > 0 && batch.try_push(left as u32).is_ok() {
            left -= 1;
        }
        if producer.push_batch(&mut batch) == 0 {
            std::hint::spin_loop();
        }
    }
}

fn receive<const N: usize>(mut consumer: Consumer<u32>, items: u64) {
    let mut batch: ArrayVec<u32, N> = ArrayVec::new();
    let mut got = 0;
    while got < items {
        match consumer.pop_batch(&mut batch) {
            0 => std::hint::spin_loop(),
            count => got += count as u64,
        }
        std::hint::black_box(&batch);
        batch.clear();
    }
}

criterion_group!(benches, same_core, across_cores);
criterion_main!(benches);
