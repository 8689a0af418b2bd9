//! The daemon's one file; docs/controlplane.example.toml has every key with unit and default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where everything is kept that must not be forgotten: a folder. The store, policies, decision log, audit log.
    pub directory: PathBuf,
    /// Where nodes and people come in.
    #[serde(default)]
    pub listen: Listen,
    /// How nodes are judged.
    #[serde(default)]
    pub liveness: Liveness,
    /// How much work is done at once.
    #[serde(default)]
    pub work: Work,
}

/// `[listen]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Absolute paths of Unix sockets, and addresses. An address other than loopback needs TLS and tokens.
    pub at: Vec<String>,
    /// Certificate chain for all addresses, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// File with the bearer token of people and programs. Default: none asked for on loopback.
    pub token: Option<PathBuf>,
    /// File with the bearer token of nodes, which lets them link and nothing else.
    pub node_token: Option<PathBuf>,
}

impl Default for Listen {
    fn default() -> Listen {
        let at = vec!["/run/tidegate/controlplane.sock".to_owned()];
        Listen { at, certificate: None, key: None, token: None, node_token: None }
    }
}

/// `[liveness]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Liveness {
    /// Silence after which a node gets nothing new, ms. Default 750.
    pub suspect_after_ms: Option<u64>,
    /// Silence after which a node is lost, ms. Default 1500.
    pub lost_after_ms: Option<u64>,
}

/// `[work]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Work {
    /// Bulk copies at once at a node, as source or target. Default 4.
    pub copy_slots_per_node: Option<u64>,
    /// Rate of one bulk copy, scrub or wipe, bytes per second. Default 200000000.
    pub copy_bytes_per_s: Option<u64>,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not there, or not ours to read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not TOML, or not ours.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A value that cannot be right.
    #[error("{}: {what}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which, and what to do.
        what: String,
    },
}

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket, for its owner.
    Unix(PathBuf),
    /// An address.
    Tcp(SocketAddr),
}

/// What was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file.
    pub file: File,
    /// Its places.
    pub places: Vec<Place>,
}

/// Reads and checks a file.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    let parsed: Result<File, _> = toml::from_str(&text);
    let file = parsed.map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })?;
    check(file).map_err(|what| ConfigError::Value { path: path.to_owned(), what })
}

fn check(file: File) -> Result<Config, String> {
    if !file.directory.is_absolute() {
        return Err(format!("directory = {:?} is not an absolute path", file.directory));
    }
    let listen = &file.listen;
    if listen.at.is_empty() {
        return Err("listen.at is empty: nobody could reach the control plane".to_owned());
    }
    if listen.certificate.is_some() != listen.key.is_some() {
        return Err("listen.certificate and listen.key belong together".to_owned());
    }
    let places = listen.at.iter().map(|text| place(listen, text)).collect::<Result<_, _>>()?;
    let (suspect, lost) = (file.liveness.suspect_after_ms, file.liveness.lost_after_ms);
    if suspect.unwrap_or(750) >= lost.unwrap_or(1_500) {
        return Err("liveness.suspect_after_ms must be less than liveness.lost_after_ms".to_owned());
    }
    Ok(Config { file, places })
}

fn place(listen: &Listen, text: &str) -> Result<Place, String> {
    if text.starts_with('/') {
        return Ok(Place::Unix(PathBuf::from(text)));
    }
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("listen.at: \"{text}\" is neither an absolute path nor an address like 127.0.0.1:7400")
    })?;
    let guarded = listen.certificate.is_some() && listen.token.is_some() && listen.node_token.is_some();
    if !address.ip().is_loopback() && !guarded {
        return Err(format!(
            "listen.at: {address} is reached from elsewhere; set certificate, key, token and node_token, or listen on \
             127.0.0.1"
        ));
    }
    Ok(Place::Tcp(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.to_string()).and_then(check)
    }

    #[test]
    fn elsewhere_needs_tls_and_tokens() {
        let bare = checked("directory = \"/x\"\n[listen]\nat = [\"0.0.0.0:7400\"]\n").unwrap_err();
        assert!(bare.contains("certificate, key, token and node_token"), "{bare}");
        let all = "directory = \"/x\"\n[listen]\nat = [\"0.0.0.0:7400\", \"/run/a.sock\"]\ncertificate = \"c\"\n\
                   key = \"k\"\ntoken = \"t\"\nnode_token = \"n\"\n";
        assert_eq!(checked(all).unwrap().places.len(), 2);
        checked("directory = \"/x\"\n[listen]\nat = [\"[::1]:0\"]\n").unwrap();
    }

    #[test]
    fn what_cannot_be_right_is_named() {
        for (text, what) in [
            ("directory = \"x\"", "absolute"),
            ("directory = \"/x\"\nwhat = 1", "unknown field"),
            ("directory = \"/x\"\n[listen]\nat = []", "nobody could reach"),
            ("directory = \"/x\"\n[listen]\nat = [\"localhost\"]", "neither"),
            ("directory = \"/x\"\n[listen]\nkey = \"k\"", "belong together"),
            ("directory = \"/x\"\n[liveness]\nlost_after_ms = 700", "less than"),
        ] {
            let refused = checked(text).unwrap_err();
            assert!(refused.contains(what), "{text}: {refused}");
        }
        let missing = read(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(matches!(missing, ConfigError::Io { .. }), "{missing}");
    }
}
