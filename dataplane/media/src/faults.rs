//! Answers of a medium that come late, and failures that it did not have: for drills, from a seed.
//!
//! The layer stands between one volume and its medium, and has no clock: whoever drives it says what time it is. Dice are cast for
//! each read and write in turn. What is to be delayed is carried out at once and in its order; only its answer is kept back, so that
//! the volume's bytes are what they would be without. What is to fail is not carried out.
//!
//! Invariants: the same seed and the same requests give the same decisions; each request is answered once; answers that are kept
//! are bounded by the requests that the volume has under way.

use std::collections::VecDeque;

use block::{Act, Fault, Finished, Request};
use frame::IoBuffer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How often what goes wrong. Probabilities are between 0 and 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultSpec {
    /// The same seed makes the same decisions for the same requests.
    pub seed: u64,
    /// Probability that the answer to a read is late.
    pub read_delay: f64,
    /// Probability that the answer to a write is late.
    pub write_delay: f64,
    /// How late, ns.
    pub delay_ns: u64,
    /// Probability that a read fails.
    pub read_error: f64,
    /// Probability that a write fails.
    pub write_error: f64,
}

/// A probability that is none.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{name} = {value} is no probability: it must be between 0 and 1")]
pub struct NoProbability {
    name: &'static str,
    value: f64,
}

/// What was done on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Answers that came late.
    pub delayed: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Faults {
    spec: FaultSpec,
    dice: ChaCha8Rng,
    /// Tokens of requests under way whose answer will be late.
    late: Vec<u64>,
    /// Answers, and when they are due, in that order.
    kept: VecDeque<(u64, Finished<IoBuffer>)>,
    counters: FaultCounters,
}

impl FaultSpec {
    /// Refuses what is no probability.
    pub fn check(&self) -> Result<(), NoProbability> {
        let all = [
            ("read_delay", self.read_delay),
            ("write_delay", self.write_delay),
            ("read_error", self.read_error),
            ("write_error", self.write_error),
        ];
        match all.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            Some((name, value)) => Err(NoProbability { name, value }),
            None => Ok(()),
        }
    }
}

impl Faults {
    /// Makes things go wrong as `spec` says.
    pub fn new(spec: &FaultSpec) -> Result<Faults, NoProbability> {
        spec.check()?;
        Ok(Faults {
            spec: spec.clone(),
            dice: ChaCha8Rng::seed_from_u64(spec.seed),
            late: Vec::new(),
            kept: VecDeque::new(),
            counters: FaultCounters::default(),
        })
    }

    /// Other things go wrong from now on; the dice begin anew if they are others.
    pub fn set(&mut self, spec: &FaultSpec) -> Result<(), NoProbability> {
        spec.check()?;
        if self.spec != *spec {
            (self.spec, self.dice) = (spec.clone(), ChaCha8Rng::seed_from_u64(spec.seed));
        }
        Ok(())
    }

    /// Casts the dice for a request that the medium has room for. `None`: it has failed, and its answer is due at once.
    pub fn begin(&mut self, request: Request<IoBuffer>, now_ns: u64) -> Option<Request<IoBuffer>> {
        let (delay, error) = match request.act {
            Act::Read => (self.spec.read_delay, self.spec.read_error),
            Act::Write => (self.spec.write_delay, self.spec.write_error),
            _ => return Some(request),
        };
        let (late, fails) = (self.dice.random_bool(delay), self.dice.random_bool(error));
        if fails {
            self.counters.failed += 1;
            self.keep(now_ns, request.finished(Err(Fault::Io(libc::EIO))));
            return None;
        }
        if late {
            self.late.push(request.token);
        }
        Some(request)
    }

    /// Takes an answer of the medium: hands it on, or keeps it until it is due.
    pub fn end(&mut self, finished: Finished<IoBuffer>, now_ns: u64) -> Option<Finished<IoBuffer>> {
        let Some(at) = self.late.iter().position(|token| *token == finished.token) else {
            return Some(finished);
        };
        self.late.swap_remove(at);
        self.counters.delayed += 1;
        self.keep(now_ns.saturating_add(self.spec.delay_ns), finished);
        None
    }

