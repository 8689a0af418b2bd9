//! Opening a volume: claim the next epoch, read what the last owner left, make it durable, and write it down as one's own.
//!
//! The steps are those of docs/format.md. They run on a helper thread, one call at a time; a crash in the middle leaves the
//! old owner's files as they were, and the next open begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use block::{BlockSize, Epoch, ExtentId, FileName, VolumeId};

use crate::directory::Directory;
use crate::format::{
    Checkpoint, CheckpointFixed, ExtentEntry, ExtentKind, FormatError, HEADER_BYTES, HOLE_RECORD_BYTES,
    Header, Identity, Kind, Mapped, PAGE_BYTES, Place, Run, put_hole, put_write, write_record_bytes,
};
use crate::map::{Delta, Index};
use crate::space::coalesce;
use crate::survey::{Survey, survey};
use crate::volume::{Config, Volume};

/// Bytes of a batch that recovery writes.
const BATCH_BYTES: usize = 64 << 10;
/// Bits of an epoch that count the openings under one grant.
const OPENING_BITS: u32 = 16;
/// Pages in one record that recovery writes.
const RECORD_PAGES_MAX: usize = 256;

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system said no.
    #[error("{file}: {source}")]
    Io {
        /// The file, or the directory.
        file: String,
        /// What it said.
        source: io::Error,
    },
    /// Not a volume, or one of another version.
    #[error("{file}: {source}; restore it from a copy, or delete the volume")]
    Format {
        /// The file.
        file: FileName,
        /// What is wrong.
        source: FormatError,
    },
    /// There is no whole checkpoint.
    #[error("no whole checkpoint: both sides are damaged; restore the volume from a copy")]
    NoCheckpoint,
    /// Another owner claimed the volume at the same time, or after us.
    #[error("another owner claimed the volume (epoch {0}); open it again to take it over")]
    Raced(Epoch),
    /// A higher grant opened it.
    #[error("it was granted to another owner since (grant {there}, this one has {ours}); it is served there")]
    Superseded {
        /// The grant found on the medium.
        there: u64,
        /// The grant to open under.
        ours: u64,
    },
    /// The grant allows no further opening.
    #[error("grant {0} was opened 65,535 times; move the volume, which gives it another one")]
    Exhausted(u64),
    /// The new size is none.
    #[error("the new size must be between 1 block and 64 TiB")]
    Size,
}

impl OpenError {
    fn is_no_space(&self) -> bool {
        matches!(self, OpenError::Io { source, .. } if is_full(source))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

pub(crate) fn io_error(file: impl ToString) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { file: file.to_string(), source }
}

/// What recovery found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The epoch that was claimed.
    pub epoch: Epoch,
    /// The epoch whose checkpoint and log counted.
    pub sealed_epoch: Epoch,
    /// The last batch of that log that counts.
    pub sealed_batch: u64,
    /// Batches behind that one: written, but with pages that are not there. None of them was flushed.
    pub batches_cut: u64,
    /// Pages that were read and compared with their CRC.
    pub pages_verified: u64,
    /// Slots found free, whose room will be given back.
    pub slots_free: u64,
}

/// What a volume starts from.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub identity: Identity,
    pub epoch: Epoch,
    pub size: BlockSize,
    pub blocks: u64,
    pub delta: Delta,
    pub index: Index,
    /// Extents, and how many of their slots the delta refers to.
    pub extents: Vec<(ExtentEntry, u32)>,
    pub next_extent: u32,
    /// Slots whose room can be given back.
    pub dead: Vec<Run>,
    pub next_batch: u64,
    /// The segment that is written next, empty.
    pub segment: u32,
    pub checkpoint: u64,
    /// Files that nobody needs any more.
    pub leftovers: Vec<FileName>,
}

/// Claims a volume and makes it ready to serve.
pub fn open(
    directory: &dyn Directory,
    id: VolumeId,
    config: Config,
) -> Result<(Volume, Recovery), OpenError> {
    let (recovered, recovery) = recover(directory, &config, None)?;
    Ok((Volume::new(id, config, recovered), recovery))
}

