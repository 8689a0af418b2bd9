//! Writing: whole pages to fresh slots, then a record for the log. What covers a page in part reads it first.
//!
//! Discards and zeroes write only the pages that they cover in part; the rest becomes a hole.

use block::{Act, Fault, Op, Status, Step};
use frame::{IoBuffer, IoPool};

use super::read::Looked;
use super::token::Token;
use super::{Slot, Stage, Volume};
use crate::format::{
    ExtentKind, HOLE_RECORD_BYTES, Mapped, PAGE_BYTES, page_crc, put_hole, put_write, write_record_bytes,
};

impl Volume {
    /// Finds the pages that a write covers in part and reads them.
    pub(super) fn find_edges(&mut self, index: u32, pool: &mut IoPool) {
        let span = self.slots[index as usize].span;
        let edges = [span.head.map(|_| span.first), span.tail.map(|_| span.end - 1)];
        let known = self.slots[index as usize].found.len();
        for page in edges.into_iter().flatten().skip(known) {
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
        if !self.take_edges(index, pool) {
            return self.stall(index);
        }
        self.slots[index as usize].stage = Stage::Fetch;
        self.slots[index as usize].pending = 1;
        self.mark(index, Step::Mapped);
        for (edge, page) in edges.into_iter().enumerate() {
            let at = if edge == 0 { 0 } else { self.slots[index as usize].found.len().saturating_sub(1) };
            if let (Some(page), Some(&found)) = (page, self.slots[index as usize].found.get(at)) {
                self.fetch_edge(index, edge, page, found, pool);
            }
        }
        self.step_fetch(index, pool);
    }

    /// Takes room for the new pages and writes them.
    pub(super) fn place(&mut self, index: u32, pool: &mut IoPool) {
        let slot = &self.slots[index as usize];
        let is_write = slot.io.as_ref().is_some_and(|io| matches!(io.op, Op::Write { .. }));
        let (first, end) = slot.span.middle();
        let edges = usize::from(slot.span.head.is_some()) + usize::from(slot.span.tail.is_some());
        let wanted = edges + if is_write { (end - first) as usize } else { 0 };
        if wanted > 0 {
            match self.may_take(index, wanted as u32, pool) {
                Room::Yes => {}
                Room::Later => return self.stall(index),
                Room::No => return self.end(index, Status::NoSpace, pool),
                Room::Lost(status) => return self.end(index, status, pool),
            }
        }
        let slot = &mut self.slots[index as usize];
        for _ in 0..wanted {
            // INVARIANT: `may_take` saw that many.
            let Some(place) = self.space.take(ExtentKind::Pages, wanted >= 8) else { break };
            slot.fresh.push(Mapped { place, crc: 0 });
        }
        slot.stage = Stage::Store;
        slot.pending = 1;
        self.mark(index, Step::Mapped);
        self.store_edges(index, is_write, pool);
        if is_write {
            self.store_middle(index, pool);
        }
        self.step_store(index, pool);
    }

    /// Writes the pages covered in part, with the request's bytes, or zeros, in them.
    fn store_edges(&mut self, index: u32, is_write: bool, pool: &mut IoPool) {
        let slot = &mut self.slots[index as usize];
        let payload = slot.io.as_ref().and_then(|io| io.buffer.as_ref()).filter(|_| is_write);
        let parts = [slot.span.head, slot.span.tail];
        let mut writes: [Option<(IoBuffer, Mapped)>; 2] = [None, None];
        for (edge, part) in parts.into_iter().enumerate() {
            let (Some((from, to)), Some(mut page)) = (part, slot.edges[edge].take()) else { continue };
            let into = &mut pool.bytes_mut(&mut page)[from..to];
            match payload.map(|buffer| pool.bytes(buffer)) {
                Some(bytes) if edge == 0 => into.copy_from_slice(&bytes[..to - from]),
                Some(bytes) => into.copy_from_slice(&bytes[bytes.len() - to..]),
                None => into.fill(0),
            }
            let at = if edge == 0 { 0 } else { slot.fresh.len() - 1 };
            slot.fresh[at].crc = page_crc(pool.bytes(&page));
            writes[edge] = Some((page, slot.fresh[at]));
        }
        for (edge, write) in writes.into_iter().enumerate() {
            let Some((page, mapped)) = write else { continue };
            let mut pieces = self.pieces();
            self.space.piece(mapped.place, 0, &mut pieces);
            self.slots[index as usize].pending += 1;
            self.ask(Token::Edge(index, edge), Act::Write, Some(page), pieces);
        }
    }

    fn store_middle(&mut self, index: u32, pool: &mut IoPool) {
        let mut pieces = self.pieces();
        let slot = &mut self.slots[index as usize];
        let (first, end) = slot.span.middle();
        let (skip, at) = (usize::from(slot.span.head.is_some()), slot.span.middle_at());
        let Some(buffer) = slot.io.as_mut().and_then(|io| io.buffer.take()) else { return };
        let pages = pool.bytes(&buffer)[at..].chunks_exact(PAGE_BYTES);
        let fresh = &mut slot.fresh[skip..skip + (end - first) as usize];
        for (number, (mapped, page)) in fresh.iter_mut().zip(pages).enumerate() {
            mapped.crc = page_crc(page);
            self.space.piece(mapped.place, (at + number * PAGE_BYTES) as u32, &mut pieces);
        }
        if pieces.is_empty() {
            if let Some(io) = slot.io.as_mut() {
                io.buffer = Some(buffer);
            }
            return self.spare_pieces.push(pieces);
        }
        slot.pending += 1;
        self.ask(Token::Payload(index), Act::Write, Some(buffer), pieces);
    }

    /// The medium is done with a request's buffer.
    pub(super) fn payload_done(
        &mut self,
        index: u32,
        result: Result<(), Fault>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        let slot = &mut self.slots[index as usize];
        if let Some(io) = slot.io.as_mut() {
            io.buffer = buffer;
        }
        if slot.stage == Stage::Fetch {
            self.middle_fetched(index, result, pool);
            self.step_fetch(index, pool);
        } else {
            self.stored(index, result);
            self.step_store(index, pool);
        }
    }

    /// The medium is done with a page covered in part.
    pub(super) fn edge_done(
        &mut self,
        index: u32,
        edge: usize,
        result: Result<(), Fault>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        let slot = &mut self.slots[index as usize];
        slot.edges[edge] = buffer;
        if slot.stage == Stage::Fetch {
            self.edge_fetched(index, edge, result, pool);
            self.step_fetch(index, pool);
        } else {
            self.stored(index, result);
            self.step_store(index, pool);
        }
    }

    fn stored(&mut self, index: u32, result: Result<(), Fault>) {
        let slot = &self.slots[index as usize];
        let status = match (result, slot.fresh.first()) {
            (Err(Fault::NoSpace), _) => Status::NoSpace,
            (Err(_), Some(mapped)) => self.media_error(slot.span.first, mapped.place),
            _ => return,
        };
        self.slots[index as usize].status = status;
    }

    /// One part of a write is there; the last one passes it to the log.
    fn step_store(&mut self, index: u32, pool: &mut IoPool) {
        let slot = &mut self.slots[index as usize];
        slot.pending -= 1;
        if slot.pending > 0 {
            return;
        }
        let status = slot.status;
        self.mark(index, Step::Moved);
        if !status.is_ok() {
            return self.end(index, status, pool);
        }
        if self.health != super::Health::Sound {
            let status = self.failed_status();
            return self.end(index, status, pool);
        }
        self.slots[index as usize].stage = Stage::Log;
        for number in 0..self.slots[index as usize].fresh.len() {
            let place = self.slots[index as usize].fresh[number].place;
            if let Some(file) = self.space.extents.get(&place.extent).map(|extent| extent.file) {
                self.commit.dirty(file);
            }
        }
        self.commit.unsynced_bytes += (self.slots[index as usize].fresh.len() * PAGE_BYTES) as u64;
        self.commit.to_log.push_back(index);
    }

    /// Bytes of a request's records.
    pub(super) fn record_bytes(slot: &Slot) -> usize {
        let Some(io) = slot.io.as_ref() else { return 0 };
        if matches!(io.op, Op::Write { .. }) {
            return write_record_bytes(slot.fresh.len());
        }
        slot.fresh.len() * write_record_bytes(1) + HOLE_RECORD_BYTES
    }

    /// Writes a request's records at `at`, applies them to the map, and returns their end.
    pub(super) fn put_records(&mut self, index: u32, bytes: &mut [u8], mut at: usize, batch: u64) -> usize {
        let slot = &mut self.slots[index as usize];
        slot.batch = batch;
        let (span, (first, end)) = (slot.span, slot.span.middle());
        let space = &mut self.space;
        if slot.io.as_ref().is_some_and(|io| matches!(io.op, Op::Write { .. })) {
            at = put_write(bytes, at, span.first, slot.fresh.iter().copied());
            for (page, &mapped) in (span.first..).zip(&slot.fresh) {
                if let Some(old) = self.map.delta.put(page, mapped) {
                    space.free(batch, old);
                }
            }
            return at;
        }
        let edges = [span.head.map(|_| span.first), span.tail.map(|_| span.end - 1)];
        for (page, &mapped) in edges.into_iter().flatten().zip(&slot.fresh) {
            at = put_write(bytes, at, page, [mapped].into_iter());
            if let Some(old) = self.map.delta.put(page, mapped) {
                space.free(batch, old);
            }
        }
        if first < end {
            at = put_hole(bytes, at, first, end - first);
            self.map.delta.punch(first, end, |old| space.free(batch, old));
            self.merge.discarded(end - first, self.config.reuse_pages_max);
        }
        at
    }
}

/// Whether pages may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Yes,
    /// Room is being taken, or is about to be free.
    Later,
    /// The medium is full, and the request needs new pages.
    No,
    /// It cannot be told what the request overwrites.
    Lost(Status),
}
