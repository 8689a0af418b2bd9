//! Load on a block device that somebody serves: what `tidegate-load` does and `bench block` measures with.
//!
//! One thread polls all connections, so that the client costs a core and nothing else. Each connection keeps
//! `depth` requests under way (closed loop); with a rate, requests become due at fixed times, and the latency
//! of each counts from when it was due, also if it had to wait for a free place (open loop: what a slow
//! server costs cannot hide behind a client that waits for it).
//!
//! The rate may fall again and again for a while (`quiet`); with `rest`, the thread sleeps while nothing is due.
//!
//! With `verify`, what is written names itself (volume, block, sequence number, CRC32C), and what is read is
//! compared with what was written last, as far as this run knows. With `read_back`, all of it is read at the end.
//!
//! Over NVMe/TCP the device may have several paths: requests go the best way, and again another way when theirs
//! fails; the longest time without an answer is among the figures.

mod device;
mod drive;
mod nbd;
pub mod nvme;
mod uri;
mod verify;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Outcome;
pub use device::Op;
use device::{Answer, Device, Ending, Request};
use drive::Load;
pub use uri::{Place, Uri};

/// Connections at most.
pub const CONNECTIONS_MAX: u32 = 1024;
/// Requests of a connection under way, at most.
pub const DEPTH_MAX: u32 = 1024;
/// Longest request: what each server of the protocol takes.
pub const BLOCK_BYTES_MAX: u32 = wire::nbd::PAYLOAD_BYTES_MAX;
/// Bytes received at once.
const RECEIVE_BYTES: usize = 256 << 10;
/// Events of paths that are remembered.
pub const EVENTS_KEPT: usize = 100;
/// Requests that can be remembered one by one: 40 MiB of them.
pub const SEEN_MAX: usize = 1 << 20;
/// Longest latency that is told apart, ns.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// What to do.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where.
    pub uri: Uri,
    /// Further addresses of the same volume; only over NVMe.
    pub paths: Vec<String>,
    /// Who the host is, and what it asks for; only over NVMe.
    pub nvme: nvme::Options,
    /// How long to go on without any path; only over NVMe.
    pub loss: Duration,
    /// Connections, 1 to [`CONNECTIONS_MAX`].
    pub connections: u32,
    /// Requests under way per connection, 1 to [`DEPTH_MAX`].
    pub depth: u32,
    /// Reads among the requests, per cent.
    pub read_percent: u8,
    /// Length of each request in bytes.
    pub block_bytes: u32,
    /// One block after the other instead of at random.
    pub sequential: bool,
    /// Writes are answered when they are durable (force unit access).
    pub fua: bool,
    /// A flush after so many writes; `None` = never.
    pub flush_every: Option<u32>,
    /// Requests per second of all connections together; `None` = as many as are answered.
    pub rate_iops: Option<u64>,
    /// Times with another rate, again and again; only with `rate_iops`.
    pub quiet: Option<Quiet>,
    /// Sleep so long when nothing has come and nothing is due, instead of polling; latencies are longer by that.
    pub rest: Duration,
    /// Compare what is read.
    pub verify: bool,
    /// At the end, read every block once of which it is known what it must hold; only with `verify`.
    pub read_back: bool,
    /// How long requests are sent.
    pub duration: Duration,
    /// Requests at most; `None` = as many as there is time for.
    pub requests_max: Option<u64>,
    /// Chooses the blocks.
    pub seed: u64,
    /// So many requests are remembered one by one, the first to be answered; at most [`SEEN_MAX`].
    pub seen_max: usize,
}

impl Spec {
    /// Reads of 4 KiB at random over one connection with 32 under way, for 10 s.
    pub fn new(uri: Uri) -> Spec {
        Spec {
            uri,
            paths: Vec::new(),
            nvme: nvme::Options::default(),
            loss: Duration::from_secs(30),
            connections: 1,
            depth: 32,
            read_percent: 100,
            block_bytes: 4096,
            sequential: false,
            fua: false,
            flush_every: None,
            rate_iops: None,
            quiet: None,
            rest: Duration::ZERO,
            verify: false,
            read_back: false,
            duration: Duration::from_secs(10),
            requests_max: None,
            seed: 1,
            seen_max: 0,
        }
    }
}

