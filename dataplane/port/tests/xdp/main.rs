//! AF_XDP against a raw socket on the other end of a veth pair.

mod lab;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use frame::{Batch, Flags, GsoKind, HEADROOM_BYTES, Pool};
use lab::{PATIENCE, Raw, all_home, enter, ip, numbered, open, pair, receive, slab, spec, until, veth};
use port::xdp::XdpSpec;
use port::{OpenError, Port, PortError};

/// Frames in flight at once where nothing may be lost.
const WINDOW: u32 = 128;

#[test]
fn a_hundred_thousand_frames_pass_both_ways_without_loss() {
    let Some((slab, mut pool, raw)) = pair(1500, 1) else { return };
    let mut port = open(&spec(0), &slab).unwrap();
    assert_eq!(port.caps().mtu_bytes, 1500);
    assert!(port.caps().mac.is_some());

    let (count, mut echoed, mut buffer) = (100_000_u32, 0_u32, [0; 2048]);
    let mut batch = Batch::new();
    for first in (0..count).step_by(WINDOW as usize) {
        let end = count.min(first + WINDOW);
        (first..end).for_each(|number| raw.send(&numbered(number, 60 + number as usize % 1400)));
        until("the window came back", || {
            port.rx_burst(&mut pool, &mut batch).unwrap();
            assert!(batch.iter().all(|frame| pool.meta(frame).headroom() >= HEADROOM_BYTES));
            port.tx_burst(&mut pool, &mut batch).unwrap();
            port.flush(&mut pool).unwrap();
            while let Some(len) = raw.receive(&mut buffer) {
                assert_eq!(buffer[..len], numbered(echoed, 60 + echoed as usize % 1400), "frame {echoed}");
                echoed += 1;
            }
            (echoed == end && batch.is_empty()).then_some(())
        });
    }

    let counters = port.counters();
    let both = (counters.rx_frames, counters.tx_frames);
    assert_eq!(both, (u64::from(count), u64::from(count)), "{counters:?}");
    assert_eq!(counters.rx_bytes, counters.tx_bytes);
    assert_eq!((counters.rx_kernel_drops, counters.tx_errors, counters.rx_truncated), (0, 0, 0));
    port.close(&mut pool);
    all_home(&pool);
    assert!(!ip("link show b0").contains("xdp"), "the program is gone");
}

#[test]
fn the_longest_frames_pass_and_what_cannot_be_sent_is_counted() {
    let Some((slab, mut pool, raw)) = pair(3382, 1) else { return };
    let mut port = open(&spec(0), &slab).unwrap();

    // The whole ring is full at once, and meets every colour of a chunk: a frame that reached into the next
    // chunk would spoil its neighbour.
    (0..512).for_each(|number| raw.send(&numbered(number, 3396)));
    let mut next = 0;
    receive(port.as_mut(), &mut pool, 512, |bytes| {
        assert_eq!(bytes, numbered(next, 3396));
        next += 1;
    });

    let mut batch = Batch::new();
    let mut long = pool.alloc().unwrap();
    assert!(pool.set_len(&mut long, 3401));
    let mut short = pool.alloc().unwrap();
    assert!(pool.set_len(&mut short, 13));
    let empty = pool.alloc().unwrap();
    let mut jumbo = pool.alloc_jumbo().unwrap();
    assert!(pool.fill(&mut jumbo, &numbered(2, 60)));
    let mut segments = pool.alloc().unwrap();
    assert!(pool.fill(&mut segments, &numbered(3, 60)));
    pool.meta_mut(&mut segments).gso = GsoKind::TcpV4;
    let mut good = pool.alloc().unwrap();
    assert!(pool.fill(&mut good, &numbered(4, 3396)));
    batch.extend([long, short, empty, jumbo, segments, good]);
    assert_eq!(port.tx_burst(&mut pool, &mut batch).unwrap(), 6);
    port.flush(&mut pool).unwrap();

    let mut buffer = [0; 4096];
    let len = until("the good frame arrived", || raw.receive(&mut buffer));
    assert_eq!(buffer[..len], numbered(4, 3396));
    let counters = port.counters();
    assert_eq!((counters.tx_frames, counters.tx_errors), (6, 5), "{counters:?}");
    port.close(&mut pool);
    all_home(&pool);
}

