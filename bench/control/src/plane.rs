//! The control plane as the server runs it: the core, and its store in a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use control_core::{Config, Core, Effects, Input, Key, Record};
use store::{KeyRange, Local, OPERATIONS_MAX, Store, Transaction};

use bench::Outcome;

/// See the module's documentation.
pub struct Plane {
    pub core: Core,
    /// Time that steps and transactions took.
    pub busy: Duration,
    store: Local,
    meta: u64,
    pending: BTreeMap<String, Option<Record>>,
}

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Plane {
    /// A new one, with its store in `folder`.
    pub fn new(folder: &Path, config: Config) -> Outcome<Plane> {
        let store = Local::open(&folder.join("store.redb")).map_err(failed)?;
        let core = Core::recover(config, Vec::new());
        Ok(Plane { core, busy: Duration::ZERO, store, meta: 0, pending: BTreeMap::new() })
    }

    /// One step; what it writes is durable after [`Plane::commit`].
    pub fn step(&mut self, now_ms: u64, input: Input) -> Outcome<Effects> {
        let began = Instant::now();
        let mut effects = self.core.step(now_ms, input);
        let writes = std::mem::take(&mut effects.writes);
        if self.pending.len() + writes.len() > OPERATIONS_MAX {
            self.write()?;
        }
        self.pending.extend(writes.into_iter().map(|write| (write.key.to_string(), write.record)));
        self.busy += began.elapsed();
        Ok(effects)
    }

    /// Makes all steps durable.
    pub fn commit(&mut self) -> Outcome {
        let began = Instant::now();
        self.write()?;
        self.busy += began.elapsed();
        Ok(())
    }

    fn write(&mut self) -> Outcome {
        if self.pending.is_empty() {
            return Ok(());
        }
        let meta = Key::Meta.to_string();
        let changes_meta = self.pending.contains_key(&meta);
        let mut transaction = Transaction::new().expect(meta, self.meta);
        for (key, record) in std::mem::take(&mut self.pending) {
            transaction = match record {
                Some(record) => transaction.put(key, serde_json::to_vec(&record).map_err(failed)?),
                None => transaction.delete(key),
            };
        }
        match self.store.transact(&transaction).map_err(failed)? {
            store::Outcome::Done { revision } if changes_meta => self.meta = revision,
            store::Outcome::Done { .. } => {}
            store::Outcome::Conflict { .. } => return Err("somebody else has the store".to_owned()),
        }
        Ok(())
    }

    /// How many records there are, and their bytes.
    pub fn records(&self) -> Outcome<(u64, u64)> {
        let (mut count, mut bytes) = (0, 0);
        let mut range = KeyRange::prefix("");
        loop {
            let page = self.store.range(&range, 4_096).map_err(failed)?;
            for (key, entry) in &page.entries {
                count += 1;
                bytes += (key.len() + entry.value.len()) as u64;
            }
            match page.entries.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => return Ok((count, bytes)),
            }
        }
    }
}
