//! What the overlay is configured with: plain values, as an operator thinks of them.
//!
//! Nothing here is checked except what the types cannot hold wrongly; [`crate::Tables::build`] parses a
//! whole [`Config`] into tables or says which item is wrong and what to do about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{Mac, VlanId, Vni};

/// A port of this node: an interface or a socket, whatever its number of queues. Chosen by whoever writes
/// the configuration and kept across reloads; `Meta::ingress_port` and `Meta::egress_port` carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// A tenant, below [`crate::TENANTS_MAX`]. Chosen by the configuration, kept across reloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u16);

/// A volume; `u32::MAX` means none. Chosen by the configuration, kept across reloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

/// A remote tunnel endpoint reached by one underlay with one encapsulation. Given out by
/// [`crate::Tables::build`]; the same endpoint keeps its number across reloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHopId(pub u16);

/// A (port, VLAN) that belongs to a tenant. Given out by [`crate::Tables::build`]; the same pair keeps its
/// number across reloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(pub u32);

/// Everything that the overlay of one node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The ways out to other nodes.
    pub underlays: Vec<Underlay>,
    /// The tenants and what belongs to them.
    pub tenants: Vec<Tenant>,
    /// What to do with tenants' frames beyond carrying them between their endpoints.
    pub rules: Vec<Rule>,
    /// What is throttled and counted by itself.
    pub volumes: Vec<Volume>,
    /// Stamped into the Geneve option of every frame that leaves (decision D4).
    pub epoch: u32,
}

/// How an underlay port carries tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnderlayKind {
    /// Whole Ethernet frames: this data plane writes and checks Ethernet, IP and UDP and resolves
    /// neighbours.
    #[default]
    Ethernet,
    /// A UDP socket: frames start with the tunnel header; the kernel does the rest.
    Datagram,
}

/// A local tunnel endpoint and how to reach others from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The port.
    pub port: PortId,
    /// Ethernet or datagrams.
    pub kind: UnderlayKind,
    /// Our MAC address on it (not used with [`UnderlayKind::Datagram`]).
    pub mac: Mac,
    /// Our IPv4 endpoint and its on-link prefix.
    pub ipv4: Option<Prefix<Ipv4Addr>>,
    /// Our IPv6 endpoint and its on-link prefix.
    pub ipv6: Option<Prefix<Ipv6Addr>>,
    /// Router for IPv4 endpoints that are not on-link.
    pub gateway_ipv4: Option<Ipv4Addr>,
    /// Router for IPv6 endpoints that are not on-link.
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// Largest outer IP packet, bytes.
    pub mtu_bytes: u16,
    /// UDP port of VXLAN, here and at peers that name no other (RFC 7348: 4789).
    pub vxlan_port: u16,
    /// UDP port of Geneve, here and at peers that name no other (RFC 8926: 6081).
    pub geneve_port: u16,
    /// Outer TTL or hop limit.
    pub ttl: u8,
    /// Set "don't fragment" in outer IPv4 headers.
    pub df: bool,
    /// Fill the outer UDP checksum; without it it is zero (RFC 7348, clause 5; RFC 6935 for IPv6).
    pub outer_checksum: bool,
    /// Outer DSCP.
    pub dscp: Dscp,
}

impl Underlay {
    /// An Ethernet underlay with the standards' ports and nothing optional switched on: TTL 64, DF set, no
    /// outer checksum, DSCP copied, MTU 1500.
    pub fn ethernet(port: PortId, mac: Mac) -> Underlay {
        Underlay {
            port,
            kind: UnderlayKind::Ethernet,
            mac,
            ipv4: None,
            ipv6: None,
            gateway_ipv4: None,
            gateway_ipv6: None,
            mtu_bytes: 1500,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            ttl: 64,
            df: true,
            outer_checksum: false,
            dscp: Dscp::Copy,
        }
    }

    /// A socket underlay; the peers' addresses come from the tenants' remotes.
    pub fn datagram(port: PortId) -> Underlay {
        Underlay { kind: UnderlayKind::Datagram, ..Underlay::ethernet(port, Mac([0; 6])) }
    }
}

