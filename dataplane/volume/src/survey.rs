//! Reading a volume's files without changing them: the newest checkpoint, the log behind it, and how much of it counts.
//!
//! A batch counts when every page that it maps, and that no later batch that counts replaced, is whole. Pages of
//! batches that a later batch knew to be durable are not read: a flaw there is damage, to be reported when the page is
//! read, and no reason to forget what was flushed. Nor are pages that were replaced: those may have been used
//! again already. Both together never cut a batch that was flushed: a page is used again only when the batch that
//! replaced it is durable, so in any state that contains all durable batches, every page in use is whole.

use std::collections::{BTreeMap, HashMap};
use std::io;

use block::{BlockSize, Epoch, ExtentId, FileName};

use crate::directory::Directory;
use crate::format::{
    Checkpoint, ExtentEntry, ExtentKind, Header, Identity, Kind, Mapped, PAGE_BYTES, Place, Record, page_crc,
    read_superblock, records,
};
use crate::map::Delta;
use crate::open::{OpenError, io_error};

/// What the files of a volume say.
#[derive(Debug)]
pub(crate) struct Survey {
    pub identity: Identity,
    pub size: BlockSize,
    pub checkpoint: Checkpoint,
    /// Batches behind the checkpoint, in order, with their numbers.
    pub batches: Vec<(u64, Vec<Record>)>,
    /// The last batch known to be durable.
    pub durable: u64,
    /// The last batch that counts.
    pub cut: u64,
    /// Extents that the checkpoint or the log can refer to.
    pub extents: Vec<ExtentEntry>,
    pub pages_verified: u64,
}

/// What remains when the batches that count are applied.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    pub delta: Delta,
    /// Places that were written and replaced within the log.
    pub freed: Vec<Place>,
}

impl Survey {
    /// The last batch, counting or not.
    pub fn last_batch(&self) -> u64 {
        self.batches.last().map_or(self.checkpoint.batch, |(number, _)| *number)
    }

    /// One more than the highest extent number in use.
    pub fn highest_extent(&self) -> u32 {
        self.extents.iter().map(|entry| entry.id.0 + 1).max().unwrap_or(0)
    }

    /// Applies the batches that count.
    pub fn replay(&self) -> Replayed {
        let mut out = Replayed::default();
        for (number, records) in &self.batches {
            if *number > self.cut {
                break;
            }
            for record in records {
                match record {
                    Record::Write { first, pages } => {
                        for (page, &mapped) in (*first..).zip(pages) {
                            out.freed.extend(out.delta.put(page, mapped));
                        }
                    }
                    Record::Hole { first, count } => {
                        let freed = &mut out.freed;
                        out.delta.punch(*first, first.saturating_add(*count), |place| freed.push(place));
                    }
                }
            }
        }
        out
    }
}

/// What a volume is, and its newest checkpoint.
pub(crate) struct Newest {
    pub identity: Identity,
    pub size: BlockSize,
    pub checkpoint: Checkpoint,
}

/// Reads that of owners up to `epoch`, and nothing that grows with what was written since.
pub(crate) fn newest(
    directory: &dyn Directory,
    names: &[FileName],
    epoch: Epoch,
) -> Result<Newest, OpenError> {
    let mut page = vec![0; PAGE_BYTES];
    directory.read(FileName::Superblock, 0, &mut page).map_err(io_error(FileName::Superblock))?;
    let (identity, size) =
        read_superblock(&page).map_err(|source| OpenError::Format { file: FileName::Superblock, source })?;
    let checkpoint = newest_checkpoint(directory, names, epoch, &identity)?.ok_or(OpenError::NoCheckpoint)?;
    Ok(Newest { identity, size, checkpoint })
}

/// Reads the files of owners up to `epoch`.
pub(crate) fn survey(directory: &dyn Directory, epoch: Epoch) -> Result<Survey, OpenError> {
    let names = directory.list().map_err(io_error("the volume's directory"))?;
    let Newest { identity, size, checkpoint } = newest(directory, &names, epoch)?;
    let (batches, durable) = read_log(directory, &checkpoint, &identity)?;
    let mut extents = checkpoint.extents.clone();
    for name in names {
        if let FileName::Extent { epoch: writer, id } = name
            && writer == checkpoint.epoch
            && !extents.iter().any(|entry| entry.id == id)
            && let Some(kind) = extent_kind(directory, name, &identity)?
        {
            extents.push(ExtentEntry::unnamed(id, kind, writer));
        }
    }
    let last = batches.last().map_or(checkpoint.batch, |(number, _)| *number);
    let mut found =
        Survey { identity, size, checkpoint, batches, durable, cut: last, extents, pages_verified: 0 };
    cut(directory, &mut found);
    Ok(found)
}

fn newest_checkpoint(
    directory: &dyn Directory,
    names: &[FileName],
    epoch: Epoch,
    identity: &Identity,
) -> Result<Option<Checkpoint>, OpenError> {
    let mut newest: Option<Checkpoint> = None;
    for &name in names {
        let FileName::Checkpoint { epoch: writer, .. } = name else { continue };
        if writer > epoch {
            continue;
        }
        let Some(bytes) = read_if_there(directory, name)? else { continue };
        // One that is half written is no error: the other side counts.
        if let Ok(checkpoint) = Checkpoint::read(&bytes, identity)
            && checkpoint.epoch == writer
            && newest.as_ref().is_none_or(|n| (n.epoch, n.number) < (checkpoint.epoch, checkpoint.number))
        {
            newest = Some(checkpoint);
        }
    }
    Ok(newest)
}