/// Claims a volume and writes down what the last owner left, with another size if asked.
pub(crate) fn recover(
    directory: &dyn Directory,
    config: &Config,
    blocks: Option<u64>,
) -> Result<(Recovered, Recovery), OpenError> {
    let epoch = claim(directory, config.grant)?;
    let found = survey(directory, Epoch(epoch.0 - 1))?;
    let mut kept = found.replay();
    let (blocks, old_blocks) =
        (blocks.unwrap_or(found.checkpoint.fixed.blocks), found.checkpoint.fixed.blocks);
    if blocks < old_blocks {
        let pages = |blocks: u64| (blocks << found.size.shift()).div_ceil(PAGE_BYTES as u64);
        kept.delta.punch(pages(blocks), pages(old_blocks).max(pages(blocks)), |place| kept.freed.push(place));
    }
    let (extents, dead, mut leftovers) = sort_files(directory, &found, &kept.delta, &kept.freed, epoch)?;
    for (entry, _) in extents.iter().filter(|(entry, _)| entry.epoch == found.checkpoint.epoch) {
        let name = FileName::Extent { epoch: entry.epoch, id: entry.id };
        directory.sync(name).map_err(io_error(name))?;
    }
    let next_extent = found.highest_extent().max(found.checkpoint.fixed.next_extent);
    let checkpoint = Checkpoint {
        epoch,
        number: 1,
        batch: 0,
        fixed: CheckpointFixed {
            blocks,
            segment: 0,
            next_extent,
            sealed_epoch: found.checkpoint.epoch.0,
            sealed_batch: found.cut,
            ..CheckpointFixed::default()
        },
        extents: extents.iter().map(|(entry, _)| *entry).collect(),
        leaves: found.checkpoint.leaves.clone(),
        runs: dead.clone(),
    };
    let mut written = write_down(directory, &found.identity, config, &kept.delta, &checkpoint);
    if matches!(&written, Err(why) if why.is_no_space()) {
        // A volume on a full disk is opened in the room of what nobody needs any more.
        give_back(directory, &extents, &dead)?;
        remove_written(directory, epoch)?;
        written = write_down(directory, &found.identity, config, &kept.delta, &checkpoint);
    }
    let (segment, next_batch) = written?;
    still_ours(directory, epoch)?;
    let log = FileName::Log { epoch, segment };
    // Without room for the log no overwrite could be written: what nobody needs any more makes some, and that is removed
    // here only if it must be, since hosts may wait.
    if !allocate_log(directory, log, config)? {
        for name in leftovers.drain(..) {
            directory.remove(name).map_err(io_error(name))?;
        }
        if !allocate_log(directory, log, config)? {
            give_back(directory, &extents, &dead)?;
            allocate_log(directory, log, config)?;
        }
    }
    let mut index = Index::default();
    found.checkpoint.leaves.iter().for_each(|&(first, leaf)| index.insert(first, leaf));
    let recovery = Recovery {
        epoch,
        sealed_epoch: found.checkpoint.epoch,
        sealed_batch: found.cut,
        batches_cut: found.last_batch() - found.cut,
        pages_verified: found.pages_verified,
        slots_free: dead.iter().map(|run| u64::from(run.slots)).sum(),
    };
    let recovered = Recovered {
        identity: found.identity,
        epoch,
        size: found.size,
        blocks,
        delta: kept.delta,
        index,
        extents,
        next_extent,
        dead,
        next_batch,
        segment,
        checkpoint: 1,
        leftovers,
    };
    Ok((recovered, recovery))
}

fn claim(directory: &dyn Directory, grant: Option<u64>) -> Result<Epoch, OpenError> {
    let names = directory.list().map_err(io_error("the volume's directory"))?;
    let highest = highest_claim(&names);
    let epoch = Epoch(match grant {
        None => highest + 1,
        Some(ours) => next_within(ours, highest)?,
    });
    match directory.create(FileName::Epoch(epoch)) {
        Ok(()) => fence(directory, epoch).map(|()| epoch),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(OpenError::Raced(epoch)),
        Err(error) => Err(io_error(FileName::Epoch(epoch))(error)),
    }
}

/// Fences every owner before `epoch`, whose claim is made: who claims a lower one from now on sees it and gives up.
fn fence(directory: &dyn Directory, epoch: Epoch) -> Result<(), OpenError> {
    let names = directory.list().map_err(io_error("the volume's directory"))?;
    let highest = highest_claim(&names);
    if highest > epoch.0 {
        return Err(OpenError::Raced(Epoch(highest)));
    }
    let others = names.iter().filter_map(|name| match name {
        FileName::Epoch(other) if *other != epoch => Some(FileName::Fence(*other)),
        _ => None,
    });
    for fence in others {
        match directory.create(fence) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(fence)(error)),
            _ => {}
        }
    }
    Ok(())
}

/// The next epoch of a grant, which is in its upper bits; openings under it count in the lower [`OPENING_BITS`].
fn next_within(ours: u64, highest: u64) -> Result<u64, OpenError> {
    let there = highest >> OPENING_BITS;
    if there > ours {
        return Err(OpenError::Superseded { there, ours });
    }
    let next = (highest + 1).max((ours << OPENING_BITS) + 1);
    if next >> OPENING_BITS == ours { Ok(next) } else { Err(OpenError::Exhausted(ours)) }
}

