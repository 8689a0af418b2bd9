//! An NVMe/TCP target: connections, the queues on them, and the controllers that they belong to.
//!
//! [`Setup`] belongs to the acceptor: it agrees on digests and alignment and reads the Connect command, which
//! says whose connection this is. It ends in an [`Attach`], which moves to the worker that owns the
//! subsystem (decision D6). There a [`Subsystem`] has its controllers, namespaces and hosts, and each
//! connection becomes a [`Queue`] of one of its controllers. One worker has all of them, so none needs a
//! lock: a queue is handed its subsystem when it is driven.
//!
//! Clauses in the comments are those of the NVM Express Base Specification 2.0 ("base"), the NVM Command Set
//! Specification 1.0 ("NVM") and the TCP Transport Specification 1.0 ("TCP").
//!
//! docs/protocols.md says which commands, logs, features and properties are served, and how the others are refused.
//! Abort takes back requests for events, and I/O commands that wait: for
//! credits, for memory, for their turn. Of what was handed out, or what the host was asked for the payload of, it says
//! that it was not aborted.
//!
//! Longest transfer: 1 MiB (MDTS), so each command is one I/O; a discard is one for each of its ranges. The
//! host sends up to 8 KiB of payload with the command; for more it is asked (R2T) when there are memory and
//! credits for it, all at once. So what waits at the limits of a volume waits in the host's memory.

mod abort;
mod admin;
mod connect;
mod controller;
mod errors;
mod features;
mod link;
mod log;
mod output;
mod queue;
mod setup;
mod slots;
mod subsystem;

pub use link::{Event, Link};
pub use queue::{Queue, QueueError};
pub use setup::{Attach, Next, Setup, SetupError};
pub use subsystem::{
    Access, CONTROLLER_LAST, ENTRIES_MAX, ENTRIES_MIN, Hosts, Listed, NAMESPACES_MAX, Namespace,
    NamespaceError, QUEUES_MAX, Subsystem, SubsystemError, SubsystemLimits, Taken, Unknown, is_nqn,
};

pub use crate::nbd::{Slices, UnknownTag, Wait};

/// Data that a command brings along: TCP clause 3.3.2.1 demands 8,192 bytes of Fabrics and admin commands;
/// I/O commands may have as much.
const CAPSULE_DATA_BYTES_MAX: u32 = 8192;
/// Requests for events that a controller keeps (AERL).
const EVENT_REQUESTS_MAX: usize = 4;
/// VS: 2.0.0.
const VERSION: u32 = 0x0002_0000;
/// MDTS: 1 MiB, in pages of 4 KiB.
const TRANSFER_PAGES_LOG2: u8 = 8;
/// MDTS of the discovery controller: 64 KiB. All its hosts share little memory, and hold it while they read.
const DISCOVERY_PAGES_LOG2: u8 = 4;
