//! What a policy has come to, that it was rolled back, and what a rollback goes back to outlive kill -9 of the control
//! plane.

use serde_json::Value;

use crate::cluster::Cluster;

/// Decisions after which the policy begins to fail.
const SOUND: u64 = 24;

/// How leasing stands.
fn leasing(cluster: &Cluster) -> Value {
    let policies = cluster.tidegate(&["policy", "list"]);
    let kinds = policies["kinds"].as_array().expect("kinds");
    kinds.iter().find(|kind| kind["kind"] == "leasing").expect("one of them").clone()
}

fn decided(cluster: &Cluster) -> u64 {
    leasing(cluster)["counters"]["by_policy"].as_u64().expect("a number")
}

#[test]
fn a_policy_goes_on_from_its_state_after_kill_9_and_a_rollback_stays() {
    let mut cluster = Cluster::start("restart", 1);
    let component = shipped::component(shipped::MISBEHAVING).expect("built with this test");
    let file = cluster.folder.join("misbehaving.wasm");
    std::fs::write(&file, component).expect("a file");
    let (file, after) = (file.display().to_string(), format!("after={SOUND}"));
    cluster.tidegate(&["policy", "push", &file, "--config", "fault=panic", "--config", &after]);
    cluster.tidegate(&["policy", "activate", "misbehaving"]);
    cluster.until("it has decided a while", |cluster| decided(cluster) >= SOUND / 2);
    cluster.kill_controlplane();
    cluster.start_controlplane();
    assert_eq!(leasing(&cluster)["active"]["name"], "misbehaving");
    cluster.until("it is rolled back", |cluster| leasing(cluster)["active"].is_null());
    let stands = leasing(&cluster);
    let why = stands["rolled_back"].as_str().expect("it says why");
    assert!(why.contains("5 faults") && why.contains("told to"), "{why}");
    // It counts its decisions in its state. What it had counted 3 s before it was killed is kept for sure.
    let sound = decided(&cluster);
    assert!(sound < SOUND, "{sound} sound decisions since: it began anew");
    cluster.kill_controlplane();
    cluster.start_controlplane();
    assert!(leasing(&cluster)["active"].is_null(), "it stays rolled back");
}

#[test]
fn a_rollback_after_kill_9_goes_back_through_the_versions_that_were_active() {
    let mut cluster = Cluster::start("restart-back", 1);
    cluster.until("the shipped policies are ready", |cluster| {
        let policies = cluster.tidegate(&["policy", "list"]);
        policies["library"].as_array().is_some_and(|all| all.len() >= 6)
    });
    let (first, second) = ("leasing-capacity-weighted", "leasing-pack-tight");
    for name in [first, second, first] {
        cluster.tidegate(&["policy", "activate", name]);
    }
    let before = leasing(&cluster)["previous"].clone();
    assert_eq!(before.as_array().map(Vec::len), Some(2), "{before}");
    for left in [second, first] {
        cluster.kill_controlplane();
        cluster.start_controlplane();
        cluster.tidegate(&["policy", "rollback", "leasing"]);
        assert_eq!(leasing(&cluster)["active"]["name"], left);
    }
    cluster.kill_controlplane();
    cluster.start_controlplane();
    assert_eq!(leasing(&cluster)["active"]["name"], first);
    cluster.tidegate(&["policy", "rollback", "leasing"]);
    assert!(leasing(&cluster)["active"].is_null(), "nothing was active before the first");
}
