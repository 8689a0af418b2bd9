//! Volumes that are served, from the file to the engine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use engine::block::{BlockSize, VOLUME_BYTES_MAX, VolumeId};
use engine::frame::IoSlabConfig;
use engine::session::nvme_tcp::{Hosts, is_nqn};
use engine::throttle::Limits;
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

/// A volume to serve.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub volume: VolumeId,
    pub name: String,
    pub description: String,
    pub worker: usize,
    pub read_only: bool,
    pub place: Place,
    limits: Limits,
    group: Option<String>,
    /// NQN, if it is not to be made of the volume's identity.
    pub nqn: Option<String>,
    pub hosts: Hosts,
    /// One in how many of its requests is followed.
    pub sample: u32,
}

/// Where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Memory {
        size: BlockSize,
        blocks: u64,
    },
    Null {
        size: BlockSize,
        blocks: u64,
    },
    /// `create`: how large to make it if it is not there; `leaves` of its map that may be kept in memory.
    Files {
        directory: PathBuf,
        create: Option<(BlockSize, u64)>,
        leaves: usize,
    },
}

impl Served {
    /// What it may do, with the number of its group.
    pub fn limits(&self, names: &Names) -> Limits {
        Limits { group: self.group.as_ref().and_then(|name| names.groups.get(name)), ..self.limits }
    }
}

fn error(place: &str, what: impl Into<String>) -> LowerError {
    LowerError::Key { place: place.to_owned(), what: what.into() }
}

/// What the engine needs for serving, if anything is served.
pub(crate) fn plan(file: &File) -> Result<Option<ServePlan>, LowerError> {
    if file.export.is_empty() {
        let listens = [("[nbd]", &file.nbd.listen), ("[nvme]", &file.nvme.listen)];
        return match listens.iter().find(|(_, listen)| !listen.is_empty()) {
            None => Ok(None),
            Some((place, _)) => {
                Err(error(place, "there is nothing to serve; add an [[export]] or remove listen"))
            }
        };
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
    Ok(Some(ServePlan { memory, connections_max, trace_records }))
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

/// The volumes to serve, numbered in the order of the file.
pub(crate) fn served(file: &File) -> Result<Vec<Served>, LowerError> {
    unique("export", file.export.iter().map(|export| &export.name))?;
    unique("nqn", file.export.iter().filter_map(|export| export.nqn.as_ref()))?;
    if file.export.len() > SERVED_MAX as usize {
        return Err(error("[[export]]", format!("at most {SERVED_MAX} volumes can be served")));
    }
    let mut directories = BTreeMap::new();
    for export in &file.export {
        let Some(directory) = export.directory.as_deref() else { continue };
        // Parts that mean nothing ("//", "/./") are left out; links are found when the second owner fences the first.
        let directory: PathBuf = directory.components().collect();
        if let Some(other) = directories.insert(directory, &export.name) {
            let what = format!("export \"{other}\" has the same directory; a volume has one owner");
            return Err(error(&format!("export \"{}\"", export.name), what));
        }
    }
    let workers = file.worker.len().max(1);
    let leaves = leaves(file);
    (0..)
        .zip(&file.export)
        .map(|(number, export)| one(VolumeId(number), file, export, workers, leaves))
        .collect()
}

/// Leaves of the map that each volume in files may keep: all together at most a quarter of the payload memory.
fn leaves(file: &File) -> usize {
    let volumes = file.export.iter().filter(|export| export.medium == Medium::File).count().max(1);
    let share = file.serve.memory.0 / CACHE_PART / LEAF_BYTES as u64 / volumes as u64;
    volume::Config::default().leaf_cache_leaves.min(share as usize)
}

fn one(
    volume: VolumeId,
    file: &File,
    export: &file::Export,
    workers: usize,
    leaves: usize,
) -> Result<Served, LowerError> {
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
        Medium::File => {
            let missing = || error(&place, "medium = \"file\" needs directory, an absolute path");
            let directory = export.directory.as_deref().filter(|path| path.is_absolute());
            let directory = directory.ok_or_else(missing)?.to_owned();
            let create = if export.create { Some((size, blocks.ok_or_else(needed)?)) } else { None };
            Place::Files { directory, create, leaves }
        }
    };
    if export.medium != Medium::File && (export.directory.is_some() || export.create) {
        return Err(error(&place, "directory and create belong to medium = \"file\""));
    }
    let names = export.nqn.iter().chain(export.hosts.iter().flatten());
    if let Some(wrong) = names.into_iter().find(|name| !is_nqn(name)) {
        let what = format!("{wrong:?} is no NVMe qualified name, like nqn.2026-11.com.example:disk");
        return Err(error(&place, what));
    }
    Ok(Served {
        volume,
        name: export.name.clone(),
        description: export.description.clone(),
        worker: export.worker,
        read_only: export.read_only,
        place: at,
        limits,
        group: export.group.clone(),
        nqn: export.nqn.clone(),
        hosts: export.hosts.clone().map_or(Hosts::Any, Hosts::Only),
        sample: traces::sample(file, export),
    })
}

fn blocks(place: &str, bytes: u64, size: BlockSize) -> Result<u64, LowerError> {
    if bytes == 0 || bytes > VOLUME_BYTES_MAX || !bytes.is_multiple_of(u64::from(size.bytes())) {
        return Err(error(place, "size is a whole number of blocks, up to 64TiB"));
    }
    Ok(bytes >> size.shift())
}

/// Whether two files export the same volumes at the same places, whatever their limits, samples and certificates.
pub(crate) fn same(old: &File, new: &File) -> bool {
    let fixed = |file: &File| {
        let nbd = file::Nbd { tls: None, ..file.nbd.clone() };
        let mut exports = file.export.clone();
        for export in &mut exports {
            (export.preset, export.bytes, export.operations) = (None, None, None);
            (export.group, export.weight, export.sample) = (None, None, None);
        }
        format!("{:?} {nbd:?} {:?} {exports:?}", file.serve, file.nvme)
    };
    fixed(old) == fixed(new)
}
