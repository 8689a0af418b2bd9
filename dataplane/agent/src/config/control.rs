//! `[controlplane]`: whom this node follows, and what it offers.

use std::path::PathBuf;

use contract::{Name, Pool, Resources};
use serde::Deserialize;

use super::LowerError;
use super::file::File;
use super::units::{ByteRate, Bytes};
use crate::control::{Address, Settings};

/// `[controlplane]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlPlane {
    /// Where it is: unix:/PATH, http://127.0.0.1:PORT, or https://HOST:PORT.
    pub address: String,
    /// File with the bearer token of nodes.
    pub token: Option<PathBuf>,
    /// Certificate of whom to trust, for https.
    pub ca: Option<PathBuf>,
    /// Folder in which is kept what it said last.
    pub state: PathBuf,
    /// What this node can serve: operations per second.
    pub operations: u64,
    /// What this node can serve: bytes per second.
    pub bytes: ByteRate,
    /// Bulk copies at once; 0 = the control plane's default.
    #[serde(default)]
    pub copy_slots: u64,
    /// Directories for volumes.
    #[serde(default)]
    pub pool: Vec<PoolKeys>,
}

/// `[[controlplane.pool]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolKeys {
    /// Its name; the same name on two nodes is the same directory if it is shared.
    pub name: String,
    /// The directory.
    pub directory: PathBuf,
    /// Other nodes see the same files. Default false.
    #[serde(default)]
    pub shared: bool,
    /// Bytes that it may hold.
    pub capacity: Bytes,
}

/// What the agent needs to follow a control plane, if it should. `uris` are where hosts come in.
pub(crate) fn settings(file: &File, uris: &[String]) -> Result<Option<Settings>, LowerError> {
    let Some(keys) = &file.controlplane else { return Ok(None) };
    let wrong = |what: String| LowerError::Key { place: "[controlplane]".to_owned(), what };
    if uris.is_empty() {
        return Err(wrong("hosts could not reach what it places here; listen in [nbd] or [nvme]".to_owned()));
    }
    let name = |text: &str| Name::new(text).map_err(|error| wrong(error.to_string()));
    let token = match &keys.token {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some(text.map_err(|error| wrong(format!("{}: {error}", path.display())))?.trim().to_owned())
        }
        None => None,
    };
    let mut pools = Vec::with_capacity(keys.pool.len());
    for pool in &keys.pool {
        if !pool.directory.is_absolute() {
            return Err(wrong(format!("pool \"{}\": directory is an absolute path", pool.name)));
        }
        let about = Pool { name: name(&pool.name)?, shared: pool.shared, capacity_bytes: pool.capacity.0 };
        if pools.iter().any(|(other, _): &(Pool, PathBuf)| other.name == about.name) {
            return Err(wrong(format!("pool \"{}\" appears twice", pool.name)));
        }
        pools.push((about, pool.directory.clone()));
    }
    Ok(Some(Settings {
        address: Address::parse(&keys.address, keys.ca.as_deref()).map_err(wrong)?,
        token,
        state: keys.state.clone(),
        name: name(&file.node.name)?,
        capacity: Resources { iops: keys.operations, bytes_per_s: keys.bytes.0, copy_slots: keys.copy_slots },
        pools,
        addresses: uris.to_vec(),
    }))
}
