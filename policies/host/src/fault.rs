//! How a policy fails. Each fault is answered by the native default and counted under its class.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use verdict::Invalid;

/// What went wrong in a call of a policy; the sentence is shown by `tidegate explain`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// It gave up.
    #[error("the policy trapped: {0}")]
    Trap(String),
    /// It computed for too long.
    #[error("the policy used up its {fuel} units of fuel")]
    Fuel {
        /// The limit.
        fuel: u64,
    },
    /// It was too slow on a clock.
    #[error("the policy did not answer within {ms} ms")]
    Deadline {
        /// The limit.
        ms: u64,
    },
    /// It wanted more memory than there is for it.
    #[error("the policy wanted more than its {bytes} bytes of memory")]
    Memory {
        /// The limit.
        bytes: usize,
    },
    /// It recursed too deeply.
    #[error("the policy used up its stack of {bytes} bytes")]
    Stack {
        /// The limit.
        bytes: usize,
    },
    /// It called the host too often.
    #[error("the policy logged more than {lines} lines in one call")]
    LogSpam {
        /// The limit.
        lines: u32,
    },
    /// Its answer cannot be read.
    #[error("the policy's answer cannot be taken over: {0}")]
    Answer(String),
    /// Its answer must not be acted on.
    #[error("the policy's verdict is refused: {0}")]
    Invalid(#[from] Invalid),
    /// It cannot be started.
    #[error("the policy cannot be started: {0}")]
    Start(String),
    /// It does not take over or give its state.
    #[error("the policy's state: {0}")]
    State(String),
}

/// The kinds of fault, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FaultClass {
    /// See [`Fault::Trap`].
    Trap,
    /// See [`Fault::Fuel`].
    Fuel,
    /// See [`Fault::Deadline`].
    Deadline,
    /// See [`Fault::Memory`].
    Memory,
    /// See [`Fault::Stack`].
    Stack,
    /// See [`Fault::LogSpam`].
    LogSpam,
    /// See [`Fault::Answer`].
    Answer,
    /// See [`Fault::Invalid`].
    Invalid,
    /// See [`Fault::Start`].
    Start,
    /// See [`Fault::State`].
    State,
}

impl Fault {
    /// Its class.
    pub fn class(&self) -> FaultClass {
        match self {
            Fault::Trap(_) => FaultClass::Trap,
            Fault::Fuel { .. } => FaultClass::Fuel,
            Fault::Deadline { .. } => FaultClass::Deadline,
            Fault::Memory { .. } => FaultClass::Memory,
            Fault::Stack { .. } => FaultClass::Stack,
            Fault::LogSpam { .. } => FaultClass::LogSpam,
            Fault::Answer(_) => FaultClass::Answer,
            Fault::Invalid(_) => FaultClass::Invalid,
            Fault::Start(_) => FaultClass::Start,
            Fault::State(_) => FaultClass::State,
        }
    }

    /// Whether the instance may have been left in the middle of something. An answer that is merely refused
    /// came back in order.
    pub fn poisons(&self) -> bool {
        !matches!(self, Fault::Invalid(_))
    }
}

impl FaultClass {
    /// All of them.
    pub const ALL: [FaultClass; 10] = [
        FaultClass::Trap,
        FaultClass::Fuel,
        FaultClass::Deadline,
        FaultClass::Memory,
        FaultClass::Stack,
        FaultClass::LogSpam,
        FaultClass::Answer,
        FaultClass::Invalid,
        FaultClass::Start,
        FaultClass::State,
    ];

    /// Its name in counters.
    pub fn name(self) -> &'static str {
        match self {
            FaultClass::Trap => "trap",
            FaultClass::Fuel => "fuel",
            FaultClass::Deadline => "deadline",
            FaultClass::Memory => "memory",
            FaultClass::Stack => "stack",
            FaultClass::LogSpam => "log-spam",
            FaultClass::Answer => "answer",
            FaultClass::Invalid => "invalid",
            FaultClass::Start => "start",
            FaultClass::State => "state",
        }
    }
}
