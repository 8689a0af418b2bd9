//! The one thread that owns the core.
//!
//! What others want goes into two bounded queues: what nodes and policies say, and what people ask for. A turn takes
//! what is there, steps the core for each, makes the writes of all these steps durable together, and only then sends,
//! answers and asks. So nobody hears of anything that a crash could undo, and a burst costs one sync of the disk.
//!
//! Heartbeats and what nodes say of instructions have room of their own and come first: of what waits, one job in
//! [`PEOPLE_SHARE`] is a person's, and a turn has [`PEOPLE_MAX`] of them at most. A link has places for
//! [`LINK_PLACES`] messages; who says more waits in its own stream, so no node crowds out another.
//!
//! A store elsewhere may be away ([`Turns::commit`]). Then the core stands still where it is, whoever asks hears so at
//! once, and the same writes are tried until they are known to be durable.
//!
//! Invariants: the process ends when a transaction fails, since what it did is not known then; a full queue refuses
//! ([`Busy`]) instead of growing, which nodes make good by saying how things are again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::{Answer, FromNode, Refused, Request, ToNode};
use control_core::{Core, Effects, Input, Key, Record};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use store::{KeyRange, Store, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::{error, info, warn};
use verdict::{Decided, Verdict};

use crate::alarms::Alarms;
use crate::policies::Policies;
use crate::writes::Writes;

/// What nodes and policies said that waits for the core at most.
const NODES_QUEUE: usize = 8192;
/// What people asked for that waits for the core at most.
const PEOPLE_QUEUE: usize = 2048;
/// Messages of one link that wait for the core at most.
const LINK_PLACES: usize = 2;
/// Of what waits in both queues, one in so many is a person's.
const PEOPLE_SHARE: usize = 8;
/// Jobs of people in one turn at most: so long a heartbeat that comes meanwhile waits.
const PEOPLE_MAX: usize = 64;
/// Steps that become durable together at most.
const STEPS_MAX: usize = 256;
/// Entries read at once when the store is read.
const PAGE: usize = 4096;
/// Time from one attempt to write to the next while the store is away.
const AGAIN: Duration = Duration::from_millis(250);
/// Under this the core's records are stored; the rest of the store is the shell's.
pub const CORE: &str = "core/";

/// A job for the thread of the core.
type Look = Box<dyn FnOnce(&Core) + Send>;

enum Job {
    Opened { session: u64, to: mpsc::Sender<ToNode> },
    Said { session: u64, message: FromNode, _place: OwnedSemaphorePermit },
    Closed { session: u64 },
    Request { request: Request, reply: oneshot::Sender<Result<Answer, Refused>> },
    Decided { ask: u64, decided: Decided<Verdict> },
    Look(Look),
    Stop,
}

impl Job {
    /// Whether somebody asked for it.
    fn is_of_people(&self) -> bool {
        matches!(self, Job::Request { .. } | Job::Look(_))
    }
}

/// It cannot be done now: try again soon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The queue is full.
    #[error("the control plane has more to do than it can take; try again in a second")]
    Full,
    /// The store is away.
    #[error(
        "the control plane goes on when its store does; whether a change that was asked for is made is known then: look, \
         or ask again with the same idempotency key: {0}"
    )]
    Away(Arc<str>),
}

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
    #[error(
        "another control plane has taken over its store, and this one must not decide any more; run one for each store, in \
         etcd each with a prefix of its own"
    )]
    Overtaken,
}

/// Talks to the thread of the core; clones talk to the same one.
#[derive(Clone)]
pub struct Driver {
    nodes: Sender<Job>,
    people: Sender<Job>,
    away: Away,
    alarms: Alarms,
}

/// The other end, until it is started.
pub struct Seat {
    jobs: Jobs,
    away: Away,
    alarms: Alarms,
}

/// What waits for the core.
struct Jobs {
    nodes: Receiver<Job>,
    people: Receiver<Job>,
}

impl Jobs {
    /// The next one that is there, in step `step` of a turn; without people's if they had theirs.
    fn next(&self, step: usize, with_people: bool) -> Option<Job> {
        if !with_people {
            return self.nodes.try_recv().ok();
        }
        let is_theirs = step % PEOPLE_SHARE == PEOPLE_SHARE - 1;
        let (first, then) = if is_theirs { (&self.people, &self.nodes) } else { (&self.nodes, &self.people) };
        first.try_recv().or_else(|_| then.try_recv()).ok()
    }

    /// The next one, as soon as there is one.
    fn wait(&self, wait: Duration) -> Result<Job, RecvTimeoutError> {
        if let Ok(job) = self.nodes.try_recv() {
            return Ok(job);
        }
        select! {
            recv(self.nodes) -> job => job.map_err(RecvTimeoutError::from),
            recv(self.people) -> job => job.map_err(RecvTimeoutError::from),
            default(wait) => Err(RecvTimeoutError::Timeout),
        }
    }
}

