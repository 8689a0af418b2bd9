//! Which nodes are there (F17): silence is judged, but not by a watcher that was itself away.
//!
//! - Silence makes a node suspect, longer silence lost. A suspect that is heard is alive at once; a lost one must be
//!   heard for a while without a gap, twice as long each time it is lost again soon.
//! - A watcher that started, or was late, judges nobody for as long as it takes to be lost.
//! - The valve: when a large part of the fleet falls silent at once, the fault is more likely here than there. Nobody
//!   more is declared lost until enough are heard, or a person says so.
//!
//! Nothing here is an authority to write: epochs are (decision D11).

use std::collections::{BTreeMap, BTreeSet};

use contract::{NodeId, NodeState};

use crate::config::Config;

/// Losses closer together than this make a node flap.
const FLAP_MS: u64 = 60_000;
/// Nodes declared lost by one judgement; the others are by the next.
const LOST_AT_ONCE: usize = 16;
/// Most doublings of the time to return.
const FLAPS_MAX: u32 = 6;

#[derive(Clone, Debug)]
struct Heard {
    state: NodeState,
    last_ms: u64,
    /// Since when it was heard without a gap.
    since_ms: u64,
    lost_ms: Option<u64>,
    flaps: u32,
}

/// What is known of the fleet.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    nodes: BTreeMap<NodeId, Heard>,
    /// The most silent first; lost ones are not in it.
    watched: BTreeSet<(u64, NodeId)>,
    judges_from_ms: u64,
    shut: bool,
    opened_until_ms: u64,
}

/// What judging led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Nodes whose state is another now.
    pub changes: Vec<(NodeId, NodeState)>,
    /// The valve shut just now: so many are silent, of so many.
    pub shut: Option<(usize, usize)>,
}

impl Liveness {
    /// The watcher was away, or has just begun.
    pub fn was_away(&mut self, now_ms: u64, config: &Config) {
        self.judges_from_ms = self.judges_from_ms.max(now_ms.saturating_add(config.lost_after_ms));
    }

    /// A node that was stored, with its state; it counts as heard now.
    pub fn add(&mut self, id: NodeId, state: NodeState, now_ms: u64) {
        let lost_ms = (state == NodeState::Lost).then_some(0);
        self.nodes.insert(id, Heard { state, last_ms: now_ms, since_ms: now_ms, lost_ms, flaps: 0 });
        if state != NodeState::Lost {
            self.watched.insert((now_ms, id));
        }
    }

    /// Forgets a node.
    pub fn remove(&mut self, id: NodeId) {
        if let Some(gone) = self.nodes.remove(&id) {
            self.watched.remove(&(gone.last_ms, id));
        }
    }

    /// How a node is.
    pub fn state(&self, id: NodeId) -> NodeState {
        self.nodes.get(&id).map_or(NodeState::Lost, |node| node.state)
    }

    /// How long a node has been silent.
    pub fn silent_ms(&self, id: NodeId, now_ms: u64) -> u64 {
        self.nodes.get(&id).map_or(u64::MAX, |node| now_ms.saturating_sub(node.last_ms))
    }

    /// Whether the valve is shut.
    pub fn is_shut(&self) -> bool {
        self.shut
    }

    /// A person says that those who are silent are lost indeed.
    pub fn open_valve(&mut self, now_ms: u64, config: &Config) {
        self.shut = false;
        self.opened_until_ms = now_ms.saturating_add(config.lost_after_ms.saturating_mul(2));
    }

    /// A node was heard. Returns its state if that is another now.
    pub fn heard(&mut self, id: NodeId, now_ms: u64, config: &Config) -> Option<NodeState> {
        let node = self.nodes.get_mut(&id)?;
        self.watched.remove(&(node.last_ms, id));
        if now_ms.saturating_sub(node.last_ms) >= config.suspect_after_ms {
            node.since_ms = now_ms;
        }
        node.last_ms = now_ms;
        self.watched.insert((now_ms, id));
        let trusted_after = config.return_after_ms << node.flaps.min(FLAPS_MAX);
        let state = match node.state {
            NodeState::Suspect => NodeState::Alive,
            NodeState::Lost => {
                node.since_ms = now_ms;
                NodeState::Returning
            }
            NodeState::Returning if now_ms.saturating_sub(node.since_ms) >= trusted_after => NodeState::Alive,
            other => other,
        };
        let changed = state != node.state;
        node.state = state;
        changed.then_some(state)
    }

    /// Judges the silent ones. Cost: those whose silence is long enough to matter.
    pub fn judge(&mut self, now_ms: u64, config: &Config) -> Verdicts {
        let mut verdicts = Verdicts::default();
        let since = |ms: u64| now_ms.saturating_sub(ms);
        let silent: Vec<NodeId> = self
            .watched
            .iter()
            .take_while(|(last, _)| since(*last) >= config.suspect_after_ms)
            .map(|(_, id)| *id)
            .collect();
        let mut dead = Vec::new();
        for id in silent {
            // INVARIANT: what is watched is in `nodes`.
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            if since(node.last_ms) >= config.lost_after_ms {
                dead.push(id);
            }
            if node.state == NodeState::Alive {
                node.state = NodeState::Suspect;
                verdicts.changes.push((id, NodeState::Suspect));
            }
        }
        if now_ms < self.judges_from_ms {
            return verdicts;
        }
        if !self.valve(&dead, now_ms, config, &mut verdicts) {
            return verdicts;
        }
        for id in dead.into_iter().take(LOST_AT_ONCE) {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            let again = node.lost_ms.is_some_and(|lost| lost > 0 && since(lost) < FLAP_MS);
            node.flaps = if again { (node.flaps + 1).min(FLAPS_MAX) } else { 0 };
            node.lost_ms = Some(now_ms.max(1));
            node.state = NodeState::Lost;
            self.watched.remove(&(node.last_ms, id));
            verdicts.changes.push((id, NodeState::Lost));
        }
        verdicts
    }

    /// Whether the silent may be judged.
    fn valve(&mut self, dead: &[NodeId], now_ms: u64, config: &Config, verdicts: &mut Verdicts) -> bool {
        let window = config.lost_after_ms.saturating_mul(2);
        let just_lost = |node: &&Heard| {
            node.state == NodeState::Lost
                && node.lost_ms.is_some_and(|lost| lost > 0 && now_ms.saturating_sub(lost) < window)
        };
        if dead.is_empty() {
            self.shut = false;
            return true;
        }
        if now_ms < self.opened_until_ms {
            return true;
        }
        let recent = self.nodes.values().filter(just_lost).count();
        let fleet = self.watched.len() + recent;
        let many = fleet.div_ceil(usize::try_from(config.valve_share.max(1)).unwrap_or(usize::MAX)).max(2);
        let silent = dead.len() + recent;
        let shuts = silent >= many;
        if shuts && !self.shut {
            verdicts.shut = Some((silent, fleet));
        }
        self.shut = shuts;
        !shuts
    }

    /// When somebody may have to be judged next.
    pub fn due_ms(&self, config: &Config) -> Option<u64> {
        let (last, id) = self.watched.first()?;
        let suspected = self.nodes.get(id).is_some_and(|node| node.state != NodeState::Alive);
        let after = if suspected { config.lost_after_ms } else { config.suspect_after_ms };
        let due = last.saturating_add(after);
        Some(if suspected { due.max(self.judges_from_ms) } else { due })
    }
}

#[cfg(test)]
#[path = "liveness/tests.rs"]
mod tests;
