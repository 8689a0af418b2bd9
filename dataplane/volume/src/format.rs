//! The bytes on the medium, as docs/format.md draws them: headers, records, leaf entries, checkpoints.
//!
//! Invariants: what is decoded was checked against its CRC, its kind, its version and the volume's identity;
//! decoding never panics, whatever the bytes.

use block::{BlockSize, Epoch, ExtentId};

/// Bytes of a page of data.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a leaf of the map.
pub const LEAF_BYTES: usize = 16384;
/// Entries that a leaf has room for.
pub const LEAF_ENTRIES: usize = (LEAF_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// Bytes of the header in front of everything.
pub const HEADER_BYTES: usize = 64;
/// Version that this code reads and writes.
pub const VERSION: u16 = 1;

pub(crate) const ENTRY_BYTES: usize = 16;
pub(crate) const CHECKPOINT_FIXED_BYTES: usize = 112;
pub(crate) const EXTENT_BYTES: usize = 32;
pub(crate) const LEAF_REF_BYTES: usize = 24;
pub(crate) const RUN_BYTES: usize = 12;
const MAGIC: &[u8; 8] = b"TIDEGATE";
const CRC_AT: usize = 60;
const PAGE_BITS: u32 = 40;

/// A volume's random identity.
pub type Identity = [u8; 16];

/// What a structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `SUPR`: the volume's identity.
    Superblock,
    /// `EXTN`: front of an extent.
    Extent,
    /// `CHKP`: a checkpoint.
    Checkpoint,
    /// `LOGB`: a batch of log records.
    Batch,
    /// `LEAF`: part of the map.
    Leaf,
}

impl Kind {
    const ALL: [(Kind, &'static [u8; 4]); 5] = [
        (Kind::Superblock, b"SUPR"),
        (Kind::Extent, b"EXTN"),
        (Kind::Checkpoint, b"CHKP"),
        (Kind::Batch, b"LOGB"),
        (Kind::Leaf, b"LEAF"),
    ];

    fn text(self) -> &'static [u8; 4] {
        Kind::ALL[self as usize].1
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Zeros, or something else altogether.
    #[error("not a structure of a volume")]
    NotOurs,
    /// Written by a newer program.
    #[error("format version {0}; this program reads version 1")]
    Version(u16),
    /// The bytes changed, or were written in part.
    #[error("checksum mismatch")]
    Checksum,
    /// Another kind of structure, or of another volume.
    #[error("a structure of another kind or volume")]
    Foreign,
    /// Numbers that contradict each other.
    #[error("contents contradict themselves")]
    Contents,
}

/// The 64 bytes in front of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Whose it is.
    pub identity: Identity,
    /// Who wrote it.
    pub epoch: Epoch,
    /// Depends on the kind.
    pub a: u64,
    /// Depends on the kind.
    pub b: u64,
    /// Length in bytes, header included.
    pub bytes: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Writes `value` at `at`, where there is room.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// CRC32C of a page.
pub fn page_crc(page: &[u8]) -> u32 {
    crc32c::crc32c(page)
}

impl Header {
    /// Writes the header with 0 for the CRC.
    pub(crate) fn write(&self, bytes: &mut [u8]) {
        put(bytes, 0, MAGIC);
        put(bytes, 8, self.kind.text());
        put(bytes, 12, &VERSION.to_le_bytes());
        put(bytes, 14, &[0; 2]);
        put(bytes, 16, &self.identity);
        put(bytes, 32, &self.epoch.0.to_le_bytes());
        put(bytes, 40, &self.a.to_le_bytes());
        put(bytes, 48, &self.b.to_le_bytes());
        put(bytes, 56, &self.bytes.to_le_bytes());
        put(bytes, CRC_AT, &[0; 4]);
    }

    /// Writes the header in front of `bytes`, which hold the rest of the structure, and its CRC, which is
    /// returned.
    pub fn seal(&self, bytes: &mut [u8]) -> u32 {
        self.write(bytes);
        let crc = crc32c::crc32c(&bytes[..self.bytes as usize]);
        put_crc(bytes, crc);
        crc
    }

