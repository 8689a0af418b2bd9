//! The ledger against a naive sum.

use contract::{Limit, NodeId, VolumeId};
use proptest::prelude::*;

use super::*;

fn copy(node: u64) -> Usage {
    Usage { dim: Dim::CopySlots, scope: Scope::Node(NodeId(node)), amount: 1 }
}

#[test]
fn queued_work_alone_blocks_more_of_it() {
    let mut ledger = Ledger::new(&Config { copy_slots_per_node: 4, ..Config::default() });
    for id in 1..=4 {
        ledger.take(OperationId(id), vec![copy(1), copy(2)], Priority::Bulk).expect("fits");
    }
    let blocked = ledger.take(OperationId(5), vec![copy(2)], Priority::Bulk).unwrap_err();
    assert_eq!(
        blocked.to_string(),
        "node/2 has 4 of 4 copy-slots in use or scheduled, and it needs 1",
        "sources count as targets do"
    );
    ledger.give(OperationId(1));
    ledger.take(OperationId(5), vec![copy(2)], Priority::Bulk).expect("fits again");
}

#[test]
fn a_lowered_limit_drains_and_aborts_nothing() {
    let mut ledger = Ledger::new(&Config::default());
    let max = |max| Limit { dim: Dim::CopySlots, scope: Scope::Node(NodeId(1)), max };
    for id in 1..=3 {
        ledger.take(OperationId(id), vec![copy(1)], Priority::Bulk).expect("fits");
    }
    ledger.set_limit(max(1));
    assert_eq!(ledger.used(Dim::CopySlots, Scope::Node(NodeId(1))), 3);
    for id in 1..=2 {
        ledger.give(OperationId(id));
        assert!(ledger.take(OperationId(9), vec![copy(1)], Priority::Bulk).is_err());
    }
    ledger.give(OperationId(3));
    ledger.take(OperationId(9), vec![copy(1)], Priority::Bulk).expect("fits");
}

#[test]
fn fencing_has_room_that_others_have_not() {
    let config = Config { operations_per_node: 2, operations_reserved: 2, ..Config::default() };
    let mut ledger = Ledger::new(&config);
    let work = |volume: u64| {
        vec![
            Usage { dim: Dim::Operations, scope: Scope::Node(NodeId(1)), amount: 1 },
            Usage { dim: Dim::Operations, scope: Scope::Volume(VolumeId(volume)), amount: 1 },
        ]
    };
    ledger.take(OperationId(1), work(1), Priority::Bulk).expect("fits");
    assert!(ledger.take(OperationId(2), work(1), Priority::Bulk).is_err(), "one in flight per volume");
    ledger.take(OperationId(2), work(2), Priority::Bulk).expect("fits");
    assert!(ledger.take(OperationId(3), work(3), Priority::Bulk).is_err());
    ledger.take(OperationId(3), work(1), Priority::Fencing).expect("its room is kept");
    ledger.take(OperationId(4), work(4), Priority::Fencing).expect("its room is kept");
    assert!(ledger.take(OperationId(5), work(5), Priority::Fencing).is_err(), "it has a bound too");
}

#[test]
fn amounts_that_overflow_do_not_fit() {
    let mut ledger = Ledger::new(&Config::default());
    let huge = Usage { amount: u64::MAX, ..copy(1) };
    ledger.take(OperationId(1), vec![copy(1)], Priority::Bulk).expect("fits");
    assert!(ledger.take(OperationId(2), vec![huge], Priority::Bulk).is_err());
}

proptest! {
    #[test]
    fn what_is_used_is_the_sum_of_what_is_taken(
        acts in proptest::collection::vec((1_u64..12, 0_u64..4, 0_u64..4, 0_u64..3, any::<bool>()), 1..200)
    ) {
        let mut ledger = Ledger::new(&Config { copy_slots_per_node: 5, ..Config::default() });
        let mut naive: Vec<(u64, u64, u64)> = Vec::new();
        let used = |naive: &[(u64, u64, u64)], node| {
            naive.iter().filter(|(_, at, _)| *at == node).map(|(_, _, amount)| amount).sum::<u64>()
        };
        for (id, one, other, amount, give) in acts {
            if give {
                ledger.give(OperationId(id));
                naive.retain(|(taker, ..)| *taker != id);
                continue;
            }
            if naive.iter().any(|(taker, ..)| *taker == id) {
                continue;
            }
            let mut nodes = vec![one, other];
            nodes.dedup();
            let usages = nodes.iter().map(|&node| Usage { amount, ..copy(node) }).collect();
            let fits = nodes.iter().all(|&node| used(&naive, node) + amount <= 5);
            prop_assert_eq!(ledger.take(OperationId(id), usages, Priority::Bulk).is_ok(), fits);
            if fits {
                naive.extend(nodes.iter().map(|&node| (id, node, amount)));
            }
            for node in 0..4 {
                prop_assert_eq!(ledger.used(Dim::CopySlots, Scope::Node(NodeId(node))), used(&naive, node));
            }
        }
    }
}
