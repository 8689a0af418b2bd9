//! A disk that runs full under verified writes: new pages are refused with the right error, everything else goes on,
//! and no byte is wrong, before and after a restart.

use std::collections::BTreeMap;

use tests::disk::SmallDisk;
use tests::gateway::{daemon, folder};
use tests::netns::{client, skip};
use tests::random::Random;
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::client::Client;
use crate::place::{Place, file, memory};

/// Bytes of a write: a few pages.
const BYTES: usize = 32 << 10;
const DISK_BYTES: u64 = 160 << 20;
/// More writes than the disk has room for.
const WRITES_MAX: u64 = DISK_BYTES / BYTES as u64;

fn bytes_of(block: u64, write: u64) -> Vec<u8> {
    let mut random = Random::new(block << 32 | write | 1);
    let words = std::iter::repeat_with(|| random.below(1_u64 << 32) as u32);
    words.take(BYTES / 4).flat_map(u32::to_le_bytes).collect()
}

/// A client that knows what must be where.
struct Writer {
    client: Client,
    /// By block: the write that is there.
    there: BTreeMap<u64, u64>,
}

impl Writer {
    fn ask(&mut self, command: Command, block: u64, payload: &[u8]) -> ErrorCode {
        let request = (command, CommandFlags(0));
        self.client.send(request, block * BYTES as u64, BYTES as u32, payload).expect("it listens");
        self.client.reply().expect("it answers").error
    }

    fn write(&mut self, block: u64, write: u64) -> ErrorCode {
        let error = self.ask(Command::WRITE, block, &bytes_of(block, write));
        if error == ErrorCode::OK {
            self.there.insert(block, write);
        }
        error
    }

    fn verify(&mut self) {
        let mut bytes = vec![0; BYTES];
        for (block, write) in &self.there {
            self.client.read(block * BYTES as u64, &mut bytes).expect("it answers");
            assert!(bytes == bytes_of(*block, *write), "block {block} holds write {write}");
        }
    }
}

#[test]
fn a_disk_that_runs_full_costs_new_pages_and_nothing_else() {
    let test = "a_disk_that_runs_full_costs_new_pages_and_nothing_else";
    let disk = match SmallDisk::mount(&folder("serve-full-disk"), DISK_BYTES) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    let directory = disk.at().join("thin");
    let exports = [file("thin", &directory, "1GiB", 4096), memory("other", "16MiB", "")];
    let mut place = Place::new("serve-full", &exports.each_ref().map(String::as_str));
    let mut writer = Writer { client: Client::unix(&place.socket(), "thin"), there: BTreeMap::new() };
    let mut other = Client::unix(&place.socket(), "other");
    let mut next = 0;
    while writer.write(next, 1) == ErrorCode::OK {
        next += 1;
        assert!(next < WRITES_MAX, "more was written than there is room for");
    }
    let payload = next * BYTES as u64;
    assert!(payload > 64 << 20, "{payload} bytes until the disk was full");
    for block in next..next + 20 {
        let error = writer.write(block, 1);
        // The end of a log that was given back may hold a few pages more.
        assert!([ErrorCode::NOSPC, ErrorCode::OK].contains(&error), "{error:?}");
        other.write(0, &[7; 4096]).expect("the other volume does not notice");
    }
    let mut random = Random::new(0x6675_6c6c);
    for write in 2..400 {
        let block = random.below(next);
        assert_eq!(writer.write(block, write), ErrorCode::OK, "an overwrite, number {write}");
    }
    assert_eq!(writer.client.flush().expect("it answers"), ErrorCode::OK);
    writer.verify();
    for block in 0..next / 2 {
        assert_eq!(writer.ask(Command::TRIM, block, &[]), ErrorCode::OK);
        writer.there.remove(&block);
    }
    assert_eq!(writer.client.flush().expect("it answers"), ErrorCode::OK);
    place.daemon().until("there is room again", || writer.write(next + 100, 1) == ErrorCode::OK);
    for block in next + 101..next + 300 {
        assert_eq!(writer.write(block, 1), ErrorCode::OK, "block {block} in the room of what was trimmed");
    }
    writer.verify();
    assert_eq!(writer.client.flush().expect("it answers"), ErrorCode::OK);
    let there = writer.there;
    drop((writer.client, other));
    place.end();
    client(test, &daemon().to_string_lossy(), &["volume", "check", &directory.to_string_lossy()]);
    place.start();
    let mut writer = Writer { client: Client::unix(&place.socket(), "thin"), there };
    writer.verify();
    drop(writer);
    place.stop();
    let mounted = disk.at().to_owned();
    drop(disk);
    std::fs::remove_dir_all(mounted).expect("the folder can be removed");
}
