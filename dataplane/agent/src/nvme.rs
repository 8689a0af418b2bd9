//! NVMe hosts: the way up to Connect (decision D6), and the discovery controller.
//!
//! A host talks to a task here until it has sent Connect; then its socket moves to the worker that owns the
//! subsystem's volume, and nothing of it stays. A host that wants discovery stays: that controller has no
//! volume and does not belong on a worker.
//!
//! Invariants: what is held for hosts that want discovery is bounded by [`DISCOVERY_HOSTS_MAX`] and
//! [`DISCOVERY_REGIONS`]; the lock of the discovery subsystem is held between two awaits only, on the one
//! thread of the agent.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use engine::block::{Io, Lba, Op, VolumeId};
use engine::frame::{IoBuffer, IoPool, IoSlab, IoSlabConfig, SlabError};
use engine::session::Sink;
use engine::session::nvme_tcp::{
    Attach, Next, Queue, QueueError, Setup, SetupError, Slices, Subsystem, SubsystemLimits,
};
use engine::wire::nvme::fabrics::DISCOVERY_NQN;
use engine::{Arrival, Guest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::debug;

use crate::daemon::Daemon;
use crate::exports::Table;
use crate::listen::{CHUNK_BYTES, Client, HANDSHAKE_TIME};

/// Hosts that are attached to the discovery controller, at most.
const DISCOVERY_HOSTS_MAX: u16 = 256;
/// Payload memory for their logs, in MiB.
const DISCOVERY_REGIONS: u32 = 4;
/// Time between two looks at whether a host that says nothing still lives.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two looks at whether there is memory for what a host asks.
const AGAIN: Duration = Duration::from_millis(10);

/// What NVMe hosts find here.
pub(crate) struct Offers {
    table: Arc<ArcSwap<Table>>,
    discovery: Mutex<Discovery>,
    started: Instant,
}

struct Discovery {
    subsystem: Subsystem,
    /// Of the table that it tells of.
    generation: u64,
    pool: IoPool,
}

/// Why a host did not come to a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Protocol(#[from] SetupError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("it left")]
    Left,
    #[error("it took longer than {} s", HANDSHAKE_TIME.as_secs())]
    Slow,
    #[error("there is no subsystem {0}")]
    Unknown(String),
}

/// Nothing is read or written through the discovery controller: it has no I/O queues.
struct Nowhere;

impl Sink for Nowhere {
    fn admit(&mut self, _: VolumeId, _: Op, _: Lba, _: u32) -> bool {
        false
    }

    fn withdraw(&mut self, _: VolumeId) {}

    fn submit(&mut self, _: Io<IoBuffer>, _: u64) {
        debug_assert!(false, "the discovery controller has no I/O queues");
    }
}

impl Offers {
    /// Offers what `table` says at any time.
    pub fn new(table: Arc<ArcSwap<Table>>) -> Result<Offers, SlabError> {
        let slab = IoSlab::new(IoSlabConfig { regions: DISCOVERY_REGIONS, hugepages: false })?;
        let pool = IoPool::new(&slab, DISCOVERY_REGIONS);
        let limits = SubsystemLimits {
            controllers_max: DISCOVERY_HOSTS_MAX,
            queues_max: 1,
            ..SubsystemLimits::default()
        };
        let now = table.load();
        let subsystem = Subsystem::discovery(now.listed(), limits);
        let discovery = Discovery { subsystem, generation: now.generation, pool };
        drop(now);
        Ok(Offers { table, discovery: Mutex::new(discovery), started: Instant::now() })
    }

    fn discovery(&self) -> MutexGuard<'_, Discovery> {
        self.discovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Serves a host on a queue of the discovery controller until it goes.
    async fn discover(
        &self,
        mut socket: TcpStream,
        attach: Attach,
        local: SocketAddr,
        rest: Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut queue = {
            let discovery = &mut *self.discovery();
            Queue::new(attach, local, &mut discovery.subsystem, self.now_ns())
        };
        let talked = self.talk(&mut socket, &mut queue, rest).await;
        let discovery = &mut *self.discovery();
        queue.abort(&mut discovery.pool);
        queue.leave(&mut discovery.subsystem);
        talked
    }

