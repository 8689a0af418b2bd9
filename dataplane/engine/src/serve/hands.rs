//! What a session sees of its worker while it hands out its I/Os.

use block::{Io, Lba, Op, Tag, TraceId, VolumeId};
use frame::IoBuffer;
use session::{Follow, Sink};
use throttle::{Admission, Cost, Lane, Shaper};
use trace::{Medium, Sampler, Stage, Start, Tracer};

use super::connection::{Ask, Credit};
use super::follow::Stamp;
use super::target::Unsynced;
use super::{Flight, Ticket};

/// Bytes of one operation, as limits count them.
const OPERATION_BYTES: u32 = 256 << 10;

pub(super) struct Hands<'a> {
    pub connection: u32,
    pub credit: &'a mut Credit,
    /// Its volume is frozen.
    pub frozen: bool,
    /// It copies its volume, which costs that one's hosts nothing.
    pub copies: bool,
    /// What has held the connection's requests up until now, and since when.
    pub blocked: Option<(Stage, u64)>,
    pub followed: &'a mut bool,
    pub block_bytes: u32,
    pub medium: Medium,
    pub shaper: &'a mut Shaper<Ticket>,
    pub flights: &'a mut Vec<Flight>,
    pub flights_free: &'a mut Vec<u32>,
    pub submitted: &'a mut Vec<Io<IoBuffer>>,
    pub tracer: &'a mut Tracer,
    pub sampler: &'a mut Sampler,
    pub unsynced: &'a mut Unsynced,
    pub stamp: Stamp<'a>,
    pub now_ns: u64,
}

impl Hands<'_> {
    /// What a request waits for between its first look and its way to the volume. Nothing but memory of its own
    /// connection's is not said by a step.
    fn waited(&self) -> Stage {
        self.blocked.map_or(Stage::Memory, |(stage, _)| stage)
    }
}

impl Sink for Hands<'_> {
    fn follow(&mut self, request: &Follow) -> TraceId {
        let Follow { volume, op, lba, bytes, received_ns } = *request;
        if !self.sampler.choose() {
            return TraceId(0);
        }
        let now_ns = self.stamp.ns();
        let (client, medium, received_ns) = (self.connection, self.medium, received_ns.min(now_ns));
        let trace = self.tracer.begin(Start { volume, medium, op, lba, bytes, client, received_ns });
        if trace.0 == 0 {
            return trace;
        }
        *self.followed = true;
        let held_ns = self.blocked.map_or(now_ns, |(_, since_ns)| since_ns);
        self.tracer.step(trace, Stage::Receive, held_ns.min(now_ns));
        self.tracer.step(trace, self.waited(), now_ns);
        if op == Op::Flush {
            let (traces, total) = (self.unsynced.traces.iter().copied(), self.unsynced.total);
            self.tracer.depends(trace, traces, total);
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
        // What was paid for stays so.
        self.credit.held = self.frozen;
        if self.frozen {
            return false;
        }
        if self.credit.take(ask) {
            return true;
        }
        if self.credit.waits() {
            return false;
        }
        // What carries no payload is one operation, however long its range.
        let payload = if op.has_buffer() { bytes } else { 0 };
        let cost = Cost {
            bytes: payload,
            packets: payload.div_ceil(OPERATION_BYTES).max(1),
            offset: Some(lba.0 * u64::from(self.block_bytes)),
        };
        let ticket = Ticket { connection: self.connection, ask };
        match self.shaper.admit(self.now_ns, volume.0, Lane::Forward, cost, ticket) {
            // INVARIANT: there is room for a ticket of every connection, so that none is turned away.
            Admission::Pass(_) | Admission::Full(_) => true,
            Admission::Parked { .. } => {
                self.credit.wait();
                false
            }
        }
    }

    fn withdraw(&mut self, volume: VolumeId) {
        if self.credit.withdraw() {
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
        if io.op == Op::Flush {
            *self.unsynced = Unsynced::default();
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
