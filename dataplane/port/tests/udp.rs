//! The UDP-socket driver on loopback.

#[path = "../../../tests/src/netns.rs"]
#[allow(dead_code, unfulfilled_lint_expectations)]
mod netns;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use frame::{Batch, Flags, GsoKind, Pool, Slab, SlabConfig};
use netns::{Namespace, isolated};
use port::packet::PacketSpec;
use port::udp::UdpSpec;
use port::{OpenError, Port, PortKind, PortSpec, open};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

const PATIENCE: Duration = Duration::from_secs(60);

fn slab() -> Arc<Slab> {
    Slab::new(SlabConfig { frames: 4096, jumbo_frames: 256, hugepages: false }).unwrap()
}

/// An address that nobody uses at the moment.
fn free_address(ip: &str) -> SocketAddr {
    UdpSocket::bind(format!("{ip}:0")).unwrap().local_addr().unwrap()
}

fn until(mut step: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !step() {
        if Instant::now() > end {
            return false;
        }
    }
    true
}

struct End {
    port: Box<dyn Port>,
    pool: Pool,
    batch: Batch,
}

/// What arrived: bytes, the sender's number, the outer ECN field.
type Came = (Vec<u8>, u16, u8);

impl End {
    fn open(bind: SocketAddr, peers: &[SocketAddr]) -> End {
        let slab = slab();
        let spec = PortSpec::Udp(UdpSpec { bind, peers: peers.to_vec(), dscp: 0 });
        End { port: open(&spec, &slab).unwrap(), pool: Pool::new(&slab), batch: Batch::new() }
    }

    /// Two ends that know each other, and nobody else.
    fn pair(ip: &str) -> (End, End) {
        let (a, b) = (free_address(ip), free_address(ip));
        (End::open(a, &[b]), End::open(b, &[a]))
    }

    fn put(&mut self, bytes: &[u8], to: u16, ecn: u8) {
        let frame = if bytes.len() > 3400 { self.pool.alloc_jumbo() } else { self.pool.alloc() };
        let mut frame = frame.unwrap();
        assert!(self.pool.fill(&mut frame, bytes));
        let meta = self.pool.meta_mut(&mut frame);
        meta.next_hop = to;
        meta.flags.set_outer_ecn(ecn);
        self.batch.push(frame);
    }

    fn flush(&mut self) {
        assert!(until(|| {
            self.port.tx_burst(&mut self.pool, &mut self.batch).unwrap();
            self.port.flush(&mut self.pool).unwrap();
            self.batch.is_empty() && !self.port.has_input()
        }));
    }

    fn receive(&mut self) -> Vec<Came> {
        self.port.rx_burst(&mut self.pool, &mut self.batch).unwrap();
        let frames = self.batch.iter().map(|frame| {
            let meta = self.pool.meta(frame);
            (self.pool.bytes(frame).to_vec(), meta.next_hop, meta.flags.outer_ecn())
        });
        let frames = frames.collect();
        self.pool.free_batch(&mut self.batch);
        frames
    }

    fn receive_one(&mut self) -> Came {
        let mut came = Vec::new();
        assert!(until(|| {
            came = self.receive();
            !came.is_empty()
        }));
        assert_eq!(came.len(), 1);
        came.remove(0)
    }

    fn ready(&self) -> bool {
        let fd = self.port.wait_fd().unwrap();
        let mut polled = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())).unwrap() == 1
    }

    fn close(self) {
        let mut pool = self.pool;
        self.port.close(&mut pool);
    }
}

/// Frames in runs of equal length, of all lengths up to that of a jumbo frame.
fn mixed_frames(count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut source = SmallRng::seed_from_u64(3);
    let (mut left, mut len) = (0, 0);
    (0..count).map(move |number| {
        if left == 0 {
            left = source.random_range(1..80usize);
            len = if source.random_ratio(1, 8) {
                source.random_range(1..9000)
            } else {
                source.random_range(1..1500)
            };
        }
        left -= 1;
        // Sometimes the last of a run is shorter, as the last segment of a message is.
        let len = if left == 0 { source.random_range(1..=len) } else { len };
        let mut bytes = vec![number as u8; len];
        let stamp = (number as u32).to_be_bytes();
        let stamped = len.min(4);
        bytes[..stamped].copy_from_slice(&stamp[..stamped]);
        bytes
    })
}

