//! The log of errors: what is said of a command that failed, how many are kept, and that other figures agree.

mod nvme_common;

use block::{Done, ExtentId, Lba, Status};
use nvme_common::{
    Agreed, Conn, DISCOVERY, Reply, Rig, Sgl, Sqe, identify, log_page, property_get, property_set, read,
    write,
};
use session::nvme_tcp::{Subsystem, SubsystemLimits};

const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };
const NO_FIELD: u16 = 0xffff;

/// What the log says: count, queue, command, status with its flags, byte of the command, block, namespace.
type Entry = (u64, u16, u16, u16, u16, u64, u32);

fn entry(octets: &[u8]) -> Entry {
    let number = |at: usize, bytes: usize| {
        octets[at..at + bytes].iter().rev().fold(0_u64, |number, &octet| number << 8 | u64::from(octet))
    };
    assert_eq!(octets[28..], [0; 36], "nothing of vendors, no transport, nothing more");
    let [queue, command, status, field] = [8, 10, 12, 14].map(|at| number(at, 2) as u16);
    (number(0, 8), queue, command, status, field, number(16, 8), number(24, 4) as u32)
}

/// The entries that are there, the newest first, with nothing behind them.
fn log(rig: &mut Rig, admin: &mut Conn) -> Vec<Entry> {
    let log = rig.data(admin, log_page(1, 1, 0, 4096));
    let entries: Vec<_> = log.chunks(64).map(entry).take_while(|entry| entry.0 != 0).collect();
    assert!(log[entries.len() * 64..].iter().all(|octet| *octet == 0));
    entries
}

/// The two figures of the health log: media errors, and errors that there were.
fn figures(rig: &mut Rig, admin: &mut Conn) -> (u64, u64) {
    let health = rig.data(admin, log_page(1, 2, 0, 512));
    let number = |at: usize| u64::from_le_bytes(health[at..at + 8].try_into().unwrap());
    (number(160), number(176))
}

/// A command fails, and says that the log knows more. Returns its status.
fn fails(rig: &mut Rig, conn: &mut Conn, command: Sqe, payload: &[u8]) -> u16 {
    let replies = rig.ask(conn, command, payload);
    let [Reply::Done { status, do_not_retry: true, more: true, .. }] = replies[..] else {
        panic!("{replies:?}")
    };
    status
}

/// Status Field as it was posted: M and DNR are set.
fn posted(status: u16) -> u16 {
    status << 1 | 0b11 << 14
}

