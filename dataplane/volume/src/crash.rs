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

/// One file: what is visible, and how to take back what is not durable.
#[derive(Clone, Debug, Default)]
struct File {
    /// Pages that were written, shared between copies of a disk until one of them changes; others are zeros.
    written: BTreeMap<usize, Rc<[u8; PAGE_BYTES]>>,
    len: usize,
    unsynced: Vec<Change>,
    /// Pages that take room.
    room: BTreeSet<u64>,
}

/// Bytes that replaced others and are not durable yet.
#[derive(Clone, Debug)]
struct Change {
    offset: usize,
    new: Vec<u8>,
    old: Vec<u8>,
}

impl File {
    /// Calls `each` with the part of every page in a range, and with where that part lies in the range.
    fn parts(offset: usize, len: usize, mut each: impl FnMut(usize, usize, std::ops::Range<usize>)) {
        let mut at = 0;
        while at < len {
            let (page, from) = ((offset + at) / PAGE_BYTES, (offset + at) % PAGE_BYTES);
            let count = (PAGE_BYTES - from).min(len - at);
            each(page, from, at..at + count);
            at += count;
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        File::parts(offset, into.len(), |page, from, range| {
            let into = &mut into[range];
            match self.written.get(&page) {
                Some(bytes) => into.copy_from_slice(&bytes[from..from + into.len()]),
                None => into.fill(0),
            }
        });
    }

    fn write(&mut self, offset: usize, new: &[u8]) {
        self.len = self.len.max(offset + new.len());
        File::parts(offset, new.len(), |page, from, range| {
            let bytes = self.written.entry(page).or_insert_with(|| Rc::new([0; PAGE_BYTES]));
            Rc::make_mut(bytes)[from..from + range.len()].copy_from_slice(&new[range]);
        });
    }

    /// Writes, and keeps what was there.
    fn put(&mut self, offset: usize, new: &[u8]) {
        let mut old = vec![0; new.len()];
        self.read(offset, &mut old);
        self.write(offset, new);
        self.unsynced.push(Change { offset, new: new.to_vec(), old });
    }
}

#[derive(Clone, Debug, Default)]
struct Disk {
    files: BTreeMap<FileName, File>,
    /// Files that were removed; who had one open goes on with it.
    removed: BTreeMap<FileName, File>,
    pages_max: Option<u64>,
    /// How many writes and syncs succeed before how many fail in this way.
    failing: Option<(u32, u32, Fault)>,
    probes_fail: bool,
    /// After so many calls of the directory a file of this name appears.
    claim: Option<(u32, FileName)>,
    /// There is no room for the name of another file.
    creates_refused: bool,
    /// Calls of a directory after which all fail: the caller died there.
    calls_left: Option<u32>,
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

    /// Whether there is no room for the name of another file.
    pub fn refuse_creates(&self, refused: bool) {
        self.disk.borrow_mut().creates_refused = refused;
    }

    /// Pages that files take now.
    pub fn pages(&self) -> u64 {
        self.disk.borrow().used()
    }

    /// Lets the next `count` writes and syncs of requests fail.
    pub fn fail_next(&self, count: u32, fault: Fault) {
        self.fail_after(0, count, fault);
    }

    /// Lets `good` writes and syncs of requests succeed and then `count` fail.
    pub fn fail_after(&self, good: u32, count: u32, fault: Fault) {
        self.disk.borrow_mut().failing = Some((good, count, fault));
    }

    /// Whether looking for a name fails.
    pub fn fail_probes(&self, fail: bool) {
        self.disk.borrow_mut().probes_fail = fail;
    }

    /// Makes a file appear after the next `calls` of the directory.
    pub fn claim_after(&self, calls: u32, name: FileName) {
        self.disk.borrow_mut().claim = Some((calls, name));
    }

    /// Lets calls of the directory fail after the next `calls`; [`u32::MAX`] for never.
    pub fn stop_after(&self, calls: u32) {
        self.disk.borrow_mut().calls_left = Some(calls).filter(|calls| *calls != u32::MAX);
    }

    /// The writes that a crash may lose now, oldest first within a file.
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let disk = self.disk.borrow();
        let of = |(&file, data): (&FileName, &File)| -> Vec<Unsynced> {
            let one = |change: &Change| Unsynced {
                file,
                offset: change.offset,
                sectors: change.new.len().div_ceil(SECTOR_BYTES),
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
            let mut order: Vec<usize> = (0..file.unsynced.len()).collect();
            if reversed {
                order.reverse();
            }
            // The length is kept with the name: what was not written reads as zeros.
            let (written, room) = (file.written.clone(), file.room.clone());
            let mut left = File { written, len: file.len, unsynced: Vec::new(), room };
            for change in file.unsynced.iter().rev() {
                left.write(change.offset, &change.old);
            }
            for number in order {
                let change = &file.unsynced[number];
                for (sector, part) in change.new.chunks(SECTOR_BYTES).enumerate() {
                    if keep(first + number, sector) {
                        left.write(change.offset + sector * SECTOR_BYTES, part);
                    }
                }
            }
            first += file.unsynced.len();
            after.files.insert(name, left);
        }
        CrashDisk { disk: Rc::new(RefCell::new(after)) }
    }

    /// A copy that shares nothing.
    pub fn copy(&self) -> CrashDisk {
        CrashDisk { disk: Rc::new(RefCell::new(self.disk.borrow().clone())) }
    }

    /// Turns one bit over.
    pub fn flip(&self, name: FileName, offset: usize) {
        let mut disk = self.disk.borrow_mut();
        if let Some(file) = disk.files.get_mut(&name) {
            let mut byte = [0];
            file.read(offset, &mut byte);
            file.write(offset, &[byte[0] ^ 1]);
        }
    }
}

impl Disk {
    fn used(&self) -> u64 {
        self.files.values().map(|file| file.room.len() as u64).sum()
    }

