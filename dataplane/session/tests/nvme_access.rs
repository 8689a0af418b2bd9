//! What changes below a host while it is attached: how a namespace is reached (asymmetric namespace access),
//! that it goes, and the numbers of controllers of two nodes that serve one subsystem.

mod nvme_common;

use block::Op;
use nvme_common::{
    ADMIN, Agreed, Conn, IDENTITY, NQN, Reply, Rig, Sgl, Sqe, VOLUME, flush, identify, log_page, read, write,
};
use session::nvme_tcp::{
    Access, CONTROLLER_LAST, Hosts, Namespace, Subsystem, SubsystemLimits, Unknown, Wait,
};

const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };
const INVALID_FIELD: u16 = 0x002;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Hands a command in and lets it be handed out, no more.
fn begin(rig: &mut Rig, io: &mut Conn, command: Sqe, payload: &[u8]) -> Wait {
    let capsule = io.agreed.capsule(command, payload);
    assert_eq!(io.queue.process_bytes(&capsule, &mut rig.pool, rig.now_ns), capsule.len());
    rig.step(io)
}

/// The change count of the log of access states, that of the one group, and its state.
fn state(rig: &mut Rig, admin: &mut Conn) -> (u64, u64, u8) {
    let log = rig.data(admin, log_page(1, 0x0c, 0, 52));
    assert_eq!(
        (log[8], u32_at(&log, 16), u32_at(&log, 20), u32_at(&log, 48)),
        (1, 1, 1, 1),
        "group and NSID"
    );
    (u64_at(&log, 0), u64_at(&log, 24), log[32])
}

/// Of every command that needs the namespace, its status.
fn statuses(rig: &mut Rig, io: &mut Conn) -> Vec<(u16, bool)> {
    let (discard, mut payload) = (Sqe::new(0x09, 1, 1, Sgl::Capsule(4096)).dword(11, 0b100), vec![0; 4096]);
    payload[4] = 1;
    let commands = [
        (flush(1), vec![]),
        (write(1, 0, 1, true), vec![1; 512]),
        (write(1, 0, 1, false), vec![]),
        (read(1, 0, 1), vec![]),
        (Sqe::new(0x05, 1, 1, Sgl::Capsule(512)).range(0, 1), vec![0; 512]),
        (Sqe::new(0x08, 1, 1, Sgl::Host(0)).range(0, 1), vec![]),
        (discard, payload),
    ];
    let answer = |(command, payload): (Sqe, Vec<u8>)| {
        let capsule = io.agreed.capsule(command, &payload);
        match rig.exchange(io, &capsule)[..] {
            [Reply::Done { status, do_not_retry, .. }] => (status, do_not_retry),
            ref other => panic!("{other:?}"),
        }
    };
    commands.into_iter().map(answer).collect()
}

#[test]
fn io_where_a_namespace_cannot_be_reached_fails_so_that_a_host_tries_another_path() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    assert_eq!(state(&mut rig, &mut admin), (0, 0, 1));
    let states =
        [(Access::Inaccessible, 3, 0x302), (Access::PersistentLoss, 4, 0x301), (Access::Change, 0xf, 0x303)];
    for (changes, (access, number, status)) in (1..).zip(states) {
        rig.subsystem.set_access(VOLUME, access).unwrap();
        assert_eq!(rig.subsystem.access(VOLUME), Some(access));
        assert_eq!(state(&mut rig, &mut admin), (changes, changes, number));
        assert_eq!(statuses(&mut rig, &mut io), [(status, false); 7], "{access:?}");
        let page = rig.data(&mut admin, identify(2, 0, 1));
        let used = if access == Access::Change { rig.image.blocks() } else { 0 };
        assert_eq!((u64_at(&page, 0), u64_at(&page, 16)), (rig.image.blocks(), used), "NSZE and NUSE");
        assert_eq!(u32_at(&rig.data(&mut admin, identify(2, 8, 1)), 4), 1, "its group");
    }
    // Where another path is better, this one works.
    rig.subsystem.set_access(VOLUME, Access::NonOptimized).unwrap();
    assert_eq!(state(&mut rig, &mut admin), (4, 4, 2));
    assert_eq!(rig.status(&mut io, write(1, 0, 1, true), &[3; 512]), 0);
    assert_eq!(rig.data(&mut io, read(1, 0, 1)), [3; 512]);
    rig.subsystem.set_access(VOLUME, Access::NonOptimized).unwrap();
    assert_eq!(state(&mut rig, &mut admin), (4, 4, 2), "nothing changed");
    // RGO leaves the namespaces out.
    let groups = rig.data(&mut admin, log_page(1, 0x0c | 1 << 8, 0, 48));
    assert_eq!((u32_at(&groups, 16), u32_at(&groups, 20), groups[32]), (1, 0, 2));
    let elsewhere = block::VolumeId(99);
    assert_eq!(rig.subsystem.set_access(elsewhere, Access::Change), Err(Unknown(elsewhere)));
    rig.finish(vec![admin, io]);
}

