//! Limits that people set: of what is there, as many as can be kept, until they are removed.

use contract::{
    Answer, Command, Dim, Limit, NodeId, OperationKind, Phase, Refused, Request, Resources, Revision, Scope,
    TenantId, VolumeId,
};

use super::fleet::{Fleet, iops, name};
use crate::{Config, Input, Key};

fn put(dim: Dim, scope: Scope, max: u64) -> Command {
    Command::LimitPut(Limit { dim, scope, max })
}

fn guarded(fleet: &mut Fleet, command: Command, expected: u64) -> Result<Answer, Refused> {
    let expected_revision = Some(Revision(expected));
    let request = Request { idempotency_key: String::new(), expected_revision, command };
    let mut effects = fleet.core.step(fleet.now, Input::Request { token: 1, request });
    effects.replies.remove(0).result
}

fn limits_stored(fleet: &Fleet) -> usize {
    fleet.store.keys().filter(|key| matches!(key, Key::Limit(_))).count()
}

#[test]
fn a_guard_that_cannot_be_checked_is_refused_and_one_that_can_is_checked() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(10));
    let lease = fleet.core.leases().next().expect("of the head").id;
    let (dim, scope, consumer) = (Dim::Operations, Scope::Fleet, name("c"));
    for command in [
        put(dim, scope, 1),
        Command::LimitDelete { dim, scope },
        Command::LeaseAcquire { consumer: consumer.clone(), resources: Resources::NONE, observed: vec![] },
        Command::LeaseRenew { lease, consumer: consumer.clone(), observed: vec![] },
        Command::LeaseRelease { lease, consumer },
        Command::ValveOpen,
    ] {
        let refused = guarded(&mut fleet, command, 1).unwrap_err().to_string();
        assert!(refused.contains("no revision") && refused.contains("ask without"), "{refused}");
    }
    assert_eq!(fleet.core.limits().count(), 0);
    let command = Command::VolumeMove { volume, to: None, at_once: false, deadline_ms: None };
    fleet.request(put(Dim::CopySlots, Scope::Fleet, 0)).expect("fine");
    let operation = fleet.request(command).expect("fine").operation.expect("work");
    let is = fleet.core.operation(operation).expect("there").revision;
    let cancel = Command::OperationCancel { operation };
    let stale = guarded(&mut fleet, cancel.clone(), is.0 + 1);
    assert_eq!(stale, Err(Refused::Revision { expected: Revision(is.0 + 1), is }));
    assert_eq!(fleet.phase(operation), Phase::Waiting);
    guarded(&mut fleet, cancel, is.0).expect("as it was seen");
    assert_eq!(fleet.phase(operation), Phase::Cancelled);
}

#[test]
fn limits_are_of_what_is_there_and_no_more_than_can_be_kept() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(10));
    for (scope, words) in [
        (Scope::Node(NodeId(9)), "no node/9"),
        (Scope::Link(NodeId(1), NodeId(9)), "no node/9"),
        (Scope::Link(NodeId(1), NodeId(1)), "between two nodes"),
        (Scope::Volume(VolumeId(9)), "no volume/9"),
        (Scope::Tenant(TenantId(9)), "no tenant/9"),
    ] {
        let refused = fleet.request(put(Dim::Operations, scope, 1)).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(limits_stored(&fleet), 0);
    // Whichever way a link is named, it is the same one.
    let link = |one, other| Scope::Link(NodeId(one), NodeId(other));
    fleet.request(put(Dim::CopySlots, link(2, 1), 3)).expect("fine");
    fleet.request(put(Dim::CopySlots, link(1, 2), 4)).expect("fine");
    assert_eq!(fleet.core.ledger().max(Dim::CopySlots, link(1, 2)), Some(4));
    let delete = |dim, scope| Command::LimitDelete { dim, scope };
    fleet.request(delete(Dim::CopySlots, link(2, 1))).expect("it is there");
    assert_eq!(fleet.core.ledger().max(Dim::CopySlots, link(1, 2)), Some(1), "the default");
    let refused = fleet.request(delete(Dim::CopySlots, link(2, 1))).unwrap_err().to_string();
    assert_eq!(
        refused,
        "there is no limit of copy-slots at link/1-2; `tidegate limit list` shows those that are there"
    );
    // They go with what they are of, also after a restart.
    fleet.request(put(Dim::BytesPerS, Scope::Volume(volume), 1 << 30)).expect("fine");
    fleet.request(put(Dim::Iops, Scope::Fleet, 1 << 30)).expect("fine");
    fleet.restart();
    fleet.run(2_000);
    let gone = fleet.request(Command::VolumeDelete { volume, wipe: false }).expect("fine");
    fleet.finish(gone.operation.expect("work"));
    assert_eq!(limits_stored(&fleet), 1);
    fleet.restart();
    assert_eq!(fleet.core.limits().count(), 1);
    fleet.kill(1);
    fleet.run(3_000);
    fleet.request(put(Dim::Iops, link(1, 2), 5)).expect("fine");
    fleet.request(put(Dim::Iops, Scope::Node(NodeId(2)), 5)).expect("fine");
    fleet.request(Command::NodeRemove { node: NodeId(2) }).expect("it is lost and holds nothing");
    assert_eq!(limits_stored(&fleet), 1);
}

