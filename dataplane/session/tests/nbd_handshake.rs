//! The handshake: every option, every refusal, TLS, limits, and any cut of the client's bytes.

use block::{BlockSize, VolumeId};
use proptest::prelude::*;
use session::nbd::{
    Attach, DESCRIPTION_BYTES_MAX, EXPORT_NAME_BYTES_MAX, Export, ExportError, Handshake, HandshakeError,
    Next, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_MAX, TlsPolicy,
};
use wire::nbd::handshake::{
    BlockSizes, ClientFlags, ExportNameReply, Greeting, Info, InfoCode, InfoRequest, MetaContextRequest,
    OptionCode, OptionHeader, OptionReplyHeader, Reply, ReplyCode,
};
use wire::nbd::{PAYLOAD_BYTES_MAX, ParseError, TransmissionFlags};

const FIXED: ClientFlags = ClientFlags::FIXED_NEWSTYLE;

fn export(name: &str, volume: u32) -> Export {
    Export::new(name, "text", VolumeId(volume), BlockSize::B4096, 256).expect("sound")
}

fn exports() -> Vec<Export> {
    let mut exports = vec![export("one", 1), export("two", 2)];
    exports[1].read_only = true;
    exports
}

/// An option with its data.
fn option(option: OptionCode, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader { option, data_bytes: data.len() as u32 };
    [&header.octets()[..], data].concat()
}

fn info(name: &str, wanted: &[InfoCode]) -> Vec<u8> {
    let mut data = vec![0; 4 + name.len() + 2 + 2 * wanted.len()];
    InfoRequest::emit(name, wanted, &mut data).expect("there is room");
    data
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = vec![0; 8 + name.len() + queries.iter().map(|query| 4 + query.len()).sum::<usize>()];
    MetaContextRequest::emit(name, queries, &mut data).expect("there is room");
    data
}

/// A client that reads everything at once.
struct Client {
    handshake: Handshake,
    exports: Vec<Export>,
    sent: Vec<u8>,
}

impl Client {
    fn new(tls: TlsPolicy) -> Client {
        Client { handshake: Handshake::new(tls), exports: exports(), sent: Vec::new() }
    }

    /// Greeted, with flags sent.
    fn greeted(tls: TlsPolicy, flags: ClientFlags) -> Client {
        let mut client = Client::new(tls);
        assert_eq!(client.feed(&flags.octets()), Ok(4));
        assert_eq!(client.sent.len(), Greeting::BYTES);
        client.sent.clear();
        client
    }

    fn send(&mut self) -> usize {
        let bytes = self.handshake.dispatch_bytes().to_vec();
        self.handshake.sent(bytes.len());
        self.sent.extend_from_slice(&bytes);
        bytes.len()
    }

    /// Hands `bytes` in until nothing moves; returns how many were taken.
    fn feed(&mut self, bytes: &[u8]) -> Result<usize, HandshakeError> {
        let mut at = 0;
        loop {
            let taken = self.handshake.process_bytes(&bytes[at..], &self.exports)?;
            at += taken;
            if self.send() + taken == 0 {
                return Ok(at);
            }
        }
    }

    /// The replies to one option: code and data.
    fn ask(&mut self, code: OptionCode, data: &[u8]) -> Vec<(ReplyCode, Vec<u8>)> {
        self.sent.clear();
        let bytes = option(code, data);
        assert_eq!(self.feed(&bytes), Ok(bytes.len()), "{code}");
        let (mut left, mut replies) = (&self.sent[..], Vec::new());
        while !left.is_empty() {
            let header = OptionReplyHeader::parse(left).expect("a reply");
            assert_eq!(header.option, code);
            let (data, rest) = left[OptionReplyHeader::BYTES..].split_at(header.data_bytes as usize);
            replies.push((header.code, data.to_vec()));
            left = rest;
        }
        replies
    }

