//! The one thread that owns the core.
//!
//! What others want goes into one bounded queue. A turn takes what is there, steps the core for each, makes the
//! writes of all these steps durable together, and only then sends, answers and asks. So nobody hears of
//! anything that a crash could undo, and a burst costs one sync of the disk.
//!
//! Invariants: the process ends when a transaction fails, since what it did is not known then; a full queue refuses
//! ([`Busy`]) instead of growing, which nodes make good by saying how things are again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::{Answer, FromNode, Refused, Request, ToNode};
use control_core::{Core, Effects, Input, Key, Record};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use store::{KeyRange, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};
use verdict::{Decided, Verdict};

use crate::policies::Policies;
use crate::writes::Writes;

/// What waits for the core at most.
const QUEUE: usize = 4096;
/// Steps that become durable together at most.
const STEPS_MAX: usize = 256;
/// Entries read at once when the store is read.
const PAGE: usize = 4096;
/// Under this the core's records are stored; the rest of the store is the shell's.
pub const CORE: &str = "core/";

/// A job for the thread of the core.
type Look = Box<dyn FnOnce(&Core) + Send>;

enum Job {
    Opened { session: u64, to: mpsc::Sender<ToNode> },
    Said { session: u64, message: FromNode },
    Closed { session: u64 },
    Request { request: Request, reply: oneshot::Sender<Result<Answer, Refused>> },
    Decided { ask: u64, decided: Decided<Verdict> },
    Look(Look),
    Stop,
}

/// The queue is full: try again soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane has more to do than it can take; try again in a second")]
pub struct Busy;

/// Why there is no core.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in it.
    #[error("the store holds {key}, which this version cannot read: {why}; use the version that wrote it")]
    Record {
        /// Where.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why the core's thread ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another control plane has the store.
    #[error("another control plane has taken over; this one must not decide any more")]
    Overtaken,
}

/// Talks to the thread of the core; clones talk to the same one.
#[derive(Clone)]
pub struct Driver {
    jobs: Sender<Job>,
}

/// The other end, until it is started.
pub struct Seat {
    jobs: Receiver<Job>,
}

impl Driver {
    /// A driver whose thread is not started yet, so that what it uses can know it.
    pub fn new() -> (Driver, Seat) {
        let (sender, jobs) = bounded(QUEUE);
        (Driver { jobs: sender }, Seat { jobs })
    }

    fn put(&self, job: Job) -> Result<(), Busy> {
        self.jobs.try_send(job).map_err(|_| Busy)
    }

    /// A node is connected; what it should hear goes to `to`.
    pub fn opened(&self, session: u64, to: mpsc::Sender<ToNode>) -> Result<(), Busy> {
        self.put(Job::Opened { session, to })
    }

    /// A node said something. It may be lost: nodes say how things are, again and again.
    pub fn said(&self, session: u64, message: FromNode) -> Result<(), Busy> {
        self.put(Job::Said { session, message })
    }

    /// A connection ended. Waits for its place, since this is said once; the queue is always being emptied.
    pub fn closed(&self, session: u64) {
        // No thread of the core any more: nothing to tell.
        let _ = self.jobs.send(Job::Closed { session });
    }

    /// A policy answered. Waits for its place.
    pub fn decided(&self, ask: u64, decided: Decided<Verdict>) {
        let _ = self.jobs.send(Job::Decided { ask, decided });
    }

    /// Asks for something.
    pub async fn request(&self, request: Request) -> Result<Result<Answer, Refused>, Busy> {
        let (reply, answer) = oneshot::channel();
        self.put(Job::Request { request, reply })?;
        answer.await.map_err(|_ended| Busy)
    }

    /// Looks at the core between two steps.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (reply, answer) = oneshot::channel();
        let look: Look = Box::new(move |core| {
            // Whoever looked may have given up.
            let _ = reply.send(look(core));
        });
        self.put(Job::Look(look))?;
        answer.await.map_err(|_ended| Busy)
    }

    /// Ends the thread of the core after what waits now.
    pub fn stop(&self) {
        let _ = self.jobs.send(Job::Stop);
    }
}

/// Reads what the store has of the core. Its first step writes that it started: from then on, whoever had the store
/// before cannot write.
pub fn recover(
    store: &dyn Store,
    config: control_core::Config,
) -> Result<(Core, store::Revision), StartError> {
    let mut records = Vec::new();
    let mut range = KeyRange::prefix(CORE);
    let mut meta = 0;
    loop {
        let page = store.range(&range, PAGE)?;
        for (key, entry) in &page.entries {
            let record: Record = serde_json::from_slice(&entry.value)
                .map_err(|error| StartError::Record { key: key.clone(), why: error.to_string() })?;
            if matches!(record, Record::Meta(_)) {
                meta = entry.modified;
            }
            records.push(record);
        }
        match page.entries.last().filter(|_| page.more) {
            Some((last, _)) => range = range.after(last),
            None => break,
        }
    }
    Ok((Core::recover(config, records), meta))
}

