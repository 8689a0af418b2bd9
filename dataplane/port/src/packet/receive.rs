//! From a slot, or from the socket's queue, into frames.

use std::io;

use arrayvec::ArrayVec;
use frame::{BATCH, Batch, FRAME_BYTES_MAX, Frame, Pool};

use super::ring::Received;
use super::socket::Place;
use super::{ADDRESSES_BYTES, PacketPort, TAG_BYTES, vnet};
use crate::PortError;

/// What became of a slot.
pub(super) enum Copied {
    /// A frame.
    Frame(Frame),
    /// It is our own transmission, on a kernel without `PACKET_IGNORE_OUTGOING`.
    Own,
    /// It was cut off, or is a super-segment that nobody here can cut.
    Unusable,
    /// The slab is exhausted.
    NoFrame,
}

/// A frame that the kernel left on the socket's queue because no slot holds it.
pub(super) struct Announced {
    /// Its place in the batch; `None` when the slab had no frame for it.
    at: Option<usize>,
    /// Its VLAN tag, which goes back between the addresses and the rest.
    vlan: Option<[u8; TAG_BYTES]>,
}

/// The announced frames of one burst.
pub(super) type Queued = ArrayVec<Announced, BATCH>;

/// Copies a frame out of its slot.
#[inline(always)]
pub(super) fn copy_in(pool: &mut Pool, received: &Received<'_>) -> Copied {
    if received.packet_type == libc::PACKET_OUTGOING {
        return Copied::Own;
    }
    if received.len > received.bytes.len() {
        return Copied::Unusable;
    }
    let Some(mut frame) = room(pool, received) else { return Copied::NoFrame };
    let filled = match received.vlan {
        None => pool.fill(&mut frame, received.bytes),
        Some(tag) => fill_tagged(pool, &mut frame, tag, received.bytes),
    };
    let shift = if received.vlan.is_some() { TAG_BYTES as u16 } else { 0 };
    if filled && vnet::decode(&received.vnet, shift, pool.meta_mut(&mut frame)) {
        Copied::Frame(frame)
    } else {
        pool.free(frame);
        Copied::Unusable
    }
}

/// Puts an empty frame of the announced length into the batch.
#[cold]
pub(super) fn make_room(pool: &mut Pool, received: &Received<'_>, out: &mut Batch) -> Announced {
    let vlan = received.vlan;
    let Some(mut frame) = room(pool, received) else { return Announced { at: None, vlan } };
    let len = received.len + tag_len(vlan);
    if !pool.set_len(&mut frame, len) {
        pool.free(frame);
        return Announced { at: None, vlan };
    }
    out.push(frame);
    Announced { at: Some(out.len() - 1), vlan }
}

/// A frame whose chunk is large enough, if any is.
#[inline(always)]
fn room(pool: &mut Pool, received: &Received<'_>) -> Option<Frame> {
    if received.len + TAG_BYTES <= FRAME_BYTES_MAX { pool.alloc() } else { pool.alloc_jumbo() }
}

#[cold]
fn fill_tagged(pool: &Pool, frame: &mut Frame, tag: [u8; TAG_BYTES], bytes: &[u8]) -> bool {
    let Some((addresses, rest)) = bytes.split_at_checked(ADDRESSES_BYTES) else { return false };
    if !pool.set_len(frame, bytes.len() + TAG_BYTES) {
        return false;
    }
    let place = pool.bytes_mut(frame);
    place[..ADDRESSES_BYTES].copy_from_slice(addresses);
    place[ADDRESSES_BYTES..ADDRESSES_BYTES + TAG_BYTES].copy_from_slice(&tag);
    place[ADDRESSES_BYTES + TAG_BYTES..].copy_from_slice(rest);
    true
}

fn tag_len(vlan: Option<[u8; TAG_BYTES]>) -> usize {
    if vlan.is_some() { TAG_BYTES } else { 0 }
}

impl PacketPort {
    /// Fetches the announced frames of this burst into their places in `out`; those that did not come, or
    /// came unusable, are taken out of it.
    #[cold]
    pub(super) fn fetch(
        &mut self,
        pool: &mut Pool,
        out: &mut Batch,
        queued: &[Announced],
    ) -> Result<(), PortError> {
        let mut places: ArrayVec<Place, BATCH> = ArrayVec::new();
        for announced in queued {
            places.push(match announced.at {
                Some(at) => Place::into(pool.bytes_mut(&mut out[at]), tag_len(announced.vlan)),
                None => Place::nowhere(),
            });
        }
        // SAFETY: the places point into frames of `out`, which is not touched before the call returns.
        let mut received = unsafe { self.rx_socket.receive_all(&mut places) };
        if let Err(noted) = &received
            && noted.raw_os_error().is_some_and(|error| error != libc::EAGAIN)
        {
            // An error noted on the socket is told once, before any frame.
            self.failed =
                Some(self.error(
                    "receiving",
                    io::Error::from_raw_os_error(noted.raw_os_error().unwrap_or(libc::EIO)),
                ));
            // SAFETY: as above.
            received = unsafe { self.rx_socket.receive_all(&mut places) };
        }
        let came = received.unwrap_or(0);
        for (index, (announced, place)) in queued.iter().zip(&places).enumerate().rev() {
            let Some(at) = announced.at else {
                self.counters.rx_no_frame += 1;
                continue;
            };
            if index < came && finish(pool, &mut out[at], announced, place) {
                self.counters.rx_bytes += pool.meta(&out[at]).len() as u64;
            } else {
                self.counters.rx_truncated += 1;
                pool.free(out.remove(at));
            }
        }
        self.failed.take().map_or(Ok(()), Err)
    }
}

/// Puts length, tag and offloads of a fetched frame in place; false when it is unusable.
fn finish(pool: &Pool, frame: &mut Frame, announced: &Announced, place: &Place) -> bool {
    let len = place.len + tag_len(announced.vlan);
    if len < ADDRESSES_BYTES + TAG_BYTES || len > pool.meta(frame).len() || !pool.set_len(frame, len) {
        return false;
    }
    if let Some(tag) = announced.vlan {
        pool.bytes_mut(frame)[ADDRESSES_BYTES..ADDRESSES_BYTES + TAG_BYTES].copy_from_slice(&tag);
    }
    vnet::decode(&place.header, tag_len(announced.vlan) as u16, pool.meta_mut(frame))
}
