//! Taking room before it runs out, giving it back, and what happens when there is none.
//!
//! Pages and leaves each have at most one expansion under way: an allocation in the extent that grows, or a new
//! extent (create, write its header, sync, then allocate). Room for leaves is kept ahead of room for pages, so
//! that the map never runs out before the data.

use block::{Act, ExtentId, Fault, FileId, FileName, Op, Status};
use frame::{IoBuffer, IoPool};

use super::merge::Refusal;
use super::read::Looked;
use super::token::Token;
use super::write::Room;
use super::{Health, REFUSED_NS, Volume};
use crate::format::{ExtentKind, HEADER_BYTES, Header, Kind, LEAF_BYTES, PAGE_BYTES};
use crate::space::Growth;

/// Punches at the medium at once.
const PUNCHES_MAX: u32 = 4;
/// Leaves that must have room, beyond twice those that there are.
const SPARE_LEAVES: u32 = 8;
/// Pages that a leaf maps after a split, at least.
const PAGES_PER_LEAF: u32 = 500;

const CREATE: u8 = 0;
const HEADER: u8 = 1;
const SYNC: u8 = 2;
const ALLOCATE: u8 = 3;
const PUNCH: u8 = 4;

/// One expansion under way.
#[derive(Clone, Copy, Debug)]
struct Growing {
    id: ExtentId,
    file: FileId,
    slots: u32,
}

/// An expansion that was asked for, whether or not room is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ahead {
    Nothing,
    Asked,
    Over(Status),
}

/// The state of taking room.
#[derive(Debug)]
pub(super) struct Grow {
    pub next_extent: u32,
    growing: [Option<Growing>; 2],
    pub refused_ns: Option<u64>,
    punches: u32,
    /// Pages asked for by requests that wait.
    wanted: u32,
    ahead: Ahead,
}

impl Grow {
    pub fn new(next_extent: u32) -> Grow {
        Grow {
            next_extent,
            growing: [None, None],
            refused_ns: None,
            punches: 0,
            wanted: 0,
            ahead: Ahead::Nothing,
        }
    }
}

impl Volume {
    /// Begins to take a slice of room now, before it is short of any; [`Volume::expanded`] says what came of it.
    pub fn expand(&mut self) -> Result<(), Status> {
        if self.health != Health::Sound {
            return Err(self.failed_status());
        }
        // Whoever asks may have made room.
        self.room_may_be_there();
        self.grow.ahead = Ahead::Asked;
        Ok(())
    }

    /// How the expansion that was asked for last ended; `None` while it is under way.
    pub fn expanded(&self) -> Option<Status> {
        match self.grow.ahead {
            _ if self.health != Health::Sound => Some(self.failed_status()),
            Ahead::Over(status) => Some(status),
            Ahead::Nothing | Ahead::Asked => None,
        }
    }

    /// Whether a request may take `wanted` pages now.
    pub(super) fn may_take(&mut self, index: u32, wanted: u32, pool: &mut IoPool) -> Room {
        let reserve = (self.config.reserve_bytes / PAGE_BYTES as u64) as u32;
        let available = self.space.available(ExtentKind::Pages);
        if available >= wanted.saturating_add(reserve) {
            return Room::Yes;
        }
        self.grow.wanted = self.grow.wanted.max(wanted);
        if self.grow.refused_ns.is_none() {
            return Room::Later;
        }
        match self.needs_new_pages(index, pool) {
            Ok(Some(true)) => Room::No,
            Ok(Some(false)) if available >= wanted => Room::Yes,
            // Replaced pages become free with the next sync and, if leaves map them, the next checkpoint.
            Ok(Some(false)) => {
                self.merge.wanted |= !self.map.delta.is_empty();
                if self.is_stuck() { Room::No } else { Room::Later }
            }
            Ok(None) => Room::Later,
            Err(status) => Room::Lost(status),
        }
    }