#[test]
fn an_unfinished_checksum_is_finished() {
    let Some((slab, mut pool, raw)) = pair(1500, 1) else { return };
    let mut port = open(&spec(0), &slab).unwrap();
    let mut batch = Batch::new();
    for (start, offset) in [(14, 4), (14, 5000)] {
        let mut frame = pool.alloc().unwrap();
        assert!(pool.fill(&mut frame, &numbered(0x0102_0304, 60)));
        let meta = pool.meta_mut(&mut frame);
        meta.flags.set(Flags::CSUM_PARTIAL);
        (meta.csum_start, meta.csum_offset) = (start, offset);
        batch.push(frame);
    }
    port.tx_burst(&mut pool, &mut batch).unwrap();
    port.flush(&mut pool).unwrap();

    let mut buffer = [0; 2048];
    let len = until("the frame arrived", || raw.receive(&mut buffer));
    // A finished range, pseudo-header's sum included, sums to all ones with the seed that stood there.
    let words = buffer[14..len].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let seed = u32::from(u16::from_be_bytes([4, 4]));
    let folded = (sum + seed) % 0xffff;
    assert_eq!(folded, 0, "the stored checksum is the complement of the rest and the seed");
    assert_eq!(port.counters().tx_errors, 1, "offsets outside the frame");
    port.close(&mut pool);
    all_home(&pool);
}

#[test]
fn input_wakes_a_waiting_worker() {
    let Some((slab, mut pool, raw)) = pair(1500, 1) else { return };
    let mut port = open(&spec(0), &slab).unwrap();
    port.flush(&mut pool).unwrap();
    assert!(!port.has_input());
    assert!(!readable(port.as_ref(), 0));
    raw.send(&numbered(0, 60));
    assert!(readable(port.as_ref(), PATIENCE.as_millis() as i32));
    assert!(port.has_input());
    receive(port.as_mut(), &mut pool, 1, |_| {});
    assert!(!port.has_input());
    port.close(&mut pool);
}

fn readable(port: &dyn Port, timeout_ms: i32) -> bool {
    use std::os::fd::AsRawFd;
    let fd = port.wait_fd().expect("the socket").as_raw_fd();
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid structure.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) == 1 }
}

#[test]
fn frames_that_nobody_fetched_in_time_are_counted() {
    let Some((slab, mut pool, raw)) = pair(1500, 1) else { return };
    let mut port = open(&XdpSpec { ring_frames: 64, ..spec(0) }, &slab).unwrap();
    (0..200).for_each(|number| raw.send(&numbered(number, 60)));
    let lost = until("the kernel counted", || {
        let lost = port.counters().rx_kernel_drops;
        (lost == 136).then_some(lost)
    });
    let mut numbers = 0;
    receive(port.as_mut(), &mut pool, 64, |_| numbers += 1);
    assert_eq!(numbers + lost, 200);
    port.close(&mut pool);
    all_home(&pool);
}

#[test]
fn an_interface_that_vanishes_is_gone_and_can_be_taken_up_again() {
    if !enter() {
        return;
    }
    let slab = slab();
    let mut pool = Pool::new(&slab);
    for removal in ["link del b0", "link set b0 down"] {
        veth(1500, 1);
        let mut port = open(&spec(0), &slab).unwrap();
        // Frames on their way in both directions.
        let raw = Raw::new("a0");
        (0..100).for_each(|number| raw.send(&numbered(number, 60)));
        ip(removal);
        let error = until("the port noticed", || port.flush(&mut pool).err());
        let mut batch = Batch::new();
        let again = port.rx_burst(&mut pool, &mut batch).unwrap_err();
        let sending = port.tx_burst(&mut pool, &mut batch).unwrap_err();
        assert!(port.has_input(), "the worker must wake up to close it");
        for error in [error, again, sending] {
            match removal {
                "link del b0" => assert!(matches!(error, PortError::Gone { .. }), "{error}"),
                _ => assert!(matches!(error, PortError::Down { .. }), "{error}"),
            }
        }
        port.close(&mut pool);
        all_home(&pool);
        match removal {
            "link del b0" => {
                assert!(matches!(open(&spec(0), &slab), Err(OpenError::Missing { .. })));
                veth(1500, 1);
            }
            _ => {
                assert!(matches!(open(&spec(0), &slab), Err(OpenError::Down { .. })));
                ip("link set b0 up");
            }
        }
        let mut port = open(&spec(0), &slab).unwrap();
        let raw = Raw::new("a0");
        until("frames pass again", || {
            raw.send(&numbered(7, 60));
            let mut batch = Batch::new();
            let got = port.rx_burst(&mut pool, &mut batch).unwrap();
            pool.free_batch(&mut batch);
            port.flush(&mut pool).unwrap();
            (got > 0).then_some(())
        });
        port.close(&mut pool);
        all_home(&pool);
        ip("link del b0");
    }
}

