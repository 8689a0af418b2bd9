//! What a person configures: limits of a volume and of what volumes share, checked once at the edge.
//!
//! Past [`Limits::check`] and [`PoolLimits::check`] every number is inside the range in which the
//! arithmetic of this crate cannot overflow, so nothing is validated again.

use std::fmt;
use std::sync::Arc;

use crate::SharedBucket;

/// Highest rate of any bucket, in units per second (2^50: a petabyte per second).
pub const RATE_MAX: u64 = 1 << 50;
/// Largest bank of credits, in units (2^60).
pub const BURST_UNITS_MAX: u64 = 1 << 60;
/// Bands of node slack that a volume may have.
pub const BANDS: usize = 4;
/// Weight of a volume that names neither a weight nor any base rate: as if its base were 1 packet per
/// second. It was promised nothing, so it shares what the others leave.
pub const DEFAULT_WEIGHT: u64 = WEIGHT_PER_PACKET;
/// What a base rate of one packet per second weighs beside base rates in bytes.
const WEIGHT_PER_PACKET: u64 = 1_000;

/// What is counted. Bytes and packets here; block operations take the place of packets in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Bytes of payload.
    Bytes,
    /// Packets, or operations.
    Packets,
}

/// Number of dimensions.
pub(crate) const DIMS: usize = 2;
pub(crate) const DIMENSIONS: [Dimension; DIMS] = [Dimension::Bytes, Dimension::Packets];

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dimension::Bytes => "bytes",
            Dimension::Packets => "packets",
        })
    }
}

/// A factor `num / den`, at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// Numerator, at most the denominator. 0 is allowed: free of charge.
    pub num: u32,
    /// Denominator, at least 1.
    pub den: u32,
}

impl Ratio {
    /// The factor 1: no reduction.
    pub const ONE: Ratio = Ratio { num: 1, den: 1 };
}

impl Default for Ratio {
    fn default() -> Self {
        Ratio::ONE
    }
}

/// A bank of credits: filled slowly, spent as fast as `peak` lets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Most credits held, in units. A volume starts with all of them.
    pub cap_units: u64,
    /// Credits earned, in units per second.
    pub fill_rate: u64,
}

/// One step of the reduced charge: while the node's level is above `above_permille` of its cap, a request
/// pays `charge` of its cost to `work` instead of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Threshold on the node's level, in thousandths of the node's cap, at most 999.
    pub above_permille: u16,
    /// Part of the cost that is charged.
    pub charge: Ratio,
}

/// The provisioned rate. Its bucket holds one second of it, and may go into debt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Units per second.
    pub rate: u64,
    /// Deepest debt, in units. A request that would go deeper waits until it no longer would, or until the
    /// bucket is full. `None`: one request, whatever its size, may follow any positive balance.
    pub debt_units_max: Option<u32>,
    /// Reduced charges, from the highest threshold down; the first whose threshold is passed counts.
    pub bands: [Option<Band>; BANDS],
}

impl Work {
    /// A provisioned rate without reduction, in units per second.
    pub const fn at(rate: u64) -> Work {
        Work { rate, debt_units_max: None, bands: [None; BANDS] }
    }
}

/// Limits of a volume in one dimension. All absent: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DimLimits {
    /// Bank of credits.
    pub burst: Option<Burst>,
    /// Provisioned rate. Absent beside a `burst`: the volume sustains exactly the bank's fill rate.
    pub work: Option<Work>,
    /// Units per second that the sum of everything may reach; its bucket holds 10 ms of it.
    pub peak_rate: Option<u64>,
    /// Part of the cost that a request pays which continues a stream (its offset is where one ended).
    pub sequential: Ratio,
}

/// Bounds on what waits, for each of the two lanes of a volume. At half of either bound requests are
/// marked for ECN; at the bound they are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkLimits {
    /// Most requests waiting.
    pub items_max: u32,
    /// Most bytes waiting, by cost.
    pub bytes_max: u64,
}

impl Default for ParkLimits {
    fn default() -> Self {
        ParkLimits { items_max: 1024, bytes_max: 4 << 20 }
    }
}

/// Everything that one volume may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Limits in bytes.
    pub bytes: DimLimits,
    /// Limits in packets.
    pub packets: DimLimits,
    /// Index of the tenant group whose pool this volume also draws from.
    pub group: Option<u32>,
    /// Share while a pool is short. `None`: the base rate (work rate, else burst fill rate, else peak
    /// rate), in bytes if it is given in bytes, else in packets of 1,000; else [`DEFAULT_WEIGHT`].
    pub weight: Option<u64>,
    /// Bounds on what waits.
    pub park: ParkLimits,
}

