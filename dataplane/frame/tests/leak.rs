//! A frame that is dropped instead of freed: a process of its own, since the counter is the process's.
#![allow(missing_docs)]

use frame::{Pool, Slab, SlabConfig, leaked};

#[test]
fn a_dropped_frame_is_counted_panics_in_debug_builds_and_keeps_the_tag_of_its_slab() {
    let config = SlabConfig { frames: 2, jumbo_frames: 0, hugepages: false };
    let tag = |raw: u32| raw >> 24;
    let slab = Slab::new(config).expect("a small slab");
    let mut pool = Pool::new(&slab);
    let kept = pool.alloc().expect("a frame").into_raw();
    let frame = pool.alloc().expect("a frame");
    assert_eq!(leaked(), 0);
    let dropped = std::panic::catch_unwind(|| drop(frame));
    assert_eq!(dropped.is_err(), cfg!(debug_assertions));
    assert_eq!(leaked(), 1);
    // SAFETY: it came from this slab and was not adopted since.
    let frame = unsafe { pool.adopt(kept) };
    pool.free(frame);
    drop((pool, slab));

    // The leaked handle still names the old slab: no later slab may get its tag. One whose frames all came
    // home gives its tag on.
    let next = Slab::new(config).expect("a small slab");
    let mut pool = Pool::new(&next);
    let frame = pool.alloc().expect("a frame");
    let raw = frame.into_raw();
    assert_ne!(tag(raw), tag(kept));
    // SAFETY: it came from this slab and was not adopted since.
    let frame = unsafe { pool.adopt(raw) };
    pool.free(frame);
    drop((pool, next));
    let again = Slab::new(config).expect("a small slab");
    let mut pool = Pool::new(&again);
    let frame = pool.alloc().expect("a frame");
    assert_eq!(frame.index() | (tag(raw) << 24), frame.into_raw());
}
