//! Faults on top of a port: the dice, the balance, time.
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use frame::{Batch, Flags, Frame, GsoKind, Pool, Slab, SlabConfig};
use port::faults::{FaultSpec, Faults};
use port::memory::{self, MemoryPort, MemorySpec};
use port::null::NullSpec;
use port::{OpenError, Port, PortError, PortSpec, open};
use proptest::prelude::*;

const FRAMES: usize = 4096;

/// A port with faults, the other end of its wire, and a clock that is set by hand.
struct Bench {
    pool: Pool,
    faulty: Box<dyn Port>,
    wire: MemoryPort,
    clock: Arc<AtomicU64>,
}

impl Bench {
    fn new(spec: &FaultSpec) -> Bench {
        Bench::with_capacity(spec, 1024)
    }

    fn with_capacity(spec: &FaultSpec, capacity_frames: usize) -> Bench {
        let slab = Slab::new(SlabConfig { frames: FRAMES as u32, jumbo_frames: 4, hugepages: false });
        let pool = Pool::new(&slab.expect("a small slab"));
        let (inner, wire) =
            memory::pair(MemorySpec { capacity_frames, mtu_bytes: 1500, offloads: true }).expect("eventfds");
        let clock = Arc::new(AtomicU64::new(0));
        let reader = Arc::clone(&clock);
        let faulty = Faults::with_clock(Box::new(inner), spec, move || reader.load(Ordering::Relaxed));
        Bench { pool, faulty: Box::new(faulty.expect("a good specification")), wire, clock }
    }

    fn frame(&mut self, number: u64) -> Frame {
        let mut frame = self.pool.alloc().expect("a frame");
        let mut bytes = [0; 60];
        bytes[..8].copy_from_slice(&number.to_ne_bytes());
        assert!(self.pool.fill(&mut frame, &bytes));
        frame
    }

    /// Sends numbered frames through the faults, as many at once as fit a batch.
    fn send(&mut self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let mut batch: Batch = std::iter::once(self.frame(number)).collect();
            assert_eq!(self.faulty.tx_burst(&mut self.pool, &mut batch).expect("open"), 1);
        }
        self.faulty.flush(&mut self.pool).expect("open");
    }

    /// What has come out on the wire.
    fn sent(&mut self) -> Vec<u64> {
        let mut batch = Batch::new();
        let mut numbers = Vec::new();
        while self.wire.rx_burst(&mut self.pool, &mut batch).expect("open") > 0 {
            numbers.extend(numbers_of(&self.pool, &batch));
            self.pool.free_batch(&mut batch);
        }
        numbers
    }

    /// Frames that come in over the wire, through the faults.
    fn receive(&mut self, numbers: std::ops::Range<u64>) -> Vec<u64> {
        let mut batch = Batch::new();
        for number in numbers {
            batch.push(self.frame(number));
            assert_eq!(self.wire.tx_burst(&mut self.pool, &mut batch).expect("open"), 1);
        }
        let mut got = Vec::new();
        // A burst may come out empty because all of it was lost, so we do not stop at the first empty one.
        for _ in 0..64 {
            self.faulty.rx_burst(&mut self.pool, &mut batch).expect("open");
            got.extend(numbers_of(&self.pool, &batch));
            self.pool.free_batch(&mut batch);
        }
        got
    }

    fn close(mut self) {
        self.faulty.close(&mut self.pool);
        Box::new(self.wire).close(&mut self.pool);
        assert_eq!(self.pool.available(), FRAMES);
    }
}

fn numbers_of(pool: &Pool, batch: &Batch) -> Vec<u64> {
    let number = |frame| u64::from_ne_bytes(pool.bytes(frame)[..8].try_into().expect("eight bytes"));
    batch.iter().map(number).collect()
}

fn faults(seed: u64) -> FaultSpec {
    FaultSpec { seed, held_frames_max: 64, ..FaultSpec::default() }
}

