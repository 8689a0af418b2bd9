//! Checkpoints: the changes that the log holds become leaves, then a checkpoint names them, then the log is let go.
//!
//! 1. The delta is set aside, and the log goes on with an empty one, in its next segment if there is room for that.
//!    Holes that would empty too many leaves at once stay, are logged again, and make the next checkpoint.
//! 2. Leaf by leaf, what was set aside is merged with what the old leaf had, into new leaves (`job.rs`).
//! 3. A sync makes leaves, pages and log durable.
//! 4. The checkpoint is written over the older of two, its first page last, and synced.
//! 5. A look for a higher epoch. Then the old leaves, the pages that were replaced, and the old log segments are free.
//!
//! Requests are served meanwhile; each step does a bounded piece of work. Until 5 a crash finds the old checkpoint
//! with the whole log.

mod body;
mod job;

use block::{Act, Fault, FileId, FileName, Status, VOLUME_BYTES_MAX};
use frame::{IoBuffer, IoPool};

use super::token::Token;
use super::{Health, REFUSED_NS, Volume};
use crate::format::{ExtentKind, PAGE_BYTES, Place};
use crate::map::Delta;

use body::Body;
use job::Job;

/// Leaves at the medium at once.
const LEAVES_MAX: u32 = 8;
/// What an answer belongs to: in the upper 8 bits of the token's number.
const WHICH_SHIFT: u32 = 24;
const LEAF: u32 = 0;
const SIDE: u32 = 1;
const ROOM: u32 = 2;
const BODY: u32 = 3;
const SYNC: u32 = 4;
const GONE: u32 = 5;

/// Where a checkpoint stands.
#[derive(Debug)]
enum Stage {
    Idle,
    Leaves,
    /// Waiting for that sync.
    Sync(u64),
    /// Making the file, or taking room for it.
    Side,
    /// The medium had no room, at this time.
    Refused(u64),
    Body(Body),
    SyncBody,
    /// Waiting for that look for a higher epoch.
    Look(u64),
}

/// What a checkpoint found no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    None,
    /// Itself, at this time.
    Checkpoint(u64),
    /// Its leaves: the volume has to grow.
    Leaves,
}

/// The state of checkpoints.
#[derive(Debug)]
pub(super) struct Merge {
    /// The last one that is durable.
    number: u64,
    sides: [Option<FileId>; 2],
    /// One should begin as soon as it can.
    pub wanted: bool,
    /// Holes in the delta that the last one left to the next.
    rest: usize,
    /// They wait until something is written: what is to come to rest is not held up by them.
    resting: bool,
    /// Pages discarded since the last one began.
    discarded_pages: u64,
    /// The size in blocks that the volume is to have.
    blocks: Option<u64>,
    /// The size in blocks that the one under way says.
    written_blocks: Option<u64>,
    stage: Stage,
    /// The last batch that the one under way contains, and the segment that follows it.
    batch: u64,
    segment: u32,
    /// Everything below this page is merged.
    cursor: u64,
    job: Option<Job>,
    /// Leaves at the medium: where they will lie.
    writing: Vec<Place>,
    freed: Vec<Place>,
    /// No slot for the next leaf.
    lacks_slots: bool,
    /// Files of earlier owners that nobody needs.
    leftovers: Vec<FileName>,
}

impl Merge {
    pub fn new(number: u64) -> Merge {
        Merge {
            number,
            sides: [None, None],
            wanted: false,
            rest: 0,
            resting: false,
            discarded_pages: 0,
            blocks: None,
            written_blocks: None,
            stage: Stage::Idle,
            batch: 0,
            segment: 0,
            cursor: 0,
            job: None,
            writing: Vec::new(),
            freed: Vec::new(),
            lacks_slots: false,
            leftovers: Vec::new(),
        }
    }

    /// Files to remove.
    pub fn start(&mut self, leftovers: Vec<FileName>) {
        self.leftovers = leftovers;
    }

    /// Pages were discarded. Those that leaves map are free only with the next checkpoint; so many that the volume would
    /// not keep them are worth one.
    pub fn discarded(&mut self, pages: u64, most: usize) {
        self.discarded_pages = self.discarded_pages.saturating_add(pages);
        self.wanted |= self.discarded_pages > most as u64;
    }

    /// A checkpoint file that recovery made.
    pub fn side_is(&mut self, side: usize, file: FileId) {
        self.sides[side] = Some(file);
    }

    pub fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// Nothing is under way or wanted, as far as the medium lets it.
    pub fn is_settled(&self) -> bool {
        self.refusal() != Refusal::None || !self.is_under_way() && !self.wants_step()
    }

