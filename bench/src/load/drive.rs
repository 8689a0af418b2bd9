//! The loop: which request comes next, when, and what its answer says.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use engine::clock::monotonic_ns;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::verify::Blocks;
use super::{Answer, Device, EVENTS_KEPT, Ending, Figures, Op, Request, Seen, Spec};
use crate::Outcome;

/// How long the last answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(30);

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Under {
    op: Op,
    block: u64,
    /// Of a write.
    sequence: u32,
    due_ns: u64,
    /// When it went, as far as that is remembered.
    asked_ns: u64,
}

/// When the request is due that comes after the one due at `due`, both in ns since the start.
fn next_due(spec: &Spec, due: f64) -> f64 {
    let step = |rate: u64| 1e9 / rate as f64;
    let full = spec.rate_iops.map_or(0.0, step);
    let Some(quiet) = spec.quiet else { return due + full };
    let is_quiet = quiet.is_at(Duration::from_nanos(due as u64));
    let next = due + if is_quiet { step(quiet.rate_iops) } else { full };
    // The next part begins with a request; a quiet one without a rate has none at all.
    let ends = quiet.part_ends(due);
    match is_quiet || quiet.rate_iops > 0 {
        true => next.min(ends),
        false if next < ends => next,
        false => ends + quiet.lasts.as_nanos() as f64,
    }
}

/// A connection's requests.
#[derive(Debug)]
struct Client {
    slots: Vec<Option<Under>>,
    free: Vec<u32>,
    /// Slots whose requests are to be asked again.
    again: Vec<u32>,
    /// What each slot writes, where no two write the same.
    payloads: Vec<Vec<u8>>,
    writes_to_flush: u32,
}

impl Client {
    fn new(spec: &Spec) -> Client {
        let payload = vec![0; spec.block_bytes as usize];
        Client {
            slots: vec![None; spec.depth as usize],
            free: (0..spec.depth).rev().collect(),
            again: Vec::new(),
            payloads: if spec.verify { vec![payload; spec.depth as usize] } else { Vec::new() },
            writes_to_flush: spec.flush_every.unwrap_or(0),
        }
    }
}

/// See the module's documentation.
pub(super) struct Load<'a> {
    spec: &'a Spec,
    device: Device,
    clients: Vec<Client>,
    blocks: u64,
    random: SmallRng,
    next_block: u64,
    requests_left: u64,
    table: Option<Blocks>,
    /// Once everything is read back: the block to go on at.
    back: Option<u64>,
    started: Instant,
    /// When nothing more is sent, ns since then.
    end_ns: u64,
    /// When progress was said last.
    said_ns: u64,
    /// The start by the monotonic clock, ns.
    started_ns: u64,
    /// When the next request is due, ns since the start, with a rate.
    next_due_ns: u64,
    due: f64,
    /// Of the last answer.
    answered_ns: u64,
    figures: Figures,
    /// What all slots write, where nothing is verified.
    payload: Vec<u8>,
    answers: Vec<Answer>,
}

