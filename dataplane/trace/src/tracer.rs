//! The followed I/Os of one worker, from their first byte until their answer was sent.
//!
//! An I/O's spans lie end to end: [`Tracer::step`] says in which stage it was until now, and the next span begins there. So
//! the spans of an I/O add up to the whole of it, whoever forgets to say something. They stay in the table until the I/O
//! ends; then its records are written in a row, spans first.
//!
//! Invariants: at most [`LIVE_MAX`] I/Os are followed at a time, the others are counted as skipped; a trace that ended is never
//! found again, since its number is part of its id.

use arrayvec::ArrayVec;
use block::{Lba, Op, Status, TraceId, VolumeId};

use crate::record::{Medium, Record, Stage, status_octet};
use crate::ring::Writer;

/// I/Os of one worker that are followed at a time.
pub const LIVE_MAX: usize = 1 << PLACE_BITS;
/// Spans of one I/O; what comes after them belongs to the last one.
pub const SPANS_MAX: usize = 16;
/// Other I/Os that one names as those it depends on; of more it says how many.
pub const DEPENDENCIES_MAX: usize = 8;

const PLACE_BITS: u32 = 14;
const WORKER_SHIFT: u32 = 56;

/// What is known of an I/O when it begins to be followed.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The volume asked.
    pub volume: VolumeId,
    /// What lies below it.
    pub medium: Medium,
    /// What is asked for.
    pub op: Op,
    /// First block.
    pub lba: Lba,
    /// Length in bytes.
    pub bytes: u32,
    /// Who asks: a number that [`Tracer::forget`] takes.
    pub client: u32,
    /// When its request was received, ns.
    pub received_ns: u64,
}

/// What a tracer has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TracerCounters {
    /// I/Os followed to their end.
    pub ended: u64,
    /// I/Os that were chosen when too many were followed already.
    pub skipped: u64,
    /// I/Os whose client went before they ended.
    pub forgotten: u64,
}

#[derive(Debug)]
struct Live {
    trace: TraceId,
    start: Start,
    /// Where its last span ended.
    at_ns: u64,
    /// Stages and where they ended.
    spans: ArrayVec<(Stage, u64), SPANS_MAX>,
    depends: ArrayVec<TraceId, DEPENDENCIES_MAX>,
    depends_total: u32,
    status: u8,
    /// Its host was asked for its payload.
    asked: bool,
    /// It was handed to its volume.
    handed: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Tracer {
    writer: Writer,
    worker: u8,
    number: u64,
    /// By place; those that are free have trace 0.
    live: Vec<Live>,
    free: Vec<u16>,
    counters: TracerCounters,
}

impl Tracer {
    /// A tracer of `worker` that writes to `writer`.
    pub fn new(worker: u8, writer: Writer) -> Tracer {
        let counters = TracerCounters::default();
        Tracer { writer, worker, number: 0, live: Vec::new(), free: Vec::new(), counters }
    }

    /// What it has done.
    pub fn counters(&self) -> TracerCounters {
        self.counters
    }

    /// I/Os that are followed now.
    pub fn live(&self) -> usize {
        self.live.len() - self.free.len()
    }

    /// Begins to follow an I/O. 0 when too many are followed already.
    pub fn begin(&mut self, start: Start) -> TraceId {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.live.len() < LIVE_MAX => {
                self.live.push(Live::new(start));
                (self.live.len() - 1) as u16
            }
            None => {
                self.counters.skipped += 1;
                return TraceId(0);
            }
        };
        self.number = (self.number + 1) & ((1 << (WORKER_SHIFT - PLACE_BITS)) - 1);
        let trace =
            TraceId(u64::from(self.worker) << WORKER_SHIFT | self.number << PLACE_BITS | u64::from(place));
        self.live[usize::from(place)].begin(trace, start);
        trace
    }

    /// The I/O was in `stage` until now.
    #[inline]
    pub fn step(&mut self, trace: TraceId, stage: Stage, until_ns: u64) {
        if let Some(live) = self.find(trace) {
            live.step(stage, until_ns);
        }
    }

    /// The I/O was in `waited` until now, and from now on its host sends its payload.
    pub fn asked(&mut self, trace: TraceId, waited: Stage, now_ns: u64) {
        if let Some(live) = self.find(trace) {
            live.step(waited, now_ns);
            live.asked = true;
        }
    }

