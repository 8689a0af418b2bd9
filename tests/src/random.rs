//! Numbers that look random and are the same in every run.

use rand::distr::uniform::SampleUniform;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};

/// A sequence of them.
pub struct Random(SmallRng);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(SmallRng::seed_from_u64(seed))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Below `end`, which is not 0.
    pub fn below<T: SampleUniform + PartialOrd + Default>(&mut self, end: T) -> T {
        self.0.random_range(T::default()..end)
    }

    /// True in so many of hundred cases.
    pub fn chance(&mut self, of_hundred: u32) -> bool {
        self.0.random_ratio(of_hundred, 100)
    }

    /// One of them, of which there is at least one.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        all.choose(&mut self.0).expect("something to choose from")
    }
}
