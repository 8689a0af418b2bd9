//! Weights, liars and shares.

use proptest::prelude::*;
use verdict::UpdateWeights;

use super::*;

fn pool() -> Name {
    Name::new("p").expect("a name")
}

fn client(number: u64) -> Name {
    Name::new(format!("c{number}")).expect("a name")
}

fn producers(capacities: &[u64]) -> Producers {
    let mut producers = Producers::default();
    for (&capacity, id) in capacities.iter().zip(1..) {
        producers.set(NodeId(id), capacity, &[pool()]);
    }
    (0..20).for_each(|_| update(&mut producers, 0));
    producers
}

fn update(producers: &mut Producers, now_ms: u64) {
    let question = UpdateWeights { producers: producers.views(now_ms, |_| true) };
    let ids: Vec<NodeId> = question.producers.producer.iter().map(|id| NodeId(*id)).collect();
    producers.take(&ids, &question.native(), PolicyRef::default(), 600_000);
}

fn weight(producers: &Producers, id: u64) -> f64 {
    f64::from(producers.get(NodeId(id)).expect("there").weight_ppm)
}

#[test]
fn weights_follow_capacity() {
    let producers = producers(&[400, 400, 400, 100]);
    for (id, share) in [(1, 4.0), (2, 4.0), (3, 4.0), (4, 1.0)] {
        assert!((weight(&producers, id) / 1e6 - share / 13.0).abs() < 0.01, "{producers:?}");
    }
}

#[test]
fn a_liar_moves_a_weight_by_less_than_a_twentieth() {
    for honest in 2..40 {
        let mut producers = producers(&[100; 4]);
        let seen = |producer: u64, errors: u64| Observed {
            producer: NodeId(producer),
            requests: 1_000,
            errors,
            response_us: 500,
        };
        for (vote, now) in (0..honest).zip(0..) {
            (1..=4).for_each(|id| producers.observed(&client(vote), &seen(id, 0), now));
        }
        (0..30).for_each(|_| update(&mut producers, 100));
        let before = weight(&producers, 1);
        for lie in [Observed { errors: u64::MAX, response_us: u64::MAX, ..seen(1, 0) }, seen(1, 1_000)] {
            (0..50).for_each(|_| producers.observed(&client(999), &lie, 200));
            (0..30).for_each(|_| update(&mut producers, 300));
            let moved = (weight(&producers, 1) - before).abs() / before;
            assert!(moved < 0.05, "{honest} honest ones: moved {moved}");
        }
    }
}

#[test]
fn many_that_see_errors_are_heard() {
    let mut producers = producers(&[100; 4]);
    let bad = Observed { producer: NodeId(1), requests: 100, errors: 90, response_us: 1 };
    (0..10).for_each(|vote| producers.observed(&client(vote), &bad, 0));
    (0..30).for_each(|_| update(&mut producers, 1));
    assert!(weight(&producers, 1) < 50_000.0, "{}", weight(&producers, 1));
    (0..60).for_each(|_| update(&mut producers, 100_000));
    assert!(weight(&producers, 1) > 200_000.0, "old votes are forgotten");
}

#[test]
fn shares_of_leases_follow_weights_closely() {
    let mut producers = producers(&[400, 400, 400, 100]);
    let mut random = Random::new(1, 0);
    let mut count = [0_u64; 5];
    for at in 0..260_u64 {
        let load = |id: NodeId| count[id.0 as usize];
        let id = producers.choose(Some(&pool()), &mut random, |_| true, load).expect("one");
        count[id.0 as usize] += 1;
        producers.count(id, &client(at), true);
    }
    for (id, share) in [(1, 80), (2, 80), (3, 80), (4, 20)] {
        assert!(count[id].abs_diff(share) * 10 <= share, "{count:?}");
        assert!(!producers.overfull(NodeId(id as u64), &mut random) || count[id] > share);
    }
}

#[test]
fn without_weights_the_least_loaded_is_taken() {
    let mut producers = producers(&[100, 100]);
    let none = Weights { weight_ppm: vec![0, 0], ttl_ms: vec![5_000; 2], ..Weights::default() };
    let ids = [NodeId(1), NodeId(2)];
    let positive = (0..100).any(|_| !producers.take(&ids, &none, PolicyRef::default(), 600_000));
    assert!(positive, "they reach zero in steps, and it is said");
    let mut random = Random::new(1, 0);
    let load = |id: NodeId| 2 - id.0;
    assert_eq!(producers.choose(Some(&pool()), &mut random, |_| true, load), Some(NodeId(2)));
    assert_eq!(producers.choose(Some(&pool()), &mut random, |_| false, load), None);
}

proptest! {
    #[test]
    fn whatever_is_reported_weights_stay_in_range(
        reports in proptest::collection::vec((0_u64..6, 0_u64..5, any::<[u64; 3]>(), any::<u32>()), 0..200)
    ) {
        let mut producers = producers(&[1, u64::MAX, 0, 7]);
        for (at, (id, vote, [requests, errors, response_us], utilisation)) in reports.into_iter().enumerate() {
            let now = at as u64 * 100;
            let seen = Observed { producer: NodeId(id), requests, errors, response_us };
            producers.observed(&client(vote), &seen, now);
            producers.reported(NodeId(id), utilisation, now);
            update(&mut producers, now);
            for (_, producer) in producers.iter() {
                prop_assert!(producer.weight_ppm <= PPM && producer.utilisation_ppm <= PPM);
            }
            let chosen = producers.choose(Some(&pool()), &mut Random::new(now, 1), |id| id.0 == 3, |_| u64::MAX);
            prop_assert_eq!(chosen, Some(NodeId(3)));
        }
    }
}
