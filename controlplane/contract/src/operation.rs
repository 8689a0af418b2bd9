//! Work in steps: what an operation does, how far it is, what holds it, and who decided.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, EventId, LeaseId, NodeId, OperationId, Revision, TenantId, VolumeId};
use crate::node::NodeStep;
use crate::object::NodeState;
use crate::resources::{Dim, Resources, Scope};

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
