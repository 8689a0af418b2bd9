//! The neighbour machine in virtual time.

mod common;

use std::net::IpAddr;

use common::*;
use frame::{DropReason, Frame};
use overlay::*;
use wire::icmp6::Neighbour;
use wire::{Mac, arp};

const SECOND: u64 = 1_000_000_000;

/// What a dispatch handed out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Out {
    requests: Vec<Vec<u8>>,
    released: Vec<Vec<u8>>,
    dropped: Vec<DropReason>,
}

trait Machine {
    fn offer(&mut self) -> Encapsulated;
    fn dispatch(&mut self) -> Out;
    fn hear(&mut self, bytes: &[u8]) -> Result<Vec<u8>, DropReason>;
    fn answer(&mut self, six: bool) -> Result<Vec<u8>, DropReason>;
}

impl Machine for Node {
    /// A tenant's frame for the peer.
    fn offer(&mut self) -> Encapsulated {
        let mut frame = self.frame(&Packet::new(1, 1, 2, false).bytes(b"x"), 1);
        assert_eq!(self.judge_tenant(&mut frame), Verdict::Forward);
        self.encapsulate(frame, 0).0
    }

    fn dispatch(&mut self) -> Out {
        let mut out = Out::default();
        self.neighbours.dispatch(&self.tables, &mut self.pool, self.now_ns, &mut |pool, emitted| {
            let mut close = |frame: Frame| {
                let bytes = pool.bytes(&frame).to_vec();
                pool.free(frame);
                bytes
            };
            match emitted {
                Emitted::Generated(frame) => out.requests.push(close(frame)),
                Emitted::Released(frame) => out.released.push(close(frame)),
                Emitted::Dropped(frame, why) => {
                    close(frame);
                    out.dropped.push(why);
                }
            }
        });
        out
    }

    /// A frame from the underlay: what we answer, or why not.
    fn hear(&mut self, bytes: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut frame = self.frame(bytes, UNDERLAY.0);
        assert_eq!(self.judge_underlay(&mut frame), Verdict::Local);
        match self.neighbours.process(&self.tables, &mut self.pool, frame, self.now_ns) {
            Processed::Reply(frame) => {
                assert_eq!(self.pool.meta(&frame).egress_port, UNDERLAY.0);
                let bytes = self.pool.bytes(&frame).to_vec();
                self.pool.free(frame);
                Ok(bytes)
            }
            Processed::Dropped(why) => Err(why),
        }
    }

    /// The peer answers our request.
    fn answer(&mut self, six: bool) -> Result<Vec<u8>, DropReason> {
        self.hear(&reply(six, underlay_mac(2)))
    }
}

/// An answer of node 2 to node 1.
fn reply(six: bool, mac: Mac) -> Vec<u8> {
    match (vtep(2, six), vtep(1, six)) {
        (IpAddr::V6(target), IpAddr::V6(own)) => {
            let message = Neighbour::Advertisement {
                target,
                target_mac: Some(mac),
                router: false,
                solicited: true,
                overrides: true,
            };
            discovery((mac, target), (underlay_mac(1), own), message)
        }
        (peer, own) => arp_frame(arp::Operation::Reply, underlay_mac(1), (mac, peer), (underlay_mac(1), own)),
    }
}

fn fresh(six: bool) -> Node {
    Node::new(&config(1, Link { six, ..Link::VXLAN }))
}

