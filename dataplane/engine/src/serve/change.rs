//! Changing what is served while it is served: volumes that grow, that are left to another node, and that go.
//!
//! A change takes as long as its volume's medium does, so it waits in its target and is looked at once per turn,
//! and by itself every [`LOOK_NS`]. Who asked for it hears when it is done.
//!
//! A volume that is left, in this order: hosts are told; what was handed out is answered and nothing more is handed
//! out; connections that cannot stay are closed; a checkpoint is written; the volume is let go. A standby keeps its
//! NVMe hosts, which hear that it is not reached here any more (decision D13).
//!
//! Invariants: nothing is handed to a volume that is let go; a client that does not let its connection drain has
//! [`DRAIN_NS`] for that; other volumes notice nothing.

use block::{Status, VolumeId};
use crossbeam_channel::Sender;
use session::nvme_tcp::Access;
use throttle::Saved;
use tracing::debug;

use super::{Server, Session, Target, activate};

/// Time between two looks at a change that nothing else announces.
const LOOK_NS: u64 = 1_000_000;
/// How long NVMe hosts have to take note that a namespace is gone, before their connections are closed.
const NOTICE_NS: u64 = 2_000_000_000;
/// How long connections have to send what was answered.
const DRAIN_NS: u64 = 5_000_000_000;

/// What becomes of a volume that is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing of it stays.
    Gone,
    /// NVMe hosts find it still, but cannot reach it here.
    Standby,
}

/// Why a served volume was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is none.
    #[error("its worker does not serve it")]
    Unknown,
    /// A change is under way.
    #[error("another change of it is under way; try again when that is done")]
    Busy,
    /// Its medium cannot.
    #[error("it lies in memory, where its size is fixed; remove it and add another one")]
    Fixed,
    /// It cannot grow.
    #[error("it cannot grow: {0}")]
    Grow(Status),
    /// It gets no more room.
    #[error("it gets no more room: {0}")]
    Expand(Status),
    /// It was taken over or failed meanwhile.
    #[error("it was taken over by another node, or its files failed; the log says which")]
    Lost,
    /// It takes too long, and goes on.
    #[error(
        "it was begun and is not done: its disk is full or does not answer; it goes on by itself, try again to \
         see it done"
    )]
    Slow,
    /// The worker has ended.
    #[error("its worker has ended; restart the data plane")]
    WorkerGone,
}

/// Where the answer goes.
pub(crate) type Reply<T> = Sender<Result<T, ChangeError>>;

/// A change under way.
pub(super) enum Change {
    Grow {
        blocks: u64,
        reply: Reply<()>,
    },
    Expand {
        reply: Reply<()>,
    },
    /// `durable`: with a checkpoint; `rests`: it is being written.
    Freeze {
        durable: bool,
        rests: bool,
        reply: Reply<Saved>,
    },
    Leave {
        leave: Leave,
        stage: Stage,
        reply: Reply<Target>,
    },
}

/// How far the leave of a volume has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// NVMe hosts take note, until then.
    Notice { until_ns: u64 },
    /// Connections that cannot stay hand out nothing more and are closed, at the latest then.
    Drain { until_ns: u64 },
    /// The volume comes to rest.
    Rest,
}

/// Nothing is taken from a session and nothing more handed out for it: its volume is about to go to another worker,
/// which gives it a turn there, or here if it stays; or the volume is being let go, and its connection with it.
pub(super) fn is_held_up(target: &Target, session: &Session) -> bool {
    target.quiesced || target.drains(session)
}

impl Server {
    /// Makes a volume larger; the answer comes when that is durable and NVMe hosts were told.
    pub fn grow(&mut self, now_ns: u64, volume: VolumeId, blocks: u64, reply: Reply<()>) {
        let outcome = self.unchanging(volume).and_then(|target| target.grow(blocks));
        match outcome {
            Ok(()) => self.begin(now_ns, volume, Change::Grow { blocks, reply }),
            // Whoever asked may have given up.
            Err(why) => drop(reply.send(Err(why))),
        }
    }

    /// Has a volume take room before it is short of any; the answer comes when it has it, or there is none.
    pub fn expand(&mut self, now_ns: u64, volume: VolumeId, reply: Reply<()>) {
        match self.unchanging(volume).and_then(|target| target.expand()) {
            Ok(()) => self.begin(now_ns, volume, Change::Expand { reply }),
            // Whoever asked may have given up.
            Err(why) => drop(reply.send(Err(why))),
        }
    }

