//! When a volume is moved (F14, decision D12): at the time that disturbs least, as the migration policy sees it.
//!
//! 1. The load of the volume as it was ([`crate::history`]) goes to the policy, which makes a profile of it: of seconds, and
//!    if these show no pattern, of the days before.
//! 2. Several future times, none of which meets a reservation of the link between the two nodes, go to the policy with
//!    that profile; it estimates the blackout of each and chooses.
//! 3. The host checks the choice against the reservations of now, reserves the link, and records the plan in the
//!    operation. When the time comes the move starts; nobody is asked any more.
//!
//! While it waits, every sample is compared with the profile; a load that breaks its pattern is planned anew. A plan
//! never lies beyond the deadline; a move that has not begun by then says so. On a shared pool there is nothing to copy
//! and no link to reserve.
//!
//! Invariant: reservations of one link do not overlap. A move that begins, planned or not, has its link from then on,
//! and who had planned to use it meanwhile plans anew.

use std::collections::{BTreeMap, BTreeSet};

use contract::{
    Blocked, Grounds, NodeId, OperationId, Phase, Plan, PolicyKind, PolicyRef, VolumeId, VolumeReport, Work,
};
use verdict::{BuildProfile, Choice, ChooseTime, Forecast, PPM, Profile, Question, Rules, Timing, Transfer};

use crate::asks::{Purpose, Span};
use crate::history::FINE_PERIOD_MAX_MS;
use crate::{Alarm, Core, Timer};

/// Times that are offered.
const CANDIDATES_MAX: usize = 64;
/// Periods ahead that are looked at for them.
const PERIODS_MAX: u64 = 32;
/// A time is quiet below this share of the mean load.
const QUIET_PPM: u32 = PPM / 2;
/// What happens in one second says nothing of a slot that is longer than this.
const COMPARED_SLOT_MAX_MS: u64 = 60_000;
/// Seconds in which the load was not as forecast, less those in which it was, after which a plan is made anew.
const MISSES_MAX: u32 = 10;
/// Time between two plans of one move.
const REPLAN_MS: u64 = 10_000;
/// Answers that did not hold against the reservations of now, after which the host takes the first free time.
const ASKED_MAX: u32 = 3;

/// What a reservation has to spare, for the hand-over and for who begins a little late.
const SPARE_MS: u64 = 1_000;
/// A move that begins so much after its deadline is late.
const LATE_MS: u64 = 1_000;
/// Reservations of a link that are told to the policy.
const FORECAST_MAX: usize = 256;

type Link = (NodeId, NodeId);

/// Moves that wait for their time, and the links that they will use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plans {
    planned: BTreeMap<VolumeId, Planned>,
    links: BTreeMap<Link, BTreeMap<u64, (u64, OperationId)>>,
    /// Where in `links` each move is.
    reserved: BTreeMap<OperationId, (Link, u64)>,
    /// Moves that cannot be planned yet, or must be planned anew.
    unplanned: BTreeSet<OperationId>,
    /// Moves that said that they are late.
    late: BTreeSet<OperationId>,
}

#[derive(Clone, Debug)]
struct Planned {
    operation: OperationId,
    profile: Profile,
    at_ms: u64,
    misses: u32,
    asked: u32,
}

impl Plans {
    /// Whether the link is reserved by another one in that time.
    fn is_free(&self, link: Link, from: u64, until: u64, but: OperationId) -> bool {
        let Some(times) = self.links.get(&link) else { return true };
        times
            .range(..until)
            .rev()
            .take_while(|(_, (ends, _))| *ends > from)
            .all(|(_, (_, operation))| *operation == but)
    }

    /// The first time from then on at which the link is free for so long.
    fn first_free(&self, link: Link, from: u64, long: u64, but: OperationId) -> u64 {
        let mut at = from;
        for (begins, (ends, operation)) in self.links.get(&link).into_iter().flatten() {
            if *operation != but && *begins < at.saturating_add(long) && *ends > at {
                at = *ends;
            }
        }
        at
    }

    /// Reserves a link instead of whatever a move had reserved; false if another one has it in that time.
    fn reserve(&mut self, link: Link, from: u64, until: u64, id: OperationId) -> bool {
        self.release(id);
        if from >= until {
            return true;
        }
        let free = self.is_free(link, from, until, id);
        if free {
            self.links.entry(link).or_default().insert(from, (until, id));
            self.reserved.insert(id, (link, from));
        }
        free
    }

