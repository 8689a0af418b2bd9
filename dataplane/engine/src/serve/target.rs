//! A volume that a worker serves, with the medium below it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use arrayvec::ArrayVec;
use block::{BlockSize, Done, Finished, Io, Lba, Mark, Op, Request, Status, Step, TraceId, VolumeId};
use frame::{Backing, IoBuffer, IoPool, SlabError};
use media::{FaultSpec, Faults, FileError, FileMedia, Media, MemoryMedia, NoProbability};
use session::nvme_tcp::{Namespace, Subsystem, Taken};
use throttle::Saved;
use trace::{DEPENDENCIES_MAX, Medium, Sampler};
use volume::{FlatVolume, Health, Volume};

use super::change::{Change, ChangeError, Leave, Stage};
use super::changed::Tracker;
use super::follow::Follower;
use super::session::{Guest, Session};
use crate::clock::Stopwatch;
use crate::wait::WaitError;

/// Requests of a flat volume under way, at most.
const IN_FLIGHT_MAX: u32 = 1024;

/// Why a volume cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] SlabError),
    /// Its files cannot be reached.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The worker cannot wait for its files.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// It is served already.
    #[error("volume number {0} is served already")]
    Taken(VolumeId),
    /// Its number is too large.
    #[error("volume number {0} is too large to be served; at most {max} volumes are possible", max = super::SERVED_MAX)]
    Number(VolumeId),
    /// Its subsystem is not at its worker.
    #[error("the place {0} of its subsystem is not here, or is being let go")]
    NoSubsystem(VolumeId),
    /// Another volume is behind its namespace.
    #[error(transparent)]
    Namespace(#[from] Taken),
    /// The worker has ended, or this data plane was started without serving anything.
    #[error("the worker that should serve it is not there; restart the data plane")]
    WorkerGone,
}

/// What a served volume has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetCounters {
    /// Reads answered.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes read by copies of it, which count nowhere else: they are no load of its hosts.
    pub copied_bytes: u64,
    /// Writes answered.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Discards and zeroings answered.
    pub discards: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Answers of the medium that were delayed on purpose.
    pub faults_delayed: u64,
    /// Requests to the medium that failed on purpose.
    pub faults_failed: u64,
    /// Pages that were not as they had been written.
    pub pages_corrupt: u64,
    /// Times that the medium had no room for more.
    pub expansions_refused: u64,
}

/// A volume on its way to a worker, or there.
pub struct Target {
    volume: VolumeId,
    body: Body,
    /// Requests that wait for room in the volume.
    queue: VecDeque<Io<IoBuffer>>,
    counters: TargetCounters,
    /// Requests that are not answered.
    busy: u32,
    /// Nothing more is taken from its clients: it is about to go to another worker.
    pub(super) quiesced: bool,
    /// In the list of volumes with something to do.
    pub(super) listed: bool,
    /// The files had no room for a request of it, and it is in the list of those that wait for some.
    pub(super) crowded: bool,
    /// Nothing that changes it or reads it is admitted, but for a copy: see [`super::freeze`].
    pub(super) frozen: bool,
    /// Writes that came while it is frozen: they were admitted before their payload came.
    held: VecDeque<Io<IoBuffer>>,
    /// Writes that are not answered, without those.
    pub(super) writes: u32,
    /// What changed, for a session that copies it.
    pub(super) tracker: Option<Tracker>,
    /// Sessions that copied it.
    copies: u64,
    /// What was told of changes.
    told: VecDeque<Done<IoBuffer>>,
    /// What its throttle begins with.
    pub(super) saved: Option<Saved>,
    /// Connections that came for it.
    pub(super) connections: u32,
    /// Connections that were turned away.
    pub(super) refused: u64,
    /// Payload memory that its clients hold.
    pub(super) held_bytes: usize,
    /// What NVMe hosts find: the volume under its names, and their controllers.
    pub(super) subsystem: Option<Box<Subsystem>>,
    /// Where the subsystem is that it is a namespace of, if that has a place of its own.
    pub(super) home: Option<VolumeId>,
    /// What is to be added there.
    pub(super) namespace: Option<Namespace>,
    /// What is being changed.
    pub(super) change: Option<Change>,
    /// What was said of it last.
    health: Health,
    /// Which of its requests are followed.
    pub(super) sampler: Sampler,
    /// Followed writes since the last flush.
    pub(super) unsynced: Unsynced,
    /// What goes wrong on purpose at its medium.
    faults: Option<Box<Faults>>,
}

