//! What nodes say gets in whatever people ask for, and whatever other nodes say.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use contract::{Command, NodeInfo, NodeReport, Resources};
use host::Trust;
use store::Local;

use super::*;

fn beat(seq: u64) -> FromNode {
    FromNode::Report(NodeReport { incarnation: 1, seq, whole: true, ..NodeReport::default() })
}

fn hello(name: &str) -> FromNode {
    FromNode::Hello(NodeInfo {
        name: name.parse().expect("a name"),
        incarnation: 1,
        workers: 1,
        capacity: Resources { iops: 1, bytes_per_s: 1, copy_slots: 1 },
        pools: Vec::new(),
        addresses: Vec::new(),
        networks: Vec::new(),
    })
}

fn opened(driver: &Driver, session: u64) -> Link {
    let (to, _) = mpsc::channel(1);
    driver.opened(session, to).expect("there is room for nodes")
}

/// What is said when it is asked once; none = it waits.
fn said(link: &Link, message: FromNode) -> Option<Result<(), Busy>> {
    match pin!(link.said(message)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

#[test]
fn beats_get_in_and_come_first_when_people_have_filled_their_queue() {
    let (driver, seat) = Driver::new();
    while driver.put(Job::Look(Box::new(|_| ()))).is_ok() {}
    let links: Vec<Link> = (1..=100).map(|session| opened(&driver, session)).collect();
    for link in &links {
        assert_eq!(said(link, beat(1)), Some(Ok(())));
    }
    let (mut beats, mut of_people) = (0, 0);
    for step in 0.. {
        let job = seat.jobs.next(step, of_people < PEOPLE_MAX).expect("more beats than that");
        of_people += usize::from(job.is_of_people());
        beats += usize::from(matches!(job, Job::Said { .. }));
        if beats == links.len() {
            break;
        }
    }
    // A link was opened for each beat.
    assert!(of_people <= 2 * links.len() / (PEOPLE_SHARE - 1) + 1, "{of_people} of people before them");
    assert!(of_people > 0, "people have their share");
    assert!(seat.jobs.next(0, false).is_none(), "people who had theirs wait for the next turn");
}

#[test]
fn who_ends_the_control_plane_does_not_wait_behind_people() {
    let (driver, seat) = Driver::new();
    for _ in 0..PEOPLE_QUEUE {
        assert!(driver.people.try_send(Job::Look(Box::new(|_| {}))).is_ok());
    }
    driver.stop();
    assert!(matches!(seat.jobs.next(0, true), Some(Job::Stop)));
}

#[test]
fn a_link_that_says_too_much_waits_and_another_does_not() {
    let (driver, seat) = Driver::new();
    let (loud, quiet) = (opened(&driver, 1), opened(&driver, 2));
    for seq in 1..=LINK_PLACES as u64 {
        assert_eq!(said(&loud, beat(seq)), Some(Ok(())));
    }
    assert_eq!(said(&loud, beat(9)), None);
    assert_eq!(said(&quiet, beat(1)), Some(Ok(())));
    // What was looked at makes room.
    while !matches!(seat.jobs.next(0, true), Some(Job::Said { .. })) {}
    assert_eq!(said(&loud, beat(9)), Some(Ok(())));
}

/// A folder that goes with the test.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Threads of policies may still write to it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_beat_is_taken_while_the_api_is_flooded() {
    const NODES: u64 = 20;
    const BEATS: u64 = 50;
    let folder = Folder(std::env::temp_dir().join(format!("tidegate-flood-{}", std::process::id())));
    let store: Arc<dyn Store> = Arc::new(Local::in_memory());
    let writes = Writes::begin(Arc::clone(&store), 1).expect("a store");
    let (driver, seat) = Driver::new();
    let policies =
        Policies::open(&folder.0, Arc::clone(&store), &driver, Trust::default()).expect("it starts");
    let core = recover(&*store, control_core::Config::default()).expect("a core");
    let (ended, mut end) = oneshot::channel();
    seat.start(Work { core, writes, store, policies }, ended).expect("a thread");
    let over = Arc::new(AtomicBool::new(false));
    // More at once than the queue of people holds.
    let flood: Vec<_> = (0..2 * PEOPLE_QUEUE)
        .map(|one| {
            let (driver, over) = (driver.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let (mut refused, mut number) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    let command = Command::NodeRemove { node: contract::NodeId(99) };
                    let idempotency_key = format!("{one}-{number}");
                    let request = Request { idempotency_key, expected_revision: None, command };
                    refused += u64::from(driver.request(request).await == Err(Busy::Full));
                    tokio::task::yield_now().await;
                }
                refused
            })
        })
        .collect();
    let nodes: Vec<_> = (1..=NODES)
        .map(|node| {
            let link = opened(&driver, node);
            tokio::spawn(async move {
                link.said(hello(&format!("node-{node}"))).await.expect("it is taken");
                for seq in 1..=BEATS {
                    link.said(beat(seq)).await.expect("it is taken");
                }
            })
        })
        .collect();
    for node in nodes {
        node.await.expect("all of it was said");
    }
    over.store(true, Ordering::Relaxed);
    let mut refused = 0;
    for one in flood {
        refused += one.await.expect("it ends");
    }
    assert!(refused > 0, "it was a flood");
    let counters = driver.look(Core::counters).await.expect("nobody floods any more");
    assert_eq!(counters.reports, NODES * BEATS);
    assert!(end.try_recv().is_err(), "the core goes on");
    driver.stop();
    assert!(end.await.expect("it says so").is_none());
}
