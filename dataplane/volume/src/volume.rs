//! A thin volume as a machine: requests and answers, the order of those that overlap, and who waits for what.
//!
//! Every request has a slot from `process` to its answer. A slot is in exactly one place: waiting for its range
//! (`queue`), waiting for something that is tried again at each step (`stalled`), under way at the medium, waiting for
//! the log (`Commit`), or waiting for the fence (`fenced_reads`).

mod commit;
mod grow;
mod merge;
mod read;
mod token;
mod write;

use std::collections::VecDeque;

use block::{
    Act, BlockSize, Done, Epoch, Fault, FileId, FileName, Finished, Io, Lba, Mark, Op, Piece, Request,
    Status, Step, TraceId, VolumeId,
};
use frame::{IoBuffer, IoPool};

use crate::format::{Identity, Mapped, PAGE_BYTES, Place};
use crate::map::{Delta, Index, LeafCache};
use crate::open::Recovered;
use crate::space::Space;

use commit::Commit;
use grow::Grow;
use merge::{Merge, Refusal};
use token::Token;

/// Reads look for a higher epoch when the last look is older than this (decision D10).
const FENCE_READ_NS: u64 = 50_000_000;

/// How long a refusal of room is believed.
const REFUSED_NS: u64 = 1_000_000_000;

/// Limits of a thin volume. The defaults suit volumes of gigabytes to terabytes.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Requests between `process` and answer; more are answered [`Status::Busy`].
    pub in_flight_max: u32,
    /// Leaves of 16 KiB kept in memory.
    pub leaf_cache_leaves: usize,
    /// Entries that the log may add before a checkpoint begins; twice as many while one is under way.
    pub delta_entries_max: usize,
    /// Length of a log segment in bytes, whole pages.
    pub log_segment_bytes: u32,
    /// Segments that the log may fill before a checkpoint begins.
    pub log_segments_max: u32,
    /// Length of an extent file in bytes.
    pub extent_bytes: u64,
    /// How much room is taken at once.
    pub expand_bytes: u64,
    /// Room is taken when less than this is left after what is being asked for.
    pub free_threshold_bytes: u64,
    /// Room that only overwrites may use, so that they go on when the medium is full.
    pub reserve_bytes: u64,
    /// Free pages kept to be used again; more are given back to the file system.
    pub reuse_pages_max: usize,
    /// Bytes that may be written without being synced, asked or not: what a recovery reads.
    pub unsynced_bytes_max: u64,
    /// The grant of a control plane to open under (docs/decisions/044); without one the next epoch is taken.
    pub grant: Option<u64>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            in_flight_max: 256,
            leaf_cache_leaves: 512,
            delta_entries_max: 64 << 10,
            log_segment_bytes: 16 << 20,
            log_segments_max: 4,
            extent_bytes: 1 << 30,
            expand_bytes: 16 << 20,
            free_threshold_bytes: 8 << 20,
            reserve_bytes: 2 << 20,
            reuse_pages_max: 16 << 10,
            unsynced_bytes_max: 64 << 20,
            grant: None,
        }
    }
}

/// Whether a volume can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Sound,
    /// Its log, map or a sync failed: writes are refused, reads go on as far as they can.
    Broken,
    /// A higher epoch exists: everything is refused.
    Fenced,
}

/// What a volume has done and has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pages that can be given out at once.
    pub pages_free: u32,
    /// Extent files.
    pub extents: u32,
    /// Leaves of the map.
    pub leaves: u32,
    /// Changes in memory that no checkpoint contains.
    pub delta_entries: u32,
    /// Batches written to the log.
    pub batches: u64,
    /// Syncs carried out.
    pub syncs: u64,
    /// Checkpoints written since the volume was opened.
    pub checkpoints: u64,
    /// Times that room was taken.
    pub expansions: u64,
    /// Times that the medium had none.
    pub expansions_refused: u64,
    /// Slots given back to the medium.
    pub slots_punched: u64,
    /// Pages whose checksum did not fit.
    pub pages_corrupt: u64,
}

