//! Serving volumes: what a worker does besides packets.
//!
//! ```text
//! socket -> session -> credits -> volume -> medium
//! socket <- session <------------ volume <- medium
//! ```
//!
//! A worker owns volumes and the connections that came for them (decision D6); both arrive as values, a
//! connection with its handshake done. An NVMe host's belongs to the subsystem, which may have several volumes. A turn is: see which sockets are ready; hand out credits; receive on
//! the connections that are hot; give their I/Os to the volumes; carry on at the media; answer. A connection
//! has at most one receive and one send per turn, and one that is silent costs nothing until the kernel says
//! otherwise (decision D5).
//!
//! Credits are asked before a command leaves its session, so a host over its limit sees a slow queue. Each
//! connection waits with one ticket in the shaper; when that is paid for, the command that it stands for
//! goes first. The ticket of a client that goes is taken back unpaid.
//!
//! Payload memory and places for connections are shared by one rule: what a volume's clients have of them grows only
//! while more than that is left. However many clients one volume has, another finds room (Choudhury and
//! Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
//!
//! Invariants: every I/O that a session handed out is answered to it, also when its client is gone; what a
//! client holds of memory and of requests is bounded by its session; a turn receives from and answers a bounded
//! number of connections, which take turns; nothing here waits.

mod change;
mod changed;
mod connection;
mod figures;
mod follow;
mod freeze;
mod hands;
mod homes;
mod moving;
mod pump;
mod session;
mod stream;
mod target;

use std::collections::VecDeque;
use std::sync::Arc;

use ::session::nvme_tcp::{Access, Subsystem};
use block::{IO_BYTES_MAX, Io, Lba, Op, Tag, TraceId, VolumeId};
use frame::{IO_REGION_BYTES, IoBuffer, IoPool, IoShare, IoSlab, IoSlabConfig};
use media::{Attached, FaultSpec, FileMedia, Media};
use throttle::{Limits, ParkLimits, Shaper, ShaperConfig};
use trace::Tracer;
use tracing::{debug, warn};

use crate::clock::Stopwatch;
use crate::node::GROUPS_MAX;
use crate::snapshot::ChangedPools;
use crate::wait::{WaitError, WaitPoint};

pub(crate) use self::change::Reply;
use self::change::is_held_up;
pub use self::change::{ChangeError, Leave};
pub use self::figures::ServedFigures;
pub use self::session::Guest;
use self::session::Session;
pub use connection::Arrival;
use connection::{Ask, Connection, Received};
use follow::Stamp;
use hands::Hands;
pub use moving::{MoveError, Moved};
pub(crate) use moving::{Moves, Reply as MoveReply};
pub use stream::Stream;
pub use target::{Target, TargetCounters, TargetError};

/// Volumes that one worker can serve: one token in the shaper each.
pub const SERVED_MAX: u32 = 65_536;
/// Connections per worker, at most.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// The part of payload memory that is kept for what volumes need to end what was begun: their log, map and edges.
const HELD_BACK: u32 = 8;
/// The part of it that a connection may hold and take more while it waits for credits; at most so many bytes.
const WAITING: usize = 64;
const WAITING_BYTES_MAX: usize = 8 << 20;
/// Bytes that are received at once.
const RECEIVE_BYTES: usize = 256 << 10;
/// Connections that a turn receives from, and that it answers.
const TURN_CONNECTIONS: usize = 32;
/// Tickets that a turn lets go.
const TURN_TICKETS: usize = 256;
/// Sockets found empty that a turn tries again. A few clients are heard soonest that way; of many, the wait point
/// knows with one system call who has said something.
const TURN_TRIES: u32 = 4;
/// Turns between two looks at sockets that are silent, while there is work.
const LOOK_TURNS: u32 = 16;
/// Turns that look at them each, after one was left without a try.
const CROWDED_TURNS: u32 = 64;
/// Time between two looks at clients that stopped in the middle of a message.
const EXPIRE_NS: u64 = 1_000_000_000;
/// Names of descriptors at the wait point; ports have the numbers below.
const FILES_TOKEN: u32 = 1 << 20;
const FIRST_TOKEN: u32 = FILES_TOKEN + 1;

