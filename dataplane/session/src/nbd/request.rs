//! Requests: what may be asked of an export, and the slots of those under way.
//!
//! Slots are made once, as many as the connection may have requests. A slot's generation is part of every
//! tag, so that an answer that comes too often or too late finds no request instead of a wrong one.

use block::{IO_BYTES_MAX, Op, Tag, TraceId};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode, Request};
use wire::nbd::{PAYLOAD_BYTES_MAX, TEXT_BYTES_MAX};

use super::Attach;

/// Parts of the longest request: each is one I/O.
pub(super) const PARTS_MAX: usize = PAYLOAD_BYTES_MAX as usize / IO_BYTES_MAX;

/// What a request is, once it was found sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write {
        fua: bool,
    },
    Flush,
    Trim {
        fua: bool,
    },
    WriteZeroes {
        fua: bool,
    },
    /// Zeroes that are to keep their place: "the area MUST be fully provisioned, ensuring that future writes to the
    /// same area will not cause [...] failure due to insufficient space". They are written, a part after the other.
    Fill {
        fua: bool,
    },
    Status {
        one: bool,
    },
}

impl Kind {
    /// It gives blocks a content.
    pub(super) fn is_write(self) -> bool {
        matches!(self, Kind::Write { .. } | Kind::WriteZeroes { .. } | Kind::Fill { .. })
    }

    /// It has payload for the volume, or from it: cut into I/Os.
    fn has_payload(self) -> bool {
        matches!(self, Kind::Read | Kind::Write { .. } | Kind::Fill { .. })
    }
}

/// Why a request is answered with an error at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub error: ErrorCode,
    pub why: &'static str,
}

const fn refusal(error: ErrorCode, why: &'static str) -> Refusal {
    assert!(why.len() <= TEXT_BYTES_MAX);
    Refusal { error, why }
}

/// What bounds the requests of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    size_bytes: u64,
    block_bytes: u32,
    read_only: bool,
    fast_zero: bool,
    structured: bool,
    /// A context was selected.
    context: bool,
    /// It is the one of copies.
    changed: bool,
}

impl Rules {
    pub(super) fn new(attach: &Attach) -> Self {
        let Attach { export, structured, allocation, changed, .. } = attach;
        let structured = *structured;
        Self {
            size_bytes: export.size_bytes(),
            block_bytes: export.block_size().bytes(),
            read_only: export.read_only,
            fast_zero: export.fast_zero,
            structured,
            context: structured && (*allocation || *changed),
            changed: *changed,
        }
    }

    /// Whether `request` may be served, and as what. `NBD_CMD_DISC` has no answer and is not asked about.
    ///
    /// "Error values": "The server SHOULD return NBD_EINVAL if it receives an unknown command flag. It also
    /// SHOULD return NBD_EINVAL if it receives a request with a flag not explicitly documented as applicable
    /// to the given request." FUA "is valid for all commands".
    pub(super) fn check(&self, request: &Request) -> Result<Kind, Refusal> {
        let (kind, known) = self.kind(request)?;
        if request.flags.without(known.with(CommandFlags::FUA)) != CommandFlags::NONE {
            return Err(refusal(ErrorCode::INVAL, "a flag is not known, or not for this command"));
        }
        if kind == Kind::Flush {
            // "For a flush request, length and offset are reserved, and MUST be set to all-zero."
            let zero = request.offset_bytes == 0 && request.length_bytes == 0;
            return if zero { Ok(kind) } else { Err(refusal(ErrorCode::INVAL, "a flush has no range")) };
        }
        let changes = kind.is_write() || matches!(kind, Kind::Trim { .. });
        if changes && self.read_only {
            return Err(refusal(ErrorCode::PERM, "the export is read-only"));
        }
        self.check_range(request, kind)?;
        self.check_kind(request, kind)?;
        Ok(kind)
    }

