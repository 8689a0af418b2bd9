//! Where requests wait: one arena of slots for the whole shaper, and in it a first-in-first-out list per
//! volume and lane.
//!
//! Invariants: nothing is allocated after construction; a slot is either on the free list or on exactly one
//! lane; `items` and `bytes` of a lane are the sums over its list.

use crate::limits::ParkLimits;
use crate::tariff::Request;

pub(crate) const NONE: u32 = u32::MAX;

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    pub(crate) item: T,
    pub(crate) request: Request,
    pub(crate) since_ns: u64,
    pub(crate) mark: bool,
}

#[derive(Debug)]
struct Slot<T> {
    waiting: Option<Waiting<T>>,
    next: u32,
}

/// The slots of all volumes.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: u32,
}

/// One list of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    head: u32,
    tail: u32,
    pub(crate) items: u32,
    pub(crate) bytes: u64,
}

impl Queue {
    const EMPTY: Queue = Queue { head: NONE, tail: NONE, items: 0, bytes: 0 };
}

/// What a volume has parked, and its counters of it.
#[derive(Clone, Debug)]
pub(crate) struct Lot {
    pub(crate) lanes: [Queue; 2],
    /// The lane whose turn it is.
    pub(crate) turn: usize,
    pub(crate) limits: ParkLimits,
    pub(crate) parked_total: u64,
    pub(crate) marked: u64,
    pub(crate) dropped: u64,
    pub(crate) parked_ns: u64,
}

impl Lot {
    pub(crate) fn new() -> Lot {
        Lot {
            lanes: [Queue::EMPTY; 2],
            turn: 0,
            limits: ParkLimits::default(),
            parked_total: 0,
            marked: 0,
            dropped: 0,
            parked_ns: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes[0].items == 0 && self.lanes[1].items == 0
    }

    /// True if `bytes` more do not fit a lane. An empty lane takes any one request, else a request larger
    /// than the bound could never wait.
    pub(crate) fn is_full(&self, lane: usize, bytes: u32) -> bool {
        let Queue { items, bytes: held, .. } = self.lanes[lane];
        items > 0 && (items >= self.limits.items_max || held + u64::from(bytes) > self.limits.bytes_max)
    }

    /// True if a lane is beyond half of its bound.
    pub(crate) fn is_congested(&self, lane: usize) -> bool {
        let Queue { items, bytes, .. } = self.lanes[lane];
        u64::from(items) * 2 > u64::from(self.limits.items_max) || bytes > self.limits.bytes_max / 2
    }
}

impl<T> Arena<T> {
    pub(crate) fn new(slots: u32) -> Arena<T> {
        let chain = |i: u32| if i + 1 < slots { i + 1 } else { NONE };
        let all = (0..slots).map(|i| Slot { waiting: None, next: chain(i) }).collect();
        Arena { slots: all, free: if slots == 0 { NONE } else { 0 } }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free == NONE
    }

    /// Appends to `queue`; gives the request back if there is no slot left.
    pub(crate) fn push(&mut self, queue: &mut Queue, waiting: Waiting<T>) -> Result<(), Waiting<T>> {
        let at = self.free;
        let Some(slot) = self.slots.get_mut(at as usize) else { return Err(waiting) };
        queue.items += 1;
        queue.bytes += u64::from(waiting.request.units[0]);
        self.free = slot.next;
        (slot.waiting, slot.next) = (Some(waiting), NONE);
        match self.slots.get_mut(queue.tail as usize) {
            Some(tail) => tail.next = at,
            None => queue.head = at,
        }
        queue.tail = at;
        Ok(())
    }

    /// What was pushed last.
    pub(crate) fn last_mut(&mut self, queue: &Queue) -> Option<&mut Waiting<T>> {
        self.slots.get_mut(queue.tail as usize)?.waiting.as_mut()
    }

    /// What waits first in `queue`.
    pub(crate) fn front(&self, queue: &Queue) -> Option<&Waiting<T>> {
        self.slots.get(queue.head as usize)?.waiting.as_ref()
    }

