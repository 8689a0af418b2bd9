//! Which I/Os are followed: one in so many, at random distances, so that no pattern of a host (three writes, then a flush)
//! hides behind a period.

/// Chooses the I/Os of one volume that are followed.
#[derive(Clone, Debug)]
pub struct Sampler {
    one_in: u32,
    /// How many pass before the next one is chosen.
    left: u32,
    random: u64,
}

impl Sampler {
    /// Chooses one in `one_in`, none if that is 0. Samplers with other seeds choose others.
    pub fn new(one_in: u32, seed: u64) -> Sampler {
        // No state of all zeroes, from which the generator would not move.
        let mut sampler =
            Sampler { one_in: 0, left: 0, random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 };
        sampler.set(one_in);
        sampler
    }

    /// Chooses one in `one_in` from now on.
    pub fn set(&mut self, one_in: u32) {
        if one_in != self.one_in {
            self.one_in = one_in;
            self.left = self.distance();
        }
    }

    /// Some are chosen.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.one_in > 0
    }

    /// Whether the next I/O is followed.
    #[inline]
    pub fn choose(&mut self) -> bool {
        if self.one_in == 0 {
            return false;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                false
            }
            None => {
                self.left = self.distance();
                true
            }
        }
    }

    /// Uniform between 0 and twice the mean.
    fn distance(&mut self) -> u32 {
        let Some(mean @ 1..) = self.one_in.checked_sub(1) else { return 0 };
        // Marsaglia's xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let range = 2 * u64::from(mean.min(u32::MAX / 2)) + 1;
        ((u128::from(self.random) * u128::from(range)) >> 64) as u32
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_was_asked_for_in_every_place_of_a_pattern() {
        const IOS: usize = 400_000;
        for one_in in [1, 2, 64] {
            let mut sampler = Sampler::new(one_in, 5);
            let mut chosen = [0_usize; 4];
            (0..IOS).for_each(|number| chosen[number % 4] += usize::from(sampler.choose()));
            let expected = IOS / 4 / one_in as usize;
            for count in chosen {
                assert!(count.abs_diff(expected) <= expected / 10, "1 in {one_in}: {chosen:?}");
            }
        }
    }

    #[test]
    fn off_chooses_none_and_a_change_counts_at_once() {
        let mut sampler = Sampler::new(0, 1);
        assert!(!sampler.is_on() && (0..1000).all(|_| !sampler.choose()));
        sampler.set(1);
        assert!(sampler.is_on() && (0..1000).all(|_| sampler.choose()));
        sampler.set(u32::MAX);
        sampler.set(1);
        assert!(sampler.choose(), "what was left of a long distance is forgotten");
    }
}
