//! Where a served device is: the URIs of the NBD project (doc/uri.md), as far as a load needs them, and a form
//! like them for NVMe/TCP, which has none of its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH` or `nvme+tcp://HOST[:PORT]/NQN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// How it is reached.
    pub place: Place,
    /// Which export, or the NQN of which subsystem.
    pub name: String,
}

/// How a server is reached, and with which protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// NBD over TCP, as host and port.
    Nbd(String),
    /// NBD over a Unix socket.
    NbdUnix(PathBuf),
    /// NVMe/TCP, as host and port.
    NvmeTcp(String),
}

/// "the default port number is 10809".
const NBD_PORT: u16 = 10809;
/// TCP Transport Specification, clause 3.1: "TCP port 4420 has been assigned for use by NVMe over Fabrics".
const NVME_PORT: u16 = 4420;

const EXPECTED: &str = "expected nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or \
                        nvme+tcp://HOST:PORT/NQN";

impl FromStr for Uri {
    type Err = String;

    fn from_str(text: &str) -> Result<Uri, String> {
        let wrong = || format!("{text:?}: {EXPECTED}");
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, path) = rest.split_once("?socket=").ok_or_else(wrong)?;
            if path.is_empty() {
                return Err(wrong());
            }
            return Ok(Uri { place: Place::NbdUnix(path.into()), name: export.to_owned() });
        }
        if let Some(rest) = text.strip_prefix("nvme+tcp://") {
            let (host, nqn) = rest.split_once('/').ok_or_else(wrong)?;
            if host.is_empty() || !nqn.starts_with("nqn.") {
                return Err(wrong());
            }
            return Ok(Uri { place: Place::NvmeTcp(nvme_address(host)), name: nqn.to_owned() });
        }
        let rest = text.strip_prefix("nbd://").ok_or_else(wrong)?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Uri { place: Place::Nbd(with_port(host, NBD_PORT)), name: export.to_owned() })
    }
}

/// `HOST[:PORT]` of a controller, with the port that it has if none is given.
pub fn nvme_address(host: &str) -> String {
    with_port(host, NVME_PORT)
}

fn with_port(host: &str, port: u16) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    // The colons of an IPv6 address stand in brackets.
    let has_port = has_port && !host.ends_with(']');
    if has_port { host.to_owned() } else { format!("{host}:{port}") }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Nbd(host) => write!(f, "nbd://{host}/{}", self.name),
            Place::NbdUnix(path) => write!(f, "nbd+unix:///{}?socket={}", self.name, path.display()),
            Place::NvmeTcp(host) => write!(f, "nvme+tcp://{host}/{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_read_and_written() {
        for text in [
            "nbd://127.0.0.1:10809/disk",
            "nbd://[::1]:7/",
            "nbd+unix:///a b?socket=/run/x.sock",
            "nvme+tcp://127.0.0.1:4420/nqn.2026-11.com.example:root",
        ] {
            assert_eq!(text.parse::<Uri>().map(|uri| uri.to_string()), Ok(text.to_owned()));
        }
        let short: Uri = "nbd://host".parse().expect("a host is enough");
        assert_eq!(short.to_string(), "nbd://host:10809/");
        assert_eq!("nbd://[::1]/x".parse::<Uri>().map(|uri| uri.place), Ok(Place::Nbd("[::1]:10809".into())));
        let short: Uri = "nvme+tcp://[::1]/nqn.2026-11.com.example:x".parse().expect("so is an address");
        assert_eq!(short.place, Place::NvmeTcp("[::1]:4420".into()));
    }

    #[test]
    fn others_are_refused_with_what_is_expected() {
        for text in [
            "",
            "nvme://x/y",
            "nbd://",
            "nbd+unix:///disk",
            "nbd+unix:///disk?socket=",
            "nvme+tcp://host",
            "nvme+tcp:///nqn.2026-11.com.example:x",
            "nvme+tcp://host/disk",
        ] {
            assert!(text.parse::<Uri>().is_err_and(|why| why.contains("expected nbd://")), "{text}");
        }
    }
}
