//! Decision D1 once more, as naively as can be, in exact rational arithmetic: what `docs/throttle.md` says,
//! with every bucket brought up to date at every step. The property tests in `tests` run it beside the
//! shaper and demand the same decisions at the same nanoseconds and the same balances.

mod tests;

use std::collections::VecDeque;

use num_bigint::BigInt;
use num_rational::BigRational;

use crate::limits::{DIMS, Limits, PoolLimits, PoolRate, Ratio};
use crate::{Cost, Lane};

type Q = BigRational;

fn q(n: impl Into<BigInt>) -> Q {
    Q::from_integer(n.into())
}

fn nano() -> Q {
    Q::new(1.into(), 1_000_000_000.into())
}

#[derive(Clone, Debug)]
struct Bucket {
    level: Q,
    rate: u64,
    cap: Q,
}

impl Bucket {
    /// The bucket of a limit after a change: what it held, cut to the cap; full if it is new.
    fn changed(before: Option<Bucket>, rate: u64, cap: Q) -> Option<Bucket> {
        let level = before.map_or(cap.clone(), |b| b.level.min(cap.clone()));
        Some(Bucket { level, rate, cap })
    }

    fn advance(&mut self, dt_ns: u64) {
        let earned = q(dt_ns) * q(self.rate) * nano();
        self.level = (self.level.clone() + earned).min(self.cap.clone());
    }

    fn wait_ns(&self, target: &Q) -> BigInt {
        let missing = (target - &self.level).max(q(0));
        (missing / q(self.rate) / nano()).ceil().to_integer()
    }
}

#[derive(Clone, Debug, Default)]
struct Dim {
    burst: Option<Bucket>,
    work: Option<Bucket>,
    peak: Option<Bucket>,
}

/// Who pays in a dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Payer {
    Nobody,
    Burst,
    Work,
}

#[derive(Clone, Debug)]
struct Request {
    item: u32,
    units: [u32; DIMS],
    sequential: bool,
}

impl Request {
    fn needs(&self, dims: [bool; DIMS]) -> bool {
        (0..DIMS).any(|d| self.units[d] > 0 && dims[d])
    }
}

#[derive(Clone, Debug, Default)]
struct Volume {
    limits: Limits,
    dims: [Dim; DIMS],
    /// Ends of streams, the one used last first.
    streams: Vec<u64>,
    lanes: [VecDeque<Request>; 2],
    turn: usize,
}

impl Volume {
    /// Streams are watched only where something has a price of its own.
    fn is_special(&self) -> bool {
        self.limits.dims().iter().any(|d| {
            d.sequential != Ratio::ONE
                || d.work.is_some_and(|w| w.debt_units_max.is_some() || w.bands.iter().any(Option::is_some))
        })
    }
}

#[derive(Clone, Debug, Default)]
struct Pool([Option<Bucket>; DIMS]);

#[derive(Clone, Debug)]
struct Model {
    /// The model tells every decision. With a pool short in two dimensions, who waits for whom in its ring
    /// also depends on the order of turns, which the model leaves open: then the shaper may be slower.
    strict: bool,
    now_ns: u64,
    volumes: Vec<Volume>,
    group: Pool,
    node: Pool,
}

/// What becomes of a request in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Pass,
    Parked { mark: bool },
    Full,
}

impl Model {
    fn new(strict: bool, volumes: usize, now_ns: u64) -> Model {
        let volumes = vec![Volume::default(); volumes];
        Model { strict, now_ns, volumes, group: Pool::default(), node: Pool::default() }
    }

    fn advance(&mut self, now_ns: u64) {
        let dt = now_ns.saturating_sub(self.now_ns);
        self.now_ns += dt;
        let dims = self.volumes.iter_mut().flat_map(|v| v.dims.iter_mut());
        for bucket in dims.flat_map(|d| [&mut d.burst, &mut d.work, &mut d.peak]) {
            bucket.iter_mut().for_each(|b| b.advance(dt));
        }
        for bucket in self.group.0.iter_mut().chain(&mut self.node.0) {
            bucket.iter_mut().for_each(|b| b.advance(dt));
        }
    }

