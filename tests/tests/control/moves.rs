//! Volumes go from one node's directory to another's while a host uses them, whatever dies on the way.

use std::sync::atomic::{AtomicBool, Ordering};

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
        host.longest_gap = std::time::Duration::ZERO;
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
