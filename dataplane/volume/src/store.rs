//! Volumes as directories, while nobody serves them: create, list, check, dump, resize, delete.
//!
//! A root directory holds one directory per volume, named by the operator. [`check`] and [`dump`] only read, and say what
//! was true of a volume that is being served at some moment; [`resize`] takes the volume over, as opening does.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use block::{BlockSize, Epoch, ExtentId, FileName, Lba, VOLUME_BYTES_MAX};

use crate::directory::{Directory, HostDirectory};
use crate::format::{
    Checkpoint, CheckpointFixed, ExtentKind, Header, Identity, Kind, LEAF_BYTES, LeafRef, Mapped, PAGE_BYTES,
    Place, Record, crc_field, entry, entry_count, page_crc, superblock,
};
use crate::map::Found;
use crate::open::{OpenError, Recovery, highest_claim, io_error, padded, recover, write_file};
use crate::survey::{Replayed, Survey, newest, survey};
use crate::volume::Config;

/// Why a volume cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Nothing, too much, or not whole pages.
    #[error("{bytes} bytes: the size must be whole 4 KiB pages, at least one, at most 64 TiB")]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// There is something of that name.
    #[error("{0} exists; choose another name or delete it first")]
    Exists(String),
    /// The files cannot be written.
    #[error(transparent)]
    Files(#[from] OpenError),
}

/// Makes a volume of `bytes` in a new directory at `path`, with a random identity.
pub fn create(path: &Path, bytes: u64, size: BlockSize) -> Result<HostDirectory, CreateError> {
    create_as(path, bytes, size, None)
}

/// The same, with an identity if one is given.
pub fn create_as(
    path: &Path,
    bytes: u64,
    size: BlockSize,
    identity: Option<Identity>,
) -> Result<HostDirectory, CreateError> {
    let shown = path.display().to_string();
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(CreateError::Exists(shown)),
        Err(error) => return Err(io_error(shown)(error).into()),
    }
    let directory = HostDirectory::open(path).map_err(io_error(&shown))?;
    let identity = match identity {
        Some(identity) => identity,
        None => {
            let mut identity = [0; 16];
            let random = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut identity));
            random.map_err(io_error("/dev/urandom"))?;
            identity
        }
    };
    create_in(&directory, identity, bytes, size)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::File::open(parent).and_then(|file| file.sync_all()).map_err(io_error(shown))?;
    }
    Ok(directory)
}

/// Makes a volume in an empty directory.
pub fn create_in(
    directory: &dyn Directory,
    identity: Identity,
    bytes: u64,
    size: BlockSize,
) -> Result<(), CreateError> {
    if bytes == 0 || bytes > VOLUME_BYTES_MAX || !bytes.is_multiple_of(PAGE_BYTES as u64) {
        return Err(CreateError::Size { bytes });
    }
    let epoch = Epoch(1);
    directory.create(FileName::Epoch(epoch)).map_err(io_error(FileName::Epoch(epoch)))?;
    let checkpoint = Checkpoint {
        epoch,
        number: 1,
        batch: 0,
        fixed: CheckpointFixed { blocks: bytes >> size.shift(), ..CheckpointFixed::default() },
        extents: Vec::new(),
        leaves: Vec::new(),
        runs: Vec::new(),
    };
    let name = FileName::Checkpoint { epoch, side: 0 };
    write_file(directory, name, &padded(checkpoint.write(&identity)))?;
    // The superblock comes last: without it, it is not a volume.
    write_file(directory, FileName::Superblock, &superblock(identity, size))?;
    Ok(())
}

/// One volume of a root directory.
#[derive(Debug)]
pub struct Listed {
    /// Name of its directory.
    pub name: String,
    /// What it is, or why it cannot be told.
    pub summary: Result<Summary, OpenError>,
}

