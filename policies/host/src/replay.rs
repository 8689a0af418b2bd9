//! What was decided, decided again.
//!
//! A log that holds decisions of the same version (code and configuration) is replayed strictly: the same verdicts, the
//! same faults, the same fuel, the same states at checkpoints. Any other version answers every question of its
//! kind, from the first state of each policy thread if it reads that, and the decisions that differ are listed.
//! [`replay_all`] follows all versions of a log at once, and with them what was handed over at each swap.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;
use verdict::{Kind, Verdict};

use crate::digest::{Digest, PolicyId};
use crate::fault::{Fault, FaultClass};
use crate::guest::{Guest, State};
use crate::log::{self, DecisionRecord, LogError, Record, StateRecord};
use crate::policy::{Config, Policy, checked};

/// Differences that are kept in words.
const DIFFERENCES_MAX: usize = 100;

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// The log holds decisions of this very version, and only those were asked again.
    pub same_version: bool,
    /// Decisions that were asked again.
    pub decisions: u64,
    /// Those that came out the same.
    pub identical: u64,
    /// Those that did not.
    pub different: u64,
    /// States that were compared at checkpoints.
    pub states: u64,
    /// States that a version took over from the one before, and that were all that this one had come to.
    pub carried: u64,
    /// Decisions that cannot be asked again: they depended on a clock, or their state is no longer in the log.
    pub skipped: u64,
    /// The first differences.
    pub differences: Vec<ReplayDifference>,
}

/// One decision that comes out differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayDifference {
    /// Its number in the log.
    pub decision: u64,
    /// What was asked.
    pub function: &'static str,
    /// What it was, and why.
    pub logged: String,
    /// What it is now, and why.
    pub replayed: String,
}

/// Why a log cannot be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The policy does not start.
    #[error("{0}")]
    Start(Fault),
}

/// The configuration that a component had in a log: of the same digest if it is there, else of the same name.
pub fn config_in(path: &Path, digest: Digest, name: &str) -> Result<Option<Config>, LogError> {
    let mut named = None;
    for record in log::read(path)? {
        if let Record::State(state) = record? {
            if state.policy.digest == digest {
                return Ok(Some(state.config));
            }
            if state.policy.name == name {
                named = Some(state.config);
            }
        }
    }
    Ok(named)
}

/// Replays a log, which is a folder or one of its files.
pub fn replay(path: &Path, policy: &Arc<Policy>) -> Result<Replayed, ReplayError> {
    let mut same_version = false;
    for record in log::read(path)? {
        if let Record::Decision(decision) = record?
            && decision.policy.as_ref() == Some(policy.id())
        {
            same_version = true;
            break;
        }
    }
    let found = Replayed { same_version, ..Replayed::default() };
    let mut replay = Replay { policy, seats: Seats::new(), found };
    for record in log::read(path)? {
        match record? {
            Record::State(state) if state.kind == policy.kind() => replay.state(&state)?,
            Record::Decision(decision) if decision.question.kind() == policy.kind() => {
                replay.decision(&decision)?;
            }
            _ => {}
        }
    }
    Ok(replay.found)
}

/// Replays all of a log strictly, decided by any of `policies`, and what went from each version to the next: it must be
/// what the version before had come to, which the replay knows of its own.
pub fn replay_all(path: &Path, policies: &[Arc<Policy>]) -> Result<Replayed, ReplayError> {
    let found = Replayed { same_version: true, ..Replayed::default() };
    let mut of: BTreeMap<Kind, Replay<'_>> = BTreeMap::new();
    for record in log::read(path)? {
        let record = record?;
        let (kind, version) = match &record {
            Record::State(state) => (state.kind, Some(&state.policy)),
            Record::Decision(decision) => (decision.question.kind(), decision.policy.as_ref()),
            Record::Event { .. } => continue,
        };
        let Some(policy) = policies.iter().find(|policy| Some(policy.id()) == version) else { continue };
        let replay = of.entry(kind).or_insert_with(|| Replay {
            policy,
            seats: Seats::new(),
            found: Replayed::default(),
        });
        replay.policy = policy;
        match &record {
            Record::State(state) => replay.take_over(state)?,
            Record::Decision(decision) => replay.strictly(decision),
            Record::Event { .. } => {}
        }
    }
    Ok(of.into_values().fold(found, |all, replay| all.and(replay.found)))
}

