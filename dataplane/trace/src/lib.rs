//! Where the time of an I/O went (capabilities F3 and F4).
//!
//! A worker follows one I/O in so many ([`Sampler`]). A followed I/O has a place in the worker's [`Tracer`], which is told
//! what it did until when ([`Stage`]): its spans lie end to end, so that they add up to its whole time. When its
//! last byte was sent, they become records of 64 bytes in the worker's [`ring`](ring()), which overwrites its oldest.
//!
//! A [`Collector`] on another thread reads the rings, puts the records of an I/O together again ([`Trace`]), keeps
//! histograms per volume and stage, and tells the outliers of each class of I/Os from what is usual in it. Whether it
//! runs or stands still costs the workers nothing; what it did not come to read in time is counted as lost.
//!
//! Time is an argument everywhere: ns of the monotonic clock.
//!
//! Invariants: the worker's side allocates nothing per I/O once its table has grown, takes no lock and waits for nobody; a
//! reader never sees half a record; every table here has a bound.

#![forbid(unsafe_code)]

mod class;
mod collector;
mod histogram;
mod record;
mod ring;
mod sample;
mod sync;
mod tracer;

pub use class::{Class, OutlierConfig, Usual};
pub use collector::{Collector, CollectorConfig, Counts, Outlier, Query, Span, Trace, VolumeLatency};
pub use histogram::Histogram;
pub use record::{Kind, Medium, RECORD_BYTES, Record, Stage, status_name};
pub use ring::{Reader, Writer, ring};
pub use sample::Sampler;
pub use tracer::{DEPENDENCIES_MAX, LIVE_MAX, SPANS_MAX, Start, Tracer, TracerCounters};
