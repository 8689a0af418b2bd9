//! Limits of volumes, groups and the node, from the file to the throttle.

use engine::throttle::{Band, Burst, DimLimits, Limits, ParkLimits, PoolLimits, PoolRate, Ratio, Work};
use engine::{GROUPS_MAX, PoolSize, Pools, Throttle};

use super::file::{BandKey, ByteLimits, Export, File, PacketLimits, Pool, Preset, Volume};
use super::lower::{LowerError, unknown};
use super::names::Names;
use super::units::Bytes;

/// Pools hold this part of a second unless told otherwise: enough to ride out a scheduling hiccup, too
/// little to hurt whoever comes next.
const POOL_CAP_DIVISOR: u64 = 10;

pub(super) fn throttle(file: &File, names: &mut Names) -> Result<Throttle, LowerError> {
    let mut throttle = shared(file, names, |pool| (pool.packets, pool.packets_cap))?;
    for volume in &file.volume {
        let limits = volume_limits(file, volume, names)?;
        limits.check().map_err(|source| LowerError::Limits { name: volume.name.clone(), source })?;
        throttle.volumes.insert(names.volumes.of(&volume.name), limits);
    }
    Ok(throttle)
}

/// What exports share.
pub(super) fn served(file: &File, names: &mut Names) -> Result<Throttle, LowerError> {
    shared(file, names, |pool| (pool.operations, pool.operations_cap))
}

/// Units per second, and the most that is saved.
type Counts = (Option<u64>, Option<u64>);

/// Pools of the node and its groups, which count `counts` beside bytes.
fn shared(file: &File, names: &mut Names, counts: fn(&Pool) -> Counts) -> Result<Throttle, LowerError> {
    let mut throttle =
        Throttle { node: pools("[throttle]".to_owned(), &file.throttle, counts)?, ..Throttle::default() };
    for group in &file.group {
        let place = format!("group \"{}\"", group.name);
        let number = names.groups.of(&group.name);
        if number >= GROUPS_MAX {
            return Err(LowerError::Key { place, what: format!("there are more than {GROUPS_MAX} groups") });
        }
        let pool = Pool {
            bytes: group.bytes,
            bytes_cap: group.bytes_cap,
            packets: group.packets,
            packets_cap: group.packets_cap,
            operations: group.operations,
            operations_cap: group.operations_cap,
        };
        let number = number as usize;
        if throttle.groups.len() <= number {
            throttle.groups.resize_with(number + 1, Pools::default);
        }
        throttle.groups[number] = pools(place, &pool, counts)?;
    }
    Ok(throttle)
}

fn pools(place: String, pool: &Pool, counts: fn(&Pool) -> Counts) -> Result<Pools, LowerError> {
    let (count_rate, count_cap) = counts(pool);
    let size = |rate: u64, cap: Option<u64>| PoolSize {
        rate,
        cap_units: cap.unwrap_or((rate / POOL_CAP_DIVISOR).max(1)),
    };
    let pools = Pools {
        bytes: pool.bytes.map(|rate| size(rate.0, pool.bytes_cap.map(|cap| cap.0))),
        packets: count_rate.map(|rate| size(rate, count_cap)),
    };
    let own = |size: PoolSize| PoolRate::Own { rate: size.rate, cap_units: size.cap_units };
    let limits = PoolLimits { bytes: pools.bytes.map(own), packets: pools.packets.map(own) };
    limits.check().map_err(|source| LowerError::Pool { place, source })?;
    Ok(pools)
}

fn volume_limits(file: &File, volume: &Volume, names: &Names) -> Result<Limits, LowerError> {
    let place = || format!("volume \"{}\"", volume.name);
    let keys = Keys { size: volume.size, bytes: &volume.bytes, counts: &volume.packets, what: "packets" };
    let mut limits = keys.limits(&place(), volume.preset)?;
    group(file, &place(), volume.group.as_ref())?;
    limits.group = volume.group.as_ref().and_then(|name| names.groups.get(name));
    limits.weight = volume.weight;
    let default = ParkLimits::default();
    limits.park = ParkLimits {
        items_max: volume.park.frames.unwrap_or(default.items_max),
        bytes_max: volume.park.bytes.map_or(default.bytes_max, |bytes| bytes.0),
    };
    Ok(limits)
}

/// A group that is named must be there.
fn group(file: &File, place: &str, name: Option<&String>) -> Result<(), LowerError> {
    match name {
        Some(name) if file.group.iter().all(|group| group.name != *name) => {
            Err(unknown(place, "group", name, file.group.iter().map(|group| &group.name)))
        }
        _ => Ok(()),
    }
}

