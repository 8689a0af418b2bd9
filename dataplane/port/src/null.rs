//! Generator and sink.

use frame::{Batch, Pool};
use std::os::fd::BorrowedFd;

use crate::{OpenError, Port, PortCaps, PortCounters, PortError, PortKind};

/// How to generate frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NullSpec {
    /// Frames to hand out, round robin. Empty: nothing arrives.
    pub templates: Vec<Vec<u8>>,
    /// Bytes of each template that are written into the frame; 0 sets only the length.
    pub copy_bytes: usize,
}

/// Generator and sink.
pub struct NullPort {
    counters: PortCounters,
}

impl NullPort {
    /// Opens the port.
    pub fn open(_spec: &NullSpec) -> Result<NullPort, OpenError> {
        Ok(NullPort { counters: PortCounters::default() })
    }
}

impl Port for NullPort {
    fn rx_burst(&mut self, _pool: &mut Pool, _out: &mut Batch) -> Result<usize, PortError> {
        Ok(0)
    }
    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        let count = batch.len();
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
        false
    }
    fn caps(&self) -> PortCaps {
        PortCaps {
            kind: PortKind::Ethernet,
            mtu_bytes: 65535,
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
