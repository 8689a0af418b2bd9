//! Discards of more than one checkpoint frees: a part at a time, with nothing forgotten in between.

use block::{BlockSize, Op, Status};

use super::{Bed, disk, filled, small};
use crate::crash::CrashDisk;
use crate::format::LEAF_ENTRIES;
use crate::{Config, store};

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

#[test]
fn a_discard_of_much_frees_a_part_with_each_checkpoint() {
    let disk = full();
    let mut bed = Bed::open(&disk, config()).expect("opens");
    let before = bed.volume().stats();
    assert!(before.leaves >= 8, "{} leaves", before.leaves);
    empty(&mut bed);
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
            None => break,
        }
    }
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