    /// Delays may change, so a later answer may be due first.
    fn keep(&mut self, due_ns: u64, finished: Finished<IoBuffer>) {
        let at = self.kept.partition_point(|(other_ns, _)| *other_ns <= due_ns);
        self.kept.insert(at, (due_ns, finished));
    }

    /// The next answer that was kept long enough.
    pub fn due(&mut self, now_ns: u64) -> Option<Finished<IoBuffer>> {
        self.kept.pop_front_if(|(due_ns, _)| *due_ns <= now_ns).map(|(_, finished)| finished)
    }

    /// When the next answer is due, ns.
    pub fn next_ns(&self) -> Option<u64> {
        self.kept.front().map(|(due_ns, _)| *due_ns)
    }

    /// From now on nothing goes wrong, and what was kept is due.
    pub fn cease(&mut self) {
        self.spec = FaultSpec { seed: self.spec.seed, ..FaultSpec::default() };
        self.kept.iter_mut().for_each(|(due_ns, _)| *due_ns = 0);
    }

    /// What was done.
    pub fn counters(&self) -> FaultCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::VolumeId;

    fn request(token: u64, act: Act) -> Request<IoBuffer> {
        Request { volume: VolumeId(0), token, act, buffer: None, pieces: Vec::new() }
    }

    #[test]
    fn late_answers_come_when_they_are_due_and_the_seed_chooses_them() {
        let spec = FaultSpec { seed: 3, write_delay: 0.25, delay_ns: 1000, ..FaultSpec::default() };
        let run = || {
            let mut faults = Faults::new(&spec).unwrap();
            let mut late = Vec::new();
            for token in 0..400 {
                let request = faults.begin(request(token, Act::Write), token).expect("nothing fails");
                let finished = faults.end(request.finished(Ok(())), token);
                late.extend(finished.is_none().then_some(token));
            }
            (faults, late)
        };
        let (mut faults, late) = run();
        assert_eq!(run().1, late, "the same seed, the same decisions");
        assert!((60..140).contains(&late.len()), "{}", late.len());
        assert_eq!((faults.counters().delayed, faults.next_ns()), (late.len() as u64, Some(late[0] + 1000)));
        assert!(faults.due(late[0] + 999).is_none());
        let due: Vec<u64> = std::iter::from_fn(|| faults.due(2000)).map(|finished| finished.token).collect();
        assert_eq!((due, faults.next_ns()), (late, None));
        // Reads and all else are spared.
        for act in [Act::Read, Act::Sync(block::FileId(0))] {
            let request = faults.begin(request(1, act), 0).expect("nothing fails");
            assert!(faults.end(request.finished(Ok(())), 0).is_some());
        }
    }

    #[test]
    fn failures_are_answered_at_once_and_a_drill_can_end() {
        let spec =
            FaultSpec { read_error: 1.0, write_delay: 1.0, delay_ns: u64::MAX, ..FaultSpec::default() };
        let mut faults = Faults::new(&spec).unwrap();
        assert!(faults.begin(request(7, Act::Read), 5).is_none());
        let failed = faults.due(5).expect("is due");
        assert_eq!((failed.token, failed.result), (7, Err(Fault::Io(libc::EIO))));
        let write = faults.begin(request(8, Act::Write), 5).expect("is carried out");
        assert!(faults.end(write.finished(Ok(())), 5).is_none() && faults.due(u64::MAX - 1).is_none());
        // Other faults, and none: what was kept stays kept, and is overtaken.
        faults.set(&FaultSpec { write_delay: 1.0, delay_ns: 10, ..FaultSpec::default() }).unwrap();
        let write = faults.begin(request(10, Act::Write), 5).expect("is carried out");
        assert!(faults.end(write.finished(Ok(())), 5).is_none());
        assert_eq!(faults.due(15).map(|finished| finished.token), Some(10));
        faults.cease();
        assert_eq!(faults.due(6).map(|finished| finished.token), Some(8));
        assert!(faults.begin(request(9, Act::Read), 6).is_some());
        assert_eq!(faults.counters(), FaultCounters { delayed: 2, failed: 1 });
        let wrong = FaultSpec { read_error: f64::NAN, ..FaultSpec::default() };
        assert!(Faults::new(&wrong).unwrap_err().to_string().contains("read_error = NaN is no probability"));
    }
}
