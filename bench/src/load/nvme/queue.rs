//! One queue of a controller, as its host sees it: commands out, data and completions in; no socket.
//!
//! Invariants: an answer is taken only for a command that is under way, once; data is taken only within the
//! buffer that the command named; what the controller asks for is sent in units no longer than it takes. A
//! controller that breaks the transport is told so (H2CTermReq), and the queue is over.

use session::nvme_tcp::{Event, Link};
use thiserror::Error;
use wire::nvme::{Command, Completion, Sgl, StatusCode};
use wire::nvme_tcp::{
    Agreed, Alignment, Data, DigestFlags, Direction, Fatal, FatalStatus, IcReq, IcResp, Pdu, Termination,
    Transfer, digest,
};

/// Commands of a queue under way: their slots take the lower bits of an identifier, a counter the others, so
/// that an old answer is not taken for a new one.
const SLOT_BITS: u32 = 10;
/// With so much waiting to be sent, no more is added.
const SEND_BYTES: usize = 1 << 20;
/// TCP clause 3.3.2.1: every controller takes so much data along with commands of Fabrics.
pub(super) const FABRICS_CAPSULE_BYTES: usize = 8192;

/// Offsets of fields, to name them in a [`Fatal`].
mod at {
    pub const DIGESTS: u32 = 11;
    pub const COMMAND: u32 = 8;
}

/// Why a queue is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum QueueError {
    /// The controller broke the transport.
    #[error("{0}")]
    Fatal(#[from] Fatal),
    /// It found fault with us.
    #[error("the controller ended the connection: {0}")]
    Terminated(Fatal),
}

/// What goes along with a command.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    /// Nothing.
    None,
    /// So many bytes come back.
    ToHost(u32),
    /// These go.
    FromHost(&'a [u8]),
}

/// What came back for a command.
#[derive(Debug)]
pub(super) struct Answer {
    /// Whose.
    pub slot: u32,
    /// How it ended.
    pub completion: Completion,
    /// What came, if that was to be kept.
    pub payload: Vec<u8>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The command's identifier while it is under way.
    command: Option<u16>,
    /// What it is to bring.
    read_bytes: u32,
    received_bytes: u32,
    /// What we have for it.
    write_bytes: u32,
    /// Some of the data was not what its digest says.
    spoilt: bool,
    kept: Vec<u8>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue {
    link: Link,
    digests: DigestFlags,
    /// For what we send, once the controller has said what holds.
    agreed: Option<Agreed>,
    /// Longest data of a unit that we send.
    data_bytes_max: usize,
    /// Data that goes along with a command.
    capsule_bytes: usize,
    keep: bool,
    slots: Vec<Slot>,
    under_way: usize,
    round: u16,
    /// Whose data is being received, where it goes, and whether it is the last.
    receiving: Option<(u32, Data)>,
    out: Vec<u8>,
    sent: usize,
}

impl Queue {
    /// A queue with room for `slots` commands, which begins with ICReq. What comes is kept if `keep`.
    pub fn new(slots: u32, digests: DigestFlags, keep: bool) -> Queue {
        let hello = Pdu::IcReq(IcReq { alignment: Alignment::WORD, digests, r2t_max: 1 });
        // INVARIANT: ICReq has no data, and asks for one transfer at a time.
        let hello = hello.head(0, Agreed::NOTHING).expect("INVARIANT: no data");
        Queue {
            link: Link::new(Direction::ControllerToHost),
            digests,
            agreed: None,
            data_bytes_max: 0,
            capsule_bytes: FABRICS_CAPSULE_BYTES,
            keep,
            slots: (0..slots.min(1 << SLOT_BITS)).map(|_| Slot::default()).collect(),
            under_way: 0,
            round: 0,
            receiving: None,
            out: hello.octets().to_vec(),
            sent: 0,
        }
    }

    /// The controller has answered ICReq: commands can follow.
    pub fn is_open(&self) -> bool {
        self.agreed.is_some()
    }

    /// Data that goes along with a command from now on; more is asked for by the controller.
    pub fn set_capsule_bytes(&mut self, bytes: usize) {
        self.capsule_bytes = bytes;
    }

    /// Commands under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// A command in this slot is under way.
    pub fn is_under_way(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|slot| slot.command.is_some())
    }

    /// Slots whose commands are under way.
    pub fn unanswered(&self) -> impl Iterator<Item = u32> {
        (0..self.slots.len() as u32).filter(|&slot| self.is_under_way(slot))
    }

