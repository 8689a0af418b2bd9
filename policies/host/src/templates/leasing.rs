//! NAME: a policy for leasing. Until you change it, it decides like the native default.
//!
//! Build it with `cargo build --release --target wasm32-unknown-unknown`, test it with `cargo test`, and see what
//! a server would say of it with `tidegate policy check target/wasm32-unknown-unknown/release/…wasm`.

use sdk::{
    Config, Leases, Leasing, PickVictims, Policy, Producers, Resources, Tick, UpdateWeights, Victims, Weights, words,
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

impl Leasing for Mine {
    fn update_weights(&mut self, _: Tick, producers: &Producers) -> Weights {
        self.decisions += 1;
        // Give each producer a share; sdk::normalised makes shares of any numbers.
        UpdateWeights { producers: producers.clone() }.native()
    }

    fn pick_victims(&mut self, _: Tick, need: Resources, leases: &Leases, grace_max_ms: u32) -> Victims {
        self.decisions += 1;
        // Order the leases; sdk::without_superfluous takes as many as are needed.
        PickVictims { need, leases: leases.clone(), grace_max_ms }.native()
    }
}

sdk::export!(leasing: Mine, wit: "wit");

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
