//! docs/protocols.md, asked for: every number of every table there is served or refused as it says.

mod nvme_common;

use std::collections::BTreeMap;

use block::{BlockSize, VolumeId};
use nvme_common::common::{Image, request};
use nvme_common::{
    ADMIN, Agreed, Conn, DISCOVERY, Reply, Rig, Sgl, Sqe, Wish, common, flush, identify, log_page,
    property_get, property_set, read, write,
};
use session::nbd::{Export, Handshake, Next, TlsPolicy};
use session::nvme_tcp::{Subsystem, SubsystemLimits};
use wire::nbd::handshake::{
    ClientFlags, InfoCode, InfoRequest, MetaContextRequest, OptionCode, OptionHeader, OptionReplyHeader,
};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };
const PAGE: &str = include_str!("../../../docs/protocols.md");

/// A table: what it says of a number, by column after the name.
struct Table {
    rows: BTreeMap<u32, Vec<String>>,
    others: Vec<String>,
}

impl Table {
    fn of(section: &str, heading: &str) -> Table {
        let (_, protocol) = PAGE.split_once(&format!("\n## {section}\n")).expect("the page has the protocol");
        let (_, rest) = protocol.split_once(&format!("\n### {heading}\n")).expect("the page has the table");
        let lines = rest.lines().skip_while(|line| !line.starts_with('|')).skip(2);
        let mut table = Table { rows: BTreeMap::new(), others: Vec::new() };
        for line in lines.take_while(|line| line.starts_with('|')) {
            let cells: Vec<_> =
                line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            if cells[0] == "every other" {
                table.others = cells[2..].to_vec();
                continue;
            }
            for number in numbers(&cells[0]) {
                let before = table.rows.insert(number, cells[2..].to_vec());
                assert!(before.is_none(), "{heading}: {number:#x} stands there twice");
            }
        }
        assert!(table.rows.len() > 4 && !table.others.is_empty(), "{heading} is whole");
        table
    }

    fn says(&self, number: u32, column: usize) -> &str {
        &self.rows.get(&number).unwrap_or(&self.others)[column]
    }
}

/// "02h", "4, 11" or "1Ch–1Eh": hexadecimal where it ends with h.
fn numbers(cell: &str) -> Vec<u32> {
    let number = |text: &str| match text.strip_suffix('h') {
        Some(digits) => u32::from_str_radix(digits, 16).expect("digits"),
        None => text.parse().expect("digits"),
    };
    let range = |part: &str| match part.split_once('–') {
        Some((first, last)) => number(first)..=number(last),
        None => number(part)..=number(part),
    };
    cell.split(", ").flat_map(range).collect()
}

/// A storage controller, or one of discovery, that is enabled.
struct Host {
    rig: Rig,
    admin: Conn,
    io: Option<Conn>,
}

impl Host {
    fn storage() -> Host {
        let mut rig = Rig::new();
        let (admin, io) = rig.both(PLAIN, 0);
        Host { rig, admin, io: Some(io) }
    }

    /// Without I/O queues.
    fn new(discovery: bool) -> Host {
        let mut rig = Rig::new();
        if discovery {
            let subsystem = Subsystem::discovery(Vec::new(), SubsystemLimits::default());
            rig = Rig::of(subsystem, Image::new(4096, BlockSize::B512), 8);
        }
        let wish = if discovery { Wish { subsystem: DISCOVERY, ..ADMIN } } else { ADMIN };
        let (mut admin, _) = rig.connect(PLAIN, wish);
        assert_eq!(rig.status(&mut admin, property_set(1, 0x14, 0x0046_0001), &[]), 0);
        Host { rig, admin, io: None }
    }

    /// What the page is to say of the answer.
    fn ask(&mut self, on_io: bool, command: Sqe, payload: &[u8]) -> String {
        let conn = if on_io { self.io.as_mut().expect("a queue") } else { &mut self.admin };
        match self.rig.ask(conn, command, payload)[..] {
            [] | [Reply::Done { status: 0, .. }] | [Reply::Data { .. }, Reply::Done { status: 0, .. }] => {
                "served".to_owned()
            }
            [Reply::Done { status, do_not_retry: true, .. }] => format!("{status:03X}h"),
            ref other => panic!("{other:?}"),
        }
    }