#[test]
fn what_failed_is_in_the_log_with_where_and_why() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    assert_eq!(log(&mut rig, &mut admin), []);
    let end = rig.image.blocks();
    let mut wanted = Vec::new();
    // Of I/O commands: what is wrong, in which byte, the block, the namespace.
    for (command, payload, status, field, lba, namespace) in [
        (read(11, end, 1), vec![], 0x080, 40, end, 1),
        (read(12, 7, 1).dword(1, 5), vec![], 0x002, 4, 7, 5),
        (read(13, 0, 1).dword(1, 999), vec![], 0x00b, 4, 0, 999),
        (write(14, 3, 1, true).byte(1, 0x41), vec![1; 512], 0x002, 1, 3, 1),
        (Sqe::new(0x55, 15, 1, Sgl::Host(0)).range(9, 1), vec![], 0x001, 0, 0, 1),
        (Sqe::new(0x02, 16, 1, Sgl::Host(4096)).range(4, 1), vec![], 0x00f, 32, 4, 1),
        (Sqe::new(0x05, 17, 1, Sgl::Capsule(512)).range(6, 1), vec![9; 512], 0x285, NO_FIELD, 6, 1),
    ] {
        let id = u16::from_le_bytes([command.0[2], command.0[3]]);
        assert_eq!(fails(&mut rig, &mut io, command, &payload), status);
        wanted.insert(0, (wanted.len() as u64 + 1, 1, id, posted(status), field, lba, namespace));
        assert_eq!(log(&mut rig, &mut admin), wanted, "{status:#x}");
    }
    // Of the admin queue, and of Fabrics, whose commands have no namespace.
    for (command, status, field, namespace) in [
        (identify(21, 0x13, 1), 0x002, 40, 1),
        (log_page(22, 0x0d, 0, 64), 0x109, 40, 0),
        (log_page(25, 0x02, 0, 64).dword(1, 5), 0x002, 4, 5),
        (Sqe::new(0x0a, 23, 0, Sgl::Host(0)).dword(10, 0x44), 0x002, 40, 0),
        (property_get(24, 0x20, false), 0x002, NO_FIELD, 0),
    ] {
        let id = u16::from_le_bytes([command.0[2], command.0[3]]);
        assert_eq!(fails(&mut rig, &mut admin, command, &[]), status);
        wanted.insert(0, (wanted.len() as u64 + 1, 0, id, posted(status), field, 0, namespace));
        assert_eq!(log(&mut rig, &mut admin), wanted, "{status:#x}");
    }
    assert_eq!(figures(&mut rig, &mut admin), (0, 12));
    // The place that the volume names, where it is a block of the command.
    for (lba, said) in [(24, 24), (8, 20)] {
        io.queue.process_bytes(&PLAIN.capsule(read(31, 20, 16), &[]), &mut rig.pool, 1);
        rig.step(&mut io);
        let out = rig.sink.ios.pop().unwrap();
        let status = Status::Corrupt { lba: Lba(lba), extent: ExtentId(0), offset: 0 };
        let done = Done { volume: out.volume, tag: out.tag, status, zeroes: false, buffer: out.buffer };
        assert!(!io.queue.wants_step());
        io.queue.complete(done, &mut rig.pool).unwrap();
        assert!(io.queue.wants_step(), "the controller is to be told");
        assert!(matches!(rig.run(&mut io)[..], [Reply::Done { status: 0x281, more: true, .. }]));
        let newest = log(&mut rig, &mut admin)[0];
        assert_eq!((newest.3, newest.4, newest.5), (posted(0x281), NO_FIELD, said));
    }
    assert_eq!(figures(&mut rig, &mut admin), (2, 14));
    // What succeeds leaves nothing there.
    assert!(matches!(
        rig.ask(&mut io, write(1, 0, 1, true), &[1; 512])[..],
        [Reply::Done { more: false, .. }]
    ));
    assert_eq!(log(&mut rig, &mut admin).len(), 14);
    // Another host has a log of its own.
    let (mut other, _) = rig.admin(PLAIN);
    assert_eq!((log(&mut rig, &mut other), figures(&mut rig, &mut other)), (vec![], (0, 0)));
    rig.finish(vec![admin, io, other]);
}

#[test]
fn the_log_keeps_the_newest_and_a_reset_empties_it_and_counts_on() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(PLAIN, 0);
    for lba in 0..100 {
        assert_eq!(fails(&mut rig, &mut io, read(5, lba + (1 << 40), 1), &[]), 0x080);
    }
    let entries = log(&mut rig, &mut admin);
    let counts: Vec<u64> = entries.iter().map(|entry| entry.0).collect();
    assert_eq!(counts, (37..=100).rev().collect::<Vec<_>>());
    assert_eq!((entries[0].5, entries[63].5), (99 + (1 << 40), 36 + (1 << 40)));
    assert_eq!(rig.data(&mut admin, log_page(1, 1, 4032, 64))[..8], 37_u64.to_le_bytes());
    assert_eq!(figures(&mut rig, &mut admin), (0, 100));
    for value in [0x0046_0000, 0x0046_0001] {
        assert_eq!(rig.status(&mut admin, property_set(1, 0x14, value), &[]), 0);
    }
    assert_eq!((log(&mut rig, &mut admin), figures(&mut rig, &mut admin)), (vec![], (0, 100)));
    assert_eq!(fails(&mut rig, &mut admin, identify(9, 0x13, 1), &[]), 0x002);
    assert_eq!(log(&mut rig, &mut admin)[0].0, 101);
    rig.finish(vec![admin, io]);
}

#[test]
fn a_discovery_controller_has_a_log_of_errors_too() {
    let subsystem = Subsystem::discovery(Vec::new(), SubsystemLimits::default());
    let image = nvme_common::common::Image::new(4096, block::BlockSize::B512);
    let mut rig = Rig::of(subsystem, image, 8);
    let wish = nvme_common::Wish { subsystem: DISCOVERY, ..nvme_common::ADMIN };
    let (mut conn, _) = rig.connect(PLAIN, wish);
    assert_eq!(rig.status(&mut conn, property_set(1, 0x14, 1), &[]), 0);
    assert_eq!(rig.data(&mut conn, identify(1, 1, 0))[262], 63, "ELPE");
    assert_eq!(fails(&mut rig, &mut conn, identify(7, 2, 0), &[]), 0x002);
    assert_eq!(log(&mut rig, &mut conn), [(1, 0, 7, posted(0x002), NO_FIELD, 0, 0)]);
    rig.finish(vec![conn]);
}