#[test]
fn a_vanished_interface_is_noticed_while_sending() {
    let Some((slab, mut pool, _)) = pair(1500, 1) else { return };
    let mut port = open(&spec(0), &slab).unwrap();
    ip("link del b0");
    let mut batch = Batch::new();
    let mut frame = pool.alloc().unwrap();
    assert!(pool.fill(&mut frame, &numbered(1, 60)));
    batch.push(frame);
    port.tx_burst(&mut pool, &mut batch).unwrap();
    assert!(matches!(port.flush(&mut pool), Err(PortError::Gone { .. })));
    port.close(&mut pool);
    all_home(&pool);
}

#[test]
fn what_cannot_be_opened_says_why() {
    let Some((slab, mut pool, _)) = pair(1500, 2) else { return };
    let refused = |spec: &XdpSpec| open(spec, &slab).map(|_| ()).unwrap_err();

    assert!(matches!(refused(&XdpSpec::new("none0")), OpenError::Missing { .. }));
    assert!(matches!(refused(&XdpSpec::new("a-name-longer-than-sixteen")), OpenError::Missing { .. }));
    assert!(matches!(refused(&spec(2)), OpenError::NoQueue { queue: 2, queues: 2, .. }));
    assert!(matches!(refused(&XdpSpec { ring_frames: 100, ..spec(0) }), OpenError::Spec { .. }));

    let port = open(&spec(0), &slab).unwrap();
    assert!(matches!(refused(&spec(0)), OpenError::Busy { .. }));
    port.close(&mut pool);

    ip("link set b0 mtu 3500");
    assert!(refused(&spec(0)).to_string().contains("mtu 3382"));
    ip("link set b0 mtu 1500");
    ip("link set a0 mtu 9000");
    assert!(refused(&spec(0)).to_string().contains("other end"));
    ip("link set a0 mtu 1500");
    ip("link set b0 down");
    assert!(matches!(refused(&spec(0)), OpenError::Down { .. }));
    ip("link set b0 up");

    let unprivileged =
        std::thread::scope(|scope| scope.spawn(|| without_rights(|| refused(&spec(0)))).join());
    let unprivileged = unprivileged.unwrap();
    assert!(matches!(unprivileged, OpenError::Permission { .. }), "{unprivileged}");
    all_home(&pool);
}

/// Runs on this thread without capabilities, which do not come back: for a thread that ends here.
fn without_rights<T>(body: impl FnOnce() -> T) -> T {
    let header = [0x2008_0522_u32, 0];
    let nothing = [0_u32; 6];
    // SAFETY: header and data have the layout of version 3 of capset(2).
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) };
    assert_eq!(result, 0);
    body()
}

