//! A running node: its worker threads, its port keeper, and the handle by which the rest of the process
//! talks to them.
//!
//! Nothing here is on the path of a packet. The handle publishes snapshots, reads counters, asks for the
//! figures of volumes, and stops everything.

mod volumes;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use frame::{Backing, Consumer, Frame, IoSlab, Pool, Producer, Slab, ring};
use overlay::{NeighbourLimits, Neighbours, Tables};
use throttle::{PoolError, Shaper, ShaperConfig};
use trace::Tracer;
use tracing::{info, warn};

use crate::awake::{AwakeParams, Downstream, SourceTable, Stage1};
use crate::clock::{Clock, monotonic_ns};
use crate::counters::{Counters, CountersReader, CountersSnapshot};
use crate::gateway::{Gateway, RuleCount, STAGES};
use crate::idle::Ladder;
use crate::io::{Home, Io, Peer, PortSlot, Upstream};
use crate::keeper::{self, Kept, PortFailed, PortState, PortStates};
use crate::meeting::{Seat, meeting};
use crate::plan::{Plan, PlanError, PortRole, RING_FRAMES};
use crate::serve::{Moves, Server};
use crate::snapshot::{SharedPools, Snapshot, Throttle, Update};
use crate::wait::{WaitPoint, Waker};
use crate::worker::{Command, FIGURES_PER_TURN, Retired, VolumeFigures, Worker, WorkerDied};

/// Groups that a configuration may have.
pub const GROUPS_MAX: u32 = 4096;
/// Frames parked on one worker, at most.
pub const PARKED_FRAMES_MAX: u32 = 1 << 20;
/// Commands waiting for one worker, at most.
const COMMANDS: usize = 64;
/// Attachments that are numbered apart on the way between two workers (capability F8), at most. There is a
/// table for each pair of workers; what is beyond it shares one entry, which keeps a worker awake a little
/// oftener than it must.
pub const SOURCES_MAX: usize = 4096;

/// See the module's documentation. Dropping it stops the node.
pub struct Node {
    plan: Plan,
    slab: Arc<Slab>,
    workers: Vec<Handle>,
    keeper: Option<JoinHandle<()>>,
    reaper: Option<JoinHandle<()>>,
    states: PortStates,
    changes: Receiver<()>,
    deaths: Receiver<WorkerDied>,
    first_dead: Arc<AtomicUsize>,
    published: Mutex<Published>,
    traces: Mutex<Vec<trace::Reader>>,
    /// Which worker serves a volume.
    owners: Mutex<BTreeMap<u32, usize>>,
    /// Held while a volume is on its way.
    moving: Mutex<()>,
}

struct Handle {
    commands: Sender<Command>,
    waker: Waker,
    running: Arc<AtomicU64>,
    counters: CountersReader,
    thread: Option<JoinHandle<()>>,
}

struct Published {
    snapshot: Arc<Snapshot>,
    pools: SharedPools,
    served: SharedPools,
}

/// Why a snapshot was not published. Nothing has changed then, unless a worker has just died.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A pool of the node or of a group.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Versions only grow.
    #[error("version {offered} is not newer than version {running}, which is published")]
    Stale {
        /// The version offered.
        offered: u64,
        /// The version published last.
        running: u64,
    },
    /// A worker has ended.
    #[error("worker {0} has ended; restart the data plane")]
    WorkerGone(usize),
}

/// One direction between two workers, made before either exists.
struct Link {
    producer: Option<(Producer<Frame>, Stage1)>,
    consumer: Option<(Consumer<Frame>, Downstream)>,
}

