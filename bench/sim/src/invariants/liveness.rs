//! Nobody is judged hastily: a node is lost only after silence, and a watcher that was away judges nobody before all
//! had the time to be heard.

use std::collections::BTreeMap;

use contract::NodeId;
use control_core::{Alarm, Core, Effects};

use super::First;

const LOST_MS: u64 = 1_500;
const AWAY_MS: u64 = 500;

/// What the watcher could have known.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    /// The first violation.
    pub first: First,
    heard: BTreeMap<NodeId, u64>,
    stepped_ms: Option<u64>,
    back_ms: u64,
}

impl Liveness {
    /// The control plane starts anew.
    pub fn started(&mut self, plane_ms: u64) {
        self.back_ms = plane_ms;
        self.stepped_ms = None;
    }

    /// After each step of the core, by the clock that it is given.
    pub fn after_step(&mut self, plane_ms: u64, core: &Core, effects: &Effects) {
        let since = |then: u64| plane_ms.saturating_sub(then);
        if self.stepped_ms.is_some_and(|last| since(last) > AWAY_MS) {
            self.back_ms = plane_ms;
        }
        self.stepped_ms = Some(plane_ms);
        for alarm in &effects.alarms {
            let Alarm::NodeLost(id) = alarm else { continue };
            let heard = self.heard.get(id).copied().unwrap_or(0);
            self.first.check(since(heard) >= LOST_MS, || {
                format!("{id} was heard {} ms ago and is lost", since(heard))
            });
            self.first.check(since(self.back_ms) >= LOST_MS, || {
                format!("the watcher is back for {} ms and {id} is lost", since(self.back_ms))
            });
        }
        for node in core.nodes() {
            if core.liveness().silent_ms(node.id, core.now_ms()) == 0 {
                self.heard.insert(node.id, plane_ms);
            }
        }
    }
}
