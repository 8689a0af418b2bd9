//! Either side dies, comes back, or stays away; volumes are served all the time by somebody.

use serde_json::Value;

use crate::cluster::Cluster;

/// A block that nobody else writes.
fn block(mark: u8) -> Vec<u8> {
    (0..4096).map(|at: u32| (at as u8).wrapping_mul(31) ^ mark).collect()
}

#[test]
fn a_data_plane_serves_its_last_snapshot_without_control_plane_also_after_its_own_restart() {
    let mut cluster = Cluster::start("last-snapshot", 1);
    cluster.volume("disk", "one");
    let mut client = cluster.client(0, "disk").expect("it is served");
    client.write(8192, &block(1)).expect("it takes writes");
    client.flush().expect("it flushes");
    cluster.kill_controlplane();
    client.write(12288, &block(2)).expect("it serves on");
    client.flush().expect("it flushes");
    cluster.kill_node(0);
    cluster.start_node(0);
    cluster.until("the volume is served again", |cluster| cluster.client(0, "disk").is_ok());
    let mut client = cluster.client(0, "disk").expect("it is served");
    let mut read = vec![0; 8192];
    client.read(8192, &mut read).expect("it reads");
    assert_eq!(read, [block(1), block(2)].concat());
    // A control plane that comes back finds everything as it was, and drives the node again.
    cluster.start_controlplane();
    cluster.until("the node is alive", |cluster| cluster.alive() == 1);
    let volume = cluster.tidegate(&["volume", "get", "disk"]);
    assert_eq!(volume["state"], "serving");
    client.write(0, &block(3)).expect("the same connection goes on");
    cluster.volume("another", "one");
    assert!(cluster.client(0, "another").is_ok());
}

/// The file that is read first when a volume is opened is a pipe that nobody writes to.
#[test]
fn a_node_whose_volume_takes_long_to_open_is_alive_all_the_time() {
    let mut cluster = Cluster::start("slow-open", 1);
    cluster.volume("disk", "one");
    cluster.kill_node(0);
    let (file, aside) = (cluster.folder.join("volumes/volume-1/superblock"), cluster.folder.join("aside"));
    std::fs::rename(&file, &aside).expect("it is there");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("coreutils").success());
    cluster.start_node(0);
    let heard = |cluster: &Cluster| cluster.tidegate(&["node", "get", "one"])["state"] == "alive";
    let losses = |cluster: &Cluster| {
        let log = std::fs::read_to_string(cluster.folder.join("controlplane.log")).expect("a log");
        log.matches("is lost").count()
    };
    cluster.until("it is heard", heard);
    let before = losses(&cluster);
    // Twice as long as it takes to be lost.
    let began = std::time::Instant::now();
    cluster.until("time has passed", |cluster| {
        assert!(heard(cluster), "{:?} after it was heard", began.elapsed());
        began.elapsed() > std::time::Duration::from_secs(3)
    });
    assert!(cluster.client(0, "disk").is_err(), "it is being opened still");
    let pipe = cluster.folder.join("pipe");
    std::fs::rename(&file, &pipe).expect("it is there");
    std::fs::rename(&aside, &file).expect("it is there");
    // Whoever reads it finds its end, and tries again.
    drop(std::fs::File::options().write(true).open(&pipe).expect("somebody reads it"));
    cluster.until("it is served", |cluster| cluster.client(0, "disk").is_ok());
    assert_eq!(losses(&cluster), before);
}

#[test]
fn a_lost_heads_volume_is_served_by_another_with_what_was_flushed() {
    let mut cluster = Cluster::start("failover", 2);
    cluster.volume("disk", "one");
    let epoch = |volume: &Value| volume["head"]["epoch"].as_u64().expect("it has a head");
    let before = epoch(&cluster.tidegate(&["volume", "get", "disk"]));
    let mut client = cluster.client(0, "disk").expect("it is served");
    for mark in 0..32 {
        client.write(u64::from(mark) * 4096, &block(mark)).expect("it takes writes");
    }
    client.flush().expect("it flushes");
    cluster.kill_node(0);
    let began = std::time::Instant::now();
    cluster.until("the other one serves it", |cluster| {
        cluster.client(1, "disk").is_ok_and(|mut client| client.read(0, &mut [0; 4096]).is_ok())
    });
    println!("served by the other node {} ms after kill -9", began.elapsed().as_millis());
    let mut client = cluster.client(1, "disk").expect("it is served");
    let mut read = vec![0; 4096];
    for mark in 0..32 {
        client.read(u64::from(mark) * 4096, &mut read).expect("it reads");
        assert_eq!(read, block(mark), "block {mark}");
    }
    let after = cluster.tidegate(&["volume", "get", "disk"]);
    assert_eq!(epoch(&after), before + 1);
    // The old head comes back without knowing: what it would open was granted to another.
    cluster.start_node(0);
    cluster.until("both are alive", |cluster| cluster.alive() == 2);
    client.write(0, &block(99)).expect("the new head is not fenced by the old one");
    client.flush().expect("it flushes");
    assert_eq!(epoch(&cluster.tidegate(&["volume", "get", "disk"])), before + 1);
}

#[test]
fn what_is_asked_twice_is_done_once_and_what_cannot_be_is_told() {
    let cluster = Cluster::start("requests", 1);
    cluster.volume("disk", "one");
    let (code, said) = cluster
        .try_tidegate(&["volume", "create", "disk", "--size", "1GiB", "--tenant", "blue"])
        .expect_err("the name is taken");
    assert_eq!(code, 4, "{said}");
    let (code, said) = cluster.try_tidegate(&["volume", "get", "nothing"]).expect_err("there is none");
    assert_eq!(code, 3, "{said}");
    let revision = cluster.tidegate(&["volume", "get", "disk"])["revision"].as_u64().expect("it has one");
    let stale = (revision - 1).to_string();
    let (code, said) = cluster
        .try_tidegate(&["volume", "limit", "disk", "--iops", "500", "--expect", &stale])
        .expect_err("it was changed since");
    assert_eq!(code, 4, "{said}");
    cluster.tidegate(&["volume", "limit", "disk", "--iops", "500", "--expect", &revision.to_string()]);
    cluster.tidegate(&["volume", "resize", "disk", "--size", "512MiB", "--wait"]);
    cluster.tidegate(&["volume", "scrub", "disk", "--wait"]);
    let why = cluster.tidegate(&["explain", "volume/1"]);
    assert!(why["state"].as_str().expect("a sentence").contains("served by node/1"), "{why}");
    cluster.tidegate(&["volume", "delete", "disk", "--wipe", "--wait"]);
    assert!(
        cluster.client(0, "disk").is_err_and(|_| true)
            || cluster.try_tidegate(&["volume", "get", "disk"]).is_err()
    );
    let left = std::fs::read_dir(cluster.folder.join("volumes")).expect("the pool").count();
    assert_eq!(left, 0, "its files are gone");
    let audit = std::fs::read_to_string(cluster.folder.join("controlplane/audit.log")).expect("an audit log");
    assert!(audit.contains("volume_create") && audit.contains("refused"), "{audit}");
}