/// The instance of each policy thread.
type Seats = BTreeMap<u32, Guest>;

struct Replay<'a> {
    policy: &'a Arc<Policy>,
    seats: Seats,
    found: Replayed,
}

impl Replay<'_> {
    fn state(&mut self, record: &StateRecord) -> Result<(), ReplayError> {
        let seat = record.seat;
        if !self.found.same_version {
            if !self.seats.contains_key(&seat) {
                // A state that it does not read is no reason not to ask it.
                let guest = self.policy.start(record.state.as_ref()).or_else(|_| self.policy.start(None));
                self.seats.insert(seat, guest.map_err(ReplayError::Start)?);
            }
            return Ok(());
        }
        if record.policy != *self.policy.id() {
            self.seats.remove(&seat);
            return Ok(());
        }
        match self.seats.get_mut(&seat) {
            Some(guest) if !record.started => {
                let now = guest.export_state();
                self.compare_state(record.state.as_ref(), now);
            }
            _ => {
                let guest = self.policy.start(record.state.as_ref()).map_err(ReplayError::Start)?;
                self.seats.insert(seat, guest);
            }
        }
        Ok(())
    }

    /// Like [`Replay::state`] for the same version, but whatever starts must go on from where its predecessor ended.
    fn take_over(&mut self, record: &StateRecord) -> Result<(), ReplayError> {
        let before = self.seats.get_mut(&record.seat).map(Guest::export_state);
        match before {
            Some(now) if !record.started => {
                self.compare_state(record.state.as_ref(), now);
                return Ok(());
            }
            Some(now) => {
                let different = self.found.different;
                self.compare_state(record.state.as_ref(), now);
                self.found.carried += u64::from(self.found.different == different);
            }
            None => {}
        }
        let guest = self.policy.start(record.state.as_ref()).map_err(ReplayError::Start)?;
        self.seats.insert(record.seat, guest);
        Ok(())
    }

    fn compare_state(&mut self, logged: Option<&State>, now: Result<State, Fault>) {
        self.found.states += 1;
        if now.as_ref().ok() != logged {
            let text = |state: &State| format!("a state of {} bytes", state.bytes.len());
            let logged = logged.map_or_else(|| "no state".into(), text);
            let replayed = now.as_ref().map_or_else(ToString::to_string, text);
            self.differ(ReplayDifference { decision: 0, function: "export-state", logged, replayed });
        }
    }

    fn decision(&mut self, record: &DecisionRecord) -> Result<(), ReplayError> {
        if self.found.same_version {
            if record.policy.as_ref() == Some(self.policy.id()) {
                self.strictly(record);
            }
            return Ok(());
        }
        let guest = match self.seats.entry(record.seat) {
            std::collections::btree_map::Entry::Occupied(guest) => guest.into_mut(),
            std::collections::btree_map::Entry::Vacant(seat) => {
                seat.insert(self.policy.start(None).map_err(ReplayError::Start)?)
            }
        };
        let (now, _) = ask(guest, record);
        if matches!(&now, Now::Fault { poisons: true, .. }) {
            self.seats.remove(&record.seat);
        }
        let same = match &now {
            Now::Verdict(verdict) => verdict.decides_like(&record.verdict),
            Now::Abstains { verdict, .. } => verdict.decides_like(&record.verdict),
            Now::Fault { .. } => false,
        };
        self.count(record, same, &now);
        Ok(())
    }

    fn strictly(&mut self, record: &DecisionRecord) {
        let fault = record.instead.as_ref().and_then(|instead| instead.fault);
        let Some(guest) = self.seats.get_mut(&record.seat) else {
            self.found.skipped += 1;
            return;
        };
        if matches!(fault, Some(FaultClass::Deadline | FaultClass::Start)) {
            // What a clock decided, or what never began.
            self.found.skipped += 1;
            self.seats.remove(&record.seat);
            return;
        }
        let (now, fuel) = ask(guest, record);
        if matches!(&now, Now::Fault { poisons: true, .. }) {
            self.seats.remove(&record.seat);
        }
        let instead = record.instead.as_ref().map(|instead| instead.why.as_str());
        let same = fuel == record.fuel
            && match &now {
                Now::Verdict(verdict) => instead.is_none() && *verdict == record.verdict,
                Now::Abstains { verdict, why } => instead == Some(why) && *verdict == record.verdict,
                Now::Fault { why, .. } => instead == Some(why),
            };
        self.count(record, same, &now);
    }

    fn count(&mut self, record: &DecisionRecord, same: bool, now: &Now) {
        self.found.decisions += 1;
        if same {
            self.found.identical += 1;
            return;
        }
        let logged = match &record.instead {
            Some(instead) => format!("{} (the native default)", instead.why),
            None => told(&record.verdict),
        };
        let replayed = match now {
            Now::Verdict(verdict) => told(verdict),
            Now::Abstains { why, .. } | Now::Fault { why, .. } => why.clone(),
        };
        let function = record.question.function();
        self.differ(ReplayDifference { decision: record.number, function, logged, replayed });
    }

    fn differ(&mut self, difference: ReplayDifference) {
        self.found.different += 1;
        if self.found.differences.len() < DIFFERENCES_MAX {
            self.found.differences.push(difference);
        }
    }
}