fn round_trip(ip: &str, count: usize) {
    let (mut a, mut b) = End::pair(ip);
    assert_eq!(a.port.caps().kind, PortKind::Datagram);
    let (mut sending, mut expected) = (mixed_frames(count), mixed_frames(count));
    let (mut sent, mut came) = (0, 0);
    while came < count {
        for _ in 0..32.min(count - sent) {
            a.put(&sending.next().unwrap(), 0, 0);
            sent += 1;
        }
        a.flush();
        assert!(until(|| {
            for (bytes, from, ecn) in b.receive() {
                assert!(bytes == expected.next().unwrap(), "frame {came} changed");
                assert_eq!((from, ecn), (0, 0));
                came += 1;
            }
            came == sent
        }));
    }
    let (sent, came) = (a.port.counters(), b.port.counters());
    assert_eq!((sent.tx_frames, sent.tx_errors), (count as u64, 0));
    assert_eq!((came.rx_frames, came.rx_bytes), (count as u64, sent.tx_bytes));
    a.close();
    b.close();
}

#[test]
fn frames_of_mixed_sizes_arrive_whole_and_in_order() {
    round_trip("127.0.0.1", 100_000);
}

#[test]
fn the_same_over_ipv6() {
    round_trip("[::1]", 5_000);
}

#[test]
fn the_outer_ecn_field_travels_both_ways() {
    for ip in ["127.0.0.1", "[::1]"] {
        let (mut a, mut b) = End::pair(ip);
        for ecn in [0, 1, 2, 3, 3, 0, 2, 2, 2] {
            a.put(&[ecn; 100], 0, ecn);
        }
        a.flush();
        let mut came = Vec::new();
        assert!(until(|| {
            came.extend(b.receive());
            came.len() == 9
        }));
        assert!(came.iter().all(|(bytes, _, ecn)| bytes[0] == *ecn), "{came:?}");
        a.close();
        b.close();
    }
}

#[test]
fn a_sender_that_is_no_peer_has_no_number() {
    let (a, mut b) = End::pair("127.0.0.1");
    let stranger = UdpSocket::bind("127.0.0.2:0").unwrap();
    let b_address = {
        // The peer table of `a` is the only place that names it.
        let known = free_address("127.0.0.1");
        let end = End::open(known, &[]);
        b.close();
        b = end;
        known
    };
    stranger.send_to(&[1; 50], b_address).unwrap();
    assert_eq!(b.receive_one(), (vec![1; 50], u16::MAX, 0));
    stranger.send_to(&[], b_address).unwrap();
    assert!(until(|| {
        b.receive();
        b.port.counters().rx_truncated == 1
    }));
    b.port.set_peers(&[stranger.local_addr().unwrap()]);
    stranger.send_to(&[2; 50], b_address).unwrap();
    assert_eq!(b.receive_one(), (vec![2; 50], 0, 0));
    a.close();
    b.close();
}

#[test]
fn frames_to_nobody_are_counted_and_freed() {
    let (mut a, mut b) = End::pair("127.0.0.1");
    a.put(&[1; 60], 1, 0);
    a.put(&[1; 60], u16::MAX, 0);
    a.put(&[], 0, 0);
    a.put(&[2; 60], 0, 0);
    a.flush();
    assert_eq!(b.receive_one().0, [2; 60]);
    assert_eq!(a.port.counters().tx_errors, 3);
    // Held frames whose peer is taken away meet the same end.
    a.put(&[3; 60], 0, 0);
    a.port.tx_burst(&mut a.pool, &mut a.batch).unwrap();
    a.port.set_peers(&[]);
    a.flush();
    assert_eq!(a.port.counters().tx_errors, 4);
    a.close();
    b.close();
}

