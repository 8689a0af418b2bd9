//! One measurement: a real node with one pinned worker that never sleeps, and what its counters say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::frame::{Backing, DropReason, SlabConfig};
use engine::idle::IdleParams;
use engine::overlay::{Config, Tables};
use engine::port::PortSpec;
use engine::port::pcap::PcapSpec;
use engine::throttle::Limits;
use engine::{Node, Plan, PortPlan, PortRole, PortState, Snapshot, Throttle, WorkerPlan};

use crate::Outcome;
use crate::cpu::Thread;
use crate::traffic;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// Ports and what becomes of their frames, in the order of their numbers from 1.
    pub ports: Vec<(u16, PortRole, PortSpec)>,
    /// Who is who.
    pub config: Config,
    /// Limits of every volume that `config` names, if they are metered.
    pub limits: Option<(u32, Limits)>,
    /// When the worker sleeps; by default never.
    pub idle: Option<IdleParams>,
}

const SLICE: Duration = Duration::from_millis(1);

/// A running cell.
pub struct Running {
    node: Node,
    worker: Thread,
    ports: usize,
}

/// What one interval showed.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Frames taken from ports.
    pub frames: u64,
    /// Time of the worker on its processor.
    pub cpu: Duration,
    /// Length of the interval.
    pub elapsed: Duration,
    /// Elapsed time per frame in the fastest tenth of many short slices: what the code takes when nobody
    /// else uses the processor and its caches.
    pub undisturbed_ns: f64,
}

impl Measured {
    /// Time of the processor per frame.
    pub fn ns_per_packet(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.frames.max(1) as f64
    }
}

/// The processor for what is measured: the last one, because interrupts like the first.
pub fn worker_cpu() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) - 1
}

impl Cell {
    /// Starts the node and waits until its ports are open and its limits are set.
    pub fn start(self) -> Outcome<Running> {
        let tables = Tables::build(&self.config, None).map_err(|error| error.to_string())?;
        let volumes_max = self.limits.map_or(0, |(volumes, _)| volumes);
        let limits = self.limits.map(|(volumes, limits)| (0..volumes).map(|v| (v, limits)).collect());
        let ports = self.ports.len();
        let plan = Plan {
            slab: SlabConfig { frames: 8192, jumbo_frames: 16, hugepages: true },
            workers: vec![WorkerPlan { cpu: Some(worker_cpu()) }],
            ports: self
                .ports
                .into_iter()
                .map(|(id, role, spec)| PortPlan {
                    id: engine::overlay::PortId(id),
                    name: format!("port {id}"),
                    role,
                    worker: 0,
                    spec,
                })
                .collect(),
            trap_port: None,
            volumes_max,
            serve: None,
        };
        let snapshot = Snapshot {
            version: 1,
            tables: Arc::new(tables),
            throttle: Throttle { volumes: limits.unwrap_or_default(), ..Throttle::default() },
            served: Throttle::default(),
            idle: self.idle.unwrap_or_else(IdleParams::pure_spin),
        };
        let node = Node::start(plan, snapshot).map_err(|error| error.to_string())?;
        if let Backing::Normal { why } = node.backing() {
            eprintln!("frames live in ordinary pages, which costs time: {why}");
        }
        wait_until_up(&node)?;
        // Now that it has taken up ports and limits it has its name, too.
        let worker = Thread::find(std::process::id(), "tidegate-w0")?;
        Ok(Running { node, worker, ports })
    }
}

