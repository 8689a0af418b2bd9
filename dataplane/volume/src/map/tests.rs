//! The delta against a table of pages; the index and the cache at their edges.

use std::collections::BTreeMap as Table;

use block::ExtentId;
use frame::{IoSlab, IoSlabConfig};
use proptest::prelude::*;

use super::*;
use crate::format::{Header, Kind, LEAF_BYTES, put_entry};

fn place(slot: u32) -> Place {
    Place { extent: ExtentId(1), slot }
}

proptest! {
    #[test]
    fn a_delta_is_a_table_of_pages(
        steps in proptest::collection::vec((0..40_u64, 0..12_u64), 1..80),
        cut in 0..60_u64,
    ) {
        let (mut delta, mut table, mut freed) = (Delta::default(), Table::new(), Vec::new());
        for (number, (page, count)) in steps.into_iter().enumerate() {
            let mapped = Mapped { place: place(number as u32), crc: 0 };
            if count == 0 {
                freed.extend(delta.put(page, mapped));
                table.insert(page, Found::Page(mapped));
            } else {
                delta.punch(page, page + count, |place| freed.push(place));
                (page..page + count).for_each(|page| { table.insert(page, Found::Hole); });
            }
        }
        for page in 0..60 {
            prop_assert_eq!(delta.find(page), table.get(&page).copied().unwrap_or(Found::Unknown));
        }
        let holes: Vec<(u64, u64)> = delta.holes().collect();
        prop_assert!(holes.windows(2).all(|pair| pair[0].1 < pair[1].0), "apart: {:?}", holes);
        let held = delta.pages().map(|(_, mapped)| mapped.place);
        let mut all: Vec<Place> = freed.into_iter().chain(held).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        prop_assert_eq!(all.len(), count, "each place is held or freed, once");
        // What is taken out of it, looked at first, hides nothing.
        let rest = delta.split_holes(cut);
        prop_assert!(delta.holes().all(|(_, end)| end <= cut) && rest.holes().all(|(first, _)| first >= cut));
        for page in 0..60 {
            let found = match rest.find(page) {
                Found::Unknown => delta.find(page),
                found => found,
            };
            prop_assert_eq!(found, table.get(&page).copied().unwrap_or(Found::Unknown), "page {}", page);
        }
    }
}

fn leaf_ref(slot: u32) -> LeafRef {
    LeafRef { place: place(slot), crc: 0, entries: 1 }
}

#[test]
fn the_first_leaf_covers_from_zero() {
    let mut index = Index::default();
    assert_eq!(index.leaf_of(5), None);
    index.replace(0, [(0, leaf_ref(1)), (100, leaf_ref(2))]);
    assert_eq!(index.leaf_of(99), Some((0, leaf_ref(1))));
    assert_eq!((index.end_of(0), index.end_of(100)), (100, u64::MAX));
    index.replace(0, []);
    assert_eq!(index.leaf_of(5), Some((0, leaf_ref(2))));
    index.replace(0, []);
    assert_eq!((index.len(), index.leaf_of(5)), (0, None));
}

#[test]
fn holes_reach_until_they_empty_enough() {
    let mut index = Index::default();
    let leaf = |slot| LeafRef { entries: 50, ..leaf_ref(slot) };
    index.replace(0, [(0, leaf(1)), (100, leaf(2)), (200, leaf(3))]);
    let reach = |holes: &[(u64, u64)], most| index.reach(holes.iter().copied(), most);
    assert_eq!(reach(&[(0, 1 << 40)], 200), None, "all of it");
    assert_eq!(reach(&[(0, 1 << 40)], 100), Some(200));
    assert_eq!(reach(&[(0, 1 << 40)], 1), Some(100), "one leaf at least");
    assert_eq!(reach(&[(10, 20), (90, 95), (250, 300)], 15), Some(250), "no more than they cover counts");
    assert_eq!(Index::default().reach([(0, 1 << 40)].into_iter(), 1), None, "nothing is mapped");
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let slab = IoSlab::new(IoSlabConfig { regions: 1, hugepages: false }).expect("maps");
    let mut pool = IoPool::new(&slab, 1);
    let mut cache = LeafCache::new(2);
    for slot in 0..2 {
        let buffer = pool.alloc(LEAF_BYTES).expect("there is room");
        cache.keep(place(slot), buffer, &mut pool);
    }
    assert!(cache.leaf(place(0), &pool).is_some());
    let buffer = pool.alloc(LEAF_BYTES).expect("there is room");
    cache.keep(place(2), buffer, &mut pool);
    assert!(cache.leaf(place(0), &pool).is_some(), "used lately");
    assert!(cache.leaf(place(1), &pool).is_none(), "not used");
    cache.remove(place(0), &mut pool);
    assert!(cache.leaf(place(0), &pool).is_none());
    cache.clear(&mut pool);
}

#[test]
fn a_leaf_is_searched_at_its_ends() {
    let mut leaf = vec![0; LEAF_BYTES];
    let pages = [3, 7, 1 << 33];
    for (at, page) in pages.into_iter().enumerate() {
        put_entry(&mut leaf, at, page, Mapped { place: place(at as u32), crc: 0 });
    }
    let bytes = 64 + 16 * 3;
    Header { kind: Kind::Leaf, identity: [0; 16], epoch: block::Epoch(1), a: 0, b: 0, bytes }.seal(&mut leaf);
    for (at, page) in pages.into_iter().enumerate() {
        assert_eq!(find_in_leaf(&leaf, page).map(|mapped| mapped.place), Some(place(at as u32)));
        assert_eq!(find_in_leaf(&leaf, page + 1), None);
    }
    assert_eq!(find_in_leaf(&leaf, 0), None);
    assert_eq!((first_from(&leaf, 4), first_from(&leaf, u64::MAX)), (1, 3));
}
