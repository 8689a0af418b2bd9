//! Room: extents, slots given out and taken back, and when more must be taken.
//!
//! An extent grows in place by a slice at a time (an allocation of the file system, so that writing cannot
//! fail for lack of room), until it is full and the next one is created. Expansion begins when what is
//! free, less what is being asked for, falls below a threshold: before it runs out (capability F12).
//!
//! A slot that became free waits until the record that freed it is durable and no higher epoch was there
//! after that (decision D10); then a few are kept for use and the rest is given back to the file system.
//!
//! Invariants: a slot is given out once until it is released; only slots of this owner's extents are given
//! out; `base` counts what leaves refer to and `recent` what the deltas and pending releases hold.

use std::collections::{BTreeMap, VecDeque};

use block::{Epoch, ExtentId, FileId, FileName};

use crate::format::{ExtentEntry, ExtentKind, Place, Run};

/// One extent while the volume is open.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub kind: ExtentKind,
    pub epoch: Epoch,
    pub file: FileId,
    pub fresh: u32,
    pub allocated: u32,
    /// Slots that leaves refer to (of leaves: that the index refers to).
    pub base: u32,
    /// Slots that deltas refer to, or that wait for their release.
    pub recent: u32,
}

impl Extent {
    pub fn name(&self, id: ExtentId) -> FileName {
        FileName::Extent { epoch: self.epoch, id }
    }
}

/// Where slots of one kind come from.
#[derive(Clone, Debug, Default)]
struct Source {
    /// The extent that grows.
    filling: Option<ExtentId>,
    /// Slots to use again, the last first.
    reuse: Vec<Place>,
}

/// All room of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub extents: BTreeMap<ExtentId, Extent>,
    sources: [Source; 2],
    epoch: Epoch,
    slots_max: [u32; 2],
    reuse_max: usize,
    /// Freed slots and the batch that must be durable first, in that order.
    pending: VecDeque<(u64, Place)>,
    /// Slots to give back to the file system.
    pub to_punch: VecDeque<Run>,
    /// Slots given back since the volume was opened.
    pub punched: u64,
}

impl Space {
    pub fn new(epoch: Epoch, extent_bytes: u64, reuse_max: usize) -> Space {
        let slots = |kind: ExtentKind| (extent_bytes / kind.slot_bytes()).clamp(2, 1 << 24) as u32;
        Space {
            extents: BTreeMap::new(),
            sources: Default::default(),
            epoch,
            slots_max: [slots(ExtentKind::Pages), slots(ExtentKind::Leaves)],
            reuse_max,
            pending: VecDeque::new(),
            to_punch: VecDeque::new(),
            punched: 0,
        }
    }

    /// Takes an extent of an earlier owner in: nothing is given out from it.
    pub fn adopt(&mut self, entry: ExtentEntry, recent: u32, file: FileId) {
        let ExtentEntry { id, kind, epoch, fresh, live, allocated } = entry;
        self.extents.insert(id, Extent { kind, epoch, file, fresh, allocated, base: live, recent });
    }

    /// Slots that can be given out at once.
    pub fn available(&self, kind: ExtentKind) -> u32 {
        let source = &self.sources[kind as usize];
        source.reuse.len() as u32 + self.fresh_room(source)
    }

    fn fresh_room(&self, source: &Source) -> u32 {
        let extent = source.filling.and_then(|id| self.extents.get(&id));
        extent.map_or(0, |extent| extent.allocated.saturating_sub(extent.fresh))
    }

    /// A slot of `kind`. With `run` it comes from the row of fresh ones first, so that a long request lies together.
    pub fn take(&mut self, kind: ExtentKind, run: bool) -> Option<Place> {
        let source = &self.sources[kind as usize];
        let place = if run && self.fresh_room(source) > 0 || source.reuse.is_empty() {
            self.take_fresh(kind)?
        } else {
            self.sources[kind as usize].reuse.pop()?
        };
        self.extents.get_mut(&place.extent)?.recent += 1;
        Some(place)
    }

    fn take_fresh(&mut self, kind: ExtentKind) -> Option<Place> {
        let id = self.sources[kind as usize].filling?;
        let extent = self.extents.get_mut(&id)?;
        let slot = extent.fresh;
        (slot < extent.allocated).then(|| {
            extent.fresh += 1;
            Place { extent: id, slot }
        })
    }

    /// Gives a slot back that no record names: at once.
    pub fn give_back(&mut self, place: Place) {
        if let Some(extent) = self.extents.get_mut(&place.extent) {
            extent.recent = extent.recent.saturating_sub(1);
            self.sources[extent.kind as usize].reuse.push(place);
        }
    }

    /// A slot that the record of `batch` replaces.
    pub fn free(&mut self, batch: u64, place: Place) {
        self.pending.push_back((batch, place));
    }

    /// A slot moves from a delta into a leaf, or a leaf's into the index.
    pub fn settle(&mut self, place: Place) {
        if let Some(extent) = self.extents.get_mut(&place.extent) {
            extent.base += 1;
            extent.recent = extent.recent.saturating_sub(1);
        }
    }

