//! ARP (RFC 826) for IPv4 over Ethernet.

use std::net::Ipv4Addr;

use crate::field::{array, be16, be32, put, put16, put32};
use crate::{EmitError, EtherType, Mac, ParseError};

/// Request and reply have the same length.
pub const PACKET_BYTES: usize = 28;
const HARDWARE_ETHERNET: u16 = 1;

/// What a packet asks or says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
}

/// A packet. It has no variable part, so the value serves for reading and for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Request or reply.
    pub operation: Operation,
    /// Ethernet address of the sender.
    pub sender_mac: Mac,
    /// IPv4 address of the sender; unspecified in a probe (RFC 5227 clause 1.1).
    pub sender_ip: Ipv4Addr,
    /// Ethernet address of the target; ignored in a request.
    pub target_mac: Mac,
    /// IPv4 address of the target.
    pub target_ip: Ipv4Addr,
}

impl Packet {
    /// Reads the payload of Ethernet; bytes beyond the packet are padding.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let packet: &[u8; PACKET_BYTES] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        // RFC 826, packet reception: "?Do I have the hardware type in ar$hrd? [optionally check the hardware
        // length ar$hln] ?Do I speak the protocol in ar$pro? [optionally check the protocol length ar$pln]"
        if be16(packet, 0) != HARDWARE_ETHERNET || be16(packet, 2) != EtherType::IPV4.0 {
            return Err(ParseError::UnsupportedType);
        }
        if packet[4] != 6 || packet[5] != 4 {
            return Err(ParseError::Malformed);
        }
        let operation = match be16(packet, 6) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(ParseError::UnsupportedType),
        };
        Ok(Self {
            operation,
            sender_mac: Mac(array(packet, 8)),
            sender_ip: Ipv4Addr::from_bits(be32(packet, 14)),
            target_mac: Mac(array(packet, 18)),
            target_ip: Ipv4Addr::from_bits(be32(packet, 24)),
        })
    }

    /// Writes the packet to the front of `out`; returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let packet: &mut [u8; PACKET_BYTES] =
            out.first_chunk_mut().ok_or(EmitError::NoRoom { needed_bytes: PACKET_BYTES })?;
        put16(packet, 0, HARDWARE_ETHERNET);
        put16(packet, 2, EtherType::IPV4.0);
        put(packet, 4, [6, 4]);
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        put16(packet, 6, operation);
        put(packet, 8, self.sender_mac.0);
        put32(packet, 14, self.sender_ip.to_bits());
        put(packet, 18, self.target_mac.0);
        put32(packet, 24, self.target_ip.to_bits());
        Ok(PACKET_BYTES)
    }
}
