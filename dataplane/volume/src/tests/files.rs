//! A volume on a real file system, through io_uring: what it is for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{BlockSize, Io, Lba, Op, Status, Tag, TraceId, VolumeId};
use frame::{IoPool, IoSlab, IoSlabConfig};
use media::{FileConfig, FileMedia, Media};

use crate::{Config, HostDirectory, Volume, open, store};

const ID: VolumeId = VolumeId(4);

struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Root {
        let path = std::env::temp_dir().join(format!("tidegate-volume-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Root(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

struct Served {
    volume: Volume,
    media: FileMedia,
    pool: IoPool,
    turns: u64,
}

impl Served {
    fn new(directory: &HostDirectory, slab: &Arc<IoSlab>, config: Config) -> Served {
        let (volume, _) = open(directory, ID, config).expect("opens");
        let mut media = FileMedia::new(slab, FileConfig::default()).expect("a ring");
        media.attach(ID, directory.path()).expect("the directory is there");
        Served { volume, media, pool: IoPool::new(slab, slab.regions()), turns: 0 }
    }

    /// One turn of a worker; the answers.
    fn turn(&mut self) -> Vec<(u64, Status, Vec<u8>)> {
        self.turns += 1;
        let now_ns = self.turns * 1000;
        while self.media.room() > 0 {
            let Some(request) = self.volume.dispatch() else { break };
            if let Err(request) = self.media.submit(request, &self.pool) {
                self.volume.put_back(request);
                break;
            }
        }
        let mut out = Vec::new();
        self.media.poll(&mut out);
        out.into_iter().for_each(|finished| self.volume.complete(finished, &mut self.pool, now_ns));
        self.volume.step(&mut self.pool, now_ns);
        let mut answers = Vec::new();
        while let Some(done) = self.volume.finished() {
            let bytes = done.buffer.as_ref().map(|buffer| self.pool.bytes(buffer).to_vec());
            done.buffer.into_iter().for_each(|buffer| self.pool.free(buffer));
            answers.push((done.tag.0, done.status, bytes.unwrap_or_default()));
        }
        answers
    }

    fn submit(&mut self, op: Op, lba: u64, blocks: u32, tag: u64, bytes: Option<&[u8]>) {
        let buffer = bytes.map(|bytes| {
            let mut buffer = self.pool.alloc(bytes.len()).expect("there is memory");
            self.pool.bytes_mut(&mut buffer).copy_from_slice(bytes);
            buffer
        });
        let io = Io { volume: ID, op, lba: Lba(lba), blocks, tag: Tag(tag), trace: TraceId(0), buffer };
        self.volume.process(io, &mut self.pool, self.turns * 1000);
    }

    fn until_idle(&mut self) -> Vec<(u64, Status, Vec<u8>)> {
        let mut answers = Vec::new();
        // A sync takes as long as the disk that others use too.
        let end = Instant::now() + Duration::from_secs(120);
        while Instant::now() < end {
            answers.extend(self.turn());
            if self.volume.is_idle() && !self.volume.wants_step() {
                return answers;
            }
        }
        panic!("it never came to rest");
    }

    fn close(mut self) {
        self.until_idle();
        self.volume.close(&mut self.pool);
    }
}

fn page_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(512)
}

#[test]
fn a_volume_lives_on_files_through_restarts() {
    let root = Root::new("files");
    let directory = store::create(&root.0.join("v"), 64 << 20, BlockSize::B4096).expect("created");
    let slab = IoSlab::new(IoSlabConfig { regions: 16, hugepages: false }).expect("maps");
    let config = Config {
        log_segment_bytes: 64 << 10,
        delta_entries_max: 500,
        expand_bytes: 1 << 20,
        free_threshold_bytes: 256 << 10,
        reserve_bytes: 64 << 10,
        ..Config::default()
    };
    for round in 0..3_u64 {
        let mut served = Served::new(&directory, &slab, config);
        let mut answered = 0;
        for number in 0..2000_u64 {
            let page = number * 7 % 2000;
            while served.volume.room() == 0 {
                answered += served.turn().len();
            }
            let op = Op::Write { fua: number % 500 == 0 };
            served.submit(op, page * 3, 1, number, Some(&page_of(page + round)));
            if number % 32 == 0 {
                answered +=
                    served.turn().into_iter().inspect(|(_, status, _)| assert!(status.is_ok())).count();
            }
        }
        while served.volume.room() == 0 {
            answered += served.turn().len();
        }
        served.submit(Op::Flush, 0, 0, 9999, None);
        let rest = served.until_idle();
        let failed: Vec<_> = rest.iter().filter(|(_, status, _)| !status.is_ok()).collect();
        assert!(failed.is_empty(), "round {round}: {failed:?}, {:?}", served.volume.stats());
        assert_eq!(answered + rest.len(), 2001);
        assert!(served.volume.stats().checkpoints > 0, "{:?}", served.volume.stats());
        served.close();
        let checked = store::check(&directory).expect("readable");
        assert_eq!((checked.problem_count, checked.pages), (0, 2000), "{:?}", checked.problems);
        let mut served = Served::new(&directory, &slab, config);
        for page in 0..2000 {
            served.submit(Op::Read, page * 3, 1, page, Some(&page_of(0)));
            for (tag, status, bytes) in served.until_idle() {
                assert_eq!((status, bytes), (Status::Ok, page_of(tag + round)));
            }
        }
        served.close();
    }
}

#[test]
fn blocks_of_512_bytes_are_read_and_written_anywhere() {
    let root = Root::new("small-blocks");
    let directory = store::create(&root.0.join("v"), 8 << 20, BlockSize::B512).expect("created");
    let slab = IoSlab::new(IoSlabConfig { regions: 16, hugepages: false }).expect("maps");
    let mut served = Served::new(&directory, &slab, Config::default());
    let mut model = vec![0; 8 << 20];
    for (number, (lba, blocks)) in [(3, 40), (0, 5), (41, 1), (17, 2048), (100, 300)].into_iter().enumerate()
    {
        let bytes = vec![number as u8 + 1; blocks as usize * 512];
        model[lba * 512..][..bytes.len()].copy_from_slice(&bytes);
        served.submit(Op::Write { fua: true }, lba as u64, blocks, 1, Some(&bytes));
        assert_eq!(served.until_idle(), [(1, Status::Ok, bytes)]);
        for (lba, blocks) in [(0, 2048), (1, 2048), (7, 1), (2047, 33)] {
            served.submit(Op::Read, lba as u64, blocks, 2, Some(&vec![0xee; blocks as usize * 512]));
            let answers = served.until_idle();
            assert_eq!(answers[0].1, Status::Ok);
            assert!(
                answers[0].2 == model[lba * 512..][..blocks as usize * 512],
                "from {lba}, {blocks} blocks"
            );
        }
    }
    served.close();
    assert_eq!(store::check(&directory).expect("readable").problem_count, 0);
}
