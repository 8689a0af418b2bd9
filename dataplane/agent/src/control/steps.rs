//! Carrying instructions out: each on a thread of its own, with how far it is and a way to stop it.
//!
//! Invariants: at most [`JOBS_MAX`] at a time; none begins on a volume that is served and must not be; one that
//! is stopped says so as a failure that may be tried again. What reads or writes a volume does so in pieces of at most
//! [`CHUNK_BYTES`], each on its medium before the next one, so a stop takes effect after the piece under way.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::{Done, Instruction, InstructionKey, LeaseId, NodeStep, VolumeId};
use engine::block::BlockSize;
use engine::volume::format::PAGE_BYTES;
use engine::volume::{Directory, HostDirectory, store};

use super::book::BookError;

/// Instructions carried out at once.
pub const JOBS_MAX: usize = 16;
/// Written at once when a volume is wiped.
const CHUNK_BYTES: usize = 1 << 20;
/// Times that a volume which is being changed is looked at before what is found counts as damage.
const LOOKS: u32 = 3;

/// An instruction under way.
#[derive(Debug)]
pub struct Job {
    stop: AtomicBool,
    /// With which volume.
    volume: VolumeId,
    /// Says when nothing of it is done any more.
    over: (Mutex<bool>, Condvar),
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    /// Lease that it works under.
    pub lease: Option<LeaseId>,
}

impl Job {
    /// Has it end soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing of it is done any more.
    pub fn wait_over(&self) {
        let over = self.over.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.over.1.wait_while(over, |over| !*over);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether it was told to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How far it is.
    pub fn progress(&self) -> Done {
        Done::Running {
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
        }
    }

    /// So many bytes are to be done.
    pub fn expect(&self, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Waits until `done` bytes since `began` are no more than `rate` per second. False: it was stopped.
    pub fn wait(&self, began: Instant, done: u64, rate: u64) -> bool {
        let due = Duration::from_secs_f64(done as f64 / rate.max(1) as f64);
        while began.elapsed() < due && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep((due - began.elapsed().min(due)).min(Duration::from_millis(20)));
        }
        !self.stop.load(Ordering::Relaxed)
    }
}

/// All instructions under way.
#[derive(Debug, Default)]
pub struct Jobs(BTreeMap<InstructionKey, Arc<Job>>);

impl Jobs {
    /// A new one, if there is room. Whatever else is under way with its volume is stopped, and comes along to be waited
    /// for.
    pub fn begin(&mut self, instruction: &Instruction) -> Option<(Arc<Job>, Vec<Arc<Job>>)> {
        if self.0.len() >= JOBS_MAX {
            return None;
        }
        let volume = instruction.volume;
        let before: Vec<_> = self.0.values().filter(|job| job.volume == volume).cloned().collect();
        before.iter().for_each(|job| job.stop());
        let job = Arc::new(Job {
            stop: AtomicBool::new(false),
            volume,
            over: Default::default(),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            lease: instruction.lease,
        });
        self.0.insert(instruction.key, Arc::clone(&job));
        Some((job, before))
    }

    /// It is over.
    pub fn end(&mut self, key: InstructionKey) {
        if let Some(job) = self.0.remove(&key) {
            *job.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            job.over.1.notify_all();
        }
    }

    /// One under way.
    pub fn get(&self, key: InstructionKey) -> Option<&Arc<Job>> {
        self.0.get(&key)
    }

    /// Those that work under a lease.
    pub fn under(&self, lease: LeaseId) -> impl Iterator<Item = &Arc<Job>> {
        self.0.values().filter(move |job| job.lease == Some(lease))
    }
}

/// Carries an instruction on files out; `directory` is where the volume's files are, `served` whether it is open here.
pub fn carry_out(
    instruction: &Instruction,
    directory: &Path,
    served: bool,
    job: &Job,
) -> Result<(), Failure> {
    match instruction.step {
        NodeStep::Prepare => prepare(directory, instruction.size_bytes),
        NodeStep::Remove | NodeStep::Wipe if served => {
            Err(Failure::again("it is still served here".to_owned()))
        }
        NodeStep::Remove => remove(directory),
        NodeStep::Wipe => wipe(directory, instruction.rate_bytes_per_s, job),
        NodeStep::Scrub => scrub(directory, served, instruction.rate_bytes_per_s, job),
        // Whoever follows a control plane does these.
        NodeStep::Resize
        | NodeStep::Expand
        | NodeStep::CopyBulk
        | NodeStep::CopyDelta
        | NodeStep::Freeze
        | NodeStep::Thaw => Err(Failure::for_good("it is not done with files alone")),
    }
}

/// Why an instruction failed.
pub struct Failure {
    /// Why.
    pub why: String,
    /// Whether trying again may help.
    pub again: bool,
}

impl Failure {
    /// It may be tried again.
    pub fn again(why: String) -> Failure {
        Failure { why, again: true }
    }

    /// Trying again does not help.
    pub fn for_good(why: &str) -> Failure {
        Failure { why: why.to_owned(), again: false }
    }

