//! Load on a block device that somebody serves: what `tidegate-load` does and `bench block` measures with.
//!
//! One thread polls all connections, so that the client costs a core and nothing else. Each connection keeps
//! `depth` requests under way (closed loop); with a rate, requests become due at fixed times, and the latency
//! of each counts from when it was due, also if it had to wait for a free place (open loop: what a slow
//! server costs cannot hide behind a client that waits for it).
//!
//! With `verify`, what is written names itself (volume, block, sequence number, CRC32C), and what is read is
//! compared with what was written last, as far as this run knows.

mod nbd;
mod uri;
mod verify;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use wire::nbd::transmission::{Command, ErrorCode};

use crate::Outcome;
use nbd::{Answer, Connection};
pub use uri::Uri;
use verify::Blocks;

/// Connections at most.
pub const CONNECTIONS_MAX: u32 = 1024;
/// Requests of a connection under way, at most.
pub const DEPTH_MAX: u32 = 1024;
/// Longest request: what each server of the protocol takes.
pub const BLOCK_BYTES_MAX: u32 = wire::nbd::PAYLOAD_BYTES_MAX;
/// How long the last answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(30);
/// Longest latency that is told apart, ns.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// What to do.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where.
    pub uri: Uri,
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
    /// Requests per second of all connections together; `None` = as many as are answered.
    pub rate_iops: Option<u64>,
    /// Compare what is read.
    pub verify: bool,
    /// How long requests are sent.
    pub duration: Duration,
    /// Requests at most; `None` = as many as there is time for.
    pub requests_max: Option<u64>,
    /// Chooses the blocks.
    pub seed: u64,
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
}

