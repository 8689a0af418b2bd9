//! The ladder in virtual time: rungs, gaps, deadlines, limits, and where the time goes.

use super::*;

const US: u64 = 1_000;

fn idle(ladder: &mut Ladder, now_ns: u64) -> Rung {
    ladder.step(now_ns, TurnOutcome::default(), || AwakeHint::MayIdle)
}

fn work(ladder: &mut Ladder, now_ns: u64) -> Rung {
    ladder.step(now_ns, TurnOutcome { work: 1, ..TurnOutcome::default() }, || AwakeHint::MayIdle)
}

/// Runs idle turns of 1 us from `from_ns` until the ladder sleeps; returns when.
fn sleeps_at(ladder: &mut Ladder, from_ns: u64) -> u64 {
    (from_ns..).step_by(US as usize).find(|&now| matches!(idle(ladder, now), Rung::Sleep { .. })).unwrap()
}

#[test]
fn the_ladder_spins_then_pauses_then_sleeps() {
    let params = IdleParams::default();
    let mut ladder = Ladder::new(params, 0);
    assert_eq!(work(&mut ladder, 0), Rung::Spin);
    // Idle time begins with the first turn that found nothing.
    assert_eq!(idle(&mut ladder, 5 * US), Rung::Spin);
    assert_eq!(idle(&mut ladder, 5 * US + params.spin_ns - 1), Rung::Spin);
    assert_eq!(idle(&mut ladder, 5 * US + params.spin_ns), Rung::Pause);
    let end = 5 * US + params.spin_ns + params.pause_ns;
    assert_eq!(idle(&mut ladder, end - 1), Rung::Pause);
    assert_eq!(idle(&mut ladder, end), Rung::Sleep { timeout_ns: HEARTBEAT_NS });
    ladder.woke(end + 500 * US, true, true);
    assert_eq!(work(&mut ladder, end + 500 * US), Rung::Spin);
    idle(&mut ladder, end + 502 * US);
    let times = ladder.times();
    assert_eq!(times.working_ns, 7 * US);
    assert_eq!(times.spinning_ns, params.spin_ns);
    assert_eq!(times.pausing_ns, params.pause_ns);
    assert_eq!((times.sleeping_ns, times.sleeps, times.wakeups), (500 * US, 1, 1));
}

#[test]
fn gaps_that_the_pause_rung_never_catches_shorten_it_and_short_ones_bring_it_back() {
    let params = IdleParams::default();
    let mut ladder = Ladder::new(params, 0);
    let mut now = 0;
    // 1,000 packets per second.
    for _ in 0..40 {
        work(&mut ladder, now);
        sleeps_at(&mut ladder, now + US);
        now += 1_000 * US;
        ladder.woke(now, true, true);
    }
    work(&mut ladder, now);
    assert_eq!(sleeps_at(&mut ladder, now + US) - now - US, params.spin_ns, "pausing does not pay");
    // 25,000 packets per second.
    now += 1_000 * US;
    for _ in 0..4 {
        work(&mut ladder, now);
        for at in 1..40 {
            let rung = idle(&mut ladder, now + at * US);
            if matches!(rung, Rung::Sleep { .. }) {
                ladder.woke(now + 40 * US, true, true);
                break;
            }
        }
        now += 40 * US;
    }
    work(&mut ladder, now);
    let slept = sleeps_at(&mut ladder, now + US) - now - US;
    assert_eq!(slept, params.spin_ns + params.pause_ns, "pausing pays");
}

