//! AF_PACKET: mapped rings and the virtio-net header, so that super-segments come through both ways.
//!
//! Choices, each measured on a pair of veths:
//!
//! - **Receive: TPACKET_V2.** V3 hands over a block only when it is full or a timer of at least 1 ms ends;
//!   V2 hands over every frame at once. Its price is a fixed slot. Slots hold a frame of the interface's
//!   MTU; what is larger (a super-segment of up to 64 KiB) is left by the kernel on the socket's queue
//!   (`PACKET_COPY_THRESH`, `TP_STATUS_COPY`) and fetched by one `recvmmsg` per burst straight into jumbo
//!   frames: one copy, made by the kernel, and the slot keeps its place in the order.
//! - **Transmit: the ring for ordinary frames, `sendmmsg` on a second socket for super-segments and for what
//!   is larger than a slot.** The ring attaches pages of the slot to the socket buffer, and veth must copy
//!   such pages again. A virtio-net header whose `hdr_len` is the whole frame makes the kernel copy it once
//!   into the buffer's linear part: 1.5 us instead of 2.2 us per frame of 64 bytes. `sendmmsg` costs 2.0 us
//!   there, but needs no second copy of 64 KiB in a slot. Order is kept: the ring is kicked before, at one
//!   system call per change between the two kinds.
//! - `PACKET_QDISC_BYPASS` for the ring: no queueing discipline, so no second queue behind ours; a capture on
//!   the interface may not show what we send. Not for super-segments: on that way the kernel drops those
//!   which the interface does not cut itself. Where the interface has a queueing discipline with a backlog,
//!   ordinary frames may overtake them; veth has none.
//! - `PACKET_LOSS`: the kernel skips a slot that it cannot parse instead of stopping at it.
//! - VLAN tags, which the kernel takes off, are put back.
//! - `CSUM_VALID` comes from `DATA_VALID` alone: `TP_STATUS_CSUM_VALID` is also set by kernels for sums that
//!   were computed and never compared.
//!
//! Invariants: the port holds no frame between calls; a frame taken by `tx_burst` is either in the
//! ring, sent, or counted in `tx_errors`; frames are received in the order of their slots.

mod receive;
mod ring;
mod setup;
mod socket;
mod vnet;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use frame::{Batch, Flags, Frame, GsoKind, Meta, Pool, Slab};

use crate::{OpenError, Port, PortCaps, PortCounters, PortError};
use receive::{Copied, Queued};
use ring::{RxRing, TxRing};
use socket::{Interface, PacketSocket};

/// How to open the port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSpec {
    /// Interface name in the network namespace of the calling thread.
    pub interface: String,
    /// Entries of the receive and of the transmit ring, 32 to 32768. 512 suits a worker that polls: more only
    /// spread the same frames over more cache.
    pub ring_frames: u32,
    /// Share the interface's flows by hash with the other ports of this number on the same interface
    /// (`PACKET_FANOUT`); `None` receives everything.
    pub fanout_group: Option<u16>,
}

pub(crate) fn check(spec: &PacketSpec) -> Result<(), OpenError> {
    setup::check_ring(spec)
}

/// Opens the port.
pub(crate) fn open(spec: &PacketSpec, _slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    Ok(Box::new(setup::open(spec)?))
}

/// A port on one interface.
#[derive(Debug)]
struct PacketPort {
    name: String,
    interface: Interface,
    /// Rings are declared before their sockets, so that they are unmapped first.
    rx: RxRing,
    tx: TxRing,
    rx_socket: PacketSocket,
    tx_socket: PacketSocket,
    /// Sends super-segments, and what does not fit a slot.
    bulk_socket: PacketSocket,
    caps: PortCaps,
    counters: PortCounters,
    kick: Kick,
    /// A frame said that frames were dropped since the last look at the statistics.
    losing: bool,
    turns: u32,
    /// Found while arming; reported by the next receive.
    failed: Option<PortError>,
}

/// Whether slots of the transmit ring ask to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kick {
    /// None does.
    No,
    /// Some do: the next flush tells the kernel.
    Due,
    /// Some do, and the device refused them (no carrier): each turn tries again, but none is had for it.
    Refused,
}

impl PacketPort {
    /// Looks at what the kernel noted: errors, and frames lost for want of a slot.
    fn check(&mut self) -> Result<(), PortError> {
        if self.losing {
            self.losing = false;
            self.counters.rx_kernel_drops += self.rx_socket.take_drops();
        }
        self.rx_socket.take_error().map_err(|error| self.error("receiving", error))
    }

    /// What an answer of the kernel means for the port.
    #[cold]
    fn error(&self, what: &'static str, source: io::Error) -> PortError {
        let name = self.name.clone();
        if !is_interface_error(&source) {
            return PortError::Io { name, what, source };
        }
        match self.rx_socket.interface(&name) {
            Ok(interface) if interface.index == self.interface.index => PortError::Down { name },
            _ => PortError::Gone { name },
        }
    }

    /// Sends the slots that ask for it.
    fn kick(&mut self) -> Result<(), PortError> {
        self.kick = match self.tx_socket.kick() {
            Ok(_) => Kick::No,
            Err(error) => match error.raw_os_error() {
                // The socket's buffer is full: the slots stay, the next turn tries again.
                Some(libc::EAGAIN | libc::EINTR) => Kick::Due,
                Some(libc::ENOBUFS) => Kick::Refused,
                _ => return Err(self.error("sending", error)),
            },
        };
        Ok(())
    }

