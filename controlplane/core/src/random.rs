//! Randomness that a seed gives (SplitMix64): the core draws from nowhere else, so that it can be replayed.

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Two sequences with different `stream` have nothing to do with each other.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xD134_2543_DE82_EF95));
        random.next_u64();
        random
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_they_spread() {
        let (mut one, mut again, mut other) = (Random::new(7, 1), Random::new(7, 1), Random::new(7, 2));
        let mut counts = [0_u32; 10];
        let mut equal = 0;
        for _ in 0..10_000 {
            let drawn = one.below(10);
            assert_eq!(drawn, again.below(10));
            equal += u32::from(drawn == other.below(10));
            counts[drawn as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1_150).contains(&count)), "{counts:?}");
        assert!((850..1_150).contains(&equal), "{equal}");
        assert_eq!(one.below(0), 0);
    }
}