/// Which blocks of which pages a request covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    /// First page, and the page behind the last.
    first: u64,
    end: u64,
    /// Bytes of the first page, when the request does not cover it whole: from, to.
    head: Option<(usize, usize)>,
    /// Bytes of the last page, when the request does not cover it whole and it is not the first.
    tail: Option<(usize, usize)>,
}

impl Span {
    fn new(size: BlockSize, lba: Lba, blocks: u32) -> Span {
        let page = PAGE_BYTES as u64;
        let start = lba.0 << size.shift();
        let stop = start + (u64::from(blocks) << size.shift());
        let (first, end) = (start / page, stop.div_ceil(page));
        let from = (start % page) as usize;
        let to = (stop - first * page).min(page) as usize;
        let head = (from != 0 || to != PAGE_BYTES).then_some((from, to));
        let rest = (stop % page) as usize;
        let tail = (end - first > 1 && rest != 0).then_some((0, rest));
        Span { first, end, head, tail }
    }

    /// Pages covered whole: first, and the one behind the last.
    fn middle(&self) -> (u64, u64) {
        let first = self.first + u64::from(self.head.is_some());
        (first, (self.end - u64::from(self.tail.is_some())).max(first))
    }

    /// Where the whole pages begin in the payload.
    fn middle_at(&self) -> usize {
        self.head.map_or(0, |(from, to)| to - from)
    }

    fn pages(&self) -> usize {
        (self.end - self.first) as usize
    }
}

/// What a request does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Find the pages (reads: all; writes: those covered in part), then read them.
    Find,
    /// Their bytes are on the way.
    Fetch,
    /// A read is there: it is answered if no higher epoch can have come meanwhile.
    Answer,
    /// Take room and write.
    Place,
    /// The pages are being written.
    Store,
    /// Waiting for the log and what follows.
    Log,
}

/// One request under way. The vectors keep their memory from request to request.
#[derive(Debug)]
struct Slot {
    io: Option<Io<IoBuffer>>,
    stage: Stage,
    span: Span,
    /// Requests at the medium.
    pending: u32,
    status: Status,
    /// Where the pages of the span lie that were looked up, from the first one looked up.
    found: Vec<Option<Mapped>>,
    /// Where the new pages lie: those of the head, the middle, the tail.
    fresh: Vec<Mapped>,
    /// Whole pages for the head and the tail.
    edges: [Option<IoBuffer>; 2],
    /// The host's bytes of a compare, while its buffer holds those of the medium.
    expected: Option<IoBuffer>,
    /// The batch that must be written, or durable, before the answer; of a read, the look for a higher epoch that it waits
    /// for, or 0.
    batch: u64,
}

impl Slot {
    fn empty() -> Slot {
        Slot {
            io: None,
            stage: Stage::Find,
            span: Span::default(),
            pending: 0,
            status: Status::Ok,
            found: Vec::new(),
            fresh: Vec::new(),
            edges: [None, None],
            expected: None,
            batch: 0,
        }
    }
}

/// The range that a request holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    slot: u32,
    first: u64,
    end: u64,
    write: bool,
}

impl Held {
    fn conflicts(&self, other: &Held) -> bool {
        (self.write || other.write) && self.first < other.end && other.first < self.end
    }
}

/// What lies where.
#[derive(Debug)]
struct Map {
    delta: Delta,
    merging: Option<Delta>,
    index: Index,
    cache: LeafCache,
    /// Leaves being read.
    fetching: Vec<Place>,
    /// Leaves whose bytes are wrong.
    corrupt: Vec<Place>,
    /// Leaves that the medium just failed to read: whoever waits is told, then they are tried again.
    unreadable: Vec<Place>,
}

