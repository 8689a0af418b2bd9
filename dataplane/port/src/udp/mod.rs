//! A UDP socket as underlay: no privilege needed, the kernel keeps the outer headers.
//!
//! A frame begins with the tunnel header. Where it goes is `meta.next_hop`, the number of a peer
//! ([`UdpSpec::peers`], changed live by [`Port::set_peers`]); where it came from stands there too, as
//! `u16::MAX` when the sender is no peer. The outer ECN field travels in the flags, both ways.
//!
//! - **One system call each way and turn.** Frames wait for the flush, which sends all of them with one
//!   `sendmmsg` straight from their chunks; runs of equal frames to one peer leave as one datagram that the
//!   kernel cuts (`UDP_SEGMENT`). `recvmmsg` fetches datagrams that the kernel put together (`UDP_GRO`), and
//!   they are cut into frames by the one copy that is made.
//! - **Never fragmented**: `IP_PMTUDISC_PROBE` sets DF and believes no ICMP about the path's MTU (an
//!   attacker's way to make it tiny); a frame that does not fit its interface is refused and counted.
//! - **Errors that other hosts report** (port unreachable and its like) are counted in `tx_errors`. Nothing
//!   that happens on a socket ends the port: an address that goes away makes sends fail, and they work
//!   again when it is back.
//!
//! Invariants: frames are held from `tx_burst` to `flush` at the longest, except while the socket's buffer
//! is full; datagrams to one peer leave in order.

mod control;
mod peers;
mod receive;
mod send;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use frame::{Batch, HEADROOM_BYTES, JUMBO_BYTES, Pool, Slab};

use crate::{OpenError, Port, PortCaps, PortCounters, PortError, PortKind};
use peers::{PEERS_MAX, Peers};
use receive::Inbox;
use send::{ERRORS, Outbox};
use socket::UdpSocket;

/// How to open the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpSpec {
    /// Local address and port.
    pub bind: SocketAddr,
    /// Remote endpoints, in the order of their `next_hop` numbers.
    pub peers: Vec<SocketAddr>,
    /// Differentiated-services code point of the outer header, 0..=63.
    pub dscp: u8,
}

/// Opens the port.
pub(crate) fn open(spec: &UdpSpec, _slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    Ok(Box::new(UdpPort::open(spec)?))
}

#[derive(Debug)]
struct UdpPort {
    socket: UdpSocket,
    peers: Peers,
    inbox: Inbox,
    outbox: Outbox,
    caps: PortCaps,
    counters: PortCounters,
}

impl UdpPort {
    fn open(spec: &UdpSpec) -> Result<UdpPort, OpenError> {
        check(spec)?;
        let explain = |what| move |source| explain(spec.bind, what, source);
        let socket = UdpSocket::new(spec.bind.is_ipv6()).map_err(explain("opening a UDP socket"))?;
        socket.set_up(spec.dscp).map_err(explain("setting the socket's options"))?;
        if !socket.coalesce() {
            tracing::warn!(bind = %spec.bind, "the kernel lacks UDP_GRO (Linux 5.0): receiving costs more");
        }
        let granted = socket.set_buffers(BUFFER_BYTES).map_err(explain("setting the socket's buffers"))?;
        if granted.0.min(granted.1) < BUFFER_BYTES {
            tracing::warn!(
                bind = %spec.bind,
                receive_bytes = granted.0,
                send_bytes = granted.1,
                wanted_bytes = BUFFER_BYTES,
                "small socket buffers: bursts will be lost; raise net.core.rmem_max and net.core.wmem_max, \
                 or give the process CAP_NET_ADMIN"
            );
        }
        socket.bind(spec.bind).map_err(explain("binding"))?;
        let caps = PortCaps {
            kind: PortKind::Datagram,
            mtu_bytes: payload_mtu(&socket, spec),
            mac: None,
            tx_partial_csum: false,
            tx_gso: false,
            rx_gso: false,
        };
        Ok(UdpPort {
            socket,
            peers: Peers::new(spec.bind.is_ipv6(), &spec.peers),
            inbox: Inbox::new(),
            outbox: Outbox::new(spec.dscp),
            caps,
            counters: PortCounters::default(),
        })
    }
}

