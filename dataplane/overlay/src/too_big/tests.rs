//! Who is told what, and who is not.

use super::*;
use crate::segment::sample::{Sample, load, pattern, pool};
use proptest::prelude::*;
use wire::checksum::sum;

fn long(ipv6: bool) -> Sample {
    Sample { ipv6, payload: pattern(3000, 1), ..Sample::default() }
}

fn answer(bytes: &[u8], mtu_bytes: u16) -> Result<Vec<u8>, Silence> {
    let mut pool = pool(64, 64);
    let frame = load(&mut pool, bytes);
    let message = TooBig::new().process(0, &mut pool, &frame, mtu_bytes);
    pool.free(frame);
    message.map(|message| {
        let bytes = pool.bytes(&message).to_vec();
        pool.free(message);
        bytes
    })
}

#[test]
fn ipv4_is_told_the_mtu_and_shown_its_packet() {
    for vlan in [None, Some(9)] {
        let packet = Sample { vlan, ..long(false) }.bytes();
        let l3 = if vlan.is_some() { 18 } else { 14 };
        let message = answer(&packet, 1450).expect("an answer");
        assert_eq!(message.len() - l3, MESSAGE_V4_BYTES_MAX);
        assert_eq!((&message[..6], &message[6..12]), (&packet[6..12], &packet[..6]));
        assert_eq!(message[12..l3], packet[12..l3]);
        let ip = ipv4::View::parse(&message[l3..]).expect("IPv4");
        assert!(ip.checksum_ok() && ip.dont_fragment());
        assert_eq!((ip.src(), ip.dst()), (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1)));
        let icmp = icmp4::View::parse(ip.payload()).expect("ICMP");
        assert!(icmp.checksum_ok());
        assert_eq!(icmp.message(), icmp4::Message::FragmentationNeeded { mtu_bytes: 1450 });
        assert_eq!(icmp.payload(), &packet[l3..l3 + MESSAGE_V4_BYTES_MAX - 28]);
    }
}

#[test]
fn ipv6_is_told_the_mtu_and_shown_its_packet() {
    let packet = long(true).bytes();
    let message = answer(&packet, 1430).expect("an answer");
    assert_eq!(message.len() - 14, MESSAGE_V6_BYTES_MAX);
    let ip = ipv6::View::parse(&message[14..]).expect("IPv6");
    let before = ipv6::View::parse(&packet[14..]).expect("IPv6");
    assert_eq!((ip.src(), ip.dst()), (before.dst(), before.src()));
    let icmp = icmp6::View::parse(ip.payload()).expect("ICMPv6");
    assert!(icmp.checksum_ok(ip.src(), ip.dst()));
    assert_eq!(icmp.message(), icmp6::Message::PacketTooBig { mtu_bytes: 1430 });
    assert_eq!(icmp.payload(), &packet[14..14 + MESSAGE_V6_BYTES_MAX - 48]);
}

#[test]
fn the_message_goes_back_where_the_packet_came_from() {
    let mut pool = pool(64, 64);
    let mut frame = long(false).super_segment(&mut pool, 1400);
    let meta = pool.meta_mut(&mut frame);
    (meta.ingress_port, meta.egress_port, meta.attachment, meta.volume) = (3, 4, 5, 6);
    let message = TooBig::new().process(0, &mut pool, &frame, 1300).expect("an answer");
    let meta = pool.meta(&message);
    assert_eq!((meta.egress_port, meta.attachment, meta.volume), (3, 5, Meta::NO_VOLUME));
    assert!(meta.flags.has(Flags::PARSED) && !meta.flags.has(Flags::CSUM_PARTIAL));
    assert_eq!((meta.l3, meta.l4, meta.proto, meta.gso), (14, 34, protocol::ICMP, frame::GsoKind::None));
    pool.free(message);
    pool.free(frame);
}

/// A long IPv4 packet, changed, with its header checksum put right.
fn v4(change: impl Fn(&mut [u8])) -> Result<Vec<u8>, Silence> {
    let mut packet = long(false).bytes();
    change(&mut packet);
    packet[24..26].fill(0);
    let check = !sum(&packet[14..34]);
    packet[24..26].copy_from_slice(&check.to_be_bytes());
    answer(&packet, 1450)
}

fn v6(change: impl Fn(&mut [u8])) -> Result<Vec<u8>, Silence> {
    let mut packet = long(true).bytes();
    change(&mut packet);
    answer(&packet, 1430)
}

