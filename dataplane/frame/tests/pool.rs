//! The slab and its pools, seen from outside.
#![allow(missing_docs)]

use std::sync::Arc;

use frame::{
    BATCH, Backing, Batch, CHUNK_BYTES, FRAME_BYTES_MAX, Frame, GsoKind, HEADROOM_BYTES, JUMBO_BYTES, Pool,
    Slab, SlabConfig, SlabError,
};
use proptest::prelude::*;

fn slab(frames: u32, jumbo_frames: u32) -> Arc<Slab> {
    Slab::new(SlabConfig { frames, jumbo_frames, hugepages: false }).expect("a small slab")
}

#[test]
fn a_fresh_frame_is_empty_with_headroom_and_room_for_the_longest_frame() {
    let slab = slab(8, 1);
    let mut pool = Pool::new(&slab);
    let mut batch = Batch::new();
    assert_eq!(pool.alloc_batch(&mut batch, BATCH), 8);
    for frame in &batch {
        assert_eq!(pool.bytes(frame), b"");
        assert!(pool.meta(frame).headroom() >= HEADROOM_BYTES);
        assert!(pool.capacity(frame) >= FRAME_BYTES_MAX);
        assert!(!pool.is_jumbo(frame));
    }
    let jumbo = pool.alloc_jumbo().expect("one jumbo frame");
    assert!(pool.is_jumbo(&jumbo) && pool.capacity(&jumbo) == JUMBO_BYTES - HEADROOM_BYTES);
    assert!(pool.alloc().is_none() && pool.alloc_jumbo().is_none());
    batch.push(jumbo);
    pool.free_batch(&mut batch);
    assert_eq!(pool.available(), 8);
    let jumbo = pool.alloc_jumbo().expect("the jumbo frame came back");
    pool.free(jumbo);
}

#[test]
fn a_batch_is_filled_behind_what_it_holds() {
    let slab = slab(64, 0);
    let mut pool = Pool::new(&slab);
    let mut batch = Batch::new();
    assert_eq!(pool.alloc_batch(&mut batch, 3), 3);
    let first = batch[0].index();
    assert_eq!(pool.alloc_batch(&mut batch, 0), 0);
    assert_eq!(pool.alloc_batch(&mut batch, 100), 29);
    assert_eq!(batch[0].index(), first);
    let mut indices: Vec<u32> = batch.iter().map(Frame::index).collect();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), 32);
    pool.free_batch(&mut batch);
}

#[test]
fn bytes_written_are_bytes_read_and_headers_come_and_go_at_the_front() {
    let slab = slab(4, 1);
    let mut pool = Pool::new(&slab);
    for mut frame in [pool.alloc().expect("small"), pool.alloc_jumbo().expect("jumbo")] {
        assert!(pool.fill(&mut frame, b"payload"));
        pool.prepend(&mut frame, 6).expect("headroom")[..6].copy_from_slice(b"header");
        assert_eq!(pool.bytes(&frame), b"headerpayload");
        assert!(pool.trim_front(&mut frame, 3));
        assert_eq!(pool.bytes(&frame), b"derpayload");
        assert!(pool.set_len(&mut frame, 3));
        let (meta, bytes) = pool.parts_mut(&mut frame);
        meta.vni = 5;
        bytes[0] = b'D';
        assert_eq!((pool.meta(&frame).vni, pool.bytes(&frame)), (5, &b"Der"[..]));
        pool.free(frame);
    }
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let slab = slab(4, 1);
    let mut pool = Pool::new(&slab);
    for mut frame in [pool.alloc().expect("small"), pool.alloc_jumbo().expect("jumbo")] {
        assert!(pool.fill(&mut frame, b"payload"));
        let (headroom, capacity) = (pool.meta(&frame).headroom(), pool.capacity(&frame));
        assert!(!pool.fill(&mut frame, &vec![0; capacity + 1]));
        assert!(!pool.set_len(&mut frame, capacity + 1));
        assert!(!pool.set_len(&mut frame, usize::MAX));
        assert!(!pool.trim_front(&mut frame, 8));
        assert!(!pool.trim_front(&mut frame, usize::MAX));
        assert!(pool.prepend(&mut frame, headroom + 1).is_none());
        assert_eq!(pool.bytes(&frame), b"payload");
        assert!(pool.prepend(&mut frame, headroom).is_some());
        assert!(pool.set_len(&mut frame, headroom + capacity));
        assert!(!pool.set_len(&mut frame, headroom + capacity + 1));
        pool.free(frame);
    }
}

