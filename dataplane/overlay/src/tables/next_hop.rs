//! Next hops and the header templates that encapsulation copies.
//!
//! A template is the whole outer header as it will leave, with zeros where [`crate::encapsulate`] patches:
//! neighbour's MAC, lengths, DSCP and ECN, source port, network identifier, option data and checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wire::checksum::Checksum;
use wire::geneve::{self, Tidegate};
use wire::{EmitError, EtherType, Mac, Vni, ethernet, ipv4, ipv6, protocol, udp, vxlan};

use crate::config::{Dscp, Encapsulation, Prefix, Underlay, UnderlayKind};

/// The tunnel headers that leave here.
pub(crate) const VXLAN_BYTES: usize = vxlan::HEADER_BYTES;
pub(crate) const GENEVE_BYTES: usize = geneve::HEADER_BYTES + Tidegate::OPTION_BYTES;
/// Ethernet, IP and UDP before them.
pub(crate) const OUTER_V4_BYTES: usize = ethernet::HEADER_BYTES + ipv4::HEADER_BYTES + udp::HEADER_BYTES;
pub(crate) const OUTER_V6_BYTES: usize = ethernet::HEADER_BYTES + ipv6::HEADER_BYTES + udp::HEADER_BYTES;
/// The bits of a traffic class that are ECN's.
const ECN_MASK: u8 = 0b11;
/// The longest of all templates.
const TEMPLATE_BYTES: usize = 96;

const _: () = assert!(OUTER_V6_BYTES + GENEVE_BYTES <= TEMPLATE_BYTES);

/// A local tunnel endpoint: what incoming frames are checked against.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) port: u16,
    pub(crate) datagram: bool,
    pub(crate) mac: Mac,
    pub(crate) ipv4: Option<Prefix<Ipv4Addr>>,
    pub(crate) ipv6: Option<Prefix<Ipv6Addr>>,
    pub(crate) vxlan_port: u16,
    pub(crate) geneve_port: u16,
}

impl Local {
    pub(crate) fn new(underlay: &Underlay) -> Local {
        Local {
            port: underlay.port.0,
            datagram: underlay.kind == UnderlayKind::Datagram,
            mac: underlay.mac,
            ipv4: underlay.ipv4,
            ipv6: underlay.ipv6,
            vxlan_port: underlay.vxlan_port,
            geneve_port: underlay.geneve_port,
        }
    }

    /// True for one of our own addresses on this underlay.
    pub(crate) fn owns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.ipv4.is_some_and(|own| own.address == ip),
            IpAddr::V6(ip) => self.ipv6.is_some_and(|own| own.address == ip),
        }
    }

    /// Our address of the family of `ip`.
    pub(crate) fn address_for(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(_) => self.ipv4.map(|own| own.address.into()),
            IpAddr::V6(_) => self.ipv6.map(|own| own.address.into()),
        }
    }
}

/// Which headers stand before the tunnel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Outer {
    #[default]
    V4,
    V6,
    /// None: a socket writes them.
    Datagram,
}

/// A remote tunnel endpoint with everything that a frame to it needs.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct NextHop {
    pub(crate) outer: Outer,
    pub(crate) geneve: bool,
    pub(crate) live: bool,
    pub(crate) df: bool,
    pub(crate) outer_checksum: bool,
    /// What of the inner traffic class goes into the outer one, and what is set there.
    class_mask: u8,
    class_set: u8,
    pub(crate) port: u16,
    /// Longest inner frame, Ethernet header included, that fits the underlay's MTU.
    pub(crate) inner_bytes_max: u16,
    /// Sum of the template's IPv4 header with DSCP, ECN, length, identification and checksum zero.
    pub(crate) ip_sum: u16,
    /// Sum of the UDP pseudo-header without the length.
    pub(crate) pseudo_sum: u16,
    pub(crate) template: [u8; TEMPLATE_BYTES],
    pub(crate) peer: SocketAddr,
    /// Whose MAC address the frame gets: the peer's or the router's.
    pub(crate) neighbour: IpAddr,
}

impl NextHop {
    /// A number that leads nowhere.
    pub(crate) fn dead() -> NextHop {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        NextHop {
            outer: Outer::V4,
            geneve: false,
            live: false,
            df: false,
            outer_checksum: false,
            class_mask: 0,
            class_set: 0,
            port: 0,
            inner_bytes_max: 0,
            ip_sum: 0,
            pseudo_sum: 0,
            template: [0; TEMPLATE_BYTES],
            peer: SocketAddr::new(nobody, 0),
            neighbour: nobody,
        }
    }

