//! Verbs of the command line that no other test needs, each run once as a user types it, with what it prints and its
//! exit code.

use crate::cluster::Cluster;

#[test]
fn verbs_of_objects_do_what_they_say_and_failures_have_their_codes() {
    let mut cluster = Cluster::start("verbs", 1);
    cluster.volume("disk", "one");
    cluster.tidegate(&["event", "register", "damaged", "disk"]);
    let lease = cluster.tidegate(&["lease", "acquire", "backup", "--iops", "10"])["id"].to_string();
    let renewed = cluster.tidegate(&["lease", "renew", &lease, "backup"]);
    let lease = renewed["id"].to_string();
    cluster.tidegate(&["lease", "release", &lease, "backup"]);
    let (code, _) =
        cluster.try_tidegate(&["lease", "renew", &lease, "backup"]).expect_err("it was given back");
    assert!([3, 4].contains(&code), "{code}");
    cluster.tidegate(&["volume", "expand", "disk", "--wait"]);
    cluster.tidegate(&["volume", "move", "disk", "--worker", "0", "--wait"]);
    for (name, id) in [("volume/disk", "volume/1"), ("node/one", "node/1")] {
        assert_eq!(cluster.tidegate(&["explain", name])["about"], id);
    }
    for (sort, get) in [
        ("volume", &["volume", "get", "nothing"][..]),
        ("node", &["node", "get", "nothing"]),
        ("operation", &["operation", "get", "99"]),
        ("tenant", &["tenant", "delete", "nothing"]),
        ("volume", &["explain", "volume/no thing"]),
        ("lease", &["explain", "lease/99"]),
    ] {
        let (code, said) = cluster.try_tidegate(get).expect_err("there is none");
        assert_eq!(code, 3, "{get:?}: {said}");
        let next = format!("`tidegate {sort} list` shows those that are there");
        assert!(said.contains(&next), "{get:?}: {said}");
        cluster.tidegate(&[sort, "list"]);
    }
    cluster.tidegate(&["limit", "put", "copy-slots", "node/one", "2"]);
    cluster.tidegate(&["limit", "put", "operations", "kind/scrub", "0"]);
    let limits = cluster.said(&["limit", "list"]);
    assert!(
        limits.contains("copy-slots") && limits.contains("node/1") && limits.contains("kind/scrub"),
        "{limits}"
    );
    // No scrub may run, so this one is given up while it waits, and whoever waits for it hears so.
    let output = std::thread::scope(|scope| {
        let waits = scope.spawn(|| cluster.typed(&["volume", "scrub", "disk", "--wait"]));
        cluster.until("it can be given up", |cluster| {
            let open = cluster.tidegate(&["operation", "list"]);
            let ids: Vec<String> =
                open.as_array().into_iter().flatten().map(|one| one["id"].to_string()).collect();
            let given_up =
                ids.iter().filter(|id| cluster.try_tidegate(&["operation", "cancel", id.as_str()]).is_ok());
            given_up.count() > 0 || waits.is_finished()
        });
        waits.join().expect("no panic")
    });
    assert_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(cluster.said(&["completion", "bash"]).contains("tidegate"));
    cluster.kill_node(0);
    cluster
        .until("the lost node is an alarm", |cluster| cluster.said(&["status"]).contains("node/1 is lost"));
    assert!(cluster.said(&["top", "--once"]).contains("node/1 is lost"));
    cluster.kill_controlplane();
    assert_eq!(cluster.typed(&["status"]).status.code(), Some(5));
}
