//! Commands of the admin queue, and those of Fabrics on any queue.
//!
//! A command is carried out at once, in two steps: how many bytes the answer has, so that memory for them can
//! be found first; then the answer itself.

use std::net::SocketAddr;

use block::Lba;
use wire::nvme::data::{
    Cns, ControllerData, ControllerKind, ErrorEntry, Events, Feature, IDENTIFY_BYTES, NAMESPACE_ALL,
    NamespaceData, namespace_list,
};
use wire::nvme::fabrics::Fabrics;
use wire::nvme::{AdminOpcode, Command, Sgl, StatusCode};

use super::abort::ABORTS_MAX;
use super::controller::KEEP_ALIVE_STEPS;
use super::errors::ERRORS_MAX;
use super::features::{DISCOVERY_FEATURES, IO_FEATURES};
use super::log::LogRequest;
use super::subsystem::{Access, NAMESPACES_MAX, Namespace, Seat, Subsystem, is_valid};
use super::{CAPSULE_DATA_BYTES_MAX, DISCOVERY_PAGES_LOG2, EVENT_REQUESTS_MAX, TRANSFER_PAGES_LOG2, VERSION};

/// FR, and the revision in the firmware slot.
pub(super) const FIRMWARE: &str = env!("CARGO_PKG_VERSION");
const MODEL: &str = "Tidegate volume";
/// ONCS: Compare (0), Dataset Management (2), Write Zeroes (3).
const COMMANDS: u16 = 1 << 0 | 1 << 2 | 1 << 3;
/// VWC: there is one (0), and Flush names one namespace, never all (2:1 = 10b).
const WRITE_CACHE: u8 = 0b101;
/// SGLS: supported, without alignment (1:0 = 01b), as offsets in the capsule (20), and as the transport's own
/// descriptor (21), which hosts over TCP use for all that is not in the capsule.
const SGLS: u32 = 0b01 | 1 << 20 | 1 << 21;
/// LPA: the effects log (1), offsets (2). Not the scope of commands (5), which would bring along logs of NVMe-MI; the
/// logs 00h and 12h may be there without it.
const LOG_ATTRIBUTES: u8 = 0b110;
/// ANATT: hosts take a path that is in the state Change for longer for one that does not work.
const ANA_TRANSITION_S: u8 = 30;
/// Bytes that a write takes without reading: a page of the volume (decision D8).
const PREFERRED_BYTES: u32 = 4096;

/// Why a command is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub do_not_retry: bool,
    /// The byte of the command that is wrong, or [`ErrorEntry::NO_FIELD`].
    pub field: u16,
    /// The block at which it failed, where that is known.
    pub lba: Option<Lba>,
}

impl From<StatusCode> for Refusal {
    /// Asking again would not help.
    fn from(status: StatusCode) -> Refusal {
        let field = match status {
            StatusCode::INVALID_OPCODE => 0,
            StatusCode::COMMAND_ID_CONFLICT => 2,
            StatusCode::INVALID_NAMESPACE => field::NAMESPACE,
            StatusCode::SGL_OFFSET_INVALID => 24,
            StatusCode::SGL_DATA_LENGTH_INVALID => 32,
            StatusCode::SGL_TYPE_INVALID => 39,
            StatusCode::INVALID_LOG_PAGE | StatusCode::LBA_OUT_OF_RANGE => field::DWORD_10,
            _ => ErrorEntry::NO_FIELD,
        };
        Refusal { status, do_not_retry: true, field, lba: None }
    }
}

impl Refusal {
    /// Another try may succeed.
    pub fn passing(status: StatusCode) -> Refusal {
        Refusal { do_not_retry: false, ..status.into() }
    }

    /// Invalid Field in Command, and which.
    pub fn field(field: u16) -> Refusal {
        Refusal { field, ..StatusCode::INVALID_FIELD.into() }
    }
}

/// Where fields begin in a command, in bytes (base figure 87).
pub(super) mod field {
    /// FUSE and PSDT.
    pub const FLAGS: u16 = 1;
    pub const NAMESPACE: u16 = 4;
    /// CNS, LID, FID; SLBA.
    pub const DWORD_10: u16 = 40;
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Dwords 0 and 1 of the answer.
    Done(u64),
    /// The answer comes when something happens.
    Held,
    /// Done; this other command was taken back.
    Aborted(u16),
}

