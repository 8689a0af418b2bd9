//! Reading: find each page, read neighbours together, compare every page with its CRC.
//!
//! Pages covered whole go straight into the request's buffer; those covered in part go through a page of their
//! own. While a request holds its range no writer changes it, so what was found stays true.

use block::{Act, Extent, Fault, Op, Status, Step};
use frame::{IoBuffer, IoPool};

use super::token::Token;
use super::{FENCE_READ_NS, Health, Stage, Volume};
use crate::format::{
    ExtentKind, Header, Kind, LEAF_BYTES, LeafRef, Mapped, PAGE_BYTES, Place, crc_field, entry, entry_count,
    page_crc,
};
use crate::map::{Found, find_in_leaf, first_from};

/// What is known of a page now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Page(Mapped),
    Zero,
    /// A leaf is on its way.
    Wait,
    /// The leaf is damaged.
    Lost(Place),
}

/// Look-ups of one request for extents; the session asks on from there.
const EXTENT_LOOKS_MAX: u32 = 4096;

impl Volume {
    /// Looks a page up; begins to read the leaf when it is not in memory.
    pub(super) fn look_up(&mut self, page: u64, pool: &mut IoPool) -> Looked {
        for delta in std::iter::once(&self.map.delta).chain(self.map.merging.as_ref()) {
            match delta.find(page) {
                Found::Page(mapped) => return Looked::Page(mapped),
                Found::Hole => return Looked::Zero,
                Found::Unknown => {}
            }
        }
        let Some((_, leaf)) = self.map.index.leaf_of(page) else { return Looked::Zero };
        if let Some(bytes) = self.map.cache.leaf(leaf.place, pool) {
            return find_in_leaf(bytes, page).map_or(Looked::Zero, Looked::Page);
        }
        self.fetch_leaf(leaf, pool)
    }

    /// Begins to read a leaf, unless it is on its way or damaged.
    pub(super) fn fetch_leaf(&mut self, leaf: LeafRef, pool: &mut IoPool) -> Looked {
        if self.map.corrupt.contains(&leaf.place) || self.map.unreadable.contains(&leaf.place) {
            return Looked::Lost(leaf.place);
        }
        if self.map.fetching.contains(&leaf.place) {
            return Looked::Wait;
        }
        let file = self.space.extents.get(&leaf.place.extent).map(|extent| extent.file);
        let (Some(file), Some(buffer)) = (file, pool.alloc(LEAF_BYTES)) else { return Looked::Wait };
        self.map.fetching.push(leaf.place);
        let offset = u64::from(leaf.place.slot) * LEAF_BYTES as u64;
        let pieces = self.one_piece(file, offset, LEAF_BYTES);
        self.ask(Token::Leaf(leaf.place), Act::Read, Some(buffer), pieces);
        Looked::Wait
    }

    pub(super) fn leaf_fetched(
        &mut self,
        place: Place,
        result: Result<(), Fault>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        self.map.fetching.retain(|fetching| *fetching != place);
        let Some(buffer) = buffer else { return };
        let bytes = pool.bytes(&buffer);
        let whole = Header::open(bytes, Kind::Leaf, &self.identity);
        let crc = crc_field(bytes);
        let wanted = whole.ok().and_then(|header| self.map.index.leaf_of(header.a));
        // A leaf that a checkpoint replaced meanwhile is of no use, and no harm.
        let expected = wanted.filter(|(_, leaf)| leaf.place == place);
        match (result, expected) {
            (Ok(()), Some((_, leaf))) if leaf.crc == crc => self.map.cache.keep(place, buffer, pool),
            (result, _) => {
                pool.free(buffer);
                let referred = self.map.index.iter().any(|(_, leaf)| leaf.place == place);
                if referred && result.is_ok() {
                    self.stats.pages_corrupt += 1;
                    self.map.corrupt.push(place);
                } else if referred {
                    self.map.unreadable.push(place);
                }
            }
        }
    }

    pub(super) fn lost_leaf(&self, page: u64, place: Place) -> Status {
        let (lba, extent) = (self.lba_of(page), place.extent);
        let offset = u64::from(place.slot) * LEAF_BYTES as u64;
        if self.map.unreadable.contains(&place) {
            return Status::MediaError { lba, extent, offset };
        }
        Status::Corrupt { lba, extent, offset }
    }

    /// True when no look for a higher epoch is recent enough; the request then waits for one that begins from now on, which
    /// is enough however long it takes.
    fn waits_for_fence(&mut self, index: u32) -> bool {
        let commit = &mut self.commit;
        let awaited = &mut self.slots[index as usize].batch;
        let recent = commit.looked && self.now_ns.saturating_sub(commit.looked_ns) <= FENCE_READ_NS;
        let waited = *awaited > 0;
        if recent || (waited && commit.looks_done >= *awaited) {
            *awaited = 0;
            if waited {
                self.mark(index, Step::Looked);
            }
            return false;
        }
        if *awaited == 0 {
            *awaited = commit.looks_done + 1 + u64::from(commit.is_looking());
        }
        self.fenced_reads.push(index);
        commit.look_wanted = true;
        true
    }

