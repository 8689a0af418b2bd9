//! Native defaults pass the check for any question; answers that lie do not.

use proptest::prelude::*;
use verdict::scheduling::Candidate;
use verdict::*;

const TICK: Tick = Tick { now_ms: 1_000_000, seed: 7, epoch: 3 };

fn column(rows: usize) -> impl Strategy<Value = Vec<u64>> {
    // Ordinary values, and those at which arithmetic goes wrong.
    let value = prop_oneof![6 => 0_u64..10_000, 1 => Just(u64::MAX), 1 => any::<u64>()];
    prop::collection::vec(value, rows)
}

prop_compose! {
    fn schedules()(rows in 0_usize..40, accounts in 1_usize..6)(
        events in prop::collection::vec(0_u64..20, rows),
        triggers in prop::collection::vec(0_u32..4, rows),
        since in column(rows),
        needs in prop::collection::vec(prop::collection::vec((0..accounts as u32, 0_u64..5), 0..4), rows),
        in_use in column(accounts),
        limit in column(accounts),
    ) -> Schedule {
        let mut candidates = Candidates::default();
        for row in 0..events.len() {
            candidates.push(Candidate {
                event: events[row], op: 1, handler: row as u64, tenant: events[row] % 3,
                trigger: triggers[row], registered_ms: since[row], needs: &needs[row],
            });
        }
        Schedule { candidates, accounts: Accounts { in_use, limit }, tenants: Tenants::default() }
    }
}

prop_compose! {
    fn producers()(rows in 0_usize..40)(
        capacity in column(rows),
        errors in prop::collection::vec(any::<u32>(), rows),
        rows in Just(rows),
    ) -> UpdateWeights {
        let producers = Producers {
            producer: (0..rows as u64).collect(), capacity, error_ppm: errors,
            utilisation_ppm: vec![0; rows], response_us: vec![0; rows], consumers: vec![0; rows],
            report_age_ms: vec![0; rows], weight_ppm: vec![0; rows],
        };
        UpdateWeights { producers }
    }
}

prop_compose! {
    fn victims()(rows in 0_usize..40)(
        iops in prop::collection::vec(0_u64..100, rows),
        bytes_per_s in prop::collection::vec(0_u64..100, rows),
        granted_ms in column(rows),
        need in (0_u64..2_000, 0_u64..2_000, 0_u64..4),
        rows in Just(rows),
    ) -> PickVictims {
        let leases = Leases {
            lease: (0..rows as u64).collect(), producer: vec![1; rows], holder: vec![2; rows], granted_ms,
            iops, bytes_per_s, copy_slots: vec![1; rows],
        };
        let need = Resources { iops: need.0, bytes_per_s: need.1, copy_slots: need.2 };
        PickVictims { need, leases, grace_max_ms: 500 }
    }
}

prop_compose! {
    fn times()(
        slots in 1_usize..50, candidates in 0_usize..20,
    )(
        iops in prop::collection::vec(0..=verdict::migration::RATE_MAX, slots),
        dirty_bytes_per_s in prop::collection::vec(0..=verdict::migration::RATE_MAX, slots),
        origin_ms in any::<u64>(), slot_ms in any::<u64>(), size_bytes in any::<u64>(),
        free_bytes_per_s in column(3),
        candidates_ms in column(candidates),
    ) -> ChooseTime {
        let profile = Profile { origin_ms, slot_ms, iops, dirty_bytes_per_s, ..Default::default() };
        let transfer = Transfer { size_bytes, deadline_ms: TICK.now_ms + 5_000, ..Default::default() };
        let link = Forecast { from_ms: vec![0, TICK.now_ms, TICK.now_ms + 1_000], free_bytes_per_s };
        ChooseTime { profile, transfer, link, candidates_ms }
    }
}

