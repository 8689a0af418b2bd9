//! Throttle: who may send now, who waits, and until when (decision D1, capability F2).
//!
//! A [`Shaper`] belongs to one worker. The worker asks [`Shaper::admit`] for every request (a frame of a
//! storage connection; later an I/O) and passes it on, or leaves it parked with the shaper, or drops it
//! because the volume's bound is reached. Once per turn it calls [`Shaper::release`], which hands back the
//! parked requests whose time has come; before it sleeps it asks [`Shaper::next_deadline_ns`].
//!
//! The layers, from the request inwards:
//! - `limits`: what a person configures, validated once into numbers that cannot overflow;
//! - `volume`: the buckets of one volume (`burst`, `work`, `peak`, each in bytes and in packets) in three
//!   cache lines, with D1's order of asking and paying;
//! - `tariff` and `streams`: reduced charges from the node's slack, and the sequential discount;
//! - `pool` and `drr`: what volumes share, a tenant group or the node, and the ring in which they take
//!   turns while it is short; `shared`: a pool that several workers draw from;
//! - `parking` and `wheel`: the bounded queues and the timers of those that wait;
//! - `shaper`: all of it put together; `control`: setting it up, changing and reading it.
//!
//! Everything is pure: time is the argument `now_ns`, there is no I/O, no thread and no clock.
//! `docs/throttle.md` carries a worked trace with the curve.
//!
//! Invariants:
//! - Balances are whole nano-tokens in `i128` (a rate of one per second earns one nano-token per
//!   nanosecond), so all arithmetic is exact and nothing is divided on the way of a request; only the
//!   time to wait is, and it is rounded up to the next nanosecond.
//! - Requests of one volume and lane leave in the order in which they came.
//! - Nothing is allocated after construction but at configuration calls, and no input panics.

#![forbid(unsafe_code)]

mod api;
mod bucket;
mod control;
mod drr;
mod limits;
mod moving;
mod parking;
mod pool;
mod shaper;
mod shared;
mod streams;
mod tariff;
mod volume;
mod wheel;

#[cfg(test)]
mod model;

pub use api::{
    Admission, Balance, Cost, Lane, Parked, Released, Saved, ShaperConfig, VolumeBalance, VolumeCounters,
};
pub use limits::{
    BANDS, BURST_UNITS_MAX, Band, Burst, DEFAULT_WEIGHT, DimLimits, Dimension, Limits, LimitsError,
    ParkLimits, PoolError, PoolLimits, PoolRate, RATE_MAX, Ratio, Work,
};
pub use moving::Moving;
pub use shaper::Shaper;
pub use shared::SharedBucket;
