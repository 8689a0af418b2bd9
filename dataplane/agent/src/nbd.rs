//! NBD clients: the handshake up to the export (decision D6).
//!
//! A client talks to a task here until it has chosen an export; then its socket and session move to the
//! worker that owns the volume, and nothing of it stays. Handshakes are bounded in number and in time.

use std::io;
use std::sync::Weak;

use engine::session::nbd::{Attach, Handshake, HandshakeError, Limits, Next, TlsPolicy, Transmission};
use engine::{Arrival, Guest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::daemon::Daemon;
use crate::listen::{CHUNK_BYTES, Client, HANDSHAKE_TIME};

/// Why a client did not come to an export.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
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

/// The handshake, and the way to the worker.
pub(crate) async fn greet(mut client: Client, daemon: Weak<Daemon>) -> Result<(), Refusal> {
    let talked = match &mut client {
        Client::Tcp(socket) => tokio::time::timeout(HANDSHAKE_TIME, talk(socket, &daemon)).await,
        Client::Unix(socket) => tokio::time::timeout(HANDSHAKE_TIME, talk(socket, &daemon)).await,
    };
    let (attach, rest) = talked.map_err(|_elapsed| Refusal::Slow)??;
    let stream = client.into_stream()?;
    let daemon = daemon.upgrade().ok_or(Refusal::Left)?;
    let guest = Guest::Nbd(Box::new(Transmission::new(attach, Limits::default())));
    daemon.connect(Arrival { stream, guest, rest });
    Ok(())
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