#[test]
fn without_faults_nothing_happens() {
    let mut bench = Bench::new(&faults(1));
    bench.send(0..100);
    assert_eq!(bench.sent(), (0..100).collect::<Vec<_>>());
    assert_eq!(bench.receive(0..100), (0..100).collect::<Vec<_>>());
    let counters = bench.faulty.counters();
    assert_eq!((counters.generated, counters.dropped, counters.held), (0, 0, 0));
    assert_eq!((counters.rx_frames, counters.tx_frames), (100, 100));
    bench.close();
}

#[test]
fn a_certain_fault_happens_to_every_frame_in_both_directions() {
    let mut bench = Bench::new(&FaultSpec { loss: 1.0, ..faults(1) });
    bench.send(0..50);
    assert_eq!((bench.sent(), bench.receive(0..50)), (vec![], vec![]));
    assert_eq!((bench.faulty.counters().dropped, bench.faulty.counters().rx_frames), (100, 50));
    bench.close();

    let mut bench = Bench::new(&FaultSpec { duplicate: 1.0, ..faults(1) });
    bench.send(0..40);
    let twice: Vec<u64> = (0..40).flat_map(|number| [number, number]).collect();
    assert_eq!((bench.sent(), bench.receive(0..40)), (twice.clone(), twice));
    assert_eq!(bench.faulty.counters().generated, 80);
    bench.close();
}

#[test]
fn the_seed_decides() {
    let spec = FaultSpec { loss: 0.2, duplicate: 0.2, reorder: 0.2, delay_ns: 10, ..faults(7) };
    let run = |spec: &FaultSpec| {
        let mut bench = Bench::new(spec);
        bench.send(0..300);
        let got = (bench.sent(), bench.receive(0..300));
        bench.close();
        got
    };
    let first = run(&spec);
    assert_eq!(first, run(&spec));
    assert_ne!(first, run(&FaultSpec { seed: 8, ..spec }));
    assert_ne!(first.0, first.1, "the directions have dice of their own");
}

#[test]
fn losses_are_as_frequent_as_asked_for() {
    let mut bench = Bench::new(&FaultSpec { loss: 0.1, ..faults(3) });
    for _ in 0..20 {
        bench.send(0..500);
        bench.sent();
    }
    // 10,000 frames: five standard deviations are 150.
    let dropped = bench.faulty.counters().dropped;
    assert!((850..1150).contains(&dropped), "{dropped}");
    bench.close();
}

#[test]
fn a_corrupted_frame_differs_in_one_bit_and_is_no_longer_vouched_for() {
    let mut bench = Bench::new(&FaultSpec { corrupt: 1.0, ..faults(5) });
    for _ in 0..100 {
        let mut frame = bench.frame(0);
        bench.pool.meta_mut(&mut frame).flags.set(Flags::CSUM_VALID);
        let mut batch: Batch = std::iter::once(frame).collect();
        assert_eq!(bench.faulty.tx_burst(&mut bench.pool, &mut batch).expect("open"), 1);
        assert_eq!(bench.wire.rx_burst(&mut bench.pool, &mut batch).expect("open"), 1);
        let ones: u32 = bench.pool.bytes(&batch[0]).iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(ones, 1);
        assert!(!bench.pool.meta(&batch[0]).flags.has(Flags::CSUM_VALID));
        bench.pool.free_batch(&mut batch);
    }
    assert_eq!(bench.faulty.counters().corrupted, 100);
    bench.close();
}

