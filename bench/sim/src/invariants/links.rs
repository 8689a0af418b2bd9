//! Reservations of one link do not overlap, and are of operations that are not over; a move that misses its deadline
//! says so.

use std::collections::BTreeMap;

use contract::Phase;
use control_core::{Core, explain::About};

use super::First;

/// Longest time that a move may be late and say nothing: what the core allows, and a step.
const SILENT_MS: u64 = 2_000;

/// Links and deadlines.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// The first violation.
    pub first: First,
}

impl Links {
    /// After each step of the core; `whole`: also whether who is late says so.
    pub fn after_step(&mut self, core: &Core, whole: bool) {
        let mut ends = BTreeMap::new();
        for (link, from, until, id) in core.reservations() {
            let before = ends.insert(link, until).unwrap_or(0);
            self.first.check(before <= from && from < until, || {
                format!("{id} reserves {link:?} from {from} to {until}, and another one until {before}")
            });
            let is_over = core.operation(id).is_none_or(|operation| operation.phase.is_over());
            self.first
                .check(!is_over, || format!("{id} is over and reserves {link:?} from {from} to {until}"));
        }
        if !whole {
            return;
        }
        for operation in core.operations().filter(|operation| operation.phase == Phase::Waiting) {
            let late = operation.deadline_ms.map_or(0, |deadline| core.now_ms().saturating_sub(deadline));
            if late < SILENT_MS {
                continue;
            }
            let explained = core.explain(About::Operation(operation.id));
            let says = explained.is_some_and(|explained| {
                explained.reasons.iter().any(|reason| reason.text.contains("was to begin"))
            });
            self.first.check(says, || format!("{} is late by {late} ms and does not say so", operation.id));
        }
    }
}
