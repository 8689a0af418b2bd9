//! The gateway pipeline: what happens to a frame between the port it came from and the port it leaves by.
//!
//! ```text
//! tenant port   -> process_tenant   -> verdict -> admit -> encapsulate (segment) -> underlay port
//! underlay port -> process_underlay -> verdict -> admit -> deliver (coalesce)    -> tenant port
//! ```
//!
//! A frame visits `judge`, `admit` and `finish` in this order and never goes back. It may change workers
//! between them: before `admit` to the worker that owns its volume, after `admit` to the worker that polls
//! the port it leaves by. Parked frames re-enter at `finish` when the shaper releases them.

use frame::{BATCH, Batch, DropReason, Flags, Frame, GsoKind, Meta, Pool, prefetch};
use overlay::coalesce::Coalescer;
use overlay::responder::{self, Answer};
use overlay::too_big::TooBig;
use overlay::{Emitted, Encapsulated, Neighbours, Outcomes, PortId, Processed, Tables, Tunnel, Verdict, Way};
use throttle::{Admission, Cost, Lane, Shaper};

use crate::io::{Home, Io};
use crate::mark;
use crate::plan::PortRole;

/// Names of the stages, in the order of their counters.
pub(crate) const STAGES: &[&str] = &["classify", "decapsulate", "admit", "release", "encapsulate", "deliver"];
const CLASSIFY: usize = 0;
const DECAPSULATE: usize = 1;
const ADMIT: usize = 2;
const RELEASE: usize = 3;
const ENCAPSULATE: usize = 4;
const DELIVER: usize = 5;

/// Parked frames released in one turn, at most.
const RELEASE_BUDGET: usize = 256;

/// Least time between two releases from a backlog. One by one its frames would each cost a wake-up and a
/// system call here and in the receiver's kernel, which others on the processor pay for; together they are
/// merged into super-segments. A quarter of what admissions may be off their curve, 1 % of 100 ms worth.
const RELEASE_PERIOD_NS: u64 = 250_000;
/// Parked frames that make a backlog; fewer leave on time.
const BACKLOG: u32 = BATCH as u32;

/// Rules or volumes up to which their counts and balances stay in the processor's cache by themselves.
const CACHED_MAX: usize = 256;

/// The frames that one super-segment becomes.
type Pieces = arrayvec::ArrayVec<Frame, { overlay::segment::PIECES_MAX }>;

/// Frames and bytes that a rule has decided about (capability F9.g).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Frames.
    pub frames: u64,
    /// Their bytes as they came in.
    pub bytes: u64,
}

/// What one worker knows besides its hands ([`Io`]).
pub(crate) struct Gateway {
    pub shaper: Shaper<Frame>,
    pub neighbours: Neighbours,
    pub rules: Vec<RuleCount>,
    /// Workers that own volumes; volume `v` belongs to number `v % len`.
    pub owners: Vec<usize>,
    pub worker: usize,
    pub now_ns: u64,
    /// No frame of a backlog is released before.
    release_from_ns: u64,
    volumes_max: u32,
    /// Volumes that have limits now.
    pub volumes_limited: usize,
    too_big: TooBig,
    outcomes: Outcomes,
    /// One per port of this worker that takes super-segments.
    coalescers: Vec<Coalescer>,
}

impl Gateway {
    pub fn new(
        shaper: Shaper<Frame>,
        neighbours: Neighbours,
        tables: &Tables,
        owners: Vec<usize>,
        worker: usize,
        ports: usize,
        volumes_max: u32,
    ) -> Gateway {
        Gateway {
            shaper,
            neighbours,
            rules: vec![RuleCount::default(); tables.rule_count()],
            owners,
            worker,
            now_ns: 0,
            release_from_ns: 0,
            volumes_max,
            volumes_limited: 0,
            too_big: TooBig::new(),
            outcomes: Outcomes::default(),
            coalescers: (0..ports).map(|_| Coalescer::new()).collect(),
        }
    }

    /// Goes over to new tables between two turns.
    pub fn rebase(&mut self, tables: &Tables) {
        self.neighbours.rebase(tables);
        // Rules are numbered anew, so their counts begin anew.
        self.rules.clear();
        self.rules.resize(tables.rule_count(), RuleCount::default());
    }

