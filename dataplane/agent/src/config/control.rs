//! `[controlplane]`: whom this node follows, and what it offers.

use std::net::{IpAddr, SocketAddr};
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
    /// Address under which hosts and other nodes reach this node, where it listens on all that it has.
    pub advertise: Option<IpAddr>,
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
    // A gateway without pools gets rules and no volumes.
    if uris.is_empty() && !keys.pool.is_empty() {
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
        addresses: uris
            .iter()
            .map(|uri| reached(uri, keys.advertise).map_err(wrong))
            .collect::<Result<_, _>>()?,
    }))
}

/// Where others reach what listens at `uri`.
fn reached(uri: &str, advertise: Option<IpAddr>) -> Result<String, String> {
    let parts = uri.split_once("://").and_then(|(scheme, at)| Some((scheme, at.parse::<SocketAddr>().ok()?)));
    match (parts, advertise) {
        (Some((scheme, at)), Some(ip)) if at.ip().is_unspecified() => {
            Ok(format!("{scheme}://{}", SocketAddr::new(ip, at.port())))
        }
        (Some((_, at)), None) if at.ip().is_unspecified() => Err(format!(
            "{uri} is every address that this machine has; say with advertise = \"ADDRESS\" under which one hosts \
             and other nodes reach it"
        )),
        _ => Ok(uri.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::reached;

    #[test]
    fn what_listens_everywhere_is_reached_at_what_is_advertised() {
        let ip = |text: &str| Some(text.parse().expect("an address"));
        let seen = |uri: &str, advertise| reached(uri, advertise).map_err(|why| why.contains("advertise"));
        assert_eq!(seen("nbd://0.0.0.0:10809", ip("10.0.0.2")), Ok("nbd://10.0.0.2:10809".to_owned()));
        assert_eq!(seen("nvme-tcp://[::]:4420", ip("fd00::2")), Ok("nvme-tcp://[fd00::2]:4420".to_owned()));
        assert_eq!(seen("nvme-tcp://[::]:4420", None), Err(true));
        for uri in ["nbd://10.0.0.1:10809", "nbd+unix:///?socket=/run/0.0.0.0:1"] {
            assert_eq!(seen(uri, ip("10.0.0.2")), Ok(uri.to_owned()));
            assert_eq!(seen(uri, None), Ok(uri.to_owned()));
        }
    }
}
