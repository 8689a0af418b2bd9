//! How fast a volume and its medium are by themselves, without a session: requests per second at some depth.
//!
//! `cargo run --release -p volume --example volume_iops -- DIRECTORY [SECONDS]` makes a volume of 1 GiB in a new directory
//! below DIRECTORY, measures, and deletes it.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use block::{BlockSize, Done, Finished, Io, Lba, Op, Request, Tag, TraceId, VolumeId};
use frame::{IoBuffer, IoPool, IoSlab, IoSlabConfig};
use media::{FileConfig, FileMedia, Media, MemoryMedia};
use volume::{Config, FlatVolume, Volume, open, store};

const ID: VolumeId = VolumeId(1);
const BYTES: u64 = 1 << 30;
const BLOCKS: u64 = BYTES / 4096;

/// Both kinds of volume, as a worker drives them.
enum Served {
    Thin(Box<Volume>),
    Flat(FlatVolume),
}

impl Served {
    fn process(&mut self, io: Io<IoBuffer>, pool: &mut IoPool, now_ns: u64) {
        match self {
            Served::Thin(volume) => volume.process(io, pool, now_ns),
            Served::Flat(volume) => volume.process(io, pool),
        }
    }

    fn dispatch(&mut self) -> Option<Request<IoBuffer>> {
        match self {
            Served::Thin(volume) => volume.dispatch(),
            Served::Flat(volume) => volume.dispatch(),
        }
    }

    fn complete(&mut self, finished: Finished<IoBuffer>, pool: &mut IoPool, now_ns: u64) {
        match self {
            Served::Thin(volume) => volume.complete(finished, pool, now_ns),
            Served::Flat(volume) => volume.complete(finished, pool),
        }
    }

    fn step(&mut self, pool: &mut IoPool, now_ns: u64) {
        if let Served::Thin(volume) = self {
            volume.step(pool, now_ns);
        }
    }

    fn finished(&mut self) -> Option<Done<IoBuffer>> {
        match self {
            Served::Thin(volume) => volume.finished(),
            Served::Flat(volume) => volume.finished(),
        }
    }
}

struct Run<'a> {
    served: &'a mut Served,
    media: &'a mut dyn Media,
    pool: &'a mut IoPool,
    finished: Vec<Finished<IoBuffer>>,
    start: Instant,
}

impl Run<'_> {
    fn turn(&mut self, done: &mut Vec<Done<IoBuffer>>) {
        let now_ns = self.start.elapsed().as_nanos() as u64 + 1;
        self.served.step(self.pool, now_ns);
        while self.media.room() > 0 {
            let Some(request) = self.served.dispatch() else { break };
            let refused = self.media.submit(request, self.pool);
            assert!(refused.is_ok(), "there was room");
        }
        self.media.poll(&mut self.finished);
        for finished in self.finished.drain(..) {
            self.served.complete(finished, self.pool, now_ns);
        }
        done.extend(std::iter::from_fn(|| self.served.finished()));
    }

    /// Requests for some time at a depth; answers per second, and the median time to one.
    fn measure(
        &mut self,
        op: Op,
        blocks: u32,
        depth: usize,
        time: Duration,
        next: &mut dyn FnMut() -> u64,
    ) -> (u64, Duration) {
        let (mut idle, mut done, mut answered): (Vec<IoBuffer>, Vec<Done<IoBuffer>>, u64) =
            (Vec::new(), Vec::new(), 0);
        let mut begun = vec![Instant::now(); depth];
        let mut free: Vec<usize> = (0..depth).collect();
        let mut latencies = Vec::new();
        for _ in 0..depth {
            let mut buffer = self.pool.alloc(blocks as usize * 4096).expect("there is memory");
            self.pool.bytes_mut(&mut buffer).fill(7);
            idle.push(buffer);
        }
        let (begin, mut stopping) = (Instant::now(), false);
        while !stopping || free.len() < depth {
            stopping = begin.elapsed() >= time;
            while !stopping && let (Some(slot), Some(buffer)) = (free.pop(), idle.pop()) {
                begun[slot] = Instant::now();
                let lba = Lba(next() / u64::from(blocks) * u64::from(blocks));
                let (tag, trace, buffer) = (Tag(slot as u64), TraceId(0), Some(buffer));
                let now_ns = self.start.elapsed().as_nanos() as u64 + 1;
                self.served.process(
                    Io { volume: ID, op, lba, blocks, tag, trace, buffer },
                    self.pool,
                    now_ns,
                );
            }
            self.turn(&mut done);
            for answer in done.drain(..) {
                assert!(answer.status.is_ok(), "{}", answer.status);
                let slot = answer.tag.0 as usize;
                latencies.push(begun[slot].elapsed());
                free.push(slot);
                idle.extend(answer.buffer);
                answered += 1;
            }
        }
        let taken = begin.elapsed();
        idle.into_iter().for_each(|buffer| self.pool.free(buffer));
        latencies.sort();
        let median = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
        ((answered as f64 / taken.as_secs_f64()) as u64, median)
    }
}

