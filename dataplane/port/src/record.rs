//! A copy of all that passes a port, in a capture file.
//!
//! Frames are recorded as the worker sees them: what it received and what the port took from it. Recording
//! is for finding faults, not for speed: every frame is copied, and the file is written by the worker.
//!
//! Invariants: the port underneath is not disturbed; when the file reaches its limit or cannot be written,
//! recording ends, which is said once, and traffic goes on.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use arrayvec::ArrayVec;
use frame::{BATCH, Batch, Frame, Pool};

use crate::pcap::{LinkType, Writer};
use crate::{OpenError, Port, PortCaps, PortCounters, PortError, PortKind};

/// Where to record to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSpec {
    /// The capture file; an existing one is overwritten.
    pub file: PathBuf,
    /// Stop recording before the file grows beyond this, bytes.
    pub bytes_max: u64,
}

/// A port whose frames are recorded.
pub struct Record {
    inner: Box<dyn Port>,
    file: PathBuf,
    /// `None` when recording has ended.
    writer: Option<Writer>,
    /// Copies of frames offered for sending: which of them the port takes shows only when they are gone.
    offered: Vec<u8>,
}

impl Record {
    /// Begins the file and records what passes `inner`.
    pub fn open(inner: Box<dyn Port>, spec: &RecordSpec) -> Result<Record, OpenError> {
        let link_type = match inner.caps().kind {
            PortKind::Ethernet => LinkType::Ethernet,
            PortKind::Datagram => LinkType::User0,
        };
        let writer = Writer::create(&spec.file, link_type, spec.bytes_max)
            .map_err(|source| OpenError::Pcap { path: spec.file.clone(), source: source.into() })?;
        Ok(Record { inner, file: spec.file.clone(), writer: Some(writer), offered: Vec::new() })
    }

    fn record<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>) {
        let Some(writer) = &mut self.writer else { return };
        let time_ns = crate::pcap::wall_clock_ns();
        for bytes in frames {
            match writer.write(time_ns, bytes) {
                Ok(true) => {}
                Ok(false) => return self.end("the file has reached its limit"),
                Err(error) => return self.end(&error.to_string()),
            }
        }
    }

    /// Ends recording for good.
    #[cold]
    fn end(&mut self, why: &str) {
        tracing::warn!(file = %self.file.display(), why, "recording of the port ends");
        self.flush_file();
        self.writer = None;
    }

    fn flush_file(&mut self) {
        if let Some(Err(error)) = self.writer.as_mut().map(Writer::flush) {
            tracing::warn!(file = %self.file.display(), %error, "the end of the capture file is lost");
        }
    }

    /// Copies the frames of a batch; returns where each ends in the copy.
    fn copy(&mut self, pool: &Pool, frames: &[Frame]) -> ArrayVec<usize, BATCH> {
        self.offered.clear();
        let append = |frame| {
            self.offered.extend_from_slice(pool.bytes(frame));
            self.offered.len()
        };
        frames.iter().map(append).collect()
    }
}

impl Port for Record {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        let first = out.len();
        let result = self.inner.rx_burst(pool, out);
        if out.len() > first {
            self.record(out[first..].iter().map(|frame| pool.bytes(frame)));
        }
        result
    }

    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        if self.writer.is_none() || batch.is_empty() {
            return self.inner.tx_burst(pool, batch);
        }
        let ends = self.copy(pool, batch);
        let result = self.inner.tx_burst(pool, batch);
        let taken = ends.len() - batch.len();
        let offered = std::mem::take(&mut self.offered);
        let starts = std::iter::once(&0).chain(&ends);
        self.record(starts.zip(&ends).take(taken).map(|(&start, &end)| &offered[start..end]));
        self.offered = offered;
        result
    }

    fn flush(&mut self, pool: &mut Pool) -> Result<(), PortError> {
        self.inner.flush(pool)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wait_fd()
    }

    fn arm(&mut self) {
        self.inner.arm();
    }

    fn has_input(&self) -> bool {
        self.inner.has_input()
    }

    fn caps(&self) -> PortCaps {
        self.inner.caps()
    }

    fn counters(&self) -> PortCounters {
        self.inner.counters()
    }

    fn set_peers(&mut self, peers: &[SocketAddr]) {
        self.inner.set_peers(peers);
    }

    fn close(mut self: Box<Self>, pool: &mut Pool) {
        self.flush_file();
        self.inner.close(pool);
    }
}
