//! An I/O queue: every command, every error, what waits for credits and memory, and whatever a host sends.

mod nvme_common;

use block::{Lba, Op, Status};
use nvme_common::{Agreed, Conn, Reply, Rig, Sgl, Sqe, VOLUME, flush, identify, read, write};
use proptest::prelude::*;
use session::nvme_tcp::{Hosts, QueueError, SubsystemLimits, UnknownTag, Wait};

const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };
const MIB_BLOCKS: u32 = 2048;

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|i| (i ^ i >> 9) as u8 ^ seed | 1).collect()
}

fn ranges(id: u16, ranges: &[(u64, u32)], in_capsule: bool) -> (Sqe, Vec<u8>) {
    let mut payload: Vec<u8> = ranges
        .iter()
        .flat_map(|&(lba, blocks)| [&[0; 4][..], &blocks.to_le_bytes(), &lba.to_le_bytes()].concat())
        .collect();
    // Linux sends a page, however few ranges are in it.
    payload.resize(4096, 0);
    let sgl = if in_capsule { Sgl::Capsule(4096) } else { Sgl::Host(4096) };
    let command = Sqe::new(0x09, id, 1, sgl).dword(10, ranges.len() as u32 - 1).dword(11, 0b100);
    (command, payload)
}

/// Hands a command in and lets it be handed out, no more.
fn begin(rig: &mut Rig, io: &mut Conn, command: Sqe, payload: &[u8]) -> Wait {
    let capsule = io.agreed.capsule(command, payload);
    assert_eq!(io.queue.process_bytes(&capsule, &mut rig.pool, rig.now_ns), capsule.len());
    rig.step(io)
}

#[test]
fn what_was_written_is_read_of_every_length() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    for blocks in [1, 3, 8, 16, 17, 256, MIB_BLOCKS] {
        let payload = pattern(blocks as usize * 512, blocks as u8);
        for in_capsule in [true, false] {
            if in_capsule && blocks > 16 {
                continue;
            }
            assert_eq!(rig.status(&mut io, write(1, 33, blocks, in_capsule), &payload), 0);
            assert_eq!(rig.data(&mut io, read(2, 33, blocks)), payload);
        }
    }
    assert_eq!(rig.status(&mut io, read(2, 0, MIB_BLOCKS + 1), &[]), 0x002, "MDTS");
    rig.finish(vec![admin, io]);
}

#[test]
fn every_command_becomes_its_operation() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    let fua = 1 << 30;
    let zeroes = |flags: u32| Sqe::new(0x08, 5, 1, Sgl::Host(0)).range(64, 128).dword(12, 127 | flags);
    let cases = [
        (read(1, 7, 2), vec![], Op::Read),
        (write(1, 7, 2, true), vec![1; 1024], Op::Write { fua: false }),
        (write(1, 7, 2, true).dword(12, 1 | fua), vec![1; 1024], Op::Write { fua: true }),
        (flush(1), vec![], Op::Flush),
        (zeroes(0), vec![], Op::WriteZeroes { fua: false }),
        (zeroes(1 << 25 | fua), vec![], Op::WriteZeroes { fua: true }),
        (Sqe::new(0x05, 1, 1, Sgl::Capsule(1024)).range(7, 2), vec![1; 1024], Op::Compare),
    ];
    for (command, payload, op) in cases {
        assert_eq!(begin(&mut rig, &mut io, command, &payload), Wait::Nothing);
        let out = rig.sink.ios.pop().unwrap();
        assert_eq!((out.op, out.volume), (op, VOLUME));
        let (lba, blocks) = match op {
            Op::Flush => (0, 0),
            Op::WriteZeroes { .. } => (64, 128),
            _ => (7, 2),
        };
        assert_eq!((out.lba, out.blocks), (Lba(lba), blocks));
        rig.answer(&mut io, out);
        let replies = rig.run(&mut io);
        assert!(matches!(replies.last(), Some(Reply::Done { status: 0, .. })), "{op:?} {replies:?}");
    }
    assert_eq!(rig.image.flushes, 1);
    let compare = Sqe::new(0x05, 1, 1, Sgl::Host(1024)).range(7, 2);
    assert_eq!(rig.status(&mut io, compare, &[1; 1024]), 0);
    assert_eq!(rig.status(&mut io, compare, &[2; 1024]), 0x285);
    rig.finish(vec![admin, io]);
}

