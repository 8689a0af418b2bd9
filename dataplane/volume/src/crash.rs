//! A disk that forgets: what was not synced may be dropped, torn or reordered by a crash.
//!
//! It is a [`Directory`] for opening and carries requests out for a [`crate::Volume`], so that one disk can be used by two
//! owners, as a shared directory is. Unsynced writes are kept sector by sector; [`CrashDisk::crash`] makes the disk as it
//! could be found afterwards. Room is counted in pages, so that it can run out.
//!
//! For tests; compiled only for them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::rc::Rc;

use block::{Act, Fault, FileId, FileName, Finished, Request};
use frame::{IoBuffer, IoPool};

use crate::directory::Directory;
use crate::format::PAGE_BYTES;

/// What a disk writes as a whole.
pub const SECTOR_BYTES: usize = 512;

/// One file: what is visible, what is durable, and the writes between.
#[derive(Clone, Debug, Default)]
struct File {
    visible: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Pages that take room.
    pages: BTreeSet<u64>,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    files: BTreeMap<FileName, File>,
    pages_max: Option<u64>,
    /// The next writes fail in this way.
    failing: Option<(u32, Fault)>,
}

/// A disk that forgets. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct CrashDisk {
    disk: Rc<RefCell<Disk>>,
}

/// One unsynced write that a crash may lose or tear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsynced {
    /// The file.
    pub file: FileName,
    /// First byte.
    pub offset: usize,
    /// Sectors.
    pub sectors: usize,
}

impl CrashDisk {
    /// An empty disk.
    pub fn new() -> CrashDisk {
        CrashDisk::default()
    }

    /// Limits the room, in pages of all files together.
    pub fn limit(&self, pages: Option<u64>) {
        self.disk.borrow_mut().pages_max = pages;
    }

    /// Pages that files take now.
    pub fn pages(&self) -> u64 {
        self.disk.borrow().used()
    }

    /// Lets the next `count` writes and syncs of requests fail.
    pub fn fail_next(&self, count: u32, fault: Fault) {
        self.disk.borrow_mut().failing = Some((count, fault));
    }

