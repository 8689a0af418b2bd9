//! Two gateways, two tenants with the same addresses, and frames between them.
//!
//! Node `n` has tunnel endpoint 192.0.2.n and 2001:db8::n. Tenant `t` has host `n` behind node `n`, with
//! addresses 10.0.0.n and fd00::n and MAC 02:00:00:00:t:n, on port `t`.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use frame::{Frame, Meta, Pool, Slab, SlabConfig};
use overlay::too_big::TooBig;
use overlay::*;
use wire::{EtherType, Mac, Vni, arp, ethernet, ipv4, ipv6, protocol, tcp, udp};

pub const UNDERLAY: PortId = PortId(9);

pub fn mac(tenant: u8, host: u8) -> Mac {
    Mac([2, 0, 0, 0, tenant, host])
}

pub fn underlay_mac(node: u8) -> Mac {
    Mac([2, 0xff, 0, 0, 0, node])
}

pub fn v4(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host).into()
}

pub fn v6(host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
}

pub fn vtep(node: u8, six: bool) -> IpAddr {
    if six {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node.into()).into()
    } else {
        Ipv4Addr::new(192, 0, 2, node).into()
    }
}

pub fn prefix(text: &str) -> Prefix<IpAddr> {
    let (address, bits) = text.split_once('/').unwrap();
    Prefix { address: address.parse().unwrap(), bits: bits.parse().unwrap() }
}

/// How the two nodes are joined.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub encapsulation: Encapsulation,
    pub six: bool,
    pub checksum: bool,
    pub kind: UnderlayKind,
}

impl Link {
    pub const VXLAN: Link = Link {
        encapsulation: Encapsulation::Vxlan,
        six: false,
        checksum: false,
        kind: UnderlayKind::Ethernet,
    };

    pub fn all() -> impl Iterator<Item = Link> {
        let kinds = [UnderlayKind::Ethernet, UnderlayKind::Datagram];
        kinds.into_iter().flat_map(|kind| {
            [Encapsulation::Vxlan, Encapsulation::Geneve].into_iter().flat_map(move |encapsulation| {
                [(false, false), (false, true), (true, false), (true, true)].map(|(six, checksum)| Link {
                    encapsulation,
                    six,
                    checksum,
                    kind,
                })
            })
        })
    }
}

pub fn config(node: u8, link: Link) -> Config {
    let peer = 3 - node;
    let underlay = Underlay {
        kind: link.kind,
        ipv4: Some(Prefix { address: Ipv4Addr::new(192, 0, 2, node), bits: 24 }),
        ipv6: Some(Prefix { address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node.into()), bits: 64 }),
        outer_checksum: link.checksum,
        ..Underlay::ethernet(UNDERLAY, underlay_mac(node))
    };
    let tenant = |id: u8| Tenant {
        id: TenantId(id.into()),
        vni: Vni::new(u32::from(id) * 100).unwrap(),
        encapsulation: link.encapsulation,
        underlay: UNDERLAY,
        attachments: vec![Attachment {
            port: PortId(id.into()),
            vlan: None,
            sources: [v4(node), v6(node)]
                .map(|ip| Source { ip: Prefix::host(ip), mac: Some(mac(id, node)) })
                .to_vec(),
        }],
        remotes: [v4(peer), v6(peer)]
            .map(|ip| Remote {
                ip: Prefix::host(ip),
                mac: Some(mac(id, peer)),
                vtep: Vtep { ip: vtep(peer, link.six), port: None },
            })
            .to_vec(),
    };
    Config {
        underlays: vec![underlay],
        tenants: vec![tenant(1), tenant(2)],
        rules: Vec::new(),
        volumes: Vec::new(),
        epoch: 7,
    }
}

/// One gateway.
pub struct Node {
    pub tables: Tables,
    pub neighbours: Neighbours,
    pub too_big: TooBig,
    pub pool: Pool,
    pub outcomes: Outcomes,
    pub now_ns: u64,
}

impl Node {
    pub fn new(config: &Config) -> Node {
        let tables = Tables::build(config, None).unwrap();
        let slab = Slab::new(SlabConfig { frames: 1024, jumbo_frames: 4, hugepages: false }).unwrap();
        Node {
            neighbours: Neighbours::new(&tables, NeighbourLimits::default()),
            too_big: TooBig::new(),
            pool: Pool::new(&slab),
            tables,
            outcomes: Outcomes::default(),
            now_ns: 1,
        }
    }

    /// A node whose neighbour `peer` is resolved.
    pub fn resolved(config: &Config, peer: u8) -> Node {
        let mut node = Node::new(config);
        for six in [false, true] {
            node.announce(peer, six);
        }
        node
    }

