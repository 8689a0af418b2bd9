//! AF_XDP: frames straight from a driver queue into the slab, over the kernel's own ABI.
//!
//! A port is one queue of one interface. Its socket (`socket`) registers the slab's chunks as its memory
//! and shares four rings (`ring`) with the kernel; a six-instruction program (`program`) redirects the
//! queue's frames to it; `loans` remembers which chunks the kernel holds; `port` moves frames. Neither
//! libbpf nor a compiler for BPF is needed.
//!
//! While the port is open the host's own stack sees nothing of the queue's input: address resolution,
//! DHCP and the like are the data plane's business. Queues without a port stay with the stack.
//!
//! # What AF_XDP in copy mode cannot do
//!
//! - **Checksums.** A descriptor is an address and a length. If the sender is a local stack with transmit
//!   checksum offload on (the other end of a veth pair, a guest's virtio-net), its TCP and UDP frames arrive
//!   with unfinished checksums, and nothing tells them from broken ones. Turn it off where the frames come
//!   from: `ethtool -K PEER tx off`. Opening the port warns when it sees, or cannot rule out, such a peer.
//!   Frames that *we* send with an unfinished checksum are finished by the port.
//! - **Super-segments.** They do not fit a chunk: neither sent nor received. The veth driver turns
//!   segmentation offload off on the peer while a native program is attached; elsewhere
//!   `ethtool -K PEER tso off gso off` does. A tenant that needs them uses an AF_PACKET port.
//! - **Long frames.** At most 3,400 bytes, an MTU of 3,382.
//!
//! # Veth
//!
//! The driver runs a native program in its own poll function, for frames redirected by the peer as well as
//! for ordinary ones from a stack (it copies these into a page of their own first). It refuses the program
//! when the peer's MTU exceeds a page. A veth pair made with `numrxqueues`/`numtxqueues` has as many
//! AF_XDP queues as both ends have in common.
//!
//! # Loss of the interface
//!
//! A system call that fails tells at once; an idle port asks once a second, in `flush`, which a sleeping
//! worker must therefore call now and then: the kernel does not wake it for this. Every later call returns
//! the same error until the port is closed, which brings all frames back, and opened again.
//!
//! # Invariants
//!
//! The program goes when the last port of the interface closes or the process dies. Nothing here locks or
//! allocates per frame. A port keeps the slab alive, and takes a chunk back from the kernel only when a
//! ring hands it out or when the socket is gone.

mod abi;
mod interface;
mod loans;
mod port;
mod program;
mod ring;
mod socket;
mod sys;

use std::sync::Arc;

use frame::Slab;

use crate::{OpenError, Port, PortCaps, PortKind};
use interface::Interface;
use port::XdpPort;
use program::{AttachError, Attachment, Mode};
use socket::Socket;

/// How to open the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpSpec {
    /// Interface name in the network namespace of the calling thread.
    pub interface: String,
    /// Receive and transmit queue, from 0.
    pub queue: u32,
    /// Entries of each of the four rings, a power of two from 64 to 32,768. As many chunks wait for input
    /// at any time: the burst that the port absorbs while its worker is busy elsewhere. Fewer stay in the
    /// processor's cache.
    pub ring_frames: u32,
    /// Frames that one of our system calls may receive by running the driver's poll function itself
    /// (`SO_BUSY_POLL_BUDGET`); 0 leaves that to the kernel's soft interrupts. For a worker that never
    /// sleeps and interfaces whose interrupts are deferred (`napi_defer_hard_irqs`).
    pub busy_poll_frames: u32,
}

impl XdpSpec {
    /// Queue 0 of `interface` with rings of 2,048 entries.
    pub fn new(interface: &str) -> XdpSpec {
        XdpSpec { interface: interface.to_owned(), queue: 0, ring_frames: 2048, busy_poll_frames: 0 }
    }
}

/// Queues of one interface that can have a port.
const QUEUES_MAX: u32 = 1024;
const RING_FRAMES_MIN: u32 = 64;
const RING_FRAMES_MAX: u32 = 32_768;

/// Opens the port.
pub(crate) fn open(spec: &XdpSpec, slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    check(spec)?;
    let interface = Interface::find(&spec.interface)?;
    interface.check_queue(spec.queue)?;
    let socket = Socket::open(spec, &interface, slab)?;
    let key = (socket.namespace_cookie(), interface.index);
    let attachment = Attachment::new(key, spec.queue, std::os::fd::AsFd::as_fd(&socket))
        .map_err(|error| attach_error(&spec.interface, error))?;
    let caps = PortCaps {
        kind: PortKind::Ethernet,
        mtu_bytes: interface.mtu_bytes,
        mac: interface.mac,
        tx_partial_csum: false,
        tx_gso: false,
        rx_gso: false,
    };
    let port = XdpPort::new(spec, caps, socket, attachment, slab);
    report(&interface, spec, port.mode());
    Ok(Box::new(port))
}

