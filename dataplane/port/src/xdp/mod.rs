//! AF_XDP: frames straight from a driver queue into the slab, over the kernel's own ABI.

use std::sync::Arc;

use frame::Slab;

use crate::{OpenError, Port};

/// How to open the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpSpec {
    /// Interface name in the network namespace of the calling thread.
    pub interface: String,
    /// Receive and transmit queue, from 0.
    pub queue: u32,
    /// Entries of each of the four rings, a power of two.
    pub ring_frames: u32,
}

/// Opens the port.
pub(crate) fn open(spec: &XdpSpec, _slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    Err(OpenError::Spec { name: format!("{spec:?}"), what: "this driver is not built in".to_owned() })
}
