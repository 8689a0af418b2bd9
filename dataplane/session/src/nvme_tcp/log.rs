//! Get Log Page (base clause 5.16): a log is read from an offset, as if it lay there as bytes.

use std::net::SocketAddr;

use wire::nvme::data::{
    AnaGroup, DISCOVERY_BYTES, DiscoveryEntry, Events, LogPage, NAMESPACE_ALL, SubsystemKind, ana_log,
    discovery_head, effects_log, firmware_log, namespace_list, support_log,
};
use wire::nvme::{AdminOpcode, Command, IoOpcode, StatusCode};

use super::admin::{FIRMWARE, Refusal, field};
use super::features::{DISCOVERY_FEATURES, IO_FEATURES};
use super::subsystem::{Content, NAMESPACES_MAX, Namespace, Seat, Subsystem, is_valid};

const IO_LOGS: [u8; 8] = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x0c, 0x12];
const DISCOVERY_LOGS: [u8; 4] = [0x00, 0x01, 0x12, 0x70];

/// Every admin command of a controller with namespaces.
const ADMIN: [AdminOpcode; 8] = [
    AdminOpcode::GET_LOG_PAGE,
    AdminOpcode::IDENTIFY,
    AdminOpcode::ABORT,
    AdminOpcode::SET_FEATURES,
    AdminOpcode::GET_FEATURES,
    AdminOpcode::ASYNC_EVENT_REQUEST,
    AdminOpcode::KEEP_ALIVE,
    AdminOpcode::FABRICS,
];
/// Every I/O command, and whether it changes what is stored.
const IO: [(u8, bool); 7] = [
    (IoOpcode::FLUSH.0, false),
    (IoOpcode::WRITE.0, true),
    (IoOpcode::READ.0, false),
    (IoOpcode::COMPARE.0, false),
    (IoOpcode::WRITE_ZEROES.0, true),
    (IoOpcode::DATASET_MANAGEMENT.0, true),
    (IoOpcode::FABRICS.0, false),
];

/// As much as the log of access states can have: hosts work that out by what they are told of the controller, and may
/// ask for all of it in pieces.
const ANA_BYTES: usize = 16 + NAMESPACES_MAX as usize * (32 + 4);

/// What a host asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogRequest {
    page: LogPage,
    offset_bytes: u64,
    /// LSP: what it means depends on the log.
    specific: u8,
    /// RAE: the event that points here is not to be told again.
    retain: bool,
}

impl LogRequest {
    /// The request, and how many bytes it wants: NUMD counts dwords, less one.
    pub fn parse(command: &Command) -> Result<(LogRequest, u64), StatusCode> {
        let [dword10, dword11, dword12, dword13, dword14, _] = command.dwords_10_15;
        let request = LogRequest {
            page: LogPage(dword10 as u8),
            offset_bytes: u64::from(dword13) << 32 | u64::from(dword12),
            specific: (dword10 >> 8 & 0x7f) as u8,
            retain: dword10 >> 15 & 1 != 0,
        };
        // OT: offsets count bytes; LPO: "dword aligned".
        if dword14 >> 23 & 1 != 0 || !request.offset_bytes.is_multiple_of(4) {
            return Err(StatusCode::INVALID_FIELD);
        }
        let dwords = u64::from(dword11 & 0xffff) << 16 | u64::from(dword10 >> 16);
        Ok((request, (dwords + 1) * 4))
    }
}

