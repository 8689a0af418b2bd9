//! Two daemons and one volume (decision D10): the second takes it over, the first acknowledges nothing from then
//! on, also when it was stopped in the middle of its writes and goes on later.

use std::os::unix::net::UnixStream;

use rustix::process::{Pid, Signal, kill_process};
use tests::gateway::{daemon, folder};
use tests::netns::client;
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::client::Client;
use crate::place::{Place, file};

const PAGE: usize = 4096;
const PAGES: u64 = 64;
const WRITE: (Command, CommandFlags) = (Command::WRITE, CommandFlags(0));
const READ: (Command, CommandFlags) = (Command::READ, CommandFlags(0));
const FLUSH: (Command, CommandFlags) = (Command::FLUSH, CommandFlags(0));

fn offset(page: u64) -> u64 {
    page * PAGE as u64
}

/// The one value that each page holds.
fn values(client: &mut Client) -> Vec<u8> {
    let mut bytes = vec![0; PAGES as usize * PAGE];
    client.read(0, &mut bytes).expect("the owner answers");
    let value = |page: &[u8]| {
        assert!(page.iter().all(|byte| *byte == page[0]), "a page is of one write");
        page[0]
    };
    bytes.chunks_exact(PAGE).map(value).collect()
}

/// The first owner writes, is stopped or not, is replaced, goes on, and is refused.
fn take_over(name: &'static str, other: &'static str, stopped: bool) {
    let shared = folder(name).join("shared");
    let export = file("disk", &shared, "64MiB", 4096);
    let mut first = Place::new(name, &[&export]);
    let mut old = Client::unix(&first.socket(), "disk");
    old.write(0, &vec![1; PAGES as usize * PAGE]).expect("it is served");
    assert_eq!(old.flush().expect("it answers"), ErrorCode::OK);
    let sent: Vec<u64> = (0..PAGES)
        .map(|page| old.send(WRITE, offset(page), PAGE as u32, &[2; PAGE]).expect("it listens"))
        .collect();
    let pid = Pid::from_child(&first.daemon().process.0);
    // Some of the answers are on their way, and some are not.
    let mut acknowledged = vec![old.answer().expect("the first answer")];
    if stopped {
        kill_process(pid, Signal::STOP).expect("it lives");
        let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
        first.daemon().until("it is stopped", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
    }
    let mut second = Place::new(other, &[&export]);
    let socket = second.socket();
    second.daemon().until("it serves", || UnixStream::connect(&socket).is_ok());
    let mut new = Client::unix(&socket, "disk");
    let seen = values(&mut new);
    assert!(seen.iter().all(|value| [1, 2].contains(value)), "what the first owner wrote: {seen:?}");
    new.write(0, &vec![3; PAGES as usize / 2 * PAGE]).expect("the second owner writes");
    assert_eq!(new.flush().expect("it answers"), ErrorCode::OK);
    if stopped {
        kill_process(pid, Signal::CONT).expect("it lives");
    }
    for _ in 1..sent.len() {
        let reply = old.reply().expect("every request is answered");
        if reply.error == ErrorCode::OK {
            acknowledged.push(reply.cookie);
        }
    }
    for (page, cookie) in sent.iter().enumerate() {
        assert!(
            !acknowledged.contains(cookie) || seen[page] == 2,
            "page {page} was acknowledged by the first owner, and the second does not have it"
        );
    }
    for request in [WRITE, READ, FLUSH] {
        let (length, payload) = match request {
            WRITE => (PAGE, &[9; PAGE][..]),
            READ => (PAGE, &[][..]),
            _ => (0, &[][..]),
        };
        old.send(request, 0, length as u32, payload).expect("it listens");
        let reply = old.reply().expect("it answers");
        assert_ne!(reply.error, ErrorCode::OK, "{request:?} of the first owner");
    }
    let half = PAGES as usize / 2;
    let now = values(&mut new);
    assert_eq!(
        (&now[..half], &now[half..]),
        (&vec![3; half][..], &seen[half..]),
        "nothing of the first since"
    );
    drop((old, new));
    first.end();
    second.end();
    let directory = shared.to_string_lossy();
    client(name, &daemon().to_string_lossy(), &["volume", "check", &directory]).expect("it was built");
    second.remove();
    first.remove();
}

#[test]
fn an_owner_that_was_stopped_is_refused_when_it_goes_on() {
    take_over("serve-fence-stopped", "serve-fence-heir", true);
}

#[test]
fn an_owner_that_runs_on_is_refused() {
    take_over("serve-fence-running", "serve-fence-usurper", false);
}
