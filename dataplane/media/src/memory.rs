//! A medium without a kernel: volumes whose bytes are in memory, or nowhere. It answers in the turn it is asked.
//!
//! It carries flat volumes (one file, as long as the volume), so that a volume in memory costs one copy.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use block::{Act, Fault, FileId, Finished, Request, VolumeId};
use frame::{Backing, HugeBytes, IoBuffer, IoPool, SlabError};

use crate::Media;

/// Requests that wait for the next `poll`.
const READY_MAX: usize = 1024;

/// Where the bytes of a volume are.
#[derive(Debug)]
enum Bytes {
    Here(HugeBytes),
    /// Writes vanish, and reads are zeroes. They are written, since a buffer may hold what was read or written
    /// before for somebody else.
    Nowhere,
}

/// Bytes in memory: one file per volume, [`FileId`] 0.
#[derive(Debug, Default)]
pub struct MemoryMedia {
    volumes: HashMap<VolumeId, Bytes>,
    ready: Vec<Finished<IoBuffer>>,
}

impl MemoryMedia {
    /// No volumes yet.
    pub fn new() -> MemoryMedia {
        MemoryMedia::default()
    }

    /// Maps zeroed memory for a volume, in place of what it had, and says from what.
    pub fn attach(&mut self, volume: VolumeId, bytes: usize, hugepages: bool) -> Result<Backing, SlabError> {
        let memory = HugeBytes::new(bytes, hugepages)?;
        let backing = memory.backing().clone();
        self.volumes.insert(volume, Bytes::Here(memory));
        Ok(backing)
    }

    /// Takes a volume without bytes, to measure what lies above.
    pub fn attach_nothing(&mut self, volume: VolumeId) {
        self.volumes.insert(volume, Bytes::Nowhere);
    }

    /// Forgets a volume and its bytes. False when there is none.
    pub fn detach(&mut self, volume: VolumeId) -> bool {
        self.volumes.remove(&volume).is_some()
    }

    fn carry_out(&mut self, request: &mut Request<IoBuffer>, pool: &IoPool) -> Result<(), Fault> {
        let memory = match self.volumes.get_mut(&request.volume).ok_or(Fault::Missing)? {
            Bytes::Here(memory) => memory.bytes_mut(),
            Bytes::Nowhere => {
                if let (Act::Read, Some(buffer)) = (request.act, &mut request.buffer) {
                    pool.bytes_mut(buffer).fill(0);
                }
                return Ok(());
            }
        };
        match request.act {
            Act::Read | Act::Write => {
                let buffer = request.buffer.as_mut().ok_or(Fault::Io(libc::EINVAL))?;
                let buffer = pool.bytes_mut(buffer);
                for piece in &request.pieces {
                    let there = range(memory, piece.file, piece.offset, u64::from(piece.bytes))?;
                    let here = buffer.get_mut(piece.at as usize..).and_then(|b| b.get_mut(..there.len()));
                    let here = here.ok_or(Fault::Io(libc::EINVAL))?;
                    if request.act == Act::Read {
                        here.copy_from_slice(there);
                    } else {
                        there.copy_from_slice(here);
                    }
                }
                Ok(())
            }
            Act::Punch { file, offset, bytes } => {
                range(memory, file, offset, bytes)?.fill(0);
                Ok(())
            }
            Act::Allocate { file, offset, bytes } => range(memory, file, offset, bytes).map(|_| ()),
            Act::Sync(_) | Act::Open { .. } | Act::Create { .. } | Act::Remove { .. } | Act::Probe(_) => {
                Ok(())
            }
        }
    }
}

fn range(memory: &mut [u8], file: FileId, offset: u64, bytes: u64) -> Result<&mut [u8], Fault> {
    if file != FileId(0) {
        return Err(Fault::Missing);
    }
    let end = offset.checked_add(bytes).ok_or(Fault::Short)?;
    memory.get_mut(offset as usize..end as usize).ok_or(Fault::Short)
}

impl Media for MemoryMedia {
    fn submit(&mut self, mut request: Request<IoBuffer>, pool: &IoPool) -> Result<(), Request<IoBuffer>> {
        if self.room() == 0 {
            return Err(request);
        }
        let result = self.carry_out(&mut request, pool);
        self.ready.push(request.finished(result));
        Ok(())
    }

    fn room(&self) -> usize {
        READY_MAX - self.ready.len()
    }

