//! Policies in WebAssembly: admitted, shadowed, activated, rolled back, logged and replayed.
//!
//! - [`Engine`] and [`Limits`]: what a call may use.
//! - [`Gate::admit`] makes a [`Policy`] of a component, or says why not.
//! - [`Policies`] is the life cycle: push, shadow, activate with the state of the version before, roll back.
//! - [`Seat`] is a policy thread's place: it answers [`verdict::Question`]s with the active policy, and with the
//!   native default when there is none, or when it abstains, faults or lies.
//! - [`log`] is what was decided, [`replay`] decides it again, [`author`] is what an author does without a server.
//!
//! Invariants: a policy never runs on a data-plane core; it gets time, seed and epoch as arguments and has no other
//! way to learn them; every answer has passed [`verdict::Question::check`] before it leaves this crate; a fault costs
//! one decision its policy and nobody a decision. `unsafe` stands in one function of `cache.rs`.

#![deny(unsafe_code)]

pub mod author;
mod cache;
mod digest;
mod engine;
mod fault;
mod guest;
mod lifecycle;
pub mod log;
mod policy;
pub mod replay;
mod seat;
mod shadow;
mod status;
mod trust;
mod values;
pub mod workload;

pub use cache::Cache;
pub use digest::{Digest, PolicyId};
pub use engine::{Engine, EngineError, Limits};
pub use fault::{Fault, FaultClass};
pub use guest::State;
pub use lifecycle::library::{LIBRARY_MAX, RemoveError};
pub use lifecycle::{ActivateError, Activation, Options, Policies, Start};
pub use policy::{Admission, AdmitError, Candidate, Config, Gate, Policy};
pub use seat::Seat;
pub use shadow::{Comparison, Difference};
pub use status::{CountersRead, KindStatus, LifeEvent, PolicyStatus, ShadowStatus, Status, wall_ms};
pub use trust::{Trust, TrustError, bytes_of};
