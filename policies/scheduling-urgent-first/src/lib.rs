//! Starts the most urgent operation first. Waiting makes urgent: each `age-step-ms` counts as one step of the
//! trigger, so that nothing starves. Of several handlers for one event it takes the one it has not used for
//! longest, which is what its state remembers.

use std::collections::BTreeMap;

use sdk::{Accounts, Assignments, Candidates, Config, Policy, Room, Scheduling, Tenants, Tick, words};

/// Handlers remembered.
const HANDLERS_MAX: usize = 4_096;

/// The policy.
#[derive(Debug)]
pub struct UrgentFirst {
    age_step_ms: u64,
    /// When each handler was last given something, in starts.
    last_used: BTreeMap<u64, u64>,
    starts: u64,
}

impl Policy for UrgentFirst {
    const SUMMARY: &'static str = "the most urgent trigger first; waiting makes urgent";
    const SCHEMA: u32 = 100;

    fn new(config: &mut Config) -> Result<UrgentFirst, String> {
        let age_step_ms = config.take("age-step-ms", 60_000)?;
        if age_step_ms == 0 {
            return Err("age-step-ms must be at least 1".into());
        }
        Ok(UrgentFirst { age_step_ms, last_used: BTreeMap::new(), starts: 0 })
    }

    fn save(&self) -> Vec<u8> {
        words::pack(self.last_used.iter().flat_map(|(&handler, &start)| [handler, start]))
    }

    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String> {
        match schema {
            UrgentFirst::SCHEMA => {
                self.last_used = words::unpack_pairs(bytes)?.into_iter().take(HANDLERS_MAX).collect();
                self.starts = self.last_used.values().copied().max().unwrap_or(0);
                Ok(())
            }
            // weighted-fair remembers tenants, of which this policy knows nothing.
            200 => Ok(()),
            other => Err(format!("schema {other} is not one that urgent-first reads")),
        }
    }
}

impl Scheduling for UrgentFirst {
    fn schedule(&mut self, now: Tick, rows: &Candidates, accounts: &Accounts, _: &Tenants) -> Assignments {
        let mut order: Vec<_> = (0..rows.len())
            .map(|row| {
                let steps = now.now_ms.saturating_sub(rows.registered_ms[row]) / self.age_step_ms;
                let urgency = u64::from(rows.trigger[row]).saturating_sub(steps);
                let last_used = self.last_used.get(&rows.handler[row]).copied().unwrap_or(0);
                (urgency, rows.registered_ms[row], rows.event[row], last_used, row)
            })
            .collect();
        order.sort_unstable();
        let mut room = Room::new(accounts);
        let mut chosen = Assignments {
            reasons: vec![
                "its trigger is the most urgent".into(),
                "it has waited until it became urgent".into(),
            ],
            ..Default::default()
        };
        for (urgency, .., row) in order {
            if room.take(rows, row).is_ok() {
                let waited = urgency < u64::from(rows.trigger[row]);
                chosen.push(row as u32, now.now_ms, waited.into());
                self.used(rows.handler[row]);
            }
        }
        chosen.why = format!("{} of {} candidates fit", chosen.candidate.len(), rows.len());
        chosen
    }
}

impl UrgentFirst {
    fn used(&mut self, handler: u64) {
        self.starts += 1;
        self.last_used.insert(handler, self.starts);
        if self.last_used.len() > HANDLERS_MAX {
            let oldest = self.last_used.iter().min_by_key(|(_, start)| **start).map(|(&handler, _)| handler);
            oldest.and_then(|handler| self.last_used.remove(&handler));
        }
    }
}

sdk::export!(scheduling: UrgentFirst, wit: "../../wit");

#[cfg(test)]
mod tests {
    use sdk::scheduling::Candidate;

    use super::*;

    const NOW: Tick = Tick { now_ms: 100_000, seed: 0, epoch: 1 };

    fn policy() -> UrgentFirst {
        UrgentFirst::new(&mut Config::new(vec![("age-step-ms".into(), "10000".into())])).unwrap()
    }

    fn rows(of: &[(u64, u64, u32, u64)]) -> Candidates {
        let mut rows = Candidates::default();
        for &(event, handler, trigger, registered_ms) in of {
            rows.push(Candidate {
                event,
                op: 1,
                handler,
                tenant: 1,
                trigger,
                registered_ms,
                needs: &[(0, 1)],
            });
        }
        rows
    }

    fn room_for(limit: u64) -> Accounts {
        Accounts { in_use: vec![0], limit: vec![limit] }
    }

    #[test]
    fn urgent_comes_first_unless_another_has_waited() {
        let rows = rows(&[(1, 1, 3, 95_000), (2, 1, 1, 99_000), (3, 1, 5, 10_000)]);
        let chosen = policy().schedule(NOW, &rows, &room_for(2), &Tenants::default());
        assert_eq!(chosen.candidate, [2, 1]);
        assert_eq!(chosen.reason(0), "it has waited until it became urgent");
        assert_eq!(chosen.reason(1), "its trigger is the most urgent");
    }

    #[test]
    fn handlers_take_turns_also_after_a_hand_over() {
        let rows = rows(&[(1, 7, 0, 0), (1, 8, 0, 0)]);
        let mut first = policy();
        let one = first.schedule(NOW, &rows, &room_for(9), &Tenants::default());
        let mut second = policy();
        second.load(UrgentFirst::SCHEMA, &first.save()).unwrap();
        let two = second.schedule(NOW, &rows, &room_for(9), &Tenants::default());
        assert_eq!((one.candidate, two.candidate), (vec![0], vec![1]));
        assert!(second.load(7, &[]).is_err());
    }
}
