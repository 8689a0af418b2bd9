//! A bit that the medium turned: an error on read, never data, and found by `volume check`.

use std::path::{Path, PathBuf};
use std::process::Command as Program;

use agent::report::LeftOut;
use tests::disk::turn_bit;
use tests::gateway::{daemon, folder};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::client::Client;
use crate::place::{Place, file, memory};

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

/// Has the first bytes of each file of a volume be others, and returns how to undo it.
fn ruin(volume: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files =
        std::fs::read_dir(volume).expect("it is there").map(|entry| entry.expect("it is there").path());
    let sound: Vec<_> = files.map(|path| (path.clone(), std::fs::read(path).expect("read"))).collect();
    for (path, bytes) in &sound {
        let mut ruined = bytes.clone();
        ruined.iter_mut().take(BLOCK).for_each(|byte| *byte = !*byte);
        std::fs::write(path, ruined).expect("written");
    }
    sound
}

#[test]
fn a_volume_that_cannot_be_opened_keeps_no_other_from_being_served() {
    let at = folder("serve-ruined");
    let disk = |name: &str| file(name, &at.join(name), "64MiB", BLOCK as u32);
    let mut place = Place::new("serve-ruined", &[&disk("ruined"), &disk("sound")]);
    for name in ["ruined", "sound"] {
        let mut client = Client::unix(&place.socket(), name);
        client.write(0, &block(3)).expect("written");
        assert_eq!(client.flush().expect("answered"), ErrorCode::OK);
    }
    place.end();
    let sound = ruin(&at.join("ruined"));
    place.start();

    // One is served, and who asks hears what is wrong with the other.
    let mut back = [0; BLOCK];
    let mut client = Client::unix(&place.socket(), "sound");
    client.read(0, &mut back).expect("served");
    assert_eq!(back[..], block(3));
    let stats = place.daemon().stats();
    assert_eq!((stats.exports.len(), stats.left_out.len()), (1, 1));
    let LeftOut { name, why } = &stats.left_out[0];
    assert!(name == "ruined" && why.contains(&*at.join("ruined").to_string_lossy()), "{name}: {why}");
    let metrics = agent::metrics::text(&stats).expect("it can be said");
    assert!(metrics.contains("export_up{export=\"ruined\"} 0"), "{metrics}");

    // It is no reason to refuse other changes, and another one that cannot be opened still is.
    let said = place.change(&[&disk("ruined"), &disk("sound"), &memory("more", "1MiB", "")]);
    assert!(said.contains("1 added"), "{said}");
    let lost =
        file("lost", &at.join("lost"), "64MiB", BLOCK as u32).replace("create = true", "create = false");
    let refused = place.try_change(&[&disk("ruined"), &disk("sound"), &lost]).expect_err("it is not there");
    assert!(refused.contains("export \"lost\""), "{refused}");

    // When it is mended a reload serves it, with what was in it.
    for (path, bytes) in &sound {
        std::fs::write(path, bytes).expect("written");
    }
    // If something else is wrong by then, it stays left out with all that this means.
    let wrong = memory("wrong", "1MiB", &format!("description = \"{}\"", "x".repeat(2000)));
    let refused =
        place.try_change(&[&disk("ruined"), &disk("sound"), &wrong]).expect_err("it cannot be told");
    assert!(refused.contains("the description of export \"wrong\""), "{refused}");
    let stats = place.daemon().stats();
    assert_eq!((stats.exports.len(), stats.left_out.len()), (2, 1), "{:?}", stats.left_out);
    assert_eq!(stats.left_out[0].name, "ruined");
    let said = place.change(&[&disk("ruined"), &disk("sound")]);
    assert!(said.contains("1 added"), "{said}");
    let mut mended = Client::unix(&place.socket(), "ruined");
    mended.read(0, &mut back).expect("served");
    assert_eq!(back[..], block(3));
    client.read(0, &mut back).expect("its session went on");
    assert!(place.daemon().stats().left_out.is_empty());
    drop((client, mended));

    // Who has nothing else to do says so and ends.
    place.end();
    ruin(&at.join("ruined"));
    place.configure(&[&disk("ruined")]);
    let said = place.refusal();
    assert!(said.contains("export \"ruined\": "), "{said}");
    place.remove();
}
