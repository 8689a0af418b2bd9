//! Pushed, shadowed, activated, rolled back by hand.

use std::collections::BTreeSet;

use host::{Cache, Candidate, Gate, LIBRARY_MAX, Options, Policies, PolicyId, Start};
use verdict::Kind;

use crate::{Folder, Rig, engine, pairs};

#[test]
fn a_shadow_is_asked_and_compared_and_decides_nothing() {
    let mut rig = Rig::new();
    let active = rig.push("leasing-capacity-weighted", &[]);
    let other = rig.push("leasing-pack-tight", &[]);
    rig.policies.activate(&active, Start::Fresh).expect("it starts");
    rig.policies.shadow(&active).expect("a policy may be its own shadow");
    (0..20).for_each(|number| drop(rig.decide(Kind::Leasing, number)));
    let shadow = rig.policies.status().kinds[Kind::Leasing as usize].shadow.clone().expect("a shadow");
    assert_eq!((shadow.comparison.decisions, shadow.comparison.same), (20, 20), "from a copy of the state");
    assert_eq!(shadow.comparison.fuel, shadow.comparison.active_fuel);

    rig.policies.shadow(&other).expect("it reads the state");
    for number in 0..20 {
        let (.., decided) = rig.decide(Kind::Leasing, number);
        assert!(decided.by.policy.starts_with("leasing-capacity-weighted"));
    }
    let status = rig.policies.status();
    let comparison = &status.kinds[Kind::Leasing as usize].shadow.as_ref().expect("a shadow").comparison;
    assert_eq!(comparison.decisions, 20);
    assert!(comparison.different >= 10, "{comparison:?}");
    let difference = comparison.differences.first().expect("in words");
    assert!(difference.active.contains("by capacity") && difference.shadow.contains("have room enough"));
    assert!(rig.policies.stop_shadow(Kind::Leasing));
    assert!(!rig.policies.stop_shadow(Kind::Leasing));
}

#[test]
fn a_shadow_that_fails_costs_nobody_a_decision() {
    let mut rig = Rig::new();
    let bad = rig.push("misbehaving", &[("fault", "panic"), ("after", "12")]);
    rig.policies.shadow(&bad).expect("it starts well");
    for number in 0..80 {
        let (.., decided) = rig.decide(Kind::Leasing, 2 * number);
        assert_eq!((&*decided.by.policy, decided.by.instead), ("native", None));
    }
    let status = rig.policies.status();
    let leasing = &status.kinds[Kind::Leasing as usize];
    let comparison = &leasing.shadow.as_ref().expect("a shadow").comparison;
    assert!(comparison.stopped, "{comparison:?}");
    assert_eq!((comparison.faults, comparison.same), (5, comparison.decisions - 5), "{comparison:?}");
    assert!(leasing.counters.faults.is_empty() && leasing.counters.rollbacks == 0);
}

#[test]
fn going_back_takes_code_and_configuration_together_and_the_state_along() {
    let mut rig = Rig::new();
    let short = rig.push("leasing-capacity-weighted", &[("ttl-ms", "6000")]);
    let long = rig.push("leasing-capacity-weighted", &[("ttl-ms", "60000")]);
    assert_eq!(short.id().digest, long.id().digest);
    assert_ne!(short.id().config, long.id().config);
    let ttl = |rig: &mut Rig| match rig.decide(Kind::Leasing, 0).2.verdict {
        verdict::Verdict::UpdateWeights(weights) => weights.ttl_ms.iter().copied().max(),
        other => panic!("{other:?}"),
    };
    rig.policies.activate(&short, Start::Fresh).expect("it starts");
    assert_eq!(ttl(&mut rig), Some(6_000));
    let activation = rig.policies.activate(&long, Start::Carry).expect("it takes over");
    assert!(activation.state_bytes > 0 && activation.seats == 1, "{activation:?}");
    assert_eq!(ttl(&mut rig), Some(60_000));
    let back = rig.policies.roll_back(Kind::Leasing).expect("there is a version before");
    assert!(back.state_bytes > 0, "what was learnt since is kept");
    assert_eq!(ttl(&mut rig), Some(6_000));
    let status = rig.policies.status();
    let leasing = &status.kinds[Kind::Leasing as usize];
    assert!(leasing.rolled_back.as_deref().expect("it says so").contains("by hand"));
    assert_eq!((leasing.counters.activations, leasing.counters.rollbacks), (2, 1));
    assert_eq!(leasing.counters.by_policy, leasing.counters.decisions);
    let events: Vec<&str> = status.events.iter().map(|event| event.what.as_str()).collect();
    assert!(events.iter().any(|what| what.contains("is pushed")), "{events:?}");
}

