//! The wait point: time-outs, readiness, wake-ups between threads.

use super::*;
use crate::clock::monotonic_ns;
use rustix::fd::AsFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::sync::atomic::{AtomicU64, Ordering};

/// Ends every wait of these tests that should have been ended by an event.
const BOUND_NS: u64 = 20_000_000_000;

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap()
}

#[test]
fn readable_descriptors_are_named_by_their_tokens() {
    let mut point = WaitPoint::new().unwrap();
    let (near, far) = pair();
    let (quiet, _quiet_far) = pair();
    point.add(near.as_fd(), 7).unwrap();
    point.add(quiet.as_fd(), 8).unwrap();
    assert_eq!(point.poll().unwrap(), WaitEnd::TimedOut);
    assert!(point.ready().is_empty());

    write(&far, b"x").unwrap();
    assert_eq!(point.block(Some(BOUND_NS), || false).unwrap(), WaitEnd::Woken);
    assert_eq!(point.ready(), [7]);
    // Level-triggered: unread input is told again.
    assert_eq!(point.poll().unwrap(), WaitEnd::Woken);
    assert_eq!(point.ready(), [7]);

    point.remove(near.as_fd()).unwrap();
    assert_eq!(point.poll().unwrap(), WaitEnd::TimedOut);
    assert!(matches!(point.remove(near.as_fd()), Err(WaitError::Remove { .. })));
}

#[test]
fn more_ready_inputs_than_one_look_takes_are_all_found() {
    let mut point = WaitPoint::new().unwrap();
    let pairs: Vec<_> = (0..EVENTS + 20).map(|_| pair()).collect();
    for (token, (near, far)) in pairs.iter().enumerate() {
        point.add(near.as_fd(), token as u32).unwrap();
        write(far, b"x").unwrap();
    }
    let mut seen = vec![false; pairs.len()];
    for _ in 0..4 {
        point.poll().unwrap();
        for &token in point.ready() {
            seen[token as usize] = true;
            let _ = read(&pairs[token as usize].0, &mut [0; 8]);
        }
    }
    assert!(seen.iter().all(|&seen| seen));
}

#[test]
fn a_waker_ends_a_wait_once() {
    let mut point = WaitPoint::new().unwrap();
    let waker = point.waker();
    assert!(!waker.wake(), "awake: nothing to ring");
    assert_eq!(point.poll().unwrap(), WaitEnd::TimedOut);
    // The wake-up arrives between the second look and the system call.
    let end = point.block(Some(BOUND_NS), || {
        assert!(waker.wake());
        assert!(!waker.clone().wake(), "one ring is enough");
        false
    });
    assert_eq!(end.unwrap(), WaitEnd::Woken);
    assert!(point.ready().is_empty(), "the command eventfd is not an input");
    assert_eq!(point.poll().unwrap(), WaitEnd::TimedOut, "the eventfd was drained");
}

#[test]
fn work_found_at_the_second_look_is_not_slept_on() {
    let mut point = WaitPoint::new().unwrap();
    let waker = point.waker();
    assert_eq!(point.block(None, || true).unwrap(), WaitEnd::FoundWork);
    assert!(!waker.wake(), "awake again");
}

#[test]
fn time_outs_are_in_nanoseconds() {
    assert!(WaitPoint::prepare_thread());
    let mut point = WaitPoint::new().unwrap();
    // The best of many: a machine that is busy elsewhere may delay any one of them.
    let best = (0..50)
        .map(|_| {
            let start = monotonic_ns();
            assert_eq!(point.block(Some(100_000), || false).unwrap(), WaitEnd::TimedOut);
            monotonic_ns() - start
        })
        .inspect(|slept| assert!(*slept >= 100_000, "woke early: {slept}"))
        .min();
    assert!(best < Some(900_000), "a time-out of 100 us took {best:?} ns at best");
    assert_eq!(timespec(u64::MAX).tv_nsec, 709_551_615);
}

#[test]
fn what_cannot_be_waited_for_is_refused() {
    let mut point = WaitPoint::new().unwrap();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(matches!(point.add(file.as_fd(), 1), Err(WaitError::Add { token: 1, .. })));
    let (near, _far) = pair();
    assert!(matches!(point.add(near.as_fd(), TOKEN_MAX), Err(WaitError::Token { token: TOKEN_MAX })));
    let text = point.add(file.as_fd(), 1).unwrap_err().to_string();
    assert!(text.contains("cannot be polled"), "{text}");
}

/// Whether a thread of this process sleeps in the kernel (proc_pid_stat(5)).
fn sleeps(thread: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", thread.as_raw_nonzero())).unwrap();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
}

/// Items from two threads, at random moments and now and then once the worker is asleep, to a worker that
/// sleeps without time-out whenever it sees none: a lost wake-up would hang it. F8's A4;
/// `TIDEGATE_WAKE_ITEMS=1000000` for the long run.
#[test]
fn single_items_at_random_moments_all_arrive() {
    let items: u64 = std::env::var("TIDEGATE_WAKE_ITEMS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let queues = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let worker = rustix::thread::gettid();
    let mut point = WaitPoint::new().unwrap();
    let producers: Vec<_> = (0..2)
        .map(|at| {
            let (queues, waker) = (Arc::clone(&queues), point.waker());
            std::thread::spawn(move || {
                let mut random = 0x9e37_79b9_7f4a_7c15_u64 + at as u64;
                for _ in 0..items / 2 {
                    if random.is_multiple_of(64) {
                        // It goes to sleep at last, since this item is yet to come.
                        while !sleeps(worker) {
                            std::thread::yield_now();
                        }
                    }
                    queues[at].fetch_add(1, Ordering::Release);
                    waker.wake();
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    for _ in 0..random % 2_000 {
                        std::hint::spin_loop();
                    }
                }
            })
        })
        .collect();
    let seen = || queues.iter().map(|queue| queue.load(Ordering::Acquire)).sum::<u64>();
    let (mut taken, mut woken) = (0, 0_u64);
    while taken < items / 2 * 2 {
        let now = seen();
        if now > taken {
            taken = now;
            continue;
        }
        let end = point.block(Some(BOUND_NS), || seen() > taken).unwrap();
        assert_ne!(end, WaitEnd::TimedOut, "lost wake-up after {taken} items");
        woken += u64::from(end == WaitEnd::Woken);
    }
    assert!(woken > 0);
    for producer in producers {
        producer.join().unwrap();
    }
}
