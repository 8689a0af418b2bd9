//! The two mapped rings of TPACKET_V2: memory shared with the kernel, handed over slot by slot.
//!
//! A slot begins with `struct tpacket2_hdr`, whose first word says who owns it. The side that owns a slot
//! may touch all of it; it gives it away by storing the other side's status with release order, and takes
//! it with acquire order. That is the whole protocol, and the ground of every SAFETY comment here.
//!
//! A ring is one block, so that slots can have any size: an odd number of cache lines, which spreads the
//! first lines of neighbouring slots over all sets of the first-level cache. Slots of a power of two, as
//! the kernel's examples have them, all compete for the same few sets.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::socket::PacketSocket;
use super::vnet::VNET_BYTES;

const LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
/// Where a sender's data begins in a slot of V2: behind the aligned header.
const TX_DATA: usize = libc::TPACKET2_HDRLEN - size_of::<libc::sockaddr_ll>();
/// What the kernel puts before a received frame at most: header and address, alignment of the network
/// header, virtio-net header.
const RX_BEFORE: usize = libc::TPACKET2_HDRLEN + 32 + VNET_BYTES;

/// A mapped ring of slots.
#[derive(Debug)]
struct Ring {
    base: NonNull<u8>,
    map_bytes: usize,
    slot_bytes: usize,
    slots: u32,
    /// The next slot that changes hands.
    head: u32,
}

// SAFETY: the mapping belongs to this value alone, and the kernel follows the status protocol whichever
// thread we run on.
unsafe impl Send for Ring {}

impl Ring {
    /// Asks the kernel for a ring of at least `slots` slots and maps it.
    fn map(socket: &PacketSocket, option: libc::c_int, slots: u32, slot_bytes: usize) -> io::Result<Ring> {
        let slot_bytes = (slot_bytes.div_ceil(LINE_BYTES) | 1) * LINE_BYTES;
        let map_bytes = (slots as usize * slot_bytes).next_multiple_of(PAGE_BYTES);
        let slots = u32::try_from(map_bytes / slot_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let request = libc::tpacket_req {
            tp_block_size: u32::try_from(map_bytes).map_err(|_| io::ErrorKind::InvalidInput)?,
            tp_block_nr: 1,
            tp_frame_size: slot_bytes as u32,
            tp_frame_nr: slots,
        };
        socket.set(option, &request)?;
        // SAFETY: a fresh shared mapping of the ring that was just made; it touches no memory that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ring { base, map_bytes, slot_bytes, slots, head: 0 })
    }

    #[inline(always)]
    fn slot(&self) -> *mut u8 {
        // SAFETY: `head` is below `slots`, so the slot lies inside the mapping.
        unsafe { self.base.as_ptr().add(self.head as usize * self.slot_bytes) }
    }

    #[inline(always)]
    fn status(&self) -> &AtomicU32 {
        // SAFETY: the status is the first word of a slot, aligned to a cache line, and both sides access it
        // atomically.
        unsafe { AtomicU32::from_ptr(self.slot().cast()) }
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.head += 1;
        if self.head == self.slots {
            self.head = 0;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping, and every borrow of it ended.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.map_bytes) };
    }
}

/// The receive ring.
#[derive(Debug)]
pub(super) struct RxRing(Ring);

/// A received frame, still in its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    /// `TP_STATUS_*`.
    pub(super) status: u32,
    /// Length of the frame on the wire, without a VLAN tag that the kernel took off.
    pub(super) len: usize,
    /// The VLAN tag that the kernel took off: protocol and control information, in wire order.
    pub(super) vlan: Option<[u8; 4]>,
    /// What fits of the frame.
    pub(super) bytes: &'a [u8],
    /// The virtio-net header before it.
    pub(super) vnet: [u8; VNET_BYTES],
    /// Direction and kind (`PACKET_*`).
    pub(super) packet_type: u8,
}

impl RxRing {
    /// A ring for frames of up to `frame_bytes`.
    pub(super) fn new(socket: &PacketSocket, slots: u32, frame_bytes: usize) -> io::Result<RxRing> {
        Ring::map(socket, libc::PACKET_RX_RING, slots, RX_BEFORE + frame_bytes).map(RxRing)
    }

    /// True if the next slot holds a frame.
    #[inline(always)]
    pub(super) fn has_input(&self) -> bool {
        self.0.status().load(Ordering::Relaxed) & libc::TP_STATUS_USER != 0
    }

