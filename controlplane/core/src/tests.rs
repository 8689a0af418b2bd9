//! The core as a whole, in a fleet of obedient nodes.

mod bounds;
mod decisions;
mod fleet;
mod leases;
mod limits;
mod links;
mod moves;
mod scenarios;

use contract::{
    Class, Command, Dim, EventKind, Holder, LeaseId, Limit, NodeId, NodeState, NodeStep, Observed,
    OperationId, Phase, Refused, Request, Resources, Revision, Scope, Trigger, VolumeState,
};
use fleet::{Fleet, iops, name};
use verdict::scheduling::Assignments;
use verdict::{By, Decided, Verdict};

use super::*;
use crate::explain::About;

#[test]
fn a_volume_is_made_and_served() {
    let mut fleet = Fleet::new(3, Config::default());
    let volume = fleet.volume("a", "shared", iops(100));
    let object = fleet.core.volume(volume).expect("there");
    let head = object.head.expect("served");
    assert_eq!((object.state, object.epoch), (VolumeState::Serving, head.epoch));
    assert_eq!(fleet.served[&volume], (head.node, head.epoch));
    let standby = object.standby.expect("a shared pool has one");
    assert_ne!(standby, head.node);
    let lease = fleet.core.lease(head.lease).expect("there");
    assert_eq!((lease.class, lease.resources.iops, lease.producer), (Class::Firm, 100, head.node));
    assert_eq!(fleet.core.ledger().uses().count(), 0, "all is given back");
    let explained = fleet.core.explain(About::Volume(volume)).expect("there");
    assert!(explained.state.starts_with("served by node/"), "{explained:?}");
}

#[test]
fn whoever_joins_stands_by_for_volumes_that_have_nobody() {
    let mut fleet = Fleet::with_capacities(&[1_000, 1_000], Config::default());
    let volume = fleet.volume("a", "shared", iops(100));
    let standby = |fleet: &Fleet| fleet.core.volume(volume).expect("there").standby;
    fleet.kill(fleet.head(volume).0);
    fleet.run(5_000);
    assert_eq!(standby(&fleet), None, "the one that stood by serves");
    fleet.restart();
    fleet.join(1_000);
    fleet.run(1_000);
    assert_eq!(standby(&fleet), Some(NodeId(3)));
}

#[test]
fn what_is_stored_is_all_that_there_is() {
    let mut fleet = Fleet::new(3, Config::default());
    let volumes: Vec<_> = (0..5).map(|at| fleet.volume(&format!("v{at}"), "shared", iops(10))).collect();
    let before: Vec<_> = fleet.core.volumes().cloned().collect();
    let json = serde_json::to_string(&fleet.store.values().collect::<Vec<_>>()).expect("plain values");
    let records: Vec<Record> = serde_json::from_str(&json).expect("as written");
    assert_eq!(records, fleet.store.values().cloned().collect::<Vec<_>>());
    fleet.restart();
    let now = fleet.core.now_ms();
    fleet.run(3_000);
    let after: Vec<_> = fleet.core.volumes().cloned().collect();
    assert_eq!(before, after);
    assert!(fleet.core.now_ms() >= now && fleet.core.start() == 2);
    fleet.kill(fleet.head(volumes[0]).0);
    fleet.run(5_000);
    assert_eq!(fleet.core.volume(volumes[0]).expect("there").state, VolumeState::Serving);
}

