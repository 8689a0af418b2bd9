//! The admin queue: properties, Identify, logs, features, events, keep-alive, and the discovery controller.

mod nvme_common;

use block::BlockSize;
use nvme_common::common::Image;
use nvme_common::{
    ADMIN, Agreed, Conn, DISCOVERY, HOST, IDENTITY, NQN, Reply, Rig, Sgl, Sqe, VOLUME, Wish, identify,
    log_page, property_get, property_set, read, write,
};
use session::nvme_tcp::{Hosts, Listed, QueueError, Subsystem, SubsystemLimits};

const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };

fn result(rig: &mut Rig, conn: &mut Conn, command: Sqe) -> u64 {
    let replies = rig.ask(conn, command, &[]);
    let [Reply::Done { status: 0, result, .. }] = replies[..] else { panic!("{replies:?}") };
    result
}

fn set_features(id: u16, feature: u32, value: u32) -> Sqe {
    Sqe::new(0x09, id, 0, Sgl::Host(0)).dword(10, feature).dword(11, value)
}

fn get_features(id: u16, feature: u32) -> Sqe {
    Sqe::new(0x0a, id, 0, Sgl::Host(0)).dword(10, feature)
}

fn event_request(id: u16) -> Sqe {
    Sqe::new(0x0c, id, 0, Sgl::Host(0))
}

fn abort(id: u16, queue: u32, other: u32) -> Sqe {
    Sqe::new(0x08, id, 0, Sgl::Host(0)).dword(10, queue | other << 16)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn properties_enable_shut_down_and_reset_a_controller() {
    let mut rig = Rig::new();
    let (mut admin, _) = rig.connect(PLAIN, ADMIN);
    let capabilities = result(&mut rig, &mut admin, property_get(1, 0x00, true));
    // 256 places, contiguous queues, 15 s, command set NVM, pages of 4 KiB, ready with media.
    assert_eq!(capabilities, 255 | 1 << 16 | 30 << 24 | 1 << 37 | 1 << 59);
    assert_eq!(result(&mut rig, &mut admin, property_get(1, 0x68, false)), 30, "15 s until that");
    assert_eq!(result(&mut rig, &mut admin, property_get(1, 0x08, false)), 0x0002_0000);
    assert_eq!(rig.status(&mut admin, identify(2, 1, 0), &[]), 0x00c, "not enabled");
    // An entry size that is none.
    assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0x0047_0001), &[]), 0);
    assert_eq!(result(&mut rig, &mut admin, property_get(1, 0x1c, false)), 0b10, "fatal");
    assert_eq!(rig.status(&mut admin, identify(2, 1, 0), &[]), 0x00c);
    assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0), &[]), 0);
    assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0x0046_0001), &[]), 0);
    assert_eq!(result(&mut rig, &mut admin, property_get(1, 0x14, false)), 0x0046_0001);
    assert_eq!(result(&mut rig, &mut admin, property_get(1, 0x1c, false)), 1);
    assert_eq!(rig.data(&mut admin, identify(2, 1, 0)).len(), 4096);
    let (mut io, _) = rig.connect(PLAIN, Wish::io(1, 1));
    assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0x0046_4001), &[]), 0);
    assert_eq!(result(&mut rig, &mut admin, property_get(1, 0x1c, false)), 0b1001, "shut down");
    assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0x0046_0000), &[]), 0);
    assert_eq!(result(&mut rig, &mut admin, property_get(1, 0x1c, false)), 0);
    assert_eq!(rig.status(&mut io, read(1, 0, 1), &[]), 0x00c);
    assert_eq!(io.queue.expire(&rig.subsystem, 1), Err(QueueError::Gone));
    for refused in [
        property_get(1, 0x00, false),
        property_get(1, 0x08, true),
        property_get(1, 0x20, false),
        property_get(1, 0x68, true),
        property_set(1, 0x68, 1),
        property_set(1, 0x1c, 1),
        property_set(1, 0x14, 1).dword(10, 1),
        property_get(1, 0x14, false).dword(10, 2),
    ] {
        assert_eq!(rig.status(&mut admin, refused, &[]), 0x002);
    }
    rig.finish(vec![admin, io]);
}

