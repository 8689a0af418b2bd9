//! From the first byte to a queue: agreement, Connect, its refusals, and what is told to hosts that violate
//! the transport.

mod nvme_common;

use nvme_common::{
    ADMIN, Agreed, Conn, DISCOVERY, HOST, NQN, Reply, Rig, Sgl, Sqe, Wish, hello, identify, property_get,
    property_set, read, set_up, write,
};
use session::nvme_tcp::{
    Hosts, Namespace, NamespaceError, Next, QueueError, SetupError, Subsystem, SubsystemError,
    SubsystemLimits, Taken, Unknown,
};
use wire::nvme::StatusCode;
use wire::nvme_tcp::{Fatal, FatalStatus};

fn every_agreement() -> impl Iterator<Item = Agreed> {
    [(false, false), (true, false), (false, true), (true, true)].into_iter().flat_map(
        |(header_digest, data_digest)| {
            [0, 3, 31].map(|alignment| Agreed { header_digest, data_digest, alignment })
        },
    )
}

#[test]
fn every_agreement_works_however_the_bytes_are_cut() {
    for agreed in every_agreement() {
        // One by one only for some: the host's checksums are not fast.
        let least = if agreed.alignment == 3 { 1 } else { 7 };
        for piece in [least, 100, usize::MAX >> 1] {
            let mut rig = Rig::new();
            let (mut admin, reply) = rig.connect_in_pieces(agreed, ADMIN, piece);
            // SQHD counts the Connect command; the controller's number is the result.
            let done =
                Reply::Done { id: 0x1234, status: 0, do_not_retry: false, result: 1, more: false, head: 1 };
            assert_eq!(reply, done);
            assert_eq!(rig.status(&mut admin, property_set(2, 0x14, 0x0046_0001), &[]), 0);
            let (mut io, _) = rig.connect_in_pieces(agreed, Wish::io(1, 1), piece);
            let payload: Vec<u8> = (0..8192).map(|i| (i / 3) as u8).collect();
            assert_eq!(rig.status(&mut io, write(3, 5, 16, true), &payload), 0);
            assert_eq!(rig.status(&mut io, write(4, 25, 16, false), &payload), 0);
            for lba in [5, 25] {
                assert_eq!(rig.data(&mut io, read(5, lba, 16)), payload);
            }
            rig.finish(vec![admin, io]);
        }
    }
}

#[test]
fn without_flow_control_the_data_says_that_a_read_succeeded() {
    let mut rig = Rig::new();
    let (admin, controller) = rig.admin(Agreed::default());
    let (mut io, reply) = rig.connect(Agreed::default(), Wish { flags: 1 << 2, ..Wish::io(1, controller) });
    assert!(matches!(reply, Reply::Done { status: 0, head: 0xffff, .. }), "{reply:?}");
    let replies = rig.ask(&mut io, read(9, 0, 8), &[]);
    assert!(matches!(replies[..], [Reply::Data { id: 9, is_success: true, .. }]), "{replies:?}");
    // An error still has a completion, and so has what is written.
    assert_eq!(rig.status(&mut io, read(9, u64::MAX, 8), &[]), 0x80);
    assert_eq!(rig.status(&mut io, write(9, 0, 1, true), &[1; 512]), 0);
    let (mut counted, _) = rig.connect(Agreed::default(), Wish::io(2, controller));
    let replies = rig.ask(&mut counted, read(9, 0, 8), &[]);
    let [Reply::Data { is_success: false, .. }, Reply::Done { id: 9, status: 0, head: 2, .. }] = replies[..]
    else {
        panic!("{replies:?}")
    };
    rig.finish(vec![admin, io, counted]);
}

/// What Connect is answered with: status and dword 0.
fn refusal(rig: &mut Rig, wish: Wish) -> (u16, u64, bool) {
    let (mut conn, reply) = rig.connect(Agreed::default(), wish);
    let Reply::Done { id: 0x1234, status, do_not_retry, result, .. } = reply else { panic!("{reply:?}") };
    assert!(status != 0 && conn.queue.is_finished());
    assert!(matches!(conn.queue.over(), Some(QueueError::Refused(StatusCode(code))) if code == status));
    assert!(matches!(conn.queue.expire(&rig.subsystem, rig.now_ns), Err(QueueError::Refused(_))));
    rig.end(&mut conn);
    (status, result, do_not_retry)
}

