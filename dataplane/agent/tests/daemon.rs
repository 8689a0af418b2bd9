//! Two data planes in one process, without any privilege: a generator behind one, a sink behind the other,
//! and a tunnel over UDP sockets on loopback between them.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent::config::LowerError;
use agent::daemon::{self, Daemon, ReloadError, StartError};
use agent::exports::Applied;
use agent::report::{self, Report};
use agent::{config, metrics, table};

/// Nothing that is waited for takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-agent-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One data plane and its file.
struct Gateway {
    path: PathBuf,
    text: String,
    daemon: Daemon,
}

impl Gateway {
    fn start(folder: &Folder, name: &str, text: String) -> Gateway {
        let path = folder.0.join(name);
        std::fs::write(&path, &text).unwrap();
        let daemon = Daemon::start(&path, config::read(&path).unwrap()).unwrap();
        Gateway { path, text, daemon }
    }

    /// Reloads with `from` replaced by `to` in what it started with.
    fn reload(&self, from: &str, to: &str) -> Result<(u64, Applied), ReloadError> {
        assert!(self.text.contains(from), "{from}");
        std::fs::write(&self.path, self.text.replace(from, to)).unwrap();
        self.daemon.reload()
    }

    /// A report, in which every worker's record balances.
    fn report(&self) -> Report {
        let report = report::report(&self.daemon, "", 1000);
        for worker in &report.workers {
            assert!(worker.balanced, "{:?}", worker.frames);
        }
        report
    }

    fn frames(&self, what: &str) -> u64 {
        self.report().workers.iter().map(|worker| worker.frames[what]).sum()
    }

    /// Waits until `count` more frames than now were counted under `what`.
    fn wait_for_more(&self, what: &str, count: u64) {
        let from = self.frames(what);
        self.until(what, || self.frames(what) >= from + count);
    }

    /// Waits until something holds that the node brings about; fails at once if one of its workers dies.
    fn until(&self, what: &str, mut there: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !there() {
            assert!(Instant::now() < end, "waited in vain for {what}");
            let death = self.daemon.node().deaths().recv_timeout(Duration::from_millis(2));
            assert!(death.is_err(), "{what}: {death:?}");
        }
    }
}

/// A UDP port that is free on 127.0.0.1 and 127.0.0.2.
fn free_port() -> u16 {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.2", port)).is_ok() {
            return port;
        }
    }
}

/// The file of one side: `ours` and `theirs` are the last bytes of addresses, below and inside the tunnel.
fn side(udp: u16, ours: u8, theirs: u8, tenant_port: &str) -> String {
    format!(
        r#"
        [node]
        name = "gw-{ours}"
        [frames]
        count = 2048
        jumbo_count = 16
        hugepages = false
        [[port]]
        name = "inner"
        {tenant_port}
        [[port]]
        name = "uplink"
        driver = "udp"
        listen = "127.0.0.{ours}:{udp}"
        [[underlay]]
        port = "uplink"
        addresses = ["127.0.0.{ours}/8"]
        vxlan_port = {udp}
        [[tenant]]
        name = "blue"
        vni = 100
        attachments = [{{ port = "inner", sources = [{{ ip = "10.0.0.{ours}", mac = "02:00:00:00:00:0{ours}" }}] }}]
        remotes = [{{ ip = "10.0.0.{theirs}", mac = "02:00:00:00:00:0{theirs}", vtep = "127.0.0.{theirs}" }}]
        "#
    )
}

const DISK: &str = r#"
        [[volume]]
        name = "disk"
        tenant = "blue"
        server = "10.0.0.2:9"
        bytes = { rate = "100MB/s", burst = { bank = "1GB", fill = "100MB/s" }, peak = "200MB/s" }
        [[group]]
        name = "gold"
"#;

fn pair(folder: &Folder) -> (Gateway, Gateway) {
    let udp = free_port();
    let from = side(udp, 1, 2, "driver = \"generator\"\nrate_pps = 5000\nflows = 3") + DISK;
    let to = side(udp, 2, 1, "driver = \"sink\"");
    let to = Gateway::start(folder, "to.toml", to);
    let from = Gateway::start(folder, "from.toml", from);
    to.wait_for_more("delivered", 100);
    (from, to)
}