#[test]
fn identify_says_what_linux_asks_for() {
    let mut rig = Rig::new();
    let (mut admin, controller) = rig.admin(PLAIN);
    let page = rig.data(&mut admin, identify(2, 1, 0));
    assert_eq!(&page[4..24], b"serial              ");
    assert_eq!(&page[24..40], b"Tidegate volume ");
    assert_eq!((page[76], page[77], u16_at(&page, 78), u32_at(&page, 80)), (0b1010, 8, controller, 0x2_0000));
    assert_eq!(
        (u32_at(&page, 92), u32_at(&page, 96), page[111]),
        (1 << 8 | 1 << 11, 1, 1),
        "OAES, CTRATT, I/O"
    );
    assert_eq!((page[342], page[343]), (30, 0b101_1111), "ANATT, ANACAP");
    assert_eq!((u32_at(&page, 344), u32_at(&page, 348), u32_at(&page, 540)), (256, 256, 256), "groups, MNAN");
    assert_eq!((page[259], page[261], page[262]), (3, 0b110, 63), "AERL, LPA, ELPE");
    assert_eq!(u16_at(&page, 320), 10, "KAS");
    assert_eq!((page[512], page[513], u16_at(&page, 514), u32_at(&page, 516)), (0x66, 0x44, 256, 256));
    assert_eq!((u16_at(&page, 520), page[525]), (0b1101, 0b101), "ONCS, VWC");
    assert_eq!(u32_at(&page, 536), 0b01 | 1 << 20 | 1 << 21, "SGLs, without alignment, both kinds");
    assert_eq!(&page[768..768 + NQN.len() + 1], [NQN.as_bytes(), &[0]].concat());
    assert_eq!((u32_at(&page, 1792), u32_at(&page, 1796)), ((64 + 8192) / 16, 1), "IOCCSZ, IORCSZ");
    assert_eq!((page[1803], page[1804]), (1, 1), "MSDBD, OFCS");

    let page = rig.data(&mut admin, identify(3, 0, 1));
    assert_eq!([0, 8, 16].map(|at| u64_at(&page, at)), [rig.image.blocks(); 3]);
    assert_eq!((page[24], page[25], page[26], page[30], page[33], page[99]), (1 << 4, 0, 0, 1, 0b1001, 0));
    assert_eq!(u32_at(&page, 92), 1, "ANAGRPID");
    assert_eq!((u16_at(&page, 64), &page[104..120], u32_at(&page, 128)), (7, &IDENTITY[..], 9 << 16));
    let list = rig.data(&mut admin, identify(4, 2, 0));
    assert_eq!((u32_at(&list, 0), &list[4..]), (1, &[0; 4092][..]));
    assert_eq!(rig.data(&mut admin, identify(4, 2, 1)), [0; 4096]);
    assert_eq!(rig.data(&mut admin, identify(4, 7, 0)), list);
    let names = rig.data(&mut admin, identify(5, 3, 1));
    assert_eq!((&names[..4], &names[4..20]), (&[2, 16, 0, 0][..], &IDENTITY[..]));
    assert_eq!(&names[20..24], [3, 16, 0, 0]);
    assert_eq!((names[24], names[24 + 6] >> 4, names[24 + 8] >> 6), (0xa1, 8, 0b10), "a UUID of version 8");
    assert_eq!((&names[40..46], &names[46..]), (&[4, 1, 0, 0, 0, 0][..], &[0; 4050][..]));
    assert_eq!(rig.data(&mut admin, identify(6, 8, 1))[14], 1, "ready");
    assert_eq!(rig.data(&mut admin, identify(6, 0x1c, 0))[0], 1, "NVM");
    for cns in [5, 6] {
        assert_eq!(rig.data(&mut admin, identify(6, cns, 1)), [0; 4096]);
        assert_eq!(rig.status(&mut admin, identify(6, cns, 1).dword(11, 2 << 24), &[]), 0x002, "zoned");
    }
    for (cns, namespace, status) in [
        (0, 257, 0x00b),
        (0, u32::MAX, 0x00b),
        (3, 0, 0x00b),
        (8, 257, 0x00b),
        (3, 2, 0x002),
        (2, u32::MAX, 0x00b),
        (0x13, 1, 2),
    ] {
        assert_eq!(rig.status(&mut admin, identify(7, cns, namespace), &[]), status, "{cns} {namespace}");
    }
    rig.finish(vec![admin]);
}

