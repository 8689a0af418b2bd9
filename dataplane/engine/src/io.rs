//! A worker's hands: the ports that it polls, the rings to other workers, and the counters.
//!
//! Every frame that a stage is done with leaves through one of four doors here: [`Io::send`] (a port),
//! [`Io::hand`] (another worker), [`Io::discard`] (a counted drop), or it stays where it is parked. The
//! balance of decision D18 is kept at these doors and nowhere else.

use frame::{Batch, Consumer, DropReason, Flags, Frame, Pool, Producer};
use overlay::PortId;
use port::{Port, PortCaps, PortError};

use crate::awake::{AwakeHint, Downstream, Stage1};
use crate::counters::{Counters, PortRecord};
use crate::idle::IdleTimes;
use crate::plan::PortRole;
use crate::wait::Waker;

/// Where a port is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// By this worker, at this place of [`Io::ports`].
    Here(usize),
    /// By another worker.
    There(usize),
    /// By nobody: the plan has no such port.
    Nowhere,
}

/// One port of this worker.
pub(crate) struct PortSlot {
    pub id: PortId,
    /// Its place in the plan.
    pub plan_index: usize,
    pub role: PortRole,
    /// The driver; `None` while the port is down.
    pub port: Option<Box<dyn Port>>,
    pub caps: Option<PortCaps>,
    /// Frames on their way out: filled by the stages, emptied by [`Io::flush`].
    tx: Batch,
    /// What went wrong in this turn; the worker closes the port when the turn ends.
    pub failed: Option<PortError>,
    /// The port has no descriptor to wait on.
    pub must_poll: bool,
}

/// The way to another worker.
pub(crate) struct Peer {
    pub ring: Producer<Frame>,
    pub waker: Waker,
    pub stage: Stage1,
    handed: bool,
}

/// The way from another worker.
pub(crate) struct Upstream {
    pub ring: Consumer<Frame>,
    pub awake: Downstream,
}

/// See the module's documentation.
pub(crate) struct Io {
    pub ports: Vec<PortSlot>,
    /// By port number.
    pub homes: Vec<Home>,
    /// By port number: the other workers that poll the same underlay.
    pub sharers: Vec<Vec<usize>>,
    /// By worker; `None` at this worker's own place.
    pub peers: Vec<Option<Peer>>,
    pub counters: Counters,
    pub trap_port: Option<PortId>,
    pub ports_counted_ns: u64,
    /// Frames that probably still wait at the ports: those whose last burst was full.
    pub waiting: usize,
}

/// Age from which on the counters of ports are asked for again.
const PORT_COUNTERS_NS: u64 = 50_000_000;

impl PortSlot {
    pub fn new(id: PortId, plan_index: usize, role: PortRole) -> PortSlot {
        PortSlot {
            id,
            plan_index,
            role,
            port: None,
            caps: None,
            tx: Batch::new(),
            failed: None,
            must_poll: false,
        }
    }

    pub fn tx_gso(&self) -> bool {
        self.caps.is_some_and(|caps| caps.tx_gso)
    }
}

impl Peer {
    pub fn new(ring: Producer<Frame>, waker: Waker, stage: Stage1) -> Peer {
        Peer { ring, waker, stage, handed: false }
    }
}

impl Io {
    /// Where a port is polled.
    #[inline]
    pub fn home(&self, port: PortId) -> Home {
        self.homes.get(usize::from(port.0)).copied().unwrap_or(Home::Nowhere)
    }

    /// The place of a tenant's port that is polled here and sends each frame as it is: it takes no
    /// super-segments, so nothing is merged for it.
    #[inline]
    pub fn door(&self, port: PortId) -> Option<usize> {
        match self.home(port) {
            Home::Here(slot) if !self.ports[slot].tx_gso() => Some(slot),
            _ => None,
        }
    }

    /// Fills `batch` from a port of this worker and counts what came.
    #[inline]
    pub fn receive(&mut self, pool: &mut Pool, slot: usize, batch: &mut Batch) {
        let Some(port) = self.ports[slot].port.as_mut() else { return };
        if let Err(error) = port.rx_burst(pool, batch) {
            self.ports[slot].failed = Some(error);
        }
        self.counters.turn.rx += batch.len() as u64;
        if batch.is_full() {
            self.waiting += batch.len();
        }
    }

    /// Sends a frame out of a port of this worker: into its batch, and on when that is full.
    #[inline(always)]
    pub fn send(&mut self, pool: &mut Pool, slot: usize, frame: Frame) {
        if let Err(full) = self.ports[slot].tx.try_push(frame) {
            self.send_after_transmit(pool, slot, full.element());
        }
    }

    #[inline(never)]
    fn send_after_transmit(&mut self, pool: &mut Pool, slot: usize, frame: Frame) {
        self.transmit(pool, slot);
        if let Err(full) = self.ports[slot].tx.try_push(frame) {
            self.discard(pool, full.element(), DropReason::TxFull);
        }
    }

