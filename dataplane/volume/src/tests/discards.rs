//! Discards of more than one checkpoint frees: a part at a time, with nothing forgotten in between.

use block::{Act, BlockSize, FileName, Op, Status};

use super::{Bed, disk, filled, small};
use crate::crash::CrashDisk;
use crate::format::LEAF_ENTRIES;
use crate::{Config, Stats, store};

const PAGE: usize = 4096;
const PAGES: u64 = 8 * LEAF_ENTRIES as u64;
/// Pages that one checkpoint frees.
const MOST: usize = 256;
/// Written after the discard that covers them.
const KEPT: [u64; 3] = [100, PAGES / 2, PAGES - 1];

fn config() -> Config {
    Config { delta_entries_max: MOST, log_segment_bytes: 1 << 20, ..small() }
}

/// A volume of which every page was written, and lies in leaves.
fn full() -> CrashDisk {
    let disk = disk(PAGES * PAGE as u64, BlockSize::B4096);
    let mut bed = Bed::open(&disk, config()).expect("opens");
    for page in (0..PAGES).step_by(8) {
        assert_eq!(bed.write(page, &filled(8 * PAGE, 1)), Status::Ok);
    }
    bed.checkpoint();
    bed.kill();
    disk.crash(false, |_, _| false)
}

/// Discards everything, and then writes some pages again.
fn empty(bed: &mut Bed) {
    assert_eq!(bed.run_only(Op::Discard, 0, PAGES as u32, None).status, Status::Ok);
    for page in KEPT {
        let write = Op::Write { fua: false };
        assert_eq!(bed.run_only(write, page, 1, Some(&filled(PAGE, 2))).status, Status::Ok);
    }
    assert_eq!(bed.run_only(Op::Flush, 0, 0, None).status, Status::Ok);
}

/// What is there is what was written after the discard.
fn check(bed: &mut Bed, what: &str) {
    let expected = |page| if KEPT.contains(&page) { 2 } else { 0 };
    for first in (0..PAGES).step_by(8) {
        let answer = bed.read(first, 8);
        assert_eq!(answer.status, Status::Ok, "{what}");
        for (page, bytes) in (first..).zip(answer.bytes.chunks(PAGE)) {
            assert!(bytes == filled(PAGE, expected(page)), "page {page} holds {}: {what}", bytes[0]);
        }
    }
}

/// Goes on until nothing moves; no step gives back more than one checkpoint frees.
fn settle(bed: &mut Bed) -> Stats {
    let mut last = bed.volume().stats();
    loop {
        bed.step();
        let now = bed.volume().stats();
        let freed = now.slots_punched - last.slots_punched;
        assert!(freed <= (MOST + 2 * LEAF_ENTRIES) as u64, "{freed} slots in one step");
        last = now;
        match bed.next_request() {
            Some(request) => bed.carry_out(request),
            None if bed.volume().wants_step() => {}
            None => return last,
        }
    }
}

#[test]
fn a_discard_of_much_frees_a_part_with_each_checkpoint() {
    let disk = full();
    let mut bed = Bed::open(&disk, config()).expect("opens");
    let before = bed.volume().stats();
    assert!(before.leaves >= 8, "{} leaves", before.leaves);
    empty(&mut bed);
    let last = settle(&mut bed);
    assert!(last.checkpoints - before.checkpoints >= 8, "{} checkpoints", last.checkpoints);
    assert!(last.slots_punched - before.slots_punched > PAGES - 200, "{} given back", last.slots_punched);
    check(&mut bed, "when all is done");
    bed.checkpoint();
    bed.kill();
    let checked = store::check(&disk).expect("readable");
    assert_eq!((checked.problem_count, checked.pages), (0, KEPT.len() as u64), "{:?}", checked.problems);
}

#[test]
fn what_was_discarded_stays_so_whenever_the_owner_dies() {
    let disk = full();
    let (mut steps, mut ended) = (0, false);
    while !ended {
        let here = disk.copy();
        let mut bed = Bed::open(&here, config()).expect("opens");
        empty(&mut bed);
        for _ in 0..steps {
            bed.step();
            match bed.next_request() {
                Some(request) => bed.carry_out(request),
                None if bed.volume().wants_step() => {}
                None => ended = true,
            }
        }
        for keep in [false, true] {
            let what = format!("died after {steps} steps, the rest kept: {keep}");
            let after = here.crash(false, |_, _| keep);
            let mut next = Bed::open(&after, config()).unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&mut next, &what);
            next.kill();
            let checked = store::check(&after).expect("readable");
            assert_eq!(checked.problem_count, 0, "{:?}: {what}", checked.problems);
        }
        bed.kill();
        steps += 5;
    }
    assert!(steps > 50, "{steps} steps");
}

#[test]
fn without_room_for_a_segment_too_a_discard_is_freed_a_part_at_a_time() {
    let disk = full();
    let mut bed = Bed::open(&disk, config()).expect("opens");
    let before = bed.volume().stats();
    empty(&mut bed);
    disk.refuse_creates(true);
    let last = settle(&mut bed);
    assert!(last.checkpoints - before.checkpoints >= 8, "{} checkpoints", last.checkpoints);
    check(&mut bed, "without room for a segment");
    bed.kill();
    disk.refuse_creates(false);
    let mut next = Bed::open(&disk.crash(false, |_, _| false), config()).expect("opens");
    check(&mut next, "as the next owner finds it");
    next.kill();
}

#[test]
fn no_checkpoint_is_begun_while_the_segment_is_made_that_it_needs() {
    let disk = full();
    let mut bed = Bed::open(&disk, config()).expect("opens");
    empty(&mut bed);
    let is_of_segment = |act: &Act| matches!(act, Act::Create { name: FileName::Log { .. }, .. });
    let mut held = Vec::new();
    let before = loop {
        bed.step();
        match bed.next_request() {
            Some(request) if is_of_segment(&request.act) => held.push(request),
            Some(request) => bed.carry_out(request),
            None if bed.volume().wants_step() => {}
            None => break bed.volume().stats(),
        }
    };
    assert!(!held.is_empty() && before.leaves > 1, "it waits, without being asked again");
    held.into_iter().for_each(|request| bed.carry_out(request));
    let last = settle(&mut bed);
    assert!(last.checkpoints > before.checkpoints && last.leaves as usize == KEPT.len(), "{last:?}");
    check(&mut bed, "when all is done");
    bed.kill();
}

#[test]
fn what_is_to_come_to_rest_waits_for_one_checkpoint_of_a_discard() {
    let disk = full();
    let mut bed = Bed::open(&disk, config()).expect("opens");
    empty(&mut bed);
    let before = bed.volume().stats();
    bed.volume().checkpoint();
    settle(&mut bed);
    let rests = bed.volume().stats();
    assert!(bed.volume().is_settled() && rests.checkpoints - before.checkpoints <= 2, "{rests:?}");
    assert!(rests.leaves > 4, "the rest of it waits: {rests:?}");
    check(&mut bed, "at rest");
    let mut next = Bed::open(&disk.crash(false, |_, _| false), config()).expect("opens");
    check(&mut next, "as the next owner finds it");
    next.kill();
    assert_eq!(bed.write(KEPT[0], &filled(PAGE, 2)), Status::Ok);
    assert_eq!(settle(&mut bed).leaves as usize, KEPT.len(), "it goes on when something is written");
    bed.kill();
}
