//! ICMP for IPv6 (RFC 4443): echo, "packet too big"; and neighbour discovery (RFC 4861): solicitation and
//! advertisement with their link-layer address options.

use std::net::Ipv6Addr;

use crate::checksum::pseudo_v6;
use crate::field::{array, be16, be32, be128, put, put16};
use crate::icmp4::words;
use crate::{EmitError, Mac, ParseError, ipv6, protocol};

/// Type, code, checksum and the four bytes whose meaning depends on the type.
pub const HEADER_BYTES: usize = 8;
/// Header and target address of a solicitation or an advertisement.
pub const NEIGHBOUR_BYTES: usize = 24;
/// A link-layer address option for Ethernet (RFC 2464 clause 6).
pub const LINK_OPTION_BYTES: usize = 8;
/// Hop limit of neighbour discovery, which no router can have forwarded.
pub const NEIGHBOUR_HOP_LIMIT: u8 = 255;

const PACKET_TOO_BIG: u8 = 2;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for an echo of the data.
    EchoRequest {
        /// Chosen by the sender.
        ident: u16,
        /// Counted by the sender.
        sequence: u16,
    },
    /// Echoes the data.
    EchoReply {
        /// From the request.
        ident: u16,
        /// From the request.
        sequence: u16,
    },
    /// A packet is too long for the next hop; its head is the data.
    PacketTooBig {
        /// Longest packet that the next hop takes, IP header included.
        mtu_bytes: u32,
    },
    /// Anything else, as it stands; neighbour discovery is read with [`Neighbour::parse`].
    Other {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: [u8; 4],
    },
}

/// A checked message.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8; HEADER_BYTES],
    payload: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks `bytes`, the payload of IPv6. The checksum is left to [`View::checksum_ok`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, payload) = bytes.split_first_chunk().ok_or(ParseError::Truncated)?;
        Ok(Self { header, payload, bytes })
    }

    /// The checksum over pseudo-header and message is right (RFC 4443 clause 2.3).
    pub fn checksum_ok(&self, src: Ipv6Addr, dst: Ipv6Addr) -> bool {
        let len_bytes = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        pseudo_v6(src, dst, protocol::ICMPV6, len_bytes).bytes(self.bytes).folded() == 0xffff
    }

    /// What the header says.
    pub fn message(&self) -> Message {
        let (first, second) = (be16(self.header, 4), be16(self.header, 6));
        match (self.header[0], self.header[1]) {
            (ECHO_REQUEST, 0) => Message::EchoRequest { ident: first, sequence: second },
            (ECHO_REPLY, 0) => Message::EchoReply { ident: first, sequence: second },
            // RFC 4443 clause 3.2: the code is "Set to 0 (zero) by the originator and ignored by the
            // receiver."
            (PACKET_TOO_BIG, _) => Message::PacketTooBig { mtu_bytes: be32(self.header, 4) },
            (kind, code) => Message::Other { kind, code, rest: array(self.header, 4) },
        }
    }

    /// The message is a solicitation or an advertisement.
    pub fn is_neighbour(&self) -> bool {
        matches!(self.header[0], SOLICITATION | ADVERTISEMENT)
    }

    /// The data after the header.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

impl Message {
    /// Writes the header to the front of `message`, which holds the data after it and ends with them, and
    /// computes the checksum. Returns the length of the header.
    pub fn emit(&self, message: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr) -> Result<usize, EmitError> {
        let header: &mut [u8; HEADER_BYTES] =
            message.first_chunk_mut().ok_or(EmitError::NoRoom { needed_bytes: HEADER_BYTES })?;
        let (kind, code, rest) = match *self {
            Self::EchoRequest { ident, sequence } => (ECHO_REQUEST, 0, words(ident, sequence)),
            Self::EchoReply { ident, sequence } => (ECHO_REPLY, 0, words(ident, sequence)),
            Self::PacketTooBig { mtu_bytes } => (PACKET_TOO_BIG, 0, mtu_bytes.to_be_bytes()),
            Self::Other { kind, code, rest } => (kind, code, rest),
        };
        put(header, 0, [kind, code, 0, 0]);
        put(header, 4, rest);
        fill_checksum(message, src, dst)?;
        Ok(HEADER_BYTES)
    }
}

fn fill_checksum(message: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr) -> Result<(), EmitError> {
    let len_bytes = u32::try_from(message.len()).map_err(|_| EmitError::OutOfRange)?;
    let value = pseudo_v6(src, dst, protocol::ICMPV6, len_bytes).bytes(message).finish();
    let header: &mut [u8; HEADER_BYTES] =
        message.first_chunk_mut().ok_or(EmitError::NoRoom { needed_bytes: HEADER_BYTES })?;
    put16(header, 2, value);
    Ok(())
}

/// A neighbour discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Who has the target address?
    Solicitation {
        /// The address asked for.
        target: Ipv6Addr,
        /// Ethernet address of the asker; absent in duplicate address detection.
        source_mac: Option<Mac>,
    },
    /// The sender, or someone for whom it speaks, has the target address.
    Advertisement {
        /// The address spoken of.
        target: Ipv6Addr,
        /// Its Ethernet address.
        target_mac: Option<Mac>,
        /// The sender is a router.
        router: bool,
        /// The answer to a solicitation.
        solicited: bool,
        /// Replaces what is cached.
        overrides: bool,
    },
}