/// A thin volume. See the crate for how it is driven.
#[derive(Debug)]
pub struct Volume {
    id: VolumeId,
    identity: Identity,
    epoch: Epoch,
    size: BlockSize,
    blocks: u64,
    config: Config,
    health: Health,
    now_ns: u64,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    held: Vec<Held>,
    queue: VecDeque<Held>,
    stalled: VecDeque<u32>,
    fenced_reads: Vec<u32>,
    requests: VecDeque<Request<IoBuffer>>,
    in_flight: u32,
    /// Files that are being opened: nothing else is asked for before.
    opening: u32,
    dones: VecDeque<Done<IoBuffer>>,
    /// What followed requests have done since that was asked last.
    marks: Vec<Mark>,
    spare_pieces: Vec<Vec<Piece>>,
    next_file: u32,
    free_files: Vec<FileId>,
    map: Map,
    space: Space,
    commit: Commit,
    grow: Grow,
    merge: Merge,
    stats: Stats,
}

impl Volume {
    /// A machine over what [`crate::open`] recovered.
    pub(crate) fn new(id: VolumeId, config: Config, recovered: Recovered) -> Volume {
        let slots = config.in_flight_max.max(1);
        let mut volume = Volume {
            id,
            identity: recovered.identity,
            epoch: recovered.epoch,
            size: recovered.size,
            blocks: recovered.blocks,
            config,
            health: Health::Sound,
            now_ns: 0,
            slots: (0..slots).map(|_| Slot::empty()).collect(),
            free_slots: (0..slots).rev().collect(),
            held: Vec::with_capacity(slots as usize),
            queue: VecDeque::new(),
            stalled: VecDeque::new(),
            fenced_reads: Vec::new(),
            requests: VecDeque::new(),
            in_flight: 0,
            opening: 0,
            dones: VecDeque::new(),
            marks: Vec::new(),
            spare_pieces: Vec::new(),
            next_file: 0,
            free_files: Vec::new(),
            map: Map {
                delta: recovered.delta,
                merging: None,
                index: recovered.index,
                cache: LeafCache::new(config.leaf_cache_leaves),
                fetching: Vec::new(),
                corrupt: Vec::new(),
                unreadable: Vec::new(),
            },
            space: Space::new(recovered.epoch, config.extent_bytes, config.reuse_pages_max),
            commit: Commit::new(recovered.next_batch),
            grow: Grow::new(recovered.next_extent),
            merge: Merge::new(recovered.checkpoint),
            stats: Stats::default(),
        };
        for (entry, recent) in recovered.extents {
            let file = volume.open_file(FileName::Extent { epoch: entry.epoch, id: entry.id });
            volume.space.adopt(entry, recent, file);
        }
        recovered.dead.into_iter().for_each(|run| volume.space.punch(run));
        volume.merge.start(recovered.leftovers);
        let first = volume.open_file(FileName::Checkpoint { epoch: volume.epoch, side: 0 });
        volume.merge.side_is(0, first);
        for segment in 0..=recovered.segment {
            let file = volume.open_file(FileName::Log { epoch: volume.epoch, segment });
            volume.commit.segment_is(segment, file);
        }
        volume
    }

    /// The volume.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Its random identity, the same whoever owns it.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Size of a block.
    pub fn block_size(&self) -> BlockSize {
        self.size
    }

    /// Size in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The epoch that this owner claimed.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether it can be relied on.
    pub fn health(&self) -> Health {
        self.health
    }

    /// What it has done and has.
    pub fn stats(&self) -> Stats {
        Stats {
            pages_free: self.space.available(crate::format::ExtentKind::Pages),
            extents: self.space.extents.len() as u32,
            leaves: self.map.index.len() as u32,
            delta_entries: (self.map.delta.len() + self.map.merging.as_ref().map_or(0, Delta::len)) as u32,
            slots_punched: self.space.punched,
            ..self.stats
        }
    }

    /// How many more requests fit.
    pub fn room(&self) -> usize {
        self.free_slots.len()
    }

    /// True when nothing is under way: no request, nothing at the medium, nothing to answer.
    pub fn is_idle(&self) -> bool {
        self.free_slots.len() == self.slots.len()
            && self.in_flight == 0
            && self.requests.is_empty()
            && self.dones.is_empty()
    }

