//! Why bytes are not a header, and why a header did not become bytes.

use thiserror::Error;

/// Why bytes were refused. The packet path maps each variant to one drop reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum ParseError {
    /// The bytes end before the header, or before the length that the header states.
    #[error(
        "the frame ends before its headers say it does; look for a receive buffer or MTU that is too small"
    )]
    Truncated,
    /// A field contradicts the protocol or another field.
    #[error("a header field contradicts its protocol; the sender or the path has damaged the frame")]
    Malformed,
    /// Well formed, but a version, hardware type or option that is not spoken here.
    #[error("the header is of a version or type that is not supported here")]
    UnsupportedType,
    /// More VLAN tags or IPv6 extension headers than the limit.
    #[error("more stacked headers than are followed; send fewer tags or extension headers")]
    TooManyHeaders,
    /// A checksum is wrong. Only where the doc says that one is verified.
    #[error(
        "a checksum is wrong; the path has damaged the packet, or its sender left a partial checksum in it"
    )]
    BadChecksum,
}

/// Why a header was not written. Nothing has been written then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum EmitError {
    /// The buffer is too short.
    #[error("the buffer is too short for the header; give at least {needed_bytes} bytes")]
    NoRoom {
        /// Bytes that the header needs.
        needed_bytes: usize,
    },
    /// A length or count does not fit its field.
    #[error("a value does not fit its header field; shorten the options or the payload")]
    OutOfRange,
}
