//! What is counted: of nodes, links, volumes, tenants and the fleet.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, TenantId, VolumeId};
use crate::operation::OperationKind;

/// What a lease reserves of a node, and what a node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Operations per second.
    pub iops: u64,
    /// Payload bytes per second.
    pub bytes_per_s: u64,
    /// Bulk copies at once.
    pub copy_slots: u64,
}

impl Resources {
    /// Nothing.
    pub const NONE: Resources = Resources { iops: 0, bytes_per_s: 0, copy_slots: 0 };

    fn zip(self, other: Resources, of: impl Fn(u64, u64) -> u64) -> Resources {
        Resources {
            iops: of(self.iops, other.iops),
            bytes_per_s: of(self.bytes_per_s, other.bytes_per_s),
            copy_slots: of(self.copy_slots, other.copy_slots),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Resources) -> Resources {
        self.zip(other, u64::saturating_add)
    }

    /// What is left; nothing where `other` is more.
    #[must_use]
    pub fn minus(self, other: Resources) -> Resources {
        self.zip(other, u64::saturating_sub)
    }

    /// The larger one of each.
    #[must_use]
    pub fn max(self, other: Resources) -> Resources {
        self.zip(other, u64::max)
    }

    /// Whether it is no more than `room` in any dimension.
    pub fn fits(self, room: Resources) -> bool {
        self.iops <= room.iops && self.bytes_per_s <= room.bytes_per_s && self.copy_slots <= room.copy_slots
    }

    /// Whether it is nothing at all.
    pub fn is_none(self) -> bool {
        self == Resources::NONE
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} IOPS, {} B/s, {} copies", self.iops, self.bytes_per_s, self.copy_slots)
    }
}

/// What the ledger counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Dim {
    /// Operations at once.
    Operations,
    /// Bulk copies at once, as source or as target.
    CopySlots,
    /// I/O operations per second that the work causes.
    Iops,
    /// Bytes per second that the work causes.
    BytesPerS,
}

impl Dim {
    /// All of them.
    pub const ALL: [Dim; 4] = [Dim::Operations, Dim::CopySlots, Dim::Iops, Dim::BytesPerS];
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dim::Operations => "operations",
            Dim::CopySlots => "copy-slots",
            Dim::Iops => "iops",
            Dim::BytesPerS => "bytes-per-s",
        })
    }
}

/// Where it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything together.
    Fleet,
    /// One node, whether the work reads or writes there.
    Node(NodeId),
    /// Between two nodes, the smaller id first; see [`Scope::link`].
    Link(NodeId, NodeId),
    /// One volume.
    Volume(VolumeId),
    /// One tenant.
    Tenant(TenantId),
    /// One kind of operation.
    Kind(OperationKind),
}

impl Scope {
    /// The link between two nodes, whichever way.
    pub fn link(one: NodeId, other: NodeId) -> Scope {
        Scope::Link(one.min(other), one.max(other))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Fleet => f.write_str("fleet"),
            Scope::Node(id) => id.fmt(f),
            Scope::Link(one, other) => write!(f, "link/{}-{}", one.0, other.0),
            Scope::Volume(id) => id.fmt(f),
            Scope::Tenant(id) => id.fmt(f),
            Scope::Kind(kind) => write!(f, "kind/{kind}"),
        }
    }
}

/// The declared influence of a step: so much of that, there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Usage {
    /// Of what.
    pub dim: Dim,
    /// Where.
    pub scope: Scope,
    /// How much.
    pub amount: u64,
}

/// Most of something somewhere. It may be lowered below what is in use: then the use drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Limit {
    /// Of what.
    pub dim: Dim,
    /// Where.
    pub scope: Scope,
    /// Most.
    pub max: u64,
}

/// Limits of one unit (operations or bytes) of a volume; words as in `dataplane.toml`. 0 = without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Bucket {
    /// Provisioned, per second.
    pub rate: u64,
    /// Most credits that are saved up.
    pub burst_bank: u64,
    /// Credits earned per second.
    pub burst_fill: u64,
    /// Most that everything together may reach, per second.
    pub peak: u64,
}

impl Bucket {
    /// What it can count on for ever, per second.
    pub fn sustained(&self) -> u64 {
        self.rate.saturating_add(self.burst_fill)
    }
}

/// Limits of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct VolumeLimits {
    /// Operations, one for each 256 KiB begun.
    pub operations: Bucket,
    /// Payload bytes.
    pub bytes: Bucket,
    /// Share while a pool is short; 0 = the base rate.
    pub weight: u64,
}

impl VolumeLimits {
    /// What a lease on the volume's head reserves.
    pub fn sustained(&self) -> Resources {
        Resources { iops: self.operations.sustained(), bytes_per_s: self.bytes.sustained(), copy_slots: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_saturate_instead_of_wrapping() {
        let most = Resources { iops: u64::MAX, bytes_per_s: u64::MAX, copy_slots: u64::MAX };
        let one = Resources { iops: 1, bytes_per_s: 1, copy_slots: 1 };
        assert_eq!(most.plus(one), most);
        assert_eq!(one.minus(most), Resources::NONE);
        assert!(one.fits(most) && !most.fits(one));
        assert!(!Resources { iops: 0, bytes_per_s: 2, copy_slots: 0 }.fits(one), "each dimension counts");
    }

    #[test]
    fn a_link_is_the_same_both_ways() {
        assert_eq!(Scope::link(NodeId(2), NodeId(1)), Scope::link(NodeId(1), NodeId(2)));
        assert_eq!(Scope::link(NodeId(2), NodeId(1)).to_string(), "link/1-2");
    }
}
