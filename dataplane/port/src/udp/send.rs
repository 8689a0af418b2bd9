//! From frames into datagrams: runs of equal frames to one peer leave as one (`UDP_SEGMENT`).

use std::io;

use arrayvec::ArrayVec;
use frame::{BATCH, Frame, Pool};

use super::control;
use super::peers::Peers;
use super::socket::{MESSAGES, Outgoing, UdpSocket};
use crate::PortCounters;
use crate::checksum::complete_partial_checksum;

/// Frames that wait for the flush at the end of the turn.
pub(super) const HELD: usize = 2 * BATCH;
/// The kernel cuts a datagram into at most so many (`UDP_MAX_SEGMENTS`, 64 before Linux 6.9).
const SEGMENTS_MAX: usize = 64;
/// Payload of the longest datagram that every IP header leaves room for.
const RUN_BYTES_MAX: usize = 65_000;
/// Errors taken at once; the rest waits for the next turn.
pub(super) const ERRORS: usize = 64;

/// Frames taken and not yet sent.
#[derive(Debug)]
pub(super) struct Outbox {
    held: ArrayVec<Frame, HELD>,
    /// Differentiated-services bits of the TOS field.
    tos: u8,
    /// The kernel cuts runs for us.
    segment: bool,
    /// Frames at the front that must go one by one, because their run was refused.
    alone: usize,
}

impl Outbox {
    pub(super) fn new(dscp: u8) -> Outbox {
        Outbox { held: ArrayVec::new(), tos: dscp << 2, segment: true, alone: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn room(&self) -> usize {
        self.held.remaining_capacity()
    }

    /// Takes a frame, or counts and frees it when it cannot be sent. Only while there is room.
    pub(super) fn push(
        &mut self,
        pool: &mut Pool,
        mut frame: Frame,
        peers: &Peers,
        counters: &mut PortCounters,
    ) {
        let meta = pool.meta(&frame);
        counters.tx_frames += 1;
        counters.tx_bytes += meta.len() as u64;
        let sendable = meta.len() > 0 && peers.address(meta).is_some() && finish_checksum(pool, &mut frame);
        if !sendable {
            counters.tx_errors += 1;
            pool.free(frame);
        } else if let Err(full) = self.held.try_push(frame) {
            pool.free(full.element());
        }
    }

    /// Sends what is held; what the socket has no room for stays.
    pub(super) fn send(
        &mut self,
        pool: &mut Pool,
        socket: &UdpSocket,
        peers: &Peers,
        counters: &mut PortCounters,
    ) {
        let mut done = 0;
        // The first error may be one that an earlier datagram left on the socket.
        let mut stale = true;
        while let Some(first) = self.held.get(done) {
            if peers.address(pool.meta(first)).is_none() {
                // The peer was taken away since.
                counters.tx_errors += 1;
                done += 1;
                continue;
            }
            let (runs, result) = self.send_once(pool, socket, peers, done);
            match result {
                Ok(sent) => {
                    let frames: usize = runs[..sent].iter().sum();
                    done += frames;
                    self.alone = self.alone.saturating_sub(frames);
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => break,
                Err(error) => {
                    let reported = socket.take_errors(ERRORS);
                    counters.tx_errors += reported;
                    if reported > 0 && std::mem::take(&mut stale) {
                        continue;
                    }
                    let run = runs.first().copied().unwrap_or(1);
                    if run > 1 {
                        // A device without the offload (EIO) never takes a run, an MTU too small not this one.
                        self.segment &= error.raw_os_error() != Some(libc::EIO);
                        self.alone = run;
                    } else {
                        counters.tx_errors += 1;
                        done += 1;
                        self.alone = self.alone.saturating_sub(1);
                    }
                }
            }
        }
        for frame in self.held.drain(..done) {
            pool.free(frame);
        }
    }

    /// One system call for the frames from `done` on. Returns the lengths of the runs, and how many went.
    fn send_once(
        &self,
        pool: &Pool,
        socket: &UdpSocket,
        peers: &Peers,
        done: usize,
    ) -> (ArrayVec<usize, MESSAGES>, io::Result<usize>) {
        let frames = &self.held[done..];
        let mut parts: ArrayVec<libc::iovec, HELD> = ArrayVec::new();
        for frame in frames {
            let bytes = pool.bytes(frame);
            // The kernel only reads from it.
            parts.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        }
        let mut runs: ArrayVec<usize, MESSAGES> = ArrayVec::new();
        let mut datagrams: ArrayVec<Outgoing<'_>, MESSAGES> = ArrayVec::new();
        let mut start = 0;
        while start < frames.len() && !runs.is_full() {
            let meta = pool.meta(&frames[start]);
            let Some(to) = peers.address(meta) else { break };
            let count = if start < self.alone { 1 } else { self.run(pool, &frames[start..]) };
            let segment = (count > 1).then_some(meta.len() as u16);
            let ecn = meta.flags.outer_ecn();
            let tos = (ecn != 0).then_some(self.tos | ecn);
            let parts = &parts[start..start + count];
            datagrams.push(Outgoing { to, parts, control: control::encode(segment, tos, peers.ipv6()) });
            runs.push(count);
            start += count;
        }
        // SAFETY: the parts point into frames of `held`, which nobody touches before the call returns.
        let sent = unsafe { socket.send_all(&mut datagrams) };
        (runs, sent)
    }

    /// How many frames from the first on may leave as one datagram: same peer, same mark, same length, the
    /// last one perhaps shorter.
    fn run(&self, pool: &Pool, frames: &[Frame]) -> usize {
        let first = pool.meta(&frames[0]);
        let most = (RUN_BYTES_MAX / first.len()).clamp(1, SEGMENTS_MAX);
        if !self.segment || most == 1 {
            return 1;
        }
        let mut count = 1;
        for frame in frames.iter().take(most).skip(1) {
            let meta = pool.meta(frame);
            let same = meta.next_hop == first.next_hop && meta.flags.outer_ecn() == first.flags.outer_ecn();
            if !same || meta.len() > first.len() {
                break;
            }
            count += 1;
            if meta.len() < first.len() {
                break;
            }
        }
        count
    }

    /// Gives every frame back unsent.
    pub(super) fn clear(&mut self, pool: &mut Pool, counters: &mut PortCounters) {
        for frame in self.held.drain(..) {
            counters.tx_errors += 1;
            pool.free(frame);
        }
    }
}

/// Finishes the inner checksum where it was left to a device: there is none behind a socket. False for a
/// super-segment, which should have been cut before.
#[inline(always)]
fn finish_checksum(pool: &Pool, frame: &mut Frame) -> bool {
    let (meta, bytes) = pool.parts_mut(frame);
    complete_partial_checksum(bytes, meta)
}