#[test]
fn a_lost_node_is_revoked_reserved_granted_and_published_in_this_order() {
    let mut fleet = Fleet::with_capacities(&[1_000, 1_000], Config::default());
    let volume = fleet.volume("a", "shared", iops(900));
    let (at, epoch) = fleet.head(volume);
    let other = 1 - at;
    // What is kept for a contingency is used by others meanwhile.
    let acquire = |consumer: &str| Command::LeaseAcquire {
        consumer: name(consumer),
        resources: Resources { iops: 100, ..Resources::NONE },
        observed: vec![],
    };
    let leases: Vec<_> = (0..11).map(|n| fleet.request(acquire(&format!("c{n}"))).expect("free")).collect();
    let refused = fleet.request(acquire("late")).unwrap_err();
    assert!(matches!(refused, Refused::NoRoom { .. }), "{refused}");
    let used = fleet.core.accounts().node(NodeId(other as u64 + 1)).revocable.iops;
    assert!(used >= 900, "of the contingency {used} of 1000 is used");
    fleet.nodes[other].stubborn = true;
    fleet.kill(at);
    let killed = fleet.now;
    while fleet.head(volume).0 == at {
        fleet.run(50);
        assert!(fleet.now - killed < 3_000, "{:?}", fleet.core.explain(About::Volume(volume)));
        let reserved = fleet.core.accounts().node(NodeId(other as u64 + 1));
        if fleet.head(volume).0 != at {
            assert!(reserved.settled(), "granted before there was room: {reserved:?}");
        }
    }
    assert_eq!(fleet.head(volume), (other, epoch.next()));
    fleet.run(500);
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Serving);
    let gone = leases.iter().filter(|answer| {
        let lease = answer.lease.as_ref().expect("granted");
        lease.producer.0 as usize - 1 == other && fleet.core.lease(lease.id).is_none()
    });
    assert_eq!(gone.count(), 9, "as many as are needed: it has 1,000 of which 900 are needed");
    assert!(fleet.nodes[other].notices.iter().any(|(_, grace)| *grace == 500), "notice");
    assert!(fleet.nodes[other].notices.iter().any(|(_, grace)| *grace == 0), "force");
}

#[test]
fn a_fleet_promises_nothing_of_a_node_that_is_lost() {
    let mut fleet = Fleet::with_capacities(&[1_000; 3], Config::default());
    let tenant = fleet.tenant();
    let create = |text: &str| Command::VolumeCreate {
        name: name(text),
        tenant,
        size_bytes: 4_096,
        pool: name("shared"),
        class: Class::Firm,
        limits: iops(800),
        on: None,
    };
    fleet.request(create("a")).expect("2,000 of 3,000 can be promised");
    fleet.run(1_000);
    fleet.kill(0);
    fleet.run(5_000);
    let refused = fleet.request(create("b")).unwrap_err().to_string();
    assert!(refused.contains("room for 200 "), "{refused}");
    // Nor after a restart of the control plane.
    fleet.restart();
    fleet.run(100);
    fleet.request(create("b")).unwrap_err();
    fleet.revive(0);
    while fleet.core.liveness().state(NodeId(1)) == NodeState::Lost {
        fleet.run(50);
    }
    // Nor before it has shown that it stays, since until then it is given nothing.
    assert_eq!(fleet.core.liveness().state(NodeId(1)), NodeState::Returning);
    fleet.request(create("b")).unwrap_err();
    fleet.run(5_000);
    fleet.request(create("b")).expect("it is back");
}

#[test]
fn a_limit_that_the_fleet_has_no_room_for_is_refused_for_that() {
    let mut fleet = Fleet::with_capacities(&[1_000; 2], Config::default());
    let volume = fleet.volume("a", "shared", iops(600));
    fleet.volume("b", "shared", iops(300));
    let limit = |limits| Command::VolumeLimit { volume, limits };
    // Its node has room, or would have.
    let refused = fleet.request(limit(iops(800))).unwrap_err().to_string();
    assert!(refused.contains("the fleet has room for 100 ") && refused.contains("best effort"), "{refused}");
    fleet.request(limit(iops(700))).expect("there is room for 100 more");
}