#[test]
fn a_jumbo_frame_cannot_begin_where_its_metadata_cannot_say() {
    let slab = slab(0, 1);
    let mut pool = Pool::new(&slab);
    let mut frame = pool.alloc_jumbo().expect("one");
    assert!(pool.set_len(&mut frame, 70_000));
    assert!(!pool.crop(&mut frame, 65_536 - HEADROOM_BYTES, 65_536));
    assert!(!pool.trim_front(&mut frame, 65_536 - HEADROOM_BYTES));
    assert!(pool.trim_front(&mut frame, 65_535 - HEADROOM_BYTES));
    assert_eq!(pool.bytes(&frame).len(), 70_000 - 65_535 + HEADROOM_BYTES);
    pool.free(frame);
}

#[test]
fn metadata_is_fresh_at_every_allocation() {
    let slab = slab(1, 1);
    let mut pool = Pool::new(&slab);
    let mut frame = pool.alloc().expect("the only one");
    let meta = pool.meta_mut(&mut frame);
    (meta.gso, meta.gso_bytes, meta.vni, meta.id) = (GsoKind::TcpV6, 1400, 9, 77);
    pool.free(frame);
    let mut batch = Batch::new();
    assert_eq!(pool.alloc_batch(&mut batch, 1), 1);
    let meta = pool.meta(&batch[0]);
    assert_eq!((meta.gso, meta.gso_bytes, meta.vni, meta.id, meta.len()), (GsoKind::None, 0, 0, 0, 0));
    pool.free_batch(&mut batch);
}

#[test]
fn swapped_metadata_cannot_reach_beyond_the_chunk() {
    let slab = slab(1, 1);
    let mut pool = Pool::new(&slab);
    let mut small = pool.alloc().expect("small");
    let mut jumbo = pool.alloc_jumbo().expect("jumbo");
    assert!(pool.set_len(&mut jumbo, 60_000));
    std::mem::swap(pool.meta_mut(&mut small), pool.meta_mut(&mut jumbo));
    let reached = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.bytes(&small).len()));
    assert!(reached.is_err());
    assert_eq!(pool.capacity(&small), CHUNK_BYTES - HEADROOM_BYTES);
    pool.free(small);
    pool.free(jumbo);
}

#[test]
fn a_frame_of_another_slab_is_refused_everywhere() {
    let (mine, other) = (slab(64, 1), slab(64, 1));
    let (mut pool, mut other_pool) = (Pool::new(&mine), Pool::new(&other));
    let frame = other_pool.alloc().expect("a frame");
    let refused =
        |act: &mut dyn FnMut()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err();
    assert!(refused(&mut || assert_eq!(pool.bytes(&frame), b"")));
    assert!(refused(&mut || assert_eq!(pool.meta(&frame).len(), 0)));
    let raw = frame.into_raw();
    // SAFETY: not adopted since; the call panics before there is a frame.
    assert!(refused(&mut || pool.free(unsafe { pool.adopt(raw) })));
    // SAFETY: it came from a frame of this slab and was not adopted since.
    let frame = unsafe { other_pool.adopt(raw) };
    other_pool.free(frame);
}

#[test]
fn a_kernel_gets_a_number_and_gives_back_an_offset() {
    let slab = slab(4, 1);
    let mut pool = Pool::new(&slab);
    let mut frame = pool.alloc().expect("a frame");
    assert!(pool.fill(&mut frame, b"0123456789"));
    let offset = pool.bytes(&frame).as_ptr() as usize - slab.chunk_region().0 as usize;
    assert_eq!(offset / CHUNK_BYTES, frame.index() as usize);
    let index = frame.index();
    assert_eq!(frame.into_raw() & 0xff_ffff, index);
    // SAFETY: given up just now; bytes 2..10 lie inside the chunk.
    let frame = unsafe { pool.adopt_at(offset + 2, 8) };
    assert_eq!((frame.index(), pool.bytes(&frame)), (index, &b"23456789"[..]));
    pool.free(frame);
    let outside = 4 * CHUNK_BYTES;
    // SAFETY: refused before there is a frame.
    let adopt = || unsafe { pool.adopt_at(outside, 1).into_raw() };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(adopt)).is_err());
}

#[test]
fn frames_come_home_from_pools_that_go_away() {
    let slab = slab(200, 6);
    for round in 0..50 {
        let mut pool = Pool::new(&slab);
        assert_eq!(pool.available(), 200, "round {round}");
        let frames: Vec<Frame> = (0..3 * round + 1).map_while(|_| pool.alloc()).collect();
        let jumbos: Vec<Frame> = std::iter::from_fn(|| pool.alloc_jumbo()).collect();
        assert_eq!(jumbos.len(), 6);
        assert_eq!(pool.available(), 200 - frames.len());
        // A second pool takes them back: the stacks of both are partly filled when they go.
        let mut second = Pool::new(&slab);
        frames.into_iter().chain(jumbos).for_each(|frame| second.free(frame));
    }
}

