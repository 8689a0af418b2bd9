//! NVMe/TCP: golden bytes beside the figure that they follow, every refusal, and round trips.

use proptest::prelude::*;
use wire::EmitError;
use wire::nvme::fabrics::*;
use wire::nvme::*;
use wire::nvme_tcp::Direction::{ControllerToHost, HostToController};
use wire::nvme_tcp::*;

const PLAIN: Agreed = Agreed::NOTHING;

fn digests() -> Agreed {
    Agreed { header_digest: true, data_digest: true, ..PLAIN }
}

fn aligned(bytes: u8) -> Agreed {
    Agreed { alignment: Alignment::new(bytes / 4 - 1).expect("up to 128"), ..PLAIN }
}

fn bytes(pdu: &Pdu, data_bytes: u32, agreed: Agreed) -> Vec<u8> {
    pdu.head(data_bytes, agreed).expect("sound").octets().to_vec()
}

/// Reads a head as its receiver does.
fn read(octets: &[u8], agreed: Agreed) -> Result<(Layout, Pdu), Fatal> {
    let common = Common::parse(octets.first_chunk().expect("8 bytes"));
    let layout = common.layout(common.kind.direction(), agreed, 1 << 20)?;
    layout.check_header_digest(octets)?;
    Ok((layout, Pdu::parse(&layout, octets)?))
}

fn field(offset_bytes: u32) -> Option<Fatal> {
    Some(Fatal::field(offset_bytes))
}

