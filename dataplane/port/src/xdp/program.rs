//! The redirect program: frames of a queue that has a socket go to that socket, all others to the stack.
//!
//! It is six instructions held as constants, `return bpf_redirect_map(&sockets, ctx->rx_queue_index,
//! XDP_PASS)`, so nothing has to be compiled, parsed or shipped. It is attached by a bpf link: the link is
//! a descriptor, so the death of the process detaches the program (decision D16).
//!
//! The queues of one interface share one program. The ports of a process meet in [`INTERFACES`], keyed by
//! network namespace and interface index, locked when a port is opened or closed and never per frame.
//! Invariant: an [`Attachment`] keeps the program attached, and its queue redirected, until it is dropped.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::abi::{self, Instruction};
use super::{QUEUES_MAX, sys};

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// In the driver, before an skb exists.
    Native,
    /// In the stack: the driver knows no XDP. Slower, works everywhere.
    Generic,
}

/// A network interface: namespace cookie (socket(7), `SO_NETNS_COOKIE`) and index.
pub(super) type Key = (u64, u32);

/// The programs that this process has attached.
static INTERFACES: Mutex<Vec<(Key, Weak<Program>)>> = Mutex::new(Vec::new());

fn interfaces() -> MutexGuard<'static, Vec<(Key, Weak<Program>)>> {
    INTERFACES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which step failed; the caller knows what that means for its user.
#[derive(Debug)]
pub(super) enum AttachError {
    /// Making the socket map.
    Map(io::Error),
    /// Loading the program.
    Load(io::Error),
    /// Attaching it to the interface.
    Link(io::Error),
    /// Putting the socket into the map.
    Insert(io::Error),
}

/// One queue of one interface redirected to one socket.
pub(super) struct Attachment {
    /// Taken only while it is dropped.
    program: Option<Arc<Program>>,
    queue: u32,
}

impl Attachment {
    /// Attaches the program, unless another queue of the interface has done so, and redirects `queue`.
    pub fn new(key: Key, queue: u32, socket: BorrowedFd<'_>) -> Result<Attachment, AttachError> {
        let mut interfaces = interfaces();
        interfaces.retain(|(_, program)| program.strong_count() > 0);
        let shared = interfaces.iter().find(|(k, _)| *k == key).and_then(|(_, program)| program.upgrade());
        let program = match shared.filter(|program| program.is_attached()) {
            Some(program) => program,
            None => {
                let program = Arc::new(Program::attach(key.1)?);
                interfaces.retain(|(k, _)| *k != key);
                interfaces.push((key, Arc::downgrade(&program)));
                program
            }
        };
        program.insert(queue, socket).map_err(AttachError::Insert)?;
        Ok(Attachment { program: Some(program), queue })
    }

    pub fn mode(&self) -> Mode {
        self.program.as_ref().map_or(Mode::Generic, |program| program.mode)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Held while the last reference closes the link, so that nobody attaches in between and finds the
        // interface busy.
        let _guard = interfaces();
        if let Some(program) = self.program.take() {
            // The kernel removes a closed socket by itself; a failure changes nothing.
            let _ = program.remove(self.queue);
        }
    }
}

/// The program on one interface. Closing the link detaches it; the link keeps the program alive, and the
/// program the map.
struct Program {
    map: OwnedFd,
    link: OwnedFd,
    mode: Mode,
}

impl Program {
    fn attach(interface_index: u32) -> Result<Program, AttachError> {
        let map = create_map().map_err(AttachError::Map)?;
        let program = load(&redirect(map.as_raw_fd())).map_err(AttachError::Load)?;
        match link(program.as_fd(), interface_index, abi::XDP_FLAGS_DRV_MODE) {
            Ok(link) => Ok(Program { map, link, mode: Mode::Native }),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let link = link_generic(program.as_fd(), interface_index)?;
                Ok(Program { map, link, mode: Mode::Generic })
            }
            Err(error) => Err(AttachError::Link(error)),
        }
    }

    fn insert(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        let mut element = self.element(&queue);
        element.value = std::ptr::from_ref(&value) as u64;
        // SAFETY: key and value are 32-bit integers, as the map was made, and live across the call.
        unsafe { sys::bpf(abi::BPF_MAP_UPDATE_ELEM, &mut element) }.map(drop)
    }

    fn remove(&self, queue: u32) -> io::Result<()> {
        let mut element = self.element(&queue);
        // SAFETY: the key is a 32-bit integer, as the map was made, and lives across the call.
        unsafe { sys::bpf(abi::BPF_MAP_DELETE_ELEM, &mut element) }.map(drop)
    }

    fn element(&self, queue: &u32) -> abi::MapElement {
        let key = std::ptr::from_ref(queue) as u64;
        abi::MapElement { map_fd: self.map.as_raw_fd() as u32, key, ..Default::default() }
    }

    /// False once the interface is gone, or was moved to another namespace and back.
    fn is_attached(&self) -> bool {
        let mut info = abi::LinkInfo::default();
        let mut request = abi::ObjectInfo {
            fd: self.link.as_raw_fd() as u32,
            info_bytes: size_of::<abi::LinkInfo>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        // SAFETY: the kernel writes at most `info_bytes` into `info`, which lives across the call.
        let answer = unsafe { sys::bpf(abi::BPF_OBJ_GET_INFO_BY_FD, &mut request) };
        answer.is_ok() && info.interface_index != 0
    }
}