impl Subsystem {
    /// Fills `out` with the log from the offset on; beyond its end are zeroes.
    pub(super) fn log(
        &mut self,
        seat: Seat,
        command: &Command,
        local: SocketAddr,
        now_ns: u64,
        out: &mut [u8],
    ) -> Result<(), Refusal> {
        let (LogRequest { page, offset_bytes, specific, retain }, _) = LogRequest::parse(command)?;
        self.check_namespace(page, command.namespace)?;
        let up_ns = now_ns.saturating_sub(self.started_ns.unwrap_or(now_ns));
        let controller = self.controller(seat).ok_or(StatusCode::INTERNAL_ERROR)?;
        let is_discovery = self.is_discovery();
        let numbers = |io: &'static [u8], discovery: &'static [u8]| if is_discovery { discovery } else { io };
        match page {
            LogPage::SUPPORTED => copy(&support_log(numbers(&IO_LOGS, &DISCOVERY_LOGS)), offset_bytes, out),
            LogPage::FEATURES => {
                copy(&support_log(numbers(&IO_FEATURES, &DISCOVERY_FEATURES)), offset_bytes, out)
            }
            LogPage::ERRORS => copy(&controller.errors.octets(), offset_bytes, out),
            LogPage::DISCOVERY if is_discovery => self.discovery_log(seat, local, offset_bytes, out),
            _ if is_discovery => Err(StatusCode::INVALID_LOG_PAGE),
            LogPage::HEALTH => copy(&controller.health(up_ns).octets(), offset_bytes, out),
            LogPage::FIRMWARE => copy(&firmware_log(FIRMWARE), offset_bytes, out),
            LogPage::EFFECTS => {
                let admin = ADMIN.map(|opcode| opcode.0);
                copy(&effects_log(&admin, &IO), offset_bytes, out)
            }
            LogPage::CHANGED_NAMESPACES => copy(&namespace_list(controller.changed()), offset_bytes, out),
            LogPage::ANA => copy(&self.ana_log(specific & 1 != 0), offset_bytes, out),
            _ => Err(StatusCode::INVALID_LOG_PAGE),
        }?;
        if let Some(controller) = self.controller_mut(seat).filter(|_| !retain) {
            match page {
                LogPage::CHANGED_NAMESPACES => {
                    controller.forget_changed();
                    controller.was_read(Events::NAMESPACES);
                }
                LogPage::ANA => controller.was_read(Events::ANA),
                LogPage::DISCOVERY => controller.was_read(Events::DISCOVERY),
                _ => {}
            }
        }
        Ok(())
    }

    /// Base clause 5.16.1.13: all groups, in ascending order. LSP bit 0 (RGO) leaves their namespaces out.
    fn ana_log(&self, only_groups: bool) -> Vec<u8> {
        let group = |namespace: &Namespace| AnaGroup {
            number: namespace.number,
            changes: namespace.access_changes,
            state: namespace.access,
        };
        let groups: Vec<_> = self.namespaces().iter().map(group).collect();
        let mut log = ana_log(self.access_changes, &groups, only_groups);
        log.resize(ANA_BYTES, 0);
        log
    }

    /// Health of one namespace is not kept apart (LPA bit 0); the other logs are the controller's.
    fn check_namespace(&self, page: LogPage, namespace: u32) -> Result<(), Refusal> {
        if matches!(namespace, 0 | NAMESPACE_ALL) {
            return Ok(());
        }
        match page {
            LogPage::HEALTH if is_valid(namespace) => Err(Refusal::field(field::NAMESPACE)),
            LogPage::HEALTH => Err(Refusal::from(StatusCode::INVALID_NAMESPACE)),
            _ => Ok(()),
        }
    }

    /// "Discovery Log Page": the head, and an entry for each subsystem that this host may attach to, at the
    /// address where it has reached us.
    fn discovery_log(
        &self,
        seat: Seat,
        local: SocketAddr,
        offset_bytes: u64,
        out: &mut [u8],
    ) -> Result<(), StatusCode> {
        let Content::Discovery { generation, listed } = &self.content else {
            return Err(StatusCode::INVALID_LOG_PAGE);
        };
        let controller = self.controller(seat).ok_or(StatusCode::INTERNAL_ERROR)?;
        let shown = || listed.iter().filter(|one| one.hosts.allow(controller.host()));
        let log_bytes = (1 + shown().count()) * DISCOVERY_BYTES;
        if offset_bytes > log_bytes as u64 {
            return Err(StatusCode::INVALID_FIELD);
        }
        out.fill(0);
        let records =
            std::iter::once(discovery_head(*generation, shown().count() as u64)).chain(shown().map(|one| {
                let (kind, subsystem) = (SubsystemKind::Io, one.nqn.as_str());
                DiscoveryEntry { kind, subsystem, address: local, port: 1, entries: 32 }.octets()
            }));
        let (from, to) = (offset_bytes as usize, offset_bytes as usize + out.len());
        for (i, record) in records.enumerate() {
            let at = i * DISCOVERY_BYTES;
            let (start, end) = (at.max(from), (at + DISCOVERY_BYTES).min(to));
            if start < end {
                out[start - from..end - from].copy_from_slice(&record[start - at..end - at]);
            }
        }
        Ok(())
    }
}

/// "If the controller is unable to provide a log page at the offset": Invalid Field in Command.
fn copy(log: &[u8], offset_bytes: u64, out: &mut [u8]) -> Result<(), StatusCode> {
    let from = usize::try_from(offset_bytes).ok().filter(|&from| from <= log.len());
    let rest = &log[from.ok_or(StatusCode::INVALID_FIELD)?..];
    let bytes = rest.len().min(out.len());
    out[..bytes].copy_from_slice(&rest[..bytes]);
    out[bytes..].fill(0);
    Ok(())
}
