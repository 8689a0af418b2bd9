//! Control messages (cmsg(3)): a few bytes beside each datagram that say how to cut it and how it is marked.
//!
//! Written and read as plain bytes: a header of {length, level, kind}, the data, padding to the size of a
//! machine word. That is the kernel's layout on every architecture, and it needs no `unsafe`.

/// Room for the control messages of one received datagram: segment size, TOS or traffic class, drops.
pub(super) const RECEIVE_BYTES: usize = 3 * SPACE;
/// Room for those of one sent datagram: segment size and TOS or traffic class.
pub(super) const SEND_BYTES: usize = 2 * SPACE;
/// Room for those of one error: TOS, `struct sock_extended_err` with the address of who reported it, drops.
pub(super) const ERROR_BYTES: usize = 128;

const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;
/// A header and data of up to one word.
const SPACE: usize = HEADER + WORD;

/// A buffer with the alignment of `struct cmsghdr`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Control<const N: usize> {
    pub(super) bytes: [u8; N],
    pub(super) len: usize,
}

/// What the kernel said about a received datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Length of each piece of a coalesced datagram; 0 when it is one piece.
    pub(super) segment_bytes: usize,
    /// The ECN field (RFC 3168) of the outer header.
    pub(super) ecn: u8,
    /// Datagrams that this socket lost for want of room, ever, modulo 2^32.
    pub(super) drops: Option<u32>,
    /// An error that another host reported (`struct sock_extended_err`).
    pub(super) icmp_error: bool,
}

impl<const N: usize> Control<N> {
    pub(super) const EMPTY: Control<N> = Control { bytes: [0; N], len: 0 };

    fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let Some(place) = self.bytes.get_mut(self.len..self.len + SPACE) else { return };
        place.fill(0);
        place[..WORD].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        place[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        place[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        place[HEADER..HEADER + data.len()].copy_from_slice(data);
        self.len += SPACE;
    }
}

/// The control messages of a datagram to send; `tos` only where it differs from the socket's own.
pub(super) fn encode(segment_bytes: Option<u16>, tos: Option<u8>, ipv6: bool) -> Control<SEND_BYTES> {
    let mut control = Control::EMPTY;
    if let Some(bytes) = segment_bytes {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }
    if let Some(tos) = tos {
        let (level, kind) =
            if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) } else { (libc::IPPROTO_IP, libc::IP_TOS) };
        control.push(level, kind, &libc::c_int::from(tos).to_ne_bytes());
    }
    control
}

/// Reads what the kernel wrote. Anything unknown or cut off is passed over.
pub(super) fn decode(mut bytes: &[u8]) -> Heard {
    let mut heard = Heard::default();
    while let Some((header, _)) = bytes.split_at_checked(HEADER) {
        let len = word(header);
        let Some(data) = bytes.get(HEADER..len) else { break };
        match (int(&header[WORD..]), int(&header[WORD + 4..])) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                heard.segment_bytes = usize::try_from(int(data)).unwrap_or(0);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                // One byte for IPv4, an int in host order for IPv6: the low byte comes first in both.
                heard.ecn =
                    if data.len() >= 4 { int(data) as u8 & 3 } else { data.first().map_or(0, |tos| tos & 3) };
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => heard.drops = Some(int(data) as u32),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                heard.icmp_error =
                    matches!(data.get(4), Some(&libc::SO_EE_ORIGIN_ICMP | &libc::SO_EE_ORIGIN_ICMP6));
            }
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(WORD)..).unwrap_or_default();
    }
    heard
}

fn word(bytes: &[u8]) -> usize {
    bytes.first_chunk().map_or(0, |word| usize::from_ne_bytes(*word))
}

fn int(bytes: &[u8]) -> libc::c_int {
    bytes.first_chunk().map_or(0, |int| libc::c_int::from_ne_bytes(*int))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_laid_out_as_libc_expects() {
        // SAFETY: pure arithmetic.
        let space = unsafe { libc::CMSG_SPACE(4) } as usize;
        // SAFETY: pure arithmetic.
        let len = unsafe { libc::CMSG_LEN(4) } as usize;
        assert_eq!((space, len), (SPACE, HEADER + 4));
        let control = encode(Some(1400), Some(0x2e << 2 | 1), false);
        assert_eq!(control.len, SEND_BYTES);
        let heard = decode(&control.bytes[..control.len]);
        assert_eq!(heard, Heard { ecn: 1, ..Heard::default() }, "UDP_SEGMENT is not UDP_GRO");
        assert_eq!(decode(&encode(None, Some(3), true).bytes).ecn, 3);
        assert_eq!(encode(None, None, true).len, 0);
    }

    #[test]
    fn all_that_the_kernel_says_is_heard() {
        let mut control = Control::<RECEIVE_BYTES>::EMPTY;
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1400i32.to_ne_bytes());
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[2]);
        control.push(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &77u32.to_ne_bytes());
        control.push(0, 0, &[]);
        assert_eq!(
            decode(&control.bytes),
            Heard { segment_bytes: 1400, ecn: 2, drops: Some(77), icmp_error: false }
        );
    }

    #[test]
    fn no_bytes_make_it_panic_or_loop() {
        for len in 0..RECEIVE_BYTES {
            for fill in [0, 1, 16, 24, 0xff] {
                decode(&vec![fill; len]);
            }
        }
    }
}