#[test]
fn a_pool_does_not_hoard() {
    let slab = slab(4096, 0);
    let mut hoarder = Pool::new(&slab);
    let all: Vec<Frame> = std::iter::from_fn(|| hoarder.alloc()).collect();
    assert_eq!(all.len(), 4096);
    all.into_iter().for_each(|frame| hoarder.free(frame));
    let mut second = Pool::new(&slab);
    let got: Vec<Frame> = std::iter::from_fn(|| second.alloc()).collect();
    assert!(got.len() >= 4096 - 576, "{}", got.len());
    got.into_iter().for_each(|frame| second.free(frame));
}

#[test]
fn two_pools_trade_through_the_depot_in_threads() {
    let (count, frames) = if cfg!(miri) { (400, 256) } else { (1_000_000, 1024) };
    let slab = slab(frames, 2);
    let (mut producer, mut consumer) = frame::ring::<Frame>(128);
    let reader_slab = Arc::clone(&slab);
    let reader = std::thread::spawn(move || {
        let mut pool = Pool::new(&reader_slab);
        let mut batch = Batch::new();
        let mut next = 0u64;
        while next < count {
            if consumer.pop_batch(&mut batch) == 0 {
                std::thread::yield_now();
            }
            for frame in &batch {
                assert_eq!(pool.bytes(frame), next.to_ne_bytes());
                assert_eq!(u64::from(pool.meta(frame).id), next);
                next += 1;
            }
            pool.free_batch(&mut batch);
        }
    });
    let mut pool = Pool::new(&slab);
    let mut batch = Batch::new();
    let mut next = 0u64;
    while next < count || !batch.is_empty() {
        while next < count && !batch.is_full() {
            let Some(mut frame) = pool.alloc() else { break };
            assert!(pool.fill(&mut frame, &next.to_ne_bytes()));
            pool.meta_mut(&mut frame).id = next as u32;
            batch.push(frame);
            next += 1;
        }
        if producer.push_batch(&mut batch) == 0 {
            std::thread::yield_now();
        }
    }
    reader.join().expect("every frame arrived intact");
    drop(producer);
    assert_eq!(pool.available(), frames as usize);
}

#[test]
fn a_slab_says_why_it_cannot_be_made_and_what_it_is_made_of() {
    for (frames, jumbo_frames) in [(0, 0), (1 << 24, 0), (u32::MAX, u32::MAX)] {
        let error = Slab::new(SlabConfig { frames, jumbo_frames, hugepages: false }).expect_err("refused");
        assert!(matches!(error, SlabError::Count { .. }), "{error}");
    }
    assert!(matches!(slab(1, 0).backing(), Backing::Normal { why } if !why.is_empty()));
}

#[test]
#[cfg(not(miri))]
fn too_many_hugepages_fall_back_to_ordinary_pages_and_say_what_to_do() {
    // 16 GiB of address space, far more than is reserved as hugepages where tests run; never touched.
    let slab = Slab::new(SlabConfig { frames: 4 << 20, jumbo_frames: 0, hugepages: true }).expect("mapped");
    match slab.backing() {
        Backing::Huge2M => eprintln!("skipped: this machine has 16 GiB of free hugepages"),
        Backing::Normal { why } => assert!(why.contains("vm.nr_hugepages="), "{why}"),
    }
}

#[test]
#[cfg(not(miri))]
fn memory_that_the_kernel_refuses_is_an_error_that_names_the_size() {
    // 1.2 TB: more than the machine overcommits, unless it overcommits everything.
    let config = SlabConfig { frames: 1, jumbo_frames: (1 << 24) - 2, hugepages: false };
    match Slab::new(config) {
        Err(error) => {
            assert!(matches!(error, SlabError::Map { bytes, .. } if bytes > 1 << 40), "{error}");
        }
        Ok(_) => eprintln!("skipped: this machine overcommits without bound"),
    }
}

/// One step of a user of the pool.
#[derive(Clone, Debug)]
enum Step {
    Alloc,
    AllocBatch(usize),
    AllocJumbo,
    Free(usize),
    FreeBatch(usize),
    Fill(usize, usize),
    Prepend(usize, usize),
    Trim(usize, usize),
    NewPool,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Alloc),
        3 => (0..40usize).prop_map(Step::AllocBatch),
        1 => Just(Step::AllocJumbo),
        3 => any::<usize>().prop_map(Step::Free),
        3 => (0..33usize).prop_map(Step::FreeBatch),
        3 => (any::<usize>(), 0..5000usize).prop_map(|(which, len)| Step::Fill(which, len)),
        2 => (any::<usize>(), 0..400usize).prop_map(|(which, len)| Step::Prepend(which, len)),
        2 => (any::<usize>(), 0..400usize).prop_map(|(which, len)| Step::Trim(which, len)),
        1 => Just(Step::NewPool),
    ]
}

