//! Several volumes behind one NVMe subsystem: hosts that are attached find them come, grow and go, limits of one hold up
//! none of another, and all go to another worker together.

use std::path::Path;

use agent::client;
use tests::gateway::{folder, full};

use crate::client::Client;
use crate::host::{ADMIN, DISCOVERY, Reply, Sgl, Sqe, Wish, flush, identify, log_page, property_set};
use crate::moves::{ended_well, histogram, load};
use crate::nvme::{Host, PLAIN};
use crate::place::{Place, file, memory};

const NQN: &str = "nqn.2026-11.com.example:several";
const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;
const NAMESPACES: u32 = 1 << 8;
/// Dword 0 of the notice: the log of changed namespaces.
const CHANGED: u64 = 0x04_00_02;
const INVALID_FIELD: u16 = 0x002;

/// An export as a namespace of the subsystem.
fn numbered(export: &str, number: u32) -> String {
    format!("{export}nqn = \"{NQN}\"\nnamespace = {number}\n")
}

fn disk(at: &Path, name: &str, size: &str, number: u32) -> String {
    numbered(&file(name, &at.join(name), size, PAGE as u32), number)
}

fn read(id: u16, number: u32, lba: u64) -> Sqe {
    Sqe::new(0x02, id, number, Sgl::Host(PAGE as u32)).range(lba, 1)
}

fn write(id: u16, number: u32, lba: u64) -> Sqe {
    Sqe::new(0x01, id, number, Sgl::Capsule(PAGE as u32)).range(lba, 1)
}

/// The numbers of a list.
fn list(page: &[u8]) -> Vec<u32> {
    let numbers = page.chunks(4).map(|octets| u32::from_le_bytes(octets.try_into().expect("4 bytes")));
    numbers.take_while(|number| *number != 0).collect()
}

fn active(admin: &mut Host) -> Vec<u32> {
    list(&admin.data(identify(9, 2, 0)))
}

/// Size of a namespace in bytes, as a host is told.
fn bytes(admin: &mut Host, number: u32) -> u64 {
    let page = admin.data(identify(9, 0, number));
    u64::from_le_bytes(page[..8].try_into().expect("8 bytes")) * PAGE as u64
}

/// The host is told of a change, and finds which namespace it was.
fn hears_of(admin: &mut Host, number: u32) {
    assert_eq!(admin.event(50), CHANGED);
    assert_eq!(list(&admin.data(log_page(1, 4, 0, 4096))), [number]);
    admin.send(Sqe::new(0x0c, 50, 0, Sgl::Host(0)), &[]);
}