/// Followed writes that the next flush makes durable.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// The last of them.
    pub traces: ArrayVec<TraceId, DEPENDENCIES_MAX>,
    /// How many there are.
    pub total: u32,
}

impl Unsynced {
    pub fn push(&mut self, trace: TraceId) {
        if self.traces.is_full() {
            self.traces.remove(0);
        }
        self.traces.push(trace);
        self.total = self.total.saturating_add(1);
    }
}

enum Body {
    Flat(Box<Flat>),
    Thin {
        volume: Box<Volume>,
        directory: PathBuf,
    },
    /// Another node has it: only its names are here.
    Away {
        size: BlockSize,
    },
    /// The place of a subsystem: it has no bytes of its own.
    Home,
}

impl Target {
    /// A volume in memory; says from what the memory was mapped.
    pub fn memory(
        volume: VolumeId,
        size: BlockSize,
        blocks: u64,
        hugepages: bool,
    ) -> Result<(Target, Backing), TargetError> {
        let mut media = MemoryMedia::new();
        let backing = media.attach(volume, (blocks << size.shift()) as usize, hugepages)?;
        let flat = FlatVolume::new(volume, size, blocks, IN_FLIGHT_MAX);
        Ok((Target::new(volume, Body::Flat(Box::new(Flat::new(flat, media, Medium::Memory)))), backing))
    }

    /// A volume without bytes, to measure what lies above.
    pub fn null(volume: VolumeId, size: BlockSize, blocks: u64) -> Target {
        let mut media = MemoryMedia::new();
        media.attach_nothing(volume);
        let flat = FlatVolume::new(volume, size, blocks, IN_FLIGHT_MAX);
        Target::new(volume, Body::Flat(Box::new(Flat::new(flat, media, Medium::Null))))
    }

    /// A thin volume that was opened in `directory`.
    pub fn thin(volume: Volume, directory: PathBuf) -> Target {
        Target::new(volume.id(), Body::Thin { volume: Box::new(volume), directory })
    }

    /// The names of a volume that another node serves; [`crate::Node::serve`] brings the volume when this node is to.
    pub fn standby(volume: VolumeId, size: BlockSize) -> Target {
        Target::new(volume, Body::Away { size })
    }

    /// The place of a subsystem whose volumes come and go; see [`Target::with_home`].
    pub fn home(place: VolumeId, subsystem: Subsystem) -> Target {
        Target::new(place, Body::Home).with_subsystem(subsystem)
    }

    fn new(volume: VolumeId, body: Body) -> Target {
        let counters = TargetCounters::default();
        let (queue, health) = (VecDeque::new(), Health::Sound);
        Target {
            volume,
            body,
            queue,
            counters,
            busy: 0,
            quiesced: false,
            listed: false,
            crowded: false,
            frozen: false,
            held: VecDeque::new(),
            writes: 0,
            tracker: None,
            copies: 0,
            told: VecDeque::new(),
            saved: None,
            connections: 0,
            refused: 0,
            held_bytes: 0,
            subsystem: None,
            home: None,
            namespace: None,
            change: None,
            health,
            sampler: Sampler::new(0, u64::from(volume.0) + 1),
            unsynced: Unsynced::default(),
            faults: None,
        }
    }

    /// One in `one_in` of its requests is followed; 0 = none.
    pub fn with_sampling(mut self, one_in: u32) -> Target {
        self.sampler.set(one_in);
        self
    }

    /// It admits nothing before it is thawed.
    pub fn with_frozen(self, frozen: bool) -> Target {
        Target { frozen, ..self }
    }

    /// Its throttle begins with what was saved elsewhere.
    pub fn with_saved(self, saved: Option<Saved>) -> Target {
        Target { saved, ..self }
    }

    /// NVMe hosts may attach to it through `subsystem`, whose one namespace it is.
    pub fn with_subsystem(self, subsystem: Subsystem) -> Target {
        Target { subsystem: Some(Box::new(subsystem)), ..self }
    }

