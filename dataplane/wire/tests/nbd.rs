//! NBD: golden bytes beside the section of `doc/proto.md` that they follow, every refusal, and round trips.

use proptest::prelude::*;
use wire::EmitError;
use wire::nbd::handshake::*;
use wire::nbd::transmission::*;
use wire::nbd::{ParseError, TEXT_BYTES_MAX, TransmissionFlags, text};

/// `read` must say [`ParseError::Truncated`] for every prefix of a header of `bytes`.
fn cut<T: PartialEq + std::fmt::Debug>(bytes: &[u8], read: impl Fn(&[u8]) -> Result<T, ParseError>) -> T {
    for len in 0..bytes.len() {
        assert_eq!(read(&bytes[..len]), Err(ParseError::Truncated), "{len} bytes");
    }
    let value = read(bytes).expect("whole");
    assert_eq!(read(&[bytes, &[0xff; 9]].concat()).as_ref(), Ok(&value), "what follows is not looked at");
    value
}

/// A header with another magic number is refused, whatever bit of it is wrong.
fn magic<T>(bytes: &[u8], magic_at: std::ops::Range<usize>, read: impl Fn(&[u8]) -> Result<T, ParseError>) {
    for at in magic_at {
        let mut wrong = bytes.to_vec();
        wrong[at] ^= 0x10;
        assert!(matches!(read(&wrong), Err(ParseError::Magic { .. })), "byte {at}");
    }
}

/// "Newstyle negotiation".
#[test]
fn the_greeting_and_the_flags_that_answer_it() {
    let bytes = b"NBDMAGICIHAVEOPT\0\x03";
    let greeting = cut(bytes, Greeting::parse);
    assert_eq!(greeting.flags, HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES));
    assert_eq!(&greeting.octets(), bytes);
    magic(bytes, 0..16, Greeting::parse);
    let flags = cut(&[0, 0, 0, 3], ClientFlags::parse);
    assert_eq!(flags, ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES));
    assert_eq!(flags.octets(), [0, 0, 0, 3]);
}

/// "Newstyle negotiation": `NBD_OPT_GO` with 4 bytes of data.
#[test]
fn an_option_header() {
    let bytes = b"IHAVEOPT\0\0\0\x07\0\0\0\x04";
    let header = cut(bytes, OptionHeader::parse);
    assert_eq!(header, OptionHeader { option: OptionCode::GO, data_bytes: 4 });
    assert_eq!(&header.octets(), bytes);
    magic(bytes, 0..8, OptionHeader::parse);
}

/// "Fixed newstyle negotiation": the reply magic, the option, the type, the length.
#[test]
fn an_option_reply_header() {
    #[rustfmt::skip]
    let bytes = [
        0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9,
        0, 0, 0, 6,
        0x80, 0, 0, 6,
        0, 0, 1, 0,
    ];
    let header = cut(&bytes, OptionReplyHeader::parse);
    let (option, code) = (OptionCode::INFO, ReplyCode::ERR_UNKNOWN);
    assert_eq!(header, OptionReplyHeader { option, code, data_bytes: 256 });
    assert!(header.code.is_error() && !ReplyCode::ACK.is_error());
    assert_eq!(header.octets(), bytes);
    magic(&bytes, 0..8, OptionReplyHeader::parse);
}

/// "Newstyle negotiation": "64 bits, size of the export in bytes; 16 bits, transmission flags".
#[test]
fn the_answer_to_an_export_name() {
    let bytes = [0, 0, 0, 2, 0x80, 0, 0, 0, 0x01, 0x0d];
    let reply = cut(&bytes, ExportNameReply::parse);
    let flags = TransmissionFlags::HAS_FLAGS
        .with(TransmissionFlags::SEND_FLUSH)
        .with(TransmissionFlags::SEND_FUA)
        .with(TransmissionFlags::CAN_MULTI_CONN);
    assert_eq!(reply, ExportNameReply { size_bytes: 10 << 30, flags });
    assert_eq!(reply.octets(), bytes);
}