#[test]
fn frames_wait_while_the_neighbour_is_asked() {
    for six in [false, true] {
        let mut node = fresh(six);
        assert_eq!(node.neighbours.next_deadline_ns(), None);
        assert!(matches!(node.offer(), Encapsulated::Held));
        assert!(matches!(node.offer(), Encapsulated::Held));
        assert_eq!(node.neighbours.next_deadline_ns(), Some(node.now_ns));
        let out = node.dispatch();
        assert_eq!((out.requests.len(), out.released.len(), out.dropped.len()), (1, 0, 0));
        let request = wire::parse(&out.requests[0]).unwrap();
        assert!(request.dst_mac.is_multicast());
        assert_eq!(request.src_mac, underlay_mac(1));
        // The peer's machine understands the request and answers it.
        let mut peer = Node::new(&config(2, Link { six, ..Link::VXLAN }));
        let answer = peer.hear(&out.requests[0]).unwrap();
        assert_eq!(node.hear(&answer), Err(DropReason::Answered));
        let out = node.dispatch();
        assert_eq!((out.requests.len(), out.released.len(), node.neighbours.held()), (0, 2, 0));
        for frame in out.released {
            assert_eq!(frame[..6], underlay_mac(2).0);
            assert_eq!(peer.underlay(&frame).0, Verdict::Deliver);
        }
        assert!(matches!(node.offer(), Encapsulated::Sent));
    }
}

#[test]
fn requests_are_limited_and_waiting_frames_given_up() {
    let mut node = fresh(false);
    assert!(matches!(node.offer(), Encapsulated::Held));
    let start = node.now_ns;
    for n in 0..3 {
        node.now_ns = start + n * SECOND;
        assert_eq!(node.dispatch().requests.len(), 1);
        assert_eq!(node.dispatch(), Out::default(), "one request a second");
        assert_eq!(node.neighbours.next_deadline_ns(), Some(node.now_ns + SECOND));
    }
    node.now_ns = start + 3 * SECOND;
    assert_eq!(node.dispatch(), Out { dropped: vec![DropReason::Unresolved], ..Out::default() });
    // For a while there is no hope; then it starts again.
    assert!(matches!(node.offer(), Encapsulated::Dropped(DropReason::Unresolved)));
    node.now_ns += SECOND;
    assert_eq!(node.dispatch(), Out::default());
    assert!(matches!(node.offer(), Encapsulated::Held));
    assert_eq!(node.dispatch().requests.len(), 1);
    node.neighbours.drain(&mut |frame| node.pool.free(frame));
}

#[test]
fn waiting_rooms_are_bounded() {
    let mut node = fresh(false);
    for _ in 0..8 {
        assert!(matches!(node.offer(), Encapsulated::Held));
    }
    assert!(matches!(node.offer(), Encapsulated::Dropped(DropReason::Unresolved)));
    assert_eq!(node.neighbours.held(), 8);
    node.neighbours.drain(&mut |frame| node.pool.free(frame));
    assert_eq!(node.neighbours.held(), 0);
    let limits = NeighbourLimits { held: 3, ..NeighbourLimits::default() };
    node.neighbours = Neighbours::new(&node.tables, limits);
    for _ in 0..3 {
        assert!(matches!(node.offer(), Encapsulated::Held));
    }
    assert!(matches!(node.offer(), Encapsulated::Dropped(DropReason::Unresolved)));
    node.neighbours.drain(&mut |frame| node.pool.free(frame));
}

#[test]
fn an_old_address_is_used_and_confirmed() {
    for six in [false, true] {
        let mut node = fresh(six);
        assert!(matches!(node.offer(), Encapsulated::Held));
        node.dispatch();
        assert_eq!(node.answer(six), Err(DropReason::Answered));
        node.dispatch();
        // Reachable for 30 seconds, then nothing happens until it is used.
        let due = node.neighbours.next_deadline_ns().unwrap();
        assert_eq!(due, node.now_ns + 30 * SECOND);
        node.now_ns = due;
        assert_eq!(node.dispatch(), Out::default());
        assert_eq!(node.neighbours.next_deadline_ns(), None);
        node.now_ns += 1000 * SECOND;
        assert!(matches!(node.offer(), Encapsulated::Sent));
        let out = node.dispatch();
        assert_eq!(out.requests[0][..6], underlay_mac(2).0, "asked alone");
        assert!(matches!(node.offer(), Encapsulated::Sent));
        assert_eq!(node.answer(six), Err(DropReason::Answered));
        assert_eq!(node.neighbours.next_deadline_ns(), Some(node.now_ns + 30 * SECOND));
        // Once more, and nobody answers: the address is forgotten.
        node.now_ns += 30 * SECOND;
        node.dispatch();
        assert!(matches!(node.offer(), Encapsulated::Sent));
        for _ in 0..3 {
            assert_eq!(node.dispatch().requests.len(), 1);
            assert!(matches!(node.offer(), Encapsulated::Sent));
            node.now_ns += SECOND;
        }
        node.dispatch();
        assert!(matches!(node.offer(), Encapsulated::Dropped(DropReason::Unresolved)));
    }
}