proptest! {
    #[test]
    fn native_defaults_pass_the_check(
        schedule in schedules(), weights in producers(), pick in victims(), time in times(),
        samples in column(30),
    ) {
        let samples = Samples {
            at_ms: (0..30).collect(), iops: samples.clone(), bytes_per_s: samples.clone(), dirty_bytes_per_s: samples,
        };
        let rules = Rules { period_min_ms: 5, period_max_ms: 50, ..Default::default() };
        for question in [
            Question::Schedule(schedule), Question::UpdateWeights(weights), Question::PickVictims(pick),
            Question::ChooseTime(time), Question::BuildProfile(BuildProfile { samples, rules }),
        ] {
            let verdict = question.native(TICK);
            prop_assert_eq!(question.check(TICK, &verdict), Ok(()));
            prop_assert!(!verdict.abstains());
        }
    }

    #[test]
    fn shares_sum_to_one_whole_and_follow_what_they_are_made_of(raw in prop::collection::vec(any::<u64>(), 1..60)) {
        let shares = normalised(&raw.iter().map(|&value| u128::from(value)).collect::<Vec<_>>());
        prop_assert_eq!(shares.iter().map(|&share| u64::from(share)).sum::<u64>(), u64::from(PPM));
        for (a, &of_a) in raw.iter().enumerate() {
            for (b, &of_b) in raw.iter().enumerate() {
                prop_assert!(of_a < of_b || shares[a] + 1 >= shares[b]);
            }
        }
    }

    #[test]
    fn nobody_loses_a_lease_without_need(pick in victims()) {
        let victims = pick.native();
        let gained = pick.leases.sum(victims.lease.iter().map(|&row| row as usize));
        let all = pick.leases.sum(0..pick.leases.len());
        prop_assert_eq!(gained.covers(pick.need), all.covers(pick.need) || pick.need == Resources::default());
    }
}

fn two_events() -> Schedule {
    let mut candidates = Candidates::default();
    for (event, needs) in [(10, [(0, 1)]), (10, [(1, 1)]), (11, [(0, 1)])] {
        let (op, handler, tenant, trigger, registered_ms) = (1, 5, 1, 0, 0);
        candidates.push(Candidate { event, op, handler, tenant, trigger, registered_ms, needs: &needs });
    }
    let accounts = Accounts { in_use: vec![3, 0], limit: vec![4, 1] };
    Schedule { candidates, accounts, tenants: Tenants::default() }
}

fn assignments(rows: &[u32]) -> Assignments {
    let mut answer = Assignments { reasons: vec!["because".into()], ..Default::default() };
    rows.iter().for_each(|&row| answer.push(row, TICK.now_ms, 0));
    answer
}

#[test]
fn a_schedule_that_lies_is_refused() {
    let question = two_events();
    assert_eq!(question.check(TICK, &assignments(&[1, 2])), Ok(()));
    assert_eq!(question.check(TICK, &assignments(&[0, 2])), Err(Invalid::OverLimit { row: 2, account: 0 }));
    assert_eq!(
        question.check(TICK, &assignments(&[0, 1])),
        Err(Invalid::Twice { column: "event", value: 10 })
    );
    let unknown = Invalid::UnknownRow { column: "candidate", row: 3, rows: 3 };
    assert_eq!(question.check(TICK, &assignments(&[3])), Err(unknown));
    for at in [TICK.now_ms - 1, TICK.now_ms + verdict::scheduling::NOT_BEFORE_MS_MAX + 1, u64::MAX] {
        let answer = Assignments { not_before_ms: vec![at], ..assignments(&[1]) };
        assert!(matches!(question.check(TICK, &answer), Err(Invalid::OutOfRange { .. })), "{at}");
    }
    let ragged = Assignments { reason: vec![], ..assignments(&[1]) };
    assert!(matches!(question.check(TICK, &ragged), Err(Invalid::Ragged { .. })));
    let long = Assignments { reasons: vec!["x".repeat(300)], ..assignments(&[1]) };
    assert!(matches!(question.check(TICK, &long), Err(Invalid::LongText { .. })));
    let why = Verdict::Schedule(Assignments { why: "x".repeat(WHY_BYTES_MAX + 1), ..assignments(&[1]) });
    assert!(matches!(Question::Schedule(question).check(TICK, &why), Err(Invalid::LongText { .. })));
}

