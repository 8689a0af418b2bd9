//! The decision log: files to which records are appended and from which the oldest are removed.
//!
//! Layout of a file `decisions-N.log`, N rising from 1:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `TGDLOG01` |
//! | then, per record: 4 | length of the record in bytes, little-endian |
//! | 4 | CRC32C of the record, little-endian |
//! | length | the record, [`Record`] in postcard's encoding (<https://postcard.jamesmunns.com>) |
//!
//! A record that is cut short or whose checksum is wrong ends its file: that is what a crash leaves, and a
//! new start goes on in a new file. One that finds no room is taken back, so that it hides none that follow.
//! Records are written with one system call each and not synced: a killed process loses nothing, a machine that
//! fails may lose the newest.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use verdict::{Kind, Question, Tick, Verdict};

use crate::digest::PolicyId;
use crate::fault::FaultClass;
use crate::guest::State;

const MAGIC: &[u8; 8] = b"TGDLOG01";

/// Longest record; a question of more rows is not logged, which is counted.
const RECORD_BYTES_MAX: usize = 32 << 20;

/// More threads than ever decide at once.
const THREADS_MAX: usize = 64;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// What an instance goes on from, from here.
    State(Box<StateRecord>),
    /// A decision.
    Decision(Box<DecisionRecord>),
    /// What happened to a policy: pushed, shadowed, activated, rolled back; for people.
    Event {
        /// Wall clock.
        at_ms: u64,
        /// Whose.
        kind: Kind,
        /// What.
        what: String,
    },
}

/// See [`Record::State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// Which policy thread.
    pub seat: u32,
    /// Whose.
    pub kind: Kind,
    /// Which version.
    pub policy: PolicyId,
    /// Its configuration.
    pub config: Vec<(String, String)>,
    /// What it starts from, or at a checkpoint has come to; `None` is a fresh start.
    pub state: Option<State>,
    /// It started here; else it merely goes on.
    pub started: bool,
}

/// See [`Record::Decision`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Rises by one per decision of this control plane; after a restart from the highest that was logged.
    pub number: u64,
    /// Which policy thread.
    pub seat: u32,
    /// Who was asked; `None`: nobody, the native default decides.
    pub policy: Option<PolicyId>,
    /// Time, seed, epoch.
    pub tick: Tick,
    /// What was asked.
    pub question: Question,
    /// What was decided, by the policy or in its place.
    pub verdict: Verdict,
    /// Why the native default decided in place of the policy.
    pub instead: Option<Instead>,
    /// Used by the policy.
    pub fuel: u64,
    /// Taken by the policy.
    pub duration_ns: u64,
    /// What it logged.
    pub lines: Vec<String>,
}

/// Why the native default decided in place of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instead {
    /// The class of its fault; `None`: it abstained.
    pub fault: Option<FaultClass>,
    /// What it says.
    pub why: String,
}

/// Where decisions are logged, and how much.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The folder; made if it is not there.
    pub folder: PathBuf,
    /// Length at which a new file is begun.
    pub file_bytes: u64,
    /// Files that are kept.
    pub files: usize,
}

impl LogOptions {
    /// 16 files of 64 MiB in a folder.
    pub fn in_folder(folder: &Path) -> LogOptions {
        LogOptions { folder: folder.to_owned(), file_bytes: 64 << 20, files: 16 }
    }
}

/// Why a log cannot be used.
#[derive(Debug, Error)]
#[error("decision log {path}: {source}")]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

impl LogError {
    fn at(path: &Path, source: io::Error) -> LogError {
        LogError { path: path.to_owned(), source }
    }
}

/// The end of a log that is written.
#[derive(Debug)]
pub(crate) struct Log {
    options: LogOptions,
    file: File,
    number: u64,
    bytes: u64,
}

impl Log {
    /// Goes on in a new file, after whatever there is.
    pub(crate) fn open(options: LogOptions) -> Result<Log, LogError> {
        let folder = &options.folder;
        fs::create_dir_all(folder).map_err(|error| LogError::at(folder, error))?;
        let number = files(folder)?.last().map_or(0, |(number, _)| *number) + 1;
        let file = begin(folder, number)?;
        Ok(Log { options, file, number, bytes: MAGIC.len() as u64 })
    }