#[test]
fn logs_are_read_from_any_offset() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    let supported = rig.data(&mut admin, log_page(1, 0, 0, 1024));
    let listed: Vec<_> = (0..256).filter(|i| supported[4 * i] == 1).collect();
    assert_eq!(listed, [0, 1, 2, 3, 4, 5, 0xc, 0x12]);
    let features = rig.data(&mut admin, log_page(1, 0x12, 0, 1024));
    let listed: Vec<_> = (0..256).filter(|i| features[4 * i] == 1).collect();
    assert_eq!(listed, [1, 2, 4, 5, 6, 7, 0xa, 0xb, 0xf, 0x81]);
    assert_eq!(rig.data(&mut admin, log_page(1, 1, 0, 4096)), [0; 4096], "no errors");
    assert_eq!(rig.status(&mut io, write(1, 0, 16, true), &[1; 8192]), 0);
    assert_eq!(rig.status(&mut io, write(1, 0, 2000, false), &[1; 1_024_000]), 0);
    assert_eq!(rig.data(&mut io, read(1, 0, 1)).len(), 512);
    rig.now_ns += 2 * 3_600_000_000_000;
    let health = rig.data(&mut admin, log_page(1, 2, 0, 512));
    assert_eq!((health[0], health[3]), (0, 100));
    let numbers = [32, 48, 64, 80, 128].map(|at| u64_at(&health, at));
    assert_eq!(numbers, [1, 3, 1, 2, 2], "thousands of 512 bytes read and written, reads, writes, hours");
    let all = log_page(1, 2, 0, 512);
    let by_number = Sqe(all.0).dword(1, u32::MAX);
    assert_eq!(rig.data(&mut admin, by_number), health);
    assert_eq!(rig.status(&mut admin, all.dword(1, 1), &[]), 0x002, "not kept by namespace");
    assert_eq!(rig.status(&mut admin, all.dword(1, 257), &[]), 0x00b);
    let firmware = rig.data(&mut admin, log_page(1, 3, 0, 512));
    assert_eq!((firmware[0], firmware[8].is_ascii_digit()), (1, true));
    let effects = rig.data(&mut admin, log_page(1, 5, 0, 4096));
    let io_commands: Vec<_> =
        (0..256).map(|i| effects[1024 + 4 * i]).enumerate().filter(|e| e.1 != 0).collect();
    assert_eq!(io_commands, [(0, 1), (1, 3), (2, 1), (5, 1), (8, 3), (9, 3), (0x7f, 1)]);
    assert_eq!(rig.data(&mut admin, log_page(1, 5, 1024, 64)), effects[1024..1088]);
    assert_eq!(rig.data(&mut admin, log_page(1, 5, 4092, 8))[4..], [0; 4], "nothing beyond the end");
    for (command, status) in [
        (log_page(1, 5, 4100, 8), 0x002),
        (log_page(1, 5, 2, 8), 0x002),
        (log_page(1, 5, 0, 8).dword(14, 1 << 23), 0x002),
        (log_page(1, 0x70, 0, 1024), 0x109),
        (log_page(1, 0x0d, 0, 1024), 0x109),
        (Sqe::new(2, 1, 0, Sgl::Host(1 << 21)).dword(10, 1 | 0xffff << 16).dword(11, 7), 0x002),
    ] {
        assert_eq!(rig.status(&mut admin, command, &[]), status);
    }
    rig.finish(vec![admin, io]);
}

#[test]
fn features_are_kept_until_the_controller_is_reset() {
    let mut rig = Rig::new();
    let (mut admin, controller) = rig.admin(PLAIN);
    assert_eq!(result(&mut rig, &mut admin, get_features(1, 7)), 63 << 16 | 63);
    assert_eq!(result(&mut rig, &mut admin, set_features(1, 7, 3 << 16 | 5)), 3 << 16 | 3, "4 queues");
    assert_eq!(result(&mut rig, &mut admin, set_features(1, 7, 500 << 16 | 500)), 63 << 16 | 63);
    for (feature, value) in [(1, 0x0201_0003), (4, 0x163), (5, 9), (6, 0), (0xa, 1), (0xb, 0x100)] {
        assert_eq!(result(&mut rig, &mut admin, set_features(1, feature, value)), 0);
        assert_eq!(result(&mut rig, &mut admin, get_features(1, feature)), u64::from(value), "{feature}");
    }
    assert_eq!(result(&mut rig, &mut admin, set_features(1, 0xf, 2500)), 0);
    assert_eq!(result(&mut rig, &mut admin, get_features(1, 0xf)), 3000, "in steps of a second");
    assert_eq!(result(&mut rig, &mut admin, set_features(1, 2, 0)), 0);
    assert_eq!(result(&mut rig, &mut admin, get_features(1, 2)), 0);
    let host = Sqe::new(0x0a, 1, 0, Sgl::Host(16)).dword(10, 0x81).dword(11, 1);
    assert_eq!(rig.data(&mut admin, host), [0x5c; 16]);
    for (command, status) in [
        (host.dword(11, 0), 0x002),
        (get_features(1, 0x0c), 0x002),
        (set_features(1, 2, 1), 0x002),
        (set_features(1, 7, 0xffff), 0x002),
        (set_features(1, 0x10, 0), 0x002),
        (set_features(1, 6 | 1 << 31, 1), 0x10d),
        (set_features(1, 0x81, 1), 0x00c),
    ] {
        assert_eq!(rig.status(&mut admin, command, &[]), status);
    }
    // Without a cache every write is durable when it is answered.
    let (mut io, _) = rig.connect(PLAIN, Wish::io(1, controller));
    io.queue.process_bytes(&PLAIN.capsule(write(1, 0, 1, true), &[1; 512]), &mut rig.pool, 1);
    rig.step(&mut io);
    let out = rig.sink.ios.pop().unwrap();
    assert_eq!(out.op, block::Op::Write { fua: true });
    rig.answer(&mut io, out);
    assert_eq!(rig.status(&mut admin, set_features(1, 7, 0), &[]), 0x00c, "there is a queue");
    assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0x0046_0000), &[]), 0);
    assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0x0046_0001), &[]), 0);
    assert_eq!(result(&mut rig, &mut admin, get_features(1, 6)), 1);
    rig.finish(vec![io, admin]);
}

