//! Threads that decide at a pace, and one that swaps versions meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::Outcome;
use host::{Candidate, Engine, Gate, Policies, Policy, Seat, Start, workload};
use verdict::{Decide, Kind, Question, Tick};

use super::KINDS;

/// Time between two decisions of a kind: 5,000 a second.
const PACE: Duration = Duration::from_micros(200);
/// Time between two swaps of a kind: 1,000 a minute.
const SWAP_PACE: Duration = Duration::from_millis(60);
/// Rows of each question.
const ROWS: usize = 10;
/// Questions that are asked over and over.
const QUESTIONS: u64 = 32;

/// Versions of each kind.
pub(super) const VERSIONS: usize = 4;

/// Of each kind: a shipped policy, another build of it, the other shipped policy, another build of that.
pub(super) type Versions = [Vec<Arc<Policy>>; KINDS];

/// Admits them.
pub(super) fn versions(engine: &Engine) -> Outcome<Versions> {
    let mut all = Versions::default();
    for (kind, versions) in Kind::ALL.into_iter().zip(&mut all) {
        for (name, component) in shipped::all().filter(|(name, _)| name.starts_with(kind.name())) {
            for component in [component.to_vec(), rebuilt(component)] {
                let candidate = Candidate { component: &component, ..Candidate::default() };
                let policy = Gate::default().admit(engine, &candidate);
                versions.push(policy.map_err(|error| format!("{name}: {error}"))?);
            }
        }
    }
    Ok(all)
}

/// The same component with another digest: it has a custom section (id 0) more, which means nothing.
fn rebuilt(component: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"rebuilt";
    let mut bytes = component.to_vec();
    bytes.extend([0, NAME.len() as u8 + 1, NAME.len() as u8]);
    bytes.extend(NAME);
    bytes
}

/// A window in which there are decisions.
pub(super) struct Load<'a> {
    pub policies: Policies,
    pub versions: &'a Versions,
    /// The version that decides at first.
    pub first: usize,
    pub length: Duration,
    pub swaps: bool,
}

/// What was asked of a kind.
#[derive(Default)]
pub(super) struct Asked {
    /// Of each decision.
    pub times_ns: Vec<u64>,
    /// Decisions that were not a policy's.
    pub failed: u64,
    /// How long decisions waited for each activation.
    pub held_ns: Vec<u64>,
    /// Activations that failed.
    pub failed_swaps: u64,
}

impl Load<'_> {
    pub fn run(&self) -> Outcome<[Asked; KINDS]> {
        let seats: Vec<Seat> = (0..KINDS).map(|_| self.policies.seat()).collect();
        for versions in self.versions {
            self.policies.activate(&versions[self.first], Start::Fresh).map_err(|error| error.to_string())?;
        }
        let mut asked: [Asked; KINDS] = Default::default();
        let begin = Instant::now();
        let mut swaps: [(Vec<u64>, u64); KINDS] = Default::default();
        std::thread::scope(|scope| {
            for ((kind, mut seat), asked) in Kind::ALL.into_iter().zip(seats).zip(&mut asked) {
                scope.spawn(move || decide(kind, &mut seat, begin, self.length, asked));
            }
            if self.swaps {
                self.swap(begin, &mut swaps);
            }
        });
        for (asked, (held_ns, failed)) in asked.iter_mut().zip(swaps) {
            (asked.held_ns, asked.failed_swaps) = (held_ns, failed);
        }
        self.count(&mut asked);
        Ok(asked)
    }

    /// The kinds take turns.
    fn swap(&self, begin: Instant, swaps: &mut [(Vec<u64>, u64); KINDS]) {
        let end = begin + self.length;
        for number in 1_u32.. {
            let due = begin + SWAP_PACE * number / KINDS as u32;
            if due >= end {
                return;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (kind, round) = (number as usize % KINDS, number as usize / KINDS + 1);
            let versions = &self.versions[kind];
            let (held_ns, failed) = &mut swaps[kind];
            match self.policies.activate(&versions[(self.first + round) % versions.len()], Start::Carry) {
                Ok(activation) => held_ns.push(activation.held_ns),
                Err(error) => {
                    eprintln!("{error}");
                    *failed += 1;
                }
            }
        }
    }

    /// What the host has counted must be what was asked, all by policies, and all of it is in the log.
    fn count(&self, asked: &mut [Asked; KINDS]) {
        let status = self.policies.status();
        for (kind, asked) in status.kinds.iter().zip(asked) {
            let decisions = asked.times_ns.len() as u64;
            let counters = &kind.counters;
            asked.failed += decisions.abs_diff(counters.by_policy) + decisions.abs_diff(counters.decisions);
            asked.failed += counters.faults.values().sum::<u64>() + status.log_errors;
            asked.failed_swaps += counters.rollbacks;
        }
    }
}

/// Questions of a kind that every policy of it has an answer to.
fn questions(kind: Kind) -> Vec<(Tick, Question)> {
    let all = (0..).map(|number| workload::question(kind, ROWS, number));
    // Ten seconds of load have no pattern, and who looks for one abstains.
    let has_an_answer = |question: &Question| !matches!(question, Question::BuildProfile(_));
    all.filter(|(_, question)| has_an_answer(question)).take(QUESTIONS as usize).collect()
}

fn decide(kind: Kind, seat: &mut Seat, begin: Instant, length: Duration, asked: &mut Asked) {
    let questions = questions(kind);
    let end = begin + length;
    asked.times_ns.reserve(length.div_duration_f64(PACE) as usize + 1);
    let (mut due, mut woke) = (begin, begin);
    for (tick, question) in questions.iter().cycle() {
        let now = Instant::now();
        if due >= end || now >= end {
            return;
        }
        if due > now {
            std::thread::sleep(due - now);
            woke = Instant::now();
        }
        let decided = seat.decide(*tick, question);
        let ns = due.max(woke).elapsed().as_nanos();
        asked.times_ns.push(u64::try_from(ns).unwrap_or(u64::MAX));
        asked.failed += u64::from(decided.by.instead.is_some());
        due += PACE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_is_another_version_that_decides_alike() {
        let engine = Engine::new(host::Limits::default()).expect("WebAssembly runs here");
        for versions in versions(&engine).expect("all are admitted") {
            assert_eq!(versions.len(), VERSIONS);
            for pair in versions.chunks(2) {
                assert_eq!(pair[0].id().name, pair[1].id().name);
                assert_ne!(pair[0].id().digest, pair[1].id().digest);
                assert_eq!(pair[0].admission().fuel_max, pair[1].admission().fuel_max);
            }
        }
    }
}