/// The quiet part of a load that comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// After how long at the full rate it begins.
    pub after: Duration,
    /// How long it lasts, until all begins anew.
    pub lasts: Duration,
    /// Requests per second meanwhile; may be 0.
    pub rate_iops: u64,
}

impl Quiet {
    /// Whether it is quiet so long after the start.
    pub fn is_at(&self, since_start: Duration) -> bool {
        let period = (self.after + self.lasts).as_nanos().max(1);
        since_start.as_nanos() % period >= self.after.as_nanos()
    }

    /// When this part ends, both in ns since the start.
    fn part_ends(&self, at_ns: f64) -> f64 {
        let (after, period) = (self.after.as_nanos() as f64, (self.after + self.lasts).as_nanos() as f64);
        let into = at_ns % period;
        at_ns - into + if into < after { after } else { period }
    }
}

/// A request as its client saw it. Times are ns of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What was asked for.
    pub op: Op,
    /// Where.
    pub offset_bytes: u64,
    /// Just before it was put on its connection.
    pub asked_ns: u64,
    /// When its answer had come, whole.
    pub answered_ns: u64,
    /// The protocol's number of what went wrong.
    pub error: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Reads answered without error.
    pub reads: u64,
    /// Writes answered without error.
    pub writes: u64,
    /// Bytes moved by both.
    pub bytes: u64,
    /// Flushes answered without error; nothing else counts them.
    pub flushes: u64,
    /// Requests that were asked again because their path failed.
    pub retries: u64,
    /// Longest time without any answer.
    pub longest_gap: Duration,
    /// What happened to the paths, and when: the first [`EVENTS_KEPT`].
    pub events: Vec<(Duration, String)>,
    /// Errors, by their number in the protocol.
    pub errors: BTreeMap<u32, u64>,
    /// What was read and should not have been: the first few, in words.
    pub mismatches: Vec<String>,
    /// How many there were.
    pub mismatch_count: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Latencies in ns.
    pub latency: Histogram<u64>,
    /// The requests that were to be remembered, in the order of their answers.
    pub seen: Vec<Seen>,
}

impl Figures {
    fn new() -> Outcome<Figures> {
        let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Ok(Figures {
            reads: 0,
            writes: 0,
            bytes: 0,
            flushes: 0,
            retries: 0,
            longest_gap: Duration::ZERO,
            events: Vec::new(),
            errors: BTreeMap::new(),
            mismatches: Vec::new(),
            mismatch_count: 0,
            elapsed: Duration::ZERO,
            latency: latency.map_err(|error| format!("a histogram of latencies: {error:?}"))?,
            seen: Vec::new(),
        })
    }

    /// Requests answered without error.
    pub fn ios(&self) -> u64 {
        self.reads + self.writes
    }