#[test]
fn a_peer_that_does_not_listen_is_counted_and_ends_nothing() {
    for ip in ["127.0.0.1", "[::1]"] {
        let (dead, a, b) = (free_address(ip), free_address(ip), free_address(ip));
        let mut a_end = End::open(a, &[dead, b]);
        let mut b_end = End::open(b, &[a]);
        a_end.put(&[1; 60], 0, 0);
        a_end.flush();
        assert!(until(|| a_end.ready()), "the error wakes the worker");
        a_end.port.arm();
        assert_eq!(a_end.port.counters().tx_errors, 1);
        assert!(!a_end.ready(), "and lets it sleep again");
        for _ in 0..3 {
            a_end.put(&[1; 60], 0, 0);
            a_end.flush();
            a_end.put(&[2; 60], 1, 0);
            a_end.flush();
            assert_eq!(b_end.receive_one().0, [2; 60]);
            assert!(a_end.receive().is_empty());
        }
        a_end.port.arm();
        assert_eq!(a_end.port.counters().tx_errors, 4);
        a_end.close();
        b_end.close();
    }
}

#[test]
fn an_interface_with_a_small_mtu_refuses_long_frames_alone() {
    isolated("an_interface_with_a_small_mtu_refuses_long_frames_alone", || {
        let space = Namespace::new();
        space.ip("link set lo mtu 1000");
        let (mut a, mut b) = space.run(|| End::pair("127.0.0.1"));
        assert_eq!(a.port.caps().mtu_bytes, 972);
        for len in [972, 973, 1400, 1400, 1400, 100, 1400, 972, 972, 10] {
            a.put(&vec![7; len], 0, 0);
        }
        a.flush();
        let mut came = Vec::new();
        assert!(until(|| {
            came.extend(b.receive().iter().map(|(bytes, ..)| bytes.len()));
            came.len() == 5
        }));
        assert_eq!(came, [972, 100, 972, 972, 10]);
        assert_eq!(a.port.counters().tx_errors, 5);
        a.close();
        b.close();
    });
}

#[test]
fn checksums_are_finished_and_super_segments_refused() {
    let (mut a, mut b) = End::pair("127.0.0.1");
    let mut bytes = vec![0x11; 64];
    bytes[40..42].copy_from_slice(&[0, 0]);
    a.put(&bytes, 0, 0);
    a.put(&bytes, 0, 0);
    for (frame, gso) in a.batch.iter_mut().zip([GsoKind::None, GsoKind::TcpV4]) {
        let meta = a.pool.meta_mut(frame);
        meta.flags.set(Flags::CSUM_PARTIAL);
        (meta.csum_start, meta.csum_offset, meta.gso) = (34, 6, gso);
    }
    a.flush();
    let (came, ..) = b.receive_one();
    let sum = came[34..].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    assert_eq!(a.port.counters().tx_errors, 1);
    a.close();
    b.close();
}

#[test]
fn a_full_socket_is_counted_as_kernel_drops() {
    let (mut a, mut b) = End::pair("127.0.0.1");
    let total = 100_000u64;
    for number in 0..total {
        // No two of a run are equal, so that each is a datagram of its own.
        a.put(&vec![1; 1 + number as usize % 2 * 900 + number as usize % 32], 0, number as u8 & 1);
        if a.batch.is_full() {
            a.flush();
        }
    }
    a.flush();
    let mut came = 0;
    while let count @ 1.. = b.receive().len() as u64 {
        came += count;
    }
    a.put(&[1], 0, 0);
    a.flush();
    b.receive_one();
    assert!(came < total, "the socket held everything");
    assert_eq!(came + b.port.counters().rx_kernel_drops, total);
    a.close();
    b.close();
}

