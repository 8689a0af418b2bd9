//! Poll-mode port drivers behind one trait: where frames enter the process and where they leave it.
//!
//! A driver is polled by exactly one worker: [`Port::rx_burst`] appends what has arrived,
//! [`Port::tx_burst`] takes frames to send, [`Port::flush`] runs once per turn. Each call handles a burst,
//! so a `dyn Port` costs one indirect call per 32 frames.
//!
//! - [`xdp`]: AF_XDP, [`packet`]: AF_PACKET rings with the virtio-net header, [`udp`]: a socket as underlay.
//! - [`memory`]: two ends in one process, [`null`]: source and sink, [`generator`]: the same at a pace, [`pcap`]: files.
//! - [`faults`] and [`record`] are ports stacked on a port: loss, delay and their like; a copy to a file.
//!
//! [`PortSpec`] says which port to open, [`open`] opens it, and [`OpenError`] says what to do when it
//! cannot be opened.
//!
//! Invariants: a frame that a driver takes is owed to the pool until it is freed or handed out again, and
//! [`Port::close`] pays that debt; a frame that is neither sent nor handed out is counted in
//! [`PortCounters`]; no input makes a driver panic.

pub mod checksum;
pub mod faults;
pub mod generator;
pub mod memory;
pub mod null;
pub mod packet;
pub mod pcap;
pub mod record;
pub mod udp;
pub mod xdp;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use frame::{Batch, Pool, Slab};

/// What the bytes of a port's frames begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// An Ethernet header.
    Ethernet,
    /// A tunnel header (VXLAN, Geneve): the kernel's socket keeps the outer Ethernet, IP and UDP headers.
    /// The remote address travels as `next_hop`, the outer ECN field in the flags.
    Datagram,
}

/// What a port can do; fixed from open to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortCaps {
    /// What frames begin with.
    pub kind: PortKind,
    /// Largest layer-3 packet (Ethernet) or datagram payload (Datagram) that may be sent, bytes.
    pub mtu_bytes: u32,
    /// The interface's own address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// `CSUM_PARTIAL` frames are passed on unfinished. Without it the port finishes the checksum itself.
    pub tx_partial_csum: bool,
    /// Super-segments may be sent as they are. Without it they must be segmented before.
    pub tx_gso: bool,
    /// Super-segments may arrive.
    pub rx_gso: bool,
}

/// What a port has counted since it was opened.
///
/// For the balance of decision D18 a worker adds `rx_frames` and `generated` to what came in, and
/// `tx_frames`, `dropped` and `held` to what went out, is lost or is still in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames handed to the worker, or dropped on purpose on the way to it.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames taken from the worker and passed on to the medium.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that the kernel dropped before we could read them; never part of `rx_frames`.
    pub rx_kernel_drops: u64,
    /// Frames taken, counted in `tx_frames`, that the medium then refused.
    pub tx_errors: u64,
    /// Frames that arrived cut off and were thrown away; never part of `rx_frames`.
    pub rx_truncated: u64,
    /// Times that a frame could not be received because the slab was exhausted.
    pub rx_no_frame: u64,
    /// Frames made by the port itself: duplicates.
    pub generated: u64,
    /// Frames that the port dropped, under [`frame::DropReason::FaultInjected`].
    pub dropped: u64,
    /// Frames in which the port flipped a bit on purpose.
    pub corrupted: u64,
    /// Frames that the port held back on purpose: delayed ones, and those that changed places.
    pub delayed: u64,
    /// Frames that the port holds back at this moment.
    pub held: u64,
}

/// A source and sink of frames, polled by one worker.
pub trait Port: Send {
    /// Appends up to the batch's remaining capacity and returns how many. An error means that the port is
    /// unusable until it is opened again; frames appended before stay in `out`.
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError>;

    /// Takes frames from the front of the batch, in order, as many as fit; the rest stay in the batch, in
    /// order. Returns how many were taken. On an error, what was not taken is still in the batch.
    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError>;

    /// Once per turn: kicks the kernel if it needs it and reclaims frames that were sent.
    fn flush(&mut self, pool: &mut Pool) -> Result<(), PortError>;

    /// Descriptor to wait on for input (epoll, level-triggered), if the port has one. A port without one
    /// must be polled.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Asks that the next input makes [`Port::wait_fd`] readable. Called before the last look at
    /// [`Port::has_input`] and before blocking; the next `rx_burst` undoes it. A kernel's descriptor is
    /// always armed, so most ports have nothing to do.
    fn arm(&mut self) {}

    /// True if input is already there, or if the port needs the worker awake: checked after arming, before
    /// blocking, without a system call where possible.
    fn has_input(&self) -> bool;

    /// What the port can do.
    fn caps(&self) -> PortCaps;

    /// What it has counted.
    fn counters(&self) -> PortCounters;

    /// Sets the remote endpoints that `next_hop` numbers, in order. Only a datagram port has any.
    fn set_peers(&mut self, peers: &[SocketAddr]) {
        let _ = peers;
    }

    /// Detaches cleanly; frames that the port still holds go back to the pool.
    fn close(self: Box<Self>, pool: &mut Pool);
}

