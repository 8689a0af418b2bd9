//! The accounts against a list of leases.

use contract::{Epoch, Holder, LeaseId, VolumeId};
use proptest::prelude::*;

use super::*;

fn iops(iops: u64) -> Resources {
    Resources { iops, ..Resources::NONE }
}

fn lease(id: u64, node: u64, need: u64, class: Class) -> Lease {
    Lease {
        id: LeaseId(id),
        holder: Holder::Volume(VolumeId(id)),
        producer: NodeId(node),
        resources: iops(need),
        class,
        state: LeaseState::Active,
        epoch: Epoch(1),
        ttl_ms: 1_000,
        granted_ms: 0,
        policy: None,
        why: String::new(),
    }
}

fn three_nodes() -> Accounts {
    let mut accounts = Accounts::default();
    [100, 100, 50].into_iter().zip(1..).for_each(|(has, id)| accounts.set_node(NodeId(id), iops(has)));
    accounts
}

#[test]
fn firm_leases_leave_the_largest_node_free() {
    let mut accounts = three_nodes();
    assert_eq!(accounts.contingency(), iops(100));
    accounts.add(&lease(1, 1, 100, Class::Firm));
    assert!(accounts.fits(NodeId(2), Class::Firm, iops(50), false));
    assert!(!accounts.fits(NodeId(2), Class::Firm, iops(51), false), "250 - 100 - 100");
    assert!(accounts.fits(NodeId(2), Class::Firm, iops(100), true), "a failover draws on the contingency");
    assert!(!accounts.fits(NodeId(1), Class::Firm, iops(1), true), "but not beyond a node");
}

#[test]
fn one_node_has_no_contingency() {
    let mut accounts = Accounts::default();
    accounts.set_node(NodeId(1), iops(100));
    assert!(accounts.fits(NodeId(1), Class::Firm, iops(100), false));
}

#[test]
fn a_lost_node_is_no_capacity_and_the_others_keep_a_contingency() {
    let mut accounts = three_nodes();
    accounts.add(&lease(1, 2, 40, Class::Firm));
    assert_eq!(accounts.fleet_room(), iops(250 - 100 - 40));
    accounts.set_lost(NodeId(1), true);
    assert_eq!((accounts.contingency(), accounts.fleet_room()), (iops(100), iops(150 - 100 - 40)));
    accounts.set_lost(NodeId(2), true);
    assert_eq!((accounts.contingency(), accounts.fleet_room()), (Resources::NONE, iops(50 - 40)));
    accounts.set_lost(NodeId(1), false);
    accounts.set_lost(NodeId(2), false);
    assert_eq!(accounts.fleet_room(), iops(250 - 100 - 40));
    accounts.set_lost(NodeId(1), true);
    accounts.remove_node(NodeId(1));
    accounts.set_node(NodeId(1), iops(100));
    assert_eq!(accounts.contingency(), iops(100), "a node that is new is there");
}

#[test]
fn revocable_leases_fill_what_is_kept_and_are_not_free_before_they_are_out() {
    let mut accounts = three_nodes();
    let mut victim = lease(1, 2, 90, Class::Revocable);
    assert!(accounts.fits(NodeId(2), Class::Revocable, iops(100), false));
    accounts.add(&victim);
    assert!(!accounts.fits(NodeId(2), Class::Revocable, iops(11), false));
    accounts.add(&lease(2, 2, 60, Class::Firm));
    assert_eq!(accounts.node(NodeId(2)).deficit(), iops(50));
    accounts.remove(&victim);
    victim.state = LeaseState::Revoked { ends_ms: 500 };
    accounts.add(&victim);
    assert_eq!(accounts.node(NodeId(2)).deficit(), Resources::NONE, "enough was revoked");
    assert!(!accounts.node(NodeId(2)).settled(), "but is not gone yet");
    accounts.remove(&victim);
    assert!(accounts.node(NodeId(2)).settled());
}

proptest! {
    #[test]
    fn accounts_are_the_sums_of_a_list(
        acts in proptest::collection::vec((1_u64..20, 1_u64..4, 0_u64..60, 0_u8..4), 1..200)
    ) {
        let mut accounts = three_nodes();
        let mut list: Vec<Lease> = Vec::new();
        for (id, node, need, act) in acts {
            let at = list.iter().position(|lease| lease.id == LeaseId(id));
            match (act, at) {
                (0 | 1, None) => {
                    let class = if act == 0 { Class::Firm } else { Class::Revocable };
                    if accounts.fits(NodeId(node), class, iops(need), false) {
                        let lease = lease(id, node, need, class);
                        accounts.add(&lease);
                        list.push(lease);
                    }
                }
                (2, Some(at)) => {
                    accounts.remove(&list[at]);
                    list[at].state = LeaseState::Revoked { ends_ms: 1 };
                    accounts.add(&list[at]);
                }
                (3, Some(at)) => accounts.remove(&list.remove(at)),
                _ => {}
            }
            let sum = |node: u64, class: Class| {
                let of = list.iter().filter(|lease| lease.producer == NodeId(node) && lease.class == class);
                of.map(|lease| lease.resources.iops).sum::<u64>()
            };
            let mut firm = 0;
            for node in 1..=3 {
                let account = accounts.node(NodeId(node));
                prop_assert_eq!(account.firm.iops, sum(node, Class::Firm));
                prop_assert_eq!(
                    account.revocable.plus(account.leaving).iops, sum(node, Class::Revocable)
                );
                prop_assert!(account.firm.fits(account.capacity));
                firm += account.firm.iops;
            }
            prop_assert_eq!(accounts.firm().iops, firm);
            prop_assert!(firm <= 250 - 100, "capacity less the largest node");
        }
    }
}
