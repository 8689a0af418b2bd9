//! One worker: one pinned thread, one loop.
//!
//! A turn is: read the clock once; take commands; poll ports; poll the rings of other workers; do what time
//! brings; flush; count; decide whether to go on at once, pause or sleep. Everything in a turn happens at
//! the same instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::VolumeId;
use crossbeam_channel::{Receiver, Sender, TryRecvError, never};
use frame::{BATCH, DropReason, Pool};
use media::{Attached, FaultSpec};
use overlay::PortId;
use port::Port;
use session::nvme_tcp::Access;
use throttle::{Limits, Saved};
use tracing::warn;

use crate::awake::AwakeHint;
use crate::clock::Clock;
use crate::gateway::{Gateway, RuleCount};
use crate::idle::{Ladder, Rung, TurnOutcome};
use crate::io::{Io, Upstream};
use crate::keeper::PortFailed;
use crate::meeting::Seat;
use crate::plan::PortRole;
use crate::serve::{Arrival, Leave, MoveReply, Reply, ServedFigures, Server, Target, TargetError};
use crate::snapshot::{Snapshot, Update};
use crate::wait::{WaitEnd, WaitError, WaitPoint};

/// Volumes whose limits change in one turn, at most: a large update must not delay packets.
const CHANGES_PER_TURN: usize = 64;
/// Volumes whose figures are copied in one turn, at most.
pub(crate) const FIGURES_PER_TURN: usize = 256;
/// Turns between two looks at the command channel while there is work.
const COMMAND_TURNS: u32 = 32;

/// From other threads to a worker.
pub(crate) enum Command {
    /// Go over to a new snapshot.
    Update(Box<Update>),
    /// Poll this port from now on.
    PortUp { plan_index: usize, port: Box<dyn Port> },
    /// Copy figures of volumes, at most [`FIGURES_PER_TURN`] of them.
    Volumes { volumes: Vec<u32>, reply: Sender<Vec<VolumeFigures>> },
    /// Copy the counts of rules from `first` on, at most [`FIGURES_PER_TURN`] of them.
    Rules { first: usize, reply: Sender<Vec<RuleCount>> },
    /// Serve a volume, with its directory if it is in files.
    Serve {
        target: Box<Target>,
        files: Option<Attached>,
        limits: Box<Limits>,
        reply: Sender<Result<(), TargetError>>,
    },
    /// Take a connection.
    Connect(Box<Arrival>),
    /// Change what a served volume may do.
    Limit { volume: VolumeId, limits: Box<Limits> },
    /// Follow one in so many requests of a served volume.
    Sample { volume: VolumeId, one_in: u32 },
    /// Have things go wrong at the medium of a served volume.
    Faults { volume: VolumeId, spec: Box<FaultSpec> },
    /// Make a served volume larger.
    Grow { volume: VolumeId, blocks: u64, reply: Reply<()> },
    /// Have a served volume take room ahead.
    Expand { volume: VolumeId, reply: Reply<()> },
    /// Hold the I/O of a served volume.
    Freeze { volume: VolumeId, durable: bool, reply: Reply<Saved> },
    /// Go on with it.
    Thaw { volume: VolumeId, reply: Reply<()> },
    /// Let a served volume go.
    Leave { volume: VolumeId, leave: Leave, reply: Reply<Target> },
    /// Say how NVMe hosts reach a served volume.
    Access { volume: VolumeId, access: Access, reply: Reply<()> },
    /// Hand a served volume over to another worker.
    Move { volume: VolumeId, to: usize, reply: MoveReply },
    /// Copy figures of the served volumes.
    Served { reply: Sender<Vec<ServedFigures>> },
    /// Close everything and end.
    Stop,
}

/// What a worker knows about a volume at one instant.
#[derive(Clone, Copy, Debug)]
pub struct VolumeFigures {
    /// Its number.
    pub volume: u32,
    /// That instant, ns of the monotonic clock: the beginning of a turn of its worker.
    pub at_ns: u64,
    /// Counters since it was set up.
    pub counters: throttle::VolumeCounters,
    /// Balances now.
    pub balance: throttle::VolumeBalance,
}

/// A worker has ended although nobody asked it to. The node does not go on without it: its ports are not
/// polled and what its volumes wait for never comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerDied {
    /// Which.
    pub worker: usize,
    /// What it died of.
    pub why: String,
}

/// What workers send away to be freed elsewhere.
pub(crate) type Retired = (Arc<Snapshot>, Option<Box<Update>>);

/// An update under way: its volumes from `next` on are still to be set.
pub(crate) struct Pending {
    update: Box<Update>,
    next: usize,
}