#[test]
fn ranges_are_discarded_one_by_one() {
    for in_capsule in [true, false] {
        let mut rig = Rig::new();
        let (admin, mut io) = rig.both(PLAIN, 0);
        assert_eq!(rig.status(&mut io, write(1, 0, 64, false), &[5; 64 * 512]), 0);
        let (command, payload) = ranges(2, &[(8, 8), (0, 0), (32, 16)], in_capsule);
        assert_eq!(rig.status(&mut io, command, &payload), 0);
        let zeroes: Vec<_> = (0..64).filter(|&block| rig.image.bytes[block * 512] == 0).collect();
        assert_eq!(zeroes, (8..16).chain(32..48).collect::<Vec<_>>());
        // Not to be deallocated: a hint.
        assert_eq!(rig.status(&mut io, command.dword(11, 0b011), if in_capsule { &payload } else { &[] }), 0);
        // What lies beyond the end is refused; what came before it was done.
        let (command, payload) = ranges(2, &[(0, 1), (rig.image.blocks() - 1, 2), (1, 1)], in_capsule);
        assert_eq!(rig.status(&mut io, command, &payload), 0x080);
        assert_eq!((rig.image.bytes[0], rig.image.bytes[512]), (0, 5));
        let (command, payload) = ranges(2, &[(u64::MAX, 2)], in_capsule);
        assert_eq!(rig.status(&mut io, command, &payload), 0x080);
        // A failure ends the rest, and is said once all that was begun is answered.
        rig.image.fault = Some((Lba(16), Status::Busy));
        let (command, payload) = ranges(2, &[(16, 1), (1, 1)], in_capsule);
        assert_eq!(rig.status(&mut io, command, &payload), 0x082);
        let (command, _) = ranges(2, &[(0, 1); 200], in_capsule);
        assert_eq!(
            rig.status(&mut io, command.dword(8, 3196), &[0; 3196][..if in_capsule { 3196 } else { 0 }]),
            0x00f
        );
        assert_eq!(io.queue.held_bytes(), 0);
        rig.finish(vec![admin, io]);
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_its_status() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    let end = rig.image.blocks();
    for (command, status) in [
        (read(1, end, 1), 0x080),
        (read(1, end - 1, 2), 0x080),
        (read(1, u64::MAX, 1), 0x080),
        (write(1, end - 1, 2, false), 0x080),
        (Sqe::new(0x08, 1, 1, Sgl::Host(0)).range(end - 1, 2), 0x080),
        (read(1, 0, 1).dword(1, 0), 0x00b),
        (read(1, 0, 1).dword(1, 2), 0x002),
        (flush(1).dword(1, u32::MAX), 0x00b),
        (write(1, 0, 1, false).dword(12, 1 << 20), 0x002),
    ] {
        let replies = rig.exchange(&mut io, &PLAIN.capsule(command, &[]));
        let [Reply::Done { status: got, do_not_retry: true, .. }] = replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(got, status);
    }
    let limits = SubsystemLimits::default();
    let mut sealed = Rig::with(Hosts::Any, limits, true, 8);
    let (sealed_admin, mut conn) = sealed.both(PLAIN, 0);
    assert_eq!(sealed.status(&mut conn, write(1, 0, 1, true), &[1; 512]), 0x020);
    let (discard, payload) = ranges(2, &[(0, 1)], true);
    assert_eq!(sealed.status(&mut conn, discard, &payload), 0x020);
    assert_eq!(sealed.data(&mut conn, read(1, 0, 1)), [0; 512]);
    sealed.finish(vec![sealed_admin, conn]);
    rig.finish(vec![admin, io]);
}

#[test]
fn the_status_of_the_volume_is_the_hosts() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    let (lba, extent, offset) = (Lba(4), block::ExtentId(9), 4096);
    let cases = [
        (Status::OutOfRange, 0x080, 0x080, true),
        (Status::NoSpace, 0x081, 0x081, true),
        (Status::ReadOnly, 0x020, 0x020, true),
        (Status::Fenced, 0x300, 0x300, false),
        (Status::MediaError { lba, extent, offset }, 0x281, 0x280, true),
        (Status::Corrupt { lba, extent, offset }, 0x281, 0x281, true),
        (Status::Broken, 0x006, 0x006, true),
        (Status::Aborted, 0x007, 0x007, false),
        (Status::Busy, 0x082, 0x082, false),
        (Status::Invalid, 0x002, 0x002, true),
    ];
    for (status, of_read, of_write, dnr) in cases {
        rig.image.fault = Some((lba, status));
        for (command, payload, wanted) in
            [(read(1, 4, 1), &[][..], of_read), (write(1, 4, 1, true), &[1; 512], of_write)]
        {
            let replies = rig.ask(&mut io, command, payload);
            let [Reply::Done { status: got, do_not_retry, .. }] = replies[..] else { panic!("{replies:?}") };
            assert_eq!((got, do_not_retry), (wanted, dnr), "{status:?}");
        }
    }
    // A read that brings less than it says is never data.
    rig.image.fault = None;
    begin(&mut rig, &mut io, read(1, 4, 1), &[]);
    let out = rig.sink.ios.pop().unwrap();
    let mut done = rig.image.execute(out, &mut rig.pool);
    done.buffer.as_mut().unwrap().set_len(256);
    let tag = done.tag;
    io.queue.complete(done, &mut rig.pool).unwrap();
    let replies = rig.run(&mut io);
    assert!(matches!(replies[..], [Reply::Done { status: 0x006, .. }]), "{replies:?}");
    let twice = block::Done { volume: VOLUME, tag, status: Status::Ok, zeroes: false, buffer: None };
    assert_eq!(io.queue.complete(twice, &mut rig.pool), Err(UnknownTag { tag }));
    rig.finish(vec![admin, io]);
}

