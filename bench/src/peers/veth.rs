//! Over a pair of veths: a generator on one end and one processor, the side measured on the other of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::PortRole;
use engine::frame::{BATCH, Batch, DropReason, Pool, Slab, SlabConfig};
use engine::port::packet::PacketSpec;
use engine::port::xdp::XdpSpec;
use engine::port::{Port, PortSpec};

use crate::Outcome;
use crate::cell::Cell;
use crate::cpu::Ticks;
use crate::report::Row;
use crate::space::Space;
use crate::traffic;

use super::testpmd::Testpmd;
use super::{Pace, Sample, row as peer_row};

/// The kernel interface compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AF_XDP.
    Xdp,
    /// AF_PACKET.
    Packet,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Xdp, Kind::Packet];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Xdp => "af_xdp",
            Kind::Packet => "af_packet",
        }
    }

    /// Our port on `interface`.
    pub fn spec(self, interface: &str) -> PortSpec {
        match self {
            Kind::Xdp => PortSpec::Xdp(XdpSpec::new(interface)),
            Kind::Packet => PortSpec::Packet(PacketSpec {
                interface: interface.to_owned(),
                ring_frames: 512,
                fanout_group: None,
            }),
        }
    }

    fn device(self, interface: &str) -> String {
        match self {
            Kind::Xdp => format!("net_af_xdp0,iface={interface},start_queue=0,queue_count=1"),
            Kind::Packet => {
                format!("net_af_packet0,iface={interface},blocksz=4096,framesz=2048,framecnt=512,qpairs=1")
            }
        }
    }
}

/// Macswap over a veth pair, ours beside testpmd's.
pub(super) fn row(space: &Space, pace: Pace, kind: Kind) -> Outcome<(Row, String)> {
    space.veth("bench0", "bench1")?;
    let pairs = pairs(pace, kind);
    space.remove("bench0")?;
    let (pairs, softirq) = pairs?;
    let peer = format!("testpmd macswap on net_{}", kind.name());
    let note = format!("{}: elapsed time per packet; soft interrupts {softirq}", kind.name());
    let mut row = peer_row("macswap", &format!("{} over veth", kind.name()), 0, 64, &peer, &pairs);
    row.frame_bytes = 64;
    Ok((row, note))
}

fn pairs(pace: Pace, kind: Kind) -> Outcome<(Vec<(f64, f64)>, String)> {
    let mut shares = (Vec::new(), Vec::new());
    let ours = |interval: Duration| {
        let ports = vec![(1, PortRole::MacSwap, kind.spec("bench1"))];
        let (sample, softirq) = measure(Cell { ports, ..Cell::default() }, 64, interval)?;
        shares.0.push(softirq);
        Ok(sample.elapsed_ns())
    };
    let theirs = |interval: Duration| {
        let mut peer = Testpmd::start(&[kind.device("bench1")], "chained", "macswap")?;
        let generator = Generator::start("bench0", 64)?;
        let (sample, softirq) = with_softirq(|| peer.measure(interval))?;
        generator.stop()?;
        shares.1.push(softirq);
        Ok(sample.elapsed_ns())
    };
    let pairs = pace.interleave(ours, theirs)?;
    let percent = |shares: &[f64]| format!("{:.0} %", 100.0 * crate::report::median(shares));
    Ok((pairs, format!("{} with ours, {} with testpmd", percent(&shares.0), percent(&shares.1))))
}

/// Measures a cell that polls `bench1` while a generator floods `bench0`; returns also the share of soft
/// interrupts.
pub(crate) fn measure(cell: Cell, frame_bytes: usize, interval: Duration) -> Outcome<(Sample, f64)> {
    let running = cell.start()?;
    let generator = Generator::start("bench0", frame_bytes)?;
    let (measured, softirq) = with_softirq(|| running.measure(interval))?;
    generator.stop()?;
    running.stop(&[DropReason::TxFull])?;
    Ok((Sample { frames: measured.frames, cpu: measured.cpu, elapsed: measured.elapsed }, softirq))
}

fn with_softirq<T>(measure: impl FnOnce() -> Outcome<T>) -> Outcome<(T, f64)> {
    let before = Ticks::each()?;
    let value = measure()?;
    let now = Ticks::each()?;
    let shares: Vec<f64> = now.iter().zip(&before).map(|(now, before)| now.shares_since(before).1).collect();
    Ok((value, shares.iter().sum::<f64>() / shares.len().max(1) as f64))
}

/// Sends 64 flows as fast as it can from the first processor; throws away what comes back.
struct Generator {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcome>,
}

impl Generator {
    fn start(interface: &str, frame_bytes: usize) -> Outcome<Generator> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let (spec, frames) = (Kind::Packet.spec(interface), traffic::trace(64, 64, frame_bytes)?);
        let slab = Slab::new(SlabConfig { frames: 2048, jumbo_frames: 0, hugepages: false })
            .map_err(|error| error.to_string())?;
        let port = engine::port::open(&spec, &slab).map_err(|error| error.to_string())?;
        let thread = std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
            flood(port, Pool::new(&slab), &frames, &told)
        });
        Ok(Generator { stop, thread })
    }

    fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the generator panicked".to_owned())?
    }
}

fn flood(mut port: Box<dyn Port>, mut pool: Pool, frames: &[Vec<u8>], stop: &AtomicBool) -> Outcome {
    let mut templates = frames.iter().cycle();
    let mut batch = Batch::new();
    let failed = |error: engine::port::PortError| error.to_string();
    let until = Instant::now() + Duration::from_secs(60);
    while !stop.load(Ordering::Relaxed) && Instant::now() < until {
        while batch.len() < BATCH {
            let (Some(mut frame), Some(bytes)) = (pool.alloc(), templates.next()) else { break };
            pool.fill(&mut frame, bytes);
            batch.push(frame);
        }
        port.tx_burst(&mut pool, &mut batch).map_err(failed)?;
        port.flush(&mut pool).map_err(failed)?;
        let mut back = Batch::new();
        port.rx_burst(&mut pool, &mut back).map_err(failed)?;
        pool.free_batch(&mut back);
    }
    pool.free_batch(&mut batch);
    port.close(&mut pool);
    Ok(())
}
