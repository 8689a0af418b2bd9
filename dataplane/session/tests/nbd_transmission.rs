//! Sequences of requests and answers: every command, every error, order, limits, and whatever a client sends.

mod common;

use std::collections::BTreeMap;

use block::{BlockSize, ExtentId, Lba, Op, Status, Tag};
use common::{Answer, Image, Rig, request};
use proptest::prelude::*;
use session::nbd::{TransmissionError, Wait};
use wire::nbd::transmission::{AllocationFlags, Command, CommandFlags, ErrorCode, Request};
use wire::nbd::{PAYLOAD_BYTES_MAX, ParseError};

const MIB: u32 = 1 << 20;
const NONE: CommandFlags = CommandFlags::NONE;
const FUA: CommandFlags = CommandFlags::FUA;

fn read(cookie: u64, at: u64, length_bytes: u32) -> Request {
    request(Command::READ, NONE, cookie, at, length_bytes)
}

fn write(cookie: u64, at: u64, length_bytes: u32) -> Request {
    request(Command::WRITE, NONE, cookie, at, length_bytes)
}

fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|i| (i ^ i >> 8 ^ i >> 16) as u8 | 1).collect()
}

fn rig(structured: bool) -> Rig {
    Rig::new(structured, |_, _| {})
}

#[test]
fn what_was_written_is_read_in_both_reply_forms() {
    for structured in [false, true] {
        for length_bytes in [512, 4096, MIB, MIB + 512, 5 * MIB, PAYLOAD_BYTES_MAX] {
            let mut rig = rig(structured);
            let data = pattern(length_bytes);
            let done = Answer { cookie: 1, done: true, ..Answer::default() };
            assert_eq!(rig.ask(write(1, 1024, length_bytes), &data), done, "{length_bytes}");
            let answer = rig.ask(read(2, 1024, length_bytes), &[]);
            assert_eq!((answer.cookie, answer.error, answer.done), (2, ErrorCode::OK, true));
            let mut at = if structured { 1024 } else { 0 };
            for (offset, part) in &answer.data {
                assert_eq!(*offset, at);
                at += part.len() as u64;
            }
            assert!(answer.data.iter().flat_map(|(_, part)| part).eq(&data), "{length_bytes}");
            rig.finish();
        }
    }
}

#[test]
fn a_long_request_becomes_ios_of_one_mebibyte() {
    let mut rig = rig(true);
    rig.feed(&read(1, 512, 2 * MIB + 1024).octets());
    assert_eq!(rig.step(), Wait::Nothing);
    let parts: Vec<_> = rig.sink.ios.iter().map(|io| (io.op, io.lba.0, io.blocks)).collect();
    assert_eq!(parts, [(Op::Read, 1, 2048), (Op::Read, 2049, 2048), (Op::Read, 4097, 2)]);
    // The last part comes first: its chunk leaves at once, the end only with the last answer.
    let ios = std::mem::take(&mut rig.sink.ios);
    rig.image.allocated.fill(true);
    for (number, io) in ios.into_iter().rev().enumerate() {
        rig.answer(io);
        rig.send(usize::MAX);
        let answers = Answer::parse(&rig.sent, |_| 0);
        assert_eq!((answers[0].data.len(), answers[0].done), (number + 1, number == 2));
    }
    rig.finish();
}

#[test]
fn holes_are_not_sent_where_they_need_not_be() {
    let mut rig = rig(true);
    rig.ask(write(1, u64::from(MIB), 4096), &pattern(4096));
    let answer = rig.ask(read(2, 0, 3 * MIB), &[]);
    assert_eq!(answer.holes, [(0, MIB), (2 * u64::from(MIB), MIB)]);
    assert_eq!((answer.data.len(), answer.data[0].0), (1, u64::from(MIB)));
    let answer = rig.ask(read(3, 0, MIB), &[]);
    assert_eq!((answer.holes, answer.data, answer.done), (vec![(0, MIB)], vec![], true));
    rig.finish();
    let mut rig = self::rig(false);
    assert_eq!(rig.ask(read(1, 0, 4096), &[]).data, [(0, vec![0; 4096])]);
    rig.finish();
}

/// "If the area being read contains both data and a hole, the server MUST use NBD_REPLY_TYPE_OFFSET_DATA with
/// the zeroes explicitly present."
#[test]
fn an_unfragmented_read_is_one_piece() {
    let mut rig = rig(true);
    rig.ask(write(1, 0, 512), &pattern(512));
    let answer = rig.ask(request(Command::READ, CommandFlags::DF, 2, 0, MIB), &[]);
    assert_eq!((answer.data.len(), answer.data[0].1.len(), answer.holes.len()), (1, MIB as usize, 0));
    let answer = rig.ask(request(Command::READ, CommandFlags::DF, 3, 0, MIB + 512), &[]);
    assert_eq!((answer.error, answer.data.len()), (ErrorCode::OVERFLOW, 0));
    rig.finish();
}

