//! Loss, duplication, corruption, delay and reordering on top of a port, from a seed.
//!
//! Each direction is a lane of its own: a frame enters it, dice are cast in a fixed order, and what is left
//! of it waits in the lane until it is due. Frames that wait keep the worker awake: no descriptor would
//! become readable for them.
//!
//! Invariants: the same seed and the same sequence of frames give the same decisions; every frame that does
//! not come out is counted as dropped, every one that comes out twice as generated, every one that waits as
//! held; frames leave a lane in order unless the dice say otherwise.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use frame::{BATCH, Batch, Flags, Frame, Pool};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checksum::complete_partial_checksum;
use crate::{OpenError, Port, PortCaps, PortCounters, PortError};

/// How often what goes wrong, in each direction. Probabilities are between 0 and 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultSpec {
    /// Seed: the same seed makes the same decisions for the same sequence of frames.
    pub seed: u64,
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Probability that a frame comes twice.
    pub duplicate: f64,
    /// Probability that one bit of a frame is flipped. A checksum that was left to the port is finished
    /// before; super-segments, whose checksums do not exist yet, are spared.
    pub corrupt: f64,
    /// Probability that a frame is delayed by `delay_ns`; those behind it pass.
    pub delay: f64,
    /// Delay of a delayed frame, ns.
    pub delay_ns: u64,
    /// Probability that a frame changes places with its successor; without one it waits for `delay_ns`.
    pub reorder: f64,
    /// Frames held back at most in each direction; a frame that is to be delayed and finds no room is lost.
    pub held_frames_max: usize,
}

/// A port on which things go wrong.
pub struct Faults {
    inner: Box<dyn Port>,
    rx: Lane,
    tx: Lane,
    /// Nanoseconds since some moment; read at most once per call, and only when frames wait or may have to.
    clock: Box<dyn FnMut() -> u64 + Send>,
    timed: bool,
}

/// Most frames that may be held back in a direction.
const HELD_FRAMES_MAX: usize = 65_536;

impl Faults {
    /// Puts faults on top of `inner`.
    pub fn new(inner: Box<dyn Port>, spec: &FaultSpec) -> Result<Faults, OpenError> {
        let start = Instant::now();
        Faults::with_clock(inner, spec, move || start.elapsed().as_nanos() as u64)
    }

    /// The same with another clock, in nanoseconds since some moment.
    pub fn with_clock(
        inner: Box<dyn Port>,
        spec: &FaultSpec,
        clock: impl FnMut() -> u64 + Send + 'static,
    ) -> Result<Faults, OpenError> {
        let refuse = |what| Err(OpenError::Spec { name: "faults".to_owned(), what });
        for (name, value) in [
            ("loss", spec.loss),
            ("duplicate", spec.duplicate),
            ("corrupt", spec.corrupt),
            ("delay", spec.delay),
            ("reorder", spec.reorder),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return refuse(format!("{name} = {value} is no probability: it must be between 0 and 1"));
            }
        }
        if spec.held_frames_max > HELD_FRAMES_MAX {
            let asked = spec.held_frames_max;
            return refuse(format!("held_frames_max = {asked} is too much: at most {HELD_FRAMES_MAX}"));
        }
        Ok(Faults {
            inner,
            rx: Lane::new(spec, 0),
            tx: Lane::new(spec, 1),
            clock: Box::new(clock),
            timed: spec.delay > 0.0 || spec.reorder > 0.0,
        })
    }

    fn now_ns(&mut self) -> u64 {
        if self.timed { (self.clock)() } else { 0 }
    }

    /// Passes on what is ready to be sent; true when all of it went.
    fn drain_tx(&mut self, pool: &mut Pool) -> Result<bool, PortError> {
        let mut batch = Batch::new();
        loop {
            self.tx.take_ready(&mut batch);
            if batch.is_empty() {
                return Ok(true);
            }
            let result = self.inner.tx_burst(pool, &mut batch);
            let all = batch.is_empty();
            self.tx.put_back(&mut batch);
            result?;
            if !all {
                return Ok(false);
            }
        }
    }
}

impl Port for Faults {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        let now_ns = self.now_ns();
        let first = out.len();
        self.rx.release_due(now_ns);
        if self.rx.ready.len() < BATCH {
            let mut batch = Batch::new();
            let result = self.inner.rx_burst(pool, &mut batch);
            self.rx.process(now_ns, pool, &mut batch);
            result?;
        }
        self.rx.take_ready(out);
        Ok(out.len() - first)
    }

    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        let now_ns = self.now_ns();
        self.tx.release_due(now_ns);
        if !self.drain_tx(pool)? {
            return Ok(0);
        }
        let count = batch.len();
        self.tx.process(now_ns, pool, batch);
        self.drain_tx(pool)?;
        Ok(count)
    }

    fn flush(&mut self, pool: &mut Pool) -> Result<(), PortError> {
        let now_ns = self.now_ns();
        self.tx.release_due(now_ns);
        self.drain_tx(pool)?;
        self.inner.flush(pool)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wait_fd()
    }

    fn arm(&mut self) {
        self.inner.arm();
    }

    fn has_input(&self) -> bool {
        self.rx.held() + self.tx.held() > 0 || self.inner.has_input()
    }

    fn caps(&self) -> PortCaps {
        self.inner.caps()
    }

    fn counters(&self) -> PortCounters {
        let mut counters = self.inner.counters();
        for lane in [&self.rx, &self.tx] {
            counters.generated += lane.generated;
            counters.dropped += lane.dropped;
            counters.corrupted += lane.corrupted;
            counters.delayed += lane.late;
            counters.held += lane.held() as u64;
        }
        counters
    }

    fn set_peers(&mut self, peers: &[SocketAddr]) {
        self.inner.set_peers(peers);
    }

    fn close(mut self: Box<Self>, pool: &mut Pool) {
        self.rx.empty(pool);
        self.tx.empty(pool);
        self.inner.close(pool);
    }
}

