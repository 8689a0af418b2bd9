//! An NVMe/TCP host: one volume, reached through one or more controllers.
//!
//! ```text
//! Paths ── which way is best; what is lost on one way goes another ── Controller ── admin queue: alive? ANA?
//!                                                                     └ Connection: socket + Queue (no I/O)
//! ```
//!
//! Each path has as many I/O queues as the load has connections; a connection of the load is the queue of its
//! number on whichever path is the best now. Reads, writes and flushes are all it sends.

mod connection;
mod controller;
mod pages;
mod paths;
mod queue;

pub(super) use paths::Paths;

/// Who the host is and what it asks of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The host's NQN.
    pub host_nqn: String,
    /// NSID.
    pub namespace: u32,
    /// CRC32C of every header.
    pub header_digest: bool,
    /// CRC32C of all data.
    pub data_digest: bool,
    /// Both sides count places of a queue; every read then has a completion of its own.
    pub flow_control: bool,
    /// KATO, milliseconds; 0 for none. A controller that does not answer for that long is lost.
    pub keep_alive_ms: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            host_nqn: "nqn.2014-08.org.nvmexpress:uuid:7469646f-6761-4465-8c6f-616400000001".to_owned(),
            namespace: 1,
            header_digest: false,
            data_digest: false,
            flow_control: false,
            keep_alive_ms: 5000,
        }
    }
}

impl Options {
    /// HOSTID: follows from the name, so that all queues of a host are one host's.
    fn host_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        for (salt, place) in id.chunks_exact_mut(4).enumerate() {
            let hash = crc32c::crc32c_append(salt as u32 + 1, self.host_nqn.as_bytes());
            place.copy_from_slice(&hash.to_le_bytes());
        }
        // All zeroes are no identifier.
        id[0] |= 1;
        id
    }
}

/// What a path is set up for.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// NQN.
    pub subsystem: String,
    pub options: Options,
    /// I/O queues.
    pub connections: u32,
    /// Commands of each under way.
    pub depth: u32,
    /// Length of each request.
    pub block_bytes: u32,
    /// What is read is kept.
    pub keep: bool,
}
