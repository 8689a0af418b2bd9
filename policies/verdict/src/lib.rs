//! The words of policy decisions: what is asked, what may be answered, and a native default for each.
//!
//! Three kinds of decision can be taken by a policy: [`Scheduling`], [`Leasing`] and [`Migration`], one trait
//! each. Guests in WebAssembly implement them (through `policies/sdk`), and so does [`Native`], the answer
//! when there is no policy, or when it faults, lies or abstains. The types mirror `wit/` field by field.
//!
//! A decision is a [`Question`] value: it knows its kind, its native default, and how to check an answer.
//! Whoever decides implements [`Decide`]: `policies/host` with guests, [`Native`] without.
//!
//! - [`scheduling`]: which waiting operations start; [`Room`] is the one way to see whether they fit.
//! - [`leasing`]: selection weights of producers, and which revocable leases end.
//! - [`migration`]: load profiles, and when a volume moves.
//!
//! Invariants: everything here is pure and integer, so that a question and a tick give the same answer for
//! ever. [`Question::check`] refuses whatever would break a limit, name what is unknown or lie out of range;
//! it accepts each native default. No function panics on columns of unequal length.

#![forbid(unsafe_code)]

mod invalid;
pub mod leasing;
pub mod migration;
pub mod scheduling;

use std::sync::Arc;

pub use invalid::Invalid;
pub use leasing::{
    Leases, Leasing, PickVictims, Producers, Resources, UpdateWeights, Victims, Weights, normalised,
    without_superfluous,
};
pub use migration::{
    BuildProfile, Choice, ChooseTime, Forecast, Migration, Profile, Rules, Samples, Timing, Transfer,
    estimate_blackout_us,
};
pub use scheduling::{Accounts, Assignments, Candidates, Room, Schedule, Scheduling, Tenants};

/// One whole, in millionths.
pub const PPM: u32 = 1_000_000;

/// Longest `why` of a verdict in bytes.
pub const WHY_BYTES_MAX: usize = 1024;

/// The only clock, source of randomness and fence that a policy sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tick {
    /// Time of the control plane's clock.
    pub now_ms: u64,
    /// Fresh for each decision, and logged.
    pub seed: u64,
    /// The control plane's epoch.
    pub epoch: u64,
}

/// A kind of decision; one world of `wit/` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Kind {
    /// Which waiting operations start.
    Scheduling,
    /// Who lends how much, and which leases end.
    Leasing,
    /// When volumes move.
    Migration,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Scheduling, Kind::Leasing, Kind::Migration];

    /// The name of its world.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Scheduling => "scheduling",
            Kind::Leasing => "leasing",
            Kind::Migration => "migration",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One decision to be taken, whole: what a policy is asked, what the decision log keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Question {
    /// Of scheduling.
    Schedule(Schedule),
    /// Of leasing.
    UpdateWeights(UpdateWeights),
    /// Of leasing.
    PickVictims(PickVictims),
    /// Of migration.
    BuildProfile(BuildProfile),
    /// Of migration.
    ChooseTime(ChooseTime),
}

/// An answer: the same variant as its question.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Verdict {
    /// What starts.
    Schedule(Assignments),
    /// Who lends how much.
    UpdateWeights(Weights),
    /// Which leases end.
    PickVictims(Victims),
    /// The load to expect.
    BuildProfile(Profile),
    /// When to move.
    ChooseTime(Timing),
}

impl Question {
    /// Whose question it is.
    pub fn kind(&self) -> Kind {
        match self {
            Question::Schedule(_) => Kind::Scheduling,
            Question::UpdateWeights(_) | Question::PickVictims(_) => Kind::Leasing,
            Question::BuildProfile(_) | Question::ChooseTime(_) => Kind::Migration,
        }
    }

    /// The function of `wit/` that answers it.
    pub fn function(&self) -> &'static str {
        match self {
            Question::Schedule(_) => "schedule",
            Question::UpdateWeights(_) => "update-weights",
            Question::PickVictims(_) => "pick-victims",
            Question::BuildProfile(_) => "build-profile",
            Question::ChooseTime(_) => "choose-time",
        }
    }

    /// The answer without a policy.
    pub fn native(&self, tick: Tick) -> Verdict {
        match self {
            Question::Schedule(question) => Verdict::Schedule(question.native(tick)),
            Question::UpdateWeights(question) => Verdict::UpdateWeights(question.native()),
            Question::PickVictims(question) => Verdict::PickVictims(question.native()),
            Question::BuildProfile(question) => Verdict::BuildProfile(question.native(tick)),
            Question::ChooseTime(question) => Verdict::ChooseTime(question.native(tick)),
        }
    }

    /// Refuses an answer that mechanism must not act on. What needs the control plane's state (capacity now,
    /// fencing, anti-affinity) is checked there again.
    pub fn check(&self, tick: Tick, verdict: &Verdict) -> Result<(), Invalid> {
        if verdict.why().len() > WHY_BYTES_MAX {
            return Err(Invalid::LongText { bytes: verdict.why().len(), max: WHY_BYTES_MAX });
        }
        match (self, verdict) {
            (Question::Schedule(question), Verdict::Schedule(answer)) => question.check(tick, answer),
            (Question::UpdateWeights(question), Verdict::UpdateWeights(answer)) => question.check(answer),
            (Question::PickVictims(question), Verdict::PickVictims(answer)) => question.check(answer),
            (Question::BuildProfile(question), Verdict::BuildProfile(answer)) => question.check(tick, answer),
            (Question::ChooseTime(question), Verdict::ChooseTime(answer)) => question.check(tick, answer),
            _ => Err(Invalid::OtherQuestion),
        }
    }
}

