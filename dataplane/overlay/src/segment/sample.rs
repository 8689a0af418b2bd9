//! Frames for the tests of segmentation, coalescing and too-big messages.

use frame::{Flags, Frame, GsoKind, Pool, Slab, SlabConfig};
use wire::checksum::{Checksum, pseudo_v4, pseudo_v6};
use wire::{IpKind, Parsed};

pub(crate) const ACK: u8 = 0x10;
pub(crate) const PSH: u8 = 0x08;

/// What to build; `Sample::default()` is a TCP segment over IPv4.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub ipv6: bool,
    pub udp: bool,
    pub vlan: Option<u16>,
    /// IPv4 options or IPv6 destination options, in units of 4 or 8 bytes.
    pub ip_options: usize,
    pub tcp_options: Vec<u8>,
    pub flags: u8,
    pub seq: u32,
    pub window: u16,
    pub id: u16,
    pub dont_fragment: bool,
    pub tos: u8,
    pub src_port: u16,
    pub payload: Vec<u8>,
}

impl Default for Sample {
    fn default() -> Sample {
        Sample {
            ipv6: false,
            udp: false,
            vlan: None,
            ip_options: 0,
            tcp_options: Vec::new(),
            flags: ACK,
            seq: 1000,
            window: 501,
            id: 77,
            dont_fragment: true,
            tos: 0,
            src_port: 40000,
            payload: Vec::new(),
        }
    }
}

impl Sample {
    fn transport(&self) -> Vec<u8> {
        let mut out = [self.src_port.to_be_bytes(), 10809u16.to_be_bytes()].concat();
        if self.udp {
            out.extend((8 + self.payload.len() as u16).to_be_bytes());
            out.extend([0; 2]);
        } else {
            out.extend(self.seq.to_be_bytes());
            out.extend(5_000_000u32.to_be_bytes());
            out.extend([(5 + self.tcp_options.len() as u8 / 4) << 4, self.flags]);
            out.extend(self.window.to_be_bytes());
            out.extend([0; 4]);
            out.extend(&self.tcp_options);
        }
        out.extend(&self.payload);
        out
    }

    /// The frame with its transport checksum field zero.
    fn raw(&self) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if let Some(vlan) = self.vlan {
            out.extend([0x81, 0]);
            out.extend(vlan.to_be_bytes());
        }
        let transport = self.transport();
        let proto = if self.udp { 17 } else { 6 };
        if self.ipv6 {
            out.extend([0x86, 0xdd, 0x60, self.tos << 4, 0, 9]);
            out.extend(((transport.len() + 8 * self.ip_options) as u16).to_be_bytes());
            out.extend([if self.ip_options > 0 { 60 } else { proto }, 64]);
            out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            if self.ip_options > 0 {
                let pad = 8 * self.ip_options as u8 - 4;
                out.extend([proto, self.ip_options as u8 - 1, 1, pad]);
                out.extend(vec![0; pad.into()]);
            }
        } else {
            let start = out.len() + 2;
            out.extend([8, 0, 0x45 + self.ip_options as u8, self.tos]);
            out.extend(((20 + 4 * self.ip_options + transport.len()) as u16).to_be_bytes());
            out.extend(self.id.to_be_bytes());
            out.extend([
                if self.dont_fragment { 0x40 } else { 0 },
                0,
                64,
                proto,
                0,
                0,
                10,
                0,
                0,
                1,
                10,
                0,
                0,
                2,
            ]);
            out.extend(vec![1; 4 * self.ip_options]);
            let check = Checksum::new().bytes(&out[start..]).finish();
            out[start + 10..start + 12].copy_from_slice(&check.to_be_bytes());
        }
        out.extend(transport);
        out
    }

    /// An ordinary frame with a complete checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.raw();
        let parsed = wire::parse(&out).expect("the sample parses");
        let at = usize::from(parsed.l4) + if self.udp { 6 } else { 16 };
        let check = Checksum::new().u16(l4_sum(&parsed, &out)).finish();
        out[at..at + 2].copy_from_slice(&check.to_be_bytes());
        out
    }

    pub fn frame(&self, pool: &mut Pool) -> Frame {
        let bytes = self.bytes();
        load(pool, &bytes)
    }

    /// A super-segment as a tenant's kernel hands it over: only the pseudo-header is summed.
    pub fn super_segment(&self, pool: &mut Pool, gso_bytes: u16) -> Frame {
        let mut bytes = self.raw();
        let parsed = wire::parse(&bytes).expect("the sample parses");
        let offset = if self.udp { 6 } else { 16 };
        let at = usize::from(parsed.l4) + offset;
        let seed = pseudo(&parsed).folded();
        bytes[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        let mut frame = load(pool, &bytes);
        let meta = pool.meta_mut(&mut frame);
        meta.flags.set(Flags::CSUM_PARTIAL);
        (meta.csum_start, meta.csum_offset) = (meta.l4, offset as u16);
        meta.gso_bytes = gso_bytes;
        meta.gso = match (self.udp, self.ipv6) {
            (true, _) => GsoKind::UdpL4,
            (false, false) => GsoKind::TcpV4,
            (false, true) => GsoKind::TcpV6,
        };
        frame
    }
}

