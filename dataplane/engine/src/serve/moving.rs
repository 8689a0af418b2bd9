//! Handing a volume over to another worker, with everybody who came for it.
//!
//! What has its subsystem in common with it goes along: a subsystem is at one worker with all its volumes.
//!
//! The owner stops taking commands from the volume's clients, who find them waiting in their sessions and sockets;
//! it answers what is under way, and waits until the medium has nothing of the volume. Then the volume, its open
//! files, its clients and its credits, with what waits for them, go to the other worker as one value. That one
//! waits for the sockets from then on, and goes on where the first stopped.
//!
//! Invariants: a volume is at one worker or in one parcel, never in two places; who cannot take it sends it back; who
//! comes to a worker that had it is sent after it; a parcel is never refused for want of room in its queue, since a
//! worker hands over one volume at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::VolumeId;
use crossbeam_channel::{Receiver, Sender, unbounded};
use media::{Attached, FileConfig, FileMedia, Media};
use throttle::Limits;
use tracing::warn;

use super::{
    Arrival, Connection, EXPIRE_NS, FILES_TOKEN, FIRST_TOKEN, ServedFigures, Server, Target, TargetError,
    Ticket, activate,
};
use crate::wait::{WaitPoint, Waker};

/// How long what is under way may take before a volume stays where it is.
const DRAIN_NS: u64 = 1_000_000_000;

/// What a hand-over took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// From when the first worker stopped taking commands until the second began, ns.
    pub pause_ns: u64,
    /// As much of it as what was under way took, ns.
    pub drain_ns: u64,
    /// Connections that went along.
    pub connections: u32,
}

/// Why a volume stayed where it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// Nobody serves it.
    #[error("volume {0} is not served here, or was just removed")]
    Absent(VolumeId),
    /// There is no such worker.
    #[error("there is no worker {worker}, they are 0 to {}", .workers - 1)]
    NoWorker {
        /// The one asked for.
        worker: usize,
        /// How many there are.
        workers: usize,
    },
    /// Its worker hands over another volume, or this one changes.
    #[error("it is being changed, or its worker hands over another one; try again when that is done")]
    Busy,
    /// Its medium has not answered.
    #[error("what is under way was not answered within {} s; is its disk slow? See the kernel's log", DRAIN_NS / 1_000_000_000)]
    Slow,
    /// The other worker has no places left.
    #[error(
        "worker {worker} has {left} places left for connections and {needed} are needed; choose another, or raise \
         serve.connections"
    )]
    Full {
        /// That worker.
        worker: usize,
        /// What it has.
        left: usize,
        /// What the volume's clients need.
        needed: usize,
    },
    /// The other worker cannot reach files.
    #[error("worker {worker} cannot take it: {why}")]
    Files {
        /// That worker.
        worker: usize,
        /// What is wrong.
        why: String,
    },
    /// A worker has ended.
    #[error("worker {0} has ended; restart the data plane")]
    WorkerGone(usize),
}

/// Answers whoever wanted a volume moved.
pub(crate) type Reply = Sender<Result<HandedOver, MoveError>>;

/// A hand-over that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandedOver {
    pub moved: Moved,
    /// What is at the other worker now: the volume, and the rest of its subsystem.
    pub volumes: Vec<VolumeId>,
}

/// A volume on its way, with all that goes where it goes.
pub(crate) struct Parcel {
    members: Vec<Member>,
    /// With the numbers that they had.
    connections: Vec<(u32, Connection)>,
    home: usize,
    since_ns: u64,
    drained_ns: u64,
    reply: Reply,
    /// Why it comes back.
    refused: Option<MoveError>,
}

/// One volume of a parcel, or the home of a subsystem.
struct Member {
    target: Box<Target>,
    files: Option<Attached>,
    credits: Option<throttle::Moving<Ticket>>,
}

/// From one worker to another.
enum Post {
    Volume(Box<Parcel>),
    Client(Box<Arrival>),
    Limits(VolumeId, Box<Limits>),
}

/// The way to a worker.
#[derive(Clone)]
struct Door {
    post: Sender<Post>,
    waker: Waker,
}

/// A worker's part in moves.
pub(crate) struct Moves {
    worker: usize,
    doors: Arc<[Door]>,
    post: Receiver<Post>,
    leaving: Option<Leaving>,
    /// Volumes and homes that were here: who got them, and what was known of volumes last.
    gone: BTreeMap<u32, (usize, Option<ServedFigures>)>,
}

/// What a worker hands over.
struct Leaving {
    volumes: Vec<VolumeId>,
    to: usize,
    since_ns: u64,
    reply: Reply,
}