    /// It cannot be written down.
    pub fn book(error: BookError) -> Failure {
        Failure::again(error.to_string())
    }

    /// Something is wrong there.
    pub fn at(path: &Path, error: impl std::fmt::Display) -> Failure {
        Failure::again(format!("{}: {error}", path.display()))
    }
}

const STOPPED: &str = "it was stopped";

fn prepare(directory: &Path, bytes: u64) -> Result<(), Failure> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).map_err(|error| Failure::at(parent, error))?;
    }
    // An attempt that a crash cut short; ids are never used twice, so it can only be of this volume.
    let there = HostDirectory::open(directory).ok();
    if let Some(summary) = there.as_ref().and_then(|there| store::summary(there).ok())
        && summary.blocks << summary.size.shift() == bytes
    {
        return Ok(());
    }
    if let Some(there) = there {
        store::delete(&there).map_err(|error| Failure::at(directory, error))?;
    }
    let made = store::create(directory, bytes, BlockSize::B4096);
    made.map(drop).map_err(|error| Failure::at(directory, error))
}

/// Why a volume gets no more room, and what helps.
pub fn no_room(directory: &Path) -> Failure {
    let about = match rustix::fs::statvfs(directory) {
        Ok(about) => about,
        Err(error) => return Failure::at(directory, error),
    };
    let free_bytes = about.f_bavail.saturating_mul(about.f_frsize);
    let needed_bytes = engine::volume::Config::default().expand_bytes;
    Failure::for_good(&format!(
        "{}: its file system has {free_bytes} bytes left, and a volume grows by {needed_bytes}; free some there, \
         discard data, or move a volume away",
        directory.display()
    ))
}

fn remove(directory: &Path) -> Result<(), Failure> {
    if !directory.exists() {
        return Ok(());
    }
    let there = HostDirectory::open(directory).map_err(|error| Failure::at(directory, error))?;
    store::delete(&there).map_err(|error| Failure::at(directory, error))
}

/// Writes zeros over everything that its files hold, and syncs them.
fn wipe(directory: &Path, rate: u64, job: &Job) -> Result<(), Failure> {
    if !directory.exists() {
        return Ok(());
    }
    let failed = |error: io::Error| Failure::at(directory, error);
    let files = || -> io::Result<Vec<_>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_file() {
                files.push((entry.path(), meta.blocks() * 512));
            }
        }
        Ok(files)
    };
    let files = files().map_err(failed)?;
    job.total_bytes.store(files.iter().map(|(_, bytes)| bytes).sum(), Ordering::Relaxed);
    let (began, zeros, mut wiped) = (Instant::now(), vec![0; CHUNK_BYTES], 0);
    for (path, _) in files {
        let mut file = File::options().write(true).open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut at = 0;
        // Holes hold nothing.
        while let Some((from, to)) = data(&file, at, length).map_err(failed)? {
            at = from;
            file.seek(SeekFrom::Start(from)).map_err(failed)?;
            while at < to {
                let part = (to - at).min(CHUNK_BYTES as u64);
                file.write_all(&zeros[..part as usize]).map_err(failed)?;
                // Here and not at the end: what waits in memory goes on being written after a stop.
                file.sync_data().map_err(failed)?;
                at += part;
                wiped += part;
                job.advance(part);
                if !job.wait(began, wiped, rate) {
                    return Err(Failure::again(STOPPED.to_owned()));
                }
            }
        }
        file.sync_all().map_err(failed)?;
    }
    Ok(())
}

/// The next stretch with data from `at` on.
fn data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    if at >= length {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(from) => Ok(Some((from, seek(file, SeekFrom::Hole(from))?))),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads a volume and checks its sums. What is found while it is served may be a change seen half way, so it
/// must be found again.
fn scrub(directory: &Path, served: bool, rate: u64, job: &Job) -> Result<(), Failure> {
    let there = HostDirectory::open(directory).map_err(|error| Failure::at(directory, error))?;
    let names = there.list().map_err(|error| Failure::at(directory, error))?;
    if let Ok(summary) = store::summary(&there) {
        job.expect(summary.pages * PAGE_BYTES as u64);
    }
    let (began, mut read, mut problem) = (Instant::now(), 0, String::new());
    for look in 0..if served { LOOKS } else { 1 } {
        let mut go_on = |bytes| {
            read += bytes;
            if look == 0 {
                job.advance(bytes);
            }
            job.wait(began, read, rate)
        };
        let checked =
            store::check_while(&there, &mut go_on).map_err(|error| Failure::at(directory, error))?;
        let Some(checked) = checked else { return Err(Failure::again(STOPPED.to_owned())) };
        let Some(first) = checked.problems.first() else { return Ok(()) };
        problem = format!("{} problems in {} files, first: {first}", checked.problem_count, names.len());
    }
    Err(Failure { why: format!("{problem}; restore those blocks from a copy"), again: false })
}

#[cfg(test)]
#[path = "steps/tests.rs"]
mod tests;
