//! What a volume does when nothing goes wrong.

use block::{BlockSize, Epoch, Extent, Op, Status};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Bed, disk, filled};
use crate::store;

const PAGE: usize = 4096;

#[test]
fn what_is_written_is_read_and_the_rest_is_zeros() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(3, &filled(2 * PAGE, 7)), Status::Ok);
    let answer = bed.read(2, 4);
    assert_eq!(answer.status, Status::Ok);
    let expected = [filled(PAGE, 0), filled(2 * PAGE, 7), filled(PAGE, 0)].concat();
    assert!(answer.bytes == expected && !answer.zeroes);
    let empty = bed.read(100, 8);
    assert!(empty.zeroes && empty.bytes == filled(8 * PAGE, 0));
    bed.kill();
}

#[test]
fn what_was_flushed_is_there_for_the_next_owner() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(3, &filled(PAGE, 7)), Status::Ok);
    assert_eq!(bed.flush(), Status::Ok);
    bed.kill();
    let after = disk.crash(false, |_, _| false);
    let mut bed = Bed::new(&after);
    assert_eq!(bed.recovery.epoch, Epoch(3));
    assert_eq!(bed.read(3, 1).bytes, filled(PAGE, 7));
    bed.kill();
}

#[test]
fn a_checkpoint_moves_the_log_into_leaves() {
    let disk = disk(4 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    for page in 0..100 {
        assert_eq!(bed.write(page * 3, &filled(PAGE, page as u8 + 1)), Status::Ok);
    }
    bed.checkpoint();
    assert_eq!((bed.volume().stats().delta_entries, bed.volume().stats().leaves), (0, 1));
    for page in 0..100 {
        assert_eq!(bed.read(page * 3, 1).bytes, filled(PAGE, page as u8 + 1));
        assert!(bed.read(page * 3 + 1, 1).zeroes);
    }
    bed.kill();
    let checked = store::check(&disk).expect("readable");
    assert_eq!((checked.problem_count, checked.pages, checked.leaves), (0, 100, 1), "{:?}", checked.problems);
    let mut bed = Bed::new(&disk.crash(false, |_, _| false));
    for page in 0..100 {
        assert_eq!(bed.read(page * 3, 1).bytes, filled(PAGE, page as u8 + 1));
    }
    bed.kill();
}

#[test]
fn parts_of_pages_are_read_modified_and_written() {
    let disk = disk(1 << 20, BlockSize::B512);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(0, &filled(4 * PAGE, 1)), Status::Ok);
    // Blocks 5 to 21: parts of pages 0 and 2, all of page 1.
    assert_eq!(bed.write(5, &filled(17 * 512, 2)), Status::Ok);
    let expected = [filled(5 * 512, 1), filled(17 * 512, 2), filled(10 * 512, 1)].concat();
    assert_eq!(bed.read(0, 32).bytes, expected);
    assert_eq!(bed.read(4, 3).bytes, [filled(512, 1), filled(1024, 2)].concat());
    // Into a page that was never written.
    assert_eq!(bed.write(1000, &filled(512, 9)), Status::Ok);
    assert_eq!(bed.read(999, 3).bytes, [filled(512, 0), filled(512, 9), filled(512, 0)].concat());
    assert_eq!(bed.run(Op::Discard, 6, 20, None).status, Status::Ok);
    let expected = [filled(5 * 512, 1), filled(512, 2), filled(20 * 512, 0), filled(6 * 512, 1)].concat();
    assert_eq!(bed.read(0, 32).bytes, expected);
    bed.kill();
}

#[test]
fn compare_names_the_first_difference() {
    let disk = disk(1 << 20, BlockSize::B512);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(3, &filled(8192, 5)), Status::Ok);
    assert_eq!(bed.run(Op::Compare, 3, 16, Some(&filled(8192, 5))).status, Status::Ok);
    let mut other = filled(8192, 5);
    other[5000] = 6;
    let answer = bed.run(Op::Compare, 3, 16, Some(&other));
    assert_eq!(answer.status, Status::CompareFailed { offset: 5000 });
    assert_eq!(answer.bytes, other, "the host's bytes come back");
    bed.kill();
}

/// Which blocks of a range have their place, as runs.
fn extents(bed: &mut Bed, lba: u64, blocks: u32, room: usize) -> Vec<(u32, bool)> {
    let answer = bed.run(Op::Extents, lba, blocks, Some(&vec![0xee; room * Extent::BYTES]));
    assert_eq!(answer.status, Status::Ok);
    let records = answer.bytes.chunks_exact(Extent::BYTES);
    let records = records.map(|octets| Extent::from_octets(octets.try_into().expect("eight bytes")));
    records.map(|extent| (extent.blocks, extent.allocated)).take_while(|(blocks, _)| *blocks > 0).collect()
}

