//! A volume in memory and a sink that records, for tests and fuzzing.
#![allow(dead_code)] // each user takes a part of it

use block::{BlockSize, Done, Extent, Io, Lba, Op, Status, VolumeId};
use frame::{IoBuffer, IoPool, IoSlab, IoSlabConfig};
use session::Sink;
use session::nbd::{Attach, Export, Limits, Slices, Transmission, Wait};
use wire::nbd::transmission::{
    AllocationFlags, ChunkFlags, ChunkHeader, ChunkPayload, Command, CommandFlags, ErrorCode, Request,
    SimpleReply,
};

/// Bytes of a page: what is allocated or not.
pub const PAGE: usize = 4096;

/// A pool of `regions` MiB.
pub fn pool(regions: u32) -> IoPool {
    let slab = IoSlab::new(IoSlabConfig { regions, hugepages: false }).expect("maps");
    IoPool::new(&slab, regions)
}

/// A volume in memory: reads of what was never written are zeroes.
pub struct Image {
    pub bytes: Vec<u8>,
    pub allocated: Vec<bool>,
    pub block_size: BlockSize,
    pub flushes: u64,
    /// Answers I/Os that touch this block with this status.
    pub fault: Option<(Lba, Status)>,
}

impl Image {
    pub fn new(bytes: usize, block_size: BlockSize) -> Image {
        let allocated = vec![false; bytes.div_ceil(PAGE)];
        Image { bytes: vec![0; bytes], allocated, block_size, flushes: 0, fault: None }
    }

    pub fn blocks(&self) -> u64 {
        self.bytes.len() as u64 >> self.block_size.shift()
    }

    /// Carries out `io` at once.
    pub fn execute(&mut self, mut io: Io<IoBuffer>, pool: &mut IoPool) -> Done<IoBuffer> {
        let buffer_bytes = io.buffer.as_ref().map_or(0, IoBuffer::len);
        if let Err(status) = io.admit(self.block_size, self.blocks(), buffer_bytes) {
            return io.done(status);
        }
        let range = io.lba.0..io.lba.0 + u64::from(io.blocks);
        if let Some((lba, status)) = self.fault
            && (range.contains(&lba.0) || (io.op == Op::Flush && lba.0 == u64::MAX))
        {
            return io.done(status);
        }
        let shift = self.block_size.shift();
        let at = (range.start << shift) as usize..(range.end << shift) as usize;
        let pages = at.start / PAGE..at.end.div_ceil(PAGE);
        let mut zeroes = false;
        match (io.op, &mut io.buffer) {
            (Op::Read, Some(buffer)) => {
                pool.bytes_mut(buffer).copy_from_slice(&self.bytes[at]);
                zeroes = !self.allocated[pages].contains(&true);
            }
            (Op::Write { .. }, Some(buffer)) => {
                self.bytes[at].copy_from_slice(pool.bytes(buffer));
                self.allocated[pages].fill(true);
            }
            (Op::Extents, Some(buffer)) => self.extents(at.start, at.end, pool.bytes_mut(buffer)),
            (Op::WriteZeroes { .. } | Op::Discard, None) => {
                self.bytes[at.clone()].fill(0);
                let whole = at.start.div_ceil(PAGE)..at.end / PAGE;
                self.allocated[whole.start.min(whole.end)..whole.end].fill(false);
            }
            (Op::Compare, Some(buffer)) => {
                let pairs = pool.bytes(buffer).iter().zip(&self.bytes[at]);
                let differs = pairs.into_iter().position(|(one, other)| one != other);
                if let Some(offset) = differs {
                    return io.done(Status::CompareFailed { offset: offset as u32 });
                }
            }
            (Op::Flush, None) => self.flushes += 1,
            (op, _) => unreachable!("a session never sends {op:?} like this"),
        }
        let mut done = io.done(Status::Ok);
        done.zeroes = zeroes;
        done
    }

