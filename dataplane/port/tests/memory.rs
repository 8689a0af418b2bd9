//! The memory port: order, waking, closing.
#![allow(missing_docs)]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use frame::{Batch, Flags, GsoKind, Pool, Slab, SlabConfig};
use port::memory::{MemoryPort, MemorySpec, pair};
use port::{Port, PortError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const SPEC: MemorySpec = MemorySpec { capacity_frames: 64, mtu_bytes: 1500, offloads: true };

fn slab() -> Arc<Slab> {
    Slab::new(SlabConfig { frames: 1024, jumbo_frames: 2, hugepages: false }).expect("a small slab")
}

fn batch(pool: &mut Pool, payloads: impl IntoIterator<Item = u64>) -> Batch {
    let frame = |payload: u64| {
        let mut frame = pool.alloc().expect("a frame");
        assert!(pool.fill(&mut frame, &payload.to_ne_bytes()));
        frame
    };
    payloads.into_iter().map(frame).collect()
}

fn payloads(pool: &mut Pool, batch: &mut Batch) -> Vec<u64> {
    let payload = |frame| u64::from_ne_bytes(pool.bytes(frame).try_into().expect("eight bytes"));
    let payloads = batch.iter().map(payload).collect();
    pool.free_batch(batch);
    payloads
}

/// True if the descriptor became readable within `timeout_ms`.
fn wait(port: &MemoryPort, timeout_ms: i64) -> bool {
    let fd = port.wait_fd().expect("a memory port can be waited for");
    let timeout = Timespec { tv_sec: timeout_ms / 1000, tv_nsec: timeout_ms % 1000 * 1_000_000 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).expect("poll works") > 0
}

#[test]
fn frames_arrive_at_the_other_end_in_order_and_without_a_copy() {
    let slab = slab();
    let mut pool = Pool::new(&slab);
    let (mut a, mut b) = pair(SPEC).expect("an eventfd each");
    let mut sent = batch(&mut pool, 0..10);
    let first = sent[0].index();
    assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 10);
    assert!(sent.is_empty() && b.has_input() && !a.has_input());
    let mut got = Batch::new();
    assert_eq!(b.rx_burst(&mut pool, &mut got).expect("open"), 10);
    assert_eq!(got[0].index(), first);
    assert_eq!(payloads(&mut pool, &mut got), (0..10).collect::<Vec<_>>());
    let (a_counters, b_counters) = (a.counters(), b.counters());
    assert_eq!((a_counters.tx_frames, a_counters.tx_bytes), (10, 80));
    assert_eq!((b_counters.rx_frames, b_counters.rx_bytes), (10, 80));
    Box::new(a).close(&mut pool);
    Box::new(b).close(&mut pool);
    assert_eq!(pool.available(), 1024);
}

#[test]
fn a_full_ring_leaves_the_rest_in_the_batch() {
    let slab = slab();
    let mut pool = Pool::new(&slab);
    let (mut a, mut b) = pair(MemorySpec { capacity_frames: 16, ..SPEC }).expect("an eventfd each");
    let mut sent = batch(&mut pool, 0..20);
    assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 16);
    assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 0);
    assert_eq!((a.counters().tx_frames, a.counters().tx_bytes), (16, 128));
    assert_eq!(payloads(&mut pool, &mut sent), [16, 17, 18, 19]);
    let mut got = Batch::new();
    assert_eq!(b.rx_burst(&mut pool, &mut got).expect("open"), 16);
    pool.free_batch(&mut got);
    Box::new(a).close(&mut pool);
    Box::new(b).close(&mut pool);
}