/// "`NBD_OPT_INFO` and `NBD_OPT_GO`": name "disk", two information requests.
#[test]
fn the_data_of_info_and_go() {
    let bytes = b"\0\0\0\x04disk\0\x02\0\x03\0\x01";
    let request = InfoRequest::parse(bytes).expect("sound");
    assert_eq!(request.name, "disk");
    let wanted: Vec<_> = request.wanted().collect();
    assert_eq!(wanted, [InfoCode::BLOCK_SIZE, InfoCode::NAME]);
    let mut out = [0; 14];
    assert_eq!(InfoRequest::emit("disk", &wanted, &mut out), Ok(14));
    assert_eq!(&out, bytes);
    let short = InfoRequest::emit("disk", &wanted, &mut out[..13]);
    assert_eq!(short, Err(EmitError::NoRoom { needed_bytes: 14 }));
    assert_eq!(InfoRequest::emit("d\0sk", &[], &mut out), Err(EmitError::OutOfRange));
    for len in 0..bytes.len() {
        assert_eq!(InfoRequest::parse(&bytes[..len]).err(), Some(ParseError::Length), "{len} bytes");
    }
    assert_eq!(InfoRequest::parse(&[bytes, &[0][..]].concat()).err(), Some(ParseError::Length));
    assert_eq!(InfoRequest::parse(b"\0\0\0\x01\xff\0\0").err(), Some(ParseError::Text));
}

/// "`NBD_OPT_SET_META_CONTEXT`": export "d", queries "base:allocation" and "x:".
#[test]
fn the_data_of_meta_context_options() {
    let bytes = b"\0\0\0\x01d\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x02x:";
    let request = MetaContextRequest::parse(bytes).expect("sound");
    assert_eq!((request.name, request.queries), ("d", 2));
    let queries: Vec<_> = request.queries().collect();
    assert_eq!(queries, ["base:allocation", "x:"]);
    let mut out = [0; 34];
    assert_eq!(MetaContextRequest::emit("d", &queries, &mut out), Ok(34));
    assert_eq!(&out, bytes);
    let short = MetaContextRequest::emit("d", &queries, &mut out[..33]);
    assert_eq!(short, Err(EmitError::NoRoom { needed_bytes: 34 }));
    for len in 0..bytes.len() {
        assert_eq!(MetaContextRequest::parse(&bytes[..len]).err(), Some(ParseError::Length), "{len} bytes");
    }
    assert_eq!(MetaContextRequest::parse(&[bytes, &[0][..]].concat()).err(), Some(ParseError::Length));
    let endless = b"\0\0\0\0\xff\xff\xff\xff\0\0\0\0";
    assert_eq!(MetaContextRequest::parse(endless).err(), Some(ParseError::Length));
}

