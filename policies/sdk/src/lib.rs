//! What a policy author depends on.
//!
//! A policy is a type that implements [`Policy`] (its life) and one of [`Scheduling`], [`Leasing`] and
//! [`Migration`] (its decisions), exported with [`export!`]:
//!
//! ```ignore
//! sdk::export!(leasing: CapacityWeighted, wit: "../../wit");
//! ```
//!
//! A policy is called with all that it may know. It has no clock, no randomness and no file: the same calls
//! in the same order give the same answers, or the host refuses it. It runs on little fuel; see docs/policies.md.
//!
//! Invariants: a policy holds no more state than it can export, and bounds each of its tables.

#![forbid(unsafe_code)]

mod config;
mod export;
pub mod words;

pub use config::Config;
pub use verdict::*;
pub use wit_bindgen;

/// The types of `wit/types.wit`, where the generated code looks for them.
pub mod types {
    pub use verdict::{
        Accounts, Assignments, Candidates, Choice, Forecast, Leases, Producers, Profile, Resources, Rules,
        Samples, Tenants, Tick, Timing, Transfer, Victims, Weights,
    };
}

/// The life of a policy.
pub trait Policy: Sized {
    /// One sentence.
    const SUMMARY: &'static str;

    /// How to read what [`Policy::save`] writes. Give each layout its own number, and each policy its own hundred.
    const SCHEMA: u32;

    /// A policy that has seen nothing yet. Keys that are not taken from `config` are refused.
    fn new(config: &mut Config) -> Result<Self, String>;

    /// What the next version goes on from.
    fn save(&self) -> Vec<u8>;

    /// Goes on from what a version before this one, or another policy, has saved. An error keeps this policy
    /// from being activated: give one for a schema that you cannot read.
    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String>;
}