    fn kind(&self, request: &Request) -> Result<(Kind, CommandFlags), Refusal> {
        let fua = request.flags.has(CommandFlags::FUA);
        Ok(match request.command {
            // "MUST NOT be set unless the transmission flags include NBD_FLAG_SEND_DF".
            Command::READ if self.structured => (Kind::Read, CommandFlags::DF),
            Command::READ => (Kind::Read, CommandFlags::NONE),
            Command::WRITE => (Kind::Write { fua }, CommandFlags::NONE),
            Command::FLUSH => (Kind::Flush, CommandFlags::NONE),
            Command::TRIM => (Kind::Trim { fua }, CommandFlags::NONE),
            Command::WRITE_ZEROES => {
                let keeps = request.flags.has(CommandFlags::NO_HOLE);
                let known = CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO);
                (if keeps { Kind::Fill { fua } } else { Kind::WriteZeroes { fua } }, known)
            }
            Command::BLOCK_STATUS => {
                let one = request.flags.has(CommandFlags::REQ_ONE);
                (Kind::Status { one }, CommandFlags::REQ_ONE)
            }
            _ => return Err(refusal(ErrorCode::INVAL, "this command is not known here")),
        })
    }

    /// "The server SHOULD return NBD_ENOSPC if it receives a write request including one or more sectors
    /// beyond the size of the device"; "NBD_EINVAL if it receives a read or trim request" like that, "or if
    /// a read or write request is not aligned to advertised minimum block sizes". A length of 0 is
    /// "unspecified although the server SHOULD NOT disconnect".
    fn check_range(&self, request: &Request, kind: Kind) -> Result<(), Refusal> {
        let Request { offset_bytes, length_bytes, .. } = *request;
        if length_bytes == 0 {
            return Err(refusal(ErrorCode::INVAL, "the length is 0"));
        }
        let inside =
            offset_bytes.checked_add(u64::from(length_bytes)).is_some_and(|end| end <= self.size_bytes);
        if !inside {
            let error = match kind {
                kind if kind.is_write() => ErrorCode::NOSPC,
                _ => ErrorCode::INVAL,
            };
            return Err(refusal(error, "the range ends beyond the export"));
        }
        let mask = self.block_bytes - 1;
        if (offset_bytes as u32 | length_bytes) & mask != 0 {
            return Err(refusal(ErrorCode::INVAL, "offset and length must be multiples of the block size"));
        }
        Ok(())
    }

    fn check_kind(&self, request: &Request, kind: Kind) -> Result<(), Refusal> {
        let Request { flags, offset_bytes, length_bytes, .. } = *request;
        match kind {
            Kind::Write { .. } if length_bytes > PAYLOAD_BYTES_MAX => {
                Err(refusal(ErrorCode::INVAL, "the payload is longer than the advertised maximum"))
            }
            // "A server MAY reject a client's request with the error NBD_EOVERFLOW if the length is too
            // large to send without fragmentation"; it need not be longer than 65,536 bytes.
            Kind::Read if flags.has(CommandFlags::DF) && length_bytes as usize > IO_BYTES_MAX => {
                Err(refusal(ErrorCode::OVERFLOW, "too long to be answered in one piece"))
            }
            // "the server is also permitted to reject large read requests up front with NBD_EOVERFLOW",
            // where replies are structured.
            Kind::Read if length_bytes > PAYLOAD_BYTES_MAX => {
                let error = if self.structured { ErrorCode::OVERFLOW } else { ErrorCode::INVAL };
                Err(refusal(error, "longer than the advertised maximum payload"))
            }
            // "MUST fail quickly with NBD_ENOTSUP unless the request can be serviced in less time than a
            // corresponding NBD_CMD_WRITE": whole pages that may be given back.
            Kind::WriteZeroes { .. } | Kind::Fill { .. } if flags.has(CommandFlags::FAST_ZERO) => {
                let whole = (offset_bytes as u32 | length_bytes) & (super::PREFERRED_BYTES - 1) == 0;
                if self.fast_zero && whole && matches!(kind, Kind::WriteZeroes { .. }) {
                    return Ok(());
                }
                Err(refusal(ErrorCode::NOTSUP, "zeroing would not be faster than writing"))
            }
            // "Servers SHOULD reply with NBD_EINVAL to clients sending NBD_CMD_BLOCK_STATUS without
            // selecting at least one metadata context."
            Kind::Status { .. } if !self.context => {
                Err(refusal(ErrorCode::INVAL, "no metadata context was selected"))
            }
            Kind::Status { one: true } if self.changed => {
                Err(refusal(ErrorCode::INVAL, "what changed is told as a whole, not one by one"))
            }
            _ => Ok(()),
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Slot {
    generation: u32,
    live: bool,
    pub kind: Kind,
    pub cookie: u64,
    pub offset_bytes: u64,
    pub length_bytes: u32,
    pub received_ns: u64,
    /// Parts that were not handed out yet.
    pub parts_left: u16,
    /// Parts that were handed out and not answered.
    pub parts_out: u16,
    /// The first error.
    pub error: ErrorCode,
    /// A flush follows the last part, since [`Op::Discard`] knows no force unit access.
    pub flush_after: bool,
    /// By which it is followed; `None` before that is decided.
    pub trace: Option<TraceId>,
}

/// A slot of a certain generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId {
    index: u16,
    generation: u32,
}

impl SlotId {
    /// Tag of an I/O: generation, slot, part.
    pub(super) fn tag(self, part: u16) -> Tag {
        Tag(u64::from(self.generation) << 32 | u64::from(self.index) << 16 | u64::from(part))
    }

    pub(super) fn from_tag(tag: Tag) -> (SlotId, u16) {
        let id = SlotId { index: (tag.0 >> 16) as u16, generation: (tag.0 >> 32) as u32 };
        (id, tag.0 as u16)
    }
}

impl Slot {
    /// I/Os that it is made of. Only what carries payload is cut.
    fn parts(kind: Kind, length_bytes: u32) -> u16 {
        if kind.has_payload() { (length_bytes as usize).div_ceil(IO_BYTES_MAX) as u16 } else { 1 }
    }

    /// Offset in the export and length of a part, in bytes.
    pub(super) fn part(&self, part: u16) -> (u64, u32) {
        if !self.kind.has_payload() {
            return (self.offset_bytes, self.length_bytes);
        }
        let from = u32::from(part) * IO_BYTES_MAX as u32;
        let bytes = self.length_bytes.saturating_sub(from).min(IO_BYTES_MAX as u32);
        (self.offset_bytes + u64::from(from), bytes)
    }

    /// More than one part.
    pub(super) fn is_cut(&self) -> bool {
        self.length_bytes as usize > IO_BYTES_MAX
    }

    /// All parts are answered.
    pub(super) fn is_settled(&self) -> bool {
        self.parts_left == 0 && self.parts_out == 0
    }

    /// What to ask of the volume.
    pub(super) fn op(&self) -> Op {
        match self.kind {
            Kind::Read => Op::Read,
            Kind::Write { fua } | Kind::Fill { fua } => Op::Write { fua },
            Kind::Flush => Op::Flush,
            Kind::Trim { .. } => Op::Discard,
            Kind::WriteZeroes { fua } => Op::WriteZeroes { fua },
            Kind::Status { .. } => Op::Extents,
        }
    }
}

/// All slots of a connection.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

impl Slots {
    pub(super) fn new(requests_max: u16) -> Self {
        let requests_max = requests_max.max(1);
        let empty = |_| Slot {
            generation: 0,
            live: false,
            kind: Kind::Flush,
            cookie: 0,
            offset_bytes: 0,
            length_bytes: 0,
            received_ns: 0,
            parts_left: 0,
            parts_out: 0,
            error: ErrorCode::OK,
            flush_after: false,
            trace: None,
        };
        Self { slots: (0..requests_max).map(empty).collect(), free: (0..requests_max).rev().collect() }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.slots.capacity() + self.free.capacity()
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(super) fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A slot for `request`, found to be `kind`; `None` when there is none.
    pub(super) fn take(&mut self, request: &Request, kind: Kind, now_ns: u64) -> Option<SlotId> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        let generation = slot.generation.wrapping_add(1);
        *slot = Slot {
            generation,
            live: true,
            kind,
            cookie: request.cookie,
            offset_bytes: request.offset_bytes,
            length_bytes: request.length_bytes,
            received_ns: now_ns,
            parts_left: Slot::parts(kind, request.length_bytes),
            parts_out: 0,
            error: ErrorCode::OK,
            flush_after: kind == Kind::Trim { fua: true },
            trace: None,
        };
        Some(SlotId { index, generation })
    }

    /// The request of `id`, if it is still that one.
    pub(super) fn find(&mut self, id: SlotId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::from(id.index))?;
        (slot.live && slot.generation == id.generation).then_some(slot)
    }

    /// Its answer was sent. Returns by which it was followed.
    pub(super) fn put(&mut self, id: SlotId) -> Option<TraceId> {
        let slot = self.find(id)?;
        slot.live = false;
        let trace = slot.trace;
        self.free.push(id.index);
        trace.filter(|trace| trace.0 != 0)
    }
}