/// A volume at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its random identity.
    pub identity: Identity,
    /// Size of a block.
    pub size: BlockSize,
    /// Size in blocks.
    pub blocks: u64,
    /// The highest claim.
    pub epoch: Epoch,
    /// Pages that hold data, as far as the newest checkpoint says.
    pub pages: u64,
}

/// The volumes below `root`, by name. Directories that are no volumes are passed over.
pub fn list(root: &Path) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.join(FileName::Superblock.to_string()).is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let summary = HostDirectory::open(&path)
                .map_err(io_error(path.display()))
                .and_then(|directory| summary(&directory));
            found.push(Listed { name, summary });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// A volume at a glance, also while it is written: as its newest checkpoint says.
pub fn summary(directory: &dyn Directory) -> Result<Summary, OpenError> {
    let names = directory.list().map_err(io_error("the volume's directory"))?;
    let found = newest(directory, &names, Epoch(u64::MAX))?;
    let pages = found.checkpoint.extents.iter().filter(|entry| entry.kind == ExtentKind::Pages);
    Ok(Summary {
        identity: found.identity,
        size: found.size,
        blocks: found.checkpoint.fixed.blocks,
        epoch: Epoch(highest_claim(&names)),
        pages: pages.map(|entry| u64::from(entry.live)).sum(),
    })
}

/// Something that is wrong with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A page's bytes are not what was written.
    Page {
        /// First block.
        lba: Lba,
        /// Where it lies.
        place: Place,
    },
    /// A leaf of the map is damaged: its range of blocks cannot be read.
    Leaf {
        /// First block of its range.
        lba: Lba,
        /// Where it lies.
        place: Place,
    },
    /// Two blocks lie at one place.
    Shared {
        /// First block of the one found later.
        lba: Lba,
        /// Where both lie.
        place: Place,
    },
    /// An extent that is referred to is not there.
    Missing {
        /// First block that lies in it.
        lba: Lba,
        /// The extent.
        extent: ExtentId,
    },
    /// Slots in use are not as many as counted: room is lost, no data.
    Count {
        /// The extent.
        extent: ExtentId,
        /// What the checkpoint says.
        counted: u32,
        /// What the leaves say.
        found: u32,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Page { lba, place } => {
                write!(f, "block {lba}: checksum mismatch in extent {}, slot {}", place.extent, place.slot)
            }
            Problem::Leaf { lba, place } => {
                write!(
                    f,
                    "map from block {lba} on: damaged leaf in extent {}, slot {}",
                    place.extent, place.slot
                )
            }
            Problem::Shared { lba, place } => {
                write!(f, "block {lba}: extent {}, slot {} holds another block too", place.extent, place.slot)
            }
            Problem::Missing { lba, extent } => write!(f, "block {lba}: extent {extent} is missing"),
            Problem::Count { extent, counted, found } => {
                write!(f, "extent {extent}: {counted} slots counted, {found} in use")
            }
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages read and compared.
    pub pages: u64,
    /// Leaves read and compared.
    pub leaves: u64,
    /// Batches of the log that count, and those that do not.
    pub batches: (u64, u64),
    /// What is wrong, at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How much is wrong.
    pub problem_count: u64,
}

/// Problems that a check names; more are counted.
pub const PROBLEMS_MAX: usize = 1000;

