//! F8.a to F8.g one by one, the holes that the mechanism leaves, and a simulated pipeline whose every
//! decision is checked against what the simulation knows.

use super::*;
use crate::idle::{IdleParams, Ladder, Rung, TurnOutcome};
use std::collections::VecDeque;

mod pipeline;

const PARAMS: AwakeParams = AwakeParams { stay_awake_ns: 50_000, upstream_threshold: 4 };

fn pair() -> (Stage1, Downstream) {
    SourceTable::new(8, PARAMS)
}

/// The hint without any upstream queue.
fn hint(downstream: &mut Downstream, now_ns: u64) -> AwakeHint {
    downstream.hint(now_ns, 0)
}

#[test]
fn f8_a_ids_grow_by_one_per_source() {
    let (mut stage1, _downstream) = pair();
    assert_eq!([3, 3, 5, 3, 5].map(|source| stage1.number(source)), [1, 2, 1, 3, 2]);
}

#[test]
fn f8_b_the_newest_id_is_published_with_each_packet() {
    let (mut stage1, downstream) = pair();
    for expected in 1..=3 {
        let id = stage1.number(2);
        let (last, _) = unpack(downstream.table.entries[2].0.load(Ordering::Acquire));
        assert_eq!((id, last), (expected, expected));
    }
}

#[test]
fn f8_c_completion_is_compared_with_the_newest_id_of_its_own_source() {
    let (mut stage1, mut downstream) = pair();
    let id = stage1.number(1);
    stage1.number(2);
    stage1.number(2);
    downstream.completed(0, 1, id);
    assert_eq!(hint(&mut downstream, 1), AwakeHint::MayIdle, "only source 2 is behind");
    downstream.completed(1, 2, 1);
    assert_eq!(hint(&mut downstream, 2), AwakeHint::StayAwake { until_ns: 50_001 });
}

#[test]
fn f8_d_a_later_id_delays_idling_for_the_window_only() {
    let (mut stage1, mut downstream) = pair();
    let id = stage1.number(1);
    stage1.number(1);
    downstream.completed(1_000, 1, id);
    assert_eq!(hint(&mut downstream, 1_000), AwakeHint::StayAwake { until_ns: 51_000 });
    assert_eq!(hint(&mut downstream, 50_999), AwakeHint::StayAwake { until_ns: 51_000 });
    assert_eq!(hint(&mut downstream, 51_000), AwakeHint::MayIdle);
    assert!(downstream.watched.is_empty());
}

#[test]
fn f8_d_one_source_that_is_behind_is_enough() {
    let (mut stage1, mut downstream) = pair();
    for source in 0..6 {
        let id = stage1.number(source);
        downstream.completed(u64::from(source), source, id);
    }
    assert_eq!(hint(&mut downstream, 10), AwakeHint::MayIdle);
    // A packet of the source completed first arrives within its window.
    stage1.number(0);
    assert_eq!(hint(&mut downstream, 20), AwakeHint::StayAwake { until_ns: 50_000 });
    assert_eq!(hint(&mut downstream, 30), AwakeHint::StayAwake { until_ns: 50_000 });
    downstream.completed(40, 0, 2);
    assert_eq!(hint(&mut downstream, 40), AwakeHint::MayIdle);
}

#[test]
fn f8_e_the_last_one_may_idle() {
    let (mut stage1, mut downstream) = pair();
    assert_eq!(hint(&mut downstream, 0), AwakeHint::MayIdle, "nothing ever came");
    for _ in 0..3 {
        let id = stage1.number(4);
        downstream.completed(7, 4, id);
    }
    assert_eq!(hint(&mut downstream, 7), AwakeHint::MayIdle);
}

#[test]
fn f8_f_a_long_upstream_queue_delays_idling_for_the_window_only() {
    let (mut stage1, mut downstream) = pair();
    assert_eq!(downstream.hint(0, 4), AwakeHint::MayIdle, "at the threshold");
    assert_eq!(downstream.hint(10, 5), AwakeHint::StayAwake { until_ns: 50_010 });
    assert_eq!(downstream.hint(20, 900), AwakeHint::StayAwake { until_ns: 50_010 });
    // An upstream stage that hangs keeps nobody awake for ever.
    assert_eq!(downstream.hint(50_010, 900), AwakeHint::MayIdle);
    assert_eq!(downstream.hint(99_999, 900), AwakeHint::MayIdle);
    // Its next packet opens a new window.
    let id = stage1.number(0);
    downstream.completed(100_000, 0, id);
    assert_eq!(downstream.hint(100_001, 900), AwakeHint::StayAwake { until_ns: 150_001 });
    assert_eq!(downstream.hint(100_002, 0), AwakeHint::MayIdle);
}

#[test]
fn f8_g_an_empty_upstream_queue_passes_the_question_on() {
    let (mut stage1, mut downstream) = pair();
    stage1.backlog(32);
    assert_eq!(downstream.hint(0, 0), AwakeHint::StayAwake { until_ns: 50_000 });
    assert_eq!(downstream.hint(1, 2), AwakeHint::MayIdle, "the nearest that holds any decides");
    assert_eq!(downstream.hint(2, 0), AwakeHint::StayAwake { until_ns: 50_002 });
    stage1.backlog(0);
    assert_eq!(downstream.hint(3, 0), AwakeHint::MayIdle);
}

