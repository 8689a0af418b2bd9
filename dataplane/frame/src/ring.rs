//! A ring between two threads: one produces, one consumes, nobody waits.
//!
//! Each side keeps its own index in its own cache line and a *copy* of the other side's index, which it
//! reads again only when the copy says full (or empty). As long as the ring is neither, the two threads
//! exchange no cache line but those of the items and one index per burst (P. P. C. Lee, T. Bu,
//! G. Chandranmenon: "A Lock-Free, Cache-Efficient Multi-Core Synchronization Mechanism for Line-Rate Network
//! Traffic Monitoring", IPDPS 2010).
//!
//! Invariants: `head <= tail <= head + capacity` (indices run freely and wrap); slots in `head..tail` hold an
//! item and belong to the consumer, all others belong to the producer; an index is published only after the
//! slots that it hands over were written or read.

use std::mem::MaybeUninit;

use arrayvec::ArrayVec;

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering, fence},
    },
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering, fence},
};

#[cfg(not(loom))]
#[derive(Debug)]
struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }
    #[inline(always)]
    fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }
    #[inline(always)]
    fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Two cache lines: the prefetcher of current x86 processors fetches lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

#[derive(Debug)]
struct Shared<T> {
    /// Next slot to read; written by the consumer.
    head: Padded<AtomicUsize>,
    /// Next slot to write; written by the producer.
    tail: Padded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is touched only by the side that the indices give it to, so sharing the ring sends items
// from one thread to another and never shares one.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    #[inline(always)]
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // A power of two of slots: the mask is the last valid index, so the check costs nothing extra.
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.tail.0.load(Ordering::Relaxed);
        let mut head = self.head.0.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: slots in `head..tail` hold an item, and both sides are gone.
            self.slot(head).with_mut(|slot| unsafe { slot.cast::<T>().drop_in_place() });
            head = head.wrapping_add(1);
        }
    }
}

/// The writing end of a [`ring`].
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    /// A value that `head` once had.
    head_seen: usize,
}

/// The reading end of a [`ring`].
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// A value that `tail` once had.
    tail_seen: usize,
}

/// A ring of `capacity` items, rounded up to a power of two.
///
/// Items that are still in the ring when both ends are gone are dropped. A ring of [`crate::Frame`]s must
/// therefore be emptied into a pool before its second end goes.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    ring_at(capacity, 0)
}

/// A ring whose indices begin at `first`.
fn ring_at<T: Send>(capacity: usize, first: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.max(1).next_power_of_two();
    let shared = Arc::new(Shared {
        head: Padded(AtomicUsize::new(first)),
        tail: Padded(AtomicUsize::new(first)),
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    (
        Producer { shared: Arc::clone(&shared), tail: first, head_seen: first },
        Consumer { shared, head: first, tail_seen: first },
    )
}

/// True when the other end is gone; everything that it did to the ring is then visible.
fn is_alone<T>(shared: &Arc<Shared<T>>) -> bool {
    if Arc::strong_count(shared) > 1 {
        return false;
    }
    // Acquire: pairs with the release with which the other end's `Arc` was dropped.
    fence(Ordering::Acquire);
    true
}

impl<T> Producer<T> {
    /// Items that the ring holds when full.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// Free slots: at least `want` of them, or all that there are.
    #[inline(always)]
    fn room(&mut self, want: usize) -> usize {
        let room = self.capacity() - self.tail.wrapping_sub(self.head_seen);
        if room >= want {
            return room;
        }
        // Acquire: the consumer's reads of the slots come before our writes into them.
        self.head_seen = self.shared.head.0.load(Ordering::Acquire);
        self.capacity() - self.tail.wrapping_sub(self.head_seen)
    }

    #[inline(always)]
    fn write(&mut self, item: T) {
        // SAFETY: the caller saw room, so the slot at `tail` is the producer's and holds no item.
        self.shared.slot(self.tail).with_mut(|slot| unsafe { slot.cast::<T>().write(item) });
        self.tail = self.tail.wrapping_add(1);
    }

    #[inline(always)]
    fn publish(&self) {
        // Release: the items are visible before the index that hands them over.
        self.shared.tail.0.store(self.tail, Ordering::Release);
    }

    /// Appends an item, or gives it back when the ring is full.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(item);
        }
        self.write(item);
        self.publish();
        Ok(())
    }

    /// Appends items from the front of the batch, as many as fit, and publishes them at once. The rest stay
    /// in the batch, in order. Returns how many were taken.
    #[inline]
    pub fn push_batch<const N: usize>(&mut self, batch: &mut ArrayVec<T, N>) -> usize {
        let count = self.room(batch.len()).min(batch.len());
        if count == 0 {
            return 0;
        }
        for item in batch.drain(..count) {
            self.write(item);
        }
        self.publish();
        count
    }

    /// Items in the ring. May be fewer by the time the caller looks.
    #[inline]
    pub fn len(&self) -> usize {
        self.tail.wrapping_sub(self.shared.head.0.load(Ordering::Acquire))
    }

    /// True when the consumer has taken everything.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when the consumer is gone: whatever is pushed will never be read.
    #[inline]
    pub fn is_abandoned(&self) -> bool {
        is_alone(&self.shared)
    }
}

