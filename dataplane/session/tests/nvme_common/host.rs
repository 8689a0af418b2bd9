//! An NVMe/TCP host, made of bytes as the standards draw them and of nothing of ours.
#![allow(dead_code)] // each user takes a part of it

pub const NQN: &str = "nqn.2026-11.example.storage:one";
pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// CRC32C, bit by bit (RFC 3720, appendix B.4).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// What was agreed, seen from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    pub header_digest: bool,
    pub data_digest: bool,
    /// HPDA: dwords, less one.
    pub alignment: u8,
}

/// Where the data of a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    Capsule(u32),
    Host(u32),
}

/// A command of 64 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sqe(pub [u8; 64]);

impl Sqe {
    pub fn new(opcode: u8, id: u16, namespace: u32, sgl: Sgl) -> Sqe {
        let mut octets = [0; 64];
        (octets[0], octets[1]) = (opcode, 0x40);
        octets[2..4].copy_from_slice(&id.to_le_bytes());
        octets[4..8].copy_from_slice(&namespace.to_le_bytes());
        let (kind, length) = match sgl {
            Sgl::Capsule(length) => (0x01, length),
            Sgl::Host(length) => (0x5a, length),
        };
        octets[32..36].copy_from_slice(&length.to_le_bytes());
        octets[39] = kind;
        Sqe(octets)
    }

    /// Sets dword `number`.
    pub fn dword(mut self, number: usize, value: u32) -> Sqe {
        self.0[4 * number..4 * number + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Sets one byte.
    pub fn byte(mut self, at: usize, value: u8) -> Sqe {
        self.0[at] = value;
        self
    }

    /// Dwords 10 to 12 of commands with one range.
    pub fn range(self, lba: u64, blocks: u32) -> Sqe {
        self.dword(10, lba as u32).dword(11, (lba >> 32) as u32).dword(12, blocks - 1)
    }
}

pub fn read(id: u16, lba: u64, blocks: u32) -> Sqe {
    Sqe::new(0x02, id, 1, Sgl::Host(blocks * 512)).range(lba, blocks)
}

pub fn write(id: u16, lba: u64, blocks: u32, in_capsule: bool) -> Sqe {
    let sgl = if in_capsule { Sgl::Capsule(blocks * 512) } else { Sgl::Host(blocks * 512) };
    Sqe::new(0x01, id, 1, sgl).range(lba, blocks)
}

pub fn flush(id: u16) -> Sqe {
    Sqe::new(0x00, id, 1, Sgl::Host(0))
}

pub fn identify(id: u16, cns: u32, namespace: u32) -> Sqe {
    Sqe::new(0x06, id, namespace, Sgl::Host(4096)).dword(10, cns)
}

pub fn log_page(id: u16, page: u32, offset: u32, bytes: u32) -> Sqe {
    let dwords = bytes / 4 - 1;
    Sqe::new(0x02, id, 0, Sgl::Host(bytes)).dword(10, page | dwords << 16).dword(12, offset)
}

pub fn property_get(id: u16, offset: u32, is_long: bool) -> Sqe {
    Sqe::new(0x7f, id, 4, Sgl::Host(0)).dword(10, is_long.into()).dword(11, offset)
}

pub fn property_set(id: u16, offset: u32, value: u32) -> Sqe {
    Sqe::new(0x7f, id, 0, Sgl::Host(0)).dword(11, offset).dword(12, value)
}

/// What a Connect command asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub queue: u16,
    pub entries_less_one: u16,
    pub flags: u8,
    pub keep_alive_ms: u32,
    pub controller: u16,
    pub subsystem: &'static str,
    pub host: &'static str,
    pub host_id: u8,
}

pub const ADMIN: Wish = Wish {
    queue: 0,
    entries_less_one: 31,
    flags: 0,
    keep_alive_ms: 5000,
    controller: 0xffff,
    subsystem: NQN,
    host: HOST,
    host_id: 0x5c,
};

impl Wish {
    pub fn io(queue: u16, controller: u16) -> Wish {
        Wish { queue, entries_less_one: 127, keep_alive_ms: 0, controller, ..ADMIN }
    }

    pub fn command(&self) -> Sqe {
        let attributes = u32::from(self.entries_less_one) | u32::from(self.flags) << 16;
        Sqe::new(0x7f, 0x1234, 1, Sgl::Capsule(1024))
            .dword(10, u32::from(self.queue) << 16)
            .dword(11, attributes)
            .dword(12, self.keep_alive_ms)
    }

