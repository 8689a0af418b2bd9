//! From the first byte to the Connect command, which says whose queue the connection is.
//!
//! Invariants: at most one unit is held; what follows the Connect command is left to the queue.

use thiserror::Error;
use wire::nvme::fabrics::{
    CONNECT_DATA_BYTES, Connect, ConnectData, ConnectFlags, Fabrics, InvalidParameter,
};
use wire::nvme::{AdminOpcode, Command, Completion, Sgl, StatusCode};
use wire::nvme_tcp::{
    Agreed, Alignment, DigestFlags, Direction, Fatal, FatalStatus, IcReq, IcResp, Pdu, Termination,
};

use super::link::{Event, Link};

/// Why a connection ended before it was a queue. It is to be closed once what [`Setup::dispatch_bytes`]
/// shows was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SetupError {
    /// The host does not speak NVMe/TCP; it was told.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// The host found fault with us.
    #[error("the host ended the connection: {0}")]
    Terminated(Fatal),
    /// The Connect command was refused; the host was told.
    #[error("the host sent no Connect command that could be followed: {0}")]
    Refused(StatusCode),
}

/// What to do next, once [`Setup::dispatch_bytes`] is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Receive.
    Read,
    /// Take [`Setup::attach`] to the owner of the subsystem.
    Attach,
    /// Close.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hello,
    Connect,
    Data { command: Command, connect: Connect },
    Attached,
    Ended,
}

/// A connection whose host has said which queue it is to be.
#[derive(Debug)]
pub struct Attach {
    pub(super) link: Link,
    /// For what we send.
    pub(super) agreed: Agreed,
    pub(super) connect: Connect,
    pub(super) command: u16,
    pub(super) host_id: [u8; 16],
    pub(super) controller: u16,
    host: Box<str>,
    subsystem: Box<str>,
}

impl Attach {
    /// NQN of the subsystem that the host wants.
    pub fn subsystem(&self) -> &str {
        &self.subsystem
    }

    /// NQN of the host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Both sides count places of the queue.
    pub(super) fn has_flow_control(&self) -> bool {
        !self.connect.flags.has(ConnectFlags::DISABLE_FLOW_CONTROL)
    }
}

/// The acceptor's side of a connection.
#[derive(Debug)]
pub struct Setup {
    link: Link,
    state: State,
    /// For what we send.
    agreed: Agreed,
    data: Box<[u8; CONNECT_DATA_BYTES]>,
    filled: usize,
    attach: Option<Box<Attach>>,
    output: Vec<u8>,
    sent: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Setup::new()
    }
}

impl Setup {
    /// Waits for the first byte.
    pub fn new() -> Setup {
        Setup {
            link: Link::new(Direction::HostToController),
            state: State::Hello,
            agreed: Agreed::NOTHING,
            data: Box::new([0; CONNECT_DATA_BYTES]),
            filled: 0,
            attach: None,
            output: Vec::new(),
            sent: 0,
        }
    }

    /// Takes what arrived; returns how many bytes of it were consumed. After an error, send what
    /// [`Setup::dispatch_bytes`] shows, and close.
    pub fn process_bytes(&mut self, bytes: &[u8]) -> Result<usize, SetupError> {
        let mut at = 0;
        while at < bytes.len() && !matches!(self.state, State::Attached | State::Ended) {
            let step = match self.link.take(&bytes[at..]) {
                Ok((took, event)) => {
                    at += took;
                    self.process_event(event)
                }
                Err(fatal) => Err(self.fatal(fatal)),
            };
            if let Err(error) = step {
                self.state = State::Ended;
                return Err(error);
            }
            if self.link.take_end() {
                self.process_end(true)?;
            }
        }
        Ok(at)
    }

