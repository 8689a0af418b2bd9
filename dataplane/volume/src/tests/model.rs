//! Any sequence of requests against a table of blocks, with the medium answering in any order, checkpoints at any time, and
//! owners that die and crash.

use std::collections::BTreeMap;

use block::{BlockSize, Op, Status};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Bed, disk, small};
use crate::{Config, store};

/// What is asked of a volume.
#[derive(Clone, Debug)]
enum Ask {
    Write {
        lba: u64,
        blocks: u32,
        fua: bool,
    },
    Trim {
        lba: u64,
        blocks: u32,
    },
    Read {
        lba: u64,
        blocks: u32,
    },
    Flush,
    Checkpoint,
    /// The owner dies, and the next one opens; the machine crashes too, or not.
    Restart {
        crash: bool,
    },
}

/// Blocks of the part of the volume that is used: a few pages at each of three places far apart.
const BLOCKS: u64 = 96;

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let range = (0..BLOCKS, 1..40_u32).prop_map(|(lba, blocks)| (lba, blocks.min((BLOCKS - lba) as u32)));
    let ask = prop_oneof![
        8 => (range.clone(), any::<bool>()).prop_map(|((lba, blocks), fua)| Ask::Write { lba, blocks, fua }),
        3 => range.clone().prop_map(|(lba, blocks)| Ask::Trim { lba, blocks }),
        5 => range.prop_map(|(lba, blocks)| Ask::Read { lba, blocks }),
        2 => Just(Ask::Flush),
        2 => Just(Ask::Checkpoint),
        1 => any::<bool>().prop_map(|crash| Ask::Restart { crash }),
    ];
    proptest::collection::vec(ask, 1..60)
}

/// The model: what each block holds by what was answered, and what it may hold besides.
struct Model {
    size: usize,
    /// Value of each block as of the newest request that was submitted.
    newest: BTreeMap<u64, u8>,
}

impl Model {
    fn bytes(&self, lba: u64, blocks: u32) -> Vec<u8> {
        (lba..lba + u64::from(blocks))
            .flat_map(|block| vec![self.newest.get(&block).copied().unwrap_or(0); self.size])
            .collect()
    }

    fn set(&mut self, lba: u64, blocks: u32, value: u8) {
        (lba..lba + u64::from(blocks)).for_each(|block| {
            self.newest.insert(block, value);
        });
    }
}

/// Carries requests out in any order until the volume rests. Answers are checked by their tag.
fn settle(bed: &mut Bed, rng: &mut ChaCha8Rng, reads: &mut BTreeMap<u64, Vec<u8>>) {
    let mut held = Vec::new();
    loop {
        bed.step();
        while let Some(request) = bed.next_request() {
            held.push(request);
        }
        for answer in bed.answers() {
            assert_eq!(answer.status, Status::Ok);
            if let Some(expected) = reads.remove(&answer.tag) {
                assert!(answer.bytes == expected, "a read returned other bytes");
                let zero = answer.bytes.iter().all(|&byte| byte == 0);
                assert!(zero || !answer.zeroes, "said to be zeros");
            }
        }
        if held.is_empty() {
            bed.step();
            match bed.next_request() {
                Some(request) => held.push(request),
                None => return,
            }
        }
        let at = rng.random_range(0..held.len());
        let request = held.swap_remove(at);
        bed.carry_out(request);
    }
}

fn config(delta_entries_max: usize) -> Config {
    Config { delta_entries_max, reuse_pages_max: 4, leaf_cache_leaves: 2, ..small() }
}

