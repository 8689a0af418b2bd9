//! What a node sees and somebody should do something about (capability F1): damage, a medium without room, a worker or
//! a node with more than it can do. A condition is said in every report while it lasts; the control plane folds what it
//! knows already.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use contract::{Condition, EventKind, Trigger, VolumeId};

/// For so long is said what was met once: reports may be lost.
const SAID: Duration = Duration::from_secs(10);
/// Share of its time that a worker works, or of its capacity that a node uses, from which on it has too much ...
const HOT_PPM: u32 = 900_000;
/// ... if it is so in so many looks one after the other; there is one a second.
const HOT_LOOKS: u32 = 5;
/// A worker that works less can take a volume over.
const COOL_PPM: u32 = 500_000;

/// An open volume at one look.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Which.
    pub volume: VolumeId,
    /// The worker that serves it.
    pub worker: usize,
    /// What it used of the node's capacity in the last second.
    pub used_ppm: u32,
    /// Pages that were not as they had been written, since it was opened.
    pub pages_corrupt: u64,
    /// Times that its medium had no room, since it was opened. A volume grows ahead, while it has some room for what waits to
    /// be written and for more: so this is met before a write is refused for it.
    pub expansions_refused: u64,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Conditions {
    faults: BTreeMap<(VolumeId, EventKind), Fault>,
    /// Of each worker: for how many looks it has had too much.
    workers_hot: Vec<u32>,
    node_hot: u32,
    /// Of workers and the node.
    hot: Vec<Condition>,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    count: u64,
    met: Option<Instant>,
}

impl Conditions {
    /// Looks at all open volumes, the share of its time that each worker has worked, and the share of its capacity that
    /// the node has used.
    pub fn look(&mut self, at: Instant, volumes: &[Seen], workers_ppm: &[u32], node_ppm: u32) {
        let open: BTreeSet<VolumeId> = volumes.iter().map(|seen| seen.volume).collect();
        self.faults.retain(|(volume, _), _| open.contains(volume));
        for seen in volumes {
            self.count(at, seen.volume, EventKind::Damaged, seen.pages_corrupt);
            self.count(at, seen.volume, EventKind::SpaceLow, seen.expansions_refused);
        }
        self.hot.clear();
        self.workers_hot.resize(workers_ppm.len(), 0);
        for (worker, ppm) in workers_ppm.iter().enumerate() {
            let looks = &mut self.workers_hot[worker];
            *looks = if *ppm >= HOT_PPM { *looks + 1 } else { 0 };
            if *looks >= HOT_LOOKS && workers_ppm.iter().any(|other| *other < COOL_PPM) {
                let here = volumes.iter().filter(|seen| seen.worker == worker);
                self.hot.extend(second_busiest(here).map(|volume| because(EventKind::WorkerHot, volume)));
            }
        }
        self.node_hot = if node_ppm >= HOT_PPM { self.node_hot + 1 } else { 0 };
        if self.node_hot >= HOT_LOOKS {
            let goes = goes_elsewhere(volumes, node_ppm);
            self.hot.extend(goes.map(|volume| because(EventKind::NodeHot, volume)));
        }
    }

    fn count(&mut self, at: Instant, volume: VolumeId, kind: EventKind, count: u64) {
        if count == 0 && !self.faults.contains_key(&(volume, kind)) {
            return;
        }
        // What was there when it was seen first was met then.
        let fault = self.faults.entry((volume, kind)).or_insert(Fault { count: 0, met: None });
        if count > fault.count {
            fault.met = Some(at);
        }
        fault.count = count;
    }

    /// What there is to be said.
    pub fn said(&self, now: Instant) -> Vec<Condition> {
        let lasts = |fault: &Fault| fault.met.is_some_and(|met| now.saturating_duration_since(met) < SAID);
        let faults = self.faults.iter().filter(|(_, fault)| lasts(fault));
        let faults = faults.map(|((volume, kind), _)| because(*kind, *volume));
        faults.chain(self.hot.iter().copied()).collect()
    }
}