    /// Lets a volume go; the answer comes when it is closed, with what is to be dropped elsewhere. Who asks again is
    /// the one who is answered.
    pub fn leave(&mut self, now_ns: u64, volume: VolumeId, leave: Leave, reply: Reply<Target>) {
        if let Some(target) = self.targets.get_mut(volume.0 as usize).and_then(Option::as_mut)
            && let Some(Change::Leave { leave: other, reply: waiting, .. }) = &mut target.change
            && *other == leave
        {
            *waiting = reply;
            return;
        }
        match self.unchanging(volume).map(|_target| ()) {
            Ok(()) => {
                let stage = self.tell_leave(volume, leave, now_ns);
                self.begin(now_ns, volume, Change::Leave { leave, stage, reply });
                self.wake(volume);
            }
            Err(why) => drop(reply.send(Err(why))),
        }
    }

    /// Says how NVMe hosts reach a volume from now on.
    pub fn set_access(&mut self, volume: VolumeId, access: Access) -> Result<(), ChangeError> {
        let changed = self.subsystem_of(volume).ok_or(ChangeError::Unknown)?.set_access(volume, access);
        changed.map_err(|_unknown| ChangeError::Unknown)?;
        self.wake(volume);
        Ok(())
    }

    /// A volume that is not being let go, nor to another worker.
    pub(super) fn unchanging(&mut self, volume: VolumeId) -> Result<&mut Target, ChangeError> {
        let target = self.targets.get_mut(volume.0 as usize).and_then(Option::as_mut);
        let target = target.ok_or(ChangeError::Unknown)?;
        if target.is_leaving() || target.quiesced { Err(ChangeError::Busy) } else { Ok(target) }
    }

    pub(super) fn begin(&mut self, now_ns: u64, volume: VolumeId, change: Change) {
        if let Some(target) = self.targets[volume.0 as usize].as_mut() {
            target.change = Some(change);
        }
        if !self.changing.contains(&volume) {
            self.changing.push(volume);
        }
        self.change_ns = Some(now_ns);
        self.set_busy(volume);
    }

    /// Moves every change on.
    #[cold]
    pub(super) fn change(&mut self, now_ns: u64) {
        for at in (0..self.changing.len()).rev() {
            let volume = self.changing[at];
            if self.step_change(now_ns, volume) {
                self.changing.swap_remove(at);
            }
        }
        self.change_ns = (!self.changing.is_empty()).then_some(now_ns + LOOK_NS);
    }

    /// True when the change of a volume is done.
    fn step_change(&mut self, now_ns: u64, volume: VolumeId) -> bool {
        let target = self.targets.get_mut(volume.0 as usize).and_then(Option::as_mut);
        let Some(target) = target else { return true };
        match &target.change {
            None => true,
            Some(Change::Grow { .. }) => self.step_grow(volume),
            Some(Change::Expand { .. }) => self.step_expand(volume),
            Some(Change::Freeze { .. }) => self.step_freeze(now_ns, volume),
            Some(Change::Leave { leave, stage, .. }) => {
                let (leave, stage) = (*leave, *stage);
                self.step_leave(now_ns, volume, leave, stage)
            }
        }
    }

    fn step_grow(&mut self, volume: VolumeId) -> bool {
        let Some(target) = self.targets[volume.0 as usize].as_mut() else { return true };
        let Some(Change::Grow { blocks, reply }) = &target.change else { return true };
        let outcome = match target.grown() {
            Some(now) if now >= *blocks => Ok(()),
            Some(_) => return false,
            None => Err(ChangeError::Lost),
        };
        let (blocks, reply) = (*blocks, reply.clone());
        target.change = None;
        if let Some(subsystem) = self.subsystem_of(volume).filter(|_| outcome.is_ok()) {
            // Without its namespace there is nobody to tell.
            let _ = subsystem.resize(volume, blocks);
        }
        // Whoever asked may have given up.
        let _ = reply.send(outcome);
        self.wake(volume);
        true
    }

    fn step_expand(&mut self, volume: VolumeId) -> bool {
        let Some(target) = self.targets[volume.0 as usize].as_mut() else { return true };
        let outcome = match target.expanded() {
            // It may wait for memory, or for its log, which nothing else has it look at.
            None => {
                self.set_busy(volume);
                return false;
            }
            Some(Status::Ok) => Ok(()),
            Some(why) => Err(ChangeError::Expand(why)),
        };
        if let Some(Change::Expand { reply }) = target.change.take() {
            // Whoever asked may have given up.
            let _ = reply.send(outcome);
        }
        true
    }

