//! Does what a policy must not: the tests of the host say by its configuration what, and after how many calls.
//! Until then it answers like the native default. It is a policy for leasing, and is not shipped.

use sdk::{
    Config, Leases, Leasing, PickVictims, Policy, Producers, Resources, Tick, UpdateWeights, Victims, Weights,
};

/// The policy.
#[derive(Debug)]
pub struct Misbehaving {
    fault: String,
    after: u64,
    calls: u64,
    hoard: Vec<Vec<u8>>,
}

impl Policy for Misbehaving {
    const SUMMARY: &'static str = "does what a policy must not";
    const SCHEMA: u32 = 900;

    fn new(config: &mut Config) -> Result<Misbehaving, String> {
        let policy = Misbehaving {
            fault: config.take("fault", String::new())?,
            after: config.take("after", 0)?,
            calls: 0,
            hoard: Vec::new(),
        };
        if policy.fault == "init" { Err("told to fail".into()) } else { Ok(policy) }
    }

    fn save(&self) -> Vec<u8> {
        if self.fault == "export-state" {
            panic!("told to");
        }
        if self.fault == "vast-state" {
            return vec![0; 16 << 20];
        }
        self.calls.to_le_bytes().to_vec()
    }

    fn load(&mut self, _: u32, bytes: &[u8]) -> Result<(), String> {
        match self.fault.as_str() {
            "import-state" => Err("told to refuse".into()),
            "import-trap" => panic!("told to"),
            _ => {
                self.calls = bytes.first_chunk().map_or(0, |calls| u64::from_le_bytes(*calls));
                Ok(())
            }
        }
    }
}

impl Leasing for Misbehaving {
    fn update_weights(&mut self, _: Tick, producers: &Producers) -> Weights {
        let native = UpdateWeights { producers: producers.clone() }.native();
        self.calls += 1;
        if self.calls <= self.after {
            return native;
        }
        match self.fault.as_str() {
            "abstain" => return Weights { abstain: true, why: "told to".into(), ..Default::default() },
            "lie-sum" => return Weights { weight_ppm: vec![u32::MAX; native.weight_ppm.len()], ..native },
            "lie-rows" => return Weights { weight_ppm: vec![1; 1_000_000], ..native },
            "lie-ttl" => return Weights { ttl_ms: vec![0; native.ttl_ms.len()], ..native },
            "lie-why" => return Weights { why: "a".repeat(10 << 20), ..native },
            _ => self.ruin(),
        }
        native
    }

    fn pick_victims(&mut self, _: Tick, need: Resources, leases: &Leases, grace_max_ms: u32) -> Victims {
        let native = PickVictims { need, leases: leases.clone(), grace_max_ms }.native();
        self.calls += 1;
        if self.calls <= self.after {
            return native;
        }
        match self.fault.as_str() {
            "lie-unknown" => return Victims { lease: vec![u32::MAX], ..native },
            "lie-all" => return Victims { lease: (0..leases.len() as u32).collect(), ..native },
            "lie-grace" => return Victims { grace_ms: u32::MAX, ..native },
            _ => self.ruin(),
        }
        native
    }
}

impl Misbehaving {
    fn ruin(&mut self) {
        match self.fault.as_str() {
            "panic" => panic!("told to"),
            "endless-loop" => loop {
                self.calls = std::hint::black_box(self.calls.wrapping_add(1));
            },
            "memory-bomb" => loop {
                self.hoard.push(Vec::with_capacity(1 << 20));
            },
            "deep-recursion" => {
                self.calls = deeper(self.calls);
            }
            // Natively there is no host to call.
            #[cfg(target_arch = "wasm32")]
            "host-call-spam" => loop {
                bindings::log("again, and again");
            },
            _ => {}
        }
    }
}

/// Not a loop in disguise: what is done after the call keeps each frame on the stack.
#[inline(never)]
fn deeper(depth: u64) -> u64 {
    if depth == u64::MAX { 0 } else { deeper(depth + 1).rotate_left(7) ^ depth }
}

sdk::export!(leasing: Misbehaving, wit: "../../wit");