    /// Reads a header without its CRC.
    pub(crate) fn peek(bytes: &[u8]) -> Result<Header, FormatError> {
        if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
            return Err(FormatError::NotOurs);
        }
        let version = u16::from_le_bytes([bytes[12], bytes[13]]);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let kind = Kind::ALL.iter().find(|(_, text)| bytes[8..12] == text[..]).ok_or(FormatError::NotOurs)?.0;
        let mut identity = [0; 16];
        identity.copy_from_slice(&bytes[16..32]);
        let length = u32_at(bytes, 56);
        if (length as usize) < HEADER_BYTES {
            return Err(FormatError::Contents);
        }
        Ok(Header {
            kind,
            identity,
            epoch: Epoch(u64_at(bytes, 32)),
            a: u64_at(bytes, 40),
            b: u64_at(bytes, 48),
            bytes: length,
        })
    }

    /// Reads a structure of `kind` that belongs to `identity` and lies at the front of `bytes`.
    pub fn open(bytes: &[u8], kind: Kind, identity: &Identity) -> Result<Header, FormatError> {
        let header = Header::peek(bytes)?;
        let whole = bytes.get(..header.bytes as usize).ok_or(FormatError::Contents)?;
        if crc_without_field(whole) != crc_field(whole) {
            return Err(FormatError::Checksum);
        }
        if header.kind != kind || header.identity != *identity {
            return Err(FormatError::Foreign);
        }
        Ok(header)
    }
}

pub(crate) fn put_crc(bytes: &mut [u8], crc: u32) {
    put(bytes, CRC_AT, &crc.to_le_bytes());
}

pub(crate) fn crc_field(bytes: &[u8]) -> u32 {
    u32_at(bytes, CRC_AT)
}

fn crc_without_field(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[0; 4]), &bytes[CRC_AT + 4..])
}

/// The superblock as bytes of one page.
pub fn superblock(identity: Identity, size: BlockSize) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    let bytes = HEADER_BYTES as u32;
    let a = u64::from(size.bytes());
    Header { kind: Kind::Superblock, identity, epoch: Epoch(0), a, b: 0, bytes }.seal(&mut page);
    page
}

/// Reads a superblock.
pub fn read_superblock(page: &[u8]) -> Result<(Identity, BlockSize), FormatError> {
    let identity = Header::peek(page)?.identity;
    let header = Header::open(page, Kind::Superblock, &identity)?;
    let size = u32::try_from(header.a).ok().and_then(BlockSize::from_bytes).ok_or(FormatError::Contents)?;
    Ok((identity, size))
}

/// Where a page or leaf lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Extent file.
    pub extent: ExtentId,
    /// Slot in it.
    pub slot: u32,
}