#[test]
fn without_room_nobody_loses_a_lease_and_somebody_is_alarmed() {
    let mut fleet = Fleet::with_capacities(&[1_000, 400, 1_000], Config::default());
    // The largest node is kept free in the sum, but no single one can take what another loses.
    let cordon = |node, cordoned| Command::NodeCordon { node: NodeId(node), cordoned };
    fleet.request(cordon(2, true)).expect("fine");
    fleet.request(cordon(3, true)).expect("fine");
    let volume = fleet.volume("a", "shared", iops(900));
    fleet.request(cordon(2, false)).expect("fine");
    let acquire = Command::LeaseAcquire {
        consumer: name("c"),
        resources: Resources { iops: 350, ..Resources::NONE },
        observed: vec![],
    };
    let lease = fleet.request(acquire).expect("free").lease.expect("granted");
    assert_eq!(lease.producer, NodeId(2));
    fleet.kill(0);
    fleet.run(4_000);
    assert!(fleet.core.lease(lease.id).is_some(), "tenants are kept");
    assert!(fleet.alarms.contains(&Alarm::NoRoom(volume)));
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Recovering);
    let operation = fleet.core.operations().last().expect("the failover").id;
    assert!(fleet.why(operation).contains("no node has room"), "{}", fleet.why(operation));
    fleet.request(cordon(3, false)).expect("fine");
    fleet.run(4_000);
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Serving);
}

#[test]
fn a_failover_goes_on_after_a_restart_at_any_step() {
    for stop in 0..40 {
        let mut fleet = Fleet::new(3, Config::default());
        let volume = fleet.volume("a", "shared", iops(100));
        let (at, epoch) = fleet.head(volume);
        fleet.kill(at);
        fleet.run(1_250 + stop * 50);
        fleet.restart();
        fleet.run(6_000);
        let (now_at, now_epoch) = fleet.head(volume);
        assert!(now_at != at && now_epoch > epoch, "stopped after {stop}");
        assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Serving);
        assert_eq!(fleet.core.operations().filter(|one| !one.phase.is_over()).count(), 0);
        assert_eq!(fleet.core.leases().count(), 1, "the lease of the lost head is gone");
    }
}

#[test]
fn a_node_with_many_volumes_is_given_to_others_in_steps_that_fit_a_transaction() {
    let mut fleet = Fleet::new(3, Config::default());
    let volumes: Vec<_> =
        (0..300).map(|at| fleet.create(&format!("v{at}"), "shared", Class::Firm, iops(1))).collect();
    fleet.run(6_000);
    let serving =
        |fleet: &Fleet| fleet.core.volumes().filter(|one| one.state == VolumeState::Serving).count();
    assert_eq!(serving(&fleet), 300);
    let heads = |fleet: &Fleet, at: usize| {
        volumes.iter().filter(|answer| fleet.head(answer.volume.expect("made")).0 == at).count()
    };
    assert!(heads(&fleet, 0) > 60, "{}", heads(&fleet, 0));
    fleet.kill(0);
    fleet.run(1_750);
    fleet.restart();
    fleet.run(6_000);
    assert_eq!((serving(&fleet), heads(&fleet, 0)), (300, 0));
    assert_eq!(fleet.core.leases().count(), 300);
}

#[test]
fn a_node_that_comes_back_keeps_what_nobody_took() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(100));
    let (at, epoch) = fleet.head(volume);
    fleet.kill(at);
    fleet.run(3_000);
    assert!(fleet.alarms.contains(&Alarm::OutOfReach(volume)));
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Recovering);
    let text = format!("{:?}", fleet.core.explain(About::Volume(volume)));
    assert!(text.contains("which is lost, and nowhere else"), "{text}");
    fleet.revive(at);
    fleet.run(3_000);
    assert_eq!(fleet.head(volume), (at, epoch));
    assert_eq!(fleet.core.volume(volume).expect("there").state, VolumeState::Serving);
}

#[test]
fn a_restarted_control_plane_judges_nobody_for_one_ttl() {
    let mut fleet = Fleet::new(3, Config::default());
    let volume = fleet.volume("a", "shared", iops(100));
    let (at, _) = fleet.head(volume);
    fleet.kill(at);
    fleet.run(1_250);
    fleet.restart();
    let began = fleet.now;
    while fleet.core.liveness().state(NodeId(at as u64 + 1)) != NodeState::Lost {
        fleet.run(50);
    }
    assert!(fleet.now - began >= 1_500, "judged after {} ms", fleet.now - began);
}

