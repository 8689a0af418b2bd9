//! The words that nodes, people and the control plane share.
//!
//! A leaf: values with serde and nothing else, so that the agent of a data plane, the control plane's core, its
//! store and its API say the same thing with the same word.
//!
//! - [`ids`] names things: an id is a number for good, a [`Name`] is what people call it.
//! - [`resources`] counts: what a node has, what a step needs, what a limit allows.
//! - [`object`] is what is kept: tenants, volumes, nodes, events, leases; [`operation`] is work in steps.
//! - [`node`] is what a node and the control plane tell each other.
//! - [`api`] is what people and programs may ask for, and what they are answered.
//!
//! Times are milliseconds of the control plane's own clock, which stands still while it is down and never goes
//! back. Nobody compares them with another clock: what leaves the control plane is a remaining time or an age.
//! **Leases give liveness, epochs give safety**: nothing on a node reads an expiry.

#![forbid(unsafe_code)]

pub mod api;
pub mod ids;
pub mod node;
pub mod object;
pub mod operation;
pub mod resources;
pub mod rule;

pub use api::{
    Alarm, Answer, Command, Explanation, Live, LiveNode, Observed, Reason, Refused, Request, Status,
};
pub use ids::{
    Epoch, EventId, IdError, LeaseId, Name, NameError, NodeId, OperationId, PolicyDigest, Revision, TenantId,
    Version, VolumeId,
};
pub use node::{
    Condition, Credits, Done, FromNode, Instruction, InstructionKey, NodeInfo, NodeReport, NodeSnapshot,
    NodeStep, Placed, RefusedRules, Role, Serving, StepReport, TenantRules, ToNode, ToNodeBody, VolumeReport,
};
pub use object::{
    Class, Event, EventKind, EventStatus, Head, Holder, Lease, LeaseState, Node, NodeState, Pool, Subject,
    Tenant, Trigger, Volume, VolumeState,
};
pub use operation::{
    Blocked, Grounds, Operation, OperationKind, Phase, Plan, PolicyKind, PolicyRef, Progress, Step, Work,
};
pub use resources::{Bucket, Dim, Limit, Resources, Scope, Usage, VolumeLimits};
pub use rule::Rule;
