//! NBD: what is said on the wire, and both machines of the target under any client.

use std::hint::black_box;

use session::nbd::{Export, Handshake, Next, TlsPolicy};
use wire::nbd::handshake as hs;
use wire::nbd::transmission::{self as tx, Command, CommandFlags};

#[path = "../../dataplane/session/tests/common/mod.rs"]
mod common;

use common::{Answer, Image, Rig};

/// Every message: what is read and written again are the same bytes.
pub fn nbd_wire(bytes: &[u8]) {
    if let Ok(read) = hs::Greeting::parse(bytes) {
        assert_eq!(read.octets(), bytes[..hs::Greeting::BYTES]);
    }
    if let Ok(read) = hs::OptionHeader::parse(bytes) {
        assert_eq!(read.octets(), bytes[..hs::OptionHeader::BYTES]);
    }
    if let Ok(read) = tx::Request::parse(bytes) {
        assert_eq!(read.octets(), bytes[..tx::Request::BYTES]);
    }
    if let Ok(read) = tx::SimpleReply::parse(bytes) {
        assert_eq!(read.octets(), bytes[..tx::SimpleReply::BYTES]);
    }
    if let Ok(read) = hs::ExportNameReply::parse(bytes) {
        assert_eq!(read.octets(), bytes[..hs::ExportNameReply::BYTES]);
    }
    let mut out = vec![0; bytes.len() + hs::OptionReplyHeader::BYTES];
    if let Ok(read) = hs::InfoRequest::parse(bytes) {
        let wanted: Vec<_> = read.wanted().collect();
        let len = hs::InfoRequest::emit(read.name, &wanted, &mut out).expect("there is room");
        assert_eq!(out[..len], *bytes);
    }
    if let Ok(read) = hs::MetaContextRequest::parse(bytes) {
        let queries: Vec<_> = read.queries().collect();
        let len = hs::MetaContextRequest::emit(read.name, &queries, &mut out).expect("there is room");
        assert_eq!(out[..len], *bytes);
    }
    if let Ok(header) = hs::OptionReplyHeader::parse(bytes) {
        assert_eq!(header.octets(), bytes[..hs::OptionReplyHeader::BYTES]);
        let data = &bytes[hs::OptionReplyHeader::BYTES..];
        if let Ok(reply) = hs::Reply::parse(header.code, data) {
            let len = reply.emit(header.option, &mut out).expect("there is room");
            // The payload of information that is not known here is not kept.
            if !matches!(reply, hs::Reply::Info(hs::Info::Other(_))) {
                assert_eq!(out[hs::OptionReplyHeader::BYTES..len], *data);
            }
        }
    }
    if let Ok(header) = tx::ChunkHeader::parse(bytes) {
        assert_eq!(header.octets(), bytes[..tx::ChunkHeader::BYTES]);
        let payload = &bytes[tx::ChunkHeader::BYTES..];
        let header = tx::ChunkHeader { payload_bytes: payload.len() as u32, ..header };
        if let Ok(tx::ChunkPayload::BlockStatus { descriptors, .. }) =
            black_box(tx::ChunkPayload::parse(&header, payload))
        {
            assert!(descriptors.iter().all(|descriptor| descriptor.length_bytes > 0));
        }
    }
}

/// Any client's bytes up to the choice of an export, cut in two at any place: the same answers.
pub fn nbd_handshake(bytes: &[u8]) {
    let [choice, cut, bytes @ ..] = bytes else { return };
    let tls = [TlsPolicy::Off, TlsPolicy::Allow, TlsPolicy::Require][usize::from(*choice % 3)];
    let export = |name, volume| {
        Export::new(name, "text", block::VolumeId(volume), block::BlockSize::B512, 8).expect("sound")
    };
    let exports = [export("a", 1), export("b", 2)];
    let exports = if choice & 4 == 0 { &exports[..] } else { &exports[..1] };
    let talk = |pieces: &[&[u8]]| {
        let mut handshake = Handshake::new(tls);
        let (mut said, mut left) = (Vec::new(), Vec::new());
        for piece in pieces {
            left.extend_from_slice(piece);
            loop {
                let taken = match handshake.process_bytes(&left, exports) {
                    Ok(taken) => taken,
                    Err(error) => return (said, Err(error)),
                };
                left.drain(..taken);
                let sent = handshake.dispatch_bytes().to_vec();
                handshake.sent(sent.len());
                said.extend_from_slice(&sent);
                if handshake.next() == Next::StartTls {
                    handshake.tls_started();
                } else if taken + sent.len() == 0 {
                    break;
                }
            }
        }
        if let Next::Attach(attach) = handshake.next() {
            assert!(attach.secured || tls != TlsPolicy::Require, "an export without TLS, which is required");
            assert!(!attach.secured || tls != TlsPolicy::Off, "TLS where there is none");
        }
        (said, Ok(handshake.next()))
    };
    let (head, tail) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    assert_eq!(talk(&[bytes]), talk(&[head, tail]));
}

