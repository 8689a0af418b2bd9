//! The leasing policy is swapped while a volume carries verified load and leases are decided on.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bench::load::{self, Spec};

use crate::cluster::Cluster;

const POLICIES: [&str; 2] = ["leasing-pack-tight", "leasing-capacity-weighted"];

#[test]
fn a_leasing_policy_is_swapped_under_load_without_a_failed_io_or_decision() {
    let mut cluster = Cluster::start("swap", 2);
    cluster.volume("disk", "one");
    cluster.until("the shipped policies are ready", |cluster| {
        let policies = cluster.tidegate(&["policy", "list"]);
        policies["library"].as_array().is_some_and(|all| all.len() >= 6)
    });
    let uri = format!("nbd+unix:///disk?socket={}", cluster.nbd(0).display()).parse().expect("an address");
    let spec = Spec {
        depth: 8,
        read_percent: 50,
        verify: true,
        duration: Duration::from_secs(120),
        requests_max: Some(20_000),
        ..Spec::new(uri)
    };
    let over = AtomicBool::new(false);
    let figures = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let figures = load::run(&spec, &mut |_| ControlFlow::Continue(()));
            over.store(true, Ordering::Relaxed);
            figures.expect("the load runs")
        });
        let mut swaps = 0;
        while swaps < 20 || !over.load(Ordering::Relaxed) {
            let name = POLICIES[swaps % 2];
            let done = cluster.tidegate(&["policy", "activate", name]);
            assert!(done["active"].as_str().expect("a name").contains(name), "{done}");
            // capacity-weighted always has some.
            let carries = swaps > 0 && swaps % 2 == 0;
            assert!(!carries || done["state_bytes"].as_u64() > Some(0), "{done}");
            let consumer = format!("consumer-{swaps}");
            let lease = cluster.tidegate(&["lease", "acquire", &consumer, "--iops", "10"]);
            assert!(lease["producer"].is_u64(), "{lease}");
            swaps += 1;
        }
        println!("{swaps} swaps");
        load.join().expect("the load ends")
    });
    assert!(figures.errors.is_empty() && figures.mismatch_count == 0, "{:?}", figures.errors);
    assert_eq!(figures.reads + figures.writes, 20_000);
    // A new volume's head gets its lease by the weights of the active policy.
    cluster.tidegate(&["volume", "create", "second", "--size", "64MiB", "--tenant", "blue", "--wait"]);
    cluster.until("the policy has decided", |cluster| {
        let policies = cluster.tidegate(&["policy", "list"]);
        let kinds = policies["kinds"].as_array().expect("kinds");
        let leasing = kinds.iter().find(|kind| kind["kind"] == "leasing").expect("one of them");
        assert_eq!(leasing["counters"]["faults"], serde_json::json!({}), "{leasing}");
        leasing["counters"]["by_policy"].as_u64() > Some(0)
    });
    let status = cluster.tidegate(&["status"]);
    assert_eq!(status["decided_natively_instead"], 0, "{status}");
    let decides = active(&cluster);
    cluster.kill_controlplane();
    cluster.start_controlplane();
    assert_eq!(active(&cluster), decides);
    let other = POLICIES.iter().find(|name| **name != decides).expect("another");
    cluster.tidegate(&["policy", "activate", other]);
    cluster.tidegate(&["policy", "rollback", "leasing"]);
    assert_eq!(active(&cluster), decides);
}

/// The leasing policy that decides.
fn active(cluster: &Cluster) -> String {
    let policies = cluster.tidegate(&["policy", "list"]);
    let kinds = policies["kinds"].as_array().expect("kinds");
    let leasing = kinds.iter().find(|kind| kind["kind"] == "leasing").expect("one of them");
    leasing["active"]["name"].as_str().expect("a policy").to_owned()
}
