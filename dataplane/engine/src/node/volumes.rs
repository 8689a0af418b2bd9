//! What the rest of the process asks of volumes that workers serve.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use block::VolumeId;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use media::FaultSpec;
use session::nvme_tcp::Access;
use throttle::{Limits, Saved};

use super::{Handle, Node};
use crate::serve::{
    Arrival, ChangeError, Leave, MoveError, Moved, ServedFigures, Server, Target, TargetError,
};
use crate::worker::Command;

/// How long a worker may take to make a volume ready, or to change it.
const SERVE_WAIT: Duration = Duration::from_secs(30);
/// How long a volume may take from one worker to another; its worker gives up earlier.
const MOVE_WAIT: Duration = Duration::from_secs(10);

impl Node {
    /// Gives a volume to a worker to serve, with what it may do, or to the one that serves its names as a standby's.
    /// Returns when it is ready for connections.
    pub fn serve(&self, worker: usize, target: Target, limits: &Limits) -> Result<(), TargetError> {
        let volume = target.volume();
        let worker = self.owner(volume).unwrap_or(worker);
        let handle = self.workers.get(worker).ok_or(TargetError::WorkerGone)?;
        let files = Server::open_files(&target)?;
        let (target, limits) = (Box::new(target), Box::new(*limits));
        let asked = handle.ask_for(SERVE_WAIT, |reply| Command::Serve { target, files, limits, reply });
        asked.unwrap_or(Err(TargetError::WorkerGone))?;
        self.owners().insert(volume.0, worker);
        Ok(())
    }