    /// The peer asks for our address, which teaches us its own.
    pub fn announce(&mut self, peer: u8, six: bool) {
        let own = 3 - peer;
        let request = request(underlay_mac(peer), vtep(peer, six), vtep(own, six));
        let frame = self.frame(&request, UNDERLAY.0);
        match self.neighbours.process(&self.tables, &mut self.pool, frame, self.now_ns) {
            Processed::Reply(frame) => self.pool.free(frame),
            Processed::Dropped(why) => assert_ne!(why, frame::DropReason::Malformed),
        }
    }

    pub fn frame(&mut self, bytes: &[u8], port: u16) -> Frame {
        let alloc = if bytes.len() > 3400 { self.pool.alloc_jumbo() } else { self.pool.alloc() };
        let mut frame = alloc.unwrap();
        assert!(self.pool.fill(&mut frame, bytes));
        self.pool.meta_mut(&mut frame).ingress_port = port;
        frame
    }

    pub fn judge_tenant(&mut self, frame: &mut Frame) -> Verdict {
        let port = PortId(self.pool.meta(frame).ingress_port);
        process_tenant(&self.tables, &self.pool, port, std::slice::from_mut(frame), &mut self.outcomes);
        self.outcomes.verdicts[0]
    }

    pub fn judge_underlay(&mut self, frame: &mut Frame) -> Verdict {
        let port = PortId(self.pool.meta(frame).ingress_port);
        process_underlay(&self.tables, &self.pool, port, std::slice::from_mut(frame), &mut self.outcomes);
        self.outcomes.verdicts[0]
    }

    /// A tenant's frame: verdict, metadata and bytes afterwards.
    pub fn tenant(&mut self, port: u16, bytes: &[u8]) -> (Verdict, Meta, Vec<u8>) {
        let mut frame = self.frame(bytes, port);
        let verdict = self.judge_tenant(&mut frame);
        self.close(verdict, frame)
    }

    /// A frame from the underlay: verdict, metadata and bytes afterwards.
    pub fn underlay(&mut self, bytes: &[u8]) -> (Verdict, Meta, Vec<u8>) {
        let mut frame = self.frame(bytes, UNDERLAY.0);
        let verdict = self.judge_underlay(&mut frame);
        self.close(verdict, frame)
    }

    fn close(&mut self, verdict: Verdict, frame: Frame) -> (Verdict, Meta, Vec<u8>) {
        let (meta, bytes) = (self.pool.meta(&frame).clone(), self.pool.bytes(&frame).to_vec());
        self.pool.free(frame);
        (verdict, meta, bytes)
    }

    /// Sends one judged frame; returns what became of it and what left.
    pub fn encapsulate(&mut self, frame: Frame, trace: u64) -> (Encapsulated, Vec<Vec<u8>>) {
        let mut sent = Vec::new();
        let tunnel = Tunnel { trace, now_ns: self.now_ns };
        let result = encapsulate(
            &self.tables,
            &mut self.neighbours,
            &mut self.too_big,
            &mut self.pool,
            frame,
            &tunnel,
            &mut |pool, frame| {
                assert_eq!(pool.meta(&frame).egress_port, UNDERLAY.0);
                sent.push(pool.bytes(&frame).to_vec());
                pool.free(frame);
            },
        );
        (result, sent)
    }

    /// A tenant's frame all the way into the tunnel.
    pub fn send(&mut self, port: u16, bytes: &[u8]) -> Vec<u8> {
        let mut frame = self.frame(bytes, port);
        assert_eq!(self.judge_tenant(&mut frame), Verdict::Forward);
        let (result, mut sent) = self.encapsulate(frame, 0);
        assert!(matches!(result, Encapsulated::Sent), "{result:?}");
        sent.remove(0)
    }
}

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    pub src_port: u16,
    pub dst_port: u16,
    pub ecn: u8,
    pub dscp: u8,
}

impl Packet {
    /// UDP of tenant `tenant` from host `from` to host `to`.
    pub fn new(tenant: u8, from: u8, to: u8, six: bool) -> Packet {
        let ip = if six { v6 } else { v4 };
        Packet {
            src_mac: mac(tenant, from),
            dst_mac: mac(tenant, to),
            src: ip(from),
            dst: ip(to),
            proto: protocol::UDP,
            src_port: 1000,
            dst_port: 2000,
            ecn: 0,
            dscp: 0,
        }
    }

