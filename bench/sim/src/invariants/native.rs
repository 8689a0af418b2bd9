//! A policy's fault is the native default's decision: nothing waits for a policy beyond the time that it has.

use control_core::Core;

use super::First;

/// The longest that a question may be open.
const OPEN_MS: u64 = 200;

/// Open questions.
#[derive(Clone, Debug, Default)]
pub struct Native {
    /// The first violation.
    pub first: First,
}

impl Native {
    /// After each step of the core, which does what is due first.
    pub fn after_step(&mut self, core: &Core) {
        let open = core.oldest_question_ms();
        self.first
            .check(open <= OPEN_MS, || format!("a policy was asked {open} ms ago and is still waited for"));
    }
}