#[test]
fn block_status_describes_what_is_allocated() {
    let mut rig = rig(true);
    rig.ask(write(1, 4096, 8192), &pattern(8192));
    let status = |flags, at, length| request(Command::BLOCK_STATUS, flags, 2, at, length);
    let hole = AllocationFlags::HOLE.with(AllocationFlags::ZERO);
    let all = [(4096, hole), (8192, AllocationFlags::NONE), (4096, hole)];
    assert_eq!(rig.ask(status(NONE, 0, 16384), &[]).extents, all);
    assert_eq!(rig.ask(status(CommandFlags::REQ_ONE, 0, 16384), &[]).extents, all[..1]);
    assert_eq!(rig.ask(status(CommandFlags::REQ_ONE, 512, 512), &[]).extents, [(512, hole)]);
    assert_eq!(rig.ask(request(Command::TRIM, FUA, 3, 4096, 4096), &[]).error, ErrorCode::OK);
    assert_eq!(rig.ask(status(NONE, 0, 8192), &[]).extents, [(8192, hole)]);
    rig.image.fault = Some((Lba(0), Status::Broken));
    let answer = rig.ask(status(NONE, 0, 8192), &[]);
    assert_eq!((answer.error, answer.extents.len()), (ErrorCode::IO, 0));
    rig.finish();
}

/// A volume that finds nothing to say is not an error: "a server MAY always safely report a status of 0".
#[test]
fn a_volume_without_extents_is_reported_as_data() {
    let mut rig = rig(true);
    rig.feed(&request(Command::BLOCK_STATUS, NONE, 1, 0, 8192).octets());
    rig.step();
    let mut io = rig.sink.ios.pop().expect("one");
    rig.pool.bytes_mut(io.buffer.as_mut().expect("room for extents")).fill(0);
    rig.session.complete(io.done(Status::Ok), &mut rig.pool).expect("it was handed out");
    rig.send(usize::MAX);
    assert_eq!(Answer::parse(&rig.sent, |_| 0)[0].extents, [(8192, AllocationFlags::NONE)]);
    rig.finish();
}

/// "Error values" and the sections of the commands: who asks wrongly is told so, and nothing else happens.
#[test]
fn every_wrong_request_is_answered_with_its_error() {
    use ErrorCode as E;
    let end = 40 << 20;
    let zero = |flags, at, length| request(Command::WRITE_ZEROES, flags, 1, at, length);
    let trim = |at, length| request(Command::TRIM, NONE, 1, at, length);
    let with = |command, flags| request(command, flags, 1, 0, 512);
    let fast = CommandFlags::FAST_ZERO;
    let wrong = [
        (read(1, end, 512), E::INVAL),
        (read(1, end - 512, 1024), E::INVAL),
        (read(1, u64::MAX - 511, 512), E::INVAL),
        (read(1, 0, 0), E::INVAL),
        (read(1, 1, 512), E::INVAL),
        (read(1, 0, 513), E::INVAL),
        (write(1, end, 512), E::NOSPC),
        (write(1, u64::MAX, 512), E::NOSPC),
        (write(1, 0, 0), E::INVAL),
        (write(1, 256, 512), E::INVAL),
        (zero(NONE, end, 512), E::NOSPC),
        (zero(NONE, 0, 100), E::INVAL),
        (zero(fast.with(CommandFlags::NO_HOLE), 0, 4096), E::NOTSUP),
        (zero(fast, 0, 512), E::NOTSUP),
        (trim(end, 512), E::INVAL),
        (trim(0, 511), E::INVAL),
        (request(Command::FLUSH, NONE, 1, 512, 0), E::INVAL),
        (request(Command::FLUSH, NONE, 1, 0, 512), E::INVAL),
        (with(Command::CACHE, NONE), E::INVAL),
        (with(Command::RESIZE, NONE), E::INVAL),
        (with(Command(99), NONE), E::INVAL),
        (with(Command::READ, CommandFlags::NO_HOLE), E::INVAL),
        (with(Command::READ, CommandFlags(1 << 15)), E::INVAL),
        (with(Command::WRITE, CommandFlags::DF), E::INVAL),
        (with(Command::TRIM, CommandFlags::REQ_ONE), E::INVAL),
        (with(Command::WRITE_ZEROES, CommandFlags::DF), E::INVAL),
        (with(Command::BLOCK_STATUS, fast), E::INVAL),
        (request(Command::BLOCK_STATUS, NONE, 1, end, 512), E::INVAL),
        (request(Command::FLUSH, fast, 1, 0, 0), E::INVAL),
    ];
    for structured in [false, true] {
        let mut rig = rig(structured);
        for (wrong, error) in wrong {
            let payload = if wrong.command == Command::WRITE { wrong.length_bytes } else { 0 };
            let answer = rig.ask(wrong, &pattern(payload));
            assert_eq!((answer.error, answer.data.len()), (error, 0), "{wrong:?}");
            assert_eq!(answer.message.is_empty(), !structured, "{wrong:?}: text where it can be sent");
        }
        let too_long = rig.ask(read(1, 0, PAYLOAD_BYTES_MAX + 512), &[]);
        assert_eq!(too_long.error, if structured { E::OVERFLOW } else { E::INVAL });
        assert!(rig.sink.asked.is_empty() && rig.image.bytes.iter().all(|&byte| byte == 0));
        assert_eq!(rig.ask(read(2, 0, 512), &[]).error, E::OK, "the session goes on");
        rig.finish();
    }
    let mut simple = rig(false);
    assert_eq!(simple.ask(with(Command::READ, CommandFlags::DF), &[]).error, E::INVAL);
    assert_eq!(simple.ask(with(Command::BLOCK_STATUS, NONE), &[]).error, E::INVAL);
    simple.finish();
}

