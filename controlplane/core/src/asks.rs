//! Decisions that policies take: a question goes out as an effect, its answer comes back as an input
//! (docs/decisions/046).
//!
//! So a step stays pure, and a slow policy holds nobody up: what it was asked for waits, everything else goes on.
//! Whatever comes back is checked against the question, and again, one by one, against the state of now. Late,
//! refused and absent answers are the native default's.

use std::collections::BTreeMap;

use contract::{LeaseId, NodeId, OperationId, PolicyRef};
use verdict::{By, Decided, Profile, Question, Tick, Verdict};

use crate::record::cut;
use crate::{Alarm, Ask, Core, Timer};

/// What an answer is for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    /// A round of scheduling: which operation and handler each row is.
    Round(Vec<(OperationId, Option<NodeId>)>),
    /// New weights: which node each row is.
    Weights(Vec<NodeId>),
    /// Room on a node: which lease each row is.
    Victims(NodeId, Vec<LeaseId>),
    /// The load of a volume that will be moved; of seconds, or of longer than these show.
    Profile(OperationId, Span),
    /// When it is moved.
    Time(OperationId),
}

/// Of what a profile is made.
#[derive(Clone, Debug)]
pub(crate) enum Span {
    /// The last minutes, second by second.
    Fine,
    /// Days; with what was made of the minutes, if they were shown, and by whom.
    Coarse(Option<Box<(Profile, PolicyRef)>>),
}

#[derive(Clone, Debug)]
struct Asked {
    purpose: Purpose,
    tick: Tick,
    question: Question,
}

/// Questions that are not answered yet. There is at most one round, one for weights, one for each node that needs
/// room and one for each move that is planned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asks {
    last: u64,
    open: BTreeMap<u64, Asked>,
}

impl Core {
    /// How long the oldest question has been open.
    pub fn oldest_question_ms(&self) -> u64 {
        let first = self.asks.open.values().map(|asked| asked.tick.now_ms).min();
        first.map_or(0, |asked| self.now().saturating_sub(asked))
    }

    /// Asks; the answer arrives at [`Core::decided`], now or later.
    pub(crate) fn ask(&mut self, purpose: Purpose, question: Question) {
        self.counters.decisions += 1;
        let tick = Tick { now_ms: self.now(), seed: self.random.next_u64(), epoch: self.meta.start };
        if !self.config.ask {
            let verdict = question.native(tick);
            self.decided(purpose, &question, verdict, PolicyRef::default());
            return;
        }
        self.asks.last += 1;
        let id = self.asks.last;
        self.out.asks.push(Ask { id, tick, question: question.clone() });
        self.asks.open.insert(id, Asked { purpose, tick, question });
        self.at(self.now().saturating_add(self.config.answer_within_ms), Timer::Ask(id));
    }

    /// An answer came.
    pub(crate) fn answered(&mut self, id: u64, decided: Decided<Verdict>) {
        let Some(asked) = self.asks.open.remove(&id) else {
            self.counters.late_answers += 1;
            return;
        };
        let Decided { verdict, mut by } = decided;
        // May be what a policy said when it ended.
        by.instead.as_mut().map(cut);
        match asked.question.check(asked.tick, &verdict) {
            Ok(()) if verdict.abstains() => self.natively(asked, &by, "it abstained".into()),
            Ok(()) => {
                self.counters.native_instead += u64::from(by.instead.is_some());
                let by = PolicyRef {
                    policy: by.policy.to_string(),
                    decision: by.decision,
                    instead: by.instead.clone(),
                };
                self.decided(asked.purpose, &asked.question, verdict, by);
            }
            Err(why) => {
                let (function, why) = (asked.question.function(), why.to_string());
                self.alarm(Alarm::Policy { function, why: why.clone() });
                self.natively(asked, &by, why);
            }
        }
    }

    /// No answer came.
    pub(crate) fn answer_is_late(&mut self, id: u64) {
        let Some(asked) = self.asks.open.remove(&id) else { return };
        let why = format!("no answer within {} ms", self.config.answer_within_ms);
        self.alarm(Alarm::Policy { function: asked.question.function(), why: why.clone() });
        let by = By { policy: "the policy".into(), decision: 0, instead: None };
        self.natively(asked, &by, why);
    }

    fn natively(&mut self, asked: Asked, by: &By, why: String) {
        self.counters.native_instead += 1;
        let verdict = asked.question.native(asked.tick);
        let by = PolicyRef { policy: by.policy.to_string(), decision: by.decision, instead: Some(why) };
        self.decided(asked.purpose, &asked.question, verdict, by);
    }

    fn decided(&mut self, purpose: Purpose, question: &Question, verdict: Verdict, by: PolicyRef) {
        match (purpose, question, verdict) {
            (Purpose::Round(rows), _, Verdict::Schedule(answer)) => self.assign(&rows, &answer, &by),
            (Purpose::Weights(ids), _, Verdict::UpdateWeights(answer)) => {
                self.take_weights(&ids, &answer, by);
            }
            (Purpose::Victims(node, leases), _, Verdict::PickVictims(answer)) => {
                self.take_victims(node, &leases, &answer, &by);
            }
            (Purpose::Profile(id, span), _, Verdict::BuildProfile(answer)) => {
                self.take_profile(id, span, answer, by);
            }
            (Purpose::Time(id), Question::ChooseTime(question), Verdict::ChooseTime(answer)) => {
                self.take_time(id, question, &answer, &by);
            }
            // INVARIANT: a checked verdict is the variant of its question, and so is a native one.
            _ => {}
        }
    }
}