impl Limits {
    /// No limits: the volume is only counted, and held by the node's pool if there is one.
    pub fn unlimited() -> Limits {
        Limits::default()
    }

    /// Like a gp2 volume of this size: 3 operations per GiB and second (at least 100, at most 16,000)
    /// saved up to 5.4 million credits and spent at 3,000 per second or the fill rate if that is more. No
    /// provisioned rate and no reduction, so it sustains exactly its fill.
    pub fn gp2_like(size_gib: u64) -> Limits {
        let fill_rate = size_gib.saturating_mul(3).clamp(100, 16_000);
        let packets = DimLimits {
            burst: Some(Burst { cap_units: 5_400_000, fill_rate }),
            peak_rate: Some(fill_rate.max(3_000)),
            ..DimLimits::default()
        };
        Limits { packets, ..Limits::default() }
    }

    /// Like a gp3 volume: what is provisioned and no more, in operations and bytes per second.
    pub fn gp3_like(rate_iops: u64, rate_bytes: u64) -> Limits {
        let dim =
            |rate| DimLimits { work: Some(Work::at(rate)), peak_rate: Some(rate), ..DimLimits::default() };
        Limits { bytes: dim(rate_bytes), packets: dim(rate_iops), ..Limits::default() }
    }

    pub(crate) fn dims(&self) -> [&DimLimits; DIMS] {
        [&self.bytes, &self.packets]
    }

    /// Share while a pool is short.
    pub(crate) fn weight(&self) -> u64 {
        let base = |d: &DimLimits| d.work.map(|w| w.rate).or(d.burst.map(|b| b.fill_rate)).or(d.peak_rate);
        let packets = base(&self.packets).map(|rate| rate.saturating_mul(WEIGHT_PER_PACKET));
        self.weight.or(base(&self.bytes)).or(packets).unwrap_or(DEFAULT_WEIGHT)
    }

    /// Refuses what can never work; `Shaper::set_volume` calls it, a configuration reader may as well.
    pub fn check(&self) -> Result<(), LimitsError> {
        for (dim, d) in DIMENSIONS.into_iter().zip(self.dims()) {
            d.check(dim)?;
        }
        if self.weight.is_some_and(|w| w == 0 || w > RATE_MAX) {
            return Err(LimitsError::Weight);
        }
        if self.park.items_max == 0 || self.park.bytes_max == 0 {
            return Err(LimitsError::ParkBound);
        }
        Ok(())
    }
}

impl DimLimits {
    fn check(&self, dim: Dimension) -> Result<(), LimitsError> {
        let rates = [
            ("burst.fill_rate", self.burst.map(|b| b.fill_rate)),
            ("work.rate", self.work.map(|w| w.rate)),
            ("peak_rate", self.peak_rate),
        ];
        for (what, rate) in rates {
            match rate {
                Some(0) => return Err(LimitsError::ZeroRate { dim, what }),
                Some(rate) if rate > RATE_MAX => return Err(LimitsError::RateTooHigh { dim, what, rate }),
                _ => {}
            }
        }
        if let Some(Burst { cap_units, .. }) = self.burst
            && (cap_units == 0 || cap_units > BURST_UNITS_MAX)
        {
            return Err(LimitsError::BurstCap { dim, cap_units });
        }
        check_ratio(dim, self.sequential)?;
        let mut ceiling = 1000;
        for band in self.work.iter().flat_map(|w| w.bands.iter().flatten()) {
            check_ratio(dim, band.charge)?;
            if band.above_permille >= ceiling {
                return Err(LimitsError::BandOrder { dim, above_permille: band.above_permille });
            }
            ceiling = band.above_permille;
        }
        Ok(())
    }
}

fn check_ratio(dim: Dimension, ratio: Ratio) -> Result<(), LimitsError> {
    let Ratio { num, den } = ratio;
    if den == 0 || num > den { Err(LimitsError::Ratio { dim, num, den }) } else { Ok(()) }
}