fn run(asks: Vec<Ask>, size: BlockSize, seed: u64, delta_entries_max: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut disk = disk(1 << 20, size);
    let mut bed = Bed::open(&disk, config(delta_entries_max)).expect("opens");
    let mut model = Model { size: size.bytes() as usize, newest: BTreeMap::new() };
    let (mut reads, mut value) = (BTreeMap::new(), 0_u8);
    for ask in asks {
        if bed.volume().room() < 2 {
            settle(&mut bed, &mut rng, &mut reads);
        }
        match ask {
            Ask::Write { lba, blocks, fua } => {
                value = value.wrapping_add(1).max(1);
                let bytes = vec![value; blocks as usize * model.size];
                bed.submit(Op::Write { fua }, lba, blocks, Some(&bytes));
                model.set(lba, blocks, value);
            }
            Ask::Trim { lba, blocks } => {
                let zero = Op::WriteZeroes { fua: blocks % 2 == 0 };
                bed.submit(if lba % 2 == 0 { Op::Discard } else { zero }, lba, blocks, None);
                model.set(lba, blocks, 0);
            }
            Ask::Read { lba, blocks } => {
                let room = vec![0xee; blocks as usize * model.size];
                let tag = bed.submit(Op::Read, lba, blocks, Some(&room));
                // Requests that overlap keep their order, so a read sees exactly what was submitted before it.
                reads.insert(tag, model.bytes(lba, blocks));
            }
            Ask::Flush => {
                bed.submit(Op::Flush, 0, 0, None);
            }
            Ask::Checkpoint => bed.volume().checkpoint(),
            Ask::Restart { crash } => {
                settle(&mut bed, &mut rng, &mut reads);
                if crash {
                    assert_eq!(bed.flush(), Status::Ok);
                }
                bed.kill();
                if crash {
                    let kept = rng.random_range(0..100_u32);
                    disk = disk.crash(false, |_, _| rng.random_range(0..100) < kept);
                }
                assert_eq!(store::check(&disk).expect("readable").problem_count, 0);
                bed = Bed::open(&disk, config(delta_entries_max)).expect("opens");
            }
        }
        if rng.random_range(0..3) == 0 {
            settle(&mut bed, &mut rng, &mut reads);
        }
    }
    settle(&mut bed, &mut rng, &mut reads);
    assert!(reads.is_empty(), "every read was answered");
    let everything = bed.read(0, BLOCKS as u32);
    assert!(everything.bytes == model.bytes(0, BLOCKS as u32));
    assert!(bed.volume().is_idle());
    bed.kill();
    assert_eq!(store::check(&disk).expect("readable").problem_count, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn blocks_of_512_bytes_behave_as_a_table(asks in asks(), seed: u64, few: bool) {
        run(asks, BlockSize::B512, seed, if few { 8 } else { 1 << 20 });
    }

    #[test]
    fn blocks_of_4096_bytes_behave_as_a_table(asks in asks(), seed: u64, few: bool) {
        run(asks, BlockSize::B4096, seed, if few { 8 } else { 1 << 20 });
    }
}

#[test]
fn leaves_split_and_vanish_as_pages_come_and_go() {
    let disk = disk(1 << 40, BlockSize::B4096);
    let config =
        Config { extent_bytes: 64 << 20, expand_bytes: 1 << 20, log_segment_bytes: 1 << 20, ..small() };
    let mut bed = Bed::open(&disk, config).expect("opens");
    let page = |value: u64| (value as u8).to_le_bytes().repeat(4096);
    let far = |number: u64| (number * 2654435761) % (1 << 28);
    for round in 0..4_u64 {
        for number in round * 1000..(round + 1) * 1000 {
            assert_eq!(bed.write(far(number), &page(number)), Status::Ok);
        }
        bed.checkpoint();
    }
    assert!(bed.volume().stats().leaves >= 4, "{:?}", bed.volume().stats());
    for number in (0..4000).step_by(37) {
        assert_eq!(bed.read(far(number), 1).bytes, page(number));
    }
    assert_eq!(store::check(&disk).expect("readable").pages, 4000);
    assert_eq!(bed.run(Op::Discard, 0, u32::MAX >> 4, None).status, Status::Ok);
    bed.checkpoint();
    assert_eq!(bed.volume().stats().leaves, 0);
    assert_eq!(store::check(&disk).expect("readable").problem_count, 0);
    bed.kill();
}