    /// Sends the first `count` frames of a batch out of a port of this worker.
    #[inline]
    pub fn send_first(&mut self, pool: &mut Pool, slot: usize, batch: &mut Batch, count: usize) {
        let out = &mut self.ports[slot];
        if out.tx.is_empty() && count == batch.len() {
            std::mem::swap(&mut out.tx, batch);
        } else {
            batch.drain(..count).for_each(|frame| self.send(pool, slot, frame));
        }
    }

    /// Gives a port what waits for it. What it does not take stays for the next try.
    fn transmit(&mut self, pool: &mut Pool, slot: usize) {
        let out = &mut self.ports[slot];
        let Some(port) = out.port.as_mut() else {
            let mut lost = std::mem::take(&mut out.tx);
            for frame in lost.drain(..) {
                self.discard(pool, frame, DropReason::PortDown);
            }
            return;
        };
        let mut taken = 0;
        // A full ring gets one kick and a second try; more would be a loop at the kernel's mercy.
        for attempt in 0..2 {
            match port.tx_burst(pool, &mut out.tx) {
                Ok(count) => taken += count,
                Err(error) => out.failed = Some(error),
            }
            if out.tx.is_empty() || out.failed.is_some() || attempt == 1 {
                break;
            }
            if let Err(error) = port.flush(pool) {
                out.failed = Some(error);
            }
        }
        let turn = &mut self.counters.turn;
        match out.role {
            PortRole::Tenant => turn.delivered += taken as u64,
            PortRole::Underlay | PortRole::Trap | PortRole::MacSwap => turn.tx += taken as u64,
        }
    }

