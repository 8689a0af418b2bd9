//! Silence, lateness, the valve.

use proptest::prelude::*;

use super::*;

fn fleet(count: u64) -> (Liveness, Config) {
    let config = Config::default();
    let mut fleet = Liveness::default();
    (1..=count).for_each(|id| fleet.add(NodeId(id), NodeState::Alive, 0));
    (fleet, config)
}

/// Everybody but `silent` is heard every 250 ms until then; collects what is judged.
fn run(fleet: &mut Liveness, config: &Config, from: u64, to: u64, silent: &[u64]) -> Vec<(u64, Verdicts)> {
    let mut all = Vec::new();
    for now in (from..=to).step_by(250) {
        let ids: Vec<NodeId> = fleet.nodes.keys().copied().filter(|id| !silent.contains(&id.0)).collect();
        ids.into_iter().for_each(|id| {
            fleet.heard(id, now, config);
        });
        let verdicts = fleet.judge(now, config);
        if verdicts != Verdicts::default() {
            all.push((now, verdicts));
        }
    }
    all
}

#[test]
fn a_silent_node_is_suspect_and_then_lost_and_must_stay_to_be_trusted_again() {
    let (mut fleet, config) = fleet(4);
    let judged = run(&mut fleet, &config, 0, 2_000, &[3]);
    let change = |state| Verdicts { changes: vec![(NodeId(3), state)], shut: None };
    assert_eq!(judged, [(750, change(NodeState::Suspect)), (1_500, change(NodeState::Lost))]);
    assert_eq!(fleet.heard(NodeId(3), 2_100, &config), Some(NodeState::Returning));
    assert_eq!(fleet.heard(NodeId(3), 2_600, &config), None);
    assert_eq!(fleet.heard(NodeId(3), 3_100, &config), Some(NodeState::Alive));
}

#[test]
fn a_suspect_that_is_heard_was_only_slow() {
    let (mut fleet, config) = fleet(4);
    run(&mut fleet, &config, 0, 1_250, &[3]);
    assert_eq!(fleet.state(NodeId(3)), NodeState::Suspect);
    assert_eq!(fleet.heard(NodeId(3), 1_400, &config), Some(NodeState::Alive));
    assert_eq!(fleet.judge(1_600, &config), Verdicts::default());
}

#[test]
fn a_node_that_flaps_must_stay_longer_each_time() {
    let (mut fleet, config) = fleet(4);
    let mut now = 0;
    for flaps in 0..3 {
        run(&mut fleet, &config, now, now + 2_000, &[3]);
        assert_eq!(fleet.state(NodeId(3)), NodeState::Lost);
        now += 2_250;
        let begun = now;
        while fleet.state(NodeId(3)) != NodeState::Alive {
            run(&mut fleet, &config, now, now, &[]);
            now += 250;
        }
        assert_eq!(now - 250 - begun, 1_000 << flaps);
    }
}

#[test]
fn a_late_watcher_judges_nobody() {
    let (mut fleet, config) = fleet(4);
    fleet.was_away(10_000, &config);
    let verdicts = fleet.judge(10_000, &config);
    assert!(verdicts.changes.iter().all(|(_, state)| *state == NodeState::Suspect));
    let later = run(&mut fleet, &config, 10_100, 11_400, &[2]);
    assert!(later.is_empty(), "{later:?}");
    let judged = run(&mut fleet, &config, 11_500, 11_500, &[2]);
    assert_eq!(judged[0].1.changes, [(NodeId(2), NodeState::Lost)]);
}

#[test]
fn a_third_of_the_fleet_at_once_shuts_the_valve_until_it_is_heard() {
    let (mut fleet, config) = fleet(6);
    let judged = run(&mut fleet, &config, 0, 5_000, &[1, 2]);
    assert!(judged.iter().all(|(_, verdicts)| verdicts.changes.iter().all(|(_, s)| *s != NodeState::Lost)));
    assert_eq!(judged.iter().filter_map(|(_, verdicts)| verdicts.shut).collect::<Vec<_>>(), [(2, 6)]);
    assert!(fleet.is_shut());
    fleet.heard(NodeId(1), 5_250, &config);
    let judged = run(&mut fleet, &config, 5_250, 5_250, &[2]);
    assert_eq!(judged[0].1.changes, [(NodeId(2), NodeState::Lost)], "one alone is judged");
}

#[test]
fn a_person_may_open_the_valve() {
    let (mut fleet, config) = fleet(6);
    run(&mut fleet, &config, 0, 5_000, &[1, 2, 3]);
    fleet.open_valve(5_000, &config);
    let judged = run(&mut fleet, &config, 5_000, 5_000, &[1, 2, 3]);
    assert_eq!(judged[0].1.changes.len(), 3);
}

#[test]
fn one_of_two_nodes_is_judged_and_both_are_not() {
    let (mut fleet, config) = fleet(2);
    run(&mut fleet, &config, 0, 2_000, &[1]);
    assert_eq!(fleet.state(NodeId(1)), NodeState::Lost);
    let (mut fleet, config) = self::fleet(2);
    run(&mut fleet, &config, 0, 2_000, &[1, 2]);
    assert_eq!(fleet.state(NodeId(1)), NodeState::Suspect);
}

proptest! {
    #[test]
    fn a_node_is_lost_only_after_silence(
        silences in proptest::collection::vec((1_u64..5, 0_u64..1_000), 1..400)
    ) {
        let (mut fleet, config) = fleet(4);
        let mut last = [0_u64; 5];
        let mut now = 0;
        for (id, after) in silences {
            now += after;
            let judged = fleet.judge(now, &config);
            for (id, state) in judged.changes {
                let silent = now - last[id.0 as usize];
                let least = if state == NodeState::Lost { 1_500 } else { 750 };
                prop_assert!(silent >= least);
            }
            if let Some(due) = fleet.due_ms(&config) {
                prop_assert!(due > now || fleet.is_shut(), "{due} is not after {now}");
            }
            fleet.heard(NodeId(id), now, &config);
            last[id as usize] = now;
        }
    }
}
