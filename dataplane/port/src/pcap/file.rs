//! The classic capture format: a header of 24 bytes, then per packet a header of 16 bytes and its bytes.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

/// Which byte of a capture file is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not this format.
    #[error("byte 0: {magic:#010x} does not begin a capture file (0xa1b2c3d4 or 0xa1b23c4d would){hint}")]
    Magic {
        /// The first four bytes, in this machine's order.
        magic: u32,
        /// What to do, if the format is known.
        hint: &'static str,
    },
    /// A version other than 2.
    #[error("byte 4: version {major} of the format is not known, only 2 is")]
    Version {
        /// The version found.
        major: u16,
    },
    /// Packets that do not begin with an Ethernet header.
    #[error("byte 20: link type {link_type} is not Ethernet (1)")]
    LinkType {
        /// The link type found.
        link_type: u32,
    },
    /// The file ends within a header or packet.
    #[error("byte {byte}: the file ends within {what}, {missing} bytes are missing")]
    Truncated {
        /// Where the header or packet begins.
        byte: usize,
        /// What is cut off.
        what: &'static str,
        /// How much of it.
        missing: usize,
    },
    /// A packet that no frame holds.
    #[error("byte {byte}: a packet of {len} bytes, at most {max} fit a frame")]
    TooLong {
        /// Where its length stands.
        byte: usize,
        /// Its length.
        len: u32,
        /// The longest possible.
        max: usize,
    },
    /// A file larger than [`FILE_BYTES_MAX`].
    #[error("the file is larger than {FILE_BYTES_MAX} bytes; `editcap -c` cuts it into smaller ones")]
    TooLarge,
}

/// Files to replay are held in memory: this is the most that we take, bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

const FILE_HEADER_BYTES: usize = 24;
const PACKET_HEADER_BYTES: usize = 16;
const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
const MAGIC_NEXT_GENERATION: u32 = 0x0a0d_0d0a;
const SNAP_BYTES: u32 = 262_144;

/// What the packets of a file begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet = 1,
    /// LINKTYPE_USER0: here, a tunnel header from a socket underlay.
    User0 = 147,
}

/// One captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Distance in time from the first packet of the file, ns; 0 for one that claims to be earlier.
    pub time_ns: u64,
    /// What was captured of it.
    pub bytes: &'a [u8],
}

/// The packets of a file, in memory.
#[derive(Debug)]
pub struct Capture {
    bytes: Vec<u8>,
    packets: Vec<(u64, Range<usize>)>,
}

impl Capture {
    /// Reads a file whose packets have at most `packet_bytes_max` bytes.
    pub fn open(path: &Path, packet_bytes_max: usize) -> Result<Capture, PcapError> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(PcapError::TooLarge);
        }
        Capture::parse(bytes, packet_bytes_max)
    }

    /// The packets of a whole file.
    pub fn parse(bytes: Vec<u8>, packet_bytes_max: usize) -> Result<Capture, PcapError> {
        let header = whole(&bytes, 0, FILE_HEADER_BYTES, "the file header")?;
        let format = Format::of(header)?;
        let mut packets: Vec<(u64, Range<usize>)> = Vec::new();
        let mut first_ns = None;
        let mut at = FILE_HEADER_BYTES;
        while at < bytes.len() {
            let header = whole(&bytes, at, PACKET_HEADER_BYTES, "a packet header")?;
            let len = format.u32(header, 8);
            if len as usize > packet_bytes_max {
                return Err(PcapError::TooLong { byte: at + 8, len, max: packet_bytes_max });
            }
            let time_ns = format.time_ns(header);
            let packet = at + PACKET_HEADER_BYTES;
            whole(&bytes, packet, len as usize, "a packet")?;
            at = packet + len as usize;
            let since_first_ns = time_ns.saturating_sub(*first_ns.get_or_insert(time_ns));
            packets.push((since_first_ns, packet..at));
        }
        Ok(Capture { bytes, packets })
    }

    /// Packets in the file.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is not a special case")]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// The packet number `at`, from 0.
    pub fn packet(&self, at: usize) -> Option<Packet<'_>> {
        let (time_ns, range) = self.packets.get(at)?;
        Some(Packet { time_ns: *time_ns, bytes: &self.bytes[range.clone()] })
    }
}

