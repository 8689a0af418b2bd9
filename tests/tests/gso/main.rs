//! Segmentation against the kernel: the same super-segments, cut by Linux and by us, byte for byte.
//!
//! A super-segment goes into one end of a veth pair through a port of type AF_PACKET. That end has every
//! offload turned off, so the kernel's own software segmentation cuts it and computes the checksums; what
//! comes out at the other end must be exactly what `overlay::segment` makes of the same bytes: IP
//! identifications included, although nobody asks for that.
//!
//! One known difference is left out of the input: where TCP options make the payload fit one segment while
//! payload and options together would not, Linux drops the frame instead of sending it.

use std::time::Duration;

use frame::{Batch, Flags, Frame, GsoKind, Pool, Slab, SlabConfig};
use overlay::segment::{PIECES_MAX, segment};
use port::packet::PacketSpec;
use port::{Port, PortSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tests::netns::{self, Namespace, isolated, skip};
use tests::random::Random;
use wire::checksum::{self, Checksum};
use wire::{IpKind, Parsed};

#[test]
fn pieces_equal_the_kernels_own() {
    let name = "pieces_equal_the_kernels_own";
    isolated(name, || {
        let (near, far) = (Namespace::new(), Namespace::new());
        netns::veth(&near, "near", &far, "far");
        for (space, device) in [(&near, "near"), (&far, "far")] {
            space.ip(&format!("link set {device} mtu {MTU_BYTES}"));
            let mut ethtool = space.command("ethtool");
            let args = ["tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off"];
            ethtool.arg("-K").arg(device).args(args).args(["tx-udp-segmentation", "off"]);
            let output = ethtool.output().expect("nsenter runs");
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                return skip(name, &format!("offloads cannot be turned off (is ethtool installed?): {why}"));
            }
        }
        let slab = Slab::new(SlabConfig { frames: 1024, jumbo_frames: 64, hugepages: false });
        let slab = slab.expect("memory");
        let open = |space: &Namespace, interface: &str| {
            let spec = PacketSpec { interface: interface.into(), ring_frames: 512, fanout_group: None };
            space.run(|| port::open(&PortSpec::Packet(spec), &slab)).expect("the interface is there")
        };
        compare_all(&mut Wire { near: open(&near, "near"), far: open(&far, "far"), pool: Pool::new(&slab) });
    });
}

/// Both ends of the pair.
struct Wire {
    near: Box<dyn Port>,
    far: Box<dyn Port>,
    pool: Pool,
}

impl Wire {
    fn send(&mut self, frame: Frame) {
        let mut batch = Batch::new();
        batch.push(frame);
        assert_eq!(self.near.tx_burst(&mut self.pool, &mut batch).expect("near is up"), 1);
        self.near.flush(&mut self.pool).expect("near is up");
        assert_eq!(self.near.counters().tx_errors, 0, "the kernel takes it");
    }

    /// Receives until there are `count` frames or until nothing has come for a while.
    fn receive(&mut self, count: usize) -> Vec<Frame> {
        let (mut frames, mut batch) = (Vec::new(), Batch::new());
        while frames.len() < count {
            while self.far.rx_burst(&mut self.pool, &mut batch).expect("far is up") > 0 {
                frames.extend(batch.drain(..));
            }
            let fd = self.far.wait_fd().expect("it has a socket");
            let limit = Timespec::try_from(PATIENCE).expect("seconds");
            if frames.len() < count && poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) == Ok(0) {
                break;
            }
        }
        frames
    }
}

/// Room for segments as long as a small frame can be.
const MTU_BYTES: usize = 3386;
const RANDOM_CASES: u64 = 400;
/// Silence after which no further piece comes.
const PATIENCE: Duration = Duration::from_secs(5);

fn compare_all(wire: &mut Wire) {
    let mut pieces = 0;
    for (ipv6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        for gso_bytes in [1400, 1448] {
            let mut case = Case::random(7);
            (case.ipv6, case.udp, case.gso_bytes) = (ipv6, udp, gso_bytes);
            (case.ip_extra, case.tags) = (vec![], vec![]);
            case.payload_bytes = 65_535 - if ipv6 { 0 } else { 20 } - case.transport_header_bytes();
            pieces += case.compare(wire);
        }
    }
    for seed in 0..RANDOM_CASES {
        pieces += Case::random(seed).compare(wire);
    }
    let extra = wire.far.rx_burst(&mut wire.pool, &mut Batch::new()).expect("far is up");
    assert_eq!(extra, 0, "the kernel made more pieces than we did");
    println!("{} super-segments, {pieces} pieces: all equal to the kernel's", RANDOM_CASES + 8);
}

