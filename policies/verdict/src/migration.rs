//! Load profiles of volumes, and when a volume moves.
//!
//! A profile is the load to expect over one period, in slots of equal length. The host records it and hands it
//! back with each question, so that it outlives the policy that built it. A blackout is estimated in one place,
//! [`estimate_blackout_us`], from what is written meanwhile and what the link has free.

use crate::invalid::{in_range, same_length};
use crate::{Invalid, PPM, Tick};

/// Most slots of a profile.
pub const SLOTS_MAX: usize = 4_096;

/// The longest blackout that an estimate can name: a day.
pub const ESTIMATE_US_MAX: u64 = 86_400_000_000;

/// The highest rate that a profile can expect, of requests and of bytes per second.
pub const RATE_MAX: u64 = 1 << 48;

/// Rounds of copying what was written during the round before, and the rest that is small enough to stop.
const ROUNDS_MAX: u32 = 16;
const REST_BYTES: u64 = 1 << 20;

/// The history of a volume, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Samples {
    /// When the interval began that it is of.
    pub at_ms: Vec<u64>,
    /// Requests per second.
    pub iops: Vec<u64>,
    /// Bytes per second.
    pub bytes_per_s: Vec<u64>,
    /// Bytes written per second. What is written twice counts twice, so blackouts are shorter than estimated, never longer
    /// for this.
    pub dirty_bytes_per_s: Vec<u64>,
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rules {
    /// A time is quiet when its load is at most this share of the mean.
    pub quiet_below_ppm: u32,
    /// Longer blackouts are refused while there is a choice.
    pub blackout_max_us: u64,
    /// Shortest period to look for.
    pub period_min_ms: u64,
    /// Longest period to look for.
    pub period_max_ms: u64,
}

/// The expected load over one period, which repeats from `origin_ms` on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Profile {
    /// Take the native default.
    pub abstain: bool,
    /// Start of slot 0.
    pub origin_ms: u64,
    /// Length of a slot.
    pub slot_ms: u64,
    /// One entry per slot; a single slot means that no period was found.
    pub iops: Vec<u64>,
    /// Likewise.
    pub dirty_bytes_per_s: Vec<u64>,
    /// Share of the variation of the samples that the period explains.
    pub confidence_ppm: u32,
    /// Why.
    pub why: String,
}

impl Profile {
    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.iops.len().min(self.dirty_bytes_per_s.len())
    }

    /// The slot that a time lies in.
    pub fn slot_at(&self, at_ms: u64) -> usize {
        (self.offset_ms(at_ms) / self.slot_ms.max(1)) as usize
    }

    /// The most that is written in any slot from one time to another.
    pub fn worst_dirty_bytes_per_s(&self, from_ms: u64, until_ms: u64) -> u64 {
        let (slots, slot_ms) = (self.slots(), self.slot_ms.max(1));
        let first = self.slot_at(from_ms);
        let length_ms = (self.offset_ms(from_ms) % slot_ms).saturating_add(until_ms.saturating_sub(from_ms));
        let touched = usize::try_from(length_ms / slot_ms).unwrap_or(usize::MAX).saturating_add(1);
        (0..touched.min(slots)).map(|step| self.dirty_bytes_per_s[(first + step) % slots]).max().unwrap_or(0)
    }

    /// How far into its period a time lies.
    fn offset_ms(&self, at_ms: u64) -> u64 {
        let period = self.slot_ms.max(1).saturating_mul(self.slots().max(1) as u64);
        if at_ms >= self.origin_ms {
            (at_ms - self.origin_ms) % period
        } else {
            // Before the origin the pattern runs as well.
            (period - (self.origin_ms - at_ms) % period) % period
        }
    }

    /// Mean requests per second over the period.
    pub fn mean_iops(&self) -> u64 {
        let sum: u128 = self.iops.iter().map(|&iops| u128::from(iops)).sum();
        (sum / self.iops.len().max(1) as u128) as u64
    }

    /// The load of a slot as a share of the mean, in millionths.
    pub fn load_ppm(&self, slot: usize) -> u64 {
        let iops = self.iops.get(slot).copied().unwrap_or(0);
        let share = u128::from(iops) * u128::from(PPM) / u128::from(self.mean_iops().max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

/// The volume to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Transfer {
    /// What is copied.
    pub size_bytes: u64,
    /// Blackout that a move of nothing costs.
    pub hand_over_us: u64,
    /// Start by then.
    pub deadline_ms: u64,
    /// Longer blackouts are refused while there is a choice.
    pub blackout_max_us: u64,
    /// A time is quiet when its load is at most this share of the mean.
    pub quiet_below_ppm: u32,
}

/// What the link between source and target has free: from each time to the next, the last one for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Forecast {
    /// From when, in rising order.
    pub from_ms: Vec<u64>,
    /// How much.
    pub free_bytes_per_s: Vec<u64>,
}