    fn owners(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker that serves a volume, wherever it began.
    pub fn owner(&self, volume: VolumeId) -> Option<usize> {
        self.owners().get(&volume.0).copied()
    }

    /// The worker that serves a volume, or that is to.
    fn at(&self, worker: usize, volume: VolumeId) -> Option<&Handle> {
        self.workers.get(self.owner(volume).unwrap_or(worker))
    }

    /// Hands a served volume over to another worker, with its clients and its whole subsystem, while they use it. Returns when it is there,
    /// or stays where it was. One after the other.
    pub fn move_volume(&self, volume: VolumeId, to: usize) -> Result<Moved, MoveError> {
        let _alone = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.owner(volume).ok_or(MoveError::Absent(volume))?;
        let (reply, answer) = bounded(1);
        let command = Command::Move { volume, to, reply };
        self.workers[from].send(command).map_err(|()| MoveError::WorkerGone(from))?;
        let done = answer.recv_timeout(MOVE_WAIT).map_err(|_silent| MoveError::WorkerGone(from))??;
        // Who comes to the old one meanwhile is sent after it.
        self.owners().extend(done.volumes.iter().map(|volume| (volume.0, to)));
        Ok(done.moved)
    }

    /// Hands a connection to the worker that owns its volume. False when that worker has ended.
    pub fn connect(&self, worker: usize, arrival: Arrival) -> bool {
        let worker = self.at(worker, arrival.guest.volume());
        let sent = worker.map(|worker| worker.send(Command::Connect(Box::new(arrival))));
        sent == Some(Ok(()))
    }

    /// Changes what a served volume may do; its balances stay. False when its worker has ended.
    pub fn limit(&self, worker: usize, volume: VolumeId, limits: &Limits) -> bool {
        let limits = Box::new(*limits);
        let sent = self.at(worker, volume).map(|worker| worker.send(Command::Limit { volume, limits }));
        sent == Some(Ok(()))
    }

    /// Follows one in `one_in` requests of a served volume from now on; 0 = none. False when its worker has ended.
    pub fn sample(&self, worker: usize, volume: VolumeId, one_in: u32) -> bool {
        let sent = self.at(worker, volume).map(|worker| worker.send(Command::Sample { volume, one_in }));
        sent == Some(Ok(()))
    }

    /// Has things go wrong at the medium of a served volume from now on, as a drill. False when its worker has ended.
    pub fn set_faults(&self, worker: usize, volume: VolumeId, spec: &FaultSpec) -> bool {
        let spec = Box::new(spec.clone());
        let sent = self.at(worker, volume).map(|worker| worker.send(Command::Faults { volume, spec }));
        sent == Some(Ok(()))
    }

    /// The records of the requests that the workers follow, to be collected; they are handed out once.
    pub fn take_traces(&self) -> Vec<trace::Reader> {
        std::mem::take(&mut *self.traces.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a served volume larger. Returns when that is durable and NVMe hosts were told.
    pub fn grow(&self, worker: usize, volume: VolumeId, blocks: u64) -> Result<(), ChangeError> {
        self.change(worker, volume, |reply| Command::Grow { volume, blocks, reply })
    }

    /// Has a served volume take a slice of room ahead of what it needs. Returns when it has it, or there is none.
    pub fn expand(&self, worker: usize, volume: VolumeId) -> Result<(), ChangeError> {
        self.change(worker, volume, |reply| Command::Expand { volume, reply })
    }

    /// Has a served volume admit nothing any more. Returns when what was handed out is answered, and with `durable` in a
    /// checkpoint, with what its throttle has saved.
    pub fn freeze(&self, worker: usize, volume: VolumeId, durable: bool) -> Result<Saved, ChangeError> {
        self.change(worker, volume, |reply| Command::Freeze { volume, durable, reply })
    }

    /// Has a frozen volume go on.
    pub fn thaw(&self, worker: usize, volume: VolumeId) -> Result<(), ChangeError> {
        self.change(worker, volume, |reply| Command::Thaw { volume, reply })
    }

    /// Says how NVMe hosts reach a served volume.
    pub fn set_access(&self, worker: usize, volume: VolumeId, access: Access) -> Result<(), ChangeError> {
        self.change(worker, volume, |reply| Command::Access { volume, access, reply })
    }

    /// Lets served volumes go, all at the same time: worker, volume, and what becomes of it. Returns when all are
    /// closed, or which are not, and why.
    pub fn leave(&self, volumes: &[(usize, VolumeId, Leave)]) -> Result<(), (VolumeId, ChangeError)> {
        let end = Instant::now() + SERVE_WAIT;
        let asked = volumes.iter().map(|&(worker, volume, leave)| {
            let (reply, answer) = bounded(1);
            let sent = self.at(worker, volume).map(|one| one.send(Command::Leave { volume, leave, reply }));
            (volume, leave, answer, sent == Some(Ok(())))
        });
        // All are asked before the first answer is waited for.
        let asked: Vec<_> = asked.collect();
        let mut outcome = Ok(());
        for (volume, leave, answer, sent) in asked {
            let left = end.saturating_duration_since(Instant::now());
            match if sent { answer.recv_timeout(left) } else { Err(RecvTimeoutError::Disconnected) } {
                // Dropped here, away from the worker: unmapping its memory takes a while.
                Ok(Ok(_closed)) if leave == Leave::Gone => drop(self.owners().remove(&volume.0)),
                Ok(Ok(_closed)) => {}
                Ok(Err(why)) => outcome = outcome.and(Err((volume, why))),
                Err(RecvTimeoutError::Timeout) => outcome = outcome.and(Err((volume, ChangeError::Slow))),
                Err(RecvTimeoutError::Disconnected) => {
                    outcome = outcome.and(Err((volume, ChangeError::WorkerGone)));
                }
            }
        }
        outcome
    }

    fn change<T>(
        &self,
        worker: usize,
        volume: VolumeId,
        command: impl FnOnce(Sender<Result<T, ChangeError>>) -> Command,
    ) -> Result<T, ChangeError> {
        let worker = self.at(worker, volume).ok_or(ChangeError::WorkerGone)?;
        let (reply, answer) = bounded(1);
        worker.send(command(reply)).map_err(|()| ChangeError::WorkerGone)?;
        match answer.recv_timeout(SERVE_WAIT) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(ChangeError::Slow),
            Err(RecvTimeoutError::Disconnected) => Err(ChangeError::WorkerGone),
        }
    }

    /// Figures of the served volumes. Those of a worker that does not answer within a second are missing.
    pub fn served(&self) -> Vec<ServedFigures> {
        let ask = |worker: &Handle| worker.ask(|reply| Command::Served { reply });
        let mut newest = BTreeMap::new();
        // What two know of is on its way, or was: the later counts.
        for figures in self.workers.iter().filter_map(ask).flatten() {
            let known = newest.entry(figures.volume).or_insert(figures);
            if figures.at_ns > known.at_ns {
                *known = figures;
            }
        }
        newest.into_values().collect()
    }
}
