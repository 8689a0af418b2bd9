//! Payload memory: bounds, reuse across classes, buffers that go home through another pool.

use super::*;

fn slab(regions: u32) -> Arc<IoSlab> {
    IoSlab::new(IoSlabConfig { regions, hugepages: false }).expect("maps")
}

#[test]
fn a_slab_of_no_or_too_many_regions_is_refused() {
    for regions in [0, IO_REGIONS_MAX + 1] {
        let error = IoSlab::new(IoSlabConfig { regions, hugepages: false }).unwrap_err();
        assert!(matches!(error, SlabError::Regions { .. }), "{error}");
    }
}

#[test]
fn a_slab_says_what_it_was_mapped_from() {
    let slab = slab(1);
    assert!(matches!(slab.backing(), Backing::Normal { .. }));
    let (base, bytes) = slab.memory();
    assert_eq!((base.as_ptr() as usize % IO_PAGE_BYTES, bytes), (0, IO_REGION_BYTES));
}

#[test]
fn buffers_are_aligned_disjoint_and_bounded() {
    let slab = slab(2);
    let mut pool = IoPool::new(&slab, 2);
    for class in IO_CLASS_BYTES {
        let mut held = Vec::new();
        while let Some(mut buffer) = pool.alloc(class) {
            assert_eq!((buffer.len(), buffer.capacity()), (class, class));
            assert_eq!(buffer.offset() % IO_PAGE_BYTES, 0);
            pool.bytes_mut(&mut buffer).fill(held.len() as u8);
            held.push(buffer);
        }
        assert_eq!(held.len() * class, 2 * IO_REGION_BYTES);
        for (number, buffer) in held.iter().enumerate() {
            assert!(pool.bytes(buffer).iter().all(|&byte| byte == number as u8));
        }
        held.into_iter().for_each(|buffer| pool.free(buffer));
    }
    assert!(pool.alloc(IO_REGION_BYTES + 1).is_none());
}

#[test]
fn the_length_changes_within_the_class() {
    let slab = slab(1);
    let mut pool = IoPool::new(&slab, 1);
    let mut buffer = pool.alloc(5000).expect("there is room");
    assert_eq!((buffer.len(), buffer.capacity()), (5000, 16 << 10));
    assert!(buffer.set_len(16 << 10) && !buffer.set_len((16 << 10) + 1));
    assert_eq!(pool.bytes(&buffer).len(), 16 << 10);
    assert!(buffer.set_len(0) && buffer.is_empty());
    pool.free(buffer);
}

#[test]
fn the_buffer_freed_last_is_used_again() {
    let slab = slab(1);
    let mut pool = IoPool::new(&slab, 1);
    let first = pool.alloc(4096).expect("there is room");
    let offset = first.offset();
    pool.free(first);
    let second = pool.alloc(4096).expect("there is room");
    assert_eq!(second.offset(), offset);
    pool.free(second);
}

#[test]
fn a_pool_takes_no_more_regions_than_its_share() {
    let slab = slab(4);
    let mut pool = IoPool::new(&slab, 1);
    let buffer = pool.alloc(IO_REGION_BYTES).expect("there is room");
    assert!(pool.alloc(1).is_none());
    pool.free(buffer);
}

#[test]
fn a_buffer_freed_elsewhere_comes_home() {
    let slab = slab(1);
    let (mut owner, mut other) = (IoPool::new(&slab, 1), IoPool::new(&slab, 1));
    let buffer = owner.alloc(IO_REGION_BYTES).expect("there is room");
    other.free(buffer);
    assert!(other.alloc(4096).is_none(), "the region belongs to the owner");
    let again = owner.alloc(IO_REGION_BYTES).expect("it came home");
    owner.free(again);
}

