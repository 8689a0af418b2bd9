//! The log, syncs and the fence: what must have happened before a write or a flush is answered.
//!
//! Records of all requests whose pages are written join one batch; one batch is at the medium at a time, so
//! they are answered in the order of the log. Then the volume looks whether whoever claimed a higher epoch has fenced
//! it: everything that was written before the look is then sure to be seen by whoever does so later (decisions D10,
//! 055), and may be answered. A sync covers the batches that were complete when it began.
//!
//! Invariants: `checked <= completed < next`, `checked_durable <= durable <= completed`; a request whose batch is
//! at most `checked` is answered, and with FUA when it is at most `checked_durable`.

use std::collections::VecDeque;

use block::{Act, Fault, FileId, FileName, Op, Status, Step};
use frame::{IoBuffer, IoPool};

use super::merge::Refusal;
use super::token::Token;
use super::{Health, REFUSED_NS, Volume};
use crate::format::{ExtentKind, HEADER_BYTES, HOLE_RECORD_BYTES, Header, Kind, PAGE_BYTES, put_hole};

/// Longest batch in bytes.
const BATCH_BYTES_MAX: usize = 64 << 10;

/// The segment that follows the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    None,
    Creating(FileId),
    Allocating(FileId),
    Ready(FileId),
    /// The medium had no room, at this time; not even for an empty file without one.
    Refused {
        file: Option<FileId>,
        at_ns: u64,
    },
}

/// The batch at the medium.
#[derive(Debug)]
struct Batch {
    number: u64,
    bytes: u32,
    requests: Vec<u32>,
}

/// The state of log, syncs and fence.
#[derive(Debug)]
pub(super) struct Commit {
    /// Requests whose pages are written.
    pub to_log: VecDeque<u32>,
    /// Holes whose records are to outlive the checkpoint under way, as first page and the page behind the last: they come
    /// before everything else.
    again: VecDeque<(u64, u64)>,
    /// The last batch with some of them.
    again_batch: u64,
    next_batch: u64,
    writing: Option<Batch>,
    pub completed: u64,
    checked: u64,
    pub durable: u64,
    pub checked_durable: u64,
    /// Requests whose batch is complete, in the order of the log.
    written: VecDeque<u32>,
    /// Requests that wait for a batch to be durable.
    waiting: Vec<(u64, u32)>,
    segments: VecDeque<(u32, FileId)>,
    offset: u32,
    next: Next,
    dirty: Vec<FileId>,
    pub unsynced_bytes: u64,
    syncing: u32,
    sync_target: u64,
    /// A sync is wanted though nobody waits for a batch.
    pub sync_wanted: bool,
    pub syncs_started: u64,
    pub syncs_done: u64,
    /// What was complete, and durable, when the look under way began, and when that was.
    looking: Option<(u64, u64, u64)>,
    pub look_wanted: bool,
    pub looked: bool,
    pub looked_ns: u64,
    pub looks_done: u64,
    /// There was no memory for a batch: it is tried again at each step.
    pub lacks_memory: bool,
}

impl Commit {
    pub fn new(next_batch: u64) -> Commit {
        let done = next_batch - 1;
        Commit {
            to_log: VecDeque::new(),
            again: VecDeque::new(),
            again_batch: 0,
            next_batch,
            writing: None,
            completed: done,
            checked: done,
            durable: done,
            checked_durable: done,
            written: VecDeque::new(),
            waiting: Vec::new(),
            segments: VecDeque::new(),
            offset: 0,
            next: Next::None,
            dirty: Vec::new(),
            unsynced_bytes: 0,
            syncing: 0,
            sync_target: 0,
            sync_wanted: false,
            syncs_started: 0,
            syncs_done: 0,
            looking: None,
            look_wanted: false,
            looked: false,
            looked_ns: 0,
            looks_done: 0,
            lacks_memory: false,
        }
    }

