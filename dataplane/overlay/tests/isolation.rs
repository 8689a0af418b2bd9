//! Two tenants with the same addresses: whatever is thrown at a pair of gateways, nothing crosses.

mod common;

use common::*;
use overlay::*;
use wire::{Mac, protocol};

/// Random choices from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) as u32 % end
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u32) as usize]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }
}

/// A frame that is mostly plausible: addresses of either tenant, sometimes of nobody, sometimes damaged.
fn random_frame(random: &mut Random, tenant: u8) -> Vec<u8> {
    let six = random.chance(30);
    let ip = if six { v6 } else { v4 };
    let hosts = [1, 2, 2, 1, 3, 255];
    let any_mac = |random: &mut Random| {
        let station = mac(1 + random.below(3) as u8, random.pick(&hosts));
        if random.chance(5) { Mac::BROADCAST } else { station }
    };
    let mut packet = Packet {
        proto: random.pick(&[protocol::UDP, protocol::TCP, protocol::ICMP, protocol::ICMPV6]),
        src_port: random.below(4) as u16,
        dst_port: random.below(4) as u16,
        ecn: random.below(4) as u8,
        ..Packet::new(tenant, 1, 2, six)
    };
    if random.chance(30) {
        (packet.src_mac, packet.src) = (any_mac(random), ip(random.pick(&hosts)));
    }
    if random.chance(30) {
        (packet.dst_mac, packet.dst) = (any_mac(random), ip(random.pick(&hosts)));
    }
    let mut bytes = if random.chance(10) && !six {
        request(packet.src_mac, packet.src, packet.dst)
    } else {
        packet.bytes(&[0xa5; 30])
    };
    if random.chance(10) {
        let at = random.below(bytes.len() as u32) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    if random.chance(5) {
        bytes.truncate(random.below(bytes.len() as u32) as usize);
    }
    bytes
}

/// Which tenant a judged frame would reach.
fn tenant_of(verdict: Verdict, meta: &frame::Meta) -> Option<u32> {
    match verdict {
        Verdict::Forward => Some(meta.vni / 100),
        Verdict::Deliver => Some(meta.egress_port.into()),
        _ => None,
    }
}

#[test]
fn no_frame_crosses_from_tenant_to_tenant() {
    let mut random = Random(7);
    let mut one = Node::resolved(&config(1, Link::VXLAN), 2);
    let mut two = Node::resolved(&config(2, Link::VXLAN), 1);
    let (mut forwarded, mut delivered) = (0_u32, 0_u32);
    for _ in 0..100_000 {
        let port = 1 + random.below(2) as u16;
        // Now and then a frame of the other tenant's, at this one's port.
        let tenant = if random.chance(10) { 3 - port } else { port };
        let inner = random_frame(&mut random, tenant as u8);
        let mut frame = one.frame(&inner, port);
        let verdict = one.judge_tenant(&mut frame);
        let meta = one.pool.meta(&frame).clone();
        if verdict != Verdict::Forward {
            one.pool.free(frame);
            assert_ne!(verdict, Verdict::Deliver, "no two ports of one tenant here");
            continue;
        }
        assert_eq!(tenant_of(verdict, &meta), Some(port.into()));
        forwarded += 1;
        let (_, sent) = one.encapsulate(frame, 0);
        let mut outer = sent.into_iter().next().unwrap();
        // Now and then the network delivers another identifier than was sent.
        let moved = random.chance(20);
        if moved {
            outer[48] = random.pick(&[100, 200, 44]);
        }
        let vni = u32::from(outer[48]);
        let (verdict, meta, _) = two.underlay(&outer);
        if let Some(tenant) = tenant_of(verdict, &meta) {
            assert_eq!(tenant, vni / 100, "delivered to the tenant of the identifier");
            // A frame under another tenant's identifier shows that tenant's own addresses or is dropped;
            // MAC addresses differ between the tenants here, so it never gets in.
            assert_eq!(tenant, u32::from(port));
            delivered += 1;
        }
    }
    assert!(
        forwarded > 20_000 && delivered > 15_000,
        "{forwarded} forwarded, {delivered} delivered: too few to tell"
    );
}