/// UDP port of VXLAN (RFC 7348, clause 5).
pub const VXLAN_PORT: u16 = 4789;
/// UDP port of Geneve (RFC 8926, clause 3.3).
pub const GENEVE_PORT: u16 = 6081;

/// An address and how many of its leading bits are the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix<A> {
    /// The address; bits beyond `bits` may be set where it names a host in its network.
    pub address: A,
    /// Leading bits, 0..=32 or 0..=128.
    pub bits: u8,
}

impl Prefix<IpAddr> {
    /// The prefix that holds this address alone.
    pub fn host(address: IpAddr) -> Prefix<IpAddr> {
        Prefix { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

/// Where the outer DSCP comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dscp {
    /// The inner one.
    #[default]
    Copy,
    /// Always this, 0..=63.
    Fixed(u8),
}

/// The tunnel format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encapsulation {
    /// RFC 7348; carries no option.
    #[default]
    Vxlan,
    /// RFC 8926, with the 16-byte option of decision D4.
    Geneve,
}

/// One tenant: a layer-2 segment, closed against all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its number.
    pub id: TenantId,
    /// Its VXLAN or Geneve network identifier, unique on the node.
    pub vni: Vni,
    /// Its tunnel format.
    pub encapsulation: Encapsulation,
    /// The underlay that carries it.
    pub underlay: PortId,
    /// Its ports on this node.
    pub attachments: Vec<Attachment>,
    /// Its endpoints on other nodes.
    pub remotes: Vec<Remote>,
}

/// A port, or a VLAN of it, that belongs to one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The port.
    pub port: PortId,
    /// 802.1Q VLAN, or untagged.
    pub vlan: Option<VlanId>,
    /// The addresses that may send here, and to which frames are delivered here.
    pub sources: Vec<Source>,
}

/// An address (or a prefix of addresses) behind an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub ip: Prefix<IpAddr>,
    /// Its MAC; without it any unicast MAC may use the address, and its ARP requests are delivered rather
    /// than answered.
    pub mac: Option<Mac>,
}

/// An address (or a prefix of addresses) of a tenant behind another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The address.
    pub ip: Prefix<IpAddr>,
    /// Its MAC: the answer to ARP and neighbour discovery for it. Without it such requests are trapped.
    pub mac: Option<Mac>,
    /// The tunnel endpoint in front of it.
    pub vtep: Vtep,
}

/// A tunnel endpoint on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vtep {
    /// Its address.
    pub ip: IpAddr,
    /// Its UDP port, if not the one of the underlay.
    pub port: Option<u16>,
}

/// A match and what to do.
///
/// Among the rules of a tenant that match a frame the most specific one decides: the longer prefix, then
/// the one that names the destination port, then the source port, then the protocol. Endpoints
/// (attachments' sources and remotes) act as rules without ports; a rule with the very same match
/// overrides one. A MAC rule decides for frames that no address rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whose frames.
    pub tenant: TenantId,
    /// Where to.
    pub destination: Destination,
    /// TCP, UDP, or whatever.
    pub transport: Option<Transport>,
    /// Destination port (TCP or UDP).
    pub destination_port: Option<u16>,
    /// Source port (TCP or UDP): what the server's side of a service matches.
    pub source_port: Option<u16>,
    /// What to do.
    pub action: Action,
}

/// The address part of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An IP prefix.
    Ip(Prefix<IpAddr>),
    /// A unicast MAC address.
    Mac(Mac),
}

/// The transport part of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a rule does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand it to the trap port.
    Trap,
    /// Drop it.
    Drop,
    /// Carry it to a tunnel endpoint, under the tenant's network identifier.
    Forward {
        /// The volume that pays.
        volume: Option<VolumeId>,
        /// Where to.
        vtep: Vtep,
    },
}

/// A service that is throttled and counted: its server's address and port, in both directions. Frames to
/// the server and frames from it are charged to the same volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its number.
    pub id: VolumeId,
    /// Whose.
    pub tenant: TenantId,
    /// The server's address.
    pub server: IpAddr,
    /// The server's port (TCP and UDP).
    pub port: u16,
}
