//! `tidegate-dataplane volume` as a person sees it: what it makes, what it says, what it refuses.

use std::fs;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes with the test.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-volume-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let place = Place(std::env::temp_dir().join(name));
        fs::create_dir_all(&place.0).unwrap();
        place
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive its test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn volume(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate-dataplane")).arg("volume").args(args).output().unwrap()
}

fn right(args: &[&str]) -> String {
    let output = volume(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn wrong(args: &[&str], code: i32, words: &str) {
    let output = volume(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(words), "{args:?}: {said}");
}

#[test]
fn a_volume_is_made_listed_checked_resized_and_deleted() {
    let place = Place::new();
    let (root, disk, log) = (place.at(""), place.at("disk"), place.at("log"));
    assert_eq!(
        right(&["create", &disk, "--size", "10GiB"]),
        format!("{disk}: 10GiB in blocks of 4096 bytes\n")
    );
    right(&["create", &log, "--size", "1536MiB", "--block", "512"]);
    fs::create_dir(place.at("no volume")).unwrap();
    let list = right(&["list", &root]);
    let identity = |row: usize| {
        let digits = list.lines().nth(row).and_then(|line| line.split_whitespace().nth(4));
        digits.filter(|digits| digits.len() == 32).expect("32 digits")
    };
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["VOLUME", "SIZE", "BLOCK", "DATA", "IDENTITY", "EPOCH"]);
    assert_eq!(
        rows[1..],
        [
            ["disk", "10GiB", "4096", "0B", identity(1), "1"],
            ["log", "1.50GiB", "512", "0B", identity(2), "1"]
        ]
    );
    assert_ne!(identity(1), identity(2));
    assert!(right(&["check", &disk]).ends_with("; all is well\n"));
    assert!(right(&["dump", &disk]).contains("2621440 blocks of 4096 bytes"));

    assert_eq!(right(&["resize", &disk, "--size", "20GiB"]), format!("{disk}: 20GiB, was 10GiB\n"));
    wrong(&["resize", &disk, "--size", "5GiB"], 1, "5GiB is smaller than it is (20GiB)");
    wrong(&["resize", &disk, "--size", "5GiB"], 1, "say --shrink if that is meant");
    right(&["resize", &disk, "--size", "5GiB", "--shrink"]);
    assert!(right(&["list", &root]).contains(" 5GiB "));
    right(&["check", &disk]);

    assert_eq!(right(&["delete", &disk]), format!("{disk}: deleted\n"));
    assert!(!Path::new(&disk).exists());
}

#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let place = Place::new();
    let (disk, other) = (place.at("disk"), place.at("other"));
    wrong(&["create", &disk, "--size", "10 gigs"], 2, "a size is written like 512MiB, 10GiB or 1TiB");
    wrong(&["create", &disk, "--size", "1GiB", "--block", "1024"], 2, "a block has 512 or 4096 bytes");
    wrong(&["create", &disk, "--size", "65TiB"], 1, "at most 64 TiB");
    assert!(!Path::new(&disk).exists(), "nothing is left behind");
    right(&["create", &disk, "--size", "1GiB"]);
    wrong(&["create", &disk, "--size", "1GiB"], 1, "choose another name or delete it first");
    wrong(&["resize", &disk, "--size", "1073742000"], 1, "the size must be whole 4 KiB pages");
    wrong(&["resize", &disk, "--size", "65TiB"], 1, "64 TiB");
    fs::create_dir(&other).unwrap();
    fs::write(place.at("other/letter"), "precious").unwrap();
    for words in [&["check"][..], &["dump"], &["delete"], &["resize", "--size", "1GiB"]] {
        wrong(&[words, &[&*other]].concat(), 1, "there is no volume; `volume list DIRECTORY` shows");
        wrong(&[words, &[&*place.at("nothing")]].concat(), 1, "there is no volume");
    }
    wrong(&["list", &place.at("nothing")], 1, "nothing: ");
    assert_eq!(fs::read_to_string(place.at("other/letter")).unwrap(), "precious");
}

#[test]
fn damage_is_told_and_can_be_deleted() {
    let place = Place::new();
    let disk = place.at("disk");
    right(&["create", &disk, "--size", "1GiB"]);
    let mut superblock = fs::OpenOptions::new().write(true).open(place.at("disk/superblock")).unwrap();
    superblock.seek(SeekFrom::Start(20)).unwrap();
    superblock.write_all(&[0xff; 8]).unwrap();
    drop(superblock);
    for command in ["check", "dump"] {
        wrong(&[command, &disk], 1, "restore it from a copy, or delete the volume");
    }
    assert!(right(&["list", &place.at("")]).contains("restore it from a copy"));
    right(&["delete", &disk]);
}

#[test]
fn a_volume_in_use_is_left_alone() {
    let place = Place::new();
    let (disk, socket) = (place.at("disk"), place.at("control.sock"));
    right(&["create", &disk, "--size", "1GiB"]);
    let text = format!(
        "[node]\nname = \"gw\"\ncontrol_socket = \"{socket}\"\nmetrics = \"off\"\n\
         [frames]\ncount = 1024\njumbo_count = 16\nhugepages = false\n\
         [serve]\nmemory = \"64MiB\"\nhugepages = false\n[nbd]\nlisten = [\"{}\"]\n\
         [[export]]\nname = \"disk\"\nmedium = \"file\"\ndirectory = \"{disk}\"\n",
        place.at("nbd.sock")
    );
    fs::write(place.at("gw.toml"), text).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_tidegate-dataplane"));
    daemon.args(["run", "--config", &place.at("gw.toml")]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut daemon = Held(daemon.spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(daemon.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.contains("1 export"), "it comes up: {ready:?}");
    let using = format!("process {} is using it; stop that data plane", daemon.0.id());
    wrong(&["delete", &disk], 1, &using);
    wrong(&["resize", &disk, "--size", "2GiB"], 1, &using);
    assert!(right(&["check", &disk]).ends_with("; all is well\n"), "reading hurts nobody");
    drop(daemon);
    right(&["resize", &disk, "--size", "2GiB"]);
    right(&["delete", &disk]);
}