    /// NVMe hosts find it as `namespace` of the subsystem whose place is `home`, at the same worker.
    pub fn with_home(self, home: VolumeId, namespace: Namespace) -> Target {
        Target { home: Some(home), namespace: Some(namespace), ..self }
    }

    /// Size of its blocks.
    pub fn block_size(&self) -> BlockSize {
        match &self.body {
            Body::Flat(flat) => flat.volume.block_size(),
            Body::Thin { volume, .. } => volume.block_size(),
            Body::Away { size } => *size,
            Body::Home => BlockSize::B4096,
        }
    }

    /// Size in blocks; 0 of what is away.
    pub(super) fn blocks(&self) -> u64 {
        match &self.body {
            Body::Flat(flat) => flat.volume.blocks(),
            Body::Thin { volume, .. } => volume.blocks(),
            Body::Away { .. } | Body::Home => 0,
        }
    }

    /// What lies below it.
    pub(super) fn medium(&self) -> Medium {
        match &self.body {
            Body::Flat(flat) => flat.medium,
            Body::Thin { .. } | Body::Away { .. } | Body::Home => Medium::File,
        }
    }

    /// Its number.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// What goes wrong at its medium from now on.
    pub(super) fn set_faults(&mut self, spec: &FaultSpec) -> Result<(), NoProbability> {
        match &mut self.faults {
            Some(faults) => faults.set(spec),
            None if *spec == FaultSpec::default() => Ok(()),
            None => {
                self.faults = Some(Box::new(Faults::new(spec)?));
                Ok(())
            }
        }
    }