#[test]
fn connect_is_refused_with_the_parameter_that_is_wrong() {
    let limits = SubsystemLimits { controllers_max: 2, queues_max: 4, ..SubsystemLimits::default() };
    let mut rig = Rig::with(Hosts::Only(vec![HOST.to_owned()]), limits, false, 8);
    let (in_data, dnr) = (1 << 16, true);
    let other = "nqn.2014-08.org.nvmexpress:uuid:other";
    assert_eq!(refusal(&mut rig, Wish { host: other, ..ADMIN }), (0x184, in_data | 512, dnr));
    assert_eq!(refusal(&mut rig, Wish { controller: 1, ..ADMIN }), (0x182, in_data | 16, dnr));
    assert_eq!(refusal(&mut rig, Wish { entries_less_one: 0, ..ADMIN }), (0x182, 44, dnr));
    assert_eq!(refusal(&mut rig, Wish { entries_less_one: 256, ..ADMIN }), (0x182, 44, dnr));
    assert_eq!(refusal(&mut rig, Wish::io(1, 1)), (0x182, in_data | 16, dnr));
    let (first, _) = rig.connect(Agreed::default(), ADMIN);
    assert_eq!(refusal(&mut rig, Wish::io(1, 1)), (0x00c, 0, dnr), "not enabled");
    rig.finish(vec![first]);

    let mut rig = Rig::with(Hosts::Any, limits, false, 8);
    let (first, one) = rig.admin(Agreed::default());
    let (second, two) = rig.admin(Agreed::default());
    assert_eq!((one, two, rig.subsystem.controllers()), (1, 2, 2));
    assert_eq!(refusal(&mut rig, ADMIN), (0x181, 0, false), "a later try may find room");
    assert_eq!(refusal(&mut rig, Wish::io(5, one)), (0x182, 42, dnr));
    assert_eq!(refusal(&mut rig, Wish { host_id: 9, ..Wish::io(1, one) }), (0x182, in_data | 512, dnr));
    let (io, _) = rig.connect(Agreed::default(), Wish::io(1, one));
    assert_eq!(refusal(&mut rig, Wish::io(1, one)), (0x00c, 0, dnr), "there already");
    rig.finish(vec![first, second, io]);
}

#[test]
fn a_host_gets_as_many_queues_and_places_as_are_configured() {
    for (queues_max, entries_max) in [(1, 32), (3, 1024)] {
        let limits = SubsystemLimits { queues_max, entries_max, ..SubsystemLimits::default() };
        let mut rig = Rig::with(Hosts::Any, limits, false, 8);
        let (mut admin, controller) = rig.admin(Agreed::default());
        let replies = rig.ask(&mut admin, property_get(1, 0, true), &[]);
        let [Reply::Done { status: 0, result, .. }] = replies[..] else { panic!("{replies:?}") };
        assert_eq!(result & 0xffff, u64::from(entries_max) - 1, "MQES");
        let page = rig.data(&mut admin, identify(1, 1, 0));
        assert_eq!(page[514..516], entries_max.to_le_bytes(), "MAXCMD");
        let many = Sqe::new(0x09, 1, 0, Sgl::Host(0)).dword(10, 7).dword(11, 99 << 16 | 99);
        let replies = rig.ask(&mut admin, many, &[]);
        let [Reply::Done { status: 0, result, .. }] = replies[..] else { panic!("{replies:?}") };
        assert_eq!(result, u64::from(queues_max - 1) * 0x1_0001);
        let (last, io) = (queues_max, |queue, places| Wish {
            entries_less_one: places - 1,
            ..Wish::io(queue, controller)
        });
        assert_eq!(refusal(&mut rig, io(last + 1, entries_max)), (0x182, 42, true));
        assert_eq!(refusal(&mut rig, io(last, entries_max + 1)), (0x182, 44, true));
        let (mut queue, reply) = rig.connect(Agreed::default(), io(last, entries_max));
        assert!(matches!(reply, Reply::Done { status: 0, .. }), "{reply:?}");
        // So many commands wait there, and one more than a place for each is not read.
        rig.sink.credits = 0;
        let commands = (0..=entries_max).map(|id| Agreed::default().capsule(read(id, 0, 1), &[]));
        let bytes = commands.collect::<Vec<_>>().concat();
        let took = queue.queue.process_bytes(&bytes, &mut rig.pool, 1);
        assert_eq!((took, queue.queue.wants_input()), (bytes.len(), false));
        assert_eq!(queue.queue.process_bytes(&bytes[..8], &mut rig.pool, 1), 0);
        rig.sink.credits = usize::MAX;
        assert_eq!(rig.run(&mut queue).len(), 2 * (usize::from(entries_max) + 1));
        rig.finish(vec![admin, queue]);
    }
}

