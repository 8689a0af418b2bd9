//! Counts per volume: up to a million volumes, written by one worker, read by anyone.
//!
//! One cache line per volume, in chunks that are made when a volume of theirs is first counted and stay
//! for the life of the worker. The owner loads and stores with relaxed ordering, which costs what a plain
//! addition costs; there is no record over several volumes to keep consistent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The owner's end. Counts of volumes from [`VOLUMES_MAX`] on go nowhere.
#[derive(Debug)]
pub struct VolumeCounters {
    shared: Arc<Chunks>,
}

/// Reads the counts of one worker's volumes from any thread.
#[derive(Clone, Debug)]
pub struct VolumeReader {
    shared: Arc<Chunks>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeCount {
    /// Bytes admitted, at once or after parking.
    AdmittedBytes,
    /// Packets admitted, at once or after parking.
    AdmittedPackets,
    /// Packets parked, ever.
    Parked,
    /// Packets marked with ECN.
    Marked,
    /// Packets dropped at the bound.
    Dropped,
    /// Packets parked now.
    ParkedNow,
}

/// The counts of one volume. Each is exact; together they may be from different moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Bytes admitted, at once or after parking.
    pub admitted_bytes: u64,
    /// Packets admitted, at once or after parking.
    pub admitted_packets: u64,
    /// Packets parked, ever.
    pub parked: u64,
    /// Packets marked with ECN.
    pub marked: u64,
    /// Packets dropped at the bound.
    pub dropped: u64,
    /// Packets parked now.
    pub parked_now: u64,
}

#[derive(Debug)]
struct Chunks([OnceLock<Box<[Cell]>>; CHUNKS]);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell([AtomicU64; COUNTS]);

impl Default for VolumeCounters {
    fn default() -> Self {
        Self::new()
    }
}

impl VolumeCounters {
    /// No volumes yet.
    pub fn new() -> Self {
        Self { shared: Arc::new(Chunks([const { OnceLock::new() }; CHUNKS])) }
    }

    /// A handle for other threads.
    pub fn reader(&self) -> VolumeReader {
        VolumeReader { shared: Arc::clone(&self.shared) }
    }

    /// Makes room for volumes below `volumes`, so that counting them does not allocate.
    pub fn reserve(&mut self, volumes: usize) {
        for chunk in self.shared.0.iter().take(volumes.div_ceil(CHUNK_VOLUMES)) {
            chunk.get_or_init(new_chunk);
        }
    }

    /// Adds to a count.
    #[inline]
    pub fn add(&mut self, volume: u32, count: VolumeCount, more: u64) {
        self.change(volume, count, |value| value.wrapping_add(more));
    }

    /// Takes away from a count: [`VolumeCount::ParkedNow`].
    #[inline]
    pub fn sub(&mut self, volume: u32, count: VolumeCount, less: u64) {
        self.change(volume, count, |value| value.wrapping_sub(less));
    }

    /// Counts packets admitted with `bytes` in all.
    #[inline]
    pub fn admitted(&mut self, volume: u32, packets: u64, bytes: u64) {
        self.add(volume, VolumeCount::AdmittedPackets, packets);
        self.add(volume, VolumeCount::AdmittedBytes, bytes);
    }

    #[inline]
    fn change(&mut self, volume: u32, count: VolumeCount, to: impl FnOnce(u64) -> u64) {
        let volume = volume as usize;
        let Some(chunk) = self.shared.0.get(volume / CHUNK_VOLUMES) else { return };
        let cell = &chunk.get_or_init(new_chunk)[volume % CHUNK_VOLUMES].0[count as usize];
        // The only writer: nothing is lost between load and store.
        cell.store(to(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}

impl VolumeReader {
    /// The counts of one volume; all 0 if nothing was counted.
    pub fn volume(&self, volume: u32) -> VolumeRecord {
        let volume = volume as usize;
        self.shared
            .0
            .get(volume / CHUNK_VOLUMES)
            .and_then(OnceLock::get)
            .map_or_else(VolumeRecord::default, |chunk| chunk[volume % CHUNK_VOLUMES].read())
    }

    /// All volumes with any count but 0, by rising number.
    pub fn volumes(&self) -> impl Iterator<Item = (u32, VolumeRecord)> {
        let chunks = self.shared.0.iter().enumerate();
        let made = chunks.filter_map(|(at, chunk)| chunk.get().map(|cells| (at * CHUNK_VOLUMES, cells)));
        made.flat_map(|(first, cells)| {
            // VOLUMES_MAX fits u32.
            cells.iter().enumerate().map(move |(at, cell)| ((first + at) as u32, cell.read()))
        })
        .filter(|(_, record)| *record != VolumeRecord::default())
    }
}

impl VolumeRecord {
    /// Adds another worker's counts.
    pub fn add(&mut self, other: &Self) {
        self.admitted_bytes = self.admitted_bytes.wrapping_add(other.admitted_bytes);
        self.admitted_packets = self.admitted_packets.wrapping_add(other.admitted_packets);
        self.parked = self.parked.wrapping_add(other.parked);
        self.marked = self.marked.wrapping_add(other.marked);
        self.dropped = self.dropped.wrapping_add(other.dropped);
        self.parked_now = self.parked_now.wrapping_add(other.parked_now);
    }
}

impl Cell {
    fn read(&self) -> VolumeRecord {
        let at = |count: VolumeCount| self.0[count as usize].load(Ordering::Relaxed);
        VolumeRecord {
            admitted_bytes: at(VolumeCount::AdmittedBytes),
            admitted_packets: at(VolumeCount::AdmittedPackets),
            parked: at(VolumeCount::Parked),
            marked: at(VolumeCount::Marked),
            dropped: at(VolumeCount::Dropped),
            parked_now: at(VolumeCount::ParkedNow),
        }
    }
}

fn new_chunk() -> Box<[Cell]> {
    (0..CHUNK_VOLUMES).map(|_| Cell::default()).collect()
}

const COUNTS: usize = 6;
const CHUNK_VOLUMES: usize = 4096;
const CHUNKS: usize = 256;
/// Volumes that can be counted.
pub const VOLUMES_MAX: usize = CHUNK_VOLUMES * CHUNKS;
