//! What waits to be sent: heads, and the payload where it lies.
//!
//! Invariants: replies leave in the order in which they were put here, whole; a buffer goes back to the pool
//! when its last byte was sent; a request's slot is free again when its last reply was sent, so that a client
//! that does not read soon has no slots left and is not read either.

use std::collections::VecDeque;
use std::io::IoSlice;

use arrayvec::ArrayVec;
use frame::{IoBuffer, IoPool};
use wire::nbd::transmission::{Chunk, ChunkFlags, SimpleReply};

use super::request::{Refusal, SlotId};

/// Most pieces that are handed out to be sent at once.
pub const DISPATCH_SLICES: usize = 64;
/// The pieces.
pub type Slices<'a> = ArrayVec<IoSlice<'a>, DISPATCH_SLICES>;

/// One reply or chunk.
#[derive(Debug)]
struct Item {
    head: [u8; Chunk::HEAD_BYTES_MAX],
    head_bytes: u8,
    body: Body,
    /// It is the last one of this request.
    ends: Option<SlotId>,
}

/// What follows the head.
#[derive(Debug)]
pub(super) enum Body {
    Nothing,
    Payload(IoBuffer),
    Message(&'static str),
}

impl Item {
    fn body<'a>(&'a self, pool: &'a IoPool) -> &'a [u8] {
        match &self.body {
            Body::Nothing => &[],
            Body::Payload(buffer) => pool.bytes(buffer),
            Body::Message(message) => message.as_bytes(),
        }
    }

    fn bytes(&self) -> usize {
        usize::from(self.head_bytes) + self.body.bytes()
    }
}

impl Body {
    fn bytes(&self) -> usize {
        match self {
            Body::Nothing => 0,
            Body::Payload(buffer) => buffer.len(),
            Body::Message(message) => message.len(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Output {
    items: VecDeque<Item>,
    /// Bytes of the first item that were sent.
    sent_bytes: usize,
}

impl Output {
    pub(super) fn new(items: usize) -> Self {
        Self { items: VecDeque::with_capacity(items), sent_bytes: 0 }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.items.capacity()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn push_simple(&mut self, reply: SimpleReply, body: Body, ends: Option<SlotId>) {
        let mut head = [0; Chunk::HEAD_BYTES_MAX];
        head[..SimpleReply::BYTES].copy_from_slice(&reply.octets());
        self.items.push_back(Item { head, head_bytes: SimpleReply::BYTES as u8, body, ends });
    }

    /// More payload of the reply before it.
    pub(super) fn push_payload(&mut self, buffer: IoBuffer, ends: Option<SlotId>) {
        let head = [0; Chunk::HEAD_BYTES_MAX];
        self.items.push_back(Item { head, head_bytes: 0, body: Body::Payload(buffer), ends });
    }

    /// A chunk; the last one of its request if it `ends` one.
    pub(super) fn push_chunk(&mut self, chunk: Chunk, cookie: u64, body: Body, ends: Option<SlotId>) {
        let flags = ChunkFlags::NONE.with_if(ends.is_some(), ChunkFlags::DONE);
        // INVARIANT: requests of length 0 are refused, so data, holes and descriptors are never empty; an
        // error chunk is made of an error; messages are literals; a body is at most IO_BYTES_MAX. So the
        // head is sound.
        let (head, head_bytes) =
            chunk.head(flags, cookie, body.bytes() as u32).expect("INVARIANT: the chunk is sound");
        self.items.push_back(Item { head, head_bytes: head_bytes as u8, body, ends });
    }

    pub(super) fn push_error(&mut self, structured: bool, cookie: u64, refusal: Refusal, ends: SlotId) {
        // "The server SHOULD prefer sending errors via a structured reply, as the error can then be
        // accompanied by a string payload".
        let Refusal { error, why } = refusal;
        if structured {
            self.push_chunk(Chunk::Error { error }, cookie, Body::Message(why), Some(ends));
        } else {
            self.push_simple(SimpleReply { error, cookie }, Body::Nothing, Some(ends));
        }
    }

    pub(super) fn dispatch<'a>(&'a self, pool: &'a IoPool, slices: &mut Slices<'a>) {
        let mut skip = self.sent_bytes;
        for item in &self.items {
            for piece in [&item.head[..usize::from(item.head_bytes)], item.body(pool)] {
                let gone = skip.min(piece.len());
                skip -= gone;
                if gone < piece.len() && slices.try_push(IoSlice::new(&piece[gone..])).is_err() {
                    return;
                }
            }
        }
    }

    /// Counts `bytes` as sent. Returns the next thing that is wholly sent by that, with its payload; call it
    /// again with 0 until there is none.
    pub(super) fn sent(&mut self, bytes: usize) -> Option<(Option<IoBuffer>, Option<SlotId>)> {
        self.sent_bytes += bytes;
        let first_bytes = self.items.front()?.bytes();
        if self.sent_bytes < first_bytes {
            return None;
        }
        self.sent_bytes -= first_bytes;
        self.pop()
    }

    /// Takes the first item away, sent or not.
    pub(super) fn pop(&mut self) -> Option<(Option<IoBuffer>, Option<SlotId>)> {
        let item = self.items.pop_front()?;
        let buffer = match item.body {
            Body::Payload(buffer) => Some(buffer),
            Body::Nothing | Body::Message(_) => None,
        };
        Some((buffer, item.ends))
    }
}
