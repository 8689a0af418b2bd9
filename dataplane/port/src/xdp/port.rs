//! The driver: moves frames between the worker's batches and the socket's rings.
//!
//! Per turn: `rx_burst` pops the receive ring, `tx_burst` pushes the transmit ring, and `flush` kicks the
//! kernel once for all that was pushed, takes completed frames back and tops the fill ring up, in this
//! order: the chunks that just came back are the ones still in the cache, and go out again first.
//!
//! Invariants: every chunk that the kernel may touch is in [`Loans`]; no more than `ring_frames` chunks
//! wait for input, so the receive ring cannot overflow; system calls happen in `flush`, `counters` and
//! `close` only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use frame::{Batch, FRAME_BYTES_MAX, Frame, Pool, Slab};

use super::XdpSpec;
use super::loans::Loans;
use super::program::{Attachment, Mode};
use super::socket::{RX_HEADROOM_BYTES, Socket};
use super::sys;
use crate::checksum::complete_partial_checksum;
use crate::{Port, PortCaps, PortCounters, PortError};

/// Length of an Ethernet header: no frame is shorter.
const ETHERNET_BYTES: usize = 14;
/// How often an idle port asks whether its interface still lives.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long `close` waits for frames that the kernel still has to send.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// One open queue.
pub(super) struct XdpPort {
    name: String,
    // Dropped in this order: once the socket is gone, its queue in the map may be somebody else's.
    attachment: Attachment,
    socket: Socket,
    loans: Loans,
    /// Chunks lent for input: in the fill ring, in the kernel, or in the receive ring.
    rx_lent: u32,
    rx_lent_max: u32,
    busy_poll: bool,
    /// Something was pushed that the kernel has not been told of, or has not taken.
    tx_pending: bool,
    /// Frames came in since the last flush, so the interface is known to live.
    received: bool,
    checked_at: Instant,
    failure: Option<Failure>,
    caps: PortCaps,
    counters: PortCounters,
    /// The kernel writes into the slab for as long as the socket is open. Dropped last.
    _slab: Arc<Slab>,
}

/// Why the port is unusable until it is opened again.
#[derive(Clone, Copy)]
enum Failure {
    Gone,
    Down,
}

impl XdpPort {
    pub fn new(
        spec: &XdpSpec,
        caps: PortCaps,
        socket: Socket,
        attachment: Attachment,
        slab: &Arc<Slab>,
    ) -> XdpPort {
        let mut port = XdpPort {
            name: spec.interface.clone(),
            attachment,
            socket,
            loans: Loans::new(slab.frames()),
            rx_lent: 0,
            rx_lent_max: spec.ring_frames,
            busy_poll: spec.busy_poll_frames > 0,
            tx_pending: false,
            received: false,
            checked_at: Instant::now(),
            failure: None,
            caps,
            counters: PortCounters::default(),
            _slab: Arc::clone(slab),
        };
        // So that frames which arrive before the worker's first turn are not lost.
        port.top_up(&mut Pool::new(slab));
        port
    }

    /// Where the redirect program runs.
    pub fn mode(&self) -> Mode {
        self.attachment.mode()
    }

    fn usable(&self) -> Result<(), PortError> {
        match self.failure {
            None => Ok(()),
            Some(Failure::Gone) => Err(PortError::Gone { name: self.name.clone() }),
            Some(Failure::Down) => Err(PortError::Down { name: self.name.clone() }),
        }
    }

