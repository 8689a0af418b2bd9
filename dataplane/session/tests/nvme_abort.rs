//! Abort of I/O commands: what waits is taken back, what was begun is not, and both are said.

mod nvme_common;

use nvme_common::{Agreed, Conn, Reply, Rig, Sgl, Sqe, Wish, flush, read, write};
use session::nvme_tcp::Wait;

const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };
const ABORT_REQUESTED: u16 = 0x007;

fn abort(id: u16, queue: u32, other: u32) -> Sqe {
    Sqe::new(0x08, id, 0, Sgl::Host(0)).dword(10, queue | other << 16)
}

/// Hands a command in and lets it be handed out, no more.
fn begin(rig: &mut Rig, io: &mut Conn, command: Sqe, payload: &[u8]) -> Wait {
    let capsule = io.agreed.capsule(command, payload);
    assert_eq!(io.queue.process_bytes(&capsule, &mut rig.pool, rig.now_ns), capsule.len());
    rig.step(io)
}

/// The one answer of a queue, as identifier, status and dword 0.
fn answer(replies: &[Reply]) -> (u16, u16, u64) {
    match replies {
        [Reply::Done { id, status, result, do_not_retry: false, .. }] => (*id, *status, *result),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_that_waits_is_taken_back_and_answered_first() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    rig.sink.credits = 0;
    for (id, command, payload) in [
        (3, read(3, 0, 8), vec![]),
        (4, write(4, 0, 8, true), vec![4; 4096]),
        (5, write(5, 0, 32, false), vec![]),
    ] {
        assert_eq!(begin(&mut rig, &mut io, command, &payload), Wait::Credits);
        assert!(!rig.subsystem.take_call());
        assert_eq!(rig.ask(&mut admin, abort(60, 1, id.into()), &[]), [], "the queue is asked first");
        assert!(rig.subsystem.take_call(), "all queues are to be driven");
        assert_eq!(rig.status(&mut admin, abort(60, 1, 9), &[]), 0x003, "that one waits");
        assert_eq!(answer(&rig.run(&mut io)), (id, ABORT_REQUESTED, 0));
        assert!(rig.subsystem.take_call());
        assert_eq!(answer(&rig.run(&mut admin)), (60, 0, 0));
    }
    assert_eq!((rig.sink.withdrawn, rig.sink.ios.len(), io.queue.held_bytes()), (3, 0, 0));
    // One behind it goes on.
    assert_eq!(begin(&mut rig, &mut io, read(6, 0, 8), &[]), Wait::Credits);
    assert_eq!(begin(&mut rig, &mut io, read(7, 8, 8), &[]), Wait::Credits);
    assert_eq!(rig.ask(&mut admin, abort(61, 1, 6), &[]), []);
    assert_eq!(answer(&rig.run(&mut io)), (6, ABORT_REQUESTED, 0));
    assert_eq!(answer(&rig.run(&mut admin)), (61, 0, 0));
    rig.sink.credits = usize::MAX;
    assert!(matches!(
        rig.run(&mut io)[..],
        [Reply::Data { id: 7, .. }, Reply::Done { id: 7, status: 0, .. }]
    ));
    // Its identifier can be used again.
    assert_eq!(rig.data(&mut io, read(6, 0, 1)).len(), 512);
    rig.finish(vec![admin, io]);
}

#[test]
fn what_was_begun_is_not_taken_back_and_that_is_said() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    // One was handed out, of one the payload is asked for, of one it is half here; and one that is not there.
    assert_eq!(begin(&mut rig, &mut io, read(1, 0, 8), &[]), Wait::Nothing);
    let out = rig.sink.ios.pop().expect("the read");
    assert_eq!(begin(&mut rig, &mut io, write(2, 0, 32, false), &[]), Wait::Nothing);
    assert!(rig.send(&mut io));
    let [Reply::Transfer { id: 2, tag, .. }] = io.replies()[..] else { panic!("one transfer") };
    let capsule = PLAIN.capsule(write(3, 64, 8, true), &[3; 4096]);
    assert_eq!(io.queue.process_bytes(&capsule[..1000], &mut rig.pool, 1), 1000);
    for other in [1, 2, 3, 4] {
        assert_eq!(rig.ask(&mut admin, abort(60, 1, other), &[]), []);
        rig.step(&mut io);
        assert_eq!(answer(&rig.run(&mut admin)), (60, 0, 1), "{other}");
    }
    rig.answer(&mut io, out);
    assert!(matches!(
        rig.run(&mut io)[..],
        [Reply::Data { id: 1, .. }, Reply::Done { id: 1, status: 0, .. }]
    ));
    assert_eq!(answer(&rig.exchange(&mut io, &capsule[1000..])), (3, 0, 0));
    let data = PLAIN.data(2, tag, 0, &[2; 32 * 512], true);
    assert_eq!(answer(&rig.exchange(&mut io, &data)), (2, 0, 0));
    assert_eq!(rig.data(&mut io, read(4, 0, 1)), [2; 512]);
    rig.finish(vec![admin, io]);
}

#[test]
fn aborts_are_bounded_and_each_is_answered() {
    let mut rig = Rig::new();
    let (mut admin, controller) = rig.admin(PLAIN);
    let (mut io, _) = rig.connect(PLAIN, Wish::io(1, controller));
    let (mut other, _) = rig.connect(PLAIN, Wish::io(2, controller));
    assert_eq!(rig.status(&mut admin, abort(60, 3, 1), &[]), 0x002, "no such queue");
    for id in 60..64 {
        assert_eq!(rig.ask(&mut admin, abort(id, 1, 9), &[]), []);
    }
    assert_eq!(rig.status(&mut admin, abort(64, 1, 9), &[]), 0x103);
    rig.step(&mut other);
    assert_eq!(rig.run(&mut admin), [], "another queue has no say");
    rig.step(&mut io);
    let answers: Vec<_> =
        rig.run(&mut admin).iter().map(|reply| answer(std::slice::from_ref(reply))).collect();
    assert_eq!(answers, [(60, 0, 1), (61, 0, 1), (62, 0, 1), (63, 0, 1)]);
    // Its queue goes before it could say anything.
    assert_eq!(rig.ask(&mut admin, abort(60, 1, 9), &[]), []);
    rig.end(&mut io);
    assert!(rig.subsystem.take_call());
    assert_eq!(answer(&rig.run(&mut admin)), (60, 0, 1));
    assert_eq!(rig.status(&mut other, flush(1), &[]), 0);
    rig.finish(vec![admin, io, other]);
}
