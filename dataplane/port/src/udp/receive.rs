//! From coalesced datagrams back into frames.

use arrayvec::ArrayVec;
use frame::{BATCH, Batch, FRAME_BYTES_MAX, Frame, Pool};

use super::peers::Peers;
use super::socket::{Incoming, MESSAGES, UdpSocket};
use crate::PortCounters;

/// Room for one datagram, however long.
const DATAGRAM_BYTES: usize = 1 << 16;
/// Distance between two of them: not a power of two, so that their first lines do not compete for one set
/// of the first-level cache.
const STRIDE_BYTES: usize = DATAGRAM_BYTES + 17 * 64;
/// The first begins at a page. The kernel copies with `rep movsb`, which takes seven times as long when the
/// destination lies 1 to 31 bytes behind the source modulo the size of a page (measured: 0.7 instead of
/// 0.1 us per frame), and most sources begin at a page.
const ALIGN_BYTES: usize = 4096;

/// Datagrams that were received and not yet handed on.
#[derive(Debug)]
pub(super) struct Inbox {
    memory: Box<[u8]>,
    /// Where in it the first datagram goes.
    first: usize,
    datagrams: ArrayVec<Incoming, MESSAGES>,
    /// The datagram that is being cut, and how much of it is done.
    at: usize,
    offset: usize,
    /// Datagrams to ask for: few while they come coalesced, so that what is received stays in the cache.
    want: usize,
    drops: u32,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        // Pages that no datagram ever reaches cost nothing.
        let memory: Box<[u8]> = vec![0; MESSAGES * STRIDE_BYTES + ALIGN_BYTES].into();
        Inbox {
            first: memory.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES),
            memory,
            datagrams: ArrayVec::new(),
            at: 0,
            offset: 0,
            want: MESSAGES,
            drops: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.datagrams.len()
    }

    /// Receives more, in one system call. Only when empty.
    pub(super) fn refill(&mut self, socket: &UdpSocket, counters: &mut PortCounters) -> std::io::Result<()> {
        (self.at, self.offset) = (0, 0);
        let memory = &mut self.memory[self.first..];
        let buffers = memory.chunks_exact_mut(STRIDE_BYTES).map(|buffer| &mut buffer[..DATAGRAM_BYTES]);
        socket.receive_all(buffers.take(self.want), &mut self.datagrams)?;
        let mut frames = 0;
        for datagram in &self.datagrams {
            frames += datagram.len.div_ceil(segment_bytes(datagram));
            if let Some(drops) = datagram.heard.drops {
                counters.rx_kernel_drops += u64::from(drops.wrapping_sub(self.drops));
                self.drops = drops;
            }
        }
        // About two batches at once.
        self.want = (2 * BATCH * self.datagrams.len() / frames.max(1)).clamp(2, MESSAGES);
        Ok(())
    }

    /// Cuts what is there into frames until the batch is full.
    pub(super) fn hand_on(
        &mut self,
        pool: &mut Pool,
        out: &mut Batch,
        peers: &mut Peers,
        counters: &mut PortCounters,
    ) {
        while let Some(datagram) = self.datagrams.get(self.at) {
            let segment = segment_bytes(datagram);
            let from = peers.number(&datagram.from);
            let start = self.first + self.at * STRIDE_BYTES;
            if datagram.truncated || datagram.len == 0 {
                counters.rx_truncated += 1;
                self.offset = datagram.len;
            }
            while self.offset < datagram.len {
                if out.is_full() {
                    return;
                }
                let end = (self.offset + segment).min(datagram.len);
                match copy_in(pool, &self.memory[start + self.offset..start + end]) {
                    Some(mut frame) => {
                        let meta = pool.meta_mut(&mut frame);
                        meta.next_hop = from;
                        meta.flags.set_outer_ecn(datagram.heard.ecn);
                        counters.rx_frames += 1;
                        counters.rx_bytes += (end - self.offset) as u64;
                        out.push(frame);
                    }
                    None => {
                        counters.rx_no_frame += 1;
                        if end - self.offset <= FRAME_BYTES_MAX {
                            return;
                        }
                        // Jumbo frames are few and may be parked for long: small ones must not wait for them.
                    }
                }
                self.offset = end;
            }
            (self.at, self.offset) = (self.at + 1, 0);
        }
    }
}

fn segment_bytes(datagram: &Incoming) -> usize {
    if datagram.heard.segment_bytes > 0 { datagram.heard.segment_bytes } else { datagram.len.max(1) }
}

fn copy_in(pool: &mut Pool, bytes: &[u8]) -> Option<Frame> {
    let mut frame = if bytes.len() <= FRAME_BYTES_MAX { pool.alloc() } else { pool.alloc_jumbo() }?;
    if pool.fill(&mut frame, bytes) {
        return Some(frame);
    }
    pool.free(frame);
    None
}
