//! The AF_PACKET driver on veth pairs in namespaces of its own.

#[path = "../../../tests/src/netns.rs"]
#[allow(dead_code, unfulfilled_lint_expectations)]
mod netns;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use frame::{Batch, Flags, GsoKind, Pool, Slab, SlabConfig};
use netns::{Namespace, isolated, veth};
use port::packet::PacketSpec;
use port::{OpenError, Port, PortError, PortKind, PortSpec, open};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

const PATIENCE: Duration = Duration::from_secs(60);

fn slab() -> Arc<Slab> {
    Slab::new(SlabConfig { frames: 4096, jumbo_frames: 256, hugepages: false }).unwrap()
}

fn spec(interface: &str) -> PacketSpec {
    PacketSpec { interface: interface.into(), ring_frames: 512, fanout_group: None }
}

fn open_in(space: &Namespace, spec: &PacketSpec, slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    space.run(|| open(&PortSpec::Packet(spec.clone()), slab))
}

/// Repeats `step` until it says true; false when patience ends first.
fn until(mut step: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !step() {
        if Instant::now() > end {
            return false;
        }
    }
    true
}

/// One end of a pair of ports, with what it needs to send and to receive.
struct End {
    port: Box<dyn Port>,
    pool: Pool,
    batch: Batch,
}

impl End {
    fn new(port: Box<dyn Port>, slab: &Arc<Slab>) -> End {
        End { port, pool: Pool::new(slab), batch: Batch::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut frame = self.pool.alloc().unwrap();
        assert!(self.pool.fill(&mut frame, bytes));
        self.batch.push(frame);
        assert!(until(|| {
            let taken = self.port.tx_burst(&mut self.pool, &mut self.batch).unwrap();
            self.port.flush(&mut self.pool).unwrap();
            taken == 1
        }));
    }

    fn receive(&mut self) -> Result<Vec<Vec<u8>>, PortError> {
        let result = self.port.rx_burst(&mut self.pool, &mut self.batch);
        let frames = self.batch.iter().map(|frame| self.pool.bytes(frame).to_vec()).collect();
        self.pool.free_batch(&mut self.batch);
        self.port.flush(&mut self.pool)?;
        result.map(|_| frames)
    }

    /// The first error of the port while it is used.
    fn error(&mut self) -> Option<PortError> {
        let mut error = None;
        until(|| {
            self.port.arm();
            error = self.receive().err();
            error.is_some()
        });
        error
    }

    fn close(mut self) {
        self.pool.free_batch(&mut self.batch);
        self.port.close(&mut self.pool);
    }
}

/// Two namespaces joined by a veth pair, with a port on each end.
fn pair() -> (Namespace, Namespace, End, End) {
    let (a, b) = (Namespace::new(), Namespace::new());
    veth(&a, "a0", &b, "b0");
    let slab = slab();
    let a_end = End::new(open_in(&a, &spec("a0"), &slab).unwrap(), &slab);
    let b_end = End::new(open_in(&b, &spec("b0"), &slab).unwrap(), &slab);
    (a, b, a_end, b_end)
}

fn test_frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    bytes[14..18].copy_from_slice(&number.to_be_bytes());
    bytes
}

#[test]
fn frames_of_every_size_arrive_whole_and_in_order() {
    isolated("frames_of_every_size_arrive_whole_and_in_order", || {
        let (_a, _b, mut a, mut b) = pair();
        assert_eq!(a.port.caps().kind, PortKind::Ethernet);
        assert_eq!(a.port.caps().mtu_bytes, 1500);
        let mut sent = 0;
        let mut came = 0;
        while came < 20_000u32 {
            for _ in 0..32.min(20_000 - sent) {
                a.send(&test_frame(sent, 60 + (sent as usize * 7) % 1455));
                sent += 1;
            }
            assert!(until(|| {
                for bytes in b.receive().unwrap() {
                    assert_eq!(bytes, test_frame(came, 60 + (came as usize * 7) % 1455));
                    came += 1;
                }
                came == sent
            }));
        }
        let (a_count, b_count) = (a.port.counters(), b.port.counters());
        assert_eq!((a_count.tx_frames, b_count.rx_frames), (20_000, 20_000));
        assert_eq!(a_count.tx_bytes, b_count.rx_bytes);
        assert_eq!(a_count.rx_frames, 0, "our own frames do not come back");
        a.close();
        b.close();
    });
}