/// Where the store has a record of the core.
pub fn key(key: &Key) -> String {
    format!("{CORE}{key}")
}

/// What the thread of the core works with.
pub struct Work {
    /// The core, recovered.
    pub core: Core,
    /// Revision of its meta record.
    pub meta: store::Revision,
    /// Where it is stored.
    pub store: Arc<dyn Store>,
    /// Who decides.
    pub policies: Policies,
}

impl Seat {
    /// Starts the thread; `ended` hears when it ends, and why if it was not asked to.
    pub fn start(self, work: Work, ended: oneshot::Sender<Option<Ended>>) -> Result<(), StartError> {
        let Work { core, meta, store, policies } = work;
        let turns = Turns {
            core,
            writes: Writes::new(Arc::clone(&store), meta),
            store,
            policies,
            started: Instant::now(),
            sessions: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_token: 0,
        };
        std::thread::Builder::new().name("tidegate-core".to_owned()).spawn(move || {
            let outcome = turns.run(&self.jobs);
            // The daemon may be ending by itself.
            let _ = ended.send(outcome.err());
        })?;
        Ok(())
    }
}

struct Turns {
    core: Core,
    writes: Writes,
    store: Arc<dyn Store>,
    policies: Policies,
    started: Instant,
    sessions: BTreeMap<u64, mpsc::Sender<ToNode>>,
    replies: BTreeMap<u64, oneshot::Sender<Result<Answer, Refused>>>,
    next_token: u64,
}

impl Turns {
    fn run(mut self, jobs: &Receiver<Job>) -> Result<(), Ended> {
        let mut wake_ms = 0;
        let mut passed = Instant::now();
        loop {
            let wait = Duration::from_millis(wake_ms).saturating_sub(self.started.elapsed());
            let first = match jobs.recv_timeout(wait) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let (mut effects, mut looks, mut stop) = (Effects::default(), Vec::new(), false);
            if first.is_none() {
                self.step(Input::Tick, &mut effects)?;
            }
            for job in first.into_iter().chain(jobs.try_iter()).take(STEPS_MAX) {
                match job {
                    Job::Opened { session, to } => drop(self.sessions.insert(session, to)),
                    Job::Said { session, message } => {
                        self.step(Input::Node { session, message }, &mut effects)?;
                    }
                    Job::Closed { session } => {
                        self.sessions.remove(&session);
                        self.step(Input::Closed { session }, &mut effects)?;
                    }
                    Job::Request { request, reply } => {
                        self.next_token += 1;
                        self.replies.insert(self.next_token, reply);
                        self.step(Input::Request { token: self.next_token, request }, &mut effects)?;
                    }
                    Job::Decided { ask, decided } => {
                        self.step(Input::Decided { ask, decided }, &mut effects)?
                    }
                    Job::Look(look) => looks.push(look),
                    Job::Stop => {
                        stop = true;
                        break;
                    }
                }
            }
            if effects.wake_ms > 0 {
                wake_ms = effects.wake_ms;
            }
            self.writes.commit()?;
            self.perform(effects);
            looks.into_iter().for_each(|look| look(&self.core));
            self.store.pass(passed.elapsed())?;
            passed = Instant::now();
            if stop {
                return Ok(());
            }
        }
    }

    fn step(&mut self, input: Input, all: &mut Effects) -> Result<(), Ended> {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let effects = self.core.step(now_ms, input);
        self.writes.add(effects.writes)?;
        all.sends.extend(effects.sends);
        all.replies.extend(effects.replies);
        all.asks.extend(effects.asks);
        all.alarms.extend(effects.alarms);
        all.wake_ms = effects.wake_ms;
        Ok(())
    }

    /// Everything but the writes, which are durable by now.
    fn perform(&mut self, effects: Effects) {
        for (session, message) in effects.sends {
            // A node that takes nothing is sent the same again when it does; so is one that is gone.
            let Some(to) = self.sessions.get(&session) else { continue };
            if let Err(mpsc::error::TrySendError::Full(_)) = to.try_send(message) {
                warn!(session, "a node does not take what it is told; it will be told again");
            }
        }
        for reply in effects.replies {
            if let Some(asked) = self.replies.remove(&reply.token) {
                // Whoever asked may have given up; the answer is kept under its key.
                let _ = asked.send(reply.result);
            }
        }
        for ask in effects.asks {
            self.policies.ask(ask);
        }
        for alarm in effects.alarms {
            info!("alarm: {alarm}");
        }
    }
}