    fn release(&mut self, id: OperationId) {
        let Some((link, from)) = self.reserved.remove(&id) else { return };
        if let Some(times) = self.links.get_mut(&link) {
            times.remove(&from);
            if times.is_empty() {
                self.links.remove(&link);
            }
        }
    }

    /// Others that have the link in that time.
    fn others(&self, link: Link, from: u64, until: u64, id: OperationId) -> Vec<OperationId> {
        let times = self.links.get(&link).into_iter().flat_map(|times| times.range(..until).rev());
        let meanwhile = times.take_while(|(_, (ends, _))| *ends > from);
        meanwhile.map(|(_, (_, other))| *other).filter(|other| *other != id).collect()
    }

    /// What a link has free for a move: all of it, or nothing while another one has reserved it.
    fn forecast(&self, link: Link, now: u64, rate: u64, id: OperationId) -> Forecast {
        let mut forecast = Forecast { from_ms: vec![0], free_bytes_per_s: vec![rate] };
        let mut add = |at: u64, free: u64| {
            if forecast.from_ms.last() == Some(&at) {
                forecast.from_ms.pop();
                forecast.free_bytes_per_s.pop();
            }
            forecast.from_ms.push(at);
            forecast.free_bytes_per_s.push(free);
        };
        let times = self.links.get(&link).into_iter().flatten();
        let ahead = times.filter(|(_, (ends, other))| *other != id && *ends > now);
        for (begins, (ends, _)) in ahead.take(FORECAST_MAX) {
            add(*begins, 0);
            add(*ends, rate);
        }
        forecast
    }

    /// Every reservation: link, from, until, for whom.
    pub fn reservations(&self) -> impl Iterator<Item = ((NodeId, NodeId), u64, u64, OperationId)> {
        self.links.iter().flat_map(|(link, times)| {
            times.iter().map(|(from, (until, operation))| (*link, *from, *until, *operation))
        })
    }
}

impl Core {
    /// Reservations of links by planned moves: link, from, until, for whom.
    pub fn reservations(&self) -> impl Iterator<Item = ((NodeId, NodeId), u64, u64, OperationId)> {
        self.plans.reservations()
    }

    /// Begins to plan a move.
    pub(crate) fn plan(&mut self, id: OperationId) {
        self.keep_deadline(id);
        let (source, chosen) = match self.source_of(id) {
            Ok(found) => found,
            Err(blocked) => return self.cannot_plan(id, blocked),
        };
        let target = match chosen {
            Some(target) => self.can_be_target(id, source, target).map(|()| target),
            None => self.choose_target(id, source).ok_or_else(|| self.no_target(id)),
        };
        let target = match target {
            Ok(target) => target,
            Err(blocked) => return self.cannot_plan(id, blocked),
        };
        let Some(operation) = self.operations.change(id) else { return };
        operation.target = Some(target);
        operation.source = source;
        operation.blocked_on = Some(Blocked::Policy { policy: PolicyKind::Migration, why: String::new() });
        let volume = operation.volume;
        self.plans.unplanned.remove(&id);
        // One that has been idle has only days to show.
        if !self.histories.shows_seconds(volume) && self.ask_for_days(id, None) {
            return;
        }
        let (shortest, longest) = self.config.period_ms;
        let rules = self.rules(shortest, longest.min(FINE_PERIOD_MAX_MS.max(shortest)));
        let question = BuildProfile { samples: self.histories.samples(volume), rules };
        self.ask(Purpose::Profile(id, Span::Fine), Question::BuildProfile(question));
    }

    /// Sets by when a move must have begun, if nobody said, and when it is late.
    pub(crate) fn keep_deadline(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        let planned = matches!(operation.work, Work::MoveNode { at_once: false });
        let default = operation.created_ms.saturating_add(self.config.move_deadline_ms);
        let Some(deadline) = operation.deadline_ms.or(planned.then_some(default)) else { return };
        if operation.deadline_ms.is_none()
            && let Some(operation) = self.operations.change(id)
        {
            operation.deadline_ms = Some(deadline);
        }
        if !self.plans.late.contains(&id) {
            self.at(deadline.saturating_add(LATE_MS), Timer::Operation(id));
        }
    }

