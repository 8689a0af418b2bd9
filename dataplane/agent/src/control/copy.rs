//! Copying a volume of another node into files here, while it is served there.
//!
//! First everything, then again and again what changed meanwhile, until that is little or does not become less; the
//! rest when the source is frozen. See docs/decisions/050.
//!
//! Invariant: what the source was asked about and told is copied, or the copy ends as failed.

use std::path::Path;
use std::time::Instant;

use contract::{Instruction, OperationId};
use engine::volume::{HostDirectory, store};
use engine::{Offline, OfflineError};

use super::source::{Piece, READ_BYTES, READS, Source, SourceError};
use super::steps::{Failure, Job};

/// Times that a volume is gone through before it is frozen.
const PASSES_MAX: u32 = 8;
/// The part of a second's rate that may be left for the time in which hosts wait.
const LITTLE: u64 = 20;
/// What may be left in any case.
const LITTLE_BYTES_MIN: u64 = 1 << 20;

/// A copy that is not complete.
pub struct Copy {
    /// What it is made for.
    pub operation: OperationId,
    source: Source,
    writer: Offline,
}

/// Why a copy ended.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Writer(#[from] OfflineError),
    #[error("it was stopped")]
    Stopped,
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Failure {
        Failure::again(error.to_string())
    }
}

impl Copy {
    /// Makes the files in `directory` and copies until little is left.
    pub fn begin(instruction: &Instruction, directory: &Path, job: &Job) -> Result<Copy, Failure> {
        let name = instruction.from_name.as_ref().ok_or_else(|| Failure::for_good("of which volume?"))?;
        let source = Source::attach(&instruction.from_addresses, name.as_str())
            .map_err(|error| Failure::again(error.to_string()))?;
        // A clone is another volume to hosts.
        let is_clone = instruction.from_volume != Some(instruction.volume);
        let identity = (!is_clone).then_some(source.identity);
        make(directory, &source, identity)?;
        let there = HostDirectory::open(directory).map_err(|error| Failure::at(directory, error))?;
        let writer = Offline::open(&there, Some(instruction.epoch.0))
            .map_err(|error| Failure::at(directory, error))?;
        let mut copy = Copy { operation: instruction.key.operation, source, writer };
        job.expect(copy.source.bytes);
        copy.converge(job, instruction.rate_bytes_per_s)?;
        Ok(copy)
    }

    fn converge(&mut self, job: &Job, rate: u64) -> Result<(), CopyError> {
        let little = (rate / LITTLE).max(LITTLE_BYTES_MIN);
        let mut last = u64::MAX;
        for pass in 0..PASSES_MAX {
            let copied = self.pass(job, rate, pass == 0)?;
            if copied <= little || copied > last / 4 * 3 {
                break;
            }
            last = copied;
        }
        // What hosts wait for later is then only what they write from now on.
        self.writer.flush()?;
        Ok(())
    }

    /// Copies the rest of a source that is frozen. Hosts wait, so that is not held up.
    pub fn rest(&mut self, job: &Job) -> Result<(), Failure> {
        Ok(self.pass(job, u64::MAX, false).map(drop)?)
    }

    /// Leaves a volume that can be served, durable.
    pub fn end(self) -> Result<(), Failure> {
        // The source was told so that it counts no more; it may be gone already.
        let _ = self.source.leave();
        self.writer.close().map_err(CopyError::from)?;
        Ok(())
    }

    /// Goes through the volume once; returns the bytes that had changed. Zeros are not written in the `first` pass,
    /// since nothing is there yet.
    fn pass(&mut self, job: &Job, rate: u64, first: bool) -> Result<u64, CopyError> {
        let mut pass = Pass { job, began: Instant::now(), rate, first, copied: 0, moved: 0 };
        let (mut at, mut batch, mut batch_bytes) = (0, Vec::new(), 0);
        while at < self.source.bytes {
            for (bytes, changed) in self.source.changed(at)? {
                let end = at + bytes;
                while changed && at < end {
                    let part = (end - at).min(u64::from(READ_BYTES) - batch_bytes);
                    batch.push((at, part as u32));
                    batch_bytes += part;
                    at += part;
                    if batch.len() == READS || batch_bytes == u64::from(READ_BYTES) {
                        self.copy(&mut pass, &batch)?;
                        (batch_bytes, batch) = (0, Vec::new());
                    }
                }
                at = end;
            }
        }
        if !batch.is_empty() {
            self.copy(&mut pass, &batch)?;
        }
        Ok(pass.copied)
    }

    /// Copies some ranges.
    fn copy(&mut self, pass: &mut Pass<'_>, ranges: &[(u64, u32)]) -> Result<(), CopyError> {
        let (writer, first, moved) = (&mut self.writer, pass.first, &mut pass.moved);
        self.source.read(ranges, |place, piece| match piece {
            Piece::Data(bytes) => {
                *moved += bytes.len() as u64;
                writer.write(place, bytes).map_err(CopyError::from)
            }
            Piece::Zeros(_) if first => Ok(()),
            Piece::Zeros(bytes) => writer.zero(place, bytes).map_err(CopyError::from),
        })?;
        let bytes = ranges.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        pass.copied += bytes;
        if first {
            pass.job.advance(bytes);
        }
        if pass.job.wait(pass.began, pass.moved, pass.rate) { Ok(()) } else { Err(CopyError::Stopped) }
    }
}

/// One way through a volume.
struct Pass<'a> {
    job: &'a Job,
    began: Instant,
    rate: u64,
    first: bool,
    /// Bytes that had changed.
    copied: u64,
    /// Bytes of them that were not zeros.
    moved: u64,
}

/// Makes the files of the copy anew: ids are never used twice, so what lies there is an attempt that failed.
fn make(directory: &Path, source: &Source, identity: Option<[u8; 16]>) -> Result<(), Failure> {
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent).map_err(|error| Failure::at(parent, error))?;
    }
    if let Ok(there) = HostDirectory::open(directory) {
        store::delete(&there).map_err(|error| Failure::at(directory, error))?;
    }
    store::create_as(directory, source.bytes, source.block, identity)
        .map(drop)
        .map_err(|error| Failure::at(directory, error))
}