#[test]
fn a_change_of_access_reaches_what_waits_and_leaves_what_was_handed_out() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    assert_eq!(
        rig.status(&mut admin, Sqe::new(9, 1, 0, Sgl::Host(0)).dword(10, 0xb).dword(11, 1 << 11), &[]),
        0
    );
    assert_eq!(rig.ask(&mut admin, Sqe::new(0x0c, 50, 0, Sgl::Host(0)), &[]), []);
    assert_eq!(begin(&mut rig, &mut io, read(1, 0, 8), &[]), Wait::Nothing);
    // One whose payload is on its way, and three that wait for credits.
    assert_eq!(begin(&mut rig, &mut io, write(2, 0, 32, false), &[]), Wait::Nothing);
    assert!(rig.send(&mut io), "the host is asked for it");
    let [Reply::Transfer { id: 2, tag, .. }] = io.replies()[..] else { panic!("one transfer") };
    rig.sink.credits = 0;
    let (discard, mut ranges) = (Sqe::new(0x09, 5, 1, Sgl::Capsule(4096)).dword(11, 0b100), vec![0; 4096]);
    ranges[4] = 8;
    assert_eq!(begin(&mut rig, &mut io, read(3, 0, 8), &[]), Wait::Credits);
    assert_eq!(begin(&mut rig, &mut io, write(4, 0, 8, true), &[4; 4096]), Wait::Credits);
    assert_eq!(begin(&mut rig, &mut io, discard, &ranges), Wait::Credits);
    rig.subsystem.set_access(VOLUME, Access::Inaccessible).unwrap();
    let out = rig.sink.ios.pop().expect("the read");
    assert_eq!((out.op, rig.sink.ios.len()), (Op::Read, 0));
    let refused: Vec<_> = rig.run(&mut io).iter().map(|reply| format!("{reply:?}")).collect();
    assert_eq!(refused, [3, 4, 5].map(|id| format!("Done {id} 0x302 false 0x0")));
    rig.answer(&mut io, out);
    assert!(matches!(
        rig.run(&mut io)[..],
        [Reply::Data { id: 1, .. }, Reply::Done { id: 1, status: 0, .. }]
    ));
    let late = rig.exchange(&mut io, &PLAIN.data(2, tag, 0, &[2; 32 * 512], true));
    assert!(matches!(late[..], [Reply::Done { id: 2, status: 0x302, do_not_retry: false, .. }]), "{late:?}");
    assert!(rig.sink.ios.is_empty() && io.queue.outstanding() == 0);
    // The host is told, once, and where to read.
    let told = rig.run(&mut admin);
    assert!(matches!(told[..], [Reply::Done { id: 50, status: 0, result: 0x0c_03_02, .. }]), "{told:?}");
    assert_eq!(rig.ask(&mut admin, Sqe::new(0x0c, 51, 0, Sgl::Host(0)), &[]), []);
    rig.subsystem.set_access(VOLUME, Access::Optimized).unwrap();
    assert_eq!(rig.run(&mut admin), [], "it has not read the log");
    let replies = rig.ask(&mut admin, log_page(1, 0x0c, 0, 52), &[]);
    assert!(
        matches!(replies[..], [Reply::Data { .. }, Reply::Done { .. }, Reply::Done { id: 51, .. }]),
        "what came meanwhile: {replies:?}"
    );
    rig.sink.credits = usize::MAX;
    assert_eq!(rig.data(&mut io, read(1, 0, 8)).len(), 4096);
    rig.finish(vec![admin, io]);
}