#[test]
fn everything_that_can_be_asked_for_is_done() {
    let mut fleet = Fleet::new(3, Config::default());
    for pool in ["shared", "own"] {
        let volume = fleet.volume(pool, pool, iops(50));
        let ask = |fleet: &mut Fleet, command| {
            let answer = fleet.request(command).expect("fine");
            fleet.finish(answer.operation.expect("work"));
            answer
        };
        ask(&mut fleet, Command::VolumeResize { volume, size_bytes: 2 << 30 });
        assert_eq!(fleet.core.volume(volume).expect("there").size_bytes, 2 << 30);
        ask(&mut fleet, Command::VolumeScrub { volume });
        ask(&mut fleet, Command::VolumeExpand { volume });
        ask(&mut fleet, Command::VolumeMoveWorker { volume, worker: 1 });
        let copy = ask(&mut fleet, Command::VolumeClone { volume, name: name(&format!("{pool}-copy")) });
        let copy = copy.volume.expect("made");
        assert_eq!(fleet.core.volume(copy).expect("there").state, VolumeState::Serving);
        let (before, epoch) = fleet.head(volume);
        ask(&mut fleet, Command::VolumeMove { volume, to: None, at_once: true, deadline_ms: None });
        let (after, next) = fleet.head(volume);
        assert!(after != before && next == epoch.next());
        let object = fleet.core.volume(volume).expect("there");
        assert_eq!(object.credits.expect("travelled").operations, 77);
        let snapshot = &fleet.nodes[after].snapshot;
        let placed = snapshot.volumes.iter().find(|placed| placed.volume == volume).expect("placed");
        assert_eq!(placed.credits, object.credits);
        ask(&mut fleet, Command::VolumeDelete { volume: copy, wipe: true });
        assert!(fleet.core.volume(copy).is_none());
        assert!(fleet.nodes.iter().all(|node| node.snapshot.volumes.iter().all(|one| one.volume != copy)));
        ask(&mut fleet, Command::VolumeDelete { volume, wipe: false });
        assert_eq!(fleet.core.leases().count(), 0);
        assert_eq!(fleet.core.ledger().uses().count(), 0);
    }
    assert_eq!(fleet.core.counters().failed, 0);
}

#[test]
fn limits_are_counted_for_what_is_scheduled_and_can_be_lowered_live() {
    let mut fleet = Fleet::new(2, Config::default());
    let volumes: Vec<_> = (0..12).map(|at| fleet.volume(&format!("v{at}"), "own", iops(10))).collect();
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 2_000);
    let works: Vec<OperationId> = volumes
        .iter()
        .map(|&volume| fleet.request(Command::VolumeScrub { volume }).expect("fine").operation.expect("work"))
        .collect();
    fleet.run(500);
    let scope = Scope::Node(NodeId(1));
    let used = fleet.core.ledger().used(Dim::CopySlots, scope);
    assert!(used <= 4 && used > 0);
    let held = works.iter().find(|id| fleet.phase(**id) == Phase::Waiting).expect("some wait");
    assert!(fleet.why(*held).contains("of 4 copy-slots in use or scheduled"), "{}", fleet.why(*held));
    let running = fleet.core.operations().filter(|one| one.phase == Phase::Running).count();
    fleet.drains = true;
    fleet.request(Command::LimitPut(Limit { dim: Dim::CopySlots, scope, max: 1 })).expect("fine");
    fleet.run(50);
    assert_eq!(fleet.core.operations().filter(|one| one.phase == Phase::Running).count(), running, "drains");
    works.into_iter().for_each(|id| fleet.finish(id));
}

