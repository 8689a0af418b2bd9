//! An NVMe/TCP host, made of bytes as the standards draw them and of nothing of ours, and a subsystem in
//! memory for it.
#![allow(dead_code)] // each user takes a part of it

#[path = "../common/mod.rs"]
pub mod common;

use std::net::SocketAddr;

use block::{BlockSize, Io, VolumeId};
use common::{Image, Recorder};
use frame::{IoBuffer, IoPool};
use session::nvme_tcp::{Hosts, Namespace, Next, Queue, Setup, Slices, Subsystem, SubsystemLimits, Wait};

pub const NQN: &str = "nqn.2026-11.example.storage:one";
pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
pub const VOLUME: VolumeId = VolumeId(7);
pub const IDENTITY: [u8; 16] = [0xa1, 2, 3, 4, 5, 6, 0xf7, 8, 0xf9, 10, 11, 12, 13, 14, 15, 16];

/// CRC32C, bit by bit (RFC 3720, appendix B.4).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// What was agreed, seen from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    pub header_digest: bool,
    pub data_digest: bool,
    /// HPDA: dwords, less one.
    pub alignment: u8,
}

/// Where the data of a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    Capsule(u32),
    Host(u32),
}

/// A command of 64 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sqe(pub [u8; 64]);

impl Sqe {
    pub fn new(opcode: u8, id: u16, namespace: u32, sgl: Sgl) -> Sqe {
        let mut octets = [0; 64];
        (octets[0], octets[1]) = (opcode, 0x40);
        octets[2..4].copy_from_slice(&id.to_le_bytes());
        octets[4..8].copy_from_slice(&namespace.to_le_bytes());
        let (kind, length) = match sgl {
            Sgl::Capsule(length) => (0x01, length),
            Sgl::Host(length) => (0x5a, length),
        };
        octets[32..36].copy_from_slice(&length.to_le_bytes());
        octets[39] = kind;
        Sqe(octets)
    }

    /// Sets dword `number`.
    pub fn dword(mut self, number: usize, value: u32) -> Sqe {
        self.0[4 * number..4 * number + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Sets one byte.
    pub fn byte(mut self, at: usize, value: u8) -> Sqe {
        self.0[at] = value;
        self
    }

    /// Dwords 10 to 12 of commands with one range.
    pub fn range(self, lba: u64, blocks: u32) -> Sqe {
        self.dword(10, lba as u32).dword(11, (lba >> 32) as u32).dword(12, blocks - 1)
    }
}

pub fn read(id: u16, lba: u64, blocks: u32) -> Sqe {
    Sqe::new(0x02, id, 1, Sgl::Host(blocks * 512)).range(lba, blocks)
}

pub fn write(id: u16, lba: u64, blocks: u32, in_capsule: bool) -> Sqe {
    let sgl = if in_capsule { Sgl::Capsule(blocks * 512) } else { Sgl::Host(blocks * 512) };
    Sqe::new(0x01, id, 1, sgl).range(lba, blocks)
}

pub fn flush(id: u16) -> Sqe {
    Sqe::new(0x00, id, 1, Sgl::Host(0))
}

pub fn identify(id: u16, cns: u32, namespace: u32) -> Sqe {
    Sqe::new(0x06, id, namespace, Sgl::Host(4096)).dword(10, cns)
}

pub fn log_page(id: u16, page: u32, offset: u32, bytes: u32) -> Sqe {
    let dwords = bytes / 4 - 1;
    Sqe::new(0x02, id, 0, Sgl::Host(bytes)).dword(10, page | dwords << 16).dword(12, offset)
}

pub fn property_get(id: u16, offset: u32, is_long: bool) -> Sqe {
    Sqe::new(0x7f, id, 4, Sgl::Host(0)).dword(10, is_long.into()).dword(11, offset)
}

pub fn property_set(id: u16, offset: u32, value: u32) -> Sqe {
    Sqe::new(0x7f, id, 0, Sgl::Host(0)).dword(11, offset).dword(12, value)
}

/// What a Connect command asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub queue: u16,
    pub entries_less_one: u16,
    pub flags: u8,
    pub keep_alive_ms: u32,
    pub controller: u16,
    pub subsystem: &'static str,
    pub host: &'static str,
    pub host_id: u8,
}

pub const ADMIN: Wish = Wish {
    queue: 0,
    entries_less_one: 31,
    flags: 0,
    keep_alive_ms: 5000,
    controller: 0xffff,
    subsystem: NQN,
    host: HOST,
    host_id: 0x5c,
};

impl Wish {
    pub fn io(queue: u16, controller: u16) -> Wish {
        Wish { queue, entries_less_one: 127, keep_alive_ms: 0, controller, ..ADMIN }
    }