    /// Something is written: what rested goes on.
    pub fn go_on(&mut self) {
        self.resting = false;
    }

    /// Entries of the delta that are there only because holes wait for their turn.
    pub fn rest(&self) -> usize {
        self.rest
    }

    fn is_wanted(&self) -> bool {
        self.wanted || self.rest > 0 && !self.resting
    }

    /// True when it goes on without an answer of the medium.
    pub fn wants_step(&self) -> bool {
        match &self.stage {
            Stage::Idle => self.is_wanted() || !self.leftovers.is_empty(),
            // What is at the medium is answered, and moves it on.
            Stage::Leaves => self.writing.is_empty(),
            Stage::Refused(_) => true,
            Stage::Body(body) => !body.is_busy(),
            _ => false,
        }
    }

    /// The room that it waits for.
    pub fn refusal(&self) -> Refusal {
        match self.stage {
            Stage::Refused(at_ns) => Refusal::Checkpoint(at_ns),
            Stage::Leaves if self.lacks_slots => Refusal::Leaves,
            _ => Refusal::None,
        }
    }

    /// The side that the checkpoint under way is written to.
    fn side(&self) -> usize {
        (self.number % 2) as usize
    }
}

impl Volume {
    /// Begins a checkpoint as soon as the log allows, unless nothing changed. Holes that it leaves to others stand in the
    /// log, durable, until something is written again.
    pub fn checkpoint(&mut self) {
        self.merge.wanted |= !self.map.delta.is_empty();
        self.merge.resting = true;
    }

