//! Neighbours on Ethernet underlays: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861), sans-I/O.

use frame::{DropReason, Frame, Pool};

use crate::Tables;

/// Bounds and periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourLimits {
    /// Frames that wait for one neighbour, at most.
    pub held_per_neighbour: usize,
    /// Frames that wait for all neighbours together, at most.
    pub held: usize,
    /// A confirmed neighbour is asked again after this long, ns.
    pub reachable_ns: u64,
    /// Time between requests to one neighbour, ns (RFC 4861, clause 10: RETRANS_TIMER).
    pub retransmit_ns: u64,
    /// Requests before giving up (RFC 4861, clause 10: MAX_MULTICAST_SOLICIT).
    pub requests: u32,
}

impl Default for NeighbourLimits {
    fn default() -> NeighbourLimits {
        NeighbourLimits {
            held_per_neighbour: 8,
            held: 1024,
            reachable_ns: 30_000_000_000,
            retransmit_ns: 1_000_000_000,
            requests: 3,
        }
    }
}

/// What became of a frame given to [`Neighbours::process`].
#[derive(Debug)]
#[must_use]
pub enum Processed {
    /// The frame now is our answer: transmit it on its `egress_port`. Count the request under
    /// [`DropReason::Answered`] and the answer as generated.
    Reply(Frame),
    /// Freed; count it under the reason ([`DropReason::Answered`] when it taught us something).
    Dropped(DropReason),
}

/// A frame that [`Neighbours::dispatch`] hands out, to transmit on its `egress_port` or to count.
#[derive(Debug)]
#[must_use]
pub enum Emitted {
    /// A request made here: count it as generated.
    Generated(Frame),
    /// A frame that waited: it has its neighbour's address now.
    Released(Frame),
    /// A frame that waited in vain: free and count.
    Dropped(Frame, DropReason),
}

/// The neighbours of one worker.
#[derive(Debug)]
pub struct Neighbours {
    limits: NeighbourLimits,
}

impl Neighbours {
    /// Nothing known yet about the next hops of `tables`.
    pub fn new(tables: &Tables, limits: NeighbourLimits) -> Neighbours {
        let _ = tables;
        Neighbours { limits }
    }

    /// Goes over to new tables: what is known about next hops that stay is kept.
    pub fn rebase(&mut self, tables: &Tables) {
        let _ = (tables, self.limits);
    }

    /// Takes an ARP or neighbour discovery frame from an underlay ([`crate::Verdict::Local`]).
    pub fn process(&mut self, tables: &Tables, pool: &mut Pool, frame: Frame, now_ns: u64) -> Processed {
        let _ = (tables, now_ns);
        pool.free(frame);
        Processed::Dropped(DropReason::UnsupportedType)
    }

    /// Hands out what is due: requests, frames whose neighbour was found, frames that waited too long.
    pub fn dispatch(
        &mut self,
        tables: &Tables,
        pool: &mut Pool,
        now_ns: u64,
        out: &mut impl FnMut(&mut Pool, Emitted),
    ) {
        let _ = (tables, pool, now_ns, out);
    }

    /// When [`Neighbours::dispatch`] has something to do next, ns; 0 when it has now.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        None
    }

    /// Frames that wait.
    pub fn held(&self) -> usize {
        0
    }

    /// Gives back every frame that waits, when the worker stops.
    pub fn drain(&mut self, out: &mut impl FnMut(Frame)) {
        let _ = out;
    }
}
