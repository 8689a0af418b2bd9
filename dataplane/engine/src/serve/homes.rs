//! Subsystems with several namespaces (docs/decisions/067).
//!
//! A volume whose subsystem has no other namespace carries that along. Where a subsystem has a name of its own it has
//! a place of its own among the served too, its home: a target without bytes, to which its hosts' connections belong.
//! The volumes behind its namespaces are at the same worker, know their home, and come and go beside their hosts.
//!
//! Invariants: a home and all volumes that name it are at one worker; a volume is behind a namespace of its home from
//! when it is added until it is let go.

use ::session::nvme_tcp::{Access, Namespace, Subsystem};
use block::VolumeId;

use super::{Server, Target, TargetError};

impl Server {
    pub(super) fn target(&mut self, volume: VolumeId) -> Option<&mut Target> {
        self.targets.get_mut(volume.0 as usize)?.as_deref_mut()
    }

    /// The place of the subsystem in which a volume is a namespace.
    pub(super) fn home_of(&self, volume: VolumeId) -> Option<VolumeId> {
        let target = self.targets.get(volume.0 as usize)?.as_deref()?;
        if target.subsystem.is_some() { Some(volume) } else { target.home }
    }

    /// The subsystem in which a volume is a namespace.
    pub(super) fn subsystem_of(&mut self, volume: VolumeId) -> Option<&mut Subsystem> {
        let home = self.home_of(volume)?;
        self.target(home)?.subsystem.as_deref_mut()
    }

    /// Shows a volume as a namespace of the subsystem at `home`.
    pub(super) fn show(&mut self, home: VolumeId, namespace: Namespace) -> Result<(), TargetError> {
        let target = self.target(home).filter(|target| !target.is_leaving());
        let subsystem = target.and_then(|target| target.subsystem.as_deref_mut());
        subsystem.ok_or(TargetError::NoSubsystem(home))?.add(namespace)?;
        Ok(())
    }

    /// Hosts of a standby hear that it has become a volume.
    pub(super) fn tell_arrival(&mut self, volume: VolumeId) {
        let blocks = self.target(volume).map_or(0, |target| target.blocks());
        // INVARIANT: the namespace is there, since the names were not let go.
        if let Some(subsystem) = self.subsystem_of(volume) {
            let _ = subsystem.resize(volume, blocks);
            let _ = subsystem.set_access(volume, Access::Optimized);
        }
    }

    /// When requests are received is noted where one of the volumes behind a home has some of its followed: a volume has
    /// come or gone, or it is followed now or no more.
    pub(super) fn follow_home_of(&mut self, volume: VolumeId) {
        let Some(home) = self.home_of(volume).filter(|home| *home != volume) else { return };
        let is_followed = |target: &Target| target.home == Some(home) && target.sampler.is_on();
        let follows = self.targets.iter().flatten().any(|target| is_followed(target));
        if let Some(target) = self.target(home) {
            target.sampler.set(follows.into());
        }
    }

    /// What goes to another worker together with a volume, and that.
    pub(super) fn together(&self, volume: VolumeId) -> Vec<VolumeId> {
        let Some(target) = self.targets.get(volume.0 as usize).and_then(Option::as_deref) else {
            return Vec::new();
        };
        let home = if target.is_home() { Some(volume) } else { target.home };
        let Some(home) = home else { return vec![volume] };
        let all = self.targets.iter().flatten();
        let together = all.filter(|target| target.volume() == home || target.home == Some(home));
        together.map(|target| target.volume()).collect()
    }

    /// Nobody waits for credits of a volume any more, since it goes: those that did find out that it is gone.
    pub(super) fn forget_credits(&mut self, volume: VolumeId) {
        self.shaper.remove_volume(volume.0, &mut |_ticket| {});
        for connection in self.connections.iter_mut().flatten() {
            connection.credits.forget(volume);
        }
        self.wake(volume);
    }
}
