//! Decision D9 under load: many requests at once, the medium answering in any order, little room so that pages are used
//! again at once, a crash at any moment that keeps any of what was not synced, and the next owner going on from there.
//!
//! Each block holds the number of the request that wrote it. After a crash a block must hold what was flushed or
//! something later, and a request that is seen in one of its blocks must be seen, or be replaced, in all.

use block::{BlockSize, Fault, Op, Status};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Bed, disk, small};
use crate::crash::CrashDisk;
use crate::{Config, store};

const BLOCKS: u32 = 128;

/// A request that changed blocks.
struct Change {
    first: u32,
    end: u32,
    zero: bool,
}

/// What the blocks were at the last crash, and what was asked since.
struct History {
    base: Vec<u16>,
    /// Numbered from 1.
    changes: Vec<Change>,
    /// Per block, the newest change that must be there.
    required: Vec<usize>,
}

impl History {
    fn covers(&self, number: usize, block: u32) -> bool {
        let change = &self.changes[number - 1];
        (change.first..change.end).contains(&block)
    }

    /// Every change up to `number` that is in `done` must be there from now on.
    fn require(&mut self, done: &[usize]) {
        for &number in done {
            let (first, end) = (self.changes[number - 1].first, self.changes[number - 1].end);
            for block in first..end {
                let required = &mut self.required[block as usize];
                *required = (*required).max(number);
            }
        }
    }

