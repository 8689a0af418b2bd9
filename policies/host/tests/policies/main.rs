//! Policies as they are shipped, and one that misbehaves on purpose, through the whole host.

mod admission;
mod author;
mod bad_guests;
mod cache;
mod decision_log;
mod lifecycle;
mod swaps;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::log::LogOptions;
use host::workload::question;
use host::{Candidate, Engine, Gate, Limits, Options, Policies, Policy, Seat};
use verdict::{Ask, Decide, Decided, Kind, Question, Tick, Verdict};

/// An engine whose endless calls end early, by fuel however busy the machine is.
fn engine() -> Engine {
    let limits = Limits { fuel: 20_000_000, deadline_ms: 120_000, ..Limits::default() };
    Engine::new(limits).expect("WebAssembly runs here")
}

fn pairs(config: &[(&str, &str)]) -> Vec<(String, String)> {
    config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A life cycle of its own.
struct Rig {
    policies: Policies,
    seat: Seat,
}

impl Rig {
    fn with(options: Options) -> Rig {
        let policies = Policies::new(engine(), Gate::default(), options).expect("a log in a new folder");
        let seat = policies.seat();
        Rig { policies, seat }
    }

    fn new() -> Rig {
        Rig::with(Options::default())
    }

    fn push(&self, name: &str, config: &[(&str, &str)]) -> Arc<Policy> {
        let component = shipped::component(name).expect("built with this test");
        let candidate = Candidate { component, signature: None, config: pairs(config) };
        self.policies.push(&candidate).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The `number`-th question of a kind, answered.
    fn decide(&mut self, kind: Kind, number: u64) -> (Tick, Question, Decided<Verdict>) {
        let (tick, question) = question(kind, 20, number);
        let decided = self.seat.decide(tick, &question);
        assert_eq!(question.check(tick, &decided.verdict), Ok(()), "whoever decides, the answer is sound");
        (tick, question, decided)
    }
}

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("what an earlier test left can be removed");
        }
        std::fs::create_dir_all(&folder).expect("the folder for tests can be written");
        Folder(folder)
    }

    fn log(&self) -> LogOptions {
        LogOptions::in_folder(&self.0.join("log"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let removed = std::fs::remove_dir_all(&self.0);
            assert!(removed.is_ok(), "{}: {removed:?}", self.0.display());
        }
    }
}

#[test]
fn every_shipped_policy_decides() {
    let mut rig = Rig::new();
    for (name, _) in shipped::all() {
        let policy = rig.push(name, &[]);
        assert_eq!(policy.id().name, name);
        rig.policies.activate(&policy, host::Start::Fresh).expect("it starts");
        let (mut by_policy, mut abstained) = (0, 0);
        for number in 0..20 {
            let (_, _, decided) = rig.decide(policy.kind(), number);
            assert!(decided.by.policy.starts_with(name), "{}", decided.by.policy);
            match decided.by.instead {
                None => by_policy += 1,
                Some(why) => {
                    assert!(why.starts_with("the policy abstains"), "{name}: {why}");
                    abstained += 1;
                }
            }
        }
        assert!(by_policy >= 10, "{name} took {by_policy} decisions and abstained {abstained} times");
    }
}

#[test]
fn without_a_policy_the_native_default_decides() {
    let mut rig = Rig::new();
    let (tick, question) = question(Kind::Leasing, 8, 0);
    let Question::UpdateWeights(weights) = question.clone() else { panic!("the first is about weights") };
    let decided = weights.clone().ask(&mut rig.seat, tick);
    assert_eq!((decided.verdict, &*decided.by.policy), (weights.native(), "native"));
    assert_eq!(rig.policies.status().kinds[Kind::Leasing as usize].counters.decisions, 1);
}