#[test]
fn only_known_entries_learn_from_announcements() {
    let mut node = fresh(false);
    let announcement = |mac| {
        arp_frame(arp::Operation::Request, Mac::BROADCAST, (mac, vtep(2, false)), (Mac::ZERO, vtep(2, false)))
    };
    // Nothing is known about the neighbour yet, so nothing is believed.
    assert!(node.hear(&announcement(underlay_mac(66))).is_err());
    assert!(matches!(node.offer(), Encapsulated::Held));
    node.dispatch();
    let _ = node.answer(false);
    node.dispatch();
    // Now it moves.
    assert_eq!(node.hear(&announcement(underlay_mac(3))), Err(DropReason::Answered));
    assert_eq!(node.send(1, &Packet::new(1, 1, 2, false).bytes(b"x"))[..6], underlay_mac(3).0);
    assert_eq!(node.dispatch().requests.len(), 1, "and is asked whether that is so");
    // Strangers are not learnt, whatever they say.
    let stranger = arp_frame(
        arp::Operation::Reply,
        underlay_mac(1),
        (underlay_mac(9), vtep(9, false)),
        (underlay_mac(1), vtep(1, false)),
    );
    assert_eq!(node.hear(&stranger), Err(DropReason::NotForUs));
}

/// The answer comes to another worker than the one that asked: that one passes it on, and both know.
#[test]
fn an_answer_that_another_worker_heard_helps_the_one_that_asked() {
    for six in [false, true] {
        let (mut asker, mut hearer) = (fresh(six), fresh(six));
        assert!(matches!(asker.offer(), Encapsulated::Held));
        assert_eq!(asker.dispatch().requests.len(), 1);
        let bytes = reply(six, underlay_mac(2));
        let heard = hearer.frame(&bytes, UNDERLAY.0);
        assert!(hearer.neighbours.concerns(&hearer.tables, &hearer.pool, &heard));
        hearer.pool.free(heard);
        assert_eq!(hearer.hear(&bytes), Err(DropReason::Answered));
        let copy = asker.frame(&bytes, UNDERLAY.0);
        let (tables, pool) = (&asker.tables, &mut asker.pool);
        let learnt = asker.neighbours.overhear(tables, pool, copy, asker.now_ns);
        assert_eq!(learnt, DropReason::Answered);
        let out = asker.dispatch();
        assert_eq!((out.requests.len(), out.released.len()), (0, 1), "and nobody asks again");
        assert!(matches!(asker.offer(), Encapsulated::Sent));
        // The one that heard it did not ask: it uses the address, and has it confirmed.
        assert!(matches!(hearer.offer(), Encapsulated::Sent));
        assert_eq!(hearer.dispatch().requests.len(), 1);
    }
}

#[test]
fn what_concerns_no_neighbour_is_not_passed_on_and_not_learnt() {
    let mut node = fresh(false);
    let stranger = request(underlay_mac(9), vtep(9, false), vtep(1, false));
    for (bytes, why) in [(&stranger[..], DropReason::NotForUs), (&stranger[..30], DropReason::Truncated)] {
        let frame = node.frame(bytes, UNDERLAY.0);
        assert!(!node.neighbours.concerns(&node.tables, &node.pool, &frame));
        assert_eq!(node.neighbours.overhear(&node.tables, &mut node.pool, frame, node.now_ns), why);
    }
}

