//! Who lends how much: selection weights from what producers and consumers report (F7).
//!
//! - A consumer has one vote about a producer, and only while it has a lease there. Votes count as their median, and
//!   only from three on: one that lies cannot move a weight by 5 % (F7.A3). Its numbers are clamped before.
//! - The policy makes weights of views; the host bounds how fast they move, so that nobody herds.
//! - The choice is the host's: two producers are drawn by weight, and the one with less on it for its weight is taken.
//!   That keeps shares at the weights much closer than one draw does.

use std::collections::BTreeMap;
use std::sync::Arc;

use contract::{Grounds, Name, NodeId, Observed, PolicyRef};
use verdict::{PPM, Producers as Views, Weights};

use crate::random::Random;

/// A vote is forgotten after this long.
const VOTE_MS: u64 = 60_000;
/// Votes from which on consumers are heard at all.
const VOTES_MIN: usize = 3;
/// Most votes kept of one producer.
const VOTES_MAX: usize = 1_024;
/// A weight moves by at most this part of itself in one update, or by `STEP_MIN_PPM` if that is more.
const STEP_DIVISOR: u64 = 4;
const STEP_MIN_PPM: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vote {
    at_ms: u64,
    error_ppm: u32,
    response_us: u64,
}

/// A producer and what is known of it.
#[derive(Clone, Debug, Default)]
pub struct Producer {
    /// Its share of new leases.
    pub weight_ppm: u32,
    /// Why it is that; none = it began with the mean for its capacity.
    pub grounds: Option<Arc<Grounds>>,
    /// How long they last.
    pub ttl_ms: u64,
    /// What it can do.
    pub capacity: u64,
    /// What it says that it does of that.
    pub utilisation_ppm: u32,
    /// When it said so.
    pub reported_ms: u64,
    /// Leases of consumers.
    pub consumers: u32,
    votes: BTreeMap<Name, Vote>,
}

/// All producers.
#[derive(Clone, Debug, Default)]
pub struct Producers {
    nodes: BTreeMap<NodeId, Producer>,
    /// Of each pool, and of all.
    wheels: BTreeMap<Option<Name>, Wheel>,
}

/// Producers that can be drawn for one purpose, with the sum of weights up to each.
#[derive(Clone, Debug, Default)]
struct Wheel {
    members: Vec<NodeId>,
    sums: Vec<u64>,
}

impl Producers {
    /// A producer joined or changed; it begins with the mean weight for its capacity.
    pub fn set(&mut self, id: NodeId, capacity: u64, pools: &[Name]) {
        let (sum, weights) = self.nodes.iter().filter(|(other, _)| **other != id).fold(
            (0_u64, 0_u64),
            |(capacity, weights), (_, producer)| {
                (capacity.saturating_add(producer.capacity), weights + u64::from(producer.weight_ppm))
            },
        );
        let producer = self.nodes.entry(id).or_default();
        producer.capacity = capacity;
        if producer.ttl_ms == 0 {
            producer.ttl_ms = 30_000;
            let share = u128::from(weights) * u128::from(capacity) / u128::from(sum.max(1));
            producer.weight_ppm = if sum == 0 { PPM } else { share.min(PPM.into()) as u32 };
        }
        for wheel in self.wheels.values_mut() {
            wheel.members.retain(|member| *member != id);
        }
        for pool in pools.iter().cloned().map(Some).chain([None]) {
            let members = &mut self.wheels.entry(pool).or_default().members;
            members.push(id);
            members.sort_unstable();
        }
        self.turn_wheels();
    }

    /// A producer is gone.
    pub fn remove(&mut self, id: NodeId) {
        self.nodes.remove(&id);
        for wheel in self.wheels.values_mut() {
            wheel.members.retain(|member| *member != id);
        }
        self.turn_wheels();
    }

    fn turn_wheels(&mut self) {
        let weight = |id: &NodeId| self.nodes.get(id).map_or(0, |producer| u64::from(producer.weight_ppm));
        for wheel in self.wheels.values_mut() {
            let mut sum = 0;
            wheel.sums.clear();
            wheel.sums.extend(wheel.members.iter().map(|id| {
                sum += weight(id);
                sum
            }));
        }
    }

    /// Looks at one.
    pub fn get(&self, id: NodeId) -> Option<&Producer> {
        self.nodes.get(&id)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Producer)> {
        self.nodes.iter().map(|(id, producer)| (*id, producer))
    }

    /// What a producer says of itself.
    pub fn reported(&mut self, id: NodeId, utilisation_ppm: u32, now_ms: u64) {
        if let Some(producer) = self.nodes.get_mut(&id) {
            // Two thirds old, one third new.
            let new = u64::from(utilisation_ppm.min(PPM));
            producer.utilisation_ppm = ((2 * u64::from(producer.utilisation_ppm) + new) / 3) as u32;
            producer.reported_ms = now_ms;
        }
    }

    /// What a consumer that has a lease there says of it.
    pub fn observed(&mut self, consumer: &Name, seen: &Observed, now_ms: u64) {
        let Some(producer) = self.nodes.get_mut(&seen.producer) else { return };
        if producer.votes.len() >= VOTES_MAX && !producer.votes.contains_key(consumer) {
            producer.votes.retain(|_, vote| now_ms.saturating_sub(vote.at_ms) < VOTE_MS);
            if producer.votes.len() >= VOTES_MAX {
                return;
            }
        }
        let errors = u128::from(seen.errors.min(seen.requests)) * u128::from(PPM);
        let error_ppm = (errors / u128::from(seen.requests.max(1))) as u32;
        let vote = Vote { at_ms: now_ms, error_ppm, response_us: seen.response_us.min(60_000_000) };
        producer.votes.insert(consumer.clone(), vote);
    }

