//! A long read whose simple reply may begin only when all of it is there.
//!
//! A simple reply states success before its payload, so every part must have been read first. Such a read
//! takes all its buffers at once or none: were two connections each to hold half of what they need, both
//! would wait for ever. One at a time for each connection.

use arrayvec::ArrayVec;
use frame::{IoBuffer, IoPool};

use super::request::{PARTS_MAX, Slot, SlotId};

#[derive(Debug, Default)]
pub(super) struct Gather {
    owner: Option<SlotId>,
    parts: ArrayVec<Option<IoBuffer>, PARTS_MAX>,
}

impl Gather {
    /// Nobody's parts are here.
    pub(super) fn is_empty(&self) -> bool {
        self.owner.is_none()
    }

    /// True when `id` may take its parts: they were reserved for it, now or before.
    pub(super) fn reserve(&mut self, id: SlotId, request: &Slot, pool: &mut IoPool) -> bool {
        if self.owner.is_some() {
            return self.owner == Some(id);
        }
        for part in 0..request.parts_left {
            match pool.alloc(request.part(part).1 as usize) {
                Some(buffer) if !self.parts.is_full() => self.parts.push(Some(buffer)),
                other => {
                    if let Some(buffer) = other {
                        pool.free(buffer);
                    }
                    self.release(pool);
                    return false;
                }
            }
        }
        self.owner = Some(id);
        true
    }

    pub(super) fn take(&mut self, part: u16) -> Option<IoBuffer> {
        self.parts.get_mut(usize::from(part))?.take()
    }

    /// Gives back a part that was taken; whoever is not the owner keeps its buffer.
    pub(super) fn put(&mut self, id: SlotId, part: u16, buffer: IoBuffer) -> Result<(), IoBuffer> {
        match self.parts.get_mut(usize::from(part)) {
            Some(place @ None) if self.owner == Some(id) => {
                *place = Some(buffer);
                Ok(())
            }
            _ => Err(buffer),
        }
    }

    /// All parts in order, for the next owner to begin anew.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = IoBuffer> + '_ {
        self.owner = None;
        self.parts.drain(..).flatten()
    }

    /// Memory behind the parts that are here.
    pub(super) fn held_bytes(&self) -> usize {
        self.parts.iter().flatten().map(IoBuffer::capacity).sum()
    }

    fn release(&mut self, pool: &mut IoPool) {
        self.finish().for_each(|buffer| pool.free(buffer));
    }
}
