//! NAME: a policy for migration. Until you change it, it decides like the native default.
//!
//! Build it with `cargo build --release --target wasm32-unknown-unknown`, test it with `cargo test`, and see what
//! a server would say of it with `tidegate policy check target/wasm32-unknown-unknown/release/…wasm`.

use sdk::{
    BuildProfile, ChooseTime, Config, Forecast, Migration, Policy, Profile, Rules, Samples, Tick, Timing, Transfer, words,
};

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

impl Migration for Mine {
    fn build_profile(&mut self, now: Tick, samples: &Samples, rules: Rules) -> Profile {
        self.decisions += 1;
        // Find what repeats in the samples.
        BuildProfile { samples: samples.clone(), rules }.native(now)
    }

    fn choose_time(
        &mut self,
        now: Tick,
        profile: &Profile,
        transfer: Transfer,
        link: &Forecast,
        candidates_ms: &[u64],
    ) -> Timing {
        self.decisions += 1;
        // Choose a time; sdk::estimate_blackout_us says what each would cost.
        let (profile, link, candidates_ms) = (profile.clone(), link.clone(), candidates_ms.to_vec());
        ChooseTime { profile, transfer, link, candidates_ms }.native(now)
    }
}

sdk::export!(migration: Mine, wit: "wit");

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
