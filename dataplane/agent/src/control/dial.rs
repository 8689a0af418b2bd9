//! Connecting to the control plane: a Unix socket, loopback, or TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Where the control plane is.
#[derive(Clone)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// Without TLS: loopback.
    Tcp(String),
    /// With TLS, and whom to trust.
    Tls(String, TlsConnector),
}

/// A connection.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Address {
    /// Reads an address as it is written; `ca` is whom to trust for https.
    pub fn parse(text: &str, ca: Option<&Path>) -> Result<Address, String> {
        let path = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text));
        if let Some(path) = path {
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        if let Some(authority) = text.strip_prefix("http://") {
            let authority = authority.trim_end_matches('/');
            let address: Option<std::net::SocketAddr> = authority.parse().ok();
            return match address.filter(|address| address.ip().is_loopback()) {
                Some(_) => Ok(Address::Tcp(authority.to_owned())),
                None => Err("http:// is for a loopback address; use https:// elsewhere".to_owned()),
            };
        }
        let Some(authority) = text.strip_prefix("https://") else {
            return Err("write unix:/PATH, http://127.0.0.1:PORT or https://HOST:PORT".to_owned());
        };
        let ca = ca.ok_or("https:// needs ca, the certificate of whom to trust")?;
        Ok(Address::Tls(authority.trim_end_matches('/').to_owned(), connector(ca)?))
    }

    /// Connects.
    pub async fn connect(&self) -> std::io::Result<Box<dyn Io>> {
        Ok(match self {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(authority) => Box::new(tcp(authority).await?),
            Address::Tls(authority, tls) => {
                let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
                Box::new(tls.connect(name.map_err(std::io::Error::other)?, tcp(authority).await?).await?)
            }
        })
    }
}

async fn tcp(authority: &str) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect(authority).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn connector(ca: &Path) -> Result<TlsConnector, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| failed(&error))? {
        roots.add(certificate.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_goes_without_tls() {
        assert!(matches!(Address::parse("unix:/run/a.sock", None), Ok(Address::Unix(_))));
        assert!(matches!(Address::parse("http://[::1]:7400", None), Ok(Address::Tcp(_))));
        for (text, what) in
            [("http://192.0.2.1:7400", "https://"), ("https://cp:7400", "ca"), ("cp:7400", "write unix:")]
        {
            let refused = Address::parse(text, None).err().unwrap();
            assert!(refused.contains(what), "{refused}");
        }
    }
}
