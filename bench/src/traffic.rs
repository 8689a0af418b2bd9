//! Packets and configurations: a client behind one node, servers behind another.
//!
//! Frames have real headers with right checksums. Flow `n` of a trace goes to a server drawn from all rules
//! by a fixed generator, so that every run and every peer sees the same packets in the same order.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use engine::overlay::{
    Action, Attachment, Config, Destination, Encapsulation, PortId, Prefix, Remote, Rule, Source, Tenant,
    TenantId, Underlay, VolumeId, Vtep,
};
use engine::port::generator::{Flow, udp_frame};
use engine::port::pcap::{LinkType, Writer};
use engine::wire::{EtherType, Mac, Vni, arp, ethernet, ipv4, protocol, udp, vxlan};

use crate::Outcome;

/// The tenant's port.
pub const TENANT: PortId = PortId(1);
/// Another port of the same tenant, behind which the servers live when they are local.
pub const SERVERS: PortId = PortId(2);
/// The way to the other node.
pub const UNDERLAY: PortId = PortId(3);
/// The tenant's network identifier.
pub const VNI: u32 = 100;
/// Outer headers: Ethernet, IPv4, UDP, VXLAN.
pub const OUTER_BYTES: usize = 50;
/// UDP port of the servers.
pub const SERVICE: u16 = 3260;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const FIRST_SERVER: u32 = 0x0b00_0000;
const FIRST_CLIENT_PORT: u16 = 10_000;

/// Which node of the pair a configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Has the client, sends into the tunnel.
    Client,
    /// Has the servers, takes out of the tunnel.
    Server,
    /// Has both: no tunnel.
    Both,
}

/// The configuration of one side with one rule per server; `metered` gives each rule a volume.
pub fn config(side: Side, rules: u32, metered: bool) -> Config {
    let node = if side == Side::Server { 2 } else { 1 };
    let underlay = Underlay {
        ipv4: Some(Prefix { address: vtep(node), bits: 24 }),
        mtu_bytes: 1600,
        ..Underlay::ethernet(UNDERLAY, vtep_mac(node))
    };
    let peer = Vtep { ip: vtep(3 - node).into(), port: None };
    let client = Prefix::host(IpAddr::from(CLIENT));
    let servers = || (0..rules).map(|number| Prefix::host(IpAddr::from(server(number))));
    let client_here = || {
        let sources = vec![Source { ip: client, mac: Some(CLIENT_MAC) }];
        Attachment { port: TENANT, vlan: None, sources }
    };
    let servers_here = |port| {
        let sources = servers().map(|ip| Source { ip, mac: Some(SERVER_MAC) }).collect();
        Attachment { port, vlan: None, sources }
    };
    let rule = |(number, prefix)| Rule {
        tenant: TenantId(1),
        destination: Destination::Ip(prefix),
        transport: None,
        destination_port: Some(SERVICE),
        source_port: None,
        action: Action::Forward { volume: metered.then_some(VolumeId(number)), vtep: peer },
    };
    let (attachments, remotes, rules) = match side {
        Side::Client => (vec![client_here()], vec![], (0..rules).zip(servers()).map(rule).collect()),
        Side::Server => {
            let remote = Remote { ip: client, mac: Some(CLIENT_MAC), vtep: peer };
            (vec![servers_here(TENANT)], vec![remote], vec![])
        }
        Side::Both => (vec![client_here(), servers_here(SERVERS)], vec![], vec![]),
    };
    let tenant = Tenant {
        id: TenantId(1),
        // INVARIANT: 100 fits 24 bits; a default would only be another number.
        vni: Vni::new(VNI).unwrap_or_default(),
        encapsulation: Encapsulation::Vxlan,
        underlay: UNDERLAY,
        attachments,
        remotes,
    };
    Config { underlays: vec![underlay], tenants: vec![tenant], rules, ..Config::default() }
}

/// `flows` frames from the client, each of another flow, to servers drawn uniformly from `rules`; every
/// server once before any comes twice, so that all rules are used when there are that many flows.
pub fn trace(flows: u32, rules: u32, frame_bytes: usize) -> Outcome<Vec<Vec<u8>>> {
    let mut order: Vec<u32> = (0..flows).map(|flow| flow % rules.max(1)).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u32 + 1) as usize);
    }
    let frame = |(flow, number): (u32, u32)| {
        let flow = Flow {
            macs: (CLIENT_MAC.0, SERVER_MAC.0),
            addresses: (CLIENT, server(number)),
            ports: (FIRST_CLIENT_PORT + (flow % 50_000) as u16, SERVICE),
        };
        udp_frame(&flow, frame_bytes).map_err(|error| format!("a frame of {frame_bytes} bytes: {error}"))
    };
    (0..flows).zip(order).map(frame).collect()
}

