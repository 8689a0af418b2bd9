//! What the control plane keeps. Each object is stored by itself under its id, with its revision.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, EventId, LeaseId, Name, NodeId, OperationId, Revision, TenantId, VolumeId};
use crate::node::{Credits, NodeInfo, NodeStep};
use crate::resources::{Dim, Resources, Scope, VolumeLimits};
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

/// What kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Make a volume and serve it.
    Create,
    /// Change its size.
    Resize,
    /// Stop serving it, overwrite it, remove it.
    Delete,
    /// Read all of it and check its sums.
    Scrub,
    /// Make a copy that is a volume of its own.
    Clone,
    /// Give its extents more room.
    Expand,
    /// Serve it on another worker of its node.
    MoveWorker,
    /// Serve it on another node.
    MoveNode,
    /// Serve it elsewhere because its head is lost.
    Failover,
}

impl OperationKind {
    /// All of them.
    pub const ALL: [OperationKind; 9] = [
        OperationKind::Create,
        OperationKind::Resize,
        OperationKind::Delete,
        OperationKind::Scrub,
        OperationKind::Clone,
        OperationKind::Expand,
        OperationKind::MoveWorker,
        OperationKind::MoveNode,
        OperationKind::Failover,
    ];

    /// Whether it reserves room for the volume's next head.
    pub fn takes_lease(self) -> bool {
        matches!(
            self,
            OperationKind::Create | OperationKind::Clone | OperationKind::MoveNode | OperationKind::Failover
        )
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationKind::Create => "create",
            OperationKind::Resize => "resize",
            OperationKind::Delete => "delete",
            OperationKind::Scrub => "scrub",
            OperationKind::Clone => "clone",
            OperationKind::Expand => "expand",
            OperationKind::MoveWorker => "move-worker",
            OperationKind::MoveNode => "move-node",
            OperationKind::Failover => "failover",
        })
    }
}

/// Work in steps. Its id is its idempotency key at the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it is done for.
    pub event: EventId,
    /// What is done.
    pub work: Work,
    /// To which volume.
    pub volume: VolumeId,
    /// Whose.
    pub tenant: TenantId,
    /// Where it comes from: the head that is left or read.
    pub source: Option<NodeId>,
    /// Where it goes: the node that does the work or serves next.
    pub target: Option<NodeId>,
    /// Whether somebody chose the target.
    pub pinned: bool,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The one that is next or under way; `steps.len()` when all are done.
    pub at: u16,
    /// How often a step was begun anew, for whatever reason; it only grows.
    pub tries: u16,
    /// How often a step failed.
    pub failures: u16,
    /// How it stands.
    pub phase: Phase,
    /// How far the step is.
    pub progress: Progress,
    /// What holds it up.
    pub blocked_on: Option<Blocked>,
    /// When it was asked for.
    pub created_ms: u64,
    /// When this step began.
    pub step_began_ms: u64,
    /// When this step has taken too long.
    pub step_ends_ms: u64,
    /// It does not begin before.
    pub not_before_ms: u64,
    /// For a move: by when it must have begun.
    pub deadline_ms: Option<u64>,
    /// For a move: the time that was chosen.
    pub plan: Option<Plan>,
    /// For a move: how the load of its volume was seen when that time was chosen.
    #[serde(default)]
    pub profile: Option<Grounds>,
    /// The epoch that it granted to its target.
    pub granted: Option<Epoch>,
    /// The revocable lease that it works under.
    pub lease: Option<LeaseId>,
    /// Why it was chosen, or why it ended as it did.
    pub why: String,
    /// Who chose.
    pub policy: PolicyRef,
    /// How often it was changed.
    pub revision: Revision,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Make the volume.
    Create,
    /// Give it another size.
    Resize {
        /// The new one.
        size_bytes: u64,
    },
    /// Remove it.
    Delete {
        /// Overwrite it first.
        wipe: bool,
    },
    /// Check it.
    Scrub,
    /// Fill it from another one.
    Clone {
        /// The one that is copied.
        from: VolumeId,
    },
    /// Give its extents more room.
    Expand,
    /// Serve it on this worker.
    MoveWorker {
        /// The worker.
        worker: u16,
    },
    /// Serve it on another node.
    MoveNode {
        /// At once, or when it disturbs least.
        at_once: bool,
    },
    /// Serve it elsewhere.
    Failover,
}

impl Work {
    /// Its kind.
    pub fn kind(&self) -> OperationKind {
        match self {
            Work::Create => OperationKind::Create,
            Work::Resize { .. } => OperationKind::Resize,
            Work::Delete { .. } => OperationKind::Delete,
            Work::Scrub => OperationKind::Scrub,
            Work::Clone { .. } => OperationKind::Clone,
            Work::Expand => OperationKind::Expand,
            Work::MoveWorker { .. } => OperationKind::MoveWorker,
            Work::MoveNode { .. } => OperationKind::MoveNode,
            Work::Failover => OperationKind::Failover,
        }
    }
}

