//! Nodes, tenants, volumes, leases, operations and events on the command line.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use contract::{
    Bucket, Class, Command, Event, EventKind, Lease, Name, Node, Operation, OperationId, Resources, Rule,
    Tenant, Trigger, Volume, VolumeLimits,
};

use crate::ask::{Asker, Failure};
use crate::attach;
use crate::table::{Table, bytes, parse_bytes};

/// `tidegate node`
#[derive(Subcommand)]
pub enum NodeCommand {
    /// Show all
    List,
    /// Show one
    Get {
        /// Name or id
        node: String,
    },
    /// Give it nothing new
    Cordon {
        /// Name or id
        node: String,
    },
    /// Let it have something again
    Uncordon {
        /// Name or id
        node: String,
    },
    /// Forget a lost one that serves nothing
    Remove {
        /// Name or id
        node: String,
    },
    /// Judge nodes again although many vanished at once
    OpenValve,
}

/// `tidegate tenant`
#[derive(Subcommand)]
pub enum TenantCommand {
    /// Show all
    List,
    /// Show one
    Get {
        /// Name or id
        tenant: String,
    },
    /// Make one, or change it; what is not said stays as it is
    Put {
        /// Name
        name: Name,
        /// Network identifier in the overlay
        #[arg(long)]
        vni: Option<u32>,
        /// Share where tenants share; 1 if nobody said otherwise
        #[arg(long)]
        weight: Option<u32>,
        /// File with all its rules, as [[rule]] of dataplane.toml: to, protocol, port, action, vtep
        #[arg(long, value_name = "FILE")]
        rules: Option<PathBuf>,
    },
    /// Remove one that has no volume
    Delete {
        /// Name or id
        tenant: String,
    },
}

/// Limits of a volume; without any it has none.
#[derive(clap::Args)]
pub struct LimitArgs {
    /// Operations per second
    #[arg(long, value_name = "IOPS", default_value_t = 0)]
    iops: u64,
    /// Bytes per second, like 40MB
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = parse_bytes)]
    bandwidth: u64,
    /// Operations that may be saved up, earned at --iops and spent at --peak-iops
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    burst_iops: u64,
    /// Most operations per second with what was saved up
    #[arg(long, value_name = "IOPS", default_value_t = 0)]
    peak_iops: u64,
}

impl LimitArgs {
    fn limits(&self) -> VolumeLimits {
        let operations = if self.burst_iops > 0 {
            Bucket { rate: 0, burst_bank: self.burst_iops, burst_fill: self.iops, peak: self.peak_iops }
        } else {
            Bucket { rate: self.iops, burst_bank: 0, burst_fill: 0, peak: self.peak_iops }
        };
        VolumeLimits { operations, bytes: Bucket { rate: self.bandwidth, ..Bucket::default() }, weight: 0 }
    }
}

