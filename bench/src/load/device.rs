//! The device under load, whichever protocol reaches it: connections that requests are put on and answers come
//! from, by slot.

use super::nbd::Connection;
use super::nvme::{Paths, Plan};
use super::uri::{Place, nvme_address};
use super::{RECEIVE_BYTES, Spec};
use crate::Outcome;

/// What is asked of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
}

impl Op {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
        }
    }
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub op: Op,
    pub offset_bytes: u64,
    pub bytes: u32,
    /// A write is answered when it is durable.
    pub fua: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Done,
    /// With this number of the protocol's.
    Failed(u32),
    /// Its path failed: nothing is known of it, and it is to be asked again.
    Again,
}

/// What came back for a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// Whose.
    pub slot: u32,
    pub ending: Ending,
    /// What was read, if that was to be kept.
    pub payload: Vec<u8>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Device {
    Nbd { connections: Vec<Connection>, scratch: Vec<u8> },
    Nvme(Box<Paths>),
}

impl Device {
    /// Connects; returns the size in bytes as well.
    pub fn open(spec: &Spec) -> Outcome<(Device, u64)> {
        if let Place::NvmeTcp(address) = &spec.uri.place {
            let plan = Plan {
                subsystem: spec.uri.name.clone(),
                options: spec.nvme.clone(),
                connections: spec.connections,
                depth: spec.depth,
                block_bytes: spec.block_bytes,
                keep: spec.verify,
            };
            let further = spec.paths.iter().map(|path| nvme_address(path));
            let addresses: Vec<String> = [address.clone()].into_iter().chain(further).collect();
            let paths = Paths::open(&addresses, plan, spec.loss)?;
            let size_bytes = paths.size_bytes();
            return Ok((Device::Nvme(Box::new(paths)), size_bytes));
        }
        if !spec.paths.is_empty() {
            return Err("only NVMe has several paths to a volume".to_owned());
        }
        let mut connections = Vec::new();
        let mut size_bytes = u64::MAX;
        for _ in 0..spec.connections {
            let (connection, size) = Connection::open(&spec.uri, spec.depth, spec.verify)?;
            size_bytes = size_bytes.min(size);
            connections.push(connection);
        }
        Ok((Device::Nbd { connections, scratch: vec![0; RECEIVE_BYTES] }, size_bytes))
    }

    /// Puts a request on a connection, under a slot that is free; false if that is not possible now.
    pub fn ask(&mut self, connection: usize, slot: u32, request: &Request, data: &[u8]) -> bool {
        match self {
            Device::Nbd { connections, .. } => {
                let connection = &mut connections[connection];
                let has_room = connection.has_room();
                if has_room {
                    connection.ask(slot, request, data);
                }
                has_room
            }
            Device::Nvme(paths) => paths.ask(connection, slot, request, data),
        }
    }

    /// Sends and receives on a connection; `payload` shows what a slot writes.
    pub fn poll<'p>(
        &mut self,
        connection: usize,
        payload: impl Fn(u32) -> &'p [u8],
        now_ns: u64,
        answers: &mut Vec<Answer>,
    ) -> Outcome {
        match self {
            Device::Nbd { connections, scratch } => {
                connections[connection].send()?;
                connections[connection].receive(scratch, answers)
            }
            Device::Nvme(paths) => {
                paths.poll(connection, payload, now_ns, answers);
                Ok(())
            }
        }
    }

    /// Looks after what is not a connection's own; an error if the device is out of reach.
    pub fn step(&mut self, now_ns: u64) -> Outcome {
        match self {
            Device::Nbd { .. } => Ok(()),
            Device::Nvme(paths) => paths.step(now_ns),
        }
    }

    /// What has happened to its paths since this was called last.
    pub fn events(&mut self) -> Vec<String> {
        match self {
            Device::Nbd { .. } => Vec::new(),
            Device::Nvme(paths) => paths.events().collect(),
        }
    }

    /// Says that nothing more comes.
    pub fn close(&mut self) {
        if let Device::Nbd { connections, .. } = self {
            connections.iter_mut().for_each(Connection::close);
        }
    }
}
