//! A flat volume over memory: each request becomes one request, or is refused.

use block::{Lba, Tag, TraceId};
use frame::{IoSlab, IoSlabConfig};
use media::{Media, MemoryMedia};

use super::*;

struct Bed {
    volume: FlatVolume,
    media: MemoryMedia,
    pool: IoPool,
}

impl Bed {
    fn new(in_flight_max: u32) -> Bed {
        let slab = IoSlab::new(IoSlabConfig { regions: 2, hugepages: false }).expect("maps");
        let mut media = MemoryMedia::new();
        media.attach(VolumeId(1), 8192, false).expect("maps");
        let volume = FlatVolume::new(VolumeId(1), BlockSize::B512, 16, in_flight_max);
        assert_eq!((volume.block_size(), volume.blocks()), (BlockSize::B512, 16));
        Bed { volume, media, pool: IoPool::new(&slab, 2) }
    }

    fn submit(&mut self, op: Op, lba: u64, blocks: u32, bytes: Option<&[u8]>) {
        let buffer = bytes.map(|bytes| {
            let mut buffer = self.pool.alloc(bytes.len()).expect("there is memory");
            self.pool.bytes_mut(&mut buffer).copy_from_slice(bytes);
            buffer
        });
        let (tag, trace) = (Tag(4), TraceId(0));
        let io = Io { volume: VolumeId(1), op, lba: Lba(lba), blocks, tag, trace, buffer };
        self.volume.process(io, &mut self.pool);
    }

    fn answer(&mut self) -> Option<(Status, Vec<u8>)> {
        while let Some(request) = self.volume.dispatch() {
            self.media.submit(request, &self.pool).expect("there is room");
        }
        let mut out = Vec::new();
        self.media.poll(&mut out);
        out.into_iter().for_each(|finished| self.volume.complete(finished, &mut self.pool));
        let done = self.volume.finished()?;
        let bytes = done.buffer.as_ref().map(|buffer| self.pool.bytes(buffer).to_vec()).unwrap_or_default();
        if let Some(buffer) = done.buffer {
            self.pool.free(buffer);
        }
        Some((done.status, bytes))
    }

    fn run(&mut self, op: Op, lba: u64, blocks: u32, bytes: Option<&[u8]>) -> (Status, Vec<u8>) {
        self.submit(op, lba, blocks, bytes);
        self.answer().expect("an answer")
    }
}

#[test]
fn bytes_go_where_they_should() {
    let mut bed = Bed::new(4);
    let write = Op::Write { fua: true };
    assert_eq!(bed.run(write, 3, 2, Some(&[7; 1024])).0, Status::Ok);
    assert_eq!(bed.run(Op::Flush, 0, 0, None).0, Status::Ok);
    let (status, bytes) = bed.run(Op::Read, 2, 3, Some(&[1; 1536]));
    assert_eq!((status, bytes), (Status::Ok, [[0; 512], [7; 512], [7; 512]].concat()));
    assert_eq!(bed.run(Op::Compare, 3, 1, Some(&[7; 512])).0, Status::Ok);
    let (status, bytes) = bed.run(Op::Compare, 3, 1, Some(&[8; 512]));
    assert_eq!((status, bytes), (Status::CompareFailed { offset: 0 }, vec![8; 512]));
    assert_eq!(bed.run(Op::Discard, 3, 1, None).0, Status::Ok);
    assert_eq!(bed.run(Op::Read, 3, 2, Some(&[1; 1024])).1, [[0; 512], [7; 512]].concat());
    let (status, bytes) = bed.run(Op::Extents, 0, 16, Some(&[1; 16]));
    assert_eq!((status, bytes[..8].to_vec()), (Status::Ok, vec![16, 0, 0, 0, 1, 0, 0, 0]));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut bed = Bed::new(1);
    assert_eq!(bed.run(Op::Read, 16, 1, Some(&[0; 512])).0, Status::OutOfRange);
    bed.submit(Op::Flush, 0, 0, None);
    assert_eq!(bed.volume.room(), 0);
    bed.submit(Op::Flush, 0, 0, None);
    assert_eq!(bed.volume.finished().map(|done| done.status), Some(Status::Busy));
    assert_eq!(bed.answer().map(|(status, _)| status), Some(Status::Ok));
    bed.media.detach(VolumeId(1));
    assert!(matches!(bed.run(Op::Read, 0, 1, Some(&[0; 512])).0, Status::MediaError { .. }));
}
