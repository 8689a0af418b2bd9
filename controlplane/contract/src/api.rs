//! What people and programs may ask of the control plane, and what they are answered.
//!
//! Every change carries an idempotency key, so that a client which did not hear the answer may ask again, and may
//! carry the revision that it expects, so that it does not undo what another one did.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{EventId, LeaseId, Name, NodeId, OperationId, Revision, TenantId, Version, VolumeId};
use crate::node::{StepReport, VolumeReport};
use crate::object::{Class, EventKind, Lease, Trigger};
use crate::operation::PolicyRef;
use crate::resources::{Dim, Limit, Resources, Scope, VolumeLimits};
use crate::rule::Rule;

/// Something asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The same key gets the same answer and is carried out once; empty = not wanted.
    #[serde(default)]
    pub idempotency_key: String,
    /// The revision of the object that it is about; none = whichever. What has none (limits, leases, the valve) is
    /// refused with one.
    #[serde(default)]
    pub expected_revision: Option<Revision>,
    /// What.
    pub command: Command,
}

/// What may be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Make a tenant, or change it.
    TenantPut {
        /// Its name.
        name: Name,
        /// Its network identifier.
        vni: Option<u32>,
        /// Its share; 0 counts as 1.
        weight: u32,
        /// Its rules.
        rules: Vec<Rule>,
    },
    /// Remove a tenant that has no volume.
    TenantDelete {
        /// Which.
        tenant: TenantId,
    },
    /// Make a volume and serve it.
    VolumeCreate {
        /// What hosts call it.
        name: Name,
        /// Whose it is.
        tenant: TenantId,
        /// Its size.
        size_bytes: u64,
        /// Where its files go.
        pool: Name,
        /// Firm, or best effort.
        class: Class,
        /// Its limits.
        limits: VolumeLimits,
        /// The node that serves it; none = chosen by weight.
        on: Option<NodeId>,
    },
    /// Give a volume other limits.
    VolumeLimit {
        /// Which.
        volume: VolumeId,
        /// The new ones.
        limits: VolumeLimits,
    },
    /// Change its size.
    VolumeResize {
        /// Which.
        volume: VolumeId,
        /// The new size.
        size_bytes: u64,
    },
    /// Remove it.
    VolumeDelete {
        /// Which.
        volume: VolumeId,
        /// Overwrite it first.
        wipe: bool,
    },
    /// Check it.
    VolumeScrub {
        /// Which.
        volume: VolumeId,
    },
    /// Copy it.
    VolumeClone {
        /// Which.
        volume: VolumeId,
        /// What the copy is called.
        name: Name,
    },
    /// Give its extents more room.
    VolumeExpand {
        /// Which.
        volume: VolumeId,
    },
    /// Serve it on another worker.
    VolumeMoveWorker {
        /// Which.
        volume: VolumeId,
        /// The worker.
        worker: u16,
    },
    /// Serve it on another node.
    VolumeMove {
        /// Which.
        volume: VolumeId,
        /// The node; none = chosen by weight.
        to: Option<NodeId>,
        /// Now, or when it disturbs least.
        at_once: bool,
        /// It must have begun within so long; none = within the default.
        deadline_ms: Option<u64>,
    },
    /// Give a node nothing new, or let it have something again.
    NodeCordon {
        /// Which.
        node: NodeId,
        /// Nothing new.
        cordoned: bool,
    },
    /// Forget a lost node that serves nothing.
    NodeRemove {
        /// Which.
        node: NodeId,
    },
    /// Set a limit of the ledger, of something that is there.
    LimitPut(Limit),
    /// Remove a limit; what holds where nobody set one holds again.
    LimitDelete {
        /// Of what.
        dim: Dim,
        /// Where.
        scope: Scope,
    },
    /// Give up an operation that does not run yet, or a move whose volume is not served elsewhere yet.
    OperationCancel {
        /// Which.
        operation: OperationId,
    },
    /// Register an event about a volume.
    EventRegister {
        /// What.
        kind: EventKind,
        /// About which.
        volume: VolumeId,
        /// Why.
        trigger: Trigger,
    },
    /// Take a lease from some producer.
    LeaseAcquire {
        /// Who asks.
        consumer: Name,
        /// What for.
        resources: Resources,
        /// What it saw of the producers that it used.
        observed: Vec<Observed>,
    },
    /// Keep a lease; the answer may be one from another producer.
    LeaseRenew {
        /// Which.
        lease: LeaseId,
        /// Who asks.
        consumer: Name,
        /// What it saw of the producers that it used.
        observed: Vec<Observed>,
    },
    /// Give a lease back.
    LeaseRelease {
        /// Which.
        lease: LeaseId,
        /// Who asks.
        consumer: Name,
    },
    /// Judge nodes again although a large part of the fleet vanished at once.
    ValveOpen,
}

