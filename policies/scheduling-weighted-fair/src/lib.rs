//! Shares what can be started among tenants by their weights: start-time fair queueing. A tenant's virtual time
//! grows by what its operations take of the scarcest account, divided by its weight; who is behind goes first.
//! Virtual time itself is that of the waiting tenant which is furthest behind. A tenant that comes back starts
//! there, so that it cannot save up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use sdk::{Accounts, Assignments, Candidates, Config, Policy, Room, Scheduling, Tenants, Tick, words};

/// Tenants remembered.
const TENANTS_MAX: usize = 4_096;

/// The policy.
#[derive(Debug)]
pub struct WeightedFair {
    /// Virtual time per tenant: thousandths of a millionth of a limit, per unit of weight.
    virtual_time: BTreeMap<u64, u64>,
    /// Of the waiting tenant that was furthest behind.
    now: u64,
}

impl Policy for WeightedFair {
    const SUMMARY: &'static str = "tenants share by their weights";
    const SCHEMA: u32 = 200;

    fn new(_: &mut Config) -> Result<WeightedFair, String> {
        Ok(WeightedFair { virtual_time: BTreeMap::new(), now: 0 })
    }

    fn save(&self) -> Vec<u8> {
        let pairs = self.virtual_time.iter().map(|(&tenant, &time)| (tenant, time));
        words::pack([(0, self.now)].into_iter().chain(pairs).flat_map(|(a, b)| [a, b]))
    }

    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String> {
        match schema {
            WeightedFair::SCHEMA => {
                let pairs = words::unpack_pairs(bytes)?;
                let (&(_, now), times) = pairs.split_first().ok_or("the state is empty")?;
                self.now = now;
                self.virtual_time = times.iter().copied().take(TENANTS_MAX).collect();
                Ok(())
            }
            // urgent-first remembers handlers, of which this policy knows nothing.
            100 => Ok(()),
            other => Err(format!("schema {other} is not one that weighted-fair reads")),
        }
    }
}

impl Scheduling for WeightedFair {
    fn schedule(
        &mut self,
        now: Tick,
        rows: &Candidates,
        accounts: &Accounts,
        tenants: &Tenants,
    ) -> Assignments {
        let weights: BTreeMap<u64, u32> =
            tenants.tenant.iter().copied().zip(tenants.weight.iter().copied()).collect();
        let mut queues = queues(rows);
        let mut next: BinaryHeap<Reverse<(u64, u64)>> = queues
            .keys()
            .map(|&tenant| Reverse((*self.virtual_time.entry(tenant).or_insert(self.now), tenant)))
            .collect();
        let mut room = Room::new(accounts);
        let mut chosen =
            Assignments { reasons: vec!["its tenant is furthest behind".into()], ..Default::default() };
        while let Some(Reverse((time, tenant))) = next.pop() {
            let Some(queue) = queues.get_mut(&tenant) else { continue };
            // What does not fit now will not fit later in this decision either.
            let Some(row) =
                std::iter::from_fn(|| queue.pop_front()).find(|&row| room.take(rows, row).is_ok())
            else {
                continue;
            };
            chosen.push(row as u32, now.now_ms, 0);
            let weight = u64::from(weights.get(&tenant).copied().unwrap_or(1).max(1));
            let time = time
                .saturating_add((scarcest_share(rows, row, accounts).saturating_mul(1_000) / weight).max(1));
            self.virtual_time.insert(tenant, time);
            next.push(Reverse((time, tenant)));
        }
        self.forget(|tenant| queues.contains_key(&tenant));
        chosen.why = format!(
            "{} of {} candidates of {} tenants fit",
            chosen.candidate.len(),
            rows.len(),
            queues.len()
        );
        chosen
    }
}

