//! What is known about a frame, one cache line apart from its bytes.

use crate::HEADROOM_BYTES;

/// Facts and offload requests that travel with a frame, in the sense of `struct virtio_net_hdr`
/// (virtio 1.2, clause 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// The transport checksum holds only the pseudo-header sum; finish it at `csum_start`/`csum_offset`.
    pub const CSUM_PARTIAL: Flags = Flags(1 << 0);
    /// The transport checksum was verified by whoever handed the frame over.
    pub const CSUM_VALID: Flags = Flags(1 << 1);
    /// `l3`, `l4`, `payload`, `proto` and `flow_hash` are filled in.
    pub const PARSED: Flags = Flags(1 << 2);
    /// Layer 3 is IPv6 (only with `PARSED`).
    pub const IPV6: Flags = Flags(1 << 3);
    /// An IP fragment; there may be no transport header.
    pub const FRAGMENT: Flags = Flags(1 << 4);
    /// Congestion experienced was set by this node (throttle at half its bound).
    pub const CE_MARKED: Flags = Flags(1 << 5);
    /// The frame goes towards the underlay; without it, towards a tenant.
    pub const EGRESS: Flags = Flags(1 << 6);
    /// Its volume has paid: what is left is to leave by `egress_port`, which another worker may poll.
    pub const ADMITTED: Flags = Flags(1 << 7);
    /// `source` and `id` are set: the worker that gets this frame next knows that it is coming.
    pub const ANNOUNCED: Flags = Flags(1 << 8);
    /// A copy of what another worker heard of a neighbour: to be learnt from, not answered.
    pub const HEARD: Flags = Flags(1 << 9);

    /// The ECN field (RFC 3168) of an outer header that the port stripped: a socket underlay.
    #[inline(always)]
    pub fn outer_ecn(self) -> u8 {
        (self.0 >> 14) as u8
    }
    /// Sets the two bits of [`Flags::outer_ecn`].
    #[inline(always)]
    pub fn set_outer_ecn(&mut self, ecn: u8) {
        self.0 = (self.0 & 0x3fff) | (u16::from(ecn & 3) << 14);
    }
    /// True when every flag of `other` is set.
    #[inline(always)]
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
    /// Sets the flags of `other`.
    #[inline(always)]
    pub fn set(&mut self, other: Flags) {
        self.0 |= other.0;
    }
    /// Clears the flags of `other`.
    #[inline(always)]
    pub fn clear(&mut self, other: Flags) {
        self.0 &= !other.0;
    }
}

/// How a super-segment is to be cut (`gso_type` of `struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum GsoKind {
    /// An ordinary frame.
    #[default]
    None = 0,
    /// TCP over IPv4.
    TcpV4 = 1,
    /// TCP over IPv6.
    TcpV6 = 2,
    /// UDP datagrams of `gso_bytes` payload each (`UDP_SEGMENT`), IPv4 or IPv6.
    UdpL4 = 3,
}

/// One cache line of metadata per chunk. Offsets count from the first byte of the frame.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct Meta {
    /// Offset of the first byte from the start of the chunk. Kept by [`crate::Pool`].
    pub(crate) data: u16,
    /// Facts and requests.
    pub flags: Flags,
    /// Length in bytes. Kept by [`crate::Pool`].
    pub(crate) len: u32,
    /// Port that the frame came in by.
    pub ingress_port: u16,
    /// Port that the frame leaves by.
    pub egress_port: u16,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset of the transport payload.
    pub payload: u16,
    /// Transport protocol number (IANA), after IPv6 extension headers.
    pub proto: u8,
    /// How to cut a super-segment.
    pub gso: GsoKind,
    /// Payload bytes of each segment of a super-segment.
    pub gso_bytes: u16,
    /// Where the checksum to finish begins.
    pub csum_start: u16,
    /// Where, from `csum_start`, the checksum is stored.
    pub csum_offset: u16,
    /// Next hop (index into the overlay's next-hop table).
    pub next_hop: u16,
    /// VXLAN or Geneve network identifier.
    pub vni: u32,
    /// Volume that pays for the frame; [`Meta::NO_VOLUME`] when none does.
    pub volume: u32,
    /// Tenant attachment (a port and VLAN) that the frame came from or goes to.
    pub attachment: u32,
    /// Hash of the inner flow; gives the outer source port its entropy.
    pub flow_hash: u32,
    /// Source that numbered the frame at the first stage (capability F8).
    pub source: u32,
    /// The number that it got there.
    pub id: u32,
    /// Bytes charged to the volume: the transport payload.
    pub cost_bytes: u32,
    /// IPv4 type of service or IPv6 traffic class: DSCP and ECN (only with `PARSED`).
    pub traffic_class: u8,
}