/// What a bridge of two ports saw.
#[derive(Default)]
struct Seen {
    super_segments: u64,
    partial: u64,
    longest: usize,
}

/// Forwards both ways until told to stop.
fn bridge(mut ports: [Box<dyn Port>; 2], slab: &Arc<Slab>, stop: &AtomicBool) -> Seen {
    let mut pool = Pool::new(slab);
    let mut seen = Seen::default();
    let mut batches = [Batch::new(), Batch::new()];
    while !stop.load(Ordering::Relaxed) {
        for from in [0, 1] {
            let batch = &mut batches[from];
            let before = batch.len();
            ports[from].rx_burst(&mut pool, batch).unwrap();
            for frame in &batch[before..] {
                let (meta, bytes) = (pool.meta(frame), pool.bytes(frame));
                seen.super_segments += u64::from(meta.gso != GsoKind::None);
                seen.partial += u64::from(meta.flags.has(Flags::CSUM_PARTIAL));
                seen.longest = seen.longest.max(bytes.len());
            }
            ports[1 - from].tx_burst(&mut pool, batch).unwrap();
        }
        for port in &mut ports {
            port.flush(&mut pool).unwrap();
        }
    }
    for batch in &mut batches {
        pool.free_batch(batch);
    }
    for port in ports {
        assert_eq!(port.counters().tx_errors, 0);
        port.close(&mut pool);
    }
    seen
}

