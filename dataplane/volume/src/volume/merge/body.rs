//! Writing a checkpoint: its tables in chunks, the first one last, with the CRC of all.

use block::{Act, FileId};
use frame::{IoBuffer, IoPool};

use super::super::token::Token;
use super::{BODY, SYNC, Stage, WHICH_SHIFT};
use crate::Volume;
use crate::format::{
    CHECKPOINT_FIXED_BYTES, CheckpointFixed, Header, Kind, PAGE_BYTES, leaf_ref_octets, put_crc, run_octets,
};

/// Bytes written at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A checkpoint being written.
#[derive(Debug)]
pub(super) struct Body {
    file: FileId,
    /// Header, numbers and extents.
    front: Vec<u8>,
    /// First page of the range of the next leaf; `None` behind the last.
    next_leaf: Option<u64>,
    /// Free runs.
    back: Vec<u8>,
    /// Bytes of the item that did not fit into the last chunk.
    carry: Vec<u8>,
    /// Bytes in chunks so far.
    done: u64,
    total: u64,
    crc: u32,
    first: Option<IoBuffer>,
    /// A chunk is at the medium.
    busy: bool,
}

impl Body {
    /// Length of a checkpoint with tables of these lengths.
    pub fn bytes_of(extents: usize, leaves: usize, runs: usize) -> u64 {
        let (extents, leaves, runs) = (extents as u32, leaves as u32, runs as u32);
        CheckpointFixed { extents, leaves, runs, ..CheckpointFixed::default() }.bytes()
    }

    /// True while a chunk is at the medium.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// The next bytes of the tables; empty at the end.
    fn next_item(&mut self, volume_index: &crate::map::Index) -> Vec<u8> {
        if !self.front.is_empty() {
            return std::mem::take(&mut self.front);
        }
        if let Some(from) = self.next_leaf {
            let mut leaves = volume_index.from(from);
            let mut out = Vec::with_capacity(4096);
            self.next_leaf = None;
            for (first, leaf) in leaves.by_ref() {
                if out.len() >= 4000 {
                    self.next_leaf = Some(first);
                    break;
                }
                out.extend(leaf_ref_octets(first, &leaf));
            }
            if !out.is_empty() {
                return out;
            }
        }
        std::mem::take(&mut self.back)
    }

    /// Fills a chunk; how many bytes.
    fn fill(&mut self, into: &mut [u8], index: &crate::map::Index) -> usize {
        let mut at = 0;
        while at < into.len() {
            if self.carry.is_empty() {
                self.carry = self.next_item(index);
                if self.carry.is_empty() {
                    break;
                }
            }
            let count = self.carry.len().min(into.len() - at);
            into[at..at + count].copy_from_slice(&self.carry[..count]);
            self.carry.drain(..count);
            at += count;
        }
        at
    }
}

impl Volume {
    /// Takes the tables as they are. They do not change before the checkpoint is written, but for what the log says.
    pub(super) fn begin_body(&mut self) {
        let Some(file) = self.merge.sides[self.merge.side()] else { return };
        let (extents, runs) = (self.space.table(), self.space.free_runs(&self.merge.freed));
        self.merge.written_blocks = self.merge.blocks;
        let fixed = CheckpointFixed {
            blocks: self.merge.blocks.unwrap_or(self.blocks),
            segment: self.merge.segment,
            next_extent: self.grow.next_extent,
            sealed_epoch: 0,
            sealed_batch: 0,
            extents: extents.len() as u32,
            leaves: self.map.index.len() as u32,
            runs: runs.len() as u32,
        };
        let mut front = vec![0; CHECKPOINT_FIXED_BYTES];
        fixed.write(&mut front);
        let header = Header {
            kind: Kind::Checkpoint,
            identity: self.identity,
            epoch: self.epoch,
            a: self.merge.number + 1,
            b: self.merge.batch,
            bytes: fixed.bytes() as u32,
        };
        header.write(&mut front);
        extents.iter().for_each(|extent| front.extend(extent.octets()));
        self.merge.stage = Stage::Body(Body {
            file,
            front,
            next_leaf: Some(0),
            back: runs.iter().flat_map(run_octets).collect(),
            carry: Vec::new(),
            done: 0,
            total: fixed.bytes(),
            crc: 0,
            first: None,
            busy: false,
        });
    }

    /// Writes the next chunk, or, at the end, the first one.
    pub(super) fn step_body(&mut self, pool: &mut IoPool) {
        let Stage::Body(body) = &mut self.merge.stage else { return };
        if body.busy {
            return;
        }
        while body.done < body.total {
            let Some(mut buffer) = pool.alloc(CHUNK_BYTES) else { return };
            let bytes = pool.bytes_mut(&mut buffer);
            let count = body.fill(bytes, &self.map.index);
            bytes[count..].fill(0);
            body.crc = crc32c::crc32c_append(body.crc, &bytes[..count]);
            let offset = body.done;
            body.done += count as u64;
            if count == 0 {
                // INVARIANT: the tables are as long as they were counted.
                pool.free(buffer);
                break;
            }
            if offset == 0 {
                body.first = Some(buffer);
                continue;
            }
            return self.write_chunk(buffer, offset, count);
        }
        let Stage::Body(body) = &mut self.merge.stage else { return };
        let (crc, count) = (body.crc, body.total.min(CHUNK_BYTES as u64) as usize);
        if let Some(mut buffer) = body.first.take() {
            put_crc(pool.bytes_mut(&mut buffer), crc);
            self.write_chunk(buffer, 0, count);
        }
    }

    fn write_chunk(&mut self, buffer: IoBuffer, offset: u64, count: usize) {
        let Stage::Body(body) = &mut self.merge.stage else { return };
        body.busy = true;
        let file = body.file;
        let pieces = self.one_piece(file, offset, count.next_multiple_of(PAGE_BYTES));
        self.ask(Token::Merge(BODY << WHICH_SHIFT), Act::Write, Some(buffer), pieces);
    }

    /// A chunk is written; after the first one, which comes last, all is synced.
    pub(super) fn body_written(&mut self, buffer: Option<IoBuffer>, pool: &mut IoPool) {
        if let Some(buffer) = buffer {
            pool.free(buffer);
        }
        let Stage::Body(body) = &mut self.merge.stage else { return };
        body.busy = false;
        if body.done < body.total || body.first.is_some() {
            return;
        }
        let file = body.file;
        self.merge.stage = Stage::SyncBody;
        self.ask(Token::Merge(SYNC << WHICH_SHIFT), Act::Sync(file), None, Vec::new());
    }

    /// Gives up a checkpoint that failed.
    pub(in crate::volume) fn drop_body(&mut self, pool: &mut IoPool) {
        if let Stage::Body(body) = &mut self.merge.stage
            && let Some(buffer) = body.first.take()
        {
            pool.free(buffer);
        }
    }
}