pub(crate) struct Worker {
    pub pool: Pool,
    pub io: Io,
    pub gateway: Gateway,
    pub upstreams: Vec<Upstream>,
    pub snapshot: Arc<Snapshot>,
    pub ladder: Ladder,
    pub clock: Clock,
    pub wait: WaitPoint,
    pub commands: Receiver<Command>,
    pub failures: Sender<PortFailed>,
    pub retired: Sender<Retired>,
    /// The version that this worker runs.
    pub running: Arc<AtomicU64>,
    /// Workers and processors of this machine: what idle parameters are held to.
    pub workers: usize,
    pub cpus: usize,
    pub pending: Option<Pending>,
    pub turns_to_command: u32,
    /// What it serves, if the node serves volumes.
    pub server: Option<Server>,
    /// Where all workers meet before the rings between them are emptied for good.
    pub meeting: Seat,
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Stop,
}

impl Worker {
    /// Runs until [`Command::Stop`] or until every sender of commands is gone. [`Worker::stop`] must follow.
    pub fn run(&mut self) -> Result<(), WaitError> {
        if let Some(server) = &mut self.server {
            server.warm_up(&mut self.wait);
        }
        loop {
            let now_ns = self.clock.turn();
            self.gateway.now_ns = now_ns;
            let mut work = 0;
            if self.turns_to_command == 0 || self.pending.is_some() {
                match self.take_commands(now_ns, &mut work) {
                    Flow::On => {}
                    Flow::Stop => return Ok(()),
                }
            }
            work += self.turn();
            if let Some(server) = &mut self.server {
                work += server.turn(&self.clock.stopwatch(), &mut self.wait)?;
            }
            self.turns_to_command =
                if work == 0 { 0 } else { self.turns_to_command.checked_sub(1).unwrap_or(COMMAND_TURNS) };
            self.count(now_ns, work);
            self.idle(now_ns, work)?;
        }
    }

    /// Polls everything once. Returns how many frames moved.
    #[inline]
    fn turn(&mut self) -> usize {
        let tables = &self.snapshot.tables;
        let mut work = 0;
        for slot in 0..self.io.ports.len() {
            work += self.gateway.process_port(&mut self.pool, &mut self.io, tables, slot);
        }
        for upstream in &mut self.upstreams {
            for _ in 0..BATCH {
                let Some(frame) = upstream.ring.pop() else { break };
                let meta = self.pool.meta(&frame);
                let (source, id) = (meta.source, meta.id);
                self.gateway.process_handed(&mut self.pool, &mut self.io, tables, frame);
                upstream.awake.completed(self.gateway.now_ns, source, id);
                work += 1;
            }
        }
        work += self.gateway.tick(&mut self.pool, &mut self.io, tables);
        self.io.flush(&mut self.pool);
        self.close_failed();
        work
    }

    #[inline]
    fn count(&mut self, now_ns: u64, work: usize) {
        let in_flight = (self.gateway.held() + self.io.queued()) as u64;
        let turn = &mut self.io.counters.turn;
        turn.parked = u64::from(self.gateway.shaper.parked().items);
        turn.merged = self.gateway.merged();
        turn.in_flight = in_flight;
        self.io.end_turn(now_ns, work > 0, self.ladder.times());
    }

    /// Spins, pauses or sleeps, as the ladder says.
    #[inline]
    fn idle(&mut self, now_ns: u64, work: usize) -> Result<(), WaitError> {
        let outcome =
            TurnOutcome { work, deadline_ns: self.next_deadline_ns(), must_poll: self.io.must_poll() };
        let upstreams = &mut self.upstreams;
        let rung = self.ladder.step(now_ns, outcome, || crate::io::awake_hint(upstreams, now_ns));
        match rung {
            Rung::Spin => {}
            Rung::Pause => crate::idle::pause(),
            Rung::Sleep { timeout_ns } => self.sleep(now_ns, timeout_ns)?,
        }
        Ok(())
    }

    #[inline]
    fn next_deadline_ns(&self) -> Option<u64> {
        let served = self.server.as_ref().and_then(Server::next_deadline_ns);
        self.gateway.next_deadline_ns().into_iter().chain(served).min()
    }

    #[cold]
    fn sleep(&mut self, now_ns: u64, timeout_ns: u64) -> Result<(), WaitError> {
        self.gateway.shaper.return_quanta(now_ns);
        self.io.publish(now_ns, self.ladder.times());
        self.io.arm();
        let (io, upstreams, commands) = (&self.io, &mut self.upstreams, &self.commands);
        let server = &self.server;
        let found = || {
            io.has_input()
                || server.as_ref().is_some_and(Server::has_work)
                || !commands.is_empty()
                || upstreams.iter().any(|up| !up.ring.is_empty())
                || crate::io::awake_hint(upstreams, now_ns) != AwakeHint::MayIdle
        };
        let end = self.wait.block(Some(timeout_ns), found)?;
        self.turns_to_command = 0;
        if let Some(server) = &mut self.server {
            server.ready(self.wait.ready());
        }
        let slept = end != WaitEnd::FoundWork;
        self.ladder.woke(self.clock.turn(), slept, end == WaitEnd::Woken);
        Ok(())
    }

