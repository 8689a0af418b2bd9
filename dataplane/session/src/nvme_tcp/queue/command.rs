//! What an I/O command asks for, and whether it may (NVM clause 3).

use block::{IO_BYTES_MAX, Lba, Op, Status, VolumeId};
use wire::nvme::data::NAMESPACE_ALL;
use wire::nvme::fabrics::Fabrics;
use wire::nvme::{Command, IoOpcode, Sgl, StatusCode};

use crate::nvme_tcp::admin::{Refusal, field};
use crate::nvme_tcp::slots::Work;
use crate::nvme_tcp::subsystem::{Namespace, Subsystem};

/// Bytes of one range of Dataset Management, and of all that a command can have.
pub(super) const RANGE_BYTES: u32 = 16;
const RANGES_BYTES_MAX: u32 = 256 * RANGE_BYTES;

/// Where the payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// There is none.
    Nowhere,
    /// It came with the command.
    Here,
    /// The host has it.
    Host,
    /// The host is to get it.
    ToHost,
}

/// A command that was found sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub volume: VolumeId,
    pub work: Work,
    pub lba: Lba,
    pub blocks: u32,
    pub bytes: u32,
    pub place: Place,
}

/// What an I/O queue is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Io(Plan),
    /// Nothing has to be done.
    Nothing,
    /// End this queue.
    Disconnect,
}

/// Looks at a command of an I/O queue; `capsule_bytes` of data came with it.
pub(super) fn plan(
    command: &Command,
    capsule_bytes: u32,
    write_cache: bool,
    subsystem: &Subsystem,
) -> Result<Ask, Refusal> {
    if !command.has_sgl() || command.fused() != 0 {
        return Err(Refusal::field(field::FLAGS));
    }
    let opcode = IoOpcode(command.opcode);
    let fua = command.dwords_10_15[2] >> 30 & 1 != 0 || !write_cache;
    let op = match opcode {
        IoOpcode::FABRICS => return fabrics(command),
        IoOpcode::READ => Op::Read,
        IoOpcode::WRITE => Op::Write { fua },
        IoOpcode::COMPARE => Op::Compare,
        IoOpcode::FLUSH => Op::Flush,
        // NVM clause 3.2.8: without DEAC as well, "the controller may deallocate".
        IoOpcode::WRITE_ZEROES => Op::WriteZeroes { fua },
        IoOpcode::DATASET_MANAGEMENT => Op::Discard,
        _ => return Err(StatusCode::INVALID_OPCODE.into()),
    };
    // VWC 2:1 = 10b: "The controller shall fail a Flush command with the NSID set to FFFFFFFFh with [...] Invalid
    // Namespace or Format".
    if op == Op::Flush && command.namespace == NAMESPACE_ALL {
        return Err(StatusCode::INVALID_NAMESPACE.into());
    }
    let namespace = subsystem.reach(command.namespace)?;
    if namespace.read_only && op.is_write() {
        return Err(StatusCode::NAMESPACE_WRITE_PROTECTED.into());
    }
    let volume = namespace.volume;
    match op {
        Op::Flush => {
            let (work, place) = (Work::Io(op), Place::Nowhere);
            Ok(Ask::Io(Plan { volume, work, lba: Lba(0), blocks: 0, bytes: 0, place }))
        }
        Op::Discard => ranges(command, capsule_bytes, volume),
        _ => range(command, op, capsule_bytes, namespace).map(Ask::Io),
    }
}

/// SLBA of a command of an I/O queue; 0 where it has none.
pub(super) fn first_block(command: &Command) -> u64 {
    let [low, high, ..] = command.dwords_10_15;
    match IoOpcode(command.opcode) {
        IoOpcode::READ | IoOpcode::WRITE | IoOpcode::COMPARE | IoOpcode::WRITE_ZEROES => {
            u64::from(high) << 32 | u64::from(low)
        }
        _ => 0,
    }
}

/// Base clause 6.4, and what belongs on the admin queue.
fn fabrics(command: &Command) -> Result<Ask, Refusal> {
    match Fabrics::parse(command)? {
        Fabrics::Disconnect => Ok(Ask::Disconnect),
        Fabrics::Connect(_) => Err(StatusCode::COMMAND_SEQUENCE_ERROR.into()),
        _ => Err(StatusCode::INVALID_OPCODE.into()),
    }
}