    /// Polls one port and takes its frames through the pipeline. Returns how many came.
    #[inline]
    pub fn process_port(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables, slot: usize) -> usize {
        let mut batch = Batch::new();
        io.receive(pool, slot, &mut batch);
        let received = batch.len();
        if received == 0 {
            return 0;
        }
        let port = &io.ports[slot];
        let (id, role) = (port.id, port.role);
        match role {
            PortRole::Tenant => {
                overlay::process_tenant(tables, pool, id, &mut batch, &mut self.outcomes);
                io.counters.stage(CLASSIFY, received, true);
                self.judge(pool, io, tables, &mut batch, role);
            }
            PortRole::Underlay => {
                overlay::process_underlay(tables, pool, id, &mut batch, &mut self.outcomes);
                io.counters.stage(DECAPSULATE, received, true);
                self.judge(pool, io, tables, &mut batch, role);
            }
            PortRole::Trap => {
                for frame in batch {
                    io.discard(pool, frame, DropReason::UnsupportedType);
                }
            }
            PortRole::MacSwap => swap_macs(pool, io, slot, &mut batch),
        }
        received
    }

    /// Takes a frame that another worker handed over through the rest of the pipeline.
    #[inline]
    pub fn process_handed(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables, mut frame: Frame) {
        io.counters.turn.rx += 1;
        let flags = &mut pool.meta_mut(&mut frame).flags;
        if flags.has(Flags::HEARD) {
            let reason = self.neighbours.overhear(tables, pool, frame, self.now_ns);
            io.counters.dropped(reason, 1);
        } else if flags.has(Flags::ADMITTED) {
            flags.clear(Flags::ADMITTED);
            self.finish(pool, io, tables, &mut Batch::from_iter([frame]));
        } else {
            let mut metered = 0;
            let mut paid: Batch = self.admit(pool, io, frame, &mut metered).into_iter().collect();
            io.counters.stage(ADMIT, metered, false);
            self.finish(pool, io, tables, &mut paid);
        }
    }

    /// Acts on the verdicts of a batch.
    #[inline]
    fn judge(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables, batch: &mut Batch, role: PortRole) {
        if self.owners.len() > 1 {
            self.announce(pool, io, batch);
        }
        if self.rules.len() > CACHED_MAX || self.volumes_limited > CACHED_MAX {
            self.prefetch(pool, batch);
        }
        let alone = self.owners == [self.worker];
        let (mut paid, mut metered) = (Batch::new(), 0);
        for (at, frame) in batch.drain(..).enumerate() {
            let meta = pool.meta(&frame);
            if let Some(count) = self.rules.get_mut(self.outcomes.rules[at % BATCH] as usize) {
                count.frames += 1;
                count.bytes += meta.len() as u64;
            }
            let verdict = self.outcomes.verdicts[at % BATCH];
            if verdict != Verdict::Forward && verdict != Verdict::Deliver {
                self.judge_uncommon(pool, io, tables, frame, verdict, role);
                continue;
            }
            // Most frames are paid for at once, which has code of its own here.
            if alone && self.shaper.take(self.now_ns, meta.volume, [meta.cost_bytes, packets(meta)]) {
                metered += 1;
                paid.push(frame);
            } else if let Some(frame) = self.admit(pool, io, frame, &mut metered) {
                paid.push(frame);
            }
        }
        io.counters.stage(ADMIT, metered, true);
        self.finish(pool, io, tables, &mut paid);
    }

    /// What neither leaves nor pays.
    #[inline(never)]
    fn judge_uncommon(
        &mut self,
        pool: &mut Pool,
        io: &mut Io,
        tables: &Tables,
        frame: Frame,
        verdict: Verdict,
        role: PortRole,
    ) {
        match verdict {
            Verdict::Drop(reason) => io.discard(pool, frame, reason),
            Verdict::Trap => io.trap(pool, frame),
            Verdict::Local if role == PortRole::Underlay => self.neighbour(pool, io, tables, frame),
            Verdict::Local => answer_tenant(pool, io, tables, frame),
            // INVARIANT: these two were asked to pay.
            Verdict::Forward | Verdict::Deliver => io.discard(pool, frame, DropReason::PortDown),
        }
    }

    /// Numbers the frames that other workers will meter.
    #[inline(never)]
    fn announce(&self, pool: &mut Pool, io: &mut Io, batch: &mut Batch) {
        for (at, frame) in batch.iter_mut().enumerate() {
            if let Some(owner) = self.owner(pool.meta(frame).volume)
                && owner != self.worker
                && matches!(self.outcomes.verdicts[at], Verdict::Forward | Verdict::Deliver)
            {
                io.announce(pool, owner, frame);
            }
        }
    }