/// A page of data on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Where it lies.
    pub place: Place,
    /// Its CRC32C.
    pub crc: u32,
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Pages from `first` on lie at these places.
    Write {
        /// First page.
        first: u64,
        /// Their places.
        pages: Vec<Mapped>,
    },
    /// Pages read as zeros.
    Hole {
        /// First page.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// Bytes of a write record of that many pages.
pub(crate) const fn write_record_bytes(pages: usize) -> usize {
    16 + 12 * pages
}

/// Bytes of a hole record.
pub(crate) const HOLE_RECORD_BYTES: usize = 24;

/// Appends a write record at `at`, where there is room for it, and returns its end.
pub(crate) fn put_write(
    bytes: &mut [u8],
    at: usize,
    first: u64,
    pages: impl ExactSizeIterator<Item = Mapped>,
) -> usize {
    put(bytes, at, &[1, 0]);
    put(bytes, at + 2, &(pages.len() as u16).to_le_bytes());
    put(bytes, at + 4, &[0; 4]);
    put(bytes, at + 8, &first.to_le_bytes());
    let mut end = at + 16;
    for page in pages {
        put(bytes, end, &page.place.extent.0.to_le_bytes());
        put(bytes, end + 4, &page.place.slot.to_le_bytes());
        put(bytes, end + 8, &page.crc.to_le_bytes());
        end += 12;
    }
    end
}

/// Appends a hole record at `at`, where there is room for it, and returns its end.
pub(crate) fn put_hole(bytes: &mut [u8], at: usize, first: u64, count: u64) -> usize {
    put(bytes, at, &[2, 0, 0, 0, 0, 0, 0, 0]);
    put(bytes, at + 8, &first.to_le_bytes());
    put(bytes, at + 16, &count.to_le_bytes());
    at + HOLE_RECORD_BYTES
}

/// Reads the records of a batch, which `Header::open` accepted.
pub fn records(batch: &[u8]) -> Result<Vec<Record>, FormatError> {
    let (mut at, mut out) = (HEADER_BYTES, Vec::new());
    while at < batch.len() {
        let fixed = batch.get(at..at + 16).ok_or(FormatError::Contents)?;
        let first = u64_at(fixed, 8);
        match fixed[0] {
            1 => {
                let count = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
                let end = at + write_record_bytes(count);
                let pages = batch.get(at + 16..end).ok_or(FormatError::Contents)?;
                out.push(Record::Write { first, pages: pages.chunks_exact(12).map(mapped_at).collect() });
                at = end;
            }
            2 => {
                let count = batch.get(at + 16..at + 24).ok_or(FormatError::Contents)?;
                out.push(Record::Hole { first, count: u64_at(count, 0) });
                at += HOLE_RECORD_BYTES;
            }
            _ => return Err(FormatError::Contents),
        }
    }
    Ok(out)
}

fn mapped_at(bytes: &[u8]) -> Mapped {
    let place = Place { extent: ExtentId(u32_at(bytes, 0)), slot: u32_at(bytes, 4) };
    Mapped { place, crc: u32_at(bytes, 8) }
}

/// Writes entry `index` of a leaf.
pub(crate) fn put_entry(leaf: &mut [u8], index: usize, page: u64, mapped: Mapped) {
    let at = HEADER_BYTES + index * ENTRY_BYTES;
    put(leaf, at, &(page | u64::from(mapped.place.slot) << PAGE_BITS).to_le_bytes());
    put(leaf, at + 8, &mapped.place.extent.0.to_le_bytes());
    put(leaf, at + 12, &mapped.crc.to_le_bytes());
}

/// Reads entry `index` of a leaf: page and where it lies.
pub(crate) fn entry(leaf: &[u8], index: usize) -> (u64, Mapped) {
    let at = HEADER_BYTES + index * ENTRY_BYTES;
    let word = u64_at(leaf, at);
    let place = Place { extent: ExtentId(u32_at(leaf, at + 8)), slot: (word >> PAGE_BITS) as u32 };
    (word & ((1 << PAGE_BITS) - 1), Mapped { place, crc: u32_at(leaf, at + 12) })
}

/// Entries in a leaf whose header says `bytes`.
pub(crate) fn entry_count(leaf: &[u8]) -> usize {
    ((u32_at(leaf, 56) as usize).clamp(HEADER_BYTES, LEAF_BYTES) - HEADER_BYTES) / ENTRY_BYTES
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Pages of data.
    Pages = 0,
    /// Leaves of the map.
    Leaves = 1,
}

impl ExtentKind {
    /// Bytes of a slot.
    pub fn slot_bytes(self) -> u64 {
        match self {
            ExtentKind::Pages => PAGE_BYTES as u64,
            ExtentKind::Leaves => LEAF_BYTES as u64,
        }
    }

    pub(crate) fn from_number(number: u64) -> Option<ExtentKind> {
        match number {
            0 => Some(ExtentKind::Pages),
            1 => Some(ExtentKind::Leaves),
            _ => None,
        }
    }
}

/// One extent in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentEntry {
    /// Its number.
    pub id: ExtentId,
    /// What it holds.
    pub kind: ExtentKind,
    /// Who created it.
    pub epoch: Epoch,
    /// Slots given out so far, slot 0 included.
    pub fresh: u32,
    /// Slots that leaves refer to (of leaves: that the checkpoint refers to).
    pub live: u32,
    /// Slots whose room is taken.
    pub allocated: u32,
}