    /// Those per second.
    pub fn iops(&self) -> f64 {
        self.ios() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// A percentile of the latency, microseconds.
    pub fn latency_us(&self, percentile: f64) -> f64 {
        self.latency.value_at_percentile(percentile) as f64 / 1e3
    }

    /// Takes in what came of another volume at the same time, but for what is told of single requests and paths.
    fn add(&mut self, other: &Figures) -> Outcome {
        self.reads += other.reads;
        self.writes += other.writes;
        self.bytes += other.bytes;
        self.flushes += other.flushes;
        self.retries += other.retries;
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.elapsed = self.elapsed.max(other.elapsed);
        for (number, count) in &other.errors {
            *self.errors.entry(*number).or_default() += count;
        }
        self.mismatch_count += other.mismatch_count;
        self.latency.add(&other.latency).map_err(|error| format!("a histogram of latencies: {error:?}"))
    }

    fn mismatch(&mut self, what: String) {
        const KEPT: usize = 10;
        self.mismatch_count += 1;
        if self.mismatches.len() < KEPT {
            self.mismatches.push(what);
        }
    }
}

/// Connects, sends for as long as `spec` says, and waits for the last answers. `progress` is called about
/// once a second, and sees nothing more once it has said [`ControlFlow::Break`]: that is the end as well.
pub fn run(spec: &Spec, progress: &mut dyn FnMut(&Figures) -> ControlFlow<()>) -> Outcome<Figures> {
    check(spec)?;
    let (device, size_bytes) = Device::open(spec)?;
    Load::new(spec, device, size_bytes)?.drive(progress)
}

/// The same on several volumes at once, by one thread; what came of all of them together.
pub fn run_all(specs: &[Spec]) -> Outcome<Figures> {
    let mut loads = Vec::with_capacity(specs.len());
    for spec in specs {
        check(spec)?;
        loads.push((spec, Device::open(spec)?));
    }
    let loads = loads.into_iter().map(|(spec, (device, size_bytes))| Load::new(spec, device, size_bytes));
    let mut loads: Vec<Load<'_>> = loads.collect::<Outcome<_>>()?;
    let mut figures = Figures::new()?;
    while !loads.is_empty() {
        let mut outcome = Ok(());
        loads.retain_mut(|load| match load.turn(&mut |_| ControlFlow::Continue(())) {
            Ok(false) => true,
            over => {
                outcome = outcome.clone().and(over.and_then(|_| figures.add(load.figures())));
                false
            }
        });
        outcome?;
    }
    Ok(figures)
}

/// A volume that is attached and not used.
#[derive(Debug)]
pub struct Attached {
    device: Device,
    begun: Instant,
}

impl Attached {
    /// Attaches it over one connection. An NVMe host that says `keep_alive_ms` must be heard of within that time.
    pub fn open(uri: Uri, keep_alive_ms: u32) -> Outcome<Attached> {
        let nvme = nvme::Options { keep_alive_ms, ..nvme::Options::default() };
        let (device, _) = Device::open(&Spec { depth: 1, nvme, ..Spec::new(uri) })?;
        Ok(Attached { device, begun: Instant::now() })
    }

    /// Says what has to be said now.
    pub fn keep_alive(&mut self) -> Outcome {
        self.device.step(self.begun.elapsed().as_nanos() as u64)
    }
}

fn check(spec: &Spec) -> Outcome {
    let within = |what: &str, value: u32, most: u32| {
        if (1..=most).contains(&value) { Ok(()) } else { Err(format!("{what} is 1 to {most}")) }
    };
    within("the number of connections", spec.connections, CONNECTIONS_MAX)?;
    within("the depth", spec.depth, DEPTH_MAX)?;
    within("the length of a request in bytes", spec.block_bytes, BLOCK_BYTES_MAX)?;
    if !spec.block_bytes.is_multiple_of(512) {
        return Err("the length of a request is a multiple of 512 bytes".to_owned());
    }
    if spec.read_percent > 100 {
        return Err("the share of reads is 0 to 100 per cent".to_owned());
    }
    if spec.flush_every == Some(0) {
        return Err("a flush comes after at least 1 write".to_owned());
    }
    if spec.seen_max > SEEN_MAX {
        return Err(format!("at most {SEEN_MAX} requests are remembered one by one"));
    }
    if spec.rate_iops == Some(0) {
        return Err("the rate is at least 1 request per second".to_owned());
    }
    if let Some(Quiet { after, lasts, .. }) = spec.quiet {
        if spec.rate_iops.is_none() {
            return Err("a load that becomes quiet needs a rate for the rest of the time".to_owned());
        }
        if after.is_zero() || lasts.is_zero() {
            return Err("both the busy and the quiet part last some time".to_owned());
        }
    }
    Ok(())
}