/// A super-segment and how it is to be cut.
#[derive(Debug)]
struct Case {
    seed: u64,
    ipv6: bool,
    udp: bool,
    /// VLAN tags, outermost first: type and tag.
    tags: Vec<(u16, u16)>,
    /// IPv4 options, or IPv6 extension headers of which the first is of this type.
    ip_extra: Vec<u8>,
    ip_extra_type: u8,
    tcp_options: Vec<u8>,
    flags: u8,
    gso_bytes: u16,
    payload_bytes: usize,
}

impl Case {
    fn random(seed: u64) -> Case {
        let random = &mut Random::new(seed);
        let tag = random.any() as u16 & !1;
        let udp = random.below(3) == 0;
        let mut case = Case {
            seed,
            ipv6: random.below(2) == 0,
            udp,
            tags: match random.below(8) {
                0 | 1 => vec![(0x8100, tag)],
                2 => vec![(0x88a8, tag), (0x8100, tag ^ 4)],
                _ => vec![],
            },
            ip_extra: vec![],
            ip_extra_type: if random.below(2) == 0 { 0 } else { 60 },
            tcp_options: match random.below(3) {
                0 => vec![],
                1 => [&[1, 1, 8, 10][..], &random.any().to_be_bytes()].concat(),
                _ => vec![1; 4 * random.below(11) as usize],
            },
            flags: random.any() as u8,
            gso_bytes: 1,
            payload_bytes: 0,
        };
        if random.below(4) == 0 {
            let words = random.below(4) as usize + 1;
            case.ip_extra = if case.ipv6 { vec![0; 8 * words] } else { vec![1; 4 * words] };
        }
        let room = 65_400 - case.ip_extra.len() - case.transport_header_bytes() - 20;
        case.gso_bytes = [8, 100, 536, 1400, 3200][random.below(5) as usize] - random.below(8) as u16;
        let gso_bytes = usize::from(case.gso_bytes);
        let pieces_max = if udp { 128 } else { PIECES_MAX };
        let payload_max = room.min(pieces_max * gso_bytes);
        case.payload_bytes = match random.below(6) {
            0 if udp => random.below(gso_bytes as u64) as usize,
            0 | 1 => gso_bytes + 1,
            2 => payload_max / gso_bytes * gso_bytes,
            _ => gso_bytes + 1 + random.below((payload_max - gso_bytes) as u64) as usize,
        };
        case
    }

    fn transport_header_bytes(&self) -> usize {
        if self.udp { 8 } else { 20 + self.tcp_options.len() }
    }

