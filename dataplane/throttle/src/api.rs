//! What is said to a shaper and what it answers.

/// Sizes of a shaper; all memory is taken at construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShaperConfig {
    /// Volumes are numbered 0 to this, exclusive.
    pub volumes_max: u32,
    /// Groups are numbered 0 to this, exclusive.
    pub groups_max: u32,
    /// Requests parked in the whole shaper.
    pub parked_items_max: u32,
}

/// What a request costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of payload; 0 for a pure acknowledgement.
    pub bytes: u32,
    /// Packets, or operations.
    pub packets: u32,
    /// Where in the volume the request begins, if that is known; `bytes` is then its length. Only used to
    /// find sequential streams.
    pub offset: Option<u64>,
}

/// The two directions of a volume. Each keeps its own order, so that what comes back from the server is
/// not stuck behind what goes to it; both pay from the same buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// To the server.
    Forward,
    /// From the server.
    Reverse,
}

/// What became of a request.
#[derive(Debug)]
#[must_use = "the request may have come back"]
pub enum Admission<T> {
    /// Paid: send it.
    Pass(T),
    /// Kept; [`release`](crate::Shaper::release) gives it back when its time has come. `mark`: more than half of the bound
    /// is taken; the same flag comes with the request when it is released.
    Parked {
        /// Congestion is to be signalled.
        mark: bool,
    },
    /// The bound is reached: drop it.
    Full(T),
}

/// A request that waited and is now paid for.
#[derive(Debug, PartialEq, Eq)]
pub struct Released<T> {
    /// Its volume.
    pub volume: u32,
    /// Its lane.
    pub lane: Lane,
    /// The request.
    pub item: T,
    /// It was parked beyond half of the bound: mark it with ECN.
    pub mark: bool,
    /// How long it waited.
    pub waited_ns: u64,
}

/// What waits in a shaper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// Requests.
    pub items: u32,
    /// Bytes, by cost.
    pub bytes: u64,
}

/// Counters of a volume since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeCounters {
    /// Bytes admitted, at once or after waiting, by cost.
    pub admitted_bytes: u64,
    /// Packets admitted, at once or after waiting.
    pub admitted_packets: u64,
    /// Waiting now.
    pub parked: Parked,
    /// Requests that had to wait.
    pub parked_total: u64,
    /// Requests marked for ECN.
    pub marked: u64,
    /// Requests refused because the bound was reached.
    pub dropped: u64,
    /// Sum of the waits of the requests released.
    pub parked_ns: u64,
}

/// Balance of a volume in one dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Credits in the bank (rounded down), and its size; `None` without a bank.
    pub burst_units: Option<(i64, u64)>,
    /// Balance of the provisioned rate (rounded down; negative in debt), `None` without one.
    pub work_units: Option<i64>,
    /// Units per second that the volume may sustain at this moment: its peak while the bank holds credits,
    /// its base rate after. `None`: unlimited.
    pub permitted_rate: Option<u64>,
}

/// What a volume has saved, to go on with elsewhere: whole units of its bank, or of its provisioned rate if it has no
/// bank; negative for a debt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// In bytes.
    pub bytes: i64,
    /// In packets.
    pub packets: i64,
}

impl VolumeBalance {
    /// What there is to go on with.
    pub fn saved(&self) -> Saved {
        let of = |balance: &Balance| {
            balance.burst_units.map(|(units, _)| units).or(balance.work_units).unwrap_or(0)
        };
        Saved { bytes: of(&self.bytes), packets: of(&self.packets) }
    }
}

/// Balances of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeBalance {
    /// In bytes.
    pub bytes: Balance,
    /// In packets.
    pub packets: Balance,
}