/// RFC 3720 appendix B.4: CRC32C of 32 bytes of zeroes, of ones, and ascending.
#[test]
fn the_digest_is_crc32c() {
    assert_eq!(digest(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    assert_eq!(digest(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
    let ascending: Vec<u8> = (0..32).collect();
    assert_eq!(digest(&ascending).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
    assert_eq!(digest_append(digest(&ascending[..7]), &ascending[7..]), digest(&ascending));
}

/// Figure 20: HLEN and PLEN 128, PFV 0, HPDA 3 (16 bytes), both digests, MAXR2T 0 (one).
#[test]
fn the_request_to_connect() {
    let request = IcReq {
        alignment: Alignment::new(3).expect("up to 31"),
        digests: DigestFlags::HDGST_ENABLE.with(DigestFlags::DDGST_ENABLE),
        r2t_max: 1,
    };
    let mut golden = [0; 128];
    golden[..16].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0]);
    // Nothing is agreed yet, so it has no digest, whatever is asked for.
    assert_eq!(bytes(&Pdu::IcReq(request), 0, digests()), golden);
    let (layout, pdu) = read(&golden, digests()).expect("sound");
    assert_eq!((layout.pdu_bytes(), layout.data_at, pdu), (128, 128, Pdu::IcReq(request)));
    assert_eq!(request.alignment.bytes(), 16);
    for (at, value, fatal) in [
        (8, 1, Fatal::parameter(8)),
        (9, 1, Fatal::parameter(8)),
        (10, 32, Fatal::field(10)),
        (2, 127, Fatal::field(2)),
        (4, 127, Fatal::field(4)),
        (4, 129, Fatal::field(4)),
    ] {
        let mut wrong = golden;
        wrong[at] = value;
        assert_eq!(read(&wrong, PLAIN).err(), Some(fatal), "byte {at}");
    }
    let most = IcReq { r2t_max: 1 << 32, ..request };
    assert_eq!(read(&bytes(&Pdu::IcReq(most), 0, PLAIN), PLAIN).map(|(_, pdu)| pdu), Ok(Pdu::IcReq(most)));
    for r2t_max in [0, (1 << 32) + 1] {
        let none = Pdu::IcReq(IcReq { r2t_max, ..request });
        assert_eq!(none.head(0, PLAIN).err(), Some(EmitError::OutOfRange));
    }
    assert_eq!(Alignment::new(32), None);
}

/// Figure 21: CPDA 0, no digest, MAXH2CDATA 128 KiB.
#[test]
fn the_answer_to_connect() {
    let response =
        IcResp { alignment: Alignment::WORD, digests: DigestFlags::NONE, data_bytes_max: 128 << 10 };
    let mut golden = [0; 128];
    golden[..16].copy_from_slice(&[1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(bytes(&Pdu::IcResp(response), 0, PLAIN), golden);
    assert_eq!(read(&golden, PLAIN).map(|(_, pdu)| pdu), Ok(Pdu::IcResp(response)));
    for wrong_bytes in [0, 4097] {
        let wrong = IcResp { data_bytes_max: wrong_bytes, ..response };
        assert_eq!(Pdu::IcResp(wrong).head(0, PLAIN).err(), Some(EmitError::OutOfRange));
        let mut octets = golden;
        octets[12..16].copy_from_slice(&wrong_bytes.to_le_bytes());
        assert_eq!(read(&octets, PLAIN).err(), field(12));
    }
}

/// Figures 22 and 23: FES 01h, FEI 10 in bytes 13:10, the refused header as data.
#[test]
fn the_last_words_of_a_connection() {
    let header = [0; 128];
    let termination = Termination { fatal: Fatal::field(10), header: &header };
    let (octets, len) = termination.octets(ControllerToHost).expect("sound");
    assert_eq!(len, TERMINATION_BYTES_MAX);
    assert_eq!(octets[..14], [3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 10, 0, 0, 0]);
    let (layout, pdu) = read(&octets, digests()).expect("sound, and without digests");
    assert_eq!(layout.data_bytes, 128);
    assert_eq!(pdu, Pdu::Termination(ControllerToHost, Fatal::field(10)));
    // More than fits is cut; one byte more on the wire is refused.
    let long = Termination { fatal: Fatal::bare(FatalStatus::SEQUENCE), header: &[7; 200] };
    assert_eq!(long.octets(HostToController).expect("cut").1, TERMINATION_BYTES_MAX);
    let mut wrong = octets;
    wrong[4] = 153;
    assert_eq!(read(&wrong, PLAIN).err(), field(4));
    wrong[4] = 23;
    assert_eq!(read(&wrong, PLAIN).err(), field(4));
}

fn a_read() -> Command {
    Command {
        opcode: IoOpcode::READ.0,
        flags: 0x40,
        id: 0x1234,
        namespace: 1,
        dwords_2_3: [0; 2],
        metadata: 0,
        sgl: Sgl::HostBuffer { length_bytes: 4096 }.octets(),
        dwords_10_15: [0x1000, 0, 7, 0, 0, 0],
    }
}

/// Figure 24, with the entry of the base specification: Read, SGL, CID 0x1234, NSID 1, a transport data block of
/// 4096 bytes (type 5h, sub type Ah), SLBA 0x1000, NLB 7.
#[test]
fn a_command() {
    let mut golden = vec![4, 0, 72, 0, 72, 0, 0, 0];
    golden.extend([0x02, 0x40, 0x34, 0x12, 1, 0, 0, 0]);
    golden.extend([0; 16]);
    golden.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x5a]);
    golden.extend([0, 0x10, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(golden.len(), 72);
    let pdu = Pdu::Command(a_read());
    assert_eq!(bytes(&pdu, 0, PLAIN), golden);
    let (layout, read) = read(&golden, PLAIN).expect("sound");
    assert_eq!((layout.data_bytes, layout.pdu_bytes(), read), (0, 72, pdu));
    assert!(a_read().has_sgl() && a_read().fused() == 0);
    assert_eq!(Sgl::parse(&a_read().sgl), Ok(Sgl::HostBuffer { length_bytes: 4096 }));
}

/// Clause 3.3.1.1: digests of header and in-capsule data; figure 24: PDO behind header, digest and padding.
#[test]
fn a_command_with_data_and_digests() {
    let agreed = Agreed { alignment: Alignment::new(31).expect("up to 31"), ..digests() };
    let head = bytes(&Pdu::Command(a_read()), 4096, agreed);
    assert_eq!(head.len(), 128, "data begins at a multiple of 128");
    assert_eq!(head[..8], [4, 3, 72, 128, 0x84, 0x10, 0, 0]);
    assert_eq!(head[72..76], digest(&head[..72]).to_le_bytes());
    assert!(head[76..].iter().all(|&byte| byte == 0));
    let (layout, _) = read(&head, agreed).expect("sound");
    assert_eq!((layout.data_at, layout.data_bytes, layout.pdu_bytes()), (128, 4096, 128 + 4096 + 4));
    let received = u32::from_le_bytes([head[72], head[73], head[74], head[75]]);
    let mut flipped = head.clone();
    flipped[20] ^= 1;
    let fatal = Fatal { status: FatalStatus::HEADER_DIGEST, information: received };
    assert_eq!(read(&flipped, agreed).err(), Some(fatal));
    assert_eq!(layout.check_header_digest(&head[..75]).err(), Some(Fatal::bare(FatalStatus::HEADER_DIGEST)));
}

/// Figure 25, with the entry of the base specification: SQHD 5, CID 0x1234, "LBA Out of Range" with DNR.
#[test]
fn a_completion() {
    let completion = Completion {
        result: 0x0102_0304_0506_0708,
        queue_head: 5,
        command: 0x1234,
        status: StatusCode::LBA_OUT_OF_RANGE,
        do_not_retry: true,
        ..Completion::default()
    };
    #[rustfmt::skip]
    let golden = [
        5, 0, 24, 0, 24, 0, 0, 0,
        8, 7, 6, 5, 4, 3, 2, 1,
        5, 0, 0, 0, 0x34, 0x12, 0x00, 0x81,
    ];
    assert_eq!(bytes(&Pdu::Completion(completion), 0, PLAIN), golden);
    assert_eq!(read(&golden, PLAIN).map(|(_, pdu)| pdu), Ok(Pdu::Completion(completion)));
    let head = bytes(&Pdu::Completion(completion), 0, digests());
    assert_eq!((head.len(), head[1], head[4]), (28, 1, 28));
    assert!(read(&head, digests()).is_ok());
    assert_eq!(Pdu::Completion(completion).head(4, PLAIN).err(), Some(EmitError::OutOfRange));
}

/// Figure 16, step 7: 8,192 bytes at BB8h, the last of its request. Figure 15, step 5: 1,096 bytes at 2BB8h.
#[test]
fn data_in_both_directions() {
    let data = Data {
        command: 0x11,
        tag: 0x22,
        offset_bytes: 0xbb8,
        length_bytes: 0x2000,
        is_last: true,
        is_success: false,
    };
    #[rustfmt::skip]
    let golden = [
        6, 4, 24, 24, 0x18, 0x20, 0, 0,
        0x11, 0, 0x22, 0, 0xb8, 0x0b, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(bytes(&Pdu::Data(HostToController, data), 0x2000, PLAIN), golden);
    let (layout, pdu) = read(&golden, PLAIN).expect("sound");
    assert_eq!((layout.data_at, layout.data_bytes), (24, 0x2000));
    assert_eq!(pdu, Pdu::Data(HostToController, data));
    let data = Data { tag: 0, offset_bytes: 0x2bb8, length_bytes: 0x448, is_success: true, ..data };
    let head = bytes(&Pdu::Data(ControllerToHost, data), 0x448, aligned(16));
    assert_eq!((head[1], head[3], head.len()), (0x0c, 32, 32), "clause 3.3: 8 bytes of padding");
    assert_eq!(read(&head, aligned(16)).map(|(_, pdu)| pdu), Ok(Pdu::Data(ControllerToHost, data)));
    let mut reserved = head.clone();
    reserved[10..12].fill(0xff);
    assert_eq!(read(&reserved, aligned(16)), read(&head, aligned(16)), "a reserved field is not looked at");
    // Figure 8: 64 bytes of alignment, 40 of padding.
    assert_eq!(bytes(&Pdu::Data(ControllerToHost, data), 0x448, aligned(64)).len(), 64);
}

/// Figure 28, as in figure 16, step 5: 8,192 bytes at BB8h.
#[test]
fn a_request_for_data() {
    let transfer = Transfer { command: 0x11, tag: 0x22, offset_bytes: 0xbb8, length_bytes: 0x2000 };
    #[rustfmt::skip]
    let golden = [
        9, 0, 24, 0, 24, 0, 0, 0,
        0x11, 0, 0x22, 0, 0xb8, 0x0b, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(bytes(&Pdu::Transfer(transfer), 0, PLAIN), golden);
    assert_eq!(read(&golden, PLAIN).map(|(_, pdu)| pdu), Ok(Pdu::Transfer(transfer)));
}

/// A sound head, what to put where, and what is said of it.
type Case<'a> = (&'a [u8], &'a [(usize, u8)], Option<Fatal>);

#[test]
fn headers_that_contradict_the_clauses_are_refused_by_field() {
    let data =
        Data { command: 1, tag: 2, offset_bytes: 8, length_bytes: 512, is_last: true, is_success: false };
    let from_host = bytes(&Pdu::Data(HostToController, data), 512, PLAIN);
    let from_controller = bytes(&Pdu::Data(ControllerToHost, data), 512, PLAIN);
    let command = bytes(&Pdu::Command(a_read()), 512, PLAIN);
    let bare = bytes(&Pdu::Command(a_read()), 0, PLAIN);
    let transfer = Transfer { command: 1, tag: 2, offset_bytes: 8, length_bytes: 512 };
    let transfer = bytes(&Pdu::Transfer(transfer), 0, PLAIN);
    let range = Some(Fatal::bare(FatalStatus::DATA_OUT_OF_RANGE));
    let limit = Some(Fatal::bare(FatalStatus::LIMIT_EXCEEDED));
    let cases: [Case<'_>; 22] = [
        (&bare, &[(0, 8)], field(0)),
        (&bare, &[(0, 0xff)], field(0)),
        (&bare, &[(1, 1)], field(1)),
        (&bare, &[(1, 2)], field(1)),
        (&bare, &[(2, 71)], field(2)),
        (&bare, &[(4, 71)], field(4)),
        (&command, &[(1, 2)], field(1)),
        (&command, &[(3, 73)], field(3)),
        (&command, &[(3, 68)], field(3)),
        (&command, &[(3, 252), (4, 200), (5, 0)], field(4)),
        (&command, &[(7, 0x7f)], field(4)),
        (&from_host, &[(7, 0x7f)], limit),
        (&from_host, &[(4, 24), (5, 0)], field(4)),
        (&from_host, &[(12, 9)], field(12)),
        (&from_host, &[(16, 4)], field(16)),
        (&from_host, &[(4, 25)], field(16)),
        (&from_host, &[(15, 0xff), (14, 0xff), (13, 0xff), (12, 0xfc)], range),
        (&from_controller, &[(1, 8)], field(1)),
        (&transfer, &[(4, 28)], field(4)),
        (&transfer, &[(12, 1)], field(12)),
        (&transfer, &[(17, 0)], field(16)),
        (&transfer, &[(15, 0xff), (14, 0xff), (13, 0xff), (12, 0xfc)], range),
    ];
    for (octets, changes, fatal) in cases {
        let mut wrong = octets.to_vec();
        changes.iter().for_each(|&(at, value)| wrong[at] = value);
        assert_eq!(read(&wrong, PLAIN).err(), fatal, "{changes:?} in {octets:?}");
    }
    // A unit of the other side, and one cut short.
    let common = Common::parse(bare.first_chunk().expect("8 bytes"));
    assert_eq!(common.layout(ControllerToHost, PLAIN, 0).err(), field(0));
    let layout = common.layout(HostToController, PLAIN, 0).expect("sound");
    assert_eq!(Pdu::parse(&layout, &bare[..71]).err(), field(4));
    assert_eq!(common.octets(), bare[..8]);
    // Digests that were agreed and are not there.
    assert_eq!(read(&bare, digests()).err(), field(1));
    let half = Agreed { header_digest: false, ..digests() };
    assert_eq!(read(&command, half).err(), field(1));
    assert!(read(&bare, half).is_ok(), "without data there is nothing to digest");
}

#[test]
fn heads_that_contradict_the_clauses_are_not_written() {
    let data =
        Data { command: 1, tag: 2, offset_bytes: 8, length_bytes: 512, is_last: false, is_success: false };
    let transfer = Transfer { command: 1, tag: 2, offset_bytes: 8, length_bytes: 512 };
    let refused = [
        (Pdu::Data(HostToController, data), 508),
        (Pdu::Data(HostToController, Data { offset_bytes: 2, ..data }), 512),
        (Pdu::Data(HostToController, Data { length_bytes: 0, ..data }), 0),
        (Pdu::Data(HostToController, Data { offset_bytes: u32::MAX - 3, ..data }), 512),
        (Pdu::Data(HostToController, Data { is_last: true, is_success: true, ..data }), 512),
        (Pdu::Data(ControllerToHost, Data { is_success: true, ..data }), 512),
        (Pdu::Transfer(transfer), 4),
        (Pdu::Transfer(Transfer { length_bytes: 0, ..transfer }), 0),
        (Pdu::Transfer(Transfer { length_bytes: 6, ..transfer }), 0),
        (Pdu::Command(a_read()), u32::MAX),
        (Pdu::Termination(ControllerToHost, Fatal::field(0)), 129),
    ];
    for (pdu, data_bytes) in refused {
        assert_eq!(pdu.head(data_bytes, PLAIN).err(), Some(EmitError::OutOfRange), "{pdu:?}");
    }
}

/// TCP transport, clause 3.3.2: two descriptors, and "SGL DESCRIPTOR TYPE INVALID" for others.
#[test]
fn descriptors_of_data() {
    let in_capsule = Sgl::InCapsule { offset_bytes: 0, length_bytes: 512 };
    assert_eq!(in_capsule.octets(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x01]);
    for sgl in [in_capsule, Sgl::HostBuffer { length_bytes: 1 << 20 }] {
        assert_eq!(Sgl::parse(&sgl.octets()), Ok(sgl));
    }
    assert_eq!((in_capsule.length_bytes(), Sgl::HostBuffer { length_bytes: 9 }.length_bytes()), (512, 9));
    for kind in [0x00, 0x40, 0x51, 0x5b, 0x20] {
        let mut octets = in_capsule.octets();
        octets[15] = kind;
        assert_eq!(Sgl::parse(&octets), Err(StatusCode::SGL_TYPE_INVALID), "{kind:#x}");
    }
}

/// Base specification, clause 6.3: QID 1, SQSIZE 127, KATO 5,000 ms.
#[test]
fn connect() {
    let connect = Fabrics::Connect(Connect {
        queue: 1,
        entries: 128,
        flags: ConnectFlags::DISABLE_FLOW_CONTROL,
        keep_alive_ms: 5000,
    });
    let sgl = Sgl::InCapsule { offset_bytes: 0, length_bytes: CONNECT_DATA_BYTES as u32 };
    let command = connect.command(9, sgl).expect("sound");
    let octets = command.octets();
    assert_eq!(octets[..8], [0x7f, 0x40, 9, 0, 1, 0, 0, 0]);
    assert_eq!(octets[24..40], sgl.octets());
    assert_eq!(octets[40..52], [0, 0, 1, 0, 127, 0, 4, 0, 0x88, 0x13, 0, 0]);
    assert_eq!(Fabrics::parse(&command), Ok(connect));
    for entries in [0, 65537] {
        let flags = ConnectFlags::NONE;
        let wrong = Fabrics::Connect(Connect { queue: 0, entries, flags, keep_alive_ms: 0 });
        assert_eq!(wrong.command(1, sgl).err(), Some(EmitError::OutOfRange));
    }
    for kind in [FabricsType::CONNECT, FabricsType::DISCONNECT] {
        let mut wrong = Command { namespace: u32::from(kind.0), ..command };
        wrong.dwords_10_15[0] |= 1;
        assert_eq!(Fabrics::parse(&wrong), Err(StatusCode::INCOMPATIBLE_FORMAT));
    }
}

/// Base specification, clause 6.3, "Connect Command – Data".
#[test]
fn connect_data() {
    let host = "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    let data = ConnectData { host_id: [7; 16], controller: CONTROLLER_ANY, subsystem: DISCOVERY_NQN, host };
    let octets = data.octets().expect("sound");
    assert_eq!((octets[..16].to_vec(), &octets[16..18]), (vec![7; 16], &[0xff, 0xff][..]));
    assert_eq!((&octets[256..292], octets[292]), (DISCOVERY_NQN.as_bytes(), 0));
    assert_eq!(&octets[512..512 + host.len()], host.as_bytes());
    assert_eq!(ConnectData::parse(&octets), Ok(data));
    for (at, parameter) in [(256, InvalidParameter::SUBSYSTEM), (512, InvalidParameter::HOST)] {
        let mut wrong = octets;
        wrong[at] = 0;
        assert_eq!(ConnectData::parse(&wrong), Err(parameter), "empty");
        wrong[at..at + 224].fill(b'x');
        assert_eq!(ConnectData::parse(&wrong), Err(parameter), "not ended");
        wrong[at..at + 2].copy_from_slice(&[0xff, 0]);
        assert_eq!(ConnectData::parse(&wrong), Err(parameter), "not UTF-8");
    }
    let long = "x".repeat(NQN_BYTES_MAX + 1);
    for name in ["", "a\0b", &long] {
        assert_eq!(ConnectData { host: name, ..data }.octets().err(), Some(EmitError::OutOfRange));
        assert_eq!(ConnectData { subsystem: name, ..data }.octets().err(), Some(EmitError::OutOfRange));
    }
    let completion = InvalidParameter::HOST.completion(3);
    assert_eq!((completion.result, completion.command), (1 << 16 | 512, 3));
    assert_eq!(completion.status, StatusCode::CONNECT_INVALID_PARAMETERS);
    assert_eq!(InvalidParameter::QUEUE.completion(3).result, 42);
}

/// Base specification, clauses 6.4 to 6.6.
#[test]
fn properties_and_disconnect() {
    let none = Sgl::HostBuffer { length_bytes: 0 };
    let get = Fabrics::PropertyGet { property: Property::CAP, is_long: true };
    let octets = get.command(1, none).expect("sound").octets();
    assert_eq!((octets[4], &octets[40..48]), (4, &[1, 0, 0, 0, 0, 0, 0, 0][..]));
    let set = Fabrics::PropertySet { property: Property::CC, is_long: false, value: 0x46_0001 };
    let octets = set.command(1, none).expect("sound").octets();
    assert_eq!(
        (octets[4], &octets[40..56]),
        (0, &[0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0][..])
    );
    let other = Fabrics::Other(FabricsType::AUTHENTICATION_SEND);
    for fabrics in [get, set, Fabrics::Disconnect, other] {
        let command = fabrics.command(1, none).expect("sound");
        assert_eq!(Fabrics::parse(&command), Ok(fabrics));
    }
    for fabrics in [get, set] {
        let mut wrong = fabrics.command(1, none).expect("sound");
        wrong.dwords_10_15[0] = 2;
        assert_eq!(Fabrics::parse(&wrong), Err(StatusCode::INVALID_FIELD));
    }
    assert_eq!(format!("{} {}", Property::CSTS, FabricsType(0xc0)), "CSTS 0xc0");
}

proptest! {
    #[test]
    fn any_command_and_completion_read_as_they_were_written(
        command: [u8; 32], more: [u8; 32], completion: [u8; 16],
    ) {
        let mut octets = [0; 64];
        octets[..32].copy_from_slice(&command);
        octets[32..].copy_from_slice(&more);
        prop_assert_eq!(Command::parse(&octets).octets(), octets);
        prop_assert_eq!(Completion::parse(&completion).octets(), completion);
    }

    /// Whatever a host agrees on, what one side writes the other reads.
    #[test]
    fn heads_read_as_they_were_written(
        words in any::<(u16, u16, u32, u32)>(), flags in any::<(bool, bool, bool, bool)>(), dwords in 0u8..32,
        from_host: bool,
    ) {
        let (command, tag, offset, length) = words;
        let (header_digest, data_digest, is_last, is_success) = flags;
        let alignment = Alignment::new(dwords).expect("up to 31");
        let agreed = Agreed { header_digest, data_digest, alignment };
        let direction = if from_host { HostToController } else { ControllerToHost };
        let (offset_bytes, length_bytes) = (offset & 0x7fff_fffc, (length & 0xf_fffc).max(4));
        let data = Data {
            command, tag: if from_host { tag } else { 0 }, offset_bytes, length_bytes, is_last,
            is_success: is_success && is_last && !from_host,
        };
        let head = Pdu::Data(direction, data).head(length_bytes, agreed).expect("sound");
        let (layout, pdu) = read(head.octets(), agreed).expect("sound");
        prop_assert_eq!(pdu, Pdu::Data(direction, data));
        prop_assert_eq!(layout.data_at, head.octets().len());
        prop_assert_eq!(layout.data_bytes, length_bytes);
        prop_assert_eq!(layout.data_at % usize::from(alignment.bytes()), 0);
        let head = Pdu::Command(a_read()).head(length_bytes, agreed).expect("sound");
        prop_assert_eq!(read(head.octets(), agreed).expect("sound").0.data_bytes, length_bytes);
    }

    /// Any bytes: a refusal or a unit whose parts lie inside it.
    #[test]
    fn any_bytes_are_survived(octets: [u8; 24], kind in 0u8..11, agreed in any::<(bool, bool, u8)>()) {
        let mut octets = [&octets[..], &[0; 120]].concat();
        octets[0] = kind;
        octets[2] = Kind(kind).header_bytes().unwrap_or(24) as u8;
        octets[6] &= 0x1f;
        octets[7] = 0;
        let (header_digest, data_digest, dwords) = agreed;
        let alignment = Alignment::new(dwords & 31).expect("up to 31");
        let agreed = Agreed { header_digest, data_digest, alignment };
        let common = Common::parse(octets.first_chunk().expect("8 bytes"));
        if let Ok(layout) = common.layout(common.kind.direction(), agreed, 1 << 20) {
            prop_assert_eq!(layout.pdu_bytes(), u64::from(common.pdu_bytes));
            prop_assert!(layout.data_at >= layout.header_bytes && layout.data_bytes <= 1 << 20);
            Pdu::parse(&layout, &octets).ok();
        }
    }
}