#[test]
fn writes_wait_for_credits_in_the_hosts_memory_and_flushes_do_not_wait() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    rig.sink.credits = 0;
    assert_eq!(begin(&mut rig, &mut io, write(1, 0, MIB_BLOCKS, false), &[]), Wait::Credits);
    assert_eq!(begin(&mut rig, &mut io, read(2, 0, 8), &[]), Wait::Credits);
    assert_eq!(io.queue.held_bytes(), 0, "what waits holds nothing");
    assert_eq!(begin(&mut rig, &mut io, write(3, 0, 8, true), &[1; 4096]), Wait::Credits);
    assert_eq!(io.queue.held_bytes(), 4096, "but for what came with its command");
    assert!(rig.sink.ios.is_empty());
    assert_eq!(rig.sink.asked.last(), Some(&(Op::Write { fua: false }, Lba(0), 1 << 20)), "the first asks");
    let replies = rig.ask(&mut io, flush(4), &[]);
    assert!(matches!(replies[..], [Reply::Done { id: 4, status: 0, .. }]), "{replies:?}");
    assert_eq!(rig.data(&mut admin, identify(1, 1, 0)).len(), 4096);
    // One credit: the host is asked for the payload of the first.
    rig.sink.credits = 1;
    assert_eq!(rig.step(&mut io), Wait::Credits);
    let replies = rig.run(&mut io);
    let [Reply::Transfer { id: 1, tag, length: 0x10_0000, .. }] = replies[..] else { panic!("{replies:?}") };
    let payload = pattern(1 << 20, 9);
    let mut replies = Vec::new();
    for (i, piece) in payload.chunks(300_000).enumerate() {
        let data = PLAIN.data(1, tag, i as u32 * 300_000, piece, i == 3);
        replies.extend(rig.exchange(&mut io, &data));
    }
    assert!(matches!(replies[..], [Reply::Done { id: 1, status: 0, .. }]), "it is paid for: {replies:?}");
    rig.sink.credits = usize::MAX;
    let replies = rig.run(&mut io);
    let [Reply::Data { id: 2, ref data, .. }, Reply::Done { id: 2, .. }, Reply::Done { id: 3, .. }] =
        replies[..]
    else {
        panic!("{replies:?}")
    };
    assert_eq!(data[..], payload[..4096], "they were handed out in the order in which they came");
    rig.finish(vec![admin, io]);
}

#[test]
fn ranges_wait_for_credits_one_by_one() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    rig.sink.credits = 1;
    let (command, payload) = ranges(2, &[(0, 8), (8, 8)], true);
    assert_eq!(begin(&mut rig, &mut io, command, &payload), Wait::Credits);
    let out = rig.sink.ios.pop().unwrap();
    rig.answer(&mut io, out);
    assert_eq!(rig.run(&mut io), [], "not all of it is done");
    rig.sink.credits = 1;
    assert!(matches!(rig.run(&mut io)[..], [Reply::Done { id: 2, status: 0, .. }]));
    rig.finish(vec![admin, io]);
}

