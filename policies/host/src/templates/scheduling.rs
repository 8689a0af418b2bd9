//! NAME: a policy for scheduling. Until you change it, it decides like the native default.
//!
//! Build it with `cargo build --release --target wasm32-unknown-unknown`, test it with `cargo test`, and see what
//! a server would say of it with `tidegate policy check target/wasm32-unknown-unknown/release/…wasm`.

use sdk::{Accounts, Assignments, Candidates, Config, Policy, Schedule, Scheduling, Tenants, Tick, words};

/// The policy, with the state that it hands over to its successor.
#[derive(Debug)]
pub struct Mine {
    decisions: u64,
}

impl Policy for Mine {
    const SUMMARY: &'static str = "like the native default";
    // How to read what `save` writes: another number whenever that changes.
    const SCHEMA: u32 = 1;

    fn new(_config: &mut Config) -> Result<Mine, String> {
        // Keys of your configuration: let ttl_ms = _config.take("ttl-ms", 30_000)?;
        Ok(Mine { decisions: 0 })
    }

    fn save(&self) -> Vec<u8> {
        words::pack([self.decisions])
    }

    fn load(&mut self, schema: u32, bytes: &[u8]) -> Result<(), String> {
        match (schema, &words::unpack(bytes)?[..]) {
            (Mine::SCHEMA, &[decisions]) => {
                self.decisions = decisions;
                Ok(())
            }
            _ => Err(format!("schema {schema} is not one that this policy reads")),
        }
    }
}

impl Scheduling for Mine {
    fn schedule(&mut self, now: Tick, rows: &Candidates, accounts: &Accounts, tenants: &Tenants) -> Assignments {
        self.decisions += 1;
        // Pick rows of `rows` that fit together; sdk::Room says whether one more does.
        Schedule { candidates: rows.clone(), accounts: accounts.clone(), tenants: tenants.clone() }.native(now)
    }
}

sdk::export!(scheduling: Mine, wit: "wit");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_comes_back() {
        let mut mine = Mine { decisions: 7 };
        let saved = mine.save();
        mine.decisions = 0;
        mine.load(Mine::SCHEMA, &saved).unwrap();
        assert_eq!(mine.decisions, 7);
        assert!(mine.load(2, &saved).is_err());
    }
}
