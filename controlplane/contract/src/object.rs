//! What the control plane keeps. Each object is stored by itself under its id, with its revision.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, EventId, LeaseId, Name, NodeId, OperationId, Revision, TenantId, VolumeId};
use crate::node::{Credits, NodeInfo};
use crate::operation::{OperationKind, PolicyRef};
use crate::resources::{Resources, VolumeLimits};
use crate::rule::Rule;

/// Whose volumes and networks are kept apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// What people call it.
    pub name: Name,
    /// Its network identifier in the overlay, if it has a network.
    pub vni: Option<u32>,
    /// Its share where tenants share; 0 counts as 1.
    pub weight: u32,
    /// What its packets may do, beyond what its volumes need.
    pub rules: Vec<Rule>,
    /// How often it was changed.
    pub revision: Revision,
}

/// Where volumes lie: one directory of a node, or one that several nodes see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pool {
    /// Its name; the same name on two nodes means the same directory if it is shared.
    pub name: Name,
    /// Whether all nodes that name it see the same files.
    pub shared: bool,
    /// Bytes that it holds.
    pub capacity_bytes: u64,
}

/// A data-plane daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What it said when it registered.
    pub info: NodeInfo,
    /// Whether it is there.
    pub state: NodeState,
    /// It gets nothing new while it is cordoned.
    pub cordoned: bool,
    /// How often it was changed.
    pub revision: Revision,
}

/// Whether a node is there, as its heartbeats say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Heartbeats are heard.
    Alive,
    /// Some are missing: nothing new is placed there.
    Suspect,
    /// Missing for too long: what it held is given to others.
    Lost,
    /// Heard again, not yet long enough to be trusted with anything.
    Returning,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeState::Alive => "alive",
            NodeState::Suspect => "suspect",
            NodeState::Lost => "lost",
            NodeState::Returning => "returning",
        })
    }
}

/// How much a reservation is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It stands.
    #[default]
    Firm,
    /// It uses what is kept for contingencies and goes when one comes.
    Revocable,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// What people and hosts call it.
    pub name: Name,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its size.
    pub size_bytes: u64,
    /// Where its files are.
    pub pool: Name,
    /// The node that has the files, if the pool is its own.
    pub home: Option<NodeId>,
    /// Firm, or best effort.
    pub class: Class,
    /// Its limits; what they sustain is what its head's lease reserves.
    pub limits: VolumeLimits,
    /// How it is.
    pub state: VolumeState,
    /// The highest epoch ever granted for it.
    pub epoch: Epoch,
    /// Who serves it.
    pub head: Option<Head>,
    /// Who also lets hosts connect, and takes over first.
    pub standby: Option<NodeId>,
    /// What its throttle had saved when it last was handed over; the next head begins with it.
    pub credits: Option<Credits>,
    /// How often it was changed.
    pub revision: Revision,
}

/// How a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Being made.
    Creating,
    /// Its head serves it.
    Serving,
    /// Its head is lost and another one is being found.
    Recovering,
    /// Being removed.
    Deleting,
    /// It could not be made; delete it.
    Failed,
}

/// Who serves a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Head {
    /// The node.
    pub node: NodeId,
    /// Its worker, if somebody chose one.
    pub worker: Option<u16>,
    /// Under which grant.
    pub epoch: Epoch,
    /// What it reserves.
    pub lease: LeaseId,
}

/// Something that happened, or that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// What.
    pub kind: EventKind,
    /// To what.
    pub subject: Subject,
    /// Why it was registered.
    pub trigger: Trigger,
    /// When.
    pub registered_ms: u64,
    /// How often it was registered again while it was open.
    pub folded: u64,
    /// What became of it.
    pub status: EventStatus,
    /// The work that it led to.
    pub operation: Option<OperationId>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Somebody asked for work.
    Requested(OperationKind),
    /// A node was lost with the head of this volume.
    HeadLost,
    /// The extents of this volume are nearly full.
    SpaceLow,
    /// Damage was found in this volume.
    Damaged,
    /// The worker of this volume has more than it can do.
    WorkerHot,
    /// The node of this volume has more than it can do.
    NodeHot,
}

/// To what it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A node.
    Node(NodeId),
    /// A volume.
    Volume(VolumeId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Node(id) => id.fmt(f),
            Subject::Volume(id) => id.fmt(f),
        }
    }
}

/// Why an event was registered; what waits is weighed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Something broke.
    Failure,
    /// A bound was passed.
    Threshold,
    /// A person or program asked.
    Request,
    /// It was due.
    Routine,
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trigger::Failure => "failure",
            Trigger::Threshold => "threshold",
            Trigger::Request => "request",
            Trigger::Routine => "routine",
        })
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventStatus {
    /// Its work is not over.
    Open,
    /// Its work is done.
    Resolved,
    /// Its work failed or was given up.
    Failed,
}

/// A reservation of what a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// For whom.
    pub holder: Holder,
    /// Of which node.
    pub producer: NodeId,
    /// So much.
    pub resources: Resources,
    /// How much it is worth.
    pub class: Class,
    /// How it stands.
    pub state: LeaseState,
    /// For a volume: the grant that its head serves under.
    pub epoch: Epoch,
    /// How long it lasts without being renewed.
    pub ttl_ms: u64,
    /// When it was granted.
    pub granted_ms: u64,
    /// Why that producer.
    pub why: String,
    /// Who decided on the weight by which it was drawn, or that the lease be revoked; none = no policy was asked.
    #[serde(default)]
    pub policy: Option<PolicyRef>,
}

/// Who has a lease.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// The head of a volume; renewed by its node's heartbeats.
    Volume(VolumeId),
    /// An operation; renewed likewise.
    Operation(OperationId),
    /// A consumer outside, which renews it itself.
    Consumer(Name),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Volume(id) => id.fmt(f),
            Holder::Operation(id) => id.fmt(f),
            Holder::Consumer(name) => write!(f, "consumer/{name}"),
        }
    }
}

/// How a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// In force.
    Active,
    /// Its holder was told to go by then; after that it is made to.
    Revoked {
        /// When the grace is over.
        ends_ms: u64,
    },
}