#[test]
fn traffic_flows_through_twenty_reloads() {
    let folder = Folder::new();
    let (from, to) = pair(&folder);
    let mut version = from.daemon.running().version;
    for mega in 1..=20_u64 {
        let (now, _) = from.reload("rate = \"100MB/s\"", &format!("rate = \"{mega}MB/s\"")).unwrap();
        assert_eq!(now, version + 1);
        version = now;
        let report = from.report();
        assert_eq!(report.version, version, "a reload returns when every worker runs it");
        assert_eq!(
            report.volumes[0].bytes.work_level.map(|level| level <= mega as i64 * 1_000_000),
            Some(true)
        );
        to.daemon.reload().unwrap();
        to.wait_for_more("delivered", 50);
    }
    let (sent, taken) = (from.report(), to.report());
    assert!(sent.ports.iter().chain(&taken.ports).all(|port| port.state == "up"), "{sent:?} {taken:?}");
    // Nothing that arrived was taken for a stranger's.
    let dropped: Vec<_> = taken.workers.iter().flat_map(|worker| worker.drops.keys()).collect();
    assert!(dropped.is_empty(), "{dropped:?}");
    let disk = &sent.volumes[0];
    assert!(disk.admitted_packets >= 1000 && disk.admitted_bytes > 0, "{disk:?}");
    from.daemon.stop();
    to.daemon.stop();
}

#[test]
fn a_bad_file_is_refused_and_changes_nothing() {
    let folder = Folder::new();
    let (from, to) = pair(&folder);
    let before = from.daemon.running();
    assert!(matches!(from.reload("vni = 100", "vni = "), Err(ReloadError::Read(_))));
    let refused = from.reload("tenant = \"blue\"", "tenant = \"bleu\"").unwrap_err();
    assert!(matches!(refused, ReloadError::Lower { source: LowerError::Unknown { .. }, .. }), "{refused}");
    assert!(refused.to_string().ends_with("no tenant \"bleu\"; did you mean \"blue\"?"), "{refused}");
    let red = "[[tenant]]\nname = \"red\"\nvni = 100\n[[tenant]]";
    let refused = from.reload("[[tenant]]", red).unwrap_err();
    assert!(matches!(refused, ReloadError::Lower { source: LowerError::Table { .. }, .. }), "{refused}");
    let refused = from.reload("name = \"gold\"", "name = \"gold\"\nbytes = 0").unwrap_err();
    assert!(matches!(refused, ReloadError::Lower { source: LowerError::Pool { .. }, .. }), "{refused}");
    std::fs::remove_file(&from.path).unwrap();
    assert!(matches!(from.daemon.reload(), Err(ReloadError::Read(_))));
    let after = from.daemon.running();
    assert_eq!((before.version, from.report().version), (after.version, before.version));
    assert!(std::sync::Arc::ptr_eq(&before.file, &after.file));
    to.wait_for_more("delivered", 50);
}

#[test]
fn what_needs_a_restart_is_refused_by_name() {
    let folder = Folder::new();
    let (from, to) = pair(&folder);
    let before = from.daemon.running().version;
    for (change, to, part) in [
        ("name = \"gw-1\"", "name = \"gw-9\"", "[node]"),
        ("count = 2048", "count = 4096", "[frames]"),
        ("[frames]", "[[worker]]\ncpu = 0\n[frames]", "[[worker]]"),
        ("rate_pps = 5000", "rate_pps = 6000", "[[port]]"),
        ("[frames]", "[trap]\nport = \"inner\"\n[frames]", "[trap]"),
        ("remotes = [{ ip = \"10.0.0.2\"", "remotes = [{ ip = \"10.0.0.9\"", "what a generator sends"),
    ] {
        match from.reload(change, to) {
            Err(ReloadError::Restart { what }) => assert_eq!(what, part),
            other => panic!("{change} -> {to}: {other:?}"),
        }
    }
    let more = "[[underlay]]\nport = \"inner\"\naddresses = [\"192.0.2.1/24\"]\n[[underlay]]";
    let refused = from.reload("[[underlay]]", more).unwrap_err().to_string();
    assert!(refused.starts_with("the set of ports that are underlays differs from what runs"), "{refused}");
    assert_eq!(from.daemon.running().version, before);
    to.wait_for_more("delivered", 50);
}

