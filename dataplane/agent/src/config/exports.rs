//! Volumes that are served, from the file to the engine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::block::{BlockSize, VOLUME_BYTES_MAX};
use engine::frame::IoSlabConfig;
use engine::media::FaultSpec;
use engine::session::nvme_tcp::{
    CONTROLLER_LAST, ENTRIES_MAX, ENTRIES_MIN, Hosts, NAMESPACES_MAX, QUEUES_MAX, SubsystemLimits, is_nqn,
};
use engine::throttle::{Limits, Saved};
use engine::volume::{self, format::LEAF_BYTES};
use engine::{CONNECTIONS_MAX, SERVED_MAX, ServePlan};

use super::file::{self, File, Medium};
use super::lower::{LowerError, unique};
use super::names::Names;
use super::{limits, traces};

/// Least payload memory: two of the longest requests.
const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// For each further worker: twice what its pool keeps although it is idle.
const MEMORY_WORKER_BYTES: u64 = 8 << 20;

/// The part of payload memory that volumes may fill with their maps.
const CACHE_PART: u64 = 4;

/// Where clients come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A volume that is to be served, whoever wants it: the configuration file or a control plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// What NBD clients call it; no other one has it.
    pub name: String,
    /// Text for people.
    pub description: String,
    /// Worker that serves it.
    pub worker: usize,
    /// Changes are refused.
    pub read_only: bool,
    /// Where its bytes are.
    pub place: Place,
    /// What it may do, but for its group.
    pub limits: Limits,
    /// Group whose pool it shares.
    pub group: Option<String>,
    /// NQN, if it is not to be made of the volume's identity. Others may have the same.
    pub nqn: Option<String>,
    /// Number of its namespace (NSID) in the subsystem of that name.
    pub namespace: u32,
    /// NVMe hosts that may attach.
    pub hosts: Hosts,
    /// One in how many of its requests is followed.
    pub sample: u32,
    /// What goes wrong at its medium on purpose.
    pub faults: Option<FaultSpec>,
    /// It is opened to admit nothing until it is thawed.
    pub frozen: bool,
    /// What its throttle begins with.
    pub saved: Option<Saved>,
}

/// Where the bytes of a volume are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory, gone with the daemon.
    Memory {
        /// Size of a block.
        size: BlockSize,
        /// Size in blocks.
        blocks: u64,
    },
    /// Nowhere.
    Null {
        /// Size of a block.
        size: BlockSize,
        /// Size in blocks.
        blocks: u64,
    },
    /// In files.
    Files {
        /// Their directory.
        directory: PathBuf,
        /// Make them, `bytes` long and with blocks of `block`, if the directory is not there.
        create: bool,
        /// How large it is to be at least; as it is, if nothing is said.
        bytes: Option<u64>,
        /// Size of a block, where it is made.
        block: BlockSize,
        /// Identity that it must have, and gets where it is made.
        identity: Option<[u8; 16]>,
        /// The control plane's grant to open it under.
        grant: Option<u64>,
    },
    /// In files that another node serves (decision D13): NVMe hosts are told what is said here, and nothing is opened.
    Standby {
        /// Their directory, for when this node takes them over.
        directory: PathBuf,
        /// Size of a block.
        size: BlockSize,
        /// Size in blocks.
        blocks: u64,
        /// Identity.
        identity: [u8; 16],
    },
}

impl Place {
    /// Size in bytes, where one is said.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Place::Memory { size, blocks }
            | Place::Null { size, blocks }
            | Place::Standby { size, blocks, .. } => Some(blocks << size.shift()),
            Place::Files { bytes, .. } => *bytes,
        }
    }
}

impl Wanted {
    /// What it may do, with the number of its group.
    pub fn limits(&self, names: &Names) -> Limits {
        Limits { group: self.group.as_ref().and_then(|name| names.groups.get(name)), ..self.limits }
    }

    /// Directory of its files.
    pub fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::Files { directory, .. } | Place::Standby { directory, .. } => Some(directory),
            Place::Memory { .. } | Place::Null { .. } => None,
        }
    }

    /// The control plane's grant to open it under.
    pub fn grant(&self) -> Option<u64> {
        match &self.place {
            Place::Files { grant, .. } => *grant,
            _ => None,
        }
    }

    /// Another node serves it.
    pub fn is_standby(&self) -> bool {
        matches!(self.place, Place::Standby { .. })
    }

    /// The other is the same volume under the same names, whatever its size and limits, and whichever node serves it.
    pub fn is_like(&self, other: &Wanted) -> bool {
        let same_place = match (&self.place, &other.place) {
            (Place::Memory { size, .. }, Place::Memory { size: other, .. })
            | (Place::Null { size, .. }, Place::Null { size: other, .. }) => size == other,
            _ => self.directory().is_some() && self.directory() == other.directory(),
        };
        let names = |one: &Wanted| {
            let Wanted { name, description, worker, read_only, nqn, namespace, hosts, .. } = one.clone();
            (name, description, worker, read_only, nqn, namespace, hosts)
        };
        same_place && names(self) == names(other)
    }
}