#[test]
fn two_queues_share_one_program() {
    let Some((slab, mut pool, raw)) = pair(1500, 2) else { return };
    let mut first = open(&spec(0), &slab).unwrap();
    let mut second = open(&spec(1), &slab).unwrap();
    let flows = || (0..64_u16).for_each(|flow| raw.send(&udp(flow)));
    flows();
    let mut each = [0, 0];
    until("all flows arrived", || {
        for (port, count) in [&mut first, &mut second].into_iter().zip(&mut each) {
            let mut batch = Batch::new();
            *count += port.rx_burst(&mut pool, &mut batch).unwrap();
            pool.free_batch(&mut batch);
            port.flush(&mut pool).unwrap();
        }
        (each[0] + each[1] == 64).then_some(())
    });
    assert!(each[0] > 0 && each[1] > 0, "both queues have flows: {each:?}");

    first.close(&mut pool);
    flows();
    receive(second.as_mut(), &mut pool, each[1], |_| {});
    let mut first = open(&spec(0), &slab).unwrap();
    flows();
    receive(first.as_mut(), &mut pool, each[0], |_| {});
    second.close(&mut pool);
    assert!(ip("link show b0").contains("xdp"), "one queue is still open");
    first.close(&mut pool);
    assert!(!ip("link show b0").contains("xdp"), "the last one took the program away");
    all_home(&pool);
}

/// A UDP frame whose flow hash, and so the veth queue, depends on `flow`.
fn udp(flow: u16) -> Vec<u8> {
    let mut frame = numbered(0, 60);
    frame[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..36].copy_from_slice(&(flow + 1000).to_be_bytes());
    frame[36..42].copy_from_slice(&[0, 9, 0, 26, 0, 0]);
    frame
}

#[test]
fn a_driver_without_xdp_gets_the_generic_program() {
    if !enter() {
        return;
    }
    // The loopback has no native XDP, and what is sent on it comes back.
    let slab = slab();
    let mut pool = Pool::new(&slab);
    let spec = XdpSpec { ring_frames: 256, ..XdpSpec::new("lo") };
    ip("link set lo up");
    assert!(matches!(open(&spec, &slab), Err(OpenError::Spec { .. })), "its MTU of 64 KiB is too large");
    ip("link set lo mtu 1500");
    let mut port = open(&spec, &slab).unwrap();
    assert!(ip("link show lo").contains("xdpgeneric"));
    assert_eq!(port.caps().mac, None);
    let mut batch = Batch::new();
    for number in 0..20 {
        let mut frame = pool.alloc().unwrap();
        assert!(pool.fill(&mut frame, &numbered(number, 100)));
        batch.push(frame);
    }
    assert_eq!(port.tx_burst(&mut pool, &mut batch).unwrap(), 20);
    port.flush(&mut pool).unwrap();
    let mut next = 0;
    receive(port.as_mut(), &mut pool, 20, |bytes| {
        assert_eq!(bytes, numbered(next, 100));
        next += 1;
    });
    port.close(&mut pool);
    all_home(&pool);
}

#[test]
fn busy_polling_receives_too() {
    let Some((slab, mut pool, raw)) = pair(1500, 1) else { return };
    let mut port = open(&XdpSpec { busy_poll_frames: 64, ..spec(0) }, &slab).unwrap();
    for round in 0..100 {
        (0..32).for_each(|number| raw.send(&numbered(round * 32 + number, 60)));
        receive(port.as_mut(), &mut pool, 32, |_| {});
    }
    port.close(&mut pool);
    all_home(&pool);
}

/// Tells [`the_death_of_a_process_frees_the_interface`]'s child what it is.
const CHILD: &str = "PORT_TEST_XDP_CHILD";

#[test]
fn the_death_of_a_process_frees_the_interface() {
    if std::env::var_os(CHILD).is_some() {
        return hold();
    }
    let Some((slab, mut pool, _)) = pair(1500, 2) else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_death_of_a_process_frees_the_interface", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("the port is open")), "the child opened its port");
    assert!(ip("link show b0").contains("xdp"));
    // Its socket holds queue 0, its program the whole interface.
    for queue in [0, 1] {
        assert!(matches!(open(&spec(queue), &slab), Err(OpenError::Busy { .. })), "queue {queue}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    until("the kernel removed the program", || (!ip("link show b0").contains("xdp")).then_some(()));
    let port = until("the queue is free", || open(&spec(0), &slab).ok());
    port.close(&mut pool);
    all_home(&pool);
}

/// The child: holds the port until it is killed, or until its parent is gone.
fn hold() {
    let _port = open(&spec(0), &slab()).unwrap();
    println!("the port is open");
    let _ = std::io::stdin().read(&mut [0]);
}
