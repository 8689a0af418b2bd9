//! Setting up, changing and reading a shaper: everything that is not on the way of a request.

use crate::api::{Parked, Released, Saved, ShaperConfig, VolumeBalance, VolumeCounters};
use crate::drr::Seat;
use crate::limits::{Dimension, Limits, LimitsError, PoolError, PoolLimits};
use crate::parking::{Arena, Lot, NONE};
use crate::pool::Pool;
use crate::shaper::Shaper;
use crate::tariff::Tariff;
use crate::volume::Volume;
use crate::wheel::Wheel;

impl<T> Shaper<T> {
    /// A shaper whose volumes are all unlimited, with room for everything in `config`. `now_ns` starts its
    /// clock. Volumes and groups together number less than 2^32 - 1; what is more is cut off.
    ///
    /// The room is address space: of what is largest, the buckets and lots of volumes, only what lies below
    /// the highest volume in use takes memory, and nothing is ever moved.
    pub fn new(config: ShaperConfig, now_ns: u64) -> Shaper<T> {
        let volumes_max = config.volumes_max.min(NONE - 2);
        let groups_max = config.groups_max.min(NONE - 2 - volumes_max);
        let config = ShaperConfig { volumes_max, groups_max, ..config };
        let volumes = volumes_max as usize;
        let pools = groups_max + 1;
        let weight = Limits::unlimited().weight();
        Shaper {
            config,
            now_ns,
            volumes: Vec::with_capacity(volumes),
            tariffs: vec![None; volumes],
            lots: Vec::with_capacity(volumes),
            seats: vec![Seat::new(weight); volumes + groups_max as usize],
            borrowers: Vec::new(),
            pools: vec![Pool::unlimited(now_ns); pools as usize],
            node: groups_max,
            node_is_limited: false,
            has_banks: false,
            arena: Arena::new(config.parked_items_max),
            wheel: Wheel::new(volumes_max + pools, now_ns),
            parked: Parked::default(),
        }
    }

    /// Sets or changes the limits of a volume while traffic flows. Balances are kept, cut to the new caps;
    /// a bucket that is new starts full. What waits is timed anew.
    pub fn set_volume(&mut self, now_ns: u64, volume: u32, limits: &Limits) -> Result<(), LimitsError> {
        let ShaperConfig { volumes_max, groups_max, .. } = self.config;
        if volume >= volumes_max {
            return Err(LimitsError::VolumeOutOfRange { volume, volumes_max });
        }
        if let Some(group) = limits.group.filter(|&group| group >= groups_max) {
            return Err(LimitsError::GroupOutOfRange { group, groups_max });
        }
        limits.check()?;
        self.tick(now_ns);
        self.reach(volume);
        let at = volume as usize;
        let tariff = Tariff::of(limits, self.tariffs[at].as_deref());
        self.volumes[at].configure(self.now_ns, limits, tariff.is_some());
        self.has_banks |= limits.dims().iter().any(|dim| dim.burst.is_some());
        self.tariffs[at] = tariff;
        self.lots[at].limits = limits.park;
        if self.seats[at].pool != self.home(volume) {
            self.unseat(volume);
        }
        match self.pools.get_mut(self.seats[at].pool as usize) {
            Some(pool) => pool.ring.reweigh(&mut self.seats, volume, limits.weight()),
            None => self.seats[at].set_weight(limits.weight()),
        }
        self.plan(volume);
        Ok(())
    }

    /// Has a volume go on with what it had saved elsewhere. Only for one without anything that waits.
    pub fn begin_with(&mut self, now_ns: u64, volume: u32, saved: Saved) {
        self.tick(now_ns);
        if let Some(state) = self.volumes.get_mut(volume as usize) {
            state.refill(self.now_ns);
            state.begin_with(0, saved.bytes);
            state.begin_with(1, saved.packets);
        }
    }

    /// Brings the volumes up to `volume` into use. Writes within the capacity, so it allocates nothing.
    pub(crate) fn reach(&mut self, volume: u32) {
        let count = volume as usize + 1;
        if self.volumes.len() < count {
            self.volumes.resize(count, Volume::unlimited(self.now_ns));
            self.lots.resize(count, Lot::new());
        }
    }

    /// A volume as it is, or as it would be if it were in use; `None` outside the shaper.
    pub(crate) fn volume(&self, volume: u32) -> Option<Volume> {
        let unused = || (volume < self.config.volumes_max).then(|| Volume::unlimited(self.now_ns));
        self.volumes.get(volume as usize).copied().or_else(unused)
    }

    /// Forgets a volume: its waiting requests come back through `sink` unpaid, each lane in order, and the
    /// index is as in a new shaper. Returns its last counters; `None` if it is outside the shaper.
    pub fn remove_volume(
        &mut self,
        volume: u32,
        sink: &mut impl FnMut(Released<T>),
    ) -> Option<VolumeCounters> {
        let at = volume as usize;
        if self.volumes.get(at).is_none() {
            return self.counters(volume);
        }
        for lane in 0..2 {
            while let Some(released) = self.unpark(volume, lane) {
                sink(released);
            }
        }
        self.unseat(volume);
        self.wheel.cancel(volume);
        let counters = self.counters(volume);
        self.volumes[at] = Volume::unlimited(self.now_ns);
        self.tariffs[at] = None;
        self.lots[at] = Lot::new();
        self.seats[at] = Seat::new(Limits::unlimited().weight());
        counters
    }

