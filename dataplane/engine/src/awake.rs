//! Awake rules of a multi-core pipeline (capability F8): a worker does not go to sleep while the stage
//! before it already holds, or has just passed, something for it.
//!
//! One [`SourceTable`] stands between the first stage (the receiving core) and one worker behind it. The
//! first stage gives each frame an id that grows per source ([`Stage1::number`], F8.a) and thereby
//! publishes the newest id of that source (F8.b). The worker compares the id of each frame it completes
//! with the newest ([`Downstream::completed`], F8.c): if a later one exists, it stays awake, for at most
//! `stay_awake_ns` after that completion (F8.d); if that was the last, it may idle (F8.e). It also stays
//! awake while a queue upstream holds more than `upstream_threshold` (F8.f), looking from the nearest
//! upstream queue outwards as long as it finds them empty (F8.g): first the ring between the two, then the
//! input of the first stage, whose backlog that stage publishes ([`Stage1::backlog`]).
//!
//! What the mechanism leaves open is settled here:
//! - A frame dropped upstream would look pending for ever: [`Stage1::retire`] publishes its id, and the
//!   window bounds what is missed.
//! - Ids wrap: they are compared by signed difference.
//! - Sources are unbounded, the table is not: sources beyond it share one overflow entry, after which a
//!   worker always stays awake for the window.
//! - An upstream stage that hangs with a full queue keeps nobody awake for longer than the window.
//!
//! Staying awake is about latency only; nothing is lost by sleeping ([`crate::handshake`]). On one core
//! that runs to completion there is no stage before: use no table and [`AwakeHint::MayIdle`].

use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

/// What the awake rules say about sleeping now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AwakeHint {
    /// Nothing known upstream.
    #[default]
    MayIdle,
    /// Something is on its way: do not sleep before `until_ns` unless a later hint allows it.
    StayAwake {
        /// End of the window.
        until_ns: u64,
    },
}

/// Makes the two ends of a table of `sources` sources. Ids of each source begin after `first_id`
/// (0 but in tests of wrapping).
#[derive(Debug)]
pub struct SourceTable {
    entries: Box<[Entry]>,
    /// Frames known to wait at the input of the first stage.
    backlog: AtomicUsize,
}

/// Newest id given (high half) and newest id dropped (low half) of one source: one word, so that both are
/// read together. Written by the first stage only.
#[derive(Debug)]
struct Entry(AtomicU64);

/// The end of the table at the first stage: gives and retires ids.
#[derive(Debug)]
pub struct Stage1 {
    table: Arc<SourceTable>,
}

/// The end of the table at the worker behind: compares and decides.
#[derive(Debug)]
pub struct Downstream {
    table: Arc<SourceTable>,
    sources: Box<[Completed]>,
    /// Entries with a completion whose window may still be open, each at most once.
    watched: Vec<u32>,
    queue_until_ns: Option<u64>,
    params: AwakeParams,
}

/// How long and from which queue length on a worker stays awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwakeParams {
    /// Longest time awake for one cause, 0..=[`STAY_AWAKE_NS_MAX`].
    pub stay_awake_ns: u64,
    /// Frames in an upstream queue above which the worker stays awake.
    pub upstream_threshold: usize,
}

#[derive(Clone, Copy, Debug)]
struct Completed {
    id: u32,
    watched: bool,
    until_ns: u64,
}

impl SourceTable {
    /// A table of `sources` entries and its two ends. `sources` is held to 1..=[`SOURCES_MAX`].
    #[allow(clippy::new_ret_no_self)] // the table is only of use through its two ends
    pub fn new(sources: usize, params: AwakeParams) -> (Stage1, Downstream) {
        Self::starting_at(sources, params, 0)
    }

    /// As [`SourceTable::new`], with ids that begin after `first_id`.
    pub fn starting_at(sources: usize, params: AwakeParams, first_id: u32) -> (Stage1, Downstream) {
        // The entry behind the last is the one for all sources beyond the table.
        let entries = sources.clamp(1, SOURCES_MAX) + 1;
        let table = Arc::new(SourceTable {
            entries: (0..entries).map(|_| Entry(AtomicU64::new(pack(first_id, first_id)))).collect(),
            backlog: AtomicUsize::new(0),
        });
        let idle = Completed { id: first_id, watched: false, until_ns: 0 };
        let downstream = Downstream {
            table: Arc::clone(&table),
            sources: vec![idle; entries].into(),
            watched: Vec::with_capacity(entries),
            queue_until_ns: None,
            params: params.clamped(),
        };
        (Stage1 { table }, downstream)
    }

    /// The entry of a source; the last one is shared by all sources beyond the table.
    #[inline]
    fn index(&self, source: u32) -> usize {
        (source as usize).min(self.entries.len() - 1)
    }
}

impl AwakeParams {
    /// With the host's limits applied.
    pub fn clamped(self) -> Self {
        Self { stay_awake_ns: self.stay_awake_ns.min(STAY_AWAKE_NS_MAX), ..self }
    }
}

