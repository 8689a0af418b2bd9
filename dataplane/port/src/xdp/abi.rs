//! The kernel ABI that `libc` does not carry: bpf(2), ethtool and a few socket options.
//!
//! Layouts follow `linux/bpf.h`, `linux/ethtool.h` and `asm-generic/socket.h`. The AF_XDP structures of
//! `linux/if_xdp.h` come from `libc`. Invariant: all structures are `repr(C)` without implicit padding, so
//! that no uninitialised byte reaches the kernel.

/// Commands of bpf(2).
pub(super) const BPF_MAP_CREATE: u32 = 0;
pub(super) const BPF_MAP_UPDATE_ELEM: u32 = 2;
pub(super) const BPF_MAP_DELETE_ELEM: u32 = 3;
pub(super) const BPF_PROG_LOAD: u32 = 5;
pub(super) const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
pub(super) const BPF_LINK_CREATE: u32 = 28;

pub(super) const BPF_MAP_TYPE_XSKMAP: u32 = 17;
pub(super) const BPF_PROG_TYPE_XDP: u32 = 6;
pub(super) const BPF_XDP: u32 = 37;

/// Where the program runs: in the driver, or in the stack after an skb was made.
pub(super) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
pub(super) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// One instruction of `struct bpf_insn`; `registers` is `dst_reg | src_reg << 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

#[derive(Default)]
#[repr(C)]
pub(super) struct MapCreate {
    pub map_type: u32,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub entries_max: u32,
    pub flags: u32,
    pub inner_map_fd: u32,
    pub numa_node: u32,
    pub name: [u8; 16],
}

#[derive(Default)]
#[repr(C)]
pub(super) struct MapElement {
    pub map_fd: u32,
    pub pad: u32,
    pub key: u64,
    pub value: u64,
    pub flags: u64,
}

#[derive(Default)]
#[repr(C)]
pub(super) struct ProgramLoad {
    pub program_type: u32,
    pub instruction_count: u32,
    pub instructions: u64,
    pub license: u64,
    pub log_level: u32,
    pub log_bytes: u32,
    pub log: u64,
    pub kernel_version: u32,
    pub flags: u32,
    pub name: [u8; 16],
    pub interface_index: u32,
    pub expected_attach_type: u32,
}

#[derive(Default)]
#[repr(C)]
pub(super) struct LinkCreate {
    pub program_fd: u32,
    pub target_interface_index: u32,
    pub attach_type: u32,
    pub flags: u32,
}

#[derive(Default)]
#[repr(C)]
pub(super) struct ObjectInfo {
    pub fd: u32,
    pub info_bytes: u32,
    pub info: u64,
}

/// The head of `struct bpf_link_info`, for a link of type XDP.
#[derive(Default)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub program_id: u32,
    pub pad: u32,
    /// 0 once the interface is gone or the link was detached by force.
    pub interface_index: u32,
    pub tail: u32,
}

pub(super) const SO_BUSY_POLL: libc::c_int = 46;
pub(super) const SO_PREFER_BUSY_POLL: libc::c_int = 69;
pub(super) const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
pub(super) const SO_NETNS_COOKIE: libc::c_int = 71;
/// `SOL_XDP` option of Linux 6.17: descriptors that one send call may process in copy mode.
pub(super) const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

pub(super) const SIOCETHTOOL: libc::c_ulong = 0x8946;
pub(super) const ETHTOOL_GDRVINFO: u32 = 0x03;
pub(super) const ETHTOOL_GTXCSUM: u32 = 0x16;
pub(super) const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_drvinfo`.
#[repr(C)]
pub(super) struct DriverInfo {
    pub command: u32,
    pub driver: [u8; 32],
    pub rest: [u8; 32 + 32 + 32 + 32 + 12 + 20],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// `struct ethtool_value`.
#[repr(C)]
pub(super) struct Value {
    pub command: u32,
    pub data: u32,
}

/// `struct ethtool_channels`.
#[derive(Default)]
#[repr(C)]
pub(super) struct Channels {
    pub command: u32,
    pub rx_max: u32,
    pub tx_max: u32,
    pub other_max: u32,
    pub combined_max: u32,
    pub rx: u32,
    pub tx: u32,
    pub other: u32,
    pub combined: u32,
}