/// What comes of asking now; the texts are those of the log.
enum Now {
    Verdict(Verdict),
    Abstains { verdict: Verdict, why: String },
    Fault { why: String, poisons: bool },
}

fn ask(guest: &mut Guest, record: &DecisionRecord) -> (Now, u64) {
    let failed = |fault: Fault| Now::Fault { why: fault.to_string(), poisons: fault.poisons() };
    match guest.ask(record.tick, &record.question) {
        Ok(answer) => {
            let verdict = answer.verdict;
            let now = match checked(record.tick, &record.question, &verdict) {
                Err(invalid) => failed(Fault::Invalid(invalid)),
                Ok(()) if verdict.abstains() => Now::Abstains {
                    why: format!("the policy abstains: {}", verdict.why()),
                    verdict: record.question.native(record.tick),
                },
                Ok(()) => Now::Verdict(verdict),
            };
            (now, answer.spent.fuel)
        }
        Err((fault, spent)) => (failed(fault), spent.fuel),
    }
}

/// A verdict in a line.
pub fn told(verdict: &Verdict) -> String {
    let what = match verdict {
        Verdict::Schedule(answer) => format!("starts {}", rows(&answer.candidate)),
        Verdict::UpdateWeights(answer) => format!("weights {}", rows(&answer.weight_ppm)),
        Verdict::PickVictims(answer) => {
            format!("revokes {} after {} ms", rows(&answer.lease), answer.grace_ms)
        }
        Verdict::BuildProfile(answer) => {
            format!("{} slots of {} ms, {} ppm sure", answer.slots(), answer.slot_ms, answer.confidence_ppm)
        }
        Verdict::ChooseTime(answer) => format!("{:?}", answer.choice),
    };
    format!("{what}: {}", verdict.why())
}

fn rows(rows: &[u32]) -> String {
    let first: Vec<String> = rows.iter().take(8).map(u32::to_string).collect();
    let more = if rows.len() > 8 { format!(" and {} more", rows.len() - 8) } else { String::new() };
    format!("[{}{more}]", first.join(" "))
}

impl Replayed {
    fn and(mut self, other: Replayed) -> Replayed {
        self.decisions += other.decisions;
        self.identical += other.identical;
        self.different += other.different;
        self.states += other.states;
        self.carried += other.carried;
        self.skipped += other.skipped;
        let room = DIFFERENCES_MAX.saturating_sub(self.differences.len());
        self.differences.extend(other.differences.into_iter().take(room));
        self
    }

    /// Whether it shows what it should: nothing differs, and something was asked.
    pub fn is_identical(&self) -> bool {
        self.different == 0 && self.decisions > 0
    }
}

/// Who took which decisions in a log, by number.
pub fn decided_by(path: &Path) -> Result<BTreeMap<String, u64>, LogError> {
    let mut counts = BTreeMap::new();
    for record in log::read(path)? {
        if let Record::Decision(decision) = record? {
            let name = decision.policy.as_ref().map_or_else(|| "native".into(), PolicyId::to_string);
            *counts.entry(name).or_default() += 1;
        }
    }
    Ok(counts)
}