#[test]
fn completions_out_of_order_do_not_look_behind() {
    let (mut stage1, mut downstream) = pair();
    let [first, second] = [(); 2].map(|()| stage1.number(1));
    downstream.completed(0, 1, second);
    downstream.completed(0, 1, first);
    assert_eq!(hint(&mut downstream, 0), AwakeHint::MayIdle);
}

#[test]
fn a_retired_newest_id_lets_the_worker_idle() {
    let (mut stage1, mut downstream) = pair();
    let ids = [(); 3].map(|()| stage1.number(1));
    stage1.retire(1, ids[1]);
    downstream.completed(0, 1, ids[0]);
    assert!(matches!(hint(&mut downstream, 1), AwakeHint::StayAwake { .. }), "the third is on its way");
    stage1.retire(1, ids[2]);
    assert_eq!(hint(&mut downstream, 2), AwakeHint::MayIdle);
    // Retiring again, out of order or what was never numbered changes nothing.
    stage1.retire(1, ids[0]);
    stage1.retire(1, ids[2].wrapping_add(100));
    assert_eq!(hint(&mut downstream, 3), AwakeHint::MayIdle);
    stage1.number(1);
    assert!(matches!(hint(&mut downstream, 4), AwakeHint::StayAwake { .. }));
}

#[test]
fn a_drop_that_is_never_retired_is_bounded_by_the_window() {
    let (mut stage1, mut downstream) = pair();
    let id = stage1.number(1);
    stage1.number(1);
    downstream.completed(0, 1, id);
    assert!(matches!(hint(&mut downstream, PARAMS.stay_awake_ns - 1), AwakeHint::StayAwake { .. }));
    assert_eq!(hint(&mut downstream, PARAMS.stay_awake_ns), AwakeHint::MayIdle);
}

#[test]
fn ids_wrap() {
    let (mut stage1, mut downstream) = SourceTable::starting_at(8, PARAMS, u32::MAX - 9);
    let mut now = 0;
    for round in 0..20_u32 {
        let first = stage1.number(3);
        assert_eq!(first, (u32::MAX - 8).wrapping_add(round * 2));
        let second = stage1.number(3);
        now += 10;
        downstream.completed(now, 3, first);
        assert!(matches!(hint(&mut downstream, now), AwakeHint::StayAwake { .. }), "round {round}");
        if round % 3 == 0 {
            stage1.retire(3, second);
        } else {
            downstream.completed(now, 3, second);
        }
        assert_eq!(hint(&mut downstream, now), AwakeHint::MayIdle, "round {round}");
    }
}

#[test]
fn a_source_that_never_drops_is_compared_right_for_ever() {
    let (mut stage1, mut downstream) = pair();
    // As after 3 * 2^30 packets without a drop.
    for high in 1..=3_u32 {
        let entry = &downstream.table.entries[1].0;
        let (_, retired) = unpack(entry.load(Ordering::Relaxed));
        entry.store(pack(high << 30, retired), Ordering::Relaxed);
        let id = stage1.number(1);
        let (_, retired) = unpack(downstream.table.entries[1].0.load(Ordering::Relaxed));
        assert!(id.wrapping_sub(retired) <= RETIRED_LAG_MAX, "{id} {retired}");
        stage1.number(1);
        downstream.completed(0, 1, id);
        assert!(matches!(hint(&mut downstream, 0), AwakeHint::StayAwake { .. }));
    }
}

#[test]
fn sources_beyond_the_table_keep_the_worker_awake_for_the_window() {
    let (mut stage1, mut downstream) = pair();
    let id = stage1.number(8);
    assert_eq!(stage1.number(u32::MAX), id + 1, "they share one entry");
    downstream.completed(0, u32::MAX, id + 1);
    assert_eq!(hint(&mut downstream, 1), AwakeHint::StayAwake { until_ns: 50_000 });
    assert_eq!(hint(&mut downstream, 50_000), AwakeHint::MayIdle);
}

#[test]
fn parameters_and_sizes_out_of_range_are_clamped() {
    let wild = AwakeParams { stay_awake_ns: u64::MAX, upstream_threshold: usize::MAX };
    let (mut stage1, mut downstream) = SourceTable::new(usize::MAX, wild);
    assert_eq!(downstream.params().stay_awake_ns, STAY_AWAKE_NS_MAX);
    assert_eq!(downstream.table.entries.len(), SOURCES_MAX + 1);
    let id = stage1.number(0);
    stage1.number(0);
    downstream.completed(u64::MAX, 0, id);
    assert_eq!(downstream.hint(u64::MAX, usize::MAX), AwakeHint::MayIdle, "the end of time");

    let (mut stage1, mut downstream) = SourceTable::new(0, AwakeParams { stay_awake_ns: 0, ..PARAMS });
    let id = stage1.number(0);
    stage1.number(0);
    downstream.completed(5, 0, id);
    assert_eq!(downstream.hint(5, 900), AwakeHint::MayIdle, "a window of 0 is none");
    downstream.set_params(PARAMS);
    downstream.completed(6, 0, id);
    assert_eq!(hint(&mut downstream, 6), AwakeHint::StayAwake { until_ns: 50_006 });
}
