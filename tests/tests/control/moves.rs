//! Volumes go from one node's directory to another's while a host uses them, whatever dies on the way.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::netns;

use crate::client::Client;
use crate::cluster::Cluster;
use crate::host::Host;

static NEVER: AtomicBool = AtomicBool::new(false);

fn host(cluster: &Cluster, volume: &str) -> Host {
    Host::new(vec![cluster.nbd(0), cluster.nbd(1)], volume, 0x5eed)
}

#[test]
fn a_volume_moves_between_private_directories_under_a_host_that_notices_a_pause_and_nothing_else() {
    let cluster = Cluster::private("moves", 2);
    cluster.volume("disk", "one");
    let mut host = host(&cluster, "disk");
    host.work(4000, &NEVER);
    assert_eq!(host.at(), Some(0));
    for (to, place) in [("two", 1), ("one", 0), ("two", 1)] {
        let over = AtomicBool::new(false);
        host.longest_gap = Duration::ZERO;
        let before = host.answered;
        std::thread::scope(|scope| {
            scope.spawn(|| host.work(u64::MAX / 2, &over));
            let moved = cluster.try_tidegate(&["volume", "move", "disk", "--to", to, "--now", "--wait"]);
            over.store(true, Ordering::Relaxed);
            moved.unwrap_or_else(|(code, said)| panic!("{code}: {said}{}", cluster.logs()));
        });
        host.work(100, &NEVER);
        assert_eq!(host.at(), Some(place));
        println!("moved to {to} under {} I/Os; longest gap {:?}", host.answered - before, host.longest_gap);
        host.verify();
        let left = std::fs::read_dir(cluster.pool(1 - place)).expect("its pool").count();
        assert_eq!(left, 0, "nothing stays where it was");
    }
}

/// Begins to move the volume to the second node, and returns when its copy is under way.
fn begin_copy(cluster: &Cluster) {
    cluster.tidegate(&["volume", "move", "disk", "--to", "two", "--now"]);
    cluster.until("the copy is under way", |cluster| copied(cluster) > 0);
}

#[test]
fn a_target_that_dies_in_the_middle_of_a_copy_loses_nothing_and_the_move_can_be_made_again() {
    let mut cluster = Cluster::slow("target-dies", 2);
    cluster.volume("disk", "one");
    let mut host = host(&cluster, "disk");
    host.work(8000, &NEVER);
    under_work(&mut host, |_| {
        begin_copy(&cluster);
        cluster.kill_node(1);
        cluster.start_node(1);
        cluster.until("the move is over", is_over);
    });
    let operation = operation(&cluster);
    assert!(operation["failures"].as_u64() > Some(0) || phase(&operation) == "failed", "{operation}");
    println!("the move that lost its target: {}", phase(&operation));
    if phase(&operation) == "failed" {
        host.work(10, &NEVER);
        assert_eq!(host.at(), Some(0));
        under_work(&mut host, |_| {
            cluster.tidegate(&["volume", "move", "disk", "--to", "two", "--now", "--wait"]);
        });
    }
    host.work(100, &NEVER);
    assert_eq!(host.at(), Some(1));
    host.verify();
}

#[test]
fn a_move_is_given_up_in_the_middle_and_its_volume_goes_on() {
    let cluster = Cluster::slow("given-up", 2);
    cluster.volume("disk", "one");
    let mut host = host(&cluster, "disk");
    host.work(8000, &NEVER);
    under_work(&mut host, |_| {
        begin_copy(&cluster);
        let id = operation(&cluster)["id"].to_string();
        cluster.tidegate(&["operation", "cancel", &id]);
        cluster.until("the move is over", is_over);
    });
    assert_eq!(phase(&operation(&cluster)), "failed");
    assert_eq!(host.at(), Some(0));
    host.verify();
    let left = std::fs::read_dir(cluster.pool(1)).expect("its pool").count();
    assert_eq!(left, 0, "the copy is removed");
}