#[test]
fn what_has_its_place_is_told_in_runs() {
    let disk = disk(1 << 30, BlockSize::B512);
    let mut bed = Bed::new(&disk);
    let all = 2 << 20;
    assert_eq!(extents(&mut bed, 0, all, 4), [(all, false)]);
    assert_eq!(bed.write(8, &filled(2 * PAGE, 1)), Status::Ok);
    assert_eq!(bed.write(80, &filled(PAGE, 1)), Status::Ok);
    let expected = [(8, false), (16, true), (56, false), (8, true), (all - 88, false)];
    for round in 0..3 {
        assert_eq!(extents(&mut bed, 0, all, 8), expected, "round {round}");
        assert_eq!(extents(&mut bed, 0, all, 2), expected[..2], "as many as fit");
        // From within a page to within a page.
        assert_eq!(extents(&mut bed, 10, 75, 8), [(14, true), (56, false), (5, true)]);
        bed.volume().checkpoint();
        bed.settle();
        bed.kill();
        bed = Bed::new(&disk);
    }
    assert_eq!(bed.run(Op::Discard, 8, 8, None).status, Status::Ok);
    let expected = [(16, false), (8, true), (56, false), (8, true), (all - 88, false)];
    assert_eq!(extents(&mut bed, 0, all, 8), expected);
    bed.kill();
}

#[test]
fn zeros_that_are_written_keep_their_place_and_other_zeros_give_it_back() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(4, &filled(4 * PAGE, 0)), Status::Ok);
    let kept = [(4, false), (4, true), (8, false)];
    for round in 0..2 {
        assert_eq!(extents(&mut bed, 0, 16, 8), kept, "round {round}");
        assert_eq!(bed.read(4, 4).bytes, filled(4 * PAGE, 0));
        bed.checkpoint();
        bed.kill();
        bed = Bed::new(&disk);
    }
    assert_eq!(bed.run(Op::WriteZeroes { fua: true }, 4, 4, None).status, Status::Ok);
    assert_eq!(extents(&mut bed, 0, 16, 8), [(16, false)]);
    bed.kill();
}

#[test]
fn a_volume_grows_while_it_serves() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(256, &filled(PAGE, 1)), Status::OutOfRange);
    assert_eq!(bed.volume().grow_to(255), Err(Status::Invalid), "smaller");
    assert_eq!(bed.volume().grow_to(u64::MAX), Err(Status::Invalid), "too large");
    assert_eq!(bed.volume().grow_to(300), Ok(()));
    assert_eq!(bed.volume().blocks(), 256, "not durable yet");
    // A crash at any moment leaves one size or the other.
    let mut sizes = Vec::new();
    loop {
        bed.step();
        let Some(request) = bed.next_request() else {
            if bed.volume().wants_step() {
                continue;
            }
            break;
        };
        bed.carry_out(request);
        let durable = bed.volume().blocks();
        let after = Bed::new(&disk.crash(false, |_, _| false));
        let found = after.volume.as_ref().map_or(0, |volume| volume.blocks());
        assert!(found == 300 || (found == 256 && durable == 256), "{found}, {durable}");
        sizes.push(found);
        after.kill();
    }
    assert_eq!((sizes.first(), sizes.last(), bed.volume().blocks()), (Some(&256), Some(&300), 300));
    assert_eq!(bed.write(299, &filled(PAGE, 1)), Status::Ok);
    assert_eq!(bed.read(299, 1).bytes, filled(PAGE, 1));
    bed.kill();
}

#[test]
fn a_checkpoint_comes_to_its_end_in_whatever_order_the_medium_answers() {
    for seed in 0..200 {
        let disk = disk(1 << 20, BlockSize::B4096);
        let mut bed = Bed::new(&disk);
        if seed % 2 == 0 {
            bed.settle();
        }
        assert_eq!(bed.write(0, &filled(PAGE, 1)), Status::Ok);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        assert_eq!(bed.volume().grow_to(300), Ok(()));
        let mut asked = Vec::new();
        loop {
            bed.step();
            while let Some(request) = bed.next_request() {
                asked.push(request);
            }
            if asked.is_empty() {
                // Its worker steps it for an answer, or when it says so, and not otherwise.
                if bed.volume().wants_step() {
                    continue;
                }
                break;
            }
            let request = asked.swap_remove(random.random_range(0..asked.len()));
            bed.carry_out(request);
        }
        assert!(bed.volume().is_settled(), "seed {seed}");
        assert_eq!(bed.volume().blocks(), 300, "seed {seed}");
        bed.kill();
    }
}