/// What a consumer saw of a producer since it last said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Observed {
    /// The producer.
    pub producer: NodeId,
    /// Requests.
    pub requests: u64,
    /// Of which failed.
    pub errors: u64,
    /// Mean time to answer, microseconds.
    pub response_us: u64,
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Answer {
    /// The tenant that it was about.
    pub tenant: Option<TenantId>,
    /// The volume that it was about.
    pub volume: Option<VolumeId>,
    /// The event that was registered.
    pub event: Option<EventId>,
    /// The work that it leads to.
    pub operation: Option<OperationId>,
    /// The lease that was granted.
    pub lease: Option<Lease>,
    /// How long the lease lasts from now.
    pub remaining_ms: Option<u64>,
    /// The revision of the object now.
    pub revision: Revision,
}

/// Why something asked for is not done. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// There is none.
    #[error("there is no {0}; `{list}` shows those that are there", list = list_of(.0))]
    NotFound(String),
    /// There is one already.
    #[error("{0} is there already; choose another name")]
    Exists(String),
    /// Another one was faster.
    #[error("it is at revision {is}, not {expected}; read it again and decide anew", is = .is.0, expected = .expected.0)]
    Revision {
        /// Expected.
        expected: Revision,
        /// There.
        is: Revision,
    },
    /// The same key was used for something else.
    #[error("the idempotency key was used for another request; use a new one")]
    KeyReused,
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be done while things are so.
    #[error("{0}")]
    Conflict(String),
    /// A bound of the control plane is reached.
    #[error("there are {max} {what} already; remove some")]
    TooMany {
        /// Of what.
        what: String,
        /// Most.
        max: u64,
    },
    /// No node has room.
    #[error("no node has room for {need}; free some, add a node, or ask again in {retry_after_ms} ms")]
    NoRoom {
        /// What was asked for.
        need: Resources,
        /// When it may be worth asking again.
        retry_after_ms: u64,
    },
}

/// What lists things of the sort that a text like `volume/7` begins with.
fn list_of(named: &str) -> String {
    let sort = named.split(['/', ' ']).next().unwrap_or_default();
    match sort {
        // Pools are listed with the nodes that have them.
        "pool" => "tidegate -o json node list".to_owned(),
        sort => format!("tidegate {sort} list"),
    }
}

/// Why something is as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// What it is about.
    pub about: String,
    /// In one sentence.
    pub state: String,
    /// One sentence for each thing that holds it or led to it, the most important first.
    pub reasons: Vec<Reason>,
}

/// A reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reason {
    /// The sentence.
    pub text: String,
    /// The node that it names.
    pub node: Option<NodeId>,
    /// Who decided so.
    pub policy: Option<PolicyRef>,
}

/// How the control plane is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// How often it was started.
    pub start: u64,
    /// Its clock.
    pub now_ms: u64,
    /// How many there are.
    pub tenants: u64,
    /// How many there are.
    pub nodes: u64,
    /// Of which are lost: what they have counts for nothing until they are back.
    #[serde(default)]
    pub nodes_lost: u64,
    /// How many there are.
    pub volumes: u64,
    /// Operations that are not over.
    pub operations_open: u64,
    /// How many there are.
    pub leases: u64,
    /// Decisions since this start.
    pub decisions: u64,
    /// Of which the native default took in place of a policy.
    pub decided_natively_instead: u64,
    /// Answers of policies that came too late to be used.
    pub answers_late: u64,
    /// Reports of nodes since this start.
    pub reports: u64,
    /// Of which were older than one that was there.
    pub reports_dropped: u64,
    /// What somebody should look at, since this start: the newest hundred, the newest first.
    #[serde(default)]
    pub alarms: Vec<Alarm>,
}

/// Something that somebody should look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Alarm {
    /// Wall clock, when it came last.
    pub at_ms: u64,
    /// How often it came.
    pub times: u64,
    /// What, and what to do.
    pub what: String,
}

/// What nodes said last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Live {
    /// Those that are linked, by name.
    pub nodes: BTreeMap<String, LiveNode>,
}

/// What a node said last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LiveNode {
    /// The snapshot that every worker runs.
    pub running: Version,
    /// Share of its capacity that is used, parts per million.
    pub utilisation_ppm: u32,
    /// Which start of the daemon.
    pub incarnation: u64,
    /// Number of the report.
    pub seq: u64,
    /// Every instruction that it knows of and was not told to forget.
    pub steps: Vec<StepReport>,
    /// All volumes that it has open.
    pub volumes: Vec<VolumeReport>,
}
