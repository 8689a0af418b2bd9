//! The commands of a queue that are under way.
//!
//! Slots are made once, as many as the queue has places. A slot's generation is part of every tag, so that an
//! answer that comes too often or too late finds no command instead of a wrong one.

use block::{Lba, Op, Tag, TraceId, VolumeId};
use frame::IoBuffer;
use wire::nvme::{Command, StatusCode};

/// No command has this identifier: it has 16 bits.
const FREE: u32 = u32::MAX;

/// What a command is, once it was found sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Not looked at yet, or of the admin queue.
    Admin,
    /// One I/O.
    Io(Op),
    /// One discard for each range in the payload.
    Ranges { count: u16 },
}

/// A command under way.
#[derive(Debug)]
pub(super) struct Slot {
    generation: u32,
    live: bool,
    pub command: Command,
    pub work: Work,
    pub volume: VolumeId,
    pub lba: Lba,
    pub blocks: u32,
    /// Payload, in either direction.
    pub bytes: u32,
    pub received_ns: u64,
    /// What the host sent, or is to send, with it.
    pub buffer: Option<IoBuffer>,
    /// The host was asked for data and sent so much of it.
    pub receiving: Option<u32>,
    /// The next part to hand out, of `parts`.
    pub part: u16,
    pub parts: u16,
    /// Parts handed out and not answered.
    pub parts_out: u16,
    /// The first error.
    pub status: StatusCode,
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
    /// Tag of an I/O.
    pub fn tag(self) -> Tag {
        Tag(u64::from(self.generation) << 32 | u64::from(self.index))
    }

    pub fn from_tag(tag: Tag) -> SlotId {
        SlotId { index: tag.0 as u16, generation: (tag.0 >> 32) as u32 }
    }

    /// TTAG of a transfer.
    pub fn transfer_tag(self) -> u16 {
        self.index
    }
}

/// All slots of a queue.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// The identifier in each slot, apart, to be searched quickly.
    identifiers: Vec<u32>,
    free: Vec<u16>,
}

impl Slots {
    pub fn new(entries: u16) -> Slots {
        let entries = entries.max(1);
        let empty = |_| Slot {
            generation: 0,
            live: false,
            command: Command::default(),
            work: Work::Admin,
            volume: VolumeId(0),
            lba: Lba(0),
            blocks: 0,
            bytes: 0,
            received_ns: 0,
            buffer: None,
            receiving: None,
            part: 0,
            parts: 0,
            parts_out: 0,
            status: StatusCode::SUCCESS,
            trace: None,
        };
        Slots {
            slots: (0..entries).map(empty).collect(),
            identifiers: vec![FREE; entries.into()],
            free: (0..entries).rev().collect(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A command with this identifier is under way.
    pub fn has(&self, identifier: u16) -> bool {
        self.identifiers.contains(&u32::from(identifier))
    }

    /// The command under way with this identifier.
    pub fn named(&mut self, identifier: u16) -> Option<(SlotId, &mut Slot)> {
        let index = self.identifiers.iter().position(|&one| one == u32::from(identifier))?;
        let slot = &mut self.slots[index];
        Some((SlotId { index: index as u16, generation: slot.generation }, slot))
    }

    /// A slot for `command`; `None` when there is none.
    pub fn take(&mut self, command: Command, now_ns: u64) -> Option<SlotId> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        let generation = slot.generation.wrapping_add(1);
        self.identifiers[usize::from(index)] = u32::from(command.id);
        *slot = Slot {
            generation,
            live: true,
            command,
            work: Work::Admin,
            volume: VolumeId(0),
            lba: Lba(0),
            blocks: 0,
            bytes: 0,
            received_ns: now_ns,
            buffer: None,
            receiving: None,
            part: 0,
            parts: 1,
            parts_out: 0,
            status: StatusCode::SUCCESS,
            trace: None,
        };
        Some(SlotId { index, generation })
    }

    /// The command of `id`, if it is still that one.
    pub fn find(&mut self, id: SlotId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::from(id.index))?;
        (slot.live && slot.generation == id.generation).then_some(slot)
    }

    /// The command that waits for data under this tag.
    pub fn receiving(&mut self, transfer_tag: u16) -> Option<(SlotId, &mut Slot)> {
        let slot = self.slots.get_mut(usize::from(transfer_tag))?;
        let id = SlotId { index: transfer_tag, generation: slot.generation };
        (slot.live && slot.receiving.is_some()).then_some((id, slot))
    }

    /// Its answer was sent, or needs none. Returns by which it was followed.
    pub fn put(&mut self, id: SlotId) -> Option<TraceId> {
        let slot = self.find(id)?;
        slot.live = false;
        let trace = slot.trace;
        self.identifiers[usize::from(id.index)] = FREE;
        self.free.push(id.index);
        trace.filter(|trace| trace.0 != 0)
    }

    /// Takes the payload out of every slot.
    pub fn buffers(&mut self) -> impl Iterator<Item = IoBuffer> {
        self.slots.iter_mut().filter_map(|slot| slot.buffer.take())
    }
}
