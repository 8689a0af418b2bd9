//! The daemon's one file; docs/controlplane.example.toml has every key with unit and default.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::http::Uri;
use host::Trust;
use serde::Deserialize;

/// A whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where everything is kept that must not be forgotten: a folder. The store unless it is elsewhere, policies,
    /// decision log, audit log.
    pub directory: PathBuf,
    /// Where the store is.
    #[serde(default)]
    pub store: Kept,
    /// Where nodes and people come in.
    #[serde(default)]
    pub listen: Listen,
    /// How nodes are judged.
    #[serde(default)]
    pub liveness: Liveness,
    /// How much work is done at once.
    #[serde(default)]
    pub work: Work,
    /// How leases are revoked.
    #[serde(default)]
    pub leases: Leases,
    /// When volumes move.
    #[serde(default)]
    pub migration: Migration,
    /// Whose policies may run.
    #[serde(default)]
    pub policies: Policies,
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

/// What keys in etcd begin with by default.
pub const PREFIX: &str = "tidegate/";

impl Default for Listen {
    fn default() -> Listen {
        let at = vec!["/run/tidegate/controlplane.sock".to_owned()];
        Listen { at, certificate: None, key: None, token: None, node_token: None }
    }
}

/// `[store]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kept {
    /// Addresses of the members of an etcd cluster, like `http://127.0.0.1:2379`. Default: none, the store is a file
    /// in `directory`.
    pub etcd: Vec<String>,
    /// What all keys begin with there. Default `tidegate/`.
    pub prefix: Option<String>,
    /// Certificates of the authorities that members are signed by, PEM. Needed for `https`.
    pub authority: Option<PathBuf>,
    /// The control plane's own certificate, for members that ask for one, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
}

/// `[liveness]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Liveness {
    /// Silence after which a node gets nothing new, ms. Default 750.
    pub suspect_after_ms: Option<u64>,
    /// Silence after which a node is lost, ms. Default 1500.
    pub lost_after_ms: Option<u64>,
    /// How long a lost node must be heard without a gap before it is trusted again, ms. Default 1000.
    pub return_after_ms: Option<u64>,
}

/// `[work]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Work {
    /// Bulk copies at once at a node, as source or target. Default 4.
    pub copy_slots_per_node: Option<u64>,
    /// Rate of one bulk copy, scrub or wipe, bytes per second. Default 200000000.
    pub copy_bytes_per_s: Option<u64>,
    /// How long an operation waits for a lost node before it is given up, s. Default 300.
    pub patience_s: Option<u64>,
}

/// `[leases]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Leases {
    /// Longest time that holders of a revoked lease have to go before they are made to, ms. Default 500.
    pub grace_ms: Option<u32>,
}

/// `[migration]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Migration {
    /// Longest period that is looked for in the load of a volume, s. Default 86400, a day.
    pub period_max_s: Option<u64>,
    /// A move must have begun within so long unless it says otherwise, s. Default 3600.
    pub deadline_s: Option<u64>,
    /// Moves that would keep hosts waiting for longer are refused while there is a choice, ms. Default 5000.
    pub blackout_max_ms: Option<u64>,
}

/// `[policies]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// Ed25519 public keys, 32 bytes each in hexadecimal digits or base64. Default: none, everybody's policies may run.
    pub keys: Vec<String>,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not there, or not ours to read.
    #[error("cannot read {}: {source}; name the file with --config; docs/controlplane.example.toml has all keys", path.display())]
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
    /// Its keys.
    pub trust: Trust,
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
        return Err(format!("directory = {:?} is not an absolute path; write it from / on", file.directory));
    }
    let listen = &file.listen;
    if listen.at.is_empty() {
        return Err("listen.at is empty: nobody could reach the control plane; leave it out, or name a socket or an address".to_owned());
    }
    if listen.certificate.is_some() != listen.key.is_some() {
        return Err("listen.certificate and listen.key belong together; set both or neither".to_owned());
    }
    check_store(&file.store)?;
    let places = listen.at.iter().map(|text| place(listen, text)).collect::<Result<_, _>>()?;
    check_bounds(&file)?;
    let (suspect, lost) = (file.liveness.suspect_after_ms, file.liveness.lost_after_ms);
    if suspect.unwrap_or(750) >= lost.unwrap_or(1_500) {
        return Err("liveness.suspect_after_ms must be less than liveness.lost_after_ms; lower it, or raise the other".to_owned());
    }
    let trust = trust(&file.policies)?;
    Ok(Config { file, places, trust })
}

