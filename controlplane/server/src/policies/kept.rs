//! What active policies have come to, in the store (decision 056).
//!
//! One head for each kind, and the state behind it in pieces, since all of it may be longer than a transaction. There are
//! places for two states: the pieces of a new one are written where the head does not point, then the head goes over.
//!
//! Invariants: what is kept is of the version that the store says is active; a state that is not there wholly has no
//! head. It is looked at again [`EVERY`] after the last look is stored: while the store is away or a decision takes
//! long, what is kept is older.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use host::State;
use serde::{Deserialize, Serialize};
use store::{Store, StoreError, Transaction, VALUE_BYTES_MAX};
use tracing::{info, warn};
use verdict::Kind;

use super::Policies;
use super::stored::active_key;

/// Time from the end of one look at what policies have come to until the next.
const EVERY: Duration = Duration::from_secs(2);
/// Pieces of one state at most: what a policy may export.
const PIECES_MAX: usize = 4;

/// What a kind has in the store.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    schema: u32,
    bytes: usize,
    /// Which of the two places it has.
    #[serde(default)]
    place: usize,
}

fn head_key(kind: Kind) -> String {
    format!("policies/state/{kind}")
}

fn piece_key(kind: Kind, place: usize, piece: usize) -> String {
    format!("policies/state/{kind}/{}", place * PIECES_MAX + piece)
}

fn read_head(store: &dyn Store, kind: Kind) -> Result<Option<Head>, StoreError> {
    let Some(head) = store.get(&head_key(kind))? else { return Ok(None) };
    serde_json::from_slice(&head.value).map(Some).map_err(|error| StoreError::Failed(Box::new(error)))
}

/// Stores a state where the head does not point.
fn write_pieces(store: &dyn Store, kind: Kind, state: &State) -> Result<Head, StoreError> {
    let place = read_head(store, kind)?.map_or(0, |head| 1 - head.place.min(1));
    for (at, piece) in state.bytes.chunks(VALUE_BYTES_MAX).enumerate() {
        store.transact(&Transaction::new().put(piece_key(kind, place, at), piece))?;
    }
    Ok(Head { schema: state.schema, bytes: state.bytes.len(), place })
}

/// Has `transaction` also say which state is kept of a kind.
fn point(transaction: Transaction, kind: Kind, head: Option<&Head>) -> Result<Transaction, StoreError> {
    let Some(head) = head else { return Ok(transaction.delete(head_key(kind))) };
    let head = serde_json::to_vec(head).map_err(|error| StoreError::Failed(Box::new(error)))?;
    Ok(transaction.put(head_key(kind), head))
}

/// What is kept of a kind.
pub(super) fn read(store: &dyn Store, kind: Kind) -> Result<Option<State>, StoreError> {
    let Some(head) = read_head(store, kind)? else { return Ok(None) };
    let mut state = State { schema: head.schema, bytes: Vec::new() };
    for piece in 0..head.bytes.div_ceil(VALUE_BYTES_MAX).min(PIECES_MAX) {
        if let Some(entry) = store.get(&piece_key(kind, head.place.min(1), piece))? {
            state.bytes.extend_from_slice(&entry.value);
        }
    }
    state.bytes.truncate(head.bytes);
    Ok(Some(state))
}

impl Policies {
    /// Has the active policy of a kind go on from what the store has of it.
    pub(super) fn resume(&self, kind: Kind) {
        let state = match read(&*self.0.store, kind) {
            Ok(Some(state)) => state,
            Ok(None) => return,
            Err(error) => return warn!(%kind, "begins anew, since its state cannot be read: {error}"),
        };
        match self.0.seats[kind.name()].resume(kind, &state) {
            Ok(true) => info!(%kind, bytes = state.bytes.len(), "goes on from what it had come to"),
            Ok(false) => {}
            Err(fault) => warn!(%kind, "begins anew, since it refuses its state: {fault}"),
        }
    }

    /// Keeps what has changed. A decision of the kind may wait while the policy says it and the log takes it (4 MiB at
    /// most), not for the store.
    fn keep(&self, kind: Kind) -> Result<(), StoreError> {
        // What is kept is the choice's, and not of what decides in its place.
        if self.missing(kind).is_some() {
            return Ok(());
        }
        let Some(active) = self.0.store.get(&active_key(kind))? else { return Ok(()) };
        let Some(state) = self.0.seats[kind.name()].state(kind) else { return Ok(()) };
        let _alone = self.keeping();
        if read(&*self.0.store, kind)?.as_ref() == Some(&state) {
            return Ok(());
        }
        let head = write_pieces(&*self.0.store, kind, &state)?;
        // What was activated meanwhile is kept with that it is active; then this one is not wanted.
        let unchanged = Transaction::new().expect(active_key(kind), active.modified);
        self.0.store.transact(&point(unchanged, kind, Some(&head))?).map(drop)
    }

    /// Stores a state, then does `transaction`, which has to do with it.
    pub(super) fn keep_with(
        &self,
        transaction: Transaction,
        kind: Kind,
        state: Option<&State>,
    ) -> Result<(), StoreError> {
        let _alone = self.keeping();
        let head = state.map(|state| write_pieces(&*self.0.store, kind, state)).transpose()?;
        self.0.store.transact(&point(transaction, kind, head.as_ref())?).map(drop)
    }

    /// Two who store states at once would take the same place.
    fn keeping(&self) -> MutexGuard<'_, ()> {
        self.0.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it from time to time, on a thread of its own, so that no decision waits for the disk.
    pub(super) fn keep_for_ever(&self) -> std::io::Result<()> {
        let inner = Arc::downgrade(&self.0);
        let keep = move || {
            while let Some(inner) = inner.upgrade() {
                for kind in Kind::ALL {
                    if let Err(error) = Policies(Arc::clone(&inner)).keep(kind) {
                        warn!(%kind, "what it has come to is not kept: {error}");
                    }
                }
                drop(inner);
                std::thread::sleep(EVERY);
            }
        };
        std::thread::Builder::new().name("tidegate-keep".to_owned()).spawn(keep).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use store::Local;

    use super::*;

    #[test]
    fn a_state_longer_than_a_transaction_goes_over_wholly_or_not_at_all() {
        let (store, kind) = (Local::in_memory(), Kind::Leasing);
        let state = |mark, bytes| State { schema: 1, bytes: vec![mark; bytes] };
        let keep = |state: &State| {
            let head = write_pieces(&store, kind, state).unwrap();
            store.transact(&point(Transaction::new(), kind, Some(&head)).unwrap()).unwrap();
        };
        let kept = || read(&store, kind).unwrap();
        assert_eq!(kept(), None);
        for (mark, bytes) in [(1, 4 << 20), (2, 10), (3, 3 << 20), (4, 0)] {
            keep(&state(mark, bytes));
            // What never got its head is not there.
            write_pieces(&store, kind, &state(9, 4 << 20)).unwrap();
            assert_eq!(kept(), Some(state(mark, bytes)));
        }
        store.transact(&point(Transaction::new(), kind, None).unwrap()).unwrap();
        assert_eq!(kept(), None);
    }
}
