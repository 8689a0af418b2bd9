//! A few worlds, and mistakes that must be found; `cargo xtask sim` runs many.

use sim::{Bug, Setup, run};

#[test]
fn worlds_in_which_everything_fails_hold_and_converge() {
    for seed in 1..=6 {
        let outcome = run(Setup { seed, events: 4_000, bug: None });
        assert_eq!(outcome.violation, None, "seed {seed}: cargo xtask sim --seed {seed} --events 4000");
        assert!(outcome.events >= 4_000 && outcome.counters.steps > 0);
    }
}

#[test]
fn a_seed_gives_the_same_world_byte_for_byte() {
    let setup = Setup { seed: 77, events: 3_000, bug: None };
    assert_eq!(run(setup), run(setup));
    assert_ne!(run(setup).digest, run(Setup { seed: 78, ..setup }).digest);
}

#[test]
fn planted_mistakes_are_found() {
    for bug in [Bug::LostLimit, Bug::PatientWithPolicies, Bug::LateWatcher] {
        let finds =
            |seed: &u64| run(Setup { seed: *seed, events: 20_000, bug: Some(bug) }).violation.is_some();
        assert!((1..=100).any(|seed| finds(&seed)), "{bug:?} is not found in 100 seeds");
    }
}
