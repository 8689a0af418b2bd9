//! Cost of receiving and sending a frame on ports without a kernel: what the ports and the pool take out
//! of a packet's budget. The null port allocates on receiving and frees on sending; `macswap` also touches
//! the frame, as testpmd's mode of that name does.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frame::{BATCH, Batch, Pool, Slab, SlabConfig};
use port::memory::{self, MemorySpec};
use port::null::{NullPort, NullSpec};
use port::{Port, PortSpec};

fn pool() -> Pool {
    let config = SlabConfig { frames: 16_384, jumbo_frames: 0, hugepages: true };
    Pool::new(&Slab::new(config).expect("64 MiB of memory"))
}

/// One turn: a burst in, something done with it, a burst out.
fn turn(rx: &mut dyn Port, tx: &mut dyn Port, pool: &mut Pool, act: impl Fn(&Pool, &mut Batch)) {
    let mut batch = Batch::new();
    let received = rx.rx_burst(pool, &mut batch);
    debug_assert!(received.is_ok_and(|count| count == BATCH));
    act(pool, &mut batch);
    let sent = tx.tx_burst(pool, &mut batch);
    debug_assert!(sent.is_ok_and(|count| count == BATCH));
}

fn macswap(pool: &Pool, batch: &mut Batch) {
    for frame in batch {
        if let Some(addresses) = pool.bytes_mut(frame).first_chunk_mut::<12>() {
            let (dst, src) = addresses.split_at_mut(6);
            dst.swap_with_slice(src);
        }
    }
}

fn null_port(c: &mut Criterion) {
    let mut group = c.benchmark_group("null_port");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut pool = pool();
    for (name, templates, frame_bytes, copy_bytes) in [
        ("io_64", 1, 64, 0),
        ("io_64_copied", 64, 64, 64),
        ("io_1400_headers_copied", 64, 1400, 128),
        ("io_1400_copied", 64, 1400, 1400),
        ("io_64_copied_10k_flows", 10_000, 64, 64),
    ] {
        let templates = (0..templates).map(|flow| vec![flow as u8; frame_bytes]).collect();
        let spec = PortSpec::Null(NullSpec { templates, copy_bytes });
        let mut rx = port::open(&spec, pool.slab()).expect("null ports always open");
        let mut tx = NullPort::open(&NullSpec::default()).expect("null ports always open");
        group.bench_function(name, |b| b.iter(|| turn(&mut *rx, &mut tx, &mut pool, |_, _| {})));
        if copy_bytes == 0 {
            group.bench_function("macswap_64", |b| b.iter(|| turn(&mut *rx, &mut tx, &mut pool, macswap)));
        }
        rx.close(&mut pool);
    }
    group.finish();
}

fn memory_port(c: &mut Criterion) {
    let mut group = c.benchmark_group("memory_port");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut pool = pool();
    let (mut near, mut far) =
        memory::pair(MemorySpec { capacity_frames: 256, mtu_bytes: 1500, offloads: true }).expect("eventfds");
    let mut batch = Batch::new();
    pool.alloc_batch_of(&mut batch, BATCH, 64);
    group.bench_function("there_and_back_on_one_core", |b| {
        b.iter(|| {
            let sent = near.tx_burst(&mut pool, &mut batch);
            debug_assert!(sent.is_ok_and(|count| count == BATCH));
            turn_back(&mut far, &mut pool);
            let received = near.rx_burst(&mut pool, &mut batch);
            debug_assert!(received.is_ok_and(|count| count == BATCH));
        });
    });
    pool.free_batch(&mut batch);
    Box::new(near).close(&mut pool);
    Box::new(far).close(&mut pool);
    group.finish();
}

fn turn_back(port: &mut dyn Port, pool: &mut Pool) {
    let mut batch = Batch::new();
    let received = port.rx_burst(pool, &mut batch);
    debug_assert!(received.is_ok_and(|count| count == BATCH));
    let sent = port.tx_burst(pool, &mut batch);
    debug_assert!(sent.is_ok_and(|count| count == BATCH));
}

criterion_group!(benches, null_port, memory_port);
criterion_main!(benches);
