//! Background work under revocable leases: it fills what is kept for contingencies, and goes when that is needed.

use contract::{Class, Command, Dim, LeaseState, NodeId, OperationId, Phase, Resources, Scope, VolumeId};

use super::fleet::{Fleet, iops, name};
use crate::explain::About;
use crate::{Config, Core};

/// A firm volume on the shared pool, at a node.
fn volume_at(fleet: &mut Fleet, text: &str, rate: u64, node: u64) -> VolumeId {
    let create = Command::VolumeCreate {
        name: name(text),
        tenant: fleet.tenant(),
        size_bytes: 1 << 30,
        pool: name("shared"),
        class: Class::Firm,
        limits: iops(rate),
        on: Some(NodeId(node)),
    };
    let answer = fleet.request(create).expect("can be made");
    fleet.finish(answer.operation.expect("work"));
    answer.volume.expect("made")
}

fn scrub(fleet: &mut Fleet, volume: VolumeId) -> OperationId {
    fleet.request(Command::VolumeScrub { volume }).expect("fine").operation.expect("work")
}

fn revocable(core: &Core) -> Resources {
    core.accounts().iter().fold(Resources::NONE, |sum, (_, account)| sum.plus(account.revocable))
}

/// Runs a few milliseconds at a time, with reports, until something holds.
fn until(fleet: &mut Fleet, what: &str, holds: impl Fn(&Fleet) -> bool) {
    let began = fleet.now;
    while !holds(fleet) {
        fleet.run(50);
        assert!(fleet.now - began < 20_000, "{what}: {:#?}", fleet.core.leases().collect::<Vec<_>>());
    }
}

/// Three nodes, two thirds of each firm, and more scrubs than fit the rest.
fn filled() -> (Fleet, Vec<VolumeId>, Vec<OperationId>) {
    let mut fleet = Fleet::with_capacities(&[600, 600, 600], Config::default());
    let places = (0..12).map(|at| (at, 1 + at % 3));
    let volumes: Vec<_> =
        places.map(|(at, node)| volume_at(&mut fleet, &format!("v{at}"), 100, node)).collect();
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 30_000);
    let scrubs = volumes.iter().map(|volume| scrub(&mut fleet, *volume)).collect();
    fleet.run(1_500);
    (fleet, volumes, scrubs)
}

#[test]
fn background_work_fills_the_contingency_goes_within_the_grace_when_it_is_needed_and_goes_on_after() {
    let (mut fleet, volumes, scrubs) = filled();
    let (held, kept) = (revocable(&fleet.core), fleet.core.accounts().contingency());
    assert!(
        held.iops * 10 >= kept.iops * 9 && held.bytes_per_s * 10 >= kept.bytes_per_s * 9,
        "{held} of {kept}"
    );
    let works = |fleet: &Fleet, phase| scrubs.iter().filter(|id| fleet.phase(**id) == phase).count();
    assert_eq!(
        (works(&fleet, Phase::Running), works(&fleet, Phase::Waiting)),
        (9, 3),
        "the others wait for room"
    );
    fleet.kill(2);
    let revoked = |fleet: &Fleet| fleet.nodes.iter().any(|node| !node.notices.is_empty());
    until(&mut fleet, "notice", revoked);
    let noticed = fleet.now;
    let serves = |fleet: &Fleet, node: usize| {
        let heads = volumes.iter().filter_map(|id| fleet.core.volume(*id)?.head);
        heads.filter(|head| head.node == NodeId(node as u64 + 1)).count()
    };
    until(&mut fleet, "all are served", |fleet| serves(fleet, 0) == 6 && serves(fleet, 1) == 6);
    assert!(fleet.now - noticed <= 500 + 100, "gone {} ms after the notice", fleet.now - noticed);
    for node in [1, 2] {
        let account = fleet.core.accounts().node(NodeId(node));
        assert!(account.settled() && account.revocable.iops == 0 && account.leaving.iops == 0, "{account:?}");
    }
    fleet.run(1_000);
    let causes = scrubs.iter().filter(|id| fleet.why(**id).contains("was revoked by")).count();
    assert!(causes >= 6, "{causes}: {}", fleet.why(scrubs[0]));
    let made_room =
        |one: &&contract::Operation| one.why.contains("revocable leases there were revoked for it");
    assert!(fleet.core.operations().any(|one| made_room(&one)), "the failovers say so too");
    assert_eq!(works(&fleet, Phase::Done), 0);
    // There is room again: what was revoked goes on.
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 500);
    fleet.revive(2);
    fleet.run(3_000);
    for volume in volumes.iter().skip(2).step_by(3) {
        let to = Some(NodeId(3));
        fleet
            .request(Command::VolumeMove { volume: *volume, to, at_once: true, deadline_ms: None })
            .expect("fine");
    }
    scrubs.iter().for_each(|id| fleet.finish(*id));
    let again =
        scrubs.iter().filter(|id| fleet.core.operation(**id).is_some_and(|one| one.tries > 0)).count();
    assert!(again >= 6, "{again} were revoked and done after");
}

