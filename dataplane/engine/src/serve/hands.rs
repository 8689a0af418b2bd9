//! What a session sees of its worker while it hands out its I/Os.

use block::{Io, Lba, Op, Tag, TraceId, VolumeId};
use frame::IoBuffer;
use session::{Follow, Sink};
use throttle::{Admission, Cost, Lane, Shaper};
use trace::{Stage, Start, Tracer};

use super::connection::{Ask, Credits};
use super::follow::Stamp;
use super::target::{Target, Unsynced};
use super::{Flight, Ticket};

/// Bytes of one operation, as limits count them.
const OPERATION_BYTES: u32 = 256 << 10;

pub(super) struct Hands<'a> {
    pub connection: u32,
    pub credits: &'a mut Credits,
    /// The volumes of its worker, by number.
    pub targets: &'a mut [Option<Box<Target>>],
    /// It copies its volume, which costs that one's hosts nothing.
    pub copies: bool,
    /// What has held the connection's requests up until now, and since when.
    pub blocked: Option<(Stage, u64)>,
    pub followed: &'a mut bool,
    pub shaper: &'a mut Shaper<Ticket>,
    /// Tickets up to which a connection may have more than one.
    pub tickets_max: u32,
    pub flights: &'a mut Vec<Flight>,
    pub flights_free: &'a mut Vec<u32>,
    pub submitted: &'a mut Vec<Io<IoBuffer>>,
    pub tracer: &'a mut Tracer,
    pub stamp: Stamp<'a>,
    pub now_ns: u64,
}

impl Hands<'_> {
    /// INVARIANT: what a session names is here: it is let go when no session names it any more.
    fn target(&mut self, volume: VolumeId) -> Option<&mut Target> {
        self.targets.get_mut(volume.0 as usize)?.as_deref_mut()
    }

    /// What a request waits for between its first look and its way to the volume. Nothing but memory of its own
    /// connection's is not said by a step.
    fn waited(&self) -> Stage {
        self.blocked.map_or(Stage::Memory, |(stage, _)| stage)
    }
}

impl Sink for Hands<'_> {
    fn follow(&mut self, request: &Follow) -> TraceId {
        let Follow { volume, op, lba, bytes, received_ns } = *request;
        let Some(target) = self.target(volume) else { return TraceId(0) };
        if !target.sampler.choose() {
            return TraceId(0);
        }
        let medium = target.medium();
        let now_ns = self.stamp.ns();
        let (client, received_ns) = (self.connection, received_ns.min(now_ns));
        let trace = self.tracer.begin(Start { volume, medium, op, lba, bytes, client, received_ns });
        if trace.0 == 0 {
            return trace;
        }
        *self.followed = true;
        let held_ns = self.blocked.map_or(now_ns, |(_, since_ns)| since_ns);
        self.tracer.step(trace, Stage::Receive, held_ns.min(now_ns));
        self.tracer.step(trace, self.waited(), now_ns);
        if op == Op::Flush
            && let Some(target) = self.targets.get(volume.0 as usize).and_then(Option::as_deref)
        {
            let Unsynced { traces, total } = &target.unsynced;
            self.tracer.depends(trace, traces.iter().copied(), *total);
        }
        trace
    }

    fn asked(&mut self, trace: TraceId) {
        if trace.0 != 0 {
            let waited = self.waited();
            self.tracer.asked(trace, waited, self.stamp.ns());
        }
    }

    fn admit(&mut self, volume: VolumeId, op: Op, lba: Lba, bytes: u32) -> bool {
        let ask = Ask { op, lba, bytes };
        if self.copies {
            return true;
        }
        let Some(target) = self.target(volume) else { return false };
        let (frozen, block_bytes) = (target.frozen, target.block_size().bytes());
        // What was paid for stays so.
        self.credits.hold(volume, frozen);
        if frozen {
            return false;
        }
        if self.credits.take(volume, ask) {
            return true;
        }
        if self.credits.waits(volume) {
            return false;
        }
        // Of more than one ticket of a connection another one's is not to be in the way: when one of them is paid for,
        // this is asked again.
        if self.shaper.parked().items >= self.tickets_max && self.credits.waiting().next().is_some() {
            return false;
        }
        // What carries no payload is one operation, however long its range.
        let payload = if op.has_buffer() { bytes } else { 0 };
        let cost = Cost {
            bytes: payload,
            packets: payload.div_ceil(OPERATION_BYTES).max(1),
            offset: Some(lba.0 * u64::from(block_bytes)),
        };
        let ticket = Ticket { connection: self.connection, ask };
        match self.shaper.admit(self.now_ns, volume.0, Lane::Forward, cost, ticket) {
            // INVARIANT: there is room for a ticket of every connection, so that none is turned away.
            Admission::Pass(_) | Admission::Full(_) => true,
            Admission::Parked { .. } => {
                self.credits.wait(volume);
                false
            }
        }
    }

    fn withdraw(&mut self, volume: VolumeId) {
        if self.credits.withdraw(volume) {
            let connection = self.connection;
            self.shaper.cancel(self.now_ns, volume.0, |ticket| ticket.connection == connection);
        }
    }

    fn submit(&mut self, mut io: Io<IoBuffer>, _received_ns: u64) {
        let trace = io.trace;
        if trace.0 != 0 {
            let waited = self.waited();
            self.tracer.handed(trace, waited, self.stamp.ns());
        }
        if io.op == Op::Flush
            && let Some(target) = self.target(io.volume)
        {
            target.unsynced = Unsynced::default();
        }
        let range = io.op.is_write().then_some((io.lba, io.blocks));
        let flight = Flight { connection: self.connection, tag: io.tag, trace, range };
        let index = match self.flights_free.pop() {
            Some(index) => {
                self.flights[index as usize] = flight;
                index
            }
            None => {
                self.flights.push(flight);
                self.flights.len() as u32 - 1
            }
        };
        io.tag = Tag(u64::from(index));
        self.submitted.push(io);
    }
}