#[test]
fn memory_that_is_short_delays_and_loses_nothing() {
    let limits = SubsystemLimits::default();
    let mut rig = Rig::with(Hosts::Any, limits, false, 2);
    let (admin, mut io) = rig.both(PLAIN, 0);
    let all: Vec<_> = std::iter::from_fn(|| rig.pool.alloc(1 << 20)).collect();
    assert_eq!(begin(&mut rig, &mut io, read(1, 0, 8), &[]), Wait::Memory);
    assert_eq!(begin(&mut rig, &mut io, write(2, 0, 8, false), &[]), Wait::Memory);
    // Its payload stays in the socket.
    let capsule = PLAIN.capsule(write(3, 0, 8, true), &[7; 4096]);
    assert_eq!(io.queue.process_bytes(&capsule, &mut rig.pool, 1), 72);
    assert_eq!(rig.step(&mut io), Wait::Memory);
    all.into_iter().for_each(|buffer| rig.pool.free(buffer));
    let mut replies = rig.run(&mut io);
    replies.extend(rig.exchange(&mut io, &capsule[72..]));
    let [
        Reply::Transfer { id: 2, tag, .. },
        Reply::Data { id: 1, .. },
        Reply::Done { id: 1, .. },
        Reply::Done { id: 3, status: 0, .. },
    ] = replies[..]
    else {
        panic!("{replies:?}")
    };
    let replies = rig.exchange(&mut io, &PLAIN.data(2, tag, 0, &[8; 4096], true));
    assert!(matches!(replies[..], [Reply::Done { id: 2, status: 0, .. }]), "{replies:?}");
    rig.finish(vec![admin, io]);
}

#[test]
fn one_queue_holds_no_more_than_its_share() {
    let mut rig = Rig::with(Hosts::Any, SubsystemLimits::default(), false, 100);
    let (admin, mut io) = rig.both(PLAIN, 0);
    for id in 0..128 {
        begin(&mut rig, &mut io, write(id, 0, MIB_BLOCKS, false), &[]);
    }
    assert_eq!(io.queue.held_bytes(), 64 << 20);
    assert_eq!(rig.run(&mut io).len(), 64, "the others are not asked yet");
    // More commands than places: the rest stays in the socket.
    let capsule = PLAIN.capsule(read(200, 0, 1), &[]);
    assert!(io.queue.wants_input());
    assert_eq!(io.queue.process_bytes(&capsule.repeat(2), &mut rig.pool, 1), 72);
    assert!(!io.queue.wants_input());
    rig.finish(vec![admin, io]);
}

#[test]
fn an_identifier_that_is_in_use_is_refused_and_the_first_goes_on() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    begin(&mut rig, &mut io, read(1, 0, 1), &[]);
    let out = rig.sink.ios.pop().unwrap();
    assert_eq!(rig.status(&mut io, read(1, 0, 1), &[]), 0x003);
    rig.answer(&mut io, out);
    assert!(matches!(rig.run(&mut io)[..], [Reply::Data { id: 1, .. }, Reply::Done { status: 0, .. }]));
    assert_eq!(rig.data(&mut io, read(1, 0, 1)).len(), 512, "free again");
    rig.finish(vec![admin, io]);
}

#[test]
fn a_host_that_stalls_is_ended() {
    let second = 1_000_000_000;
    let stalled = |rig: &mut Rig, conn: &mut Conn| {
        assert_eq!(conn.queue.expire(&rig.subsystem, second), Ok(()));
        assert_eq!(conn.queue.expire(&rig.subsystem, 30 * second), Ok(()));
        conn.queue.expire(&rig.subsystem, 32 * second).is_err()
    };
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    assert!(!stalled(&mut rig, &mut io), "silence is no stall");
    let error = io.queue.expire(&rig.subsystem, 100 * second);
    assert_eq!(error, Ok(()));
    // Half a command.
    let capsule = PLAIN.capsule(read(1, 0, 1), &[]);
    io.queue.process_bytes(&capsule[..30], &mut rig.pool, 1);
    assert!(stalled(&mut rig, &mut io));
    io.queue.excuse(32 * second);
    assert_eq!(io.queue.expire(&rig.subsystem, 33 * second), Ok(()));
    // An answer that is not read.
    io.queue.process_bytes(&capsule[30..], &mut rig.pool, 1);
    rig.step(&mut io);
    let out = rig.sink.ios.pop().unwrap();
    rig.answer(&mut io, out);
    assert!(stalled(&mut rig, &mut io));
    assert_eq!(rig.run(&mut io).len(), 2);
    // Payload that does not come.
    begin(&mut rig, &mut io, write(1, 0, 8, false), &[]);
    assert_eq!(rig.run(&mut io).len(), 1);
    assert!(stalled(&mut rig, &mut io));
    let error = io.queue.expire(&rig.subsystem, 40 * second);
    assert!(matches!(error, Err(QueueError::Stalled { .. })), "{error:?}");
    rig.finish(vec![admin, io]);
}