fn error(place: &str, what: impl Into<String>) -> LowerError {
    LowerError::Key { place: place.to_owned(), what: what.into() }
}

/// What the engine needs for serving, if anything is served or may be later.
pub(crate) fn plan(file: &File) -> Result<Option<ServePlan>, LowerError> {
    if file.export.is_empty() && file.nbd.listen.is_empty() && file.nvme.listen.is_empty() {
        return Ok(None);
    }
    let bytes = file.serve.memory.0;
    let workers = file.worker.len().max(1) as u64;
    let least = MEMORY_BYTES_MIN + MEMORY_WORKER_BYTES * (workers - 1);
    if bytes < least {
        let what = format!("memory is at least {}MiB with {workers} workers", least >> 20);
        return Err(error("[serve]", what));
    }
    let regions = u32::try_from(bytes >> 20).ok().filter(|regions| *regions <= engine::frame::IO_REGIONS_MAX);
    let regions = regions.ok_or_else(|| error("[serve]", "memory is at most 64GiB"))?;
    let connections_max = file.serve.connections;
    if !(1..=CONNECTIONS_MAX).contains(&connections_max) {
        return Err(error("[serve]", format!("connections is 1 to {CONNECTIONS_MAX}")));
    }
    let memory = IoSlabConfig { regions, hugepages: file.serve.hugepages };
    let trace_records = traces::records(file)?;
    let pools = file.controlplane.iter().map(|controlplane| controlplane.pool.len()).sum::<usize>();
    let has_files = pools > 0 || file.export.iter().any(|export| export.directory.is_some());
    Ok(Some(ServePlan { memory, connections_max, trace_records, has_files }))
}

/// Where NBD clients come in.
pub(crate) fn listen(file: &File) -> Result<Vec<Listen>, LowerError> {
    let entry = |text: &String| {
        if text.starts_with('/') {
            return Ok(Listen::Unix(PathBuf::from(text)));
        }
        let expected = "an address with a port, like 127.0.0.1:10809, or an absolute path";
        let (nbd, encrypted) = (&file.nbd, file.nbd.tls.as_ref().is_some_and(|tls| tls.required));
        address("[nbd]", "NBD", text, nbd.public || encrypted, expected).map(Listen::Tcp)
    };
    file.nbd.listen.iter().map(entry).collect()
}

/// Where NVMe hosts come in.
pub(crate) fn listen_nvme(file: &File) -> Result<Vec<Listen>, LowerError> {
    let expected = "an address with a port, like 127.0.0.1:4420";
    let entry = |text: &String| address("[nvme]", "NVMe", text, file.nvme.public, expected).map(Listen::Tcp);
    file.nvme.listen.iter().map(entry).collect()
}

fn address(
    place: &str,
    protocol: &str,
    text: &str,
    may_be_public: bool,
    expected: &'static str,
) -> Result<SocketAddr, LowerError> {
    let wrong = || LowerError::Text { place: place.to_owned(), text: text.to_owned(), expected };
    let address: SocketAddr = text.parse().map_err(|_| wrong())?;
    if address.ip().is_loopback() || may_be_public {
        return Ok(address);
    }
    let tls = if protocol == "NBD" { ", require it with tls = { .. }" } else { "" };
    let what = format!(
        "{address} is reached from elsewhere, and {protocol} without TLS is neither encrypted nor authenticated; \
         listen on 127.0.0.1{tls}, or set public = true"
    );
    Err(error(place, what))
}

/// The volumes to serve, in the order of the file.
pub(crate) fn wanted(file: &File) -> Result<Vec<Wanted>, LowerError> {
    let workers = file.worker.len().max(1);
    let wanted: Vec<_> =
        file.export.iter().map(|export| one(file, export, workers)).collect::<Result<_, _>>()?;
    check(&wanted)?;
    Ok(wanted)
}

