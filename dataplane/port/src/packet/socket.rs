//! The system calls of the driver: an AF_PACKET socket, its options, and interface questions.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use frame::{BATCH, Frame, Pool};
use socket2::{Domain, Protocol, Socket, Type};

use super::vnet::{self, VNET_BYTES};

/// A packet socket of type RAW. Without a protocol it receives nothing until it is bound with one.
#[derive(Debug)]
pub(super) struct PacketSocket(OwnedFd);

/// What an interface says about itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface {
    pub(super) index: i32,
    pub(super) up: bool,
    pub(super) mtu_bytes: u32,
    /// `ARPHRD_*`.
    pub(super) hardware: u16,
    pub(super) mac: [u8; 6],
}

impl PacketSocket {
    pub(super) fn new() -> io::Result<PacketSocket> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Ok(PacketSocket(socket.into()))
    }

    /// Sets an option of level `SOL_PACKET`.
    pub(super) fn set<T: Copy>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        set_option(self.0.as_fd(), libc::SOL_PACKET, option, value)
    }

    /// Asks for `bytes` of room in the socket's buffers, beyond the system's limit when the process may.
    /// Returns what the receive buffer was granted.
    pub(super) fn set_buffers(&self, bytes: usize) -> io::Result<usize> {
        let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        for (force, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            if set_option(self.0.as_fd(), libc::SOL_SOCKET, force, &value).is_err() {
                set_option(self.0.as_fd(), libc::SOL_SOCKET, plain, &value)?;
            }
        }
        // The kernel doubles what it is given, for its own book-keeping.
        Ok(rustix::net::sockopt::socket_recv_buffer_size(&self.0)? / 2)
    }

    /// Binds to an interface; `protocol` 0 sends only, `ETH_P_ALL` receives everything.
    pub(super) fn bind(&self, index: i32, protocol: u16) -> io::Result<()> {
        // SAFETY: `sockaddr_ll` is plain numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = index;
        // SAFETY: the address is valid for the length given.
        let result = unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        check(result as isize).map(drop)
    }

    /// Asks for all frames on the wire, whatever their address; it ends with the socket.
    pub(super) fn set_promiscuous(&self, index: i32) -> io::Result<()> {
        let request = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set(libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    /// The error that the kernel has noted since the last look, such as `ENETDOWN`.
    pub(super) fn take_error(&self) -> io::Result<()> {
        match rustix::net::sockopt::socket_error(&self.0) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(noted)) => Err(noted.into()),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Frames dropped for want of a free slot since the last call.
    pub(super) fn take_drops(&self) -> u64 {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: both pointers are valid for the sizes given.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut stats).cast(),
                &raw mut len,
            )
        };
        if result == 0 { u64::from(stats.tp_drops) } else { 0 }
    }

    /// Reads what `name` says about itself, in the network namespace of the socket.
    pub(super) fn interface(&self, name: &str) -> io::Result<Interface> {
        let index = self.query(name, libc::SIOCGIFINDEX as libc::Ioctl)?;
        let flags = self.query(name, libc::SIOCGIFFLAGS as libc::Ioctl)?;
        let mtu = self.query(name, libc::SIOCGIFMTU as libc::Ioctl)?;
        let address = self.query(name, libc::SIOCGIFHWADDR as libc::Ioctl)?;
        // SAFETY: SIOCGIFINDEX filled in this member.
        let index = unsafe { index.ifr_ifru.ifru_ifindex };
        // SAFETY: SIOCGIFFLAGS filled in this member.
        let flags = unsafe { flags.ifr_ifru.ifru_flags };
        // SAFETY: SIOCGIFMTU filled in this member.
        let mtu = unsafe { mtu.ifr_ifru.ifru_mtu };
        // SAFETY: SIOCGIFHWADDR filled in this member.
        let address = unsafe { address.ifr_ifru.ifru_hwaddr };
        let mut mac = [0u8; 6];
        for (to, from) in mac.iter_mut().zip(address.sa_data) {
            *to = from as u8;
        }
        Ok(Interface {
            index,
            up: i32::from(flags) & libc::IFF_UP != 0,
            mtu_bytes: u32::try_from(mtu).unwrap_or(0),
            hardware: address.sa_family,
            mac,
        })
    }

    fn query(&self, name: &str, request: libc::Ioctl) -> io::Result<libc::ifreq> {
        // SAFETY: `ifreq` is plain numbers, for which zero is a value.
        let mut question: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.is_empty() || name.len() >= question.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in question.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: each request of this driver reads and writes one `ifreq`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut question) };
        check(result as isize)?;
        Ok(question)
    }

    /// Makes the kernel send every slot of the transmit ring that asks for it.
    pub(super) fn kick(&self) -> io::Result<()> {
        // SAFETY: no buffer is passed.
        let result = unsafe {
            libc::sendto(self.0.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        check(result).map(drop)
    }

    /// Sends frames with their virtio-net header in one call: only for a socket without a transmit ring.
    /// Returns how many went; an error is that of the first.
    pub(super) fn send_all(&self, pool: &Pool, frames: &[Frame]) -> io::Result<usize> {
        let count = frames.len().min(BATCH);
        let mut headers = [[0u8; VNET_BYTES]; BATCH];
        let mut parts = [[NO_BYTES; 2]; BATCH];
        let mut messages = [no_message(); BATCH];
        for (i, frame) in frames[..count].iter().enumerate() {
            let bytes = pool.bytes(frame);
            headers[i] = vnet::encode(pool.meta(frame), bytes, 0);
            // The kernel only reads from what a sent message points to.
            parts[i] =
                [io_vec(headers[i].as_mut_ptr(), VNET_BYTES), io_vec(bytes.as_ptr().cast_mut(), bytes.len())];
            messages[i].msg_hdr.msg_iov = parts[i].as_mut_ptr();
            messages[i].msg_hdr.msg_iovlen = 2;
        }
        // SAFETY: the first `count` messages point to live buffers of the lengths that they name.
        let sent = unsafe {
            libc::sendmmsg(self.0.as_raw_fd(), messages.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT)
        };
        check(sent as isize)
    }

    /// Receives one frame per entry of `places`, in order, in one call.
    ///
    /// # Safety
    /// The buffers given to [`Place::into`] are still alive and nobody else refers to them.
    pub(super) unsafe fn receive_all(&self, places: &mut [Place]) -> io::Result<usize> {
        let count = places.len().min(BATCH);
        let mut parts = [[NO_BYTES; 3]; BATCH];
        let mut messages = [no_message(); BATCH];
        for (i, place) in places[..count].iter_mut().enumerate() {
            parts[i] = [io_vec(place.header.as_mut_ptr(), VNET_BYTES), place.parts[0], place.parts[1]];
            messages[i].msg_hdr.msg_iov = parts[i].as_mut_ptr();
            messages[i].msg_hdr.msg_iovlen = 3;
        }
        let no_timeout = std::ptr::null_mut();
        // SAFETY: the first `count` messages point to buffers of the lengths that they name, alive and
        // untouched as this function demands.
        let received = unsafe {
            libc::recvmmsg(
                self.0.as_raw_fd(),
                messages.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                no_timeout,
            )
        };
        let received = check(received as isize)?;
        for (place, message) in places[..received].iter_mut().zip(&messages) {
            place.len = (message.msg_len as usize).saturating_sub(VNET_BYTES);
        }
        Ok(received)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where one received frame goes.
pub(super) struct Place {
    /// Its virtio-net header.
    pub(super) header: [u8; VNET_BYTES],
    /// Its length, which may be more than the place holds: then the rest is lost.
    pub(super) len: usize,
    parts: [libc::iovec; 2],
}

impl Place {
    /// A place that throws the frame away and keeps its length.
    pub(super) fn nowhere() -> Place {
        Place { header: [0; VNET_BYTES], len: 0, parts: [NO_BYTES; 2] }
    }

    /// Into `bytes`, leaving a gap of `gap` bytes after the two addresses for a VLAN tag.
    pub(super) fn into(bytes: &mut [u8], gap: usize) -> Place {
        let addresses = super::ADDRESSES_BYTES.min(bytes.len());
        let (head, tail) = bytes.split_at_mut(addresses);
        let rest = tail.get_mut(gap..).unwrap_or_default();
        Place {
            header: [0; VNET_BYTES],
            len: 0,
            parts: [io_vec(head.as_mut_ptr(), head.len()), io_vec(rest.as_mut_ptr(), rest.len())],
        }
    }
}

const NO_BYTES: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn io_vec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

fn no_message() -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is plain numbers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the value is valid for the size given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result as isize).map(drop)
}
