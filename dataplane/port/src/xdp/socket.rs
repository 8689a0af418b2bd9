//! The socket: the slab's chunks registered as its memory (UMEM), four rings, bound to one queue.
//!
//! Each port registers the same region as its own UMEM, so a frame received on one port is sent by another
//! without a copy in user space. Copy mode (decision D4), and addresses that need not be aligned to chunks,
//! for two reasons: received bytes begin where a fresh frame's would, behind the chunk's colour (with aligned
//! addresses the headers of all chunks compete for the same few sets of the caches), and the kernel then
//! takes its own record of a chunk from a stack, instead of the one, long out of the cache, that belongs to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use frame::{CHUNK_BYTES, FRAME_BYTES_MAX, Slab};

use super::interface::Interface;
use super::ring::{Consumer, Producer, Ring};
use super::{XdpSpec, abi, sys};
use crate::OpenError;

/// How long the kernel may poll in one call when busy polling is on, microseconds.
const BUSY_POLL_US: u32 = 20;

/// Free bytes that the kernel leaves before a received frame (`XDP_PACKET_HEADROOM`).
pub(super) const RX_HEADROOM_BYTES: usize = 256;
/// What the kernel may use from the address that it is given, its headroom included. Whatever the chunk's
/// colour, that stays inside the chunk: [`FRAME_BYTES_MAX`] fit behind the first byte of any fresh frame.
const WINDOW_BYTES: u32 = (RX_HEADROOM_BYTES + FRAME_BYTES_MAX) as u32;

/// How long the kernel may take to free a queue whose socket was closed, and how often to look.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(250);
const RELEASE_POLL: Duration = Duration::from_millis(1);

/// A bound socket. Dropping it unmaps the rings and closes the descriptor; only both together make the
/// kernel let go of the region, since each mapping holds a reference to the socket.
pub(super) struct Socket {
    pub rx: Consumer<libc::xdp_desc>,
    pub tx: Producer<libc::xdp_desc>,
    pub fill: Producer<u64>,
    pub completion: Consumer<u64>,
    fd: OwnedFd,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread and binds it to the spec's queue.
    ///
    /// The caller keeps `slab` alive for as long as the socket.
    pub fn open(spec: &XdpSpec, interface: &Interface, slab: &Slab) -> Result<Socket, OpenError> {
        let name = &interface.name;
        let io_error = |what| move |source| OpenError::Io { name: name.clone(), what, source };
        let fd = sys::socket(libc::AF_XDP, libc::SOCK_RAW).map_err(|source| socket_error(name, source))?;
        register(fd.as_fd(), slab).map_err(|source| register_error(name, source))?;
        let socket = map_rings(fd, spec.ring_frames).map_err(io_error("making the rings"))?;
        if spec.busy_poll_frames > 0 {
            socket.prefer_busy_poll(spec.busy_poll_frames).map_err(io_error("setting busy polling"))?;
        }
        socket.raise_send_limits(spec.ring_frames);
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: interface.index,
            sxdp_queue_id: spec.queue,
            sxdp_shared_umem_fd: 0,
        };
        bind(socket.as_fd(), &address).map_err(|source| bind_error(interface, spec.queue, source))?;
        Ok(socket)
    }

    /// The network namespace that the socket lives in; 0 on kernels that cannot tell (before 5.14).
    pub fn namespace_cookie(&self) -> u64 {
        let mut cookie = 0_u64;
        match sys::read_option(self.as_fd(), libc::SOL_SOCKET, abi::SO_NETNS_COOKIE, &mut cookie) {
            Ok(_) => cookie,
            Err(_) => 0,
        }
    }

    /// The kernel's own counters, 0 where it does not keep one.
    pub fn statistics(&self) -> libc::xdp_statistics {
        let mut statistics = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        // A socket whose interface is gone still answers; a failure leaves the counters at 0.
        let _ = sys::read_option(self.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS, &mut statistics);
        statistics
    }

    /// Lets our own system calls run the driver's poll function (5.11).
    fn prefer_busy_poll(&self, budget_frames: u32) -> io::Result<()> {
        let set = |option, value: u32| sys::set_option(self.as_fd(), libc::SOL_SOCKET, option, &value);
        set(abi::SO_PREFER_BUSY_POLL, 1)?;
        set(abi::SO_BUSY_POLL, BUSY_POLL_US)?;
        set(abi::SO_BUSY_POLL_BUDGET, budget_frames)
    }

    /// Copy mode sends through socket buffers: without these, one call sends 32 frames, and a few hundred
    /// may be on their way. Older kernels keep their limits, which the kick loop copes with.
    fn raise_send_limits(&self, ring_frames: u32) {
        let _ =
            sys::set_option(self.as_fd(), libc::SOL_XDP, abi::XDP_MAX_TX_SKB_BUDGET, &ring_frames.min(256));
        let bytes = ring_frames.saturating_mul(CHUNK_BYTES as u32);
        let _ = sys::set_option(self.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes);
    }
}

