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
    templates: Vec<Template>,
    next: usize,
    /// The length of all templates, when it is the same.
    len: Option<usize>,
    /// Whether any bytes are to be written.
    copies: bool,
    counters: PortCounters,
}

/// Headers fit into one or two cache lines, which are written as such; the rest, if wanted at all, is an
/// ordinary copy.
#[derive(Debug)]
#[repr(align(64))]
struct Template {
    head: [u8; HEAD_BYTES],
    copy_bytes: usize,
    len: usize,
    rest: Box<[u8]>,
}

const LINE_BYTES: usize = 64;
const HEAD_BYTES: usize = 2 * LINE_BYTES;

impl NullPort {
    /// Prepares the templates.
    pub fn open(spec: &NullSpec) -> Result<NullPort, OpenError> {
        let templates = spec.templates.iter().map(|bytes| Template::new(bytes, spec.copy_bytes));
        let len = spec.templates.first().map(Vec::len);
        Ok(NullPort {
            templates: templates.collect::<Result<_, _>>()?,
            next: 0,
            len: len.filter(|&len| spec.templates.iter().all(|template| template.len() == len)),
            copies: spec.copy_bytes > 0,
            counters: PortCounters::default(),
        })
    }
}

impl NullPort {
    /// Appends up to `most` frames.
    #[inline]
    pub(crate) fn generate(&mut self, pool: &mut Pool, out: &mut Batch, most: usize) -> usize {
        if self.templates.is_empty() {
            return 0;
        }
        let first = out.len();
        let len = self.len.unwrap_or(0);
        let wanted = most.min(out.remaining_capacity());
        let count = pool.alloc_batch_of(out, wanted, len);
        self.counters.rx_no_frame += u64::from(count < wanted);
        self.counters.rx_frames += count as u64;
        self.counters.rx_bytes += (count * len) as u64;
        if self.copies || self.len.is_none() {
            self.write(pool, &mut out[first..]);
        }
        count
    }

    /// Gives each frame the length and the bytes of the next template.
    #[inline]
    fn write(&mut self, pool: &Pool, frames: &mut [Frame]) {
        let mut next = self.next;
        for frame in frames {
            let template = &self.templates[next];
            next = if next + 1 == self.templates.len() { 0 } else { next + 1 };
            if self.len.is_none() {
                pool.set_len(frame, template.len);
                self.counters.rx_bytes += template.len as u64;
            }
            if self.copies {
                template.write(pool.bytes_mut(frame));
            }
        }
        self.next = next;
    }
}

impl Template {
    fn new(bytes: &[u8], copy_bytes: usize) -> Result<Template, OpenError> {
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
        Ok(Template { head, copy_bytes: copied.len(), len: bytes.len(), rest: rest.into() })
    }

    #[inline(always)]
    fn write(&self, frame: &mut [u8]) {
        if self.copy_bytes <= LINE_BYTES
            && let Some(line) = frame.first_chunk_mut::<LINE_BYTES>()
        {
            // A whole line costs less than the exact count.
            line.copy_from_slice(&self.head[..LINE_BYTES]);
        } else if let Some((head, rest)) = frame.split_first_chunk_mut::<HEAD_BYTES>() {
            *head = self.head;
            rest[..self.rest.len()].copy_from_slice(&self.rest);
        } else if self.copy_bytes <= HEAD_BYTES
            && let Some(line) = frame.first_chunk_mut::<LINE_BYTES>()
        {
            // Two whole lines that overlap cost less than the exact count, too.
            line.copy_from_slice(&self.head[..LINE_BYTES]);
            let last = self.copy_bytes - LINE_BYTES;
            if let (Some(line), Some(bytes)) =
                (frame[last..].first_chunk_mut::<LINE_BYTES>(), self.head[last..].first_chunk())
            {
                *line = *bytes;
            }
        } else {
            frame[..self.copy_bytes].copy_from_slice(&self.head[..self.copy_bytes]);
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
