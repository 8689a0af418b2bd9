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
use super::{Answer, Ending, Op, Request as Wish};
use crate::Outcome;

/// With so much waiting to be sent, no more is added.
const SEND_BYTES: usize = 1 << 20;
/// A server that says nothing for so long during the handshake is not there.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Both kinds of socket.
trait Socket: Read + Write + std::fmt::Debug {
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

/// Where in the server's bytes we are.
#[derive(Debug)]
enum Input {
    Head { octets: [u8; SimpleReply::BYTES], have: usize },
    Payload { slot: u32, left: usize, kept: Vec<u8> },
}

/// A request under way: its cookie, and the payload of its answer.
#[derive(Clone, Copy, Debug)]
struct Asked {
    cookie: u64,
    payload_bytes: u32,
}

/// A connection past its handshake.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    place: String,
    out: Vec<u8>,
    sent: usize,
    input: Input,
    /// In the upper half of each cookie, so that an old answer is not taken for a new one.
    round: u32,
    /// By slot, the lower half of the cookie.
    asked: Vec<Option<Asked>>,
    keep: bool,
}

impl Connection {
    /// Connects and chooses the export; returns its size in bytes as well. What is read is kept if `keep`.
    pub fn open(uri: &Uri, depth: u32, keep: bool) -> Outcome<(Connection, u64)> {
        let failed = |error: &dyn std::fmt::Display| format!("{uri}: {error}");
        let mut socket: Box<dyn Socket> = match &uri.place {
            Place::Nbd(host) => {
                let socket = TcpStream::connect(host.as_str()).map_err(|error| failed(&error))?;
                socket.set_nodelay(true).map_err(|error| failed(&error))?;
                socket.set_read_timeout(Some(HANDSHAKE)).map_err(|error| failed(&error))?;
                Box::new(socket)
            }
            Place::NbdUnix(path) => {
                let socket = UnixStream::connect(path).map_err(|error| failed(&error))?;
                socket.set_read_timeout(Some(HANDSHAKE)).map_err(|error| failed(&error))?;
                Box::new(socket)
            }
            Place::NvmeTcp(_) => return Err(format!("{uri} is no NBD server")),
        };
        let size_bytes = handshake(&mut *socket, &uri.name).map_err(|why| failed(&why))?;
        socket.nonblocking().map_err(|error| failed(&error))?;
        let connection = Connection {
            socket,
            place: uri.to_string(),
            out: Vec::new(),
            sent: 0,
            input: HEAD,
            round: 0,
            asked: vec![None; depth as usize],
            keep,
        };
        Ok((connection, size_bytes))
    }

    /// There is not too much waiting to be sent.
    pub fn has_room(&self) -> bool {
        self.out.len() - self.sent < SEND_BYTES
    }

    /// Queues a request under a slot that is free.
    pub fn ask(&mut self, slot: u32, wish: &Wish, payload: &[u8]) {
        self.round = self.round.wrapping_add(1);
        let cookie = u64::from(self.round) << 32 | u64::from(slot);
        let (command, payload, payload_bytes) = match wish.op {
            Op::Read => (Command::READ, &[][..], wish.bytes),
            Op::Write => (Command::WRITE, payload, 0),
            Op::Flush => (Command::FLUSH, &[][..], 0),
        };
        self.asked[slot as usize] = Some(Asked { cookie, payload_bytes });
        let (offset_bytes, length_bytes) = match wish.op {
            // "offset and length are set to zero".
            Op::Flush => (0, 0),
            _ => (wish.offset_bytes, wish.bytes),
        };
        let flags = if wish.fua && wish.op == Op::Write { CommandFlags::FUA } else { CommandFlags::NONE };
        self.push(&Request { flags, command, cookie, offset_bytes, length_bytes });
        self.out.extend_from_slice(payload);
    }

    fn push(&mut self, request: &Request) {
        self.out.extend_from_slice(&request.octets());
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

    /// Takes what has arrived.
    pub fn receive(&mut self, scratch: &mut [u8], answers: &mut Vec<Answer>) -> Outcome {
        let count = match self.socket.read(scratch) {
            Ok(0) => return Err(format!("{}: the server has closed the connection", self.place)),
            Ok(count) => count,
            Err(error) if is_transient(&error) => return Ok(()),
            Err(error) => return Err(format!("{}: {error}", self.place)),
        };
        let mut at = 0;
        while at < count {
            let rest = &scratch[at..count];
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
                    let asked = self.asked.get_mut(slot as usize);
                    let known = asked.and_then(|one| one.take_if(|asked| asked.cookie == reply.cookie));
                    let Some(Asked { payload_bytes, .. }) = known else {
                        return Err(format!("{}: an answer to {:#x}, never asked", self.place, reply.cookie));
                    };
                    let (ending, left) = match reply.error {
                        ErrorCode::OK => (Ending::Done, payload_bytes as usize),
                        error => (Ending::Failed(error.0), 0),
                    };
                    if left == 0 {
                        answers.push(Answer { slot, ending, payload: Vec::new() });
                        self.input = HEAD;
                    } else {
                        self.input = Input::Payload { slot, left, kept: Vec::new() };
                    }
                }
                Input::Payload { slot, left, kept } => {
                    let take = rest.len().min(*left);
                    if self.keep {
                        kept.extend_from_slice(&rest[..take]);
                    }
                    *left -= take;
                    at += take;
                    if *left == 0 {
                        let payload = std::mem::take(kept);
                        answers.push(Answer { slot: *slot, ending: Ending::Done, payload });
                        self.input = HEAD;
                    }
                }
            }
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub fn close(&mut self) {
        let (flags, command) = (CommandFlags::NONE, Command::DISC);
        self.push(&Request { flags, command, cookie: 0, offset_bytes: 0, length_bytes: 0 });
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