#[test]
fn a_pool_that_goes_away_leaves_its_regions_to_others() {
    let slab = slab(2);
    let mut gone = IoPool::new(&slab, 2);
    let out = gone.alloc(4096).expect("there is room");
    let whole = gone.alloc(IO_REGION_BYTES).expect("there is room");
    gone.free(whole);
    drop(gone);
    let mut heir = IoPool::new(&slab, 2);
    heir.free(out);
    let held: Vec<_> = std::iter::from_fn(|| heir.alloc(4096)).collect();
    assert_eq!(held.len(), 512, "every page of both regions");
    held.into_iter().for_each(|buffer| heir.free(buffer));
    let large: Vec<_> = std::iter::from_fn(|| heir.alloc(IO_REGION_BYTES)).collect();
    assert_eq!(large.len(), 2, "whole regions can be cut anew");
    large.into_iter().for_each(|buffer| heir.free(buffer));
}

#[test]
#[should_panic(expected = "buffer of another slab")]
fn a_buffer_of_another_slab_is_refused() {
    let (one, two) = (slab(1), slab(1));
    let (mut here, there) = (IoPool::new(&one, 1), IoPool::new(&two, 1));
    let buffer = here.alloc(1).expect("there is room");
    let _ = there.bytes(&buffer);
}

mod model {
    //! Any sequence of allocations and frees through two pools, against a list of what is out.

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_two_buffers_overlap(steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..5_usize, any::<usize>()), 1..300)) {
            let slab = slab(3);
            let mut pools = [IoPool::new(&slab, 2), IoPool::new(&slab, 3)];
            let mut out: Vec<IoBuffer> = Vec::new();
            for (which, take, class, pick) in steps {
                let pool = &mut pools[usize::from(which)];
                if take {
                    if let Some(buffer) = pool.alloc(IO_CLASS_BYTES[class]) {
                        let (start, end) = (buffer.offset(), buffer.offset() + buffer.capacity());
                        assert!(out.iter().all(|held| held.offset() + held.capacity() <= start || end <= held.offset()));
                        out.push(buffer);
                    }
                } else if !out.is_empty() {
                    let buffer = out.swap_remove(pick % out.len());
                    pool.free(buffer);
                }
            }
            for buffer in out {
                pools[0].free(buffer);
            }
            let mut whole = 0;
            for pool in &mut pools {
                let held: Vec<_> = std::iter::from_fn(|| pool.alloc(IO_REGION_BYTES)).collect();
                whole += held.len();
                held.into_iter().for_each(|buffer| pool.free(buffer));
            }
            // Each pool may take the regions that the other one does not keep.
            prop_assert!(whole >= 3);
        }
    }
}

#[test]
fn a_share_leaves_as_much_as_it_holds_and_the_reserve() {
    let slab = slab(8);
    let mut pool = IoPool::new(&slab, 8);
    pool.set_share(Some(IoShare { reserve: 1, held: 0, weight: 1 }));
    let mut held: Vec<_> = std::iter::from_fn(|| pool.alloc(IO_REGION_BYTES)).collect();
    assert_eq!(held.len(), 4, "with 4 of 8 more would be held than is left beyond the reserve");
    pool.set_share(Some(IoShare { reserve: 1, held: 0, weight: 1 }));
    held.extend(std::iter::from_fn(|| pool.alloc(IO_REGION_BYTES)));
    assert_eq!(held.len(), 6, "somebody who holds nothing finds some");
    pool.set_share(Some(IoShare { reserve: 1, held: 0, weight: 1 }));
    held.push(pool.alloc(64 << 10).expect("one more than the reserve is left"));
    held.push(pool.alloc(64 << 10).expect("a region that is cut already counts no more"));
    assert!(pool.alloc(IO_REGION_BYTES).is_none());
    pool.set_share(None);
    held.push(pool.alloc(IO_REGION_BYTES).expect("the reserve"));
    assert!(pool.alloc(IO_REGION_BYTES).is_none());
    held.into_iter().for_each(|buffer| pool.free(buffer));
}