#[test]
fn the_same_request_is_done_once_and_the_same_condition_is_folded() {
    let mut fleet = Fleet::new(2, Config::default());
    let tenant = fleet.tenant();
    let create = |size_bytes| Command::VolumeCreate {
        name: name("a"),
        tenant,
        size_bytes,
        pool: name("own"),
        class: Class::Firm,
        limits: iops(1),
        on: None,
    };
    let first = fleet.keyed("k", create(4_096)).expect("made");
    assert_eq!(fleet.keyed("k", create(4_096)), Ok(first.clone()));
    assert_eq!(fleet.keyed("k", create(8_192)), Err(Refused::KeyReused));
    assert!(matches!(fleet.keyed("other", create(4_096)), Err(Refused::Exists(_))));
    fleet.finish(first.operation.expect("work"));
    fleet.restart();
    assert_eq!(fleet.keyed("k", create(4_096)), Ok(first.clone()), "across restarts");
    fleet.run(2_000);
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 1_000);
    let volume = first.volume.expect("made");
    let (kind, trigger) = (EventKind::Damaged, Trigger::Threshold);
    let event = Command::EventRegister { kind, volume, trigger };
    let one = fleet.request(event.clone()).expect("registered");
    let again = fleet.request(event.clone()).expect("folded");
    assert_eq!((one.event, one.operation), (again.event, again.operation));
    assert_eq!(fleet.core.event(one.event.expect("it")).expect("there").folded, 1);
    fleet.finish(one.operation.expect("work"));
    assert!(matches!(fleet.request(event), Err(Refused::Conflict(_))), "it was just dealt with");
}

#[test]
fn a_changed_object_is_not_changed_again_by_who_did_not_see_it() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(1));
    let revision = fleet.core.volume(volume).expect("there").revision;
    let request = Request {
        idempotency_key: String::new(),
        expected_revision: Some(revision),
        command: Command::VolumeLimit { volume, limits: iops(5) },
    };
    let (now, mut outcomes) = (fleet.now, Vec::new());
    for token in 0..2 {
        let effects = fleet.core.step(now, Input::Request { token, request: request.clone() });
        outcomes.extend(effects.replies.into_iter().map(|reply| reply.result));
    }
    let is = Revision(revision.0 + 1);
    assert_eq!(outcomes[0].as_ref().expect("first").revision, is);
    assert_eq!(outcomes[1], Err(Refused::Revision { expected: revision, is }));
}

#[test]
fn whatever_a_policy_answers_is_checked_and_done_without() {
    let config = Config { ask: true, starving_after_ms: 1_000, ..Config::default() };
    let mut fleet = Fleet::new(2, config);
    let answer = fleet.create("a", "own", Class::Firm, iops(10));
    let id = answer.operation.expect("work");
    let by = By { policy: "liar@1".into(), decision: 7, instead: None };
    let mut answered = 0;
    for _ in 0..40 {
        fleet.run(50);
        for ask in std::mem::take(&mut fleet.asks) {
            let verdict = match ask.question.native(ask.tick) {
                Verdict::Schedule(mut assignments) if answered == 0 => {
                    answered += 1;
                    // Rows that are not there.
                    assignments.candidate.iter_mut().for_each(|row| *row += 1_000);
                    Verdict::Schedule(assignments)
                }
                other => other,
            };
            let decided = Decided { verdict, by: by.clone() };
            fleet.step(Input::Decided { ask: ask.id, decided });
        }
    }
    assert_eq!(fleet.phase(id), Phase::Done);
    let refusals = |alarm: &&Alarm| matches!(alarm, Alarm::Policy { function: "schedule", .. });
    assert_eq!(fleet.alarms.iter().filter(refusals).count(), 1);
    let operation = fleet.core.operation(id).expect("there");
    assert_eq!(operation.policy.policy, "liar@1");
    assert!(operation.policy.instead.as_ref().expect("natively").contains("names row"));
}