    /// How long ago a move that waits should have begun, if it is late.
    pub(crate) fn late_ms(&self, id: OperationId) -> Option<u64> {
        let operation = self.operations.get(id).filter(|one| one.phase == Phase::Waiting)?;
        let late = self.now().saturating_sub(operation.deadline_ms?);
        Some(late).filter(|late| *late >= LATE_MS)
    }

    /// A move has not begun by its deadline: somebody should know, once.
    pub(crate) fn say_if_late(&mut self, id: OperationId) {
        if self.late_ms(id).is_some() && self.plans.late.insert(id) {
            let blocked = self.operations.get(id).and_then(|operation| operation.blocked_on.as_ref());
            let why = blocked.map_or_else(|| "nothing chose it yet".to_owned(), ToString::to_string);
            self.alarm(Alarm::LateMove { operation: id, why });
        }
    }

    /// A move that waits is due at the time of its plan, unless it must be planned anew.
    pub(crate) fn is_planned_by(&self, id: OperationId, now: u64) -> bool {
        let plan = self.operations.get(id).and_then(|operation| operation.plan);
        plan.is_some_and(|plan| plan.starts_ms <= now) && !self.plans.unplanned.contains(&id)
    }

    /// A move begins and has its link from now on. Who has not begun gives way and plans anew; what runs cannot.
    pub(crate) fn take_link(&mut self, id: OperationId) {
        let (Some(link), Some(operation)) = (self.link_of(id), self.operations.get(id)) else { return };
        let moves = matches!(operation.work, Work::MoveNode { .. });
        let (from, long) = (operation.not_before_ms.max(self.now()), self.copy_ms(id));
        let has = self.plans.reserved.get(&id);
        let on_time = has.is_some_and(|(there, at)| *there == link && (*at..=*at + SPARE_MS).contains(&from));
        if !moves || long == 0 || on_time {
            return;
        }
        let until = from.saturating_add(long);
        for other in self.plans.others(link, from, until, id) {
            let waits = self.operations.get(other).is_some_and(|other| other.phase == Phase::Waiting);
            if waits {
                self.plans.release(other);
                self.queue.remove(other);
                // One after the other: there may be more than one step can write.
                self.plans.unplanned.insert(other);
                self.recheck_soon();
            }
        }
        self.plans.reserve(link, from, until, id);
    }

    /// A move is over or waits anew: it keeps no link, and may be late again.
    pub(crate) fn leave_link(&mut self, id: OperationId) {
        self.plans.release(id);
        self.plans.late.remove(&id);
    }

    fn rules(&self, period_min_ms: u64, period_max_ms: u64) -> Rules {
        let blackout_max_us = self.config.blackout_max_us;
        Rules { quiet_below_ppm: QUIET_PPM, blackout_max_us, period_min_ms, period_max_ms }
    }

    /// Asks for the pattern of days, if there is a history of them.
    fn ask_for_days(&mut self, id: OperationId, of_minutes: Option<Box<(Profile, PolicyRef)>>) -> bool {
        let Some(operation) = self.operations.get(id) else { return false };
        let Some((samples, shortest)) = self.histories.coarse(operation.volume) else { return false };
        let longest = self.config.period_ms.1;
        if shortest > longest {
            return false;
        }
        let question = BuildProfile { samples, rules: self.rules(shortest, longest) };
        self.ask(Purpose::Profile(id, Span::Coarse(of_minutes)), Question::BuildProfile(question));
        true
    }

    fn cannot_plan(&mut self, id: OperationId, blocked: Blocked) {
        self.plans.unplanned.insert(id);
        self.blocked(id, blocked);
    }

    /// Tries again to plan what could not be planned.
    pub(crate) fn plan_again(&mut self) {
        for id in std::mem::take(&mut self.plans.unplanned) {
            if self.is_enough() {
                self.plans.unplanned.insert(id);
                self.recheck_soon();
                continue;
            }
            let waits = self.operations.get(id).is_some_and(|operation| operation.phase == Phase::Waiting);
            if waits {
                self.plan(id);
            }
        }
    }

