//! Scenarios that the product is judged by, in a fleet of obedient nodes: a storm of operations, shares of leases.

use contract::{Class, Command, Dim, NodeId, OperationId, Phase, Resources, Scope, VolumeState};

use super::fleet::{Fleet, iops, name};
use crate::Config;

/// F1.A1 and A2: one of four nodes dies under 2,000 operations; then the control plane too.
#[test]
fn a_storm_stays_within_four_slots_and_fencing_does_not_wait_for_it() {
    let mut fleet = Fleet::new(4, Config { operations_per_node: 256, ..Config::default() });
    let volumes: Vec<_> = (0..400)
        .map(|at| fleet.create(&format!("v{at}"), "shared", Class::Firm, iops(1)).volume.expect("made"))
        .collect();
    fleet.run(8_000);
    assert!(fleet.core.volumes().all(|volume| volume.state == VolumeState::Serving));
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 100);
    let mut works: Vec<OperationId> = Vec::new();
    let ask = |fleet: &mut Fleet, command| fleet.request(command).expect("fine").operation.expect("work");
    for &volume in &volumes {
        works.push(ask(&mut fleet, Command::VolumeScrub { volume }));
        works.push(ask(&mut fleet, Command::VolumeExpand { volume }));
    }
    for at in 0..1_200 {
        let volume = volumes[at % volumes.len()];
        let name = name(&format!("copy{at}"));
        works.push(ask(&mut fleet, Command::VolumeClone { volume, name }));
    }
    assert_eq!(works.len(), 2_000);
    let most = |fleet: &Fleet| {
        let used = |node| fleet.core.ledger().used(Dim::CopySlots, Scope::Node(NodeId(node)));
        (1..=4).map(used).max().unwrap_or(0)
    };
    fleet.run(2_000);
    assert_eq!(most(&fleet), 4, "the storm takes what it may");
    let lost = 1;
    let theirs: Vec<_> = volumes.iter().copied().filter(|id| fleet.head(*id).0 == lost).collect();
    assert!(theirs.len() > 50);
    let killed = fleet.now;
    fleet.kill(lost);
    let back = |fleet: &Fleet| {
        let served = |id| fleet.core.volume(id).expect("there").state == VolumeState::Serving;
        theirs.iter().all(|id| fleet.head(*id).0 != lost && served(*id))
    };
    while !back(&fleet) {
        fleet.run(50);
        assert!(most(&fleet) <= 4);
        assert!(fleet.now - killed < 3_000, "fencing waits for the storm");
    }
    // The control plane dies in the middle; `Fleet` fails if a node does anything twice.
    fleet.run(1_000);
    fleet.restart();
    for _ in 0..6_000 {
        fleet.run(50);
        assert!(most(&fleet) <= 4);
        if works.iter().all(|id| fleet.core.operation(*id).is_none_or(|one| one.phase.is_over())) {
            break;
        }
    }
    let over = |id: &OperationId| fleet.core.operation(*id).map(|one| one.phase);
    let lost: Vec<_> = works.iter().filter(|id| over(id) != Some(Phase::Done)).collect();
    assert!(lost.is_empty(), "{} of 2000 were not done: {:?}", lost.len(), fleet.core.operation(*lost[0]));
}

/// F7.A1 and A4: targets of capacity 4:4:4:1 and 200 clients that renew every two seconds.
#[test]
fn shares_of_leases_follow_capacity_within_a_tenth_in_ten_seconds_and_stay() {
    let mut fleet = Fleet::with_capacities(&[4_000, 4_000, 4_000, 1_000], Config::default());
    let mut leases = Vec::new();
    for client in 0..200 {
        let consumer = name(&format!("c{client}"));
        let acquire = Command::LeaseAcquire {
            consumer: consumer.clone(),
            resources: Resources::NONE,
            observed: vec![],
        };
        leases.push((consumer, fleet.request(acquire).expect("free").lease.expect("it")));
    }
    let share = |leases: &[(contract::Name, contract::Lease)], node: u64| {
        leases.iter().filter(|(_, lease)| lease.producer == NodeId(node)).count() as f64 / 200.0
    };
    let mut shares: Vec<Vec<f64>> = vec![Vec::new(); 4];
    for second in 0..310 {
        for (at, (consumer, lease)) in leases.iter_mut().enumerate() {
            if (at + second).is_multiple_of(2) {
                let renew =
                    Command::LeaseRenew { lease: lease.id, consumer: consumer.clone(), observed: vec![] };
                *lease = fleet.request(renew).expect("kept").lease.expect("it");
            }
        }
        fleet.run(1_000);
        if second >= 10 {
            (1..=4).for_each(|node| shares[node as usize - 1].push(share(&leases, node)));
        }
    }
    for (node, wanted) in [(0, 4.0), (1, 4.0), (2, 4.0), (3, 1.0)] {
        let wanted = wanted / 13.0;
        let first = shares[node][0];
        assert!((first - wanted).abs() <= wanted / 10.0, "node {node}: {first} of {wanted}");
        let mean = shares[node].iter().sum::<f64>() / shares[node].len() as f64;
        let variance = shares[node].iter().map(|share| (share - mean).powi(2)).sum::<f64>();
        let deviation = (variance / shares[node].len() as f64).sqrt();
        assert!(deviation / mean < 0.1, "node {node} varies by {}", deviation / mean);
    }
}
