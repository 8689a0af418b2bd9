//! One request to the control plane's API: over a Unix socket, loopback, or TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How long an answer may take; what takes longer is an operation.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// Without TLS; loopback.
    Http(String),
    /// With TLS.
    Https(String),
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let path = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text));
        if let Some(path) = path {
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let authority = |rest: &str| rest.trim_end_matches('/').to_owned();
        if let Some(rest) = text.strip_prefix("http://") {
            return Ok(Address::Http(authority(rest)));
        }
        if let Some(rest) = text.strip_prefix("https://") {
            return Ok(Address::Https(authority(rest)));
        }
        Err("write unix:/PATH, http://127.0.0.1:PORT or https://HOST:PORT".to_owned())
    }
}

/// Where `tidegate up` and the packaged service listen for this user.
pub fn default_address() -> Address {
    Address::Unix(runtime_folder().join("controlplane.sock"))
}

/// Folder of sockets of this user.
pub fn runtime_folder() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/tidegate");
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let fallback = || std::env::temp_dir().join(format!("tidegate-{}", rustix::process::geteuid().as_raw()));
    own.map_or_else(fallback, |path| path.join("tidegate"))
}

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error(
        "no control plane answers at {address}: {why}; start one with `tidegate up`, or say where with --server"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// The kernel's answer, or TLS's.
        why: String,
    },
    /// It does not speak as expected.
    #[error("the control plane's answer makes no sense: {0}; is it of another version?")]
    Broken(String),
    /// It took too long.
    #[error("the control plane has not answered for {} s; `tidegate status` and its log say how it is", PATIENCE.as_secs())]
    Silent,
    /// It says no.
    #[error("{message}")]
    Refused {
        /// HTTP's word for it.
        status: StatusCode,
        /// What it says.
        message: String,
    },
}

/// Asks one control plane.
#[derive(Clone)]
pub struct Client {
    address: Address,
    token: Option<String>,
    tls: Option<TlsConnector>,
}

impl Client {
    /// For a control plane at `address`. `ca` is whom to trust for https, `token` a file with the bearer token.
    pub fn new(address: Address, token: Option<&Path>, ca: Option<&Path>) -> Result<Client, String> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let token = token.map(read).transpose()?.map(|text| text.trim().to_owned());
        let tls = match (&address, ca) {
            (Address::Https(_), Some(path)) => Some(connector(path)?),
            (Address::Https(_), None) => {
                return Err("https needs --ca FILE, the certificate of whom to trust".to_owned());
            }
            _ => None,
        };
        Ok(Client { address, token, tls })
    }

    /// Reads something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Asks for something in JSON.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, AskError> {
        let body = serde_json::to_vec(body).map_err(|error| AskError::Broken(error.to_string()))?;
        self.ask(Method::POST, path, Bytes::from(body)).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, AskError> {
        let asked = async {
            let answer = self.send(method, path, "application/json", body).await?;
            let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
            serde_json::from_slice(&body).map_err(broken)
        };
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_elapsed| AskError::Silent)?
    }

    /// Sends bytes, for example a component.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, bytes: Vec<u8>) -> Result<T, AskError> {
        let asked = async {
            let answer =
                self.send(Method::POST, path, "application/octet-stream", Bytes::from(bytes)).await?;
            let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
            serde_json::from_slice(&body).map_err(broken)
        };
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_elapsed| AskError::Silent)?
    }

    /// Opens an answer that does not end, for example a watch.
    pub async fn open(&self, path: &str) -> Result<Incoming, AskError> {
        Ok(self.send(Method::GET, path, "application/json", Bytes::new()).await?.into_body())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content: &'static str,
        body: Bytes,
    ) -> Result<Response<Incoming>, AskError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.host())
            .header(header::CONTENT_TYPE, content);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(broken)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?))
                .await
                .map_err(broken)?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        let said: Option<Refusal> = serde_json::from_slice(&body).ok();
        let message =
            said.map_or_else(|| String::from_utf8_lossy(&body).trim_end().to_owned(), |said| said.error);
        Err(AskError::Refused { status, message })
    }

    fn host(&self) -> &str {
        match &self.address {
            Address::Unix(_) => "localhost",
            Address::Http(authority) | Address::Https(authority) => authority,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Io>, AskError> {
        let unreachable = |why: String| AskError::Unreachable { address: self.shown(), why };
        Ok(match &self.address {
            Address::Unix(path) => {
                Box::new(UnixStream::connect(path).await.map_err(|error| unreachable(error.to_string()))?)
            }
            Address::Http(authority) => Box::new(self.tcp(authority).await?),
            Address::Https(authority) => {
                let socket = self.tcp(authority).await?;
                let name = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
                let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
                    .map_err(|error| unreachable(error.to_string()))?;
                let tls =
                    self.tls.as_ref().ok_or_else(|| unreachable("no certificate to trust".to_owned()))?;
                Box::new(tls.connect(name, socket).await.map_err(|error| unreachable(error.to_string()))?)
            }
        })
    }

    async fn tcp(&self, authority: &str) -> Result<TcpStream, AskError> {
        TcpStream::connect(authority)
            .await
            .map_err(|error| AskError::Unreachable { address: self.shown(), why: error.to_string() })
    }

    /// The address as it is written.
    pub fn shown(&self) -> String {
        match &self.address {
            Address::Unix(path) => format!("unix:{}", path.display()),
            Address::Http(authority) => format!("http://{authority}"),
            Address::Https(authority) => format!("https://{authority}"),
        }
    }
}

/// How the API says no.
#[derive(serde::Deserialize)]
struct Refusal {
    error: String,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

fn connector(ca: &Path) -> Result<TlsConnector, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| failed(&error))? {
        roots.add(certificate.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn broken(error: impl std::fmt::Display) -> AskError {
    AskError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        assert_eq!("/run/a.sock".parse(), Ok(Address::Unix("/run/a.sock".into())));
        assert_eq!("unix:a.sock".parse(), Ok(Address::Unix("a.sock".into())));
        assert_eq!("http://127.0.0.1:7400/".parse(), Ok(Address::Http("127.0.0.1:7400".into())));
        assert_eq!("https://cp:7400".parse(), Ok(Address::Https("cp:7400".into())));
        assert!("cp:7400".parse::<Address>().is_err());
        let missing = Client::new(Address::Https("cp:1".into()), None, None).err().unwrap();
        assert!(missing.contains("--ca"), "{missing}");
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_what_to_do() {
        let client = Client::new(Address::Unix("/nowhere/at/all".into()), None, None).unwrap();
        let error = client.get::<serde_json::Value>("/v1/nodes").await.unwrap_err();
        assert!(matches!(error, AskError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("tidegate up"), "{error}");
    }
}
