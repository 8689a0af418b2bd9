//! The machine behind a lock, with something below that makes changes durable, or nothing.
//!
//! A watch holds no queue: it reads the machine's history from where it was, so a slow one costs nothing and is
//! told when it comes too late.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::{self, OpenError};
use crate::machine::{Judged, Machine};
use crate::{
    Batch, Entry, KeyRange, LeaseId, Outcome, Page, Revision, Store, StoreError, Transaction, Watch,
    WatchError,
};

/// Where changes are made durable before they are seen.
pub(crate) trait Medium: Send {
    /// All of it or nothing, and durable when this returns.
    fn keep(&mut self, keep: &Keep<'_>) -> Result<(), StoreError>;
}

/// What a medium is to keep.
#[derive(Default)]
pub(crate) struct Keep<'a> {
    pub batch: Option<&'a Batch>,
    /// History up to and with this revision is forgotten.
    pub forgotten: Option<Revision>,
    pub granted: Option<(LeaseId, Duration)>,
    pub ended: Option<LeaseId>,
}

/// Forgets everything with its process.
struct Nothing;

impl Medium for Nothing {
    fn keep(&mut self, _: &Keep<'_>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A store inside this process; clones are the same store.
#[derive(Clone)]
pub struct Local(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    machine: Machine,
    medium: Box<dyn Medium>,
}

impl Local {
    /// An empty store that is gone with its process.
    pub fn in_memory() -> Local {
        Local::new(Machine::default(), Box::new(Nothing))
    }

    /// The store in a file, made if it is not there.
    pub fn open(path: &Path) -> Result<Local, OpenError> {
        let (machine, medium) = disk::open(path)?;
        Ok(Local::new(machine, Box::new(medium)))
    }

    fn new(machine: Machine, medium: Box<dyn Medium>) -> Local {
        Local(Arc::new(Inner { state: Mutex::new(State { machine, medium }), changed: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in between leaves the machine as it was: it changes by `apply` alone, after the medium.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn commit(&mut self, keep: Keep<'_>) -> Result<(), StoreError> {
        let forgotten = keep.batch.and_then(|batch| self.machine.forgets(batch));
        self.medium.keep(&Keep { forgotten, ..keep })?;
        if let Some(revision) = forgotten {
            self.machine.forget(revision);
        }
        if let Some((id, ttl)) = keep.granted {
            self.machine.grant(id, ttl);
        }
        if let Some(batch) = keep.batch {
            self.machine.apply(batch.clone());
        }
        if let Some(id) = keep.ended {
            self.machine.end(id);
        }
        Ok(())
    }

    fn end(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let batch = self.machine.judge_end(id)?;
        self.commit(Keep { batch: batch.as_ref(), ended: Some(id), ..Keep::default() })
    }
}

impl Store for Local {
    fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.lock().machine.revision())
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.lock().machine.get(key).cloned())
    }

    fn range(&self, range: &KeyRange, limit: usize) -> Result<Page, StoreError> {
        Ok(self.lock().machine.range(range, limit))
    }

    fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let mut state = self.lock();
        let batch = match state.machine.judge(transaction)? {
            Judged::Nothing(outcome) => return Ok(outcome),
            Judged::Changes(batch) => batch,
        };
        state.commit(Keep { batch: Some(&batch), ..Keep::default() })?;
        drop(state);
        self.0.changed.notify_all();
        Ok(Outcome::Done { revision: batch.revision })
    }

    fn watch(&self, range: KeyRange, from: Revision) -> Result<Box<dyn Watch>, WatchError> {
        self.lock().machine.since(&range, from)?;
        Ok(Box::new(Cursor { store: self.clone(), range, from }))
    }

    fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let mut state = self.lock();
        let id = state.machine.next_lease()?;
        state.commit(Keep { granted: Some((id, ttl)), ..Keep::default() })?;
        Ok(id)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        Ok(self.lock().machine.keep_alive(lease)?)
    }

    fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.lock().end(lease)?;
        self.0.changed.notify_all();
        Ok(())
    }

    fn pass(&self, time: Duration) -> Result<(), StoreError> {
        let mut state = self.lock();
        let expired = state.machine.pass(time);
        if expired.is_empty() {
            return Ok(());
        }
        let outcome = expired.into_iter().try_for_each(|id| state.end(id));
        drop(state);
        self.0.changed.notify_all();
        outcome
    }
}

struct Cursor {
    store: Local,
    range: KeyRange,
    from: Revision,
}

impl Watch for Cursor {
    fn next(&mut self, patience: Duration) -> Result<Vec<Batch>, WatchError> {
        let until = std::time::Instant::now() + patience;
        let mut state = self.store.lock();
        loop {
            let (batches, from) = state.machine.since(&self.range, self.from)?;
            self.from = from;
            let left = until.saturating_duration_since(std::time::Instant::now());
            if !batches.is_empty() || left.is_zero() {
                return Ok(batches);
            }
            let waited = self.store.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
