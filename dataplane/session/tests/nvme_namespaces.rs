//! Subsystems with several namespaces: what hosts are told of them while they come, grow and go, and that commands to
//! one do not wait behind those to another.

mod nvme_common;

use block::{BlockSize, VolumeId};
use nvme_common::{Agreed, Conn, NQN, Reply, Rig, Sgl, Sqe, flush, identify, log_page, read, write};
use session::nvme_tcp::{
    Access, Hosts, NAMESPACES_MAX, Namespace, Subsystem, SubsystemLimits, Taken, Unknown, Wait,
};

const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };
const INVALID_FIELD: u16 = 0x002;
const INVALID_NAMESPACE: u16 = 0x00b;
/// Numbers of the namespaces that are there at first, and of the one that comes.
const FIRST: [u32; 2] = [1, 5];
const NEW: u32 = 3;

fn volume(number: u32) -> VolumeId {
    VolumeId(100 + number)
}

fn identity(number: u32) -> [u8; 16] {
    [number as u8; 16]
}

/// `number` MiB.
fn namespace(number: u32) -> Namespace {
    let blocks = u64::from(number) << 11;
    let namespace = Namespace::new(volume(number), BlockSize::B512, blocks, identity(number), false);
    namespace.unwrap().with_number(number).unwrap()
}

