//! Holding the I/O of a volume for a hand-over to another node (docs/decisions/051).
//!
//! A frozen volume admits nothing: what its clients send waits in their sessions, as if they were over a limit. It is
//! still when the writes that were handed out are answered and, where another node is to open the same files, a
//! checkpoint has all of them. A copy reads what was answered, durable or not, and what hosts flushed is durable
//! already; so it is not waited for the disk there, while hosts wait.
//!
//! Invariants: a copy goes on reading; other volumes notice nothing; a frozen volume can be let go.

use block::VolumeId;
use throttle::Saved;

use super::Server;
use super::change::{Change, ChangeError, Reply};

impl Server {
    /// Admits nothing any more; the answer comes when the volume is still, with what its throttle has saved.
    pub fn freeze(&mut self, now_ns: u64, volume: VolumeId, durable: bool, reply: Reply<Saved>) {
        match self.unchanging(volume).map(|target| target.frozen = true) {
            Ok(()) => self.begin(now_ns, volume, Change::Freeze { durable, rests: false, reply }),
            // Whoever asked may have given up.
            Err(why) => drop(reply.send(Err(why))),
        }
    }

    /// Goes on.
    pub fn thaw(&mut self, volume: VolumeId) -> Result<(), ChangeError> {
        let target = self.unchanging(volume)?;
        target.thaw();
        target.change.take_if(|change| matches!(change, Change::Freeze { .. }));
        self.set_busy(volume);
        self.connections.iter_mut().flatten().for_each(|connection| connection.credits.hold(volume, false));
        self.wake(volume);
        Ok(())
    }

    /// True when the volume is still, or never will be.
    pub(super) fn step_freeze(&mut self, now_ns: u64, volume: VolumeId) -> bool {
        let Some(target) = self.targets[volume.0 as usize].as_mut() else { return true };
        let Some(Change::Freeze { durable, rests, .. }) = &mut target.change else { return true };
        let durable = *durable;
        if target.writes > 0 {
            return false;
        }
        if durable && !std::mem::replace(rests, true) {
            target.checkpoint();
            self.set_busy(volume);
            return false;
        }
        let outcome = match target.is_settled() {
            Some(false) if durable => {
                self.set_busy(volume);
                return false;
            }
            Some(_) => self.shaper.balances(now_ns, volume.0).ok_or(ChangeError::Unknown),
            None => Err(ChangeError::Lost),
        };
        if let Some(Change::Freeze { reply, .. }) = target.change.take() {
            // Whoever asked may have given up.
            let _ = reply.send(outcome.map(|balance| balance.saved()));
        }
        true
    }
}