    /// Which change each block shows, 0 for what was there at the beginning. A block of zeros may show any trim.
    fn check(&self, found: &[u16], id: impl Fn(usize) -> u16) -> Result<(), String> {
        // The earliest change that each block can show: the strictest reading that must hold for atomicity.
        let shows = |block: u32| -> Vec<usize> {
            let value = found[block as usize];
            let fits = |number: &usize| {
                self.covers(*number, block)
                    && (if self.changes[*number - 1].zero { value == 0 } else { value == id(*number) })
            };
            let base = (value == self.base[block as usize]).then_some(0);
            base.into_iter().chain((1..=self.changes.len()).filter(fits)).collect()
        };
        for block in 0..BLOCKS {
            let newest = shows(block).last().copied();
            let Some(newest) = newest else {
                return Err(format!("block {block} holds {}", found[block as usize]));
            };
            if newest < self.required[block as usize] {
                let required = self.required[block as usize];
                return Err(format!("block {block} shows change {newest}, {required} was flushed"));
            }
            // A write is told by its number alone; it must be seen, or be replaced, in all its blocks.
            if newest > 0 && !self.changes[newest - 1].zero {
                let change = &self.changes[newest - 1];
                for other in change.first..change.end {
                    let seen = shows(other).last().copied().unwrap_or(0);
                    if seen < newest {
                        return Err(format!(
                            "change {newest} is in block {block}, but block {other} shows {seen}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

fn octets(id: u16, blocks: u32) -> Vec<u8> {
    id.to_le_bytes().repeat(256 * blocks as usize)
}

fn tight() -> Config {
    Config {
        in_flight_max: 8,
        free_threshold_bytes: 4096,
        reserve_bytes: 8 * 4096,
        expand_bytes: 32 << 10,
        reuse_pages_max: 100,
        delta_entries_max: 24,
        leaf_cache_leaves: 2,
        ..small()
    }
}

/// The blocks as the next owner sees them.
fn contents(bed: &mut Bed, what: &str) -> Vec<u16> {
    let answer = bed.read(0, BLOCKS);
    assert_eq!(answer.status, Status::Ok, "{what}");
    let of = |block: &[u8]| {
        let id = u16::from_le_bytes([block[0], block[1]]);
        assert!(block.chunks(2).all(|pair| pair == id.to_le_bytes()), "a torn block: {what}");
        id
    };
    answer.bytes.chunks(512).map(of).collect()
}

/// One owner's life, to a crash. Returns the disk as the crash leaves it.
fn live(
    disk: &CrashDisk,
    rng: &mut ChaCha8Rng,
    next_id: &mut u16,
    base: Vec<u16>,
) -> (CrashDisk, History, u16) {
    let first_id = *next_id;
    let mut bed = Bed::open(disk, tight()).expect("opens");
    let mut history = History { base, changes: Vec::new(), required: vec![0; BLOCKS as usize] };
    let (mut held, mut answered, mut flushes, mut tags) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let life = rng.random_range(1..600);
    for turn in 0..life {
        bed.now_ns += 200_000_000;
        if bed.volume().room() > 2 && rng.random_range(0..3) > 0 {
            let first = rng.random_range(0..BLOCKS);
            let blocks = rng.random_range(1..=(BLOCKS - first).min(40));
            let zero = rng.random_range(0..6) == 0;
            match rng.random_range(0..12) {
                0 => {
                    let covered: Vec<usize> = answered.clone();
                    flushes.push((bed.submit(Op::Flush, 0, 0, None), covered));
                }
                1 => bed.volume().checkpoint(),
                pick => {
                    history.changes.push(Change { first, end: first + blocks, zero });
                    let number = history.changes.len();
                    let fua = pick == 2;
                    let tag = if zero {
                        let op = Op::WriteZeroes { fua };
                        bed.submit(op, u64::from(first), blocks, None)
                    } else {
                        let bytes = octets(*next_id, blocks);
                        bed.submit(Op::Write { fua }, u64::from(first), blocks, Some(&bytes))
                    };
                    *next_id += 1;
                    tags.push((tag, number, fua));
                }
            }
        }
        bed.step();
        while let Some(request) = bed.next_request() {
            held.push(request);
        }
        for _ in 0..rng.random_range(0..6) {
            if !held.is_empty() {
                let request = held.swap_remove(rng.random_range(0..held.len()));
                bed.carry_out(request);
            }
        }
        for answer in bed.answers() {
            if let Some(at) = flushes.iter().position(|(tag, _)| *tag == answer.tag) {
                assert_eq!(answer.status, Status::Ok, "a flush in turn {turn}");
                history.require(&flushes.swap_remove(at).1);
            } else if let Some(&(_, number, fua)) = tags.iter().find(|(tag, _, _)| *tag == answer.tag) {
                assert_eq!(answer.status, Status::Ok, "change {number} in turn {turn}");
                answered.push(number);
                if fua {
                    history.require(&[number]);
                }
            }
        }
    }
    let kept = rng.random_range(0..=100_u32);
    let after = disk.crash(rng.random_range(0..4) == 0, |_, _| rng.random_range(0..100) < kept);
    for request in held {
        request.buffer.into_iter().for_each(|buffer| bed.pool.free(buffer));
    }
    bed.kill();
    (after, history, first_id)
}

fn storm(seed: u64) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut disk = disk(1 << 20, BlockSize::B512);
    let (mut base, mut next_id, mut checkpoints) = (vec![0; BLOCKS as usize], 1, 0);
    for life in 0..4 {
        let (after, history, first_id) = live(&disk, &mut rng, &mut next_id, base);
        let what = format!("seed {seed}, life {life}");
        let mut bed = Bed::open(&after, tight()).unwrap_or_else(|error| panic!("{what}: {error}"));
        checkpoints += bed.recovery.batches_cut;
        let found = contents(&mut bed, &what);
        history
            .check(&found, |number| first_id + number as u16 - 1)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        bed.kill();
        assert_eq!(store::check(&after).expect("readable").problems, [], "{what}");
        (disk, base) = (after, found);
    }
    checkpoints
}

#[test]
fn storms_and_crashes_lose_nothing_that_was_flushed_and_tear_nothing() {
    let seeds = if std::env::var_os("TIDEGATE_FULL").is_some() { 5000 } else { 150 };
    let cut: u64 = (0..seeds).map(storm).sum();
    assert!(cut > 0, "some crash left batches that do not count");
}

#[test]
fn a_volume_whose_every_sync_fails_acknowledges_no_flush() {
    let disk = disk(1 << 20, BlockSize::B512);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(0, &octets(1, 8)), Status::Ok);
    disk.fail_next(u32::MAX, Fault::Io(5));
    assert_eq!(bed.flush(), Status::Broken);
    bed.kill();
}