    fn end(self) {
        self.rig.finish(std::iter::once(self.admin).chain(self.io).collect());
    }
}

#[test]
fn every_admin_command_is_served_or_refused_as_the_page_says() {
    let table = Table::of("NVMe/TCP", "Admin commands");
    for (column, discovery) in [(0, false), (1, true)] {
        let mut host = Host::new(discovery);
        for opcode in 0..=0xff_u8 {
            let command = match opcode {
                0x02 => log_page(1, 1, 0, 64),
                0x06 => identify(1, 1, 0),
                0x09 => Sqe::new(0x09, 1, 0, Sgl::Host(0)).dword(10, 0x0b),
                0x0a => Sqe::new(0x0a, 1, 0, Sgl::Host(0)).dword(10, 0x0b),
                0x7f => property_get(1, 0, true),
                other => Sqe::new(other, 1 + u16::from(other == 0x0c), 0, Sgl::Host(0)),
            };
            let said = table.says(opcode.into(), column);
            assert_eq!(host.ask(false, command, &[]), said, "{opcode:#x}, discovery: {discovery}");
        }
        host.end();
    }
}

#[test]
fn every_io_command_is_served_or_refused_as_the_page_says() {
    let table = Table::of("NVMe/TCP", "I/O commands");
    let mut host = Host::storage();
    for opcode in 0..=0xff_u8 {
        let (command, payload) = match opcode {
            0x00 => (flush(1), 0),
            0x01 => (write(1, 0, 1, true), 512),
            0x02 => (read(1, 0, 1), 0),
            0x05 => (Sqe::new(0x05, 1, 1, Sgl::Capsule(512)).range(0, 1), 512),
            0x09 => (Sqe::new(0x09, 1, 1, Sgl::Capsule(16)).dword(11, 0b100), 16),
            // Disconnect: the last one, so that there is a queue for the others.
            0x7f => continue,
            other => (Sqe::new(other, 1, 1, Sgl::Host(0)).range(0, 1), 0),
        };
        assert_eq!(host.ask(true, command, &vec![0; payload]), table.says(opcode.into(), 0), "{opcode:#x}");
    }
    assert_eq!(host.ask(true, Sqe::new(0x7f, 1, 8, Sgl::Host(0)), &[]), table.says(0x7f, 0));
    host.end();
}

#[test]
fn every_fabrics_command_is_served_or_refused_as_the_page_says() {
    let table = Table::of("NVMe/TCP", "Fabrics commands");
    for on_io in [false, true] {
        for kind in 0..=0xff {
            let command = match kind {
                0 => property_set(1, 0x14, 0x0046_0001),
                other => Sqe::new(0x7f, 1, other, Sgl::Host(0)).dword(11, 0x14),
            };
            let mut host = Host::storage();
            assert_eq!(
                host.ask(on_io, command, &[]),
                table.says(kind, on_io.into()),
                "{kind:#x}, I/O: {on_io}"
            );
            host.end();
        }
    }
}

#[test]
fn every_property_is_served_or_refused_as_the_page_says() {
    let table = Table::of("NVMe/TCP", "Properties");
    let mut host = Host::new(false);
    for offset in (0..0x1000).step_by(4) {
        let got = [false, true].map(|is_long| host.ask(false, property_get(1, offset, is_long), &[]));
        let served = got.iter().position(|answer| answer == "served").unwrap_or(0);
        assert_eq!(got[served], table.says(offset, 0), "get {offset:#x}");
        assert!(got[1 - served] != "served", "{offset:#x} has one length");
        let set = property_set(1, offset, 0x0046_0001);
        let set = [host.ask(false, set, &[]), host.ask(false, set.dword(10, 1), &[])];
        assert_eq!((set[0].as_str(), set[1].as_str()), (table.says(offset, 1), "002h"), "set {offset:#x}");
    }
    host.end();
}

