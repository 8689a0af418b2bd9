//! The engine: pinned workers that carry frames from port to port.
//!
//! - [`Node`] is a running node; [`Plan`] is what it is made of, [`Snapshot`] what it currently does.
//! - `worker` is the loop: one thread, one clock reading per turn. `io` are its ports, rings and counters;
//!   `gateway` is the pipeline that a frame takes. `keeper` opens ports, away from the workers.
//! - [`idle`], [`awake`] and [`wait`] decide when a worker spins, pauses and sleeps (capability F8), with
//!   [`handshake`] making sure that nothing sent to a sleeper is missed.
//! - [`counters`] and [`seqlock`] let others read what a worker counts; [`clock`] is its time.
//!
//! Invariants: a worker allocates nothing, takes no lock and makes no system call per frame; every frame is
//! sent, parked or counted under one reason (decision D18); a volume is metered by exactly one worker.

#![forbid(unsafe_code)]

pub mod awake;
pub mod clock;
pub mod counters;
mod gateway;
pub mod handshake;
pub mod idle;
mod io;
mod keeper;
mod mark;
mod meeting;
mod node;
mod offline;
mod plan;
pub mod seqlock;
mod serve;
mod snapshot;
mod sync;
pub mod wait;
mod worker;

pub use gateway::RuleCount;
pub use keeper::PortState;
pub use node::{GROUPS_MAX, Node, PARKED_FRAMES_MAX, PublishError, SOURCES_MAX};
pub use offline::{Offline, OfflineError};
pub use plan::{Plan, PlanError, PortPlan, PortRole, RING_FRAMES, WORKERS_MAX, WorkerPlan};
pub use serve::{
    Arrival, CONNECTIONS_MAX, ChangeError, Guest, Leave, MoveError, Moved, SERVED_MAX, ServePlan,
    ServedFigures, Stream, Target, TargetCounters, TargetError,
};
pub use snapshot::{PoolSize, Pools, Snapshot, Throttle};
pub use worker::{VolumeFigures, WorkerDied};

/// What a configuration is built of, for crates that may use the engine but not what lies below it.
pub use {block, frame, media, overlay, port, rustls, session, throttle, trace, volume, wire};
