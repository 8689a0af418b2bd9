//! What a node does when it is asked for the wrong thing, or when a worker dies under it.

use super::*;
use crate::plan::{PortPlan, WorkerPlan};
use overlay::PortId;
use port::null::NullSpec;
use port::{Port, PortCaps, PortCounters, PortError, PortKind, PortSpec};
use std::os::fd::BorrowedFd;

/// Longest that anything expected may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node of two workers, each with a port that does nothing.
fn node() -> Node {
    let ports = (0..2).map(|number| PortPlan {
        id: PortId(number),
        name: format!("port {number}"),
        role: PortRole::Tenant,
        worker: usize::from(number),
        spec: PortSpec::Null(NullSpec::default()),
    });
    let plan = Plan {
        slab: frame::SlabConfig { frames: 256, jumbo_frames: 8, hugepages: false },
        workers: vec![WorkerPlan { cpu: None }, WorkerPlan { cpu: None }],
        ports: ports.collect(),
        trap_port: None,
        volumes_max: 16,
        serve: None,
    };
    Node::start(plan, snapshot(1)).unwrap()
}

fn snapshot(version: u64) -> Snapshot {
    let tables = Arc::new(Tables::build(&overlay::Config::default(), None).unwrap());
    Snapshot {
        version,
        tables,
        throttle: Throttle::default(),
        served: Throttle::default(),
        idle: crate::idle::IdleParams::default(),
    }
}

/// A port that panics in the middle of a burst, with a frame in its hands.
struct Bomb;

impl Port for Bomb {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut frame::Batch) -> Result<usize, PortError> {
        out.extend(pool.alloc());
        panic!("a driver's invariant does not hold");
    }

    fn tx_burst(&mut self, _: &mut Pool, _: &mut frame::Batch) -> Result<usize, PortError> {
        Ok(0)
    }

    fn flush(&mut self, _: &mut Pool) -> Result<(), PortError> {
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn has_input(&self) -> bool {
        true
    }

    fn caps(&self) -> PortCaps {
        PortCaps {
            kind: PortKind::Ethernet,
            mtu_bytes: 1500,
            mac: None,
            tx_partial_csum: false,
            tx_gso: false,
            rx_gso: false,
        }
    }

    fn counters(&self) -> PortCounters {
        PortCounters::default()
    }

    fn close(self: Box<Self>, _: &mut Pool) {}
}

#[test]
fn the_way_between_workers_has_room_for_the_sources_that_there_are() {
    assert_eq!([0, 8, 100, 2048, 2049, usize::MAX].map(sources), [16, 16, 200, 4096, 4096, SOURCES_MAX]);
}

#[test]
fn a_worker_without_volumes_keeps_no_room_for_any() {
    let mut plan = node().plan.clone();
    plan.ports[1].role = PortRole::Underlay;
    let (slab, snapshot) = (Slab::new(plan.slab).unwrap(), Arc::new(snapshot(1)));
    let (tell, _) = unbounded();
    let deaths = Deaths { tell, first: Arc::new(AtomicUsize::new(NOBODY)) };
    let ((failures, _), (retired, _)) = (unbounded(), unbounded());
    let builder = Builder {
        plan: &plan,
        slab: &slab,
        io_slab: None,
        snapshot: &snapshot,
        cpus: 1,
        failures,
        retired,
        deaths,
        traces: Vec::new(),
    };
    assert_eq!([0, 1].map(|worker| builder.gateway(worker, 1, 0).volumes()), [0, 16]);
}

#[test]
fn versions_only_grow() {
    let node = node();
    assert!(node.wait_running(1, PATIENCE));
    node.publish(snapshot(3)).unwrap();
    for offered in [2, 3] {
        let refused = node.publish(snapshot(offered)).unwrap_err();
        assert!(
            matches!(refused, PublishError::Stale { running: 3, offered: told } if told == offered),
            "{refused}"
        );
    }
    assert!(node.wait_running(3, PATIENCE));
    assert!(!node.wait_running(4, Duration::from_millis(1)), "nobody runs what was never published");
    node.stop();
}

#[test]
fn a_worker_that_panics_is_told_and_does_not_keep_the_others_from_ending() {
    let node = node();
    assert!(node.wait_running(1, PATIENCE));
    node.workers[0].send(Command::PortUp { plan_index: 0, port: Box::new(Bomb) }).unwrap();
    let died = node.deaths().recv_timeout(PATIENCE).unwrap();
    assert_eq!(died.worker, 0);
    assert_eq!(died.why, "it panicked: a driver's invariant does not hold");
    assert_eq!(node.dead(), Some(0));
    let refused = node.publish(snapshot(2)).unwrap_err();
    assert!(matches!(refused, PublishError::WorkerGone(0)), "{refused}");
    let begin = Instant::now();
    assert!(!node.wait_running(2, PATIENCE), "nobody waits for a dead worker");
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(node.workers[0].ask(|reply| Command::Rules { first: 0, reply }), None);
    // The other one works on, until it is told to end.
    let turns = node.counters()[1].turn.turns;
    let end = Instant::now() + PATIENCE;
    while node.counters()[1].turn.turns == turns {
        assert!(Instant::now() < end, "worker 1 stands still");
    }
    let last = node.stop();
    assert!(last[1].turn.balanced(), "{:?}", last[1].turn);
}