    /// What counts and meters lies at random places of large tables: asks for the lines that
    /// [`Gateway::judge`] will read.
    #[inline(always)]
    fn prefetch(&self, pool: &Pool, batch: &Batch) {
        for (at, frame) in batch.iter().enumerate() {
            if let Some((volume, paced, bank)) = self.shaper.prefetch_hints(pool.meta(frame).volume) {
                prefetch(volume);
                prefetch(paced);
                bank.into_iter().for_each(prefetch);
            }
            if let Some(count) = self.rules.get(self.outcomes.rules[at] as usize) {
                prefetch(count);
            }
        }
    }

    /// The worker that meters a volume; `None` if nothing pays.
    #[inline]
    fn owner(&self, volume: u32) -> Option<usize> {
        match self.owners.len() {
            _ if volume == Meta::NO_VOLUME => None,
            1 => Some(self.owners[0]),
            many => Some(self.owners[volume as usize % many]),
        }
    }

    /// Lets a frame's volume pay, here or at the worker that owns it. Returns the frame if it may go on now;
    /// adds to `metered` if it was asked to pay here.
    #[inline(never)]
    fn admit(&mut self, pool: &mut Pool, io: &mut Io, frame: Frame, metered: &mut usize) -> Option<Frame> {
        let meta = pool.meta(&frame);
        let volume = meta.volume;
        let Some(owner) = self.owner(volume) else { return Some(frame) };
        if owner != self.worker {
            io.hand(pool, owner, frame);
            return None;
        }
        *metered += 1;
        let lane = if meta.flags.has(Flags::EGRESS) { Lane::Forward } else { Lane::Reverse };
        let cost = Cost { bytes: meta.cost_bytes, packets: packets(meta), offset: None };
        match self.shaper.admit(self.now_ns, volume, lane, cost, frame) {
            Admission::Pass(frame) => return Some(frame),
            Admission::Parked { .. } => {}
            Admission::Full(frame) => io.discard(pool, frame, DropReason::ParkedFull),
        }
        None
    }

    /// Sends what has paid: into the tunnel, or to the tenant. Leaves the batch empty. Ordinary frames to one
    /// place go together; whatever needs more than headers goes by itself.
    #[inline(never)]
    fn finish(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables, paid: &mut Batch) {
        let (mut wrapped, mut delivered) = (0, 0);
        while let Some(first) = paid.first() {
            let meta = pool.meta(first);
            let (egress, next_hop, port) = (meta.flags.has(Flags::EGRESS), meta.next_hop, meta.egress_port);
            let (mut count, slot) = if egress {
                match self.way(io, tables, next_hop) {
                    Some((way, slot)) => (way.wrap(&mut self.neighbours, pool, paid), slot),
                    None => (0, 0),
                }
            } else {
                match io.door(PortId(port)) {
                    Some(slot) => (ordinary(pool, paid, port), slot),
                    None => (0, 0),
                }
            };
            if count > 0 {
                io.send_first(pool, slot, paid, count);
            } else if let Some(frame) = paid.pop_at(0) {
                count = usize::from(self.finish_any(pool, io, tables, frame));
            }
            *if egress { &mut wrapped } else { &mut delivered } += count;
        }
        io.counters.stage(ENCAPSULATE, wrapped, true);
        io.counters.stage(DELIVER, delivered, true);
    }