    fn take_commands(&mut self, now_ns: u64, work: &mut usize) -> Flow {
        if self.pending.is_some() {
            self.go_on_updating(now_ns);
            *work += 1;
            return Flow::On;
        }
        let command = match self.commands.try_recv() {
            Ok(command) => command,
            Err(TryRecvError::Empty) => return Flow::On,
            Err(TryRecvError::Disconnected) => return Flow::Stop,
        };
        *work += 1;
        match command {
            Command::Update(update) => {
                self.begin_update(now_ns, update);
            }
            Command::PortUp { plan_index, port } => self.port_up(plan_index, port),
            Command::Volumes { volumes, reply } => {
                let figures = volumes.iter().take(FIGURES_PER_TURN).filter_map(|&v| self.figures(now_ns, v));
                // Whoever asked may have given up.
                let _ = reply.send(figures.collect());
            }
            Command::Rules { first, reply } => {
                let rules = self.gateway.rules.iter().skip(first).take(FIGURES_PER_TURN);
                let _ = reply.send(rules.copied().collect());
            }
            Command::Serve { target, files, limits, reply } => {
                let _ = reply.send(self.serve(now_ns, *target, files, &limits));
            }
            Command::Connect(arrival) => {
                if let Some(server) = &mut self.server {
                    server.connect(now_ns, *arrival, &mut self.wait);
                }
            }
            Command::Limit { volume, limits } => {
                if let Some(server) = &mut self.server {
                    server.set_limits(now_ns, volume, &limits);
                }
            }
            Command::Faults { volume, spec } => {
                if let Some(server) = &mut self.server {
                    server.set_faults(volume, &spec);
                }
            }
            Command::Sample { volume, one_in } => {
                if let Some(server) = &mut self.server {
                    server.set_sampling(volume, one_in);
                }
            }
            Command::Grow { volume, blocks, reply } => {
                if let Some(server) = &mut self.server {
                    server.grow(now_ns, volume, blocks, reply);
                }
            }
            Command::Expand { volume, reply } => {
                if let Some(server) = &mut self.server {
                    server.expand(now_ns, volume, reply);
                }
            }
            Command::Freeze { volume, durable, reply } => {
                if let Some(server) = &mut self.server {
                    server.freeze(now_ns, volume, durable, reply);
                }
            }
            Command::Thaw { volume, reply } => {
                if let Some(server) = &mut self.server {
                    let _ = reply.send(server.thaw(volume));
                }
            }
            Command::Leave { volume, leave, reply } => {
                if let Some(server) = &mut self.server {
                    server.leave(now_ns, volume, leave, reply);
                }
            }
            Command::Access { volume, access, reply } => {
                if let Some(server) = &mut self.server {
                    let _ = reply.send(server.set_access(volume, access));
                }
            }
            Command::Move { volume, to, reply } => {
                if let Some(server) = &mut self.server {
                    server.hand_over(now_ns, volume, to, reply);
                }
            }
            Command::Served { reply } => {
                let _ = reply.send(self.server.as_ref().map_or_else(Vec::new, |s| s.figures(now_ns)));
            }
            Command::Stop => return Flow::Stop,
        }
        Flow::On
    }

    fn serve(
        &mut self,
        now_ns: u64,
        target: Target,
        files: Option<Attached>,
        limits: &Limits,
    ) -> Result<(), TargetError> {
        let server = self.server.as_mut().ok_or(TargetError::WorkerGone)?;
        let volume = target.volume();
        server.add(target, files, &mut self.wait)?;
        server.set_limits(now_ns, volume, limits);
        Ok(())
    }

    fn figures(&self, now_ns: u64, volume: u32) -> Option<VolumeFigures> {
        let counters = self.gateway.shaper.counters(volume)?;
        let balance = self.gateway.shaper.balances(now_ns, volume)?;
        Some(VolumeFigures { volume, at_ns: now_ns, counters, balance })
    }

    /// Pools and idle parameters at once, volumes in slices, tables last: a volume has its limits before
    /// the tables name it.
    fn begin_update(&mut self, now_ns: u64, update: Box<Update>) {
        update.pools.apply(now_ns, &mut self.gateway.shaper);
        if let Some(server) = &mut self.server {
            server.set_pools(now_ns, &update.served);
        }
        let (idle, _said_at_start) = update.snapshot.idle.for_machine(self.workers, self.cpus);
        self.ladder.set_params(idle);
        for upstream in &mut self.upstreams {
            upstream.awake.set_params(idle.awake());
        }
        self.pending = Some(Pending { update, next: 0 });
        self.go_on_updating(now_ns);
    }

