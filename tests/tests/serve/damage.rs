//! A bit that the medium turned: an error on read, never data, and found by `volume check`.

use std::path::Path;
use std::process::Command as Program;

use tests::disk::turn_bit;
use tests::gateway::{daemon, folder};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::client::Client;
use crate::place::{Place, file};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
/// The one whose bit is turned.
const TURNED: u64 = 17;

fn block(lba: u64) -> Vec<u8> {
    vec![lba as u8 + 1; BLOCK]
}

/// What `volume check` says, and whether it is content.
fn check(volume: &Path) -> (bool, String) {
    let run = Program::new(daemon()).args(["volume", "check"]).arg(volume).output().expect("it runs");
    (run.status.success(), String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned())
}

#[test]
fn a_turned_bit_is_an_error_and_never_data() {
    let volume = folder("serve-damage").join("disk");
    let mut place = Place::new("serve-damage", &[&file("disk", &volume, "64MiB", BLOCK as u32)]);
    let mut client = Client::unix(&place.socket(), "disk");
    for lba in 0..BLOCKS {
        client.write(lba * BLOCK as u64, &block(lba)).expect("written");
    }
    assert_eq!(client.flush().expect("answered"), ErrorCode::OK);
    place.end();
    let (content, said) = check(&volume);
    assert!(content && said.contains(&format!(": {BLOCKS} pages, ")), "{said}");

    // While nobody serves it.
    turn_bit(&volume, &block(TURNED));
    let (content, said) = check(&volume);
    assert!(!content && said.contains(&format!("block {TURNED}: checksum mismatch in extent ")), "{said}");
    assert!(said.contains("1 problem; restore those blocks from a copy"), "{said}");

    // Served, all but what is damaged.
    place.start();
    let mut client = Client::unix(&place.socket(), "disk");
    for lba in 0..BLOCKS {
        let read = (Command::READ, CommandFlags(0));
        client.send(read, lba * BLOCK as u64, BLOCK as u32, &[]).expect("sent");
        let reply = client.reply().expect("answered");
        if lba == TURNED {
            assert_eq!(reply.error, ErrorCode::IO, "block {lba}");
            continue;
        }
        assert_eq!(reply.error, ErrorCode::OK, "block {lba}");
        let mut back = [0; BLOCK];
        client.payload(&mut back).expect("with data");
        assert!(back[..] == block(lba), "block {lba}");
    }
    let (content, said) = check(&volume);
    let process = format!("process {} is using it", place.daemon().process.0.id());
    assert!(
        !content && said.contains(&process) && said.contains("check again before you believe it"),
        "{said}"
    );
    place.stop();
}