#[test]
fn nobody_is_told_about_what_must_not_be_answered() {
    let icmp = |kind| {
        move |packet: &mut [u8]| {
            packet[23] = protocol::ICMP;
            packet[34] = kind;
        }
    };
    assert_eq!(v4(|packet| packet[20] = 0), Err(Silence::MayFragment));
    assert_eq!(v4(|packet| packet[20] |= 0x20), Err(Silence::Fragment));
    assert_eq!(v4(|packet| packet[21] = 9), Err(Silence::Fragment));
    assert_eq!(v4(|packet| packet[0] |= 1), Err(Silence::NotUnicast));
    for first in [0, 127, 224, 255] {
        assert_eq!(v4(|packet| packet[26] = first), Err(Silence::NotUnicast));
        assert_eq!(v4(|packet| packet[30] = first), Err(Silence::NotUnicast));
    }
    for kind in [3, 4, 5, 11, 12] {
        assert_eq!(v4(icmp(kind)), Err(Silence::IcmpError));
    }
    assert!(v4(icmp(8)).is_ok(), "a ping may be answered");

    let icmp6 = |kind| {
        move |packet: &mut [u8]| {
            packet[20] = protocol::ICMPV6;
            packet[54] = kind;
        }
    };
    for kind in [1, 2, 4, 127, REDIRECT_V6] {
        assert_eq!(v6(icmp6(kind)), Err(Silence::IcmpError));
    }
    assert!(v6(icmp6(128)).is_ok());
    assert_eq!(v6(|packet| packet[38] = 0xff), Err(Silence::NotUnicast));
    assert_eq!(v6(|packet| packet[22..38].fill(0)), Err(Silence::NotUnicast));
    assert_eq!(v6(|packet| packet[0] |= 1), Err(Silence::NotUnicast));
    let fragment = |proto| {
        move |packet: &mut [u8]| {
            packet[20] = protocol::FRAGMENT;
            packet[54..62].copy_from_slice(&[proto, 0, 0x10, 0, 0, 0, 0, 1]);
        }
    };
    assert_eq!(v6(fragment(protocol::ICMPV6)), Err(Silence::Fragment));
    assert!(v6(fragment(protocol::UDP)).is_ok(), "RFC 4443 does not except fragments");
}

#[test]
fn an_mtu_below_the_minimum_is_not_announced() {
    assert_eq!(answer(&long(false).bytes(), 67), Err(Silence::BelowMinimum { mtu_bytes: 67 }));
    assert!(answer(&long(false).bytes(), 68).is_ok());
    assert_eq!(answer(&long(true).bytes(), 1279), Err(Silence::BelowMinimum { mtu_bytes: 1279 }));
    assert!(answer(&long(true).bytes(), 1280).is_ok());
}

#[test]
fn what_is_not_ip_is_not_answered() {
    let mut pool = pool(64, 64);
    let mut frame = long(false).frame(&mut pool);
    pool.meta_mut(&mut frame).flags = Flags::default();
    assert_eq!(TooBig::new().process(0, &mut pool, &frame, 1400).err(), Some(Silence::NotIp));
    pool.free(frame);
    let mut arp = vec![2; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(answer(&arp, 1400), Err(Silence::NotIp));
}

#[test]
fn a_flood_is_held_to_the_rate_and_takes_no_frames() {
    let mut pool = pool(64, 64);
    let mut frame = long(false).frame(&mut pool);
    let mut other = long(false).frame(&mut pool);
    pool.meta_mut(&mut frame).attachment = 1;
    pool.meta_mut(&mut other).attachment = 2;
    let (mut too_big, mut told) = (TooBig::new(), 0);
    let start_ns = 5_000_000_000;
    for packet in 0..100_000 {
        match too_big.process(start_ns + packet * 10_000, &mut pool, &frame, 1400) {
            Ok(message) => {
                told += 1;
                pool.free(message);
            }
            Err(silence) => assert_eq!(silence, Silence::RateLimited),
        }
    }
    assert!((BURST + 99..=BURST + 100).contains(&told), "{told} in one second");
    let message = too_big.process(start_ns, &mut pool, &other, 1400).expect("another attachment");
    pool.free(message);
    pool.free(frame);
    pool.free(other);
}

#[test]
fn a_dry_pool_is_silent() {
    let mut pool = pool(1, 64);
    let frame = long(false).frame(&mut pool);
    assert_eq!(TooBig::new().process(0, &mut pool, &frame, 1400).err(), Some(Silence::NoFrame));
    pool.free(frame);
}

proptest! {
    #[test]
    fn no_bytes_panic(
        ipv6: bool, len in 0usize..200, changes in prop::collection::vec((0usize..90, any::<u8>()), 0..6),
        offsets in any::<Option<[u16; 3]>>(), mtu_bytes: u16,
    ) {
        let mut pool = pool(64, 64);
        let mut frame = Sample { ipv6, payload: pattern(len, 2), ..Sample::default() }.frame(&mut pool);
        let bytes = pool.bytes_mut(&mut frame);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Some([l3, l4, payload]) = offsets {
            let meta = pool.meta_mut(&mut frame);
            (meta.l3, meta.l4, meta.payload) = (l3 % 300, l4 % 300, payload % 300);
        }
        if let Ok(message) = TooBig::new().process(0, &mut pool, &frame, mtu_bytes) {
            prop_assert!(pool.meta(&message).len() <= 1300 + 300);
            pool.free(message);
        }
        pool.free(frame);
    }
}
