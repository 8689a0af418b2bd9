//! The shaper: admission, parking and release put together.

use crate::limits::{Limits, LimitsError, PoolError, PoolLimits};

/// Sizes of a shaper; all memory is taken at construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShaperConfig {
    /// Volumes are numbered 0 to this, exclusive.
    pub volumes_max: u32,
    /// Groups are numbered 0 to this, exclusive.
    pub groups_max: u32,
    /// Requests parked in the whole shaper.
    pub parked_items_max: u32,
}

/// What a request costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of payload; 0 for a pure acknowledgement.
    pub bytes: u32,
    /// Packets, or operations.
    pub packets: u32,
    /// Where in the volume the request begins, if that is known; `bytes` is then its length. Only used to
    /// find sequential streams.
    pub offset: Option<u64>,
}

/// The two directions of a volume. Each keeps its own order, so that what comes back from the server is
/// not stuck behind what goes to it; both pay from the same buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// To the server.
    Forward,
    /// From the server.
    Reverse,
}

/// What became of a request.
#[derive(Debug)]
#[must_use = "the request may have come back"]
pub enum Admission<T> {
    /// Paid: send it.
    Pass(T),
    /// Kept; [`Shaper::release`] gives it back when its time has come. `mark`: more than half of the bound
    /// is taken; the same flag comes with the request when it is released.
    Parked {
        /// Congestion is to be signalled.
        mark: bool,
    },
    /// The bound is reached: drop it.
    Full(T),
}

/// A request that waited and is now paid for.
#[derive(Debug, PartialEq, Eq)]
pub struct Released<T> {
    /// Its volume.
    pub volume: u32,
    /// Its lane.
    pub lane: Lane,
    /// The request.
    pub item: T,
    /// It was parked beyond half of the bound: mark it with ECN.
    pub mark: bool,
    /// How long it waited.
    pub waited_ns: u64,
}

/// What waits in a shaper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// Requests.
    pub items: u32,
    /// Bytes, by cost.
    pub bytes: u64,
}

/// Counters of a volume since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeCounters {
    /// Bytes admitted, at once or after waiting, by cost.
    pub admitted_bytes: u64,
    /// Packets admitted, at once or after waiting.
    pub admitted_packets: u64,
    /// Waiting now.
    pub parked: Parked,
    /// Requests that had to wait.
    pub parked_total: u64,
    /// Requests marked for ECN.
    pub marked: u64,
    /// Requests refused because the bound was reached.
    pub dropped: u64,
    /// Sum of the waits of the requests released.
    pub parked_ns: u64,
}

/// Balance of a volume in one dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Credits in the bank (rounded down), and its size; `None` without a bank.
    pub burst_units: Option<(i64, u64)>,
    /// Balance of the provisioned rate (rounded down; negative in debt), `None` without one.
    pub work_units: Option<i64>,
    /// Units per second that the volume may sustain at this moment: its peak while the bank holds credits,
    /// its base rate after. `None`: unlimited.
    pub permitted_rate: Option<u64>,
}

/// Balances of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeBalance {
    /// In bytes.
    pub bytes: Balance,
    /// In packets.
    pub packets: Balance,
}

/// See the crate's documentation. `T` is what waits: a frame, an I/O.
#[derive(Debug)]
pub struct Shaper<T> {
    config: ShaperConfig,
    counters: Vec<VolumeCounters>,
    gone: std::marker::PhantomData<T>,
}

impl<T> Shaper<T> {
    /// A shaper whose volumes are all unlimited, with room for everything in `config`. `now_ns` starts its
    /// clock.
    pub fn new(config: ShaperConfig, now_ns: u64) -> Shaper<T> {
        let _ = now_ns;
        let counters = vec![VolumeCounters::default(); config.volumes_max as usize];
        Shaper { config, counters, gone: std::marker::PhantomData }
    }

    /// Sets or changes the limits of a volume while traffic flows. Balances are kept, cut to the new caps;
    /// a bucket that is new starts full. What waits is timed anew.
    pub fn set_volume(&mut self, now_ns: u64, volume: u32, limits: &Limits) -> Result<(), LimitsError> {
        let _ = now_ns;
        if volume >= self.config.volumes_max {
            return Err(LimitsError::VolumeOutOfRange { volume, volumes_max: self.config.volumes_max });
        }
        limits.check()
    }

    /// Forgets a volume: its waiting requests come back through `sink` unpaid, in order, and the index is
    /// as in a new shaper. Returns its last counters.
    pub fn remove_volume(
        &mut self,
        volume: u32,
        sink: &mut impl FnMut(Released<T>),
    ) -> Option<VolumeCounters> {
        let _ = sink;
        self.counters.get_mut(volume as usize).map(std::mem::take)
    }

    /// Sets, changes or (with nothing in it) lifts the pool of a group while traffic flows.
    pub fn set_group(&mut self, now_ns: u64, group: u32, limits: &PoolLimits) -> Result<(), PoolError> {
        let _ = now_ns;
        if group >= self.config.groups_max {
            return Err(PoolError::GroupOutOfRange { group, groups_max: self.config.groups_max });
        }
        limits.check()
    }

    /// Sets, changes or (with nothing in it) lifts the pool of the node while traffic flows.
    pub fn set_node(&mut self, now_ns: u64, limits: &PoolLimits) -> Result<(), PoolError> {
        let _ = now_ns;
        limits.check()
    }

    /// Asks for one request. `now_ns` is the turn's clock; should it run backwards, nothing is refilled.
    pub fn admit(&mut self, now_ns: u64, volume: u32, lane: Lane, cost: Cost, item: T) -> Admission<T> {
        let _ = (now_ns, lane);
        match self.counters.get_mut(volume as usize) {
            Some(counters) => {
                counters.admitted_bytes += u64::from(cost.bytes);
                counters.admitted_packets += u64::from(cost.packets);
                Admission::Pass(item)
            }
            None => Admission::Full(item),
        }
    }

    /// Hands the requests whose time has come to `sink`, at most `budget` of them, and returns how many.
    pub fn release(&mut self, now_ns: u64, budget: usize, sink: &mut impl FnMut(Released<T>)) -> usize {
        let _ = (now_ns, budget, sink);
        0
    }

    /// When [`Shaper::release`] should be called again: never later than the next request's time, perhaps
    /// a little earlier. `None`: nothing waits.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        None
    }

    /// Gives what was borrowed from shared buckets and not spent back to them. Call before sleeping.
    pub fn return_quanta(&mut self, now_ns: u64) {
        let _ = now_ns;
    }

    /// What waits in the whole shaper.
    pub fn parked(&self) -> Parked {
        Parked::default()
    }

    /// Counters of a volume.
    pub fn counters(&self, volume: u32) -> Option<VolumeCounters> {
        self.counters.get(volume as usize).copied()
    }

    /// Balances of a volume at `now_ns`.
    pub fn balances(&self, now_ns: u64, volume: u32) -> Option<VolumeBalance> {
        let _ = now_ns;
        self.counters.get(volume as usize).map(|_| VolumeBalance::default())
    }

    /// The first cache lines that [`Shaper::admit`] will touch for these volumes, to be prefetched.
    pub fn prefetch_hint(&self, volume: u32) -> Option<&impl Sized> {
        self.counters.get(volume as usize)
    }
}