impl Stage1 {
    /// Gives the next id of `source` and publishes it as the newest (F8.a, F8.b). On arrival of a frame,
    /// before anything else is done with it: the earlier the worker knows, the better.
    #[inline]
    pub fn number(&mut self, source: u32) -> u32 {
        let entry = &self.table.entries[self.table.index(source)].0;
        let (last, retired) = unpack(entry.load(Ordering::Relaxed));
        let id = last.wrapping_add(1);
        // A source that never drops must not fall half the ring of ids behind its last drop. Nothing as
        // old as this is still under way: rings are far shorter.
        let retired = if id.wrapping_sub(retired) > RETIRED_LAG_MAX {
            id.wrapping_sub(RETIRED_LAG_MAX / 2)
        } else {
            retired
        };
        entry.store(pack(id, retired), Ordering::Release);
        id
    }

    /// Tells how many frames wait at the input of this stage, as far as it knows: a full burst means that
    /// there is probably another. Costs a load while nothing changes.
    #[inline]
    pub fn backlog(&mut self, frames: usize) {
        if self.table.backlog.load(Ordering::Relaxed) != frames {
            self.table.backlog.store(frames, Ordering::Relaxed);
        }
    }

    /// Tells that the frame with this id was dropped after it was numbered. Call it after the frames
    /// before it were handed on: the worker takes a retired id as "everything up to here was handed on or
    /// dropped".
    #[inline]
    pub fn retire(&mut self, source: u32, id: u32) {
        let entry = &self.table.entries[self.table.index(source)].0;
        let (last, retired) = unpack(entry.load(Ordering::Relaxed));
        if is_later(id, retired) && !is_later(id, last) {
            entry.store(pack(last, id), Ordering::Release);
        }
    }
}

impl Downstream {
    /// Notes that a frame was completed (forwarded, delivered, parked or dropped by this worker) at
    /// `now_ns`. Two stores; the comparison with the newest id is left to [`Downstream::hint`], when the
    /// worker has run out of work, so that a busy worker never touches the first stage's cache lines.
    #[inline]
    pub fn completed(&mut self, now_ns: u64, source: u32, id: u32) {
        let index = self.table.index(source);
        let completed = &mut self.sources[index];
        // Frames of one source that took different ways through the first stage may come out of order.
        if is_later(id, completed.id) {
            completed.id = id;
        }
        completed.until_ns = now_ns.saturating_add(self.params.stay_awake_ns);
        if !completed.watched {
            completed.watched = true;
            self.watched.push(index as u32);
        }
        self.queue_until_ns = None;
    }

    /// May the worker idle? `ring_frames` is the length of the ring between the first stage and this one.
    ///
    /// Asked when the worker is about to sleep, and once more after it announced sleep. Looks at each
    /// source that completed a frame within the window until it finds one that is behind, so the answer
    /// is exact at the instant of the call.
    pub fn hint(&mut self, now_ns: u64, ring_frames: usize) -> AwakeHint {
        let mut place = self.watched.len();
        while place > 0 {
            place -= 1;
            let index = self.watched[place] as usize;
            let until_ns = self.sources[index].until_ns;
            if now_ns >= until_ns {
                self.sources[index].watched = false;
                self.watched.swap_remove(place);
            } else if self.later_exists(index) {
                // Looked at first the next time: a worker kept awake asks at every turn.
                let newest = self.watched.len() - 1;
                self.watched.swap(place, newest);
                return AwakeHint::StayAwake { until_ns };
            }
        }
        let backlog = self.table.backlog.load(Ordering::Relaxed);
        self.queue_hint(now_ns, [ring_frames, backlog])
    }

    /// New parameters, from the next completion on.
    pub fn set_params(&mut self, params: AwakeParams) {
        self.params = params.clamped();
    }

    /// The parameters in force.
    pub fn params(&self) -> AwakeParams {
        self.params
    }

    /// F8.c: was a later frame of this source numbered that is neither completed nor dropped?
    fn later_exists(&self, index: usize) -> bool {
        if index + 1 == self.sources.len() {
            return true;
        }
        let (last, retired) = unpack(self.table.entries[index].0.load(Ordering::Acquire));
        is_later(last, self.sources[index].id) && is_later(last, retired)
    }

    /// F8.f and F8.g: `queues` are the lengths of the queues upstream, nearest first.
    fn queue_hint(&mut self, now_ns: u64, queues: [usize; 2]) -> AwakeHint {
        let nearest = queues.into_iter().find(|&frames| frames > 0).unwrap_or(0);
        if nearest <= self.params.upstream_threshold {
            self.queue_until_ns = None;
            return AwakeHint::MayIdle;
        }
        let until_ns = *self.queue_until_ns.get_or_insert(now_ns.saturating_add(self.params.stay_awake_ns));
        if now_ns < until_ns { AwakeHint::StayAwake { until_ns } } else { AwakeHint::MayIdle }
    }
}

/// Whether `a` comes after `b`, wrapping: ids less than 2^31 apart are ordered.
#[inline]
fn is_later(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > 0
}

#[inline]
fn pack(last: u32, retired: u32) -> u64 {
    u64::from(last) << 32 | u64::from(retired)
}

#[inline]
fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// The host's limit for `stay_awake_ns`.
pub const STAY_AWAKE_NS_MAX: u64 = 1_000_000;
/// Most entries of a table.
pub const SOURCES_MAX: usize = 65_536;
const RETIRED_LAG_MAX: u32 = 1 << 30;

#[cfg(test)]
mod tests;