/// What serving needs of memory.
#[derive(Clone, Copy, Debug)]
pub struct ServePlan {
    /// Payload memory of the whole process.
    pub memory: IoSlabConfig,
    /// Connections per worker, at most [`CONNECTIONS_MAX`]; more are closed at once.
    pub connections_max: u32,
    /// Records of followed requests per worker, 64 bytes each: those that wait to be collected.
    pub trace_records: usize,
    /// Volumes in files are or will be served.
    pub has_files: bool,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
struct Flight {
    connection: u32,
    tag: Tag,
    /// By which its request is followed, or 0.
    trace: TraceId,
    /// What it changes of the volume.
    range: Option<(Lba, u32)>,
}

/// A connection's place in the queue for credits.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    connection: u32,
    ask: Ask,
}

/// See the module's documentation.
pub(crate) struct Server {
    slab: Arc<IoSlab>,
    pool: IoPool,
    has_files: bool,
    files: Option<FileMedia>,
    finished: Vec<block::Finished<IoBuffer>>,
    /// By number.
    targets: Vec<Option<Box<Target>>>,
    /// Volumes with something to do.
    busy: Vec<u32>,
    /// Volumes for whose requests the files had no room.
    crowded: Vec<u32>,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    connections_max: u32,
    /// Connections that there is something to do for, in the order in which they have their turn.
    active: VecDeque<u32>,
    /// Those that this turn looks at.
    visited: Vec<u32>,
    /// Those that wait for memory to come back.
    starving: Vec<u32>,
    /// Regions of payload memory that only volumes may take, to end what clients began.
    held_back: u32,
    /// Payload that a connection may hold and take more while it waits for credits.
    waiting_bytes_max: usize,
    shaper: Shaper<Ticket>,
    tracer: Tracer,
    flights: Vec<Flight>,
    flights_free: Vec<u32>,
    submitted: Vec<Io<IoBuffer>>,
    scratch: Box<[u8]>,
    turns_to_look: u32,
    crowded_turns: u32,
    expire_ns: u64,
    /// When to ask again for room that a medium refused.
    retry_ns: Option<u64>,
    /// Volumes that are being changed, and when to look at them.
    changing: Vec<VolumeId>,
    /// Volumes whose queues have something for each other.
    called: Vec<VolumeId>,
    /// Volumes that another owner took over in this turn.
    lost: Vec<VolumeId>,
    change_ns: Option<u64>,
    /// Connections refused since that was last said.
    refused: u64,
    moves: Moves,
}

impl Server {
    pub fn new(slab: &Arc<IoSlab>, plan: &ServePlan, tracer: Tracer, moves: Moves, now_ns: u64) -> Server {
        let connections_max = plan.connections_max.min(CONNECTIONS_MAX);
        let config = ShaperConfig {
            volumes_max: SERVED_MAX,
            groups_max: GROUPS_MAX,
            // One for each, and as many that are their second and more.
            parked_items_max: connections_max.saturating_mul(2),
        };
        Server {
            slab: Arc::clone(slab),
            pool: IoPool::new(slab, slab.regions()),
            has_files: plan.has_files,
            files: None,
            finished: Vec::new(),
            targets: Vec::new(),
            busy: Vec::new(),
            crowded: Vec::new(),
            connections: Vec::new(),
            free: Vec::new(),
            connections_max,
            active: VecDeque::new(),
            visited: Vec::with_capacity(TURN_CONNECTIONS),
            starving: Vec::new(),
            held_back: (slab.regions() / HELD_BACK).max(1),
            waiting_bytes_max: (slab.memory().1 / WAITING).clamp(IO_BYTES_MAX, WAITING_BYTES_MAX),
            shaper: Shaper::new(config, now_ns),
            tracer,
            flights: Vec::new(),
            flights_free: Vec::new(),
            submitted: Vec::new(),
            scratch: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            turns_to_look: 0,
            crowded_turns: 0,
            expire_ns: now_ns,
            retry_ns: None,
            changing: Vec::new(),
            called: Vec::new(),
            lost: Vec::new(),
            change_ns: None,
            refused: 0,
            moves,
        }
    }

