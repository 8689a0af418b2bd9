//! What becomes of a frame, and what was learnt about it on the way: one record per batch, next to it.

use frame::{BATCH, DropReason};
use wire::geneve::Tidegate;

use crate::classify::Pending;

/// What the worker has to do with a frame. The particulars are in its `Meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Into the tunnel: `next_hop`, `vni`, `volume`, `flow_hash`, `cost_bytes` and `Flags::EGRESS` are set;
    /// throttle, then [`crate::encapsulate`].
    Forward,
    /// To a tenant: `egress_port`, `attachment`, `volume`, `flow_hash`, `cost_bytes` are set and the VLAN
    /// tag is in place; throttle, then transmit.
    Deliver,
    /// To the trap port, else count [`DropReason::TrapNoPort`].
    Trap,
    /// For this node itself: from a tenant hand it to [`crate::responder::process`], from the underlay to
    /// [`crate::Neighbours::process`].
    Local,
    /// Count and free.
    Drop(DropReason),
}

/// Per-frame results of one batch. Reuse one per worker: entries beyond the batch keep old values.
#[derive(Clone, Debug)]
pub struct Outcomes {
    /// What to do.
    pub verdicts: [Verdict; BATCH],
    /// Which rule decided: an index below [`crate::Tables::rule_count`], or [`Outcomes::NO_RULE`] (dropped
    /// before the lookup, or decided by an endpoint).
    pub rules: [u32; BATCH],
    /// The Geneve option of decision D4 that the frame carried (underlay only; zero without one).
    pub options: [Tidegate; BATCH],
    pub(crate) pending: Pending,
}

impl Outcomes {
    /// No configured rule decided.
    pub const NO_RULE: u32 = u32::MAX;
}

impl Default for Outcomes {
    fn default() -> Outcomes {
        Outcomes {
            verdicts: [Verdict::Drop(DropReason::NoRule); BATCH],
            rules: [Outcomes::NO_RULE; BATCH],
            options: [Tidegate::default(); BATCH],
            pending: Pending::EMPTY,
        }
    }
}
