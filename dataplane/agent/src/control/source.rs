//! A volume of another node that is copied: a client of its NBD export, on the thread of the copy
//! (docs/decisions/050).
//!
//! Invariants: a server that says nothing for [`SILENCE`], or what it must not say, ends the copy; what is asked together
//! is answered before more is asked.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use engine::block::BlockSize;
use engine::wire::EmitError;
use engine::wire::nbd::handshake::{
    ClientFlags, Greeting, HandshakeFlags, Info, InfoCode, InfoRequest, MetaContextRequest, OptionCode,
    OptionHeader, OptionReplyHeader, Reply,
};
use engine::wire::nbd::transmission::{
    AllocationFlags, ChunkFlags, ChunkHeader, ChunkPayload, Command, CommandFlags, Request,
};

/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes that are asked for together, at most.
pub const READ_BYTES: u32 = 8 << 20;
/// Ranges that are asked for together, at most: as many requests as a server takes, so that none waits for answers.
pub const READS: usize = 64;
/// Bytes that one question about changes covers.
const ASK_BYTES: u64 = 1 << 30;
/// Longest piece that a server may say: one part of a read, with its head.
const PIECE_BYTES_MAX: u32 = (32 << 20) + 64;
/// Longest data of an option that is sent: two names of 4096 bytes, and what stands between them.
const OPTION_BYTES_MAX: usize = 2 * 4096 + 64;

const CHANGED: &str = "tidegate:changed";
const IDENTITY: &str = "tidegate:identity:";

/// Why a copy ends; it may be begun anew.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be reached.
    #[error("{place}: {source}")]
    Socket {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// It is reached in no way that a copy can go.
    #[error(
        "the node with {name} says no address for NBD without TLS, but {addresses:?}; set [nbd] listen there"
    )]
    NoAddress {
        /// The volume.
        name: String,
        /// What it said.
        addresses: Vec<String>,
    },
    /// It does not say what it should.
    #[error("{place}: {what}")]
    Says {
        /// Where.
        place: String,
        /// What is wrong.
        what: String,
    },
}

trait Socket: Read + Write + Send {
    fn limit(&self, silence: Duration) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn limit(&self, silence: Duration) -> io::Result<()> {
        self.set_nodelay(true)?;
        self.set_read_timeout(Some(silence))?;
        self.set_write_timeout(Some(silence))
    }
}

impl Socket for UnixStream {
    fn limit(&self, silence: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(silence))?;
        self.set_write_timeout(Some(silence))
    }
}

