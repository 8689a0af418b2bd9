//! What the commands Identify and Get Log Page answer with, and the feature identifiers.
//!
//! Figures are those of the NVM Express Base Specification, revision 2.0, and of the NVM Command Set
//! Specification, revision 1.0. Each structure says what of its page is not zero.

use super::Completion;
use crate::codes::{codes, flags};
use crate::field::put;

/// Length of every data structure of Identify.
pub const IDENTIFY_BYTES: usize = 4096;
/// Length of an entry of the log of errors.
pub const ERROR_ENTRY_BYTES: usize = 64;
/// Length of the SMART / health log.
pub const HEALTH_LOG_BYTES: usize = 512;
/// Length of the firmware slot log.
pub const FIRMWARE_LOG_BYTES: usize = 512;
/// Length of the list of changed namespaces.
pub const CHANGED_LOG_BYTES: usize = 4096;
/// Length of the log of commands and their effects.
pub const EFFECTS_LOG_BYTES: usize = 4096;
/// Length of the lists of log pages and of features.
pub const SUPPORT_LOG_BYTES: usize = 1024;
/// Length of the head of the discovery log, and of each of its entries.
pub const DISCOVERY_BYTES: usize = 1024;
/// Length of the head of the log of access states, and of the fixed part of each of its groups.
pub const ANA_HEAD_BYTES: usize = 16;
/// See [`ANA_HEAD_BYTES`].
pub const ANA_GROUP_BYTES: usize = 32;
/// Namespaces that a list has room for.
pub const LIST_MAX: usize = 1024;
/// NSID of all namespaces.
pub const NAMESPACE_ALL: u32 = 0xffff_ffff;

codes! {
    /// CNS: which data structure.
    Cns(u8) {
        /// A namespace, as the command set NVM sees it.
        NAMESPACE = 0x00, "Namespace";
        /// The controller.
        CONTROLLER = 0x01, "Controller";
        /// Identifiers of active namespaces above the one given.
        ACTIVE_NAMESPACES = 0x02, "Active Namespace ID list";
        /// Names of a namespace that are unique in the world.
        NAMESPACE_DESCRIPTORS = 0x03, "Namespace Identification Descriptor list";
        /// A namespace, what only one command set has.
        COMMAND_SET_NAMESPACE = 0x05, "I/O Command Set specific Namespace";
        /// The controller, what only one command set has.
        COMMAND_SET_CONTROLLER = 0x06, "I/O Command Set specific Controller";
        /// As 02h, of one command set.
        COMMAND_SET_ACTIVE = 0x07, "I/O Command Set specific Active Namespace ID list";
        /// A namespace, what all command sets have.
        NAMESPACE_INDEPENDENT = 0x08, "I/O Command Set Independent Namespace";
        /// Combinations of command sets.
        COMMAND_SETS = 0x1c, "I/O Command Set data structure";
    }
}

codes! {
    /// LID: which log.
    LogPage(u8) {
        /// Which logs there are.
        SUPPORTED = 0x00, "Supported Log Pages";
        /// Errors.
        ERRORS = 0x01, "Error Information";
        /// Health and use.
        HEALTH = 0x02, "SMART / Health Information";
        /// Which firmware runs.
        FIRMWARE = 0x03, "Firmware Slot Information";
        /// Namespaces that changed since it was read last.
        CHANGED_NAMESPACES = 0x04, "Changed Namespace List";
        /// Which commands there are, and what they change.
        EFFECTS = 0x05, "Commands Supported and Effects";
        /// In which state each namespace is reached.
        ANA = 0x0c, "Asymmetric Namespace Access";
        /// Which features there are.
        FEATURES = 0x12, "Feature Identifiers Supported and Effects";
        /// Which subsystems there are.
        DISCOVERY = 0x70, "Discovery";
    }
}

