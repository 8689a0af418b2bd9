//! Answers to tenants: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861) for addresses behind tunnels
//! and behind the tenant's other ports.
//!
//! Requests are broadcast and the overlay does not flood; but it knows every endpoint, so it answers in the
//! endpoint's name, in the same frame. Requests for an address of the very attachment that asks (probes for
//! duplicates, announcements) are nobody else's business and end here.

use std::net::{IpAddr, Ipv6Addr};

use frame::{DropReason, Frame, Pool};
use wire::icmp6::Neighbour;
use wire::{EtherType, Mac, arp, ethernet, ipv6};

use crate::neighbours::{write_advertisement, write_arp};
use crate::tables::{Place, Tables, TenantView};

/// What became of a tenant's request.
#[derive(Debug)]
#[must_use]
pub enum Answer {
    /// The frame now is the answer: transmit it on its `egress_port`. Count the request under
    /// [`DropReason::Answered`] and the answer as generated.
    Reply(Frame),
    /// Freed without an answer (a probe for an address of the sender's own): count it.
    Dropped(DropReason),
    /// Nobody here knows the address: trap the frame.
    Trap(Frame),
}

/// Answers a request that [`crate::process_tenant`] judged [`crate::Verdict::Local`].
pub fn process(tables: &Tables, pool: &mut Pool, mut frame: Frame) -> Answer {
    match answer(tables, pool, &mut frame) {
        Ok(true) => Answer::Reply(frame),
        Ok(false) => Answer::Trap(frame),
        Err(why) => {
            pool.free(frame);
            Answer::Dropped(why)
        }
    }
}

/// Who asks, for which address.
struct Request {
    target: IpAddr,
    asker: (Mac, IpAddr),
}

/// Turns the frame into its answer. False when the address is nobody's.
fn answer(tables: &Tables, pool: &Pool, frame: &mut Frame) -> Result<bool, DropReason> {
    let attachment = pool.meta(frame).attachment;
    let info = *tables.attachment_info(attachment).ok_or(DropReason::UnknownAttachment)?;
    let request = read(pool, frame)?;
    let Some((mac, place)) = whose(tables, &tables.view(info.tenant), request.target) else {
        return Ok(false);
    };
    if place == Place::Local(attachment) {
        return Err(DropReason::Answered);
    }
    if mac == Mac::ZERO {
        return Ok(false);
    }
    let written = match (request.target, request.asker) {
        (IpAddr::V4(target), (asker_mac, IpAddr::V4(asker))) => {
            let reply = arp::Packet {
                operation: arp::Operation::Reply,
                sender_mac: mac,
                sender_ip: target,
                target_mac: asker_mac,
                target_ip: asker,
            };
            write_arp(pool, frame, asker_mac, &reply)
        }
        (IpAddr::V6(target), (asker_mac, IpAddr::V6(asker))) => {
            write_advertisement(pool, frame, (mac, target), (asker_mac, asker))
        }
        _ => return Err(DropReason::Malformed),
    };
    written.map_err(|_| DropReason::NoFrame)?;
    crate::classify::return_to_sender(pool, frame, &info)
}

fn read(pool: &Pool, frame: &Frame) -> Result<Request, DropReason> {
    let ether = ethernet::View::parse(pool.bytes(frame)).map_err(crate::classify::reason)?;
    if ether.ethertype() == EtherType::ARP {
        let packet = arp::Packet::parse(ether.payload()).map_err(crate::classify::reason)?;
        let asker = (packet.sender_mac, packet.sender_ip.into());
        return Ok(Request { target: packet.target_ip.into(), asker });
    }
    let ip = ipv6::View::parse(ether.payload()).map_err(crate::classify::reason)?;
    match Neighbour::parse(&ip).map_err(crate::classify::reason)? {
        Neighbour::Solicitation { target, .. } => {
            Ok(Request { target: target.into(), asker: (ether.src(), ip.src().into()) })
        }
        Neighbour::Advertisement { .. } => Err(DropReason::UnsupportedType),
    }
}

/// The MAC address of an address, and where it is. Link-local addresses that show their MAC need no entry.
fn whose(tables: &Tables, view: &TenantView<'_>, target: IpAddr) -> Option<(Mac, Place)> {
    let (v6, number) = match target {
        IpAddr::V4(ip) => (false, u128::from(ip.to_bits())),
        IpAddr::V6(ip) => (true, ip.to_bits()),
    };
    if let Some(endpoint) = tables.endpoint(view, v6, number) {
        return Some((endpoint.mac, endpoint.place));
    }
    let IpAddr::V6(ip) = target else { return None };
    let mac = mac_of_link_local(ip)?;
    Some((mac, tables.mac_place(view.id, mac)?))
}

/// The MAC address from which a link-local address was formed (RFC 4291, appendix A), if it was.
fn mac_of_link_local(ip: Ipv6Addr) -> Option<Mac> {
    let octets = ip.octets();
    let [a, b, c, 0xff, 0xfe, d, e, f] = *octets.last_chunk::<8>()? else { return None };
    let mac = Mac([a ^ 2, b, c, d, e, f]);
    (crate::classify::link_local_of(mac) == ip.to_bits()).then_some(mac)
}