    /// Takes a volume to serve, or the volume behind names that are served as a standby's, with the files that
    /// [`Server::open_files`] opened for it.
    pub fn add(
        &mut self,
        mut target: Target,
        files: Option<Attached>,
        wait: &mut WaitPoint,
    ) -> Result<(), TargetError> {
        let volume = target.volume();
        if volume.0 >= SERVED_MAX {
            return Err(TargetError::Number(volume));
        }
        let standing = self.targets.get(volume.0 as usize).and_then(Option::as_ref);
        let is_volume = !target.is_away() && !target.is_home();
        let is_taken =
            standing.is_some_and(|standing| !standing.is_away() || standing.is_leaving() || !is_volume);
        if is_taken {
            return Err(TargetError::Taken(volume));
        }
        if let Some(attached) = files {
            self.attach(volume, attached, wait)?;
        }
        if let (Some(home), Some(namespace)) = (target.home, target.namespace.take())
            && let Err(why) = self.show(home, namespace)
        {
            if let Some(files) = self.files.as_mut().filter(|_| target.directory().is_some()) {
                files.detach(volume);
            }
            return Err(why);
        }
        if self.targets.len() <= volume.0 as usize {
            self.targets.resize_with(volume.0 as usize + 1, || None);
        }
        match &mut self.targets[volume.0 as usize] {
            Some(standing) => {
                standing.arrive(target);
                self.tell_arrival(volume);
            }
            none => *none = Some(Box::new(target)),
        }
        self.moves.welcome(volume);
        self.set_busy(volume);
        self.follow_home_of(volume);
        self.wake(volume);
        Ok(())
    }

    /// Sets what a volume may do from now on; balances stay.
    pub fn set_limits(&mut self, now_ns: u64, volume: VolumeId, limits: &Limits) {
        if self.moves.follow_limits(volume, limits) {
            return;
        }
        // One ticket for each connection waits, whatever it stands for.
        let park = ParkLimits { items_max: self.connections_max.max(1), bytes_max: u64::MAX };
        if let Err(refused) = self.shaper.set_volume(now_ns, volume.0, &Limits { park, ..*limits }) {
            warn!(%volume, "limits of a served volume: {refused}");
        }
        let target = self.targets.get_mut(volume.0 as usize).and_then(Option::as_mut);
        if let Some(saved) = target.and_then(|target| target.saved.take()) {
            self.shaper.begin_with(now_ns, volume.0, saved);
        }
    }

    /// Follows one in `one_in` requests of a volume from now on.
    pub fn set_sampling(&mut self, volume: VolumeId, one_in: u32) {
        let Some(target) = self.target(volume) else { return };
        let was_on = target.sampler.is_on();
        target.sampler.set(one_in);
        if target.sampler.is_on() != was_on {
            self.follow_home_of(volume);
        }
    }

    /// Has things go wrong at the medium of a volume from now on.
    pub fn set_faults(&mut self, volume: VolumeId, spec: &FaultSpec) {
        if let Some(target) = self.targets.get_mut(volume.0 as usize).and_then(Option::as_mut)
            && let Err(refused) = target.set_faults(spec)
        {
            warn!(%volume, "faults of a served volume: {refused}");
        }
    }

    /// Sets what volumes share from now on.
    pub fn set_pools(&mut self, now_ns: u64, pools: &ChangedPools) {
        pools.apply(now_ns, &mut self.shaper);
    }