impl Verdict {
    /// The policy leaves this decision to the native default.
    pub fn abstains(&self) -> bool {
        match self {
            Verdict::Schedule(answer) => answer.abstain,
            Verdict::UpdateWeights(answer) => answer.abstain,
            Verdict::PickVictims(answer) => answer.abstain,
            Verdict::BuildProfile(answer) => answer.abstain,
            Verdict::ChooseTime(answer) => answer.abstain,
        }
    }

    /// Both would have the same done; how they say why does not matter.
    pub fn decides_like(&self, other: &Verdict) -> bool {
        match (self, other) {
            (Verdict::Schedule(one), Verdict::Schedule(two)) => {
                one.candidate == two.candidate && one.not_before_ms == two.not_before_ms
            }
            (Verdict::UpdateWeights(one), Verdict::UpdateWeights(two)) => {
                one.weight_ppm == two.weight_ppm && one.ttl_ms == two.ttl_ms
            }
            (Verdict::PickVictims(one), Verdict::PickVictims(two)) => {
                one.lease == two.lease && one.grace_ms == two.grace_ms
            }
            (Verdict::BuildProfile(one), Verdict::BuildProfile(two)) => {
                let numbers =
                    |profile: &Profile| (profile.origin_ms, profile.slot_ms, profile.confidence_ppm);
                numbers(one) == numbers(two)
                    && one.iops == two.iops
                    && one.dirty_bytes_per_s == two.dirty_bytes_per_s
            }
            (Verdict::ChooseTime(one), Verdict::ChooseTime(two)) => one.choice == two.choice,
            _ => false,
        }
    }

    /// Why, for a person.
    pub fn why(&self) -> &str {
        match self {
            Verdict::Schedule(answer) => &answer.why,
            Verdict::UpdateWeights(answer) => &answer.why,
            Verdict::PickVictims(answer) => &answer.why,
            Verdict::BuildProfile(answer) => &answer.why,
            Verdict::ChooseTime(answer) => &answer.why,
        }
    }
}

/// Who answers questions.
pub trait Decide {
    /// Answers, always: a policy that cannot is replaced by the native default. The verdict has the variant of
    /// its question and has passed [`Question::check`].
    fn decide(&mut self, tick: Tick, question: &Question) -> Decided<Verdict>;
}

/// An answer and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided<V> {
    /// The answer.
    pub verdict: V,
    /// Who gave it.
    pub by: By,
}

/// Who gave an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// Name, version and digest of the policy, or `native`.
    pub policy: Arc<str>,
    /// Its number in the decision log.
    pub decision: u64,
    /// Why the native default answered in place of a policy.
    pub instead: Option<String>,
}

/// The native default of every decision.
#[derive(Clone, Debug)]
pub struct Native {
    name: Arc<str>,
}

impl Default for Native {
    fn default() -> Native {
        Native { name: Arc::from("native") }
    }
}

impl Decide for Native {
    fn decide(&mut self, tick: Tick, question: &Question) -> Decided<Verdict> {
        let by = By { policy: self.name.clone(), decision: 0, instead: None };
        Decided { verdict: question.native(tick), by }
    }
}

/// A question whose answer has a type of its own: `question.ask(&mut policies, tick)`.
pub trait Ask {
    /// Its answer.
    type Answer;

    /// Has it answered.
    fn ask(self, by: &mut impl Decide, tick: Tick) -> Decided<Self::Answer>;
}

macro_rules! ask {
    ($($question:ident -> $answer:ident: $native:expr;)*) => {$(
        impl Ask for $question {
            type Answer = $answer;

            fn ask(self, by: &mut impl Decide, tick: Tick) -> Decided<$answer> {
                let question = Question::$question(self);
                let Decided { verdict, by } = by.decide(tick, &question);
                match (verdict, question) {
                    (Verdict::$question(verdict), _) => Decided { verdict, by },
                    // A decider that confuses its variants is treated as one that has no answer.
                    (_, Question::$question(question)) => {
                        let native: fn(&$question, Tick) -> $answer = $native;
                        Decided { verdict: native(&question, tick), by }
                    }
                    // INVARIANT: `question` was made with this variant above.
                    _ => unreachable!(),
                }
            }
        }
    )*};
}

ask! {
    Schedule -> Assignments: Schedule::native;
    UpdateWeights -> Weights: |question, _| question.native();
    PickVictims -> Victims: |question, _| question.native();
    BuildProfile -> Profile: BuildProfile::native;
    ChooseTime -> Timing: ChooseTime::native;
}