    /// Sets, changes or (with nothing in it) lifts the pool of a group while traffic flows. Balances are
    /// kept, cut to the new caps; what is new starts full.
    pub fn set_group(&mut self, now_ns: u64, group: u32, limits: &PoolLimits) -> Result<(), PoolError> {
        let groups_max = self.config.groups_max;
        if group >= groups_max {
            return Err(PoolError::GroupOutOfRange { group, groups_max });
        }
        self.set_pool(now_ns, group, limits)
    }

    /// Sets, changes or (with nothing in it) lifts the pool of the node, as [`Shaper::set_group`] does.
    pub fn set_node(&mut self, now_ns: u64, limits: &PoolLimits) -> Result<(), PoolError> {
        self.set_pool(now_ns, self.node, limits)?;
        self.node_is_limited = self.pools[self.node as usize].is_limited();
        Ok(())
    }

    fn set_pool(&mut self, now_ns: u64, id: u32, limits: &PoolLimits) -> Result<(), PoolError> {
        limits.check()?;
        self.tick(now_ns);
        let pool = &mut self.pools[id as usize];
        let borrowed = pool.borrows();
        pool.configure(self.now_ns, limits);
        match (borrowed, pool.borrows()) {
            (false, true) => self.borrowers.push(id),
            (true, false) => self.borrowers.retain(|other| *other != id),
            _ => {}
        }
        if pool.ring.members() > 0 {
            self.wheel.set(self.config.volumes_max + id, self.now_ns);
        }
        Ok(())
    }

    /// Gives what was borrowed from shared buckets and not spent back to them. Call before sleeping.
    pub fn return_quanta(&mut self, now_ns: u64) {
        self.tick(now_ns);
        // Only those, since a worker that sleeps thousands of times per second would read every pool each time.
        for id in &self.borrowers {
            self.pools[*id as usize].return_quanta();
        }
    }

    /// What waits in the whole shaper.
    pub fn parked(&self) -> Parked {
        self.parked
    }

    /// Counters of a volume.
    pub fn counters(&self, volume: u32) -> Option<VolumeCounters> {
        let [admitted_bytes, admitted_packets] = self.volume(volume)?.admitted;
        let unused = Lot::new();
        let lot = self.lots.get(volume as usize).unwrap_or(&unused);
        let [forward, reverse] = &lot.lanes;
        Some(VolumeCounters {
            admitted_bytes,
            admitted_packets,
            parked: Parked { items: forward.items + reverse.items, bytes: forward.bytes + reverse.bytes },
            parked_total: lot.parked_total,
            marked: lot.marked,
            dropped: lot.dropped,
            parked_ns: lot.parked_ns,
        })
    }

    /// Balances of a volume at `now_ns`.
    pub fn balances(&self, now_ns: u64, volume: u32) -> Option<VolumeBalance> {
        let mut v = self.volume(volume)?;
        v.refill(now_ns.max(self.now_ns));
        Some(VolumeBalance { bytes: v.balance(0), packets: v.balance(1) })
    }

    /// Whole units that the node's pool holds in a dimension at the shaper's clock, negative in debt;
    /// `None` without a limit.
    pub fn node_units(&self, dimension: Dimension) -> Option<i64> {
        self.pools[self.node as usize].units(dimension as usize)
    }

    /// Whole units that a group's pool holds in a dimension, as [`Shaper::node_units`].
    pub fn group_units(&self, group: u32, dimension: Dimension) -> Option<i64> {
        let pool = self.pools.get(group as usize).filter(|_| group < self.node)?;
        pool.units(dimension as usize)
    }

    /// The cache lines that [`Shaper::admit`] reads for a volume, to be prefetched: what all requests need,
    /// what follows a rate, and, if there are banks at all, the volume's.
    #[inline(always)]
    pub fn prefetch_hints(&self, volume: u32) -> Option<(&impl Sized, &impl Sized, Option<&impl Sized>)> {
        let volume = self.volumes.get(volume as usize)?;
        let (paced, bank) = volume.lines();
        Some((volume, paced, self.has_banks.then_some(bank)))
    }
}

#[cfg(test)]
mod tests {
    //! Room that is not in use takes no memory, and nothing shows it.

    use super::*;
    use crate::api::{Admission, Cost, Lane};

    #[test]
    fn volumes_come_into_use_one_by_one_and_never_move() {
        const ROOM: u32 = 1 << 20;
        let mut shaper: Shaper<u32> =
            Shaper::new(ShaperConfig { volumes_max: ROOM, groups_max: 1, parked_items_max: 1 }, 0);
        let place = shaper.volumes.as_ptr();
        assert!(shaper.volumes.is_empty() && shaper.lots.is_empty());
        assert_eq!(shaper.counters(7), Some(VolumeCounters::default()), "as in use, only unused");
        assert_eq!(shaper.remove_volume(7, &mut |_| {}), Some(VolumeCounters::default()));
        assert!(shaper.balances(0, ROOM - 1).is_some() && shaper.volumes.is_empty());
        let cost = Cost { bytes: 100, packets: 1, offset: None };
        assert!(matches!(shaper.admit(0, 7, Lane::Forward, cost, 1), Admission::Pass(1)));
        assert_eq!(shaper.counters(7).map(|counters| counters.admitted_bytes), Some(100));
        assert_eq!((shaper.volumes.len(), shaper.lots.len()), (8, 8));
        assert!(matches!(shaper.admit(0, ROOM, Lane::Forward, cost, 2), Admission::Full(2)));
        assert!(shaper.counters(ROOM).is_none() && shaper.balances(0, ROOM).is_none());
        shaper.set_volume(0, ROOM - 1, &Limits::unlimited()).unwrap();
        assert_eq!(shaper.volumes.as_ptr(), place, "no worker copies a table while packets wait");
        assert_eq!(shaper.volumes.len(), ROOM as usize);
    }
}
