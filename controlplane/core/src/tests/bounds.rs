//! What nodes, people and policies say is bounded where it comes in: no record grows beyond what the store takes.

use contract::{
    Command, Done, FromNode, InstructionKey, NodeInfo, NodeReport, NodeStep, Observed, Phase, Pool, Refused,
    Resources, StepReport,
};
use verdict::{By, Decided, Verdict};

use super::fleet::{Fleet, iops, name};
use crate::{Alarm, Config, Input, Limits};

/// Longest value of the store, `store::VALUE_BYTES_MAX`.
const RECORD_BYTES_MAX: usize = 1 << 20;

fn longest_record(fleet: &Fleet) -> usize {
    let lengths = fleet.store.values().map(|record| serde_json::to_vec(record).expect("plain").len());
    lengths.max().unwrap_or(0)
}

fn says(fleet: &mut Fleet, at: usize, message: FromNode) {
    let session = fleet.nodes[at].session;
    fleet.step(Input::Node { session, message });
}

#[test]
fn a_node_that_says_too_much_of_itself_is_told_so_and_not_taken_in() {
    let mut fleet = Fleet::new(1, Config::default());
    let pools = |count: usize| {
        (0..count).map(|at| Pool { name: name(&format!("p{at}")), shared: false, capacity_bytes: 1 })
    };
    let most = NodeInfo {
        pools: pools(NodeInfo::POOLS_MAX).collect(),
        addresses: vec!["\u{1}".repeat(NodeInfo::ADDRESS_LEN_MAX); NodeInfo::ADDRESSES_MAX],
        networks: (0..NodeInfo::NETWORKS_MAX).map(|at| name(&format!("{at:063}"))).collect(),
        ..fleet.introduction(0)
    };
    says(&mut fleet, 0, FromNode::Hello(most.clone()));
    assert_eq!(fleet.nodes[0].refused, None, "that is the most");
    assert!(longest_record(&fleet) < RECORD_BYTES_MAX, "{}", longest_record(&fleet));
    let long = "x".repeat(NodeInfo::ADDRESS_LEN_MAX + 1);
    for (info, words) in [
        (NodeInfo { pools: pools(257).collect(), ..most.clone() }, "257 pools; give it at most 256"),
        (NodeInfo { addresses: vec![String::new(); 65], ..most.clone() }, "65 addresses"),
        (NodeInfo { networks: vec![name("t"); 8_193], ..most.clone() }, "8193 networks"),
        (NodeInfo { addresses: vec![long], ..most.clone() }, "an address of 257 bytes"),
    ] {
        let before = fleet.store.clone();
        fleet.introduction(0);
        says(&mut fleet, 0, FromNode::Hello(info));
        let why = fleet.nodes[0].refused.take().expect("refused");
        assert!(why.contains(words), "{why}");
        assert_eq!(fleet.store, before, "nothing of it is kept");
    }
}

#[test]
fn a_node_that_names_other_pools_again_and_again_comes_to_an_end() {
    let limits = Limits { pools: 4, ..Limits::default() };
    let mut fleet = Fleet::new(1, Config { limits, ..Config::default() });
    let mut named = |at: usize| {
        let pools = vec![Pool { name: name(&format!("p{at}")), shared: false, capacity_bytes: 1 }];
        let info = NodeInfo { pools, ..fleet.introduction(0) };
        says(&mut fleet, 0, FromNode::Hello(info));
        fleet.nodes[0].refused.take()
    };
    // It had two before.
    assert_eq!([named(0), named(1), named(0)], [None, None, None]);
    let why = named(2).expect("refused");
    assert!(why.contains("4 names of pools"), "{why}");
}

