//! Who decided what, and why, is found where it shows.

use contract::{Class, Command, Explanation, NodeId, OperationId, Phase, VolumeReport};
use verdict::{By, Decided, Question, Verdict};

use super::fleet::{Fleet, iops};
use crate::explain::About;
use crate::{Config, Input};

/// Runs with a policy that answers as the native default does, in words of its own.
fn run(fleet: &mut Fleet, ms: u64) {
    for _ in 0..ms / 50 {
        fleet.run(50);
        for ask in std::mem::take(&mut fleet.asks) {
            let mut verdict = ask.question.native(ask.tick);
            match &mut verdict {
                Verdict::UpdateWeights(weights) => weights.why = "as the moon stands".into(),
                Verdict::BuildProfile(profile) => profile.why = "no tide was found".into(),
                _ => {}
            }
            let by = By { policy: "moon@3".into(), decision: 41, instead: None };
            fleet.step(Input::Decided { ask: ask.id, decided: Decided { verdict, by } });
        }
    }
}

/// Whether a reason has these words and names the policy.
fn is_said(explanation: &Explanation, words: &str) -> bool {
    explanation.reasons.iter().any(|reason| {
        let by = reason.policy.as_ref();
        reason.text.contains(words) && by.is_some_and(|by| by.policy == "moon@3" && by.decision == 41)
    })
}

#[test]
fn what_a_leasing_policy_decided_is_said_of_nodes_leases_and_volumes() {
    let mut fleet = Fleet::new(2, Config { ask: true, ..Config::default() });
    let before = fleet.core.explain(About::Node(NodeId(1))).expect("there");
    let weight = before.reasons.iter().find(|reason| reason.text.contains("weight")).expect("said");
    let instead = weight.policy.as_ref().and_then(|by| by.instead.as_deref());
    assert!(instead.is_some_and(|why| why.contains("no answer within")), "{weight:?}");
    run(&mut fleet, 2_000);
    let node = fleet.core.explain(About::Node(NodeId(1))).expect("there");
    assert!(is_said(&node, "as the moon stands"), "{node:#?}");
    let volume = fleet.create("a", "own", Class::Firm, iops(10)).volume.expect("made");
    run(&mut fleet, 2_000);
    let head = fleet.core.volume(volume).expect("there").head.expect("served");
    for about in [About::Lease(head.lease), About::Volume(volume)] {
        let explained = fleet.core.explain(about).expect("there");
        assert!(is_said(&explained, "as the moon stands"), "{explained:#?}");
    }
    // What was stored says so after a restart.
    fleet.restart();
    let lease = fleet.core.explain(About::Lease(head.lease)).expect("there");
    assert!(is_said(&lease, "as the moon stands"), "{lease:#?}");
}

#[test]
fn who_made_the_profile_of_a_move_is_said_with_its_plan_and_after() {
    let mut fleet = Fleet::new(2, Config { ask: true, ..Config::default() });
    let volume = fleet.create("a", "own", Class::Firm, iops(10)).volume.expect("made");
    run(&mut fleet, 2_000);
    let to_move = Command::VolumeMove { volume, to: None, at_once: false, deadline_ms: Some(20_000) };
    let id = fleet.request(to_move).expect("fine").operation.expect("work");
    run(&mut fleet, 100);
    let planned = fleet.core.explain(About::Operation(id)).expect("there");
    assert!(is_said(&planned, "no tide was found"), "{planned:#?}");
    run(&mut fleet, 25_000);
    assert_eq!(fleet.phase(id), Phase::Done);
    let done = fleet.core.explain(About::Operation(id)).expect("there");
    assert!(is_said(&done, "no tide was found"), "{done:#?}");
}

const HOUR_MS: u64 = 3_600_000;

/// Plans the move of a volume whose load was that in each second of a day, with what a policy makes of the questions.
fn planned(
    load: impl Fn(u64) -> u32,
    mut answer: impl FnMut(&Question, &mut Verdict),
) -> (Fleet, OperationId) {
    let mut fleet = Fleet::new(2, Config { ask: true, ..Config::default() });
    let volume = fleet.create("a", "own", Class::Firm, iops(10)).volume.expect("made");
    run(&mut fleet, 2_000);
    let report = VolumeReport {
        volume,
        epoch: contract::Epoch(1),
        worker: 0,
        serving: contract::Serving::Active,
        nqn: String::new(),
        size_bytes: 1 << 30,
        iops: 0,
        bytes_per_s: 0,
        dirty_bytes_per_s: 0,
        p99_us: 0,
        errors: 0,
        credits: contract::Credits::default(),
    };
    // As its node would have said it each second; looked at more seldom.
    for second in (0..86_400).step_by(20) {
        let report = VolumeReport { iops: load(second), ..report.clone() };
        fleet.core.histories.sample(&report, second * 1_000, 10);
    }
    let to_move = Command::VolumeMove { volume, to: None, at_once: false, deadline_ms: Some(4 * HOUR_MS) };
    let id = fleet.request(to_move).expect("fine").operation.expect("work");
    for _ in 0..10 {
        fleet.run(50);
        for ask in std::mem::take(&mut fleet.asks) {
            let mut verdict = ask.question.native(ask.tick);
            answer(&ask.question, &mut verdict);
            let by = By { policy: "moon@3".into(), decision: 41, instead: None };
            fleet.step(Input::Decided { ask: ask.id, decided: Decided { verdict, by } });
        }
    }
    (fleet, id)
}

