//! NBD clients: the handshake up to the export (decision D6).
//!
//! A client talks to a task here until it has chosen an export, over TLS if it asks for that; then its socket and
//! session move to the worker that owns the volume, and nothing of it stays. Handshakes are bounded in number and
//! in time.

use std::io::{self, Read};
use std::sync::{Arc, Weak};

use engine::session::nbd::{Attach, Handshake, HandshakeError, Limits, Next, TlsPolicy, Transmission};
use engine::{Arrival, Guest, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::daemon::Daemon;
use crate::listen::{CHUNK_BYTES, Client, HANDSHAKE_TIME};
use crate::tls::Helper;

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
    #[error("it went on before it was told to start TLS")]
    Early,
}

/// The handshake, and the way to the worker.
pub(crate) async fn greet(client: Client, daemon: Weak<Daemon>, helper: Arc<Helper>) -> Result<(), Refusal> {
    let limit = HANDSHAKE_TIME;
    let talked = match client {
        Client::Tcp(socket) => {
            tokio::time::timeout(limit, choose(socket, Client::Tcp, &daemon, &helper)).await
        }
        Client::Unix(socket) => {
            tokio::time::timeout(limit, choose(socket, Client::Unix, &daemon, &helper)).await
        }
    };
    let arrival = talked.map_err(|_elapsed| Refusal::Slow)??;
    daemon.upgrade().ok_or(Refusal::Left)?.connect(arrival);
    Ok(())
}

/// Speaks, over TLS from some point on if both want it, until the client has chosen.
async fn choose<S>(
    mut socket: S,
    client: fn(S) -> Client,
    daemon: &Weak<Daemon>,
    helper: &Helper,
) -> Result<Arrival, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tls = daemon.upgrade().ok_or(Refusal::Left)?.tls();
    let mut handshake = Handshake::new(tls.as_ref().map_or(TlsPolicy::Off, |tls| tls.policy));
    let mut rest = Vec::new();
    let Some(attach) = talk(&mut socket, &mut handshake, &mut rest, daemon).await? else {
        // INVARIANT: without TLS a client is not led here.
        let tls = tls.ok_or(Refusal::Left)?;
        // "the client MUST NOT send any data until it has received the reply": what came before the handshake is
        // not to be taken for what comes in it.
        if !rest.is_empty() {
            return Err(Refusal::Early);
        }
        let mut secured = helper.accept(&tls, socket).await?;
        handshake.tls_started();
        let attach = talk(&mut secured, &mut handshake, &mut rest, daemon).await?.ok_or(Refusal::Left)?;
        let (socket, mut machine) = secured.into_inner();
        // What was decrypted, and is no option, belongs to the session.
        let bytes = machine.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read();
        let before = rest.len();
        rest.resize(before + bytes, 0);
        machine.reader().read_exact(&mut rest[before..])?;
        return Ok(arrival(client(socket).into_stream()?.secured(machine), attach, rest));
    };
    Ok(arrival(client(socket).into_stream()?, attach, rest))
}

fn arrival(stream: Stream, attach: Attach, rest: Vec<u8>) -> Arrival {
    let guest = Guest::Nbd(Box::new(Transmission::new(attach, Limits::default())));
    Arrival { stream, guest, rest }
}

/// Speaks until the client has chosen, or wants to start TLS (`None`). What it has said beyond that stays in
/// `received`.
async fn talk(
    socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    handshake: &mut Handshake,
    received: &mut Vec<u8>,
    daemon: &Weak<Daemon>,
) -> Result<Option<Attach>, Refusal> {
    loop {
        while !handshake.dispatch_bytes().is_empty() {
            let sent = socket.write(handshake.dispatch_bytes()).await?;
            handshake.sent(sent);
        }
        socket.flush().await?;
        match handshake.next() {
            Next::Read => {}
            Next::StartTls => return Ok(None),
            Next::Attach(attach) => return Ok(Some(attach)),
            Next::Close => return Err(Refusal::Left),
        }
        let taken = {
            let daemon = daemon.upgrade().ok_or(Refusal::Left)?;
            handshake.process_bytes(received, &daemon.table().offers)?
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