#[test]
fn a_read_only_export_refuses_changes_and_nothing_else() {
    let mut rig = Rig::new(true, |attach, _| attach.export.read_only = true);
    for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
        let payload = if command == Command::WRITE { pattern(512) } else { vec![] };
        let answer = rig.ask(request(command, NONE, 1, 0, 512), &payload);
        assert_eq!(answer.error, ErrorCode::PERM, "{command}");
    }
    assert_eq!(rig.ask(read(2, 0, 512), &[]).error, ErrorCode::OK);
    assert_eq!(rig.ask(request(Command::FLUSH, FUA, 3, 0, 0), &[]).error, ErrorCode::OK);
    rig.finish();
}

#[test]
fn blocks_of_4_kib_are_the_unit_where_the_export_has_them() {
    let mut rig = Rig::with(Image::new(1 << 20, BlockSize::B4096), true, 4, |_, _| {});
    assert_eq!(rig.ask(write(1, 512, 4096), &pattern(4096)).error, ErrorCode::INVAL);
    assert_eq!(rig.ask(write(1, 4096, 512), &pattern(512)).error, ErrorCode::INVAL);
    assert_eq!(rig.ask(write(1, 4096, 4096), &pattern(4096)).error, ErrorCode::OK);
    assert_eq!(rig.image.bytes[4096..8192], pattern(4096));
    rig.finish();
}

#[test]
fn every_status_of_the_volume_has_its_error() {
    use ErrorCode as E;
    let (lba, extent, offset) = (Lba(3), ExtentId(1), 0);
    let statuses = [
        (Status::OutOfRange, E::INVAL, E::NOSPC),
        (Status::NoSpace, E::NOSPC, E::NOSPC),
        (Status::ReadOnly, E::PERM, E::PERM),
        (Status::Fenced, E::SHUTDOWN, E::SHUTDOWN),
        (Status::MediaError { lba, extent, offset }, E::IO, E::IO),
        (Status::Corrupt { lba, extent, offset }, E::IO, E::IO),
        (Status::Broken, E::IO, E::IO),
        (Status::CompareFailed { offset: 0 }, E::IO, E::IO),
        (Status::Aborted, E::SHUTDOWN, E::SHUTDOWN),
        (Status::Busy, E::IO, E::IO),
        (Status::Invalid, E::INVAL, E::INVAL),
    ];
    for structured in [false, true] {
        let mut rig = rig(structured);
        for (status, on_read, on_write) in statuses {
            rig.image.fault = Some((Lba(3), status));
            let answer = rig.ask(read(1, 0, 4096), &[]);
            assert_eq!((answer.error, answer.data.len()), (on_read, 0), "{status}");
            let precise = matches!(status, Status::MediaError { .. } | Status::Corrupt { .. });
            let at = structured.then_some(if precise { 3 * 512 } else { 0 });
            assert_eq!(answer.error_at, at, "{status}");
            assert_eq!(rig.ask(write(2, 0, 4096), &pattern(4096)).error, on_write, "{status}");
            // The rest of a long request fails with its part, whichever that is.
            let answer = rig.ask(write(3, 0, 3 * MIB), &pattern(3 * MIB));
            assert_eq!(answer.error, on_write, "{status}");
            rig.image.fault = Some((Lba(3000), status));
            let answer = rig.ask(read(4, 0, 3 * MIB), &[]);
            assert_eq!(answer.error, on_read, "{status}");
            assert!(structured || answer.data.is_empty(), "no payload behind an error");
        }
        rig.image.fault = Some((Lba(u64::MAX), Status::Broken));
        assert_eq!(rig.ask(request(Command::FLUSH, NONE, 5, 0, 0), &[]).error, E::IO);
        assert_eq!(rig.ask(request(Command::TRIM, FUA, 6, 0, 4096), &[]).error, E::IO, "its flush failed");
        rig.finish();
    }
}

#[test]
fn a_volume_that_loses_a_buffer_gives_an_error_not_data() {
    for structured in [false, true] {
        let mut rig = rig(structured);
        rig.feed(&read(1, 0, 512).octets());
        rig.step();
        let mut io = rig.sink.ios.pop().expect("one");
        let buffer = io.buffer.take().expect("room to read into");
        rig.pool.free(buffer);
        rig.session.complete(io.done(Status::Ok), &mut rig.pool).expect("it was handed out");
        rig.send(usize::MAX);
        assert_eq!(Answer::parse(&rig.sent, |_| 0)[0].error, ErrorCode::IO);
        rig.finish();
    }
}