fn table(name: &str, served: &mut Served, media: &mut dyn Media, pool: &mut IoPool, time: Duration) {
    let mut run = Run { served, media, pool, finished: Vec::new(), start: Instant::now() };
    // Once over everything, so that reads find something and no page of memory is touched for the first time.
    let mut at = 0;
    while at < BLOCKS {
        let mut sequential = || {
            at += 32;
            (at - 32) % BLOCKS
        };
        run.measure(Op::Write { fua: false }, 32, 16, Duration::from_millis(100), &mut sequential);
    }
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % BLOCKS
    };
    for (what, op) in [("read", Op::Read), ("write", Op::Write { fua: false })] {
        for (blocks, depth) in [(1, 1), (1, 32), (1, 128), (32, 16)] {
            let (iops, median) = run.measure(op, blocks, depth, time, &mut random);
            println!(
                "| {name} | {what} | {} KiB | {depth} | {iops} | {} |",
                blocks * 4,
                median.as_nanos() as f64 / 1000.0
            );
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().ok_or("usage: volume_iops DIRECTORY [SECONDS]")?;
    let time = Duration::from_secs_f64(arguments.next().map_or(Ok(2.0), |text| text.parse())?);
    let slab = IoSlab::new(IoSlabConfig { regions: 256, hugepages: true })?;
    println!("payload memory: {:?}\n", slab.backing());
    println!("| medium | what | size | depth | per second | p50 us |\n|---|---|---|---|---|---|");
    let mut pool = IoPool::new(&slab, 256);
    let flat = || Served::Flat(FlatVolume::new(ID, BlockSize::B4096, BLOCKS, 256));
    let mut nowhere = MemoryMedia::new();
    nowhere.attach_nothing(ID);
    table("null", &mut flat(), &mut nowhere, &mut pool, time);
    let mut memory = MemoryMedia::new();
    memory.attach(ID, BYTES as usize, true)?;
    table("memory", &mut flat(), &mut memory, &mut pool, time);
    let directory = store::create(&Path::new(&root).join("volume-iops"), BYTES, BlockSize::B4096)?;
    let (volume, _) = open(&directory, ID, Config::default())?;
    let mut files = FileMedia::new(&slab, FileConfig::default())?;
    files.attach(ID, directory.path())?;
    files.notices().iter().for_each(|notice| eprintln!("{notice}"));
    let mut served = Served::Thin(Box::new(volume));
    table("file", &mut served, &mut files, &mut pool, time);
    let Served::Thin(volume) = served else { return Ok(()) };
    println!("\n{:?}", volume.stats());
    let mut late = Vec::new();
    files.drain(&mut late);
    late.into_iter().filter_map(|finished| finished.buffer).for_each(|buffer| pool.free(buffer));
    volume.close(&mut pool);
    drop(files);
    let checked = store::check(&directory)?;
    println!("check: {} pages, {} problems", checked.pages, checked.problem_count);
    store::delete(&directory)?;
    Ok(())
}
