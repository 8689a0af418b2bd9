//! The shaper: admission, parking and release put together.
//!
//! A volume is in one of three states. *Free*: nothing is parked, and a request is paid for as it comes.
//! *Timed*: its first request waits for the volume's own balances, and the wheel knows until when. *Seated*:
//! the volume could pay, but its group or the node could not, and it waits in the ring of its group, or of
//! the node if it has none. A group whose volumes are held up by the node has itself a seat in the node's
//! ring; otherwise pools with members in their ring have a timer on the same wheel. With two lanes a volume
//! can be timed for one and seated for the other.
//!
//! Invariants: a volume has the `PARKED` flag exactly while a lane holds something, and is then timed or
//! seated (or both); a ring with members has its pool's timer set or (a group's) its pool seated, except
//! while it is being served; every timer set while time stands is later than now unless the budget of a
//! release was used up, so a release ends.

use crate::api::{Admission, Cost, Lane, Parked, Released, ShaperConfig};
use crate::drr::Seat;
use crate::limits::DIMS;
use crate::parking::{Arena, Lot, NONE, Waiting};
use crate::pool::Pool;
use crate::tariff::{Request, Tariff};
use crate::volume::{Charge, GROUP, PARKED, TARIFF, Volume};
use crate::wheel::Wheel;

/// See the crate's documentation. `T` is what waits: a frame, an I/O.
#[derive(Debug)]
pub struct Shaper<T> {
    pub(crate) config: ShaperConfig,
    pub(crate) now_ns: u64,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) tariffs: Vec<Option<Box<Tariff>>>,
    pub(crate) lots: Vec<Lot>,
    /// Of the volumes by number, then of the groups.
    pub(crate) seats: Vec<Seat>,
    /// The groups by number, then the node.
    pub(crate) pools: Vec<Pool>,
    /// The pools that draw from a shared bucket.
    pub(crate) borrowers: Vec<u32>,
    pub(crate) node: u32,
    pub(crate) node_is_limited: bool,
    /// Some volume was given a bank.
    pub(crate) has_banks: bool,
    pub(crate) arena: Arena<T>,
    /// Timers of the volumes by number, then of the pools.
    pub(crate) wheel: Wheel,
    pub(crate) parked: Parked,
}

/// A request that may pass, and how it pays.
#[derive(Clone, Copy, Debug)]
struct Bill {
    request: Request,
    nanos: [i128; DIMS],
    charges: [Charge; DIMS],
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug)]
struct Blocked {
    /// When the volume's own balances suffice in all dimensions, if they do not.
    own_until_ns: Option<u64>,
    /// When they suffice in the first of the dimensions that are short.
    own_change_ns: Option<u64>,
    /// The pool that is short, or `NONE`.
    pool: u32,
    /// The dimensions in question.
    short: [bool; DIMS],
}

/// Whose ring gives a request its turn, so that it is not held up by those who wait there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nobody's: it may not overtake.
    None,
    /// Its group's.
    Group,
    /// The node's, and its group's if it has one.
    Node,
}

/// What the first requests of a volume's lanes may do.
#[derive(Debug)]
enum Look {
    Empty,
    Ready(usize, Bill),
    Stuck(Blocked),
}

impl<T> Shaper<T> {
    /// Asks for one request. `now_ns` is the turn's clock; should it run backwards, nothing is refilled. A
    /// volume outside the shaper is refused.
    #[inline]
    pub fn admit(&mut self, now_ns: u64, volume: u32, lane: Lane, cost: Cost, item: T) -> Admission<T> {
        if self.take(now_ns, volume, [cost.bytes, cost.packets]) {
            return Admission::Pass(item);
        }
        if volume as usize >= self.volumes.len() {
            return self.admit_first(now_ns, volume, lane, cost, item);
        }
        self.admit_any(volume, lane, cost, item)
    }