#[test]
fn events_are_told_once_until_their_log_is_read() {
    let mut rig = Rig::new();
    let (mut admin, _) = rig.admin(PLAIN);
    assert_eq!(rig.ask(&mut admin, event_request(50), &[]), []);
    rig.subsystem.resize(VOLUME, 100).unwrap();
    // As soon as it does, it hears of the change, and where to read.
    let replies = rig.ask(&mut admin, set_features(1, 0xb, 1 << 8), &[]);
    let [Reply::Done { id: 1, .. }, Reply::Done { id: 50, status: 0, result: 0x04_00_02, .. }] = replies[..]
    else {
        panic!("{replies:?}")
    };
    rig.finish(vec![admin]);

    let mut rig = Rig::new();
    let (mut admin, _) = rig.admin(PLAIN);
    assert_eq!(result(&mut rig, &mut admin, set_features(1, 0xb, 1 << 8)), 0);
    for id in 50..54 {
        assert_eq!(rig.ask(&mut admin, event_request(id), &[]), []);
    }
    assert_eq!(rig.status(&mut admin, event_request(54), &[]), 0x105);
    assert_eq!(rig.status(&mut admin, event_request(50), &[]), 0x003, "that one still waits");
    rig.subsystem.resize(VOLUME, 100).unwrap();
    let told =
        |id| Reply::Done { id, status: 0, do_not_retry: false, result: 0x04_00_02, more: false, head: 0 };
    let without_head = |mut replies: Vec<Reply>| {
        for reply in &mut replies {
            if let Reply::Done { head, .. } = reply {
                *head = 0;
            }
        }
        replies
    };
    assert_eq!(without_head(rig.run(&mut admin)), [told(50)]);
    rig.subsystem.resize(VOLUME, 300).unwrap();
    assert_eq!(rig.run(&mut admin), [], "the host has not read the log");
    let keep = rig.data(&mut admin, log_page(1, 4 | 1 << 15, 0, 4096));
    assert_eq!((u32_at(&keep, 0), u32_at(&keep, 4)), (1, 0));
    assert_eq!(rig.run(&mut admin), []);
    assert_eq!(rig.data(&mut admin, log_page(1, 4, 0, 4096)), keep);
    assert_eq!(rig.run(&mut admin), [], "that was in the log already");
    assert_eq!(rig.data(&mut admin, log_page(1, 4, 0, 4096)), [0; 4096]);
    assert_eq!(u64_at(&rig.data(&mut admin, identify(3, 0, 1)), 0), 300);
    rig.subsystem.resize(VOLUME, 400).unwrap();
    assert_eq!(without_head(rig.run(&mut admin)), [told(51)]);
    // A request is taken back; other commands are not, and that is said.
    let replies = without_head(rig.ask(&mut admin, abort(7, 0, 52), &[]));
    let aborted = Reply::Done { id: 52, status: 0x007, do_not_retry: false, result: 0, more: false, head: 0 };
    let done = Reply::Done { id: 7, status: 0, do_not_retry: false, result: 0, more: false, head: 0 };
    assert_eq!(replies, [aborted, done]);
    assert_eq!(result(&mut rig, &mut admin, abort(7, 0, 52)), 1);
    assert_eq!(rig.status(&mut admin, abort(7, 3, 52), &[]), 0x002, "no such queue");
    rig.finish(vec![admin]);
}