#[test]
fn force_unit_access_reaches_the_volume() {
    let mut rig = rig(true);
    rig.feed(&[&request(Command::WRITE, FUA, 1, 0, 512).octets()[..], &[1; 512]].concat());
    rig.feed(&request(Command::WRITE_ZEROES, FUA, 2, 0, 512).octets());
    rig.feed(&request(Command::TRIM, FUA, 3, 0, 512).octets());
    rig.step();
    let ops: Vec<Op> = rig.sink.ios.iter().map(|io| io.op).collect();
    let zeroes = Op::WriteZeroes { fua: true };
    assert_eq!(ops, [Op::Write { fua: true }, zeroes, Op::Discard]);
    for io in std::mem::take(&mut rig.sink.ios) {
        rig.answer(io);
    }
    rig.send(usize::MAX);
    assert_eq!(Answer::parse(&rig.sent, |_| 0).len(), 2, "a trim that must last is not answered yet");
    rig.step();
    assert_eq!(rig.sink.ios[0].op, Op::Flush);
    rig.run();
    assert_eq!((Answer::parse(&rig.sent, |_| 0).len(), rig.image.flushes), (3, 1));
    rig.finish();
}

/// "`NBD_CMD_FLAG_NO_HOLE`": "the area MUST be fully provisioned". The zeroes are written, few at a time, and are no
/// hole afterwards; without the flag they are one.
#[test]
fn zeroes_that_are_to_keep_their_place_are_written_and_are_no_hole() {
    let keep = CommandFlags::NO_HOLE;
    let (at, bytes) = (MIB / 2, 5 * MIB);
    let mut rig = rig(true);
    rig.feed(&request(Command::WRITE_ZEROES, keep.with(FUA), 1, at.into(), bytes).octets());
    rig.step();
    let out: Vec<_> = rig.sink.ios.iter().map(|io| (io.op, io.lba.0 << 9, io.blocks << 9)).collect();
    let fua = Op::Write { fua: true };
    assert_eq!(out, [(fua, u64::from(at), MIB), (fua, u64::from(at + MIB), MIB)], "two at once");
    assert_eq!(rig.session.held_bytes(), 2 << 20);
    rig.run();
    assert_eq!(rig.session.held_bytes(), 0);
    rig.sent.clear();
    rig.image.bytes[..].fill(9);
    assert_eq!(rig.ask(request(Command::WRITE_ZEROES, keep, 2, at.into(), bytes), &[]).error, ErrorCode::OK);
    let zeroed = at as usize..(at + bytes) as usize;
    assert!(rig.image.bytes[zeroed.clone()].iter().all(|&byte| byte == 0));
    assert_eq!((rig.image.bytes[zeroed.start - 1], rig.image.bytes[zeroed.end]), (9, 9));
    let status = |rig: &mut Rig| rig.ask(request(Command::BLOCK_STATUS, NONE, 3, 0, 8 * MIB), &[]).extents;
    let hole = AllocationFlags::ALL;
    let left = 8 * MIB - at - bytes;
    assert_eq!(status(&mut rig), [(at, hole), (bytes, AllocationFlags::NONE), (left, hole)]);
    assert_eq!(rig.ask(request(Command::WRITE_ZEROES, NONE, 4, at.into(), bytes), &[]).error, ErrorCode::OK);
    assert_eq!(status(&mut rig), [(8 * MIB, hole)]);
    // They are paid for as writes, wait as such, and reads do not wait behind them for their turn.
    rig.sink.credits = 3;
    rig.sink.asked.clear();
    rig.feed(&request(Command::WRITE_ZEROES, keep, 5, 0, 4 * MIB).octets());
    rig.feed(&read(6, 0, 512).octets());
    rig.step();
    let out: Vec<_> = rig.sink.ios.iter().map(|io| io.op).collect();
    assert_eq!(out, [Op::Write { fua: false }, Op::Write { fua: false }, Op::Read]);
    assert_eq!(rig.sink.asked[0], (Op::Write { fua: false }, Lba(0), MIB));
    let io = rig.sink.ios.remove(0);
    assert!(!rig.session.wants_step(), "nothing has come back yet");
    rig.answer(io);
    assert!(rig.session.wants_step(), "nothing else announces that the next part may go");
    assert_eq!(rig.step(), Wait::Credits);
    assert!(!rig.session.wants_step(), "credits are announced");
    assert_eq!(rig.session.held_bytes(), (1 << 20) + 4096, "what waits holds no memory");
    // The first that fails ends the rest.
    let mut io = rig.sink.ios.remove(0);
    let buffer = io.buffer.take();
    let done = block::Done { buffer, ..io.done(Status::NoSpace) };
    rig.sink.credits = usize::MAX;
    rig.session.complete(done, &mut rig.pool).expect("it was handed out");
    rig.sent.clear();
    rig.run();
    let answers = Answer::parse(&rig.sent, |_| 0);
    let mut errors: Vec<_> = answers.iter().map(|answer| (answer.cookie, answer.error)).collect();
    errors.sort_by_key(|(cookie, _)| *cookie);
    assert_eq!(errors, [(5, ErrorCode::NOSPC), (6, ErrorCode::OK)]);
    rig.finish();
}