    /// Appends. A new file can be replayed from the next state of each instance on, at the latest its checkpoint.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), LogError> {
        let path = || path_of(&self.options.folder, self.number);
        let encoded = postcard::to_allocvec(record)
            .map_err(|error| LogError::at(&path(), io::Error::other(error.to_string())))?;
        if encoded.len() > RECORD_BYTES_MAX {
            return Err(LogError::at(&path(), io::Error::other("the record is too long to be kept")));
        }
        let mut bytes = Vec::with_capacity(encoded.len() + 8);
        bytes.extend((encoded.len() as u32).to_le_bytes());
        bytes.extend(crc32c::crc32c(&encoded).to_le_bytes());
        bytes.extend(encoded);
        if let Err(error) = self.file.write_all(&bytes) {
            let error = LogError::at(&path(), error);
            // The part of it that was written would hide what follows.
            if self.file.set_len(self.bytes).is_err() {
                self.begin_next()?;
            }
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        if self.bytes < self.options.file_bytes { Ok(()) } else { self.begin_next() }
    }

    fn begin_next(&mut self) -> Result<(), LogError> {
        // Also if it cannot be begun: it may be there all the same.
        self.number += 1;
        self.file = begin(&self.options.folder, self.number)?;
        self.bytes = MAGIC.len() as u64;
        self.remove_oldest()
    }

    fn remove_oldest(&self) -> Result<(), LogError> {
        let all = files(&self.options.folder)?;
        let surplus = all.len().saturating_sub(self.options.files.max(1));
        for (_, path) in all.iter().take(surplus) {
            fs::remove_file(path).map_err(|error| LogError::at(path, error))?;
        }
        Ok(())
    }
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("decisions-{number:08}.log"))
}

fn begin(folder: &Path, number: u64) -> Result<File, LogError> {
    let path = path_of(folder, number);
    let file = OpenOptions::new().append(true).create_new(true).open(&path);
    let mut file = file.map_err(|error| LogError::at(&path, error))?;
    file.write_all(MAGIC).map_err(|error| LogError::at(&path, error))?;
    Ok(file)
}