    async fn talk(
        &self,
        socket: &mut TcpStream,
        queue: &mut Queue,
        mut received: Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut scratch = vec![0; CHUNK_BYTES];
        // When it was asked last for what it is being sent: memory that others may wait for is held until that is taken.
        let mut asked = Instant::now();
        loop {
            let answer = self.turn(queue, &mut received)?;
            if !answer.is_empty() {
                let left = HANDSHAKE_TIME.saturating_sub(asked.elapsed());
                let sent = tokio::time::timeout(left, socket.write_all(&answer)).await;
                sent.map_err(|_elapsed| Refusal::Slow)??;
                continue;
            }
            if queue.is_finished() {
                return queue.over().map_or(Ok(()), |over| Err(over.into()));
            }
            asked = Instant::now();
            // What is not taken waits for memory, and more of it in the socket.
            if received.len() >= CHUNK_BYTES {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            if let Ok(count) = tokio::time::timeout(LOOK, socket.read(&mut scratch)).await {
                match count? {
                    0 => return Err(Refusal::Left),
                    count => received.extend_from_slice(&scratch[..count]),
                }
            }
        }
    }

    /// Takes what was received; returns what is to be sent next, a piece of it.
    fn turn(&self, queue: &mut Queue, received: &mut Vec<u8>) -> Result<Vec<u8>, QueueError> {
        let now_ns = self.now_ns();
        let Discovery { subsystem, generation, pool } = &mut *self.discovery();
        let table = self.table.load();
        if std::mem::replace(generation, table.generation) != table.generation {
            subsystem.list(table.listed());
        }
        subsystem.expire(now_ns);
        let taken = queue.process_bytes(received, pool, now_ns);
        received.drain(..taken);
        queue.step(subsystem, pool, &mut Nowhere, now_ns);
        queue.expire(subsystem, now_ns)?;
        let mut slices = Slices::new();
        queue.dispatch_bytes(pool, &mut slices);
        let mut answer: Vec<u8> = Vec::new();
        for slice in &slices {
            answer.extend_from_slice(&slice[..slice.len().min(CHUNK_BYTES - answer.len())]);
        }
        drop(slices);
        queue.sent(answer.len(), pool);
        Ok(answer)
    }
}

/// The way up to Connect, and to the worker.
pub(crate) async fn greet(client: Client, daemon: Weak<Daemon>, offers: Arc<Offers>) -> Result<(), Refusal> {
    let Client::Tcp(mut socket) = client else { return Err(Refusal::Left) };
    let mut setup = Setup::new();
    let talked = tokio::time::timeout(HANDSHAKE_TIME, set_up(&mut socket, &mut setup)).await;
    let rest = talked.map_err(|_elapsed| Refusal::Slow)??;
    let attach = setup.attach().ok_or(Refusal::Left)?;
    let local = socket.local_addr()?;
    if attach.subsystem() == DISCOVERY_NQN {
        return offers.discover(socket, *attach, local, rest).await;
    }
    let Some(volume) = offers.table.load().by_nqn(attach.subsystem()) else {
        setup.refuse(&attach);
        let sent = tokio::time::timeout(HANDSHAKE_TIME, send(&mut socket, &mut setup)).await;
        sent.map_err(|_elapsed| Refusal::Slow)??;
        return Err(Refusal::Unknown(attach.subsystem().to_owned()));
    };
    debug!(host = attach.host(), subsystem = attach.subsystem(), "an NVMe host has come");
    let stream = Client::Tcp(socket).into_stream()?;
    let daemon = daemon.upgrade().ok_or(Refusal::Left)?;
    daemon.connect(Arrival { stream, guest: Guest::Nvme { volume, attach, local }, rest });
    Ok(())
}

/// Speaks until the host has sent Connect. Returns what it has said beyond that.
async fn set_up(socket: &mut TcpStream, setup: &mut Setup) -> Result<Vec<u8>, Refusal> {
    let mut received = Vec::new();
    loop {
        let taken = setup.process_bytes(&received);
        send(socket, setup).await?;
        received.drain(..taken?);
        match setup.next() {
            Next::Read => {}
            Next::Attach => return Ok(received),
            Next::Close => return Err(Refusal::Left),
        }
        let before = received.len();
        received.resize(before + CHUNK_BYTES, 0);
        let count = socket.read(&mut received[before..]).await?;
        received.truncate(before + count);
        if count == 0 {
            return Err(Refusal::Left);
        }
    }
}

async fn send(socket: &mut TcpStream, setup: &mut Setup) -> io::Result<()> {
    while !setup.dispatch_bytes().is_empty() {
        let sent = socket.write(setup.dispatch_bytes()).await?;
        setup.sent(sent);
    }
    Ok(())
}
