//! Two ends in one process, joined by two rings of frames: what one sends, the other receives, without a
//! copy. For tests, for measurements without a kernel, and for chaining stages.
//!
//! An end that wants to block arms itself: it publishes that it sleeps, and after that looks once more. The
//! other end publishes frames first and then looks whether somebody sleeps. A full fence on both sides
//! between writing and looking makes it impossible that both miss each other, so no wake-up is lost, and no
//! system call is made while both are awake.
//!
//! Invariants: the pools used at both ends belong to one slab; the end that closes last gives back all
//! frames that are still in either ring; each direction is in order.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use frame::{Batch, Consumer, Flags, Frame, GsoKind, Meta, Pool, Producer, ring};
use rustix::event::{EventfdFlags, eventfd};

use crate::checksum::complete_partial_checksum;
use crate::{OpenError, Port, PortCaps, PortCounters, PortError, PortKind};

/// What joins the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// Frames on their way in each direction at most; rounded up to a power of two.
    pub capacity_frames: usize,
    /// Largest layer-3 packet, bytes. Told in the capabilities, not enforced.
    pub mtu_bytes: u32,
    /// Super-segments and unfinished checksums pass as they are, as between two virtual machines. Without
    /// it checksums are finished on sending, and a super-segment is refused and counted as an error.
    pub offloads: bool,
}

/// One end. Must be closed, not dropped, while frames are on their way.
#[derive(Debug)]
pub struct MemoryPort {
    tx: Producer<Frame>,
    /// `None` only after `close`.
    rx: Option<Consumer<Frame>>,
    link: Arc<Link>,
    side: usize,
    /// This end published that it sleeps and did not take it back.
    armed: bool,
    spec: MemorySpec,
    counters: PortCounters,
}

/// What both ends share.
#[derive(Debug)]
struct Link {
    ends: [End; 2],
    /// The receiving side of the end that closed first, for the other to empty.
    left_behind: Mutex<Option<Consumer<Frame>>>,
}

#[derive(Debug)]
#[repr(align(128))]
struct End {
    sleeps: AtomicBool,
    closed: AtomicBool,
    /// Readable when this end was woken.
    wake: OwnedFd,
}

/// Makes the two ends.
pub fn pair(spec: MemorySpec) -> Result<(MemoryPort, MemoryPort), OpenError> {
    let end = || -> Result<End, OpenError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
            OpenError::Io { name: "memory port".to_owned(), what: "eventfd", source: errno.into() }
        })?;
        Ok(End { sleeps: AtomicBool::new(false), closed: AtomicBool::new(false), wake })
    };
    let link = Arc::new(Link { ends: [end()?, end()?], left_behind: Mutex::new(None) });
    let (tx0, rx1) = ring(spec.capacity_frames);
    let (tx1, rx0) = ring(spec.capacity_frames);
    let port = |tx, rx, side| MemoryPort {
        tx,
        rx: Some(rx),
        link: Arc::clone(&link),
        side,
        armed: false,
        spec,
        counters: PortCounters::default(),
    };
    Ok((port(tx0, rx0, 0), port(tx1, rx1, 1)))
}

/// One end before it is opened, for a list of ports to open. Only the first who opens it gets it.
#[derive(Clone, Debug)]
pub struct MemoryEnd(Arc<Mutex<Option<MemoryPort>>>);

impl MemoryEnd {
    /// What [`crate::open`] calls.
    pub(crate) fn take(&self) -> Result<MemoryPort, OpenError> {
        let end = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        end.ok_or_else(|| OpenError::Busy {
            name: "memory port".to_owned(),
            what: "this end",
            hint: "each end is opened once; make another pair",
        })
    }
}

impl From<MemoryPort> for MemoryEnd {
    fn from(port: MemoryPort) -> MemoryEnd {
        MemoryEnd(Arc::new(Mutex::new(Some(port))))
    }
}

