//! A client of our own, for what programs of others cannot do: many requests under way while the daemon dies,
//! every answer counted, and messages that are left half said.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustls::{ClientConnection, StreamOwned};
use wire::nbd::handshake::{ClientFlags, ExportNameReply, Greeting, OptionCode, OptionHeader};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode, Request, SimpleReply};

/// What a client talks through.
pub trait Socket: Read + Write + Send {}
impl Socket for TcpStream {}
impl Socket for UnixStream {}
impl Socket for StreamOwned<ClientConnection, TcpStream> {}

/// A connection to an export: fixed newstyle, no options but the name, simple replies.
pub struct Client {
    socket: Box<dyn Socket>,
    next_cookie: u64,
}

impl Client {
    /// Chooses an export over a Unix socket.
    pub fn unix(path: &Path, export: &str) -> Client {
        let socket = UnixStream::connect(path).expect("the daemon listens");
        Client::new(Box::new(socket), export).expect("the daemon knows the export")
    }

    pub fn new(mut socket: Box<dyn Socket>, export: &str) -> io::Result<Client> {
        greeted(&mut *socket)?;
        Client::choose(socket, export)
    }

    /// Chooses an export where everything else was said.
    pub fn choose(mut socket: Box<dyn Socket>, export: &str) -> io::Result<Client> {
        let header = OptionHeader { option: OptionCode::EXPORT_NAME, data_bytes: export.len() as u32 };
        socket.write_all(&[&header.octets()[..], export.as_bytes()].concat())?;
        let mut reply = [0; ExportNameReply::BYTES];
        socket.read_exact(&mut reply)?;
        Ok(Client { socket, next_cookie: 0 })
    }

    /// Sends a request and returns its cookie.
    pub fn send(
        &mut self,
        (command, flags): (Command, CommandFlags),
        offset_bytes: u64,
        length_bytes: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request { flags, command, cookie, offset_bytes, length_bytes };
        self.socket.write_all(&request.octets())?;
        self.socket.write_all(payload)?;
        Ok(cookie)
    }

    /// The next answer, without what it carries.
    pub fn reply(&mut self) -> io::Result<SimpleReply> {
        let mut octets = [0; SimpleReply::BYTES];
        self.socket.read_exact(&mut octets)?;
        Ok(SimpleReply::parse(&octets).expect("a simple reply"))
    }

    /// The cookie of the next answer, which must tell of success; what it carries is the caller's to read.
    pub fn answer(&mut self) -> io::Result<u64> {
        let reply = self.reply()?;
        assert_eq!(reply.error, ErrorCode::OK, "request {} is answered well", reply.cookie);
        Ok(reply.cookie)
    }

    /// Reads what an answer carries.
    pub fn payload(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.socket.read_exact(into)
    }

    /// Reads, alone.
    pub fn read(&mut self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        let read = (Command::READ, CommandFlags(0));
        let cookie = self.send(read, offset_bytes, into.len() as u32, &[])?;
        assert_eq!(self.answer()?, cookie);
        self.payload(into)
    }

    /// Flushes, alone; how that ended.
    pub fn flush(&mut self) -> io::Result<ErrorCode> {
        let cookie = self.send((Command::FLUSH, CommandFlags(0)), 0, 0, &[])?;
        let reply = self.reply()?;
        assert_eq!(reply.cookie, cookie);
        Ok(reply.error)
    }

    /// Writes, alone.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let write = (Command::WRITE, CommandFlags(0));
        let cookie = self.send(write, offset_bytes, bytes.len() as u32, bytes)?;
        assert_eq!(self.answer()?, cookie);
        Ok(())
    }
}

/// Takes the greeting and answers it.
pub fn greeted(socket: &mut dyn Socket) -> io::Result<()> {
    let mut greeting = [0; Greeting::BYTES];
    socket.read_exact(&mut greeting)?;
    Greeting::parse(&greeting).expect("a greeting");
    let flags = ClientFlags(ClientFlags::FIXED_NEWSTYLE.0 | ClientFlags::NO_ZEROES.0);
    socket.write_all(&flags.octets())
}
