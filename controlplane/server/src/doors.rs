//! Listening: several places, one stream of clients, each with what is known about who it is.
//!
//! Invariants: a client that does not finish its TLS handshake holds up nobody and is given up after
//! [`HANDSHAKE`]; handshakes under way are bounded by [`HANDSHAKES_MAX`]; a Unix socket is its owner's alone.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{debug, warn};

use crate::config::{Listen, Place};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES_MAX: usize = 256;
/// Pause after the system had no descriptor left for a client.
const RETRY: Duration = Duration::from_millis(100);

/// Why nobody can come in.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// A place cannot be listened at.
    #[error("cannot listen at {place}: {source}; is a control plane running there already?")]
    Bind {
        /// The place.
        place: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The certificate, or its key.
    #[error("{}: {why}; it must be PEM", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Who a client is, as far as its connection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine that may open our socket.
    Unix {
        /// Its user.
        uid: Option<u32>,
    },
    /// An address.
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Whether what is said is secret.
        tls: bool,
    },
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Unix { uid: Some(uid) } => write!(f, "uid {uid}"),
            Peer::Unix { uid: None } => f.write_str("this machine"),
            Peer::Tcp { address, .. } => write!(f, "{address}"),
        }
    }
}

/// A client's connection.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// All places as one listener.
pub struct Doors {
    clients: mpsc::Receiver<(Box<dyn Io>, Peer)>,
    shown: Vec<String>,
    _files: Vec<Unlink>,
}

/// Removes a socket's file when the daemon ends, however it ends short of kill -9.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Err(failure) = std::fs::remove_file(&self.0) {
            warn!("{} stays behind: {failure}", self.0.display());
        }
    }
}

impl Doors {
    /// Listens at all places.
    pub async fn open(listen: &Listen, places: &[Place]) -> Result<Doors, DoorError> {
        let tls = match (&listen.certificate, &listen.key) {
            (Some(certificate), Some(key)) => Some(acceptor(certificate, key)?),
            _ => None,
        };
        let (sender, clients) = mpsc::channel(HANDSHAKES_MAX);
        let (mut shown, mut files) = (Vec::new(), Vec::new());
        for place in places {
            match place {
                Place::Unix(path) => {
                    let failed = |source| DoorError::Bind { place: path.display().to_string(), source };
                    let listener = bind_unix(path).map_err(failed)?;
                    files.push(Unlink(path.clone()));
                    shown.push(format!("unix:{}", path.display()));
                    tokio::spawn(accept_unix(listener, sender.clone()));
                }
                Place::Tcp(address) => {
                    let failed = |source| DoorError::Bind { place: address.to_string(), source };
                    let listener = TcpListener::bind(address).await.map_err(failed)?;
                    let address = listener.local_addr().map_err(failed)?;
                    shown.push(format!("{}://{address}", if tls.is_some() { "https" } else { "http" }));
                    tokio::spawn(accept_tcp(listener, tls.clone(), sender.clone()));
                }
            }
        }
        Ok(Doors { clients, shown, _files: files })
    }

    /// Where, as clients write it.
    pub fn shown(&self) -> &[String] {
        &self.shown
    }
}

impl axum::serve::Listener for Doors {
    type Io = Box<dyn Io>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Box<dyn Io>, Peer) {
        match self.clients.recv().await {
            Some(client) => client,
            // Every acceptor has ended, which only happens with the daemon.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer::Unix { uid: None })
    }
}

impl Connected<IncomingStream<'_, Doors>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Doors>) -> Peer {
        stream.remote_addr().clone()
    }
}

/// Binds a path. A socket that a dead daemon left is replaced; a live one is not, and nor is anything else.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file of that name"));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

type Clients = mpsc::Sender<(Box<dyn Io>, Peer)>;

async fn accept_unix(listener: UnixListener, clients: Clients) {
    while !clients.is_closed() {
        match listener.accept().await {
            Ok((socket, _)) => {
                let uid = socket.peer_cred().ok().map(|credentials| credentials.uid());
                let client: Box<dyn Io> = Box::new(socket);
                if clients.send((client, Peer::Unix { uid })).await.is_err() {
                    return;
                }
            }
            Err(error) => tell(error).await,
        }
    }
}

async fn accept_tcp(listener: TcpListener, tls: Option<TlsAcceptor>, clients: Clients) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while !clients.is_closed() {
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tell(error).await;
                continue;
            }
        };
        // Small answers must not wait for each other; one that cannot be told so is slower, no more.
        let _ = socket.set_nodelay(true);
        let Some(tls) = tls.clone() else {
            let client: Box<dyn Io> = Box::new(socket);
            if clients.send((client, Peer::Tcp { address, tls: false })).await.is_err() {
                return;
            }
            continue;
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let clients = clients.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
                Ok(Ok(secret)) => {
                    let client: Box<dyn Io> = Box::new(secret);
                    // Nobody listens any more: the daemon ends.
                    let _ = clients.send((client, Peer::Tcp { address, tls: true })).await;
                }
                Ok(Err(why)) => debug!("{address} did not finish its handshake: {why}"),
                Err(_elapsed) => debug!("{address} took too long for its handshake"),
            }
            drop(permit);
        });
    }
}

async fn tell(error: io::Error) {
    warn!("a client could not be accepted: {error}; raise LimitNOFILE= if it says too many");
    tokio::time::sleep(RETRY).await;
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, DoorError> {
    let failed = |path: &Path, why: &dyn std::fmt::Display| DoorError::Certificate {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|chain| chain.collect::<Result<Vec<_>, _>>())
        .map_err(|error| failed(certificate, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| failed(certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
