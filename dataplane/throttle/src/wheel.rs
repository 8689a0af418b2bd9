//! A hierarchical timer wheel: one timer per id, set, moved, cancelled and expired in constant time.
//!
//! Varghese and Lauck's scheme 7. Time is cut into ticks of 1.024 us; nine levels of 64 slots each cover
//! all of `u64`. An id sits at the level of the highest 6-bit digit in which its tick differs from the
//! wheel's own, so every occupied slot of a lower level is earlier than any of a higher one, and the
//! first occupied slot is two bit scans away. Lists are intrusive, in arrays of the size given at
//! construction.
//!
//! Invariants: an id is in at most one slot; `levels` has a bit exactly for the levels with a bit in
//! `occupied`, and that exactly for the slots with an id; [`Wheel::expire`] yields an id at the first call
//! whose `now_ns` has reached its deadline, never before.

const TICK_SHIFT: u32 = 10;
const DIGIT: u32 = 6;
const SLOTS: usize = 1 << DIGIT;
const LEVELS: usize = (64 - TICK_SHIFT as usize).div_ceil(DIGIT as usize);
/// How many ids of a slot in the future `next_deadline_ns` looks at before it settles for the slot's beginning.
const SCAN_MAX: usize = 8;
const NONE: u32 = u32::MAX;
const IDLE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Timer {
    deadline_ns: u64,
    prev: u32,
    next: u32,
    slot: u16,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    head: u32,
    tail: u32,
}

#[derive(Debug)]
pub(crate) struct Wheel {
    timers: Vec<Timer>,
    slots: Vec<Slot>,
    occupied: [u64; LEVELS],
    levels: u16,
    tick: u64,
}

impl Wheel {
    /// A wheel for the ids below `ids`, at `now_ns`.
    pub(crate) fn new(ids: u32, now_ns: u64) -> Wheel {
        Wheel {
            timers: vec![Timer { deadline_ns: 0, prev: NONE, next: NONE, slot: IDLE }; ids as usize],
            slots: vec![Slot { head: NONE, tail: NONE }; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            levels: 0,
            tick: now_ns >> TICK_SHIFT,
        }
    }

    /// Sets or moves the timer of `id`. A deadline in the past expires at the next call.
    pub(crate) fn set(&mut self, id: u32, deadline_ns: u64) {
        let timer = &mut self.timers[id as usize];
        if timer.slot != IDLE {
            if timer.deadline_ns == deadline_ns {
                return;
            }
            self.unlink(id);
        }
        self.timers[id as usize].deadline_ns = deadline_ns;
        self.link(id);
    }

    pub(crate) fn is_set(&self, id: u32) -> bool {
        self.timers[id as usize].slot != IDLE
    }

    /// Cancels the timer of `id`, if it is set.
    pub(crate) fn cancel(&mut self, id: u32) {
        if self.timers[id as usize].slot != IDLE {
            self.unlink(id);
        }
    }

    /// An id whose deadline is not after `now_ns`, its timer now idle; slots in order of time.
    pub(crate) fn expire(&mut self, now_ns: u64) -> Option<u32> {
        let now_tick = now_ns >> TICK_SHIFT;
        while let Some((level, slot, start)) = self.first() {
            if start > now_tick {
                break;
            }
            self.tick = self.tick.max(start);
            if level > 0 {
                self.cascade(slot);
                continue;
            }
            return match self.due(slot, now_ns) {
                Some(id) => {
                    self.unlink(id);
                    Some(id)
                }
                None => None,
            };
        }
        self.tick = self.tick.max(now_tick);
        None
    }

    /// The next deadline, or, in a crowded slot far away, a moment shortly before it.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        let (level, slot, start) = self.first()?;
        let mut id = self.slots[slot].head;
        let mut earliest = u64::MAX;
        // The slot of the present may already have begun: only an exact answer leads on.
        let scan_max = if level == 0 { usize::MAX } else { SCAN_MAX };
        for _ in 0..scan_max {
            let timer = &self.timers[id as usize];
            earliest = earliest.min(timer.deadline_ns);
            id = timer.next;
            if id == NONE {
                return Some(earliest);
            }
        }
        Some(earliest.min(start << TICK_SHIFT))
    }

    /// The earliest occupied slot: its level, its index, and the tick at which it begins.
    fn first(&self) -> Option<(usize, usize, u64)> {
        if self.levels == 0 {
            return None;
        }
        let level = self.levels.trailing_zeros() as usize;
        let digit = self.occupied[level].trailing_zeros();
        let shift = DIGIT * level as u32;
        let above = self.tick >> shift >> DIGIT << DIGIT | u64::from(digit);
        Some((level, level * SLOTS + digit as usize, above << shift))
    }

