//! NVMe: commands, completions and the Fabrics commands that set queues up.
//!
//! Clauses are those of the NVM Express Base Specification, revision 2.0. A command is 64 bytes, a completion
//! 16, and both are kept as their fields; what the fields of a certain command mean is read where that
//! command is carried out. [`fabrics`] holds the commands that exist only over a network, [`data`] what
//! Identify and logs answer with. All numbers are little-endian.
//!
//! Invariants: as for the crate. Any 64 bytes are a command and any 16 a completion, and both are written
//! again as the same bytes.

pub mod data;
pub mod fabrics;

use crate::codes::codes;
use crate::field::{array, le16, le32, le64, put};

/// Length of a command ("Submission Queue Entry").
pub const COMMAND_BYTES: usize = 64;
/// Length of a completion ("Completion Queue Entry").
pub const COMPLETION_BYTES: usize = 16;

codes! {
    /// Opcodes of the admin queue (clause 5), and the one of all Fabrics commands (clause 6).
    AdminOpcode(u8) {
        /// A page of a log.
        GET_LOG_PAGE = 0x02, "Get Log Page";
        /// Describe the controller or a namespace.
        IDENTIFY = 0x06, "Identify";
        /// Take a command back.
        ABORT = 0x08, "Abort";
        /// Change a setting.
        SET_FEATURES = 0x09, "Set Features";
        /// Read a setting.
        GET_FEATURES = 0x0a, "Get Features";
        /// Answer when something happens.
        ASYNC_EVENT_REQUEST = 0x0c, "Asynchronous Event Request";
        /// The host lives.
        KEEP_ALIVE = 0x18, "Keep Alive";
        /// See [`fabrics`].
        FABRICS = 0x7f, "Fabrics";
    }
}

codes! {
    /// Opcodes of I/O queues (NVM Command Set Specification, clause 3).
    IoOpcode(u8) {
        /// Make what was answered durable.
        FLUSH = 0x00, "Flush";
        /// Write.
        WRITE = 0x01, "Write";
        /// Read.
        READ = 0x02, "Read";
        /// Mark as unreadable.
        WRITE_UNCORRECTABLE = 0x04, "Write Uncorrectable";
        /// Compare with what is there.
        COMPARE = 0x05, "Compare";
        /// Write zeroes.
        WRITE_ZEROES = 0x08, "Write Zeroes";
        /// Not needed any more.
        DATASET_MANAGEMENT = 0x09, "Dataset Management";
        /// Read without transferring.
        VERIFY = 0x0c, "Verify";
        /// See [`fabrics`].
        FABRICS = 0x7f, "Fabrics";
    }
}

