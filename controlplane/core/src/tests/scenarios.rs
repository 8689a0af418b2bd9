//! Scenarios that the product is judged by, in a fleet of obedient nodes: a storm of operations, shares of leases.

use contract::{Class, Command, Dim, NodeId, OperationId, Phase, Resources, Scope, VolumeState};

use verdict::{BuildProfile, By, Decided, Profile, Question, Samples, Verdict};

use super::fleet::{Fleet, iops, name};
use crate::{Config, Input};

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

/// The profile that a policy learns which folds the history at each period and takes the shortest that explains it well.
fn learnt(question: &BuildProfile) -> Profile {
    let Samples { at_ms, iops, dirty_bytes_per_s, .. } = &question.samples;
    // By the times of samples: some are missing where a volume moved.
    let slot = |at: u64, slots: usize| ((at - at_ms[0]) / 1_000) as usize % slots;
    let fold = |column: &[u64], slots: usize| -> Vec<u64> {
        let mut sums = vec![(0, 0); slots];
        for (&at, value) in at_ms.iter().zip(column) {
            let (sum, count) = &mut sums[slot(at, slots)];
            (*sum, *count) = (*sum + value, *count + 1);
        }
        // Nothing is known of a slot without samples: it is no time to move.
        let most = column.iter().copied().max().unwrap_or(0);
        sums.into_iter().map(|(sum, count): (u64, u64)| sum.checked_div(count).unwrap_or(most)).collect()
    };
    let missed = |slots: usize| -> u64 {
        let folded = fold(iops, slots);
        at_ms.iter().zip(iops).map(|(&at, iops)| iops.abs_diff(folded[slot(at, slots)])).sum()
    };
    // A multiple of the period explains some more, by chance.
    let all = 10..iops.len() / 2;
    let least = all.clone().map(missed).min().expect("a history of twenty seconds");
    let slots = all.clone().find(|slots| missed(*slots) <= 2 * least).expect("that one at least");
    Profile {
        origin_ms: at_ms[0],
        slot_ms: 1_000,
        iops: fold(iops, slots),
        dirty_bytes_per_s: fold(dirty_bytes_per_s, slots),
        confidence_ppm: 1_000_000,
        ..Profile::default()
    }
}

/// F14.A1: a load of 45 s hot and 15 s quiet, five periods learnt, 100 requests at all times. The native default knows
/// no pattern, so this needs a policy that learns.
#[test]
fn moves_begin_in_the_quiet_part_of_a_pattern_that_a_policy_has_learnt() {
    let quiet = |now: u64| now % 60_000 >= 45_000;
    let mut fleet = Fleet::new(2, Config { ask: true, ..Config::default() });
    for node in &mut fleet.nodes {
        node.load = Some(|now| if now % 60_000 < 45_000 { 20_000 } else { 400 });
        node.busy_ms = 500;
    }
    let run = |fleet: &mut Fleet, ms: u64| {
        for _ in 0..ms / 50 {
            fleet.run(50);
            for ask in std::mem::take(&mut fleet.asks) {
                let verdict = match &ask.question {
                    Question::BuildProfile(question) => Verdict::BuildProfile(learnt(question)),
                    question => question.native(ask.tick),
                };
                let by = By { policy: "learns".into(), decision: 1, instead: None };
                fleet.step(Input::Decided { ask: ask.id, decided: Decided { verdict, by } });
            }
        }
    };
    let volume = fleet.create("a", "own", Class::Firm, iops(100)).volume.expect("made");
    run(&mut fleet, 5 * 60_000);
    let (mut began_quiet, mut native_quiet) = (0, 0);
    for request in 0..100_u64 {
        // Over all of a period.
        run(&mut fleet, 7_000 + request * 37 % 60 * 1_000);
        native_quiet += u32::from(quiet(fleet.now));
        let command = Command::VolumeMove { volume, to: None, at_once: false, deadline_ms: None };
        let id = fleet.request(command).expect("fine").operation.expect("work");
        while fleet.phase(id) == Phase::Waiting {
            run(&mut fleet, 50);
        }
        began_quiet += u32::from(quiet(fleet.now));
        while !fleet.phase(id).is_over() {
            run(&mut fleet, 50);
        }
        assert_eq!(fleet.phase(id), Phase::Done, "{}", fleet.why(id));
    }
    assert!(
        began_quiet >= 95,
        "{began_quiet} of 100 begin in the quiet part, {native_quiet} were asked for in it"
    );
    assert!((10..40).contains(&native_quiet), "{native_quiet}");
}
