//! Which page lies where: what changed lately in memory, the rest in leaves on the medium.
//!
//! A page is looked up in the [`Delta`] that the log fills, then in the one that a checkpoint is merging into
//! leaves, then in the leaf that covers it. Leaves are never changed: a merge writes new ones. So a write
//! never reads a leaf, and memory holds one line per leaf, not per page.
//!
//! Invariants: a page that stands in both tables of a delta was mapped after it became a hole; holes do not touch or
//! overlap each other; the first leaf covers from page 0, so that every page is covered as soon as there is a leaf.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use frame::{IoBuffer, IoPool};

use crate::format::{LeafRef, Mapped, Place, entry, entry_count};

/// What a delta knows of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Page(Mapped),
    Hole,
    Unknown,
}

/// Changes since a checkpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    pages: BTreeMap<u64, Mapped>,
    /// First page to the page behind the last.
    holes: BTreeMap<u64, u64>,
}

impl Delta {
    pub fn find(&self, page: u64) -> Found {
        if let Some(&mapped) = self.pages.get(&page) {
            return Found::Page(mapped);
        }
        match self.holes.range(..=page).next_back() {
            Some((_, &end)) if page < end => Found::Hole,
            _ => Found::Unknown,
        }
    }

    /// Maps a page; what the delta had for it is free.
    pub fn put(&mut self, page: u64, mapped: Mapped) -> Option<Place> {
        self.pages.insert(page, mapped).map(|old| old.place)
    }

    /// Unmaps pages; what the delta had for them is passed to `free`.
    pub fn punch(&mut self, first: u64, end: u64, mut free: impl FnMut(Place)) {
        while let Some((&page, _)) = self.pages.range(first..end).next() {
            if let Some(old) = self.pages.remove(&page) {
                free(old.place);
            }
        }
        let (mut first, mut end) = (first, end);
        // Holes that touch this one become part of it.
        while let Some((&start, &stop)) = self.holes.range(..=end).next_back() {
            if stop < first {
                break;
            }
            (first, end) = (first.min(start), end.max(stop));
            self.holes.remove(&start);
        }
        self.holes.insert(first, end);
    }

    /// Takes away what it has of holes from `page` on. Pages that were mapped after a hole stay, and are no part of what
    /// is taken.
    pub fn split_holes(&mut self, page: u64) -> Delta {
        let mut rest = self.holes.split_off(&page);
        if let Some((_, end)) = self.holes.iter_mut().next_back()
            && *end > page
        {
            rest.insert(page, *end);
            *end = page;
        }
        let mut taken = Delta::default();
        for (mut first, end) in rest {
            for (&mapped, _) in self.pages.range(first..end) {
                if first < mapped {
                    taken.holes.insert(first, mapped);
                }
                first = mapped + 1;
            }
            if first < end {
                taken.holes.insert(first, end);
            }
        }
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.holes.is_empty()
    }

    /// Entries that it holds in memory.
    pub fn len(&self) -> usize {
        self.pages.len() + self.holes.len()
    }

    pub fn pages(&self) -> impl Iterator<Item = (u64, Mapped)> + '_ {
        self.pages.iter().map(|(&page, &mapped)| (page, mapped))
    }

    pub fn holes(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.holes.iter().map(|(&first, &end)| (first, end))
    }

    /// The next page from `page` on that is mapped here.
    pub fn next_page(&self, page: u64) -> Option<(u64, Mapped)> {
        self.pages.range(page..).next().map(|(&page, &mapped)| (page, mapped))
    }

    /// The next page from `page` on that lies in a hole.
    pub fn next_hole(&self, page: u64) -> Option<u64> {
        match self.holes.range(..=page).next_back() {
            Some((_, &end)) if page < end => Some(page),
            _ => self.holes.range(page..).next().map(|(&first, _)| first),
        }
    }
}

/// The leaves by the first page of their range.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    leaves: BTreeMap<u64, LeafRef>,
}

impl Index {
    /// The leaf that covers a page, with the first page of its range.
    pub fn leaf_of(&self, page: u64) -> Option<(u64, LeafRef)> {
        self.leaves.range(..=page).next_back().map(|(&first, &leaf)| (first, leaf))
    }

    /// The page behind the range of the leaf that begins at `first`.
    pub fn end_of(&self, first: u64) -> u64 {
        self.leaves.range((Excluded(first), Unbounded)).next().map_or(u64::MAX, |(&next, _)| next)
    }