    /// The next hop to `peer`, which `neighbour` (itself or a router) is in front of. `None` when the
    /// underlay has no address of that family.
    pub(crate) fn new(
        underlay: &Underlay,
        encapsulation: Encapsulation,
        peer: SocketAddr,
        neighbour: IpAddr,
        epoch: u32,
    ) -> Option<NextHop> {
        let geneve = encapsulation == Encapsulation::Geneve;
        let tunnel_bytes = if geneve { GENEVE_BYTES } else { VXLAN_BYTES };
        let ip_bytes = if peer.is_ipv4() { ipv4::HEADER_BYTES } else { ipv6::HEADER_BYTES };
        let overhead_bytes = ip_bytes + udp::HEADER_BYTES + tunnel_bytes;
        let mut hop = NextHop {
            geneve,
            live: true,
            df: underlay.df,
            outer_checksum: underlay.outer_checksum,
            class_mask: match underlay.dscp {
                Dscp::Copy => 0xff,
                Dscp::Fixed(_) => ECN_MASK,
            },
            class_set: match underlay.dscp {
                Dscp::Copy => 0,
                Dscp::Fixed(dscp) => dscp << 2,
            },
            port: underlay.port.0,
            inner_bytes_max: underlay.mtu_bytes.saturating_sub(overhead_bytes as u16),
            peer,
            neighbour,
            ..NextHop::dead()
        };
        let outer_bytes = match underlay.kind {
            UnderlayKind::Datagram => {
                hop.outer = Outer::Datagram;
                0
            }
            UnderlayKind::Ethernet => hop.write_outer(underlay)?,
        };
        hop.write_tunnel(outer_bytes, epoch).ok()?;
        Some(hop)
    }

    /// Outer DSCP and ECN, as they stand in the header. RFC 6040, clause 4.1, normal mode: the ECN field is the
    /// inner one; RFC 2983 for the code point.
    #[inline(always)]
    pub(crate) fn traffic_class(&self, inner: u8) -> u8 {
        inner & self.class_mask | self.class_set
    }

    /// Writes Ethernet, IP and UDP; returns their length.
    fn write_outer(&mut self, underlay: &Underlay) -> Option<usize> {
        let (ethertype, ip_bytes) = match self.peer.ip() {
            IpAddr::V4(peer) => {
                let local = underlay.ipv4?.address;
                self.outer = Outer::V4;
                self.write_ipv4(underlay, local, peer).ok()?;
                (EtherType::IPV4, ipv4::HEADER_BYTES)
            }
            IpAddr::V6(peer) => {
                let local = underlay.ipv6?.address;
                self.outer = Outer::V6;
                self.write_ipv6(underlay, local, peer).ok()?;
                (EtherType::IPV6, ipv6::HEADER_BYTES)
            }
        };
        let ether = ethernet::Header { dst: Mac::ZERO, src: underlay.mac, tag: None, ethertype };
        ether.emit(&mut self.template).ok()?;
        let udp_at = ethernet::HEADER_BYTES + ip_bytes;
        self.template[udp_at + 2..udp_at + 4].copy_from_slice(&self.peer.port().to_be_bytes());
        Some(udp_at + udp::HEADER_BYTES)
    }

    fn write_ipv4(&mut self, underlay: &Underlay, src: Ipv4Addr, dst: Ipv4Addr) -> Result<(), EmitError> {
        let header = ipv4::Header {
            dscp: 0,
            ecn: 0,
            ident: 0,
            dont_fragment: underlay.df,
            ttl: underlay.ttl,
            protocol: protocol::UDP,
            src,
            dst,
            options: &[],
            payload_bytes: 0,
        };
        let ip = &mut self.template[ethernet::HEADER_BYTES..];
        header.emit(ip)?;
        ip[2..4].fill(0); // length
        ip[10..12].fill(0); // checksum
        self.ip_sum = Checksum::new().bytes(&ip[..ipv4::HEADER_BYTES]).folded();
        self.pseudo_sum = wire::checksum::pseudo_v4(src, dst, protocol::UDP, 0).folded();
        Ok(())
    }

    fn write_ipv6(&mut self, underlay: &Underlay, src: Ipv6Addr, dst: Ipv6Addr) -> Result<(), EmitError> {
        let header = ipv6::Header {
            dscp: 0,
            ecn: 0,
            flow_label: 0,
            next_header: protocol::UDP,
            hop_limit: underlay.ttl,
            src,
            dst,
            payload_bytes: 0,
        };
        header.emit(&mut self.template[ethernet::HEADER_BYTES..])?;
        self.pseudo_sum = wire::checksum::pseudo_v6(src, dst, protocol::UDP, 0).folded();
        Ok(())
    }

    fn write_tunnel(&mut self, at: usize, epoch: u32) -> Result<usize, EmitError> {
        let out = &mut self.template[at..];
        let vni = Vni::default();
        if !self.geneve {
            return vxlan::Header { vni }.emit(out);
        }
        let tidegate = Some(Tidegate { epoch, ..Tidegate::default() });
        geneve::Header { ethertype: EtherType::TRANSPARENT_ETHERNET, vni, tidegate }.emit(out)
    }
}