    /// Takes a connection whose handshake is done.
    pub fn connect(&mut self, now_ns: u64, arrival: Arrival, wait: &mut WaitPoint) {
        let Err(Arrival { stream, guest, rest }) = self.moves.follow(arrival) else { return };
        let volume = guest.volume();
        let live = self.connections.len() - self.free.len();
        let left = (self.connections_max as usize).saturating_sub(live);
        let Some(target) = self.targets.get_mut(volume.0 as usize).and_then(Option::as_mut) else {
            return debug!(%volume, "a client came for a volume that is not here any more");
        };
        if !target.admits(&guest) {
            return debug!(%volume, "a client came for a volume that is being let go");
        }
        if target.connections as usize >= left {
            target.refused += 1;
            self.refused += 1;
            return;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() as u32 - 1
        });
        if let Err(failure) = wait.add_edge(stream.fd(), FIRST_TOKEN + index) {
            self.free.push(index);
            return warn!("a connection is closed: {failure}");
        }
        let Some(session) = Session::new(guest, target.subsystem.as_deref_mut(), now_ns) else {
            self.free.push(index);
            return debug!(%volume, "a host came for a volume that is not there for its protocol");
        };
        target.connections += 1;
        let mut connection = Connection::new(stream, session, rest, self.waiting_bytes_max, now_ns);
        connection.copy = connection.session.copies().then(|| target.track());
        let connection = self.connections[index as usize].insert(connection);
        activate(&mut self.active, index, connection);
        // Its client may have said the first words already.
        self.expire_ns = self.expire_ns.min(now_ns + EXPIRE_NS);
    }

    /// Does everything once. Returns how much moved.
    pub fn turn(&mut self, watch: &Stopwatch, wait: &mut WaitPoint) -> Result<usize, WaitError> {
        if !self.moves.is_idle() {
            self.go_on_moving(watch.turn_ns(), wait);
        }
        if self.targets.is_empty() {
            return Ok(0);
        }
        let now_ns = watch.turn_ns();
        self.look(wait)?;
        let mut moved = self.release(now_ns);
        moved += self.complete(watch);
        moved += self.receive(watch);
        moved += self.pump(watch);
        // What this turn asked of the files leaves with one system call; what they answer is for the next.
        if let Some(files) = self.files.as_mut().filter(|files| files.in_flight() > 0) {
            files.poll(&mut self.finished);
        }
        moved += self.send(watch);
        while let Some(volume) = self.lost.pop() {
            // A host with a path to the new owner goes there; a volume without NVMe has nobody to tell.
            let _ = self.set_access(volume, Access::Inaccessible);
        }
        while let Some(volume) = self.called.pop() {
            self.wake(volume);
        }
        if now_ns >= self.expire_ns {
            self.expire(now_ns);
        }
        if self.retry_ns.is_some_and(|retry_ns| now_ns >= retry_ns) {
            self.retry(now_ns);
        }
        if self.change_ns.is_some_and(|change_ns| now_ns >= change_ns) {
            self.change(now_ns);
        }
        Ok(moved)
    }

    /// What the wait point found ready.
    pub fn ready(&mut self, tokens: &[u32]) {
        for &token in tokens {
            if token == FILES_TOKEN
                && let Some(files) = &mut self.files
            {
                files.clear_wait();
                files.poll(&mut self.finished);
            }
            let Some(index) = token.checked_sub(FIRST_TOKEN) else { continue };
            if let Some(connection) = self.connections.get_mut(index as usize).and_then(Option::as_mut) {
                connection.wake();
                activate(&mut self.active, index, connection);
            }
        }
    }

    /// When [`Server::turn`] has something to do that no descriptor announces.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let expire = (self.connections.len() > self.free.len()).then_some(self.expire_ns);
        expire
            .into_iter()
            .chain(self.shaper.next_deadline_ns())
            .chain(self.retry_ns)
            .chain(self.change_ns)
            .chain(self.moves.next_deadline_ns())
            .min()
    }

    /// True while there is something to do at once.
    pub fn has_work(&self) -> bool {
        let is_active = !self.active.is_empty() || !self.finished.is_empty() || !self.busy.is_empty();
        is_active || self.moves.has_work() || self.can_send_away()
    }

    fn look(&mut self, wait: &mut WaitPoint) -> Result<(), WaitError> {
        if self.turns_to_look > 0 && self.crowded_turns == 0 {
            self.turns_to_look -= 1;
            return Ok(());
        }
        self.turns_to_look = LOOK_TURNS;
        self.crowded_turns = self.crowded_turns.saturating_sub(1);
        wait.poll()?;
        self.ready(wait.ready());
        Ok(())
    }

    fn set_busy(&mut self, volume: VolumeId) {
        if let Some(target) = self.targets[volume.0 as usize].as_mut()
            && !std::mem::replace(&mut target.listed, true)
        {
            self.busy.push(volume.0);
        }
    }

    /// Hands out the credits that have come.
    fn release(&mut self, now_ns: u64) -> usize {
        if self.shaper.next_deadline_ns().is_none_or(|due| due > now_ns) {
            return 0;
        }
        let (connections, active) = (&mut self.connections, &mut self.active);
        self.shaper.release(now_ns, TURN_TICKETS, &mut |released| {
            let Ticket { connection: index, ask } = released.item;
            // INVARIANT: a connection that goes takes its ticket along.
            if let Some(connection) = connections[index as usize].as_mut() {
                connection.credits.grant(VolumeId(released.volume), ask);
                activate(active, index, connection);
            }
        })
    }

    /// Receives on the connections whose turn it is and hands out what credits and memory allow.
    fn receive(&mut self, watch: &Stopwatch) -> usize {
        let now_ns = watch.turn_ns();
        let mut moved = 0;
        let mut tries = TURN_TRIES;
        let count = self.active.len().min(TURN_CONNECTIONS);
        self.visited.extend(self.active.drain(..count));
        for at in 0..count {
            let index = self.visited[at];
            let Some(connection) = self.connections[index as usize].as_mut() else { continue };
            let volume = connection.volume();
            // INVARIANT: a volume stays as long as it has connections.
            let Some(target) = self.targets[volume.0 as usize].as_mut() else { continue };
            if is_held_up(target, &connection.session) {
                continue;
            }
            connection.account(&mut target.held_bytes);
            let may = share(self.held_back, target, connection);
            // What is held for payload that was asked for comes free only behind what comes first, which must not
            // wait for that.
            let held = if connection.session.awaits_payload() { 0 } else { may.held };
            self.pool.set_share(Some(IoShare { held, ..may }));
            let follows = target.sampler.is_on();
            match connection.receive(&mut self.scratch, &mut self.pool, &mut tries, watch, follows) {
                Received::Bytes(count) => moved += count,
                Received::Nothing => {}
                Received::Left => self.crowded_turns = CROWDED_TURNS,
                Received::Over(why) => {
                    debug!(%volume, "a connection ends: {why}");
                    connection.end(&mut self.pool);
                }
            }
            let reserve = may.reserve + connection.session.arriving_regions();
            self.pool.set_share(Some(IoShare { reserve, ..may }));
            // It is driven beside the volumes behind it.
            let mut subsystem = target.subsystem.take();
            let mut hands = Hands {
                connection: index,
                credits: &mut connection.credits,
                targets: &mut self.targets,
                copies: connection.copy.is_some(),
                blocked: connection.blocked,
                followed: &mut connection.followed,
                shaper: &mut self.shaper,
                tickets_max: self.connections_max,
                flights: &mut self.flights,
                flights_free: &mut self.flights_free,
                submitted: &mut self.submitted,
                tracer: &mut self.tracer,
                stamp: Stamp::new(watch),
                now_ns,
            };
            let waits = connection.session.step(subsystem.as_deref_mut(), &mut self.pool, &mut hands);
            connection.set_waits(waits, now_ns);
            if subsystem.as_deref_mut().is_some_and(Subsystem::take_call) {
                self.called.push(volume);
            }
            // INVARIANT: it is where it was a moment ago.
            if let Some(target) = self.targets[volume.0 as usize].as_mut() {
                target.subsystem = subsystem;
                connection.account(&mut target.held_bytes);
            }
            moved += self.submitted.len();
            for io in self.submitted.drain(..) {
                let number = io.volume.0;
                // INVARIANT: a volume stays as long as a session names it.
                let Some(target) = self.targets[number as usize].as_mut() else { continue };
                match connection.copy {
                    Some(copy) if io.op == Op::Extents => target.tell(copy, io, &mut self.pool),
                    Some(_) if !io.op.is_write() => target.process_copy(io),
                    _ => target.process(io),
                }
                if !std::mem::replace(&mut target.listed, true) {
                    self.busy.push(number);
                }
            }
        }
        self.pool.set_share(None);
        moved
    }

    /// Sends what there is to say, to those that were received from and to those that got answers since, and lets
    /// go of connections that are silent or over.
    fn send(&mut self, watch: &Stopwatch) -> usize {
        let now_ns = watch.turn_ns();
        let mut moved = 0;
        while self.visited.len() < TURN_CONNECTIONS
            && let Some(index) = self.active.pop_front()
        {
            self.visited.push(index);
        }
        // Another one is the first next time, so that memory which is short goes round.
        let one = usize::from(self.visited.len() > 1);
        self.visited.rotate_left(one);
        for index in self.visited.drain(..) {
            let slot = &mut self.connections[index as usize];
            let Some(connection) = slot.as_mut() else { continue };
            let sent = connection.send(&mut self.pool);
            moved += sent;
            if sent > 0 && connection.followed {
                let mut stamp = Stamp::new(watch);
                connection.session.ended(|trace| self.tracer.end(trace, stamp.ns()));
                self.tracer.publish();
            }
            if connection.is_over() {
                if connection.followed {
                    self.tracer.forget(index);
                }
                let volume = connection.volume();
                for waiting in connection.credits.waiting() {
                    self.shaper.cancel(now_ns, waiting.0, |ticket| ticket.connection == index);
                }
                // INVARIANT: a volume stays as long as it has connections.
                if let Some(target) = self.targets[volume.0 as usize].as_mut() {
                    connection.account(&mut target.held_bytes);
                    connection.session.leave(target.subsystem.as_deref_mut());
                    if target.subsystem.as_deref_mut().is_some_and(Subsystem::take_call) {
                        self.called.push(volume);
                    }
                    target.connections -= 1;
                    if let Some(copy) = connection.copy {
                        target.untrack(copy);
                    }
                }
                *slot = None;
                self.free.push(index);
                moved += 1;
                continue;
            }
            if connection.lacks_memory() && !std::mem::replace(&mut connection.starving, true) {
                self.starving.push(index);
            }
            let target = self.targets[connection.volume().0 as usize].as_ref();
            let goes_on = target.is_some_and(|target| !is_held_up(target, &connection.session));
            connection.listed = connection.is_active(goes_on);
            if connection.listed {
                self.active.push_back(index);
            }
        }
        if moved > 0 {
            self.feed();
        }
        moved
    }

    /// Memory may have come back: those that wait for it try again.
    fn feed(&mut self) {
        for index in self.starving.drain(..) {
            if let Some(connection) = self.connections[index as usize].as_mut() {
                connection.feed();
                activate(&mut self.active, index, connection);
            }
        }
    }

    #[cold]
    fn expire(&mut self, now_ns: u64) {
        self.expire_ns = now_ns + EXPIRE_NS;
        for subsystem in self.targets.iter_mut().flatten().filter_map(|target| target.subsystem.as_mut()) {
            subsystem.expire(now_ns);
        }
        for index in 0..self.connections.len() {
            let Some(connection) = self.connections[index].as_mut() else { continue };
            let target = self.targets.get(connection.volume().0 as usize).and_then(Option::as_ref);
            let subsystem = target.and_then(|target| target.subsystem.as_deref());
            if let Err(why) = connection.expire(subsystem, now_ns) {
                debug!(volume = %connection.volume(), "a connection ends: {why}");
                connection.end(&mut self.pool);
                activate(&mut self.active, index as u32, connection);
            }
        }
        // Another worker may have given memory back.
        self.feed();
        if self.refused > 0 {
            let (refused, most) = (std::mem::take(&mut self.refused), self.connections_max);
            warn!(
                refused,
                most, "connections were closed at once: a volume may have half of the places that are left"
            );
        }
    }

    #[cold]
    fn retry(&mut self, now_ns: u64) {
        self.retry_ns = None;
        for target in self.targets.iter_mut().flatten() {
            match target.retry_at_ns() {
                Some(retry_ns) if retry_ns > now_ns => {
                    self.retry_ns = self.retry_ns.into_iter().chain([retry_ns]).min();
                }
                Some(_) if !std::mem::replace(&mut target.listed, true) => self.busy.push(target.volume().0),
                _ => {}
            }
        }
    }

    /// Ends every connection, waits until the media have answered, and closes the volumes.
    pub fn stop(mut self, now_ns: u64) {
        let watch = &Stopwatch::still(now_ns);
        self.stop_moving(now_ns);
        for connection in self.connections.iter_mut().flatten() {
            connection.end(&mut self.pool);
        }
        for target in self.targets.iter_mut().flatten() {
            target.drop_held();
            target.rest();
        }
        // Bounded: nothing new comes, and each round carries out all that is under way.
        for _ in 0..STOP_ROUNDS {
            self.pump(watch);
            if let Some(files) = &mut self.files {
                files.drain(&mut self.finished);
            }
            self.complete(watch);
            if self.finished.is_empty() && self.targets.iter().flatten().all(|target| target.is_idle()) {
                break;
            }
            for target in self.targets.iter_mut().flatten() {
                if !std::mem::replace(&mut target.listed, true) {
                    self.busy.push(target.volume().0);
                }
            }
        }
        for mut target in self.targets.into_iter().flatten() {
            let volume = target.volume();
            if !target.close(&mut self.pool) {
                warn!(%volume, "a volume was left in the middle of something; it recovers when it is opened");
            }
        }
    }
}

/// Rounds that a volume may take to come to rest: a checkpoint has some tens of steps.
const STOP_ROUNDS: usize = 10_000;

/// What a connection may take of the payload memory: as much as is left, counted with all that its volume's
/// clients hold. If it holds less than most of them, it counts as if they all held no more than it does, but at
/// least a quarter of it: those who do not read what they asked for cannot starve those who do, and however many
/// they are, a fifth is left to other volumes.
fn share(reserve: u32, target: &Target, connection: &Connection) -> IoShare {
    let regions = |bytes: usize| (bytes / IO_REGION_BYTES) as u32;
    let all = regions(target.held_bytes);
    let equal = regions(connection.session.held_bytes()).saturating_mul(target.connections);
    let weight = if equal < all { target.connections } else { 1 };
    IoShare { reserve, held: equal.clamp(all / 4, all), weight }
}

/// Gives a connection its turn.
fn activate(active: &mut VecDeque<u32>, index: u32, connection: &mut Connection) {
    if !std::mem::replace(&mut connection.listed, true) {
        active.push_back(index);
    }
}

#[cfg(test)]
mod tests;