/// However many requests for zeroes come at once, a step fills two parts: other sessions of the worker wait meanwhile.
#[test]
fn zeroes_of_many_requests_are_filled_a_few_at_a_time() {
    let mut rig = rig(false);
    let zeroes = |cookie| request(Command::WRITE_ZEROES, CommandFlags::NO_HOLE, cookie, 0, MIB).octets();
    let octets: Vec<u8> = (1..=32).flat_map(zeroes).collect();
    rig.feed(&octets);
    rig.feed(&read(33, 0, 512).octets());
    rig.step();
    let out: Vec<_> = rig.sink.ios.iter().map(|io| io.op).collect();
    assert_eq!(
        out,
        [Op::Write { fua: false }, Op::Write { fua: false }, Op::Read],
        "what is no zeroes goes on"
    );
    for _ in 0..30 {
        let io = rig.sink.ios.remove(0);
        rig.answer(io);
        assert!(rig.session.wants_step(), "nothing else announces that another may go");
        rig.step();
        let writes = rig.sink.ios.iter().filter(|io| io.op.is_write()).count();
        assert!(writes <= 2, "{writes} are under way");
    }
    rig.run();
    let answers = Answer::parse(&rig.sent, |cookie| if cookie == 33 { 512 } else { 0 });
    assert_eq!(answers.len(), 33);
    assert!(answers.iter().all(|answer| answer.error == ErrorCode::OK));
    rig.finish();
}

/// Throttling is a slow queue: parked requests stay here in order, and a flush or a disconnect passes them.
#[test]
fn flushes_pass_what_waits_for_credits() {
    let mut rig = rig(false);
    rig.sink.credits = 1;
    for cookie in 1..4 {
        rig.feed(&[&write(cookie, cookie * 512, 512).octets()[..], &[cookie as u8; 512]].concat());
    }
    rig.feed(&read(4, 0, 512).octets());
    assert_eq!(rig.step(), Wait::Credits);
    rig.feed(&request(Command::FLUSH, NONE, 5, 0, 0).octets());
    rig.feed(&request(Command::DISC, NONE, 6, 0, 0).octets());
    assert_eq!(rig.step(), Wait::Credits);
    let ops: Vec<Op> = rig.sink.ios.iter().map(|io| io.op).collect();
    assert_eq!(ops, [Op::Write { fua: false }, Op::Flush]);
    rig.run();
    let cookies = |rig: &Rig| -> Vec<u64> {
        Answer::parse(&rig.sent, |cookie| if cookie == 4 { 512 } else { 0 })
            .iter()
            .map(|a| a.cookie)
            .collect()
    };
    assert_eq!(cookies(&rig), [1, 5]);
    // "The server MUST handle all outstanding requests", in order, as credits come.
    assert!(!rig.session.is_finished() && !rig.session.wants_input());
    for expected in [vec![1, 5, 2], vec![1, 5, 2, 3], vec![1, 5, 2, 3, 4]] {
        rig.sink.credits = 1;
        rig.run();
        assert_eq!(cookies(&rig), expected);
    }
    assert!(rig.session.is_finished());
    rig.finish();
}

#[test]
fn a_parked_read_holds_no_memory() {
    for (structured, length) in [(true, MIB), (true, 4 * MIB), (false, MIB), (false, 4 * MIB)] {
        let image = Image::new(40 << 20, BlockSize::B512);
        let mut rig = Rig::with(image, structured, 4, |_, _| {});
        rig.sink.credits = 0;
        rig.feed(&read(1, 0, length).octets());
        assert_eq!(rig.step(), Wait::Credits);
        let all: Vec<_> = std::iter::from_fn(|| rig.pool.alloc(1 << 20)).collect();
        assert_eq!(all.len(), 4, "every region is free");
        rig.sink.credits = usize::MAX;
        assert_eq!(rig.step(), Wait::Memory);
        all.into_iter().for_each(|buffer| rig.pool.free(buffer));
        rig.run();
        assert!(rig.sent.len() > 16);
        rig.finish();
    }
}

/// Two long reads that each need most of the memory: one after the other, not each with a half.
#[test]
fn long_reads_do_not_starve_each_other() {
    let image = || Image::new(40 << 20, BlockSize::B512);
    let mut one = Rig::with(image(), false, 6, |_, _| {});
    let mut two = Rig::with(image(), false, 1, |_, _| {});
    for rig in [&mut one, &mut two] {
        rig.feed(&read(1, 0, 4 * MIB).octets());
    }
    assert_eq!(one.step(), Wait::Nothing);
    assert_eq!(two.session.step(&mut one.pool, &mut two.sink), Wait::Memory);
    assert!(two.sink.ios.is_empty());
    one.run();
    assert_eq!(two.session.step(&mut one.pool, &mut two.sink), Wait::Nothing);
    assert_eq!(two.sink.ios.len(), 4);
    two.pool = std::mem::replace(&mut one.pool, common::pool(1));
    two.run();
    assert_eq!(two.sent.len(), 16 + 4 * MIB as usize);
    two.finish();
}