    /// True when waiting frees nothing: all that was replaced has been released.
    fn is_stuck(&self) -> bool {
        let frees_nothing =
            self.map.delta.is_empty() && !self.merge.is_under_way() && !self.space.has_pending();
        (frees_nothing || self.merge.refusal() != Refusal::None) && self.commit.is_quiet()
    }

    /// Whether some page of a request has no place yet; `None` while a leaf is on its way.
    fn needs_new_pages(&mut self, index: u32, pool: &mut IoPool) -> Result<Option<bool>, Status> {
        let slot = &self.slots[index as usize];
        let span = slot.span;
        let is_write = slot.io.as_ref().is_some_and(|io| matches!(io.op, Op::Write { .. }));
        let edge = |page| {
            (span.head.is_some() && page == span.first) || (span.tail.is_some() && page == span.end - 1)
        };
        for page in (span.first..span.end).filter(|&page| is_write || edge(page)) {
            match self.look_up(page, pool) {
                Looked::Page(_) => {}
                Looked::Zero => return Ok(Some(true)),
                Looked::Wait => return Ok(None),
                Looked::Lost(place) => return Err(self.lost_leaf(page, place)),
            }
        }
        Ok(Some(false))
    }

    pub(super) fn step_grow(&mut self, pool: &mut IoPool) {
        if self.health != Health::Sound {
            return;
        }
        if let Some(at_ns) = self.grow.refused_ns
            && self.now_ns.saturating_sub(at_ns) >= REFUSED_NS
        {
            self.grow.refused_ns = None;
        }
        self.punch();
        if self.grow.refused_ns.is_some() {
            return;
        }
        if self.is_short_of_leaves() {
            self.take_slice(ExtentKind::Leaves, pool);
            return;
        }
        let threshold = self.config.free_threshold_bytes + self.config.reserve_bytes;
        let wanted = u64::from(self.grow.wanted) * PAGE_BYTES as u64;
        let free = u64::from(self.space.available(ExtentKind::Pages)) * PAGE_BYTES as u64;
        if free >= threshold + wanted && self.grow.ahead != Ahead::Asked {
            return;
        }
        // Room for the log comes first: without it no page could be written.
        match self.commit.next_room() {
            Some(true) => self.take_slice(ExtentKind::Pages, pool),
            Some(false) => self.refuse(ExtentKind::Pages),
            None => {}
        }
    }

    /// A merge may write every leaf anew, split, while the old ones are still needed.
    fn is_short_of_leaves(&self) -> bool {
        let slice = (self.config.expand_bytes / PAGE_BYTES as u64) as u32;
        let entries =
            (self.map.delta.len() + self.map.merging.as_ref().map_or(0, |delta| delta.len())) as u32;
        let wanted = self.map.index.len() as u32 + (entries + slice) / PAGES_PER_LEAF + SPARE_LEAVES;
        self.space.available(ExtentKind::Leaves) < wanted
    }

    fn take_slice(&mut self, kind: ExtentKind, pool: &mut IoPool) {
        if self.grow.growing[kind as usize].is_some() {
            return;
        }
        let slice = match kind {
            ExtentKind::Pages => self.config.expand_bytes,
            ExtentKind::Leaves => (self.config.expand_bytes / 16).max(4 * LEAF_BYTES as u64),
        };
        match self.space.growth(kind, slice) {
            Growth::InPlace { id, file, first, slots } => {
                self.grow.growing[kind as usize] = Some(Growing { id, file, slots });
                let (offset, bytes) =
                    (u64::from(first) * kind.slot_bytes(), u64::from(slots) * kind.slot_bytes());
                self.stats.expansions += 1;
                self.ask(
                    Token::Grow(kind, ALLOCATE),
                    Act::Allocate { file, offset, bytes },
                    None,
                    Vec::new(),
                );
            }
            Growth::NewExtent => {
                // The header of the new extent is written from this page.
                let Some(buffer) = pool.alloc(PAGE_BYTES) else { return };
                pool.free(buffer);
                let (file, id) = (self.new_file(), ExtentId(self.grow.next_extent));
                self.grow.next_extent += 1;
                self.grow.growing[kind as usize] = Some(Growing { id, file, slots: 0 });
                let name = FileName::Extent { epoch: self.epoch, id };
                self.ask(Token::Grow(kind, CREATE), Act::Create { file, name }, None, Vec::new());
            }
        }
    }

