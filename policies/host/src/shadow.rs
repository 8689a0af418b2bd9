//! A policy that is asked the same as the active one, and whose answers are compared and not used.
//!
//! It runs on the policy thread, after the decision was taken and logged: it makes the thread busier, and its
//! figures are those that it will have when it is active. After too many faults it is not asked any more.

use std::sync::Arc;

use serde::Serialize;
use verdict::{Question, Tick, Verdict};

use crate::fault::Fault;
use crate::guest::{Guest, Spent, State};
use crate::lifecycle::Options;
use crate::policy::{Policy, checked};

/// Differences that are kept in words.
const DIFFERENCES_MAX: usize = 16;

/// What a shadow did beside the active policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Comparison {
    /// Decisions that it was asked too.
    pub decisions: u64,
    /// It would have decided the same.
    pub same: u64,
    /// It would have decided otherwise.
    pub different: u64,
    /// It abstained: the native default would have decided.
    pub abstained: u64,
    /// It failed.
    pub faults: u64,
    /// Fuel that it used.
    pub fuel: u64,
    /// Fuel that the active policy used for the same questions.
    pub active_fuel: u64,
    /// Time that it took.
    pub ns: u64,
    /// Its longest answer.
    pub ns_max: u64,
    /// Time that the active policy took for the same questions.
    pub active_ns: u64,
    /// It failed too often and is not asked any more.
    pub stopped: bool,
    /// The first differences and faults.
    pub differences: Vec<Difference>,
}

/// One decision that would have been another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Difference {
    /// Its number in the decision log.
    pub decision: u64,
    /// What was asked.
    pub function: &'static str,
    /// Why it was decided as it was.
    pub active: String,
    /// Why the shadow would have decided otherwise, or how it failed.
    pub shadow: String,
}

impl Comparison {
    /// Of all seats together.
    pub(crate) fn add(&mut self, other: &Comparison) {
        self.decisions += other.decisions;
        self.same += other.same;
        self.different += other.different;
        self.abstained += other.abstained;
        self.faults += other.faults;
        self.fuel = self.fuel.saturating_add(other.fuel);
        self.active_fuel = self.active_fuel.saturating_add(other.active_fuel);
        self.ns = self.ns.saturating_add(other.ns);
        self.ns_max = self.ns_max.max(other.ns_max);
        self.active_ns = self.active_ns.saturating_add(other.active_ns);
        self.stopped |= other.stopped;
        let room = DIFFERENCES_MAX.saturating_sub(self.differences.len());
        self.differences.extend(other.differences.iter().take(room).cloned());
    }
}

/// A shadow of one seat.
#[derive(Debug)]
pub(crate) struct Shadow {
    policy: Arc<Policy>,
    guest: Option<Guest>,
    /// What it started from; a new instance starts from there again.
    state: Option<State>,
    pub(crate) comparison: Comparison,
}

impl Shadow {
    pub(crate) fn new(policy: Arc<Policy>, guest: Option<Guest>, state: Option<State>) -> Shadow {
        Shadow { policy, guest, state, comparison: Comparison::default() }
    }

    /// Asks it what was decided already.
    pub(crate) fn compare(
        &mut self,
        tick: Tick,
        question: &Question,
        decision: u64,
        decided: &Verdict,
        active: &Spent,
        options: &Options,
    ) {
        if self.comparison.stopped {
            return;
        }
        let (outcome, spent) = self.ask(tick, question);
        let comparison = &mut self.comparison;
        comparison.decisions += 1;
        comparison.fuel = comparison.fuel.saturating_add(spent.fuel);
        comparison.active_fuel = comparison.active_fuel.saturating_add(active.fuel);
        comparison.ns = comparison.ns.saturating_add(spent.ns);
        comparison.ns_max = comparison.ns_max.max(spent.ns);
        comparison.active_ns = comparison.active_ns.saturating_add(active.ns);
        let (verdict, why) = match outcome {
            Ok(verdict) => {
                let why = verdict.why().to_owned();
                if verdict.abstains() {
                    comparison.abstained += 1;
                    (Some(question.native(tick)), why)
                } else {
                    (Some(verdict), why)
                }
            }
            Err(fault) => (None, fault.to_string()),
        };
        match verdict {
            Some(verdict) if verdict.decides_like(decided) => {
                comparison.same += 1;
                return;
            }
            Some(_) => comparison.different += 1,
            None => {
                comparison.faults += 1;
                comparison.stopped = comparison.faults >= options.faults_max;
            }
        }
        if comparison.differences.len() < DIFFERENCES_MAX {
            let (function, active) = (question.function(), decided.why().to_owned());
            comparison.differences.push(Difference { decision, function, active, shadow: why });
        }
    }

    fn ask(&mut self, tick: Tick, question: &Question) -> (Result<Verdict, Fault>, Spent) {
        if self.guest.is_none() {
            match self.policy.start(self.state.as_ref()) {
                Ok(guest) => self.guest = Some(guest),
                Err(fault) => return (Err(fault), Spent::default()),
            }
        }
        let Some(guest) = &mut self.guest else {
            return (Err(Fault::Start("there is no instance".into())), Spent::default());
        };
        match guest.ask(tick, question) {
            Ok(answer) => {
                let verdict = answer.verdict;
                let outcome = checked(tick, question, &verdict).map_err(Fault::Invalid).map(|()| verdict);
                (outcome, answer.spent)
            }
            Err((fault, spent)) => {
                self.guest = None;
                (Err(fault), spent)
            }
        }
    }
}
