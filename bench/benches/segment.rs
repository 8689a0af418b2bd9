//! Segmentation and coalescing of a 64 KiB super-segment at an MSS of 1400 bytes.
//!
//! One iteration is one super-segment (47 segments), allocation and freeing included; throughput counts its
//! payload. Time per segment is the printed time divided by 47. The pieces go round a pool of 4,096 frames,
//! as they would wait in a queue, so that their chunks are not always in the first-level cache.

use std::collections::VecDeque;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frame::{Flags, Frame, GsoKind, Meta, Pool, Slab, SlabConfig};
use overlay::coalesce::Coalescer;
use overlay::segment::segment;

const GSO_BYTES: u16 = 1400;
const PAYLOAD_BYTES: usize = 65_535 - 40;

/// A TCP super-segment over IPv4, with metadata as a port and the parser leave it.
fn super_segment(pool: &mut Pool) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0xff, 0xff, 0, 1, 0x40, 0, 64, 6];
    bytes.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0x9c, 0x40, 0x2a, 0x39, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.extend((0..PAYLOAD_BYTES).map(|index| (index * 7) as u8));
    let mut frame = pool.alloc_jumbo().expect("a jumbo frame");
    assert!(pool.fill(&mut frame, &bytes));
    let parsed = wire::parse(&bytes).expect("the frame parses");
    let meta: &mut Meta = pool.meta_mut(&mut frame);
    meta.flags.set(Flags::PARSED);
    (meta.l3, meta.l4, meta.payload, meta.proto) = (parsed.l3, parsed.l4, parsed.payload, parsed.proto);
    meta.flow_hash = parsed.flow_hash;
    (meta.gso, meta.gso_bytes) = (GsoKind::TcpV4, GSO_BYTES);
    frame
}

fn pool() -> Pool {
    Pool::new(&Slab::new(SlabConfig { frames: 8192, jumbo_frames: 64, hugepages: true }).expect("memory"))
}

fn cut(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Bytes(PAYLOAD_BYTES as u64));
    for (name, queue_frames) in
        [("64 KiB at 1400, pieces freed at once", 0), ("64 KiB at 1400, queue of 4096", 4096)]
    {
        let mut pool = pool();
        let frame = super_segment(&mut pool);
        let mut queue = VecDeque::with_capacity(8192);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let pieces = segment(&mut pool, black_box(&frame), &mut |_, piece| queue.push_back(piece));
                assert_eq!(pieces, Ok(47));
                while queue.len() > queue_frames {
                    queue.pop_front().into_iter().for_each(|piece| pool.free(piece));
                }
            });
        });
        queue.drain(..).for_each(|piece| pool.free(piece));
        pool.free(frame);
    }
    group.finish();
}

fn merge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Bytes(PAYLOAD_BYTES as u64));
    for (name, verified) in [("47 segments of 1400", false), ("47 segments of 1400, checksums known", true)] {
        let mut pool = pool();
        let frame = super_segment(&mut pool);
        let mut pieces = Vec::new();
        let mut coalescer = Coalescer::new();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..iterations {
                    segment(&mut pool, &frame, &mut |_, piece| pieces.push(piece)).expect("cuts");
                    if !verified {
                        pieces
                            .iter_mut()
                            .for_each(|piece| pool.meta_mut(piece).flags.clear(Flags::CSUM_VALID));
                    }
                    let (start, mut merged) = (std::time::Instant::now(), 0);
                    for piece in pieces.drain(..) {
                        coalescer.process(&mut pool, piece, &mut |pool, whole| {
                            merged += 1;
                            pool.free(whole);
                        });
                    }
                    coalescer.flush(&mut pool, &mut |pool, whole| {
                        merged += 1;
                        pool.free(whole);
                    });
                    spent += start.elapsed();
                    assert_eq!(merged, 1);
                }
                spent
            });
        });
        pool.free(frame);
    }
    group.finish();
}

criterion_group!(benches, cut, merge);
criterion_main!(benches);