impl Node {
    /// Starts the workers of `plan` with what `snapshot` says, and begins to open the ports.
    pub fn start(plan: Plan, snapshot: Snapshot) -> Result<Node, PlanError> {
        plan.check()?;
        let slab = Slab::new(plan.slab)?;
        match slab.backing() {
            Backing::Huge2M => info!(frames = slab.frames(), "frames live in hugepages"),
            Backing::Normal { .. } if !plan.slab.hugepages => {
                info!(frames = slab.frames(), "frames live in ordinary pages, as configured");
            }
            Backing::Normal { why } => warn!("frames live in ordinary pages: {why}"),
        }
        let io_slab = plan.serve.as_ref().map(|serve| IoSlab::new(serve.memory)).transpose()?;
        if let Some(Backing::Normal { why }) = io_slab.as_ref().map(|slab| slab.backing())
            && plan.serve.as_ref().is_some_and(|serve| serve.memory.hugepages)
        {
            warn!("payload memory lives in ordinary pages: {why}");
        }
        let count = plan.workers.len();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if let (_, Some(said)) = snapshot.idle.for_machine(count, cpus) {
            warn!("{said}");
        }
        let snapshot = Arc::new(snapshot);
        // What the workers begin with has no limits; the first update brings them.
        let bare = Arc::new(Snapshot {
            throttle: Throttle::default(),
            served: Throttle::default(),
            ..Snapshot::clone(&snapshot)
        });
        let (failures, failed) = unbounded();
        let (retired, retiring) = unbounded();
        let mut waits = Vec::with_capacity(count);
        for _ in 0..count {
            waits.push(WaitPoint::new().map_err(|error| PlanError::Io {
                what: "make a wait point",
                source: std::io::Error::other(error),
            })?);
        }
        let wakers: Vec<Waker> = waits.iter().map(WaitPoint::waker).collect();
        let mut links = mesh(count, sources(snapshot.tables.attachment_count()), snapshot.idle.awake());
        let (tell, told) = unbounded();
        let deaths = Deaths { tell, first: Arc::new(AtomicUsize::new(NOBODY)) };
        let first_dead = Arc::clone(&deaths.first);
        let mut builder = Builder {
            plan: &plan,
            slab: &slab,
            io_slab: io_slab.as_ref(),
            snapshot: &bare,
            cpus,
            failures,
            retired,
            deaths,
            traces: Vec::new(),
        };
        let mut workers = Vec::with_capacity(count);
        let parts = waits.into_iter().zip(meeting(count)).zip(Moves::between(&wakers));
        for (index, ((wait, seat), moves)) in parts.enumerate() {
            workers.push(builder.spawn(index, wait, &mut links, &wakers, seat, moves)?);
        }
        let traces = Mutex::new(std::mem::take(&mut builder.traces));
        drop(builder);
        let reaper = thread("tidegate-reaper", move || reap(&retiring))?;
        let (states, changes, keeper) = keep_ports(&plan, &slab, &workers, failed)?;
        let published = Mutex::new(Published {
            snapshot: bare,
            pools: SharedPools::default(),
            served: SharedPools::default(),
        });
        let keeper = Some(keeper);
        let node = Node {
            plan,
            slab,
            workers,
            keeper,
            reaper: Some(reaper),
            states,
            changes,
            deaths: told,
            first_dead,
            published,
            traces,
            owners: Mutex::default(),
            moving: Mutex::default(),
        };
        let first = Snapshot::clone(&snapshot);
        if let Err(error) = node.publish_as(first, true) {
            warn!("the first snapshot: {error}");
        }
        Ok(node)
    }

    /// Sends the workers what differs from the snapshot before. They go over to it between turns; see
    /// [`Node::running`].
    pub fn publish(&self, snapshot: Snapshot) -> Result<(), PublishError> {
        self.publish_as(snapshot, false)
    }