/// `tidegate volume`
#[derive(Subcommand)]
pub enum VolumeCommand {
    /// Show all
    List,
    /// Show one
    Get {
        /// Name or id
        volume: String,
    },
    /// Show how a host attaches it: the commands, for each node that offers it
    Attach {
        /// Name or id
        volume: String,
    },
    /// Make one and serve it
    Create {
        /// What hosts call it
        name: Name,
        /// How large, like 10GiB
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// Whose it is
        #[arg(long)]
        tenant: String,
        /// Where its files go
        #[arg(long, default_value = "default")]
        pool: Name,
        /// Let it go when its room is needed for something that broke
        #[arg(long)]
        best_effort: bool,
        /// Node that serves it; otherwise the leasing policy's weights choose
        #[arg(long)]
        on: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
        /// Wait until it is served
        #[arg(long)]
        wait: bool,
    },
    /// Give it other limits
    Limit {
        /// Name or id
        volume: String,
        #[command(flatten)]
        limits: LimitArgs,
        /// Refuse if it was changed since this revision
        #[arg(long)]
        expect: Option<u64>,
    },
    /// Make it larger
    Resize {
        /// Name or id
        volume: String,
        /// How large, like 20GiB
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// Wait until it is
        #[arg(long)]
        wait: bool,
    },
    /// Copy it, as it is at one moment while hosts go on, into a volume of its own
    Clone {
        /// Name or id
        volume: String,
        /// What hosts call the copy
        name: Name,
        /// Wait until the copy is served
        #[arg(long)]
        wait: bool,
    },
    /// Read all of it and check its sums
    Scrub {
        /// Name or id
        volume: String,
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// Give its extents more room on the medium
    Expand {
        /// Name or id
        volume: String,
        /// Wait until they have it
        #[arg(long)]
        wait: bool,
    },
    /// Serve it on another node, or on another worker of its node
    Move {
        /// Name or id
        volume: String,
        /// The node; otherwise it is chosen by weight
        #[arg(long)]
        to: Option<String>,
        /// The worker, counted from 0, at the node where it is
        #[arg(long, value_name = "NUMBER", conflicts_with_all = ["to", "now", "within"])]
        worker: Option<u16>,
        /// At once instead of when it disturbs least
        #[arg(long)]
        now: bool,
        /// Begin within so many seconds, however much it disturbs then; otherwise within an hour
        #[arg(long, value_name = "SECONDS", conflicts_with = "now")]
        within: Option<u64>,
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// Delete it, with its data
    Delete {
        /// Name or id
        volume: String,
        /// Overwrite it first
        #[arg(long)]
        wipe: bool,
        /// Refuse if it was changed since this revision
        #[arg(long)]
        expect: Option<u64>,
        /// Wait until it is gone
        #[arg(long)]
        wait: bool,
    },
}

/// `tidegate lease`
#[derive(Subcommand)]
pub enum LeaseCommand {
    /// Show all
    List,
    /// Show one
    Get {
        /// Its id
        lease: String,
    },
    /// Take one from some node, chosen by the leasing policy's weights
    Acquire {
        /// Who asks
        consumer: Name,
        /// Operations per second
        #[arg(long)]
        iops: u64,
        /// Bytes per second, like 40MB
        #[arg(long, default_value = "0", value_parser = parse_bytes)]
        bandwidth: u64,
    },
    /// Keep one; the answer may be one from another node
    Renew {
        /// Its id
        lease: String,
        /// Who has it
        consumer: Name,
    },
    /// Give one back
    Release {
        /// Its id
        lease: String,
        /// Who has it
        consumer: Name,
    },
}

/// `tidegate operation`
#[derive(Subcommand)]
pub enum OperationCommand {
    /// Show those that are not over
    List {
        /// Also those that are
        #[arg(long)]
        all: bool,
    },
    /// Show one
    Get {
        /// Its id
        operation: String,
        /// Wait until it is over
        #[arg(long)]
        wait: bool,
    },
    /// Give one up that does not run yet, or a move whose volume is still where it was
    Cancel {
        /// Its id
        operation: String,
    },
}

/// `tidegate event`
#[derive(Subcommand)]
pub enum EventCommand {
    /// Show all
    List,
    /// Show one
    Get {
        /// Its id
        event: String,
    },
    /// Say that something should be done about a volume
    Register {
        /// What
        kind: Happened,
        /// Name or id
        volume: String,
    },
}

/// What can be registered by hand.
#[derive(Clone, Copy, ValueEnum)]
pub enum Happened {
    /// Its extents are nearly full
    SpaceLow,
    /// Damage was found in it
    Damaged,
    /// Its worker has more than it can do
    WorkerHot,
    /// Its node has more than it can do
    NodeHot,
}

fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Runs `tidegate node`.
pub async fn node(asker: &Asker, command: NodeCommand) -> Result<(), Failure> {
    let find = async |name: &str| Ok::<_, Failure>(asker.one::<Node>("nodes", name).await?.id);
    let command = match command {
        NodeCommand::List => {
            let nodes: Vec<Node> = asker.all("nodes", |node: &Node| node.id.0).await?;
            return asker.show(&nodes, |nodes| {
                let mut table =
                    Table::new(&["ID", "NAME", "STATE", "WORKERS", "IOPS", "BYTES/s", "POOLS", "ADDRESSES"]);
                for node in nodes {
                    let pools: Vec<&str> = node.info.pools.iter().map(|pool| pool.name.as_str()).collect();
                    let cordoned = if node.cordoned { ", cordoned" } else { "" };
                    table.row(vec![
                        node.id.0.to_string(),
                        node.info.name.to_string(),
                        format!("{}{cordoned}", node.state),
                        node.info.workers.to_string(),
                        node.info.capacity.iops.to_string(),
                        bytes(node.info.capacity.bytes_per_s),
                        pools.join(","),
                        node.info.addresses.join(" "),
                    ]);
                }
                table
            });
        }
        NodeCommand::Get { node } => return asker.show_one(&asker.one::<Node>("nodes", &node).await?),
        NodeCommand::Cordon { node } => Command::NodeCordon { node: find(&node).await?, cordoned: true },
        NodeCommand::Uncordon { node } => Command::NodeCordon { node: find(&node).await?, cordoned: false },
        NodeCommand::Remove { node } => Command::NodeRemove { node: find(&node).await? },
        NodeCommand::OpenValve => Command::ValveOpen,
    };
    asker.change_and_tell(command, None, false).await
}

/// Runs `tidegate tenant`.
pub async fn tenant(asker: &Asker, command: TenantCommand) -> Result<(), Failure> {
    let command = match command {
        TenantCommand::List => {
            let tenants: Vec<Tenant> = asker.all("tenants", |tenant: &Tenant| tenant.id.0).await?;
            return asker.show(&tenants, |tenants| {
                let mut table = Table::new(&["ID", "NAME", "VNI", "WEIGHT", "RULES"]);
                for tenant in tenants {
                    let vni = tenant.vni.map_or("-".to_owned(), |vni| vni.to_string());
                    table.row(vec![
                        tenant.id.0.to_string(),
                        tenant.name.to_string(),
                        vni,
                        tenant.weight.to_string(),
                        tenant.rules.len().to_string(),
                    ]);
                }
                table
            });
        }
        TenantCommand::Get { tenant } => {
            return asker.show_one(&asker.one::<Tenant>("tenants", &tenant).await?);
        }
        TenantCommand::Put { name, vni, weight, rules } => {
            return put_tenant(asker, name, vni, weight, rules.as_deref()).await;
        }
        TenantCommand::Delete { tenant } => {
            Command::TenantDelete { tenant: asker.one::<Tenant>("tenants", &tenant).await?.id }
        }
    };
    asker.change_and_tell(command, None, false).await
}

/// Changes what is said of a tenant, unless somebody else has changed it meanwhile.
async fn put_tenant(
    asker: &Asker,
    name: Name,
    vni: Option<u32>,
    weight: Option<u32>,
    rules: Option<&Path>,
) -> Result<(), Failure> {
    let before = match asker.one::<Tenant>("tenants", name.as_str()).await {
        Ok(tenant) => Some(tenant),
        Err(failure) if failure.is_missing() => None,
        Err(failure) => return Err(failure),
    };
    let rules = rules.map(rules_of).transpose()?;
    let expected = before.as_ref().map_or(0, |before| before.revision.0);
    let command = match before {
        None => {
            let (weight, rules) = (weight.unwrap_or(1), rules.unwrap_or_default());
            Command::TenantPut { name, vni, weight, rules }
        }
        Some(before) => Command::TenantPut {
            name,
            vni: vni.or(before.vni),
            weight: weight.unwrap_or(before.weight),
            rules: rules.unwrap_or(before.rules),
        },
    };
    asker.change_and_tell(command, Some(expected), false).await
}

/// The rules in a file.
fn rules_of(path: &Path) -> Result<Vec<Rule>, Failure> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        rule: Vec<Rule>,
    }
    let failed = |error: &dyn std::fmt::Display| Failure::Other(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    let file: File = toml::from_str(&text).map_err(|error| failed(&error))?;
    Ok(file.rule)
}

fn volumes(volumes: &[Volume]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "SIZE", "STATE", "NODE", "EPOCH", "POOL", "CLASS", "TENANT"]);
    for volume in volumes {
        table.row(vec![
            volume.id.0.to_string(),
            volume.name.to_string(),
            bytes(volume.size_bytes),
            word(&volume.state),
            volume.head.map_or("-".to_owned(), |head| head.node.to_string()),
            volume.epoch.0.to_string(),
            volume.pool.to_string(),
            word(&volume.class),
            volume.tenant.to_string(),
        ]);
    }
    table
}

