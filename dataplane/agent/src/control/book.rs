//! What a node must remember across its restarts: the last snapshot, and how its instructions stand.
//!
//! One file, replaced whole: written beside, synced, renamed, the folder synced. So a data plane without control
//! plane serves what it was told last for ever, and an instruction is never carried out twice.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use contract::{Done, InstructionKey, NodeId, NodeSnapshot, StepReport, VolumeId};
use serde::{Deserialize, Serialize};

use super::moves::Frozen;

/// Instructions remembered at a time; more are refused until some are forgotten.
pub const STEPS_MAX: usize = 4096;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Book {
    /// How often this node started.
    pub incarnation: u64,
    /// Who it is.
    pub node: Option<NodeId>,
    /// What it was told to do.
    pub snapshot: Option<NodeSnapshot>,
    /// Instructions below this are over and forgotten.
    pub forgotten_seq: u64,
    /// Instructions that it knows, and how they ended; those under way are `None`.
    pub steps: Vec<(InstructionKey, Option<Done>)>,
    /// Volumes that hold their I/O.
    #[serde(default)]
    pub frozen: BTreeMap<VolumeId, Frozen>,
    /// The last message of which an instruction was taken, by volume; what is below [`Book::forgotten_seq`] is refused
    /// without this.
    #[serde(default)]
    pub taken: BTreeMap<VolumeId, u64>,
}

/// The book cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; correct it or choose another controlplane.state", path.display())]
pub struct BookError {
    path: PathBuf,
    source: io::Error,
}

/// The book and its place.
#[derive(Debug)]
pub struct Shelf {
    path: PathBuf,
    /// The book as it was last written.
    pub book: Book,
    steps: BTreeMap<InstructionKey, Option<Done>>,
}

impl Shelf {
    /// Opens the book in a folder, or begins one, and writes down one more start.
    pub fn open(folder: &Path) -> Result<Shelf, BookError> {
        let path = folder.join("told.json");
        let failed = |source| BookError { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let book: Book = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::default(),
            Err(error) => return Err(failed(error)),
        };
        let mut steps: BTreeMap<_, _> = book.steps.iter().cloned().collect();
        for done in steps.values_mut().filter(|done| done.is_none()) {
            // It was under way when the daemon ended, so how far it came is not known.
            *done = Some(Done::Failed {
                why: "the data plane was started anew meanwhile".to_owned(),
                again: true,
            });
        }
        let mut shelf = Shelf { path, book, steps };
        shelf.book.incarnation += 1;
        shelf.write()?;
        Ok(shelf)
    }

    /// Writes the book down; when this returns it is there also after a crash.
    pub fn write(&mut self) -> Result<(), BookError> {
        self.book.steps = self.steps.iter().map(|(key, done)| (*key, done.clone())).collect();
        self.replace().map_err(|source| BookError { path: self.path.clone(), source })
    }

    fn replace(&self) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(&self.book)?)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        File::open(folder)?.sync_all()
    }

    /// Whether an instruction is to be carried out: it is not known, was not forgotten, none that came later was taken
    /// for its volume, and there is room.
    pub fn is_new(&self, key: InstructionKey, volume: VolumeId, seq: u64) -> bool {
        let taken = self.book.taken.get(&volume).copied().unwrap_or(0);
        seq > self.book.forgotten_seq.max(taken)
            && !self.steps.contains_key(&key)
            && self.steps.len() < STEPS_MAX
    }

    /// Writes down that an instruction is under way.
    pub fn begin(&mut self, key: InstructionKey, volume: VolumeId, seq: u64) -> Result<(), BookError> {
        self.steps.insert(key, None);
        self.book.taken.insert(volume, seq);
        self.write()
    }

    /// Writes down that an instruction which was never heard of is not to be carried out.
    pub fn cancel(&mut self, key: InstructionKey, seq: u64) -> Result<(), BookError> {
        if seq <= self.book.forgotten_seq || self.steps.contains_key(&key) || self.steps.len() >= STEPS_MAX {
            return Ok(());
        }
        self.end(key, Done::Failed { why: "it was cancelled before it came".to_owned(), again: true })
    }

    /// Writes down that a volume holds its I/O.
    pub fn freeze(&mut self, volume: VolumeId, frozen: Frozen) -> Result<(), BookError> {
        self.book.frozen.insert(volume, frozen);
        self.write()
    }

    /// Writes down that it does not any more.
    pub fn thaw(&mut self, volume: VolumeId) -> Result<(), BookError> {
        if self.book.frozen.remove(&volume).is_none() {
            return Ok(());
        }
        self.write()
    }

    /// Writes down how an instruction ended.
    pub fn end(&mut self, key: InstructionKey, done: Done) -> Result<(), BookError> {
        self.steps.insert(key, Some(done));
        self.write()
    }

    /// Forgets instructions whose outcome is recorded.
    pub fn forget(&mut self, keys: &[InstructionKey], seq: u64) -> Result<(), BookError> {
        for key in keys {
            if self.steps.get(key).is_some_and(Option::is_some) {
                self.steps.remove(key);
            }
        }
        let forgotten = self.book.forgotten_seq.max(seq);
        self.book.forgotten_seq = forgotten;
        self.book.taken.retain(|_, taken| *taken > forgotten);
        self.write()
    }

    /// How instructions stand; `running` says it of those under way.
    pub fn reports(&self, running: impl Fn(InstructionKey) -> Done) -> Vec<StepReport> {
        let report = |(key, done): (&InstructionKey, &Option<Done>)| StepReport {
            key: *key,
            done: done.clone().unwrap_or_else(|| running(*key)),
        };
        self.steps.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::OperationId;

    const KEY: InstructionKey = InstructionKey { operation: OperationId(1), step: 2, tries: 0 };
    const VOLUME: VolumeId = VolumeId(3);
    const DONE: Done = Done::Done { credits: None };

    fn running(_: InstructionKey) -> Done {
        Done::Running { done_bytes: 0, total_bytes: 0 }
    }

    #[test]
    fn an_instruction_is_carried_out_once_across_restarts() {
        let folder = std::env::temp_dir().join(format!("tidegate-book-{}", std::process::id()));
        let mut shelf = Shelf::open(&folder).unwrap();
        assert_eq!(shelf.book.incarnation, 1);
        assert!(shelf.is_new(KEY, VOLUME, 5));
        shelf.begin(KEY, VOLUME, 5).unwrap();
        assert!(!shelf.is_new(KEY, VOLUME, 6), "it is under way");
        drop(shelf);
        let mut shelf = Shelf::open(&folder).unwrap();
        assert_eq!(shelf.book.incarnation, 2);
        assert!(!shelf.is_new(KEY, VOLUME, 7), "it was under way");
        assert!(matches!(shelf.reports(running)[0].done, Done::Failed { again: true, .. }));
        shelf.end(KEY, DONE).unwrap();
        drop(shelf);
        let mut shelf = Shelf::open(&folder).unwrap();
        assert_eq!(shelf.reports(running), [StepReport { key: KEY, done: DONE }]);
        shelf.forget(&[KEY], 9).unwrap();
        assert!(shelf.reports(running).is_empty());
        assert!(!shelf.is_new(KEY, VOLUME, 8), "a late copy of what was forgotten");
        assert!(shelf.is_new(KEY, VOLUME, 10));
        fs::write(folder.join("told.json"), "half").unwrap();
        let broken = Shelf::open(&folder).unwrap_err();
        assert!(broken.to_string().contains("controlplane.state"), "{broken}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
