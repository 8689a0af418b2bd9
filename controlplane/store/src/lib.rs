//! What a control plane must not forget, behind one trait: the part of etcd that it needs.
//!
//! A store is an ordered map from keys to values with one revision for the whole of it. Each transaction that
//! changes something takes the next revision; a [`Watch`] tells what changed since one; keys bound to a
//! [`LeaseId`] go when it expires. [`Local`] is in memory for tests and the simulator, in a file of redb by
//! default; `Etcd` (feature `etcd`) is a cluster of etcd. `tests/store` holds any implementation to one suite.
//!
//! Invariants:
//! - a transaction that was answered survives a kill at any later instant, wholly; one that was not is there
//!   wholly or not at all;
//! - revisions only grow, also across restarts;
//! - a watch misses nothing between its revision and now, or says [`WatchError::Compacted`];
//! - everything has a limit: see the constants.

#![forbid(unsafe_code)]

mod disk;
#[cfg(feature = "etcd")]
mod etcd;
mod local;
mod machine;

use std::collections::BTreeSet;
use std::time::Duration;

pub use disk::OpenError;
#[cfg(feature = "etcd")]
pub use etcd::{Cluster, Etcd, Identity, Tls};
pub use local::Local;

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value, bytes; etcd takes requests of 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most compares, and most operations, of one transaction; etcd's default.
pub const OPERATIONS_MAX: usize = 128;
/// Longest transaction as [`Transaction::bytes`] counts, bytes: what etcd takes, less what its own fields need.
pub const TRANSACTION_BYTES_MAX: usize = (3 << 19) - (64 << 10);
/// Most that the history takes, bytes, about.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Revisions that a watch can go back, if they take no more than [`HISTORY_BYTES_MAX`].
pub const HISTORY_REVISIONS: u64 = 10_000;
/// Most leases at a time in a store inside this process.
pub const LEASES_MAX: usize = 65_536;

/// Number of a state of the whole store. An empty one is at 0, or in etcd at 1.
pub type Revision = u64;

/// Number of a lease; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// What is kept under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the transaction that made the key.
    pub created: Revision,
    /// Revision of the transaction that wrote it last.
    pub modified: Revision,
    /// Lease that it goes with.
    pub lease: Option<LeaseId>,
}

/// Keys from `start` on and before `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: String,
    /// First key that is not in it any more; `None` = to the last.
    pub end: Option<String>,
}

impl KeyRange {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &str) -> KeyRange {
        // The next text of no greater length; a last character that has none is left out.
        let mut letters: Vec<char> = prefix.chars().collect();
        let end = loop {
            let Some(last) = letters.pop() else { break None };
            let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
            if let Some(next) = next {
                letters.push(next);
                break Some(letters.into_iter().collect());
            }
        };
        KeyRange { start: prefix.to_owned(), end }
    }

    /// The same keys, those after `key` only.
    pub fn after(&self, key: &str) -> KeyRange {
        KeyRange { start: format!("{key}\0"), end: self.end.clone() }
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &str) -> bool {
        key >= self.start.as_str() && self.end.as_deref().is_none_or(|end| key < end)
    }
}

/// What keys and values are wrapped in on their way, bytes, at most.
const PARTS_BYTES: usize = 64;

/// What a transaction wants to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Revision at which it was written last; 0 = it is not there.
    pub modified: Revision,
}

/// What a transaction does. A key stands in one operation of a transaction only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// The lease that it goes with from now on.
        lease: Option<LeaseId>,
    },
    /// Removes a key; that it is not there is no error.
    Delete {
        /// The key.
        key: String,
    },
}

impl Operation {
    /// The key that it changes.
    pub fn key(&self) -> &str {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key } => key,
        }
    }

    /// What it adds to its transaction, bytes, about.
    pub fn bytes(&self) -> usize {
        let value = match self {
            Operation::Put { value, .. } => value.len(),
            Operation::Delete { .. } => 0,
        };
        self.key().len() + value + PARTS_BYTES
    }
}