    fn extents(&self, start: usize, end: usize, out: &mut [u8]) {
        out.fill(0);
        let mut at = start;
        for record in out.as_chunks_mut::<{ Extent::BYTES }>().0 {
            if at == end {
                break;
            }
            let allocated = self.allocated[at / PAGE];
            let mut to = at;
            while to < end && self.allocated[to / PAGE] == allocated {
                to = (to / PAGE * PAGE + PAGE).min(end);
            }
            let blocks = ((to - at) >> self.block_size.shift()) as u32;
            *record = Extent { blocks, allocated }.octets();
            at = to;
        }
    }
}

/// Takes I/Os, with credits for `credits` of them.
pub struct Recorder {
    pub credits: usize,
    /// Volumes that have none.
    pub short: Vec<VolumeId>,
    pub ios: Vec<Io<IoBuffer>>,
    /// Every admission asked for: operation, block, bytes.
    pub asked: Vec<(Op, Lba, u32)>,
    /// How often what was asked for was not wanted any more.
    pub withdrawn: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { credits: usize::MAX, short: Vec::new(), ios: Vec::new(), asked: Vec::new(), withdrawn: 0 }
    }
}

impl Sink for Recorder {
    fn admit(&mut self, volume: VolumeId, op: Op, lba: Lba, bytes: u32) -> bool {
        self.asked.push((op, lba, bytes));
        if self.short.contains(&volume) {
            return false;
        }
        let admitted = self.credits > 0;
        self.credits = self.credits.saturating_sub(1);
        admitted
    }

    fn withdraw(&mut self, _: VolumeId) {
        self.withdrawn += 1;
    }

    fn submit(&mut self, io: Io<IoBuffer>, _received_ns: u64) {
        self.ios.push(io);
    }
}

/// A transmission with a volume in memory behind it.
pub struct Rig {
    pub session: Transmission,
    pub pool: IoPool,
    pub image: Image,
    pub sink: Recorder,
    /// Everything that was sent to the client.
    pub sent: Vec<u8>,
}

impl Rig {
    pub fn new(structured: bool, change: impl FnOnce(&mut Attach, &mut Limits)) -> Rig {
        Rig::with(Image::new(40 << 20, BlockSize::B512), structured, 80, change)
    }

    pub fn with(
        image: Image,
        structured: bool,
        regions: u32,
        change: impl FnOnce(&mut Attach, &mut Limits),
    ) -> Rig {
        let volume = VolumeId(7);
        let export = Export::new("disk", "", volume, image.block_size, image.blocks()).expect("sound");
        let mut attach =
            Attach { export, structured, allocation: structured, changed: false, secured: false };
        attach.export.fast_zero = true;
        let mut limits = Limits::default();
        change(&mut attach, &mut limits);
        let session = Transmission::new(attach, limits);
        Rig { session, pool: pool(regions), image, sink: Recorder::default(), sent: Vec::new() }
    }

    /// Hands `bytes` in; returns how many were taken.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        self.session.process_bytes(bytes, &mut self.pool, 1).expect("sound bytes")
    }

    pub fn step(&mut self) -> Wait {
        self.session.step(&mut self.pool, &mut self.sink)
    }

    /// Answers one I/O as the image does.
    pub fn answer(&mut self, io: Io<IoBuffer>) {
        let done = self.image.execute(io, &mut self.pool);
        self.session.complete(done, &mut self.pool).expect("it was handed out");
    }

    /// Sends at most `bytes`; returns how many there were.
    pub fn send(&mut self, bytes: usize) -> usize {
        let mut slices = Slices::new();
        self.session.dispatch_bytes(&self.pool, &mut slices);
        let shown: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        drop(slices);
        let bytes = bytes.min(shown.len());
        self.sent.extend_from_slice(&shown[..bytes]);
        self.session.sent(bytes, &mut self.pool);
        bytes
    }

    /// Works until nothing moves.
    pub fn run(&mut self) {
        loop {
            self.step();
            let ios = std::mem::take(&mut self.sink.ios);
            let moved = !ios.is_empty();
            ios.into_iter().for_each(|io| self.answer(io));
            if self.send(usize::MAX) == 0 && !moved {
                return;
            }
        }
    }

    /// Hands all of `bytes` in, however often that takes.
    pub fn feed_all(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let took = self.feed(&bytes[at..]);
            at += took;
            let before = self.sent.len();
            self.run();
            assert!(took > 0 || self.sent.len() > before, "stuck at byte {at} of {}", bytes.len());
        }
        self.run();
    }

    /// The answer to one request.
    pub fn ask(&mut self, request: Request, payload: &[u8]) -> Answer {
        self.sent.clear();
        self.feed_all(&[&request.octets()[..], payload].concat());
        let read = (request.command == Command::READ).then_some(request.length_bytes);
        let mut answers = Answer::parse(&self.sent, |_| read.unwrap_or(0) as usize);
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.pop().expect("one")
    }

    /// Ends the session and finds every buffer at home.
    pub fn finish(mut self) {
        let ios = std::mem::take(&mut self.sink.ios);
        self.session.abort(&mut self.pool);
        assert_eq!(self.session.is_finished(), ios.is_empty());
        ios.into_iter().for_each(|io| self.answer(io));
        assert!(self.session.is_finished() && !self.session.has_output());
        let regions = self.pool.slab().regions() as usize;
        let all: Vec<_> = std::iter::from_fn(|| self.pool.alloc(1 << 20)).collect();
        // A pool may keep one region cut into pages.
        assert!(all.len() + 1 >= regions, "{} of {regions} regions came home", all.len());
        all.into_iter().for_each(|buffer| self.pool.free(buffer));
    }
}

