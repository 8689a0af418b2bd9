//! What a store means, without a medium: transactions are judged, then applied, in two steps, so that a medium
//! can make the changes durable in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use crate::{
    Batch, Change, Entry, HISTORY_BYTES_MAX, HISTORY_REVISIONS, KeyRange, LEASES_MAX, LeaseId, Operation,
    Outcome, Page, Refusal, Revision, Transaction, WatchError,
};

/// All keys, their recent history, and the leases.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    /// One for each revision after `forgotten`.
    history: VecDeque<Batch>,
    history_bytes: usize,
    forgotten: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: u64,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    left: Duration,
    keys: BTreeSet<String>,
}

/// What a transaction comes to.
pub(crate) enum Judged {
    /// It changes this.
    Changes(Batch),
    /// It changes nothing.
    Nothing(Outcome),
}

impl Machine {
    /// A machine with what a medium kept. `history` ends with `revision`.
    pub fn restore(
        revision: Revision,
        entries: BTreeMap<String, Entry>,
        history: VecDeque<Batch>,
        leases: impl Iterator<Item = (LeaseId, Duration)>,
        last_lease: u64,
    ) -> Machine {
        let mut leases: BTreeMap<LeaseId, Lease> =
            leases.map(|(id, ttl)| (id, Lease { ttl, left: ttl, keys: BTreeSet::new() })).collect();
        for (key, entry) in &entries {
            if let Some(lease) = entry.lease.and_then(|id| leases.get_mut(&id)) {
                lease.keys.insert(key.clone());
            }
        }
        let forgotten = history.front().map_or(revision, |batch| batch.revision - 1);
        let history_bytes = history.iter().map(bytes).sum();
        Machine { revision, entries, history, history_bytes, forgotten, leases, last_lease }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub fn range(&self, range: &KeyRange, limit: usize) -> Page {
        let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let empty = range.end.as_deref().is_some_and(|end| end <= range.start.as_str());
        let mut found = (!empty)
            .then(|| self.entries.range::<str, _>((Bound::Included(range.start.as_str()), end)))
            .into_iter()
            .flatten();
        let entries = found.by_ref().take(limit).map(|(key, entry)| (key.clone(), entry.clone())).collect();
        Page { entries, more: found.next().is_some(), revision: self.revision }
    }

    /// What `transaction` would change; changes nothing itself.
    pub fn judge(&self, transaction: &Transaction) -> Result<Judged, Refusal> {
        self.check(transaction)?;
        let modified = |key: &str| self.entries.get(key).map_or(0, |entry| entry.modified);
        if transaction.compares.iter().any(|compare| modified(&compare.key) != compare.modified) {
            let found = transaction.compares.iter().map(|compare| self.entries.get(&compare.key).cloned());
            return Ok(Judged::Nothing(Outcome::Conflict { found: found.collect() }));
        }
        let revision = self.revision + 1;
        let change = |operation: &Operation| {
            let before = self.entries.get(operation.key());
            let entry = match operation {
                Operation::Put { value, lease, .. } => Some(Entry {
                    value: value.clone(),
                    created: before.map_or(revision, |entry| entry.created),
                    modified: revision,
                    lease: *lease,
                }),
                Operation::Delete { .. } => None,
            };
            let changes = entry.is_some() || before.is_some();
            changes.then(|| Change { key: operation.key().to_owned(), entry })
        };
        let changes: Vec<Change> = transaction.operations.iter().filter_map(change).collect();
        if changes.is_empty() {
            return Ok(Judged::Nothing(Outcome::Done { revision: self.revision }));
        }
        Ok(Judged::Changes(Batch { revision, changes }))
    }

    fn check(&self, transaction: &Transaction) -> Result<(), Refusal> {
        transaction.check()?;
        for operation in &transaction.operations {
            let Operation::Put { lease: Some(lease), .. } = operation else { continue };
            if !self.leases.contains_key(lease) {
                return Err(Refusal::Lease);
            }
        }
        Ok(())
    }

    /// The last revision that has to be forgotten before `batch` has its place in the history.
    pub fn forgets(&self, batch: &Batch) -> Option<Revision> {
        let (mut count, mut bytes) = (self.history.len() as u64 + 1, self.history_bytes + bytes(batch));
        let too_much = self.history.iter().take_while(|old| {
            let over = count > HISTORY_REVISIONS || bytes > HISTORY_BYTES_MAX;
            count -= 1;
            bytes -= self::bytes(old);
            over
        });
        too_much.last().map(|old| old.revision)
    }

    /// Forgets history up to and with `revision`.
    pub fn forget(&mut self, revision: Revision) {
        while let Some(old) = self.history.pop_front_if(|old| old.revision <= revision) {
            self.history_bytes -= bytes(&old);
            self.forgotten = old.revision;
        }
    }

    /// Does what was judged; nothing may have come in between.
    pub fn apply(&mut self, batch: Batch) {
        debug_assert_eq!(batch.revision, self.revision + 1);
        for change in &batch.changes {
            let before = match &change.entry {
                Some(entry) => self.entries.insert(change.key.clone(), entry.clone()),
                None => self.entries.remove(&change.key),
            };
            if let Some(lease) = before.and_then(|entry| entry.lease).and_then(|id| self.leases.get_mut(&id))
            {
                lease.keys.remove(&change.key);
            }
            let after = change.entry.as_ref().and_then(|entry| entry.lease);
            if let Some(lease) = after.and_then(|id| self.leases.get_mut(&id)) {
                lease.keys.insert(change.key.clone());
            }
        }
        self.revision = batch.revision;
        self.history_bytes += bytes(&batch);
        self.history.push_back(batch);
    }

    /// Changes in `range` from revision `from` on, and the revision to go on with.
    pub fn since(&self, range: &KeyRange, from: Revision) -> Result<(Vec<Batch>, Revision), WatchError> {
        if from <= self.forgotten {
            return Err(WatchError::Compacted { first: self.forgotten + 1 });
        }
        // History is dense: one batch for each revision.
        let known = (from - self.forgotten - 1) as usize;
        let batches = self.history.iter().skip(known).filter_map(|batch| {
            let inside = batch.changes.iter().filter(|change| range.contains(&change.key));
            let changes: Vec<Change> = inside.cloned().collect();
            (!changes.is_empty()).then_some(Batch { revision: batch.revision, changes })
        });
        Ok((batches.collect(), from.max(self.revision + 1)))
    }

    /// The number that the next lease will have.
    pub fn next_lease(&self) -> Result<LeaseId, Refusal> {
        if self.leases.len() < LEASES_MAX { Ok(LeaseId(self.last_lease + 1)) } else { Err(Refusal::Leases) }
    }

    pub fn grant(&mut self, id: LeaseId, ttl: Duration) {
        self.last_lease = id.0;
        self.leases.insert(id, Lease { ttl, left: ttl, keys: BTreeSet::new() });
    }

    pub fn keep_alive(&mut self, id: LeaseId) -> Result<(), Refusal> {
        let lease = self.leases.get_mut(&id).ok_or(Refusal::Lease)?;
        lease.left = lease.ttl;
        Ok(())
    }

    /// Takes time off all leases; returns those that have none left.
    pub fn pass(&mut self, time: Duration) -> Vec<LeaseId> {
        for lease in self.leases.values_mut() {
            lease.left = lease.left.saturating_sub(time);
        }
        self.leases.iter().filter(|(_, lease)| lease.left.is_zero()).map(|(id, _)| *id).collect()
    }

    /// What the end of a lease removes; `None` = no key.
    pub fn judge_end(&self, id: LeaseId) -> Result<Option<Batch>, Refusal> {
        let lease = self.leases.get(&id).ok_or(Refusal::Lease)?;
        let changes: Vec<Change> =
            lease.keys.iter().map(|key| Change { key: key.clone(), entry: None }).collect();
        Ok((!changes.is_empty()).then_some(Batch { revision: self.revision + 1, changes }))
    }

    /// Removes a lease whose keys are gone.
    pub fn end(&mut self, id: LeaseId) {
        self.leases.remove(&id);
    }
}

/// What a batch takes in the history, about.
fn bytes(batch: &Batch) -> usize {
    let value = |change: &Change| change.entry.as_ref().map_or(0, |entry| entry.value.len());
    batch.changes.iter().map(|change| change.key.len() + value(change) + size_of::<Change>()).sum()
}