fn wait_until_up(node: &Node) -> Outcome {
    let until = Instant::now() + Duration::from_secs(20);
    while !node.port_states().iter().all(|state| matches!(state, PortState::Up { .. })) {
        if Instant::now() > until {
            return Err(format!("ports did not come up: {:?}", node.port_states()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if !node.wait_running(1, Duration::from_secs(20)) {
        return Err("the worker did not take up its limits within 20 s".to_owned());
    }
    Ok(())
}

impl Running {
    /// Measures for `interval`, after a quarter of it to warm up.
    pub fn measure(&self, interval: Duration) -> Outcome<Measured> {
        std::thread::sleep(interval / 4);
        let (began, before, cpu_before) = (Instant::now(), self.counters()?, self.worker.cpu()?);
        let mut slices = Vec::new();
        let mut last = before.clone();
        while began.elapsed() < interval {
            std::thread::sleep(SLICE);
            let now = self.counters()?;
            let (frames, ns) = (now.turn.rx - last.turn.rx, now.time.working_ns - last.time.working_ns);
            if frames > 0 {
                slices.push(ns as f64 / frames as f64);
            }
            last = now;
        }
        let (cpu, now) = (self.worker.cpu()?, self.counters()?);
        slices.sort_unstable_by(f64::total_cmp);
        Ok(Measured {
            frames: now.turn.rx - before.turn.rx,
            cpu: cpu - cpu_before,
            elapsed: began.elapsed(),
            undisturbed_ns: slices.get(slices.len() / 10).copied().unwrap_or(0.0),
        })
    }

    /// Time that the worker has run on its processor.
    pub fn cpu(&self) -> Outcome<Duration> {
        self.worker.cpu()
    }

    /// The worker's record.
    pub fn counters(&self) -> Outcome<engine::counters::CountersSnapshot> {
        // A worker that lost its processor while it was writing them writes on when it gets it back.
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match self.node.counters().pop() {
                Some(counters) => return Ok(counters),
                None if Instant::now() > until => {
                    return Err("the worker's counters cannot be read".to_owned());
                }
                None => std::thread::yield_now(),
            }
        }
    }

    /// Stops the node. An error if frames were lost other than `allowed`, or their balance is wrong: what
    /// was measured then is not what was meant.
    pub fn stop(self, allowed: &[DropReason]) -> Outcome {
        let ports = self.ports;
        let last = self.node.stop().pop().ok_or("no counters")?;
        if !last.turn.balanced() {
            return Err(format!("frames are missing over {ports} ports: {:?}", last.turn));
        }
        // At the start some wait for a neighbour; at the end some are on their way.
        let usual =
            [DropReason::Shutdown, DropReason::Answered, DropReason::PortDown, DropReason::Unresolved];
        let lost: Vec<_> = DropReason::ALL
            .iter()
            .filter(|reason| !usual.contains(reason) && !allowed.contains(reason))
            .filter(|&&reason| last.drops[reason as usize] > 0)
            .map(|&reason| format!("{} {reason:?}", last.drops[reason as usize]))
            .collect();
        if lost.is_empty() { Ok(()) } else { Err(format!("frames were dropped: {}", lost.join(", "))) }
    }
}

/// A null port that hands out `frames` with their first 128 bytes.
pub fn source(frames: Vec<Vec<u8>>) -> PortSpec {
    let longest = frames.iter().map(Vec::len).max().unwrap_or(0);
    PortSpec::Null(engine::port::null::NullSpec { templates: frames, copy_bytes: longest.min(128) })
}

/// A port that swallows everything and cannot take super-segments: each frame leaves by itself, as at a
/// peer.
pub fn sink() -> PortSpec {
    PortSpec::Pcap(PcapSpec { replay: None, loops: 1, paced: false, record: None, record_bytes_max: 0 })
}

/// The underlay of a client's node: swallows everything, after it was told its neighbour's address.
pub fn underlay(folder: &Path) -> Outcome<PortSpec> {
    Ok(once(traffic::write_pcap(&folder.join("introduction.pcap"), &[traffic::introduction()?])?))
}

/// Hands out the frames of a capture file once, and swallows everything.
pub fn once(replay: PathBuf) -> PortSpec {
    PortSpec::Pcap(PcapSpec {
        replay: Some(replay),
        loops: 1,
        paced: false,
        record: None,
        record_bytes_max: 0,
    })
}