/// The periods that are looked for, if it is a question for a profile.
fn periods_ms(question: &Question) -> Option<(u64, u64)> {
    let Question::BuildProfile(question) = question else { return None };
    Some((question.rules.period_min_ms, question.rules.period_max_ms))
}

/// Finds hours where it sees days.
fn find_hours(question: &Question, verdict: &mut Verdict) {
    let (Question::BuildProfile(question), Verdict::BuildProfile(profile)) = (question, verdict) else {
        return;
    };
    if question.rules.period_max_ms == 24 * HOUR_MS {
        assert!(question.samples.iops.contains(&900) && question.samples.iops.contains(&10));
        (profile.slot_ms, profile.iops) = (HOUR_MS, vec![900, 10]);
        profile.dirty_bytes_per_s = vec![1 << 20, 0];
        profile.why = "every second hour".into();
    }
}

#[test]
fn a_pattern_of_hours_is_learnt_when_minutes_show_none() {
    let (mut asked, mut offered) = (Vec::new(), Vec::new());
    let load = |second| if second / 3_600 % 2 == 0 { 900 } else { 10 };
    let (fleet, id) = planned(load, |question, verdict| {
        asked.extend(periods_ms(question));
        find_hours(question, verdict);
        if let Question::ChooseTime(question) = question {
            assert_eq!(question.profile.slots(), 2);
            offered.clone_from(&question.candidates_ms);
        }
    });
    assert_eq!(asked, [(10_000, 600_000), (600_000, 86_400_000)]);
    let apart = offered.windows(2).map(|two| two[1] - two[0]).max().expect("several times");
    assert!(offered.len() >= 8 && apart <= HOUR_MS, "{offered:?}");
    let planned = fleet.core.explain(About::Operation(id)).expect("there");
    assert!(is_said(&planned, "every second hour"), "{planned:#?}");
}

#[test]
fn a_pattern_of_hours_is_learnt_of_a_volume_that_has_been_idle_since() {
    let mut asked = Vec::new();
    let load = |second| match second / 3_600 {
        18.. => 0,
        hour if hour % 2 == 0 => 900,
        _ => 10,
    };
    let (fleet, id) = planned(load, |question, verdict| {
        asked.extend(periods_ms(question));
        find_hours(question, verdict);
    });
    assert_eq!(asked, [(600_000, 86_400_000)], "there are no seconds to ask about");
    let planned = fleet.core.explain(About::Operation(id)).expect("there");
    assert!(is_said(&planned, "every second hour"), "{planned:#?}");
}

#[test]
fn where_neither_minutes_nor_days_show_a_pattern_a_move_expects_the_load_of_the_minutes() {
    let (mut asked, mut expected) = (Vec::new(), Vec::new());
    let load = |second| if second < 43_200 { 900 } else { 10 };
    let (fleet, id) = planned(load, |question, verdict| {
        asked.extend(periods_ms(question));
        match (question, verdict) {
            (Question::BuildProfile(_), Verdict::BuildProfile(profile)) => {
                profile.why = format!("asked {} times", asked.len());
            }
            (Question::ChooseTime(question), _) => expected.clone_from(&question.profile.iops),
            _ => {}
        }
    });
    assert_eq!((asked.len(), expected), (2, vec![10]));
    let planned = fleet.core.explain(About::Operation(id)).expect("there");
    assert!(is_said(&planned, "asked 1 times"), "{planned:#?}");
}

#[test]
fn records_of_before_decisions_were_kept_are_read() {
    let mut fleet = Fleet::new(1, Config::default());
    fleet.volume("a", "own", iops(10));
    for record in fleet.store.values_mut() {
        let mut value = serde_json::to_value(&*record).expect("plain");
        for (kind, field) in [("Lease", "policy"), ("Operation", "profile")] {
            if let Some(object) = value.get_mut(kind).and_then(|object| object.as_object_mut()) {
                assert!(object.remove(field).is_some(), "{kind} has {field}");
            }
        }
        *record = serde_json::from_value(value).expect("as an older version wrote it");
    }
    fleet.restart();
    assert_eq!(fleet.core.leases().count(), 1);
}