    /// What it has done.
    pub fn counters(&self) -> TargetCounters {
        let faults = self.faults.as_ref().map_or_else(Default::default, |faults| faults.counters());
        let stats = match &self.body {
            Body::Thin { volume, .. } => volume.stats(),
            Body::Flat(_) | Body::Away { .. } | Body::Home => Default::default(),
        };
        TargetCounters {
            faults_delayed: faults.delayed,
            faults_failed: faults.failed,
            pages_corrupt: stats.pages_corrupt,
            expansions_refused: stats.expansions_refused,
            ..self.counters
        }
    }

    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.body {
            Body::Thin { directory, .. } => Some(directory),
            _ => None,
        }
    }

    /// Takes a request; [`Target::pump`] begins it.
    pub(super) fn process(&mut self, io: Io<IoBuffer>) {
        self.busy += 1;
        if self.frozen && io.op.is_write() {
            self.held.push_back(io);
        } else {
            self.take(io);
        }
    }

    /// Takes a request of a session that copies it, which changes nothing.
    pub(super) fn process_copy(&mut self, io: Io<IoBuffer>) {
        self.busy += 1;
        self.counters.copied_bytes += io.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        self.queue.push_back(io);
    }

    /// What came while it was frozen goes on.
    pub(super) fn thaw(&mut self) {
        self.frozen = false;
        while let Some(io) = self.held.pop_front() {
            self.take(io);
        }
    }

    /// What came while it was frozen comes to nothing: whoever sent it is gone.
    pub(super) fn drop_held(&mut self) {
        self.told.extend(self.held.drain(..).map(|io| {
            self.writes += 1;
            // A host with another path takes that.
            io.done(Status::Fenced)
        }));
    }

    fn take(&mut self, io: Io<IoBuffer>) {
        let bytes = io.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        let counters = &mut self.counters;
        match io.op {
            Op::Read | Op::Compare => {
                counters.reads += 1;
                counters.read_bytes += bytes;
            }
            Op::Write { .. } => {
                counters.writes += 1;
                counters.written_bytes += bytes;
            }
            Op::Flush => counters.flushes += 1,
            Op::Discard | Op::WriteZeroes { .. } => counters.discards += 1,
            Op::Extents => {}
        }
        self.writes += u32::from(io.op.is_write());
        self.queue.push_back(io);
    }

    /// A session begins to copy it; returns its number. One that copied it until now does not any more.
    pub(super) fn track(&mut self) -> u64 {
        self.copies += 1;
        self.tracker = Some(Tracker::new(self.copies, self.block_size(), self.blocks()));
        self.copies
    }

    /// A session that copied it is over.
    pub(super) fn untrack(&mut self, copy: u64) {
        self.tracker.take_if(|tracker| tracker.copy == copy);
    }

    /// A request that may have changed it was answered by the medium.
    pub(super) fn changed(&mut self, lba: Lba, blocks: u32) {
        self.writes = self.writes.saturating_sub(1);
        if let Some(tracker) = &mut self.tracker {
            tracker.mark(lba, blocks);
        }
    }

    /// Answers the copying session's question what changed, and takes for copied what it was told.
    pub(super) fn tell(&mut self, copy: u64, mut io: Io<IoBuffer>, pool: &mut IoPool) {
        let (size, blocks) = (self.block_size(), self.blocks());
        let tracker = self.tracker.as_mut().filter(|tracker| tracker.copy == copy);
        let room = io.buffer.as_ref().map_or(0, |buffer| buffer.len());
        let mut status = io.admit(size, blocks, room).err().unwrap_or(Status::Ok);
        match (tracker, io.buffer.as_mut()) {
            (Some(tracker), Some(buffer)) if status.is_ok() => {
                tracker.tell(io.lba, io.blocks, pool.bytes_mut(buffer));
            }
            // Another session took its place.
            _ if status.is_ok() => status = Status::Aborted,
            _ => {}
        }
        self.busy += 1;
        self.told.push_back(io.done(status));
    }

    /// Begins what there is room for, and carries on at the medium. True when the files had no room for a request: there
    /// may be some when they have answered anybody.
    pub(super) fn pump(
        &mut self,
        files: Option<&mut FileMedia>,
        pool: &mut IoPool,
        now_ns: u64,
        follower: &mut Follower<'_>,
    ) -> bool {
        while let Some(finished) = self.faults.as_mut().and_then(|faults| faults.due(now_ns)) {
            self.answered(finished, pool, now_ns, follower);
        }
        let faults = &mut self.faults;
        match &mut self.body {
            Body::Flat(flat) => flat.pump(&mut self.queue, pool, faults, now_ns, follower),
            Body::Thin { volume, .. } => {
                while volume.room() > 0
                    && let Some(io) = self.queue.pop_front()
                {
                    volume.process(io, pool, now_ns);
                }
                volume.step(pool, now_ns);
                follower.book(volume.marks());
                let Some(files) = files else { return false };
                while files.room() > 0
                    && let Some(request) = volume.dispatch()
                {
                    let Some(request) = begin(faults, request, now_ns) else { continue };
                    if let Err(request) = files.submit(request, pool) {
                        volume.put_back(request);
                        break;
                    }
                }
                return volume.wants_dispatch();
            }
            Body::Away { .. } | Body::Home => {}
        }
        false
    }

    /// Takes an answer of the files.
    pub(super) fn complete(
        &mut self,
        finished: Finished<IoBuffer>,
        pool: &mut IoPool,
        now_ns: u64,
        follower: &mut Follower<'_>,
    ) {
        if let Some(finished) = end(&mut self.faults, finished, follower.watch) {
            self.answered(finished, pool, now_ns, follower);
        }
    }

    fn answered(
        &mut self,
        finished: Finished<IoBuffer>,
        pool: &mut IoPool,
        now_ns: u64,
        follower: &mut Follower<'_>,
    ) {
        match &mut self.body {
            Body::Flat(flat) => flat.volume.complete(finished, pool),
            Body::Thin { volume, .. } => {
                volume.complete(finished, pool, now_ns);
                follower.book(volume.marks());
            }
            Body::Away { .. } | Body::Home => {
                finished.buffer.into_iter().for_each(|buffer| pool.free(buffer));
            }
        }
    }

    /// The next answer.
    pub(super) fn finished(&mut self) -> Option<Done<IoBuffer>> {
        let done = match &mut self.body {
            _ if !self.told.is_empty() => self.told.pop_front(),
            Body::Flat(flat) => flat.volume.finished(),
            Body::Thin { volume, .. } => volume.finished(),
            // Sessions hand nothing out for it; should one, its host tries another path.
            Body::Away { .. } | Body::Home => self.queue.pop_front().map(|io| io.done(Status::Fenced)),
        }?;
        self.busy -= 1;
        self.counters.errors += u64::from(!done.status.is_ok());
        Some(done)
    }

    /// What an operator should know of it and has not been told.
    pub(super) fn news(&mut self) -> Option<String> {
        let Body::Thin { volume, directory } = &self.body else { return None };
        let health = volume.health();
        if std::mem::replace(&mut self.health, health) == health {
            return None;
        }
        let (directory, epoch) = (directory.display(), volume.epoch().0);
        Some(match health {
            Health::Sound => return None,
            Health::Broken => format!(
                "{directory}: its log, map or a sync failed; writes are refused. See the kernel's log, then \
                 `tidegate-dataplane volume check`; a restart recovers what was flushed"
            ),
            Health::Fenced => format!(
                "{directory}: another owner took it over from epoch {epoch}; everything is refused here. Export it \
                 from one daemon, once"
            ),
        })
    }

    /// [`Target::pump`] has something to do that no answer of the files announces.
    pub(super) fn wants_pump(&self) -> bool {
        match &self.body {
            Body::Thin { volume, .. } => {
                let begins = !self.queue.is_empty() && volume.room() > 0;
                begins || volume.wants_step()
            }
            _ => !self.queue.is_empty(),
        }
    }

    /// When [`Target::pump`] should ask again for room that the medium refused, or has an answer that was kept back.
    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        let room_ns = match &self.body {
            Body::Thin { volume, .. } => volume.retry_at_ns(),
            _ => None,
        };
        let kept_ns = self.faults.as_ref().and_then(|faults| faults.next_ns());
        room_ns.into_iter().chain(kept_ns).min()
    }

    /// No more requests come: what the log says is to stand in a checkpoint, so that the next owner need not tell
    /// from the log alone what was durable.
    pub(super) fn rest(&mut self) {
        if let Some(faults) = &mut self.faults {
            faults.cease();
        }
        if let Body::Thin { volume, .. } = &mut self.body {
            volume.checkpoint();
        }
    }

    /// Nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let settled = !matches!(&self.body, Body::Thin { volume, .. } if !volume.is_settled());
        settled && self.busy == 0
    }

    /// Gives memory back. False when something was under way.
    pub(super) fn close(&mut self, pool: &mut IoPool) -> bool {
        let idle = self.is_idle();
        if idle && matches!(self.body, Body::Thin { .. }) {
            let size = self.block_size();
            if let Body::Thin { volume, .. } = std::mem::replace(&mut self.body, Body::Away { size }) {
                volume.close(pool);
            }
        }
        idle
    }

    /// Writes what stands only in the log into a checkpoint.
    pub(super) fn checkpoint(&mut self) {
        if let Body::Thin { volume, .. } = &mut self.body {
            volume.checkpoint();
        }
    }

    /// All that was answered is durable, also without its log. `None` if it never will be.
    pub(super) fn is_settled(&self) -> Option<bool> {
        match &self.body {
            Body::Thin { volume, .. } => (volume.health() == Health::Sound).then(|| volume.is_settled()),
            _ => Some(true),
        }
    }

    /// Requests are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.busy > 0
    }

    /// Another owner has it now.
    pub(super) fn is_fenced(&self) -> bool {
        self.health == Health::Fenced
    }

    /// It is being let go.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.change, Some(Change::Leave { .. }))
    }

    /// Nothing more is handed out for this session: its volume is being let go, and its connection with it.
    pub(super) fn drains(&self, session: &Session) -> bool {
        match self.change {
            Some(Change::Leave { leave, stage: Stage::Drain { .. } | Stage::Rest, .. }) => {
                session.ends_with(leave)
            }
            _ => false,
        }
    }

    /// A client may come for it.
    pub(super) fn admits(&self, guest: &Guest) -> bool {
        match (&self.change, guest) {
            (Some(Change::Leave { leave: Leave::Gone, .. }), _) => false,
            (Some(Change::Leave { leave: Leave::Standby, .. }), Guest::Nbd(_)) => false,
            (_, Guest::Nbd(_)) => !self.is_away() && !self.is_home(),
            (_, Guest::Nvme { .. }) => true,
        }
    }

    /// Begins to make it larger.
    pub(super) fn grow(&mut self, blocks: u64) -> Result<(), ChangeError> {
        match &mut self.body {
            Body::Flat(_) => Err(ChangeError::Fixed),
            Body::Thin { volume, .. } if volume.blocks() == blocks => Ok(()),
            Body::Thin { volume, .. } => volume.grow_to(blocks).map_err(ChangeError::Grow),
            Body::Away { .. } => Ok(()),
            Body::Home => Err(ChangeError::Unknown),
        }
    }

    /// Begins to take room.
    pub(super) fn expand(&mut self) -> Result<(), ChangeError> {
        match &mut self.body {
            Body::Flat(_) => Err(ChangeError::Fixed),
            Body::Thin { volume, .. } => volume.expand().map_err(ChangeError::Expand),
            Body::Away { .. } | Body::Home => Err(ChangeError::Unknown),
        }
    }

    /// What came of that; `None` while it is under way.
    pub(super) fn expanded(&self) -> Option<Status> {
        match &self.body {
            Body::Thin { volume, .. } => volume.expanded(),
            Body::Flat(_) | Body::Away { .. } | Body::Home => Some(Status::Aborted),
        }
    }

    /// How large it has become; what is away is as large as it is said to be. `None` if it never will be.
    pub(super) fn grown(&self) -> Option<u64> {
        match &self.body {
            Body::Thin { volume, .. } => (volume.health() == Health::Sound).then(|| volume.blocks()),
            Body::Flat(flat) => Some(flat.volume.blocks()),
            Body::Away { .. } | Body::Home => Some(u64::MAX),
        }
    }

    /// Another node has it: only its names are here.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.body, Body::Away { .. })
    }

    /// It is the place of a subsystem.
    pub(super) fn is_home(&self) -> bool {
        matches!(self.body, Body::Home)
    }

    /// Keeps only its names; what it was is returned.
    pub(super) fn stand_by(&mut self) -> Target {
        let size = self.block_size();
        self.health = Health::Sound;
        (self.frozen, self.tracker) = (false, None);
        Target::new(self.volume, std::mem::replace(&mut self.body, Body::Away { size }))
    }

    /// The volume behind names that were here without it: it was opened and recovered, so hosts may come.
    pub(super) fn arrive(&mut self, target: Target) {
        self.body = target.body;
        (self.frozen, self.saved) = (target.frozen, target.saved);
    }
}

