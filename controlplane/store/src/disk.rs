//! A store's file: redb tables that a transaction of ours changes together.
//!
//! | table | key | value |
//! |---|---|---|
//! | `entries` | key | created, modified, lease or 0, value |
//! | `history` | revision, place in its batch | key, and what `entries` has for it or nothing |
//! | `leases` | number | time to live, ms |
//! | `numbers` | `format`, `revision`, `lease` | the format, the last revision, the last lease |
//!
//! The whole file is read when it is opened; from then on it is only written.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use crate::local::{Keep, Medium};
use crate::machine::Machine;
use crate::{Batch, Change, Entry, LeaseId, Revision, StoreError};

/// created, modified, lease or 0, value.
type Row = (u64, u64, u64, &'static [u8]);

const ENTRIES: TableDefinition<'_, &str, Row> = TableDefinition::new("entries");
const HISTORY: TableDefinition<'_, (u64, u32), (&str, Option<Row>)> = TableDefinition::new("history");
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// What this code writes and reads.
const FORMAT: u64 = 1;

/// Why a store's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody has it open, or it cannot be read.
    #[error("{}: {source}; is another control plane using it?", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// redb's answer.
        source: redb::Error,
    },
    /// It is of a newer control plane.
    #[error("{}: format {found} is not known here (only {FORMAT}); use the version that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u64,
    },
}

pub(crate) struct Disk(Database);

/// Opens or makes a file; returns what it holds.
pub(crate) fn open(path: &Path) -> Result<(Machine, Disk), OpenError> {
    let failed = |source: redb::Error| OpenError::Database { path: path.to_owned(), source };
    let database = Database::create(path).map_err(|error| failed(error.into()))?;
    let disk = Disk(database);
    match disk.number("format").map_err(failed)? {
        None => disk.format().map_err(failed)?,
        Some(FORMAT) => {}
        Some(found) => return Err(OpenError::Format { path: path.to_owned(), found }),
    }
    let machine = disk.read().map_err(failed)?;
    Ok((machine, disk))
}

impl Disk {
    fn number(&self, name: &str) -> Result<Option<u64>, redb::Error> {
        match self.0.begin_read()?.open_table(NUMBERS) {
            Ok(numbers) => Ok(numbers.get(name)?.map(|number| number.value())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn format(&self) -> Result<(), redb::Error> {
        let write = self.0.begin_write()?;
        write.open_table(ENTRIES)?;
        write.open_table(HISTORY)?;
        write.open_table(LEASES)?;
        write.open_table(NUMBERS)?.insert("format", FORMAT)?;
        Ok(write.commit()?)
    }

    fn read(&self) -> Result<Machine, redb::Error> {
        let read = self.0.begin_read()?;
        let mut entries = BTreeMap::new();
        for row in read.open_table(ENTRIES)?.iter()? {
            let (key, row) = row?;
            entries.insert(key.value().to_owned(), entry(row.value()));
        }
        let mut history: VecDeque<Batch> = VecDeque::new();
        for row in read.open_table(HISTORY)?.iter()? {
            let (place, change) = row?;
            let ((revision, _), (key, row)) = (place.value(), change.value());
            let change = Change { key: key.to_owned(), entry: row.map(entry) };
            match history.back_mut().filter(|batch| batch.revision == revision) {
                Some(batch) => batch.changes.push(change),
                None => history.push_back(Batch { revision, changes: vec![change] }),
            }
        }
        let mut leases = Vec::new();
        for row in read.open_table(LEASES)?.iter()? {
            let (number, ttl_ms) = row?;
            leases.push((LeaseId(number.value()), Duration::from_millis(ttl_ms.value())));
        }
        let number = |name| Ok::<_, redb::Error>(self.number(name)?.unwrap_or(0));
        Ok(Machine::restore(number("revision")?, entries, history, leases.into_iter(), number("lease")?))
    }

    fn write(&self, keep: &Keep<'_>) -> Result<(), redb::Error> {
        // Its default durability: the file is synced before `commit` returns.
        let write = self.0.begin_write()?;
        if let Some((id, ttl)) = keep.granted {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            write.open_table(LEASES)?.insert(id.0, ttl_ms)?;
            write.open_table(NUMBERS)?.insert("lease", id.0)?;
        }
        if let Some(id) = keep.ended {
            write.open_table(LEASES)?.remove(id.0)?;
        }
        if let Some(batch) = keep.batch {
            let (mut entries, mut history) = (write.open_table(ENTRIES)?, write.open_table(HISTORY)?);
            for (place, change) in (0..).zip(&batch.changes) {
                let row = change.entry.as_ref().map(row);
                match row {
                    Some(row) => drop(entries.insert(change.key.as_str(), row)?),
                    None => drop(entries.remove(change.key.as_str())?),
                }
                history.insert((batch.revision, place), (change.key.as_str(), row))?;
            }
            if let Some(forgotten) = keep.forgotten {
                history.retain_in(..(forgotten + 1, 0), |_, _| false)?;
            }
            write.open_table(NUMBERS)?.insert("revision", batch.revision)?;
        }
        Ok(write.commit()?)
    }
}

impl Medium for Disk {
    fn keep(&mut self, keep: &Keep<'_>) -> Result<(), StoreError> {
        self.write(keep).map_err(|error| StoreError::Failed(Box::new(error)))
    }
}

fn entry((created, modified, lease, value): (Revision, Revision, u64, &[u8])) -> Entry {
    let lease = (lease != 0).then_some(LeaseId(lease));
    Entry { value: value.to_vec(), created, modified, lease }
}

fn row(entry: &Entry) -> (Revision, Revision, u64, &[u8]) {
    (entry.created, entry.modified, entry.lease.map_or(0, |lease| lease.0), &entry.value)
}
