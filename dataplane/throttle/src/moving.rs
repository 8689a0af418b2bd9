//! A volume on its way from one shaper to another: its balances, its counters and what waits go along, so that the
//! way gains and costs nothing.
//!
//! Invariant: between [`Shaper::take_volume`] and [`Shaper::put_volume`] time goes on for the volume's buckets, and
//! for nothing else of it.

use crate::drr::Seat;
use crate::limits::Limits;
use crate::parking::{Lot, Waiting};
use crate::shaper::Shaper;
use crate::tariff::Tariff;
use crate::volume::{PARKED, Volume};

/// See the module's documentation.
#[derive(Debug)]
pub struct Moving<T> {
    at_ns: u64,
    volume: Volume,
    tariff: Option<Box<Tariff>>,
    /// Without what waits.
    lot: Lot,
    weight: u64,
    /// Of each lane, in order.
    waiting: [Vec<Waiting<T>>; 2],
}

impl<T> Moving<T> {
    /// What waits.
    pub fn waiting_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.iter_mut().flatten().map(|waiting| &mut waiting.item)
    }
}

impl<T> Shaper<T> {
    /// Takes a volume out; its index is as in a new shaper. `None` outside the shaper.
    pub fn take_volume(&mut self, now_ns: u64, volume: u32) -> Option<Moving<T>> {
        if volume >= self.config.volumes_max {
            return None;
        }
        self.tick(now_ns);
        self.reach(volume);
        self.unseat(volume);
        self.wheel.cancel(volume);
        let at = volume as usize;
        let mut waiting = [Vec::new(), Vec::new()];
        for (queue, waiting) in self.lots[at].lanes.iter_mut().zip(&mut waiting) {
            waiting.extend(std::iter::from_fn(|| self.arena.pop(queue)));
        }
        for Waiting { request, .. } in waiting.iter().flatten() {
            self.parked.items -= 1;
            self.parked.bytes -= u64::from(request.units[0]);
        }
        let seat = std::mem::replace(&mut self.seats[at], Seat::new(Limits::unlimited().weight()));
        Some(Moving {
            at_ns: self.now_ns,
            volume: std::mem::replace(&mut self.volumes[at], Volume::unlimited(self.now_ns)),
            tariff: self.tariffs[at].take(),
            lot: std::mem::replace(&mut self.lots[at], Lot::new()),
            weight: seat.weight(),
            waiting,
        })
    }

