//! Real traffic and what is seen of it: copies over TCP with equal sums, captures, dissections.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::netns::{Held, Namespace};

/// `sha256sum` of what is written to it.
struct Sha256(Option<std::process::Child>);

impl Sha256 {
    fn new() -> Sha256 {
        let child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Sha256(Some(child.expect("sha256sum (coreutils) starts")))
    }

    fn update(&mut self, bytes: &[u8]) {
        let stdin = self.0.as_mut().and_then(|child| child.stdin.as_mut());
        stdin.expect("still open").write_all(bytes).expect("sha256sum reads");
    }

    fn finish(mut self) -> String {
        let output = self.0.take().expect("still there").wait_with_output().expect("sha256sum ends");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn send(mut stream: TcpStream, bytes: u64, seed: u64) -> String {
    let mut sum = Sha256::new();
    let mut block = vec![0_u8; 1 << 16];
    let mut state = seed | 1;
    let mut left = bytes;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            // xorshift64: incompressible and cheap.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = &block[..left.min(block.len() as u64) as usize];
        stream.write_all(part).expect("the connection holds");
        sum.update(part);
        left -= part.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).expect("the connection holds");
    sum.finish()
}

fn receive(mut stream: TcpStream) -> (u64, String) {
    let mut sum = Sha256::new();
    let mut block = vec![0_u8; 1 << 16];
    let mut bytes = 0;
    loop {
        match stream.read(&mut block).expect("the connection holds") {
            0 => return (bytes, sum.finish()),
            count => {
                sum.update(&block[..count]);
                bytes += count as u64;
            }
        }
    }
}

/// Carries `bytes` from one namespace to an address in the other and compares the sums.
///
/// # Panics
/// When the copy fails or differs.
pub fn copy(from: &Namespace, to: &Namespace, address: &str, port: u16, bytes: u64) {
    let address = SocketAddr::new(address.parse::<IpAddr>().expect("an address"), port);
    let listener = to.run(|| TcpListener::bind(address)).expect("the address is there");
    let receiver = std::thread::spawn(move || receive(listener.accept().expect("somebody comes").0));
    let stream = from.run(|| TcpStream::connect(address)).expect("the other side is reached");
    let sent = send(stream, bytes, bytes ^ u64::from(port));
    let (count, received) = receiver.join().expect("the receiver ends well");
    assert_eq!(count, bytes);
    assert_eq!(sent, received, "sha256 of what was sent and what came");
}

/// A capture under way: full packets, the first few thousand.
///
/// # Panics
/// When it does not begin.
pub fn capture(space: &Namespace, interface: &str, file: &Path) -> Held {
    let file = file.to_string_lossy();
    let words = ["dumpcap", "-q", "-i", interface, "-c", "20000", "-w", &*file];
    let held = space.spawn(&words, Stdio::null(), Stdio::null());
    held.until("the capture runs", || Path::new(&*file).exists());
    held
}

/// Ends a capture so that its file is whole.
///
/// # Panics
/// When it does not end.
pub fn end(mut capturing: Held) {
    let pid = rustix::process::Pid::from_child(&capturing.0);
    // It may have ended by itself, after its last packet.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    capturing.ended("the capture");
}

/// Packets of a capture that match a display filter, checksums verified.
///
/// # Panics
/// When tshark cannot read the file.
pub fn dissect(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let checked = ["ip", "tcp", "udp"].map(|protocol| format!("{protocol}.check_checksum:TRUE"));
    let words: Vec<&str> = checked.iter().flat_map(|checked| ["-o", checked]).collect();
    dissected(file, &[], &words, filter, fields)
}

/// Packets of a capture on a loopback that match a display filter, in which tshark may see `more` protocols.
/// Checksums are not verified: a loopback leaves them half done, and tshark would not put streams together.
///
/// # Panics
/// When tshark cannot read the file.
pub fn dissect_loopback(file: &Path, more: &[&str], filter: &str, fields: &[&str]) -> Vec<String> {
    dissected(file, more, &[], filter, fields)
}

fn dissected(file: &Path, more: &[&str], words: &[&str], filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "fields"]).args(words);
    for name in other_protocols().iter().filter(|name| !more.contains(&name.as_str())) {
        command.args(["--disable-protocol", name]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark runs");
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// What tshark may see in a capture of ours.
const DISSECTED: [&str; 14] = [
    "frame",
    "eth",
    "ethertype",
    "vlan",
    "arp",
    "ip",
    "ipv6",
    "icmp",
    "icmpv6",
    "udp",
    "tcp",
    "vxlan",
    "geneve",
    "data",
];

/// All protocols besides. The payload is random bytes, and tshark looks for some seventy protocols in
/// them: now and then it believes to have found one, malformed, or gathers a message of gigabytes.
fn other_protocols() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let output = Command::new("tshark").args(["-G", "protocols"]).output().expect("tshark runs");
        // "There is one record per line. The fields are tab-delimited. [...] Field 3 = protocol filter name".
        let names = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.split('\t').nth(2))
            .filter(|name| !DISSECTED.contains(name) && !name.starts_with("_ws."))
            .map(str::to_owned)
            .collect::<Vec<_>>();
        assert!(names.len() > 1000, "tshark -G protocols: {}", String::from_utf8_lossy(&output.stderr));
        names
    })
}

/// Packets that are malformed or carry a wrong checksum.
pub const WRONG: &str = "_ws.malformed || ip.checksum.status == \"Bad\" || tcp.checksum.status == \"Bad\" || udp.checksum.status == \"Bad\"";