#[test]
fn what_is_no_connect_command_is_refused_before_anybody_owns_it() {
    let agreed = Agreed { data_digest: true, ..Agreed::default() };
    let data = ADMIN.data();
    let cases = [
        (agreed.capsule(identify(7, 1, 0), &[]), 0x00c, true),
        (agreed.capsule(property_get(7, 0, true), &[]), 0x00c, true),
        (agreed.capsule(ADMIN.command().dword(10, 1), &data), 0x180, true),
        (agreed.capsule(ADMIN.command().byte(39, 0x40), &data), 0x011, true),
        (agreed.capsule(ADMIN.command().byte(24, 4), &data), 0x016, true),
        (agreed.capsule(ADMIN.command(), &data[..512]), 0x00f, true),
        // Payload that would have to be asked for.
        (agreed.capsule(Sqe(ADMIN.command().0).byte(39, 0x5a), &[]), 0x011, true),
        // Names that are none.
        (agreed.capsule(ADMIN.command(), &[&[0; 256][..], &[0xff; 768]].concat()), 0x182, true),
    ];
    for (pdu, status, dnr) in cases {
        let (setup, said, _) = set_up(&[hello(agreed), pdu].concat(), 64);
        let (reply, _) = agreed.parse(&said[128..]);
        let Reply::Done { status: got, do_not_retry, .. } = reply else { panic!("{reply:?}") };
        assert_eq!((got, do_not_retry, setup.next()), (status, dnr, Next::Close));
    }
    // Damaged data may be sent again.
    let mut pdu = agreed.capsule(ADMIN.command(), &data);
    pdu[100] ^= 1;
    let (_, said, _) = set_up(&[hello(agreed), pdu].concat(), 64);
    let (reply, _) = agreed.parse(&said[128..]);
    assert!(matches!(reply, Reply::Done { status: 0x022, do_not_retry: false, .. }), "{reply:?}");
}

#[test]
fn a_subsystem_that_nobody_owns_is_refused_by_the_acceptor() {
    let agreed = Agreed { header_digest: true, ..Agreed::default() };
    let (mut setup, _, rest) = set_up(
        &[&hello(agreed)[..], &agreed.capsule(ADMIN.command(), &ADMIN.data()), b"more"].concat(),
        9999,
    );
    assert_eq!(rest, b"more", "what follows is the queue's");
    let attach = setup.attach().unwrap();
    assert!(setup.attach().is_none());
    setup.refuse(&attach);
    let (reply, _) = agreed.parse(setup.dispatch_bytes());
    let status = Reply::Done {
        id: 0x1234,
        status: 0x182,
        do_not_retry: true,
        result: 1 << 16 | 256,
        more: false,
        head: 0,
    };
    assert_eq!((reply, setup.next()), (status, Next::Close));
}

#[test]
fn hosts_that_violate_the_transport_before_connect_are_told_which_field() {
    let bad = |at: usize, value: u8| {
        let mut pdu = hello(Agreed::default());
        pdu[at] = value;
        pdu
    };
    let connect = Agreed::default().capsule(ADMIN.command(), &ADMIN.data());
    let hello_then = |pdu: Vec<u8>| [hello(Agreed::default()), pdu].concat();
    let cases: [(Vec<u8>, u16, u32); 9] = [
        (bad(0, 1), 1, 0),
        (bad(0, 77), 1, 0),
        (bad(2, 72), 1, 2),
        (bad(4, 129), 1, 4),
        (bad(8, 1), 6, 8),
        (bad(10, 32), 1, 10),
        (connect.clone(), 2, 0),
        (hello_then(hello(Agreed::default())), 2, 0),
        (hello_then(Agreed::default().data(0, 0, 0, &[0; 4], true)), 2, 0),
    ];
    for (bytes, status, information) in cases {
        let (setup, said, _) = set_up(&bytes, 33);
        let answer = if bytes.len() > 128 && bytes[0] == 0 { &said[128..] } else { &said[..] };
        let (reply, whole) = Agreed::default().parse(answer);
        let Reply::Termination { status: got, information: about, header } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!((got, about, whole), (status, information, answer.len()), "{:?}", &bytes[..12]);
        assert!(bytes.windows(header.len()).any(|window| window == header), "the header at fault");
        assert_eq!(setup.next(), Next::Close);
    }
    // H2CTermReq: the host has the last word.
    let bye = [&[2, 0, 24, 0, 24, 0, 0, 0, 5, 0][..], &[0; 14]].concat();
    let mut setup = session::nvme_tcp::Setup::default();
    let ended = setup.process_bytes(&hello_then(bye)).unwrap_err();
    assert_eq!(ended, SetupError::Terminated(Fatal::bare(FatalStatus::LIMIT_EXCEEDED)));
}

