//! Who gets how much of the new leases, and which revocable leases end when their resources are needed.

use crate::invalid::{in_range, known_row, same_length};
use crate::{Invalid, PPM, Tick};

/// Shortest and longest lease.
pub const TTL_MS: std::ops::RangeInclusive<u32> = 1_000..=600_000;

const NATIVE_TTL_MS: u32 = 30_000;

/// Who lends resources, with what was reported of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Producers {
    /// Which one.
    pub producer: Vec<u64>,
    /// What it can give.
    pub capacity: Vec<u64>,
    /// How much of that is in use.
    pub utilisation_ppm: Vec<u32>,
    /// Share of failed requests.
    pub error_ppm: Vec<u32>,
    /// Of a request.
    pub response_us: Vec<u64>,
    /// How many use it.
    pub consumers: Vec<u32>,
    /// How old the newest report is.
    pub report_age_ms: Vec<u64>,
    /// In force now.
    pub weight_ppm: Vec<u32>,
}

impl Producers {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.producer.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.producer.is_empty()
    }
}

/// One entry per row of [`Producers`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Weights {
    /// Take the native default.
    pub abstain: bool,
    /// Shares of a whole.
    pub weight_ppm: Vec<u32>,
    /// How long a new lease holds.
    pub ttl_ms: Vec<u32>,
    /// Why.
    pub why: String,
}

/// What is leased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Resources {
    /// Requests per second.
    pub iops: u64,
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// Background copies at the same time.
    pub copy_slots: u64,
}

impl Resources {
    /// Each resource of both.
    pub fn plus(self, other: Resources) -> Resources {
        Resources {
            iops: self.iops.saturating_add(other.iops),
            bytes_per_s: self.bytes_per_s.saturating_add(other.bytes_per_s),
            copy_slots: self.copy_slots.saturating_add(other.copy_slots),
        }
    }

    /// What is left of each resource, at least 0.
    pub fn minus(self, other: Resources) -> Resources {
        Resources {
            iops: self.iops.saturating_sub(other.iops),
            bytes_per_s: self.bytes_per_s.saturating_sub(other.bytes_per_s),
            copy_slots: self.copy_slots.saturating_sub(other.copy_slots),
        }
    }

    /// At least as much of each resource.
    pub fn covers(self, need: Resources) -> bool {
        self.iops >= need.iops && self.bytes_per_s >= need.bytes_per_s && self.copy_slots >= need.copy_slots
    }
}

/// Revocable leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Leases {
    /// Which one.
    pub lease: Vec<u64>,
    /// Of whom.
    pub producer: Vec<u64>,
    /// Held by whom.
    pub holder: Vec<u64>,
    /// Since when.
    pub granted_ms: Vec<u64>,
    /// Requests per second.
    pub iops: Vec<u64>,
    /// Bytes per second.
    pub bytes_per_s: Vec<u64>,
    /// Background copies at the same time.
    pub copy_slots: Vec<u64>,
}

impl Leases {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.lease.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.lease.is_empty()
    }

    /// What a row holds.
    pub fn resources(&self, row: usize) -> Resources {
        let of = |column: &[u64]| column.get(row).copied().unwrap_or(0);
        Resources {
            iops: of(&self.iops),
            bytes_per_s: of(&self.bytes_per_s),
            copy_slots: of(&self.copy_slots),
        }
    }

    /// What rows hold together.
    pub fn sum(&self, rows: impl IntoIterator<Item = usize>) -> Resources {
        rows.into_iter().fold(Resources::default(), |sum, row| sum.plus(self.resources(row)))
    }
}

/// Rows of [`Leases`] to revoke.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Victims {
    /// Take the native default.
    pub abstain: bool,
    /// Which rows.
    pub lease: Vec<u32>,
    /// Between the notice and the end by force.
    pub grace_ms: u32,
    /// Why.
    pub why: String,
}

/// Decides who lends how much, and which leases end.
pub trait Leasing {
    /// New weights, from what was reported.
    fn update_weights(&mut self, tick: Tick, producers: &Producers) -> Weights;

    /// Leases that give `need` together, none of them superfluous.
    fn pick_victims(&mut self, tick: Tick, need: Resources, leases: &Leases, grace_max_ms: u32) -> Victims;
}

/// The question of [`Leasing::update_weights`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UpdateWeights {
    /// Of whom.
    pub producers: Producers,
}

impl UpdateWeights {
    /// By capacity, less what fails.
    pub fn native(&self) -> Weights {
        let producers = &self.producers;
        let sound = |row: usize| PPM.saturating_sub(producers.error_ppm.get(row).copied().unwrap_or(0));
        let capacity = |row: usize| producers.capacity.get(row).copied().unwrap_or(0);
        let raw: Vec<u128> =
            (0..producers.len()).map(|row| u128::from(capacity(row)) * u128::from(sound(row))).collect();
        Weights {
            abstain: false,
            weight_ppm: normalised(&raw),
            ttl_ms: vec![NATIVE_TTL_MS; producers.len()],
            why: "by capacity, less what fails".into(),
        }
    }

