//! What only the inside shows: that nothing grows while requests come and go.

use block::{BlockSize, Io, Lba, Op, Status, VolumeId};
use frame::{IoBuffer, IoPool, IoSlab, IoSlabConfig};
use wire::nbd::transmission::{Command, CommandFlags, Request};

use super::Transmission;
use crate::Sink;
use crate::nbd::{Attach, Export, Limits, Slices};

struct Ios(Vec<Io<IoBuffer>>);

impl Sink for Ios {
    fn admit(&mut self, _: VolumeId, _: Op, _: Lba, _: u32) -> bool {
        true
    }

    fn withdraw(&mut self, _: VolumeId) {}

    fn submit(&mut self, io: Io<IoBuffer>, _: u64) {
        self.0.push(io);
    }
}

fn capacities(session: &Transmission) -> Vec<usize> {
    let lanes = session.lanes.iter().map(|lane| lane.capacity());
    lanes.chain([session.output.capacity(), session.slots.capacity()]).collect()
}

/// Requests of every kind and of up to 4 MiB, as many as the limits allow: what was allocated at set-up is
/// enough.
#[test]
fn nothing_is_allocated_per_request() {
    let slab = IoSlab::new(IoSlabConfig { regions: 64, hugepages: false }).expect("maps");
    let mut pool = IoPool::new(&slab, 64);
    let export = Export::new("disk", "", VolumeId(1), BlockSize::B4096, 1 << 20).expect("sound");
    let attach = Attach { export, structured: true, allocation: true, changed: false, secured: false };
    let mut session = Transmission::new(attach, Limits { requests_max: 32, ..Limits::default() });
    let before = capacities(&session);
    let mut ios = Ios(Vec::new());
    for round in 0..200_u64 {
        let mut bytes = Vec::new();
        for cookie in 0..32 {
            let command = [0, 0, 0, 1, 3, 4, 6, 7][(round + cookie) as usize % 8];
            let length_bytes = match command {
                3 => 0,
                0 | 1 if cookie % 16 == 3 => 4 << 20,
                _ => 4096 << (cookie % 4),
            };
            let command = Command(command);
            let keeps = command == Command::WRITE_ZEROES && cookie % 3 == 0;
            let flags = CommandFlags::NONE.with_if(keeps, CommandFlags::NO_HOLE);
            let request = Request { flags, command, cookie, offset_bytes: 0, length_bytes };
            bytes.extend(request.octets());
            if command == Command::WRITE {
                bytes.resize(bytes.len() + length_bytes as usize, 1);
            }
        }
        let mut at = 0;
        while at < bytes.len() || session.slots.live() > 0 {
            at += session.process_bytes(&bytes[at..], &mut pool, 1).expect("sound");
            session.step(&mut pool, &mut ios);
            for mut io in ios.0.drain(..) {
                if let (Op::Extents, Some(buffer)) = (io.op, &mut io.buffer) {
                    pool.bytes_mut(buffer).fill(0);
                }
                session.complete(io.done(Status::Ok), &mut pool).expect("it was handed out");
            }
            let mut slices = Slices::new();
            session.dispatch_bytes(&pool, &mut slices);
            let shown = slices.iter().map(|slice| slice.len()).sum();
            drop(slices);
            session.sent(shown, &mut pool);
        }
        assert_eq!((session.held_bytes, session.outstanding), (0, 0));
    }
    assert_eq!(capacities(&session), before);
}
