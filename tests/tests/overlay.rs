//! The gateway against peers that we did not write: the kernel's vxlan device, tshark's dissectors.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tests::gateway::{Gateway, folder, full, until};
use tests::netns::{Held, Namespace, isolated, veth};

/// A tenant's host, a gateway, and a node with a kernel vxlan device.
struct Lab {
    host: Namespace,
    gateway: Namespace,
    peer: Namespace,
}

const HOST: &str = "10.0.0.1";
const PEER: &str = "10.0.0.2";
const HOST_MAC: &str = "02:00:00:00:00:01";
const PEER_MAC: &str = "02:00:00:00:00:02";

impl Lab {
    fn new(ours: &str, theirs: &str, bits: u8) -> Lab {
        let lab = Lab { host: Namespace::new(), gateway: Namespace::new(), peer: Namespace::new() };
        veth(&lab.host, "eth0", &lab.gateway, "tenant0");
        veth(&lab.gateway, "under0", &lab.peer, "under0");
        for (space, name) in [(&lab.gateway, "under0"), (&lab.peer, "under0")] {
            space.ip(&format!("link set {name} mtu 1600"));
        }
        lab.host.ip(&format!("link set eth0 address {HOST_MAC}"));
        lab.host.ip(&format!("addr add {HOST}/24 dev eth0"));
        let nodad = if theirs.contains(':') { " nodad" } else { "" };
        lab.peer.ip(&format!("addr add {theirs}/{bits} dev under0{nodad}"));
        lab.peer.ip(&format!(
            "link add vx0 address {PEER_MAC} type vxlan id 100 local {theirs} remote {ours} dstport 4789 dev under0"
        ));
        lab.peer.ip(&format!("addr add {PEER}/24 dev vx0"));
        lab.peer.ip("link set vx0 mtu 1500 up");
        lab
    }

    fn config(ours: &str, theirs: &str, bits: u8) -> String {
        config("vxlan", (ours, theirs, bits), (HOST, HOST_MAC), (PEER, PEER_MAC))
    }
}