    fn set_volume(&mut self, volume: usize, limits: &Limits) {
        let v = &mut self.volumes[volume];
        v.limits = *limits;
        if !v.is_special() {
            v.streams.clear();
        }
        for (dim, limits) in v.dims.iter_mut().zip(limits.dims()) {
            let before = std::mem::take(dim);
            dim.burst = limits.burst.and_then(|b| Bucket::changed(before.burst, b.fill_rate, q(b.cap_units)));
            dim.work = limits.work.and_then(|w| Bucket::changed(before.work, w.rate, q(w.rate)));
            dim.peak = limits.peak_rate.and_then(|r| Bucket::changed(before.peak, r, q(r) / q(100)));
        }
    }

    fn set_pool(pool: &mut Pool, limits: &PoolLimits) {
        for (bucket, rate) in pool.0.iter_mut().zip([&limits.bytes, &limits.packets]) {
            *bucket = match rate {
                Some(PoolRate::Own { rate, cap_units }) => {
                    Bucket::changed(bucket.take(), *rate, q(*cap_units))
                }
                _ => None,
            };
        }
    }

    /// Price of a unit, rounded up to a whole nano-token.
    fn price(&self, volume: usize, d: usize, sequential: bool, factor: Ratio) -> Q {
        let Ratio { num, den } = self.volumes[volume].limits.dims()[d].sequential;
        let whole = |price: Q| (price / nano()).ceil() * nano();
        let unit = if sequential { whole(q(num) / q(den)) } else { q(1) };
        whole(unit * q(factor.num) / q(factor.den))
    }

    fn cost(&self, volume: usize, d: usize, r: &Request) -> Q {
        q(r.units[d]) * self.price(volume, d, r.sequential, Ratio::ONE)
    }

    /// What work must hold before it pays `n`.
    fn work_floor(&self, volume: usize, d: usize, n: &Q) -> Q {
        let work = self.volumes[volume].limits.dims()[d].work.as_ref();
        match work.and_then(|w| w.debt_units_max) {
            Some(debt) => (n - q(debt)).min(q(work.map_or(0, |w| w.rate))).max(nano()),
            None => nano(),
        }
    }

    fn payer(&self, volume: usize, d: usize, n: &Q) -> Option<Payer> {
        let dim = &self.volumes[volume].dims[d];
        if *n == q(0) {
            return Some(Payer::Nobody);
        }
        if dim.peak.as_ref().is_some_and(|b| b.level <= q(0)) {
            return None;
        }
        match (&dim.burst, &dim.work) {
            (None, None) => Some(Payer::Nobody),
            (Some(burst), _) if burst.level >= *n => Some(Payer::Burst),
            (Some(burst), None) if burst.level == burst.cap => Some(Payer::Burst),
            (_, Some(work)) if work.level >= self.work_floor(volume, d, n) => Some(Payer::Work),
            _ => None,
        }
    }

    fn pools(&self, volume: usize) -> Vec<&Pool> {
        let group = self.volumes[volume].limits.group.map(|_| &self.group);
        group.into_iter().chain([&self.node]).collect()
    }

    /// Who pays for a request, or the dimensions in which it must wait: its own, else its group's, else the
    /// node's.
    fn ask(&self, volume: usize, r: &Request) -> Result<[Payer; DIMS], [bool; DIMS]> {
        let n = [self.cost(volume, 0, r), self.cost(volume, 1, r)];
        let payers = [self.payer(volume, 0, &n[0]), self.payer(volume, 1, &n[1])];
        let [Some(bytes), Some(packets)] = payers else { return Err(payers.map(|p| p.is_none())) };
        for pool in self.pools(volume) {
            let short: [bool; DIMS] =
                std::array::from_fn(|d| n[d] > q(0) && pool.0[d].as_ref().is_some_and(|b| b.level <= q(0)));
            if short.contains(&true) {
                return Err(short);
            }
        }
        Ok([bytes, packets])
    }

