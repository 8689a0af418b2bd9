//! Coalescing against its promises, above all: cutting what was merged gives what came in.

use super::*;
use crate::segment::sample::{Sample, assert_checksums, load, pattern, pool};
use crate::segment::segment;
use proptest::prelude::*;

const CWR: u8 = 0x80;
const ECE: u8 = 0x40;
const FIN: u8 = 0x01;

fn free(pool: &mut Pool, frames: Vec<Frame>) {
    frames.into_iter().for_each(|frame| pool.free(frame));
}

/// Sends frames through a coalescer and returns what comes out, and how many were absorbed.
fn merge(pool: &mut Pool, frames: Vec<Frame>) -> (Vec<Frame>, usize) {
    let (mut coalescer, mut out) = (Coalescer::new(), Vec::new());
    let count = frames.len();
    for frame in frames {
        coalescer.process(pool, frame, &mut |_, frame| out.push(frame));
    }
    coalescer.flush(pool, &mut |_, frame| out.push(frame));
    assert_eq!(count, out.len() + coalescer.merged() as usize, "the balance of frames");
    (out, coalescer.merged() as usize)
}

fn cut(pool: &mut Pool, frame: &Frame) -> Vec<Frame> {
    let mut pieces = Vec::new();
    segment(pool, frame, &mut |_, piece| pieces.push(piece)).expect("cuts");
    pieces
}

/// A stream of segments of 1000 bytes.
fn stream(count: u32) -> Vec<Sample> {
    (0..count)
        .map(|index| Sample {
            seq: 1000 + 1000 * index,
            id: 77 + index as u16,
            payload: pattern(1000, index.into()),
            ..Sample::default()
        })
        .collect()
}

fn merged(samples: &[Sample]) -> usize {
    let mut pool = pool(64, 64);
    let frames = samples.iter().map(|sample| sample.frame(&mut pool)).collect();
    let (out, merged) = merge(&mut pool, frames);
    free(&mut pool, out);
    merged
}

/// How many frames two segments become when something about the second one is changed.
fn out_of_two(change: impl Fn(&mut Sample)) -> usize {
    let mut samples = stream(2);
    change(&mut samples[1]);
    2 - merged(&samples)
}

