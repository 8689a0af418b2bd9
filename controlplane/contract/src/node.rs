//! What a node and the control plane tell each other.
//!
//! Everything is level-triggered: a report says how things are, a snapshot says how they should be, and either is
//! sent again until the other side shows that it knows. So every message may be lost, doubled or late.
//!
//! - A node takes a message only if its [`ToNode::seq`] is new to it: a snapshot above the one that it has, an
//!   instruction above the last [`ToNodeBody::Forget`] (docs/decisions/045).
//! - A node carries an instruction out once for each [`InstructionKey`], remembers the outcome across its own
//!   restarts, and says it in every report until it is told to forget it.
//! - An instruction ends whatever else is unfinished with the same volume, and one that is older than the last
//!   that was taken for its volume is refused: what was given up never hits what came after it.
//! - A freeze holds for the grant that it met and those before, until a thaw or a removal, also across restarts of the
//!   node: it opens the volume frozen, and a freeze that is asked for again says the same credits
//!   (docs/decisions/051). What is not open cannot be frozen.
//! - A delta belongs to the bulk copy before it. If the node does not have that any more, the delta fails for good.
//! - A node opens a volume under a grant if the media know no higher one, and reopens it after its own restart
//!   under the same grant only if that was its own (docs/decisions/044).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, LeaseId, Name, NodeId, OperationId, TenantId, Version, VolumeId};
use crate::object::{EventKind, Pool, Trigger};
use crate::resources::{Resources, VolumeLimits};
use crate::rule::Rule;

/// How a node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeInfo {
    /// What people call it; the same name is the same node.
    pub name: Name,
    /// Grows with every start of the daemon.
    pub incarnation: u64,
    /// Workers.
    pub workers: u16,
    /// What it can serve at once.
    pub capacity: Resources,
    /// Directories for volumes.
    pub pools: Vec<Pool>,
    /// Where hosts reach it, as `protocol://address:port`.
    pub addresses: Vec<String>,
    /// Tenants whose networks it carries, as a gateway.
    #[serde(default)]
    pub networks: Vec<Name>,
}

impl NodeInfo {
    /// Most directories for volumes.
    pub const POOLS_MAX: usize = 256;
    /// Most addresses.
    pub const ADDRESSES_MAX: usize = 64;
    /// Longest address, bytes.
    pub const ADDRESS_LEN_MAX: usize = 256;
    /// Most networks.
    pub const NETWORKS_MAX: usize = 8_192;

    /// Whether a control plane can keep it: it is one record of its store, and those have a longest length.
    pub fn check(&self) -> Result<(), String> {
        for (what, has, max) in [
            ("pools", self.pools.len(), NodeInfo::POOLS_MAX),
            ("addresses", self.addresses.len(), NodeInfo::ADDRESSES_MAX),
            ("networks", self.networks.len(), NodeInfo::NETWORKS_MAX),
        ] {
            if has > max {
                return Err(format!("{} has {has} {what}; give it at most {max}", self.name));
            }
        }
        let max = NodeInfo::ADDRESS_LEN_MAX;
        if let Some(long) = self.addresses.iter().find(|address| address.len() > max) {
            let has = long.len();
            return Err(format!("{} has an address of {has} bytes; give it one of at most {max}", self.name));
        }
        Ok(())
    }
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FromNode {
    /// Once after each connection, and when asked.
    Hello(NodeInfo),
    /// Several times a second.
    Report(NodeReport),
}

/// A heartbeat, and how things are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeReport {
    /// Which start of the daemon.
    pub incarnation: u64,
    /// Grows by one; a report below an earlier one is dropped.
    pub seq: u64,
    /// The snapshot that every worker runs.
    pub running: Version,
    /// Share of its capacity that is used, parts per million.
    pub utilisation_ppm: u32,
    /// Whether `volumes` holds all volumes that are open; about once a second.
    pub whole: bool,
    /// Its open volumes: all of them if `whole`, else those that changed.
    pub volumes: Vec<VolumeReport>,
    /// Every instruction that it knows of and was not told to forget.
    pub steps: Vec<StepReport>,
    /// What it sees and what should be done about.
    pub conditions: Vec<Condition>,
    /// Leases whose holders are gone from it, since it was told that they are revoked.
    pub released: Vec<LeaseId>,
    /// Rules of the snapshot that it cannot carry out; those that it had before of these tenants stay.
    #[serde(default)]
    pub refused: Vec<RefusedRules>,
}