    /// A consumer has one more or one less lease there.
    pub fn count(&mut self, id: NodeId, consumer: &Name, more: bool) {
        let Some(producer) = self.nodes.get_mut(&id) else { return };
        if more {
            producer.consumers = producer.consumers.saturating_add(1);
        } else {
            producer.consumers = producer.consumers.saturating_sub(1);
            producer.votes.remove(consumer);
        }
    }

    /// What the policy sees of those that can be chosen.
    pub fn views(&mut self, now_ms: u64, eligible: impl Fn(NodeId) -> bool) -> Views {
        let mut views = Views::default();
        for (id, producer) in &mut self.nodes {
            if !eligible(*id) {
                continue;
            }
            producer.votes.retain(|_, vote| now_ms.saturating_sub(vote.at_ms) < VOTE_MS);
            let heard = producer.votes.len() >= VOTES_MIN;
            let error_ppm = median(producer.votes.values().map(|vote| u64::from(vote.error_ppm)));
            let response_us = median(producer.votes.values().map(|vote| vote.response_us));
            views.producer.push(id.0);
            views.capacity.push(producer.capacity);
            views.utilisation_ppm.push(producer.utilisation_ppm);
            views.error_ppm.push(if heard { error_ppm as u32 } else { 0 });
            views.response_us.push(if heard { response_us } else { 0 });
            views.consumers.push(producer.consumers);
            views.report_age_ms.push(now_ms.saturating_sub(producer.reported_ms));
            views.weight_ppm.push(producer.weight_ppm);
        }
        views
    }

    /// Takes the policy's weights over, as far as they may move at once. Says whether any is above 0.
    pub fn take(&mut self, ids: &[NodeId], weights: &Weights, by: PolicyRef, ttl_max_ms: u64) -> bool {
        let grounds = Arc::new(Grounds { why: weights.why.clone(), by });
        for (row, id) in ids.iter().enumerate() {
            let Some(producer) = self.nodes.get_mut(id) else { continue };
            let wanted = u64::from(weights.weight_ppm.get(row).copied().unwrap_or(0)).min(PPM.into());
            let now = u64::from(producer.weight_ppm);
            let step = (now / STEP_DIVISOR).max(STEP_MIN_PPM);
            producer.weight_ppm = wanted.clamp(now.saturating_sub(step), now + step) as u32;
            producer.grounds = Some(Arc::clone(&grounds));
            let ttl = weights.ttl_ms.get(row).copied().unwrap_or(0);
            producer.ttl_ms = u64::from(ttl).clamp(1_000, ttl_max_ms.max(1_000));
        }
        self.turn_wheels();
        ids.is_empty() || ids.iter().any(|id| self.get(*id).is_some_and(|producer| producer.weight_ppm > 0))
    }

    /// Chooses one of a pool's producers, or of all, by weight: of two drawn, the one with less load for its weight.
    pub fn choose(
        &self,
        pool: Option<&Name>,
        random: &mut Random,
        eligible: impl Fn(NodeId) -> bool,
        load: impl Fn(NodeId) -> u64,
    ) -> Option<NodeId> {
        let wheel = self.wheels.get(&pool.cloned())?;
        let total = wheel.sums.last().copied()?;
        let mut draw = || {
            // Most members can be chosen most of the time, so that a few draws find one.
            (0..8).find_map(|_| {
                let at = random.below(total);
                let member = *wheel.members.get(wheel.sums.partition_point(|sum| *sum <= at))?;
                eligible(member).then_some(member)
            })
        };
        let drawn = if total == 0 { None } else { draw() };
        let Some(one) = drawn else {
            // None was drawn: look at all of them, the least loaded first, those without weight too.
            let able = wheel.members.iter().copied().filter(|id| eligible(*id));
            return able.min_by_key(|id| (load(*id), *id));
        };
        let Some(other) = draw() else { return Some(one) };
        let of = |id: NodeId| {
            let weight = self.get(id).map_or(1, |producer| producer.weight_ppm.max(1));
            (u128::from(load(id)) + 1) * u128::from(PPM) / u128::from(weight)
        };
        Some(if of(other) < of(one) { other } else { one })
    }

    /// Whether a producer has so much more than its share of leases that one should go elsewhere: then the chance
    /// is the excess, so that not all go at once.
    pub fn overfull(&self, id: NodeId, random: &mut Random) -> bool {
        let Some(producer) = self.get(id) else { return true };
        let (mut weights, mut leases) = (0_u64, 0_u64);
        for other in self.nodes.values() {
            weights += u64::from(other.weight_ppm);
            leases += u64::from(other.consumers);
        }
        let share = leases.saturating_mul(producer.weight_ppm.into()) / weights.max(1);
        let has = u64::from(producer.consumers);
        let excess = has.saturating_sub(share.saturating_add(share / 20));
        excess > 0 && random.below(has) < excess
    }
}

/// The middle one; of two, the lower. 0 of nothing.
fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

#[cfg(test)]
#[path = "producers/tests.rs"]
mod tests;