    fn publish_as(&self, snapshot: Snapshot, first: bool) -> Result<(), PublishError> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let running = published.snapshot.version;
        if snapshot.version <= running && !first {
            return Err(PublishError::Stale { offered: snapshot.version, running });
        }
        if let Some(worker) = self.dead() {
            return Err(PublishError::WorkerGone(worker));
        }
        let old = Arc::clone(&published.snapshot);
        let owners = self.plan.volume_owners();
        let now_ns = monotonic_ns();
        let pools = published.pools.update(now_ns, owners.len(), &old.throttle, &snapshot.throttle)?;
        // Any worker may serve.
        let served = published.served.update(now_ns, self.workers.len(), &old.served, &snapshot.served)?;
        let snapshot = Arc::new(snapshot);
        for (index, worker) in self.workers.iter().enumerate() {
            let owned = |volume: u32| owners[volume as usize % owners.len()] == index;
            let (volumes, removed) = snapshot.throttle.changed_volumes(&old.throttle, owned);
            let update = Update {
                snapshot: Arc::clone(&snapshot),
                pools: pools.clone(),
                served: served.clone(),
                volumes,
                removed,
            };
            worker.send(Command::Update(Box::new(update))).map_err(|()| PublishError::WorkerGone(index))?;
        }
        published.snapshot = snapshot;
        Ok(())
    }

    /// The snapshot published last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published.lock().unwrap_or_else(PoisonError::into_inner).snapshot)
    }

    /// The oldest version that a worker runs.
    pub fn running(&self) -> u64 {
        self.workers.iter().map(|worker| worker.running.load(Ordering::Acquire)).min().unwrap_or(0)
    }

    /// Waits until every worker runs `version`. False when that took longer than `limit`, or when a worker
    /// has died.
    pub fn wait_running(&self, version: u64, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.running() < version {
            if Instant::now() > until || self.dead().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// A worker that has died, if one has; [`Node::deaths`] says of what.
    pub fn dead(&self) -> Option<usize> {
        Some(self.first_dead.load(Ordering::Acquire)).filter(|worker| *worker != NOBODY)
    }

    /// What it was started with.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where its frames live.
    pub fn backing(&self) -> &Backing {
        self.slab.backing()
    }

    /// The counters of each worker, as of the end of one of its turns.
    pub fn counters(&self) -> Vec<CountersSnapshot> {
        self.workers.iter().filter_map(|worker| worker.counters.snapshot()).collect()
    }

    /// The states of the ports, in the order of the plan.
    pub fn port_states(&self) -> Vec<PortState> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Receives something whenever a port came up or went.
    pub fn port_changes(&self) -> &Receiver<()> {
        &self.changes
    }

    /// Receives the end of every worker that nobody asked to end. Stop the node then, and start another one.
    pub fn deaths(&self) -> &Receiver<WorkerDied> {
        &self.deaths
    }

    /// Figures of volumes, from the workers that own them. Volumes of a worker that does not answer within
    /// a second are missing.
    pub fn volumes(&self, volumes: &[u32]) -> Vec<VolumeFigures> {
        let owners = self.plan.volume_owners();
        let mut figures = Vec::with_capacity(volumes.len());
        for (place, owner) in owners.iter().enumerate() {
            let owned: Vec<u32> =
                volumes.iter().copied().filter(|v| *v as usize % owners.len() == place).collect();
            for some in owned.chunks(FIGURES_PER_TURN) {
                let some = some.to_vec();
                if let Some(answer) =
                    self.workers[*owner].ask(|reply| Command::Volumes { volumes: some, reply })
                {
                    figures.extend(answer);
                }
            }
        }
        figures
    }

    /// Counts of rules in the order of the configuration, summed over the workers.
    pub fn rules(&self) -> Vec<RuleCount> {
        let mut sums: Vec<RuleCount> = vec![RuleCount::default(); self.snapshot().tables.rule_count()];
        for worker in &self.workers {
            let mut first = 0;
            while first < sums.len() {
                let Some(counts) = worker.ask(|reply| Command::Rules { first, reply }) else { break };
                if counts.is_empty() {
                    break;
                }
                for (sum, count) in sums[first..].iter_mut().zip(&counts) {
                    sum.frames = sum.frames.wrapping_add(count.frames);
                    sum.bytes = sum.bytes.wrapping_add(count.bytes);
                }
                first += counts.len();
            }
        }
        sums
    }

    /// Stops the workers and waits for them: ports are closed, frames given back. Returns the last counters.
    pub fn stop(mut self) -> Vec<CountersSnapshot> {
        self.end();
        self.counters()
    }

    fn end(&mut self) {
        for worker in &self.workers {
            // A worker that has ended needs no telling.
            let _ = worker.send(Command::Stop);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // What it panicked of was told by its death.
                let _ = thread.join();
            }
        }
        for helper in [self.keeper.take(), self.reaper.take()].into_iter().flatten() {
            if helper.join().is_err() {
                warn!("a helper thread panicked");
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

impl Handle {
    fn send(&self, command: Command) -> Result<(), ()> {
        self.commands.send(command).map_err(drop)?;
        self.waker.wake();
        Ok(())
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        self.ask_for(Duration::from_secs(1), command)
    }

    fn ask_for<T>(&self, patience: Duration, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = bounded(1);
        self.send(command(reply)).ok()?;
        answer.recv_timeout(patience).ok()
    }
}

/// Room for the sources of a configuration with so many attachments, and for as many that reloads may add.
fn sources(attachments: usize) -> usize {
    attachments.saturating_mul(2).clamp(16, SOURCES_MAX)
}

/// Rings and awake tables from every worker to every other: `[from][to]`.
fn mesh(count: usize, sources: usize, awake: AwakeParams) -> Vec<Vec<Link>> {
    let link = |from: usize, to: usize| {
        if from == to {
            return Link { producer: None, consumer: None };
        }
        let (producer, consumer) = ring(RING_FRAMES);
        let (stage, downstream) = SourceTable::new(sources, awake);
        Link { producer: Some((producer, stage)), consumer: Some((consumer, downstream)) }
    };
    (0..count).map(|from| (0..count).map(|to| link(from, to)).collect()).collect()
}

/// What every worker is made from.
struct Builder<'a> {
    plan: &'a Plan,
    slab: &'a Arc<Slab>,
    io_slab: Option<&'a Arc<IoSlab>>,
    snapshot: &'a Arc<Snapshot>,
    cpus: usize,
    failures: Sender<PortFailed>,
    retired: Sender<Retired>,
    deaths: Deaths,
    traces: Vec<trace::Reader>,
}

/// How a worker that dies says so.
#[derive(Clone)]
struct Deaths {
    tell: Sender<WorkerDied>,
    /// Number of one that died, [`NOBODY`] while all live.
    first: Arc<AtomicUsize>,
}

const NOBODY: usize = usize::MAX;

/// The life of a worker: until it is told to stop, or dies of something that nobody expected. Then the others
/// go on until the node's owner, who is told, stops the node; what this one still holds goes with them.
fn live(index: usize, mut worker: Worker, deaths: &Deaths) {
    // Nothing of a worker is shared but what is made for it, so a panic leaves no half-done state to others.
    let why = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure.to_string()),
        Err(panic) => Some(words(&*panic)),
    };
    if let Some(why) = why {
        deaths.first.store(index, Ordering::Release);
        // Without a receiver the node is stopping.
        let _ = deaths.tell.send(WorkerDied { worker: index, why });
    }
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.stop())) {
        warn!(worker = index, "stopping was cut short: {}", words(&*panic));
    }
}