#[test]
fn what_did_not_fit_leaves_the_room_as_it_was() {
    let mut candidates = Candidates::default();
    for needs in [&[(0, 1), (1, 9)][..], &[(0, 1)]] {
        let (op, handler, tenant, trigger, registered_ms) = (1, 5, 1, 0, 0);
        let event = needs.len() as u64;
        candidates.push(Candidate { event, op, handler, tenant, trigger, registered_ms, needs });
    }
    let mut room = Room::new(&Accounts { in_use: vec![0, 0], limit: vec![1, 8] });
    assert_eq!(room.take(&candidates, 0), Err(Invalid::OverLimit { row: 0, account: 1 }));
    assert_eq!(room.take(&candidates, 1), Ok(()));
}

#[test]
fn weights_that_lie_are_refused() {
    let producers = Producers { producer: vec![1, 2], capacity: vec![4, 1], ..Default::default() };
    let question = UpdateWeights { producers };
    let answer = question.native();
    assert_eq!(answer.weight_ppm, [800_000, 200_000]);
    let with = |weight_ppm: Vec<u32>, ttl_ms: Vec<u32>| {
        question.check(&Weights { weight_ppm, ttl_ms, ..Default::default() })
    };
    assert_eq!(with(vec![500_000, 500_001], vec![1_000; 2]), Err(Invalid::Sum { sum: 1_000_001 }));
    assert_eq!(with(vec![u32::MAX; 2], vec![1_000; 2]), Err(Invalid::Sum { sum: 8_589_934_590 }));
    assert!(matches!(with(vec![PPM], vec![1_000; 2]), Err(Invalid::Ragged { column: "weight-ppm", .. })));
    assert!(matches!(with(vec![PPM, 0], vec![0; 2]), Err(Invalid::OutOfRange { field: "ttl-ms", .. })));
}

#[test]
fn victims_that_lie_are_refused() {
    let leases = Leases { lease: vec![7, 8, 9], iops: vec![10, 20, 30], ..Default::default() };
    let mut question =
        PickVictims { need: Resources { iops: 30, ..Default::default() }, leases, grace_max_ms: 500 };
    let with = |question: &PickVictims, lease: &[u32], grace_ms| {
        question.check(&Victims { lease: lease.to_vec(), grace_ms, ..Default::default() })
    };
    assert_eq!(with(&question, &[0, 1], 500), Ok(()));
    let too_few = Invalid::TooFew { resource: "iops", found: 20, wanted: 30 };
    assert_eq!(with(&question, &[1], 500), Err(too_few));
    assert_eq!(with(&question, &[0, 2], 500), Err(Invalid::Superfluous { row: 0 }));
    assert_eq!(with(&question, &[2, 2], 500), Err(Invalid::Twice { column: "lease", value: 2 }));
    assert!(matches!(with(&question, &[3], 500), Err(Invalid::UnknownRow { .. })));
    assert!(matches!(with(&question, &[2], 501), Err(Invalid::OutOfRange { .. })));
    question.need.iops = 61;
    assert_eq!(with(&question, &[0, 1, 2], 500), Err(Invalid::InVain));
    assert_eq!(with(&question, &[], 500), Ok(()));
}