codes! {
    /// "Status Field Definition": code type and code, 11 bits. The flags of the field are apart, in
    /// [`Completion`].
    StatusCode(u16) {
        /// Done as asked.
        SUCCESS = 0x000, "Successful Completion";
        /// Unknown opcode.
        INVALID_OPCODE = 0x001, "Invalid Command Opcode";
        /// A field is wrong.
        INVALID_FIELD = 0x002, "Invalid Field in Command";
        /// Such an identifier is in use.
        COMMAND_ID_CONFLICT = 0x003, "Command ID Conflict";
        /// Data did not arrive.
        DATA_TRANSFER_ERROR = 0x004, "Data Transfer Error";
        /// Our fault.
        INTERNAL_ERROR = 0x006, "Internal Error";
        /// Taken back.
        ABORT_REQUESTED = 0x007, "Command Abort Requested";
        /// Its queue went away.
        ABORTED_QUEUE_DELETION = 0x008, "Command Aborted due to SQ Deletion";
        /// No such namespace.
        INVALID_NAMESPACE = 0x00b, "Invalid Namespace or Format";
        /// Not its turn.
        COMMAND_SEQUENCE_ERROR = 0x00c, "Command Sequence Error";
        /// The buffer is not as long as the data.
        SGL_DATA_LENGTH_INVALID = 0x00f, "Data SGL Length Invalid";
        /// Such a descriptor is not taken.
        SGL_TYPE_INVALID = 0x011, "SGL Descriptor Type Invalid";
        /// The data does not begin where it may.
        SGL_OFFSET_INVALID = 0x016, "SGL Offset Invalid";
        /// The keep-alive time-out cannot be that.
        KEEP_ALIVE_INVALID = 0x019, "Keep Alive Timeout Invalid";
        /// No writes here.
        NAMESPACE_WRITE_PROTECTED = 0x020, "Namespace is Write Protected";
        /// The transport failed; again will help.
        TRANSIENT_TRANSPORT_ERROR = 0x022, "Transient Transport Error";
        /// Beyond the end.
        LBA_OUT_OF_RANGE = 0x080, "LBA Out of Range";
        /// Full.
        CAPACITY_EXCEEDED = 0x081, "Capacity Exceeded";
        /// Not now.
        NAMESPACE_NOT_READY = 0x082, "Namespace Not Ready";
        /// Too many at once.
        ABORT_LIMIT_EXCEEDED = 0x103, "Abort Command Limit Exceeded";
        /// Too many at once.
        ASYNC_EVENT_LIMIT_EXCEEDED = 0x105, "Asynchronous Event Request Limit Exceeded";
        /// No such log.
        INVALID_LOG_PAGE = 0x109, "Invalid Log Page";
        /// The setting lasts no longer than the controller.
        FEATURE_NOT_SAVEABLE = 0x10d, "Feature Identifier Not Saveable";
        /// The setting is fixed.
        FEATURE_NOT_CHANGEABLE = 0x10e, "Feature Not Changeable";
        /// Clause 6.3: the record format is another one.
        INCOMPATIBLE_FORMAT = 0x180, "Incompatible Format";
        /// Clause 6.3: attached to another host.
        CONTROLLER_BUSY = 0x181, "Controller Busy";
        /// Clause 6.3: a parameter is wrong; dword 0 says which.
        CONNECT_INVALID_PARAMETERS = 0x182, "Connect Invalid Parameters";
        /// Clause 6.3: go and discover anew.
        CONNECT_RESTART_DISCOVERY = 0x183, "Connect Restart Discovery";
        /// Clause 6.3: this host may not.
        CONNECT_INVALID_HOST = 0x184, "Connect Invalid Host";
        /// Clause 6.4: not on this queue.
        INVALID_QUEUE_TYPE = 0x185, "Invalid Queue Type";
        /// The log changed while it was read.
        DISCOVER_RESTART = 0x190, "Discover Restart";
        /// Authenticate first.
        AUTHENTICATION_REQUIRED = 0x191, "Authentication Required";
        /// The medium took no data.
        WRITE_FAULT = 0x280, "Write Fault";
        /// The medium gave no data.
        UNRECOVERED_READ_ERROR = 0x281, "Unrecovered Read Error";
        /// The data is damaged.
        GUARD_CHECK_ERROR = 0x282, "End-to-end Guard Check Error";
        /// There is a difference.
        COMPARE_FAILURE = 0x285, "Compare Failure";
        /// Not for this host.
        ACCESS_DENIED = 0x286, "Access Denied";
        /// This path failed.
        INTERNAL_PATH_ERROR = 0x300, "Internal Path Error";
        /// This path will not come back.
        ANA_PERSISTENT_LOSS = 0x301, "Asymmetric Access Persistent Loss";
        /// Try another path.
        ANA_INACCESSIBLE = 0x302, "Asymmetric Access Inaccessible";
        /// Try again soon.
        ANA_TRANSITION = 0x303, "Asymmetric Access Transition";
    }
}

impl StatusCode {
    /// "Path Related Status" (code type 3h): the command may succeed on another path.
    pub const fn is_path_related(self) -> bool {
        self.0 >> 8 == 0x3
    }
}

/// "Common Command Format": a submission queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// What; [`AdminOpcode`] or [`IoOpcode`], as the queue is.
    pub opcode: u8,
    /// Fused operation (bits 1:0) and how data is described (bits 7:6).
    pub flags: u8,
    /// Identifier among those under way on the queue.
    pub id: u16,
    /// NSID. Of a Fabrics command, the first byte is its type.
    pub namespace: u32,
    /// Dwords 2 and 3.
    pub dwords_2_3: [u32; 2],
    /// MPTR.
    pub metadata: u64,
    /// SGL1, as it stands there.
    pub sgl: [u8; 16],
    /// Dwords 10 to 15.
    pub dwords_10_15: [u32; 6],
}

impl Command {
    /// FUSE: 0 for a command on its own.
    pub const fn fused(&self) -> u8 {
        self.flags & 0b11
    }

    /// PSDT: "for NVMe over Fabrics [...] shall be set to 01b": an SGL, and metadata as one buffer.
    pub const fn has_sgl(&self) -> bool {
        self.flags >> 6 == 0b01
    }

    /// Reads it.
    pub fn parse(octets: &[u8; COMMAND_BYTES]) -> Self {
        Self {
            opcode: octets[0],
            flags: octets[1],
            id: le16(octets, 2),
            namespace: le32(octets, 4),
            dwords_2_3: std::array::from_fn(|i| le32(octets, 8 + 4 * i)),
            metadata: le64(octets, 16),
            sgl: array(octets, 24),
            dwords_10_15: std::array::from_fn(|i| le32(octets, 40 + 4 * i)),
        }
    }