impl Forecast {
    /// What is free at a time; before the first entry, as in the first.
    pub fn free_at(&self, at_ms: u64) -> u64 {
        let after = self.from_ms.partition_point(|&from| from <= at_ms);
        self.free_bytes_per_s.get(after.saturating_sub(1)).copied().unwrap_or(0)
    }
}

/// When to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Choice {
    /// At this row of the candidate times.
    At(u32),
    /// At once.
    #[default]
    Now,
    /// No time is good enough.
    Refuse,
}

/// When to start, with what each time would cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Timing {
    /// Take the native default.
    pub abstain: bool,
    /// The decision.
    pub choice: Choice,
    /// Estimated blackout, one entry per candidate time.
    pub estimate_us: Vec<u64>,
    /// Estimated blackout of starting at once.
    pub now_estimate_us: u64,
    /// Why.
    pub why: String,
}

/// Decides when volumes move.
pub trait Migration {
    /// Finds the pattern in the history.
    fn build_profile(&mut self, tick: Tick, samples: &Samples, rules: Rules) -> Profile;

    /// Chooses among the candidate times, now, and not at all.
    fn choose_time(
        &mut self,
        tick: Tick,
        profile: &Profile,
        transfer: Transfer,
        link: &Forecast,
        candidates_ms: &[u64],
    ) -> Timing;
}

/// The question of [`Migration::build_profile`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BuildProfile {
    /// The history.
    pub samples: Samples,
    /// What the operator wants.
    pub rules: Rules,
}

impl BuildProfile {
    /// The mean, without a pattern.
    pub fn native(&self, tick: Tick) -> Profile {
        let mean = |column: &[u64]| {
            let sum: u128 = column.iter().map(|&value| u128::from(value)).sum();
            (sum / column.len().max(1) as u128).min(RATE_MAX.into()) as u64
        };
        Profile {
            abstain: false,
            origin_ms: self.samples.at_ms.first().map_or(tick.now_ms, |&at| at.min(tick.now_ms)),
            slot_ms: 1_000,
            iops: vec![mean(&self.samples.iops)],
            dirty_bytes_per_s: vec![mean(&self.samples.dirty_bytes_per_s)],
            confidence_ppm: 0,
            why: format!("the mean of {} samples, without a pattern", self.samples.at_ms.len()),
        }
    }

    /// See [`crate::Question::check`].
    pub fn check(&self, tick: Tick, answer: &Profile) -> Result<(), Invalid> {
        in_range("number of slots", answer.iops.len() as u64, 1, SLOTS_MAX as u64)?;
        same_length("dirty-bytes-per-s", answer.dirty_bytes_per_s.len(), answer.iops.len())?;
        in_range("origin-ms", answer.origin_ms, 0, tick.now_ms)?;
        in_range("slot-ms", answer.slot_ms, 1, self.rules.period_max_ms.max(1_000))?;
        in_range("confidence-ppm", answer.confidence_ppm.into(), 0, PPM.into())?;
        if answer.slots() > 1 {
            let period = answer.slot_ms.saturating_mul(answer.slots() as u64);
            in_range("period in ms", period, self.rules.period_min_ms, self.rules.period_max_ms)?;
        }
        for (field, column) in [("iops", &answer.iops), ("dirty-bytes-per-s", &answer.dirty_bytes_per_s)] {
            for &value in column {
                in_range(field, value, 0, RATE_MAX)?;
            }
        }
        Ok(())
    }
}