    /// The policy made a profile.
    pub(crate) fn take_profile(&mut self, id: OperationId, span: Span, profile: Profile, by: PolicyRef) {
        if self.operations.get(id).is_none_or(|operation| operation.phase != Phase::Waiting) {
            return;
        }
        let is_flat = profile.slots() <= 1;
        let (profile, by) = match span {
            Span::Fine if is_flat => {
                let of_minutes = Box::new((profile, by));
                if self.ask_for_days(id, Some(of_minutes.clone())) {
                    return;
                }
                *of_minutes
            }
            // Where neither shows a pattern, what was seen last says most.
            Span::Coarse(Some(of_minutes)) if is_flat => *of_minutes,
            _ => (profile, by),
        };
        let at_ms = self.now();
        let Some(operation) = self.operations.change(id) else { return };
        operation.profile = Some(Grounds { why: profile.why.clone(), by });
        let volume = operation.volume;
        self.plans.planned.insert(volume, Planned { operation: id, profile, at_ms, misses: 0, asked: 0 });
        self.ask_for_time(id);
    }

    fn link_of(&self, id: OperationId) -> Option<Link> {
        let operation = self.operations.get(id)?;
        let (source, target) = (operation.source?, operation.target?);
        Some((source.min(target), source.max(target)))
    }

    /// How long a move keeps the link.
    fn copy_ms(&self, id: OperationId) -> u64 {
        let Some(operation) = self.operations.get(id) else { return 0 };
        if self.is_shared(operation.volume) {
            return 0;
        }
        let size = self.volumes.get(operation.volume).map_or(0, |volume| volume.size_bytes);
        let rate = self.rate_of(operation.source).max(1);
        (size.saturating_mul(1_000) / rate).saturating_add(SPARE_MS)
    }

    fn ask_for_time(&mut self, id: OperationId) {
        let (Some(link), Some(operation)) = (self.link_of(id), self.operations.get(id)) else { return };
        let shared = self.is_shared(operation.volume);
        let Some(volume) = self.volumes.get(operation.volume) else { return };
        let deadline_ms = operation.deadline_ms.unwrap_or(u64::MAX);
        let transfer = Transfer {
            size_bytes: if shared { 0 } else { volume.size_bytes },
            hand_over_us: self.config.hand_over_us,
            deadline_ms,
            blackout_max_us: self.config.blackout_max_us,
            quiet_below_ppm: QUIET_PPM,
        };
        let rate = self.rate_of(operation.source);
        let Some(planned) = self.plans.planned.get_mut(&volume.id) else { return };
        planned.asked += 1;
        let profile = planned.profile.clone();
        let candidates_ms = self.times(id, link, &profile, deadline_ms);
        let link = self.plans.forecast(link, self.clock.now_ms, rate, id);
        let question = ChooseTime { profile, transfer, link, candidates_ms };
        self.ask(Purpose::Time(id), Question::ChooseTime(question));
    }

    /// Future times at which the link is free for the whole move: a few in each slot's length, over some periods.
    fn times(&self, id: OperationId, link: Link, profile: &Profile, deadline: u64) -> Vec<u64> {
        let (now, long) = (self.now(), self.copy_ms(id));
        let period = profile.slot_ms.max(1).saturating_mul(profile.slots().max(1) as u64).max(16_000);
        let last = deadline.min(now.saturating_add(period.saturating_mul(PERIODS_MAX)));
        // Several until the deadline, however long the period is.
        let apart = (period / 16).min(last.saturating_sub(now) / 16).max(1_000);
        let mut times = Vec::new();
        let mut at = now.saturating_add(1_000);
        while at <= last && times.len() < CANDIDATES_MAX {
            if self.plans.is_free(link, at, at.saturating_add(long), id) {
                times.push(at);
                at = at.saturating_add(apart);
            } else {
                let free = self.plans.first_free(link, at, long, id);
                at = free.max(at + 1);
            }
        }
        times
    }

