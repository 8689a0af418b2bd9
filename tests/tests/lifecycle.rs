//! Reloads under load, and sudden death.

use std::time::Instant;

use tests::gateway::{Gateway, drops, folder, frames, full};
use tests::netns::{Namespace, isolated, skip, until, veth};

fn side(generator: bool, ours: &str, theirs: &str, ports: (u16, u16), extra: &str) -> String {
    let tenant = if generator {
        "driver = \"generator\"\nframe_bytes = 600\nflows = 64\nrate_pps = 5000"
    } else {
        "driver = \"sink\""
    };
    let (local, remote) = if generator { (1, 2) } else { (2, 1) };
    format!(
        r#"
[[port]]
name = "tenant"
{tenant}
[[port]]
name = "uplink"
driver = "udp"
listen = "{ours}:{port}"
[[underlay]]
port = "uplink"
addresses = ["{ours}/8"]
[[tenant]]
name = "blue"
vni = 100
attachments = [{{ port = "tenant", sources = [{{ ip = "10.0.0.{local}", mac = "02:00:00:00:00:0{local}" }}] }}]
remotes = [{{ ip = "10.0.0.{remote}", mac = "02:00:00:00:00:0{remote}", vtep = "{theirs}:{their_port}" }}]
{extra}"#,
        port = ports.0,
        their_port = ports.1,
    )
}

/// A further rule and a volume whose limit differs each time: tables and limits both change.
fn extra(round: u32) -> String {
    format!(
        "[[rule]]\ntenant = \"blue\"\nto = \"10.0.9.{}/32\"\naction = \"drop\"\n\
         [[volume]]\nname = \"v\"\ntenant = \"blue\"\nserver = \"10.0.0.2:9\"\nbytes = {{ rate = \"{}MB/s\" }}\n",
        round % 250 + 1,
        100 + round % 7,
    )
}

#[test]
fn reloads_under_load_lose_nothing() {
    let place = folder("reload");
    let ports = (34_789, 34_790);
    let sink = side(false, "127.0.0.2", "127.0.0.1", (ports.1, ports.0), "");
    let sink = Gateway::start(None, &place, "sink", &sink);
    let source_config = |round| side(true, "127.0.0.1", "127.0.0.2", ports, &extra(round));
    let source = Gateway::start(None, &place, "source", &source_config(0));
    source.ports_up();
    sink.ports_up();
    sink.until("traffic flows", || frames(&sink.stats(), "delivered") > 1000);
    // The generator may have begun before the uplink was open.
    let early = drops(&source.stats(), "port_down");
    let reloads = if full() { 1000 } else { 50 };
    for round in 1..=reloads {
        source.rewrite("source", &source_config(round));
        source.reload().expect("a right file is taken");
        let report = source.stats();
        assert!(report.workers.iter().all(|worker| worker.balanced), "round {round}: {report:?}");
    }
    source.rewrite("source", "[[tenant]]\nname = 3\n");
    source.reload().expect_err("a wrong file is refused");
    let before = frames(&source.stats(), "tx");
    source.until("traffic still flows", || frames(&source.stats(), "tx") > before);
    let sent = {
        // Once the source has gone, what it sent is final.
        let report = source.stats();
        assert_eq!(frames(&report, "dropped"), early, "nothing was dropped: {:?}", report.workers);
        frames(&report, "tx")
    };
    source.stop();
    sink.until("everything arrived", || frames(&sink.stats(), "delivered") >= sent);
    let report = sink.stats();
    assert_eq!(frames(&report, "dropped"), 0, "nothing was misdirected: {:?}", report.workers);
    assert_eq!(drops(&report, "unknown_vni"), 0);
    assert_eq!(report.ports.iter().map(|port| port.counters["rx_kernel_drops"]).sum::<u64>(), 0);
    sink.stop();
    std::fs::remove_dir_all(place).expect("the folder can be removed");
}

