//! The file medium on a real file system.

use std::time::{Duration, Instant};

use block::{Epoch, ExtentId, FileName, Piece};
use frame::IoSlabConfig;

use super::*;

const VOLUME: VolumeId = VolumeId(3);
const FILE: FileId = FileId(0);
const NAME: FileName = FileName::Extent { epoch: Epoch(1), id: ExtentId(1) };

struct Bed {
    media: FileMedia,
    pool: IoPool,
    directory: std::path::PathBuf,
}

impl Bed {
    fn new(name: &str, config: FileConfig) -> Bed {
        let directory = std::env::temp_dir().join(format!("tidegate-media-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let slab = IoSlab::new(IoSlabConfig { regions: 4, hugepages: false }).expect("maps");
        let mut media = FileMedia::new(&slab, config).expect("a ring");
        media.attach(VOLUME, &directory).expect("the directory is there");
        Bed { media, pool: IoPool::new(&slab, 4), directory }
    }

    /// Carries one request out and waits for its answer at the wait descriptor.
    fn run(&mut self, act: Act, buffer: Option<IoBuffer>, pieces: Vec<Piece>) -> Finished<IoBuffer> {
        let request = Request { volume: VOLUME, token: 9, act, buffer, pieces };
        self.media.submit(request, &self.pool).expect("there is room");
        let (mut out, start) = (Vec::new(), Instant::now());
        loop {
            self.media.poll(&mut out);
            if let Some(finished) = out.pop() {
                assert_eq!((finished.volume, finished.token, out.len()), (VOLUME, 9, 0));
                return finished;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no answer to {act:?}");
            let event = self.media.wait_fd().expect("the ring has one");
            let mut wait = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
            let bound = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut wait, Some(&bound)).expect("poll works");
            self.media.clear_wait();
        }
    }

    fn act(&mut self, act: Act) -> Result<(), Fault> {
        self.run(act, None, Vec::new()).result
    }

    fn buffer(&mut self, bytes: usize, fill: u8) -> IoBuffer {
        let mut buffer = self.pool.alloc(bytes).expect("there is room");
        self.pool.bytes_mut(&mut buffer).fill(fill);
        buffer
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.directory);
    }
}

fn piece(offset: u64, at: u32, bytes: u32) -> Piece {
    Piece { file: FILE, offset, at, bytes }
}

fn what_is_written_is_read(name: &str, direct: bool) {
    let mut bed = Bed::new(name, FileConfig { in_flight_max: 8, direct });
    assert_eq!(bed.act(Act::Create { file: FILE, name: NAME }), Ok(()));
    assert_eq!(bed.act(Act::Create { file: FILE, name: NAME }), Err(Fault::Exists));
    assert_eq!(bed.act(Act::Allocate { file: FILE, offset: 0, bytes: 1 << 20 }), Ok(()));
    let buffer = bed.buffer(64 << 10, 7);
    // More pieces than entries under way.
    let pieces: Vec<Piece> = (0..16).map(|n| piece(u64::from(n) * 8192, n * 4096, 4096)).collect();
    let written = bed.run(Act::Write, Some(buffer), pieces.clone());
    assert_eq!(written.result, Ok(()));
    assert_eq!(bed.act(Act::Sync(FILE)), Ok(()));
    assert_eq!(bed.act(Act::Punch { file: FILE, offset: 8192, bytes: 4096 }), Ok(()));
    let mut buffer = written.buffer.expect("it comes back");
    bed.pool.bytes_mut(&mut buffer).fill(0);
    let read = bed.run(Act::Read, Some(buffer), pieces);
    assert_eq!(read.result, Ok(()));
    let buffer = read.buffer.expect("it comes back");
    let bytes = bed.pool.bytes(&buffer);
    assert!(bytes[..4096].iter().chain(&bytes[8192..]).all(|&byte| byte == 7));
    assert!(bytes[4096..8192].iter().all(|&byte| byte == 0), "punched");
    // Unwritten but allocated reads as zeros; behind the end there is nothing.
    let read = bed.run(Act::Read, Some(buffer), vec![piece(4096, 0, 4096)]);
    assert_eq!(read.result, Ok(()));
    let buffer = read.buffer.expect("it comes back");
    assert!(bed.pool.bytes(&buffer)[..4096].iter().all(|&byte| byte == 0));
    let read = bed.run(Act::Read, Some(buffer), vec![piece(1 << 20, 0, 4096)]);
    assert_eq!(read.result, Err(Fault::Short));
    bed.pool.free(read.buffer.expect("it comes back"));
    assert_eq!(bed.act(Act::Probe(NAME)), Err(Fault::Exists));
    assert_eq!(bed.act(Act::Remove { file: FILE, name: NAME }), Ok(()));
    assert_eq!(bed.act(Act::Probe(NAME)), Ok(()));
    assert_eq!(bed.act(Act::Remove { file: FILE, name: NAME }), Err(Fault::Missing));
    assert_eq!(bed.act(Act::Sync(FILE)), Err(Fault::Missing));
    assert_eq!(bed.act(Act::Open { file: FILE, name: NAME }), Err(Fault::Missing));
    assert_eq!((bed.media.in_flight(), bed.media.room()), (0, 8));
}

#[test]
fn what_is_written_is_read_past_the_page_cache() {
    what_is_written_is_read("direct", true);
}

#[test]
fn what_is_written_is_read_through_the_page_cache() {
    what_is_written_is_read("cached", false);
}

#[test]
fn more_than_fits_is_handed_back() {
    let mut bed = Bed::new("bounded", FileConfig { in_flight_max: 8, direct: true });
    assert_eq!(bed.act(Act::Create { file: FILE, name: NAME }), Ok(()));
    let request =
        || Request { volume: VOLUME, token: 0, act: Act::Sync(FILE), buffer: None, pieces: Vec::new() };
    for _ in 0..4 {
        bed.media.submit(request(), &bed.pool).expect("there is room");
    }
    // The rest is for other file systems.
    assert_eq!((bed.media.room(), bed.media.in_flight()), (4, 4));
    assert!(bed.media.submit(request(), &bed.pool).is_err());
    assert!(!bed.media.detach(VOLUME), "busy");
    let mut out = Vec::new();
    bed.media.drain(&mut out);
    assert!(out.len() == 4 && out.iter().all(|finished| finished.result.is_ok()));
    assert!(bed.media.detach(VOLUME));
    assert_eq!(bed.act(Act::Sync(FILE)), Err(Fault::Missing));
}

#[test]
fn pieces_outside_the_buffer_are_refused() {
    let mut bed = Bed::new("outside", FileConfig::default());
    assert_eq!(bed.act(Act::Create { file: FILE, name: NAME }), Ok(()));
    let buffer = bed.buffer(4096, 1);
    let answer = bed.run(Act::Write, Some(buffer), vec![piece(0, 4096, 4096)]);
    assert_eq!(answer.result, Err(Fault::Io(libc::EINVAL)));
    bed.pool.free(answer.buffer.expect("it comes back"));
}

#[test]
fn what_cannot_be_set_up_says_why() {
    let slab = IoSlab::new(IoSlabConfig { regions: 1, hugepages: false }).expect("maps");
    let error = FileMedia::new(&slab, FileConfig { in_flight_max: 9, direct: true }).err().expect("refused");
    assert!(matches!(error, FileError::InFlight(9)), "{error}");
    let mut media = FileMedia::new(&slab, FileConfig::default()).expect("a ring");
    let error = media.attach(VOLUME, Path::new("/nonexistent")).expect_err("refused");
    assert!(matches!(error, FileError::Directory { .. }), "{error}");
}

#[test]
fn a_file_system_without_direct_io_is_said_aloud() {
    let mut bed = Bed::new("procfs", FileConfig::default());
    let told = Notice::NotDirect { volume: VOLUME, file: NAME }.to_string();
    assert!(told.contains("no direct I/O"), "{told}");
    assert!(Notice::NotRegistered("why".to_owned()).to_string().contains("ulimit -l"));
    assert!(bed.media.notices().iter().all(|notice| matches!(notice, Notice::NotRegistered(_))));
}