#[test]
fn a_node_for_which_there_is_no_room_hears_so_and_somebody_is_alarmed_once() {
    let limits = Limits { nodes: 2, ..Limits::default() };
    let mut fleet = Fleet::new(2, Config { limits, ..Config::default() });
    fleet.join(1_000);
    fleet.run(2_000);
    let why = fleet.nodes[2].refused.clone().expect("it was told");
    assert!(why.contains("there are 2 nodes already; remove some"), "{why}");
    let again = fleet.introduction(2);
    for _ in 0..3 {
        says(&mut fleet, 2, FromNode::Hello(again.clone()));
    }
    let refused = |alarm: &&Alarm| matches!(alarm, Alarm::NodeRefused { name, .. } if name.as_str() == "n3");
    assert_eq!(fleet.alarms.iter().filter(refused).count(), 2, "once for each connection");
    // There is room now: the same connection comes in.
    fleet.kill(0);
    fleet.run(3_000);
    fleet.request(Command::NodeRemove { node: fleet.nodes[0].id }).expect("it is lost and holds nothing");
    says(&mut fleet, 2, FromNode::Hello(again));
    assert!(fleet.core.nodes().any(|node| node.info.name.as_str() == "n3"));
}

#[test]
fn a_reason_of_a_node_is_kept_as_far_as_a_record_should_hold_it() {
    let mut fleet = Fleet::new(2, Config::default());
    let volume = fleet.volume("a", "own", iops(10));
    let (at, _) = fleet.head(volume);
    fleet.nodes[at].busy_ms = 1_000_000;
    let id = fleet.request(Command::VolumeScrub { volume }).expect("fine").operation.expect("work");
    fleet.run(1_000);
    let under_way = |key: &&InstructionKey| key.operation == id;
    let key = *fleet.nodes[at].steps.keys().find(under_way).expect("it was told to scrub");
    assert_eq!(fleet.nodes[at].steps[&key].0.step, NodeStep::Scrub);
    // 3 bytes each, so that no cut at a fixed byte is between two of them.
    let done = Done::Failed { why: "\u{20ac}".repeat(1 << 20), again: false };
    let report = NodeReport {
        incarnation: fleet.nodes[at].incarnation,
        seq: 1_000_000,
        steps: vec![StepReport { key, done }],
        ..NodeReport::default()
    };
    says(&mut fleet, at, FromNode::Report(report));
    assert_eq!(fleet.phase(id), Phase::Failed);
    let why = &fleet.core.operation(id).expect("there").why;
    assert!(why.contains("\u{20ac}\u{20ac}") && why.len() < 1_100, "{} bytes", why.len());
    assert!(longest_record(&fleet) < 16 << 10);
}

#[test]
fn a_request_carries_no_more_than_a_record_should_hold() {
    let mut fleet = Fleet::new(1, Config::default());
    let seen = Observed { producer: fleet.nodes[0].id, requests: 1, errors: 0, response_us: 1 };
    let acquire = |count| Command::LeaseAcquire {
        consumer: name("c"),
        resources: Resources::NONE,
        observed: vec![seen; count],
    };
    fleet.keyed("most", acquire(64)).expect("fine");
    let refused = fleet.keyed("more", acquire(65)).unwrap_err();
    assert!(matches!(&refused, Refused::Invalid(why) if why.contains("at most 64 reports")), "{refused}");
}

#[test]
fn a_reason_of_a_policy_for_one_row_is_bounded_too() {
    let mut fleet = Fleet::new(1, Config { ask: true, ..Config::default() });
    let id = fleet.create("a", "own", contract::Class::Firm, iops(10)).operation.expect("work");
    for _ in 0..40 {
        fleet.run(50);
        for ask in std::mem::take(&mut fleet.asks) {
            let mut verdict = ask.question.native(ask.tick);
            if let Verdict::Schedule(assignments) = &mut verdict {
                assignments.reasons = vec!["x".repeat(2 << 20)];
            }
            let instead = Some("x".repeat(2 << 20));
            let by = By { policy: "talks@1".into(), decision: 1, instead };
            fleet.step(Input::Decided { ask: ask.id, decided: Decided { verdict, by } });
        }
    }
    assert_eq!(fleet.phase(id), Phase::Done, "by the native default");
    assert!(longest_record(&fleet) < 16 << 10);
}