codes! {
    /// FID: which feature.
    Feature(u8) {
        /// How commands of several queues take turns.
        ARBITRATION = 0x01, "Arbitration";
        /// Power state.
        POWER_MANAGEMENT = 0x02, "Power Management";
        /// When heat is told of.
        TEMPERATURE_THRESHOLD = 0x04, "Temperature Threshold";
        /// How long to try.
        ERROR_RECOVERY = 0x05, "Error Recovery";
        /// Answers may come before data is durable.
        VOLATILE_WRITE_CACHE = 0x06, "Volatile Write Cache";
        /// How many I/O queues.
        QUEUES = 0x07, "Number of Queues";
        /// Whether writes may be torn in ordinary use.
        WRITE_ATOMICITY = 0x0a, "Write Atomicity Normal";
        /// Which events are told of.
        ASYNC_EVENTS = 0x0b, "Asynchronous Event Configuration";
        /// How long the host may be silent.
        KEEP_ALIVE = 0x0f, "Keep Alive Timer";
        /// Who the host is.
        HOST_ID = 0x81, "Host Identifier";
    }
}

flags! {
    /// Events that the host wants to hear of: dword 11 of Asynchronous Event Configuration, and OAES.
    Events(u32) {
        /// A namespace came, went or changed.
        NAMESPACES = 8, "Namespace Attribute Notices";
        /// A namespace is reached in another state.
        ANA = 11, "Asymmetric Namespace Access Change Notices";
        /// The discovery log changed.
        DISCOVERY = 31, "Discovery Log Page Change Notices";
    }
}

/// CNTRLTYPE: what a controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// I/O.
    Io = 1,
    /// Discovery.
    Discovery = 2,
}

/// "Identify Controller Data Structure".
#[derive(Clone, Copy, Debug)]
pub struct ControllerData<'a> {
    /// SN: spaces fill it up.
    pub serial: &'a str,
    /// MN.
    pub model: &'a str,
    /// FR.
    pub firmware: &'a str,
    /// The subsystem can have several controllers (CMIC bit 1), which say how they reach each namespace (bit 3).
    pub many_controllers: bool,
    /// MDTS: longest transfer, as a power of two of 4 KiB.
    pub transfer_pages_log2: u8,
    /// CNTLID.
    pub controller: u16,
    /// VER.
    pub version: u32,
    /// OAES.
    pub events: Events,
    /// CNTRLTYPE.
    pub kind: ControllerKind,
    /// ACL, less one.
    pub aborts_less_one: u8,
    /// AERL, less one.
    pub event_requests_less_one: u8,
    /// LPA: bit 1 the effects log, bit 2 long logs.
    pub log_attributes: u8,
    /// ELPE: entries of the log of errors, less one.
    pub error_entries_less_one: u8,
    /// KAS: steps of the keep-alive timer, 100 ms each.
    pub keep_alive_steps: u16,
    /// MAXCMD: places of a queue.
    pub commands_max: u16,
    /// ANATT: longest that a namespace stays in the state Change, in seconds.
    pub ana_transition_s: u8,
    /// NN and MNAN, highest namespace identifier and most namespaces; ANAGRPMAX and NANAGRPID, a group for each.
    pub namespaces_max: u32,
    /// ONCS: optional commands.
    pub commands: u16,
    /// VWC.
    pub write_cache: u8,
    /// SGLS.
    pub sgl: u32,
    /// SUBNQN.
    pub subsystem: &'a str,
    /// IOCCSZ: a command with its data, in 16 bytes.
    pub command_capsule_units: u32,
    /// IORCSZ: an answer, in 16 bytes.
    pub response_capsule_units: u32,
    /// OFCS bit 0: an I/O queue can be ended by Disconnect.
    pub disconnects: bool,
}

