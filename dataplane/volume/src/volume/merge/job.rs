//! One leaf's range: its old entries and the changes set aside, in order, into new leaves.
//!
//! Invariants: entries come out by ascending page, each page once; a page or leaf that is replaced is freed
//! exactly once; the index changes when all new leaves of the range are written.

use std::collections::VecDeque;

use block::{Act, Fault};
use frame::{IoBuffer, IoPool};

use super::super::read::Looked;
use super::super::token::Token;
use super::{LEAF, LEAVES_MAX, WHICH_SHIFT};
use crate::Volume;
use crate::format::{
    ENTRY_BYTES, ExtentKind, HEADER_BYTES, Header, Kind, LEAF_BYTES, LEAF_ENTRIES, LeafRef, Mapped, entry,
    entry_count, put_entry,
};
use crate::map::Found;
use crate::volume::Health;

/// Entries of a leaf that others follow: some room is left for what comes later.
const FILL: usize = LEAF_ENTRIES - LEAF_ENTRIES / 8;

/// The range being merged.
#[derive(Debug)]
pub(super) struct Job {
    first: u64,
    end: u64,
    old: Option<LeafRef>,
    /// Old entries that are not merged yet; `None` until the leaf is there.
    entries: Option<VecDeque<(u64, Mapped)>>,
    /// Changes below this page are merged.
    at: u64,
    /// Entries of the next leaf.
    carry: Vec<(u64, Mapped)>,
    exhausted: bool,
    /// New leaves and their first pages.
    out: Vec<(u64, LeafRef)>,
}

impl Volume {
    /// Merges a bounded number of leaves.
    pub(super) fn step_leaves(&mut self, pool: &mut IoPool) {
        for _ in 0..LEAVES_MAX {
            if self.merge.job.is_none() && !self.next_job() {
                return self.sync_leaves();
            }
            if !self.step_job(pool) {
                return;
            }
        }
    }

    /// Finds the next range that something was set aside for. False when there is none.
    fn next_job(&mut self) -> bool {
        let Some(merging) = &self.map.merging else { return false };
        let cursor = self.merge.cursor;
        let hole = merging.next_hole(cursor).filter(|_| self.map.index.len() > 0);
        let Some(at) = merging.next_page(cursor).map(|(page, _)| page).into_iter().chain(hole).min() else {
            return false;
        };
        if cursor == u64::MAX {
            return false;
        }
        let leaf = self.map.index.leaf_of(at);
        let first = leaf.map_or(0, |(first, _)| first);
        self.merge.job = Some(Job {
            first,
            end: if leaf.is_some() { self.map.index.end_of(first) } else { u64::MAX },
            old: leaf.map(|(_, leaf)| leaf),
            entries: if leaf.is_some() { None } else { Some(VecDeque::new()) },
            at: first,
            carry: Vec::new(),
            exhausted: false,
            out: Vec::new(),
        });
        true
    }

    /// Moves the job on. False when it waits for something.
    fn step_job(&mut self, pool: &mut IoPool) -> bool {
        let Some(mut job) = self.merge.job.take() else { return false };
        let moved = self.move_job(&mut job, pool);
        if job.exhausted && job.carry.is_empty() && self.merge.writing.is_empty() {
            self.end_job(job, pool);
            return true;
        }
        self.merge.job = Some(job);
        moved
    }

    fn move_job(&mut self, job: &mut Job, pool: &mut IoPool) -> bool {
        if job.entries.is_none() && !self.load_entries(job, pool) {
            return false;
        }
        if job.exhausted && job.carry.is_empty() {
            return false;
        }
        self.merge.lacks_slots = self.slots_of_leaves() == 0;
        if self.merge.writing.len() as u32 >= LEAVES_MAX || self.merge.lacks_slots {
            return false;
        }
        let Some(buffer) = pool.alloc(LEAF_BYTES) else { return false };
        self.gather(job);
        if job.carry.is_empty() {
            pool.free(buffer);
            return true;
        }
        self.write_leaf(job, buffer, pool)
    }

    /// Takes the old leaf's entries out of the cache, or begins to read it.
    fn load_entries(&mut self, job: &mut Job, pool: &mut IoPool) -> bool {
        let Some(leaf) = job.old else { return true };
        if let Some(bytes) = self.map.cache.leaf(leaf.place, pool) {
            job.entries = Some((0..entry_count(bytes)).map(|at| entry(bytes, at)).collect());
            return true;
        }
        if matches!(self.fetch_leaf(leaf, pool), Looked::Lost(_)) {
            self.fail(Health::Broken, pool);
        }
        false
    }