#[test]
fn namespaces_of_one_subsystem_come_grow_and_go_under_a_host_that_uses_them() {
    let at = folder("serve-namespaces");
    let one = |size| disk(&at, "one", size, 1);
    let (two, three) = (disk(&at, "two", "32MiB", 2), disk(&at, "three", "48MiB", 7));
    let mut place = Place::new("serve-namespaces", &[&one("32MiB"), &two]);
    let (mut admin, mut io) = Host::both(place.nvme, NQN);
    assert_eq!(active(&mut admin), [1, 2]);
    let name = |admin: &mut Host, number| admin.data(identify(9, 3, number))[4..20].to_vec();
    assert_ne!(name(&mut admin, 1), name(&mut admin, 2));
    for number in [1, 2] {
        assert_eq!(io.status_of(write(1, number, 0), &[number as u8; PAGE]), 0);
    }
    // It is one subsystem to those that look for them.
    let (mut discovery, _) = Host::connect(place.nvme, PLAIN, Wish { subsystem: DISCOVERY, ..ADMIN });
    assert_eq!(discovery.status(property_set(1, 0x14, 1)), 0);
    assert_eq!(discovery.data(log_page(1, 0x70, 0, 16))[8], 1, "entries");
    admin.listen(NAMESPACES, 50);
    // One comes, and is what NBD clients find under its name.
    let said = place.change(&[&one("32MiB"), &two, &three]);
    assert!(said.contains("exports: 1 added"), "{said}");
    hears_of(&mut admin, 7);
    assert_eq!((active(&mut admin), bytes(&mut admin, 7)), (vec![1, 2, 7], 48 * MIB));
    assert_eq!(io.status_of(write(1, 7, 3), &[7; PAGE]), 0);
    let mut page = [0; PAGE];
    Client::unix(&place.socket(), "three").read(3 * PAGE as u64, &mut page).expect("it is served");
    assert_eq!(page, [7; PAGE]);
    // One grows.
    let said = place.change(&[&one("40MiB"), &two, &three]);
    assert!(said.contains("exports: 1 grown"), "{said}");
    hears_of(&mut admin, 1);
    assert_eq!([1, 2, 7].map(|number| bytes(&mut admin, number) / MIB), [40, 32, 48]);
    assert_eq!(io.status_of(write(1, 1, 40 * MIB / PAGE as u64 - 1), &[4; PAGE]), 0);
    // One goes, and the host works on with the others.
    let said = place.change(&[&one("40MiB"), &three]);
    assert!(said.contains("exports: 1 removed"), "{said}");
    hears_of(&mut admin, 2);
    assert_eq!(active(&mut admin), [1, 7]);
    assert_eq!(admin.data(identify(1, 0, 2)), [0; 4096]);
    for command in [read(1, 2, 0), flush(1).dword(1, 2)] {
        assert_eq!(io.status(command), INVALID_FIELD);
    }
    assert_eq!((io.data(read(1, 1, 0)), io.data(read(2, 7, 3))), (vec![1; PAGE], vec![7; PAGE]));
    // It comes back as another one's number, with what was written.
    place.change(&[&one("40MiB"), &three, &disk(&at, "two", "32MiB", 200)]);
    hears_of(&mut admin, 200);
    assert_eq!(io.data(read(1, 200, 0)), [2; PAGE]);
    let stats = place.daemon().stats();
    let exports: Vec<_> =
        stats.exports.iter().map(|one| (&*one.nqn, one.namespace, one.connections)).collect();
    assert_eq!(exports, [(NQN, 1, 2), (NQN, 7, 2), (NQN, 200, 2)], "each is reached by the host's queues");
    // The last one goes, and with it the subsystem.
    place.change(&[&memory("other", "1MiB", "")]);
    assert_eq!(admin.event(50), CHANGED);
    assert_eq!(admin.closed(), []);
    io.closed();
    let (mut refused, reply) = Host::connect(place.nvme, PLAIN, Wish { subsystem: NQN, ..ADMIN });
    assert!(matches!(reply, Reply::Done { status: 0x182, do_not_retry: true, .. }), "{reply:?}");
    refused.closed();
    // It can be made again, also at the start of a daemon.
    place.change(&[&one("40MiB"), &three]);
    let (mut admin, mut io) = Host::both(place.nvme, NQN);
    let serial = admin.data(identify(1, 1, 0))[4..24].to_vec();
    assert_eq!((active(&mut admin), io.data(read(2, 7, 3))), (vec![1, 7], vec![7; PAGE]));
    drop((admin, io, discovery));
    place.end();
    place.configure(&[&three, &one("40MiB")]);
    place.start();
    let (mut admin, mut io) = Host::both(place.nvme, NQN);
    assert_eq!(admin.data(identify(1, 1, 0))[4..24], serial[..], "it has the same serial");
    assert_eq!((active(&mut admin), io.data(read(2, 1, 0))), (vec![1, 7], vec![1; PAGE]));
    drop((admin, io));
    place.stop();
}

#[test]
fn a_subsystem_that_contradicts_itself_is_refused() {
    let one = numbered(&memory("one", "1MiB", ""), 1);
    let mut place = Place::with_memory("serve-contradiction", "96MiB", &["[[worker]]\n[[worker]]\n", &one]);
    let (mut admin, mut io) = Host::both(place.nvme, NQN);
    let other = |number| numbered(&memory("other", "1MiB", ""), number);
    for (bad, said) in [
        (other(1), "export \"one\" is namespace 1 of nqn."),
        (other(0), "namespace is 1 to 256"),
        (other(257), "namespace is 1 to 256"),
        (other(2) + "worker = 1\n", "has other hosts or another worker"),
        (other(2) + &format!("hosts = [\"{NQN}\"]\n"), "has other hosts or another worker"),
        (memory("other", "1MiB", "namespace = 2"), "namespace numbers it in the subsystem of nqn"),
    ] {
        let refused = place.try_change(&["[[worker]]\n[[worker]]\n", &one, &bad]).expect_err("it cannot be");
        assert!(refused.contains(said), "{refused}");
        assert_eq!((active(&mut admin), io.data(read(1, 1, 0))), (vec![1], vec![0; PAGE]));
    }
    drop((admin, io));
    place.change(&["[[worker]]\n[[worker]]\n", &one]);
    place.stop();
}