impl Moves {
    /// One for each worker.
    pub fn between(wakers: &[Waker]) -> Vec<Moves> {
        let (doors, posts): (Vec<_>, Vec<_>) = wakers
            .iter()
            .map(|waker| {
                let (post, taken) = unbounded();
                (Door { post, waker: waker.clone() }, taken)
            })
            .unzip();
        let doors: Arc<[Door]> = doors.into();
        let each = posts.into_iter().enumerate();
        each.map(|(worker, post)| Moves {
            worker,
            doors: Arc::clone(&doors),
            post,
            leaving: None,
            gone: BTreeMap::new(),
        })
        .collect()
    }

    pub fn worker(&self) -> usize {
        self.worker
    }

    fn send(&self, to: usize, post: Post) -> Result<(), Post> {
        let Some(door) = self.doors.get(to) else { return Err(post) };
        door.post.send(post).map_err(|refused| refused.0)?;
        door.waker.wake();
        Ok(())
    }

    /// There is something to do at once.
    pub fn has_work(&self) -> bool {
        !self.post.is_empty()
    }

    /// When a volume that does not come to rest stays.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.leaving.as_ref().map(|leaving| leaving.since_ns + DRAIN_NS)
    }

    pub fn is_idle(&self) -> bool {
        self.leaving.is_none() && self.post.is_empty()
    }

    /// A volume is here, again or for the first time.
    pub fn welcome(&mut self, volume: VolumeId) {
        self.gone.remove(&volume.0);
    }

    /// Sends somebody after the volume that he came for; `Err` if it was never here.
    pub fn follow(&self, arrival: Arrival) -> Result<(), Arrival> {
        let Some((to, _)) = self.gone.get(&arrival.guest.volume().0) else { return Err(arrival) };
        match self.send(*to, Post::Client(Box::new(arrival))) {
            Err(Post::Client(arrival)) => Err(*arrival),
            _ => Ok(()),
        }
    }

    /// Sends limits after their volume. False if it was never here.
    pub fn follow_limits(&self, volume: VolumeId, limits: &Limits) -> bool {
        let to = self.gone.get(&volume.0).map(|(to, _)| *to);
        to.is_some_and(|to| self.send(to, Post::Limits(volume, Box::new(*limits))).is_ok())
    }

    /// What was known of volumes when they went.
    pub fn last_figures(&self) -> impl Iterator<Item = ServedFigures> {
        self.gone.values().filter_map(|(_, figures)| *figures)
    }
}

impl Server {
    /// Begins to hand a volume over; the answer comes when that is done, or cannot be.
    pub fn hand_over(&mut self, now_ns: u64, volume: VolumeId, to: usize, reply: Reply) {
        let workers = self.moves.doors.len();
        let volumes = self.together(volume);
        let targets = || volumes.iter().filter_map(|one| self.targets[one.0 as usize].as_deref());
        let is_busy = self.moves.leaving.is_some() || targets().any(|target| target.change.is_some());
        let outcome = if volumes.is_empty() {
            Err(MoveError::Absent(volume))
        } else if to >= workers {
            Err(MoveError::NoWorker { worker: to, workers })
        } else if to == self.moves.worker {
            let connections = targets().map(|target| target.connections).sum();
            Ok(HandedOver { moved: Moved { pause_ns: 0, drain_ns: 0, connections }, volumes })
        } else if is_busy {
            Err(MoveError::Busy)
        } else {
            self.quiesce(&volumes, true);
            self.moves.leaving = Some(Leaving { volumes, to, since_ns: now_ns, reply });
            return;
        };
        // Whoever asked may have given up.
        let _ = reply.send(outcome);
    }

    fn quiesce(&mut self, volumes: &[VolumeId], quiesced: bool) {
        for volume in volumes {
            if let Some(target) = self.target(*volume) {
                target.quiesced = quiesced;
                self.set_busy(*volume);
            }
        }
    }

    /// Takes what other workers send, and sends away what has come to rest.
    #[cold]
    pub(super) fn go_on_moving(&mut self, now_ns: u64, wait: &mut WaitPoint) {
        while let Ok(post) = self.moves.post.try_recv() {
            match post {
                Post::Volume(parcel) => self.take_in(now_ns, parcel, wait),
                Post::Client(arrival) => self.connect(now_ns, *arrival, wait),
                Post::Limits(volume, limits) => self.set_limits(now_ns, volume, &limits),
            }
        }
        let Some(leaving) = self.moves.leaving.take() else { return };
        if leaving.volumes.iter().all(|volume| self.is_at_rest(*volume)) {
            self.send_away(now_ns, leaving, wait);
        } else if now_ns >= leaving.since_ns + DRAIN_NS {
            self.stay(leaving);
        } else {
            self.moves.leaving = Some(leaving);
        }
    }

    /// The next turn sends away what is to go: nothing else announces that.
    pub(super) fn can_send_away(&self) -> bool {
        let leaving = self.moves.leaving.as_ref();
        leaving.is_some_and(|leaving| leaving.volumes.iter().all(|volume| self.is_at_rest(*volume)))
    }

