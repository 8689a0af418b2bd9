//! Following a range of etcd, from a revision on, across the loss of connections.
//!
//! All changes of one revision come in one message, so after a break the next revision is where it goes on. Whether
//! all since the first one can be had is asked for by reading the state before it: etcd begins a watch at the very
//! revision that it compacted to, and some versions leave deletions out there (etcd's issues 18089 and 19179).

use std::time::{Duration, Instant};

use etcd_client::{Error, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};

use super::words::{Trouble, entry, keys, number, signed};
use super::{ANSWER_BYTES_MAX, ENDED, Etcd, outcome};
use crate::{Batch, Change, KeyRange, Revision, StoreError, Watch, WatchError};

/// A revision that every cluster had, with nothing in it.
const FIRST: Revision = 1;

/// See the module's documentation.
pub(super) struct Following {
    store: Etcd,
    /// Ends of the range as etcd has them.
    ends: (Vec<u8>, Vec<u8>),
    /// What was told is before it.
    from: Revision,
    /// Nothing after a break.
    stream: Option<WatchStream>,
}

impl Following {
    /// Follows what changes at revision `from` and later.
    pub fn begin(store: &Etcd, range: &KeyRange, from: Revision) -> Result<Following, WatchError> {
        let ends = store.ends(range);
        let mut following = Following { store: store.clone(), ends, from, stream: None };
        if from == 0 {
            return Err(WatchError::Compacted { first: following.first()? });
        }
        following.stream = Some(following.follow()?);
        Ok(following)
    }

    fn told(&self, trouble: Trouble) -> WatchError {
        self.store.told(trouble).into()
    }

    /// Opens a stream that begins at `from`.
    fn open(&self, from: Revision) -> Result<WatchStream, Trouble> {
        let (start, end) = self.ends.clone();
        let mut watches = self.store.0.client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        let options = WatchOptions::new().with_range(end).with_start_revision(signed(from));
        self.store.attempt(async move {
            let mut stream = watches.watch(start, Some(options)).await?;
            match stream.message().await? {
                Some(first) if first.created() && !first.canceled() => Ok(stream),
                Some(first) => Err(Error::InvalidArgs(first.cancel_reason().to_owned())),
                None => Err(Error::WatchError("a watch ended before it began".to_owned())),
            }
        })
    }

    /// A stream from `from` on, of which nothing is forgotten.
    fn follow(&self) -> Result<WatchStream, WatchError> {
        let stream = self.open(self.from).map_err(|trouble| self.told(trouble))?;
        match self.can_read(self.from.saturating_sub(1).max(FIRST)) {
            Ok(true) => Ok(stream),
            Ok(false) => Err(WatchError::Compacted { first: self.first()? }),
            Err(trouble) => Err(self.told(trouble)),
        }
    }

    /// Whether a revision is not forgotten.
    fn can_read(&self, revision: Revision) -> Result<bool, Trouble> {
        let options = GetOptions::new().with_revision(signed(revision)).with_limit(1).with_keys_only();
        match self.store.read(self.ends.0.clone(), options) {
            Ok(_) | Err(Trouble::Future) => Ok(true),
            Err(Trouble::Compacted) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// The first revision that can be followed.
    fn first(&self) -> Result<Revision, WatchError> {
        if self.can_read(FIRST).map_err(|trouble| self.told(trouble))? {
            return Ok(FIRST);
        }
        // Who follows from the beginning is told how far that is forgotten.
        let mut stream = self.open(FIRST).map_err(|trouble| self.told(trouble))?;
        let until = self.store.attempt(async move {
            loop {
                match stream.message().await? {
                    Some(said) if said.compact_revision() > 0 => return Ok(said.compact_revision()),
                    Some(_) => {}
                    None => return Err(Error::WatchError("a watch ended before it said why".to_owned())),
                }
            }
        });
        Ok(number(until.map_err(|trouble| self.told(trouble))?) + 1)
    }

    /// The next message, or none within `patience`; then, and after a message, the stream goes on.
    fn hear(&mut self, patience: Duration) -> Result<Option<WatchResponse>, Trouble> {
        let Some(mut stream) = self.stream.take() else { return Ok(None) };
        let heard = outcome(&self.store.0.runtime, async move {
            let heard = tokio::time::timeout(patience, stream.message()).await;
            (heard, stream)
        });
        match heard {
            None => Err(Trouble::Away(ENDED.to_owned())),
            Some((Err(_nothing), stream)) => {
                self.stream = Some(stream);
                Ok(None)
            }
            Some((Ok(Ok(Some(said))), stream)) => {
                self.stream = Some(stream);
                Ok(Some(said))
            }
            Some((Ok(Ok(None)), _)) => Err(Trouble::Away("it ended a watch".to_owned())),
            Some((Ok(Err(error)), _)) => Err(error.into()),
        }
    }

    /// What a message tells, by revision.
    fn batches(&mut self, said: &WatchResponse) -> Result<Vec<Batch>, StoreError> {
        let mut batches: Vec<Batch> = Vec::new();
        for event in said.events() {
            let Some(found) = event.kv() else { continue };
            let (key, revision) = (keys(found.key(), &self.store.0.prefix)?, number(found.mod_revision()));
            let entry = matches!(event.event_type(), EventType::Put).then(|| entry(found));
            let change = Change { key, entry };
            match batches.last_mut().filter(|batch| batch.revision == revision) {
                Some(batch) => batch.changes.push(change),
                None => batches.push(Batch { revision, changes: vec![change] }),
            }
        }
        if let Some(last) = batches.last() {
            self.from = last.revision + 1;
        }
        Ok(batches)
    }
}

impl Watch for Following {
    fn next(&mut self, patience: Duration) -> Result<Vec<Batch>, WatchError> {
        let until = Instant::now() + patience;
        let mut broken = None;
        loop {
            if self.stream.is_none() {
                // It breaks once when etcd starts again, and again only if that goes wrong.
                if let Some(trouble) = broken.take().filter(|_| until <= Instant::now()) {
                    return Err(self.told(trouble));
                }
                self.stream = Some(self.follow()?);
            }
            let said = match self.hear(until.saturating_duration_since(Instant::now())) {
                Ok(Some(said)) => said,
                Ok(None) => return Ok(Vec::new()),
                Err(trouble) => {
                    broken = Some(trouble);
                    continue;
                }
            };
            if said.canceled() {
                self.stream = None;
                if said.compact_revision() > 0 {
                    return Err(WatchError::Compacted { first: number(said.compact_revision()) + 1 });
                }
                let why = format!("it ended a watch: {}", said.cancel_reason());
                return Err(self.told(Trouble::Away(why)));
            }
            let batches = self.batches(&said)?;
            if !batches.is_empty() {
                return Ok(batches);
            }
        }
    }
}
