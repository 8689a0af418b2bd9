//! Decision D9, enumerated: every workload of up to three operations, cut after every request to the medium, with what
//! was not synced dropped, kept, torn and reordered.
//!
//! After each crash the next owner must find what was flushed, and each later write wholly or not at all.

use block::{BlockSize, Op, Status};

use super::{Answer, Bed, disk, filled, small};
use crate::crash::CrashDisk;
use crate::{Config, store};

const PAGE: usize = 4096;
/// Blocks of 512 bytes in the part of the volume that the workloads touch: 4 pages.
const BLOCKS: u32 = 32;

/// Room to read them into.
const ROOM: [u8; BLOCKS as usize * 512] = [0xee; BLOCKS as usize * 512];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Whole pages 0 and 1.
    Front,
    /// Whole pages 1 and 2.
    Middle,
    /// From the middle of page 0 to the middle of page 2.
    Across,
    /// Whole page 1, through to the medium.
    Through,
    /// From the middle of page 0 to the end of page 1, as zeros.
    Trim,
    Flush,
    Checkpoint,
}

const STEPS: [Step; 7] =
    [Step::Front, Step::Middle, Step::Across, Step::Through, Step::Trim, Step::Flush, Step::Checkpoint];

impl Step {
    /// Blocks that it changes.
    fn range(self) -> Option<(u64, u32)> {
        match self {
            Step::Front => Some((0, 16)),
            Step::Middle => Some((8, 16)),
            Step::Across => Some((4, 16)),
            Step::Through => Some((8, 8)),
            Step::Trim => Some((4, 12)),
            Step::Flush | Step::Checkpoint => None,
        }
    }

    fn value(self, number: usize) -> u8 {
        if self == Step::Trim { 0 } else { number as u8 + 1 }
    }

    /// What the blocks hold after it, block by block.
    fn apply(self, number: usize, blocks: &mut [u8]) {
        if let Some((first, count)) = self.range() {
            blocks[first as usize..][..count as usize].fill(self.value(number));
        }
    }

    fn submit(self, number: usize, bed: &mut Bed) -> Option<u64> {
        let (lba, blocks) = self.range().unwrap_or_default();
        let bytes = filled(blocks as usize * 512, self.value(number));
        match self {
            Step::Flush => Some(bed.submit(Op::Flush, 0, 0, None)),
            Step::Trim => Some(bed.submit(Op::Discard, lba, blocks, None)),
            Step::Checkpoint => {
                bed.volume().checkpoint();
                None
            }
            Step::Through => Some(bed.submit(Op::Write { fua: true }, lba, blocks, Some(&bytes))),
            _ => Some(bed.submit(Op::Write { fua: false }, lba, blocks, Some(&bytes))),
        }
    }
}

/// A disk whose volume holds values of 100 and above: some in leaves, some in the log.
fn base() -> (CrashDisk, Vec<u8>) {
    let disk = disk(1 << 20, BlockSize::B512);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(0, &filled(2 * PAGE, 100)), Status::Ok);
    bed.checkpoint();
    assert_eq!(bed.write(8, &filled(2 * PAGE, 101)), Status::Ok);
    assert_eq!(bed.flush(), Status::Ok);
    bed.kill();
    let disk = disk.crash(false, |_, _| false);
    let blocks = [[100; 8].as_slice(), &[101; 16], &[0; 8]].concat();
    (disk, blocks)
}

/// Which states a crash may leave: every subset of the steps, in order, with those that must be there.
struct Expected<'a> {
    base: &'a [u8],
    steps: &'a [Step],
    submitted: usize,
    required: u32,
}

impl Expected<'_> {
    fn allows(&self, found: &[u8]) -> bool {
        (0..1_u32 << self.submitted).any(|subset| {
            if subset & self.required != self.required {
                return false;
            }
            let mut blocks = self.base.to_vec();
            for (number, step) in self.steps[..self.submitted].iter().enumerate() {
                if subset & 1 << number != 0 {
                    step.apply(number, &mut blocks);
                }
            }
            blocks == found
        })
    }
}

/// The first byte of each block, after checking that all bytes of a block are the same.
fn blocks_of(answer: &Answer, what: &dyn Fn() -> String) -> Vec<u8> {
    assert_eq!(answer.status, Status::Ok, "{}", what());
    let of = |block: &[u8]| {
        assert!(block.iter().all(|&byte| byte == block[0]), "a torn block: {}", what());
        block[0]
    };
    answer.bytes.chunks(512).map(of).collect()
}

/// Ways to lose what was not synced: each says what of (write, sector) is kept, and whether older writes land later.
fn losses(writes: &[usize]) -> Vec<(bool, Vec<Vec<bool>>)> {
    let all: Vec<Vec<bool>> = writes.iter().map(|&sectors| vec![true; sectors]).collect();
    let none: Vec<Vec<bool>> = writes.iter().map(|&sectors| vec![false; sectors]).collect();
    let mut out = vec![(false, all.clone())];
    if writes.is_empty() {
        return out;
    }
    out.push((false, none.clone()));
    out.push((true, all.clone()));
    for (number, &sectors) in writes.iter().enumerate() {
        let change = |from: &Vec<Vec<bool>>, kept: Vec<bool>| {
            let mut changed = from.clone();
            changed[number] = kept;
            (false, changed)
        };
        let torn = |odd: bool| (0..sectors).map(|sector| (sector >= sectors.div_ceil(2)) == odd).collect();
        out.push(change(&all, vec![false; sectors]));
        out.push(change(&all, torn(false)));
        out.push(change(&all, torn(true)));
        out.push(change(&none, vec![true; sectors]));
    }
    out
}