    /// All that was begun is answered, and the medium has nothing of it.
    fn is_at_rest(&self, volume: VolumeId) -> bool {
        let target = self.targets.get(volume.0 as usize).and_then(Option::as_ref);
        let answered = !target.is_some_and(|target| target.is_busy());
        answered
            && self.files.as_ref().is_none_or(|files| files.is_idle(volume))
            && self.finished.iter().all(|answer| answer.volume != volume)
    }

    /// It was not to be: its clients go on here.
    fn stay(&mut self, leaving: Leaving) {
        self.quiesce(&leaving.volumes, false);
        leaving.volumes.iter().for_each(|volume| self.wake(*volume));
        let _ = leaving.reply.send(Err(MoveError::Slow));
    }

    fn send_away(&mut self, now_ns: u64, leaving: Leaving, wait: &mut WaitPoint) {
        let Leaving { volumes, to, since_ns, reply } = leaving;
        let figures: Vec<_> = volumes.iter().map(|volume| self.figures_of(now_ns, *volume)).collect();
        let members = volumes.iter().filter_map(|volume| self.unlink(now_ns, *volume)).collect();
        let connections = self.disconnect(&volumes, wait);
        let parcel = Parcel {
            members,
            connections,
            home: self.moves.worker,
            since_ns,
            drained_ns: now_ns,
            reply,
            refused: None,
        };
        for (volume, figures) in volumes.iter().zip(figures) {
            self.moves.gone.insert(volume.0, (to, figures));
        }
        if let Err(Post::Volume(mut parcel)) = self.moves.send(to, Post::Volume(Box::new(parcel))) {
            parcel.refused = Some(MoveError::WorkerGone(to));
            self.take_in(now_ns, parcel, wait);
        }
    }

    /// Takes a volume out of everything here, but for its connections.
    fn unlink(&mut self, now_ns: u64, volume: VolumeId) -> Option<Member> {
        let mut target = self.targets.get_mut(volume.0 as usize)?.take()?;
        self.busy.retain(|number| *number != volume.0);
        self.crowded.retain(|number| *number != volume.0);
        target.crowded = false;
        let files = self.files.as_mut().and_then(|files| files.hand_over(volume));
        Some(Member { target, files, credits: self.shaper.take_volume(now_ns, volume.0) })
    }

    /// Takes out the connections to some volumes.
    fn disconnect(&mut self, volumes: &[VolumeId], wait: &mut WaitPoint) -> Vec<(u32, Connection)> {
        let mut connections = Vec::new();
        for (index, slot) in (0..).zip(&mut self.connections) {
            let goes = |connection: &mut Connection| volumes.contains(&connection.volume());
            let Some(mut connection) = slot.take_if(goes) else { continue };
            if let Some(fd) = connection.fd()
                && let Err(failure) = wait.remove(fd)
            {
                warn!("{failure}");
            }
            if std::mem::take(&mut connection.followed) {
                self.tracer.forget(index);
            }
            self.free.push(index);
            connections.push((index, connection));
        }
        let live = &self.connections;
        self.active.retain(|index| live[*index as usize].is_some());
        self.starving.retain(|index| live[*index as usize].is_some());
        connections
    }

    fn take_in(&mut self, now_ns: u64, mut parcel: Box<Parcel>, wait: &mut WaitPoint) {
        let home = parcel.home;
        if home != self.moves.worker
            && let Err(why) = self.make_room(&parcel, wait)
        {
            parcel.refused = Some(why);
            match self.moves.send(home, Post::Volume(parcel)) {
                Err(Post::Volume(back)) => parcel = back,
                _ => return,
            }
        }
        let (reply, refused) = (parcel.reply.clone(), parcel.refused.take());
        // The turn that takes it in may have begun before it was sent.
        let pause_ns = now_ns.max(parcel.drained_ns) - parcel.since_ns;
        let drain_ns = parcel.drained_ns - parcel.since_ns;
        let volumes = parcel.members.iter().map(|member| member.target.volume()).collect();
        let connections = self.settle(now_ns, *parcel, Some(wait));
        let moved = Moved { pause_ns, drain_ns, connections };
        let _ = reply.send(refused.map_or(Ok(HandedOver { moved, volumes }), Err));
    }

    /// Whether there are places for a volume's clients, and a way to its files.
    fn make_room(&mut self, parcel: &Parcel, wait: &mut WaitPoint) -> Result<(), MoveError> {
        let worker = self.moves.worker;
        let live = self.connections.len() - self.free.len();
        let (needed, left) = (parcel.connections.len(), (self.connections_max as usize).saturating_sub(live));
        if needed > left {
            return Err(MoveError::Full { worker, left, needed });
        }
        let has_files = parcel.members.iter().any(|member| member.files.is_some());
        if has_files && self.files.is_none() {
            self.reach_files(Some(wait))
                .map_err(|failure| MoveError::Files { worker, why: failure.to_string() })?;
        }
        Ok(())
    }