    pub fn command(&self) -> Sqe {
        let attributes = u32::from(self.entries_less_one) | u32::from(self.flags) << 16;
        Sqe::new(0x7f, 0x1234, 1, Sgl::Capsule(1024))
            .dword(10, u32::from(self.queue) << 16)
            .dword(11, attributes)
            .dword(12, self.keep_alive_ms)
    }

    pub fn data(&self) -> Vec<u8> {
        let mut data = vec![0; 1024];
        data[..16].fill(self.host_id);
        data[16..18].copy_from_slice(&self.controller.to_le_bytes());
        data[256..256 + self.subsystem.len()].copy_from_slice(self.subsystem.as_bytes());
        data[512..512 + self.host.len()].copy_from_slice(self.host.as_bytes());
        data
    }
}

/// ICReq.
pub fn hello(agreed: Agreed) -> Vec<u8> {
    let mut pdu = vec![0; 128];
    (pdu[2], pdu[4]) = (128, 128);
    pdu[10] = agreed.alignment;
    pdu[11] = u8::from(agreed.header_digest) | u8::from(agreed.data_digest) << 1;
    pdu
}

impl Agreed {
    fn pdu(&self, kind: u8, flags: u8, specific: &[u8], data: &[u8]) -> Vec<u8> {
        let header_bytes = 8 + specific.len();
        let head_bytes = header_bytes + if self.header_digest { 4 } else { 0 };
        let has_digest = self.data_digest && !data.is_empty();
        let whole = head_bytes + data.len() + if has_digest { 4 } else { 0 };
        let flags = flags | u8::from(self.header_digest) | u8::from(has_digest) << 1;
        let data_at = if data.is_empty() { 0 } else { head_bytes as u8 };
        let mut pdu = vec![kind, flags, header_bytes as u8, data_at];
        pdu.extend((whole as u32).to_le_bytes());
        pdu.extend(specific);
        if self.header_digest {
            pdu.extend(crc32c(&pdu).to_le_bytes());
        }
        pdu.extend(data);
        if has_digest {
            pdu.extend(crc32c(data).to_le_bytes());
        }
        pdu
    }

    /// CapsuleCmd.
    pub fn capsule(&self, command: Sqe, data: &[u8]) -> Vec<u8> {
        self.pdu(4, 0, &command.0, data)
    }

    /// H2CData.
    pub fn data(&self, command: u16, tag: u16, offset: u32, data: &[u8], is_last: bool) -> Vec<u8> {
        let mut specific = command.to_le_bytes().to_vec();
        specific.extend(tag.to_le_bytes());
        specific.extend(offset.to_le_bytes());
        specific.extend((data.len() as u32).to_le_bytes());
        specific.extend([0; 4]);
        self.pdu(6, u8::from(is_last) << 2, &specific, data)
    }