pub(crate) fn check(spec: &XdpSpec) -> Result<(), OpenError> {
    let fits = (RING_FRAMES_MIN..=RING_FRAMES_MAX).contains(&spec.ring_frames);
    if fits && spec.ring_frames.is_power_of_two() {
        return Ok(());
    }
    Err(OpenError::Spec {
        name: spec.interface.clone(),
        what: format!(
            "{} ring entries; it must be a power of two from {RING_FRAMES_MIN} to {RING_FRAMES_MAX}",
            spec.ring_frames
        ),
    })
}

/// Says aloud what was opened and what may surprise.
fn report(interface: &Interface, spec: &XdpSpec, mode: Mode) {
    let (name, queue) = (&interface.name, spec.queue);
    match mode {
        Mode::Native => tracing::info!("AF_XDP on {name} queue {queue}: native program, copy mode"),
        Mode::Generic => tracing::warn!(
            "AF_XDP on {name} queue {queue}: the driver knows no XDP, so the program runs in the stack (generic mode, slower)"
        ),
    }
    if let Some(warning) = interface.checksum_warning() {
        tracing::warn!("AF_XDP on {name} queue {queue}: {warning}");
    }
}

fn permission(name: String, what: &'static str) -> OpenError {
    let hint = "run as root, or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF";
    OpenError::Permission { name, what, hint }
}

fn attach_error(name: &str, error: AttachError) -> OpenError {
    let name = name.to_owned();
    let (what, source) = match error {
        AttachError::Map(source) => ("making the map of XDP sockets", source),
        AttachError::Load(source) => ("loading the XDP program", source),
        AttachError::Link(source) => ("attaching the XDP program", source),
        AttachError::Insert(source) => ("redirecting the queue to its socket", source),
    };
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => permission(name, what),
        Some(libc::EBUSY | libc::EEXIST) => OpenError::Busy {
            name,
            what: "another XDP program is attached",
            hint: "`ip link show` names its id, `ip link set DEV xdp off` or stopping its owner removes it",
        },
        Some(libc::ENOSYS | libc::EINVAL) => OpenError::Kernel {
            name,
            what: "XDP programs that are attached by a link",
            hint: "use Linux 5.9 or newer, or an AF_PACKET port",
        },
        Some(libc::ERANGE) => OpenError::Spec {
            what: format!(
                "the driver cannot run XDP at this MTU; on veth, set the other end's to {} or less",
                interface::MTU_BYTES_MAX
            ),
            name,
        },
        Some(libc::ENODEV) => OpenError::Missing { name },
        _ => OpenError::Io { name, what, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;

    #[test]
    fn ring_sizes_that_the_kernel_refuses_are_refused_first() {
        for (entries, good) in
            [(2048, true), (64, true), (0, false), (32, false), (100, false), (65_536, false)]
        {
            let spec = XdpSpec { ring_frames: entries, ..XdpSpec::new("e0") };
            assert_eq!(check(&spec).is_ok(), good, "{entries}");
        }
    }

    #[test]
    fn a_refused_program_tells_what_to_do() {
        let error = |code| attach_error("e0", AttachError::Link(Error::from_raw_os_error(code)));
        assert!(matches!(error(libc::EPERM), OpenError::Permission { .. }));
        assert!(matches!(error(libc::EBUSY), OpenError::Busy { .. }));
        assert!(matches!(error(libc::EEXIST), OpenError::Busy { .. }));
        assert!(matches!(error(libc::EINVAL), OpenError::Kernel { .. }));
        assert!(matches!(error(libc::ERANGE), OpenError::Spec { .. }));
        assert!(matches!(error(libc::ENODEV), OpenError::Missing { .. }));
        assert!(matches!(error(libc::ENOSPC), OpenError::Io { what: "attaching the XDP program", .. }));
        let step = |error| attach_error("e0", error).to_string();
        assert!(
            step(AttachError::Map(Error::from_raw_os_error(libc::ENOMEM))).contains("map of XDP sockets")
        );
        assert!(step(AttachError::Load(Error::from_raw_os_error(libc::ENOMEM))).contains("loading"));
        assert!(step(AttachError::Insert(Error::from_raw_os_error(libc::ENOMEM))).contains("redirecting"));
    }
}
