//! Policies: honest, slow, silent, trapping, abstaining, lying.

use std::sync::Arc;

use control_core::Ask;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use verdict::{By, Choice, Decided, Verdict};

use crate::world::Faults;

/// What the policies of a world are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// They answer as the native default does.
    Honest,
    /// Too late as often as not.
    Slow,
    /// Not at all.
    Silent,
    /// With a trap, so that the host answers natively.
    Trapping,
    /// They leave it to the native default.
    Abstaining,
    /// With nonsense.
    Lying,
}

impl Mood {
    /// All of them.
    pub const ALL: [Mood; 6] =
        [Mood::Honest, Mood::Slow, Mood::Silent, Mood::Trapping, Mood::Abstaining, Mood::Lying];
}

/// What is answered, and after how long; none = nothing.
pub fn answer(
    ask: &Ask,
    mood: Mood,
    random: &mut ChaCha8Rng,
    faults: &mut Faults,
) -> Option<(u64, Decided<Verdict>)> {
    let mut verdict = ask.question.native(ask.tick);
    let mut by = By { policy: Arc::from("sim@1"), decision: ask.id, instead: None };
    let mut after = random.random_range(1..20);
    match mood {
        Mood::Honest => {}
        Mood::Slow => {
            if random.random_bool(0.5) {
                faults.slow += 1;
                after = random.random_range(200..2_000);
            }
        }
        Mood::Silent => {
            faults.silent += 1;
            return None;
        }
        Mood::Trapping => {
            faults.trapped += 1;
            by.instead = Some("it trapped".into());
        }
        Mood::Abstaining => {
            faults.abstained += 1;
            abstain(&mut verdict);
        }
        Mood::Lying => {
            faults.lied += 1;
            lie(&mut verdict, ask, random);
        }
    }
    Some((after, Decided { verdict, by }))
}

fn abstain(verdict: &mut Verdict) {
    match verdict {
        Verdict::Schedule(answer) => answer.abstain = true,
        Verdict::UpdateWeights(answer) => answer.abstain = true,
        Verdict::PickVictims(answer) => answer.abstain = true,
        Verdict::BuildProfile(answer) => answer.abstain = true,
        Verdict::ChooseTime(answer) => answer.abstain = true,
    }
}

/// Some lies are nonsense and some are sound but unwise; safety must not need either.
fn lie(verdict: &mut Verdict, ask: &Ask, random: &mut ChaCha8Rng) {
    let wild = |random: &mut ChaCha8Rng| match random.random_range(0..4) {
        0 => 0,
        1 => u64::MAX,
        2 => random.random_range(0..100),
        _ => random.random(),
    };
    match verdict {
        Verdict::Schedule(answer) => match random.random_range(0..5) {
            0 => answer.candidate.iter_mut().for_each(|row| *row = wild(random) as u32),
            1 => answer.not_before_ms.iter_mut().for_each(|at| *at = wild(random)),
            2 => {
                let again = answer.candidate.clone();
                again.into_iter().for_each(|row| answer.push(row, ask.tick.now_ms, 0));
            }
            3 => {
                // Sound: as late as it may be.
                let late = ask.tick.now_ms + random.random_range(0..30_000);
                answer.not_before_ms.iter_mut().for_each(|at| *at = late);
            }
            _ => {
                answer.candidate.clear();
                answer.not_before_ms.clear();
                answer.reason.clear();
            }
        },
        Verdict::UpdateWeights(answer) => match random.random_range(0..3) {
            0 => answer.weight_ppm.iter_mut().for_each(|weight| *weight = wild(random) as u32),
            1 => {
                // Sound: all to one.
                answer.weight_ppm.iter_mut().for_each(|weight| *weight = 0);
                if let Some(first) = answer.weight_ppm.first_mut() {
                    *first = verdict::PPM;
                }
            }
            _ => answer.ttl_ms.iter_mut().for_each(|ttl| *ttl = wild(random) as u32),
        },
        Verdict::PickVictims(answer) => match random.random_range(0..3) {
            0 => answer.lease.iter_mut().for_each(|row| *row = wild(random) as u32),
            1 => answer.lease.clear(),
            _ => answer.grace_ms = wild(random) as u32,
        },
        Verdict::BuildProfile(answer) => {
            answer.iops.iter_mut().for_each(|iops| *iops = wild(random));
            answer.origin_ms = wild(random);
        }
        Verdict::ChooseTime(answer) => {
            answer.choice = match random.random_range(0..3) {
                0 => Choice::At(wild(random) as u32),
                1 => Choice::Refuse,
                _ => Choice::Now,
            };
            answer.estimate_us.iter_mut().for_each(|estimate| *estimate = wild(random));
        }
    }
}