/// Reads that find no memory must not hold up writes whose payload is what fills it.
#[test]
fn writes_go_on_while_reads_wait_for_memory() {
    let mut rig = Rig::with(Image::new(8 << 20, BlockSize::B512), true, 1, |_, _| {});
    let bytes = [&read(1, 0, MIB).octets()[..], &write(2, 0, MIB).octets()[..], &pattern(MIB)].concat();
    assert_eq!(rig.feed(&bytes), bytes.len());
    assert_eq!(rig.step(), Wait::Memory);
    assert_eq!(rig.sink.ios.len(), 1);
    rig.run();
    let cookies: Vec<u64> = Answer::parse(&rig.sent, |_| 0).iter().map(|answer| answer.cookie).collect();
    assert_eq!(cookies, [2, 1]);
    rig.finish();
}

#[test]
fn input_waits_when_there_are_enough_requests_or_bytes() {
    let mut rig = Rig::new(true, |_, limits| limits.requests_max = 2);
    let three = [read(1, 0, 512), read(2, 0, 512), read(3, 0, 512)].map(|one| one.octets()).concat();
    assert_eq!(rig.feed(&three), 56);
    assert!(!rig.session.wants_input());
    rig.step();
    let io = rig.sink.ios.remove(0);
    rig.answer(io);
    assert!(!rig.session.wants_input(), "an answer that was not sent keeps its place");
    rig.send(10);
    assert_eq!(rig.feed(&three[56..]), 0);
    rig.send(usize::MAX);
    assert_eq!(rig.feed(&three[56..]), 28);
    rig.finish();

    let mut rig = Rig::new(true, |_, limits| limits.bytes_max = 0);
    rig.sink.credits = 0;
    let long = [&write(1, 0, PAYLOAD_BYTES_MAX).octets()[..], &pattern(PAYLOAD_BYTES_MAX)].concat();
    assert_eq!(rig.feed(&long), long.len(), "one payload of the longest always fits");
    let next = [&write(2, 0, 512).octets()[..], &[0; 512]].concat();
    assert_eq!(rig.feed(&next), 28, "the header, but no payload");
    assert!(!rig.session.wants_input());
    rig.feed(&next[28..]);
    rig.sink.credits = 1;
    rig.step();
    let io = rig.sink.ios.remove(0);
    rig.answer(io);
    assert!(rig.session.wants_input());
    assert_eq!(rig.feed(&next[28..]), 512);
    rig.finish();
}

#[test]
fn input_waits_for_memory() {
    let mut rig = Rig::with(Image::new(8 << 20, BlockSize::B512), true, 1, |_, _| {});
    let other = rig.pool.alloc(1 << 20).expect("the only region");
    let bytes = [&write(1, 0, 512).octets()[..], &[7; 512]].concat();
    assert_eq!(rig.feed(&bytes), 28);
    assert_eq!(rig.feed(&bytes[28..]), 0);
    rig.pool.free(other);
    assert_eq!(rig.feed(&bytes[28..]), 512);
    rig.run();
    assert_eq!(rig.image.bytes[..512], [7; 512]);
    rig.finish();
}

#[test]
fn broken_bytes_end_the_session_with_a_reason() {
    let mut rig = rig(true);
    let mut bytes = read(1, 0, 512).octets();
    bytes[0] = 0x26;
    let error = rig.session.process_bytes(&bytes, &mut rig.pool, 1).unwrap_err();
    assert_eq!(error, TransmissionError::Request(ParseError::Magic { found: 0x2660_9513 }));
    rig.finish();

    let mut rig = self::rig(true);
    let length_bytes = PAYLOAD_BYTES_MAX + 1;
    let bytes = write(1, 0, length_bytes).octets();
    let error = rig.session.process_bytes(&bytes, &mut rig.pool, 1).unwrap_err();
    assert_eq!(error, TransmissionError::PayloadBytes { length_bytes });
    rig.finish();
}

#[test]
fn an_answer_that_nobody_waits_for_is_refused() {
    let mut rig = rig(true);
    rig.feed(&read(1, 0, 512).octets());
    rig.step();
    let io = rig.sink.ios.pop().expect("one");
    let (volume, tag) = (io.volume, io.tag);
    rig.answer(io);
    for tag in [tag, Tag(0), Tag(u64::MAX)] {
        let buffer = rig.pool.alloc(512);
        let done = block::Done { volume, tag, status: Status::Ok, zeroes: false, buffer };
        let error = rig.session.complete(done, &mut rig.pool).unwrap_err();
        assert_eq!(error.tag, tag);
    }
    rig.finish();
}