impl WeightedFair {
    /// Forgets tenants that neither wait nor are ahead: they start anew with the others' virtual time.
    fn forget(&mut self, waits: impl Fn(u64) -> bool) {
        let waiting = self.virtual_time.iter().filter(|(tenant, _)| waits(**tenant));
        let behind = waiting.map(|(_, &time)| time).min().unwrap_or(self.now);
        self.now = self.now.max(behind);
        let now = self.now;
        self.virtual_time.retain(|&tenant, &mut time| waits(tenant) || time > now);
        while self.virtual_time.len() > TENANTS_MAX {
            let ahead = self.virtual_time.iter().max_by_key(|(_, time)| **time).map(|(&tenant, _)| tenant);
            ahead.and_then(|tenant| self.virtual_time.remove(&tenant));
        }
    }
}

/// The rows of each tenant: the most urgent first, then who has waited longest.
fn queues(rows: &Candidates) -> BTreeMap<u64, VecDeque<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_unstable_by_key(|&row| (rows.trigger[row], rows.registered_ms[row], row));
    let mut queues: BTreeMap<u64, VecDeque<usize>> = BTreeMap::new();
    for row in order {
        queues.entry(rows.tenant[row]).or_default().push_back(row);
    }
    queues
}

/// The largest share that a row takes of any account, in millionths.
fn scarcest_share(rows: &Candidates, row: usize, accounts: &Accounts) -> u64 {
    let share = |(account, amount): (u32, u64)| {
        let limit = accounts.limit.get(account as usize).copied().unwrap_or(1).max(1);
        (u128::from(amount) * 1_000_000 / u128::from(limit)) as u64
    };
    rows.needs(row).map(share).max().unwrap_or(0)
}

sdk::export!(scheduling: WeightedFair, wit: "../../wit");

#[cfg(test)]
mod tests {
    use sdk::scheduling::Candidate;

    use super::*;

    const NOW: Tick = Tick { now_ms: 100_000, seed: 0, epoch: 1 };

    fn rows(tenants: &[u64]) -> Candidates {
        let mut rows = Candidates::default();
        for (event, &tenant) in tenants.iter().enumerate() {
            let event = event as u64;
            rows.push(Candidate {
                event,
                op: 1,
                handler: 1,
                tenant,
                trigger: 0,
                registered_ms: event,
                needs: &[(0, 1)],
            });
        }
        rows
    }

    fn starts(policy: &mut WeightedFair, room: u64, tenants: &Tenants) -> [usize; 2] {
        let all: Vec<u64> = (0..100).map(|row| row % 2).collect();
        let rows = rows(&all);
        let accounts = Accounts { in_use: vec![100 - room], limit: vec![100] };
        let chosen = policy.schedule(NOW, &rows, &accounts, tenants);
        [0, 1]
            .map(|tenant| chosen.candidate.iter().filter(|&&row| rows.tenant[row as usize] == tenant).count())
    }

    #[test]
    fn starts_follow_the_weights_over_many_decisions() {
        let mut policy = WeightedFair::new(&mut Config::default()).unwrap();
        let tenants = Tenants { tenant: vec![0, 1], weight: vec![3, 1] };
        let mut sum = [0, 0];
        for _ in 0..100 {
            // One at a time: the share comes from what the policy remembers, through a hand-over each time.
            let of = starts(&mut policy, 1, &tenants);
            sum = [sum[0] + of[0], sum[1] + of[1]];
            let mut next = WeightedFair::new(&mut Config::default()).unwrap();
            next.load(WeightedFair::SCHEMA, &policy.save()).unwrap();
            policy = next;
        }
        assert_eq!(sum[0] + sum[1], 100);
        assert!((74..=76).contains(&sum[0]), "{sum:?}");
    }

    #[test]
    fn a_tenant_that_was_away_has_not_saved_up() {
        let mut policy = WeightedFair::new(&mut Config::default()).unwrap();
        let accounts = Accounts { in_use: vec![0], limit: vec![50] };
        policy.schedule(NOW, &rows(&[0; 50]), &accounts, &Tenants::default());
        assert_eq!(starts(&mut policy, 20, &Tenants::default()), [10, 10]);
    }
}
