//! Measuring: packet rates of our own pipelines, served volumes, peers side by side, and idling.
//!
//! - [`rate`]: nanoseconds per packet for pipelines, frame sizes and numbers of rules.
//! - [`peers`]: testpmd and OVS-DPDK interleaved with ours, fed the same packets.
//! - [`block`]: served volumes beside other servers, under [`load`], which `tidegate-load` is made of.
//! - [`trace`]: what following I/Os costs.
//! - [`idle`]: what falling asleep saves and costs.
//! - [`traffic`] makes packets and configurations, [`cell`] runs one real [`engine::Node`] and measures it,
//!   [`cpu`] reads what threads and processors spend, [`report`] writes tables, JSON lines and plots.
//!
//! What is measured is the worker's own loop, whole: the same code that `tidegate-dataplane` runs. Time is
//! the worker thread's time on its processor, so that a busy machine disturbs less; on a quiet machine it is
//! the elapsed time, because a worker under load never sleeps.

#![forbid(unsafe_code)]

pub mod block;
pub mod cell;
pub mod cpu;
pub mod idle;
pub mod load;
pub mod peers;
pub mod rate;
pub mod report;
pub mod space;
pub mod trace;
pub mod traffic;

/// A result whose error is a sentence for the person at the terminal.
pub type Outcome<T = ()> = Result<T, String>;

/// How a program ends, with what it says of its error.
pub fn exit(outcome: Outcome) -> std::process::ExitCode {
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
