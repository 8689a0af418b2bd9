//! AF_PACKET: mapped rings and the virtio-net header, so that super-segments come through.

use std::sync::Arc;

use frame::Slab;

use crate::{OpenError, Port};

/// How to open the port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSpec {
    /// Interface name in the network namespace of the calling thread.
    pub interface: String,
    /// Entries of the receive and of the transmit ring.
    pub ring_frames: u32,
    /// Share the interface's flows by hash with the other ports of this number on the same interface
    /// (`PACKET_FANOUT`); `None` receives everything.
    pub fanout_group: Option<u16>,
}

/// Opens the port.
pub(crate) fn open(spec: &PacketSpec, _slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    Err(OpenError::Spec { name: format!("{spec:?}"), what: "this driver is not built in".to_owned() })
}