    /// A segment that recovery made; the last one is written to.
    pub fn segment_is(&mut self, segment: u32, file: FileId) {
        self.segments.push_back((segment, file));
    }

    /// Bytes were written to a file.
    pub fn dirty(&mut self, file: FileId) {
        if !self.dirty.contains(&file) {
            self.dirty.push(file);
        }
    }

    /// Segments that the next checkpoint will make needless.
    pub fn segment_count(&self) -> u32 {
        self.segments.len() as u32
    }

    /// True while a batch is at the medium.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether the segment after the current one has its room; `None` while that is being found out.
    pub fn next_room(&self) -> Option<bool> {
        match self.next {
            Next::Ready(_) => Some(true),
            Next::Refused { .. } => Some(false),
            _ => None,
        }
    }

    /// The segment after the current one is being made: the medium's answer is to come.
    pub fn is_making_segment(&self) -> bool {
        matches!(self.next, Next::Creating(_) | Next::Allocating(_))
    }

    /// The segment that is written to.
    pub fn segment(&self) -> Option<u32> {
        self.segments.back().map(|(number, _)| *number)
    }

    /// Goes on in the next segment, whose number is returned.
    pub fn rotate(&mut self) -> Option<u32> {
        let Next::Ready(file) = self.next else { return None };
        let number = self.segments.back().map_or(0, |(number, _)| number + 1);
        self.segments.push_back((number, file));
        self.next = Next::None;
        self.offset = 0;
        Some(number)
    }

    /// Forgets segments below `segment`, which a checkpoint made needless.
    pub fn forget_before(&mut self, segment: u32) -> Vec<(u32, FileId)> {
        let mut gone = Vec::new();
        while let Some(&(number, file)) = self.segments.front() {
            if number >= segment {
                break;
            }
            self.segments.pop_front();
            self.dirty.retain(|dirty| *dirty != file);
            gone.push((number, file));
        }
        gone
    }

    /// Room may be there again.
    pub fn retry_room(&mut self) {
        if let Next::Refused { at_ns, .. } = &mut self.next {
            *at_ns = 0;
        }
    }

    /// Whether the segment that comes next, or without room for one the current one, takes so many holes.
    pub fn room_again(&self, holes: usize, segment_bytes: u32) -> bool {
        let offset = if matches!(self.next, Next::Refused { .. }) { self.offset } else { 0 };
        // Where memory is short, batches are of one page.
        let per_page = (PAGE_BYTES - HEADER_BYTES) / HOLE_RECORD_BYTES;
        holes.div_ceil(per_page) * PAGE_BYTES <= (segment_bytes - offset) as usize
    }

    /// Logs holes again, before anything else.
    pub fn log_again(&mut self, holes: impl Iterator<Item = (u64, u64)>) {
        self.again.extend(holes);
    }

    /// True until that is done.
    pub fn is_logging_again(&self) -> bool {
        !self.again.is_empty() || self.again_batch > self.completed
    }

    pub fn is_looking(&self) -> bool {
        self.looking.is_some()
    }

    /// True when it goes on without an answer of the medium: a checkpoint asks for a sync in the step after the one
    /// in which syncs are begun, and perhaps nothing else is under way.
    pub fn wants_step(&self, health: Health) -> bool {
        let syncs = self.sync_wanted && self.syncing == 0 && health == Health::Sound;
        let looks = self.look_wanted && self.looking.is_none() && health != Health::Fenced;
        self.lacks_memory || syncs || looks
    }

    pub fn is_quiet(&self) -> bool {
        self.to_log.is_empty() && self.writing.is_none() && self.written.is_empty()
    }
}

impl Volume {
    pub(super) fn log_name(&self, segment: u32) -> FileName {
        FileName::Log { epoch: self.epoch, segment }
    }

