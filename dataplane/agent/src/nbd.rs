//! Where NBD clients come in: listening, and the handshake up to the export (decision D6).
//!
//! A client talks to a task here until it has chosen an export; then its socket and session move to the
//! worker that owns the volume, and nothing of it stays. Handshakes are bounded in number and in time.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::session::nbd::{Attach, Handshake, HandshakeError, Limits, Next, TlsPolicy, Transmission};
use engine::{Arrival, Stream};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::config::exports::Listen;
use crate::daemon::Daemon;
use crate::unix::{self, Unlink};

/// Clients that may be in the middle of a handshake; more wait to be accepted.
const HANDSHAKES_MAX: usize = 1024;
/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Silence after which a host is asked whether it is still there; how often, and how many times.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// Read at once during a handshake.
const CHUNK_BYTES: usize = 16 << 10;
/// Pause after the system had no descriptor left for a client.
const RETRY: Duration = Duration::from_millis(100);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for NBD on {place}: {source}; is another server there? `ss -ltnp` shows TCP's")]
pub struct ListenError {
    place: String,
    source: io::Error,
}

/// A listening socket.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Unlink),
}

/// Why a client did not come to an export.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Protocol(#[from] HandshakeError),
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("it left")]
    Left,
    #[error("it took longer than {} s", HANDSHAKE_TIME.as_secs())]
    Slow,
    #[error("it asked for TLS, which is off")]
    Tls,
}

/// Binds an address or a path.
pub(crate) async fn bind(listen: &Listen) -> Result<Listener, ListenError> {
    let bound = match listen {
        Listen::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        Listen::Unix(path) => unix::bind(path).map(|(listener, file)| Listener::Unix(listener, file)),
    };
    bound.map_err(|source| ListenError { place: shown(listen), source })
}

fn shown(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    }
}

impl Listener {
    /// The URI under which clients reach it.
    pub(crate) fn uri(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| "nbd://".to_owned(), |address| format!("nbd://{address}")),
            Listener::Unix(_, Unlink(path)) => format!("nbd+unix:///?socket={}", path.display()),
        }
    }

    /// Accepts clients for as long as the daemon lives.
    pub(crate) async fn accept(self, daemon: Weak<Daemon>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
            let client = match &self {
                Listener::Tcp(listener) => listener.accept().await.map(|(socket, _)| Client::Tcp(socket)),
                Listener::Unix(listener, _) => {
                    listener.accept().await.map(|(socket, _)| Client::Unix(socket))
                }
            };
            let client = match client {
                Ok(client) => client,
                Err(error) => {
                    warn!(
                        "an NBD client could not be accepted: {error}; raise LimitNOFILE= if it says too many"
                    );
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let daemon = Weak::clone(&daemon);
            tokio::spawn(async move {
                if let Err(why) = client.greet(&daemon).await {
                    debug!("an NBD client did not come to an export: {why}");
                }
                drop(permit);
            });
        }
    }
}

enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Client {
    /// The handshake, and the way to the worker.
    async fn greet(mut self, daemon: &Weak<Daemon>) -> Result<(), Refusal> {
        let talked = match &mut self {
            Client::Tcp(socket) => {
                socket.set_nodelay(true)?;
                SockRef::from(&*socket).set_tcp_keepalive(&keepalive())?;
                tokio::time::timeout(HANDSHAKE_TIME, talk(socket, daemon)).await
            }
            Client::Unix(socket) => tokio::time::timeout(HANDSHAKE_TIME, talk(socket, daemon)).await,
        };
        let (attach, rest) = talked.map_err(|_elapsed| Refusal::Slow)??;
        // Both stay non-blocking on their way to the worker.
        let stream = match self {
            Client::Tcp(socket) => Stream::Tcp(socket.into_std()?),
            Client::Unix(socket) => Stream::Unix(socket.into_std()?),
        };
        let daemon = daemon.upgrade().ok_or(Refusal::Left)?;
        let session = Box::new(Transmission::new(attach, Limits::default()));
        daemon.connect(Arrival { stream, session, rest });
        Ok(())
    }
}

/// A host that vanished without a word is found after two minutes, and its place is free again.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_PROBE).with_retries(KEEPALIVE_PROBES)
}

/// Speaks until the client has chosen. Returns its choice, and what it has said beyond that.
async fn talk(
    socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    daemon: &Weak<Daemon>,
) -> Result<(Attach, Vec<u8>), Refusal> {
    let mut handshake = Handshake::new(TlsPolicy::Off);
    let mut received = Vec::new();
    loop {
        while !handshake.dispatch_bytes().is_empty() {
            let sent = socket.write(handshake.dispatch_bytes()).await?;
            handshake.sent(sent);
        }
        match handshake.next() {
            Next::Read => {}
            Next::StartTls => return Err(Refusal::Tls),
            Next::Attach(attach) => return Ok((attach, received)),
            Next::Close => return Err(Refusal::Left),
        }
        let taken = {
            let daemon = daemon.upgrade().ok_or(Refusal::Left)?;
            handshake.process_bytes(&received, daemon.offers())?
        };
        received.drain(..taken);
        let waits = taken == 0 && handshake.dispatch_bytes().is_empty();
        if waits && matches!(handshake.next(), Next::Read) {
            let before = received.len();
            received.resize(before + CHUNK_BYTES, 0);
            let count = socket.read(&mut received[before..]).await?;
            received.truncate(before + count);
            if count == 0 {
                return Err(Refusal::Left);
            }
        }
    }
}
