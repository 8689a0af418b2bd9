//! Several workers that share ports: what one of them hears must help them all.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use tests::gateway::{Gateway, daemon, folder};
use tests::lab::{HOST, HOST_MAC, Lab, PEER, PEER_MAC};
use tests::netns::{Held, Namespace, isolated, skip, veth};
use tests::traffic::copy;

/// A second host of the same tenant, on a port of its own.
const OTHER: &str = "10.0.0.3";
const OTHER_MAC: &str = "02:00:00:00:00:03";

/// Two tenant ports on two workers, and an uplink that both poll, opened as `uplink` says.
fn config(uplink: &str, (ours, theirs, bits): (&str, &str, u8)) -> String {
    format!(
        r#"
[[worker]]
[[worker]]
[[port]]
name = "one"
driver = "af_packet"
interface = "tenant0"
worker = 0
[[port]]
name = "two"
driver = "af_packet"
interface = "tenant1"
worker = 1
[[port]]
name = "uplink"
interface = "under0"
workers = [0, 1]
{uplink}
[[underlay]]
port = "uplink"
addresses = ["{ours}/{bits}"]
[[tenant]]
name = "blue"
vni = 100
attachments = [
    {{ port = "one", sources = [{{ ip = "{HOST}", mac = "{HOST_MAC}" }}] }},
    {{ port = "two", sources = [{{ ip = "{OTHER}", mac = "{OTHER_MAC}" }}] }},
]
remotes = [{{ ip = "{PEER}", mac = "{PEER_MAC}", vtep = "{theirs}" }}]
[[volume]]
name = "zero"
tenant = "blue"
server = "{PEER}:5001"
[[volume]]
name = "one"
tenant = "blue"
server = "{PEER}:5002"
"#
    )
}

/// Both workers ask for the peer's address, and all answers come to one of them: the kernel gives frames
/// without a flow to one socket of a group, or one queue. Both must learn it.
fn both_workers_reach_the_peer(
    name: &str,
    uplink: &str,
    (ours, theirs, bits): (&str, &str, u8),
    prepare: impl FnOnce(&Lab),
) {
    let place = folder(name);
    let lab = Lab::new(ours, theirs, bits);
    prepare(&lab);
    let other = Namespace::new();
    veth(&other, "eth0", &lab.gateway, "tenant1");
    other.ip(&format!("link set eth0 address {OTHER_MAC}"));
    other.ip(&format!("addr add {OTHER}/24 dev eth0"));
    let gateway =
        Gateway::start(Some(&lab.gateway), &place, "gateway", &config(uplink, (ours, theirs, bits)));
    gateway.ports_up();
    for host in [&lab.host, &other] {
        host.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", PEER]);
        // Volume 0 belongs to worker 0 and volume 1 to worker 1, whichever of them gets the frames.
        copy(host, &lab.peer, PEER, 5001, 4 << 20);
        copy(host, &lab.peer, PEER, 5002, 4 << 20);
    }
    copy(&lab.peer, &other, OTHER, 5003, 4 << 20);
    let report = gateway.stats();
    for (number, worker) in report.workers.iter().enumerate() {
        assert!(worker.balanced, "worker {number}: {worker:?}");
        assert!(worker.stages["encapsulate"] > 0, "worker {number} sends into the tunnel: {worker:?}");
        assert!(worker.stages["admit"] > 0, "worker {number} meters its volume: {worker:?}");
        assert!(worker.frames["generated"] > 0, "worker {number} asked or passed on: {worker:?}");
    }
    for volume in &report.volumes {
        assert!(volume.admitted_bytes >= 8 << 20, "{volume:?}");
    }
    gateway.stop();
    std::fs::remove_dir_all(place).expect("the folder can be removed");
}

const FANOUT: &str = "driver = \"af_packet\"\nfanout_group = 7";

#[test]
fn workers_of_one_underlay_share_what_arp_tells_one() {
    isolated("workers_of_one_underlay_share_what_arp_tells_one", || {
        both_workers_reach_the_peer("share4", FANOUT, ("192.0.2.1", "192.0.2.2", 24), |_| ());
    });
}

#[test]
fn workers_of_one_underlay_share_what_neighbour_discovery_tells_one() {
    isolated("workers_of_one_underlay_share_what_neighbour_discovery_tells_one", || {
        both_workers_reach_the_peer("share6", FANOUT, ("2001:db8::1", "2001:db8::2", 64), |_| ());
    });
}

/// Two queues of one interface, a worker each.
#[test]
fn workers_of_one_interface_share_its_queues() {
    const TEST: &str = "workers_of_one_interface_share_its_queues";
    isolated(TEST, || {
        if std::env::var_os("TIDEGATE_TEST_UNSHARED").is_some() {
            return skip(TEST, "AF_XDP needs root outside of user namespaces");
        }
        if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
            return skip(TEST, "a veth has as many queues as the machine has processors: one");
        }
        let queues = |lab: &Lab| {
            for space in [&lab.gateway, &lab.peer] {
                space.output(&["ethtool", "-L", "under0", "rx", "2", "tx", "2"]);
            }
            // AF_XDP takes frames as they are on a wire.
            lab.peer.output(&["ethtool", "-K", "under0", "tx", "off", "tso", "off", "gso", "off"]);
        };
        let path = ("192.0.2.1", "192.0.2.2", 24);
        both_workers_reach_the_peer("queues", "driver = \"af_xdp\"", path, queues);
    });
}

/// The kernel refuses a worker its wait, as one that is too old would: `strace` makes it so. The daemon must
/// not live on with a worker less.
#[test]
fn a_worker_that_dies_takes_the_daemon_with_it() {
    const TEST: &str = "a_worker_that_dies_takes_the_daemon_with_it";
    if !Command::new("strace").args(["-qq", "true"]).output().is_ok_and(|run| run.status.success()) {
        return skip(TEST, "strace (apt-get install strace) may not trace here");
    }
    let place = folder("dying");
    let (config, socket) = (place.join("dying.toml"), place.join("dying.sock"));
    let text = format!(
        "[node]\nname = \"dying\"\ncontrol_socket = \"{}\"\nmetrics = \"off\"\n\
         [frames]\ncount = 1024\njumbo_count = 8\nhugepages = false\n[[worker]]\n[[worker]]\n\
         [[port]]\nname = \"quiet\"\ndriver = \"sink\"\n",
        socket.display()
    );
    std::fs::write(&config, text).expect("the configuration can be written");
    let log = place.join("dying.log");
    let mut process = Held(
        Command::new("strace")
            // The tenth wait of a worker fails; nothing but workers waits this way.
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=epoll_pwait2"])
            .args(["-e", "inject=epoll_pwait2:error=ENOSYS:when=10"])
            .arg(daemon())
            .args(["run", "--config", &config.to_string_lossy()])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a log file"))
            .spawn()
            .expect("strace starts"),
    );
    let status = process.ended("the daemon");
    let log = std::fs::read_to_string(&log).expect("the daemon logs");
    assert_eq!((status.code(), status.signal()), (Some(1), None), "{log}");
    assert!(log.contains("a worker has died: cannot wait for input: "), "{log}");
    let last = log.lines().last().unwrap_or_default();
    let told =
        last.starts_with("tidegate-dataplane: worker ") && last.ends_with("start the data plane again");
    assert!(told, "the last word names the worker: {log}");
    for worker in 0..2 {
        assert!(log.contains(&format!("stopped worker={worker} ")), "worker {worker} ended in order: {log}");
    }
    assert!(!socket.exists(), "its socket is gone");
    std::fs::remove_dir_all(place).expect("the folder can be removed");
}
