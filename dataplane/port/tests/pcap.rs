//! The capture-file port, and the recorder on top of a port.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use frame::{Batch, Pool, Slab, SlabConfig};
use port::memory::{self, MemorySpec};
use port::null::NullSpec;
use port::pcap::{Capture, LinkType, PcapError, PcapSpec, Writer};
use port::record::{Record, RecordSpec};
use port::{OpenError, Port, PortSpec, open};
use proptest::prelude::*;

const MAX: usize = 65_535;

fn pool(frames: u32, jumbo_frames: u32) -> Pool {
    Pool::new(&Slab::new(SlabConfig { frames, jumbo_frames, hugepages: false }).expect("a small slab"))
}

/// A file of this test's own, gone with the guard.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str) -> TempFile {
        TempFile(std::env::temp_dir().join(format!("tidegate-{}-{name}", std::process::id())))
    }

    fn with(name: &str, bytes: &[u8]) -> TempFile {
        let file = TempFile::new(name);
        std::fs::write(&file.0, bytes).expect("the temporary directory is writable");
        file
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How a file is written: a number in the file's byte order, and its magic.
#[derive(Clone, Copy, Debug)]
struct Dialect {
    big: bool,
    nanos: bool,
}

impl Dialect {
    const ALL: [Dialect; 4] = [
        Dialect { big: false, nanos: false },
        Dialect { big: false, nanos: true },
        Dialect { big: true, nanos: false },
        Dialect { big: true, nanos: true },
    ];

    fn u32(self, value: u32) -> [u8; 4] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u16(self, value: u16) -> [u8; 2] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn file(self, packets: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let magic = if self.nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let mut bytes = self.u32(magic).to_vec();
        bytes.extend([self.u16(2), self.u16(4)].concat());
        bytes.extend([0, 0, 65_535, 1].map(|number| self.u32(number)).concat());
        for (seconds, fraction, packet) in packets {
            let len = packet.len() as u32;
            bytes.extend([*seconds, *fraction, len, len].map(|number| self.u32(number)).concat());
            bytes.extend(*packet);
        }
        bytes
    }
}

fn spec(replay: Option<&TempFile>, record: Option<&TempFile>) -> PcapSpec {
    let path = |file: &TempFile| file.0.clone();
    PcapSpec {
        replay: replay.map(path),
        loops: 1,
        paced: false,
        record: record.map(path),
        record_bytes_max: 1 << 20,
    }
}

fn packets(capture: &Capture) -> Vec<Vec<u8>> {
    (0..capture.len()).filter_map(|at| capture.packet(at)).map(|packet| packet.bytes.to_vec()).collect()
}

#[test]
fn every_dialect_of_the_format_is_read() {
    for dialect in Dialect::ALL {
        let bytes = dialect.file(&[(5, 10, b"first"), (6, 30, b""), (4, 0, b"early"), (7, 9, &[9; 1000])]);
        let capture = Capture::parse(bytes, MAX).expect("a whole file");
        let unit = if dialect.nanos { 1 } else { 1000 };
        let got: Vec<(u64, usize)> = (0..capture.len())
            .filter_map(|at| capture.packet(at))
            .map(|packet| (packet.time_ns, packet.bytes.len()))
            .collect();
        let second = 1_000_000_000;
        assert_eq!(got, [(0, 5), (second + 20 * unit, 0), (0, 5), (2 * second - unit, 1000)], "{dialect:?}");
        assert!(capture.packet(4).is_none());
    }
}

#[test]
fn an_error_names_the_byte_that_is_wrong() {
    for dialect in Dialect::ALL {
        let good = dialect.file(&[(5, 10, b"first"), (6, 30, b"second")]);
        let error = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Capture::parse(bytes, 100).expect_err("damaged")
        };
        let at = |error: PcapError, byte: &str| {
            assert!(error.to_string().starts_with(&format!("byte {byte}:")), "{error}");
            error
        };
        assert!(matches!(at(error(&|b| b[0] ^= 1), "0"), PcapError::Magic { .. }));
        assert!(matches!(
            at(error(&|b| b[4..6].copy_from_slice(&dialect.u16(3))), "4"),
            PcapError::Version { major: 3 }
        ));
        let other_link = error(&|b| b[20..24].copy_from_slice(&dialect.u32(113)));
        assert!(matches!(at(other_link, "20"), PcapError::LinkType { link_type: 113 }));
        let too_long = error(&|b| b[32..36].copy_from_slice(&dialect.u32(101)));
        assert!(matches!(at(too_long, "32"), PcapError::TooLong { len: 101, max: 100, .. }));
        let cut = |len: usize| error(&|b| b.truncate(len));
        assert!(matches!(at(cut(23), "0"), PcapError::Truncated { missing: 1, .. }));
        assert!(matches!(at(cut(25), "24"), PcapError::Truncated { missing: 15, .. }));
        assert!(matches!(at(cut(44), "40"), PcapError::Truncated { missing: 1, .. }));
        assert!(matches!(at(cut(good.len() - 6), "61"), PcapError::Truncated { missing: 6, .. }));
    }
    let next_generation = [0x0a, 0x0d, 0x0d, 0x0a].repeat(10);
    let error = Capture::parse(next_generation, MAX).expect_err("another format");
    assert!(error.to_string().contains("editcap"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        whole in any::<bool>(),
    ) {
        if whole && bytes.len() >= 24 {
            bytes[..24].copy_from_slice(&Dialect::ALL[0].file(&[])[..24]);
        }
        let _ = Capture::parse(bytes, 50);
    }

    #[test]
    fn what_is_written_is_read_again(
        sent in prop::collection::vec((0..1u64 << 62, prop::collection::vec(any::<u8>(), 0..300)), 0..20)
    ) {
        let file = TempFile::new("round-trip");
        let mut writer = Writer::create(file.path(), LinkType::Ethernet, 1 << 20).expect("writable");
        for (time_ns, bytes) in &sent {
            prop_assert!(writer.write(*time_ns, bytes).expect("writable"));
        }
        writer.flush().expect("writable");
        let capture = Capture::open(file.path(), MAX).expect("what we wrote");
        let bytes: Vec<Vec<u8>> = sent.into_iter().map(|(_, bytes)| bytes).collect();
        prop_assert_eq!(packets(&capture), bytes);
    }
}

#[test]
fn a_file_is_replayed_as_often_as_asked_and_recorded_as_sent() {
    let long = vec![7; 9000];
    let input =
        TempFile::with("replay", &Dialect::ALL[1].file(&[(0, 0, b"one"), (9, 0, b"two"), (9, 0, &long)]));
    let output = TempFile::new("record");
    let mut pool = pool(64, 8);
    let replay = PcapSpec { loops: 3, ..spec(Some(&input), Some(&output)) };
    let mut port = open(&PortSpec::Pcap(replay), pool.slab()).expect("a good file");
    let mut batch = Batch::new();
    assert!(port.has_input() && port.wait_fd().is_none());
    assert_eq!(port.rx_burst(&mut pool, &mut batch).expect("in memory"), 9);
    assert!(!port.has_input());
    assert_eq!(port.rx_burst(&mut pool, &mut batch).expect("in memory"), 0);
    for (at, frame) in batch.iter().enumerate() {
        assert_eq!(pool.bytes(frame), [&b"one"[..], b"two", &long][at % 3]);
    }
    assert_eq!(port.tx_burst(&mut pool, &mut batch).expect("writable"), 9);
    port.flush(&mut pool).expect("nothing to do");
    let counters = port.counters();
    assert_eq!((counters.rx_frames, counters.rx_bytes), (9, 3 * 9006));
    assert_eq!((counters.tx_frames, counters.tx_bytes, counters.tx_errors), (9, 3 * 9006, 0));
    port.close(&mut pool);
    assert_eq!(pool.available(), 64);
    let recorded = Capture::open(output.path(), MAX).expect("a whole file");
    assert_eq!(packets(&recorded), vec![vec![b"one".to_vec(), b"two".to_vec(), long]; 3].concat());
}

#[test]
fn a_replay_without_end_goes_on_and_waits_for_frames() {
    let input = TempFile::with("endless", &Dialect::ALL[0].file(&[(0, 0, b"one")]));
    let mut pool = pool(40, 0);
    let endless = PcapSpec { loops: 0, ..spec(Some(&input), None) };
    let mut port = open(&PortSpec::Pcap(endless), pool.slab()).expect("a good file");
    let (mut first, mut second) = (Batch::new(), Batch::new());
    assert_eq!(port.rx_burst(&mut pool, &mut first).expect("in memory"), 32);
    assert_eq!(port.rx_burst(&mut pool, &mut second).expect("in memory"), 8);
    assert_eq!(port.counters().rx_no_frame, 1);
    pool.free_batch(&mut first);
    assert_eq!(port.rx_burst(&mut pool, &mut first).expect("in memory"), 32);
    assert_eq!(port.tx_burst(&mut pool, &mut first).expect("no file"), 32);
    assert_eq!(port.tx_burst(&mut pool, &mut second).expect("no file"), 8);
    port.close(&mut pool);
}

#[test]
fn a_paced_replay_keeps_the_distances_of_the_file() {
    let input =
        TempFile::with("paced", &Dialect::ALL[1].file(&[(0, 0, b"a"), (0, 0, b"b"), (0, 50_000_000, b"c")]));
    let mut pool = pool(64, 0);
    let paced = PcapSpec { paced: true, ..spec(Some(&input), None) };
    let mut port = open(&PortSpec::Pcap(paced), pool.slab()).expect("a good file");
    let start = Instant::now();
    let mut batch = Batch::new();
    assert_eq!(port.rx_burst(&mut pool, &mut batch).expect("in memory"), 2);
    while batch.len() < 3 {
        assert!(port.has_input(), "the worker must stay awake for the rest");
        port.rx_burst(&mut pool, &mut batch).expect("in memory");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert!(start.elapsed() >= Duration::from_millis(50));
    pool.free_batch(&mut batch);
}

#[test]
fn a_recording_ends_at_its_limit_after_a_whole_packet() {
    let output = TempFile::new("limit");
    let mut pool = pool(64, 0);
    // Room for the header and two packets of 10 bytes, not for a third; nor for a shorter one after it.
    let limited = PcapSpec { record_bytes_max: 24 + 3 * 26 - 1, ..spec(None, Some(&output)) };
    let mut port = open(&PortSpec::Pcap(limited), pool.slab()).expect("writable");
    let mut batch = Batch::new();
    for len in [10, 10, 10, 1] {
        let mut frame = pool.alloc().expect("a frame");
        assert!(pool.fill(&mut frame, &vec![len; len as usize]));
        batch.push(frame);
    }
    assert_eq!(port.tx_burst(&mut pool, &mut batch).expect("no error"), 4);
    assert_eq!((port.counters().tx_frames, port.counters().tx_errors), (4, 2));
    assert!(!port.has_input());
    assert_eq!(port.rx_burst(&mut pool, &mut batch).expect("nothing to replay"), 0);
    port.close(&mut pool);
    assert_eq!(packets(&Capture::open(output.path(), MAX).expect("whole")), [[10; 10], [10; 10]]);
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let pool = pool(1, 0);
    let missing = TempFile::new("missing");
    let damaged = TempFile::with("damaged", b"no capture file, this");
    for (file, part) in [(&missing, "No such file"), (&damaged, "byte 0")] {
        let error = open(&PortSpec::Pcap(spec(Some(file), None)), pool.slab()).err().expect("refused");
        assert!(matches!(&error, OpenError::Pcap { path, .. } if path == file.path()), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let nowhere = TempFile(PathBuf::from("/nonexistent/record.pcap"));
    assert!(open(&PortSpec::Pcap(spec(None, Some(&nowhere))), pool.slab()).is_err());
    let record = RecordSpec { file: nowhere.0.clone(), bytes_max: 100 };
    let on_top = PortSpec::Record(record, Box::new(PortSpec::Null(NullSpec::default())));
    assert!(matches!(open(&on_top, pool.slab()), Err(OpenError::Pcap { .. })));
}

#[test]
fn a_recorder_writes_what_was_received_and_what_was_taken() {
    let output = TempFile::new("recorder");
    let mut pool = pool(256, 0);
    let (inner, other) = memory::pair(MemorySpec { capacity_frames: 4, mtu_bytes: 1500, offloads: true })
        .expect("an eventfd each");
    let record = RecordSpec { file: output.0.clone(), bytes_max: 1 << 20 };
    let mut port: Box<dyn Port> = Box::new(Record::open(Box::new(inner), &record).expect("writable"));
    let mut other: Box<dyn Port> = Box::new(other);
    let batch_of = |pool: &mut Pool, tag: u8| -> Batch {
        (0..6)
            .map(|number| {
                let mut frame = pool.alloc().expect("a frame");
                assert!(pool.fill(&mut frame, &[tag, number]));
                frame
            })
            .collect()
    };
    let mut there = batch_of(&mut pool, b't');
    assert_eq!(other.tx_burst(&mut pool, &mut there).expect("open"), 4);
    let mut got = Batch::new();
    assert_eq!(port.rx_burst(&mut pool, &mut got).expect("open"), 4);
    assert_eq!(port.rx_burst(&mut pool, &mut got).expect("open"), 0);
    let mut back = batch_of(&mut pool, b'b');
    assert_eq!(port.tx_burst(&mut pool, &mut back).expect("open"), 4);
    assert_eq!(port.tx_burst(&mut pool, &mut back).expect("open"), 0);
    assert_eq!((port.counters().rx_frames, port.counters().tx_frames), (4, 4));
    assert_eq!(port.caps(), other.caps());
    assert!(port.wait_fd().is_some() && !port.has_input());
    for batch in [&mut there, &mut got, &mut back] {
        pool.free_batch(batch);
    }
    port.close(&mut pool);
    other.close(&mut pool);
    assert_eq!(pool.available(), 256);
    let expected: Vec<Vec<u8>> =
        [b't', b'b'].iter().flat_map(|&tag| (0..4).map(move |n| vec![tag, n])).collect();
    assert_eq!(packets(&Capture::open(output.path(), MAX).expect("whole")), expected);
}

#[test]
fn a_recorder_at_its_limit_lets_traffic_go_on() {
    let output = TempFile::new("recorder-limit");
    let mut pool = pool(64, 0);
    let source = PortSpec::Null(NullSpec { templates: vec![vec![1; 60]], copy_bytes: 60 });
    let record = RecordSpec { file: output.0.clone(), bytes_max: 24 + 76 * 40 };
    let mut port = open(&PortSpec::Record(record, Box::new(source)), pool.slab()).expect("writable");
    let mut batch = Batch::new();
    for _ in 0..3 {
        assert_eq!(port.rx_burst(&mut pool, &mut batch).expect("never fails"), 32);
        assert_eq!(port.tx_burst(&mut pool, &mut batch).expect("never fails"), 32);
    }
    port.close(&mut pool);
    assert_eq!(Capture::open(output.path(), MAX).expect("whole").len(), 40);
}