/// Whether a set of volumes can be served together.
pub(crate) fn check(wanted: &[Wanted]) -> Result<(), LowerError> {
    unique("export", wanted.iter().map(|one| &one.name))?;
    check_subsystems(wanted)?;
    if wanted.len() > SERVED_MAX as usize {
        return Err(error("[[export]]", format!("at most {SERVED_MAX} volumes can be served")));
    }
    let mut directories = BTreeMap::new();
    for one in wanted {
        let Some(directory) = one.directory() else { continue };
        // Parts that mean nothing ("//", "/./") are left out; links are found when the second owner fences the first.
        let directory: PathBuf = directory.components().collect();
        if let Some(other) = directories.insert(directory, &one.name) {
            let what = format!("export \"{other}\" has the same directory; a volume has one owner");
            return Err(error(&format!("export \"{}\"", one.name), what));
        }
    }
    Ok(())
}

/// Exports with one NQN are namespaces of one subsystem, which has hosts and a worker.
fn check_subsystems(wanted: &[Wanted]) -> Result<(), LowerError> {
    let (mut namespaces, mut subsystems) = (BTreeMap::new(), BTreeMap::new());
    for one in wanted {
        let Some(nqn) = &one.nqn else { continue };
        let place = format!("export \"{}\"", one.name);
        if let Some(other) = namespaces.insert((nqn, one.namespace), &one.name) {
            let what = format!(
                "export \"{other}\" is namespace {} of {nqn}; give one of them another, like namespace = 2",
                one.namespace
            );
            return Err(error(&place, what));
        }
        let first = subsystems.entry(nqn).or_insert(one);
        if first.hosts != one.hosts || first.worker != one.worker {
            let what = format!(
                "export \"{}\" is of the same subsystem {nqn} and has other hosts or another worker; a subsystem has \
                 its hosts and its worker for all namespaces",
                first.name
            );
            return Err(error(&place, what));
        }
    }
    Ok(())
}

/// How controllers of subsystems are numbered, how many there are, and what each may have.
pub(crate) fn controllers(file: &File) -> Result<SubsystemLimits, LowerError> {
    let default = SubsystemLimits::default();
    let first = file.nvme.controller_first.unwrap_or(default.controller_first);
    let count = file.nvme.controllers.unwrap_or(default.controllers_max);
    let last = u32::from(first) + u32::from(count);
    if first == 0 || count == 0 || last > u32::from(CONTROLLER_LAST) + 1 {
        let what = format!(
            "controllers have numbers from controller_first on, {first} and {count} more; 1 to {CONTROLLER_LAST} are possible"
        );
        return Err(error("[nvme]", what));
    }
    let within = |key: &str, value: u16, least: u16, most: u16| match (least..=most).contains(&value) {
        true => Ok(value),
        false => Err(error("[nvme]", format!("{key} is {least} to {most}, not {value}"))),
    };
    Ok(SubsystemLimits {
        controller_first: first,
        controllers_max: count,
        queues_max: within("queues", file.nvme.queues.unwrap_or(default.queues_max), 1, QUEUES_MAX)?,
        entries_max: within(
            "queue_entries",
            file.nvme.queue_entries.unwrap_or(default.entries_max),
            ENTRIES_MIN,
            ENTRIES_MAX,
        )?,
    })
}

/// Leaves of its map that each of so many volumes in files may keep: all together at most a quarter of the payload
/// memory.
pub(crate) fn leaves(memory_bytes: u64, volumes: usize) -> usize {
    let share = memory_bytes / CACHE_PART / LEAF_BYTES as u64 / volumes.max(1) as u64;
    volume::Config::default().leaf_cache_leaves.min(share as usize)
}