pub(crate) fn highest_claim(names: &[FileName]) -> u64 {
    let claims = names.iter().filter_map(|name| match name {
        FileName::Epoch(epoch) => Some(epoch.0),
        _ => None,
    });
    claims.max().unwrap_or(0)
}

fn still_ours(directory: &dyn Directory, epoch: Epoch) -> Result<(), OpenError> {
    let names = directory.list().map_err(io_error("the volume's directory"))?;
    let highest = highest_claim(&names);
    if highest > epoch.0 { Err(OpenError::Raced(Epoch(highest))) } else { Ok(()) }
}

type Sorted = (Vec<(ExtentEntry, u32)>, Vec<Run>, Vec<FileName>);

/// Which extents count, which of their slots are free, and which files nobody needs.
fn sort_files(
    directory: &dyn Directory,
    found: &Survey,
    delta: &Delta,
    freed: &[Place],
    epoch: Epoch,
) -> Result<Sorted, OpenError> {
    let mut recent: BTreeMap<ExtentId, (u32, u32)> = BTreeMap::new();
    let live: BTreeSet<Place> = delta.pages().map(|(_, mapped)| mapped.place).collect();
    for place in &live {
        let (count, top) = recent.entry(place.extent).or_default();
        (*count, *top) = (*count + 1, (*top).max(place.slot + 1));
    }
    let mut extents = Vec::new();
    let mut dead: Vec<Run> = found.checkpoint.runs.clone();
    dead.extend(freed.iter().map(|&place| Run { place, slots: 1 }));
    for entry in &found.extents {
        let name = FileName::Extent { epoch: entry.epoch, id: entry.id };
        let (count, top) = recent.get(&entry.id).copied().unwrap_or_default();
        let length = match directory.len(name) {
            Ok(length) => length,
            // It was empty, and removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && count == 0 && entry.live == 0 => {
                continue;
            }
            Err(error) => return Err(io_error(name)(error)),
        };
        let fresh = entry.fresh.max(top).max(1);
        let slots = length.div_ceil(entry.kind.slot_bytes()).min(u64::from(u32::MAX)) as u32;
        let allocated = entry.allocated.max(slots);
        if allocated > fresh {
            let place = Place { extent: entry.id, slot: fresh };
            dead.push(Run { place, slots: allocated - fresh });
        }
        extents.push((ExtentEntry { fresh, allocated: fresh, ..*entry }, count));
    }
    let known: BTreeSet<ExtentId> = extents.iter().map(|(entry, _)| entry.id).collect();
    let dead = coalesce(dead).into_iter().filter(|run| known.contains(&run.place.extent));
    let dead = dead.flat_map(|run| without(run, &live)).collect();
    let names = directory.list().map_err(io_error("the volume's directory"))?;
    let needless = |name: &FileName| match name {
        FileName::Log { epoch: writer, .. } | FileName::Checkpoint { epoch: writer, .. } => *writer < epoch,
        FileName::Extent { epoch: writer, id } => *writer < epoch && !known.contains(id),
        FileName::Superblock | FileName::Epoch(_) | FileName::Fence(_) => false,
    };
    Ok((extents, dead, names.into_iter().filter(needless).collect()))
}

/// The parts of a run that hold nothing live.
fn without(run: Run, live: &BTreeSet<Place>) -> Vec<Run> {
    let end = run.place.slot + run.slots;
    let (mut at, mut out) = (run.place.slot, Vec::new());
    let stop = Place { extent: run.place.extent, slot: end };
    for place in live.range(run.place..stop).copied().chain([stop]) {
        if place.slot > at {
            let slots = place.slot - at;
            out.push(Run { place: Place { slot: at, ..run.place }, slots });
        }
        at = place.slot + 1;
    }
    out
}

/// Writes what stands from now on: the log, and then the checkpoint that makes it count. Returns the empty segment behind
/// the log and the next batch.
fn write_down(
    directory: &dyn Directory,
    identity: &Identity,
    config: &Config,
    delta: &Delta,
    checkpoint: &Checkpoint,
) -> Result<(u32, u64), OpenError> {
    let epoch = checkpoint.epoch;
    let log = write_log(directory, identity, epoch, config, delta)?;
    let name = FileName::Checkpoint { epoch, side: 0 };
    write_file(directory, name, &padded(checkpoint.write(identity)))?;
    Ok(log)
}

/// Takes room for a segment of the log. False: there is none.
fn allocate_log(directory: &dyn Directory, name: FileName, config: &Config) -> Result<bool, OpenError> {
    match directory.allocate(name, 0, u64::from(config.log_segment_bytes)) {
        Ok(()) => Ok(true),
        Err(error) if is_full(&error) => Ok(false),
        // A file system without fallocate: room is found, or not, when it is written.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(error) => Err(io_error(name)(error)),
    }
}