/// A slot that serves another request by now does not take the answer to the one before.
#[test]
fn an_answer_that_comes_too_late_is_refused() {
    let mut rig = rig(true);
    rig.feed(&read(1, 0, 512).octets());
    rig.step();
    let io = rig.sink.ios.pop().expect("one");
    let (volume, late) = (io.volume, io.tag);
    rig.answer(io);
    rig.send(usize::MAX);
    rig.feed(&read(2, 0, 512).octets());
    rig.step();
    let buffer = rig.pool.alloc(512);
    let done = block::Done { volume, tag: late, status: Status::Ok, zeroes: false, buffer };
    assert_eq!(rig.session.complete(done, &mut rig.pool).unwrap_err().tag, late);
    assert_eq!(rig.session.outstanding(), 1, "the later request still waits for its own");
    rig.finish();
}

/// What is left of a read that failed is neither read nor waited for, nor taken for the next request's.
#[test]
fn a_read_ends_with_its_first_error() {
    for structured in [false, true] {
        let mut rig = rig(structured);
        rig.sink.credits = 1;
        rig.image.fault = Some((Lba(0), Status::Broken));
        rig.feed(&read(1, 0, 3 * MIB).octets());
        assert_eq!(rig.step(), Wait::Credits);
        let io = rig.sink.ios.pop().expect("the first part");
        rig.answer(io);
        rig.send(usize::MAX);
        let answers = Answer::parse(&rig.sent, |_| 0);
        assert_eq!((answers[0].error, answers[0].done), (ErrorCode::IO, true));
        rig.feed(&read(2, 8192, 512).octets());
        rig.sink.credits = 1;
        assert_eq!(rig.step(), Wait::Nothing);
        let handed: Vec<_> = rig.sink.ios.iter().map(|io| (io.lba.0, io.blocks)).collect();
        assert_eq!(handed, [(16, 1)]);
        rig.finish();
    }
}

#[test]
fn a_client_that_stops_half_way_is_ended_and_one_that_waits_is_not() {
    let second = 1_000_000_000;
    // Nothing half done: no limit.
    let mut rig = rig(true);
    for now in [1, 100 * second, 1000 * second] {
        assert_eq!(rig.session.expire(now), Ok(()));
    }
    // Half a header, then half a payload, then an answer that is not read.
    let bytes = [&write(1, 0, 512).octets()[..], &[0; 512]].concat();
    let mut at = 0;
    let mut now = 1000 * second;
    for cut in [10, 300, bytes.len()] {
        at += rig.feed(&bytes[at..cut]);
        rig.step();
        for io in std::mem::take(&mut rig.sink.ios) {
            rig.answer(io);
        }
        assert_eq!(rig.session.expire(now), Ok(()));
        assert_eq!(rig.session.expire(now + 30 * second), Ok(()));
        let stalled = rig.session.expire(now + 31 * second);
        assert_eq!(stalled, Err(TransmissionError::Stalled { stalled_ns: 31 * second }), "at {cut}");
        now += 40 * second;
    }
    rig.finish();
    // A request that waits for credits is our doing, not the client's.
    let mut rig = self::rig(true);
    rig.sink.credits = 0;
    rig.feed(&read(1, 0, 512).octets());
    rig.step();
    for now in [1, 100 * second, 1000 * second] {
        assert_eq!(rig.session.expire(now), Ok(()));
    }
    rig.finish();
    // So is input that we leave in the socket.
    let mut rig = self::rig(true);
    rig.feed(&bytes[..10]);
    for now in [1, 100 * second, 1000 * second] {
        rig.session.excuse(now);
        assert_eq!(rig.session.expire(now + 30 * second), Ok(()));
    }
    rig.finish();
}

#[test]
fn an_aborted_session_waits_for_its_ios_and_frees_everything() {
    for structured in [false, true] {
        let mut rig = rig(structured);
        rig.feed(&[&write(1, 0, 512).octets()[..], &[0; 512]].concat());
        rig.run();
        // Something in each place: answered, handed out, gathered, parked, half received.
        rig.feed(&read(2, 0, 512).octets());
        rig.step();
        let io = rig.sink.ios.pop().expect("one");
        rig.answer(io);
        rig.feed(&read(3, 0, 3 * MIB).octets());
        rig.step();
        let io = rig.sink.ios.remove(1);
        rig.answer(io);
        rig.sink.credits = 0;
        rig.feed(&[&write(4, 0, 512).octets()[..], &[0; 512]].concat());
        rig.feed(&read(5, 0, 512).octets());
        rig.feed(&[&write(6, 0, 512).octets()[..], &[0; 100]].concat());
        assert_eq!(rig.step(), Wait::Credits);
        assert!(rig.session.outstanding() == 2 && rig.session.has_output());
        rig.finish();
    }
}

#[derive(Clone, Debug)]
struct Ask {
    command: Command,
    flags: CommandFlags,
    block: u64,
    blocks: u32,
}

fn ask() -> impl Strategy<Value = Ask> {
    let commands = prop::sample::select(vec![0, 0, 1, 1, 3, 4, 5, 6, 7, 9]).prop_map(Command);
    let flags = prop::sample::select(vec![0, 0, 0, 1, 2, 4, 8, 16, 18]).prop_map(CommandFlags);
    let blocks = prop_oneof![4 => 0u32..40, 1 => 2040u32..2060, 1 => 4000u32..5000];
    (commands, flags, 0u64..10_000, blocks).prop_map(|(command, flags, block, blocks)| {
        let (block, blocks) = if command == Command::FLUSH { (0, 0) } else { (block, blocks) };
        Ask { command, flags, block, blocks }
    })
}

