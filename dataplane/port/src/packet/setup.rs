//! Opening: which options, in which order, and what to tell when the kernel says no.

use std::io;

use frame::FRAME_BYTES_MAX;

use super::ring::{RxRing, TxRing};
use super::socket::{Interface, PacketSocket};
use super::{ETHERNET_BYTES, Kick, PacketPort, PacketSpec, TAG_BYTES};
use crate::{OpenError, PortCaps, PortCounters, PortKind};

/// Opens the sockets, maps the rings and starts to receive.
pub(super) fn open(spec: &PacketSpec) -> Result<PacketPort, OpenError> {
    check_ring(spec)?;
    let name = spec.interface.as_str();
    let (rx_socket, tx_socket, bulk_socket) = (new_socket(name)?, new_socket(name)?, new_socket(name)?);
    let interface = usable(name, &rx_socket)?;
    // A longer frame lives in a jumbo chunk, and those go by message.
    let frame_bytes = (interface.mtu_bytes as usize + ETHERNET_BYTES + TAG_BYTES).min(FRAME_BYTES_MAX);
    let rx = set_up_rx(spec, &rx_socket, interface.index, frame_bytes)?;
    let tx = set_up_tx(spec, &tx_socket, interface.index, frame_bytes)?;
    set_up_bulk(name, &bulk_socket, interface.index)?;
    // Last, because from here on frames arrive.
    rx_socket
        .bind(interface.index, libc::ETH_P_ALL as u16)
        .map_err(|source| explain(name, "binding", source))?;
    join_fanout(spec, &rx_socket)?;
    let caps = PortCaps {
        kind: PortKind::Ethernet,
        mtu_bytes: interface.mtu_bytes,
        mac: Some(interface.mac),
        tx_partial_csum: true,
        tx_gso: true,
        rx_gso: true,
    };
    Ok(PacketPort {
        name: name.to_owned(),
        interface,
        rx,
        tx,
        rx_socket,
        tx_socket,
        bulk_socket,
        caps,
        counters: PortCounters::default(),
        kick: Kick::No,
        losing: false,
        turns: 0,
        failed: None,
    })
}

pub(super) fn check_ring(spec: &PacketSpec) -> Result<(), OpenError> {
    if (RING_FRAMES_MIN..=RING_FRAMES_MAX).contains(&spec.ring_frames) {
        return Ok(());
    }
    let what = format!(
        "ring_frames is {}, it must be between {RING_FRAMES_MIN} and {RING_FRAMES_MAX}",
        spec.ring_frames
    );
    Err(OpenError::Spec { name: spec.interface.clone(), what })
}

fn new_socket(name: &str) -> Result<PacketSocket, OpenError> {
    PacketSocket::new().map_err(|source| explain(name, "opening an AF_PACKET socket", source))
}

/// The interface, if frames can be sent and received on it.
fn usable(name: &str, socket: &PacketSocket) -> Result<Interface, OpenError> {
    let interface =
        socket.interface(name).map_err(|source| explain(name, "asking for the interface", source))?;
    if !matches!(interface.hardware, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK) {
        let what = format!("not an Ethernet interface (its hardware type is {})", interface.hardware);
        return Err(OpenError::Spec { name: name.to_owned(), what });
    }
    if !interface.up {
        return Err(OpenError::Down { name: name.to_owned() });
    }
    Ok(interface)
}

fn set_up_rx(
    spec: &PacketSpec,
    socket: &PacketSocket,
    index: i32,
    frame_bytes: usize,
) -> Result<RxRing, OpenError> {
    let name = spec.interface.as_str();
    set_up(name, socket)?;
    // Since Linux 4.20; without it our own frames are told apart by their type.
    let _ = socket.set(libc::PACKET_IGNORE_OUTGOING, &ON);
    socket
        .set(libc::PACKET_COPY_THRESH, &ON)
        .map_err(|source| explain(name, "setting PACKET_COPY_THRESH", source))?;
    let granted = grant_buffers(name, socket)?;
    if granted < QUEUE_BYTES {
        tracing::warn!(
            interface = name,
            granted_bytes = granted,
            wanted_bytes = QUEUE_BYTES,
            "small socket buffer: bursts of super-segments will be lost; give the process CAP_NET_ADMIN \
             or raise net.core.rmem_max"
        );
    }
    let ring = RxRing::new(socket, spec.ring_frames, frame_bytes)
        .map_err(|source| explain_ring(spec, "the receive ring", source))?;
    socket.set_promiscuous(index).map_err(|source| explain(name, "asking for all addresses", source))?;
    Ok(ring)
}