#[test]
fn every_page_of_identify_and_every_log_is_served_or_refused_as_the_page_says() {
    let (structures, logs) = (Table::of("NVMe/TCP", "Identify"), Table::of("NVMe/TCP", "Log pages"));
    for (column, discovery) in [(0, false), (1, true)] {
        let mut host = Host::new(discovery);
        for number in 0..=0xff {
            let namespace = u32::from(matches!(number, 0 | 3 | 5 | 8));
            let told = host.ask(false, identify(1, number, namespace), &[]);
            assert_eq!(told, structures.says(number, column), "CNS {number:#x}, discovery: {discovery}");
            let told = host.ask(false, log_page(1, number, 0, 16), &[]);
            assert_eq!(told, logs.says(number, column), "LID {number:#x}, discovery: {discovery}");
        }
        // What the controller says of itself is the same.
        let listed = host.rig.data(&mut host.admin, log_page(1, 0, 0, 1024));
        for number in 0..=0xff {
            let is_listed = listed[4 * number] & 1 == 1;
            assert_eq!(is_listed, logs.says(number as u32, column) == "served", "LID {number:#x}");
        }
        host.end();
    }
}

#[test]
fn every_feature_is_served_or_refused_as_the_page_says() {
    let table = Table::of("NVMe/TCP", "Features");
    for (column, discovery) in [(0, false), (2, true)] {
        let mut host = Host::new(discovery);
        for number in 0..=0xff {
            let get = match number {
                0x81 => Sqe::new(0x0a, 1, 0, Sgl::Host(16)).dword(11, 1),
                _ => Sqe::new(0x0a, 1, 0, Sgl::Host(0)),
            };
            let set = Sqe::new(0x09, 1, 0, Sgl::Host(0)).dword(10, number);
            let told = [host.ask(false, get.dword(10, number), &[]), host.ask(false, set, &[])];
            let said = [table.says(number, column), table.says(number, column + 1)];
            assert_eq!(told, said, "FID {number:#x}, discovery: {discovery}");
        }
        let listed = host.rig.data(&mut host.admin, log_page(1, 0x12, 0, 1024));
        for number in 0..=0xff {
            let is_listed = listed[4 * number] & 1 == 1;
            assert_eq!(is_listed, table.says(number as u32, column) == "served", "FID {number:#x}");
        }
        host.end();
    }
}

#[test]
fn the_log_of_effects_says_the_same_of_commands() {
    let mut host = Host::storage();
    let log = host.rig.data(&mut host.admin, log_page(1, 5, 0, 4096));
    for (heading, at) in [("Admin commands", 0), ("I/O commands", 1024)] {
        let table = Table::of("NVMe/TCP", heading);
        for opcode in 0..=0xff {
            let is_listed = log[at + 4 * opcode] & 1 == 1;
            assert_eq!(is_listed, table.says(opcode as u32, 0) == "served", "{heading}: {opcode:#x}");
        }
    }
    host.end();
}

/// What an option is answered with, of a client that has agreed on structured replies.
fn option(tls: TlsPolicy, code: u32) -> String {
    let export = Export::new("one", "text", VolumeId(1), BlockSize::B4096, 256).expect("sound");
    let mut data = [0; 64];
    let data_bytes = match OptionCode(code) {
        OptionCode::EXPORT_NAME => {
            data[..3].copy_from_slice(b"one");
            3
        }
        OptionCode::INFO | OptionCode::GO => {
            InfoRequest::emit("one", &[InfoCode::EXPORT], &mut data).expect("there is room");
            4 + 3 + 2 + 2
        }
        OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
            MetaContextRequest::emit("one", &["base:allocation"], &mut data).expect("there is room");
            4 + 3 + 4 + 4 + 15
        }
        _ => 0,
    };
    let header = |option, data_bytes| OptionHeader { option, data_bytes }.octets();
    let structured = header(OptionCode::STRUCTURED_REPLY, 0);
    let asked = header(OptionCode(code), data_bytes);
    let flags = ClientFlags::FIXED_NEWSTYLE.octets();
    let pieces = [&flags[..], &structured, &asked, &data[..data_bytes as usize]];
    let (mut handshake, exports) = (Handshake::new(tls), [export]);
    let mut heard = Vec::new();
    for piece in pieces {
        let mut at = 0;
        loop {
            let took = handshake.process_bytes(&piece[at..], &exports).expect("sound");
            let bytes = handshake.dispatch_bytes().to_vec();
            handshake.sent(bytes.len());
            at += took;
            if took + bytes.len() == 0 {
                break;
            }
            heard.extend(bytes);
        }
    }
    if OptionCode(code) == OptionCode::EXPORT_NAME {
        assert!(matches!(handshake.next(), Next::Attach(_)), "{:?}", handshake.next());
        return "served".to_owned();
    }
    // Behind the greeting and the answer about structured replies.
    let first = OptionReplyHeader::parse(&heard[18 + OptionReplyHeader::BYTES..]).expect("a reply");
    assert_eq!(first.option, OptionCode(code));
    if first.code.0 >> 31 == 0 { "served".to_owned() } else { first.code.to_string() }
}

