//! The kernel's NVMe/TCP host.

use std::path::Path;

use tests::gateway::{Gateway, full};
use tests::guest::{HOST, Has, STEP_LIMIT};
use tests::netns::isolated;
use tests::traffic::{capture, dissect_loopback, end};

use crate::disk;
use crate::place::{Place, body, export};

/// The port on which the daemon serves NVMe/TCP.
const PORT: u16 = 4420;
pub const DEVICE: &str = "/dev/nvme0n1";
/// The guest's names.
const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6e766d65-7463-7067-7565-737400000001";
const HOST_ID: &str = "6e766d65-7463-7067-7565-737400000001";
/// A host that the guest is not.
const ANOTHER: &str = "nqn.2026-11.com.example:another-host";
/// What `nvme` shows of a controller and its namespace without an error.
const SHOWN: [&str; 10] = [
    "list",
    "list-subsys",
    "id-ctrl /dev/nvme0",
    "list-ns /dev/nvme0",
    "id-ns /dev/nvme0n1",
    "ns-descs /dev/nvme0 -n 1",
    "smart-log /dev/nvme0",
    "effects-log /dev/nvme0",
    "fw-log /dev/nvme0",
    "get-feature /dev/nvme0 -f 7",
];

/// The qualified name under which a volume is served.
fn nqn(volume: &str) -> String {
    format!("nqn.2026-11.com.example:{volume}")
}

fn exports(folder: &Path) -> String {
    let volume = |name: &str, block| {
        let export = export(name, folder, disk::SIZE, block);
        format!("{export}nqn = \"{}\"\n", nqn(name))
    };
    format!(
        "[nvme]\nlisten = [\"127.0.0.1:{PORT}\"]\n{}{}{}hosts = [\"{ANOTHER}\"]\n",
        volume("pages", 4096),
        volume("sectors", 512),
        volume("closed", 4096),
    )
}