    /// Finds the pages of a read or compare, then reads them.
    pub(super) fn find_for_read(&mut self, index: u32, pool: &mut IoPool) {
        if self.waits_for_fence(index) {
            return;
        }
        let span = self.slots[index as usize].span;
        loop {
            let page = span.first + self.slots[index as usize].found.len() as u64;
            if page >= span.end {
                return self.fetch(index, pool);
            }
            let found = match self.look_up(page, pool) {
                Looked::Page(mapped) => Some(mapped),
                Looked::Zero => None,
                Looked::Wait => return self.stall(index),
                Looked::Lost(place) => {
                    let status = self.lost_leaf(page, place);
                    return self.end(index, status, pool);
                }
            };
            self.slots[index as usize].found.push(found);
        }
    }

    /// Reads what was found.
    fn fetch(&mut self, index: u32, pool: &mut IoPool) {
        let span = self.slots[index as usize].span;
        if !self.take_edges(index, pool) || !self.take_scratch(index, pool) {
            return self.stall(index);
        }
        self.slots[index as usize].stage = Stage::Fetch;
        self.mark(index, Step::Mapped);
        // Nobody ends the request before everything was asked for.
        self.slots[index as usize].pending = 1;
        if span.head.is_some() {
            self.fetch_edge(index, 0, span.first, self.slots[index as usize].found[0], pool);
        }
        if span.tail.is_some() {
            let last = self.slots[index as usize].found[span.pages() - 1];
            self.fetch_edge(index, 1, span.end - 1, last, pool);
        }
        self.fetch_middle(index, pool);
        self.step_fetch(index, pool);
    }

    fn fetch_middle(&mut self, index: u32, pool: &mut IoPool) {
        let mut pieces = self.pieces();
        let slot = &mut self.slots[index as usize];
        let (first, end) = slot.span.middle();
        let (mut at, skip) = (slot.span.middle_at(), (first - slot.span.first) as usize);
        let Some(mut buffer) = slot.io.as_mut().and_then(|io| io.buffer.take()) else { return };
        for found in &slot.found[skip..skip + (end - first) as usize] {
            match found {
                Some(mapped) => self.space.piece(mapped.place, at as u32, &mut pieces),
                None => pool.bytes_mut(&mut buffer)[at..at + PAGE_BYTES].fill(0),
            }
            at += PAGE_BYTES;
        }
        if pieces.is_empty() {
            if let Some(io) = slot.io.as_mut() {
                io.buffer = Some(buffer);
            }
            return self.spare_pieces.push(pieces);
        }
        slot.pending += 1;
        self.ask(Token::Payload(index), Act::Read, Some(buffer), pieces);
    }

    /// Takes a page for each edge. False when there is no memory now.
    pub(super) fn take_edges(&mut self, index: u32, pool: &mut IoPool) -> bool {
        let slot = &mut self.slots[index as usize];
        for (edge, part) in slot.edges.iter_mut().zip([slot.span.head, slot.span.tail]) {
            if part.is_some() && edge.is_none() {
                *edge = pool.alloc(PAGE_BYTES);
                if edge.is_none() {
                    return false;
                }
            }
        }
        true
    }

    /// A compare reads into memory of its own. False when there is none now.
    fn take_scratch(&mut self, index: u32, pool: &mut IoPool) -> bool {
        let slot = &mut self.slots[index as usize];
        let Some(io) = slot.io.as_mut() else { return true };
        if io.op != Op::Compare || slot.expected.is_some() {
            return true;
        }
        let Some(scratch) = io.buffer.as_ref().and_then(|buffer| pool.alloc(buffer.len())) else {
            return false;
        };
        slot.expected = io.buffer.replace(scratch);
        true
    }

    /// Reads the whole page of an edge; one that is not there is zeros.
    pub(super) fn fetch_edge(
        &mut self,
        index: u32,
        edge: usize,
        page: u64,
        found: Option<Mapped>,
        pool: &mut IoPool,
    ) {
        let slot = &mut self.slots[index as usize];
        let Some(mut buffer) = slot.edges[edge].take() else { return };
        let file =
            found.and_then(|mapped| self.space.extents.get(&mapped.place.extent)).map(|extent| extent.file);
        match (found, file) {
            (Some(mapped), Some(file)) => {
                slot.pending += 1;
                let offset = u64::from(mapped.place.slot) * PAGE_BYTES as u64;
                let pieces = self.one_piece(file, offset, PAGE_BYTES);
                self.ask(Token::Edge(index, edge), Act::Read, Some(buffer), pieces);
            }
            (Some(mapped), None) => {
                slot.edges[edge] = Some(buffer);
                let status = self.media_error(page, mapped.place);
                self.slots[index as usize].status = status;
            }
            (None, _) => {
                pool.bytes_mut(&mut buffer).fill(0);
                slot.edges[edge] = Some(buffer);
            }
        }
    }