impl<'a> Load<'a> {
    /// Load on `device`, which has `size_bytes`.
    pub fn new(spec: &'a Spec, device: Device, size_bytes: u64) -> Outcome<Load<'a>> {
        let blocks = size_bytes / u64::from(spec.block_bytes);
        if blocks == 0 {
            return Err(format!("{} has {size_bytes} bytes, less than one block", spec.uri));
        }
        let table = || Blocks::new(&spec.uri.name, blocks, spec.block_bytes);
        Ok(Load {
            spec,
            device,
            clients: (0..spec.connections).map(|_| Client::new(spec)).collect(),
            blocks,
            random: SmallRng::seed_from_u64(spec.seed),
            next_block: 0,
            requests_left: spec.requests_max.unwrap_or(u64::MAX),
            table: spec.verify.then(table).transpose()?,
            back: None,
            started: Instant::now(),
            end_ns: spec.duration.as_nanos() as u64,
            said_ns: 0,
            started_ns: monotonic_ns(),
            next_due_ns: 0,
            due: 0.0,
            answered_ns: 0,
            figures: Figures::new()?,
            payload: vec![0x5a; spec.block_bytes as usize],
            answers: Vec::new(),
        })
    }

    /// Sends and receives until all is answered.
    pub fn drive(mut self, progress: &mut dyn FnMut(&Figures) -> ControlFlow<()>) -> Outcome<Figures> {
        while !self.turn(progress)? {}
        Ok(self.figures)
    }

    /// Sends and receives once on each connection; true when all is over and answered.
    pub fn turn(&mut self, progress: &mut dyn FnMut(&Figures) -> ControlFlow<()>) -> Outcome<bool> {
        let now_ns = self.started.elapsed().as_nanos() as u64;
        let over = now_ns >= self.end_ns || self.requests_left == 0;
        let (mut under_way, answered_ns) = (0, self.answered_ns);
        for index in 0..self.clients.len() {
            self.ask_again(index);
            if !over {
                self.begin(index, now_ns);
            } else if self.read_back(index, now_ns) {
                self.end_ns = now_ns;
            }
            self.poll(index, now_ns)?;
            under_way += self.clients[index].slots.len() - self.clients[index].free.len();
        }
        self.device.step(now_ns)?;
        self.figures.elapsed = self.started.elapsed();
        self.note_events(now_ns);
        if over && under_way == 0 && self.spec.read_back && self.back.is_none() {
            // Nothing is under way that could change a block meanwhile.
            self.back = Some(0);
            return Ok(false);
        }
        if over && under_way == 0 {
            self.device.close();
            return Ok(true);
        }
        if now_ns >= self.end_ns.saturating_add(LAST_ANSWERS.as_nanos() as u64) {
            let wait = LAST_ANSWERS.as_secs();
            return Err(format!("{under_way} requests have no answer {wait} s after the last was sent"));
        }
        if now_ns - self.said_ns >= 1_000_000_000 {
            self.said_ns = now_ns;
            if !over && progress(&self.figures).is_break() {
                self.end_ns = now_ns;
            }
        }
        if !self.spec.rest.is_zero() && answered_ns == self.answered_ns {
            let due = Duration::from_nanos(self.next_due_ns.saturating_sub(now_ns));
            // Once it is over nothing is due, and answers alone are waited for.
            std::thread::sleep(if over { self.spec.rest } else { self.spec.rest.min(due) });
        }
        Ok(false)
    }

    /// What has come of it so far.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    fn note_events(&mut self, now_ns: u64) {
        for event in self.device.events() {
            if self.figures.events.len() < EVENTS_KEPT {
                self.figures.events.push((Duration::from_nanos(now_ns), event));
            }
        }
    }

    /// What was asked on a path that failed goes first.
    fn ask_again(&mut self, index: usize) {
        while let Some(&slot) = self.clients[index].again.last() {
            let Some(under) = self.clients[index].slots[slot as usize] else { return };
            if !self.ask(index, slot, under.op, under.block) {
                return;
            }
            self.clients[index].again.pop();
        }
    }

    fn ask(&mut self, index: usize, slot: u32, op: Op, block: u64) -> bool {
        let bytes = self.spec.block_bytes;
        let request = Request { op, offset_bytes: block * u64::from(bytes), bytes, fua: self.spec.fua };
        let payload = self.clients[index].payloads.get(slot as usize).unwrap_or(&self.payload);
        self.device.ask(index, slot, &request, payload)
    }

    /// Asks as many requests as there are places, and as are due.
    fn begin(&mut self, index: usize, now_ns: u64) {
        while let Some(&slot) = self.clients[index].free.last() {
            let due_ns = if self.spec.rate_iops.is_some() { self.next_due_ns } else { now_ns };
            if due_ns > now_ns || self.requests_left == 0 {
                return;
            }
            let Some(mut under) = self.next(index, slot, due_ns) else { return };
            if self.spec.seen_max > 0 {
                under.asked_ns = self.started.elapsed().as_nanos() as u64;
            }
            let client = &mut self.clients[index];
            client.free.pop();
            client.slots[slot as usize] = Some(under);
            self.requests_left -= 1;
            self.due = next_due(self.spec, self.due);
            self.next_due_ns = self.due as u64;
            if !self.ask(index, slot, under.op, under.block) {
                // There is no room on the way to the device.
                return self.clients[index].again.push(slot);
            }
        }
    }

    /// Reads back as many blocks as there are places; whether there were any.
    fn read_back(&mut self, index: usize, now_ns: u64) -> bool {
        let mut has_asked = false;
        while let (Some(from), Some(&slot)) = (self.back, self.clients[index].free.last()) {
            let Some(block) = self.table.as_ref().and_then(|table| table.known_from(from)) else { break };
            self.back = Some(block + 1);
            let (client, table) = (&mut self.clients[index], self.table.as_mut());
            client.free.pop();
            client.slots[slot as usize] =
                Some(Under { op: Op::Read, block, sequence: 0, due_ns: now_ns, asked_ns: 0 });
            table.map(|table| table.begin(block, true, &mut []));
            has_asked = true;
            if !self.ask(index, slot, Op::Read, block) {
                self.clients[index].again.push(slot);
                break;
            }
        }
        has_asked
    }