    pub fn data(&self) -> Vec<u8> {
        let mut data = vec![0; 1024];
        data[..16].fill(self.host_id);
        data[16..18].copy_from_slice(&self.controller.to_le_bytes());
        data[256..256 + self.subsystem.len()].copy_from_slice(self.subsystem.as_bytes());
        data[512..512 + self.host.len()].copy_from_slice(self.host.as_bytes());
        data
    }
}

/// ICReq.
pub fn hello(agreed: Agreed) -> Vec<u8> {
    let mut pdu = vec![0; 128];
    (pdu[2], pdu[4]) = (128, 128);
    pdu[10] = agreed.alignment;
    pdu[11] = u8::from(agreed.header_digest) | u8::from(agreed.data_digest) << 1;
    pdu
}

impl Agreed {
    fn pdu(&self, kind: u8, flags: u8, specific: &[u8], data: &[u8]) -> Vec<u8> {
        let header_bytes = 8 + specific.len();
        let head_bytes = header_bytes + if self.header_digest { 4 } else { 0 };
        let has_digest = self.data_digest && !data.is_empty();
        let whole = head_bytes + data.len() + if has_digest { 4 } else { 0 };
        let flags = flags | u8::from(self.header_digest) | u8::from(has_digest) << 1;
        let data_at = if data.is_empty() { 0 } else { head_bytes as u8 };
        let mut pdu = vec![kind, flags, header_bytes as u8, data_at];
        pdu.extend((whole as u32).to_le_bytes());
        pdu.extend(specific);
        if self.header_digest {
            pdu.extend(crc32c(&pdu).to_le_bytes());
        }
        pdu.extend(data);
        if has_digest {
            pdu.extend(crc32c(data).to_le_bytes());
        }
        pdu
    }

    /// CapsuleCmd.
    pub fn capsule(&self, command: Sqe, data: &[u8]) -> Vec<u8> {
        self.pdu(4, 0, &command.0, data)
    }

    /// H2CData.
    pub fn data(&self, command: u16, tag: u16, offset: u32, data: &[u8], is_last: bool) -> Vec<u8> {
        let mut specific = command.to_le_bytes().to_vec();
        specific.extend(tag.to_le_bytes());
        specific.extend(offset.to_le_bytes());
        specific.extend((data.len() as u32).to_le_bytes());
        specific.extend([0; 4]);
        self.pdu(6, u8::from(is_last) << 2, &specific, data)
    }

    /// Reads one unit from the front, with how long it is.
    pub fn parse(&self, bytes: &[u8]) -> (Reply, usize) {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let (kind, flags, header_bytes, data_at) = (bytes[0], bytes[1], bytes[2] as usize, bytes[3] as usize);
        let whole = u32_at(4) as usize;
        let is_agreed = !matches!(kind, 1 | 3);
        assert_eq!(flags & 1 != 0, is_agreed && self.header_digest, "HDGSTF");
        if is_agreed && self.header_digest {
            assert_eq!(u32_at(header_bytes), crc32c(&bytes[..header_bytes]), "header digest");
        }
        let reply = match kind {
            1 => Reply::Hello { alignment: bytes[10], digests: bytes[11], data_bytes_max: u32_at(12) },
            3 => {
                let header = bytes[24..whole].to_vec();
                Reply::Termination { status: u16_at(8), information: u32_at(10), header }
            }
            5 => Reply::Done {
                id: u16_at(20),
                status: u16_at(22) >> 1 & 0x7ff,
                do_not_retry: u16_at(22) >> 15 != 0,
                more: u16_at(22) >> 14 & 1 != 0,
                result: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
                head: u16_at(16),
            },
            7 => {
                assert_eq!(flags & 2 != 0, self.data_digest, "DDGSTF");
                assert!(data_at.is_multiple_of((usize::from(self.alignment) + 1) * 4), "HPDA");
                let length = u32_at(16) as usize;
                let data = &bytes[data_at..data_at + length];
                let end = data_at + length;
                if self.data_digest {
                    assert_eq!(u32_at(end), crc32c(data), "data digest");
                }
                assert_eq!(whole, end + if self.data_digest { 4 } else { 0 });
                let (is_last, is_success) = (flags & 4 != 0, flags & 8 != 0);
                Reply::Data { id: u16_at(8), offset: u32_at(12), data: data.to_vec(), is_last, is_success }
            }
            9 => Reply::Transfer { id: u16_at(8), tag: u16_at(10), offset: u32_at(12), length: u32_at(16) },
            kind => panic!("a unit of kind {kind}"),
        };
        (reply, whole)
    }
}

/// What a controller says.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    Hello { alignment: u8, digests: u8, data_bytes_max: u32 },
    Termination { status: u16, information: u32, header: Vec<u8> },
    Done { id: u16, status: u16, do_not_retry: bool, result: u64, more: bool, head: u16 },
    Data { id: u16, offset: u32, data: Vec<u8>, is_last: bool, is_success: bool },
    Transfer { id: u16, tag: u16, offset: u32, length: u32 },
}

impl std::fmt::Debug for Reply {
    /// Without the data, which can be long.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Hello { alignment, digests, .. } => write!(f, "Hello {alignment} {digests}"),
            Reply::Termination { status, information, .. } => {
                write!(f, "Termination {status} {information:#x}")
            }
            Reply::Done { id, status, do_not_retry, result, .. } => {
                write!(f, "Done {id} {status:#x} {do_not_retry} {result:#x}")
            }
            Reply::Data { id, offset, data, is_success, .. } => {
                write!(f, "Data {id} {offset}+{} {is_success}", data.len())
            }
            Reply::Transfer { id, tag, length, .. } => write!(f, "Transfer {id} {tag} {length}"),
        }
    }
}