/// The same end, not one like it.
impl PartialEq for MemoryEnd {
    fn eq(&self, other: &MemoryEnd) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl End {
    /// Makes `wake` readable, if this end sleeps. What it is to see was published before.
    #[inline]
    fn wake_if_asleep(&self) {
        // Pairs with the fence in `arm`: either we see that it sleeps, or it sees what we published.
        fence(Ordering::SeqCst);
        if self.sleeps.load(Ordering::Relaxed) && self.sleeps.swap(false, Ordering::Relaxed) {
            // An eventfd refuses only when its counter is full, and then it is readable already.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }
}

impl Link {
    fn left_behind(&self) -> MutexGuard<'_, Option<Consumer<Frame>>> {
        self.left_behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryPort {
    fn mine(&self) -> &End {
        &self.link.ends[self.side]
    }

    fn peer(&self) -> &End {
        &self.link.ends[1 - self.side]
    }

    #[cold]
    fn disarm(&mut self) {
        self.armed = false;
        self.mine().sleeps.store(false, Ordering::Relaxed);
        // Empty unless somebody woke us. A wake-up that comes later only makes the next wait end early.
        let _ = rustix::io::read(&self.mine().wake, &mut [0; 8]);
    }

    /// Does the work of a device that cannot: finishes checksums, refuses what must be cut first.
    #[cold]
    fn finish_offloads(&mut self, pool: &mut Pool, batch: &mut Batch) {
        let mut refused = Batch::new();
        let mut sent = Batch::new();
        for mut frame in batch.drain(..) {
            let (meta, bytes) = pool.parts_mut(&mut frame);
            let finished = complete_partial_checksum(bytes, meta);
            if finished { sent.push(frame) } else { refused.push(frame) }
        }
        batch.extend(sent);
        self.counters.tx_frames += refused.len() as u64;
        self.counters.tx_bytes += pool.bytes_in(&refused);
        self.counters.tx_errors += refused.len() as u64;
        pool.free_batch(&mut refused);
    }

    /// Gives back what is on its way to an end.
    fn empty(rx: &mut Consumer<Frame>, pool: &mut Pool) {
        let mut batch = Batch::new();
        while rx.pop_batch(&mut batch) > 0 {
            pool.free_batch(&mut batch);
        }
    }
}

fn asks_for_offload(meta: &Meta) -> bool {
    meta.flags.has(Flags::CSUM_PARTIAL) || meta.gso != GsoKind::None
}

impl Port for MemoryPort {
    #[inline]
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        if self.armed {
            self.disarm();
        }
        let first = out.len();
        // Looked at before the ring: what was sent before closing is received before it is reported.
        let closed = self.peer().closed.load(Ordering::Acquire);
        let count = self.rx.as_mut().map_or(0, |rx| rx.pop_batch(out));
        if count == 0 {
            return if closed && !out.is_full() { Err(PortError::PeerClosed) } else { Ok(0) };
        }
        for frame in &mut out[first..] {
            let meta = pool.meta_mut(frame);
            meta.keep_offloads();
            self.counters.rx_bytes += meta.len() as u64;
        }
        self.counters.rx_frames += count as u64;
        Ok(count)
    }

    #[inline]
    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        if self.peer().closed.load(Ordering::Acquire) {
            return Err(PortError::PeerClosed);
        }
        let offered = batch.len();
        if !self.spec.offloads && batch.iter().any(|frame| asks_for_offload(pool.meta(frame))) {
            self.finish_offloads(pool, batch);
        }
        let bytes = pool.bytes_in(batch);
        let count = self.tx.push_batch(batch);
        if count > 0 {
            self.counters.tx_frames += count as u64;
            self.counters.tx_bytes += bytes - pool.bytes_in(batch);
            self.peer().wake_if_asleep();
        }
        Ok(offered - batch.len())
    }

    fn flush(&mut self, _pool: &mut Pool) -> Result<(), PortError> {
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.mine().wake.as_fd())
    }

    fn arm(&mut self) {
        self.armed = true;
        self.mine().sleeps.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake_if_asleep`; `has_input` comes after it.
        fence(Ordering::SeqCst);
    }

    fn has_input(&self) -> bool {
        self.rx.as_ref().is_some_and(|rx| !rx.is_empty()) || self.peer().closed.load(Ordering::Acquire)
    }

    fn caps(&self) -> PortCaps {
        PortCaps {
            kind: PortKind::Ethernet,
            mtu_bytes: self.spec.mtu_bytes,
            mac: None,
            tx_partial_csum: self.spec.offloads,
            tx_gso: self.spec.offloads,
            rx_gso: self.spec.offloads,
        }
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn close(mut self: Box<Self>, pool: &mut Pool) {
        let link = Arc::clone(&self.link);
        // The lock orders the two ends: one is first and leaves its ring to the other, which may still fill
        // it; the other is last and empties both.
        let mut left_behind = link.left_behind();
        self.mine().closed.store(true, Ordering::Release);
        if let Some(mut rx) = self.rx.take() {
            Self::empty(&mut rx, pool);
            match left_behind.take() {
                Some(mut theirs) => Self::empty(&mut theirs, pool),
                None => *left_behind = Some(rx),
            }
        }
        self.peer().wake_if_asleep();
    }
}