    /// The I/O, or the first part of it, goes to its volume; until now it was in `waited`, or its payload was sent.
    pub fn handed(&mut self, trace: TraceId, waited: Stage, now_ns: u64) {
        if let Some(live) = self.find(trace)
            && !std::mem::replace(&mut live.handed, true)
        {
            live.step(if live.asked { Stage::Transfer } else { waited }, now_ns);
        }
    }

    /// The I/O waits, or waited, for another one.
    pub fn depends(&mut self, trace: TraceId, on: impl IntoIterator<Item = TraceId>, total: u32) {
        let Some(live) = self.find(trace) else { return };
        live.depends_total += total;
        for on in on {
            if on != trace && on.0 != 0 && live.depends.try_push(on).is_err() {
                return;
            }
        }
    }

    /// How the I/O ended, or one of its parts: the first failure stays.
    pub fn answered(&mut self, trace: TraceId, status: Status) {
        if let Some(live) = self.find(trace)
            && live.status == status_octet(Status::Ok)
        {
            live.status = status_octet(status);
        }
    }

    /// Its answer was sent: its records go into the ring, which [`Tracer::publish`] shows.
    pub fn end(&mut self, trace: TraceId, now_ns: u64) {
        let place = place_of(trace);
        let Some(live) = self.live.get_mut(place).filter(|live| live.is(trace)) else { return };
        live.step(Stage::Send, now_ns);
        live.write(&mut self.writer);
        live.trace = TraceId(0);
        self.free.push(place as u16);
        self.counters.ended += 1;
    }

    /// Shows what ended.
    #[inline]
    pub fn publish(&mut self) {
        self.writer.publish();
    }

    /// Its client is gone: nothing of what it asked for is followed any more.
    pub fn forget(&mut self, client: u32) {
        for (place, live) in self.live.iter_mut().enumerate() {
            if live.trace.0 != 0 && live.start.client == client {
                live.trace = TraceId(0);
                self.free.push(place as u16);
                self.counters.forgotten += 1;
            }
        }
    }

    fn find(&mut self, trace: TraceId) -> Option<&mut Live> {
        self.live.get_mut(place_of(trace)).filter(|live| live.is(trace))
    }
}

impl Live {
    fn new(start: Start) -> Live {
        Live {
            trace: TraceId(0),
            start,
            at_ns: 0,
            spans: ArrayVec::new(),
            depends: ArrayVec::new(),
            depends_total: 0,
            status: status_octet(Status::Ok),
            asked: false,
            handed: false,
        }
    }

    /// Becomes another I/O in its place: what is large is not written twice.
    fn begin(&mut self, trace: TraceId, start: Start) {
        (self.trace, self.start, self.at_ns) = (trace, start, start.received_ns);
        self.spans.clear();
        self.depends.clear();
        (self.depends_total, self.status) = (0, status_octet(Status::Ok));
        (self.asked, self.handed) = (false, false);
    }

    fn is(&self, trace: TraceId) -> bool {
        self.trace == trace && trace.0 != 0
    }

    fn step(&mut self, stage: Stage, until_ns: u64) {
        // Clocks of turns and readings within them agree to some ns only; nothing takes negative time.
        if until_ns <= self.at_ns {
            return;
        }
        self.at_ns = until_ns;
        let is_full = self.spans.is_full();
        match self.spans.last_mut() {
            Some((last, end_ns)) if *last == stage || is_full => *end_ns = until_ns,
            _ => self.spans.push((stage, until_ns)),
        }
    }

    fn write(&self, writer: &mut Writer) {
        let start = &self.start;
        let whole = Record {
            trace: self.trace,
            link: start.lba.0,
            span: 0,
            parent: 0,
            stage: Stage::Io,
            kind: start.op.into(),
            medium: start.medium,
            status: self.status,
            t0_ns: start.received_ns,
            t1_ns: self.at_ns,
            volume: start.volume,
            len: start.bytes,
            detail: self.spans.len() as u64 | u64::from(self.depends_total) << 32,
        };
        writer.write_spans(self.trace, 1, start.received_ns, &self.spans);
        for (span, &on) in (self.spans.len() as u16 + 1..).zip(&self.depends) {
            writer.write(&Record { span, stage: Stage::Depends, link: on.0, detail: 0, ..whole });
        }
        writer.write(&whole);
    }
}