/// The files of a log, oldest first.
fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let entries = fs::read_dir(folder).map_err(|error| LogError::at(folder, error))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| LogError::at(folder, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.strip_prefix("decisions-").and_then(|rest| rest.strip_suffix(".log"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a log: a folder of files, or one file. Records come in the order in which they were written.
pub fn read(path: &Path) -> Result<Reader, LogError> {
    let mut paths: Vec<PathBuf> = if path.is_dir() {
        files(path)?.into_iter().map(|(_, path)| path).collect()
    } else {
        vec![path.to_owned()]
    };
    paths.reverse();
    Ok(Reader { waiting: paths, current: None })
}

/// The newest decisions that are wanted, oldest first. Files are read from the newest on, and no more than it takes.
pub fn newest(
    folder: &Path,
    limit: usize,
    wanted: impl Fn(&DecisionRecord) -> bool,
) -> Result<Vec<DecisionRecord>, LogError> {
    let mut found: VecDeque<DecisionRecord> = VecDeque::new();
    for (_, path) in files(folder)?.iter().rev() {
        let missing = limit.saturating_sub(found.len());
        if missing == 0 {
            break;
        }
        let mut of_file = VecDeque::new();
        for record in read(path)? {
            let one = match record {
                Ok(Record::Decision(one)) if wanted(&one) => *one,
                Ok(_) => continue,
                // It was the oldest, and has gone since.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            if of_file.len() == missing {
                of_file.pop_front();
            }
            of_file.push_back(one);
        }
        of_file.append(&mut found);
        found = of_file;
    }
    Ok(found.into())
}

/// The highest number of a decision; 0 of none. Threads that decide at once log out of order: each at most one decision
/// behind another's higher number.
pub(crate) fn last_number(folder: &Path) -> Result<u64, LogError> {
    Ok(newest(folder, THREADS_MAX, |_| true)?.iter().map(|one| one.number).max().unwrap_or(0))
}

/// See [`read`].
#[derive(Debug)]
pub struct Reader {
    waiting: Vec<PathBuf>,
    current: Option<(PathBuf, io::BufReader<File>)>,
}

impl Iterator for Reader {
    type Item = Result<Record, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((path, file)) = &mut self.current else {
                let path = self.waiting.pop()?;
                match open(&path) {
                    Ok(file) => self.current = Some((path, file)),
                    // A crash came before its first eight bytes.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) => return Some(Err(LogError::at(&path, error))),
                }
                continue;
            };
            match next_record(file) {
                Ok(Some(record)) => return Some(Ok(record)),
                Ok(None) => self.current = None,
                Err(error) => {
                    let error = LogError::at(path, error);
                    self.current = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

fn open(path: &Path) -> io::Result<io::BufReader<File>> {
    let mut file = io::BufReader::new(File::open(path)?);
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if &magic == MAGIC { Ok(file) } else { Err(io::Error::other("this is not a decision log of version 1")) }
}

/// `None` at the end of the file, or at a record that was cut short.
fn next_record(file: &mut impl Read) -> io::Result<Option<Record>> {
    let mut head = [0; 8];
    if !filled(file, &mut head)? {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (bytes, crc) = (word(0) as usize, word(4));
    if bytes > RECORD_BYTES_MAX {
        return Ok(None);
    }
    let mut encoded = vec![0; bytes];
    if !filled(file, &mut encoded)? || crc32c::crc32c(&encoded) != crc {
        return Ok(None);
    }
    postcard::from_bytes(&encoded).map(Some).map_err(|error| io::Error::other(error.to_string()))
}

fn filled(file: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload;

    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tidegate-log-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    fn decision(number: u64) -> Record {
        let (tick, question) = workload::question(Kind::Leasing, 2, number);
        Record::Decision(Box::new(DecisionRecord {
            number,
            seat: number as u32 % 3,
            policy: None,
            tick,
            verdict: question.native(tick),
            question,
            instead: None,
            fuel: 0,
            duration_ns: 0,
            lines: Vec::new(),
        }))
    }

    #[test]
    fn numbers_go_on_after_the_highest_though_threads_log_out_of_order() {
        let folder = folder("order");
        assert_eq!(last_number(&folder).expect("it can be read"), 0);
        let mut log = Log::open(LogOptions::in_folder(&folder)).expect("ours");
        for number in [1, 2, 5, 6, 9, 8, 3] {
            log.append(&decision(number)).expect("there is room");
        }
        assert_eq!(last_number(&folder).expect("it can be read"), 9);
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn a_record_that_finds_no_room_hides_none_that_follow() {
        const WITHIN: &str = "TIDEGATE_TEST_WITHIN_A_LIMIT";
        if std::env::var_os(WITHIN).is_none() {
            // In a process of its own, whose files end after a few KiB: what goes beyond is written as far as it fits.
            let this = std::env::current_exe().expect("it runs");
            let name = "log::tests::a_record_that_finds_no_room_hides_none_that_follow";
            let mut within = std::process::Command::new("sh");
            within.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""]);
            let out = within.arg(this).args(["--exact", name]).env(WITHIN, "1").output().expect("it runs");
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let folder = folder("room");
        let mut log = Log::open(LogOptions::in_folder(&folder)).expect("ours");
        let event = |bytes| Record::Event { at_ms: 0, kind: Kind::Leasing, what: "x".repeat(bytes) };
        log.append(&event(100)).expect("there is room");
        log.append(&event(100_000)).expect_err("there is none");
        let path = path_of(&folder, log.number);
        assert_eq!(fs::metadata(&path).expect("ours").len(), log.bytes);
        log.append(&decision(7)).expect("there is room");
        let records: Result<Vec<_>, _> = read(&folder).expect("ours").collect();
        assert_eq!(records.expect("it can be read"), [event(100), decision(7)]);
        fs::remove_dir_all(&folder).expect("ours");
    }
}