    /// A next hop with the place of its port, if that is polled here.
    #[inline(always)]
    fn way<'a>(&mut self, io: &Io, tables: &'a Tables, next_hop: u16) -> Option<(Way<'a>, usize)> {
        let way = Way::find(tables, &mut self.neighbours, next_hop, self.now_ns)?;
        match io.home(way.port()) {
            Home::Here(slot) => Some((way, slot)),
            Home::There(_) | Home::Nowhere => None,
        }
    }

    /// Sends one frame that has paid, whatever it is. False if another worker must, or nobody can.
    #[inline(never)]
    fn finish_any(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables, mut frame: Frame) -> bool {
        let meta = pool.meta(&frame);
        let egress = meta.flags.has(Flags::EGRESS);
        match io.home(PortId(meta.egress_port)) {
            Home::Here(slot) if egress => {
                self.encapsulate(pool, io, tables, slot, frame);
                true
            }
            Home::Here(slot) => {
                self.deliver(pool, io, slot, frame);
                true
            }
            Home::There(worker) => {
                pool.meta_mut(&mut frame).flags.set(Flags::ADMITTED);
                io.hand(pool, worker, frame);
                false
            }
            Home::Nowhere => {
                io.discard(pool, frame, DropReason::PortDown);
                false
            }
        }
    }

    fn encapsulate(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables, slot: usize, frame: Frame) {
        let tunnel = Tunnel { trace: 0, now_ns: self.now_ns };
        // A next hop keeps its port as long as it keeps its number, so `slot` is where its frames leave.
        let mut send = |pool: &mut Pool, frame: Frame| io.send(pool, slot, frame);
        let (neighbours, too_big) = (&mut self.neighbours, &mut self.too_big);
        match overlay::encapsulate(tables, neighbours, too_big, pool, frame, &tunnel, &mut send) {
            Encapsulated::Sent | Encapsulated::Held => {}
            other => count_encapsulated(pool, io, other),
        }
    }

    /// Sends a frame to a tenant's port of this worker: merged with its neighbours where the port takes
    /// super-segments, cut where it does not.
    fn deliver(&mut self, pool: &mut Pool, io: &mut Io, slot: usize, frame: Frame) {
        let takes_super = io.ports[slot].tx_gso();
        let is_super = pool.meta(&frame).gso != GsoKind::None;
        match (takes_super, is_super) {
            // Super-segments too: what is open of their flow must leave before them.
            (true, _) => {
                let mut sent = |pool: &mut Pool, frame: Frame| io.send(pool, slot, frame);
                self.coalescers[slot].process(pool, frame, &mut sent);
            }
            (false, false) => io.send(pool, slot, frame),
            (false, true) => deliver_cut(pool, io, slot, frame),
        }
    }

    /// ARP and neighbour discovery on the underlay.
    fn neighbour(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables, frame: Frame) {
        if !io.sharers(&frame, pool).is_empty() && self.neighbours.concerns(tables, pool, &frame) {
            io.pass_on(pool, &frame);
        }
        match self.neighbours.process(tables, pool, frame, self.now_ns) {
            Processed::Reply(frame) => io.answer(pool, frame),
            Processed::Dropped(reason) => io.counters.dropped(reason, 1),
        }
    }

    /// What time brings: parked frames whose volume can pay, neighbours to ask, merged frames to send.
    /// Returns how many frames moved.
    pub fn tick(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables) -> usize {
        let mut moved = 0;
        if self.next_release_ns().is_some_and(|due| due <= self.now_ns) {
            moved += self.release(pool, io, tables);
        }
        if self.neighbours.next_deadline_ns().is_some_and(|due| due <= self.now_ns) {
            let mut emit = |pool: &mut Pool, emitted: Emitted| {
                moved += 1;
                match emitted {
                    Emitted::Generated(frame) => io.generate(pool, frame),
                    Emitted::Released(frame) => io.dispatch(pool, frame),
                    Emitted::Dropped(frame, reason) => io.discard(pool, frame, reason),
                }
            };
            self.neighbours.dispatch(tables, pool, self.now_ns, &mut emit);
        }
        for slot in 0..self.coalescers.len() {
            let mut send = |pool: &mut Pool, frame: Frame| io.send(pool, slot, frame);
            self.coalescers[slot].flush(pool, &mut send);
        }
        moved
    }

    fn release(&mut self, pool: &mut Pool, io: &mut Io, tables: &Tables) -> usize {
        // The shaper is borrowed while it hands out, and finishing needs the rest of us: batch by batch.
        let mut ready = Batch::new();
        let mut moved = 0;
        while moved < RELEASE_BUDGET {
            let count = self.shaper.release(self.now_ns, ready.capacity(), &mut |released| {
                let mut frame = released.item;
                if released.mark {
                    mark::congestion(pool, &mut frame);
                }
                ready.push(frame);
            });
            if count == 0 {
                break;
            }
            moved += count;
            io.counters.stage(RELEASE, count, moved == count);
            self.finish(pool, io, tables, &mut ready);
        }
        if moved < RELEASE_BUDGET {
            self.release_from_ns = self.now_ns.saturating_add(RELEASE_PERIOD_NS);
        }
        moved
    }

    fn next_release_ns(&self) -> Option<u64> {
        let due_ns = self.shaper.next_deadline_ns()?;
        Some(release_ns(due_ns, self.shaper.parked().items, self.release_from_ns))
    }

    /// When [`Gateway::tick`] has something to do next.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let due = [self.next_release_ns(), self.neighbours.next_deadline_ns()];
        due.into_iter().flatten().min()
    }

    /// Frames that were merged into others.
    pub fn merged(&self) -> u64 {
        self.coalescers.iter().map(Coalescer::merged).sum()
    }

    /// Volumes are numbered 0 to this, exclusive.
    pub fn volumes(&self) -> u32 {
        self.volumes_max
    }

    /// Frames that wait here for something other than credits.
    pub fn held(&self) -> usize {
        self.neighbours.held()
    }
}

