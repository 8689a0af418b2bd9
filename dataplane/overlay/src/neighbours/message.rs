//! The messages of ARP and neighbour discovery on an underlay: what is heard, asked and answered.

use std::net::{IpAddr, Ipv6Addr};

use frame::{DropReason, Flags, Frame, GsoKind, Pool};
use wire::icmp6::{self, Neighbour};
use wire::{EmitError, EtherType, Mac, arp, ethernet, ipv6, protocol};

use crate::Tables;
use crate::classify::reason;
use crate::tables::Local;

/// What a message says, whichever protocol it is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) port: u16,
    /// Of whom it speaks.
    pub(super) sender: IpAddr,
    /// The MAC address that it gives for `sender`.
    pub(super) mac: Option<Mac>,
    /// Somebody asks for one of our addresses.
    pub(super) asks: bool,
    /// Somebody answers us.
    pub(super) answers: bool,
    /// Meant for us and nobody else.
    pub(super) to_us: bool,
    /// The address that is asked for.
    target: IpAddr,
    /// Who asked, at the link layer.
    asker: Mac,
}

/// Reads a message; the reason is why there is none.
pub(super) fn hear(tables: &Tables, pool: &Pool, frame: &Frame) -> Result<Heard, DropReason> {
    let port = pool.meta(frame).ingress_port;
    let local = tables.local(port).ok_or(DropReason::UnknownAttachment)?;
    let ether = ethernet::View::parse(pool.bytes(frame)).map_err(reason)?;
    if ether.dst() != local.mac && !ether.dst().is_multicast() {
        return Err(DropReason::NotForUs);
    }
    match ether.ethertype() {
        EtherType::ARP => hear_arp(local, &ether),
        EtherType::IPV6 => hear_discovery(local, &ether),
        _ => Err(DropReason::UnsupportedType),
    }
}

fn hear_arp(local: &Local, ether: &ethernet::View<'_>) -> Result<Heard, DropReason> {
    let packet = arp::Packet::parse(ether.payload()).map_err(reason)?;
    let (sender, target) = (IpAddr::from(packet.sender_ip), IpAddr::from(packet.target_ip));
    let to_us = local.owns(target);
    let named = packet.sender_mac.is_unicast() && !packet.sender_ip.is_unspecified();
    Ok(Heard {
        port: local.port,
        sender,
        mac: named.then_some(packet.sender_mac),
        asks: to_us && packet.operation == arp::Operation::Request,
        answers: to_us && packet.operation == arp::Operation::Reply,
        to_us,
        target,
        asker: packet.sender_mac,
    })
}

fn hear_discovery(local: &Local, ether: &ethernet::View<'_>) -> Result<Heard, DropReason> {
    let ip = ipv6::View::parse(ether.payload()).map_err(reason)?;
    let heard = Heard {
        port: local.port,
        sender: ip.src().into(),
        mac: None,
        asks: false,
        answers: false,
        to_us: local.owns(ip.dst().into()),
        target: ip.dst().into(),
        asker: ether.src(),
    };
    match Neighbour::parse(&ip).map_err(reason)? {
        Neighbour::Solicitation { target, source_mac } => {
            let asks = local.owns(target.into());
            let mac = source_mac.filter(|mac| mac.is_unicast());
            Ok(Heard { mac, asks, to_us: asks, target: target.into(), ..heard })
        }
        Neighbour::Advertisement { target, target_mac, solicited, .. } => {
            let mac = target_mac.unwrap_or(ether.src());
            let mac = mac.is_unicast().then_some(mac);
            let answers = solicited && heard.to_us;
            Ok(Heard { sender: target.into(), mac, answers, ..heard })
        }
    }
}

/// Turns a request into its answer, to leave by the port it came from. False for a frame that is too small a
/// chunk for it.
pub(super) fn answer(tables: &Tables, pool: &Pool, frame: &mut Frame, heard: &Heard) -> bool {
    let Some(local) = tables.local(heard.port) else { return false };
    let written = match (heard.target, heard.sender) {
        (IpAddr::V4(own), IpAddr::V4(asker)) => {
            let packet = arp::Packet {
                operation: arp::Operation::Reply,
                sender_mac: local.mac,
                sender_ip: own,
                target_mac: heard.asker,
                target_ip: asker,
            };
            write_arp(pool, frame, heard.asker, &packet)
        }
        (IpAddr::V6(own), IpAddr::V6(asker)) => {
            write_advertisement(pool, frame, (local.mac, own), (heard.asker, asker))
        }
        _ => return false,
    };
    pool.meta_mut(frame).egress_port = heard.port;
    written.is_ok()
}

