//! People and programs: they ask for things, ask again when they hear nothing, and sometimes when they did.

use std::collections::BTreeMap;

use contract::{
    Answer, Class, Command, Dim, LeaseId, Limit, Name, NodeId, Observed, OperationId, Refused, Request,
    Resources, Scope, TenantId, VolumeId, VolumeLimits,
};
use control_core::Core;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::bug::Bug;
use crate::invariants::Invariants;

/// Most requests that wait for an answer.
const WAITING_MAX: usize = 32;

#[derive(Clone, Debug)]
struct Asked {
    request: Request,
    answer: Option<Answer>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct People {
    asked: BTreeMap<u64, Asked>,
    tokens: u64,
    names: u64,
    leases: BTreeMap<LeaseId, Name>,
}

impl People {
    /// Somebody asks for something: something new, or what was not answered.
    pub fn ask(&mut self, core: &Core, random: &mut ChaCha8Rng, bug: Option<Bug>) -> (u64, Request) {
        let again = self.asked.len() >= WAITING_MAX || (!self.asked.is_empty() && random.random_bool(0.3));
        let token = if again {
            let at = random.random_range(0..self.asked.len());
            // INVARIANT: it is one of them.
            self.asked.keys().nth(at).copied().unwrap_or_default()
        } else {
            self.tokens += 1;
            let command = self.wish(core, random);
            let request =
                Request { idempotency_key: format!("key-{}", self.tokens), expected_revision: None, command };
            self.asked.insert(self.tokens, Asked { request, answer: None });
            self.tokens
        };
        let mut request = self.asked[&token].request.clone();
        if bug == Some(Bug::LostKey) {
            request.idempotency_key.clear();
        }
        (token, request)
    }

    /// Somebody was answered.
    pub fn hear(
        &mut self,
        token: u64,
        result: Result<Answer, Refused>,
        random: &mut ChaCha8Rng,
        invariants: &mut Invariants,
    ) {
        let Some(asked) = self.asked.get_mut(&token) else { return };
        if let Some(before) = &asked.answer {
            let same = result.as_ref() == Ok(before);
            let command = format!("{:?}", asked.request.command);
            invariants.once.answered_again(&command, same, &result);
        }
        let Ok(answer) = result else {
            // What was refused is not wanted any more, unless it was done before.
            if asked.answer.is_none() {
                self.asked.remove(&token);
            }
            return;
        };
        if let (Some(lease), Command::LeaseAcquire { consumer, .. }) = (&answer.lease, &asked.request.command)
        {
            self.leases.insert(lease.id, consumer.clone());
        }
        // Some ask once more, to see that nothing happens.
        if asked.answer.is_none() && random.random_bool(0.3) {
            asked.answer = Some(answer);
        } else {
            self.asked.remove(&token);
        }
    }

    /// Nobody asks for anything any more.
    pub fn rest(&mut self) {
        self.asked.clear();
    }

    fn wish(&mut self, core: &Core, random: &mut ChaCha8Rng) -> Command {
        let Some(tenant) = pick(core.tenants().map(|tenant| tenant.id), random) else {
            return Command::TenantPut { name: name("t1"), vni: Some(1), weight: 1, rules: vec![] };
        };
        let Some(volume) = pick(core.volumes().map(|volume| volume.id), random) else {
            return self.create(tenant, random);
        };
        let node = pick(core.nodes().map(|node| node.id), random).unwrap_or(NodeId(1));
        self.names += 1;
        match random.random_range(0..24) {
            0..6 if core.volumes().count() < 24 => self.create(tenant, random),
            0..2 => Command::VolumeDelete { volume, wipe: random.random_bool(0.5) },
            2..5 => Command::VolumeScrub { volume },
            5 => Command::VolumeClone { volume, name: name(&format!("c{}", self.names)) },
            6..9 => self.move_one(volume, random, core),
            9 => Command::VolumeResize { volume, size_bytes: random.random_range(1..2_000) * 4_096 },
            10 => Command::VolumeLimit { volume, limits: limits(random) },
            11 => Command::VolumeExpand { volume },
            12 => Command::VolumeMoveWorker { volume, worker: random.random_range(0..2) },
            13 => Command::NodeCordon { node, cordoned: random.random_bool(0.3) },
            14 => Command::LimitPut(Limit {
                dim: Dim::CopySlots,
                scope: Scope::Node(node),
                max: random.random_range(1..5),
            }),
            15 => self.cancel(core, random),
            16..20 => Command::LeaseAcquire {
                consumer: name(&format!("consumer{}", random.random_range(0..20))),
                resources: Resources { iops: random.random_range(0..200), ..Resources::NONE },
                observed: vec![observed(node, random)],
            },
            20 => Command::TenantPut { name: name("t1"), vni: Some(1), weight: 2, rules: vec![] },
            _ => self.keep_or_release(node, random),
        }
    }

    fn create(&mut self, tenant: TenantId, random: &mut ChaCha8Rng) -> Command {
        self.names += 1;
        Command::VolumeCreate {
            name: name(&format!("v{}", self.names)),
            tenant,
            size_bytes: random.random_range(1..1_000) * 4_096,
            pool: name(if random.random_bool(0.6) { "shared" } else { "own" }),
            class: if random.random_bool(0.7) { Class::Firm } else { Class::Revocable },
            limits: limits(random),
            on: None,
        }
    }

    fn move_one(&mut self, volume: VolumeId, random: &mut ChaCha8Rng, core: &Core) -> Command {
        let to = pick(core.nodes().map(|node| node.id), random).filter(|_| random.random_bool(0.5));
        let deadline_ms = Some(random.random_range(1_000..60_000));
        Command::VolumeMove { volume, to, at_once: random.random_bool(0.5), deadline_ms }
    }

    fn cancel(&mut self, core: &Core, random: &mut ChaCha8Rng) -> Command {
        let operation = pick(core.operations().map(|operation| operation.id), random);
        Command::OperationCancel { operation: operation.unwrap_or(OperationId(1)) }
    }

    fn keep_or_release(&mut self, node: NodeId, random: &mut ChaCha8Rng) -> Command {
        let Some((lease, consumer)) = pick(self.leases.iter(), random).map(|(id, name)| (*id, name.clone()))
        else {
            return Command::ValveOpen;
        };
        if random.random_bool(0.3) {
            self.leases.remove(&lease);
            return Command::LeaseRelease { lease, consumer };
        }
        Command::LeaseRenew { lease, consumer, observed: vec![observed(node, random)] }
    }
}

fn name(text: &str) -> Name {
    // INVARIANT: all that is written here is a name.
    Name::new(text).unwrap_or_else(|error| unreachable!("{error}"))
}

fn pick<T>(all: impl Iterator<Item = T>, random: &mut ChaCha8Rng) -> Option<T> {
    let mut all: Vec<T> = all.collect();
    if all.is_empty() {
        return None;
    }
    let at = random.random_range(0..all.len());
    Some(all.swap_remove(at))
}

fn limits(random: &mut ChaCha8Rng) -> VolumeLimits {
    let mut limits = VolumeLimits::default();
    limits.operations.rate = random.random_range(1..300);
    limits
}

/// A consumer that may lie.
fn observed(producer: NodeId, random: &mut ChaCha8Rng) -> Observed {
    Observed { producer, requests: random.random(), errors: random.random(), response_us: random.random() }
}