    /// Takes a request. Its answer comes out of [`Volume::finished`], perhaps at once.
    pub fn process(&mut self, io: Io<IoBuffer>, pool: &mut IoPool, now_ns: u64) {
        self.now_ns = now_ns;
        let bytes = io.buffer.as_ref().map_or(0, IoBuffer::len);
        let status = match io.admit(self.size, self.blocks, bytes) {
            Err(status) => status,
            Ok(()) if self.health == Health::Fenced => Status::Fenced,
            Ok(()) if self.health == Health::Broken && (io.op.is_write() || io.op == Op::Flush) => {
                Status::Broken
            }
            Ok(()) if self.free_slots.is_empty() => Status::Busy,
            Ok(()) => Status::Ok,
        };
        let Some(index) = self.free_slots.pop_if(|_| status.is_ok()) else {
            return self.dones.push_back(io.done(status));
        };
        let write = io.op.is_write();
        if write {
            self.merge.go_on();
        }
        let flush = io.op == Op::Flush;
        let span = if flush { Span::default() } else { Span::new(self.size, io.lba, io.blocks) };
        let slot = &mut self.slots[index as usize];
        slot.span = span;
        slot.status = Status::Ok;
        slot.stage = Stage::Find;
        slot.pending = 0;
        slot.found.clear();
        slot.fresh.clear();
        slot.io = Some(io);
        if flush {
            return self.flush(index);
        }
        let held = Held { slot: index, first: span.first, end: span.end, write };
        let before = self.held.iter().chain(&self.queue).find(|other| other.conflicts(&held));
        if let Some(before) = before {
            let other = self.trace(before.slot);
            self.mark(index, Step::Behind(other));
            self.queue.push_back(held);
        } else {
            self.held.push(held);
            self.advance(index, pool);
        }
    }

    /// Moves a request on as far as it goes.
    fn advance(&mut self, index: u32, pool: &mut IoPool) {
        let slot = &self.slots[index as usize];
        let Some(op) = slot.io.as_ref().map(|io| io.op) else { return };
        match self.health {
            Health::Fenced => return self.end(index, Status::Fenced, pool),
            Health::Broken if op.is_write() => return self.end(index, Status::Broken, pool),
            _ => {}
        }
        if self.opening > 0 {
            return self.stall(index);
        }
        match (op, slot.stage) {
            (Op::Read | Op::Compare, Stage::Find) => self.find_for_read(index, pool),
            (Op::Extents, Stage::Find) => self.find_extents(index, pool),
            (_, Stage::Find) => self.find_edges(index, pool),
            (_, Stage::Answer) => self.answer_read(index, pool),
            (_, Stage::Place) => self.place(index, pool),
            (_, Stage::Fetch | Stage::Store | Stage::Log) => {}
        }
    }

    /// Tries again later: at the next step.
    fn stall(&mut self, index: u32) {
        self.stalled.push_back(index);
    }

    /// Moves everything on that can move. To be called after each batch of `process` and `complete`.
    pub fn step(&mut self, pool: &mut IoPool, now_ns: u64) {
        self.now_ns = now_ns;
        if self.opening > 0 {
            return;
        }
        self.admit_queue(pool);
        for _ in 0..self.stalled.len() {
            if let Some(index) = self.stalled.pop_front() {
                self.advance(index, pool);
            }
        }
        self.map.unreadable.clear();
        self.step_commit(pool);
        self.step_grow(pool);
        self.step_merge(pool);
    }

    /// True when it is idle and no checkpoint is under way or wanted: it can be closed with nothing left to do. A
    /// checkpoint of one that failed or was taken over would not come to an end, so it is not waited for.
    pub fn is_settled(&self) -> bool {
        self.is_idle() && (self.health() != Health::Sound || self.merge.is_settled())
    }

    /// True when a step would change something that no answer of a medium announces. What waits for room that the
    /// medium refused is left to [`Volume::retry_at_ns`].
    pub fn wants_step(&self) -> bool {
        // A checkpoint goes on, or begins, when what it waits for is answered.
        let waits = self.commit.is_logging_again() && self.commit.is_writing()
            || !self.map.fetching.is_empty()
            || !self.merge.is_under_way() && self.commit.is_making_segment();
        let merges = self.merge.wants_step() && !waits && self.retry_at_ns().is_none();
        !self.stalled.is_empty()
            || !self.queue.is_empty()
            || self.commit.wants_step(self.health)
            || (self.health == Health::Sound && merges)
    }