#[test]
fn a_host_that_is_silent_for_too_long_loses_its_controller() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    let second = 1_000_000_000;
    let keep_alive = Sqe::new(0x18, 1, 0, Sgl::Host(0));
    for _ in 0..4 {
        rig.now_ns += 4 * second;
        rig.subsystem.expire(rig.now_ns);
        assert_eq!(rig.status(&mut admin, keep_alive, &[]), 0);
        assert_eq!(rig.status(&mut io, nvme_common::flush(1), &[]), 0);
    }
    // Commands on other queues say nothing about the host.
    rig.now_ns += 5 * second + 1;
    assert_eq!(rig.status(&mut io, nvme_common::flush(1), &[]), 0);
    rig.subsystem.expire(rig.now_ns);
    assert_eq!(rig.subsystem.controllers(), 0);
    for conn in [&mut admin, &mut io] {
        assert_eq!(conn.queue.expire(&rig.subsystem, rig.now_ns), Err(QueueError::Gone));
    }
    rig.finish(vec![admin, io]);

    let mut rig = Rig::new();
    let (conn, _) = rig.connect(PLAIN, Wish { keep_alive_ms: 0, ..ADMIN });
    rig.subsystem.expire(u64::MAX);
    assert_eq!(rig.subsystem.controllers(), 1, "a host may be silent for ever");
    rig.finish(vec![conn]);
}

#[test]
fn a_controller_goes_with_its_admin_queue_and_its_number_comes_back_last() {
    let limits = SubsystemLimits { controllers_max: 3, queues_max: 2, ..SubsystemLimits::default() };
    let mut rig = Rig::with(Hosts::Any, limits, false, 8);
    let mut numbers = Vec::new();
    for _ in 0..5 {
        let (mut admin, controller) = rig.admin(PLAIN);
        let (mut io, _) = rig.connect(PLAIN, Wish::io(2, controller));
        assert_eq!(rig.data(&mut io, read(1, 0, 1)).len(), 512);
        assert_eq!(io.queue.expire(&rig.subsystem, 1), Ok(()));
        rig.end(&mut admin);
        assert_eq!(io.queue.expire(&rig.subsystem, 1), Err(QueueError::Gone));
        rig.end(&mut io);
        numbers.push(controller);
    }
    assert_eq!(numbers, [1, 2, 3, 1, 2]);
    rig.finish(vec![]);
}

#[test]
fn disconnect_ends_an_io_queue_and_no_other() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    let disconnect = Sqe::new(0x7f, 9, 8, Sgl::Host(0));
    assert_eq!(rig.status(&mut admin, disconnect, &[]), 0x185);
    assert!(!io.queue.is_finished());
    assert_eq!(rig.status(&mut io, disconnect, &[]), 0);
    assert!(io.queue.is_finished());
    rig.end(&mut io);
    let (again, reply) = rig.connect(PLAIN, Wish::io(1, 1));
    assert!(matches!(reply, Reply::Done { status: 0, .. }), "{reply:?}");
    rig.finish(vec![admin, io, again]);
}

#[test]
fn unknown_commands_are_refused_for_good() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    let known = [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f];
    for opcode in (0..=255).filter(|opcode| !known.contains(opcode)) {
        let replies = rig.ask(&mut admin, Sqe::new(opcode, 1, 1, Sgl::Host(0)), &[]);
        assert!(matches!(replies[..], [Reply::Done { status: 1, do_not_retry: true, .. }]), "{opcode:#x}");
    }
    let known = [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x7f];
    for opcode in (0..=255).filter(|opcode| !known.contains(opcode)) {
        let replies = rig.ask(&mut io, Sqe::new(opcode, 1, 1, Sgl::Host(0)), &[]);
        assert!(matches!(replies[..], [Reply::Done { status: 1, do_not_retry: true, .. }]), "{opcode:#x}");
    }
    for conn in [&mut admin, &mut io] {
        for (kind, status) in [(5, 0x001), (1, 0x00c), (0xc0, 0x001)] {
            assert_eq!(rig.status(conn, Sqe::new(0x7f, 1, kind, Sgl::Host(0)), &[]), status);
        }
    }
    assert_eq!(rig.status(&mut io, property_get(1, 0, true), &[]), 0x001, "of the admin queue only");
    rig.finish(vec![admin, io]);
}