#[test]
fn offload_requests_arrive_and_the_senders_findings_do_not() {
    let slab = slab();
    let mut pool = Pool::new(&slab);
    let (mut a, mut b) = pair(SPEC).expect("an eventfd each");
    let mut sent = batch(&mut pool, [1]);
    let meta = pool.meta_mut(&mut sent[0]);
    (meta.gso, meta.gso_bytes, meta.vni, meta.next_hop) = (GsoKind::TcpV4, 1400, 7, 3);
    meta.flags.set(Flags::PARSED);
    meta.flags.set(Flags::CSUM_PARTIAL);
    assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 1);
    let mut got = Batch::new();
    assert_eq!(b.rx_burst(&mut pool, &mut got).expect("open"), 1);
    let meta = pool.meta(&got[0]);
    assert_eq!((meta.gso, meta.gso_bytes, meta.vni, meta.next_hop), (GsoKind::TcpV4, 1400, 0, 0));
    assert!(meta.flags.has(Flags::CSUM_PARTIAL) && !meta.flags.has(Flags::PARSED));
    assert!(a.caps().tx_gso && a.caps().tx_partial_csum && a.caps().rx_gso);
    pool.free_batch(&mut got);
    Box::new(a).close(&mut pool);
    Box::new(b).close(&mut pool);
}

#[test]
fn without_offloads_checksums_are_finished_and_super_segments_refused() {
    let slab = slab();
    let mut pool = Pool::new(&slab);
    let (mut a, mut b) = pair(MemorySpec { offloads: false, ..SPEC }).expect("an eventfd each");
    let mut sent = batch(&mut pool, [1, 2, 3]);
    pool.meta_mut(&mut sent[0]).gso = GsoKind::UdpL4;
    assert!(pool.fill(&mut sent[1], &[0, 1, 0, 0, 0, 2, 0, 4]));
    let meta = pool.meta_mut(&mut sent[1]);
    (meta.csum_start, meta.csum_offset) = (0, 2);
    meta.flags.set(Flags::CSUM_PARTIAL);
    assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 3);
    assert_eq!((a.counters().tx_frames, a.counters().tx_errors), (3, 1));
    let mut got = Batch::new();
    assert_eq!(b.rx_burst(&mut pool, &mut got).expect("open"), 2);
    assert_eq!(pool.bytes(&got[0]), [0, 1, 0xff, 0xf8, 0, 2, 0, 4]);
    assert!(!pool.meta(&got[0]).flags.has(Flags::CSUM_PARTIAL) && !a.caps().tx_gso);
    pool.free_batch(&mut got);
    Box::new(a).close(&mut pool);
    Box::new(b).close(&mut pool);
    assert_eq!(pool.available(), 1024);
}

#[test]
fn only_an_end_that_armed_itself_is_woken() {
    let slab = slab();
    let mut pool = Pool::new(&slab);
    let (mut a, mut b) = pair(SPEC).expect("an eventfd each");
    let mut sent = batch(&mut pool, 0..3);
    assert_ne!(
        a.wait_fd().map(|fd| fd.as_raw_fd()),
        b.wait_fd().map(|fd| fd.as_raw_fd()),
        "each end has its own descriptor"
    );
    assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 3);
    assert!(!wait(&b, 0), "nobody asked");
    b.arm();
    assert!(b.has_input(), "frames sent before arming are seen after it");
    let mut got = Batch::new();
    assert_eq!(b.rx_burst(&mut pool, &mut got).expect("open"), 3);

    b.arm();
    assert!(!b.has_input() && !wait(&b, 0));
    assert_eq!(a.tx_burst(&mut pool, &mut got).expect("open"), 3);
    assert!(wait(&b, 10_000), "armed, so woken");
    assert_eq!(b.rx_burst(&mut pool, &mut got).expect("open"), 3);
    assert!(!wait(&b, 0), "receiving takes the wake-up back");
    assert_eq!(a.tx_burst(&mut pool, &mut got).expect("open"), 3);
    assert!(!wait(&b, 0), "and disarms");
    Box::new(a).close(&mut pool);
    Box::new(b).close(&mut pool);
    assert_eq!(pool.available(), 1024);
}