    /// The bytes of an edge arrived.
    pub(super) fn edge_fetched(&mut self, index: u32, edge: usize, result: Result<(), Fault>, pool: &IoPool) {
        let slot = &self.slots[index as usize];
        let page = if edge == 0 { slot.span.first } else { slot.span.end - 1 };
        let at = if edge == 0 { 0 } else { slot.found.len().saturating_sub(1) };
        let Some(Some(mapped)) = slot.found.get(at).copied() else { return };
        let status = match (&slot.edges[edge], result) {
            (Some(buffer), Ok(())) if page_crc(pool.bytes(buffer)) == mapped.crc => return,
            (Some(_), Ok(())) => self.corrupt(page, mapped.place, PAGE_BYTES as u64),
            _ => self.media_error(page, mapped.place),
        };
        self.slots[index as usize].status = status;
    }

    /// The whole pages of a read arrived: each is compared with its CRC.
    pub(super) fn middle_fetched(&mut self, index: u32, result: Result<(), Fault>, pool: &IoPool) {
        let slot = &self.slots[index as usize];
        let (first, end) = slot.span.middle();
        let skip = (first - slot.span.first) as usize;
        let found = &slot.found[skip..skip + (end - first) as usize];
        let Some(buffer) = slot.io.as_ref().and_then(|io| io.buffer.as_ref()) else { return };
        let pages = pool.bytes(buffer)[slot.span.middle_at()..].chunks_exact(PAGE_BYTES);
        let wrong = (first..end)
            .zip(found.iter().zip(pages))
            .filter_map(|(page, (found, bytes))| found.map(|mapped| (page, mapped, bytes)))
            .find(|(_, mapped, bytes)| result.is_err() || page_crc(bytes) != mapped.crc)
            .map(|(page, mapped, _)| (page, mapped.place));
        if let Some((page, place)) = wrong {
            let status = match result {
                Ok(()) => self.corrupt(page, place, PAGE_BYTES as u64),
                Err(_) => self.media_error(page, place),
            };
            self.slots[index as usize].status = status;
        }
    }

    /// One part of a read is there; the last one ends it.
    pub(super) fn step_fetch(&mut self, index: u32, pool: &mut IoPool) {
        let slot = &mut self.slots[index as usize];
        slot.pending -= 1;
        if slot.pending > 0 {
            return;
        }
        let Some(op) = slot.io.as_ref().map(|io| io.op) else { return };
        self.mark(index, Step::Moved);
        let slot = &self.slots[index as usize];
        if self.health == Health::Fenced {
            return self.end(index, Status::Fenced, pool);
        }
        if !slot.status.is_ok() {
            let status = slot.status;
            return self.end(index, status, pool);
        }
        if op.is_write() {
            self.slots[index as usize].stage = Stage::Place;
            return self.advance(index, pool);
        }
        self.copy_edges_out(index, pool);
        let status = if op == Op::Compare { self.compare(index, pool) } else { Status::Ok };
        let slot = &mut self.slots[index as usize];
        (slot.status, slot.stage) = (status, Stage::Answer);
        self.answer_read(index, pool);
    }

    /// Answers a read, unless the medium took so long, or the program stood still, that another look is due.
    pub(super) fn answer_read(&mut self, index: u32, pool: &mut IoPool) {
        if !self.waits_for_fence(index) {
            let status = self.slots[index as usize].status;
            self.end(index, status, pool);
        }
    }

    fn copy_edges_out(&mut self, index: u32, pool: &mut IoPool) {
        let slot = &mut self.slots[index as usize];
        let Some(buffer) = slot.io.as_mut().and_then(|io| io.buffer.as_mut()) else { return };
        let len = buffer.len();
        let into = pool.bytes_mut(buffer);
        if let (Some((from, to)), Some(page)) = (slot.span.head, &slot.edges[0]) {
            into[..to - from].copy_from_slice(&pool.bytes(page)[from..to]);
        }
        if let (Some((_, to)), Some(page)) = (slot.span.tail, &slot.edges[1]) {
            into[len - to..].copy_from_slice(&pool.bytes(page)[..to]);
        }
    }

    fn compare(&self, index: u32, pool: &IoPool) -> Status {
        let slot = &self.slots[index as usize];
        let there = slot.io.as_ref().and_then(|io| io.buffer.as_ref()).map(|buffer| pool.bytes(buffer));
        let (Some(there), Some(expected)) = (there, &slot.expected) else { return Status::Invalid };
        let differs = there.iter().zip(pool.bytes(expected)).position(|(there, expected)| there != expected);
        differs.map_or(Status::Ok, |offset| Status::CompareFailed { offset: offset as u32 })
    }

