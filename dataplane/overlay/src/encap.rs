//! Putting the outer headers on.

use frame::{DropReason, Frame, Pool};

use crate::{Neighbours, Tables};

/// What a frame carries through the tunnel beside itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Trace identifier for the Geneve option; 0 = not traced.
    pub trace: u64,
    /// The turn's clock, ns.
    pub now_ns: u64,
}

/// What became of a frame given to [`encapsulate`].
#[derive(Debug)]
#[must_use]
pub enum Encapsulated {
    /// One frame, the same one, was handed to `out`.
    Sent,
    /// The frame waits for its neighbour; [`Neighbours::dispatch`] will release or drop it.
    Held,
    /// The super-segment was cut; the original frame was freed.
    Segmented(Segmented),
    /// Too large for the path. The original was freed: count it under [`DropReason::TooBig`]. With a frame
    /// here, count that as generated and transmit it on its `egress_port`: it tells the tenant so.
    TooBig(Option<Frame>),
    /// Freed; count it.
    Dropped(DropReason),
}

/// The pieces of one super-segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segmented {
    /// Pieces handed to `out`.
    pub sent: u32,
    /// Pieces that wait for their neighbour.
    pub held: u32,
    /// Pieces dropped: the neighbour's waiting room is full ([`DropReason::Unresolved`]).
    pub unresolved: u32,
    /// Pieces never made: no free frame ([`DropReason::NoFrame`]).
    pub no_frame: u32,
}

/// Encapsulates one frame whose verdict was [`crate::Verdict::Forward`] and hands what leaves to `out`, with
/// `egress_port` set to the underlay's port. Frees what does not leave.
pub fn encapsulate(
    tables: &Tables,
    neighbours: &mut Neighbours,
    pool: &mut Pool,
    frame: Frame,
    tunnel: &Tunnel,
    out: &mut impl FnMut(&mut Pool, Frame),
) -> Encapsulated {
    let _ = (tables, neighbours, tunnel, out);
    pool.free(frame);
    Encapsulated::Dropped(DropReason::NoRule)
}