#[test]
fn there_is_room_for_four_thousand_limits() {
    let mut fleet = Fleet::new(1, Config::default());
    let tenants: Vec<TenantId> = (0..1_025)
        .map(|at| {
            let put =
                Command::TenantPut { name: name(&format!("t{at}")), vni: None, weight: 1, rules: vec![] };
            fleet.request(put).expect("fine").tenant.expect("made")
        })
        .collect();
    let all = tenants.iter().flat_map(|id| Dim::ALL.map(|dim| put(dim, Scope::Tenant(*id), 1)));
    let refused: Vec<Refused> = all.filter_map(|command| fleet.request(command).err()).collect();
    assert_eq!(refused, vec![Refused::TooMany { what: "limits".into(), max: 4_096 }; 4]);
    fleet.request(put(Dim::Iops, Scope::Tenant(tenants[0]), 2)).expect("one that is there can be changed");
    fleet.request(Command::TenantDelete { tenant: tenants[0] }).expect("fine");
    fleet.request(put(Dim::Iops, Scope::Fleet, 1)).expect("there is room again");
}

#[test]
fn a_volume_goes_to_no_worker_that_its_node_does_not_have() {
    let mut fleet = Fleet::new(1, Config::default());
    let volume = fleet.volume("a", "own", iops(10));
    let refused = fleet.request(Command::VolumeMoveWorker { volume, worker: 2 }).unwrap_err().to_string();
    assert_eq!(refused, "node/1 has 2 workers, and none is number 2; use 0 to 1");
    fleet.request(Command::VolumeMoveWorker { volume, worker: 1 }).expect("it has that one");
}

#[test]
fn each_limit_holds_a_move_until_it_is_removed() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(10));
    let tenant = fleet.core.volume(volume).expect("there").tenant;
    for dim in Dim::ALL {
        for scope in [
            Scope::Fleet,
            Scope::Tenant(tenant),
            Scope::Volume(volume),
            Scope::Node(NodeId(1)),
            Scope::Node(NodeId(2)),
            Scope::link(NodeId(1), NodeId(2)),
            Scope::Kind(OperationKind::MoveNode),
        ] {
            fleet.request(put(dim, scope, 0)).expect("fine");
            let command = Command::VolumeMove { volume, to: None, at_once: true, deadline_ms: None };
            let id = fleet.request(command).expect("fine").operation.expect("work");
            fleet.run(200);
            let words = format!("{scope} has 0 of 0 {dim} in use or scheduled");
            assert!(fleet.why(id).contains(&words), "{words}: {}", fleet.why(id));
            assert_eq!(fleet.phase(id), Phase::Waiting);
            fleet.request(Command::LimitDelete { dim, scope }).expect("it is there");
            fleet.run(200);
            let used = fleet.core.ledger().used(dim, scope);
            let share = match dim {
                Dim::Operations | Dim::CopySlots => 1,
                Dim::BytesPerS => 1 << 27,
                Dim::Iops => 1 << 7,
            };
            assert_eq!(used, share, "{dim} of {scope}, once however it is reached");
            fleet.finish(id);
            assert_eq!(fleet.core.ledger().uses().count(), 0);
        }
    }
}
