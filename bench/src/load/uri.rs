//! Where a served device is: the URIs of the NBD project (doc/uri.md), as far as a load needs them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// How it is reached.
    pub place: Place,
    /// Which export.
    pub export: String,
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// TCP, as host and port.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

/// "the default port number is 10809".
const PORT: u16 = 10809;

const EXPECTED: &str = "expected nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH";

impl FromStr for Uri {
    type Err = String;

    fn from_str(text: &str) -> Result<Uri, String> {
        let wrong = || format!("{text:?}: {EXPECTED}");
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, path) = rest.split_once("?socket=").ok_or_else(wrong)?;
            if path.is_empty() {
                return Err(wrong());
            }
            return Ok(Uri { place: Place::Unix(path.into()), export: export.to_owned() });
        }
        let rest = text.strip_prefix("nbd://").ok_or_else(wrong)?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        // The colons of an IPv6 address stand in brackets.
        let has_port = has_port && !host.ends_with(']');
        if host.is_empty() {
            return Err(wrong());
        }
        let host = if has_port { host.to_owned() } else { format!("{host}:{PORT}") };
        Ok(Uri { place: Place::Tcp(host), export: export.to_owned() })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(host) => write!(f, "nbd://{host}/{}", self.export),
            Place::Unix(path) => write!(f, "nbd+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written() {
        for text in ["nbd://127.0.0.1:10809/disk", "nbd://[::1]:7/", "nbd+unix:///a b?socket=/run/x.sock"] {
            assert_eq!(text.parse::<Uri>().map(|uri| uri.to_string()), Ok(text.to_owned()));
        }
        let short: Uri = "nbd://host".parse().expect("a host is enough");
        assert_eq!(short.to_string(), "nbd://host:10809/");
        assert_eq!("nbd://[::1]/x".parse::<Uri>().map(|uri| uri.place), Ok(Place::Tcp("[::1]:10809".into())));
    }

    #[test]
    fn others_are_refused_with_what_is_expected() {
        for text in ["", "nvme://x/y", "nbd://", "nbd+unix:///disk", "nbd+unix:///disk?socket="] {
            assert!(text.parse::<Uri>().is_err_and(|why| why.contains("expected nbd://")), "{text}");
        }
    }
}