    /// Reads one unit from the front, with how long it is.
    pub fn parse(&self, bytes: &[u8]) -> (Reply, usize) {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let (kind, flags, header_bytes, data_at) = (bytes[0], bytes[1], bytes[2] as usize, bytes[3] as usize);
        let whole = u32_at(4) as usize;
        let is_agreed = !matches!(kind, 1 | 3);
        assert_eq!(flags & 1 != 0, is_agreed && self.header_digest, "HDGSTF");
        if is_agreed && self.header_digest {
            assert_eq!(u32_at(header_bytes), crc32c(&bytes[..header_bytes]), "header digest");
        }
        let reply = match kind {
            1 => Reply::Hello { alignment: bytes[10], digests: bytes[11], data_bytes_max: u32_at(12) },
            3 => {
                let header = bytes[24..whole].to_vec();
                Reply::Termination { status: u16_at(8), information: u32_at(10), header }
            }
            5 => Reply::Done {
                id: u16_at(20),
                status: u16_at(22) >> 1 & 0x7ff,
                do_not_retry: u16_at(22) >> 15 != 0,
                result: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
                head: u16_at(16),
            },
            7 => {
                assert_eq!(flags & 2 != 0, self.data_digest, "DDGSTF");
                assert!(data_at.is_multiple_of((usize::from(self.alignment) + 1) * 4), "HPDA");
                let length = u32_at(16) as usize;
                let data = &bytes[data_at..data_at + length];
                let end = data_at + length;
                if self.data_digest {
                    assert_eq!(u32_at(end), crc32c(data), "data digest");
                }
                assert_eq!(whole, end + if self.data_digest { 4 } else { 0 });
                let (is_last, is_success) = (flags & 4 != 0, flags & 8 != 0);
                Reply::Data { id: u16_at(8), offset: u32_at(12), data: data.to_vec(), is_last, is_success }
            }
            9 => Reply::Transfer { id: u16_at(8), tag: u16_at(10), offset: u32_at(12), length: u32_at(16) },
            kind => panic!("a unit of kind {kind}"),
        };
        (reply, whole)
    }
}

/// What a controller says.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    Hello { alignment: u8, digests: u8, data_bytes_max: u32 },
    Termination { status: u16, information: u32, header: Vec<u8> },
    Done { id: u16, status: u16, do_not_retry: bool, result: u64, head: u16 },
    Data { id: u16, offset: u32, data: Vec<u8>, is_last: bool, is_success: bool },
    Transfer { id: u16, tag: u16, offset: u32, length: u32 },
}

impl std::fmt::Debug for Reply {
    /// Without the data, which can be long.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Hello { alignment, digests, .. } => write!(f, "Hello {alignment} {digests}"),
            Reply::Termination { status, information, .. } => {
                write!(f, "Termination {status} {information:#x}")
            }
            Reply::Done { id, status, do_not_retry, result, .. } => {
                write!(f, "Done {id} {status:#x} {do_not_retry} {result:#x}")
            }
            Reply::Data { id, offset, data, is_success, .. } => {
                write!(f, "Data {id} {offset}+{} {is_success}", data.len())
            }
            Reply::Transfer { id, tag, length, .. } => write!(f, "Transfer {id} {tag} {length}"),
        }
    }
}

/// Drives a setup with `bytes`, `piece` bytes at a time; returns it, what it said, and what it did not take.
pub fn set_up(bytes: &[u8], piece: usize) -> (Setup, Vec<u8>, Vec<u8>) {
    let (mut setup, mut said, mut at) = (Setup::new(), Vec::new(), 0);
    while at < bytes.len() && setup.next() == Next::Read {
        let end = (at + piece).min(bytes.len());
        let took = setup.process_bytes(&bytes[at..end]);
        while !setup.dispatch_bytes().is_empty() {
            let bytes = setup.dispatch_bytes().len().min(piece);
            said.extend_from_slice(&setup.dispatch_bytes()[..bytes]);
            setup.sent(bytes);
        }
        match took {
            Ok(took) => at += took,
            Err(_) => break,
        }
    }
    (setup, said, bytes[at..].to_vec())
}

/// One connection that is a queue.
pub struct Conn {
    pub queue: Queue,
    pub agreed: Agreed,
    /// Bytes that were sent and are no whole unit.
    heard: Vec<u8>,
    /// Bytes that are handed over at once, either way.
    pub piece: usize,
}

/// A subsystem with one volume in memory.
pub struct Rig {
    pub subsystem: Subsystem,
    pub pool: IoPool,
    pub image: Image,
    pub sink: Recorder,
    pub now_ns: u64,
}