/// The question of [`Migration::choose_time`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ChooseTime {
    /// The load to expect.
    pub profile: Profile,
    /// The volume to move.
    pub transfer: Transfer,
    /// What the link has free.
    pub link: Forecast,
    /// Times to choose among: after the tick's, not after the deadline, in rising order.
    pub candidates_ms: Vec<u64>,
}

impl ChooseTime {
    /// The shortest blackout; the earliest of equals.
    pub fn native(&self, tick: Tick) -> Timing {
        let estimate = |at_ms| estimate_blackout_us(&self.profile, self.transfer, &self.link, at_ms);
        let now_estimate_us = estimate(tick.now_ms);
        let estimate_us: Vec<u64> = self.candidates_ms.iter().map(|&at| estimate(at)).collect();
        let usable = |at_ms: u64| at_ms >= tick.now_ms && at_ms <= self.transfer.deadline_ms;
        let times = estimate_us.iter().zip(&self.candidates_ms).enumerate();
        let best = times.filter(|(_, (_, at))| usable(**at)).min_by_key(|(_, (estimate, _))| **estimate);
        let choice = match best {
            Some((row, (&estimate, _))) if estimate < now_estimate_us => Choice::At(row as u32),
            _ => Choice::Now,
        };
        Timing { abstain: false, choice, estimate_us, now_estimate_us, why: "the shortest blackout".into() }
    }

    /// See [`crate::Question::check`].
    pub fn check(&self, tick: Tick, answer: &Timing) -> Result<(), Invalid> {
        same_length("estimate-us", answer.estimate_us.len(), self.candidates_ms.len())?;
        for &estimate in answer.estimate_us.iter().chain([&answer.now_estimate_us]) {
            in_range("estimate-us", estimate, 0, ESTIMATE_US_MAX)?;
        }
        if let Choice::At(row) = answer.choice {
            let rows = self.candidates_ms.len();
            let unknown = Invalid::UnknownRow { column: "choice", row, rows };
            let &at = self.candidates_ms.get(row as usize).ok_or(unknown)?;
            in_range("start in ms", at, tick.now_ms, self.transfer.deadline_ms)?;
        }
        Ok(())
    }
}

/// The blackout of a move that starts at a time: copy all, then again and again what was written meanwhile,
/// until that is little or does not shrink; the last round is the blackout, and the hand-over.
pub fn estimate_blackout_us(profile: &Profile, transfer: Transfer, link: &Forecast, at_ms: u64) -> u64 {
    let free = u128::from(link.free_at(at_ms));
    if free == 0 {
        return ESTIMATE_US_MAX;
    }
    let copy_us = |bytes: u64| u128::from(bytes) * 1_000_000 / free;
    let end_ms =
        at_ms.saturating_add(u64::try_from(copy_us(transfer.size_bytes) / 1_000).unwrap_or(u64::MAX));
    let dirty = u128::from(profile.worst_dirty_bytes_per_s(at_ms, end_ms));
    let mut rest = transfer.size_bytes;
    for _ in 0..ROUNDS_MAX {
        let written =
            (copy_us(rest).saturating_mul(dirty) / 1_000_000).min(transfer.size_bytes.into()) as u64;
        if written >= rest {
            break;
        }
        rest = written;
        if rest <= REST_BYTES {
            break;
        }
    }
    let blackout = copy_us(rest) + u128::from(transfer.hand_over_us);
    blackout.min(ESTIMATE_US_MAX.into()) as u64
}
