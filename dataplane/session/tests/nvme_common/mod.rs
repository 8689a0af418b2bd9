//! A subsystem in memory, and an NVMe/TCP host for it.
#![allow(dead_code)] // each user takes a part of it

#[path = "../common/mod.rs"]
pub mod common;
pub mod host;

use std::net::SocketAddr;

use block::{BlockSize, Io, VolumeId};
use common::{Image, Recorder};
use frame::{IoBuffer, IoPool};
use session::nvme_tcp::{Hosts, Namespace, Next, Queue, Setup, Slices, Subsystem, SubsystemLimits, Wait};

pub use host::*;

pub const VOLUME: VolumeId = VolumeId(7);
pub const IDENTITY: [u8; 16] = [0xa1, 2, 3, 4, 5, 6, 0xf7, 8, 0xf9, 10, 11, 12, 13, 14, 15, 16];

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