    /// The one error that an option is answered with.
    fn refused(&mut self, code: OptionCode, data: &[u8]) -> ReplyCode {
        let replies = self.ask(code, data);
        assert_eq!(replies.len(), 1, "{code}: {replies:?}");
        let Ok(Reply::Error { code, message }) = Reply::parse(replies[0].0, &replies[0].1) else {
            panic!("{replies:?} is not an error");
        };
        assert!(!message.is_empty(), "a person is told why");
        code
    }

    fn attached(&self) -> Attach {
        match self.handshake.next() {
            Next::Attach(attach) => attach,
            other => panic!("{other:?}"),
        }
    }
}

fn ack() -> (ReplyCode, Vec<u8>) {
    (ReplyCode::ACK, vec![])
}

#[test]
fn an_export_that_cannot_be_said_is_refused() {
    let new = |name: &str, text: &str, blocks| Export::new(name, text, VolumeId(1), BlockSize::B512, blocks);
    assert!(new(&"n".repeat(EXPORT_NAME_BYTES_MAX), &"d".repeat(DESCRIPTION_BYTES_MAX), 1 << 37).is_ok());
    for name in ["a\0b", &"n".repeat(EXPORT_NAME_BYTES_MAX + 1)] {
        assert!(matches!(new(name, "", 1), Err(ExportError::Name { .. })));
    }
    for text in ["a\0b", &"n".repeat(DESCRIPTION_BYTES_MAX + 1)] {
        assert!(matches!(new("a", text, 1), Err(ExportError::Description { .. })));
    }
    assert!(matches!(new("a", "", (1 << 37) + 1), Err(ExportError::Size { .. })));
}

#[test]
fn the_greeting_offers_fixed_newstyle() {
    let handshake = Handshake::new(TlsPolicy::Off);
    assert_eq!(handshake.dispatch_bytes(), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(handshake.next(), Next::Read);
}

#[test]
fn unknown_client_flags_end_the_session() {
    let mut client = Client::new(TlsPolicy::Off);
    let flags = ClientFlags(4 | 1);
    assert_eq!(client.feed(&flags.octets()), Err(HandshakeError::ClientFlags { flags }));
}

#[test]
fn a_list_names_every_export() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    let replies = client.ask(OptionCode::LIST, &[]);
    let name = |name: &str| (ReplyCode::SERVER, [b"\0\0\0\x03", name.as_bytes(), b"text"].concat());
    assert_eq!(replies, [name("one"), name("two"), ack()]);
    assert_eq!(client.refused(OptionCode::LIST, b"x"), ReplyCode::ERR_INVALID);
    client.exports.clear();
    assert_eq!(client.ask(OptionCode::LIST, &[]), [ack()]);
}

/// A client that does not read a long list holds a few kilobytes of it, not all.
#[test]
fn a_long_list_is_written_as_it_is_read() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    client.exports = (0..5000).map(|number| export(&format!("export-{number}"), number)).collect();
    let bytes = option(OptionCode::LIST, &[]);
    assert_eq!(client.handshake.process_bytes(&bytes, &client.exports), Ok(16));
    assert!(client.handshake.dispatch_bytes().len() < 10 << 10);
    assert_eq!(client.handshake.process_bytes(b"more", &client.exports), Ok(0), "nothing is read meanwhile");
    client.feed(&[]).expect("the rest");
    let replies = client.sent.windows(8).filter(|at| *at == 0x0003_e889_0455_65a9_u64.to_be_bytes()).count();
    assert_eq!(replies, 5001);
}

