//! Ports with something in between: faults from a seed, and a record of what passes.

use std::path::Path;
use std::process::Command;

use agent::report::Report;
use tests::gateway::{Gateway, folder};
use tests::lab::{HOST, HOST_MAC, Lab, PEER, PEER_MAC};
use tests::netns::isolated;
use tests::traffic::{WRONG, copy, dissect};

const OURS: &str = "192.0.2.1";

/// A gateway whose tenant port and uplink have these keys besides.
fn config(tenant: &str, uplink: &str) -> String {
    format!(
        r#"
[[port]]
name = "tenant"
driver = "af_packet"
interface = "tenant0"
{tenant}
[[port]]
name = "uplink"
driver = "af_packet"
interface = "under0"
{uplink}
[[underlay]]
port = "uplink"
addresses = ["{OURS}/24"]
[[tenant]]
name = "blue"
vni = 100
attachments = [{{ port = "tenant", sources = [{{ ip = "{HOST}", mac = "{HOST_MAC}" }}] }}]
remotes = [{{ ip = "{PEER}", mac = "{PEER_MAC}", vtep = "192.0.2.2" }}]
"#
    )
}

/// A counter of the uplink.
fn uplink(report: &Report, key: &str) -> u64 {
    report.ports[1].counters[key]
}

/// Frames that the worker gave to the uplink and took from it.
fn passed(report: &Report) -> (u64, u64) {
    let worker = &report.workers[0].frames;
    (worker["tx"], worker["rx"] - report.ports[0].counters["rx_frames"])
}

/// Every frame that the worker saw at the uplink, or that the uplink saw at the wire, is accounted for.
fn adds_up(report: &Report) -> bool {
    let (sent, received) = passed(report);
    let came = sent + uplink(report, "rx_frames") + uplink(report, "faults_doubled");
    let went = received + uplink(report, "tx_frames") + uplink(report, "faults_lost");
    report.workers[0].balanced && came == went + uplink(report, "held")
}

/// Packets of a capture file, as `capinfos` counts them.
fn packets(file: &Path) -> u64 {
    let output = Command::new("capinfos").args(["-T", "-r", "-M", "-c"]).arg(file).output();
    let output = output.expect("capinfos (wireshark-common) runs");
    assert!(output.status.success(), "capinfos: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let count = text.split_whitespace().last().and_then(|word| word.parse().ok());
    count.unwrap_or_else(|| panic!("a number of packets: {text}"))
}

/// TCP mends what a lossy uplink does to it, and every fault is counted; what the worker sent and received
/// is in the record to the last frame.
#[test]
fn tcp_survives_a_faulty_underlay_and_every_fault_is_counted() {
    isolated("tcp_survives_a_faulty_underlay_and_every_fault_is_counted", || {
        let place = folder("faults");
        let file = place.join("uplink.pcap");
        let lab = Lab::new(OURS, "192.0.2.2", 24);
        let keys = format!(
            "faults = {{ seed = 7, loss = 0.01, duplicate = 0.01, reorder = 0.01, corrupt = 0.01, delay = 0.01, \
             delay_by = \"500us\" }}\nrecord = {{ file = \"{}\" }}",
            file.display()
        );
        let gateway = Gateway::start(Some(&lab.gateway), &place, "gateway", &config("", &keys));
        gateway.ports_up();
        copy(&lab.host, &lab.peer, PEER, 5001, 8 << 20);
        copy(&lab.peer, &lab.host, HOST, 5002, 8 << 20);
        let mut last = gateway.stats();
        gateway.until("every frame is accounted for", || {
            last = gateway.stats();
            adds_up(&last)
        });
        // A hundred of a few thousand frames each, give or take the dice.
        for fault in ["faults_lost", "faults_doubled", "faults_corrupted", "faults_delayed"] {
            assert!(uplink(&last, fault) > 20, "{fault}: {:?}", last.ports[1]);
        }
        assert_eq!(last.ports[0].counters["faults_lost"], 0, "only the uplink is faulty");
        gateway.stop();
        let (sent, received) = passed(&last);
        // Late retransmissions may have passed since.
        assert!(packets(&file) >= sent + received, "{} of {sent} and {received}", packets(&file));
        let from_us = dissect(
            &file,
            &format!("ip.src == {OURS} && vxlan.vni == 100"),
            &["frame.number", "_ws.expert.message"],
        );
        assert!(from_us.len() as u64 <= packets(&file) && from_us.len() > 1000, "{}", from_us.len());
        let wrong = dissect(
            &file,
            &format!("ip.src == {OURS} && ({WRONG})"),
            &["frame.number", "_ws.expert.message"],
        );
        assert!(wrong.is_empty(), "what we send is right until the faults get it: {wrong:?}");
        std::fs::remove_dir_all(place).expect("the folder can be removed");
    });
}

/// A record ends at its limit, says so, and traffic goes on.
#[test]
fn a_record_ends_at_its_limit_and_traffic_goes_on() {
    isolated("a_record_ends_at_its_limit_and_traffic_goes_on", || {
        const LIMIT: u64 = 100_000;
        let place = folder("record");
        let file = place.join("tenant.pcap");
        let lab = Lab::new(OURS, "192.0.2.2", 24);
        let keys = format!("record = {{ file = \"{}\", limit = {LIMIT} }}", file.display());
        let gateway = Gateway::start(Some(&lab.gateway), &place, "gateway", &config(&keys, ""));
        gateway.ports_up();
        lab.host.output(&["ping", "-c", "1", "-W", "10", PEER]);
        copy(&lab.host, &lab.peer, PEER, 5001, 4 << 20);
        let report = gateway.stats();
        assert!(report.workers[0].balanced, "{report:?}");
        gateway.stop();
        let bytes = std::fs::metadata(&file).expect("the record").len();
        assert!(bytes <= LIMIT && bytes > 1000, "{bytes}");
        assert!(packets(&file) > 3);
        let pings = dissect(&file, "icmp.type == 8 || icmp.type == 0", &["icmp.type"]);
        assert_eq!(pings, ["8", "0"], "the request and its answer, as the tenant saw them");
        let log = std::fs::read_to_string(place.join("gateway.log")).expect("the daemon logs");
        assert!(log.contains("the file has reached its limit"), "{log}");
        std::fs::remove_dir_all(place).expect("the folder can be removed");
    });
}