#[test]
fn a_new_volume_inherits_nothing_from_one_that_went() {
    let folder = Folder::new();
    let (from, _to) = pair(&folder);
    from.wait_for_more("tx", 500);
    let before = from.report().volumes[0].admitted_packets;
    assert!(before >= 500);
    from.reload("name = \"disk\"", "name = \"other\"").unwrap();
    let report = from.report();
    assert_eq!((report.volumes.len(), report.volumes[0].name.as_str()), (1, "other"));
    assert!(report.volumes[0].admitted_packets < before, "{:?}", report.volumes[0]);
    from.until("the new volume to pay", || from.report().volumes[0].admitted_packets > 50);
    // The same name again is a new volume too, once it was gone.
    from.reload("name = \"disk\"", "name = \"disk\"").unwrap();
    assert_eq!(from.report().volumes[0].name, "disk");
    let none = report::report(&from.daemon, "other", 10);
    assert_eq!((none.volumes.len(), none.volumes_total), (0, 1));
}

#[test]
fn a_refresh_brings_the_ports_mtu_into_the_tables() {
    let folder = Folder::new();
    let (from, to) = pair(&folder);
    let version = from.daemon.running().version;
    assert_eq!(from.daemon.refresh().unwrap(), version + 1);
    to.wait_for_more("delivered", 50);
}

#[test]
fn metrics_hold_every_family_and_the_table_every_name() {
    let folder = Folder::new();
    let (from, _to) = pair(&folder);
    let before = from.report();
    from.wait_for_more("tx", 50);
    let now = from.report();
    let text = metrics::text(&now).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for family in [
        "snapshot_version gauge",
        "volumes gauge",
        "frames counter",
        "frames_held gauge",
        "drops counter",
        "stage_frames counter",
        "idle_events counter",
        "time_seconds counter",
        "port_up gauge",
        "port_held_frames gauge",
        "port_events counter",
        "volume_admitted_bytes counter",
        "volume_admitted_packets counter",
        "volume_events counter",
        "volume_parked_frames gauge",
        "volume_burst_credits gauge",
    ] {
        assert!(
            text.contains(&format!("# TYPE tidegate_dataplane_{family}\n")),
            "{family} is missing: {text}"
        );
    }
    for sample in [
        format!("tidegate_dataplane_snapshot_version {}", now.version),
        format!(
            "tidegate_dataplane_frames_total{{worker=\"0\",event=\"rx\"}} {}",
            now.workers[0].frames["rx"]
        ),
        "tidegate_dataplane_port_up{port=\"uplink\"} 1".to_owned(),
        format!(
            "tidegate_dataplane_volume_admitted_bytes_total{{volume=\"disk\"}} {}",
            now.volumes[0].admitted_bytes
        ),
    ] {
        assert!(text.contains(&format!("{sample}\n")), "{sample} is missing: {text}");
    }
    let table = table::draw(&now, &before);
    for word in ["gw-1", "WORKER", "PORT", "VOLUME", "inner", "uplink", "disk", "100.0%", "200M"] {
        assert!(table.contains(word), "{word} is missing: {table}");
    }
    let json = serde_json::to_string(&now).unwrap();
    let back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
}

