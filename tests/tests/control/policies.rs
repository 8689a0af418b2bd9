//! Every verb of `tidegate policy`, typed one after the other by its author and an operator.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Builds what `policy new` wrote, as its author does.
fn build(source: &Path) -> PathBuf {
    // The lock of the shipped policies has what a new one needs, so nothing is looked up.
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    std::fs::copy(policies.join("Cargo.lock"), source.join("Cargo.lock")).expect("ours");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../policies");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--offline", "--quiet", "--target", "wasm32-unknown-unknown"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(source)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("wasm32-unknown-unknown/release/typed_leasing.wasm")
}

fn leasing(cluster: &Cluster) -> Value {
    let policies = cluster.tidegate(&["policy", "list"]);
    let kinds = policies["kinds"].as_array().expect("kinds");
    kinds.iter().find(|kind| kind["kind"] == "leasing").expect("one of them").clone()
}

/// Waits until leasing has been decided on so often since now.
fn decides(cluster: &Cluster, times: u64) {
    let count = |cluster: &Cluster| leasing(cluster)["counters"]["decisions"].as_u64().expect("a number");
    let before = count(cluster);
    cluster.until("weights are decided on", |cluster| count(cluster) >= before + times);
}

#[test]
fn a_policy_goes_from_its_first_line_to_its_removal_on_the_command_line() {
    let mut cluster = Cluster::start("policy-verbs", 1);
    let folder = cluster.folder.display().to_string();
    let said = cluster.said(&["policy", "new", "--kind", "leasing", "typed-leasing", "--into", &folder]);
    assert!(said.contains("src/lib.rs"), "{said}");
    let module = build(&cluster.folder.join("typed-leasing")).display().to_string();
    let (code, said) = cluster
        .try_tidegate(&["policy", "new", "--kind", "leasing", "typed-leasing", "--into", &folder])
        .unwrap_err();
    assert!(code == 1 && said.contains("choose another name"), "{said}");

    let checked = cluster.tidegate(&["policy", "check", &module]);
    assert_eq!(checked["kind"], "leasing", "{checked}");
    let timed = cluster.tidegate(&["policy", "bench", &module, "--decisions", "4"]);
    assert_eq!(timed.as_array().map(Vec::len), Some(6), "two functions of three sizes: {timed}");
    assert!(cluster.said(&["policy", "bench", &module, "--decisions", "2"]).contains("update-weights"));

    let pushed = cluster.tidegate(&["policy", "push", &module]);
    assert_eq!(pushed["name"], "typed-leasing", "{pushed}");
    cluster.until("the shipped policies are ready", |cluster| {
        let policies = cluster.tidegate(&["policy", "list"]);
        policies["library"].as_array().is_some_and(|all| all.len() >= 7)
    });
    cluster.tidegate(&["policy", "shadow", "typed-leasing"]);
    decides(&cluster, 2);
    assert!(leasing(&cluster)["shadow"]["comparison"]["decisions"].as_u64() > Some(0));
    let (code, said) = cluster.try_tidegate(&["policy", "remove", "typed-leasing"]).unwrap_err();
    assert!(code == 4 && said.contains("shadow --stop leasing"), "{said}");
    cluster.tidegate(&["policy", "shadow", "--stop", "leasing"]);

    // Another policy's state is not one that it reads, and then nothing changes.
    cluster.tidegate(&["policy", "activate", "leasing-pack-tight"]);
    let (code, said) = cluster.try_tidegate(&["policy", "activate", "typed-leasing"]).unwrap_err();
    assert!(code == 4 && said.contains("leasing-pack-tight") && said.contains("--fresh"), "{said}");
    cluster.tidegate(&["policy", "activate", "typed-leasing", "--fresh"]);
    decides(&cluster, 2);
    assert_eq!(leasing(&cluster)["active"]["name"], "typed-leasing");
    assert!(cluster.said(&["policy", "list"]).contains("typed-leasing"));
    let (code, said) = cluster.try_tidegate(&["policy", "remove", "typed-leasing"]).unwrap_err();
    assert!(code == 4 && said.contains("tidegate policy rollback leasing"), "{said}");
    let log = cluster.tidegate(&["policy", "log", "--kind", "leasing", "--limit", "1"]);
    let before = log[0]["number"].as_u64().expect("a number");
    assert!(log[0]["policy"].as_str().is_some_and(|policy| policy.contains("typed-leasing")), "{log}");

    // Numbers of decisions go on, so `explain` and `replay` mean the same one by it after a restart.
    cluster.kill_controlplane();
    cluster.start_controlplane();
    cluster.until("decisions go on", |cluster| {
        let log = cluster.tidegate(&["policy", "log", "--kind", "leasing", "--limit", "1"]);
        log[0]["number"].as_u64().is_some_and(|number| number > before)
    });
    cluster.tidegate(&["policy", "rollback", "leasing"]);
    assert_eq!(leasing(&cluster)["active"]["name"], "leasing-pack-tight");

    let log = cluster.folder.join("controlplane").join("decisions").display().to_string();
    let same = cluster.tidegate(&["policy", "replay", &log, "--with", &module]);
    assert!(same["same_version"] == true && same["different"] == 0, "{same}");
    assert!(same["decisions"].as_u64() >= Some(2), "{same}");

    let files = |cluster: &Cluster| {
        let digest = pushed["digest"].as_str().expect("a digest").to_owned();
        let both = ["policies", "compiled"].map(|name| cluster.folder.join("controlplane").join(name));
        let named = both.into_iter().flat_map(|folder| std::fs::read_dir(folder).expect("ours"));
        named
            .filter(|file| file.as_ref().expect("ours").file_name().to_string_lossy().starts_with(&digest))
            .count()
    };
    assert_eq!(files(&cluster), 3, "the component, what stands beside it, and its code");
    let removed = cluster.tidegate(&["policy", "remove", "typed-leasing"]);
    assert!(removed["removed"].as_str().is_some_and(|id| id.starts_with("typed-leasing")), "{removed}");
    assert_eq!(files(&cluster), 0);
    let (code, said) = cluster.try_tidegate(&["policy", "remove", "typed-leasing"]).unwrap_err();
    assert!(code == 3 && said.contains("tidegate policy list"), "{said}");
    let (code, said) = cluster.try_tidegate(&["policy", "remove", "leasing-capacity-weighted"]).unwrap_err();
    assert!(code == 4 && said.contains("part of the control plane"), "{said}");
    assert_eq!(leasing(&cluster)["counters"]["faults"], json!({}));
}