    /// There is not too much waiting to be sent.
    pub fn has_room(&self) -> bool {
        self.out.len() - self.sent < SEND_BYTES
    }

    /// Queues `command` under the identifier of `slot`, which is free.
    pub fn ask(&mut self, slot: u32, command: Command, payload: Payload<'_>) {
        self.round = self.round.wrapping_add(1);
        let id = slot as u16 | self.round << SLOT_BITS;
        let (sgl, capsule) = match payload {
            Payload::None => (Sgl::HostBuffer { length_bytes: 0 }, &[][..]),
            Payload::ToHost(length_bytes) => (Sgl::HostBuffer { length_bytes }, &[][..]),
            Payload::FromHost(data) if data.len() <= self.capsule_bytes => {
                (Sgl::InCapsule { offset_bytes: 0, length_bytes: data.len() as u32 }, data)
            }
            Payload::FromHost(data) => (Sgl::HostBuffer { length_bytes: data.len() as u32 }, &[][..]),
        };
        let (read_bytes, write_bytes) = match payload {
            Payload::ToHost(bytes) => (bytes, 0),
            _ => (0, sgl.length_bytes()),
        };
        // PSDT: base clause 3.3.3, SGLs are what Fabrics has.
        let command = Command { id, flags: 0b01 << 6, sgl: sgl.octets(), ..command };
        self.push(Pdu::Command(command), capsule);
        let slot = &mut self.slots[slot as usize];
        self.under_way += usize::from(slot.command.is_none());
        slot.kept.clear();
        if self.keep {
            slot.kept.resize(read_bytes as usize, 0);
        }
        *slot = Slot {
            command: Some(id),
            read_bytes,
            write_bytes,
            kept: std::mem::take(&mut slot.kept),
            ..Slot::default()
        };
    }

    /// What is to be sent next; empty when there is nothing.
    pub fn dispatch_bytes(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// Says that the first `bytes` of [`Queue::dispatch_bytes`] were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }

    /// Takes what arrived. `payload` shows what a slot's command writes; the controller may ask for it. After an
    /// error, what [`Queue::dispatch_bytes`] shows is the last word.
    pub fn process_bytes<'p>(
        &mut self,
        bytes: &[u8],
        payload: impl Fn(u32) -> &'p [u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), QueueError> {
        let mut at = 0;
        while at < bytes.len() {
            let step = self.link.take(&bytes[at..]).map_err(QueueError::Fatal).and_then(|(took, event)| {
                at += took;
                self.process_event(event, &payload, answers)
            });
            if let Err(error) = step {
                self.terminate(&error);
                return Err(error);
            }
            if self.link.take_end() {
                self.process_end(true, answers);
            }
        }
        Ok(())
    }

