//! Many moves over one link: they come one after the other, and who is late says so.
//!
//! That reservations of a link do not overlap is looked at by the fleet after each step of every test.

use contract::{Command, OperationId, Phase, VolumeId};
use verdict::Question;

use super::fleet::{Fleet, iops};
use crate::{Alarm, Config};

fn volumes(fleet: &mut Fleet, count: usize) -> Vec<VolumeId> {
    (0..count).map(|at| fleet.volume(&format!("v{at}"), "own", iops(10))).collect()
}

fn move_it(fleet: &mut Fleet, volume: VolumeId, within_ms: Option<u64>) -> OperationId {
    let (at_once, deadline_ms) = (within_ms.is_none(), within_ms);
    let command = Command::VolumeMove { volume, to: None, at_once, deadline_ms };
    fleet.request(command).expect("fine").operation.expect("work")
}

fn reservation(fleet: &Fleet, id: OperationId) -> Option<(u64, u64)> {
    let mut all = fleet.core.reservations();
    all.find(|(.., who)| *who == id).map(|(_, from, until, _)| (from, until))
}

fn has_begun(fleet: &Fleet, id: OperationId) -> bool {
    fleet.phase(id) != Phase::Waiting
}

#[test]
fn moves_over_one_link_have_it_one_after_the_other_and_begin_by_their_deadlines() {
    let mut fleet = Fleet::new(2, Config::default());
    let volumes = volumes(&mut fleet, 6);
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 2_000);
    // A copy takes nine seconds of the link.
    let moves: Vec<_> = volumes.iter().map(|volume| move_it(&mut fleet, *volume, Some(70_000))).collect();
    let asked_ms = fleet.core.now_ms();
    fleet.run(100);
    assert_eq!(fleet.core.reservations().count(), 6, "each has its time");
    let mut began = vec![None; moves.len()];
    for _ in 0..80_000 / 50 {
        fleet.run(50);
        for (began, id) in began.iter_mut().zip(&moves) {
            if has_begun(&fleet, *id) {
                began.get_or_insert(fleet.core.now_ms());
            }
        }
    }
    for (began, id) in began.iter().zip(&moves) {
        assert!(began.is_some_and(|at| at <= asked_ms + 71_000), "{id}: {began:?}: {}", fleet.why(*id));
        assert_eq!(fleet.phase(*id), Phase::Done, "{}", fleet.why(*id));
    }
    assert!(!fleet.alarms.iter().any(|alarm| matches!(alarm, Alarm::LateMove { .. })));
    assert_eq!(fleet.core.reservations().count(), 0, "all is given back");
}

#[test]
fn a_move_at_once_has_the_link_from_now_on_and_who_planned_to_use_it_plans_anew() {
    let mut fleet = Fleet::new(2, Config::default());
    let volumes = volumes(&mut fleet, 3);
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 1_000);
    let first = move_it(&mut fleet, volumes[0], Some(100_000));
    let second = move_it(&mut fleet, volumes[1], Some(100_000));
    assert!(has_begun(&fleet, first), "{}", fleet.why(first));
    let planned = reservation(&fleet, second).expect("planned");
    assert_eq!(Some(planned.0), reservation(&fleet, first).map(|(_, until)| until));
    fleet.finish(first);
    let at_once = move_it(&mut fleet, volumes[2], None);
    fleet.run(100);
    assert!(has_begun(&fleet, at_once) && !has_begun(&fleet, second));
    let (from, until) = reservation(&fleet, at_once).expect("it has the link");
    assert!(from < planned.1 && planned.0 < until, "they would meet");
    let again = reservation(&fleet, second).expect("planned anew");
    assert!(again.0 >= until, "{again:?} is after {until}");
    // A restart knows both.
    fleet.restart();
    fleet.run(1_500);
    assert!(reservation(&fleet, at_once).is_some() && reservation(&fleet, second).is_some());
    fleet.finish(second);
    assert_eq!(fleet.phase(at_once), Phase::Done);
}

#[test]
fn a_move_that_misses_its_deadline_says_so_and_why() {
    let mut fleet = Fleet::new(2, Config::default());
    let volumes = volumes(&mut fleet, 3);
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 4_000);
    let holds = move_it(&mut fleet, volumes[0], None);
    fleet.run(100);
    // No time is free before its deadline; and one that no node can take.
    let late = move_it(&mut fleet, volumes[1], Some(3_000));
    let to = fleet.nodes[1 - fleet.head(volumes[2]).0].id;
    let cordon = Command::NodeCordon { node: to, cordoned: true };
    fleet.request(cordon).expect("fine");
    let command =
        Command::VolumeMove { volume: volumes[2], to: Some(to), at_once: false, deadline_ms: Some(3_000) };
    let nowhere = fleet.request(command).expect("fine").operation.expect("work");
    fleet.run(6_000);
    for (id, words) in [(late, "copy-slots"), (nowhere, "is cordoned")] {
        assert_eq!(fleet.phase(id), Phase::Waiting);
        let why = fleet.why(id);
        assert!(why.contains("it was to begin") && why.contains(words), "{why}");
        let said = |alarm: &&Alarm| matches!(alarm, Alarm::LateMove { operation, .. } if *operation == id);
        assert_eq!(fleet.alarms.iter().filter(said).count(), 1, "once: {:?}", fleet.alarms);
    }
    fleet.finish(holds);
    fleet.finish(late);
    assert!(fleet.why(late).contains("after its deadline"), "{}", fleet.why(late));
}

#[test]
fn a_policy_is_told_when_others_have_the_link() {
    let mut fleet = Fleet::new(2, Config::default());
    let volumes = volumes(&mut fleet, 2);
    fleet.nodes.iter_mut().for_each(|node| node.busy_ms = 8_000);
    let first = move_it(&mut fleet, volumes[0], None);
    fleet.run(100);
    let (from, until) = reservation(&fleet, first).expect("it has the link");
    let config = Config { ask: true, ..fleet.core.config().clone() };
    fleet.restart_with(config);
    move_it(&mut fleet, volumes[1], Some(60_000));
    let mut link = None;
    for _ in 0..200 {
        fleet.run(50);
        for ask in std::mem::take(&mut fleet.asks) {
            if let Question::ChooseTime(question) = &ask.question {
                link = Some(question.link.clone());
            }
            let by = verdict::By { policy: "p".into(), decision: 1, instead: None };
            let decided = verdict::Decided { verdict: ask.question.native(ask.tick), by };
            fleet.step(crate::Input::Decided { ask: ask.id, decided });
        }
    }
    let link = link.expect("asked");
    let between = from.midpoint(until);
    assert_eq!(link.free_at(between), 0, "{link:?}, reserved {from} to {until}");
    assert!(link.free_at(until + 20_000) > 0, "{link:?}");
}
