//! A disk that runs full under verified writes: new pages are refused with the right error, everything else goes on,
//! and no byte is wrong, before and after a restart.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use bench::load::{self, Figures, Spec, Uri};
use tests::disk::SmallDisk;
use tests::gateway::{daemon, folder, full};
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

/// Pages at random all over a volume that is much larger than its disk, with many under way, until that is full.
#[test]
fn a_disk_that_runs_full_under_load_returns_no_wrong_byte() {
    let test = "a_disk_that_runs_full_under_load_returns_no_wrong_byte";
    let (disk_bytes, size) = if full() { (4_u64 << 30, "1TiB") } else { (384 << 20, "32GiB") };
    let at = folder("serve-full-load");
    let disk = match SmallDisk::mount_ext4(&at.join("mounted"), disk_bytes) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    let directory = disk.at().join("thin");
    let thin = file("thin", &directory, size, 4096);
    let mut place = Place::secured(at.clone(), "serve-full-load", "", &[&thin]);
    let uri: Uri = place.tcp("thin").parse().expect("an address");
    let spec = |seed| Spec {
        connections: 2,
        depth: 32,
        verify: true,
        read_back: true,
        seed,
        duration: Duration::from_secs(600),
        ..Spec::new(uri.clone())
    };

    // Until half of the disk is used, it is used for what was written.
    let payload = disk_bytes / 2;
    let half = Spec { read_percent: 0, requests_max: Some(payload / 4096), ..spec(1) };
    let figures = load::run(&half, &mut |_| ControlFlow::Continue(())).expect("it goes to its end");
    assert!(
        figures.errors.is_empty() && figures.mismatch_count == 0,
        "{:?} {:?}",
        figures.errors,
        figures.mismatches
    );
    let used = used_bytes(&directory);
    let ahead = if full() { 0 } else { ROOM_AHEAD };
    let ratio = used.saturating_sub(ahead) as f64 / (figures.writes * 4096) as f64;
    println!("{test}: {} MiB written, {} MiB used: {ratio:.3}", payload >> 20, used >> 20);
    assert!(ratio <= 1.25, "{ratio} times the payload");

    // Then until there is no more room, and beyond.
    let (mut refused, end) = (0, disk_bytes / 4096);
    let more = Spec { read_percent: 30, requests_max: Some(end), ..spec(2) };
    let figures = load::run(&more, &mut |figures: &Figures| {
        refused = figures.errors.values().sum();
        if refused > 10_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let figures = figures.expect("it goes to its end");
    assert_eq!(figures.errors.keys().collect::<Vec<_>>(), [&ErrorCode::NOSPC.0], "{:?}", figures.errors);
    assert_eq!(figures.mismatch_count, 0, "{:?}", figures.mismatches);
    println!(
        "{test}: {} writes and {} reads, {} writes refused",
        figures.writes,
        figures.reads,
        figures.errors[&ErrorCode::NOSPC.0]
    );
    place.end();
    client(test, &daemon().to_string_lossy(), &["volume", "check", &directory.to_string_lossy()]);
    drop(disk);
    place.remove();
}

/// What a volume holds ready whatever was written to it, segments of its log and slices of its extents: much beside the
/// little that the short form writes.
const ROOM_AHEAD: u64 = 128 << 20;

/// Room that a volume takes on its disk.
fn used_bytes(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).expect("it is there");
    files.map(|file| file.expect("listed").metadata().expect("it is there").blocks() * 512).sum()
}