/// A whole file, or `None` when there is none of that name.
fn read_if_there(directory: &dyn Directory, name: FileName) -> Result<Option<Vec<u8>>, OpenError> {
    let length = match directory.len(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_error(name))?,
    };
    let mut bytes = vec![0; length as usize];
    let count = directory.read(name, 0, &mut bytes).map_err(io_error(name))?;
    bytes.truncate(count);
    Ok(Some(bytes))
}

type Log = (Vec<(u64, Vec<Record>)>, u64);

/// The batches behind a checkpoint, and the last one that is known to be durable.
fn read_log(
    directory: &dyn Directory,
    checkpoint: &Checkpoint,
    identity: &Identity,
) -> Result<Log, OpenError> {
    let (mut batches, mut durable) = (Vec::new(), checkpoint.batch);
    let mut next = checkpoint.batch + 1;
    for segment in checkpoint.fixed.segment.. {
        let name = FileName::Log { epoch: checkpoint.epoch, segment };
        // A segment that is there may be empty: a checkpoint goes on in the next one at once.
        let Some(bytes) = read_if_there(directory, name)? else { break };
        let mut at = 0;
        while at < bytes.len() {
            let Ok(header) = Header::open(&bytes[at..], Kind::Batch, identity) else { break };
            // A checkpoint may have begun within its segment: what it contains comes first.
            let contained = header.a <= checkpoint.batch && segment == checkpoint.fixed.segment;
            if header.epoch != checkpoint.epoch || (header.a != next && !contained) {
                break;
            }
            let length = (header.bytes as usize).next_multiple_of(PAGE_BYTES);
            if contained {
                at += length;
                continue;
            }
            let Ok(records) = records(&bytes[at..at + header.bytes as usize]) else { break };
            batches.push((next, records));
            durable = durable.max(header.b);
            next += 1;
            at += length;
        }
    }
    Ok((batches, durable))
}

/// What an extent holds, when its header is whole.
fn extent_kind(
    directory: &dyn Directory,
    name: FileName,
    identity: &Identity,
) -> Result<Option<ExtentKind>, OpenError> {
    let mut page = vec![0; PAGE_BYTES];
    match directory.read(name, 0, &mut page) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_error(name))?,
    };
    let header = Header::open(&page, Kind::Extent, identity).ok();
    Ok(header.and_then(|header| ExtentKind::from_number(header.b)))
}

/// A page that must be whole for its batch to count.
struct Candidate {
    batch: u64,
    mapped: Mapped,
    /// The next batch that replaces it.
    replaced: Option<u64>,
}

/// Finds the last batch that counts.
fn cut(directory: &dyn Directory, found: &mut Survey) {
    let candidates = candidates(found);
    let files: BTreeMap<ExtentId, FileName> = found
        .extents
        .iter()
        .map(|entry| (entry.id, FileName::Extent { epoch: entry.epoch, id: entry.id }))
        .collect();
    let mut known: HashMap<(Place, u32), bool> = HashMap::new();
    let mut whole = |mapped: &Mapped| {
        *known.entry((mapped.place, mapped.crc)).or_insert_with(|| {
            let mut page = vec![0; PAGE_BYTES];
            let offset = u64::from(mapped.place.slot) * PAGE_BYTES as u64;
            let read = files.get(&mapped.place.extent).map(|&name| directory.read(name, offset, &mut page));
            matches!(read, Some(Ok(PAGE_BYTES))) && page_crc(&page) == mapped.crc
        })
    };
    loop {
        let in_use = |c: &&Candidate| c.batch <= found.cut && c.replaced.is_none_or(|by| by > found.cut);
        let torn = candidates.iter().filter(in_use).find(|candidate| !whole(&candidate.mapped));
        match torn {
            Some(candidate) => found.cut = candidate.batch - 1,
            None => break,
        }
    }
    found.pages_verified = known.len() as u64;
}

/// Pages of batches that are not known to be durable, by ascending batch.
fn candidates(found: &Survey) -> Vec<Candidate> {
    let mut out = Vec::new();
    let mut later: HashMap<u64, u64> = HashMap::new();
    let mut holes: Vec<(u64, u64, u64)> = Vec::new();
    for (batch, records) in found.batches.iter().rev().take_while(|(batch, _)| *batch > found.durable) {
        for record in records.iter().rev() {
            match record {
                Record::Write { first, pages } => {
                    for (page, &mapped) in (*first..).zip(pages) {
                        let hole = holes.iter().filter(|(first, end, _)| (*first..*end).contains(&page));
                        let hole = hole.map(|(_, _, batch)| *batch).min();
                        let replaced = later.get(&page).copied().into_iter().chain(hole).min();
                        out.push(Candidate { batch: *batch, mapped, replaced });
                        later.insert(page, *batch);
                    }
                }
                Record::Hole { first, count } => holes.push((*first, first.saturating_add(*count), *batch)),
            }
        }
    }
    out.reverse();
    out
}