impl Neighbour {
    /// Reads the payload of `ip` with all checks that RFC 4861 clauses 7.1.1 and 7.1.2 ask for, the checksum
    /// included. Other ICMP types are [`ParseError::UnsupportedType`].
    pub fn parse(ip: &ipv6::View<'_>) -> Result<Self, ParseError> {
        if ip.protocol() != protocol::ICMPV6 || ip.transport().fragment {
            return Err(ParseError::UnsupportedType);
        }
        let view = View::parse(ip.payload())?;
        if !view.is_neighbour() {
            return Err(ParseError::UnsupportedType);
        }
        let (head, options) =
            view.bytes.split_first_chunk::<NEIGHBOUR_BYTES>().ok_or(ParseError::Truncated)?;
        if !view.checksum_ok(ip.src(), ip.dst()) {
            return Err(ParseError::BadChecksum);
        }
        let target = Ipv6Addr::from_bits(be128(head, 8));
        // RFC 4861 clause 7.1.1: "The IP Hop Limit field has a value of 255", "ICMP Code is 0", "Target
        // Address is not a multicast address".
        if ip.hop_limit() != NEIGHBOUR_HOP_LIMIT || head[1] != 0 || target.is_multicast() {
            return Err(ParseError::Malformed);
        }
        let links = walk_options(options)?;
        if head[0] == SOLICITATION {
            Self::solicitation(ip, target, links.source)
        } else {
            Self::advertisement(ip, target, links.target, head[4])
        }
    }

    fn solicitation(
        ip: &ipv6::View<'_>,
        target: Ipv6Addr,
        source_mac: Option<Mac>,
    ) -> Result<Self, ParseError> {
        // RFC 4861 clause 7.1.1: "If the IP source address is the unspecified address, the IP destination
        // address is a solicited-node multicast address", and "there is no source link-layer address option
        // in the message".
        let wrong = source_mac.is_some() || !is_solicited_node(ip.dst());
        if ip.src().is_unspecified() && wrong {
            return Err(ParseError::Malformed);
        }
        Ok(Self::Solicitation { target, source_mac })
    }

    fn advertisement(
        ip: &ipv6::View<'_>,
        target: Ipv6Addr,
        target_mac: Option<Mac>,
        flags: u8,
    ) -> Result<Self, ParseError> {
        let solicited = flags & SOLICITED != 0;
        // RFC 4861 clause 7.1.2: "If the IP Destination Address is a multicast address the Solicited flag is
        // zero."
        if solicited && ip.dst().is_multicast() {
            return Err(ParseError::Malformed);
        }
        Ok(Self::Advertisement {
            target,
            target_mac,
            router: flags & ROUTER != 0,
            solicited,
            overrides: flags & OVERRIDE != 0,
        })
    }

    /// Length when written.
    pub const fn message_bytes(&self) -> usize {
        let (Self::Solicitation { source_mac: mac, .. } | Self::Advertisement { target_mac: mac, .. }) = self;
        if mac.is_some() { NEIGHBOUR_BYTES + LINK_OPTION_BYTES } else { NEIGHBOUR_BYTES }
    }

    /// Writes the whole message with its checksum to the front of `out`; returns its length. The IP header
    /// must have hop limit [`NEIGHBOUR_HOP_LIMIT`].
    pub fn emit(&self, out: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr) -> Result<usize, EmitError> {
        let needed_bytes = self.message_bytes();
        let no_room = EmitError::NoRoom { needed_bytes };
        let message = out.get_mut(..needed_bytes).ok_or(no_room)?;
        let (head, option) = message.split_first_chunk_mut::<NEIGHBOUR_BYTES>().ok_or(no_room)?;
        let (kind, flags, target, link, mac) = match *self {
            Self::Solicitation { target, source_mac } => (SOLICITATION, 0, target, SOURCE_LINK, source_mac),
            Self::Advertisement { target, target_mac, router, solicited, overrides } => {
                let flag = |set, bit| if set { bit } else { 0 };
                let flags = flag(router, ROUTER) | flag(solicited, SOLICITED) | flag(overrides, OVERRIDE);
                (ADVERTISEMENT, flags, target, TARGET_LINK, target_mac)
            }
        };
        put(head, 0, [kind, 0, 0, 0, flags, 0, 0, 0]);
        put(head, 8, target.octets());
        if let (Some(mac), Some(option)) = (mac, option.first_chunk_mut::<LINK_OPTION_BYTES>()) {
            put(option, 0, [link, 1]);
            put(option, 2, mac.0);
        }
        fill_checksum(message, src, dst)?;
        Ok(needed_bytes)
    }
}

struct Links {
    source: Option<Mac>,
    target: Option<Mac>,
}

/// RFC 4861 clause 4.6: options are a type, a length in units of 8 bytes, and data. "Nodes MUST silently
/// discard an ND packet that contains an option with length zero." Unknown options are skipped.
fn walk_options(mut left: &[u8]) -> Result<Links, ParseError> {
    let mut links = Links { source: None, target: None };
    while !left.is_empty() {
        let head: &[u8; LINK_OPTION_BYTES] = left.first_chunk().ok_or(ParseError::Malformed)?;
        let mac = Some(Mac(array(head, 2)));
        match (head[0], head[1]) {
            (_, 0) => return Err(ParseError::Malformed),
            (SOURCE_LINK, 1) => links.source = mac,
            (TARGET_LINK, 1) => links.target = mac,
            // RFC 2464 clause 6: the length of both is 1 on Ethernet.
            (SOURCE_LINK | TARGET_LINK, _) => return Err(ParseError::Malformed),
            _ => {}
        }
        left = left.get(usize::from(head[1]) * 8..).ok_or(ParseError::Malformed)?;
    }
    Ok(links)
}

const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;

/// The multicast address on which the owner of `target` listens for solicitations (RFC 4291 clause 2.7.1).
pub const fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(SOLICITED_NODE | target.to_bits() & 0x00ff_ffff)
}

const fn is_solicited_node(address: Ipv6Addr) -> bool {
    address.to_bits() & !0x00ff_ffff == SOLICITED_NODE
}
