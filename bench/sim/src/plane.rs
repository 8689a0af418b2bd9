//! The control plane's process: the core over the real store in memory, with the crashes that can be between them.
//!
//! One step is one transaction, which also compares what the process wrote of itself last; messages leave after it. A
//! crash is before the transaction, after it and before the messages, or after some of them.

use contract::{Name, NodeId};
use control_core::{Config, Core, Effects, Input, Key, Record};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use store::{KeyRange, Local, Outcome, Store, Transaction};

use crate::bug::Bug;

/// The process and its store.
pub struct Plane {
    /// None while it is down.
    pub core: Option<Core>,
    /// It does not run, and does not know it.
    pub paused: bool,
    /// Its clock is ahead of the world's by so much.
    pub ahead_ms: u64,
    store: Local,
    meta_revision: u64,
    config: Config,
}

/// Where a step is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing of it happened.
    BeforeCommit,
    /// It is in the store, and nobody was told.
    AfterCommit,
}

impl Plane {
    /// A process that was never started.
    pub fn new(config: Config) -> Plane {
        let store = Local::in_memory();
        Plane { core: None, paused: false, ahead_ms: 0, store, meta_revision: 0, config }
    }

    /// Starts with what the store has.
    pub fn start(&mut self) {
        let mut records = Vec::new();
        let mut range = KeyRange::prefix("");
        loop {
            // INVARIANT: a store in memory does not fail.
            let page = self.store.range(&range, 1_000).unwrap_or_else(|error| unreachable!("{error}"));
            for (key, entry) in &page.entries {
                if key == "meta" {
                    self.meta_revision = entry.modified;
                }
                // INVARIANT: what is there was written below.
                let record: Record = serde_json::from_slice(&entry.value)
                    .unwrap_or_else(|error| unreachable!("{key}: {error}"));
                records.push(record);
            }
            match page.entries.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => break,
            }
        }
        self.core = Some(Core::recover(self.config.clone(), records));
    }

    /// One step. Returns what may happen outside, or nothing if the process is cut off (it is down then).
    pub fn step(
        &mut self,
        now_ms: u64,
        input: Input,
        cut: Option<Cut>,
        bug: Option<Bug>,
        random: &mut ChaCha8Rng,
    ) -> Option<Effects> {
        let core = self.core.as_mut()?;
        let effects = core.step(now_ms + self.ahead_ms, input);
        if cut == Some(Cut::BeforeCommit) {
            self.core = None;
            return (bug == Some(Bug::SendBeforeCommit)).then_some(effects);
        }
        self.commit(&effects, bug, random);
        if cut.is_some() {
            self.core = None;
            return None;
        }
        Some(effects)
    }

    fn commit(&mut self, effects: &Effects, bug: Option<Bug>, random: &mut ChaCha8Rng) {
        if effects.writes.is_empty() {
            return;
        }
        let mut transaction = Transaction::new().expect("meta", self.meta_revision);
        let mut writes_meta = false;
        for write in &effects.writes {
            if bug == Some(Bug::LostWrite) && write.key != Key::Meta && random.random_bool(0.02) {
                continue;
            }
            let key = write.key.to_string();
            writes_meta |= write.key == Key::Meta;
            transaction = match &write.record {
                Some(record) => {
                    // INVARIANT: records are plain values.
                    let value = serde_json::to_vec(record).unwrap_or_else(|error| unreachable!("{error}"));
                    transaction.put(key, value)
                }
                None => transaction.delete(key),
            };
        }
        match self.store.transact(&transaction) {
            Ok(Outcome::Done { revision }) if writes_meta => self.meta_revision = revision,
            Ok(Outcome::Done { .. }) => {}
            // INVARIANT: there is one process, and it keeps the store's limits.
            other => unreachable!("{other:?}"),
        }
    }

    /// The place in the world of a node that the core knows.
    pub fn place(&self, id: NodeId) -> Option<usize> {
        let name = self.core.as_ref()?.node(id)?.info.name.clone();
        place_of(&name)
    }
}

/// The place in the world of the node of that name.
pub fn place_of(name: &Name) -> Option<usize> {
    name.as_str().strip_prefix('n')?.parse().ok()
}