/// Numbers that are possible, each with what is allowed.
fn check_bounds(file: &File) -> Result<(), String> {
    const DAY_S: u64 = 86_400;
    let File { liveness, work, leases, migration, .. } = file;
    let longest_period_s = control_core::PERIOD_MAX_MS / 1_000;
    for (key, value, min, max) in [
        ("liveness.suspect_after_ms", liveness.suspect_after_ms, 100, 60_000),
        ("liveness.lost_after_ms", liveness.lost_after_ms, 200, 600_000),
        ("liveness.return_after_ms", liveness.return_after_ms, 100, 600_000),
        ("work.copy_slots_per_node", work.copy_slots_per_node, 1, 1_024),
        ("work.copy_bytes_per_s", work.copy_bytes_per_s, 1 << 20, 1 << 40),
        ("work.patience_s", work.patience_s, 1, 7 * DAY_S),
        ("leases.grace_ms", leases.grace_ms.map(u64::from), 0, 60_000),
        ("migration.period_max_s", migration.period_max_s, 60, longest_period_s),
        ("migration.deadline_s", migration.deadline_s, 1, 30 * DAY_S),
        ("migration.blackout_max_ms", migration.blackout_max_ms, 1, 3_600_000),
    ] {
        if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
            return Err(format!(
                "{key} = {value} is not possible; set it to {min} to {max}, or leave it out"
            ));
        }
    }
    Ok(())
}

/// Keys of those whose policies may run, at most.
const KEYS_MAX: usize = 64;

fn trust(policies: &Policies) -> Result<Trust, String> {
    let mut keys = Vec::new();
    if policies.keys.len() > KEYS_MAX {
        return Err(format!(
            "policies.keys has more than {KEYS_MAX} keys; leave out those that nobody signs with"
        ));
    }
    for text in &policies.keys {
        let key: Option<[u8; 32]> = host::bytes_of(text);
        let key = key.filter(|key| Trust::only(&[*key]).is_ok()).ok_or_else(|| {
            format!(
                "policies.keys: \"{text}\" is no Ed25519 public key of 32 bytes in hexadecimal digits or base64; \
                 `openssl pkey -in KEY.pem -pubout -outform DER | tail -c 32 | base64` prints one"
            )
        })?;
        keys.push(key);
    }
    Trust::only(&keys).map_err(|error| error.to_string())
}

/// Longest prefix of the keys in etcd.
const PREFIX_BYTES_MAX: usize = 64;

fn check_store(store: &Kept) -> Result<(), String> {
    let more = [&store.authority, &store.certificate, &store.key];
    if store.etcd.is_empty() {
        let more = store.prefix.is_some() || more.iter().any(|path| path.is_some());
        return if more {
            Err("[store] has keys for etcd, but store.etcd names no member; name one, or leave [store] out"
                .into())
        } else {
            Ok(())
        };
    }
    if !cfg!(feature = "etcd") {
        return Err("store.etcd: this control plane was built without etcd; build it with \
                    `cargo build --release -p server --features etcd` (protoc must be there, Debian: \
                    protobuf-compiler), or leave [store] out to have the store in a file"
            .into());
    }
    check_etcd(store)
}

fn check_etcd(store: &Kept) -> Result<(), String> {
    if store.certificate.is_some() != store.key.is_some() {
        return Err("store.certificate and store.key belong together; set both or neither".into());
    }
    let prefix = store.prefix.as_deref().unwrap_or(PREFIX);
    if prefix.is_empty()
        || prefix.len() > PREFIX_BYTES_MAX
        || !prefix.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(format!("store.prefix is 1 to {PREFIX_BYTES_MAX} letters of ASCII without spaces"));
    }
    store.etcd.iter().try_for_each(|address| check_member(store, address))
}

