//! Volumes: what turns requests on blocks into reads and writes of files, and back.
//!
//! [`Volume`] is a thin volume as a machine without clock, thread or file: [`Volume::process`] takes an
//! [`block::Io`], [`Volume::step`] moves on, [`Volume::dispatch`] hands out [`block::Request`]s for a medium,
//! [`Volume::complete`] takes the medium's answers, [`Volume::finished`] gives the [`block::Done`]s. [`FlatVolume`] is
//! the same for plain bytes (memory, null). [`open`] recovers a thin volume from its directory; [`store`] creates,
//! lists, checks, dumps, resizes and deletes. The bytes on the medium are drawn in docs/format.md.
//!
//! One write: it takes slots for its pages (`write.rs`), the pages are written, its record joins the next batch of
//! the log (`commit.rs`), then the volume looks whether a higher epoch exists, then it answers. One read: the
//! page is found (`map.rs`, `read.rs`), read, and compared with its CRC. When the log is long, its changes are
//! merged into new leaves and a checkpoint is written (`merge.rs`).
//!
//! Invariants (decisions D8 to D10): nothing that somebody may read is overwritten; a page is used again only
//! when the record that freed it is durable and no higher epoch existed after that; requests that overlap keep
//! their order; what is answered to a flush is on stable media; every queue is bounded.
//!
//! Not yet: joining leaves that became nearly empty; moving live pages out of extents that are nearly empty; making a
//! volume smaller while it serves.

#![forbid(unsafe_code)]

mod directory;
mod flat;
pub mod format;
mod map;
mod open;
mod space;
pub mod store;
mod survey;
mod volume;

#[cfg(any(test, feature = "crash"))]
pub mod crash;

pub use directory::{Directory, HostDirectory};
pub use flat::FlatVolume;
pub use open::{OpenError, Recovery, open};
pub use volume::{Config, Health, Stats, Volume};

#[cfg(test)]
mod tests;
