//! Each way of misbehaving is contained, answered natively, counted and explained, and in the end rolled back.

use host::{ActivateError, Engine, Gate, Limits, Policies, Start};
use verdict::Kind;

use crate::Rig;

/// What it does, whether that shows in the first or in the second function of leasing, how it is counted, and a part
/// of the explanation.
const FAULTS: &[(&str, u64, &str, &str)] = &[
    ("panic", 0, "trap", "told to"),
    ("endless-loop", 0, "fuel", "used up its 20000000 units of fuel"),
    ("memory-bomb", 0, "memory", "more than its 67108864 bytes of memory"),
    ("deep-recursion", 0, "stack", "used up its stack"),
    ("host-call-spam", 0, "log-spam", "more than 64 lines"),
    ("lie-sum", 0, "invalid", "not to 1,000,000"),
    ("lie-rows", 0, "invalid", "`weight-ppm` has 1000000 entries"),
    ("lie-ttl", 0, "invalid", "`ttl-ms` is 0"),
    ("lie-why", 0, "answer", "cannot be taken over"),
    ("panic", 1, "trap", "told to"),
    ("lie-unknown", 1, "invalid", "names row 4294967295"),
    ("lie-all", 1, "invalid", "is revoked although the others give"),
    ("lie-grace", 1, "invalid", "`grace-ms` is 4294967295"),
];

#[test]
fn each_fault_is_answered_natively_counted_explained_and_rolled_back() {
    for &(fault, first, class, explanation) in FAULTS {
        // A new instance goes on from the newest state, so it misbehaves at once again.
        let mut rig = Rig::with(host::Options { checkpoint_every: 1, ..Default::default() });
        let good = rig.push("leasing-capacity-weighted", &[]);
        // Sound through admission, and then not any more.
        let bad = rig.push("misbehaving", &[("fault", fault), ("after", "30")]);
        rig.policies.activate(&good, Start::Fresh).expect("the good one starts");
        rig.policies.activate(&bad, Start::Fresh).expect("the bad one starts well");
        for number in 0..15 {
            let (.., decided) = rig.decide(Kind::Leasing, first + 2 * number);
            assert_eq!(decided.by.instead, None, "{fault} begins later");
        }
        let mut natively = 0;
        for number in 0..100 {
            let (tick, question, decided) = rig.decide(Kind::Leasing, first + 2 * number);
            let Some(why) = &decided.by.instead else { continue };
            assert!(why.contains(explanation), "{fault}: {why}");
            assert_eq!(decided.verdict, question.native(tick), "{fault}");
            natively += 1;
        }
        let status = rig.policies.status();
        let leasing = &status.kinds[Kind::Leasing as usize];
        assert_eq!(natively, 5, "{fault}: five within the window, then it is rolled back");
        assert_eq!(leasing.counters.faults.get(class), Some(&5), "{fault}: {:?}", leasing.counters.faults);
        assert_eq!(leasing.counters.rollbacks, 1, "{fault}");
        let why = leasing.rolled_back.as_deref().expect("it says why");
        assert!(why.contains("misbehaving") && why.contains(&good.id().to_string()), "{fault}: {why}");
        assert!(why.contains("5 faults within 100 decisions") && why.contains(explanation), "{fault}: {why}");
        assert_eq!(
            leasing.active.as_ref().map(|active| active.name.as_str()),
            Some("leasing-capacity-weighted")
        );
    }
}

#[test]
fn a_poisoned_instance_is_replaced_and_goes_on_from_its_last_state() {
    let mut rig = Rig::with(host::Options { faults_max: 50, checkpoint_every: 10, ..Default::default() });
    let bad = rig.push("misbehaving", &[("fault", "panic"), ("after", "25")]);
    rig.policies.activate(&bad, Start::Fresh).expect("it starts well");
    let failed: Vec<u64> =
        (0..40).filter(|&number| rig.decide(Kind::Leasing, 2 * number).2.by.instead.is_some()).collect();
    // It counts its calls in its state: 25 are sound. The state of the 20th is kept, so five more are, each time.
    assert_eq!(failed, [25, 31, 37]);
}