    /// A flush waits for all batches that are complete now.
    pub(super) fn flush(&mut self, index: u32) {
        let target = self.commit.completed;
        self.slots[index as usize].batch = target;
        self.commit.waiting.push((target, index));
        self.commit.look_wanted = true;
    }

    pub(super) fn step_commit(&mut self, pool: &mut IoPool) {
        if self.health != Health::Sound {
            self.fail_commit(pool);
        } else {
            self.prepare_segment();
            self.write_batch(pool);
            self.start_sync();
        }
        self.start_look();
    }

    /// Makes the next segment while the current one is written.
    fn prepare_segment(&mut self) {
        match self.commit.next {
            Next::None => self.make_segment(),
            Next::Refused { file, at_ns }
                if self.now_ns.saturating_sub(at_ns) >= REFUSED_NS || at_ns == 0 =>
            {
                match file {
                    Some(file) => self.allocate_segment(file),
                    None => self.make_segment(),
                }
            }
            _ => {}
        }
    }

    fn make_segment(&mut self) {
        let file = self.new_file();
        let segment = self.commit.segments.back().map_or(0, |(number, _)| number + 1);
        self.commit.next = Next::Creating(file);
        let name = self.log_name(segment);
        self.ask(Token::Segment, Act::Create { file, name }, None, Vec::new());
    }

    fn allocate_segment(&mut self, file: FileId) {
        self.commit.next = Next::Allocating(file);
        let bytes = u64::from(self.config.log_segment_bytes);
        self.ask(Token::Segment, Act::Allocate { file, offset: 0, bytes }, None, Vec::new());
    }

    pub(super) fn segment_made(&mut self, result: Result<(), Fault>) {
        let at_ns = self.now_ns.max(1);
        match (self.commit.next, result) {
            (Next::Creating(file), Ok(())) => self.allocate_segment(file),
            (Next::Creating(file), Err(Fault::NoSpace)) => {
                self.free_files.push(file);
                self.commit.next = Next::Refused { file: None, at_ns };
            }
            (Next::Creating(file), Err(_)) => {
                self.free_files.push(file);
                self.commit.next = Next::None;
                self.health = if self.health == Health::Sound { Health::Broken } else { self.health };
            }
            (Next::Allocating(file), Err(Fault::NoSpace)) => {
                self.commit.next = Next::Refused { file: Some(file), at_ns };
            }
            // A file system without fallocate: room is found, or not, when it is written.
            (Next::Allocating(file), _) => self.commit.next = Next::Ready(file),
            (other, _) => self.commit.next = other,
        }
    }

    /// Writes the records of all that wait, as many as fit, in one batch.
    fn write_batch(&mut self, pool: &mut IoPool) {
        self.commit.lacks_memory = false;
        let most = 2 * self.config.delta_entries_max;
        let full = self.map.delta.len() >= most + self.merge.rest().min(most);
        let front = match (self.commit.again.front(), self.commit.to_log.front()) {
            (Some(_), _) => Some(HOLE_RECORD_BYTES),
            (None, Some(&index)) if !full => Some(Self::record_bytes(&self.slots[index as usize])),
            _ => None,
        };
        let Some(first) = front.filter(|_| self.commit.writing.is_none()) else { return };
        let mut room = (self.config.log_segment_bytes - self.commit.offset) as usize;
        if room < (HEADER_BYTES + first).next_multiple_of(PAGE_BYTES) {
            if self.commit.rotate().is_none() {
                return self.log_is_full(pool);
            }
            room = self.config.log_segment_bytes as usize;
        }
        let least = (HEADER_BYTES + first).next_multiple_of(PAGE_BYTES);
        let buffer = pool.alloc(room.min(BATCH_BYTES_MAX)).or_else(|| pool.alloc(least));
        self.commit.lacks_memory = buffer.is_none();
        let Some(mut buffer) = buffer else { return };
        let number = self.commit.next_batch;
        let (mut requests, mut at) = (Vec::new(), HEADER_BYTES);
        let bytes = pool.bytes_mut(&mut buffer);
        while at + HOLE_RECORD_BYTES <= bytes.len()
            && let Some((first, end)) = self.commit.again.pop_front()
        {
            at = put_hole(bytes, at, first, end - first);
            self.commit.again_batch = number;
        }
        while self.commit.again.is_empty()
            && !full
            && let Some(&index) = self.commit.to_log.front()
        {
            if at + Self::record_bytes(&self.slots[index as usize]) > bytes.len() {
                break;
            }
            self.commit.to_log.pop_front();
            at = self.put_records(index, bytes, at, number);
            requests.push(index);
        }
        let padded = at.next_multiple_of(PAGE_BYTES);
        bytes[at..padded].fill(0);
        let (identity, epoch, b) = (self.identity, self.epoch, self.commit.durable);
        Header { kind: Kind::Batch, identity, epoch, a: number, b, bytes: at as u32 }.seal(bytes);
        let Some(&(_, file)) = self.commit.segments.back() else { return pool.free(buffer) };
        self.commit.next_batch += 1;
        self.commit.writing = Some(Batch { number, bytes: padded as u32, requests });
        self.stats.batches += 1;
        let pieces = self.one_piece(file, u64::from(self.commit.offset), padded);
        self.ask(Token::Batch, Act::Write, Some(buffer), pieces);
    }