#[test]
fn every_option_of_nbd_is_served_or_refused_as_the_page_says() {
    let table = Table::of("NBD", "Options");
    for (column, tls) in [(0, TlsPolicy::Off), (1, TlsPolicy::Allow)] {
        for code in (0..=0xff).chain([1 << 16, u32::MAX]) {
            assert_eq!(option(tls, code), table.says(code, column), "option {code}, {tls:?}");
        }
    }
}

#[test]
fn every_command_of_nbd_and_every_flag_is_served_or_refused_as_the_page_says() {
    let table = Table::of("NBD", "Commands");
    let names = ["FUA", "NO_HOLE", "DF", "REQ_ONE", "FAST_ZERO"];
    for code in 0..=0xff {
        let command = Command(code);
        let length_bytes = if command == Command::FLUSH { 0 } else { 4096 };
        let payload = if command == Command::WRITE { vec![1; 4096] } else { vec![] };
        let mut rig = common::Rig::new(true, |_, _| {});
        let (flags, said) = (table.says(code.into(), 0), table.says(code.into(), 1));
        if command == Command::DISC {
            assert_eq!(
                (rig.feed(&request(command, CommandFlags::NONE, 1, 0, 0).octets()), said),
                (28, "served")
            );
            assert!(rig.session.is_finished(), "it has no answer");
            continue;
        }
        let mut told = |flags: CommandFlags| {
            let answer = rig.ask(request(command, flags, 1, 0, length_bytes), &payload);
            if answer.error == ErrorCode::OK { "served".to_owned() } else { answer.error.to_string() }
        };
        assert_eq!(told(CommandFlags::NONE), said, "command {code}");
        for bit in 0..16 {
            let is_known = names.get(bit).is_some_and(|name| flags.split(", ").any(|flag| flag == *name));
            let wanted = if is_known { said } else { "NBD_EINVAL" };
            assert_eq!(told(CommandFlags(1 << bit)), wanted, "command {code}, flag {bit}");
        }
        rig.finish();
    }
}

#[test]
fn every_transmission_flag_is_set_as_the_page_says() {
    let table = Table::of("NBD", "Transmission flags");
    for (column, read_only) in [(0, false), (1, true)] {
        let mut export = Export::new("one", "text", VolumeId(1), BlockSize::B4096, 256).expect("sound");
        export.read_only = read_only;
        let (structured, mut data) = ([0, 0, 0, 8], [0; 16]);
        InfoRequest::emit("one", &[], &mut data).expect("there is room");
        let magic = *b"IHAVEOPT";
        let option = |code: [u8; 4], data: &[u8]| {
            [&magic[..], &code, &(data.len() as u32).to_be_bytes(), data].concat()
        };
        let bytes = [&[0, 0, 0, 1][..], &option(structured, &[]), &option([0, 0, 0, 6], &data[..9])].concat();
        let (mut handshake, mut heard, mut at) = (Handshake::new(TlsPolicy::Off), Vec::new(), 0);
        loop {
            let took = handshake.process_bytes(&bytes[at..], std::slice::from_ref(&export)).expect("sound");
            let said = handshake.dispatch_bytes().to_vec();
            handshake.sent(said.len());
            at += took;
            if took + said.len() == 0 {
                break;
            }
            heard.extend(said);
        }
        // NBD_INFO_EXPORT: type, size, flags, behind the greeting, an acknowledgement and the head of the reply.
        let info = &heard[18 + 20 + 20..];
        assert_eq!(info[..2], [0, 0]);
        let flags = u16::from_be_bytes([info[10], info[11]]);
        for bit in 0..16 {
            let said = table.says(bit, column);
            assert_eq!(flags >> bit & 1 == 1, said == "set", "bit {bit}, read-only: {read_only}");
        }
    }
}