/// Crashes a copy of the disk in every way, and looks at what the next owner finds. Returns how many ways.
fn crash_here(disk: &CrashDisk, expected: &Expected, pool: &mut Option<frame::IoPool>) -> usize {
    let writes: Vec<usize> = disk.unsynced().iter().map(|write| write.sectors).collect();
    let losses = losses(&writes);
    let count = losses.len();
    for (reversed, keep) in losses {
        let after = disk.crash(reversed, |write, sector| keep[write][sector]);
        let what = || {
            let mut text = Vec::new();
            let dumped = store::dump(&after, &mut text);
            let unsynced = disk.unsynced();
            format!(
                "{:?}, {} submitted, required {:#b}, reversed {reversed}, kept {keep:?} of {unsynced:?}\n{dumped:?}\n{}",
                expected.steps,
                expected.submitted,
                expected.required,
                String::from_utf8_lossy(&text)
            )
        };
        let opened = Bed::with_pool(&after, small(), pool.take().unwrap_or_else(super::pool));
        let mut bed = opened.unwrap_or_else(|error| panic!("{error}: {}", what()));
        let answer = bed.run_only(Op::Read, 0, BLOCKS, Some(&ROOM));
        let found = blocks_of(&answer, &what);
        assert!(expected.allows(&found), "found {found:?}: {}", what());
        *pool = Some(bed.kill());
    }
    count
}

/// Runs steps one after another (or all at once), and crashes after every request. Returns how many crashes.
fn run(
    steps: &[Step],
    at_once: bool,
    base: &(CrashDisk, Vec<u8>),
    pool: &mut Option<frame::IoPool>,
) -> usize {
    let disk = base.0.copy();
    let mut bed = Bed::with_pool(&disk, small(), pool.take().unwrap_or_else(super::pool)).expect("opens");
    bed.settle();
    let mut spare = None;
    let mut expected = Expected { base: &base.1, steps, submitted: 0, required: 0 };
    // Steps that are answered, and, for each flush, those that were when it was submitted.
    let (mut answered, mut covers, mut tags) = (0_u32, vec![0_u32; steps.len()], vec![None; steps.len()]);
    let mut crashes = 0;
    loop {
        while expected.submitted < steps.len() && (at_once || bed.volume().is_idle()) {
            let number = expected.submitted;
            covers[number] = match steps[number] {
                Step::Flush => answered,
                Step::Through => 1 << number,
                _ => 0,
            };
            expected.submitted += 1;
            tags[number] = steps[number].submit(number, &mut bed);
            if tags[number].is_none() {
                bed.step();
                break;
            }
        }
        bed.step();
        let Some(request) = bed.next_request() else {
            bed.step();
            if bed.volume().is_idle() && expected.submitted == steps.len() {
                break;
            }
            continue;
        };
        bed.carry_out(request);
        for answer in bed.answers() {
            assert_eq!(answer.status, Status::Ok);
            let number = tags.iter().position(|tag| *tag == Some(answer.tag)).expect("submitted");
            answered |= 1 << number;
            expected.required |= covers[number];
        }
        crashes += crash_here(&disk, &expected, &mut spare);
    }
    *pool = Some(bed.kill());
    crashes
}

/// All workloads of up to `length` steps.
fn workloads(length: usize) -> Vec<Vec<Step>> {
    let mut all: Vec<Vec<Step>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..length {
        let until = all.len();
        for at in from..until {
            for step in STEPS {
                let longer = [all[at].as_slice(), &[step]].concat();
                all.push(longer);
            }
        }
        from = until;
    }
    all.split_off(1)
}

fn enumerate(at_once: bool) {
    let (base, mut pool, mut crashes) = (base(), None, 0);
    for steps in workloads(3) {
        crashes += run(&steps, at_once, &base, &mut pool);
    }
    println!("{crashes} crashes");
    assert!(crashes > 10_000, "{crashes}");
}

#[test]
fn every_crash_of_three_operations_in_turn_leaves_what_was_flushed() {
    enumerate(false);
}

#[test]
fn every_crash_of_three_operations_at_once_leaves_what_was_flushed() {
    enumerate(true);
}

#[test]
fn a_crash_while_opening_changes_nothing() {
    let (base, blocks) = base();
    for calls in 0.. {
        let disk = base.copy();
        disk.stop_after(calls);
        let opened = Bed::open(&disk, Config { ..small() });
        disk.stop_after(u32::MAX);
        let done = opened.is_ok();
        opened.into_iter().for_each(|bed| drop(bed.kill()));
        for kept in [false, true] {
            let mut bed = Bed::new(&disk.crash(false, |_, _| kept));
            let found = blocks_of(&bed.read(0, BLOCKS), &|| format!("after {calls} calls"));
            assert_eq!(found, blocks, "after {calls} calls");
            bed.kill();
        }
        if done {
            assert!(calls > 10, "{calls}");
            return;
        }
    }
}