    pub fn insert(&mut self, first: u64, leaf: LeafRef) {
        self.leaves.insert(first, leaf);
    }

    /// Takes new leaves in place of the one that began at `first`.
    pub fn replace(&mut self, first: u64, new: impl IntoIterator<Item = (u64, LeafRef)>) {
        self.leaves.remove(&first);
        self.leaves.extend(new);
        // The first leaf covers from 0.
        if let Some(entry) = self.leaves.first_entry()
            && *entry.key() != 0
        {
            let leaf = entry.remove();
            self.leaves.insert(0, leaf);
        }
    }

    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, LeafRef)> + '_ {
        self.leaves.iter().map(|(&first, &leaf)| (first, leaf))
    }

    /// How far holes may reach until they empty leaves of `most` entries; `None` if all of them may.
    pub fn reach(&self, holes: impl Iterator<Item = (u64, u64)>, most: u64) -> Option<u64> {
        let mut entries = 0;
        for (first, end) in holes {
            let from = self.leaf_of(first).map_or(first, |(from, _)| from);
            for (at, leaf) in self.from(from).take_while(|(at, _)| *at < end) {
                let at = at.max(first);
                if entries >= most {
                    return Some(at);
                }
                entries += u64::from(leaf.entries).min(end - at);
            }
        }
        None
    }

    /// Leaves from the one that begins at `first` on.
    pub fn from(&self, first: u64) -> impl Iterator<Item = (u64, LeafRef)> + '_ {
        self.leaves.range(first..).map(|(&first, &leaf)| (first, leaf))
    }
}

/// Leaves in memory, a bounded number; the one not used for longest goes, roughly (second chance).
#[derive(Debug, Default)]
pub(crate) struct LeafCache {
    leaves: HashMap<Place, (IoBuffer, bool)>,
    order: VecDeque<Place>,
    leaves_max: usize,
}

impl LeafCache {
    pub fn new(leaves_max: usize) -> LeafCache {
        LeafCache { leaves_max: leaves_max.max(2), ..LeafCache::default() }
    }

    /// The bytes of a leaf.
    pub fn leaf<'a>(&'a mut self, place: Place, pool: &'a IoPool) -> Option<&'a [u8]> {
        let (buffer, used) = self.leaves.get_mut(&place)?;
        *used = true;
        Some(pool.bytes(buffer))
    }

    /// Keeps a leaf, whose CRC was checked; another one may go for it.
    pub fn keep(&mut self, place: Place, buffer: IoBuffer, pool: &mut IoPool) {
        self.remove(place, pool);
        while self.leaves.len() >= self.leaves_max {
            let Some(oldest) = self.order.pop_front() else { break };
            match self.leaves.get_mut(&oldest) {
                Some((_, used)) if *used => {
                    *used = false;
                    self.order.push_back(oldest);
                }
                Some(_) => {
                    if let Some((buffer, _)) = self.leaves.remove(&oldest) {
                        pool.free(buffer);
                    }
                }
                None => {}
            }
        }
        self.leaves.insert(place, (buffer, false));
        self.order.push_back(place);
    }

    /// Forgets a leaf.
    pub fn remove(&mut self, place: Place, pool: &mut IoPool) {
        if let Some((buffer, _)) = self.leaves.remove(&place) {
            pool.free(buffer);
            self.order.retain(|held| *held != place);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self, pool: &mut IoPool) {
        self.order.clear();
        self.leaves.drain().for_each(|(_, (buffer, _))| pool.free(buffer));
    }
}

/// The first entry of a leaf at `page` or behind it.
pub(crate) fn first_from(leaf: &[u8], page: u64) -> usize {
    let (mut low, mut high) = (0, entry_count(leaf));
    while low < high {
        let middle = (low + high) / 2;
        if entry(leaf, middle).0 < page { low = middle + 1 } else { high = middle }
    }
    low
}

/// Looks a page up in a leaf.
pub(crate) fn find_in_leaf(leaf: &[u8], page: u64) -> Option<Mapped> {
    let at = first_from(leaf, page);
    let (found, mapped) = (at < entry_count(leaf)).then(|| entry(leaf, at))?;
    (found == page).then_some(mapped)
}

#[cfg(test)]
mod tests;