#[test]
fn an_operation_that_the_policy_passes_over_is_taken_at_last_and_a_silent_policy_done_without() {
    let config = Config { ask: true, starving_after_ms: 1_000, ..Config::default() };
    let mut fleet = Fleet::new(2, config);
    let answer = fleet.create("a", "own", Class::Firm, iops(10));
    let id = answer.operation.expect("work");
    for _ in 0..60 {
        fleet.run(50);
        for ask in std::mem::take(&mut fleet.asks) {
            let verdict = match ask.question.native(ask.tick) {
                Verdict::Schedule(_) => {
                    Verdict::Schedule(Assignments { why: "not today".into(), ..Assignments::default() })
                }
                other => other,
            };
            let by = By { policy: "lazy@1".into(), decision: 1, instead: None };
            fleet.step(Input::Decided { ask: ask.id, decided: Decided { verdict, by } });
        }
        if fleet.phase(id) == Phase::Waiting && fleet.now % 1_000 == 500 {
            assert!(fleet.why(id).contains("not today"), "{}", fleet.why(id));
        }
    }
    assert_eq!(fleet.phase(id), Phase::Done);
    assert!(fleet.alarms.contains(&Alarm::Starving(id)));
    // Nobody answers any more.
    let answer = fleet.create("b", "own", Class::Firm, iops(10));
    fleet.run(2_000);
    assert_eq!(fleet.phase(answer.operation.expect("work")), Phase::Done);
    let by = By { policy: "late@1".into(), decision: 1, instead: None };
    let late = fleet.asks.remove(0);
    let verdict = late.question.native(late.tick);
    let before = fleet.core.counters().late_answers;
    fleet.step(Input::Decided { ask: late.id, decided: Decided { verdict, by } });
    assert_eq!(fleet.core.counters().late_answers, before + 1);
}

#[test]
fn revoked_work_waits_and_goes_on_later() {
    let mut fleet = Fleet::with_capacities(&[1_000, 1_000], Config::default());
    let volume = fleet.volume("a", "shared", iops(600));
    let (at, _) = fleet.head(volume);
    // Work at the node that will have to take over, under a lease of all its bytes.
    let other = fleet.volume("b", "own", iops(10));
    let helper = fleet.head(other).0;
    if helper == at {
        return;
    }
    fleet.nodes[helper].busy_ms = 3_000;
    let scrub = fleet.request(Command::VolumeScrub { volume: other }).expect("fine").operation.expect("work");
    fleet.run(600);
    let lease = fleet.core.operation(scrub).expect("there").lease.expect("works under one");
    assert_eq!(fleet.core.lease(lease).expect("there").holder, Holder::Operation(scrub));
    let mut limits = iops(10);
    limits.bytes.rate = 1 << 30;
    fleet.request(Command::VolumeLimit { volume: other, limits }).expect("firm before revocable");
    fleet.run(600);
    assert!(fleet.core.lease(lease).is_none(), "revoked");
    assert!(!fleet.phase(scrub).is_over());
    assert!(fleet.why(scrub).contains("no node has room"), "{}", fleet.why(scrub));
    fleet.request(Command::VolumeLimit { volume: other, limits: iops(10) }).expect("fine");
    fleet.finish(scrub);
    let scrubs = fleet.nodes[helper].ran.iter().filter(|key| key.operation == scrub).count();
    assert_eq!(scrubs, 2, "each under a name of its own");
}

#[test]
fn leases_of_consumers_follow_weights_expire_and_move_from_lost_nodes() {
    let mut fleet = Fleet::with_capacities(&[400, 400, 400, 100], Config::default());
    fleet.run(12_000);
    let acquire = |consumer: &str| Command::LeaseAcquire {
        consumer: name(consumer),
        resources: Resources::NONE,
        observed: vec![],
    };
    let leases: Vec<_> = (0..130)
        .map(|n| fleet.request(acquire(&format!("c{n}"))).expect("free").lease.expect("it"))
        .collect();
    let count = |node| leases.iter().filter(|lease| lease.producer == NodeId(node)).count() as u64;
    for (node, share) in [(1, 40), (2, 40), (3, 40), (4, 10)] {
        assert!(count(node).abs_diff(share) <= share / 10 + 1, "{node}: {}", count(node));
    }
    let stranger = Command::LeaseRenew { lease: leases[0].id, consumer: name("x"), observed: vec![] };
    assert!(matches!(fleet.request(stranger), Err(Refused::Conflict(_))));
    let lost = leases[0].producer;
    fleet.kill(lost.0 as usize - 1);
    fleet.run(3_000);
    assert!(fleet.core.leases().all(|lease| lease.producer != lost), "its clients move");
    for lease in &leases {
        let observed = vec![Observed { producer: lost, requests: 1, errors: 1, response_us: 1 }];
        let consumer = Holder::Consumer(match &lease.holder {
            Holder::Consumer(name) => name.clone(),
            other => panic!("{other}"),
        });
        let Holder::Consumer(consumer) = consumer else { return };
        let renewed = fleet.request(Command::LeaseRenew { lease: lease.id, consumer, observed });
        assert_eq!(renewed.is_ok(), lease.producer != lost);
    }
    fleet.run(40_000);
    assert_eq!(fleet.core.leases().count(), 0, "what is not renewed expires");
}