const _: () = assert!(size_of::<Meta>() == 64);

impl Meta {
    /// No volume pays for this frame.
    pub const NO_VOLUME: u32 = u32::MAX;

    #[inline(always)]
    pub(crate) fn fresh(data: u16, len: u32) -> Meta {
        Meta { data, len, volume: Meta::NO_VOLUME, ..Meta::default() }
    }

    /// Takes over everything that is known about `from`, except where its bytes lie: for a frame that is cut
    /// out of another one, or merged from it.
    #[inline(always)]
    pub fn inherit(&mut self, from: &Meta) {
        *self = Meta { data: self.data, len: self.len, ..from.clone() };
    }

    /// Forgets what this node worked out about the frame and keeps what travels with it to the next one, as
    /// in a virtio-net header: how to cut it, and the state of its checksum.
    #[inline(always)]
    pub fn keep_offloads(&mut self) {
        let Meta { data, len, gso, gso_bytes, csum_start, csum_offset, flags, .. } = *self;
        let flags = Flags(flags.0 & (Flags::CSUM_PARTIAL.0 | Flags::CSUM_VALID.0));
        *self = Meta { flags, gso, gso_bytes, csum_start, csum_offset, ..Meta::fresh(data, len) };
    }

    /// Length of the frame in bytes.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "an empty frame is not a special case")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Free bytes before the first one.
    #[inline(always)]
    pub fn headroom(&self) -> usize {
        self.data as usize
    }
}

const _: () = assert!(HEADROOM_BYTES >= 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inheriting_keeps_the_place() {
        let mut from = Meta { vni: 7, ..Meta::fresh(300, 9000) };
        from.flags.set(Flags::PARSED);
        let mut to = Meta::fresh(256, 60);
        to.inherit(&from);
        assert_eq!((to.data, to.len, to.vni), (256, 60, 7));
        assert!(to.flags.has(Flags::PARSED));
    }

    #[test]
    fn flags_are_independent_of_each_other_and_of_the_outer_ecn() {
        let all = [
            Flags::CSUM_PARTIAL,
            Flags::CSUM_VALID,
            Flags::PARSED,
            Flags::IPV6,
            Flags::FRAGMENT,
            Flags::CE_MARKED,
            Flags::EGRESS,
            Flags::ADMITTED,
            Flags::ANNOUNCED,
            Flags::HEARD,
        ];
        for (at, &flag) in all.iter().enumerate() {
            let mut flags = Flags::default();
            flags.set(flag);
            for ecn in [0, 3, 1, 2] {
                flags.set_outer_ecn(ecn);
                assert_eq!(flags.outer_ecn(), ecn);
            }
            flags.set_outer_ecn(0xff);
            assert_eq!(flags.outer_ecn(), 3);
            for (other, &absent) in all.iter().enumerate() {
                assert_eq!(flags.has(absent), at == other);
            }
            flags.clear(flag);
            assert!(!flags.has(flag) && flags.outer_ecn() == 3);
        }
    }

    #[test]
    fn offload_requests_travel_on_and_nothing_else_does() {
        let offloads = Meta {
            gso: GsoKind::UdpL4,
            gso_bytes: 1200,
            csum_start: 34,
            csum_offset: 6,
            flags: Flags::CSUM_PARTIAL,
            ..Meta::fresh(300, 9000)
        };
        let mut meta = Meta { vni: 7, volume: 8, next_hop: 9, traffic_class: 10, id: 11, ..offloads.clone() };
        meta.flags.set(Flags::PARSED);
        meta.flags.set(Flags::EGRESS);
        meta.flags.set_outer_ecn(3);
        meta.keep_offloads();
        assert_eq!(format!("{meta:?}"), format!("{offloads:?}"));
    }

    #[test]
    fn fresh_metadata_names_no_volume() {
        let meta = Meta::fresh(256, 60);
        assert_eq!((meta.volume, meta.len(), meta.headroom()), (Meta::NO_VOLUME, 60, 256));
        assert_eq!(meta.flags, Flags::default());
        assert_eq!(meta.gso, GsoKind::None);
    }
}
