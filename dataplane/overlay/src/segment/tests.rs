//! Segmentation against its promises; byte equality with the kernel is tests/tests/gso.

use super::sample::{PSH as PUSH, Sample, assert_checksums, pattern, pool};
use super::*;
use proptest::prelude::*;

fn cut(pool: &mut Pool, frame: &Frame) -> Result<Vec<Frame>, SegmentError> {
    let mut pieces = Vec::new();
    let count = segment(pool, frame, &mut |_, piece| pieces.push(piece))?;
    assert_eq!(count, pieces.len());
    Ok(pieces)
}

fn free(pool: &mut Pool, frames: Vec<Frame>) {
    frames.into_iter().for_each(|frame| pool.free(frame));
}

fn samples() -> impl Strategy<Value = (Sample, u16)> {
    let shape = (any::<bool>(), any::<bool>(), prop::option::of(0u16..4095), 0usize..4, 0usize..11);
    let values = (any::<u8>(), any::<u32>(), any::<u16>(), any::<u64>());
    (shape, values, 0usize..40_000, 250u16..3000).prop_map(|(shape, values, len, gso_bytes)| {
        let (ipv6, udp, vlan, ip_options, tcp_options) = shape;
        let (flags, seq, id, seed) = values;
        let tcp_options = vec![1; 4 * tcp_options];
        let payload = pattern(len, seed);
        let sample =
            Sample { ipv6, udp, vlan, ip_options, tcp_options, flags, seq, id, payload, ..Sample::default() };
        (sample, gso_bytes)
    })
}

proptest! {
    #[test]
    fn pieces_reassemble_to_the_payload((sample, gso_bytes) in samples()) {
        let mut pool = pool(256, 64);
        let frame = sample.super_segment(&mut pool, gso_bytes);
        let longest = piece_bytes_max(pool.meta(&frame));
        let pieces = cut(&mut pool, &frame).expect("cuts");
        let (mut payload, mut cost) = (Vec::<u8>::new(), 0);
        for (index, piece) in pieces.iter().enumerate() {
            let (meta, bytes) = (pool.meta(piece), pool.bytes(piece));
            assert_checksums(bytes);
            prop_assert!(bytes.len() <= longest);
            prop_assert!(bytes.len() == longest || index + 1 == pieces.len());
            prop_assert!(meta.flags.has(Flags::CSUM_VALID) && !meta.flags.has(Flags::CSUM_PARTIAL));
            prop_assert!(!pool.is_jumbo(piece) && meta.gso == GsoKind::None);
            prop_assert_eq!(meta.flow_hash, pool.meta(&frame).flow_hash);
            let parsed = wire::parse(bytes).expect("parses");
            prop_assert_eq!((meta.l3, meta.l4, meta.payload), (parsed.l3, parsed.l4, parsed.payload));
            prop_assert_eq!(parsed.l3_end as usize, bytes.len());
            if !sample.udp {
                let flags = bytes[usize::from(meta.l4) + TCP_FLAGS];
                let last = index + 1 == pieces.len();
                prop_assert_eq!(flags & (FIN | PUSH), if last { sample.flags & (FIN | PUSH) } else { 0 });
                prop_assert_eq!(flags & CWR, if index == 0 { sample.flags & CWR } else { 0 });
                prop_assert_eq!(flags | FIN | PUSH | CWR, sample.flags | FIN | PUSH | CWR);
            }
            payload.extend(&bytes[meta.payload.into()..]);
            cost += meta.cost_bytes as usize;
        }
        prop_assert_eq!(&payload, &sample.payload);
        prop_assert_eq!(cost, sample.payload.len());
        pool.free(frame);
        free(&mut pool, pieces);
    }

    #[test]
    fn nothing_in_metadata_or_bytes_panics(
        (sample, gso_bytes) in samples(),
        offsets in any::<[u16; 6]>(), which in 0u8..64, at in any::<prop::sample::Index>(), value: u8, partial: bool,
    ) {
        let mut pool = pool(256, 64);
        let mut frame = sample.super_segment(&mut pool, gso_bytes);
        let meta = pool.meta_mut(&mut frame);
        let fields = [&mut meta.l3, &mut meta.l4, &mut meta.payload, &mut meta.gso_bytes, &mut meta.csum_start, &mut meta.csum_offset];
        for (index, (field, value)) in fields.into_iter().zip(offsets).enumerate() {
            if which & 1 << index != 0 {
                *field = value % 300;
            }
        }
        if !partial {
            meta.flags.clear(Flags::CSUM_PARTIAL);
        }
        let head = at.index(pool.bytes(&frame).len().min(90));
        pool.bytes_mut(&mut frame)[head] = value;
        let before = pool.available();
        match cut(&mut pool, &frame) {
            Ok(pieces) => free(&mut pool, pieces),
            Err(_) => prop_assert_eq!(pool.available(), before),
        }
        pool.free(frame);
    }
}

