//! Which waiting operations start, in which order, at whom.
//!
//! The control plane lists *candidates*: each way in which a waiting event may be answered is a row {event,
//! operation, handler} with what it would need of which accounts. A policy picks rows; at most one per event,
//! and together within the limits. [`Room`] answers "does this row still fit" for everybody: policies, the
//! native default and the check.

use std::collections::HashSet;

use crate::invalid::{in_range, known_row, same_length};
use crate::{Invalid, Tick};

/// Latest start that a policy may set, after the tick: room that is kept for later is room that nobody has.
pub const NOT_BEFORE_MS_MAX: u64 = 3_600_000;

/// Most sentences in [`Assignments::reasons`].
pub const REASONS_MAX: usize = 64;

/// Longest of those sentences in bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// What could be started. Rows with the same event are alternatives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Candidates {
    /// Which event waits.
    pub event: Vec<u64>,
    /// The kind of operation.
    pub op: Vec<u32>,
    /// Who would carry it out.
    pub handler: Vec<u64>,
    /// For whom.
    pub tenant: Vec<u64>,
    /// Urgency of what triggered the event; 0 is the most urgent.
    pub trigger: Vec<u32>,
    /// Since when it waits.
    pub registered_ms: Vec<u64>,
    /// The needs of row i are those from `needs_end[i - 1]` (0 for the first row) up to `needs_end[i]`.
    pub needs_end: Vec<u32>,
    /// One entry per need: the row in [`Accounts`].
    pub need_account: Vec<u32>,
    /// One entry per need: how much of it.
    pub need_amount: Vec<u64>,
}

/// One row of [`Candidates`], for writing them.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Which event waits.
    pub event: u64,
    /// The kind of operation.
    pub op: u32,
    /// Who would carry it out.
    pub handler: u64,
    /// For whom.
    pub tenant: u64,
    /// Urgency of what triggered the event; 0 is the most urgent.
    pub trigger: u32,
    /// Since when it waits.
    pub registered_ms: u64,
    /// (row in [`Accounts`], amount).
    pub needs: &'a [(u32, u64)],
}

impl Candidates {
    /// Adds a row.
    pub fn push(&mut self, row: Candidate<'_>) {
        self.event.push(row.event);
        self.op.push(row.op);
        self.handler.push(row.handler);
        self.tenant.push(row.tenant);
        self.trigger.push(row.trigger);
        self.registered_ms.push(row.registered_ms);
        for &(account, amount) in row.needs {
            self.need_account.push(account);
            self.need_amount.push(amount);
        }
        self.needs_end.push(u32::try_from(self.need_account.len()).unwrap_or(u32::MAX));
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.event.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.event.is_empty()
    }

    /// What a row needs: (row in [`Accounts`], amount).
    pub fn needs(&self, row: usize) -> impl Iterator<Item = (u32, u64)> {
        let end = |row: usize| self.needs_end.get(row).map_or(0, |&end| end as usize);
        let (from, to) = (row.checked_sub(1).map_or(0, end), end(row));
        let accounts = self.need_account.get(from..to).unwrap_or_default();
        let amounts = self.need_amount.get(from..to).unwrap_or_default();
        accounts.iter().copied().zip(amounts.iter().copied())
    }
}

/// What is counted, of nodes, links, volumes, tenants and the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Accounts {
    /// Running and scheduled together.
    pub in_use: Vec<u64>,
    /// The most of it.
    pub limit: Vec<u64>,
}

/// Shares of tenants. A tenant that is not listed weighs 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tenants {
    /// Whose.
    pub tenant: Vec<u64>,
    /// Its weight.
    pub weight: Vec<u32>,
}

/// Rows to start, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Assignments {
    /// Take the native default.
    pub abstain: bool,
    /// Rows of [`Candidates`], at most one per event.
    pub candidate: Vec<u32>,
    /// Not earlier than this; the tick's time means at once.
    pub not_before_ms: Vec<u64>,
    /// Row in `reasons`.
    pub reason: Vec<u32>,
    /// Sentences that rows share.
    pub reasons: Vec<String>,
    /// Of the whole.
    pub why: String,
}

impl Assignments {
    /// Adds a row that starts at `not_before_ms`, for a sentence of `reasons`.
    pub fn push(&mut self, candidate: u32, not_before_ms: u64, reason: u32) {
        self.candidate.push(candidate);
        self.not_before_ms.push(not_before_ms);
        self.reason.push(reason);
    }