/// One leaf in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRef {
    /// Where it lies.
    pub place: Place,
    /// CRC32C in its header.
    pub crc: u32,
    /// How many entries.
    pub entries: u32,
}

/// Slots in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub place: Place,
    /// How many.
    pub slots: u32,
}

/// The numbers in front of a checkpoint's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointFixed {
    /// Size of the volume in blocks.
    pub blocks: u64,
    /// Segment whose first batch follows.
    pub segment: u32,
    /// Lowest extent number not given out.
    pub next_extent: u32,
    /// The epoch whose log was sealed, or 0.
    pub sealed_epoch: u64,
    /// Last batch of that log that counts.
    pub sealed_batch: u64,
    /// Lengths of the tables.
    pub extents: u32,
    /// Lengths of the tables.
    pub leaves: u32,
    /// Lengths of the tables.
    pub runs: u32,
}

impl CheckpointFixed {
    /// Length of the whole checkpoint in bytes.
    pub fn bytes(&self) -> u64 {
        CHECKPOINT_FIXED_BYTES as u64
            + u64::from(self.extents) * EXTENT_BYTES as u64
            + u64::from(self.leaves) * LEAF_REF_BYTES as u64
            + u64::from(self.runs) * RUN_BYTES as u64
    }

    /// Writes the numbers behind the header.
    pub(crate) fn write(&self, bytes: &mut [u8]) {
        put(bytes, 64, &self.blocks.to_le_bytes());
        put(bytes, 72, &self.segment.to_le_bytes());
        put(bytes, 76, &self.next_extent.to_le_bytes());
        put(bytes, 80, &self.sealed_epoch.to_le_bytes());
        put(bytes, 88, &self.sealed_batch.to_le_bytes());
        put(bytes, 96, &self.extents.to_le_bytes());
        put(bytes, 100, &self.leaves.to_le_bytes());
        put(bytes, 104, &self.runs.to_le_bytes());
        put(bytes, 108, &[0; 4]);
    }

    fn read(bytes: &[u8]) -> CheckpointFixed {
        CheckpointFixed {
            blocks: u64_at(bytes, 64),
            segment: u32_at(bytes, 72),
            next_extent: u32_at(bytes, 76),
            sealed_epoch: u64_at(bytes, 80),
            sealed_batch: u64_at(bytes, 88),
            extents: u32_at(bytes, 96),
            leaves: u32_at(bytes, 100),
            runs: u32_at(bytes, 104),
        }
    }
}

impl ExtentEntry {
    pub(crate) fn octets(&self) -> [u8; EXTENT_BYTES] {
        let mut out = [0; EXTENT_BYTES];
        put(&mut out, 0, &self.id.0.to_le_bytes());
        put(&mut out, 4, &(self.kind as u32).to_le_bytes());
        put(&mut out, 8, &self.epoch.0.to_le_bytes());
        put(&mut out, 16, &self.fresh.to_le_bytes());
        put(&mut out, 20, &self.live.to_le_bytes());
        put(&mut out, 24, &self.allocated.to_le_bytes());
        out
    }

    fn read(bytes: &[u8]) -> Option<ExtentEntry> {
        Some(ExtentEntry {
            id: ExtentId(u32_at(bytes, 0)),
            kind: ExtentKind::from_number(u64::from(u32_at(bytes, 4)))?,
            epoch: Epoch(u64_at(bytes, 8)),
            fresh: u32_at(bytes, 16),
            live: u32_at(bytes, 20),
            allocated: u32_at(bytes, 24),
        })
    }
}

pub(crate) fn leaf_ref_octets(first: u64, leaf: &LeafRef) -> [u8; LEAF_REF_BYTES] {
    let mut out = [0; LEAF_REF_BYTES];
    put(&mut out, 0, &first.to_le_bytes());
    put(&mut out, 8, &leaf.place.extent.0.to_le_bytes());
    put(&mut out, 12, &leaf.place.slot.to_le_bytes());
    put(&mut out, 16, &leaf.crc.to_le_bytes());
    put(&mut out, 20, &leaf.entries.to_le_bytes());
    out
}