#[test]
fn an_exhausted_slab_keeps_small_frames_waiting() {
    let (a_address, b_address) = (free_address("127.0.0.1"), free_address("127.0.0.1"));
    let mut a = End::open(a_address, &[b_address]);
    let tiny = Slab::new(SlabConfig { frames: 1, jumbo_frames: 0, hugepages: false }).unwrap();
    let spec = PortSpec::Udp(UdpSpec { bind: b_address, peers: vec![a_address], dscp: 0 });
    let mut b = End { port: open(&spec, &tiny).unwrap(), pool: Pool::new(&tiny), batch: Batch::new() };
    for len in [5000, 60, 60] {
        a.put(&vec![1; len], 0, 0);
    }
    a.flush();
    assert_eq!(b.receive_one().0.len(), 60);
    assert_eq!(b.receive_one().0.len(), 60);
    assert!(b.port.counters().rx_no_frame > 1);
    a.close();
    b.close();
}

/// Seen on the wire: the marking is there, and nothing may be fragmented.
#[test]
fn the_outer_header_carries_dscp_ecn_and_df() {
    isolated("the_outer_header_carries_dscp_ecn_and_df", || {
        let space = Namespace::new();
        let slab = slab();
        let mut pool = Pool::new(&slab);
        let spec = PacketSpec { interface: "lo".into(), ring_frames: 64, fanout_group: None };
        // It listens, so that no answer of ICMP comes between.
        let (mut wire, udp, _listener) = space.run(|| {
            let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
            let peers = vec![listener.local_addr().unwrap()];
            let udp = UdpSpec { bind: free_address("127.0.0.1"), peers, dscp: 46 };
            let udp = open(&PortSpec::Udp(udp), &slab).unwrap();
            (open(&PortSpec::Packet(spec), &slab).unwrap(), udp, listener)
        });
        let mut a = End { port: udp, pool: Pool::new(&slab), batch: Batch::new() };
        for (ecn, tos) in [(0, 46 << 2), (1, (46 << 2) | 1)] {
            a.put(&[9; 60], 0, ecn);
            a.flush();
            let mut seen = Batch::new();
            assert!(until(|| wire.rx_burst(&mut pool, &mut seen).unwrap() > 0));
            let bytes = pool.bytes(&seen[0]);
            assert_eq!(bytes[14 + 1], tos, "TOS");
            assert_eq!(bytes[14 + 6] & 0x40, 0x40, "DF");
            pool.free_batch(&mut seen);
        }
        a.close();
        wire.close(&mut pool);
    });
}

#[test]
fn open_errors_say_what_to_do() {
    let slab = slab();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let attempt = |bind: &str, peers: &[&str], dscp: u8| {
        let peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
        open(&PortSpec::Udp(UdpSpec { bind: bind.parse().unwrap(), peers, dscp }), &slab).map(drop)
    };
    let busy = attempt(&taken.local_addr().unwrap().to_string(), &[], 0);
    assert!(matches!(&busy, Err(OpenError::Busy { hint, .. }) if hint.contains("ss -ulpn")), "{busy:?}");
    for (bind, peers, dscp, word) in [
        ("127.0.0.1:0", &[] as &[&str], 64, "dscp"),
        ("127.0.0.1:0", &["[::1]:1"], 0, "family"),
        ("127.0.0.1:0", &["127.0.0.1:0"], 0, "port"),
        ("127.0.0.1:0", &["0.0.0.0:1"], 0, "address"),
        ("192.0.2.1:0", &[], 0, "ip addr"),
    ] {
        let Err(OpenError::Spec { what, .. }) = attempt(bind, peers, dscp) else {
            panic!("{bind} {peers:?}")
        };
        assert!(what.contains(word), "{what}");
    }
    let many = UdpSpec {
        bind: "127.0.0.1:0".parse().unwrap(),
        peers: vec![taken.local_addr().unwrap(); 65_536],
        dscp: 0,
    };
    assert!(matches!(open(&PortSpec::Udp(many), &slab), Err(OpenError::Spec { .. })));
    let denied = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
            // Of this thread alone.
            set_capabilities(None, sets).unwrap();
            attempt("127.0.0.1:7", &[], 0)
        });
        thread.join().unwrap()
    });
    assert!(matches!(denied, Err(OpenError::Permission { hint, .. }) if hint.contains("1024")));
}
