//! The clock against counters that drift, stop, jump and run backwards.

use super::*;

/// A counter of `hz` beside a perfect clock.
struct Machine {
    ns: u64,
    tsc: u64,
    hz: u64,
}

impl Machine {
    fn new(hz: u64) -> Self {
        Self { ns: 5_000_000, tsc: 77, hz }
    }

    fn run(&mut self, ns: u64) {
        self.ns += ns;
        self.tsc += (u128::from(ns) * u128::from(self.hz) / u128::from(NS_PER_S)) as u64;
    }

    fn sample(&self) -> Sample {
        Sample { tsc: self.tsc, ns: self.ns }
    }

    fn timeline(&self, mult_error_ppm: i64) -> Timeline {
        let mult = (u128::from(NS_PER_S) << SHIFT) / u128::from(self.hz);
        let mult = mult as i64 + mult as i64 / 1_000_000 * mult_error_ppm;
        Timeline::new(self.sample(), mult as u64)
    }

    fn read(&self, timeline: &mut Timeline) -> u64 {
        timeline.at(self.tsc, || self.sample())
    }
}

#[test]
fn a_wrong_first_rate_is_bent_away_without_a_step_back() {
    for hz in [1_000_000_000, 2_445_000_000, 4_999_999_999] {
        for ppm in [-300, 0, 300] {
            let mut machine = Machine::new(hz);
            let mut timeline = machine.timeline(ppm);
            let mut last = 0;
            for turn in 0..40_000 {
                machine.run(250_000);
                let now = machine.read(&mut timeline);
                assert!(now >= last);
                last = now;
                if turn > 9_000 {
                    assert!(now.abs_diff(machine.ns) < 1_000, "{hz} Hz, {ppm} ppm: {now} {}", machine.ns);
                }
            }
            assert!(timeline.counters.recalibrations >= 9);
            assert_eq!(timeline.counters.held + timeline.counters.jumps + timeline.counters.backwards, 0);
        }
    }
}

#[test]
fn a_counter_that_goes_backwards_is_counted_and_rebased() {
    let mut machine = Machine::new(3_000_000_000);
    let mut timeline = machine.timeline(0);
    machine.run(700_000_000);
    let before = machine.read(&mut timeline);
    machine.tsc = 5;
    machine.ns += 100;
    let after = machine.read(&mut timeline);
    assert_eq!(after, machine.ns);
    assert!(after >= before);
    assert_eq!(timeline.counters.backwards, 1);
    machine.run(1_000);
    assert!(machine.read(&mut timeline).abs_diff(machine.ns) < 10);
}

#[test]
fn a_counter_that_steps_back_within_the_period_holds_time() {
    let mut machine = Machine::new(1_000_000_000);
    let mut timeline = machine.timeline(0);
    machine.run(1_000);
    let before = machine.read(&mut timeline);
    machine.tsc -= 300;
    assert_eq!(machine.read(&mut timeline), before);
    assert_eq!(timeline.counters.held, 1);
    machine.run(400);
    assert!(machine.read(&mut timeline) > before);
}

#[test]
fn a_suspend_in_which_the_counter_ran_on_does_not_lengthen_time() {
    let mut machine = Machine::new(2_000_000_000);
    let mut timeline = machine.timeline(0);
    machine.run(200_000_000);
    machine.read(&mut timeline);
    machine.tsc += 2_000_000_000 * 3_600;
    machine.run(1_000_000);
    assert_eq!(machine.read(&mut timeline), machine.ns);
    assert_eq!(timeline.counters.jumps, 1);
    // The rate survived the jump.
    machine.run(800_000_000);
    assert!(machine.read(&mut timeline).abs_diff(machine.ns) < 100);
}

#[test]
fn a_counter_that_stopped_jumps_forward() {
    let mut machine = Machine::new(2_000_000_000);
    let mut timeline = machine.timeline(0);
    machine.ns += 60 * NS_PER_S;
    machine.tsc += 2_100_000_000;
    assert_eq!(machine.read(&mut timeline), machine.ns);
    assert_eq!(timeline.counters.jumps, 1);
}

#[test]
fn a_small_forward_jump_of_the_counter_holds_time_until_truth_catches_up() {
    let mut machine = Machine::new(1_000_000_000);
    let mut timeline = machine.timeline(0);
    machine.run(900_000_000);
    machine.tsc += 50_000_000;
    let ahead = machine.read(&mut timeline);
    assert!(ahead > machine.ns + 40_000_000);
    let mut last = ahead;
    for _ in 0..300 {
        machine.run(1_000_000);
        let now = machine.read(&mut timeline);
        assert!(now >= last);
        last = now;
    }
    assert!(last.abs_diff(machine.ns) < 1_000);
    assert!(timeline.counters.held > 0);
}

#[test]
fn any_two_readings_never_panic() {
    for tsc in [0, 1, u64::MAX / 2, u64::MAX] {
        for next in [0, 1, u64::MAX / 2, u64::MAX] {
            for mult in [0, 1, u64::MAX] {
                let mut timeline = Timeline::new(Sample { tsc, ns: 10 }, mult);
                timeline.at(next, || Sample { tsc: next, ns: 11 });
                timeline.at(tsc, || Sample { tsc, ns: 12 });
                timeline.at(next.wrapping_add(9), || Sample { tsc: next, ns: 5 });
                assert!(timeline.last_ns >= 10);
            }
        }
    }
}

#[test]
fn both_sources_follow_the_monotonic_clock() {
    for source in [ClockSource::Tsc, ClockSource::Monotonic] {
        let mut clock = Clock::with_source(source);
        let mut last = clock.turn();
        for _ in 0..10_000 {
            let now = clock.turn();
            assert!(now >= last);
            last = now;
        }
        assert_eq!(clock.last_ns(), last);
        assert_eq!(clock.source(), source);
        let error = monotonic_ns().abs_diff(clock.turn());
        assert!(error < 100_000_000, "{source:?} is off by {error} ns");
    }
}

#[test]
fn constant_counters_are_recognised_on_every_processor() {
    let good = "processor : 0\nflags : fpu tsc constant_tsc nonstop_tsc\n";
    let bad = "processor : 1\nflags : fpu tsc constant_tsc\n";
    assert!(flags_tell_constant(good));
    assert!(flags_tell_constant(&format!("{good}{good}")));
    assert!(!flags_tell_constant(&format!("{good}{bad}")));
    assert!(!flags_tell_constant(""));
}
