//! Both ends over one anonymous mapping: what one side publishes is what the other sees.

use super::*;

const OFFSETS: libc::xdp_ring_offset =
    libc::xdp_ring_offset { producer: 0, consumer: 64, desc: 192, flags: 128 };

/// Two views of one ring of four entries: the file descriptor of a memory file stands for the socket.
fn pair() -> (Producer<u64>, Consumer<u64>) {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"ring".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor was just made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), 4096) }, 0);
    let ring = || Ring::map(fd.as_fd(), 0, OFFSETS, 4).unwrap();
    (Producer::new(ring()), Consumer::new(ring()))
}

#[test]
fn entries_arrive_in_order_after_submit() {
    let (mut producer, mut consumer) = pair();
    assert!(producer.push(7) && producer.push(8));
    assert!(consumer.is_empty() && consumer.pop().is_none(), "not yet published");
    producer.submit();
    assert!(!consumer.is_empty());
    assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(7), Some(8), None));
}

#[test]
fn a_full_ring_takes_no_more_until_places_are_released() {
    let (mut producer, mut consumer) = pair();
    (0..4).for_each(|entry| assert!(producer.push(entry)));
    assert!(!producer.push(4) && producer.room(1) == 0);
    producer.submit();
    assert_eq!(consumer.pop(), Some(0));
    assert!(!producer.push(4), "popped, but not released");
    consumer.release();
    assert!(producer.push(4) && !producer.is_drained());
}

#[test]
fn indices_run_freely_over_many_rounds_and_over_the_end_of_32_bits() {
    let (mut producer, mut consumer) = pair();
    let start = u32::MAX - 5;
    (producer.next, producer.consumer_cached) = (start, start);
    (consumer.next, consumer.producer_cached) = (start, start);
    producer.submit();
    consumer.release();
    for round in 0..100_u64 {
        for entry in 0..3 {
            assert!(producer.push(round * 3 + entry));
        }
        producer.submit();
        for entry in 0..3 {
            assert_eq!(consumer.pop(), Some(round * 3 + entry));
        }
        consumer.release();
        assert!(producer.is_drained() && consumer.is_empty());
    }
}

#[test]
fn the_wakeup_flag_is_the_kernels() {
    let (producer, consumer) = pair();
    assert!(!producer.needs_wakeup());
    consumer.ring.flags().store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
    assert!(producer.needs_wakeup());
}

#[test]
fn a_descriptor_that_cannot_be_mapped_is_an_error() {
    use std::os::fd::AsFd;
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(Ring::<u64>::map(reader.as_fd(), 0, OFFSETS, 4).is_err());
}
