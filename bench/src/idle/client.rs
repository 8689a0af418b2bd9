//! The client of [`super`]: sends at a pace, receives all the time, and knows when it was interrupted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::frame::{BATCH, Batch, Pool, Slab, tsc};
use engine::port::Port;
use hdrhistogram::Histogram;

use super::Load;
use crate::{Outcome, traffic};

/// A kind of frame that nobody else sends: IEEE 802 local experimental.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Where the time stamp and the place in the burst are.
const STAMP_AT: usize = 16;
const PLACE_AT: usize = 24;
/// The client looks at the clock between any two system calls. A pause longer than this is not its own doing:
/// its processor was taken away. What was on its way then says nothing about the worker.
const INTERRUPTED_US: f64 = 250.0;

/// Sends at a pace, receives all the time.
pub(super) struct Client {
    port: Box<dyn Port>,
    pool: Pool,
    template: [u8; 64],
    ticks_per_us: f64,
    /// When the clock was last looked at, and when the last interruption ended.
    looked: u64,
    interrupted: u64,
    trips: Trips,
}

/// What came back.
pub(super) struct Trips {
    /// Packets sent.
    pub sent: u64,
    /// Packets that were on their way while the client was interrupted: not among the others.
    pub discarded: u64,
    /// Round trips of first packets of bursts, in nanoseconds.
    pub heads: Histogram<u64>,
    /// Round trips of the other packets.
    pub others: Histogram<u64>,
}

impl Client {
    pub fn new(port: Box<dyn Port>, slab: &Arc<Slab>, ticks_per_us: f64) -> Outcome<Client> {
        // Up to ten seconds with three digits.
        let histogram =
            || Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(|error| error.to_string());
        let mut template = [0; 64];
        template[..6].copy_from_slice(&traffic::vtep_mac(2).0);
        template[6..12].copy_from_slice(&traffic::vtep_mac(1).0);
        template[12..14].copy_from_slice(&ETHERTYPE);
        let trips = Trips { sent: 0, discarded: 0, heads: histogram()?, others: histogram()? };
        let pool = Pool::new(slab);
        Ok(Client { port, pool, template, ticks_per_us, looked: tsc(), interrupted: 0, trips })
    }

    pub fn offer(&mut self, load: Load, length: Duration) -> Outcome {
        let end = Instant::now() + length;
        if load.bursts_per_s == 0 {
            std::thread::sleep(length);
            return Ok(());
        }
        let gap = (1e6 * self.ticks_per_us / load.bursts_per_s as f64) as u64;
        self.looked = tsc();
        let mut next = self.looked;
        let mut looks = 0_u32;
        loop {
            let now = self.look();
            if now >= next {
                self.send(load.burst)?;
                // What could not be sent in time is not made up for.
                next = (next + gap).max(now);
            }
            self.receive()?;
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(256) && Instant::now() > end {
                return Ok(());
            }
        }
    }

    /// Reads the clock.
    fn look(&mut self) -> u64 {
        let now = tsc();
        if now.saturating_sub(self.looked) as f64 > INTERRUPTED_US * self.ticks_per_us {
            self.interrupted = now;
        }
        self.looked = now;
        now
    }

    fn send(&mut self, burst: usize) -> Outcome {
        let mut place = 0_u64;
        while (place as usize) < burst {
            let mut batch = Batch::new();
            while batch.len() < BATCH && (place as usize) < burst {
                let Some(mut frame) = self.pool.alloc() else { break };
                let stamp = self.look();
                self.template[STAMP_AT..PLACE_AT].copy_from_slice(&stamp.to_le_bytes());
                self.template[PLACE_AT..PLACE_AT + 8].copy_from_slice(&place.to_le_bytes());
                self.pool.fill(&mut frame, &self.template);
                batch.push(frame);
                place += 1;
            }
            let offered = batch.len();
            let sent = self.port.tx_burst(&mut self.pool, &mut batch).map_err(|error| error.to_string())?;
            self.trips.sent += sent as u64;
            self.pool.free_batch(&mut batch);
            if offered == 0 || sent < offered {
                break;
            }
        }
        self.port.flush(&mut self.pool).map_err(|error| error.to_string())
    }

    fn receive(&mut self) -> Outcome {
        let mut batch = Batch::new();
        self.port.rx_burst(&mut self.pool, &mut batch).map_err(|error| error.to_string())?;
        if batch.is_empty() {
            return Ok(());
        }
        let now = self.look();
        for frame in &batch {
            let bytes = self.pool.bytes(frame);
            let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
            if bytes.get(12..14) != Some(&ETHERTYPE) {
                continue;
            }
            if let (Some(stamp), Some(place)) = (word(STAMP_AT), word(PLACE_AT)) {
                if stamp < self.interrupted {
                    self.trips.discarded += 1;
                    continue;
                }
                let ns = now.saturating_sub(stamp) as f64 * 1e3 / self.ticks_per_us;
                let trips = if place == 0 { &mut self.trips.heads } else { &mut self.trips.others };
                trips.saturating_record(ns as u64);
            }
        }
        self.pool.free_batch(&mut batch);
        Ok(())
    }

    pub fn forget(&mut self) {
        self.trips.heads.clear();
        self.trips.others.clear();
        (self.trips.sent, self.trips.discarded) = (0, 0);
    }

    pub fn close(mut self) -> Trips {
        self.port.close(&mut self.pool);
        self.trips
    }
}

/// Ticks of the time-stamp counter per microsecond.
pub(super) fn ticks_per_us() -> f64 {
    let (began, first) = (Instant::now(), tsc());
    std::thread::sleep(Duration::from_millis(100));
    (tsc() - first) as f64 / began.elapsed().as_secs_f64() / 1e6
}