/// Sends `bytes` on an I/O queue; returns status and information of C2HTermReq.
fn violation(agreed: Agreed, bytes: impl FnOnce(&mut Rig, &mut Conn) -> Vec<u8>) -> (u16, u32) {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(agreed, 0);
    let bytes = bytes(&mut rig, &mut io);
    let replies = rig.exchange(&mut io, &bytes);
    let [Reply::Termination { status, information, .. }] = replies[..] else { panic!("{replies:?}") };
    assert!(matches!(io.queue.over(), Some(QueueError::Fatal(_))));
    // Nothing more is taken in, or said; then the connection is closed.
    assert_eq!(rig.exchange(&mut io, &agreed.capsule(read(1, 0, 1), &[])), []);
    assert!(matches!(io.queue.expire(&rig.subsystem, 1), Err(QueueError::Fatal(_))));
    rig.finish(vec![admin, io]);
    (status, information)
}

/// A write of 8 KiB of which the host was asked for the payload; returns its tag.
fn asked(rig: &mut Rig, io: &mut Conn) -> u16 {
    let capsule = io.agreed.capsule(write(5, 0, 16, false), &[]);
    let replies = rig.exchange(io, &capsule);
    let [Reply::Transfer { id: 5, tag, offset: 0, length: 8192 }] = replies[..] else {
        panic!("{replies:?}")
    };
    tag
}

#[test]
fn hosts_that_violate_the_transport_are_told_which_field() {
    let plain = Agreed::default();
    let digests = Agreed { header_digest: true, data_digest: true, alignment: 0 };
    let data = [7; 4096];
    assert_eq!(violation(plain, |_, _| hello(plain)), (2, 0), "a second ICReq");
    assert_eq!(violation(plain, |_, _| plain.data(5, 0, 0, &data, true)), (1, 10), "nobody asked");
    let cases = [
        (6_u16, 0_u16, 0_u32, false, (1, 8)),
        (5, 1, 0, false, (1, 10)),
        (5, 0, 4096, true, (4, 0)),
        (5, 0, 8192, true, (4, 0)),
        (5, 0, 0, true, (1, 1)),
    ];
    for (id, off_tag, offset, is_last, told) in cases {
        let told_now = violation(plain, |rig, io| {
            let tag = asked(rig, io) ^ off_tag;
            plain.data(id, tag, offset, &data, is_last)
        });
        assert_eq!(told_now, told, "{id} {off_tag} {offset} {is_last}");
    }
    let beyond = violation(plain, |rig, io| {
        let tag = asked(rig, io);
        plain.data(5, tag, 0, &[7; 8196], true)
    });
    assert_eq!(beyond, (4, 0));
    let long = violation(plain, |rig, io| {
        let tag = asked(rig, io);
        plain.data(5, tag, 0, &vec![7; (1 << 20) + 4], true)
    });
    assert_eq!(long, (5, 0), "more than MAXH2CDATA");
    let capsule = violation(plain, |_, _| plain.capsule(write(5, 0, 17, true), &[1; 17 * 512]));
    assert_eq!(capsule, (1, 4), "more than a capsule holds");
    let mut damaged = digests.capsule(read(5, 0, 1), &[]);
    damaged[20] ^= 0x80;
    let received = u32::from_le_bytes(damaged[72..76].try_into().unwrap());
    assert_eq!(violation(digests, |_, _| damaged), (3, received), "the digest that was received");
    assert_eq!(violation(digests, |_, _| plain.capsule(read(5, 0, 1), &[])), (1, 1), "HDGSTF");
}

#[test]
fn a_wrong_digest_of_data_fails_its_command_and_nothing_else() {
    let agreed = Agreed { data_digest: true, ..Agreed::default() };
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(agreed, 0);
    let mut capsule = agreed.capsule(write(5, 0, 2, true), &[3; 1024]);
    capsule[80] ^= 1;
    let replies = rig.exchange(&mut io, &capsule);
    assert!(
        matches!(replies[..], [Reply::Done { id: 5, status: 0x022, do_not_retry: false, .. }]),
        "{replies:?}"
    );
    let tag = asked(&mut rig, &mut io);
    let mut first = agreed.data(5, tag, 0, &[9; 4096], false);
    first[30] ^= 1;
    assert_eq!(rig.exchange(&mut io, &first), [], "the rest is still to come");
    let replies = rig.exchange(&mut io, &agreed.data(5, tag, 4096, &[9; 4096], true));
    assert!(matches!(replies[..], [Reply::Done { id: 5, status: 0x022, .. }]), "{replies:?}");
    assert!(rig.image.bytes.iter().all(|&byte| byte == 0), "nothing was written");
    assert_eq!(rig.status(&mut io, write(5, 0, 2, true), &[3; 1024]), 0);
    rig.finish(vec![admin, io]);
}