#[test]
fn no_wake_up_is_lost_between_two_threads_that_always_block() {
    const ROUNDS: u64 = 20_000;
    let slab = slab();
    let (mut a, mut b) = pair(SPEC).expect("an eventfd each");
    /// Blocks until a burst arrives.
    fn receive(port: &mut MemoryPort, pool: &mut Pool, got: &mut Batch) {
        while port.rx_burst(pool, got).expect("open") == 0 {
            port.arm();
            if !port.has_input() {
                assert!(wait(port, 20_000), "a wake-up was lost");
            }
        }
    }
    let echo_slab = Arc::clone(&slab);
    let echo = std::thread::spawn(move || {
        let mut pool = Pool::new(&echo_slab);
        let mut got = Batch::new();
        for _ in 0..ROUNDS {
            receive(&mut b, &mut pool, &mut got);
            assert_eq!(b.tx_burst(&mut pool, &mut got).expect("open"), 1);
        }
        Box::new(b).close(&mut pool);
    });
    let mut pool = Pool::new(&slab);
    let mut got = Batch::new();
    for round in 0..ROUNDS {
        let mut sent = batch(&mut pool, [round]);
        assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 1);
        receive(&mut a, &mut pool, &mut got);
        assert_eq!(payloads(&mut pool, &mut got), [round]);
    }
    echo.join().expect("the echo saw every frame");
    Box::new(a).close(&mut pool);
    assert_eq!(pool.available(), 1024);
}

#[test]
fn closing_an_end_wakes_the_other_which_reads_the_rest_and_then_learns_of_it() {
    let slab = slab();
    let mut pool = Pool::new(&slab);
    let (mut a, mut b) = pair(SPEC).expect("an eventfd each");
    b.arm();
    assert!(!b.has_input());
    let mut sent = batch(&mut pool, 0..2);
    assert_eq!(a.tx_burst(&mut pool, &mut sent).expect("open"), 2);
    let mut sent = batch(&mut pool, 5..9);
    assert_eq!(b.tx_burst(&mut pool, &mut sent).expect("open"), 4);
    Box::new(a).close(&mut pool);
    assert!(wait(&b, 10_000) && b.has_input());
    let mut got = Batch::new();
    assert_eq!(b.rx_burst(&mut pool, &mut got).expect("what was sent before"), 2);
    let mut rest = batch(&mut pool, 0..1);
    assert!(matches!(b.rx_burst(&mut pool, &mut got), Err(PortError::PeerClosed)));
    assert!(matches!(b.tx_burst(&mut pool, &mut rest), Err(PortError::PeerClosed)));
    assert_eq!(rest.len(), 1, "what was not taken stays");
    pool.free_batch(&mut got);
    pool.free_batch(&mut rest);
    Box::new(b).close(&mut pool);
    assert_eq!(pool.available(), 1024);
}

#[test]
fn frames_on_their_way_come_home_whichever_end_closes_first_while_the_other_sends() {
    let slab = slab();
    for round in 0..200 {
        let (a, b) = pair(SPEC).expect("an eventfd each");
        let threads = [a, b].map(|mut port| {
            let slab = Arc::clone(&slab);
            std::thread::spawn(move || {
                let mut pool = Pool::new(&slab);
                for burst in 0..round % 7 {
                    let mut sent = batch(&mut pool, 0..burst);
                    let _ = port.tx_burst(&mut pool, &mut sent);
                    pool.free_batch(&mut sent);
                }
                Box::new(port).close(&mut pool);
            })
        });
        threads.into_iter().for_each(|thread| thread.join().expect("no frame was dropped"));
        assert_eq!(Pool::new(&slab).available(), 1024, "round {round}");
    }
}

#[test]
fn an_end_is_opened_once() {
    let (near, far) = pair(SPEC).expect("eventfds");
    let (slab, spec) = (slab(), port::PortSpec::Memory(near.into()));
    let mut pool = Pool::new(&slab);
    let opened = port::open(&spec, &slab).expect("the first");
    assert!(matches!(port::open(&spec, &slab), Err(port::OpenError::Busy { .. })));
    assert_eq!(spec, spec.clone());
    assert_ne!(spec, port::PortSpec::Memory(far.into()));
    opened.close(&mut pool);
}
