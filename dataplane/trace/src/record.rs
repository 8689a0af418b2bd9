//! Records: 64 bytes each with their sequence. One is of a whole I/O or of another one that it depends on; one in a short form
//! is of several spans, which lie end to end, so that most I/Os are two lines of the cache.

use arrayvec::ArrayVec;
use block::{Op, Status, TraceId, VolumeId};

/// Bytes of a record in the ring.
pub const RECORD_BYTES: usize = 64;
/// Words of a record beside its sequence.
pub(crate) const WORDS: usize = 7;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$one_doc:meta])* $one:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            #[default]
            $($(#[$one_doc])* $one,)*
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [$name] = &[$($name::$one,)*];

            /// As operators read it.
            pub fn name(self) -> &'static str {
                match self { $($name::$one => $text,)* }
            }

            fn from_octet(octet: u8) -> $name {
                $name::ALL.get(usize::from(octet)).copied().unwrap_or_default()
            }
        }
    };
}

// The first of an enum stands for what a newer writer may have meant.
numbered! {
    /// What the time of a record was spent on.
    Stage {
        /// All of it: from its first byte until its answer was sent.
        Io = "io",
        /// Another I/O, `link`, that it waited for: an earlier one on the same blocks, or a write that a flush makes durable.
        Depends = "depends",
        /// Its request was received, and waited for its turn.
        Receive = "receive",
        /// It waited for the credits of its volume.
        Park = "parked",
        /// It waited for payload memory.
        Memory = "memory",
        /// An NVMe host was asked for its payload, and sent it.
        Transfer = "transfer",
        /// It waited for earlier I/Os on the same blocks.
        Queue = "queued",
        /// In the volume, before the medium: room, and where its pages lie.
        Map = "mapped",
        /// The medium read or wrote its data.
        Media = "media",
        /// The medium wrote its record into the log of the volume.
        Log = "log",
        /// The medium was asked whether the volume has another owner.
        Fence = "fence",
        /// The medium made it durable.
        Sync = "sync",
        /// Its answer was made and sent.
        Send = "sent",
    }
}

impl Stage {
    /// How many there are.
    pub const COUNT: usize = Stage::ALL.len();

    /// The time is the medium's.
    pub fn is_medium(self) -> bool {
        matches!(self, Stage::Media | Stage::Log | Stage::Fence | Stage::Sync)
    }
}

numbered! {
    /// What was asked for.
    Kind {
        /// Read.
        Read = "read",
        /// Write.
        Write = "write",
        /// Write, answered when it is durable (force unit access).
        WriteFua = "write-fua",
        /// Flush.
        Flush = "flush",
        /// Discard.
        Discard = "discard",
        /// Write zeroes.
        WriteZeroes = "write-zeroes",
        /// Compare.
        Compare = "compare",
        /// Which blocks are allocated.
        Extents = "extents",
    }
}

impl From<Op> for Kind {
    fn from(op: Op) -> Kind {
        match op {
            Op::Read => Kind::Read,
            Op::Write { fua: false } => Kind::Write,
            Op::Write { fua: true } => Kind::WriteFua,
            Op::Flush => Kind::Flush,
            Op::Discard => Kind::Discard,
            Op::WriteZeroes { .. } => Kind::WriteZeroes,
            Op::Compare => Kind::Compare,
            Op::Extents => Kind::Extents,
        }
    }
}

numbered! {
    /// What lies below a volume.
    Medium {
        /// Files.
        File = "file",
        /// Memory.
        Memory = "memory",
        /// Nothing.
        Null = "null",
    }
}

/// Names of [`status_octet`].
const STATUSES: [&str; 12] = [
    "ok",
    "out-of-range",
    "no-space",
    "read-only",
    "fenced",
    "media-error",
    "corrupt",
    "broken",
    "compare-failed",
    "aborted",
    "busy",
    "invalid",
];

pub(crate) fn status_octet(status: Status) -> u8 {
    match status {
        Status::Ok => 0,
        Status::OutOfRange => 1,
        Status::NoSpace => 2,
        Status::ReadOnly => 3,
        Status::Fenced => 4,
        Status::MediaError { .. } => 5,
        Status::Corrupt { .. } => 6,
        Status::Broken => 7,
        Status::CompareFailed { .. } => 8,
        Status::Aborted => 9,
        Status::Busy => 10,
        Status::Invalid => 11,
    }
}

/// The name of a status in a record.
pub fn status_name(octet: u8) -> &'static str {
    STATUSES.get(usize::from(octet)).copied().unwrap_or("unknown")
}

/// An I/O, a span of it, or what it depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The I/O.
    pub trace: TraceId,
    /// [`Stage::Io`]: its first block. [`Stage::Depends`]: the other I/O.
    pub link: u64,
    /// Number in the trace; 0 is the I/O itself.
    pub span: u16,
    /// Number of the span that it is part of.
    pub parent: u16,
    /// What it is.
    pub stage: Stage,
    /// What was asked for.
    pub kind: Kind,
    /// Of whom.
    pub medium: Medium,
    /// How it ended, see [`status_name`].
    pub status: u8,
    /// Beginning, ns.
    pub t0_ns: u64,
    /// End, ns.
    pub t1_ns: u64,
    /// The volume.
    pub volume: VolumeId,
    /// Bytes asked for.
    pub len: u32,
    /// [`Stage::Io`]: its spans, and above bit 32 the I/Os that it depends on, which may be more than have a record.
    pub detail: u64,
}