/// Why a port stopped working. The worker closes it and tries [`open`] again from time to time.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The interface was removed.
    #[error("interface {name} is gone; it is taken up again when it comes back")]
    Gone {
        /// The interface.
        name: String,
    },
    /// The interface was set down.
    #[error("interface {name} is down; `ip link set {name} up` brings it back")]
    Down {
        /// The interface.
        name: String,
    },
    /// The other end of a memory port was closed.
    #[error("the other end of this memory port is closed")]
    PeerClosed,
    /// Any other answer of the kernel.
    #[error("{what} on {name}: {source}")]
    Io {
        /// The interface, address or file.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a port cannot be opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such interface.
    #[error("no interface {name}; `ip link` lists those that exist in this network namespace")]
    Missing {
        /// The interface.
        name: String,
    },
    /// The interface is down.
    #[error("interface {name} is down; `ip link set {name} up` brings it up")]
    Down {
        /// The interface.
        name: String,
    },
    /// The interface has fewer queues.
    #[error(
        "interface {name} has {queues} receive queue(s), queue {queue} does not exist; see `ethtool -l {name}`"
    )]
    NoQueue {
        /// The interface.
        name: String,
        /// The queue asked for.
        queue: u32,
        /// How many there are.
        queues: u32,
    },
    /// Not allowed.
    #[error("{what} on {name} is not permitted; {hint}")]
    Permission {
        /// The interface, address or file.
        name: String,
        /// What was tried.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Somebody else uses it.
    #[error("{name} is in use ({what}); {hint}")]
    Busy {
        /// The interface or address.
        name: String,
        /// What is in use.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The running kernel lacks a feature.
    #[error("the kernel lacks {what} for {name}; {hint}")]
    Kernel {
        /// The interface or address.
        name: String,
        /// What it lacks.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A value of the specification cannot work.
    #[error("{name}: {what}")]
    Spec {
        /// The port.
        name: String,
        /// Which value, and what it may be.
        what: String,
    },
    /// A capture file cannot be read.
    #[error("{}: {source}", path.display())]
    Pcap {
        /// The file.
        path: PathBuf,
        /// Which byte is wrong.
        source: pcap::PcapError,
    },
    /// Any other answer of the kernel.
    #[error("{what} on {name}: {source}")]
    Io {
        /// The interface, address or file.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Which port to open.
#[derive(Clone, Debug, PartialEq)]
pub enum PortSpec {
    /// AF_XDP on one queue of an interface.
    Xdp(xdp::XdpSpec),
    /// AF_PACKET on an interface.
    Packet(packet::PacketSpec),
    /// A UDP socket as underlay.
    Udp(udp::UdpSpec),
    /// Generator and sink.
    Null(null::NullSpec),
    /// One end of a pair that [`memory::pair`] made.
    Memory(memory::MemoryEnd),
    /// The built-in tenant.
    Generator(generator::GeneratorSpec),
    /// Replay from one capture file, record to another.
    Pcap(pcap::PcapSpec),
    /// Loss, duplication, reordering, delay, corruption on top of a port.
    Faults(faults::FaultSpec, Box<PortSpec>),
    /// A copy of all that passes a port, in a capture file.
    Record(record::RecordSpec, Box<PortSpec>),
}

/// What can be said about a specification without opening anything: an error here stays one until the
/// specification changes, whatever happens to interfaces.
pub fn check(spec: &PortSpec) -> Result<(), OpenError> {
    match spec {
        PortSpec::Xdp(spec) => check_name(&spec.interface).and_then(|()| xdp::check(spec)),
        PortSpec::Packet(spec) => check_name(&spec.interface).and_then(|()| packet::check(spec)),
        PortSpec::Udp(spec) => udp::check(spec),
        PortSpec::Faults(_, inner) | PortSpec::Record(_, inner) => check(inner),
        PortSpec::Null(_) | PortSpec::Memory(_) | PortSpec::Generator(_) | PortSpec::Pcap(_) => Ok(()),
    }
}

/// Names that an interface can have: `dev_valid_name` of the kernel.
fn check_name(name: &str) -> Result<(), OpenError> {
    const BYTES_MAX: usize = 15;
    let odd = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
    if matches!(name, "" | "." | "..") || name.len() > BYTES_MAX || name.bytes().any(odd) {
        let what = format!(
            "no interface can have this name: it is 1 to {BYTES_MAX} bytes without spaces, '/' and ':'; `ip link` \
             lists those that exist"
        );
        return Err(OpenError::Spec { name: format!("\"{name}\""), what });
    }
    Ok(())
}

/// Opens a port whose frames live in `slab`.
pub fn open(spec: &PortSpec, slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    Ok(match spec {
        PortSpec::Xdp(spec) => xdp::open(spec, slab)?,
        PortSpec::Packet(spec) => packet::open(spec, slab)?,
        PortSpec::Udp(spec) => udp::open(spec, slab)?,
        PortSpec::Generator(spec) => generator::open(spec)?,
        PortSpec::Memory(end) => Box::new(end.take()?),
        PortSpec::Null(spec) => Box::new(null::NullPort::open(spec)?),
        PortSpec::Pcap(spec) => Box::new(pcap::PcapPort::open(spec)?),
        PortSpec::Faults(spec, inner) => Box::new(faults::Faults::new(open(inner, slab)?, spec)?),
        PortSpec::Record(spec, inner) => Box::new(record::Record::open(open(inner, slab)?, spec)?),
    })
}