impl ControllerData<'_> {
    /// The page.
    pub fn octets(&self) -> [u8; IDENTIFY_BYTES] {
        let mut octets = [0; IDENTIFY_BYTES];
        put_text(&mut octets[4..24], self.serial, b' ');
        put_text(&mut octets[24..64], self.model, b' ');
        put_text(&mut octets[64..72], self.firmware, b' ');
        octets[76] = u8::from(self.many_controllers) * (1 << 1 | 1 << 3);
        octets[77] = self.transfer_pages_log2;
        put(&mut octets, 78, self.controller.to_le_bytes());
        put(&mut octets, 80, self.version.to_le_bytes());
        put(&mut octets, 92, self.events.0.to_le_bytes());
        // CTRATT bit 0: host identifiers of 128 bits, which Fabrics demand.
        put(&mut octets, 96, 1_u32.to_le_bytes());
        octets[111] = self.kind as u8;
        octets[258] = self.aborts_less_one;
        octets[259] = self.event_requests_less_one;
        // FRMW: one slot, which cannot be written.
        octets[260] = if self.kind == ControllerKind::Io { 0b11 } else { 0 };
        octets[261] = self.log_attributes;
        octets[262] = self.error_entries_less_one;
        put(&mut octets, 320, self.keep_alive_steps.to_le_bytes());
        if self.many_controllers {
            octets[342] = self.ana_transition_s;
            // ANACAP: all five states (4:0), and a namespace stays in its group (6).
            octets[343] = 0b101_1111;
            put(&mut octets, 344, self.namespaces_max.to_le_bytes());
            put(&mut octets, 348, self.namespaces_max.to_le_bytes());
            put(&mut octets, 540, self.namespaces_max.to_le_bytes());
        }
        // SQES and CQES: 64 and 16 bytes, no more, no less.
        if self.kind == ControllerKind::Io {
            (octets[512], octets[513]) = (0x66, 0x44);
        }
        put(&mut octets, 514, self.commands_max.to_le_bytes());
        put(&mut octets, 516, self.namespaces_max.to_le_bytes());
        put(&mut octets, 520, self.commands.to_le_bytes());
        octets[525] = self.write_cache;
        put(&mut octets, 536, self.sgl.to_le_bytes());
        put_text(&mut octets[768..1024], self.subsystem, 0);
        put(&mut octets, 1792, self.command_capsule_units.to_le_bytes());
        put(&mut octets, 1796, self.response_capsule_units.to_le_bytes());
        // MSDBD: one descriptor describes all data.
        octets[1803] = 1;
        octets[1804] = self.disconnects.into();
        octets
    }
}

/// "Identify Namespace Data Structure" of the command set NVM.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceData {
    /// NSZE: size in blocks.
    pub blocks: u64,
    /// LBADS: size of a block, as a power of two.
    pub block_bytes_log2: u8,
    /// Blocks that make one unit of best performance, for writes and for deallocation.
    pub preferred_blocks: u16,
    /// NGUID, which must never be another namespace's.
    pub nguid: [u8; 16],
    /// Several controllers can have it (NMIC bit 0).
    pub shared: bool,
    /// Writes are refused (NSATTR bit 0).
    pub read_only: bool,
    /// ANAGRPID.
    pub ana_group: u32,
    /// What is used of it can be told (NUSE): it cannot where the namespace is inaccessible or lost.
    pub is_reached: bool,
}

impl NamespaceData {
    /// The page.
    pub fn octets(&self) -> [u8; IDENTIFY_BYTES] {
        let mut octets = [0; IDENTIFY_BYTES];
        let used_blocks = if self.is_reached { self.blocks } else { 0 };
        for (at, blocks) in [(0, self.blocks), (8, self.blocks), (16, used_blocks)] {
            put(&mut octets, at, blocks.to_le_bytes());
        }
        // NSFEAT: bit 4, NPWG to NOWS say something. Thin provisioning (bit 0) would demand that NUSE counts.
        octets[24] = 1 << 4;
        octets[30] = u8::from(self.shared);
        // DLFEAT: deallocated blocks read as zeroes (001b), and Write Zeroes can deallocate (bit 3).
        octets[33] = 0b1001;
        let less_one = self.preferred_blocks.max(1) - 1;
        for at in [64, 66, 68, 70, 72] {
            put(&mut octets, at, less_one.to_le_bytes());
        }
        put(&mut octets, 92, self.ana_group.to_le_bytes());
        octets[99] = u8::from(self.read_only);
        octets[104..120].copy_from_slice(&self.nguid);
        octets[130] = self.block_bytes_log2;
        octets
    }

    /// "I/O Command Set Independent Identify Namespace Data Structure".
    pub fn independent_octets(&self) -> [u8; IDENTIFY_BYTES] {
        let mut octets = [0; IDENTIFY_BYTES];
        octets[1] = u8::from(self.shared);
        put(&mut octets, 4, self.ana_group.to_le_bytes());
        octets[8] = u8::from(self.read_only);
        // NSTAT bit 0: ready.
        octets[14] = 1;
        octets
    }