/// Commands of one range: SLBA in dwords 10 and 11, NLB in dword 12, less one.
fn range(command: &Command, op: Op, capsule_bytes: u32, namespace: &Namespace) -> Result<Plan, Refusal> {
    let dword12 = command.dwords_10_15[2];
    let (lba, blocks) = (first_block(command), (dword12 & 0xffff) + 1);
    // Directives are not announced; DTYPE of a write would name one.
    if matches!(op, Op::Write { .. }) && dword12 >> 20 & 0xf != 0 {
        return Err(StatusCode::INVALID_FIELD.into());
    }
    if lba.checked_add(blocks.into()).is_none_or(|end| end > namespace.blocks) {
        return Err(StatusCode::LBA_OUT_OF_RANGE.into());
    }
    let payload_bytes = if op.has_buffer() { u64::from(blocks) << namespace.block_size.shift() } else { 0 };
    if payload_bytes > IO_BYTES_MAX as u64 {
        return Err(StatusCode::INVALID_FIELD.into());
    }
    let bytes = payload_bytes as u32;
    let place = match op {
        Op::WriteZeroes { .. } => Place::Nowhere,
        Op::Read => to_host(command, bytes)?,
        _ => from_host(command, bytes..=bytes, capsule_bytes)?.0,
    };
    Ok(Plan { volume: namespace.volume, work: Work::Io(op), lba: Lba(lba), blocks, bytes, place })
}

/// NVM clause 3.2.3: NR ranges in the payload, which may be longer. Other attributes than "deallocate" are
/// hints.
fn ranges(command: &Command, capsule_bytes: u32, volume: VolumeId) -> Result<Ask, Refusal> {
    let [dword10, dword11, ..] = command.dwords_10_15;
    let count = (dword10 & 0xff) + 1;
    let (place, bytes) = from_host(command, count * RANGE_BYTES..=RANGES_BYTES_MAX, capsule_bytes)?;
    if dword11 >> 2 & 1 == 0 {
        return Ok(Ask::Nothing);
    }
    let work = Work::Ranges { count: count as u16 };
    Ok(Ask::Io(Plan { volume, work, lba: Lba(0), blocks: 0, bytes, place }))
}

fn to_host(command: &Command, bytes: u32) -> Result<Place, Refusal> {
    match Sgl::parse(&command.sgl)? {
        Sgl::HostBuffer { length_bytes } if length_bytes == bytes => Ok(Place::ToHost),
        Sgl::HostBuffer { .. } => Err(StatusCode::SGL_DATA_LENGTH_INVALID.into()),
        // What is in the capsule is the host's to send.
        Sgl::InCapsule { .. } => Err(StatusCode::SGL_TYPE_INVALID.into()),
    }
}

fn from_host(
    command: &Command,
    wanted: std::ops::RangeInclusive<u32>,
    capsule_bytes: u32,
) -> Result<(Place, u32), Refusal> {
    let (place, length_bytes, expected_bytes) = match Sgl::parse(&command.sgl)? {
        // SGLS bit 20 lets hosts use offsets; data begins where the capsule's does (ICDOFF is 0).
        Sgl::InCapsule { offset_bytes: 1.., .. } => return Err(StatusCode::SGL_OFFSET_INVALID.into()),
        Sgl::InCapsule { length_bytes, .. } => (Place::Here, length_bytes, length_bytes),
        Sgl::HostBuffer { length_bytes } => (Place::Host, length_bytes, 0),
    };
    if !wanted.contains(&length_bytes) || !length_bytes.is_multiple_of(4) || capsule_bytes != expected_bytes {
        return Err(StatusCode::SGL_DATA_LENGTH_INVALID.into());
    }
    Ok((place, length_bytes))
}

/// How the volume's status is said to a host.
pub(super) fn refusal_of(status_of_volume: Status, is_write: bool) -> Option<Refusal> {
    let (status, do_not_retry) = match status_of_volume {
        Status::Ok => return None,
        Status::OutOfRange => (StatusCode::LBA_OUT_OF_RANGE, true),
        Status::NoSpace => (StatusCode::CAPACITY_EXCEEDED, true),
        Status::ReadOnly => (StatusCode::NAMESPACE_WRITE_PROTECTED, true),
        // Another owner has it: a host with another path to it goes there.
        Status::Fenced => (StatusCode::INTERNAL_PATH_ERROR, false),
        Status::MediaError { .. } if is_write => (StatusCode::WRITE_FAULT, true),
        Status::MediaError { .. } | Status::Corrupt { .. } => (StatusCode::UNRECOVERED_READ_ERROR, true),
        Status::Broken => (StatusCode::INTERNAL_ERROR, true),
        Status::CompareFailed { .. } => (StatusCode::COMPARE_FAILURE, true),
        Status::Aborted => (StatusCode::ABORT_REQUESTED, false),
        Status::Busy => (StatusCode::NAMESPACE_NOT_READY, false),
        Status::Invalid => (StatusCode::INVALID_FIELD, true),
    };
    let lba = match status_of_volume {
        Status::MediaError { lba, .. } | Status::Corrupt { lba, .. } => Some(lba),
        _ => None,
    };
    Some(Refusal { do_not_retry, lba, ..status.into() })
}
