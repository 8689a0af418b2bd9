//! What is kept for the loss of a node is used by scrubs and wipes meanwhile, and theirs no more when it is needed.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::gateway::full;

use crate::cluster::{Cluster, NodeSettings};

/// Of each of three data planes; two thirds of it are firm.
const SETTINGS: NodeSettings = NodeSettings { operations: 60_000, bytes: "12MB/s", shared: true };
const CAPACITY: [u64; 2] = [60_000, 12_000_000];
/// Volumes; each has a sixth of a data plane.
const VOLUMES: usize = 12;
/// Volumes that are wiped beside the first loss.
const OLD: usize = 3;
/// Data of each.
const DATA_BYTES: usize = 16 << 20;
const PIECE: usize = 1 << 20;
const NAMES: [&str; 3] = ["one", "two", "three"];
/// Bytes per second of two data planes whose rests are used, half of what they may, and of two that rest, which write
/// down what they are told.
const WORKS: u64 = 4_000_000;
const RESTS: u64 = 400_000;
/// Between the notice and the end by force.
const GRACE: Duration = Duration::from_millis(500);

#[test]
fn scrubs_and_wipes_use_what_is_kept_for_contingencies_and_are_gone_within_the_grace_when_it_is_needed() {
    let mut cluster = Cluster::with("leases", 3, SETTINGS, "");
    cluster.until("the shipped policies are ready", |cluster| {
        let policies = cluster.tidegate(&["policy", "list"]);
        policies["library"].as_array().is_some_and(|all| all.len() >= 6)
    });
    for at in 0..VOLUMES {
        let name = format!("v{at}");
        filled(&cluster, &name, at % 3);
        cluster.tidegate(&["volume", "limit", &name, "--iops", "10000", "--bandwidth", "2MB"]);
    }
    for at in 0..OLD {
        let name = format!("old{at}");
        filled(&cluster, &name, at % 3);
        cluster.tidegate(&["volume", "delete", &name, "--wipe"]);
    }
    let rounds = if full() { 8 } else { 1 };
    let mut rested: Vec<Duration> = (0..rounds).flat_map(|round| lose(&mut cluster, round)).collect();
    rested.sort();
    let (middle, longest) = (rested[rested.len() / 2], rested[rested.len() - 1]);
    println!(
        "{rounds} losses, {} leases revoked; work rests after p50 {middle:?}, max {longest:?}",
        rested.len()
    );
    // On a machine that builds and tests beside it, a thread may not get its turn in time.
    assert!(!full() || longest <= GRACE, "{rested:?}");
}

/// Makes a volume without limits and fills it.
fn filled(cluster: &Cluster, name: &str, node: usize) {
    let on = NAMES[node];
    cluster
        .tidegate(&["volume", "create", name, "--size", "32MiB", "--tenant", "blue", "--on", on, "--wait"]);
    let mut client = cluster.client(node, name).expect("it is served");
    for at in (0..DATA_BYTES).step_by(PIECE) {
        client.write(at as u64, &data(name, at)).expect("written");
    }
    client.flush().expect("flushed");
}