#[test]
fn a_checksum_is_finished_before_corruption_and_a_super_segment_is_spared() {
    let mut bench = Bench::new(&FaultSpec { corrupt: 1.0, ..faults(5) });
    let (mut partial, mut super_segment) = (bench.frame(0), bench.frame(0));
    let meta = bench.pool.meta_mut(&mut partial);
    (meta.csum_start, meta.csum_offset) = (20, 6);
    meta.flags.set(Flags::CSUM_PARTIAL);
    bench.pool.meta_mut(&mut super_segment).gso = GsoKind::TcpV4;
    let mut batch = Batch::from_iter([partial, super_segment]);
    assert_eq!(bench.faulty.tx_burst(&mut bench.pool, &mut batch).expect("open"), 2);
    assert_eq!(bench.wire.rx_burst(&mut bench.pool, &mut batch).expect("open"), 2);
    assert!(!bench.pool.meta(&batch[0]).flags.has(Flags::CSUM_PARTIAL));
    // All zero, so the finished checksum is 0xffff, but for the one bit that flipped.
    let ones: u32 = bench.pool.bytes(&batch[0]).iter().map(|byte| byte.count_ones()).sum();
    assert!(ones == 15 || ones == 17, "{ones}");
    assert_eq!(bench.pool.bytes(&batch[1]), [0; 60]);
    assert_eq!(bench.faulty.counters().corrupted, 1);
    bench.pool.free_batch(&mut batch);
    bench.close();
}

#[test]
fn a_delayed_frame_comes_when_it_is_due_and_keeps_the_worker_awake() {
    let mut bench = Bench::new(&FaultSpec { delay: 1.0, delay_ns: 1000, ..faults(1) });
    bench.send(0..10);
    assert_eq!(bench.receive(20..30), Vec::<u64>::new());
    assert_eq!((bench.sent(), bench.faulty.counters().held), (vec![], 20));
    assert!(bench.faulty.has_input());
    bench.clock.store(999, Ordering::Relaxed);
    bench.send(10..11);
    assert_eq!(bench.sent(), []);
    bench.clock.store(1000, Ordering::Relaxed);
    bench.faulty.flush(&mut bench.pool).expect("open");
    assert_eq!(bench.sent(), (0..10).collect::<Vec<_>>());
    assert_eq!(bench.receive(0..0), (20..30).collect::<Vec<_>>());
    bench.clock.store(1999, Ordering::Relaxed);
    bench.faulty.flush(&mut bench.pool).expect("open");
    assert_eq!(bench.sent(), [10]);
    assert_eq!((bench.faulty.counters().held, bench.faulty.counters().delayed), (0, 21));
    assert!(!bench.faulty.has_input());
    bench.close();
}

#[test]
fn frames_that_find_no_room_to_wait_are_lost_and_counted() {
    let mut bench = Bench::new(&FaultSpec { delay: 1.0, delay_ns: 5, held_frames_max: 4, ..faults(1) });
    bench.send(0..10);
    assert_eq!((bench.faulty.counters().held, bench.faulty.counters().dropped), (4, 6));
    bench.clock.store(5, Ordering::Relaxed);
    bench.faulty.flush(&mut bench.pool).expect("open");
    assert_eq!(bench.sent(), [0, 1, 2, 3]);
    bench.close();
}

#[test]
fn a_reordered_frame_changes_places_with_its_successor_or_waits_no_longer_than_told() {
    let mut bench = Bench::new(&FaultSpec { reorder: 1.0, delay_ns: 100, ..faults(1) });
    bench.send(0..5);
    assert_eq!(bench.sent(), [1, 0, 3, 2]);
    assert_eq!((bench.faulty.counters().held, bench.faulty.counters().delayed), (1, 3));
    bench.clock.store(100, Ordering::Relaxed);
    bench.faulty.flush(&mut bench.pool).expect("open");
    assert_eq!(bench.sent(), [4]);
    bench.close();
}

#[test]
fn a_full_port_pushes_back_and_loses_nothing() {
    let mut bench = Bench::with_capacity(&FaultSpec { duplicate: 1.0, ..faults(1) }, 16);
    let mut batch = Batch::new();
    for number in 0..10 {
        batch.push(bench.frame(number));
    }
    assert_eq!(bench.faulty.tx_burst(&mut bench.pool, &mut batch).expect("open"), 10);
    assert_eq!(bench.faulty.counters().held, 4);
    batch.push(bench.frame(10));
    assert_eq!(bench.faulty.tx_burst(&mut bench.pool, &mut batch).expect("open"), 0);
    assert_eq!(batch.len(), 1);
    let mut got = bench.sent();
    bench.faulty.flush(&mut bench.pool).expect("open");
    got.extend(bench.sent());
    assert_eq!(got, (0..10).flat_map(|number| [number, number]).collect::<Vec<_>>());
    bench.pool.free_batch(&mut batch);
    bench.close();
}