impl Subsystem {
    /// Checks a command of the admin queue and says how many bytes of data its answer has.
    pub(super) fn answer_bytes(&self, seat: Seat, command: &Command) -> Result<usize, Refusal> {
        if !command.has_sgl() || command.fused() != 0 {
            return Err(Refusal::field(field::FLAGS));
        }
        let opcode = AdminOpcode(command.opcode);
        let is_ready = self.controller(seat).is_some_and(|controller| controller.is_ready());
        if opcode != AdminOpcode::FABRICS && !is_ready {
            return Err(StatusCode::COMMAND_SEQUENCE_ERROR.into());
        }
        let bytes = match opcode {
            AdminOpcode::IDENTIFY => IDENTIFY_BYTES,
            // MDTS holds for logs too.
            AdminOpcode::GET_LOG_PAGE => match LogRequest::parse(command)?.1 {
                bytes if bytes <= 4096 << self.transfer_pages_log2() => bytes as usize,
                _ => return Err(StatusCode::INVALID_FIELD.into()),
            },
            // EXHID: over Fabrics, host identifiers have 16 bytes.
            AdminOpcode::GET_FEATURES if Feature(command.dwords_10_15[0] as u8) == Feature::HOST_ID => {
                if command.dwords_10_15[1] & 1 == 0 || self.is_discovery() {
                    return Err(StatusCode::INVALID_FIELD.into());
                }
                16
            }
            _ => return Ok(0),
        };
        match Sgl::parse(&command.sgl)? {
            Sgl::HostBuffer { length_bytes } if length_bytes as usize == bytes => Ok(bytes),
            Sgl::HostBuffer { .. } => Err(StatusCode::SGL_DATA_LENGTH_INVALID.into()),
            // What is in the capsule is the host's to send.
            Sgl::InCapsule { .. } => Err(StatusCode::SGL_TYPE_INVALID.into()),
        }
    }

