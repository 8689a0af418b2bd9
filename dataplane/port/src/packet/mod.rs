//! AF_PACKET: mapped rings and the virtio-net header, so that super-segments come through.

use std::sync::Arc;

use frame::Slab;

use crate::{OpenError, Port};

/// How to open the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketSpec {
    /// Interface name in the network namespace of the calling thread.
    pub interface: String,
    /// Entries of the receive and of the transmit ring.
    pub ring_frames: u32,
}

/// Opens the port.
pub(crate) fn open(spec: &PacketSpec, _slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    Err(OpenError::Spec { name: format!("{spec:?}"), what: "this driver is not built in".to_owned() })
}