impl Figures {
    fn new() -> Outcome<Figures> {
        let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Ok(Figures {
            reads: 0,
            writes: 0,
            bytes: 0,
            errors: BTreeMap::new(),
            mismatches: Vec::new(),
            mismatch_count: 0,
            elapsed: Duration::ZERO,
            latency: latency.map_err(|error| format!("a histogram of latencies: {error:?}"))?,
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

    fn mismatch(&mut self, what: String) {
        const KEPT: usize = 10;
        self.mismatch_count += 1;
        if self.mismatches.len() < KEPT {
            self.mismatches.push(what);
        }
    }
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Under {
    block: u64,
    read: bool,
    /// Of a write.
    sequence: u32,
    due_ns: u64,
}

struct Client {
    connection: Connection,
    /// By the low half of the cookie.
    slots: Vec<Option<Under>>,
    free: Vec<u32>,
}

struct Load<'a> {
    spec: &'a Spec,
    blocks: u64,
    random: SmallRng,
    next_block: u64,
    requests_left: u64,
    table: Option<Blocks>,
    started: Instant,
    /// When the next request is due, ns since the start, with a rate.
    next_due_ns: u64,
    due_step_ns: f64,
    due: f64,
    figures: Figures,
    payload: Vec<u8>,
}

/// Connects, sends for as long as `spec` says, and waits for the last answers. `progress` is called about
/// once a second.
pub fn run(spec: &Spec, progress: &mut dyn FnMut(&Figures)) -> Outcome<Figures> {
    check(spec)?;
    let mut clients = Vec::new();
    let mut size_bytes = u64::MAX;
    for _ in 0..spec.connections {
        let (connection, size) = Connection::open(&spec.uri)?;
        size_bytes = size_bytes.min(size);
        clients.push(Client {
            connection,
            slots: vec![None; spec.depth as usize],
            free: (0..spec.depth).rev().collect(),
        });
    }
    let blocks = size_bytes / u64::from(spec.block_bytes);
    if blocks == 0 {
        return Err(format!("{} has {size_bytes} bytes, less than one block", spec.uri));
    }
    let table = spec.verify.then(|| Blocks::new(&spec.uri.export, blocks, spec.block_bytes)).transpose()?;
    let mut load = Load {
        spec,
        blocks,
        random: SmallRng::seed_from_u64(spec.seed),
        next_block: 0,
        requests_left: spec.requests_max.unwrap_or(u64::MAX),
        table,
        started: Instant::now(),
        next_due_ns: 0,
        due_step_ns: spec.rate_iops.map_or(0.0, |rate| 1e9 / rate as f64),
        due: 0.0,
        figures: Figures::new()?,
        payload: vec![0x5a; spec.block_bytes as usize],
    };
    load.drive(&mut clients, progress)?;
    for client in &mut clients {
        client.connection.close();
    }
    Ok(load.figures)
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
    if spec.rate_iops == Some(0) {
        return Err("the rate is at least 1 request per second".to_owned());
    }
    Ok(())
}

impl Load<'_> {
    fn drive(&mut self, clients: &mut [Client], progress: &mut dyn FnMut(&Figures)) -> Outcome {
        let end_ns = self.spec.duration.as_nanos() as u64;
        let mut said_ns = 0;
        loop {
            let now_ns = self.started.elapsed().as_nanos() as u64;
            let mut under_way = 0;
            for client in clients.iter_mut() {
                if now_ns < end_ns && self.requests_left > 0 {
                    self.begin(client, now_ns)?;
                }
                client.connection.send()?;
                self.receive(client)?;
                under_way += client.slots.len() - client.free.len();
            }
            self.figures.elapsed = self.started.elapsed();
            if (now_ns >= end_ns || self.requests_left == 0) && under_way == 0 {
                return Ok(());
            }
            if now_ns >= end_ns + LAST_ANSWERS.as_nanos() as u64 {
                let wait = LAST_ANSWERS.as_secs();
                return Err(format!("{under_way} requests have no answer {wait} s after the last was sent"));
            }
            if now_ns - said_ns >= 1_000_000_000 {
                said_ns = now_ns;
                progress(&self.figures);
            }
        }
    }

    /// Sends as many requests as there are places, and as are due.
    fn begin(&mut self, client: &mut Client, now_ns: u64) -> Outcome {
        while let Some(&slot) = client.free.last() {
            if !client.connection.has_room() || self.requests_left == 0 {
                return Ok(());
            }
            let due_ns = if self.spec.rate_iops.is_some() { self.next_due_ns } else { now_ns };
            if due_ns > now_ns {
                return Ok(());
            }
            let Some(block) = self.choose() else { return Ok(()) };
            client.free.pop();
            self.requests_left -= 1;
            self.due += self.due_step_ns;
            self.next_due_ns = self.due as u64;
            let read = self.random.random_range(0..100) < self.spec.read_percent;
            let sequence = match &mut self.table {
                None => 0,
                Some(table) => table.begin(block, read, &mut self.payload),
            };
            let (command, payload) =
                if read { (Command::READ, &[][..]) } else { (Command::WRITE, &self.payload[..]) };
            let offset_bytes = block * u64::from(self.spec.block_bytes);
            client.connection.ask(command, slot, offset_bytes, self.spec.block_bytes, payload);
            client.slots[slot as usize] = Some(Under { block, read, sequence, due_ns });
        }
        Ok(())
    }

    /// The next block; none if it is being written or read, and it would not be known what must come.
    fn choose(&mut self) -> Option<u64> {
        const TRIES: usize = 64;
        for _ in 0..TRIES {
            let block = if self.spec.sequential {
                self.next_block += 1;
                (self.next_block - 1) % self.blocks
            } else {
                self.random.random_range(0..self.blocks)
            };
            if self.table.as_ref().is_none_or(|table| table.is_free(block)) {
                return Some(block);
            }
        }
        None
    }

    fn receive(&mut self, client: &mut Client) -> Outcome {
        let Client { connection, slots, free } = client;
        let keep = self.table.is_some();
        let length = |slot: u32| {
            let under = slots.get(slot as usize).copied().flatten()?;
            Some(if under.read { self.spec.block_bytes } else { 0 })
        };
        let mut answers = connection.receive(keep, length)?;
        if answers.is_empty() {
            return Ok(());
        }
        let now_ns = self.started.elapsed().as_nanos() as u64;
        for Answer { slot, error, payload } in answers.drain(..) {
            // INVARIANT: the connection refuses answers to what is not under way.
            let Some(under) = slots[slot as usize].take() else { continue };
            free.push(slot);
            self.end(under, error, &payload, now_ns);
        }
        Ok(())
    }

    fn end(&mut self, under: Under, error: ErrorCode, payload: &[u8], now_ns: u64) {
        let Under { block, read, sequence, due_ns } = under;
        if let Some(table) = &mut self.table
            && let Err(what) = table.end(block, read, sequence, error != ErrorCode::OK, payload)
        {
            self.figures.mismatch(what);
        }
        if error != ErrorCode::OK {
            *self.figures.errors.entry(error.0).or_default() += 1;
            return;
        }
        if read {
            self.figures.reads += 1;
        } else {
            self.figures.writes += 1;
        }
        self.figures.bytes += u64::from(self.spec.block_bytes);
        self.figures.latency.saturating_record((now_ns - due_ns).max(1));
    }
}
