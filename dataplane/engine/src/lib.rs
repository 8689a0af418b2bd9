//! The pinned worker: one loop, idle ladder, budgets, counters.

#![forbid(unsafe_code)]

pub mod awake;
pub mod clock;
pub mod counters;
pub mod handshake;
pub mod idle;
pub mod seqlock;
mod sync;
pub mod wait;
