//! Why a configuration was refused.

use std::net::IpAddr;

use wire::{Mac, Vni};

use crate::config::{PortId, TenantId, VolumeId};

/// Why a configuration was refused; names the item and what to do about it. Positions count from 0 in the
/// order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the words of the message")]
pub enum TableError {
    /// A limit is passed.
    #[error("{count} {what}, at most {max}: split the load over nodes, or merge entries into prefixes")]
    Limit { what: &'static str, count: usize, max: usize },
    /// A tenant number is too large.
    #[error("tenant number {}: numbers go from 0 to {}", .id.0, crate::TENANTS_MAX - 1)]
    TenantNumber { id: TenantId },
    /// The number that means "none".
    #[error("volume number {}: it means \"no volume\", choose another", .id.0)]
    VolumeNumber { id: VolumeId },
    /// Two tenants with one number.
    #[error("tenant {} is there twice: give one of them another number", .id.0)]
    DuplicateTenant { id: TenantId },
    /// Two tenants with one network identifier.
    #[error("vni {vni} belongs to tenants {} and {}: give one of them another vni", .first.0, .second.0)]
    DuplicateVni { vni: Vni, first: TenantId, second: TenantId },
    /// Two underlays, or an underlay and an attachment, on one port.
    #[error("port {} is used twice: a port is one underlay, or belongs to tenants", .port.0)]
    DuplicatePort { port: PortId },
    /// Two attachments on one port and VLAN.
    #[error("port {} vlan {vlan:?} is attached to two tenants or twice to one: use another vlan", .port.0)]
    DuplicateAttachment { port: PortId, vlan: Option<u16> },
    /// An underlay that cannot work.
    #[error("underlay on port {}: {what}", .port.0)]
    Underlay { port: PortId, what: &'static str },
    /// A tenant names an underlay that is not there.
    #[error("tenant {} names port {} as its underlay: no underlay is configured there", .tenant.0, .port.0)]
    UnknownUnderlay { tenant: TenantId, port: PortId },
    /// A rule or volume names a tenant that is not there.
    #[error("{what} {position} names tenant {}: there is no such tenant", .tenant.0)]
    UnknownTenant { what: &'static str, position: usize, tenant: TenantId },
    /// A prefix with more bits than its address, or with bits set beyond them.
    #[error("{ip}/{bits} is not a prefix: at most 32 or 128 bits, and no address bits beyond them")]
    Prefix { ip: IpAddr, bits: u8 },
    /// One address, two places.
    #[error("tenant {}: {ip}/{bits} is configured twice; an address has one place", .tenant.0)]
    DuplicateAddress { tenant: TenantId, ip: IpAddr, bits: u8 },
    /// One MAC address, two places.
    #[error("tenant {}: {mac} is behind two attachments or endpoints; a MAC address has one place", .tenant.0)]
    DuplicateMac { tenant: TenantId, mac: Mac },
    /// A MAC address that cannot send.
    #[error("{mac} is a group address or zero: give the address of one station")]
    NotUnicast { mac: Mac },
    /// A tunnel endpoint of a family in which the underlay has no address.
    #[error("endpoint {vtep}: the underlay on port {} has no address of that family, give it one", .port.0)]
    NoLocalAddress { vtep: IpAddr, port: PortId },
    /// A tunnel endpoint that is off-link without a router.
    #[error("endpoint {vtep} is not on-link at port {}: widen the prefix or give the gateway", .port.0)]
    NoRoute { vtep: IpAddr, port: PortId },
    /// A tunnel endpoint that is this node.
    #[error("endpoint {vtep} is this node's own address: attach local hosts to a port instead")]
    VtepIsLocal { vtep: IpAddr },
    /// A tunnel endpoint that two next hops of one tenant or socket would share.
    #[error(
        "endpoint {vtep} is named with two UDP ports or formats where only one can be told from what it sends"
    )]
    VtepAmbiguous { vtep: IpAddr },
    /// Two rules with one match.
    #[error("rules {first} and {second} match the very same frames: remove one")]
    DuplicateRule { first: usize, second: usize },
    /// A MAC rule that names transport fields.
    #[error("rule {position} matches a MAC address and a transport: match an IP prefix instead")]
    MacWithTransport { position: usize },
    /// Too many kinds of match (decision D3).
    #[error(
        "tenant {} uses {count} combinations of prefix length and ports, at most {max}: \
         use fewer different prefix lengths or ports in its rules",
        .tenant.0
    )]
    Tuples { tenant: TenantId, count: usize, max: usize },
    /// Two volumes on one server and port, or one volume of two tenants.
    #[error("volume {position} repeats a server and port, or a number that another tenant uses: remove it")]
    DuplicateVolume { position: usize },
    /// A rule names a volume that is another tenant's.
    #[error("rule {position} charges volume {} of another tenant: name one of its own", .volume.0)]
    ForeignVolume { position: usize, volume: VolumeId },
}