    /// Collects entries until there is one leaf's worth and one more, or no more.
    fn gather(&mut self, job: &mut Job) {
        let (Some(merging), Some(entries)) = (&self.map.merging, &mut job.entries) else { return };
        while job.carry.len() <= LEAF_ENTRIES {
            let change = merging.next_page(job.at).filter(|(page, _)| *page < job.end);
            let old = entries.front().copied();
            match (change, old) {
                (None, None) => {
                    job.exhausted = true;
                    return;
                }
                (Some((page, mapped)), old) if old.is_none_or(|(other, _)| page <= other) => {
                    if let Some((_, replaced)) = old.filter(|(other, _)| *other == page) {
                        entries.pop_front();
                        self.space.unsettle(replaced.place);
                        self.merge.freed.push(replaced.place);
                    }
                    self.space.settle(mapped.place);
                    job.carry.push((page, mapped));
                    job.at = page + 1;
                }
                (_, Some((page, mapped))) => {
                    entries.pop_front();
                    if merging.find(page) == Found::Hole {
                        self.space.unsettle(mapped.place);
                        self.merge.freed.push(mapped.place);
                    } else {
                        job.carry.push((page, mapped));
                    }
                }
                // INVARIANT: the guard above is true when there is no old entry.
                (Some(_), None) => return,
            }
        }
    }

    fn write_leaf(&mut self, job: &mut Job, mut buffer: IoBuffer, pool: &mut IoPool) -> bool {
        let count = if job.carry.len() > LEAF_ENTRIES { FILL } else { job.carry.len() };
        let first = if job.out.is_empty() { job.first } else { job.carry[0].0 };
        let place = self.space.take(ExtentKind::Leaves, false);
        let file = place.and_then(|place| self.space.extents.get(&place.extent)).map(|extent| extent.file);
        let (Some(place), Some(file)) = (place, file) else {
            pool.free(buffer);
            return false;
        };
        let bytes = pool.bytes_mut(&mut buffer);
        for (at, (page, mapped)) in job.carry.drain(..count).enumerate() {
            put_entry(bytes, at, page, mapped);
        }
        let used = HEADER_BYTES + count * ENTRY_BYTES;
        bytes[used..].fill(0);
        let header = Header {
            kind: Kind::Leaf,
            identity: self.identity,
            epoch: self.epoch,
            a: first,
            b: self.merge.number + 1,
            bytes: used as u32,
        };
        let crc = header.seal(bytes);
        let which = LEAF << WHICH_SHIFT | job.out.len() as u32;
        job.out.push((first, LeafRef { place, crc, entries: count as u32 }));
        self.merge.writing.push(place);
        let pieces = self.one_piece(file, u64::from(place.slot) * LEAF_BYTES as u64, LEAF_BYTES);
        self.ask(Token::Merge(which), Act::Write, Some(buffer), pieces);
        true
    }

    /// A new leaf is written: it will be looked up soon.
    pub(super) fn leaf_written(
        &mut self,
        number: u32,
        result: Result<(), Fault>,
        buffer: Option<IoBuffer>,
        pool: &mut IoPool,
    ) {
        let Some(buffer) = buffer else { return };
        let leaf =
            self.merge.job.as_ref().and_then(|job| job.out.get(number as usize)).map(|(_, leaf)| *leaf);
        let file = leaf.and_then(|leaf| self.space.extents.get(&leaf.place.extent)).map(|extent| extent.file);
        match (result, leaf, file) {
            (Ok(()), Some(leaf), Some(file)) => {
                self.merge.writing.retain(|place| *place != leaf.place);
                self.commit.dirty(file);
                self.map.cache.keep(leaf.place, buffer, pool);
            }
            _ => {
                pool.free(buffer);
                self.fail(Health::Broken, pool);
            }
        }
    }

    /// The index takes the new leaves.
    fn end_job(&mut self, job: Job, pool: &mut IoPool) {
        self.merge.cursor = job.end;
        job.out.iter().for_each(|(_, leaf)| self.space.settle(leaf.place));
        if let Some(old) = job.old {
            self.space.unsettle(old.place);
            self.merge.freed.push(old.place);
            self.map.cache.remove(old.place, pool);
        }
        self.map.index.replace(job.first, job.out);
    }
}