fn because(kind: EventKind, volume: VolumeId) -> Condition {
    let trigger = if kind == EventKind::Damaged { Trigger::Failure } else { Trigger::Threshold };
    Condition { kind, volume, trigger }
}

/// The busiest one stays: it would take its load along.
fn second_busiest<'a>(volumes: impl Iterator<Item = &'a Seen>) -> Option<VolumeId> {
    let mut busy: Vec<&Seen> = volumes.filter(|seen| seen.used_ppm > 0).collect();
    busy.sort_unstable_by_key(|seen| std::cmp::Reverse(seen.used_ppm));
    busy.get(1).map(|seen| seen.volume)
}

/// The volume that uses least of those without which the node has what it can do; without such a one the busiest. A
/// volume that has the node for itself stays.
fn goes_elsewhere(volumes: &[Seen], node_ppm: u32) -> Option<VolumeId> {
    let mut busy: Vec<&Seen> = volumes.iter().filter(|seen| seen.used_ppm > 0).collect();
    busy.sort_unstable_by_key(|seen| seen.used_ppm);
    let enough = busy.iter().find(|seen| node_ppm.saturating_sub(seen.used_ppm) < HOT_PPM);
    enough.or(busy.last()).filter(|_| busy.len() > 1).map(|seen| seen.volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(volume: u64, worker: usize, used_ppm: u32) -> Seen {
        Seen { volume: VolumeId(volume), worker, used_ppm, pages_corrupt: 0, expansions_refused: 0 }
    }

    fn kinds(said: &[Condition]) -> Vec<(EventKind, u64)> {
        said.iter().map(|condition| (condition.kind, condition.volume.0)).collect()
    }

    #[test]
    fn what_was_met_once_is_said_for_a_while_and_again_when_it_is_met_again() {
        let mut conditions = Conditions::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut one = seen(1, 0, 0);
        conditions.look(at(0), &[one], &[0], 0);
        assert!(conditions.said(at(0)).is_empty());
        (one.pages_corrupt, one.expansions_refused) = (1, 1);
        conditions.look(at(1), &[one], &[0], 0);
        let both = [(EventKind::SpaceLow, 1), (EventKind::Damaged, 1)];
        assert_eq!(kinds(&conditions.said(at(1))), both);
        one.expansions_refused = 2;
        conditions.look(at(8), &[one], &[0], 0);
        assert_eq!(kinds(&conditions.said(at(12))), both[..1]);
        assert!(conditions.said(at(18)).is_empty());
        // It was opened anew, and then it is gone.
        one.expansions_refused = 0;
        conditions.look(at(19), &[one], &[0], 0);
        one.expansions_refused = 1;
        conditions.look(at(20), &[one], &[0], 0);
        assert_eq!(kinds(&conditions.said(at(20))), both[..1]);
        conditions.look(at(21), &[], &[0], 0);
        assert!(conditions.said(at(21)).is_empty());
    }

    #[test]
    fn who_has_too_much_for_a_while_gives_a_volume_away_that_helps() {
        let mut conditions = Conditions::default();
        let now = Instant::now();
        let volumes = [seen(1, 0, 400_000), seen(2, 0, 100_000), seen(3, 0, 450_000), seen(4, 1, 0)];
        for look in 1..=HOT_LOOKS {
            conditions.look(now, &volumes, &[950_000, 100_000], 950_000);
            assert_eq!(conditions.said(now).is_empty(), look < HOT_LOOKS, "{look}");
        }
        // Without volume 2 the node is below its bound already; volume 3 is the busiest of its worker.
        assert_eq!(kinds(&conditions.said(now)), [(EventKind::WorkerHot, 1), (EventKind::NodeHot, 2)]);
        // Where all workers have enough to do, a move helps nobody.
        conditions.look(now, &volumes, &[950_000, 600_000], 0);
        assert!(conditions.said(now).is_empty());
        // A volume alone would take its load along.
        for _ in 0..=HOT_LOOKS {
            conditions.look(now, &volumes[..1], &[950_000, 100_000], 950_000);
        }
        assert!(conditions.said(now).is_empty());
    }
}
