//! Every operation ends or explains itself.

use std::collections::BTreeMap;

use contract::{OperationId, Phase};
use control_core::{Core, explain::About};

use super::First;

/// Explanations.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// The first violation.
    pub first: First,
    unexplained: BTreeMap<OperationId, u32>,
}

/// Looks in a row at which an operation may say nothing about what holds it.
const SILENT_MAX: u32 = 4;

impl Ends {
    /// Now and then.
    pub fn after_step(&mut self, core: &Core) {
        let before = std::mem::take(&mut self.unexplained);
        for operation in core.operations().filter(|operation| !operation.phase.is_over()) {
            let Some(explanation) = core.explain(About::Operation(operation.id)) else {
                self.first.check(false, || format!("{} cannot be explained", operation.id));
                continue;
            };
            let says = explanation.reasons.iter().all(|reason| !reason.text.is_empty());

            let held = operation.blocked_on.is_some()
                || operation.plan.is_some()
                || operation.phase == Phase::Scheduled;
            let silent = if held { 0 } else { before.get(&operation.id).copied().unwrap_or(0) + 1 };
            self.unexplained.insert(operation.id, silent);
            self.first
                .check(says && silent <= SILENT_MAX, || format!("{operation:?} says only {explanation:?}"));
        }
    }
}
