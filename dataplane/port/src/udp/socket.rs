//! The system calls of the driver: a UDP socket, its options, and batches of datagrams.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use arrayvec::ArrayVec;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::control::{self, Control, ERROR_BYTES, Heard, RECEIVE_BYTES, SEND_BYTES};
use super::peers::{ADDRESS_BYTES, RawAddress};

/// Datagrams per system call.
pub(super) const MESSAGES: usize = 32;

/// A bound UDP socket.
#[derive(Debug)]
pub(super) struct UdpSocket {
    socket: Socket,
    ipv6: bool,
}

/// A datagram, perhaps of several frames that the kernel cuts apart, to send.
pub(super) struct Outgoing<'a> {
    pub(super) to: &'a SockAddr,
    /// The frames, in order.
    pub(super) parts: &'a [libc::iovec],
    pub(super) control: Control<SEND_BYTES>,
}

/// A received datagram, perhaps of several frames that the kernel put together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub(super) len: usize,
    pub(super) from: RawAddress,
    pub(super) heard: Heard,
    pub(super) truncated: bool,
}

impl UdpSocket {
    pub(super) fn new(ipv6: bool) -> io::Result<UdpSocket> {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if ipv6 {
            socket.set_only_v6(true)?;
        }
        Ok(UdpSocket { socket, ipv6 })
    }

    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<()> {
        self.socket.bind(&address.into())
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// What the driver cannot do without: marking, no fragmentation, errors of ICMP.
    pub(super) fn set_up(&self, dscp: u8) -> io::Result<()> {
        let tos = libc::c_int::from(dscp << 2);
        let (probe, on) = (libc::IP_PMTUDISC_PROBE, 1);
        if self.ipv6 {
            self.set(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, on)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, on)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, on)?;
        } else {
            self.set(libc::IPPROTO_IP, libc::IP_TOS, tos)?;
            self.set(libc::IPPROTO_IP, libc::IP_RECVTOS, on)?;
            self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)?;
            self.set(libc::IPPROTO_IP, libc::IP_RECVERR, on)?;
        }
        self.set(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, on)
    }

    /// Lets the kernel hand over runs of equal datagrams as one. False on a kernel before 5.0.
    pub(super) fn coalesce(&self) -> bool {
        self.set(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
    }

    /// Asks for `bytes` of room each way, beyond the system's limit when the process may. Returns what was
    /// granted: receive, send.
    pub(super) fn set_buffers(&self, bytes: usize) -> io::Result<(usize, usize)> {
        let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        if self.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value).is_err() {
            self.socket.set_recv_buffer_size(bytes)?;
        }
        if self.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, value).is_err() {
            self.socket.set_send_buffer_size(bytes)?;
        }
        // The kernel doubles what it is given, for its own book-keeping.
        Ok((self.socket.recv_buffer_size()? / 2, self.socket.send_buffer_size()? / 2))
    }

    /// The MTU of the route to `peer`, asked of a connected socket beside this one.
    pub(super) fn route_mtu(&self, peer: SocketAddr) -> io::Result<u32> {
        let beside = UdpSocket::new(self.ipv6)?;
        beside.bind(SocketAddr::new(self.local_addr()?.ip(), 0))?;
        beside.socket.connect(&peer.into())?;
        let (level, option) =
            if self.ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_MTU) } else { (libc::IPPROTO_IP, libc::IP_MTU) };
        let mut mtu: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: both pointers are valid for the sizes given.
        let result = unsafe {
            libc::getsockopt(
                beside.socket.as_raw_fd(),
                level,
                option,
                std::ptr::from_mut(&mut mtu).cast(),
                &raw mut len,
            )
        };
        check(result as isize)?;
        u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Sends datagrams in one call. Returns how many went; an error is that of the first.
    ///
    /// # Safety
    /// The parts of each datagram point to live memory.
    pub(super) unsafe fn send_all(&self, datagrams: &mut [Outgoing<'_>]) -> io::Result<usize> {
        let mut messages: ArrayVec<libc::mmsghdr, MESSAGES> = ArrayVec::new();
        for datagram in datagrams.iter_mut().take(MESSAGES) {
            let mut message = no_message();
            // The kernel only reads from what a sent message points to.
            message.msg_hdr.msg_name = datagram.to.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = datagram.to.len();
            message.msg_hdr.msg_iov = datagram.parts.as_ptr().cast_mut();
            message.msg_hdr.msg_iovlen = datagram.parts.len();
            if datagram.control.len > 0 {
                message.msg_hdr.msg_control = datagram.control.bytes.as_mut_ptr().cast();
                message.msg_hdr.msg_controllen = datagram.control.len;
            }
            messages.push(message);
        }
        // SAFETY: the messages point to addresses, parts and control data that `datagrams` keeps alive.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        check(sent as isize)
    }

    /// Receives up to one datagram per buffer in one call, and says what it received.
    pub(super) fn receive_all<'a>(
        &self,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        into: &mut ArrayVec<Incoming, MESSAGES>,
    ) -> io::Result<()> {
        into.clear();
        let mut parts: ArrayVec<libc::iovec, MESSAGES> = ArrayVec::new();
        for buffer in buffers.take(MESSAGES) {
            parts.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
        }
        let mut names: ArrayVec<RawAddress, MESSAGES> = ArrayVec::new();
        let mut controls: ArrayVec<Control<RECEIVE_BYTES>, MESSAGES> = ArrayVec::new();
        for _ in &parts {
            names.push(RawAddress([0; ADDRESS_BYTES]));
            controls.push(Control::EMPTY);
        }
        let mut messages: ArrayVec<libc::mmsghdr, MESSAGES> = ArrayVec::new();
        for ((part, name), control) in parts.iter_mut().zip(&mut names).zip(&mut controls) {
            let mut message = no_message();
            message.msg_hdr.msg_name = name.0.as_mut_ptr().cast();
            message.msg_hdr.msg_namelen = ADDRESS_BYTES as libc::socklen_t;
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = RECEIVE_BYTES;
            messages.push(message);
        }
        // SAFETY: the messages point to the buffers, names and control bytes above, all alive, all distinct.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = check(received as isize)?;
        for ((message, name), control) in messages[..received].iter().zip(&names).zip(&controls) {
            let said = &control.bytes[..message.msg_hdr.msg_controllen.min(RECEIVE_BYTES)];
            into.push(Incoming {
                len: message.msg_len as usize,
                from: *name,
                heard: control::decode(said),
                truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            });
        }
        Ok(())
    }

    /// Takes the errors noted on the socket, at most `limit`, and returns how many of them another host
    /// reported by ICMP; the rest are our own kernel's echo of what a send returned already.
    pub(super) fn take_errors(&self, limit: usize) -> u64 {
        let mut reported = 0;
        for _ in 0..limit {
            let mut control = Control::<ERROR_BYTES>::EMPTY;
            let mut message = no_message().msg_hdr;
            message.msg_control = control.bytes.as_mut_ptr().cast();
            message.msg_controllen = ERROR_BYTES;
            // SAFETY: the message has room for control data alone; the datagram in error is cut to nothing.
            let result = unsafe {
                libc::recvmsg(
                    self.socket.as_raw_fd(),
                    &raw mut message,
                    libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
                )
            };
            if result < 0 {
                break;
            }
            let said = &control.bytes[..message.msg_controllen.min(ERROR_BYTES)];
            reported += u64::from(control::decode(said).icmp_error);
        }
        reported
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the value is valid for the size given.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        check(result as isize).map(drop)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn no_message() -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is plain numbers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