/// A piece of what was read.
pub enum Piece<'a> {
    /// Its bytes.
    Data(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

/// See the module's documentation.
pub struct Source {
    socket: Box<dyn Socket>,
    place: String,
    cookie: u64,
    scratch: Vec<u8>,
    /// Its size in bytes.
    pub bytes: u64,
    /// Size of its blocks.
    pub block: BlockSize,
    /// What it is to hosts.
    pub identity: [u8; 16],
}

impl Source {
    /// Attaches to a volume by its name, where its node is reached, and begins to ask what changes.
    pub fn attach(addresses: &[String], name: &str) -> Result<Source, SourceError> {
        let (place, socket) = connect(addresses, name)?;
        let (block, scratch) = (BlockSize::B4096, Vec::new());
        let mut source = Source { socket, place, cookie: 0, scratch, bytes: 0, block, identity: [0; 16] };
        source.handshake(name)?;
        Ok(source)
    }

    /// What changed from `offset_bytes` on since that was asked last: runs of bytes, and whether they did. At least one
    /// run, maybe not to the end.
    pub fn changed(&mut self, offset_bytes: u64) -> Result<Vec<(u64, bool)>, SourceError> {
        let length_bytes = (self.bytes - offset_bytes).min(ASK_BYTES) as u32;
        let request = self.request(Command::BLOCK_STATUS, offset_bytes, length_bytes);
        self.send(&request.octets())?;
        let mut runs = Vec::new();
        self.answers(request.cookie, |_, payload| {
            let ChunkPayload::BlockStatus { descriptors, .. } = payload else { return Ok(()) };
            let run = |one: engine::wire::nbd::transmission::Descriptor| {
                (u64::from(one.length_bytes), one.flags != AllocationFlags::NONE)
            };
            runs.extend(descriptors.iter().map(run));
            Ok::<(), SourceError>(())
        })?;
        if runs.is_empty() {
            return Err(self.says("it does not say what changed".to_owned()));
        }
        Ok(runs)
    }

    /// Reads some ranges, asked for together, each at most [`READ_BYTES`] and not more than [`READS`]; pieces come in any
    /// order, with their place.
    pub fn read<E: From<SourceError>>(
        &mut self,
        ranges: &[(u64, u32)],
        mut each: impl FnMut(u64, Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let first = self.cookie + 1;
        let mut asked = Vec::with_capacity(ranges.len() * Request::BYTES);
        for &(offset_bytes, length_bytes) in ranges {
            asked.extend(self.request(Command::READ, offset_bytes, length_bytes).octets());
        }
        self.send(&asked)?;
        let mut left: Vec<u64> = ranges.iter().map(|(_, length_bytes)| u64::from(*length_bytes)).collect();
        let place = self.place.clone();
        self.answers(first, |row, payload| {
            let (at, piece, bytes) = match payload {
                ChunkPayload::OffsetData { offset_bytes, data } => {
                    (offset_bytes, Piece::Data(data), data.len() as u64)
                }
                ChunkPayload::OffsetHole { offset_bytes, hole_bytes } => {
                    (offset_bytes, Piece::Zeros(hole_bytes.into()), u64::from(hole_bytes))
                }
                _ => return Ok(()),
            };
            let (begin, length) = ranges[row];
            let end = begin + u64::from(length);
            if at < begin || at.checked_add(bytes).is_none_or(|last| last > end) || bytes > left[row] {
                let what = "an answer to what was not asked".to_owned();
                return Err(SourceError::Says { place: place.clone(), what }.into());
            }
            left[row] -= bytes;
            each(at, piece)
        })?;
        let left: u64 = left.iter().sum();
        if left == 0 { Ok(()) } else { Err(self.says(format!("{left} bytes were not answered")).into()) }
    }

    /// Ends in order.
    pub fn leave(mut self) -> Result<(), SourceError> {
        let request = self.request(Command::DISC, 0, 0);
        self.send(&request.octets())
    }

    fn says(&self, what: String) -> SourceError {
        SourceError::Says { place: self.place.clone(), what }
    }

    fn failed(&self, source: io::Error) -> SourceError {
        SourceError::Socket { place: self.place.clone(), source }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.socket.write_all(bytes).map_err(|source| self.failed(source))
    }

    /// The next bytes.
    fn receive(&mut self, bytes: usize) -> Result<Vec<u8>, SourceError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(bytes, 0);
        self.socket.read_exact(&mut scratch).map_err(|source| self.failed(source))?;
        Ok(scratch)
    }

    /// The next request.
    fn request(&mut self, command: Command, offset_bytes: u64, length_bytes: u32) -> Request {
        self.cookie += 1;
        Request { flags: CommandFlags::NONE, command, cookie: self.cookie, offset_bytes, length_bytes }
    }

    /// Takes the chunks that answer what was asked last, from the cookie `first` on, each with the row of its request.
    fn answers<E: From<SourceError>>(
        &mut self,
        first: u64,
        mut each: impl FnMut(usize, ChunkPayload<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = self.cookie + 1 - first;
        while left > 0 {
            let head = self.receive(ChunkHeader::BYTES)?;
            let parsed = ChunkHeader::parse(&head).map_err(|error| self.says(error.to_string()));
            self.scratch = head;
            let header = parsed?;
            if !(first..=self.cookie).contains(&header.cookie) || header.payload_bytes > PIECE_BYTES_MAX {
                return Err(self.says("an answer to what was not asked".to_owned()).into());
            }
            let payload = self.receive(header.payload_bytes as usize)?;
            let parsed = ChunkPayload::parse(&header, &payload);
            match parsed.map_err(|error| self.says(error.to_string()))? {
                ChunkPayload::Error { error, message, .. } => {
                    return Err(self.says(format!("error {}: {message}", error.0)).into());
                }
                payload => each((header.cookie - first) as usize, payload)?,
            }
            self.scratch = payload;
            left -= u64::from(header.flags.has(ChunkFlags::DONE));
        }
        Ok(())
    }

    fn handshake(&mut self, name: &str) -> Result<(), SourceError> {
        let greeting = self.receive(Greeting::BYTES)?;
        let greeting = Greeting::parse(&greeting).map_err(|error| self.says(error.to_string()))?;
        let flags = ClientFlags::FIXED_NEWSTYLE
            .with_if(greeting.flags.has(HandshakeFlags::NO_ZEROES), ClientFlags::NO_ZEROES);
        self.send(&flags.octets())?;
        self.option(OptionCode::STRUCTURED_REPLY, &[], |_, _| {})?;
        let asks = self.data(|data| MetaContextRequest::emit(name, &[IDENTITY], data))?;
        let mut identity = None;
        self.option(OptionCode::LIST_META_CONTEXT, &asks, |_, reply| {
            if let Reply::MetaContext { name, .. } = reply {
                let digits = name.strip_prefix(IDENTITY);
                identity = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
            }
        })?;
        let identity = identity.ok_or_else(|| self.says(format!("it does not say {IDENTITY}")))?;
        self.identity = identity.to_be_bytes();
        let mut selected = false;
        let asks = self.data(|data| MetaContextRequest::emit(name, &[CHANGED], data))?;
        self.option(OptionCode::SET_META_CONTEXT, &asks, |_, reply| {
            selected |= matches!(reply, Reply::MetaContext { name: CHANGED, .. });
        })?;
        if !selected {
            return Err(self.says(format!("it does not know {CHANGED}")));
        }
        let data = self.data(|data| InfoRequest::emit(name, &[InfoCode::BLOCK_SIZE], data))?;
        let mut block = None;
        self.option(OptionCode::GO, &data, |source, reply| match reply {
            Reply::Info(Info::Export { size_bytes, .. }) => source.bytes = size_bytes,
            Reply::Info(Info::BlockSize(sizes)) => block = BlockSize::from_bytes(sizes.minimum_bytes()),
            _ => {}
        })?;
        self.block = block.ok_or_else(|| self.says("it does not say how long its blocks are".to_owned()))?;
        Ok(())
    }

    /// The data of an option.
    fn data(&self, emit: impl FnOnce(&mut [u8]) -> Result<usize, EmitError>) -> Result<Vec<u8>, SourceError> {
        let mut data = vec![0; OPTION_BYTES_MAX];
        let length = emit(&mut data).map_err(|error| self.says(error.to_string()))?;
        data.truncate(length);
        Ok(data)
    }

    /// Sends an option and takes its replies until the last.
    fn option(
        &mut self,
        option: OptionCode,
        data: &[u8],
        mut each: impl FnMut(&mut Source, Reply<'_>),
    ) -> Result<(), SourceError> {
        let header = OptionHeader { option, data_bytes: data.len() as u32 };
        self.send(&[&header.octets()[..], data].concat())?;
        loop {
            let head = self.receive(OptionReplyHeader::BYTES)?;
            let header = OptionReplyHeader::parse(&head).map_err(|error| self.says(error.to_string()))?;
            if header.data_bytes > 64 << 10 {
                return Err(self.says("a reply that is too long".to_owned()));
            }
            let data = self.receive(header.data_bytes as usize)?;
            match Reply::parse(header.code, &data).map_err(|error| self.says(error.to_string()))? {
                Reply::Ack => return Ok(()),
                Reply::Error { code, message } => {
                    return Err(self.says(format!("{option} is refused: {code} {message}")));
                }
                reply => each(self, reply),
            }
        }
    }
}

/// The first address that answers.
fn connect(addresses: &[String], name: &str) -> Result<(String, Box<dyn Socket>), SourceError> {
    let mut outcome = Err(SourceError::NoAddress { name: name.to_owned(), addresses: addresses.to_owned() });
    for place in addresses {
        let opened = if let Some(path) = place.strip_prefix("nbd+unix:///?socket=") {
            UnixStream::connect(path).map(|socket| Box::new(socket) as Box<dyn Socket>)
        } else if let Some(host) = place.strip_prefix("nbd://") {
            TcpStream::connect(host).map(|socket| Box::new(socket) as Box<dyn Socket>)
        } else {
            continue;
        };
        match opened.and_then(|socket| socket.limit(SILENCE).map(|()| socket)) {
            Ok(socket) => return Ok((place.clone(), socket)),
            Err(source) => outcome = Err(SourceError::Socket { place: place.clone(), source }),
        }
    }
    outcome
}