    /// Answers which blocks have their place, in runs.
    pub(super) fn find_extents(&mut self, index: u32, pool: &mut IoPool) {
        if self.waits_for_fence(index) {
            return;
        }
        let span = self.slots[index as usize].span;
        let (end, mut looks) = (span.end, 0);
        let (mut page, mut runs): (u64, Vec<(u64, bool)>) = (span.first, Vec::new());
        let room = self.slots[index as usize].io.as_ref().and_then(|io| io.buffer.as_ref());
        let runs_max = room.map_or(0, |buffer| buffer.len() / Extent::BYTES);
        while page < end && looks < EXTENT_LOOKS_MAX {
            looks += 1;
            let (count, allocated) = match self.look_up(page, pool) {
                Looked::Page(_) => (1, true),
                Looked::Zero => (self.zeros_from(page, pool).min(end - page), false),
                Looked::Wait if runs.is_empty() => return self.stall(index),
                Looked::Wait => break,
                Looked::Lost(place) => {
                    let status = self.lost_leaf(page, place);
                    return self.end(index, status, pool);
                }
            };
            let same = runs.last().is_some_and(|(_, same)| *same == allocated);
            if !same && runs.len() == runs_max {
                break;
            }
            match runs.last_mut().filter(|_| same) {
                Some((pages, _)) => *pages += count,
                None => runs.push((count, allocated)),
            }
            page += count;
        }
        self.put_extents(index, &runs, pool);
        self.end(index, Status::Ok, pool);
    }

    /// At least how many pages from here on read as zeros; the first one does.
    fn zeros_from(&mut self, page: u64, pool: &IoPool) -> u64 {
        let deltas = std::iter::once(&self.map.delta).chain(self.map.merging.as_ref());
        let next = deltas.filter_map(|delta| delta.next_page(page)).map(|(next, _)| next).min();
        let mut end = next.unwrap_or(u64::MAX);
        if let Some((first, leaf)) = self.map.index.leaf_of(page) {
            end = match self.map.cache.leaf(leaf.place, pool) {
                Some(bytes) => {
                    let at = first_from(bytes, page);
                    let next = (at < entry_count(bytes)).then(|| entry(bytes, at).0);
                    // An entry that is hidden by a hole ends the run early, which is allowed.
                    end.min(next.filter(|next| *next > page).unwrap_or(self.map.index.end_of(first)))
                }
                None => page + 1,
            };
            if find_in_cached(&mut self.map.cache, leaf.place, pool, page) {
                end = page + 1;
            }
        }
        (end - page).max(1)
    }

    fn put_extents(&mut self, index: u32, runs: &[(u64, bool)], pool: &mut IoPool) {
        let shift = PAGE_BYTES.trailing_zeros() - self.size.shift();
        let slot = &mut self.slots[index as usize];
        let Some(io) = slot.io.as_mut() else { return };
        // The first and the last page may be covered in part.
        let before = io.lba.0 - (slot.span.first << shift);
        let mut left = u64::from(io.blocks);
        let Some(buffer) = io.buffer.as_mut() else { return };
        let bytes = pool.bytes_mut(buffer);
        bytes.fill(0);
        for (number, (&(pages, allocated), record)) in
            runs.iter().zip(bytes.chunks_exact_mut(Extent::BYTES)).enumerate()
        {
            let skip = if number == 0 { before } else { 0 };
            let blocks = ((pages << shift) - skip).min(left);
            left -= blocks;
            record.copy_from_slice(&Extent { blocks: blocks as u32, allocated }.octets());
        }
    }
}

fn find_in_cached(cache: &mut crate::map::LeafCache, place: Place, pool: &IoPool, page: u64) -> bool {
    cache.leaf(place, pool).is_some_and(|bytes| find_in_leaf(bytes, page).is_some())
}

impl crate::space::Space {
    /// Appends the page at `place` to `pieces`, joined with the last one where they lie in a row.
    pub(super) fn piece(&self, place: Place, at: u32, pieces: &mut Vec<block::Piece>) {
        let Some(extent) = self.extents.get(&place.extent) else { return };
        let (offset, bytes) = (u64::from(place.slot) * ExtentKind::Pages.slot_bytes(), PAGE_BYTES as u32);
        match pieces.last_mut() {
            Some(last)
                if last.file == extent.file
                    && last.offset + u64::from(last.bytes) == offset
                    && last.at + last.bytes == at =>
            {
                last.bytes += bytes;
            }
            _ => pieces.push(block::Piece { file: extent.file, offset, at, bytes }),
        }
    }
}
