//! An NBD target in two machines.
//!
//! [`Handshake`] belongs to the acceptor: it talks about exports until the client chooses one, and ends in
//! an [`Attach`]. [`Transmission`] is made from that and belongs to the worker that owns the export's volume
//! (decision D6). Section names in the comments are those of `doc/proto.md` of the NetworkBlockDevice
//! project.
//!
//! docs/protocols.md says which options, commands and flags are served; `tidegate:changed` is a context of copies between
//! nodes. Others are refused as the protocol asks; CACHE because there is no cache that a client could fill.
//!
//! The smallest request is one block of the volume: 512 or 4096 bytes.

mod gather;
mod handshake;
mod output;
mod request;
mod transmission;

pub use handshake::{Handshake, HandshakeError, Next, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_MAX};
pub use output::{DISPATCH_SLICES, Slices};
pub use transmission::{Transmission, TransmissionError, UnknownTag, Wait};

use block::{BlockSize, VOLUME_BYTES_MAX, VolumeId};
use thiserror::Error;
use wire::nbd::handshake::BlockSizes;
use wire::nbd::{PAYLOAD_BYTES_MAX, TransmissionFlags, text};

/// "Conventions": a string "SHOULD be no longer than 256 bytes".
pub const EXPORT_NAME_BYTES_MAX: usize = 256;
/// Longest description of an export.
pub const DESCRIPTION_BYTES_MAX: usize = 1024;
/// Bytes below which a write costs a read as well: a page of the volume (decision D8).
const PREFERRED_BYTES: u32 = 4096;

/// A volume under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    name: String,
    description: String,
    volume: VolumeId,
    block_size: BlockSize,
    blocks: u64,
    /// What the volume is to hosts; said to whoever lists `tidegate:identity:`.
    pub identity: Option<[u8; 16]>,
    /// Changes are refused.
    pub read_only: bool,
    /// Whole pages are zeroed in less time than writing them would take, because the volume can give them
    /// back.
    pub fast_zero: bool,
}

/// Why an export cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExportError {
    /// The name cannot be said in the protocol.
    #[error("export name {name:?} holds NUL or is longer than {EXPORT_NAME_BYTES_MAX} bytes; shorten it")]
    Name {
        /// The name.
        name: String,
    },
    /// The description cannot be said in the protocol.
    #[error("the description of export {name:?} holds NUL or is longer than {DESCRIPTION_BYTES_MAX} bytes")]
    Description {
        /// Name of the export.
        name: String,
    },
    /// Larger than a volume can be.
    #[error("export {name:?} has {blocks} blocks; a volume has at most {VOLUME_BYTES_MAX} bytes")]
    Size {
        /// Name of the export.
        name: String,
        /// Its size in blocks.
        blocks: u64,
    },
}

impl Export {
    /// Exports `volume`, which has `blocks` blocks of `block_size`, under `name`. Writable; zeroing is not
    /// fast.
    pub fn new(
        name: &str,
        description: &str,
        volume: VolumeId,
        block_size: BlockSize,
        blocks: u64,
    ) -> Result<Export, ExportError> {
        let name = name.to_owned();
        if name.len() > EXPORT_NAME_BYTES_MAX || text(name.as_bytes()).is_err() {
            return Err(ExportError::Name { name });
        }
        if description.len() > DESCRIPTION_BYTES_MAX || text(description.as_bytes()).is_err() {
            return Err(ExportError::Description { name });
        }
        if blocks > VOLUME_BYTES_MAX >> block_size.shift() {
            return Err(ExportError::Size { name, blocks });
        }
        let description = description.to_owned();
        Ok(Export {
            name,
            description,
            volume,
            block_size,
            blocks,
            identity: None,
            read_only: false,
            fast_zero: false,
        })
    }

    /// What clients call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Text for people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The volume behind it.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Size of a block: what offsets and lengths are multiples of.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.blocks << self.block_size.shift()
    }

    /// "Size constraints".
    fn block_sizes(&self) -> Option<BlockSizes> {
        BlockSizes::new(self.block_size.bytes(), PREFERRED_BYTES, PAYLOAD_BYTES_MAX)
    }

    /// "Transmission flags". All connections of an export meet at one volume on one worker, so a flush on
    /// any of them covers all, always.
    fn flags(&self, structured: bool) -> TransmissionFlags {
        TransmissionFlags::HAS_FLAGS
            .with(TransmissionFlags::SEND_FLUSH)
            .with(TransmissionFlags::SEND_FUA)
            .with(TransmissionFlags::CAN_MULTI_CONN)
            .with_if(structured, TransmissionFlags::SEND_DF)
            .with_if(self.read_only, TransmissionFlags::READ_ONLY)
            .with_if(!self.read_only, TransmissionFlags::SEND_TRIM)
            .with_if(!self.read_only, TransmissionFlags::SEND_WRITE_ZEROES)
            .with_if(!self.read_only, TransmissionFlags::SEND_FAST_ZERO)
    }
}

/// "Server-side requirements" of "TLS support".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPolicy {
    /// NOTLS: there is none.
    Off,
    /// SELECTIVETLS with no export that demands it: the client chooses.
    Allow,
    /// FORCEDTLS: nothing is said without it.
    Require,
}

/// What a handshake led to: the client's choice, and what it may expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The export.
    pub export: Export,
    /// Reads are answered in chunks.
    pub structured: bool,
    /// `base:allocation` was selected.
    pub allocation: bool,
    /// `tidegate:changed` was selected: the session copies the volume (docs/decisions/050). Its export is read-only.
    pub changed: bool,
    /// The connection runs over TLS.
    pub secured: bool,
}

/// Bounds of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are not wholly answered. With so many, input waits in the socket.
    pub requests_max: u16,
    /// Payload that is held for the client, in both directions; at least the longest payload of one request,
    /// 32 MiB. With so much, input waits in the socket.
    pub bytes_max: u32,
    /// How long a client may leave a message half sent or half read.
    pub stall_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_max: 128, bytes_max: 64 << 20, stall_ns: 30_000_000_000 }
    }
}