    /// When a step should ask again for room that the medium refused to a checkpoint.
    pub fn retry_at_ns(&self) -> Option<u64> {
        let refused_ns = match self.merge.refusal() {
            Refusal::None => None,
            Refusal::Checkpoint(at_ns) => Some(at_ns),
            Refusal::Leaves => self.grow.refused_ns,
        };
        refused_ns.map(|at_ns| at_ns.saturating_add(REFUSED_NS))
    }

    /// True when there is a request for the medium, which had no room for it.
    pub fn wants_dispatch(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Lets in those whose range is free, in their order.
    fn admit_queue(&mut self, pool: &mut IoPool) {
        let mut at = 0;
        while at < self.queue.len() {
            let held = self.queue[at];
            let before = self.queue.iter().take(at);
            if self.held.iter().chain(before).any(|other| other.conflicts(&held)) {
                at += 1;
                continue;
            }
            self.queue.remove(at);
            self.held.push(held);
            self.mark(held.slot, Step::Queued);
            self.advance(held.slot, pool);
        }
    }

    /// The next request for the medium.
    pub fn dispatch(&mut self) -> Option<Request<IoBuffer>> {
        self.requests.pop_front()
    }

    /// Puts a request back that the medium had no room for.
    pub fn put_back(&mut self, request: Request<IoBuffer>) {
        self.requests.push_front(request);
    }

    /// The next answer.
    pub fn finished(&mut self) -> Option<Done<IoBuffer>> {
        self.dones.pop_front()
    }

    /// What followed requests have done, in this order, since that was asked last. What they did after the last
    /// mark is said by their answer.
    pub fn marks(&mut self) -> impl Iterator<Item = Mark> {
        self.marks.drain(..)
    }

    fn mark(&mut self, index: u32, step: Step) {
        let trace = self.trace(index);
        if trace.0 != 0 {
            self.marks.push(Mark { trace, step });
        }
    }

    fn trace(&self, index: u32) -> TraceId {
        self.slots[index as usize].io.as_ref().map_or(TraceId(0), |io| io.trace)
    }

    /// Gives memory back that the volume keeps: before it is dropped, when nothing is under way.
    pub fn close(mut self, pool: &mut IoPool) {
        self.drop_body(pool);
        self.map.cache.clear(pool);
    }

    /// Gives all memory back and forgets every request: the owner died. For tests.
    #[cfg(any(test, feature = "crash"))]
    pub fn abandon(mut self, pool: &mut IoPool) {
        let dones = std::mem::take(&mut self.dones).into_iter().filter_map(|done| done.buffer);
        dones
            .chain(self.requests.drain(..).filter_map(|request| request.buffer))
            .for_each(|buffer| pool.free(buffer));
        for slot in &mut self.slots {
            let payload = slot.io.take().and_then(|io| io.buffer);
            let edges = slot.edges.iter_mut().filter_map(Option::take);
            payload.into_iter().chain(slot.expected.take()).chain(edges).for_each(|buffer| pool.free(buffer));
        }
        self.drop_body(pool);
        self.map.cache.clear(pool);
    }

    /// Takes an answer of the medium.
    pub fn complete(&mut self, mut finished: Finished<IoBuffer>, pool: &mut IoPool, now_ns: u64) {
        self.now_ns = now_ns;
        self.in_flight -= 1;
        finished.pieces.clear();
        self.spare_pieces.push(std::mem::take(&mut finished.pieces));
        let (result, buffer) = (finished.result, finished.buffer);
        match Token::unpack(finished.token) {
            Token::Payload(slot) => self.payload_done(slot, result, buffer, pool),
            Token::Edge(slot, edge) => self.edge_done(slot, edge, result, buffer, pool),
            Token::Leaf(place) => self.leaf_fetched(place, result, buffer, pool),
            Token::Batch => self.batch_written(result, buffer, pool),
            Token::Probe => self.probed(result, pool),
            Token::Sync => self.synced(result, pool),
            Token::Segment => self.segment_made(result),
            Token::Grow(kind, step) => self.grew(kind, step, result, buffer, pool),
            Token::Merge(which) => self.merge_done(which, result, buffer, pool),
            Token::Opened => self.opened(result, pool),
            Token::Forgotten => {
                if let Some(buffer) = buffer {
                    pool.free(buffer);
                }
            }
        }
    }

    fn opened(&mut self, result: Result<(), Fault>, pool: &mut IoPool) {
        self.opening -= 1;
        if result.is_err() {
            self.fail(Health::Broken, pool);
        }
    }

    /// Something that everything rests on failed: whoever waits for it is told.
    fn fail(&mut self, health: Health, pool: &mut IoPool) {
        if self.health == Health::Fenced || self.health == health {
            return;
        }
        self.health = health;
        self.fail_commit(pool);
        if health == Health::Fenced {
            for index in std::mem::take(&mut self.fenced_reads) {
                self.end(index, Status::Fenced, pool);
            }
        }
    }

    fn failed_status(&self) -> Status {
        if self.health == Health::Fenced { Status::Fenced } else { Status::Broken }
    }

    /// Answers a request and lets its range go.
    fn end(&mut self, index: u32, status: Status, pool: &mut IoPool) {
        if !status.is_ok() {
            self.mark(index, Step::Mapped);
        }
        let slot = &mut self.slots[index as usize];
        let Some(mut io) = slot.io.take() else { return };
        if let Some(expected) = slot.expected.take()
            && let Some(scratch) = io.buffer.replace(expected)
        {
            pool.free(scratch);
        }
        for edge in &mut slot.edges {
            if let Some(buffer) = edge.take() {
                pool.free(buffer);
            }
        }
        let zeroes = io.op == Op::Read && status.is_ok() && slot.found.iter().all(Option::is_none);
        // Room that no record names.
        if !status.is_ok() && slot.batch == 0 {
            slot.fresh.drain(..).for_each(|mapped| self.space.give_back(mapped.place));
        }
        slot.batch = 0;
        self.free_slots.push(index);
        if let Some(at) = self.held.iter().position(|held| held.slot == index) {
            self.held.swap_remove(at);
        }
        let mut done = io.done(status);
        done.zeroes = zeroes;
        self.dones.push_back(done);
    }

    /// Emits a request to the medium.
    fn ask(&mut self, token: Token, act: Act, buffer: Option<IoBuffer>, pieces: Vec<Piece>) {
        self.in_flight += 1;
        self.requests.push_back(Request { volume: self.id, token: token.pack(), act, buffer, pieces });
    }

    fn pieces(&mut self) -> Vec<Piece> {
        self.spare_pieces.pop().unwrap_or_default()
    }

    fn one_piece(&mut self, file: FileId, offset: u64, bytes: usize) -> Vec<Piece> {
        let mut pieces = self.pieces();
        pieces.push(Piece { file, offset, at: 0, bytes: bytes as u32 });
        pieces
    }

    fn new_file(&mut self) -> FileId {
        self.free_files.pop().unwrap_or_else(|| {
            self.next_file += 1;
            FileId(self.next_file - 1)
        })
    }

    /// A number for a file that exists.
    fn open_file(&mut self, name: FileName) -> FileId {
        let file = self.new_file();
        self.opening += 1;
        self.ask(Token::Opened, Act::Open { file, name }, None, Vec::new());
        file
    }

    /// First block of a page.
    fn lba_of(&self, page: u64) -> Lba {
        Lba(page << (PAGE_BYTES.trailing_zeros() - self.size.shift()))
    }

    fn media_error(&self, page: u64, place: Place) -> Status {
        let offset = u64::from(place.slot) * PAGE_BYTES as u64;
        Status::MediaError { lba: self.lba_of(page), extent: place.extent, offset }
    }

    /// Counts it, and says where.
    fn corrupt(&mut self, page: u64, place: Place, slot_bytes: u64) -> Status {
        self.stats.pages_corrupt += 1;
        let offset = u64::from(place.slot) * slot_bytes;
        Status::Corrupt { lba: self.lba_of(page), extent: place.extent, offset }
    }
}