    /// The policy chose a time.
    pub(crate) fn take_time(
        &mut self,
        id: OperationId,
        question: &ChooseTime,
        answer: &Timing,
        by: &PolicyRef,
    ) {
        let (Some(link), Some(operation)) = (self.link_of(id), self.operations.get(id)) else { return };
        if operation.phase != Phase::Waiting {
            return;
        }
        let (now, long, volume) = (self.now(), self.copy_ms(id), operation.volume);
        let deadline = operation.deadline_ms.unwrap_or(u64::MAX);
        let (starts_ms, blackout_us) = match answer.choice {
            Choice::Refuse => {
                let why = format!("the migration policy refused it: {}", answer.why);
                return self.finish(id, Phase::Failed, Some(&why));
            }
            Choice::Now => (self.plans.first_free(link, now, long, id).min(deadline), answer.now_estimate_us),
            Choice::At(row) => {
                let row = row as usize;
                let chosen = question.candidates_ms.get(row).zip(answer.estimate_us.get(row));
                match chosen.map(|(at, estimate)| ((*at).max(now).min(deadline), *estimate)) {
                    Some((at, estimate)) if self.plans.is_free(link, at, at + long, id) => (at, estimate),
                    _ => {
                        self.counters.refused += 1;
                        let asked = self.plans.planned.get(&volume).map_or(0, |planned| planned.asked);
                        if asked < ASKED_MAX {
                            return self.ask_for_time(id);
                        }
                        let free = self.plans.first_free(link, now, long, id).min(deadline);
                        (free, answer.now_estimate_us)
                    }
                }
            }
        };
        let ends_ms = starts_ms.saturating_add(long);
        self.plans.reserve(link, starts_ms, ends_ms, id);
        let candidates = question.candidates_ms.len() as u32;
        if let Some(operation) = self.operations.change(id) {
            operation.plan = Some(Plan { starts_ms, ends_ms, blackout_us, candidates });
            operation.why.clone_from(&answer.why);
            operation.policy = by.clone();
            operation.blocked_on = Some(Blocked::Time { remaining_ms: starts_ms.saturating_sub(now) });
        }
        if starts_ms <= now {
            self.make_due(id);
        } else {
            self.at(starts_ms, Timer::Operation(id));
        }
    }

    /// A volume that will be moved behaves otherwise than was expected.
    pub(crate) fn compare_with_plan(&mut self, report: &VolumeReport, now_ms: u64) {
        let Some(planned) = self.plans.planned.get_mut(&report.volume) else { return };
        let profile = &planned.profile;
        if profile.slot_ms > COMPARED_SLOT_MAX_MS {
            return;
        }
        // What is reported now was done in the second before, of which the forecast may have two slots.
        let is_missed = |at_ms: u64| {
            let forecast = profile.iops.get(profile.slot_at(at_ms)).copied().unwrap_or(0);
            forecast.abs_diff(report.iops.into()) > forecast.max(profile.mean_iops()).max(1) / 2
        };
        let missed = is_missed(now_ms) && is_missed(now_ms.saturating_sub(1_000));
        planned.misses = if missed { planned.misses + 1 } else { planned.misses.saturating_sub(1) };
        if planned.misses < MISSES_MAX || now_ms.saturating_sub(planned.at_ms) < REPLAN_MS {
            return;
        }
        let id = planned.operation;
        let waits = self.operations.get(id).is_some_and(|operation| {
            operation.phase == Phase::Waiting && operation.plan.is_some_and(|plan| plan.starts_ms > now_ms)
        });
        if !waits {
            return;
        }
        self.counters.replanned += 1;
        self.forget_plan(id);
        if let Some(operation) = self.operations.change(id) {
            operation.plan = None;
            operation.why = "the load broke its pattern, so it is planned anew".into();
        }
        self.plan(id);
    }

    /// Takes a plan that was stored.
    pub(crate) fn restore_plan(&mut self, id: OperationId) {
        let plan = self.operations.get(id).and_then(|operation| operation.plan);
        let (Some(plan), Some(link)) = (plan, self.link_of(id)) else { return self.plan(id) };
        self.keep_deadline(id);
        if !self.plans.reserve(link, plan.starts_ms, plan.ends_ms, id) {
            // What runs has the link, or this one was to plan anew when the control plane ended.
            self.plans.unplanned.insert(id);
            return;
        }
        if plan.starts_ms <= self.now() {
            self.make_due(id);
        } else {
            self.at(plan.starts_ms, Timer::Operation(id));
        }
    }

    /// A move is over, or planned anew.
    pub(crate) fn forget_plan(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get(id) else { return };
        if !matches!(operation.work, Work::MoveNode { .. }) {
            return;
        }
        if self.plans.planned.get(&operation.volume).is_some_and(|planned| planned.operation == id) {
            self.plans.planned.remove(&operation.volume);
        }
        self.plans.unplanned.remove(&id);
        self.plans.release(id);
    }
}