/// Runs `tidegate volume`.
pub async fn volume(asker: &Asker, command: VolumeCommand) -> Result<(), Failure> {
    let find = async |name: &str| Ok::<_, Failure>(asker.one::<Volume>("volumes", name).await?.id);
    let node = async |name: &Option<String>| match name {
        Some(name) => Ok::<_, Failure>(Some(asker.one::<Node>("nodes", name).await?.id)),
        None => Ok(None),
    };
    let (command, expect, wait) = match command {
        VolumeCommand::List => {
            let all: Vec<Volume> = asker.all("volumes", |volume: &Volume| volume.id.0).await?;
            return asker.show(&all, volumes);
        }
        VolumeCommand::Get { volume } => {
            return asker.show_one(&asker.one::<Volume>("volumes", &volume).await?);
        }
        VolumeCommand::Attach { volume } => return attach::run(asker, &volume).await,
        VolumeCommand::Create { name, size, tenant, pool, best_effort, on, limits, wait } => {
            let tenant = asker.one::<Tenant>("tenants", &tenant).await?.id;
            let class = if best_effort { Class::Revocable } else { Class::Firm };
            let (on, limits) = (node(&on).await?, limits.limits());
            let create = Command::VolumeCreate { name, tenant, size_bytes: size, pool, class, limits, on };
            (create, None, wait)
        }
        VolumeCommand::Limit { volume, limits, expect } => {
            (Command::VolumeLimit { volume: find(&volume).await?, limits: limits.limits() }, expect, false)
        }
        VolumeCommand::Resize { volume, size, wait } => {
            (Command::VolumeResize { volume: find(&volume).await?, size_bytes: size }, None, wait)
        }
        VolumeCommand::Clone { volume, name, wait } => {
            (Command::VolumeClone { volume: find(&volume).await?, name }, None, wait)
        }
        VolumeCommand::Scrub { volume, wait } => {
            (Command::VolumeScrub { volume: find(&volume).await? }, None, wait)
        }
        VolumeCommand::Expand { volume, wait } => {
            (Command::VolumeExpand { volume: find(&volume).await? }, None, wait)
        }
        VolumeCommand::Move { volume, worker: Some(worker), wait, .. } => {
            (Command::VolumeMoveWorker { volume: find(&volume).await?, worker }, None, wait)
        }
        VolumeCommand::Move { volume, to, worker: None, now, within, wait } => {
            let (volume, to) = (find(&volume).await?, node(&to).await?);
            let deadline_ms = within.map(|seconds| seconds.saturating_mul(1_000));
            (Command::VolumeMove { volume, to, at_once: now, deadline_ms }, None, wait)
        }
        VolumeCommand::Delete { volume, wipe, expect, wait } => {
            (Command::VolumeDelete { volume: find(&volume).await?, wipe }, expect, wait)
        }
    };
    asker.change_and_tell(command, expect, wait).await
}