#[test]
fn what_does_not_go_by_itself_goes_by_force_when_the_grace_is_over() {
    let (mut fleet, volumes, _) = filled();
    fleet.nodes.iter_mut().for_each(|node| node.stubborn = true);
    fleet.kill(0);
    until(&mut fleet, "notice", |fleet| fleet.nodes.iter().any(|node| !node.notices.is_empty()));
    let noticed = fleet.now;
    let leaving = |fleet: &Fleet| {
        fleet.core.leases().filter(|lease| matches!(lease.state, LeaseState::Revoked { .. })).count()
    };
    assert!(leaving(&fleet) > 0);
    let moved = |fleet: &Fleet| {
        let heads = volumes.iter().filter_map(|id| fleet.core.volume(*id)?.head);
        heads.filter(|head| head.node == NodeId(1)).count() == 0
    };
    until(&mut fleet, "all are served", moved);
    assert!(fleet.now - noticed >= 450, "nothing was granted before there was room");
    assert!(fleet.now - noticed <= 500 + 100, "{} ms", fleet.now - noticed);
    assert!(fleet.nodes[1].notices.iter().any(|(_, grace)| *grace == 0), "force");
}

#[test]
fn a_wipe_goes_where_there_is_room_for_it_and_holds_nothing_while_there_is_none() {
    let mut fleet = Fleet::with_capacities(&[1_000, 1_000, 1_000], Config::default());
    volume_at(&mut fleet, "one", 1_000, 1);
    volume_at(&mut fleet, "two", 1_000, 2);
    for at in 0..6 {
        let volume = volume_at(&mut fleet, &format!("old{at}"), 0, 1 + at % 3);
        let wipe = Command::VolumeDelete { volume, wipe: true };
        let id = fleet.request(wipe).expect("fine").operation.expect("work");
        fleet.run(100);
        assert_eq!(fleet.core.operation(id).expect("there").target, Some(NodeId(3)), "{}", fleet.why(id));
        fleet.finish(id);
    }
    let volume = volume_at(&mut fleet, "last", 0, 3);
    let resources = Resources { iops: 1_000, ..Resources::NONE };
    let acquire = Command::LeaseAcquire { consumer: name("c"), resources, observed: vec![] };
    let lease = fleet.request(acquire).expect("free").lease.expect("granted").id;
    let wipe = Command::VolumeDelete { volume, wipe: true };
    let id = fleet.request(wipe).expect("fine").operation.expect("work");
    fleet.run(1_000);
    assert_eq!(fleet.phase(id), Phase::Waiting);
    assert_eq!(fleet.core.ledger().used(Dim::CopySlots, Scope::Fleet), 0, "it holds nothing meanwhile");
    assert!(fleet.why(id).contains("no node has room"), "{}", fleet.why(id));
    assert!(fleet.core.explain(About::Lease(lease)).is_some(), "who is not in the way keeps what it has");
    fleet.request(Command::LeaseRelease { lease, consumer: name("c") }).expect("fine");
    fleet.finish(id);
}

#[test]
fn what_is_left_of_a_node_is_used_slowly_but_not_for_next_to_nothing() {
    let mut fleet = Fleet::with_capacities(&[800, 800], Config::default());
    let volume = volume_at(&mut fleet, "a", 750, 1);
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 2_000);
    let id = scrub(&mut fleet, volume);
    fleet.run(500);
    let lease = fleet.core.operation(id).expect("there").lease.expect("works under one");
    let resources = fleet.core.lease(lease).expect("there").resources;
    assert_eq!((resources.iops, resources.bytes_per_s), (50, (1 << 27) / 2), "half of an eighth");
    let rates: Vec<_> = fleet.nodes[0].steps.values().map(|step| step.0.rate_bytes_per_s).collect();
    assert_eq!(rates, [(1 << 27) / 2], "and the node is told no more than that");
    fleet.finish(id);
    fleet.request(Command::VolumeLimit { volume, limits: iops(790) }).expect("fine");
    fleet.run(6_000);
    let id = scrub(&mut fleet, volume);
    fleet.run(500);
    assert_eq!(fleet.phase(id), Phase::Waiting, "{}", fleet.why(id));
}
