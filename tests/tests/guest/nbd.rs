//! The kernel's NBD client.

use std::path::Path;

use tests::gateway::full;
use tests::guest::{HOST, Has};
use tests::netns::isolated;
use tests::traffic::{capture, dissect_loopback, end};

use crate::disk;
use crate::place::{Place, export};

/// The port on which the daemon serves NBD; that it is the registered one matters to nobody but a reader.
const PORT: u16 = 10809;
const DEVICE: &str = "/dev/nbd0";

fn exports(folder: &Path) -> String {
    format!(
        "[nbd]\nlisten = [\"127.0.0.1:{PORT}\"]\n{}{}",
        export("pages", folder, disk::SIZE, 4096),
        export("sectors", folder, disk::SIZE, 512)
    )
}

/// What attaches a volume, over four connections. A request that is not answered for so many seconds is sent again.
fn attach(volume: &str, block: u32, seconds: u32) -> String {
    format!("nbd-client -N {volume} -b {block} -C 4 -t {seconds} {HOST} {PORT} {DEVICE}")
}

fn detach() -> String {
    format!("nbd-client -d {DEVICE}")
}

#[test]
fn a_linux_guest_uses_volumes_over_nbd() {
    const TEST: &str = "nbd::a_linux_guest_uses_volumes_over_nbd";
    let programs = [&disk::PROGRAMS[..], &["nbd-client"]].concat();
    let has = Has { modules: &["nbd"], programs: &programs, own: &[] };
    isolated(TEST, || {
        let Some(mut place) = Place::new(TEST, "guest-nbd", exports, &has) else { return };
        let file = place.folder.join("lo.pcapng");
        let capturing = capture(&place.space, "lo", &file);
        let volumes = [("sectors", 512), ("pages", 4096)];
        for (volume, block) in &volumes[..if full() { 2 } else { 1 }] {
            disk::used(&mut place, DEVICE, &attach(volume, *block, 600), &detach());
        }
        end(capturing);
        // No connection has a port for NBD; tshark knows it by its magic numbers.
        let seen = |filter: &str| dissect_loopback(&file, &["nbd"], filter, &["frame.number"]);
        assert!(seen("nbd").len() > 100, "requests and replies are recognised");
        assert_eq!(seen("_ws.malformed"), Vec::<String>::new(), "malformed frames in {}", file.display());
        place.stop(&["pages", "sectors"]);
    });
}

#[test]
#[ignore = "waits for time-outs of the guest's kernel; `cargo xtask guest` runs it"]
fn a_linux_guest_survives_the_daemon_over_nbd() {
    const TEST: &str = "nbd::a_linux_guest_survives_the_daemon_over_nbd";
    let programs = [&disk::PROGRAMS[..], &["nbd-client"]].concat();
    let reattach = Path::new(env!("CARGO_BIN_EXE_nbd-reattach"));
    let has = Has { modules: &["nbd"], programs: &programs, own: &[reattach] };
    isolated(TEST, || {
        let Some(mut place) = Place::new(TEST, "guest-nbd-kill", exports, &has) else { return };
        // The kernel keeps requests for ten minutes, which no restart takes.
        let attach = format!("{}; nbd-reattach 0 600", attach("pages", 4096, 10));
        // The kernel hears within moments that its connections are dead, and until then takes no others.
        let again = format!("until nbd-reattach 0 600 pages {HOST}:{PORT} 4; do usleep 100000; done");
        disk::outlives(&mut place, DEVICE, &attach, &again, &detach());
        place.stop(&["pages"]);
    });
}