#[test]
fn info_says_what_go_then_serves() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    let flags = TransmissionFlags(0b1001_0110_1101);
    let sizes = BlockSizes::new(4096, 4096, PAYLOAD_BYTES_MAX).expect("sound");
    let replies = client.ask(OptionCode::INFO, &info("one", &[InfoCode::NAME, InfoCode(77), InfoCode::NAME]));
    let parsed: Vec<_> = replies.iter().map(|(code, data)| Reply::parse(*code, data).unwrap()).collect();
    let expected = [
        Reply::Info(Info::Export { size_bytes: 1 << 20, flags }),
        Reply::Info(Info::Name("one")),
        Reply::Info(Info::BlockSize(sizes)),
        Reply::Ack,
    ];
    assert_eq!(parsed, expected);
    assert_eq!(client.handshake.next(), Next::Read);
    // Structured replies bring DF; a read-only export takes no changes.
    assert_eq!(client.ask(OptionCode::STRUCTURED_REPLY, &[]), [ack()]);
    let replies = client.ask(OptionCode::GO, &info("two", &[InfoCode::DESCRIPTION]));
    let flags = TransmissionFlags(0b0001_1000_1111);
    let export = Reply::Info(Info::Export { size_bytes: 1 << 20, flags });
    assert_eq!(Reply::parse(replies[0].0, &replies[0].1), Ok(export));
    assert_eq!(replies[1].1, b"\0\x02text");
    let attach = Attach {
        export: exports()[1].clone(),
        structured: true,
        allocation: false,
        changed: false,
        secured: false,
    };
    assert_eq!(client.attached(), attach);
    // What follows belongs to the transmission.
    assert_eq!(client.feed(&[1, 2, 3]), Ok(0));
}

#[test]
fn info_and_go_refuse_what_they_cannot_serve() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    for code in [OptionCode::INFO, OptionCode::GO] {
        assert_eq!(client.refused(code, &info("none", &[])), ReplyCode::ERR_UNKNOWN);
        assert_eq!(
            client.refused(code, &info("", &[])),
            ReplyCode::ERR_UNKNOWN,
            "two: neither is the default"
        );
        assert_eq!(client.refused(code, &[]), ReplyCode::ERR_INVALID);
        assert_eq!(client.refused(code, b"\0\0\0\x03on\0\0\0"), ReplyCode::ERR_INVALID, "name too long");
        assert_eq!(client.refused(code, b"\0\0\0\x03one\0\x01"), ReplyCode::ERR_INVALID, "request missing");
        assert_eq!(client.refused(code, b"\0\0\0\x01\xff\0\0"), ReplyCode::ERR_INVALID, "not UTF-8");
    }
    client.exports.truncate(1);
    client.ask(OptionCode::GO, &info("", &[]));
    assert_eq!(client.attached().export.name(), "one", "the only one is the default");
}

#[test]
fn the_export_name_alone_begins_at_once() {
    for (flags, zeroes) in [(ClientFlags::NONE, 124), (FIXED, 124), (FIXED.with(ClientFlags::NO_ZEROES), 0)] {
        let mut client = Client::greeted(TlsPolicy::Off, flags);
        client.feed(&option(OptionCode::EXPORT_NAME, b"two")).expect("known");
        let reply = ExportNameReply::parse(&client.sent).expect("a reply");
        assert_eq!((reply.size_bytes, reply.flags.has(TransmissionFlags::READ_ONLY)), (1 << 20, true));
        assert_eq!(client.sent.len(), ExportNameReply::BYTES + zeroes);
        assert_eq!(client.attached().export.name(), "two");
    }
    let unknown = Client::greeted(TlsPolicy::Off, FIXED).feed(&option(OptionCode::EXPORT_NAME, b"six"));
    assert_eq!(unknown, Err(HandshakeError::UnknownExport { name: "six".into() }));
    let bad = Client::greeted(TlsPolicy::Off, FIXED).feed(&option(OptionCode::EXPORT_NAME, b"\0"));
    assert_eq!(bad, Err(HandshakeError::Option(ParseError::Text)));
}

#[test]
fn an_abort_is_acknowledged_whatever_it_carries() {
    for data in [&[][..], b"bye", &[0; OPTION_BYTES_MAX as usize + 1]] {
        let mut client = Client::greeted(TlsPolicy::Require, FIXED);
        assert_eq!(client.ask(OptionCode::ABORT, data), [ack()]);
        assert_eq!(client.handshake.next(), Next::Close);
    }
}