    /// Why a row of the assignments was chosen.
    pub fn reason(&self, at: usize) -> &str {
        self.reason.get(at).and_then(|&row| self.reasons.get(row as usize)).map_or("", String::as_str)
    }
}

/// Decides what starts.
pub trait Scheduling {
    /// Picks rows of `candidates` which fit into `accounts` together.
    fn schedule(
        &mut self,
        tick: Tick,
        candidates: &Candidates,
        accounts: &Accounts,
        tenants: &Tenants,
    ) -> Assignments;
}

/// The question of [`Scheduling::schedule`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Schedule {
    /// What could start.
    pub candidates: Candidates,
    /// What there is room for.
    pub accounts: Accounts,
    /// Whose share is how large.
    pub tenants: Tenants,
}

impl Schedule {
    /// The most urgent trigger first, then who has waited longest.
    pub fn native(&self, tick: Tick) -> Assignments {
        let rows = &self.candidates;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let of = |column: &[u64], row: usize| column.get(row).copied().unwrap_or(u64::MAX);
        order.sort_by_key(|&row| {
            (rows.trigger.get(row).copied().unwrap_or(u32::MAX), of(&rows.registered_ms, row), row)
        });
        let mut room = Room::new(&self.accounts);
        let mut chosen = Assignments { reasons: vec!["urgent or long waiting".into()], ..Default::default() };
        for row in order {
            if room.take(rows, row).is_ok() {
                chosen.push(row as u32, tick.now_ms, 0);
            }
        }
        chosen.why = format!("{} of {} candidates fit", chosen.candidate.len(), rows.len());
        chosen
    }

    /// See [`crate::Question::check`].
    pub fn check(&self, tick: Tick, answer: &Assignments) -> Result<(), Invalid> {
        let rows = answer.candidate.len();
        same_length("not-before-ms", answer.not_before_ms.len(), rows)?;
        same_length("reason", answer.reason.len(), rows)?;
        in_range("number of reasons", answer.reasons.len() as u64, 0, REASONS_MAX as u64)?;
        if let Some(long) = answer.reasons.iter().find(|reason| reason.len() > REASON_BYTES_MAX) {
            return Err(Invalid::LongText { bytes: long.len(), max: REASON_BYTES_MAX });
        }
        for &reason in &answer.reason {
            known_row("reason", reason, answer.reasons.len())?;
        }
        let latest = tick.now_ms.saturating_add(NOT_BEFORE_MS_MAX);
        for &at in &answer.not_before_ms {
            in_range("not-before-ms", at, tick.now_ms, latest)?;
        }
        let mut room = Room::new(&self.accounts);
        for &row in &answer.candidate {
            room.take(&self.candidates, known_row("candidate", row, self.candidates.len())?)?;
        }
        Ok(())
    }
}

/// What the accounts have left, and which events are answered.
#[derive(Clone, Debug)]
pub struct Room {
    left: Vec<u64>,
    answered: HashSet<u64>,
}

impl Room {
    /// All that the accounts have left.
    pub fn new(accounts: &Accounts) -> Room {
        let left = accounts.limit.iter().zip(&accounts.in_use);
        Room {
            left: left.map(|(limit, in_use)| limit.saturating_sub(*in_use)).collect(),
            answered: HashSet::new(),
        }
    }

    /// Takes what a row needs, or nothing: an event is answered once, and limits hold for the sum.
    pub fn take(&mut self, candidates: &Candidates, row: usize) -> Result<(), Invalid> {
        let column = "candidate";
        let unknown = Invalid::UnknownRow { column, row: row as u32, rows: candidates.len() };
        let &event = candidates.event.get(row).ok_or(unknown)?;
        if self.answered.contains(&event) {
            return Err(Invalid::Twice { column: "event", value: event });
        }
        for (taken, (account, amount)) in candidates.needs(row).enumerate() {
            let left = self.left.get_mut(account as usize);
            match left.and_then(|left| left.checked_sub(amount).map(|rest| *left = rest)) {
                Some(()) => {}
                None => {
                    self.give_back(candidates, row, taken);
                    return Err(Invalid::OverLimit { row: row as u32, account });
                }
            }
        }
        self.answered.insert(event);
        Ok(())
    }

    fn give_back(&mut self, candidates: &Candidates, row: usize, needs: usize) {
        for (account, amount) in candidates.needs(row).take(needs) {
            if let Some(left) = self.left.get_mut(account as usize) {
                *left = left.saturating_add(amount);
            }
        }
    }
}
