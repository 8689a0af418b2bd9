//! What waits to be sent: heads, the payload where it lies, and what follows it.
//!
//! Invariants: units leave in the order in which they were put here, whole; a buffer goes back to the pool
//! when its last byte was sent; a command's slot is free again when its answer was sent, so that a host that
//! does not read soon has no slots left and is not read either.

use std::collections::VecDeque;
use std::io::IoSlice;

use frame::{IoBuffer, IoPool};
use wire::nvme::Completion;
use wire::nvme_tcp::{
    Agreed, DIGEST_BYTES, Data, Direction, Fatal, HEAD_BYTES_MAX, Head, Pdu, TERMINATION_BYTES_MAX,
    Termination, Transfer, digest,
};

use super::Slices;
use super::slots::SlotId;

/// A digest and a completion with its own.
const TAIL_BYTES_MAX: usize = DIGEST_BYTES + 24 + DIGEST_BYTES;

#[derive(Debug)]
struct Item {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    body: Option<IoBuffer>,
    tail: [u8; TAIL_BYTES_MAX],
    tail_bytes: u8,
    /// The answer of this command ends with it.
    ends: Option<SlotId>,
}

impl Item {
    fn new(head: &Head, ends: Option<SlotId>) -> Item {
        let (mut octets, bytes) = ([0; HEAD_BYTES_MAX], head.octets());
        octets[..bytes.len()].copy_from_slice(bytes);
        let (tail, tail_bytes) = ([0; TAIL_BYTES_MAX], 0);
        Item { head: octets, head_bytes: bytes.len() as u8, body: None, tail, tail_bytes, ends }
    }

    fn append(&mut self, octets: &[u8]) {
        let at = usize::from(self.tail_bytes);
        self.tail[at..at + octets.len()].copy_from_slice(octets);
        self.tail_bytes += octets.len() as u8;
    }

    fn bytes(&self) -> usize {
        let body = self.body.as_ref().map_or(0, IoBuffer::len);
        usize::from(self.head_bytes) + body + usize::from(self.tail_bytes)
    }
}

#[derive(Debug)]
pub(super) struct Output {
    agreed: Agreed,
    items: VecDeque<Item>,
    /// Bytes of the first item that were sent.
    sent_bytes: usize,
    /// The last words.
    termination: Option<([u8; TERMINATION_BYTES_MAX], usize)>,
}

impl Output {
    pub fn new(agreed: Agreed, items: usize) -> Output {
        Output { agreed, items: VecDeque::with_capacity(items), sent_bytes: 0, termination: None }
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.termination.is_none()
    }

    pub fn push_completion(&mut self, completion: Completion, ends: Option<SlotId>) {
        self.items.push_back(Item::new(&self.completion(completion), ends));
    }

    /// Asks the host for data.
    pub fn push_transfer(&mut self, transfer: Transfer) {
        // INVARIANT: payload is whole blocks and begins at 0.
        let head = Pdu::Transfer(transfer).head(0, self.agreed).expect("INVARIANT: whole dwords");
        self.items.push_back(Item::new(&head, None));
    }

    /// All data of a command, and its completion; without one, the data says that the command succeeded.
    pub fn push_data(
        &mut self,
        command: u16,
        body: IoBuffer,
        completion: Option<Completion>,
        ends: SlotId,
        pool: &IoPool,
    ) {
        let length_bytes = body.len() as u32;
        let is_success = completion.is_none();
        let data = Data { command, tag: 0, offset_bytes: 0, length_bytes, is_last: true, is_success };
        // INVARIANT: what is answered with data has some: whole blocks, or whole dwords of a page.
        let head = Pdu::Data(Direction::ControllerToHost, data).head(length_bytes, self.agreed);
        let mut item = Item::new(&head.expect("INVARIANT: whole dwords, not none"), Some(ends));
        if self.agreed.data_digest {
            item.append(&digest(pool.bytes(&body)).to_le_bytes());
        }
        item.body = Some(body);
        if let Some(completion) = completion {
            item.append(self.completion(completion).octets());
        }
        self.items.push_back(item);
    }

    /// Nothing but this is said any more; what was begun is ended first. Returns what will not be sent.
    pub fn terminate(&mut self, fatal: Fatal, header: &[u8]) -> impl Iterator<Item = IoBuffer> {
        self.termination = Termination { fatal, header }.octets(Direction::ControllerToHost).ok();
        let begun = usize::from(self.sent_bytes > 0).min(self.items.len());
        self.items.drain(begun..).filter_map(|item| item.body)
    }

    pub fn dispatch<'a>(&'a self, pool: &'a IoPool, slices: &mut Slices<'a>) {
        let mut skip = self.sent_bytes;
        let mut push = |piece: &'a [u8]| {
            let gone = skip.min(piece.len());
            skip -= gone;
            gone == piece.len() || slices.try_push(IoSlice::new(&piece[gone..])).is_ok()
        };
        for item in &self.items {
            let body = item.body.as_ref().map_or(&[][..], |buffer| pool.bytes(buffer));
            let (head, tail) = (&item.head[..item.head_bytes.into()], &item.tail[..item.tail_bytes.into()]);
            if !(push(head) && push(body) && push(tail)) {
                return;
            }
        }
        if let Some((octets, bytes)) = &self.termination {
            push(&octets[..*bytes]);
        }
    }

    /// Counts `bytes` as sent. Returns the next thing that is wholly sent by that, with its payload; call it
    /// again with 0 until there is none.
    pub fn sent(&mut self, bytes: usize) -> Option<(Option<IoBuffer>, Option<SlotId>)> {
        self.sent_bytes += bytes;
        let Some(first) = self.items.front() else {
            if self.termination.is_some_and(|(_, bytes)| self.sent_bytes >= bytes) {
                (self.termination, self.sent_bytes) = (None, 0);
            }
            return None;
        };
        let first_bytes = first.bytes();
        if self.sent_bytes < first_bytes {
            return None;
        }
        self.sent_bytes -= first_bytes;
        self.items.pop_front().map(|item| (item.body, item.ends))
    }

    /// Drops all of it; returns the payload.
    pub fn clear(&mut self) -> impl Iterator<Item = IoBuffer> {
        (self.termination, self.sent_bytes) = (None, 0);
        self.items.drain(..).filter_map(|item| item.body)
    }

    fn completion(&self, completion: Completion) -> Head {
        // INVARIANT: a completion has no data, so nothing of it can be out of range.
        Pdu::Completion(completion).head(0, self.agreed).expect("INVARIANT: no data")
    }
}