    /// The medium has no room for the log: a checkpoint may make some; otherwise nothing can be written.
    fn log_is_full(&mut self, pool: &mut IoPool) {
        if !matches!(self.commit.next, Next::Refused { .. }) {
            return;
        }
        if self.merge.is_under_way() && self.merge.refusal() == Refusal::None {
            return;
        }
        if !self.merge.is_under_way() && self.commit.segment_count() > 1 && !self.map.delta.is_empty() {
            self.merge.wanted = true;
            return;
        }
        while let Some(index) = self.commit.to_log.pop_front() {
            self.end(index, Status::NoSpace, pool);
        }
    }

    pub(super) fn batch_written(
        &mut self,
        result: Result<(), Fault>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        if let Some(buffer) = buffer {
            pool.free(buffer);
        }
        let Some(batch) = self.commit.writing.take() else { return };
        if result.is_err() || self.health != Health::Sound {
            self.fail(Health::Broken, pool);
            let status = self.failed_status();
            return batch.requests.into_iter().for_each(|index| self.end(index, status, pool));
        }
        self.commit.offset += batch.bytes;
        self.commit.completed = batch.number;
        if let Some(&(_, file)) = self.commit.segments.back() {
            self.commit.dirty(file);
        }
        batch.requests.iter().for_each(|&index| self.mark(index, Step::Logged));
        self.commit.written.extend(batch.requests);
    }

    /// Begins a sync when somebody waits for one, or too much is not durable.
    fn start_sync(&mut self) {
        let commit = &self.commit;
        let waited = commit.waiting.iter().any(|(batch, _)| *batch > commit.durable);
        let wanted = waited
            || commit.sync_wanted
            || commit.unsynced_bytes >= self.config.unsynced_bytes_max
            || (self.space.has_pending() && self.is_short() && commit.completed > commit.durable);
        if !wanted || commit.syncing > 0 {
            return;
        }
        self.commit.sync_wanted = false;
        self.commit.unsynced_bytes = 0;
        self.commit.sync_target = self.commit.completed;
        self.commit.syncs_started += 1;
        let dirty = std::mem::take(&mut self.commit.dirty);
        self.commit.syncing = dirty.len() as u32;
        if dirty.is_empty() {
            self.sync_ended();
        }
        for file in dirty {
            self.ask(Token::Sync, Act::Sync(file), None, Vec::new());
        }
    }

    fn sync_ended(&mut self) {
        self.commit.durable = self.commit.durable.max(self.commit.sync_target);
        self.commit.syncs_done += 1;
        self.stats.syncs += 1;
    }

