//! Who may do what.
//!
//! | client | may |
//! |---|---|
//! | on a Unix socket | everything: the file's permissions are the check |
//! | elsewhere, with the token of people | everything |
//! | elsewhere, with the token of nodes | link, and nothing else |
//! | on loopback, while no token is configured | everything |
//!
//! On loopback without TLS the `Host` must be a loopback name, so that a page in a browser of this machine cannot
//! reach the API under a name of its own.

use std::path::{Path, PathBuf};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api;
use crate::config::Listen;
use crate::doors::Peer;

/// Shortest token, bytes.
const TOKEN_BYTES_MIN: usize = 16;

/// The tokens.
#[derive(Clone, Default)]
pub struct Tokens {
    people: Option<String>,
    nodes: Option<String>,
}

/// A token cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}; make one with `head -c 32 /dev/urandom | base64 -w0 > FILE`", path.display())]
pub struct TokenError {
    path: PathBuf,
    why: String,
}

impl Tokens {
    /// Reads them from their files.
    pub fn read(listen: &Listen) -> Result<Tokens, TokenError> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(token).transpose();
        Ok(Tokens { people: read(&listen.token)?, nodes: read(&listen.node_token)? })
    }

    fn allows(&self, peer: &Peer, path: &str, bearer: Option<&str>) -> bool {
        if matches!(peer, Peer::Unix { .. }) {
            return true;
        }
        let is = |token: &Option<String>| {
            token.as_deref().zip(bearer).is_some_and(|(token, said)| same(token, said))
        };
        if is(&self.people) {
            return true;
        }
        match (path == southbound::PATH, &self.people, &self.nodes) {
            (true, people, None) => people.is_none(),
            (true, _, Some(_)) => is(&self.nodes),
            (false, people, _) => people.is_none(),
        }
    }
}

fn token(path: &Path) -> Result<String, TokenError> {
    let wrong = |why: String| TokenError { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let text = text.trim();
    if text.len() < TOKEN_BYTES_MIN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(format!("a token is one line of at least {TOKEN_BYTES_MIN} visible characters")));
    }
    Ok(text.to_owned())
}

/// Compares without telling by its time where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Lets a request pass, or says why not.
pub async fn guard(
    State(tokens): State<Tokens>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(no) = judge(&tokens, &peer, request.headers(), request.uri()) {
        return no.into_response();
    }
    request.extensions_mut().insert(peer);
    next.run(request).await
}

fn judge(tokens: &Tokens, peer: &Peer, headers: &HeaderMap, uri: &Uri) -> Option<api::No> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    if !tokens.allows(peer, uri.path(), bearer) {
        let what = "this needs a bearer token: `tidegate --token FILE`, or `Authorization: Bearer …`";
        return Some(api::refusal(StatusCode::UNAUTHORIZED, what));
    }
    if matches!(peer, Peer::Tcp { tls: false, .. }) {
        let host = text(header::HOST).or_else(|| uri.host()).unwrap_or_default();
        // A node's link has no name of its own and cannot come from a browser.
        if !is_loopback_name(host) && uri.path() != southbound::PATH {
            return Some(api::refusal(
                StatusCode::FORBIDDEN,
                "the Host is not of this machine; ask for localhost, or for the address that listen.at has",
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELSEWHERE: Peer = Peer::Tcp {
        address: std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1),
        tls: true,
    };

    #[test]
    fn each_token_opens_what_is_its_own() {
        let both = Tokens { people: Some("p".repeat(16)), nodes: Some("n".repeat(16)) };
        let (people, nodes) = (both.people.clone(), both.nodes.clone());
        let may = |path: &str, said: &Option<String>| both.allows(&ELSEWHERE, path, said.as_deref());
        assert!(may("/v1/volumes", &people) && may(southbound::PATH, &people));
        assert!(!may("/v1/volumes", &nodes) && may(southbound::PATH, &nodes));
        assert!(!may("/v1/volumes", &None) && !may(southbound::PATH, &None));
        assert!(both.allows(&Peer::Unix { uid: None }, "/v1/volumes", None));
        assert!(Tokens::default().allows(&ELSEWHERE, "/v1/volumes", None));
    }

    #[test]
    fn only_names_of_this_machine_pass_on_loopback() {
        for good in ["localhost", "localhost:7400", "127.0.0.1:7400", "[::1]:7400", "127.0.0.9"] {
            assert!(is_loopback_name(good), "{good}");
        }
        for bad in ["evil.example", "evil.example:7400", "10.0.0.1", "", "localhost.evil"] {
            assert!(!is_loopback_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_weak_token_is_refused() {
        let path = std::env::temp_dir().join(format!("tidegate-token-{}", std::process::id()));
        std::fs::write(&path, "short\n").unwrap();
        assert!(token(&path).unwrap_err().to_string().contains("at least 16"));
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(token(&path).unwrap(), "0123456789abcdef");
        std::fs::remove_file(&path).unwrap();
        assert!(token(&path).is_err());
    }
}