/// One direction.
struct Lane {
    spec: FaultSpec,
    dice: ChaCha8Rng,
    /// Frames that may leave, in this order.
    ready: VecDeque<Frame>,
    /// Delayed frames and when they are due, ns. All are delayed alike, so the first is due first.
    delayed: VecDeque<(u64, Frame)>,
    /// A frame that waits for its successor to pass, and until when it waits at most, ns.
    swapped: Option<(u64, Frame)>,
    generated: u64,
    dropped: u64,
    corrupted: u64,
    late: u64,
}

impl Lane {
    fn new(spec: &FaultSpec, direction: u64) -> Lane {
        let mut dice = ChaCha8Rng::seed_from_u64(spec.seed);
        dice.set_stream(direction);
        Lane {
            spec: spec.clone(),
            dice,
            ready: VecDeque::with_capacity(4 * BATCH),
            delayed: VecDeque::with_capacity(spec.held_frames_max),
            swapped: None,
            generated: 0,
            dropped: 0,
            corrupted: 0,
            late: 0,
        }
    }

    fn held(&self) -> usize {
        self.ready.len() + self.delayed.len() + usize::from(self.swapped.is_some())
    }

    /// Casts the dice for each frame of a batch.
    fn process(&mut self, now_ns: u64, pool: &mut Pool, batch: &mut Batch) {
        for mut frame in batch.drain(..) {
            if self.dice.random_bool(self.spec.loss) {
                self.dropped += 1;
                pool.free(frame);
                continue;
            }
            let copy = if self.dice.random_bool(self.spec.duplicate) { copy(pool, &frame) } else { None };
            if self.dice.random_bool(self.spec.corrupt) && corrupt(&mut self.dice, pool, &mut frame) {
                self.corrupted += 1;
            }
            self.pass(now_ns, pool, frame);
            if let Some(copy) = copy {
                self.generated += 1;
                self.pass(now_ns, pool, copy);
            }
        }
    }

    /// A frame that was not lost leaves now or later.
    fn pass(&mut self, now_ns: u64, pool: &mut Pool, frame: Frame) {
        let due_ns = now_ns.saturating_add(self.spec.delay_ns);
        let reorder = self.dice.random_bool(self.spec.reorder);
        if self.dice.random_bool(self.spec.delay) {
            if self.delayed.len() < self.spec.held_frames_max {
                self.late += 1;
                self.delayed.push_back((due_ns, frame));
            } else {
                self.dropped += 1;
                pool.free(frame);
            }
        } else if reorder && self.swapped.is_none() {
            self.late += 1;
            self.swapped = Some((due_ns, frame));
        } else {
            self.ready.push_back(frame);
            self.ready.extend(self.swapped.take().map(|(_, earlier)| earlier));
        }
    }

    /// Makes ready what has waited long enough.
    fn release_due(&mut self, now_ns: u64) {
        while let Some((_, frame)) = self.delayed.pop_front_if(|(due_ns, _)| *due_ns <= now_ns) {
            self.ready.push_back(frame);
        }
        if let Some((_, frame)) = self.swapped.take_if(|(due_ns, _)| *due_ns <= now_ns) {
            self.ready.push_back(frame);
        }
    }

    fn take_ready(&mut self, out: &mut Batch) {
        let count = self.ready.len().min(out.remaining_capacity());
        out.extend(self.ready.drain(..count));
    }

    fn put_back(&mut self, batch: &mut Batch) {
        while let Some(frame) = batch.pop() {
            self.ready.push_front(frame);
        }
    }

    fn empty(&mut self, pool: &mut Pool) {
        let delayed = self.delayed.drain(..).chain(self.swapped.take()).map(|(_, frame)| frame);
        for frame in self.ready.drain(..).chain(delayed) {
            pool.free(frame);
        }
    }
}

/// A second frame like `frame`, if the slab has one.
fn copy(pool: &mut Pool, frame: &Frame) -> Option<Frame> {
    let mut copy = if pool.is_jumbo(frame) { pool.alloc_jumbo() } else { pool.alloc() }?;
    // Both chunks are of one kind, but the copy begins behind the full headroom: a frame that grew into its
    // own may not fit.
    if !pool.fill(&mut copy, pool.bytes(frame)) {
        pool.free(copy);
        return None;
    }
    pool.meta_mut(&mut copy).inherit(pool.meta(frame));
    Some(copy)
}

/// Flips one bit, as a wire does: behind the checksum's back. False for a frame that is spared.
fn corrupt(dice: &mut ChaCha8Rng, pool: &mut Pool, frame: &mut Frame) -> bool {
    let (meta, bytes) = pool.parts_mut(frame);
    if bytes.is_empty() || !complete_partial_checksum(bytes, meta) {
        return false;
    }
    meta.flags.clear(Flags::CSUM_VALID);
    let bit = dice.random_range(0..bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    true
}