/// Why the limits of a volume were refused. The volume keeps what it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The volume's index is outside the shaper.
    #[error("volume {volume} is outside the {volumes_max} that the shaper was made for: raise volumes_max")]
    VolumeOutOfRange {
        /// The index asked for.
        volume: u32,
        /// What the shaper was made for.
        volumes_max: u32,
    },
    /// The group's index is outside the shaper.
    #[error("group {group} is outside the {groups_max} that the shaper was made for: raise groups_max")]
    GroupOutOfRange {
        /// The index asked for.
        group: u32,
        /// What the shaper was made for.
        groups_max: u32,
    },
    /// A rate of 0 would park for ever.
    #[error(
        "{dim}: {what} is 0, which would hold requests for ever: give at least 1 per second, or leave it out"
    )]
    ZeroRate {
        /// Dimension.
        dim: Dimension,
        /// The setting.
        what: &'static str,
    },
    /// A rate beyond [`RATE_MAX`].
    #[error("{dim}: {what} of {rate} per second is above {RATE_MAX}: leave it out for no limit")]
    RateTooHigh {
        /// Dimension.
        dim: Dimension,
        /// The setting.
        what: &'static str,
        /// The rate asked for.
        rate: u64,
    },
    /// A bank of nothing, or beyond [`BURST_UNITS_MAX`].
    #[error("{dim}: burst.cap_units of {cap_units} must be 1 to {BURST_UNITS_MAX}")]
    BurstCap {
        /// Dimension.
        dim: Dimension,
        /// The cap asked for.
        cap_units: u64,
    },
    /// A factor above 1 or without denominator.
    #[error("{dim}: the factor {num}/{den} must lie between 0 and 1: a charge is reduced, never raised")]
    Ratio {
        /// Dimension.
        dim: Dimension,
        /// Numerator.
        num: u32,
        /// Denominator.
        den: u32,
    },
    /// Bands out of order or at the top.
    #[error(
        "{dim}: band thresholds must fall from one band to the next and be below 1000 permille; {above_permille} does not"
    )]
    BandOrder {
        /// Dimension.
        dim: Dimension,
        /// The threshold in question.
        above_permille: u16,
    },
    /// A weight of 0 or beyond [`RATE_MAX`].
    #[error("weight must be 1 to {RATE_MAX}")]
    Weight,
    /// A parking bound of 0.
    #[error(
        "park.items_max and park.bytes_max must be at least 1: a limited volume without room to wait only drops"
    )]
    ParkBound,
}

/// One dimension of a pool.
#[derive(Clone, Debug)]
pub enum PoolRate {
    /// Kept by this shaper alone.
    Own {
        /// Units per second.
        rate: u64,
        /// Most units held.
        cap_units: u64,
    },
    /// Shared with other workers' shapers, by borrowing 1 ms worth at a time.
    Shared(Arc<SharedBucket>),
}

/// What the volumes of a group, or all of a node, share. An absent dimension is unlimited.
#[derive(Clone, Debug, Default)]
pub struct PoolLimits {
    /// Bytes.
    pub bytes: Option<PoolRate>,
    /// Packets.
    pub packets: Option<PoolRate>,
}

impl PoolLimits {
    pub(crate) fn dims(&self) -> [Option<&PoolRate>; DIMS] {
        [self.bytes.as_ref(), self.packets.as_ref()]
    }

    /// Refuses what can never work.
    pub fn check(&self) -> Result<(), PoolError> {
        for (dim, source) in DIMENSIONS.into_iter().zip(self.dims()) {
            if let Some(PoolRate::Own { rate, cap_units }) = source {
                check_pool(dim, *rate, *cap_units)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn check_pool(dim: Dimension, rate: u64, cap_units: u64) -> Result<(), PoolError> {
    if rate == 0 || rate > RATE_MAX {
        return Err(PoolError::Rate { dim, rate });
    }
    if cap_units == 0 || cap_units > BURST_UNITS_MAX {
        return Err(PoolError::Cap { dim, cap_units });
    }
    Ok(())
}

/// Why the limits of a group or of the node were refused. The pool keeps what it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The group's index is outside the shaper.
    #[error("group {group} is outside the {groups_max} that the shaper was made for: raise groups_max")]
    GroupOutOfRange {
        /// The index asked for.
        group: u32,
        /// What the shaper was made for.
        groups_max: u32,
    },
    /// A rate of 0 or beyond [`RATE_MAX`].
    #[error(
        "{dim}: a pool's rate of {rate} must be 1 to {RATE_MAX} per second; leave the dimension out for no limit"
    )]
    Rate {
        /// Dimension.
        dim: Dimension,
        /// The rate asked for.
        rate: u64,
    },
    /// A cap of 0 or beyond [`BURST_UNITS_MAX`].
    #[error("{dim}: a pool's cap of {cap_units} must be 1 to {BURST_UNITS_MAX} units")]
    Cap {
        /// Dimension.
        dim: Dimension,
        /// The cap asked for.
        cap_units: u64,
    },
}