/// Why a node does not carry out the rules of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RefusedRules {
    /// Whose.
    pub tenant: TenantId,
    /// What is wrong, and what to do.
    pub why: String,
}

/// Something that a node sees; said in every report while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Condition {
    /// What.
    pub kind: EventKind,
    /// Of which volume.
    pub volume: VolumeId,
    /// Why it is said.
    pub trigger: Trigger,
}

/// How an open volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeReport {
    /// Which.
    pub volume: VolumeId,
    /// Under which grant it is open, or was when it was fenced.
    pub epoch: Epoch,
    /// The worker that has it.
    pub worker: u16,
    /// How it is.
    pub serving: Serving,
    /// The subsystem that NVMe hosts connect to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nqn: String,
    /// What it sustains now, so that a resize or new limits are seen to be there.
    pub size_bytes: u64,
    /// Operations in the last second.
    pub iops: u32,
    /// Payload in the last second.
    pub bytes_per_s: u64,
    /// Bytes written in the last second. What is written twice counts twice: it is the most that a copy that runs meanwhile
    /// has to copy again.
    pub dirty_bytes_per_s: u64,
    /// 99th percentile of its latency, microseconds.
    pub p99_us: u32,
    /// I/O errors since it was opened.
    pub errors: u64,
    /// What its throttle has saved.
    pub credits: Credits,
}

/// How an open volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Serving {
    /// Being recovered.
    Opening,
    /// It answers.
    Active,
    /// It holds I/O for a hand-over.
    Frozen,
    /// A higher epoch was met; it answers nothing.
    Fenced,
    /// It cannot be opened.
    Failed,
}

/// What a volume's throttle has saved; negative is debt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Credits {
    /// Operations.
    pub operations: i64,
    /// Bytes.
    pub bytes: i64,
}

/// What the control plane says to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ToNode {
    /// Grows with every message to any node, across restarts of the control plane.
    pub seq: u64,
    /// What.
    pub body: ToNodeBody,
}

/// What the control plane says to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ToNodeBody {
    /// You are this node.
    Welcome {
        /// Its id.
        node: NodeId,
    },
    /// Nobody knows you: say [`FromNode::Hello`].
    Introduce,
    /// You are not taken in; what you report is not heard.
    Refused {
        /// What is wrong, and what to do.
        why: String,
    },
    /// This is what you do.
    Snapshot(Box<NodeSnapshot>),
    /// Carry this out, once.
    Instruct(Instruction),
    /// Stop this if it is under way, and report it as failed; also if it was never heard of, and then never do it.
    Cancel(InstructionKey),
    /// The outcome of these is recorded.
    Forget(Vec<InstructionKey>),
    /// Whoever works under this lease must be gone by then.
    Revoke {
        /// The lease.
        lease: LeaseId,
        /// How long it has; 0 = now.
        grace_ms: u64,
    },
}

/// All that a node should do. It replaces the one before as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeSnapshot {
    /// The highest one holds.
    pub version: Version,
    /// Volumes that it serves or stands by for, by id.
    pub volumes: Vec<Placed>,
    /// Networks that it carries ([`NodeInfo::networks`]), by id.
    pub tenants: Vec<TenantRules>,
}

