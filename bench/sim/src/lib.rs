//! A virtual world around the control plane's core, in which everything goes wrong that can, from a seed.
//!
//! Nodes, the control plane, its store, media, people and policies are values; time is a number; messages are entries
//! of one queue. A seed decides all of it, so it reproduces byte for byte: [`Outcome::digest`] is over every event.
//!
//! - [`world`] has the queue and hands events out; [`network`] loses, doubles, delays and cuts; [`plane`] is the control
//!   plane's process with its store, [`node`] a node with what it keeps on disk, [`media`] where volumes are written.
//! - [`people`] ask for things, and ask again when they hear nothing; [`policy`] answers, late, wrongly or not at all.
//! - [`invariants`]: one file each, checked while things happen.
//! - [`bug`]: mistakes planted on purpose, at the seams between the product and this world. None is in the product.
//!
//! First everything fails, for most of the events; then the world heals, and must converge.

#![forbid(unsafe_code)]

pub mod bug;
pub mod invariants;
pub mod media;
pub mod network;
pub mod node;
pub mod people;
pub mod plane;
pub mod policy;
pub mod world;

pub use bug::Bug;
pub use invariants::Violation;
pub use world::{Faults, Outcome, Setup, run};