/// One step of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Take a lease on a node for the volume's next head, revoking others where it must.
    Reserve,
    /// The source does this.
    Source(NodeStep),
    /// The target does this.
    Target(NodeStep),
    /// Grant the next epoch to the target, tell it to serve, and wait until it does.
    Serve,
    /// Tell the head to serve the volume as it is now, and wait until it does.
    Refresh,
    /// Tell the source to serve it no more, and wait until it does not.
    Withdraw,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Reserve => f.write_str("reserve"),
            Step::Source(step) | Step::Target(step) => step.fmt(f),
            Step::Serve => f.write_str("serve"),
            Step::Refresh => f.write_str("refresh"),
            Step::Withdraw => f.write_str("withdraw"),
        }
    }
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nobody decided on it yet; it counts nowhere.
    Waiting,
    /// It was decided on and counts as if it ran.
    Scheduled,
    /// A step is under way.
    Running,
    /// It is taken back after a step failed for good.
    Undoing,
    /// All is done.
    Done,
    /// It failed, and nothing of it is left.
    Failed,
    /// Somebody gave it up before it ran.
    Cancelled,
}

impl Phase {
    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(self, Phase::Done | Phase::Failed | Phase::Cancelled)
    }

    /// Whether it counts in the ledger.
    pub fn counts(self) -> bool {
        matches!(self, Phase::Scheduled | Phase::Running | Phase::Undoing)
    }
}

/// How far a step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// What holds something up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// A limit is reached.
    Limit {
        /// Of what.
        dim: Dim,
        /// Where.
        scope: Scope,
        /// What is counted there.
        used: u64,
        /// What it needs.
        need: u64,
        /// Most.
        max: u64,
    },
    /// No node has the room for it.
    Capacity {
        /// What it needs.
        need: Resources,
        /// The most that a node could give.
        room: Resources,
    },
    /// Leases were revoked and their holders have until then to go.
    Grace {
        /// The node.
        node: NodeId,
        /// How long yet.
        remaining_ms: u64,
    },
    /// The policy did not choose it yet.
    Policy {
        /// Which.
        policy: PolicyKind,
        /// Its word for why, if it said.
        why: String,
    },
    /// A time was chosen for it.
    Time {
        /// How long yet.
        remaining_ms: u64,
    },
    /// A node does it, or does not answer.
    Node {
        /// The node.
        node: NodeId,
        /// Whether it is there.
        state: NodeState,
    },
    /// No node may do it.
    NoNode {
        /// What would be needed.
        why: String,
    },
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocked::Limit { dim, scope, used, need, max } => {
                write!(f, "{scope} has {used} of {max} {dim} in use or scheduled, and it needs {need}")
            }
            Blocked::Capacity { need, room } => {
                write!(f, "no node has room for {need}; the most that one could give is {room}")
            }
            Blocked::Grace { node, remaining_ms } => {
                write!(f, "holders of revoked leases on {node} have {remaining_ms} ms left to go")
            }
            Blocked::Policy { policy, why } if why.is_empty() => {
                write!(f, "the {policy} policy did not choose it yet")
            }
            Blocked::Policy { policy, why } => write!(f, "the {policy} policy holds it: {why}"),
            Blocked::Time { remaining_ms } => write!(f, "it was planned to go on in {remaining_ms} ms"),
            Blocked::Node { node, state } => write!(f, "{node}, which is {state}, has it"),
            Blocked::NoNode { why } => write!(f, "no node can do it: {why}"),
        }
    }
}

/// When a volume will be moved, and what that will cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Plan {
    /// When the bulk copy may begin and the link is taken.
    pub starts_ms: u64,
    /// When the link is free again.
    pub ends_ms: u64,
    /// How long hosts will wait.
    pub blackout_us: u64,
    /// How many times were compared.
    pub candidates: u32,
}

/// Which decisions a policy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// What runs next, where, and when.
    Scheduling,
    /// Weights of producers, times to live, victims.
    Leasing,
    /// When a volume is moved.
    Migration,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [PolicyKind; 3] = [PolicyKind::Scheduling, PolicyKind::Leasing, PolicyKind::Migration];
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PolicyKind::Scheduling => "scheduling",
            PolicyKind::Leasing => "leasing",
            PolicyKind::Migration => "migration",
        })
    }
}

/// Who decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyRef {
    /// Name, version and digest of the policy, or `native`.
    pub policy: String,
    /// Its number in the decision log; 0 = it is not there.
    pub decision: u64,
    /// Why the native default answered in place of a policy.
    pub instead: Option<String>,
}

impl Default for PolicyRef {
    fn default() -> PolicyRef {
        PolicyRef { policy: "native".into(), decision: 0, instead: None }
    }
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.instead, self.policy.as_str()) {
            (Some(why), policy) => write!(f, "the native default in place of {policy}: {why}"),
            (None, "native") => f.write_str("the native default"),
            (None, policy) => write!(f, "{policy}, decision {}", self.decision),
        }
    }
}

/// Why something is as it is, in the words of who decided so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Grounds {
    /// Why so.
    pub why: String,
    /// Who decided.
    pub by: PolicyRef,
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