fn check_member(store: &Kept, address: &str) -> Result<(), String> {
    let uri: Option<Uri> = address.parse().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.host()?)));
    let Some((scheme @ ("http" | "https"), host)) = parts else {
        return Err(format!("store.etcd: \"{address}\" is no address like http://127.0.0.1:2379"));
    };
    let bare = host.trim_matches(['[', ']']);
    let here = host == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if scheme == "http" && !here {
        return Err(format!(
            "store.etcd: {address} is elsewhere; reach it with https and set store.authority"
        ));
    }
    if scheme == "http" && store.authority.is_some() {
        return Err(format!("store.etcd: {address} is without TLS, and store.authority is set; write https"));
    }
    if scheme == "https" && store.authority.is_none() {
        return Err(format!("store.etcd: {address} needs store.authority, by which members are known"));
    }
    Ok(())
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

    const EXAMPLE: &str = include_str!("../../../docs/controlplane.example.toml");

    #[test]
    fn the_example_has_every_key_with_the_default_that_holds() {
        // With everything that is commented out: what it shows is what holds without it.
        let shown: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line).to_owned() + "\n")
            .collect();
        let shown: File = toml::from_str(&shown).expect("it is as a file is written");
        let bare = checked(EXAMPLE).expect("it can be used as it is");
        check_bounds(&shown).expect("its defaults are possible");
        let of_shown = crate::run::core_config(&Config { file: shown.clone(), ..bare.clone() });
        let seed = of_shown.seed;
        assert_eq!(of_shown, control_core::Config { seed, ..crate::run::core_config(&bare) });
        assert_eq!(of_shown, control_core::Config { seed, ask: true, ..control_core::Config::default() });
        // Keys that are there and not shown would be none here.
        let said = format!("{shown:?}");
        assert!(!said.contains("None"), "{said}");
    }

    /// Whether a comment is a key with its default.
    fn is_key(text: &str) -> bool {
        let key = text.split_once(" = ").map_or("", |(key, _)| key);
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
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
            ("directory = \"/x\"\n[liveness]\nlost_after_ms = 0", "200 to 600000"),
            ("directory = \"/x\"\n[leases]\ngrace_ms = 100000", "0 to 60000"),
            ("directory = \"/x\"\n[migration]\nperiod_max_s = 400000", "60 to 302400"),
            ("directory = \"/x\"\n[migration]\nperiod = 1", "unknown field"),
            ("directory = \"/x\"\n[store]\nprefix = \"a/\"", "names no member"),
            ("directory = \"/x\"\n[store]\nredb = \"a\"", "unknown field"),
            ("directory = \"/x\"\n[policies]\nkeys = [\"abc\"]", "tail -c 32 | base64"),
            ("directory = \"/x\"\n[policies]\nkey = \"abc\"", "unknown field"),
        ] {
            let refused = checked(text).unwrap_err();
            assert!(refused.contains(what), "{text}: {refused}");
        }
        let missing = read(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(matches!(missing, ConfigError::Io { .. }), "{missing}");
    }

    #[cfg(not(feature = "etcd"))]
    #[test]
    fn without_etcd_in_it_an_address_of_etcd_is_refused_with_how_to_build_it() {
        let refused = checked("directory = \"/x\"\n[store]\netcd = [\"http://127.0.0.1:2379\"]").unwrap_err();
        assert!(
            refused.contains("-p server --features etcd") && refused.contains("protobuf-compiler"),
            "{refused}"
        );
    }

    #[test]
    fn an_etcd_elsewhere_is_reached_with_tls_only() {
        // Whether it is built with etcd or not.
        let with = |lines: &str| check_etcd(&toml::from_str(lines).unwrap());
        for address in ["http://127.0.0.1:2379", "http://localhost:2379", "http://[::1]:2379"] {
            with(&format!("etcd = [\"{address}\"]")).unwrap();
        }
        with("etcd = [\"https://etcd-1:2379\", \"https://10.0.0.2:2379\"]\nauthority = \"/a\"").unwrap();
        for (lines, what) in [
            ("etcd = [\"http://10.0.0.2:2379\"]", "elsewhere"),
            ("etcd = [\"127.0.0.1:2379\"]", "no address"),
            ("etcd = [\"https://etcd-1:2379\"]", "needs store.authority"),
            ("etcd = [\"http://127.0.0.1:2379\"]\nauthority = \"/a\"", "without TLS"),
            ("etcd = [\"http://127.0.0.1:2379\"]\nkey = \"/a\"", "belong together"),
            ("etcd = [\"http://127.0.0.1:2379\"]\nprefix = \"\"", "1 to 64"),
        ] {
            let refused = with(lines).unwrap_err();
            assert!(refused.contains(what), "{lines}: {refused}");
        }
    }
}
