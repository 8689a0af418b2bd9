//! What active policies have come to, in the store (decision 056).
//!
//! One head for each kind, and the state behind it in pieces that the store takes; both change in one transaction.
//!
//! Invariant: what is kept is no older than [`EVERY`], and of the version that the store says is active.

use std::sync::Arc;
use std::time::Duration;

use host::State;
use serde::{Deserialize, Serialize};
use store::{Store, StoreError, Transaction, VALUE_BYTES_MAX};
use tracing::{info, warn};
use verdict::Kind;

use super::Policies;
use super::stored::active_key;

/// Time between two looks at what policies have come to.
const EVERY: Duration = Duration::from_secs(2);
/// Pieces of one state at most: what a policy may export.
const PIECES_MAX: usize = 4;

#[derive(Serialize, Deserialize)]
struct Head {
    schema: u32,
    bytes: usize,
}

fn head_key(kind: Kind) -> String {
    format!("policies/state/{kind}")
}

fn piece_key(kind: Kind, piece: usize) -> String {
    format!("policies/state/{kind}/{piece}")
}

/// Has `transaction` also replace what is kept of a kind.
pub(super) fn write(
    transaction: Transaction,
    kind: Kind,
    state: Option<&State>,
) -> Result<Transaction, StoreError> {
    let Some(state) = state else { return Ok(transaction.delete(head_key(kind))) };
    let head = Head { schema: state.schema, bytes: state.bytes.len() };
    let head = serde_json::to_vec(&head).map_err(|error| StoreError::Failed(Box::new(error)))?;
    let pieces = state.bytes.chunks(VALUE_BYTES_MAX).enumerate();
    let put = |all: Transaction, (at, piece): (usize, &[u8])| all.put(piece_key(kind, at), piece);
    Ok(pieces.fold(transaction.put(head_key(kind), head), put))
}

/// What is kept of a kind.
pub(super) fn read(store: &dyn Store, kind: Kind) -> Result<Option<State>, StoreError> {
    let Some(head) = store.get(&head_key(kind))? else { return Ok(None) };
    let head: Head =
        serde_json::from_slice(&head.value).map_err(|error| StoreError::Failed(Box::new(error)))?;
    let mut state = State { schema: head.schema, bytes: Vec::new() };
    for piece in 0..head.bytes.div_ceil(VALUE_BYTES_MAX).min(PIECES_MAX) {
        if let Some(entry) = store.get(&piece_key(kind, piece))? {
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

    /// Keeps what has changed, without a lock that a decision may wait for.
    fn keep(&self, kind: Kind) -> Result<(), StoreError> {
        let Some(active) = self.0.store.get(&active_key(kind))? else { return Ok(()) };
        let Some(state) = self.0.seats[kind.name()].state(kind) else { return Ok(()) };
        if read(&*self.0.store, kind)?.as_ref() == Some(&state) {
            return Ok(());
        }
        // What was activated meanwhile is kept with that it is active; then this one is not wanted.
        let unchanged = Transaction::new().expect(active_key(kind), active.modified);
        self.0.store.transact(&write(unchanged, kind, Some(&state))?).map(drop)
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