    /// A slot that leaves, or the index, no longer refer to.
    pub fn unsettle(&mut self, place: Place) {
        if let Some(extent) = self.extents.get_mut(&place.extent) {
            extent.base = extent.base.saturating_sub(1);
            extent.recent += 1;
        }
    }

    /// Releases what batches up to `durable` freed.
    pub fn release_until(&mut self, durable: u64) {
        while let Some(&(batch, place)) = self.pending.front() {
            if batch > durable {
                return;
            }
            self.pending.pop_front();
            self.release(place);
        }
    }

    /// True when something waits for a batch to be durable.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A slot is free for good: keep it for use, or give its room back.
    pub fn release(&mut self, place: Place) {
        let Some(extent) = self.extents.get_mut(&place.extent) else { return };
        extent.recent = extent.recent.saturating_sub(1);
        let source = &mut self.sources[extent.kind as usize];
        if extent.epoch == self.epoch && source.reuse.len() < self.reuse_max {
            source.reuse.push(place);
        } else {
            self.punch(Run { place, slots: 1 });
        }
    }

    /// Queues slots to be given back to the file system; neighbours in a row together.
    pub fn punch(&mut self, run: Run) {
        self.punched += u64::from(run.slots);
        if let Some(last) = self.to_punch.back_mut()
            && last.place.extent == run.place.extent
        {
            if last.place.slot + last.slots == run.place.slot {
                last.slots += run.slots;
                return;
            }
            if run.place.slot + run.slots == last.place.slot {
                last.place.slot = run.place.slot;
                last.slots += run.slots;
                return;
            }
        }
        self.to_punch.push_back(run);
    }

    /// What to do to have more slots of `kind`.
    pub fn growth(&self, kind: ExtentKind, slice_bytes: u64) -> Growth {
        let slots_max = self.slots_max[kind as usize];
        let filling = self.sources[kind as usize].filling;
        match filling.and_then(|id| self.extents.get(&id).map(|extent| (id, extent))) {
            Some((id, extent)) if extent.allocated < slots_max => {
                let slice = (slice_bytes / kind.slot_bytes()).max(1) as u32;
                let slots = slice.min(slots_max - extent.allocated);
                Growth::InPlace { id, file: extent.file, first: extent.allocated, slots }
            }
            _ => Growth::NewExtent,
        }
    }

    /// Room for `slots` more was taken.
    pub fn grown(&mut self, id: ExtentId, slots: u32) {
        if let Some(extent) = self.extents.get_mut(&id) {
            extent.allocated += slots;
        }
    }

    /// A new extent of this owner is ready; what the old one still has is given out first.
    pub fn fill(&mut self, id: ExtentId, file: FileId, kind: ExtentKind) {
        let extent = Extent { kind, epoch: self.epoch, file, fresh: 1, allocated: 1, base: 0, recent: 0 };
        self.extents.insert(id, extent);
        let source = &mut self.sources[kind as usize];
        if let Some(old) = source.filling.replace(id)
            && let Some(extent) = self.extents.get_mut(&old)
        {
            source.reuse.extend((extent.fresh..extent.allocated).map(|slot| Place { extent: old, slot }));
            extent.fresh = extent.allocated;
        }
    }

    /// Extents that hold nothing any more and never will.
    pub fn empty_extents(&self) -> Vec<ExtentId> {
        let waits = |id: ExtentId| self.pending.iter().any(|(_, place)| place.extent == id);
        self.extents
            .iter()
            .filter(|(id, extent)| {
                extent.base == 0 && extent.recent == 0 && extent.epoch != self.epoch && !waits(**id)
            })
            .map(|(&id, _)| id)
            .collect()
    }

    /// The extents as a checkpoint names them.
    pub fn table(&self) -> Vec<ExtentEntry> {
        let entry = |(&id, extent): (&ExtentId, &Extent)| ExtentEntry {
            id,
            kind: extent.kind,
            epoch: extent.epoch,
            fresh: extent.fresh,
            live: extent.base,
            allocated: extent.allocated,
        };
        self.extents.iter().map(entry).collect()
    }

    /// Free slots in extents, as a checkpoint names them: those to use again, those that wait, those to give back.
    pub fn free_runs(&self, more: &[Place]) -> Vec<Run> {
        let one = |place: Place| Run { place, slots: 1 };
        let kept = self.sources.iter().flat_map(|source| source.reuse.iter().copied().map(one));
        let waiting = self.pending.iter().map(|&(_, place)| one(place));
        let all = kept.chain(waiting).chain(self.to_punch.iter().copied());
        coalesce(all.chain(more.iter().copied().map(one)).collect())
    }
}

/// How to have more slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// Take room for these slots.
    InPlace { id: ExtentId, file: FileId, first: u32, slots: u32 },
    /// The extent is full, or there is none.
    NewExtent,
}

/// Joins runs that lie in a row.
pub(crate) fn coalesce(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable_by_key(|run| run.place);
    let mut out: Vec<Run> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some(last)
                if last.place.extent == run.place.extent
                    && last.place.slot + last.slots >= run.place.slot =>
            {
                let end = (run.place.slot + run.slots).max(last.place.slot + last.slots);
                last.slots = end - last.place.slot;
            }
            _ => out.push(run),
        }
    }
    out
}