impl<T> Consumer<T> {
    /// Items that the ring holds when full.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// Items to read: at least `want` of them, or all that there are.
    #[inline(always)]
    fn ready(&mut self, want: usize) -> usize {
        let ready = self.tail_seen.wrapping_sub(self.head);
        if ready >= want {
            return ready;
        }
        // Acquire: the producer's writes of the items come before our reads.
        self.tail_seen = self.shared.tail.0.load(Ordering::Acquire);
        self.tail_seen.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn read(&mut self) -> T {
        // SAFETY: the caller saw an item ready, so the slot at `head` is the consumer's and initialised; the
        // index moves on, so it is read once.
        let item = self.shared.slot(self.head).with(|slot| unsafe { slot.cast::<T>().read() });
        self.head = self.head.wrapping_add(1);
        item
    }

    #[inline(always)]
    fn publish(&self) {
        // Release: our reads of the slots come before the index that gives them back.
        self.shared.head.0.store(self.head, Ordering::Release);
    }

    /// Takes the oldest item.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.ready(1) == 0 {
            return None;
        }
        let item = self.read();
        self.publish();
        Some(item)
    }

    /// Appends the oldest items to the batch, as many as there are and fit. Returns how many.
    #[inline]
    pub fn pop_batch<const N: usize>(&mut self, batch: &mut ArrayVec<T, N>) -> usize {
        let want = batch.remaining_capacity();
        let count = self.ready(want).min(want);
        if count == 0 {
            return 0;
        }
        for _ in 0..count {
            let item = self.read();
            batch.push(item);
        }
        self.publish();
        count
    }

    /// Items in the ring. May be more by the time the caller looks.
    #[inline]
    pub fn len(&self) -> usize {
        self.shared.tail.0.load(Ordering::Acquire).wrapping_sub(self.head)
    }

    /// True when the producer has published nothing that was not taken.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when the producer is gone: what is in the ring is all that will ever come.
    #[inline]
    pub fn is_abandoned(&self) -> bool {
        is_alone(&self.shared)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_once_and_in_order_across_the_wrap_of_the_indices() {
        let (mut producer, mut consumer) = ring_at::<u32>(4, usize::MAX - 5);
        for round in 0..10 {
            for item in 0..4 {
                assert_eq!(producer.push(4 * round + item), Ok(()));
            }
            assert_eq!(producer.push(99), Err(99));
            assert_eq!((producer.len(), consumer.len()), (4, 4));
            for item in 0..4 {
                assert_eq!(consumer.pop(), Some(4 * round + item));
            }
            assert_eq!(consumer.pop(), None);
            assert!(producer.is_empty() && consumer.is_empty());
        }
    }

    #[test]
    fn a_batch_goes_in_as_far_as_it_fits_and_keeps_the_rest_in_order() {
        let (mut producer, mut consumer) = ring_at::<u32>(8, usize::MAX - 3);
        let mut batch: ArrayVec<u32, 32> = (0..6).collect();
        assert_eq!(producer.push_batch(&mut batch), 6);
        assert!(batch.is_empty());
        assert_eq!(producer.push_batch(&mut batch), 0);
        batch.extend(6..12);
        assert_eq!(producer.push_batch(&mut batch), 2);
        assert_eq!(batch.as_slice(), [8, 9, 10, 11]);
        assert_eq!(producer.push_batch(&mut batch), 0);

        let mut out: ArrayVec<u32, 5> = ArrayVec::new();
        out.push(77);
        assert_eq!(consumer.pop_batch(&mut out), 4);
        assert_eq!(out.as_slice(), [77, 0, 1, 2, 3]);
        assert_eq!(consumer.pop_batch(&mut out), 0);
        out.clear();
        assert_eq!(consumer.pop_batch(&mut out), 4);
        assert_eq!(out.as_slice(), [4, 5, 6, 7]);
        out.clear();
        assert_eq!(producer.push_batch(&mut batch), 4);
        assert_eq!(consumer.pop_batch(&mut out), 4);
        assert_eq!(out.as_slice(), [8, 9, 10, 11]);
    }

    #[test]
    fn what_is_left_in_the_ring_is_dropped_with_its_second_end() {
        let item = std::rc::Rc::new(());
        struct SendRc(#[expect(dead_code)] std::rc::Rc<()>);
        // SAFETY: the ring stays on this thread.
        unsafe impl Send for SendRc {}
        let (mut producer, mut consumer) = ring_at(4, usize::MAX - 1);
        for _ in 0..4 {
            assert!(producer.push(SendRc(item.clone())).is_ok());
        }
        drop(consumer.pop());
        assert!(!consumer.is_abandoned());
        drop(producer);
        assert!(consumer.is_abandoned());
        assert_eq!(std::rc::Rc::strong_count(&item), 4);
        drop(consumer);
        assert_eq!(std::rc::Rc::strong_count(&item), 1);
    }

    #[test]
    fn the_capacity_is_a_power_of_two_and_at_least_one() {
        for (asked, made) in [(0, 1), (1, 1), (2, 2), (3, 4), (1000, 1024)] {
            let (producer, consumer) = ring::<u8>(asked);
            assert_eq!((producer.capacity(), consumer.capacity()), (made, made));
        }
    }

    #[test]
    fn two_threads_hand_over_every_item_in_order() {
        let count: u32 = if cfg!(miri) { 300 } else { 1_000_000 };
        let (mut producer, mut consumer) = ring::<u32>(64);
        let reader = std::thread::spawn(move || {
            let mut next = 0;
            let mut batch: ArrayVec<u32, 32> = ArrayVec::new();
            while next < count {
                if consumer.pop_batch(&mut batch) == 0 {
                    std::thread::yield_now();
                }
                for item in batch.drain(..) {
                    assert_eq!(item, next);
                    next += 1;
                }
            }
        });
        let mut next = 0;
        let mut batch: ArrayVec<u32, 32> = ArrayVec::new();
        while next < count || !batch.is_empty() {
            while next < count && batch.try_push(next).is_ok() {
                next += 1;
            }
            if producer.push_batch(&mut batch) == 0 {
                std::thread::yield_now();
            }
        }
        reader.join().expect("the reader saw every item in order");
    }
}
