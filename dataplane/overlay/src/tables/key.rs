//! How matches become hash keys: tags, and the mask tuples of decision D3.
//!
//! A *tuple* is one kind of match: how many leading address bits and which transport fields count. All
//! entries of one tuple differ only in values, so each tuple costs one hash probe. Tuples are kept most
//! specific first; the first probe that finds an entry decides.
//!
//! ```text
//! tag of a route:  62..61 kind | 59..52 prefix bits | 50..48 fields | 46 UDP | 45..32 tenant | 31..16 source port | 15..0 destination port
//! ```

use std::net::IpAddr;

use wire::{Mac, protocol};

use super::hash::Key;
use crate::config::{Prefix, TenantId, Transport};

/// What kind of address a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    V4 = 1,
    V6 = 2,
    Mac = 3,
}

impl Kind {
    pub(crate) fn of(ip: IpAddr) -> Kind {
        if ip.is_ipv4() { Kind::V4 } else { Kind::V6 }
    }

    fn bits(self) -> u8 {
        match self {
            Kind::V4 => 32,
            Kind::V6 => 128,
            Kind::Mac => 48,
        }
    }
}

pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[inline(always)]
pub(crate) fn mac_number(mac: Mac) -> u128 {
    let [a, b, c, d, e, f] = mac.0;
    u128::from(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

/// Transport fields that a match names, as bits: the more significant, the more specific.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Fields(pub(crate) u8);

impl Fields {
    pub(crate) const TRANSPORT: u8 = 1;
    pub(crate) const SOURCE_PORT: u8 = 2;
    pub(crate) const DESTINATION_PORT: u8 = 4;
}

/// The values of the fields that a match names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) transport: Option<Transport>,
    pub(crate) source_port: Option<u16>,
    pub(crate) destination_port: Option<u16>,
}

impl Match {
    pub(crate) fn fields(&self) -> Fields {
        Fields(
            u8::from(self.transport.is_some()) * Fields::TRANSPORT
                + u8::from(self.source_port.is_some()) * Fields::SOURCE_PORT
                + u8::from(self.destination_port.is_some()) * Fields::DESTINATION_PORT,
        )
    }

    fn tag(&self) -> u64 {
        u64::from(self.transport == Some(Transport::Udp)) << UDP_SHIFT
            | u64::from(self.source_port.unwrap_or(0)) << 16
            | u64::from(self.destination_port.unwrap_or(0))
    }
}

/// One kind of match, prepared for masking keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    hi_mask: u64,
    lo_mask: u64,
    tag_mask: u64,
    tag_set: u64,
}

impl Tuple {
    pub(crate) fn new(kind: Kind, bits: u8, fields: Fields) -> Tuple {
        let mask = address_mask(kind, bits);
        let has = |field| fields.0 & field != 0;
        let tag_mask = TENANT_MASK
            | (u64::from(has(Fields::TRANSPORT)) << UDP_SHIFT)
            | (u64::from(has(Fields::SOURCE_PORT)) * 0xffff_0000)
            | (u64::from(has(Fields::DESTINATION_PORT)) * 0xffff);
        Tuple {
            hi_mask: (mask >> 64) as u64,
            lo_mask: mask as u64,
            tag_mask,
            tag_set: (kind as u64) << KIND_SHIFT
                | u64::from(bits) << BITS_SHIFT
                | u64::from(fields.0) << FIELDS_SHIFT,
        }
    }

    /// The key under which an entry of this tuple that matches `packet` is found.
    #[inline(always)]
    pub(crate) fn key(&self, packet: &Key) -> Key {
        Key {
            hi: packet.hi & self.hi_mask,
            lo: packet.lo & self.lo_mask,
            tag: packet.tag & self.tag_mask | self.tag_set,
        }
    }

    /// Needs transport fields that a packet without TCP or UDP header lacks.
    #[inline(always)]
    pub(crate) fn fields(&self) -> u8 {
        (self.tag_set >> FIELDS_SHIFT) as u8 & 7
    }
}

/// A packet's own key: everything that any tuple may ask for.
#[inline(always)]
pub(crate) fn packet_key(
    tenant: u16,
    address: u128,
    proto: u8,
    source_port: u16,
    destination_port: u16,
) -> Key {
    let tag = u64::from(proto == protocol::UDP) << UDP_SHIFT
        | u64::from(tenant) << TENANT_SHIFT
        // Together as they stand in the packet, and as the parser had them.
        | u64::from(u32::from(source_port) << 16 | u32::from(destination_port));
    Key::new(address, tag)
}

/// The key of an address, for tuples that ask for nothing else.
#[inline(always)]
pub(crate) fn address_key(tenant: u16, address: u128) -> Key {
    Key::new(address, u64::from(tenant) << TENANT_SHIFT)
}

/// The key of an entry.
pub(crate) fn prefix_key(tenant: TenantId, prefix: Prefix<IpAddr>, matching: &Match) -> Key {
    let tuple = Tuple::new(Kind::of(prefix.address), prefix.bits, matching.fields());
    let tag = u64::from(tenant.0) << TENANT_SHIFT | matching.tag();
    tuple.key(&Key::new(number(prefix.address), tag))
}

/// The key of a MAC entry.
#[inline(always)]
pub(crate) fn mac_key(tenant: u16, mac: Mac) -> Key {
    const SET: u64 = (Kind::Mac as u64) << KIND_SHIFT | 48 << BITS_SHIFT;
    Key::new(mac_number(mac), SET | u64::from(tenant) << TENANT_SHIFT)
}

/// The key of a volume's server: address and port, whatever the transport.
#[inline(always)]
pub(crate) fn volume_key(tenant: u16, v6: bool, server: u128, port: u16) -> Key {
    let kind = if v6 { Kind::V6 } else { Kind::V4 };
    Key::new(server, (kind as u64) << KIND_SHIFT | u64::from(tenant) << TENANT_SHIFT | u64::from(port))
}

/// The key of a peer: who sends for which network. `address` is the outer source; for a datagram underlay
/// the number of the next hop.
#[inline(always)]
pub(crate) fn peer_key(kind: Kind, address: u128, underlay: u16, geneve: bool, vni: u32) -> Key {
    let tag =
        (kind as u64) << KIND_SHIFT | u64::from(geneve) << 48 | u64::from(underlay) << 32 | u64::from(vni);
    Key::new(address, tag)
}

pub(crate) fn address_mask(kind: Kind, bits: u8) -> u128 {
    let all = u128::MAX >> (128 - u32::from(kind.bits()));
    let host_bits = u32::from(kind.bits().saturating_sub(bits));
    all & u128::MAX.checked_shl(host_bits).unwrap_or(0)
}

const KIND_SHIFT: u32 = 61;
const BITS_SHIFT: u32 = 52;
const FIELDS_SHIFT: u32 = 48;
const UDP_SHIFT: u32 = 46;
const TENANT_SHIFT: u32 = 32;
const TENANT_MASK: u64 = 0x3fff << TENANT_SHIFT;