    fn process_event<'p>(
        &mut self,
        event: Event<'_>,
        payload: &impl Fn(u32) -> &'p [u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), QueueError> {
        let out_of_range = Fatal::bare(FatalStatus::DATA_OUT_OF_RANGE);
        match (self.agreed, event) {
            (_, Event::More) => {}
            (_, Event::Unit(Pdu::Termination(_, fatal), _)) => return Err(QueueError::Terminated(fatal)),
            (None, Event::Unit(Pdu::IcResp(response), _)) => self.agree(&response)?,
            (Some(_), Event::Unit(Pdu::Completion(completion), _)) => {
                let slot = self.find(completion.command)?;
                self.finish(slot, completion, answers);
            }
            (Some(_), Event::Unit(Pdu::Data(_, data), _)) => {
                let slot = self.find(data.command)?;
                // INVARIANT: `Pdu::parse` has refused a sum beyond 32 bits.
                if data.offset_bytes.saturating_add(data.length_bytes) > self.slots[slot as usize].read_bytes
                {
                    return Err(out_of_range.into());
                }
                self.receiving = Some((slot, data));
            }
            (Some(_), Event::Unit(Pdu::Transfer(transfer), _)) => {
                let slot = self.find(transfer.command)?;
                let end_bytes = transfer.offset_bytes.saturating_add(transfer.length_bytes);
                if end_bytes > self.slots[slot as usize].write_bytes {
                    return Err(out_of_range.into());
                }
                self.transfer(&transfer, payload(slot));
            }
            (Some(_), Event::Data(piece)) => {
                if let Some((slot, data)) = &mut self.receiving {
                    let slot = &mut self.slots[*slot as usize];
                    let from = data.offset_bytes as usize;
                    if let Some(place) = slot.kept.get_mut(from..from + piece.len()) {
                        place.copy_from_slice(piece);
                    }
                    slot.received_bytes += piece.len() as u32;
                    data.offset_bytes += piece.len() as u32;
                }
            }
            (Some(_), Event::End(sound)) => self.process_end(sound, answers),
            _ => return Err(Fatal::bare(FatalStatus::SEQUENCE).into()),
        }
        Ok(())
    }

    /// TCP clause 3.1: the controller enables of the digests what it was asked for, or less.
    fn agree(&mut self, response: &IcResp) -> Result<(), Fatal> {
        let IcResp { alignment, digests, data_bytes_max } = *response;
        if !self.digests.has(digests) {
            return Err(Fatal::field(at::DIGESTS));
        }
        let header_digest = digests.has(DigestFlags::HDGST_ENABLE);
        let data_digest = digests.has(DigestFlags::DDGST_ENABLE);
        self.agreed = Some(Agreed { header_digest, data_digest, alignment });
        self.link.agree(Agreed { header_digest, data_digest, alignment: Alignment::WORD });
        self.data_bytes_max = data_bytes_max as usize;
        Ok(())
    }

    /// The slot of a command that is under way.
    fn find(&self, command: u16) -> Result<u32, Fatal> {
        let slot = u32::from(command) & ((1 << SLOT_BITS) - 1);
        let known = self.slots.get(slot as usize).is_some_and(|slot| slot.command == Some(command));
        if known { Ok(slot) } else { Err(Fatal::field(at::COMMAND)) }
    }

    /// TCP clause 3.3.2.2: the data that was asked for, in units that the controller takes.
    fn transfer(&mut self, transfer: &Transfer, payload: &[u8]) {
        let Transfer { command, tag, offset_bytes, length_bytes } = *transfer;
        let (mut from, end) = (offset_bytes as usize, (offset_bytes + length_bytes) as usize);
        while from < end {
            let piece = &payload[from..end.min(from + self.data_bytes_max)];
            let data = Data {
                command,
                tag,
                offset_bytes: from as u32,
                length_bytes: piece.len() as u32,
                is_last: from + piece.len() == end,
                is_success: false,
            };
            self.push(Pdu::Data(Direction::HostToController, data), piece);
            from += piece.len();
        }
    }

    /// All data of a unit has come.
    fn process_end(&mut self, sound: bool, answers: &mut Vec<Answer>) {
        let Some((slot, data)) = self.receiving.take() else { return };
        self.slots[slot as usize].spoilt |= !sound;
        // TCP clause 3.3.2.1: with SUCCESS no completion follows.
        if data.is_success {
            let completion = Completion { command: data.command, ..Completion::default() };
            self.finish(slot, completion, answers);
        }
    }

    fn finish(&mut self, index: u32, completion: Completion, answers: &mut Vec<Answer>) {
        let slot = &mut self.slots[index as usize];
        slot.command = None;
        self.under_way -= 1;
        // What the controller takes for done is not, where the data is damaged or not all here.
        let status = match completion.status {
            StatusCode::SUCCESS if slot.spoilt => StatusCode::TRANSIENT_TRANSPORT_ERROR,
            StatusCode::SUCCESS if slot.received_bytes != slot.read_bytes => StatusCode::DATA_TRANSFER_ERROR,
            status => status,
        };
        let payload = std::mem::take(&mut slot.kept);
        answers.push(Answer { slot: index, completion: Completion { status, ..completion }, payload });
    }

    fn push(&mut self, pdu: Pdu, data: &[u8]) {
        let agreed = self.agreed.unwrap_or(Agreed::NOTHING);
        // INVARIANT: commands may have data or none, and data is whole blocks, cut at whole dwords.
        let head = pdu.head(data.len() as u32, agreed).expect("INVARIANT: whole dwords");
        self.out.extend_from_slice(head.octets());
        self.out.extend_from_slice(data);
        if agreed.data_digest && !data.is_empty() {
            self.out.extend_from_slice(&digest(data).to_le_bytes());
        }
    }

    /// TCP clause 3.5: who broke the transport is told how.
    fn terminate(&mut self, error: &QueueError) {
        let QueueError::Fatal(fatal) = *error else { return };
        let termination = Termination { fatal, header: self.link.header() };
        if let Ok((octets, bytes)) = termination.octets(Direction::HostToController) {
            self.out.extend_from_slice(&octets[..bytes]);
        }
    }
}

#[cfg(test)]
mod tests;