fn one(file: &File, export: &file::Export, workers: usize) -> Result<Wanted, LowerError> {
    let place = format!("export \"{}\"", export.name);
    if export.worker >= workers {
        return Err(error(
            &place,
            format!("there is no worker {}, they are 0 to {}", export.worker, workers - 1),
        ));
    }
    let limits = limits::export(file, export)?;
    let size = BlockSize::from_bytes(export.block.unwrap_or(4096));
    let size = size.ok_or_else(|| error(&place, "block is 512 or 4096"))?;
    let blocks = export.size.map(|bytes| blocks(&place, bytes.0, size)).transpose()?;
    let needed = || error(&place, "size is missing, for example size = \"10GiB\"");
    let at = match export.medium {
        Medium::Memory => Place::Memory { size, blocks: blocks.ok_or_else(needed)? },
        Medium::Null => Place::Null { size, blocks: blocks.ok_or_else(needed)? },
        Medium::File => files(&place, export, size, blocks)?,
    };
    let of_files = export.directory.is_some() || export.create || export.standby || export.identity.is_some();
    if export.medium != Medium::File && of_files {
        return Err(error(&place, "directory, create, identity and standby belong to medium = \"file\""));
    }
    let names = export.nqn.iter().chain(export.hosts.iter().flatten());
    if let Some(wrong) = names.into_iter().find(|name| !is_nqn(name)) {
        let what = format!("{wrong:?} is no NVMe qualified name, like nqn.2026-11.com.example:disk");
        return Err(error(&place, what));
    }
    let namespace = export.namespace.unwrap_or(1);
    if export.nqn.is_none() && namespace != 1 {
        return Err(error(&place, "namespace numbers it in the subsystem of nqn, which is missing"));
    }
    if !(1..=NAMESPACES_MAX).contains(&namespace) {
        return Err(error(&place, format!("namespace is 1 to {NAMESPACES_MAX}")));
    }
    let faults = export.faults.as_ref().map(|keys| faults(&place, keys)).transpose()?;
    Ok(Wanted {
        name: export.name.clone(),
        description: export.description.clone(),
        worker: export.worker,
        read_only: export.read_only,
        place: at,
        limits,
        group: export.group.clone(),
        nqn: export.nqn.clone(),
        namespace,
        hosts: export.hosts.clone().map_or(Hosts::Any, Hosts::Only),
        sample: traces::sample(file, export),
        faults,
        frozen: false,
        saved: None,
    })
}

/// A volume in files, here or at another node.
fn files(
    place: &str,
    export: &file::Export,
    size: BlockSize,
    blocks: Option<u64>,
) -> Result<Place, LowerError> {
    let missing = || error(place, "medium = \"file\" needs directory, an absolute path");
    let directory = export.directory.as_deref().filter(|path| path.is_absolute());
    let directory = directory.ok_or_else(missing)?.to_owned();
    let identity = export.identity.as_deref().map(|text| identity(place, text)).transpose()?;
    if export.create && blocks.is_none() {
        return Err(error(place, "size is missing, for example size = \"10GiB\""));
    }
    if !export.standby {
        let bytes = blocks.map(|blocks| blocks << size.shift());
        return Ok(Place::Files {
            directory,
            create: export.create,
            bytes,
            block: size,
            identity,
            grant: None,
        });
    }
    let what = "a standby tells hosts what its configuration says: it needs size, and identity as \
                `tidegate-dataplane volume list` shows it";
    let (Some(blocks), Some(identity)) = (blocks, identity) else { return Err(error(place, what)) };
    Ok(Place::Standby { directory, size, blocks, identity })
}

/// 32 hexadecimal digits; dashes between them, as in UUIDs, say nothing.
fn identity(place: &str, text: &str) -> Result<[u8; 16], LowerError> {
    let expected = "an identity: 32 hexadecimal digits, not all 0";
    let wrong = || LowerError::Text { place: place.to_owned(), text: text.to_owned(), expected };
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let is_hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let value = u128::from_str_radix(&digits, 16).ok().filter(|value| is_hex && *value != 0);
    value.map(u128::to_be_bytes).ok_or_else(wrong)
}

fn faults(place: &str, keys: &file::MediumFaults) -> Result<FaultSpec, LowerError> {
    let spec = FaultSpec {
        seed: keys.seed,
        read_delay: keys.read_delay,
        write_delay: keys.write_delay,
        delay_ns: keys.delay_by.map_or(1_000_000, |delay| delay.0),
        read_error: keys.read_error,
        write_error: keys.write_error,
    };
    spec.check().map_err(|wrong| error(place, format!("faults: {wrong}")))?;
    Ok(spec)
}

fn blocks(place: &str, bytes: u64, size: BlockSize) -> Result<u64, LowerError> {
    if bytes == 0 || bytes > VOLUME_BYTES_MAX || !bytes.is_multiple_of(u64::from(size.bytes())) {
        return Err(error(place, "size is a whole number of blocks, up to 64TiB"));
    }
    Ok(bytes >> size.shift())
}

/// Whether two files have the same place for serving, whatever is served there and with which certificates.
pub(crate) fn same(old: &File, new: &File) -> bool {
    let fixed = |file: &File| {
        let nbd = file::Nbd { tls: None, ..file.nbd.clone() };
        format!("{:?} {nbd:?} {:?}", file.serve, file.nvme)
    };
    let any = |file: &File| plan(file).is_ok_and(|plan| plan.is_some());
    fixed(old) == fixed(new) && (any(old) || !any(new))
}