/// What is left of a request when things go wrong on purpose.
fn begin(
    faults: &mut Option<Box<Faults>>,
    request: Request<IoBuffer>,
    now_ns: u64,
) -> Option<Request<IoBuffer>> {
    match faults {
        Some(faults) => faults.begin(request, now_ns),
        None => Some(request),
    }
}

/// The same of an answer. A delay counts from now, whenever the turn began.
fn end(
    faults: &mut Option<Box<Faults>>,
    finished: Finished<IoBuffer>,
    watch: &Stopwatch,
) -> Option<Finished<IoBuffer>> {
    match faults {
        Some(faults) => faults.end(finished, watch.now_ns()),
        None => Some(finished),
    }
}

/// A volume over a medium without a kernel, which carries out at once what it is asked.
struct Flat {
    volume: FlatVolume,
    media: MemoryMedia,
    medium: Medium,
    /// Empty between calls.
    answers: Vec<Finished<IoBuffer>>,
    /// Empty between calls.
    marks: Vec<Mark>,
}

impl Flat {
    fn new(volume: FlatVolume, media: MemoryMedia, medium: Medium) -> Flat {
        Flat { volume, media, medium, answers: Vec::new(), marks: Vec::new() }
    }

    fn pump(
        &mut self,
        queue: &mut VecDeque<Io<IoBuffer>>,
        pool: &mut IoPool,
        faults: &mut Option<Box<Faults>>,
        now_ns: u64,
        follower: &mut Follower<'_>,
    ) {
        let Flat { volume, media, answers, marks, .. } = self;
        loop {
            while volume.room() > 0
                && let Some(io) = queue.pop_front()
            {
                if io.trace.0 != 0 {
                    marks.push(Mark { trace: io.trace, step: Step::Mapped });
                }
                volume.process(io, pool);
            }
            follower.book(marks.drain(..));
            while media.room() > 0
                && let Some(request) = volume.dispatch()
            {
                let Some(request) = begin(faults, request, now_ns) else { continue };
                if let Err(request) = media.submit(request, pool) {
                    volume.put_back(request);
                    break;
                }
            }
            media.poll(answers);
            for answer in answers.drain(..).filter_map(|answer| end(faults, answer, follower.watch)) {
                volume.complete(answer, pool);
            }
            if queue.is_empty() || volume.room() == 0 {
                return;
            }
        }
    }
}