impl Record {
    #[inline(always)]
    pub(crate) fn words(&self) -> [u64; WORDS] {
        let octets = u32::from_le_bytes([self.stage as u8, self.kind as u8, self.medium as u8, self.status]);
        [
            self.trace.0,
            self.link,
            u64::from(self.span) | u64::from(self.parent) << 16 | u64::from(octets) << 32,
            self.t0_ns,
            self.t1_ns,
            u64::from(self.volume.0) | u64::from(self.len) << 32,
            self.detail,
        ]
    }

    /// What was written as [`Record::words`].
    fn from_words(words: [u64; WORDS]) -> Record {
        let [trace, link, what, t0_ns, t1_ns, volume, detail] = words;
        let [stage, kind, medium, status] = ((what >> 32) as u32).to_le_bytes();
        Record {
            trace: TraceId(trace),
            link,
            span: what as u16,
            parent: (what >> 16) as u16,
            stage: Stage::from_octet(stage),
            kind: Kind::from_octet(kind),
            medium: Medium::from_octet(medium),
            status,
            t0_ns,
            t1_ns,
            volume: VolumeId(volume as u32),
            len: (volume >> 32) as u32,
            detail,
        }
    }
}

/// Spans in one record.
pub(crate) const RUN_MAX: usize = 4;
/// In the third word: the record is of spans.
const RUN: u64 = 1 << 63;
const STAGE_SHIFT: u32 = 56;

/// The words of a record of spans that follow one another: the first one's number and beginning, and each one's stage and end.
#[inline(always)]
pub(crate) fn run_words(trace: TraceId, first: u16, t0_ns: u64, spans: &[(Stage, u64)]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    (words[0], words[1]) = (trace.0, t0_ns);
    words[2] = RUN | u64::from(first) | (spans.len().min(RUN_MAX) as u64) << 16;
    for (word, &(stage, t1_ns)) in words[3..].iter_mut().zip(spans) {
        // 2^56 ns are two years.
        let length_ns = t1_ns.saturating_sub(t0_ns).min((1 << STAGE_SHIFT) - 1);
        *word = (stage as u64) << STAGE_SHIFT | length_ns;
    }
    words
}

/// The records that words stand for: spans first to last, or one of another sort.
pub(crate) fn from_words(words: [u64; WORDS]) -> ArrayVec<Record, RUN_MAX> {
    if words[2] & RUN == 0 {
        return ArrayVec::from_iter([Record::from_words(words)]);
    }
    let (trace, first, count) = (TraceId(words[0]), words[2] as u16, (words[2] >> 16) as u8);
    let mut t0_ns = words[1];
    let spans = words[3..].iter().take(usize::from(count)).zip(first..).map(|(word, span)| {
        let t1_ns = words[1].saturating_add(word & ((1 << STAGE_SHIFT) - 1));
        let stage = Stage::from_octet((word >> STAGE_SHIFT) as u8);
        Record { trace, span, stage, t0_ns: std::mem::replace(&mut t0_ns, t1_ns), t1_ns, ..Record::default() }
    });
    spans.collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_went() {
        for (&stage, &kind) in Stage::ALL.iter().zip(Kind::ALL.iter().cycle()) {
            let record = Record {
                trace: TraceId(u64::MAX),
                link: 1 << 40,
                span: u16::MAX,
                parent: 7,
                stage,
                kind,
                medium: Medium::Null,
                status: 11,
                t0_ns: u64::MAX - 1,
                t1_ns: u64::MAX,
                volume: VolumeId(u32::MAX - 1),
                len: u32::MAX,
                detail: u64::MAX / 3,
            };
            assert_eq!(from_words(record.words())[..], [record]);
        }
        assert_eq!((WORDS + 1) * 8, RECORD_BYTES);
        let spans =
            [(Stage::Receive, 150), (Stage::Media, 150), (Stage::Sync, 1 << 40), (Stage::Send, 1 << 50)];
        for count in 0..=RUN_MAX {
            let read = from_words(run_words(TraceId(9), u16::MAX - 7, 100, &spans[..count]));
            let shown: Vec<_> = read.iter().map(|one| (one.stage, one.t1_ns)).collect();
            assert_eq!(shown, spans[..count]);
            assert!(read.iter().zip(u16::MAX - 7..).all(|(one, span)| (one.trace.0, one.span) == (9, span)));
            assert!(read.iter().zip([100, 150, 150, 1 << 40]).all(|(one, t0_ns)| one.t0_ns == t0_ns));
        }
        assert_eq!((status_name(5), status_name(200)), ("media-error", "unknown"));
    }
}