impl Port for UdpPort {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        let before = out.len();
        if out.is_full() {
            return Ok(0);
        }
        if self.inbox.is_empty() {
            match self.inbox.refill(&self.socket, &mut self.counters) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                // An error that another host reported was noted on the socket, and is told once.
                Err(_) => self.counters.tx_errors += self.socket.take_errors(ERRORS),
            }
        }
        self.inbox.hand_on(pool, out, &mut self.peers, &mut self.counters);
        Ok(out.len() - before)
    }

    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        let count = batch.len().min(self.outbox.room());
        for frame in batch.drain(..count) {
            self.outbox.push(pool, frame, &self.peers, &mut self.counters);
        }
        Ok(count)
    }

    fn flush(&mut self, pool: &mut Pool) -> Result<(), PortError> {
        if !self.outbox.is_empty() {
            self.outbox.send(pool, &self.socket, &self.peers, &mut self.counters);
        }
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn arm(&mut self) {
        // An error left on the socket would make the descriptor ready for ever.
        self.counters.tx_errors += self.socket.take_errors(ERRORS);
    }

    fn has_input(&self) -> bool {
        !self.inbox.is_empty() || !self.outbox.is_empty()
    }

    fn caps(&self) -> PortCaps {
        self.caps
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn set_peers(&mut self, peers: &[SocketAddr]) {
        self.peers = Peers::new(self.peers.ipv6(), peers);
    }

    fn close(mut self: Box<Self>, pool: &mut Pool) {
        self.outbox.send(pool, &self.socket, &self.peers, &mut self.counters);
        self.outbox.clear(pool, &mut self.counters);
    }
}

pub(crate) fn check(spec: &UdpSpec) -> Result<(), OpenError> {
    let refuse = |what: String| Err(OpenError::Spec { name: spec.bind.to_string(), what });
    if spec.dscp > DSCP_MAX {
        return refuse(format!("dscp is {}, it must be between 0 and {DSCP_MAX}", spec.dscp));
    }
    if spec.peers.len() > PEERS_MAX {
        return refuse(format!("{} peers, there may be at most {PEERS_MAX}", spec.peers.len()));
    }
    for peer in &spec.peers {
        if peer.is_ipv6() != spec.bind.is_ipv6() {
            return refuse(format!("peer {peer} is of the other address family; bind a second port for it"));
        }
        if peer.port() == 0 || peer.ip().is_unspecified() {
            return refuse(format!("peer {peer} needs an address and a port"));
        }
    }
    Ok(())
}

/// Largest frame that reaches every peer, by the MTU of the routes known now.
fn payload_mtu(socket: &UdpSocket, spec: &UdpSpec) -> u32 {
    let headers = if spec.bind.is_ipv6() { IPV6_UDP_BYTES } else { IPV4_UDP_BYTES };
    let routes = spec.peers.iter().filter_map(|peer| socket.route_mtu(*peer).ok());
    let mtu = routes.min().unwrap_or(ETHERNET_MTU_BYTES);
    mtu.saturating_sub(headers).min(PAYLOAD_MAX)
}

fn explain(bind: SocketAddr, what: &'static str, source: io::Error) -> OpenError {
    let name = bind.to_string();
    match source.raw_os_error() {
        Some(libc::EADDRINUSE) => OpenError::Busy {
            name,
            what: "the UDP port",
            hint: "`ss -ulpn` names the process that has it; stop that or bind another port",
        },
        Some(libc::EADDRNOTAVAIL) => {
            OpenError::Spec { name, what: "no interface has this address; `ip addr` lists them".to_owned() }
        }
        Some(libc::EACCES | libc::EPERM) => OpenError::Permission {
            name,
            what,
            hint: "ports below 1024 need root or CAP_NET_BIND_SERVICE; tunnels have 4789 and 6081",
        },
        Some(libc::EAFNOSUPPORT) => OpenError::Kernel {
            name,
            what: "this address family",
            hint: "bind an address of the other one, or enable IPv6",
        },
        _ => OpenError::Io { name, what, source },
    }
}

const DSCP_MAX: u8 = 63;
const IPV4_UDP_BYTES: u32 = 20 + 8;
const IPV6_UDP_BYTES: u32 = 40 + 8;
const ETHERNET_MTU_BYTES: u32 = 1500;
/// Longest payload of an IPv4 datagram; it fits a jumbo chunk.
const PAYLOAD_MAX: u32 = 65_507;
const _: () = assert!(PAYLOAD_MAX as usize + HEADROOM_BYTES <= JUMBO_BYTES);
/// Room in the socket each way: 10 ms at 6 Gbit/s.
const BUFFER_BYTES: usize = 8 << 20;
