//! A veth pair in a network namespace of the test's own thread, and a raw socket on one end.
//!
//! The namespace has no name: it is gone with the thread and its children, however the test ends. AF_XDP
//! needs real root; without it, tests say so and return.

#[path = "../../../../tests/src/netns.rs"]
#[allow(dead_code, unfulfilled_lint_expectations)]
mod netns;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use frame::{Batch, Pool, Slab, SlabConfig};
use port::{OpenError, Port, PortSpec, xdp::XdpSpec};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Moves the calling thread into a fresh namespace. False, and a printed reason, without real root.
pub fn enter() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // SAFETY: no memory is passed.
    let root = unsafe { libc::geteuid() } == 0;
    if !root || !map.split_whitespace().eq(["0", "0", "4294967295"]) {
        // The harness names the thread after the test.
        let thread = std::thread::current();
        netns::skip(thread.name().unwrap_or("xdp"), "AF_XDP needs root of the initial user namespace");
        return false;
    }
    // SAFETY: no memory is passed; only this thread changes its namespace.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "unshare: {}", io::Error::last_os_error());
    true
}

/// Runs `ip` with words, which must work, and returns what it prints.
pub fn ip(words: &str) -> String {
    run("ip", words)
}

fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split_whitespace()).output().expect("the program exists");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// Makes the pair `a0`, `b0`, both up, silent and without checksum offload.
pub fn veth(mtu: u32, queues: u32) {
    let q = format!("numrxqueues {queues} numtxqueues {queues}");
    ip(&format!("link add a0 mtu {mtu} {q} type veth peer name b0 mtu {mtu} {q}"));
    for end in ["a0", "b0"] {
        // A kernel without IPv6 has nothing to silence.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{end}/disable_ipv6"), "1");
        run("ethtool", &format!("-K {end} tx off"));
        ip(&format!("link set {end} up"));
    }
    until("the pair is running", || ip("link show b0").contains("LOWER_UP").then_some(()));
}

/// Repeats `attempt` until it gives something.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// The pair in a fresh namespace, memory for ports on `b0`, and a socket on `a0`. `None` as [`enter`] says.
pub fn pair(mtu: u32, queues: u32) -> Option<(Arc<Slab>, Pool, Raw)> {
    if !enter() {
        return None;
    }
    veth(mtu, queues);
    let slab = slab();
    let pool = Pool::new(&slab);
    Some((slab, pool, Raw::new("a0")))
}

pub fn slab() -> Arc<Slab> {
    Slab::new(SlabConfig { frames: 4096, jumbo_frames: 4, hugepages: false }).expect("memory")
}

pub fn spec(queue: u32) -> XdpSpec {
    XdpSpec { queue, ring_frames: 512, ..XdpSpec::new("b0") }
}

pub fn open(spec: &XdpSpec, slab: &Arc<Slab>) -> Result<Box<dyn Port>, OpenError> {
    port::open(&PortSpec::Xdp(spec.clone()), slab)
}

/// Receives at least `count` frames into `seen`.
pub fn receive(port: &mut dyn Port, pool: &mut Pool, count: usize, mut seen: impl FnMut(&[u8])) {
    let mut got = 0;
    until("frames arrived", || {
        let mut batch = Batch::new();
        got += port.rx_burst(pool, &mut batch).expect("a living port");
        batch.iter().for_each(|frame| seen(pool.bytes(frame)));
        pool.free_batch(&mut batch);
        port.flush(pool).expect("a living port");
        (got >= count).then_some(())
    });
}

/// Every frame of the slab is home again.
pub fn all_home(pool: &Pool) {
    assert_eq!(pool.available(), pool.slab().frames() as usize, "frames are missing");
    assert_eq!(frame::leaked(), 0);
}

/// An AF_PACKET socket on one interface.
pub struct Raw {
    fd: OwnedFd,
}

impl Raw {
    pub fn new(interface: &str) -> Raw {
        let name = std::ffi::CString::new(interface).unwrap();
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no memory is passed.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol))
        };
        assert!(fd >= 0, "AF_PACKET: {}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the name is a C string.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let (at, bytes) = (std::ptr::from_ref(&address).cast(), size_of_val(&address) as u32);
        // SAFETY: the address is valid for reads of its size.
        assert_eq!(unsafe { libc::bind(fd.as_raw_fd(), at, bytes) }, 0);
        let (room, level) = (8_i32 << 20, libc::SOL_SOCKET);
        let at = std::ptr::from_ref(&room).cast();
        // SAFETY: the value is valid for reads of its size.
        assert_eq!(unsafe { libc::setsockopt(fd.as_raw_fd(), level, libc::SO_RCVBUFFORCE, at, 4) }, 0);
        Raw { fd }
    }

    pub fn send(&self, bytes: &[u8]) {
        // SAFETY: the bytes are valid for reads of their length.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "send: {}", io::Error::last_os_error());
    }

    /// The next frame that somebody else sent, if there is one.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            // SAFETY: all-zero is a valid address.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_bytes = size_of_val(&from) as u32;
            // SAFETY: buffer and address are valid for writes of their lengths.
            let got = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    std::ptr::from_mut(&mut from).cast(),
                    &mut from_bytes,
                )
            };
            match usize::try_from(got) {
                Ok(_) if from.sll_pkttype == libc::PACKET_OUTGOING => {}
                Ok(len) => return Some(len),
                Err(_) => return None,
            }
        }
    }
}

/// An Ethernet frame of `bytes` with a local experimental type and a number at 14.
pub fn numbered(number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; bytes];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}
