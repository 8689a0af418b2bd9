//! Volumes that come, grow, go and move to another node while others are in use, by reload: what NBD clients and
//! NVMe hosts are told, and what becomes of the rest.

use std::path::Path;

use tests::gateway::{daemon, folder};
use tests::netns::client;
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::client::Client;
use crate::host::{ADMIN, DISCOVERY, Reply, Wish, identify, log_page, property_set, read, write};
use crate::nvme::{Host, PLAIN};
use crate::place::{Place, file, memory};

const MIB: u64 = 1 << 20;
const DISK: &str = "nqn.2026-11.com.example:disk";
const SPARE: &str = "nqn.2026-11.com.example:spare";
const NAMESPACES: u32 = 1 << 8;
const ANA: u32 = 1 << 11;
/// Identity of the volume that two daemons share, and NGUID of its namespace.
const IDENTITY: &str = "6e766d65-7463-7067-8565-737400000001";

fn named(export: &str, nqn: &str) -> String {
    format!("{export}nqn = \"{nqn}\"\n")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Size of namespace 1 in blocks, as a host is told.
fn blocks(admin: &mut Host) -> u64 {
    u64_at(&admin.data(identify(9, 0, 1)), 0)
}

/// Epoch of a volume, as `volume list` says.
fn checked(test: &str, directory: &Path) -> String {
    let path = directory.to_string_lossy();
    client(test, &daemon().to_string_lossy(), &["volume", "check", &path]).expect("it was built")
}

#[test]
fn a_volume_grows_under_its_clients() {
    let at = folder("serve-grow");
    let disk = |size: &str| named(&file("disk", &at.join("disk"), size, 512), DISK);
    let other = memory("other", "1MiB", "");
    let mut place = Place::new("serve-grow", &[&disk("64MiB"), &other]);
    let (mut admin, mut io) = Host::both(place.nvme, DISK);
    let mut old = Client::unix(&place.socket(), "disk");
    assert_eq!(blocks(&mut admin), 64 * MIB / 512);
    assert_eq!(io.status(read(2, 64 * MIB / 512, 1)), 0x080, "beyond its end");
    assert_eq!(io.status_of(write(3, 0, 1, true), &[7; 512]), 0);
    admin.listen(NAMESPACES, 50);
    let said = place.change(&[&disk("96MiB"), &other]);
    assert!(said.contains("1 grown"), "{said}");
    assert_eq!(admin.event(50), 0x04_00_02);
    assert_eq!(admin.data(log_page(1, 4, 0, 4096))[..4], [1, 0, 0, 0], "namespace 1 has changed");
    assert_eq!(blocks(&mut admin), 96 * MIB / 512);
    assert_eq!(io.status_of(write(4, 96 * MIB / 512 - 1, 1, true), &[8; 512]), 0);
    assert_eq!(io.data(read(5, 0, 1)), [7; 512]);
    // An NBD client keeps the size that it was told; the next one is told the new one.
    let mut bytes = vec![0; 4096];
    old.send((Command::READ, CommandFlags(0)), 64 * MIB, 4096, &[]).expect("it listens");
    assert_eq!(old.reply().expect("it answers").error, ErrorCode::INVAL, "beyond what it knows");
    old.read(0, &mut bytes).expect("its session goes on");
    let mut new = Client::unix(&place.socket(), "disk");
    new.read(96 * MIB - 4096, &mut bytes).expect("within what it knows");
    assert_eq!(bytes[3584..], [8; 512]);
    // Smaller it does not become, and then nothing changes.
    let refused =
        place.try_change(&[&disk("32MiB"), &other, &memory("new", "1MiB", "")]).expect_err("smaller");
    assert!(refused.contains("export \"disk\": size 33554432 is less than it has"), "{refused}");
    assert_eq!((blocks(&mut admin), place.daemon().stats().exports.len()), (96 * MIB / 512, 2));
    let refused = place.try_change(&[&disk("96MiB"), &memory("other", "2MiB", "")]).expect_err("in memory");
    assert!(refused.contains("\"other\" lies in memory"), "{refused}");
    // What it was made larger to lasts.
    drop((admin, io, old, new));
    place.change(&[&disk("96MiB"), &other]);
    place.end();
    place.start();
    let (mut admin, mut io) = Host::both(place.nvme, DISK);
    assert_eq!(blocks(&mut admin), 96 * MIB / 512);
    assert_eq!(io.data(read(5, 96 * MIB / 512 - 1, 1)), [8; 512]);
    drop((admin, io));
    place.end();
    checked("serve-grow", &at.join("disk"));
    place.remove();
}

#[test]
fn volumes_come_and_go_beside_one_in_use() {
    let at = folder("serve-come-and-go");
    let disk = named(&file("disk", &at.join("disk"), "64MiB", 4096), DISK);
    let spare = named(&file("spare", &at.join("spare"), "64MiB", 4096), SPARE);
    let mut place = Place::new("serve-come-and-go", &[&disk]);
    let mut good = Client::unix(&place.socket(), "disk");
    let mut works = |round: u8| {
        good.write(0, &[round; 8192]).expect("the neighbour's write is answered");
        let mut back = [0; 8192];
        good.read(0, &mut back).expect("the neighbour's read is answered");
        assert_eq!(back, [round; 8192]);
    };
    works(1);
    let (mut discovery, _) = Host::connect(place.nvme, PLAIN, Wish { subsystem: DISCOVERY, ..ADMIN });
    assert_eq!(discovery.status(property_set(1, 0x14, 1)), 0);
    discovery.listen(1 << 31, 60);
    let said = place.change(&[&disk, &spare]);
    assert!(said.contains("exports: 1 added"), "{said}");
    works(2);
    // A host that asks what there is hears of it.
    assert_eq!(discovery.event(60), 0x70_f0_02);
    assert_eq!(u64_at(&discovery.data(log_page(1, 0x70, 0, 16)), 8), 2, "entries");
    let (mut admin, mut io) = Host::both(place.nvme, SPARE);
    let mut nbd = Client::unix(&place.socket(), "spare");
    nbd.write(0, &[9; 4096]).expect("it is served");
    assert_eq!(io.data(read(1, 0, 1).dword(8, 4096))[..4096], [9; 4096]);
    // The same set again changes nothing.
    let said = place.change(&[&disk, &spare]);
    assert!(!said.contains("exports"), "{said}");
    works(3);
    admin.listen(NAMESPACES, 51);
    let said = place.change(&[&disk]);
    assert!(said.contains("exports: 1 removed"), "{said}");
    works(4);
    assert_eq!(admin.event(51), 0x04_00_02, "the namespace has changed: it is gone");
    assert_eq!(admin.closed(), [], "and then the controller is");
    io.closed();
    assert!(nbd.read(0, &mut [0; 4096]).is_err(), "the NBD session is closed");
    let (mut refused, reply) = Host::connect(place.nvme, PLAIN, Wish { subsystem: SPARE, ..ADMIN });
    assert!(matches!(reply, Reply::Done { status: 0x182, do_not_retry: true, .. }), "{reply:?}");
    refused.closed();
    // It was closed well: what was not flushed is there, in a checkpoint.
    let check = checked("serve-come-and-go", &at.join("spare"));
    assert!(check.contains("1 pages") && check.contains("0 batches"), "{check}");
    // Under another name, and with the place in use until then.
    let moved = file("moved", &at.join("spare"), "64MiB", 4096);
    place.change(&[&disk, &spare]);
    let said = place.change(&[&disk, &moved]);
    assert!(said.contains("1 added, 1 removed"), "{said}");
    let mut back = [0; 4096];
    Client::unix(&place.socket(), "moved").read(0, &mut back).expect("it is served");
    assert_eq!(back, [9; 4096]);
    works(5);
    drop(good);
    place.end();
    for volume in ["disk", "spare"] {
        checked("serve-come-and-go", &at.join(volume));
    }
    place.remove();
}

#[test]
fn a_set_that_cannot_be_served_changes_nothing() {
    let at = folder("serve-bad-set");
    let disk = file("disk", &at.join("disk"), "64MiB", 4096);
    let mut place = Place::new("serve-bad-set", &[&disk]);
    let mut good = Client::unix(&place.socket(), "disk");
    let missing = file("new", &at.join("nowhere"), "64MiB", 4096).replace("create = true", "create = false");
    let (first, same) = (memory("first", "1MiB", ""), file("same", &at.join("disk"), "64MiB", 4096));
    let huge = memory("huge", "32TiB", "");
    for (bad, said) in [
        ([&first, &missing], "export \"new\": "),
        ([&first, &same], "export \"disk\" has the same directory; a volume has one owner"),
        ([&first, &first], "export \"first\" appears twice"),
        ([&first, &huge], "export \"huge\": "),
    ] {
        let refused = place.try_change(&[&disk, bad[0], bad[1]]).expect_err("it cannot be served");
        assert!(refused.contains(said), "{refused}");
        let stats = place.daemon().stats();
        let names: Vec<&str> = stats.exports.iter().map(|export| export.name.as_str()).collect();
        assert_eq!(names, ["disk"], "{refused}");
    }
    good.write(0, &[1; 4096]).expect("its session goes on");
    assert_eq!(good.flush().expect("it answers"), ErrorCode::OK);
    drop(good);
    place.change(&[&disk]);
    place.stop();
}

/// An export of the volume that two daemons share, at this node or as its standby.
fn shared(directory: &Path, standby: bool) -> String {
    let export = named(&file("disk", directory, "64MiB", 4096), DISK);
    format!("{export}identity = \"{IDENTITY}\"\nstandby = {standby}\n")
}

/// The state in which a host reaches namespace 1.
fn state(admin: &mut Host) -> u8 {
    admin.data(log_page(9, 0x0c, 0, 52))[32]
}

#[test]
fn a_standby_takes_a_volume_over_and_gives_it_back() {
    let (at, other) = (folder("serve-standby"), "serve-standby-other");
    let directory = at.join("disk");
    let mut first = Place::with_nvme("serve-standby", "", &[&shared(&directory, false)]);
    let mut second = Place::with_nvme(other, "controller_first = 1001", &[&shared(&directory, true)]);
    let (mut admin, mut io) = Host::both(first.nvme, DISK);
    let (mut spare, mut spare_io) = Host::both(second.nvme, DISK);
    assert_eq!((state(&mut admin), state(&mut spare)), (1, 3), "optimized, and inaccessible");
    // Both say the same of the namespace, and have numbers of their own.
    let (one, two) = (admin.data(identify(1, 0, 1)), spare.data(identify(1, 0, 1)));
    assert_eq!((u64_at(&one, 0), &one[92..120]), (u64_at(&two, 0), &two[92..120]), "size, group and NGUID");
    assert_eq!(admin.data(identify(1, 3, 1)), spare.data(identify(1, 3, 1)));
    let number = |page: Vec<u8>| u16::from_le_bytes([page[78], page[79]]);
    assert_eq!((number(admin.data(identify(1, 1, 0))), number(spare.data(identify(1, 1, 0)))), (1, 1001));
    let block = |value: u8| [value; 4096];
    let one_write = |id: u16| write(id, 0, 1, true).dword(8, 4096);
    assert_eq!(io.status_of(one_write(1), &block(1)), 0);
    assert_eq!(spare_io.status_of(one_write(1), &block(2)), 0x302);
    // The first one vanishes; the second takes over and says so when it is ready.
    spare.listen(ANA, 50);
    first.kill();
    let said = second.change(&[&shared(&directory, false)]);
    assert!(said.contains("1 switched"), "{said}");
    assert_eq!(spare.event(50), 0x0c_03_02);
    assert_eq!(state(&mut spare), 1);
    let one_read = |id: u16| read(id, 0, 1).dword(8, 4096);
    assert_eq!(spare_io.data(one_read(2)), block(1), "what was acknowledged");
    assert_eq!(spare_io.status_of(one_write(3), &block(3)), 0);
    // It comes back as the standby, and takes the volume back: what the other one has is taken from it.
    first.configure(&[&shared(&directory, true)]);
    first.start();
    let (mut admin, mut io) = Host::both(first.nvme, DISK);
    assert_eq!((state(&mut admin), io.status(one_read(1))), (3, 0x302));
    spare.listen(ANA, 51);
    first.change(&[&shared(&directory, false)]);
    assert_eq!(io.data(one_read(2)), block(3));
    assert_eq!(io.status_of(one_write(3), &block(4)), 0);
    let late = spare_io.status_of(one_write(4), &block(5));
    assert!([0x300, 0x302].contains(&late), "a path-related status: {late:#x}");
    assert_eq!(spare.event(51), 0x0c_03_02, "who was fenced says so");
    assert_eq!(state(&mut spare), 3);
    // In good order: who has it lets it go first.
    second.change(&[&shared(&directory, true)]);
    admin.listen(ANA, 52);
    first.change(&[&shared(&directory, true)]);
    assert_eq!((admin.event(52), state(&mut admin)), (0x0c_03_02, 3));
    second.change(&[&shared(&directory, false)]);
    assert_eq!((state(&mut spare), spare_io.data(one_read(5))), (1, block(4).to_vec()));
    drop((admin, io, spare, spare_io));
    first.end();
    second.end();
    checked("serve-standby", &directory);
    second.remove();
    first.remove();
}