    /// Carries a command of the admin queue out; `out` is as long as its answer's data.
    pub(super) fn execute(
        &mut self,
        seat: Seat,
        command: &Command,
        local: SocketAddr,
        now_ns: u64,
        out: &mut [u8],
    ) -> Result<Reply, Refusal> {
        match AdminOpcode(command.opcode) {
            AdminOpcode::FABRICS => self.fabrics(seat, command),
            AdminOpcode::IDENTIFY => {
                out.copy_from_slice(&self.identify(seat, command)?);
                Ok(Reply::Done(0))
            }
            AdminOpcode::GET_LOG_PAGE => {
                self.log(seat, command, local, now_ns, out)?;
                Ok(Reply::Done(0))
            }
            AdminOpcode::GET_FEATURES => self.feature(seat, command, out),
            AdminOpcode::SET_FEATURES => self.set_feature(seat, command, now_ns),
            AdminOpcode::ABORT if !self.is_discovery() => self.abort(seat, command),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                let controller = self.controller_mut(seat).ok_or(StatusCode::INTERNAL_ERROR)?;
                controller.hold(command.id)?;
                Ok(Reply::Held)
            }
            AdminOpcode::KEEP_ALIVE => {
                self.controller_mut(seat).ok_or(StatusCode::INTERNAL_ERROR)?.keep_alive(now_ns);
                Ok(Reply::Done(0))
            }
            _ => Err(StatusCode::INVALID_OPCODE.into()),
        }
    }

    /// Base clause 6: what may follow Connect on the admin queue.
    fn fabrics(&mut self, seat: Seat, command: &Command) -> Result<Reply, Refusal> {
        let controller = self.controller_mut(seat).ok_or(StatusCode::INTERNAL_ERROR)?;
        match Fabrics::parse(command)? {
            Fabrics::PropertyGet { property, is_long } => {
                Ok(Reply::Done(controller.property(property, is_long)?))
            }
            Fabrics::PropertySet { property, is_long, value } => {
                controller.set_property(property, is_long, value)?;
                Ok(Reply::Done(0))
            }
            // "If a Connect command is sent on a queue that is connected".
            Fabrics::Connect(_) => Err(StatusCode::COMMAND_SEQUENCE_ERROR.into()),
            // "If the command is sent on the Admin Queue, then Invalid Queue Type".
            Fabrics::Disconnect => Err(StatusCode::INVALID_QUEUE_TYPE.into()),
            Fabrics::Other(_) => Err(StatusCode::INVALID_OPCODE.into()),
        }
    }

    /// Base clause 5.17.
    fn identify(&self, seat: Seat, command: &Command) -> Result<[u8; IDENTIFY_BYTES], Refusal> {
        let [dword10, dword11, ..] = command.dwords_10_15;
        let (cns, command_set) = (Cns(dword10 as u8), dword11 >> 24);
        if cns == Cns::CONTROLLER {
            return Ok(self.identify_controller(seat));
        }
        if self.is_discovery() {
            return Err(StatusCode::INVALID_FIELD.into());
        }
        let of_command_set =
            matches!(cns, Cns::COMMAND_SET_NAMESPACE | Cns::COMMAND_SET_CONTROLLER | Cns::COMMAND_SET_ACTIVE);
        // CSI 00h: the command set NVM, the only one.
        if of_command_set && command_set != 0 {
            return Err(StatusCode::INVALID_FIELD.into());
        }
        Ok(match cns {
            Cns::NAMESPACE => self.identify_namespace(command, |found| namespace_data(found).octets())?,
            Cns::NAMESPACE_INDEPENDENT => {
                self.identify_namespace(command, |found| namespace_data(found).independent_octets())?
            }
            // Nothing of what only this command set has is there: no protection, no limits beyond MDTS.
            Cns::COMMAND_SET_NAMESPACE => self.identify_namespace(command, |_| [0; IDENTIFY_BYTES])?,
            Cns::NAMESPACE_DESCRIPTORS => {
                let found = self.active(command.namespace)?;
                namespace_data(found).descriptors(found.uuid())
            }
            Cns::ACTIVE_NAMESPACES | Cns::COMMAND_SET_ACTIVE => {
                // "FFFFFFFEh or FFFFFFFFh [...] Invalid Namespace or Format".
                if command.namespace >= NAMESPACE_ALL - 1 {
                    return Err(StatusCode::INVALID_NAMESPACE.into());
                }
                let above = |number: &u32| *number > command.namespace;
                namespace_list(self.namespaces().iter().map(|one| one.number).filter(above))
            }
            Cns::COMMAND_SET_CONTROLLER => [0; IDENTIFY_BYTES],
            Cns::COMMAND_SETS => {
                let mut octets = [0; IDENTIFY_BYTES];
                octets[0] = 1;
                octets
            }
            _ => return Err(Refusal::field(field::DWORD_10)),
        })
    }

    /// "If the value in the NSID field specifies an inactive NSID, then the controller returns a zero filled data
    /// structure" (NVM clause 4.1.5.1, base clauses 5.17.2.5 and 5.17.2.8). All namespaces have no structure in
    /// common where there is no namespace management.
    fn identify_namespace(
        &self,
        command: &Command,
        show: impl Fn(&Namespace) -> [u8; IDENTIFY_BYTES],
    ) -> Result<[u8; IDENTIFY_BYTES], Refusal> {
        match self.active(command.namespace) {
            Ok(found) => Ok(show(found)),
            Err(_) if is_valid(command.namespace) => Ok([0; IDENTIFY_BYTES]),
            Err(_) => Err(StatusCode::INVALID_NAMESPACE.into()),
        }
    }

    fn transfer_pages_log2(&self) -> u8 {
        if self.is_discovery() { DISCOVERY_PAGES_LOG2 } else { TRANSFER_PAGES_LOG2 }
    }

    fn identify_controller(&self, seat: Seat) -> [u8; IDENTIFY_BYTES] {
        let is_discovery = self.is_discovery();
        let for_io = |value: u32| if is_discovery { 0 } else { value };
        ControllerData {
            serial: &self.serial,
            model: MODEL,
            firmware: FIRMWARE,
            many_controllers: !is_discovery,
            transfer_pages_log2: self.transfer_pages_log2(),
            controller: seat.controller,
            version: VERSION,
            events: if is_discovery { Events::DISCOVERY } else { Events::NAMESPACES.with(Events::ANA) },
            kind: if is_discovery { ControllerKind::Discovery } else { ControllerKind::Io },
            aborts_less_one: for_io(ABORTS_MAX as u32 - 1) as u8,
            event_requests_less_one: EVENT_REQUESTS_MAX as u8 - 1,
            log_attributes: if is_discovery { 0b100 } else { LOG_ATTRIBUTES },
            error_entries_less_one: ERRORS_MAX as u8 - 1,
            keep_alive_steps: KEEP_ALIVE_STEPS,
            commands_max: self.limits.entries_max,
            ana_transition_s: ANA_TRANSITION_S,
            namespaces_max: for_io(NAMESPACES_MAX),
            commands: for_io(COMMANDS.into()) as u16,
            write_cache: for_io(WRITE_CACHE.into()) as u8,
            sgl: SGLS,
            subsystem: &self.nqn,
            command_capsule_units: for_io((64 + CAPSULE_DATA_BYTES_MAX) / 16),
            response_capsule_units: for_io(1),
            disconnects: !is_discovery,
        }
        .octets()
    }

    /// Base clause 5.15. SEL is reserved where ONCS bit 4 is not set.
    fn feature(&self, seat: Seat, command: &Command, out: &mut [u8]) -> Result<Reply, Refusal> {
        let feature = self.known_feature(command)?;
        let controller = self.controller(seat).ok_or(StatusCode::INTERNAL_ERROR)?;
        Ok(Reply::Done(match feature {
            Feature::KEEP_ALIVE => controller.keep_alive_ms().into(),
            Feature::HOST_ID => {
                out.copy_from_slice(&controller.host_id());
                0
            }
            other => controller.features.get(other)?.into(),
        }))
    }

    /// Base clause 5.27.
    fn set_feature(&mut self, seat: Seat, command: &Command, now_ns: u64) -> Result<Reply, Refusal> {
        let feature = self.known_feature(command)?;
        let [dword10, value, ..] = command.dwords_10_15;
        // SV: nothing outlives the controller.
        if dword10 >> 31 != 0 {
            return Err(StatusCode::FEATURE_NOT_SAVEABLE.into());
        }
        let queues_max = self.limits.queues_max;
        let controller = self.controller_mut(seat).ok_or(StatusCode::INTERNAL_ERROR)?;
        Ok(Reply::Done(match feature {
            Feature::KEEP_ALIVE => {
                controller.set_keep_alive(value, now_ns);
                0
            }
            // Connect has said who the host is.
            Feature::HOST_ID => return Err(StatusCode::COMMAND_SEQUENCE_ERROR.into()),
            other => {
                let has_queues = controller.has_queues();
                controller.features.set(other, value, has_queues, queues_max)?.into()
            }
        }))
    }

    fn known_feature(&self, command: &Command) -> Result<Feature, Refusal> {
        let number = command.dwords_10_15[0] as u8;
        let known = if self.is_discovery() { &DISCOVERY_FEATURES[..] } else { &IO_FEATURES[..] };
        if known.contains(&number) { Ok(Feature(number)) } else { Err(Refusal::field(field::DWORD_10)) }
    }

    /// Base clause 5.1: dword 0 bit 0 says that the command was not aborted. What an I/O queue has is taken back there.
    fn abort(&mut self, seat: Seat, command: &Command) -> Result<Reply, Refusal> {
        let dword10 = command.dwords_10_15[0];
        let (queue, other) = (dword10 as u16, (dword10 >> 16) as u16);
        let queues_max = self.limits.queues_max;
        let controller = self.controller_mut(seat).ok_or(StatusCode::INTERNAL_ERROR)?;
        if queue > queues_max || !controller.has_queue(queue) {
            return Err(StatusCode::INVALID_FIELD.into());
        }
        if queue != 0 {
            controller.aborts.ask(command.id, queue, other)?;
            self.has_call = true;
            return Ok(Reply::Held);
        }
        let aborted = controller.abort(other);
        Ok(if aborted { Reply::Aborted(other) } else { Reply::Done(1) })
    }
}

fn namespace_data(namespace: &Namespace) -> NamespaceData {
    let shift = namespace.block_size.shift();
    NamespaceData {
        blocks: namespace.blocks,
        block_bytes_log2: shift as u8,
        preferred_blocks: (PREFERRED_BYTES >> shift).max(1) as u16,
        nguid: namespace.identity,
        shared: true,
        read_only: namespace.read_only,
        ana_group: namespace.number,
        is_reached: !matches!(namespace.access, Access::Inaccessible | Access::PersistentLoss),
    }
}
