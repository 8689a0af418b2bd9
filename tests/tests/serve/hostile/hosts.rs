//! NVMe hosts that mean no good, many at once, while another one and an NBD client work.

use std::io::Write;

use tests::gateway::{folder, full};

use super::{MIB, memory_peak, works};
use crate::client::Client;
use crate::host::{
    ADMIN, Agreed, DISCOVERY, HOST, Reply, Sgl, Sqe, Wish, flush, hello, identify, log_page, property_set,
    read, write,
};
use crate::nvme::{Host, PLAIN};
use crate::place::{Place, file, memory};

const GOOD: &str = "nqn.2026-11.com.example:good";
const BAD: &str = "nqn.2026-11.com.example:bad";
const CLOSED: &str = "nqn.2026-11.com.example:closed";
/// Of each kind that costs next to nothing.
const CROWD: usize = 60;
/// Of each kind that the daemon holds payload for.
const GREEDY: usize = 3;
/// Connections that say nothing, or half of their first unit; more than the daemon lets in at once.
const SILENT: usize = 1200;
const SILENT_FULL: usize = 10_000;
/// C2HTermReq: an invalid field, a wrong digest of a header.
const INVALID_FIELD: u16 = 1;
const DIGEST: u16 = 3;

/// Both who mean well work, and see what they wrote.
struct Good {
    nbd: Client,
    admin: Host,
    io: Host,
}

impl Good {
    fn work(&mut self, round: u8) {
        works(&mut self.nbd, round);
        // Behind what the NBD client has, which is a megabyte; blocks have 4096 bytes.
        let bytes: Vec<u8> = (0..8192).map(|at| (at / 512) as u8 ^ round).collect();
        let at = 1024;
        assert_eq!(self.io.status_of(write(1, at, 2, true).dword(8, 8192), &bytes), 0);
        assert_eq!(self.io.status(flush(2)), 0);
        assert!(
            self.io.data(read(3, at, 2).dword(8, 8192)) == bytes,
            "round {round}: what was written is read"
        );
        assert_eq!(self.admin.data(identify(4, 1, 0)).len(), 4096);
    }
}

/// A pair of queues of the subsystem that nobody good uses.
fn pair(place: &Place) -> (Host, Host) {
    Host::both(place.nvme, BAD)
}

/// The daemon says which field is wrong, or that a digest is, and closes.
fn terminated(host: &mut Host, wanted: u16) {
    let said = host.closed();
    assert!(matches!(said.last(), Some(Reply::Termination { status, .. }) if *status == wanted), "{said:?}");
}

/// Says something before Connect for which the connection ends.
fn before_connect(place: &Place, number: usize) {
    let mut host = Host::silent(place.nvme, PLAIN);
    match number % 3 {
        // Not even a unit.
        0 => {
            let _ = host.socket.write_all(&[0xa5; 64]);
            terminated(&mut host, INVALID_FIELD);
        }
        // A unit of 4 GiB.
        1 => {
            let mut unit = hello(PLAIN);
            unit[4..8].copy_from_slice(&[0xff; 4]);
            let _ = host.socket.write_all(&unit);
            terminated(&mut host, INVALID_FIELD);
        }
        // A command that is not Connect.
        _ => {
            host.say(&hello(PLAIN));
            host.say(&PLAIN.capsule(read(1, 0, 1), &[]));
            let said = host.closed();
            assert!(matches!(said[..], [Reply::Hello { .. }, Reply::Done { status: 0x00c, .. }]), "{said:?}");
        }
    }
}

/// Comes for what is not there, not for it, or with a wrong wish.
fn refused(place: &Place, number: usize) {
    let bad = Wish { subsystem: BAD, ..ADMIN };
    let (wish, wanted) = [
        (Wish { subsystem: "nqn.2026-11.com.example:nowhere", ..ADMIN }, 0x182),
        (Wish { subsystem: CLOSED, host: HOST, ..ADMIN }, 0x184),
        (Wish { entries_less_one: 0, ..bad }, 0x182),
        (Wish { controller: 7, ..bad }, 0x182),
        (Wish { queue: 1, controller: 999, ..bad }, 0x182),
    ][number % 5];
    let (mut host, reply) = Host::connect(place.nvme, PLAIN, wish);
    assert!(matches!(reply, Reply::Done { status, .. } if status == wanted), "{wish:?}: {reply:?}");
    host.closed();
}