    /// "Namespace Identification Descriptor list": NGUID, UUID and command set.
    pub fn descriptors(&self, uuid: [u8; 16]) -> [u8; IDENTIFY_BYTES] {
        let mut octets = [0; IDENTIFY_BYTES];
        let mut at = 0;
        for (kind, value) in [(2, &self.nguid[..]), (3, &uuid[..]), (4, &[0][..])] {
            (octets[at], octets[at + 1]) = (kind, value.len() as u8);
            octets[at + 4..at + 4 + value.len()].copy_from_slice(value);
            at += 4 + value.len();
        }
        octets
    }
}

/// "Asymmetric Namespace Access state": how a controller reaches the namespaces of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnaState {
    /// As well as can be.
    Optimized = 0x1,
    /// It works; another path is better.
    NonOptimized = 0x2,
    /// Not now: another path may.
    Inaccessible = 0x3,
    /// Not any more.
    PersistentLoss = 0x4,
    /// Soon in another state.
    Change = 0xf,
}

/// A group in the log of access states. Each group here has one namespace, of the group's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// ANAGRPID, and the one NSID in it.
    pub number: u32,
    /// Grows with each change of its state.
    pub changes: u64,
    /// Its state.
    pub state: AnaState,
}

/// "Asymmetric Namespace Access log page". `only_groups` (RGO) leaves the namespaces out.
pub fn ana_log(changes: u64, groups: &[AnaGroup], only_groups: bool) -> Vec<u8> {
    let mut head = [0; ANA_HEAD_BYTES];
    put(&mut head, 0, changes.to_le_bytes());
    put(&mut head, 8, (groups.len() as u16).to_le_bytes());
    let mut octets = head.to_vec();
    for group in groups {
        let mut fixed = [0; ANA_GROUP_BYTES];
        put(&mut fixed, 0, group.number.to_le_bytes());
        // NNV: namespaces that follow.
        fixed[4] = u8::from(!only_groups);
        put(&mut fixed, 8, group.changes.to_le_bytes());
        fixed[16] = group.state as u8;
        octets.extend(fixed);
        if !only_groups {
            octets.extend(group.number.to_le_bytes());
        }
    }
    octets
}

/// A list of namespaces, in ascending order: as many of `namespaces` as there is room for.
pub fn namespace_list(namespaces: impl Iterator<Item = u32>) -> [u8; IDENTIFY_BYTES] {
    let mut octets = [0; IDENTIFY_BYTES];
    for (i, namespace) in namespaces.take(LIST_MAX).enumerate() {
        put(&mut octets, 4 * i, namespace.to_le_bytes());
    }
    octets
}

/// "Error Information Log Entry": a command that ended in an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Error count: its own among all entries of the controller.
    pub count: u64,
    /// SQID.
    pub queue: u16,
    /// How the command was answered.
    pub completion: Completion,
    /// Parameter Error Location: which byte of the command is wrong, or [`ErrorEntry::NO_FIELD`].
    pub field: u16,
    /// First block with which something is wrong, of commands that have blocks.
    pub lba: u64,
    /// NSID.
    pub namespace: u32,
}

impl ErrorEntry {
    /// Nothing in the command is wrong, or it is not one field.
    pub const NO_FIELD: u16 = 0xffff;

    /// The entry.
    pub fn octets(&self) -> [u8; ERROR_ENTRY_BYTES] {
        let mut octets = [0; ERROR_ENTRY_BYTES];
        put(&mut octets, 0, self.count.to_le_bytes());
        put(&mut octets, 8, self.queue.to_le_bytes());
        // CID and Status Field, as they stand in the completion.
        octets[10..14].copy_from_slice(&self.completion.octets()[12..16]);
        put(&mut octets, 14, self.field.to_le_bytes());
        put(&mut octets, 16, self.lba.to_le_bytes());
        put(&mut octets, 24, self.namespace.to_le_bytes());
        octets
    }
}

/// "SMART / Health Information Log Page": what a volume can say of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Thousands of 512 bytes read, rounded up.
    pub read_units: u128,
    /// Thousands of 512 bytes written, rounded up.
    pub written_units: u128,
    /// Commands Read.
    pub reads: u128,
    /// Commands Write.
    pub writes: u128,
    /// Hours of use.
    pub hours: u128,
    /// Reads that gave no data, or damaged data.
    pub media_errors: u128,
    /// Entries that the log of errors has had.
    pub errors: u128,
}