impl Checked {
    fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

/// Reads everything that a volume refers to and compares it with its checksum.
pub fn check(directory: &dyn Directory) -> Result<Checked, OpenError> {
    check_while(directory, &mut |_| true).map(|checked| checked.unwrap_or_default())
}

/// The same in pieces of a page or a leaf: `go_on` is told the bytes of each piece that was read, may take its time,
/// and says whether there is to be another one. None: there was not.
pub fn check_while(
    directory: &dyn Directory,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Checked>, OpenError> {
    let found = survey(directory, Epoch(u64::MAX))?;
    let Replayed { delta, .. } = found.replay();
    let mut checker = Checker::new(directory, &found);
    checker.out.batches = (found.cut - found.checkpoint.batch, found.last_batch() - found.cut);
    for &(first, leaf) in &found.checkpoint.leaves {
        let entries = checker.leaf(first, &leaf);
        if !go_on(LEAF_BYTES as u64) {
            return Ok(None);
        }
        for (page, mapped) in entries {
            *checker.in_use.entry(mapped.place.extent).or_default() += 1;
            if delta.find(page) == Found::Unknown {
                checker.page(page, mapped);
                if !go_on(PAGE_BYTES as u64) {
                    return Ok(None);
                }
            }
        }
    }
    for (page, mapped) in delta.pages() {
        checker.page(page, mapped);
        if !go_on(PAGE_BYTES as u64) {
            return Ok(None);
        }
    }
    let damaged = checker.out.problems.iter().any(|problem| matches!(problem, Problem::Leaf { .. }));
    for entry in found.checkpoint.extents.iter().filter(|_| !damaged) {
        let in_use = checker.in_use.get(&entry.id).copied().unwrap_or(0);
        if in_use != entry.live {
            checker.out.add(Problem::Count { extent: entry.id, counted: entry.live, found: in_use });
        }
    }
    Ok(Some(checker.out))
}

struct Checker<'a> {
    directory: &'a dyn Directory,
    found: &'a Survey,
    files: HashMap<ExtentId, FileName>,
    seen: HashMap<Place, u64>,
    in_use: HashMap<ExtentId, u32>,
    out: Checked,
}

impl<'a> Checker<'a> {
    fn new(directory: &'a dyn Directory, found: &'a Survey) -> Checker<'a> {
        let files = found.extents.iter();
        let files =
            files.map(|entry| (entry.id, FileName::Extent { epoch: entry.epoch, id: entry.id })).collect();
        let (seen, in_use, out) = (HashMap::new(), HashMap::new(), Checked::default());
        Checker { directory, found, files, seen, in_use, out }
    }

    fn lba(&self, page: u64) -> Lba {
        Lba(page << (PAGE_BYTES.trailing_zeros() - self.found.size.shift()))
    }

    /// The entries of a leaf, none when it is damaged.
    fn leaf(&mut self, first: u64, leaf: &LeafRef) -> Vec<(u64, Mapped)> {
        self.out.leaves += 1;
        *self.in_use.entry(leaf.place.extent).or_default() += 1;
        let mut bytes = vec![0; LEAF_BYTES];
        let read = self.files.get(&leaf.place.extent).map(|&name| {
            self.directory.read(name, u64::from(leaf.place.slot) * LEAF_BYTES as u64, &mut bytes)
        });
        let whole = matches!(read, Some(Ok(LEAF_BYTES)))
            && Header::open(&bytes, Kind::Leaf, &self.found.identity).is_ok()
            && crc_field(&bytes) == leaf.crc;
        if !whole {
            let lba = self.lba(first);
            self.out.add(Problem::Leaf { lba, place: leaf.place });
            return Vec::new();
        }
        (0..entry_count(&bytes)).map(|at| entry(&bytes, at)).collect()
    }

    fn page(&mut self, page: u64, mapped: Mapped) {
        self.out.pages += 1;
        let (lba, place) = (self.lba(page), mapped.place);
        if self.seen.insert(place, page).is_some() {
            self.out.add(Problem::Shared { lba, place });
        }
        let Some(&name) = self.files.get(&place.extent) else {
            return self.out.add(Problem::Missing { lba, extent: place.extent });
        };
        let mut bytes = vec![0; PAGE_BYTES];
        match self.directory.read(name, u64::from(place.slot) * PAGE_BYTES as u64, &mut bytes) {
            Ok(PAGE_BYTES) if page_crc(&bytes) == mapped.crc => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.out.add(Problem::Missing { lba, extent: place.extent });
            }
            _ => self.out.add(Problem::Page { lba, place }),
        }
    }
}