    /// See [`crate::Question::check`].
    pub fn check(&self, answer: &Weights) -> Result<(), Invalid> {
        same_length("weight-ppm", answer.weight_ppm.len(), self.producers.len())?;
        same_length("ttl-ms", answer.ttl_ms.len(), self.producers.len())?;
        for &ttl in &answer.ttl_ms {
            in_range("ttl-ms", ttl.into(), (*TTL_MS.start()).into(), (*TTL_MS.end()).into())?;
        }
        let sum: u64 = answer.weight_ppm.iter().map(|&weight| u64::from(weight)).sum();
        let wanted = if self.producers.is_empty() { 0 } else { PPM.into() };
        if sum == wanted { Ok(()) } else { Err(Invalid::Sum { sum }) }
    }
}

/// Shares that sum to exactly one whole: rounded down, and the rest to those who lost most by that. All
/// zero means that all are equal.
pub fn normalised(raw: &[u128]) -> Vec<u32> {
    // Scaled down so that neither a product nor the sum overflows 64 bits: a guest pays dearly for divisions of more.
    let spare = (u64::BITS - u64::from(PPM).leading_zeros()).max(usize::BITS - raw.len().leading_zeros());
    let largest = raw.iter().copied().max().unwrap_or(0);
    let shift = (u128::BITS - largest.leading_zeros()).saturating_sub(u64::BITS - spare);
    let raw: Vec<u64> =
        raw.iter().map(|&value| if largest == 0 { 1 } else { (value >> shift) as u64 }).collect();
    let sum: u64 = raw.iter().sum::<u64>().max(1);
    let whole = u64::from(PPM);
    let mut shares: Vec<u32> = raw.iter().map(|&value| (value * whole / sum) as u32).collect();
    let mut order: Vec<usize> = (0..raw.len()).collect();
    order.sort_by_cached_key(|&row| std::cmp::Reverse(raw[row] * whole % sum));
    let rest = PPM.saturating_sub(shares.iter().sum()) as usize;
    for row in order.into_iter().take(rest) {
        shares[row] += 1;
    }
    shares
}

/// The question of [`Leasing::pick_victims`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PickVictims {
    /// How much must become free.
    pub need: Resources,
    /// Of which leases.
    pub leases: Leases,
    /// Longest grace.
    pub grace_max_ms: u32,
}

impl PickVictims {
    /// The youngest leases.
    pub fn native(&self) -> Victims {
        let mut order: Vec<usize> = (0..self.leases.len()).collect();
        order.sort_by_key(|&row| std::cmp::Reverse((self.leases.granted_ms.get(row).copied(), row)));
        let lease = without_superfluous(self.need, &self.leases, &order);
        let why = if lease.is_empty() && self.need != Resources::default() {
            "all leases together would not give what is needed".into()
        } else {
            "the youngest leases".into()
        };
        Victims { abstain: false, lease, grace_ms: self.grace_max_ms, why }
    }

    /// See [`crate::Question::check`].
    pub fn check(&self, answer: &Victims) -> Result<(), Invalid> {
        in_range("grace-ms", answer.grace_ms.into(), 0, self.grace_max_ms.into())?;
        let mut taken = vec![false; self.leases.len()];
        for &row in &answer.lease {
            let at = known_row("lease", row, self.leases.len())?;
            if std::mem::replace(&mut taken[at], true) {
                return Err(Invalid::Twice { column: "lease", value: row.into() });
            }
        }
        if !self.leases.sum(0..self.leases.len()).covers(self.need) {
            return if answer.lease.is_empty() { Ok(()) } else { Err(Invalid::InVain) };
        }
        let sum = self.leases.sum(answer.lease.iter().map(|&row| row as usize));
        enough("iops", sum.iops, self.need.iops)?;
        enough("bytes-per-s", sum.bytes_per_s, self.need.bytes_per_s)?;
        enough("copy-slots", sum.copy_slots, self.need.copy_slots)?;
        let dispensable = |row: &&u32| sum.minus(self.leases.resources(**row as usize)).covers(self.need);
        match answer.lease.iter().find(dispensable) {
            Some(&row) => Err(Invalid::Superfluous { row }),
            None => Ok(()),
        }
    }
}

fn enough(resource: &'static str, found: u64, wanted: u64) -> Result<(), Invalid> {
    if found >= wanted { Ok(()) } else { Err(Invalid::TooFew { resource, found, wanted }) }
}

/// The first rows of `order` that give `need` together, without those that turn out to be superfluous; none
/// if all of them do not give it.
pub fn without_superfluous(need: Resources, leases: &Leases, order: &[usize]) -> Vec<u32> {
    let mut sum = Resources::default();
    let mut picked = Vec::new();
    for &row in order {
        if sum.covers(need) {
            break;
        }
        sum = sum.plus(leases.resources(row));
        picked.push(row);
    }
    if !sum.covers(need) {
        return Vec::new();
    }
    picked.retain(|&row| {
        let rest = sum.minus(leases.resources(row));
        let superfluous = rest.covers(need);
        if superfluous {
            sum = rest;
        }
        !superfluous
    });
    picked.into_iter().map(|row| row as u32).collect()
}
