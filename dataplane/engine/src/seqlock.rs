//! A record of many words that one thread writes and any thread reads whole, without a lock: a seqlock.
//!
//! The writer never waits. It makes the sequence odd, writes the words, and makes it even again. A reader
//! that sees the same even sequence before and after has read one record; otherwise it tries again, a
//! bounded number of times. All words are atomics with relaxed ordering, so there is no data race and no
//! `unsafe`; the fences order them against the sequence (H.-J. Boehm, "Can Seqlocks Get Along With
//! Programming Language Memory Models?", 2012). `tests/loom_seqlock.rs` checks the interleavings.

use crate::sync::{AtomicU64, Ordering, fence};

/// The shared words.
#[derive(Debug)]
#[repr(align(128))]
pub struct Seqlock {
    sequence: AtomicU64,
    words: Box<[AtomicU64]>,
}

impl Seqlock {
    /// `words` words, all 0.
    pub fn new(words: usize) -> Self {
        Self { sequence: AtomicU64::new(0), words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// How many words the record has.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether the record has no words.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Writes one record: `write` is called with a [`Writer`] for the words. One thread only: two writers
    /// at once make records that mix theirs (never anything worse).
    #[inline]
    pub fn publish(&self, write: impl FnOnce(&mut Writer<'_>)) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the reader's acquire fence: whoever saw a word from below sees the odd sequence.
        fence(Ordering::Release);
        write(&mut Writer { words: &self.words });
        // Pairs with the reader's first load: whoever sees this sees all words.
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Reads one whole record into `out` (as many words as fit). False if the writer was in the way
    /// [`TRIES`] times; `out` is then worth nothing.
    #[must_use = "false means that nothing was read"]
    pub fn read(&self, out: &mut [u64]) -> bool {
        for _ in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                for (to, from) in out.iter_mut().zip(self.words.iter()) {
                    *to = from.load(Ordering::Relaxed);
                }
                fence(Ordering::Acquire);
                if self.sequence.load(Ordering::Relaxed) == before {
                    return true;
                }
            }
            crate::sync::relax();
        }
        false
    }
}

/// Writes the words of one record in order.
#[derive(Debug)]
pub struct Writer<'a> {
    words: &'a [AtomicU64],
}

impl Writer<'_> {
    /// Writes the next word. Words beyond the record are ignored.
    #[inline(always)]
    pub fn word(&mut self, value: u64) {
        if let Some((word, rest)) = self.words.split_first() {
            word.store(value, Ordering::Relaxed);
            self.words = rest;
        }
    }

    /// Writes the next words.
    #[inline(always)]
    pub fn words(&mut self, values: &[u64]) {
        let (now, rest) = self.words.split_at(values.len().min(self.words.len()));
        for (word, &value) in now.iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        self.words = rest;
    }
}

/// How often a reader tries.
#[cfg(not(loom))]
pub const TRIES: usize = 4096;
/// How often a reader tries: few, so that the model stays small.
#[cfg(loom)]
pub const TRIES: usize = 2;