    pub(super) fn synced(&mut self, result: Result<(), Fault>, pool: &mut IoPool) {
        // After a failed fdatasync nobody knows what is on the medium (Rebello et al., ATC '20).
        if result.is_err() {
            self.fail(Health::Broken, pool);
        }
        self.commit.syncing -= 1;
        if self.commit.syncing == 0 && self.health == Health::Sound {
            self.sync_ended();
        }
    }

    /// Looks for a higher epoch when something may be answered, or used again, after that.
    fn start_look(&mut self) {
        let commit = &self.commit;
        let wanted = commit.look_wanted
            || (commit.completed > commit.checked && !commit.written.is_empty())
            || commit
                .waiting
                .iter()
                .any(|(batch, _)| *batch > commit.checked_durable && *batch <= commit.durable)
            || (commit.durable > commit.checked_durable && self.space.has_pending());
        if !wanted || commit.looking.is_some() || self.health == Health::Fenced {
            return;
        }
        self.commit.look_wanted = false;
        self.commit.looking = Some((self.commit.completed, self.commit.durable, self.now_ns));
        let name = FileName::Fence(self.epoch);
        self.ask(Token::Probe, Act::Probe(name), None, Vec::new());
    }

    pub(super) fn probed(&mut self, result: Result<(), Fault>, pool: &mut IoPool) {
        let Some((completed, durable, at_ns)) = self.commit.looking.take() else { return };
        match result {
            Ok(()) => {}
            Err(Fault::Exists) => return self.fail(Health::Fenced, pool),
            // Not knowing is not owning.
            Err(_) => return self.fail(Health::Fenced, pool),
        }
        (self.commit.looked, self.commit.looked_ns) = (true, at_ns);
        self.commit.looks_done += 1;
        if self.health == Health::Sound {
            self.commit.checked = completed;
            self.commit.checked_durable = durable;
            self.space.release_until(durable);
            self.answer_written(pool);
            self.answer_waiting(pool);
        }
        for index in std::mem::take(&mut self.fenced_reads) {
            self.advance(index, pool);
        }
    }

    fn answer_written(&mut self, pool: &mut IoPool) {
        while let Some(&index) = self.commit.written.front() {
            let slot = &self.slots[index as usize];
            if slot.batch > self.commit.checked {
                return;
            }
            let batch = slot.batch;
            self.commit.written.pop_front();
            let op = slot.io.as_ref().map(|io| io.op);
            self.mark(index, Step::Looked);
            match op {
                Some(Op::Write { fua: true } | Op::WriteZeroes { fua: true }) => {
                    self.commit.waiting.push((batch, index));
                }
                _ => self.end(index, Status::Ok, pool),
            }
        }
    }

    fn answer_waiting(&mut self, pool: &mut IoPool) {
        let durable = self.commit.checked_durable;
        let mut at = 0;
        while at < self.commit.waiting.len() {
            let (batch, index) = self.commit.waiting[at];
            if batch > durable {
                at += 1;
                continue;
            }
            self.commit.waiting.remove(at);
            self.mark(index, Step::Synced);
            self.end(index, Status::Ok, pool);
        }
    }

    /// Everyone who waits for log or sync is told that it failed.
    pub(super) fn fail_commit(&mut self, pool: &mut IoPool) {
        let status = self.failed_status();
        let commit = &mut self.commit;
        let mut told: Vec<u32> = commit.to_log.drain(..).chain(commit.written.drain(..)).collect();
        told.extend(commit.waiting.drain(..).map(|(_, index)| index));
        told.into_iter().for_each(|index| self.end(index, status, pool));
    }

    /// True when pages run short.
    pub(super) fn is_short(&self) -> bool {
        let threshold = self.config.free_threshold_bytes / PAGE_BYTES as u64;
        u64::from(self.space.available(ExtentKind::Pages)) < threshold
    }
}