/// Any sequence of requests, credits, answers in any order, failures and partial sends: every request is answered
/// once, and every buffer comes home.
///
/// Five bytes make one step: four shape a request close to what is sound, one says what else happens.
pub fn nbd_transmission(bytes: &[u8]) {
    let [choice, steps @ ..] = bytes else { return };
    let structured = choice & 1 != 0;
    let image = Image::new(3 << 20, block::BlockSize::B512);
    let mut rig = Rig::with(image, structured, 8, |attach, limits| {
        attach.export.read_only = choice & 2 != 0;
        attach.allocation = choice & 4 != 0;
        limits.requests_max = 4;
    });
    let mut waiting = Vec::new();
    let mut reads = Vec::new();
    for step in steps.chunks_exact(5) {
        let length_bytes = match step[3] % 4 {
            0 => 512,
            1 => u32::from(step[2]) << 8,
            2 => 1 << 20,
            _ => u32::from(step[2]) << 14,
        };
        let at = u64::from(step[1]) << 14;
        let flags = if step[3] & 16 != 0 { step[4] & 31 } else { 0 };
        let cookie = reads.len() as u64;
        reads.push(length_bytes as usize);
        let (command, flags) = (Command(u16::from(step[0] % 9)), CommandFlags(u16::from(flags)));
        waiting.extend(common::request(command, flags, cookie, at, length_bytes).octets());
        if command == Command::WRITE {
            waiting.resize(waiting.len() + length_bytes as usize, step[1]);
        }
        rig.sink.credits = usize::from(step[4] >> 5);
        if let (true, count) = (step[3] & 32 != 0, rig.sink.ios.len()) {
            if count > 0 {
                let io = rig.sink.ios.swap_remove(usize::from(step[4]) % count);
                rig.answer(io);
            }
        }
        rig.image.fault = (step[3] & 64 != 0).then_some((block::Lba(at >> 9), block::Status::NoSpace));
        let taken = rig.feed(&waiting);
        waiting.drain(..taken);
        rig.step();
        rig.send(usize::from(step[2]) << 4);
    }
    rig.sink.credits = usize::MAX;
    if choice & 8 != 0 {
        return rig.finish();
    }
    while !waiting.is_empty() {
        rig.run();
        let taken = rig.feed(&waiting);
        waiting.drain(..taken);
        for io in std::mem::take(&mut rig.sink.ios) {
            rig.answer(io);
        }
    }
    rig.run();
    // A disconnect ends the talk; what came before it has been answered.
    let answers =
        Answer::parse(&rig.sent, |cookie| reads[cookie as usize] * usize::from(is_read(steps, cookie)));
    let mut cookies: Vec<u64> = answers.iter().map(|answer| answer.cookie).collect();
    cookies.sort_unstable();
    let end = steps.chunks_exact(5).position(|step| step[0] % 9 == Command::DISC.0 as u8);
    assert!(answers.iter().all(|answer| answer.done));
    assert!(cookies.into_iter().eq(0..end.unwrap_or(reads.len()) as u64));
    assert_eq!(rig.session.is_finished(), end.is_some());
    rig.finish();
}

fn is_read(steps: &[u8], cookie: u64) -> bool {
    steps[cookie as usize * 5] % 9 == Command::READ.0 as u8
}