fn set_up_tx(
    spec: &PacketSpec,
    socket: &PacketSocket,
    index: i32,
    frame_bytes: usize,
) -> Result<TxRing, OpenError> {
    let name = spec.interface.as_str();
    set_up(name, socket)?;
    for (option, what) in [
        (libc::PACKET_LOSS, "setting PACKET_LOSS"),
        (libc::PACKET_QDISC_BYPASS, "setting PACKET_QDISC_BYPASS"),
    ] {
        socket.set(option, &ON).map_err(|source| explain(name, what, source))?;
    }
    grant_buffers(name, socket)?;
    let ring = TxRing::new(socket, spec.ring_frames, frame_bytes)
        .map_err(|source| explain_ring(spec, "the transmit ring", source))?;
    socket.bind(index, SEND_ONLY).map_err(|source| explain(name, "binding", source))?;
    Ok(ring)
}

fn set_up_bulk(name: &str, socket: &PacketSocket, index: i32) -> Result<(), OpenError> {
    set_up(name, socket)?;
    grant_buffers(name, socket)?;
    socket.bind(index, SEND_ONLY).map_err(|source| explain(name, "binding", source))
}

/// What all three sockets need, before any ring exists.
fn set_up(name: &str, socket: &PacketSocket) -> Result<(), OpenError> {
    socket
        .set(libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))
        .map_err(|source| explain(name, "setting PACKET_VERSION", source))?;
    socket.set(libc::PACKET_VNET_HDR, &ON).map_err(|source| explain(name, "setting PACKET_VNET_HDR", source))
}

fn grant_buffers(name: &str, socket: &PacketSocket) -> Result<usize, OpenError> {
    socket.set_buffers(QUEUE_BYTES).map_err(|source| explain(name, "setting the socket's buffers", source))
}

fn join_fanout(spec: &PacketSpec, socket: &PacketSocket) -> Result<(), OpenError> {
    let Some(group) = spec.fanout_group else { return Ok(()) };
    let argument = |flags: u32| u32::from(group) | ((libc::PACKET_FANOUT_HASH | flags) << 16);
    // The flag is as young as Linux 5.12; the group's first member decides for all.
    socket
        .set(libc::PACKET_FANOUT, &argument(FANOUT_IGNORE_OUTGOING))
        .or_else(|_| socket.set(libc::PACKET_FANOUT, &argument(0)))
        .map_err(|_| OpenError::Busy {
            name: spec.interface.clone(),
            what: "the fanout group",
            hint: "choose another fanout_group: this one belongs to another interface, mode or user",
        })
}

fn explain_ring(spec: &PacketSpec, what: &'static str, source: io::Error) -> OpenError {
    match source.raw_os_error() {
        Some(libc::ENOMEM | libc::EINVAL) => OpenError::Spec {
            name: spec.interface.clone(),
            what: format!(
                "no memory for {what} of {} frames ({source}); lower ring_frames",
                spec.ring_frames
            ),
        },
        _ => explain(&spec.interface, what, source),
    }
}

fn explain(name: &str, what: &'static str, source: io::Error) -> OpenError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenError::Permission {
            name,
            what,
            hint: "run as root, or give the binary the capability: `setcap cap_net_raw,cap_net_admin+ep FILE`",
        },
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
            OpenError::Kernel { name, what: "AF_PACKET", hint: "`modprobe af_packet` loads it" }
        }
        Some(libc::ENOPROTOOPT) => OpenError::Kernel { name, what, hint: "Linux 4.20 or newer has it" },
        Some(libc::ENODEV | libc::ENXIO) => OpenError::Missing { name },
        Some(libc::ENETDOWN) => OpenError::Down { name },
        _ => OpenError::Io { name, what, source },
    }
}

const ON: libc::c_int = 1;
/// Bound without a protocol, a socket receives nothing.
const SEND_ONLY: u16 = 0;
/// One burst must fit.
const RING_FRAMES_MIN: u32 = frame::BATCH as u32;
/// 64 MiB of slots at an MTU of 1,500.
const RING_FRAMES_MAX: u32 = 32768;
/// Room for about 150 super-segments on the socket's queue, and for every slot in flight.
const QUEUE_BYTES: usize = 16 << 20;
/// `PACKET_FANOUT_FLAG_IGNORE_OUTGOING` of linux/if_packet.h.
const FANOUT_IGNORE_OUTGOING: u32 = 0x4000;