/// Gives the room of dead slots back. What a recovery after a crash in between finds is the same: it does not read them.
fn give_back(
    directory: &dyn Directory,
    extents: &[(ExtentEntry, u32)],
    dead: &[Run],
) -> Result<(), OpenError> {
    for run in dead {
        let Some((entry, _)) = extents.iter().find(|(entry, _)| entry.id == run.place.extent) else {
            continue;
        };
        let name = FileName::Extent { epoch: entry.epoch, id: entry.id };
        let bytes = entry.kind.slot_bytes();
        let punched = directory.punch(name, u64::from(run.place.slot) * bytes, u64::from(run.slots) * bytes);
        punched.map_err(io_error(name))?;
    }
    Ok(())
}

/// Removes what an attempt without room left of its log and checkpoint.
fn remove_written(directory: &dyn Directory, epoch: Epoch) -> Result<(), OpenError> {
    for name in directory.list().map_err(io_error("the volume's directory"))? {
        let written = match name {
            FileName::Log { epoch: writer, .. } | FileName::Checkpoint { epoch: writer, .. } => {
                writer == epoch
            }
            _ => false,
        };
        if written {
            directory.remove(name).map_err(io_error(name))?;
        }
    }
    Ok(())
}

/// Writes the delta as the own log. Returns the empty segment behind it and the next batch.
///
/// Each batch says that it is durable: the pages that it names were synced before.
fn write_log(
    directory: &dyn Directory,
    identity: &Identity,
    epoch: Epoch,
    config: &Config,
    delta: &Delta,
) -> Result<(u32, u64), OpenError> {
    let (mut segment, mut batch, mut bytes) = (0, 1, Vec::new());
    let mut writer = Batches::default();
    delta.holes().for_each(|(first, end)| writer.hole(first, end - first));
    let mut pages = delta.pages().peekable();
    while let Some((first, mapped)) = pages.next() {
        let mut run = vec![mapped];
        while run.len() < RECORD_PAGES_MAX
            && let Some((_, mapped)) = pages.next_if(|(page, _)| *page == first + run.len() as u64)
        {
            run.push(mapped);
        }
        writer.write(first, &run);
    }
    for mut body in writer.finish() {
        let length = body.len() as u32;
        body.resize(body.len().next_multiple_of(PAGE_BYTES), 0);
        let (a, b) = (batch, batch);
        Header { kind: Kind::Batch, identity: *identity, epoch, a, b, bytes: length }.seal(&mut body);
        if bytes.len() + body.len() > config.log_segment_bytes as usize && !bytes.is_empty() {
            write_file(directory, FileName::Log { epoch, segment }, &std::mem::take(&mut bytes))?;
            segment += 1;
        }
        bytes.append(&mut body);
        batch += 1;
    }
    if !bytes.is_empty() {
        write_file(directory, FileName::Log { epoch, segment }, &bytes)?;
        segment += 1;
    }
    let name = FileName::Log { epoch, segment };
    directory.create(name).map_err(io_error(name))?;
    Ok((segment, batch))
}

/// Bodies of batches, filled one after another, with room for their headers.
#[derive(Debug, Default)]
struct Batches {
    full: Vec<Vec<u8>>,
    body: Vec<u8>,
}

impl Batches {
    fn room(&mut self, bytes: usize) -> usize {
        if self.body.len() + bytes > BATCH_BYTES {
            self.full.push(std::mem::take(&mut self.body));
        }
        let at = self.body.len().max(HEADER_BYTES);
        self.body.resize(at + bytes, 0);
        at
    }

    fn write(&mut self, first: u64, pages: &[Mapped]) {
        let at = self.room(write_record_bytes(pages.len()));
        put_write(&mut self.body, at, first, pages.iter().copied());
    }

    fn hole(&mut self, first: u64, count: u64) {
        let at = self.room(HOLE_RECORD_BYTES);
        put_hole(&mut self.body, at, first, count);
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.body.is_empty() {
            self.full.push(self.body);
        }
        self.full
    }
}

/// Makes a file with these bytes, durably.
pub(crate) fn write_file(directory: &dyn Directory, name: FileName, bytes: &[u8]) -> Result<(), OpenError> {
    directory.create(name).map_err(io_error(name))?;
    directory.write(name, 0, bytes).map_err(io_error(name))?;
    directory.sync(name).map_err(io_error(name))
}

pub(crate) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    bytes
}

impl ExtentEntry {
    /// An extent that no checkpoint names yet.
    pub(crate) fn unnamed(id: ExtentId, kind: ExtentKind, epoch: Epoch) -> ExtentEntry {
        ExtentEntry { id, kind, epoch, fresh: 1, live: 0, allocated: 1 }
    }
}
