//! Many volumes, of which half lose their head at once, while more are asked for and the control plane is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::gateway::full;

use crate::cluster::Cluster;

/// Volumes that are there before.
const VOLUMES: usize = 50;
/// Volumes that are asked for in the storm.
const MORE: usize = 40;

/// Longest time that an answer may take, measured around a whole run of the command line. In the short form other tests
/// and the compiler of policies run beside it, so that it shows only that no answer waits for the storm to end.
fn patience() -> Duration {
    Duration::from_millis(if full() { 200 } else { 10_000 })
}

/// Names of the volumes that are served.
fn serving(cluster: &Cluster) -> Vec<String> {
    let volumes = cluster.tidegate(&["volume", "list"]);
    let volumes = volumes.as_array().expect("a list").iter().filter(|one| one["state"] == "serving");
    volumes.map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

/// Asks for a volume; how long the answer took.
fn create(cluster: &Cluster, name: &str) -> Duration {
    let began = Instant::now();
    cluster.tidegate(&["volume", "create", name, "--size", "16MiB", "--tenant", "blue"]);
    began.elapsed()
}

#[test]
fn a_storm_delays_no_answer_and_nothing_of_it_runs_twice_or_is_lost() {
    let mut cluster = Cluster::start("storm", 2);
    let mut answers: Vec<Duration> =
        (0..VOLUMES).map(|number| create(&cluster, &format!("before-{number}"))).collect();
    cluster.until("all are served", |cluster| serving(cluster).len() == VOLUMES);
    let began = Instant::now();
    cluster.kill_node(0);
    for number in 0..MORE {
        answers.push(create(&cluster, &format!("storm-{number}")));
        if number == MORE / 2 {
            let lost = cluster.names[0].clone();
            cluster.until("the heads are found to be lost", |cluster| {
                cluster.tidegate(&["node", "get", &lost])["state"] == "lost"
            });
            cluster.kill_controlplane();
            cluster.start_controlplane();
        }
    }
    cluster.until("those of before are served again", |cluster| {
        serving(cluster).iter().filter(|name| name.starts_with("before-")).count() == VOLUMES
    });
    println!("{VOLUMES} volumes served {} ms after the loss", began.elapsed().as_millis());
    cluster.until("all are served", |cluster| serving(cluster).len() == VOLUMES + MORE);
    let last = *answers.iter().max().expect("some");
    answers.sort();
    println!("answers: p50 {:?}, longest {last:?}", answers[answers.len() / 2]);
    assert!(last < patience(), "{last:?}");
    ran_once(&cluster);
    for number in 0..MORE {
        assert!(cluster.client(1, &format!("storm-{number}")).is_ok());
    }
    let log = std::fs::read_to_string(cluster.folder.join("controlplane.log")).expect("a log");
    assert_eq!(log.matches("node/2 is lost").count(), 0, "the one that lived was heard all the time");
}

/// Compares what was asked for, what became of it, and what the nodes did.
fn ran_once(cluster: &Cluster) {
    let mut begun = BTreeSet::new();
    for name in &cluster.names {
        let log = std::fs::read_to_string(cluster.folder.join(format!("{name}.log"))).expect("a log");
        for line in log.lines().filter(|line| line.contains(" begun key=")) {
            let key = line.split("key=").nth(1).and_then(|rest| rest.split(" step=").next()).expect("a key");
            assert!(begun.insert(key.to_owned()), "{key} was begun twice");
        }
    }
    assert!(begun.len() >= VOLUMES, "{begun:?}");
    let operations = cluster.tidegate(&["operation", "list", "--all"]);
    let operations = operations.as_array().expect("a list");
    let of = |operation: &Value| operation["volume"].to_string();
    let creations: BTreeMap<String, &Value> = operations
        .iter()
        .filter(|operation| operation["work"].to_string().contains("create"))
        .map(|operation| (of(operation), operation))
        .collect();
    assert_eq!(creations.len(), VOLUMES + MORE, "one for each volume");
    assert!(creations.values().all(|operation| operation["phase"] == "done"), "{creations:?}");
    let audit = std::fs::read_to_string(cluster.folder.join("controlplane/audit.log")).expect("an audit log");
    let asked = audit.lines().filter(|line| line.contains("volume_create")).count();
    assert_eq!(asked, VOLUMES + MORE, "each was asked for once");
}