#[test]
fn an_error_of_the_port_underneath_is_passed_on_and_what_waits_is_given_back() {
    let mut bench = Bench::new(&FaultSpec { delay: 0.5, delay_ns: 1, ..faults(1) });
    bench.send(0..40);
    let Bench { mut pool, mut faulty, wire, clock } = bench;
    Box::new(wire).close(&mut pool);
    clock.store(10, Ordering::Relaxed);
    assert!(matches!(faulty.flush(&mut pool), Err(PortError::PeerClosed)));
    assert!(matches!(faulty.rx_burst(&mut pool, &mut Batch::new()), Err(PortError::PeerClosed)));
    assert!(faulty.counters().held > 0);
    faulty.close(&mut pool);
    assert_eq!(pool.available(), FRAMES);
}

#[test]
fn a_specification_that_makes_no_sense_is_refused() {
    let pool = Pool::new(
        &Slab::new(SlabConfig { frames: 1, jumbo_frames: 0, hugepages: false }).expect("a small slab"),
    );
    let inner = || Box::new(PortSpec::Null(NullSpec::default()));
    for bad in [
        FaultSpec { loss: 1.1, ..faults(1) },
        FaultSpec { duplicate: -0.1, ..faults(1) },
        FaultSpec { corrupt: f64::NAN, ..faults(1) },
        FaultSpec { delay: f64::INFINITY, ..faults(1) },
        FaultSpec { reorder: 2.0, ..faults(1) },
        FaultSpec { held_frames_max: 1 << 20, ..faults(1) },
    ] {
        let refused = open(&PortSpec::Faults(bad, inner()), pool.slab());
        assert!(matches!(refused, Err(OpenError::Spec { .. })));
    }
    let opened = open(&PortSpec::Faults(faults(1), inner()), pool.slab()).expect("a good one");
    assert!(opened.wait_fd().is_none() && !opened.caps().rx_gso);
}

fn spec() -> impl Strategy<Value = FaultSpec> {
    let chance = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64];
    ((any::<u64>(), 0..40usize), (chance(), chance(), chance(), chance(), chance(), 0..20u64)).prop_map(
        |((seed, held_frames_max), (loss, duplicate, corrupt, delay, reorder, delay_ns))| FaultSpec {
            seed,
            loss,
            duplicate,
            corrupt,
            delay,
            delay_ns,
            reorder,
            held_frames_max,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever goes wrong, each frame is somewhere: in + generated = out + dropped + held.
    #[test]
    fn the_balance_holds_after_every_burst(
        spec in spec(),
        bursts in prop::collection::vec((0..33u64, 0..33u64, 0..9u64), 1..30),
    ) {
        let mut bench = Bench::with_capacity(&spec, 64);
        let (mut offered, mut handed_out, mut now_ns) = (0, 0, 0);
        for (tx, rx, pause_ns) in bursts {
            now_ns += pause_ns;
            bench.clock.store(now_ns, Ordering::Relaxed);
            let mut batch: Batch = (0..tx).map(|number| bench.frame(number)).collect();
            offered += bench.faulty.tx_burst(&mut bench.pool, &mut batch).expect("open") as u64;
            bench.pool.free_batch(&mut batch);
            bench.sent();
            batch.extend((0..rx).map(|number| bench.frame(number)));
            bench.wire.tx_burst(&mut bench.pool, &mut batch).expect("open");
            bench.pool.free_batch(&mut batch);
            handed_out += bench.faulty.rx_burst(&mut bench.pool, &mut batch).expect("open") as u64;
            bench.pool.free_batch(&mut batch);
            let counters = bench.faulty.counters();
            prop_assert_eq!(
                counters.rx_frames + offered + counters.generated,
                counters.tx_frames + handed_out + counters.dropped + counters.held
            );
        }
        bench.close();
    }
}