/// Sends `bytes_total` pseudo-random bytes over a kernel TCP connection through a bridge of two ports and
/// compares each of them.
fn tcp_through_bridge(bytes_total: usize) -> Seen {
    let (client, middle, server) = (Namespace::new(), Namespace::new(), Namespace::new());
    veth(&client, "c0", &middle, "m0");
    veth(&server, "s0", &middle, "m1");
    client.ip("addr add 10.1.0.1/24 dev c0");
    server.ip("addr add 10.1.0.2/24 dev s0");
    let slab = slab();
    let ports = ["m0", "m1"].map(|name| open_in(&middle, &spec(name), &slab).unwrap());
    let listener = server.run(|| TcpListener::bind("10.1.0.2:5001").unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let forwarding = scope.spawn(|| bridge(ports, &slab, &stop));
        let sending = scope.spawn(|| {
            let mut stream = client.run(|| TcpStream::connect("10.1.0.2:5001").unwrap());
            let mut source = SmallRng::seed_from_u64(7);
            let mut block = vec![0; 1 << 16];
            for _ in 0..bytes_total / block.len() {
                source.fill(block.as_mut_slice());
                stream.write_all(&block).unwrap();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut expected = SmallRng::seed_from_u64(7);
        let (mut block, mut wanted) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        for _ in 0..bytes_total / block.len() {
            stream.read_exact(&mut block).unwrap();
            expected.fill(wanted.as_mut_slice());
            assert!(block == wanted, "a byte changed on the way");
        }
        sending.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        forwarding.join().unwrap()
    })
}

#[test]
fn tcp_crosses_a_bridge_of_two_ports_in_super_segments() {
    isolated("tcp_crosses_a_bridge_of_two_ports_in_super_segments", || {
        let seen = tcp_through_bridge(64 << 20);
        assert!(seen.super_segments > 100, "{} super-segments", seen.super_segments);
        assert!(seen.partial >= seen.super_segments);
        assert!(seen.longest > 30_000, "the longest had {} bytes", seen.longest);
    });
}

/// The kernel takes the tag off on the way in, whoever sent it.
#[test]
fn vlan_tags_that_the_kernel_took_off_are_put_back() {
    isolated("vlan_tags_that_the_kernel_took_off_are_put_back", || {
        let (_a, _b, mut a, mut b) = pair();
        for (kind, control) in [([0x81, 0x00], 0xe007u16), ([0x88, 0xa8], 0x0fff), ([0x81, 0x00], 0)] {
            for len in [60, 1518] {
                let mut bytes = test_frame(1, len);
                bytes[12..14].copy_from_slice(&kind);
                bytes[14..16].copy_from_slice(&control.to_be_bytes());
                bytes[16..18].copy_from_slice(&[0x88, 0xb5]);
                a.send(&bytes);
                assert!(until(|| match b.receive().unwrap().as_slice() {
                    [] => false,
                    [came] => {
                        assert_eq!(*came, bytes);
                        true
                    }
                    more => panic!("{} frames", more.len()),
                }));
            }
        }
        a.close();
        b.close();
    });
}

#[test]
fn a_tagged_super_segment_arrives_as_it_was_sent() {
    isolated("a_tagged_super_segment_arrives_as_it_was_sent", || {
        let (_a, _b, mut a, mut b) = pair();
        for payload in [3000, 20_000, 60_000usize] {
            let sent = tagged_super_segment(payload);
            let mut frame = a.pool.alloc_jumbo().unwrap();
            assert!(a.pool.fill(&mut frame, &sent));
            let meta = a.pool.meta_mut(&mut frame);
            meta.flags.set(Flags::CSUM_PARTIAL);
            (meta.csum_start, meta.csum_offset) = (38, 16);
            (meta.gso, meta.gso_bytes) = (GsoKind::TcpV4, 1448);
            a.batch.push(frame);
            assert_eq!(a.port.tx_burst(&mut a.pool, &mut a.batch).unwrap(), 1);
            assert!(until(|| b.port.rx_burst(&mut b.pool, &mut b.batch).unwrap() == 1));
            let meta = b.pool.meta(&b.batch[0]);
            assert_eq!((meta.csum_start, meta.csum_offset), (38, 16));
            assert_eq!((meta.gso, meta.gso_bytes), (GsoKind::TcpV4, 1448));
            assert!(b.pool.bytes(&b.batch[0]) == sent);
            assert_eq!(b.pool.is_jumbo(&b.batch[0]), payload > 3400);
            b.pool.free_batch(&mut b.batch);
        }
        assert_eq!(a.port.counters().tx_errors, 0);
        assert_eq!(b.port.counters().rx_truncated, 0);
        a.close();
        b.close();
    });
}

/// IPv4 and TCP behind a VLAN tag. The kernel does not look at the sums of what it only passes on.
fn tagged_super_segment(payload: usize) -> Vec<u8> {
    let mut bytes = test_frame(1, 58 + payload);
    bytes[12..18].copy_from_slice(&[0x81, 0, 0xa0, 7, 8, 0]);
    let [high, low] = (40 + payload as u16).to_be_bytes();
    bytes[18..38]
        .copy_from_slice(&[0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes[38..58].copy_from_slice(&[1, 1, 2, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes
}

#[test]
fn a_removed_interface_ends_the_port_and_is_taken_up_again() {
    isolated("a_removed_interface_ends_the_port_and_is_taken_up_again", || {
        let (a, b, mut a_end, b_end) = pair();
        a.ip("link del a0");
        assert!(matches!(a_end.error(), Some(PortError::Gone { name }) if name == "a0"));
        let mut late = a_end.pool.alloc().unwrap();
        a_end.pool.fill(&mut late, &test_frame(0, 60));
        a_end.batch.push(late);
        let _ = a_end.port.tx_burst(&mut a_end.pool, &mut a_end.batch);
        assert!(matches!(a_end.port.flush(&mut a_end.pool), Err(PortError::Gone { .. })));
        a_end.close();
        b_end.close();
        let slab = slab();
        assert!(matches!(open_in(&a, &spec("a0"), &slab), Err(OpenError::Missing { name }) if name == "a0"));
        veth(&a, "a0", &b, "b0");
        let mut a_end = End::new(open_in(&a, &spec("a0"), &slab).unwrap(), &slab);
        let mut b_end = End::new(open_in(&b, &spec("b0"), &slab).unwrap(), &slab);
        a_end.send(&test_frame(1, 60));
        assert!(until(|| b_end.receive().unwrap().contains(&test_frame(1, 60))));
        a_end.close();
        b_end.close();
    });
}

#[test]
fn an_interface_set_down_says_how_to_bring_it_back() {
    isolated("an_interface_set_down_says_how_to_bring_it_back", || {
        let (a, _b, mut a_end, b_end) = pair();
        a.ip("link set a0 down");
        let error = a_end.error().expect("a port that is down has an error");
        assert!(error.to_string().contains("ip link set a0 up"), "{error}");
        a_end.close();
        let slab = slab();
        assert!(matches!(open_in(&a, &spec("a0"), &slab), Err(OpenError::Down { .. })));
        a.ip("link set a0 up");
        let a_end = End::new(open_in(&a, &spec("a0"), &slab).unwrap(), &slab);
        a_end.close();
        b_end.close();
    });
}

#[test]
fn a_blocked_worker_wakes_and_hears_of_the_end() {
    isolated("a_blocked_worker_wakes_and_hears_of_the_end", || {
        let (a, _b, mut a_end, mut b_end) = pair();
        let ready = |end: &End, wait_ms: i64| {
            let fd = end.port.wait_fd().unwrap();
            let mut polled =
                [rustix::event::PollFd::from_borrowed_fd(fd.as_fd(), rustix::event::PollFlags::IN)];
            let wait =
                rustix::event::Timespec { tv_sec: wait_ms / 1000, tv_nsec: wait_ms % 1000 * 1_000_000 };
            rustix::event::poll(&mut polled, Some(&wait)).unwrap() == 1
        };
        a_end.port.arm();
        assert!(!a_end.port.has_input() && !ready(&a_end, 0));
        b_end.send(&test_frame(1, 60));
        assert!(ready(&a_end, 5000) && a_end.port.has_input());
        assert_eq!(a_end.receive().unwrap().len(), 1);
        assert!(!a_end.port.has_input() && !ready(&a_end, 0));
        a.ip("link set a0 down");
        assert!(ready(&a_end, 5000), "the descriptor tells of the error");
        a_end.port.arm();
        assert!(a_end.port.has_input(), "and arming keeps the worker awake to hear it");
        assert!(matches!(a_end.receive(), Err(PortError::Down { .. })));
        a_end.close();
        b_end.close();
    });
}

#[test]
fn a_full_ring_is_counted_as_kernel_drops() {
    isolated("a_full_ring_is_counted_as_kernel_drops", || {
        let (_a, _b, mut a, mut b) = pair();
        for number in 0..2000 {
            a.send(&test_frame(number, 60));
        }
        let mut came = 0;
        while let count @ 1.. = b.receive().unwrap().len() {
            came += count as u64;
        }
        a.send(&test_frame(0, 60));
        assert!(until(|| b.receive().unwrap().len() == 1));
        b.port.arm();
        assert!(came >= 512);
        assert_eq!(b.port.counters().rx_kernel_drops, 2000 - came);
        a.close();
        b.close();
    });
}

#[test]
fn frames_that_cannot_leave_are_counted_and_freed() {
    isolated("frames_that_cannot_leave_are_counted_and_freed", || {
        let (_a, _b, mut a, mut b) = pair();
        a.send(&[0; 13]);
        a.send(&test_frame(1, 1515));
        let mut odd = a.pool.alloc().unwrap();
        a.pool.fill(&mut odd, &test_frame(2, 60));
        let meta = a.pool.meta_mut(&mut odd);
        meta.flags.set(Flags::CSUM_PARTIAL);
        (meta.csum_start, meta.csum_offset) = (50, 9);
        a.batch.push(odd);
        assert_eq!(a.port.tx_burst(&mut a.pool, &mut a.batch).unwrap(), 1);
        // A super-segment that the kernel itself refuses: its checksum begins nowhere.
        let mut bad = a.pool.alloc_jumbo().unwrap();
        a.pool.fill(&mut bad, &test_frame(3, 30_000));
        a.pool.meta_mut(&mut bad).gso = GsoKind::TcpV4;
        a.batch.push(bad);
        assert_eq!(a.port.tx_burst(&mut a.pool, &mut a.batch).unwrap(), 1);
        a.send(&test_frame(4, 1514));
        assert!(until(|| b.receive().unwrap().contains(&test_frame(4, 1514))));
        assert_eq!(a.port.counters().tx_errors, 4);
        assert_eq!(b.port.counters().rx_frames, 1);
        a.close();
        b.close();
    });
}

#[test]
fn without_carrier_frames_wait_and_nobody_spins() {
    isolated("without_carrier_frames_wait_and_nobody_spins", || {
        let (_a, b, mut a_end, b_end) = pair();
        b.ip("link set b0 down");
        b_end.close();
        a_end.send(&test_frame(1, 60));
        assert!(!a_end.port.has_input());
        b.ip("link set b0 up");
        let slab = slab();
        let mut b_end = End::new(open_in(&b, &spec("b0"), &slab).unwrap(), &slab);
        assert!(until(|| {
            a_end.receive().unwrap();
            b_end.receive().unwrap().contains(&test_frame(1, 60))
        }));
        a_end.close();
        b_end.close();
    });
}

#[test]
fn a_fanout_group_shares_the_flows() {
    isolated("a_fanout_group_shares_the_flows", || {
        let (_a, b, mut a_end, b_end) = pair();
        b_end.close();
        let slab = slab();
        let member = PacketSpec { fanout_group: Some(9), ..spec("b0") };
        let mut members = [0, 1].map(|_| End::new(open_in(&b, &member, &slab).unwrap(), &slab));
        b.ip("link add other type veth peer name other2");
        b.ip("link set other up");
        let elsewhere = PacketSpec { interface: "other".into(), ..member };
        assert!(matches!(open_in(&b, &elsewhere, &slab), Err(OpenError::Busy { .. })));
        for flow in 0..256u32 {
            a_end.send(&udp_frame(flow));
        }
        let mut came = [0, 0];
        assert!(until(|| {
            for (count, member) in came.iter_mut().zip(&mut members) {
                *count += member.receive().unwrap().len();
            }
            came[0] + came[1] >= 256
        }));
        assert_eq!(came[0] + came[1], 256);
        assert!(came[0] > 20 && came[1] > 20, "{came:?}");
        a_end.close();
        members.into_iter().for_each(End::close);
    });
}

/// An IPv4 UDP frame whose addresses and ports name the flow.
fn udp_frame(flow: u32) -> Vec<u8> {
    let mut bytes = test_frame(flow, 64);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14..34]
        .copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, flow as u8, 10, 0, 0, 200]);
    bytes[34..42].copy_from_slice(&[1, flow as u8, 2, 2, 0, 30, 0, 0]);
    bytes
}

#[test]
fn an_exhausted_slab_leaves_frames_in_the_ring() {
    isolated("an_exhausted_slab_leaves_frames_in_the_ring", || {
        let (_a, b, mut a_end, b_end) = pair();
        b_end.close();
        let tiny = Slab::new(SlabConfig { frames: 1, jumbo_frames: 0, hugepages: false }).unwrap();
        let mut b_end = End::new(open_in(&b, &spec("b0"), &tiny).unwrap(), &tiny);
        a_end.send(&test_frame(1, 60));
        a_end.send(&test_frame(2, 60));
        assert!(until(|| b_end.port.has_input()));
        let mut came = Vec::new();
        assert!(until(|| {
            let frames = b_end.receive().unwrap();
            assert!(frames.len() < 2);
            came.extend(frames);
            came.len() == 2
        }));
        assert_eq!(came, [test_frame(1, 60), test_frame(2, 60)]);
        assert!(b_end.port.counters().rx_no_frame > 0);
        a_end.close();
        b_end.close();
    });
}

#[test]
fn open_errors_say_what_to_do() {
    isolated("open_errors_say_what_to_do", || {
        let space = Namespace::new();
        let slab = slab();
        for name in ["nowhere0", "", "a-name-that-is-longer-than-a-name-may-be"] {
            assert!(matches!(open_in(&space, &spec(name), &slab), Err(OpenError::Missing { .. })), "{name}");
        }
        for ring_frames in [0, 31, 32769, u32::MAX] {
            let odd = PacketSpec { ring_frames, ..spec("lo") };
            assert!(matches!(open_in(&space, &odd, &slab), Err(OpenError::Spec { .. })));
        }
        space.ip("tuntap add mode tun name t0");
        let Err(error) = open_in(&space, &spec("t0"), &slab) else { panic!("a tun device has no Ethernet") };
        assert!(error.to_string().contains("not an Ethernet interface"), "{error}");
        let denied = space.run(|| {
            use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
            // Of this thread alone.
            set_capabilities(None, sets).unwrap();
            open(&PortSpec::Packet(spec("lo")), &slab).map(drop)
        });
        let Err(OpenError::Permission { hint, .. }) = denied else { panic!("{denied:?}") };
        assert!(hint.contains("cap_net_raw"));
    });
}