#[test]
fn a_move_waits_for_a_quiet_time_and_plans_anew_when_the_pattern_breaks() {
    let config = Config { ask: true, ..Config::default() };
    let mut fleet = Fleet::new(2, config);
    fn busy(now: u64) -> u32 {
        if now % 40_000 < 25_000 { 1_000 } else { 10 }
    }
    let natively = |fleet: &mut Fleet, ms: u64| {
        for _ in 0..ms / 50 {
            fleet.run(50);
            for ask in std::mem::take(&mut fleet.asks) {
                let by = By { policy: "quiet@1".into(), decision: 1, instead: None };
                let mut verdict = ask.question.native(ask.tick);
                if let Verdict::BuildProfile(profile) = &mut verdict {
                    // The fleet's clock is a second ahead of the core's.
                    profile.origin_ms = ask.tick.now_ms - (fleet.now % 40_000).min(ask.tick.now_ms);
                    profile.slot_ms = 1_000;
                    profile.iops = (0..40).map(|second| busy(second * 1_000).into()).collect();
                    profile.dirty_bytes_per_s =
                        (0..40).map(|second| u64::from(busy(second * 1_000)) * 200_000).collect();
                }
                fleet.step(Input::Decided { ask: ask.id, decided: Decided { verdict, by } });
            }
        }
    };
    let answer = fleet.create("a", "own", Class::Firm, iops(10));
    natively(&mut fleet, 2_000);
    assert_eq!(fleet.phase(answer.operation.expect("work")), Phase::Done);
    fleet.nodes.iter_mut().for_each(|node| node.load = Some(busy));
    while fleet.now % 40_000 != 2_000 {
        natively(&mut fleet, 50);
    }
    let volume = answer.volume.expect("made");
    let to_move = Command::VolumeMove { volume, to: None, at_once: false, deadline_ms: Some(100_000) };
    let id = fleet.request(to_move.clone()).expect("fine").operation.expect("work");
    natively(&mut fleet, 100);
    let operation = fleet.core.operation(id).expect("there");
    let plan = operation.plan.expect("planned");
    assert!(plan.candidates >= 2, "several times are compared");
    assert_eq!(operation.phase, Phase::Waiting);
    assert!(fleet.why(id).contains("it was planned to go on in"), "{}", fleet.why(id));
    while fleet.phase(id) == Phase::Waiting {
        natively(&mut fleet, 50);
    }
    assert!(busy(fleet.now) == 10, "begun at {} of 40000", fleet.now % 40_000);
    natively(&mut fleet, 12_000);
    assert_eq!(fleet.phase(id), Phase::Done);
    // Again, and this time the load does not become quiet.
    while fleet.now % 40_000 != 2_000 {
        natively(&mut fleet, 50);
    }
    let id = fleet.request(to_move).expect("fine").operation.expect("work");
    natively(&mut fleet, 100);
    fleet.nodes.iter_mut().for_each(|node| node.load = Some(|_| 5_000));
    natively(&mut fleet, 11_500);
    assert_eq!(fleet.core.counters().replanned, 1);
    natively(&mut fleet, 110_000);
    assert_eq!(fleet.phase(id), Phase::Done, "the deadline is obeyed");
}

