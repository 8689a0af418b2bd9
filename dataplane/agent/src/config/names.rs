//! Numbers for names: the engine counts tenants, volumes and groups, a person names them.
//!
//! A name keeps its number from one load to the next, so that balances and counters stay with their owner.
//! The number of a name that is gone is given away again only by the load after the next: in the load
//! between, the workers forget whose it was. Otherwise a new volume would inherit credits.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers of one kind of thing.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    of: BTreeMap<String, u32>,
    free: BTreeSet<u32>,
    /// Of names that the load now under way has dropped.
    retired: Vec<u32>,
    /// No number from here on was ever given.
    end: u32,
}

impl Numbers {
    /// Begins a load in which only the names in `live` go on.
    pub(super) fn keep<'a>(&mut self, live: impl Iterator<Item = &'a str>) {
        self.free.extend(self.retired.drain(..));
        let live: BTreeSet<&str> = live.collect();
        self.of.retain(|name, number| {
            let goes_on = live.contains(name.as_str());
            if !goes_on {
                self.retired.push(*number);
            }
            goes_on
        });
    }

    /// The number of a name; a new name gets the smallest that is free.
    pub(super) fn of(&mut self, name: &str) -> u32 {
        if let Some(number) = self.of.get(name) {
            return *number;
        }
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.end += 1;
            self.end - 1
        });
        self.of.insert(name.to_owned(), number);
        number
    }

    /// The number of a name that has one.
    pub fn get(&self, name: &str) -> Option<u32> {
        self.of.get(name).copied()
    }

    /// The name of a number that has one.
    pub fn name(&self, number: u32) -> Option<&str> {
        self.iter().find(|(_, given)| *given == number).map(|(name, _)| name)
    }

    /// Names with their numbers, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.of.iter().map(|(name, number)| (name.as_str(), *number))
    }

    /// Above every number in use.
    pub fn end(&self) -> u32 {
        self.end
    }
}

/// The numbers of everything that has a name.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Tenants.
    pub tenants: Numbers,
    /// Volumes.
    pub volumes: Numbers,
    /// Groups.
    pub groups: Numbers,
}
