//! Numbers that keep their meaning from one build to the next.
//!
//! Frames in flight carry numbers of next hops and attachments across a change of configuration. So a number
//! is given to one key for good; only when all have been used, one whose key is no longer wanted is given
//! out again.

use std::collections::HashMap;
use std::hash::Hash;

#[derive(Clone, Debug)]
pub(crate) struct Numbers<K> {
    by_key: HashMap<K, u32>,
}

impl<K> Default for Numbers<K> {
    fn default() -> Numbers<K> {
        Numbers { by_key: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Numbers<K> {
    /// The number of `key`, below `max`; `None` when all belong to keys that are `wanted`.
    pub(crate) fn number(&mut self, key: K, max: usize, wanted: impl Fn(&K) -> bool) -> Option<u32> {
        if let Some(number) = self.by_key.get(&key) {
            return Some(*number);
        }
        let number = if self.by_key.len() < max {
            self.by_key.len() as u32
        } else {
            let gone = *self.by_key.keys().find(|key| !wanted(key))?;
            self.by_key.remove(&gone)?
        };
        self.by_key.insert(key, number);
        Some(number)
    }
}
