//! Answers to tenants: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861) for addresses behind tunnels.

use frame::{DropReason, Frame, Pool};

use crate::Tables;

/// What became of a tenant's request.
#[derive(Debug)]
#[must_use]
pub enum Answer {
    /// The frame now is the answer: transmit it on its `egress_port`. Count the request under
    /// [`DropReason::Answered`] and the answer as generated.
    Reply(Frame),
    /// Freed without an answer (a probe for an address of the sender's own): count it.
    Dropped(DropReason),
    /// Nobody here knows the address: trap the frame.
    Trap(Frame),
}

/// Answers a request that [`crate::process_tenant`] judged [`crate::Verdict::Local`].
pub fn process(tables: &Tables, pool: &mut Pool, frame: Frame) -> Answer {
    let _ = (tables, pool);
    Answer::Trap(frame)
}