pub(crate) fn run_octets(run: &Run) -> [u8; RUN_BYTES] {
    let mut out = [0; RUN_BYTES];
    put(&mut out, 0, &run.place.extent.0.to_le_bytes());
    put(&mut out, 4, &run.place.slot.to_le_bytes());
    put(&mut out, 8, &run.slots.to_le_bytes());
    out
}

/// A checkpoint, read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Who wrote it.
    pub epoch: Epoch,
    /// Its number within the epoch.
    pub number: u64,
    /// The last batch that it contains.
    pub batch: u64,
    /// The numbers in front.
    pub fixed: CheckpointFixed,
    /// The extents.
    pub extents: Vec<ExtentEntry>,
    /// First page of the range, and the leaf.
    pub leaves: Vec<(u64, LeafRef)>,
    /// Free slots.
    pub runs: Vec<Run>,
}

impl Checkpoint {
    /// Reads a checkpoint.
    pub fn read(bytes: &[u8], identity: &Identity) -> Result<Checkpoint, FormatError> {
        let header = Header::open(bytes, Kind::Checkpoint, identity)?;
        let fixed = CheckpointFixed::read(&bytes[..CHECKPOINT_FIXED_BYTES.min(header.bytes as usize)]);
        if fixed.bytes() != u64::from(header.bytes) {
            return Err(FormatError::Contents);
        }
        let rest = &bytes[CHECKPOINT_FIXED_BYTES..header.bytes as usize];
        let (extents, rest) = rest.split_at(fixed.extents as usize * EXTENT_BYTES);
        let (leaves, runs) = rest.split_at(fixed.leaves as usize * LEAF_REF_BYTES);
        let extents: Option<Vec<ExtentEntry>> =
            extents.chunks_exact(EXTENT_BYTES).map(ExtentEntry::read).collect();
        Ok(Checkpoint {
            epoch: header.epoch,
            number: header.a,
            batch: header.b,
            fixed,
            extents: extents.ok_or(FormatError::Contents)?,
            leaves: leaves.chunks_exact(LEAF_REF_BYTES).map(read_leaf_ref).collect(),
            runs: runs.chunks_exact(RUN_BYTES).map(read_run).collect(),
        })
    }

    /// The whole checkpoint as bytes; `fixed` takes the lengths of the tables.
    pub fn write(&self, identity: &Identity) -> Vec<u8> {
        let fixed = CheckpointFixed {
            extents: self.extents.len() as u32,
            leaves: self.leaves.len() as u32,
            runs: self.runs.len() as u32,
            ..self.fixed
        };
        let mut out = vec![0; CHECKPOINT_FIXED_BYTES];
        fixed.write(&mut out);
        self.extents.iter().for_each(|extent| out.extend(extent.octets()));
        self.leaves.iter().for_each(|(first, leaf)| out.extend(leaf_ref_octets(*first, leaf)));
        self.runs.iter().for_each(|run| out.extend(run_octets(run)));
        let header = Header {
            kind: Kind::Checkpoint,
            identity: *identity,
            epoch: self.epoch,
            a: self.number,
            b: self.batch,
            bytes: out.len() as u32,
        };
        header.seal(&mut out);
        out
    }
}

fn read_leaf_ref(bytes: &[u8]) -> (u64, LeafRef) {
    let place = Place { extent: ExtentId(u32_at(bytes, 8)), slot: u32_at(bytes, 12) };
    (u64_at(bytes, 0), LeafRef { place, crc: u32_at(bytes, 16), entries: u32_at(bytes, 20) })
}

fn read_run(bytes: &[u8]) -> Run {
    let place = Place { extent: ExtentId(u32_at(bytes, 0)), slot: u32_at(bytes, 4) };
    Run { place, slots: u32_at(bytes, 8) }
}

#[cfg(test)]
mod tests;
