//! What a request costs where a unit is not simply a unit: the sequential discount, the bands of reduced
//! charge, and the bound on debt. Most volumes have none of it and no `Tariff`.
//!
//! Invariant: prices are whole nano-tokens per unit, rounded up once here, so that what is charged is one
//! multiplication and exact from then on; a reduced price is never above the full one.

use crate::bucket::{NANO, price_nano};
use crate::limits::{BANDS, DIMS, DimLimits, Limits, Ratio};
use crate::streams::Streams;
use crate::volume::Volume;

/// What one request asks for, priced once when it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) units: [u32; DIMS],
    /// It continued a stream.
    pub(crate) sequential: bool,
}

impl Request {
    /// The cost in nano-tokens at the full price of one unit each.
    #[inline(always)]
    pub(crate) fn plain(&self) -> [i128; DIMS] {
        self.units.map(|units| i128::from(u64::from(units) * NANO as u64))
    }
}

impl Request {
    /// True if it costs something in one of these dimensions.
    pub(crate) fn needs(&self, dims: &[bool; DIMS]) -> bool {
        self.units.iter().zip(dims).any(|(&units, &dim)| dim && units > 0)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct BandPrice {
    above_permille: u16,
    /// Indexed by `Request::sequential`.
    price: [u32; 2],
}

#[derive(Clone, Copy, Debug)]
struct DimTariff {
    sequential_price: u32,
    debt_units_max: Option<u32>,
    bands: [Option<BandPrice>; BANDS],
}

#[derive(Clone, Debug)]
pub(crate) struct Tariff {
    dims: [DimTariff; DIMS],
    streams: Streams,
}

impl Tariff {
    /// The tariff of these limits, if they need one. Streams known to `before` stay known.
    pub(crate) fn of(limits: &Limits, before: Option<&Tariff>) -> Option<Box<Tariff>> {
        let plain = |d: &&DimLimits| {
            let work = d.work.as_ref();
            d.sequential == Ratio::ONE
                && work.is_none_or(|w| w.debt_units_max.is_none() && w.bands.iter().all(Option::is_none))
        };
        if limits.dims().iter().all(plain) {
            return None;
        }
        let streams = before.map_or_else(Streams::new, |t| t.streams.clone());
        Some(Box::new(Tariff { dims: limits.dims().map(DimTariff::of), streams }))
    }

    /// The cost in nano-tokens.
    pub(crate) fn cost(&self, request: &Request) -> [i128; DIMS] {
        match request.sequential {
            false => request.plain(),
            true => std::array::from_fn(|d| product(request.units[d], self.dims[d].sequential_price)),
        }
    }

    /// What work is charged in dimension `d`, if a band's threshold is passed.
    pub(crate) fn reduced(&self, d: usize, request: &Request, above: impl Fn(u16) -> bool) -> Option<i128> {
        let band = self.dims[d].bands.iter().flatten().find(|band| above(band.above_permille))?;
        Some(product(request.units[d], band.price[usize::from(request.sequential)]))
    }

    /// What work must hold in each dimension before it pays `nanos`.
    pub(crate) fn floors(&self, v: &Volume, nanos: &[i128; DIMS]) -> [i128; DIMS] {
        std::array::from_fn(|d| match self.dims[d].debt_units_max {
            Some(debt_units_max) => v.work_floor(d, nanos[d], debt_units_max),
            None => 1,
        })
    }

    /// The stream that a request at `offset` continues.
    pub(crate) fn find_stream(&self, offset: u64) -> Option<usize> {
        self.streams.find(offset)
    }

    /// Notes where a request that was taken in ended.
    pub(crate) fn note_stream(&mut self, stream: Option<usize>, end: u64) {
        self.streams.note(stream, end);
    }
}

impl DimTariff {
    fn of(limits: &DimLimits) -> DimTariff {
        let Ratio { num, den } = limits.sequential;
        let sequential_price = price_nano(num, den);
        let work = limits.work.as_ref();
        let bands = work.map_or([None; BANDS], |w| {
            w.bands.map(|band| {
                let band = band?;
                let Ratio { num, den } = band.charge;
                let sequential = u64::from(sequential_price) * u64::from(num);
                let price = [price_nano(num, den), sequential.div_ceil(u64::from(den)) as u32];
                Some(BandPrice { above_permille: band.above_permille, price })
            })
        });
        DimTariff { sequential_price, debt_units_max: work.and_then(|w| w.debt_units_max), bands }
    }
}

fn product(units: u32, price: u32) -> i128 {
    i128::from(u64::from(units) * u64::from(price))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Band, Work};

    #[test]
    fn plain_limits_need_no_tariff() {
        assert!(Tariff::of(&Limits::gp2_like(100), None).is_none());
        assert!(Tariff::of(&Limits::gp3_like(3000, 125 << 20), None).is_none());
    }

    #[test]
    fn the_first_band_passed_counts_and_prices_round_up() {
        let band = |above_permille, num, den| Some(Band { above_permille, charge: Ratio { num, den } });
        let work = Work { bands: [band(900, 0, 1), band(500, 1, 3), None, None], ..Work::at(10) };
        let packets =
            DimLimits { work: Some(work), sequential: Ratio { num: 1, den: 2 }, ..DimLimits::default() };
        let limits = Limits { packets, ..Limits::default() };
        let tariff = Tariff::of(&limits, None).unwrap();
        let random = Request { units: [0, 2], sequential: false };
        let sequential = Request { units: [0, 2], sequential: true };
        assert_eq!(tariff.cost(&random), [0, 2 * NANO]);
        assert_eq!(tariff.cost(&sequential), [0, NANO]);
        assert_eq!(tariff.reduced(1, &random, |_| true), Some(0));
        assert_eq!(tariff.reduced(1, &random, |above| above < 900), Some(2 * 333_333_334));
        assert_eq!(tariff.reduced(1, &sequential, |above| above < 900), Some(2 * 166_666_667));
        assert_eq!(tariff.reduced(1, &random, |_| false), None);
    }
}