    /// Remembers what a failed system call says about the interface.
    fn fail(&mut self, what: &'static str, source: io::Error) -> PortError {
        self.failure = match source.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV) => Some(Failure::Gone),
            Some(libc::ENETDOWN) => Some(Failure::Down),
            _ => return PortError::Io { name: self.name.clone(), what, source },
        };
        match self.failure {
            Some(Failure::Down) => PortError::Down { name: self.name.clone() },
            _ => PortError::Gone { name: self.name.clone() },
        }
    }

    /// Makes a frame ready to send and lends it; `None` when it cannot be sent and was freed.
    #[inline]
    fn lend_for_tx(&mut self, pool: &mut Pool, mut frame: Frame) -> Option<libc::xdp_desc> {
        let (meta, bytes) = pool.parts_mut(&mut frame);
        let (within, len) = (meta.headroom(), bytes.len());
        // The kernel skips an empty frame without ever completing it, and drivers expect a whole header. A
        // super-segment has no place on the wire; a jumbo chunk, outside the region, is refused below.
        let sendable =
            (ETHERNET_BYTES..=FRAME_BYTES_MAX).contains(&len) && complete_partial_checksum(bytes, meta);
        self.counters.tx_frames += 1;
        self.counters.tx_bytes += len as u64;
        if sendable {
            match self.loans.lend(frame) {
                Ok(chunk) => {
                    return Some(libc::xdp_desc { addr: chunk + within as u64, len: len as u32, options: 0 });
                }
                Err(refused) => frame = refused,
            }
        }
        self.counters.tx_errors += 1;
        pool.free(frame);
        None
    }

    /// Has the kernel send what was pushed. In copy mode each call sends a bounded number of frames
    /// (`TX_BATCH_SIZE`, 32 before Linux 6.17) and answers EAGAIN while there are more.
    fn kick(&mut self, pool: &mut Pool) -> Result<(), PortError> {
        loop {
            let before = self.socket.tx.consumed();
            let answer =
                if self.socket.tx.needs_wakeup() { sys::kick_tx(self.socket.as_fd()) } else { Ok(()) };
            let Err(error) = answer else {
                self.tx_pending = !self.socket.tx.is_drained();
                return Ok(());
            };
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS) => {
                    // More to send, or no room: in the device, in the socket's buffer, in the completion
                    // ring. Without progress the rest waits for the next turn.
                    let completed = self.reclaim(pool);
                    if self.socket.tx.consumed() == before && completed == 0 {
                        return Ok(());
                    }
                }
                // One frame was taken from the ring and dropped by the device; those behind it wait.
                Some(libc::EBUSY) => {
                    self.counters.tx_errors += 1;
                    if self.socket.tx.consumed() == before {
                        return Ok(());
                    }
                }
                _ => return Err(self.fail("sending", error)),
            }
        }
    }

    /// Frees the frames that the kernel has sent; returns how many.
    #[inline]
    fn reclaim(&mut self, pool: &mut Pool) -> usize {
        let mut completed = 0;
        while let Some(address) = self.socket.completion.pop() {
            completed += 1;
            if let Some(frame) = self.loans.take_back(pool, address, 0) {
                pool.free(frame);
            }
        }
        if completed > 0 {
            self.socket.completion.release();
        }
        completed
    }

    /// Lends chunks for input until `rx_lent_max` are out.
    #[inline]
    fn top_up(&mut self, pool: &mut Pool) {
        let missing = self.rx_lent_max - self.rx_lent;
        if missing == 0 {
            return;
        }
        for _ in 0..missing.min(self.socket.fill.room(missing)) {
            let Some(frame) = pool.alloc() else {
                self.counters.rx_no_frame += 1;
                break;
            };
            // The kernel adds its own headroom, and so ends where a fresh frame of this chunk begins.
            let colour = pool.meta(&frame).headroom().saturating_sub(RX_HEADROOM_BYTES);
            match self.loans.lend(frame) {
                Ok(chunk) => {
                    self.socket.fill.push(chunk + colour as u64);
                    self.rx_lent += 1;
                }
                Err(frame) => pool.free(frame),
            }
        }
        self.socket.fill.submit();
    }

    /// Without input: wakes the driver if it asks for it, and finds out whether the interface still lives.
    fn look_for_input(&mut self) -> Result<(), PortError> {
        if !self.busy_poll && !self.socket.fill.needs_wakeup() {
            let now = Instant::now();
            if now.duration_since(self.checked_at) < CHECK_INTERVAL {
                return Ok(());
            }
            self.checked_at = now;
        }
        match sys::kick_rx(self.socket.as_fd()) {
            Ok(()) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOBUFS) => Ok(()),
                _ => Err(self.fail("receiving", error)),
            },
        }
    }

    /// Gives the kernel a bounded time to send what it was given.
    fn drain_tx(&mut self, pool: &mut Pool) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while self.failure.is_none() && self.loans.count() > self.rx_lent && Instant::now() < deadline {
            if self.tx_pending && self.kick(pool).is_err() {
                return;
            }
            self.reclaim(pool);
            std::thread::yield_now();
        }
    }
}