    fn step_leave(&mut self, now_ns: u64, volume: VolumeId, leave: Leave, stage: Stage) -> bool {
        let next = match stage {
            Stage::Notice { until_ns } => {
                let subsystem =
                    self.targets[volume.0 as usize].as_ref().and_then(|one| one.subsystem.as_ref());
                let is_attached = subsystem.is_some_and(|subsystem| subsystem.controllers() > 0);
                let is_over = !is_attached || now_ns >= until_ns;
                if is_over { Stage::Drain { until_ns: now_ns + DRAIN_NS } } else { stage }
            }
            Stage::Drain { until_ns } => {
                // Who waits for a frozen volume is not answered here any more.
                let frozen = self.targets[volume.0 as usize].as_ref().is_some_and(|target| target.frozen);
                let left = self.drain(volume, leave, frozen || now_ns >= until_ns);
                let Some(target) = self.targets[volume.0 as usize].as_mut() else { return true };
                if frozen {
                    target.drop_held();
                }
                let is_over = left == 0 && !target.is_busy();
                if is_over {
                    target.rest();
                }
                if frozen || is_over {
                    self.set_busy(volume);
                }
                if !is_over {
                    return false;
                }
                Stage::Rest
            }
            Stage::Rest => return self.let_go(volume, leave),
        };
        if let Some(target) = self.targets[volume.0 as usize].as_mut()
            && let Some(Change::Leave { stage, .. }) = &mut target.change
        {
            *stage = next;
        }
        false
    }

    /// Closes the connections that cannot stay, once nothing of them is under way or `at_once`; says how many
    /// are left.
    fn drain(&mut self, volume: VolumeId, leave: Leave, at_once: bool) -> usize {
        let mut left = 0;
        for index in 0..self.connections.len() {
            let Some(connection) = self.connections[index].as_mut() else { continue };
            if connection.volume() != volume || !connection.session.ends_with(leave) {
                continue;
            }
            left += 1;
            if at_once || (connection.session.outstanding() == 0 && !connection.has_output()) {
                debug!(%volume, "a connection ends: its volume is served here no more");
                connection.end(&mut self.pool);
            }
            activate(&mut self.active, index as u32, connection);
        }
        left
    }

    /// Closes a volume that has come to rest. False while it has not.
    fn let_go(&mut self, volume: VolumeId, leave: Leave) -> bool {
        let Some(target) = self.targets[volume.0 as usize].as_mut() else { return true };
        if !target.is_idle() {
            self.set_busy(volume);
            return false;
        }
        if let Some(files) = self.files.as_mut().filter(|_| target.directory().is_some())
            && !files.detach(volume)
        {
            return false;
        }
        let Some(Change::Leave { reply, .. }) = target.change.take() else { return true };
        let mut gone = match leave {
            Leave::Standby => target.stand_by(),
            Leave::Gone => {
                self.forget_credits(volume);
                self.busy.retain(|&other| other != volume.0);
                self.set_sampling(volume, 0);
                let Some(target) = self.targets[volume.0 as usize].take() else { return true };
                *target
            }
        };
        gone.close(&mut self.pool);
        // Whoever asked may have given up; then it is dropped here.
        let _ = reply.send(Ok(gone));
        true
    }

    /// Gives every connection of a volume a turn.
    pub(super) fn wake(&mut self, volume: VolumeId) {
        let home = self.home_of(volume);
        for index in 0..self.connections.len() {
            if let Some(connection) = self.connections[index].as_mut()
                && (connection.volume() == volume || Some(connection.volume()) == home)
            {
                activate(&mut self.active, index as u32, connection);
            }
        }
    }

    /// Tells NVMe hosts that a volume is not reached here any more.
    fn tell_leave(&mut self, volume: VolumeId, leave: Leave, now_ns: u64) -> Stage {
        let drain = Stage::Drain { until_ns: now_ns + DRAIN_NS };
        let home = self.home_of(volume);
        let (frozen, stands_by) =
            self.target(volume).map_or((false, false), |target| (target.frozen, target.is_away()));
        let Some(subsystem) = self.subsystem_of(volume) else { return drain };
        match leave {
            Leave::Standby => {
                let _ = subsystem.set_access(volume, Access::Inaccessible);
                drain
            }
            Leave::Gone => {
                let alone = home == Some(volume);
                // A frozen volume goes to another node, though what was said of the time between may not have come: to a
                // host that has a path there it is not gone. A subsystem that stays here is without it, and a home is
                // behind none of its namespaces.
                let _ = match frozen && alone {
                    true => subsystem.set_access(volume, Access::Inaccessible),
                    false => subsystem.remove(volume),
                };
                // Where its hosts stay nobody has to take note in time. Who was told that it stands by uses another path
                // already; other volumes are not held up for that.
                let ends = subsystem.controllers() > 0 && alone && !stands_by;
                if ends { Stage::Notice { until_ns: now_ns + NOTICE_NS } } else { drain }
            }
        }
    }
}
