//! One connection of the load to an NBD server: handshake, requests out, simple replies in.
//!
//! The handshake blocks; from then on nothing does. Structured replies are not asked for: simple ones are
//! the least that both sides can do for a read. Payload that nobody looks at is counted and thrown away.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use wire::nbd::handshake::{
    ClientFlags, EXPORT_NAME_ZEROES, ExportNameReply, Greeting, HandshakeFlags, OptionCode, OptionHeader,
};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode, Request, SimpleReply};

use super::uri::{Place, Uri};
use crate::Outcome;

/// Bytes received at once.
const RECEIVE_BYTES: usize = 256 << 10;
/// With so much waiting to be sent, no more is added.
const SEND_BYTES: usize = 1 << 20;
/// A server that says nothing for so long during the handshake is not there.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Both kinds of socket.
trait Socket: Read + Write {
    fn nonblocking(&self) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn nonblocking(&self) -> io::Result<()> {
        self.set_nonblocking(true)
    }
}

impl Socket for UnixStream {
    fn nonblocking(&self) -> io::Result<()> {
        self.set_nonblocking(true)
    }
}

/// What came back for a request.
pub(super) struct Answer {
    /// Whose.
    pub slot: u32,
    /// How it ended.
    pub error: ErrorCode,
    /// What was read, if that was to be kept.
    pub payload: Vec<u8>,
}

/// Where in the server's bytes we are.
enum Input {
    Head { octets: [u8; SimpleReply::BYTES], have: usize },
    Payload { slot: u32, left: usize, kept: Vec<u8> },
}

/// A connection past its handshake.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    place: String,
    out: Vec<u8>,
    sent: usize,
    scratch: Vec<u8>,
    input: Input,
    /// In the upper half of each cookie, so that an old answer is not taken for a new one.
    round: u32,
    cookies: Vec<u64>,
}

impl Connection {
    /// Connects and chooses the export; returns its size in bytes as well.
    pub fn open(uri: &Uri) -> Outcome<(Connection, u64)> {
        let failed = |error: &dyn std::fmt::Display| format!("{uri}: {error}");
        let mut socket: Box<dyn Socket> = match &uri.place {
            Place::Tcp(host) => {
                let socket = TcpStream::connect(host.as_str()).map_err(|error| failed(&error))?;
                socket.set_nodelay(true).map_err(|error| failed(&error))?;
                socket.set_read_timeout(Some(HANDSHAKE)).map_err(|error| failed(&error))?;
                Box::new(socket)
            }
            Place::Unix(path) => {
                let socket = UnixStream::connect(path).map_err(|error| failed(&error))?;
                socket.set_read_timeout(Some(HANDSHAKE)).map_err(|error| failed(&error))?;
                Box::new(socket)
            }
        };
        let size_bytes = handshake(&mut *socket, &uri.export).map_err(|why| failed(&why))?;
        socket.nonblocking().map_err(|error| failed(&error))?;
        let connection = Connection {
            socket,
            place: uri.to_string(),
            out: Vec::new(),
            sent: 0,
            scratch: vec![0; RECEIVE_BYTES],
            input: HEAD,
            round: 0,
            cookies: Vec::new(),
        };
        Ok((connection, size_bytes))
    }

    /// There is not too much waiting to be sent.
    pub fn has_room(&self) -> bool {
        self.out.len() - self.sent < SEND_BYTES
    }

    /// Queues a request.
    pub fn ask(&mut self, command: Command, slot: u32, offset_bytes: u64, length_bytes: u32, payload: &[u8]) {
        self.round = self.round.wrapping_add(1);
        let cookie = u64::from(self.round) << 32 | u64::from(slot);
        if self.cookies.len() <= slot as usize {
            self.cookies.resize(slot as usize + 1, 0);
        }
        self.cookies[slot as usize] = cookie;
        let request = Request { flags: CommandFlags::NONE, command, cookie, offset_bytes, length_bytes };
        self.out.extend_from_slice(&request.octets());
        self.out.extend_from_slice(payload);
    }

