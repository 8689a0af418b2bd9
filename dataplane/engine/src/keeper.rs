//! Opening ports, off the workers: opening one costs system calls of milliseconds, and an interface may be
//! missing, down or forbidden for hours.
//!
//! The keeper is one ordinary thread. It tries every port that is not open, hands it to the worker that
//! polls it, and starts over when the worker reports that it failed. What it knows is published as
//! [`PortState`] for `stats` and metrics; each change is logged once, with what to do about it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use frame::Slab;
use port::{Port, PortCaps, PortSpec};
use tracing::{info, warn};

/// How often a port that cannot be opened is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What is known about one port of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Not open yet, or no more, and why.
    Down {
        /// What happened and what to do.
        why: String,
    },
    /// Polled by its worker.
    Up {
        /// What it can do.
        caps: PortCaps,
    },
}

/// The states of all ports, in the order of the plan.
pub type PortStates = Arc<Mutex<Vec<PortState>>>;

/// A port to keep open.
pub(crate) struct Kept {
    pub name: String,
    pub spec: PortSpec,
    /// Hands an open port to its worker; false when the worker has ended.
    pub hand_over: Box<dyn Fn(Box<dyn Port>) -> bool + Send>,
}

/// From a worker: this port of the plan failed and is closed.
pub(crate) struct PortFailed {
    pub plan_index: usize,
    pub why: String,
}

/// Runs until every sender of `failures` is gone. Calls `changed` after each port that came up or went.
pub(crate) fn run(
    kept: &[Kept],
    slab: &Arc<Slab>,
    failures: &Receiver<PortFailed>,
    states: &PortStates,
    changed: &Sender<()>,
) {
    let mut waiting: Vec<usize> = (0..kept.len()).collect();
    let mut next_try = Instant::now();
    loop {
        let pause = if waiting.is_empty() {
            Duration::from_secs(3600)
        } else {
            next_try.saturating_duration_since(Instant::now())
        };
        match failures.recv_timeout(pause) {
            Ok(failed) => {
                warn!(port = %kept[failed.plan_index].name, "{}", failed.why);
                set(states, failed.plan_index, PortState::Down { why: failed.why });
                waiting.push(failed.plan_index);
                // A full channel already says that something changed.
                let _ = changed.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => {
                let before = waiting.len();
                waiting.retain(|&index| !try_open(&kept[index], index, slab, states));
                if waiting.len() != before {
                    let _ = changed.try_send(());
                }
                next_try = Instant::now() + RETRY;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// True when the port needs no further try.
fn try_open(kept: &Kept, index: usize, slab: &Arc<Slab>, states: &PortStates) -> bool {
    match port::open(&kept.spec, slab) {
        Ok(port) => {
            let caps = port.caps();
            set(states, index, PortState::Up { caps });
            info!(port = %kept.name, mtu_bytes = caps.mtu_bytes, "port is up");
            (kept.hand_over)(port);
            true
        }
        Err(error) => {
            let why = error.to_string();
            let news = {
                let states = states.lock().unwrap_or_else(PoisonError::into_inner);
                !matches!(&states[index], PortState::Down { why: known } if *known == why)
            };
            if news {
                warn!(port = %kept.name, "{why}; trying again every {} ms", RETRY.as_millis());
                set(states, index, PortState::Down { why });
            }
            false
        }
    }
}

fn set(states: &PortStates, index: usize, state: PortState) {
    states.lock().unwrap_or_else(PoisonError::into_inner)[index] = state;
}