#[cfg(test)]
impl Seat {
    /// Waits for the next answer of a policy; which question it is to.
    pub fn next_decided(&self, patience: Duration) -> Option<u64> {
        let end = Instant::now() + patience;
        loop {
            if let Job::Decided { ask, .. } = self.jobs.nodes.recv_deadline(end).ok()? {
                return Some(ask);
            }
        }
    }
}

/// Why the store does not answer, while it does not.
#[derive(Clone, Default)]
struct Away(Arc<Mutex<Option<Arc<str>>>>);

impl Away {
    fn set(&self, why: Option<Arc<str>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn why(&self) -> Option<Busy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Busy::Away)
    }
}

impl Driver {
    /// A driver whose thread is not started yet, so that what it uses can know it.
    pub fn new() -> (Driver, Seat) {
        let (nodes, from_nodes) = bounded(NODES_QUEUE);
        let (people, from_people) = bounded(PEOPLE_QUEUE);
        let (away, alarms) = (Away::default(), Alarms::default());
        let driver = Driver { nodes, people, away: away.clone(), alarms: alarms.clone() };
        let jobs = Jobs { nodes: from_nodes, people: from_people };
        (driver, Seat { jobs, away, alarms })
    }

    /// What somebody should look at.
    pub fn alarms(&self) -> Alarms {
        self.alarms.clone()
    }

    /// Puts a job of people, which would have to wait for the store.
    fn put(&self, job: Job) -> Result<(), Busy> {
        match self.away.why() {
            Some(away) => Err(away),
            None => self.people.try_send(job).map_err(|_| Busy::Full),
        }
    }

    /// Why a job was let go.
    fn let_go(&self) -> Busy {
        self.away.why().unwrap_or(Busy::Full)
    }

    /// A node is connected; what it should hear goes to `to`.
    pub fn opened(&self, session: u64, to: mpsc::Sender<ToNode>) -> Result<Link, Busy> {
        if let Some(away) = self.away.why() {
            return Err(away);
        }
        self.nodes.try_send(Job::Opened { session, to }).map_err(|_| Busy::Full)?;
        let (nodes, places) = (self.nodes.clone(), Arc::new(Semaphore::new(LINK_PLACES)));
        Ok(Link { session, nodes, places })
    }

    /// A policy answered. Waits for its place.
    pub fn decided(&self, ask: u64, decided: Decided<Verdict>) {
        let _ = self.nodes.send(Job::Decided { ask, decided });
    }

    /// Asks for something.
    pub async fn request(&self, request: Request) -> Result<Result<Answer, Refused>, Busy> {
        let (reply, answer) = oneshot::channel();
        self.put(Job::Request { request, reply })?;
        answer.await.map_err(|_let_go| self.let_go())
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
        answer.await.map_err(|_let_go| self.let_go())
    }

    /// Ends the thread of the core after what nodes have said by now; what people asked for that still waits is let go.
    /// Waits for its place: the queue is always being emptied.
    pub fn stop(&self) {
        // No thread of the core any more: nothing to end.
        let _ = self.nodes.send(Job::Stop);
    }
}

/// A node that is connected.
pub struct Link {
    session: u64,
    nodes: Sender<Job>,
    places: Arc<Semaphore>,
}

impl Link {
    /// The node said something. Waits while it has said too much that was not looked at yet; an error if there is no
    /// room all the same: whatever it was is lost.
    pub async fn said(&self, message: FromNode) -> Result<(), Busy> {
        // INVARIANT: nobody closes the semaphore.
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Busy::Full)?;
        let job = Job::Said { session: self.session, message, _place: place };
        self.nodes.try_send(job).map_err(|_| Busy::Full)
    }

    /// It is gone. Waits for its place, since this is said once; the queue is always being emptied.
    pub fn closed(&self) {
        // No thread of the core any more: nothing to tell.
        let _ = self.nodes.send(Job::Closed { session: self.session });
    }
}

/// Reads what the store has of the core. Nobody else may write meanwhile ([`Writes::begin`]).
pub fn recover(store: &dyn Store, config: control_core::Config) -> Result<Core, StartError> {
    let mut records = Vec::new();
    let mut range = KeyRange::prefix(CORE);
    loop {
        let page = store.range(&range, PAGE)?;
        for (key, entry) in &page.entries {
            let record: Record = serde_json::from_slice(&entry.value)
                .map_err(|error| StartError::Record { key: key.clone(), why: error.to_string() })?;
            records.push(record);
        }
        match page.entries.last().filter(|_| page.more) {
            Some((last, _)) => range = range.after(last),
            None => break,
        }
    }
    Ok(Core::recover(config, records))
}

/// Where the store has a record of the core.
pub fn key(key: &Key) -> String {
    format!("{CORE}{key}")
}