/// The bytes of a client, and what a simple reply to each cookie carries.
fn script(asks: &[Ask]) -> (Vec<u8>, BTreeMap<u64, usize>) {
    let (mut bytes, mut reads) = (Vec::new(), BTreeMap::new());
    for (cookie, ask) in asks.iter().enumerate() {
        let (cookie, length) = (cookie as u64, ask.blocks * 512);
        bytes.extend(request(ask.command, ask.flags, cookie, ask.block * 512, length).octets());
        if ask.command == Command::WRITE {
            bytes.extend(pattern(length).iter().map(|byte| byte ^ cookie as u8));
        }
        if ask.command == Command::READ {
            reads.insert(cookie, length as usize);
        }
    }
    (bytes, reads)
}

fn small(structured: bool) -> Rig {
    let image = Image::new(5 << 20, BlockSize::B512);
    Rig::with(image, structured, 40, |_, limits| limits.requests_max = 8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However the client's bytes are cut, and however the replies are, the client reads the same answers and
    /// the volume holds the same bytes. Only the order of answers may differ, since a refusal does not wait.
    #[test]
    fn chunking_changes_nothing(
        asks in prop::collection::vec(ask(), 1..12),
        cuts in prop::collection::vec(1usize..5000, 1..40),
        structured: bool,
    ) {
        let (bytes, reads) = script(&asks);
        let mut whole = small(structured);
        whole.feed_all(&bytes);
        let mut cut = small(structured);
        let mut at = 0;
        for size in cuts.iter().cycle() {
            if at == bytes.len() {
                break;
            }
            let end = bytes.len().min(at + size);
            at += cut.feed(&bytes[at..end]);
            cut.step();
            for io in std::mem::take(&mut cut.sink.ios) {
                cut.answer(io);
            }
            cut.send(*size);
        }
        cut.run();
        let answers = |rig: &Rig| {
            let mut answers = Answer::parse(&rig.sent, |cookie| reads.get(&cookie).copied().unwrap_or(0));
            answers.sort_by_key(|answer| answer.cookie);
            answers
        };
        prop_assert!(answers(&whole) == answers(&cut));
        prop_assert!(whole.image.bytes == cut.image.bytes);
        whole.finish();
        cut.finish();
    }

    /// Every request is answered exactly once, in whatever order the volume answers, with what was there.
    #[test]
    fn answers_in_any_order_are_complete(
        asks in prop::collection::vec(ask(), 1..12),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 1..30),
        structured: bool,
    ) {
        let (bytes, reads) = script(&asks);
        let mut rig = small(structured);
        rig.image.bytes.copy_from_slice(&pattern(5 << 20));
        rig.image.allocated.fill(true);
        let mut at = 0;
        for pick in picks.iter().cycle() {
            at += rig.feed(&bytes[at..]);
            rig.step();
            if rig.sink.ios.is_empty() && at == bytes.len() && !rig.session.has_output() {
                break;
            }
            if !rig.sink.ios.is_empty() {
                let io = rig.sink.ios.swap_remove(pick.index(rig.sink.ios.len()));
                rig.answer(io);
            }
            rig.send(usize::MAX);
        }
        let answers = Answer::parse(&rig.sent, |cookie| reads.get(&cookie).copied().unwrap_or(0));
        let mut cookies: Vec<u64> = answers.iter().map(|answer| answer.cookie).collect();
        cookies.sort_unstable();
        prop_assert!(cookies.iter().copied().eq(0..asks.len() as u64));
        for answer in &answers {
            prop_assert!(answer.done);
            let ask = &asks[answer.cookie as usize];
            if ask.command == Command::READ && answer.error == ErrorCode::OK {
                let sizes = answer.data.iter().map(|(_, data)| data.len());
                let holes = answer.holes.iter().map(|(_, bytes)| *bytes as usize);
                prop_assert_eq!(sizes.chain(holes).sum::<usize>(), ask.blocks as usize * 512);
            }
        }
        rig.finish();
    }

    /// Any bytes at all: no panic, nothing lost.
    #[test]
    fn any_bytes_are_survived(
        requests in prop::collection::vec((any::<[u8; 24]>(), any::<bool>()), 0..20),
        structured: bool,
    ) {
        let mut rig = small(structured);
        for (body, small) in requests {
            let mut bytes = [&0x2560_9513_u32.to_be_bytes()[..], &body].concat();
            if small {
                // A known command, close to the export.
                bytes[4..8].copy_from_slice(&[0, body[0] & 31, 0, body[1] % 9]);
                bytes[16..21].fill(0);
                bytes[24] = 0;
            }
            if rig.session.process_bytes(&bytes, &mut rig.pool, 1).is_err() {
                break;
            }
            rig.run();
        }
        rig.finish();
    }
}
