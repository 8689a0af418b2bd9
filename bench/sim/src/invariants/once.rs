//! Nothing is done twice: an instruction is carried out once under its name, a request once under its key.

use std::collections::BTreeMap;

use contract::{Answer, InstructionKey, Refused};

use super::First;

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Once {
    /// The first violation.
    pub first: First,
    began: BTreeMap<InstructionKey, usize>,
}

impl Once {
    /// A node begins to carry out an instruction.
    pub fn began(&mut self, node: usize, key: InstructionKey) {
        let before = self.began.insert(key, node);
        self.first
            .check(before.is_none(), || format!("n{node} carries out {key}, which ran before: {before:?}"));
    }

    /// Somebody asked again for what was answered.
    pub fn answered_again(&mut self, command: &str, same: bool, result: &Result<Answer, Refused>) {
        self.first.check(same, || format!("{command} was answered anew: {result:?}"));
    }
}