    /// The first id in a slot of level 0 whose time has come.
    fn due(&self, slot: usize, now_ns: u64) -> Option<u32> {
        let mut id = self.slots[slot].head;
        while id != NONE && self.timers[id as usize].deadline_ns > now_ns {
            id = self.timers[id as usize].next;
        }
        (id != NONE).then_some(id)
    }

    /// Spreads a slot that has become the present over the levels below.
    fn cascade(&mut self, slot: usize) {
        let mut id = self.slots[slot].head;
        while id != NONE {
            let next = self.timers[id as usize].next;
            self.unlink(id);
            self.link(id);
            id = next;
        }
    }

    fn link(&mut self, id: u32) {
        let tick = (self.timers[id as usize].deadline_ns >> TICK_SHIFT).max(self.tick);
        let differ = tick ^ self.tick;
        let level = (63 - (differ | 1).leading_zeros()) / DIGIT;
        let digit = tick >> (DIGIT * level) & (SLOTS as u64 - 1);
        let slot = level as usize * SLOTS + digit as usize;
        let tail = self.slots[slot].tail;
        let timer = &mut self.timers[id as usize];
        (timer.prev, timer.next, timer.slot) = (tail, NONE, slot as u16);
        self.slots[slot].tail = id;
        if tail == NONE {
            self.slots[slot].head = id;
            self.occupied[level as usize] |= 1 << digit;
            self.levels |= 1 << level;
        } else {
            self.timers[tail as usize].next = id;
        }
    }

    fn unlink(&mut self, id: u32) {
        let Timer { prev, next, slot, .. } = self.timers[id as usize];
        let slot = slot as usize;
        match prev {
            NONE => self.slots[slot].head = next,
            prev => self.timers[prev as usize].next = next,
        }
        match next {
            NONE => self.slots[slot].tail = prev,
            next => self.timers[next as usize].prev = prev,
        }
        if self.slots[slot].head == NONE {
            let level = slot / SLOTS;
            self.occupied[level] &= !(1 << (slot % SLOTS));
            if self.occupied[level] == 0 {
                self.levels &= !(1 << level);
            }
        }
        self.timers[id as usize].slot = IDLE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Cancel(u32),
        Advance(u64),
    }

    fn span() -> impl Strategy<Value = u64> {
        // Every level gets its share: a random number of bits, then random bits.
        (0u32..62, any::<u64>()).prop_map(|(bits, x)| x & ((1 << bits) - 1))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..40, span()).prop_map(|(id, after)| Step::Set(id, after)),
            1 => (0u32..40).prop_map(Step::Cancel),
            3 => span().prop_map(Step::Advance),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        /// Against a map from id to deadline: what is due comes out, all of it and nothing else.
        #[test]
        fn wheel_equals_a_map(start in span(), steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new(40, start);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = start;
            for step in steps {
                match step {
                    Step::Set(id, after) => {
                        wheel.set(id, now.saturating_add(after));
                        model.insert(id, now.saturating_add(after));
                    }
                    Step::Cancel(id) => {
                        wheel.cancel(id);
                        model.remove(&id);
                    }
                    Step::Advance(by) => now = now.saturating_add(by),
                }
                let exact = model.values().min().copied();
                prop_assert_eq!(wheel.next_deadline_ns().is_some(), exact.is_some());
                if let (Some(hint), Some(exact)) = (wheel.next_deadline_ns(), exact) {
                    prop_assert!(hint <= exact);
                }
                while let Some(id) = wheel.expire(now) {
                    let deadline = model.remove(&id);
                    prop_assert!(deadline.is_some_and(|d| d <= now), "{} at {} of {:?}", id, now, deadline);
                }
                prop_assert!(model.values().all(|&d| d > now), "late at {}: {:?}", now, model);
            }
        }
    }

    #[test]
    fn following_the_hint_always_arrives() {
        let mut wheel = Wheel::new(100, 0);
        for id in 0..100 {
            wheel.set(id, 5_000_000_000 + u64::from(id) * 7);
        }
        let (mut now, mut expired, mut wakes) = (0, 0, 0);
        while let Some(at) = wheel.next_deadline_ns() {
            now = at.max(now);
            wakes += 1;
            while wheel.expire(now).is_some() {
                expired += 1;
            }
        }
        assert_eq!((expired, now), (100, 5_000_000_693));
        assert!(wakes <= 100 + LEVELS, "{wakes}");
    }

    #[test]
    fn the_end_of_time_is_reached() {
        let mut wheel = Wheel::new(1, 0);
        wheel.set(0, u64::MAX);
        assert_eq!(wheel.expire(u64::MAX - 1), None);
        assert_eq!(wheel.expire(u64::MAX), Some(0));
    }
}
