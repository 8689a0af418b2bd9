//! A policy thread's place: one live instance of each kind's active policy, and one of its shadow.
//!
//! [`Seat::decide`] holds the lock of a kind's place for one decision. An activation takes the locks of the places of
//! its kind on all seats, so that each swap falls between two decisions and no state is lost in between (see
//! [`crate::lifecycle`]). Decisions of other kinds do not wait for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use verdict::{By, Decide, Decided, Kind, Question, Tick, Verdict};

use crate::fault::Fault;
use crate::guest::{Answer, Guest, Spent, State};
use crate::lifecycle::{Shared, Trouble};
use crate::log::{DecisionRecord, Instead, Record, StateRecord};
use crate::policy::{Policy, checked};
use crate::shadow::Shadow;

/// Decides on one thread, with the active policies of its [`crate::Policies`]; clones are the same place.
#[derive(Clone, Debug)]
pub struct Seat {
    pub(crate) shared: Arc<Shared>,
    pub(crate) places: Arc<Places>,
}

/// What a seat has of each kind.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) seat: u32,
    /// Of each kind: who waits for the place, and the place.
    of: [(Mutex<()>, Mutex<Place>); Kind::ALL.len()],
}

/// What a seat has of one kind.
#[derive(Debug, Default)]
pub(crate) struct Place {
    pub(crate) active: Option<Live>,
    pub(crate) shadow: Option<Shadow>,
    /// Rises with each change of the active policy.
    pub(crate) generation: u64,
}

/// A policy with its instance.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) policy: Arc<Policy>,
    label: Arc<str>,
    /// `None` after a fault, until the next decision.
    guest: Option<Guest>,
    /// What it last exported, or started from.
    state: Option<State>,
    /// It has exported that, and was asked nothing since.
    is_said: bool,
    since_checkpoint: u32,
}

/// What came of asking.
struct Outcome {
    verdict: Verdict,
    instead: Option<(Option<Fault>, String)>,
    spent: Spent,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held left plain values behind, and each decision checks what it uses.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seat {
    /// What the active policy of a kind has come to here.
    pub fn state(&self, kind: Kind) -> Option<State> {
        let mut place = self.places.lock(kind);
        place.active.as_mut().and_then(|live| live.export(&self.shared, self.places.seat).0)
    }

    /// Has the active policy of a kind go on here from what one had come to before. False: none is active.
    /// If it cannot read that, it goes on as it was.
    pub fn resume(&self, kind: Kind, state: &State) -> Result<bool, Fault> {
        let seat = self.places.seat;
        let mut place = self.places.lock(kind);
        let Some(policy) = place.active.as_ref().map(|live| live.policy.clone()) else { return Ok(false) };
        let guest = policy.start(Some(state))?;
        let live = Live::new(policy, guest, Some(state.clone()));
        live.log_state(&self.shared, seat, true);
        place.active = Some(live);
        Ok(true)
    }
}

impl Decide for Seat {
    fn decide(&mut self, tick: Tick, question: &Question) -> Decided<Verdict> {
        let mut place = self.places.lock(question.kind());
        let (decided, trouble) = place.decide(&self.shared, self.places.seat, tick, question);
        drop(place);
        // Without the place's lock: going back takes those of all seats.
        if let Some(trouble) = trouble {
            self.shared.roll_back_from(question.kind(), &trouble);
        }
        decided
    }
}

impl Places {
    pub(crate) fn new(seat: u32, of: [Place; Kind::ALL.len()]) -> Places {
        Places { seat, of: of.map(|place| (Mutex::default(), Mutex::new(place))) }
    }

    /// Locks are not fair: a thread that decides without a pause would take its place again and again before one that
    /// waits for it wakes up. So the next one waits at the entrance, and whoever comes after waits for that one.
    pub(crate) fn lock(&self, kind: Kind) -> MutexGuard<'_, Place> {
        let (entrance, place) = &self.of[kind as usize];
        let _next = lock(entrance);
        lock(place)
    }
}

impl Place {
    fn decide(
        &mut self,
        shared: &Shared,
        seat: u32,
        tick: Tick,
        question: &Question,
    ) -> (Decided<Verdict>, Option<Trouble>) {
        let kind = question.kind();
        let number = shared.next_decision(kind);
        let Some(live) = &mut self.active else {
            let verdict = question.native(tick);
            shared.log(|| decision(number, seat, None, tick, question, &verdict, None, &Spent::default()));
            let by = By { policy: shared.native_label(), decision: number, instead: None };
            if let Some(shadow) = &mut self.shadow {
                shadow.compare(tick, question, number, &verdict, &Spent::default(), shared.options());
            }
            return (Decided { verdict, by }, None);
        };
        let outcome = live.decide(shared, seat, tick, question);
        let fault = outcome.instead.as_ref().and_then(|(fault, _)| fault.clone());
        let instead =
            outcome.instead.map(|(fault, why)| Instead { fault: fault.as_ref().map(Fault::class), why });
        let id = Some(live.policy.id());
        let (verdict, spent) = (outcome.verdict, outcome.spent);
        shared.log(|| decision(number, seat, id, tick, question, &verdict, instead.as_ref(), &spent));
        let why = instead.map(|instead| instead.why);
        let by = By { policy: live.label.clone(), decision: number, instead: why };
        let fault = fault.or_else(|| live.checkpoint(shared, seat));
        shared.count(kind, by.instead.is_none(), fault.as_ref());
        let trouble = fault.and_then(|fault| shared.trouble(kind, number, self.generation, &fault));
        if let Some(shadow) = &mut self.shadow {
            shadow.compare(tick, question, number, &verdict, &spent, shared.options());
        }
        (Decided { verdict, by }, trouble)
    }
}

