//! The pipeline split over workers: one receives from the tenant, another one meters, encapsulates and
//! sends, and the rings between them carry every frame.

use tests::gateway::{Gateway, folder, frames, full};
use tests::lab::{HOST, HOST_MAC, Lab, PEER, PEER_MAC};
use tests::netns::isolated;
use tests::traffic::copy;

/// `workers` workers; the tenant's port is polled by the first and the uplink by the last of them. What
/// goes to the peer pays twice: its volume, and the node.
fn config(workers: usize) -> String {
    let last = workers - 1;
    let workers = "[[worker]]\n".repeat(workers);
    format!(
        r#"
{workers}
[[port]]
name = "tenant"
driver = "af_packet"
interface = "tenant0"
worker = 0
[[port]]
name = "uplink"
driver = "af_packet"
interface = "under0"
worker = {last}
[[underlay]]
port = "uplink"
addresses = ["192.0.2.1/24"]
[[tenant]]
name = "blue"
vni = 100
attachments = [{{ port = "tenant", sources = [{{ ip = "{HOST}", mac = "{HOST_MAC}" }}] }}]
remotes = [{{ ip = "{PEER}", mac = "{PEER_MAC}", vtep = "192.0.2.2" }}]
[[volume]]
name = "disk"
tenant = "blue"
server = "{PEER}:5001"
bytes = {{ rate = "1GB/s" }}
[throttle]
bytes = "2GB/s"
"#
    )
}

/// Carries real traffic through `workers` workers and checks that each stage ran where it should.
fn split_over(workers: usize, name: &str) -> String {
    let place = folder(name);
    let lab = Lab::new("192.0.2.1", "192.0.2.2", 24);
    let gateway = Gateway::start(Some(&lab.gateway), &place, "gateway", &config(workers));
    gateway.ports_up();
    lab.host.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", PEER]);
    lab.peer.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", HOST]);
    let bytes: u64 = if full() { 1 << 30 } else { 16 << 20 };
    copy(&lab.host, &lab.peer, PEER, 5001, bytes);
    copy(&lab.peer, &lab.host, HOST, 5002, bytes);
    let report = gateway.stats();
    assert_eq!(report.workers.len(), workers);
    for (number, worker) in report.workers.iter().enumerate() {
        assert!(worker.balanced, "worker {number}: {worker:?}");
    }
    let (first, last) = (&report.workers[0], &report.workers[workers - 1]);
    assert!(first.stages["classify"] > 0 && first.stages["deliver"] > 0, "{first:?}");
    assert_eq!((first.stages["admit"], first.stages["encapsulate"]), (0, 0), "{first:?}");
    assert!(last.stages["decapsulate"] > 0 && last.stages["encapsulate"] > 0, "{last:?}");
    assert!(last.stages["admit"] > 0 && last.stages["classify"] == 0, "{last:?}");
    assert!(report.volumes[0].admitted_bytes >= bytes, "{:?}", report.volumes);
    // What the workers handed each other counts once as sent and once as received.
    assert!(frames(&report, "rx") > 0 && frames(&report, "in_flight") == 0, "{report:?}");
    gateway.stop();
    let log = std::fs::read_to_string(place.join("gateway.log")).expect("the daemon logs");
    std::fs::remove_dir_all(place).expect("the folder can be removed");
    if workers > cpus() {
        let idle = report.workers.iter().map(|worker| worker.time["pausing_ns"]).sum::<u64>();
        assert_eq!(idle, 0, "nobody stays awake without work: {:?}", report.workers);
    }
    log
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn two_workers_carry_real_traffic_through_their_rings() {
    isolated("two_workers_carry_real_traffic_through_their_rings", || {
        let log = split_over(2, "split");
        assert!(cpus() < 2 || !log.contains("share"), "there is a processor for each: {log}");
    });
}

#[test]
fn more_workers_than_processors_do_not_spin_and_say_so() {
    isolated("more_workers_than_processors_do_not_spin_and_say_so", || {
        let workers = cpus() + 1;
        let log = split_over(workers, "crowd");
        let said = format!("{workers} workers share {} processors: none of them spins", cpus());
        assert!(log.contains(&said), "{log}");
    });
}