    fn pay(&mut self, volume: usize, r: &Request, payers: [Payer; DIMS]) {
        for (d, payer) in payers.into_iter().enumerate() {
            let n = self.cost(volume, d, r);
            let reduced = self.reduced(volume, d, r).unwrap_or(n.clone());
            let v = &mut self.volumes[volume];
            v.dims[d].peak.iter_mut().for_each(|b| b.level -= &n);
            match payer {
                Payer::Burst => v.dims[d].burst.iter_mut().for_each(|b| b.level -= &n),
                Payer::Work => v.dims[d].work.iter_mut().for_each(|b| b.level -= &reduced),
                Payer::Nobody => {}
            }
        }
        // The bands of both dimensions look at the node before it pays.
        for d in 0..DIMS {
            let n = self.cost(volume, d, r);
            if self.volumes[volume].limits.group.is_some() {
                self.group.0[d].iter_mut().for_each(|b| b.level -= &n);
            }
            self.node.0[d].iter_mut().for_each(|b| b.level -= &n);
        }
    }

    fn reduced(&self, volume: usize, d: usize, r: &Request) -> Option<Q> {
        let bands = self.volumes[volume].limits.dims()[d].work?.bands;
        let above = |permille: u16| match &self.node.0[d] {
            None => true,
            Some(b) => b.level > &b.cap * q(permille) / q(1000),
        };
        let band = bands.into_iter().flatten().find(|band| above(band.above_permille))?;
        Some(q(r.units[d]) * self.price(volume, d, r.sequential, band.charge))
    }

    fn admit(&mut self, volume: usize, lane: Lane, cost: Cost, item: u32, slots: usize) -> Answer {
        let v = &self.volumes[volume];
        let special = v.is_special();
        let known = cost.offset.and_then(|offset| v.streams.iter().position(|&end| end == offset));
        let stream = known.filter(|_| special);
        let units = [cost.bytes, cost.packets];
        let request = Request { item, units, sequential: stream.is_some() };
        let (mine, other) = (&v.lanes[lane as usize], &v.lanes[1 - lane as usize]);
        let behind = other.front().map(|first| self.ask(volume, first).err().unwrap_or([true; DIMS]));
        let free = mine.is_empty() && behind.is_none_or(|short| !request.needs(short));
        let payers = if free { self.ask(volume, &request).ok() } else { None };
        let answer = match payers {
            Some(payers) => {
                self.pay(volume, &request, payers);
                Answer::Pass
            }
            None => self.park(volume, lane as usize, request, slots),
        };
        if let (Some(offset), true, true) = (cost.offset, special, answer != Answer::Full) {
            let streams = &mut self.volumes[volume].streams;
            match stream {
                Some(at) => drop(streams.remove(at)),
                None => streams.truncate(15),
            }
            streams.insert(0, offset + u64::from(cost.bytes));
        }
        answer
    }

    fn park(&mut self, volume: usize, lane: usize, request: Request, slots: usize) -> Answer {
        let used: usize = self.volumes.iter().flat_map(|v| &v.lanes).map(VecDeque::len).sum();
        let v = &mut self.volumes[volume];
        let bounds = v.limits.park;
        let bytes: u64 = v.lanes[lane].iter().map(|r| u64::from(r.units[0])).sum();
        let (items, after) = (v.lanes[lane].len() as u64, bytes + u64::from(request.units[0]));
        let over = items >= u64::from(bounds.items_max) || after > bounds.bytes_max;
        if used >= slots || (items > 0 && over) {
            return Answer::Full;
        }
        v.lanes[lane].push_back(request);
        let mark = 2 * (items + 1) > u64::from(bounds.items_max) || after > bounds.bytes_max / 2;
        Answer::Parked { mark }
    }