fn data(name: &str, at: usize) -> Vec<u8> {
    let seed = name.bytes().fold(at as u64 | 1, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let words = (0..PIECE as u64 / 8).map(|word| (word + 1).wrapping_mul(seed | 1));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Scrubs everything, loses a data plane meanwhile, and takes it back. How long after its notice each lease was one
/// under which nobody worked.
fn lose(cluster: &mut Cluster, round: usize) -> Vec<Duration> {
    let dies = round % 3;
    let left: Vec<usize> = (0..3).filter(|node| *node != dies).collect();
    for at in 0..VOLUMES {
        cluster.tidegate(&["volume", "scrub", &format!("v{at}")]);
    }
    let mut held = 0;
    cluster.until("scrubs and wipes hold what is kept", |cluster| {
        held = held.max(thousandths_held(cluster));
        held >= 900
    });
    let mut before = 0;
    cluster.until("they read and write", |cluster| {
        before = rate(cluster, &left);
        before >= WORKS
    });
    let seen: Vec<usize> = left.iter().map(|node| rests(cluster, *node).len()).collect();
    let began = Instant::now();
    cluster.kill_node(dies);
    let gone = node_id(cluster, dies);
    cluster.until("all volumes are served by the others", |cluster| {
        let volumes = cluster.tidegate(&["volume", "list"]);
        let volumes =
            volumes.as_array().expect("a list").iter().filter(|one| one["limits"]["bytes"]["rate"] != 0);
        volumes.filter(|one| one["state"] == "serving" && one["head"]["node"] != gone).count() == VOLUMES
    });
    let served = began.elapsed();
    let leases = cluster.tidegate(&["lease", "list"]);
    let leases = leases.as_array().expect("a list").iter();
    let there = leases.filter(|lease| lease["class"] == "revocable" && lease["producer"] != gone).count();
    assert_eq!(there, 0, "all of it was needed: {}", cluster.logs());
    let rested: Vec<Duration> =
        left.iter().zip(seen).flat_map(|(node, seen)| rests(cluster, *node).split_off(seen)).collect();
    assert!(rested.len() >= 4, "those who worked at the others: {rested:?} {}", cluster.logs());
    // Whoever serves next reads logs first.
    let mut after = 0;
    cluster.until("nothing is read or written any more", |cluster| {
        after = rate(cluster, &left);
        after <= RESTS
    });
    explained(cluster);
    every_byte_is_there(cluster);
    goes_on(cluster, dies);
    println!(
        "round {round}: {held} thousandths held, {} leases gone {:?} after the notice, all served after {served:?}, \
         {before} B/s of background I/O before and {after} B/s after",
        rested.len(),
        rested.iter().max().expect("some"),
    );
    rested
}

fn node_id(cluster: &Cluster, node: usize) -> Value {
    cluster.tidegate(&["node", "get", &cluster.names[node]])["id"].clone()
}

/// What revocable leases in force hold of the contingency, which is one data plane: of the resource of which they
/// hold less.
fn thousandths_held(cluster: &Cluster) -> u64 {
    let leases = cluster.tidegate(&["lease", "list"]);
    let leases = leases.as_array().expect("a list").iter();
    let active = leases.filter(|lease| lease["class"] == "revocable" && lease["state"] == "active");
    let held = active.fold([0, 0], |sum, lease| {
        let of = |name: &str| lease["resources"][name].as_u64().expect("a number");
        [sum[0] + of("iops"), sum[1] + of("bytes_per_s")]
    });
    (held[0] * 1_000 / CAPACITY[0]).min(held[1] * 1_000 / CAPACITY[1])
}

/// Bytes per second that data planes read from files and write to them, beside what workers do for hosts.
fn rate(cluster: &Cluster, nodes: &[usize]) -> u64 {
    let moved = || -> u64 {
        let of = |node: &usize| {
            let pid = cluster.pid(*node).as_raw_nonzero();
            let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("it lives");
            let values = text.lines().filter(|line| line.starts_with("rchar") || line.starts_with("wchar"));
            values
                .map(|line| line.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number"))
                .sum::<u64>()
        };
        nodes.iter().map(of).sum()
    };
    let (began, first) = (Instant::now(), moved());
    cluster.until("some time has passed", |_| began.elapsed() >= Duration::from_secs(1));
    ((moved() - first) as f64 / began.elapsed().as_secs_f64()) as u64
}

/// How long after its notice each revoked lease of a data plane was one under which nobody worked.
fn rests(cluster: &Cluster, node: usize) -> Vec<Duration> {
    let log = cluster.folder.join(format!("{}.log", cluster.names[node]));
    let text = std::fs::read_to_string(log).expect("a log");
    let rested = text.lines().filter_map(|line| line.split("rested_us=").nth(1));
    rested.map(|rest| Duration::from_micros(rest.trim().parse().expect("a number"))).collect()
}

/// Scrubs and wipes that are not over.
fn under_way(cluster: &Cluster) -> Vec<Value> {
    let operations = cluster.tidegate(&["operation", "list"]);
    let all = operations.as_array().expect("a list").iter();
    let background = all.filter(|one| one["work"] == "scrub" || one["work"]["delete"]["wipe"] == true);
    let left = background.filter(|one| {
        assert!(one["phase"] != "failed" && one["phase"] != "cancelled", "{one} {}", cluster.logs());
        one["phase"] != "done"
    });
    left.cloned().collect()
}

/// The revocation is what is said to hold them up.
fn explained(cluster: &Cluster) {
    let causes = under_way(cluster)
        .iter()
        .filter(|one| {
            let about = format!("operation/{}", one["id"]);
            cluster.tidegate(&["explain", &about]).to_string().contains("was revoked by")
        })
        .count();
    assert!(causes >= 4, "{causes} of {:?}", under_way(cluster));
}

fn every_byte_is_there(cluster: &Cluster) {
    for at in 0..VOLUMES {
        let name = format!("v{at}");
        let mut client =
            (0..3).find_map(|node| cluster.nodes[node].as_ref().and(cluster.client(node, &name).ok()));
        let client = client.as_mut().expect("it is served");
        let mut found = vec![0; PIECE];
        client.read(0, &mut found).expect("read");
        assert!(found == data(&name, 0), "{name}");
    }
}

/// The one that was lost is back, volumes go there, and what was revoked ends as it should.
fn goes_on(cluster: &mut Cluster, dies: usize) {
    cluster.start_node(dies);
    cluster.until("there are three again", |cluster| cluster.alive() == 3);
    for at in (0..VOLUMES).filter(|at| at % 3 == dies) {
        let name = format!("v{at}");
        cluster.tidegate(&["volume", "move", &name, "--to", NAMES[dies], "--now"]);
    }
    cluster.until("what was revoked is done", |cluster| under_way(cluster).is_empty());
}