    /// The frame, its transport checksum holding the sum of the pseudo-header.
    fn bytes(&self) -> Vec<u8> {
        let random = &mut Random::new(!self.seed);
        // No multicast, so that the receiving kernel is not tempted to do anything with it.
        let mut out = vec![2, 0, 0, 0, 0, 0xfe, 2, 0x77, 0, 0, 0, self.seed as u8];
        for (kind, tag) in &self.tags {
            out.extend(kind.to_be_bytes());
            out.extend(tag.to_be_bytes());
        }
        let transport = self.transport(random);
        let proto = if self.udp { 17 } else { 6 };
        if self.ipv6 {
            out.extend([0x86, 0xdd, 0x60 | random.below(16) as u8]);
            out.extend(&random.any().to_be_bytes()[..3]);
            out.extend(((self.ip_extra.len() + transport.len()) as u16).to_be_bytes());
            out.extend([if self.ip_extra.is_empty() { proto } else { self.ip_extra_type }, 64]);
            for last in [1, 2] {
                out.extend([0xfd, 0x10, 0, 0, 0, 0, 0, 0]);
                out.extend(&(random.any() << 8 | last).to_be_bytes());
            }
            let extra = self.ip_extra.len();
            if extra > 0 {
                out.extend([proto, (extra / 8 - 1) as u8, 1, (extra - 4) as u8]);
                out.extend(&self.ip_extra[4..]);
            }
        } else {
            let start = out.len() + 2;
            out.extend([8, 0, 0x45 + (self.ip_extra.len() / 4) as u8, random.any() as u8]);
            out.extend(((20 + self.ip_extra.len() + transport.len()) as u16).to_be_bytes());
            out.extend(&random.any().to_be_bytes()[..2]);
            out.extend([random.below(2) as u8 * 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            out.extend(&self.ip_extra);
            let check = Checksum::new().bytes(&out[start..]).finish();
            out[start + 10..start + 12].copy_from_slice(&check.to_be_bytes());
        }
        out.extend(transport);
        let parsed = wire::parse(&out).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let at = usize::from(parsed.l4) + self.checksum_offset();
        out[at..at + 2].copy_from_slice(&pseudo(&parsed).folded().to_be_bytes());
        out
    }

    fn transport(&self, random: &mut Random) -> Vec<u8> {
        let mut out = random.any().to_be_bytes()[..4].to_vec();
        if self.udp {
            out.extend(((8 + self.payload_bytes) as u16).to_be_bytes());
            out.extend([0; 2]);
        } else {
            // Now and then a sequence number that is about to wrap.
            let seq = if random.below(4) == 0 { u32::MAX - 3000 } else { random.any() as u32 };
            out.extend(seq.to_be_bytes());
            out.extend((random.any() as u32).to_be_bytes());
            out.extend([(5 + self.tcp_options.len() as u8 / 4) << 4, self.flags]);
            out.extend((random.any() as u16).to_be_bytes());
            out.extend([0; 2]);
            out.extend((random.any() as u16).to_be_bytes());
            out.extend(&self.tcp_options);
        }
        out.extend((0..self.payload_bytes.div_ceil(8)).flat_map(|_| random.any().to_be_bytes()));
        out.truncate(self.transport_header_bytes() + self.payload_bytes);
        out
    }

    fn checksum_offset(&self) -> usize {
        if self.udp { 6 } else { 16 }
    }

    fn frame(&self, pool: &mut Pool, parsed: &Parsed, bytes: &[u8]) -> Frame {
        let mut frame = pool.alloc_jumbo().expect("a jumbo frame");
        assert!(pool.fill(&mut frame, bytes));
        let meta = pool.meta_mut(&mut frame);
        meta.flags.set(Flags::PARSED);
        meta.flags.set(Flags::CSUM_PARTIAL);
        if parsed.ip == IpKind::V6 {
            meta.flags.set(Flags::IPV6);
        }
        (meta.l3, meta.l4, meta.payload, meta.proto) = (parsed.l3, parsed.l4, parsed.payload, parsed.proto);
        (meta.csum_start, meta.csum_offset) = (parsed.l4, self.checksum_offset() as u16);
        meta.gso_bytes = self.gso_bytes;
        meta.gso = match (self.udp, self.ipv6) {
            (true, _) => GsoKind::UdpL4,
            (false, false) => GsoKind::TcpV4,
            (false, true) => GsoKind::TcpV6,
        };
        frame
    }

    /// Cuts here and in the kernel, compares every piece, and returns how many there were.
    fn compare(&self, wire: &mut Wire) -> usize {
        let bytes = self.bytes();
        let parsed = wire::parse(&bytes).expect("parsed a moment ago");
        let frame = self.frame(&mut wire.pool, &parsed, &bytes);
        let mut ours = Vec::new();
        let count = segment(&mut wire.pool, &frame, &mut |_, piece| ours.push(piece));
        let count = count.unwrap_or_else(|error| panic!("{error}: {self:?}"));
        wire.send(frame);
        let theirs = wire.receive(count);
        let pool = &mut wire.pool;
        assert_eq!(theirs.len(), count, "pieces of the kernel, and of ours: {self:?}");
        for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let meta = pool.meta(theirs);
            let left = meta.flags.has(Flags::CSUM_PARTIAL) || meta.gso != GsoKind::None;
            assert!(!left, "the kernel did not do all the work: {self:?}");
            let (ours, theirs) = (pool.bytes(ours), pool.bytes(theirs));
            let differs = (0..ours.len().max(theirs.len())).find(|&at| ours.get(at) != theirs.get(at));
            if let Some(at) = differs {
                let (ours, theirs) = (&ours[..ours.len().min(120)], &theirs[..theirs.len().min(120)]);
                panic!("piece {index} of {count} differs at byte {at}: {self:?}\n{ours:02x?}\n{theirs:02x?}");
            }
            assert_eq!(transport_sum(theirs), 0xffff, "the kernel's checksum: {self:?}");
        }
        ours.into_iter().chain(theirs).for_each(|piece| pool.free(piece));
        count
    }
}

fn pseudo(parsed: &Parsed) -> Checksum {
    let bytes = parsed.l3_end - u32::from(parsed.l4);
    match (parsed.src_ip(), parsed.dst_ip()) {
        (Some(std::net::IpAddr::V4(src)), Some(std::net::IpAddr::V4(dst))) => {
            checksum::pseudo_v4(src, dst, parsed.proto, bytes)
        }
        (Some(std::net::IpAddr::V6(src)), Some(std::net::IpAddr::V6(dst))) => {
            checksum::pseudo_v6(src, dst, parsed.proto, bytes)
        }
        other => panic!("not IP: {other:?}"),
    }
}

fn transport_sum(bytes: &[u8]) -> u16 {
    let parsed = wire::parse(bytes).expect("the kernel's pieces parse");
    pseudo(&parsed).bytes(&bytes[parsed.l4.into()..parsed.l3_end as usize]).folded()
}