    /// End of the turn: everything that waits goes out, ports are kicked, other workers are woken.
    pub fn flush(&mut self, pool: &mut Pool) {
        for slot in 0..self.ports.len() {
            if !self.ports[slot].tx.is_empty() {
                self.transmit(pool, slot);
            }
            let out = &mut self.ports[slot];
            if let Some(port) = out.port.as_mut()
                && let Err(error) = port.flush(pool)
            {
                out.failed = Some(error);
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for peer in self.peers.iter_mut().flatten() {
            peer.stage.backlog(waiting);
            if std::mem::take(&mut peer.handed) {
                peer.waker.wake();
            }
        }
    }

    /// Numbers a frame that another worker will get, as soon as that is known (capability F8): the other
    /// one stays awake while this one still handles the frames before it.
    #[inline]
    pub fn announce(&mut self, pool: &mut Pool, worker: usize, frame: &mut Frame) {
        if let Some(peer) = self.peers.get_mut(worker).and_then(Option::as_mut) {
            let meta = pool.meta_mut(frame);
            meta.source = meta.attachment;
            meta.id = peer.stage.number(meta.source);
            meta.flags.set(Flags::ANNOUNCED);
        }
    }

    /// Passes a frame to another worker, numbered by its source if it is not yet.
    #[inline(never)]
    pub fn hand(&mut self, pool: &mut Pool, worker: usize, mut frame: Frame) {
        let Some(peer) = self.peers.get_mut(worker).and_then(Option::as_mut) else {
            return self.discard(pool, frame, DropReason::PortDown);
        };
        let meta = pool.meta_mut(&mut frame);
        if !meta.flags.has(Flags::ANNOUNCED) {
            meta.source = meta.attachment;
            meta.id = peer.stage.number(meta.source);
        }
        meta.flags.clear(Flags::ANNOUNCED);
        let (source, id) = (meta.source, meta.id);
        peer.handed = true;
        match peer.ring.push(frame) {
            Ok(()) => self.counters.turn.tx += 1,
            Err(frame) => {
                peer.stage.retire(source, id);
                self.discard(pool, frame, DropReason::RingFull);
            }
        }
    }

    /// Drops a frame under one reason.
    #[inline]
    pub fn discard(&mut self, pool: &mut Pool, frame: Frame, reason: DropReason) {
        pool.free(frame);
        self.counters.dropped(reason, 1);
    }

    /// Sends a finished frame to the port in its metadata, wherever that is polled.
    #[inline(always)]
    pub fn dispatch(&mut self, pool: &mut Pool, mut frame: Frame) {
        match self.home(PortId(pool.meta(&frame).egress_port)) {
            Home::Here(slot) => self.send(pool, slot, frame),
            Home::There(worker) => {
                pool.meta_mut(&mut frame).flags.set(Flags::ADMITTED);
                self.hand(pool, worker, frame);
            }
            Home::Nowhere => self.discard(pool, frame, DropReason::PortDown),
        }
    }

    /// Sends a frame that was made here.
    pub fn generate(&mut self, pool: &mut Pool, frame: Frame) {
        self.counters.turn.generated += 1;
        self.dispatch(pool, frame);
    }

    /// Sends the answer that a request has become: the request ends here, the answer begins.
    pub fn answer(&mut self, pool: &mut Pool, frame: Frame) {
        self.counters.dropped(DropReason::Answered, 1);
        self.generate(pool, frame);
    }

    /// The other workers that poll the underlay which a frame came from.
    pub fn sharers(&self, frame: &Frame, pool: &Pool) -> &[usize] {
        self.sharers.get(usize::from(pool.meta(frame).ingress_port)).map_or(&[], Vec::as_slice)
    }

    /// Gives every sharer of the underlay that a frame came from a copy of it to learn from. Without a free
    /// frame they go without: whoever asked asks again.
    #[cold]
    pub fn pass_on(&mut self, pool: &mut Pool, frame: &Frame) {
        let port = pool.meta(frame).ingress_port;
        for at in 0..self.sharers(frame, pool).len() {
            let Some(mut copy) = pool.alloc() else { return };
            if !pool.fill(&mut copy, pool.bytes(frame)) {
                return pool.free(copy);
            }
            let meta = pool.meta_mut(&mut copy);
            meta.ingress_port = port;
            meta.flags.set(Flags::HEARD);
            self.counters.turn.generated += 1;
            self.hand(pool, self.sharers[usize::from(port)][at], copy);
        }
    }

    /// Hands a frame to the trap port, if there is one.
    pub fn trap(&mut self, pool: &mut Pool, mut frame: Frame) {
        match self.trap_port {
            Some(port) => {
                pool.meta_mut(&mut frame).egress_port = port.0;
                self.dispatch(pool, frame);
            }
            None => self.discard(pool, frame, DropReason::TrapNoPort),
        }
    }

    /// Closes a port of this worker; what waited for it is dropped and counted.
    pub fn close(&mut self, pool: &mut Pool, slot: usize) {
        if let Some(port) = self.ports[slot].port.take() {
            port.close(pool);
        }
        self.ports[slot].caps = None;
        self.transmit(pool, slot);
    }

    /// Frames in this worker's own queues.
    pub fn queued(&self) -> usize {
        self.ports.iter().map(|slot| slot.tx.len()).sum()
    }

    /// Counts a turn; from time to time asks the ports for theirs, which may cost a system call.
    #[inline]
    pub fn end_turn(&mut self, now_ns: u64, worked: bool, times: &IdleTimes) {
        if now_ns.saturating_sub(self.ports_counted_ns) >= PORT_COUNTERS_NS {
            self.ports_counted_ns = now_ns;
            self.count_ports();
        }
        self.counters.end_turn(now_ns, worked, times);
    }

    /// Publishes the counters now.
    pub fn publish(&mut self, now_ns: u64, times: &IdleTimes) {
        self.count_ports();
        self.counters.publish(now_ns, times);
    }

    fn count_ports(&mut self) {
        for slot in &self.ports {
            let record = self.counters.ports.get_mut(usize::from(slot.id.0));
            if let (Some(port), Some(record)) = (slot.port.as_ref(), record) {
                let now = port.counters();
                *record = PortRecord {
                    rx_frames: now.rx_frames,
                    rx_bytes: now.rx_bytes,
                    tx_frames: now.tx_frames,
                    tx_bytes: now.tx_bytes,
                    rx_kernel_drops: now.rx_kernel_drops,
                    tx_errors: now.tx_errors,
                    rx_truncated: now.rx_truncated,
                    rx_no_frame: now.rx_no_frame,
                    faults_lost: now.dropped,
                    faults_doubled: now.generated,
                    faults_corrupted: now.corrupted,
                    faults_delayed: now.delayed,
                    held: now.held,
                };
            }
        }
    }

    /// Announces to every port that we are about to sleep.
    pub fn arm(&mut self) {
        self.ports.iter_mut().filter_map(|slot| slot.port.as_mut()).for_each(|port| port.arm());
    }

    /// True if a port has something for us.
    pub fn has_input(&self) -> bool {
        self.ports.iter().filter_map(|slot| slot.port.as_ref()).any(|port| port.has_input())
    }

    /// True if a port cannot wake us.
    #[inline]
    pub fn must_poll(&self) -> bool {
        self.ports.iter().any(|slot| slot.must_poll)
    }
}

/// Whether another worker holds, or has just passed, something for us (capability F8).
pub(crate) fn awake_hint(upstreams: &mut [Upstream], now_ns: u64) -> AwakeHint {
    let mut latest = AwakeHint::MayIdle;
    for upstream in upstreams {
        let hint = upstream.awake.hint(now_ns, upstream.ring.len());
        if let AwakeHint::StayAwake { until_ns } = hint {
            latest = match latest {
                AwakeHint::StayAwake { until_ns: other } if other > until_ns => latest,
                _ => AwakeHint::StayAwake { until_ns },
            };
        }
    }
    latest
}
