//! System calls as small safe functions: each checks its result and owns what it returns.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Turns the kernel's -1 into the error that it stands for.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A socket that is closed on exec.
pub(super) fn socket(domain: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds an AF_XDP socket.
pub(super) fn bind_xdp(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let bytes = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: the address is valid for reads of its own size.
    check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), bytes) }).map(drop)
}

/// Values that a socket option is copied from or into.
///
/// # Safety
/// The type has no padding, and every bit pattern is a valid value of it.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: sixteen 64-bit integers.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: six 64-bit integers.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: two 64-bit integers and four of 32 bits, in this order.
unsafe impl Plain for libc::xdp_umem_reg {}

/// Sets a socket option to a plain value.
pub(super) fn set_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is valid for reads of its own size.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), bytes) })
        .map(drop)
}

/// Reads a socket option; what the kernel does not fill keeps its value. Returns the length that it filled.
pub(super) fn read_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<usize> {
    let mut bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: value and length are valid for writes, the kernel writes at most `bytes`, and any bytes are
    // a valid `T`.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(value).cast(), &mut bytes)
    })?;
    Ok(bytes as usize)
}

/// Asks the kernel to process the transmit ring.
pub(super) fn kick_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty message has no buffer.
    let sent =
        unsafe { libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the kernel to look for input; also tells whether the socket is still bound to a living interface.
pub(super) fn kick_rx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty message has no buffer, and no address is asked for.
    let received = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if received < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// bpf(2) with a command that makes a descriptor.
///
/// # Safety
/// Addresses inside `attribute` are valid for what the command does with them.
pub(super) unsafe fn bpf_open<T>(command: u32, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: as promised by the caller.
    let fd = unsafe { bpf(command, attribute) }?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2). The kernel sets close-on-exec on every descriptor that it makes.
///
/// # Safety
/// Addresses inside `attribute` are valid for what the command does with them.
pub(super) unsafe fn bpf<T>(command: u32, attribute: &mut T) -> io::Result<libc::c_int> {
    let attribute: *mut T = attribute;
    // SAFETY: the attribute is valid for its own size; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    check(result as libc::c_int)
}

/// An interface request (netdevice(7)): the name goes in, one member of the union comes back.
pub(super) fn interface_request(
    control: &impl AsFd,
    name: &str,
    request: libc::c_ulong,
) -> io::Result<libc::ifreq> {
    let mut ifreq = named_request(name)?;
    // SAFETY: `ifreq` is valid for reads and writes, and the requests used here write only into it.
    check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), request as libc::Ioctl, &mut ifreq) })?;
    Ok(ifreq)
}

/// An ethtool request; `value` begins with the command and has the size that the command writes.
///
/// # Safety
/// `T` is the structure of the command in its first word.
pub(super) unsafe fn ethtool<T>(control: &impl AsFd, name: &str, value: &mut T) -> io::Result<()> {
    let mut ifreq = named_request(name)?;
    ifreq.ifr_ifru.ifru_data = std::ptr::from_mut(value).cast();
    let request = super::abi::SIOCETHTOOL as libc::Ioctl;
    // SAFETY: `ifreq` is valid, and points to the structure that the command writes.
    check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), request, &mut ifreq) }).map(drop)
}

fn named_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero is a valid `ifreq`: integers, arrays and a null pointer.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays 0, as the end of the name.
    if name.len() >= ifreq.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(ifreq)
}