impl Builder<'_> {
    fn spawn(
        &mut self,
        index: usize,
        wait: WaitPoint,
        links: &mut [Vec<Link>],
        wakers: &[Waker],
        seat: Seat,
        moves: Moves,
    ) -> Result<Handle, PlanError> {
        let (commands, taking) = bounded(COMMANDS);
        let running = Arc::new(AtomicU64::new(0));
        let waker = wait.waker();
        let io = self.io(index, links, wakers);
        let counters = io.counters.reader();
        let upstreams = links
            .iter_mut()
            .filter_map(|row| row[index].consumer.take())
            .map(|(ring, awake)| Upstream { ring, awake })
            .collect();
        let now_ns = monotonic_ns();
        let workers = self.plan.workers.len();
        let server = self.server(index, moves, now_ns);
        let worker = Worker {
            pool: Pool::new(self.slab),
            gateway: self.gateway(index, io.ports.len(), now_ns),
            io,
            upstreams,
            snapshot: Arc::clone(self.snapshot),
            ladder: Ladder::new(self.snapshot.idle.for_machine(workers, self.cpus).0, now_ns),
            clock: Clock::new(),
            wait,
            commands: taking,
            failures: self.failures.clone(),
            retired: self.retired.clone(),
            running: Arc::clone(&running),
            workers,
            cpus: self.cpus,
            pending: None,
            turns_to_command: 0,
            server,
            meeting: seat,
        };
        let (cpu, deaths) = (self.plan.workers[index].cpu, self.deaths.clone());
        let thread = thread(&format!("tidegate-w{index}"), move || {
            prepare(index, cpu);
            live(index, worker, &deaths);
        })?;
        Ok(Handle { commands, waker, running, counters, thread: Some(thread) })
    }

    fn server(&mut self, index: usize, moves: Moves, now_ns: u64) -> Option<Server> {
        let (plan, slab) = self.plan.serve.as_ref().zip(self.io_slab)?;
        let (writer, reader) = trace::ring(plan.trace_records);
        self.traces.push(reader);
        // INVARIANT: there are at most 64 workers.
        Some(Server::new(slab, plan, Tracer::new(index as u8, writer), moves, now_ns))
    }

    fn io(&self, index: usize, links: &mut [Vec<Link>], wakers: &[Waker]) -> Io {
        let ports: Vec<PortSlot> = self
            .plan
            .ports
            .iter()
            .enumerate()
            .filter(|(_, port)| port.worker == index)
            .map(|(plan_index, port)| PortSlot::new(port.id, plan_index, port.role))
            .collect();
        let numbers = self.plan.ports.iter().map(|port| usize::from(port.id.0) + 1).max().unwrap_or(0);
        let mut homes = vec![Home::Nowhere; numbers];
        for port in self.plan.ports.iter().rev() {
            let home = &mut homes[usize::from(port.id.0)];
            if !matches!(home, Home::Here(_)) {
                *home = match ports.iter().position(|slot| slot.id == port.id) {
                    Some(slot) => Home::Here(slot),
                    None => Home::There(port.worker),
                };
            }
        }
        let mut sharers = vec![Vec::new(); numbers];
        for port in self.plan.ports.iter().filter(|port| port.role == PortRole::Underlay) {
            if port.worker != index && matches!(homes[usize::from(port.id.0)], Home::Here(_)) {
                sharers[usize::from(port.id.0)].push(port.worker);
            }
        }
        let peers = links[index]
            .iter_mut()
            .zip(wakers)
            .map(|(link, waker)| {
                link.producer.take().map(|(ring, stage)| Peer::new(ring, waker.clone(), stage))
            })
            .collect();
        Io {
            ports,
            homes,
            sharers,
            peers,
            counters: Counters::new(STAGES, numbers),
            trap_port: self.plan.trap_port,
            ports_counted_ns: 0,
            waiting: 0,
        }
    }

    fn gateway(&self, index: usize, ports: usize, now_ns: u64) -> Gateway {
        let owners = self.plan.volume_owners();
        // A worker that owns no volume meters none.
        let volumes_max = if owners.contains(&index) { self.plan.volumes_max } else { 0 };
        let config =
            ShaperConfig { volumes_max, groups_max: GROUPS_MAX, parked_items_max: self.parked_max() };
        let tables: &Tables = &self.snapshot.tables;
        let neighbours = Neighbours::new(tables, NeighbourLimits::default());
        let shaper = Shaper::new(config, now_ns);
        Gateway::new(shaper, neighbours, tables, owners, index, ports, volumes_max)
    }

    /// No more can wait than there are frames.
    fn parked_max(&self) -> u32 {
        (self.slab.frames() + self.slab.jumbo_frames()).min(PARKED_FRAMES_MAX)
    }
}