    /// Sends what the socket takes.
    pub fn send(&mut self) -> Outcome {
        while self.sent < self.out.len() {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(format!("{}: {error}", self.place)),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Takes what has arrived. `length` says how much payload a slot's answer has, or that there is none
    /// under way; payload is kept if `keep`.
    pub fn receive(&mut self, keep: bool, length: impl Fn(u32) -> Option<u32>) -> Outcome<Vec<Answer>> {
        let mut answers = Vec::new();
        let count = match self.socket.read(&mut self.scratch) {
            Ok(0) => return Err(format!("{}: the server has closed the connection", self.place)),
            Ok(count) => count,
            Err(error) if is_transient(&error) => return Ok(answers),
            Err(error) => return Err(format!("{}: {error}", self.place)),
        };
        let mut at = 0;
        while at < count {
            let rest = &self.scratch[at..count];
            match &mut self.input {
                Input::Head { octets, have } => {
                    let take = rest.len().min(SimpleReply::BYTES - *have);
                    octets[*have..*have + take].copy_from_slice(&rest[..take]);
                    *have += take;
                    at += take;
                    if *have < SimpleReply::BYTES {
                        continue;
                    }
                    let reply =
                        SimpleReply::parse(octets).map_err(|error| format!("{}: {error}", self.place))?;
                    let slot = reply.cookie as u32;
                    let known = self.cookies.get(slot as usize) == Some(&reply.cookie);
                    let Some(length) = length(slot).filter(|_| known) else {
                        return Err(format!("{}: an answer to {:#x}, never asked", self.place, reply.cookie));
                    };
                    let left = if reply.error != ErrorCode::OK { 0 } else { length as usize };
                    if left == 0 {
                        answers.push(Answer { slot, error: reply.error, payload: Vec::new() });
                        self.input = HEAD;
                    } else {
                        self.input = Input::Payload { slot, left, kept: Vec::new() };
                    }
                }
                Input::Payload { slot, left, kept } => {
                    let take = rest.len().min(*left);
                    if keep {
                        kept.extend_from_slice(&rest[..take]);
                    }
                    *left -= take;
                    at += take;
                    if *left == 0 {
                        let payload = std::mem::take(kept);
                        answers.push(Answer { slot: *slot, error: ErrorCode::OK, payload });
                        self.input = HEAD;
                    }
                }
            }
        }
        Ok(answers)
    }

    /// Says that nothing more comes.
    pub fn close(&mut self) {
        self.ask(Command::DISC, 0, 0, 0, &[]);
        // The server may have gone first; nothing is under way.
        let _ = self.send();
    }
}

const HEAD: Input = Input::Head { octets: [0; SimpleReply::BYTES], have: 0 };

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// "Newstyle negotiation" with the one option that every server has; returns the export's size in bytes.
fn handshake(socket: &mut dyn Socket, export: &str) -> Result<u64, String> {
    let io = |error: io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => "the server ended the handshake; does it have this export?".to_owned(),
        _ => format!("handshake: {error}"),
    };
    let mut greeting = [0; Greeting::BYTES];
    socket.read_exact(&mut greeting).map_err(io)?;
    let greeting = Greeting::parse(&greeting).map_err(|error| error.to_string())?;
    let no_zeroes = greeting.flags.has(HandshakeFlags::NO_ZEROES);
    let flags = ClientFlags::FIXED_NEWSTYLE.with_if(no_zeroes, ClientFlags::NO_ZEROES);
    let option = OptionHeader {
        option: OptionCode::EXPORT_NAME,
        data_bytes: u32::try_from(export.len()).unwrap_or(0),
    };
    let words = [&flags.octets()[..], &option.octets()[..], export.as_bytes()].concat();
    socket.write_all(&words).map_err(io)?;
    let mut reply = [0; ExportNameReply::BYTES];
    socket.read_exact(&mut reply).map_err(io)?;
    if !no_zeroes {
        socket.read_exact(&mut [0; EXPORT_NAME_ZEROES]).map_err(io)?;
    }
    ExportNameReply::parse(&reply).map(|reply| reply.size_bytes).map_err(|error| error.to_string())
}