/// What the thread of the core works with.
pub struct Work {
    /// The core, recovered.
    pub core: Core,
    /// What it writes with.
    pub writes: Writes,
    /// Where it is stored.
    pub store: Arc<dyn Store>,
    /// Who decides.
    pub policies: Policies,
}

impl Seat {
    /// Starts the thread; `ended` hears when it ends, and why if it was not asked to.
    pub fn start(self, work: Work, ended: oneshot::Sender<Option<Ended>>) -> Result<(), StartError> {
        let Work { core, writes, store, policies } = work;
        let turns = Turns {
            core,
            writes,
            store,
            away: self.away,
            alarms: self.alarms,
            kept: VecDeque::new(),
            stopping: false,
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
    /// Set while the store is away.
    away: Away,
    alarms: Alarms,
    /// Jobs from that time that are said once.
    kept: VecDeque<Job>,
    /// The daemon ends.
    stopping: bool,
    policies: Policies,
    started: Instant,
    sessions: BTreeMap<u64, mpsc::Sender<ToNode>>,
    replies: BTreeMap<u64, oneshot::Sender<Result<Answer, Refused>>>,
    next_token: u64,
}

impl Turns {
    fn run(mut self, jobs: &Jobs) -> Result<(), Ended> {
        let mut wake_ms = 0;
        let mut passed = Instant::now();
        while !self.stopping {
            let (mut effects, mut looks) = (Effects::default(), Vec::new());
            let wait = Duration::from_millis(wake_ms).saturating_sub(self.started.elapsed());
            let mut next = match self.kept.pop_front().map_or_else(|| jobs.wait(wait), Ok) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => {
                    self.step(Input::Tick, &mut effects)?;
                    None
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut of_people = 0;
            for step in 0..STEPS_MAX {
                let more = || jobs.next(step, of_people < PEOPLE_MAX);
                let Some(job) = next.take().or_else(|| self.kept.pop_front()).or_else(more) else { break };
                of_people += usize::from(job.is_of_people());
                match job {
                    Job::Look(look) => looks.push(look),
                    Job::Stop => {
                        self.stopping = true;
                        break;
                    }
                    job => self.take(job, &mut effects)?,
                }
            }
            if effects.wake_ms > 0 {
                wake_ms = effects.wake_ms;
            }
            if !self.commit(jobs, &mut looks)? {
                return Ok(());
            }
            self.perform(effects);
            looks.into_iter().for_each(|look| look(&self.core));
            self.store.pass(passed.elapsed())?;
            passed = Instant::now();
        }
        Ok(())
    }

    /// Has the core take a job that it has something to do with.
    fn take(&mut self, job: Job, effects: &mut Effects) -> Result<(), Ended> {
        let input = match job {
            Job::Opened { session, to } => {
                self.sessions.insert(session, to);
                return Ok(());
            }
            Job::Said { session, message, .. } => Input::Node { session, message },
            Job::Closed { session } => {
                self.sessions.remove(&session);
                Input::Closed { session }
            }
            Job::Request { request, reply } => {
                self.next_token += 1;
                self.replies.insert(self.next_token, reply);
                Input::Request { token: self.next_token, request }
            }
            Job::Decided { ask, decided } => Input::Decided { ask, decided },
            // These two are the loop's.
            Job::Look(_) | Job::Stop => return Ok(()),
        };
        self.step(input, effects)
    }

    /// Makes durable what was written. While the store is away it is tried again and again, and everybody hears so;
    /// false if the daemon is to end meanwhile: what was written then is as if it had ended before.
    fn commit(&mut self, jobs: &Jobs, looks: &mut Vec<Look>) -> Result<bool, Ended> {
        let mut since = None;
        loop {
            let why = match self.writes.commit() {
                Err(Ended::Store(why @ StoreError::Away(_))) => why.to_string(),
                Err(ended) => return Err(ended),
                Ok(()) => break,
            };
            if since.is_none() {
                error!("the core stands still until it can write: {why}");
                since = Some(Instant::now());
            }
            self.away.set(Some(why.into()));
            // Their askers hear why; the answers are kept under their keys.
            self.replies.clear();
            looks.clear();
            let again = Instant::now() + AGAIN;
            loop {
                match jobs.wait(again.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => break,
                    Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(false),
                    // Askers hear why, and nodes say how things are again.
                    Ok(
                        Job::Request { .. } | Job::Look(_) | Job::Said { message: FromNode::Report(_), .. },
                    ) => {}
                    Ok(job) => self.kept.push_back(job),
                }
            }
        }
        if let Some(since) = since {
            self.away.set(None);
            info!("the store is back after {:.1} s; the core goes on", since.elapsed().as_secs_f64());
        }
        Ok(true)
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
            self.alarms.raise(alarm.to_string());
        }
    }
}

#[cfg(test)]
mod tests;