/// Registers the slab's chunks as the socket's memory; the kernel pins them.
fn register(fd: BorrowedFd<'_>, slab: &Slab) -> io::Result<()> {
    let (base, bytes) = slab.chunk_region();
    let umem = libc::xdp_umem_reg {
        addr: base as u64,
        len: bytes as u64,
        chunk_size: WINDOW_BYTES,
        headroom: 0,
        flags: libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG,
        tx_metadata_len: 0,
    };
    sys::set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &umem)
}

fn map_rings(fd: OwnedFd, entries: u32) -> io::Result<Socket> {
    let borrowed = fd.as_fd();
    for ring in
        [libc::XDP_RX_RING, libc::XDP_TX_RING, libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING]
    {
        sys::set_option(borrowed, libc::SOL_XDP, ring, &entries)?;
    }
    let none = libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    let mut offsets = libc::xdp_mmap_offsets { rx: none, tx: none, fr: none, cr: none };
    let filled = sys::read_option(borrowed, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    if filled != size_of::<libc::xdp_mmap_offsets>() {
        // Before 5.4 the rings have no flags word.
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(Socket {
        rx: Consumer::new(Ring::map(borrowed, libc::XDP_PGOFF_RX_RING, offsets.rx, entries)?),
        tx: Producer::new(Ring::map(borrowed, libc::XDP_PGOFF_TX_RING, offsets.tx, entries)?),
        fill: Producer::new(Ring::map(
            borrowed,
            libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t,
            offsets.fr,
            entries,
        )?),
        completion: Consumer::new(Ring::map(
            borrowed,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
            offsets.cr,
            entries,
        )?),
        fd,
    })
}

/// Binds; a queue that is taken gets a second chance, since the kernel frees the queue of a socket that was
/// just closed, or whose process just died, a moment later in a work queue.
fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match sys::bind_xdp(fd, address) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(RELEASE_POLL);
            }
            answer => return answer,
        }
    }
}

fn socket_error(name: &str, source: io::Error) -> OpenError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => OpenError::Kernel {
            name,
            what: "AF_XDP sockets",
            hint: "use a kernel with CONFIG_XDP_SOCKETS=y, or an AF_PACKET port",
        },
        Some(libc::EPERM) => super::permission(name, "opening an AF_XDP socket"),
        _ => OpenError::Io { name, what: "opening an AF_XDP socket", source },
    }
}

fn register_error(name: &str, source: io::Error) -> OpenError {
    let name = name.to_owned();
    let what = "registering the frames with AF_XDP";
    match source.raw_os_error() {
        // The count of pinned pages is over the limit, and the process may not ignore it.
        Some(libc::ENOBUFS) => OpenError::Permission {
            name,
            what,
            hint: "raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK=) above the frame memory, or add CAP_IPC_LOCK",
        },
        Some(libc::EINVAL) => {
            OpenError::Spec { name, what: "the slab has no small frames to receive into".to_owned() }
        }
        _ => OpenError::Io { name, what, source },
    }
}

fn bind_error(interface: &Interface, queue: u32, source: io::Error) -> OpenError {
    let name = interface.name.clone();
    match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::Busy {
            name,
            what: "another AF_XDP socket is bound to this queue",
            hint: "choose another queue, or stop the program that holds it (`bpftool net` names it)",
        },
        // Everything else that EINVAL can mean here is fixed by this module.
        Some(libc::EINVAL) => interface.no_queue(queue, queue),
        Some(libc::ENODEV) => OpenError::Missing { name },
        Some(libc::ENETDOWN) => OpenError::Down { name },
        Some(libc::EPERM) => super::permission(name, "binding an AF_XDP socket"),
        _ => OpenError::Io { name, what: "binding an AF_XDP socket", source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn each_answer_of_the_kernel_tells_what_to_do() {
        let text = |error: OpenError| error.to_string();
        assert!(text(socket_error("e0", os(libc::EAFNOSUPPORT))).contains("CONFIG_XDP_SOCKETS"));
        assert!(text(socket_error("e0", os(libc::EPERM))).contains("CAP_NET_RAW"));
        assert!(text(socket_error("e0", os(libc::ENFILE))).contains("opening"));
        assert!(text(register_error("e0", os(libc::ENOBUFS))).contains("RLIMIT_MEMLOCK"));
        assert!(text(register_error("e0", os(libc::EINVAL))).contains("no small frames"));
        assert!(text(register_error("e0", os(libc::ENOMEM))).contains("registering"));
    }

    #[test]
    fn a_refused_bind_tells_why() {
        let Ok((lo, _)) = Interface::ask("lo") else { return println!("skipped: no loopback interface") };
        assert!(matches!(bind_error(&lo, 3, os(libc::EBUSY)), OpenError::Busy { .. }));
        assert!(matches!(bind_error(&lo, 3, os(libc::EINVAL)), OpenError::NoQueue { queue: 3, .. }));
        assert!(matches!(bind_error(&lo, 3, os(libc::ENODEV)), OpenError::Missing { .. }));
        assert!(matches!(bind_error(&lo, 3, os(libc::ENETDOWN)), OpenError::Down { .. }));
        assert!(matches!(bind_error(&lo, 3, os(libc::EPERM)), OpenError::Permission { .. }));
        assert!(matches!(bind_error(&lo, 3, os(libc::ENOMEM)), OpenError::Io { .. }));
    }
}
