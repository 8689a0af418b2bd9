//! Where clients of served volumes come in: listening, and a task for each handshake.
//!
//! Invariants: handshakes are bounded in number; a host that vanished without a word is found.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::Stream;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::config::exports::Listen;
use crate::unix::{self, Unlink};

/// Clients that may be in the middle of a handshake; more wait to be accepted.
const HANDSHAKES_MAX: usize = 1024;
/// How long a handshake may take.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Silence after which a host is asked whether it is still there; how often, and how many times.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// Read at once during a handshake.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;
/// Pause after the system had no descriptor left for a client.
const RETRY: Duration = Duration::from_millis(100);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for {protocol} on {place}: {source}; is another server there? `ss -ltnp` shows TCP's")]
pub struct ListenError {
    protocol: &'static str,
    place: String,
    source: io::Error,
}

/// A listening socket.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Unlink),
}

/// A client that was accepted.
pub(crate) enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Binds an address or a path for clients of `protocol`.
pub(crate) async fn bind(protocol: &'static str, listen: &Listen) -> Result<Listener, ListenError> {
    let bound = match listen {
        Listen::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        Listen::Unix(path) => unix::bind(path).map(|(listener, file)| Listener::Unix(listener, file)),
    };
    bound.map_err(|source| ListenError { protocol, place: shown(listen), source })
}

fn shown(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    }
}

impl Listener {
    /// The URI under which clients reach it: `scheme` without anything, or with "+unix".
    pub(crate) fn uri(&self, scheme: &str) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| format!("{scheme}://"), |address| format!("{scheme}://{address}")),
            Listener::Unix(_, Unlink(path)) => format!("{scheme}+unix:///?socket={}", path.display()),
        }
    }

    /// Accepts clients of `protocol` for ever, and lets `greet` talk to each.
    pub(crate) async fn accept<F, E>(self, protocol: &'static str, greet: impl Fn(Client) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
            let client = match &self {
                Listener::Tcp(listener) => listener.accept().await.map(|(socket, _)| Client::Tcp(socket)),
                Listener::Unix(listener, _) => {
                    listener.accept().await.map(|(socket, _)| Client::Unix(socket))
                }
            };
            let client = client.and_then(|client| client.prepare());
            let client = match client {
                Ok(client) => client,
                Err(error) => {
                    warn!(
                        "a client of {protocol} could not be accepted: {error}; raise LimitNOFILE= if it says \
                         too many"
                    );
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let talk = greet(client);
            tokio::spawn(async move {
                if let Err(why) = talk.await {
                    debug!("a client of {protocol} did not come to a volume: {why}");
                }
                drop(permit);
            });
        }
    }
}

impl Client {
    fn prepare(self) -> io::Result<Client> {
        if let Client::Tcp(socket) = &self {
            socket.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new()
                .with_time(KEEPALIVE)
                .with_interval(KEEPALIVE_PROBE)
                .with_retries(KEEPALIVE_PROBES);
            SockRef::from(socket).set_tcp_keepalive(&keepalive)?;
        }
        Ok(self)
    }

    /// The socket as a worker takes it. It stays non-blocking.
    pub(crate) fn into_stream(self) -> io::Result<Stream> {
        Ok(match self {
            Client::Tcp(socket) => socket.into_std()?.into(),
            Client::Unix(socket) => socket.into_std()?.into(),
        })
    }
}
