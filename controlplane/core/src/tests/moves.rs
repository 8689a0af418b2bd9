//! Moves and deletions that something comes in between of.

use contract::{Class, Command, NodeStep, OperationId, Phase, Role, VolumeId, VolumeState};

use super::fleet::{Fleet, iops, name};
use crate::Config;

/// A best-effort volume of 700 at a node of 1,000, and another node.
fn best_effort(pool: &str) -> (Fleet, VolumeId) {
    let mut fleet = Fleet::with_capacities(&[1_000, 1_000], Config::default());
    let answer = fleet.create("a", pool, Class::Revocable, iops(700));
    fleet.finish(answer.operation.expect("work"));
    (fleet, answer.volume.expect("made"))
}

/// A firm volume that leaves no room for the other one at a node.
fn push_out(fleet: &mut Fleet, at: usize) {
    let tenant = fleet.tenant();
    let on = Some(fleet.nodes[at].id);
    let (name, pool, limits) = (name("firm"), name("own"), iops(900));
    let create =
        Command::VolumeCreate { name, tenant, size_bytes: 4_096, pool, class: Class::Firm, limits, on };
    fleet.request(create).expect("firm before revocable");
}

fn move_it(fleet: &mut Fleet, volume: VolumeId) -> OperationId {
    let command = Command::VolumeMove { volume, to: None, at_once: true, deadline_ms: None };
    fleet.request(command).expect("fine").operation.expect("work")
}

/// Runs until a node was told to do a step of an operation.
fn run_to(fleet: &mut Fleet, at: usize, id: OperationId, step: NodeStep) {
    let told = |fleet: &Fleet| {
        let mut steps = fleet.nodes[at].steps.iter();
        steps.any(|(key, (instruction, ..))| key.operation == id && instruction.step == step)
    };
    for _ in 0..400 {
        if told(fleet) {
            return;
        }
        fleet.run(50);
    }
    panic!("{step} was not asked for: {}", fleet.why(id));
}

fn was_told(fleet: &Fleet, at: usize, id: OperationId, step: u16) -> bool {
    fleet.nodes[at].ran.iter().any(|key| key.operation == id && key.step == step)
}

#[test]
fn a_copy_of_before_a_volume_lost_its_lease_is_never_served() {
    let (mut fleet, volume) = best_effort("own");
    let (at, epoch) = fleet.head(volume);
    fleet.nodes[1 - at].busy_ms = 2_000;
    let id = move_it(&mut fleet, volume);
    run_to(&mut fleet, 1 - at, id, NodeStep::CopyBulk);
    // The head goes, and comes back where it was once there is room: what is copied now is old then.
    push_out(&mut fleet, at);
    fleet.run(20_000);
    assert_eq!(fleet.phase(id), Phase::Failed, "{}", fleet.why(id));
    assert!(fleet.why(id).contains("lost its lease"), "{}", fleet.why(id));
    let object = fleet.core.volume(volume).expect("there");
    assert_eq!((object.state, object.head), (VolumeState::Recovering, None));
    assert_eq!(object.home, Some(fleet.nodes[at].id), "its files are where they were");
    let firm = fleet.core.volumes().find(|one| one.name == name("firm")).expect("there").id;
    fleet.request(Command::VolumeDelete { volume: firm, wipe: false }).expect("fine");
    fleet.run(10_000);
    assert_eq!(fleet.head(volume), (at, epoch.next()));
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Serving);
}

#[test]
fn a_volume_goes_on_when_the_room_that_it_was_to_move_to_is_taken() {
    let (mut fleet, volume) = best_effort("own");
    let (at, epoch) = fleet.head(volume);
    let id = move_it(&mut fleet, volume);
    fleet.nodes[at].busy_ms = 3_000;
    run_to(&mut fleet, at, id, NodeStep::Freeze);
    push_out(&mut fleet, 1 - at);
    fleet.run(20_000);
    assert_eq!(fleet.phase(id), Phase::Failed, "{}", fleet.why(id));
    assert!(fleet.why(id).contains("was revoked"), "{}", fleet.why(id));
    assert_eq!(fleet.head(volume), (at, epoch));
    // Reserve, copy, freeze, copy, serve; then thaw there and remove here.
    assert!(was_told(&fleet, at, id, 2) && was_told(&fleet, at, id, 5), "frozen, and told to go on");
    assert!(was_told(&fleet, 1 - at, id, 6), "the copy is removed");
    assert!(!fleet.nodes[at].is_frozen(volume));
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

#[test]
fn a_move_that_is_given_up_in_the_middle_is_taken_back() {
    for (step, steps) in [(NodeStep::CopyBulk, 1), (NodeStep::Freeze, 2), (NodeStep::CopyDelta, 3)] {
        let (mut fleet, volume) = best_effort("own");
        let (at, epoch) = fleet.head(volume);
        fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 2_000);
        let id = move_it(&mut fleet, volume);
        run_to(&mut fleet, if step == NodeStep::Freeze { at } else { 1 - at }, id, step);
        fleet.request(Command::OperationCancel { operation: id }).expect("it is not served there yet");
        fleet.run(20_000);
        assert_eq!(fleet.phase(id), Phase::Failed, "{step}, the {steps}th: {}", fleet.why(id));
        assert!(fleet.why(id).contains("gave it up"), "{}", fleet.why(id));
        assert_eq!(fleet.head(volume), (at, epoch));
        assert!(!fleet.nodes[at].is_frozen(volume), "{step}");
    }
}

/// Hosts have a way to the target before it serves, and the source refuses them as a path until then.
#[test]
fn both_ends_of_a_move_stand_by_while_they_do_not_serve() {
    let mut fleet = Fleet::new(2, Config::default());
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 300);
    let volume = fleet.volume("a", "own", iops(10));
    let (source, _) = fleet.head(volume);
    let shows = |fleet: &Fleet, at: usize| {
        let placed = fleet.nodes[at].snapshot.volumes.iter().find(|placed| placed.volume == volume);
        placed.map(|placed| placed.role)
    };
    let id = move_it(&mut fleet, volume);
    let mut seen = vec![(shows(&fleet, source), shows(&fleet, 1 - source))];
    while !fleet.phase(id).is_over() {
        fleet.run(10);
        let now = (shows(&fleet, source), shows(&fleet, 1 - source));
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert_eq!(fleet.phase(id), Phase::Done, "{}", fleet.why(id));
    let (active, standby) = (Some(Role::Active), Some(Role::Standby));
    let order = [(active, None), (active, standby), (standby, active), (None, active)];
    seen.retain(|shown| order.contains(shown));
    assert_eq!(seen, order);
    // One that is given up is shown at its target no more.
    let id = move_it(&mut fleet, volume);
    while shows(&fleet, source) != standby {
        fleet.run(10);
    }
    fleet.kill(source);
    fleet.run(4_000);
    fleet.revive(source);
    fleet.run(4_000);
    assert_eq!((fleet.phase(id), shows(&fleet, source)), (Phase::Failed, None), "{}", fleet.why(id));
}
