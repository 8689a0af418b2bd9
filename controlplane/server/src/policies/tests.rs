//! What was chosen outlives a start with other components, and goes by nothing but another choice.

use std::time::Duration;

use contract::Alarm;
use ed25519_dalek::{Signer, SigningKey};
use host::{Digest, workload};
use store::Local;

use super::*;

const NAME: &str = "leasing-pack-tight";
const KIND: Kind = Kind::Leasing;

/// A folder and a store that outlive starts.
struct Ground {
    root: PathBuf,
    store: Arc<dyn Store>,
}

impl Ground {
    fn new(test: &str) -> Ground {
        let root = std::env::temp_dir().join(format!("tidegate-policies-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a folder");
        Ground { root, store: Arc::new(Local::in_memory()) }
    }

    fn open(&self, trust: Trust) -> Open {
        let (driver, seat) = Driver::new();
        let policies = Policies::open(&self.root, self.store.clone(), &driver, trust).expect("it starts");
        // As it does beside other work, so that nothing is waited for here.
        policies.push_shipped(|name| policies.0.host.find(name).is_none());
        assert!(shipped::all().all(|(name, _)| policies.0.host.find(name).is_some()));
        Open { policies, driver, seat }
    }

    fn chosen(&self) -> Option<Vec<u8>> {
        self.store.get(&stored::active_key(KIND)).expect("it is in memory").map(|entry| entry.value.to_vec())
    }

    /// Has the store say that this was chosen.
    fn choose(&self, id: &host::PolicyId) {
        let id = serde_json::to_vec(id).expect("texts");
        self.store
            .transact(&store::Transaction::new().put(stored::active_key(KIND), id))
            .expect("it is in memory");
    }

    /// Puts a component beside the store, as a version of this program that shipped it would.
    fn lay(&self, id: &host::PolicyId, component: &[u8], beside: &str) {
        let path = self.root.join("policies").join(format!("{}-{}.wasm", id.digest, id.config.short()));
        std::fs::write(path.with_extension("json"), beside).expect("a file");
        std::fs::write(path, component).expect("a file");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Threads of the last start may still write to it.
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

struct Open {
    policies: Policies,
    driver: Driver,
    seat: crate::driver::Seat,
}

impl Open {
    fn active(&self) -> Option<host::PolicyId> {
        self.policies.0.host.active(KIND).map(|policy| policy.id().clone())
    }

    fn alarms(&self) -> Vec<Alarm> {
        self.driver.alarms().all()
    }

    /// Has it decide once, wholly: the second question is taken when all of the first is done.
    fn decide(&self) {
        for number in 0..2 {
            let (tick, question) = workload::question(KIND, 10, number);
            self.policies.ask(control_core::Ask { id: number, tick, question });
        }
        let answers = [(); 2].map(|()| self.seat.next_decided(Duration::from_secs(60)));
        assert_eq!(answers, [Some(0), Some(1)]);
    }
}

/// The shipped component with a custom section more: the same policy with another digest.
fn another() -> (host::PolicyId, Vec<u8>) {
    let mut component = shipped::component(NAME).expect("it is shipped").to_vec();
    component.extend(b"\0\x08\x07another");
    let config = Digest::of_config(&[]);
    let engine = Engine::new(Limits::default()).expect("an engine");
    let candidate = Candidate { component: &component, ..Candidate::default() };
    let id = Gate::default().admit(&engine, &candidate).expect("it is a policy").id().clone();
    assert_eq!((id.name.as_str(), id.config), (NAME, config));
    (id, component)
}

#[test]
fn a_shipped_policy_that_was_chosen_outlives_an_upgrade_that_ships_another() {
    let ground = Ground::new("upgrade");
    let first = ground.open(Trust::default());
    first.policies.activate(NAME, true).expect("it becomes active");
    let id = first.active().expect("it is active");
    let path = first.policies.0.folder.join(format!("{}-{}.wasm", id.digest, id.config.short()));
    let kept = std::fs::read(&path).expect("it is kept when it becomes active");
    assert_eq!(Digest::of(&kept), id.digest);
    let beside = std::fs::read_to_string(path.with_extension("json")).expect("with its companion");
    drop(first);
    // As if another version had done all of this, with a component that this one does not ship.
    let (old, component) = another();
    ground.lay(&old, &component, &beside);
    ground.choose(&old);
    // Whose policies may run besides says nothing of the shipped ones.
    let second = ground.open(ours().1);
    assert_eq!(second.active().as_ref(), Some(&old));
    assert_eq!(second.alarms(), []);
    // By its name this version's own is found.
    let found = second.policies.find(NAME).map(|policy| policy.id().clone());
    assert_eq!(found.map_err(|(status, _)| status), Ok(id));
}

#[test]
fn a_choice_that_cannot_be_restored_stays_until_somebody_makes_another() {
    let ground = Ground::new("missing");
    drop(ground.open(Trust::default()));
    let (old, component) = another();
    ground.choose(&old);
    let chosen = ground.chosen();
    let without = ground.open(Trust::default());
    assert_eq!(without.active(), None);
    let said = without.alarms().first().map(|alarm| alarm.what.clone()).unwrap_or_default();
    for word in [NAME, "native decides meanwhile", "activate", "tidegate policy rollback leasing"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    without.decide();
    assert_eq!(ground.chosen(), chosen, "a decision does not undo what somebody chose");
    drop(without);
    ground.lay(&old, &component, r#"{"config":[],"shipped":true}"#);
    let with = ground.open(Trust::default());
    assert_eq!(with.active(), Some(old.clone()), "it is there again");
    drop(with);
    // Not what the store names, whatever its companion says.
    ground.lay(&old, b"another one", r#"{"config":[],"shipped":true}"#);
    let without = ground.open(Trust::default());
    assert_eq!(without.active(), None);
    let done = without.policies.roll_back(KIND).map_err(|(status, _)| status).expect("it stays with this");
    assert_eq!((done.active.as_str(), done.before), ("native", old.to_string()));
    assert_eq!(ground.chosen(), None);
    assert!(without.policies.roll_back(KIND).is_err(), "there is nothing before the native default");
}

/// A key, and the trust in it alone.
fn ours() -> (SigningKey, Trust) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let trust = Trust::only(&[key.verifying_key().to_bytes()]).expect("a key");
    (key, trust)
}

#[test]
fn where_keys_are_configured_signatures_are_asked_for_kept_and_checked_again() {
    let ground = Ground::new("signed");
    let (key, trust) = ours();
    let (id, component) = another();
    let signature = key.sign(&component).to_bytes();
    let first = ground.open(trust.clone());
    let push = |signature| first.policies.push(&component, signature, Config::new()).map(drop);
    for (signature, what) in [(None, "--signature"), (Some([0; 64]), "controlplane.toml")] {
        let (status, Json(refused)) = push(signature).expect_err("it is not signed by us");
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        let said = serde_json::to_string(&refused).expect("a text");
        assert!(said.contains(what), "{said}");
    }
    push(Some(signature)).map_err(|(status, _)| status).expect("it is signed by us");
    first.policies.activate(&id.digest.to_string(), true).map_err(|(status, _)| status).expect("it runs");
    drop(first);
    let second = ground.open(trust.clone());
    assert_eq!(second.active(), Some(id.clone()), "its signature is kept");
    drop(second);
    ground.lay(&id, &component, r#"{"config":[]}"#);
    assert_eq!(ground.open(trust).active(), None, "without its signature it is left out");
    assert_eq!(ground.open(Trust::default()).active(), Some(id), "where no key is configured it is not");
}

#[test]
fn what_faults_roll_back_is_an_alarm_that_says_why() {
    let ground = Ground::new("faults");
    let open = ground.open(Trust::default());
    let component = shipped::component(shipped::MISBEHAVING).expect("built with this test");
    let config = [("after", "24"), ("fault", "panic")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    open.policies.push(component, None, config.into()).map_err(|(status, _)| status).expect("it is admitted");
    open.policies.activate(shipped::MISBEHAVING, true).expect("it becomes active");
    while open.active().is_some() {
        open.decide();
    }
    open.decide();
    let alarms = open.alarms();
    let said = alarms.first().map(|alarm| alarm.what.as_str()).unwrap_or_default();
    assert!(said.contains("rolled back to native: 5 faults") && said.contains(KIND.name()), "{alarms:?}");
    assert_eq!(ground.chosen(), None, "a rollback stays");
}