#[test]
fn a_killed_daemon_is_replaced_by_the_next() {
    let place = folder("killed");
    let config = side(true, "127.0.0.1", "127.0.0.3", (34_791, 34_792), "");
    let mut first = Gateway::start(None, &place, "first", &config);
    first.ports_up();
    first.process.0.kill().expect("it can be killed");
    first.process.0.wait().expect("it is our child");
    assert!(first.socket.exists(), "kill -9 leaves the socket file");
    std::fs::remove_file(&first.config).expect("it was written");
    let second = Gateway::start(None, &place, "first", &config);
    second.ports_up();
    second.until("traffic flows again", || frames(&second.stats(), "tx") > 0);
    second.stop();
    std::fs::remove_dir_all(place).expect("the folder can be removed");
}

const ON_XDP: &str = r#"
[frames]
count = 4096
jumbo_count = 8
hugepages = true
[[port]]
name = "tenant"
driver = "generator"
frame_bytes = 600
rate_pps = 5000
[[port]]
name = "uplink"
driver = "af_xdp"
interface = "under0"
[[underlay]]
port = "uplink"
addresses = ["192.0.2.1/24"]
[[tenant]]
name = "blue"
vni = 100
attachments = [{ port = "tenant", sources = [{ ip = "10.0.0.1", mac = "02:00:00:00:00:01" }] }]
remotes = [{ ip = "10.0.0.2", mac = "02:00:00:00:00:02", vtep = "192.0.2.2" }]
"#;

/// A gateway on AF_XDP, once what it sends is answered for: the peer is an ordinary host.
fn on_xdp(space: &Namespace, place: &std::path::Path) -> Gateway {
    let gateway = Gateway::start(Some(space), place, "xdp", ON_XDP);
    gateway.ports_up();
    gateway.until("frames leave", || frames(&gateway.stats(), "tx") > 100);
    gateway
}

fn kill(mut gateway: Gateway) {
    gateway.process.0.kill().expect("it can be killed");
    gateway.process.0.wait().expect("it is our child");
}

/// The number behind a name in a file of /proc.
fn number(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).expect("the kernel has it");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel counts it");
    line.trim_start_matches(':').split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn a_killed_daemon_leaves_no_program_queue_hugepage_or_namespace() {
    let name = "a_killed_daemon_leaves_no_program_queue_hugepage_or_namespace";
    let users = std::fs::read_to_string("/proc/self/uid_map").expect("the kernel has it");
    if !rustix::process::geteuid().is_root() || !users.split_whitespace().eq(["0", "0", "4294967295"]) {
        return skip(name, "AF_XDP needs root of the initial user namespace");
    }
    isolated(name, || {
        let place = folder("killed-xdp");
        let (ours, peer) = (Namespace::new(), Namespace::new());
        veth(&ours, "under0", &peer, "under0");
        peer.ip("addr add 192.0.2.2/24 dev under0");
        let first = on_xdp(&ours, &place);
        assert!(ours.ip("link show under0").contains("xdp"), "the program is attached");
        let status = format!("/proc/{}/status", first.process.0.id());
        let held = number(&status, "HugetlbPages") / number("/proc/meminfo", "Hugepagesize");
        let free = || number("/proc/meminfo", "HugePages_Free");
        let (free_before, killed) = (free(), Instant::now());
        kill(first);
        let second = on_xdp(&ours, &place);
        println!("{held} hugepages; the next one sends after {} ms", killed.elapsed().as_millis());
        kill(second);
        until("the program is gone", || !ours.ip("link show under0").contains("xdp"));
        until("the hugepages are free", || free() >= free_before + held);
        // Once nobody is in it, the kernel removes a namespace, and with it both ends of its pairs.
        drop(ours);
        until("the namespace is gone", || !peer.ip("link").contains("under0"));
        std::fs::remove_dir_all(place).expect("the folder can be removed");
    });
}