/// Puts bytes into a frame, jumbo when needed, and fills the metadata as the first stage does.
pub(crate) fn load(pool: &mut Pool, bytes: &[u8]) -> Frame {
    let small = bytes.len() <= frame::FRAME_BYTES_MAX;
    let mut frame = if small { pool.alloc() } else { pool.alloc_jumbo() }.expect("a frame");
    assert!(pool.fill(&mut frame, bytes));
    let parsed = wire::parse(bytes).expect("the frame parses");
    let meta = pool.meta_mut(&mut frame);
    meta.flags.set(Flags::PARSED);
    if parsed.ip == IpKind::V6 {
        meta.flags.set(Flags::IPV6);
    }
    if parsed.fragment {
        meta.flags.set(Flags::FRAGMENT);
    }
    (meta.l3, meta.l4, meta.payload, meta.proto) = (parsed.l3, parsed.l4, parsed.payload, parsed.proto);
    meta.flow_hash = parsed.flow_hash;
    meta.cost_bytes = parsed.payload_bytes();
    frame
}

fn pseudo(parsed: &Parsed) -> Checksum {
    let bytes = parsed.l3_end - u32::from(parsed.l4);
    match (parsed.src_ip(), parsed.dst_ip()) {
        (Some(std::net::IpAddr::V4(src)), Some(std::net::IpAddr::V4(dst))) => {
            pseudo_v4(src, dst, parsed.proto, bytes)
        }
        (Some(std::net::IpAddr::V6(src)), Some(std::net::IpAddr::V6(dst))) => {
            pseudo_v6(src, dst, parsed.proto, bytes)
        }
        _ => unreachable!("samples are IP"),
    }
}

/// Sum of the pseudo-header and the transport bytes: 0xffff when a checksum inside is right.
pub(crate) fn l4_sum(parsed: &Parsed, bytes: &[u8]) -> u16 {
    pseudo(parsed).bytes(&bytes[parsed.l4.into()..parsed.l3_end as usize]).folded()
}

pub(crate) fn assert_checksums(bytes: &[u8]) {
    let parsed = wire::parse(bytes).expect("the frame parses");
    assert_eq!(l4_sum(&parsed, bytes), 0xffff, "transport checksum");
    if parsed.ip == IpKind::V4 {
        let header = &bytes
            [parsed.l3.into()..usize::from(parsed.l3) + usize::from(bytes[usize::from(parsed.l3)] & 15) * 4];
        assert_eq!(wire::checksum::sum(header), 0xffff, "IPv4 header checksum");
    }
}

pub(crate) fn pool(frames: u32, jumbo_frames: u32) -> Pool {
    Pool::new(&Slab::new(SlabConfig { frames, jumbo_frames, hugepages: false }).expect("memory"))
}

/// Bytes that are not all alike, of any length.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8).collect()
}