#[test]
fn times_and_profiles_that_lie_are_refused() {
    let question = ChooseTime {
        profile: Profile { slot_ms: 1, iops: vec![1], dirty_bytes_per_s: vec![1], ..Default::default() },
        transfer: Transfer { deadline_ms: TICK.now_ms + 10, ..Default::default() },
        link: Forecast { from_ms: vec![0], free_bytes_per_s: vec![1] },
        candidates_ms: vec![TICK.now_ms - 1, TICK.now_ms + 5, TICK.now_ms + 11],
    };
    let with =
        |choice, estimate_us| question.check(TICK, &Timing { choice, estimate_us, ..Default::default() });
    assert_eq!(with(Choice::At(1), vec![1; 3]), Ok(()));
    for row in [0, 2] {
        assert!(matches!(with(Choice::At(row), vec![1; 3]), Err(Invalid::OutOfRange { .. })), "{row}");
    }
    assert!(matches!(with(Choice::At(3), vec![1; 3]), Err(Invalid::UnknownRow { .. })));
    assert!(matches!(with(Choice::Now, vec![u64::MAX; 3]), Err(Invalid::OutOfRange { .. })));
    assert!(matches!(with(Choice::Now, vec![]), Err(Invalid::Ragged { .. })));

    let question = BuildProfile {
        rules: Rules { period_min_ms: 10, period_max_ms: 100, ..Default::default() },
        ..Default::default()
    };
    let sound = Profile {
        origin_ms: 5,
        slot_ms: 10,
        iops: vec![1; 4],
        dirty_bytes_per_s: vec![1; 4],
        ..Default::default()
    };
    assert_eq!(question.check(TICK, &sound), Ok(()));
    for lie in [
        Profile { slot_ms: 0, ..sound.clone() },
        Profile { slot_ms: 60, ..sound.clone() },
        Profile { origin_ms: TICK.now_ms + 1, ..sound.clone() },
        Profile { confidence_ppm: PPM + 1, ..sound.clone() },
        Profile { iops: vec![u64::MAX; 4], ..sound.clone() },
        Profile { iops: vec![], dirty_bytes_per_s: vec![], ..sound.clone() },
    ] {
        assert!(matches!(question.check(TICK, &lie), Err(Invalid::OutOfRange { .. })), "{lie:?}");
    }
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let schedule = Question::Schedule(two_events());
    let weights = Question::UpdateWeights(UpdateWeights::default()).native(TICK);
    assert_eq!(schedule.check(TICK, &weights), Err(Invalid::OtherQuestion));
}

#[test]
fn a_busy_time_costs_more_than_a_quiet_one() {
    let profile = Profile {
        origin_ms: 0,
        slot_ms: 1_000,
        iops: vec![100, 100, 0, 0],
        dirty_bytes_per_s: vec![90_000_000, 90_000_000, 0, 0],
        ..Default::default()
    };
    let transfer = Transfer { size_bytes: 50_000_000, hand_over_us: 1_000, ..Default::default() };
    let link = Forecast { from_ms: vec![0], free_bytes_per_s: vec![100_000_000] };
    let quiet = estimate_blackout_us(&profile, transfer, &link, 2_100);
    let busy = estimate_blackout_us(&profile, transfer, &link, 500);
    assert_eq!(quiet, 1_000);
    assert!(busy > 50 * quiet, "{busy}");
    let no_link = Forecast { from_ms: vec![0], free_bytes_per_s: vec![0] };
    assert_eq!(estimate_blackout_us(&profile, transfer, &no_link, 0), verdict::migration::ESTIMATE_US_MAX);
    let huge = Transfer { size_bytes: u64::MAX, ..transfer };
    let thin = Forecast { from_ms: vec![0], free_bytes_per_s: vec![1] };
    let wild =
        Profile { dirty_bytes_per_s: vec![u64::MAX; profile.dirty_bytes_per_s.len()], ..profile.clone() };
    assert_eq!(estimate_blackout_us(&wild, huge, &thin, 0), verdict::migration::ESTIMATE_US_MAX);
    // Slots repeat, before the origin too.
    let later = Profile { origin_ms: 4_000, ..profile };
    assert_eq!(
        (later.slot_at(3_999), later.slot_at(4_000), later.slot_at(0), later.slot_at(9_000)),
        (3, 0, 0, 1)
    );
}

#[test]
fn asking_gives_the_answer_with_its_type() {
    let mut native = Native::default();
    let decided = two_events().ask(&mut native, TICK);
    assert_eq!(decided.verdict.candidate, [0]);
    assert_eq!(&*decided.by.policy, "native");
}
