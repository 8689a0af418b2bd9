//! TLS for NBD clients: what a file says of it, and the thread that does the handshakes.
//!
//! A handshake costs a signature and a key exchange, some hundred microseconds to milliseconds; they are done on a
//! thread of their own, so that neither a worker nor the control socket waits for them (decision D6). Afterwards
//! the connection goes to its worker, record layer and all. docs/decisions/029 has the choices.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::rustls::crypto::{CryptoProvider, ring};
use engine::rustls::pki_types::pem::{self, PemObject};
use engine::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use engine::rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use engine::rustls::{self, RootCertStore, ServerConfig};
use engine::session::nbd::TlsPolicy;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::file;
use crate::listen::HANDSHAKE_TIME;

/// Why TLS cannot be as the file says.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("[nbd] tls: {}: {source}; it is a PEM file with {what}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        source: pem::Error,
    },
    /// Certificate and key are not what a server needs.
    #[error("[nbd] tls: {} with {}: {source}", certificate.display(), key.display())]
    Certificate {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// A certificate that clients should be checked against is none.
    #[error("[nbd] tls: {}: {source}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// Clients cannot be checked.
    #[error("[nbd] tls: {}: {source}", path.display())]
    Clients {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: VerifierBuilderError,
    },
}

/// What a file says of TLS, with its certificates read.
#[derive(Clone)]
pub(crate) struct Tls {
    /// Whether clients may go without.
    pub policy: TlsPolicy,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads certificates and key.
    pub fn load(from: &file::Tls) -> Result<Tls, TlsError> {
        let chain = certificates(&from.certificate, "the server's certificate and those that vouch for it")?;
        let key = PrivateKeyDer::from_pem_file(&from.key)
            .map_err(|source| pem_error(&from.key, "the server's private key", source))?;
        let provider = Arc::new(ring::default_provider());
        let refused = |source| TlsError::Certificate {
            certificate: from.certificate.clone(),
            key: from.key.clone(),
            source,
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let builder = match &from.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(verifier(path, provider)?),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(refused)?;
        // NBD connections are few and long: there is nothing to gain from resuming one, and a client that was
        // trusted once is asked again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let policy = if from.required { TlsPolicy::Require } else { TlsPolicy::Allow };
        Ok(Tls { policy, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found =
        read.and_then(|found| if found.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(found) });
    found.map_err(|source| pem_error(path, what, source))
}

fn pem_error(path: &Path, what: &'static str, source: pem::Error) -> TlsError {
    TlsError::Pem { path: path.to_owned(), what, source }
}

/// Clients must show a certificate that one of these has signed.
fn verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(path, "the certificates that vouch for clients")? {
        roots.add(root).map_err(|source| TlsError::Root { path: path.to_owned(), source })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|source| TlsError::Clients { path: path.to_owned(), source })
}

/// The thread that does TLS handshakes. It ends when this is dropped, and so do those that are under way.
pub(crate) struct Helper {
    handle: Handle,
    _ends_it: oneshot::Sender<()>,
}

impl Helper {
    pub fn start() -> io::Result<Helper> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (ends_it, end) = oneshot::channel::<()>();
        let body = move || {
            // The sender says nothing: it goes.
            let _ = runtime.block_on(end);
        };
        std::thread::Builder::new().name("tls".to_owned()).spawn(body)?;
        Ok(Helper { handle, _ends_it: ends_it })
    }

    /// The server's side of a TLS handshake.
    pub async fn accept<S>(&self, tls: &Tls, socket: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let accept = tls.acceptor.accept(socket);
        let timed = async move { tokio::time::timeout(HANDSHAKE_TIME, accept).await };
        let done = self.handle.spawn(timed).await.map_err(|_stopping| io::ErrorKind::Interrupted)?;
        done.map_err(|_elapsed| io::ErrorKind::TimedOut)?
    }
}