/// "Option reply types": each with its data.
#[test]
fn the_data_of_every_reply() {
    let sizes = BlockSizes::new(512, 4096, 1 << 25).expect("sound");
    assert_eq!(
        (sizes.minimum_bytes(), sizes.preferred_bytes(), sizes.payload_bytes_max()),
        (512, 4096, 1 << 25)
    );
    let flags = TransmissionFlags::HAS_FLAGS;
    let cases: [(Reply<'_>, &[u8]); 8] = [
        (Reply::Ack, b""),
        (Reply::Server { name: "disk", description: "text" }, b"\0\0\0\x04disktext"),
        (Reply::Info(Info::Export { size_bytes: 512, flags }), b"\0\0\0\0\0\0\0\0\x02\0\0\x01"),
        (Reply::Info(Info::Name("disk")), b"\0\x01disk"),
        (Reply::Info(Info::Description("text")), b"\0\x02text"),
        (Reply::Info(Info::BlockSize(sizes)), b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0"),
        (Reply::MetaContext { id: 1, name: "base:allocation" }, b"\0\0\0\x01base:allocation"),
        (Reply::Error { code: ReplyCode::ERR_POLICY, message: "no" }, b"no"),
    ];
    for (reply, data) in cases {
        assert_eq!(Reply::parse(reply.code(), data), Ok(reply));
        let mut out = vec![0; OptionReplyHeader::BYTES + data.len()];
        assert_eq!(reply.emit(OptionCode::GO, &mut out), Ok(out.len()), "{reply:?}");
        let header = OptionReplyHeader::parse(&out).expect("written by ourselves");
        assert_eq!((header.code, header.data_bytes as usize), (reply.code(), data.len()));
        assert_eq!(&out[OptionReplyHeader::BYTES..], data);
        let needed_bytes = out.len();
        out.pop();
        assert_eq!(reply.emit(OptionCode::GO, &mut out), Err(EmitError::NoRoom { needed_bytes }));
    }
}

#[test]
fn replies_that_contradict_the_protocol_are_refused() {
    use ParseError::{Length, Text, Value};
    let info = ReplyCode::INFO;
    let cases: [(ReplyCode, &[u8], ParseError); 13] = [
        (ReplyCode::ACK, b"x", Length),
        (ReplyCode::SERVER, b"\0\0\0", Length),
        (ReplyCode::SERVER, b"\0\0\0\x02a", Length),
        (ReplyCode::SERVER, b"\0\0\0\x01a\0", Text),
        (info, b"\0", Length),
        (info, b"\0\0\0\0\0\0\0\0\0\0\0", Length),
        (info, b"\0\x01\xff", Text),
        (info, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0", Length),
        (info, b"\0\x03\0\0\x02\x01\0\0\x10\0\x02\0\0\0", Value),
        (ReplyCode::META_CONTEXT, b"\0\0\0", Length),
        (ReplyCode::META_CONTEXT, b"\0\0\0\x01\0", Text),
        (ReplyCode::ERR_UNSUP, b"\xff", Text),
        (ReplyCode(99), b"", Value),
    ];
    for (code, data, error) in cases {
        assert_eq!(Reply::parse(code, data).err(), Some(error), "{code} {data:?}");
    }
    assert_eq!(Reply::parse(info, b"\0\x63??"), Ok(Reply::Info(Info::Other(InfoCode(99)))));
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let mut out = vec![0; 8192];
    let reply = Reply::Info(Info::Name(&long));
    assert_eq!(reply.emit(OptionCode::GO, &mut out), Err(EmitError::OutOfRange));
}

/// "Size constraints".
#[test]
fn block_sizes_keep_their_bounds() {
    for (minimum, preferred, payload) in [(1, 512, 512), (1, 4096, 1 << 25), (65536, 65536, u32::MAX)] {
        assert!(BlockSizes::new(minimum, preferred, payload).is_some(), "{minimum} {preferred} {payload}");
    }
    let wrong =
        [(0, 512, 512), (3, 512, 512), (1 << 17, 1 << 17, 1 << 25), (1, 256, 4096), (4096, 512, 4096)];
    for (minimum, preferred, payload) in wrong.into_iter().chain([(512, 4096, 4095), (512, 5000, 1 << 25)]) {
        assert!(BlockSizes::new(minimum, preferred, payload).is_none(), "{minimum} {preferred} {payload}");
    }
}

/// "Request message": `NBD_CMD_WRITE` with FUA, cookie, offset 1 MiB, length 4096.
#[test]
fn a_request() {
    #[rustfmt::skip]
    let bytes = [
        0x25, 0x60, 0x95, 0x13,
        0x00, 0x01, 0x00, 0x01,
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00,
        0x00, 0x00, 0x10, 0x00,
    ];
    let request = cut(&bytes, Request::parse);
    let expected = Request {
        flags: CommandFlags::FUA,
        command: Command::WRITE,
        cookie: 0x0123_4567_89ab_cdef,
        offset_bytes: 1 << 20,
        length_bytes: 4096,
    };
    assert_eq!(request, expected);
    assert_eq!(request.octets(), bytes);
    magic(&bytes, 0..4, Request::parse);
}

/// "Simple reply message".
#[test]
fn a_simple_reply() {
    let bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8];
    let reply = cut(&bytes, SimpleReply::parse);
    assert_eq!(reply, SimpleReply { error: ErrorCode::NOSPC, cookie: 0x0102_0304_0506_0708 });
    assert_eq!(reply.octets(), bytes);
    magic(&bytes, 0..4, SimpleReply::parse);
}

/// "Structured reply chunk message" and "Structured reply types": each with its payload.
#[test]
fn every_chunk() {
    let message = Chunk::Error { error: ErrorCode::INVAL };
    let cases: [(Chunk, &[u8], &[u8]); 6] = [
        (Chunk::None, b"\0\x01\0\0", b""),
        (Chunk::OffsetData { offset_bytes: 513 }, b"\0\x01\0\x01", b"\0\0\0\0\0\0\x02\x01data"),
        (
            Chunk::OffsetHole { offset_bytes: 4096, hole_bytes: 1 << 20 },
            b"\0\x01\0\x02",
            b"\0\0\0\0\0\0\x10\0\0\x10\0\0",
        ),
        (
            Chunk::BlockStatus { context: 1 },
            b"\0\x01\0\x05",
            b"\0\0\0\x01\0\0\x10\0\0\0\0\x03\0\0\x20\0\0\0\0\0",
        ),
        (message, b"\0\x01\x80\x01", b"\0\0\0\x16\0\x03bad"),
        (
            Chunk::ErrorOffset { error: ErrorCode::IO, offset_bytes: 512 },
            b"\0\x01\x80\x02",
            b"\0\0\0\x05\0\0\0\0\0\0\0\0\x02\0",
        ),
    ];
    for (chunk, kind, payload) in cases {
        let fixed = match chunk {
            Chunk::OffsetData { .. } => 8,
            Chunk::BlockStatus { .. } => 4,
            Chunk::Error { .. } => 6,
            _ => payload.len(),
        };
        let bulk_bytes = (payload.len() - fixed) as u32;
        let (head, head_bytes) = chunk.head(ChunkFlags::DONE, 0x2a, bulk_bytes).expect("sound");
        let len = [0, 0, 0, payload.len() as u8];
        let header = [&[0x66, 0x8e, 0x33, 0xef][..], kind, &[0, 0, 0, 0, 0, 0, 0, 0x2a], &len].concat();
        assert_eq!(head[..head_bytes], [&header[..], &payload[..fixed]].concat());
        let read = cut(&header, ChunkHeader::parse);
        assert_eq!((read.code, read.flags, read.cookie), (chunk.code(), ChunkFlags::DONE, 0x2a));
        assert_eq!(read.octets(), header[..]);
        magic(&header, 0..4, ChunkHeader::parse);
        match (chunk, ChunkPayload::parse(&read, payload).expect("sound")) {
            (Chunk::None, ChunkPayload::None) => {}
            (Chunk::OffsetData { .. }, ChunkPayload::OffsetData { offset_bytes: 513, data: b"data" }) => {}
            (
                Chunk::OffsetHole { .. },
                ChunkPayload::OffsetHole { offset_bytes: 4096, hole_bytes: 0x10_0000 },
            ) => {}
            (Chunk::BlockStatus { .. }, ChunkPayload::BlockStatus { context: 1, descriptors }) => {
                let both: Vec<_> = descriptors.iter().map(|one| (one.length_bytes, one.flags)).collect();
                assert_eq!(both, [(4096, AllocationFlags::ALL), (8192, AllocationFlags::NONE)]);
                let first = descriptors.iter().next().expect("two").octets();
                assert_eq!(first, payload[4..12]);
            }
            (Chunk::Error { .. }, ChunkPayload::Error { error, message: "bad", offset_bytes: None }) => {
                assert_eq!(error, ErrorCode::INVAL);
            }
            (
                Chunk::ErrorOffset { .. },
                ChunkPayload::Error { error, message: "", offset_bytes: Some(512) },
            ) => {
                assert_eq!(error, ErrorCode::IO);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn chunks_that_contradict_the_protocol_are_not_written() {
    let (done, none) = (ChunkFlags::DONE, ChunkFlags::NONE);
    let error = ErrorCode::OK;
    let refused = [
        (Chunk::None, done, 1),
        (Chunk::None, none, 0),
        (Chunk::OffsetData { offset_bytes: 0 }, done, 0),
        (Chunk::OffsetData { offset_bytes: 0 }, done, u32::MAX),
        (Chunk::OffsetHole { offset_bytes: 0, hole_bytes: 0 }, done, 0),
        (Chunk::OffsetHole { offset_bytes: 0, hole_bytes: 1 }, done, 1),
        (Chunk::BlockStatus { context: 1 }, done, 0),
        (Chunk::BlockStatus { context: 1 }, done, 12),
        (Chunk::Error { error }, done, 0),
        (Chunk::Error { error: ErrorCode::IO }, done, TEXT_BYTES_MAX as u32 + 1),
        (Chunk::ErrorOffset { error, offset_bytes: 0 }, done, 0),
        (Chunk::ErrorOffset { error: ErrorCode::IO, offset_bytes: 0 }, done, 1),
    ];
    for (chunk, flags, bulk_bytes) in refused {
        assert_eq!(chunk.head(flags, 1, bulk_bytes).err(), Some(EmitError::OutOfRange), "{chunk:?}");
    }
}

#[test]
fn chunks_that_contradict_the_protocol_are_not_read() {
    use ParseError::{Length, Text, Truncated, Value};
    let read = |code, flags, payload: &[u8]| {
        let header = ChunkHeader { flags, code, cookie: 1, payload_bytes: payload.len() as u32 };
        ChunkPayload::parse(&header, payload).err()
    };
    let cases: [(ChunkCode, &[u8], ParseError); 16] = [
        (ChunkCode::NONE, b"x", Length),
        (ChunkCode::OFFSET_DATA, b"\0\0\0\0\0\0\0\0", Length),
        (ChunkCode::OFFSET_DATA, b"\0", Length),
        (ChunkCode::OFFSET_HOLE, b"\0\0\0\0\0\0\0\0\0\0\0", Length),
        (ChunkCode::OFFSET_HOLE, b"\0\0\0\0\0\0\0\0\0\0\0\0", Value),
        (ChunkCode::BLOCK_STATUS, b"\0\0\0", Length),
        (ChunkCode::BLOCK_STATUS, b"\0\0\0\x01", Length),
        (ChunkCode::BLOCK_STATUS, b"\0\0\0\x01\0\0\0\0\0\0\0", Length),
        (ChunkCode::BLOCK_STATUS, b"\0\0\0\x01\0\0\0\0\0\0\0\0", Value),
        (ChunkCode::ERROR, b"\0\0\0\x05\0", Length),
        (ChunkCode::ERROR, b"\0\0\0\x05\0\x02a", Length),
        (ChunkCode::ERROR, b"\0\0\0\x05\0\x01ab", Length),
        (ChunkCode::ERROR, b"\0\0\0\0\0\0", Value),
        (ChunkCode::ERROR, b"\0\0\0\x05\0\x01\xff", Text),
        (ChunkCode::ERROR_OFFSET, b"\0\0\0\x05\0\0\0\0\0\0\0\0\0", Length),
        (ChunkCode(3), b"", Value),
    ];
    for (code, payload, error) in cases {
        assert_eq!(read(code, ChunkFlags::DONE, payload), Some(error), "{code} {payload:?}");
    }
    assert_eq!(read(ChunkCode::NONE, ChunkFlags::NONE, b""), Some(Value));
    // An error of a kind that is not known is an error all the same.
    assert_eq!(read(ChunkCode(0x8099), ChunkFlags::DONE, b"\0\0\0\x05\0\0and more"), None);
    let header = ChunkHeader { flags: ChunkFlags::DONE, code: ChunkCode::NONE, cookie: 1, payload_bytes: 3 };
    assert_eq!(ChunkPayload::parse(&header, b"xx").err(), Some(Truncated));
}

#[test]
fn strings_have_their_bounds() {
    assert_eq!(text("Größe".as_bytes()), Ok("Größe"));
    assert!(text(&[b'x'; TEXT_BYTES_MAX]).is_ok());
    for wrong in [&b"a\0b"[..], &[0xff], &[b'x'; TEXT_BYTES_MAX + 1]] {
        assert_eq!(text(wrong), Err(ParseError::Text));
    }
}

/// The names are those of the protocol's text, so that a person can look them up.
#[test]
fn values_show_by_name() {
    assert_eq!(OptionCode::STARTTLS.to_string(), "NBD_OPT_STARTTLS");
    assert_eq!(OptionCode(77).to_string(), "0x4d");
    assert_eq!(format!("{:?}", ReplyCode::ERR_TLS_REQD), "NBD_REP_ERR_TLS_REQD");
    assert_eq!(format!("{:?}", CommandFlags(0x81)), "NBD_CMD_FLAG_FUA 0x80");
    assert_eq!(CommandFlags(0b11).without(CommandFlags::FUA), CommandFlags::NO_HOLE);
    assert_eq!(AllocationFlags::ALL, AllocationFlags::HOLE.with(AllocationFlags::ZERO));
}

proptest! {
    #[test]
    fn requests_read_as_they_were_written(words in any::<(u16, u16, u64, u64, u32)>()) {
        let (flags, command, cookie, offset_bytes, length_bytes) = words;
        let (flags, command) = (CommandFlags(flags), Command(command));
        let request = Request { flags, command, cookie, offset_bytes, length_bytes };
        prop_assert_eq!(Request::parse(&request.octets()), Ok(request));
    }

    #[test]
    fn replies_read_as_they_were_written(error: u32, cookie: u64, flags: u16, code: u16, payload_bytes: u32) {
        let reply = SimpleReply { error: ErrorCode(error), cookie };
        prop_assert_eq!(SimpleReply::parse(&reply.octets()), Ok(reply));
        let (flags, code) = (ChunkFlags(flags), ChunkCode(code));
        let header = ChunkHeader { flags, code, cookie, payload_bytes };
        prop_assert_eq!(ChunkHeader::parse(&header.octets()), Ok(header));
        let descriptor = Descriptor { length_bytes: payload_bytes, flags: AllocationFlags(error) };
        prop_assert_eq!(Descriptor::from_octets(&descriptor.octets()), descriptor);
    }

    #[test]
    fn option_data_reads_as_it_was_written(
        name in "[^\0]{0,40}", queries in prop::collection::vec("[^\0]{0,20}", 0..6),
        wanted in prop::collection::vec(any::<u16>(), 0..9), code: u32,
    ) {
        let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
        let mut out = vec![0; 2000];
        let len = MetaContextRequest::emit(&name, &queries, &mut out).unwrap();
        let read = MetaContextRequest::parse(&out[..len]).unwrap();
        prop_assert_eq!((read.name, read.queries as usize), (&name[..], queries.len()));
        prop_assert!(read.queries().eq(queries.iter().copied()));
        let wanted: Vec<InfoCode> = wanted.into_iter().map(InfoCode).collect();
        let len = InfoRequest::emit(&name, &wanted, &mut out).unwrap();
        let read = InfoRequest::parse(&out[..len]).unwrap();
        prop_assert_eq!(read.name, &name[..]);
        prop_assert!(read.wanted().eq(wanted));
        let error = Reply::Error { code: ReplyCode(code | 1 << 31), message: &name };
        let server = Reply::Server { name: &name, description: queries.first().unwrap_or(&"") };
        for reply in [error, server] {
            let len = reply.emit(OptionCode(code), &mut out).unwrap();
            let header = OptionReplyHeader::parse(&out).unwrap();
            prop_assert_eq!(header.option, OptionCode(code));
            prop_assert_eq!(Reply::parse(header.code, &out[OptionReplyHeader::BYTES..len]), Ok(reply));
        }
    }
}
