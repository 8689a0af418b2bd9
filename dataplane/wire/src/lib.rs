//! Packet formats: from bytes to values and back.
//!
//! One module per protocol, each with a `View` that checks a slice once and then reads fields from it
//! without further checks, a plain `Header` struct whose `emit` writes one, and where the packet path
//! patches a header in place a `HeaderMut`. From the bottom up: [`ethernet`] (with 802.1Q tags), [`arp`],
//! [`ipv4`], [`ipv6`] (with its extension headers), [`udp`], [`tcp`], [`icmp4`], [`icmp6`] (with neighbour
//! discovery), and the two tunnel headers [`vxlan`] and [`geneve`]. [`checksum`] holds the Internet
//! checksum. [`parse`](parse()) walks a whole frame in one pass and is what the packet path uses; the
//! views are for headers that are looked at one at a time (neighbours, tunnel options, tests). On top of
//! TCP, [`nbd`] and [`nvme_tcp`] with [`nvme`] are the protocols of block devices; their messages are small
//! and become plain values at once. NBD is served; of NVMe there are only the formats yet, and only tests and
//! fuzzing use them.
//!
//! Invariants: no function here panics, allocates or reads outside its slice, whatever the bytes; a
//! `View` that exists has passed its length checks; emitters refuse instead of writing half a header.
//! Checksums are verified only where a caller asks, since the device or the kernel often has done so.

#![forbid(unsafe_code)]

// The frame builders of the tests are shared with the integration tests, which know the crate by name.
#[cfg(test)]
extern crate self as wire;

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod geneve;
pub mod icmp4;
pub mod icmp6;
pub mod ipv4;
pub mod ipv6;
pub mod nbd;
pub mod nvme;
pub mod nvme_tcp;
pub mod tcp;
pub mod udp;
pub mod vxlan;

mod address;
mod codes;
mod error;
mod field;
mod parse;

pub use address::{EtherType, Mac, MacError, VlanId, Vni};
pub use error::{EmitError, ParseError};
pub use parse::{IpKind, Parsed, flow_hash, parse, parse_plain};

/// IP protocol numbers (IPv4 `Protocol`, IPv6 `Next Header`) that the data plane tells apart.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// IP authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6: nothing follows.
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}