#[allow(clippy::too_many_arguments, reason = "one per field of the record")]
fn decision(
    number: u64,
    seat: u32,
    policy: Option<&crate::PolicyId>,
    tick: Tick,
    question: &Question,
    verdict: &Verdict,
    instead: Option<&Instead>,
    spent: &Spent,
) -> Record {
    Record::Decision(Box::new(DecisionRecord {
        number,
        seat,
        policy: policy.cloned(),
        tick,
        question: question.clone(),
        verdict: verdict.clone(),
        instead: instead.cloned(),
        fuel: spent.fuel,
        duration_ns: spent.ns,
        lines: spent.log.clone(),
    }))
}

impl Live {
    pub(crate) fn new(policy: Arc<Policy>, guest: Guest, state: Option<State>) -> Live {
        Live { guest: Some(guest), ..Live::waiting(policy, state) }
    }

    /// Without an instance yet; the first decision makes one.
    pub(crate) fn waiting(policy: Arc<Policy>, state: Option<State>) -> Live {
        let label = Arc::from(policy.id().to_string());
        Live { policy, label, guest: None, state, is_said: false, since_checkpoint: 0 }
    }

    pub(crate) fn state_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.bytes.len())
    }

    pub(crate) fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// What it has come to. A policy that cannot say, says what it last said.
    ///
    /// Saying it costs its memory something, and so the next decision its fuel: a replay has it said at the same times.
    pub(crate) fn export(&mut self, shared: &Shared, seat: u32) -> (Option<State>, Option<Fault>) {
        if self.is_said {
            return (self.state.clone(), None);
        }
        let fault = match self.guest.as_mut().map(Guest::export_state) {
            Some(Ok(state)) => {
                (self.state, self.is_said, self.since_checkpoint) = (Some(state), true, 0);
                self.log_state(shared, seat, false);
                None
            }
            Some(Err(fault)) => {
                self.guest = None;
                Some(fault)
            }
            None => None,
        };
        (self.state.clone(), fault)
    }

    pub(crate) fn log_state(&self, shared: &Shared, seat: u32, started: bool) {
        shared.log(|| {
            Record::State(Box::new(StateRecord {
                seat,
                kind: self.policy.kind(),
                policy: self.policy.id().clone(),
                config: self.policy.config().clone(),
                state: self.state.clone(),
                started,
            }))
        });
    }

    fn decide(&mut self, shared: &Shared, seat: u32, tick: Tick, question: &Question) -> Outcome {
        let (fault, spent) = match self.ask(shared, seat, tick, question) {
            Ok(Answer { verdict, spent }) => match checked(tick, question, &verdict) {
                Ok(()) if verdict.abstains() => {
                    let why = format!("the policy abstains: {}", verdict.why());
                    return Outcome { verdict: question.native(tick), instead: Some((None, why)), spent };
                }
                Ok(()) => return Outcome { verdict, instead: None, spent },
                Err(invalid) => (Fault::Invalid(invalid), spent),
            },
            Err(failed) => failed,
        };
        if fault.poisons() {
            self.guest = None;
        }
        let why = fault.to_string();
        Outcome { verdict: question.native(tick), instead: Some((Some(fault), why)), spent }
    }

    fn ask(
        &mut self,
        shared: &Shared,
        seat: u32,
        tick: Tick,
        question: &Question,
    ) -> Result<Answer, (Fault, Spent)> {
        if self.guest.is_none() {
            // A new instance in place of one that was dropped goes on from the last checkpoint.
            let guest = self.policy.start(self.state.as_ref()).map_err(|fault| (fault, Spent::default()))?;
            self.guest = Some(guest);
            self.since_checkpoint = 0;
            self.log_state(shared, seat, true);
        }
        self.is_said = false;
        let Some(guest) = &mut self.guest else {
            return Err((Fault::Start("there is no instance".into()), Spent::default()));
        };
        guest.ask(tick, question)
    }

    /// From time to time keeps what it has come to.
    fn checkpoint(&mut self, shared: &Shared, seat: u32) -> Option<Fault> {
        self.since_checkpoint += 1;
        if self.since_checkpoint < shared.options().checkpoint_every || self.guest.is_none() {
            return None;
        }
        self.since_checkpoint = 0;
        self.export(shared, seat).1
    }
}