    /// The commonest case of [`Shaper::admit`] alone, for the caller's own code: true if the volume, which has
    /// plenty, has paid for bytes and packets at the full price. False says nothing: ask [`Shaper::admit`].
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64, volume: u32, units: [u32; DIMS]) -> bool {
        self.tick(now_ns);
        let Some(v) = self.volumes.get_mut(volume as usize) else { return false };
        v.is_plain() && !self.node_is_limited && v.take(self.now_ns, units)
    }

    #[inline(never)]
    fn admit_any(&mut self, volume: u32, lane: Lane, cost: Cost, item: T) -> Admission<T> {
        let units = [cost.bytes, cost.packets];
        if self.volumes[volume as usize].flags & (PARKED | TARIFF) != 0 {
            return self.admit_with_care(volume, lane, cost, item);
        }
        let request = Request { units, sequential: false };
        match self.check(volume, &request, Turn::None) {
            Ok(bill) => {
                self.pay(volume, &bill);
                Admission::Pass(item)
            }
            Err(blocked) => self.park(volume, lane, request, item, Some(blocked)),
        }
    }

    /// [`Shaper::admit`] for a volume that was never used or is outside the shaper.
    #[cold]
    fn admit_first(&mut self, now_ns: u64, volume: u32, lane: Lane, cost: Cost, item: T) -> Admission<T> {
        if volume >= self.config.volumes_max {
            return Admission::Full(item);
        }
        self.reach(volume);
        self.admit(now_ns, volume, lane, cost, item)
    }

    /// [`Shaper::admit`] for a volume that has something parked, streams or special prices.
    #[inline(never)]
    fn admit_with_care(&mut self, volume: u32, lane: Lane, cost: Cost, item: T) -> Admission<T> {
        let tariff = self.tariffs[volume as usize].as_deref();
        let stream = tariff.and_then(|t| t.find_stream(cost.offset?));
        let request = Request { units: [cost.bytes, cost.packets], sequential: stream.is_some() };
        let alone = self.volumes[volume as usize].flags & PARKED == 0;
        let mut answer = None;
        let mut blocked = None;
        if alone || self.may_overtake(volume, lane, &request) {
            match self.check(volume, &request, Turn::None) {
                Ok(bill) => {
                    self.pay(volume, &bill);
                    answer = Some(());
                }
                Err(why) => blocked = alone.then_some(why),
            }
        }
        let answer = match answer {
            Some(()) => Admission::Pass(item),
            None => self.park(volume, lane, request, item, blocked),
        };
        if let (Some(offset), Some(tariff)) = (cost.offset, &mut self.tariffs[volume as usize])
            && !matches!(answer, Admission::Full(_))
        {
            tariff.note_stream(stream, offset.saturating_add(u64::from(cost.bytes)));
        }
        answer
    }

    /// Hands the requests whose time has come to `sink`, at most `budget` of them, and returns how many.
    pub fn release(&mut self, now_ns: u64, budget: usize, sink: &mut impl FnMut(Released<T>)) -> usize {
        self.tick(now_ns);
        let mut left = budget;
        while left > 0
            && let Some(id) = self.wheel.expire(self.now_ns)
        {
            match id.checked_sub(self.config.volumes_max) {
                None => self.wake_volume(id, &mut left, sink),
                Some(pool) if pool == self.node => self.serve_node(&mut left, sink),
                Some(group) => self.serve_group(group, &mut left, sink),
            }
        }
        budget - left
    }

    /// When [`Shaper::release`] should be called again: never later than the next request's time, perhaps
    /// a little earlier. `None`: nothing waits.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.wheel.next_deadline_ns()
    }

    /// Moves the clock, never backwards. The last nanosecond is kept so that every deadline is after now.
    #[inline(always)]
    pub(crate) fn tick(&mut self, now_ns: u64) {
        if now_ns > self.now_ns {
            self.now_ns = now_ns.min(u64::MAX - 1);
        }
    }

    /// Whether, and how, a request may pay now.
    #[inline(always)]
    fn check(&mut self, volume: u32, request: &Request, turn: Turn) -> Result<Bill, Blocked> {
        let v = &mut self.volumes[volume as usize];
        v.refill(self.now_ns);
        let mut nanos = request.plain();
        let mut floors = [1; DIMS];
        if v.flags & TARIFF != 0
            && let Some(tariff) = &self.tariffs[volume as usize]
        {
            nanos = tariff.cost(request);
            floors = tariff.floors(v, &nanos);
        }
        let charges = [v.ask(0, nanos[0], floors[0]), v.ask(1, nanos[1], floors[1])];
        if charges.contains(&Charge::Wait) {
            return Err(blocked_by_own(v, self.now_ns, &nanos, &floors));
        }
        if v.flags & GROUP != 0 {
            let group = v.group;
            self.check_pool(group, &nanos, turn != Turn::None)?;
        }
        if self.node_is_limited {
            self.check_pool(self.node, &nanos, turn == Turn::Node)?;
        }
        Ok(Bill { request: *request, nanos, charges })
    }

    #[inline(always)]
    fn check_pool(&mut self, id: u32, nanos: &[i128; DIMS], served: bool) -> Result<(), Blocked> {
        let pool = &mut self.pools[id as usize];
        pool.refill(self.now_ns);
        match pool.blocks(nanos, served) {
            None => Ok(()),
            Some(short) => Err(Blocked { own_until_ns: None, own_change_ns: None, pool: id, short }),
        }
    }

    /// Takes the payment that [`Shaper::check`] found possible.
    #[inline(always)]
    fn pay(&mut self, volume: u32, bill: &Bill) {
        let v = &mut self.volumes[volume as usize];
        let mut work_nanos = bill.nanos;
        if v.flags & TARIFF != 0
            && let Some(tariff) = &self.tariffs[volume as usize]
        {
            let node = &self.pools[self.node as usize];
            for (d, nanos) in work_nanos.iter_mut().enumerate() {
                let reduced = tariff.reduced(d, &bill.request, |permille| node.is_above(d, permille));
                *nanos = reduced.unwrap_or(*nanos);
            }
        }
        for (d, work_nanos) in work_nanos.into_iter().enumerate() {
            v.pay(d, bill.charges[d], bill.nanos[d], work_nanos);
        }
        v.count(&bill.request.units);
        if v.flags & GROUP != 0 {
            self.pools[v.group as usize].pay(&bill.nanos);
        }
        if self.node_is_limited {
            self.pools[self.node as usize].pay(&bill.nanos);
        }
    }

    /// True if a newcomer to a volume with something parked may be asked for at once: nothing is in its own
    /// lane, and it needs nothing of what the first request of the other lane is short of now.
    fn may_overtake(&mut self, volume: u32, lane: Lane, newcomer: &Request) -> bool {
        let lanes = &self.lots[volume as usize].lanes;
        let Some(first) = self.arena.front(&lanes[1 - lane as usize]) else { return false };
        if lanes[lane as usize].items > 0 {
            return false;
        }
        let first = first.request;
        let short = match self.check(volume, &first, Turn::None) {
            // It only waits for the next release.
            Ok(_) => [true; DIMS],
            Err(blocked) => blocked.short,
        };
        !newcomer.needs(&short)
    }

    /// Keeps a request that may not pass, or refuses it at the bound. `blocked`: why, if it is the volume's
    /// only one.
    #[inline(never)]
    fn park(
        &mut self,
        volume: u32,
        lane: Lane,
        request: Request,
        item: T,
        blocked: Option<Blocked>,
    ) -> Admission<T> {
        let lot = &mut self.lots[volume as usize];
        let [bytes, _] = request.units;
        if lot.is_full(lane as usize, bytes) || self.arena.is_full() {
            lot.dropped += 1;
            return Admission::Full(item);
        }
        let queue = &mut lot.lanes[lane as usize];
        let waiting = Waiting { item, request, since_ns: self.now_ns, mark: false };
        if let Err(waiting) = self.arena.push(queue, waiting) {
            lot.dropped += 1;
            return Admission::Full(waiting.item);
        }
        let first = queue.items == 1;
        let mark = lot.is_congested(lane as usize);
        if mark {
            lot.marked += 1;
            if let Some(last) = self.arena.last_mut(&lot.lanes[lane as usize]) {
                last.mark = true;
            }
        }
        lot.parked_total += 1;
        self.parked.items += 1;
        self.parked.bytes += u64::from(bytes);
        self.volumes[volume as usize].flags |= PARKED;
        match blocked {
            Some(blocked) => self.settle(volume, blocked),
            None if first => self.plan(volume),
            None => {}
        }
        Admission::Parked { mark }
    }

    /// Finds out anew what a volume waits for.
    pub(crate) fn plan(&mut self, volume: u32) {
        match self.look(volume, Turn::None) {
            Look::Empty => {}
            // Only a release hands out; it comes at once.
            Look::Ready(..) => self.wheel.set(volume, self.now_ns),
            Look::Stuck(blocked) => self.settle(volume, blocked),
        }
    }

    /// What the first request of either lane may do: the one whose turn it is, else the other if it needs
    /// nothing of what the first is short of.
    fn look(&mut self, volume: u32, turn: Turn) -> Look {
        let lot = &self.lots[volume as usize];
        let lane = if lot.lanes[lot.turn].items > 0 { lot.turn } else { 1 - lot.turn };
        let Some(front) = self.arena.front(&lot.lanes[lane]) else { return Look::Empty };
        let other = self.arena.front(&lot.lanes[1 - lane]).map(|waiting| waiting.request);
        let mut blocked = match self.check(volume, &front.request.clone(), turn) {
            Ok(bill) => return Look::Ready(lane, bill),
            Err(blocked) => blocked,
        };
        let Some(request) = other else { return Look::Stuck(blocked) };
        // As soon as the first needs one dimension less, the other may have its chance.
        blocked.own_until_ns = blocked.own_change_ns;
        if !request.needs(&blocked.short) {
            match self.check(volume, &request, turn) {
                Ok(bill) => return Look::Ready(1 - lane, bill),
                Err(also) => blocked.also(&also),
            }
        }
        Look::Stuck(blocked)
    }

    /// The pool in whose ring a volume waits if it has to: its group's, else the node's.
    pub(crate) fn home(&self, volume: u32) -> u32 {
        let v = &self.volumes[volume as usize];
        if v.flags & GROUP != 0 { v.group } else { self.node }
    }

    /// Puts a volume where it waits: on the wheel, in a ring, or both, and nowhere else.
    fn settle(&mut self, volume: u32, blocked: Blocked) {
        match blocked.own_until_ns {
            Some(until_ns) => self.wheel.set(volume, until_ns),
            None => self.wheel.cancel(volume),
        }
        if blocked.pool == NONE {
            return self.unseat(volume);
        }
        let home = self.home(volume);
        self.sit_down(volume, home, &blocked.short);
        if home != self.node && blocked.pool == self.node {
            let group = self.config.volumes_max + home;
            self.sit_down(group, self.node, &blocked.short);
            self.arm(self.node);
        } else {
            self.arm(home);
        }
    }

    /// Gives a volume or a group its seat in a pool's ring, to wait for these dimensions.
    fn sit_down(&mut self, member: u32, id: u32, short: &[bool; DIMS]) {
        let ring = &mut self.pools[id as usize].ring;
        if self.seats[member as usize].pool != id {
            ring.join(&mut self.seats, member, id);
        }
        for (waiting, short) in ring.waiting.iter_mut().zip(short) {
            *waiting |= short;
        }
    }

    /// Sees to it that a ring will be served: by a timer, or by its pool's seat in the node's ring.
    fn arm(&mut self, id: u32) {
        let timer = self.config.volumes_max + id;
        let seated = id != self.node && self.seats[timer as usize].pool != NONE;
        if !seated && !self.wheel.is_set(timer) {
            self.wheel.set(timer, self.pools[id as usize].positive_at_ns());
        }
    }

    /// Takes a volume or a group out of the ring in which it waits, if it does; a ring that is left empty
    /// needs no more service.
    pub(crate) fn unseat(&mut self, member: u32) {
        let id = self.seats[member as usize].pool;
        let Some(pool) = self.pools.get_mut(id as usize) else { return };
        pool.ring.leave(&mut self.seats, member);
        if pool.ring.members() > 0 {
            return;
        }
        let timer = self.config.volumes_max + id;
        self.wheel.cancel(timer);
        if id != self.node {
            self.unseat(timer);
        }
    }

    /// Hands out what of a volume may go without a turn in a ring, and puts the rest where it waits.
    fn wake_volume(&mut self, volume: u32, left: &mut usize, sink: &mut impl FnMut(Released<T>)) {
        loop {
            match self.look(volume, Turn::None) {
                Look::Empty => {
                    self.wheel.cancel(volume);
                    return self.unseat(volume);
                }
                Look::Stuck(blocked) => return self.settle(volume, blocked),
                Look::Ready(..) if *left == 0 => return self.wheel.set(volume, self.now_ns),
                Look::Ready(lane, bill) => {
                    self.hand_out(volume, lane, &bill, sink);
                    *left -= 1;
                }
            }
        }
    }

    /// Gives the volumes of a group their turns while the group holds something, until the node is in the
    /// way.
    fn serve_group(&mut self, id: u32, left: &mut usize, sink: &mut impl FnMut(Released<T>)) {
        while self.may_serve(id, *left) {
            let ring = &mut self.pools[id as usize].ring;
            let Some(volume) = ring.front() else { return };
            if !ring.visit(&mut self.seats) {
                continue;
            }
            match self.look(volume, Turn::Group) {
                Look::Ready(lane, bill) => {
                    self.charge(id, &bill);
                    self.hand_out(volume, lane, &bill, sink);
                    *left -= 1;
                    // What comes next may need nothing of this pool, or wait for something else.
                    self.wake_volume(volume, left, sink);
                }
                Look::Stuck(blocked) => {
                    self.settle(volume, blocked);
                    if blocked.pool == self.node {
                        return;
                    }
                }
                Look::Empty => self.unseat(volume),
            }
        }
    }

    /// Gives the members of the node's ring their turns while the node holds something.
    fn serve_node(&mut self, left: &mut usize, sink: &mut impl FnMut(Released<T>)) {
        let node = self.node;
        while self.may_serve(node, *left) {
            let Some(member) = self.pools[node as usize].ring.front() else { return };
            let group = member.checked_sub(self.config.volumes_max);
            if let Some(group) = group {
                let weight = self.pools[group as usize].ring.weights();
                self.pools[node as usize].ring.reweigh(&mut self.seats, member, weight);
            }
            if !self.pools[node as usize].ring.visit(&mut self.seats) {
                continue;
            }
            let volume = match group {
                None => member,
                Some(group) => match self.delegate(group) {
                    Some(volume) => volume,
                    None => continue,
                },
            };
            match self.look(volume, Turn::Node) {
                Look::Ready(lane, bill) => {
                    self.charge(node, &bill);
                    if let Some(group) = group {
                        self.charge(group, &bill);
                    }
                    self.hand_out(volume, lane, &bill, sink);
                    *left -= 1;
                    self.wake_volume(volume, left, sink);
                }
                Look::Stuck(blocked) => self.settle(volume, blocked),
                Look::Empty => self.unseat(volume),
            }
        }
    }

    /// The volume whose turn it is in a group that has its turn at the node; none if the group has become
    /// short, and then it leaves the node's ring.
    fn delegate(&mut self, group: u32) -> Option<u32> {
        let pool = &mut self.pools[group as usize];
        pool.refill(self.now_ns);
        if pool.is_short() {
            self.unseat(self.config.volumes_max + group);
            self.arm(group);
            return None;
        }
        while !pool.ring.visit(&mut self.seats) {
            pool.ring.front()?;
        }
        pool.ring.front()
    }

    /// True if the front of a ring may have its turn now; else its pool is timed, if anybody waits.
    fn may_serve(&mut self, id: u32, left: usize) -> bool {
        let pool = &mut self.pools[id as usize];
        if pool.ring.front().is_none() {
            return false;
        }
        pool.refill(self.now_ns);
        let timer = self.config.volumes_max + id;
        if pool.is_short() {
            self.wheel.set(timer, pool.positive_at_ns());
            return false;
        }
        if left == 0 {
            self.wheel.set(timer, self.now_ns);
        }
        left > 0
    }

    /// Charges the front of a ring for a request: what it is worth to the scarcer of the pool and the node,
    /// for a group's volumes also wait for the node there.
    fn charge(&mut self, id: u32, bill: &Bill) {
        let at_node = self.pools[self.node as usize].worth(&bill.nanos);
        let pool = &mut self.pools[id as usize];
        let worth = pool.worth(&bill.nanos).max(at_node);
        pool.ring.charge(&mut self.seats, worth);
    }

    /// Pays for the first request of a lane and lets it go.
    fn hand_out(&mut self, volume: u32, lane: usize, bill: &Bill, sink: &mut impl FnMut(Released<T>)) {
        self.pay(volume, bill);
        let lot = &mut self.lots[volume as usize];
        lot.turn = 1 - lane;
        if let Some(released) = self.unpark(volume, lane) {
            sink(released);
        }
    }

    /// Takes the first request of a lane out of the arena and out of the books.
    pub(crate) fn unpark(&mut self, volume: u32, lane: usize) -> Option<Released<T>> {
        let waiting = self.arena.pop(&mut self.lots[volume as usize].lanes[lane])?;
        Some(self.unbook(volume, lane, waiting))
    }

    /// Takes one waiting request of a volume back unpaid: the first for which `is_meant` holds. Those behind it
    /// move up. It looks at one after the other.
    pub fn cancel(&mut self, now_ns: u64, volume: u32, is_meant: impl Fn(&T) -> bool) -> Option<Released<T>> {
        self.tick(now_ns);
        let lot = self.lots.get_mut(volume as usize)?;
        let mut found = None;
        for (lane, queue) in lot.lanes.iter_mut().enumerate() {
            if let Some(waiting) = self.arena.remove(queue, &is_meant) {
                found = Some((lane, waiting));
                break;
            }
        }
        let (lane, waiting) = found?;
        let released = self.unbook(volume, lane, waiting);
        // Who is first now may wait for something else, or nobody is.
        self.wheel.set(volume, self.now_ns);
        Some(released)
    }

    /// Takes a request out of the books.
    fn unbook(&mut self, volume: u32, lane: usize, waiting: Waiting<T>) -> Released<T> {
        let Waiting { item, request, since_ns, mark } = waiting;
        let lot = &mut self.lots[volume as usize];
        let waited_ns = self.now_ns - since_ns;
        lot.parked_ns = lot.parked_ns.saturating_add(waited_ns);
        if lot.is_empty() {
            self.volumes[volume as usize].flags &= !PARKED;
        }
        self.parked.items -= 1;
        self.parked.bytes -= u64::from(request.units[0]);
        let lane = if lane == 0 { Lane::Forward } else { Lane::Reverse };
        Released { volume, lane, item, mark, waited_ns }
    }
}