/// What an exported volume may do, but for its group.
pub fn export(file: &File, export: &Export) -> Result<Limits, LowerError> {
    let place = format!("export \"{}\"", export.name);
    let keys =
        Keys { size: export.size, bytes: &export.bytes, counts: &export.operations, what: "operations" };
    let mut limits = keys.limits(&place, export.preset)?;
    group(file, &place, export.group.as_ref())?;
    limits.weight = export.weight;
    limits.check().map_err(|source| LowerError::Limits { name: export.name.clone(), source })?;
    Ok(limits)
}

/// What limits are made of, wherever they stand.
struct Keys<'a> {
    size: Option<Bytes>,
    bytes: &'a Option<ByteLimits>,
    counts: &'a Option<PacketLimits>,
    /// What is counted.
    what: &'static str,
}

impl Keys<'_> {
    fn limits(&self, place: &str, preset: Option<Preset>) -> Result<Limits, LowerError> {
        let error = |what: String| LowerError::Key { place: place.to_owned(), what };
        let bytes = self.bytes.as_ref().map(|keys| byte_limits(place, keys)).transpose()?;
        let counts = self.counts.as_ref().map(|keys| packet_limits(place, keys)).transpose()?;
        let mut limits = match preset {
            None => Limits::unlimited(),
            Some(Preset::Gp2Like) => {
                let needs = "preset = \"gp2-like\" needs size, for example size = \"100GiB\"";
                Limits::gp2_like(self.size.ok_or_else(|| error(needs.into()))?.0 >> 30)
            }
            Some(Preset::Gp3Like) => return gp3_like(bytes, counts, self.what).map_err(error),
        };
        limits.bytes = bytes.unwrap_or(limits.bytes);
        limits.packets = counts.unwrap_or(limits.packets);
        Ok(limits)
    }
}

fn gp3_like(bytes: Option<DimLimits>, counts: Option<DimLimits>, what: &str) -> Result<Limits, String> {
    let rate = |dim: Option<DimLimits>| Some(dim?.work?.rate);
    let (Some(byte_rate), Some(count_rate)) = (rate(bytes), rate(counts)) else {
        return Err(format!("preset = \"gp3-like\" needs {what}.rate and bytes.rate"));
    };
    let only = |rate| Some(DimLimits { work: Some(Work::at(rate)), ..DimLimits::default() });
    if (bytes, counts) != (only(byte_rate), only(count_rate)) {
        return Err("preset = \"gp3-like\" takes only the rates; leave the preset out to set more".into());
    }
    Ok(Limits::gp3_like(count_rate, byte_rate))
}

fn byte_limits(place: &str, keys: &ByteLimits) -> Result<DimLimits, LowerError> {
    let debt = keys.debt.map(|debt| u32::try_from(debt.0)).transpose();
    let debt =
        debt.map_err(|_| LowerError::Key { place: place.to_owned(), what: "debt is below 4GiB".into() })?;
    Ok(DimLimits {
        burst: keys.burst.as_ref().map(|burst| Burst { cap_units: burst.bank.0, fill_rate: burst.fill.0 }),
        work: work(place, keys.rate.map(|rate| rate.0), debt, &keys.bands)?,
        peak_rate: keys.peak.map(|rate| rate.0),
        ..DimLimits::default()
    })
}

fn packet_limits(place: &str, keys: &PacketLimits) -> Result<DimLimits, LowerError> {
    Ok(DimLimits {
        burst: keys.burst.as_ref().map(|burst| Burst { cap_units: burst.bank, fill_rate: burst.fill }),
        work: work(place, keys.rate, keys.debt, &keys.bands)?,
        peak_rate: keys.peak,
        ..DimLimits::default()
    })
}

fn work(
    place: &str,
    rate: Option<u64>,
    debt_units_max: Option<u32>,
    bands: &[BandKey],
) -> Result<Option<Work>, LowerError> {
    let error = |what: &str| LowerError::Key { place: place.to_owned(), what: what.to_owned() };
    let Some(rate) = rate else {
        return if bands.is_empty() { Ok(None) } else { Err(error("bands need a rate beside them")) };
    };
    let mut work = Work { debt_units_max, ..Work::at(rate) };
    if bands.len() > work.bands.len() {
        return Err(error("at most 4 bands are possible"));
    }
    for (place, key) in work.bands.iter_mut().zip(bands) {
        if !(0.0..=0.999).contains(&key.above) || !(0.0..=1.0).contains(&key.charge) {
            return Err(error("a band's above is 0 to 0.999 and its charge 0 to 1"));
        }
        let charge = Ratio { num: (key.charge * 1000.0).round() as u32, den: 1000 };
        *place = Some(Band { above_permille: (key.above * 1000.0).round() as u16, charge });
    }
    Ok(Some(work))
}
