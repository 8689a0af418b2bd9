//! What a node is made of from start to stop: its frames, workers and ports. Changing any of these means a
//! restart; everything else lives in a [`crate::Snapshot`] and changes while traffic flows.

use frame::SlabConfig;
use overlay::PortId;
use port::PortSpec;

use crate::serve::ServePlan;

/// Most workers of one node: the mesh of rings between them grows with the square.
pub const WORKERS_MAX: usize = 64;

/// Room of the ring from one worker to another, frames.
pub const RING_FRAMES: usize = 1024;

/// The fixed parts of a node.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Packet memory.
    pub slab: SlabConfig,
    /// One pinned thread each, at most [`WORKERS_MAX`].
    pub workers: Vec<WorkerPlan>,
    /// The ports, each polled by one worker. Several queues of one interface are several entries with the
    /// same [`PortId`].
    pub ports: Vec<PortPlan>,
    /// Where frames go that a rule traps.
    pub trap_port: Option<PortId>,
    /// Highest volume number plus one that a snapshot may ever name.
    pub volumes_max: u32,
    /// What serving volumes needs, if the node is to serve any.
    pub serve: Option<ServePlan>,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerPlan {
    /// Processor to pin to; `None` leaves the thread to the scheduler.
    pub cpu: Option<usize>,
}

/// One port, or one queue of it.
#[derive(Clone, Debug)]
pub struct PortPlan {
    /// Its number, shared by all queues of one interface.
    pub id: PortId,
    /// Its name in the configuration.
    pub name: String,
    /// What the pipeline does with its frames.
    pub role: PortRole,
    /// Index of the worker that polls it.
    pub worker: usize,
    /// What to open.
    pub spec: PortSpec,
}

/// What the pipeline does with the frames of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// Tenants' frames: anti-spoof, lookup, throttle, tunnel.
    Tenant,
    /// Tunnels: check, decapsulate, throttle, deliver.
    Underlay,
    /// Takes trapped frames; what it sends back is dropped.
    Trap,
    /// Swaps the MAC addresses and sends the frame back: the loopback of a port, as testpmd's macswap.
    MacSwap,
}

/// Why a plan cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No worker, or too many.
    #[error("{0} workers: between 1 and {WORKERS_MAX} are possible")]
    Workers(usize),
    /// A port names a worker that does not exist.
    #[error("port {port} names worker {worker}, but there are only {workers}")]
    NoSuchWorker {
        /// The port.
        port: String,
        /// The worker that it names.
        worker: usize,
        /// How many there are.
        workers: usize,
    },
    /// Two ports on one worker have the same number.
    #[error("port {port} appears twice on worker {worker}; give each queue of an interface its own worker")]
    SamePort {
        /// The port.
        port: String,
        /// The worker.
        worker: usize,
    },
    /// Packet memory cannot be had.
    #[error(transparent)]
    Slab(#[from] frame::SlabError),
    /// A thread or descriptor cannot be had.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl Plan {
    /// Checks what the types cannot: counts and references.
    pub fn check(&self) -> Result<(), PlanError> {
        let workers = self.workers.len();
        if workers == 0 || workers > WORKERS_MAX {
            return Err(PlanError::Workers(workers));
        }
        for (index, port) in self.ports.iter().enumerate() {
            if port.worker >= workers {
                let (name, worker) = (port.name.clone(), port.worker);
                return Err(PlanError::NoSuchWorker { port: name, worker, workers });
            }
            let same = |other: &PortPlan| other.id == port.id && other.worker == port.worker;
            if self.ports[..index].iter().any(same) {
                return Err(PlanError::SamePort { port: port.name.clone(), worker: port.worker });
            }
        }
        Ok(())
    }

    /// The workers that own volumes: those that poll an underlay, or all when none does. Volume `v`
    /// belongs to number `v % len` of them.
    pub fn volume_owners(&self) -> Vec<usize> {
        let polls_underlay = |worker: &usize| {
            self.ports.iter().any(|port| port.role == PortRole::Underlay && port.worker == *worker)
        };
        let all = 0..self.workers.len();
        let owners: Vec<usize> = all.clone().filter(polls_underlay).collect();
        if owners.is_empty() { all.collect() } else { owners }
    }
}