/// How many frames from the first on are no super-segments and leave by a tenant's port.
#[inline(always)]
fn ordinary(pool: &Pool, frames: &[Frame], port: u16) -> usize {
    let other = |frame: &Frame| {
        let meta = pool.meta(frame);
        meta.flags.has(Flags::EGRESS) || meta.gso != GsoKind::None || meta.egress_port != port
    };
    frames.iter().position(other).unwrap_or(frames.len())
}

/// When frames are released, of which so many are parked and the first is due at `due_ns`.
#[inline]
fn release_ns(due_ns: u64, parked: u32, backlog_from_ns: u64) -> u64 {
    if parked < BACKLOG { due_ns } else { due_ns.max(backlog_from_ns) }
}

/// Cuts a super-segment for a tenant's port that does not take it.
#[cold]
fn deliver_cut(pool: &mut Pool, io: &mut Io, slot: usize, frame: Frame) {
    let mut pieces = Pieces::new();
    match overlay::segment::segment(pool, &frame, &mut |_, piece| pieces.push(piece)) {
        Ok(count) => {
            io.counters.turn.split += count.saturating_sub(1) as u64;
            pool.free(frame);
            for piece in pieces {
                io.send(pool, slot, piece);
            }
        }
        Err(error) => io.discard(pool, frame, error.reason()),
    }
}

/// Counts what encapsulation made of a frame other than one frame.
#[cold]
fn count_encapsulated(pool: &mut Pool, io: &mut Io, encapsulated: Encapsulated) {
    match encapsulated {
        Encapsulated::Sent | Encapsulated::Held => {}
        Encapsulated::Segmented(pieces) => {
            let made = pieces.sent + pieces.held + pieces.unresolved + pieces.no_frame;
            io.counters.turn.split += u64::from(made.saturating_sub(1));
            io.counters.dropped(DropReason::Unresolved, pieces.unresolved.into());
            io.counters.dropped(DropReason::NoFrame, pieces.no_frame.into());
        }
        Encapsulated::TooBig(notice) => {
            io.counters.dropped(DropReason::TooBig, 1);
            if let Some(notice) = notice {
                io.generate(pool, notice);
            }
        }
        Encapsulated::Dropped(reason) => io.counters.dropped(reason, 1),
    }
}

/// ARP and neighbour discovery of a tenant.
fn answer_tenant(pool: &mut Pool, io: &mut Io, tables: &Tables, frame: Frame) {
    match responder::process(tables, pool, frame) {
        Answer::Reply(frame) => io.answer(pool, frame),
        Answer::Dropped(reason) => io.counters.dropped(reason, 1),
        Answer::Trap(frame) => io.trap(pool, frame),
    }
}

/// What a super-segment will be on the wire: the packets that its volume pays for.
#[inline]
fn packets(meta: &Meta) -> u32 {
    match meta.gso {
        GsoKind::None => 1,
        _ => meta.cost_bytes.div_ceil(u32::from(meta.gso_bytes).max(1)).max(1),
    }
}

/// Sends each frame back where it came from, as testpmd's macswap does.
#[inline]
fn swap_macs(pool: &mut Pool, io: &mut Io, slot: usize, batch: &mut Batch) {
    for frame in &mut *batch {
        if let Some((macs, _)) = pool.bytes_mut(frame).split_first_chunk_mut::<12>() {
            let [a, b, c, d, e, f, rest @ ..] = *macs;
            macs[..6].copy_from_slice(&rest);
            macs[6..].copy_from_slice(&[a, b, c, d, e, f]);
        }
    }
    io.send_first(pool, slot, batch, batch.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_frames_leave_on_time_and_a_backlog_in_bursts() {
        let from_ns = 1_000 + RELEASE_PERIOD_NS;
        assert_eq!(release_ns(1_001, BACKLOG - 1, from_ns), 1_001);
        assert_eq!(release_ns(1_001, BACKLOG, from_ns), from_ns);
        assert_eq!(release_ns(from_ns + 5, BACKLOG, from_ns), from_ns + 5, "nothing leaves before it may");
    }
}