    /// A step of an expansion, or a punch, is done.
    pub(super) fn grew(
        &mut self,
        kind: ExtentKind,
        step: u8,
        result: Result<(), Fault>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        if let Some(buffer) = buffer {
            pool.free(buffer);
        }
        if step == PUNCH {
            self.grow.punches -= 1;
            return self.room_may_be_there();
        }
        let Some(growing) = self.grow.growing[kind as usize] else { return };
        match (step, result) {
            (CREATE, Ok(())) => self.write_extent_header(kind, growing, pool),
            (HEADER, Ok(())) => self.ask(Token::Grow(kind, SYNC), Act::Sync(growing.file), None, Vec::new()),
            (SYNC, Ok(())) => {
                self.grow.growing[kind as usize] = None;
                self.space.fill(growing.id, growing.file, kind);
            }
            (ALLOCATE, Err(Fault::NoSpace)) => self.refuse(kind),
            // A file system without fallocate: room is found, or not, when it is written.
            (ALLOCATE, _) => {
                self.grow.growing[kind as usize] = None;
                self.grow.wanted = 0;
                self.space.grown(growing.id, growing.slots);
                if kind == ExtentKind::Pages {
                    self.end_ahead(Status::Ok);
                }
            }
            // The new extent came to nothing; its name is not used again.
            (_, _) => {
                let name = FileName::Extent { epoch: self.epoch, id: growing.id };
                let act = Act::Remove { file: growing.file, name };
                self.ask(Token::Forgotten, act, None, Vec::new());
                self.refuse(kind);
            }
        }
    }

    fn end_ahead(&mut self, status: Status) {
        if self.grow.ahead == Ahead::Asked {
            self.grow.ahead = Ahead::Over(status);
        }
    }

    fn refuse(&mut self, kind: ExtentKind) {
        self.end_ahead(Status::NoSpace);
        self.grow.growing[kind as usize] = None;
        self.grow.wanted = 0;
        self.grow.refused_ns = Some(self.now_ns);
        self.stats.expansions_refused += 1;
    }

    /// Room was given back: a refusal is no longer believed.
    pub(super) fn room_may_be_there(&mut self) {
        self.grow.refused_ns = None;
        self.commit.retry_room();
    }

    fn write_extent_header(&mut self, kind: ExtentKind, growing: Growing, pool: &mut IoPool) {
        let Some(mut buffer) = pool.alloc(PAGE_BYTES) else { return self.refuse(kind) };
        let bytes = pool.bytes_mut(&mut buffer);
        bytes.fill(0);
        let header = Header {
            kind: Kind::Extent,
            identity: self.identity,
            epoch: self.epoch,
            a: u64::from(growing.id.0),
            b: kind as u64,
            bytes: HEADER_BYTES as u32,
        };
        header.seal(bytes);
        let pieces = self.one_piece(growing.file, 0, PAGE_BYTES);
        self.ask(Token::Grow(kind, HEADER), Act::Write, Some(buffer), pieces);
    }

    /// Gives room back, a few runs at a time.
    fn punch(&mut self) {
        while self.grow.punches < PUNCHES_MAX {
            let Some(run) = self.space.to_punch.pop_front() else { return };
            let Some(extent) = self.space.extents.get(&run.place.extent) else { continue };
            let (kind, file, bytes) = (extent.kind, extent.file, extent.kind.slot_bytes());
            self.grow.punches += 1;
            let (offset, bytes) = (u64::from(run.place.slot) * bytes, u64::from(run.slots) * bytes);
            self.ask(Token::Grow(kind, PUNCH), Act::Punch { file, offset, bytes }, None, Vec::new());
        }
    }
}