#[test]
fn a_host_that_finds_fault_with_us_has_the_last_word() {
    let mut rig = Rig::new();
    let (admin, mut io) = rig.both(Agreed::default(), 0);
    let _tag = asked(&mut rig, &mut io);
    let bye = [&[2, 0, 24, 0, 24, 0, 0, 0, 1, 0, 3][..], &[0; 13]].concat();
    assert_eq!(rig.exchange(&mut io, &bye), []);
    let fatal = Fatal::field(3);
    assert_eq!(io.queue.over(), Some(QueueError::Terminated(fatal)));
    assert_eq!(io.queue.expire(&rig.subsystem, 1), Err(QueueError::Terminated(fatal)));
    rig.finish(vec![admin, io]);
}

#[test]
fn names_and_namespaces_that_cannot_be_are_refused() {
    let namespace =
        || Namespace::new(nvme_common::VOLUME, block::BlockSize::B512, 8, [1; 16], false).unwrap();
    let limits = SubsystemLimits::default();
    let long = format!("nqn.2026-11.example:{}", "x".repeat(204));
    for nqn in ["", "disk", "nqn.2026-1.a:b", "nqn.20x6-11.a", "nqn.2026-11.", &long, DISCOVERY] {
        let refused = Subsystem::new(nqn, "s", Hosts::Any, vec![namespace()], limits).unwrap_err();
        assert_eq!(refused, SubsystemError::Name { nqn: nqn.to_owned() });
    }
    let refused = Subsystem::new(NQN, "s", Hosts::Any, vec![namespace(); 2], limits).unwrap_err();
    assert_eq!(refused, SubsystemError::Taken(Taken { number: 1 }));
    for number in [0, 257, u32::MAX] {
        assert_eq!(namespace().with_number(number), Err(NamespaceError::Number { number }));
    }
    for blocks in [0, (64 << 40) / 512 + 1] {
        let refused = Namespace::new(nvme_common::VOLUME, block::BlockSize::B512, blocks, [1; 16], false);
        assert_eq!(refused, Err(NamespaceError::Size { blocks }));
    }
    let nobody = Namespace::new(nvme_common::VOLUME, block::BlockSize::B512, 8, [0; 16], false);
    assert_eq!(nobody, Err(NamespaceError::Identity));
    let mut subsystem = Subsystem::new(NQN, "s", Hosts::Any, vec![namespace()], limits).unwrap();
    assert_eq!(subsystem.resize(block::VolumeId(8), 1), Err(Unknown(block::VolumeId(8))));
}

#[test]
fn descriptors_that_do_not_fit_their_command_are_refused() {
    let mut rig = Rig::new();
    let (mut admin, mut io) = rig.both(Agreed::default(), 0);
    let cases = [
        (read(1, 0, 2).byte(39, 0x01), 0x011),
        (read(1, 0, 2).dword(8, 512), 0x00f),
        (read(1, 0, 2).byte(39, 0x40), 0x011),
        (read(1, 0, 2).byte(1, 0), 0x002),
        (read(1, 0, 2).byte(1, 0x41), 0x002),
        (write(1, 0, 2, false).dword(8, 512), 0x00f),
        (write(1, 0, 2, true).byte(24, 4), 0x016),
        (Sqe::new(0x01, 1, 1, Sgl::Capsule(1024)).range(0, 2), 0x00f),
    ];
    for (command, status) in cases {
        let replies = rig.exchange(&mut io, &Agreed::default().capsule(command, &[]));
        let [Reply::Done { status: got, do_not_retry: true, .. }] = replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(got, status);
    }
    let cases = [(0x01, 0x011), (0x40, 0x011)];
    for (kind, status) in cases {
        assert_eq!(rig.status(&mut admin, identify(1, 1, 0).byte(39, kind), &[]), status);
    }
    assert_eq!(rig.status(&mut admin, identify(1, 1, 0).dword(8, 512), &[]), 0x00f);
    assert_eq!(rig.status(&mut admin, identify(1, 1, 0).byte(1, 0), &[]), 0x002);
    rig.finish(vec![admin, io]);
}