/// A request; the cookie tells it from others.
pub fn request(command: Command, flags: CommandFlags, cookie: u64, at: u64, length_bytes: u32) -> Request {
    Request { flags, command, cookie, offset_bytes: at, length_bytes }
}

/// All replies to one request, put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub error: ErrorCode,
    /// Where, of an error with an offset.
    pub error_at: Option<u64>,
    pub message: String,
    /// Bytes by offset; of a simple reply at offset 0.
    pub data: Vec<(u64, Vec<u8>)>,
    pub holes: Vec<(u64, u32)>,
    pub extents: Vec<(u32, AllocationFlags)>,
    pub done: bool,
}

impl Answer {
    /// Reads what a client reads; `simple_bytes` says how much data follows a simple reply without error.
    pub fn parse(bytes: &[u8], simple_bytes: impl Fn(u64) -> usize) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::new();
        let mut left = bytes;
        while !left.is_empty() {
            if let Ok(SimpleReply { error, cookie }) = SimpleReply::parse(left) {
                let data_bytes = if error == ErrorCode::OK { simple_bytes(cookie) } else { 0 };
                let (data, rest) = left[SimpleReply::BYTES..].split_at(data_bytes);
                let data = if data.is_empty() { vec![] } else { vec![(0, data.to_vec())] };
                answers.push(Answer { cookie, error, data, done: true, ..Answer::default() });
                left = rest;
                continue;
            }
            let header = ChunkHeader::parse(left).expect("a reply");
            let (payload, rest) = left[ChunkHeader::BYTES..].split_at(header.payload_bytes as usize);
            left = rest;
            let open = answers.iter().position(|answer| answer.cookie == header.cookie && !answer.done);
            let at = open.unwrap_or(answers.len());
            if open.is_none() {
                answers.push(Answer { cookie: header.cookie, ..Answer::default() });
            }
            answers[at].add(ChunkPayload::parse(&header, payload).expect("a chunk"));
            answers[at].done = header.flags.has(ChunkFlags::DONE);
        }
        answers
    }

    fn add(&mut self, chunk: ChunkPayload<'_>) {
        match chunk {
            ChunkPayload::None => {}
            ChunkPayload::OffsetData { offset_bytes, data } => self.data.push((offset_bytes, data.to_vec())),
            ChunkPayload::OffsetHole { offset_bytes, hole_bytes } => {
                self.holes.push((offset_bytes, hole_bytes));
            }
            ChunkPayload::BlockStatus { descriptors, .. } => {
                self.extents.extend(descriptors.iter().map(|one| (one.length_bytes, one.flags)));
            }
            ChunkPayload::Error { error, message, offset_bytes } => {
                (self.error, self.error_at, self.message) = (error, offset_bytes, message.to_owned());
            }
        }
    }
}
