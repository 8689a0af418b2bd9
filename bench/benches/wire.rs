//! Cost of reading headers and of checksums, per packet: what `wire` takes out of a packet's budget.
//!
//! Frames are parsed in a ring of 32, as a burst would be, all of them in the first-level cache.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wire::{EtherType, Mac, checksum, ethernet, ipv4, ipv6, parse, protocol, tcp, udp};

const BURST: usize = 32;
const ETHERNET: ethernet::Header = ethernet::Header {
    dst: Mac([2, 0, 0, 0, 0, 1]),
    src: Mac([2, 0, 0, 0, 0, 2]),
    tag: None,
    ethertype: EtherType::IPV4,
};

/// A name and what makes its frames.
type Shape = (&'static str, fn(u16) -> Vec<u8>);

fn parsing(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(BURST as u64));
    let frames: [Shape; 5] = [
        ("ipv4_tcp_64", |port| tcp_v4(64, port)),
        ("ipv4_tcp_1400", |port| tcp_v4(1400, port)),
        ("ipv4_udp_64", |port| udp_v4(64, port)),
        ("ipv6_tcp_1400", |port| tcp_v6(1400, port)),
        ("vlan_ipv4_tcp_1400", |port| tagged(&tcp_v4(1396, port))),
    ];
    for (name, frame) in frames {
        let burst: Vec<Vec<u8>> = (0..BURST as u16).map(frame).collect();
        group.bench_function(name, |b| {
            b.iter(|| {
                for frame in &burst {
                    let parsed = parse(black_box(frame));
                    let _ = black_box(&parsed);
                }
            });
        });
    }
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len_bytes in [64, 1400, 65_000] {
        let bytes: Vec<u8> = (0..len_bytes).map(|i| i as u8).collect();
        group.throughput(Throughput::Bytes(len_bytes as u64));
        group.bench_function(len_bytes.to_string(), |b| b.iter(|| checksum::sum(black_box(&bytes))));
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("update", |b| {
        b.iter(|| checksum::update(black_box(0x1234), black_box(0x0001), black_box(0x0002)));
    });
    group.finish();
}

fn tcp_v4(frame_bytes: usize, port: u16) -> Vec<u8> {
    let frame = ip_v4(frame_bytes, protocol::TCP);
    with_tcp(frame, ethernet::HEADER_BYTES + ipv4::HEADER_BYTES, port)
}

fn tcp_v6(frame_bytes: usize, port: u16) -> Vec<u8> {
    let mut frame = vec![0; frame_bytes];
    let at = emitted(ethernet::Header { ethertype: EtherType::IPV6, ..ETHERNET }.emit(&mut frame));
    let ip = ipv6::Header {
        dscp: 0,
        ecn: 0,
        flow_label: 0,
        next_header: protocol::TCP,
        hop_limit: 64,
        src: Ipv6Addr::LOCALHOST,
        dst: Ipv6Addr::LOCALHOST,
        payload_bytes: frame_bytes - at - ipv6::HEADER_BYTES,
    };
    let at = at + emitted(ip.emit(&mut frame[at..]));
    with_tcp(frame, at, port)
}

fn with_tcp(mut frame: Vec<u8>, at: usize, port: u16) -> Vec<u8> {
    let header = tcp::Header {
        src_port: port,
        dst_port: 4420,
        sequence: 1,
        acknowledgement: 1,
        flags: tcp::Flags::ACK,
        window: 500,
        options: &[],
    };
    emitted(header.emit(&mut frame[at..]));
    frame
}

fn udp_v4(frame_bytes: usize, port: u16) -> Vec<u8> {
    let mut frame = ip_v4(frame_bytes, protocol::UDP);
    let at = ethernet::HEADER_BYTES + ipv4::HEADER_BYTES;
    let payload_bytes = frame_bytes - at - udp::HEADER_BYTES;
    emitted(udp::Header { src_port: port, dst_port: 4789, payload_bytes }.emit(&mut frame[at..]));
    frame
}

fn ip_v4(frame_bytes: usize, protocol: u8) -> Vec<u8> {
    let mut frame = vec![0; frame_bytes];
    let at = emitted(ETHERNET.emit(&mut frame));
    let header = ipv4::Header {
        dscp: 0,
        ecn: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol,
        src: Ipv4Addr::new(10, 0, 0, 1),
        dst: Ipv4Addr::new(10, 0, 0, 2),
        options: &[],
        payload_bytes: frame_bytes - at - ipv4::HEADER_BYTES,
    };
    emitted(header.emit(&mut frame[at..]));
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &[0x81, 0x00, 0x00, 0x07], rest].concat()
}

/// The buffers above have room for what is written to them.
fn emitted(result: Result<usize, wire::EmitError>) -> usize {
    result.expect("the frame has room for its headers")
}

criterion_group!(benches, parsing, checksums);
criterion_main!(benches);