fn place_of(trace: TraceId) -> usize {
    trace.0 as usize & (LIVE_MAX - 1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::record::Kind;
    use crate::ring::{Reader, ring};

    fn start(client: u32, received_ns: u64) -> Start {
        let (volume, medium, op) = (VolumeId(3), Medium::File, Op::Write { fua: true });
        Start { volume, medium, op, lba: Lba(8), bytes: 4096, client, received_ns }
    }

    fn all(reader: &mut Reader) -> Vec<Record> {
        std::iter::from_fn(|| reader.read()).collect()
    }

    #[test]
    fn spans_lie_end_to_end_and_add_up() {
        let (writer, mut reader) = ring(64);
        let mut tracer = Tracer::new(2, writer);
        let trace = tracer.begin(start(1, 100));
        tracer.step(trace, Stage::Receive, 150);
        tracer.step(trace, Stage::Map, 150);
        tracer.step(trace, Stage::Media, 400);
        tracer.step(trace, Stage::Media, 500);
        tracer.step(trace, Stage::Log, 450);
        tracer.answered(trace, Status::NoSpace);
        tracer.answered(trace, Status::Ok);
        tracer.depends(trace, [TraceId(7), trace, TraceId(0)], 5);
        tracer.end(trace, 600);
        assert_eq!(reader.read(), None, "not shown yet");
        tracer.publish();
        let records = all(&mut reader);
        let shown: Vec<_> = records.iter().map(|one| (one.stage, one.t0_ns, one.t1_ns)).collect();
        let spans = [
            (Stage::Receive, 100, 150),
            (Stage::Media, 150, 500),
            (Stage::Send, 500, 600),
            (Stage::Depends, 100, 600),
            (Stage::Io, 100, 600),
        ];
        assert_eq!(shown, spans);
        assert_eq!((records[3].link, records[4].link), (7, 8));
        assert_eq!((records[4].detail, records[4].status, records[4].kind), (3 | 5 << 32, 2, Kind::WriteFua));
        assert!(records.iter().all(|one| one.trace == trace && one.trace.0 >> WORKER_SHIFT == 2));
        // It is over: nothing finds it any more.
        tracer.end(trace, 700);
        tracer.step(trace, Stage::Map, 700);
        tracer.publish();
        assert_eq!((reader.read(), tracer.live()), (None, 0));
    }

    #[test]
    fn many_spans_and_dependencies_have_a_bound() {
        let (writer, mut reader) = ring(64);
        let mut tracer = Tracer::new(0, writer);
        let trace = tracer.begin(start(1, 0));
        for round in 1..100 {
            tracer.step(trace, if round % 2 == 0 { Stage::Map } else { Stage::Media }, round * 10);
            tracer.depends(trace, [TraceId(round)], 1);
        }
        tracer.end(trace, 1000);
        tracer.publish();
        let records = all(&mut reader);
        assert_eq!(records.len(), SPANS_MAX + DEPENDENCIES_MAX + 1);
        assert_eq!(records[SPANS_MAX - 1].t1_ns, 1000);
        assert_eq!(records.last().map(|whole| whole.detail), Some(SPANS_MAX as u64 | 99 << 32));
    }

    #[test]
    fn what_cannot_be_followed_is_counted_and_who_goes_is_forgotten() {
        let (writer, mut reader) = ring(4);
        let mut tracer = Tracer::new(0, writer);
        let traces: Vec<_> = (0..LIVE_MAX as u32).map(|number| tracer.begin(start(number % 2, 1))).collect();
        assert_eq!(tracer.begin(start(0, 1)), TraceId(0));
        tracer.forget(0);
        assert_eq!(tracer.live(), LIVE_MAX / 2);
        let again = tracer.begin(start(5, 1));
        assert!(again.0 != 0 && !traces.contains(&again));
        // An answer that comes late for one that was forgotten does not end the one in its place.
        traces.iter().step_by(2).for_each(|&gone| tracer.end(gone, 9));
        tracer.publish();
        assert_eq!((reader.read(), tracer.live()), (None, LIVE_MAX / 2 + 1));
        let counters = TracerCounters { ended: 0, skipped: 1, forgotten: LIVE_MAX as u64 / 2 };
        assert_eq!(tracer.counters(), counters);
    }
}