    fn go_on_updating(&mut self, now_ns: u64) {
        let Some(mut pending) = self.pending.take() else { return };
        let slice = pending.update.volumes.iter().skip(pending.next).take(CHANGES_PER_TURN);
        for (volume, limits) in slice {
            if let Err(refused) = self.gateway.shaper.set_volume(now_ns, *volume, limits) {
                warn!(volume, "volume limits: {refused}");
            }
        }
        pending.next += CHANGES_PER_TURN;
        if pending.next < pending.update.volumes.len() {
            self.pending = Some(pending);
        } else {
            self.end_update(pending.update);
        }
    }

    fn end_update(&mut self, update: Box<Update>) {
        for volume in &update.removed {
            let (pool, io) = (&mut self.pool, &mut self.io);
            self.gateway.shaper.remove_volume(*volume, &mut |released| {
                io.discard(pool, released.item, DropReason::RuleGone);
            });
        }
        let old = std::mem::replace(&mut self.snapshot, Arc::clone(&update.snapshot));
        self.gateway.volumes_limited = self.snapshot.throttle.volumes.len();
        if !Arc::ptr_eq(&old.tables, &self.snapshot.tables) {
            self.gateway.rebase(&self.snapshot.tables);
            for slot in 0..self.io.ports.len() {
                self.set_peers(slot);
            }
        }
        self.running.store(self.snapshot.version, Ordering::Release);
        // Freed by the receiver, away from this core; if it is gone the node is stopping.
        let _ = self.retired.send((old, Some(update)));
    }

    fn set_peers(&mut self, slot: usize) {
        let out = &mut self.io.ports[slot];
        if out.role == PortRole::Underlay
            && let Some(port) = out.port.as_mut()
        {
            port.set_peers(&self.snapshot.tables.peers(PortId(out.id.0)));
        }
    }

    fn port_up(&mut self, plan_index: usize, port: Box<dyn Port>) {
        let Some(slot) = self.io.ports.iter().position(|slot| slot.plan_index == plan_index) else {
            return port.close(&mut self.pool);
        };
        if let Some(fd) = port.wait_fd()
            && let Err(failure) = self.wait.add(fd, slot as u32)
        {
            let failed = PortFailed { plan_index, why: failure.to_string() };
            port.close(&mut self.pool);
            // Without a keeper nobody opens ports any more: the node is stopping.
            let _ = self.failures.send(failed);
            return;
        }
        self.io.ports[slot].must_poll = port.wait_fd().is_none();
        self.io.ports[slot].caps = Some(port.caps());
        self.io.ports[slot].port = Some(port);
        self.set_peers(slot);
    }

    #[inline]
    fn close_failed(&mut self) {
        if self.io.ports.iter().any(|slot| slot.failed.is_some()) {
            self.close_failed_now();
        }
    }

    #[cold]
    fn close_failed_now(&mut self) {
        for slot in 0..self.io.ports.len() {
            let Some(failure) = self.io.ports[slot].failed.take() else { continue };
            self.close(slot);
            let failed = PortFailed { plan_index: self.io.ports[slot].plan_index, why: failure.to_string() };
            let _ = self.failures.send(failed);
        }
    }

    fn close(&mut self, slot: usize) {
        if let Some(fd) = self.io.ports[slot].port.as_ref().and_then(|port| port.wait_fd())
            && let Err(failure) = self.wait.remove(fd)
        {
            warn!("{failure}");
        }
        self.io.close(&mut self.pool, slot);
    }

    /// Nothing stays behind: what waits is dropped and counted, ports are closed.
    pub fn stop(mut self) {
        // Nobody waits for an answer any more, and a port that was just opened is closed.
        let late = std::mem::replace(&mut self.commands, never());
        for command in late.try_iter() {
            if let Command::PortUp { port, .. } = command {
                port.close(&mut self.pool);
            }
        }
        drop(late);
        // After this nobody hands frames over any more.
        self.meeting.meet();
        let (pool, io) = (&mut self.pool, &mut self.io);
        for volume in 0..self.gateway.volumes() {
            self.gateway.shaper.remove_volume(volume, &mut |released| {
                io.discard(pool, released.item, DropReason::Shutdown);
            });
        }
        self.gateway.neighbours.drain(&mut |frame| io.discard(pool, frame, DropReason::Shutdown));
        for upstream in &mut self.upstreams {
            while let Some(frame) = upstream.ring.pop() {
                io.counters.turn.rx += 1;
                io.discard(pool, frame, DropReason::Shutdown);
            }
        }
        for slot in 0..self.io.ports.len() {
            self.close(slot);
        }
        let now_ns = self.clock.turn();
        if let Some(server) = self.server.take() {
            server.stop(now_ns);
        }
        self.count(now_ns, 0);
        self.io.publish(now_ns, self.ladder.times());
    }
}