    /// The bytes.
    pub fn octets(&self) -> [u8; COMMAND_BYTES] {
        let mut octets = [0; COMMAND_BYTES];
        (octets[0], octets[1]) = (self.opcode, self.flags);
        put(&mut octets, 2, self.id.to_le_bytes());
        put(&mut octets, 4, self.namespace.to_le_bytes());
        put(&mut octets, 16, self.metadata.to_le_bytes());
        put(&mut octets, 24, self.sgl);
        for (i, dword) in self.dwords_2_3.iter().enumerate() {
            put(&mut octets, 8 + 4 * i, dword.to_le_bytes());
        }
        for (i, dword) in self.dwords_10_15.iter().enumerate() {
            put(&mut octets, 40 + 4 * i, dword.to_le_bytes());
        }
        octets
    }
}

/// The two descriptors that NVMe/TCP has: TCP transport, clause 3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// "An SGL Data Block descriptor with an SGL Descriptor Sub Type value of 1h specifies the use of
    /// in-capsule data."
    InCapsule {
        /// First byte in the capsule's data.
        offset_bytes: u64,
        /// How many bytes.
        length_bytes: u32,
    },
    /// "A Transport SGL Data block descriptor with an SGL Descriptor Sub Type value of Ah": the host's
    /// buffer. Of length 0 where there is no data.
    HostBuffer {
        /// How many bytes.
        length_bytes: u32,
    },
}

impl Sgl {
    const IN_CAPSULE: u8 = 0x01;
    const HOST_BUFFER: u8 = 0x5a;

    /// Reads it; refuses others: "shall be completed by the controller with an 'SGL DESCRIPTOR TYPE INVALID'
    /// error status".
    pub fn parse(octets: &[u8; 16]) -> Result<Self, StatusCode> {
        let length_bytes = le32(octets, 8);
        match octets[15] {
            Self::IN_CAPSULE => Ok(Self::InCapsule { offset_bytes: le64(octets, 0), length_bytes }),
            Self::HOST_BUFFER => Ok(Self::HostBuffer { length_bytes }),
            _ => Err(StatusCode::SGL_TYPE_INVALID),
        }
    }

    /// The bytes.
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        let (offset_bytes, length_bytes, kind) = match *self {
            Self::InCapsule { offset_bytes, length_bytes } => (offset_bytes, length_bytes, Self::IN_CAPSULE),
            Self::HostBuffer { length_bytes } => (0, length_bytes, Self::HOST_BUFFER),
        };
        put(&mut octets, 0, offset_bytes.to_le_bytes());
        put(&mut octets, 8, length_bytes.to_le_bytes());
        octets[15] = kind;
        octets
    }

    /// How many bytes it describes.
    pub const fn length_bytes(&self) -> u32 {
        match *self {
            Self::InCapsule { length_bytes, .. } | Self::HostBuffer { length_bytes } => length_bytes,
        }
    }
}

/// "Common Completion Queue Entry".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Dwords 0 and 1: what the command answers with.
    pub result: u64,
    /// SQHD: how far the queue has been read; 0xffff on a queue without flow control.
    pub queue_head: u16,
    /// SQID: reserved over Fabrics.
    pub queue: u16,
    /// CID: the command.
    pub command: u16,
    /// SCT and SC.
    pub status: StatusCode,
    /// CRD: which of the controller's delays to keep before another try; 0 for none.
    pub retry_delay: u8,
    /// M: the error log says more.
    pub more: bool,
    /// DNR: another try will fail as well.
    pub do_not_retry: bool,
    /// Phase tag: reserved over Fabrics.
    pub phase: bool,
}

impl Completion {
    /// Reads it.
    pub fn parse(octets: &[u8; COMPLETION_BYTES]) -> Self {
        let field = le16(octets, 14);
        Self {
            result: le64(octets, 0),
            queue_head: le16(octets, 8),
            queue: le16(octets, 10),
            command: le16(octets, 12),
            status: StatusCode(field >> 1 & 0x7ff),
            retry_delay: (field >> 12 & 0b11) as u8,
            more: field >> 14 & 1 != 0,
            do_not_retry: field >> 15 != 0,
            phase: field & 1 != 0,
        }
    }

    /// The bytes. Of status and retry delay, the bits that there is room for.
    pub fn octets(&self) -> [u8; COMPLETION_BYTES] {
        let field = u16::from(self.phase)
            | (self.status.0 & 0x7ff) << 1
            | u16::from(self.retry_delay & 0b11) << 12
            | u16::from(self.more) << 14
            | u16::from(self.do_not_retry) << 15;
        let mut octets = [0; COMPLETION_BYTES];
        put(&mut octets, 0, self.result.to_le_bytes());
        put(&mut octets, 8, self.queue_head.to_le_bytes());
        put(&mut octets, 10, self.queue.to_le_bytes());
        put(&mut octets, 12, self.command.to_le_bytes());
        put(&mut octets, 14, field.to_le_bytes());
        octets
    }
}