/// The goal of A1 on the model: bursts of 64 packets each millisecond, 1 us apart with some jitter.
#[test]
fn bursts_each_millisecond_cost_less_than_two_fifths_of_spinning() {
    let mut ladder = Ladder::new(IdleParams::default(), 0);
    let mut random = 12345_u64;
    let mut slept_in_bursts = 0;
    let mut now = 0;
    for burst in 0..1_000 {
        let start = burst * 1_000 * US;
        now = now.max(start);
        for packet in 0..64_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // One packet in 50 is up to 8 us late.
            let late = if (random >> 33).is_multiple_of(50) { (random >> 40) % (8 * US) } else { 0 };
            let arrives = start + packet * US + late;
            while now < arrives {
                if matches!(idle(&mut ladder, now), Rung::Sleep { .. }) {
                    slept_in_bursts += u64::from(packet > 0);
                    now = arrives + 7 * US;
                    ladder.woke(now, true, true);
                } else {
                    now += 300;
                }
            }
            work(&mut ladder, now);
            now += 700;
        }
        let end = (burst + 1) * 1_000 * US;
        while now < end {
            if matches!(idle(&mut ladder, now), Rung::Sleep { .. }) {
                now = end + 7 * US;
                ladder.woke(now, true, true);
                break;
            }
            now += 300;
        }
    }
    let times = *ladder.times();
    let total = times.working_ns + times.spinning_ns + times.pausing_ns + times.sleeping_ns;
    assert!(times.sleeping_ns * 5 > total * 3, "awake for more than 40 %: {times:?}");
    assert!(slept_in_bursts < 64, "slept inside bursts: {slept_in_bursts} of 63,000 packets");
}

#[test]
fn an_idle_worker_that_nothing_has_to_poll_sleeps_nearly_all_the_time() {
    let mut ladder = Ladder::new(IdleParams::default(), 0);
    let mut now = 0;
    while now < 10_000_000_000 {
        now += match idle(&mut ladder, now) {
            Rung::Sleep { timeout_ns } => timeout_ns,
            _ => 200,
        };
        ladder.woke(now, true, false);
    }
    assert!(ladder.times().sleeping_ns > 9_990_000_000, "{:?}", ladder.times());
    assert_eq!(ladder.times().wakeups, 0);
}

#[test]
fn sleeps_end_with_the_next_deadline_and_polled_inputs_shorten_them() {
    let mut ladder = Ladder::new(IdleParams::block_at_once(), 0);
    let turn = TurnOutcome { work: 0, deadline_ns: Some(900 * US), must_poll: false };
    let rung = |ladder: &mut Ladder, turn| ladder.step(100 * US, turn, || AwakeHint::MayIdle);
    assert_eq!(rung(&mut ladder, turn), Rung::Sleep { timeout_ns: 800 * US });
    let polled = TurnOutcome { must_poll: true, deadline_ns: None, ..turn };
    assert_eq!(rung(&mut ladder, polled), Rung::Sleep { timeout_ns: MAX_SLEEP_NS_MAX });
    let past = TurnOutcome { deadline_ns: Some(3), ..turn };
    assert_eq!(rung(&mut ladder, past), Rung::Sleep { timeout_ns: 0 });
}

#[test]
fn a_deadline_sooner_than_a_wake_up_is_not_slept_for() {
    let params = IdleParams { pause_ns: 0, ..IdleParams::default() };
    let mut ladder = Ladder::new(params, 0);
    work(&mut ladder, 0);
    idle(&mut ladder, 0);
    let turn = |deadline| TurnOutcome { deadline_ns: Some(deadline), ..TurnOutcome::default() };
    let now = 20 * US;
    assert_eq!(ladder.step(now, turn(now + WAKE_NS - 1), || AwakeHint::MayIdle), Rung::Pause);
    let rung = ladder.step(now, turn(now + WAKE_NS), || AwakeHint::MayIdle);
    assert_eq!(rung, Rung::Sleep { timeout_ns: WAKE_NS });
}

#[test]
fn the_awake_rules_put_sleep_off_and_are_asked_only_then() {
    let mut ladder = Ladder::new(IdleParams::default(), 0);
    work(&mut ladder, 0);
    let rung = ladder.step(US, TurnOutcome::default(), || unreachable!("spinning anyway"));
    assert_eq!(rung, Rung::Spin);
    let stay = || AwakeHint::StayAwake { until_ns: 200 * US };
    for now in (100..200).map(|us| us * US) {
        assert_eq!(ladder.step(now, TurnOutcome::default(), stay), Rung::Pause);
    }
    assert_eq!(ladder.times().stay_awake_hits, 1, "one sleep put off");
    let rung = ladder.step(200 * US, TurnOutcome::default(), stay);
    assert!(matches!(rung, Rung::Sleep { .. }), "the window has ended");
}

