//! The one hash table behind every lookup: open addressing, linear probing, at most half full.
//!
//! A slot carries its own key, so a lookup that finds its slot at home touches one cache line. Keys are
//! three words; the hash mixes them with a seed that is drawn anew for each build, since tenants choose the
//! addresses that are looked up. Tag 0 marks an empty slot; no real key has it.
//!
//! Invariant: at least half of the slots are empty, so every probe ends.

use std::hash::{BuildHasher, RandomState};

use frame::{prefer_huge_pages, prefetch};

/// What is looked up: an address (IPv4 and MAC in the low bits of `lo`) and everything else in `tag`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub(crate) struct Key {
    pub(crate) hi: u64,
    pub(crate) lo: u64,
    pub(crate) tag: u64,
}

impl Key {
    #[inline(always)]
    pub(crate) fn new(address: u128, tag: u64) -> Key {
        Key { hi: (address >> 64) as u64, lo: address as u64, tag }
    }
}

/// One entry of a table.
pub(crate) trait Slot: Copy {
    /// The entry with a key of tag 0.
    const EMPTY: Self;
    fn key(&self) -> &Key;
}

/// Secret constants of one table.
#[derive(Clone, Copy, Debug)]
struct Seed {
    hi: u64,
    lo: u64,
    tag: u64,
}

#[derive(Debug)]
pub(crate) struct HashTable<S> {
    slots: Box<[S]>,
    seed: Seed,
    mask: usize,
}

impl<S: Slot> HashTable<S> {
    /// A table of `slots`, whose keys differ. A later slot with the key of an earlier one would never be
    /// found; builders check for that.
    pub(crate) fn new(entries: impl ExactSizeIterator<Item = S>) -> HashTable<S> {
        let capacity = (entries.len() * 2).next_power_of_two();
        let random = RandomState::new();
        let word = |n: u64| random.hash_one(n) | 1;
        let mut slots = Vec::with_capacity(capacity);
        prefer_huge_pages(slots.spare_capacity_mut());
        slots.resize(capacity, S::EMPTY);
        let mut table = HashTable {
            slots: slots.into_boxed_slice(),
            seed: Seed { hi: word(0), lo: word(1), tag: word(2) },
            mask: capacity - 1,
        };
        for entry in entries {
            let mut at = table.hash(entry.key()) as usize & table.mask;
            while table.slots[at].key().tag != 0 {
                at = (at + 1) & table.mask;
            }
            table.slots[at] = entry;
        }
        table
    }

    /// Where a key's probe begins; give it to [`HashTable::find_at`].
    #[inline(always)]
    pub(crate) fn hash(&self, key: &Key) -> u32 {
        let address = mix(key.lo ^ self.seed.lo, key.hi ^ self.seed.hi);
        let mixed = mix(address ^ key.tag, self.seed.tag);
        (mixed ^ mixed >> 32) as u32
    }

    /// True for a table that the second-level cache does not hold together with everything else: only then is
    /// a prefetch that may turn out to be useless worth its hash.
    #[inline(always)]
    pub(crate) fn is_large(&self) -> bool {
        self.slots.len() * size_of::<S>() > LARGE_BYTES
    }

    /// Asks for the cache line that a probe begins with.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u32) {
        prefetch(&self.slots[hash as usize & self.mask]);
    }

    #[inline(always)]
    pub(crate) fn find_at(&self, key: &Key, hash: u32) -> Option<&S> {
        let mut at = hash as usize & self.mask;
        loop {
            let slot = &self.slots[at];
            if slot.key() == key {
                return Some(slot);
            }
            if slot.key().tag == 0 {
                return None;
            }
            at = (at + 1) & self.mask;
        }
    }

    #[inline(always)]
    pub(crate) fn find(&self, key: &Key) -> Option<&S> {
        self.find_at(key, self.hash(key))
    }
}

impl<S: Slot> Default for HashTable<S> {
    fn default() -> HashTable<S> {
        HashTable::new(std::iter::empty())
    }
}

/// Half of a small second-level cache.
const LARGE_BYTES: usize = 256 << 10;

/// Both halves of the product of two words.
#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}
