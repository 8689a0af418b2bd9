//! An NVMe/TCP host over a socket, made of bytes and of nothing of ours.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use self::host::{ADMIN, Agreed, Reply, Sgl, Sqe, Wish, hello, property_set};

#[path = "../../../dataplane/session/tests/nvme_common/host.rs"]
pub mod host;

/// Nothing that is waited for takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What no test agrees on but those of digests.
pub const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, alignment: 0 };

/// One queue.
pub struct Host {
    pub socket: TcpStream,
    agreed: Agreed,
    heard: Vec<u8>,
}

impl Host {
    /// A connection that has said nothing.
    pub fn silent(port: u16, agreed: Agreed) -> Host {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the daemon listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("sockets have it");
        Host { socket, agreed, heard: Vec::new() }
    }

    /// Agrees, and connects a queue; returns what is said to that.
    pub fn connect(port: u16, agreed: Agreed, wish: Wish) -> (Host, Reply) {
        let mut host = Host::silent(port, agreed);
        host.say(&hello(agreed));
        host.say(&agreed.capsule(wish.command(), &wish.data()));
        let hello = host.hear().expect("an answer to ICReq");
        assert!(matches!(hello, Reply::Hello { .. }), "{hello:?}");
        let reply = host.hear().expect("an answer to Connect");
        (host, reply)
    }

    /// The admin queue of a controller that is enabled, and its number.
    pub fn admin(port: u16, wish: Wish) -> (Host, u16) {
        let (mut host, reply) = Host::connect(port, PLAIN, wish);
        let Reply::Done { status: 0, result, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(host.status(property_set(1, 0x14, 0x0046_0001)), 0);
        (host, result as u16)
    }

    /// An admin queue, and an I/O queue of its controller.
    pub fn both(port: u16, subsystem: &'static str) -> (Host, Host) {
        let (admin, controller) = Host::admin(port, Wish { subsystem, keep_alive_ms: 0, ..ADMIN });
        let (io, reply) = Host::connect(port, PLAIN, Wish { subsystem, ..Wish::io(1, controller) });
        assert!(matches!(reply, Reply::Done { status: 0, .. }), "{reply:?}");
        (admin, io)
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the daemon takes it");
    }

    /// Says as much as the socket takes, and does not wait for more.
    pub fn flood(&mut self, bytes: &[u8]) {
        self.socket.set_nonblocking(true).expect("sockets can");
        let mut said = 0;
        while said < bytes.len() {
            match self.socket.write(&bytes[said..]) {
                Ok(count) => said += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("the daemon has closed it: {error}"),
            }
        }
        self.socket.set_nonblocking(false).expect("sockets can");
    }

    /// The next unit; an error when the connection is over.
    pub fn hear(&mut self) -> io::Result<Reply> {
        while self.heard.len() < 8 || self.heard.len() < self.whole() {
            let mut piece = [0; 64 << 10];
            match self.socket.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => self.heard.extend_from_slice(&piece[..bytes]),
            }
        }
        let (reply, bytes) = self.agreed.parse(&self.heard);
        self.heard.drain(..bytes);
        Ok(reply)
    }

    fn whole(&self) -> usize {
        u32::from_le_bytes(self.heard[4..8].try_into().expect("4 bytes")) as usize
    }

    /// Sends a command, with what belongs into its capsule.
    pub fn send(&mut self, command: Sqe, payload: &[u8]) {
        let capsule = self.agreed.capsule(command, payload);
        self.say(&capsule);
    }

    /// The next completion, and the data before it.
    pub fn answer(&mut self) -> io::Result<(Reply, Vec<u8>)> {
        let mut data = Vec::new();
        loop {
            match self.hear()? {
                Reply::Data { offset, data: piece, .. } => {
                    assert_eq!(offset as usize, data.len());
                    data.extend(piece);
                }
                reply => return Ok((reply, data)),
            }
        }
    }

    /// The status of a command without data.
    pub fn status(&mut self, command: Sqe) -> u16 {
        self.status_of(command, &[])
    }

    /// The status of a command whose data is in its capsule.
    pub fn status_of(&mut self, command: Sqe, payload: &[u8]) -> u16 {
        self.send(command, payload);
        match self.answer() {
            Ok((Reply::Done { status, .. }, _)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// The data that a command is answered with.
    pub fn data(&mut self, command: Sqe) -> Vec<u8> {
        self.send(command, &[]);
        match self.answer() {
            Ok((Reply::Done { status: 0, .. }, data)) => data,
            other => panic!("{other:?}"),
        }
    }

    /// Wants to hear of these events (bits of dword 11), and asks to be told of one.
    pub fn listen(&mut self, events: u32, id: u16) {
        let wants = Sqe::new(0x09, 1, 0, Sgl::Host(0)).dword(10, 0x0b).dword(11, events);
        assert_eq!(self.status(wants), 0);
        self.send(Sqe::new(0x0c, id, 0, Sgl::Host(0)), &[]);
    }

    /// Dword 0 of the event that it is told of next.
    pub fn event(&mut self, asked: u16) -> u64 {
        match self.answer() {
            Ok((Reply::Done { id, status: 0, result, .. }, _)) if id == asked => result,
            other => panic!("{other:?}"),
        }
    }

    /// The daemon closes it, whatever it says before.
    pub fn closed(&mut self) -> Vec<Reply> {
        let mut said = Vec::new();
        loop {
            match self.hear() {
                Ok(reply) => said.push(reply),
                Err(error) => {
                    // Closed with unread bytes, TCP answers with a reset: as good as an end.
                    let ends = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
                    assert!(ends.contains(&error.kind()), "{error}");
                    return said;
                }
            }
        }
    }
}