    /// The frame in the next slot.
    #[inline(always)]
    pub(super) fn peek(&self) -> Option<Received<'_>> {
        let status = self.0.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.0.slot();
        // SAFETY: the acquire load gave us the slot, and it begins with this header.
        let header = unsafe { &*slot.cast::<libc::tpacket2_hdr>() };
        let start = usize::from(header.tp_mac).clamp(VNET_BYTES, self.0.slot_bytes);
        let held = (header.tp_snaplen as usize).min(self.0.slot_bytes - start);
        // SAFETY: `start` is at least the length of the header before it and at most the slot's.
        let vnet_place = unsafe { slot.add(start - VNET_BYTES) };
        // SAFETY: ours by the acquire load, inside the slot by the clamp above.
        let vnet = unsafe { vnet_place.cast::<[u8; VNET_BYTES]>().read() };
        // SAFETY: inside the slot by the clamp above.
        let first = unsafe { slot.add(start) };
        // SAFETY: ours by the acquire load until `release`, which needs `&mut self` and so ends this borrow.
        let bytes = unsafe { std::slice::from_raw_parts(first, held) };
        // SAFETY: a slot is longer than header and address.
        let address = unsafe { slot.add(TX_DATA) };
        // SAFETY: ours by the acquire load; the address stands behind the header in every slot.
        let address = unsafe { &*address.cast::<libc::sockaddr_ll>() };
        let vlan = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| tag(status, header));
        Some(Received {
            status,
            len: header.tp_len as usize,
            vlan,
            bytes,
            vnet,
            packet_type: address.sll_pkttype,
        })
    }

    /// Gives the next slot back to the kernel.
    #[inline(always)]
    pub(super) fn release(&mut self) {
        self.0.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.0.advance();
    }
}

/// The tag's four bytes as they were on the wire (IEEE 802.1Q, clause 9.3).
#[cold]
fn tag(status: u32, header: &libc::tpacket2_hdr) -> [u8; 4] {
    let protocol = if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        header.tp_vlan_tpid
    } else {
        libc::ETH_P_8021Q as u16
    };
    let [a, b] = protocol.to_be_bytes();
    let [c, d] = header.tp_vlan_tci.to_be_bytes();
    [a, b, c, d]
}

/// The transmit ring.
#[derive(Debug)]
pub(super) struct TxRing(Ring);

impl TxRing {
    /// A ring for frames of up to `frame_bytes`.
    pub(super) fn new(socket: &PacketSocket, slots: u32, frame_bytes: usize) -> io::Result<TxRing> {
        Ring::map(socket, libc::PACKET_TX_RING, slots, TX_DATA + VNET_BYTES + frame_bytes).map(TxRing)
    }

    /// Longest frame that a slot holds.
    #[inline(always)]
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.0.slot_bytes - TX_DATA - VNET_BYTES
    }

    /// Fills the next slot and asks the kernel to send it with the next kick. False, and no change, while
    /// the kernel still holds the slot. The frame must be no longer than [`TxRing::frame_bytes_max`].
    #[inline(always)]
    pub(super) fn put(&mut self, vnet: &[u8; VNET_BYTES], frame: &[u8]) -> bool {
        // Bits above say when an earlier frame was sent; the slot is free all the same.
        let owner = libc::TP_STATUS_SEND_REQUEST | libc::TP_STATUS_SENDING;
        if self.0.status().load(Ordering::Acquire) & owner != libc::TP_STATUS_AVAILABLE {
            return false;
        }
        let len = frame.len().min(self.frame_bytes_max());
        let slot = self.0.slot();
        // SAFETY: a slot is longer than the header and the virtio-net header.
        let data = unsafe { slot.add(TX_DATA) };
        // SAFETY: ours by the acquire load; `len` is at most what remains of the slot.
        let room = unsafe { std::slice::from_raw_parts_mut(data, VNET_BYTES + len) };
        room[..VNET_BYTES].copy_from_slice(vnet);
        room[VNET_BYTES..].copy_from_slice(&frame[..len]);
        // SAFETY: ours by the acquire load, and it begins with this header.
        let header = unsafe { &mut *slot.cast::<libc::tpacket2_hdr>() };
        header.tp_len = (VNET_BYTES + len) as u32;
        self.0.status().store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        self.0.advance();
        true
    }
}
