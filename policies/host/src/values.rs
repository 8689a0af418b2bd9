//! The types of `wit/types.wit` as the engine passes them: questions are borrowed and copied column by column,
//! answers come as owned values.

use verdict::{
    Accounts, Assignments, Candidates, Choice, Forecast, Leases, Producers, Profile, Resources, Rules,
    Samples, Tenants, Tick, Timing, Transfer, Victims, Weights,
};
use wasmtime::component::{ComponentType, Lift, Lower};

/// A record of columns that is passed to a guest.
macro_rules! columns {
    ($name:ident of $of:ident { $($wit:literal $field:ident: $element:ty,)* }) => {
        #[derive(ComponentType, Lower)]
        #[component(record)]
        pub(crate) struct $name<'a> {
            $(#[component(name = $wit)] $field: &'a [$element],)*
        }

        impl<'a> From<&'a $of> for $name<'a> {
            fn from(of: &'a $of) -> $name<'a> {
                $name { $($field: &of.$field,)* }
            }
        }
    };
}

/// A record of plain numbers that is passed to a guest.
macro_rules! numbers {
    ($name:ident of $of:ident { $($wit:literal $field:ident: $number:ty,)* }) => {
        #[derive(ComponentType, Lower)]
        #[component(record)]
        pub(crate) struct $name {
            $(#[component(name = $wit)] $field: $number,)*
        }

        impl From<$of> for $name {
            fn from(of: $of) -> $name {
                $name { $($field: of.$field,)* }
            }
        }
    };
}

/// A record that comes from a guest.
macro_rules! answer {
    ($name:ident of $of:ident { $($wit:literal $field:ident: $value:ty,)* }) => {
        #[derive(ComponentType, Lift)]
        #[component(record)]
        pub(crate) struct $name {
            $(#[component(name = $wit)] $field: $value,)*
        }

        impl From<$name> for $of {
            fn from(of: $name) -> $of {
                $of { $($field: of.$field.into(),)* }
            }
        }
    };
}

numbers!(TickIn of Tick { "now-ms" now_ms: u64, "seed" seed: u64, "epoch" epoch: u64, });

columns!(CandidatesIn of Candidates {
    "event" event: u64,
    "op" op: u32,
    "handler" handler: u64,
    "tenant" tenant: u64,
    "trigger" trigger: u32,
    "registered-ms" registered_ms: u64,
    "needs-end" needs_end: u32,
    "need-account" need_account: u32,
    "need-amount" need_amount: u64,
});

columns!(AccountsIn of Accounts { "in-use" in_use: u64, "limit" limit: u64, });

columns!(TenantsIn of Tenants { "tenant" tenant: u64, "weight" weight: u32, });

answer!(AssignmentsOut of Assignments {
    "abstain" abstain: bool,
    "candidate" candidate: Vec<u32>,
    "not-before-ms" not_before_ms: Vec<u64>,
    "reason" reason: Vec<u32>,
    "reasons" reasons: Vec<String>,
    "why" why: String,
});

columns!(ProducersIn of Producers {
    "producer" producer: u64,
    "capacity" capacity: u64,
    "utilisation-ppm" utilisation_ppm: u32,
    "error-ppm" error_ppm: u32,
    "response-us" response_us: u64,
    "consumers" consumers: u32,
    "report-age-ms" report_age_ms: u64,
    "weight-ppm" weight_ppm: u32,
});

answer!(WeightsOut of Weights {
    "abstain" abstain: bool,
    "weight-ppm" weight_ppm: Vec<u32>,
    "ttl-ms" ttl_ms: Vec<u32>,
    "why" why: String,
});

numbers!(ResourcesIn of Resources {
    "iops" iops: u64,
    "bytes-per-s" bytes_per_s: u64,
    "copy-slots" copy_slots: u64,
});

columns!(LeasesIn of Leases {
    "lease" lease: u64,
    "producer" producer: u64,
    "holder" holder: u64,
    "granted-ms" granted_ms: u64,
    "iops" iops: u64,
    "bytes-per-s" bytes_per_s: u64,
    "copy-slots" copy_slots: u64,
});

answer!(VictimsOut of Victims {
    "abstain" abstain: bool,
    "lease" lease: Vec<u32>,
    "grace-ms" grace_ms: u32,
    "why" why: String,
});

columns!(SamplesIn of Samples {
    "at-ms" at_ms: u64,
    "iops" iops: u64,
    "bytes-per-s" bytes_per_s: u64,
    "dirty-bytes-per-s" dirty_bytes_per_s: u64,
});

numbers!(RulesIn of Rules {
    "quiet-below-ppm" quiet_below_ppm: u32,
    "blackout-max-us" blackout_max_us: u64,
    "period-min-ms" period_min_ms: u64,
    "period-max-ms" period_max_ms: u64,
});

answer!(ProfileOut of Profile {
    "abstain" abstain: bool,
    "origin-ms" origin_ms: u64,
    "slot-ms" slot_ms: u64,
    "iops" iops: Vec<u64>,
    "dirty-bytes-per-s" dirty_bytes_per_s: Vec<u64>,
    "confidence-ppm" confidence_ppm: u32,
    "why" why: String,
});

/// The one record that goes both ways.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct ProfileIn<'a> {
    abstain: bool,
    #[component(name = "origin-ms")]
    origin_ms: u64,
    #[component(name = "slot-ms")]
    slot_ms: u64,
    iops: &'a [u64],
    #[component(name = "dirty-bytes-per-s")]
    dirty_bytes_per_s: &'a [u64],
    #[component(name = "confidence-ppm")]
    confidence_ppm: u32,
    why: &'a str,
}

impl<'a> From<&'a Profile> for ProfileIn<'a> {
    fn from(of: &'a Profile) -> ProfileIn<'a> {
        ProfileIn {
            abstain: of.abstain,
            origin_ms: of.origin_ms,
            slot_ms: of.slot_ms,
            iops: &of.iops,
            dirty_bytes_per_s: &of.dirty_bytes_per_s,
            confidence_ppm: of.confidence_ppm,
            why: &of.why,
        }
    }
}

numbers!(TransferIn of Transfer {
    "size-bytes" size_bytes: u64,
    "hand-over-us" hand_over_us: u64,
    "deadline-ms" deadline_ms: u64,
    "blackout-max-us" blackout_max_us: u64,
    "quiet-below-ppm" quiet_below_ppm: u32,
});

columns!(ForecastIn of Forecast { "from-ms" from_ms: u64, "free-bytes-per-s" free_bytes_per_s: u64, });

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum ChoiceOut {
    #[component(name = "at")]
    At(u32),
    #[component(name = "now")]
    Now,
    #[component(name = "refuse")]
    Refuse,
}

impl From<ChoiceOut> for Choice {
    fn from(of: ChoiceOut) -> Choice {
        match of {
            ChoiceOut::At(row) => Choice::At(row),
            ChoiceOut::Now => Choice::Now,
            ChoiceOut::Refuse => Choice::Refuse,
        }
    }
}

answer!(TimingOut of Timing {
    "abstain" abstain: bool,
    "choice" choice: ChoiceOut,
    "estimate-us" estimate_us: Vec<u64>,
    "now-estimate-us" now_estimate_us: u64,
    "why" why: String,
});

/// What a policy says about itself.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One sentence.
    pub summary: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct SnapshotOut {
    pub(crate) schema: u32,
    pub(crate) bytes: Vec<u8>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct SnapshotIn<'a> {
    pub(crate) schema: u32,
    pub(crate) bytes: &'a [u8],
}
