//! A queue and its socket. While it is set up it blocks, in the hands of a thread that has nothing else to do;
//! from then on nothing does.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use wire::nvme::{Command, StatusCode};
use wire::nvme_tcp::DigestFlags;

use super::queue::{Answer, Payload, Queue};

/// A controller that says nothing for so long while it is set up is not there.
const SETUP: Duration = Duration::from_secs(5);

/// See the module's documentation. Errors are sentences about the peer, without its address.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TcpStream,
    pub queue: Queue,
}

impl Connection {
    /// Connects and agrees on digests.
    pub fn open(address: &str, slots: u32, digests: DigestFlags, keep: bool) -> Result<Connection, String> {
        let mut last = "no such address".to_owned();
        for place in address.to_socket_addrs().map_err(|error| error.to_string())? {
            match TcpStream::connect_timeout(&place, SETUP) {
                Ok(socket) => {
                    let queue = Queue::new(slots, digests, keep);
                    let mut connection = Connection { socket, queue };
                    connection.hello()?;
                    return Ok(connection);
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn hello(&mut self) -> Result<(), String> {
        let setup = (self.socket.set_nodelay(true))
            .and_then(|()| self.socket.set_read_timeout(Some(SETUP)))
            .and_then(|()| self.socket.set_write_timeout(Some(SETUP)));
        setup.map_err(|error| error.to_string())?;
        let mut answers = Vec::new();
        while !self.queue.is_open() {
            self.exchange(&[], &mut answers)?;
        }
        Ok(())
    }

    /// Asks and waits for the answer; an error of the controller is one of ours, with its name.
    pub fn call(
        &mut self,
        what: &str,
        command: Command,
        payload: Payload<'_>,
    ) -> Result<(u64, Vec<u8>), String> {
        self.queue.ask(0, command, payload);
        let data = if let Payload::FromHost(data) = payload { data } else { &[][..] };
        let mut answers = Vec::new();
        while answers.is_empty() {
            self.exchange(data, &mut answers).map_err(|why| format!("{what}: {why}"))?;
        }
        let Some(Answer { completion, payload, .. }) = answers.pop() else {
            return Err(format!("{what}: no answer"));
        };
        match completion.status {
            StatusCode::SUCCESS => Ok((completion.result, payload)),
            status => Err(format!("{what} was refused: {status}")),
        }
    }

    /// Sends what there is and waits for a piece of the answer.
    fn exchange(&mut self, data: &[u8], answers: &mut Vec<Answer>) -> Result<(), String> {
        let waited = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock => format!("no answer within {} s", SETUP.as_secs()),
            _ => error.to_string(),
        };
        self.socket.write_all(self.queue.dispatch_bytes()).map_err(waited)?;
        self.queue.sent(self.queue.dispatch_bytes().len());
        let mut octets = [0; 8192];
        match self.socket.read(&mut octets) {
            Ok(0) => Err("the controller has closed the connection".to_owned()),
            Ok(count) => self
                .queue
                .process_bytes(&octets[..count], |_| data, answers)
                .map_err(|error| self.part(&error.to_string())),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(waited(error)),
        }
    }

    /// From now on nothing blocks.
    pub fn stop_blocking(&self) -> Result<(), String> {
        self.socket.set_nonblocking(true).map_err(|error| error.to_string())
    }

    /// Sends what the socket takes.
    pub fn send(&mut self) -> Result<(), String> {
        while !self.queue.dispatch_bytes().is_empty() {
            match self.socket.write(self.queue.dispatch_bytes()) {
                Ok(count) => self.queue.sent(count),
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Takes what has arrived, as [`Queue::process_bytes`] does.
    pub fn receive<'p>(
        &mut self,
        scratch: &mut [u8],
        payload: impl Fn(u32) -> &'p [u8],
        answers: &mut Vec<Answer>,
    ) -> Result<(), String> {
        match self.socket.read(scratch) {
            Ok(0) => Err("the controller has closed the connection".to_owned()),
            Ok(count) => self
                .queue
                .process_bytes(&scratch[..count], payload, answers)
                .map_err(|error| self.part(&error.to_string())),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Says the last words.
    fn part(&mut self, why: &str) -> String {
        // The controller may have gone first; the connection is closed in any case.
        let _ = self.send();
        why.to_owned()
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
