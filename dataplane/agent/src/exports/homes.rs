//! Subsystems that have names of their own: which there are, and the volumes behind their namespaces
//! (docs/decisions/067). Also the numbers of all that is served, since a subsystem's place has one as well.
//!
//! Invariants: a subsystem is there as long as a volume is behind it; it has the worker that it was moved to, so those
//! that come later go there.

use std::collections::BTreeMap;

use engine::block::VolumeId;
use engine::throttle::Limits;
use engine::{Leave, SERVED_MAX, Target};
use tracing::{info, warn};

use super::{ExportsError, Round, open, too_many};
use crate::config::exports::Wanted;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Homes {
    /// The number to try next.
    next: u32,
    places: BTreeMap<String, VolumeId>,
    /// Volumes, and the places that they are behind.
    members: BTreeMap<VolumeId, VolumeId>,
}

impl Homes {
    /// A number that nothing has, as far as possible from those that were given last.
    pub fn number(&mut self, is_volume: impl Fn(VolumeId) -> bool) -> Option<VolumeId> {
        for _ in 0..SERVED_MAX {
            let number = VolumeId(self.next % SERVED_MAX);
            self.next = number.0 + 1;
            if !is_volume(number) && self.places.values().all(|place| *place != number) {
                return Some(number);
            }
        }
        None
    }

    /// A volume is behind a subsystem.
    pub fn join(&mut self, volume: VolumeId, home: Option<VolumeId>) {
        if let Some(home) = home {
            self.members.insert(volume, home);
        }
    }

    /// A volume is behind none any more.
    pub fn leave(&mut self, volume: VolumeId) {
        self.members.remove(&volume);
    }

    /// Those behind which nothing is any more.
    fn take_empty(&mut self) -> Vec<(String, VolumeId)> {
        let members = &self.members;
        self.places.extract_if(.., |_, place| members.values().all(|home| home != place)).collect()
    }
}

/// The one can come only when the other is gone: it is to be the same namespace, or the same subsystem changes.
pub(super) fn collide(old: &Wanted, new: &Wanted) -> bool {
    let same = old.nqn.is_some() && old.nqn == new.nqn;
    same && (old.namespace == new.namespace || old.hosts != new.hosts || old.worker != new.worker)
}

impl Round<'_> {
    /// The place of the subsystem of this name and its worker; it is made if it is not there.
    pub(super) fn home(&mut self, nqn: &str, wanted: &Wanted) -> Result<(VolumeId, usize), ExportsError> {
        if let Some(home) = self.homes.places.get(nqn) {
            return Ok((*home, self.node.owner(*home).unwrap_or(wanted.worker)));
        }
        let failed = |source| ExportsError::Serve { name: wanted.name.clone(), source };
        let subsystem = open::named_subsystem(nqn, &wanted.hosts, self.settings.controllers);
        let subsystem = subsystem.map_err(failed)?;
        let numbers = &self.numbers;
        let home = self.homes.number(|number| numbers.contains(&number)).ok_or_else(too_many)?;
        let target = Target::home(home, subsystem);
        let served = self.node.serve(wanted.worker, target, &Limits::unlimited());
        served.map_err(|source| failed(source.into()))?;
        self.homes.places.insert(nqn.to_owned(), home);
        Ok((home, wanted.worker))
    }

    /// Lets subsystems go behind which nothing is any more. Their hosts have heard that the last namespace is gone, and
    /// have some time before their connections are closed.
    pub(super) fn close_homes(&mut self) {
        let empty = self.homes.take_empty();
        // INVARIANT: where it was served is known, so it is found wherever it was moved.
        let asked: Vec<_> = empty.iter().map(|(_, home)| (0, *home, Leave::Gone)).collect();
        if let Err((home, why)) = self.node.leave(&asked) {
            warn!(%home, "a subsystem without namespaces: {why}");
        }
        for (nqn, _) in empty {
            info!(nqn, "closed: none of its namespaces is left");
        }
    }
}
