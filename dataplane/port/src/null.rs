//! Generator and sink: frames come from templates and go nowhere. The port that the packet path is measured
//! on, so it costs a few nanoseconds per frame and no system call.
//!
//! Templates are handed out round robin. Without copying, only the length of a frame is set and its bytes
//! are whatever the chunk last held; with it, the first `copy_bytes` of the template are written into the
//! frame: the headers, for a pipeline that parses, or all of it.
//!
//! Invariants: a frame that is handed out is as long as its template; sending never fails.

use std::os::fd::BorrowedFd;

use frame::{BATCH, Batch, FRAME_BYTES_MAX, Frame, Pool};

use crate::{OpenError, Port, PortCaps, PortCounters, PortError, PortKind};

/// What to generate. The default generates nothing and swallows everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NullSpec {
    /// Frames to hand out, round robin. Empty: nothing arrives.
    pub templates: Vec<Vec<u8>>,
    /// Bytes of each template that are written into a frame; 0 sets only its length.
    pub copy_bytes: usize,
}

/// A generator and sink.
#[derive(Debug)]
pub struct NullPort {
    /// The first bytes of each template: all that is read of most, so they lie together.
    heads: Vec<Head>,
    templates: Vec<Template>,
    next: usize,
    /// Length and bytes to copy of all templates, when these are the same.
    uniform: Option<(usize, usize)>,
    counters: PortCounters,
}

/// Headers fit into one or two cache lines, which are written as such.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Head([u8; HEAD_BYTES]);

#[derive(Debug)]
struct Template {
    copy_bytes: usize,
    len: usize,
    /// What is to be copied behind the head.
    rest: Box<[u8]>,
}

const LINE_BYTES: usize = 64;
const HEAD_BYTES: usize = 2 * LINE_BYTES;

impl NullPort {
    /// Prepares the templates.
    pub fn open(spec: &NullSpec) -> Result<NullPort, OpenError> {
        let pairs = spec.templates.iter().map(|bytes| Template::new(bytes, spec.copy_bytes));
        let (heads, templates): (Vec<Head>, Vec<Template>) =
            pairs.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let shape = |template: &Template| (template.len, template.copy_bytes);
        let first = templates.first().map(shape);
        let uniform = first.filter(|first| templates.iter().all(|template| shape(template) == *first));
        Ok(NullPort { heads, templates, next: 0, uniform, counters: PortCounters::default() })
    }

    /// Appends up to `most` frames.
    #[inline]
    pub(crate) fn generate(&mut self, pool: &mut Pool, out: &mut Batch, most: usize) -> usize {
        if self.templates.is_empty() {
            return 0;
        }
        let first = out.len();
        let (len, copy_bytes) = self.uniform.unwrap_or((0, usize::MAX));
        let wanted = most.min(out.remaining_capacity());
        let count = pool.alloc_batch_of(out, wanted, len);
        self.counters.rx_no_frame += u64::from(count < wanted);
        self.counters.rx_frames += count as u64;
        self.counters.rx_bytes += (count * len) as u64;
        let frames = &mut out[first..];
        match copy_bytes {
            0 => {}
            1..=LINE_BYTES if len >= LINE_BYTES => self.write_lines(pool, frames),
            _ => self.write(pool, frames),
        }
        count
    }

    /// The next template's place in turn.
    #[inline(always)]
    fn advance(&self, at: usize) -> usize {
        if at + 1 == self.templates.len() { 0 } else { at + 1 }
    }

    /// Gives each frame the first line of the next template: a whole line costs less than the exact count.
    #[inline]
    fn write_lines(&mut self, pool: &Pool, frames: &mut [Frame]) {
        let mut next = self.next;
        for frame in frames {
            if let (Some(line), Some(bytes)) =
                (pool.bytes_mut(frame).first_chunk_mut::<LINE_BYTES>(), self.heads[next].0.first_chunk())
            {
                *line = *bytes;
            }
            next = self.advance(next);
        }
        self.next = next;
    }

    /// Gives each frame the length and the bytes of the next template.
    #[inline]
    fn write(&mut self, pool: &Pool, frames: &mut [Frame]) {
        let mut next = self.next;
        for frame in frames {
            let (head, template) = (&self.heads[next], &self.templates[next]);
            if self.uniform.is_none() {
                pool.set_len(frame, template.len);
                self.counters.rx_bytes += template.len as u64;
            }
            template.write(head, pool.bytes_mut(frame));
            next = self.advance(next);
        }
        self.next = next;
    }
}

impl Template {
    fn new(bytes: &[u8], copy_bytes: usize) -> Result<(Head, Template), OpenError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(OpenError::Spec {
                name: "null port".to_owned(),
                what: format!("a template has {} bytes, at most {FRAME_BYTES_MAX} fit a frame", bytes.len()),
            });
        }
        let copied = &bytes[..copy_bytes.min(bytes.len())];
        let (first, rest) = copied.split_at(copied.len().min(HEAD_BYTES));
        let mut head = [0; HEAD_BYTES];
        head[..first.len()].copy_from_slice(first);
        Ok((Head(head), Template { copy_bytes: copied.len(), len: bytes.len(), rest: rest.into() }))
    }

    #[inline(always)]
    fn write(&self, Head(head): &Head, frame: &mut [u8]) {
        if let Some((first, rest)) = frame.split_first_chunk_mut::<HEAD_BYTES>() {
            *first = *head;
            rest[..self.rest.len()].copy_from_slice(&self.rest);
        } else if (LINE_BYTES..=HEAD_BYTES).contains(&self.copy_bytes)
            && let Some(line) = frame.first_chunk_mut::<LINE_BYTES>()
        {
            // Two whole lines that overlap cost less than the exact count.
            line.copy_from_slice(&head[..LINE_BYTES]);
            let last = self.copy_bytes - LINE_BYTES;
            if let (Some(line), Some(bytes)) =
                (frame[last..].first_chunk_mut::<LINE_BYTES>(), head[last..].first_chunk())
            {
                *line = *bytes;
            }
        } else {
            frame[..self.copy_bytes].copy_from_slice(&head[..self.copy_bytes]);
        }
    }
}

impl Port for NullPort {
    #[inline]
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        Ok(self.generate(pool, out, BATCH))
    }

    #[inline]
    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        let count = batch.len();
        self.counters.tx_frames += count as u64;
        self.counters.tx_bytes += pool.bytes_in(batch);
        pool.free_batch(batch);
        Ok(count)
    }

    fn flush(&mut self, _pool: &mut Pool) -> Result<(), PortError> {
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn has_input(&self) -> bool {
        !self.templates.is_empty()
    }

    fn caps(&self) -> PortCaps {
        PortCaps {
            kind: PortKind::Ethernet,
            mtu_bytes: FRAME_BYTES_MAX as u32,
            mac: None,
            tx_partial_csum: true,
            tx_gso: true,
            rx_gso: false,
        }
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn close(self: Box<Self>, _pool: &mut Pool) {}
}
