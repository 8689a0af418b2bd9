//! The agent of one data plane: its configuration, its statistics, its metrics.
//!
//! - [`config`] reads the daemon's one file and turns it into what the engine runs.

#![forbid(unsafe_code)]

pub mod config;
