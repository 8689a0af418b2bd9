//! The kernel's NVMe/TCP host.

use std::path::Path;

use tests::gateway::full;
use tests::guest::{HOST, Has, STEP_LIMIT};
use tests::netns::isolated;
use tests::traffic::{capture, dissect_loopback, end};

use crate::disk;
use crate::place::{Place, export};

/// The port on which the daemon serves NVMe/TCP.
const PORT: u16 = 4420;
const DEVICE: &str = "/dev/nvme0n1";
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

fn has<'a>(programs: &'a [&'a str]) -> Has<'a> {
    Has { modules: &["nvme-tcp"], programs, own: &[] }
}

/// Who comes, and where to.
fn parties() -> String {
    format!("-t tcp -a {HOST} -s {PORT} -q {HOST_NQN} -I {HOST_ID}")
}

/// What attaches a volume and waits for its disk. For ten minutes the kernel tries to reach a controller that is gone,
/// which no restart takes.
fn attach(volume: &str, digests: &str) -> String {
    format!(
        "nvme connect {} -n {} --nr-io-queues=2 --ctrl-loss-tmo=600 --reconnect-delay=1 {digests}
         until [ -b {DEVICE} ]; do usleep 10000; done",
        parties(),
        nqn(volume)
    )
}

fn detach(volume: &str) -> String {
    format!("nvme disconnect -n {}", nqn(volume))
}

/// Looks at what there is, and is shown what it may see.
fn discovers(place: &mut Place) {
    let guest = &mut place.guest;
    let found = guest.run("discover", &format!("nvme discover {}", parties()));
    for (volume, shown) in [("pages", true), ("sectors", true), ("closed", false)] {
        assert_eq!(found.contains(&nqn(volume)), shown, "{volume}: {found}");
    }
    let refused = format!("nvme connect {} -n {}", parties(), nqn("closed"));
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