#[test]
fn unknown_options_are_refused_and_skipped() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    for code in [OptionCode::PEEK_EXPORT, OptionCode::EXTENDED_HEADERS, OptionCode(0), OptionCode(999)] {
        assert_eq!(client.refused(code, b"whatever"), ReplyCode::ERR_UNSUP);
    }
    assert_eq!(client.refused(OptionCode::STRUCTURED_REPLY, b"x"), ReplyCode::ERR_INVALID);
    assert_eq!(client.ask(OptionCode::STRUCTURED_REPLY, &[]), [ack()]);
}

#[test]
fn contexts_are_listed_and_selected() {
    let (list, set) = (OptionCode::LIST_META_CONTEXT, OptionCode::SET_META_CONTEXT);
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    let named =
        |id: u8, name: &str| (ReplyCode::META_CONTEXT, [&[0, 0, 0, id][..], name.as_bytes()].concat());
    let (context, changed) = (|id| named(id, "base:allocation"), |id| named(id, "tidegate:changed"));
    for code in [list, set] {
        let why = "structured replies come first";
        assert_eq!(client.refused(code, &meta("one", &["base:allocation"])), ReplyCode::ERR_INVALID, "{why}");
    }
    client.ask(OptionCode::STRUCTURED_REPLY, &[]);
    for code in [list, set] {
        assert_eq!(client.refused(code, &meta("none", &[])), ReplyCode::ERR_UNKNOWN);
        assert_eq!(client.refused(code, &meta("one", &["allocation"])), ReplyCode::ERR_INVALID);
        assert_eq!(client.refused(code, b"\0\0\0\x03one\0\0\0\x01"), ReplyCode::ERR_INVALID);
        assert_eq!(client.refused(code, b"\0\0\0\x03one\0\0\0\0tail"), ReplyCode::ERR_INVALID);
        let unknown = ["qemu:dirty-bitmap:x", "base:other", "x-y:z"];
        assert_eq!(client.ask(code, &meta("one", &unknown)), [ack()]);
    }
    assert_eq!(client.ask(list, &meta("one", &[])), [context(0), changed(0), ack()]);
    assert_eq!(client.ask(list, &meta("one", &["base:"])), [context(0), ack()]);
    assert_eq!(client.ask(set, &meta("one", &[])), [ack()], "no query, no context");
    assert_eq!(client.ask(set, &meta("one", &["base:"])), [ack()], "no wildcard here");
    assert_eq!(client.ask(set, &meta("one", &["x:y", "base:allocation"])), [context(1), ack()]);
    client.ask(OptionCode::GO, &info("one", &[]));
    let attach = client.attached();
    assert!(attach.allocation && !attach.changed && !attach.export.read_only);
}

/// docs/decisions/050.
#[test]
fn who_asks_what_changed_gets_that_alone_and_cannot_write() {
    let (list, set) = (OptionCode::LIST_META_CONTEXT, OptionCode::SET_META_CONTEXT);
    let context =
        |id: u8, name: &str| (ReplyCode::META_CONTEXT, [&[0, 0, 0, id][..], name.as_bytes()].concat());
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    client.ask(OptionCode::STRUCTURED_REPLY, &[]);
    let ours = [context(0, "tidegate:changed"), ack()];
    assert_eq!(
        client.ask(list, &meta("one", &["tidegate:"])),
        ours,
        "without an identity there is none to say"
    );
    assert_eq!(client.ask(list, &meta("one", &["tidegate:identity:"])), [ack()]);
    assert_eq!(client.ask(set, &meta("one", &["tidegate:", "tidegate:identity:"])), [ack()]);
    let both = ["base:allocation", "tidegate:changed"];
    assert_eq!(client.ask(set, &meta("one", &both)), [context(2, "tidegate:changed"), ack()]);
    client.ask(OptionCode::GO, &info("one", &[]));
    let attach = client.attached();
    assert!(attach.changed && !attach.allocation && attach.export.read_only);
}

