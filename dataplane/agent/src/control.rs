//! Doing what a control plane says: its end of the link, on this node.
//!
//! [`book`] is what must be remembered, [`dial`] makes connections, [`placed`] turns a snapshot into what is served,
//! [`steps`] carries instructions out, [`moves`] those of moves, with [`copy`] and [`source`], [`figures`] says how
//! things are, [`conditions`] what should be done about. This file is the loop between them.
//!
//! Invariants: nothing here reads an expiry: without control plane a node serves its last snapshot for ever (decision
//! D11). What a message says is written down before it is done. A snapshot is applied by one thread, and of several
//! that wait only the newest counts.

mod book;
mod conditions;
mod copy;
mod dial;
mod figures;
mod moves;
mod placed;
mod source;
mod steps;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use contract::node::{NodeInfo, ToNodeBody};
use contract::{
    Credits, Done, FromNode, Instruction, InstructionKey, LeaseId, Name, NodeReport, NodeSnapshot, NodeStep,
    Pool, Resources, ToNode, VolumeId,
};
use engine::ChangeError;
use engine::block::Status;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{error, info, warn};

use crate::daemon::Daemon;

pub use book::BookError;
use book::Shelf;
use copy::Copy;
pub use dial::Address;
use figures::Figures;
use placed::Serving;
use steps::{Failure, Job, Jobs};

/// Time between two reports.
const REPORT: Duration = Duration::from_millis(200);
/// Every so many reports one has all volumes in it.
const WHOLE: u64 = 5;
/// Shortest and longest wait before the control plane is dialled again.
const DIAL_MIN: Duration = Duration::from_millis(50);
const DIAL_MAX: Duration = Duration::from_secs(1);
/// Released leases that are reported.
const RELEASED_MAX: usize = 1_024;
/// How long volumes that could not be opened wait to be tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// What is needed to follow a control plane.
#[derive(Clone)]
pub struct Settings {
    /// Where it is.
    pub address: Address,
    /// The bearer token.
    pub token: Option<String>,
    /// Folder of what must be remembered.
    pub state: PathBuf,
    /// What people call this node.
    pub name: Name,
    /// What it can serve at once.
    pub capacity: Resources,
    /// Directories for volumes.
    pub pools: Vec<(Pool, PathBuf)>,
    /// Where hosts reach it.
    pub addresses: Vec<String>,
}

/// One node's end, as long as its daemon lives.
pub struct Follower {
    settings: Settings,
    daemon: Weak<Daemon>,
    state: Mutex<State>,
    /// Held while volumes are opened, closed, frozen or thawed. Taken before `state`.
    alone: Mutex<()>,
    /// Copies that are not complete.
    copies: Mutex<BTreeMap<VolumeId, Copy>>,
    /// A snapshot waits to be applied.
    told: Notify,
    /// Something is to be reported at once.
    news: Notify,
    /// Reports so far.
    reports: AtomicU64,
    /// How often this node started; it does not change while it runs.
    incarnation: u64,
}

struct State {
    shelf: Shelf,
    jobs: Jobs,
    /// Leases that were revoked and whose work has ended.
    released: VecDeque<LeaseId>,
    /// Leases that were revoked and whose work has not, and when notice was given.
    leaving: Vec<(LeaseId, Instant)>,
    serving: Serving,
    figures: Figures,
    /// Why the control plane does not take this node in.
    refused: Option<String>,
}

impl Follower {
    /// Opens the book. Nothing is served yet.
    pub fn new(settings: Settings, daemon: &Arc<Daemon>) -> Result<Arc<Follower>, BookError> {
        Follower::of(settings, Arc::downgrade(daemon))
    }

    fn of(settings: Settings, daemon: Weak<Daemon>) -> Result<Arc<Follower>, BookError> {
        let shelf = Shelf::open(&settings.state)?;
        let incarnation = shelf.book.incarnation;
        let state = State {
            shelf,
            jobs: Jobs::default(),
            released: VecDeque::new(),
            leaving: Vec::new(),
            serving: Serving::default(),
            figures: Figures::default(),
            refused: None,
        };
        Ok(Arc::new(Follower {
            settings,
            daemon,
            state: Mutex::new(state),
            alone: Mutex::default(),
            copies: Mutex::default(),
            told: Notify::new(),
            news: Notify::new(),
            reports: AtomicU64::new(0),
            incarnation,
        }))
    }