/// Why a dump ended early.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The volume cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The output cannot be written.
    #[error("cannot write the dump: {0}")]
    Output(#[from] io::Error),
}

/// Writes what the files of a volume say, for people.
pub fn dump(directory: &dyn Directory, out: &mut dyn Write) -> Result<(), DumpError> {
    let found = survey(directory, Epoch(u64::MAX))?;
    let checkpoint = &found.checkpoint;
    let identity: String = found.identity.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(out, "volume {identity}, {} blocks of {} bytes", checkpoint.fixed.blocks, found.size.bytes())?;
    writeln!(
        out,
        "checkpoint {} of epoch {}, up to batch {}, log from segment {}, sealed epoch {} at batch {}",
        checkpoint.number,
        checkpoint.epoch,
        checkpoint.batch,
        checkpoint.fixed.segment,
        checkpoint.fixed.sealed_epoch,
        checkpoint.fixed.sealed_batch
    )?;
    for entry in &found.extents {
        let kind = if entry.kind == ExtentKind::Pages { "pages" } else { "leaves" };
        writeln!(
            out,
            "extent {} of epoch {}: {kind}, {} slots given out, {} in use, {} with room",
            entry.id, entry.epoch, entry.fresh, entry.live, entry.allocated
        )?;
    }
    for (first, leaf) in &checkpoint.leaves {
        let LeafRef { place, entries, .. } = leaf;
        writeln!(
            out,
            "leaf from page {first}: extent {}, slot {}, {entries} entries",
            place.extent, place.slot
        )?;
    }
    for run in &checkpoint.runs {
        writeln!(
            out,
            "free: extent {}, slots {} to {}",
            run.place.extent,
            run.place.slot,
            run.place.slot + run.slots - 1
        )?;
    }
    for (number, records) in &found.batches {
        let counts = if *number <= found.cut { "" } else { ", does not count" };
        let durable = if *number <= found.durable { ", durable" } else { "" };
        writeln!(out, "batch {number}{durable}{counts}")?;
        for record in records {
            dump_record(record, out)?;
        }
    }
    Ok(())
}

fn dump_record(record: &Record, out: &mut dyn Write) -> io::Result<()> {
    match record {
        Record::Hole { first, count } => writeln!(out, "  hole: pages {first} to {}", first + count - 1),
        Record::Write { first, pages } => {
            for (page, Mapped { place, crc }) in (*first..).zip(pages) {
                writeln!(out, "  page {page}: extent {}, slot {}, crc {crc:08x}", place.extent, place.slot)?;
            }
            Ok(())
        }
    }
}

/// Gives a volume another size; what lies behind a smaller one is forgotten. Takes the volume over.
pub fn resize(directory: &dyn Directory, config: &Config, blocks: u64) -> Result<Recovery, OpenError> {
    let size = summary(directory)?.size;
    let bytes = blocks.saturating_mul(u64::from(size.bytes()));
    if bytes == 0 || bytes > VOLUME_BYTES_MAX || !bytes.is_multiple_of(PAGE_BYTES as u64) {
        return Err(OpenError::Size);
    }
    recover(directory, config, Some(blocks)).map(|(_, recovery)| recovery)
}

/// Deletes a volume: first what makes it one, then its files, then its directory if nothing else is in it.
pub fn delete(directory: &HostDirectory) -> Result<(), OpenError> {
    let names = directory.list().map_err(io_error(directory.path().display()))?;
    if names.contains(&FileName::Superblock) {
        directory.remove(FileName::Superblock).map_err(io_error(FileName::Superblock))?;
    }
    for name in names.into_iter().filter(|name| *name != FileName::Superblock) {
        directory.remove(name).map_err(io_error(name))?;
    }
    fs::remove_dir(directory.path()).map_err(io_error(directory.path().display()))
}

#[cfg(test)]
mod tests;