#[test]
fn a_failed_step_is_taken_back_and_the_volume_stays_where_it_was() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(10));
    let (at, epoch) = fleet.head(volume);
    fleet.nodes[1 - at].busy_ms = 1_000_000;
    let command = Command::VolumeMove { volume, to: None, at_once: true, deadline_ms: None };
    let id = fleet.request(command).expect("fine").operation.expect("work");
    fleet.run(2_000);
    fleet.kill(1 - at);
    fleet.run(4_000);
    // What was copied is removed when the node is back.
    assert_eq!(fleet.phase(id), Phase::Undoing);
    fleet.nodes[1 - at].busy_ms = 0;
    fleet.revive(1 - at);
    fleet.run(4_000);
    assert_eq!(fleet.phase(id), Phase::Failed);
    assert_eq!(fleet.head(volume), (at, epoch));
    assert!(fleet.why(id).contains("was lost"), "{}", fleet.why(id));
    assert!(
        !fleet.nodes[at].ran.iter().any(|key| {
            fleet.nodes[at].steps.get(key).is_some_and(|step| step.0.step == NodeStep::Freeze)
        })
    );
    assert_eq!(fleet.core.leases().count(), 1);
    assert_eq!(fleet.core.ledger().uses().count(), 0);
}

#[test]
fn every_alarm_says_what_to_do() {
    let (why, operation) = (String::from("the reason"), OperationId(1));
    let name = name("n");
    for alarm in [
        Alarm::NodeLost(NodeId(1)),
        Alarm::ValveShut { silent: 3, of: 4 },
        Alarm::Starving(operation),
        Alarm::NoRoom(contract::VolumeId(1)),
        Alarm::OutOfReach(contract::VolumeId(1)),
        Alarm::Policy { function: "schedule", why: why.clone() },
        Alarm::LateMove { operation, why: why.clone() },
        Alarm::NoWeights,
        Alarm::GaveUp { operation, why: why.clone() },
        Alarm::NodeRefused { name, why },
    ] {
        // Why a node is refused says it itself.
        let (said, is_whole) = (alarm.to_string(), !matches!(alarm, Alarm::NodeRefused { .. }));
        let next = ["`tidegate ", "start ", "free some", "ask for it again"];
        assert!(!is_whole || next.iter().any(|next| said.contains(next)), "{said}");
    }
}

#[test]
fn nonsense_from_people_changes_nothing_and_says_why() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(10));
    let before = fleet.store.clone();
    let tenant = fleet.core.tenants().next().expect("one").id;
    let create = |size_bytes, pool: &str, limits| Command::VolumeCreate {
        name: name("b"),
        tenant,
        size_bytes,
        pool: name(pool),
        class: Class::Firm,
        limits,
        on: None,
    };
    for (command, words) in [
        (create(0, "own", iops(1)), "is not a size"),
        (create(4_097, "own", iops(1)), "is not a size"),
        (create(4_096, "none", iops(1)), "there is no pool none"),
        (create(4_096, "own", iops(u64::MAX)), "a limit is above"),
        (create(4_096, "own", iops(5_000)), "beside its contingency"),
        (Command::VolumeResize { volume, size_bytes: 4_096 }, "cannot shrink"),
        (Command::VolumeScrub { volume: contract::VolumeId(99) }, "there is no volume/99"),
        (Command::TenantDelete { tenant }, "has volumes"),
        (Command::NodeRemove { node: NodeId(1) }, "is alive"),
        (Command::OperationCancel { operation: OperationId(1) }, "runs already or is over"),
        (Command::LeaseRelease { lease: LeaseId(1), consumer: name("c") }, "is held by volume/1"),
        (Command::VolumeMove { volume, to: Some(NodeId(9)), at_once: true, deadline_ms: None }, "no node/9"),
        (
            Command::EventRegister { kind: EventKind::HeadLost, volume, trigger: Trigger::Failure },
            "by the control plane alone",
        ),
    ] {
        let refused = fleet.request(command).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(fleet.store, before);
}