/// Asks for what cannot be; each is answered with its status, and the connection goes on.
fn out_of_range(place: &Place) {
    let (_admin, mut io) = pair(place);
    let block = |command: Sqe, blocks: u32| command.dword(8, blocks * 4096);
    for (command, wanted) in [
        (block(read(1, u64::MAX, 1), 1), 0x080),
        (block(read(1, 16 << 8, 1), 1), 0x080),
        (block(read(1, 0, 512), 512), 0x002),
        (read(1, 0, 1), 0x00f),
        (block(write(1, (16 << 8) - 1, 2, false), 2), 0x080),
        (Sqe::new(0x02, 1, 0xffff_ffff, Sgl::Host(4096)), 0x002),
        (Sqe::new(0x55, 1, 1, Sgl::Host(0)), 0x001),
        (Sqe::new(0x09, 1, 1, Sgl::Host(1 << 30)).dword(10, 255).dword(11, 4), 0x00f),
    ] {
        assert_eq!(io.status(command), wanted, "{:02x?}", &command.0[..64]);
    }
    assert_eq!(io.status(flush(1)), 0);
}

/// Digests that are wrong: of a header the connection ends, of data the command.
fn wrong_digests(place: &Place) {
    let both = Agreed { header_digest: true, data_digest: true, alignment: 0 };
    let (mut host, reply) =
        Host::connect(place.nvme, both, Wish { subsystem: BAD, keep_alive_ms: 0, ..ADMIN });
    let Reply::Done { status: 0, result, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(host.status(property_set(1, 0x14, 0x0046_0001)), 0);
    let wish = Wish { subsystem: BAD, ..Wish::io(1, result as u16) };
    let (mut io, _) = Host::connect(place.nvme, both, wish);
    let mut capsule = both.capsule(write(1, 0, 1, true).dword(8, 4096), &[1; 4096]);
    let last = capsule.len() - 1;
    capsule[last] ^= 1;
    io.say(&capsule);
    let (answer, _) = io.answer().expect("the connection goes on");
    assert!(matches!(answer, Reply::Done { status: 0x022, do_not_retry: false, .. }), "{answer:?}");
    assert_eq!(io.status(flush(2)), 0);
    let mut capsule = both.capsule(flush(3), &[]);
    capsule[20] ^= 1;
    io.say(&capsule);
    terminated(&mut io, DIGEST);
    assert_eq!(host.data(identify(4, 1, 0)).len(), 4096, "its other queue goes on");
}

/// A host of the discovery controller, which is ready.
fn discoverer(place: &Place) -> Host {
    let (mut host, _) = Host::connect(place.nvme, PLAIN, Wish { subsystem: DISCOVERY, ..ADMIN });
    assert_eq!(host.status(property_set(1, 0x14, 1)), 0);
    host
}

/// Hosts that ask for logs, again and again, and read none: what they ask stays in their sockets, and others find what
/// there is.
#[test]
fn hosts_that_ask_for_logs_and_read_none_keep_nobody_from_discovering() {
    const HOSTS: usize = 30;
    const LOG_BYTES: u32 = 64 << 10;
    let place = Place::with_memory("serve-hostile-discovery", "64MiB", &[&memory("disk", "1MiB", "")]);
    let pid = place.daemon().process.0.id();
    let before = memory_peak(pid);
    let mut greedy: Vec<Host> = (0..HOSTS).map(|_| discoverer(&place)).collect();
    for host in &mut greedy {
        // More than one transfer is refused, and less waits to be read.
        assert_eq!(host.status(log_page(2, 0x70, 0, 2 * LOG_BYTES)) & 0xff, 0x02, "invalid field");
        let ask = PLAIN.capsule(log_page(3, 0x70, 0, LOG_BYTES), &[]);
        host.flood(&ask.repeat(1_000));
    }
    let mut good = discoverer(&place);
    assert_eq!(good.data(log_page(1, 0x70, 0, 16))[8], 1, "entries");
    let grown = memory_peak(pid) - before;
    // Four for what is answered, and for each host what a receive brings.
    assert!(grown < 24 * MIB, "{grown} bytes of memory");
    drop((greedy, good));
    place.stop();
}

#[test]
fn nvme_hosts_that_mean_no_good_disturb_nobody() {
    let at = folder("serve-hostile-nvme");
    let export = |export: String, nqn: &str, more: &str| format!("{export}nqn = \"{nqn}\"\n{more}");
    let exports = [
        export(file("good", &at.join("good"), "64MiB", 4096), GOOD, ""),
        export(memory("bad", "16MiB", ""), BAD, ""),
        export(memory("closed", "1MiB", ""), CLOSED, "hosts = [\"nqn.2026-11.com.example:another-host\"]\n"),
    ];
    let exports = exports.each_ref().map(String::as_str);
    let mut place = Place::with_memory("serve-hostile-nvme", "256MiB", &exports);
    let pid = place.daemon().process.0.id();
    let (admin, io) = Host::both(place.nvme, GOOD);
    let mut good = Good { nbd: Client::unix(&place.socket(), "good"), admin, io };
    good.work(0);
    for number in 0..CROWD {
        before_connect(&place, number);
        refused(&place, number);
    }
    good.work(1);
    out_of_range(&place);
    wrong_digests(&place);
    good.work(2);

    // Payload that the daemon asked for and never gets, answers that are never read, commands that are half said, and
    // hosts that are gone with everything under way.
    let mut held = Vec::new();
    for number in 0..GREEDY {
        let (admin, mut io) = pair(&place);
        for id in 0..100 {
            io.send(write(id, 0, 256, false).dword(8, MIB as u32), &[]);
        }
        held.extend([admin, io]);
        let (admin, mut io) = pair(&place);
        for id in 0..100 {
            io.send(read(id, 0, 256).dword(8, MIB as u32), &[]);
        }
        held.extend([admin, io]);
        good.work(3 + number as u8);
    }
    for number in 0..CROWD {
        let (admin, mut io) = pair(&place);
        let capsule = PLAIN.capsule(write(1, 0, 2, true).dword(8, 8192), &[9; 8192]);
        io.say(&capsule[..1 + number * 131 % (capsule.len() - 1)]);
        held.extend([admin, io]);
        let (_admin, mut io) = pair(&place);
        for id in 0..60 {
            io.send(read(id, 0, 16).dword(8, 16 * 4096), &[]);
        }
    }
    good.work(10);
    // Half of the first unit, or nothing: more of them than are let in at once.
    let silent = if full() { SILENT_FULL } else { SILENT };
    for number in 0..silent {
        let mut host = Host::silent(place.nvme, PLAIN);
        host.say(&hello(PLAIN)[..number % 128]);
        held.push(host);
        if number.is_multiple_of(200) {
            good.work(11);
        }
    }
    good.work(12);
    // Who comes behind them is served when their time is up.
    let (mut late, _) = Host::admin(place.nvme, Wish { subsystem: GOOD, ..ADMIN });
    assert_eq!(late.data(identify(1, 1, 0)).len(), 4096);
    let peak = memory_peak(pid);
    println!("{} connections held, {} MiB of memory at most", held.len(), peak >> 20);
    // The payload's 256 MiB, volumes of 17 MiB, the packets' 50 MiB, and what the program itself takes.
    assert!(peak < 512 * MIB, "{peak} bytes of memory");
    drop((good, late));
    place.end();
    drop(held);
    place.remove();
}