/// Runs `tidegate lease`.
pub async fn lease(asker: &Asker, command: LeaseCommand) -> Result<(), Failure> {
    match command {
        LeaseCommand::List => {
            let leases: Vec<Lease> = asker.all("leases", |lease: &Lease| lease.id.0).await?;
            asker.show(&leases, |leases| {
                let mut table = Table::new(&[
                    "ID", "HOLDER", "NODE", "CLASS", "IOPS", "BYTES/s", "EPOCH", "STATE", "WHY",
                ]);
                for lease in leases {
                    table.row(vec![
                        lease.id.0.to_string(),
                        lease.holder.to_string(),
                        lease.producer.to_string(),
                        word(&lease.class),
                        lease.resources.iops.to_string(),
                        bytes(lease.resources.bytes_per_s),
                        lease.epoch.0.to_string(),
                        word(&lease.state),
                        lease.why.clone(),
                    ]);
                }
                table
            })
        }
        LeaseCommand::Get { lease } => asker.show_one(&asker.one::<Lease>("leases", &lease).await?),
        LeaseCommand::Acquire { consumer, iops, bandwidth } => {
            let resources = Resources { iops, bytes_per_s: bandwidth, copy_slots: 0 };
            let asked = Command::LeaseAcquire { consumer, resources, observed: Vec::new() };
            let answer = asker.change(asked, None).await?;
            asker.show_one(&answer.lease)
        }
        LeaseCommand::Renew { lease, consumer } => {
            let lease = asker.one::<Lease>("leases", &lease).await?.id;
            let asked = Command::LeaseRenew { lease, consumer, observed: Vec::new() };
            let answer = asker.change(asked, None).await?;
            asker.show_one(&answer.lease)
        }
        LeaseCommand::Release { lease, consumer } => {
            let lease = asker.one::<Lease>("leases", &lease).await?.id;
            asker.change_and_tell(Command::LeaseRelease { lease, consumer }, None, false).await
        }
    }
}