/// A pool beside vectors of bytes that grow, shrink and go the same way.
struct Model {
    slab: Arc<Slab>,
    pool: Pool,
    held: Vec<(Frame, Vec<u8>)>,
    filled: u8,
}

impl Model {
    const FRAMES: usize = 150;
    const JUMBOS: usize = 6;

    fn new() -> Model {
        let slab = slab(Self::FRAMES as u32, Self::JUMBOS as u32);
        Model { pool: Pool::new(&slab), slab, held: Vec::new(), filled: 0 }
    }

    fn small(&self) -> usize {
        self.held.iter().filter(|(frame, _)| !self.pool.is_jumbo(frame)).count()
    }

    fn free_some(&mut self, count: usize) {
        let mut batch = Batch::new();
        let keep = self.held.len().saturating_sub(count.min(BATCH));
        batch.extend(self.held.drain(keep..).map(|(frame, _)| frame));
        self.pool.free_batch(&mut batch);
        assert!(batch.is_empty());
    }

    fn run(&mut self, step: Step) {
        let free = Self::FRAMES - self.small();
        let held = self.held.len();
        match step {
            Step::Alloc => match self.pool.alloc() {
                Some(frame) => self.held.push((frame, Vec::new())),
                None => assert_eq!(free, 0),
            },
            Step::AllocBatch(count) => {
                let mut batch = Batch::new();
                let got = self.pool.alloc_batch(&mut batch, count);
                assert_eq!((got, got), (batch.len(), count.min(BATCH).min(free)));
                self.held.extend(batch.into_iter().map(|frame| (frame, Vec::new())));
            }
            Step::AllocJumbo => match self.pool.alloc_jumbo() {
                Some(frame) => self.held.push((frame, Vec::new())),
                None => assert_eq!(held - self.small(), Self::JUMBOS),
            },
            Step::Free(which) if held > 0 => {
                let (frame, _) = self.held.swap_remove(which % held);
                self.pool.free(frame);
            }
            Step::FreeBatch(count) => self.free_some(count),
            Step::Fill(which, len) if held > 0 => {
                let (frame, bytes) = &mut self.held[which % held];
                self.filled = self.filled.wrapping_add(1);
                let new = vec![self.filled; len];
                let fits = len <= self.pool.capacity(frame);
                assert_eq!(self.pool.fill(frame, &new), fits);
                if fits {
                    *bytes = new;
                }
            }
            Step::Prepend(which, len) if held > 0 => {
                let (frame, bytes) = &mut self.held[which % held];
                let headroom = self.pool.meta(frame).headroom();
                match self.pool.prepend(frame, len) {
                    Some(all) => {
                        all[..len].fill(0xee);
                        bytes.splice(0..0, std::iter::repeat_n(0xee, len));
                    }
                    None => assert!(len > headroom),
                }
            }
            Step::Trim(which, len) if held > 0 => {
                let (frame, bytes) = &mut self.held[which % held];
                let fits = len <= bytes.len();
                assert_eq!(self.pool.trim_front(frame, len), fits);
                bytes.drain(..if fits { len } else { 0 });
            }
            Step::NewPool => self.pool = Pool::new(&self.slab),
            _ => {}
        }
    }

    fn check(&self) {
        assert_eq!(self.pool.available(), Self::FRAMES - self.small());
        for (frame, bytes) in &self.held {
            assert_eq!(self.pool.bytes(frame), bytes);
        }
    }
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 2 } else { 256 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever is allocated, written, freed and traded in whatever order: no frame is handed out twice, none
    /// is lost, and each holds its own bytes.
    #[test]
    fn a_pool_behaves_as_its_model(steps in prop::collection::vec(step(), 1..if cfg!(miri) { 30 } else { 200 })) {
        let mut model = Model::new();
        for step in steps {
            model.run(step);
            model.check();
        }
        while !model.held.is_empty() {
            model.free_some(BATCH);
        }
        model.check();
    }
}

#[test]
fn cropping_keeps_what_lies_between() {
    let slab = Slab::new(SlabConfig { frames: 64, jumbo_frames: 0, hugepages: false }).unwrap();
    let mut pool = Pool::new(&slab);
    let mut frame = pool.alloc().unwrap();
    assert!(pool.fill(&mut frame, b"outer inner padding"));
    assert!(!pool.crop(&mut frame, 6, 20));
    assert!(!pool.crop(&mut frame, 7, 6));
    assert!(pool.crop(&mut frame, 6, 11));
    assert_eq!(pool.bytes(&frame), b"inner");
    assert!(pool.crop(&mut frame, 5, 5));
    assert_eq!(pool.bytes(&frame), b"");
    pool.free(frame);
}