    /// The lane of a volume that may be served now, if one may.
    fn ready(&self, volume: usize) -> Option<(usize, [Payer; DIMS])> {
        let v = &self.volumes[volume];
        let turn = if v.lanes[v.turn].is_empty() { 1 - v.turn } else { v.turn };
        let short = match self.ask(volume, v.lanes[turn].front()?) {
            Ok(payers) => return Some((turn, payers)),
            Err(short) => short,
        };
        let other = v.lanes[1 - turn].front().filter(|r| !r.needs(short))?;
        Some((1 - turn, self.ask(volume, other).ok()?))
    }

    /// Who pays for the first request of a lane that goes while the other lane's has not had its turn in a
    /// pool's ring: it needs nothing of what that one needs of limited pools.
    fn beside(&self, volume: usize, lane: usize) -> Option<[Payer; DIMS]> {
        let lanes = &self.volumes[volume].lanes;
        let (request, other) = (lanes[lane].front()?, lanes[1 - lane].front()?);
        if !self.strict {
            return self.ask(volume, request).ok();
        }
        let limited = |d: usize| self.pools(volume).iter().any(|pool| pool.0[d].is_some());
        let held = std::array::from_fn(|d| other.units[d] > 0 && limited(d));
        if request.needs(held) { None } else { self.ask(volume, request).ok() }
    }

    /// The shaper let the first request of a lane go: it must have been allowed to. Returns the item.
    fn release(&mut self, volume: usize, lane: usize) -> Result<u32, String> {
        let payers = match self.ready(volume) {
            Some((ready, payers)) if ready == lane => payers,
            _ => {
                self.beside(volume, lane).ok_or(format!("volume {volume} lane {lane} at {}", self.now_ns))?
            }
        };
        let v = &mut self.volumes[volume];
        let request = v.lanes[lane].pop_front().ok_or("nothing waits")?;
        v.turn = 1 - lane;
        self.pay(volume, &request, payers);
        Ok(request.item)
    }

    /// The first moment at which some volume may send, if nothing happens before. What a request waits for
    /// changes only when one of its buckets suffices, so only those moments are tried.
    fn next_ns(&self) -> Option<u64> {
        let volumes = 0..self.volumes.len();
        let heads =
            volumes.flat_map(|v| self.volumes[v].lanes.iter().filter_map(move |l| Some((v, l.front()?))));
        let mut moments: Vec<BigInt> = heads.flat_map(|(v, r)| self.waits_ns(v, r)).collect();
        moments.sort();
        moments.dedup();
        moments.into_iter().find_map(|wait| {
            let at = u64::try_from(wait).ok()?.checked_add(self.now_ns)?;
            let mut then = self.clone();
            then.advance(at);
            (0..then.volumes.len()).any(|v| then.ready(v).is_some()).then_some(at)
        })
    }

    /// When each bucket that a request needs suffices.
    fn waits_ns(&self, volume: usize, r: &Request) -> Vec<BigInt> {
        let mut waits = vec![BigInt::from(0)];
        for d in (0..DIMS).filter(|&d| r.units[d] > 0) {
            let n = self.cost(volume, d, r);
            let dim = &self.volumes[volume].dims[d];
            let bank = dim.burst.as_ref().map(|b| b.wait_ns(&n.clone().min(b.cap.clone())));
            let work = dim.work.as_ref().map(|b| b.wait_ns(&self.work_floor(volume, d, &n)));
            let peak = dim.peak.as_ref().map(|b| b.wait_ns(&nano()));
            let pools = self.pools(volume).into_iter();
            let pools = pools.filter_map(|pool| Some(pool.0[d].as_ref()?.wait_ns(&nano())));
            waits.extend(bank.into_iter().chain(work).chain(peak).chain(pools));
        }
        waits
    }
}
