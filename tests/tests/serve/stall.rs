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
/// Volumes that do not answer, clients of each, and requests of each of these: more than the ring's room for all of them.
const STUCK: usize = 4;
const CLIENTS: usize = 2;
const REQUESTS: u64 = 100;
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

/// Serves volumes on `device` and one beside it; `stop` has the device answer no more until what it returns is dropped.
fn holds_up_nobody<Stopped>(at: &Path, name: &'static str, device: &Path, stop: impl FnOnce() -> Stopped) {
    let disk = |name: &str, at: &Path| file(name, &at.join(name), "64MiB", BLOCK as u32);
    let names: Vec<String> = (0..STUCK).map(|number| format!("stuck-{number}")).collect();
    let mut exports: Vec<String> = names.iter().map(|name| disk(name, device)).collect();
    exports.push(disk("quick", at));
    let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
    let mut place = Place::secured(at.to_owned(), name, "", &exports);
    let mut stuck: Vec<_> =
        names.iter().flat_map(|name| [(); CLIENTS].map(|()| client(&place, name))).collect();
    let (mut quick, _) = client(&place, "quick");
    for one in stuck.iter_mut().map(|(client, _)| client).chain([&mut quick]) {
        one.write(0, &block(0)).expect("written");
        assert_eq!(one.flush().expect("answered"), ErrorCode::OK);
    }

    let stopped = stop();
    let mut sent = Vec::new();
    for (number, (client, _)) in stuck.iter_mut().enumerate() {
        // No two clients write the same.
        let first = (number % CLIENTS) as u64 * REQUESTS;
        let mut send = |page| client.send(WRITE, page * BLOCK as u64, BLOCK as u32, &block(page));
        sent.push((first..first + REQUESTS).map(|page| send(page).expect("sent")).collect::<Vec<u64>>());
    }
    for round in 0..ROUNDS {
        let (at, mut back) = (round * BLOCK as u64, vec![0; BLOCK]);
        quick.write(at, &block(round)).expect("written while the others wait");
        assert_eq!(quick.flush().expect("answered"), ErrorCode::OK, "round {round}");
        quick.read(at, &mut back).expect("read");
        assert!(back == block(round), "round {round}");
    }
    assert!(stuck.iter().all(|(_, socket)| !was_answered(socket)), "the device does not answer");

    drop(stopped);
    for ((client, _), sent) in stuck.iter_mut().zip(sent) {
        let mut answered: Vec<u64> = sent.iter().map(|_| client.answer().expect("it goes on")).collect();
        answered.sort_unstable();
        assert_eq!(answered, sent);
        assert_eq!(client.flush().expect("answered"), ErrorCode::OK);
    }
    drop((stuck, quick));
    place.end();
    place.start();
    for name in &names {
        let (mut stuck, _) = client(&place, name);
        for page in 0..CLIENTS as u64 * REQUESTS {
            let mut back = vec![0; BLOCK];
            stuck.read(page * BLOCK as u64, &mut back).expect("read");
            assert!(back == block(page), "page {page}");
        }
    }
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