    /// What to send next; empty when there is nothing.
    pub fn dispatch_bytes(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Says that the first `bytes` of [`Setup::dispatch_bytes`] were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.output.len());
    }

    /// What to do next, once [`Setup::dispatch_bytes`] is empty.
    pub fn next(&self) -> Next {
        match self.state {
            State::Attached => Next::Attach,
            State::Ended => Next::Close,
            _ => Next::Read,
        }
    }

    /// The host's wish, once.
    pub fn attach(&mut self) -> Option<Box<Attach>> {
        self.attach.take()
    }

    /// No such subsystem is here: the host is told.
    pub fn refuse(&mut self, attach: &Attach) {
        self.state = State::Ended;
        self.complete(InvalidParameter::SUBSYSTEM.completion(attach.command));
    }

    fn process_event(&mut self, event: Event<'_>) -> Result<(), SetupError> {
        match (self.state, event) {
            (_, Event::More) => Ok(()),
            (State::Hello, Event::Unit(Pdu::IcReq(request), _)) => {
                self.hello(&request);
                Ok(())
            }
            (State::Connect, Event::Unit(Pdu::Command(command), data_bytes)) => {
                self.command(command, data_bytes)
            }
            (State::Data { .. }, Event::Data(piece)) => {
                self.data[self.filled..self.filled + piece.len()].copy_from_slice(piece);
                self.filled += piece.len();
                Ok(())
            }
            (State::Data { .. }, Event::End(sound)) => self.process_end(sound),
            (_, Event::Unit(Pdu::Termination(_, fatal), _)) => Err(SetupError::Terminated(fatal)),
            // TCP clause 3.1: ICReq is the first unit, and the only one of its kind.
            (_, Event::Unit(..) | Event::Data(_) | Event::End(_)) => {
                Err(self.fatal(Fatal::bare(FatalStatus::SEQUENCE)))
            }
        }
    }

    /// TCP clause 3.1. The alignment that we ask of the host is 4 bytes: Linux takes no other.
    fn hello(&mut self, request: &IcReq) {
        let IcReq { alignment, digests, .. } = *request;
        let (header_digest, data_digest) =
            (digests.has(DigestFlags::HDGST_ENABLE), digests.has(DigestFlags::DDGST_ENABLE));
        self.agreed = Agreed { header_digest, data_digest, alignment };
        self.link.agree(Agreed { header_digest, data_digest, alignment: Alignment::WORD });
        let data_bytes_max = block::IO_BYTES_MAX as u32;
        let answer = Pdu::IcResp(IcResp { alignment: Alignment::WORD, digests, data_bytes_max });
        // INVARIANT: 1 MiB is a number of whole dwords.
        self.send(answer.head(0, Agreed::NOTHING).expect("INVARIANT: whole dwords").octets().to_vec());
        self.state = State::Connect;
    }

    /// Base clause 6.3: the first command on a connection is Connect. Its data comes along: TCP clause
    /// 3.3.2.1 lets every host send 8,192 bytes with it.
    fn command(&mut self, command: Command, data_bytes: u32) -> Result<(), SetupError> {
        if command.opcode != AdminOpcode::FABRICS.0 {
            return Err(self.refused(command.id, StatusCode::COMMAND_SEQUENCE_ERROR));
        }
        let connect = match Fabrics::parse(&command) {
            Ok(Fabrics::Connect(connect)) => connect,
            Ok(_) => return Err(self.refused(command.id, StatusCode::COMMAND_SEQUENCE_ERROR)),
            Err(status) => return Err(self.refused(command.id, status)),
        };
        let sgl = match Sgl::parse(&command.sgl) {
            Ok(sgl) => sgl,
            Err(status) => return Err(self.refused(command.id, status)),
        };
        let wanted = CONNECT_DATA_BYTES as u32;
        match sgl {
            Sgl::InCapsule { offset_bytes: 0, length_bytes }
                if length_bytes == wanted && data_bytes == wanted =>
            {
                self.state = State::Data { command, connect };
                Ok(())
            }
            Sgl::InCapsule { offset_bytes: 1.., .. } => {
                Err(self.refused(command.id, StatusCode::SGL_OFFSET_INVALID))
            }
            Sgl::InCapsule { .. } => Err(self.refused(command.id, StatusCode::SGL_DATA_LENGTH_INVALID)),
            Sgl::HostBuffer { .. } => Err(self.refused(command.id, StatusCode::SGL_TYPE_INVALID)),
        }
    }

    fn process_end(&mut self, sound: bool) -> Result<(), SetupError> {
        let State::Data { command, connect } = self.state else { return Ok(()) };
        if !sound {
            // TCP clause 3.3.1.1: not fatal; the command is answered so.
            return Err(self.refused(command.id, StatusCode::TRANSIENT_TRANSPORT_ERROR));
        }
        let attach = match ConnectData::parse(&self.data) {
            Ok(data) => Attach {
                link: std::mem::replace(&mut self.link, Link::new(Direction::HostToController)),
                agreed: self.agreed,
                connect,
                command: command.id,
                host_id: data.host_id,
                controller: data.controller,
                host: data.host.into(),
                subsystem: data.subsystem.into(),
            },
            Err(parameter) => {
                self.state = State::Ended;
                let completion = parameter.completion(command.id);
                self.complete(completion);
                return Err(SetupError::Refused(completion.status));
            }
        };
        self.attach = Some(Box::new(attach));
        self.state = State::Attached;
        Ok(())
    }

    fn refused(&mut self, command: u16, status: StatusCode) -> SetupError {
        let do_not_retry = status != StatusCode::TRANSIENT_TRANSPORT_ERROR;
        self.state = State::Ended;
        self.complete(Completion { command, status, do_not_retry, ..Completion::default() });
        SetupError::Refused(status)
    }

    fn fatal(&mut self, fatal: Fatal) -> SetupError {
        let termination = Termination { fatal, header: self.link.header() };
        if let Ok((octets, bytes)) = termination.octets(Direction::ControllerToHost) {
            self.send(octets[..bytes].to_vec());
        }
        SetupError::Fatal(fatal)
    }

    fn complete(&mut self, completion: Completion) {
        // INVARIANT: a completion has no data, so nothing of it can be out of range.
        let head = Pdu::Completion(completion).head(0, self.agreed).expect("INVARIANT: no data");
        self.send(head.octets().to_vec());
    }

    fn send(&mut self, octets: Vec<u8>) {
        self.output.drain(..self.sent);
        self.sent = 0;
        self.output.extend(octets);
    }
}