#[test]
fn a_selection_holds_for_its_export_until_the_next() {
    let set = OptionCode::SET_META_CONTEXT;
    for (then, name, expected) in [
        (None, "one", true),
        (None, "two", false),
        (Some(meta("one", &["base:"])), "one", false),
        (Some(meta("none", &["base:allocation"])), "one", false),
        (Some(meta("two", &["base:allocation"])), "two", true),
    ] {
        let mut client = Client::greeted(TlsPolicy::Off, FIXED);
        client.ask(OptionCode::STRUCTURED_REPLY, &[]);
        client.ask(set, &meta("one", &["base:allocation"]));
        if let Some(then) = then {
            client.ask(set, &then);
        }
        client.ask(OptionCode::GO, &info(name, &[]));
        assert_eq!(client.attached().allocation, expected, "{name}");
    }
}

/// "TLS support", "NOTLS mode".
#[test]
fn without_tls_it_is_refused() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    assert_eq!(client.refused(OptionCode::STARTTLS, &[]), ReplyCode::ERR_POLICY);
}

/// "FORCEDTLS mode".
#[test]
fn with_tls_required_nothing_else_is_said_before_it() {
    let mut client = Client::greeted(TlsPolicy::Require, FIXED);
    for code in (3..12).map(OptionCode).filter(|&code| code != OptionCode::STARTTLS) {
        assert_eq!(client.refused(code, &info("one", &[])), ReplyCode::ERR_TLS_REQD, "{code}");
    }
    assert_eq!(client.refused(OptionCode(500), &[]), ReplyCode::ERR_TLS_REQD);
    let long = vec![0; OPTION_BYTES_MAX as usize + 1];
    assert_eq!(client.refused(OptionCode::GO, &long), ReplyCode::ERR_TLS_REQD);
    assert_eq!(client.refused(OptionCode::STARTTLS, b"x"), ReplyCode::ERR_INVALID);
    let named = Client::greeted(TlsPolicy::Require, FIXED).feed(&option(OptionCode::EXPORT_NAME, b"one"));
    assert_eq!(named, Err(HandshakeError::TlsRequired));
    assert_eq!(client.ask(OptionCode::STARTTLS, &[]), [ack()]);
    assert_eq!(client.handshake.next(), Next::StartTls);
    assert_eq!(client.feed(&[22, 3, 1]), Ok(0), "a hello of TLS is not ours");
    client.handshake.tls_started();
    assert_eq!(client.refused(OptionCode::STARTTLS, &[]), ReplyCode::ERR_INVALID);
    client.ask(OptionCode::GO, &info("one", &[]));
    assert!(client.attached().secured);
}

/// "the server MUST NOT preserve any negotiation state [...] issued before this command".
#[test]
fn tls_forgets_what_was_negotiated_before() {
    let mut client = Client::greeted(TlsPolicy::Allow, FIXED);
    client.ask(OptionCode::STRUCTURED_REPLY, &[]);
    client.ask(OptionCode::SET_META_CONTEXT, &meta("one", &["base:allocation"]));
    client.handshake.tls_started();
    assert_eq!(client.ask(OptionCode::STARTTLS, &[]), [ack()], "nobody started it before it was asked for");
    client.handshake.tls_started();
    client.ask(OptionCode::GO, &info("one", &[]));
    let attach = Attach {
        export: exports()[0].clone(),
        structured: false,
        allocation: false,
        changed: false,
        secured: true,
    };
    assert_eq!(client.attached(), attach);
    // And without TLS, where it is allowed, all is as ever.
    let mut client = Client::greeted(TlsPolicy::Allow, FIXED);
    client.ask(OptionCode::GO, &info("one", &[]));
    assert!(!client.attached().secured);
}