/// `len` bytes from `at`, or where the file ends.
fn whole<'a>(bytes: &'a [u8], at: usize, len: usize, what: &'static str) -> Result<&'a [u8], PcapError> {
    let there = &bytes[at..];
    there.get(..len).ok_or_else(|| PcapError::Truncated { byte: at, what, missing: len - there.len() })
}

/// How the numbers of a file are written.
struct Format {
    swapped: bool,
    nanos: bool,
}

impl Format {
    fn of(header: &[u8]) -> Result<Format, PcapError> {
        let native = Format { swapped: false, nanos: false };
        let magic = native.u32(header, 0);
        let format = match (magic, magic.swap_bytes()) {
            (MAGIC_MICROS, _) => native,
            (MAGIC_NANOS, _) => Format { swapped: false, nanos: true },
            (_, MAGIC_MICROS) => Format { swapped: true, nanos: false },
            (_, MAGIC_NANOS) => Format { swapped: true, nanos: true },
            (MAGIC_NEXT_GENERATION, _) => {
                let hint = "; it is a pcapng file, `editcap -F pcap IN OUT` converts it";
                return Err(PcapError::Magic { magic, hint });
            }
            _ => return Err(PcapError::Magic { magic, hint: "" }),
        };
        let version = [header[4], header[5]];
        let major = u16::from_ne_bytes(version);
        let major = if format.swapped { major.swap_bytes() } else { major };
        if major != 2 {
            return Err(PcapError::Version { major });
        }
        // The upper bits say how long the frame check sequence is.
        match format.u32(header, 20) & 0x0fff_ffff {
            1 => Ok(format),
            link_type => Err(PcapError::LinkType { link_type }),
        }
    }

    /// The number at `at`; the header is that long.
    fn u32(&self, header: &[u8], at: usize) -> u32 {
        let value = u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if self.swapped { value.swap_bytes() } else { value }
    }

    fn time_ns(&self, header: &[u8]) -> u64 {
        let (seconds, fraction) = (u64::from(self.u32(header, 0)), u64::from(self.u32(header, 4)));
        seconds * 1_000_000_000 + if self.nanos { fraction } else { fraction * 1000 }
    }
}

/// Writes a capture file up to a limit.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<File>,
    bytes_left: u64,
}

impl Writer {
    /// Begins a file, overwriting an existing one. `bytes_max` counts the headers too.
    pub fn create(path: &Path, link_type: LinkType, bytes_max: u64) -> io::Result<Writer> {
        let mut header = Vec::with_capacity(FILE_HEADER_BYTES);
        header.extend(MAGIC_NANOS.to_ne_bytes());
        header.extend(2_u16.to_ne_bytes());
        header.extend(4_u16.to_ne_bytes());
        header.extend([0; 8]);
        header.extend(SNAP_BYTES.to_ne_bytes());
        header.extend((link_type as u32).to_ne_bytes());
        let mut file = BufWriter::with_capacity(1 << 16, File::create(path)?);
        file.write_all(&header)?;
        Ok(Writer { file, bytes_left: bytes_max.saturating_sub(FILE_HEADER_BYTES as u64) })
    }

    /// Appends a packet. False, and nothing written from then on, when the file would grow too large.
    pub fn write(&mut self, time_ns: u64, bytes: &[u8]) -> io::Result<bool> {
        let needed = (PACKET_HEADER_BYTES + bytes.len()) as u64;
        let Some(left) = self.bytes_left.checked_sub(needed) else {
            self.bytes_left = 0;
            return Ok(false);
        };
        self.bytes_left = left;
        let seconds = (time_ns / 1_000_000_000) as u32;
        let nanos = (time_ns % 1_000_000_000) as u32;
        let len = bytes.len() as u32;
        for number in [seconds, nanos, len, len] {
            self.file.write_all(&number.to_ne_bytes())?;
        }
        self.file.write_all(bytes)?;
        Ok(true)
    }

    /// Writes out what is buffered. Dropping does the same and hides errors.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Nanoseconds since 1970.
pub(crate) fn wall_clock_ns() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}
