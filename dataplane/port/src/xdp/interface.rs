//! Facts about an interface that decide whether AF_XDP can work on it, asked once at open.
//!
//! All of it goes through ioctl on a socket, never through sysfs alone: `/sys` shows the network namespace
//! it was mounted in, which need not be ours.

use std::io;
use std::os::fd::OwnedFd;

use frame::FRAME_BYTES_MAX;

use super::{abi, sys};
use crate::OpenError;

/// Ethernet header and one VLAN tag, which the MTU does not count.
const HEADER_BYTES: u32 = 14 + 4;
/// Largest MTU whose frames fit any chunk of the slab.
pub(super) const MTU_BYTES_MAX: u32 = FRAME_BYTES_MAX as u32 - HEADER_BYTES;

/// An interface that exists, is up, and whose frames fit.
pub(super) struct Interface {
    pub name: String,
    pub index: u32,
    pub mtu_bytes: u32,
    pub mac: Option<[u8; 6]>,
    control: OwnedFd,
}

impl Interface {
    /// Looks the interface up in the network namespace of the calling thread, and refuses one that AF_XDP
    /// cannot work on.
    pub fn find(name: &str) -> Result<Interface, OpenError> {
        let (interface, up) = Interface::ask(name)?;
        if !up {
            return Err(OpenError::Down { name: interface.name });
        }
        let mtu_bytes = interface.mtu_bytes;
        if mtu_bytes > MTU_BYTES_MAX {
            let what = format!(
                "the MTU of {mtu_bytes} makes frames that do not fit; `ip link set {name} mtu {MTU_BYTES_MAX}` or less"
            );
            return Err(OpenError::Spec { name: interface.name, what });
        }
        Ok(interface)
    }

    /// What the kernel knows about an interface, and whether it is up.
    pub fn ask(name: &str) -> Result<(Interface, bool), OpenError> {
        let io_error = |what| move |source| OpenError::Io { name: name.to_owned(), what, source };
        // Any socket takes interface requests; this kind exists in every kernel.
        let control = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM).map_err(io_error("opening a socket"))?;
        let ask = |request| sys::interface_request(&control, name, request);

        let index = ask(libc::SIOCGIFINDEX).map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV) => OpenError::Missing { name: name.to_owned() },
            _ => io_error("asking for the index")(source),
        })?;
        let flags = ask(libc::SIOCGIFFLAGS).map_err(io_error("asking for the flags"))?;
        let mtu = ask(libc::SIOCGIFMTU).map_err(io_error("asking for the MTU"))?;
        let address = ask(libc::SIOCGIFHWADDR).map_err(io_error("asking for the address"))?;
        // SAFETY: SIOCGIFINDEX fills this member.
        let index = unsafe { index.ifr_ifru.ifru_ifindex } as u32;
        // SAFETY: SIOCGIFFLAGS fills this member.
        let flags = libc::c_int::from(unsafe { flags.ifr_ifru.ifru_flags });
        // SAFETY: SIOCGIFMTU fills this member.
        let mtu_bytes = unsafe { mtu.ifr_ifru.ifru_mtu } as u32;
        // SAFETY: SIOCGIFHWADDR fills this member.
        let address = unsafe { address.ifr_ifru.ifru_hwaddr };

        let ethernet = address.sa_family == libc::ARPHRD_ETHER;
        let mac = ethernet.then(|| std::array::from_fn(|i| address.sa_data[i] as u8));
        let interface = Interface { name: name.to_owned(), index, mtu_bytes, mac, control };
        Ok((interface, flags & libc::IFF_UP != 0))
    }

    /// Refuses a queue that does not exist. AF_XDP needs both directions: with a receive queue alone, the
    /// kernel would accept frames to send and never send them.
    pub fn check_queue(&self, queue: u32) -> Result<(), OpenError> {
        let mut channels = abi::Channels { command: abi::ETHTOOL_GCHANNELS, ..Default::default() };
        // SAFETY: the structure of ETHTOOL_GCHANNELS.
        let known = unsafe { sys::ethtool(&self.control, &self.name, &mut channels) };
        // A driver that cannot tell has one queue, or refuses the bind later.
        let queues = match known {
            Ok(()) => channels.combined + channels.rx.min(channels.tx),
            Err(_) => super::QUEUES_MAX,
        };
        if queue < queues.min(super::QUEUES_MAX) {
            return Ok(());
        }
        Err(self.no_queue(queue, queues))
    }

    pub fn no_queue(&self, queue: u32, queues: u32) -> OpenError {
        OpenError::NoQueue { name: self.name.clone(), queue, queues }
    }

    /// What to say aloud about checksums: AF_XDP carries no offload metadata in copy mode, so a frame whose
    /// checksum the sender's stack left to "hardware" arrives unfinished and cannot be told from a broken
    /// one. Only software interfaces deliver such frames.
    pub fn checksum_warning(&self) -> Option<String> {
        let driver = self.driver().ok()?;
        match driver.as_str() {
            "veth" => match self.veth_peer() {
                Some(peer) if peer.checksums_itself() => None,
                Some(peer) => Some(format!(
                    "{} sends frames with unfinished checksums and they arrive broken; `ethtool -K {} tx off` turns that off",
                    peer.name, peer.name
                )),
                None => Some(format!(
                    "the other end of {} lies in another namespace; if a kernel stack sends there, `ethtool -K PEER tx off` must be set on it, or its checksums arrive unfinished",
                    self.name
                )),
            },
            "tun" | "virtio_net" => Some(format!(
                "{} ({driver}) may deliver frames with unfinished checksums; turn transmit checksum offload off on the sending side",
                self.name
            )),
            _ => None,
        }
    }

    fn driver(&self) -> io::Result<String> {
        let mut info = abi::DriverInfo { command: abi::ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        // SAFETY: the structure of ETHTOOL_GDRVINFO.
        unsafe { sys::ethtool(&self.control, &self.name, &mut info) }?;
        let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
        Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
    }

    /// The other end of a veth pair, if it is in the same namespace. Sysfs names it, and is believed only
    /// where it agrees with the kernel about our own index and the other end points back.
    fn veth_peer(&self) -> Option<Interface> {
        let number = |name: &str, file: &str| -> Option<u32> {
            std::fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?.trim().parse().ok()
        };
        let peer_index =
            number(&self.name, "iflink").filter(|_| number(&self.name, "ifindex") == Some(self.index))?;
        let peer_name = std::fs::read_dir("/sys/class/net")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| number(name, "ifindex") == Some(peer_index))?;
        let (peer, _) = Interface::ask(&peer_name).ok()?;
        let points_back = peer.index == peer_index && number(&peer_name, "iflink") == Some(self.index);
        (points_back && peer.driver().ok()? == "veth").then_some(peer)
    }

    fn checksums_itself(&self) -> bool {
        let mut value = abi::Value { command: abi::ETHTOOL_GTXCSUM, data: 1 };
        // SAFETY: the structure of ETHTOOL_GTXCSUM.
        unsafe { sys::ethtool(&self.control, &self.name, &mut value) }.is_ok() && value.data == 0
    }
}

#[cfg(test)]
mod tests;