#[test]
fn our_addresses_are_answered_for_and_others_are_not() {
    for six in [false, true] {
        let mut node = fresh(six);
        let answer = node.hear(&request(underlay_mac(9), vtep(9, six), vtep(1, six))).unwrap();
        let parsed = wire::parse(&answer).unwrap();
        assert_eq!((parsed.dst_mac, parsed.src_mac), (underlay_mac(9), underlay_mac(1)));
        let asked = node.hear(&request(underlay_mac(9), vtep(9, six), vtep(8, six)));
        assert_eq!(asked, Err(DropReason::NotForUs));
    }
    // Duplicate address detection is told, too: everybody is.
    let mut node = fresh(true);
    let probe = request(underlay_mac(9), "::".parse().unwrap(), vtep(1, true));
    let answer = wire::parse(&node.hear(&probe).unwrap()).unwrap();
    assert_eq!(answer.dst_ip(), Some("ff02::1".parse().unwrap()));
}

#[test]
fn a_request_from_the_neighbour_teaches_its_address() {
    let mut node = fresh(false);
    assert!(matches!(node.offer(), Encapsulated::Held));
    node.dispatch();
    assert!(node.hear(&request(underlay_mac(2), vtep(2, false), vtep(1, false))).is_ok());
    let out = node.dispatch();
    assert_eq!(out.released.len(), 1);
    assert_eq!(out.requests.len(), 1, "used at once, so confirmed at once");
}

#[test]
fn damaged_messages_are_dropped_for_what_is_wrong() {
    let mut node = fresh(true);
    let mut solicitation = request(underlay_mac(9), vtep(9, true), vtep(1, true));
    *solicitation.last_mut().unwrap() ^= 1;
    assert_eq!(node.hear(&solicitation), Err(DropReason::BadChecksum));
    let arp = request(underlay_mac(9), vtep(9, false), vtep(1, false));
    assert_eq!(node.hear(&arp[..30]), Err(DropReason::Truncated));
    let mut foreign = arp.clone();
    foreign[..6].copy_from_slice(&underlay_mac(8).0);
    assert_eq!(node.hear(&foreign), Err(DropReason::NotForUs));
}

#[test]
fn off_link_endpoints_are_reached_by_the_router() {
    let mut config = config(1, Link::VXLAN);
    config.underlays[0].gateway_ipv4 = Some("192.0.2.254".parse().unwrap());
    for remote in &mut config.tenants[0].remotes {
        remote.vtep.ip = "198.51.100.7".parse().unwrap();
    }
    let mut node = Node::new(&config);
    assert!(matches!(node.offer(), Encapsulated::Held));
    let out = node.dispatch();
    let asked = arp::Packet::parse(&out.requests[0][14..]).unwrap();
    assert_eq!(asked.target_ip, std::net::Ipv4Addr::new(192, 0, 2, 254));
    node.neighbours.drain(&mut |frame| node.pool.free(frame));
}

#[test]
fn what_is_known_survives_a_change_of_tables() {
    let mut node = Node::resolved(&config(1, Link::VXLAN), 2);
    let mut changed = config(1, Link::VXLAN);
    changed.tenants.swap(0, 1);
    changed.tenants[0].remotes.iter_mut().for_each(|remote| remote.vtep.ip = vtep(4, false));
    node.tables = Tables::build(&changed, Some(&node.tables)).unwrap();
    node.neighbours.rebase(&node.tables);
    assert!(matches!(node.offer(), Encapsulated::Sent));
    // A frame that waits for an endpoint that goes away is given up.
    let packet = Packet::new(2, 1, 2, false);
    let mut frame = node.frame(&packet.bytes(b"x"), 2);
    assert_eq!(node.judge_tenant(&mut frame), Verdict::Forward);
    assert!(matches!(node.encapsulate(frame, 0).0, Encapsulated::Held));
    node.tables = Tables::build(&config(1, Link::VXLAN), Some(&node.tables)).unwrap();
    node.neighbours.rebase(&node.tables);
    assert_eq!(node.neighbours.next_deadline_ns(), Some(0));
    assert_eq!(node.dispatch().dropped, [DropReason::RuleGone]);
    assert_eq!(node.neighbours.held(), 0);
}
