//! The protocol that a connection speaks.
//!
//! Both protocols are machines of one form; what differs is that a queue of NVMe is driven together with its
//! subsystem, which belongs to the volume as well.

use std::net::SocketAddr;

use block::{Done, TraceId, VolumeId};
use frame::{IoBuffer, IoPool};
use session::nbd::{Transmission, TransmissionError, UnknownTag, Wait};
use session::nvme_tcp::{Attach, Queue, QueueError, Slices, Subsystem};

use super::stream::Stalled;
use super::{Hands, Leave};

/// A client whose handshake is done.
#[derive(Debug)]
pub enum Guest {
    /// An NBD client that has chosen the volume.
    Nbd(Box<Transmission>),
    /// An NVMe host that has sent Connect to a subsystem.
    Nvme {
        /// The place of the subsystem: its volume, or its home.
        volume: VolumeId,
        /// What it asks for.
        attach: Box<Attach>,
        /// Where it has reached us.
        local: SocketAddr,
    },
}

impl Guest {
    /// The volume it came for, or the place of the subsystem.
    pub fn volume(&self) -> VolumeId {
        match self {
            Guest::Nbd(session) => session.attach().export.volume(),
            Guest::Nvme { volume, .. } => *volume,
        }
    }
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    #[error(transparent)]
    Nbd(#[from] TransmissionError),
    #[error(transparent)]
    Nvme(#[from] QueueError),
    #[error(transparent)]
    Tls(#[from] Stalled),
}

/// A client's session.
pub(super) enum Session {
    Nbd(Box<Transmission>),
    Nvme(VolumeId, Box<Queue>),
}

impl Session {
    /// `None` if the volume is not there for the client's protocol.
    pub fn new(guest: Guest, subsystem: Option<&mut Subsystem>, now_ns: u64) -> Option<Session> {
        Some(match guest {
            Guest::Nbd(session) => Session::Nbd(session),
            Guest::Nvme { volume, attach, local } => {
                Session::Nvme(volume, Box::new(Queue::new(*attach, local, subsystem?, now_ns)))
            }
        })
    }

    pub fn volume(&self) -> VolumeId {
        match self {
            Session::Nbd(session) => session.attach().export.volume(),
            Session::Nvme(volume, _) => *volume,
        }
    }

    /// It copies its volume and asks what changed.
    pub fn copies(&self) -> bool {
        matches!(self, Session::Nbd(session) if session.attach().changed)
    }

    /// I/Os handed out and not answered.
    pub fn outstanding(&self) -> u32 {
        match self {
            Session::Nbd(session) => session.outstanding(),
            Session::Nvme(_, queue) => queue.outstanding(),
        }
    }

    /// Its connection ends when the volume is let go so: an NVMe host stays attached to a standby, an NBD client
    /// cannot.
    pub fn ends_with(&self, leave: Leave) -> bool {
        leave == Leave::Gone || matches!(self, Session::Nbd(_))
    }

    /// Payload memory held for the client.
    pub fn held_bytes(&self) -> usize {
        match self {
            Session::Nbd(session) => session.held_bytes(),
            Session::Nvme(_, queue) => queue.held_bytes(),
        }
    }

    /// Payload that came unasked and can grow while the client waits for credits. An NVMe host is asked for
    /// its payload once there are credits; what comes with its commands is bounded by the queue's places.
    pub fn unasked_bytes(&self) -> usize {
        match self {
            Session::Nbd(session) => session.held_bytes(),
            Session::Nvme(..) => 0,
        }
    }

    /// What is held comes free only when more input is taken.
    pub fn awaits_payload(&self) -> bool {
        match self {
            Session::Nbd(_) => false,
            Session::Nvme(_, queue) => queue.awaits_payload(),
        }
    }

    /// Regions of memory that a step leaves for payload that comes with commands.
    pub fn arriving_regions(&self) -> u32 {
        match self {
            Session::Nbd(_) => 0,
            Session::Nvme(..) => 1,
        }
    }

    pub fn is_finished(&self) -> bool {
        match self {
            Session::Nbd(session) => session.is_finished(),
            Session::Nvme(_, queue) => queue.is_finished(),
        }
    }

    pub fn wants_input(&self) -> bool {
        match self {
            Session::Nbd(session) => session.wants_input(),
            Session::Nvme(_, queue) => queue.wants_input(),
        }
    }

    pub fn has_output(&self) -> bool {
        match self {
            Session::Nbd(session) => session.has_output(),
            Session::Nvme(_, queue) => queue.has_output(),
        }
    }

    pub fn process_bytes(&mut self, bytes: &[u8], pool: &mut IoPool, now_ns: u64) -> Result<usize, Over> {
        match self {
            Session::Nbd(session) => Ok(session.process_bytes(bytes, pool, now_ns)?),
            Session::Nvme(_, queue) => Ok(queue.process_bytes(bytes, pool, now_ns)),
        }
    }

    pub fn step(
        &mut self,
        subsystem: Option<&mut Subsystem>,
        pool: &mut IoPool,
        hands: &mut Hands<'_>,
    ) -> Wait {
        match (self, subsystem) {
            (Session::Nbd(session), _) => session.step(pool, hands),
            (Session::Nvme(_, queue), Some(subsystem)) => {
                let now_ns = hands.now_ns;
                queue.step(subsystem, pool, hands, now_ns)
            }
            // INVARIANT: a queue was made with its subsystem, which stays as long as its volume.
            (Session::Nvme(..), None) => Wait::Nothing,
        }
    }

    pub fn wants_step(&self) -> bool {
        match self {
            Session::Nbd(session) => session.wants_step(),
            Session::Nvme(_, queue) => queue.wants_step(),
        }
    }

    pub fn complete(&mut self, done: Done<IoBuffer>, pool: &mut IoPool) -> Result<(), UnknownTag> {
        match self {
            Session::Nbd(session) => session.complete(done, pool),
            Session::Nvme(_, queue) => queue.complete(done, pool),
        }
    }

    pub fn dispatch_bytes<'a>(&'a self, pool: &'a IoPool, slices: &mut Slices<'a>) {
        match self {
            Session::Nbd(session) => session.dispatch_bytes(pool, slices),
            Session::Nvme(_, queue) => queue.dispatch_bytes(pool, slices),
        }
    }

    pub fn sent(&mut self, bytes: usize, pool: &mut IoPool) {
        match self {
            Session::Nbd(session) => session.sent(bytes, pool),
            Session::Nvme(_, queue) => queue.sent(bytes, pool),
        }
    }

    /// Hands out the followed requests whose answer was sent.
    pub fn ended(&mut self, mut each: impl FnMut(TraceId)) {
        match self {
            Session::Nbd(session) => session.ended().for_each(&mut each),
            Session::Nvme(_, queue) => queue.ended().for_each(&mut each),
        }
    }

    pub fn expire(&mut self, subsystem: Option<&Subsystem>, now_ns: u64) -> Result<(), Over> {
        match (self, subsystem) {
            (Session::Nbd(session), _) => Ok(session.expire(now_ns)?),
            (Session::Nvme(_, queue), Some(subsystem)) => Ok(queue.expire(subsystem, now_ns)?),
            (Session::Nvme(..), None) => Err(QueueError::Gone.into()),
        }
    }

    pub fn excuse(&mut self, now_ns: u64) {
        match self {
            Session::Nbd(session) => session.excuse(now_ns),
            Session::Nvme(_, queue) => queue.excuse(now_ns),
        }
    }

    pub fn abort(&mut self, pool: &mut IoPool) {
        match self {
            Session::Nbd(session) => session.abort(pool),
            Session::Nvme(_, queue) => queue.abort(pool),
        }
    }

    /// What is finished gives its place back.
    pub fn leave(&mut self, subsystem: Option<&mut Subsystem>) {
        if let (Session::Nvme(_, queue), Some(subsystem)) = (self, subsystem) {
            queue.leave(subsystem);
        }
    }
}