#[test]
fn sleeps_that_end_late_are_counted() {
    let mut ladder = Ladder::new(IdleParams::block_at_once(), 0);
    let turn = TurnOutcome { deadline_ns: Some(500 * US), ..TurnOutcome::default() };
    let latest = 500 * US + LATE_NS + 499 * US / 100;
    for (end, late) in [(latest, 0), (latest + 1, 1)] {
        let mut ladder = ladder.clone();
        assert!(matches!(ladder.step(US, turn, || AwakeHint::MayIdle), Rung::Sleep { .. }));
        ladder.woke(end, true, false);
        assert_eq!(ladder.times().late_wakeups, late);
        assert_eq!(ladder.times().wakeups, 0);
    }
    // Work found at the second look is no sleep.
    ladder.step(US, turn, || AwakeHint::MayIdle);
    ladder.woke(2 * US, false, false);
    assert_eq!(ladder.times().sleeps, 0);
}

#[test]
fn parameters_out_of_range_are_clamped() {
    let wild = IdleParams {
        spin_ns: u64::MAX,
        pause_ns: u64::MAX,
        stay_awake_ns: u64::MAX,
        upstream_threshold: usize::MAX,
        max_sleep_ns: u64::MAX,
    };
    let mut ladder = Ladder::new(wild, 0);
    assert_eq!(ladder.params().stay_awake_ns, 1_000_000);
    assert_eq!(ladder.params().max_sleep_ns, 1_000_000);
    for now in [0, 1, u64::MAX / 2, u64::MAX, 0] {
        assert_eq!(idle(&mut ladder, now), Rung::Spin);
        work(&mut ladder, now);
        ladder.woke(now, true, true);
    }
    let zero =
        IdleParams { spin_ns: 0, pause_ns: 0, stay_awake_ns: 0, upstream_threshold: 0, max_sleep_ns: 0 };
    ladder.set_params(zero);
    assert_eq!(ladder.params().max_sleep_ns, MAX_SLEEP_NS_MIN);
    let turn = TurnOutcome { must_poll: true, ..TurnOutcome::default() };
    let rung = ladder.step(u64::MAX, turn, || AwakeHint::StayAwake { until_ns: u64::MAX });
    assert_eq!(rung, Rung::Sleep { timeout_ns: MAX_SLEEP_NS_MIN });
}

#[test]
fn time_is_accounted_to_the_nanosecond() {
    let mut ladder = Ladder::new(IdleParams::default(), 1_000);
    let mut now = 1_000;
    let mut random = 7_u64;
    for _ in 0..100_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        now += (random >> 33) % 3_000;
        let busy = (random >> 20).is_multiple_of(40);
        let turn = TurnOutcome { work: usize::from(busy), ..TurnOutcome::default() };
        if let Rung::Sleep { .. } = ladder.step(now, turn, || AwakeHint::MayIdle) {
            now += (random >> 40) % 100_000;
            ladder.woke(now, true, random.is_multiple_of(2));
        }
    }
    let times = ladder.times();
    let total = times.working_ns + times.spinning_ns + times.pausing_ns + times.sleeping_ns;
    assert_eq!(total, ladder.last_ns - 1_000);
    assert!(times.sleeps > times.wakeups && times.wakeups > 0);
}

#[test]
fn more_workers_than_processors_do_not_spin_and_it_is_said() {
    let params = IdleParams::default();
    assert_eq!(params.for_machine(2, 2), (params, None));
    let (shared, message) = params.for_machine(3, 2);
    assert_eq!((shared.spin_ns, shared.pause_ns, shared.stay_awake_ns), (0, 0, 0));
    assert_eq!(shared.max_sleep_ns, params.max_sleep_ns);
    assert!(message.unwrap().contains("3 workers share 2 processors"));
    assert_eq!(IdleParams::block_at_once().for_machine(3, 2).1, None, "nothing to say");
    let mut ladder = Ladder::new(shared, 0);
    assert!(matches!(idle(&mut ladder, 0), Rung::Sleep { .. }));
}

#[test]
fn pure_spinning_never_sleeps() {
    let mut ladder = Ladder::new(IdleParams::pure_spin(), 0);
    assert_eq!(idle(&mut ladder, u64::MAX - 1), Rung::Spin);
    pause();
}