    fn in_flight(&self) -> usize {
        self.ready.len()
    }

    fn poll(&mut self, out: &mut Vec<Finished<IoBuffer>>) {
        out.append(&mut self.ready);
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn clear_wait(&mut self) {}
}

#[cfg(test)]
mod tests {
    //! Bytes written are bytes read; what does not fit is refused.

    use super::*;
    use block::Piece;
    use frame::{IoSlab, IoSlabConfig};

    fn ask(
        media: &mut dyn Media,
        pool: &IoPool,
        act: Act,
        buffer: Option<IoBuffer>,
        pieces: &[Piece],
    ) -> Finished<IoBuffer> {
        let request = Request { volume: VolumeId(1), token: 5, act, buffer, pieces: pieces.to_vec() };
        media.submit(request, pool).expect("there is room");
        let mut out = Vec::new();
        assert_eq!(media.in_flight(), 1);
        media.poll(&mut out);
        assert!(media.wait_fd().is_none());
        media.clear_wait();
        out.pop().expect("it answers at once")
    }

    fn pool() -> IoPool {
        IoPool::new(&IoSlab::new(IoSlabConfig { regions: 1, hugepages: false }).expect("maps"), 1)
    }

    #[test]
    fn memory_keeps_what_is_written_and_forgets_what_is_punched() {
        let (mut media, mut pool) = (MemoryMedia::new(), pool());
        media.attach(VolumeId(1), 8192, false).expect("maps");
        let piece = |offset| [Piece { file: FileId(0), offset, at: 0, bytes: 4096 }];
        let mut buffer = pool.alloc(4096).expect("there is room");
        pool.bytes_mut(&mut buffer).fill(9);
        let done = ask(&mut media, &pool, Act::Write, Some(buffer), &piece(4096));
        assert_eq!(done.result, Ok(()));
        let done = ask(&mut media, &pool, Act::Read, done.buffer, &piece(0));
        assert!(pool.bytes(done.buffer.as_ref().expect("comes back")).iter().all(|&byte| byte == 0));
        let done = ask(&mut media, &pool, Act::Read, done.buffer, &piece(4096));
        assert!(pool.bytes(done.buffer.as_ref().expect("comes back")).iter().all(|&byte| byte == 9));
        let punch = Act::Punch { file: FileId(0), offset: 4096, bytes: 4096 };
        assert_eq!(ask(&mut media, &pool, punch, None, &[]).result, Ok(()));
        let done = ask(&mut media, &pool, Act::Read, done.buffer, &piece(4096));
        assert!(pool.bytes(done.buffer.as_ref().expect("comes back")).iter().all(|&byte| byte == 0));
        let done = ask(&mut media, &pool, Act::Read, done.buffer, &piece(8192));
        assert_eq!(done.result, Err(Fault::Short));
        let other = [Piece { file: FileId(1), offset: 0, at: 0, bytes: 1 }];
        let done = ask(&mut media, &pool, Act::Read, done.buffer, &other);
        assert_eq!(done.result, Err(Fault::Missing));
        assert_eq!(ask(&mut media, &pool, Act::Sync(FileId(0)), None, &[]).result, Ok(()));
        assert!(media.detach(VolumeId(1)) && !media.detach(VolumeId(1)));
        pool.free(done.buffer.expect("comes back"));
        assert_eq!(ask(&mut media, &pool, Act::Sync(FileId(0)), None, &[]).result, Err(Fault::Missing));
    }

    #[test]
    fn nothing_answers_everything_and_is_bounded() {
        let (mut media, mut pool) = (MemoryMedia::new(), pool());
        media.attach_nothing(VolumeId(1));
        let mut buffer = pool.alloc(4096).expect("there is room");
        pool.bytes_mut(&mut buffer).fill(9);
        let done = ask(&mut media, &pool, Act::Read, Some(buffer), &[]);
        let buffer = done.buffer.expect("comes back");
        assert!(pool.bytes(&buffer).iter().all(|&byte| byte == 0), "what somebody else left is not told");
        pool.free(buffer);
        assert_eq!(ask(&mut media, &pool, Act::Sync(FileId(0)), None, &[]).result, Ok(()));
        let request =
            || Request { volume: VolumeId(1), token: 0, act: Act::Read, buffer: None, pieces: Vec::new() };
        while media.room() > 0 {
            media.submit(request(), &pool).expect("there is room");
        }
        assert!(media.submit(request(), &pool).is_err());
    }
}