/// The same frames as the client's node would send them to the servers' node.
pub fn encapsulated(inner: &[Vec<u8>]) -> Outcome<Vec<Vec<u8>>> {
    inner
        .iter()
        .zip(0_u32..)
        .map(|(frame, flow)| wrap(frame, flow))
        .collect::<Result<_, _>>()
        .map_err(|error: engine::wire::EmitError| format!("an encapsulated frame: {error}"))
}

fn wrap(inner: &[u8], flow: u32) -> Result<Vec<u8>, engine::wire::EmitError> {
    let mut frame = vec![0; OUTER_BYTES + inner.len()];
    frame[OUTER_BYTES..].copy_from_slice(inner);
    let macs = (vtep_mac(1), vtep_mac(2));
    ethernet::Header { dst: macs.1, src: macs.0, tag: None, ethertype: EtherType::IPV4 }.emit(&mut frame)?;
    let udp_bytes = frame.len() - 34;
    let ip = ipv4::Header {
        dscp: 0,
        ecn: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol: protocol::UDP,
        src: vtep(1),
        dst: vtep(2),
        options: &[],
        payload_bytes: udp_bytes,
    };
    ip.emit(&mut frame[14..])?;
    let src_port = udp::entropy_port(flow.wrapping_mul(0x9e37_79b9));
    udp::Header { src_port, dst_port: vxlan::UDP_PORT, payload_bytes: udp_bytes - udp::HEADER_BYTES }
        .emit(&mut frame[34..])?;
    vxlan::Header { vni: Vni::new(VNI).unwrap_or_default() }.emit(&mut frame[42..])?;
    Ok(frame)
}

/// The server's node asks for the address of the client's node, which tells that one where to send.
pub fn introduction() -> Outcome<Vec<u8>> {
    let packet = arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: vtep_mac(2),
        sender_ip: vtep(2),
        target_mac: Mac::ZERO,
        target_ip: vtep(1),
    };
    let header =
        ethernet::Header { dst: Mac::BROADCAST, src: vtep_mac(2), tag: None, ethertype: EtherType::ARP };
    let mut frame = vec![0; ethernet::FRAME_BYTES_MIN];
    let told = header.emit(&mut frame).and_then(|_| packet.emit(&mut frame[14..]));
    told.map(|_| frame).map_err(|error| format!("an ARP request: {error}"))
}

/// Writes frames to a capture file.
pub fn write_pcap(path: &Path, frames: &[Vec<u8>]) -> Outcome<PathBuf> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut writer = Writer::create(path, LinkType::Ethernet, u64::MAX).map_err(failed)?;
    for (time_ns, frame) in (0..).zip(frames) {
        writer.write(time_ns, frame).map_err(failed)?;
    }
    writer.flush().map_err(failed)?;
    Ok(path.to_owned())
}

/// Address of server `number`.
pub fn server(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_SERVER + number)
}

/// MAC address of node 1 or 2 on the underlay.
pub fn vtep_mac(node: u8) -> Mac {
    Mac([2, 0, 0, 0, 0xaa, node])
}

/// Tunnel address of node 1 or 2.
pub fn vtep(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 1, node)
}

/// xorshift64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) % u64::from(bound)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_uses_every_rule_and_has_as_many_flows_as_asked_for() {
        let trace = trace(1_000, 1_000, 64).expect("fits");
        let mut servers: Vec<&[u8]> = trace.iter().map(|frame| &frame[30..34]).collect();
        assert!(servers.windows(2).any(|pair| pair[0] > pair[1]), "not in order");
        servers.sort_unstable();
        servers.dedup();
        assert_eq!(servers.len(), 1_000);
        assert!(trace.iter().all(|frame| frame.len() == 64));
    }

    #[test]
    fn a_wrapped_frame_has_a_valid_header_before_the_same_bytes() {
        let inner = trace(1, 1, 64).expect("fits");
        let outer = encapsulated(&inner).expect("fits");
        let ip = ipv4::View::parse(&outer[0][14..]).expect("IPv4");
        assert!(ip.checksum_ok());
        let tunnel = vxlan::View::parse(&outer[0][42..]).expect("VXLAN");
        assert_eq!((tunnel.vni().value(), tunnel.payload()), (VNI, &inner[0][..]));
    }
}