/// A request for the MAC address of `ip`; to `mac` alone when there is one to be confirmed. `None` when
/// there is no free frame.
pub(super) fn request(tables: &Tables, pool: &mut Pool, port: u16, ip: IpAddr, mac: Mac) -> Option<Frame> {
    let local = tables.local(port)?;
    let own = local.address_for(ip)?;
    let mut frame = pool.alloc()?;
    let known = (mac != Mac::ZERO).then_some(mac);
    let written = match (own, ip) {
        (IpAddr::V4(own), IpAddr::V4(ip)) => {
            let packet = arp::Packet {
                operation: arp::Operation::Request,
                sender_mac: local.mac,
                sender_ip: own,
                target_mac: Mac::ZERO,
                target_ip: ip,
            };
            write_arp(pool, &mut frame, known.unwrap_or(Mac::BROADCAST), &packet)
        }
        (IpAddr::V6(own), IpAddr::V6(ip)) => {
            write_solicitation(pool, &mut frame, (local.mac, own), ip, known)
        }
        _ => Err(EmitError::OutOfRange),
    };
    if written.is_err() {
        pool.free(frame);
        return None;
    }
    pool.meta_mut(&mut frame).egress_port = port;
    Some(frame)
}

/// Writes an ARP packet as a whole frame, padded to the shortest one.
pub(crate) fn write_arp(
    pool: &Pool,
    frame: &mut Frame,
    dst: Mac,
    packet: &arp::Packet,
) -> Result<(), EmitError> {
    let bytes = sized(pool, frame, ethernet::FRAME_BYTES_MIN)?;
    bytes.fill(0);
    let ether = ethernet::Header { dst, src: packet.sender_mac, tag: None, ethertype: EtherType::ARP };
    let at = ether.emit(bytes)?;
    packet.emit(bytes.get_mut(at..).unwrap_or_default())?;
    Ok(())
}

/// Writes the answer to a solicitation: `own` is who answers, `asker` who asked. A station without an address
/// yet (duplicate address detection) is answered by telling everybody (RFC 4861, clause 7.2.4).
pub(crate) fn write_advertisement(
    pool: &Pool,
    frame: &mut Frame,
    own: (Mac, Ipv6Addr),
    asker: (Mac, Ipv6Addr),
) -> Result<(), EmitError> {
    let solicited = !asker.1.is_unspecified();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = if solicited { asker } else { (Mac::from_ipv6_multicast(all_nodes), all_nodes) };
    let message = Neighbour::Advertisement {
        target: own.1,
        target_mac: Some(own.0),
        router: false,
        solicited,
        overrides: true,
    };
    write_discovery(pool, frame, own, to, &message)
}

fn write_solicitation(
    pool: &Pool,
    frame: &mut Frame,
    own: (Mac, Ipv6Addr),
    target: Ipv6Addr,
    known: Option<Mac>,
) -> Result<(), EmitError> {
    let group = icmp6::solicited_node(target);
    let to = match known {
        Some(mac) => (mac, target),
        None => (Mac::from_ipv6_multicast(group), group),
    };
    write_discovery(pool, frame, own, to, &Neighbour::Solicitation { target, source_mac: Some(own.0) })
}

fn write_discovery(
    pool: &Pool,
    frame: &mut Frame,
    from: (Mac, Ipv6Addr),
    to: (Mac, Ipv6Addr),
    message: &Neighbour,
) -> Result<(), EmitError> {
    let header_bytes = ethernet::HEADER_BYTES + ipv6::HEADER_BYTES;
    let bytes = sized(pool, frame, header_bytes + message.message_bytes())?;
    let ether = ethernet::Header { dst: to.0, src: from.0, tag: None, ethertype: EtherType::IPV6 };
    let ip_at = ether.emit(bytes)?;
    let ip = ipv6::Header {
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        next_header: protocol::ICMPV6,
        hop_limit: icmp6::NEIGHBOUR_HOP_LIMIT,
        src: from.1,
        dst: to.1,
        payload_bytes: message.message_bytes(),
    };
    ip.emit(bytes.get_mut(ip_at..).unwrap_or_default())?;
    message.emit(bytes.get_mut(header_bytes..).unwrap_or_default(), from.1, to.1)?;
    Ok(())
}

/// The frame's bytes at a new length. Offload requests of what it held before no longer apply.
fn sized<'a>(pool: &'a Pool, frame: &'a mut Frame, len: usize) -> Result<&'a mut [u8], EmitError> {
    if !pool.set_len(frame, len) {
        return Err(EmitError::NoRoom { needed_bytes: len });
    }
    let meta = pool.meta_mut(frame);
    meta.flags.clear(Flags::CSUM_PARTIAL);
    meta.flags.clear(Flags::PARSED);
    meta.gso = GsoKind::None;
    Ok(pool.bytes_mut(frame))
}