#[test]
fn every_policy_thread_runs_what_is_active_and_a_new_one_too() {
    let mut rig = Rig::new();
    let policy = rig.push("scheduling-urgent-first", &[]);
    let second = rig.policies.seat();
    let activation = rig.policies.activate(&policy, Start::Fresh).expect("it starts");
    assert_eq!(activation.seats, 2);
    drop(second);
    let third = rig.policies.seat();
    rig.decide(Kind::Scheduling, 0);
    let status = rig.policies.status();
    let running = &status.kinds[Kind::Scheduling as usize].running;
    let seats: BTreeSet<u32> = running.iter().map(|(seat, _)| *seat).collect();
    assert_eq!(seats, BTreeSet::from([1, 3]));
    assert!(running.iter().all(|(_, label)| label.starts_with("scheduling-urgent-first 0.1.0 (")));
    drop(third);
}

#[test]
fn what_is_in_use_stays_and_what_is_not_is_removed() {
    let mut rig = Rig::new();
    let first = rig.push("leasing-capacity-weighted", &[]);
    let second = rig.push("leasing-pack-tight", &[]);
    let third = rig.push("leasing-pack-tight", &[("ttl-ms", "7000")]);
    rig.policies.activate(&first, Start::Fresh).expect("it starts");
    rig.policies.activate(&second, Start::Carry).expect("it takes over");
    rig.policies.shadow(&third).expect("it starts");
    for (used, word) in [(&second, "tidegate policy rollback leasing"), (&third, "shadow --stop leasing")] {
        let refused = rig.policies.remove(used).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
    rig.policies.stop_shadow(Kind::Leasing);
    rig.policies.remove(&third).expect("nobody asks it");
    assert_eq!(rig.policies.find("leasing-pack-tight").expect("the other one").id(), second.id());
    let gone = rig.policies.activate(&third, Start::Carry).unwrap_err().to_string();
    assert!(gone.contains("push it again"), "{gone}");
    // Nobody goes back to what is removed.
    rig.policies.remove(&first).expect("it does not decide");
    rig.policies.roll_back(Kind::Leasing).expect("to the native default");
    assert!(rig.policies.active(Kind::Leasing).is_none());
    let (.., decided) = rig.decide(Kind::Leasing, 0);
    assert_eq!(&*decided.by.policy, "native");
}

#[test]
fn there_is_a_bound_on_what_is_ready_and_it_says_what_to_do() {
    let folder = Folder::new("library");
    // All of them run the same code.
    let gate =
        Gate { cache: Some(Cache::open(&folder.0.join("compiled")).expect("ours")), ..Gate::default() };
    let policies = Policies::new(engine(), gate, Options::default()).expect("without a log");
    let component = shipped::component("leasing-pack-tight").expect("built with this test");
    let push = |number: usize| {
        let config = pairs(&[("ttl-ms", &(5_000 + number).to_string())]);
        policies.push(&Candidate { component, signature: None, config })
    };
    let compiled = || std::fs::read_dir(folder.0.join("compiled")).expect("ours").count();
    let all: Vec<_> = (0..LIBRARY_MAX).map(|number| push(number).expect("there is room")).collect();
    let refused = push(LIBRARY_MAX).unwrap_err().to_string();
    assert!(refused.contains("tidegate policy remove"), "{refused}");
    assert_eq!(push(3).expect("it is there already").id(), all[3].id());
    // One of many that run the same code is told from the others by its configuration.
    let PolicyId { digest, config, .. } = all[0].id();
    let found = policies.find(&format!("{}-{}", digest.short(), config.short())).expect("it is there");
    assert_eq!(found.id(), all[0].id());
    policies.remove(&found).expect("nobody uses it");
    push(LIBRARY_MAX).expect("there is room again");
    let own = shipped::component("scheduling-urgent-first").expect("built with this test");
    policies.push_own(own).expect("what the program has itself finds room");
    assert_eq!(compiled(), 2);
    for number in 1..=LIBRARY_MAX {
        policies.remove(&push(number).expect("it is there")).expect("nobody uses it");
        assert_eq!(compiled(), if number < LIBRARY_MAX { 2 } else { 1 }, "its code goes with the last one");
    }
}

#[test]
fn a_policy_is_found_by_name_and_digest() {
    let rig = Rig::new();
    let policy = rig.push("migration-quiet-window", &[]);
    let digest = policy.id().digest.to_string();
    for text in ["migration-quiet-window", &digest, &digest[..8]] {
        assert_eq!(rig.policies.find(text).expect("it is there").id(), policy.id(), "{text}");
    }
    assert!(rig.policies.find(&digest[..3]).is_none() && rig.policies.find("quiet").is_none());
    let again = rig.push("migration-quiet-window", &[]);
    assert_eq!(again.id(), policy.id());
    assert_eq!(rig.policies.status().library.len(), 1, "pushing the same twice changes nothing");
}