#[test]
fn a_range_that_is_not_begun_when_access_changes_is_not_begun_at_all() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(PLAIN, 0);
    let (discard, mut ranges) =
        (Sqe::new(0x09, 5, 1, Sgl::Capsule(4096)).dword(10, 1).dword(11, 4), vec![0; 4096]);
    (ranges[4], ranges[20], ranges[24]) = (8, 8, 8);
    rig.sink.credits = 1;
    assert_eq!(begin(&mut rig, &mut io, discard, &ranges), Wait::Credits);
    rig.subsystem.set_access(VOLUME, Access::Change).unwrap();
    rig.sink.credits = 1;
    rig.step(&mut io);
    let out = rig.sink.ios.pop().expect("the first range");
    assert!(rig.sink.ios.is_empty(), "the second is not handed out");
    rig.answer(&mut io, out);
    let replies = rig.run(&mut io);
    assert!(
        matches!(replies[..], [Reply::Done { id: 5, status: 0x303, do_not_retry: false, .. }]),
        "{replies:?}"
    );
    rig.finish(vec![admin, io]);
}

#[test]
fn a_namespace_that_goes_is_told_of_and_refused() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    assert_eq!(
        rig.status(&mut admin, Sqe::new(9, 1, 0, Sgl::Host(0)).dword(10, 0xb).dword(11, 1 << 8), &[]),
        0
    );
    assert_eq!(rig.ask(&mut admin, Sqe::new(0x0c, 50, 0, Sgl::Host(0)), &[]), []);
    rig.sink.credits = 0;
    assert_eq!(begin(&mut rig, &mut io, read(3, 0, 8), &[]), Wait::Credits);
    rig.subsystem.remove(VOLUME).unwrap();
    assert_eq!(rig.subsystem.remove(VOLUME), Err(Unknown(VOLUME)));
    let replies = rig.run(&mut io);
    assert!(matches!(replies[..], [Reply::Done { id: 3, status: INVALID_FIELD, do_not_retry: true, .. }]));
    assert_eq!(statuses(&mut rig, &mut io), [(INVALID_FIELD, true); 7]);
    let told = rig.run(&mut admin);
    assert!(matches!(told[..], [Reply::Done { id: 50, status: 0, result: 0x04_00_02, .. }]), "{told:?}");
    assert_eq!(u32_at(&rig.data(&mut admin, log_page(1, 4, 0, 4096)), 0), 1, "that one has changed");
    assert_eq!(rig.data(&mut admin, identify(1, 2, 0)), [0; 4096], "and is gone");
    assert_eq!(rig.data(&mut admin, identify(1, 0, 1)), [0; 4096], "its number is inactive");
    assert_eq!(rig.data(&mut admin, log_page(1, 0x0c, 0, 16))[8], 0, "no groups are left");
    assert_eq!(u32_at(&rig.data(&mut admin, identify(1, 1, 0)), 516), 256, "NN stays");
    rig.finish(vec![admin, io]);
}

#[test]
fn nodes_that_serve_one_subsystem_have_controllers_of_their_own() {
    let numbers = |controller_first, controllers_max: u16| {
        let limits = SubsystemLimits { controller_first, controllers_max, ..SubsystemLimits::default() };
        let mut rig = Rig::with(Hosts::Any, limits, false, 8);
        let all: Vec<_> = (0..2).map(|_| rig.admin(PLAIN)).collect();
        let (conns, mut numbers): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let (mut third, reply) = rig.connect(PLAIN, ADMIN);
        if let Reply::Done { status: 0, result, .. } = reply {
            numbers.push(result as u16);
        }
        rig.end(&mut third);
        rig.finish(conns.into_iter().chain([third]).collect());
        numbers
    };
    assert_eq!(numbers(1, 2), [1, 2]);
    assert_eq!(numbers(1001, 16), [1001, 1002, 1003]);
    assert_eq!(numbers(CONTROLLER_LAST - 1, 16), [0xffee, 0xffef], "no number is above the last");
    assert_eq!(numbers(0, 16), [1, 2, 3]);
}

#[test]
fn a_standby_shows_the_namespace_from_its_configuration() {
    let image = nvme_common::common::Image::new(8 << 20, block::BlockSize::B512);
    let namespace = Namespace::new(VOLUME, image.block_size, image.blocks(), IDENTITY, false).unwrap();
    let namespace = namespace.with_access(Access::Inaccessible);
    let subsystem = Subsystem::new(NQN, "serial", Hosts::Any, vec![namespace], SubsystemLimits::default());
    let mut rig = Rig::of(subsystem.unwrap(), image, 8);
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    assert_eq!(state(&mut rig, &mut admin), (0, 0, 3));
    assert_eq!(rig.data(&mut admin, identify(1, 0, 1))[104..120], IDENTITY);
    assert_eq!(u32_at(&rig.data(&mut admin, identify(1, 2, 0)), 0), 1, "it is active");
    assert_eq!(rig.status(&mut io, read(1, 0, 1), &[]), 0x302);
    rig.finish(vec![admin, io]);
}
