//! What is active and what was active before it, in the store, so that both outlive a restart (decision 056).
//!
//! A choice that cannot be restored stays in the store, with the state that is kept of it: what was before it decides
//! meanwhile, and everybody is told (decision 075).
//!
//! Invariants: what the store says changes in one transaction with the state that is kept; a choice goes by another one,
//! by a rollback, or by faults of the policy that was chosen, and by nothing else.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use host::{PolicyId, Start};
use store::{StoreError, Transaction};
use tracing::{info, warn};
use verdict::Kind;

use super::Policies;

/// What the store says of a kind: none of it if the native default decides and nothing was before it.
pub(super) struct Stored {
    active: Option<PolicyId>,
    /// What a rollback goes back to, the last one first.
    previous: Vec<PolicyId>,
    /// The active one could not be restored.
    missing: bool,
}

impl Stored {
    /// All that were chosen.
    pub(super) fn versions(&self) -> impl Iterator<Item = &PolicyId> {
        self.active.iter().chain(&self.previous)
    }
}

impl Policies {
    pub(super) fn read_stored(&self, kind: Kind) -> Result<Option<Stored>, StoreError> {
        let failed = |error| StoreError::Failed(Box::new(error));
        let Some(active) = self.0.store.get(&active_key(kind))? else { return Ok(None) };
        let active = serde_json::from_slice(&active.value).map_err(failed)?;
        let previous = match self.0.store.get(&previous_key(kind))? {
            Some(entry) => serde_json::from_slice(&entry.value).map_err(failed)?,
            None => Vec::new(),
        };
        Ok(Some(Stored { active: Some(active), previous, missing: false }))
    }

    /// Goes through the versions again, the oldest first, so that a rollback finds them.
    pub(super) fn restore_kind(&self, kind: Kind, stored: Stored) {
        for id in stored.previous.iter().rev() {
            if let Err(why) = self.restore_one(id) {
                warn!("a rollback of {kind} does not find {id} any more: {why}");
            }
        }
        let active = stored.active.clone();
        self.stored().insert(kind.name(), stored);
        let Some(id) = active else { return };
        match self.restore_one(&id) {
            Ok(()) => {
                info!(%kind, policy = %id, "active again");
                self.resume(kind);
            }
            Err(why) => {
                self.stored().entry(kind.name()).and_modify(|stored| stored.missing = true);
                self.tell_missing(kind, &id, &why);
            }
        }
    }

    /// Says what decides in place of a choice, and what to do.
    fn tell_missing(&self, kind: Kind, id: &PolicyId, why: &str) {
        let instead = self.deciding(kind);
        let here =
            self.0.host.find(&id.name).map_or("another one".to_owned(), |known| known.id().to_string());
        let what = format!(
            "{id} was chosen for {kind} and cannot decide: {why}. The choice is kept, and {instead} decides meanwhile. \
             Push it again and start the control plane again, activate {here}, or stay with {instead}: \
             `tidegate policy rollback {kind}`"
        );
        self.0.host.note(kind, what.clone());
        self.0.alarms.raise(what);
    }

    /// The choice that could not be restored.
    pub(super) fn missing(&self, kind: Kind) -> Option<PolicyId> {
        let stored = self.stored();
        stored.get(kind.name()).filter(|stored| stored.missing)?.active.clone()
    }

    /// What decides, for people.
    pub(super) fn deciding(&self, kind: Kind) -> String {
        self.0.host.active(kind).map_or("native".to_owned(), |policy| policy.id().to_string())
    }

    fn restore_one(&self, id: &PolicyId) -> Result<(), String> {
        let policy = self.0.host.find_by(|known| known == id);
        let policy = policy.ok_or("its component is not there, or was left out as the log says")?;
        self.0.host.activate(&policy, Start::Fresh).map_err(|error| error.to_string())?;
        // One that an older version of this program has chosen has no file yet.
        if let Err(why) = self.keep_chosen(&policy) {
            warn!("{id} is gone after an upgrade: {why}");
        }
        Ok(())
    }

    /// Whether the store says what is active, or a choice that waits to be restored.
    pub(super) fn is_remembered(&self, kind: Kind) -> bool {
        let active = self.0.host.active(kind);
        let stored = self.stored();
        if stored.get(kind.name()).is_some_and(|stored| stored.missing) {
            return true;
        }
        active.as_ref().map(|policy| policy.id())
            == stored.get(kind.name()).and_then(|known| known.active.as_ref())
    }

    /// Has the store say what is active, and what was before it.
    pub(super) fn remember(&self, kind: Kind) -> Result<(), StoreError> {
        let mut stored = self.stored();
        let active = self.0.host.active(kind).map(|policy| policy.id().clone());
        let state = self.0.seats[kind.name()].state(kind);
        let previous = self.0.host.previous(kind).iter().rev().map(|policy| policy.id().clone()).collect();
        let now = Stored { active, previous, missing: false };
        let json = |error| StoreError::Failed(Box::new(error));
        let transaction = match &now.active {
            Some(id) => Transaction::new()
                .put(active_key(kind), serde_json::to_vec(id).map_err(json)?)
                .put(previous_key(kind), serde_json::to_vec(&now.previous).map_err(json)?),
            None => Transaction::new().delete(active_key(kind)).delete(previous_key(kind)),
        };
        let state = state.filter(|_| now.active.is_some());
        self.keep_with(transaction, kind, state.as_ref())?;
        stored.insert(kind.name(), now);
        Ok(())
    }

    fn stored(&self) -> MutexGuard<'_, BTreeMap<&'static str, Stored>> {
        // What is in it is the store's, at every instant.
        self.0.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn active_key(kind: Kind) -> String {
    format!("policies/active/{kind}")
}

fn previous_key(kind: Kind) -> String {
    format!("policies/previous/{kind}")
}
