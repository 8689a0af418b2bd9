//! What is known about served volumes.

use block::VolumeId;

use super::{Server, TargetCounters};

/// What is known about a served volume at one instant.
#[derive(Clone, Copy, Debug)]
pub struct ServedFigures {
    /// Its number.
    pub volume: u32,
    /// That instant, ns of the monotonic clock.
    pub at_ns: u64,
    /// Who serves it.
    pub worker: usize,
    /// I/Os and bytes.
    pub target: TargetCounters,
    /// Connections, with those of NVMe hosts to all of its subsystem.
    pub connections: u32,
    /// Connections that were closed at once, because there were too many.
    pub refused: u64,
    /// Another owner has it: everything is refused here.
    pub fenced: bool,
    /// What its limits have let through and held up.
    pub credits: throttle::VolumeCounters,
    /// Balances now.
    pub balance: throttle::VolumeBalance,
}

impl Server {
    /// Figures of all volumes, and those that volumes had when they went to another worker.
    pub fn figures(&self, now_ns: u64) -> Vec<ServedFigures> {
        let here =
            self.targets.iter().flatten().filter_map(|target| self.figures_of(now_ns, target.volume()));
        self.moves.last_figures().chain(here).collect()
    }

    pub(super) fn figures_of(&self, now_ns: u64, volume: VolumeId) -> Option<ServedFigures> {
        let target = self.targets.get(volume.0 as usize)?.as_ref().filter(|target| !target.is_home())?;
        // Whoever is attached to its subsystem is attached to it.
        let home = target.home.and_then(|home| self.targets.get(home.0 as usize)?.as_ref());
        Some(ServedFigures {
            volume: volume.0,
            at_ns: now_ns,
            worker: self.moves.worker(),
            target: target.counters(),
            connections: target.connections + home.map_or(0, |home| home.connections),
            refused: target.refused + home.map_or(0, |home| home.refused),
            fenced: target.is_fenced(),
            credits: self.shaper.counters(volume.0)?,
            balance: self.shaper.balances(now_ns, volume.0)?,
        })
    }
}