#[test]
fn a_namespace_over_its_limit_holds_up_none_of_its_subsystem() {
    const READS: u16 = 40;
    let slow = numbered(&memory("slow", "1MiB", ""), 1) + "operations = { rate = 5 }\n";
    let fast = numbered(&memory("fast", "1MiB", ""), 2);
    let place = Place::new("serve-slow-namespace", &[&slow, &fast]);
    let (admin, mut io) = Host::both(place.nvme, NQN);
    // On one queue: what one volume waits for is 8 s and longer, and the other's come first.
    (0..READS).for_each(|id| io.send(read(id, 1, 0), &[]));
    (0..READS).for_each(|id| io.send(read(100 + id, 2, 1), &[]));
    let answers: Vec<u16> = (0..2 * READS)
        .map(|_| match io.answer() {
            Ok((Reply::Done { id, status: 0, .. }, data)) if data.len() == PAGE => id,
            other => panic!("{other:?}"),
        })
        .collect();
    let last = answers.iter().rposition(|id| *id >= 100).expect("all were answered");
    let slow_before = answers[..last].iter().filter(|id| **id < 100).count();
    println!("{slow_before} reads of the slow one before the last of the fast one");
    assert!(slow_before < usize::from(READS) / 2, "{answers:?}");
    for is_slow in [true, false] {
        let of_one = answers.iter().filter(|id| (**id < 100) == is_slow);
        assert!(of_one.is_sorted(), "each in its order: {answers:?}");
    }
    let exports = place.daemon().stats().exports;
    assert!(exports[0].waited_total > 0 && exports[1].waited_total == 0, "who waited is counted there");
    drop((admin, io));
    place.stop();
}

#[test]
fn a_subsystem_goes_from_worker_to_worker_with_all_its_namespaces_under_load() {
    const WORKERS: &str = "[[worker]]\n[[worker]]\n";
    let (moves, seconds) = if full() { (1000, 60) } else { (20, 6) };
    let at = folder("serve-namespaces-move");
    // One of them waits for credits again and again.
    let slow = "operations = { rate = 500 }\n";
    let (one, two) = (disk(&at, "one", "32MiB", 1), disk(&at, "two", "32MiB", 2) + slow);
    let late = numbered(&memory("late", "1MiB", ""), 3);
    let mut place = Place::with_memory("serve-namespaces-move", "128MiB", &[WORKERS, &one, &two]);
    let (port, socket) = (place.nvme, place.daemon().socket.clone());
    // A connection that were lost over it would be an error.
    let uri = format!("nvme+tcp://127.0.0.1:{port}/{NQN}");
    let more = ["--connections", "2", "--depth", "16", "--loss-seconds", "0"];
    let loads = ["1", "2"].map(|number| load(seconds, &uri, &[&more[..], &["--namespace", number]].concat()));
    place.daemon().until("both are under load", || {
        place.daemon().stats().exports.iter().all(|export| export.counters["writes"] > 100)
    });
    let (mut nbd, mut page) = (Client::unix(&place.socket(), "one"), [0; PAGE]);
    let mut pauses_ns = Vec::new();
    for number in 0..moves {
        // By either of its volumes.
        let moved =
            client::move_export(&socket, ["one", "two"][number % 2], 1 - number % 2).expect("it goes");
        assert_eq!(moved.connections, 7, "two hosts with three queues each, and an NBD client");
        nbd.read(31 * MIB, &mut page).expect("its session goes along");
        pauses_ns.push(moved.pause_ns);
    }
    for load in loads {
        println!("{}", ended_well("the load", load).trim());
    }
    histogram("pause", pauses_ns);
    let workers = |place: &Place| -> Vec<usize> {
        place.daemon().stats().exports.iter().map(|export| export.worker).collect()
    };
    assert_eq!(workers(&place), [0, 0]);
    client::move_export(&socket, "one", 1).expect("it goes");
    // Who comes later comes to where the subsystem is.
    place.change(&[WORKERS, &one, &two, &late]);
    assert_eq!(workers(&place), [1, 1, 1]);
    let (mut admin, mut io) = Host::both(port, NQN);
    assert_eq!((active(&mut admin), io.data(read(1, 3, 0))), (vec![1, 2, 3], vec![0; PAGE]));
    place.change(&[WORKERS, &one, &two]);
    assert_eq!((active(&mut admin), io.status(read(1, 2, 0))), (vec![1, 2], 0));
    let counters = place.daemon().stats().exports.into_iter().map(|export| export.counters["errors"]);
    assert_eq!(counters.sum::<u64>(), 0);
    drop((admin, io));
    place.stop();
}