pub fn has<'a>(programs: &'a [&'a str]) -> Has<'a> {
    Has { modules: &["nvme-tcp"], programs, own: &[] }
}

/// Who comes, and where to.
pub fn parties(port: u16) -> String {
    format!("-t tcp -a {HOST} -s {port} -q {HOST_NQN} -I {HOST_ID}")
}

/// What attaches a volume and waits for its disk. For ten minutes the kernel tries to reach a controller that is gone,
/// which no restart takes.
fn attach(volume: &str, digests: &str) -> String {
    format!("{} {digests}\nuntil [ -b {DEVICE} ]; do usleep 10000; done", connect(PORT, volume))
}

fn connect(port: u16, volume: &str) -> String {
    let many = "--nr-io-queues=2 --ctrl-loss-tmo=600 --reconnect-delay=1";
    format!("nvme connect {} -n {} {many}", parties(port), nqn(volume))
}

fn detach(volume: &str) -> String {
    format!("nvme disconnect -n {}", nqn(volume))
}

/// Looks at what there is, and is shown what it may see.
fn discovers(place: &mut Place) {
    let guest = &mut place.guest;
    let found = guest.run("discover", &format!("nvme discover {}", parties(PORT)));
    for (volume, shown) in [("pages", true), ("sectors", true), ("closed", false)] {
        assert_eq!(found.contains(&nqn(volume)), shown, "{volume}: {found}");
    }
    let refused = format!("nvme connect {} -n {}", parties(PORT), nqn("closed"));
    assert_ne!(guest.step("attach what is not ours", &refused, STEP_LIMIT).status, 0);
    guest.run("attach", &attach("pages", ""));
    for words in SHOWN {
        guest.run(words, &format!("nvme {words}"));
    }
    guest.run("compare", &format!("nvme compare {DEVICE} -s 0 -c 0 -z 4096 -d /dev/zero"));
    let format = guest.step("format", &format!("nvme format {DEVICE} -f"), STEP_LIMIT);
    assert!(format.output.contains("Invalid Command Opcode"), "{format:?}");
    guest.run("detach", &detach("pages"));
}

#[test]
fn a_linux_guest_uses_volumes_over_nvme_tcp() {
    const TEST: &str = "nvme::a_linux_guest_uses_volumes_over_nvme_tcp";
    let programs = [&disk::PROGRAMS[..], &["nvme"]].concat();
    isolated(TEST, || {
        let Some(mut place) = Place::new(TEST, "guest-nvme", exports, &has(&programs)) else { return };
        let runs = [
            ("pages", "--hdr-digest --data-digest"),
            ("sectors", ""),
            ("sectors", "--hdr-digest"),
            ("pages", "--data-digest"),
        ];
        for (number, (volume, digests)) in runs[..if full() { 4 } else { 1 }].iter().enumerate() {
            let file = place.folder.join(format!("lo-{number}.pcapng"));
            let capturing = capture(&place.space, "lo", &file);
            if number == 0 {
                discovers(&mut place);
            }
            println!("{volume} {digests}");
            disk::used(&mut place, DEVICE, &attach(volume, digests), &detach(volume));
            end(capturing);
            let protocols = ["nvme", "nvme-tcp"];
            let seen = |filter: &str| dissect_loopback(&file, &protocols, filter, &["frame.number"]);
            assert!(seen("nvme-tcp").len() > 100, "commands and answers are recognised");
            assert_eq!(seen("_ws.malformed"), Vec::<String>::new(), "malformed in {}", file.display());
        }
        place.stop(&["pages", "sectors", "closed"]);
    });
}

#[test]
fn a_linux_guest_survives_the_daemon_over_nvme_tcp() {
    const TEST: &str = "nvme::a_linux_guest_survives_the_daemon_over_nvme_tcp";
    let programs = [&disk::PROGRAMS[..], &["nvme"]].concat();
    isolated(TEST, || {
        let Some(mut place) = Place::new(TEST, "guest-nvme-kill", exports, &has(&programs)) else { return };
        // The kernel connects again by itself.
        let again = "until grep -q live /sys/class/nvme/nvme0/state; do usleep 10000; done";
        disk::outlives(&mut place, DEVICE, &attach("pages", ""), again, &detach("pages"));
        place.guest.run("the kernel attached it again by itself", "dmesg | grep 'Successfully reconnected'");
        place.stop(&["pages"]);
    });
}

/// Where the second daemon serves NVMe/TCP.
const OTHER_PORT: u16 = 4421;
/// Identity of the volume that two daemons share.
const IDENTITY: &str = "6e766d6574637067856573740000000a";

/// What a daemon at `port` has of the volume that two share.
fn shared(folder: &Path, port: u16, size: &str, standby: bool) -> String {
    let (volume, nqn) = (export("shared", folder, size, 4096), nqn("shared"));
    let keys = format!("nqn = \"{nqn}\"\nidentity = \"{IDENTITY}\"\nstandby = {standby}\n");
    format!("[nvme]\nlisten = [\"127.0.0.1:{port}\"]\ncontroller_first = {port}\n{volume}{keys}")
}

/// Waits until the guest's kernel has the path to a port in a state: `inaccessible`, `optimized`.
pub fn path_is(port: u16, state: &str) -> String {
    format!(
        "until for ctrl in /sys/class/nvme/nvme*; do if grep -q trsvcid={port} $ctrl/address && grep -q live \
         $ctrl/state; then cat $ctrl/nvme*c*n1/ana_state; fi; done | grep -qx {state}; do usleep 20000; done"
    )
}

/// A volume grows and changes its node twice, once after its node died, under verified load: the kernel follows by its
/// two paths, and no program hears of it.
#[test]
fn a_linux_guest_follows_a_volume_that_grows_and_changes_its_node() {
    const TEST: &str = "nvme::a_linux_guest_follows_a_volume_that_grows_and_changes_its_node";
    const NAME: &str = "guest-nvme-paths";
    const OTHER: &str = "guest-nvme-other";
    const LARGER: &str = "320MiB";
    let programs = [&disk::PROGRAMS[..], &["nvme", "resize2fs"]].concat();
    isolated(TEST, || {
        let exports = |folder: &Path| shared(folder, PORT, disk::SIZE, false);
        let Some(mut place) = Place::new(TEST, NAME, exports, &has(&programs)) else { return };
        let folder = place.folder.clone();
        let ours = |size: &str, standby| shared(&folder, PORT, size, standby);
        let others = |size: &str, standby| body(&shared(&folder, OTHER_PORT, size, standby));
        let other = Gateway::start(Some(&place.space), &folder, OTHER, &others(disk::SIZE, true));
        let change_other = |size: &str, standby| {
            other.rewrite(OTHER, &others(size, standby));
            other.reload().expect("the other daemon takes it");
        };
        let guest = &mut place.guest;
        guest.run("attach", &attach("shared", ""));
        guest.run("attach the other path", &connect(OTHER_PORT, "shared"));
        guest.run("the first path works", &path_is(PORT, "optimized"));
        guest.run("the other one does not", &path_is(OTHER_PORT, "inaccessible"));
        let more = disk::load(guest, DEVICE);
        guest.run("writes go on", &more);

        place.change(&ours(LARGER, false));
        change_other(LARGER, true);
        let larger =
            format!("until [ $(blockdev --getsize64 {DEVICE}) = {} ]; do usleep 20000; done", 320 << 20);
        let guest = &mut place.guest;
        guest.run("it is larger", &larger);
        guest.run("the file system grows", &format!("resize2fs {DEVICE}"));
        guest.run("writes go on", &more);

        place.kill();
        change_other(LARGER, false);
        let guest = &mut place.guest;
        guest.run("the other path works", &path_is(OTHER_PORT, "optimized"));
        guest.run("writes go on", &more);

        place.configure(&ours(LARGER, true));
        place.start();
        place.guest.run("the first one is back and waits", &path_is(PORT, "inaccessible"));
        change_other(LARGER, true);
        place.change(&ours(LARGER, false));
        let guest = &mut place.guest;
        guest.run("the first path works again", &path_is(PORT, "optimized"));
        guest.run("the other one waits", &path_is(OTHER_PORT, "inaccessible"));
        guest.run("writes go on", &more);
        disk::end_load(guest, DEVICE);
        guest.run("detach", &detach("shared"));
        other.stop();
        place.stop(&["shared"]);
    });
}

/// What a daemon has of a subsystem with several namespaces.
fn several(folder: &Path, namespaces: &[(&str, u32, &str)]) -> String {
    let one = |(name, number, size): &(&str, u32, &str)| {
        let export = export(name, folder, size, 4096);
        format!("{export}nqn = \"{}\"\nnamespace = {number}\n", nqn("several"))
    };
    let exports: String = namespaces.iter().map(one).collect();
    format!("[nvme]\nlisten = [\"127.0.0.1:{PORT}\"]\n{exports}")
}

/// Has fio write disks at the same time and verify them.
fn verify(devices: &[&str]) -> String {
    let jobs: String = devices.iter().map(|device| format!(" --name=job --filename={device}")).collect();
    format!(
        "fio --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --blockalign=4k --iodepth=16 --size=4m \
         --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --output-format=terse{jobs}"
    )
}

/// Waits until the guest's kernel has disks of these names and sizes, and no others of the subsystem.
fn disks(wanted: &[(&str, u64)]) -> String {
    let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    let sizes: String = wanted
        .iter()
        .map(|(name, bytes)| format!("[ \"$(blockdev --getsize64 /dev/{name})\" = {bytes} ] && "))
        .collect();
    format!(
        "until [ \"$(ls /dev | grep '^nvme0n[0-9]*$' | xargs)\" = '{}' ] && {sizes}true; do usleep 20000; done",
        names.join(" ")
    )
}

/// Namespaces come, grow and go beside one that is under verified load all the time.
#[test]
fn a_linux_guest_finds_namespaces_that_come_grow_and_go_beside_one_in_use() {
    const TEST: &str = "nvme::a_linux_guest_finds_namespaces_that_come_grow_and_go_beside_one_in_use";
    const MIB: u64 = 1 << 20;
    let programs = [&disk::PROGRAMS[..], &["nvme"]].concat();
    isolated(TEST, || {
        let exports = |folder: &Path| several(folder, &[("one", 1, disk::SIZE), ("two", 2, "32MiB")]);
        let Some(mut place) = Place::new(TEST, "guest-nvme-several", exports, &has(&programs)) else {
            return;
        };
        let folder = place.folder.clone();
        let guest = &mut place.guest;
        guest.run("attach", &attach("several", ""));
        guest.run("there are two disks", &disks(&[("nvme0n1", 256 * MIB), ("nvme0n2", 32 * MIB)]));
        guest.run("write both", &verify(&[DEVICE, "/dev/nvme0n2"]));
        let listed = guest.run("list", "nvme list-ns /dev/nvme0");
        assert!(listed.contains("0x1") && listed.contains("0x2"), "{listed}");
        guest.run(
            "what is kept of them",
            "nvme ana-log /dev/nvme0 && nvme list && nvme ns-descs /dev/nvme0 -n 2",
        );
        let more = disk::load(guest, DEVICE);
        guest.run("writes go on", &more);

        place.change(&several(&folder, &[("one", 1, disk::SIZE), ("two", 2, "32MiB"), ("new", 9, "48MiB")]));
        let guest = &mut place.guest;
        let all = [("nvme0n1", 256 * MIB), ("nvme0n2", 32 * MIB), ("nvme0n3", 48 * MIB)];
        guest.run("one has come", &disks(&all));
        guest.run("write those beside", &verify(&["/dev/nvme0n2", "/dev/nvme0n3"]));
        guest.run("writes go on", &more);

        place.change(&several(&folder, &[("one", 1, disk::SIZE), ("new", 9, "64MiB")]));
        let guest = &mut place.guest;
        guest.run("one has gone, one is larger", &disks(&[("nvme0n1", 256 * MIB), ("nvme0n3", 64 * MIB)]));
        let listed = guest.run("list", "nvme list-ns /dev/nvme0");
        assert!(listed.contains("0x9") && !listed.contains("0x2"), "{listed}");
        guest.run("write the one beside", &verify(&["/dev/nvme0n3"]));
        guest.run("writes go on", &more);

        place.kill();
        place.start();
        let guest = &mut place.guest;
        guest.run("writes go on after kill -9", &more);
        guest.run("the other is there too", &verify(&["/dev/nvme0n3"]));
        disk::end_load(guest, DEVICE);
        guest.run("detach", &detach("several"));
        place.stop(&["one", "two", "new"]);
    });
}