/// Several changes that happen together, if the store is as expected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All of these must hold.
    pub compares: Vec<Compare>,
    /// Then all of these are done.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Demands that `key` was written last at `modified`; 0 = it must not be there.
    #[must_use]
    pub fn expect(mut self, key: impl Into<String>, modified: Revision) -> Transaction {
        self.compares.push(Compare { key: key.into(), modified });
        self
    }

    /// Writes a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Transaction {
        self.operations.push(Operation::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Transaction {
        self.operations.push(Operation::Delete { key: key.into() });
        self
    }

    /// How long it is on its way to a store, bytes, about.
    pub fn bytes(&self) -> usize {
        // A compared key is also asked for.
        let compared = self.compares.iter().map(|compare| 2 * (compare.key.len() + PARTS_BYTES));
        compared.sum::<usize>() + self.operations.iter().map(Operation::bytes).sum::<usize>()
    }

    /// Whether it keeps the limits and rules that hold for all stores.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.compares.len() > OPERATIONS_MAX || self.operations.len() > OPERATIONS_MAX {
            return Err(Refusal::Operations);
        }
        let compared = self.compares.iter().map(|compare| compare.key.as_str());
        let mut changed = self.operations.iter().map(Operation::key);
        if compared.chain(changed.clone()).any(|key| key.is_empty() || key.len() > KEY_BYTES_MAX) {
            return Err(Refusal::Key);
        }
        let mut seen = BTreeSet::new();
        if !changed.all(|key| seen.insert(key)) {
            return Err(Refusal::Twice);
        }
        let long = |operation: &Operation| match operation {
            Operation::Put { value, .. } => value.len() > VALUE_BYTES_MAX,
            Operation::Delete { .. } => false,
        };
        if self.operations.iter().any(long) {
            return Err(Refusal::Value);
        }
        if self.bytes() > TRANSACTION_BYTES_MAX { Err(Refusal::Bytes) } else { Ok(()) }
    }
}

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was done; the store is now at this revision.
    Done {
        /// The revision.
        revision: Revision,
    },
    /// Nothing was done: a compare did not hold.
    Conflict {
        /// What is under the compared keys, in their order.
        found: Vec<Option<Entry>>,
    },
}

/// One key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// What is under it now; `None` = nothing.
    pub entry: Option<Entry>,
}

/// What one transaction changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its revision.
    pub revision: Revision,
    /// The changes, as far as they were asked for.
    pub changes: Vec<Change>,
}

/// Entries of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Keys and entries, in order.
    pub entries: Vec<(String, Entry)>,
    /// Whether there are more than were asked for; go on with [`KeyRange::after`].
    pub more: bool,
    /// Revision of the store that this shows.
    pub revision: Revision,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request is not one.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The medium failed. Whether a transaction was done is not known.
    #[error("the store failed: {0}; put that right, then start the control plane again")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A store elsewhere does not answer now, and may later. Whether a transaction was done is not known, and it
    /// may be done still.
    #[error("{0}")]
    Away(String),
}

/// A request that breaks a limit or a rule of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too long, or empty.
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes")]
    Key,
    /// Too long.
    #[error("a value has at most {VALUE_BYTES_MAX} bytes; split it")]
    Value,
    /// Too many.
    #[error("a transaction has at most {OPERATIONS_MAX} compares and operations; split it")]
    Operations,
    /// Too long.
    #[error("a transaction has at most {TRANSACTION_BYTES_MAX} bytes; split it")]
    Bytes,
    /// One key in two operations.
    #[error("a transaction changes a key once only")]
    Twice,
    /// No such lease, or not any more.
    #[error("there is no such lease; it may have expired: grant a new one")]
    Lease,
    /// Too many.
    #[error("there are {LEASES_MAX} leases; revoke some")]
    Leases,
}

/// Why a watch cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It looks for what is forgotten.
    #[error("changes before revision {first} are forgotten; read the range again and watch from there")]
    Compacted {
        /// The first revision that can be watched.
        first: Revision,
    },
    /// The medium, or the way to it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Follows the changes of a range.
pub trait Watch: Send {
    /// Changes that have not been told yet, in order; waits for one at most `patience`, then returns none. From a
    /// store elsewhere these are the changes that have arrived. After an error of the store it can be asked again
    /// and misses nothing.
    fn next(&mut self, patience: Duration) -> Result<Vec<Batch>, WatchError>;
}

/// See the module's documentation. Calls block as long as the medium takes.
pub trait Store: Send + Sync {
    /// Revision of the last transaction that changed something.
    fn revision(&self) -> Result<Revision, StoreError>;

    /// What is under a key.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// The first `limit` entries of a range, of one revision.
    fn range(&self, range: &KeyRange, limit: usize) -> Result<Page, StoreError>;

    /// Does all of a transaction, or nothing of it.
    fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// Follows a range, beginning with the changes of revision `from`.
    fn watch(&self, range: KeyRange, from: Revision) -> Result<Box<dyn Watch>, WatchError>;

    /// Makes a lease that expires unless it is kept alive once in `ttl`. A store with a clock of its own may give it
    /// some seconds more.
    fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Gives a lease its whole time again.
    fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and removes its keys.
    fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Tells a store that has no clock how much time has passed, so that leases expire. One with a clock of its
    /// own ignores it.
    fn pass(&self, time: Duration) -> Result<(), StoreError>;
}
