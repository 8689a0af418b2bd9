//! A UDP socket as underlay: no privilege needed, the kernel keeps the outer headers.

use std::sync::Arc;

use frame::Slab;

use crate::{OpenError, Port};

/// How to open the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpSpec {
    /// Local address and port.
    pub bind: std::net::SocketAddr,
    /// Remote endpoints, in the order of their `next_hop` numbers.
    pub peers: Vec<std::net::SocketAddr>,
    /// Differentiated-services code point of the outer header, 0..=63.
    pub dscp: u8,
}

/// Opens the port.
pub(crate) fn open(spec: &UdpSpec, _slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    Err(OpenError::Spec { name: format!("{spec:?}"), what: "this driver is not built in".to_owned() })
}