    /// Makes the volume larger while it serves; [`Volume::blocks`] says so when it is durable.
    ///
    /// [`Status::Invalid`] when that is smaller, no whole pages, or more than 64 TiB: [`crate::store::resize`] makes a
    /// volume smaller while nobody serves it.
    pub fn grow_to(&mut self, blocks: u64) -> Result<(), Status> {
        let bytes = blocks.saturating_mul(u64::from(self.size.bytes()));
        if self.health != Health::Sound {
            return Err(self.failed_status());
        }
        if blocks < self.blocks || bytes > VOLUME_BYTES_MAX || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Status::Invalid);
        }
        self.merge.blocks = Some(blocks);
        self.merge.wanted = true;
        Ok(())
    }

    pub(super) fn step_merge(&mut self, pool: &mut IoPool) {
        if self.health != Health::Sound {
            return;
        }
        if let Some(name) = self.merge.leftovers.pop() {
            self.remove_file(None, name);
        }
        match &self.merge.stage {
            Stage::Idle => self.begin_merge(),
            Stage::Leaves => self.step_leaves(pool),
            Stage::Sync(wanted) if self.commit.syncs_done >= *wanted => self.make_side(),
            Stage::Refused(at_ns) if self.now_ns.saturating_sub(*at_ns) >= REFUSED_NS => self.make_side(),
            Stage::Body(_) => self.step_body(pool),
            Stage::Look(wanted) if self.commit.looks_done >= *wanted => self.end_merge(),
            _ => {}
        }
    }

    fn begin_merge(&mut self) {
        let long = self.map.delta.len() >= self.config.delta_entries_max + self.merge.rest
            || self.commit.segment_count() > self.config.log_segments_max;
        let nothing = self.map.delta.is_empty() && self.merge.blocks.is_none();
        if !(long || self.merge.is_wanted()) || nothing || self.commit.is_writing() {
            return;
        }
        let cut = self.cut();
        if cut.is_some() && self.commit.next_room().is_none() {
            // It is being made, and its answer comes back here.
            return;
        }
        // A new segment, so that the old ones can go; without room for one, what follows stays in this one.
        let Some(segment) = self.commit.rotate().or(self.commit.segment()) else { return };
        (self.merge.wanted, self.merge.discarded_pages) = (false, 0);
        (self.merge.batch, self.merge.segment, self.merge.cursor) = (self.commit.completed, segment, 0);
        let rest = cut.map_or_else(Delta::default, |page| self.map.delta.split_holes(page));
        self.commit.log_again(rest.holes());
        self.merge.rest = rest.len();
        self.map.merging = Some(std::mem::replace(&mut self.map.delta, rest));
        self.merge.stage = Stage::Leaves;
    }

    /// The page from which on holes are left to another checkpoint, if they are more than one should free: what it frees
    /// is held in memory, and released in one step. None where the log has no room to name them again.
    fn cut(&self) -> Option<u64> {
        let delta = &self.map.delta;
        // A checkpoint writes the table of leaves, whatever it frees.
        let most = self.config.delta_entries_max.max(self.map.index.len()) as u64;
        if delta.holes().map(|(first, end)| end - first).sum::<u64>() <= most {
            return None;
        }
        // No page and no hole of the delta makes more than one hole more.
        let has_room = self.commit.room_again(delta.len() + 1, self.config.log_segment_bytes);
        has_room.then(|| self.map.index.reach(delta.holes(), most)).flatten()
    }

    /// All leaves are written: they, what they refer to, and what is logged again must be durable before the checkpoint
    /// names them.
    fn sync_leaves(&mut self) {
        if self.commit.is_logging_again() {
            return;
        }
        self.commit.sync_wanted = true;
        self.merge.stage = Stage::Sync(self.commit.syncs_started + 1);
    }

    fn make_side(&mut self) {
        let side = self.merge.side();
        self.merge.stage = Stage::Side;
        match self.merge.sides[side] {
            Some(file) => self.take_body_room(file),
            None => {
                let file = self.new_file();
                self.merge.sides[side] = Some(file);
                let name = FileName::Checkpoint { epoch: self.epoch, side: side as u8 };
                self.ask(Token::Merge(SIDE << WHICH_SHIFT), Act::Create { file, name }, None, Vec::new());
            }
        }
    }

    fn take_body_room(&mut self, file: FileId) {
        let runs = self.space.free_runs(&self.merge.freed);
        let bytes = Body::bytes_of(self.space.extents.len(), self.map.index.len(), runs.len());
        let bytes = bytes.next_multiple_of(PAGE_BYTES as u64);
        let act = Act::Allocate { file, offset: 0, bytes };
        self.ask(Token::Merge(ROOM << WHICH_SHIFT), act, None, Vec::new());
    }

    /// The checkpoint is durable, and no higher epoch was there after that.
    fn end_merge(&mut self) {
        self.merge.number += 1;
        self.merge.stage = Stage::Idle;
        if let Some(blocks) = self.merge.written_blocks.take() {
            self.blocks = blocks;
            self.merge.blocks = self.merge.blocks.filter(|wanted| *wanted != blocks);
            self.merge.wanted |= self.merge.blocks.is_some();
        }
        self.map.merging = None;
        self.stats.checkpoints += 1;
        for place in std::mem::take(&mut self.merge.freed) {
            self.space.release(place);
        }
        for (segment, file) in self.commit.forget_before(self.merge.segment) {
            self.remove_file(Some(file), self.log_name(segment));
        }
        for id in self.space.empty_extents() {
            if let Some(extent) = self.space.extents.remove(&id) {
                self.remove_file(Some(extent.file), extent.name(id));
            }
        }
        self.room_may_be_there();
    }

    fn remove_file(&mut self, file: Option<FileId>, name: FileName) {
        let file = file.unwrap_or_else(|| self.new_file());
        self.ask(Token::Merge(GONE << WHICH_SHIFT | file.0), Act::Remove { file, name }, None, Vec::new());
    }

    /// An answer for the checkpoint under way.
    pub(super) fn merge_done(
        &mut self,
        which: u32,
        result: Result<(), Fault>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        let value = which & ((1 << WHICH_SHIFT) - 1);
        if which >> WHICH_SHIFT == GONE {
            self.free_files.push(FileId(value));
            return self.room_may_be_there();
        }
        if which >> WHICH_SHIFT == LEAF {
            return self.leaf_written(value, result, buffer, pool);
        }
        match (which >> WHICH_SHIFT, result) {
            (SIDE, Ok(())) => self.make_side(),
            (SIDE, Err(Fault::NoSpace)) => {
                let side = self.merge.side();
                self.free_files.extend(self.merge.sides[side].take());
                self.merge.stage = Stage::Refused(self.now_ns);
            }
            (ROOM, Err(Fault::NoSpace)) => self.merge.stage = Stage::Refused(self.now_ns),
            // A file system without fallocate: room is found, or not, when it is written.
            (ROOM, _) => self.begin_body(),
            (BODY, Ok(())) => self.body_written(buffer, pool),
            (SYNC, Ok(())) => {
                self.commit.look_wanted = true;
                let under_way = u64::from(self.commit.is_looking());
                self.merge.stage = Stage::Look(self.commit.looks_done + under_way + 1);
            }
            _ => {
                if let Some(buffer) = buffer {
                    pool.free(buffer);
                }
                self.drop_body(pool);
                self.fail(Health::Broken, pool);
            }
        }
    }

    fn slots_of_leaves(&self) -> u32 {
        self.space.available(ExtentKind::Leaves)
    }
}