#[test]
fn a_port_that_cannot_be_opened_is_shown_with_the_reason() {
    let folder = Folder::new();
    let text = "[frames]\ncount = 512\njumbo_count = 8\n[[port]]\nname = \"gone\"\ndriver = \"pcap\"\n\
                replay = \"/nonexistent.pcap\"\n";
    let gateway = Gateway::start(&folder, "down.toml", text.to_owned());
    let why = || gateway.report().ports[0].why.clone().unwrap_or_default();
    gateway.until("the reason", || why().contains("/nonexistent.pcap"));
    let report = gateway.report();
    assert_eq!(report.ports[0].state, "down");
    assert!(table::draw(&report, &report).contains("/nonexistent.pcap"));
    assert!(metrics::text(&report).unwrap().contains("tidegate_dataplane_port_up{port=\"gone\"} 0\n"));
}

#[test]
fn check_counts_and_a_wrong_plan_is_refused() {
    let folder = Folder::new();
    let path = folder.0.join("check.toml");
    std::fs::write(&path, side(4789, 1, 2, "driver = \"generator\"") + DISK).unwrap();
    let counts = daemon::check(&path).unwrap().counts;
    let expected =
        [("worker", 1), ("port", 2), ("tenant", 1), ("rule", 0), ("volume", 1), ("group", 1), ("export", 0)];
    assert_eq!(counts, expected);
    std::fs::write(&path, "[[worker]]\n".repeat(65)).unwrap();
    let error = daemon::check(&path).unwrap_err();
    assert!(matches!(error, StartError::Plan(_)), "{error}");
    std::fs::write(&path, "[node]\nmetrics = \"1.2.3.4:1\"").unwrap();
    assert!(matches!(daemon::check(&path), Err(StartError::Lower { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(daemon::check(&path), Err(StartError::Read(_))));
}

#[test]
fn an_export_shows_in_the_report_the_table_and_the_metrics() {
    let folder = Folder::new();
    let text = format!(
        "[node]\nmetrics = \"off\"\n[frames]\ncount = 1024\njumbo_count = 8\nhugepages = false\n\
         [serve]\nmemory = \"64MiB\"\nhugepages = false\n\
         [[export]]\nname = \"disk\"\nmedium = \"memory\"\nsize = \"1MiB\"\n\
         operations = {{ burst = {{ bank = 100, fill = 10 }} }}\n\
         [[export]]\nname = \"files\"\nmedium = \"file\"\ndirectory = \"{}\"\ncreate = true\nsize = \"1GiB\"\n",
        folder.0.join("files").display()
    );
    let node = Gateway::start(&folder, "serve.toml", text.clone());
    let report = node.report();
    let names: Vec<&str> = report.exports.iter().map(|export| export.name.as_str()).collect();
    assert_eq!(names, ["disk", "files"]);
    assert_eq!(report.exports[0].operations.burst_level, Some(100));
    assert!(table::draw(&report, &report).contains("files"));
    let metrics = metrics::text(&report).unwrap();
    assert!(
        metrics.contains("tidegate_dataplane_export_burst_credits{export=\"disk\",unit=\"operations\"} 100")
    );
    node.reload("bank = 100", "bank = 50").unwrap();
    node.until("the new bank", || node.report().exports[0].operations.burst_cap == Some(50));
    let refused = node.reload("size = \"1MiB\"", "size = \"2MiB\"").unwrap_err();
    assert!(matches!(refused, ReloadError::Exports(_)), "{refused}");
    node.daemon.stop();
    // The file volume opens again, and one that was never made is told.
    let again = Gateway::start(&folder, "serve.toml", text.replace("create = true\nsize = \"1GiB\"", ""));
    assert_eq!(again.report().exports.len(), 2);
    again.daemon.stop();
    let without = Gateway::start(
        &folder,
        "missing.toml",
        text.replace("/files", "/nowhere").replace("create = true", ""),
    );
    let report = without.report();
    assert_eq!(report.exports.len(), 1, "the other one is served");
    let missing = &report.left_out[0];
    assert!(missing.name == "files" && missing.why.contains("volume create"), "{missing:?}");
    assert!(table::draw(&report, &report).contains("not served"));
    assert!(metrics::text(&report).unwrap().contains("tidegate_dataplane_export_up{export=\"files\"} 0"));
    without.daemon.stop();
}