/// A tenant's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantRules {
    /// The tenant.
    pub tenant: TenantId,
    /// Its name.
    pub name: Name,
    /// Its network identifier.
    pub vni: Option<u32>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Placed {
    /// Which.
    pub volume: VolumeId,
    /// What hosts call it.
    pub name: Name,
    /// Whose it is.
    pub tenant: TenantId,
    /// Where its files are.
    pub pool: Name,
    /// Its size.
    pub size_bytes: u64,
    /// What the node does with it.
    pub role: Role,
    /// Under which grant; a node that stands by does not use it.
    pub epoch: Epoch,
    /// The worker that should have it; none = the node chooses.
    pub worker: Option<u16>,
    /// Its limits.
    pub limits: VolumeLimits,
    /// What its throttle begins with when this grant is first opened.
    pub credits: Option<Credits>,
}

/// What a node does with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Open it and serve it.
    Active,
    /// Let hosts connect, answer no I/O, do not open it.
    Standby,
}

/// Names one instruction for good: carried out at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InstructionKey {
    /// Of which operation.
    pub operation: OperationId,
    /// Which of its steps.
    pub step: u16,
    /// Which attempt at it.
    pub tries: u16,
}

impl fmt::Display for InstructionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} step {} try {}", self.operation, self.step, self.tries)
    }
}

/// What a node shall do once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Instruction {
    /// Its name.
    pub key: InstructionKey,
    /// What.
    pub step: NodeStep,
    /// With which volume.
    pub volume: VolumeId,
    /// Where its files are.
    pub pool: Name,
    /// Its size, or the new one.
    pub size_bytes: u64,
    /// With a copy: the volume that is read.
    pub from_volume: Option<VolumeId>,
    /// With a copy: the node that has it.
    pub from_node: Option<NodeId>,
    /// With a copy: what hosts call the volume that is read.
    pub from_name: Option<Name>,
    /// With a copy: where that node is reached, as it said in [`NodeInfo::addresses`].
    pub from_addresses: Vec<String>,
    /// The highest grant of the volume: its files are written under it, and the one that serves next is higher.
    pub epoch: Epoch,
    /// Most that it may read or write.
    pub rate_bytes_per_s: u64,
    /// The lease that it works under, if that can be revoked.
    pub lease: Option<LeaseId>,
}

/// What nodes do in operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NodeStep {
    /// Make the files of a volume.
    Prepare,
    /// Change the size of an open volume.
    Resize,
    /// Give an open volume's extents more room.
    Expand,
    /// Read all of a volume and check its sums.
    Scrub,
    /// Overwrite what a volume that nobody serves wrote.
    Wipe,
    /// Remove the files of a volume.
    Remove,
    /// Make the files of a volume and copy it while it is served. For a clone that is all.
    CopyBulk,
    /// Copy what changed since the bulk copy, of a volume that is frozen, and close the copy.
    CopyDelta,
    /// Hold I/O, flush, and say what the throttle has saved.
    Freeze,
    /// Go on after all.
    Thaw,
}

impl fmt::Display for NodeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeStep::Prepare => "prepare",
            NodeStep::Resize => "resize",
            NodeStep::Expand => "expand",
            NodeStep::Scrub => "scrub",
            NodeStep::Wipe => "wipe",
            NodeStep::Remove => "remove",
            NodeStep::CopyBulk => "copy-bulk",
            NodeStep::CopyDelta => "copy-delta",
            NodeStep::Freeze => "freeze",
            NodeStep::Thaw => "thaw",
        })
    }
}

/// How an instruction stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StepReport {
    /// Which.
    pub key: InstructionKey,
    /// How it stands.
    pub done: Done,
}

/// How an instruction stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// Under way.
    Running {
        /// Bytes done.
        done_bytes: u64,
        /// Of so many.
        total_bytes: u64,
    },
    /// Done.
    Done {
        /// With a freeze: what the throttle had saved.
        credits: Option<Credits>,
    },
    /// Not done, and nothing of it is left.
    Failed {
        /// Why.
        why: String,
        /// Whether trying again may help.
        again: bool,
    },
}
