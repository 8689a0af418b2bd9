//! The immutable tables.

use crate::{AttachmentId, Config, NextHopId, PortId};

/// Tenants, at most.
pub const TENANTS_MAX: usize = 16_384;
/// Configured rules, at most.
pub const RULES_MAX: usize = 100_000;
/// Attachments' sources and remotes together, at most.
pub const ENDPOINTS_MAX: usize = 131_072;
/// Next hops, at most.
pub const NEXT_HOPS_MAX: usize = 16_384;
/// Volumes, at most.
pub const VOLUMES_MAX: usize = 1 << 20;
/// Mask tuples (kinds of match that are not a single address) per tenant, at most (decision D3).
pub const MASK_TUPLES_MAX: usize = 8;

/// Why a configuration was refused; names the item and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A limit is passed.
    #[error("{count} {what}: at most {max}; split the node's load or merge entries into prefixes")]
    Limit {
        /// Of what there are too many.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// Everything that a packet is looked up in. Built whole, never changed, shared by pointer.
#[derive(Debug, Default)]
pub struct Tables {}

impl Tables {
    /// Checks `config` whole and builds its tables. With the tables that it replaces as `previous`, next
    /// hops and attachments keep their numbers, so that frames in flight stay valid.
    pub fn build(config: &Config, previous: Option<&Tables>) -> Result<Tables, TableError> {
        let _ = (config, previous);
        Ok(Tables {})
    }

    /// How many configured rules there are; rule numbers in [`crate::Outcomes::rules`] are positions in
    /// [`Config::rules`].
    pub fn rule_count(&self) -> usize {
        0
    }

    /// How many attachment numbers there are, for arrays of counters.
    pub fn attachment_count(&self) -> usize {
        0
    }

    /// The port and VLAN of an attachment.
    pub fn attachment(&self, id: AttachmentId) -> Option<(PortId, Option<wire::VlanId>)> {
        let _ = id;
        None
    }

    /// How many next hop numbers there are.
    pub fn next_hop_count(&self) -> usize {
        0
    }

    /// The port and the peer's address of a next hop.
    pub fn next_hop(&self, id: NextHopId) -> Option<(PortId, std::net::SocketAddr)> {
        let _ = id;
        None
    }

    /// The peer table of a datagram underlay, for the port's `set_peers`: the address at index n belongs to
    /// next hop n; numbers of other underlays hold the unspecified address.
    pub fn peers(&self, port: PortId) -> Vec<std::net::SocketAddr> {
        let _ = port;
        Vec::new()
    }
}
