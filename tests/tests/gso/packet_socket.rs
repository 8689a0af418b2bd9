//! A raw AF_PACKET socket that speaks `struct virtio_net_hdr` (packet(7), `PACKET_VNET_HDR`).
//!
//! Deliberately not the data plane's own driver: it is the witness here. Sent frames may ask the kernel for
//! segmentation; received ones come with their VLAN tag put back (the kernel moves the outermost one into
//! `struct tpacket_auxdata`).

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// `struct virtio_net_hdr` without the number of buffers: flags, gso type, header length, gso size,
/// checksum start, checksum offset.
pub type VnetHeader = [u8; 10];

/// From linux/if_packet.h; libc has it not on every target.
const PACKET_VNET_HDR: libc::c_int = 15;

pub struct PacketSocket {
    socket: Socket,
}

impl PacketSocket {
    /// Opens the interface called `name` in the namespace of the calling thread.
    pub fn open(name: &str) -> io::Result<PacketSocket> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
        let index = rustix::net::netdevice::name_to_index(&socket, name)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        // Without full root only the ordinary limit can be had.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).is_err() {
            socket.set_recv_buffer_size(64 << 20)?;
        }
        for option in [PACKET_VNET_HDR, libc::PACKET_AUXDATA] {
            let on: libc::c_int = 1;
            // SAFETY: the value is a live int of the length given.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    option,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as libc::c_int;
        // SAFETY: the address is live and of the length given.
        let result = unsafe {
            let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(PacketSocket { socket })
    }

    /// Sends one frame, or super-segment.
    pub fn send(&self, header: &VnetHeader, frame: &[u8]) -> io::Result<()> {
        let bytes = [header, frame].concat();
        let sent = self.socket.send(&bytes)?;
        assert_eq!(sent, bytes.len(), "packets are sent whole");
        Ok(())
    }

    /// Receives one frame into `buffer`, which must have room for 65,550 bytes; fails after five seconds,
    /// or at once without `wait`.
    pub fn receive(&self, buffer: &mut Vec<u8>, wait: bool) -> io::Result<VnetHeader> {
        let mut header = VnetHeader::default();
        buffer.resize(1 << 17, 0);
        let mut parts = [
            libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
            libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() },
        ];
        let mut control = [0u64; 16];
        // SAFETY: all zeros is a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        // SAFETY: every pointer in `message` is live and of the length given beside it.
        let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, flags) };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        buffer.truncate(received as usize - header.len());
        if let Some((protocol, tag)) = stripped_tag(&message) {
            let tag = [protocol.to_be_bytes(), tag.to_be_bytes()].concat();
            buffer.splice(12..12, tag);
        }
        Ok(header)
    }
}

/// The VLAN tag that the kernel took out of a received frame: protocol and tag.
fn stripped_tag(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: `message` describes a control buffer that is live and that the kernel filled.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or a header within that buffer, which is aligned for it.
    let control = unsafe { first.as_ref() }?;
    assert_eq!((control.cmsg_level, control.cmsg_type), (libc::SOL_PACKET, libc::PACKET_AUXDATA));
    // SAFETY: the header lies in that buffer, its data behind it.
    let data = unsafe { libc::CMSG_DATA(first) }.cast::<libc::tpacket_auxdata>();
    // SAFETY: a control message of this type carries a tpacket_auxdata, whatever its alignment.
    let data = unsafe { data.read_unaligned() };
    let valid = data.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
    valid.then_some((data.tp_vlan_tpid, data.tp_vlan_tci))
}
