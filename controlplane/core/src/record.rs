//! Objects as they are stored: each under a key of its own, whole, so that a step's changes are one transaction and
//! recovery is reading them all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use contract::{
    Answer, Event, EventId, Lease, LeaseId, Limit, Node, NodeId, Operation, OperationId, Refused, Tenant,
    TenantId, Volume, VolumeId,
};
use serde::{Deserialize, Serialize};

/// Where an object is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// The counters of the control plane itself.
    Meta,
    /// A tenant.
    Tenant(TenantId),
    /// A node.
    Node(NodeId),
    /// A volume.
    Volume(VolumeId),
    /// An event.
    Event(EventId),
    /// An operation.
    Operation(OperationId),
    /// A lease.
    Lease(LeaseId),
    /// A limit, by its own words.
    Limit(String),
    /// An answer under an idempotency key, by a number.
    Answer(u64),
}

impl fmt::Display for Key {
    /// A path whose order is that of the ids.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Meta => f.write_str("meta"),
            Key::Tenant(id) => write!(f, "tenant/{:020}", id.0),
            Key::Node(id) => write!(f, "node/{:020}", id.0),
            Key::Volume(id) => write!(f, "volume/{:020}", id.0),
            Key::Event(id) => write!(f, "event/{:020}", id.0),
            Key::Operation(id) => write!(f, "operation/{:020}", id.0),
            Key::Lease(id) => write!(f, "lease/{:020}", id.0),
            Key::Limit(words) => write!(f, "limit/{words}"),
            Key::Answer(number) => write!(f, "answer/{number:020}"),
        }
    }
}

/// What is stored there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The counters of the control plane itself.
    Meta(Meta),
    /// A tenant.
    Tenant(Tenant),
    /// A node.
    Node(Box<Node>),
    /// A volume.
    Volume(Box<Volume>),
    /// An event.
    Event(Event),
    /// An operation.
    Operation(Box<Operation>),
    /// A lease.
    Lease(Box<Lease>),
    /// A limit.
    Limit(Limit),
    /// An answer under an idempotency key.
    Answer(Box<Remembered>),
}

/// The counters of the control plane itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// How often it started.
    pub start: u64,
    /// The last id handed out, of each sort.
    pub last: Ids,
}

/// The last id handed out, of each sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Of tenants.
    pub tenant: u64,
    /// Of nodes.
    pub node: u64,
    /// Of volumes.
    pub volume: u64,
    /// Of events.
    pub event: u64,
    /// Of operations.
    pub operation: u64,
    /// Of leases.
    pub lease: u64,
    /// Of answers under an idempotency key.
    pub answer: u64,
}

/// An answer under an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its number.
    pub number: u64,
    /// The key.
    pub key: String,
    /// The command that it was used for.
    pub command: contract::Command,
    /// What was answered.
    pub result: Result<Answer, Refused>,
}

/// Keeps the beginning of a reason that others give: it becomes part of a record, and the store takes none that is long.
pub(crate) fn cut(why: &mut String) {
    why.truncate(why.floor_char_boundary(verdict::WHY_BYTES_MAX));
}

/// One change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub key: Key,
    /// What is there from now on; none = nothing.
    pub record: Option<Record>,
}

/// Objects of one sort, and which of them the store does not know yet as they are.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    objects: BTreeMap<K, V>,
    dirty: BTreeSet<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table { objects: BTreeMap::new(), dirty: BTreeSet::new() }
    }
}

impl<K: Ord + Copy, V> Table<K, V> {
    /// Looks at one.
    pub fn get(&self, id: K) -> Option<&V> {
        self.objects.get(&id)
    }

    /// Changes one; it will be written.
    pub fn change(&mut self, id: K) -> Option<&mut V> {
        let object = self.objects.get_mut(&id)?;
        self.dirty.insert(id);
        Some(object)
    }

    /// Changes what is not worth writing: it is written when something else of it changes.
    pub fn touch(&mut self, id: K) -> Option<&mut V> {
        self.objects.get_mut(&id)
    }

    /// Adds one; it will be written.
    pub fn insert(&mut self, id: K, object: V) {
        self.objects.insert(id, object);
        self.dirty.insert(id);
    }

    /// Adds one that the store has.
    pub fn load(&mut self, id: K, object: V) {
        self.objects.insert(id, object);
    }

    /// Removes one; the store will be told.
    pub fn remove(&mut self, id: K) -> Option<V> {
        let object = self.objects.remove(&id)?;
        self.dirty.insert(id);
        Some(object)
    }

    /// Whether the store does not know one as it is.
    pub fn is_dirty(&self, id: K) -> bool {
        self.dirty.contains(&id)
    }

    /// How many the store does not know as they are.
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.objects.iter().map(|(id, object)| (*id, object))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// What the store does not know yet.
    pub fn flush(
        &mut self,
        writes: &mut Vec<Write>,
        key: impl Fn(K) -> Key,
        record: impl Fn(&mut V) -> Record,
    ) {
        while let Some(id) = self.dirty.pop_first() {
            let record = self.objects.get_mut(&id).map(&record);
            writes.push(Write { key: key(id), record });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_ids_do() {
        let keys: Vec<String> = [9, 10, u64::MAX].map(|id| Key::Volume(VolumeId(id)).to_string()).into();
        assert!(keys.is_sorted());
    }

    #[test]
    fn what_changed_is_written_once_and_what_was_only_touched_is_not() {
        let mut table: Table<u64, u64> = Table::default();
        table.insert(1, 10);
        table.load(2, 20);
        table.load(3, 30);
        *table.change(1).expect("there") = 11;
        *table.touch(2).expect("there") = 21;
        table.remove(3);
        assert_eq!(table.remove(4), None);
        let mut writes = Vec::new();
        let record = |value: &mut u64| Record::Meta(Meta { start: *value, ..Meta::default() });
        table.flush(&mut writes, Key::Answer, record);
        let meta = |start| Some(Record::Meta(Meta { start, ..Meta::default() }));
        assert_eq!(
            writes,
            [Write { key: Key::Answer(1), record: meta(11) }, Write { key: Key::Answer(3), record: None },]
        );
        writes.clear();
        table.flush(&mut writes, Key::Answer, record);
        assert_eq!(writes, []);
    }
}
