//! The null port.
#![allow(missing_docs)]

use frame::{Batch, FRAME_BYTES_MAX, Pool, Slab, SlabConfig};
use port::null::{NullPort, NullSpec};
use port::{OpenError, Port, PortSpec, open};

fn pool(frames: u32) -> Pool {
    Pool::new(&Slab::new(SlabConfig { frames, jumbo_frames: 0, hugepages: false }).expect("a small slab"))
}

#[test]
fn templates_come_round_robin_with_their_bytes_and_lengths() {
    // Every way to copy: less than a line, a line, two lines, more than that.
    for lens in [vec![60], vec![64, 64], vec![60, 64, 128, 129, 1514], vec![14, 127, 3400]] {
        let templates: Vec<Vec<u8>> =
            lens.iter().map(|&len| (0..len).map(|at| (at * 7 + len) as u8).collect()).collect();
        let spec = NullSpec { templates: templates.clone(), copy_bytes: FRAME_BYTES_MAX };
        let mut pool = pool(64);
        let mut port = open(&PortSpec::Null(spec), pool.slab()).expect("always opens");
        let (mut batch, mut next, mut bytes) = (Batch::new(), 0, 0);
        for _ in 0..5 {
            assert_eq!(port.rx_burst(&mut pool, &mut batch).expect("never fails"), 32);
            for frame in &batch {
                assert_eq!(pool.bytes(frame), templates[next % lens.len()]);
                bytes += lens[next % lens.len()] as u64;
                next += 1;
            }
            assert_eq!(port.tx_burst(&mut pool, &mut batch).expect("never fails"), 32);
            assert!(batch.is_empty());
        }
        let counters = port.counters();
        assert_eq!((counters.rx_frames, counters.rx_bytes), (160, bytes));
        assert_eq!((counters.tx_frames, counters.tx_bytes), (160, bytes));
        port.close(&mut pool);
        assert_eq!(pool.available(), 64);
    }
}

#[test]
fn only_as_much_is_copied_as_is_asked_for() {
    for (copy_bytes, len) in [(0, 64), (42, 200), (64, 200), (100, 200), (150, 200), (42, 50)] {
        let spec = NullSpec { templates: vec![vec![0x55; len]], copy_bytes };
        let mut pool = pool(1);
        let mut blank = pool.alloc().expect("a frame");
        assert!(pool.fill(&mut blank, &[0xaa; 300]));
        pool.free(blank);
        let mut port = NullPort::open(&spec).expect("always opens");
        let mut batch = Batch::new();
        assert_eq!(port.rx_burst(&mut pool, &mut batch).expect("never fails"), 1);
        let bytes = pool.bytes(&batch[0]);
        assert_eq!(bytes.len(), len);
        assert!(bytes[..copy_bytes.min(len)].iter().all(|&byte| byte == 0x55));
        // What is behind is padding of the last line written, or untouched.
        assert!(bytes[copy_bytes.min(len)..].iter().all(|&byte| byte == 0xaa || byte == 0));
        pool.free_batch(&mut batch);
    }
}

#[test]
fn a_port_without_templates_is_a_sink_and_a_slab_without_frames_is_counted() {
    let mut pool = pool(40);
    let mut sink = NullPort::open(&NullSpec::default()).expect("always opens");
    let mut batch = Batch::new();
    assert_eq!(sink.rx_burst(&mut pool, &mut batch).expect("never fails"), 0);
    assert!(!sink.has_input() && sink.wait_fd().is_none());

    let spec = NullSpec { templates: vec![vec![0; 60]], copy_bytes: 0 };
    let mut source = NullPort::open(&spec).expect("always opens");
    assert!(source.has_input());
    let mut held = Batch::new();
    assert_eq!(source.rx_burst(&mut pool, &mut held).expect("never fails"), 32);
    assert_eq!(source.rx_burst(&mut pool, &mut batch).expect("never fails"), 8);
    assert_eq!(source.counters().rx_no_frame, 1);
    assert_eq!(sink.tx_burst(&mut pool, &mut held).expect("never fails"), 32);
    assert_eq!(sink.tx_burst(&mut pool, &mut batch).expect("never fails"), 8);
    sink.flush(&mut pool).expect("never fails");
    assert_eq!(pool.available(), 40);
}

#[test]
fn a_template_that_no_frame_holds_is_refused() {
    let spec = NullSpec { templates: vec![vec![0; FRAME_BYTES_MAX + 1]], copy_bytes: 0 };
    let error = NullPort::open(&spec).expect_err("too long");
    assert!(matches!(&error, OpenError::Spec { what, .. } if what.contains("3401")), "{error}");
}
