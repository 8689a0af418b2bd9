//! The overlay: which frame belongs to whom, where it goes, and in which envelope.
//!
//! Pure computation over frames and immutable tables: no clock, no socket, no thread. From the outside in:
//!
//! - [`Config`] is what an operator says; [`Tables::build`] turns it into [`Tables`], or explains what is
//!   wrong with it. Tables never change; a new configuration is a new `Tables`.
//! - [`process_tenant`] takes a batch from tenants' ports: parse, attachment, anti-spoof, rule lookup. It
//!   leaves a [`Verdict`] per frame and the particulars in the frame's `Meta`.
//! - [`encapsulate`] takes one frame that is to be forwarded, cuts it if it is a super-segment, and puts
//!   the outer headers on from the next hop's template; [`Way`] does that for ordinary frames in a row.
//! - [`process_underlay`] takes a batch from the underlay: outer headers, network identifier, peer, ECN,
//!   strip, inner lookup.
//! - [`Neighbours`] resolves next hops on an Ethernet underlay; [`responder`] answers tenants' ARP and
//!   neighbour discovery.
//!
//! Invariants: a frame of one tenant never reaches another tenant's port; every frame that is not passed
//! on gets exactly one [`frame::DropReason`]; nothing here panics, whatever the bytes.

#![forbid(unsafe_code)]

mod classify;
pub mod coalesce;
mod config;
mod ecn;
mod encap;
mod neighbours;
pub mod responder;
pub mod segment;
mod tables;
mod tenant;
pub mod too_big;
mod underlay;
mod verdict;

pub use config::{
    Action, Attachment, AttachmentId, Config, Destination, Dscp, Encapsulation, GENEVE_PORT, NextHopId,
    PortId, Prefix, Remote, Rule, Source, Tenant, TenantId, Transport, Underlay, UnderlayKind, VXLAN_PORT,
    Volume, VolumeId, Vtep,
};
pub use encap::{Encapsulated, Segmented, Tunnel, Way, encapsulate};
pub use neighbours::{Emitted, NeighbourLimits, Neighbours, Processed};
pub use tables::{
    ATTACHMENTS_MAX, ENDPOINTS_MAX, MASK_TUPLES_MAX, NEXT_HOPS_MAX, RULES_MAX, TENANTS_MAX, TableError,
    Tables, VOLUMES_MAX,
};
pub use tenant::process_tenant;
pub use underlay::process_underlay;
pub use verdict::{Outcomes, Verdict};
pub use wire::geneve::Tidegate;