    /// Puts everything of a parcel in its place. Returns how many connections there are.
    fn settle(&mut self, now_ns: u64, parcel: Parcel, mut wait: Option<&mut WaitPoint>) -> u32 {
        let Parcel { members, connections, .. } = parcel;
        let mut numbers = BTreeMap::new();
        for (old, mut connection) in connections {
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() as u32 - 1
            });
            if let (Some(fd), Some(wait)) = (connection.fd(), wait.as_deref_mut())
                && let Err(failure) = wait.add_edge(fd, FIRST_TOKEN + index)
            {
                warn!("a connection is closed: {failure}");
                connection.end(&mut self.pool);
            }
            numbers.insert(old, index);
            connection.arrive();
            activate(&mut self.active, index, self.connections[index as usize].insert(connection));
        }
        self.expire_ns = self.expire_ns.min(now_ns + EXPIRE_NS);
        members.into_iter().map(|member| self.link(now_ns, member, &numbers, wait.as_deref_mut())).sum()
    }

    /// Puts a volume in its place; `numbers` are those of its connections, there and here. Returns how many it has.
    fn link(
        &mut self,
        now_ns: u64,
        member: Member,
        numbers: &BTreeMap<u32, u32>,
        wait: Option<&mut WaitPoint>,
    ) -> u32 {
        let Member { mut target, files, credits } = member;
        let volume = target.volume();
        if let Some(mut credits) = credits {
            for ticket in credits.waiting_mut() {
                // INVARIANT: a connection that waits went along.
                ticket.connection = numbers.get(&ticket.connection).copied().unwrap_or(u32::MAX);
            }
            for ticket in self.shaper.put_volume(now_ns, volume.0, credits) {
                // There was no place to wait in: it asks again.
                if let Some(Some(connection)) = self.connections.get_mut(ticket.connection as usize) {
                    connection.credits.ask_again(volume);
                }
            }
        }
        if let Some(attached) = files {
            if self.files.is_none()
                && let Err(failure) = self.reach_files(wait)
            {
                warn!(%volume, "its files cannot be reached any more: {failure}");
            }
            if let Some(files) = &mut self.files {
                files.take_over(volume, attached);
            }
        }
        if self.targets.len() <= volume.0 as usize {
            self.targets.resize_with(volume.0 as usize + 1, || None);
        }
        (target.quiesced, target.listed) = (false, false);
        self.retry_ns = self.retry_ns.into_iter().chain(target.retry_at_ns()).min();
        let connections = target.connections;
        self.targets[volume.0 as usize] = Some(target);
        self.moves.welcome(volume);
        self.set_busy(volume);
        connections
    }

    /// The end: volumes that are on their way here are closed with the others, and none goes away any more.
    pub(super) fn stop_moving(&mut self, now_ns: u64) {
        while let Ok(post) = self.moves.post.try_recv() {
            if let Post::Volume(parcel) = post {
                self.settle(now_ns, *parcel, None);
            }
        }
        if let Some(leaving) = self.moves.leaving.take() {
            self.quiesce(&leaving.volumes, false);
        }
    }

    /// Makes ready on the worker's thread what takes long: all payload memory is pinned for the ring, which the hosts of
    /// the first volume, and of those beside it, would wait for.
    pub fn warm_up(&mut self, wait: &mut WaitPoint) {
        if self.has_files
            && let Err(failure) = self.reach_files(Some(wait))
        {
            warn!("files cannot be reached, which volumes in files will try again: {failure}");
        }
    }

    /// Opens the directory of a volume in files, which the worker that is to serve it takes as it is: its file system may
    /// be slow to answer, or behind a server that is away.
    pub fn open_files(target: &Target) -> Result<Option<Attached>, TargetError> {
        Ok(target.directory().map(Attached::open).transpose()?)
    }

    /// Reaches the files of a volume.
    pub(super) fn attach(
        &mut self,
        volume: VolumeId,
        attached: Attached,
        wait: &mut WaitPoint,
    ) -> Result<(), TargetError> {
        if self.files.is_none() {
            self.reach_files(Some(wait))?;
        }
        if let Some(files) = &mut self.files {
            files.take_over(volume, attached);
        }
        Ok(())
    }

    /// Makes the ring through which files are reached.
    pub(super) fn reach_files(&mut self, wait: Option<&mut WaitPoint>) -> Result<(), TargetError> {
        let files = FileMedia::new(&self.slab, FileConfig::default())?;
        if let (Some(fd), Some(wait)) = (files.wait_fd(), wait) {
            wait.add(fd, FILES_TOKEN)?;
        }
        self.files = Some(files);
        Ok(())
    }
}