impl Port for XdpPort {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        self.usable()?;
        let (before, mut popped, mut bytes) = (out.len(), 0, 0);
        while !out.is_full() {
            let Some(descriptor) = self.socket.rx.pop() else { break };
            popped += 1;
            let len = descriptor.len as usize;
            let Some(frame) = self.loans.take_back(pool, received_at(descriptor.addr), len) else {
                // Not a chunk that the kernel had: it does not happen, and must not pass unseen.
                self.counters.rx_truncated += 1;
                continue;
            };
            bytes += len as u64;
            out.push(frame);
        }
        let got = out.len() - before;
        if popped > 0 {
            self.socket.rx.release();
            self.rx_lent -= popped;
            self.received = true;
            self.counters.rx_frames += got as u64;
            self.counters.rx_bytes += bytes;
        }
        Ok(got)
    }

    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        self.usable()?;
        let room = self.socket.tx.room(batch.len() as u32) as usize;
        let taken = batch.len().min(room);
        for frame in batch.drain(..taken) {
            if let Some(descriptor) = self.lend_for_tx(pool, frame) {
                self.socket.tx.push(descriptor);
            }
        }
        if taken > 0 {
            self.socket.tx.submit();
            self.tx_pending = true;
        }
        Ok(taken)
    }

    fn flush(&mut self, pool: &mut Pool) -> Result<(), PortError> {
        self.usable()?;
        let answer = if self.tx_pending { self.kick(pool) } else { Ok(()) };
        self.reclaim(pool);
        answer?;
        self.top_up(pool);
        if std::mem::take(&mut self.received) { Ok(()) } else { self.look_for_input() }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn has_input(&self) -> bool {
        // An unusable port wants its worker awake, to be closed.
        !self.socket.rx.is_empty() || self.failure.is_some()
    }

    fn caps(&self) -> PortCaps {
        self.caps
    }

    fn counters(&self) -> PortCounters {
        let kernel = self.socket.statistics();
        let mut counters = self.counters;
        // `rx_dropped`: larger than a chunk, or the kernel had none. `fill_ring_empty` counts tries that
        // found no chunk, and each of these is already a frame in `rx_dropped`.
        counters.rx_kernel_drops = kernel.rx_dropped + kernel.rx_ring_full;
        counters.tx_errors += kernel.tx_invalid_descs;
        counters
    }

    fn close(mut self: Box<Self>, pool: &mut Pool) {
        self.drain_tx(pool);
        let XdpPort { socket, attachment, mut loans, _slab, .. } = *self;
        // First no more input, then no more memory for the kernel, then the frames are ours again.
        drop(attachment);
        drop(socket);
        loans.take_back_all(pool);
    }
}

/// Where received bytes begin: with unaligned chunks, the upper 16 bits say how far behind the address that
/// the fill ring named (`XSK_UNALIGNED_BUF_OFFSET_SHIFT`).
#[inline(always)]
fn received_at(address: u64) -> u64 {
    const OFFSET_SHIFT: u32 = 48;
    (address & ((1 << OFFSET_SHIFT) - 1)) + (address >> OFFSET_SHIFT)
}