/// One gateway: its side of the underlay, its tenant's host, and the host at the far end.
fn config(
    encapsulation: &str,
    (ours, theirs, bits): (&str, &str, u8),
    (local, local_mac): (&str, &str),
    (remote, remote_mac): (&str, &str),
) -> String {
    format!(
        r#"
[[port]]
name = "tenant"
driver = "af_packet"
interface = "tenant0"
[[port]]
name = "uplink"
driver = "af_packet"
interface = "under0"
[[underlay]]
port = "uplink"
addresses = ["{ours}/{bits}"]
[[tenant]]
name = "blue"
vni = 100
encapsulation = "{encapsulation}"
attachments = [{{ port = "tenant", sources = [{{ ip = "{local}", mac = "{local_mac}" }}] }}]
remotes = [{{ ip = "{remote}", mac = "{remote_mac}", vtep = "{theirs}" }}]
"#
    )
}

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
fn copy(from: &Namespace, to: &Namespace, address: &str, port: u16, bytes: u64) {
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
fn capture(space: &Namespace, interface: &str, file: &Path) -> Held {
    let file = file.to_string_lossy();
    let words = ["dumpcap", "-q", "-i", interface, "-c", "20000", "-w", &*file];
    let held = space.spawn(&words, Stdio::null(), Stdio::null());
    until("the capture runs", || Path::new(&*file).exists());
    held
}

/// Ends a capture so that its file is whole.
fn end(mut capturing: Held) {
    let pid = rustix::process::Pid::from_child(&capturing.0);
    // It may have ended by itself, after its last packet.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    until("the capture ends", || capturing.0.try_wait().expect("it is our child").is_some());
}

/// Packets of a capture that match a display filter, checksums verified.
fn dissect(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    for preference in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{preference}.check_checksum:TRUE")]);
    }
    let output = command.output().expect("tshark runs");
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

const WRONG: &str = "_ws.malformed || ip.checksum.status == \"Bad\" || tcp.checksum.status == \"Bad\" || udp.checksum.status == \"Bad\"";

fn kernel_vxlan(name: &str, ours: &str, theirs: &str, bits: u8) {
    let place = folder(name);
    let lab = Lab::new(ours, theirs, bits);
    let gateway = Gateway::start(Some(&lab.gateway), &place, "gateway", &Lab::config(ours, theirs, bits));
    gateway.ports_up();
    let file = place.join("underlay.pcapng");
    let capturing = capture(&lab.peer, "under0", &file);
    lab.host.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", PEER]);
    lab.peer.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", HOST]);
    let bytes: u64 = if full() { 1 << 30 } else { 64 << 20 };
    copy(&lab.host, &lab.peer, PEER, 5001, bytes);
    copy(&lab.peer, &lab.host, HOST, 5002, bytes);
    end(capturing);
    let family = if ours.contains(':') { "ipv6" } else { "ip" };
    let from_us = format!("{family}.src == {ours} && vxlan.vni == 100");
    let carried = dissect(&file, &from_us, &["frame.len"]);
    assert!(carried.len() > 100, "the capture holds our tunnel: {} packets", carried.len());
    let wrong = dissect(&file, &format!("{family}.src == {ours} && ({WRONG})"), &["frame.number"]);
    assert!(wrong.is_empty(), "malformed or with a bad checksum: {wrong:?} of {}", file.display());
    let report = gateway.stats();
    assert!(report.workers.iter().all(|worker| worker.balanced), "every record balances: {report:?}");
    gateway.stop();
    std::fs::remove_dir_all(place).expect("the folder can be removed");
}

#[test]
fn kernel_vxlan_device_is_a_peer_over_ipv4() {
    isolated("kernel_vxlan_device_is_a_peer_over_ipv4", || {
        kernel_vxlan("vxlan4", "192.0.2.1", "192.0.2.2", 24);
    });
}

#[test]
fn kernel_vxlan_device_is_a_peer_over_ipv6() {
    isolated("kernel_vxlan_device_is_a_peer_over_ipv6", || {
        kernel_vxlan("vxlan6", "2001:db8::1", "2001:db8::2", 64);
    });
}

#[test]
fn geneve_between_two_gateways_carries_its_option() {
    isolated("geneve_between_two_gateways_carries_its_option", || {
        let place = folder("geneve");
        let [host, a, b, server] = std::array::from_fn(|_| Namespace::new());
        veth(&host, "eth0", &a, "tenant0");
        veth(&server, "eth0", &b, "tenant0");
        veth(&a, "under0", &b, "under0");
        for (space, ip, mac) in [(&host, HOST, HOST_MAC), (&server, PEER, PEER_MAC)] {
            space.ip(&format!("link set eth0 address {mac}"));
            space.ip(&format!("addr add {ip}/24 dev eth0"));
        }
        a.ip("link set under0 mtu 1600");
        b.ip("link set under0 mtu 1600");
        let (near, far) = ((HOST, HOST_MAC), (PEER, PEER_MAC));
        let one = Gateway::start(
            Some(&a),
            &place,
            "a",
            &config("geneve", ("192.0.2.1", "192.0.2.2", 24), near, far),
        );
        let two = Gateway::start(
            Some(&b),
            &place,
            "b",
            &config("geneve", ("192.0.2.2", "192.0.2.1", 24), far, near),
        );
        one.ports_up();
        two.ports_up();
        let file = place.join("underlay.pcapng");
        let capturing = capture(&b, "under0", &file);
        host.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", PEER]);
        copy(&host, &server, PEER, 5001, 16 << 20);
        copy(&server, &host, HOST, 5002, 16 << 20);
        end(capturing);
        let options = dissect(&file, "geneve && ip.src == 192.0.2.1", &["geneve.option.class", "geneve.vni"]);
        assert!(options.len() > 100, "the capture holds our tunnel: {} packets", options.len());
        assert!(
            options.iter().all(|line| line.to_lowercase().contains("ff54")),
            "every packet carries the option: {:?}",
            options.iter().find(|line| !line.to_lowercase().contains("ff54"))
        );
        let wrong = dissect(&file, WRONG, &["frame.number"]);
        assert!(wrong.is_empty(), "malformed or with a bad checksum: {wrong:?} of {}", file.display());
        one.stop();
        two.stop();
        std::fs::remove_dir_all(place).expect("the folder can be removed");
    });
}