    /// The next request of a connection, with what it writes.
    fn next(&mut self, index: usize, slot: u32, due_ns: u64) -> Option<Under> {
        let client = &mut self.clients[index];
        if self.spec.flush_every.is_some() && client.writes_to_flush == 0 {
            client.writes_to_flush = self.spec.flush_every.unwrap_or(0);
            return Some(Under { op: Op::Flush, block: 0, sequence: 0, due_ns, asked_ns: 0 });
        }
        let block = self.choose()?;
        let read = self.random.random_range(0..100) < self.spec.read_percent;
        let client = &mut self.clients[index];
        client.writes_to_flush = client.writes_to_flush.saturating_sub(u32::from(!read));
        let sequence = match (&mut self.table, client.payloads.get_mut(slot as usize)) {
            (Some(table), Some(payload)) => table.begin(block, read, payload),
            _ => 0,
        };
        Some(Under { op: if read { Op::Read } else { Op::Write }, block, sequence, due_ns, asked_ns: 0 })
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

    fn poll(&mut self, index: usize, now_ns: u64) -> Outcome {
        let mut answers = std::mem::take(&mut self.answers);
        let (own, shared) = (&self.clients[index].payloads, &self.payload);
        let payload = |slot: u32| own.get(slot as usize).unwrap_or(shared).as_slice();
        self.device.poll(index, payload, now_ns, &mut answers)?;
        if !answers.is_empty() {
            self.take(index, &mut answers);
        }
        self.answers = answers;
        Ok(())
    }

    fn take(&mut self, index: usize, answers: &mut Vec<Answer>) {
        let now_ns = self.started.elapsed().as_nanos() as u64;
        for Answer { slot, ending, payload } in answers.drain(..) {
            let client = &mut self.clients[index];
            if ending == Ending::Again {
                self.figures.retries += 1;
                client.again.push(slot);
                continue;
            }
            // INVARIANT: a device answers only what is under way.
            let Some(under) = client.slots[slot as usize].take() else { continue };
            client.free.push(slot);
            self.end(under, ending, &payload, now_ns);
            let gap_ns = now_ns - std::mem::replace(&mut self.answered_ns, now_ns);
            self.figures.longest_gap = self.figures.longest_gap.max(Duration::from_nanos(gap_ns));
        }
    }

    fn end(&mut self, under: Under, ending: Ending, payload: &[u8], now_ns: u64) {
        let Under { op, block, sequence, due_ns, asked_ns } = under;
        let failed = ending != Ending::Done;
        if self.figures.seen.len() < self.spec.seen_max {
            self.figures.seen.push(Seen {
                op,
                offset_bytes: block * u64::from(self.spec.block_bytes),
                asked_ns: self.started_ns + asked_ns,
                answered_ns: self.started_ns + now_ns,
                error: if let Ending::Failed(number) = ending { Some(number) } else { None },
            });
        }
        if let Some(table) = &mut self.table
            && op != Op::Flush
            && let Err(what) = table.end(block, op == Op::Read, sequence, failed, payload)
        {
            self.figures.mismatch(what);
        }
        if let Ending::Failed(number) = ending {
            *self.figures.errors.entry(number).or_default() += 1;
            return;
        }
        match op {
            Op::Read => self.figures.reads += 1,
            Op::Write => self.figures.writes += 1,
            Op::Flush => {
                self.figures.flushes += 1;
                return;
            }
        }
        self.figures.bytes += u64::from(self.spec.block_bytes);
        self.figures.latency.saturating_record((now_ns - due_ns).max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Place, Quiet, Uri};
    use super::*;

    fn due_in(rate_iops: u64, seconds: std::ops::Range<u64>) -> usize {
        let quiet = Quiet { after: Duration::from_secs(9), lasts: Duration::from_secs(3), rate_iops };
        let uri = Uri { place: Place::Nbd("127.0.0.1:1".to_owned()), name: String::new() };
        let spec = Spec { rate_iops: Some(100), quiet: Some(quiet), ..Spec::new(uri) };
        let ends = seconds.end as f64 * 1e9;
        let all = std::iter::successors(Some(0.0), |due| Some(next_due(&spec, *due)));
        all.take_while(|due| *due < ends).filter(|due| *due >= seconds.start as f64 * 1e9).count()
    }

    #[test]
    fn a_load_becomes_quiet_again_and_again() {
        for period in 0..5 {
            let begins = period * 12;
            let is_about = |due: usize, rate: usize| due.abs_diff(rate) <= 1;
            assert!(is_about(due_in(10, begins..begins + 9), 900));
            assert!(is_about(due_in(10, begins + 9..begins + 12), 30));
            assert!(is_about(due_in(0, begins..begins + 9), 900));
            assert_eq!(due_in(0, begins + 9..begins + 12), 0);
        }
    }
}