fn create_map() -> io::Result<OwnedFd> {
    let mut attribute = abi::MapCreate {
        map_type: abi::BPF_MAP_TYPE_XSKMAP,
        key_bytes: 4,
        value_bytes: 4,
        entries_max: QUEUES_MAX,
        name: *b"tidegate_queues\0",
        ..Default::default()
    };
    // SAFETY: the attribute holds no address.
    unsafe { sys::bpf_open(abi::BPF_MAP_CREATE, &mut attribute) }
}

fn load(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attribute = abi::ProgramLoad {
        program_type: abi::BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name: *b"tidegate_xdp\0\0\0\0",
        expected_attach_type: abi::BPF_XDP,
        ..Default::default()
    };
    // SAFETY: the instructions and the licence, a C string, are only read, and live across the call.
    unsafe { sys::bpf_open(abi::BPF_PROG_LOAD, &mut attribute) }
}

fn link(program: BorrowedFd<'_>, interface_index: u32, mode: u32) -> io::Result<OwnedFd> {
    let mut attribute = abi::LinkCreate {
        program_fd: program.as_raw_fd() as u32,
        target_interface_index: interface_index,
        attach_type: abi::BPF_XDP,
        flags: mode,
    };
    // SAFETY: the attribute holds no address.
    unsafe { sys::bpf_open(abi::BPF_LINK_CREATE, &mut attribute) }
}

fn link_generic(program: BorrowedFd<'_>, interface_index: u32) -> Result<OwnedFd, AttachError> {
    link(program, interface_index, abi::XDP_FLAGS_SKB_MODE).map_err(AttachError::Link)
}

/// Opcodes and operands of the one program, from `linux/bpf.h`.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const LOAD_IMMEDIATE_64: u8 = 0x18; // BPF_LD | BPF_IMM | BPF_DW, two instructions long
const MOVE_IMMEDIATE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const CALL: u8 = 0x85; // BPF_JMP | BPF_CALL
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT
const PSEUDO_MAP_FD: u8 = 1 << 4; // in the source register: the immediate is a map's descriptor
const RX_QUEUE_INDEX: i16 = 16; // offset in `struct xdp_md`
const XDP_PASS: i32 = 2;
const REDIRECT_MAP: i32 = 51; // BPF_FUNC_redirect_map

/// The program, with the map's descriptor patched in.
fn redirect(map_fd: i32) -> [Instruction; 6] {
    let instruction = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    [
        instruction(LOAD_WORD, 2 | 1 << 4, RX_QUEUE_INDEX, 0), // r2 = ctx->rx_queue_index
        instruction(LOAD_IMMEDIATE_64, 1 | PSEUDO_MAP_FD, 0, map_fd), // r1 = &sockets
        instruction(0, 0, 0, 0),                               // its upper half
        instruction(MOVE_IMMEDIATE, 3, 0, XDP_PASS),           // r3 = what to do without a socket
        instruction(CALL, 0, 0, REDIRECT_MAP),
        instruction(EXIT, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_a_compiler_makes_of_it() {
        let bytes: Vec<[u8; 4]> =
            redirect(9).iter().map(|i| [i.code, i.registers, i.offset as u8, i.immediate as u8]).collect();
        let expected = [
            [0x61, 0x12, 16, 0],
            [0x18, 0x11, 0, 9],
            [0, 0, 0, 0],
            [0xb7, 0x03, 0, 2],
            [0x85, 0, 0, 51],
            [0x95, 0, 0, 0],
        ];
        assert_eq!(bytes, expected);
    }
}