/// A subsystem with [`FIRST`] behind it; all volumes answer as one image.
fn rig() -> Rig {
    let image = nvme_common::common::Image::new(8 << 20, BlockSize::B512);
    // Not in order.
    let namespaces = FIRST.map(namespace).into_iter().rev().collect();
    let subsystem = Subsystem::new(NQN, "serial", Hosts::Any, namespaces, SubsystemLimits::default());
    Rig::of(subsystem.unwrap(), image, 40)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A list of namespaces, which ends with zeroes.
fn list(page: &[u8]) -> Vec<u32> {
    let numbers: Vec<u32> = page.chunks(4).map(|octets| u32_at(octets, 0)).collect();
    let end = numbers.iter().position(|number| *number == 0).unwrap_or(numbers.len());
    assert!(numbers[end..].iter().all(|number| *number == 0));
    numbers[..end].to_vec()
}

/// Of a group its number, namespaces, changes and state.
type Group = (u32, Vec<u32>, u64, u8);

/// The log of access states: its change count, and its groups.
fn groups(rig: &mut Rig, admin: &mut Conn) -> (u64, Vec<Group>) {
    let log = rig.data(admin, log_page(1, 0x0c, 0, 1024));
    let (count, mut at, mut groups) = (log[8], 16, Vec::new());
    for _ in 0..count {
        let members = u32_at(&log, at + 4) as usize;
        let numbers = (0..members).map(|member| u32_at(&log, at + 32 + 4 * member)).collect();
        groups.push((u32_at(&log, at), numbers, u64_at(&log, at + 8), log[at + 16]));
        at += 32 + 4 * members;
    }
    assert_eq!(log[at..], vec![0; 1024 - at]);
    // All that there can be may be read in pieces.
    let end = 16 + NAMESPACES_MAX * 36;
    assert_eq!(rig.data(admin, log_page(1, 0x0c, 8192, end - 8192)), vec![0; end as usize - 8192]);
    assert_eq!(rig.status(admin, log_page(1, 0x0c, end + 4, 4), &[]), 0x002);
    (u64_at(&log, 0), groups)
}

/// Wants to hear of namespaces and of access, and asks to be told.
fn listen(rig: &mut Rig, admin: &mut Conn, ids: &[u16]) {
    let wants = Sqe::new(9, 1, 0, Sgl::Host(0)).dword(10, 0xb).dword(11, 1 << 8 | 1 << 11);
    assert_eq!(rig.status(admin, wants, &[]), 0);
    for id in ids {
        assert_eq!(rig.ask(admin, Sqe::new(0x0c, *id, 0, Sgl::Host(0)), &[]), []);
    }
}

/// What it is told by its request for an event.
fn told(rig: &mut Rig, admin: &mut Conn, id: u16) -> u64 {
    match rig.run(admin)[..] {
        [Reply::Done { id: other, status: 0, result, .. }] if other == id => result,
        ref other => panic!("{other:?}"),
    }
}

fn changed(rig: &mut Rig, admin: &mut Conn) -> Vec<u32> {
    list(&rig.data(admin, log_page(1, 4, 0, 4096)))
}

#[test]
fn each_namespace_is_found_under_its_number() {
    let mut rig = rig();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    for cns in [2, 7] {
        for (above, expected) in [(0, &FIRST[..]), (1, &FIRST[1..]), (4, &FIRST[1..]), (5, &[])] {
            assert_eq!(list(&rig.data(&mut admin, identify(2, cns, above))), expected, "{cns} {above}");
        }
    }
    for number in FIRST {
        let page = rig.data(&mut admin, identify(3, 0, number));
        assert_eq!((u64_at(&page, 0), u32_at(&page, 92)), (u64::from(number) << 11, number), "size, group");
        assert_eq!(page[104..120], identity(number));
        let names = rig.data(&mut admin, identify(5, 3, number));
        assert_eq!((&names[..4], &names[4..20]), (&[2, 16, 0, 0][..], &identity(number)[..]));
        assert_eq!(u32_at(&rig.data(&mut admin, identify(2, 8, number)), 4), number, "its group");
        // What reaches which volume is seen where it is handed out.
        io.queue.process_bytes(&PLAIN.capsule(read(7, 1, 1).dword(1, number), &[]), &mut rig.pool, 1);
        rig.step(&mut io);
        let out = rig.sink.ios.pop().expect("a read");
        assert_eq!(out.volume, volume(number));
        rig.answer(&mut io, out);
        assert_eq!(rig.run(&mut io).len(), 2);
        // Each has an end of its own.
        let end = u64::from(number) << 11;
        assert_eq!(rig.status(&mut io, read(1, end, 1).dword(1, number), &[]), 0x080);
    }
    let page = rig.data(&mut admin, identify(1, 1, 0));
    assert_eq!([344, 348, 516, 540].map(|at| u32_at(&page, at)), [NAMESPACES_MAX; 4], "groups, NN, MNAN");
    rig.finish(vec![admin, io]);
}

#[test]
fn a_number_that_no_namespace_has_is_inactive_and_one_that_none_can_have_is_invalid() {
    let mut rig = rig();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    let write_zeroes = Sqe::new(0x08, 1, 1, Sgl::Host(0)).range(0, 1);
    // Of each number what commands to it end with, and Identify Namespace where it is no page of zeroes.
    let inactive = [2, 4, 6, NAMESPACES_MAX].map(|number| (number, INVALID_FIELD, None));
    let invalid = [0, NAMESPACES_MAX + 1, u32::MAX - 1];
    let invalid = invalid.map(|number| (number, INVALID_NAMESPACE, Some(INVALID_NAMESPACE)));
    let all = (u32::MAX, INVALID_FIELD, Some(INVALID_NAMESPACE));
    for (number, status, identified) in inactive.into_iter().chain(invalid).chain([all]) {
        for cns in [0, 5, 8] {
            let command = identify(1, cns, number);
            match identified {
                None => assert_eq!(rig.data(&mut admin, command), [0; 4096], "{cns} {number}"),
                Some(status) => assert_eq!(rig.status(&mut admin, command, &[]), status, "{cns} {number}"),
            }
        }
        assert_eq!(rig.status(&mut admin, identify(1, 3, number), &[]), status, "{number}");
        for command in [read(1, 0, 1), write_zeroes] {
            let replies = rig.ask(&mut io, command.dword(1, number), &[]);
            let [Reply::Done { status: told, do_not_retry: true, .. }] = replies[..] else {
                panic!("{replies:?}")
            };
            assert_eq!(told, status, "{number}");
        }
        let told = rig.status(&mut io, write(1, 0, 1, true).dword(1, number), &[0; 512]);
        assert_eq!(told, status, "{number}");
        // A flush of all namespaces is announced not to be there, with a status of its own.
        let status = if number == u32::MAX { INVALID_NAMESPACE } else { status };
        assert_eq!(rig.status(&mut io, flush(1).dword(1, number), &[]), status, "{number}");
    }
    rig.finish(vec![admin, io]);
}

#[test]
fn namespaces_come_grow_and_go_and_hosts_are_told_which() {
    let mut rig = rig();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    let (mut other, mut other_io) = rig.both(PLAIN, 0);
    listen(&mut rig, &mut admin, &[50, 51]);
    listen(&mut rig, &mut other, &[50]);
    assert_eq!(rig.subsystem.add(namespace(1)), Err(Taken { number: 1 }), "its number");
    let again = namespace(1).with_number(9).unwrap();
    assert_eq!(rig.subsystem.add(again), Err(Taken { number: 9 }), "its volume");
    assert_eq!(rig.run(&mut admin), [], "nothing has changed");
    let first: Vec<_> = FIRST.map(|number| (number, vec![number], 0, 1)).to_vec();
    assert_eq!(groups(&mut rig, &mut admin), (0, first.clone()));
    // It comes: each host is told, once, and finds which.
    rig.subsystem.add(namespace(NEW)).unwrap();
    rig.subsystem.resize(volume(5), 6 << 11).unwrap();
    for admin in [&mut admin, &mut other] {
        assert_eq!(told(&mut rig, admin, 50), 0x04_00_02);
        assert_eq!(changed(&mut rig, admin), [NEW, 5]);
        assert_eq!(changed(&mut rig, admin), []);
        assert_eq!(list(&rig.data(admin, identify(2, 2, 0))), [1, NEW, 5]);
    }
    assert_eq!(u64_at(&rig.data(&mut other, identify(3, 0, 5)), 0), 6 << 11);
    assert_eq!(rig.status(&mut io, write(1, 0, 1, true).dword(1, NEW), &[3; 512]), 0);
    let with_new = [first[0].clone(), (NEW, vec![NEW], 0, 1), first[1].clone()];
    assert_eq!(groups(&mut rig, &mut admin), (1, with_new.to_vec()));
    // One is not reached, the others are.
    rig.subsystem.set_access(volume(NEW), Access::Inaccessible).unwrap();
    assert_eq!(told(&mut rig, &mut admin, 51), 0x0c_03_02);
    let lost = [first[0].clone(), (NEW, vec![NEW], 1, 3), first[1].clone()];
    assert_eq!(groups(&mut rig, &mut admin), (2, lost.to_vec()));
    assert_eq!(rig.status(&mut io, write(1, 0, 1, true).dword(1, NEW), &[3; 512]), 0x302);
    assert_eq!(rig.status(&mut other_io, write(1, 0, 1, true).dword(1, 5), &[3; 512]), 0);
    // It goes, and with it what waits for it and nothing else.
    listen(&mut rig, &mut admin, &[52]);
    rig.subsystem.set_access(volume(NEW), Access::Optimized).unwrap();
    assert_eq!(told(&mut rig, &mut admin, 52), 0x0c_03_02);
    rig.sink.short = vec![volume(1), volume(NEW)];
    for (id, number) in [(1, 1), (2, NEW), (3, 1), (4, NEW)] {
        let capsule = PLAIN.capsule(read(id, 0, 1).dword(1, number), &[]);
        io.queue.process_bytes(&capsule, &mut rig.pool, 1);
    }
    assert_eq!(rig.step(&mut io), Wait::Credits);
    listen(&mut rig, &mut admin, &[53]);
    rig.subsystem.remove(volume(NEW)).unwrap();
    assert_eq!(rig.subsystem.remove(volume(NEW)), Err(Unknown(volume(NEW))));
    let refused: Vec<_> = rig.run(&mut io).iter().map(|reply| format!("{reply:?}")).collect();
    assert_eq!(refused, [2, 4].map(|id| format!("Done {id} 0x2 true 0x0")));
    assert_eq!(told(&mut rig, &mut admin, 53), 0x04_00_02);
    assert_eq!(
        (changed(&mut rig, &mut admin), list(&rig.data(&mut admin, identify(2, 2, 0)))),
        (vec![NEW], FIRST.to_vec())
    );
    rig.sink.short.clear();
    assert_eq!(rig.run(&mut io).len(), 4, "two reads of the one that stayed");
    rig.finish(vec![admin, io, other, other_io]);
}

#[test]
fn what_waited_for_a_namespace_never_reaches_another_volume_under_its_number() {
    let mut rig = rig();
    let (admin, mut io) = rig.both(PLAIN, 0);
    rig.sink.short = vec![volume(1)];
    io.queue.process_bytes(&PLAIN.capsule(read(1, 0, 1), &[]), &mut rig.pool, 1);
    assert_eq!(rig.step(&mut io), Wait::Credits);
    // One whose payload is on its way.
    rig.sink.short.clear();
    let asked = rig.exchange(&mut io, &PLAIN.capsule(write(2, 0, 32, false), &[]));
    let [Reply::Transfer { id: 2, tag, .. }, Reply::Data { id: 1, .. }, Reply::Done { id: 1, .. }] =
        asked[..]
    else {
        panic!("{asked:?}")
    };
    rig.sink.short = vec![volume(1)];
    io.queue.process_bytes(&PLAIN.capsule(read(3, 0, 1), &[]), &mut rig.pool, 1);
    assert_eq!(rig.step(&mut io), Wait::Credits);
    rig.subsystem.remove(volume(1)).unwrap();
    rig.subsystem.add(namespace(NEW).with_number(1).unwrap()).unwrap();
    rig.sink.short.clear();
    let refused: Vec<_> = rig.run(&mut io).iter().map(|reply| format!("{reply:?}")).collect();
    assert_eq!(refused, ["Done 3 0x2 true 0x0"]);
    let late = rig.exchange(&mut io, &PLAIN.data(2, tag, 0, &[2; 32 * 512], true));
    assert!(matches!(late[..], [Reply::Done { id: 2, status: INVALID_FIELD, .. }]), "{late:?}");
    assert!(rig.sink.ios.is_empty() && io.queue.outstanding() == 0);
    rig.finish(vec![admin, io]);
}

#[test]
fn commands_to_a_namespace_without_credits_hold_up_none_to_another() {
    let mut rig = rig();
    let (admin, mut io) = rig.both(PLAIN, 0);
    rig.sink.short = vec![volume(1)];
    let commands = [(1, 1), (2, 5), (3, 1), (4, 5), (5, 5), (6, 1)];
    for (id, number) in commands {
        let (capsule, payload) = match id % 3 {
            0 => (write(id, id.into(), 1, true), vec![id as u8; 512]),
            1 => (read(id, id.into(), 1), vec![]),
            _ => (write(id, id.into(), 32, false), vec![]),
        };
        io.queue.process_bytes(&PLAIN.capsule(capsule.dword(1, number), &payload), &mut rig.pool, 1);
    }
    assert_eq!(rig.step(&mut io), Wait::Credits);
    let out: Vec<_> = rig.sink.ios.iter().map(|io| (io.volume, io.lba.0)).collect();
    assert_eq!(out, [(volume(5), 4)], "the read of the other one");
    let replies = rig.run(&mut io);
    let ids: Vec<u16> = replies
        .iter()
        .map(|reply| match reply {
            Reply::Data { id, .. } | Reply::Done { id, .. } | Reply::Transfer { id, .. } => *id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [2, 5, 4, 4], "transfers of the other one in their order, and its read");
    assert_eq!(rig.step(&mut io), Wait::Credits);
    // Each time one of those that wait is asked for, and the first of them is the first to go.
    rig.sink.short.clear();
    rig.sink.credits = 1;
    assert_eq!(rig.step(&mut io), Wait::Credits);
    let out: Vec<_> = rig.sink.ios.iter().map(|io| (io.volume, io.lba.0)).collect();
    assert_eq!(out, [(volume(1), 1)]);
    rig.sink.credits = usize::MAX;
    assert_eq!(rig.step(&mut io), Wait::Nothing);
    let out: Vec<_> = rig.sink.ios.iter().map(|io| (io.volume, io.lba.0)).collect();
    assert_eq!(out, [(volume(1), 1), (volume(1), 3), (volume(1), 6)]);
    rig.run(&mut io);
    rig.finish(vec![admin, io]);
}