#[test]
fn a_source_that_dies_frozen_comes_back_frozen_and_goes_on_when_it_is_told() {
    let mut cluster = Cluster::private("source-dies", 2);
    cluster.volume("disk", "one");
    let mut host = host(&cluster, "disk");
    host.work(4000, &NEVER);
    let mut at = 0;
    for round in 0.. {
        assert!(round < 20, "the source was never met frozen");
        let (source, target) = (at, ["two", "one"][at]);
        let met = under_work(&mut host, |_| {
            cluster.tidegate(&["volume", "move", "disk", "--to", target, "--now"]);
            while cluster.book(source)["frozen"].as_object().is_none_or(|frozen| frozen.is_empty()) {
                if is_over(&cluster) {
                    return false;
                }
            }
            cluster.kill_controlplane();
            cluster.kill_node(source);
            // While it copies, the target stands by.
            let told = &cluster.book(1 - source)["snapshot"]["volumes"];
            let granted =
                told.as_array().is_some_and(|volumes| volumes.iter().any(|one| one["role"] == "active"));
            cluster.start_node(source);
            let met = !granted && {
                cluster.until("it listens", |cluster| cluster.client(source, "disk").is_ok());
                assert!(holds(&cluster, source), "a volume that was frozen answers writes after kill -9");
                true
            };
            cluster.start_controlplane();
            cluster.until("both are alive", |cluster| cluster.alive() == 2);
            cluster.until("the move is over", is_over);
            met
        });
        host.work(100, &NEVER);
        host.verify();
        at = host.at().expect("it is served");
        if met {
            println!("met frozen in round {round}; the move {}", phase(&operation(&cluster)));
            return;
        }
    }
}

#[test]
fn a_move_gains_no_credits() {
    let cluster = Cluster::private("credits", 2);
    let (bank, fill) = (3000, 50);
    cluster.tidegate(&[
        "volume",
        "create",
        "disk",
        "--size",
        "256MiB",
        "--tenant",
        "blue",
        "--on",
        "one",
        "--wait",
        "--iops",
        &fill.to_string(),
        "--burst-iops",
        &bank.to_string(),
        "--peak-iops",
        "20000",
    ]);
    let mut host = host(&cluster, "disk");
    let began = Instant::now();
    // More than the bank has: what comes after is what is earned.
    host.work(bank + 20, &NEVER);
    cluster.tidegate(&["volume", "move", "disk", "--to", "two", "--now", "--wait"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| host.work(u64::MAX / 2, &over));
        netns::comes(|| began.elapsed() > Duration::from_secs(6));
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(host.at(), Some(1));
    let (done, seconds) = (host.answered, began.elapsed().as_secs_f64());
    let may = bank as f64 + fill as f64 * seconds;
    println!("{done} I/Os in {seconds:.1} s; {may:.0} are allowed");
    // One may have been paid for at each node and answered at the other.
    assert!(done as f64 <= may + 2.0, "{done} I/Os, and {may} are what it may");
    // How long it was held, and earned nothing, is the machine's.
    assert!(done > bank + 20 + fill / 2, "{done} I/Os of {may}: it earns nothing where it has gone");
}

/// Does something while a host works; what that led to.
fn under_work<T>(host: &mut Host, act: impl FnOnce(&Scope<'_, '_>) -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Ends(&over);
        scope.spawn(|| host.work(u64::MAX / 2, &over));
        let outcome = act(scope);
        drop(ends);
        outcome
    })
}

/// Ends the host's work, also when what is done meanwhile fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The operation that moves a volume, as it is now.
fn operation(cluster: &Cluster) -> Value {
    let operations = cluster.tidegate(&["operation", "list", "--all"]);
    let moves = operations.as_array().expect("a list").iter();
    let moves = moves.filter(|one| one["work"].to_string().contains("move_node"));
    moves.max_by_key(|one| one["id"].as_u64()).cloned().unwrap_or_default()
}

fn phase(operation: &Value) -> &str {
    operation["phase"].as_str().unwrap_or_default()
}

fn is_over(cluster: &Cluster) -> bool {
    ["done", "failed", "cancelled"].contains(&phase(&operation(cluster)))
}

/// Bytes that its bulk copy has done.
fn copied(cluster: &Cluster) -> u64 {
    operation(cluster)["progress"]["done_bytes"].as_u64().unwrap_or(0)
}

/// Whether a volume is served, and does not answer a write.
fn holds(cluster: &Cluster, node: usize) -> bool {
    let socket = UnixStream::connect(cluster.nbd(node)).expect("it listens");
    socket.set_read_timeout(Some(Duration::from_millis(700))).expect("a time");
    let mut client = Client::new(Box::new(socket), "disk").expect("it is served");
    // Where the host does not look.
    let answer = client.write(200 << 20, &[7; 4096]);
    answer.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}