pub fn local() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 4420))
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(Hosts::Any, SubsystemLimits::default(), false, 40)
    }

    pub fn with(hosts: Hosts, limits: SubsystemLimits, read_only: bool, regions: u32) -> Rig {
        let image = Image::new(8 << 20, BlockSize::B512);
        let namespace = Namespace::new(VOLUME, image.block_size, image.blocks(), IDENTITY, read_only);
        let namespaces = vec![namespace.expect("sound")];
        let subsystem = Subsystem::new(NQN, "serial", hosts, namespaces, limits).expect("sound");
        Rig::of(subsystem, image, regions)
    }

    pub fn of(subsystem: Subsystem, image: Image, regions: u32) -> Rig {
        Rig { subsystem, pool: common::pool(regions), image, sink: Recorder::default(), now_ns: 1 }
    }

    /// Agrees, and connects a queue; returns the answer to Connect.
    pub fn connect(&mut self, agreed: Agreed, wish: Wish) -> (Conn, Reply) {
        self.connect_in_pieces(agreed, wish, usize::MAX >> 1)
    }

    pub fn connect_in_pieces(&mut self, agreed: Agreed, wish: Wish, piece: usize) -> (Conn, Reply) {
        let bytes = [hello(agreed), agreed.capsule(wish.command(), &wish.data())].concat();
        let (mut setup, said, rest) = set_up(&bytes, piece);
        let hello = Reply::Hello {
            alignment: 0,
            digests: u8::from(agreed.header_digest) | u8::from(agreed.data_digest) << 1,
            data_bytes_max: 1 << 20,
        };
        assert_eq!((Agreed::default().parse(&said), rest), ((hello, 128), vec![]));
        assert_eq!(setup.next(), Next::Attach);
        let attach = setup.attach().expect("once");
        assert_eq!((attach.subsystem(), attach.host()), (wish.subsystem, wish.host));
        let queue = Queue::new(*attach, local(), &mut self.subsystem, self.now_ns);
        let mut conn = Conn { queue, agreed, heard: Vec::new(), piece };
        let mut replies = self.run(&mut conn);
        assert_eq!(replies.len(), 1);
        (conn, replies.remove(0))
    }

    /// An admin queue of a controller that is enabled, and its number.
    pub fn admin(&mut self, agreed: Agreed) -> (Conn, u16) {
        let (mut conn, reply) = self.connect(agreed, ADMIN);
        let Reply::Done { status: 0, result, .. } = reply else { panic!("{reply:?}") };
        let enable = property_set(1, 0x14, 0x0046_0001);
        assert_eq!(self.status(&mut conn, enable, &[]), 0);
        (conn, result as u16)
    }

    /// An admin queue, and an I/O queue of its controller.
    pub fn both(&mut self, agreed: Agreed, flags: u8) -> (Conn, Conn) {
        let (admin, controller) = self.admin(agreed);
        let (conn, reply) = self.connect(agreed, Wish { flags, ..Wish::io(1, controller) });
        assert!(matches!(reply, Reply::Done { status: 0, .. }), "{reply:?}");
        (admin, conn)
    }

    pub fn step(&mut self, conn: &mut Conn) -> Wait {
        conn.queue.step(&mut self.subsystem, &mut self.pool, &mut self.sink, self.now_ns)
    }

    /// Answers one I/O as the image does.
    pub fn answer(&mut self, conn: &mut Conn, io: Io<IoBuffer>) {
        let done = self.image.execute(io, &mut self.pool);
        conn.queue.complete(done, &mut self.pool).expect("it was handed out");
    }

    /// What is sent, at most one piece; false if there is nothing.
    pub fn send(&mut self, conn: &mut Conn) -> bool {
        let mut slices = Slices::new();
        conn.queue.dispatch_bytes(&self.pool, &mut slices);
        let shown: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        drop(slices);
        let bytes = shown.len().min(conn.piece);
        conn.heard.extend_from_slice(&shown[..bytes]);
        conn.queue.sent(bytes, &mut self.pool);
        bytes > 0
    }

    /// Works until nothing moves; returns what the host heard.
    pub fn run(&mut self, conn: &mut Conn) -> Vec<Reply> {
        loop {
            self.step(conn);
            let ios = std::mem::take(&mut self.sink.ios);
            let moved = !ios.is_empty();
            ios.into_iter().for_each(|io| self.answer(conn, io));
            if !self.send(conn) && !moved {
                return conn.replies();
            }
        }
    }

    /// Hands all of `bytes` in, works, and returns what the host heard.
    pub fn exchange(&mut self, conn: &mut Conn, bytes: &[u8]) -> Vec<Reply> {
        let (mut at, mut replies) = (0, Vec::new());
        while at < bytes.len() {
            let end = (at + conn.piece).min(bytes.len());
            let took = conn.queue.process_bytes(&bytes[at..end], &mut self.pool, self.now_ns);
            at += took;
            let heard = self.run(conn);
            assert!(took > 0 || !heard.is_empty(), "stuck at byte {at} of {}", bytes.len());
            replies.extend(heard);
        }
        replies.extend(self.run(conn));
        replies
    }

    /// Sends a command and, when it is asked for, its payload; returns what is said of it.
    pub fn ask(&mut self, conn: &mut Conn, command: Sqe, payload: &[u8]) -> Vec<Reply> {
        let in_capsule = command.0[39] == 0x01;
        let capsule = conn.agreed.capsule(command, if in_capsule { payload } else { &[] });
        let mut replies = self.exchange(conn, &capsule);
        if let [Reply::Transfer { id, tag, offset: 0, length }] = replies[..] {
            assert_eq!(length as usize, payload.len());
            let data = conn.agreed.data(id, tag, 0, payload, true);
            replies = self.exchange(conn, &data);
        }
        replies
    }

    /// The status of a command whose answer has no data.
    pub fn status(&mut self, conn: &mut Conn, command: Sqe, payload: &[u8]) -> u16 {
        let replies = self.ask(conn, command, payload);
        let [Reply::Done { status, .. }] = replies[..] else { panic!("{replies:?}") };
        status
    }

    /// The data that a command is answered with.
    pub fn data(&mut self, conn: &mut Conn, command: Sqe) -> Vec<u8> {
        let mut replies = self.ask(conn, command, &[]);
        assert!(matches!(replies.last(), Some(Reply::Done { status: 0, .. }) | Some(Reply::Data { .. })));
        let Reply::Data { data, offset: 0, is_last: true, .. } = replies.remove(0) else { panic!() };
        data
    }

    /// Gives a queue up; its place is free when its I/Os are answered.
    pub fn end(&mut self, conn: &mut Conn) {
        conn.queue.abort(&mut self.pool);
        if conn.queue.is_finished() {
            conn.queue.leave(&mut self.subsystem);
        }
    }

    /// Ends the queues and finds every buffer at home. I/Os that are out are answered afterwards.
    pub fn finish(mut self, conns: Vec<Conn>) {
        let ios = std::mem::take(&mut self.sink.ios);
        let mut conns = conns;
        for conn in &mut conns {
            self.end(conn);
            assert!(!conn.queue.has_output());
            assert_eq!(
                (conn.queue.held_bytes(), conn.queue.is_finished()),
                (0, conn.queue.outstanding() == 0)
            );
        }
        for io in ios {
            let out = conns.iter_mut().find(|conn| conn.queue.outstanding() > 0);
            self.answer(out.expect("somebody's"), io);
        }
        assert!(conns.iter().all(|conn| conn.queue.is_finished()));
        let regions = self.pool.slab().regions() as usize;
        let all: Vec<_> = std::iter::from_fn(|| self.pool.alloc(1 << 20)).collect();
        // A pool may keep one region cut into pages.
        assert!(all.len() + 1 >= regions, "{} of {regions} regions came home", all.len());
        all.into_iter().for_each(|buffer| self.pool.free(buffer));
    }
}

impl Conn {
    /// Whole units that were sent.
    pub fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while self.heard.len() >= 8 {
            let whole = u32::from_le_bytes(self.heard[4..8].try_into().expect("4 bytes")) as usize;
            if self.heard.len() < whole {
                break;
            }
            let (reply, bytes) = self.agreed.parse(&self.heard);
            self.heard.drain(..bytes);
            replies.push(reply);
        }
        replies
    }
}