    /// Serves what was told last, then links for ever.
    pub async fn follow(self: Arc<Follower>) {
        if self.state().shelf.book.snapshot.is_some() {
            info!("serving what the control plane said last, until it says something else");
            self.told.notify_one();
        }
        tokio::spawn(Arc::clone(&self).apply_for_ever());
        let mut wait = DIAL_MIN;
        let mut said = String::new();
        while self.daemon.strong_count() > 0 {
            let why = match self.link().await {
                Ok(()) => {
                    wait = DIAL_MIN;
                    "the link ended".to_owned()
                }
                Err(why) => why,
            };
            // Once for each reason: without control plane this goes on for ever.
            if why != said {
                warn!("no control plane: {why}; serving goes on, and it is dialled again");
                said = why;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(DIAL_MAX);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn daemon(&self) -> Result<Arc<Daemon>, Failure> {
        self.daemon.upgrade().ok_or_else(|| Failure::again("the data plane ends".to_owned()))
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Copy>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, until it ends.
    async fn link(self: &Arc<Self>) -> Result<(), String> {
        let connection = self.settings.address.connect().await.map_err(|error| error.to_string())?;
        let (say, said) = mpsc::channel(southbound::QUEUE);
        let mut introduced = self.introduction();
        say.send(FromNode::Hello(introduced.clone())).await.map_err(|error| error.to_string())?;
        let token = self.settings.token.as_deref();
        let mut heard = southbound::dial(connection, token, ReceiverStream::new(said))
            .await
            .map_err(|error| error.to_string())?;
        let mut due = tokio::time::interval(REPORT);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Workers are asked and the book is written beside this: that the node lives is said meanwhile.
        let mut reading: Option<JoinHandle<figures::Read>> = None;
        let mut hearing: Option<JoinHandle<Result<Option<FromNode>, BookError>>> = None;
        let (mut ticks, mut last): (u64, Option<NodeReport>) = (0, None);
        loop {
            let figures = tokio::select! {
                message = heard.message(), if hearing.is_none() => match message {
                    Ok(Some(message)) => {
                        let follower = Arc::clone(self);
                        hearing = Some(tokio::task::spawn_blocking(move || follower.hear(message)));
                        continue;
                    }
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(status.message().to_owned()),
                },
                answer = finished(&mut hearing) => {
                    let answer = answer.map_err(|error| error.to_string())?;
                    if let Some(answer) = answer.map_err(|error| error.to_string())?
                        && say.send(answer).await.is_err()
                    {
                        return Ok(());
                    }
                    continue;
                }
                // How work ended, or that a volume is served, is what others wait for.
                () = self.news.notified() => {
                    ticks = ticks.next_multiple_of(WHOLE);
                    due.reset_immediately();
                    continue;
                }
                _ = due.tick() => {
                    if reading.is_none() && ticks.is_multiple_of(WHOLE) {
                        let daemon = self.daemon.upgrade().ok_or("the data plane ends")?;
                        reading = Some(tokio::task::spawn_blocking(move || figures::read(&daemon)));
                    }
                    ticks += 1;
                    // A reload may have brought tenants.
                    if ticks.is_multiple_of(WHOLE) && self.introduction() != introduced {
                        introduced = self.introduction();
                        let hello = FromNode::Hello(introduced.clone());
                        say.send(hello).await.map_err(|error| error.to_string())?;
                    }
                    None
                }
                read = finished(&mut reading) => Some(read.map_err(|error| error.to_string())?),
            };
            let Some(report) = self.report(figures).or_else(|| Some(self.still(last.as_ref()?))) else {
                continue;
            };
            last = Some(report.clone());
            if say.send(FromNode::Report(report)).await.is_err() {
                return Ok(());
            }
        }
    }

    fn introduction(&self) -> NodeInfo {
        let daemon = self.daemon.upgrade();
        let workers = daemon.as_ref().map_or(0, |daemon| daemon.node().plan().workers.len());
        let file = daemon.map(|daemon| Arc::clone(&daemon.running().file));
        // A tenant whose name no tenant of a control plane can have gets nothing from one.
        let networks =
            file.iter().flat_map(|file| &file.tenant).filter_map(|tenant| tenant.name.parse().ok());
        NodeInfo {
            name: self.settings.name.clone(),
            incarnation: self.incarnation,
            workers: u16::try_from(workers).unwrap_or(u16::MAX),
            capacity: self.settings.capacity,
            pools: self.settings.pools.iter().map(|(pool, _)| pool.clone()).collect(),
            addresses: self.settings.addresses.clone(),
            networks: networks.collect(),
        }
    }

    /// Does what a message says; returns what is answered at once. Blocks while the book is written.
    fn hear(self: &Arc<Follower>, message: ToNode) -> Result<Option<FromNode>, BookError> {
        match message.body {
            ToNodeBody::Introduce => return Ok(Some(FromNode::Hello(self.introduction()))),
            ToNodeBody::Refused { why } => {
                let mut state = self.state();
                // Said as often as the node reports.
                if state.refused.as_ref() != Some(&why) {
                    error!("the control plane does not take this node in: {why}");
                    state.refused = Some(why);
                }
            }
            ToNodeBody::Welcome { node } => {
                let mut state = self.state();
                state.refused = None;
                if state.shelf.book.node != Some(node) {
                    info!(%node, "linked");
                    state.shelf.book.node = Some(node);
                    state.shelf.write()?;
                }
            }
            ToNodeBody::Snapshot(snapshot) => self.take(*snapshot)?,
            ToNodeBody::Instruct(instruction) => self.begin(instruction, message.seq)?,
            ToNodeBody::Cancel(key) => {
                let mut state = self.state();
                match state.jobs.get(key) {
                    Some(job) => job.stop(),
                    None => state.shelf.cancel(key, message.seq)?,
                }
            }
            ToNodeBody::Forget(keys) => self.state().shelf.forget(&keys, message.seq)?,
            ToNodeBody::Revoke { lease, .. } => self.revoke(lease),
        }
        Ok(None)
    }

    fn take(&self, snapshot: NodeSnapshot) -> Result<(), BookError> {
        let mut state = self.state();
        let is_newer = state.shelf.book.snapshot.as_ref().is_none_or(|old| old.version < snapshot.version);
        if is_newer {
            // A higher grant is another beginning.
            for placed in &snapshot.volumes {
                let frozen = &mut state.shelf.book.frozen;
                if frozen.get(&placed.volume).is_some_and(|frozen| frozen.epoch < placed.epoch) {
                    frozen.remove(&placed.volume);
                }
            }
            state.shelf.book.snapshot = Some(snapshot);
            state.shelf.write()?;
            self.told.notify_one();
        }
        Ok(())
    }

    /// Whoever works under `lease` ends; it is released when nobody does.
    fn revoke(&self, lease: LeaseId) {
        let mut state = self.state();
        let jobs: Vec<Arc<Job>> = state.jobs.under(lease).cloned().collect();
        jobs.iter().for_each(|job| job.stop());
        if jobs.is_empty() {
            release(&mut state.released, lease);
            drop(state);
            self.news.notify_one();
        } else if state.leaving.iter().all(|(leaving, _)| *leaving != lease) {
            info!(%lease, jobs = jobs.len(), "notice: what works under it ends");
            state.leaving.push((lease, Instant::now()));
        }
    }

    /// Applies the newest snapshot whenever there is one, and tries again what could not be opened.
    async fn apply_for_ever(self: Arc<Follower>) {
        let mut failed = false;
        while self.daemon.strong_count() > 0 {
            let again = async {
                match failed {
                    true => tokio::time::sleep(AGAIN).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.told.notified() => {}
                () = again => {}
                () = tokio::time::sleep(DIAL_MAX) => continue,
            }
            let follower = Arc::clone(&self);
            let applied = tokio::task::spawn_blocking(move || follower.apply()).await;
            failed = !applied.unwrap_or(false);
        }
    }

    /// True when everything that was told is served.
    fn apply(&self) -> bool {
        let Some(daemon) = self.daemon.upgrade() else { return true };
        let _alone = self.alone();
        let (snapshot, frozen) = {
            let state = self.state();
            (state.shelf.book.snapshot.clone(), state.shelf.book.frozen.clone())
        };
        let Some(snapshot) = snapshot else { return true };
        let serving = placed::apply(&daemon, &self.settings.pools, &snapshot, &frozen);
        let whole = serving.failed.is_empty();
        let version = snapshot.version;
        for (volume, why) in &serving.failed {
            error!(%volume, "not served: {why}");
        }
        info!(%version, volumes = snapshot.volumes.len(), failed = serving.failed.len(), "the control plane's snapshot runs");
        self.state().serving = serving;
        self.news.notify_one();
        whole
    }

    fn begin(self: &Arc<Self>, instruction: Instruction, seq: u64) -> Result<(), BookError> {
        let key = instruction.key;
        let mut state = self.state();
        let found = self.settings.pools.iter().find(|(pool, _)| pool.name == instruction.pool);
        let place = found.map(|(_, directory)| placed::directory(directory, instruction.volume));
        if !state.shelf.is_new(key, instruction.volume, seq) {
            return Ok(());
        }
        // Without room for it nothing is written down: it is sent again while it is wanted.
        let Some((job, before)) = state.jobs.begin(&instruction) else { return Ok(()) };
        state.shelf.begin(key, instruction.volume, seq)?;
        drop(state);
        info!(%key, step = %instruction.step, volume = %instruction.volume, "begun");
        let follower = Arc::clone(self);
        let worker = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            before.iter().for_each(|job| job.wait_over());
            match place {
                None => Err(Failure::for_good(&format!("there is no pool {} here", instruction.pool))),
                Some(_) if job.is_stopped() => Err(Failure::again("it was stopped".to_owned())),
                Some(directory) => worker.carry_out(&instruction, &directory, &job),
            }
        });
        tokio::spawn(async move {
            // Also a bug ends it: what is under way for ever would hold its volume up for ever.
            let outcome = work.await.unwrap_or_else(|error| Err(Failure::again(error.to_string())));
            let done = match outcome {
                Ok(credits) => Done::Done { credits },
                Err(Failure { why, again }) => Done::Failed { why, again },
            };
            tokio::task::spawn_blocking(move || follower.end(key, done));
        });
        Ok(())
    }

    fn carry_out(
        &self,
        instruction: &Instruction,
        directory: &Path,
        job: &Job,
    ) -> Result<Option<Credits>, Failure> {
        let volume = instruction.volume;
        let served = self.state().serving.placed(volume).is_some();
        match instruction.step {
            NodeStep::Freeze => return self.freeze(instruction),
            NodeStep::Thaw => self.thaw(instruction),
            NodeStep::Resize => self.resize(instruction),
            NodeStep::Expand => self.expand(instruction, directory),
            NodeStep::CopyBulk | NodeStep::CopyDelta if served => {
                Err(Failure::again("it is served here".to_owned()))
            }
            NodeStep::CopyBulk => self.copy_bulk(instruction, directory, job),
            NodeStep::CopyDelta => self.copy_delta(instruction, job),
            NodeStep::Remove => {
                self.drop_copy(volume);
                steps::carry_out(instruction, directory, served, job)?;
                self.state().shelf.thaw(volume).map_err(Failure::book)
            }
            _ => steps::carry_out(instruction, directory, served, job),
        }?;
        Ok(None)
    }

    /// An open volume takes room by itself before it is short of any; this has it take some more.
    fn expand(&self, instruction: &Instruction, directory: &Path) -> Result<(), Failure> {
        let volume = instruction.volume;
        let name = self.state().serving.placed(volume).map(|placed| placed.name.to_string());
        let Some(name) = name else { return Err(Failure::again("it is not open here".to_owned())) };
        let daemon = self.daemon()?;
        daemon.expand(&name).map_err(|why| match why {
            ChangeError::Expand(Status::NoSpace) => steps::no_room(directory),
            other => Failure::again(other.to_string()),
        })
    }

    /// A volume grows with the snapshot that says so; this does it at once.
    fn resize(&self, instruction: &Instruction) -> Result<(), Failure> {
        {
            let mut state = self.state();
            let snapshot = state.shelf.book.snapshot.as_mut();
            let placed =
                snapshot.and_then(|all| all.volumes.iter_mut().find(|one| one.volume == instruction.volume));
            let Some(placed) = placed else {
                return Err(Failure::again("it is not served here".to_owned()));
            };
            placed.size_bytes = placed.size_bytes.max(instruction.size_bytes);
        }
        self.apply();
        match self.state().serving.failed.get(&instruction.volume) {
            None => Ok(()),
            Some(why) => Err(Failure::again(why.clone())),
        }
    }

    fn end(&self, key: InstructionKey, done: Done) {
        if let Done::Failed { why, .. } = &done {
            warn!(%key, "failed: {why}");
        }
        let mut state = self.state();
        state.jobs.end(key);
        if let Err(failure) = state.shelf.end(key, done) {
            error!("how {key} ended is not written down: {failure}");
        }
        let State { jobs, leaving, released, .. } = &mut *state;
        leaving.retain(|(lease, noticed)| {
            let works = jobs.under(*lease).next().is_some();
            if !works {
                let rested_us = noticed.elapsed().as_micros() as u64;
                info!(%lease, rested_us, "released: what worked under it rests");
                release(released, *lease);
            }
            works
        });
        drop(state);
        self.news.notify_one();
    }

    /// How things are now, whole with `figures`; `None` while the book is written.
    fn report(&self, figures: Option<figures::Read>) -> Option<NodeReport> {
        let whole = figures.is_some();
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let state = &mut *state;
        let volumes = match figures {
            Some(read) => {
                let frozen = &state.shelf.book.frozen;
                state.figures.volumes(read, &state.serving, frozen, self.settings.capacity)
            }
            None => Vec::new(),
        };
        let jobs = &state.jobs;
        let steps = state.shelf.reports(|key| {
            jobs.get(key).map_or(Done::Running { done_bytes: 0, total_bytes: 0 }, |job| job.progress())
        });
        Some(NodeReport {
            incarnation: self.incarnation,
            seq: self.next_report(),
            running: state.serving.version,
            utilisation_ppm: state.figures.utilisation_ppm(self.settings.capacity),
            whole,
            volumes,
            steps,
            conditions: state.figures.conditions(),
            released: state.released.iter().copied().collect(),
            refused: self.daemon.upgrade().map_or_else(Vec::new, |daemon| daemon.refused().to_vec()),
        })
    }

    /// That the node lives, and how things were.
    fn still(&self, last: &NodeReport) -> NodeReport {
        NodeReport { seq: self.next_report(), whole: false, volumes: Vec::new(), ..last.clone() }
    }

    fn next_report(&self) -> u64 {
        self.reports.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Remembers that nobody works under a lease; of the oldest the grace was over long ago.
fn release(released: &mut VecDeque<LeaseId>, lease: LeaseId) {
    if !released.contains(&lease) {
        released.truncate(RELEASED_MAX - 1);
        released.push_front(lease);
    }
}

/// What a task came to, once; without a task, never.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    let Some(running) = task else { return std::future::pending().await };
    let outcome = running.await;
    *task = None;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_that_it_lives_while_its_book_is_written() {
        let folder = std::env::temp_dir().join(format!("tidegate-follower-{}", std::process::id()));
        let settings = Settings {
            address: Address::Unix(folder.join("nobody.sock")),
            token: None,
            state: folder.clone(),
            name: "one".parse().unwrap(),
            capacity: Resources::NONE,
            pools: Vec::new(),
            addresses: Vec::new(),
        };
        let follower = Follower::of(settings, Weak::new()).unwrap();
        let first = follower.report(None).unwrap();
        let writes = follower.state();
        assert!(follower.report(None).is_none());
        assert_eq!(follower.introduction().incarnation, first.incarnation, "it can link meanwhile");
        let still = follower.still(&first);
        drop(writes);
        assert_eq!((still.seq, still.incarnation, still.whole), (first.seq + 1, first.incarnation, false));
        assert_eq!(follower.report(None).unwrap().seq, still.seq + 1);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