    /// The writes that a crash may lose now, oldest first within a file.
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let disk = self.disk.borrow();
        let of = |(&file, data): (&FileName, &File)| -> Vec<Unsynced> {
            let one = |(offset, bytes): &(usize, Vec<u8>)| Unsynced {
                file,
                offset: *offset,
                sectors: bytes.len().div_ceil(SECTOR_BYTES),
            };
            data.unsynced.iter().map(one).collect()
        };
        disk.files.iter().flat_map(of).collect()
    }

    /// The disk as a crash leaves it: of each unsynced write those sectors that `keep` says, numbered as in
    /// [`CrashDisk::unsynced`]; with `reversed`, an older write to the same sector lands later.
    pub fn crash(&self, reversed: bool, mut keep: impl FnMut(usize, usize) -> bool) -> CrashDisk {
        let disk = self.disk.borrow();
        let mut after = Disk { pages_max: disk.pages_max, ..Disk::default() };
        let mut first = 0;
        for (&name, file) in &disk.files {
            let mut durable = file.durable.clone();
            let mut order: Vec<usize> = (0..file.unsynced.len()).collect();
            if reversed {
                order.reverse();
            }
            for number in order {
                let (offset, bytes) = &file.unsynced[number];
                for (sector, part) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    if keep(first + number, sector) {
                        put(&mut durable, offset + sector * SECTOR_BYTES, part);
                    }
                }
            }
            first += file.unsynced.len();
            // The length is kept with the name: what was not written reads as zeros.
            durable.resize(durable.len().max(file.visible.len()), 0);
            let pages = file.pages.clone();
            after.files.insert(name, File { visible: durable.clone(), durable, unsynced: Vec::new(), pages });
        }
        CrashDisk { disk: Rc::new(RefCell::new(after)) }
    }

    /// A copy that shares nothing.
    pub fn copy(&self) -> CrashDisk {
        CrashDisk { disk: Rc::new(RefCell::new(self.disk.borrow().clone())) }
    }

    /// Turns one bit over, in what is visible and what is durable.
    pub fn flip(&self, name: FileName, offset: usize) {
        let mut disk = self.disk.borrow_mut();
        if let Some(file) = disk.files.get_mut(&name) {
            for bytes in [&mut file.visible, &mut file.durable] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= 1;
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    let end = offset + part.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(part);
}

impl Disk {
    fn used(&self) -> u64 {
        self.files.values().map(|file| file.pages.len() as u64).sum()
    }

    fn file(&mut self, name: FileName) -> Result<&mut File, Fault> {
        self.files.get_mut(&name).ok_or(Fault::Missing)
    }

    /// Takes room for a range.
    fn take(&mut self, name: FileName, offset: u64, bytes: u64) -> Result<(), Fault> {
        let (used, max) = (self.used(), self.pages_max);
        let file = self.file(name)?;
        let page = PAGE_BYTES as u64;
        let new: Vec<u64> = (offset / page..(offset + bytes).div_ceil(page))
            .filter(|page| !file.pages.contains(page))
            .collect();
        if max.is_some_and(|max| used + new.len() as u64 > max) {
            return Err(Fault::NoSpace);
        }
        file.pages.extend(new);
        Ok(())
    }

    fn write(&mut self, name: FileName, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.take(name, offset, bytes.len() as u64)?;
        let file = self.file(name)?;
        put(&mut file.visible, offset as usize, bytes);
        file.unsynced.push((offset as usize, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self, name: FileName) -> Result<(), Fault> {
        let file = self.file(name)?;
        for (offset, bytes) in std::mem::take(&mut file.unsynced) {
            put(&mut file.durable, offset, &bytes);
        }
        Ok(())
    }

    fn create(&mut self, name: FileName) -> Result<(), Fault> {
        if self.files.contains_key(&name) {
            return Err(Fault::Exists);
        }
        self.files.insert(name, File::default());
        Ok(())
    }

    fn fails(&mut self) -> Result<(), Fault> {
        match self.failing.take() {
            Some((count, fault)) if count > 0 => {
                self.failing = Some((count - 1, fault));
                Err(fault)
            }
            _ => Ok(()),
        }
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::Exists => io::ErrorKind::AlreadyExists.into(),
        Fault::Missing => io::ErrorKind::NotFound.into(),
        Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        other => io::Error::other(other),
    }
}

impl Directory for CrashDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        Ok(self.disk.borrow().files.keys().copied().collect())
    }

    fn create(&self, name: FileName) -> io::Result<()> {
        self.disk.borrow_mut().create(name).map_err(error)
    }

    fn len(&self, name: FileName) -> io::Result<u64> {
        self.disk.borrow_mut().file(name).map(|file| file.visible.len() as u64).map_err(error)
    }

    fn read(&self, name: FileName, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk.borrow_mut();
        let bytes = &disk.file(name).map_err(error)?.visible;
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write(&self, name: FileName, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.borrow_mut().write(name, offset, bytes).map_err(error)
    }

    fn sync(&self, name: FileName) -> io::Result<()> {
        self.disk.borrow_mut().sync(name).map_err(error)
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.disk.borrow_mut().files.remove(&name).map(|_| ()).ok_or_else(|| error(Fault::Missing))
    }
}

/// Carries the requests of one owner out on a disk.
#[derive(Debug)]
pub struct CrashMedia {
    disk: CrashDisk,
    open: HashMap<FileId, FileName>,
}

impl CrashMedia {
    /// A medium over a disk, with no file open.
    pub fn new(disk: &CrashDisk) -> CrashMedia {
        CrashMedia { disk: disk.clone(), open: HashMap::new() }
    }

    /// Carries one request out.
    pub fn carry_out(&mut self, mut request: Request<IoBuffer>, pool: &mut IoPool) -> Finished<IoBuffer> {
        let result = self.act(&mut request, pool);
        request.finished(result)
    }

    fn name(&self, file: FileId) -> Result<FileName, Fault> {
        self.open.get(&file).copied().ok_or(Fault::Missing)
    }

    fn act(&mut self, request: &mut Request<IoBuffer>, pool: &mut IoPool) -> Result<(), Fault> {
        let mut disk = self.disk.disk.borrow_mut();
        if matches!(request.act, Act::Write | Act::Sync(_)) {
            disk.fails()?;
        }
        match request.act {
            Act::Read | Act::Write => {
                let buffer = request.buffer.as_mut().ok_or(Fault::Short)?;
                for piece in &request.pieces {
                    let name = self.name(piece.file)?;
                    let bytes = &mut pool.bytes_mut(buffer)[piece.at as usize..][..piece.bytes as usize];
                    if request.act == Act::Write {
                        disk.write(name, piece.offset, bytes)?;
                        continue;
                    }
                    let there = &disk.file(name)?.visible;
                    let end = piece.offset as usize + bytes.len();
                    bytes.copy_from_slice(there.get(piece.offset as usize..end).ok_or(Fault::Short)?);
                }
                Ok(())
            }
            Act::Sync(file) => disk.sync(self.name(file)?),
            Act::Allocate { file, offset, bytes } => {
                let name = self.name(file)?;
                disk.take(name, offset, bytes)?;
                let (file, end) = (disk.file(name)?, (offset + bytes) as usize);
                file.visible.resize(file.visible.len().max(end), 0);
                Ok(())
            }
            Act::Punch { file, offset, bytes } => punch(disk.file(self.name(file)?)?, offset, bytes),
            Act::Open { file, name } => {
                disk.file(name)?;
                self.open.insert(file, name);
                Ok(())
            }
            Act::Create { file, name } => {
                disk.create(name)?;
                self.open.insert(file, name);
                Ok(())
            }
            Act::Remove { file, name } => {
                self.open.remove(&file);
                disk.files.remove(&name).map(|_| ()).ok_or(Fault::Missing)
            }
            Act::Probe(name) if disk.files.contains_key(&name) => Err(Fault::Exists),
            Act::Probe(_) => Ok(()),
        }
    }
}

/// A punched range reads as zeros; whether that survives a crash is the disk's choice, as with a write.
fn punch(file: &mut File, offset: u64, bytes: u64) -> Result<(), Fault> {
    let (start, end) = (offset as usize, (offset + bytes) as usize);
    let end = end.min(file.visible.len());
    if start < end {
        file.visible[start..end].fill(0);
        file.unsynced.push((start, vec![0; end - start]));
    }
    let page = PAGE_BYTES as u64;
    for number in offset.div_ceil(page)..(offset + bytes) / page {
        file.pages.remove(&number);
    }
    Ok(())
}
