//! A connection's socket, with or without TLS.
//!
//! The TLS handshake is done before a socket comes here (decision D6); what is left is the record layer, which
//! needs no more than the bytes at hand and never waits. docs/decisions/029 says what it costs.
//!
//! Invariants: after each receive nothing that was decrypted is left inside the TLS machine, so "readable" means
//! the same as for a plain socket; what was encrypted and not sent is at most [`PENDING_BYTES_MAX`] of payload and
//! counts as output until it is gone; a client that does not take it is ended after [`STALL_NS`].

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustls::ServerConnection;

/// Payload that is encrypted ahead of the socket, per connection.
const PENDING_BYTES_MAX: usize = 256 << 10;
/// Room for the longest record (RFC 8446, 5.2: 5 + 2^14 + 256 bytes; RFC 5246, 6.2.3: 5 + 2^14 + 2048).
const RECORD_BYTES: usize = 20 << 10;
/// How long a client may leave records unread.
const STALL_NS: u64 = 30_000_000_000;

/// A socket, not blocking.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    tls: Option<Box<Tls>>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

#[derive(Debug)]
struct Tls {
    machine: ServerConnection,
    /// The client has said that it says no more.
    peer_closed: bool,
    /// When it was first seen that records wait to be sent, if none left since.
    stuck_since_ns: Option<u64>,
}

/// A client that takes no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client left TLS records unread for {stalled_ns} ns")]
pub(super) struct Stalled {
    stalled_ns: u64,
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Stream {
        Stream { socket: Socket::Tcp(socket), tls: None }
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Stream {
        Stream { socket: Socket::Unix(socket), tls: None }
    }
}

impl Stream {
    /// The same socket, on which `machine` has done its handshake. What it has decrypted must have been read.
    pub fn secured(mut self, mut machine: ServerConnection) -> Stream {
        machine.set_buffer_limit(Some(PENDING_BYTES_MAX));
        self.tls = Some(Box::new(Tls { machine, peer_closed: false, stuck_since_ns: None }));
        self
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }

    /// One receive. 0: the client has closed it; [`ErrorKind::Interrupted`]: something came, but not yet enough to
    /// hand anything out.
    pub(super) fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.read(into),
            Some(tls) => tls.receive(&mut self.socket, into),
        }
    }

    /// One send. Returns how much was taken, which may be more than left; [`Stream::has_output`] says so.
    pub(super) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.write_vectored(slices),
            Some(tls) => tls.send(&mut self.socket, slices),
        }
    }

    /// What was taken has not all left.
    pub(super) fn has_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.machine.wants_write())
    }

    /// Finds a client that does not take what waits for it. The clock begins with the first call that finds it so.
    pub(super) fn expire(&mut self, now_ns: u64) -> Result<(), Stalled> {
        let Some(tls) = self.tls.as_mut().filter(|tls| tls.machine.wants_write()) else { return Ok(()) };
        let stalled_ns = now_ns.saturating_sub(*tls.stuck_since_ns.get_or_insert(now_ns));
        if stalled_ns <= STALL_NS { Ok(()) } else { Err(Stalled { stalled_ns }) }
    }
}

/// RFC 8446, 6.1: "Each party MUST send a "close_notify" alert before closing its write side of the connection".
impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.machine.send_close_notify();
            // There may be no room, or nobody there: then it ends without a word.
            let _ = tls.machine.write_tls(&mut self.socket);
        }
    }
}

impl Tls {
    /// Ciphertext goes into the rear of `into`, and what it becomes into the front: as much, and the record that was
    /// begun before.
    fn receive(&mut self, socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        if self.peer_closed {
            return Ok(0);
        }
        let (plain, cipher) = into.split_at_mut((into.len() + RECORD_BYTES) / 2);
        let count = socket.read(cipher)?;
        let (mut cipher, mut have) = (&cipher[..count], 0);
        while !cipher.is_empty() && !self.peer_closed {
            self.machine.read_tls(&mut cipher)?;
            have += self.decrypt(socket, &mut plain[have..])?;
        }
        match have {
            0 if count == 0 || self.peer_closed => Ok(0),
            0 => Err(ErrorKind::Interrupted.into()),
            _ => Ok(have),
        }
    }

    fn decrypt(&mut self, socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        let state = match self.machine.process_new_packets() {
            Ok(state) => state,
            Err(why) => {
                // The client is told, if there is room for it.
                let _ = self.machine.write_tls(socket);
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
        };
        self.peer_closed = state.peer_has_closed();
        let bytes = state.plaintext_bytes_to_read();
        self.machine.reader().read_exact(&mut into[..bytes])?;
        Ok(bytes)
    }

    fn send(&mut self, socket: &mut Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.machine.writer().write_vectored(slices)?;
        match self.machine.write_tls(socket) {
            Ok(_) => self.stuck_since_ns = None,
            Err(error) if taken > 0 && error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(taken)
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read(into),
            Socket::Unix(socket) => socket.read(into),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write(bytes),
            Socket::Unix(socket) => socket.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write_vectored(slices),
            Socket::Unix(socket) => socket.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