    /// Puts a volume in. Its group is the one of that number here. What waited and finds no room, because this
    /// shaper parks less or has no such volume, comes back.
    pub fn put_volume(&mut self, now_ns: u64, volume: u32, moving: Moving<T>) -> Vec<T> {
        let Moving { at_ns, volume: state, tariff, lot, weight, waiting } = moving;
        let mut back = Vec::new();
        if volume >= self.config.volumes_max {
            back.extend(waiting.into_iter().flatten().map(|waiting| waiting.item));
            return back;
        }
        // The clocks of two shapers may differ a little; what waits never waited less than nothing.
        self.tick(now_ns.max(at_ns));
        self.reach(volume);
        let at = volume as usize;
        (self.volumes[at], self.tariffs[at], self.lots[at]) = (state, tariff, lot);
        self.seats[at] = Seat::new(weight);
        for (lane, waiting) in waiting.into_iter().enumerate() {
            for one in waiting {
                let bytes = u64::from(one.request.units[0]);
                match self.arena.push(&mut self.lots[at].lanes[lane], one) {
                    Ok(()) => {
                        self.parked.items += 1;
                        self.parked.bytes += bytes;
                    }
                    Err(one) => back.push(one.item),
                }
            }
        }
        self.volumes[at].flags &= !PARKED;
        if !self.lots[at].is_empty() {
            self.volumes[at].flags |= PARKED;
            self.plan(volume);
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Admission, Cost, Lane, ShaperConfig};
    use crate::limits::{Burst, DimLimits, Work};

    fn shaper() -> Shaper<u32> {
        Shaper::new(ShaperConfig { volumes_max: 8, groups_max: 2, parked_items_max: 64 }, 0)
    }

    fn limits() -> Limits {
        let packets = DimLimits {
            burst: Some(Burst { cap_units: 40, fill_rate: 900 }),
            work: Some(Work::at(2_000)),
            peak_rate: Some(40_000),
            ..DimLimits::default()
        };
        Limits { packets, ..Limits::unlimited() }
    }

    /// One request of random size each 100 us into the volume in `shapers[here]`; what passes or is released, and when.
    fn play(shapers: &mut [Shaper<u32>; 2], moves: bool) -> (Vec<(u64, u32)>, Moving<u32>) {
        let (mut here, mut out) = (0, Vec::new());
        shapers[0].set_volume(0, 3, &limits()).unwrap();
        for number in 0..2_000_u32 {
            let now_ns = u64::from(number) * 100_000;
            let cost = Cost { bytes: 4096, packets: 1 + number * 7 % 5, offset: None };
            if moves && number % 2 == 1 {
                let moving = shapers[here].take_volume(now_ns, 3).unwrap();
                here = 1 - here;
                // By a clock that may be a little behind.
                assert!(shapers[here].put_volume(now_ns - u64::from(number % 80), 3, moving).is_empty());
            }
            if number % 3 == 0
                && let Admission::Pass(item) = shapers[here].admit(now_ns, 3, Lane::Forward, cost, number)
            {
                out.push((now_ns, item));
            }
            shapers[here].release(now_ns, usize::MAX, &mut |released| out.push((now_ns, released.item)));
        }
        (out, shapers[here].take_volume(200_000_000, 3).unwrap())
    }

    #[test]
    fn a_volume_that_moves_a_thousand_times_gets_what_one_that_stays_gets() {
        let (moved, left) = play(&mut [shaper(), shaper()], true);
        let (stayed, kept) = play(&mut [shaper(), shaper()], false);
        assert!(moved.len() > 300 && moved.iter().any(|(_, item)| item % 3 == 0));
        assert_eq!(moved, stayed, "the same requests at the same instants, in the same order");
        let levels = |moving: &Moving<u32>| {
            let mut volume = moving.volume;
            volume.refill(300_000_000);
            (volume.levels(0), volume.levels(1), volume.admitted)
        };
        assert_eq!(levels(&left), levels(&kept), "to the nano-token");
        assert_eq!(left.lot.parked_total, kept.lot.parked_total);
    }

    #[test]
    fn what_waits_goes_along_or_comes_back() {
        let (mut from, mut to) = (shaper(), shaper());
        from.set_volume(0, 3, &limits()).unwrap();
        let cost = Cost { bytes: 10, packets: 5_000, offset: None };
        let admitted =
            (0..20).filter(|&n| matches!(from.admit(0, 3, Lane::Forward, cost, n), Admission::Pass(_)));
        assert_eq!(admitted.count(), 1);
        assert_eq!(from.parked().items, 19);
        let mut moving = from.take_volume(0, 3).unwrap();
        assert_eq!((from.parked().items, from.parked().bytes, from.next_deadline_ns()), (0, 0, None));
        moving.waiting_mut().for_each(|item| *item += 100);
        assert!(to.put_volume(0, 3, moving).is_empty());
        assert_eq!(to.parked().items, 19);
        let mut first = None;
        to.release(10_000_000_000, 1, &mut |released| first = Some(released.item));
        assert_eq!(first, Some(101));
        // One with room for a single request, and one that knows no such volume.
        let moving = to.take_volume(10_000_000_000, 3).unwrap();
        let mut small = Shaper::new(ShaperConfig { volumes_max: 8, groups_max: 2, parked_items_max: 1 }, 0);
        assert_eq!(small.put_volume(0, 3, moving).len(), 17);
        let moving = small.take_volume(0, 3).unwrap();
        let mut none = Shaper::new(ShaperConfig { volumes_max: 1, groups_max: 2, parked_items_max: 1 }, 0);
        assert_eq!(none.put_volume(0, 3, moving), [102]);
        assert!(none.take_volume(0, 3).is_none());
    }
}