    pub fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        let transport = self.transport(payload);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = ipv4::Header {
                    dscp: self.dscp,
                    ecn: self.ecn,
                    ident: 0,
                    dont_fragment: true,
                    ttl: 64,
                    protocol: self.proto,
                    src,
                    dst,
                    options: &[],
                    payload_bytes: transport.len(),
                };
                let mut ip = vec![0; ipv4::HEADER_BYTES];
                header.emit(&mut ip).unwrap();
                ethernet_frame(self.dst_mac, self.src_mac, EtherType::IPV4, &[ip, transport].concat())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = ipv6::Header {
                    dscp: self.dscp,
                    ecn: self.ecn,
                    flow_label: 0,
                    next_header: self.proto,
                    hop_limit: 64,
                    src,
                    dst,
                    payload_bytes: transport.len(),
                };
                let mut ip = vec![0; ipv6::HEADER_BYTES];
                header.emit(&mut ip).unwrap();
                ethernet_frame(self.dst_mac, self.src_mac, EtherType::IPV6, &[ip, transport].concat())
            }
            _ => panic!("mixed families"),
        }
    }

    /// Transport header and payload; checksums zero, except that nobody looks.
    fn transport(&self, payload: &[u8]) -> Vec<u8> {
        let mut head = match self.proto {
            protocol::UDP => {
                let mut head = vec![0; udp::HEADER_BYTES];
                head[4..6].copy_from_slice(&((udp::HEADER_BYTES + payload.len()) as u16).to_be_bytes());
                head
            }
            protocol::TCP => {
                let mut head = vec![0; tcp::HEADER_BYTES];
                head[12] = 0x50;
                head
            }
            _ => return payload.to_vec(),
        };
        head[..2].copy_from_slice(&self.src_port.to_be_bytes());
        head[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        head.extend_from_slice(payload);
        head
    }
}

pub fn ethernet_frame(dst: Mac, src: Mac, ethertype: EtherType, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER_BYTES];
    ethernet::Header { dst, src, tag: None, ethertype }.emit(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

/// The same frame with VLAN tags.
pub fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for tag in tags {
        out.extend_from_slice(&[0x81, 0]);
        out.extend_from_slice(&tag.to_be_bytes());
    }
    out.extend_from_slice(&frame[12..]);
    out
}

/// An ARP packet in a frame.
pub fn arp_frame(
    operation: arp::Operation,
    dst: Mac,
    sender: (Mac, IpAddr),
    target: (Mac, IpAddr),
) -> Vec<u8> {
    let (IpAddr::V4(sender_ip), IpAddr::V4(target_ip)) = (sender.1, target.1) else { panic!("IPv6 in ARP") };
    let packet = arp::Packet { operation, sender_mac: sender.0, sender_ip, target_mac: target.0, target_ip };
    let mut body = vec![0; arp::PACKET_BYTES];
    packet.emit(&mut body).unwrap();
    ethernet_frame(dst, sender.0, EtherType::ARP, &body)
}

/// A neighbour discovery message in a frame.
pub fn discovery(src: (Mac, Ipv6Addr), dst: (Mac, Ipv6Addr), message: wire::icmp6::Neighbour) -> Vec<u8> {
    let mut body = vec![0; message.message_bytes()];
    message.emit(&mut body, src.1, dst.1).unwrap();
    let header = ipv6::Header {
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        next_header: protocol::ICMPV6,
        hop_limit: 255,
        src: src.1,
        dst: dst.1,
        payload_bytes: body.len(),
    };
    let mut ip = vec![0; ipv6::HEADER_BYTES];
    header.emit(&mut ip).unwrap();
    ethernet_frame(dst.0, src.0, EtherType::IPV6, &[ip, body].concat())
}

pub fn six(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V6(ip) => ip,
        IpAddr::V4(_) => panic!("IPv4"),
    }
}

/// The group on which the owner of `target` listens.
pub fn solicited(target: Ipv6Addr) -> (Mac, Ipv6Addr) {
    let group = wire::icmp6::solicited_node(target);
    (Mac::from_ipv6_multicast(group), group)
}

/// A broadcast request, ARP or solicitation, of `mac` with address `ip` for `target`.
pub fn request(mac: Mac, ip: IpAddr, target: IpAddr) -> Vec<u8> {
    match (ip, target) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            arp_frame(arp::Operation::Request, Mac::BROADCAST, (mac, ip), (Mac::ZERO, target))
        }
        (IpAddr::V6(ip), IpAddr::V6(target)) => {
            let source_mac = (!ip.is_unspecified()).then_some(mac);
            let message = wire::icmp6::Neighbour::Solicitation { target, source_mac };
            discovery((mac, ip), solicited(target), message)
        }
        _ => panic!("mixed families"),
    }
}
