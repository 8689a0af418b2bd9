//! Capture files: a port that replays one and records into another.
//!
//! The format is the classic one (draft-ietf-opsawg-pcap): read in both byte orders with microseconds or
//! nanoseconds, written in this machine's byte order with nanoseconds. A file to replay is read whole when
//! the port is opened, so that a damaged one is refused then, with the byte that is wrong, and so that
//! replaying costs no system call.
//!
//! Invariants: a replayed frame holds exactly the captured bytes; a recorded file never grows beyond its
//! limit and ends after a whole packet.

mod file;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Instant;

use frame::{BATCH, Batch, FRAME_BYTES_MAX, Frame, JUMBO_BYTES, Pool};

pub(crate) use file::wall_clock_ns;
pub use file::{Capture, FILE_BYTES_MAX, LinkType, Packet, PcapError, Writer};

use crate::{OpenError, Port, PortCaps, PortCounters, PortError, PortKind};

/// Which files to replay and to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcapSpec {
    /// File whose packets arrive. None: nothing arrives.
    pub replay: Option<PathBuf>,
    /// Times to replay it; 0 = without end.
    pub loops: u64,
    /// Keep the distances in time of the file; otherwise as fast as they are asked for.
    pub paced: bool,
    /// File that sent frames are written to, an existing one is overwritten. None: they are counted and freed.
    pub record: Option<PathBuf>,
    /// Stop recording before the file grows beyond this, bytes.
    pub record_bytes_max: u64,
}

/// Replays one capture file and records into another.
#[derive(Debug)]
pub struct PcapPort {
    replay: Option<Replay>,
    record: Option<(PathBuf, Writer)>,
    counters: PortCounters,
}

/// Longest packet that can be replayed: what a jumbo chunk holds behind its headroom.
const PACKET_BYTES_MAX: usize = JUMBO_BYTES - frame::HEADROOM_BYTES;

impl PcapPort {
    /// Reads the file to replay, begins the file to record.
    pub fn open(spec: &PcapSpec) -> Result<PcapPort, OpenError> {
        let replay = spec.replay.as_ref().map(|path| {
            let capture = Capture::open(path, PACKET_BYTES_MAX)
                .map_err(|source| OpenError::Pcap { path: path.clone(), source })?;
            Ok::<_, OpenError>(Replay::new(capture, spec))
        });
        let record = spec.record.as_ref().map(|path| {
            let writer = Writer::create(path, LinkType::Ethernet, spec.record_bytes_max)
                .map_err(|source| OpenError::Pcap { path: path.clone(), source: source.into() })?;
            Ok::<_, OpenError>((path.clone(), writer))
        });
        Ok(PcapPort {
            replay: replay.transpose()?,
            record: record.transpose()?,
            counters: PortCounters::default(),
        })
    }
}

impl Port for PcapPort {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        let Some(replay) = &mut self.replay else { return Ok(0) };
        let first = out.len();
        let due = replay.due(BATCH - first);
        for _ in 0..due {
            let Some(packet) = replay.packet() else { break };
            let Some(frame) = allocate(pool, packet) else {
                self.counters.rx_no_frame += 1;
                break;
            };
            out.push(frame);
            replay.advance();
        }
        let count = out.len() - first;
        self.counters.rx_frames += count as u64;
        self.counters.rx_bytes += pool.bytes_in(&out[first..]);
        Ok(count)
    }

    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        let count = batch.len();
        if let Some((path, writer)) = &mut self.record {
            let time_ns = wall_clock_ns();
            for frame in batch.iter() {
                let written = writer.write(time_ns, pool.bytes(frame)).map_err(|source| PortError::Io {
                    name: path.display().to_string(),
                    what: "writing a packet",
                    source,
                })?;
                self.counters.tx_errors += u64::from(!written);
            }
        }
        self.counters.tx_frames += count as u64;
        self.counters.tx_bytes += pool.bytes_in(batch);
        pool.free_batch(batch);
        Ok(count)
    }

    fn flush(&mut self, _pool: &mut Pool) -> Result<(), PortError> {
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// True until everything was replayed, also while the next packet is not yet due: nothing would wake
    /// the worker for it.
    fn has_input(&self) -> bool {
        self.replay.as_ref().is_some_and(|replay| replay.packet().is_some())
    }

    fn caps(&self) -> PortCaps {
        PortCaps {
            kind: PortKind::Ethernet,
            mtu_bytes: FRAME_BYTES_MAX as u32,
            mac: None,
            tx_partial_csum: false,
            tx_gso: false,
            rx_gso: false,
        }
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn close(mut self: Box<Self>, _pool: &mut Pool) {
        if let Some((path, writer)) = &mut self.record
            && let Err(error) = writer.flush()
        {
            tracing::warn!(file = %path.display(), %error, "the end of the capture file is lost");
        }
    }
}

/// A frame with the bytes of `packet`; `None` when the pool has none that is large enough.
fn allocate(pool: &mut Pool, packet: &[u8]) -> Option<Frame> {
    let mut frame = if packet.len() > FRAME_BYTES_MAX { pool.alloc_jumbo() } else { pool.alloc() }?;
    // INVARIANT: no packet is longer than PACKET_BYTES_MAX; a shorter fill would leave the frame empty.
    let filled = pool.fill(&mut frame, packet);
    debug_assert!(filled);
    Some(frame)
}

/// Where in the capture we are.
#[derive(Debug)]
struct Replay {
    capture: Capture,
    next: usize,
    /// Rounds still to come after this one; `None` = without end.
    rounds_left: Option<u64>,
    paced: bool,
    /// When the first packet of this round was looked for.
    began: Option<Instant>,
}

impl Replay {
    fn new(capture: Capture, spec: &PcapSpec) -> Replay {
        let rounds_left = (spec.loops > 0).then(|| spec.loops - 1);
        Replay { capture, next: 0, rounds_left, paced: spec.paced, began: None }
    }

    /// The next packet, unless everything was replayed.
    fn packet(&self) -> Option<&[u8]> {
        self.capture.packet(self.next).map(|packet| packet.bytes)
    }

    /// How many packets, at most `most`, may be handed out now; `packet` still decides whether they exist.
    fn due(&mut self, most: usize) -> usize {
        if !self.paced {
            return most;
        }
        let elapsed_ns = self.began.get_or_insert_with(Instant::now).elapsed().as_nanos() as u64;
        (self.next..self.next + most)
            .take_while(|&at| self.capture.packet(at).is_some_and(|packet| packet.time_ns <= elapsed_ns))
            .count()
    }

    fn advance(&mut self) {
        self.next += 1;
        if self.capture.packet(self.next).is_some() {
            return;
        }
        match &mut self.rounds_left {
            Some(0) => return,
            Some(rounds) => *rounds -= 1,
            None => {}
        }
        self.next = 0;
        self.began = None;
    }
}
