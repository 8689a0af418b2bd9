//! How policies stand: for the API, the command line and metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::fault::FaultClass;
use crate::lifecycle::class_index;
use crate::policy::Policy;
use crate::shadow::Comparison;

/// Everything.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "PoliciesStatus"))]
pub struct Status {
    /// One of each kind.
    pub kinds: Vec<KindStatus>,
    /// Policies that are kept ready, oldest first.
    pub library: Vec<PolicyStatus>,
    /// What happened, oldest first; the older ones are in the log.
    pub events: Vec<LifeEvent>,
    /// Records that could not be logged.
    pub log_errors: u64,
    /// Why the last of them could not.
    pub log_last_error: Option<String>,
}

/// A kind of decision.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KindStatus {
    /// Which one.
    pub kind: &'static str,
    /// What decides; `None` is the native default.
    pub active: Option<PolicyStatus>,
    /// What each policy thread runs.
    pub running: Vec<(u32, String)>,
    /// Versions to go back to, the newest last.
    pub previous: Vec<String>,
    /// What is asked beside.
    pub shadow: Option<ShadowStatus>,
    /// Since the start.
    pub counters: CountersRead,
    /// What the last rollback was and why, unless something was activated since.
    pub rolled_back: Option<String>,
}

/// A policy.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it decides.
    pub kind: &'static str,
    /// Of its component.
    pub digest: String,
    /// What it is configured with.
    pub config: BTreeMap<String, String>,
    /// Of its configuration.
    pub config_digest: String,
    /// One sentence.
    pub summary: String,
}

impl From<&Policy> for PolicyStatus {
    fn from(policy: &Policy) -> PolicyStatus {
        PolicyStatus {
            name: policy.id().name.clone(),
            version: policy.id().version.clone(),
            kind: policy.kind().name(),
            digest: policy.id().digest.to_string(),
            config: policy.config().iter().cloned().collect(),
            config_digest: policy.id().config.to_string(),
            summary: policy.summary().to_owned(),
        }
    }
}

/// A shadow.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShadowStatus {
    /// Which policy.
    pub policy: PolicyStatus,
    /// What it did, of all policy threads.
    pub comparison: Comparison,
}

impl ShadowStatus {
    pub(crate) fn of(policy: &Policy) -> ShadowStatus {
        ShadowStatus { policy: policy.into(), comparison: Comparison::default() }
    }
}

/// Something that happened to a policy.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LifeEvent {
    /// Wall clock.
    pub at_ms: u64,
    /// Whose.
    pub kind: &'static str,
    /// What.
    pub what: String,
}

/// Counted per kind.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) decisions: AtomicU64,
    by_policy: AtomicU64,
    abstained: AtomicU64,
    faults: [AtomicU64; FaultClass::ALL.len()],
    pub(crate) activations: AtomicU64,
    pub(crate) rollbacks: AtomicU64,
}

/// [`Status`] of counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CountersRead {
    /// All decisions.
    pub decisions: u64,
    /// Those that a policy has taken.
    pub by_policy: u64,
    /// Those that a policy has left to the native default.
    pub abstained: u64,
    /// Faults by class; after each the native default has decided, but for faults of exporting a state.
    pub faults: BTreeMap<&'static str, u64>,
    /// Versions that became active.
    pub activations: u64,
    /// Versions that were rolled back.
    pub rollbacks: u64,
}

impl Counters {
    pub(crate) fn count(&self, by_policy: bool, fault: Option<FaultClass>) {
        if by_policy {
            self.by_policy.fetch_add(1, Ordering::Relaxed);
        } else if fault.is_none() {
            self.abstained.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(class) = fault {
            self.faults[class_index(class)].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> CountersRead {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let faults =
            FaultClass::ALL.into_iter().map(|class| (class.name(), read(&self.faults[class_index(class)])));
        CountersRead {
            decisions: read(&self.decisions),
            by_policy: read(&self.by_policy),
            abstained: read(&self.abstained),
            faults: faults.filter(|(_, count)| *count > 0).collect(),
            activations: read(&self.activations),
            rollbacks: read(&self.rollbacks),
        }
    }
}

/// The wall clock, which people are told: milliseconds since 1970, in UTC.
pub fn wall_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
