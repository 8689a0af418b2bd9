//! Signalling congestion: a frame that waited in a queue more than half full says so (RFC 3168, clause 5).

use frame::{Flags, Frame, Pool};
use wire::{ipv4, ipv6};

/// Congestion experienced.
const CE: u8 = 0b11;

/// Sets CE in the IP header of a frame whose sender understands ECN; others are left alone (RFC 3168,
/// clause 6.1.2: a packet that is not ECN-capable must not be marked). True if the frame is marked now.
pub(crate) fn congestion(pool: &Pool, frame: &mut Frame) -> bool {
    let (meta, bytes) = pool.parts_mut(frame);
    if !meta.flags.has(Flags::PARSED) {
        return false;
    }
    let Some(packet) = bytes.get_mut(usize::from(meta.l3)..) else { return false };
    let marked = if meta.flags.has(Flags::IPV6) {
        packet.first_chunk_mut().is_some_and(|header: &mut [u8; ipv6::HEADER_BYTES]| {
            let capable = header[1] & 0x30 != 0;
            if capable {
                ipv6::HeaderMut(header).set_ecn(CE);
            }
            capable
        })
    } else {
        packet.first_chunk_mut().is_some_and(|header: &mut [u8; ipv4::HEADER_BYTES]| {
            let capable = header[1] & 0b11 != 0;
            if capable {
                ipv4::HeaderMut(header).set_ecn(CE);
            }
            capable
        })
    };
    if marked {
        meta.flags.set(Flags::CE_MARKED);
        meta.traffic_class |= CE;
    }
    marked
}
