//! The remote endpoints of the underlay: a frame names one by number, a datagram by address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use frame::Meta;
use socket2::SockAddr;

/// The number of a sender that is no peer.
pub(super) const UNKNOWN: u16 = u16::MAX;
/// More cannot be numbered.
pub(super) const PEERS_MAX: usize = UNKNOWN as usize;
/// Longest address of the two families.
pub(super) const ADDRESS_BYTES: usize = size_of::<libc::sockaddr_in6>();

/// A socket address as the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub(super) struct RawAddress(pub(super) [u8; ADDRESS_BYTES]);

/// The table, in both directions.
#[derive(Debug)]
pub(super) struct Peers {
    ipv6: bool,
    /// By number; `None` is an address of the other family, to which this socket cannot send.
    addresses: Vec<Option<SockAddr>>,
    numbers: HashMap<SocketAddr, u16>,
    /// Peers that are alone on their host, whatever port they send from: a tunnel endpoint that varies its
    /// source port (RFC 7348, clause 5) is still the same endpoint.
    hosts: HashMap<IpAddr, u16>,
    /// The last sender, which is most often the next one too.
    last: (RawAddress, u16),
}

impl Peers {
    pub(super) fn new(ipv6: bool, peers: &[SocketAddr]) -> Peers {
        let peers = &peers[..peers.len().min(PEERS_MAX)];
        let usable = |peer: &&SocketAddr| peer.is_ipv6() == ipv6;
        let mut numbers = HashMap::new();
        let mut hosts = HashMap::new();
        for (number, peer) in peers.iter().enumerate().filter(|(_, peer)| usable(peer)) {
            // The first of two equal ones.
            numbers.entry(bare(*peer)).or_insert(number as u16);
            hosts.entry(peer.ip()).and_modify(|known| *known = UNKNOWN).or_insert(number as u16);
        }
        hosts.retain(|_, number| *number != UNKNOWN);
        Peers {
            ipv6,
            addresses: peers
                .iter()
                .map(|peer| Some(peer).filter(usable).map(|peer| (*peer).into()))
                .collect(),
            numbers,
            hosts,
            last: (RawAddress([0; ADDRESS_BYTES]), UNKNOWN),
        }
    }

    pub(super) fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// Where a frame goes, if that is a peer.
    pub(super) fn address(&self, meta: &Meta) -> Option<&SockAddr> {
        self.addresses.get(usize::from(meta.next_hop))?.as_ref()
    }

    /// The number of a sender, or [`UNKNOWN`].
    pub(super) fn number(&mut self, sender: &RawAddress) -> u16 {
        if self.last.0 != *sender {
            self.last = (*sender, self.look_up(sender));
        }
        self.last.1
    }

    fn look_up(&self, sender: &RawAddress) -> u16 {
        let Some(sender) = parse(sender) else { return UNKNOWN };
        let exact = self.numbers.get(&sender);
        exact.or_else(|| self.hosts.get(&sender.ip())).copied().unwrap_or(UNKNOWN)
    }
}

/// Without flow label and scope, which do not tell endpoints apart here.
fn bare(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// Address and port of a `sockaddr_in` or `sockaddr_in6`.
fn parse(raw: &RawAddress) -> Option<SocketAddr> {
    let bytes = &raw.0;
    let family = u16::from_ne_bytes([bytes[0], bytes[1]]);
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let ip = match libc::c_int::from(family) {
        libc::AF_INET => Ipv4Addr::from(*bytes[4..].first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes[8..].first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(address: &str) -> RawAddress {
        let address = SockAddr::from(address.parse::<SocketAddr>().unwrap());
        let mut raw = RawAddress([0; ADDRESS_BYTES]);
        // SAFETY: the storage is at least as long as the address says.
        let bytes =
            unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), address.len() as usize) };
        raw.0[..bytes.len()].copy_from_slice(bytes);
        raw
    }

    #[test]
    fn a_sender_is_known_by_its_address_or_by_its_host_alone() {
        let list = ["10.0.0.1:4789", "10.0.0.2:4789", "10.0.0.2:4790", "10.0.0.1:4789", "[::1]:1"];
        let mut peers = Peers::new(false, &list.map(|peer| peer.parse().unwrap()));
        assert_eq!(peers.number(&raw("10.0.0.2:4790")), 2);
        assert_eq!(peers.number(&raw("10.0.0.2:4789")), 1);
        assert_eq!(peers.number(&raw("10.0.0.1:4789")), 0);
        assert_eq!(peers.number(&raw("10.0.0.2:1")), UNKNOWN, "two peers share that host");
        assert_eq!(peers.number(&raw("10.0.0.9:4789")), UNKNOWN);
        assert_eq!(peers.number(&RawAddress([0; ADDRESS_BYTES])), UNKNOWN);
        let mut meta = Meta::default();
        meta.next_hop = 4;
        assert!(peers.address(&meta).is_none(), "the other family");
        meta.next_hop = 5;
        assert!(peers.address(&meta).is_none());
    }

    #[test]
    fn a_varying_source_port_is_the_same_ipv6_endpoint() {
        let mut peers = Peers::new(true, &["[fd00::1]:6081".parse().unwrap()]);
        assert_eq!(peers.number(&raw("[fd00::1]:50000")), 0);
        assert_eq!(peers.number(&raw("[fd00::2]:6081")), UNKNOWN);
    }
}