impl Health {
    /// The page.
    pub fn octets(&self) -> [u8; HEALTH_LOG_BYTES] {
        let mut octets = [0; HEALTH_LOG_BYTES];
        // Available spare, all of it. There is no temperature: 0 K says that none is measured.
        octets[3] = 100;
        let fields = [
            (32, self.read_units),
            (48, self.written_units),
            (64, self.reads),
            (80, self.writes),
            (128, self.hours),
            (160, self.media_errors),
            (176, self.errors),
        ];
        for (at, value) in fields {
            put(&mut octets, at, value.to_le_bytes());
        }
        octets
    }
}

/// "Firmware Slot Information Log Page" with one slot.
pub fn firmware_log(revision: &str) -> [u8; FIRMWARE_LOG_BYTES] {
    let mut octets = [0; FIRMWARE_LOG_BYTES];
    octets[0] = 1;
    put_text(&mut octets[8..16], revision, b' ');
    octets
}

/// "Commands Supported and Effects Log Page": opcodes, and whether each changes a namespace's content.
pub fn effects_log(admin: &[u8], io: &[(u8, bool)]) -> [u8; EFFECTS_LOG_BYTES] {
    let mut octets = [0; EFFECTS_LOG_BYTES];
    for &opcode in admin {
        octets[4 * usize::from(opcode)] = 1;
    }
    for &(opcode, changes) in io {
        octets[1024 + 4 * usize::from(opcode)] = 1 | u8::from(changes) << 1;
    }
    octets
}

/// "Supported Log Pages" and "Feature Identifiers Supported and Effects": bit 0 of a dword for each number.
pub fn support_log(numbers: &[u8]) -> [u8; SUPPORT_LOG_BYTES] {
    let mut octets = [0; SUPPORT_LOG_BYTES];
    for &number in numbers {
        octets[4 * usize::from(number)] = 1;
    }
    octets
}

/// The head of the discovery log.
pub fn discovery_head(generation: u64, entries: u64) -> [u8; DISCOVERY_BYTES] {
    let mut octets = [0; DISCOVERY_BYTES];
    put(&mut octets, 0, generation.to_le_bytes());
    put(&mut octets, 8, entries.to_le_bytes());
    octets
}

/// SUBTYPE of an entry of the discovery log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsystemKind {
    /// Namespaces are there.
    Io = 2,
    /// The discovery subsystem that is being asked.
    CurrentDiscovery = 3,
}

/// "Discovery Log Entry Data Structure": a subsystem that is reached over TCP.
#[derive(Clone, Copy, Debug)]
pub struct DiscoveryEntry<'a> {
    /// SUBTYPE.
    pub kind: SubsystemKind,
    /// SUBNQN.
    pub subsystem: &'a str,
    /// TRADDR and TRSVCID.
    pub address: std::net::SocketAddr,
    /// PORTID.
    pub port: u16,
    /// ASQSZ: places of the admin queue.
    pub entries: u16,
}

impl DiscoveryEntry<'_> {
    /// The entry.
    pub fn octets(&self) -> [u8; DISCOVERY_BYTES] {
        let mut octets = [0; DISCOVERY_BYTES];
        // TRTYPE 3 is TCP; ADRFAM 1 and 2 are IPv4 and IPv6.
        octets[0] = 3;
        octets[1] = if self.address.is_ipv4() { 1 } else { 2 };
        octets[2] = self.kind as u8;
        // TREQ: nothing is said of a secure channel (00b), and flow control can be disabled (bit 2).
        octets[3] = 0b100;
        put(&mut octets, 4, self.port.to_le_bytes());
        // CNTLID: any controller.
        put(&mut octets, 6, super::fabrics::CONTROLLER_ANY.to_le_bytes());
        put(&mut octets, 8, self.entries.to_le_bytes());
        put_text(&mut octets[32..64], &self.address.port().to_string(), b' ');
        put_text(&mut octets[256..512], self.subsystem, 0);
        put_text(&mut octets[512..768], &self.address.ip().to_string(), b' ');
        octets
    }
}

/// Text that `fill` makes as long as its field; what does not fit is cut.
fn put_text(field: &mut [u8], text: &str, fill: u8) {
    let bytes = text.len().min(field.len());
    field[..bytes].copy_from_slice(&text.as_bytes()[..bytes]);
    field[bytes..].fill(fill);
}