    /// Sends a run of frames that are not for the ring and returns how many are done with.
    fn send_bulk(&mut self, pool: &Pool, run: &[Frame]) -> Result<usize, PortError> {
        if self.kick != Kick::No {
            self.kick()?;
        }
        let mut done = 0;
        while done < run.len() {
            match self.bulk_socket.send_all(pool, &run[done..]) {
                Ok(sent) => done += sent,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => break,
                Err(error) if is_interface_error(&error) => return Err(self.error("sending", error)),
                Err(_) => {
                    self.counters.tx_errors += 1;
                    done += 1;
                }
            }
        }
        Ok(done)
    }

    /// Takes frames from the front until the kernel takes no more; returns how many are done with.
    fn send(&mut self, pool: &Pool, frames: &[Frame]) -> (usize, Result<(), PortError>) {
        let slot_bytes = self.tx.frame_bytes_max();
        let for_ring = |meta: &Meta| meta.gso == GsoKind::None && meta.len() <= slot_bytes;
        let mut done = 0;
        while let Some(frame) = frames.get(done) {
            let (meta, bytes) = (pool.meta(frame), pool.bytes(frame));
            if !self.may_leave(meta, bytes) {
                self.counters.tx_errors += 1;
                done += 1;
            } else if for_ring(meta) {
                // All of it in the linear part: see the module's head.
                if !self.tx.put(&vnet::encode(meta, bytes, bytes.len()), bytes) {
                    break;
                }
                self.kick = Kick::Due;
                done += 1;
            } else {
                let ordinary = |frame: &Frame| for_ring(pool.meta(frame));
                let run = frames[done..].iter().position(ordinary).unwrap_or(frames.len() - done);
                match self.send_bulk(pool, &frames[done..done + run]) {
                    Ok(sent) => done += sent,
                    Err(error) => return (done, Err(error)),
                }
                if frames.get(done).is_some_and(|frame| !ordinary(frame)) {
                    break;
                }
            }
        }
        (done, Ok(()))
    }

    /// False for a frame that the kernel would refuse without telling.
    #[inline(always)]
    fn may_leave(&self, meta: &Meta, bytes: &[u8]) -> bool {
        let checksum_end = usize::from(meta.csum_start) + usize::from(meta.csum_offset) + 2;
        if bytes.len() < ETHERNET_BYTES || (meta.flags.has(Flags::CSUM_PARTIAL) && checksum_end > bytes.len())
        {
            return false;
        }
        let limit = self.interface.mtu_bytes as usize + ETHERNET_BYTES;
        bytes.len() <= limit || meta.gso != GsoKind::None || bytes.len() <= limit + tag_bytes(bytes)
    }
}

impl Port for PacketPort {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let before = out.len();
        let mut queued = Queued::new();
        while !out.is_full() && !queued.is_full() {
            let Some(received) = self.rx.peek() else { break };
            self.losing |= received.status & libc::TP_STATUS_LOSING != 0;
            if received.status & libc::TP_STATUS_COPY != 0 {
                queued.push(receive::make_room(pool, &received, out));
            } else {
                match receive::copy_in(pool, &received) {
                    Copied::Frame(frame) => {
                        self.counters.rx_bytes += pool.meta(&frame).len() as u64;
                        out.push(frame);
                    }
                    Copied::Own => {}
                    Copied::Unusable => self.counters.rx_truncated += 1,
                    Copied::NoFrame => {
                        // It stays in its slot; the ring is the waiting room.
                        self.counters.rx_no_frame += 1;
                        break;
                    }
                }
            }
            self.rx.release();
        }
        let result = if queued.is_empty() { Ok(()) } else { self.fetch(pool, out, &queued) };
        let count = out.len() - before;
        self.counters.rx_frames += count as u64;
        result.map(|()| count)
    }

    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        let (done, result) = self.send(pool, batch);
        for frame in batch.drain(..done) {
            self.counters.tx_bytes += pool.meta(&frame).len() as u64;
            pool.free(frame);
        }
        self.counters.tx_frames += done as u64;
        result.map(|()| done)
    }

    fn flush(&mut self, _pool: &mut Pool) -> Result<(), PortError> {
        self.turns = self.turns.wrapping_add(1);
        let period = if self.losing { LOSING_TURNS } else { CHECK_TURNS };
        if self.turns.is_multiple_of(period) {
            self.check()?;
        }
        if self.kick == Kick::No { Ok(()) } else { self.kick() }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.rx_socket.as_fd())
    }

    fn arm(&mut self) {
        // A noted error makes the descriptor ready for ever; it must be taken before blocking on it.
        if let Err(error) = self.check() {
            self.failed = Some(error);
        }
    }

    fn has_input(&self) -> bool {
        self.kick == Kick::Due || self.failed.is_some() || self.rx.has_input()
    }

    fn caps(&self) -> PortCaps {
        self.caps
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn close(mut self: Box<Self>, _pool: &mut Pool) {
        if self.kick != Kick::No {
            // The last chance for frames in the ring; nobody is left to hear of a failure.
            let _ = self.kick();
        }
    }
}

/// Answers by which the kernel says that the interface is down or gone.
fn is_interface_error(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV))
}

/// Bytes of the VLAN tag in a frame: a tagged frame may be longer than the MTU by its tag.
fn tag_bytes(bytes: &[u8]) -> usize {
    let kind = bytes.get(ADDRESSES_BYTES..ETHERNET_BYTES);
    if kind == Some(&[0x81, 0x00]) || kind == Some(&[0x88, 0xa8]) { TAG_BYTES } else { 0 }
}

/// The two addresses at the head of an Ethernet frame.
const ADDRESSES_BYTES: usize = 12;
/// An Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// A VLAN tag.
const TAG_BYTES: usize = 4;
/// Turns between two looks at the socket's error: about 2 ms of spinning, at most about a second of work.
/// A send notices at once, and a worker that blocks looks before.
const CHECK_TURNS: u32 = 1 << 16;
/// The same while frames are being lost.
const LOSING_TURNS: u32 = 1 << 10;