/// Runs `tidegate operation`.
pub async fn operation(asker: &Asker, command: OperationCommand) -> Result<(), Failure> {
    match command {
        OperationCommand::List { all } => {
            let found: Vec<Operation> = asker.all("operations", |one: &Operation| one.id.0).await?;
            let shown: Vec<Operation> = found.into_iter().filter(|one| all || !one.phase.is_over()).collect();
            asker.show(&shown, |operations| {
                let mut table = Table::new(&["ID", "KIND", "VOLUME", "PHASE", "STEP", "DONE", "WHY"]);
                for one in operations {
                    let step = one.steps.get(usize::from(one.at)).map_or("-".to_owned(), ToString::to_string);
                    let held = one.blocked_on.as_ref().map(ToString::to_string);
                    table.row(vec![
                        one.id.0.to_string(),
                        one.work.kind().to_string(),
                        one.volume.to_string(),
                        word(&one.phase),
                        step,
                        match one.progress.total_bytes {
                            0 => "-".to_owned(),
                            total => format!("{}%", one.progress.done_bytes.saturating_mul(100) / total),
                        },
                        held.unwrap_or_else(|| one.why.clone()),
                    ]);
                }
                table
            })
        }
        OperationCommand::Get { operation, wait } => {
            let mut found: Operation = asker.one("operations", &operation).await?;
            if wait {
                found = asker.wait(found.id).await?;
            }
            asker.show_one(&found)
        }
        OperationCommand::Cancel { operation } => {
            let id: OperationId = operation
                .parse()
                .map_err(|error: contract::ids::IdError| Failure::Other(error.to_string()))?;
            asker.change_and_tell(Command::OperationCancel { operation: id }, None, false).await
        }
    }
}

/// Runs `tidegate event`.
pub async fn event(asker: &Asker, command: EventCommand) -> Result<(), Failure> {
    match command {
        EventCommand::List => {
            let events: Vec<Event> = asker.all("events", |event: &Event| event.id.0).await?;
            asker.show(&events, |events| {
                let mut table =
                    Table::new(&["ID", "KIND", "SUBJECT", "TRIGGER", "FOLDED", "STATUS", "OPERATION"]);
                for event in events {
                    table.row(vec![
                        event.id.0.to_string(),
                        word(&event.kind),
                        event.subject.to_string(),
                        event.trigger.to_string(),
                        event.folded.to_string(),
                        word(&event.status),
                        event.operation.map_or("-".to_owned(), |id| id.to_string()),
                    ]);
                }
                table
            })
        }
        EventCommand::Get { event } => asker.show_one(&asker.one::<Event>("events", &event).await?),
        EventCommand::Register { kind, volume } => {
            let kind = match kind {
                Happened::SpaceLow => EventKind::SpaceLow,
                Happened::Damaged => EventKind::Damaged,
                Happened::WorkerHot => EventKind::WorkerHot,
                Happened::NodeHot => EventKind::NodeHot,
            };
            let volume = asker.one::<Volume>("volumes", &volume).await?.id;
            let asked = Command::EventRegister { kind, volume, trigger: Trigger::Request };
            asker.change_and_tell(asked, None, false).await
        }
    }
}