fn listed(name: &str, hosts: Hosts) -> Listed {
    Listed { nqn: format!("nqn.2026-11.example.storage:{name}"), hosts }
}

#[test]
fn the_discovery_controller_tells_each_host_what_it_may_attach_to() {
    let only = |host: &str| Hosts::Only(vec![host.to_owned()]);
    let all =
        vec![listed("a", Hosts::Any), listed("b", only("nqn.2026-11.x:other")), listed("c", only(HOST))];
    let subsystem = Subsystem::discovery(all, SubsystemLimits::default());
    assert_eq!(subsystem.nqn(), DISCOVERY);
    let mut rig = Rig::of(subsystem, Image::new(4096, BlockSize::B512), 8);
    let wish = Wish { subsystem: DISCOVERY, ..ADMIN };
    let (mut conn, _) = rig.connect(PLAIN, wish);
    // Linux leaves the sizes of entries as they are for I/O; others may not set them at all.
    assert_eq!(rig.status(&mut conn, property_set(1, 0x14, 1), &[]), 0);
    let page = rig.data(&mut conn, identify(1, 1, 0));
    assert_eq!((page[76], page[342], u32_at(&page, 344)), (0, 0, 0), "no access states");
    assert_eq!((page[111], u32_at(&page, 92), u32_at(&page, 516), page[261]), (2, 1 << 31, 0, 4));
    assert_eq!(&page[768..768 + DISCOVERY.len()], DISCOVERY.as_bytes());
    assert_eq!(rig.status(&mut conn, identify(1, 2, 0), &[]), 0x002);
    let head = rig.data(&mut conn, log_page(1, 0x70, 0, 16));
    assert_eq!((u64_at(&head, 0), u64_at(&head, 8)), (1, 2));
    let log = rig.data(&mut conn, log_page(1, 0x70, 0, 3 * 1024));
    assert_eq!(log[..16], head);
    for (at, name) in [(1024, "a"), (2048, "c")] {
        let entry = &log[at..at + 1024];
        assert_eq!(entry[..4], [3, 1, 2, 0b100], "TCP, IPv4, NVM subsystem");
        assert_eq!((u16_at(entry, 6), u16_at(entry, 8)), (0xffff, 32));
        assert_eq!(&entry[32..40], b"4420    ");
        let nqn = listed(name, Hosts::Any).nqn;
        assert_eq!(&entry[256..256 + nqn.len() + 1], [nqn.as_bytes(), &[0]].concat());
        assert_eq!(&entry[512..524], b"192.0.2.7   ");
    }
    assert_eq!(
        rig.data(&mut conn, log_page(1, 0x70, 1020, 2056)),
        log[1020..3072].iter().chain(&[0; 4]).copied().collect::<Vec<_>>()
    );
    assert_eq!(rig.status(&mut conn, log_page(1, 0x70, 4096, 4), &[]), 0x002);
    assert_eq!(rig.status(&mut conn, log_page(1, 2, 0, 512), &[]), 0x109);
    // A change is told, with where to read.
    assert_eq!(result(&mut rig, &mut conn, set_features(1, 0xb, 1 << 31)), 0);
    assert_eq!(rig.ask(&mut conn, event_request(60), &[]), []);
    rig.subsystem.list(vec![listed("a", Hosts::Any)]);
    let replies = rig.run(&mut conn);
    assert!(
        matches!(replies[..], [Reply::Done { id: 60, status: 0, result: 0x70_f0_02, .. }]),
        "{replies:?}"
    );
    let head = rig.data(&mut conn, log_page(1, 0x70, 0, 16));
    assert_eq!((u64_at(&head, 0), u64_at(&head, 8)), (2, 1));
    rig.subsystem.list(vec![listed("a", Hosts::Any)]);
    assert_eq!(rig.data(&mut conn, log_page(1, 0x70, 0, 16)), head, "nothing changed");
    for command in [get_features(1, 7), set_features(1, 6, 0)] {
        assert_eq!(rig.status(&mut conn, command, &[]), 0x002);
    }
    let abort = rig.status(&mut conn, abort(1, 0, 60), &[]);
    assert_eq!(abort, 0x001);
    let (mut refused, reply) = rig.connect(PLAIN, Wish { queue: 1, ..Wish { controller: 1, ..wish } });
    assert!(matches!(reply, Reply::Done { status: 0x182, result: 42, .. }), "{reply:?}");
    rig.end(&mut refused);
    rig.finish(vec![conn]);
}
