//! Moves and deletions that something comes in between of.

use contract::{Class, Command, VolumeId, VolumeState};

use super::fleet::{Fleet, iops, name};
use crate::Config;

/// A best-effort volume of 700 at a node of 1,000, and another node.
fn best_effort(pool: &str) -> (Fleet, VolumeId) {
    let mut fleet = Fleet::with_capacities(&[1_000, 1_000], Config::default());
    let answer = fleet.create("a", pool, Class::Revocable, iops(700));
    fleet.finish(answer.operation.expect("work"));
    (fleet, answer.volume.expect("made"))
}

#[test]
fn a_deletion_that_is_refused_cancels_nothing() {
    let (mut fleet, volume) = best_effort("shared");
    let (at, _) = fleet.head(volume);
    fleet.request(Command::NodeCordon { node: fleet.nodes[1 - at].id, cordoned: true }).expect("fine");
    fleet.kill(at);
    fleet.run(4_000);
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Recovering);
    let failover = fleet.core.operations().last().expect("waits").id;
    let copy = Command::VolumeClone { volume, name: name("copy") };
    fleet.request(copy).expect("waits too");
    let refused = fleet.request(Command::VolumeDelete { volume, wipe: false }).unwrap_err().to_string();
    assert!(refused.contains("copies it"), "{refused}");
    assert!(!fleet.phase(failover).is_over(), "{}", fleet.why(failover));
    fleet.request(Command::NodeCordon { node: fleet.nodes[1 - at].id, cordoned: false }).expect("fine");
    fleet.finish(failover);
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Serving);
}