#[test]
fn the_last_version_of_all_gives_way_to_the_native_default() {
    let mut rig = Rig::with(host::Options { checkpoint_every: 1, ..Default::default() });
    let bad = rig.push("misbehaving", &[("fault", "panic"), ("after", "12")]);
    rig.policies.activate(&bad, Start::Fresh).expect("it starts well");
    (0..40).for_each(|number| drop(rig.decide(Kind::Leasing, 2 * number)));
    let (.., decided) = rig.decide(Kind::Leasing, 0);
    assert_eq!((&*decided.by.policy, decided.by.instead), ("native", None));
    assert!(matches!(
        rig.policies.roll_back(Kind::Leasing),
        Err(ActivateError::NothingBefore(Kind::Leasing))
    ));
}

#[test]
fn a_call_that_fuel_does_not_end_is_ended_by_the_clock() {
    let limits = Limits { fuel: u64::MAX / 2, deadline_ms: 1_000, ..Limits::default() };
    let engine = Engine::new(limits).expect("WebAssembly runs here");
    let policies = Policies::new(engine, Gate::default(), host::Options::default()).expect("without a log");
    let seat = policies.seat();
    let mut rig = Rig { policies, seat };
    let bad = rig.push("misbehaving", &[("fault", "endless-loop"), ("after", "20")]);
    rig.policies.activate(&bad, Start::Fresh).expect("it starts well");
    (0..20).for_each(|number| drop(rig.decide(Kind::Leasing, 2 * number)));
    let (tick, question, decided) = rig.decide(Kind::Leasing, 40);
    assert_eq!(decided.by.instead.as_deref(), Some("the policy did not answer within 1000 ms"));
    assert_eq!(decided.verdict, question.native(tick));
}

#[test]
fn an_abstention_is_no_fault() {
    let mut rig = Rig::new();
    let shy = rig.push("misbehaving", &[("fault", "abstain")]);
    rig.policies.activate(&shy, Start::Fresh).expect("it starts");
    for number in 0..50 {
        let (tick, question, decided) = rig.decide(Kind::Leasing, 2 * number);
        assert_eq!(decided.by.instead.as_deref(), Some("the policy abstains: told to"));
        assert_eq!(decided.verdict, question.native(tick));
    }
    let counters = &rig.policies.status().kinds[Kind::Leasing as usize].counters;
    assert_eq!((counters.abstained, counters.rollbacks, counters.faults.len()), (50, 0, 0));
}

#[test]
fn a_policy_that_does_not_take_over_the_state_leaves_the_old_one_active() {
    for (fault, explanation) in [("import-state", "told to refuse"), ("import-trap", "told to")] {
        let mut rig = Rig::new();
        let good = rig.push("misbehaving", &[]);
        rig.policies.activate(&good, Start::Fresh).expect("the good one starts");
        rig.decide(Kind::Leasing, 0);
        // Admission has it take over its own state, so this one is refused there already.
        let component = shipped::component("misbehaving").expect("built with this test");
        let config = crate::pairs(&[("fault", fault)]);
        let refused = rig.policies.push(&host::Candidate { component, signature: None, config });
        assert!(refused.unwrap_err().to_string().contains(explanation));
        // A policy of another family reads its own states, and not these.
        let other = rig.push("leasing-pack-tight", &[]);
        let error = rig.policies.activate(&other, Start::Carry).unwrap_err().to_string();
        assert!(error.contains("is not activated, and misbehaving"), "{error}");
        assert!(error.contains("schema 900 is not one that pack-tight reads"), "{error}");
        let (.., decided) = rig.decide(Kind::Leasing, 2);
        assert!(decided.by.policy.starts_with("misbehaving") && decided.by.instead.is_none());
        rig.policies.activate(&other, Start::Fresh).expect("without the state it starts");
    }
}

#[test]
fn a_policy_that_cannot_export_its_state_is_left_behind_with_the_last_one() {
    let component = shipped::component("misbehaving").expect("built with this test");
    for (fault, explanation) in [("export-state", "told to"), ("vast-state", "exports 16777216 bytes")] {
        let config = crate::pairs(&[("fault", fault)]);
        let refused = Rig::new().policies.push(&host::Candidate { component, signature: None, config });
        let why = refused.unwrap_err().to_string();
        // More than an answer may hold is refused before it is counted.
        assert!(why.contains(explanation) || why.contains("cannot be taken over"), "{why}");
    }
}