fn error_of(len: usize, gso_bytes: u16, change: impl FnOnce(&mut Meta)) -> SegmentError {
    let mut pool = pool(64, 64);
    let sample = Sample { payload: pattern(len, 1), ..Sample::default() };
    let mut frame = sample.super_segment(&mut pool, gso_bytes);
    change(pool.meta_mut(&mut frame));
    let error = cut(&mut pool, &frame).expect_err("must not cut");
    pool.free(frame);
    error
}

#[test]
fn each_error_is_reached_and_has_its_reason() {
    let not_super = error_of(9000, 1400, |meta| meta.gso = GsoKind::None);
    assert_eq!((not_super, not_super.reason()), (SegmentError::NotSuper, DropReason::Malformed));

    let lies: [fn(&mut Meta); 9] = [
        |meta| meta.gso_bytes = 0,
        |meta| meta.gso = GsoKind::TcpV6,
        |meta| meta.gso = GsoKind::UdpL4,
        |meta| meta.l3 = 35,
        |meta| meta.l4 = 38,
        |meta| meta.payload = 50,
        |meta| meta.payload = 9000,
        |meta| meta.csum_start = 33,
        |meta| meta.flags.set(Flags::FRAGMENT),
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let error = error_of(9000, 1400, lie);
        assert!(matches!(error, SegmentError::Malformed { .. }), "{index}: {error}");
        assert_eq!(error.reason(), DropReason::Malformed);
    }

    let many = error_of(2561, 10, |_| ());
    assert_eq!(many, SegmentError::TooManyPieces { pieces: 257, gso_bytes: 10 });
    assert_eq!(many.reason(), DropReason::Malformed);

    let long = error_of(9000, 4000, |_| ());
    assert_eq!(long, SegmentError::PieceTooLong { bytes: 4054 });
    assert_eq!(long.reason(), DropReason::TooBig);
}

#[test]
fn a_dry_pool_gives_nothing_and_leaks_nothing() {
    let mut pool = pool(8, 64);
    let sample = Sample { payload: pattern(20_000, 3), ..Sample::default() };
    let frame = sample.super_segment(&mut pool, 1000);
    let leaked = frame::leaked();
    let error = cut(&mut pool, &frame).expect_err("8 frames are not 20");
    assert_eq!((error, error.reason()), (SegmentError::NoFrame { pieces: 20 }, DropReason::NoFrame));
    assert_eq!((pool.available(), frame::leaked()), (8, leaked));
    pool.free(frame);
}

#[test]
fn without_a_partial_checksum_the_pseudo_header_is_summed_here() {
    let mut pool = pool(64, 64);
    for ipv6 in [false, true] {
        let sample = Sample { ipv6, payload: pattern(5000, 5), ..Sample::default() };
        let mut frame = sample.super_segment(&mut pool, 1448);
        pool.meta_mut(&mut frame).flags.clear(Flags::CSUM_PARTIAL);
        let pieces = cut(&mut pool, &frame).expect("cuts");
        pieces.iter().for_each(|piece| assert_checksums(pool.bytes(piece)));
        free(&mut pool, pieces);
        pool.free(frame);
    }
}