proptest! {
    #[test]
    fn merging_the_pieces_gives_the_super_segment(
        ipv6: bool, vlan in prop::option::of(0u16..4095), options in 0usize..11, push: bool, seq: u32,
        len in 2usize..60_000, gso_bytes in 400u16..3000, seed: u64, checked: bool,
    ) {
        prop_assume!(len > usize::from(gso_bytes));
        let mut pool = pool(256, 128);
        let flags = if push { ACK | PSH } else { ACK };
        let tcp_options = vec![1; 4 * options];
        let payload = pattern(len, seed);
        let sample = Sample { ipv6, vlan, tcp_options, flags, seq, payload, ..Sample::default() };
        let whole = sample.super_segment(&mut pool, gso_bytes);
        let mut pieces = cut(&mut pool, &whole);
        if !checked {
            pieces.iter_mut().for_each(|piece| pool.meta_mut(piece).flags.clear(Flags::CSUM_VALID));
        }
        let (out, _) = merge(&mut pool, pieces);
        prop_assert_eq!(out.len(), 1);
        prop_assert_eq!(pool.bytes(&out[0]), pool.bytes(&whole));
        let (meta, before) = (pool.meta(&out[0]), pool.meta(&whole));
        prop_assert_eq!((meta.gso, meta.gso_bytes), (before.gso, before.gso_bytes));
        prop_assert_eq!((meta.csum_start, meta.csum_offset), (before.csum_start, before.csum_offset));
        prop_assert_eq!((meta.flags, meta.cost_bytes), (before.flags, before.cost_bytes));
        free(&mut pool, out);
        pool.free(whole);
    }

    /// Segments of some flows, now and then odd in some way, in any order: what comes out, cut again, is for
    /// each flow exactly what went in.
    #[test]
    fn nothing_is_lost_reordered_or_altered(
        steps in prop::collection::vec((0u16..11, 0u8..24, 1usize..1200), 1..120), no_jumbo: bool,
    ) {
        let mut pool = pool(512, if no_jumbo { 1 } else { 64 });
        let held = if no_jumbo { pool.alloc_jumbo() } else { None };
        let mut next: [(u32, u16); 11] = std::array::from_fn(|flow| (u32::MAX - 1000 * flow as u32, flow as u16));
        let (mut frames, mut expected) = (Vec::new(), vec![Vec::new(); 11]);
        for (flow, oddity, len) in steps {
            let at = usize::from(flow);
            let (seq, id) = next[at];
            let mut sample = Sample {
                src_port: 1000 + flow, ipv6: flow % 3 == 0, dont_fragment: flow % 2 == 0,
                seq, id, payload: pattern(if len > 800 { 800 } else { len }, seq.into()), ..Sample::default()
            };
            next[at] = (seq.wrapping_add(sample.payload.len() as u32), id.wrapping_add(1));
            match oddity {
                0 => sample.flags |= PSH,
                1 => sample.flags |= FIN,
                2 => sample.flags |= ECE,
                3 => sample.window += 1,
                4 => sample.seq = sample.seq.wrapping_add(1),
                5 => sample.tos = 3,
                6 => sample.payload.clear(),
                7 => sample.tcp_options = vec![1; 4],
                8 => next[at].1 = id,
                _ => {}
            }
            let mut bytes = sample.bytes();
            if oddity == 9 {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
            expected[at].push(bytes.clone());
            frames.push(load(&mut pool, &bytes));
        }
        let (out, _) = merge(&mut pool, frames);
        let mut seen = vec![Vec::new(); 11];
        for frame in out {
            let pieces = match pool.meta(&frame).gso {
                GsoKind::None => vec![frame],
                _ => {
                    let pieces = cut(&mut pool, &frame);
                    pool.free(frame);
                    pieces
                }
            };
            for piece in &pieces {
                let bytes = pool.bytes(piece).to_vec();
                let flow = wire::parse(&bytes).expect("parses").src_port - 1000;
                seen[usize::from(flow)].push(bytes);
            }
            free(&mut pool, pieces);
        }
        for (seen, expected) in seen.iter_mut().zip(&mut expected) {
            seen.iter_mut().chain(expected).for_each(|bytes| blank_free_id(bytes));
        }
        prop_assert_eq!(seen, expected);
        held.into_iter().for_each(|frame| pool.free(frame));
    }
}

/// With DF set the identification means nothing and need not survive.
fn blank_free_id(bytes: &mut [u8]) {
    if bytes[12] == 8 && bytes[20] & DONT_FRAGMENT != 0 {
        bytes[18..20].fill(0);
        bytes[24..26].fill(0);
    }
}

#[test]
fn segments_in_sequence_merge() {
    assert_eq!(out_of_two(|_| ()), 1);
    assert_eq!(out_of_two(|second| second.flags |= PSH), 1);
    assert_eq!(out_of_two(|second| second.payload.truncate(1)), 1);
    assert_eq!(out_of_two(|second| second.id = 5), 1, "DF: the identification means nothing");
    assert_eq!(merged(&stream(30)), 29);
}

#[test]
fn what_differs_keeps_apart() {
    let differences: [fn(&mut Sample); 17] = [
        |second| second.seq += 1,
        |second| second.seq -= 1,
        |second| second.window += 1,
        |second| second.tos = 3,
        |second| second.vlan = Some(3),
        |second| second.tcp_options = vec![1; 12],
        |second| second.flags |= FIN,
        |second| second.flags |= ECE,
        |second| second.flags |= CWR,
        |second| second.flags = PSH,
        |second| second.payload.push(0),
        |second| second.payload.clear(),
        |second| second.ipv6 = true,
        |second| second.udp = true,
        |second| second.ip_options = 1,
        |second| second.src_port = 7,
        |second| second.dont_fragment = false,
    ];
    for (index, difference) in differences.into_iter().enumerate() {
        assert_eq!(out_of_two(difference), 2, "difference {index}");
    }
}

#[test]
fn timestamps_must_be_equal() {
    let mut samples = stream(3);
    for (sample, stamp) in samples.iter_mut().zip([9, 9, 10]) {
        sample.tcp_options = vec![1, 1, 8, 10, 0, 0, 0, stamp, 0, 0, 0, 1];
    }
    assert_eq!(merged(&samples), 1);
}

#[test]
fn without_df_identifications_must_count_up() {
    let mut samples = stream(3);
    samples.iter_mut().for_each(|sample| sample.dont_fragment = false);
    assert_eq!(merged(&samples), 2);
    samples[2].id += 1;
    assert_eq!(merged(&samples), 1);
}

#[test]
fn push_and_a_short_segment_end_it() {
    let mut samples = stream(4);
    samples[1].flags |= PSH;
    assert_eq!(merged(&samples), 2, "1 + 2, 3 + 4");
    let mut samples = stream(4);
    samples[0].flags |= PSH;
    assert_eq!(merged(&samples), 2, "1, 2 + 3 + 4");
    let mut samples = stream(4);
    samples[1].payload.truncate(999);
    samples[2].seq -= 1;
    samples[3].seq -= 1;
    assert_eq!(merged(&samples), 2, "1 + 2, 3 + 4");
}

#[test]
fn a_super_segment_ends_at_64_kib() {
    let mut pool = pool(128, 64);
    let frames = stream(70).iter().map(|sample| sample.frame(&mut pool)).collect();
    let (out, _) = merge(&mut pool, frames);
    let lengths: Vec<usize> = out.iter().map(|frame| pool.meta(frame).len()).collect();
    assert_eq!(lengths, [54 + 65_000, 54 + 5_000]);
    free(&mut pool, out);
}

#[test]
fn interleaved_flows_merge_up_to_the_bound() {
    for (flows, expected) in [(FLOWS_MAX, 3 * FLOWS_MAX), (FLOWS_MAX + 1, 0)] {
        let samples: Vec<Sample> = (0..4 * flows)
            .map(|index| {
                let mut sample = stream(4)[index / flows].clone();
                sample.src_port = (index % flows) as u16;
                sample
            })
            .collect();
        assert_eq!(merged(&samples), expected, "{flows} flows in turn");
    }
}

#[test]
fn a_wrong_checksum_stays_with_its_own_frame() {
    let mut pool = pool(64, 64);
    for bad in 0..4 {
        let samples = stream(4);
        let mut inputs: Vec<Vec<u8>> = samples.iter().map(Sample::bytes).collect();
        inputs[bad][200] ^= 1;
        let frames = inputs.iter().map(|bytes| load(&mut pool, bytes)).collect();
        let (out, merged) = merge(&mut pool, frames);
        assert_eq!(merged, [2, 1, 1, 2][bad]);
        let wrong = out.iter().filter(|frame| pool.bytes(frame) == inputs[bad]);
        assert_eq!(wrong.count(), 1, "the receiver must see it: {bad}");
        free(&mut pool, out);
    }
}

#[test]
fn a_wrong_ip_header_checksum_keeps_apart() {
    let mut pool = pool(64, 64);
    let samples = stream(2);
    let mut frames = vec![samples[0].frame(&mut pool), samples[1].frame(&mut pool)];
    pool.bytes_mut(&mut frames[1])[25] ^= 1;
    let (out, merged) = merge(&mut pool, frames);
    assert_eq!((out.len(), merged), (2, 0));
    free(&mut pool, out);
}

#[test]
fn padding_never_becomes_data() {
    let mut pool = pool(64, 64);
    let mut samples = stream(2);
    samples.iter_mut().for_each(|sample| sample.payload.truncate(1));
    samples[1].seq = 1001;
    let frames = samples.iter().map(|sample| {
        let mut bytes = sample.bytes();
        bytes.resize(60, 0);
        load(&mut pool, &bytes)
    });
    let frames = frames.collect();
    let (out, merged) = merge(&mut pool, frames);
    assert_eq!(merged, 0);
    free(&mut pool, out);
}

#[test]
fn ways_that_differ_keep_apart() {
    let changes: [fn(&mut Meta); 5] = [
        |meta| meta.attachment = 1,
        |meta| meta.egress_port = 1,
        |meta| meta.volume = 1,
        |meta| meta.flags.set(Flags::FRAGMENT),
        |meta| meta.flags.set(Flags::CSUM_PARTIAL),
    ];
    let mut pool = pool(64, 64);
    for change in changes {
        let mut frames: Vec<Frame> = stream(2).iter().map(|sample| sample.frame(&mut pool)).collect();
        change(pool.meta_mut(&mut frames[1]));
        let (out, merged) = merge(&mut pool, frames);
        assert_eq!(merged, 0);
        free(&mut pool, out);
    }
}

#[test]
fn flows_whose_hashes_collide_stay_apart() {
    let mut pool = pool(64, 64);
    let mut samples = stream(2);
    samples[1].src_port = 9;
    let mut frames: Vec<Frame> = samples.iter().map(|sample| sample.frame(&mut pool)).collect();
    frames.iter_mut().for_each(|frame| pool.meta_mut(frame).flow_hash = 5);
    let (out, merged) = merge(&mut pool, frames);
    assert_eq!(merged, 0);
    out.iter().for_each(|frame| assert_checksums(pool.bytes(frame)));
    free(&mut pool, out);
}

#[test]
fn a_super_segment_leaves_behind_what_is_open_of_its_flow() {
    let mut pool = pool(64, 64);
    let mut frames: Vec<Frame> = stream(2).iter().map(|sample| sample.frame(&mut pool)).collect();
    let next = Sample { seq: 3000, payload: pattern(9000, 4), ..Sample::default() };
    frames.push(next.super_segment(&mut pool, 1000));
    let (out, merged) = merge(&mut pool, frames);
    let lengths: Vec<usize> = out.iter().map(|frame| pool.meta(frame).len()).collect();
    assert_eq!((merged, lengths), (1, vec![54 + 2000, 54 + 9000]));
    free(&mut pool, out);
}