impl Blocked {
    /// Both lanes are blocked: the earlier of their times counts, and the first one's pool.
    fn also(&mut self, other: &Blocked) {
        self.own_until_ns = self.own_until_ns.into_iter().chain(other.own_until_ns).min();
        if self.pool == NONE {
            (self.pool, self.short) = (other.pool, other.short);
        } else if self.pool == other.pool {
            self.short = [self.short[0] | other.short[0], self.short[1] | other.short[1]];
        }
    }
}

#[cold]
fn blocked_by_own(v: &Volume, now_ns: u64, nanos: &[i128; DIMS], floors: &[i128; DIMS]) -> Blocked {
    let waits: [u64; DIMS] = std::array::from_fn(|d| v.wait_ns(d, nanos[d], floors[d]));
    let at = |wait: u64| now_ns.saturating_add(wait.max(1));
    Blocked {
        own_until_ns: waits.into_iter().max().map(at),
        own_change_ns: waits.into_iter().filter(|&wait| wait > 0).min().map(at),
        pool: NONE,
        short: waits.map(|wait| wait > 0),
    }
}

#[cfg(test)]
impl<T> Shaper<T> {
    /// Whether the request parked last in a lane continued a stream, for the model.
    pub(crate) fn last_parked_is_sequential(&mut self, volume: u32, lane: usize) -> bool {
        let queue = &self.lots[volume as usize].lanes[lane];
        self.arena.last_mut(queue).is_some_and(|waiting| waiting.request.sequential)
    }
}