    /// Takes the first of `queue` for which `is_meant` holds, wherever it stands.
    pub(crate) fn remove(&mut self, queue: &mut Queue, is_meant: impl Fn(&T) -> bool) -> Option<Waiting<T>> {
        let (mut before, mut at) = (NONE, queue.head);
        while let Some(slot) = self.slots.get_mut(at as usize) {
            let next = slot.next;
            if let Some(waiting) = slot.waiting.take_if(|waiting| is_meant(&waiting.item)) {
                slot.next = self.free;
                self.free = at;
                match self.slots.get_mut(before as usize) {
                    Some(slot) => slot.next = next,
                    None => queue.head = next,
                }
                if queue.tail == at {
                    queue.tail = before;
                }
                queue.items -= 1;
                queue.bytes -= u64::from(waiting.request.units[0]);
                return Some(waiting);
            }
            (before, at) = (at, next);
        }
        None
    }

    /// Takes what waits first in `queue`.
    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<Waiting<T>> {
        let at = queue.head;
        let slot = self.slots.get_mut(at as usize)?;
        let waiting = slot.waiting.take()?;
        queue.head = slot.next;
        if queue.head == NONE {
            queue.tail = NONE;
        }
        slot.next = self.free;
        self.free = at;
        queue.items -= 1;
        queue.bytes -= u64::from(waiting.request.units[0]);
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(item: u32, bytes: u32) -> Waiting<u32> {
        Waiting { item, request: Request { units: [bytes, 1], sequential: false }, since_ns: 0, mark: false }
    }

    #[test]
    fn lists_keep_their_order_and_slots_come_back() {
        let mut arena = Arena::new(3);
        let (mut a, mut b) = (Queue::EMPTY, Queue::EMPTY);
        for round in 0..5 {
            assert!(arena.push(&mut a, waiting(round, 10)).is_ok());
            assert!(arena.push(&mut b, waiting(100, 1)).is_ok());
            assert!(arena.push(&mut a, waiting(round + 1, 20)).is_ok());
            assert!(arena.is_full());
            assert_eq!(arena.push(&mut b, waiting(7, 1)).unwrap_err().item, 7);
            assert_eq!((a.items, a.bytes, b.items), (2, 30, 1));
            assert_eq!(arena.front(&a).map(|w| w.item), Some(round));
            assert_eq!(arena.pop(&mut a).map(|w| w.item), Some(round));
            assert_eq!(arena.pop(&mut a).map(|w| w.item), Some(round + 1));
            assert_eq!(arena.pop(&mut b).map(|w| w.item), Some(100));
            assert!(arena.pop(&mut a).is_none() && arena.front(&b).is_none());
        }
        assert!(Arena::new(0).push(&mut a, waiting(0, 0)).is_err());
    }

    #[test]
    fn any_of_a_list_can_be_taken_out() {
        for meant in 0..4 {
            let mut arena = Arena::new(4);
            let mut queue = Queue::EMPTY;
            (0..4).for_each(|item| assert!(arena.push(&mut queue, waiting(item, 10)).is_ok()));
            assert!(arena.remove(&mut queue, |_| false).is_none());
            assert_eq!(arena.remove(&mut queue, |&item| item == meant).map(|w| w.item), Some(meant));
            assert_eq!((queue.items, queue.bytes), (3, 30));
            assert!(arena.push(&mut queue, waiting(9, 1)).is_ok() && arena.is_full(), "its slot is free");
            let rest: Vec<u32> = std::iter::from_fn(|| arena.pop(&mut queue).map(|w| w.item)).collect();
            assert_eq!(rest, (0..4).filter(|&item| item != meant).chain([9]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn bounds_count_items_and_bytes() {
        let mut arena = Arena::new(10);
        let mut lot = Lot::new();
        lot.limits = ParkLimits { items_max: 4, bytes_max: 100 };
        assert!(!lot.is_full(0, 1_000), "an empty lane takes any one request");
        let mut push = |lot: &mut Lot, bytes| {
            assert!(arena.push(&mut lot.lanes[0], waiting(0, bytes)).is_ok());
            lot.is_congested(0)
        };
        assert!(!push(&mut lot, 10));
        assert!(push(&mut lot, 45), "55 of 100 bytes");
        assert!(lot.is_full(0, 46) && !lot.is_full(0, 45) && !lot.is_full(1, 46));
        assert!(push(&mut lot, 0) && push(&mut lot, 0));
        assert!(lot.is_full(0, 0), "4 of 4 items");
    }
}
