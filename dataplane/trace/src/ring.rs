//! A ring of records that one thread writes and another reads while it is written to. The oldest records are
//! overwritten; the writer neither waits nor knows whether anybody reads.
//!
//! Each record is a seqlock of its own: the writer makes its sequence odd, writes the words, and makes it even again. The
//! sequence also says which record it is (twice its number and two), so that a reader knows whether what it finds is
//! what it came for. All words are atomics with relaxed ordering, hence no data race and no `unsafe`; the fences
//! order them against the sequence (H.-J. Boehm, "Can Seqlocks Get Along With Programming Language Memory Models?", 2012).
//! `tests/loom_ring.rs` checks the interleavings.
//!
//! Invariants: what a reader gets is whole and in order; whatever it does not get is counted in [`Reader::lost`].

use std::sync::Arc;

use arrayvec::ArrayVec;
use block::TraceId;

use crate::record::{RUN_MAX, Record, Stage, WORDS, from_words, run_words};
use crate::sync::{AtomicU64, Ordering, fence};

/// Makes a ring of at least `records` records, rounded up to a power of two, at least 2.
pub fn ring(records: usize) -> (Writer, Reader) {
    let records = records.clamp(2, RECORDS_MAX).next_power_of_two();
    let shared = Arc::new(Shared {
        written: Line(AtomicU64::new(0)),
        places: (0..records).map(|_| Place::default()).collect(),
    });
    let reader = Reader { shared: Arc::clone(&shared), next: 0, lost: 0, read: ArrayVec::new() };
    (Writer { shared, next: 0 }, reader)
}

/// Most records of a ring: 1 GiB.
const RECORDS_MAX: usize = 1 << 24;

#[derive(Debug)]
#[repr(align(128))]
struct Line(AtomicU64);

/// A record and its sequence: 64 bytes.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    sequence: AtomicU64,
    words: [AtomicU64; WORDS],
}

#[derive(Debug)]
struct Shared {
    /// How many records were written.
    written: Line,
    places: Box<[Place]>,
}

impl Shared {
    fn place(&self, number: u64) -> &Place {
        &self.places[number as usize & (self.places.len() - 1)]
    }
}

/// The writing end.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    next: u64,
}

impl Writer {
    /// Writes a record, over the oldest if the ring is full. Readers see it after [`Writer::publish`].
    #[inline]
    pub fn write(&mut self, record: &Record) {
        self.write_words(record.words());
    }

    /// Writes spans of an I/O that lie end to end, the first of them with number `first` and from `t0_ns` on; each with
    /// the time of its end.
    #[inline]
    pub fn write_spans(&mut self, trace: TraceId, first: u16, t0_ns: u64, spans: &[(Stage, u64)]) {
        let (mut first, mut t0_ns) = (first, t0_ns);
        for run in spans.chunks(RUN_MAX) {
            self.write_words(run_words(trace, first, t0_ns, run));
            first += run.len() as u16;
            t0_ns = run.last().map_or(t0_ns, |(_, t1_ns)| *t1_ns);
        }
    }

    #[inline(always)]
    fn write_words(&mut self, words: [u64; WORDS]) {
        let place = self.shared.place(self.next);
        place.sequence.store(self.next * 2 + 1, Ordering::Relaxed);
        // Pairs with the reader's acquire fence: whoever saw a word from below sees the odd sequence.
        fence(Ordering::Release);
        for (word, value) in place.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        // Pairs with the reader's first load: whoever sees this sees all words.
        place.sequence.store(self.next * 2 + 2, Ordering::Release);
        self.next += 1;
    }

    /// Shows what was written.
    #[inline]
    pub fn publish(&mut self) {
        self.shared.written.0.store(self.next, Ordering::Release);
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    next: u64,
    lost: u64,
    /// Read and not handed out yet, the last first.
    read: ArrayVec<Record, RUN_MAX>,
}

impl Reader {
    /// The next record there is. `None` when all were read.
    pub fn read(&mut self) -> Option<Record> {
        while self.read.is_empty() {
            self.read = from_words(self.read_words()?);
            self.read.reverse();
        }
        self.read.pop()
    }

    fn read_words(&mut self) -> Option<[u64; WORDS]> {
        let capacity = self.shared.places.len() as u64;
        loop {
            let written = self.shared.written.0.load(Ordering::Acquire);
            if self.next >= written {
                return None;
            }
            if written - self.next > capacity {
                self.lose(written - capacity);
            }
            let place = self.shared.place(self.next);
            let wanted = self.next * 2 + 2;
            if place.sequence.load(Ordering::Acquire) == wanted {
                let words = std::array::from_fn(|at| place.words[at].load(Ordering::Relaxed));
                fence(Ordering::Acquire);
                if place.sequence.load(Ordering::Relaxed) == wanted {
                    self.next += 1;
                    return Some(words);
                }
            }
            // It was overwritten before it was read; those next to it are about to be.
            self.lose(self.next + 1);
        }
    }

    /// Records that were overwritten before they were read.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Records that wait to be read, and how many the ring holds.
    pub fn backlog(&self) -> (u64, u64) {
        let capacity = self.shared.places.len() as u64;
        let written = self.shared.written.0.load(Ordering::Acquire);
        ((written - self.next).min(capacity), capacity)
    }

    fn lose(&mut self, until: u64) {
        self.lost += until - self.next;
        self.next = until;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn record(number: u64) -> Record {
        // Every word depends on the number, so that a torn record shows.
        Record {
            trace: TraceId(number),
            link: number * 3,
            t0_ns: number * 5,
            t1_ns: number * 7,
            detail: !number,
            ..Record::default()
        }
    }

    #[test]
    fn what_fits_is_read_in_order_and_the_newest_stay() {
        let (mut writer, mut reader) = ring(4);
        assert_eq!((reader.read(), reader.backlog()), (None, (0, 4)));
        (0..3).for_each(|number| writer.write(&record(number)));
        assert_eq!(reader.read(), None, "not shown yet");
        writer.publish();
        assert_eq!(reader.backlog(), (3, 4));
        (0..3).for_each(|number| assert_eq!(reader.read(), Some(record(number))));
        (3..13).for_each(|number| writer.write(&record(number)));
        writer.publish();
        assert_eq!(reader.backlog(), (4, 4));
        (9..13).for_each(|number| assert_eq!(reader.read(), Some(record(number))));
        assert_eq!((reader.read(), reader.lost()), (None, 6));
    }

    /// The writer is never held up: it writes all of its records whether the reader reads, pauses or is gone.
    #[test]
    fn a_reader_beside_a_writer_gets_whole_records_or_counts_them_lost() {
        const RECORDS: u64 = 2_000_000;
        let (mut writer, mut reader) = ring(1024);
        let writing = std::thread::spawn(move || {
            for number in 0..RECORDS {
                writer.write(&record(number));
                writer.publish();
            }
        });
        let (mut read, mut last) = (0, None);
        loop {
            let ended = writing.is_finished();
            while let Some(found) = reader.read() {
                assert_eq!(found, record(found.trace.0), "torn");
                assert!(last < Some(found.trace.0), "out of order");
                (read, last) = (read + 1, Some(found.trace.0));
            }
            if ended {
                break;
            }
        }
        writing.join().unwrap();
        assert_eq!(read + reader.lost(), RECORDS);
        assert_eq!(last, Some(RECORDS - 1), "the newest is kept");
    }
}