/// On the worker's own thread, before its first turn.
fn prepare(index: usize, cpu: Option<usize>) {
    if let Some(id) = cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        warn!(
            worker = index,
            cpu = id,
            "cannot pin to this processor; `nproc` and `taskset -p $$` tell which are allowed"
        );
    }
    if !WaitPoint::prepare_thread() {
        warn!(worker = index, "the kernel keeps its timer slack: timed waits may end 50 us late");
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_else(|| "without words".to_owned()))
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, PlanError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|source| PlanError::Io { what: "start a thread", source })
}

/// Frees what workers no longer need, away from their cores.
fn reap(retiring: &Receiver<Retired>) {
    for retired in retiring {
        drop(retired);
        frame::trim_heap();
    }
}

type Keeping = (PortStates, Receiver<()>, JoinHandle<()>);

fn keep_ports(
    plan: &Plan,
    slab: &Arc<Slab>,
    workers: &[Handle],
    failed: Receiver<PortFailed>,
) -> Result<Keeping, PlanError> {
    let kept: Vec<Kept> = plan
        .ports
        .iter()
        .enumerate()
        .map(|(plan_index, port)| {
            let (commands, waker) =
                (workers[port.worker].commands.clone(), workers[port.worker].waker.clone());
            Kept {
                name: port.name.clone(),
                spec: port.spec.clone(),
                hand_over: Box::new(move |port| {
                    let sent = commands.send(Command::PortUp { plan_index, port }).is_ok();
                    waker.wake();
                    sent
                }),
            }
        })
        .collect();
    let waiting = PortState::Down { why: "not opened yet".to_owned() };
    let states: PortStates = Arc::new(Mutex::new(vec![waiting; plan.ports.len()]));
    let (changed, changes) = bounded(1);
    let (slab, shared) = (Arc::clone(slab), Arc::clone(&states));
    let keeper = thread("tidegate-ports", move || keeper::run(&kept, &slab, &failed, &shared, &changed))?;
    Ok((states, changes, keeper))
}

#[cfg(test)]
mod tests;