#[test]
fn a_session_that_is_given_up_takes_its_answers() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    begin(&mut rig, &mut io, read(1, 0, 8), &[]);
    begin(&mut rig, &mut io, write(2, 0, 8, true), &[1; 4096]);
    begin(&mut rig, &mut io, write(3, 0, 8, false), &[]);
    rig.sink.credits = 0;
    begin(&mut rig, &mut io, write(4, 0, 8, true), &[1; 4096]);
    assert_eq!((io.queue.outstanding(), rig.sink.ios.len()), (2, 2));
    rig.finish(vec![admin, io]);
}

#[test]
fn a_violation_lets_what_is_under_way_come_home() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    begin(&mut rig, &mut io, read(1, 0, 8), &[]);
    begin(&mut rig, &mut io, read(2, 0, 8), &[]);
    let out = rig.sink.ios.remove(0);
    rig.answer(&mut io, out);
    // Half of the first answer is sent; it is ended before the last words.
    io.piece = 100;
    assert!(rig.send(&mut io));
    io.queue.process_bytes(&nvme_common::hello(PLAIN), &mut rig.pool, 1);
    let replies = rig.run(&mut io);
    assert!(
        matches!(
            replies[..],
            [Reply::Data { id: 1, .. }, Reply::Done { id: 1, .. }, Reply::Termination { .. }]
        ),
        "{replies:?}"
    );
    rig.finish(vec![admin, io]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Commands with any field damaged, cut anywhere: the session neither panics nor keeps memory, and says
    /// nothing but whole units.
    #[test]
    fn whatever_a_host_sends_comes_to_an_end(
        digests in 0..4_u8,
        damage in prop::collection::vec((0..400_usize, any::<u8>()), 0..6),
        cut in 1..300_usize,
        on_admin in any::<bool>(),
        credits in 0..12_usize,
    ) {
        let agreed = Agreed { header_digest: digests & 1 != 0, data_digest: digests & 2 != 0, alignment: 0 };
        let mut rig = Rig::with(Hosts::Any, SubsystemLimits::default(), false, 8);
        let (mut admin, mut io) = rig.both(agreed, 0);
        let (discard, payload) = ranges(6, &[(1, 2), (3, 4)], true);
        let mut bytes = [
            agreed.capsule(read(1, 3, 4), &[]),
            agreed.capsule(write(2, 3, 1, true), &pattern(512, 3)),
            agreed.capsule(identify(3, 1, 0), &[]),
            agreed.capsule(write(4, 3, 9, false), &[]),
            agreed.data(4, 1, 0, &pattern(9 * 512, 1), true),
            agreed.capsule(discard, &payload),
            agreed.capsule(flush(5), &[]),
        ].concat();
        for (at, value) in damage {
            let at = at * bytes.len() / 400;
            bytes[at] = value;
        }
        rig.sink.credits = credits;
        let conn = if on_admin { &mut admin } else { &mut io };
        let mut at = 0;
        while at < bytes.len() {
            let end = (at + cut).min(bytes.len());
            let took = conn.queue.process_bytes(&bytes[at..end], &mut rig.pool, 1);
            let heard = rig.run(conn);
            if took == 0 && heard.is_empty() {
                prop_assert!(!conn.queue.wants_input() || rig.sink.credits == 0);
                break;
            }
            at += took;
        }
        prop_assert!(conn.queue.held_bytes() <= 64 << 20);
        rig.finish(vec![admin, io]);
    }
}
