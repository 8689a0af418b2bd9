//! Devices that do not answer for a while: a file system whose server stands still, and one that is frozen. Volumes on
//! others, at the same worker, go on; and when it answers again nothing was lost.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use tests::disk::SmallDisk;
use tests::gateway::folder;
use tests::netns::{Held, skip};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::client::Client;
use crate::place::{Place, file};

const BLOCK: usize = 4096;
/// Requests to the one that does not answer.
const STUCK: u64 = 100;
/// Writes, each flushed and read, to the other.
const ROUNDS: u64 = 200;
const WRITE: (Command, CommandFlags) = (Command::WRITE, CommandFlags(0));

/// A client that does not wait for ever, and its socket.
fn client(place: &Place, export: &str) -> (Client, UnixStream) {
    let socket = UnixStream::connect(place.socket()).expect("the daemon listens");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let same = socket.try_clone().expect("a descriptor");
    (Client::new(Box::new(socket), export).expect("it has the export"), same)
}

fn was_answered(socket: &UnixStream) -> bool {
    let mut readable = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut readable, Some(&Timespec::default())).expect("poll works") > 0
}

fn block(fill: u64) -> Vec<u8> {
    vec![fill as u8 + 1; BLOCK]
}

/// Serves a volume on `device` and one beside it; `stop` has the device answer no more until what it returns is dropped.
fn holds_up_nobody<Stopped>(at: &Path, name: &'static str, device: &Path, stop: impl FnOnce() -> Stopped) {
    let disk = |name: &str, at: &Path| file(name, &at.join(name), "64MiB", BLOCK as u32);
    let exports = [disk("stuck", device), disk("quick", at)];
    let mut place = Place::secured(at.to_owned(), name, "", &[&exports[0], &exports[1]]);
    let ((mut stuck, socket), (mut quick, _)) = (client(&place, "stuck"), client(&place, "quick"));
    for one in [&mut stuck, &mut quick] {
        one.write(0, &block(0)).expect("written");
        assert_eq!(one.flush().expect("answered"), ErrorCode::OK);
    }

    let stopped = stop();
    let mut send = |page| stuck.send(WRITE, page * BLOCK as u64, BLOCK as u32, &block(page)).expect("sent");
    let sent: Vec<u64> = (0..STUCK).map(&mut send).collect();
    for round in 0..ROUNDS {
        let (at, mut back) = (round * BLOCK as u64, vec![0; BLOCK]);
        quick.write(at, &block(round)).expect("written while the other one waits");
        assert_eq!(quick.flush().expect("answered"), ErrorCode::OK, "round {round}");
        quick.read(at, &mut back).expect("read");
        assert!(back == block(round), "round {round}");
    }
    assert!(!was_answered(&socket), "the device does not answer");

    drop(stopped);
    let mut answered: Vec<u64> = (0..STUCK).map(|_| stuck.answer().expect("it goes on")).collect();
    answered.sort_unstable();
    assert_eq!(answered, sent);
    assert_eq!(stuck.flush().expect("answered"), ErrorCode::OK);
    drop((stuck, socket, quick));
    place.end();
    place.start();
    let (mut stuck, _) = client(&place, "stuck");
    for page in 0..STUCK {
        let mut back = vec![0; BLOCK];
        stuck.read(page * BLOCK as u64, &mut back).expect("read");
        assert!(back == block(page), "page {page}");
    }
    drop(stuck);
    place.end();
}

/// A directory that is shown at another place by a process, and unmounted with it.
struct Bound {
    server: Held,
    at: PathBuf,
}

impl Bound {
    fn new(from: &Path, at: PathBuf) -> Option<Bound> {
        std::fs::create_dir_all(from).expect("a directory");
        std::fs::create_dir_all(&at).expect("a directory");
        let server =
            Program::new("bindfs").arg("-f").arg(from).arg(&at).stderr(Stdio::null()).spawn().ok()?;
        let server = Held(server);
        let is_there = || {
            std::fs::read_to_string("/proc/self/mounts").is_ok_and(|all| all.contains(&*at.to_string_lossy()))
        };
        server.until("the directory is shown", is_there);
        Some(Bound { server, at })
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.server.0), signal).expect("it is our child");
    }
}

/// Goes on when it is dropped.
struct Standing<'a>(&'a Bound);

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // It fails only where its server has gone already.
        let _ = Program::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[test]
fn a_file_system_whose_server_stands_still_holds_up_no_volume_on_another() {
    let at = folder("serve-stall-fuse");
    let Some(bound) =
        (rustix::process::geteuid().is_root()).then(|| Bound::new(&at.join("behind"), at.join("shown")))
    else {
        return skip("serve-stall-fuse", "root mounts a file system that a process serves");
    };
    let Some(bound) = bound else { return skip("serve-stall-fuse", "bindfs is not installed") };
    holds_up_nobody(&at, "serve-stall-fuse", &bound.at, || {
        bound.signal(Signal::STOP);
        Standing(&bound)
    });
    drop(bound);
    std::fs::remove_dir_all(&at).expect("the folder can be removed");
}

#[test]
fn a_frozen_file_system_holds_up_no_volume_on_another() {
    let at = folder("serve-stall-frozen");
    let disk = match SmallDisk::mount_ext4(&at.join("mounted"), 256 << 20) {
        Ok(disk) => disk,
        Err(why) => return skip("serve-stall-frozen", &why),
    };
    holds_up_nobody(&at, "serve-stall-frozen", disk.at(), || disk.freeze());
    drop(disk);
    std::fs::remove_dir_all(&at).expect("the folder can be removed");
}