    fn file(&mut self, name: FileName) -> Result<&mut File, Fault> {
        self.files.get_mut(&name).ok_or(Fault::Missing)
    }

    /// A file that was opened: it may have been removed since.
    fn opened(&mut self, name: FileName) -> Result<&mut File, Fault> {
        self.files.get_mut(&name).or_else(|| self.removed.get_mut(&name)).ok_or(Fault::Missing)
    }

    fn remove(&mut self, name: FileName) -> Result<(), Fault> {
        let file = self.files.remove(&name).ok_or(Fault::Missing)?;
        self.removed.insert(name, file);
        Ok(())
    }

    /// Takes room for a range.
    fn take(&mut self, name: FileName, offset: u64, bytes: u64) -> Result<(), Fault> {
        let (used, max) = (self.used(), self.pages_max);
        let file = self.opened(name)?;
        let page = PAGE_BYTES as u64;
        let new: Vec<u64> = (offset / page..(offset + bytes).div_ceil(page))
            .filter(|page| !file.room.contains(page))
            .collect();
        if max.is_some_and(|max| used + new.len() as u64 > max) {
            return Err(Fault::NoSpace);
        }
        file.room.extend(new);
        Ok(())
    }

    fn write(&mut self, name: FileName, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.take(name, offset, bytes.len() as u64)?;
        self.opened(name)?.put(offset as usize, bytes);
        Ok(())
    }

    fn sync(&mut self, name: FileName) -> Result<(), Fault> {
        self.opened(name)?.unsynced.clear();
        Ok(())
    }

    fn create(&mut self, name: FileName) -> Result<(), Fault> {
        if self.creates_refused {
            return Err(Fault::NoSpace);
        }
        if self.files.contains_key(&name) {
            return Err(Fault::Exists);
        }
        self.files.insert(name, File::default());
        Ok(())
    }

    fn call(&mut self) -> io::Result<&mut Disk> {
        if let Some((calls, name)) = &mut self.claim {
            if *calls == 0 {
                let name = *name;
                self.claim = None;
                self.files.insert(name, File::default());
            } else {
                *calls -= 1;
            }
        }
        match &mut self.calls_left {
            Some(0) => return Err(io::Error::other("stopped here")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(self)
    }

    fn fails(&mut self) -> Result<(), Fault> {
        match &mut self.failing {
            Some((good, _, _)) if *good > 0 => *good -= 1,
            Some((_, count, fault)) if *count > 0 => {
                *count -= 1;
                return Err(*fault);
            }
            _ => {}
        }
        Ok(())
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
        Ok(self.disk.borrow_mut().call()?.files.keys().copied().collect())
    }

    fn create(&self, name: FileName) -> io::Result<()> {
        self.disk.borrow_mut().call()?.create(name).map_err(error)
    }

    fn len(&self, name: FileName) -> io::Result<u64> {
        self.disk.borrow_mut().call()?.file(name).map(|file| file.len as u64).map_err(error)
    }

    fn read(&self, name: FileName, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk.borrow_mut();
        let file = disk.call()?.file(name).map_err(error)?;
        let count = file.len.saturating_sub(offset as usize).min(into.len());
        file.read(offset as usize, &mut into[..count]);
        Ok(count)
    }

    fn write(&self, name: FileName, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.borrow_mut().call()?.write(name, offset, bytes).map_err(error)
    }

    fn sync(&self, name: FileName) -> io::Result<()> {
        self.disk.borrow_mut().call()?.sync(name).map_err(error)
    }

    fn allocate(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk.borrow_mut().call()?.take(name, offset, bytes).map_err(error)
    }

    fn punch(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()> {
        let mut disk = self.disk.borrow_mut();
        punch(disk.call()?.file(name).map_err(error)?, offset, bytes).map_err(error)
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.disk.borrow_mut().call()?.remove(name).map_err(error)
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
                    let file = disk.opened(name)?;
                    if piece.offset as usize + bytes.len() > file.len {
                        return Err(Fault::Short);
                    }
                    file.read(piece.offset as usize, bytes);
                }
                Ok(())
            }
            Act::Sync(file) => disk.sync(self.name(file)?),
            Act::Allocate { file, offset, bytes } => {
                let name = self.name(file)?;
                disk.take(name, offset, bytes)?;
                let (file, end) = (disk.opened(name)?, (offset + bytes) as usize);
                file.len = file.len.max(end);
                Ok(())
            }
            Act::Punch { file, offset, bytes } => punch(disk.opened(self.name(file)?)?, offset, bytes),
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
                disk.remove(name)
            }
            Act::Probe(_) if disk.probes_fail => Err(Fault::Io(5)),
            Act::Probe(name) if disk.files.contains_key(&name) => Err(Fault::Exists),
            Act::Probe(_) => Ok(()),
        }
    }
}

/// A punched range reads as zeros; whether that survives a crash is the disk's choice, as with a write.
fn punch(file: &mut File, offset: u64, bytes: u64) -> Result<(), Fault> {
    let (start, end) = (offset as usize, (offset + bytes) as usize);
    let end = end.min(file.len);
    let written: Vec<usize> =
        file.written.range(start / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(|(page, _)| *page).collect();
    for page in written {
        let (from, to) = ((page * PAGE_BYTES).max(start), ((page + 1) * PAGE_BYTES).min(end));
        if from < to {
            file.put(from, &vec![0; to - from]);
        }
    }
    let page = PAGE_BYTES as u64;
    for number in offset.div_ceil(page)..(offset + bytes) / page {
        file.room.remove(&number);
    }
    Ok(())
}