#[test]
fn clients_without_fixed_newstyle_may_only_name_an_export() {
    let mut client = Client::greeted(TlsPolicy::Off, ClientFlags::NONE);
    let refused = client.feed(&option(OptionCode::LIST, &[]));
    assert_eq!(refused, Err(HandshakeError::NotFixed { option: OptionCode::LIST }));
}

#[test]
fn long_and_endless_options_have_their_limits() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    let long = vec![0; OPTION_BYTES_MAX as usize + 1];
    assert_eq!(client.refused(OptionCode::GO, &long), ReplyCode::ERR_TOO_BIG);
    let data_bytes = OPTION_SKIP_BYTES_MAX + 1;
    let option_code = OptionCode::GO;
    let refused = client.feed(&OptionHeader { option: option_code, data_bytes }.octets());
    assert_eq!(refused, Err(HandshakeError::OptionBytes { option: option_code, data_bytes }));
    let data_bytes = OPTION_BYTES_MAX + 1;
    let option_code = OptionCode::EXPORT_NAME;
    let refused = Client::greeted(TlsPolicy::Off, FIXED)
        .feed(&OptionHeader { option: option_code, data_bytes }.octets());
    assert_eq!(refused, Err(HandshakeError::OptionBytes { option: option_code, data_bytes }));
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    for _ in 0..OPTIONS_MAX {
        client.ask(OptionCode::LIST, &[]);
    }
    assert_eq!(client.feed(&option(OptionCode::LIST, &[])), Err(HandshakeError::Options));
}

#[test]
fn something_else_than_an_option_ends_the_session() {
    let mut client = Client::greeted(TlsPolicy::Off, FIXED);
    let found = u64::from_be_bytes(*b"GET / HT");
    let refused = client.feed(b"GET / HTTP/1.1\r\n");
    assert_eq!(refused, Err(HandshakeError::Option(ParseError::Magic { found })));
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec!["one", "two", "none", ""]);
    let queries = prop::sample::subsequence(vec!["base:allocation", "base:", "x:y", "none"], 0..3);
    prop_oneof![
        (0u32..12, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(c, d)| option(OptionCode(c), &d)),
        (6u32..8, names.clone()).prop_map(|(c, name)| option(OptionCode(c), &info(name, &[InfoCode::NAME]))),
        (9u32..11, names, queries).prop_map(|(c, name, asked)| option(OptionCode(c), &meta(name, &asked))),
        prop::sample::select(vec![3u32, 5, 8]).prop_map(|code| option(OptionCode(code), &[])),
        Just(option(OptionCode(7), &vec![0; OPTION_BYTES_MAX as usize + 9])),
    ]
}

proptest! {
    /// However the client's bytes are cut, it hears the same and ends the same.
    #[test]
    fn chunking_changes_nothing(
        options in prop::collection::vec(any_option(), 0..12),
        flags in prop::sample::select(vec![1u32, 1, 1, 3, 0, 5]),
        cuts in prop::collection::vec(1usize..50, 1..20),
        tls in prop::sample::select(vec![TlsPolicy::Off, TlsPolicy::Allow, TlsPolicy::Require]),
    ) {
        let bytes = [&flags.to_be_bytes()[..], &options.concat()].concat();
        let mut whole = Client::new(tls);
        let whole_end = whole.feed(&bytes);
        let mut cut = Client::new(tls);
        let mut at = 0;
        let mut cut_end = Ok(0);
        for size in cuts.iter().cycle() {
            let end = bytes.len().min(at + size);
            match cut.feed(&bytes[at..end]) {
                Ok(taken) => at += taken,
                Err(error) => {
                    cut_end = Err(error);
                    break;
                }
            }
            cut_end = Ok(at);
            if at < end || at == bytes.len() {
                break;
            }
        }
        prop_assert_eq!(whole_end, cut_end);
        prop_assert!(whole.sent == cut.sent);
        prop_assert_eq!(whole.handshake.next(), cut.handshake.next());
    }
}
