//! Storage protocol targets: bytes in, I/O out; completions in, bytes out.
//!
//! A session is a machine without socket, clock or thread. Whoever owns the socket (the acceptor, then a
//! worker) hands it what arrived (`process_*`), hands its I/Os to a [`Sink`] (`step`), gives it the answers
//! (`complete`), and sends what it has to say (`dispatch_*`). So the same code runs under tests, fuzzing and
//! the poll loop, and a session moves between threads as a value.
//!
//! - [`nbd`]: the Network Block Device protocol.
//! - [`nvme_tcp`]: NVMe over TCP.
//!
//! Invariants: no bytes of a client make a session panic, allocate without bound or touch another session;
//! what it cannot follow ends it with a typed reason. Payload is copied once, from the receive buffer into
//! the page-aligned buffer that goes to the medium, and not at all on the way back. After set-up nothing is
//! allocated per request. A session that is over still takes its answers until the last buffer is home.

#![forbid(unsafe_code)]

pub mod nbd;
pub mod nvme_tcp;

use block::{Io, Lba, Op, TraceId, VolumeId};
use frame::IoBuffer;

/// A request, as whoever decides whether it is followed must know it.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    /// The volume asked.
    pub volume: VolumeId,
    /// What is asked for.
    pub op: Op,
    /// First block.
    pub lba: Lba,
    /// Length in bytes.
    pub bytes: u32,
    /// When the request had been read.
    pub received_ns: u64,
}

/// Where the I/Os of a session go.
pub trait Sink {
    /// Whether a request is followed through every step (capability F3), and under which id; 0 = it is not. Asked once for
    /// each request, before anything is asked for it. What was followed comes out of `ended` when its answer was sent.
    fn follow(&mut self, _request: &Follow) -> TraceId {
        TraceId(0)
    }

    /// A followed request has its credits, and its host was asked for the payload.
    fn asked(&mut self, _trace: TraceId) {}

    /// Asks for credits. `false`: not now; the request stays in the session's queue, where the host feels it
    /// as a slow device, and the next `step` asks again. Only reads and changes are asked for; flushes and
    /// questions about allocation go out at once.
    fn admit(&mut self, volume: VolumeId, op: Op, lba: Lba, bytes: u32) -> bool;

    /// What was asked for last is not wanted any more: what waits for it need not.
    fn withdraw(&mut self, volume: VolumeId);

    /// Takes the I/O, whose answer must come back through `complete`. `received_ns` is when its request had
    /// been read.
    fn submit(&mut self, io: Io<IoBuffer>, received_ns: u64);
}
